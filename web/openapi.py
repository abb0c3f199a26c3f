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
from web.auth import PUBLIC, RULES, Rule, Where
from web.contract import OPERATIONS, TAGS
from web.fields import FileName, Id, QueueName
from web.operations import (
    AT_TIMES,
    HEADERS,
    OF_A_LIMITED_TOKEN,
    OF_A_PATH,
    OF_A_TOKEN,
    OF_ANY,
    OF_EVERY_ANSWER,
    OF_THE_QUEUE,
    OF_V1,
    STRUCT_RULES,
    SUFFIX,
    WHEN,
    File,
    Operation,
    Parameter,
)
from web.problems import CONTENT_TYPE, PROBLEMS, ProblemDocument
from web.views import ResultView

JSON, NDJSON, EVENTS = "application/json", "application/x-ndjson", "text/event-stream"
SCHEMA_REF = "#/components/schemas/{name}"

PATH_KINDS = {
    "queue": (QueueName, "the name of the queue", "images"),
    "id": (Id, "the id of the job", 1),
    "file": (FileName, "the name of a file", "app.js"),
}
"""The variables of paths."""

SECURITY_SCHEMES: dict[str, Any] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access token, of a server that has a file of them. Beside it each operation names the scope "
        "that it needs, and its description the queue. `admin` is all scopes. An open server asks nobody for a token, "
        "and has the same document.",
    }
}
"""How a client says who it is (RFC 6750); `security_of` says which routes ask for it."""

WHERE: dict[Where, str] = {
    "default": "on the queue `default`",
    "path": "on the queue in the path",
    "body": "on each queue that the body names",
    "any": "on any queue, and is shown those on which it has it",
    "every": "on all queues, `*`",
}
"""On which queues a token needs its scope."""


class Route(NamedTuple):
    """What the application serves."""

    endpoint: str
    path: str  # with its variables in braces
    methods: tuple[str, ...]


def codes_of(operation: Operation, route: Route) -> tuple[str, ...]:
    """The codes that a route may answer with."""
    codes = (
        *operation.codes,
        *(OF_V1 if route.path.startswith("/v1") else ()),
        *(OF_A_PATH if "{" in route.path else ()),
        *(OF_A_TOKEN if RULES[route.endpoint] is not PUBLIC else ()),
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
            "do not know by its status. Bounds that are settings are those of this server. A server with access tokens "
            "asks for one, `Authorization: Bearer qa_…`, wherever a scope is named below; an open one asks nobody.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": writer.schemas,
            "responses": writer.responses,
            "headers": {
                f"{name}{at_times}": {"schema": schema, "description": about, "required": not at_times}
                for name, (schema, about) in HEADERS.items()
                for at_times in ("", SUFFIX)
                if name in AT_TIMES or not at_times
            },
            "examples": {code: {"summary": WHEN[code], "value": _problem(code)} for code in PROBLEMS},
            "securitySchemes": SECURITY_SCHEMES,
        },
        "x-problems": {code: {**asdict(kind), "when": WHEN[code]} for code, kind in PROBLEMS.items()},
    }


def security_of(rule: Rule | None) -> list[dict[str, list[str]]]:
    """What a route asks for: a token with one of some scopes, which OpenAPI 3.1 has as roles; or nothing."""
    return [] if rule is PUBLIC else [{"token": [scope]} for scope in rule.scopes]


def _needed(rule: Rule | None) -> str:
    """The same as a sentence."""
    if rule is PUBLIC:
        return "It needs no token."
    scopes = " or ".join(f"`{scope}`" for scope in rule.scopes)
    return f"Its token needs the scope {scopes} {WHERE[rule.where]}."


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
        head, rule = method == "HEAD", RULES[route.endpoint]
        about = "As GET, without the body." if head else operation.about
        written: dict[str, Any] = {
            "operationId": operation_id(route, method),
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": f"{about} {_needed(rule)}".strip(),
            "security": security_of(rule),
            "parameters": [*self._variables(route.path), *map(self._parameter, operation.parameters)],
            "responses": self._responses(operation, route, head=head),
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

    def _responses(self, operation: Operation, route: Route, *, head: bool) -> dict[str, Any]:
        by_status: dict[int, list[str]] = defaultdict(list)
        for code in dict.fromkeys(codes_of(operation, route)):
            by_status[PROBLEMS[code].status].append(code)
        rates = () if RULES[route.endpoint] is PUBLIC else OF_A_LIMITED_TOKEN
        answers = {"307" if operation.redirects else "200": self._answer(operation, rates, head=head)}
        answers |= {str(status): _bare(status, operation, rates) for status in operation.also}
        answers |= {str(status): self._refusal(status, codes, rates, head=head) for status, codes in by_status.items()}
        return dict(sorted(answers.items()))

    def _answer(self, operation: Operation, rates: tuple[str, ...], *, head: bool) -> dict[str, Any]:
        answer = operation.answer
        match answer:
            case File(content_type="", example=_):
                content = {}
            case File(content_type, example, otherwise):
                # Of events, tools hold each to the schema, which is no text then.
                text: dict[str, Any] = {} if content_type in {JSON, EVENTS} else {"type": "string"}
                shown = {"schema": text} | ({"example": example} if example else {})
                content = dict.fromkeys((content_type, *otherwise), shown)
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
            "headers": _headers(operation.headers, (*rates, *operation.headers_at_times)),
            "content": {} if head else content,
            "x-item-codes": list(operation.item_codes),
            "links": {} if head else dict(_links(operation)),
        }
        return {key: value for key, value in written.items() if value}

    def _refusal(self, status: int, codes: Sequence[str], rates: tuple[str, ...], *, head: bool) -> dict[str, str]:
        """A reference to the answer with one of these codes."""
        # Who shows no valid token has no rate; it is the one code of its status.
        at_times = () if "unauthorized" in codes else rates
        name = f"{'head.' if head else ''}{'limited.' if at_times else ''}{status}.{'.'.join(sorted(codes))}"
        if name not in self.responses:
            names = ["Cache-Control"]
            names += ["WWW-Authenticate"] if "unauthorized" in codes else []
            at_times += ("WWW-Authenticate",) if "forbidden" in codes else ()
            names += ["Retry-After"] if any(PROBLEMS[code].retry_after_seconds for code in codes) else []
            names += ["Allow"] if "method_not_allowed" in codes else []
            schema: dict[str, Any] = {"$ref": SCHEMA_REF.format(name="ProblemDocument")}
            schema |= {"properties": {"code": {"enum": sorted(codes)}, "status": {"const": status}}}
            examples = {code: {"$ref": f"#/components/examples/{code}"} for code in sorted(codes)}
            self.responses[name] = {
                "description": f"{HTTPStatus(status).phrase}: "
                + "; ".join(f"`{code}`: {WHEN[code]}" for code in codes),
                "headers": _headers(names, at_times),
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


def _bare(status: int, operation: Operation, rates: Sequence[str]) -> dict[str, Any]:
    names = [name for name in operation.headers if name in {"Cache-Control", "ETag"}]
    return {"description": HTTPStatus(status).phrase, "headers": _headers(names, rates)}


def _headers(always: Iterable[str], at_times: Iterable[str]) -> dict[str, Any]:
    """Those of every answer, and these."""
    named = {name: name for name in (*OF_EVERY_ANSWER, *always)} | {name: f"{name}{SUFFIX}" for name in at_times}
    return {name: {"$ref": f"#/components/headers/{component}"} for name, component in named.items()}


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
