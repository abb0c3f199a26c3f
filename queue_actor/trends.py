"""Trends: what happened in each queue, minute by minute, in the last hour.

Nothing is counted for them. The queues count for themselves, since they were made; once a minute the sweeps look at
these figures, a slice of the queues at a time, and keep by how much they have grown. So a queue costs a comparison a
minute, and only one that has moved has rows. What happens between the end of a minute and the look at its queue, a
second or so, counts as of that minute.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Final

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

COLUMNS: Final = (*COUNTED, *QUANTILES)

NEVER: Final = -1.0
"""Stands for a minute that a row is not about, and for the quantile of nothing."""

_WIDTH = 1 + len(COLUMNS)  # a row begins with its minute


class _Kept:
    """What is kept of a queue: its figures as they were when they were looked at last, and its rows."""

    __slots__ = ("counted", "opened_at", "rows", "runs", "waits")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.counted: tuple[int, ...] = (0,) * len(COUNTED)
        self.waits = self.runs = HistogramFigures()
        self.rows = array("f", [NEVER]) * (_WIDTH * MINUTES)


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
            kept = self._kept[queue.name] = _Kept(queue.opened_at)
        if counted == kept.counted:
            return
        start = minute % MINUTES * _WIDTH
        kept.rows[start : start + _WIDTH] = array("f", [minute, *_grown(queue, counted, kept)])
        kept.counted, kept.waits, kept.runs = counted, queue.waits.figures(), queue.runs.figures()

    def read(self, command: ReadTrends, now: Now) -> TrendsRead:
        """Those of some queues."""
        minute = int(now.monotonic // 60)
        trends = {name: self._of(self._queues.get(name), minute) for name in command.queues}
        return TrendsRead(now.wall, now.wall - now.monotonic % 60 - 60 * (MINUTES - 1), trends)

    def _of(self, queue: Queue | None, minute: int) -> Trend:
        columns: dict[str, list[float | None]] = {
            **{name: [0] * MINUTES for name in COUNTED},
            **{name: [None] * MINUTES for name in QUANTILES},
        }
        if queue is None:
            return Trend(columns)
        counted = _counted(queue)
        kept = self._kept.get(queue.name)
        if kept is None or kept.opened_at != queue.opened_at:
            kept = _Kept(queue.opened_at)
        for start in range(0, len(kept.rows), _WIDTH):
            into = int(kept.rows[start]) - minute + MINUTES - 1
            if kept.rows[start] != NEVER and 0 <= into < MINUTES:
                _fill(columns, into, kept.rows[start + 1 : start + _WIDTH])
        if counted != kept.counted:
            _fill(columns, MINUTES - 1, _grown(queue, counted, kept))
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


def _grown(queue: Queue, counted: tuple[int, ...], kept: _Kept) -> list[float]:
    """By how much the figures have grown, and the quantiles of what has come."""
    waits, runs = queue.waits.figures().since(kept.waits), queue.runs.figures().since(kept.runs)
    quantiles = [
        (waits if name.startswith("wait") else runs).quantile(share, default=NEVER) for name, share in QUANTILES.items()
    ]
    return [*(new - old for new, old in zip(counted, kept.counted, strict=True)), *quantiles]


def _fill(columns: dict[str, list[float | None]], into: int, row: Sequence[float]) -> None:
    for name, value in zip(COLUMNS, row, strict=True):
        if name in COUNTED:
            columns[name][into] = int(value)
        elif value != NEVER:
            columns[name][into] = float(f"{value:.4g}")  # more digits than a chart shows
