"""What a worker counts.

A monitor reads this in a thread of its own, while the loop goes on and waits for nobody. So what is read has a shape
that does not change: attributes, and histograms of the types that there are handlers for, all of them there from the
start. Nothing may be iterated over that the loop adds to or takes from, such as the jobs in hand: a dict that changes
its size under an iteration raises, and whoever would have to lock it would hold up the loop. The `len` of such a thing
is one step of the interpreter, and may be read. Figures of one scrape may so be a step of the loop apart.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from queue_actor.figures import HistogramFigures
from queue_actor.handlers import StopReason
from queue_actor.meters import JOB_SECONDS, Histogram

Verb = Literal["conclude", "fail", "release"]
"""What the server is told of a job."""


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a worker, of this moment. All but the first four count from its start.

    Attributes:
        running: Handlers at work; those that have been asked to stop and have not yet are among them.
        waiting: Jobs that are leased and wait for a place to run.
        unheard: Jobs whose outcome the server has not yet confirmed.
        threads: Threads in which handlers are at work, also those that are waited for no more.
        dequeued: Jobs that were handed out to the worker.
        concluded: Jobs that were done.
        failed: Attempts that failed, those that were rejected or that came to a limit among them.
        released: Jobs that were given back, for whatever reason.
        no_handler: Those of them that nothing here can do.
        cancelled: Handlers that were stopped because their job was called off.
        lost: Leases that were lost: others have these jobs, or will, and what was done of them counts for nothing.
        time_limit: Handlers that were stopped since they took too long.
        stuck: Handlers that were stopped since they reported no progress.
        shutdown: Handlers that were stopped because the worker ended.
        unreported: Outcomes that the server was not told, or would not hear.
        extended: Leases that were extended.
        beats_unheard: Requests to extend leases that came to nothing.
        polls_unheard: Requests for jobs that came to nothing.
        children_started: Child processes that were started.
        children_died: Child processes that died of a job, or were killed to stop one.
    """

    running: int
    waiting: int
    unheard: int
    threads: int
    dequeued: int
    concluded: int
    failed: int
    released: int
    no_handler: int
    cancelled: int
    lost: int
    time_limit: int
    stuck: int
    shutdown: int
    unreported: int
    extended: int
    beats_unheard: int
    polls_unheard: int
    children_started: int
    children_died: int


class WorkerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker tells to monitors, of this moment.

    Attributes:
        statistics: What it counts.
        concurrency: Handlers that may run at once.
        prefetch: Jobs that may be leased beyond that.
        draining: Whether it takes no more jobs, and ends when those that run have ended.
        reached: Whether the server is heard when it is asked for jobs, and when it is told outcomes.
        runs: How long handlers ran, in seconds, by the type of their jobs.
    """

    statistics: Statistics
    concurrency: int
    prefetch: int
    draining: bool
    reached: Mapping[str, bool]
    runs: Mapping[str, HistogramFigures]


class Counters:
    """The counts of a worker, for its parts to add to."""

    def __init__(self) -> None:
        self.dequeued = 0
        self.concluded = 0
        self.failed = 0
        self.released = 0
        self.no_handler = 0
        self.cancelled = 0
        self.lost = 0
        self.time_limit = 0
        self.stuck = 0
        self.shutdown = 0
        self.unreported = 0
        self.extended = 0
        self.beats_unheard = 0
        self.polls_unheard = 0
        self.children_started = 0
        self.children_died = 0

    def told(self, verb: Verb) -> None:
        """Count an outcome that the server has taken."""
        if verb == "conclude":
            self.concluded += 1
        elif verb == "fail":
            self.failed += 1
        else:
            self.released += 1

    def stopped(self, reason: StopReason) -> None:
        """Count a handler that was asked to stop."""
        setattr(self, reason, getattr(self, reason) + 1)

    def statistics(self, **gauges: Any) -> Statistics:
        """All of them, and the figures of this moment."""
        return Statistics(**vars(self), **gauges)


class Runs:
    """How long handlers ran, by the type of their jobs.

    There are no other types than these, whatever producers make up: a monitor keeps each of them for ever.
    """

    def __init__(self, types: Iterable[str]) -> None:
        self._seconds = {type_: Histogram(JOB_SECONDS) for type_ in types}

    def note(self, type_: str, seconds: float) -> None:
        """Count a run."""
        self._seconds[type_].observe(seconds)

    def figures(self) -> dict[str, HistogramFigures]:
        """What was counted so far."""
        return {type_: histogram.figures() for type_, histogram in self._seconds.items()}
