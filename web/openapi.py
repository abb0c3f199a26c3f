"""The contract as OpenAPI 3.1, made of web/contract.py and of the structs that the routes run on.

msgspec makes the schemas, since it also decodes and encodes: a library that describes handlers would want to own them.
`document` is pure. Its result is rendered once, when it is first asked for (web/docs.py), and no other request pays.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import asdict

from queue_actor.settings import Settings
from web.contract import OPERATIONS, TAGS
from web.fields import Id, QueueName
from web.operations import (
    OF_A_PATH,
    OF_ANY,
    OF_THE_QUEUE,
    OF_V1,
    STRUCT_RULES,
    WHEN,
    File,
    Operation,
    Parameter,
)
from web.problems import CONTENT_TYPE, PROBLEMS, ProblemDocument
from web.views import ResultView

JSON, NDJSON = "application/json", "application/x-ndjson"
SCHEMA_REF = "#/components/schemas/{name}"

PATH_KINDS = {"queue": (QueueName, "the name of the queue", "images"), "id": (Id, "the id of the job", 1)}
"""The variables of paths."""

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
    "Allow": ({"type": "string"}, "the methods of this path"),
    "Cache-Control": ({"type": "string"}, "whether the answer may be kept"),
    "Content-Length": ({"type": "integer", "minimum": 0}, "how long the file is"),
    "Content-Disposition": ({"type": "string"}, "a name for the file"),
    "Content-Security-Policy": ({"type": "string"}, "what the page may do: show itself"),
    "ETag": ({"type": "string"}, "names this version: send it as If-None-Match"),
}
"""Headers of answers. Where one is named, it is always there."""

OF_EVERY_ANSWER = ("Queue-Instance", "X-Request-Id")


class Route(NamedTuple):
    """What the application serves."""

    endpoint: str
    path: str  # with its variables in braces
    methods: tuple[str, ...]


def codes_of(operation: Operation, path: str) -> tuple[str, ...]:
    """The codes that a route may answer with."""
    codes = (
        *operation.codes,
        *(OF_V1 if path.startswith("/v1") else ()),
        *(OF_A_PATH if "{" in path else ()),
        *(OF_THE_QUEUE if operation.asks_queue else ()),
        *OF_ANY,
    )
    # One route takes what any other refuses.
    return tuple(code for code in codes if operation.lines is None or code != "unsupported_media_type")


def document(routes: Iterable[Route], settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of these routes, with the bounds that these settings give.

    Raises:
        KeyError: There is a route that web/contract.py does not describe.
    """
    by_endpoint: dict[str, list[Route]] = defaultdict(list)
    for route in routes:
        by_endpoint[route.endpoint].append(route)
    undescribed = by_endpoint.keys() - OPERATIONS.keys()
    if undescribed:
        raise KeyError(f"web/contract.py does not describe {', '.join(sorted(undescribed))}")
    writer = Writer(settings)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for endpoint, operation in OPERATIONS.items():
        for route in by_endpoint.get(endpoint, []):
            for method in route.methods:
                paths[route.path][method.lower()] = writer.operation(operation, route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "queue-actor",
            "version": "1",
            "summary": "A job queue over HTTP.",
            "description": "Clients ignore fields and header fields that they do not know, and treat a code that they "
            "do not know by its status. Bounds that are settings are those of this server.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": writer.schemas,
            "responses": writer.responses,
            "headers": {
                name: {"schema": schema, "description": about, "required": True}
                for name, (schema, about) in HEADERS.items()
            },
            "examples": {code: {"summary": WHEN[code], "value": _problem(code)} for code in PROBLEMS},
            "securitySchemes": SECURITY_SCHEMES,
        },
        "x-problems": {code: {**asdict(kind), "when": WHEN[code]} for code, kind in PROBLEMS.items()},
    }


SECURITY_SCHEMES: dict[str, Any] = {}
"""How a client says who it is: whoever adds a scheme adds to `security_of` which routes ask for it."""


def security_of(_operation: Operation) -> list[dict[str, list[str]]]:
    """What a route asks for: nothing."""
    return []


