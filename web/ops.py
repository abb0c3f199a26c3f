"""What operators and their tools ask: is it alive, is it ready."""

from collections.abc import Callable
from typing import Literal

from quart import Blueprint

from web.problems import Problem
from web.replies import Reply, reply

Condition = Literal["starting", "ready", "draining"]


def ops_routes(condition: Callable[[], Condition]) -> Blueprint:
    """`/healthz` and `/readyz`."""
    routes = Blueprint("ops", __name__)

    @routes.get("/healthz")
    async def healthz() -> Reply:
        """The process answers."""
        return reply(b'{"status":"alive"}')

    @routes.get("/readyz")
    async def readyz() -> Reply:
        """The server takes work; nothing that load alone can trip."""
        match condition():
            case "draining":
                raise Problem("draining", "the server is about to end")
            case "starting":
                raise Problem("starting", "the server reads its jobs from the disk")
        return reply(b'{"status":"ready"}')

    return routes
