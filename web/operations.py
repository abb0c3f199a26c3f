"""The words that a route is described in: its parameters, codes, headers, and what it asks of a body beyond its struct.

What holds for many routes is said once: `OF_ANY`, `OF_A_TOKEN`, `OF_THE_QUEUE`, `OF_V1`, `OF_A_PATH`. The routes
themselves are described in web/contract.py.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from queue_actor.events import EVENT_ID
from queue_actor.jobs import JobState
from queue_actor.tokens import FENCE_MAX
from web.fields import FOLLOWED, Moment, Name, QueueName, Wait
from web.overview import PAGE as GLANCE_PAGE
from web.overview import PAGE_MAX as GLANCE_PAGE_MAX
from web.queues import PAGE, PAGE_MAX
from web.schemas import CONSUMER_HEADERS

# --- codes: those of a route are those that it names, and these

OF_ANY = (
    *("malformed", "foreign_host", "foreign_origin", "method_not_allowed", "request_timeout", "too_large"),
    *("unsupported_media_type", "headers_too_large", "internal", "not_implemented", "too_many_connections"),
)
"""Of every route: what the connection and the application say before a handler is asked."""

OF_A_TOKEN = ("unauthorized", "forbidden", "rate_limited")
"""Of every route that is not public, on a server with access tokens."""

OF_THE_QUEUE = ("busy", "outcome_unknown", "draining", "starting")
"""Of every route that asks the queue."""

OF_V1 = ("invalid",)
"""Of every route that refuses query parameters it does not know."""

OF_A_PATH = ("not_found",)
"""Of every route with a variable in its path, which may be sent empty."""


WHEN = {
    "malformed": "the request is no HTTP/1.1, or its body no JSON in UTF-8",
    "invalid": "something is unknown, missing or out of bounds; `field` names it",
    "unauthorized": "the server has access tokens, and no valid one was shown",
    "forbidden": "the access token does not allow that; `detail` names the scope and the queue that are needed",
    "foreign_host": "the Host is not this machine, and the server is open",
    "foreign_origin": "the request comes from a web page of another site, and the server is open",
    "not_found": "there is no such path",
    "method_not_allowed": "the path takes other methods; `Allow` names them",
    "request_timeout": "the request did not arrive in time",
    "too_large": "the body, a payload, a result or progress is larger than it may be",
    "unsupported_media_type": "a stream of lines was sent to a path that takes JSON",
    "rate_limited": "the access token has moved as many requests or jobs as it may for now",
    "headers_too_large": "the request line and headers are larger than 16 KiB",
    "internal": "a bug; the log has its traceback",
    "not_implemented": "a transfer coding other than `chunked`",
    "unknown_queue": "there is no such queue",
    "queue_not_empty": "jobs wait in the queue or are in progress",
    "key_reused": "the Idempotency-Key came with another body before",
    "other_consumer": "no token was sent, and the job was dequeued by another consumer",
    "empty": "no job is ready",
    "unknown_job": "there never was such a job",
    "forgotten": "the job ended, and is no longer kept",
    "lease_lost": "the token holds nothing: drop your result",
    "not_in_progress": "nobody has the job",
    "already_finished": "the job has come to its end",
    "not_waiting": "the job is in progress, or has ended",
    "not_finished": "the job waits, or is in progress",
    "run_too_long": "the attempt may not last longer than `run_seconds_max`",
    "unique_key_taken": "another job has this unique key",
    "not_durable": "the server has no data directory",
    "queue_full": "`queued_jobs_max` jobs wait or are in progress already",
    "memory_full": "`memory_bytes_max` bytes are kept already",
    "too_many_queues": "`queues_max` queues exist already",
    "in_progress_limit": "the access token has as many jobs in progress as it may",
    "disk_full": "the disk has less than `disk_reserve_bytes` left",
    "busy": "`inbox_requests_max` commands wait already; nothing was done",
    "too_many_waiters": "`waiters_max` requests wait already",
    "too_many_readers": "`readers_max` readers follow the events already",
    "too_many_connections": "`connections_max` connections are open, and none is idle",
    "backup_running": "there is one backup at a time",
    "starting": "the server still reads its jobs from the disk; nothing was done",
    "draining": "the server is about to end; nothing was done",
    "outcome_unknown": "the server failed in the middle: done, or not done",
}
"""When each code is the answer."""


# --- headers of answers

HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "Queue-Instance": ({"type": "string"}, "names this life of the queue: with another, jobs you knew are gone"),
    "X-Request-Id": ({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}, "yours, or one made for you"),
    "Queue-State": (
        {"enum": ["scheduled", "queued", "in_progress", "concluded", "dead", "cancelled"]},
        "how the job stands",
    ),
    "Queue-Durability": ({"enum": ["memory", "normal", "full"]}, "what the answer is worth"),
    "Queue-Lease-Token": ({"type": "string", "minLength": 1}, "proves the lease"),
    "Queue-Lease-Fence": ({"type": "integer", "minimum": 1}, "grows with every lease of the queue"),
    "Queue-Lease-Expires": ({"type": "string", "format": "date-time"}, "when the lease ends"),
    "Queue-Lease-Seconds": ({"type": "number", "exclusiveMinimum": 0}, "how long the lease lasts, from the answer on"),
    "Queue-Attempt": ({"type": "integer", "minimum": 1}, "which attempt this is"),
    "Retry-After": ({"type": "integer", "minimum": 1}, "seconds after which to try again"),
    "RateLimit-Policy": ({"type": "string"}, "how much a token with a rate may have, and in how many seconds"),
    "RateLimit": ({"type": "string"}, "how much of that is left, and in how many seconds all of it is there again"),
    "WWW-Authenticate": ({"type": "string"}, "that a Bearer token is needed, and which scope of it"),
    "Allow": ({"type": "string"}, "the methods of this path"),
    "X-Accel-Buffering": ({"const": "no"}, "tells nginx to pass on each piece as it comes"),
    "Vary": ({"type": "string"}, "which header of the request the answer depends on"),
    "Cache-Control": ({"type": "string"}, "whether the answer may be kept"),
    "Content-Length": ({"type": "integer", "minimum": 0}, "how long the file is"),
    "Content-Disposition": ({"type": "string"}, "a name for the file"),
    "Content-Security-Policy": ({"type": "string"}, "what the page may do: load its own files, and ask this server"),
    "Location": ({"type": "string", "format": "uri-reference"}, "where it is"),
    "Referrer-Policy": ({"const": "no-referrer"}, "the page tells nobody where it is"),
    "ETag": ({"type": "string"}, "names this version: send it as If-None-Match"),
}
AT_TIMES = ("RateLimit-Policy", "RateLimit", "WWW-Authenticate", "Cache-Control")
"""Those that some answers have only at times; wherever else one is named, it is always there."""

SUFFIX = ".at-times"
"""Of the components for these."""

OF_EVERY_ANSWER = ("Queue-Instance", "X-Request-Id")
OF_A_LIMITED_TOKEN = ("RateLimit-Policy", "RateLimit")


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the query, or a header of the request."""

    name: str
    kind: Any  # a type as msgspec understands it
    about: str
    default: Any = None
    example: Any = None
    place: Literal["query", "header"] = "query"


