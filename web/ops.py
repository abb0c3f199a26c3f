"""What operators and their tools ask: is it alive, is it ready, how does it fare; and a copy of all it keeps."""

from collections.abc import Callable
from typing import Literal

import msgspec
from quart import Blueprint
from quart.blueprints import BlueprintSetupState

from queue_actor.engine import Engine, StoreStatistics
from queue_actor.figures import HistogramFigures
from web.audit import audit
from web.exchanges import close_after_answer
from web.metrics import Metrics
from web.problems import Problem
from web.replies import Reply, reply
from web.requests import asked
from web.schemas import refuse_query

Condition = Literal["starting", "ready", "draining"]


A_CRASH_LOSES = {
    "memory": "all jobs",
    "normal": "nothing; a power cut loses the last commits",
    "full": "nothing",
}
"""By durability."""


class Quantiles(msgspec.Struct, frozen=True):
    """What half, and 99 of 100, of some values were at most, since the start, as far as a histogram tells."""

    p50: float
    p99: float


class EngineView(msgspec.Struct, frozen=True):
    """What the engine has done since the start."""

    batches: int
    batch_requests: Quantiles
    batch_changes: Quantiles
    apply_seconds: Quantiles
    commit_seconds: Quantiles
    sweeps: int


class StatisticsView(msgspec.Struct, frozen=True):
    """What the server is doing now."""

    instance: str
    durability: str
    a_crash_loses: str
    inbox_requests: int
    waiters: int
    readers: int
    connections: int
    limits: dict[str, int]  # of these four
    loop_lag_seconds: Quantiles
    engine: EngineView
    store: StoreStatistics | None


def _quantiles(figures: HistogramFigures) -> Quantiles:
    return Quantiles(round(figures.quantile(0.5), 6), round(figures.quantile(0.99), 6))


def _statistics(engine: Engine, metrics: Metrics) -> StatisticsView:
    now, figures, settings = engine.statistics(), engine.figures(), metrics.settings
    return StatisticsView(
        engine.instance,
        engine.durability,
        A_CRASH_LOSES[engine.durability],
        now.inbox_requests,
        now.waiters,
        engine.events.readers,
        metrics.connections,
        {
            "inbox_requests": settings.inbox_requests_max,
            "waiters": settings.waiters_max,
            "readers": settings.readers_max,
            "connections": settings.connections_max,
        },
        _quantiles(metrics.lag),
        EngineView(
            sum(figures.batch_requests.counts),
            _quantiles(figures.batch_requests),
            _quantiles(figures.batch_changes),
            _quantiles(figures.apply_seconds),
            _quantiles(figures.commit_seconds),
            figures.sweeps,
        ),
        engine.store_statistics(),
    )


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
        return reply(msgspec.json.encode(_statistics(engine, metrics)), headers={"Cache-Control": "no-store"})

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
