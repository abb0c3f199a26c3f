"""The nouns: a job, its states, its attempts, and the policy of its queue.

A job is a frozen struct. A transition puts a new version in its place, so a version that was once handed out, to a
caller, to the store or to a listener, never changes under its holder's hands.
"""

from enum import StrEnum

import msgspec

HISTORY_ATTEMPTS_MAX = 20
"""Attempts a job remembers; the oldest go first."""

PRIORITY_MAX = 100
"""Priorities go from the negative of this to this."""


class JobState(StrEnum):
    """Where a job stands. Which state may follow which is `transitions.TRANSITIONS`."""

    SCHEDULED = "scheduled"  # not before a time
    QUEUED = "queued"  # ready to be dequeued
    IN_PROGRESS = "in_progress"  # leased to a consumer
    CONCLUDED = "concluded"  # done
    DEAD = "dead"  # given up, for a `DeathReason`
    CANCELLED = "cancelled"  # called off


FINISHED = frozenset({JobState.CONCLUDED, JobState.DEAD, JobState.CANCELLED})
WAITING = frozenset({JobState.SCHEDULED, JobState.QUEUED})


class DeathReason(StrEnum):
    """Why a job was given up."""

    FAILED = "failed"  # it failed for the last time
    STALE = "stale"  # its leases ran out too often: it may kill its workers
    EXPIRED = "expired"  # its ttl ended before it was done
    KILLED = "killed"  # its worker said that there is no use in trying again


class Outcome(StrEnum):
    """How an attempt ended."""

    CONCLUDED = "concluded"
    FAILED = "failed"
    RELEASED = "released"
    STALE = "stale"


class JobError(msgspec.Struct, frozen=True, gc=False):
    """What a worker says about a failure."""

    type: str = ""
    message: str = ""


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One lease that has ended. Times are wall clock, in seconds since the epoch."""

    fence: int
    consumer: str | None
    started_at: float
    ended_at: float
    outcome: Outcome
    error: JobError | None = None


class RetryKind(StrEnum):
    """How the pauses between attempts grow."""

    EXPONENTIAL = "exponential"
    FIXED = "fixed"


class Jitter(StrEnum):
    """How a pause is spread, so that jobs which failed together do not return together."""

    FULL = "full"  # anywhere between nothing and the pause
    NONE = "none"


class Retry(msgspec.Struct, frozen=True, gc=False):
    """How long a job waits after a failure; `retry.retry_seconds` is the formula."""

    kind: RetryKind = RetryKind.EXPONENTIAL
    base_seconds: float = 1.0
    factor: float = 2.0
    cap_seconds: float = 3_600.0
    jitter: Jitter = Jitter.FULL


class UniqueUntil(StrEnum):
    """How long a job keeps its `unique_key` taken."""

    FINISHED = "finished"
    STARTED = "started"


class OnExisting(StrEnum):
    """What an enqueue does where its `unique_key` is taken."""

    KEEP = "keep"  # answer with the job that is there
    REPLACE = "replace"  # put the new content into it, while it waits
    REFUSE = "refuse"


class JobOptions(msgspec.Struct, frozen=True, gc=False):
    """What most jobs leave to their queue's policy; None means the policy's. One object serves all that do."""

    max_attempts: int | None = None
    retry: Retry | None = None
    lease_seconds: float | None = None
    unique_key: str | None = None
    unique_until: UniqueUntil = UniqueUntil.FINISHED
    meta: dict[str, str] | None = None
    traceparent: str | None = None


NO_OPTIONS = JobOptions()


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
    ready_at: float = 0.0  # when it was given its place; 0 until then
    not_before: float | None = None
    expires_at: float | None = None
    options: JobOptions = NO_OPTIONS
    attempts: int = 0
    fails: int = 0
    stales: int = 0
    consumer: str | None = None  # of the current or last lease
    holder: str | None = None  # of the current or last lease: for whom it counts or counted
    fence: int = 0  # of the current or last lease; 0 before the first
    lease_seconds: float = 0.0  # of the current or last lease
    lease_expires_at: float | None = None  # for people: the lease itself runs on the monotonic clock
    started_at: float | None = None  # of the current or last attempt
    finished_at: float | None = None
    kept_until: float | None = None  # of a finished job: the end of its retention
    cancel_requested: bool = False
    key_freed: bool = False  # it has started, and its unique key was to be kept no longer than that
    progress: bytes | None = None  # a JSON text
    result: bytes | None = None  # a JSON text
    reason: DeathReason | None = None
    history: tuple[Attempt, ...] = ()  # attempts that ended, oldest first, at most HISTORY_ATTEMPTS_MAX


class QueuePolicy(msgspec.Struct, frozen=True):
    """What holds for the jobs of a queue that do not say otherwise, and for the queue as a whole."""

    max_attempts: int | None = 25  # failed and stale attempts before a job is dead; None: no limit
    max_stale: int | None = 5  # stale attempts before a job is dead; None: no limit
    retry: Retry = Retry()
    lease_seconds: float | None = None  # None: the server's
    ttl_seconds: float | None = None  # None: jobs do not expire
    queued_jobs_max: int | None = None  # scheduled and queued jobs; None: the server's limit alone
    in_progress_max: int | None = None  # leased at once; 1 gives strict order
    run_seconds_max: float | None = None  # of an attempt, however often it is extended
    oldest_every: int = 0  # each n-th dequeue takes the oldest job whatever its priority; 0: never
    retention_seconds: float | None = None  # None: the server's
    dead_retention_seconds: float | None = None  # None: the server's


DEFAULT_QUEUE = "default"

FIRST_POLICY = QueuePolicy()
"""Of a queue that was never given one."""

DEFAULT_QUEUE_POLICY = QueuePolicy(max_attempts=None, max_stale=None)
"""Of the queue `default` that was never given one: a job of the classic routes never dies unasked."""


def first_policy(queue: str) -> QueuePolicy:
    """The policy that a queue of this name begins with."""
    return DEFAULT_QUEUE_POLICY if queue == DEFAULT_QUEUE else FIRST_POLICY


class Change(msgspec.Struct, frozen=True, gc=False):
    """One transition of one job: what the store, the metrics and the events are told, in order of revision."""

    revision: int
    before: Job | None  # None: the job is new
    after: Job | None  # None: the job is forgotten
    verb: str = ""  # of `TRANSITIONS`, or `enqueue` or `forget`


class Now(msgspec.Struct, frozen=True, gc=False):
    """A moment on both clocks, in seconds.

    Leases run on `monotonic`, which no administrator moves. What is stored or planned runs on `wall`, which means
    something after a restart.
    """

    monotonic: float
    wall: float


def is_expired(job: Job, now: Now) -> bool:
    """Whether the job's ttl has ended."""
    return job.expires_at is not None and job.expires_at <= now.wall


def size(text: bytes | None) -> int:
    """The bytes of a text that may not be there."""
    return 0 if text is None else len(text)


def kept_bytes_of(job: Job) -> int:
    """What a job counts for `memory_bytes_max`."""
    kept = size(job.payload) + size(job.result) + size(job.progress)
    for attempt in job.history:
        kept += error_size(attempt.error)
    return kept


def error_size(error: JobError | None) -> int:
    """The characters of an error that may not be there."""
    return 0 if error is None else len(error.type) + len(error.message)
