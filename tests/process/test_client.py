"""The client against the real server: every verb and every refusal that can be had, through each of its shells."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import anyio.lowlevel
import msgspec
import pytest

from queue_actor.client import (
    AsyncClient,
    Claim,
    ConcludeClaim,
    Conflict,
    DeathReason,
    Dequeue,
    Enqueued,
    ExtendClaim,
    FailClaim,
    Invalid,
    Job,
    JobError,
    JobState,
    LeaseLost,
    NewJob,
    OnExisting,
    Outcome,
    Refused,
    ReleaseClaim,
    Retry,
    UniqueKeyTaken,
    UniqueUntil,
    UnknownJob,
    UnknownQueue,
)
from queue_actor.client_exchange import Request
from queue_actor.jobs import Jitter, RetryKind
from tests.process.server import Server, running_server
from tests.process.shells import SHELLS, scenario, through

pytestmark = pytest.mark.process

FLAGS = ("--payload-bytes-max", "1000", "--wait-seconds-max", "5")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(*FLAGS) as server:
        yield server
        assert server.complaints() == []


@dataclass
class Size:
    """A payload of one's own."""

    width: int
    height: int


async def lease(client: AsyncClient, queue: str, count: int = 1, **fields: float) -> list[Job]:
    """Jobs that are enqueued and dequeued."""
    await client.enqueue_many(queue, [NewJob("t", {"n": n}) for n in range(count)])
    jobs = await client.dequeue(queue, count=count, consumer="w1", **fields)  # type: ignore[arg-type] # one of them
    assert len(jobs) == count
    return list(jobs)


def refused(kind: type[Refused], code: str, field: str | None = None) -> pytest.RaisesExc[Refused]:
    """The expectation of a refusal; `field` if that matters."""

    def is_it(error: Refused) -> bool:
        return error.code == code and (field is None or error.field == field)

    return pytest.RaisesExc(kind, check=is_it)


# --- enqueue


@scenario
async def test_a_job_goes_from_its_producer_to_its_worker_and_back(client: AsyncClient, queue: str) -> None:
    assert await client.enqueue(queue, "resize", {"w": 1280}, meta={"tenant": "a"}) == Enqueued(1, JobState.QUEUED)
    assert client.durability == "memory"
    assert len(client.instance) == 16
    (job,) = await client.dequeue(queue, consumer="w1", lease_seconds=60)
    assert (job.queue, job.id, job.type, job.payload, job.meta) == (queue, 1, "resize", {"w": 1280}, {"tenant": "a"})
    assert job.state is JobState.IN_PROGRESS
    assert not job.finished
    assert job.lease is not None
    assert job.lease.token == job.token
    assert job.lease.seconds == 60
    assert job.lease.fence > 0
    assert abs(job.lease.expires_at - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=30)
    assert (await client.conclude(job, {"bytes": 48213})).state is JobState.CONCLUDED
    ended = await client.wait_for_end(queue, job.id)
    assert ended.finished
    assert ended.result == {"bytes": 48213}
    assert ended.history[0].outcome is Outcome.CONCLUDED
    assert (ended.lease, ended.token) == (None, "")


