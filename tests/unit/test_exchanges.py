"""Exchanges with other servers than ours; with ours they are tested in test_connections.py."""

from typing import Any

import h11
import pytest
from hypercorn.typing import ASGIReceiveEvent
from quart import request
from quart_trio import QuartTrio

from web.exchanges import Exchange, cancelled_by_disconnect
from web.heads import read_head


@pytest.fixture
def app() -> QuartTrio:
    app = QuartTrio("test")
    app.asgi_http_class = Exchange

    @app.post("/")
    async def echo() -> bytes:
        async with cancelled_by_disconnect(request):
            data = await request.get_data()
        assert isinstance(data, bytes)
        return data

    return app


async def test_the_test_client_of_quart_is_answered(app: QuartTrio) -> None:
    answer = await app.test_client().post("/", data=b"hello")
    assert await answer.get_data() == b"hello"


async def test_a_body_in_pieces_is_whole_for_the_handler(app: QuartTrio) -> None:
    messages: list[ASGIReceiveEvent] = [
        {"type": "http.request", "body": b"hel", "more_body": True},
        {"type": "http.request", "body": b"lo", "more_body": False},
    ]
    assert b"".join(each.get("body", b"") for each in await play(app, messages)) == b"hello"


async def test_a_client_that_leaves_within_its_body_is_not_handled(app: QuartTrio) -> None:
    messages: list[ASGIReceiveEvent] = [
        {"type": "http.request", "body": b"hel", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert await play(app, messages) == []


async def play(app: QuartTrio, messages: list[ASGIReceiveEvent]) -> list[dict[str, Any]]:
    """What the application sends when it receives these messages."""
    sent: list[dict[str, Any]] = []

    async def receive() -> ASGIReceiveEvent:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    ask = h11.Request(method="POST", target="/", headers=[("Host", "test")])
    await app(read_head(ask, client=None, server=None), receive, send)
    return sent
