"""Every route, with every kind of token: who is let in.

What is expected stands here once more, by hand and apart from the table in the code.
"""

import re
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from queue_actor.settings import Settings
from tests.contract import v1
from tests.contract.stack import Server, serving
from tests.contract.tokens import Tokens, bearer, made_token
from tests.fakes import FakeClock

pytestmark = pytest.mark.virtual_time

SCOPES = ("produce", "consume", "read", "operate", "admin")
CLAIM = {"queue": "q", "id": 1, "token": "x"}
MANY: dict[str, Any] = {"jobs": [{"id": 1, "token": "x"}]}
ACROSS: dict[str, Any] = {"jobs": [CLAIM]}


class Row(NamedTuple):
    """What a route needs."""

    methods: str
    path: str
    scope: str | None  # None: no token at all
    on: str = "q"  # `*`: only who may do it on all queues
    body: object = None
    query: str = ""


ROWS = [
    Row("POST PUT", "/jobs/enqueue", "produce", on="default", body={"Type": "a"}),
    Row("GET POST", "/jobs/dequeue", "consume", on="default"),
    Row("POST PUT PATCH", "/jobs/{id}/conclude", "consume", on="default"),
    Row("GET HEAD", "/jobs/{id}", "read", on="default"),
    Row("POST", "/v1/queues/{queue}/enqueue", "produce", body={"jobs": [{"type": "a"}]}),
    Row("POST", "/v1/queues/{queue}/dequeue", "consume"),
    Row("POST", "/v1/dequeue", "consume", body={"queues": ["q"]}),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/conclude", "consume", body={"token": "x"}),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/fail", "consume", body={"token": "x"}),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/extend", "consume", body={"token": "x"}),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/release", "consume", body={"token": "x"}),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/release", "operate"),
    Row("POST", "/v1/queues/{queue}/conclude", "consume", body=MANY),
    Row("POST", "/v1/queues/{queue}/fail", "consume", body=MANY),
    Row("POST", "/v1/queues/{queue}/extend", "consume", body=MANY),
    Row("POST", "/v1/queues/{queue}/release", "consume", body=MANY),
    Row("POST", "/v1/queues/{queue}/release", "operate", body={"consumer": "w"}),
    Row("POST", "/v1/conclude", "consume", body=ACROSS),
    Row("POST", "/v1/fail", "consume", body=ACROSS),
    Row("POST", "/v1/extend", "consume", body=ACROSS),
    Row("POST", "/v1/release", "consume", body=ACROSS),
    Row("GET HEAD", "/v1/queues", "read"),
    Row("GET HEAD", "/v1/queues/{queue}", "read"),
    Row("PUT", "/v1/queues/{queue}", "admin"),
    Row("DELETE", "/v1/queues/{queue}", "admin"),
    Row("POST", "/v1/queues/{queue}/pause", "operate"),
    Row("POST", "/v1/queues/{queue}/resume", "operate"),
    Row("POST", "/v1/queues/{queue}/purge", "operate", body={"state": "dead"}),
    Row("POST", "/v1/queues/{queue}/redrive", "operate", body={}),
    Row("GET HEAD", "/v1/queues/{queue}/jobs", "read"),
    Row("GET HEAD", "/v1/queues/{queue}/jobs/{id}", "read"),
    Row("DELETE", "/v1/queues/{queue}/jobs/{id}", "operate"),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/cancel", "operate"),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/redrive", "operate"),
    Row("POST", "/v1/queues/{queue}/jobs/{id}/run", "operate"),
    Row("POST", "/v1/queues/{queue}/cancel", "operate"),
    Row("GET HEAD", "/v1/overview", "read"),
    Row("GET HEAD", "/v1/queues/{queue}/trend", "read"),
    Row("GET HEAD", "/v1/queues/{queue}/jobs/{id}/why", "read"),
    Row("GET HEAD", "/v1/access", "any"),
    Row("GET", "/v1/events", "read", query="?wait_seconds=0"),
    Row("GET HEAD", "/v1/statistics", "read", on="*"),
    Row("GET HEAD", "/metrics", "read", on="*"),
    Row("GET", "/v1/backup", "admin", on="*"),
    Row("GET HEAD", "/healthz", None),
    Row("GET HEAD", "/readyz", None),
    Row("GET HEAD", "/", None),
    Row("GET HEAD", "/ui", None),
    Row("GET HEAD", "/ui/{file}", None),
    Row("GET HEAD", "/openapi.json", None),
    Row("GET HEAD", "/docs", None),
    Row("GET HEAD", "/docs/style.css", None),
]

