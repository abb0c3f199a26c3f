"""The lines in which parked dequeues stand, and the readers who wait for a job's end."""

from collections.abc import Iterable

import pytest

from queue_actor.commands import (
    Cancel,
    Claim,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    IdempotencyKey,
    NewJob,
    ReadJob,
    ReadQueue,
    Redrive,
)
from queue_actor.engine import Request
from queue_actor.errors import HolderFull, KeyReused, TooManyWaiters
from queue_actor.figures import EngineFigures
from queue_actor.jobs import Job, JobState, Now
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


def park(
    waiters: Waiters, queue: str | tuple[str, ...] = "q", count: int = 1, *, key: IdempotencyKey | None = None
) -> Request[Dequeued]:
    """Let a dequeue wait for a job. It finds none: it asks a machine that has none."""
    request = Request(Dequeue(queue, count, wait_seconds=20, key=key))
    assert waiters.carry_out(StateMachine(Settings(), secret=SECRET), request, NOW, may_park=True) is None
    return request


def enqueue(machine: StateMachine, *types: str, queue: str = "q") -> None:
    machine.apply(Enqueue(queue, [NewJob(type_) for type_ in types]), NOW)


def served(
    waiters: Waiters, machine: StateMachine, queues: Iterable[str] = ("q",)
) -> list[tuple[Request[Dequeued], list[str]]]:
    """Who was served with jobs of which types."""
    served = []
    for request, reply in waiters.serve(machine, queues, NOW):
        assert isinstance(reply, Dequeued)
        served.append((request, [leased.job.type for leased in reply.leases]))
    return served


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


# --- several lines


def test_who_stands_in_several_lines_is_one_and_leaves_all_of_them(waiters: Waiters, machine: StateMachine) -> None:
    park(waiters, ("one", "two", "one"))
    assert len(waiters) == 1
    assert [waiters.waiting(queue) for queue in ("one", "two", "three")] == [1, 1, 0]
    enqueue(machine, "a", queue="one")
    enqueue(machine, "b", queue="two")
    assert [types for _, types in served(waiters, machine, ("two", "one"))] == [["a"]]
    assert len(waiters) == 0
    assert [waiters.waiting(queue) for queue in ("one", "two")] == [0, 0]
    assert waiters._lines == {}


def test_a_prefix_is_a_line_for_all_queues_whose_names_begin_with_it(waiters: Waiters, machine: StateMachine) -> None:
    wide, narrow, exact = park(waiters, "t*"), park(waiters, "t:*"), park(waiters, "t:a")
    assert [waiters.waiting(queue) for queue in ("t", "t:", "t:a", "s")] == [1, 2, 3, 0]
    for type_ in "abc":
        enqueue(machine, type_, queue="t:a")
    assert served(waiters, machine, ["t:a"]) == [(wide, ["a"]), (narrow, ["b"]), (exact, ["c"])]
    assert waiters._prefixes == set()


def test_a_prefix_is_a_line_as_long_as_anybody_stands_in_it(waiters: Waiters) -> None:
    first, second = park(waiters, "t*"), park(waiters, "t*")
    waiters.discard(first)
    assert waiters.waiting("t:a") == 1
    waiters.discard(second)
    assert waiters.waiting("t:a") == 0
    assert waiters._prefixes == set()


def test_the_oldest_of_all_lines_goes_first(waiters: Waiters, machine: StateMachine) -> None:
    queues: list[str | tuple[str, ...]] = [("two", "one"), "one", "o*", "one", "*"]
    parked = [park(waiters, queue) for queue in queues]
    enqueue(machine, *"abcde", queue="one")
    assert [request for request, _ in served(waiters, machine, ["one"])] == parked


def test_a_queue_without_jobs_does_not_keep_the_next_one_from_being_served(
    waiters: Waiters, machine: StateMachine
) -> None:
    park(waiters, "empty")
    request = park(waiters, "full")
    enqueue(machine, "a", queue="full")
    assert served(waiters, machine, ["empty", "full"]) == [(request, ["a"])]


# --- holders who may have one job


