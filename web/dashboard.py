"""The dashboard: `/ui`, and what it is made of. It is plain files, sent as they are; what it shows it asks of `/v1`.

Its page may load and ask nothing but this server, and has no markup that was made of what a client sent: whatever
comes from `/v1` becomes text in the page by web/static/ui/dom.js.
"""

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Final

from quart import Blueprint
from werkzeug.exceptions import NotFound

from web.docs import POLICY, Rendered, rendered
from web.replies import Reply, reply
from web.requests import asked

FILES: Final = Path(__file__).parent / "static" / "ui"

KINDS: Final = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

PAGE: Final = "index.html"


@cache
def contents() -> dict[str, Rendered]:
    """All files by name, read when the first is asked for. What is not among them is no path."""
    return {path.name: rendered(path.read_bytes()) for path in FILES.iterdir() if path.suffix in {*KINDS, ".html"}}


def dashboard_routes() -> Blueprint:
    """`/`, `/ui` and its files."""
    routes = Blueprint("dashboard", __name__)

    @routes.get("/")
    async def home() -> Reply:
        """Leads to the dashboard, relatively: there may be a prefix before all paths."""
        return reply(b"", status=HTTPStatus.TEMPORARY_REDIRECT, headers={"Location": "ui", "Cache-Control": "no-cache"})

    @routes.get("/ui")
    async def page() -> Reply:
        """The page, which is the same for everybody: what may be seen is decided by `/v1`."""
        policy = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return _sent(contents()[PAGE], "text/html; charset=utf-8", policy)

    @routes.get("/ui/<file>")
    async def part(file: str) -> Reply:
        """A file of the page."""
        kind = KINDS.get(Path(file).suffix)
        if kind is None or file not in contents():
            raise NotFound
        return _sent(contents()[file], kind, {})

    return routes


def _sent(file: Rendered, kind: str, more: dict[str, str]) -> Reply:
    # It may be kept, and is asked for again each time: another version of the server has other files.
    headers = {"ETag": f'"{file.etag}"', "Cache-Control": "no-cache"}
    if asked().if_none_match.contains_weak(file.etag):
        return reply(b"", status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return reply(file.body, headers=headers | more, content_type=kind)
