"""What the server says of itself: its contract as OpenAPI at `/openapi.json`, and as a page at `/docs`."""

import re
from collections.abc import Awaitable, Callable
from functools import cache
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import msgspec
from quart import Blueprint
from werkzeug.routing import Map

from queue_actor.settings import Settings
from web.openapi import Route, document
from web.page import page
from web.replies import JSON, Reply, reply
from web.requests import asked

STYLE = Path(__file__).parent / "static" / "docs.css"

# Nothing but the page's own stylesheet: it has no script, no form and no image.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Rendered(NamedTuple):
    """What is sent, and its name for If-None-Match."""

    body: bytes
    etag: str


def routes_of(url_map: Map) -> list[Route]:
    """The routes of an application, as OpenAPI writes them."""
    return [
        Route(
            rule.endpoint,
            re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule.rule),
            tuple(sorted((rule.methods or set()) - {"OPTIONS"}, key=_post_first)),
        )
        for rule in url_map.iter_rules()
    ]


def _post_first(method: str) -> tuple[bool, str]:
    return method != "POST", method


def docs_routes(url_map: Map, settings: Settings) -> Blueprint:
    """`/openapi.json`, `/docs` and its stylesheet. Each is rendered once, when it is first asked for."""
    routes = Blueprint("docs", __name__)

    @cache
    def contract() -> Rendered:
        # Not before it is asked for: the map is complete when all blueprints are registered.
        return rendered(msgspec.json.encode(document(routes_of(url_map), settings)))

    @cache
    def html() -> Rendered:
        return rendered(page(msgspec.json.decode(contract().body)).encode())

    @cache
    def css() -> Rendered:
        return rendered(STYLE.read_bytes())

    for path, name, content, content_type in (
        ("/openapi.json", "document", contract, JSON),
        ("/docs", "page", html, "text/html; charset=utf-8"),
        ("/docs/style.css", "style", css, "text/css; charset=utf-8"),
    ):
        routes.add_url_rule(path, name, _handler(content, content_type), methods=["GET"])
    return routes


def rendered(body: bytes) -> Rendered:
    """A body with its name."""
    return Rendered(body, blake2b(body, digest_size=16).hexdigest())


def _handler(content: Callable[[], Rendered], content_type: str) -> Callable[..., Awaitable[Reply]]:
    async def handler() -> Reply:
        body, etag = content()
        # It may be kept, and is asked for again each time: another start may have other settings.
        headers = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
        if asked().if_none_match.contains_weak(etag):
            return reply(b"", status=HTTPStatus.NOT_MODIFIED, headers=headers)
        if content_type.startswith("text/html"):
            headers["Content-Security-Policy"] = POLICY
        return reply(body, headers=headers, content_type=content_type)

    return handler
