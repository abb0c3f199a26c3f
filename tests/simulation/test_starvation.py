"""How long anybody can be passed over, whatever others do: a job by other jobs, a waiter by other waiters.

The simulation looks at each single turn (`Auditor._check_turn`, `_check_line`). Here it is the bound that follows from
the turns, counted on the real state machine and its waiters: in jobs handed out, not in seconds.
"""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from queue_actor.commands import Dequeue, Dequeued, Enqueue, NewJob, SetPolicy
from queue_actor.engine import Request
from queue_actor.jobs import JobState, Now, QueuePolicy
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.waiters import Waiters
from tests.fakes import EPOCH_SECONDS, SECRET

NOW = Now(0.0, EPOCH_SECONDS)

priorities = st.integers(-2, 2)
floods = st.lists(st.lists(priorities, max_size=2), min_size=30, max_size=30)
"""What producers add before each dequeue."""

NEW_WAITERS_A_JOB = 2


def machine_with(policy: QueuePolicy) -> StateMachine:
    machine = StateMachine(Settings(), secret=SECRET)
    machine.apply(SetPolicy("q", policy), NOW)
    return machine


def enqueue(machine: StateMachine, priorities: Sequence[int], queue: str = "q") -> int:
    """The id of the last of some new jobs."""
    jobs = machine.apply(Enqueue(queue, [NewJob("a", priority=priority) for priority in priorities]), NOW).jobs
    return machine._queues[queue].next_id - 1 if jobs else 0


def dequeue(machine: StateMachine) -> int:
    (lease,) = machine.apply(Dequeue("q"), NOW).leases
    return lease.job.id


@given(before=st.lists(priorities, max_size=6), priority=priorities, every=st.integers(1, 4), floods=floods)
def test_under_oldest_every_each_job_is_handed_out_after_so_many_others_whatever_their_priority(
    before: list[int], priority: int, every: int, floods: list[list[int]]
) -> None:
    machine = machine_with(QueuePolicy(oldest_every=every))
    job = enqueue(machine, [*before, priority])

    for turn, flood in enumerate(floods, start=1):
        enqueue(machine, [2, *flood])
        if dequeue(machine) == job:
            break
        assert turn < every * (len(before) + 1)


@given(before=st.lists(priorities, max_size=6), priority=priorities, floods=floods)
def test_while_nothing_higher_comes_a_job_waits_only_for_those_that_went_before_it(
    before: list[int], priority: int, floods: list[list[int]]
) -> None:
    machine = machine_with(QueuePolicy())
    job = enqueue(machine, [*before, priority])
    ahead = sum(other >= priority for other in before)

    for turn, flood in enumerate(floods, start=1):
        enqueue(machine, [min(other, priority) for other in flood])
        if dequeue(machine) == job:
            break
        assert turn < ahead + 1


WANTED = ("a", "b", ("a", "b"), "*")
LINES = {"a": {"a", ("a", "b"), "*"}, "b": {"b", ("a", "b"), "*"}}
"""Who would take a job of a queue."""

wishes = st.sampled_from(WANTED)


@given(
    before=st.lists(wishes, max_size=6),
    wish=wishes,
    comings=st.lists(st.tuples(st.sampled_from("ab"), st.lists(wishes, max_size=NEW_WAITERS_A_JOB)), max_size=25),
)
def test_a_waiter_waits_for_no_more_jobs_than_there_are_waiters_before_him(
    before: list[str | tuple[str, ...]],
    wish: str | tuple[str, ...],
    comings: list[tuple[str, list[str | tuple[str, ...]]]],
) -> None:
    machine, waiters = StateMachine(Settings(), secret=SECRET), Waiters(waiters_max=1_000)
    for other in before:
        park(machine, waiters, other)
    own = park(machine, waiters, wish)
    seen = 0  # jobs that he would have taken

    for queue, newcomers in comings:
        for other in newcomers:
            park(machine, waiters, other)
        enqueue(machine, [0], queue)
        served = [request for request, _ in waiters.serve(machine, machine.take_readied(), NOW)]
        seen += wish in LINES[queue]
        if own in served:
            return
        assert seen < len(before) + 1
        left = machine.apply(Dequeue(queue), NOW).leases  # nobody waits for it: it is gone before others come
        assert not left or waiters.waiting(queue) == 0


def park(machine: StateMachine, waiters: Waiters, queue: str | tuple[str, ...]) -> Request[Dequeued]:
    request = Request(Dequeue(queue, wait_seconds=20))
    assert waiters.carry_out(machine, request, NOW, may_park=True) is None
    assert not machine._ledger.counts[JobState.QUEUED]
    return request
