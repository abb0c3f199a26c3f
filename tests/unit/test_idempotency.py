"""Answers that are remembered under a key."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor import idempotency
from queue_actor.commands import IdempotencyKey
from queue_actor.errors import KeyReused
from queue_actor.idempotency import Answers
from queue_actor.jobs import Now

BODY = b"one body"
OTHER_BODY = b"another"


def key(name: str, body: bytes = BODY, scope: str = "s") -> IdempotencyKey:
    return IdempotencyKey(scope, name, body)


def at(seconds: float) -> Now:
    return Now(monotonic=seconds, wall=0.0)


def answers(**limits: Any) -> Answers[str]:
    return Answers("enqueue", **{"seconds": 10.0, "keys_max": 100, **limits})


def test_an_answer_is_found_under_its_key_and_no_other() -> None:
    held = answers()
    held.remember(key("k"), "answer", 1, at(0))

    assert held.find(key("k"), at(1)) == "answer"
    assert held.find(key("other"), at(1)) is None
    assert held.find(key("k", scope="another"), at(1)) is None


def test_a_key_with_another_body_is_refused_and_the_answer_kept() -> None:
    held = answers()
    held.remember(key("k"), "answer", 1, at(0))

    with pytest.raises(KeyReused) as refusal:
        held.find(key("k", OTHER_BODY), at(1))
    assert refusal.value.field == "Idempotency-Key"
    assert held.find(key("k"), at(1)) == "answer"


def test_an_answer_is_kept_for_its_seconds_on_the_monotonic_clock() -> None:
    held = answers(seconds=10.0)
    held.remember(key("k"), "answer", 1, at(5))

    assert held.find(key("k"), at(14.75)) == "answer"
    assert held.find(key("k"), at(15)) is None


def test_a_key_whose_answer_is_too_old_may_be_used_with_another_body() -> None:
    held = answers(seconds=10.0)
    held.remember(key("k"), "answer", 1, at(0))

    assert held.find(key("k", OTHER_BODY), at(10)) is None
    held.remember(key("k", OTHER_BODY), "another", 1, at(10))
    assert held.find(key("k", OTHER_BODY), at(11)) == "another"
    assert len(held) == 1


def test_beyond_their_number_the_oldest_answers_go_first() -> None:
    held = answers(keys_max=2)
    for n, name in enumerate("abc"):
        held.remember(key(name), name, 1, at(n))

    assert [held.find(key(name), at(3)) for name in "abc"] == [None, "b", "c"]


def test_an_answer_given_anew_counts_as_the_latest() -> None:
    held = answers(keys_max=2)
    for n, name in enumerate("aba"):
        held.remember(key(name), name, 1, at(n))
    held.remember(key("c"), "c", 1, at(4))

    assert [held.find(key(name), at(5)) for name in "abc"] == ["a", None, "c"]


def test_answers_that_are_too_old_take_no_room() -> None:
    held = answers(seconds=10.0)
    for n in range(5):
        held.remember(key(str(n)), "old", 1, at(n))
    held.remember(key("new"), "new", 1, at(12))

    assert len(held) == 3  # those of 3 and 4, and this one


def test_with_no_room_for_a_single_key_nothing_is_remembered() -> None:
    held = answers(keys_max=0)
    held.remember(key("k"), "answer", 1, at(0))

    assert held.find(key("k"), at(0)) is None
    assert len(held) == 0


def test_answers_about_many_jobs_take_the_room_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys alone do not bound the memory: an answer may speak of a thousand jobs."""
    monkeypatch.setattr(idempotency, "ANSWERED_JOBS_MAX", 10)
    held = answers()
    held.remember(key("a"), "a", 6, at(0))
    held.remember(key("b"), "b", 4, at(1))
    assert len(held) == 2
    held.remember(key("b"), "b again", 3, at(2))  # what it had before is given back
    held.remember(key("c"), "c", 1, at(3))
    assert len(held) == 3
    held.remember(key("d"), "d", 1, at(4))

    assert [held.find(key(name), at(5)) for name in "abcd"] == [None, "b again", "c", "d"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from((BODY, OTHER_BODY)), st.integers(0, 6))))
@settings(deadline=None)
def test_within_its_limits_a_key_has_one_answer(calls: Sequence[tuple[str, bytes, int]]) -> None:
    """As a server uses it: find, and where there is no answer, make one and remember it."""
    held, clock = answers(seconds=10.0, keys_max=3), 0
    made: list[tuple[int, str, bytes, int]] = []  # when, key, body, number of the answer
    for name, body, pause in calls:
        clock += pause
        latest = {answer[1]: answer for answer in made}
        kept = [answer for answer in made if answer == latest[answer[1]]][-3:]
        expected = [answer for answer in kept if answer[1] == name and answer[0] + 10 > clock]
        try:
            found = held.find(key(name, body), at(clock))
        except KeyReused:
            assert expected
            assert expected[0][2] != body
            continue
        if found is None:
            assert not expected
            made.append((clock, name, body, len(made)))
            held.remember(key(name, body), str(len(made) - 1), 1, at(clock))
        else:
            assert [(found, body)] == [(str(answer[3]), answer[2]) for answer in expected]
        assert len(held) <= 3
