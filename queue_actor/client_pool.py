"""Connections that are kept, the one used last first, each in a transport of httpx of its own.

The pool of httpcore looks at all its connections for each request and for each of them again: with sixty-four of them
that costs more than the request. Here a request takes one off a stack and puts it back.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from threading import BoundedSemaphore
from typing import cast

import anyio
import httpx


def _pool_seconds(request: httpx.Request) -> float:
    """How long the request may wait for a connection."""
    seconds: float = request.extensions["timeout"]["pool"]
    return seconds


class ThreadsPool(httpx.BaseTransport):
    """Connections that threads share."""

    def __init__(self, make: Callable[[], httpx.BaseTransport], connections_max: int) -> None:
        self._make = make
        self._room = BoundedSemaphore(connections_max)
        self._idle: list[httpx.BaseTransport] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; the connection is free again when the answer is closed.

        Raises:
            httpx.TransportError: There was no answer.
        """
        if not self._room.acquire(timeout=_pool_seconds(request)):
            raise httpx.PoolTimeout("all connections are in use", request=request)
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._make()
        try:
            response = connection.handle_request(request)
        except BaseException:
            self._give_back(connection)
            raise
        response.stream = _Answer(response.stream, lambda: self._give_back(connection))
        return response

    def _give_back(self, connection: httpx.BaseTransport) -> None:
        self._idle.append(connection)
        self._room.release()

    def close(self) -> None:
        """Close those that are not in use."""
        while self._idle:
            self._idle.pop().close()


class _Answer(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, closed: Callable[[], None]) -> None:
        self._stream = cast("httpx.SyncByteStream", stream)
        self._closed = closed

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._closed()


class TasksPool(httpx.AsyncBaseTransport):
    """Connections that tasks share."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], connections_max: int) -> None:
        self._make = make
        self._connections_max = connections_max
        self._room: anyio.Semaphore | None = None  # made where there is an event loop
        self._idle: list[httpx.AsyncBaseTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; the connection is free again when the answer is closed.

        Raises:
            httpx.TransportError: There was no answer.
        """
        if self._room is None:
            self._room = anyio.Semaphore(self._connections_max)
        try:
            with anyio.fail_after(_pool_seconds(request)):
                await self._room.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("all connections are in use", request=request) from error
        connection = self._idle.pop() if self._idle else self._make()
        give_back = partial(self._give_back, connection, self._room)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            give_back()
            raise
        response.stream = _AsyncAnswer(response.stream, give_back)
        return response

    def _give_back(self, connection: httpx.AsyncBaseTransport, room: anyio.Semaphore) -> None:
        self._idle.append(connection)
        room.release()

    async def aclose(self) -> None:
        """Close those that are not in use."""
        while self._idle:
            await self._idle.pop().aclose()


class _AsyncAnswer(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, closed: Callable[[], None]) -> None:
        self._stream = cast("httpx.AsyncByteStream", stream)
        self._closed = closed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._closed()
