"""What goes over the wire and comes back, as values, without any I/O: what both clients share.

A `Request` says what to send, whether it may be sent again if no answer came, and how its answer is read. Whoever has a
connection sends it, makes an `Answer` of what comes back, and hands that to `read`:

    request = client_requests.read_job("images", 17)
    answer = Answer(status, headers, body)  # by whatever speaks HTTP
    job = read(request, answer)  # or raises the refusal
"""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec

from queue_actor.client_answers import (
    Access,
    Chunk,
    Dequeued,
    Enqueued,
    Extended,
    Job,
    Lease,
    LineRefused,
    Matched,
    Overview,
    Page,
    Queue,
    QueueTrend,
    Results,
    Settled,
    Statistics,
    Why,
)
from queue_actor.client_errors import NotUnderstood, Refused, refusal
from queue_actor.jobs import JobState

T = TypeVar("T")

ERROR = 400
OK = 200
ALONE = "jobs[0]."
"""Where a body has the only job of a call that knows of no list."""


class Answer(msgspec.Struct, frozen=True):
    """What came back; the names of the headers are in lower case, or found in any."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Request(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What to send.

    Attributes:
        path: With the query.
        reader: Makes the answer's value of its body, if it is 2xx.
        repeatable: Whether it may be sent again if it may have been carried out already.
        wait_seconds: How long the server may take on purpose before it answers.
        within: Where in the body the only job of the call stands: left out of the field that a refusal names.
    """

    method: str
    path: str
    reader: Callable[[bytes], T]
    body: bytes = b""
    headers: Mapping[str, str] = {}
    repeatable: bool = False
    wait_seconds: float = 0.0
    within: str = ""


def read(request: Request[T], answer: Answer) -> T:
    """The value of an answer.

    Raises:
        Refused: The answer is a problem.
        NotUnderstood: It is none of this contract.
    """
    if answer.status >= ERROR:
        raise problem(answer, request.within)
    if answer.status != OK:
        raise NotUnderstood(f"{request.method} {request.path} was answered with status {answer.status}")
    try:
        return request.reader(answer.body)
    except ValueError as error:
        raise NotUnderstood(f"the answer to {request.method} {request.path} is not as expected: {error}") from error


# --- what answers are made of


class _Refusal(msgspec.Struct, frozen=True):
    code: str
    detail: str
    field: str | None = None


class _Jobs(msgspec.Struct, frozen=True):
    jobs: tuple[Job, ...]
    next_cursor: str | None = None
    error: _Refusal | None = None


class _Result(msgspec.Struct, frozen=True):
    id: int = 0
    queue: str = ""
    state: JobState = JobState.QUEUED  # there wherever there is no error
    existing: bool = False
    error: _Refusal | None = None
    lease: Lease | None = None
    cancel_requested: bool = False
    dequeued: _Jobs | None = None


class _Results(msgspec.Struct, frozen=True):
    jobs: tuple[_Result, ...]
    dequeued: _Jobs | None = None


class _Queues(msgspec.Struct, frozen=True):
    queues: tuple[Queue, ...]
    next_cursor: str | None


class _RefusedLine(_Refusal, frozen=True, kw_only=True):
    line: int


class _ChunkLine(msgspec.Struct, frozen=True):
    lines: int
    count: int
    first_id: int | None = None
    existing: int = 0
    errors: tuple[_RefusedLine, ...] = ()
    error: _Refusal | None = None


_REFUSAL = msgspec.json.Decoder(_Refusal)
_JOBS = msgspec.json.Decoder(_Jobs)
_RESULT = msgspec.json.Decoder(_Result)
_RESULTS = msgspec.json.Decoder(_Results)
_QUEUES = msgspec.json.Decoder(_Queues)
_CHUNK = msgspec.json.Decoder(_ChunkLine)


def problem(answer: Answer, within: str = "") -> Refused:
    """The refusal that an answer is; one that is no problem document is told by its status."""
    try:
        told = _REFUSAL.decode(answer.body)
    except msgspec.MsgspecError:
        told = _Refusal("", f"the answer is {answer.status}, without a problem document")
    pause = answer.headers.get("retry-after", "")
    return refusal(
        told.code,
        told.detail,
        status=answer.status,
        field=told.field and told.field.removeprefix(within),
        retry_after_seconds=float(pause) if pause.isdecimal() else None,
        request_id=answer.headers.get("x-request-id"),
    )


def _refused(told: _Refusal) -> Refused:
    return refusal(told.code, told.detail, field=told.field)


def _dequeued(told: _Jobs | None) -> Dequeued | None:
    if told is None:
        return None
    return Dequeued(told.jobs, None if told.error is None else _refused(told.error))


# --- how each kind of answer is read

job = msgspec.json.Decoder(Job).decode
queue = msgspec.json.Decoder(Queue).decode
matched = msgspec.json.Decoder(Matched).decode
statistics = msgspec.json.Decoder(Statistics).decode
overview = msgspec.json.Decoder(Overview).decode
trend = msgspec.json.Decoder(QueueTrend).decode
why = msgspec.json.Decoder(Why).decode
access = msgspec.json.Decoder(Access).decode


def leases(body: bytes) -> tuple[Job, ...]:
    """The jobs of a dequeue."""
    return _JOBS.decode(body).jobs


def page_of_jobs(body: bytes) -> Page[Job]:
    """Part of a list of jobs."""
    told = _JOBS.decode(body)
    return Page(told.jobs, told.next_cursor)


def page_of_queues(body: bytes) -> Page[Queue]:
    """Part of a list of queues."""
    told = _QUEUES.decode(body)
    return Page(told.queues, told.next_cursor)


def _results(body: bytes, one: Callable[[_Result], T]) -> Results[T]:
    told = _RESULTS.decode(body)
    jobs = tuple(one(job) if job.error is None else _refused(job.error) for job in told.jobs)
    return Results(jobs, _dequeued(told.dequeued))


def _enqueued(told: _Result) -> Enqueued:
    return Enqueued(told.id, told.state, told.existing)


def _settled(told: _Result) -> Settled:
    return Settled(told.id, told.queue, told.state, _dequeued(told.dequeued))


def _extended(told: _Result) -> Extended:
    return Extended(told.id, told.queue, told.state, told.lease, told.cancel_requested)


def enqueued_results(body: bytes) -> Results[Enqueued]:
    """What became of new jobs."""
    return _results(body, _enqueued)


def enqueued(body: bytes) -> Enqueued:
    """What became of the only new job.

    Raises:
        Refused: It was not enqueued.
    """
    (only,) = enqueued_results(body).jobs
    if isinstance(only, Refused):
        raise only
    return only


def settled_results(body: bytes) -> Results[Settled]:
    """What became of jobs by conclude, fail or release."""
    return _results(body, _settled)


def settled(body: bytes) -> Settled:
    """What became of a job by a verb."""
    return _settled(_RESULT.decode(body))


def extended_results(body: bytes) -> Results[Extended]:
    """What became of leases."""
    return _results(body, _extended)


def extended(body: bytes) -> Extended:
    """What became of a lease."""
    return _extended(_RESULT.decode(body))


def chunk(line: bytes, before: int) -> tuple[Chunk, Refused | None]:
    """A line of the answer to a stream, after so many lines in earlier ones; and why the stream ends here, if so."""
    told = _CHUNK.decode(line)
    errors = tuple(LineRefused(error.line + before, error.code, error.detail, error.field) for error in told.errors)
    done = Chunk(told.lines + before, told.count, told.first_id, told.existing, errors)
    return done, None if told.error is None else _refused(told.error)
