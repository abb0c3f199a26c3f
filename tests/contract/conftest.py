"""Fixtures for the contract tests over HTTP."""

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from queue_actor.service import ENGINES
from queue_actor.settings import Settings
from tests.contract.stack import Server, serving


@pytest.fixture(params=sorted(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each engine, one after the other."""
    return str(request.param)


@pytest.fixture
async def server(engine_name: str, autojump_clock: MockClock) -> AsyncIterator[Server]:  # noqa: ARG001 - sets the time
    """A server with the default settings, once for each engine."""
    async with serving(Settings(engine=engine_name)) as server:  # type: ignore[arg-type] # ENGINES has no other names
        yield server
