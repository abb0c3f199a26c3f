"""Files that are read again while the server serves: when they change, and on SIGHUP."""

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio

LOOK_SECONDS = 2.0
"""Between two looks at whether a file has changed."""


class Rereadable(Protocol):
    """What was read from files."""

    def has_changed(self) -> bool:
        """Whether the files are not those that were read, links followed."""
        ...

    def read_again(self) -> None:
        """Use what the files hold now; if that cannot be used, go on with what was, and log it."""
        ...


async def watch(files: Sequence[Rereadable]) -> None:
    """Have them read again, for ever. A server that has none may be told to all the same, and goes on."""
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed, hangups, files)
            while True:
                await trio.sleep(LOOK_SECONDS)
                for file in files:
                    if file.has_changed():
                        file.read_again()


async def _heed(hangups: AsyncIterator[int], files: Sequence[Rereadable]) -> None:
    async for _ in hangups:
        for file in files:
            file.read_again()


@asynccontextmanager
async def watched(files: Sequence[Rereadable]) -> AsyncIterator[None]:
    """Within the block they are read again."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, files)
        yield
        nursery.cancel_scope.cancel()
