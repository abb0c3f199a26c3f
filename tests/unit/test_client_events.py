"""Both clients follow events of a server that is a script: what they are told, how they go on, how they end.

Time is virtual: Trio's clock jumps, and that of the threads' client is moved by its own pauses.
"""

import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor import client_followers
from queue_actor.client import (
    AccessRefused,
    AsyncClient,
    Busy,
    Client,
    ClientError,
    Event,
    Gap,
    JobEvent,
    JobState,
    NotUnderstood,
    Opened,
    QueuesEvent,
    Unreachable,
)
from queue_actor.client_events import EVENT_BYTES_MAX, HEARTBEAT_SECONDS, RETRY_SECONDS_MAX, Follow

pytestmark = pytest.mark.virtual_time

WAIT_SECONDS = 10.0
CUT = httpx.RemoteProtocolError("peer closed connection without sending complete message body")
SILENT = httpx.ReadTimeout("the read operation timed out")
NOBODY = httpx.ConnectError("refused")

Piece = bytes | Exception


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes piece by piece, and then ends, or breaks."""

    def __init__(self, pieces: tuple[Piece, ...]) -> None:
        self._pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            await trio.lowlevel.checkpoint()
            yield piece

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


class Script:
    """Answers one request after the other as it is told; after that nobody is there."""

    def __init__(self, *answers: tuple[Piece, ...] | httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[Pieces] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if self._answers else NOBODY
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        self.bodies.append(Pieces(answer))
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=self.bodies[-1])

    @property
    def asked(self) -> list[str | None]:
        """Behind which event each request went on."""
        return [request.headers.get("Last-Event-ID") for request in self.requests]


def told(event: str, data: Any, id_: str | None = None) -> bytes:
    name = "" if id_ is None else f"id: {id_}\n"
    return f"{name}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def opened(id_: str, *, resumed: bool = False, retry: str = "retry: 1000\n") -> bytes:
    return retry.encode() + told("open", {"resumed": resumed}, id_)


def job(number: int, id_: str) -> bytes:
    facts = {"type": "t", "verb": "enqueue", "from": None, "to": "queued", "attempt": 0, "consumer": None}
    return told("job", {"queue": "q", "id": number, **facts, "reason": None, "at": "2027-01-15T08:00:00.123Z"}, id_)


def gap(reason: str, missed: int | None = None) -> bytes:
    return told("gap", {"reason": reason, "missed": missed})


def brief(event: Event) -> object:
    return event.id if isinstance(event, JobEvent) else event


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the threads' client, which take no time but move its clock."""
    pauses: list[float] = []
    monkeypatch.setattr(client_followers, "wait", lambda _flag, seconds: pauses.append(seconds))
    monkeypatch.setattr(client_followers, "monotonic", lambda: sum(pauses))
    return pauses


async def followed(
    slept: list[float], script: tuple[tuple[Piece, ...] | httpx.Response | Exception, ...], **arguments: Any
) -> tuple[list[object], type[ClientError] | None, list[str | None]]:
    """What both clients are told, what ends it, and behind which events they asked; they have to agree."""
    ends: list[Any] = []
    del slept[:]
    sent = Script(*script)
    got: list[object] = []
    error: ClientError | None = None
    with Client(transport=httpx.MockTransport(sent)) as client, client.follow(**arguments) as events:
        try:
            for event in events:
                got.append(brief(event))  # noqa: PERF401 - what came before the failure counts
        except ClientError as failure:
            error = failure
    assert all(body.closed for body in sent.bodies)
    ends.append((got, error and type(error), sent.asked))

    sent, got, error = Script(*script), [], None
    async with AsyncClient(transport=httpx.MockTransport(sent)) as asked, asked.follow(**arguments) as following:
        try:
            async for event in following:
                got.append(brief(event))
        except ClientError as failure:
            error = failure
    assert all(body.closed for body in sent.bodies)
    ends.append((got, error and type(error), sent.asked))
    assert ends[0] == ends[1]
    return ends[0]  # type: ignore[no-any-return] # they are what they are


WAITED = told("end", {"reason": "waited"}, "i.e.9")


# --- what is told


