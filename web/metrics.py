"""What `/metrics` tells, in the format of Prometheus.

Nothing here is counted job by job. The queue counts for itself, in plain integers, and is asked for its figures when
somebody scrapes: slice by slice, so that nobody waits for it. The text is made in a thread.

What one series costs a monitor it costs for ever, so their number is bounded. `metrics_queues_max` queues have series
of their own, and all others are summed as queue `_other`. Names that clients make up are never labels: no types, no
consumers, no paths.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import nlargest
from typing import Any, NamedTuple

import msgspec
import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from queue_actor.commands import Measure
from queue_actor.engine import Engine
from queue_actor.errors import Unavailable
from queue_actor.figures import HistogramFigures, QueueFigures
from queue_actor.meters import JOB_SECONDS, WORK_SECONDS, Histogram
from queue_actor.settings import Settings
from web.connections import Connections
from web.problems import PROBLEMS
from web.requests import Request
from web.series import RequestFigures, Snapshot, families

OTHER = "_other"
"""Stands for the queues without series of their own; no queue can be called so."""

MEASURE_SECONDS = 1.0
"""Scrapes closer together than this tell the same figures."""

ANSWER_SECONDS = 2.0
"""How long a scrape waits for a slice of the queues, before it tells everything but these."""

ANSWERS_SECONDS = 8.0
"""The same for all slices together: monitors give up after ten. A commit that has begun is waited for in any case."""

LAG_SECONDS = 0.1
"""How long the timer sleeps whose lateness is the lag of the event loop."""


class RouteMeters(NamedTuple):
    """What is counted of the requests for one route."""

    statuses: dict[int | None, int]  # None: nobody was answered
    seconds: Histogram


class RequestMeters:
    """Requests and their answers, by the template of their route."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], RouteMeters] = {}  # by method and rule
        self._refusals = dict.fromkeys(PROBLEMS, 0)

    def note(self, request: Request, status: int | None, seconds: float | None, code: str | None) -> None:
        """Count a request that took so long (None: it lasted as its client liked); no status: nobody was answered."""
        rule = request.url_rule
        # Without a route, method and path are whatever the client made up.
        key = ("", "") if rule is None else (request.method, rule.rule)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = RouteMeters({}, Histogram(JOB_SECONDS))
        route.statuses[status] = route.statuses.get(status, 0) + 1
        if seconds is not None:
            route.seconds.observe(seconds)
        if code is not None and code in self._refusals:
            self._refusals[code] += 1

    def figures(self, problems: Mapping[str, int]) -> RequestFigures:
        """What was counted so far, and by the connections themselves."""
        requests, seconds = {}, {}
        for (method, rule), route in self._routes.items():
            name = template(rule)
            for status, count in route.statuses.items():
                requests[method, name, "unanswered" if status is None else str(status)] = count
            if any((figures := route.seconds.figures()).counts):
                seconds[method, name] = figures
        refusals = {code: count + problems.get(code, 0) for code, count in self._refusals.items()}
        return RequestFigures(requests, seconds, refusals)


def template(rule: str) -> str:
    """A route as web/README.md writes it."""
    return re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule)


