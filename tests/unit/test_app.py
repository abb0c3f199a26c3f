"""web/app.py, as far as no request reaches: what requests see of it is in tests/contract."""

import json
import logging
from collections.abc import AsyncIterator

import pytest
from quart import Blueprint
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from queue_actor.engine import Engine
from queue_actor.settings import Settings
from tests.contract.stack import Server, serving
from web.app import App, _routing_problem
from web.problems import Problem
from web.replies import Reply, reply

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with serving(settings) as server:
        yield server


def add(server: Server, answer: Reply | BaseException) -> None:
    """A route of a test, at /test."""
    routes = Blueprint("test", __name__)

    @routes.get("/test")
    async def handler() -> Reply:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    server.app.register_blueprint(routes)


async def test_an_application_is_the_instance_of_its_engine(engine: Engine, settings: Settings) -> None:
    assert App(engine, settings).instance == engine.instance


async def test_no_route_takes_a_method_unasked(engine: Engine, settings: Settings) -> None:
    rules = list(App(engine, settings).url_map.iter_rules())
    assert not [rule for rule in rules if "OPTIONS" in (rule.methods or ())]
    assert [rule.rule for rule in rules if "HEAD" not in (rule.methods or ()) and "GET" in (rule.methods or ())] == [
        "/jobs/dequeue",
        "/v1/events",
        "/v1/backup",
    ]


async def test_nobody_needs_the_routes_without_a_request(engine: Engine, settings: Settings) -> None:
    async with App(engine, settings).app_context() as context:
        assert context.url_adapter is None


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (NotFound(), "not_found", 404),
        (MethodNotAllowed(["PUT", "GET", "OPTIONS"]), "method_not_allowed", 405),
        (MethodNotAllowed(), "method_not_allowed", 405),
        (RequestEntityTooLarge(), "too_large", 413),
        (BadRequest("broken"), "malformed", 400),
        (HTTPException(), "malformed", 400),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HTTPException) else str(value),
)
def test_what_the_router_or_the_request_refuses_is_a_problem(error: HTTPException, code: str, status: int) -> None:
    problem = _routing_problem(error)
    assert (problem.code, problem.status) == (code, status)
    assert json.loads(problem.body)["detail"]


def test_allow_is_sorted_and_without_what_only_the_router_adds() -> None:
    assert _routing_problem(MethodNotAllowed(["PUT", "OPTIONS", "GET"])).headers["Allow"] == "GET, PUT"


async def test_facts_of_an_answer_are_in_its_line(server: Server) -> None:
    add(server, reply(b"{}", facts={"job": 7}))
    await server.ask("GET", "/test")
    assert [line["job"] for line in server.log] == [7]


async def test_a_group_of_failures_is_a_bug_like_one(server: Server) -> None:
    add(server, ExceptionGroup("planted", [ValueError("one"), KeyError("two")]))
    assert (await server.ask("GET", "/test")).problem == (500, "internal", None)
    (failure,) = [line for line in server.log if line["level"] == "error"]
    assert "ValueError: one" in failure["traceback"]
    assert "KeyError: 'two'" in failure["traceback"]


async def test_a_problem_raised_in_a_handler_is_the_answer(server: Server) -> None:
    add(server, Problem("queue_full", "planted", field="x"))
    assert (await server.ask("GET", "/test")).problem == (429, "queue_full", "x")
    assert [line["code"] for line in server.log] == ["queue_full"]


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
async def test_requests_are_logged_at_info_and_no_higher(server: Server, level: int) -> None:
    logger = logging.getLogger("web")
    before = logger.level
    await server.ask("GET", "/healthz")
    logger.setLevel(level)
    answer = await server.ask("GET", "/healthz")
    logger.setLevel(before)
    server.answers -= 1  # which left no line
    assert answer.status == 200
    assert len(server.log) == 1
