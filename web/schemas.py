"""What comes in and goes out, decoded strictly and bounded: bodies as structs, headers and query by one parser each."""

import re
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from http import HTTPStatus
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from werkzeug.datastructures import Headers, MultiDict

from queue_actor.commands import IdempotencyKey, JobFilter
from queue_actor.jobs import FINISHED, JobState
from queue_actor.settings import Settings
from queue_actor.tokens import FENCE_MAX
from web.problems import Problem
from web.requests import Request

T = TypeVar("T")

# `\Z` and not `$`, which would let a line feed through at the end.
NO_CONTROLS = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
QUEUE_NAME = r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}\Z"
TYPE_CHARACTERS_MAX = 200
Type = Annotated[str, Meta(min_length=1, max_length=TYPE_CHARACTERS_MAX, pattern=NO_CONTROLS)]
CONSUMER_CHARACTERS_MAX = 200
TEXT_CHARACTERS_MAX = 200
KEY_CHARACTERS_MAX = 200
REPEATED_CHARACTERS_MAX = 200  # of a request in its refusal

# Where in a body msgspec found what it complains of: behind " - at ".
_PLACE = re.compile(r"\A(?:`key` in )?`\$\.?(?P<path>[^`]*)`\Z")
_KEY = re.compile(r"\AObject (?:contains unknown|missing required) field `(?P<key>.*)`\Z", re.DOTALL)
_ID = re.compile(r"\A(0|[1-9][0-9]{0,15})\Z")
_SECONDS = re.compile(r"\A[0-9]{1,10}(\.[0-9]{1,20})?\Z")  # a computed one has 17 digits
_QUEUE = re.compile(QUEUE_NAME)
_CONSUMER = re.compile(NO_CONTROLS)
_ANY = re.compile("")

# nginx and others drop names with underscores, so the classic name has two aliases that pass everywhere.
CONSUMER_HEADERS = ("QUEUE_CONSUMER", "Queue-Consumer", "X-Queue-Consumer")


