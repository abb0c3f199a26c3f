"""The rules of one job's life, told command by command: no engine, no clock. tests/contract goes into their corners."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.changes import Changes, Recovered
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    DeleteQueue,
    Dequeue,
    Dequeued,
    Enqueue,
    EnqueuedJob,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    Lease,
    Measure,
    NewJob,
    Pause,
    R,
    ReadJob,
    ReadQueue,
    Recalled,
    Redrive,
    Release,
    ReleaseClaim,
    Results,
    RunNow,
    SetPolicy,
    Sweep,
    TakeBack,
)
from queue_actor.errors import DiskFull, ForgottenJob, LeaseLost, QueueError, QueueFull, UniqueKeyTaken
from queue_actor.jobs import (
    DeathReason,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    Now,
    OnExisting,
    Outcome,
    QueuePolicy,
    Retry,
)
from queue_actor.settings import Settings
from queue_actor.state_machine import BULK_JOBS_MAX, DISK_BYTES_PER_JOB, SWEEP_JOBS_MIN, StateMachine
from queue_actor.tokens import SECRET_BYTES, Tokens

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

    def policy(self, **facts: Any) -> None:
        self(SetPolicy("q", QueuePolicy(**facts)))

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


def test_a_release_for_less_than_a_second_is_for_that_long(life: Life) -> None:
    life.enqueue()
    lease = life.dequeue()
    job = life(Release([ReleaseClaim("q", 1, lease.token, delay_seconds=0.25)])).single()
    assert (job.state, job.not_before) == (JobState.SCHEDULED, life.now.wall + 0.25)


def test_a_pause_is_drawn_from_the_queue_the_job_and_the_fence(life: Life) -> None:
    life.enqueue(options=JobOptions(retry=Retry(base_seconds=64.0, jitter=Jitter.FULL)))
    lease = life.dequeue()
    drawn = Tokens(SECRET).draw("q", 1, lease.job.fence)
    assert life.fail(lease).not_before == life.now.wall + 64.0 * drawn


def test_a_dequeue_of_several_queues_gives_no_more_jobs_than_it_asked_for(life: Life) -> None:
    for name, number in (("a", 2), ("b", 9)):
        life(Enqueue(name, [NewJob("work")] * number))
    leases = life(Dequeue(("a", "b"), count=5)).leases
    assert [lease.job.queue for lease in leases] == ["a", "a", "b", "b", "b"]


def test_jobs_leased_together_may_have_leases_of_different_lengths(life: Life) -> None:
    for seconds in (10.0, 5.0, None):
        life(Enqueue("q", [NewJob("t", options=JobOptions(lease_seconds=seconds))]))
    leases = life(Dequeue("q", count=3)).leases
    assert len({lease.job.lease_seconds for lease in leases}) == 3
    ends = [life.machine._ledger.leases["q", lease.job.id] for lease in leases]
    assert ends == [life.now.monotonic + lease.job.lease_seconds for lease in leases]


def test_each_so_many_th_dequeue_takes_the_oldest_job(life: Life) -> None:
    life.policy(oldest_every=3)
    for priority in (0, 0, 1, 2, 3, 4, 5):
        life.enqueue(priority=priority)
    assert [life.dequeue().job.id for _ in range(7)] == [7, 6, 1, 5, 4, 2, 3]


def test_a_repeated_dequeue_gives_nothing_again_of_a_queue_that_was_deleted(life: Life) -> None:
    dequeue = Dequeue("q", key=IdempotencyKey("s", "k", b""))
    life.enqueue()
    (lease,) = life(dequeue).leases
    assert life(dequeue) == Dequeued([lease], repeated=True)
    life(Conclude([claim(lease)]))
    life(Forget("q", [1]))
    life(DeleteQueue("q"))
    assert life(dequeue) == Dequeued([], repeated=True)


def test_a_queue_tells_how_many_jobs_came_and_when_it_was_asked_for_one(life: Life) -> None:
    life.enqueue(payload=b"12345")
    life(Enqueue("q", [NewJob("work")] * 3))
    life.passes(10)
    life(Dequeue("q"))
    life.passes(7)
    measured = life(Measure(["q"]))
    (figures,) = measured.queues
    assert (figures.totals["enqueue"], figures.asked_seconds, measured.memory_bytes) == (4, 7, 5)


# --- what an engine needs


def test_a_queue_offers_what_it_may_hand_out(life: Life) -> None:
    assert not life.machine.offers("q")
    life.policy(in_progress_max=2)
    assert not life.machine.offers("q")
    for _ in range(4):
        life.enqueue()
    assert life.machine.offers("q")
    lease = life.dequeue()
    assert life.machine.offers("q")
    life.dequeue()
    assert not life.machine.offers("q"), "as many are in progress as may be"
    life(Conclude([claim(lease)]))
    life.dequeue()
    life.policy()
    assert life.machine.offers("q"), "the last one is offered as well"
    life(Pause("q", paused=True))
    assert not life.machine.offers("q")
    life(Pause("q", paused=False))
    life.dequeue()
    assert not life.machine.offers("q")
    assert not life.machine.offers("other")


def test_the_room_on_the_disk_is_for_jobs_and_twice_their_payloads(life: Life) -> None:
    life.machine.disk_room_bytes = 3 * DISK_BYTES_PER_JOB + 2 * 10
    life.enqueue(payload=b"1234567890")
    assert life.machine.disk_room_bytes == 2 * DISK_BYTES_PER_JOB
    with pytest.raises(DiskFull):
        life(Enqueue("q", [NewJob("work"), NewJob("work", payload=b"1")]))
    life(Enqueue("q", [NewJob("work")] * 2))
    assert life.machine.disk_room_bytes == 0
    with pytest.raises(DiskFull):
        life.enqueue()


@pytest.mark.parametrize("room_bytes", [0, -1])
def test_an_enqueue_that_adds_nothing_needs_no_room(life: Life, room_bytes: int) -> None:
    keyed = JobOptions(unique_key="k")
    life.enqueue(options=keyed, payload=b"12")
    life.machine.disk_room_bytes = room_bytes
    assert life.enqueue(options=keyed).existing
    for payload in (b"1", b"1"):
        assert life.enqueue(options=keyed, payload=payload, on_existing=OnExisting.REPLACE).existing
    with pytest.raises(DiskFull):
        life.enqueue(options=keyed, payload=b"12", on_existing=OnExisting.REPLACE)
    assert life.machine.disk_room_bytes == room_bytes


def restored(life: Life, changes: Changes, *, jobs: list[Job], **settings: Any) -> Life:
    """Another life, which goes on from what a store has kept of one in which all came to pass in one batch."""
    after = Life(**settings)
    after.now = Now(life.now.monotonic + 5_000.0, life.now.wall + 7.0)
    queues = [queue for queue in changes.queues.values() if queue is not None]
    after.machine.restore(Recovered(changes.revision, queues=queues, jobs=jobs, answers=changes.answers), after.now)
    return after


def test_a_new_life_goes_on_where_the_former_one_ended() -> None:
    former, settings = Life(), {"idempotency_seconds": 20.0}
    dequeue = Dequeue("q", key=IdempotencyKey("s", "d", b"1"))
    enqueue = Enqueue("q", [NewJob("work"), NewJob("work")], key=IdempotencyKey("s", "e", b"2"))
    added, (lease,) = former(enqueue), former(dequeue).leases
    changes = former.machine.take_changes()
    assert [(answer.kind, answer.answer) for answer in changes.answers] == [
        ("enqueue", added),
        ("dequeue", (("q", 1, lease.job.fence),)),
    ]
    assert former.machine.take_changes().answers == ()

    life = restored(former, changes, jobs=[lease.job, former(ReadJob("q", 2))], **settings)
    assert life(enqueue) == added
    assert life(dequeue) == Dequeued([lease], repeated=True)
    assert life(ReadQueue("q")).last_id == 2
    life.passes(12.999)
    assert life(dequeue).repeated
    life.passes(0.001)
    assert life(enqueue).jobs == [EnqueuedJob(3, JobState.QUEUED), EnqueuedJob(4, JobState.QUEUED)]
    assert [lease.job.id for lease in life(dequeue).leases] == [2]


def test_the_leases_of_a_former_life_start_again_at_full_length_and_once() -> None:
    former = Life()
    former.enqueue()
    lease = former.dequeue()
    life = restored(former, former.machine.take_changes(), jobs=[lease.job])
    assert life.machine.next_due_seconds(life.now) is None
    life.passes(1)
    life.machine.start_leases(life.now)
    assert life.machine.next_due_seconds(life.now) == LEASE_SECONDS
    assert life.job.lease_expires_at == life.now.wall + LEASE_SECONDS
    assert len(life.machine.take_changes().jobs) == 1
    life.passes(1)
    life.machine.start_leases(life.now)
    assert life.machine.next_due_seconds(life.now) == LEASE_SECONDS - 1
    assert not life.machine.take_changes()


def test_a_machine_without_a_former_life_has_no_leases_to_start(life: Life) -> None:
    life.machine.start_leases(life.now)
    assert not life.machine.take_changes()


def test_a_job_that_only_the_store_has_is_there_for_one_command() -> None:
    former = Life()
    for _ in range(3):
        former.enqueue()
    dead = [former.fail(former.dequeue(), retry=False) for _ in range(3)]
    life = restored(former, former.machine.take_changes(), jobs=[], recent_jobs=0, dead_retention_seconds=100.0)
    departures = {"q": former.machine._queues["q"].departures}
    with pytest.raises(ForgottenJob):
        life(ReadJob("q", 1))
    assert life(Recalled(ReadJob("q", 1), dead[:2], departures)) == dead[0]
    assert life.machine._queues["q"].jobs == {}, "both have left again"
    redriven = life(Recalled(Redrive("q", [3]), dead, departures)).single()
    assert (redriven.state, redriven.ready_at) == (JobState.QUEUED, life.now.wall)
    with pytest.raises(ForgottenJob):
        life(Recalled(Redrive("q", [1]), dead, {"q": departures["q"] - 1}))


def test_a_sweep_says_how_many_jobs_the_store_has_to_find_beyond_their_number() -> None:
    life = Life(retention_jobs=1, dead_retention_jobs=2)
    life.machine.restore(Recovered(), life.now)
    for _ in range(9):
        life.enqueue()
    for _ in range(4):
        life(Conclude([claim(life.dequeue())]))
    for _ in range(4):
        life.fail(life.dequeue(), retry=False)
    swept = life(Sweep())
    assert (swept.over, swept.dead_over, swept.forgotten) == (3, 2, 0)


# --- what refusals say


def refusal(life: Life, command: Command[Any]) -> tuple[str, str, str | None]:
    """Code, detail and field of why a command, or the only job in it, was refused."""
    try:
        reply = life(command)
        if isinstance(reply, Results):
            reply.single()
        (refused,) = reply.jobs
    except QueueError as error:
        refused = error
    assert isinstance(refused, QueueError)
    return refused.code, refused.detail, refused.field


def test_a_refused_enqueue_says_why() -> None:
    life = Life(queues_max=2, queued_jobs_max=3, memory_bytes_max=9, delay_seconds_max=60)
    keyed = JobOptions(unique_key="k")
    life.policy(queued_jobs_max=2)
    life.enqueue(options=keyed)

    def refused(queue: str, *jobs: NewJob) -> tuple[str, str, str | None]:
        return refusal(life, Enqueue(queue, jobs))

    job, late = NewJob("work"), NewJob("work", not_before=life.now.wall + 60.5)
    assert refused("q", job, job) == (
        "queue_full",
        "2 jobs may wait in q, as many as its policy's queued_jobs_max allows",
        None,
    )
    assert refused("r", job, job, job) == (
        "queue_full",
        "3 jobs may wait or run, as many as queued_jobs_max allows",
        None,
    )
    assert refused("q", NewJob("work", payload=b"1234567890")) == (
        "memory_full",
        "9 bytes may be kept, as many as memory_bytes_max allows",
        None,
    )
    assert refused("q", job, late) == (
        "invalid",
        "a job starts at most delay_seconds_max, 60, from now",
        "jobs[1].not_before",
    )
    assert refused("q", NewJob("work", options=keyed, on_existing=OnExisting.REFUSE)) == (
        "unique_key_taken",
        "job 1 has this unique key",
        "unique_key",
    )
    life(Enqueue("r", [job]))
    assert refused("s", job) == ("too_many_queues", "2 queues exist, as many as queues_max allows", "queue")
    life.machine.disk_room_bytes = 0
    assert refused("q", job) == (
        "disk_full",
        "the disk has no room for more jobs: less than disk_reserve_bytes would be left",
        None,
    )


def test_a_refusal_about_a_queue_says_which() -> None:
    life = Life(queues="declared")
    life.policy()
    life.enqueue()
    assert refusal(life, Pause("r", paused=True)) == ("unknown_queue", "there is no queue r", "queue")
    assert refusal(life, Enqueue("r", [NewJob("work")])) == (
        "unknown_queue",
        "there is no queue r, and queues must be declared",
        "queue",
    )
    assert refusal(life, DeleteQueue("q")) == ("queue_not_empty", "queue q holds 1 jobs: purge it first", "queue")
    life(Dequeue("q", holder="h", holder_in_progress_max=1))
    assert refusal(life, Dequeue("q", holder="h", holder_in_progress_max=1)) == (
        "in_progress_limit",
        "h may have 1 jobs in progress, and has them",
        None,
    )


def test_a_refusal_about_a_job_says_what_state_it_is_in(life: Life) -> None:
    keyed = JobOptions(unique_key="k")
    life.enqueue(options=keyed)
    commands: list[Command[Any]] = [Redrive("q", [1]), Forget("q", [1])]
    for command in commands:
        assert refusal(life, command) == ("not_finished", "job 1 is queued", None)
    commands = [TakeBack("q", [1]), Conclude([Claim("q", 1)])]
    for command in commands:
        assert refusal(life, command) == ("not_in_progress", "job 1 is queued", None)
    life.policy(run_seconds_max=10.0)
    life.dequeue()
    assert refusal(life, RunNow("q", [1])) == ("not_waiting", "job 1 is in_progress", None)
    assert refusal(life, Conclude([Claim("q", 1, "0")])) == (
        "lease_lost",
        "the token shown does not hold job 1",
        "token",
    )
    assert refusal(life, Conclude([Claim("q", 1, consumer="v")])) == (
        "other_consumer",
        "job 1 was dequeued by another consumer",
        "consumer",
    )
    for seconds, left in ((4.5, "5.5"), (5.0, "0.5"), (5.0, "0")):
        life.passes(seconds)
        assert refusal(life, Extend([ExtendClaim("q", 1, consumer="w", lease_seconds=20)])) == (
            "run_too_long",
            f"this attempt may last {left} s more",
            "lease_seconds",
        )
    life(Fail([FailClaim("q", 1, consumer="w", retry=False)])).single()
    assert refusal(life, Cancel("q", [1])) == ("already_finished", "job 1 is dead", None)
    life.enqueue(options=keyed)
    assert refusal(life, Redrive("q", [1])) == ("unique_key_taken", "job 2 has the unique key of job 1", None)
    life.dequeue()
    life(Conclude([Claim("q", 2, consumer="w")]))
    assert refusal(life, Redrive("q", [2])) == ("already_finished", "job 2 is concluded", None)


def test_a_sweep_moves_as_many_jobs_as_others_have_changed_so_that_forgetting_keeps_up() -> None:
    life = Life(retention_seconds=0.0)
    forgotten = []
    for _ in range(3):
        life(Enqueue("q", [NewJob("work")] * 500))
        leases = life(Dequeue("q", 500)).leases
        life(Conclude([claim(lease) for lease in leases]))
        forgotten.append(life(Sweep()).forgotten)

    # The first after a pause does not make up for what was before it; one that follows on it does, for 1,500 changes.
    assert forgotten == [SWEEP_JOBS_MIN, 900, SWEEP_JOBS_MIN]


def test_a_sweep_moves_a_hundred_jobs_while_little_else_is_done() -> None:
    life = Life()
    life(Enqueue("q", [NewJob("work")] * 250))
    life(Dequeue("q", 250))
    life(Sweep())
    life.passes(LEASE_SECONDS)

    swept = [life(Sweep()) for _ in range(3)]

    assert [each.stale for each in swept] == [SWEEP_JOBS_MIN, SWEEP_JOBS_MIN, 50]
    assert [each.more for each in swept] == [True, True, False]


def test_a_sweep_moves_no_more_than_its_slice_however_much_is_done() -> None:
    life = Life(sweep_slice=120)
    life(Enqueue("q", [NewJob("work")] * 300))
    life(Dequeue("q", 300))
    life.passes(LEASE_SECONDS)
    assert life(Sweep()).stale == SWEEP_JOBS_MIN
    life(Enqueue("q", [NewJob("work")] * 500))

    assert life(Sweep()).stale == 120