@scenario
async def test_every_field_of_a_job_is_sent_and_shown(client: AsyncClient, queue: str) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    await client.enqueue(
        queue,
        "t",
        Size(3, 4),
        priority=7,
        not_before=later,
        ttl_seconds=7200,
        max_attempts=3,
        retry=Retry(RetryKind.FIXED, base_seconds=5, jitter=Jitter.NONE),
        lease_seconds=11,
        unique_key="k",
        unique_until=UniqueUntil.STARTED,
        on_existing=OnExisting.REFUSE,
        meta={"a": "b"},
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    job = await client.read_job(queue, 1)
    assert (job.state, job.priority, job.not_before, job.max_attempts) == (JobState.SCHEDULED, 7, later, 3)
    assert (job.unique_key, job.meta) == ("k", {"a": "b"})
    assert job.traceparent == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert job.payload_as(Size) == Size(3, 4)
    assert job.payload_bytes == b'{"width":3,"height":4}'
    assert job.expires_at is not None
    assert (await client.enqueue(queue, "t", delay_seconds=30)).state is JobState.SCHEDULED


@scenario
async def test_a_raw_payload_is_sent_as_it_is(client: AsyncClient, queue: str) -> None:
    await client.enqueue(queue, "t", msgspec.Raw(b'{"a" :\n 1.0}'))
    (job,) = await client.dequeue(queue)
    assert job.payload_bytes == b'{"a" :\n 1.0}'
    await client.conclude(job, msgspec.Raw(b"[ ]"))
    assert (await client.read_job(queue, 1)).result_bytes == b"[ ]"
    with pytest.raises(msgspec.DecodeError):
        await client.enqueue(queue, "t", msgspec.Raw(b'1},{"type":"u"'))
    assert (await client.read_queue(queue)).last_id == 1


@scenario
async def test_a_unique_key_has_one_job(client: AsyncClient, queue: str) -> None:
    assert not (await client.enqueue(queue, "t", 1, unique_key="k")).existing
    assert (await client.enqueue(queue, "t", 2, unique_key="k")) == Enqueued(1, JobState.QUEUED, existing=True)
    assert (await client.enqueue(queue, "t", 3, unique_key="k", on_existing="replace")).id == 1
    assert (await client.read_job(queue, 1)).payload == 3
    with refused(UniqueKeyTaken, "unique_key_taken", "unique_key"):
        await client.enqueue(queue, "t", unique_key="k", on_existing="refuse")
    results = await client.enqueue_many(
        queue, [NewJob("t", unique_key="k", on_existing="refuse"), NewJob("t"), NewJob("t", unique_key="k")]
    )
    assert [type(job) for job in results] == [UniqueKeyTaken, Enqueued, Enqueued]
    assert len(results) == 3
    assert [job.id for job in results.done] == [2, 1]
    assert [error.code for error in results.refused] == ["unique_key_taken"]


@scenario
async def test_a_wrong_job_is_refused_and_its_field_named(client: AsyncClient, queue: str) -> None:
    with refused(Invalid, "invalid", "priority"):
        await client.enqueue(queue, "t", priority=101)
    with refused(Invalid, "invalid", "type"):
        await client.enqueue(queue, "")
    with refused(Invalid, "too_large", "payload"):
        await client.enqueue(queue, "t", "x" * 1000)
    with refused(Invalid, "invalid", "jobs[1].type"):
        await client.enqueue_many(queue, [NewJob("t"), NewJob("")])
    with refused(Invalid, "invalid", "jobs"):
        await client.enqueue_many(queue, [])
    with refused(Invalid, "invalid", "queue"):
        await client.enqueue("a queue", "t")
    with refused(Invalid, "invalid", "not_before"):
        await client.enqueue(queue, "t", not_before=datetime(2027, 1, 1))  # noqa: DTZ001 - one without an offset
    assert not (await client.read_queue(queue)).exists


@scenario
async def test_a_key_of_the_callers_own_stands_for_one_enqueue(client: AsyncClient, queue: str) -> None:
    for _ in range(2):
        assert (await client.enqueue(queue, "t", idempotency_key="k")).id == 1
        assert (await client.enqueue_many(queue, [NewJob("u")], idempotency_key="l")).done[0].id == 2
    with refused(Invalid, "key_reused", "Idempotency-Key"):
        await client.enqueue(queue, "other", idempotency_key="k")
    leases = [await client.dequeue(queue, count=2, idempotency_key="d") for _ in range(2)]
    assert [job.token for job in leases[0]] == [job.token for job in leases[1]]


@scenario
async def test_calls_at_the_same_time_have_each_its_own_answer(client: AsyncClient, queue: str) -> None:
    told: dict[int, object] = {}

    async def enqueue(n: int) -> None:
        try:
            # Every third is refused: none of its neighbours may be.
            told[n] = await client.enqueue(queue, "t", n, priority=n if n % 3 else 1000 + n)
        except Invalid as error:
            told[n] = error.field

    async with anyio.create_task_group() as tasks:
        for n in range(30):
            tasks.start_soon(enqueue, n)
    for n, answer in told.items():
        if n % 3:
            assert isinstance(answer, Enqueued)
            assert (await client.read_job(queue, answer.id)).payload == n
        else:
            assert answer == "priority"
    assert (await client.read_queue(queue)).last_id == 20

    jobs = await client.dequeue(queue, count=100)
    stolen = Claim(queue=queue, id=jobs[0].id, token=jobs[1].token)
    ended: dict[int, object] = {}

    async def conclude(job: Job | Claim, result: object) -> None:
        try:
            ended[job.id] = (await client.conclude(job, result)).id
        except (Invalid, LeaseLost) as error:
            ended[job.id] = error.code, error.field

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conclude, stolen, None)
        tasks.start_soon(conclude, jobs[1], "x" * 1000)
        for job in jobs[2:]:
            tasks.start_soon(conclude, job, job.id)
    assert ended.pop(jobs[0].id) == ("lease_lost", "token")
    assert ended.pop(jobs[1].id) == ("too_large", "result")
    assert ended == {job.id: job.id for job in jobs[2:]}
    assert (await client.read_job(queue, jobs[5].id)).result == jobs[5].id


