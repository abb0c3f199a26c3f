"""The rules of web/connections.py, one by one: over memory streams and virtual time, and over sockets where TCP counts.

Each test of a rule that Hypercorn 0.18 or Quart-Trio 0.12 breaks says so; it may go when upstream makes it needless.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio import serve
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, request
from quart_trio import QuartTrio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from queue_actor.settings import KIB, Settings
from web import connections as module
from web.connections import Connection, Connections
from web.exchanges import Exchange, cancelled_by_disconnect
from web.problems import CONTENT_TYPE, PROBLEMS
from web.serving import GRACEFUL_SECONDS, installed, make_config

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
Application = Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]


class Answer(NamedTuple):
    """A response as the client reads it. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of a problem document, after a look at its shape."""
        problem = json.loads(self.body)
        assert self.headers["content-type"] == CONTENT_TYPE
        assert problem["status"] == self.status
        return str(problem["code"])


@dataclass
class Client:
    """The other end of a connection."""

    stream: trio.abc.HalfCloseableStream
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def more(self) -> bool:
        data = await self.stream.receive_some()
        self.received += data
        return bool(data)

    async def until(self, end: bytes) -> bytes:
        """What comes up to and with `end`."""
        while end not in self.received:
            assert await self.more(), f"closed after {self.received!r}"
        found, _, self.received = self.received.partition(end)
        return found + end

    async def exactly(self, count: int) -> bytes:
        while len(self.received) < count:
            assert await self.more(), f"closed after {self.received!r}"
        found, self.received = self.received[:count], self.received[count:]
        return found

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.until(b"\r\n\r\n")).decode("latin1").rstrip().split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        assert len({name.lower() for name, _ in pairs}) == len(pairs)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self, *, bodiless: bool = False) -> Answer:
        status, headers = await self.head()
        body = b""
        if headers.get("transfer-encoding") == "chunked" and not bodiless:
            while chunk := await self.chunk():
                body += chunk
        elif not bodiless:
            body = await self.exactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    async def chunk(self) -> bytes:
        size = int(await self.until(b"\r\n"), 16)
        return (await self.exactly(size + 2))[:size]

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def closed(self) -> bool:
        """Waits for the end, which has to come with nothing before it."""
        return not await self.more() and not self.received


@dataclass
class FakeSocket:
    """What Connection asks of a socket."""

    family: int = socket.AF_INET
    peer: Any = ("192.0.2.7", 4242)

    def getpeername(self) -> Any:
        if isinstance(self.peer, OSError):
            raise self.peer
        return self.peer

    def getsockname(self) -> Any:
        return ("192.0.2.1", 80) if self.family == socket.AF_INET else "/run/queue"


@dataclass
class World:
    """A server without a kernel: every connection is a pair of memory streams, and a task in one nursery."""

    nursery: trio.Nursery
    app: Application
    connections: Connections
    context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    fake_socket: FakeSocket = field(default_factory=FakeSocket)

    def connect(self, hook: Callable[[], Awaitable[None]] | None = None) -> Client:
        """A new connection. `hook` runs in each send of the server, and may take its time."""
        client, server = memory_stream_pair()
        server.socket = self.fake_socket  # type: ignore[attr-defined] # as a SocketStream has
        if hook is not None:
            pump = server.send_stream.send_all_hook
            assert pump is not None

            async def pump_after_hook() -> None:
                await hook()
                await pump()

            server.send_stream.send_all_hook = pump_after_hook
        self.nursery.start_soon(self._run, server)
        return Client(client)

    async def _run(self, stream: Any) -> None:
        config = make_config(self.connections.settings)
        try:
            await Connection(self.connections, ASGIWrapper(self.app), config, self.context, {}, stream)
        finally:
            await trio.aclose_forcefully(stream)


@dataclass
class Witness:
    """What the handlers of the test application did."""

    waiting: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    ended: list[str] = field(default_factory=list)


def make_app(witness: Witness) -> QuartTrio:
    """A small application with one handler for each thing that a connection has to cope with."""
    app = QuartTrio("test")
    app.asgi_http_class = Exchange
    app.config["RESPONSE_TIMEOUT"] = 1

    @app.route("/", methods=["GET", "POST"])
    async def index() -> str:
        return f"{request.method} {request.host} {request.remote_addr}"

    @app.post("/echo")
    async def echo() -> bytes:
        data = await request.get_data()
        assert isinstance(data, bytes)
        return data

    @app.get("/empty")
    async def empty() -> tuple[str, int]:
        return "", 204

    @app.get("/unchanged")
    async def unchanged() -> tuple[str, int]:
        return "", 304

    @app.get("/large")
    async def large() -> bytes:
        return bytes(int(request.args["bytes"]))

    async def wait() -> None:
        witness.waiting.set()
        try:
            await witness.go_on.wait()
        except trio.Cancelled:
            witness.cancelled.set()
            raise
        witness.ended.append("wait")

    @app.get("/wait")
    async def watched() -> str:
        async with cancelled_by_disconnect(request):
            await wait()
        return "waited"

    @app.get("/wait-unwatched")
    async def unwatched() -> str:
        await wait()
        return "waited"

    @app.get("/refusing-wait")
    async def refusing() -> str:
        with contextlib.suppress(LookupError):
            async with cancelled_by_disconnect(request):
                raise LookupError
        return "refused"

    @app.get("/stream")
    async def stream() -> Response:
        async def events() -> AsyncIterator[bytes]:
            try:
                for number in range(3):
                    await trio.sleep(10)
                    yield f"data: {number}\n\n".encode()
            finally:
                witness.ended.append("stream")

        return Response(events(), content_type="text/event-stream")

    return app


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def settings() -> Settings:
    return Settings(bind="127.0.0.1:0", request_bytes_max=64 * KIB, payload_bytes_max=KIB)


@pytest.fixture
def clock() -> MockClock:
    """For tests about time, in which none may pass but where all wait for it. The others do with the real clock."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
