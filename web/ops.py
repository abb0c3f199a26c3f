"""What operators and their tools ask: is it alive, is it ready."""

from collections.abc import Callable

from quart import Blueprint

from web.problems import Problem
from web.replies import Reply, reply


def ops_routes(is_draining: Callable[[], bool]) -> Blueprint:
    """`/healthz` and `/readyz`."""
    routes = Blueprint("ops", __name__)

    @routes.get("/healthz")
    async def healthz() -> Reply:
        """The process answers."""
        return reply(b'{"status":"alive"}')

    @routes.get("/readyz")
    async def readyz() -> Reply:
        """The server takes work; nothing that load alone can trip."""
        if is_draining():
            raise Problem("draining", "the server is about to end")
        return reply(b'{"status":"ready"}')

    return routes
