"""The ledger: each transition, what moves with it, and that it contradicts itself nowhere unnoticed."""

from collections.abc import Callable
from itertools import product
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
    DeleteQueue,
    Dequeue,
    Enqueue,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    JobFilter,
    Lease,
    NewJob,
    Pause,
    Redrive,
    Release,
    ReleaseClaim,
    RunNow,
    SetPolicy,
    Sweep,
)
from queue_actor.jobs import (
    HISTORY_ATTEMPTS_MAX,
    Change,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    Now,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    error_size,
    is_expired,
    size,
)
from queue_actor.ledger import InvariantError, Ledger
from queue_actor.queues import Queue
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES
from queue_actor.transitions import CANCELLED, CONCLUDED, DEAD, IN_PROGRESS, QUEUED, SCHEDULED, TRANSITIONS

START = Now(monotonic=1_000.0, wall=50_000.0)
PLAIN_RETRY = Retry(RetryKind.FIXED, base_seconds=5.0, jitter=Jitter.NONE)


class World:
    """A state machine whose queue `q` is told what to do with its job 1."""

    def __init__(self, **policy: Any) -> None:
        self.machine = StateMachine(Settings(lease_seconds=10.0), secret=bytes(SECRET_BYTES))
        self.ledger = self.machine._ledger
        self.now = START
        self.token = ""
        self.do(SetPolicy("q", QueuePolicy(**{"retry": PLAIN_RETRY, **policy})))

    def do(self, command: Command[Any]) -> Any:
        return self.machine.apply(command, self.now)

    def wait(self, seconds: float) -> None:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)

    def enqueue(self, **fields: Any) -> None:
        self.do(Enqueue("q", [NewJob("t", **fields)]))

    def lease(self) -> Lease:
        lease: Lease = self.do(Dequeue("q")).leases[0]
        self.token = lease.token
        return lease

    def sweep_after(self, seconds: float) -> None:
        self.wait(seconds)
        self.do(Sweep())

    def unique(self, **fields: Any) -> None:
        self.enqueue(options=JobOptions(unique_key="k"), on_existing=OnExisting.REPLACE, **fields)

    def fail(self, **fields: Any) -> None:
        self.do(Fail([FailClaim("q", 1, self.token, **fields)]))

    def release(self, delay_seconds: float = 0.0) -> None:
        self.do(Release([ReleaseClaim("q", 1, self.token, None, delay_seconds)]))

    def redrive_all(self) -> None:
        self.do(Bulk("q", BulkVerb.REDRIVE, JobFilter(), per_second=1.0))

    # How a job comes into a state.

    def scheduled(self) -> None:
        self.enqueue(delay_seconds=5.0)

    def leased(self) -> None:
        self.enqueue()
        self.lease()

    def wished_away(self) -> None:
        self.leased()
        self.do(Cancel("q", [1]))

    def mortal(self) -> None:
        self.enqueue(ttl_seconds=3.0)
        self.lease()

    def dead(self) -> None:
        self.leased()
        self.fail(retry=False)

    def cancelled(self) -> None:
        self.enqueue()
        self.do(Cancel("q", [1]))


Step = Callable[[World], object]