def park_holder(waiters: Waiters) -> Request[Dequeued]:
    request = Request(Dequeue("q", wait_seconds=20, holder="w", holder_in_progress_max=1))
    assert waiters.carry_out(StateMachine(Settings(), secret=SECRET), request, NOW, may_park=True) is None
    return request


def test_who_has_all_the_jobs_he_may_have_is_refused_and_the_next_one_is_served(
    waiters: Waiters, machine: StateMachine
) -> None:
    full, next_ = park_holder(waiters), park(waiters)
    enqueue(machine, "a", "b")
    machine.apply(Dequeue("q", holder="w"), NOW)
    (first, refusal), (second, reply) = waiters.serve(machine, ["q"], NOW)
    assert (first, second) == (full, next_)
    assert isinstance(refusal, HolderFull)
    assert isinstance(reply, Dequeued)
    assert [leased.job.type for leased in reply.leases] == ["b"]
    assert len(waiters) == 0


def test_who_has_all_the_jobs_he_may_have_waits_on_while_there_is_no_job_and_holds_no_other_queue_up(
    waiters: Waiters, machine: StateMachine
) -> None:
    full, other = park_holder(waiters), park(waiters, "other")
    enqueue(machine, "a")
    machine.apply(Dequeue("q", holder="w"), NOW)
    enqueue(machine, "b", queue="other")
    assert served(waiters, machine, ["q", "other"]) == [(other, ["b"])]
    assert not full.decided
    assert waiters.dismiss() == [full]


# --- keys


def key(name: str = "k", body: bytes = b"body") -> IdempotencyKey:
    return IdempotencyKey("here", name, body)


def test_a_repeat_takes_the_place_of_the_first_which_is_answered_empty(waiters: Waiters, machine: StateMachine) -> None:
    first, second = park(waiters, key=key()), park(waiters, key=key("other"))
    repeat = park(waiters, key=key())
    assert len(waiters) == 2
    assert first.settled
    enqueue(machine, "a", "b")
    assert served(waiters, machine) == [(repeat, ["a"]), (second, ["b"])]
    waiters.discard(first)
    assert len(waiters) == 0
    assert waiters._keyed == {}


def test_a_repeat_takes_over_from_a_repeat(waiters: Waiters) -> None:
    requests = [park(waiters, key=key()) for _ in range(7)]  # more than may wait
    assert [request.settled for request in requests] == [True] * 6 + [False]
    assert waiters.dismiss() == requests[-1:]


def test_a_key_is_free_when_its_holder_has_left(waiters: Waiters) -> None:
    waiters.discard(park(waiters, key=key(body=b"1")))
    park(waiters, key=key(body=b"2"))
    with pytest.raises(KeyReused, match=r"^the idempotency key was used with another body$"):
        park(waiters, key=key(body=b"1"))
    assert len(waiters) == 1


def test_whose_answer_was_given_under_his_key_meanwhile_gets_it_and_holds_nobody_up(
    waiters: Waiters, machine: StateMachine
) -> None:
    first, second = park(waiters, key=key()), park(waiters)
    enqueue(machine, "a", "b")
    machine.apply(Dequeue("q", key=key()), NOW)  # as if there had been no time to serve the line first
    assert served(waiters, machine) == [(first, ["a"]), (second, ["b"])]


# --- readers


def read(waiters: Waiters, machine: StateMachine, id_: int = 1) -> Request[Job]:
    """Let a reader wait for the end of a job."""
    request = Request(ReadJob("q", id_, wait_seconds=20))
    assert waiters.carry_out(machine, request, NOW, may_park=True) is None
    return request


def test_what_is_not_stored_is_not_told_to_a_reader_whose_wait_runs_out(
    waiters: Waiters, machine: StateMachine
) -> None:
    enqueue(machine, "a")
    request = read(waiters, machine)
    assert request.unserved is None
    waiters.stored()
    stored = request.unserved
    machine.apply(Dequeue("q"), NOW)
    assert list(waiters.tell(machine.take_changes().jobs)) == []
    assert request.unserved is stored


