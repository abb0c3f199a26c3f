"""The state machine: every command, every refusal, every transition, and what must never happen.

`World.do` checks after every command in this file that all counts and indexes agree with the jobs, that the changes
form a chain, and, where the command was refused, that nothing at all has changed.
"""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import inf, nextafter
from typing import Any

import pytest

from queue_actor import commands, state_machine
from queue_actor.commands import (
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    Extend,
    Lease,
    NewJob,
    ReadJob,
    ReadPosition,
    Release,
    Results,
    Sweep,
    Swept,
)
from queue_actor.errors import (
    AlreadyFinished,
    ForgottenJob,
    LeaseLost,
    MemoryFull,
    NotInProgress,
    OtherConsumer,
    QueueError,
    QueueFull,
    TooManyQueues,
    UnknownJob,
)
from queue_actor.jobs import HISTORY_ATTEMPTS_MAX, Attempt, Job, JobState, Outcome
from queue_actor.state_machine import TRANSITIONS, InvariantError, StateMachine
from queue_actor.tokens import FENCE_MAX
from tests.unit.world import CLAIMS, FORGED, WALL, World, recount, snapshot

SCHEDULED, QUEUED, IN_PROGRESS, CONCLUDED, CANCELLED = JobState
HOUR = 3_600.0
LEASE = 300.0  # seconds of a lease that names none


def in_state(world: World, state: JobState, *, consumer: str | None = None) -> Job:
    """A new job, brought into a state; dequeued, where that is on the way, under a consumer's name."""
    first = state in {IN_PROGRESS, CONCLUDED}
    (job,) = world.enqueue(NewJob("type", priority=9 * first, delay_seconds=HOUR * (state is SCHEDULED)))
    match state:
        case JobState.IN_PROGRESS:
            world.lease(consumer=consumer)
        case JobState.CONCLUDED:
            world.claim_held("conclude", world.lease(consumer=consumer))
        case JobState.CANCELLED:
            world.cancel(job.id)
    job = world.job(job.id)
    assert job.state is state
    return job


def stale_once(world: World, *, consumer: str | None = None) -> Lease:
    """A lease that ran out; its job is queued again."""
    lease = world.leased(consumer, priority=9)
    world.wait(LEASE)
    assert world.sweep().stale == 1
    return lease


# --- enqueue


def test_a_new_job_is_as_its_producer_describes_it() -> None:
    world = World()
    (job,) = world.enqueue(NewJob("resize", payload=b'{"w":1}', priority=3), queue="images")
    assert job == Job(
        queue="images",
        id=1,
        type="resize",
        payload=b'{"w":1}',
        state=QUEUED,
        created_at=WALL,
        revision=1,
        priority=3,
        place=1,
    )
    assert world.job(1, queue="images") is job


def test_a_delayed_job_is_scheduled_and_has_no_place_yet() -> None:
    world = World()
    (job,) = world.enqueue(NewJob("type", delay_seconds=0.5))
    assert (job.state, job.not_before, job.place) == (SCHEDULED, WALL + 0.5, 0)
    assert world.dequeue_all() == []
    assert world.ahead(1) is None


def test_ids_count_from_one_in_each_queue_in_the_order_sent() -> None:
    world = World()
    assert [job.id for job in world.enqueue("a", NewJob("b", delay_seconds=1), "c")] == [1, 2, 3]
    assert [job.id for job in world.enqueue("a", queue="other")] == [1]
    assert [(job.id, job.type) for job in world.enqueue("d", "e")] == [(4, "d"), (5, "e")]


def test_an_enqueue_makes_its_queue_and_a_read_or_a_dequeue_does_not() -> None:
    world = World()
    assert not world.view().exists
    assert world.dequeue() == []
    assert not world.view().exists
    world.enqueue("a")
    assert world.view().exists
    assert world.counts() == {"queued": 1}


def test_as_many_queues_exist_as_the_limit_allows_and_no_more() -> None:
    world = World(queues_max=2)
    world.enqueue("a", queue="one")
    world.enqueue("a", queue="two")
    with pytest.raises(TooManyQueues) as refused:
        world.enqueue("a", queue="three")
    assert refused.value.field == "queue"
    assert not world.view("three").exists
    assert [job.id for job in world.enqueue("a", queue="one")] == [2]


def test_as_many_jobs_wait_as_the_limit_allows_in_all_queues_together() -> None:
    world = World(queued_jobs_max=3)
    world.enqueue("a", queue="one")
    with pytest.raises(QueueFull):
        world.enqueue("a", "b", "c", queue="two")  # all or none
    assert not world.view("two").exists
    world.enqueue("a", NewJob("b", delay_seconds=HOUR), queue="two")
    with pytest.raises(QueueFull):
        world.enqueue("a", queue="one")
    with pytest.raises(QueueFull):
        world.enqueue(NewJob("a", delay_seconds=1), queue="one")


def test_a_job_in_progress_does_not_wait_and_coming_back_is_never_refused() -> None:
    world = World(queued_jobs_max=1)
    lease = world.leased()
    world.enqueue("b")
    assert world.claim_held("release", lease).state is QUEUED
    assert world.counts() == {"queued": 2}
    with pytest.raises(QueueFull):
        world.enqueue("c")
    world.cancel(1)
    with pytest.raises(QueueFull):
        world.enqueue("c")
    world.cancel(2)
    world.enqueue("c")


def test_as_many_bytes_are_kept_as_the_limit_allows_finished_jobs_included() -> None:
    world = World(memory_bytes_max=10, retention_seconds=60.0)
    world.enqueue(NewJob("a", payload=b"1234567"), NewJob("b"), NewJob("c", payload=b""))
    with pytest.raises(MemoryFull):
        world.enqueue(NewJob("d", payload=b"12"), NewJob("e", payload=b"12"))
    world.enqueue(NewJob("d", payload=b"12"), NewJob("e", payload=b"1"))
    with pytest.raises(MemoryFull):
        world.enqueue(NewJob("f", payload=b"1"))
    world.enqueue("f")
    world.claim_held("conclude", world.lease())
    with pytest.raises(MemoryFull):
        world.enqueue(NewJob("g", payload=b"1"))
    world.wait(60)
    assert world.sweep().forgotten == 1
    world.enqueue(NewJob("g", payload=b"1234567"))
    with pytest.raises(MemoryFull):
        world.enqueue(NewJob("h", payload=b"1"))


