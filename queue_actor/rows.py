"""Jobs, queues and answers as rows of a table, and back: a bijection, and nothing else.

What people filter and sort by has a column of its own. The rest of a job is one JSON object, `facts`, without the
values that are defaults: a statement's cost is its number of columns.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from queue_actor.changes import AnswerRecord, QueueRecord
from queue_actor.commands import Enqueued, EnqueuedJob
from queue_actor.errors import QueueError, UniqueKeyTaken
from queue_actor.jobs import NO_OPTIONS, Attempt, DeathReason, Job, JobOptions, JobState, QueuePolicy

JOB_COLUMNS = (
    "queue",
    "id",
    "state",
    "type",
    "priority",
    "created_at",
    "kept_until",
    "consumer",
    "facts",
)
QUEUE_COLUMNS = ("name", "next_id", "next_fence", "paused", "declared", "policy", "departures", "revision")
ANSWER_COLUMNS = ("kind", "scope", "key", "fingerprint", "at", "answer")

JOBS = (
    f"SELECT {', '.join('jobs.' + column for column in JOB_COLUMNS)}, coalesce(jobs.payload, large_payloads.payload) "  # noqa: S608 - our own names
    "FROM jobs LEFT JOIN large_payloads USING (queue, id)"
)
"""Reads jobs whole; what a WHERE adds names the columns of `jobs` in full."""

Row = tuple[Any, ...]


ABSENT = msgspec.Raw()
"""In place of a JSON text that is not there: None in a union would have the text parsed, and lose its bytes."""


class Facts(msgspec.Struct, omit_defaults=True, gc=False):
    """What a job has beside its columns and its payload; names, meanings and defaults are those of `Job`."""

    revision: int
    place: int = 0
    ready_at: float = 0.0
    not_before: float | None = None
    expires_at: float | None = None
    options: JobOptions = NO_OPTIONS
    attempts: int = 0
    fails: int = 0
    stales: int = 0
    fence: int = 0
    lease_seconds: float = 0.0
    lease_expires_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested: bool = False
    key_freed: bool = False
    progress: msgspec.Raw = ABSENT
    result: msgspec.Raw = ABSENT
    reason: DeathReason | None = None
    history: tuple[Attempt, ...] = ()
    holder: str | None = None


class _Refused(msgspec.Struct):
    """A refusal among the answers of an enqueue; it is always UniqueKeyTaken."""

    detail: str
    field: str | None


_encode = msgspec.json.Encoder().encode
_decode_facts = msgspec.json.Decoder(Facts).decode
_decode_policy = msgspec.json.Decoder(QueuePolicy).decode
_decode_enqueued = msgspec.json.Decoder(list[tuple[int, JobState, bool] | _Refused]).decode
_decode_holdings = msgspec.json.Decoder(tuple[tuple[str, int, int], ...]).decode


def job_row(job: Job) -> Row:
    """The row of a job, but for its payload."""
    facts = Facts(
        job.revision,
        job.place,
        job.ready_at,
        job.not_before,
        job.expires_at,
        job.options,
        job.attempts,
        job.fails,
        job.stales,
        job.fence,
        job.lease_seconds,
        job.lease_expires_at,
        job.started_at,
        job.finished_at,
        job.cancel_requested,
        job.key_freed,
        ABSENT if job.progress is None else msgspec.Raw(job.progress),
        ABSENT if job.result is None else msgspec.Raw(job.result),
        job.reason,
        job.history,
        job.holder,
    )
    return (
        job.queue,
        job.id,
        job.state.value,
        job.type,
        job.priority,
        job.created_at,
        job.kept_until,
        job.consumer,
        _encode(facts).decode(),
    )


def job_of(row: Row) -> Job:
    """The job of a row with the payload as one more column.

    Raises:
        ValueError: It is no such row.
    """
    queue, id_, state, type_, priority, created_at, kept_until, consumer, text, payload = row
    facts = _decode_facts(text)
    return Job(
        queue=queue,
        id=id_,
        type=type_,
        payload=None if payload is None else payload.encode(),
        state=JobState(state),
        created_at=created_at,
        revision=facts.revision,
        priority=priority,
        place=facts.place,
        ready_at=facts.ready_at,
        not_before=facts.not_before,
        expires_at=facts.expires_at,
        options=facts.options,
        attempts=facts.attempts,
        fails=facts.fails,
        stales=facts.stales,
        consumer=consumer,
        holder=facts.holder,
        fence=facts.fence,
        lease_seconds=facts.lease_seconds,
        lease_expires_at=facts.lease_expires_at,
        started_at=facts.started_at,
        finished_at=facts.finished_at,
        kept_until=kept_until,
        cancel_requested=facts.cancel_requested,
        key_freed=facts.key_freed,
        progress=bytes(facts.progress) or None,
        result=bytes(facts.result) or None,
        reason=facts.reason,
        history=facts.history,
    )


def queue_row(queue: QueueRecord, revision: int) -> Row:
    """The row of a queue after the change of this revision."""
    policy = _encode(queue.policy).decode()
    return (
        queue.name,
        queue.next_id,
        queue.next_fence,
        queue.paused,
        queue.declared,
        policy,
        queue.departures,
        revision,
    )


def queue_of(row: Row) -> QueueRecord:
    """The queue of a row."""
    name, next_id, next_fence, paused, declared, policy, departures, _ = row
    return QueueRecord(name, next_id, next_fence, _decode_policy(policy), bool(paused), bool(declared), departures)


def answer_row(record: AnswerRecord) -> Row:
    """The row of an answer that is remembered."""
    answer = record.answer
    plain = _plain(answer.jobs) if isinstance(answer, Enqueued) else answer
    return (record.kind, record.scope, record.key, record.fingerprint, record.at, _encode(plain).decode())


def _plain(jobs: Sequence[EnqueuedJob | QueueError]) -> list[tuple[int, JobState, bool] | _Refused]:
    return [
        _Refused(job.detail, job.field) if isinstance(job, QueueError) else (job.id, job.state, job.existing)
        for job in jobs
    ]


def answer_of(row: Row) -> AnswerRecord:
    """The answer of a row."""
    kind, scope, key, fingerprint, at, text = row
    answer: Any
    if kind == "dequeue":
        answer = _decode_holdings(text)
    else:
        answer = Enqueued(
            [
                UniqueKeyTaken(job.detail, field=job.field) if isinstance(job, _Refused) else EnqueuedJob(*job)
                for job in _decode_enqueued(text)
            ]
        )
    return AnswerRecord(kind, scope, key, fingerprint, at, answer)