@scenario
async def test_a_stream_of_jobs_is_answered_chunk_by_chunk(client: AsyncClient, queue: str) -> None:
    jobs: list[NewJob | bytes] = [NewJob("t", n) for n in range(9_000)]
    jobs[7] = b'{"typ": "t"}\n'
    jobs[8_500] = b"{"
    jobs[20] = b""
    jobs[21] = msgspec.json.encode({"type": "t", "payload": msgspec.Raw(b"[1,\n2]")})
    chunks = [chunk async for chunk in client.enqueue_stream(queue, jobs)]
    assert len(chunks) > 8
    assert chunks[-1].lines == 9_000
    assert sum(chunk.count for chunk in chunks) == 8_997
    assert [(e.line, e.code) for chunk in chunks for e in chunk.errors] == [(8, "invalid"), (8_501, "malformed")]
    assert (chunks[0].first_id, chunks[0].existing) == (1, 0)
    assert (await client.read_queue(queue)).counts["queued"] == 8_997
    assert [chunk async for chunk in client.enqueue_stream(queue, [])] == []
    assert [chunk async for chunk in client.enqueue_stream(queue, [b"", b"\n"])] == []
    with refused(Invalid, "invalid", "queue"):
        [chunk async for chunk in client.enqueue_stream("no queue", [b"{}"])]


# --- dequeue


@scenario
async def test_a_dequeue_is_from_one_queue_several_or_a_prefix(client: AsyncClient, queue: str) -> None:
    assert list(await client.dequeue(queue)) == []
    assert not (await client.read_queue(queue)).exists
    for name in ("a", "b", "c"):
        await client.enqueue(f"{queue}:{name}", "t")
    assert [job.queue for job in await client.dequeue(f"{queue}:a")] == [f"{queue}:a"]
    assert [job.queue for job in await client.dequeue([f"{queue}:a", f"{queue}:b"])] == [f"{queue}:b"]
    assert [job.queue for job in await client.dequeue(f"{queue}:*", count=5, order="fair")] == [f"{queue}:c"]
    with refused(Invalid, "invalid", "count"):
        await client.dequeue(queue, count=0)


@scenario
async def test_a_dequeue_waits_for_a_job(client: AsyncClient, queue: str) -> None:
    got: list[Job] = []

    async def wait() -> None:
        got.extend(await client.dequeue(queue, wait_seconds=5))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while (await client.read_queue(queue)).waiters == 0:
            await anyio.lowlevel.checkpoint()
        await client.enqueue(queue, "t")
    assert [job.id for job in got] == [1]
    assert list(await client.dequeue(queue, wait_seconds=0.01)) == []
    with refused(Invalid, "invalid", "wait_seconds"):
        await client.dequeue(queue, wait_seconds=6)


