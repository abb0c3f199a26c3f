"""HTTP/1.1 connections in place of Hypercorn's own, and the guard around them.

Hypercorn still listens, runs the application's lifespan and turns a signal into a drain. Each connection it accepts is
served here, by one task that does one thing after the other:

    wait for a request -> read its body -> run the application -> write the answer -> wait for the next request

So nothing runs beside a request, no task is started or cancelled for one, and the order of the code is the order of
events. Rules for editors:

1. Every wait for the client has a deadline: in `_secure`, `_next_request`, `_read_body`, `_receive_chunk`, `_write`
   and `_linger`.
2. A drain, or the limit of connections, cuts short only the wait for a request: that has cost the client nothing.
3. What a connection raises ends that connection alone. It is logged with its traceback, never lost.
4. A `Problem` raised before the answer has begun is the answer, and the last one: what the client sends after it could
   only be guessed at.
5. HTTP/1.1 and 1.0 only. An `Upgrade`, to HTTP/2 or to WebSocket, is not taken up (RFC 9110, section 7.8).

It is one file, longer than others, because what has to be understood is the order of the waits of one connection.
"""

import logging
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from math import inf
from typing import Any

import h11
import trio
from hypercorn import typing as asgi
from hypercorn.config import Config
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.utils import parse_socket_addr

from queue_actor.settings import KIB, Settings
from web.heads import HEAD_BYTES_MAX, PlainRequest, is_stream, keeps_open, read_head, read_plain, write_answer
from web.problems import Problem
from web.tls import Certificate, NoHandshake, shake_hands, take_leave

# From the connect, or from the first byte of a later request, to the end of its headers.
FIRST_REQUEST_SECONDS = 5.0
# Of these, for the handshake of TLS.
HANDSHAKE_SECONDS = 3.0
# For a body, and one more for each BODY_BYTES_PER_SECOND of it that have come: large is no offence, slow is.
BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 10_000
# For a stream that is under way when a drain begins: less than Hypercorn waits, so that its client is told the reason.
DRAINED_STREAM_SECONDS = 2.0
# For each SEND_BYTES of an answer: a client that reads slowly is served, one that reads nothing is dropped.
SEND_SECONDS = 3.0
SEND_BYTES = 64 * KIB
# For a refused client to read its answer, which a close with bytes still unread would take away again (TCP resets).
LINGER_SECONDS = 2.0
# For a vanished peer to acknowledge what the kernel took from us, which no send waits for. Linux only.
UNACKNOWLEDGED_SECONDS = 30

# A hostile body, a chunk for each byte, takes h11 20 ms a read: nobody else is served meanwhile.
READ_BYTES = 16 * KIB
# What h11 quotes in its errors. It may be the line with a token.
QUOTED = re.compile(r":? (?:bytearray\()?b['\"].*", re.DOTALL)
# Connections above the limit that are told so at a time; further ones are closed without a word.
REFUSED_MAX = 100

_CONTINUE = h11.InformationalResponse(status_code=100, headers=[])

# The ASGI extension by which a connection offers the application `cancel_when_gone`.
EXTENSION = "web.connections"

logger = logging.getLogger(__name__)


def _new_http() -> h11.Connection:
    return h11.Connection(h11.SERVER, HEAD_BYTES_MAX)


class HungUp(Exception):
    """There is nobody to answer: the client has left, reads nothing, or is one far too many."""


