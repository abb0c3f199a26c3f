"""The rules of one job's life, told command by command: no engine, no clock. tests/contract goes into their corners."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Enqueue,
    EnqueuedJob,
    Fail,
    FailClaim,
    JobFilter,
    Lease,
    NewJob,
    R,
    ReadJob,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    Sweep,
)
from queue_actor.errors import LeaseLost, QueueFull, UniqueKeyTaken
from queue_actor.jobs import DeathReason, Jitter, Job, JobError, JobOptions, JobState, Now, OnExisting, Outcome, Retry
from queue_actor.settings import Settings
from queue_actor.state_machine import BULK_JOBS_MAX, StateMachine
from queue_actor.tokens import SECRET_BYTES

SECRET = bytes(range(SECRET_BYTES))
LEASE_SECONDS = 30.0


class Life:
    """A machine, and the time that passes between its commands."""

    def __init__(self, **settings: Any) -> None:
        self.machine = StateMachine(Settings(lease_seconds=LEASE_SECONDS, **settings), secret=SECRET)
        self.now = Now(monotonic=100.0, wall=1_000.0)

    def __call__(self, command: Command[R]) -> R:
        return self.machine.apply(command, self.now)

    def passes(self, seconds: float) -> None:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)

    def enqueue(self, **facts: Any) -> EnqueuedJob:
        (job,) = self(Enqueue("q", [NewJob("work", **facts)])).jobs
        assert isinstance(job, EnqueuedJob)
        return job

    def dequeue(self) -> Lease:
        (lease,) = self(Dequeue("q", consumer="w")).leases
        return lease

    def fail(self, lease: Lease, **facts: Any) -> Job:
        return self(Fail([FailClaim("q", lease.job.id, lease.token, **facts)])).single()

    @property
    def job(self) -> Job:
        return self(ReadJob("q", 1))


@pytest.fixture
def life() -> Life:
    return Life()


def claim(lease: Lease) -> Claim:
    return Claim("q", lease.job.id, lease.token)


def test_a_job_is_queued_then_leased_then_concluded(life: Life) -> None:
    assert life.enqueue() == EnqueuedJob(1, JobState.QUEUED)
    lease = life.dequeue()
    assert (lease.job.state, lease.job.consumer, lease.job.attempts) == (JobState.IN_PROGRESS, "w", 1)
    assert lease.job.lease_expires_at == life.now.wall + LEASE_SECONDS
    life.passes(5)
    job = life(Conclude([claim(lease)])).single()
    assert (job.state, job.finished_at, job.lease_expires_at) == (JobState.CONCLUDED, 1_005.0, None)
    assert [(attempt.fence, attempt.outcome) for attempt in job.history] == [(lease.job.fence, Outcome.CONCLUDED)]
    assert job == life.job


def test_a_leased_job_is_handed_out_to_nobody_else(life: Life) -> None:
    life.enqueue()
    life.dequeue()
    assert life(Dequeue("q")).leases == []


def test_a_lease_ends_when_it_is_swept_and_not_before(life: Life) -> None:
    life.enqueue()
    lease = life.dequeue()
    life.passes(LEASE_SECONDS - 0.001)
    assert life(Sweep()).stale == 0
    life.passes(1)
    assert life.job == lease.job
    assert life(Sweep()).stale == 1
    assert (life.job.state, life.job.stales) == (JobState.QUEUED, 1)


def test_a_conclude_after_the_deadline_counts_if_it_comes_before_the_sweep(life: Life) -> None:
    life.enqueue()
    lease = life.dequeue()
    life.passes(LEASE_SECONDS * 2)
    assert life(Conclude([claim(lease)])).single().state is JobState.CONCLUDED
    assert life(Sweep()).stale == 0


def test_a_worker_that_comes_too_late_is_told_and_changes_nothing(life: Life) -> None:
    life.enqueue()
    late = life.dequeue()
    life.passes(LEASE_SECONDS)
    life(Sweep())
    with pytest.raises(LeaseLost):
        life(Conclude([claim(late)])).single()
    holder = life.dequeue()
    with pytest.raises(LeaseLost):
        life(Conclude([claim(late)])).single()
    assert life.job == holder.job


def test_only_the_token_that_concluded_may_say_so_again(life: Life) -> None:
    life.enqueue()
    released = life.dequeue()
    life(Release([ReleaseClaim("q", 1, released.token)]))
    lease = life.dequeue()
    concluded = life(Conclude([claim(lease)])).single()
    assert life(Conclude([claim(lease)])).single() == concluded
    for token in (released.token, lease.token[:-1] + ("0" if lease.token[-1] != "0" else "1"), "é"):
        with pytest.raises(LeaseLost):
            life(Conclude([Claim("q", 1, token)])).single()


def test_fences_grow_with_each_lease_whichever_job_it_is_of(life: Life) -> None:
    for _ in range(3):
        life.enqueue()
    fences = [life.dequeue().job.fence for _ in range(3)]
    life.passes(LEASE_SECONDS)
    life(Sweep())
    fences += [life.dequeue().job.fence for _ in range(3)]
    assert fences == sorted(set(fences))
    assert fences[0] == 1_000 * 1_000_000, "they begin at the wall clock, in microseconds"


def test_a_failed_job_waits_longer_each_time_and_dies_in_the_end(life: Life) -> None:
    retry = Retry(base_seconds=10.0, factor=3.0, jitter=Jitter.NONE)
    life.enqueue(options=JobOptions(max_attempts=3, retry=retry))
    for fails, seconds in ((1, 10), (2, 30)):
        job = life.fail(life.dequeue(), error=JobError("Timeout", "again"))
        assert (job.state, job.fails, job.not_before) == (JobState.SCHEDULED, fails, life.now.wall + seconds)
        life.passes(seconds)
        assert life(Sweep()).due == 1
    dead = life.fail(life.dequeue(), error=JobError("Timeout", "enough"))
    assert (dead.state, dead.reason, dead.fails) == (JobState.DEAD, DeathReason.FAILED, 3)
    assert [attempt.error and attempt.error.message for attempt in dead.history] == ["again", "again", "enough"]


def test_a_job_that_is_not_worth_another_try_dies_at_once(life: Life) -> None:
    life.enqueue()
    dead = life.fail(life.dequeue(), retry=False)
    assert (dead.state, dead.reason) == (JobState.DEAD, DeathReason.KILLED)


def test_a_cancel_is_a_wish_while_the_job_is_in_progress(life: Life) -> None:
    for _ in range(2):
        life.enqueue()
    wins, gives_up = life.dequeue(), life.dequeue()
    for job in life(Cancel("q", [1, 2])).jobs:
        assert isinstance(job, Job)
        assert (job.state, job.cancel_requested) == (JobState.IN_PROGRESS, True)
    assert life(Conclude([claim(wins)])).single().state is JobState.CONCLUDED
    assert life.fail(gives_up).state is JobState.CANCELLED


def test_a_redriven_job_begins_anew_with_its_history(life: Life) -> None:
    life.enqueue()
    dead = life.fail(life.dequeue(), retry=False)
    job = life(Redrive("q", [1])).single()
    assert (job.state, job.fails, job.reason, job.finished_at) == (JobState.QUEUED, 0, None, None)
    assert job.history == dead.history
    assert life.dequeue().job.attempts == 2


def test_a_unique_key_belongs_to_one_job_until_it_is_finished(life: Life) -> None:
    keyed = JobOptions(unique_key="k")
    life.enqueue(options=keyed)
    assert life.enqueue(options=keyed) == EnqueuedJob(1, JobState.QUEUED, existing=True)
    (refused,) = life(Enqueue("q", [NewJob("work", options=keyed, on_existing=OnExisting.REFUSE)])).jobs
    assert isinstance(refused, UniqueKeyTaken)
    lease = life.dequeue()
    assert life.enqueue(options=keyed).existing
    life(Conclude([claim(lease)]))
    assert life.enqueue(options=keyed) == EnqueuedJob(2, JobState.QUEUED)


def test_a_purge_goes_slice_by_slice_and_leaves_what_is_in_progress(life: Life) -> None:
    life(Enqueue("q", [NewJob("work")] * (BULK_JOBS_MAX + 2)))
    life.dequeue()
    purge = Bulk("q", BulkVerb.PURGE, JobFilter())
    first = life(purge)
    assert (first.count, first.next_after) == (BULK_JOBS_MAX, BULK_JOBS_MAX + 1)
    second = life(replace(purge, after_id=first.next_after))
    assert (second.count, second.next_after) == (1, None)
    counts = life(ReadQueue("q")).counts
    assert {state: count for state, count in counts.items() if count} == {JobState.IN_PROGRESS: 1}


def test_a_refused_enqueue_adds_none_of_its_jobs() -> None:
    life = Life(queued_jobs_max=2)
    life.enqueue()
    with pytest.raises(QueueFull):
        life(Enqueue("q", [NewJob("work")] * 2))
    assert life(ReadQueue("q")).last_id == 1
    assert life.enqueue().id == 2


def test_the_same_commands_at_the_same_moments_give_the_same_replies() -> None:
    def told() -> list[Any]:
        life, replies = Life(), list[Any]()
        replies += [life.enqueue(priority=n % 2) for n in range(4)]
        for n in range(6):
            leases = life(Dequeue("q", count=2)).leases
            replies += leases
            replies += [life.fail(lease) for lease in leases[: n % 3]]  # its pause is drawn, as it would be again
            life.passes(LEASE_SECONDS + n)
            replies.append(life(Sweep()))
        return replies

    assert told() == told()