# --- dequeue


def test_a_leased_job_tells_everything_of_its_lease() -> None:
    world = World()
    world.enqueue("a")
    world.wait(2)
    lease = world.lease(consumer="ann", lease_seconds=30.0)
    job = lease.job
    assert (job.state, job.attempts, job.consumer, job.lease_seconds) == (IN_PROGRESS, 1, "ann", 30.0)
    assert (job.started_at, job.lease_expires_at) == (WALL + 2, WALL + 32)
    assert (job.place, job.history, job.stales) == (1, (), 0)
    assert world.job() is job
    assert world.ahead(1) is None


def test_jobs_are_handed_out_in_the_order_in_which_they_came_whatever_their_type() -> None:
    world = World()
    world.enqueue("b", "a")
    world.enqueue("c")
    assert world.dequeue_all() == [1, 2, 3]


def test_higher_priorities_go_first() -> None:
    world = World()
    world.enqueue(*(NewJob("a", priority=priority) for priority in (0, 5, -1, 5, 0, 7)))
    assert [world.ahead(id_) for id_ in range(1, 7)] == [3, 1, 5, 2, 4, 0]
    assert world.dequeue_all() == [6, 2, 4, 1, 5, 3]


def test_a_dequeue_gives_no_more_than_asked_and_no_more_than_there_is() -> None:
    world = World()
    world.enqueue("a", "b", "c")
    assert world.dequeue(0) == []
    assert [lease.job.id for lease in world.dequeue(2)] == [1, 2]
    assert [lease.job.id for lease in world.dequeue(2)] == [3]
    assert world.dequeue(2) == []
    assert world.do(Dequeue("unknown", 2)) == Dequeued()


def test_a_dequeue_stops_before_the_payload_that_would_be_too_much() -> None:
    world = World(reply_bytes_max=10)
    sizes = (4, 6, 1, None, 9, 1, None)
    world.enqueue(*(NewJob("a", payload=None if size is None else b"x" * size) for size in sizes))
    assert [lease.job.id for lease in world.dequeue(9)] == [1, 2]  # ten bytes, and not one more
    assert [lease.job.id for lease in world.dequeue(9)] == [3, 4, 5]  # ten again
    assert [lease.job.id for lease in world.dequeue(9)] == [6, 7]


def test_a_dequeue_gives_at_least_one_job_however_large() -> None:
    world = World(reply_bytes_max=10)
    world.enqueue(*(NewJob("a", payload=payload) for payload in (b"x" * 11, b"x" * 5_000, None, b"x")))
    assert [[lease.job.id for lease in world.dequeue(9)] for _ in range(3)] == [[1], [2], [3, 4]]


def test_a_job_that_was_not_handed_out_for_its_size_keeps_its_place() -> None:
    world = World(reply_bytes_max=10)
    world.enqueue(NewJob("a"), NewJob("b", payload=b"x" * 11), NewJob("c"))
    assert [lease.job.id for lease in world.dequeue(9)] == [1]
    assert world.ahead(2) == 0
    assert world.ahead(3) == 1


def test_fences_grow_strictly_within_a_queue() -> None:
    world = World()
    world.enqueue("a", "b", "c")
    fences = []
    for _ in range(4):
        leases = world.dequeue(2)
        fences += [lease.job.fence for lease in leases]
        for lease in leases:
            world.claim_held("release", lease)
        world.wall -= HOUR  # an administrator may move the clock
    world.enqueue("d")
    fences += [lease.job.fence for lease in world.dequeue(9)]
    assert len(fences) == 12
    assert all(earlier < later for earlier, later in pairwise(fences))


def test_fences_begin_at_the_microseconds_of_the_wall_clock() -> None:
    """So a queue of a later life of the server goes on above the fences of an earlier one."""
    world = World(wall=WALL + 0.25)
    assert world.leased().job.fence == (int(WALL) * 1_000_000) + 250_000
    later = World(wall=WALL + 10)
    assert world.leased().job.fence < later.leased().job.fence < FENCE_MAX


@pytest.mark.parametrize("wall", [0.0, -5.0, 0.000_000_1])
def test_the_first_fence_is_above_zero_even_where_the_clock_was_never_set(wall: float) -> None:
    """Zero is the fence of a job that was never leased, and what a guarded store has seen before the first."""
    world = World(wall=wall)
    lease = world.leased()
    assert lease.job.fence > 0
    assert world.claim_held("conclude", lease).state is CONCLUDED


# --- the order of jobs that come back


def test_a_released_job_keeps_its_place() -> None:
    world = World()
    world.enqueue("a", "b", "c")
    first, second = world.dequeue(2)
    world.claim_held("release", second)
    assert world.ahead(2) == 0
    world.claim_held("release", first)
    assert [world.ahead(id_) for id_ in (1, 2, 3)] == [0, 1, 2]
    world.enqueue("d")
    assert world.dequeue_all() == [1, 2, 3, 4]


def test_a_stale_job_keeps_its_place() -> None:
    world = World()
    world.enqueue("a", "b", "c")
    world.dequeue(2)
    world.enqueue("d")
    world.wait(LEASE)
    assert world.sweep().stale == 2
    assert world.job(1).place == 1
    assert world.dequeue_all() == [1, 2, 3, 4]


def test_a_released_job_keeps_its_priority_and_its_place_in_it() -> None:
    world = World()
    world.enqueue("a", NewJob("b", priority=4), NewJob("c", priority=4))
    world.claim_held("release", world.lease())
    assert world.dequeue_all() == [2, 3, 1]


def test_a_job_that_becomes_due_goes_to_the_back() -> None:
    world = World()
    world.enqueue(NewJob("a", delay_seconds=10), "b")
    world.wait(10)
    world.enqueue("c")
    assert world.sweep().due == 1
    world.enqueue("d")
    assert world.dequeue_all() == [2, 3, 1, 4]


