"""Opens the engine that a test's settings ask for, a durable one too.

Drop-in for `queue_actor.service.open_engine`. With a data directory among the settings, the store is the real one over
a database in memory, carried out at once rather than in a thread, for threads and virtual time do not mix. A
`FakeStore` goes before it, so that a test can hold its commits and make them fail.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from math import inf
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import trio

from queue_actor import service
from queue_actor.archive import Archive
from queue_actor.backups import Backups
from queue_actor.changes import Changes
from queue_actor.durable import Data
from queue_actor.engine import Clock, Engine, system_clock
from queue_actor.schema import Connection
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.store import Store
from tests.fakes import SECRET

IN_MEMORY = sorted(service.ENGINES)
"""The engines that keep nothing."""

DURABLE = "durable"
"""The engine that keeps everything, within which one of the others runs."""

_numbers = count()

ROOM_BYTES = 1e15
"""Of a disk that is never full; a number, as a real one has, and not infinity, which is no JSON."""


def in_memory() -> Callable[[Path], sqlite3.Connection]:
    """What connects to one and the same database, as long as somebody is connected to it."""
    address = f"file:test{next(_numbers)}?mode=memory&cache=shared"
    return lambda _path: sqlite3.connect(address, uri=True, isolation_level=None)


async def inline(call: Callable[[], Any]) -> Any:
    """Carry out a call at once."""
    await trio.lowlevel.checkpoint()
    return call()


class BackedStore(SqliteStore):
    """The real store behind another, which is asked first."""

    def __init__(self, front: Store | None, connect: Callable[[Path], Connection], **arguments: Any) -> None:
        self._front = front
        super().__init__(Path("none"), connect, **arguments)

    async def commit(self, changes: Changes) -> None:
        if self._front is not None:
            await self._front.commit(changes)
        await super().commit(changes)


def open_store(
    connect: Callable[[Path], Connection],
    *,
    front: Store | None = None,
    secret: bytes = SECRET,
    run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] = inline,
) -> SqliteStore:
    """The real store, over whatever this connects to."""
    return BackedStore(
        front,
        connect,
        durability="full",
        fresh_secret=secret,
        fresh_instance=f"life{next(_numbers):06}",  # of one length, as with `FakeStore`
        run_in_thread=run_in_thread,
        room_bytes=lambda: ROOM_BYTES,
    )


def open_backups(connect: Callable[[Path], sqlite3.Connection]) -> Backups:
    """What copies the same; a copy has a name among the system's temporary files until it is whole."""
    return Backups(Path("none"), Path(gettempdir()), connect, inline, lambda: inf)


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    clock: Clock = system_clock,
    store: Store | None = None,
    secret: bytes | None = None,
    connect: Callable[[Path], sqlite3.Connection] | None = None,
) -> AsyncIterator[Engine]:
    """An engine that runs inside the block, and is ready."""
    if not settings.data:
        async with service.open_engine(settings, clock=clock, store=store, secret=secret) as engine:
            yield engine
        return
    connect = connect or in_memory()
    kept = open_store(connect, front=store, secret=secret or SECRET)
    data = Data(kept, Archive(Path("none"), connect, inline), open_backups(connect))
    try:
        async with service.open_engine(settings, clock=clock, data=data) as engine:
            await engine.ready.wait()
            yield engine
    finally:
        data.archive.close()
        kept.close()
