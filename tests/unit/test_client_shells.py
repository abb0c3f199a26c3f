"""Both clients on a server that is a function: what they repeat, how they share requests and connections, how they end.

Time is virtual: Trio's clock jumps, and that of the threads' client is moved by its own pauses.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest
import trio

from queue_actor import client_threads
from queue_actor.client import (
    AsyncClient,
    Busy,
    Chunk,
    Client,
    Closed,
    Enqueued,
    Invalid,
    JobState,
    NewJob,
    OutcomeUnknown,
    Refused,
    Unreachable,
)
from queue_actor.client_pool import TasksPool, ThreadsPool
from queue_actor.client_streams import PIECE_LINES
from queue_actor.coalescing import LANES_MAX
from tests.process.server import eventually

pytestmark = pytest.mark.virtual_time

WAIT_SECONDS = 10.0
Respond = Callable[[httpx.Request], httpx.Response]
RespondAsync = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def problem(code: str, status: int, field: str | None = None, **headers: str) -> httpx.Response:
    told = {"code": code, "detail": "this is a test", "field": field}
    return httpx.Response(status, json=told, headers={name.replace("_", "-"): text for name, text in headers.items()})


def enqueued(request: httpx.Request) -> httpx.Response:
    """The answer to an enqueue: the ids are the payloads."""
    jobs = [{"id": job["payload"], "state": "queued"} for job in json.loads(request.content)["jobs"]]
    return httpx.Response(
        200, json={"jobs": jobs, "errors": 0}, headers={"Queue-Instance": "i", "Queue-Durability": "full"}
    )


class Script:
    """Answers one request after the other as it is told, then like `enqueued`; and remembers them."""

    def __init__(self, *answers: httpx.Response | Exception | None) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer or enqueued(request)

    @property
    def keys(self) -> list[str | None]:
        return [request.headers.get("Idempotency-Key") for request in self.requests]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the threads' client, which take no time but move its clock."""
    pauses: list[float] = []
    monkeypatch.setattr(client_threads, "sleep", pauses.append)
    monkeypatch.setattr(client_threads, "monotonic", lambda: sum(pauses))
    return pauses


def threads(respond: Respond, **options: Any) -> Client:
    return Client(transport=httpx.MockTransport(respond), **options)


def tasks(respond: Respond | RespondAsync, **options: Any) -> AsyncClient:
    return AsyncClient(transport=httpx.MockTransport(respond), **options)


JOB = {
    "queue": "q", "id": 1, "type": "t", "state": "queued", "priority": 0, "meta": {}, "traceparent": None,
    "unique_key": None, "created_at": "2027-01-15T08:00:00Z", "not_before": None, "expires_at": None,
    "attempts": 1, "fails": 0, "stales": 0, "max_attempts": None, "consumer": None, "lease": None,
    "cancel_requested": False, "reason": None, "finished_at": None,
}  # fmt: skip
QUEUE = {
    "name": "q", "exists": True, "paused": False, "declared": False, "counts": {}, "oldest_age_seconds": None,
    "per_minute": {}, "waiters": 0, "consumers": [], "last_id": 0, "policy": {},
}  # fmt: skip

BROKE = httpx.ReadError("reset")
NOBODY = httpx.ConnectError("refused")


# --- repeats


@pytest.mark.parametrize("coalesce", [True, False])
async def test_an_enqueue_is_repeated_under_its_key_until_there_is_an_answer(
    coalesce: bool, slept: list[float]
) -> None:
    def failures() -> Script:
        return Script(NOBODY, BROKE, problem("busy", 503, Retry_After="2"), problem("outcome_unknown", 503))

    script = failures()
    with threads(script, coalesce=coalesce) as client:
        assert client.enqueue("q", "t", 7) == Enqueued(7, JobState.QUEUED)
        assert (client.instance, client.durability) == ("i", "full")
    assert len(script.requests) == 5
    assert len(set(script.keys[1:])) == 1  # of the first nothing was sent
    assert len(slept) == 4
    assert slept[2] > 2

    script = failures()
    began = trio.current_time()
    async with tasks(script, coalesce=coalesce) as asked:
        assert await asked.enqueue("q", "t", 7) == Enqueued(7, JobState.QUEUED)
        assert (asked.instance, asked.durability) == ("i", "full")
    assert len(script.requests) == 5
    assert 2 < trio.current_time() - began < 3


