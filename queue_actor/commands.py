"""The verbs: everything that can be asked of a queue, and what it answers.

Each command names the type of its reply, so `Engine.execute(Dequeue(...))` is known to give `Dequeued`. Commands that
carry many jobs either succeed or are refused as a whole, or answer each job for itself (`Results`).

It is a catalogue, longer than other files so that all verbs can be found in one.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from queue_actor.errors import QueueError
from queue_actor.figures import QueueFigures
from queue_actor.jobs import NO_OPTIONS, DeathReason, Job, JobError, JobOptions, JobState, OnExisting, QueuePolicy

R = TypeVar("R")


class Command(msgspec.Struct, Generic[R], frozen=True):
    """A request to the queue whose reply is an `R`, or a `QueueError`."""


class Results(msgspec.Struct, frozen=True):
    """The answers to a command that treats each job for itself, in the order asked."""

    jobs: Sequence[Job | QueueError]

    def single(self) -> Job:
        """The only job of a command that named one.

        Raises:
            QueueError: The refusal, where it was one.
        """
        (job,) = self.jobs
        if isinstance(job, QueueError):
            raise job
        return job


class IdempotencyKey(msgspec.Struct, frozen=True):
    """What makes a command safe to repeat: the same key with the same body gets the same answer.

    Refused with KeyReused if the body differs.
    """

    scope: str  # whose key it is, and on which route
    key: str
    fingerprint: bytes  # of the body


# --- enqueue


class NewJob(msgspec.Struct, frozen=True, gc=False):
    """A job as its producer describes it. `delay_seconds` and `not_before` exclude each other."""

    type: str
    payload: bytes | None = None
    priority: int = 0
    delay_seconds: float = 0.0
    not_before: float | None = None  # wall clock
    ttl_seconds: float | None = None
    options: JobOptions = NO_OPTIONS
    on_existing: OnExisting = OnExisting.KEEP


class EnqueuedJob(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of a new job."""

    id: int
    state: JobState
    existing: bool = False  # its unique key was taken: this is the job that has it


class Enqueued(msgspec.Struct, frozen=True):
    """The answers, in the order sent; the only refusal of a single job is UniqueKeyTaken."""

    jobs: Sequence[EnqueuedJob | QueueError]


class Enqueue(Command[Enqueued], frozen=True):
    """Add jobs to a queue, all or none but for their unique keys. The queue is made if it does not exist.

    Refused with InvalidCommand (a `not_before` too far away), QueueFull, MemoryFull, TooManyQueues, UnknownQueue (where
    queues must be declared) or KeyReused.
    """

    queue: str
    jobs: Sequence[NewJob]
    key: IdempotencyKey | None = None


# --- dequeue


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A job handed out, with the secret that proves it."""

    job: Job
    token: str


class Dequeued(msgspec.Struct, frozen=True):
    """The leases given; none if there was no job."""

    leases: Sequence[Lease] = ()
    repeated: bool = False  # the answer of an earlier dequeue under the same key: an empty one is not to be waited on


class DequeueOrder(StrEnum):
    """Which of several queues goes first."""

    LISTED = "listed"  # as they are named; of a prefix, by name
    FAIR = "fair"  # the one that was served least recently


class Dequeue(Command[Dequeued], frozen=True):
    """Lease up to `count` jobs, the first in order. An empty or unknown queue gives none.

    With `wait_seconds` the dequeue is parked until there is a job, oldest first. Refused with TooManyWaiters, or
    with Draining once the server is about to end, or with KeyReused. Under a key, a repeat gets those leases of the
    first answer that still hold, at once and be it none, and takes the place in line of the first if that still waits.

    A holder is given no more jobs than `holder_in_progress_max` at once, over all queues, and refused with HolderFull
    when it has them: also when its turn comes after a wait.
    """

    queue: str | tuple[str, ...]  # a name, several, or all that begin with what stands before a final `*`
    count: int = 1
    consumer: str | None = None
    lease_seconds: float | None = None
    wait_seconds: float = 0.0
    order: DequeueOrder = DequeueOrder.LISTED
    key: IdempotencyKey | None = None
    holder: str | None = None  # for whom the leases count
    holder_in_progress_max: int | None = None


# --- the holder's verbs


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A job, and what its caller shows to prove that he holds its lease.

    A token, if shown, alone decides. Without one the consumer's name must be the one the job was dequeued under, and
    whoever asks may act on a job that was dequeued under none.
    """

    queue: str
    id: int
    token: str | None = None
    consumer: str | None = None


