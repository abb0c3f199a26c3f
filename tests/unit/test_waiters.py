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
    command = Dequeue(queue, count, wait_seconds=20)
    request = Request(command)
    waiters.park(request, command)
    return request


def discard(waiters: Waiters, request: Request[Dequeued]) -> None:
    assert isinstance(request.command, Dequeue)
    waiters.discard(request, request.command)


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
    assert "q" not in waiters
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
    assert "q" not in waiters


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
    assert "one" in waiters
    enqueue(machine, "a", queue="two")
    enqueue(machine, "b", queue="one")
    assert served(waiters, machine, ["one", "three"]) == [(one, ["b"])]
    assert "one" not in waiters
    assert "two" in waiters
    assert served(waiters, machine, ["one", "two"]) == [(two, ["a"])]


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
    discard(waiters, second)
    assert len(waiters) == 2
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(first, ["a"]), (third, ["b"])]


def test_discarding_twice_or_after_the_service_does_nothing(waiters: Waiters, machine: StateMachine) -> None:
    first, second, third = (park(waiters) for _ in range(3))
    discard(waiters, first)
    discard(waiters, first)
    assert len(waiters) == 2
    enqueue(machine, "a")
    assert served(waiters, machine) == [(second, ["a"])]
    discard(waiters, second)
    assert len(waiters) == 1
    discard(waiters, third)
    discard(waiters, third)
    assert len(waiters) == 0
    assert "q" not in waiters


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
        discard(waiters, request)
    assert len(waiters) == 0


def test_who_leaves_and_comes_back_stands_at_the_end(waiters: Waiters, machine: StateMachine) -> None:
    first, second = park(waiters), park(waiters)
    discard(waiters, first)
    again = park(waiters)
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(second, ["a"]), (again, ["b"])]


def test_one_more_than_waiters_max_is_refused_in_all_lines_together(waiters: Waiters) -> None:
    parked = [park(waiters, f"q{n}") for n in range(5)]
    with pytest.raises(TooManyWaiters, match="5"):
        park(waiters, "q9")
    assert len(waiters) == 5
    assert "q9" not in waiters
    discard(waiters, parked[0])
    park(waiters, "q9")


def test_dismissing_empties_all_lines(waiters: Waiters, machine: StateMachine) -> None:
    parked = [park(waiters, queue) for queue in ("one", "two", "one")]
    assert waiters.dismiss() == [parked[0], parked[2], parked[1]]
    assert len(waiters) == 0
    enqueue(machine, "a", queue="one")
    assert served(waiters, machine, ["one"]) == []
    for request in parked:
        assert not request.decided
        discard(waiters, request)
    assert len(waiters) == 0