@pytest.mark.parametrize("name", ["trio", "asyncio"])
def test_a_wait_that_is_cancelled_is_never_leased_to(server: Server, name: str) -> None:
    async def play(client: AsyncClient, queue: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(client.dequeue, queue, wait_seconds=5))
            while (await client.read_queue(queue)).waiters == 0:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        while (await client.read_queue(queue)).waiters:
            await anyio.lowlevel.checkpoint()
        await client.enqueue(queue, "t")
        (job,) = await client.dequeue(queue)
        assert job.attempts == 1

    through(SHELLS[name], f"http://{server.host}:{server.port}", play)


# --- the end of an attempt


@scenario
async def test_a_token_that_holds_nothing_is_lease_lost(client: AsyncClient, queue: str) -> None:
    (job,) = await lease(client, queue)
    wrong = Claim(queue=queue, id=job.id, token="stolen")  # noqa: S106 - none
    for verb in (client.conclude, client.fail, client.extend, client.release):
        with refused(LeaseLost, "lease_lost", "token"):
            await verb(wrong)
        with refused(UnknownJob, "unknown_job"):
            await verb(Claim(queue=queue, id=99, token=job.token))
    assert (await client.extend(job)).state is JobState.IN_PROGRESS


@scenario
async def test_a_failed_attempt_tells_why_and_is_tried_again(client: AsyncClient, queue: str) -> None:
    await client.put_queue(queue, max_attempts=2)
    (job,) = await lease(client, queue)
    assert (await client.fail(job, ValueError("no disk"), retry_after_seconds=0)).state is JobState.QUEUED
    (job,) = await client.dequeue(queue)
    assert (job.attempts, job.fails) == (2, 1)
    assert (await client.fail(job, JobError("Timeout", "again"))).state is JobState.DEAD
    dead = await client.read_job(queue, job.id)
    assert dead.reason is DeathReason.FAILED
    assert [attempt.error for attempt in dead.history] == [
        JobError("ValueError", "no disk"),
        JobError("Timeout", "again"),
    ]
    assert (await client.redrive(queue, job.id)).state is JobState.QUEUED
    (job,) = await client.dequeue(queue)
    assert (await client.fail(job, retry=False)).state is JobState.DEAD
    assert (await client.read_job(queue, job.id)).reason is DeathReason.KILLED
    with refused(Invalid, "invalid", "retry_after_seconds"):
        await client.fail(job, retry=False, retry_after_seconds=1)


@scenario
async def test_an_extend_tells_progress_and_of_a_cancel(client: AsyncClient, queue: str) -> None:
    (job,) = await lease(client, queue)
    extended = await client.extend(job, lease_seconds=77, progress={"percent": 40})
    assert extended.lease is not None
    assert (extended.lease.seconds, extended.cancel_requested) == (77, False)
    assert (await client.read_job(queue, job.id)).progress == {"percent": 40}
    assert (await client.cancel(queue, job.id)).state is JobState.IN_PROGRESS
    assert (await client.extend(job)).cancel_requested
    assert (await client.release(job)).state is JobState.CANCELLED
    with refused(Invalid, "invalid", "lease_seconds"):
        await client.extend(job, lease_seconds=0)


@scenario
async def test_an_attempt_may_last_only_so_long(client: AsyncClient, queue: str) -> None:
    await client.put_queue(queue, run_seconds_max=5)
    (job,) = await lease(client, queue)
    with refused(Conflict, "run_too_long"):
        await client.extend(job, lease_seconds=60)


@scenario
async def test_a_released_job_is_the_next(client: AsyncClient, queue: str) -> None:
    (job,) = await lease(client, queue)
    assert (await client.release(job)).state is JobState.QUEUED
    (job,) = await client.dequeue(queue)
    assert (await client.release(job, delay_seconds=60)).state is JobState.SCHEDULED
    assert (await client.run(queue, job.id)).state is JobState.QUEUED


