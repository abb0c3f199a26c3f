"""Pauses between attempts, as figures."""

from math import isfinite

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from queue_actor.jobs import Jitter, Retry, RetryKind
from queue_actor.retry import retry_seconds

PLAIN = Retry(RetryKind.EXPONENTIAL, base_seconds=1.0, factor=2.0, cap_seconds=100.0, jitter=Jitter.NONE)
DRAWS = st.floats(0, 1, exclude_max=True)
# As wide as a request may ask for.
RETRIES = st.builds(
    Retry,
    kind=st.sampled_from(RetryKind),
    base_seconds=st.floats(0.001, 3e8),
    factor=st.floats(1, 100),
    cap_seconds=st.floats(0.001, 3e8),
    jitter=st.sampled_from(Jitter),
)


@pytest.mark.parametrize(("tries", "seconds"), [(1, 1), (2, 2), (3, 4), (7, 64), (8, 100), (9, 100)])
def test_an_exponential_pause_doubles_until_its_cap(tries: int, seconds: float) -> None:
    assert retry_seconds(PLAIN, tries, 0.5) == seconds


@pytest.mark.parametrize("tries", [1, 2, 1_000])
def test_a_fixed_pause_stays_as_it_is_whatever_the_cap(tries: int) -> None:
    fixed = Retry(RetryKind.FIXED, base_seconds=7.0, cap_seconds=1.0, jitter=Jitter.NONE)

    assert retry_seconds(fixed, tries, 0.5) == 7


def test_a_base_above_the_cap_is_cut_to_it() -> None:
    assert retry_seconds(Retry(base_seconds=9.0, cap_seconds=5.0, jitter=Jitter.NONE), 1, 0.5) == 5


def test_a_factor_of_1_never_grows() -> None:
    assert retry_seconds(Retry(base_seconds=3.0, factor=1.0, jitter=Jitter.NONE), 1_000_000, 0.5) == 3


@pytest.mark.parametrize(("factor", "tries"), [(2.0, 1_000_000), (100.0, 1_000_000), (1.001, 9_000)])
def test_the_cap_is_reached_by_a_factor_of_any_size(factor: float, tries: int) -> None:
    """Also where the power is larger than any float, and where it takes thousands of tries."""
    assert retry_seconds(Retry(factor=factor, cap_seconds=3_600.0, jitter=Jitter.NONE), tries, 0.5) == 3_600


@pytest.mark.parametrize("kind", RetryKind)
def test_full_jitter_spreads_from_nothing_to_the_pause(kind: RetryKind) -> None:
    retry = Retry(kind, base_seconds=8.0, jitter=Jitter.FULL)

    assert [retry_seconds(retry, 1, draw) for draw in (0.0, 0.25, 0.75)] == [0, 2, 6]


@given(RETRIES, st.integers(1, 1_000_000), DRAWS)
@example(Retry(factor=100.0), 156, 0.0)
@settings(deadline=None)
def test_a_pause_is_never_longer_than_its_policy_says(retry: Retry, tries: int, draw: float) -> None:
    longest = retry.cap_seconds if retry.kind is RetryKind.EXPONENTIAL else retry.base_seconds

    assert isfinite(retry_seconds(retry, tries, draw))
    assert 0 <= retry_seconds(retry, tries, draw) <= longest


@given(RETRIES, st.integers(1, 10_000), DRAWS)
@settings(deadline=None)
def test_a_pause_never_gets_shorter_with_more_tries(retry: Retry, tries: int, draw: float) -> None:
    assert retry_seconds(retry, tries, draw) <= retry_seconds(retry, tries + 1, draw)
