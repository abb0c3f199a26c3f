"""What operators and their tools ask: is it alive, is it ready, how does it fare; and a copy of all it keeps."""

from collections.abc import Callable
from typing import Literal

import msgspec
from quart import Blueprint
from quart.blueprints import BlueprintSetupState

from queue_actor.engine import Engine, StoreStatistics
from web.audit import audit
from web.exchanges import close_after_answer
from web.metrics import Metrics
from web.problems import Problem
from web.replies import Reply, reply
from web.requests import asked
from web.schemas import refuse_query

Condition = Literal["starting", "ready", "draining"]


class StatisticsView(msgspec.Struct, frozen=True):
    """What the server is doing now."""

    instance: str
    durability: str
    inbox_requests: int
    waiters: int
    store: StoreStatistics | None


def ops_routes(engine: Engine, condition: Callable[[], Condition], metrics: Metrics) -> Blueprint:
    """`/healthz`, `/readyz`, `/metrics`, `/v1/statistics` and `/v1/backup`."""
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

    @routes.get("/metrics")
    async def monitor() -> Reply:
        """Figures for Prometheus, also while the server starts or ends."""
        accept = asked().headers.get("Accept", "")
        body, content_type = await metrics.render(accept, ready=condition() == "ready")
        return reply(body, headers={"Cache-Control": "no-store", "Vary": "Accept"}, content_type=content_type)

    @routes.get("/v1/statistics")
    async def statistics() -> Reply:
        """Figures of this moment, also while the server starts or ends."""
        refuse_query(asked())
        now, store = engine.statistics(), engine.store_statistics()
        view = StatisticsView(engine.instance, engine.durability, now.inbox_requests, now.waiters, store)
        return reply(msgspec.json.encode(view), headers={"Cache-Control": "no-store"})

    @routes.get("/v1/backup")
    async def backup() -> Reply:
        """A copy of the store's file, piece by piece."""
        refuse_query(asked())
        copy = await engine.backup()
        close_after_answer(asked(), copy.aclose)
        audit("backup", file_bytes=copy.file_bytes)
        return Reply(
            copy.pieces(),
            headers={
                "Content-Length": str(copy.file_bytes),
                "Content-Disposition": 'attachment; filename="queue.sqlite"',
                "Cache-Control": "no-store",
            },
            content_type="application/vnd.sqlite3",
            facts={"file_bytes": copy.file_bytes},
        )

    @routes.record
    def without_head(state: BlueprintSetupState) -> None:
        # Werkzeug takes HEAD wherever it takes GET, and nobody shall make a copy to throw it away.
        for rule in state.app.url_map.iter_rules(f"{routes.name}.backup"):
            (rule.methods or set()).discard("HEAD")

    return routes