class Writer:
    """Writes operations; what many of them share is collected in `schemas` and `responses`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.responses: dict[str, Any] = {}
        kinds = list(_kinds())
        written, components = msgspec.json.schema_components(kinds, ref_template=SCHEMA_REF)
        self._by_kind = {id(kind): self._plain(schema) for kind, schema in zip(kinds, written, strict=True)}
        self.schemas = {
            name: self._plain(schema) | STRUCT_RULES.get(name, {}) for name, schema in sorted(components.items())
        }

    def _plain(self, schema: Any) -> Any:
        """A schema of msgspec's as others read it: bounds that are settings in figures, patterns as ECMAScript has."""
        if isinstance(schema, list):
            return [self._plain(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        plain = {key: self._plain(value) for key, value in schema.items() if key != "at_most"}
        if "pattern" in plain and isinstance(plain["pattern"], str):
            plain["pattern"] = plain["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
        setting = schema.get("at_most")
        if isinstance(setting, str):
            most = getattr(self._settings, setting)
            match plain.get("type"):
                case "array":
                    plain["maxItems"] = most
                case "integer" | "number":
                    plain["maximum"] = most
                case _:
                    plain["description"] = f"any JSON of up to {most} bytes (`{setting}`)"
        return plain

    def operation(self, operation: Operation, route: Route, method: str) -> dict[str, Any]:
        """A route under one of its methods."""
        head = method == "HEAD"
        written: dict[str, Any] = {
            "operationId": operation_id(route, method),
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": "As GET, without the body." if head else operation.about,
            "security": security_of(operation),
            "parameters": [*self._variables(route.path), *map(self._parameter, operation.parameters)],
            "responses": self._responses(operation, route.path, head=head),
        }
        if operation.body is not None:
            written["requestBody"] = self._request_body(operation, operation.body)
        return {key: value for key, value in written.items() if value or key == "security"}

    def _variables(self, path: str) -> Iterator[dict[str, Any]]:
        for name, (kind, about, example) in PATH_KINDS.items():
            if f"{{{name}}}" in path:
                schema = self._by_kind[id(kind)]
                yield {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": about,
                    "schema": schema,
                    "example": example,
                }

    def _parameter(self, parameter: Parameter) -> dict[str, Any]:
        schema = self._by_kind[id(parameter.kind)]
        if parameter.default is not None:
            schema = schema | {"default": parameter.default}
        written = {"name": parameter.name, "in": parameter.place, "description": parameter.about, "schema": schema}
        if parameter.example is not None:
            written["example"] = parameter.example
        if schema.get("type") == "array":
            written |= {"style": "form", "explode": False}
        return written

    def _request_body(self, operation: Operation, body: type[msgspec.Struct]) -> dict[str, Any]:
        schema = self._by_kind[id(body)] | operation.rules
        content = {JSON: {"schema": schema, "example": operation.asks}}
        if operation.lines is not None:
            line, example, _ = operation.lines
            content[NDJSON] = _lines(self._by_kind[id(line)], example)
        needed = "required" in operation.rules or "anyOf" in operation.rules
        needed = needed or any(field.required for field in msgspec.structs.fields(body)) or "jobs" in operation.asks
        return {"required": needed, "content": content}

    def _responses(self, operation: Operation, path: str, *, head: bool) -> dict[str, Any]:
        by_status: dict[int, list[str]] = defaultdict(list)
        for code in dict.fromkeys(codes_of(operation, path)):
            by_status[PROBLEMS[code].status].append(code)
        answers = {"200": self._answer(operation, head=head)}
        answers |= {str(status): _bare(status, operation) for status in operation.also}
        answers |= {str(status): self._refusal(status, codes, head=head) for status, codes in by_status.items()}
        return dict(sorted(answers.items()))

    def _answer(self, operation: Operation, *, head: bool) -> dict[str, Any]:
        answer = operation.answer
        match answer:
            case File(content_type, example):
                text: dict[str, Any] = {} if content_type == JSON else {"type": "string"}
                content = {content_type: {"schema": text} | ({"example": example} if example else {})}
            case dict():
                schema: dict[str, Any] = {
                    "type": "object",
                    "properties": {"status": {"const": answer["status"]}},
                    "required": ["status"],
                }
                content = {JSON: {"schema": schema, "example": answer}}
            case _:
                schema = self._by_kind[id(type(answer))]
                if operation.or_else is not None:
                    schema = {"anyOf": [schema, self._by_kind[id(type(operation.or_else))]]}
                content = {JSON: {"schema": schema, "example": plain(answer)}}
        if operation.lines is not None:
            _, _, line = operation.lines
            content[NDJSON] = _lines(self._by_kind[id(type(line))], plain(line))
        written: dict[str, Any] = {
            "description": operation.summary,
            "headers": _headers(*OF_EVERY_ANSWER, *operation.headers),
            "content": {} if head else content,
            "x-item-codes": list(operation.item_codes),
            "links": {} if head else dict(_links(operation)),
        }
        return {key: value for key, value in written.items() if value}

    def _refusal(self, status: int, codes: Sequence[str], *, head: bool) -> dict[str, str]:
        """A reference to the answer with one of these codes."""
        name = f"{'head.' if head else ''}{status}.{'.'.join(sorted(codes))}"
        if name not in self.responses:
            names = [*OF_EVERY_ANSWER, "Cache-Control"]
            names += ["Retry-After"] if any(PROBLEMS[code].retry_after_seconds for code in codes) else []
            names += ["Allow"] if "method_not_allowed" in codes else []
            schema: dict[str, Any] = {"$ref": SCHEMA_REF.format(name="ProblemDocument")}
            schema |= {"properties": {"code": {"enum": sorted(codes)}, "status": {"const": status}}}
            examples = {code: {"$ref": f"#/components/examples/{code}"} for code in sorted(codes)}
            self.responses[name] = {
                "description": f"{HTTPStatus(status).phrase}: "
                + "; ".join(f"`{code}`: {WHEN[code]}" for code in codes),
                "headers": _headers(*names),
                **({} if head else {"content": {CONTENT_TYPE: {"schema": schema, "examples": examples}}}),
                "x-retryable": {code: PROBLEMS[code].retryable for code in sorted(codes)},
            }
        return {"$ref": f"#/components/responses/{name}"}


def operation_id(route: Route, method: str) -> str:
    """The name of a route under one of its methods; the first of them has the plain one."""
    plain_id = route.endpoint.replace(".", "_")
    return plain_id if method == route.methods[0] else f"{plain_id}_{method.lower()}"


def _kinds() -> Iterator[Any]:
    """All types that are described."""
    yield ProblemDocument
    yield from (kind for kind, _, _ in PATH_KINDS.values())
    for operation in OPERATIONS.values():
        yield from (parameter.kind for parameter in operation.parameters)
        if operation.body is not None:
            yield operation.body
        if isinstance(operation.answer, msgspec.Struct) and not isinstance(operation.answer, File):
            yield type(operation.answer)
        if operation.or_else is not None:
            yield type(operation.or_else)
        if operation.lines is not None:
            yield operation.lines[0]
            yield type(operation.lines[2])


def plain(answer: msgspec.Struct) -> Any:
    """An answer as its reader has it."""
    return msgspec.json.decode(msgspec.json.encode(answer))


def _lines(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """A stream of lines: OpenAPI 3.1 has no words for the single one, so its schema stands beside."""
    text = msgspec.json.encode(example).decode() + "\n"
    return {"schema": {"type": "string"}, "example": text, "x-line-schema": schema}


def _bare(status: int, operation: Operation) -> dict[str, Any]:
    names = [name for name in operation.headers if name in {"Cache-Control", "ETag"}]
    return {"description": HTTPStatus(status).phrase, "headers": _headers(*OF_EVERY_ANSWER, *names)}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _links(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where an answer leads: which routes take the job that it tells of."""
    for endpoint in operation.leads_to:
        name = endpoint.replace(".", "_")
        link: dict[str, Any] = {"operationId": name}
        if operation.tag == "classic":
            link["parameters"] = {"path.id": "$response.body#/ID"}
            if endpoint == "simple.conclude":
                link["parameters"]["header.Queue-Lease-Token"] = "$response.header.Queue-Lease-Token"
        elif operation.tag == "producers":
            link["parameters"] = {"path.queue": "$request.path.queue"}
            if endpoint != "jobs.dequeue":
                link["parameters"]["path.id"] = "$response.body#/jobs/0/id"
        elif isinstance(operation.answer, ResultView):
            link["parameters"] = {"path.queue": "$response.body#/queue", "path.id": "$response.body#/id"}
        else:
            link["parameters"] = {"path.queue": "$response.body#/jobs/0/queue", "path.id": "$response.body#/jobs/0/id"}
            link["requestBody"] = {"token": "$response.body#/jobs/0/lease/token"}
        yield name, link


def _problem(code: str) -> dict[str, Any]:
    kind = PROBLEMS[code]
    title = HTTPStatus(kind.status).phrase
    return plain(ProblemDocument("about:blank", title, kind.status, code, WHEN[code], kind.retryable))  # type: ignore[no-any-return] # an object
