"""What comes in and goes out, decoded strictly and bounded: bodies as structs, headers and query by one parser each."""

import re
from http import HTTPStatus
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from werkzeug.datastructures import Headers, MultiDict

from queue_actor.jobs import FINISHED, Job, JobState
from queue_actor.settings import Settings
from queue_actor.tokens import FENCE_MAX
from web.problems import Problem

T = TypeVar("T")

# `\Z` and not `$`, which would let a line feed through at the end.
_NO_CONTROLS = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
Type = Annotated[str, Meta(min_length=1, max_length=200, pattern=_NO_CONTROLS)]
CONSUMER_CHARACTERS_MAX = 200
TOKEN_CHARACTERS_MAX = 200

_PATH = re.compile(r" - at `\$\.?(.*)`\Z")
_ID = re.compile(r"\A(0|[1-9][0-9]{0,15})\Z")
_SECONDS = re.compile(r"\A[0-9]{1,10}(\.[0-9]{1,9})?\Z")
_CONSUMER = re.compile(_NO_CONTROLS)

# nginx and others drop names with underscores, so the classic name has two aliases that pass everywhere.
CONSUMER_HEADERS = ("QUEUE_CONSUMER", "Queue-Consumer", "X-Queue-Consumer")


class EnqueueBody(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of the classic enqueue. Other keys are ignored, `ID` and `Status` among them."""

    type: Type
    payload: Raw = Raw()


class SimpleJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """The classic job: three keys, the payload if there is one, and how it ended if not by being concluded."""

    ID: int
    Type: str
    Status: str
    # Not Raw(): an empty raw value is written, as nothing, which is no JSON.
    Payload: Raw | UnsetType = UNSET
    State: str = ""


_STATUS = {
    JobState.SCHEDULED: "QUEUED",
    JobState.QUEUED: "QUEUED",
    JobState.IN_PROGRESS: "IN_PROGRESS",
    JobState.CONCLUDED: "CONCLUDED",
    JobState.CANCELLED: "CONCLUDED",
}


def simple_job(job: Job) -> bytes:
    """A job as the classic routes show it."""
    ended_otherwise = job.state in FINISHED and job.state is not JobState.CONCLUDED
    shown = SimpleJob(
        job.id,
        job.type,
        _STATUS[job.state],
        UNSET if job.payload is None else Raw(job.payload),
        job.state.value if ended_otherwise else "",
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
        message = str(error)
        where = _PATH.search(message)
        missing = re.search(r"missing required field `(.*?)`", message)
        names = [match[1] for match in (where, missing) if match]
        raise Problem("invalid", _PATH.sub("", message), field=".".join(names) or "body") from error
    except UnicodeDecodeError as error:
        raise Problem("malformed", f"the body is not UTF-8 at byte {error.start}", field="body") from error
    except RecursionError as error:
        raise Problem("malformed", "the body is nested too deeply", field="body") from error
    except msgspec.DecodeError as error:
        raise Problem("malformed", f"the body is not JSON: {error}", field="body") from error


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


def job_id(text: str) -> int:
    """A job's id from a path.

    Raises:
        Problem: `invalid`: it is no plain integer, or no integer that JSON readers keep exact.
    """
    if not _ID.match(text) or int(text) > FENCE_MAX:
        raise Problem("invalid", f"a job's id is an integer from 1 to {FENCE_MAX}", field="id")
    return int(text)


def parameter(query: MultiDict[str, str], name: str) -> str | None:
    """A parameter of the query; None if it is not there.

    Raises:
        Problem: `invalid`: it is there more than once, and which counts would be a guess.
    """
    texts = query.getlist(name)
    if len(texts) > 1:
        raise Problem("invalid", f"{name} stands {len(texts)} times in the query", field=name)
    return texts[0] if texts else None


def wait_seconds(text: str | None, settings: Settings) -> float:
    """How long a dequeue waits, from the query.

    Raises:
        Problem: `invalid`: not a number, or more than `wait_seconds_max`.
    """
    if text is None:
        return 0.0
    seconds = float(text) if _SECONDS.match(text) else -1.0
    if not 0 <= seconds <= settings.wait_seconds_max:
        raise Problem("invalid", f"wait is a number of seconds from 0 to {settings.wait_seconds_max:g}", field="wait")
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