@scenario
async def test_many_are_answered_each_for_itself(client: AsyncClient, queue: str) -> None:
    jobs = await lease(client, queue, 8)
    wrong = Claim(queue=queue, id=99, token="t")  # noqa: S106 - none
    extended = await client.extend_many([ExtendClaim.of(jobs[0], lease_seconds=9), ExtendClaim.of(wrong)])
    assert extended.done[0].lease is not None
    assert extended.done[0].lease.seconds == 9
    concluded = await client.conclude_many([ConcludeClaim.of(jobs[0], result=1), ConcludeClaim.of(wrong)])
    failed = await client.fail_many([FailClaim.of(jobs[1], retry=False), FailClaim.of(wrong)])
    released = await client.release_many([ReleaseClaim.of(jobs[2], delay_seconds=60), ReleaseClaim.of(wrong)])
    for results, state in ((concluded, "concluded"), (failed, "dead"), (released, "scheduled")):
        assert [job.state for job in results.done] == [state]
        assert [type(error) for error in results.refused] == [UnknownJob]
    other = f"{queue}-other"
    (there,) = await lease(client, other)
    across = await client.conclude_many([ConcludeClaim.of(jobs[3]), ConcludeClaim.of(there)])
    assert [(job.queue, job.state) for job in across.done] == [(queue, "concluded"), (other, "concluded")]
    with refused(Invalid, "invalid", "dequeue.queue"):
        await client.conclude_many([ConcludeClaim.of(jobs[4]), ConcludeClaim.of(there)], dequeue=Dequeue(consumer="w1"))


@scenario
async def test_a_verb_may_ask_for_the_next_job(client: AsyncClient, queue: str) -> None:
    await client.enqueue_many(queue, [NewJob("t", n) for n in range(5)])
    (job,) = await client.dequeue(queue)
    for verb in (client.conclude, client.fail, client.release):
        settled = await verb(job, dequeue=Dequeue(consumer="w2"))
        assert settled.dequeued is not None
        assert settled.dequeued.refused is None
        (job,) = settled.dequeued.jobs
        assert job.consumer == "w2"
    results = await client.conclude_many([ConcludeClaim.of(job)], dequeue=Dequeue(5, queues=[queue], order="fair"))
    assert results.dequeued is not None
    assert len(results.dequeued.jobs) >= 1
    assert all(job.token for job in results.dequeued.jobs)
    with refused(Invalid, "invalid", "dequeue.count"):
        await client.conclude(results.dequeued.jobs[0], dequeue=Dequeue(0))
    assert (await client.conclude(job)).dequeued is None


# --- look


@scenario
async def test_jobs_are_searched_page_by_page(client: AsyncClient, queue: str) -> None:
    await client.enqueue_many(queue, [NewJob("even" if n % 2 == 0 else "odd", n) for n in range(10)])
    page = await client.search(queue, type="odd", limit=2, order="newest", content=True)
    assert [job.payload for job in page.items] == [9, 7]
    assert page.next_cursor is not None
    page = await client.search(queue, type="odd", limit=2, order="newest", cursor=page.next_cursor)
    assert [job.id for job in page.items] == [6, 4]
    assert [job.payload for job in page.items] == [None, None]
    assert [job.id async for job in client.jobs(queue, type="even", limit=2)] == [1, 3, 5, 7, 9]
    (job,) = await client.dequeue(queue, consumer="w1")
    await client.fail(job, JobError("Timeout", "no disk"), retry_after_seconds=60)
    assert [job.id async for job in client.jobs(queue, error="disk", consumer="w1")] == [1]
    assert [job.id async for job in client.jobs(queue, state="scheduled")] == [1]
    assert len([job async for job in client.jobs(queue, state=["scheduled", "queued"], limit=4)]) == 10
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert [job async for job in client.jobs(queue, since=soon)] == []
    assert len([job async for job in client.jobs(queue, since=soon - timedelta(hours=1))]) == 10
    with refused(Invalid, "invalid", "limit"):
        await client.search(queue, limit=0)
    with refused(Invalid, "invalid", "state"):
        await client.search(queue, state="lost")