async def test_events_are_told_as_what_they_are() -> None:
    script = Script((opened("i.e.1"), job(7, "i.e.2"), told("queues", {"queues": ["a", "b"]}, "i.e.3"), WAITED))
    with Client(transport=httpx.MockTransport(script)) as client:
        events = client.follow(wait_seconds=5)
        assert events.last_id is None
        assert next(events) == Opened(resumed=False)
        assert events.last_id == "i.e.1"
        at = datetime(2027, 1, 15, 8, 0, 0, 123_000, UTC)
        assert next(events) == JobEvent("q", 7, "t", "enqueue", None, JobState.QUEUED, 0, None, None, at)
        assert events.last_id == "i.e.2"
        assert next(events) == QueuesEvent(("a", "b"))
        assert next(events, None) is None
        assert next(events, None) is None
        assert events.last_id == "i.e.9"


async def test_what_is_wanted_is_asked_for() -> None:
    script = Script((opened("i.e.1"),), (opened("i.e.1"),))
    with Client(transport=httpx.MockTransport(script)) as client:
        next(client.follow("a:*", type="t", state=["dead", "cancelled"], shape="queues", wait_seconds=3, after="i.e.0"))
        next(client.follow(state="dead"))
    first, second = script.requests
    assert dict(first.url.params) == {
        "queue": "a:*",
        "type": "t",
        "state": "dead,cancelled",
        "shape": "queues",
        "wait_seconds": "3.000",
    }
    assert first.headers["Last-Event-ID"] == "i.e.0"
    assert dict(second.url.params) == {"state": "dead"}
    assert "Last-Event-ID" not in second.headers


async def test_it_does_not_matter_how_the_stream_is_cut_into_pieces_nor_how_its_lines_end(slept: list[float]) -> None:
    whole = opened("i.e.1") + b": nothing new\n\n" + job(7, "i.e.2") + told("later", {}) + b"event: job\n\n" + WAITED
    expected = ([Opened(resumed=False), 7], None, [None])

    for text in (whole, whole.replace(b"\n", b"\r\n")):
        pieces = tuple(text[n : n + 1] for n in range(len(text)))
        assert await followed(slept, ((text,),), wait_seconds=5) == expected
        assert await followed(slept, (pieces,), wait_seconds=5) == expected


@pytest.mark.parametrize(
    "nonsense",
    [
        told("job", {"queue": "q"}),
        b"event: open\ndata: {\n\n",
        b'event: open\ndata: {"resumed":false}\nid: \xff\n\n',
        b"x" * (EVENT_BYTES_MAX + 1),
    ],
)
async def test_what_is_no_stream_of_events_is_not_understood(slept: list[float], nonsense: bytes) -> None:
    assert await followed(slept, ((nonsense,),)) == ([], NotUnderstood, [None])


async def test_an_answer_of_another_kind_is_not_understood(slept: list[float]) -> None:
    assert await followed(slept, (httpx.Response(200, text="hello"),)) == ([], NotUnderstood, [None])
    assert await followed(slept, (httpx.Response(200),)) == ([], NotUnderstood, [None])


# --- how it goes on


async def test_a_stream_that_is_cut_goes_on_behind_the_last_event(slept: list[float]) -> None:
    script = (
        NOBODY,
        (opened("i.e.1"), job(7, "i.e.2"), CUT),
        (opened("i.e.2", resumed=True), job(8, "i.e.3")),  # which ends as if it were whole
        (opened("i.e.3", resumed=True), b": nothing new\n\n", SILENT),
        (opened("i.e.4", resumed=True), told("end", {"reason": "draining"}, "i.e.5")),
        httpx.Response(503, json={"code": "draining", "detail": "d"}, headers={"Retry-After": "2"}),
        (opened("i.e.5", resumed=True), job(9, "i.e.6"), WAITED),
    )

    began = trio.current_time()
    assert await followed(slept, script, wait_seconds=30) == (
        [Opened(resumed=False), 7, 8, 9],
        None,
        [None, None, "i.e.2", "i.e.3", "i.e.3", "i.e.5", "i.e.5"],
    )
    # The server asks for a second, of which everyone takes another part; who found nobody there comes again sooner.
    assert slept[0] < 0.1
    assert all(0.5 <= pause <= 1 for pause in slept[1:5])
    assert slept[5] > 2
    assert 4 < trio.current_time() - began < 7


