"""A client that follows the events of a server, as a browser's EventSource does."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import h11
import trio
from trio.testing import wait_all_tasks_blocked

from tests.contract.stack import HOST, Server, build


class Told(NamedTuple):
    """One event."""

    event: str
    data: Any
    id: str | None


class Follower:
    """What one reader was told so far."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.comments = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = False  # with a whole answer
        self._rest = ""

    @property
    def id(self) -> str:
        """Of the last event that had one."""
        return [told.id for told in self.told if told.id is not None][-1]

    def of(self, event: str) -> list[Any]:
        """The data of all events of this kind."""
        return [told.data for told in self.told if told.event == event]

    @property
    def verbs(self) -> list[tuple[str, int, str]]:
        """Queue, id and verb of each transition."""
        return [(job["queue"], job["id"], job["verb"]) for job in self.of("job")]

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read until the answer, or the connection, ends."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method="GET", target="/", headers=[("Host", HOST)]))
        http.send(h11.EndOfMessage())
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = bytes(await stream.receive_some())
                if not data:
                    return
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                self._take(event.data.decode())
        self.ended = True

    def _take(self, text: str) -> None:
        self.text += text
        *events, self._rest = (self._rest + text).split("\n\n")
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.split("\n"))
            if "event" in fields:
                self.told.append(Told(fields["event"], json.loads(fields["data"]), fields.get("id")))
            else:
                self.comments += 1


@asynccontextmanager
async def following(server: Server, query: str = "", **headers: str) -> AsyncIterator[Follower]:
    """Somebody who follows the events inside the block, and leaves at its end."""
    follower = Follower()
    stream = server.connect().stream
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    await stream.send_all(build("GET", f"/v1/events{query}", headers=fields))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, follower, stream)
        await wait_all_tasks_blocked()
        yield follower
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
    server.answers += 1  # whose line the log has, however it ended
    await wait_all_tasks_blocked()


async def _read(follower: Follower, stream: trio.abc.ReceiveStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await follower.read(stream)