def world(nursery: trio.Nursery, witness: Witness, settings: Settings) -> World:
    return World(nursery, make_app(witness), Connections(settings))


@contextlib.contextmanager
def takes(clock: MockClock, seconds: float) -> Iterator[None]:
    """The block lasts exactly so long in virtual time."""
    began = clock.current_time()
    yield
    assert clock.current_time() - began == pytest.approx(seconds, abs=0.001)


# Requests and answers.


async def test_a_request_is_answered_and_the_connection_stays_open(world: World) -> None:
    client = world.connect()
    for _ in range(3):
        answer = await client.ask(GET)
        assert (answer.status, answer.body) == (200, b"GET test 192.0.2.7")
        assert "date" in answer.headers
        assert "server" not in answer.headers
        assert "connection" not in answer.headers
    assert len(world.connections) == 1


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    client = world.connect()
    await client.send(GET.replace(b"test", b"first") + GET.replace(b"test", b"second") + GET[:10])
    assert b"first" in (await client.answer()).body
    assert b"second" in (await client.answer()).body
    await client.send(GET[10:])
    assert (await client.answer()).status == 200


def answering(*fields: tuple[bytes, bytes], body: bytes = b"pong") -> Application:
    """An application that gives the same whole answer to everybody, with a length that may be wrong."""

    async def application(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": list(fields)})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return application


LENGTH = (b"content-length", b"4")


async def test_whole_answers_go_out_without_h11_and_what_was_sent_ahead_is_kept(world: World) -> None:
    world.app = answering(LENGTH)
    client = world.connect()
    ask = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc"
    await client.send(GET + ask + GET + GET[:10])
    for _ in range(3):
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"pong", "4")
        assert "date" in answer.headers
    await client.send(GET[10:])
    assert (await client.answer()).body == b"pong"
    await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.closed()


async def test_a_whole_answer_to_head_has_no_body_and_the_next_one_has(world: World) -> None:
    world.app = answering(LENGTH)
    client = world.connect()
    await client.send(GET.replace(b"GET", b"HEAD", 1) + GET)
    answer = await client.answer(bodiless=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "4")
    assert (await client.answer()).body == b"pong"


@pytest.mark.parametrize(
    "application",
    [
        answering((b"content-length", b"5")),
        answering((b"content-length", b"3")),
        answering(LENGTH, (b"x", b"a\r\nb: c")),
    ],
    ids=["too short", "too long", "two fields in one"],
)
async def test_an_answer_that_would_break_the_connection_is_a_bug(world: World, application: Application) -> None:
    world.app = application
    client = world.connect()
    await client.send(GET)
    received = b""
    while data := await client.stream.receive_some():
        received += data
    assert b"b: c" not in received
    assert not received.startswith(b"HTTP/1.1 200") or received.endswith((b"pong", b"\r\n\r\n"))
    assert len(received.split(b"HTTP/1.1 ")) <= 2


