"""What every engine promises, command by command. Each test runs on each engine, in virtual time."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from queue_actor.commands import (
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    Extend,
    ExtendClaim,
    Lease,
    NewJob,
    Position,
    QueueView,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Release,
    ReleaseClaim,
    Sweep,
    Swept,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import (
    AlreadyFinished,
    Busy,
    Draining,
    ForgottenJob,
    LeaseLost,
    MemoryFull,
    NotInProgress,
    OtherConsumer,
    OutcomeUnknown,
    QueueError,
    QueueFull,
    TooManyQueues,
    TooManyWaiters,
    UnknownJob,
)
from queue_actor.jobs import Attempt, Job, JobState, Now, Outcome
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.fakes import EPOCH_SECONDS, SECRET, Call, FakeClock, FakeStore, jump

pytestmark = pytest.mark.virtual_time

HOUR_SECONDS = 3_600.0
FENCE = int(EPOCH_SECONDS * 1_000_000)  # of the first lease of a queue that was made when the test began
IDLE = EngineStatistics(inbox_requests=0, waiters=0)


async def enqueue(engine: Engine, *types: str, queue: str = "q", **options: Any) -> Sequence[Job]:
    return (await engine.execute(Enqueue(queue, [NewJob(type_, **options) for type_ in types]))).jobs


async def dequeue(engine: Engine, count: int = 1, *, queue: str = "q", **options: Any) -> Sequence[Lease]:
    return list((await engine.execute(Dequeue(queue, count, **options))).leases)


async def lease(engine: Engine, **options: Any) -> Lease:
    """The lease of a new job."""
    await enqueue(engine, "a")
    (leased,) = await dequeue(engine, **options)
    return leased


async def read(engine: Engine, id_: int, queue: str = "q") -> Job:
    return await engine.execute(ReadJob(queue, id_))


async def counts(engine: Engine, queue: str = "q") -> dict[str, int]:
    """How many jobs are in which state, states without a job left out."""
    view = await engine.execute(ReadQueue(queue))
    return {state.value: count for state, count in view.counts.items() if count}


async def conclude(engine: Engine, leased: Lease) -> Job:
    return (await engine.execute(Conclude([shown(leased)]))).single()


def shown(leased: Lease) -> Claim:
    """The claim of a worker who shows his token."""
    return Claim(leased.job.queue, leased.job.id, leased.token)


def to_release(leased: Lease, delay_seconds: float = 0.0) -> ReleaseClaim:
    return ReleaseClaim(leased.job.queue, leased.job.id, leased.token, delay_seconds=delay_seconds)


def to_extend(leased: Lease, lease_seconds: float | None = None) -> ExtendClaim:
    return ExtendClaim(leased.job.queue, leased.job.id, leased.token, lease_seconds=lease_seconds)


def types(leases: Sequence[Lease]) -> list[str]:
    return [leased.job.type for leased in leases]


async def pass_time(seconds: float) -> None:
    """Let time pass, and whoever wakes at the end of it do his work."""
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


# --- enqueue


async def test_a_new_job_is_queued_with_the_first_id(engine: Engine, store: FakeStore) -> None:
    jobs = await enqueue(engine, "resize", payload=b'{"w":1}', priority=3)
    assert jobs == [
        Job(
            queue="q",
            id=1,
            type="resize",
            payload=b'{"w":1}',
            state=JobState.QUEUED,
            created_at=EPOCH_SECONDS,
            revision=1,
            priority=3,
            place=1,
        )
    ]
    assert [change.after for change in store.changes] == jobs
    assert await read(engine, 1) == jobs[0]


async def test_jobs_of_one_command_are_numbered_in_the_order_sent(engine: Engine) -> None:
    jobs = await enqueue(engine, "a", "b", "c")
    assert [(job.id, job.type, job.place) for job in jobs] == [(1, "a", 1), (2, "b", 2), (3, "c", 3)]


async def test_each_queue_numbers_its_own_jobs(engine: Engine) -> None:
    await enqueue(engine, "a", "b", queue="one")
    assert [job.id for job in await enqueue(engine, "c", queue="two")] == [1]
    assert [job.id for job in await enqueue(engine, "d", queue="one")] == [3]


async def test_enqueueing_nothing_makes_the_queue(engine: Engine) -> None:
    assert await enqueue(engine) == []
    assert (await engine.execute(ReadQueue("q"))).exists


async def test_a_batch_that_would_fill_the_queue_over_is_refused_whole(
    settings: Settings, clock: FakeClock, store: FakeStore
) -> None:
    async with open_engine(replace(settings, queued_jobs_max=3), clock=clock, store=store, secret=SECRET) as engine:
        await enqueue(engine, "a", queue="other")
        await enqueue(engine, "a")
        with pytest.raises(QueueFull):
            await enqueue(engine, "b", "c")
        assert await counts(engine) == {"queued": 1}
        await enqueue(engine, "b", delay_seconds=9)
        with pytest.raises(QueueFull):
            await enqueue(engine, "c")
        await dequeue(engine)  # a job in progress waits no longer
        await enqueue(engine, "c")
        assert [change.revision for change in store.changes] == [1, 2, 3, 4, 5]


async def test_payloads_that_memory_has_no_room_for_are_refused_until_some_are_forgotten(
    settings: Settings, clock: FakeClock
) -> None:
    settings = replace(settings, memory_bytes_max=1_024, retention_seconds=5)
    async with open_engine(settings, clock=clock) as engine:
        await enqueue(engine, "a", payload=b"0" * 1_000)
        await enqueue(engine, "b", payload=b"0" * 24)
        with pytest.raises(MemoryFull):
            await enqueue(engine, "c", payload=b"0")
        await enqueue(engine, "d")
        await conclude(engine, *await dequeue(engine))
        with pytest.raises(MemoryFull):
            await enqueue(engine, "c", payload=b"0")
        await pass_time(6.1)
        await enqueue(engine, "c", payload=b"0" * 1_000)


async def test_a_queue_more_than_queues_max_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, queues_max=2)) as engine:
        await enqueue(engine, "a", queue="one")
        await enqueue(engine, "a", queue="two")
        with pytest.raises(TooManyQueues) as refused:
            await enqueue(engine, "a", queue="three")
        assert refused.value.field == "queue"
        await enqueue(engine, "b", queue="one")
        assert not (await engine.execute(ReadQueue("three"))).exists


@pytest.mark.parametrize("delay_seconds", [0.001, 0.5, 1.0, 2.35, 900.0])
async def test_a_delayed_job_is_ready_when_its_time_has_come_and_not_before(
    engine: Engine, delay_seconds: float
) -> None:
    (job,) = await enqueue(engine, "a", delay_seconds=delay_seconds)
    assert (job.state, job.place, job.not_before) == (JobState.SCHEDULED, 0, EPOCH_SECONDS + delay_seconds)
    assert await counts(engine) == {"scheduled": 1}
    await pass_time(delay_seconds - 0.000_1)
    assert await dequeue(engine) == []
    await pass_time(0.001_1)
    assert (await read(engine, 1)).state is JobState.QUEUED
    assert types(await dequeue(engine)) == ["a"]


async def test_a_job_that_comes_due_stands_behind_those_that_are_ready(engine: Engine) -> None:
    await enqueue(engine, "delayed", delay_seconds=2)
    await enqueue(engine, "early")
    await pass_time(3)
    await enqueue(engine, "late")
    assert types(await dequeue(engine, 9)) == ["early", "delayed", "late"]


# --- dequeue


async def test_jobs_are_handed_out_in_the_order_in_which_they_came(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c")
    assert types(await dequeue(engine)) == ["a"]
    assert types(await dequeue(engine, 5)) == ["b", "c"]
    assert await dequeue(engine) == []


async def test_the_highest_priority_goes_first_and_in_it_the_oldest(engine: Engine) -> None:
    await enqueue(engine, "normal", "normal too")
    await enqueue(engine, "low", priority=-1)
    await enqueue(engine, "high", "high too", priority=7)
    assert types(await dequeue(engine, 9)) == ["high", "high too", "normal", "normal too", "low"]


async def test_a_lease_names_its_holder_its_length_and_a_fence(engine: Engine) -> None:
    await pass_time(1)
    await enqueue(engine, "a")
    await pass_time(1)
    (leased,) = await dequeue(engine, consumer="w1", lease_seconds=2.5)
    job = leased.job
    assert (job.state, job.attempts, job.consumer, job.lease_seconds) == (JobState.IN_PROGRESS, 1, "w1", 2.5)
    assert (job.started_at, job.lease_expires_at) == (EPOCH_SECONDS + 2, EPOCH_SECONDS + 4.5)
    assert job.fence == FENCE + 1_000_000
    assert await read(engine, 1) == job


async def test_a_lease_without_a_length_has_the_default_one(engine: Engine) -> None:
    assert (await lease(engine)).job.lease_seconds == 300


async def test_fences_rise_with_each_lease_of_a_queue(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    fences = []
    for _ in range(4):
        leases = await dequeue(engine, 2)
        fences += [leased.job.fence for leased in leases]
        await engine.execute(Release([to_release(leased) for leased in leases]))
    assert fences == list(range(FENCE, FENCE + 8))


async def test_an_unknown_queue_is_empty_and_a_dequeue_does_not_make_it(engine: Engine) -> None:
    assert await dequeue(engine, queue="unknown") == []
    assert await dequeue(engine, queue="unknown", wait_seconds=1) == []
    assert not (await engine.execute(ReadQueue("unknown"))).exists


async def test_a_dequeue_of_many_stops_at_the_bytes_of_a_reply_but_gives_one_job(settings: Settings) -> None:
    async with open_engine(replace(settings, reply_bytes_max=1_024)) as engine:
        await enqueue(engine, "a", "b", "c", payload=b"0" * 600)
        await enqueue(engine, "big", payload=b"0" * 5_000)
        assert types(await dequeue(engine, 9)) == ["a"]
        await enqueue(engine, "small", payload=b"0" * 424, priority=1)
        assert types(await dequeue(engine, 9)) == ["small", "b"]
        assert types(await dequeue(engine, 9)) == ["c"]
        assert types(await dequeue(engine, 9)) == ["big"]


# --- conclude, extend, release: who may


async def test_the_holder_concludes_with_his_token_and_may_say_so_again(engine: Engine, store: FakeStore) -> None:
    leased = await lease(engine, consumer="w1")
    await pass_time(2)
    job = await conclude(engine, leased)
    assert (job.state, job.finished_at, job.lease_expires_at) == (JobState.CONCLUDED, EPOCH_SECONDS + 2, None)
    assert job.history == (Attempt(FENCE, "w1", EPOCH_SECONDS, EPOCH_SECONDS + 2, Outcome.CONCLUDED),)
    changes = len(store.changes)
    assert await conclude(engine, leased) == job
    assert len(store.changes) == changes
    assert await counts(engine) == {"concluded": 1}


VERBS = [
    pytest.param(Conclude, Claim, id="conclude"),
    pytest.param(Extend, ExtendClaim, id="extend"),
    pytest.param(Release, ReleaseClaim, id="release"),
]


@pytest.mark.parametrize(("verb", "claim"), VERBS)
class TestAClaim:
    """What conclude, extend and release ask of their caller alike."""

    async def refusal(self, engine: Engine, verb: Any, claim: Claim) -> QueueError:
        """The refusal of a claim, which changes nothing."""
        before = await read(engine, 1)
        (refusal,) = (await engine.execute(verb([claim]))).jobs
        assert isinstance(refusal, QueueError)
        assert await read(engine, 1) == before
        return refusal

    async def test_with_a_token_that_is_none_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine)
        wrong = ["", "?", "0" * 46, leased.token[:-1] + ("0" if leased.token[-1] != "0" else "1"), "é" * 46]
        for token in wrong:
            assert isinstance(await self.refusal(engine, verb, claim("q", 1, token)), LeaseLost)

    async def test_with_the_token_of_another_job_has_lost_the_lease(
        self, engine: Engine, verb: Any, claim: Any
    ) -> None:
        await lease(engine)
        second = await lease(engine)
        await enqueue(engine, "a", queue="other")
        (other,) = await dequeue(engine, queue="other")
        for leased in (second, other):
            assert isinstance(await self.refusal(engine, verb, claim("q", 1, leased.token)), LeaseLost)

    async def test_with_an_older_token_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        first = await lease(engine, lease_seconds=1)
        await pass_time(1)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, first.token)), LeaseLost)
        (second,) = await dequeue(engine)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, first.token)), LeaseLost)
        assert not isinstance((await engine.execute(verb([claim("q", 1, second.token)]))).single(), QueueError)

    async def test_without_a_token_needs_the_name_of_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine, consumer="w1")
        for consumer in ("w2", None):
            refusal = await self.refusal(engine, verb, claim("q", 1, consumer=consumer))
            assert isinstance(refusal, OtherConsumer)
        await engine.execute(verb([claim("q", 1, consumer="w1")]))

    async def test_a_token_alone_decides_whatever_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine, consumer="w1")
        (await engine.execute(verb([claim("q", 1, leased.token, "w2")]))).single()

    async def test_anyone_may_act_on_an_anonymous_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine)
        (await engine.execute(verb([claim("q", 1, consumer="whoever")]))).single()

    async def test_on_a_job_that_is_not_in_progress_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        assert isinstance(await self.refusal(engine, verb, claim("q", 1)), NotInProgress)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, "token")), LeaseLost)

    async def test_on_an_unknown_job_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        for queue, id_ in (("q", 2), ("q", 0), ("q", -1), ("unknown", 1)):
            refusal = await self.refusal(engine, verb, claim(queue, id_))
            assert isinstance(refusal, UnknownJob)
            assert refusal.field == "id"

    async def test_on_a_forgotten_job_is_refused(self, settings: Settings, verb: Any, claim: Any) -> None:
        async with open_engine(replace(settings, retention_seconds=3)) as engine:
            leased = await lease(engine)
            await conclude(engine, leased)
            await pass_time(4.1)
            (refusal,) = (await engine.execute(verb([claim("q", 1, leased.token)]))).jobs
            assert isinstance(refusal, ForgottenJob)

    async def test_has_an_answer_for_each_job_in_the_order_asked(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a", "b", "c")
        first, second = await dequeue(engine, 2)
        claims = [
            claim("q", 2, second.token),
            claim("q", 3),
            claim("q", 1, "no"),
            claim("q", 4),
            claim("q", 1, first.token),
        ]
        results = (await engine.execute(verb(claims))).jobs
        assert [result.id if isinstance(result, Job) else result.code for result in results] == [
            2,
            "not_in_progress",
            "lease_lost",
            "unknown_job",
            1,
        ]

    async def test_for_no_jobs_has_no_answers(self, engine: Engine, verb: Any, claim: Any) -> None:
        del claim
        assert (await engine.execute(verb([]))).jobs == []


async def test_a_concluded_job_is_concluded_again_by_its_consumer_only(engine: Engine) -> None:
    leased = await lease(engine, consumer="w1")
    job = await conclude(engine, leased)
    assert (await engine.execute(Conclude([Claim("q", 1, consumer="w1")]))).single() == job
    with pytest.raises(OtherConsumer):
        (await engine.execute(Conclude([Claim("q", 1, consumer="w2")]))).single()
    with pytest.raises(NotInProgress):
        (await engine.execute(Release([ReleaseClaim("q", 1, consumer="w1")]))).single()


async def test_the_token_that_concluded_neither_extends_nor_releases(engine: Engine) -> None:
    leased = await lease(engine)
    await conclude(engine, leased)
    for command in (Extend([to_extend(leased)]), Release([to_release(leased)])):
        with pytest.raises(LeaseLost):
            (await engine.execute(command)).single()


async def test_one_command_may_conclude_a_job_twice(engine: Engine) -> None:
    leased = await lease(engine)
    first, second = (await engine.execute(Conclude([shown(leased), shown(leased)]))).jobs
    assert first == second
    assert await counts(engine) == {"concluded": 1}


# --- extend and release


async def test_extending_keeps_a_lease_alive_as_long_as_it_is_repeated(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=2)
    for _ in range(10):
        await pass_time(1.9)
        job = (await engine.execute(Extend([to_extend(leased)]))).single()
        assert job.state is JobState.IN_PROGRESS
        assert job.lease_expires_at == pytest.approx(EPOCH_SECONDS + trio.current_time() + 2)
    await pass_time(1.9)
    assert (await read(engine, 1)).state is JobState.IN_PROGRESS
    await pass_time(0.101)
    assert (await read(engine, 1)).state is JobState.QUEUED


async def test_extending_by_a_length_holds_for_later_extensions(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=2)
    await engine.execute(Extend([to_extend(leased, 10)]))
    await pass_time(9)
    job = (await engine.execute(Extend([to_extend(leased)]))).single()
    assert (job.lease_seconds, job.lease_expires_at) == (10, EPOCH_SECONDS + 19)
    await pass_time(9.999)
    await conclude(engine, leased)


async def test_extending_may_shorten_a_lease_and_the_sweeper_learns_of_it(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=300)
    await engine.execute(Extend([to_extend(leased, 0.25)]))
    await pass_time(0.251)
    assert (await read(engine, 1)).state is JobState.QUEUED


async def test_a_released_job_keeps_its_place(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    first, second = await dequeue(engine, 2)
    await engine.execute(Release([to_release(second), to_release(first)]))
    assert types(await dequeue(engine, 3)) == ["a", "b", "c"]


async def test_a_job_released_with_a_delay_comes_back_behind_the_others(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    (leased,) = await dequeue(engine)
    job = (await engine.execute(Release([to_release(leased, 2)]))).single()
    assert (job.state, job.not_before) == (JobState.SCHEDULED, EPOCH_SECONDS + 2)
    await pass_time(1.999)
    assert await counts(engine) == {"scheduled": 1, "queued": 1}
    await pass_time(0.002)
    assert types(await dequeue(engine, 2)) == ["b", "a"]


async def test_the_token_that_released_may_say_so_again_and_changes_nothing(engine: Engine) -> None:
    leased = await lease(engine)
    released = (await engine.execute(Release([to_release(leased)]))).single()
    assert (await engine.execute(Release([to_release(leased)]))).single() == released
    (again,) = await dequeue(engine)
    assert (await engine.execute(Release([to_release(leased)]))).single() == again.job
    with pytest.raises(LeaseLost):
        await conclude(engine, leased)
    await conclude(engine, again)


# --- cancel


async def test_a_queued_or_scheduled_job_is_cancelled_and_never_handed_out(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c", delay_seconds=1)
    results = (await engine.execute(Cancel("q", [3, 1]))).jobs
    assert [(job.id, job.state) for job in results if isinstance(job, Job)] == [
        (3, JobState.CANCELLED),
        (1, JobState.CANCELLED),
    ]
    await pass_time(2)
    assert types(await dequeue(engine, 9)) == ["b"]
    assert (await engine.execute(Cancel("q", [1]))).jobs == [results[1]]


async def test_a_cancel_answers_each_job_for_itself(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await conclude(engine, *await dequeue(engine))
    results = (await engine.execute(Cancel("q", [1, 9, 2]))).jobs
    assert [type(result) for result in results] == [AlreadyFinished, UnknownJob, Job]
    with pytest.raises(UnknownJob):
        (await engine.execute(Cancel("unknown", [1]))).single()


async def test_cancelling_a_running_job_is_a_wish_and_conclude_still_wins(engine: Engine) -> None:
    leased = await lease(engine)
    job = (await engine.execute(Cancel("q", [1]))).single()
    assert (job.state, job.cancel_requested) == (JobState.IN_PROGRESS, True)
    assert (await engine.execute(Cancel("q", [1]))).single() == job
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED


async def test_the_wish_is_granted_when_the_job_is_released_whatever_the_delay(engine: Engine) -> None:
    leased = await lease(engine)
    await engine.execute(Cancel("q", [1]))
    assert (await engine.execute(Release([to_release(leased, 5)]))).single().state is JobState.CANCELLED
    assert await counts(engine) == {"cancelled": 1}


async def test_the_wish_is_granted_when_the_lease_goes_stale(engine: Engine) -> None:
    await lease(engine, lease_seconds=1)
    await engine.execute(Cancel("q", [1]))
    await pass_time(1)
    assert (await read(engine, 1)).state is JobState.CANCELLED
    assert await dequeue(engine) == []


# --- reads


async def test_reading_a_job_that_never_was_or_is_forgotten_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_seconds=2)) as engine:
        await conclude(engine, await lease(engine))
        await pass_time(1.9)
        assert (await read(engine, 1)).state is JobState.CONCLUDED
        await pass_time(1.2)
        forgotten: list[Command[Any]] = [ReadJob("q", 1), ReadPosition("q", 1)]
        for command in forgotten:
            with pytest.raises(ForgottenJob):
                await engine.execute(command)
        unknown: list[Command[Any]] = [ReadJob("q", 2), ReadPosition("q", 2), ReadJob("unknown", 1)]
        for command in unknown:
            with pytest.raises(UnknownJob):
                await engine.execute(command)


async def test_a_position_counts_the_jobs_that_go_before(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    await enqueue(engine, "high", priority=1)
    await enqueue(engine, "delayed", delay_seconds=9)
    positions = [await engine.execute(ReadPosition("q", id_)) for id_ in range(1, 6)]
    assert positions == [Position(1), Position(2), Position(3), Position(0), Position(None)]
    leases = await dequeue(engine, 2)
    assert types(leases) == ["high", "a"]
    assert await engine.execute(ReadPosition("q", 3)) == Position(1)
    await engine.execute(Release([to_release(leases[1])]))
    assert await engine.execute(ReadPosition("q", 3)) == Position(2)


async def test_a_queue_reads_as_how_many_jobs_are_in_which_state(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c", "d")
    await enqueue(engine, "e", delay_seconds=9)
    first, _ = await dequeue(engine, 2)
    await conclude(engine, first)
    await engine.execute(Cancel("q", [4]))
    view = await engine.execute(ReadQueue("q"))
    assert view == QueueView("q", exists=True, counts=dict.fromkeys(JobState, 1))
    unknown = await engine.execute(ReadQueue("unknown"))
    assert unknown == QueueView("unknown", exists=False, counts=dict.fromkeys(JobState, 0))


# --- time: leases that end, and the sweeper that brings the jobs back


@pytest.mark.parametrize("sweep_seconds", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("lease_seconds", [0.1, 0.7, 1.0, 2.35, 61.0])
async def test_a_lease_goes_stale_at_its_deadline_and_not_before(
    settings: Settings, clock: FakeClock, lease_seconds: float, sweep_seconds: float
) -> None:
    async with open_engine(replace(settings, sweep_seconds=sweep_seconds), clock=clock) as engine:
        await trio.sleep(0.33)
        leased = await lease(engine, lease_seconds=lease_seconds, consumer="w1")
        await pass_time(lease_seconds - 0.000_1)
        assert await read(engine, 1) == leased.job
        await pass_time(0.001_1)
        job = await read(engine, 1)
        assert (job.state, job.stales, job.attempts, job.place) == (JobState.QUEUED, 1, 1, leased.job.place)
        (attempt,) = job.history
        assert (attempt.outcome, attempt.consumer) == (Outcome.STALE, "w1")
        assert attempt.ended_at - leased.job.started_at >= lease_seconds - 1e-6  # type: ignore[operator] # it was leased


async def test_a_stale_job_keeps_its_place_and_is_handed_out_again(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    await dequeue(engine, 2, lease_seconds=1)
    await pass_time(1)
    leases = await dequeue(engine, 3)
    assert types(leases) == ["a", "b", "c"]
    assert [leased.job.attempts for leased in leases] == [2, 2, 1]


async def test_the_sweeper_wakes_for_an_earlier_deadline_that_arrives_later(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(replace(settings, sweep_seconds=60), clock=clock) as engine:
        await enqueue(engine, "a", "b", "c")
        await dequeue(engine, lease_seconds=50)
        await pass_time(10)
        await dequeue(engine, lease_seconds=5)
        await pass_time(1)
        await dequeue(engine, lease_seconds=0.5)
        await enqueue(engine, "d", delay_seconds=0.25)
        assert await counts(engine) == {"in_progress": 3, "scheduled": 1}
        for seconds, ready in ((0.251, 1), (0.25, 2), (3.5, 3), (35, 4)):
            await pass_time(seconds)
            assert (await counts(engine))["queued"] == ready


async def test_a_slow_store_does_not_put_the_sweep_off(settings: Settings, store: FakeStore) -> None:
    async with open_engine(replace(settings, sweep_seconds=60), store=store) as engine:
        store.seconds = 2
        await lease(engine, lease_seconds=5)
        assert trio.current_time() == 4  # the lease began at 2
        await pass_time(5.002)
        assert [change.after.stales for change in store.changes if change.after] == [0, 0, 1]


async def test_without_an_early_notice_a_sweep_still_comes_every_sweep_seconds(
    settings: Settings, clock: FakeClock
) -> None:
    """Retention has no deadline of its own."""
    async with open_engine(replace(settings, sweep_seconds=7, retention_seconds=10), clock=clock) as engine:
        await conclude(engine, await lease(engine))
        await pass_time(9.9)
        await read(engine, 1)
        await pass_time(7.2)
        with pytest.raises(ForgottenJob):
            await read(engine, 1)


async def test_no_more_finished_jobs_are_kept_than_retention_jobs(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_jobs=2)) as engine:
        await enqueue(engine, "a", "b", "c", "d")
        for leased in await dequeue(engine, 4):
            await conclude(engine, leased)
        await pass_time(1.1)
        assert await counts(engine) == {"concluded": 2}
        for id_ in (1, 2):
            with pytest.raises(ForgottenJob):
                await read(engine, id_)


async def test_a_late_conclude_is_accepted_before_the_sweep_and_refused_after(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(settings, clock=clock, secret=SECRET) as engine:
        await enqueue(engine, "a", "b")
        early, late = await dequeue(engine, 2, lease_seconds=5)
        jump(6)  # the process was stopped; the deadline is past, and nobody has swept
        assert (await conclude(engine, early)).state is JobState.CONCLUDED
        await pass_time(1.1)
        with pytest.raises(LeaseLost):
            await conclude(engine, late)
        assert (await read(engine, 2)).state is JobState.QUEUED


async def test_a_hundred_thousand_stale_jobs_come_back_in_slices_while_others_are_served(
    settings: Settings, clock: FakeClock
) -> None:
    jobs, slices = 100_000, 100
    async with open_engine(replace(settings, queued_jobs_max=jobs), clock=clock) as engine:
        for _ in range(10):
            await enqueue(engine, *["a"] * (jobs // 10))
            await dequeue(engine, jobs // 10, lease_seconds=30)
        await trio.sleep_until(30)
        returned = [0]
        while returned[-1] < jobs:
            returned.append((await counts(engine)).get("queued", 0))
            assert len(returned) < 10 * slices
        assert trio.current_time() == 30
        steps = [after - before for before, after in pairwise(returned)]
        assert max(steps) <= 2 * settings.sweep_slice
        assert sum(step > 0 for step in steps) >= slices / 2
        assert [leased.job.id for leased in await dequeue(engine, 3)] == [1, 2, 3]


# --- the wall clock is moved


@pytest.mark.parametrize("hours", [1, -1])
async def test_leases_do_not_care_for_the_wall_clock(engine: Engine, clock: FakeClock, hours: int) -> None:
    leased = await lease(engine, lease_seconds=10)
    clock.wall_ahead_seconds += hours * HOUR_SECONDS
    await pass_time(9.9)
    assert await read(engine, 1) == leased.job
    await pass_time(0.101)
    assert (await read(engine, 1)).state is JobState.QUEUED


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_lease_given_after_the_wall_clock_was_moved_has_its_full_length(
    engine: Engine, clock: FakeClock, hours: int
) -> None:
    clock.wall_ahead_seconds += hours * HOUR_SECONDS
    leased = await lease(engine, lease_seconds=10)
    assert leased.job.lease_expires_at == EPOCH_SECONDS + hours * HOUR_SECONDS + 10
    await pass_time(9.999)
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED


async def test_a_planned_job_is_due_within_a_sweep_when_the_wall_clock_is_set_forward(
    engine: Engine, clock: FakeClock
) -> None:
    await enqueue(engine, "a", delay_seconds=HOUR_SECONDS)
    await pass_time(2.5)
    clock.wall_ahead_seconds += HOUR_SECONDS
    await pass_time(1.001)
    assert types(await dequeue(engine)) == ["a"]


async def test_a_planned_job_waits_for_its_hour_when_the_wall_clock_is_set_back(
    engine: Engine, clock: FakeClock
) -> None:
    await enqueue(engine, "a", delay_seconds=10)
    await pass_time(5)
    clock.wall_ahead_seconds -= HOUR_SECONDS
    await pass_time(HOUR_SECONDS)
    assert await dequeue(engine) == []
    await pass_time(5.001)
    assert types(await dequeue(engine)) == ["a"]


async def test_fences_rise_although_the_wall_clock_is_set_back(engine: Engine, clock: FakeClock) -> None:
    first = await lease(engine)
    clock.wall_ahead_seconds -= HOUR_SECONDS
    second = await lease(engine)
    assert second.job.fence > first.job.fence


# --- the process is stopped for a while


async def test_after_a_stall_those_who_were_not_heard_go_before_the_sweep(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    heard, lost = await dequeue(engine, 2, lease_seconds=5)
    await pass_time(1)
    jump(60)
    await pass_time(0.9)  # requests that came meanwhile are being read
    assert await read(engine, 1) == heard.job
    await conclude(engine, heard)
    await pass_time(0.102)
    assert (await read(engine, 2)).state is JobState.QUEUED
    with pytest.raises(LeaseLost):
        await conclude(engine, lost)


async def test_after_a_stall_an_extension_that_was_not_heard_still_holds_the_lease(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=5)
    await pass_time(4)
    jump(100)
    await pass_time(0.5)
    await engine.execute(Extend([to_extend(leased)]))
    await pass_time(4.9)
    await conclude(engine, leased)


# --- long polls


async def appears_by_enqueue(engine: Engine, held: Lease) -> None:
    del held
    await enqueue(engine, "b")


async def appears_by_release(engine: Engine, held: Lease) -> None:
    await engine.execute(Release([to_release(held)]))


async def appears_by_extending_shortly(engine: Engine, held: Lease) -> None:
    await engine.execute(Extend([to_extend(held, 0.1)]))


async def appears_by_coming_due(engine: Engine, held: Lease) -> None:
    del held
    await enqueue(engine, "b", delay_seconds=0.1)


@pytest.mark.parametrize(
    ("appears", "after_seconds"),
    [
        (appears_by_enqueue, 0),
        (appears_by_release, 0),
        (appears_by_extending_shortly, 0.1),
        (appears_by_coming_due, 0.1),
    ],
)
async def test_a_parked_dequeue_is_served_at_once_when_a_job_appears(
    engine: Engine, nursery: trio.Nursery, appears: Any, after_seconds: float
) -> None:
    held = await lease(engine)
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20, consumer="w2", lease_seconds=7))
    assert engine.statistics() == EngineStatistics(inbox_requests=0, waiters=1)
    await pass_time(3)
    await appears(engine, held)
    await pass_time(after_seconds)
    (leased,) = call.reply.leases
    assert call.ended_at == pytest.approx(3 + after_seconds, abs=0.001)
    assert (leased.job.consumer, leased.job.lease_seconds) == ("w2", 7)
    assert leased.job.started_at == pytest.approx(EPOCH_SECONDS + 3 + after_seconds, abs=0.001)
    assert await read(engine, leased.job.id) == leased.job
    assert engine.statistics() == IDLE
    await conclude(engine, leased)


async def test_a_parked_dequeue_is_served_when_a_lease_goes_stale(engine: Engine, nursery: trio.Nursery) -> None:
    await lease(engine, lease_seconds=4)
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    await pass_time(4)
    assert call.ended_at == pytest.approx(4, abs=0.001)
    assert call.reply.leases[0].job.attempts == 2


async def test_the_oldest_parked_dequeue_is_served_first(engine: Engine, nursery: trio.Nursery) -> None:
    calls = [await Call.start(nursery, engine, Dequeue("q", wait_seconds=20)) for _ in range(5)]
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c")
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in calls[:3]] == [["a"], ["b"], ["c"]]
    assert [call.ended_at for call in calls[3:]] == [None, None]
    await enqueue(engine, "d", "e", "f")
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in calls[3:]] == [["d"], ["e"]]
    assert await counts(engine) == {"in_progress": 5, "queued": 1}


async def test_parked_dequeues_of_one_queue_do_not_hinder_those_of_another(
    engine: Engine, nursery: trio.Nursery
) -> None:
    one = await Call.start(nursery, engine, Dequeue("one", wait_seconds=20))
    two = await Call.start(nursery, engine, Dequeue("two", wait_seconds=20))
    await enqueue(engine, "a", queue="two")
    await wait_all_tasks_blocked()
    assert types(two.reply.leases) == ["a"]
    assert one.ended_at is None
    await enqueue(engine, "b", queue="one")
    await wait_all_tasks_blocked()
    assert types(one.reply.leases) == ["b"]


async def test_jobs_that_come_due_in_several_queues_at_once_serve_all_who_wait(
    engine: Engine, nursery: trio.Nursery
) -> None:
    calls = [await Call.start(nursery, engine, Dequeue(f"q{n % 5}", wait_seconds=20)) for n in range(10)]
    for n in range(5):
        await enqueue(engine, "a", "b", queue=f"q{n}", delay_seconds=3 - trio.current_time())
    await pass_time(3)
    assert [types(call.reply.leases) for call in calls] == [["a"]] * 5 + [["b"]] * 5


@pytest.mark.parametrize("wait_seconds", [0.0, 20.0])
async def test_a_fresh_dequeue_does_not_overtake_those_who_wait(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    fresh = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(waiting.reply.leases) == ["a"]
    if wait_seconds:
        assert fresh.ended_at is None
        fresh.scope.cancel()
    else:
        assert types(fresh.reply.leases) == []


async def test_jobs_that_are_left_over_by_those_who_wait_go_to_a_fresh_dequeue(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", 2, wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a"), NewJob("b"), NewJob("c")]))
    fresh = await Call.start(nursery, engine, Dequeue("q", 2))
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(waiting.reply.leases) == ["a", "b"]
    assert types(fresh.reply.leases) == ["c"]


async def test_a_wait_that_runs_out_is_answered_empty_on_time(engine: Engine, nursery: trio.Nursery) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=12.5))
    await pass_time(12.499)
    assert call.ended_at is None
    await pass_time(0.001_1)
    assert call.reply == Dequeued()
    assert call.ended_at == 12.5
    assert engine.statistics() == IDLE
    await enqueue(engine, "a")
    assert await counts(engine) == {"queued": 1}


async def test_a_dequeue_that_would_wait_does_not_where_there_is_a_job(engine: Engine) -> None:
    await enqueue(engine, "a")
    assert types(await dequeue(engine, 3, wait_seconds=20)) == ["a"]
    assert trio.current_time() == 0


async def test_a_short_wait_is_no_worse_than_none_where_the_engine_is_slow(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    await enqueue(engine, "a")
    store.seconds = 2
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=0.5))
    await pass_time(4)
    assert types(call.reply.leases) == ["a"]


async def test_a_wait_for_several_jobs_ends_with_the_first_that_appear(engine: Engine, nursery: trio.Nursery) -> None:
    first = await Call.start(nursery, engine, Dequeue("q", 2, wait_seconds=20))
    second = await Call.start(nursery, engine, Dequeue("q", 3, wait_seconds=20))
    third = await Call.start(nursery, engine, Dequeue("q", 3, wait_seconds=20))
    await enqueue(engine, "a", "b", "c")
    await wait_all_tasks_blocked()
    assert types(first.reply.leases) == ["a", "b"]
    assert types(second.reply.leases) == ["c"]
    assert third.ended_at is None


async def test_one_more_waiter_than_waiters_max_is_refused(
    settings: Settings, clock: FakeClock, nursery: trio.Nursery
) -> None:
    async with open_engine(replace(settings, waiters_max=2), clock=clock) as engine:
        first = await Call.start(nursery, engine, Dequeue("one", wait_seconds=20))
        second = await Call.start(nursery, engine, Dequeue("two", wait_seconds=20))
        with pytest.raises(TooManyWaiters):
            await dequeue(engine, queue="three", wait_seconds=20)
        assert await dequeue(engine, queue="three") == []
        await enqueue(engine, "a", queue="three")
        assert types(await dequeue(engine, queue="three", wait_seconds=20)) == ["a"]
        first.scope.cancel()
        await wait_all_tasks_blocked()
        third = await Call.start(nursery, engine, Dequeue("three", wait_seconds=20))
        assert engine.statistics().waiters == 2
        await enqueue(engine, "b", queue="three")
        await enqueue(engine, "c", queue="two")
        await wait_all_tasks_blocked()
        assert first.cancelled
        assert [types(call.reply.leases) for call in (second, third)] == [["c"], ["b"]]


async def test_nobody_may_wait_where_waiters_max_is_zero(settings: Settings) -> None:
    async with open_engine(replace(settings, waiters_max=0)) as engine:
        with pytest.raises(TooManyWaiters):
            await dequeue(engine, wait_seconds=20)
        await enqueue(engine, "a")
        assert types(await dequeue(engine, wait_seconds=20)) == ["a"]
        assert engine.statistics() == IDLE


# --- callers who leave


async def test_a_waiter_who_left_gets_no_lease_and_the_next_one_gets_the_job(
    engine: Engine, nursery: trio.Nursery
) -> None:
    gone = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    stays = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    gone.scope.cancel()
    await wait_all_tasks_blocked()
    assert gone.cancelled
    assert engine.statistics().waiters == 1
    await enqueue(engine, "a")
    await wait_all_tasks_blocked()
    (leased,) = stays.reply.leases
    assert leased.job.attempts == 1
    assert engine.statistics() == IDLE


async def test_a_waiter_who_leaves_at_the_moment_at_which_a_job_appears_gets_no_lease(
    engine: Engine, nursery: trio.Nursery
) -> None:
    """Whether his task or the engine's runs first is a matter of chance, so that it is tried several times."""
    for n in range(1, 21):
        gone = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        stays = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        gone.scope.cancel()
        await enqueue(engine, "a")
        await wait_all_tasks_blocked()
        assert gone.cancelled
        (leased,) = stays.reply.leases
        assert (leased.job.id, leased.job.attempts) == (n, 1)
        assert engine.statistics() == IDLE


