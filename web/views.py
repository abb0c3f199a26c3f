"""What goes out over `/v1`: jobs, queues and results as JSON, in the shapes of web/README.md."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from queue_actor.commands import Claim, Dequeued, EnqueuedJob, Lease, QueueView
from queue_actor.errors import QueueError
from queue_actor.jobs import Attempt, DeathReason, Job, JobError, JobState, Outcome, QueuePolicy
from web.problems import Problem

Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""What `timestamp` makes."""


class AttemptView(msgspec.Struct, frozen=True, gc=False):
    """An attempt that has ended."""

    attempt: int
    consumer: str | None
    started_at: Timestamp
    ended_at: Timestamp
    outcome: Outcome
    error: JobError | None


class LeaseView(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A lease; its token is in the answer to a dequeue only."""

    token: str | UnsetType = UNSET
    fence: int
    seconds: float
    expires_at: Timestamp


class JobView(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A job, whole. Lists leave out payload and result unless asked, and the history always."""

    queue: str
    id: int
    type: str
    state: JobState
    priority: int
    payload: Raw | UnsetType = UNSET
    meta: dict[str, str]
    traceparent: str | None
    unique_key: str | None
    created_at: Timestamp
    not_before: Timestamp | None
    expires_at: Timestamp | None
    attempts: int
    fails: int
    stales: int
    max_attempts: int | None  # its own; None: its queue's
    consumer: str | None
    lease: LeaseView | None
    cancel_requested: bool
    progress: Raw
    result: Raw | UnsetType = UNSET
    reason: DeathReason | None
    finished_at: Timestamp | None
    history: Sequence[AttemptView] | UnsetType = UNSET


NULL = Raw(b"null")


@lru_cache(maxsize=1_024)  # the jobs of one batch share their moments
def timestamp(seconds: float) -> str:
    """A moment of the wall clock, by RFC 3339 in UTC with milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1_000), 1_000)
    return f"{datetime.fromtimestamp(whole, UTC).isoformat()[:19]}.{milliseconds:03d}Z"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)


def _raw(text: bytes | None) -> Raw:
    return NULL if text is None else Raw(text)


def _attempt(number: int, attempt: Attempt) -> AttemptView:
    return AttemptView(
        number,
        attempt.consumer,
        timestamp(attempt.started_at),
        timestamp(attempt.ended_at),
        attempt.outcome,
        attempt.error,
    )


def _history(job: Job) -> list[AttemptView]:
    """The attempts that have ended; the oldest may be forgotten, so they are counted from the last."""
    ended = job.attempts - (1 if job.lease_expires_at is not None else 0)
    first = ended - len(job.history) + 1
    return [_attempt(first + n, attempt) for n, attempt in enumerate(job.history)]


def job_view(job: Job, *, token: str | None = None, content: bool = True, history: bool = False) -> JobView:
    """A job as a reader sees it; with a token, as the consumer who has just dequeued it."""
    options = job.options
    return JobView(
        queue=job.queue,
        id=job.id,
        type=job.type,
        state=job.state,
        priority=job.priority,
        payload=_raw(job.payload) if content else UNSET,
        meta=options.meta or {},
        traceparent=options.traceparent,
        unique_key=options.unique_key,
        created_at=timestamp(job.created_at),
        not_before=_moment(job.not_before),
        expires_at=_moment(job.expires_at),
        attempts=job.attempts,
        fails=job.fails,
        stales=job.stales,
        max_attempts=options.max_attempts,
        consumer=job.consumer,
        lease=_lease(job, UNSET if token is None else token),
        cancel_requested=job.cancel_requested,
        progress=_raw(job.progress),
        result=_raw(job.result) if content else UNSET,
        reason=job.reason,
        finished_at=_moment(job.finished_at),
        history=_history(job) if history else UNSET,
    )


class ErrorView(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Why one job of many was refused."""

    code: str
    detail: str
    field: str | None = None


class ResultView(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of one job."""

    id: int | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    state: JobState | UnsetType = UNSET
    existing: bool = False
    error: ErrorView | UnsetType = UNSET
    # Of an extended job:
    lease: LeaseView | UnsetType | None = UNSET
    cancel_requested: bool | UnsetType = UNSET
    # Of a verb that carried a dequeue:
    dequeued: "JobsView | UnsetType" = UNSET


class ResultsView(msgspec.Struct, frozen=True):
    """The answers to a request about many jobs, in the order sent, and how many are errors."""

    jobs: Sequence[ResultView]
    errors: int
    dequeued: "JobsView | UnsetType" = UNSET


class JobsView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Jobs, and where the next page begins."""

    jobs: Sequence[JobView]
    next_cursor: str | UnsetType | None = UNSET
    # Of a dequeue that came with another verb, and was refused after that was done:
    error: ErrorView | UnsetType = UNSET


def error_view(refusal: QueueError | Problem) -> ErrorView:
    """A refusal inside a list of results."""
    return ErrorView(refusal.code, refusal.detail, refusal.field)


def enqueued_view(jobs: Sequence[EnqueuedJob | QueueError]) -> ResultsView:
    """The answer to an enqueue."""
    views = [
        ResultView(error=error_view(job))
        if isinstance(job, QueueError)
        else ResultView(id=job.id, state=job.state, existing=job.existing)
        for job in jobs
    ]
    return ResultsView(views, sum(isinstance(job, QueueError) for job in jobs))


def results_view(
    claims: Sequence[Claim], results: Sequence[Job | QueueError | Problem], *, extended: bool
) -> ResultsView:
    """The answer to a verb for many jobs, but for what is dequeued with it."""
    views = [
        ResultView(id=claim.id, queue=claim.queue, error=error_view(result))
        if isinstance(result, QueueError | Problem)
        else result_view(result, extended=extended)
        for claim, result in zip(claims, results, strict=True)
    ]
    return ResultsView(views, sum(isinstance(result, QueueError | Problem) for result in results))


def leases_view(leases: Sequence[Lease]) -> JobsView:
    """The answer to a dequeue."""
    return JobsView([job_view(lease.job, token=lease.token) for lease in leases])


def dequeued_view(dequeued: Dequeued | QueueError | Problem | None) -> JobsView | UnsetType:
    """What became of a dequeue that came with another verb; nothing if none did."""
    if dequeued is None:
        return UNSET
    if isinstance(dequeued, QueueError | Problem):
        return JobsView((), error=error_view(dequeued))
    return leases_view(dequeued.leases)


def result_view(
    job: Job, *, extended: bool = False, dequeued: Dequeued | QueueError | Problem | None = None
) -> ResultView:
    """What became of a job; of an extended one also until when, and whether a cancel was asked for."""
    return ResultView(
        id=job.id,
        queue=job.queue,
        state=job.state,
        lease=_lease(job) if extended else UNSET,
        cancel_requested=job.cancel_requested if extended else UNSET,
        dequeued=dequeued_view(dequeued),
    )


def _lease(job: Job, token: str | UnsetType = UNSET) -> LeaseView | None:
    if job.lease_expires_at is None:
        return None
    expires_at = timestamp(job.lease_expires_at)
    return LeaseView(token=token, fence=job.fence, seconds=job.lease_seconds, expires_at=expires_at)


class ConsumerView(msgspec.Struct, frozen=True):
    """A consumer that asked for jobs lately."""

    name: str
    seen_seconds: float


class QueueDocument(msgspec.Struct, frozen=True):
    """A queue in figures."""

    name: str
    exists: bool
    paused: bool
    declared: bool
    counts: dict[str, int]
    oldest_age_seconds: float | None
    per_minute: dict[str, float]
    waiters: int
    consumers: Sequence[ConsumerView]
    last_id: int
    policy: QueuePolicy


def queue_document(view: QueueView, waiters: int) -> QueueDocument:
    """A queue as `/v1` shows it."""
    return QueueDocument(
        name=view.name,
        exists=view.exists,
        paused=view.paused,
        declared=view.declared,
        counts={str(state): count for state, count in view.counts.items()},
        oldest_age_seconds=None if view.oldest_age_seconds is None else round(view.oldest_age_seconds, 3),
        per_minute={verb: round(rate, 2) for verb, rate in view.per_minute.items()},
        waiters=waiters,
        consumers=[ConsumerView(name, round(seconds, 1)) for name, seconds in view.consumers.items()],
        last_id=view.last_id,
        policy=view.policy,
    )


class BulkView(msgspec.Struct, frozen=True):
    """How many jobs a verb for all that match has moved, or would, and how many it could not."""

    count: int
    refused: int
    dry_run: bool


class QueuesView(msgspec.Struct, frozen=True):
    """Queues by name, and where the next page begins."""

    queues: Sequence[QueueDocument]
    next_cursor: str | None