@scenario
async def test_queues_are_listed_page_by_page(client: AsyncClient, queue: str) -> None:
    for n in range(5):
        await client.enqueue(f"{queue}:{n}", "t")
    page = await client.list_queues(prefix=f"{queue}:", limit=2)
    assert [found.name for found in page.items] == [f"{queue}:0", f"{queue}:1"]
    page = await client.list_queues(prefix=f"{queue}:", limit=2, cursor=page.next_cursor)
    assert [found.name for found in page.items] == [f"{queue}:2", f"{queue}:3"]
    assert [found.name async for found in client.queues(prefix=f"{queue}:")] == [f"{queue}:{n}" for n in range(5)]
    found = await client.read_queue(f"{queue}:0")
    assert (found.exists, found.counts["queued"], found.policy.max_attempts) == (True, 1, 25)
    assert found.consumers == ()


@scenario
async def test_a_reader_waits_for_the_end_of_a_job(client: AsyncClient, queue: str) -> None:
    (job,) = await lease(client, queue)
    assert (await client.wait_for_end(queue, job.id, seconds=0.01)).state is JobState.IN_PROGRESS
    ends: list[JobState] = []

    async def wait() -> None:
        ends.append((await client.wait_for_end(queue, job.id)).state)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await client.conclude(job)
    assert ends == [JobState.CONCLUDED]
    with refused(UnknownJob, "unknown_job"):
        await client.wait_for_end(queue, 99)
    with refused(Invalid, "invalid", "id"):
        await client.wait_for_end(queue, 2**60)


@scenario
async def test_the_server_tells_its_figures(client: AsyncClient, queue: str) -> None:
    await client.enqueue(queue, "t")
    figures = await client.statistics()
    assert (figures.instance, figures.durability, figures.store) == (client.instance, "memory", None)
    assert await client.get("/readyz") == '{"status":"ready"}'
    assert "queue_actor_jobs" in await client.get("/metrics")
    with refused(Conflict, "not_durable"):
        async with client.backup():
            pass


@scenario
async def test_queues_and_jobs_are_looked_at(client: AsyncClient, queue: str) -> None:
    job = await client.enqueue(queue, "t", delay_seconds=60)
    seen = await client.overview(prefix=queue, order="name", limit=1)
    while not seen.queues:  # all who look within half a second see the same
        seen = await client.overview(prefix=queue, order="name", limit=1)
    assert [(each.name, each.counts["scheduled"]) for each in seen.queues] == [(queue, 1)]
    assert len((await client.trend(queue)).trend["enqueue"]) == len(seen.queues[0].trend["enqueue"])
    why = await client.why(queue, job.id)
    assert why.why == "scheduled"
    assert why.seconds is not None
    assert why.seconds > 0
    assert (await client.access()).name is None
    assert (await client.cancel_matching(queue, dry_run=True)).count == 1
    assert (await client.cancel_matching(queue)).count == 1
    assert (await client.read_job(queue, job.id)).state is JobState.CANCELLED


# --- operate


@scenario
async def test_a_queue_has_a_policy_and_is_paused(client: AsyncClient, queue: str) -> None:
    made = await client.put_queue(queue, paused=True, max_attempts=3, retry=Retry(RetryKind.FIXED), in_progress_max=1)
    assert (made.exists, made.declared, made.paused) == (True, True, True)
    assert (made.policy.max_attempts, made.policy.max_stale, made.policy.retry.kind) == (3, 5, RetryKind.FIXED)
    enqueued = await client.enqueue(queue, "t")
    assert list(await client.dequeue(queue)) == []
    assert not (await client.resume(queue)).paused
    assert len(await client.dequeue(queue)) == 1
    assert (await client.pause(queue)).paused
    assert (await client.put_queue(queue, max_attempts=None)).policy.max_attempts is None
    with refused(Invalid, "invalid", "max_attempts"):
        await client.put_queue(queue, max_attempts=0)
    with refused(Conflict, "queue_not_empty"):
        await client.delete_queue(queue)
    await client.take_back(queue, enqueued.id)
    await client.purge(queue, state="queued")
    assert not (await client.delete_queue(queue)).exists
    for verb in (client.pause, client.resume, client.delete_queue):
        with refused(UnknownQueue, "unknown_queue"):
            await verb(queue)


