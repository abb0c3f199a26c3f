"""The client's plumbing for tasks: what it sends by, and how calls of several tasks share a request."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel
import httpx
from anyio.abc import TaskGroup

from queue_actor import client_requests as requests
from queue_actor.client_answers import Chunk, Results
from queue_actor.client_errors import ClientError, Closed
from queue_actor.client_events import Follow
from queue_actor.client_exchange import OK, Request, read
from queue_actor.client_followers import AsyncEvents
from queue_actor.client_http import FAILURES, answer_of, endpoint, failure, timeout, transport_options
from queue_actor.client_pool import TasksPool
from queue_actor.client_repeats import Repeats
from queue_actor.client_streams import Stream
from queue_actor.coalescing import GATHER_SECONDS, LANES_MAX, Entry, Lane

CLOSE_SECONDS = 1.0
"""How long open connections may take to be closed."""

T = TypeVar("T")


class Sender(Generic[T]):
    """The tasks that call one verb on one queue. A task of the client's own sends for all: none can cancel another."""

    def __init__(
        self, lane: Lane[T], once: Callable[[Request[Results[T]]], Awaitable[Results[T]]], tasks: TaskGroup
    ) -> None:
        """Takes what sends a request once, and where its own task runs while there is something to send."""
        self._lane = lane
        self._once = once
        self._tasks = tasks
        self._serves = False
        self._gathered = anyio.Event()

    async def call(self, body: bytes) -> T:
        """Have a job sent, and wait for what becomes of it. Cancelled, it may have been sent.

        Raises:
            ClientError: It was refused, or not answered.
        """
        woken = anyio.Event()
        entry: Entry[T] = Entry(body, woken)
        self._lane.add(entry)
        if not self._serves:
            self._serves = True
            self._tasks.start_soon(self._serve)
        elif self._lane.gathered:
            self._gathered.set()
        try:
            await woken.wait()
        finally:
            self._lane.discard(entry)  # which it is only if this task was cancelled
        return entry.value()

    async def _serve(self) -> None:
        try:
            while self._lane.has_work:
                await self._gather()
                if self._lane.has_work:  # or all were cancelled meanwhile
                    await self._step()
        finally:
            self._serves = False
            self._lane.close(Closed("the client was closed"))  # nobody is left unless it was

    async def _gather(self) -> None:
        """Wait for those who are expected, so that tasks that were answered together go together again."""
        await anyio.lowlevel.checkpoint()  # whoever can call now has called then
        if not self._lane.gathered:
            self._gathered = anyio.Event()
            with anyio.move_on_after(GATHER_SECONDS):
                await self._gathered.wait()

    async def _step(self) -> None:
        try:
            results = await self._once(self._lane.next_request())
        except ClientError as error:
            await anyio.sleep(self._lane.failed(error, anyio.current_time()))
        else:
            self._lane.answered(results)


