"""`/openapi.json` and `/docs`: the document is valid, says what web/README.md says, and shows what the routes take."""

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import msgspec
import openapi_spec_validator
import pytest
from msgspec.structs import replace

from queue_actor.settings import Settings
from tests.contract import document, v1
from tests.contract.described import Described
from tests.contract.document import CONTRACT, Example
from tests.contract.stack import Server, serving
from web.auth import RULES
from web.contract import OPERATIONS, TAGS
from web.docs import POLICY, routes_of
from web.openapi import JSON, Route, codes_of
from web.openapi import document as make_document
from web.operations import HEADERS, OF_A_TOKEN, OF_THE_QUEUE, WHEN, Operation
from web.page import page
from web.problems import PROBLEMS

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def server() -> Any:
    async with serving(Settings()) as server:
        yield server


@pytest.fixture
def described(server: Server) -> Described:
    return Described(routes_of(server.app.url_map), Settings())


async def test_the_document_is_openapi(described: Described) -> None:
    assert described.document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(described.document)


async def test_every_route_and_method_has_an_operation_and_every_row_of_the_table_a_route(described: Described) -> None:
    served = {(method, route.path) for route in described.routes for method in route.methods}

    assert {(method, path) for method, path, _ in described.operations()} == served
    assert {route.endpoint for route in described.routes} == set(OPERATIONS)
    ids = [operation["operationId"] for _, _, operation in described.operations()]
    assert len(set(ids)) == len(ids)


async def test_a_route_that_is_not_described_is_noticed(described: Described) -> None:
    with pytest.raises(KeyError, match=r"does not describe test\.new"):
        make_document([*described.routes, Route("test.new", "/new", ("GET",))], Settings())


async def test_the_parameters_of_a_path_are_those_that_it_names(described: Described) -> None:
    for _, path, operation in described.operations():
        named = [part["name"] for part in operation.get("parameters", []) if part["in"] == "path"]
        assert sorted(named) == sorted(re.findall(r"{(\w+)}", path))


# --- codes


def told(method: str, path: str) -> set[str]:
    """The codes that web/README.md lists for a route."""
    found = set()
    for section in document.sections(CONTRACT):
        general = section.title == "Errors" or (section.title == "Conventions" and path.startswith("/v1"))
        if general or (method, path) in section.routes:
            found |= section.codes
        if section.title == "And the next, please" and path.rsplit("/", 1)[1] in {"conclude", "fail", "release"}:
            found |= section.codes if path.startswith("/v1") else set()
    return found


IMPOSSIBLE: dict[str, Callable[[Route, Operation], bool]] = {
    "not_found": lambda route, _: "{" not in route.path,  # a path without variables is there
    "unsupported_media_type": lambda _, operation: operation.lines is not None,  # it is supported here
    **dict.fromkeys(OF_A_TOKEN, lambda route, _: RULES[route.endpoint] is None),
    "run_too_long": lambda route, _: "extend" not in route.path,  # nothing else makes a run longer
    **dict.fromkeys(OF_THE_QUEUE, lambda _, operation: not operation.asks_queue),
}
"""What web/README.md says any route may answer, and some cannot."""


async def test_the_codes_of_a_route_are_those_of_the_contract(described: Described) -> None:
    for route in described.routes:
        operation = OPERATIONS[route.endpoint]
        codes = {*codes_of(operation, route), *operation.item_codes}
        for method in set(route.methods) - {"HEAD"}:
            wanted = told(method, route.path)
            impossible = {code for code, is_so in IMPOSSIBLE.items() if is_so(route, operation)} - codes
            assert sorted(codes) == sorted(wanted - impossible), (method, route.path)


async def test_every_code_is_told_with_its_status_and_what_to_do(described: Described) -> None:
    seen: dict[str, str] = {}
    for _, _, operation in described.operations():
        for status, answer in described.answers(operation):
            for code, advice in answer.get("x-retryable", {}).items():
                assert int(status) == PROBLEMS[code].status
                seen[code] = advice
    assert seen == {code: kind.retryable for code, kind in PROBLEMS.items()}
    assert set(WHEN) == set(PROBLEMS)


async def test_a_status_that_asks_to_come_back_says_when(described: Described) -> None:
    for _, _, operation in described.operations():
        for status, answer in described.answers(operation):
            late = [PROBLEMS[code].retry_after_seconds is not None for code in answer.get("x-retryable", {})]
            assert all(late) or not any(late), status
            assert ("Retry-After" in answer["headers"]) is any(late)
            for name, reference in answer["headers"].items():
                assert name in HEADERS
                assert re.fullmatch(rf"#/components/headers/{name}(\.at-times)?", reference["$ref"])
                assert reference["$ref"].rsplit("/", 1)[1] in described.document["components"]["headers"]