class Connections(EventWrapper):
    """The open connections of one server, their limit, and the event that ends them.

    `len()` is how many count towards the limit. Hypercorn sets the event: each connection puts it where that is kept.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.admitted: set[Connection] = set()
        self.refused: set[Connection] = set()
        # Those between two requests, the longest idle first.
        self.idle: dict[Connection, None] = {}
        # Since the start.
        self.opened = self.turned_away = self.received_bytes = self.sent_bytes = 0
        self.problems: Counter[str] = Counter()  # codes of answers that were not the application's
        # The headers that every answer has, from the X-Request-Id that was sent; the application's business.
        self.identify: Callable[[str], Mapping[str, str]] = lambda _: {}
        self._second, self._fields = 0, b""
        # With one, every connection begins with a handshake.
        self.certificate: Certificate | None = None

    def __len__(self) -> int:
        return len(self.admitted)

    def admit(self, connection: "Connection") -> None:
        """Counts a connection; at the limit, the one that has been idle longest makes room.

        Raises:
            Problem: `too_many_connections`: none is idle.
            HungUp: So many are being told this already that one more is not.
        """
        self.opened += 1
        if len(self.admitted) >= self.settings.connections_max:
            longest = next(iter(self.idle), None)
            if longest is not None:
                self.forget(longest)
                longest.finish()
            elif len(self.refused) < REFUSED_MAX:
                self.turned_away += 1
                self.refused.add(connection)
                raise Problem("too_many_connections", "The server has as many connections as it may, and none is idle.")
            else:
                self.turned_away += 1
                raise HungUp
        self.admitted.add(connection)

    def forget(self, connection: "Connection") -> None:
        """Counts a connection no longer."""
        self.admitted.discard(connection)
        self.refused.discard(connection)
        self.idle.pop(connection, None)

    def fields_of_server(self, config: Config) -> bytes:
        """The lines of Hypercorn's own fields, `date` above all; made once a second."""
        second = int(time.time())
        if second != self._second:
            lines = [b"%b: %b\r\n" % pair for pair in config.response_headers("h11")]
            self._second, self._fields = second, b"".join(lines)
        return self._fields

    async def set(self) -> None:
        """Begins the drain: idle connections close, the others and all to come close after one answer."""
        await super().set()
        for connection in chain(self.admitted, self.refused):
            connection.finish()