async def test_a_wait_that_runs_out_at_the_moment_at_which_a_job_appears_loses_no_job(
    engine: Engine, nursery: trio.Nursery
) -> None:
    for n in range(1, 21):
        call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=2))
        jump(2)
        await enqueue(engine, "a")
        await wait_all_tasks_blocked()
        leases = call.reply.leases or await dequeue(engine)
        assert [(leased.job.id, leased.job.attempts) for leased in leases] == [(n, 1)]


@pytest.mark.parametrize(
    "command",
    [
        Enqueue("q", [NewJob("b")]),
        Dequeue("q"),
        Dequeue("q", wait_seconds=20),
        Conclude([Claim("q", 1)]),
        Release([ReleaseClaim("q", 1)]),
        Cancel("q", [2]),
    ],
    ids=lambda command: type(command).__name__,
)
async def test_a_command_whose_caller_left_before_it_was_decided_does_nothing(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, command: Command[Any]
) -> None:
    await enqueue(engine, "a", "a")
    await dequeue(engine)
    before = [await read(engine, 1), await read(engine, 2), await counts(engine)]
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, command)
    assert engine.statistics().inbox_requests == 1
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.cancelled
    store.let_go()
    await wait_all_tasks_blocked()
    assert [await read(engine, 1), await read(engine, 2), await counts(engine)] == before
    assert len(store.changes) == 3
    assert engine.statistics() == IDLE


