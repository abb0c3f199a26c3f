"""What `top` shows: the figures of a moment, and the screen that is made of them."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from queue_actor.client import Client, ClientError, Job, Queue, Refused, Statistics
from queue_actor.commandline.queues import condition
from queue_actor.commandline.terminal import count, safe, span, table

QUEUES_MAX = 1_000
"""Queues that are asked for; the others are not on the screen."""
FAILED_QUEUES_MAX = 5
FAILURES_MAX = 10
"""Dead jobs that are looked at, of the queues where most die."""
REMEMBERED_MAX = 1_000
LINES_BESIDE_ROWS = 8
"""Three of the head, one over each table, and two between them."""


class Snapshot(NamedTuple):
    """The figures of a moment."""

    url: str
    queues: Sequence[Queue] = ()
    statistics: Statistics | None = None
    """None: the token does not allow to see them."""
    failures: Sequence[Job] = ()
    trouble: str = ""
    """Why there are no newer figures."""


class Gatherer:
    """Asks a server for its figures. What it has seen of dead jobs it does not ask for again: they do not change."""

    def __init__(self, client: Client, url: str, prefix: str | None) -> None:
        self._client = client
        self._prefix = prefix
        self._last = Snapshot(url)
        self._dead: dict[tuple[str, int], Job] = {}

    def gather(self) -> Snapshot:
        """The figures of now; those of before, and why, where there are none."""
        try:
            queues = list(islice(self._client.queues(prefix=self._prefix), QUEUES_MAX))
            self._last = Snapshot(self._last.url, queues, self._statistics(), self._failures(queues))
        except ClientError as error:
            return self._last._replace(trouble=str(error))
        return self._last

    def _statistics(self) -> Statistics | None:
        try:
            return self._client.statistics()
        except Refused:
            return None

    def _failures(self, queues: Sequence[Queue]) -> Sequence[Job]:
        """The newest dead jobs of the queues where most die."""
        failing = sorted(
            (queue for queue in queues if queue.counts["dead"]),
            key=lambda queue: (-queue.per_minute["dead"], -queue.counts["dead"], queue.name),
        )
        found = [job for queue in failing[:FAILED_QUEUES_MAX] for job in self._newest_dead(queue.name)]
        found.sort(key=lambda job: -job.finished_at.timestamp() if job.finished_at else 0.0)
        return found[:FAILURES_MAX]

    def _newest_dead(self, queue: str) -> Iterator[Job]:
        page = self._client.search(queue, state="dead", order="newest", limit=FAILURES_MAX)
        for job in page.items:
            if (queue, job.id) not in self._dead:
                if len(self._dead) >= REMEMBERED_MAX:
                    self._dead.clear()
                self._dead[queue, job.id] = self._client.read_job(queue, job.id)
            yield self._dead[queue, job.id]


def screen(snapshot: Snapshot | None, now: float, *, height: int | None) -> RenderableType:
    """The screen, in as many lines as there are; all there is if there is no end to them."""
    if snapshot is None:
        return Text("asking …")
    queues = sorted(snapshot.queues, key=lambda queue: (-_work(queue), queue.name))
    consumers = sorted(
        ((consumer.seen_seconds, consumer.name, queue.name) for queue in queues for consumer in queue.consumers),
    )
    wanted = [len(queues), len(consumers), len(snapshot.failures)]
    rows = wanted if height is None else shares(height - LINES_BESIDE_ROWS, wanted)
    return Group(
        _title(snapshot),
        _totals(snapshot),
        Text(safe(snapshot.trouble), "bold red", no_wrap=True, overflow="ellipsis"),
        _rows(QUEUE_COLUMNS, [_queue(queue) for queue in queues], rows[0], "no queues"),
        Text(""),
        _rows(CONSUMER_COLUMNS, [_consumer(*one) for one in consumers], rows[1], "nobody asks for jobs"),
        Text(""),
        _rows(FAILURE_COLUMNS, [_failure(job, now) for job in snapshot.failures], rows[2], "no dead jobs"),
    )


QUEUE_COLUMNS = (
    *("queue", "#sched", "#queued", "#leased", "#dead", "#oldest", "#in/m", "#out/m", "#done/m", "#fail/m"),
    "",
)
"""The last ones are of a minute; short names, for a narrow terminal needs the room for those of queues."""
CONSUMER_COLUMNS = ("consumer", "queue", "asked")
FAILURE_COLUMNS = ("dead job", "type", "when", "after", "why")


def shares(rows: int, wanted: Sequence[int]) -> list[int]:
    """How many rows each table has: what it wants if there is room, else a third at least, and one in any case."""
    given = [max(1, min(want, rows // len(wanted))) for want in wanted]
    for place, want in enumerate(wanted):
        left = max(0, rows - sum(given))
        given[place] += min(left, max(0, want - given[place]))
    return given


def _work(queue: Queue) -> float:
    return queue.counts["queued"] + queue.counts["in_progress"] + queue.per_minute["dequeue"]


def _title(snapshot: Snapshot) -> Text:
    kept = "" if snapshot.statistics is None else f"  jobs kept: {snapshot.statistics.durability}"
    title = Text(safe(f"queue-actor  {snapshot.url}{kept}"), "bold", no_wrap=True, overflow="ellipsis")
    return title.append("   q: quit", "not bold dim")


def _totals(snapshot: Snapshot) -> Text:
    queues = snapshot.queues
    told = [
        f"{count(sum(queue.counts[state] for queue in queues))} {state.replace('_', ' ')}"
        for state in ("scheduled", "queued", "in_progress", "dead")
    ]
    told += [
        f"{count(round(sum(queue.per_minute[verb] for queue in queues)))} {past} a minute"
        for verb, past in (("enqueue", "enqueued"), ("conclude", "concluded"), ("fail", "failed"))
    ]
    many = "1 queue" if len(queues) == 1 else f"{count(len(queues))} queues"
    return Text(f"{many}: {', '.join(told)}", no_wrap=True, overflow="ellipsis")


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], most: int, none: str) -> RenderableType:
    """A table of at most so many rows, the last of which says how many there are beyond them."""
    if not rows:
        return Text(none, "dim")
    shown = (
        list(rows)
        if len(rows) <= most
        else [*rows[: most - 1], (Text(f"… {count(len(rows) - most + 1)} more", "dim"),)]
    )
    made = table(columns, shown, gap=1)
    for column, name in zip(made.columns, columns, strict=True):
        column.no_wrap, column.overflow = True, "ellipsis"
        # Figures that are cut say nothing, so it is the texts that become narrower.
        column.min_width = len(name) - 1 if name.startswith("#") else None
    return made


def _queue(queue: Queue) -> list[str | Text]:
    counts, rates = queue.counts, queue.per_minute
    return [
        queue.name,
        count(counts["scheduled"]),
        count(counts["queued"]),
        count(counts["in_progress"]),
        Text(count(counts["dead"]), "red" if counts["dead"] else ""),
        span(queue.oldest_age_seconds),
        *(count(round(rates[verb])) for verb in ("enqueue", "dequeue", "conclude")),
        Text(count(round(rates["fail"])), "red" if rates["fail"] else ""),
        condition(queue),
    ]


def _consumer(seen_seconds: float, name: str, queue: str) -> list[str | Text]:
    return [name, queue, f"{span(seen_seconds)} ago"]


def _failure(job: Job, now: float) -> list[str | Text]:
    error = next((one.error for one in reversed(job.history) if one.error is not None), None)
    why = str(job.reason) if error is None else f"{error.type}: {error.message}"
    when = "-" if job.finished_at is None else f"{span(max(0.0, now - job.finished_at.timestamp()))} ago"
    return [f"{job.queue}/{job.id}", job.type, when, f"{job.attempts} attempts", why]