@pytest.mark.parametrize("coalesce", [True, False])
async def test_repeats_have_an_end(coalesce: bool, slept: list[float]) -> None:
    def never(_: httpx.Request) -> httpx.Response:
        raise BROKE

    with threads(never, repeat_seconds=20, coalesce=coalesce) as client, pytest.raises(Unreachable) as broke:
        client.enqueue("q", "t", 1)
    assert broke.value.may_be_done
    assert 10 < sum(slept) <= 20
    began = trio.current_time()
    async with tasks(never, repeat_seconds=20, coalesce=coalesce) as asked:
        with pytest.raises(Unreachable):
            await asked.enqueue("q", "t", 1)
    assert 10 < trio.current_time() - began <= 20


async def test_what_is_not_safe_is_not_repeated(slept: list[float]) -> None:
    for fail, kind in ((lambda: BROKE, Unreachable), (lambda: problem("internal", 500), OutcomeUnknown)):
        script = Script(fail())
        with threads(script) as client, pytest.raises(kind):
            client.redrive("q", 1)
        assert (len(script.requests), slept) == (1, [])
        script = Script(fail())
        async with tasks(script) as asked:
            with pytest.raises(kind):
                await asked.redrive("q", 1)
        assert len(script.requests) == 1
    script = Script(problem("draining", 503), httpx.Response(200, json={"id": 1, "queue": "q", "state": "queued"}))
    with threads(script) as client:
        assert client.redrive("q", 1).state is JobState.QUEUED
    assert len(slept) == 1


# --- calls that share requests


def test_threads_that_call_at_the_same_time_share_requests() -> None:
    first, others = threading.Event(), threading.Event()
    sizes: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sizes.append(len(json.loads(request.content)["jobs"]))
        if len(sizes) == 1:
            first.set()
            assert others.wait(WAIT_SECONDS)
        return enqueued(request)

    with threads(respond) as client, ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(client.enqueue, "q", "t", 0)]
        assert first.wait(WAIT_SECONDS)
        futures += [pool.submit(client.enqueue, "q", "t", n) for n in range(1, 20)]
        lane = client._lanes["enqueue", "q"]._lane
        assert eventually(lambda: lane.waiting == 19)
        others.set()
        assert [future.result(WAIT_SECONDS).id for future in futures] == list(range(20))
    assert sizes == [1, 19]


def test_a_thread_that_is_interrupted_while_it_sends_leaves_the_others_to_one_of_them() -> None:
    sending, interrupted = threading.Event(), threading.Event()
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if len(requests) == 1:
            sending.set()
            assert interrupted.wait(WAIT_SECONDS)
            raise KeyboardInterrupt
        return enqueued(request)

    with threads(respond) as client, ThreadPoolExecutor(3) as pool:
        leader = pool.submit(client.enqueue, "q", "t", 0)
        assert sending.wait(WAIT_SECONDS)
        others = [pool.submit(client.enqueue, "q", "t", n) for n in (1, 2)]
        lane = client._lanes["enqueue", "q"]._lane
        assert eventually(lambda: lane.waiting == 2)
        interrupted.set()
        assert isinstance(leader.exception(WAIT_SECONDS), KeyboardInterrupt)
        assert [future.result(WAIT_SECONDS).id for future in others] == [1, 2]
    assert len(requests) == 2  # what was interrupted is not sent again


async def test_tasks_that_call_at_the_same_time_share_requests() -> None:
    sizes: list[int] = []
    answers: list[Enqueued] = []

    async def respond(request: httpx.Request) -> httpx.Response:
        sizes.append(len(json.loads(request.content)["jobs"]))
        await trio.sleep(1)
        return enqueued(request)

    async def call(client: AsyncClient, n: int) -> None:
        answers.extend([await client.enqueue("q", "t", n) for _ in range(3)])

    async with tasks(respond) as client, trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(call, client, n)
    assert sizes == [50, 50, 50]
    assert sorted(answer.id for answer in answers) == sorted([*range(50)] * 3)


