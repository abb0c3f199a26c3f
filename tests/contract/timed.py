"""A mark for tests in which time passes, though nobody waits for it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock


def run_in_virtual_time(main: Callable[[], Awaitable[None]], **arguments: Any) -> None:
    """`trio.run` with a clock that begins at 0 and jumps to the next deadline when everybody waits."""
    trio.run(main, **(arguments | {"clock": MockClock(autojump_threshold=0)}))


timed = pytest.mark.trio(run=run_in_virtual_time)
"""For a test, not for a module: pytest-trio marks each test too, and heeds the mark that comes first."""
