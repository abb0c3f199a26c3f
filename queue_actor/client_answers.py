"""What the client is answered: jobs, results and queues as typed structs.

Times are `datetime`s in UTC. Fields that this version does not know are passed over. A payload, a result and progress
are JSON: `payload` is what it means, `payload_as(T)` the same as a struct, a dataclass or another type of yours, and
`payload_bytes` the text itself, as it was sent.
"""

import builtins
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from queue_actor.client_errors import Refused
from queue_actor.jobs import FINISHED, DeathReason, JobError, JobState, Outcome, QueuePolicy

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NULL = Raw(b"null")


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that has ended."""

    attempt: int
    consumer: str | None
    started_at: datetime
    ended_at: datetime
    outcome: Outcome
    error: JobError | None


class Lease(msgspec.Struct, frozen=True):
    """Until when a job is its consumer's alone.

    Attributes:
        fence: Grows with every lease of the queue, for ever. Pass it on to systems you write to.
        seconds: How long it lasts, from the answer on. Count these rather than compare clocks.
        expires_at: The same as a time, on the server's clock.
        token: Proves the lease; in the answer to a dequeue only, and elsewhere empty.
    """

    fence: int
    seconds: float
    expires_at: datetime
    token: str = ""


class Job(msgspec.Struct, frozen=True, dict=True, kw_only=True):
    """A job, whole; the fields are described in web/README.md.

    Of a list `history` is empty, and payload and result are null unless they were asked for.
    """

    queue: str
    id: int
    type: str
    state: JobState
    priority: int
    payload_raw: Raw = msgspec.field(name="payload", default=NULL)
    meta: dict[str, str]
    traceparent: str | None
    unique_key: str | None
    created_at: datetime
    not_before: datetime | None
    expires_at: datetime | None
    attempts: int
    fails: int
    stales: int
    max_attempts: int | None
    consumer: str | None
    lease: Lease | None
    cancel_requested: bool
    progress_raw: Raw = msgspec.field(name="progress", default=NULL)
    result_raw: Raw = msgspec.field(name="result", default=NULL)
    reason: DeathReason | None
    finished_at: datetime | None
    history: tuple[Attempt, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it has come to its end: concluded, dead or cancelled."""
        return self.state in FINISHED

    @property
    def token(self) -> str:
        """The token of its lease; empty but in the answer to a dequeue."""
        return self.lease.token if self.lease else ""

    @cached_property
    def payload(self) -> Any:
        """What was sent, as Python's own types; None if nothing was."""
        return msgspec.json.decode(self.payload_raw)

    @cached_property
    def result(self) -> Any:
        """What came with the conclude; None if nothing did."""
        return msgspec.json.decode(self.result_raw)

    @cached_property
    def progress(self) -> Any:
        """What its consumer said last with an extend; None if nothing."""
        return msgspec.json.decode(self.progress_raw)

    @property
    def payload_bytes(self) -> bytes:
        """The JSON text of the payload, as it was sent."""
        return bytes(self.payload_raw)

    @property
    def result_bytes(self) -> bytes:
        """The JSON text of the result, as it was sent."""
        return bytes(self.result_raw)

    def payload_as(self, kind: builtins.type[T]) -> T:
        """The payload as a struct, a dataclass, or whatever else msgspec can decode.

        Raises:
            msgspec.ValidationError: It is none.
        """
        return msgspec.json.decode(self.payload_raw, type=kind)

    def result_as(self, kind: builtins.type[T]) -> T:
        """The same of the result."""
        return msgspec.json.decode(self.result_raw, type=kind)


class Enqueued(msgspec.Struct, frozen=True):
    """A new job, or the one that was there under its unique key."""

    id: int
    state: JobState
    existing: bool = False


class Dequeued(msgspec.Struct, frozen=True):
    """What a dequeue that came with another verb was answered.

    Attributes:
        jobs: With their leases; none if there is none.
        refused: Why there can be none now, although the verb that it came with is done.
    """

    jobs: tuple[Job, ...] = ()
    refused: Refused | None = None


class Settled(msgspec.Struct, frozen=True):
    """What became of a job by a verb.

    Attributes:
        dequeued: Where the verb carried a dequeue.
    """

    id: int
    queue: str
    state: JobState
    dequeued: Dequeued | None = None


class Extended(msgspec.Struct, frozen=True):
    """A lease that has begun again. `cancel_requested`: the job has been called off, give the work up."""

    id: int
    queue: str
    state: JobState
    lease: Lease | None
    cancel_requested: bool