async def test_a_lone_task_waits_for_nobody_and_one_that_is_left_alone_only_once() -> None:
    async with tasks(enqueued) as client:
        began = trio.current_time()
        for n in range(5):
            await client.enqueue("q", "t", n)
        assert trio.current_time() == began
        async with trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(client.enqueue, "q", "t", n)
        for n in range(5):
            await client.enqueue("q", "t", n)
        assert trio.current_time() - began == pytest.approx(0.002)


async def test_a_task_that_is_cancelled_takes_nobody_with_it() -> None:
    sent: list[list[int]] = []
    answers: list[Enqueued] = []
    gone = trio.CancelScope()

    async def respond(request: httpx.Request) -> httpx.Response:
        sent.append([job["payload"] for job in json.loads(request.content)["jobs"]])
        await trio.sleep(1)
        return enqueued(request)

    async def call(client: AsyncClient, n: int, scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await client.enqueue("q", "t", n))

    async with tasks(respond) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client, 1, gone)
            nursery.start_soon(call, client, 2, trio.CancelScope())
            await trio.sleep(0.5)
            gone.cancel()  # while its request is under way
        await call(client, 3, trio.CancelScope(deadline=0))
        await call(client, 4, trio.CancelScope(deadline=trio.current_time() + 0.001))  # while it waits for others
        await trio.sleep(0.1)
        await call(client, 5, trio.CancelScope())
    assert [sorted(payloads) for payloads in sent] == [[1, 2], [5]]
    assert [answer.id for answer in answers] == [2, 5]


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(Invalid):  # and no group of one
        async with tasks(lambda _: problem("invalid", 400, "jobs[0].type")) as client:
            await client.enqueue("q", "t")


async def test_calls_that_outlive_the_client_are_ended() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    ended: list[Exception] = []

    async def call(client: AsyncClient) -> None:
        try:
            await client.enqueue("q", "t")
        except Closed as closed:
            ended.append(closed)

    async with trio.open_nursery() as nursery, tasks(never) as client:
        nursery.start_soon(call, client)
        await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1


def test_a_block_that_is_cancelled_ends_at_once_on_trio_and_on_asyncio() -> None:
    async def block(under_way: Callable[[], object]) -> None:
        async def never(_: httpx.Request) -> httpx.Response:
            under_way()
            await anyio.sleep_forever()
            raise AssertionError

        async with tasks(never) as client:
            await client.enqueue("q", "t")

    async def on_asyncio() -> None:
        under_way = asyncio.Event()
        task = asyncio.create_task(block(under_way.set))
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def on_either() -> None:
        with anyio.CancelScope() as scope:
            await block(scope.cancel)
        assert scope.cancelled_caught

    anyio.run(on_asyncio, backend="asyncio")
    for backend in ("asyncio", "trio"):
        anyio.run(on_either, backend=backend)


async def test_an_async_client_is_a_block() -> None:
    client = tasks(enqueued)
    with pytest.raises(RuntimeError, match="async with"):
        await client.enqueue("q", "t", 1)
    await client.__aexit__(None, None, None)


async def test_only_so_many_lanes_are_kept() -> None:
    with threads(enqueued) as client:
        for n in range(LANES_MAX + 1):
            client.enqueue(f"q{n}", "t", 1)
        assert len(client._lanes) == 1
    async with tasks(enqueued) as asked:
        for n in range(LANES_MAX + 1):
            await asked.enqueue(f"q{n}", "t", 1)
        assert len(asked._lanes) == 1


# --- streams and files


def lines(*told: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, content=b"".join(json.dumps(line).encode() + b"\n" for line in told))


async def numbers(count: int) -> AsyncIterator[NewJob]:
    for n in range(count):
        yield NewJob("t", n)