@dataclass(eq=False)
class Connection:
    """One connection, from its first byte to its last. Hypercorn calls it like the class it replaces, and awaits it."""

    connections: Connections
    app: asgi.AppWrapper
    config: Config
    context: WorkerContext
    state: asgi.LifespanState
    stream: trio.SocketStream

    # What the client says and hears: the same stream, or what is within TLS.
    plain: trio.abc.Stream = field(init=False)
    certificate: Certificate | None = field(init=False)  # for the handshake that is to come
    opened: float = field(default_factory=trio.current_time)
    http: h11.Connection = field(default_factory=_new_http)
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    # The latest wait that `finish` may cut short; if it is over, that has no effect.
    wait: trio.CancelScope = field(default_factory=trio.CancelScope)
    stream_wait: trio.CancelScope = field(default_factory=trio.CancelScope)  # the latest for a piece of a stream
    # The answer under way, or the next, is the last.
    finishing: bool = False
    stream_until: float = inf  # the moment at which a drain cuts a stream
    gone: bool = False
    served: bool = False

    # Of the request under way, and of its answer.
    method: str = ""
    path: str = ""
    request_id: str = ""
    body: bytes | None = None
    streaming: bool = False  # the application reads the body as it comes, and has not read all of it
    head: asgi.HTTPResponseStartEvent | None = None
    bodiless: bool = False
    begun: bool = False
    keeps: bool = False  # it is plain that the client goes on after the answer, and that this may have a body
    answered: bool = False  # wholly, without h11, which knows nothing of it
    untold: bytes = b""  # the request, if h11 knows nothing of that either

    def __post_init__(self) -> None:
        self.context.terminated = self.connections
        self.finishing = self.connections.is_set()
        self.plain = self.stream
        self.certificate = self.connections.certificate

    def __await__(self) -> Generator[Any, None, None]:
        return self.run().__await__()

    async def run(self) -> None:
        """Serves the connection to its end; closing the stream is left to the caller, `trio.serve_listeners`."""
        try:
            with self.life:
                await self._serve()
        except* HungUp:
            pass  # Clients leave when they like.
        except* Exception as errors:  # noqa: BLE001 - the failure of one connection must not end the server
            self._log(errors)
        finally:
            self.connections.forget(self)

    def finish(self) -> None:
        """Closes the connection at once if it waits for a request, else after the answer.

        The deadline passes only after the kernel has been asked once more: a request that is there already is served.
        """
        self.finishing = True
        self.stream_until = trio.current_time() + DRAINED_STREAM_SECONDS
        self.stream_wait.deadline = min(self.stream_wait.deadline, self.stream_until)
        self.wait.deadline = trio.current_time()

    async def _serve(self) -> None:
        try:
            self._look_at_socket()
            self.connections.admit(self)
            await self._secure()
            while (request := await self._next_request()) is not None:
                self.method, self.path = request.method.decode(), request.target[:200].partition(b"?")[0].decode()
                self.request_id = dict(request.headers).get(b"x-request-id", b"").decode("latin1")
                self.keeps = isinstance(request, PlainRequest) or (self.method != "HEAD" and keeps_open(request))
                scheme = "http" if self.plain is self.stream else "https"
                scope = read_head(request, client=self.client, server=self.server, scheme=scheme)
                scope["state"] = asgi.ConnectionState(self.state.copy())
                scope["extensions"][EXTENSION] = {"cancel_when_gone": self._cancel_when_gone}
                stream = self.streaming = is_stream(scope)
                if (
                    isinstance(request, PlainRequest)
                    and not stream
                    and len(request.body) <= self.connections.settings.request_bytes_max
                ):
                    self.body = request.body
                else:
                    self._tell_h11(head_only=True)
                    self.body = None if self.streaming else await self._read_body(request)
                await self._answer(scope)
                if self.answered and self.untold:
                    self.untold = b""
                elif self.answered:  # so a new h11 is told what the client sent ahead
                    ahead, _ = self.http.trailing_data
                    self.http = _new_http()
                    if ahead:
                        self.http.receive_data(ahead)
                elif self.http.our_state is not h11.DONE:
                    if stream or self.http.trailing_data[0]:
                        await self._linger()  # for what was sent ahead, a close would take the answer away, too
                        return  # it has taken its leave
                    break
                else:
                    self.http.start_next_cycle()
                self.method, self.path, self.request_id, self.begun, self.answered = "", "", "", False, False
            if isinstance(self.plain, trio.SSLStream):
                with trio.move_on_after(SEND_SECONDS), suppress(trio.BrokenResourceError):
                    await take_leave(self.plain)
        except Problem as problem:
            await self._refuse(problem)

    def _look_at_socket(self) -> None:
        try:
            self.client = parse_socket_addr(self.stream.socket.family, self.stream.socket.getpeername())
            self.server = parse_socket_addr(self.stream.socket.family, self.stream.socket.getsockname())
            if self.client is not None and sys.platform == "linux" and isinstance(self.stream, trio.SocketStream):
                self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
        except OSError as error:  # It was reset before anybody looked.
            raise HungUp from error

    async def _secure(self) -> None:
        """Puts TLS around the stream, if the server has a certificate; once.

        Raises:
            HungUp: It did not come to that; the log has the reason.
            Problem: `malformed`: the client speaks HTTP without TLS. So it is answered without.
        """
        certificate, self.certificate = self.certificate, None
        if certificate is None:
            return
        reason = f"not complete within {HANDSHAKE_SECONDS:g} seconds"
        with trio.CancelScope(deadline=-inf if self.finishing else self.opened + HANDSHAKE_SECONDS) as self.wait:
            try:
                self.plain = await shake_hands(self.stream, certificate)
            except NoHandshake as error:
                if error.speaks_http:
                    raise Problem("malformed", "This port speaks HTTPS: ask for https:// instead.") from error
                reason = str(error)
            else:
                return
        if not self.finishing:  # then nothing has failed
            facts = {"client": self.client and self.client[0], "reason": reason}
            logger.info("handshake_failed", extra={"facts": facts})
        if not self.wait.cancelled_caught:
            await self._linger()  # it was told why
        raise HungUp

    async def _next_request(self) -> h11.Request | PlainRequest | None:
        """The next request with its headers complete, or None when it is time to close."""
        deadline = self.opened + FIRST_REQUEST_SECONDS
        if self.served:
            deadline = trio.current_time() + self.connections.settings.idle_seconds
            self.connections.idle[self] = None
        event: object = None
        with trio.CancelScope(deadline=-inf if self.finishing else deadline) as self.wait:
            if not self.http.trailing_data[0]:
                data = await self._hear()
                event = read_plain(data)
                if event is not None:
                    self.untold = data
                    self.connections.idle.pop(self, None)
                    self.served = True
                    return event
                self.http.receive_data(data)
            while (event := self._next_event()) is h11.NEED_DATA:
                if self in self.connections.idle and self.http.trailing_data[0] and not self.finishing:
                    del self.connections.idle[self]
                    self.wait.deadline = trio.current_time() + FIRST_REQUEST_SECONDS
                await self._feed()
        self.connections.idle.pop(self, None)
        if isinstance(event, h11.Request):
            self.served = True
            return event
        if self.http.trailing_data[0] and not self.finishing:
            raise Problem("request_timeout", f"The headers were not complete within {FIRST_REQUEST_SECONDS:g} seconds.")
        return None

    async def _read_body(self, request: h11.Request | PlainRequest) -> bytes:
        """The body, whole.

        Raises:
            Problem: `too_large`, `request_timeout`, or `malformed` chunks.
        """
        bytes_max = self.connections.settings.request_bytes_max
        too_large = f"The body is larger than {bytes_max} bytes."
        if any(int(value) > bytes_max for name, value in request.headers if name == b"content-length"):
            raise Problem("too_large", too_large)
        body = bytearray()
        started = trio.current_time()
        while not isinstance(event := self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > bytes_max:
                    raise Problem("too_large", too_large)
                continue
            if self.http.they_are_waiting_for_100_continue:
                await self._write(self.http.send(_CONTINUE))
            with trio.move_on_at(started + BODY_SECONDS + len(body) / BODY_BYTES_PER_SECOND) as wait:
                await self._feed()
            if wait.cancelled_caught:
                raise Problem("request_timeout", "The body came too slowly.")
        return bytes(body)

    async def _answer(self, scope: asgi.HTTPScope) -> None:
        """Runs the application.

        Raises:
            Problem: `internal`, if it failed before its answer had begun.
        """
        try:
            await self.app(scope, self._receive, self._send, trio.to_thread.run_sync, trio.from_thread.run)
            if self._unanswered() and not self.gone:
                raise RuntimeError("the application returned without a whole answer")  # noqa: TRY301 - it failed, too
        except Exception as error:
            if self.begun:
                raise
            self._log(error)
            raise Problem("internal", "The server failed to answer; its log says why.") from error

    def _unanswered(self) -> bool:
        return not self.answered and (bool(self.untold) or self.http.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY})

    def _tell_h11(self, *, head_only: bool = False) -> None:
        """Lets h11 know of the request under way, if it does not: what follows is not plain."""
        if self.untold:
            self.http.receive_data(self.untold)
            self.untold = b""
            while not isinstance(self.http.next_event(), h11.Request if head_only else h11.EndOfMessage):
                pass

    async def _receive(self) -> asgi.ASGIReceiveEvent:
        """The application's `receive`: the body, whole, and after that the end of the client."""
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.streaming:
            return await self._receive_chunk()
        await self._listen()
        return {"type": "http.disconnect"}

    async def _receive_chunk(self) -> asgi.ASGIReceiveEvent:
        """The next piece of a body that is read as it comes; nothing is read ahead, so the client feels it.

        Raises:
            Problem: `request_timeout`, or `malformed` chunks.
        """
        while not isinstance(event := self._next_event(), h11.Data):
            if isinstance(event, h11.EndOfMessage):
                self.streaming = False
                return {"type": "http.request", "body": b"", "more_body": False}
            if self.http.they_are_waiting_for_100_continue:
                await self._write(self.http.send(_CONTINUE))
            with trio.move_on_at(min(trio.current_time() + BODY_SECONDS, self.stream_until)) as self.stream_wait:
                await self._feed()
            if self.stream_wait.cancelled_caught and trio.current_time() >= self.stream_until:
                raise Problem("draining", "The server is about to end, before the stream did.")
            if self.stream_wait.cancelled_caught:
                raise Problem("request_timeout", "The body came too slowly.")
        return {"type": "http.request", "body": bytes(event.data), "more_body": True}

    async def _listen(self) -> None:
        """Until the client closes its side or resets, or has its whole answer."""
        self._tell_h11()
        while self._unanswered() and not self.gone:
            # What a client sends ahead is kept, but not without bound: from here on nobody listens to this one.
            if len(self.http.trailing_data[0]) > HEAD_BYTES_MAX:
                await trio.sleep_forever()
            with suppress(HungUp):
                await self._feed()

    async def _cancel_when_gone(self) -> None:
        """Ends the connection, and with it the handler, if the client leaves before it has its whole answer."""
        await self._listen()
        if self.gone:
            self.life.cancel()

    async def _send(self, message: asgi.ASGISendEvent) -> None:
        """The application's `send`.

        A head with a Content-Length waits for its body, so that both leave in one call. Any other head opens a stream,
        and leaves at once: a browser's EventSource is then open before the first event.
        """
        pieces = []
        if message["type"] == "http.response.start":
            self.head = message
            if any(name.lower() == b"content-length" for name, _ in message["headers"]):
                return
        elif self.head is not None and (data := self._plain_answer(self.head, message)):
            self.head = None
            self.begun = self.answered = True
            await self._write(data)
            return
        self._tell_h11()
        if self.head is not None:
            if self.streaming and self.http.they_are_waiting_for_100_continue and self.head["status"] == HTTPStatus.OK:
                # The answer begins before the body is read. RFC 9110, section 10.1.1: a final status alone would say
                # that the body is not wanted.
                pieces.append(self.http.send(_CONTINUE))
            pieces.append(self.http.send(self._response(self.head)))
            self.head = None
        if message["type"] == "http.response.body":
            if (body := message.get("body", b"")) and not self.bodiless:
                pieces.append(self.http.send(h11.Data(data=body)))
            if not message.get("more_body", False):
                pieces.append(self.http.send(h11.EndOfMessage()))
        if data := b"".join(pieces):
            self.begun = True
            await self._write(data)

    def _plain_answer(self, head: asgi.HTTPResponseStartEvent, message: asgi.ASGISendEvent) -> bytes | None:
        """A whole answer after which the connection goes on, without h11; None if it is anything else."""
        if not self.keeps or self.finishing or self.streaming or message.get("more_body", False):
            return None
        fields, body = list(head["headers"]), message.get("body", b"")
        return write_answer(head["status"], fields, self.connections.fields_of_server(self.config), body)  # type: ignore[arg-type] # the body of an http.response.body

    def _response(self, head: asgi.HTTPResponseStartEvent) -> h11.Response:
        headers = [*head["headers"], *self.config.response_headers("h11")]
        if self.finishing or self.streaming:  # which the application may have said already
            headers = [*(pair for pair in headers if pair[0].lower() != b"connection"), (b"connection", b"close")]
        self.bodiless = head["status"] in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        if self.bodiless:  # RFC 9110, section 8.6: no length either, not even zero
            headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        self.bodiless |= self.method == "HEAD"
        return h11.Response(status_code=head["status"], headers=headers)

    async def _refuse(self, problem: Problem) -> None:
        """Answers, and logs, in the application's place, for the last time: by hand, as h11 is mute after an error."""
        identity = self.connections.identify(self.request_id)
        facts = {
            "request_id": identity.get("X-Request-Id"),
            "client": self.client and self.client[0],
            "method": self.method,
            "path": self.path,
            "status": problem.status,
            "code": problem.code,
        }
        self.connections.problems[problem.code] += 1
        logger.info("refused", extra={"facts": facts})
        with suppress(Problem):  # a client without TLS hears it without
            await self._secure()
        lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**problem.headers, **identity}.items()]
        lines += [f"{name.decode()}: {value.decode()}" for name, value in self.config.response_headers("h11")]
        lines += [f"Content-Length: {len(problem.body)}", "Connection: close", "", ""]
        await self._write("\r\n".join(lines).encode() + (b"" if self.method == "HEAD" else problem.body))
        await self._linger()

    async def _linger(self) -> None:
        """Lets a client that was answered before it had sent all send a little more, and read its answer."""
        with trio.move_on_after(LINGER_SECONDS) as self.wait, suppress(trio.BrokenResourceError):
            if isinstance(self.plain, trio.SSLStream):
                await take_leave(self.plain)
            await self.stream.send_eof()
            while await self.stream.receive_some(READ_BYTES):
                pass

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as error:
            code = {431: "headers_too_large", 501: "not_implemented"}.get(error.error_status_hint, "malformed")
            raise Problem(code, f"This is not HTTP/1.1: {QUOTED.sub('', str(error))}.") from error

    async def _feed(self) -> None:
        """Waits for more from the client, and hands it to h11."""
        self.http.receive_data(await self._hear())

    async def _hear(self) -> bytes:
        """Waits for more from the client."""
        data = b""
        with suppress(trio.BrokenResourceError):
            data = bytes(await self.plain.receive_some(READ_BYTES))
        if not data:
            self.gone = True
            raise HungUp
        self.connections.received_bytes += len(data)
        return data

    async def _write(self, data: bytes) -> None:
        """Sends all of it, for as long as the client goes on reading."""
        for start in range(0, len(data), SEND_BYTES):
            sent = False
            try:
                with trio.move_on_after(SEND_SECONDS), suppress(trio.BrokenResourceError):
                    if not self.gone:
                        await self.plain.send_all(data[start : start + SEND_BYTES])
                        sent = True
            finally:  # also if the application cancels its send: nobody knows how much has left, so nothing may follow
                self.gone |= not sent
            if self.gone:
                raise HungUp
        self.connections.sent_bytes += len(data)

    def _log(self, error: Exception) -> None:
        errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        names = ", ".join(type(each).__name__ for each in errors)
        facts = {"client": self.client and self.client[0], "errors": names}
        logger.error("connection_failed", exc_info=error, extra={"facts": facts})