def test_jobs_become_due_in_the_order_of_their_times() -> None:
    world = World()
    world.enqueue(*(NewJob("a", delay_seconds=delay) for delay in (3, 1, 2, 1)))
    world.wait(10)
    world.sweep()
    assert world.dequeue_all() == [2, 4, 3, 1]


def test_a_job_released_with_a_delay_is_scheduled_and_comes_back_at_the_back() -> None:
    world = World()
    world.enqueue("a", "b")
    released = world.claim_held("release", world.lease(), delay_seconds=5.0)
    assert (released.state, released.not_before) == (SCHEDULED, WALL + 5)
    world.wall = nextafter(WALL + 5, 0)
    assert world.sweep().due == 0
    world.wall = WALL + 5
    assert world.sweep().due == 1
    assert world.job(1).place == 3
    assert world.dequeue_all() == [2, 1]


def test_the_position_is_exact_while_jobs_come_and_go() -> None:
    """Small slices, so that compaction is under way most of the time."""
    world = World(compact_slice=2, ready_initial=1)
    for round_ in range(30):
        world.enqueue("a", "b", NewJob("c", priority=1))
        leases = world.dequeue(2)
        if round_ % 3 == 0:
            world.claim_held("release", leases[0])
        if round_ % 2:
            world.cancel(3 * round_ + 1)
        # recount() compares every position
    assert world.counts()["queued"] > 10


# --- leases


def test_a_lease_is_never_shorter_than_promised() -> None:
    world = World()
    lease = world.leased()
    world.monotonic = nextafter(world.monotonic + LEASE, -inf)
    assert world.sweep().stale == 0
    assert world.job().state is IN_PROGRESS
    world.monotonic = nextafter(world.monotonic, inf)
    assert world.sweep() == Swept(stale=1, due=0, forgotten=0, more=False, next_due_seconds=None)
    job = world.job()
    assert (job.state, job.stales, job.attempts, job.place) == (QUEUED, 1, 1, 1)
    assert job.history == (Attempt(lease.job.fence, None, WALL, world.wall, Outcome.STALE),)


def test_a_lease_has_the_length_that_was_asked_for() -> None:
    world = World(lease_seconds=7.0)
    world.enqueue("a", "b")
    assert world.lease(lease_seconds=2.5).job.lease_seconds == 2.5
    assert world.lease().job.lease_seconds == 7.0
    assert world.sweep().next_due_seconds == 2.5
    world.wait(2.5)
    assert world.sweep().stale == 1
    assert world.sweep().next_due_seconds == 4.5
    world.wait(4.5)
    assert world.sweep().stale == 1


def test_an_extended_lease_starts_again_from_now_with_its_former_length() -> None:
    world = World()
    lease = world.leased()
    world.wait(LEASE - 1)
    extended = world.claim_held("extend", lease)
    assert (extended.lease_seconds, extended.lease_expires_at) == (LEASE, world.wall + LEASE)
    assert (extended.fence, extended.attempts, extended.history) == (lease.job.fence, 1, ())
    world.monotonic = nextafter(world.monotonic + LEASE, -inf)
    assert world.sweep().stale == 0
    world.wait(1)
    assert world.sweep().stale == 1


@pytest.mark.parametrize("seconds", [1.0, 2 * LEASE])
def test_an_extended_lease_has_the_length_that_was_asked_for_shorter_or_longer(seconds: float) -> None:
    world = World()
    lease = world.leased()
    world.claim_held("extend", lease, lease_seconds=seconds)
    assert world.claim_held("extend", lease).lease_seconds == seconds  # which is now its former length
    world.wait(seconds - 0.5)
    assert world.sweep().stale == 0
    world.wait(0.5)
    assert world.sweep().stale == 1


@pytest.mark.parametrize(("verb", "state"), [("conclude", CONCLUDED), ("extend", IN_PROGRESS), ("release", QUEUED)])
def test_a_late_worker_is_heard_until_the_sweep(verb: str, state: JobState) -> None:
    world = World()
    lease = world.leased()
    world.wait(10 * LEASE)
    assert world.claim_held(verb, lease).state is state
    assert world.sweep().stale == 0


@pytest.mark.parametrize("verb", CLAIMS)
def test_a_late_worker_is_told_that_the_lease_is_lost_after_the_sweep(verb: str) -> None:
    world = World()
    lease = world.leased()
    world.wait(LEASE)
    world.sweep()
    with pytest.raises(LeaseLost):
        world.claim_held(verb, lease)
    again = world.lease()
    with pytest.raises(LeaseLost):
        world.claim_held(verb, lease)
    assert world.claim_held("conclude", again).state is CONCLUDED
    with pytest.raises(LeaseLost):
        world.claim_held(verb, lease)


# --- who may conclude

# Shown at a job in progress: a token, of which the first attempt's is old; a name, of "ann" and "bob".
SHOWN_TOKENS = ["current", "old", "forged", "another job's", "empty"]


def token_shown(world: World, kind: str, current: Lease, old: Lease) -> str:
    match kind:
        case "current":
            return current.token
        case "old":
            return old.token
        case "forged":
            return FORGED.issue("q", current.job.id, current.job.fence)
        case "another job's":
            return world.leased().token
    return ""


def claim_outcome(world: World, verb: str, id_: int, **facts: Any) -> type[QueueError] | JobState:
    try:
        return world.claim(verb, "q", id_, **facts).state
    except QueueError as refusal:
        return type(refusal)


@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("dequeued_by", [None, "ann"])
@pytest.mark.parametrize("shown", [None, "ann", "bob"])
@pytest.mark.parametrize("kind", SHOWN_TOKENS)
def test_a_token_alone_decides_whoever_shows_it(
    verb: str, dequeued_by: str | None, shown: str | None, kind: str
) -> None:
    world = World()
    old = stale_once(world, consumer=dequeued_by)
    current = world.lease(consumer=dequeued_by)
    token = token_shown(world, kind, current, old)
    allowed = {"conclude": CONCLUDED, "extend": IN_PROGRESS, "release": QUEUED}[verb]
    expected = allowed if kind == "current" else LeaseLost
    assert claim_outcome(world, verb, current.job.id, token=token, consumer=shown) is expected


