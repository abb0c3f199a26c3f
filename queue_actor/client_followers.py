"""Those who follow events: what `follow` of either client returns. What a stream says is in client_events.py."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack, suppress
from threading import Event as Flag
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Self

import anyio
import httpx

from queue_actor.client_errors import ClientError, NotUnderstood
from queue_actor.client_events import EVENT_STREAM, Event, Follow
from queue_actor.client_exchange import OK, Request, read
from queue_actor.client_http import FAILURES, answer_of, failure

CLOSE_SECONDS = 1.0
"""How long a connection may take to be closed."""


def wait(flag: Flag, seconds: float) -> None:
    """Pause, unless the flag is set."""
    flag.wait(seconds)


class Events:
    """Events of a server, in the order in which they happened, for one thread at a time.

        with client.follow("images") as events:
            for event in events: ...

    It ends with its block or by `close`, which any thread may call, also while another one waits for an event; and with
    the client. Otherwise it goes on for ever, over cuts and restarts of the server, which it repeats for as long as the
    client repeats anything. What cannot be told because of them is a `Gap`. It takes one of the client's connections.
    """

    def __init__(
        self,
        follow: Follow,
        answer: Callable[[Request[Any]], AbstractContextManager[httpx.Response]],
        connected: set["Events"],
    ) -> None:
        """Nothing is asked for before the first event is.

        Args:
            follow: What is wanted.
            answer: Sends a request.
            connected: Those who hold a connection, which the client closes.
        """
        self._follow = follow
        self._answer = answer
        self._connected = connected
        self._request: Request[None] | None = None
        self._stack = ExitStack()
        self._pieces: Iterator[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closing = Flag()
        self._reading = Lock()

    @property
    def last_id(self) -> str | None:
        """Names the place behind the last event: `follow(after=…)` goes on there, in another program, too."""
        return self._follow.last_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event, waited for.

        Raises:
            ClientError: It was refused, or the server is not reached any more.
        """
        try:
            with self._reading:
                return self._next()
        finally:
            if self._closing.is_set():
                self._release()

    def close(self) -> None:
        """End it, and the connection, at once."""
        self._closing.set()
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads there
        self._release()

    def _release(self) -> None:
        if self._reading.acquire(blocking=False):  # or else who reads does it
            try:
                self._drop()
            finally:
                self._reading.release()

    def _drop(self) -> None:
        self._pieces = self._socket = None
        self._stack.close()
        self._connected.discard(self)

    def _next(self) -> Event:
        while not self._closing.is_set():
            if (event := self._follow.next()) is not None:
                return event
            if self._follow.over:
                self._closing.set()
                break
            try:
                self._read()
            except ClientError as error:
                self._drop()
                if not self._closing.is_set():
                    wait(self._closing, self._follow.pause_after(error, monotonic()))
        raise StopIteration  # and whoever sees that it is closing drops the connection

    def _read(self) -> None:
        """Read a piece more, of an answer that is asked for if there is none.

        Raises:
            ClientError: There is no more.
        """
        if self._pieces is None:
            self._connected.add(self)
            self._request = self._follow.request(monotonic())
            response = self._stack.enter_context(self._answer(self._request))
            if response.status_code != OK:
                read(self._request, answer_of(response, response.read()))
            expect_events(response)
            network = response.extensions.get("network_stream")
            self._socket = network and network.get_extra_info("socket")
            self._pieces = response.iter_bytes()
            return  # to look whether it was closed meanwhile
        assert self._request is not None  # noqa: S101 - for the type checker: it was asked for
        try:
            piece = next(self._pieces, None)
        except FAILURES as error:
            raise failure(self._request, error) from error
        if piece is None:
            raise self._follow.ended()
        self._follow.take(piece)


class AsyncEvents:
    """Events of a server, in the order in which they happened, for one task at a time.

        async with client.follow("images") as events:
            async for event in events: ...

    It ends with its block or by `aclose`, which any task may call, also while another one waits for an event; and with
    the client. Otherwise it goes on for ever, over cuts and restarts of the server, which it repeats for as long as the
    client repeats anything. What cannot be told because of them is a `Gap`. It takes one of the client's connections.
    """

    def __init__(
        self,
        follow: Follow,
        answer: Callable[[Request[Any]], AbstractAsyncContextManager[httpx.Response]],
        connected: set["AsyncEvents"],
    ) -> None:
        """Nothing is asked for before the first event is.

        Args:
            follow: What is wanted.
            answer: Sends a request.
            connected: Those who hold a connection, which the client closes.
        """
        self._follow = follow
        self._answer = answer
        self._connected = connected
        self._request: Request[None] | None = None
        self._stack = AsyncExitStack()
        self._pieces: AsyncIterator[bytes] | None = None
        self._closed = False
        self._waits: anyio.CancelScope | None = None

    @property
    def last_id(self) -> str | None:
        """Names the place behind the last event: `follow(after=…)` goes on there, in another program, too."""
        return self._follow.last_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event, waited for.

        Raises:
            ClientError: It was refused, or the server is not reached any more.
        """
        while not self._closed:
            if (event := self._follow.next()) is not None:
                return event
            if self._follow.over:
                await self.aclose()
                break
            try:
                with anyio.CancelScope() as self._waits:
                    await self._step()
            finally:
                self._waits = None
                if self._closed:
                    await self._drop()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it, and the connection, at once."""
        self._closed = True
        if self._waits is not None:
            self._waits.cancel()  # who waits there drops the connection
        else:
            await self._drop()

    async def _drop(self) -> None:
        pieces, self._pieces = self._pieces, None
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            if pieces is not None:
                await _ended(pieces)
            await self._stack.aclose()
        self._connected.discard(self)

    async def _step(self) -> None:
        try:
            await self._read()
        except ClientError as error:
            await self._drop()
            await anyio.sleep(self._follow.pause_after(error, anyio.current_time()))

    async def _read(self) -> None:
        """Read a piece more, of an answer that is asked for if there is none.

        Raises:
            ClientError: There is no more.
        """
        if self._pieces is None:
            self._connected.add(self)
            self._request = self._follow.request(anyio.current_time())
            response = await self._stack.enter_async_context(self._answer(self._request))
            if response.status_code != OK:
                read(self._request, answer_of(response, await response.aread()))
            expect_events(response)
            self._pieces = response.aiter_bytes()
        assert self._request is not None  # noqa: S101 - for the type checker: it was asked for
        try:
            piece = await anext(self._pieces, None)
        except FAILURES as error:
            raise failure(self._request, error) from error
        if piece is None:
            raise self._follow.ended()
        self._follow.take(piece)


async def _ended(pieces: AsyncIterator[bytes]) -> None:
    """Read on, cancelled: that ends the generators within httpx, which closing leaves to the garbage collector."""
    with anyio.CancelScope() as scope, suppress(*FAILURES):
        scope.cancel()
        while await anext(pieces, None) is not None:
            pass


def expect_events(response: httpx.Response) -> None:
    """Pass if the answer is a stream of events.

    Raises:
        NotUnderstood: It is something else.
    """
    kind = response.headers.get("content-type", "")
    if not kind.startswith(EVENT_STREAM):
        raise NotUnderstood(f"GET /v1/events was answered with {kind or 'something'}, and not with {EVENT_STREAM}")