# Each transition once: how the job comes to where it begins, and, last, what moves it.
JOURNEYS: dict[tuple[JobState, str, JobState], tuple[Step, ...]] = {
    (SCHEDULED, "due", QUEUED): (World.scheduled, lambda w: w.sweep_after(5)),
    (SCHEDULED, "run", QUEUED): (World.scheduled, lambda w: w.do(RunNow("q", [1]))),
    (SCHEDULED, "replace", SCHEDULED): (lambda w: w.unique(delay_seconds=5.0), lambda w: w.unique(delay_seconds=6.0)),
    (SCHEDULED, "replace", QUEUED): (lambda w: w.unique(delay_seconds=5.0), lambda w: w.unique()),
    (SCHEDULED, "expire", DEAD): (
        lambda w: w.enqueue(delay_seconds=5.0, ttl_seconds=3.0),
        lambda w: w.sweep_after(3),
    ),
    (SCHEDULED, "cancel", CANCELLED): (World.scheduled, lambda w: w.do(Cancel("q", [1]))),
    (QUEUED, "dequeue", IN_PROGRESS): (World.enqueue, World.lease),
    (QUEUED, "replace", QUEUED): (World.unique, World.unique),
    (QUEUED, "replace", SCHEDULED): (World.unique, lambda w: w.unique(delay_seconds=5.0)),
    (QUEUED, "expire", DEAD): (lambda w: w.enqueue(ttl_seconds=3.0), lambda w: w.sweep_after(3)),
    (QUEUED, "cancel", CANCELLED): (World.enqueue, lambda w: w.do(Cancel("q", [1]))),
    (IN_PROGRESS, "extend", IN_PROGRESS): (World.leased, lambda w: w.do(Extend([ExtendClaim("q", 1, w.token)]))),
    (IN_PROGRESS, "cancel", IN_PROGRESS): (World.leased, lambda w: w.do(Cancel("q", [1]))),
    (IN_PROGRESS, "conclude", CONCLUDED): (World.leased, lambda w: w.do(Conclude([Claim("q", 1, w.token)]))),
    (IN_PROGRESS, "fail", SCHEDULED): (World.leased, World.fail),
    (IN_PROGRESS, "fail", QUEUED): (World.leased, lambda w: w.fail(retry_after_seconds=0.0)),
    (IN_PROGRESS, "fail", DEAD): (World.leased, lambda w: w.fail(retry=False)),
    (IN_PROGRESS, "fail", CANCELLED): (World.wished_away, World.fail),
    (IN_PROGRESS, "release", QUEUED): (World.leased, World.release),
    (IN_PROGRESS, "release", SCHEDULED): (World.leased, lambda w: w.release(5.0)),
    (IN_PROGRESS, "release", DEAD): (World.mortal, lambda w: w.wait(3), World.release),
    (IN_PROGRESS, "release", CANCELLED): (World.wished_away, World.release),
    (IN_PROGRESS, "stale", QUEUED): (World.leased, lambda w: w.sweep_after(10)),
    (IN_PROGRESS, "stale", SCHEDULED): (
        World.leased,
        lambda w: w.sweep_after(10),
        World.lease,
        lambda w: w.sweep_after(10),
    ),
    (IN_PROGRESS, "stale", DEAD): (World.mortal, lambda w: w.sweep_after(10)),
    (IN_PROGRESS, "stale", CANCELLED): (World.wished_away, lambda w: w.sweep_after(10)),
    (DEAD, "redrive", QUEUED): (World.dead, lambda w: w.do(Redrive("q", [1]))),
    (DEAD, "redrive", SCHEDULED): (World.dead, World.redrive_all),
    (CANCELLED, "redrive", QUEUED): (World.cancelled, lambda w: w.do(Redrive("q", [1]))),
    (CANCELLED, "redrive", SCHEDULED): (World.cancelled, World.redrive_all),
}


def name_of(transition: tuple[JobState, str, JobState]) -> str:
    return "-".join(transition)


# --- the table


def test_there_is_a_journey_for_each_transition() -> None:
    assert JOURNEYS.keys() == TRANSITIONS


@pytest.mark.parametrize("transition", sorted(JOURNEYS), ids=name_of)
def test_a_transition_is_one_change_that_follows_on_the_one_before(
    transition: tuple[JobState, str, JobState],
) -> None:
    before, verb, after = transition
    *there, on = JOURNEYS[transition]
    world = World()
    for step in there:
        step(world)
    (*_, former) = world.machine.take_changes().jobs
    on(world)
    (change,) = world.machine.take_changes().jobs

    assert change.before is not None
    assert change.after is not None
    assert (change.before.state, change.verb, change.after.state) == (before, verb, after)
    assert change.before is former.after
    assert change.revision == change.after.revision == former.revision + 1
    assert world.ledger.queues["q"].jobs[1] is change.after


@pytest.mark.parametrize("transition", sorted(JOURNEYS), ids=name_of)
def test_a_job_is_counted_and_waits_in_one_place_only(transition: tuple[JobState, str, JobState]) -> None:
    after = transition[2]
    world = World()
    for step in JOURNEYS[transition]:
        step(world)
    ledger, queue = world.ledger, world.ledger.queues["q"]

    assert queue.counts == ledger.counts == {**dict.fromkeys(JobState, 0), after: 1}
    places = (len(ledger.planned), len(queue.ready), len(ledger.leases), len(ledger.kept), len(ledger.dead))
    assert (
        places
        == {
            SCHEDULED: (1, 0, 0, 0, 0),
            QUEUED: (0, 1, 0, 0, 0),
            IN_PROGRESS: (0, 0, 1, 0, 0),
            CONCLUDED: (0, 0, 0, 1, 0),
            CANCELLED: (0, 0, 0, 1, 0),
            DEAD: (0, 0, 0, 0, 1),
        }[after]
    )