@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize(
    ("dequeued_by", "shown", "allowed"),
    [
        (None, None, True),
        (None, "ann", True),
        ("ann", "ann", True),
        ("ann", None, False),
        ("ann", "bob", False),
        ("ann", "", False),
        ("", None, False),
    ],
)
def test_without_a_token_the_name_must_be_the_one_of_the_dequeue(
    verb: str, dequeued_by: str | None, shown: str | None, allowed: bool
) -> None:
    world = World()
    stale_once(world, consumer="bob")  # whose name does not matter any more
    job = world.lease(consumer=dequeued_by).job
    state = {"conclude": CONCLUDED, "extend": IN_PROGRESS, "release": QUEUED}[verb]
    assert claim_outcome(world, verb, job.id, consumer=shown) is (state if allowed else OtherConsumer)


@pytest.mark.parametrize(
    ("dequeued_by", "shown", "expected"),
    [
        (None, None, CONCLUDED),
        (None, "bob", CONCLUDED),
        ("ann", "ann", CONCLUDED),
        ("ann", "bob", OtherConsumer),
        ("ann", None, OtherConsumer),
    ],
)
def test_once_concluded_the_same_consumer_may_say_so_again(
    dequeued_by: str | None, shown: str | None, expected: type[QueueError] | JobState
) -> None:
    world = World()
    job = in_state(world, CONCLUDED, consumer=dequeued_by)
    assert claim_outcome(world, "conclude", job.id, consumer=shown) is expected
    for verb in ("extend", "release"):
        assert claim_outcome(world, verb, job.id, consumer=shown) is NotInProgress
    assert world.job() is job


@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("state", [SCHEDULED, QUEUED, CANCELLED])
def test_without_a_token_any_other_state_is_refused(verb: str, state: JobState) -> None:
    world = World()
    job = in_state(world, state)
    assert claim_outcome(world, verb, job.id, consumer=job.consumer) is NotInProgress


@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("state", JobState)
def test_a_forged_token_is_refused_in_every_state(verb: str, state: JobState) -> None:
    world = World()
    job = in_state(world, state)
    token = FORGED.issue("q", job.id, job.fence)
    assert claim_outcome(world, verb, job.id, token=token) is LeaseLost


# --- repeats


def test_a_repeated_conclude_is_answered_alike_and_changes_nothing() -> None:
    world = World()
    lease = world.leased("ann")
    concluded = world.claim_held("conclude", lease)
    world.wait(HOUR)
    before = snapshot(world.machine)
    assert world.claim_held("conclude", lease) is concluded
    assert snapshot(world.machine) == before
    for verb in ("extend", "release"):
        with pytest.raises(LeaseLost):
            world.claim_held(verb, lease)


def test_a_repeated_release_is_answered_with_the_job_wherever_it_is_by_then() -> None:
    world = World()
    lease = world.leased()
    world.claim_held("release", lease)
    assert world.claim_held("release", lease).state is QUEUED
    again = world.lease()
    assert again.job.fence > lease.job.fence
    assert world.claim_held("release", lease) is again.job  # which stays with its new holder
    world.claim_held("conclude", again)
    assert world.claim_held("release", lease).state is CONCLUDED
    for verb in ("conclude", "extend"):
        with pytest.raises(LeaseLost):
            world.claim_held(verb, lease)
    with pytest.raises(LeaseLost):
        world.claim_held("release", again)


def test_a_repeated_delayed_release_does_not_delay_again() -> None:
    world = World()
    lease = world.leased()
    released = world.claim_held("release", lease, delay_seconds=10.0)
    world.wait(5)
    assert world.claim_held("release", lease, delay_seconds=10.0) is released
    world.wait(5)
    assert world.sweep().due == 1


def test_a_repeated_release_that_granted_a_cancel_is_answered_alike() -> None:
    world = World()
    lease = world.leased()
    world.cancel(1)
    cancelled = world.claim_held("release", lease)
    assert cancelled.state is CANCELLED
    assert world.claim_held("release", lease) is cancelled


@pytest.mark.parametrize("verb", ["conclude", "release"])
def test_a_job_named_twice_in_a_batch_is_ended_once(verb: str) -> None:
    world = World()
    lease = world.leased()
    claim, command = CLAIMS[verb]
    claims = [claim("q", 1, token=lease.token)] * 3
    first, second, third = world.do(command(claims)).jobs
    assert first is second is third is world.job()
    assert world.job().revision == 3


# --- batches


def test_a_batch_answers_each_job_for_itself_in_the_order_asked() -> None:
    world = World()
    world.enqueue("a", "b", "c")
    leases = world.dequeue(2)
    claims = [
        Claim("q", 2, token=leases[1].token),
        Claim("q", 3),
        Claim("q", 9),
        Claim("other", 1),
        Claim("q", 1, token=leases[1].token),
        Claim("q", 1, token=leases[0].token),
    ]
    answers = world.do(Conclude(claims)).jobs
    assert [type(answer) for answer in answers] == [Job, NotInProgress, UnknownJob, UnknownJob, LeaseLost, Job]
    assert [answer.id for answer in answers if isinstance(answer, Job)] == [2, 1]
    assert all(answer.__traceback__ is None for answer in answers if isinstance(answer, QueueError))


def test_an_empty_batch_is_answered_emptily() -> None:
    world = World()
    world.enqueue("a")
    for command in (Conclude([]), Extend([]), Release([]), Cancel("q", []), Cancel("unknown", [])):
        assert world.do(command) == Results([])
    assert len(world.changes) == 1


def test_the_answer_to_a_batch_of_one_is_its_job_or_its_refusal() -> None:
    world = World()
    (job,) = world.enqueue("a")
    assert Results([job]).single() is job
    with pytest.raises(NotInProgress):
        Results([NotInProgress("no")]).single()
    with pytest.raises(ValueError, match="unpack"):
        Results([job, job]).single()


# --- cancel


@pytest.mark.parametrize("state", [SCHEDULED, QUEUED])
def test_a_waiting_job_is_cancelled_at_once(state: JobState) -> None:
    world = World()
    job = in_state(world, state)
    world.wait(1)
    cancelled = world.cancel(job.id)
    assert (cancelled.state, cancelled.cancel_requested, cancelled.finished_at) == (CANCELLED, True, world.wall)
    world.wait(2 * HOUR)
    assert world.sweep().due == 0
    assert world.dequeue_all() == []