async def test_head_and_body_leave_in_one_send(world: World) -> None:
    sends: list[float] = []

    async def count() -> None:
        sends.append(trio.current_time())

    client = world.connect(count)
    await client.ask(GET)
    await client.ask(GET)
    assert len(sends) == 2


@pytest.mark.parametrize(
    ("line", "status", "length"),
    [("HEAD /", 200, "19"), ("GET /empty", 204, None), ("GET /unchanged", 304, None)],
)
async def test_an_answer_without_a_body_has_none(world: World, line: str, status: int, length: str | None) -> None:
    client = world.connect()
    await client.send(f"{line} HTTP/1.1\r\nHost: test\r\n\r\n".encode() + GET)
    answer = await client.answer(bodiless=True)
    assert (answer.status, answer.headers.get("content-length")) == (status, length)
    assert (await client.answer()).body == b"GET test 192.0.2.7"


async def test_http_1_0_is_answered_and_closed(world: World) -> None:
    client = world.connect()
    answer = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.closed()


async def test_connection_close_is_honoured_at_once(world: World, clock: MockClock) -> None:
    """Hypercorn's own close is cancelled by Quart-Trio, in whose last send it happens."""
    client = world.connect()
    with takes(clock, 0):
        answer = await client.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer.headers["connection"] == "close"
        assert await client.closed()
    assert len(world.connections) == 0


async def test_the_client_is_known_to_the_application_also_behind_a_unix_socket(world: World) -> None:
    world.fake_socket = FakeSocket(socket.AF_UNIX, "")
    assert (await world.connect().ask(GET)).body == b"GET test <local>"


async def test_a_url_as_target_names_the_host_itself(world: World) -> None:
    client = world.connect()
    answer = await client.ask(b"GET http://real/?x=1 HTTP/1.1\r\nHost: other\r\n\r\n")
    assert answer.body == b"GET real 192.0.2.7"


async def test_a_body_is_read_before_the_handler_and_may_be_chunked(world: World) -> None:
    client = world.connect()
    head = b"POST /e%63ho HTTP/1.1\r\nHost: test\r\n"
    assert (await client.ask(head + b"Content-Length: 5\r\n\r\nhello")).body == b"hello"
    await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")
    await wait_all_tasks_blocked()
    assert (await client.ask(b"2\r\nlo\r\n0\r\n\r\n")).body == b"hello"
    assert (await client.ask(head + b"Content-Length: 0\r\n\r\n")).body == b""


async def test_a_client_that_asks_is_told_to_send_its_body(world: World) -> None:
    client = world.connect()
    head = b"POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    for _ in range(2):
        await client.send(head)
        assert (await client.head())[0] == 100
        assert (await client.ask(b"hello")).body == b"hello"


# Streams.


async def test_a_stream_is_sent_chunk_by_chunk_and_outlives_the_response_timeout(
    world: World, clock: MockClock, witness: Witness
) -> None:
    client = world.connect()
    await client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
    with takes(clock, 0):
        status, headers = await client.head()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    for number in range(3):
        with takes(clock, 10):
            assert await client.chunk() == f"data: {number}\n\n".encode()
    with takes(clock, 0):
        assert await client.chunk() == b""
    assert witness.ended == ["stream"]
    assert (await client.ask(GET)).status == 200


async def test_a_request_that_comes_with_the_end_of_a_stream_is_served(world: World, clock: MockClock) -> None:
    client = world.connect(partial(trio.sleep, 1))
    await client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
    with takes(clock, 36):
        await client.head()
        for _ in range(3):
            await client.chunk()
        await trio.sleep(0.5)
        await client.send(GET)
        assert await client.chunk() == b""
        assert (await client.answer()).status == 200