def ledger_with_a_job(**facts: Any) -> tuple[Ledger, Queue, Job]:
    ledger = Ledger(Settings())
    queue = ledger.open_queue("q", START)
    (job,) = ledger.create(queue, [NewJob("t", **facts)], START)
    return ledger, queue, job


VERBS = sorted({verb for _, verb, _ in TRANSITIONS} | {"vanish"})


def test_a_move_that_no_transition_allows_is_a_bug_and_changes_nothing() -> None:
    ledger, queue, job = ledger_with_a_job()
    ledger.take_changes()
    forbidden = [(verb, to) for verb, to in product(VERBS, JobState) if (QUEUED, verb, to) not in TRANSITIONS]
    for verb, to in forbidden:
        with pytest.raises(InvariantError, match=f"{verb} leads from queued to {to}"):
            ledger.move(queue, job, verb, to, START)

    assert queue.jobs == {1: job}
    assert ledger.changes_waiting == 0


def test_jobs_that_move_together_are_in_one_state() -> None:
    ledger, queue, job = ledger_with_a_job()
    (other,) = ledger.create(queue, [NewJob("t", delay_seconds=1.0)], START)
    both = [replace(each, state=CANCELLED, revision=3) for each in (job, other)]

    with pytest.raises(InvariantError, match=r"^cancel of jobs that are queued has one that is scheduled$"):
        ledger._put(queue, "cancel", [job, other], both)


def test_jobs_that_are_forgotten_together_may_be_in_any_states() -> None:
    world = World()
    world.enqueue(payload=b"1")
    world.enqueue(payload=b"12", delay_seconds=1.0)
    world.enqueue(payload=b"123")
    world.do(Cancel("q", [3]))
    world.ledger.take_changes()

    queue = world.ledger.queues["q"]
    jobs = [queue.jobs[id_] for id_ in (3, 1, 2)]
    world.ledger.forget(queue, jobs)

    assert queue.jobs == {}
    assert queue.counts == world.ledger.counts == dict.fromkeys(JobState, 0)
    assert (queue.first_id, len(queue.ready), world.ledger.kept_bytes) == (4, 0, 0)
    forgotten = list(world.ledger.take_changes().jobs)
    assert [(change.before, change.after, change.verb) for change in forgotten] == [
        (job, None, "forget") for job in jobs
    ]
    assert [change.revision for change in forgotten] == [5, 6, 7]


# --- the checks before every commit


def test_changes_are_taken_once_and_in_order() -> None:
    ledger, queue, job = ledger_with_a_job()
    ledger.withdraw(queue, job)
    cancelled = ledger.finish(queue, job, "cancel", CANCELLED, START)
    assert ledger.changes_waiting == 2

    assert list(ledger.take_changes().jobs) == [Change(1, None, job, "enqueue"), Change(2, job, cancelled, "cancel")]
    assert list(ledger.take_changes().jobs) == []


@pytest.mark.parametrize("state", [IN_PROGRESS, SCHEDULED])
def test_a_count_that_disagrees_with_its_deadlines_stops_the_process(state: JobState) -> None:
    ledger, _, _ = ledger_with_a_job()
    ledger.counts[state] += 1

    with pytest.raises(InvariantError, match="not what the counts say"):
        ledger.take_changes()


def test_a_count_that_disagrees_with_the_ready_jobs_stops_the_process() -> None:
    ledger, queue, _ = ledger_with_a_job()
    queue.ready.take(1)

    with pytest.raises(InvariantError, match="0 jobs of q are ready, not 1"):
        ledger.take_changes()


def test_changes_of_a_queue_that_was_deleted_since_are_still_taken() -> None:
    world = World()
    world.cancelled()
    world.do(Forget("q", [1]))
    world.do(DeleteQueue("q"))

    assert world.machine.changes_waiting == 3
    assert [change.after is None for change in world.machine.take_changes().jobs] == [False, False, True]


# --- who is told of what


def test_each_queue_with_news_is_named_once_in_order() -> None:
    world = World()
    world.machine.take_readied()
    for name in ("b", "a", "b"):
        world.do(Enqueue(name, [NewJob("t")]))

    assert list(world.machine.take_readied()) == ["b", "a"]
    assert list(world.machine.take_readied()) == []


def test_a_lease_that_ends_is_news_where_leases_are_limited() -> None:
    for limit, news in ((None, []), (1, ["q"])):
        world = World(in_progress_max=limit)
        world.leased()
        world.machine.take_readied()
        world.do(Conclude([Claim("q", 1, world.token)]))

        assert list(world.machine.take_readied()) == news


