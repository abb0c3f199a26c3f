"""Figures for whoever watches the server: immutable, so that they can be read in another thread."""

from collections.abc import Mapping, Sequence

import msgspec

from queue_actor.jobs import DeathReason, JobState


class HistogramFigures(msgspec.Struct, frozen=True, gc=False):
    """How often a value was at most each bound and above the one before; the last count is of those above all."""

    bounds: Sequence[float] = ()
    counts: Sequence[int] = (0,)
    sum: float = 0.0

    def since(self, before: "HistogramFigures") -> "HistogramFigures":
        """What has come since it had these figures; those of nothing at all will do."""
        if not before.bounds:
            return self
        counts = tuple([new - old for new, old in zip(self.counts, before.counts, strict=True)])
        return HistogramFigures(self.bounds, counts, self.sum - before.sum)

    def quantile(self, share: float, *, default: float = 0.0) -> float:
        """What this share of the values is at most, as if they lay evenly between two bounds.

        Of what is above all bounds no more is known than that: it counts as the last of them.
        """
        wanted = share * sum(self.counts)
        if not wanted:
            return default
        seen, low = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return low + (bound - low) * (wanted - seen) / count
            seen, low = seen + count, bound
        return low


class QueueFigures(msgspec.Struct, frozen=True, gc=False):
    """A queue. Totals count from `opened_at`, when it was made or read from a store."""

    name: str
    opened_at: float  # monotonic
    counts: Mapping[JobState, int]
    totals: Mapping[str, int]  # verb -> jobs
    deaths: Mapping[DeathReason, int]
    waits: HistogramFigures  # seconds from ready to dequeued
    runs: HistogramFigures  # seconds from dequeued to the end of the attempt
    oldest_age_seconds: float  # since the first job in line was ready; 0 if there is none
    without_consumer_seconds: float  # for how long jobs have been ready and nobody has asked; 0 if there is none
    asked_seconds: float  # since a consumer asked last, or since `opened_at`
    paused: bool
    moved_per_minute: float  # jobs enqueued and dequeued, over the last minute
    slots: int  # of the ready arrays
    compactions: int
    growths: int


class EngineFigures(msgspec.Struct, frozen=True):
    """An engine, since it was made."""

    batch_requests: HistogramFigures = HistogramFigures()
    batch_changes: HistogramFigures = HistogramFigures()
    apply_seconds: HistogramFigures = HistogramFigures()
    commit_seconds: HistogramFigures = HistogramFigures()  # of batches that changed something
    parked: int = 0  # requests that had to wait for their reply
    served: int = 0  # of these, those that got what they waited for
    timed_out: int = 0  # of these, those whose wait ran out
    sweeps: int = 0
    swept: Mapping[str, int] = {}  # what sweeps moved, by the names in `Swept`


class ArrayStatistics(msgspec.Struct, frozen=True):
    """The shape of an array, in slots."""

    capacity: int
    used: int
    live: int
    tombstones: int
    compactions: int  # finished since the array was made