async def test_a_stream_ends_when_its_client_leaves(world: World, clock: MockClock, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
    await client.head()
    await client.stream.aclose()
    with takes(clock, 0):
        await wait_all_tasks_blocked()
    assert witness.ended == ["stream"]
    assert len(world.connections) == 0


# Time.


async def test_an_idle_connection_is_closed_after_its_time(world: World, clock: MockClock) -> None:
    """Hypercorn's own timer is cancelled by Quart-Trio while it is being started, so it never runs out."""
    client = world.connect()
    await client.ask(GET)
    with takes(clock, world.connections.settings.idle_seconds):
        assert await client.closed()
    assert len(world.connections) == 0


async def test_a_client_that_sends_nothing_is_closed_soon(world: World, clock: MockClock) -> None:
    client = world.connect()
    with takes(clock, 5):
        assert await client.closed()


@pytest.mark.parametrize("earlier_requests", [0, 1])
async def test_slow_headers_are_cut(world: World, clock: MockClock, earlier_requests: int) -> None:
    client = world.connect()
    for _ in range(earlier_requests):
        await client.ask(GET)
        await trio.sleep(10)
    with takes(clock, 5):
        for octet in b"GET ":
            await client.send(bytes([octet]))
            await trio.sleep(1)
        answer = await client.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_timeout", "close")
    assert await client.closed()


async def test_a_body_that_stalls_is_cut(world: World, clock: MockClock) -> None:
    client = world.connect()
    with takes(clock, 10):
        answer = await client.ask(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhell")
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert await client.closed()


async def test_a_body_may_take_longer_the_larger_it_is(world: World, clock: MockClock) -> None:
    client = world.connect()
    await client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 60000\r\n\r\n")
    with takes(clock, 12):
        for _ in range(3):
            await trio.sleep(4)
            await client.send(bytes(20_000))
    assert (await client.answer()).body == bytes(60_000)


async def test_a_reader_that_reads_nothing_is_dropped(
    world: World, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Hypercorn shields its sends from every cancellation and gives them no deadline."""
    client = world.connect(trio.sleep_forever)
    await client.send(GET)
    with takes(clock, 3.1):
        await trio.sleep(2.9)
        assert len(world.connections) == 1
        await trio.sleep(0.2)
        assert len(world.connections) == 0
    assert not caplog.records


async def test_a_reader_that_reads_slowly_is_served(world: World, clock: MockClock) -> None:
    client = world.connect(partial(trio.sleep, 2))
    with takes(clock, 8):
        assert len((await client.ask(b"GET /large?bytes=250000 HTTP/1.1\r\nHost: test\r\n\r\n")).body) == 250_000


async def test_nothing_follows_a_send_that_the_application_has_cancelled(
    world: World, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sends: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(1):
            await send({"type": "http.response.body", "body": b"pong", "more_body": True})
        await send({"type": "http.response.body", "body": b"pong", "more_body": False})

    async def take_two_seconds() -> None:
        sends.append(clock.current_time())
        await trio.sleep(2)

    world.app = app
    await world.connect(take_two_seconds).send(GET)
    await trio.sleep(10)
    assert [moment - sends[0] for moment in sends] == pytest.approx([0, 2])
    assert len(world.connections) == 0
    assert not caplog.records


# Refusals.


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("malformed", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x1b[2J\r\n\r\n"),
        ("malformed", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n"),
        ("malformed", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"G\xcbT / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("malformed", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
        ("malformed", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("malformed", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
        (
            "malformed",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("malformed", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("malformed", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n"),
        ("malformed", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
        ("not_implemented", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        ("headers_too_large", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 16 * KIB + b"\r\n\r\n"),
        ("headers_too_large", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X:\r\n" * 4 * KIB + b"\r\n"),
        ("headers_too_large", b"GET /" + b"x" * 16 * KIB + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("too_large", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n"),
        ("too_large", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\nExpect: 100-continue\r\n\r\n"),
        (
            "too_large",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n" + bytes(65537),
        ),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_and_the_connection_closed(
    world: World, clock: MockClock, code: str, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = world.connect()
    await client.ask(GET)
    await client.send(data + GET)
    with takes(clock, 0):
        answer = await client.answer()
        assert (answer.status, answer.code, answer.headers["connection"]) == (PROBLEMS[code].status, code, "close")
        assert {"date", "cache-control"} <= answer.headers.keys()
        assert await client.closed()
    assert not caplog.records


async def test_a_head_that_is_too_large_is_refused_before_it_ends(world: World) -> None:
    client = world.connect()
    await client.send(GET[:-2])
    answer = await client.ask(b"X: " + b"x" * 17 * KIB)
    assert (answer.status, answer.code) == (431, "headers_too_large")


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_an_upgrade_is_not_taken_up(world: World, upgrade: str) -> None:
    """Hypercorn always accepts both, and what follows a WebSocket's handshake can end its server."""
    client = world.connect()
    fields = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: \r\n"
    ask = f"GET / HTTP/1.1\r\nHost: test\r\n{fields}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n".encode()
    assert (await client.ask(ask)).body == b"GET test 192.0.2.7"
    answer = await client.ask(b"\x82\x00\r\n\r\n")
    assert (answer.status, answer.code) == (400, "malformed")


async def test_a_refused_client_may_finish_sending_and_reads_its_answer(world: World, clock: MockClock) -> None:
    client = world.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(5):
        await client.send(bytes(100_000))
    assert (await client.answer()).status == 413
    assert await client.closed()
    assert len(world.connections) == 1
    with takes(clock, 2):
        await trio.sleep(2)
        await wait_all_tasks_blocked()
    assert len(world.connections) == 0


async def test_a_refusal_after_a_head_request_has_a_body(world: World) -> None:
    client = world.connect()
    await client.send(b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n")
    await client.answer(bodiless=True)
    assert (await client.ask(b"\r\n\r\n")).code == "malformed"


async def test_a_refusal_of_a_head_request_has_no_body(world: World) -> None:
    client = world.connect()
    await client.send(b"HEAD / HTTP/1.1\r\nHost: test\r\nX: \x01\r\n\r\n")
    assert (await client.answer(bodiless=True)).status == 400
    assert await client.closed()


# The limit of connections.


async def test_at_the_limit_the_longest_idle_connection_makes_room(world: World, clock: MockClock) -> None:
    world.connections.settings = Settings(connections_max=2)
    first, second = world.connect(), world.connect()
    await first.ask(GET)
    await second.ask(GET)
    await first.ask(GET)
    third = world.connect()
    with takes(clock, 0):
        assert await second.closed()
        assert (await third.ask(GET)).status == 200
        assert (await first.ask(GET)).status == 200
    assert len(world.connections) == 2


async def test_at_the_limit_each_newcomer_gets_a_place_of_its_own(world: World, clock: MockClock) -> None:
    world.connections.settings = Settings(connections_max=2)
    old = [world.connect(), world.connect()]
    for client in old:
        await client.ask(GET)
    new = [world.connect(), world.connect()]
    with takes(clock, 0):
        await wait_all_tasks_blocked()
        assert len(world.connections) == 2
        for client in old:
            assert await client.closed()
        for client in new:
            assert (await client.ask(GET)).status == 200


async def test_at_the_limit_with_none_idle_a_connection_is_refused(
    world: World, clock: MockClock, witness: Witness
) -> None:
    world.connections.settings = Settings(connections_max=2)
    waiting, fresh = world.connect(), world.connect()
    await waiting.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
    await fresh.send(b"GET")
    await witness.waiting.wait()
    third = world.connect()
    with takes(clock, 0):
        answer = await third.ask(GET)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_connections", "1")
        assert await third.closed()
    assert (await fresh.ask(GET[3:])).status == 200


async def test_refusals_have_a_limit_too(world: World, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_MAX", 1)
    world.connections.settings = Settings(connections_max=1)
    waiting = world.connect()
    await waiting.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
    await wait_all_tasks_blocked()
    told = world.connect()
    assert (await told.answer()).status == 503
    with takes(clock, 0):
        assert await world.connect().closed()
    await trio.sleep(module.LINGER_SECONDS)
    assert (await world.connect().answer()).status == 503


async def test_connections_are_counted_until_they_are_gone(world: World) -> None:
    clients = [world.connect() for _ in range(5)]
    for client in clients:
        await client.ask(GET)
    assert len(world.connections) == 5
    for client in clients:
        await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert len(world.connections) == 0


async def test_many_requests_leave_no_task_behind(world: World) -> None:
    client = world.connect()
    await client.ask(GET)
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(100):
        await client.ask(GET)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks - 1


# Clients that leave.


async def test_a_half_closed_client_is_answered(world: World) -> None:
    client = world.connect()
    await client.send(GET)
    await client.stream.send_eof()
    assert (await client.answer()).status == 200
    assert await client.closed()


@pytest.mark.parametrize("leave", ["send_eof", "aclose"])
async def test_a_waiting_handler_is_cancelled_when_its_client_leaves(
    world: World, witness: Witness, leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-close counts: nobody can tell it from a client that is gone."""
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
    await witness.waiting.wait()
    await getattr(client.stream, leave)()
    await witness.cancelled.wait()
    if leave == "send_eof":
        assert await client.closed()
    await wait_all_tasks_blocked()
    assert len(world.connections) == 0
    assert not caplog.records


async def test_a_client_that_had_left_before_the_wait_began_is_noticed(world: World, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
    await client.stream.aclose()
    await witness.cancelled.wait()


async def test_a_waiting_client_that_stays_is_answered(world: World, witness: Witness) -> None:
    client = world.connect()
    for _ in range(2):
        witness.go_on = trio.Event()
        await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        await wait_all_tasks_blocked()
        witness.go_on.set()
        assert (await client.answer()).body == b"waited"


async def test_an_unwatched_handler_runs_to_its_end_without_its_client(world: World, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /wait-unwatched HTTP/1.1\r\nHost: test\r\n\r\n")
    await witness.waiting.wait()
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    witness.go_on.set()
    await wait_all_tasks_blocked()
    assert witness.ended == ["wait"]
    assert len(world.connections) == 0


async def test_a_disconnect_is_seen_behind_some_pipelined_requests(world: World, witness: Witness) -> None:
    """Hypercorn stops reading at the second request."""
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n" + GET)
    await witness.waiting.wait()
    await client.send(GET)
    await client.stream.aclose()
    await witness.cancelled.wait()


async def test_a_disconnect_is_not_seen_behind_very_many(world: World, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n" + GET * 1000)
    await witness.waiting.wait()
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert not witness.cancelled.is_set()
    witness.go_on.set()
    await wait_all_tasks_blocked()
    assert witness.ended == ["wait"]


async def test_pipelined_requests_survive_a_wait(world: World, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n" + GET)
    await witness.waiting.wait()
    await client.send(GET)
    await wait_all_tasks_blocked()
    witness.go_on.set()
    assert [(await client.answer()).body[:6] for _ in range(3)] == [b"waited", b"GET te", b"GET te"]


async def test_the_block_raises_what_it_raised(world: World) -> None:
    assert (await world.connect().ask(b"GET /refusing-wait HTTP/1.1\r\nHost: test\r\n\r\n")).body == b"refused"


async def test_a_connection_reset_before_it_was_looked_at_is_no_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fake_socket = FakeSocket(peer=OSError("not connected"))
    assert await world.connect().closed()
    assert not caplog.records


# Failures.


Failing = Callable[[ASGISendCallable], Awaitable[None]]
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


async def fails(_send: Any) -> None:
    raise ValueError("before the answer")


async def fails_in_a_nursery(_send: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fails, None)


async def fails_after_the_head(send: Any) -> None:
    await send(HEAD)
    raise ValueError


async def returns_without_an_answer(_send: Any) -> None:
    pass


async def says_too_little(send: Any) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"po", "more_body": False})


async def splits_the_answer(send: Any) -> None:
    await send({**HEAD, "headers": [(b"x", b"a\r\nb: c")]})


async def fails_within_the_answer(send: Any) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"po", "more_body": True})
    raise ValueError


async def stops_within_the_answer(send: Any) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"po", "more_body": True})


def only(failing: Failing) -> Application:
    """An application that answers /fail in this way, and other requests properly."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["path"] == "/fail":
            await failing(send)
        else:
            await send(HEAD)
            await send({"type": "http.response.body", "body": b"pong", "more_body": False})

    return app


async def lifespan(receive: Any, send: Any) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (fails, "ValueError"),
        (fails_in_a_nursery, "ValueError"),
        (fails_after_the_head, "ValueError"),
        (returns_without_an_answer, "RuntimeError"),
        (says_too_little, "LocalProtocolError"),
        (splits_the_answer, "LocalProtocolError"),
    ],
)
async def test_an_application_that_fails_is_logged_and_its_client_told(
    world: World, failing: Failing, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.app = only(failing)
    client = world.connect()
    assert (await client.ask(GET)).body == b"pong"
    answer = await client.ask(b"GET /fail HTTP/1.1\r\nHost: test\r\n\r\n" + GET)
    assert (answer.status, answer.code) == (500, "internal")
    assert await client.closed()
    assert [record.name for record in caplog.records] == ["web.connections"]
    assert caplog.records[0].getMessage() == "connection_failed"
    assert vars(caplog.records[0])["facts"] == {"client": "192.0.2.7", "errors": error}
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("failing", "error"), [(fails_within_the_answer, "ValueError"), (stops_within_the_answer, "RuntimeError")]
)
async def test_an_answer_that_has_begun_is_cut_when_the_application_fails(
    world: World, failing: Failing, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.app = only(failing)
    client = world.connect()
    await client.send(b"GET /fail HTTP/1.1\r\nHost: test\r\n\r\n")
    assert (await client.head())[0] == 200
    assert await client.exactly(2) == b"po"
    assert await client.closed()
    assert vars(caplog.records[0])["facts"]["errors"] == error


async def test_a_bug_on_the_way_out_of_a_cancelled_handler_is_not_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_when_cancelled(receive: Any) -> None:
        try:
            await receive()
        finally:
            raise ValueError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scope["extensions"]["web.connections"]["cancel_when_gone"])
            nursery.start_soon(fail_when_cancelled, trio.sleep_forever)

    world.app = app
    client = world.connect()
    await client.send(GET)
    await wait_all_tasks_blocked()
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert vars(caplog.records[0])["facts"]["errors"] == "ValueError"


async def test_an_application_may_return_when_it_hears_of_the_disconnect(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        heard.extend([(await receive())["type"] for _ in range(2)])

    world.app = app
    client = world.connect()
    await client.send(GET)
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert heard == ["http.request", "http.disconnect"]
    assert not caplog.records


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_passes_through(settings: Settings, error: type[BaseException]) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise error

    client, server = memory_stream_pair()
    server.socket = FakeSocket()  # type: ignore[attr-defined] # as a SocketStream has
    stream: Any = server
    await client.send_all(GET)
    with pytest.raises(error):
        await Connection(
            Connections(settings), ASGIWrapper(app), make_config(settings), WorkerContext(None), {}, stream
        )


# Drain.


async def test_a_drain_closes_idle_connections_at_once(world: World, clock: MockClock) -> None:
    fresh, idle, slow = world.connect(), world.connect(), world.connect()
    await idle.ask(GET)
    await slow.send(GET[:10])
    await wait_all_tasks_blocked()
    with takes(clock, 0):
        await world.context.terminated.set()
        for client in (fresh, idle, slow, world.connect()):
            assert await client.closed()
    assert len(world.connections) == 0


async def test_a_drain_lets_a_busy_connection_answer_and_then_closes_it(world: World, witness: Witness) -> None:
    client = world.connect()
    await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
    await witness.waiting.wait()
    await world.context.terminated.set()
    witness.go_on.set()
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.closed()


async def test_a_drain_ends_a_connection_after_the_stream_it_is_sending(world: World, clock: MockClock) -> None:
    client = world.connect()
    await client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n" + GET)
    await client.head()
    await world.context.terminated.set()
    with takes(clock, 30):
        while await client.chunk():
            pass
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.closed()


# With sockets and Hypercorn's own server around: what the kernel has a say in.


@dataclass
class Server:
    connections: Connections
    port: int
    shutdown: trio.Event
    ended: trio.Event
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        self.clients.append(Client(await trio.open_tcp_stream("127.0.0.1", self.port)))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def serving(app: Any, settings: Settings, config: Config | None = None) -> AsyncIterator[Server]:
    """Hypercorn serves the application with these connections, until `shutdown` is set or the block ends."""
    shutdown, ended = trio.Event(), trio.Event()

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(app, config or make_config(settings), shutdown_trigger=shutdown.wait, task_status=task_status)
        ended.set()

    with trio.fail_after(20), installed(settings) as connections:
        async with trio.open_nursery() as nursery:
            binds = await nursery.start(run)
            port = binds[0].rpartition(":")[2]
            server = Server(connections, int(port) if port.isdigit() else 0, shutdown, ended)
            try:
                yield server
            finally:
                shutdown.set()
                for client in server.clients:
                    await trio.aclose_forcefully(client.stream)


async def test_the_server_outlives_a_connection_that_fails(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """In Hypercorn one exception of one connection ends the whole server."""
    async with serving(only(fails_within_the_answer), settings) as server:
        bystander = await server.connect()
        await bystander.ask(GET)
        client = await server.connect()
        await client.send(b"GET /fail HTTP/1.1\r\nHost: test\r\n\r\n")
        await client.until(b"po")
        assert await client.closed()
        assert (await bystander.ask(GET)).body == b"pong"
        assert len(server.connections) == 1
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["web.connections"]


@pytest.mark.parametrize("how", ["reset", "half-close"])
async def test_a_departure_that_the_kernel_reports_cancels_a_waiting_handler(
    settings: Settings, witness: Witness, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app(witness), settings) as server:
        client = await server.connect()
        await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        await witness.waiting.wait()
        assert isinstance(client.stream, trio.SocketStream)
        if how == "reset":
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.stream.aclose()
        else:
            await client.stream.send_eof()
            assert await client.closed()
        await witness.cancelled.wait()
    assert not caplog.records


async def test_an_idle_client_does_not_delay_the_exit(settings: Settings, witness: Witness) -> None:
    """In Hypercorn it does, by the whole graceful timeout."""
    async with serving(make_app(witness), settings) as server:
        fresh, idle = await server.connect(), await server.connect()
        await idle.ask(GET)
        await wait_all_tasks_blocked()
        server.shutdown.set()
        with trio.fail_after(GRACEFUL_SECONDS / 2):
            await server.ended.wait()
        assert await idle.closed()
        assert await fresh.closed()


async def test_a_request_that_is_there_when_the_drain_begins_is_served(settings: Settings, witness: Witness) -> None:
    async with serving(make_app(witness), settings) as server:
        client = await server.connect()
        await client.ask(GET)
        await wait_all_tasks_blocked()
        assert isinstance(client.stream, trio.SocketStream)
        os.write(client.stream.socket.fileno(), GET)  # without a checkpoint, so the server has not looked yet
        await server.connections.set()
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed()


async def test_a_dead_reader_does_not_delay_the_exit(
    settings: Settings, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Hypercorn it prevents the exit for ever, and pins its answer in memory."""
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    async with serving(make_app(witness), settings) as server:
        client = await server.connect()
        await client.send(b"GET /large?bytes=50000000 HTTP/1.1\r\nHost: test\r\n\r\n")
        await client.head()
        server.shutdown.set()
        with trio.fail_after(GRACEFUL_SECONDS / 2):
            await server.ended.wait()


async def test_a_handler_that_goes_on_waiting_is_cancelled_when_the_graceful_time_is_over(
    settings: Settings, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(settings)
    config.graceful_timeout = 0.1
    async with serving(make_app(witness), settings, config) as server:
        client = await server.connect()
        await client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        await witness.waiting.wait()
        server.shutdown.set()
        await server.ended.wait()
        assert await client.closed()
    assert witness.cancelled.is_set()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_refusal_reaches_a_client_that_is_still_sending(settings: Settings, witness: Witness) -> None:
    """Without the pause before the close the kernel resets the connection, and the answer is lost."""
    async with serving(make_app(witness), settings) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4000000\r\n\r\n" + bytes(4_000_000))
        assert (await client.answer()).status == 413
        assert await client.closed()


async def test_hostile_frames_at_the_end_leave_the_exit_orderly(settings: Settings, witness: Witness) -> None:
    """Hypercorn's HTTP/2 skips the application's own shutdown when frames are open at the end."""
    app = make_app(witness)
    app.after_serving(lambda: witness.ended.append("after_serving"))
    async with serving(app, settings) as server:
        for _ in range(20):
            client = await server.connect()
            await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 100)
        server.shutdown.set()
        await server.ended.wait()
    assert witness.ended == ["after_serving"]


async def test_a_unix_socket_is_served(tmp_path: Path, settings: Settings, witness: Witness) -> None:
    path = tmp_path / "queue"
    config = make_config(settings)
    config.bind = [f"unix:{path}"]
    async with serving(make_app(witness), settings, config):
        client = Client(await trio.open_unix_socket(path))
        assert (await client.ask(GET)).body == b"GET test <local>"
        await client.stream.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT exists on Linux only")
async def test_the_kernel_gives_up_on_a_peer_that_acknowledges_nothing(settings: Settings, witness: Witness) -> None:
    async with serving(make_app(witness), settings) as server:
        client = await server.connect()
        await client.ask(GET)
        (connection,) = server.connections.admitted
        option = connection.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert option == module.UNACKNOWLEDGED_SECONDS * 1000


# The seam and the configuration.


def test_the_seam_is_there_and_is_restored(settings: Settings) -> None:
    stock = vars(hypercorn_run)["TCPServer"]
    with installed(settings):
        assert vars(hypercorn_run)["TCPServer"] is not stock
    assert vars(hypercorn_run)["TCPServer"] is stock


def test_the_configuration_leaves_the_exit_its_five_seconds(settings: Settings) -> None:
    config = make_config(settings)
    assert config.graceful_timeout + config.shutdown_timeout < 5
    assert (config.bind, config.backlog, config.accesslog) == ([settings.bind], 1024, None)