class File(msgspec.Struct, frozen=True):
    """An answer that is no JSON of this server's making."""

    content_type: str
    example: str | None = None  # None: it is binary
    otherwise: tuple[str, ...] = ()  # the same in other formats, for those whose Accept prefers them


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A route."""

    tag: str
    summary: str
    about: str = ""
    body: type[msgspec.Struct] | None = None
    asks: Any = None  # an example of the body
    rules: dict[str, Any] = {}  # what this route asks of the body beyond its struct, in JSON Schema
    parameters: tuple[Parameter, ...] = ()
    answer: msgspec.Struct | dict[str, str]
    redirects: bool = False  # the answer is 307, and says where instead
    or_else: msgspec.Struct | None = None  # the answer to another kind of request
    headers: tuple[str, ...] = ()  # of the answer; web/openapi.py tells what they mean
    headers_at_times: tuple[str, ...] = ()  # those that are not always there
    codes: tuple[str, ...] = ()
    item_codes: tuple[str, ...] = ()  # inside an answer that is 200 as a whole
    asks_queue: bool = True
    also: tuple[int, ...] = ()  # other statuses without a body
    lines: tuple[type[msgspec.Struct], Any, msgspec.Struct] | None = None  # a line sent, and one answered
    leads_to: tuple[str, ...] = ()  # endpoints for which the answer tells the job, and its token


# --- parameters

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    Name,
    "makes the request safe to repeat: another key for each request that is meant as another",
    example="0f8b2c1e-order-4711",
    place="header",
)
LEASE_TOKEN = Parameter("Queue-Lease-Token", str, "the token of the lease; it alone decides, if sent", place="header")
CONSUMERS = tuple(
    Parameter(name, Name, f"who asks, in UTF-8{also}", example="worker-1", place="header")
    for name, also in zip(
        CONSUMER_HEADERS, ("", "; the same as `QUEUE_CONSUMER`", "; the same as `QUEUE_CONSUMER`"), strict=True
    )
)
WAIT = Parameter("wait_seconds", Wait, "how long to wait for the end of the job", 0)
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=PAGE_MAX)], "how many at most", PAGE)
TEXT = Annotated[str, Meta(min_length=1, max_length=200)]
STATES = Annotated[list[JobState], Meta(min_length=1)]
SEARCH = (
    Parameter("state", STATES, "in one of these, separated by commas", example=["dead", "cancelled"]),
    Parameter("type", Name, "of this type"),
    Parameter("consumer", Name, "that this one has, or had last"),
    Parameter("error", TEXT, "whose last failure has this in its type or message"),
    Parameter("since", Moment, "enqueued at this time or later"),
    Parameter("order", Literal["oldest", "newest"], "which come first", "oldest"),
    LIMIT,
    Parameter("cursor", Annotated[int, Meta(ge=0, le=FENCE_MAX)], "where to go on: `next_cursor` of the page before"),
    Parameter("include", Literal["content"], "with `payload` and `result`"),
)

FOLLOW = (
    Parameter("queue", Annotated[str, Meta(pattern=FOLLOWED)], "this one, or all that begin so (`tenant:*`)"),
    Parameter("type", Name, "of this type"),
    Parameter("state", STATES, "that lead to one of these, separated by commas", example=["dead", "cancelled"]),
    Parameter("shape", Literal["jobs", "queues"], "an event for each transition, or which queues have moved", "jobs"),
    Parameter("wait_seconds", Wait, "end after so long; left out, it lasts"),
    Parameter("Last-Event-ID", Annotated[str, Meta(pattern=EVENT_ID)], "go on behind this event", place="header"),
)

OVERVIEW = (
    Parameter("prefix", QueueName, "whose names begin so"),
    Parameter("order", Literal["busiest", "name", "waiting", "failing", "oldest"], "which come first", "busiest"),
    Parameter("limit", Annotated[int, Meta(ge=1, le=GLANCE_PAGE_MAX)], "how many at most", GLANCE_PAGE),
    Parameter("cursor", Annotated[int, Meta(ge=0, le=FENCE_MAX)], "where to go on: `next_cursor` of the page before"),
)

# --- rules, in JSON Schema


def needs(*names: str) -> dict[str, Any]:
    """None of them may be left out, or be null."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}