class ConcludeClaim(Claim, frozen=True):
    """A claim, and what came of the work: a JSON text."""

    result: bytes | None = None


class FailClaim(Claim, frozen=True):
    """A claim, what went wrong, and whether it is of use to try again."""

    error: JobError | None = None
    retry: bool = True
    retry_after_seconds: float | None = None  # None: by the retry policy


class ExtendClaim(Claim, frozen=True):
    """A claim, the length of the lease from now on (None for its former length), and how far the work is."""

    lease_seconds: float | None = None
    progress: bytes | None = None  # a JSON text; None leaves the former


class ReleaseClaim(Claim, frozen=True):
    """A claim, and how long the job shall wait before it is handed out again."""

    delay_seconds: float = 0.0


class Conclude(Command[Results], frozen=True):
    """End jobs as done. The token that concluded a job may say so again.

    A job is refused with UnknownJob, ForgottenJob, LeaseLost, OtherConsumer or NotInProgress.
    """

    claims: Sequence[Claim]


class Fail(Command[Results], frozen=True):
    """End attempts as failed: the job is tried again later, or is dead. Refused and repeated like Conclude."""

    claims: Sequence[FailClaim]


class Extend(Command[Results], frozen=True):
    """Start leases again from now: the heartbeat of a worker. Refused like Conclude, or with RunTooLong."""

    claims: Sequence[ExtendClaim]


class Release(Command[Results], frozen=True):
    """Give jobs back unfinished. Each keeps its place, unless it is delayed. Refused and repeated like Conclude."""

    claims: Sequence[ReleaseClaim]


# --- the operator's verbs, on jobs by their ids


class Cancel(Command[Results], frozen=True):
    """Call jobs off. For a job in progress this is a wish, granted when the attempt ends other than concluded.

    A job is refused with UnknownJob, ForgottenJob, or AlreadyFinished; cancelled again it is answered alike.
    """

    queue: str
    ids: Sequence[int]


class Redrive(Command[Results], frozen=True):
    """Queue dead or cancelled jobs again, with all their attempts before them.

    A job is refused with UnknownJob, ForgottenJob, NotFinished, AlreadyFinished (it is concluded), UniqueKeyTaken or
    QueueFull.
    """

    queue: str
    ids: Sequence[int]


class RunNow(Command[Results], frozen=True):
    """Make scheduled jobs ready. A queued one is answered alike; another is refused with NotWaiting."""

    queue: str
    ids: Sequence[int]


class TakeBack(Command[Results], frozen=True):
    """Release jobs without a token. A job is refused with NotInProgress."""

    queue: str
    ids: Sequence[int]


class Forget(Command[Results], frozen=True):
    """Forget finished jobs. A job is refused with NotFinished; its last version is the answer."""

    queue: str
    ids: Sequence[int]


# --- the operator's verbs, on many jobs by a filter


class JobFilter(msgspec.Struct, frozen=True):
    """Which jobs are meant: all conditions that are given must hold."""

    states: frozenset[JobState] = frozenset()  # empty: any
    type: str | None = None
    consumer: str | None = None
    error: str | None = None  # a part of the last error's type or message
    since: float | None = None  # created at this moment or later, wall clock


class BulkVerb(StrEnum):
    """What is done to each of many jobs."""

    REDRIVE = "redrive"  # dead and cancelled ones
    PURGE = "purge"  # any but those in progress: forgets them
    RELEASE = "release"  # those in progress
    CANCEL = "cancel"  # those that have not ended; of those in progress it is a wish


class BulkDone(msgspec.Struct, frozen=True):
    """What one slice came to."""

    count: int  # jobs done, or that would be
    refused: int  # jobs that match and cannot be done
    next_after: int | None  # go on from here; None: all jobs have been looked at
    spread_to: float | None = None  # where the next slice goes on to spread


