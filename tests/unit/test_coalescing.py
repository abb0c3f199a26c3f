"""Calls that share requests, without any I/O: each has the outcome that it would have had alone."""

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_actor.client_answers import Results
from queue_actor.client_errors import (
    AccessRefused,
    Busy,
    ClientError,
    Closed,
    Invalid,
    NotUnderstood,
    OutcomeUnknown,
    Refused,
    Unreachable,
    refusal,
)
from queue_actor.client_exchange import Request
from queue_actor.coalescing import BYTES_MAX, JOBS_MAX, Entry, Lane

SECONDS = 10.0


class Woken:
    """Counts how often it is set."""

    def __init__(self) -> None:
        self.times = 0

    def set(self) -> None:
        self.times += 1


class Lanes:
    """A lane of texts, each of which is answered with its length, and the requests that it made."""

    def __init__(self, repeat_seconds: float = SECONDS) -> None:
        self.requests: list[Sequence[bytes]] = []
        keys = count()

        def make(bodies: Sequence[bytes]) -> Request[Results[int]]:
            self.requests.append(bodies)
            return Request(
                method="POST",
                path="/",
                body=b",".join(bodies),
                headers={"Idempotency-Key": str(next(keys))},
                reader=lambda body: Results(tuple(len(part) for part in body.split(b","))),
            )

        self.lane: Lane[int] = Lane(make, repeat_seconds=repeat_seconds, draw=lambda: 1.0)

    def add(self, *bodies: bytes) -> list[Entry[int]]:
        """Calls that come now."""
        entries: list[Entry[int]] = [Entry(body, Woken()) for body in bodies]
        for entry in entries:
            self.lane.add(entry)
        return entries

    def send(self) -> list[bytes]:
        """The next request, as its bodies."""
        return self.lane.next_request().body.split(b",")

    def answer(self) -> list[bytes]:
        """The next request, answered."""
        request = self.lane.next_request()
        self.lane.answered(request.reader(request.body))
        return request.body.split(b",")


def code(entry: Entry[int]) -> object:
    """The outcome, or the code of its refusal."""
    return entry.outcome.code if isinstance(entry.outcome, Refused) else entry.outcome


def test_what_comes_while_a_request_is_under_way_goes_with_the_next() -> None:
    lanes = Lanes()
    (first,) = lanes.add(b"a")
    assert lanes.send() == [b"a"]
    others = lanes.add(b"bb", b"ccc")
    assert lanes.send() == [b"a"]  # the same, until it is answered
    assert lanes.lane.waiting == 2
    assert lanes.answer() == [b"a"]
    assert first.value() == 1
    assert lanes.answer() == [b"bb", b"ccc"]
    assert [entry.value() for entry in others] == [2, 3]
    assert not lanes.lane.has_work
    assert [entry.woken.times for entry in (first, *others)] == [1, 1, 1]  # type: ignore[attr-defined] # Woken


def test_as_many_are_expected_as_there_were() -> None:
    lanes = Lanes()
    lanes.add(b"a")
    assert lanes.lane.gathered  # one alone waits for nobody
    lanes.answer()
    lanes.add(b"a")
    lanes.send()
    lanes.add(b"b", b"c")
    lanes.answer()
    assert lanes.lane.expected == 3
    assert not lanes.lane.gathered
    lanes.add(b"d")
    assert lanes.lane.gathered
    lanes.answer()
    assert lanes.lane.expected == 3
    assert lanes.lane.waiting == 0
    lanes.add(b"a")
    assert not lanes.lane.gathered
    lanes.answer()
    assert lanes.lane.expected == 1