async def test_a_gap_is_told_wherever_the_stream_is_cut(slept: list[float]) -> None:
    """Also between the answer's first event, which names the new place already, and the gap before it."""
    script = (
        (opened("i.e.1"), job(7, "i.e.2"), CUT),
        (opened("j.f.50"), CUT),
        (opened("j.f.51"), gap("instance"), CUT),
        (opened("j.f.51", resumed=True), gap("behind", 3), CUT),
        (opened("j.f.60"), gap("behind", 3), job(1, "j.f.61"), WAITED),
    )

    assert await followed(slept, script, wait_seconds=30) == (
        [Opened(resumed=False), 7, Gap("instance", None), Gap("behind", 3), Gap("behind", 3), 1],
        None,
        [None, "i.e.2", "i.e.2", "j.f.51", "j.f.51"],
    )


async def test_who_goes_on_from_an_earlier_call_is_told_whether_that_was_possible(slept: list[float]) -> None:
    kept = ((opened("i.e.2", resumed=True), WAITED),)
    lost = ((opened("i.f.50"), gap("restart", 4), WAITED),)

    assert await followed(slept, kept, after="i.e.2", wait_seconds=5) == ([Opened(resumed=True)], None, ["i.e.2"])
    got = await followed(slept, lost, after="i.e.2", wait_seconds=5)
    assert got == ([Opened(resumed=False), Gap("restart", 4)], None, ["i.e.2"])


async def test_the_time_to_wait_counts_on_over_a_cut(slept: list[float]) -> None:
    script = Script((opened("i.e.1"), CUT), (opened("i.e.1", resumed=True), CUT), (opened("i.e.1"), WAITED))
    with Client(transport=httpx.MockTransport(script)) as client:
        list(client.follow(wait_seconds=1.2))
    waits = [float(request.url.params["wait_seconds"]) for request in script.requests]
    assert waits == pytest.approx([1.2, 1.2 - slept[0], max(0, 1.2 - sum(slept))], abs=0.001)


async def test_a_server_that_stays_away_is_given_up_after_a_while(slept: list[float]) -> None:
    script = Script((opened("i.e.1"), CUT), NOBODY, (opened("i.e.1", resumed=True), CUT))
    with Client(transport=httpx.MockTransport(script)) as client:
        events = client.follow()
        with pytest.raises(Unreachable):
            list(events)
        before = sum(slept)
        assert 20 < before < 35  # thirty seconds from the last cut on
        script._answers = [(opened("i.e.1", resumed=True), job(7, "i.e.2"))]
        assert brief(next(events)) == 7  # it may be tried again


@pytest.mark.parametrize("seconds", [0.0, 0.3])
async def test_who_repeats_nothing_is_told_of_a_cut(slept: list[float], seconds: float) -> None:
    script = Script((opened("i.e.1"), CUT))
    with Client(transport=httpx.MockTransport(script), repeat_seconds=seconds) as client:
        events = client.follow()
        next(events)
        with pytest.raises(Unreachable):
            next(events)
    assert len(script.requests) == (1 if not seconds else 2)
    assert len(slept) == len(script.requests) - 1


async def test_what_cannot_be_repeated_is_raised(slept: list[float]) -> None:
    refused = httpx.Response(401, json={"code": "unauthorized", "detail": "d"})
    script = ((opened("i.e.1"), told("end", {"reason": "unauthorized"}, "i.e.1")), refused)
    assert await followed(slept, script) == ([Opened(resumed=False)], AccessRefused, [None, "i.e.1"])

    full = httpx.Response(503, json={"code": "too_many_readers", "detail": "d"})
    with Client(transport=httpx.MockTransport(Script(full)), repeat_seconds=0) as client, pytest.raises(Busy):
        next(client.follow())


async def test_the_end_of_a_wait_that_nobody_asked_for_is_a_cut(slept: list[float]) -> None:
    script = ((opened("i.e.1"), WAITED), (opened("i.e.9", resumed=True), job(7, "i.e.10"), httpx.InvalidURL("none")))
    assert await followed(slept, script) == ([Opened(resumed=False), 7], NotUnderstood, [None, "i.e.9"])


def test_a_server_may_not_ask_for_a_pause_without_end() -> None:
    for retry, pause in (("retry: 4000\n", 2.0), ("retry: 9999999999\n", RETRY_SECONDS_MAX / 2), ("retry: x\n", 0.05)):
        follow = Follow({}, after=None, wait_seconds=None, repeat_seconds=30, draw=lambda: 0.0)
        follow.request(0)
        follow.take(opened("i.e.1", retry=retry))
        assert follow.pause_after(follow.ended(), 0) == pytest.approx(pause, abs=0.03)