async def test_what_a_stream_was_not_answered_is_sent_again_if_nothing_of_it_was_done(slept: list[float]) -> None:
    def script() -> Script:
        return Script(
            NOBODY,
            problem("starting", 503),
            lines(
                {"lines": 2, "count": 2, "first_id": 1},
                {"lines": 4, "count": 0, "error": {"code": "draining", "detail": "the server ends"}},
            ),
            lines({"lines": 2, "count": 2, "first_id": 3}),
        )

    expected = [Chunk(2, 2, 1), Chunk(4, 2, 3)]
    sent = script()
    with threads(sent) as client:
        assert list(client.enqueue_stream("q", [NewJob("t", n) for n in range(4)])) == expected
    assert [len(request.content.splitlines()) for request in sent.requests] == [4, 4, 4, 2]
    assert len(slept) == 3
    sent = script()
    async with tasks(sent) as asked:
        assert [chunk async for chunk in asked.enqueue_stream("q", numbers(4))] == expected
    assert [len(request.content.splitlines()) for request in sent.requests] == [4, 4, 4, 2]


async def test_a_stream_of_any_length_holds_one_piece_at_a_time(slept: list[float]) -> None:
    made, answered, most = [0], [0], [0]

    def jobs() -> Iterator[bytes]:
        for _ in range(10 * PIECE_LINES + 1):
            made[0] += 1
            most[0] = max(most[0], made[0] - answered[0])
            yield b"{}"

    def respond(request: httpx.Request) -> httpx.Response:
        count = len(request.content.splitlines())
        answered[0] += count
        return lines({"lines": count, "count": count})

    with threads(respond) as client:
        chunks = list(client.enqueue_stream("q", jobs()))
    assert most == [PIECE_LINES]
    assert (len(chunks), chunks[-1].lines, slept) == (11, 10 * PIECE_LINES + 1, [])
    made[0] = answered[0] = most[0] = 0
    async with tasks(respond) as asked:
        assert [chunk async for chunk in asked.enqueue_stream("q", jobs())] == chunks
    assert most == [PIECE_LINES]


class Breaks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"lines":1,"count":1,"first_id":1}\n'
        raise BROKE

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


async def test_a_stream_that_breaks_off_tells_what_was_answered_and_is_not_repeated(slept: list[float]) -> None:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Breaks())

    got: list[Chunk] = []
    with threads(respond) as client, pytest.raises(Unreachable):
        got.extend(client.enqueue_stream("q", [b"{}", b"{}"]))
    assert slept == []
    async with tasks(respond) as asked:
        stream = asked.enqueue_stream("q", [b"{}", b"{}"])
        got.append(await anext(stream))
        with pytest.raises(Unreachable):
            await anext(stream)
    assert got == [Chunk(1, 1, 1)] * 2


async def test_a_backup_waits_for_the_other_one_and_tells_when_it_breaks_off(slept: list[float]) -> None:
    def script() -> Script:
        whole = httpx.Response(200, content=b"SQLite")
        return Script(problem("backup_running", 503, Retry_After="10"), whole, httpx.Response(200, stream=Breaks()))

    with threads(script()) as client:
        with client.backup() as pieces:
            assert b"".join(pieces) == b"SQLite"
        assert slept[0] > 10
        with pytest.raises(Unreachable), client.backup() as pieces:
            list(pieces)
    with threads(Script(problem("not_durable", 409))) as client, pytest.raises(Refused), client.backup():
        pass
    async with tasks(script()) as asked:
        async with asked.backup() as parts:
            assert b"".join([part async for part in parts]) == b"SQLite"
        with pytest.raises(Unreachable):
            async with asked.backup() as parts:
                assert [part async for part in parts]
    async with tasks(Script(problem("not_durable", 409))) as asked:
        with pytest.raises(Refused):
            async with asked.backup():
                pass


# --- waits and lists


async def test_a_wait_goes_on_until_the_job_has_ended_or_the_time_is_up(slept: list[float]) -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        wait = request.url.params.get("wait_seconds", "0")
        asked.append(wait)
        if float(wait) > 10:
            return problem("invalid", 400, "wait_seconds")
        slept.append(float(wait))
        return httpx.Response(200, json=JOB | {"state": "concluded" if len(asked) > 3 else "queued"})

    with threads(respond) as client:
        assert client.wait_for_end("q", 1).finished
        assert asked == ["20.000", "10.000", "10.000", "10.000"]
        asked.clear()
        slept.clear()
        assert not client.wait_for_end("q", 1, seconds=0).finished
        assert asked == ["0"]
    asked.clear()
    async with tasks(respond) as client_of_tasks:
        assert (await client_of_tasks.wait_for_end("q", 1)).finished
    assert len(asked) == 4


