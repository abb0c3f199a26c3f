"""What comes in over `/v1`: request bodies as strict structs, bounds and all, and what they are as commands.

Unknown keys are refused: a misspelt `delay_second` must not run at once. Bounds that are settings are checked when a
body becomes a command. A problem names the field; whoever took the body out of another one adds where it stood.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, field
from msgspec.structs import replace

from queue_actor.commands import (
    Claim,
    ConcludeClaim,
    Dequeue,
    DequeueOrder,
    ExtendClaim,
    FailClaim,
    IdempotencyKey,
    NewJob,
    ReleaseClaim,
)
from queue_actor.jobs import (
    NO_OPTIONS,
    PRIORITY_MAX,
    Jitter,
    JobError,
    JobOptions,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    UniqueUntil,
)
from queue_actor.settings import Settings
from web.fields import (
    ATTEMPTS_MAX,
    BATCH,
    ERROR_MESSAGE_CHARACTERS_MAX,
    ERROR_TYPE_CHARACTERS_MAX,
    META_PAIRS_MAX,
    SECONDS_MAX,
    TRACEPARENT,
    Content,
    Count,
    Delay,
    Id,
    Lease,
    MetaKey,
    MetaText,
    Moment,
    Name,
    QueueName,
    QueueNames,
    Seconds,
    Token,
    Wait,
)
from web.problems import Problem
from web.schemas import Type, new_payload


class Body(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A request body."""


class RetryBody(Body, frozen=True):
    """How long to wait between attempts; see `queue_actor.retry`."""

    kind: RetryKind = RetryKind.EXPONENTIAL
    base_seconds: Annotated[float, Meta(ge=0.001, le=SECONDS_MAX)] = 1.0
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    cap_seconds: Annotated[float, Meta(ge=0.001, le=SECONDS_MAX)] = 3_600.0
    jitter: Jitter = Jitter.FULL

    def retry(self) -> Retry:
        """The policy in the core's words."""
        return Retry(self.kind, self.base_seconds, self.factor, self.cap_seconds, self.jitter)


class NewJobBody(Body, frozen=True):
    """A job of an enqueue."""

    type: Type
    payload: Content = field(default_factory=Raw)
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0
    delay_seconds: Delay | None = None
    not_before: Moment | None = None
    ttl_seconds: Annotated[float, Meta(gt=0, le=SECONDS_MAX)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] | None = None
    retry: RetryBody | None = None
    lease_seconds: Lease | None = None
    unique_key: Name | None = None
    unique_until: UniqueUntil = UniqueUntil.FINISHED
    on_existing: OnExisting = OnExisting.KEEP
    meta: Annotated[dict[MetaKey, MetaText], Meta(max_length=META_PAIRS_MAX)] | None = None
    traceparent: Annotated[str, Meta(pattern=TRACEPARENT)] | None = None

    def new_job(self, settings: Settings) -> NewJob:
        """The job in the core's words.

        Raises:
            Problem: A bound that is a setting is exceeded, or values exclude each other.
        """
        if self.delay_seconds is not None and self.not_before is not None:
            raise Problem("invalid", "delay_seconds and not_before exclude each other", field="not_before")
        _check_delay(self.delay_seconds, settings, "delay_seconds")
        _check_lease(self.lease_seconds, settings, "lease_seconds")
        return NewJob(
            type=self.type,
            payload=new_payload(self.payload, settings, field="payload"),
            priority=self.priority,
            delay_seconds=self.delay_seconds or 0.0,
            not_before=None if self.not_before is None else self.not_before.timestamp(),
            ttl_seconds=self.ttl_seconds,
            options=self._options(),
            on_existing=self.on_existing,
        )

    def _options(self) -> JobOptions:
        # `unique_until` says nothing where there is no key.
        if not any((self.max_attempts, self.retry, self.lease_seconds, self.unique_key, self.meta, self.traceparent)):
            return NO_OPTIONS
        return JobOptions(
            max_attempts=self.max_attempts,
            retry=None if self.retry is None else self.retry.retry(),
            lease_seconds=self.lease_seconds,
            unique_key=self.unique_key,
            unique_until=self.unique_until,
            meta=self.meta,
            traceparent=self.traceparent,
        )


class EnqueueBody(Body, frozen=True):
    """Many new jobs."""

    jobs: Annotated[list[NewJobBody], BATCH]

    def new_jobs(self, settings: Settings) -> list[NewJob]:
        """The jobs in the core's words.

        Raises:
            Problem: As `NewJobBody.new_job`, or there are more than `batch_jobs_max`.
        """
        check_batch(self.jobs, settings)
        jobs = []
        for n, job in enumerate(self.jobs):
            try:
                jobs.append(job.new_job(settings))
            except Problem as problem:
                raise problem.within(f"jobs[{n}]") from None
        return jobs


