"""A server in virtual time: the real engine and the real store, without a thread, a socket or a file.

`testing.py` puts workers and trouble around it. Nothing sleeps: when everybody waits, the clock jumps to whatever is
due next. The database is in memory, and is there for all lives of the server.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from tempfile import gettempdir
from types import coroutine
from typing import Any, Final, TypeVar

import trio
import trio.testing

from queue_actor.archive import Archive
from queue_actor.backups import Backups
from queue_actor.commands import Command, R
from queue_actor.durable import Data
from queue_actor.engine import Engine
from queue_actor.errors import Unavailable
from queue_actor.jobs import Now
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.tokens import SECRET_BYTES

T = TypeVar("T")

EPOCH_SECONDS: Final = 1_800_000_000.0
"""What the wall clock shows when a simulation begins."""

PAUSE_SECONDS_MAX: Final = 5.0
"""Longest pause of a client before it sends again what was not answered, and of a server between two lives."""

_databases = count()


def run_in_virtual_time(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """`trio.run` with a clock that jumps, and the order in which tasks run decided by a seed.

    Raises:
        RuntimeError: This version of Trio cannot have that order decided.
    """
    with seeded_scheduling(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Let a seed decide in which order Trio runs tasks that could run at the same time.

    The two names are not public. They are what Trio's own Hypothesis plugin uses, and if they vanish this fails.

    Raises:
        RuntimeError: They have vanished.
    """
    internals = trio._core._run  # noqa: SLF001 - see above
    if not hasattr(internals, "_ALLOW_DETERMINISTIC_SCHEDULING") or not hasattr(internals, "_r"):
        raise RuntimeError(f"the order of tasks cannot be decided in Trio {trio.__version__}")
    before = internals._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001 - see above
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc] # noqa: SLF001 - it is there for this
    internals._r.seed(seed)  # noqa: SLF001 - see above
    try:
        yield
    finally:
        internals._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc] # noqa: SLF001 - see above


class VirtualServer:
    """One life of an engine after the other, over one database."""

    def __init__(self, settings: Settings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._engine: Engine | None = None
        self._life = trio.CancelScope()
        self._up = trio.Event()

    async def serve(self) -> None:
        """Serve until cancelled."""
        address = f"file:virtual{next(_databases)}?mode=memory&cache=shared"
        anchor = _connect(address)  # the database is there for as long as somebody is connected to it
        try:
            while True:
                with trio.CancelScope() as self._life:
                    async with _open(address, self._settings) as self._engine:
                        self._up.set()
                        await trio.sleep_forever()
                await self.pause()
        finally:
            anchor.close()

    async def pause(self) -> None:
        """Wait a while, before something is tried again."""
        await trio.sleep(self._random.uniform(0, PAUSE_SECONDS_MAX))

    async def restart(self) -> None:
        """Kill the server, and come back when it serves the same jobs again."""
        await self._up.wait()
        if self._up.is_set():  # somebody else may have killed it while this task was woken
            self._up = trio.Event()
            self._life.cancel()
        await self._up.wait()

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command. It is sent again when the server was killed before it answered.

        Raises:
            QueueError: The refusal.
        """
        while True:
            await self._up.wait()
            assert self._engine is not None  # noqa: S101 - for the type checker: the server is up
            try:
                return await self._engine.execute(command)
            except Unavailable:
                await self.pause()


class Fate:
    """What befalls a worker while it has a job in hand."""

    def __init__(self, *, dies: bool, stall_seconds: float, awaits: int) -> None:
        self.dies = dies
        self.stalled_until = 0.0
        self.scope = trio.CancelScope()
        self._stall_seconds = stall_seconds
        self._awaits = awaits  # until it strikes

    @coroutine
    def befall(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Carry out a handler's work, until its fate strikes at one of its awaits.

        Death comes while it waits, as a cancellation. A stall comes when the wait is over, before the handler runs on.
        """
        answer = None
        while True:
            try:
                trap = work.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            self._awaits -= 1
            if self.dies and self._awaits == 0:
                self.scope.cancel()
            answer = yield trap  # Trio sends an outcome, and throws nothing
            if self._awaits == 0:
                yield from self._stall().__await__()

    async def strike_late(self) -> None:
        """Stall after the work, if nothing came of it before."""
        if self._awaits > 0:
            await self._stall()

    async def _stall(self) -> None:
        self.stalled_until = trio.current_time() + self._stall_seconds
        with trio.CancelScope(shield=True):
            await trio.sleep_until(self.stalled_until)


async def inline(call: Callable[[], T]) -> T:
    """Carry out at once what a server leaves to a thread: threads and virtual time do not mix."""
    await trio.lowlevel.checkpoint()
    return call()


def _clock() -> Now:
    monotonic = trio.current_time()
    return Now(monotonic, EPOCH_SECONDS + monotonic)


def _connect(address: str) -> sqlite3.Connection:
    return sqlite3.connect(address, uri=True, isolation_level=None)


@asynccontextmanager
async def _open(address: str, settings: Settings) -> AsyncIterator[Engine]:
    """An engine over a database in memory, when it has read its jobs."""

    def connect(_path: Path) -> sqlite3.Connection:
        return _connect(address)

    nowhere = Path("nowhere")
    store = SqliteStore(
        nowhere,
        connect,
        durability="full",
        fresh_secret=bytes(SECRET_BYTES),
        fresh_instance="virtual",
        run_in_thread=inline,
        room_bytes=lambda: inf,
    )
    archive = Archive(nowhere, connect, inline)
    data = Data(store, archive, Backups(nowhere, Path(gettempdir()), connect, inline, lambda: inf))
    try:
        async with open_engine(settings, clock=_clock, data=data) as engine:
            await engine.ready.wait()
            yield engine
    finally:
        archive.close()
        store.close()
