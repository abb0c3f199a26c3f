"""Requests and answers of `/v1` as values, without any I/O: what both clients share.

A `Request` says what to send, whether it may be sent again if no answer came, and how its answer is read. Whoever has a
connection sends it, makes an `Answer` of what comes back, and hands that to `read`:

    request = requests.read_job("images", 17)
    answer = Answer(status, headers, body)   # by whatever speaks HTTP
    job = requests.read(request, answer)     # or raises the refusal

A repeat is safe of what only looks, of what shows a token, and of what has an `Idempotency-Key`; also of `PUT` and
cancel, which say how something shall be. It is not of the other verbs of operators, nor of a stream.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, Unpack
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from queue_actor.client_answers import (
    Dequeued,
    Enqueued,
    Extended,
    Job,
    Lease,
    Matched,
    Page,
    Queue,
    Results,
    Settled,
    Statistics,
)
from queue_actor.client_bodies import (
    Claim,
    Dequeue,
    ExtendClaim,
    Filter,
    NewJob,
    Order,
    Policy,
    Search,
)
from queue_actor.client_errors import NotUnderstood, Refused, refusal
from queue_actor.jobs import JobState

T = TypeVar("T")

ERROR = 400
OK = 200
KEY = "Idempotency-Key"
BACKUP_SECONDS = 600.0
"""How long a server may make a copy before it begins to send it."""

_encode = msgspec.json.encode


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
    """

    method: str
    path: str
    reader: Callable[[bytes], T]
    body: bytes = b""
    headers: Mapping[str, str] = {}
    repeatable: bool = False
    wait_seconds: float = 0.0


def read(request: Request[T], answer: Answer) -> T:
    """The value of an answer.

    Raises:
        Refused: The answer is a problem.
        NotUnderstood: It is none of this contract.
    """
    if answer.status >= ERROR:
        raise problem(answer)
    if answer.status != OK:
        raise NotUnderstood(f"{request.method} {request.path} was answered with status {answer.status}")
    try:
        return request.reader(answer.body)
    except msgspec.MsgspecError as error:
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


_REFUSAL = msgspec.json.Decoder(_Refusal)
_JOB = msgspec.json.Decoder(Job)
_JOBS = msgspec.json.Decoder(_Jobs)
_RESULT = msgspec.json.Decoder(_Result)
_RESULTS = msgspec.json.Decoder(_Results)
_QUEUE = msgspec.json.Decoder(Queue)
_QUEUES = msgspec.json.Decoder(_Queues)
_MATCHED = msgspec.json.Decoder(Matched)
_STATISTICS = msgspec.json.Decoder(Statistics)


def problem(answer: Answer) -> Refused:
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
        field=told.field,
        retry_after_seconds=float(pause) if pause.isdecimal() else None,
        request_id=answer.headers.get("x-request-id"),
    )


def _refused(told: _Refusal) -> Refused:
    return refusal(told.code, told.detail, field=told.field)


def _dequeued(told: _Jobs | None) -> Dequeued | None:
    if told is None:
        return None
    return Dequeued(told.jobs, None if told.error is None else _refused(told.error))


def _enqueued(told: _Result) -> Enqueued | Refused:
    return Enqueued(told.id, told.state, told.existing) if told.error is None else _refused(told.error)


def _settled(told: _Result) -> Settled:
    return Settled(told.id, told.queue, told.state, _dequeued(told.dequeued))


def _extended(told: _Result) -> Extended:
    return Extended(told.id, told.queue, told.state, told.lease, told.cancel_requested)


def _results(body: bytes, one: Callable[[_Result], T]) -> Results[T]:
    told = _RESULTS.decode(body)
    return Results(
        tuple(one(job) if job.error is None else _refused(job.error) for job in told.jobs), _dequeued(told.dequeued)
    )


# --- paths


def _queue(queue: str, *rest: object) -> str:
    return "/".join(["/v1/queues", quote(queue, safe=":"), *map(str, rest)])