async def test_a_connection_that_is_silent_for_too_long_is_dead() -> None:
    script = Script((opened("i.e.1"),))
    with Client(transport=httpx.MockTransport(script), timeout_seconds=4) as client:
        next(client.follow())
    assert script.requests[0].extensions["timeout"]["read"] == HEARTBEAT_SECONDS + 4


# --- how it ends


class Blocks(httpx.SyncByteStream):
    """A body whose second piece does not come until somebody shuts the socket down."""

    def __init__(self, first: bytes, *, broken: bool = False) -> None:
        self.reading, self.shut, self.closed = threading.Event(), threading.Event(), threading.Event()
        self._first = first
        self._broken = broken

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        self.reading.set()
        assert self.shut.wait(WAIT_SECONDS)
        raise CUT

    def close(self) -> None:
        self.closed.set()

    # --- as the network and the socket of the answer

    def get_extra_info(self, _name: str) -> "Blocks":
        return self

    def shutdown(self, _how: int) -> None:
        self.shut.set()
        if self._broken:
            raise OSError("not connected")


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("of", ["events", "client"])
def test_a_thread_that_waits_is_woken_when_it_is_closed(of: str, broken: bool) -> None:
    body = Blocks(opened("i.e.1"), broken=broken)

    def respond(_: httpx.Request) -> httpx.Response:
        kind = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=kind, stream=body, extensions={"network_stream": body})

    with Client(transport=httpx.MockTransport(respond)) as client, ThreadPoolExecutor(1) as pool:
        events = client.follow()
        got = pool.submit(list, events)
        assert body.reading.wait(WAIT_SECONDS)
        events.close() if of == "events" else client.close()
        assert got.result(WAIT_SECONDS) == [Opened(resumed=False)]
        assert body.closed.wait(WAIT_SECONDS)
        assert list(events) == []
        events.close()


def test_a_thread_that_is_closed_while_it_connects_reads_nothing_more() -> None:
    connecting, closed = threading.Event(), threading.Event()
    body = Blocks(opened("i.e.1"))

    def respond(_: httpx.Request) -> httpx.Response:
        connecting.set()
        assert closed.wait(WAIT_SECONDS)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    with Client(transport=httpx.MockTransport(respond)) as client, ThreadPoolExecutor(1) as pool:
        events = client.follow()
        got = pool.submit(list, events)
        assert connecting.wait(WAIT_SECONDS)
        events.close()
        closed.set()
        assert got.result(WAIT_SECONDS) == []
        assert body.closed.wait(WAIT_SECONDS)


def test_a_thread_that_pauses_is_woken_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    pausing, real = threading.Event(), client_followers.wait

    def wait(flag: threading.Event, _seconds: float) -> None:
        pausing.set()
        real(flag, 600)

    monkeypatch.setattr(client_followers, "wait", wait)
    with Client(transport=httpx.MockTransport(Script())) as client, ThreadPoolExecutor(1) as pool:
        events = client.follow()
        got = pool.submit(list, events)
        assert pausing.wait(WAIT_SECONDS)
        events.close()
        assert got.result(WAIT_SECONDS) == []


class Waits(httpx.AsyncByteStream):
    """A body that comes in two pieces, and then no more."""

    def __init__(self) -> None:
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield opened("i.e.1")
        yield job(7, "i.e.2")
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed += 1


@pytest.mark.parametrize("how", ["events", "client", "cancelled"])
async def test_a_task_that_waits_is_woken_when_it_is_closed(how: str) -> None:
    body, got, ended = Waits(), [], []

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    client = AsyncClient(transport=httpx.MockTransport(respond))
    events = client.follow()

    async def listen() -> None:
        got.extend([event async for event in events])
        ended.append(True)

    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        if how == "events":
            await events.aclose()
            await wait_all_tasks_blocked()
            assert body.closed
        elif how == "cancelled":
            nursery.cancel_scope.cancel()
    assert body.closed
    assert ended == ([] if how == "cancelled" else [True])
    assert [event async for event in events] == []


async def test_a_task_that_leaves_in_the_middle_leaves_nothing_behind() -> None:
    body = Waits()

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    async with AsyncClient(transport=httpx.MockTransport(respond)) as client:
        async with client.follow() as events:
            async for event in events:
                assert event == Opened(resumed=False)
                break
        assert body.closed
        assert events.last_id == "i.e.1"  # what was not handed out is not behind us
        async with client.follow(after=events.last_id):
            pass  # nothing was asked for
