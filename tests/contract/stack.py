"""The whole server in one process, without a kernel: connections are pairs of streams in memory, time is virtual.

Application, engine, connections and Hypercorn's seam are those of `python -m web`; only the listening socket is not
there. What web/README.md promises of every answer is checked of every answer that a client reads here, and what it
promises of the log is checked when the server ends.
"""

import io
import json
import logging
import re
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio import run as seam
from hypercorn.trio.worker_context import WorkerContext
from trio.testing import memory_stream_pair

from queue_actor.commands import ReadJob, ReadQueue
from queue_actor.engine import Engine
from queue_actor.errors import QueueError
from queue_actor.settings import Settings
from tests import log_events
from tests.contract.described import described
from tests.fakes import SECRET, FakeClock, FakeStore
from tests.opening import inline, open_engine
from web.app import App
from web.auth import Access
from web.connections import Connections
from web.docs import routes_of
from web.logs import JsonFormatter
from web.metrics import Metrics
from web.serving import installed, make_config

HOST = "127.0.0.1:8080"

PROMISED: dict[str, tuple[int, str, str | None]] = {
    "malformed": (400, "never", None),
    "invalid": (400, "never", None),
    "unauthorized": (401, "never", None),
    "forbidden": (403, "never", None),
    "rate_limited": (429, "later", "1"),
    "in_progress_limit": (429, "later", "1"),
    "foreign_host": (403, "never", None),
    "foreign_origin": (403, "never", None),
    "other_consumer": (403, "drop", None),
    "not_found": (404, "never", None),
    "empty": (404, "later", None),
    "unknown_job": (404, "never", None),
    "forgotten": (404, "drop", None),
    "method_not_allowed": (405, "never", None),
    "request_timeout": (408, "repeat", None),
    "lease_lost": (409, "drop", None),
    "not_in_progress": (409, "drop", None),
    "too_large": (413, "never", None),
    "queue_full": (429, "later", "1"),
    "memory_full": (429, "later", "1"),
    "too_many_queues": (429, "later", "60"),
    "headers_too_large": (431, "never", None),
    "internal": (500, "repeat", None),
    "not_implemented": (501, "never", None),
    "busy": (503, "later", "1"),
    "too_many_waiters": (503, "later", "1"),
    "too_many_readers": (503, "later", "10"),
    "too_many_connections": (503, "later", "1"),
    "draining": (503, "later", "5"),
    "outcome_unknown": (503, "repeat", "1"),
}
"""Each code with its status, what to do about it, and when to come back: web/README.md once more, by hand."""

CONTENT_TYPES = {
    "application/json",
    "application/vnd.sqlite3",
    "text/plain",
    "application/openmetrics-text",
    "text/html",
    "text/css",
    "text/javascript",
    "application/x-ndjson",
    "text/event-stream",
}

Headers = Iterable[tuple[str, str | bytes]]


class Answer(NamedTuple):
    """An answer as its client reads it; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which has to be JSON by the letter."""
        return json.loads(self.body, parse_constant=_refuse_constant)

    @property
    def problem(self) -> tuple[int, str, str | None]:
        """Status, code and field of an error; its shape has been checked when it was read."""
        document = self.json
        return self.status, document["code"], document.get("field")

    @property
    def token(self) -> str:
        """The token of the lease that it tells of."""
        return self.headers["queue-lease-token"]


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@dataclass
class FakeSocket:
    """What a connection asks of a socket."""

    family: int = socket.AF_INET

    def getpeername(self) -> Any:
        return ("127.0.0.1", 4242) if self.family == socket.AF_INET else ""

    def getsockname(self) -> Any:
        return ("127.0.0.1", 8080) if self.family == socket.AF_INET else "/run/queue"


