"""What schemathesis is told of this server: how a stream is sent, and which answers only look like mistakes.

It is loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in its own process; test_contract_fuzz.py starts that.
"""

import json
import re
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response, SerializationContext
from schemathesis.specs.openapi import checks

CONSUMERS = ("QUEUE_CONSUMER", "Queue-Consumer", "X-Queue-Consumer")
STREAM = "application/x-ndjson"

UNSAYABLE = {
    r"the path names another (queue|job)": "JSON Schema cannot compare a body with the path of its request",
}
"""Why a request that fits the schemas may be refused, by what the refusal says: all that no schema can tell."""


@schemathesis.serializer(STREAM)
def lines(_context: SerializationContext, value: Any) -> bytes:
    """A stream of lines: a text is sent as it is."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Mend what makes a request wrong that was meant to be right, and that no schema can rule out."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
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
def what_does_not_fit_is_refused(context: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """A request that does not fit is refused; the lines of a stream are refused one by one in an answer that is 200."""
    if case.media_type == STREAM:
        return None
    return checks.negative_data_rejection(context, response, case)