class Connections:
    """How the client sends: all but its verbs."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        ca_file: str | None = None,
        certificate: tuple[str, str] | None = None,
        timeout_seconds: float = 10.0,
        repeat_seconds: float = 30.0,
        connections_max: int = 100,
        coalesce: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: Where the server is: `http://…`, `https://…`, or `unix:/path` of a socket. None: QUEUE_ACTOR_URL, and
                without that http://127.0.0.1:8080.
            token: The access token. None: QUEUE_ACTOR_TOKEN, and without that none is shown.
            ca_file: Certificates in PEM, one of which has to have signed the server's. None: those of the system.
            certificate: Files of the client's own certificate and of its key, where the server wants one.
            timeout_seconds: How long to wait for a connection, or for more of an answer, beyond what was asked to wait.
            repeat_seconds: How long to go on repeating after the first failure; 0: never.
            connections_max: Connections open at once; further calls wait for one.
            coalesce: Whether `enqueue` and `conclude` that are called at the same time share requests.
            transport: What to send by, in place of a network.

        Raises:
            ValueError: The address is none.
            OSError: A file of certificates cannot be read.
        """
        place = endpoint(url, token)
        make = partial(httpx.AsyncHTTPTransport, **transport_options(place, ca_file, certificate))
        self._base = place.base
        self._http = httpx.AsyncClient(
            transport=transport or TasksPool(make, connections_max), headers=place.headers, trust_env=False
        )
        self._timeout_seconds = timeout_seconds
        self._repeat_seconds = repeat_seconds
        self._coalesce = coalesce
        self._lanes: dict[tuple[str, str], Sender[Any]] = {}
        self._tasks: TaskGroup | None = None
        self._followers: set[AsyncEvents] = set()
        self.instance = ""
        self.durability = ""

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls that still wait are ended by `Closed`, and events come to an end."""
        tasks, self._tasks = self._tasks, None
        try:
            if tasks is not None:
                tasks.cancel_scope.cancel()
                # What the block raised is not told to the group, which would make a group of it.
                await tasks.__aexit__(None, None, None)
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                for follower in list(self._followers):
                    await follower.aclose()
                await self._http.aclose()

    async def send(self, request: Request[T]) -> T:
        """Send a request of client_requests.py, again if that is safe, and read its answer."""
        repeats = Repeats(self._repeat_seconds, repeatable=request.repeatable)
        while True:
            try:
                return await self._once(request)
            except ClientError as error:
                pause = repeats.pause_after(error, anyio.current_time())
                if pause is None:
                    raise
            await anyio.sleep(pause)

    async def _once(self, request: Request[T]) -> T:
        async with self._answer(request) as response:
            return read(request, answer_of(response, await response.aread()))

    @asynccontextmanager
    async def _answer(self, request: Request[Any]) -> AsyncIterator[httpx.Response]:
        """An answer whose body has not come yet. What fails in the block, on httpx's part, is a `ClientError`."""
        try:
            async with self._http.stream(
                request.method,
                self._base + request.path,
                content=request.body,
                headers=request.headers,
                timeout=timeout(request, self._timeout_seconds),
            ) as response:
                self.instance = response.headers.get("queue-instance", self.instance)
                self.durability = response.headers.get("queue-durability", self.durability)
                yield response
        except FAILURES as error:
            raise failure(request, error) from error

    def _follow(self, follow: Follow) -> AsyncEvents:
        return AsyncEvents(follow, self._answer, self._followers)

    def _sender(self, verb: str, queue: str, make: Callable[[Sequence[bytes]], Request[Results[T]]]) -> Sender[T]:
        if (verb, queue) not in self._lanes:
            if len(self._lanes) == LANES_MAX:
                self._lanes.clear()  # calls that are in one go on, and the next ones begin another
            if self._tasks is None:
                raise RuntimeError("an AsyncClient is a block: async with AsyncClient() as client")
            lane = Lane(make, repeat_seconds=self._repeat_seconds)
            self._lanes[verb, queue] = Sender(lane, self._once, self._tasks)
        return self._lanes[verb, queue]

    async def _send_piece(self, queue: str, stream: Stream) -> AsyncIterator[Chunk]:
        repeats = Repeats(self._repeat_seconds, repeatable=False)
        while stream.lines:
            try:
                refused = await self._answer_of_lines(requests.enqueue_lines(queue, stream.lines), stream)
            except ClientError as error:
                refused = error
            for chunk in stream.chunks():
                yield chunk
            if refused is not None:
                pause = repeats.pause_after(refused, anyio.current_time())
                if pause is None:
                    raise refused
                await anyio.sleep(pause)

    async def _answer_of_lines(self, request: Request[None], stream: Stream) -> ClientError | None:
        stream.begin()
        async with self._answer(request) as response:
            if response.status_code != OK:
                read(request, answer_of(response, await response.aread()))
            async for line in response.aiter_lines():
                stream.take(line.encode())
        return stream.end()

    @asynccontextmanager
    async def _whole(self, request: Request[None]) -> AsyncIterator[httpx.Response]:
        """The answer to a request that is sent until there is one, and whose body has not come yet."""
        repeats = Repeats(self._repeat_seconds, repeatable=request.repeatable)
        while True:
            async with AsyncExitStack() as stack:
                try:
                    response = await stack.enter_async_context(self._answer(request))
                    if response.status_code != OK:
                        read(request, answer_of(response, await response.aread()))
                except ClientError as error:
                    pause = repeats.pause_after(error, anyio.current_time())
                    if pause is None:
                        raise
                else:
                    yield response
                    return
            await anyio.sleep(pause)


async def each(jobs: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The same, of either kind of iterable."""
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
