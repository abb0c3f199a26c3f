"""Counters that cost an addition: rates of the last minute, and histograms since the start."""

from bisect import bisect_left
from collections.abc import Sequence

from queue_actor.figures import EngineFigures, HistogramFigures

JOB_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3_600.0,
    21_600.0,
)
"""Bounds for what happens to jobs: from a hand-over to a waiting consumer up to a night's backlog."""

WORK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds for what the server does itself."""

BATCH_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
"""Bounds for how much one batch of the engine holds."""


class Meter:
    """Counts this minute and the last one. The last sixty seconds are this one and a share of that one."""

    __slots__ = ("_before", "_count", "_minute", "_next")

    def __init__(self) -> None:
        self._minute = 0
        self._next = 60.0  # when the next minute begins
        self._count = 0
        self._before = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count something that happened so many times at this moment of a monotonic clock."""
        if seconds >= self._next:
            self._roll(int(seconds // 60))
        self._count += times

    def per_minute(self, seconds: float) -> float:
        """How often it happened in the sixty seconds before this moment, evenly spread."""
        minute, into = divmod(seconds, 60)
        if int(minute) != self._minute:
            self._roll(int(minute))
        return self._count + self._before * (1 - into / 60)

    def _roll(self, minute: int) -> None:
        self._before = self._count if minute == self._minute + 1 else 0
        self._minute, self._count = minute, 0
        self._next = (minute + 1) * 60.0


class Histogram:
    """Counts values between fixed bounds; a value belongs to the first bound that it does not exceed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values."""
        first, times = values[0], len(values)
        if values.count(first) == times:  # as they mostly are, having come together
            self._counts[bisect_left(self._bounds, first)] += times
            self._sum += first * times
        else:
            for value in values:
                self.observe(value)

    def figures(self) -> HistogramFigures:
        """What was counted so far."""
        return HistogramFigures(self._bounds, tuple(self._counts), self._sum)


class EngineMeters:
    """What an engine tells of its batches: one call each, whatever the number of jobs."""

    def __init__(self) -> None:
        self._requests = Histogram(BATCH_BOUNDS)
        self._changes = Histogram(BATCH_BOUNDS)
        self._apply = Histogram(WORK_SECONDS)
        self._commit = Histogram(WORK_SECONDS)

    def note(self, requests: int, changes: int, apply_seconds: float, commit_seconds: float) -> None:
        """Count a batch. What changed nothing has not been committed."""
        self._requests.observe(requests)
        self._changes.observe(changes)
        self._apply.observe(apply_seconds)
        if changes:
            self._commit.observe(commit_seconds)

    def figures(self) -> EngineFigures:
        """What was counted so far."""
        return EngineFigures(
            batch_requests=self._requests.figures(),
            batch_changes=self._changes.figures(),
            apply_seconds=self._apply.figures(),
            commit_seconds=self._commit.figures(),
        )