class DequeueBody(Body, frozen=True):
    """What a consumer asks for."""

    count: Count = 1
    wait_seconds: Wait = 0.0
    lease_seconds: Lease | None = None
    consumer: Name | None = None

    def dequeue(self, queue: str | tuple[str, ...], settings: Settings, *, key: IdempotencyKey | None) -> Dequeue:
        """The command.

        Raises:
            Problem: A bound that is a setting is exceeded.
        """
        if self.count > settings.batch_jobs_max:
            raise Problem("invalid", f"count is at most batch_jobs_max, {settings.batch_jobs_max}", field="count")
        if self.wait_seconds > settings.wait_seconds_max:
            raise Problem(
                "invalid",
                f"wait_seconds is at most wait_seconds_max, {settings.wait_seconds_max:.12g}",
                field="wait_seconds",
            )
        _check_lease(self.lease_seconds, settings, "lease_seconds")
        return Dequeue(
            queue, self.count, self.consumer, self.lease_seconds, self.wait_seconds, self.chosen_order(), key
        )

    def chosen_order(self) -> DequeueOrder:
        """Which of several queues goes first."""
        return DequeueOrder.LISTED


class DequeueManyBody(DequeueBody, frozen=True, kw_only=True):
    """The same, from several queues."""

    queues: QueueNames
    order: DequeueOrder = DequeueOrder.LISTED

    def source(self) -> str | tuple[str, ...]:
        """The queues in the core's words."""
        return _queues(self.queues)

    def chosen_order(self) -> DequeueOrder:
        """Which of several queues goes first."""
        return self.order


class DequeueNextBody(DequeueBody, frozen=True, kw_only=True):
    """A dequeue that rides on a conclude, a fail or a release; of the same queue unless it says otherwise."""

    queue: QueueName | None = None
    queues: QueueNames | None = None
    order: DequeueOrder = DequeueOrder.LISTED

    def source(self, queue: str | None) -> str | tuple[str, ...]:
        """The queue or queues in the core's words; the one of the request if none is named.

        Raises:
            Problem: There are both, or neither.
        """
        if self.queues is not None:
            if self.queue is not None:
                raise Problem("invalid", "queue and queues exclude each other", field="queues")
            return _queues(self.queues)
        named = self.queue or queue
        if named is None:
            raise Problem("invalid", "the queue to dequeue from is not named", field="queue")
        return named

    def chosen_order(self) -> DequeueOrder:
        """Which of several queues goes first."""
        return self.order


class ClaimBody(Body, frozen=True, kw_only=True):
    """A job whose lease the caller holds. What the path of the request names is not named here."""

    queue: QueueName | None = None
    id: Id | None = None
    token: Token | None = None

    def check_path(self, queue: str, id_: int | None = None) -> None:
        """Refuse a body that names another job than the path of its request.

        Raises:
            Problem: It does.
        """
        if self.queue is not None and self.queue != queue:
            raise Problem("invalid", "the path names another queue", field="queue")
        if id_ is not None and self.id is not None and self.id != id_:
            raise Problem("invalid", "the path names another job", field="id")

    # Only the type checker holds classes to it: msgspec's metaclass is none of ABCMeta's.
    @abstractmethod
    def claim(self, queue: str, id_: int, settings: Settings) -> Claim:
        """What it is in the core's words.

        Raises:
            Problem: A bound that is a setting is exceeded.
        """


class ConcludeBody(ClaimBody, frozen=True, kw_only=True):
    """A job that is done."""

    result: Content = field(default_factory=Raw)

    def claim(self, queue: str, id_: int, settings: Settings) -> ConcludeClaim:
        """See `ClaimBody.claim`."""
        result = new_payload(self.result, settings, field="result")
        return ConcludeClaim(queue, id_, self.token, None, result)


class ErrorBody(Body, frozen=True):
    """What went wrong."""

    type: Annotated[str, Meta(max_length=ERROR_TYPE_CHARACTERS_MAX)] = ""
    message: Annotated[str, Meta(max_length=ERROR_MESSAGE_CHARACTERS_MAX)] = ""