def one_at_most(*names: str) -> dict[str, Any]:
    """All of them but one are left out, or null."""
    return {"anyOf": [{"properties": {name: {"type": "null"} for name in names if name != kept}} for kept in names]}


def each_needs(*names: str) -> dict[str, Any]:
    """The same as `needs`, of every job."""
    return {"properties": {"jobs": {"items": needs(*names)}}}


NAMED_NEXT = {"properties": {"dequeue": {"anyOf": [{"type": "null"}, needs("queue"), needs("queues")]}}}
"""Where the path names no queue, the dequeue that rides along does."""

TAKEN_BACK = {"anyOf": [needs("token"), {"properties": {"delay_seconds": {"const": 0}, "dequeue": {"type": "null"}}}]}
"""A release without a token says nothing more."""

_CONDITIONS = ("type", "consumer", "error", "since")
BY_TOKEN_OR_CONSUMER = {
    "anyOf": [
        {
            "required": ["jobs"],
            "properties": {
                "jobs": {"type": "array", "items": needs("id", "token")},
                **{name: {"type": "null"} for name in _CONDITIONS},
                "dry_run": {"const": False},
            },
        },
        {
            **needs("consumer"),
            "properties": {"consumer": {"type": "string"}, "jobs": {"type": "null"}, "dequeue": {"type": "null"}},
        },
    ]
}
"""A release of many is by those who hold them, or by an operator."""

_NO_RETRY_NO_PAUSE = {
    "anyOf": [{"properties": {"retry": {"const": True}}}, {"properties": {"retry_after_seconds": {"type": "null"}}}]
}
STRUCT_RULES: dict[str, dict[str, Any]] = {
    "NewJobBody": one_at_most("delay_seconds", "not_before"),
    "DequeueNextBody": one_at_most("queue", "queues"),
    "FailBody": _NO_RETRY_NO_PAUSE,
    "FailOneBody": _NO_RETRY_NO_PAUSE,
}
"""What the methods of a struct check, of those that msgspec's schema of it does not say."""
