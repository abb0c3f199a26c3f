"""web/routes.py: the table finds what Werkzeug finds, or leaves it to Werkzeug; and Quart's proxies stand."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Blueprint, current_app, g, has_app_context, has_request_context, request
from quart.globals import request_ctx
from werkzeug.exceptions import HTTPException

from queue_actor.settings import Settings
from tests.contract.stack import Server, build, serving
from web.app import App
from web.replies import Reply, reply
from web.requests import asked
from web.routes import RouteTable

pytestmark = pytest.mark.virtual_time

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "post", "BREW")

words = st.sampled_from(
    ["jobs", "v1", "queues", "images", "7", "enqueue", "dequeue", "conclude", "fail", "cancel", "backup", "docs", ""]
)
parts = st.lists(words | st.text(max_size=3) | st.sampled_from(["a\n", "a b", "ä", "%", "<queue>"]), max_size=7)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Settings()) as server:
        yield server


class NoEngine:
    """As much of an engine as routes need before anybody asks."""

    instance = "none"
    durability = "memory"
    ready = None


MAP = App(NoEngine(), Settings()).url_map  # type: ignore[arg-type] # no command is carried out here
TABLE = RouteTable(MAP.iter_rules())


def by_werkzeug(method: str, path: str) -> object:
    """The endpoint and the variable parts that Werkzeug finds; None if it refuses."""
    try:
        rule, values = MAP.bind("", default_method=method, path_info=path).match(return_rule=True)
    except HTTPException:
        return None
    return rule, dict(values)


@given(st.sampled_from(METHODS), parts.map(lambda each: "/" + "/".join(each)))
def test_what_the_table_finds_is_what_werkzeug_finds(method: str, path: str) -> None:
    found = TABLE.find(method, path)
    assert found is None or found == by_werkzeug(method, path)


def examples() -> list[tuple[str, str]]:
    """Each method of each rule, with a path that it is for."""
    return [
        (method, "/".join("images-1" if "<" in part else part for part in rule.rule.split("/")))
        for rule in MAP.iter_rules()
        for method in sorted(rule.methods or ())
        if rule.rule != "/"  # it leads to the dashboard, and is asked for once
    ]


@pytest.mark.parametrize(("method", "path"), examples())
def test_the_table_knows_every_route(method: str, path: str) -> None:
    """Or all would go the long way, and nobody would notice."""
    found = TABLE.find(method, path)
    assert found is not None
    assert found == by_werkzeug(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/jobs/enqueue"), ("HEAD", "/jobs/dequeue"), ("GET", "//jobs/1"), ("GET", "/"), ("GET", "/v1/queues/")],
)
def test_what_is_refused_is_left_to_werkzeug(method: str, path: str) -> None:
    assert TABLE.find(method, path) is None


async def test_a_route_that_is_added_later_is_found(server: Server) -> None:
    assert (await server.ask("GET", "/healthz")).status == 200
    routes = Blueprint("later", __name__)

    @routes.get("/later/<name>")
    async def later(name: str) -> Reply:
        return reply(msgspec.json.encode(name))

    server.app.register_blueprint(routes)
    assert (await server.ask_raw(build("GET", "/later/on"))).json == "on"


async def test_quarts_proxies_stand_in_a_handler_and_for_its_request_alone(server: Server) -> None:
    seen: list[object] = []
    routes = Blueprint("proxies", __name__)

    @routes.post("/proxies/<name>")
    async def look(name: str) -> Reply:
        seen.extend((hasattr(g, "mine"), name, request.args["a"], await request.get_json(), request.endpoint))
        g.mine = name
        assert asked() is request_ctx.request
        assert current_app.name == "web"
        return reply(b"{}")

    server.app.register_blueprint(routes)
    client = server.connect()
    for _ in range(2):
        await client.send(build("POST", "/proxies/x?a=b", b"[1]", [("Content-Type", "application/json")]))
        await client.read()
    assert seen == [False, "x", "b", [1], "proxies.look"] * 2
    assert not has_request_context()
    assert not has_app_context()
