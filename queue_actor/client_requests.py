"""The requests of `/v1`: method, path, body, and how the answer is read. See client_exchange.py.

A repeat is safe of what only looks, of what shows a token, and of what has an `Idempotency-Key`; also of `PUT` and
cancel, which say how something shall be. It is not of the other verbs of operators, nor of a stream.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Unpack
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from queue_actor import client_exchange as exchange
from queue_actor.client_answers import (
    Access,
    Enqueued,
    Extended,
    Job,
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
from queue_actor.client_bodies import Claim, Dequeue, ExtendClaim, Filter, NewJob, Order, Policy, Search
from queue_actor.client_exchange import Request

T = TypeVar("T")

KEY = "Idempotency-Key"
BACKUP_SECONDS = 600.0
"""How long a server may make a copy before it begins to send it."""

STREAM_SECONDS = 60.0
"""How long a server may take for the lines of a piece, if it paces their producer."""

encode = msgspec.json.encode


# --- paths


def _queue(queue: str, *rest: object) -> str:
    return "/".join(["/v1/queues", quote(queue, safe=":"), *map(str, rest)])


def _job(queue: str, id_: int, *rest: str) -> str:
    return _queue(queue, "jobs", id_, *rest)


def _verb_path(verb: str, queue: str | None) -> str:
    return f"/v1/{verb}" if queue is None else _queue(queue, verb)


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


# --- enqueue and dequeue


def encoded(value: NewJob | Claim) -> bytes:
    """What stands in a list with others of its kind, and cannot become two of them.

    Raises:
        msgspec.DecodeError: A `Raw` in it is no JSON.
    """
    text = encode(value)
    msgspec.json.decode(text, type=msgspec.Raw)
    return text


def _listed(bodies: Iterable[bytes]) -> bytes:
    return b'{"jobs":[' + b",".join(bodies) + b"]}"


def _enqueue(queue: str, bodies: Iterable[bytes], key: str | None, reader: Callable[[bytes], T]) -> Request[T]:
    return Request(
        method="POST",
        path=_queue(queue, "enqueue"),
        body=_listed(bodies),
        headers={KEY: key or uuid4().hex},
        repeatable=True,
        reader=reader,
    )


def enqueue_bodies(queue: str, bodies: Iterable[bytes], key: str | None = None) -> Request[Results[Enqueued]]:
    """An enqueue of jobs that are encoded already."""
    return _enqueue(queue, bodies, key, exchange.enqueued_results)


def enqueue_one(queue: str, body: bytes, key: str | None = None) -> Request[Enqueued]:
    """An enqueue of one."""
    return msgspec.structs.replace(_enqueue(queue, [body], key, exchange.enqueued), within=exchange.ALONE)


def enqueue(queue: str, jobs: Iterable[NewJob], key: str | None = None) -> Request[Results[Enqueued]]:
    """An enqueue, all in one request."""
    return enqueue_bodies(queue, map(encoded, jobs), key)


def enqueue_lines(queue: str, lines: Iterable[bytes]) -> Request[None]:
    """An enqueue of a stream of lines, whose answer is lines, too."""
    return Request(
        method="POST",
        path=_queue(queue, "enqueue"),
        body=b"".join(line + b"\n" for line in lines),
        headers={"Content-Type": "application/x-ndjson"},
        wait_seconds=STREAM_SECONDS,
        reader=_nothing,
    )


def _nothing(_body: bytes) -> None:
    """What is read while it comes leaves nothing to read."""


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
    if isinstance(queue, str) and not queue.endswith("*"):
        path, queues = _queue(queue, "dequeue"), None
    else:
        path, queues = "/v1/dequeue", queue
    wanted = Dequeue(count, wait_seconds, lease_seconds, consumer, None, queues, order)
    return Request(
        method="POST",
        path=path,
        body=encode(wanted),
        headers={KEY: key or uuid4().hex},
        repeatable=True,
        wait_seconds=wait_seconds,
        reader=exchange.leases,
    )


# --- the end of an attempt


def _by_token(path: str, body: bytes, dequeue: Dequeue | None, reader: Callable[[bytes], T]) -> Request[T]:
    if dequeue is None:
        return Request(method="POST", path=path, body=body, repeatable=True, reader=reader)
    return Request(
        method="POST",
        path=path,
        body=body[:-1] + b',"dequeue":' + encode(dequeue) + b"}",
        headers={KEY: uuid4().hex},
        repeatable=True,
        wait_seconds=dequeue.wait_seconds,
        reader=reader,
    )


def settle(verb: str, claim: Claim, dequeue: Dequeue | None = None) -> Request[Settled]:
    """conclude, fail or release of one job."""
    path = _job(claim.queue, claim.id, verb)
    return _by_token(path, encode(claim), dequeue, exchange.settled)


def settle_bodies(
    verb: str, queue: str | None, claims: Sequence[bytes], dequeue: Dequeue | None = None
) -> Request[Results[Settled]]:
    """The same of many jobs that are encoded already, of one queue or, with None, of any."""
    path = _verb_path(verb, queue)
    return _by_token(path, _listed(claims), dequeue, exchange.settled_results)


def settle_many(verb: str, claims: Sequence[Claim], dequeue: Dequeue | None = None) -> Request[Results[Settled]]:
    """conclude, fail or release of many jobs, of one queue or of several."""
    return settle_bodies(verb, _common_queue(claims), [encoded(claim) for claim in claims], dequeue)


def extend(claim: ExtendClaim) -> Request[Extended]:
    """The heartbeat of one job."""
    path = _job(claim.queue, claim.id, "extend")
    return _by_token(path, encode(claim), None, exchange.extended)


def extend_many(claims: Sequence[ExtendClaim]) -> Request[Results[Extended]]:
    """The heartbeat of many."""
    path = _verb_path("extend", _common_queue(claims))
    return _by_token(path, _listed(map(encoded, claims)), None, exchange.extended_results)


def _common_queue(claims: Sequence[Claim]) -> str | None:
    """The queue that they are all of. The route of one queue answers 403 as a whole, that of several for each job."""
    queues = {claim.queue for claim in claims}
    return queues.pop() if len(queues) == 1 else None


# --- look


def read_job(queue: str, id_: int, wait_seconds: float = 0.0) -> Request[Job]:
    """One job, whole, or the wait for its end."""
    return Request(
        method="GET",
        path=_with_query(_job(queue, id_), {"wait_seconds": f"{wait_seconds:.3f}" if wait_seconds else None}),
        repeatable=True,
        wait_seconds=wait_seconds,
        reader=exchange.job,
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

    return Request(
        method="GET", path=_with_query(_queue(queue, "jobs"), query), repeatable=True, reader=exchange.page_of_jobs
    )


def list_queues(prefix: str | None, limit: int | None, cursor: str | None) -> Request[Page[Queue]]:
    """A page of the queues that exist."""
    path = _with_query("/v1/queues", {"prefix": prefix, "limit": limit, "cursor": cursor})
    return Request(method="GET", path=path, repeatable=True, reader=exchange.page_of_queues)


def read_queue(queue: str) -> Request[Queue]:
    """A queue in figures."""
    return Request(method="GET", path=_queue(queue), repeatable=True, reader=exchange.queue)


def statistics() -> Request[Statistics]:
    """Figures of the server."""
    return Request(method="GET", path="/v1/statistics", repeatable=True, reader=exchange.statistics)


def overview(prefix: str | None, order: str | None, limit: int | None, cursor: str | None) -> Request[Overview]:
    """All queues at a glance."""
    path = _with_query("/v1/overview", {"prefix": prefix, "order": order, "limit": limit, "cursor": cursor})
    return Request(method="GET", path=path, repeatable=True, reader=exchange.overview)


def trend(queue: str) -> Request[QueueTrend]:
    """A queue minute by minute."""
    return Request(method="GET", path=_queue(queue, "trend"), repeatable=True, reader=exchange.trend)


def why(queue: str, id_: int) -> Request[Why]:
    """Why a job is not running now."""
    return Request(method="GET", path=_job(queue, id_, "why"), repeatable=True, reader=exchange.why)


def access() -> Request[Access]:
    """What the caller may do."""
    return Request(method="GET", path="/v1/access", repeatable=True, reader=exchange.access)


def backup() -> Request[None]:
    """The file that holds everything; its answer is read while it comes."""
    return Request(method="GET", path="/v1/backup", repeatable=True, wait_seconds=BACKUP_SECONDS, reader=_nothing)


def events(
    query: Mapping[str, Any], *, after: str | None, wait_seconds: float | None, silent_seconds: float
) -> Request[None]:
    """What becomes of jobs, behind an event if one is named; its answer is read while it comes.

    It has no end, unless it is to wait for so long only, and is silent for `silent_seconds` at most.
    """
    wait = None if wait_seconds is None else f"{wait_seconds:.3f}"
    return Request(
        method="GET",
        path=_with_query("/v1/events", {**query, "wait_seconds": wait}),
        headers={} if after is None else {"Last-Event-ID": after},
        repeatable=True,
        wait_seconds=silent_seconds,
        reader=_nothing,
    )


def text(path: str) -> Request[str]:
    """Whatever a path answers with as a text, such as `/metrics`."""
    return Request(method="GET", path=path, repeatable=True, reader=bytes.decode)


# --- operate


def put_queue(queue: str, paused: bool | None, policy: Policy) -> Request[Queue]:
    """A queue's policy, the whole of it."""
    body: dict[str, Any] = {**policy} if paused is None else {**policy, "paused": paused}
    return Request(method="PUT", path=_queue(queue), body=encode(body), repeatable=True, reader=exchange.queue)


def delete_queue(queue: str) -> Request[Queue]:
    """A queue is no longer."""
    return Request(method="DELETE", path=_queue(queue), reader=exchange.queue)


def pause(queue: str, *, paused: bool) -> Request[Queue]:
    """Stop handing out a queue's jobs, or begin again."""
    return Request(method="POST", path=_queue(queue, "pause" if paused else "resume"), reader=exchange.queue)


def operate(verb: str, queue: str, id_: int) -> Request[Settled]:
    """cancel, redrive or run of one job, or its release without a token."""
    return Request(
        method="POST",
        path=_job(queue, id_, verb),
        repeatable=verb == "cancel",
        reader=exchange.settled,
    )


def forget(queue: str, id_: int) -> Request[Settled]:
    """A job that has ended is no longer kept."""
    return Request(method="DELETE", path=_job(queue, id_), reader=exchange.settled)


def matching(verb: str, queue: str, where: Filter, **facts: Any) -> Request[Matched]:
    """purge, redrive, cancel or release of all jobs that match."""
    given = {name: value for name, value in {**where, **facts}.items() if value is not None}
    return Request(method="POST", path=_queue(queue, verb), body=encode(given), reader=exchange.matched)
