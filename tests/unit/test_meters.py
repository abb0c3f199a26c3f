"""Rates of the last minute and histograms, beside the lists of what they were told."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor.meters import EngineMeters, Histogram, Meter


def test_what_happened_within_this_minute_counts_whole() -> None:
    meter = Meter()
    meter.add(601.0)
    meter.add(659.0, 4)

    assert meter.per_minute(659.5) == 5


def test_the_minute_before_fades_out_as_this_one_goes_on() -> None:
    meter = Meter()
    meter.add(630.0, 8)

    assert [meter.per_minute(at) for at in (660.0, 675.0, 690.0, 705.0)] == [8, 6, 4, 2]


@pytest.mark.parametrize("later", [120.0, 121.0, 3_600.0])
def test_nothing_is_left_of_the_minute_before_last(later: float) -> None:
    meter = Meter()
    meter.add(600.0, 8)

    assert meter.per_minute(600.0 + later) == 0
    meter.add(600.0 + later)
    assert meter.per_minute(600.0 + later) == 1


def test_a_meter_that_is_read_often_says_the_same_as_one_that_is_not() -> None:
    read, unread = Meter(), Meter()
    for meter in (read, unread):
        meter.add(30.0, 6)
    for at in (30.0, 59.0, 60.0, 70.0):
        read.per_minute(at)

    assert read.per_minute(80.0) == unread.per_minute(80.0) == 4


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 5)), max_size=20), st.integers(0, 150))
@settings(deadline=None)
def test_a_meter_agrees_with_the_moments_it_was_told(events: Sequence[tuple[int, int]], last: int) -> None:
    """Those of this minute count whole, and those of the one before by the share that lies within sixty seconds."""
    meter, clock = Meter(), 1_000
    told: list[int] = []
    for pause, times in events:
        clock += pause
        meter.add(clock, times)
        told += [clock // 60] * times
    clock += last

    share = 1 - clock % 60 / 60
    assert meter.per_minute(clock) == told.count(clock // 60) + told.count(clock // 60 - 1) * share


BOUNDS = (1.0, 2.5, 5.0)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 5.0, 5.5, 1_000.0])))
@settings(deadline=None)
def test_a_value_counts_below_the_first_bound_that_it_does_not_exceed(values: Sequence[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)

    figures = histogram.figures()
    cumulative = [sum(figures.counts[: n + 1]) for n in range(len(BOUNDS))]
    assert cumulative == [sum(value <= bound for value in values) for bound in BOUNDS]
    assert (figures.bounds, sum(figures.counts), figures.sum) == (BOUNDS, len(values), sum(values))


def test_figures_do_not_change_with_what_comes_after_them() -> None:
    histogram = Histogram(BOUNDS)
    before = histogram.figures()
    histogram.observe(1.0)

    assert sum(before.counts) == before.sum == 0


def test_a_batch_without_changes_is_no_commit() -> None:
    meters = EngineMeters()
    meters.note(3, 0, 0.1, 0.2)
    meters.note(1, 7, 0.1, 0.3)

    figures = meters.figures()
    assert (figures.batch_requests.sum, figures.batch_changes.sum) == (4, 7)
    assert (sum(figures.apply_seconds.counts), sum(figures.commit_seconds.counts)) == (2, 1)
    assert figures.commit_seconds.sum == 0.3
