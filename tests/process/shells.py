"""The same scenario through each of the clients: threads, Trio and asyncio, with calls that share requests and without.

    @scenario
    async def test_a_job_is_enqueued(client: AsyncClient, queue: str) -> None:
        assert (await client.enqueue(queue, "t")).id == 1

A scenario is written for `AsyncClient`. The client for threads is called in worker threads, so that what runs at the
same time in a scenario does so there, too. Its server is that of the fixture `server` of its module.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Self, cast

import anyio
import anyio.to_thread
import pytest

from queue_actor.client import AsyncClient, Client, Event, Events
from tests.process.server import Server

SCENARIO_SECONDS = 60.0
"""How long one may take, on a loaded machine."""

Scenario = Callable[[AsyncClient, str], Awaitable[None]]


class InThreads:
    """A `Client` that is awaited like an `AsyncClient`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found
        if name in {"jobs", "queues", "enqueue_stream"}:
            return lambda *args, **named: awaited(found(*args, **named))
        if name == "backup":
            return self._backup
        if name == "follow":
            return lambda *args, **named: FollowedInThreads(found(*args, **named))
        return lambda *args, **named: anyio.to_thread.run_sync(partial(found, *args, **named))

    @asynccontextmanager
    async def _backup(self) -> AsyncIterator[AsyncIterator[bytes]]:
        with self._client.backup() as pieces:
            yield awaited(pieces)


class FollowedInThreads:
    """`Events` that are awaited like `AsyncEvents`."""

    def __init__(self, events: Events) -> None:
        self._events = events

    @property
    def last_id(self) -> str | None:
        return self._events.last_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await anyio.to_thread.run_sync(next, self._events, None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._events.close)


async def awaited(items: Iterator[Any]) -> AsyncIterator[Any]:
    """The items of an iterator that blocks."""
    done = object()
    while (item := await anyio.to_thread.run_sync(next, items, done)) is not done:
        yield item


class Shell(NamedTuple):
    """A client, and where it runs."""

    backend: str
    threads: bool = False
    coalesce: bool = True

    @asynccontextmanager
    async def open(self, url: str, **options: Any) -> AsyncIterator[AsyncClient]:
        """A client of this kind."""
        options = {"coalesce": self.coalesce, **options}
        if self.threads:
            with Client(url, **options) as client:
                yield cast("AsyncClient", InThreads(client))
        else:
            async with AsyncClient(url, **options) as client:
                yield client


SHELLS = {
    "threads": Shell("trio", threads=True),
    "threads, apart": Shell("trio", threads=True, coalesce=False),
    "trio": Shell("trio"),
    "trio, apart": Shell("trio", coalesce=False),
    "asyncio": Shell("asyncio"),
    "asyncio, apart": Shell("asyncio", coalesce=False),
}
TOGETHER = [name for name, shell in SHELLS.items() if shell.coalesce]

_numbers = count(1)


class Tally:
    """What several tasks bring, and a way to wait until there is so much of it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._awaited: list[tuple[int, anyio.Event]] = []

    def add(self, item: object) -> None:
        self.items.append(item)
        for number, event in self._awaited:
            if len(self.items) >= number:
                event.set()

    async def reaches(self, number: int) -> None:
        """Returns when there are so many."""
        if len(self.items) < number:
            self._awaited.append((number, anyio.Event()))
            await self._awaited[-1][1].wait()


def scenario(play: Scenario) -> Callable[..., None]:
    """A test of each shell; `queue` is one that nobody else uses."""

    @pytest.mark.parametrize("shell", SHELLS)
    def test(shell: str, server: Server) -> None:
        through(SHELLS[shell], f"http://{server.host}:{server.port}", play)

    test.__name__ = play.__name__
    return test


def through(shell: Shell, url: str, play: Scenario, **options: Any) -> None:
    """Play a scenario in a shell."""

    async def main() -> None:
        with anyio.fail_after(SCENARIO_SECONDS):
            async with shell.open(url, **options) as client:
                await play(client, f"queue-{next(_numbers)}")

    anyio.run(main, backend=shell.backend)