class Results(msgspec.Struct, Generic[T_co], frozen=True):
    """What became of many jobs, in the order sent. Each is an answer, or the refusal of that job alone.

    Attributes:
        dequeued: Where the verb carried a dequeue.
    """

    jobs: "tuple[T_co | Refused, ...]"
    dequeued: Dequeued | None = None

    @property
    def done(self) -> Sequence[T_co]:
        """The answers of those that were not refused."""
        return [job for job in self.jobs if not isinstance(job, Refused)]

    @property
    def refused(self) -> Sequence[Refused]:
        """The refusals of the others."""
        return [job for job in self.jobs if isinstance(job, Refused)]

    def __iter__(self) -> "Iterator[T_co | Refused]":
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


class LineRefused(msgspec.Struct, frozen=True):
    """Why a line of a stream is no job. `line` counts from 1, from the beginning of the whole stream."""

    line: int
    code: str
    detail: str
    field: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """What became of the next lines of a stream: one commit.

    Attributes:
        lines: Read so far, this chunk included.
        count: Jobs of this chunk that are enqueued, or were there under their unique key.
        first_id: Of those that are new; the others follow in the order of the lines.
        existing: Those that were there under their unique key.
        errors: The lines that are none.
    """

    lines: int
    count: int
    first_id: int | None = None
    existing: int = 0
    errors: tuple[LineRefused, ...] = ()


class Page(msgspec.Struct, Generic[T_co], frozen=True):
    """Part of a list. `next_cursor` leads to the next page; None: this is the last."""

    items: "tuple[T_co, ...]"
    next_cursor: str | None = None


class Consumer(msgspec.Struct, frozen=True):
    """A consumer that asked for jobs lately."""

    name: str
    seen_seconds: float


class Queue(msgspec.Struct, frozen=True):
    """A queue in figures; the fields are described in web/README.md."""

    name: str
    exists: bool
    paused: bool
    declared: bool
    counts: dict[str, int]
    oldest_age_seconds: float | None
    per_minute: dict[str, float]
    waiters: int
    consumers: tuple[Consumer, ...]
    last_id: int
    policy: QueuePolicy


class Matched(msgspec.Struct, frozen=True):
    """How many jobs a verb for all that match has moved, or would, and how many it could not."""

    count: int
    refused: int
    dry_run: bool


class StoreStatistics(msgspec.Struct, frozen=True):
    """Figures of the file that keeps the jobs."""

    file_bytes: int
    wal_bytes: int
    room_bytes: float
    commits: int
    commit_seconds_p50: float
    commit_seconds_p99: float


class Statistics(msgspec.Struct, frozen=True):
    """Figures of the server, of this moment."""

    instance: str
    durability: str
    inbox_requests: int
    waiters: int
    store: StoreStatistics | None


Trend = dict[str, tuple[float | None, ...]]
"""What happened in each of the last sixty minutes, the oldest first, by what it was; None: nothing to take it from."""


class QueueBrief(msgspec.Struct, frozen=True):
    """A queue at a glance; the fields are described in web/README.md."""

    name: str
    paused: bool
    counts: dict[str, int]
    per_minute: dict[str, float]
    oldest_age_seconds: float | None
    waiters: int
    asked_seconds: float
    wait_seconds_p50: float | None
    run_seconds_p50: float | None
    trend: Trend


class Overview(msgspec.Struct, frozen=True):
    """All queues together, and a page of them."""

    at: datetime
    queues_count: int
    paused_count: int
    counts: dict[str, int]
    per_minute: dict[str, float]
    queues: tuple[QueueBrief, ...]
    next_cursor: str | None


class QueueTrend(msgspec.Struct, frozen=True):
    """A queue minute by minute, from a moment on."""

    queue: str
    since: datetime
    trend: Trend


class Why(msgspec.Struct, frozen=True):
    """Why a job is not running now: as a code, and as a sentence.

    Attributes:
        ahead: Jobs of its queue that come before it, if it is queued.
        seconds: Until that changes by itself, if it does.
    """

    why: str
    text: str
    ahead: int | None
    seconds: float | None


class Access(msgspec.Struct, frozen=True):
    """What the caller may do. Without a name the server is open to everybody."""

    name: str | None
    scopes: tuple[str, ...]
    queues: tuple[str, ...]
