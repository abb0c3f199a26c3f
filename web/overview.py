"""`/v1`: what a dashboard shows beside the figures of a queue: all queues at a glance, trends, and why a job waits.

The glance is the same for all who look at it within half a second: the queues are asked for it slice by slice, so that
nobody waits, however many there are.
"""

from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import Any, Final, Literal

import msgspec
import trio
from quart import Blueprint, request

from queue_actor.access import Scope, covers
from queue_actor.commands import Explain, QueueBrief, ReadTrends, Survey, Trend, TrendsRead, Why
from queue_actor.engine import Engine
from queue_actor.jobs import JobState
from web.callers import caller_of
from web.replies import Reply, reply
from web.schemas import job_id, limited, one_of, queue_name, refuse_query
from web.views import Timestamp, timestamp

GLANCE_SECONDS: Final = 0.5
"""How old what is shown may be: all who look within this time see the same."""

PAGE_MAX: Final = 100
PAGE: Final = 50

RATES: Final = ("enqueue", "dequeue", "conclude", "fail", "dead")
"""The verbs of `QueueBrief.per_minute`."""

SHOWN: Final = ("enqueue", "conclude", "fail", "dead")
"""What is told of the last hour of each queue at a glance."""

RECENT_MINUTES: Final = 15
"""Of which the waiting and running times at a glance are."""

Order = Literal["busiest", "name", "waiting", "failing", "oldest"]
ORDERS: Final[dict[str, Callable[[QueueBrief], Any]]] = {
    "busiest": lambda queue: (-sum(queue.per_minute), -_waiting(queue), queue.name),
    "name": lambda queue: queue.name,
    "waiting": lambda queue: (-_waiting(queue), queue.name),
    "failing": lambda queue: (-queue.per_minute[3] - queue.per_minute[4], -queue.counts[4], queue.name),
    "oldest": lambda queue: (-(queue.oldest_age_seconds or 0.0), queue.name),
}
"""What comes first."""

_encode = msgspec.json.encode


class BriefView(msgspec.Struct, frozen=True):
    """A queue at a glance."""

    name: str
    paused: bool
    counts: dict[str, int]
    per_minute: dict[str, float]
    oldest_age_seconds: float | None
    waiters: int
    asked_seconds: float  # since a consumer asked last, or since the server started
    wait_seconds_p50: float | None
    run_seconds_p50: float | None
    trend: dict[str, Sequence[float | None]]


class OverviewView(msgspec.Struct, frozen=True):
    """All queues, and a page of them."""

    at: Timestamp
    queues_count: int
    paused_count: int
    counts: dict[str, int]
    per_minute: dict[str, float]
    slots: int
    compactions: int
    queues: Sequence[BriefView]
    next_cursor: str | None


class TrendView(msgspec.Struct, frozen=True):
    """A queue minute by minute."""

    queue: str
    since: Timestamp
    trend: dict[str, Sequence[float | None]]


class WhyView(msgspec.Struct, frozen=True):
    """Why a job is not running now."""

    why: Why
    text: str
    ahead: int | None
    seconds: float | None


class AccessView(msgspec.Struct, frozen=True):
    """What the caller may do."""

    name: str | None  # None: the server is open
    scopes: Sequence[Scope]
    queues: Sequence[str]


