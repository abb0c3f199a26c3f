"""The operator's verbs, on jobs by their ids and on many by a filter; on each engine."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkDone,
    BulkVerb,
    Cancel,
    Command,
    Conclude,
    EnqueuedJob,
    Extend,
    Fail,
    Forget,
    JobFilter,
    ReadJob,
    Redrive,
    Release,
    RunNow,
    Search,
    TakeBack,
)
from queue_actor.engine import BUSY_SECONDS, Engine, execute_in_slices
from queue_actor.errors import (
    AlreadyFinished,
    Busy,
    Draining,
    ForgottenJob,
    LeaseLost,
    NotFinished,
    NotInProgress,
    NotWaiting,
    OutcomeUnknown,
    QueueError,
    QueueFull,
    UniqueKeyTaken,
    UnknownJob,
    UnknownQueue,
)
from queue_actor.jobs import (
    Attempt,
    Change,
    Job,
    JobOptions,
    JobState,
    Outcome,
)
from queue_actor.queries import SCANNED_IDS_MAX
from queue_actor.settings import Settings
from queue_actor.state_machine import BULK_JOBS_MAX
from tests.contract.state import whole_state
from tests.contract.verbs import (
    AT_ONCE,
    FENCE,
    boom,
    conclude,
    counts,
    dequeue,
    enqueue,
    fail,
    give_policy,
    ids,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_extend,
    to_fail,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS, FakeStore
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


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
    await refusal(engine, Cancel("unknown", [1]), UnknownJob)


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


@pytest.mark.parametrize("verb", [Cancel, Redrive, RunNow, TakeBack, Forget])
async def test_a_job_that_never_was_or_is_forgotten_has_an_answer_of_its_own(engine: Engine, verb: Any) -> None:
    await enqueue(engine, "a")
    await conclude(engine, await lease_again(engine))
    await engine.execute(Forget("q", [1]))
    assert (await refusal(engine, verb("q", [1]), ForgottenJob)).field == "id"
    for queue, id_ in (("q", 2), ("q", 0), ("q", -1), ("unknown", 1)):
        assert (await refusal(engine, verb(queue, [id_]), UnknownJob)).field == "id"
    assert (await engine.execute(verb("q", []))).jobs == []


# --- jobs in each state, for the verbs to be tried on


async def in_each_state(engine: Engine) -> dict[JobState, int]:
    """A job in each state."""
    await enqueue(engine, "to conclude", "to fail", "to cancel", "to hold", "queued")
    to_be_concluded, to_be_failed = await dequeue(engine, 2)
    await engine.execute(Cancel("q", [3]))
    await conclude(engine, to_be_concluded)
    await fail(engine, to_be_failed, retry=False)
    await dequeue(engine)
    await enqueue(engine, "scheduled", delay_seconds=60)
    states = {
        JobState.CONCLUDED: 1,
        JobState.DEAD: 2,
        JobState.CANCELLED: 3,
        JobState.IN_PROGRESS: 4,
        JobState.QUEUED: 5,
        JobState.SCHEDULED: 6,
    }
    for state, id_ in states.items():
        assert (await read(engine, id_)).state is state
    return states


S = JobState


@pytest.mark.parametrize(
    ("verb", "allowed", "refusals"),
    [
        pytest.param(
            Cancel,
            {S.SCHEDULED: S.CANCELLED, S.QUEUED: S.CANCELLED, S.IN_PROGRESS: S.IN_PROGRESS, S.CANCELLED: S.CANCELLED},
            {S.CONCLUDED: AlreadyFinished, S.DEAD: AlreadyFinished},
            id="cancel",
        ),
        pytest.param(
            Redrive,
            {S.DEAD: S.QUEUED, S.CANCELLED: S.QUEUED},
            {
                S.CONCLUDED: AlreadyFinished,
                S.SCHEDULED: NotFinished,
                S.QUEUED: NotFinished,
                S.IN_PROGRESS: NotFinished,
            },
            id="redrive",
        ),
        pytest.param(
            RunNow,
            {S.SCHEDULED: S.QUEUED, S.QUEUED: S.QUEUED},
            {S.IN_PROGRESS: NotWaiting, S.CONCLUDED: NotWaiting, S.DEAD: NotWaiting, S.CANCELLED: NotWaiting},
            id="run now",
        ),
        pytest.param(
            TakeBack,
            {S.IN_PROGRESS: S.QUEUED},
            dict.fromkeys([S.SCHEDULED, S.QUEUED, S.CONCLUDED, S.DEAD, S.CANCELLED], NotInProgress),
            id="take back",
        ),
        pytest.param(
            Forget,
            {S.CONCLUDED: S.CONCLUDED, S.DEAD: S.DEAD, S.CANCELLED: S.CANCELLED},
            dict.fromkeys([S.SCHEDULED, S.QUEUED, S.IN_PROGRESS], NotFinished),
            id="forget",
        ),
    ],
)
async def test_a_verb_is_for_jobs_in_some_states_and_refused_to_all_others(
    engine: Engine, verb: Any, allowed: dict[JobState, JobState], refusals: dict[JobState, type[QueueError]]
) -> None:
    assert set(allowed) | set(refusals) == set(JobState)
    jobs = await in_each_state(engine)
    for state, expected in refusals.items():
        await refusal(engine, verb("q", [jobs[state]]), expected)
    answers = (await engine.execute(verb("q", list(jobs.values())))).jobs
    for state, answer in zip(jobs, answers, strict=True):
        if state in allowed:
            assert isinstance(answer, Job)
            assert (answer.id, answer.state) == (jobs[state], allowed[state])
        else:
            assert type(answer) is refusals[state]


# --- redrive


async def dead_of_failures(engine: Engine) -> None:
    await fail(engine, await lease_again(engine), retry=False, error=boom())


async def dead_of_staleness(engine: Engine) -> None:
    await give_policy(engine, max_stale=1)
    await dequeue(engine, lease_seconds=1)
    await pass_time(1.001)


async def dead_of_age(engine: Engine) -> None:
    del engine
    await pass_time(30.001)


async def cancelled_in_progress(engine: Engine) -> None:
    leased = await lease_again(engine)
    await engine.execute(Cancel("q", [1]))
    await release(engine, leased)


@pytest.mark.parametrize("end", [dead_of_failures, dead_of_staleness, dead_of_age, cancelled_in_progress])
async def test_a_redriven_job_begins_anew_at_the_back_with_its_history(engine: Engine, end: Any) -> None:
    await enqueue(engine, "a", payload=b"1", ttl_seconds=30, priority=0)
    await end(engine)
    ended = await read(engine)
    await enqueue(engine, "b")
    job = (await engine.execute(Redrive("q", [1]))).single()
    assert job == replace(
        ended,
        state=JobState.QUEUED,
        revision=ended.revision + 2,
        place=3,
        ready_at=EPOCH_SECONDS + trio.current_time(),
        fails=0,
        stales=0,
        reason=None,
        finished_at=None,
        kept_until=None,
        cancel_requested=False,
        expires_at=None,
    )
    assert (job.attempts, len(job.history)) == (len(ended.history), len(ended.history))
    await pass_time(60)  # its ttl has nothing to say any more
    assert types(await dequeue(engine, 9)) == ["b", "a"]


async def test_a_redriven_job_has_all_its_attempts_before_it(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE, max_attempts=2, max_stale=2)
    leased = await lease(engine)
    for _ in range(3):
        await fail(engine, leased)
        assert (await fail(engine, await lease_again(engine))).state is JobState.DEAD
        await engine.execute(Redrive("q", [1]))
        leased = await lease_again(engine)
    assert leased.job.attempts == 7


async def test_a_redriven_job_is_not_forgotten_by_the_time_at_which_it_first_ended(settings: Settings) -> None:
    settings = replace(settings, retention_seconds=5, dead_retention_seconds=5)
    async with open_engine(settings) as engine:
        await enqueue(engine, "a", "b")
        await fail(engine, (await dequeue(engine))[0], retry=False)
        await engine.execute(Cancel("q", [2]))
        await pass_time(4)
        await engine.execute(Redrive("q", [1, 2]))
        await pass_time(4)
        assert await counts(engine) == {"queued": 2}


async def test_a_redrive_takes_the_unique_key_again_unless_another_job_has_it(engine: Engine) -> None:
    options = JobOptions(unique_key="k")
    await enqueue(engine, "a", options=options)
    await engine.execute(Cancel("q", [1]))
    await enqueue(engine, "b", options=options)
    await refusal(engine, Redrive("q", [1]), UniqueKeyTaken)
    await engine.execute(Cancel("q", [2]))
    assert (await engine.execute(Redrive("q", [1]))).single().state is JobState.QUEUED
    assert (await enqueue(engine, "c", options=options))[0] == EnqueuedJob(1, JobState.QUEUED, existing=True)
    await refusal(engine, Redrive("q", [2]), UniqueKeyTaken)


# --- run now


async def test_a_redrive_needs_room_among_the_jobs_that_wait(settings: Settings) -> None:
    async with open_engine(replace(settings, queued_jobs_max=3)) as engine:
        await enqueue(engine, "a", "b", "c")
        await engine.execute(Cancel("q", [1, 2, 3]))
        await enqueue(engine, "d", "e")
        assert (await bulk(engine, BulkVerb.REDRIVE)) == BulkDone(1, 2, None)
        await refusal(engine, Redrive("q", [2]), QueueFull)
        await engine.execute(Cancel("q", [4]))
        await give_policy(engine, queued_jobs_max=2)
        assert "its policy's" in str(await refusal(engine, Redrive("q", [2]), QueueFull))
        await give_policy(engine, queued_jobs_max=3)
        assert (await engine.execute(Redrive("q", [2]))).single().state is JobState.QUEUED


async def test_a_scheduled_job_may_be_run_now_and_stands_at_the_back(engine: Engine) -> None:
    await enqueue(engine, "a", delay_seconds=60)
    await enqueue(engine, "b")
    job = (await engine.execute(RunNow("q", [1]))).single()
    assert (job.state, job.not_before, job.place) == (JobState.QUEUED, None, 2)
    before = whole_state(engine)
    assert (await engine.execute(RunNow("q", [1]))).single() == job
    assert whole_state(engine) == before
    await pass_time(61)
    assert types(await dequeue(engine, 9)) == ["b", "a"]


async def test_a_job_that_waits_for_its_next_try_may_be_run_now(engine: Engine) -> None:
    await fail(engine, await lease(engine), retry_after_seconds=60)
    await engine.execute(RunNow("q", [1]))
    assert (await lease_again(engine)).job.fails == 1


# --- take back


async def test_a_job_that_is_taken_back_stands_at_its_place_and_its_holder_has_lost_it(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    leased = await lease_again(engine, consumer="w1")
    await pass_time(1)
    job = (await engine.execute(TakeBack("q", [1]))).single()
    assert (job.state, job.place, job.fails, job.stales) == (JobState.QUEUED, 1, 0, 0)
    assert job.history == (Attempt(FENCE, "w1", EPOCH_SECONDS, EPOCH_SECONDS + 1, Outcome.RELEASED),)
    for lost in (to_extend(leased), to_fail(leased), shown(leased)):
        verb: Any = {"ExtendClaim": Extend, "FailClaim": Fail, "Claim": Conclude}[type(lost).__name__]
        await refusal(engine, verb([lost]), LeaseLost)
    assert types(await dequeue(engine, 9)) == ["a", "b"]


async def test_taking_back_a_job_that_is_to_be_cancelled_cancels_it(engine: Engine) -> None:
    await lease(engine)
    await engine.execute(Cancel("q", [1]))
    assert (await engine.execute(TakeBack("q", [1]))).single().state is JobState.CANCELLED


# --- forget


async def test_a_forgotten_job_is_answered_a_last_time(engine: Engine, store: FakeStore) -> None:
    jobs = await in_each_state(engine)
    for state in (JobState.CONCLUDED, JobState.DEAD, JobState.CANCELLED):
        last = await read(engine, jobs[state])
        assert (await engine.execute(Forget("q", [last.id]))).single() == last
        assert store.changes[-1] == Change(store.changes[-1].revision, last, None, "forget")
        await refusal(engine, ReadJob("q", last.id), ForgottenJob)
    assert await counts(engine) == {"in_progress": 1, "queued": 1, "scheduled": 1}
    assert [job.id for job in await enqueue(engine, "new")] == [7]


# --- bulk


ALL = JobFilter()


async def bulk(engine: Engine, verb: BulkVerb, where: JobFilter = ALL, **how: Any) -> BulkDone:
    return await execute_in_slices(engine, Bulk("q", verb, where, **how))


@pytest.mark.parametrize(
    ("verb", "able", "left"),
    [
        (BulkVerb.REDRIVE, {2, 3}, {"concluded": 1, "in_progress": 1, "queued": 3, "scheduled": 1}),
        (BulkVerb.PURGE, {1, 2, 3, 5, 6}, {"in_progress": 1}),
        (BulkVerb.RELEASE, {4}, {"concluded": 1, "dead": 1, "cancelled": 1, "queued": 2, "scheduled": 1}),
    ],
)
async def test_a_bulk_verb_is_done_to_all_jobs_to_which_it_can_be_and_a_dry_run_counts_them(
    engine: Engine, store: FakeStore, verb: BulkVerb, able: set[int], left: dict[str, int]
) -> None:
    await in_each_state(engine)
    changes = len(store.changes)
    before = whole_state(engine)
    assert await bulk(engine, verb, dry_run=True) == BulkDone(len(able), 0, None)
    assert whole_state(engine) == before
    assert await bulk(engine, verb) == BulkDone(len(able), 0, None)
    assert {(change.after or change.before).id for change in store.changes[changes:]} == able  # type: ignore[union-attr] # one of them is there
    assert await counts(engine) == left
    assert (await bulk(engine, verb)).count == 0


async def test_a_bulk_verb_is_done_to_the_jobs_that_match(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "a", "a")
    for leased, message in zip(await dequeue(engine, 3, consumer="w1"), ("no route", "no route", "disk"), strict=True):
        await fail(engine, leased, retry=False, error=boom(message))
    await engine.execute(Cancel("q", [4]))
    dead = frozenset({JobState.DEAD})
    assert (await bulk(engine, BulkVerb.REDRIVE, JobFilter(dead, type="a", error="route"))).count == 1
    assert [job.id for job in (await engine.execute(Search("q", JobFilter(dead)))).jobs] == [2, 3]
    assert (await bulk(engine, BulkVerb.PURGE, JobFilter(dead, consumer="w1"))).count == 2
    assert (await bulk(engine, BulkVerb.PURGE, JobFilter(frozenset({JobState.IN_PROGRESS})))).count == 0
    assert await counts(engine) == {"queued": 1, "cancelled": 1}


async def test_a_bulk_verb_on_an_unknown_queue_is_refused(engine: Engine) -> None:
    for verb in BulkVerb:
        assert (await refusal(engine, Bulk("unknown", verb, ALL), UnknownQueue)).field == "queue"
        with pytest.raises(UnknownQueue):
            await execute_in_slices(engine, Bulk("unknown", verb, ALL))


async def test_jobs_whose_key_is_taken_are_counted_apart_when_many_are_redriven(engine: Engine) -> None:
    for name in ("k", "l"):
        await enqueue(engine, "a", options=JobOptions(unique_key=name))
    await engine.execute(Cancel("q", [1, 2]))
    await enqueue(engine, "b", options=JobOptions(unique_key="k"))
    assert await bulk(engine, BulkVerb.REDRIVE) == BulkDone(1, 1, None)
    assert await counts(engine) == {"queued": 2, "cancelled": 1}


async def test_a_purge_frees_the_unique_keys_of_jobs_that_waited(engine: Engine) -> None:
    await enqueue(engine, "a", options=JobOptions(unique_key="k"))
    await enqueue(engine, "b", delay_seconds=9, options=JobOptions(unique_key="l"))
    await bulk(engine, BulkVerb.PURGE)
    for number, name in ((3, "k"), (4, "l")):
        assert await enqueue(engine, "c", options=JobOptions(unique_key=name)) == [EnqueuedJob(number, JobState.QUEUED)]
    await pass_time(10)
    assert await counts(engine) == {"queued": 2}


async def test_one_slice_changes_no_more_than_a_hundred_jobs_and_looks_at_a_bounded_number_of_ids(
    engine: Engine,
) -> None:
    jobs = SCANNED_IDS_MAX + 2 * BULK_JOBS_MAX
    await enqueue(engine, *["a"] * jobs, "b")
    slice_ = Bulk("q", BulkVerb.PURGE, JobFilter(type="b"))
    assert await engine.execute(slice_) == BulkDone(0, 0, SCANNED_IDS_MAX, EPOCH_SECONDS)
    assert await engine.execute(replace(slice_, after_id=SCANNED_IDS_MAX)) == BulkDone(1, 0, None, EPOCH_SECONDS)
    slice_ = Bulk("q", BulkVerb.PURGE, ALL)
    assert await engine.execute(slice_) == BulkDone(BULK_JOBS_MAX, 0, BULK_JOBS_MAX, EPOCH_SECONDS)
    assert await counts(engine) == {"queued": jobs - BULK_JOBS_MAX}
    assert await engine.execute(replace(slice_, after_id=jobs - 50)) == BulkDone(50, 0, None, EPOCH_SECONDS)


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        (BulkVerb.PURGE, "queued", None),
        (BulkVerb.RELEASE, "in_progress", "queued"),
        (BulkVerb.REDRIVE, "cancelled", "queued"),
    ],
)
async def test_others_are_served_between_the_slices_of_a_bulk_command(
    engine: Engine, nursery: trio.Nursery, verb: BulkVerb, before: str, after: str | None
) -> None:
    jobs = 4 * BULK_JOBS_MAX + 1
    await enqueue(engine, *["a"] * jobs)
    if before == "in_progress":
        await dequeue(engine, jobs)
    if before == "cancelled":
        await engine.execute(Cancel("q", range(1, jobs + 1)))
    seen: list[int] = []
    done: list[BulkDone] = []

    async def work() -> None:
        done.append(await bulk(engine, verb))

    nursery.start_soon(work)
    while not done:
        seen.append((await counts(engine)).get(before, 0))
    assert done == [BulkDone(jobs, 0, None)]
    assert len(set(seen) & {n * BULK_JOBS_MAX + 1 for n in range(4)}) >= 2
    assert await counts(engine) == ({after: jobs} if after else {})


async def test_jobs_that_come_while_the_slices_are_worked_through_are_not_meant(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    jobs = BULK_JOBS_MAX + 10
    await enqueue(engine, *["a"] * jobs)
    store.seconds = 1
    done: list[BulkDone] = []

    async def work() -> None:
        done.append(await bulk(engine, BulkVerb.PURGE))

    nursery.start_soon(work)
    await pass_time(0.5)
    await enqueue(engine, "new")
    await pass_time(9)
    assert done == [BulkDone(jobs, 0, None)]
    assert [job.id for job in (await engine.execute(Search("q", ALL))).jobs] == [jobs + 1]


class Refusing:
    """An engine whose n-th command is refused, counted from 0."""

    def __init__(self, engine: Engine, refusals: dict[int, QueueError]) -> None:
        self._engine = engine
        self._refusals = refusals
        self._commands = 0

    async def execute(self, command: Command[Any]) -> Any:
        self._commands += 1
        if self._commands - 1 in self._refusals:
            raise self._refusals[self._commands - 1]
        return await self._engine.execute(command)


async def many(engine: Engine, refusals: dict[int, QueueError], told: list[int]) -> BulkDone:
    """A purge of what takes three slices, after the command that asks how many jobs there are."""
    await enqueue(engine, *["a"] * (2 * BULK_JOBS_MAX + 10))
    refusing: Any = Refusing(engine, refusals)
    return await execute_in_slices(refusing, Bulk("q", BulkVerb.PURGE, ALL), lambda done: told.append(done.count))


async def test_a_full_inbox_refuses_the_first_slice_and_holds_up_the_others(engine: Engine) -> None:
    told: list[int] = []
    with pytest.raises(Busy):
        await many(engine, {1: Busy("full")}, told)
    assert told == []
    assert await counts(engine) == {"queued": 2 * BULK_JOBS_MAX + 10}
    await bulk(engine, BulkVerb.PURGE)
    before = trio.current_time()
    done = await many(engine, {n: Busy("full") for n in (2, 3, 5)}, told)
    assert done == BulkDone(2 * BULK_JOBS_MAX + 10, 0, None)
    assert told == [BULK_JOBS_MAX, BULK_JOBS_MAX, 10]
    assert trio.current_time() - before == pytest.approx(3 * BUSY_SECONDS, abs=0.01)


async def test_who_is_refused_in_the_middle_of_a_bulk_verb_is_not_told_that_nothing_was_done(engine: Engine) -> None:
    told: list[int] = []
    with pytest.raises(OutcomeUnknown, match=f"^{BULK_JOBS_MAX} jobs are done, and no others: it ends$"):
        await many(engine, {2: Draining("it ends")}, told)
    assert told == [BULK_JOBS_MAX]
    assert await counts(engine) == {"queued": BULK_JOBS_MAX + 10}


async def test_a_bulk_verb_may_end_at_an_id_and_begin_after_one(engine: Engine) -> None:
    await enqueue(engine, *"abcdef")
    assert await bulk(engine, BulkVerb.PURGE, after_id=1, until_id=4) == BulkDone(3, 0, None)
    assert await bulk(engine, BulkVerb.PURGE, after_id=5, until_id=99) == BulkDone(1, 0, None)
    assert [job.id for job in (await engine.execute(Search("q", ALL))).jobs] == [1, 5]


async def test_a_redrive_at_a_rate_schedules_the_jobs_so_far_apart_over_all_slices(engine: Engine) -> None:
    jobs = BULK_JOBS_MAX + 200
    await enqueue(engine, *["a"] * jobs)
    await engine.execute(Cancel("q", range(1, jobs + 1)))
    await pass_time(5)
    begun = EPOCH_SECONDS + trio.current_time()
    assert await bulk(engine, BulkVerb.REDRIVE, per_second=20) == BulkDone(jobs, 0, None)
    for id_ in (1, 2, 21, BULK_JOBS_MAX, BULK_JOBS_MAX + 1, jobs):
        job = await read(engine, id_)
        assert job.state is JobState.SCHEDULED
        assert job.not_before == pytest.approx(begun + (id_ - 1) / 20)
        assert (job.finished_at, job.cancel_requested) == (None, False)
    await pass_time(2.001)
    assert (await counts(engine))["queued"] == 41
    assert ids(await dequeue(engine, 2)) == [1, 2]
    await engine.execute(Cancel("q", [jobs]))
    await pass_time(jobs / 20)
    assert await counts(engine) == {"queued": jobs - 3, "in_progress": 2, "cancelled": 1}


async def test_a_rate_has_no_say_in_other_bulk_verbs(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await dequeue(engine, 2)
    assert (await bulk(engine, BulkVerb.RELEASE, per_second=1)).count == 2
    assert await counts(engine) == {"queued": 2}


async def test_jobs_released_in_bulk_keep_their_places_and_wishes_are_granted(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c", "d")
    await dequeue(engine, 3)
    await engine.execute(Cancel("q", [2]))
    assert await bulk(engine, BulkVerb.RELEASE) == BulkDone(3, 0, None)
    assert types(await dequeue(engine, 9)) == ["a", "c", "d"]
    assert (await read(engine, 2)).state is JobState.CANCELLED
