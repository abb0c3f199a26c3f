"""What schemathesis is told of this server: how a stream is sent, and which answers only look like mistakes.

It is loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in its own process; test_contract_fuzz.py starts that.
"""

import json
import os
import re
from typing import Any

import msgspec
import schemathesis
from schemathesis import Case, CheckContext, DeserializationContext, HookContext, Response, SerializationContext
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi import checks

from web.streams import ChunkView

CONSUMERS = ("QUEUE_CONSUMER", "Queue-Consumer", "X-Queue-Consumer")
STREAM = "application/x-ndjson"
OPEN = "CONTRACT_OPEN" in os.environ
MEETING = "meeting"  # not the queue of the examples, which an example has paused

UNSAYABLE = {
    r"the path names another (queue|job)": "JSON Schema cannot compare a body with the path of its request",
    r"a job starts at most delay_seconds_max": "it cannot tell how far away a time is",
}
"""Why a request that fits the schemas may be refused, by what the refusal says: all that no schema can tell."""


@schemathesis.hook
def before_load_schema(_context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Forget which tokens are asked for: an open server asks nobody, and has the same document as one that does."""
    if OPEN:
        for methods in raw_schema["paths"].values():
            for operation in methods.values():
                operation["security"] = []


@schemathesis.serializer(STREAM)
def lines(_context: SerializationContext, value: Any) -> bytes:
    """A stream of lines: a text is sent as it is."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.deserializer(STREAM)
def text_of(_context: DeserializationContext, response: Response) -> str:
    """The lines of an answer, as the text that its schema says it is."""
    return response.text


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Mend what makes a request wrong that was meant to be right, and that no schema can rule out."""
    if case.operation.path == "/v1/events" and isinstance(case.query, dict):
        case.query.setdefault("wait_seconds", "0")  # or it would last
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.meta.phase.name == TestPhase.STATEFUL:
        meet(case)
    # Three headers for one thing may not differ.
    for name in [name for name in case.headers or {} if name in CONSUMERS][1:]:
        del case.headers[name]
    # A stream cannot be repeated under a key.
    if case.media_type == STREAM and case.headers:
        case.headers.pop("Idempotency-Key", None)
    # To JSON Schema 7.0 is an integer. Here it is not, since not every reader of JSON takes it for one.
    case.body = whole(case.body)
    # A number in a query has no exponent.
    for name, value in (case.query or {}).items():
        if isinstance(value, float):
            case.query[name] = f"{value:.20f}"


def meet(case: Case[Any]) -> None:
    """Have those who go from one request to the next meet in one queue, or most dequeues would find nothing."""
    body: Any = case.body
    if case.operation.path in {"/v1/queues/{queue}/enqueue", "/v1/queues/{queue}/dequeue"}:
        case.path_parameters["queue"] = MEETING
    if case.operation.path == "/v1/dequeue" and isinstance(body, dict):
        body["queues"] = [MEETING]
    if case.operation.path == "/v1/queues/{queue}/enqueue" and isinstance(body, dict):
        for job in body["jobs"]:  # ready at once
            job.update(delay_seconds=None, not_before=None, unique_key=None)


def whole(value: Any) -> Any:
    """The same value, with whole numbers as integers."""
    match value:
        case dict():
            return {name: whole(part) for name, part in value.items()}
        case list():
            return [whole(part) for part in value]
        case float() if value.is_integer():
            return int(value)
    return value


@schemathesis.check
def what_fits_is_accepted(context: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """A request that fits the schemas is carried out, or refused for how things stand."""
    if response.status_code == 400 and response.content:
        detail = response.json()["detail"]
        if any(re.match(pattern, detail) for pattern in UNSAYABLE):
            return None
    return checks.positive_data_acceptance(context, response, case)


@schemathesis.check
def every_line_fits(_context: CheckContext, response: Response, _case: Case[Any]) -> bool | None:
    """Each line of a stream is one of those that the document describes beside it."""
    if response.headers.get("content-type") == [STREAM]:
        for line in response.text.splitlines():
            msgspec.json.decode(line, type=ChunkView)
    return None


@schemathesis.check
def what_does_not_fit_is_refused(context: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """A request that does not fit is refused; the lines of a stream are refused one by one in an answer that is 200."""
    if case.media_type == STREAM:
        return None
    wrong = (
        [] if case.meta is None else [place for place, part in case.meta.components.items() if part.mode.is_negative]
    )
    if wrong == [ParameterLocation.BODY] and not response.request.body:
        return None  # it was made wrong by leaving it out, where it may be left out
    return checks.negative_data_rejection(context, response, case)