def test_a_job_that_came_back_is_cancelled_at_once() -> None:
    world = World()
    world.enqueue("a", "b")
    world.claim_held("release", world.lease())
    assert world.cancel(1).state is CANCELLED
    assert world.dequeue_all() == [2]


def test_a_cancelled_job_leaves_the_others_their_order() -> None:
    world = World()
    world.enqueue(*"abcdefgh")
    answers = world.do(Cancel("q", [1, 4, 99, 8, 4])).jobs
    assert [type(answer) for answer in answers] == [Job, Job, UnknownJob, Job, Job]
    assert world.ahead(5) == 2
    assert world.dequeue_all() == [2, 3, 5, 6, 7]


def test_cancelling_a_job_in_progress_is_a_wish_and_the_lease_goes_on() -> None:
    world = World()
    lease = world.leased()
    wished = world.cancel(1)
    assert (wished.state, wished.cancel_requested, wished.finished_at) == (IN_PROGRESS, True, None)
    assert world.claim_held("extend", lease).cancel_requested
    assert world.sweep().next_due_seconds == LEASE


def test_conclude_wins_over_the_wish() -> None:
    world = World()
    lease = world.leased()
    world.cancel(1)
    assert world.claim_held("conclude", lease).state is CONCLUDED
    with pytest.raises(AlreadyFinished):
        world.cancel(1)


@pytest.mark.parametrize("delay_seconds", [0.0, 60.0])
def test_release_grants_the_wish_delayed_or_not(delay_seconds: float) -> None:
    world = World()
    lease = world.leased()
    world.cancel(1)
    cancelled = world.claim_held("release", lease, delay_seconds=delay_seconds)
    assert (cancelled.state, cancelled.history[-1].outcome) == (CANCELLED, Outcome.RELEASED)
    assert world.sweep().next_due_seconds is None


def test_stale_grants_the_wish() -> None:
    world = World()
    world.leased()
    world.cancel(1)
    world.wait(LEASE)
    assert world.sweep().stale == 1
    cancelled = world.job()
    assert (cancelled.state, cancelled.history[-1].outcome, cancelled.stales) == (CANCELLED, Outcome.STALE, 1)
    assert world.dequeue_all() == []


@pytest.mark.parametrize("state", [SCHEDULED, QUEUED, IN_PROGRESS])
def test_a_repeated_cancel_is_answered_alike_and_changes_nothing(state: JobState) -> None:
    world = World()
    job = in_state(world, state)
    cancelled = world.cancel(job.id)
    changes = len(world.changes)
    assert world.cancel(job.id) is cancelled
    assert len(world.changes) == changes


# --- history


def test_each_attempt_that_ended_is_remembered() -> None:
    world = World()
    first = world.leased("ann")
    world.wait(1)
    world.claim_held("release", first)
    second = world.lease(consumer="bob")
    world.wait(LEASE)
    world.sweep()
    third = world.lease()
    world.wait(3)
    job = world.claim_held("conclude", third)
    assert job.history == (
        Attempt(first.job.fence, "ann", WALL, WALL + 1, Outcome.RELEASED),
        Attempt(second.job.fence, "bob", WALL + 1, WALL + 1 + LEASE, Outcome.STALE),
        Attempt(third.job.fence, None, WALL + 1 + LEASE, WALL + 4 + LEASE, Outcome.CONCLUDED),
    )
    assert (job.attempts, job.stales) == (3, 1)


def test_history_is_bounded_and_the_oldest_attempts_go_first() -> None:
    world = World()
    world.enqueue("a")
    fences = []
    for attempt in range(HISTORY_ATTEMPTS_MAX + 5):
        lease = world.lease()
        fences.append(lease.job.fence)
        job = world.claim_held("release", lease)
        assert [ended.fence for ended in job.history] == fences[-HISTORY_ATTEMPTS_MAX:]
        assert job.attempts == attempt + 1


# --- sweeps


def test_a_sweep_with_nothing_to_do_says_when_there_will_be() -> None:
    world = World()
    assert world.sweep() == Swept(stale=0, due=0, forgotten=0, more=False, next_due_seconds=None)
    world.enqueue(NewJob("a", delay_seconds=50), "b")
    assert world.sweep().next_due_seconds == 50
    world.lease(lease_seconds=20.0)
    assert world.sweep().next_due_seconds == 20
    world.wait(30)
    assert world.machine.next_due_seconds(world.now) == 0.0  # it is late, and not in the past
    swept = world.sweep()
    assert (swept.stale, swept.next_due_seconds) == (1, 20)


def test_a_sweep_moves_at_most_a_slice_of_each_kind_and_says_that_there_is_more() -> None:
    world = World(sweep_slice=3, retention_seconds=0.0)
    world.enqueue(*"abcdefg")
    world.dequeue(7)
    world.enqueue(*(NewJob("due", delay_seconds=1) for _ in range(4)))
    world.wait(LEASE)
    swept = [world.sweep() for _ in range(4)]
    assert [(one.stale, one.due, one.more) for one in swept] == [
        (3, 3, True),
        (3, 1, True),
        (1, 0, False),
        (0, 0, False),
    ]
    assert world.dequeue_all() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    for id_ in range(1, 6):
        world.claim("conclude", "q", id_)
    swept = [world.sweep() for _ in range(2)]
    assert [(one.forgotten, one.more) for one in swept] == [(3, True), (2, False)]


def test_a_sweep_takes_the_earliest_deadlines_first() -> None:
    world = World(sweep_slice=2)
    world.enqueue(*"abcd")
    for seconds in (40.0, 10.0, 30.0, 20.0):
        world.lease(lease_seconds=seconds)
    world.wait(100)
    world.sweep()
    assert world.dequeue_all() == [2, 4]