def _job(queue: str, id_: int, *rest: str) -> str:
    return _queue(queue, "jobs", id_, *rest)


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


# --- enqueue and dequeue


def enqueue_bodies(queue: str, jobs: Sequence[bytes], key: str | None = None) -> Request[Results[Enqueued]]:
    """An enqueue of jobs that are encoded already."""
    return Request(
        method="POST",
        path=_queue(queue, "enqueue"),
        body=b'{"jobs":[' + b",".join(jobs) + b"]}",
        headers={KEY: key or uuid4().hex},
        repeatable=True,
        reader=lambda body: Results(tuple(_enqueued(job) for job in _RESULTS.decode(body).jobs)),
    )


def enqueue(queue: str, jobs: Iterable[NewJob], key: str | None = None) -> Request[Results[Enqueued]]:
    """An enqueue, all in one request."""
    return enqueue_bodies(queue, [_encode(job) for job in jobs], key)


def dequeue(
    queue: str | Sequence[str],
    *,
    count: int,
    wait_seconds: float,
    lease_seconds: float | None,
    consumer: str | None,
    order: Order,
    key: str | None = None,
) -> Request[tuple[Job, ...]]:
    """A dequeue from one queue, from several, or from all whose names begin alike (`tenant:*`)."""
    several = not isinstance(queue, str) or queue.endswith("*")
    wanted = Dequeue(count, wait_seconds, lease_seconds, consumer, None, queue if several else None, order)
    return Request(
        method="POST",
        path="/v1/dequeue" if not isinstance(queue, str) or several else _queue(queue, "dequeue"),
        body=_encode(wanted),
        headers={KEY: key or uuid4().hex},
        repeatable=True,
        wait_seconds=wait_seconds,
        reader=lambda body: _JOBS.decode(body).jobs,
    )


# --- the end of an attempt


def _by_token(path: str, body: bytes, dequeue: Dequeue | None, reader: Callable[[bytes], T]) -> Request[T]:
    if dequeue is None:
        return Request(method="POST", path=path, body=body, repeatable=True, reader=reader)
    return Request(
        method="POST",
        path=path,
        body=body[:-1] + b',"dequeue":' + _encode(dequeue) + b"}",
        headers={KEY: uuid4().hex},
        repeatable=True,
        wait_seconds=dequeue.wait_seconds,
        reader=reader,
    )


def settle(verb: str, claim: Claim, dequeue: Dequeue | None = None) -> Request[Settled]:
    """conclude, fail or release of one job."""
    path = _job(claim.queue, claim.id, verb)
    return _by_token(path, _encode(claim), dequeue, lambda body: _settled(_RESULT.decode(body)))


def settle_bodies(
    verb: str, queue: str | None, claims: Sequence[bytes], dequeue: Dequeue | None
) -> Request[Results[Settled]]:
    """The same of many jobs that are encoded already, of one queue or, with None, of any."""
    path = f"/v1/{verb}" if queue is None else _queue(queue, verb)
    body = b'{"jobs":[' + b",".join(claims) + b"]}"
    return _by_token(path, body, dequeue, lambda answer: _results(answer, _settled))


def settle_many(verb: str, claims: Sequence[Claim], dequeue: Dequeue | None = None) -> Request[Results[Settled]]:
    """conclude, fail or release of many jobs, of one queue or of several."""
    return settle_bodies(verb, _common_queue(claims), [_encode(claim) for claim in claims], dequeue)


def extend(claim: ExtendClaim) -> Request[Extended]:
    """The heartbeat of one job."""
    path = _job(claim.queue, claim.id, "extend")
    return _by_token(path, _encode(claim), None, lambda body: _extended(_RESULT.decode(body)))


def extend_many(claims: Sequence[ExtendClaim]) -> Request[Results[Extended]]:
    """The heartbeat of many."""
    queue = _common_queue(claims)
    path = "/v1/extend" if queue is None else _queue(queue, "extend")
    return _by_token(path, _encode({"jobs": claims}), None, lambda body: _results(body, _extended))