class Metrics(Collector):
    """All figures of one server, and how they are told."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        connections: Connections,
        *,
        run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self.requests = RequestMeters()
        self._engine = engine
        self.settings = settings
        self._connections = connections
        self._run_in_thread = run_in_thread or partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))
        self._lag = Histogram(WORK_SECONDS)
        self._choice = Choice(settings)
        self._turn = trio.Lock()
        self._measured_at: float | None = None
        self._snapshot: Snapshot
        self._measured: Sequence[QueueFigures] | None = None  # all queues, of whom some are to be chosen
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    @property
    def lag(self) -> HistogramFigures:
        """How late the event loop was, in seconds."""
        return self._lag.figures()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def watch_loop(self) -> None:
        """Measure the lag of the event loop until cancelled."""
        while True:
            due = trio.current_time() + LAG_SECONDS
            await trio.sleep_until(due)
            self._lag.observe(trio.current_time() - due)

    async def render(self, accept: str, *, ready: bool) -> tuple[bytes, str]:
        """The figures of this moment, or of less than `MEASURE_SECONDS` ago, and their Content-Type."""
        async with self._turn:
            now = trio.current_time()
            if self._measured_at is None or now >= self._measured_at + MEASURE_SECONDS:
                self._snapshot = await self._measure(ready=ready)
                self._measured, self._measured_at = self._snapshot.queues, now
            encode, content_type = choose_encoder(accept)
            body: bytes = await self._run_in_thread(partial(self._tell, encode))
        return body, content_type

    def _tell(self, encode: Callable[[Collector], bytes]) -> bytes:
        """The text; runs in a thread, one at a time."""
        if self._measured is not None:
            self._snapshot = self._snapshot._replace(queues=self._choice.choose(self._measured))
            self._measured = None
        return encode(self._registry)

    def describe(self) -> Iterable[Family]:
        """Nothing: the registry would collect to find out, before there is anything."""
        return ()

    def collect(self) -> Iterator[Family]:
        """The last snapshot; runs in the thread."""
        return families(self._snapshot)

    async def _measure(self, *, ready: bool) -> Snapshot:
        engine, connections = self._engine, self._connections
        queues: Sequence[QueueFigures] | None = None
        memory_bytes = 0
        latest = trio.current_time() + ANSWERS_SECONDS
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            try:
                measured = await engine.execute(Measure())
                page = list(measured.queues)
                while measured.left:
                    patience.deadline = min(latest, trio.current_time() + ANSWER_SECONDS)
                    measured = await engine.execute(Measure(measured.left))
                    page += measured.queues
                queues, memory_bytes = page, measured.memory_bytes
            except Unavailable:
                pass  # it starts, ends or is overrun: the rest of the figures says so
        return Snapshot(
            settings=self.settings,
            info=(self.settings.engine, engine.durability),
            ready=ready,
            queues=queues,
            queues_count=len(queues or ()),
            memory_bytes=memory_bytes,
            engine=engine.figures(),
            statistics=engine.statistics(),
            store=engine.store_statistics(),
            requests=self.requests.figures(connections.problems),
            connections={
                "connections": len(connections),
                "connections_opened_total": connections.opened,
                "connections_refused_total": connections.turned_away,
                "received_bytes_total": connections.received_bytes,
                "sent_bytes_total": connections.sent_bytes,
            },
            lag=self._lag.figures(),
        )


class Choice:
    """Which queues have series of their own, and the sum of all others.

    What the others count is added up from one scrape to the next, so that the sum never falls, whichever queues come,
    go, or get series of their own.
    """

    def __init__(self, settings: Settings) -> None:
        parts = [part.strip() for part in settings.metrics_queues.split(",") if part.strip()]
        self._names = {part for part in parts if not part.endswith("*")}
        self._prefixes = tuple(part[:-1] for part in parts if part.endswith("*"))
        self._everything = not parts
        self._queues_max = settings.metrics_queues_max
        self._shown: set[str] = set()
        self._before: dict[str, QueueFigures] = {}
        self._other: QueueFigures | None = None

    def choose(self, queues: Sequence[QueueFigures]) -> Sequence[QueueFigures]:
        """Those that are told one by one, by name, and then the sum of the rest, if there ever was any."""
        able = [queue for queue in queues if self._is_wanted(queue.name)]
        shown = sorted(nlargest(self._queues_max, able, key=self._rank), key=lambda queue: queue.name)
        self._shown = {queue.name for queue in shown}
        rest = [queue for queue in queues if queue.name not in self._shown]
        if rest or self._other is not None:
            gains = [gain(queue, self._before.get(queue.name)) for queue in rest if self._has_gained(queue)]
            so_far = self._other or gain(rest[0], rest[0])  # the latter is nothing
            self._other = total(OTHER, rest, [so_far, *gains])
        self._before = {queue.name: queue for queue in queues}
        return shown if self._other is None else [*shown, self._other]

    def _has_gained(self, queue: QueueFigures) -> bool:
        """Whether a queue has counted anything since it was measured before. Most have not, where there are many."""
        before = self._before.get(queue.name)
        return before is None or (before.opened_at, before.compactions, before.totals) != (
            queue.opened_at,
            queue.compactions,
            queue.totals,
        )

    def _is_wanted(self, name: str) -> bool:
        return self._everything or name in self._names or name.startswith(self._prefixes)

    def _rank(self, queue: QueueFigures) -> tuple[float, bool, int]:
        """The busiest come first; of equal ones those that were shown before, which spares the monitor new series."""
        return queue.moved_per_minute, queue.name in self._shown, queue.totals["enqueue"]


def gain(queue: QueueFigures, before: QueueFigures | None) -> QueueFigures:
    """The queue with what it has counted since it was measured before."""
    if before is None or before.opened_at != queue.opened_at:
        return queue
    return msgspec.structs.replace(
        queue,
        totals={verb: count - before.totals[verb] for verb, count in queue.totals.items()},
        deaths={reason: count - before.deaths[reason] for reason, count in queue.deaths.items()},
        waits=_add(queue.waits, before.waits, -1),
        runs=_add(queue.runs, before.runs, -1),
        compactions=queue.compactions - before.compactions,
        growths=queue.growths - before.growths,
    )


def total(name: str, queues: Sequence[QueueFigures], counted: Sequence[QueueFigures]) -> QueueFigures:
    """Many queues as one: what they are now is that of the first, what they have counted that of the second."""
    first, *others = counted
    waits, runs = first.waits, first.runs
    for each in others:
        waits, runs = _add(waits, each.waits), _add(runs, each.runs)
    return QueueFigures(
        name,
        opened_at=first.opened_at,
        counts={state: sum(queue.counts[state] for queue in queues) for state in first.counts},
        totals={verb: sum(each.totals[verb] for each in counted) for verb in first.totals},
        deaths={reason: sum(each.deaths[reason] for each in counted) for reason in first.deaths},
        waits=waits,
        runs=runs,
        oldest_age_seconds=max((queue.oldest_age_seconds for queue in queues), default=0.0),
        without_consumer_seconds=max((queue.without_consumer_seconds for queue in queues), default=0.0),
        asked_seconds=min((queue.asked_seconds for queue in queues), default=0.0),
        paused=any(queue.paused for queue in queues),
        moved_per_minute=sum(queue.moved_per_minute for queue in queues),
        slots=sum(queue.slots for queue in queues),
        compactions=sum(each.compactions for each in counted),
        growths=sum(each.growths for each in counted),
    )


def _add(one: HistogramFigures, other: HistogramFigures, sign: int = 1) -> HistogramFigures:
    counts = tuple(mine + sign * theirs for mine, theirs in zip(one.counts, other.counts, strict=True))
    return HistogramFigures(one.bounds, counts, one.sum + sign * other.sum)
