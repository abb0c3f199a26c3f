"""The nouns: a job, its states, its attempts.

A job is a frozen struct. A transition puts a new version in its place, so a version that was once handed out, to a
caller, to the store or to a listener, never changes under its holder's hands.
"""

from enum import StrEnum

import msgspec


class JobState(StrEnum):
    """Where a job stands. Which state may follow which is `state_machine.TRANSITIONS`."""

    SCHEDULED = "scheduled"  # not before a time
    QUEUED = "queued"  # ready to be dequeued
    IN_PROGRESS = "in_progress"  # leased to a consumer
    CONCLUDED = "concluded"  # done
    CANCELLED = "cancelled"  # called off


FINISHED = frozenset({JobState.CONCLUDED, JobState.CANCELLED})


class Outcome(StrEnum):
    """How an attempt ended."""

    CONCLUDED = "concluded"
    RELEASED = "released"
    STALE = "stale"


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One lease that has ended. Times are wall clock, in seconds since the epoch."""

    fence: int
    consumer: str | None
    started_at: float
    ended_at: float
    outcome: Outcome


class Job(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One version of a job.

    Every field is durable: a job is restored from exactly these. What only memory knows, the slot in the ready array
    and the monotonic deadline of a lease, is kept by `ready.py` and `deadlines.py`. Times are wall clock, in seconds
    since the epoch.
    """

    queue: str
    id: int
    type: str
    payload: bytes | None  # a JSON text, kept as it arrived
    state: JobState
    created_at: float
    revision: int  # of the change that made this version; grows with every change of any job
    priority: int = 0  # higher goes first
    place: int = 0  # the order among jobs of one priority; 0 until the job is first ready
    not_before: float | None = None
    attempts: int = 0
    stales: int = 0
    consumer: str | None = None  # of the current or last lease
    fence: int = 0  # of the current or last lease; 0 before the first
    lease_seconds: float = 0.0  # of the current or last lease
    lease_expires_at: float | None = None  # for people: the lease itself runs on the monotonic clock
    started_at: float | None = None  # of the current or last attempt
    finished_at: float | None = None
    cancel_requested: bool = False
    history: tuple[Attempt, ...] = ()  # attempts that ended, oldest first, at most HISTORY_ATTEMPTS_MAX


HISTORY_ATTEMPTS_MAX = 20
"""Attempts a job remembers; the oldest go first."""


class Now(msgspec.Struct, frozen=True, gc=False):
    """A moment on both clocks, in seconds.

    Leases run on `monotonic`, which no administrator moves. What is stored or planned runs on `wall`, which means
    something after a restart.
    """

    monotonic: float
    wall: float


class Change(msgspec.Struct, frozen=True, gc=False):
    """One transition of one job: what the store, the metrics and the events are told, in order of revision."""

    revision: int
    before: Job | None  # None: the job is new
    after: Job | None  # None: the job is forgotten