class FailBody(ClaimBody, frozen=True, kw_only=True):
    """A job that failed."""

    error: ErrorBody | None = None
    retry: bool = True
    retry_after_seconds: Delay | None = None

    def claim(self, queue: str, id_: int, settings: Settings) -> FailClaim:
        """See `ClaimBody.claim`."""
        _check_delay(self.retry_after_seconds, settings, "retry_after_seconds")
        if not self.retry and self.retry_after_seconds is not None:
            raise Problem("invalid", "there is no retry to wait for", field="retry_after_seconds")
        error = None if self.error is None else JobError(self.error.type, self.error.message)
        return FailClaim(queue, id_, self.token, None, error, self.retry, self.retry_after_seconds)


class ExtendBody(ClaimBody, frozen=True, kw_only=True):
    """A job that takes longer."""

    lease_seconds: Lease | None = None
    progress: Content = field(default_factory=Raw)

    def claim(self, queue: str, id_: int, settings: Settings) -> ExtendClaim:
        """See `ClaimBody.claim`."""
        _check_lease(self.lease_seconds, settings, "lease_seconds")
        progress = new_payload(self.progress, settings, field="progress")
        return ExtendClaim(queue, id_, self.token, None, self.lease_seconds, progress)


class ReleaseBody(ClaimBody, frozen=True, kw_only=True):
    """A job that is given back."""

    delay_seconds: Delay = 0.0

    def check_take_back(self) -> None:
        """Refuse what only the holder may say, where no token is shown.

        Raises:
            Problem: It is said.
        """
        if self.delay_seconds > 0:
            raise Problem(
                "invalid", "a job that is taken back without its token keeps its place", field="delay_seconds"
            )
        if getattr(self, "dequeue", None) is not None:
            raise Problem("invalid", "a dequeue goes with a job that is released by token", field="token")

    def claim(self, queue: str, id_: int, settings: Settings) -> ReleaseClaim:
        """See `ClaimBody.claim`."""
        _check_delay(self.delay_seconds, settings, "delay_seconds")
        return ReleaseClaim(queue, id_, self.token, None, self.delay_seconds)


class PolicyBody(Body, frozen=True):
    """A queue's policy; what is left out is as for a queue that was never given one."""

    max_attempts: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] | UnsetType | None = UNSET
    max_stale: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] | UnsetType | None = UNSET
    retry: RetryBody | UnsetType = UNSET
    lease_seconds: Lease | UnsetType | None = UNSET
    ttl_seconds: Annotated[float, Meta(gt=0, le=SECONDS_MAX)] | UnsetType | None = UNSET
    queued_jobs_max: Annotated[int, Meta(ge=0, le=100_000_000)] | UnsetType | None = UNSET
    in_progress_max: Annotated[int, Meta(ge=1, le=100_000_000)] | UnsetType | None = UNSET
    run_seconds_max: Annotated[float, Meta(gt=0, le=SECONDS_MAX)] | UnsetType | None = UNSET
    oldest_every: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    retention_seconds: Seconds | UnsetType | None = UNSET
    dead_retention_seconds: Seconds | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET

    def policy(self, first: QueuePolicy, settings: Settings) -> QueuePolicy:
        """The policy in the core's words, on top of the first one of the queue.

        Raises:
            Problem: A bound that is a setting is exceeded.
        """
        if isinstance(self.lease_seconds, float):
            _check_lease(self.lease_seconds, settings, "lease_seconds")
        facts: dict[str, Any] = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name != "paused" and getattr(self, name) is not UNSET
        }
        if isinstance(self.retry, RetryBody):
            facts["retry"] = self.retry.retry()
        return replace(first, **facts)


def _queues(named: str | list[str]) -> str | tuple[str, ...]:
    return named if isinstance(named, str) else tuple(named)


def check_batch(jobs: Sequence[object], settings: Settings) -> None:
    """Refuse more jobs than a request may have.

    Raises:
        Problem: `invalid`.
    """
    if len(jobs) > settings.batch_jobs_max:
        raise Problem(
            "invalid", f"{len(jobs)} jobs are more than batch_jobs_max, {settings.batch_jobs_max}", field="jobs"
        )


def _check_lease(seconds: float | None, settings: Settings, field: str) -> None:
    if seconds is not None and seconds > settings.lease_seconds_max:
        raise Problem(
            "invalid", f"a lease is at most lease_seconds_max, {settings.lease_seconds_max:.12g}", field=field
        )


def _check_delay(seconds: float | None, settings: Settings, field: str) -> None:
    if seconds is not None and seconds > settings.delay_seconds_max:
        raise Problem(
            "invalid", f"a delay is at most delay_seconds_max, {settings.delay_seconds_max:.12g}", field=field
        )
