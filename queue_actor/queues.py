"""What the state machine keeps of one queue."""

from collections.abc import Sequence

from queue_actor.changes import QueueRecord
from queue_actor.commands import NewJob
from queue_actor.ids import ByIds
from queue_actor.jobs import DeathReason, Job, JobState, Now, QueuePolicy, first_policy
from queue_actor.meters import JOB_SECONDS, Histogram, Meter
from queue_actor.ready import Ready
from queue_actor.settings import Settings
from queue_actor.transitions import TRANSITIONS

METERED = ("enqueue", "dequeue", "conclude", "fail", "release", "stale", "dead")
"""The verbs whose rates are kept for each queue."""

COUNTED = ("enqueue", *sorted({verb for _, verb, _ in TRANSITIONS}), "forget")
"""The verbs that are counted for each queue: how a job begins, every transition, and how it leaves."""

FIRST_ID_STEPS_MAX = 1_000
"""By how much `first_id` moves on with one job that is forgotten, at most."""

CONSUMERS_MAX = 1_000
"""Consumers a queue remembers to have seen; the one not seen for longest goes first."""


class Queue:
    """One queue: its jobs, their order, and its figures."""

    __slots__ = (
        "asked_at",
        "consumers",
        "counts",
        "deaths",
        "declared",
        "departures",
        "dequeues",
        "first_id",
        "jobs",
        "meters",
        "name",
        "next_fence",
        "next_id",
        "next_place",
        "opened_at",
        "paused",
        "policy",
        "ready",
        "runs",
        "served",
        "totals",
        "unique",
        "waits",
    )

    def __init__(self, name: str, settings: Settings, *, next_id: int, next_fence: int, opened_at: float = 0.0) -> None:
        self.name = name
        self.policy: QueuePolicy = first_policy(name)
        self.declared = False
        self.departures = 0  # the last revision that made earlier reads of the store useless
        self.paused = False
        self.jobs: ByIds[Job] = ByIds()
        self.ready = Ready(settings)
        self.counts = dict.fromkeys(JobState, 0)
        self.unique: dict[str, int] = {}  # key -> the job that has it
        self.first_id = next_id  # no job below it is kept
        self.next_id = next_id
        self.next_place = 1
        self.next_fence = next_fence
        self.dequeues = 0  # for `oldest_every`
        self.served = 0  # when it was last served, in the count of all services: for the fair order
        self.meters = {verb: Meter() for verb in METERED}
        self.totals = dict.fromkeys(COUNTED, 0)  # jobs, since it was opened
        self.deaths = dict.fromkeys(DeathReason, 0)  # the same of dead ones
        self.waits = Histogram(JOB_SECONDS)  # from ready to dequeued
        self.runs = Histogram(JOB_SECONDS)  # from dequeued to the end of the attempt
        self.opened_at = opened_at  # monotonic
        self.asked_at = opened_at  # monotonic; when somebody asked for a job of it last
        self.consumers: dict[str, float] = {}  # name -> last seen (monotonic), the latest last

    def see(self, consumer: str, seconds: float) -> None:
        """Note that a consumer has just asked for jobs."""
        self.consumers.pop(consumer, None)
        self.consumers[consumer] = seconds
        if len(self.consumers) > CONSUMERS_MAX:
            del self.consumers[next(iter(self.consumers))]

    def forget(self, ids: Sequence[int]) -> None:
        """Keep jobs no longer."""
        self.jobs.pop_all(ids)
        # Jobs are mostly forgotten in the order of their ids, so this moves on by their number; after a recall of old
        # ones by many, in steps.
        end = min(self.next_id, self.first_id + FIRST_ID_STEPS_MAX * len(ids))
        self.first_id = self.jobs.first(self.first_id, end)

    def record(self) -> QueueRecord:
        """What is durable of it."""
        return QueueRecord(
            self.name, self.next_id, self.next_fence, self.policy, self.paused, self.declared, self.departures
        )

    @property
    def waiting(self) -> int:
        """Scheduled and queued jobs."""
        return self.counts[JobState.SCHEDULED] + self.counts[JobState.QUEUED]


def starts_at(new: NewJob, now: Now) -> float | None:
    """From when a new job is ready; None if it is now."""
    at = new.not_before if new.not_before is not None else now.wall + new.delay_seconds
    return at if at > now.wall else None


def ends_at(queue: Queue, new: NewJob, now: Now) -> float | None:
    """When the ttl of a new job ends; None if it has none."""
    seconds = queue.policy.ttl_seconds if new.ttl_seconds is None else new.ttl_seconds
    return None if seconds is None else now.wall + seconds
