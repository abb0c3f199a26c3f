"""Requests and answers of the Quart-Trio application: its side of ASGI, as web/connections.py is the server's.

Quart-Trio runs two tasks beside each other for every request: one reads, the other handles, and whichever ends first
cancels the other. That costs more than the request, and cancels Hypercorn in the middle of closing or of starting its
idle timer. Here the body is read before the handler runs, and only a handler that waits for long listens meanwhile.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.wrappers import Request, Response
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection

from web.connections import EXTENSION
from web.heads import is_stream


class Exchange(TrioASGIHTTPConnection):
    """One request and its answer: `app.asgi_http_class = Exchange`.

    An answer that is made while it is sent (events, a generator) ends when its client leaves. RESPONSE_TIMEOUT has no
    effect, since each send has a deadline of its own: a stream may last.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The application's part of ASGI: returns when the answer is sent, or the client gone."""
        request = self._create_request_from_scope(send)
        try:
            await self._exchange(request, receive, send)
        finally:
            for close in _closings(request):
                await close()

    async def _exchange(self, request: Request, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if is_stream(self.scope):
            self.scope["extensions"].setdefault(EXTENSION, {})["receive"] = receive
            await self._send_response(send, await self.app.handle_request(request))
            _extension(request)["sent"] = True
            return
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            request.body.append(message.get("body", b""))
            more = message.get("more_body", False)
        request.body.set_complete()
        response = await self.app.handle_request(request)
        if isinstance(response, Response) and not isinstance(response.response, DataBody):
            async with cancelled_by_disconnect(request):
                await self._send_response(send, response)
            _extension(request)["sent"] = True
        else:
            await self._send_response(send, response)


class BodyStream:
    """The body of a stream, piece by piece as it is asked for: what is not asked for is not read."""

    def __init__(self, request: Request) -> None:
        self._receive: ASGIReceiveCallable = request.scope["extensions"][EXTENSION]["receive"]
        self._more = True

    async def piece(self) -> bytes | None:
        """The next piece, or None at the end. Cancelled, it has taken nothing.

        Raises:
            Problem: The client sends too slowly, or not HTTP.
        """
        if not self._more:
            return None
        message = await self._receive()
        if message["type"] != "http.request":
            return None
        self._more = message.get("more_body", False)
        return message.get("body", b"") if self._more else None


def close_after_answer(request: Request, close: Callable[[], Awaitable[None]]) -> None:
    """Have something closed when the answer is sent, or cannot be, the last first; it sees to it that it ends."""
    _extension(request).setdefault("closings", []).insert(0, close)


def _closings(request: Request) -> list[Callable[[], Awaitable[None]]]:
    closings: list[Callable[[], Awaitable[None]]] = request.scope["extensions"].get(EXTENSION, {}).get("closings", [])
    return closings


def _extension(request: Request) -> dict[str, Any]:
    return request.scope["extensions"].setdefault(EXTENSION, {})


def was_sent(request: Request) -> bool:
    """Of an answer that is made while it is sent: whether all of it has been."""
    return "sent" in _extension(request)


def waited_seconds(request: Request) -> float:
    """How long the handler has waited, in blocks of `cancelled_by_disconnect`."""
    seconds: float = _extension(request).get("waited", 0.0)
    return seconds


@asynccontextmanager
async def cancelled_by_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancels the handler, not only the block, when the client closes its side or resets the connection in the block.

    A half-closed connection counts as closed, so a client that waits must keep its sending side open. One that sends
    16 KiB of further requests ahead is not listened to any more. Such blocks do not nest: one task listens at a time.
    """
    extension = _extension(request)
    cancel_when_gone = extension.get("cancel_when_gone", trio.sleep_forever)
    began = perf_counter()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        # The nursery is nobody's business: the block raises what it raised, not a group of one.
        raise group.exceptions[0] from None
    finally:
        extension["waited"] = extension.get("waited", 0.0) + perf_counter() - began