async def test_a_caller_cancelled_before_he_asks_asks_for_nothing(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await enqueue(engine, "a")
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    assert not (await engine.execute(ReadQueue("q"))).exists
    assert engine.statistics() == IDLE


@pytest.mark.parametrize("wait_seconds", [0, 20])
async def test_a_command_that_was_decided_stands_and_is_answered_although_its_caller_was_cancelled(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    await enqueue(engine, "a")
    store.hold()
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    (leased,) = call.reply.leases
    assert await read(engine, 1) == leased.job
    await conclude(engine, leased)


async def test_a_waiter_that_was_served_gets_his_lease_although_he_was_cancelled_before_the_commit(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    await conclude(engine, *call.reply.leases)
    assert engine.statistics() == IDLE


async def test_a_wait_that_runs_out_while_its_lease_is_stored_still_gives_the_lease(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=5))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    await pass_time(6)
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(call.reply.leases) == ["a"]


async def test_figures_return_to_zero_when_all_callers_are_gone(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    for n in range(20):
        store.hold()
        calls: list[Call[Any]] = [await Call.start(nursery, engine, ReadQueue("q"))]
        calls += [await Call.start(nursery, engine, Dequeue(f"q{n % 3}", wait_seconds=1 + n)) for _ in range(3)]
        calls += [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))]
        if n % 2:
            store.let_go()
            await wait_all_tasks_blocked()
        for call in calls:
            call.scope.cancel()
        store.let_go()
        await wait_all_tasks_blocked()
        assert engine.statistics() == IDLE


# --- the inbox


async def test_a_full_inbox_refuses_clients_and_does_not_starve_the_sweeper(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    async with open_engine(replace(settings, inbox_requests_max=3), clock=clock, store=store) as engine:
        await lease(engine, lease_seconds=2)
        await pass_time(1.5)
        store.hold()
        await Call.start(nursery, engine, ReadQueue("q"))  # is in hand, and waits no longer
        assert engine.statistics() == IDLE
        waiting = [await Call.start(nursery, engine, Enqueue("q", [NewJob("b")])) for _ in range(3)]
        assert engine.statistics().inbox_requests == 3
        for wait_seconds in (0, 20):
            with pytest.raises(Busy, match="3"):
                await dequeue(engine, wait_seconds=wait_seconds)
        await pass_time(3)  # the sweeper's command is in the inbox too
        assert engine.statistics() == EngineStatistics(inbox_requests=4, waiters=0)
        with pytest.raises(Busy):
            await enqueue(engine, "c")
        store.let_go()
        await wait_all_tasks_blocked()
        assert (await read(engine, 1)).state is JobState.QUEUED
        assert [call.reply.jobs[0].id for call in waiting] == [2, 3, 4]
        assert await counts(engine) == {"queued": 4}
        assert engine.statistics() == IDLE


async def test_a_sweep_is_a_command_like_any_other(engine: Engine) -> None:
    await lease(engine, lease_seconds=5)
    await enqueue(engine, "b", delay_seconds=3)
    assert await engine.execute(Sweep()) == Swept(stale=0, due=0, forgotten=0, more=False, next_due_seconds=3)
    jump(5.5)
    assert await engine.execute(Sweep()) == Swept(stale=1, due=1, forgotten=0, more=False, next_due_seconds=None)


@pytest.mark.parametrize("stored", [True, False])
async def test_every_command_is_a_checkpoint(settings: Settings, store: FakeStore, stored: bool) -> None:
    commands: list[Command[Any]] = [
        Enqueue("q", [NewJob("a"), NewJob("b")]),
        Dequeue("q"),
        Dequeue("q", wait_seconds=1),
        Dequeue("q", wait_seconds=1),
        Extend([ExtendClaim("q", 1)]),
        Conclude([Claim("q", 1)]),
        Conclude([Claim("q", 9)]),
        Release([ReleaseClaim("q", 2)]),
        Cancel("q", [2]),
        ReadJob("q", 1),
        ReadPosition("q", 1),
        ReadQueue("q"),
        Sweep(),
    ]
    async with open_engine(settings, store=store if stored else None) as engine:
        for command in commands:
            with assert_checkpoints():
                await engine.execute(command)
        for command in commands:
            with trio.CancelScope() as scope:
                scope.cancel()
                await engine.execute(command)
            assert scope.cancelled_caught, command


# --- nobody is answered before the commit


async def test_nobody_is_answered_before_his_change_is_stored(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    producer = await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    await pass_time(5)
    assert (producer.ended_at, waiting.ended_at) == (None, None)
    assert store.changes == []
    store.let_go()
    await wait_all_tasks_blocked()
    assert (producer.ended_at, waiting.ended_at) == (5, 5)
    assert [change.after for change in store.changes] == [producer.reply.jobs[0], waiting.reply.leases[0].job]


async def test_changes_are_stored_in_the_order_of_their_revisions(engine: Engine, store: FakeStore) -> None:
    store.seconds = 0.01
    async with trio.open_nursery() as producers:
        for _ in range(50):
            producers.start_soon(enqueue, engine, "a", "b")
    for leased in await dequeue(engine, 30):
        await conclude(engine, leased)
    assert [change.revision for change in store.changes] == list(range(1, 161))


# --- the end


async def test_draining_answers_those_who_wait_empty_at_once(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    calls = [await Call.start(nursery, engine, Dequeue(f"q{n % 2}", wait_seconds=20)) for n in range(4)]
    await pass_time(3)
    engine.drain()
    await wait_all_tasks_blocked()
    assert [(call.reply, call.ended_at) for call in calls] == [(Dequeued(), 3)] * 4
    assert engine.statistics() == IDLE
    assert store.changes == []


async def test_once_draining_dequeues_are_refused_and_all_else_is_served(engine: Engine) -> None:
    leased = await lease(engine)
    await enqueue(engine, "b")
    engine.drain()
    for wait_seconds in (0, 20):
        with pytest.raises(Draining):
            await dequeue(engine, wait_seconds=wait_seconds)
    await engine.execute(Extend([to_extend(leased)]))
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED
    await enqueue(engine, "c")
    await engine.execute(Cancel("q", [3]))
    assert await counts(engine) == {"concluded": 1, "queued": 1, "cancelled": 1}
    engine.drain()
    assert await counts(engine) == {"concluded": 1, "queued": 1, "cancelled": 1}


@pytest.mark.parametrize("wait_seconds", [0, 20])
async def test_once_draining_no_job_is_handed_out_to_those_who_came_before_either(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    await enqueue(engine, "a")
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    engine.drain()
    store.let_go()
    await wait_all_tasks_blocked()
    assert isinstance(call.refusal, Draining)
    assert await counts(engine) == {"queued": 1}


async def test_a_waiter_that_was_served_before_the_draining_gets_his_lease(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    served = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    engine.drain()
    await wait_all_tasks_blocked()
    assert parked.reply == Dequeued()
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(served.reply.leases) == ["a"]


async def test_a_closed_engine_answers_what_it_took_and_refuses_what_comes(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    store.hold()
    taken = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    engine.close()
    late: list[Command[Any]] = [ReadQueue("q"), Dequeue("q"), Dequeue("q", wait_seconds=20), Sweep()]
    for command in late:
        with pytest.raises(Draining):
            await engine.execute(command)
    assert [call.ended_at for call in taken] == [None] * 3
    store.let_go()
    await wait_all_tasks_blocked()
    assert [call.reply.jobs[0].id for call in taken] == [1, 2, 3]
    assert engine.statistics() == IDLE
    assert not engine.failed.is_set()


async def test_who_still_waits_for_a_job_when_the_engine_closes_is_told(engine: Engine, nursery: trio.Nursery) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    engine.close()
    await wait_all_tasks_blocked()
    assert isinstance(call.refusal, OutcomeUnknown)
    assert engine.statistics() == IDLE


async def test_leaving_the_block_answers_everybody(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    async with open_engine(settings, clock=clock, store=store) as engine:
        parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        store.seconds = 0.5
        taken = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert sum(len(call.reply.jobs) for call in taken) == 3
    assert len(parked.reply.leases) <= 1  # it was there before the jobs, unless the end came first
    with pytest.raises(Draining):
        await enqueue(engine, "b")
    assert engine.statistics() == IDLE


# --- a bug, or a broken store


async def test_a_broken_store_ends_the_block_and_everybody_is_told(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no space left"), flatten_subgroups=True):
        async with open_engine(settings, clock=clock, store=store) as engine:
            calls: list[Call[Any]] = [
                await Call.start(nursery, engine, Dequeue("other", wait_seconds=20)),
                await Call.start(nursery, engine, Dequeue("q", wait_seconds=20)),  # is served, and must not wait on
            ]
            store.hold()
            calls += [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
            store.failure = OSError("no space left")
            assert not engine.failed.is_set()
            store.let_go()
            await engine.failed.wait()
            await wait_all_tasks_blocked()
            assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 5
            late: list[Command[Any]] = [ReadQueue("q"), Sweep(), Dequeue("q", wait_seconds=20)]
            for command in late:
                with pytest.raises(Draining):
                    await engine.execute(command)
            await trio.sleep_forever()
    assert trio.current_time() == 1  # the farewell
    assert store.changes == []
    assert engine.statistics() == IDLE


async def test_a_store_that_fails_with_what_looks_like_a_refusal_is_broken_all_the_same(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(MemoryFull, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine:
            store.failure = MemoryFull("not of the queue, but of the store")
            call = await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
            await engine.failed.wait()
    assert isinstance(call.refusal, OutcomeUnknown)


async def test_a_store_that_fails_while_the_block_ends_is_not_forgotten(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine:
            store.seconds = 3
            store.failure = OSError("disk")
            calls = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 3
    assert engine.failed.is_set()
    assert trio.current_time() == 3


async def test_a_clock_that_fails_ends_the_block_and_everybody_is_told(
    settings: Settings, nursery: trio.Nursery
) -> None:
    class Stopped(FakeClock):
        def __call__(self) -> Now:
            if trio.current_time() >= 3:
                raise ZeroDivisionError
            return super().__call__()

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(replace(settings, sweep_seconds=60), clock=Stopped()) as engine:
            calls = [await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))]
            await trio.sleep(3)
            calls.append(await Call.start(nursery, engine, Dequeue("q")))
            await engine.failed.wait()
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 2
    assert engine.statistics() == IDLE


async def test_a_bug_in_a_command_ends_the_block_and_its_caller_is_told(
    settings: Settings, clock: FakeClock, nursery: trio.Nursery
) -> None:
    class Unknown(Command[None], frozen=True):
        pass

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with open_engine(settings, clock=clock) as engine:
            call = await Call.start(nursery, engine, Unknown())
            await engine.failed.wait()
    assert isinstance(call.refusal, OutcomeUnknown)
    assert trio.current_time() == 0