class Glance:
    """All queues in a few figures, as they were less than `GLANCE_SECONDS` ago."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = trio.Lock()
        self._queues: list[QueueBrief] = []
        self._at: float | None = None

    async def queues(self) -> list[QueueBrief]:
        """The queues, in no order.

        Raises:
            QueueError: The refusal.
        """
        async with self._turn:
            now = trio.current_time()
            if self._at is None or now >= self._at + GLANCE_SECONDS:
                surveyed = await self._engine.execute(Survey())
                queues = [*surveyed.queues]
                while surveyed.left:
                    surveyed = await self._engine.execute(Survey(surveyed.left))
                    queues += surveyed.queues
                self._queues, self._at = queues, now
            return self._queues


def overview_routes(engine: Engine) -> Blueprint:
    """`/v1/overview`, `/v1/access`, the trend of a queue, and why a job waits."""
    routes = Blueprint("overview", __name__)
    glance = Glance(engine)

    @routes.get("/v1/overview")
    async def overview() -> Reply:
        """All queues at a glance, and a page of them one by one."""
        refuse_query(request, "prefix", "order", "limit", "cursor")
        query, patterns = request.args, caller_of(request).patterns
        prefix = "" if "prefix" not in query else queue_name(query["prefix"], "prefix")
        order = ORDERS[one_of(query.get("order"), [*ORDERS], "order")]
        limit = limited(query.get("limit"), PAGE, PAGE_MAX, "limit")
        start = 0 if "cursor" not in query else job_id(query["cursor"], field="cursor")
        queues: Sequence[QueueBrief] = await glance.queues()
        if prefix or patterns is not None:
            queues = [
                queue
                for queue in queues
                if queue.name.startswith(prefix) and (patterns is None or covers(patterns, queue.name))
            ]
        page = nsmallest(start + limit, queues, key=order)[start:]
        trends = await engine.execute(ReadTrends([queue.name for queue in page]))
        return reply(_encode(_overview(queues, page, trends, engine, start)), headers={"Cache-Control": "no-store"})

    @routes.get("/v1/queues/<queue>/trend")
    async def trend(queue: str) -> Reply:
        """What happened in a queue in the last hour, minute by minute."""
        refuse_query(request)
        name = queue_name(queue)
        read = await engine.execute(ReadTrends([name]))
        view = TrendView(name, timestamp(read.since), dict(read.trends[name].columns))
        return reply(_encode(view), headers={"Cache-Control": "no-store"}, facts={"queue": name})

    @routes.get("/v1/queues/<queue>/jobs/<id_>/why")
    async def why(queue: str, id_: str) -> Reply:
        """Why a job is not running now."""
        refuse_query(request)
        name, number = queue_name(queue), job_id(id_)
        told = await engine.execute(Explain(name, number))
        seconds = None if told.seconds is None else round(told.seconds, 3)
        view = WhyView(told.why, told.text, told.ahead, seconds)
        return reply(_encode(view), headers={"Cache-Control": "no-store"}, facts={"queue": name, "job": number})

    @routes.get("/v1/access")
    async def access() -> Reply:
        """What the caller may do."""
        refuse_query(request)
        caller = caller_of(request)
        view = AccessView(caller.name, caller.scopes, ["*"] if caller.patterns is None else caller.patterns)
        return reply(_encode(view), headers={"Cache-Control": "no-store"})

    return routes


def _waiting(queue: QueueBrief) -> int:
    scheduled, queued, *_ = queue.counts
    return scheduled + queued


def _by_state(counts: Sequence[int]) -> dict[str, int]:
    return {str(state): count for state, count in zip(JobState, counts, strict=True)}


def _by_verb(rates: Sequence[float]) -> dict[str, float]:
    return {verb: round(rate, 2) for verb, rate in zip(RATES, rates, strict=True)}


def _overview(
    queues: Sequence[QueueBrief], page: Sequence[QueueBrief], trends: TrendsRead, engine: Engine, start: int
) -> OverviewView:
    counts = [sum(column) for column in zip(*(queue.counts for queue in queues), strict=True)] or [0] * len(JobState)
    rates = [sum(column) for column in zip(*(queue.per_minute for queue in queues), strict=True)] or [0.0] * len(RATES)
    views = [_brief(queue, trends.trends[queue.name], engine) for queue in page]
    end = start + len(page)
    return OverviewView(
        at=timestamp(trends.at),
        queues_count=len(queues),
        paused_count=sum(queue.paused for queue in queues),
        counts=_by_state(counts),
        per_minute=_by_verb(rates),
        slots=sum(queue.slots for queue in queues),
        compactions=sum(queue.compactions for queue in queues),
        queues=views,
        next_cursor=str(end) if end < len(queues) else None,
    )


def _brief(queue: QueueBrief, trend: Trend, engine: Engine) -> BriefView:
    return BriefView(
        name=queue.name,
        paused=queue.paused,
        counts=_by_state(queue.counts),
        per_minute=_by_verb(queue.per_minute),
        oldest_age_seconds=None if queue.oldest_age_seconds is None else round(queue.oldest_age_seconds, 3),
        waiters=engine.waiting(queue.name),
        asked_seconds=round(queue.asked_seconds, 1),
        wait_seconds_p50=_recent(trend.columns["wait_p50"]),
        run_seconds_p50=_recent(trend.columns["run_p50"]),
        trend={name: trend.columns[name] for name in SHOWN},
    )


def _recent(column: Sequence[float | None]) -> float | None:
    """The last of what is known of the last minutes."""
    known = [value for value in column[-RECENT_MINUTES:] if value is not None]
    return known[-1] if known else None
