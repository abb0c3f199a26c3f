"""The lines in which parked dequeues stand."""

from collections.abc import Iterable

import pytest

from queue_actor.commands import Dequeue, Dequeued, Enqueue, NewJob, ReadQueue
from queue_actor.engine import Request
from queue_actor.errors import TooManyWaiters
from queue_actor.jobs import JobState, Now
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.waiters import Waiters
from tests.fakes import EPOCH_SECONDS, SECRET

NOW = Now(0.0, EPOCH_SECONDS)


@pytest.fixture
def machine() -> StateMachine:
    return StateMachine(Settings(), secret=SECRET)


@pytest.fixture
def waiters() -> Waiters:
    return Waiters(waiters_max=5)


def park(waiters: Waiters, queue: str = "q", count: int = 1) -> Request[Dequeued]:
    """Let a dequeue wait for a job. It finds none: it asks a machine that has none."""
    request = Request(Dequeue(queue, count, wait_seconds=20))
    assert waiters.carry_out(StateMachine(Settings(), secret=SECRET), request, NOW, may_park=True) is None
    return request


def enqueue(machine: StateMachine, *types: str, queue: str = "q") -> None:
    machine.apply(Enqueue(queue, [NewJob(type_) for type_ in types]), NOW)


def served(
    waiters: Waiters, machine: StateMachine, queues: Iterable[str] = ("q",)
) -> list[tuple[Request[Dequeued], list[str]]]:
    """Who was served with jobs of which types."""
    return [
        (request, [leased.job.type for leased in reply.leases])
        for request, reply in waiters.serve(machine, queues, NOW)
    ]


def test_nobody_waits_at_first(waiters: Waiters, machine: StateMachine) -> None:
    assert len(waiters) == 0
    assert not waiters
    assert waiters.waiting("q") == 0
    assert waiters.dismiss() == []
    enqueue(machine, "a")
    assert served(waiters, machine) == []


def test_the_oldest_is_served_first_and_leaves_the_line_decided(waiters: Waiters, machine: StateMachine) -> None:
    first, second, third = (park(waiters) for _ in range(3))
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(first, ["a"]), (second, ["b"])]
    assert (first.decided, second.decided, third.decided) == (True, True, False)
    assert len(waiters) == 1
    enqueue(machine, "c", "d")
    assert served(waiters, machine) == [(third, ["c"])]
    assert len(waiters) == 0
    assert waiters.waiting("q") == 0


def test_who_asked_for_several_takes_what_there_is(waiters: Waiters, machine: StateMachine) -> None:
    first, second = park(waiters, count=2), park(waiters, count=2)
    enqueue(machine, "a", "b", "c")
    assert served(waiters, machine) == [(first, ["a", "b"]), (second, ["c"])]


def test_where_there_is_no_job_the_line_stays_as_it_is(waiters: Waiters, machine: StateMachine) -> None:
    first, second = park(waiters), park(waiters)
    assert served(waiters, machine) == []
    assert len(waiters) == 2
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(first, ["a"]), (second, ["b"])]


def test_each_queue_has_a_line_of_its_own(waiters: Waiters, machine: StateMachine) -> None:
    one, two = park(waiters, "one"), park(waiters, "two")
    assert waiters.waiting("one") == 1
    enqueue(machine, "a", queue="two")
    enqueue(machine, "b", queue="one")
    assert served(waiters, machine, ["one", "three"]) == [(one, ["b"])]
    assert waiters.waiting("one") == 0
    assert waiters.waiting("two") == 1
    assert served(waiters, machine, ["one", "two"]) == [(two, ["a"])]


def test_queues_are_served_in_an_order_that_does_not_change_from_run_to_run(machine: StateMachine) -> None:
    """Each lease counts a revision up, and a set of names has another order in every process."""
    waiters = Waiters(waiters_max=100)
    names = [f"queue {n:02}" for n in range(100)]
    for name in names:
        park(waiters, name)
        enqueue(machine, "a", queue=name)
    order = [request.command.queue for request, _ in waiters.serve(machine, machine.take_readied(), NOW)]  # type: ignore[attr-defined] # a Dequeue
    assert order == names


def test_a_job_is_leased_only_when_its_holder_is_taken_from_the_iterator(
    waiters: Waiters, machine: StateMachine
) -> None:
    park(waiters)
    second = park(waiters)
    enqueue(machine, "a", "b")
    next(waiters.serve(machine, ["q"], NOW))
    assert machine.apply(ReadQueue("q"), NOW).counts[JobState.QUEUED] == 1
    assert not second.decided
    assert len(waiters) == 1


def test_who_is_discarded_is_not_served(waiters: Waiters, machine: StateMachine) -> None:
    first, second, third = (park(waiters) for _ in range(3))
    waiters.discard(second)
    assert len(waiters) == 2
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(first, ["a"]), (third, ["b"])]


def test_discarding_twice_or_after_the_service_does_nothing(waiters: Waiters, machine: StateMachine) -> None:
    first, second, third = (park(waiters) for _ in range(3))
    waiters.discard(first)
    waiters.discard(first)
    assert len(waiters) == 2
    enqueue(machine, "a")
    assert served(waiters, machine) == [(second, ["a"])]
    waiters.discard(second)
    assert len(waiters) == 1
    waiters.discard(third)
    waiters.discard(third)
    assert len(waiters) == 0
    assert waiters.waiting("q") == 0


def test_whose_caller_has_left_is_passed_over_although_he_still_stands_in_line(
    waiters: Waiters, machine: StateMachine
) -> None:
    first, second, third = (park(waiters) for _ in range(3))
    first.abandoned = second.abandoned = True  # their tasks have not run yet, to leave the line
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(third, ["a"])]
    assert machine.apply(ReadQueue("q"), NOW).counts[JobState.QUEUED] == 1
    assert not first.decided
    for request in (first, second):
        waiters.discard(request)
    assert len(waiters) == 0


def test_who_leaves_and_comes_back_stands_at_the_end(waiters: Waiters, machine: StateMachine) -> None:
    first, second = park(waiters), park(waiters)
    waiters.discard(first)
    again = park(waiters)
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(second, ["a"]), (again, ["b"])]


def test_one_more_than_waiters_max_is_refused_in_all_lines_together(waiters: Waiters) -> None:
    parked = [park(waiters, f"q{n}") for n in range(5)]
    with pytest.raises(TooManyWaiters, match="5"):
        park(waiters, "q9")
    assert len(waiters) == 5
    assert waiters.waiting("q9") == 0
    waiters.discard(parked[0])
    park(waiters, "q9")


def test_dismissing_empties_all_lines(waiters: Waiters, machine: StateMachine) -> None:
    parked = [park(waiters, queue) for queue in ("one", "two", "one")]
    assert waiters.dismiss() == parked
    assert len(waiters) == 0
    enqueue(machine, "a", queue="one")
    assert served(waiters, machine, ["one"]) == []
    for request in parked:
        assert not request.decided
        waiters.discard(request)
    assert len(waiters) == 0