async def test_pages_are_asked_for_until_the_last() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("cursor")
        following = {"next_cursor": None if cursor else "7"}
        return httpx.Response(200, json={"jobs": [JOB], "queues": [QUEUE], **following})

    with threads(respond) as client:
        assert [job.id for job in client.jobs("q")] == [1, 1]
        assert [queue.name for queue in client.queues()] == ["q", "q"]
    async with tasks(respond) as asked:
        assert [job.id async for job in asked.jobs("q")] == [1, 1]
        assert [queue.name async for queue in asked.queues()] == ["q", "q"]


# --- connections


class Connection(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers when it is let, and counts."""

    made: list["Connection"] = []  # noqa: RUF012 - emptied by each test

    def __init__(self) -> None:
        self.made.append(self)
        self.requests = 0
        self.closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if request.url.path == "/broken":
            raise BROKE
        return httpx.Response(200, stream=httpx.ByteStream(b"pong"))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.close()


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Connection.made.clear()


def request(path: str = "/") -> httpx.Request:
    return httpx.Request("GET", f"http://localhost{path}", extensions={"timeout": {"pool": 0.01}})


def test_the_connection_used_last_is_used_next_and_no_more_are_made_than_needed() -> None:
    pool = ThreadsPool(Connection, 2)
    with httpx.Client(transport=pool) as client:
        for _ in range(3):
            assert client.get("http://localhost/").text == "pong"
        assert [made.requests for made in Connection.made] == [3]
        first, second = pool.handle_request(request()), pool.handle_request(request())
        with pytest.raises(httpx.PoolTimeout):
            pool.handle_request(request())
        first.close()
        with pytest.raises(httpx.ReadError):
            pool.handle_request(request("/broken"))
        pool.handle_request(request()).close()
        assert [made.requests for made in Connection.made] == [6, 1]
        assert not Connection.made[0].closed
        second.close()
    assert [made.closed for made in Connection.made] == [True, True]


def test_an_async_client_may_be_made_before_there_is_an_event_loop() -> None:
    client = AsyncClient("http://127.0.0.1:1", repeat_seconds=0)  # where nobody is

    async def main() -> None:
        async with client:
            with pytest.raises(Unreachable):
                await client.enqueue("q", "t")

    anyio.run(main, backend="asyncio")


async def test_so_do_tasks() -> None:
    pool = TasksPool(Connection, 2)
    async with httpx.AsyncClient(transport=pool) as client:
        for _ in range(3):
            assert (await client.get("http://localhost/")).text == "pong"
        assert [made.requests for made in Connection.made] == [3]
        first, second = await pool.handle_async_request(request()), await pool.handle_async_request(request())
        with pytest.raises(httpx.PoolTimeout):
            await pool.handle_async_request(request())
        await first.aclose()
        with pytest.raises(httpx.ReadError):
            await pool.handle_async_request(request("/broken"))
        await (await pool.handle_async_request(request())).aclose()
        assert [made.requests for made in Connection.made] == [6, 1]
        await second.aclose()
    assert [made.closed for made in Connection.made] == [True, True]


async def test_a_refusal_that_is_no_repeat_is_raised_by_whoever_asked(slept: list[float]) -> None:
    with threads(lambda _: problem("queue_full", 429, Retry_After="60"), repeat_seconds=5) as client:
        for call in (lambda: client.enqueue("q", "t"), lambda: client.enqueue_many("q", [NewJob("t")])):
            with pytest.raises(Busy):
                call()
        with pytest.raises(Busy):
            list(client.enqueue_stream("q", [NewJob("t")]))
    assert slept == []
    async with tasks(lambda _: problem("queue_full", 429, Retry_After="60"), repeat_seconds=5) as asked:
        with anyio.fail_after(1), pytest.raises(Busy):
            assert [chunk async for chunk in asked.enqueue_stream("q", [NewJob("t")])]