class Bulk(Command[BulkDone], frozen=True):
    """Do one verb to the jobs that match, in the order of their ids: one slice of the ids after `after_id`.

    With `dry_run` they are only counted. With `per_second` redriven jobs are scheduled so far apart, beginning at
    `spread_from`, rather than queued at once. Refused with UnknownQueue.
    """

    queue: str
    verb: BulkVerb
    where: JobFilter
    dry_run: bool = False
    after_id: int = 0
    until_id: int | None = None  # jobs that come while the slices are worked through are not meant
    per_second: float | None = None
    spread_from: float | None = None  # wall clock; None: now


# --- queues


class QueueView(msgspec.Struct, frozen=True):
    """A queue in figures. A queue that does not exist reads as an empty one."""

    name: str
    exists: bool
    counts: dict[JobState, int]
    paused: bool = False
    policy: QueuePolicy = QueuePolicy()
    declared: bool = False  # whether it was given its policy
    oldest_age_seconds: float | None = None  # of the lowest place: since it was given to its job
    per_minute: dict[str, float] = {}  # verb -> jobs, over the last minute
    consumers: dict[str, float] = {}  # name -> seconds since it was last seen, of the last ten minutes
    last_id: int = 0


class ReadQueue(Command[QueueView], frozen=True):
    """The figures of a queue."""

    queue: str


class QueuesFound(msgspec.Struct, frozen=True):
    """A page of queues."""

    queues: Sequence[QueueView]
    next_after: str | None


class ListQueues(Command[QueuesFound], frozen=True):
    """Queues by name, those after `after`."""

    prefix: str = ""
    after: str = ""
    limit: int = 100
    patterns: Sequence[str] | None = None  # names, or prefixes followed by `*`, of those that may be told of; None: all


class Measured(msgspec.Struct, frozen=True):
    """A slice of the queues in figures, and the names of those that are left."""

    queues: Sequence[QueueFigures]
    left: Sequence[str]
    memory_bytes: int  # of payloads, results, progress and errors, of all queues; see `memory_bytes_max`


class Measure(Command[Measured], frozen=True):
    """The figures of queues for a monitor, a slice of them: at first of all, then of those that were left."""

    names: Sequence[str] | None = None


class QueueBrief(msgspec.Struct, frozen=True, gc=False):
    """A queue in a few figures."""

    name: str
    counts: tuple[int, ...]  # by state, in the order of `JobState`
    per_minute: tuple[float, ...]  # of enqueue, dequeue, conclude, fail and dead, over the last minute
    oldest_ready_at: float | None  # of the lowest place: when it was given to its job, wall clock
    paused: bool
    asked_at: float  # when a consumer asked last, wall clock
    slots: int  # of the ready arrays
    compactions: int


class Surveyed(msgspec.Struct, frozen=True):
    """A slice of the queues in a few figures, and the names of those that are left."""

    queues: Sequence[QueueBrief]
    gone: Sequence[str]  # queues of this slice that do not exist
    left: Sequence[str]
    turn: int  # for the next survey: what happens from here on is new to it
    whole: bool  # it is the first slice of all queues there are: those in none of them are gone


class Survey(Command[Surveyed], frozen=True):
    """Queues in a few figures, a slice of them: of those that have changed since a turn, or of those that were left."""

    names: Sequence[str] | None = None
    since: int = 0  # a turn; of a long time ago, as 0 is: all queues


class Trend(msgspec.Struct, frozen=True):
    """A queue minute by minute: jobs counted, and what half and 95 of 100 have waited and run, in seconds."""

    columns: Mapping[str, Sequence[float | None]]  # one value a minute, the one under way last; None: of nothing


class TrendsRead(msgspec.Struct, frozen=True):
    """Those of the queues that were named, of the same minutes; of one that does not exist, that of nothing."""

    at: float  # wall clock
    since: float  # when the first minute began
    trends: Mapping[str, Trend]


class ReadTrends(Command[TrendsRead], frozen=True):
    """What happened in some queues, minute by minute, in the last hour."""

    queues: Sequence[str]


class SetPolicy(Command[QueueView], frozen=True):
    """Give a queue its policy; the queue is made if it does not exist. Refused with TooManyQueues."""

    queue: str
    policy: QueuePolicy
    paused: bool | None = None  # None: as it is


class Pause(Command[QueueView], frozen=True):
    """Stop or resume handing out the jobs of a queue. Refused with UnknownQueue."""

    queue: str
    paused: bool