@pytest.mark.parametrize("jobs", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_very_many_stale_jobs_come_back_in_slices_with_all_counts_right(jobs: int) -> None:
    slice_ = 1_000
    world = World(checked=False, sweep_slice=slice_)
    world.enqueue(*["a"] * jobs)
    assert world.dequeue_all() == list(range(1, jobs + 1))
    world.machine.take_changes()
    world.wait(LEASE)
    for swept_jobs in range(slice_, jobs + 1, slice_):
        swept = world.sweep()
        assert (swept.stale, swept.more) == (slice_, True)
        assert len(world.machine.take_changes()) == slice_  # which compares the counts with the indexes
        assert world.counts() == {
            state: count for state, count in (("queued", swept_jobs), ("in_progress", jobs - swept_jobs)) if count
        }
    assert world.sweep() == Swept(stale=0, due=0, forgotten=0, more=False, next_due_seconds=None)
    assert world.ahead(jobs // 2) == jobs // 2 - 1
    leases = world.dequeue(jobs)
    assert [lease.job.id for lease in leases] == list(range(1, jobs + 1))
    assert leases[-1].job.fence - leases[0].job.fence == jobs - 1
    assert all(lease.job.stales == 1 for lease in leases)


# --- clocks


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_of_the_wall_clock_does_not_touch_leases(jump: float) -> None:
    world = World()
    world.leased()
    world.wall += jump
    assert world.sweep().stale == 0
    world.monotonic = nextafter(world.monotonic + LEASE, -inf)
    assert world.sweep().stale == 0
    world.monotonic = nextafter(world.monotonic, inf)
    assert world.sweep().stale == 1


def test_planned_jobs_follow_the_wall_clock() -> None:
    world = World()
    world.enqueue(NewJob("a", delay_seconds=HOUR), NewJob("b", delay_seconds=2 * HOUR))
    world.wall += HOUR
    assert world.sweep() == Swept(stale=0, due=1, forgotten=0, more=False, next_due_seconds=HOUR)
    world.wall -= HOUR
    assert world.sweep().next_due_seconds == 2 * HOUR
    world.wait(2 * HOUR)
    assert world.sweep().due == 1
    assert world.dequeue_all() == [1, 2]


def test_a_due_job_stays_ready_when_the_wall_clock_goes_back() -> None:
    world = World()
    world.enqueue(NewJob("a", delay_seconds=HOUR))
    world.wall += HOUR
    world.sweep()
    world.wall -= 2 * HOUR
    world.sweep()
    assert world.dequeue_all() == [1]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_retention_is_not_touched_by_a_jump_of_the_wall_clock(jump: float) -> None:
    world = World(retention_seconds=60.0)
    in_state(world, CONCLUDED)
    world.wall += jump
    assert world.sweep().forgotten == 0
    world.monotonic += 60
    assert world.sweep().forgotten == 1


# --- retention


@pytest.mark.parametrize("state", [CONCLUDED, CANCELLED])
def test_a_finished_job_is_kept_for_its_time_and_then_forgotten(state: JobState) -> None:
    world = World(retention_seconds=60.0)
    job = in_state(world, state)
    world.monotonic = nextafter(world.monotonic + 60, -inf)
    assert world.sweep().forgotten == 0
    assert world.job() is job
    world.monotonic = nextafter(world.monotonic, inf)
    assert world.sweep().forgotten == 1
    with pytest.raises(ForgottenJob):
        world.job()
    assert (world.changes[-1].before, world.changes[-1].after) == (job, None)
    assert world.counts() == {}


def test_only_so_many_finished_jobs_are_kept_the_latest() -> None:
    world = World(retention_jobs=3)
    world.enqueue(*"abcde", NewJob("later", delay_seconds=HOUR))
    for id_ in (5, 2, 1):
        world.cancel(id_)
    assert world.sweep().forgotten == 0
    world.cancel(4)
    world.cancel(3)
    assert world.sweep().forgotten == 2
    for id_ in (5, 2):
        with pytest.raises(ForgottenJob):
            world.job(id_)
    assert [world.job(id_).state for id_ in (1, 3, 4, 6)] == [CANCELLED, CANCELLED, CANCELLED, SCHEDULED]


def test_without_retention_a_finished_job_is_forgotten_by_the_next_sweep() -> None:
    world = World(retention_jobs=0)
    lease = world.leased()
    concluded = world.claim_held("conclude", lease)
    assert world.claim_held("conclude", lease) is concluded
    assert world.sweep().forgotten == 1
    with pytest.raises(ForgottenJob):
        world.claim_held("conclude", lease)


def test_only_jobs_that_have_ended_are_forgotten() -> None:
    world = World(retention_seconds=0.0, retention_jobs=0)
    for state in (SCHEDULED, QUEUED):
        in_state(world, state)
    world.lease(lease_seconds=10 * HOUR)
    world.enqueue("a")
    world.wait(HOUR / 2)
    assert world.sweep() == Swept(stale=0, due=0, forgotten=0, more=False, next_due_seconds=HOUR / 2)
    assert world.counts() == {"scheduled": 1, "queued": 1, "in_progress": 1}


def test_an_id_that_was_given_is_forgotten_and_any_other_is_unknown() -> None:
    world = World(retention_jobs=0)
    in_state(world, CONCLUDED)
    world.enqueue("b")
    world.sweep()
    read: Callable[..., Any]
    for read in (world.job, world.ahead, world.cancel):
        with pytest.raises(ForgottenJob) as refused:
            read(1)
        assert refused.value.field == "id"
        for queue, id_ in (("q", 3), ("q", 0), ("q", -1), ("q", FENCE_MAX), ("other", 1)):
            with pytest.raises(UnknownJob) as unknown:
                read(id_, queue=queue)
            assert unknown.value.field == "id"
    assert [job.id for job in world.enqueue("c")] == [3]  # no id is given twice


# --- what an engine is told


def test_the_queues_in_which_jobs_became_ready_are_told_once_in_the_order_in_which_they_did() -> None:
    """An order that did not depend on this alone would give jobs to waiting consumers by chance."""
    world = World()
    names = [f"queue{n}" for n in (7, 3, 9, 1, 8, 2)]
    for name in (*names, *names[:2]):
        world.enqueue("a", queue=name)
    assert list(world.machine.take_readied()) == names
    assert list(world.machine.take_readied()) == []
    world.enqueue(NewJob("a", delay_seconds=1), queue="late")
    assert list(world.machine.take_readied()) == []
    stale = world.lease(queue="queue9")
    released = world.lease(queue="queue1")
    world.claim_held("release", released)
    world.wait(LEASE)
    world.sweep()
    assert list(world.machine.take_readied()) == ["queue1", "queue9", "late"]
    assert stale.job.queue == "queue9"


def test_a_cancelled_or_concluded_job_readies_nothing() -> None:
    world = World()
    lease = world.leased()
    world.machine.take_readied()
    world.cancel(1)
    world.claim_held("release", lease)
    in_state(world, CONCLUDED)
    world.machine.take_readied()
    world.claim("conclude", "q", 2)
    assert list(world.machine.take_readied()) == []


def test_changes_are_told_once_oldest_first() -> None:
    world = World(checked=False)
    world.enqueue("a", "b")
    lease = world.lease()
    world.claim_held("conclude", lease)
    assert world.machine.changes_waiting == 4
    changes = world.machine.take_changes()
    assert [(change.revision, (change.after or change.before).id) for change in changes] == [  # type: ignore[union-attr] # one of them is there
        (1, 1),
        (2, 2),
        (3, 1),
        (4, 1),
    ]
    assert changes[0].before is None
    assert changes[2].before is changes[0].after
    assert changes[3].before is changes[2].after
    assert world.machine.changes_waiting == 0
    assert world.machine.take_changes() == []


def test_reads_change_nothing() -> None:
    world = World()
    in_state(world, IN_PROGRESS)
    world.enqueue("b")
    before = snapshot(world.machine)
    world.job(1)
    world.ahead(2)
    assert world.ahead(1) is None
    assert world.view().counts == {SCHEDULED: 0, QUEUED: 1, IN_PROGRESS: 1, CONCLUDED: 0, CANCELLED: 0}
    assert world.view("unknown").counts == dict.fromkeys(JobState, 0)
    world.view().counts[QUEUED] = 99  # a copy
    assert snapshot(world.machine) == before


def test_the_same_commands_at_the_same_moments_give_the_same_replies() -> None:
    def replies() -> list[Any]:
        world = World(sweep_slice=2)
        given: list[Any] = [world.enqueue(*"abcdef"), leases := world.dequeue(4, consumer="ann")]
        given += [world.claim_held("release", leases[1]), world.cancel(1), world.cancel(6)]
        world.wait(LEASE)
        given += [world.sweep(), world.sweep(), world.dequeue(9), world.changes]
        return given

    assert replies() == replies()


# --- every refusal


def after(prepare: Callable[[World], Any], command: Callable[[Any], Command[Any]]) -> Callable[[World], Command[Any]]:
    return lambda world: command(prepare(world))


def forgotten(world: World) -> int:
    job = in_state(world, CONCLUDED)
    world.wait(HOUR)
    world.sweep()
    return job.id


def full(world: World) -> None:
    world.enqueue(NewJob("a", payload=b"x" * 60), "b", NewJob("c", delay_seconds=HOUR), queue="full")


def single(reply: Any) -> Job:
    """The only job of a reply that answers each job for itself."""
    assert isinstance(reply, Results)
    return reply.single()


def claims_one(verb: str, facts: dict[str, Any]) -> Command[Results]:
    claim, command = CLAIMS[verb]
    return command([claim(**{"queue": "q"} | facts)])


CLAIM_REFUSALS: dict[str, tuple[Callable[[World], dict[str, Any]], type[QueueError]]] = {
    "a job of an unknown queue": (lambda _: {"queue": "other", "id": 1}, UnknownJob),
    "a job that never was": (lambda world: {"id": in_state(world, QUEUED).id + 1}, UnknownJob),
    "a forgotten job": (lambda world: {"id": forgotten(world)}, ForgottenJob),
    "a token of an earlier lease": (lambda world: {"id": 1, "token": stale_once(world).token}, LeaseLost),
    "no token at all": (lambda world: {"id": in_state(world, IN_PROGRESS).id, "token": "x"}, LeaseLost),
    "another consumer": (lambda world: {"id": in_state(world, IN_PROGRESS, consumer="ann").id}, OtherConsumer),
    "a scheduled job": (lambda world: {"id": in_state(world, SCHEDULED).id}, NotInProgress),
    "a queued job": (lambda world: {"id": in_state(world, QUEUED).id}, NotInProgress),
    "a cancelled job": (lambda world: {"id": in_state(world, CANCELLED).id}, NotInProgress),
}

REFUSALS: dict[str, tuple[Callable[[World], Command[Any]], type[QueueError]]] = {
    "enqueue: too many queues": (after(full, lambda _: Enqueue("second", [NewJob("a")])), TooManyQueues),
    "enqueue: too many jobs": (after(full, lambda _: Enqueue("full", [NewJob("a"), NewJob("b")])), QueueFull),
    "enqueue: too many bytes": (after(full, lambda _: Enqueue("full", [NewJob("a", b"12345")])), MemoryFull),
    "cancel: a job that never was": (lambda _: Cancel("q", [1]), UnknownJob),
    "cancel: a forgotten job": (after(forgotten, lambda id_: Cancel("q", [id_])), ForgottenJob),
    "cancel: a concluded job": (
        after(lambda world: in_state(world, CONCLUDED), lambda job: Cancel("q", [job.id])),
        AlreadyFinished,
    ),
    "read: a job that never was": (lambda _: ReadJob("q", 1), UnknownJob),
    "read: a forgotten job": (after(forgotten, lambda id_: ReadJob("q", id_)), ForgottenJob),
    "position: a job that never was": (lambda _: ReadPosition("q", 1), UnknownJob),
    "position: a forgotten job": (after(forgotten, lambda id_: ReadPosition("q", id_)), ForgottenJob),
    **{
        f"{verb}: {name}": (after(prepare, partial(claims_one, verb)), refusal)
        for verb in CLAIMS
        for name, (prepare, refusal) in CLAIM_REFUSALS.items()
    },
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_command_leaves_the_whole_state_exactly_as_it_was(name: str) -> None:
    prepare, refusal = REFUSALS[name]
    world = World(queues_max=1, queued_jobs_max=4, memory_bytes_max=64, retention_seconds=HOUR)
    command = prepare(world)
    before = snapshot(world.machine)
    with pytest.raises(refusal) as refused:
        single(world.machine.apply(command, world.now))
    assert type(refused.value) is refusal
    assert refused.value.detail
    assert snapshot(world.machine) == before
    recount(world.machine)


def test_every_refusal_of_the_state_machine_is_tested_here() -> None:
    raised = {kind for kind in vars(state_machine).values() if inspect.isclass(kind) and issubclass(kind, QueueError)}
    assert {refusal for _, refusal in REFUSALS.values()} == raised - {QueueError}


def test_a_snapshot_sees_the_smallest_difference() -> None:
    """A test of the test: what it did not look at could change unseen."""
    world = World()
    for state in JobState:
        in_state(world, state)
    world.claim("release", "q", 3)
    machine, queue = world.machine, world.machine._queues["q"]
    array, returned = queue.ready._bands[0].array, queue.ready._bands[9].returned
    assert returned
    before = snapshot(machine)
    for spoil in (
        lambda: setattr(machine, "_revision", 99),
        lambda: setattr(machine, "_payload_bytes", 99),
        lambda: machine._counts.update({QUEUED: 99}),
        machine._readied.clear,
        lambda: setattr(queue, "next_fence", queue.next_fence + 1),
        lambda: queue.counts.update({QUEUED: 99}),
        lambda: queue.jobs.pop(1),
        lambda: array._ids.append(1),
        lambda: setattr(array, "_head", 99),
        returned.clear,
        lambda: machine._planned.clear(("q", 1)),
        lambda: machine._leases.set(("q", 1), 5.0),
        machine._finished.pop,
    ):
        spoil()
        spoilt = snapshot(machine)
        assert spoilt != before
        before = spoilt


# --- every transition

Road = Callable[[World], object]


def wished(world: World) -> Lease:
    lease = world.leased()
    world.cancel(lease.job.id)
    return lease


def swept(world: World, seconds: float, _subject: Job | Lease) -> None:
    """Wait, after something was done, and sweep."""
    world.wait(seconds)
    world.do(Sweep())


ROADS: dict[tuple[JobState, str, JobState], Road] = {
    (SCHEDULED, "due", QUEUED): lambda world: swept(world, HOUR, in_state(world, SCHEDULED)),
    (SCHEDULED, "cancel", CANCELLED): lambda world: world.cancel(in_state(world, SCHEDULED).id),
    (QUEUED, "dequeue", IN_PROGRESS): lambda world: world.leased(),
    (QUEUED, "cancel", CANCELLED): lambda world: world.cancel(in_state(world, QUEUED).id),
    (IN_PROGRESS, "extend", IN_PROGRESS): lambda world: world.claim_held("extend", world.leased()),
    (IN_PROGRESS, "cancel", IN_PROGRESS): lambda world: world.cancel(world.leased().job.id),
    (IN_PROGRESS, "conclude", CONCLUDED): lambda world: world.claim_held("conclude", world.leased()),
    (IN_PROGRESS, "release", QUEUED): lambda world: world.claim_held("release", world.leased()),
    (IN_PROGRESS, "release", SCHEDULED): lambda world: world.claim_held("release", world.leased(), delay_seconds=1.0),
    (IN_PROGRESS, "release", CANCELLED): lambda world: world.claim_held("release", wished(world)),
    (IN_PROGRESS, "stale", QUEUED): lambda world: swept(world, LEASE, world.leased()),
    (IN_PROGRESS, "stale", CANCELLED): lambda world: swept(world, LEASE, wished(world)),
}
"""How a command takes a job along each transition, as its last change."""


@pytest.mark.parametrize("transition", sorted(TRANSITIONS), ids="-".join)
def test_every_transition_is_made_by_a_command(
    transition: tuple[JobState, str, JobState], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transition in ROADS, "a new transition needs a road here"
    world = World()
    moves: list[tuple[JobState, str, JobState]] = []
    move = StateMachine._move

    def recorded(machine: StateMachine, queue: Any, job: Job, verb: str, to: JobState, **facts: Any) -> Job:
        moves.append((job.state, verb, to))
        return move(machine, queue, job, verb, to, **facts)

    monkeypatch.setattr(StateMachine, "_move", recorded)
    ROADS[transition](world)
    assert moves[-1] == transition
    change = world.changes[-1]
    assert change.before is not None
    assert change.after is not None
    assert (change.before.state, change.after.state) == (transition[0], transition[2])


def test_no_road_leads_along_a_transition_that_is_none() -> None:
    assert set(ROADS) == TRANSITIONS


def test_what_is_no_transition_is_a_bug_and_changes_nothing() -> None:
    verbs = {verb for _, verb, _ in TRANSITIONS} | {"enqueue", ""}
    for state in JobState:
        world = World()
        job = in_state(world, state)
        queue = world.machine._queues["q"]
        before = snapshot(world.machine)
        for verb in verbs:
            for to in JobState:
                if (state, verb, to) not in TRANSITIONS:
                    with pytest.raises(InvariantError, match=f"{verb} leads from {state} to {to}"):
                        world.machine._move(queue, job, verb, to)
        assert snapshot(world.machine) == before


def test_a_concluded_job_never_changes_again() -> None:
    assert not {verb for state, verb, _ in TRANSITIONS if state is CONCLUDED}


# --- bugs end the process


def test_every_command_has_its_verb() -> None:
    known = {
        kind
        for kind in vars(commands).values()
        if inspect.isclass(kind) and issubclass(kind, Command) and kind is not Command
    }
    assert set(World().machine._verbs) == known


def test_a_command_that_nobody_knows_is_a_bug_and_no_refusal() -> None:
    class Strange(Command[None], frozen=True):
        pass

    with pytest.raises(KeyError):
        World().do(Strange())


@pytest.mark.parametrize("figure", ["leases", "planned", "ready"])
def test_counts_that_disagree_with_what_they_count_are_a_bug(figure: str) -> None:
    world = World(checked=False)
    world.leased()
    world.enqueue("b")
    machine = world.machine
    match figure:
        case "leases":
            machine._leases.clear(("q", 1))
        case "planned":
            machine._planned.set(("q", 9), 1.0)
        case "ready":
            machine._queues["q"].ready.popleft()
    with pytest.raises(InvariantError):
        machine.take_changes()