def test_a_policy_and_a_resume_are_news() -> None:
    world = World()
    for command in (SetPolicy("q", QueuePolicy()), Pause("q", paused=True), Pause("q", paused=False)):
        world.machine.take_readied()
        world.do(command)

        assert list(world.machine.take_readied()) == ["q"]


def test_the_next_due_moment_is_the_earliest_on_either_clock() -> None:
    world = World()
    due = world.machine.next_due_seconds
    assert due(world.now) is None
    world.leased()
    assert due(world.now) == 10
    world.enqueue(delay_seconds=7.0)
    assert due(world.now) == 7
    world.enqueue(ttl_seconds=4.0)
    assert due(world.now) == 4
    assert due(Now(START.monotonic + 8, START.wall)) == 2
    assert due(Now(START.monotonic, START.wall + 9)) == 0


# --- queues come and go


def test_a_queue_made_again_goes_on_with_ids_and_fences() -> None:
    world = World()
    world.leased()
    fence = world.ledger.queues["q"].jobs[1].fence
    world.do(Conclude([Claim("q", 1, world.token)]))
    world.do(Forget("q", [1]))
    world.do(DeleteQueue("q"))
    world.now = Now(world.now.monotonic, world.now.wall - 10_000)  # the wall clock alone would not do
    world.enqueue()
    lease = world.lease()

    assert lease.job.id == 2
    assert lease.job.fence == fence + 1


def test_fences_begin_at_the_microseconds_of_the_wall_clock() -> None:
    assert Ledger(Settings()).open_queue("q", START).next_fence == 50_000_000_000


# --- bytes


def test_what_is_not_there_has_no_size() -> None:
    assert (size(None), size(b""), size(b"123")) == (0, 0, 3)
    assert (error_size(None), error_size(JobError("ab", "cde"))) == (0, 5)


def test_all_bytes_are_given_back_when_a_job_is_forgotten() -> None:
    world = World(max_attempts=1)
    world.enqueue(payload=b"1" * 10)
    world.lease()
    world.do(Extend([ExtendClaim("q", 1, world.token, progress=b"2" * 20)]))
    world.do(Extend([ExtendClaim("q", 1, world.token, progress=b"3" * 5)]))
    world.fail(error=JobError("E" * 3, "m" * 4))
    assert world.ledger.kept_bytes == 10 + 5 + 7
    world.do(Forget("q", [1]))

    assert world.ledger.kept_bytes == 0


def test_attempts_beyond_the_history_give_their_bytes_back() -> None:
    world = World(max_attempts=None)
    world.enqueue()
    for n in range(HISTORY_ATTEMPTS_MAX + 3):
        world.lease()
        world.fail(error=JobError("", "x" * n), retry_after_seconds=0.0)
    (job,) = world.ledger.queues["q"].jobs.values()

    assert len(job.history) == HISTORY_ATTEMPTS_MAX
    assert job.attempts == HISTORY_ATTEMPTS_MAX + 3
    assert world.ledger.kept_bytes == sum(range(3, HISTORY_ATTEMPTS_MAX + 3))


# --- ends


def test_a_job_without_a_ttl_never_expires() -> None:
    for ttl_seconds, expired in ((None, False), (0.0, True), (0.001, False)):
        _, _, job = ledger_with_a_job(ttl_seconds=ttl_seconds)

        assert is_expired(job, START) is expired


@pytest.mark.parametrize(
    ("policy", "kept_seconds"), [({}, 3_600.0), ({"retention_seconds": 7.0}, 7.0), ({"retention_seconds": 0.0}, 0.0)]
)
def test_a_finished_job_is_kept_for_the_time_of_its_queue_or_else_of_the_server(
    policy: dict[str, Any], kept_seconds: float
) -> None:
    world = World(**policy)
    world.cancelled()

    assert world.ledger.kept["q", 1] == START.monotonic + kept_seconds


@pytest.mark.parametrize(("policy", "kept_seconds"), [({}, 30 * 86_400.0), ({"dead_retention_seconds": 7.0}, 7.0)])
def test_a_dead_job_has_a_time_of_its_own(policy: dict[str, Any], kept_seconds: float) -> None:
    world = World(**policy)
    world.dead()

    assert world.ledger.dead["q", 1] == START.monotonic + kept_seconds


def test_a_key_that_another_job_has_by_now_is_not_taken_from_it() -> None:
    ledger, queue, job = ledger_with_a_job()
    queue.unique["k"] = 2
    ledger.free_unique_key(queue, replace(job, options=JobOptions(unique_key="k")))

    assert queue.unique == {"k": 2}
