"""Whether and when the client repeats, without a clock."""

import pytest

from queue_actor.client_errors import CODES, Closed, Invalid, NotUnderstood, Unreachable, refusal
from queue_actor.client_repeats import PAUSE_SECONDS_MAX, WAIT_SECONDS, Pauses, Repeats, Waits, may_repeat

BROKE = Unreachable("broke", may_be_done=True)
NOBODY = Unreachable("refused")


def test_what_was_not_done_may_always_be_repeated_and_what_may_have_been_only_if_that_is_safe() -> None:
    for code, kind in CODES.items():
        assert may_repeat(refusal(code, ""), repeatable=True) is (kind.retryable in {"later", "repeat"}), code
        assert may_repeat(refusal(code, ""), repeatable=False) is (kind.retryable == "later"), code
    for error, safe, unsafe in (
        (BROKE, True, False),
        (NOBODY, True, True),
        (NotUnderstood("a page"), False, False),
        (Closed("closed"), False, False),
        (refusal("", "a proxy's", status=502), True, False),
        (refusal("teapot", "", status=418), False, False),
    ):
        assert may_repeat(error, repeatable=True) is safe
        assert may_repeat(error, repeatable=False) is unsafe


def test_pauses_grow_to_a_bound_and_are_spread() -> None:
    whole, half = Pauses(lambda: 1.0), Pauses(lambda: 0.0)
    longest = [whole.next(BROKE) for _ in range(20)]
    shortest = [half.next(BROKE) for _ in range(20)]
    assert longest[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert longest[-1] == PAUSE_SECONDS_MAX
    assert shortest == pytest.approx([pause / 2 for pause in longest])
    whole.reset()
    assert whole.next(BROKE) == pytest.approx(0.05)
    assert 0 < Pauses().next(BROKE) <= 0.05


def test_a_pause_is_never_shorter_than_the_server_asks_for() -> None:
    assert Pauses(lambda: 0.0).next(refusal("draining", "", retry_after_seconds=5)) > 5


def test_repeats_end_so_many_seconds_after_the_first_failure() -> None:
    repeats = Repeats(30, repeatable=True, draw=lambda: 1.0)
    assert repeats.pause_after(BROKE, 100) == pytest.approx(0.05)
    assert repeats.pause_after(BROKE, 129.9) == pytest.approx(0.1)
    assert repeats.pause_after(BROKE, 129.9) is None
    repeats.reset()
    assert repeats.pause_after(BROKE, 500) == pytest.approx(0.05)
    assert Repeats(0, repeatable=True).pause_after(BROKE, 0) is None
    assert Repeats(30, repeatable=True).pause_after(refusal("too_many_queues", "", retry_after_seconds=60), 0) is None
    assert Repeats(30, repeatable=False).pause_after(BROKE, 0) is None
    assert Repeats(30, repeatable=True).pause_after(refusal("invalid", ""), 0) is None


def test_a_wait_is_made_of_waits_that_the_server_allows() -> None:
    waits = Waits(50, 100)
    assert [waits.next(now) for now in (100, 120, 140, 150, 151)] == [WAIT_SECONDS, WAIT_SECONDS, 10, 0, 0]
    assert [waits.over(now) for now in (100, 149.9, 150)] == [False, False, True]
    ever = Waits(None, 0)
    assert (ever.next(10**9), ever.over(10**9)) == (WAIT_SECONDS, False)


def test_a_wait_that_is_too_long_for_the_server_is_made_shorter_down_to_a_second() -> None:
    waits = Waits(None, 0)
    too_long = Invalid("invalid", "too long", field="wait_seconds")
    asked = []
    for _ in range(5):
        waits.refused(too_long)
        asked.append(waits.next(0))
    assert asked == [10, 5, 2.5, 1.25, 1]
    with pytest.raises(Invalid):
        waits.refused(too_long)
    with pytest.raises(Invalid):
        Waits(None, 0).refused(Invalid("invalid", "no id", field="id"))