def test_a_reader_is_told_when_his_job_has_ended_and_of_no_other(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a", "b")
    machine.take_changes()
    first, second, other = (read(waiters, machine, id_) for id_ in (1, 1, 2))
    assert (len(waiters), waiters.waiting("q")) == (3, 0)
    job = machine.apply(Cancel("q", [1]), NOW).single()
    assert list(waiters.tell(machine.take_changes().jobs)) == [(first, job), (second, job)]
    assert (first.decided, second.decided, other.decided) == (True, True, False)
    assert len(waiters) == 1
    assert waiters.dismiss() == [other]
    assert waiters._readers == {}


def test_a_reader_knows_the_last_version_of_his_job(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a")
    request = read(waiters, machine)
    waiters.stored()
    assert request.unserved == machine.apply(ReadJob("q", 1), NOW)
    (leased,) = machine.apply(Dequeue("q"), NOW).leases
    assert list(waiters.tell(machine.take_changes().jobs)) == []
    waiters.stored()
    assert request.unserved == leased.job
    assert len(waiters) == 1


def test_a_reader_is_told_nothing_of_what_happened_before_he_came(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a")
    machine.apply(Cancel("q", [1]), NOW)
    machine.apply(Redrive("q", [1]), NOW)
    request = read(waiters, machine)
    assert list(waiters.tell(machine.take_changes().jobs)) == []
    waiters.stored()
    assert request.unserved == machine.apply(ReadJob("q", 1), NOW)


def test_who_waits_for_nothing_is_not_parked(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a", "b")
    machine.apply(Cancel("q", [1]), NOW)
    for command, may_park in ((ReadJob("q", 1, 20), True), (ReadJob("q", 2), True), (ReadJob("q", 2, 20), False)):
        reply = waiters.carry_out(machine, Request(command), NOW, may_park=may_park)
        assert reply is not None
        assert reply.id == command.id
    for dequeue, may_park in ((Dequeue("none"), True), (Dequeue("none", wait_seconds=20), False)):
        assert waiters.carry_out(machine, Request(dequeue), NOW, may_park=may_park) == Dequeued([])
    assert len(waiters) == 0


def test_any_wait_is_a_wait(waiters: Waiters) -> None:
    request = Request(Dequeue("q", wait_seconds=0.001))
    assert waiters.carry_out(StateMachine(Settings(), secret=SECRET), request, NOW, may_park=True) is None
    assert waiters.dismiss() == [request]


def test_a_reader_is_told_although_other_jobs_changed_before_his(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a", "b")
    request = read(waiters, machine, 2)
    machine.take_changes()
    _, job = machine.apply(Cancel("q", [1, 2]), NOW).jobs
    assert list(waiters.tell(machine.take_changes().jobs)) == [(request, job)]


def test_who_waited_and_what_came_of_it_is_counted(waiters: Waiters, machine: StateMachine) -> None:
    before = EngineFigures(sweeps=7)
    assert waiters.count_in(before) == before
    for _ in range(2):
        park(waiters)
    enqueue(machine, "a", "b")
    assert len(served(waiters, machine)) == 2
    for id_ in (1, 2):
        read(waiters, machine, id_)
    machine.take_changes()
    machine.apply(Conclude([Claim("q", 1), Claim("q", 2)]), NOW)
    assert len(list(waiters.tell(machine.take_changes().jobs))) == 2
    waiters.timed_out += 1
    assert waiters.count_in(before) == EngineFigures(sweeps=7, parked=4, served=4, timed_out=1)


def test_a_reader_is_discarded_once(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a")
    first, second = read(waiters, machine), read(waiters, machine)
    for _ in range(2):
        waiters.discard(first)
        assert len(waiters) == 1
    waiters.discard(second)
    assert waiters._readers == {}


def test_readers_and_dequeues_share_the_room(waiters: Waiters, machine: StateMachine) -> None:
    enqueue(machine, "a", queue="q")
    for _ in range(3):
        read(waiters, machine)
    for _ in range(2):
        park(waiters, "other")
    with pytest.raises(TooManyWaiters, match="5"):
        read(waiters, machine)
    with pytest.raises(TooManyWaiters, match="5"):
        park(waiters, "other")
