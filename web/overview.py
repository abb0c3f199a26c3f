"""`/v1`: what a dashboard shows beside the figures of a queue: all queues at a glance, trends, and why a job waits.

The glance is the same for all who look at it within half a second. The queues are asked for it slice by slice, and only
those that have changed, so that nobody waits, however many there are.
"""

from collections.abc import Callable, Sequence
from heapq import nsmallest
from math import inf
from typing import Any, Final, Literal

import msgspec
import trio
from quart import Blueprint

from queue_actor.access import Scope, covers
from queue_actor.commands import Explain, QueueBrief, ReadTrends, Survey, Surveyed, TrendsRead, Why
from queue_actor.engine import Engine
from queue_actor.jobs import JobState
from web.callers import caller_of
from web.replies import Reply, reply
from web.requests import asked
from web.schemas import job_id, limited, one_of, queue_name, refuse_query
from web.views import Timestamp, timestamp

GLANCE_SECONDS: Final = 0.5
"""How old the sum of all queues, and their order, may be: all who look within this time see the same."""

REST_FACTOR: Final = 9
"""So many times as long as it took to ask for all queues nobody asks again, where they are many and all move."""

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
    "oldest": lambda queue: (inf if queue.oldest_ready_at is None else queue.oldest_ready_at, queue.name),
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
    """All queues in a few figures, as they were a moment ago: those that have changed since are asked for anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = trio.Lock()
        self._queues: dict[str, QueueBrief] = {}
        self._moving: set[str] = set()  # those whose rates fall although nothing happens
        self._since = 0
        self._due = -inf  # when they are asked for again
        self.counts = [0] * len(JobState)
        self.rates = [0.0] * len(RATES)
        self.paused = self.slots = self.compactions = 0

    async def look(self) -> None:
        """See to it that what is known is new enough.

        Raises:
            QueueError: The refusal.
        """
        async with self._turn:
            began = trio.current_time()
            if began < self._due:
                return
            surveyed = await self._engine.execute(Survey(since=self._since))
            since, again = surveyed.turn, set(self._moving)
            unseen = set(self._queues) if surveyed.whole else set()
            while True:
                seen = self._take(surveyed)
                again -= seen
                unseen -= seen
                if surveyed.left:
                    surveyed = await self._engine.execute(Survey(surveyed.left))
                elif again:
                    surveyed = await self._engine.execute(Survey([*again]))
                    again = set(surveyed.left)
                else:
                    break
            for name in unseen:
                self._forget(name)
            # What changed while they were asked for is asked for next time, twice perhaps.
            self._since = since
            now = trio.current_time()
            self._due = now + max(GLANCE_SECONDS, REST_FACTOR * (now - began))

    def _take(self, surveyed: Surveyed) -> set[str]:
        for name in surveyed.gone:
            self._forget(name)
        for queue in surveyed.queues:
            self._forget(queue.name)
            self._queues[queue.name] = queue
            self._add(queue, 1)
            if any(queue.per_minute):
                self._moving.add(queue.name)
        return {queue.name for queue in surveyed.queues} | set(surveyed.gone)

    def _forget(self, name: str) -> None:
        self._moving.discard(name)
        queue = self._queues.pop(name, None)
        if queue is not None:
            self._add(queue, -1)

    def _add(self, queue: QueueBrief, sign: int) -> None:
        self.counts = [total + sign * count for total, count in zip(self.counts, queue.counts, strict=True)]
        self.rates = [total + sign * rate for total, rate in zip(self.rates, queue.per_minute, strict=True)]
        self.paused += sign * queue.paused
        self.slots += sign * queue.slots
        self.compactions += sign * queue.compactions

    def seen_by(self, prefix: str, patterns: Sequence[str] | None) -> "Glance":
        """What there is of it for who may see, or wants to see, some queues."""
        if not prefix and patterns is None:
            return self
        part = Glance(self._engine)
        for queue in self._queues.values():
            if queue.name.startswith(prefix) and (patterns is None or covers(patterns, queue.name)):
                part._queues[queue.name] = queue
                part._add(queue, 1)
        return part

    def __len__(self) -> int:
        return len(self._queues)

    def page(self, order: Callable[[QueueBrief], Any], start: int, limit: int) -> list[QueueBrief]:
        """So many queues from a place on."""
        return nsmallest(start + limit, self._queues.values(), key=order)[start:]


def overview_routes(engine: Engine) -> Blueprint:
    """`/v1/overview`, `/v1/access`, the trend of a queue, and why a job waits."""
    routes = Blueprint("overview", __name__)
    glance = Glance(engine)

    @routes.get("/v1/overview")
    async def overview() -> Reply:
        """All queues at a glance, and a page of them one by one."""
        request = asked()
        refuse_query(request, "prefix", "order", "limit", "cursor")
        query, patterns = request.args, caller_of(request).patterns
        prefix = "" if "prefix" not in query else queue_name(query["prefix"], "prefix")
        order = ORDERS[one_of(query.get("order"), [*ORDERS], "order")]
        limit = limited(query.get("limit"), PAGE, PAGE_MAX, "limit")
        start = 0 if "cursor" not in query else job_id(query["cursor"], field="cursor")
        await glance.look()
        seen = glance.seen_by(prefix, patterns)
        page = seen.page(order, start, limit)
        # What is shown one by one is of this moment; what it adds up to is not older than it has to be.
        fresh = {queue.name: queue for queue in (await engine.execute(Survey([queue.name for queue in page]))).queues}
        trends = await engine.execute(ReadTrends([*fresh]))
        views = [_brief(queue, trends, engine) for queue in fresh.values()]
        end = start + len(page)
        view = OverviewView(
            at=timestamp(trends.at),
            queues_count=len(seen),
            paused_count=seen.paused,
            counts=_by_state(seen.counts),
            per_minute=_by_verb(seen.rates),
            slots=seen.slots,
            compactions=seen.compactions,
            queues=views,
            next_cursor=str(end) if end < len(seen) else None,
        )
        return reply(_encode(view), headers={"Cache-Control": "no-store"})

    @routes.get("/v1/queues/<queue>/trend")
    async def trend(queue: str) -> Reply:
        """What happened in a queue in the last hour, minute by minute."""
        refuse_query(asked())
        name = queue_name(queue)
        read = await engine.execute(ReadTrends([name]))
        view = TrendView(name, timestamp(read.since), dict(read.trends[name].columns))
        return reply(_encode(view), headers={"Cache-Control": "no-store"}, facts={"queue": name})

    @routes.get("/v1/queues/<queue>/jobs/<id_>/why")
    async def why(queue: str, id_: str) -> Reply:
        """Why a job is not running now."""
        refuse_query(asked())
        name, number = queue_name(queue), job_id(id_)
        told = await engine.execute(Explain(name, number))
        seconds = None if told.seconds is None else round(told.seconds, 3)
        view = WhyView(told.why, told.text, told.ahead, seconds)
        return reply(_encode(view), headers={"Cache-Control": "no-store"}, facts={"queue": name, "job": number})

    @routes.get("/v1/access")
    async def access() -> Reply:
        """What the caller may do."""
        refuse_query(asked())
        caller = caller_of(asked())
        view = AccessView(caller.name, caller.scopes, ["*"] if caller.patterns is None else caller.patterns)
        return reply(_encode(view), headers={"Cache-Control": "no-store"})

    return routes


def _waiting(queue: QueueBrief) -> int:
    scheduled, queued, *_ = queue.counts
    return scheduled + queued


def _by_state(counts: Sequence[int]) -> dict[str, int]:
    return {str(state): count for state, count in zip(JobState, counts, strict=True)}


def _by_verb(rates: Sequence[float]) -> dict[str, float]:
    # Sums that others were taken away from again may be a hair below 0.
    return {verb: round(max(0.0, rate), 2) for verb, rate in zip(RATES, rates, strict=True)}


def _brief(queue: QueueBrief, trends: TrendsRead, engine: Engine) -> BriefView:
    trend, oldest = trends.trends[queue.name], queue.oldest_ready_at
    return BriefView(
        name=queue.name,
        paused=queue.paused,
        counts=_by_state(queue.counts),
        per_minute=_by_verb(queue.per_minute),
        oldest_age_seconds=None if oldest is None else round(max(0.0, trends.at - oldest), 3),
        waiters=engine.waiting(queue.name),
        asked_seconds=round(max(0.0, trends.at - queue.asked_at), 1),
        wait_seconds_p50=_recent(trend.columns["wait_p50"]),
        run_seconds_p50=_recent(trend.columns["run_p50"]),
        trend={name: trend.columns[name] for name in SHOWN},
    )


def _recent(column: Sequence[float | None]) -> float | None:
    """The last of what is known of the last minutes."""
    known = [value for value in column[-RECENT_MINUTES:] if value is not None]
    return known[-1] if known else None