@dataclass
class Client:
    """One connection. What it reads is parsed by h11, whose strictness is a check of its own."""

    server: "Server"
    stream: trio.abc.HalfCloseableStream
    received: bytes = b""

    async def ask(self, method: str, target: str, body: bytes = b"", headers: Headers = ()) -> Answer:
        """Sends a whole request and reads its answer."""
        await self.send(build(method, target, body, headers))
        answer = await self.read(method)
        self.server.described.check(method, target, answer)
        return answer

    async def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        await self.stream.send_all(data)

    async def read(self, method: str = "GET") -> Answer:
        """The next answer; the method says whether it can have a body."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", HOST)]))
        http.send(h11.EndOfMessage())
        if self.received:
            http.receive_data(self.received)
        head: h11.Response | None = None
        body = b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.InformationalResponse), f"closed without an answer: {event!r}"
        assert head is not None
        self.received = bytes(http.trailing_data[0])
        names = [name.decode() for name, _ in head.headers]
        assert len(set(names)) == len(names), f"a header twice: {names}"
        headers = {name.decode(): value.decode() for name, value in head.headers}
        answer = Answer(head.status_code, headers, body)
        self.server.check(answer, method)
        return answer

    async def closed(self) -> bool:
        """Waits for the end of the connection, which has to come with nothing before it."""
        return not self.received and not await self.stream.receive_some()

    async def leave(self) -> None:
        """Closes the connection."""
        await self.stream.aclose()


def build(method: str, target: str, body: bytes = b"", headers: Headers = ()) -> bytes:
    """A request. Host and Content-Length are added, unless they, or Transfer-Encoding, are among the headers."""
    headers = list(headers)
    given = {name.lower() for name, _ in headers}
    if "host" not in given:
        headers.insert(0, ("Host", HOST))
    if not given & {"content-length", "transfer-encoding"} and (body or method not in {"GET", "HEAD"}):
        headers.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1".encode("latin1")]
    lines += [
        name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin1"))
        for name, value in headers
    ]
    return b"\r\n".join([*lines, b"", body])


@dataclass
class Server:
    """A server that runs."""

    app: App
    engine: Engine
    connections: Connections
    nursery: trio.Nursery
    stream: io.StringIO  # that the log is written to
    socket: FakeSocket = field(default_factory=FakeSocket)
    answers: int = 0
    tokens: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._config = make_config(self.connections.settings)
        self._context = WorkerContext(None)
        self.described = described(tuple(routes_of(self.app.url_map)), self.connections.settings)

    def connect(self) -> Client:
        """A new connection."""
        ours, theirs = memory_stream_pair()
        self.accept(theirs)
        return Client(self, ours)

    def accept(self, stream: trio.abc.Stream) -> None:
        """Serve a connection whose other end is somebody's."""
        stream.socket = self.socket  # type: ignore[attr-defined] # as a SocketStream has
        self.nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        # As trio.serve_listeners does with each connection.
        async with stream:
            server = vars(seam)["TCPServer"]  # what Hypercorn calls
            await server(ASGIWrapper(self.app), self._config, self._context, {}, stream)

    async def ask(self, method: str, target: str, body: bytes = b"", headers: Headers = ()) -> Answer:
        """Asks over a connection of its own."""
        answer = await self.ask_raw(build(method, target, body, headers))
        self.described.check(method, target, answer)
        return answer

    async def ask_raw(self, data: bytes) -> Answer:
        """Sends bytes over a connection of their own and reads the answer."""
        client = self.connect()
        await client.send(data)
        answer = await client.read(data.partition(b" ")[0].decode("latin1"))
        await client.leave()
        return answer

    async def enqueue(self, body: bytes = b'{"Type":"a"}') -> int:
        """The id of a new job."""
        answer = await self.ask("POST", "/jobs/enqueue", body)
        assert answer.status == 200, answer
        return int(answer.json["ID"])

    async def dequeue(self, headers: Headers = ()) -> Answer:
        """The answer that leases the first job."""
        answer = await self.ask("POST", "/jobs/dequeue", headers=headers)
        assert answer.status == 200, answer
        return answer

    async def drain(self) -> None:
        """What a signal does."""
        self.app.draining = True
        self.engine.drain()
        await self.connections.set()

    async def state(self, ids: Iterable[int]) -> list[object]:
        """Everything the engine tells of the queue and of some jobs."""
        figures = await self.engine.execute(ReadQueue("default"))
        seen: list[object] = [figures.counts, self.engine.statistics()]
        for id_ in ids:
            try:
                job = await self.engine.execute(ReadJob("default", id_))
                seen.append(job)
            except QueueError as refusal:
                seen.append(refusal.code)
        return seen

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log so far."""
        return [json.loads(line, parse_constant=_refuse_constant) for line in self.stream.getvalue().splitlines()]

    @property
    def request_lines(self) -> list[dict[str, Any]]:
        """Those that tell of an answer."""
        return [line for line in self.log if line["event"] in {"request", "refused"} and line["status"] is not None]

    def check(self, answer: Answer, method: str) -> None:
        """What every answer has to be."""
        self.answers += 1
        headers = answer.headers
        assert headers["queue-instance"] == self.app.instance
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", headers["x-request-id"])
        assert headers["x-content-type-options"] == "nosniff"
        if method == "HEAD" or answer.status in {204, 304}:
            assert answer.body == b""
        elif "transfer-encoding" not in headers:  # a stream has no length, and says so
            assert headers["content-length"] == str(len(answer.body))
        if answer.status >= 400:
            leaked = [token for token in self.tokens if token.encode() in answer.body]
            assert not leaked, answer
            assert headers["content-type"] == "application/problem+json"
            assert headers["cache-control"] == "no-store"
            if answer.body:
                check_problem(answer)
        elif answer.status == 200:
            assert headers["content-type"].partition(";")[0] in CONTENT_TYPES
            if answer.body and headers["content-type"] == "application/json":
                _ = answer.json
        if "queue-lease-token" in headers:
            assert headers["cache-control"] == "no-store"
            assert answer.token.encode() not in answer.body
            self.tokens.add(answer.token)

    def check_log(self) -> None:
        """What the log has to be."""
        text = self.stream.getvalue()
        assert re.fullmatch(r"[\x20-\x7e\n]*", text)
        assert len(self.request_lines) == self.answers
        for line in self.log:
            if line.get("logger", "web").startswith(("web", "queue_actor")):
                unheard_of = line.keys() - log_events.told()[line["event"]].fields
                assert not unheard_of, f"README.md does not tell of {unheard_of} in {line}"
        assert not [token for token in self.tokens if token in text]


def check_problem(answer: Answer) -> None:
    """RFC 9457, and what web/README.md adds to it."""
    document = answer.json
    status, retryable, retry_after = PROMISED[document["code"]]
    assert set(document) - {"field"} == {"type", "title", "status", "code", "detail", "retryable"}
    assert document["type"] == "about:blank"
    assert document["status"] == answer.status == status
    assert document["title"] == HTTPStatus(status).phrase
    assert document["retryable"] == retryable
    if document["code"] == "rate_limited":  # which knows when
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert answer.headers.get("retry-after") == retry_after
    assert isinstance(document["detail"], str)
    assert document["detail"]
    assert isinstance(document.get("field", ""), str)


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    clock: FakeClock | None = None,
    store: FakeStore | None = None,
    access: Access | None = None,
    connect: Callable[[Path], sqlite3.Connection] | None = None,
) -> AsyncIterator[Server]:
    """A server that runs inside the block. With `connect` its store is what that connects to, as the next one's."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, web = logging.getLogger(), logging.getLogger("web")
    before = web.level
    root.addHandler(handler)
    web.setLevel(logging.INFO)
    try:
        with installed(settings) as connections:
            parts: dict[str, Any] = {"store": store or FakeStore(), "secret": SECRET, "connect": connect}
            opening = open_engine(settings, clock=clock or FakeClock(), **parts)
            async with opening as engine, trio.open_nursery() as nursery:
                metrics = Metrics(engine, settings, connections, run_in_thread=inline)
                app = App(engine, settings, access, metrics)
                connections.identify = app.identify
                server = Server(app, engine, connections, nursery, stream)
                yield server
                server.check_log()
                nursery.cancel_scope.cancel()
    finally:
        web.setLevel(before)
        root.removeHandler(handler)