class SimpleEnqueueBody(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of the classic enqueue. Other keys are ignored, `ID` and `Status` among them."""

    type: Type
    payload: Raw = msgspec.field(default_factory=Raw)


class SimpleJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """The classic job: three keys, the payload if there is one, and how it ended if not by being concluded."""

    ID: int
    Type: str
    Status: Annotated[str, Meta(extra_json_schema={"enum": ["QUEUED", "IN_PROGRESS", "CONCLUDED"]})]
    # Not Raw(): an empty raw value is written, as nothing, which is no JSON.
    Payload: Raw | UnsetType = UNSET
    State: str = ""


_STATUS = {
    JobState.SCHEDULED: "QUEUED",
    JobState.QUEUED: "QUEUED",
    JobState.IN_PROGRESS: "IN_PROGRESS",
    JobState.CONCLUDED: "CONCLUDED",
    JobState.DEAD: "CONCLUDED",
    JobState.CANCELLED: "CONCLUDED",
}


def simple_job(id_: int, type_: str, state: JobState, payload: bytes | None) -> bytes:
    """A job as the classic routes show it."""
    ended_otherwise = state in FINISHED and state is not JobState.CONCLUDED
    shown = SimpleJob(
        id_,
        type_,
        _STATUS[state],
        UNSET if payload is None else Raw(payload),
        state.value if ended_otherwise else "",
    )
    return msgspec.json.encode(shown)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body as a struct.

    Raises:
        Problem: `malformed` if it is not JSON in UTF-8, `invalid` with the field if a value is out of bounds.
    """
    try:
        # The decoder passes over the bytes of a raw value without looking at their encoding.
        body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except UnicodeDecodeError as error:
        raise Problem("malformed", f"the body is not UTF-8 at byte {error.start}", field="body") from error
    except RecursionError as error:
        raise Problem("malformed", "the body is nested too deeply", field="body") from error
    except msgspec.DecodeError as error:
        raise Problem("malformed", f"the body is not JSON: {error}", field="body") from error


def _invalid(message: str) -> Problem:
    detail, _, where = message.rpartition(" - at ")
    place = _PLACE.match(where)
    if place is None:
        detail = message
    # Of a key that is not known, or not there, the place is the object's.
    key = _KEY.match(detail)
    field = ".".join(name for name in (place and place["path"], key and key["key"]) if name)
    return Problem("invalid", detail[:REPEATED_CHARACTERS_MAX], field=field[:REPEATED_CHARACTERS_MAX] or "body")


def new_payload(raw: Raw, settings: Settings, *, field: str) -> bytes | None:
    """A payload, copied so that it does not keep the whole request alive; None if there is none.

    Raises:
        Problem: `too_large`.
    """
    payload = bytes(raw)
    if len(payload) > settings.payload_bytes_max:
        raise Problem(
            "too_large",
            f"{len(payload)} bytes are more than payload_bytes_max, {settings.payload_bytes_max}",
            field=field,
        )
    return payload or None


def job_id(text: str, field: str = "id") -> int:
    """A job's id from a path.

    Raises:
        Problem: `invalid`: it is no plain integer, or no integer that JSON readers keep exact.
    """
    if not _ID.match(text) or int(text) > FENCE_MAX:
        raise Problem("invalid", f"a job's id is an integer from 1 to {FENCE_MAX}", field=field)
    return int(text)


def queue_name(text: str, field: str = "queue") -> str:
    """A queue's name from a path, or what a name may begin with from the query.

    Raises:
        Problem: `invalid`.
    """
    if not _QUEUE.match(text):
        raise Problem(
            "invalid",
            "a queue's name has 1 to 80 of A-Z a-z 0-9 _ . : - and begins with one of A-Z a-z 0-9",
            field=field,
        )
    return text


def refuse_query(request: Request, *known: str) -> None:
    """Refuse query parameters that are not known, or given twice.

    Raises:
        Problem: `invalid`.
    """
    if not request.query_string:
        return
    for name, values in request.args.lists():
        if name not in known:
            raise Problem("invalid", "there is no such query parameter here", field=name[:REPEATED_CHARACTERS_MAX])
        if len(values) > 1:
            raise Problem(
                "invalid", "the query parameter is given more than once", field=name[:REPEATED_CHARACTERS_MAX]
            )


def parameter(query: MultiDict[str, str], name: str) -> str | None:
    """A parameter of the query; None if it is not there.

    Raises:
        Problem: `invalid`: it is there more than once, and which counts would be a guess.
    """
    texts = query.getlist(name)
    if len(texts) > 1:
        raise Problem("invalid", f"{name} stands {len(texts)} times in the query", field=name)
    return texts[0] if texts else None


def wait_seconds(text: str | None, settings: Settings, field: str = "wait") -> float:
    """How long a dequeue waits, from the query.

    Raises:
        Problem: `invalid`: not a number, or more than `wait_seconds_max`.
    """
    if text is None:
        return 0.0
    seconds = float(text) if _SECONDS.match(text) else -1.0
    if not 0 <= seconds <= settings.wait_seconds_max:
        raise Problem(
            "invalid", f"{field} is a number of seconds from 0 to {settings.wait_seconds_max:.12g}", field=field
        )
    return seconds


def empty_status(text: str | None) -> int:
    """The status that the caller wants for an empty answer, from the query.

    Raises:
        Problem: `invalid`: neither 404, the default, nor 204.
    """
    if text not in {None, "204", "404"}:
        raise Problem("invalid", "empty is the status of an empty answer, 204 or 404", field="empty")
    return int(text or HTTPStatus.NOT_FOUND)


def consumer(headers: Headers) -> str | None:
    """The consumer's name, from whichever of the three headers carries it; None if none does.

    Raises:
        Problem: `invalid`: they differ, or the name is too long, is not UTF-8, or has control characters.
    """
    names = {name for header in CONSUMER_HEADERS for name in headers.getlist(header)}
    if not names:
        return None
    if len(names) > 1:
        raise Problem("invalid", f"{' and '.join(CONSUMER_HEADERS)} name different consumers", field="QUEUE_CONSUMER")
    try:
        name = names.pop().encode("latin1").decode()  # the bytes as they came: ASGI servers read them as Latin-1
    except UnicodeDecodeError:
        name = ""
    if not 1 <= len(name) <= CONSUMER_CHARACTERS_MAX or not _CONSUMER.match(name):
        raise Problem(
            "invalid",
            f"a consumer's name has 1 to {CONSUMER_CHARACTERS_MAX} characters in UTF-8 and no control characters",
            field="QUEUE_CONSUMER",
        )
    return name


def idempotency_key(headers: Headers, body: bytes, route: str, who: str | None = None) -> IdempotencyKey | None:
    """The key that makes this request safe to repeat, if it has one: for whoever sent it, on this route.

    Raises:
        Problem: `invalid`: too long, with control characters, or different ones, of which one would be a guess.
    """
    keys = headers.getlist("Idempotency-Key")
    if not keys:
        return None
    key = keys[0]
    if any(other != key for other in keys):
        raise Problem("invalid", "there are different idempotency keys", field="Idempotency-Key")
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not _CONSUMER.match(key):
        raise Problem(
            "invalid",
            f"an idempotency key has 1 to {KEY_CHARACTERS_MAX} characters and no control characters",
            field="Idempotency-Key",
        )
    return IdempotencyKey(f"{who or ''} {route}", key, blake2b(body, digest_size=16).digest())


def limited(text: str | None, default: int, most: int, field: str) -> int:
    """A whole number from 1 to `most`, from the query.

    Raises:
        Problem: `invalid`.
    """
    if text is None:
        return default
    if not _ID.match(text) or not 1 <= int(text) <= most:
        raise Problem("invalid", f"{field} is a whole number from 1 to {most}", field=field)
    return int(text)


def one_of(text: str | None, words: Sequence[str], field: str) -> str:
    """One of some words, from the query; the first if it is not there.

    Raises:
        Problem: `invalid`.
    """
    if text is None:
        return words[0]
    if text not in words:
        raise Problem("invalid", f"{field} is one of {', '.join(word for word in words if word)}", field=field)
    return text


def filter_of_query(query: MultiDict[str, str]) -> JobFilter:
    """Which jobs a search means.

    Raises:
        Problem: `invalid`.
    """
    states = query["state"].split(",") if "state" in query else []
    for state in states:
        one_of(state, list(JobState), "state")
    since = query.get("since")
    return JobFilter(
        frozenset(JobState(state) for state in states),
        _text(query.get("type"), "type", _CONSUMER),
        _text(query.get("consumer"), "consumer", _CONSUMER),
        _text(query.get("error"), "error", _ANY),
        None if since is None else moment(since, "since"),
    )


def _text(text: str | None, field: str, characters: re.Pattern[str]) -> str | None:
    if text is not None and not (1 <= len(text) <= TEXT_CHARACTERS_MAX and characters.match(text)):
        raise Problem("invalid", f"{field} is a text of 1 to {TEXT_CHARACTERS_MAX} plain characters", field=field)
    return text


def moment(text: str, field: str) -> float:
    """A moment by RFC 3339, with its offset, as seconds since the epoch.

    Raises:
        Problem: `invalid`.
    """
    try:
        # In a query a plus stands for a space, unless it is written %2B; no other space can be there.
        at: datetime = msgspec.convert(text.replace(" ", "+"), Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError as error:
        raise Problem("invalid", f"{field} is a time by RFC 3339 with its offset from UTC", field=field) from error
    return at.timestamp()


def body_of(request: Request) -> bytes:
    """The body, as it came; none at all is an empty object."""
    return request.whole or b"{}"


def key_of(request: Request, body: bytes, route: str, who: str | None) -> IdempotencyKey | None:
    """The `idempotency_key` of a request."""
    if b"idempotency-key" not in request.fields:
        return None
    return idempotency_key(request.headers, body, route, who)