@scenario
async def test_an_operator_moves_one_job(client: AsyncClient, queue: str) -> None:
    (job,) = await lease(client, queue)
    with refused(Conflict, "not_waiting"):
        await client.run(queue, job.id)
    with refused(Conflict, "not_finished"):
        await client.redrive(queue, job.id)
    with refused(Conflict, "not_finished"):
        await client.forget(queue, job.id)
    assert (await client.take_back(queue, job.id)).state is JobState.QUEUED
    with refused(LeaseLost, "not_in_progress"):
        await client.take_back(queue, job.id)
    with refused(LeaseLost, "lease_lost"):
        await client.conclude(job)
    assert (await client.cancel(queue, job.id)).state is JobState.CANCELLED
    assert (await client.redrive(queue, job.id)).state is JobState.QUEUED
    (job,) = await client.dequeue(queue)
    await client.conclude(job)
    with refused(Conflict, "already_finished"):
        await client.cancel(queue, job.id)
    assert (await client.forget(queue, job.id)).state is JobState.CONCLUDED
    with refused(UnknownJob, "forgotten"):
        await client.read_job(queue, job.id)


@scenario
async def test_an_operator_moves_all_that_match(client: AsyncClient, queue: str) -> None:
    jobs = await lease(client, queue, 4)
    assert (await client.take_back_matching(queue, consumer="w1", dry_run=True)).count == 4
    for job in jobs[:2]:
        await client.fail(job, JobError("Timeout"), retry=False)
    moved = await client.redrive_matching(queue, state=["dead"], error="Timeout", dry_run=True)
    assert (moved.count, moved.refused, moved.dry_run) == (2, 0, True)
    assert (await client.redrive_matching(queue, type="t", per_second=0.01)).count == 2
    assert (await client.take_back_matching(queue, consumer="w1")).count == 2
    since = datetime.now(UTC) - timedelta(hours=1)
    assert (await client.purge(queue, state=["queued", "scheduled"], since=since)).count == 4
    with refused(Invalid, "invalid", "consumer"):
        await client.take_back_matching(queue)
    with refused(UnknownQueue, "unknown_queue"):
        await client.purge(f"{queue}-none", state="dead")


# --- what the client would not say by itself


@scenario
async def test_a_request_of_ones_own_is_refused_like_any_other(client: AsyncClient, queue: str) -> None:
    def request(method: str, path: str, body: bytes = b"", **headers: str) -> Request[str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Request(method=method, path=path, body=body, headers=named, reader=bytes.decode)

    enqueue = f"/v1/queues/{queue}/enqueue"
    for kind, code, sent in (
        (Invalid, "malformed", request("POST", enqueue, b"{")),
        (Invalid, "not_found", request("GET", "/v2")),
        (Invalid, "method_not_allowed", request("PATCH", enqueue)),
        (Invalid, "unsupported_media_type", request("POST", "/v1/dequeue", Content_Type="application/x-ndjson")),
        (Invalid, "headers_too_large", request("GET", "/v1/queues", X_Large="x" * 17_000)),
        (Invalid, "too_large", request("POST", enqueue, b" " * 1_100_000)),
        (Refused, "foreign_host", request("GET", "/v1/queues", Host="example.org")),
        (Refused, "foreign_origin", request("GET", "/v1/queues", Origin="http://example.org")),
    ):
        with refused(kind, code):
            await client.send(sent)