def test_a_request_has_so_many_jobs_and_bytes() -> None:
    lanes = Lanes()
    lanes.add(*[b"a"] * (JOBS_MAX + 1))
    assert len(lanes.answer()) == JOBS_MAX
    assert len(lanes.answer()) == 1
    half, more = b"a" * (BYTES_MAX // 2), b"a" * (BYTES_MAX + 1)
    lanes.add(half, half, b"b", more, b"c")
    assert [len(lanes.answer()) for _ in range(4)] == [2, 1, 1, 1]


def test_a_refusal_of_one_job_is_that_of_its_own_caller() -> None:
    lanes = Lanes()
    first, second = lanes.add(b"a", b"b")
    lanes.send()
    lanes.lane.answered(Results((1, refusal("unique_key_taken", "taken"))))
    assert first.value() == 1
    with pytest.raises(Refused, match="unique_key_taken"):
        second.value()


def test_who_is_named_is_taken_out_and_the_others_go_on_together() -> None:
    lanes = Lanes()
    entries = lanes.add(b"a", b"bad", b"c", b"bad", b"e")
    lanes.send()
    assert lanes.lane.failed(refusal("invalid", "wrong", field="jobs[1].type"), 0) == 0
    assert lanes.send() == [b"a", b"c", b"bad", b"e"]
    assert lanes.lane.failed(refusal("too_large", "wrong", field="jobs[2]"), 0) == 0
    assert lanes.answer() == [b"a", b"c", b"e"]
    assert [code(entry) for entry in entries] == [1, "invalid", 1, "too_large", 1]
    assert isinstance(entries[1].outcome, Invalid)
    assert entries[1].outcome.field == "type"
    assert str(entries[1].outcome) == "invalid: wrong (field type)"


@pytest.mark.parametrize(("told", "field"), [("malformed", None), ("invalid", "jobs[9].type")])
def test_where_nobody_is_named_the_request_is_halved(told: str, field: str | None) -> None:
    lanes = Lanes()
    entries = lanes.add(b"a", b"b", b"bad")
    while lanes.lane.has_work:
        bodies = lanes.send()
        if b"bad" in bodies:
            assert lanes.lane.failed(refusal(told, "wrong", field=field), 0) == 0
        else:
            lanes.answer()
    assert [code(entry) for entry in entries] == [1, 1, told]
    assert [len(request) for request in lanes.requests] == [3, 2, 1]


def test_a_lane_learns_how_many_jobs_and_bytes_the_server_takes() -> None:
    lanes = Lanes()
    lanes.add(*[b"a"] * 10)
    lanes.send()
    lanes.lane.failed(refusal("invalid", "too many", field="jobs"), 0)
    assert [len(lanes.answer()) for _ in range(2)] == [5, 5]
    lanes.add(*[b"a"] * 10)
    assert [len(lanes.answer()) for _ in range(2)] == [5, 5]
    lanes.add(*[b"a" * 10] * 4)
    lanes.send()
    lanes.lane.failed(refusal("too_large", "too large"), 0)
    assert [len(lanes.answer()) for _ in range(2)] == [2, 2]
    lanes.add(*[b"a" * 10] * 4)
    assert [len(lanes.answer()) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize("full", ["queue_full", "memory_full"])
def test_where_there_is_no_room_for_all_there_may_be_for_some(full: str) -> None:
    lanes = Lanes()
    entries = lanes.add(b"a", b"b", b"c", b"d")
    assert lanes.send() == [b"a", b"b", b"c", b"d"]
    assert lanes.lane.failed(refusal(full, "full"), 0) == 0
    assert lanes.answer() == [b"a", b"b"]
    assert lanes.send() == [b"c", b"d"]
    assert lanes.lane.failed(refusal(full, "full"), 0) == 0
    assert lanes.send() == [b"c"]
    # Nobody else has room either: a pause, then all who are left together, and in order.
    assert lanes.lane.failed(refusal(full, "full", retry_after_seconds=1), 0) > 1
    lanes.add(b"e")
    assert lanes.answer() == [b"c", b"d", b"e"]
    assert [entry.value() for entry in entries] == [1, 1, 1, 1]


def test_what_is_refused_to_all_is_refused_to_each_with_an_exception_of_its_own() -> None:
    lanes = Lanes()
    first, second = lanes.add(b"a", b"b")
    lanes.send()
    error = refusal("forbidden", "no", status=403)
    assert lanes.lane.failed(error, 0) == 0
    assert isinstance(first.outcome, AccessRefused)
    assert first.outcome is not second.outcome
    assert first.outcome.__cause__ is error
    assert first.outcome.status == 403
    assert not lanes.lane.has_work


def test_what_may_have_been_done_is_repeated_as_it_was() -> None:
    lanes = Lanes()
    lanes.add(b"a", b"b")
    request = lanes.lane.next_request()
    for error in (Unreachable("broke", may_be_done=True), refusal("outcome_unknown", "?"), refusal("", "", status=502)):
        assert lanes.lane.failed(error, 0) > 0
        lanes.add(b"c")
        assert lanes.lane.next_request() is request
    assert lanes.answer() == [b"a", b"b"]
    assert lanes.answer() == [b"c", b"c", b"c"]


def test_what_was_not_done_may_go_in_another_company() -> None:
    lanes = Lanes()
    lanes.add(b"a")
    lanes.send()
    for error in (Unreachable("refused"), refusal("busy", "busy")):
        assert lanes.lane.failed(error, 0) > 0
        lanes.add(b"b")
        lanes.send()
    assert lanes.answer() == [b"a", b"b", b"b"]


@pytest.mark.parametrize("may_be_done", [True, False])
def test_each_call_is_repeated_for_so_long_after_the_first_failure_that_it_knows_of(may_be_done: bool) -> None:
    lanes = Lanes()
    (early,) = lanes.add(b"a")
    error = Unreachable("broke", may_be_done=may_be_done)
    lanes.send()
    lanes.lane.failed(error, 0)
    (late,) = lanes.add(b"b")
    lanes.send()
    lanes.lane.failed(error, 9)
    assert (early.outcome, late.outcome) == (None, None)
    lanes.send()
    assert (lanes.lane.failed(error, 10) == 0) is may_be_done  # the other one was sent already, or not
    assert isinstance(early.outcome, Unreachable)
    assert late.outcome is None
    assert lanes.send() == [b"b"]
    lanes.lane.failed(error, 18.9)
    assert isinstance(late.outcome, Unreachable)
    assert not lanes.lane.has_work


def test_one_that_has_expired_stays_in_what_is_repeated_and_keeps_what_it_was_told() -> None:
    lanes = Lanes()
    (first,) = lanes.add(b"a")
    lanes.send()
    lanes.lane.failed(Unreachable("not yet"), 0)
    (second,) = lanes.add(b"b")
    lanes.send()
    lanes.lane.failed(Unreachable("broke", may_be_done=True), 10)
    assert isinstance(first.outcome, Unreachable)
    assert lanes.answer() == [b"a", b"b"]
    assert isinstance(first.outcome, Unreachable)
    assert second.value() == 1
    assert first.woken.times == 1  # type: ignore[attr-defined] # Woken


def test_pauses_grow_and_begin_anew_after_an_answer() -> None:
    lanes = Lanes(repeat_seconds=1000)
    lanes.add(b"a")
    lanes.send()
    pauses = [lanes.lane.failed(Unreachable("refused"), 0) for _ in range(9) if lanes.send()]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    lanes.answer()
    lanes.add(b"a")
    lanes.send()
    assert lanes.lane.failed(Unreachable("refused"), 0) == pytest.approx(0.05)


def test_zero_seconds_means_no_repeat_but_everyone_is_sent_once() -> None:
    lanes = Lanes(repeat_seconds=0)
    (first,) = lanes.add(b"a")
    lanes.send()
    (second,) = lanes.add(b"b")
    assert lanes.lane.failed(refusal("too_many_queues", "full", retry_after_seconds=60), 0) == 0
    assert isinstance(first.outcome, Busy)
    assert lanes.answer() == [b"b"]
    assert second.value() == 1


def test_what_may_have_been_done_stays_as_it_was_also_if_the_next_answer_says_that_nothing_was() -> None:
    lanes = Lanes()
    lanes.add(b"a")
    request = lanes.lane.next_request()
    lanes.lane.failed(Unreachable("broke", may_be_done=True), 0)
    lanes.add(b"b")
    lanes.lane.next_request()
    lanes.lane.failed(refusal("busy", "the repeat was not looked at"), 0)
    assert lanes.lane.next_request() is request


def test_an_answer_about_another_number_of_jobs_is_not_understood() -> None:
    lanes = Lanes()
    entries = lanes.add(b"a", b"b")
    lanes.send()
    lanes.lane.answered(Results((1, 2, 3)))
    assert [type(entry.outcome) for entry in entries] == [NotUnderstood, NotUnderstood]


def test_a_call_that_is_given_up_is_not_sent_if_it_was_not_yet() -> None:
    lanes = Lanes()
    first, second, third = lanes.add(b"a", b"b", b"c")
    lanes.lane.discard(second)
    assert lanes.send() == [b"a", b"c"]
    lanes.lane.discard(third)  # under way
    assert lanes.lane.first() is first
    assert lanes.answer() == [b"a", b"c"]
    lanes.lane.discard(first)  # has its outcome, and keeps it
    assert first.value() == 1
    assert lanes.lane.first() is None
    entries = lanes.add(b"a", b"b", b"c", b"d")
    lanes.send()
    lanes.lane.failed(refusal("queue_full", "full"), 0)
    lanes.send()
    lanes.lane.discard(entries[2])
    lanes.lane.discard(entries[3])
    assert lanes.answer() == [b"a", b"b"]
    assert not lanes.lane.has_work


def test_a_request_whose_calls_are_all_given_up_is_not_repeated_and_its_answer_nobodys() -> None:
    lanes = Lanes()
    (only,) = lanes.add(b"a")
    request = lanes.lane.next_request()
    lanes.lane.discard(only)
    assert not lanes.lane.has_work
    (other,) = lanes.add(b"b")
    lanes.lane.answered(request.reader(request.body))
    assert other.outcome is None
    assert lanes.answer() == [b"b"]


def test_a_closed_lane_fails_all() -> None:
    lanes = Lanes()
    entries = lanes.add(b"a", b"b", b"c", b"d")
    lanes.send()
    lanes.lane.failed(refusal("queue_full", "full"), 0)
    lanes.send()
    entries += lanes.add(b"e")
    lanes.lane.close(Closed("closed"))
    assert {type(entry.outcome) for entry in entries} == {Closed}
    assert not lanes.lane.has_work


class Server:
    """Takes batches as the server does: all or none, each key once."""

    def __init__(self, room: int, jobs_max: int, bytes_max: int) -> None:
        self.room, self.jobs_max, self.bytes_max = room, jobs_max, bytes_max
        self.answers: dict[str, Results[int]] = {}
        self.done: list[bytes] = []

    def take(self, request: Request[Results[int]], *, names: bool) -> Results[int]:
        """The answer to a request; `names`: what is wrong is named.

        Raises:
            ClientError: It is refused.
        """
        key = request.headers["Idempotency-Key"]
        if key in self.answers:
            return self.answers[key]
        bodies = request.body.split(b",")
        if len(bodies) > self.jobs_max:
            raise refusal("invalid", "too many", field="jobs")
        if len(request.body) > self.bytes_max:
            raise refusal("too_large", "too large")
        wrong = [n for n, body in enumerate(bodies) if body.startswith(b"bad")]
        if wrong:
            raise refusal("invalid", "wrong", field=f"jobs[{wrong[0]}].type" if names else None)
        if len(bodies) > self.room:
            raise refusal("queue_full", "full")
        self.room -= len(bodies)
        self.done += bodies
        self.answers[key] = request.reader(request.body)
        return self.answers[key]


@given(
    wrong=st.lists(st.booleans(), min_size=1, max_size=12),
    faults=st.lists(st.sampled_from(["", "", "lost before", "lost after", "busy", "unknown"]), max_size=12),
    room=st.integers(0, 14),
    jobs_max=st.integers(1, 8),
    bytes_max=st.integers(8, 40),
    names=st.booleans(),
    arrive=st.integers(1, 4),
)
def test_every_call_has_what_it_would_have_had_alone_and_is_done_once(  # noqa: PLR0917 - drawn by name
    wrong: list[bool], faults: list[str], room: int, jobs_max: int, bytes_max: int, names: bool, arrive: int
) -> None:
    lanes, server = Lanes(repeat_seconds=1000), Server(room, jobs_max, bytes_max)
    to_come = [f"bad{n}" if bad else f"job{n}" for n, bad in enumerate(wrong)]
    calls: list[Entry[int]] = []
    now, failures = 0.0, iter(faults)
    for _ in range(10_000):
        calls += lanes.add(*(text.encode() for text in to_come[:arrive]))
        del to_come[:arrive]
        if not lanes.lane.has_work:
            break
        request, fault = lanes.lane.next_request(), next(failures, "")
        try:
            if fault == "lost before":
                raise Unreachable("broke", may_be_done=True)
            if fault == "busy":
                raise refusal("busy", "busy")
            results = server.take(request, names=names)
            if fault == "lost after":
                raise Unreachable("broke", may_be_done=True)
            if fault == "unknown":
                raise refusal("outcome_unknown", "?")
            lanes.lane.answered(results)
        except ClientError as error:
            now += 0.001 + lanes.lane.failed(error, now)
    assert not lanes.lane.has_work
    assert not to_come
    assert len(set(server.done)) == len(server.done)
    good = [call for call in calls if not call.body.startswith(b"bad")]
    answered = [call for call in good if call.outcome == len(call.body)]
    assert [call.body for call in calls if isinstance(call.outcome, Invalid)] == [
        call.body for call in calls if call not in good
    ]
    assert {call.body for call in answered} == set(server.done)
    # All that there is room for, the first who came first where there is not room for all.
    assert len(answered) == min(room, len(good))
    assert all(isinstance(call.outcome, Busy | OutcomeUnknown) for call in good if call not in answered)
