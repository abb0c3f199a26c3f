"""The client's plumbing for threads: what it sends by, and how calls of several threads share a request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Event, Lock
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from queue_actor import client_requests as requests
from queue_actor.client_answers import Chunk, Results
from queue_actor.client_errors import ClientError
from queue_actor.client_events import Follow
from queue_actor.client_exchange import OK, Request, read
from queue_actor.client_followers import Events
from queue_actor.client_http import FAILURES, answer_of, endpoint, failure, timeout, transport_options
from queue_actor.client_pool import ThreadsPool
from queue_actor.client_repeats import Repeats
from queue_actor.client_streams import Stream
from queue_actor.coalescing import LANES_MAX, Entry, Lane

T = TypeVar("T")


class Turns(Generic[T]):
    """The threads that call one verb on one queue: one of those whose calls wait sends for all, then another does.

    Nobody waits for others to come: a call that finds nothing under way is sent at once, and what comes meanwhile goes
    with the next request.
    """

    def __init__(self, lane: Lane[T], once: Callable[[Request[Results[T]]], Results[T]]) -> None:
        """Takes what sends a request once."""
        self._lane = lane
        self._once = once
        self._lock = Lock()  # around the lane; nothing is sent under it
        self._leader: Entry[T] | None = None

    def call(self, body: bytes) -> T:
        """Have a job sent, and wait for what becomes of it.

        Raises:
            ClientError: It was refused, or not answered.
        """
        woken = Event()
        entry: Entry[T] = Entry(body, woken)
        with self._lock:
            self._lane.add(entry)
            if self._leader is None:
                self._lead(entry)
        try:
            woken.wait()  # until it has its outcome, or leads
            while entry.outcome is None:
                self._step()
        finally:
            with self._lock:
                self._lane.discard(entry)  # which it is only if this thread was interrupted
                if self._leader is entry:
                    self._lead(self._lane.first())
        return entry.value()

    def _lead(self, entry: Entry[T] | None) -> None:
        self._leader = entry
        if entry is not None:
            entry.woken.set()

    def _step(self) -> None:
        with self._lock:
            request = self._lane.next_request()
        try:
            results = self._once(request)
        except ClientError as error:
            with self._lock:
                pause = self._lane.failed(error, monotonic())
            if pause:
                sleep(pause)
        else:
            with self._lock:
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
        transport: httpx.BaseTransport | None = None,
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
        make = partial(httpx.HTTPTransport, **transport_options(place, ca_file, certificate))
        self._base = place.base
        self._http = httpx.Client(
            transport=transport or ThreadsPool(make, connections_max), headers=place.headers, trust_env=False
        )
        self._timeout_seconds = timeout_seconds
        self._repeat_seconds = repeat_seconds
        self._coalesce = coalesce
        self._lanes: dict[tuple[str, str], Turns[Any]] = {}
        self._guard = Lock()
        self._followers: set[Events] = set()
        self.instance = ""
        self.durability = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, also those of whoever follows events."""
        for follower in list(self._followers):
            follower.close()
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request of client_requests.py, again if that is safe, and read its answer."""
        repeats = Repeats(self._repeat_seconds, repeatable=request.repeatable)
        while True:
            try:
                return self._once(request)
            except ClientError as error:
                pause = repeats.pause_after(error, monotonic())
                if pause is None:
                    raise
            sleep(pause)

    def _once(self, request: Request[T]) -> T:
        with self._answer(request) as response:
            return read(request, answer_of(response, response.read()))

    @contextmanager
    def _answer(self, request: Request[Any]) -> Iterator[httpx.Response]:
        """An answer whose body has not come yet. What fails in the block, on httpx's part, is a `ClientError`."""
        try:
            with self._http.stream(
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

    def _follow(self, follow: Follow) -> Events:
        return Events(follow, self._answer, self._followers)

    def _turns(self, verb: str, queue: str, make: Callable[[Sequence[bytes]], Request[Results[T]]]) -> Turns[T]:
        with self._guard:
            if (verb, queue) not in self._lanes:
                if len(self._lanes) == LANES_MAX:
                    self._lanes.clear()  # calls that are in one go on, and the next ones begin another
                self._lanes[verb, queue] = Turns(Lane(make, repeat_seconds=self._repeat_seconds), self._once)
            return self._lanes[verb, queue]

    def _send_piece(self, queue: str, stream: Stream) -> Iterator[Chunk]:
        repeats = Repeats(self._repeat_seconds, repeatable=False)
        while stream.lines:
            try:
                refused = self._answer_of_lines(requests.enqueue_lines(queue, stream.lines), stream)
            except ClientError as error:
                refused = error
            yield from stream.chunks()
            if refused is not None:
                pause = repeats.pause_after(refused, monotonic())
                if pause is None:
                    raise refused
                sleep(pause)

    def _answer_of_lines(self, request: Request[None], stream: Stream) -> ClientError | None:
        stream.begin()
        with self._answer(request) as response:
            if response.status_code != OK:
                read(request, answer_of(response, response.read()))
            for line in response.iter_lines():
                stream.take(line.encode())
        return stream.end()

    @contextmanager
    def _whole(self, request: Request[None]) -> Iterator[httpx.Response]:
        """The answer to a request that is sent until there is one, and whose body has not come yet."""
        repeats = Repeats(self._repeat_seconds, repeatable=request.repeatable)
        while True:
            with ExitStack() as stack:
                try:
                    response = stack.enter_context(self._answer(request))
                    if response.status_code != OK:
                        read(request, answer_of(response, response.read()))
                except ClientError as error:
                    pause = repeats.pause_after(error, monotonic())
                    if pause is None:
                        raise
                else:
                    yield response
                    return
            sleep(pause)
