"""An attempt, from its lease to its end: conclude, fail, extend, release, and leases that run out; on each engine."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Conclude,
    Enqueue,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    JobFilter,
    Lease,
    NewJob,
    Release,
    ReleaseClaim,
    RunNow,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    LeaseLost,
    MemoryFull,
    NotInProgress,
    OtherConsumer,
    QueueError,
    RunTooLong,
    UnknownJob,
)
from queue_actor.jobs import (
    HISTORY_ATTEMPTS_MAX,
    Attempt,
    DeathReason,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    Outcome,
    Retry,
    RetryKind,
)
from queue_actor.settings import Settings
from tests.contract.state import whole_state
from tests.contract.verbs import (
    AT_ONCE,
    FENCE,
    accepted,
    boom,
    conclude,
    counts,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_extend,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS, FakeStore, jump
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


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
    pytest.param(Fail, FailClaim, id="fail"),
    pytest.param(Extend, ExtendClaim, id="extend"),
    pytest.param(Release, ReleaseClaim, id="release"),
]


@pytest.mark.parametrize(("verb", "claim"), VERBS)
class TestAClaim:
    """What conclude, fail, extend and release ask of their caller alike."""

    async def test_with_a_token_that_is_none_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine)
        wrong = ["", "?", "0" * 46, leased.token[:-1] + ("0" if leased.token[-1] != "0" else "1"), "é" * 46]
        for token in wrong:
            await refusal(engine, verb([claim("q", 1, token)]), LeaseLost)

    async def test_with_the_token_of_another_job_has_lost_the_lease(
        self, engine: Engine, verb: Any, claim: Any
    ) -> None:
        await lease(engine)
        second = await lease(engine)
        await enqueue(engine, "a", queue="other")
        (other,) = await dequeue(engine, queue="other")
        for leased in (second, other):
            await refusal(engine, verb([claim("q", 1, leased.token)]), LeaseLost)

    async def test_with_an_older_token_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        first = await lease(engine, lease_seconds=1)
        await pass_time(1)
        await refusal(engine, verb([claim("q", 1, first.token)]), LeaseLost)
        (second,) = await dequeue(engine)
        await refusal(engine, verb([claim("q", 1, first.token)]), LeaseLost)
        assert not isinstance((await engine.execute(verb([claim("q", 1, second.token)]))).single(), QueueError)

    async def test_without_a_token_needs_the_name_of_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine, consumer="w1")
        for consumer in ("w2", None):
            refused = await refusal(engine, verb([claim("q", 1, consumer=consumer)]), OtherConsumer)
            assert refused.field == "consumer"
        await engine.execute(verb([claim("q", 1, consumer="w1")]))

    async def test_a_token_alone_decides_whatever_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine, consumer="w1")
        (await engine.execute(verb([claim("q", 1, leased.token, "w2")]))).single()

    async def test_anyone_may_act_on_an_anonymous_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine)
        (await engine.execute(verb([claim("q", 1, consumer="whoever")]))).single()

    async def test_on_a_job_that_is_not_in_progress_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        await refusal(engine, verb([claim("q", 1)]), NotInProgress)
        await refusal(engine, verb([claim("q", 1, "token")]), LeaseLost)
        await engine.execute(Cancel("q", [1]))
        await refusal(engine, verb([claim("q", 1)]), NotInProgress)
        await enqueue(engine, "b", delay_seconds=9)
        await refusal(engine, verb([claim("q", 2)]), NotInProgress)
        leased = await lease(engine)
        await fail(engine, leased, retry=False)
        await refusal(engine, verb([claim("q", 3)]), NotInProgress)
        await refusal(engine, verb([claim("q", 3, leased.token[:-1])]), LeaseLost)

    async def test_on_an_unknown_job_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        for queue, id_ in (("q", 2), ("q", 0), ("q", -1), ("unknown", 1)):
            refused = await refusal(engine, verb([claim(queue, id_)]), UnknownJob)
            assert refused.field == "id"

    async def test_on_a_forgotten_job_is_refused(self, settings: Settings, verb: Any, claim: Any) -> None:
        async with open_engine(replace(settings, retention_seconds=3)) as engine:
            leased = await lease(engine)
            await conclude(engine, leased)
            await pass_time(4.1)
            await refusal(engine, verb([claim("q", 1, leased.token)]), ForgottenJob)

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
    await refusal(engine, Conclude([Claim("q", 1, consumer="w2")]), OtherConsumer)
    await refusal(engine, Release([ReleaseClaim("q", 1, consumer="w1")]), NotInProgress)


async def test_the_token_that_concluded_neither_extends_nor_releases(engine: Engine) -> None:
    leased = await lease(engine)
    await conclude(engine, leased)
    for command in (Extend([to_extend(leased)]), Release([to_release(leased)])):
        await refusal(engine, command, LeaseLost)


async def test_one_command_may_conclude_a_job_twice(engine: Engine) -> None:
    leased = await lease(engine)
    first, second = (await engine.execute(Conclude([shown(leased), shown(leased)]))).jobs
    assert first == second
    assert await counts(engine) == {"concluded": 1}


async def test_one_command_may_conclude_jobs_of_several_queues_in_any_order(engine: Engine) -> None:
    leases = [await lease(engine, queue=queue) for queue in ("q", "r", "r", "q")]
    wrong = replace(shown(leases[0]), token=leases[1].token)
    command = Conclude([shown(leases[0]), shown(leases[2]), wrong, *map(shown, (leases[1], leases[3], leases[2]))])

    results = (await engine.execute(command)).jobs

    assert [(job.queue, job.id) if isinstance(job, Job) else type(job) for job in results] == [
        ("q", 1),
        ("r", 2),
        LeaseLost,
        ("r", 1),
        ("q", 2),
        ("r", 2),
    ]
    assert [await counts(engine, queue) for queue in ("q", "r")] == [{"concluded": 2}] * 2


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
    await refusal(engine, Conclude([shown(leased)]), LeaseLost)
    await conclude(engine, again)


# --- conclude


async def test_the_result_is_kept_and_a_repeat_does_not_change_it(engine: Engine) -> None:
    leased = await lease(engine)
    job = await conclude(engine, leased, result=b'{"ok":true}')
    assert job.result == b'{"ok":true}'
    assert await conclude(engine, leased, result=b"0") == job
    assert await read(engine) == job


async def test_a_job_may_be_concluded_without_a_result(engine: Engine) -> None:
    assert (await conclude(engine, await lease(engine))).result is None
    leased = await lease(engine)
    assert (await engine.execute(Conclude([shown(leased)]))).single().result is None


# --- fail: when a job is tried again


async def test_a_failed_job_waits_and_remembers_what_went_wrong(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(RetryKind.FIXED, base_seconds=10, jitter=Jitter.NONE))
    leased = await lease(engine, consumer="w1")
    await enqueue(engine, "b")
    await pass_time(2)
    job = await fail(engine, leased, error=boom("no route"))
    assert (job.state, job.not_before) == (JobState.SCHEDULED, EPOCH_SECONDS + 12)
    assert (job.attempts, job.fails, job.stales, job.lease_expires_at) == (1, 1, 0, None)
    assert job.history == (Attempt(FENCE, "w1", EPOCH_SECONDS, EPOCH_SECONDS + 2, Outcome.FAILED, boom("no route")),)
    await pass_time(9.999)
    assert await counts(engine) == {"scheduled": 1, "queued": 1}
    await pass_time(0.002)
    again = (await dequeue(engine, 2))[1]  # behind those that came meanwhile
    assert (again.job.id, again.job.attempts, again.job.fence) == (1, 2, FENCE + 2)


async def test_a_failed_job_that_need_not_wait_goes_to_the_back_at_once(engine: Engine) -> None:
    leased = await lease(engine)
    await enqueue(engine, "b")
    job = await fail(engine, leased, retry_after_seconds=0)
    assert (job.state, job.place) == (JobState.QUEUED, 3)
    await give_policy(engine, retry=AT_ONCE)
    assert types(await dequeue(engine)) == ["b"]
    assert (await fail(engine, await lease_again(engine))).state is JobState.QUEUED


async def test_its_worker_may_say_when_a_job_shall_be_tried_again(engine: Engine) -> None:
    job = await fail(engine, await lease(engine), retry_after_seconds=77)
    assert (job.state, job.not_before) == (JobState.SCHEDULED, EPOCH_SECONDS + 77)


async def test_its_worker_may_say_that_there_is_no_use_in_trying_again(engine: Engine) -> None:
    await pass_time(1)
    job = await fail(engine, await lease(engine), retry=False, retry_after_seconds=5, error=boom())
    assert (job.state, job.reason, job.finished_at) == (JobState.DEAD, DeathReason.KILLED, EPOCH_SECONDS + 1)
    assert (job.fails, job.not_before) == (1, None)
    assert job.history[-1].error == boom()


async def test_the_token_that_failed_may_say_so_again_and_changes_nothing(engine: Engine) -> None:
    leased = await lease(engine)
    job = await fail(engine, leased, error=boom())
    before = whole_state(engine)
    assert await fail(engine, leased, retry=False) == job
    assert whole_state(engine) == before
    await engine.execute(RunNow("q", [1]))
    again = await lease_again(engine)
    assert await fail(engine, leased) == again.job
    for wrong in (Conclude([shown(leased)]), Release([to_release(leased)]), Extend([to_extend(leased)])):
        await refusal(engine, wrong, LeaseLost)
    await conclude(engine, again)
    assert (await fail(engine, leased)).state is JobState.CONCLUDED


async def test_a_late_failure_is_accepted_before_the_sweep(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=5)
    jump(6)
    job = await fail(engine, leased)
    assert (job.fails, job.stales) == (1, 0)


async def pauses(engine: Engine, tries: int, **new: Any) -> list[float]:
    """How long a new job waits after each failure."""
    leased, waited = await lease(engine, NewJob("a", **new)), []
    for _ in range(tries):
        job = await fail(engine, leased)
        waited.append(0.0 if job.not_before is None else job.not_before - EPOCH_SECONDS - trio.current_time())
        await engine.execute(RunNow("q", [job.id]))
        leased = await lease_again(engine)
    await conclude(engine, leased)
    return waited


async def test_the_pauses_between_attempts_grow_exponentially_up_to_the_cap(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(base_seconds=2, factor=3, cap_seconds=100, jitter=Jitter.NONE))
    await pass_time(10)
    assert await pauses(engine, 6) == [2, 6, 18, 54, 100, 100]


async def test_with_full_jitter_a_pause_is_drawn_from_nothing_to_the_exponential_one(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(base_seconds=2, factor=3, cap_seconds=100))
    drawn = [await pauses(engine, 5) for _ in range(60)]
    for tries, most in enumerate([2, 6, 18, 54, 100]):
        column = [each[tries] for each in drawn]
        assert 0 <= min(column) < 0.2 * most
        assert 0.8 * most < max(column) <= most
        assert 0.3 * most < sum(column) / len(column) < 0.7 * most
        assert len(set(column)) > 50


async def test_a_fixed_pause_does_not_grow(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(RetryKind.FIXED, base_seconds=7, jitter=Jitter.NONE))
    assert await pauses(engine, 4) == [7, 7, 7, 7]
    await give_policy(engine, retry=Retry(RetryKind.FIXED, base_seconds=7))
    assert 0 < max(await pauses(engine, 20)) <= 7


async def test_a_job_may_have_a_retry_policy_of_its_own(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(RetryKind.FIXED, base_seconds=7, jitter=Jitter.NONE))
    own = JobOptions(retry=Retry(base_seconds=1, jitter=Jitter.NONE))
    assert await pauses(engine, 3, options=own) == [1, 2, 4]


# --- how often a job is tried


@pytest.mark.parametrize("own", [False, True])
async def test_a_job_that_failed_max_attempts_times_is_dead(engine: Engine, own: bool) -> None:
    await give_policy(engine, retry=AT_ONCE, max_attempts=9 if own else 3)
    leased = await lease(engine, NewJob("a", options=JobOptions(max_attempts=3 if own else None)))
    for fails in (1, 2):
        job = await fail(engine, leased)
        assert (job.state, job.fails) == (JobState.QUEUED, fails)
        leased = await lease_again(engine)
    job = await fail(engine, leased, retry_after_seconds=5)
    assert (job.state, job.reason, job.fails, job.attempts) == (JobState.DEAD, DeathReason.FAILED, 3, 3)


async def test_a_job_of_the_default_queue_is_tried_for_ever(engine: Engine) -> None:
    leased = await lease(engine, queue="default")
    for _ in range(60):
        assert (await fail(engine, leased, retry_after_seconds=0)).state is JobState.QUEUED
        leased = await lease_again(engine, queue="default", lease_seconds=1)
    for _ in range(30):
        await pass_time(1.001)
        await engine.execute(RunNow("default", [1]))
        leased = await lease_again(engine, queue="default", lease_seconds=1)
    assert (leased.job.fails, leased.job.stales, leased.job.attempts) == (60, 30, 91)


async def test_another_queue_that_was_told_nothing_gives_up_after_25_attempts(engine: Engine) -> None:
    leased = await lease(engine)
    while (await fail(engine, leased, retry_after_seconds=0)).state is JobState.QUEUED:
        leased = await lease_again(engine)
    assert leased.job.attempts == 25


async def test_failed_and_stale_attempts_are_counted_apart_and_both_spend_the_attempts(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE, max_attempts=4)
    leased = await lease(engine, lease_seconds=1)
    await fail(engine, leased)
    await dequeue(engine, lease_seconds=1)
    await pass_time(1.001)
    await fail(engine, await lease_again(engine))
    job = await read(engine)
    assert (job.state, job.attempts, job.fails, job.stales) == (JobState.QUEUED, 3, 2, 1)
    assert [attempt.outcome for attempt in job.history] == [Outcome.FAILED, Outcome.STALE, Outcome.FAILED]
    await dequeue(engine, lease_seconds=1)
    await pass_time(1.001)
    job = await read(engine)
    assert (job.state, job.reason, job.fails, job.stales) == (JobState.DEAD, DeathReason.STALE, 2, 2)


async def test_released_attempts_are_not_counted(engine: Engine) -> None:
    await give_policy(engine, max_attempts=1)
    leased = await lease(engine)
    for _ in range(5):
        job = await release(engine, leased)
        assert (job.state, job.fails, job.stales) == (JobState.QUEUED, 0, 0)
        leased = await lease_again(engine)
    assert leased.job.attempts == 6
    assert (await fail(engine, leased)).state is JobState.DEAD


@pytest.mark.parametrize("most", [1, 3, 5])
async def test_a_job_that_went_stale_max_stale_times_is_dead(engine: Engine, most: int) -> None:
    if most == 5:
        await give_policy(engine, retry=AT_ONCE)  # 5 is what a queue has that says nothing else
    else:
        await give_policy(engine, retry=AT_ONCE, max_stale=most)
    await enqueue(engine, "a")
    for stales in range(1, most + 1):
        await dequeue(engine, lease_seconds=1)
        await pass_time(1.001)
        job = await read(engine)
        assert (job.stales, job.fails) == (stales, 0)
        assert job.state is (JobState.DEAD if stales == most else JobState.QUEUED)
    job = await read(engine)
    assert job.reason is DeathReason.STALE
    assert job.finished_at == pytest.approx(EPOCH_SECONDS + most, abs=0.1)


async def test_from_its_second_stale_return_on_a_job_waits_by_the_retry_policy(engine: Engine) -> None:
    await give_policy(engine, retry=Retry(base_seconds=4, factor=3, jitter=Jitter.NONE))
    await enqueue(engine, "a", "b", "c")

    async def goes_stale() -> Job:
        (leased,) = await dequeue(engine, lease_seconds=1)
        assert leased.job.id == 1
        await pass_time(1.001)
        return await read(engine)

    first = await goes_stale()
    assert (first.state, first.place) == (JobState.QUEUED, 1)
    second = await goes_stale()
    assert (second.state, second.stales) == (JobState.SCHEDULED, 2)
    assert second.not_before == pytest.approx(second.history[-1].ended_at + 4)
    assert types(await dequeue(engine)) == ["b"]
    await pass_time(4)
    assert (await read(engine)).place == 4  # behind all others
    assert types(await dequeue(engine)) == ["c"]
    third = await goes_stale()
    assert third.not_before == pytest.approx(third.history[-1].ended_at + 12)


# --- history


async def test_each_attempt_that_ended_leaves_who_when_how_and_why(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE)
    await enqueue(engine, "a")

    async def attempt(number: int) -> Lease:
        leased = await lease_again(engine, consumer=f"w{number}", lease_seconds=1)
        assert leased.job.started_at == EPOCH_SECONDS + trio.current_time()
        return leased

    first = await attempt(1)
    await pass_time(0.5)
    await fail(engine, first, error=boom("one"))
    await pass_time(0.5)
    await release(engine, await attempt(2))
    await attempt(3)
    await pass_time(1.001)
    await fail(engine, await attempt(4))
    last = await attempt(5)
    await pass_time(0.25)
    job = await conclude(engine, last)
    at = EPOCH_SECONDS
    assert job.history == (
        Attempt(FENCE, "w1", at, at + 0.5, Outcome.FAILED, boom("one")),
        Attempt(FENCE + 1, "w2", at + 1, at + 1, Outcome.RELEASED),
        Attempt(FENCE + 2, "w3", at + 1, job.history[2].ended_at, Outcome.STALE),
        Attempt(FENCE + 3, "w4", job.history[3].started_at, job.history[3].ended_at, Outcome.FAILED),
        Attempt(FENCE + 4, "w5", job.history[4].started_at, job.history[4].started_at + 0.25, Outcome.CONCLUDED),
    )
    assert at + 2 <= job.history[2].ended_at <= at + 2.002
    assert (job.attempts, job.consumer) == (5, "w5")


async def test_a_job_remembers_its_last_attempts_and_no_more(engine: Engine) -> None:
    leased = await lease(engine, queue="default")
    for number in range(HISTORY_ATTEMPTS_MAX + 5):
        await fail(engine, leased, error=boom(str(number)), retry_after_seconds=0)
        leased = await lease_again(engine, queue="default")
    history = leased.job.history
    assert len(history) == HISTORY_ATTEMPTS_MAX
    assert [attempt.error for attempt in history] == [boom(str(n)) for n in range(5, HISTORY_ATTEMPTS_MAX + 5)]
    assert leased.job.attempts == HISTORY_ATTEMPTS_MAX + 6


# --- progress, and the length of an attempt


async def test_progress_is_kept_until_other_progress_comes(engine: Engine) -> None:
    leased = await lease(engine)
    assert (await extend(engine, leased, progress=b"1")).progress == b"1"
    assert (await extend(engine, leased)).progress == b"1"
    assert (await extend(engine, leased, progress=b"22")).progress == b"22"
    assert (await conclude(engine, leased, result=b"3")).progress == b"22"


async def test_an_extension_says_that_the_job_is_to_be_cancelled(engine: Engine) -> None:
    leased = await lease(engine)
    assert not (await extend(engine, leased)).cancel_requested
    await engine.execute(Cancel("q", [1]))
    job = await extend(engine, leased)
    assert (job.cancel_requested, job.state) == (True, JobState.IN_PROGRESS)


@pytest.mark.parametrize("how", [{}, {"retry": False}, {"retry_after_seconds": 5}])
async def test_a_job_that_was_to_be_cancelled_is_when_it_fails(engine: Engine, how: dict[str, Any]) -> None:
    leased = await lease(engine)
    await engine.execute(Cancel("q", [1]))
    job = await fail(engine, leased, error=boom(), **how)
    assert (job.state, job.reason, job.fails) == (JobState.CANCELLED, None, 1)
    assert job.finished_at == EPOCH_SECONDS
    assert job.history[-1].error == boom()


@pytest.mark.parametrize("stales", [1, 2, 3])
async def test_a_job_that_was_to_be_cancelled_is_when_it_goes_stale_the_last_time_too(
    engine: Engine, stales: int
) -> None:
    await give_policy(engine, retry=AT_ONCE, max_stale=3)
    await enqueue(engine, "a")
    for _ in range(stales - 1):
        await dequeue(engine, lease_seconds=1)
        await pass_time(1.001)
    await dequeue(engine, lease_seconds=1)
    await engine.execute(Cancel("q", [1]))
    await pass_time(1.001)
    job = await read(engine)
    assert (job.state, job.reason, job.stales) == (JobState.CANCELLED, None, stales)


async def test_an_attempt_lasts_no_longer_than_run_seconds_max_however_often_it_is_extended(engine: Engine) -> None:
    await give_policy(engine, run_seconds_max=10)
    leased = await lease(engine, lease_seconds=4)
    for _ in range(2):
        await pass_time(3)
        await extend(engine, leased)
    await pass_time(0.5)  # at 6.5 of 10 seconds
    refused = await refusal(engine, Extend([to_extend(leased)]), RunTooLong)
    assert refused.field == "lease_seconds"
    assert "3.5 s more" in str(refused)
    await refusal(engine, Extend([to_extend(leased, 3.501, progress=b"1")]), RunTooLong)
    await extend(engine, leased, 3.5)
    await pass_time(3.499)
    assert (await read(engine)).state is JobState.IN_PROGRESS
    await pass_time(0.002)
    assert (await read(engine)).stales == 1


async def test_a_lease_is_given_no_longer_than_an_attempt_may_last(engine: Engine) -> None:
    await give_policy(engine, run_seconds_max=10)
    leased = await lease(engine)
    assert (leased.job.lease_seconds, leased.job.lease_expires_at) == (10, EPOCH_SECONDS + 10)
    await pass_time(5)
    await release(engine, leased)
    again = await lease_again(engine)  # each attempt has its own time
    await pass_time(9.999)
    await conclude(engine, again)


# --- memory


async def test_whatever_an_attempt_leaves_is_counted_and_given_back(settings: Settings) -> None:
    async with open_engine(replace(settings, memory_bytes_max=1_024)) as engine:
        await give_policy(engine, "default", retry=AT_ONCE, max_attempts=None)

        async def free() -> int:
            """The bytes there are room for, found out by asking for them."""
            most = 0
            for step in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1):
                if most + step > 1_024:
                    continue
                reply = Enqueue("probe", [NewJob("probe", b"0" * (most + step))])
                try:
                    (probe,) = accepted(await engine.execute(reply))
                except MemoryFull:
                    continue
                await engine.execute(Bulk("probe", BulkVerb.PURGE, JobFilter()))
                assert probe.state is JobState.QUEUED
                most += step
            return most

        assert await free() == 1_024
        await enqueue(engine, "a", payload=b"0" * 100, queue="default")
        assert await free() == 924
        leased = await lease_again(engine, queue="default")
        await extend(engine, leased, progress=b"1" * 10)
        assert await free() == 914
        await extend(engine, leased, progress=b"1" * 4)
        assert await free() == 920
        for fails in range(HISTORY_ATTEMPTS_MAX + 3):
            await fail(engine, leased, error=JobError("Four", "8 bytes."))
            assert await free() == 920 - 12 * min(fails + 1, HISTORY_ATTEMPTS_MAX)
            leased = await lease_again(engine, queue="default")
        await conclude(engine, leased, result=b"2" * 30)
        # The attempt that concluded has pushed out one that failed.
        assert await free() == 920 - 12 * (HISTORY_ATTEMPTS_MAX - 1) - 30
        await engine.execute(Forget("default", [1]))
        assert await free() == 1_024
