"""Connections as a network has them, in memory and in virtual time: a window each way, and more than one kind of end.

A `Way` takes no more than its window until the other side has read, so whoever does not read holds the other one up.
An end is closed in one of three ways, as a socket is: `send_eof` closes what it sends; `aclose` both, and if something
lies unread there, the other side is reset; `reset` loses what is under way, in both directions.
"""

from dataclasses import dataclass, field
from typing import Any

import h11
import trio

from tests.contract.stack import HOST, Answer

READ_BYTES = 65_536


class Way:
    """One direction."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._data = bytearray()
        self._ended = False  # by who sends
        self._refused = False  # by who receives: has closed
        self._broken = False
        self._room = trio.lowlevel.ParkingLot()
        self._news = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._data)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise trio.ClosedResourceError
        rest = memoryview(data)
        while True:
            if self._broken or self._refused:
                raise trio.BrokenResourceError
            room = self._window_bytes - len(self._data)
            if room > 0 and rest:
                self._data += rest[:room]
                rest = rest[room:]
                self._news.unpark_all()
            if not rest:
                return
            await self._room.park()

    async def receive(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._data:
            if self._broken:
                raise trio.BrokenResourceError
            if self._refused:
                raise trio.ClosedResourceError
            if self._ended:
                return b""
            await self._news.park()
        data = bytes(self._data[:bytes_max])
        del self._data[:bytes_max]
        self._room.unpark_all()
        return data

    def end(self) -> None:
        self._ended = True
        self._wake()

    def refuse(self) -> bool:
        """Receive no more; whether something was left unread."""
        unread = bool(self._data)
        self._refused = True
        self._data.clear()
        self._wake()
        return unread

    def reset(self) -> None:
        self._broken = True
        self._data.clear()
        self._wake()

    def _wake(self) -> None:
        self._room.unpark_all()
        self._news.unpark_all()


class End(trio.abc.HalfCloseableStream):
    """One end of a connection."""

    def __init__(self, sends: Way, receives: Way) -> None:
        self.sends, self.receives = sends, receives
        self.socket: Any = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.sends.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.receives.receive(max_bytes or READ_BYTES)

    async def send_eof(self) -> None:
        self.sends.end()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.sends.end()
        if self.receives.refuse():
            self.sends.reset()  # TCP's answer to data for a socket that is closed

    def reset(self) -> None:
        self.sends.reset()
        self.receives.reset()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def connection(*, there_bytes: int = READ_BYTES, back_bytes: int = READ_BYTES) -> tuple[End, End]:
    """Both ends: the first one's window for what it sends, and for what it receives."""
    there, back = Way(there_bytes), Way(back_bytes)
    return End(there, back), End(back, there)


class CutError(Exception):
    """The connection ended before the answer did."""


@dataclass
class Reader:
    """Reads answers from an end, piece by piece; what was read of one that breaks off is kept."""

    end: End
    bytes_max: int = READ_BYTES
    pause_seconds: float = 0.0  # before each piece
    head: h11.Response | None = None
    body: bytearray = field(default_factory=bytearray)
    begun: bool = False  # something of the answer was read
    _rest: bytes = b""
    _http: h11.Connection | None = None

    async def read(self, method: str) -> Answer:
        """The next answer; if this was cancelled, the one that it had begun to read.

        Raises:
            CutError: The connection ended first.
        """
        http = self._http
        if http is None:
            self.head, self.body, self.begun = None, bytearray(), bool(self._rest)
            http = self._http = h11.Connection(h11.CLIENT)
            http.send(h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", HOST)]))
            http.send(h11.EndOfMessage())
            if self._rest:
                http.receive_data(self._rest)
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await self._piece())
            elif isinstance(event, h11.Response):
                self.head = event
            elif isinstance(event, h11.Data):
                self.body += event.data
            else:
                assert isinstance(event, h11.InformationalResponse), event
        assert self.head is not None
        self._http, self._rest = None, bytes(http.trailing_data[0])
        names = [name.decode() for name, _ in self.head.headers]
        assert len(set(names)) == len(names), f"a header twice: {names}"
        headers = {name.decode(): value.decode() for name, value in self.head.headers}
        return Answer(self.head.status_code, headers, bytes(self.body))

    async def _piece(self) -> bytes:
        if self.pause_seconds:
            await trio.sleep(self.pause_seconds)
        try:
            data = await self.end.receive_some(self.bytes_max)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise CutError from error
        if not data:
            raise CutError
        self.begun = True
        return data