def _common_queue(claims: Sequence[Claim]) -> str | None:
    """The queue that they are all of. The route of one queue answers 403 as a whole, that of several for each job."""
    queues = {claim.queue for claim in claims}
    return queues.pop() if len(queues) == 1 else None


# --- look


def read_job(queue: str, id_: int, wait_seconds: float = 0.0) -> Request[Job]:
    """One job, whole, or the wait for its end."""
    return Request(
        method="GET",
        path=_with_query(_job(queue, id_), {"wait_seconds": wait_seconds or None}),
        repeatable=True,
        wait_seconds=wait_seconds,
        reader=_JOB.decode,
    )


def search(queue: str, **search: Unpack[Search]) -> Request[Page[Job]]:
    """A page of the jobs that match."""
    query: dict[str, Any] = dict(search)
    state, since = search.get("state"), search.get("since")
    if state is not None:
        query["state"] = state if isinstance(state, str) else ",".join(state)
    if since is not None:
        query["since"] = since.isoformat()
    if query.pop("content", False):
        query["include"] = "content"

    def page(body: bytes) -> Page[Job]:
        told = _JOBS.decode(body)
        return Page(told.jobs, told.next_cursor)

    return Request(method="GET", path=_with_query(_queue(queue, "jobs"), query), repeatable=True, reader=page)


def list_queues(prefix: str | None, limit: int | None, cursor: str | None) -> Request[Page[Queue]]:
    """A page of the queues that exist."""

    def page(body: bytes) -> Page[Queue]:
        told = _QUEUES.decode(body)
        return Page(told.queues, told.next_cursor)

    path = _with_query("/v1/queues", {"prefix": prefix, "limit": limit, "cursor": cursor})
    return Request(method="GET", path=path, repeatable=True, reader=page)


def read_queue(queue: str) -> Request[Queue]:
    """A queue in figures."""
    return Request(method="GET", path=_queue(queue), repeatable=True, reader=_QUEUE.decode)


def statistics() -> Request[Statistics]:
    """Figures of the server."""
    return Request(method="GET", path="/v1/statistics", repeatable=True, reader=_STATISTICS.decode)


def text(path: str) -> Request[str]:
    """Whatever a path answers with as a text, such as `/metrics`."""
    return Request(method="GET", path=path, repeatable=True, reader=bytes.decode)


# --- operate


def put_queue(queue: str, paused: bool | None, policy: Policy) -> Request[Queue]:
    """A queue's policy, the whole of it."""
    body: dict[str, Any] = {**policy} if paused is None else {**policy, "paused": paused}
    return Request(method="PUT", path=_queue(queue), body=_encode(body), repeatable=True, reader=_QUEUE.decode)


def delete_queue(queue: str) -> Request[Queue]:
    """A queue is no longer."""
    return Request(method="DELETE", path=_queue(queue), reader=_QUEUE.decode)


def pause(queue: str, *, paused: bool) -> Request[Queue]:
    """Stop handing out a queue's jobs, or begin again."""
    return Request(method="POST", path=_queue(queue, "pause" if paused else "resume"), reader=_QUEUE.decode)


def operate(verb: str, queue: str, id_: int) -> Request[Settled]:
    """cancel, redrive or run of one job, or its release without a token."""
    return Request(
        method="POST",
        path=_job(queue, id_, verb),
        repeatable=verb == "cancel",
        reader=lambda body: _settled(_RESULT.decode(body)),
    )


def forget(queue: str, id_: int) -> Request[Settled]:
    """A job that has ended is no longer kept."""
    return Request(method="DELETE", path=_job(queue, id_), reader=lambda body: _settled(_RESULT.decode(body)))


def matching(verb: str, queue: str, where: Filter, **facts: Any) -> Request[Matched]:
    """purge, redrive or release of all jobs that match."""
    given = {name: value for name, value in {**where, **facts}.items() if value is not None}
    return Request(method="POST", path=_queue(queue, verb), body=_encode(given), reader=_MATCHED.decode)