class DeleteQueue(Command[QueueView], frozen=True):
    """Delete a queue without jobs, and its policy. Its ids are never given again. The answer is how it reads then.

    Refused with UnknownQueue or QueueNotEmpty.
    """

    queue: str


# --- reads


class ReadJob(Command[Job], frozen=True):
    """One job. With `wait_seconds` the answer waits for its end. Refused with UnknownJob or ForgottenJob."""

    queue: str
    id: int
    wait_seconds: float = 0.0


class JobsFound(msgspec.Struct, frozen=True):
    """A page of jobs. It may be empty though there is a next one: the work of a call is bounded, not its yield."""

    jobs: Sequence[Job]
    next_after: int | None


class Search(Command[JobsFound], frozen=True):
    """Jobs that match, by id, beyond `after_id` in the order asked for; None begins at that order's beginning."""

    queue: str
    where: JobFilter
    newest_first: bool = False
    limit: int = 100
    after_id: int | None = None


class Position(msgspec.Struct, frozen=True):
    """How many jobs of the queue would be handed out before this one; None if it is not queued."""

    ahead: int | None


class ReadPosition(Command[Position], frozen=True):
    """The exact position of a job. Refused with UnknownJob or ForgottenJob."""

    queue: str
    id: int


class Why(StrEnum):
    """Why a job is not running, or that it is."""

    SCHEDULED = "scheduled"  # its producer wants it later
    RETRY = "retry"  # it waits for its next attempt
    DUE = "due"  # its time has come
    EXPIRED = "expired"  # its ttl has ended, and no sweep has come yet
    PAUSED = "paused"  # its queue is
    IN_PROGRESS_MAX = "in_progress_max"  # its queue has as many jobs in progress as it may
    NOBODY_ASKS = "nobody_asks"  # no consumer has asked its queue for a job lately
    BEHIND = "behind"  # others come first
    NEXT = "next"  # nothing is in its way
    LEASED = "leased"  # it is running
    LEASE_OVER = "lease_over"  # its lease has ended, and no sweep has come yet
    CANCEL_REQUESTED = "cancel_requested"  # it is running, and was called off
    CONCLUDED = "concluded"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Explanation(msgspec.Struct, frozen=True):
    """Why a job is not running now."""

    why: Why
    text: str
    ahead: int | None = None  # jobs that would be handed out before it; None: it is not queued
    seconds: float | None = None  # until, or since, what the text tells of


class Explain(Command[Explanation], frozen=True):
    """Why a job is not running now. Refused with UnknownJob or ForgottenJob."""

    queue: str
    id: int


# --- time


class Ended(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A finished job, the revision that it had, and what is told of it when it is forgotten."""

    queue: str
    id: int
    state: JobState
    revision: int
    type: str = ""
    attempts: int = 0
    consumer: str | None = None
    reason: DeathReason | None = None


class Pruned(msgspec.Struct, frozen=True):
    """How many jobs were forgotten, and how many of these were dead."""

    count: int
    dead: int


class Prune(Command[Pruned], frozen=True):
    """Forget finished jobs that the store has found to be past their retention, in memory or not."""

    jobs: Sequence[Ended]
    departures: Mapping[str, int]  # of each queue when the store was read; a job that may have changed since stays


class Recalled(Command[R], Generic[R], frozen=True):
    """A command about finished jobs that were only in the store, with these jobs: they are in memory again for it.

    Refused with ForgottenJob if a job may have left again since the store was read, and like the command itself.
    """

    command: Command[R]
    jobs: Sequence[Job]
    departures: Mapping[str, int]  # of each queue when the store was read


class Swept(msgspec.Struct, frozen=True):
    """What a sweep moved, and when the next one has something to do."""

    stale: int  # leases that had ended
    due: int  # scheduled jobs whose time had come
    expired: int  # jobs whose ttl had ended
    forgotten: int  # finished jobs past their retention
    dead_lost: int  # of these, dead ones forgotten for their number rather than their age
    more: bool  # a slice was full: sweep again at once
    next_due_seconds: float | None  # until the next deadline; None if there is none
    over: int = 0  # finished jobs beyond `retention_jobs` that only the store can find, as the oldest are its alone
    dead_over: int = 0  # the same of dead ones


class Sweep(Command[Swept], frozen=True):
    """Bring back what is stale or due, and forget what is past its retention, at most one slice of each."""
