"""Trends: what happened in each queue, minute by minute, in the last hour.

Nothing is counted for them. The queues count for themselves, since they were made; once a minute the sweeps look at
these figures, a slice of the queues at a time, and keep by how much they have grown. So a queue costs a comparison a
minute, and only one that has moved has rows. What happens between the end of a minute and the look at its queue, a
second or so, counts as of that minute.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from queue_actor.commands import ReadTrends, Trend, TrendsRead
from queue_actor.figures import HistogramFigures
from queue_actor.jobs import Now
from queue_actor.queues import Queue

MINUTES: Final = 60
"""How far they go back, the minute under way included."""

SAMPLED_QUEUES_MAX: Final = 500
"""Queues that one sweep looks at: well below a millisecond where few have moved."""

COUNTED: Final = ("enqueue", "dequeue", "conclude", "fail", "stale", "dead")
"""What is counted of jobs."""

QUANTILES: Final = {"wait_p50": 0.5, "wait_p95": 0.95, "run_p50": 0.5, "run_p95": 0.95}
"""What is told of the seconds that jobs have waited and run."""

NOTHING: Final = -1.0
"""Stands for the quantile of no jobs."""

_NO_COUNTS = array("I", [0]) * (len(COUNTED) * MINUTES)
_NO_QUANTILES = array("d", [NOTHING]) * (len(QUANTILES) * MINUTES)


class _Kept:
    """What is kept of a queue: its figures as they were when they were looked at last, and what came of them.

    The figures of a column lie together, that of a minute at its number modulo `MINUTES`.
    """

    __slots__ = ("counted", "counts", "minute", "opened_at", "quantiles", "runs", "waits")

    def __init__(self, opened_at: float, minute: int) -> None:
        self.opened_at = opened_at
        self.minute = minute  # the last one that is kept; nothing has happened since
        self.counted: tuple[int, ...] = (0,) * len(COUNTED)
        self.waits = self.runs = HistogramFigures()
        self.counts, self.quantiles = _NO_COUNTS[:], _NO_QUANTILES[:]

    def keep(self, minute: int, counts: Sequence[int], quantiles: Sequence[float]) -> None:
        """Keep what happened in a minute; in those before it that were not kept nothing did."""
        for number in range(max(self.minute + 1, minute - MINUTES + 1), minute):
            self._set(number % MINUTES, (0,) * len(COUNTED), (NOTHING,) * len(QUANTILES))
        self._set(minute % MINUTES, counts, quantiles)
        self.minute = minute

    def _set(self, slot: int, counts: Sequence[int], quantiles: Sequence[float]) -> None:
        self.counts[slot::MINUTES] = array("I", counts)
        self.quantiles[slot::MINUTES] = array("d", quantiles)

    def before(self, minute: int) -> dict[str, list[Any]]:
        """The columns of the minutes before this one, one fewer than `MINUTES`."""
        silent = min(MINUTES - 1, minute - 1 - self.minute)  # of these, so many at the end
        columns: dict[str, list[Any]] = {}
        for names, values, nothing in ((COUNTED, self.counts, 0), (QUANTILES, self.quantiles, NOTHING)):
            for number, name in enumerate(names):
                start, oldest = number * MINUTES, (minute + 1) % MINUTES
                column = [*values[start + oldest : start + MINUTES], *values[start : start + oldest]][: MINUTES - 1]
                if silent:
                    column[-silent:] = [nothing] * silent
                columns[name] = column
        return columns


class Trends:
    """Those of all queues."""

    def __init__(self, queues: Mapping[str, Queue]) -> None:
        self._queues = queues
        self._kept: dict[str, _Kept] = {}
        self._minute = 0  # that is under way
        self._left: list[str] = []  # queues that have not been looked at in it

    def tick(self, now: Now) -> None:
        """Look at some queues, if a minute has ended since they were looked at last."""
        minute = int(now.monotonic // 60)
        if minute != self._minute:
            self._minute = minute
            self._left = list(self._queues)
            for name in [name for name in self._kept if name not in self._queues]:
                del self._kept[name]
        for name in self._left[-SAMPLED_QUEUES_MAX:]:
            queue = self._queues.get(name)
            if queue is not None:
                self._look_at(queue, minute - 1)
        del self._left[-SAMPLED_QUEUES_MAX:]

    def _look_at(self, queue: Queue, minute: int) -> None:
        """Keep what has happened since the last look, as that of a minute."""
        counted = _counted(queue)
        kept = self._kept.get(queue.name)
        if kept is None or kept.opened_at != queue.opened_at:
            if not any(counted):
                return
            kept = self._kept[queue.name] = _Kept(queue.opened_at, minute - 1)
        if counted == kept.counted:
            return
        kept.keep(minute, *_grown(queue, counted, kept))
        kept.counted, kept.waits, kept.runs = counted, queue.waits.figures(), queue.runs.figures()

    def read(self, command: ReadTrends, now: Now) -> TrendsRead:
        """Those of some queues."""
        minute = int(now.monotonic // 60)
        trends = {name: _trend(self._queues.get(name), self._kept.get(name), minute) for name in command.queues}
        return TrendsRead(now.wall, now.wall - now.monotonic % 60 - 60 * (MINUTES - 1), trends)


def _trend(queue: Queue | None, kept: _Kept | None, minute: int) -> Trend:
    counts: Sequence[int] = (0,) * len(COUNTED)
    quantiles: Sequence[float] = (NOTHING,) * len(QUANTILES)
    if queue is None or kept is None or kept.opened_at != queue.opened_at:
        kept = _Kept(0.0, minute - 1)
    if queue is not None:
        counted = _counted(queue)
        if counted != kept.counted:
            counts, quantiles = _grown(queue, counted, kept)
    columns = kept.before(minute)
    for name, value in zip((*COUNTED, *QUANTILES), (*counts, *quantiles), strict=True):
        columns[name].append(value)
    for name in QUANTILES:
        columns[name] = [None if value == NOTHING else value for value in columns[name]]
    return Trend(columns)


def _counted(queue: Queue) -> tuple[int, ...]:
    totals = queue.totals
    return (
        totals["enqueue"],
        totals["dequeue"],
        totals["conclude"],
        totals["fail"],
        totals["stale"],
        sum(queue.deaths.values()),
    )


def _grown(queue: Queue, counted: tuple[int, ...], kept: _Kept) -> tuple[Sequence[int], Sequence[float]]:
    """By how much the figures have grown, and the quantiles of what has come."""
    waits, runs = queue.waits.figures().since(kept.waits), queue.runs.figures().since(kept.runs)
    quantiles = [
        (waits if name.startswith("wait") else runs).quantile(share, default=NOTHING)
        for name, share in QUANTILES.items()
    ]
    counts = [new - old for new, old in zip(counted, kept.counted, strict=True)]
    return counts, [float(f"{value:.4g}") for value in quantiles]  # more digits than a chart shows
