"""Token buckets, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.rates import Bucket, Rates, policy_field, rate_field


def passes(bucket: Bucket, now: float, units: float = 1) -> bool:
    """Whether a request passes; what does has taken its units."""
    if bucket.wait_seconds(now) > 0:
        return False
    bucket.take(units, now)
    return True


def test_those_of_one_second_pass_at_once_and_then_one_after_the_other() -> None:
    bucket = Bucket(10, now=0)

    assert [passes(bucket, 0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.wait_seconds(0) == pytest.approx(0.1)
    assert not passes(bucket, 0.09)
    assert passes(bucket, 0.1)
    assert not passes(bucket, 0.1)
    assert [passes(bucket, 100) for _ in range(11)] == [True] * 10 + [False]


def test_a_rate_below_one_a_second_lets_one_pass_at_a_time() -> None:
    bucket = Bucket(0.5, now=0)

    assert [passes(bucket, now) for now in (0, 1.9, 2, 3.9, 4)] == [True, False, True, False, True]


def test_a_batch_larger_than_the_bucket_leaves_a_debt() -> None:
    bucket = Bucket(10, now=0)

    assert passes(bucket, 0, 100)
    assert bucket.wait_seconds(0) == pytest.approx(9.1)
    assert bucket.remaining(0) == 0
    assert not passes(bucket, 9)
    assert passes(bucket, 9.1)


def test_a_clock_that_is_set_back_gives_nothing() -> None:
    bucket = Bucket(1, now=10)
    assert passes(bucket, 10)
    assert not passes(bucket, 5)
    assert not passes(bucket, 10.5)
    assert passes(bucket, 11)


@given(
    st.floats(0.01, 1_000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=50),
)
def test_no_more_pass_in_the_long_run_than_the_rate_allows(per_second: float, asked: list[tuple[float, int]]) -> None:
    bucket, now, taken, last = Bucket(per_second, now=0), 0.0, 0, 0
    for pause, units in asked:
        now += pause
        if passes(bucket, now, units):
            taken, last = taken + units, units

    assert taken - last <= max(1, per_second) + per_second * now + 1e-6


def test_a_bucket_stays_while_its_name_does() -> None:
    rates = Rates()
    bucket = rates.bucket("a", "requests", 2, now=0)
    bucket.take(2, 0)

    assert rates.bucket("a", "requests", 2, now=0) is bucket
    assert rates.bucket("a", "jobs", 2, now=0) is not bucket
    assert rates.bucket("b", "requests", 2, now=0).remaining(0) == 2
    rates.keep({"a"})
    assert rates.bucket("a", "requests", 2, now=0).remaining(0) == 0
    rates.keep({"b"})
    assert rates.bucket("a", "requests", 2, now=0).remaining(0) == 2


def test_a_rate_that_changes_counts_from_now_on() -> None:
    rates = Rates()
    rates.bucket("a", "requests", 10, now=0).take(10, 0)

    assert rates.bucket("a", "requests", 1, now=0.5).remaining(0.5) == 1  # five came in, and one finds room
    assert rates.bucket("a", "requests", 100, now=0.5).remaining(0.5) == 1
    assert rates.bucket("a", "requests", 100, now=0.6).remaining(0.6) == 11


def test_the_fields_tell_policy_and_rest() -> None:
    rates = Rates()
    requests, jobs = rates.bucket("a", "requests", 2.5, now=0), rates.bucket("a", "jobs", 0.1, now=0)
    requests.take(1, 0)
    jobs.take(3, 0)

    assert policy_field({"requests": requests, "jobs": jobs}) == '"requests";q=3;w=1, "jobs";q=1;w=10'
    assert rate_field({"requests": requests, "jobs": jobs}, 0) == '"requests";r=1;t=1, "jobs";r=0;t=30'
    assert rate_field({"requests": requests}, 100) == '"requests";r=2;t=0'
