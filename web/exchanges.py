"""Requests and answers of the Quart-Trio application: its side of ASGI, as web/connections.py is the server's.

Quart-Trio runs two tasks beside each other for every request: one reads, the other handles, and whichever ends first
cancels the other. That costs more than the request, and cancels Hypercorn in the middle of closing or of starting its
idle timer. Here the body is read before the handler runs, and only a handler that waits for long listens meanwhile.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from time import perf_counter

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.typing import ResponseTypes
from quart.wrappers import Request as AnyRequest
from quart.wrappers import Response
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection

from web.connections import EXTENSION
from web.replies import Reply
from web.requests import Request


class Exchange(TrioASGIHTTPConnection):
    """One request and its answer: `app.asgi_http_class = Exchange`.

    An answer that is made while it is sent (events, a generator) ends when its client leaves. RESPONSE_TIMEOUT has no
    effect, since each send has a deadline of its own: a stream may last.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The application's part of ASGI: returns when the answer is sent, or the client gone."""
        request = Request(self.scope)
        try:
            if request.is_stream:
                request.receive = receive
            else:
                message = await receive()
                if message["type"] != "http.request":
                    return
                request.whole = message.get("body", b"")
                while message.get("more_body", False):
                    message = await receive()
                    if message["type"] != "http.request":
                        return
                    request.whole += message.get("body", b"")
            await self._tell(request, send, await self.app.handle_request(request))
        finally:
            if "closings" in vars(request):
                for close in request.closings:
                    await close()

    async def _tell(self, request: Request, send: ASGISendCallable, answer: ResponseTypes) -> None:
        """Send the answer; if it is made meanwhile, only while its client is there."""
        if isinstance(answer, Reply) and isinstance(answer.body, bytes):
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.fields})
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})
            return
        lasts = isinstance(answer, Response) and not isinstance(answer.response, DataBody)
        # Who still sends his body cannot be listened to.
        async with cancelled_by_disconnect(request) if lasts and not request.is_stream else nullcontext():
            await self._send_response(send, answer)
        request.sent = True


class BodyStream:
    """The body of a stream, piece by piece as it is asked for: what is not asked for is not read."""

    def __init__(self, request: Request) -> None:
        assert request.receive is not None  # noqa: S101 - for the type checker: the request is a stream
        self._receive = request.receive
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
    request.closings.insert(0, close)


@asynccontextmanager
async def cancelled_by_disconnect(request: AnyRequest) -> AsyncIterator[None]:
    """Cancels the handler, not only the block, when the client closes its side or resets the connection in the block.

    A half-closed connection counts as closed, so a client that waits must keep its sending side open. One that sends
    16 KiB of further requests ahead is not listened to any more. Such blocks do not nest: one task listens at a time.
    """
    cancel_when_gone = request.scope["extensions"].get(EXTENSION, {}).get("cancel_when_gone", trio.sleep_forever)
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
        if isinstance(request, Request):
            request.waited += perf_counter() - began