# --- tokens


async def test_an_operation_asks_for_the_scope_that_the_contract_has_it_under(described: Described) -> None:
    asked = {
        (method, path): {scope for way in operation["security"] for scope in way["token"]}
        for method, path, operation in described.operations()
        if method != "HEAD"
    }
    told = {
        route: set(re.findall(r"`(\w+)`", scope))
        for scope, listed in document.table(CONTRACT, "scopes")
        for route in re.findall(r"`([A-Z]+) (/\S*)`", listed)
    }

    assert asked == told
    assert described.document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


async def test_only_who_is_asked_for_a_token_can_be_refused_or_limited_for_it(described: Described) -> None:
    for method, path, operation in described.operations():
        answers = dict(described.answers(operation))
        codes = {code for answer in answers.values() for code in answer.get("x-retryable", {})}
        where = (method, path)
        assert (codes & {*OF_A_TOKEN} == {*OF_A_TOKEN}) is bool(operation["security"]), where
        assert ("401" in answers) is bool(operation["security"]), where
        for status, answer in answers.items():
            assert ("RateLimit" in answer["headers"]) is (bool(operation["security"]) and status != "401"), where
            assert ("WWW-Authenticate" in answer["headers"]) is bool(
                {"unauthorized", "forbidden"} & answer.get("x-retryable", {}).keys()
            ), where
        assert ("`*`" in operation["description"]) is (path in {"/metrics", "/v1/statistics", "/v1/backup"}), where


# --- examples


async def test_the_examples_fit_their_schemas(described: Described) -> None:
    examples = 0
    for _, path, operation in described.operations():
        contents = list(operation.get("requestBody", {}).get("content", {}).items())
        for _, answer in described.answers(operation):
            contents += answer.get("content", {}).items()
        for content_type, content in contents:
            if "example" in content:
                examples += 1
                assert described.errors(content["schema"], content["example"]) == [], path
                if "x-line-schema" in content:
                    for line in content["example"].splitlines():
                        assert described.errors(content["x-line-schema"], json.loads(line)) == []
            for example in content.get("examples", {}).values():
                value = described.document["components"]["examples"][example["$ref"].rsplit("/", 1)[1]]["value"]
                examples += 1
                assert described.errors(content["schema"], value) == [], (path, content_type)
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                assert described.errors(parameter["schema"], parameter["example"]) == []
    assert examples > 500


async def test_every_route_with_a_body_shows_one_and_an_answer(described: Described) -> None:
    for method, path, operation in described.operations():
        if "requestBody" in operation:
            assert all("example" in content for content in operation["requestBody"]["content"].values())
        if method != "HEAD" and path not in {"/", "/openapi.json", "/v1/backup"}:
            assert all("example" in content for content in operation["responses"]["200"]["content"].values()), path


def filled_in(value: Any) -> Any:
    """An example of web/README.md with something in the place of each `…`."""
    if isinstance(value, list):
        return [filled_in(part) for part in value if part != "…"]
    if isinstance(value, dict):
        return {
            name: 7 if (name, part) == ("fence", "…") else filled_in(part)
            for name, part in value.items()
            if name != "…"
        }
    return value.replace("…", "123") if isinstance(value, str) else value


def operation_of(described: Described, example: Example) -> dict[str, Any]:
    path = example.target.partition("?")[0]
    for method, template, operation in described.operations():
        if method == example.method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            return operation
    raise AssertionError(path)


async def test_the_examples_of_the_contract_fit_the_schemas(described: Described) -> None:
    """What is left out of an answer there (`…`) may be missing; all that is shown has to fit."""
    for example in document.examples(CONTRACT):
        operation = operation_of(described, example)
        status = str(example.answer.get("status", 200))
        answer = dict(described.answers(operation))[status]
        content = answer["content"][JSON if status == "200" else "application/problem+json"]
        assert described.errors(content["schema"], filled_in(example.answer), partial=True) == [], example.line
        if example.body is not None:
            fits = described.errors(operation["requestBody"]["content"][JSON]["schema"], filled_in(example.body)) == []
            assert fits is (example.answer.get("code") != "invalid"), example.line


# --- bounds


