"""What the client is handed: new jobs, claims of those who hold leases, dequeues, policies and filters.

Bounds are the server's business: it refuses what is beyond them and names the field. Payloads, results and progress are
whatever msgspec can encode: dicts, lists, texts, numbers, structs, dataclasses. `msgspec.Raw(b"…")` is a JSON text that
is sent as it is.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, Self, TypedDict

import msgspec

from queue_actor.jobs import JobError, OnExisting, Retry, UniqueUntil

ERROR_TYPE_CHARACTERS_MAX = 200
ERROR_MESSAGE_CHARACTERS_MAX = 10_000

Order = Literal["listed", "fair"]
"""Which of several queues goes first: as they are named, or the one that was served least recently."""


class JobFields(TypedDict, total=False):
    """What may be said of a new job beside its type and payload; the fields are described in web/README.md."""

    priority: int
    delay_seconds: float | None
    not_before: datetime | None
    ttl_seconds: float | None
    max_attempts: int | None
    retry: Retry | None
    lease_seconds: float | None
    unique_key: str | None
    unique_until: UniqueUntil | Literal["finished", "started"]
    on_existing: OnExisting | Literal["keep", "replace", "refuse"]
    meta: dict[str, str] | None
    traceparent: str | None


class NewJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job to enqueue."""

    type: str
    payload: Any = None
    priority: int = 0
    delay_seconds: float | None = None
    not_before: datetime | None = None
    ttl_seconds: float | None = None
    max_attempts: int | None = None
    retry: Retry | None = None
    lease_seconds: float | None = None
    unique_key: str | None = None
    unique_until: UniqueUntil | str = "finished"
    on_existing: OnExisting | str = "keep"
    meta: dict[str, str] | None = None
    traceparent: str | None = None


class Dequeue(msgspec.Struct, frozen=True, omit_defaults=True):
    """The dequeue that a conclude, a fail or a release carries: from the same queue, unless others are named."""

    count: int = 1
    wait_seconds: float = 0.0
    lease_seconds: float | None = None
    consumer: str | None = None
    queue: str | None = None
    queues: Sequence[str] | str | None = None
    order: Order = "listed"


class Leased(Protocol):
    """A job that the caller holds: a `Job` out of a dequeue, or a `Claim` on one."""

    @property
    def queue(self) -> str:
        """The name of its queue."""
        ...

    @property
    def id(self) -> int:
        """Its id there."""
        ...

    @property
    def token(self) -> str:
        """The token of its lease."""
        ...


class Claim(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A job whose lease the caller holds: what a `Job` out of a dequeue says by itself."""

    queue: str
    id: int
    token: str

    @classmethod
    def of(cls, job: "Leased", **facts: Any) -> Self:
        """The claim on a job that was dequeued, and what its verb says about it."""
        return cls(queue=job.queue, id=job.id, token=job.token, **facts)


class ConcludeClaim(Claim, frozen=True, omit_defaults=True, kw_only=True):
    """The job is done, with a result if there is one."""

    result: Any = None


class FailClaim(Claim, frozen=True, omit_defaults=True, kw_only=True):
    """The attempt failed. `retry=False`: no retry helps, the job is dead."""

    error: JobError | None = None
    retry: bool = True
    retry_after_seconds: float | None = None


class ExtendClaim(Claim, frozen=True, omit_defaults=True, kw_only=True):
    """The job takes longer: its lease begins again, and its progress is told."""

    lease_seconds: float | None = None
    progress: Any = None


class ReleaseClaim(Claim, frozen=True, omit_defaults=True, kw_only=True):
    """The job is given back, unfinished."""

    delay_seconds: float = 0.0


def error_of(exception: BaseException) -> JobError:
    """What a worker says about an exception; what would be too long for the server is cut."""
    return JobError(
        type(exception).__qualname__[:ERROR_TYPE_CHARACTERS_MAX], str(exception)[:ERROR_MESSAGE_CHARACTERS_MAX]
    )


class Filter(TypedDict, total=False):
    """Which jobs a verb for all that match means: all conditions that are given must hold."""

    type: str | None
    consumer: str | None
    error: str | None
    since: datetime | None


class Search(Filter, total=False):
    """Which jobs a list has, and in which order. `content`: with payload and result."""

    state: str | Sequence[str]
    order: Literal["oldest", "newest"]
    limit: int
    cursor: str | None
    content: bool


class Policy(TypedDict, total=False):
    """A queue's policy; the fields are described in web/README.md. What is left out has its default."""

    max_attempts: int | None
    max_stale: int | None
    retry: Retry
    lease_seconds: float | None
    ttl_seconds: float | None
    queued_jobs_max: int | None
    in_progress_max: int | None
    run_seconds_max: float | None
    oldest_every: int
    retention_seconds: float | None
    dead_retention_seconds: float | None


def claim_of_failure(
    job: Leased, error: JobError | BaseException | None, *, retry: bool, retry_after_seconds: float | None
) -> FailClaim:
    """The claim of a failed attempt."""
    told = error_of(error) if isinstance(error, BaseException) else error
    return FailClaim.of(job, error=told, retry=retry, retry_after_seconds=retry_after_seconds)