SHOWN_AS_EMPTY = {"/v1/queues", "/v1/overview", "/v1/access", "/v1/events"}
"""Routes that show of other queues nothing, instead of refusing."""

EACH_FOR_ITSELF = {row.path for row in ROWS if row.body is ACROSS}
"""Routes that refuse each job for itself."""


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json", FakeClock())


@pytest.fixture
async def server(tokens: Tokens) -> AsyncIterator[Server]:
    tokens.write()
    async with serving(Settings(), clock=tokens.clock, access=tokens.access()) as server:
        yield server


async def status(server: Server, row: Row, method: str, headers: dict[str, str]) -> tuple[int, str, Any]:
    """Status, code if it is an error, and the body."""
    target = row.path.replace("{queue}", "q").replace("{id}", "1").replace("{file}", "app.js") + row.query
    answer = await v1.ask(server, method, target, row.body, **headers)
    body = answer.json if answer.body and "json" in answer.headers["content-type"] else None
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    return answer.status, body["code"] if body is not None and answer.status >= 400 else "", body


def told(queues: list[Any]) -> set[str]:
    """The names of queues that an answer tells of."""
    return {queue if isinstance(queue, str) else queue["name"] for queue in queues}


async def test_every_route_has_a_row_and_every_row_a_route(server: Server) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule.rule))
        for rule in server.app.url_map.iter_rules()
        for method in rule.methods or ()
    }

    assert {(method, row.path) for row in ROWS for method in row.methods.split()} == served


async def test_who_shows_no_valid_token_is_let_in_nowhere_but_where_none_is_needed(
    server: Server, tokens: Tokens
) -> None:
    valid = tokens.add("valid", "admin")
    wrong = [
        {},
        bearer(made_token()),
        bearer(valid[:-1] + ("0" if valid[-1] != "0" else "1")),
        bearer(tokens.add("expired", "admin", expires=0)),
        bearer(tokens.add("revoked", "admin", revoked=0)),
    ]
    assert server.app.access is not None
    server.app.access.read_again()

    for row, headers in product(ROWS, wrong):
        for method in row.methods.split():
            answer, code, _ = await status(server, row, method, headers)
            if row.scope is None:
                assert answer in {200, 307}
            else:
                assert (answer, code) in {(401, "unauthorized"), (401, "")}, (row, headers)


async def test_each_scope_lets_in_where_it_is_needed_and_nowhere_else(server: Server, tokens: Tokens) -> None:
    shown = {
        (scope, on): bearer(tokens.add(f"{scope}-{number}", scope, queues=(on,)))
        for scope in SCOPES
        for number, on in enumerate(("q", "default", "*"))
    }
    assert server.app.access is not None
    server.app.access.read_again()

    for row in ROWS:
        for method, (scope, on) in product(row.methods.split(), shown):
            answer, code, body = await status(server, row, method, shown[scope, on])
            where = (method, row.path, row.body, scope, on)
            has_scope = row.scope in {None, "any", scope} or scope == "admin"
            assert answer != 401, where
            if row.scope is None or (has_scope and on in {row.on, "*"}):
                assert answer != 403, where
            elif has_scope and row.path in SHOWN_AS_EMPTY:
                assert answer == 200, where
                assert body is None or told(body["queues"]) <= {on}, where
            elif has_scope and row.path in EACH_FOR_ITSELF:
                assert body["jobs"][0]["error"]["code"] == "forbidden", where
            else:
                assert (answer, code) in {(403, "forbidden"), (403, "")}, where