async def test_bounds_that_are_settings_are_those_of_the_server(described: Described) -> None:
    settings = replace(Settings(), batch_jobs_max=7, wait_seconds_max=3.0, lease_seconds_max=5.0, payload_bytes_max=9)
    other = Described(described.routes, settings)
    schemas = other.document["components"]["schemas"]

    assert schemas["EnqueueBody"]["properties"]["jobs"]["maxItems"] == 7
    assert schemas["DequeueBody"]["properties"]["count"]["maximum"] == 7
    assert schemas["DequeueBody"]["properties"]["lease_seconds"]["anyOf"][0]["maximum"] == 5
    assert "9 bytes" in schemas["NewJobBody"]["properties"]["payload"]["description"]
    waits = [
        parameter["schema"]["maximum"]
        for _, _, operation in other.operations()
        for parameter in operation.get("parameters", [])
        if parameter["name"] in {"wait", "wait_seconds"}
    ]
    assert waits == [3] * 5
    assert "at_most" not in json.dumps(other.document)
    assert r"\\A" not in json.dumps(other.document)


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("NewJobBody", {"type": "a", "delay_seconds": 1, "not_before": None}, True),
        ("NewJobBody", {"type": "a", "delay_seconds": 1, "not_before": "2027-01-15T08:00:00Z"}, False),
        ("NewJobBody", {"type": "a\tb"}, False),
        ("NewJobBody", {"type": "a", "delay_second": 1}, False),
        ("DequeueNextBody", {"queue": "a"}, True),
        ("DequeueNextBody", {"queue": "a", "queues": ["b"]}, False),
        ("FailOneBody", {"retry": False}, True),
        ("FailOneBody", {"retry": False, "retry_after_seconds": 1}, False),
    ],
)
async def test_what_excludes_each_other_is_in_the_schema(
    described: Described, name: str, value: dict[str, Any], fits: bool
) -> None:
    assert (described.errors({"$ref": f"#/components/schemas/{name}"}, value) == []) is fits


# --- served


async def test_the_document_is_served_and_need_not_be_sent_twice(server: Server, described: Described) -> None:
    first = await server.ask("GET", "/openapi.json")
    etag = first.headers["etag"]
    again = await server.ask("GET", "/openapi.json", headers=[("If-None-Match", f'"other", {etag}')])
    other = await server.ask("GET", "/openapi.json", headers=[("If-None-Match", '"other"')])

    assert first.json == described.document
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert other.body == first.body


async def test_the_page_may_show_itself_and_nothing_more(server: Server) -> None:
    answer = await server.ask("GET", "/docs")
    text = answer.body.decode()

    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script|<style|<img|<form|\sstyle=|\son\w+=|https?://(?!127\.0\.0\.1:8080)", text)
    assert re.findall(r'<link rel="stylesheet" href="([^"]*)">', text) == ["/docs/style.css"]
    style = await server.ask("GET", "/docs/style.css")
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    assert "prefers-color-scheme: dark" in style.body.decode()
    assert "http" not in style.body.decode()


async def test_every_link_of_the_page_leads_somewhere_and_every_operation_has_its_place(
    server: Server, described: Described
) -> None:
    text = (await server.ask("GET", "/docs")).body.decode()
    ids = re.findall(r'\sid="([^"]*)"', text)

    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)
    shown = {operation["operationId"] for method, _, operation in described.operations() if method != "HEAD"}
    assert shown | set(TAGS) | {f"problem-{code}" for code in PROBLEMS} <= set(ids)
    assert text.count("curl -s") == len(shown)


def poisoned(value: Any) -> Any:
    """The same document, with markup in every text that is none of OpenAPI's own words."""
    match value:
        case dict():
            return {
                name: part if name in {"$ref", "in", "type", "format"} else poisoned(part)
                for name, part in value.items()
            }
        case list():
            return [poisoned(part) for part in value]
        case str():
            return value + "<script>'\"&"
    return value


async def test_everything_on_the_page_is_escaped(described: Described) -> None:
    tags = described.document["tags"]
    text = page(poisoned(described.document) | {"tags": tags, "paths": poisoned(described.document["paths"])})

    assert "<script" not in text
    assert "<script" in unescape(text)


async def test_an_example_of_the_page_can_be_sent_as_it_stands(server: Server) -> None:
    text = (await server.ask("GET", "/docs")).body.decode()
    commands = [unescape(command) for command in re.findall(r"<code>(curl .*?)</code>", text, re.DOTALL)]
    for command in commands:
        path = re.search(r"http://127\.0\.0\.1:8080(\S*)", command)
        body = re.search(r"-d '(.*)'$", command, re.DOTALL)
        method = re.search(r"-X (\w+)", command)
        assert path is not None, command
        asked = method[1] if method else "POST" if body else "GET"
        target = path[1].rstrip("'")
        if " -N " in command:  # it would last
            target += "?wait_seconds=0"
        answer = await server.ask(asked, target, body[1].encode() if body else b"")
        if answer.status >= 400:
            v1.check_codes(asked, path[1], answer)
            assert answer.json["code"] not in {"invalid", "malformed", "not_found"}, command
    assert len(commands) > 40
    assert msgspec.json.decode((await server.ask("GET", "/healthz")).body) == {"status": "alive"}
