"""web/requests.py and web/replies.py: what Quart promises of its requests and responses holds of ours, too."""

from collections.abc import AsyncIterator

import pytest
from quart import Response, request
from quart_trio import QuartTrio

from web.exchanges import Exchange
from web.replies import Reply, reply
from web.requests import Request


@pytest.fixture
def app() -> QuartTrio:
    app = QuartTrio("test")
    app.asgi_http_class = Exchange
    return app


async def test_a_handler_of_quart_finds_everything_in_the_request(app: QuartTrio) -> None:
    @app.post("/<name>")
    async def look(name: str) -> dict[str, object]:
        assert isinstance(request, Request)
        form = await request.form
        data = await request.get_data(as_text=True)
        return {
            "form": form["x"],
            "args": request.args.getlist("q"),
            "cookie": request.cookies["c"],
            "header": request.headers["X-Thing"],
            "names": [request.host, request.path, request.method, request.scheme, name, str(request.url_rule)],
            "type": request.mimetype,
            "data": data,
            "json": await request.get_json(silent=True),
            "blueprint": request.blueprint,
            "full_path": request.full_path,
            "remote": request.remote_addr,
        }

    answer = await app.test_client().post(
        "/n?q=1&q=2",
        data=b"x=y",
        headers={"Content-Type": "application/x-www-form-urlencoded", "Cookie": "c=d", "x-thing": "z"},
    )
    assert await answer.get_json() == {
        "form": "y",
        "args": ["1", "2"],
        "cookie": "d",
        "header": "z",
        "names": ["localhost", "/n", "POST", "http", "n", "/<name>"],
        "type": "application/x-www-form-urlencoded",
        "data": "x=y",
        "json": None,
        "blueprint": None,
        "full_path": "/n?q=1&q=2",
        "remote": "<local>",
    }


async def test_json_is_read_once_and_given_again(app: QuartTrio) -> None:
    @app.post("/")
    async def look() -> dict[str, object]:
        first = await request.get_json()
        return {"same": first is await request.get_json(), "it": first, "bytes": len(await request.get_data())}

    answer = await app.test_client().post("/", json={"a": 1})
    assert await answer.get_json() == {"same": True, "it": {"a": 1}, "bytes": 8}


async def test_of_a_field_that_comes_twice_the_first_counts(app: QuartTrio) -> None:
    seen: list[object] = []

    @app.get("/")
    async def look() -> str:
        assert isinstance(request, Request)
        seen.extend(
            (request.field(b"x-a"), request.headers["X-A"], request.headers.getlist("x-a"), request.field(b"y"))
        )
        return ""

    client = app.test_client()
    headers = [("X-A", "1"), ("X-A", "2")]
    await client.get("/", headers=headers)
    assert seen == ["1", "1", ["1", "2"], None]


async def test_an_answer_is_a_response_of_quart(app: QuartTrio) -> None:
    """So it may be returned by a handler of any Quart application, and be looked at like any response."""
    answers = {"whole": reply(b"{}", status=201, headers={"X-A": "b"}), "made": Reply(_pieces(), content_type="a/b")}
    for name, each in answers.items():
        app.add_url_rule(f"/{name}", name, lambda each=each: each)
    whole = await app.test_client().get("/whole")
    assert (whole.status_code, await whole.get_data(), whole.headers["x-a"]) == (201, b"{}", "b")
    assert (whole.content_type, whole.content_length) == ("application/json", 2)
    made = await app.test_client().get("/made")
    assert (made.status_code, await made.get_data(), made.content_type) == (200, b"onetwo", "a/b")
    assert answers["whole"].status == "201 Created"
    assert isinstance(answers["whole"], Response)


async def _pieces() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


def test_who_sets_a_field_in_vain_is_told() -> None:
    answer = reply(b"{}")
    with pytest.raises(TypeError):
        answer.headers["X-A"] = "b"
    answer.add({"X-B": "c"})
    assert (b"x-b", b"c") in answer.fields
