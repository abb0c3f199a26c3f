"""The verbs: everything that can be asked of a queue, and what it answers.

Each command names the type of its reply, so `Engine.execute(Dequeue(...))` is known to give `Dequeued`. Commands that
carry many jobs either succeed or are refused as a whole (Enqueue), or answer each job for itself (`Results`).
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from queue_actor.errors import QueueError
from queue_actor.jobs import Job, JobState

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


# --- enqueue


class NewJob(msgspec.Struct, frozen=True):
    """A job as its producer describes it."""

    type: str
    payload: bytes | None = None
    priority: int = 0
    delay_seconds: float = 0.0


class Enqueued(msgspec.Struct, frozen=True):
    """The jobs, each with the id it was given, in the order sent."""

    jobs: Sequence[Job]


class Enqueue(Command[Enqueued], frozen=True):
    """Add jobs to a queue, all or none. The queue is made if it does not exist.

    Refused with QueueFull, MemoryFull or TooManyQueues.
    """

    queue: str
    jobs: Sequence[NewJob]


# --- dequeue


class Lease(msgspec.Struct, frozen=True):
    """A job handed out, with the secret that proves it."""

    job: Job
    token: str


class Dequeued(msgspec.Struct, frozen=True):
    """The leases given; none if there was no job."""

    leases: Sequence[Lease] = ()


class Dequeue(Command[Dequeued], frozen=True):
    """Lease up to `count` jobs, the first in order. An empty or unknown queue gives none.

    With `wait_seconds` the dequeue is parked until there is a job, oldest first. Refused with TooManyWaiters, or
    with Draining once the server is about to end.
    """

    queue: str
    count: int = 1
    consumer: str | None = None
    lease_seconds: float | None = None
    wait_seconds: float = 0.0


# --- the holder's verbs


class Claim(msgspec.Struct, frozen=True):
    """A job, and what its caller shows to prove that he holds its lease.

    A token, if shown, alone decides. Without one the consumer's name must be the one the job was dequeued under, and
    whoever asks may act on a job that was dequeued under none.
    """

    queue: str
    id: int
    token: str | None = None
    consumer: str | None = None


class ExtendClaim(Claim, frozen=True):
    """A claim, and the length of the lease from now on; None for its former length."""

    lease_seconds: float | None = None


class ReleaseClaim(Claim, frozen=True):
    """A claim, and how long the job shall wait before it is handed out again."""

    delay_seconds: float = 0.0


class Conclude(Command[Results], frozen=True):
    """End jobs as done. The token that concluded a job may say so again.

    A job is refused with UnknownJob, ForgottenJob, LeaseLost, OtherConsumer or NotInProgress.
    """

    claims: Sequence[Claim]


class Extend(Command[Results], frozen=True):
    """Start leases again from now: the heartbeat of a worker. Refused like Conclude."""

    claims: Sequence[ExtendClaim]


class Release(Command[Results], frozen=True):
    """Give jobs back unfinished. Each keeps its place, unless it is delayed. Refused like Conclude."""

    claims: Sequence[ReleaseClaim]


# --- the operator's verbs


class Cancel(Command[Results], frozen=True):
    """Call jobs off. For a job in progress this is a wish, granted when the attempt ends other than concluded.

    A job is refused with UnknownJob, ForgottenJob, or AlreadyFinished; cancelled again it is answered alike.
    """

    queue: str
    ids: Sequence[int]


# --- reads


class ReadJob(Command[Job], frozen=True):
    """One job. Refused with UnknownJob or ForgottenJob."""

    queue: str
    id: int


class Position(msgspec.Struct, frozen=True):
    """How many jobs of the queue would be handed out before this one; None if it is not queued."""

    ahead: int | None


class ReadPosition(Command[Position], frozen=True):
    """The exact position of a job. Refused with UnknownJob or ForgottenJob."""

    queue: str
    id: int


class QueueView(msgspec.Struct, frozen=True):
    """A queue in figures. A queue that does not exist reads as an empty one."""

    name: str
    exists: bool
    counts: dict[JobState, int]


class ReadQueue(Command[QueueView], frozen=True):
    """The figures of a queue."""

    queue: str


# --- time


class Swept(msgspec.Struct, frozen=True):
    """What a sweep moved, and when the next one has something to do."""

    stale: int  # leases that had ended
    due: int  # scheduled jobs whose time had come
    forgotten: int  # finished jobs past their retention
    more: bool  # the slice was full: sweep again at once
    next_due_seconds: float | None  # until the next deadline; None if there is none


class Sweep(Command[Swept], frozen=True):
    """Bring back what is stale or due, and forget what is past its retention, at most one slice of each."""
