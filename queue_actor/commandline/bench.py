"""`bench`: a short load on a server, and what a client sees of it."""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import click

from queue_actor.client import Client, ClientError, ConcludeClaim, NewJob, Refused
from queue_actor.commandline.session import JSON_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import count

SECONDS_MAX = 60.0
CLIENTS_MAX = 64
PAYLOAD_BYTES_MAX = 100_000
WAIT_SECONDS = 1.0
"""How long a client waits for a job that another one has yet to enqueue."""
PERCENTILES = (50, 90, 99)

T = TypeVar("T")


class Timings:
    """How long each request took, by its verb, and how many jobs were concluded."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"enqueue": [], "dequeue": [], "conclude": []}
        self.jobs = 0

    def timed(self, verb: str, call: Callable[[], T]) -> T:
        """What a call gives, with its time noted."""
        begun = time.perf_counter()
        result = call()
        self.seconds[verb].append(time.perf_counter() - begun)
        return result

    def add(self, other: "Timings") -> None:
        """Those of another client, too."""
        for verb, seconds in other.seconds.items():
            self.seconds[verb] += seconds
        self.jobs += other.jobs


@click.command(epilog=examples("queue-actor bench", "queue-actor bench --batch 100 --clients 4 --seconds 10 --json"))
@click.option("--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=5.0, show_default=True, help="How long.")
@click.option(
    "--clients",
    type=click.IntRange(1, CLIENTS_MAX),
    default=8,
    show_default=True,
    help="Threads, each with one request at a time.",
)
@click.option("--batch", type=click.IntRange(1, 1000), default=1, show_default=True, help="Jobs in a request.")
@click.option(
    "--payload-bytes",
    type=click.IntRange(2, PAYLOAD_BYTES_MAX),
    default=100,
    show_default=True,
    help="Size of a payload.",
)
@JSON_OPTION
@with_session
def bench(session: Session, *, seconds: float, clients: int, batch: int, payload_bytes: int) -> None:
    """Enqueue, dequeue and conclude for some seconds, in a queue of its own, which is deleted afterwards.

    It says what this client, one Python process, sees of this server, with whatever else both do: the server may be
    able to do more. The token needs produce, consume and admin on the queue, whose name begins with bench-.
    """
    queue = f"bench-{secrets.token_hex(4)}"
    client = session.client
    jobs = [NewJob("bench", "x" * (payload_bytes - 2))] * batch
    deadline = time.monotonic() + seconds
    begun = time.perf_counter()
    total = Timings()
    try:
        with ThreadPoolExecutor(clients) as pool:
            for timings in pool.map(lambda name: _round_trips(client, queue, jobs, name, deadline), range(clients)):
                total.add(timings)
        elapsed = time.perf_counter() - begun
    finally:
        _clear(session, queue)
    _tell(session, total, elapsed)


def _round_trips(client: Client, queue: str, jobs: Sequence[NewJob], name: int, deadline: float) -> Timings:
    timings = Timings()
    while time.monotonic() < deadline:
        timings.timed("enqueue", lambda: client.enqueue_many(queue, jobs))
        taken = timings.timed(
            "dequeue",
            lambda: client.dequeue(queue, count=len(jobs), consumer=f"bench-{name}", wait_seconds=WAIT_SECONDS),
        )
        if taken:
            conclude = partial(client.conclude_many, [ConcludeClaim.of(job) for job in taken])
            timings.jobs += len(timings.timed("conclude", conclude).done)
    return timings


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least of the values, in order, that so many percent of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _clear(session: Session, queue: str) -> None:
    """Delete the queue, as far as that is allowed."""
    try:
        session.client.purge(queue, state=("queued", "scheduled", "concluded", "dead", "cancelled"))
        session.client.delete_queue(queue)
    except Refused as error:
        # There is none if nothing was enqueued; it is not empty if an answer was lost.
        session.printer.note(f"the queue {queue} is not deleted: {error.detail}")
    except ClientError:
        session.printer.note(f"the queue {queue} is left behind")


def _tell(session: Session, timings: Timings, elapsed: float) -> None:
    verbs: dict[str, dict[str, float]] = {}
    for verb, seconds in timings.seconds.items():
        ordered = sorted(seconds)
        if ordered:
            verbs[verb] = {"requests": len(ordered), "per_second": len(ordered) / elapsed}
            verbs[verb] |= {f"milliseconds_p{percent}": 1000 * percentile(ordered, percent) for percent in PERCENTILES}
            verbs[verb]["milliseconds_max"] = 1000 * ordered[-1]
    rate = timings.jobs / elapsed
    if session.printer.as_json:
        facts = {"seconds": elapsed, "jobs_concluded": timings.jobs, "jobs_per_second": rate, "verbs": verbs}
        session.printer.document(facts)
        return
    columns = ["verb", "#requests", "#per second", *(f"#p{percent} ms" for percent in PERCENTILES), "#max ms"]
    rows = []
    for verb, figures in verbs.items():
        requests, per_second, *milliseconds = figures.values()
        rows.append([verb, count(requests), f"{per_second:,.0f}", *(f"{one:.2f}" for one in milliseconds)])
    session.printer.table(columns, rows)
    session.printer.say(f"{count(timings.jobs)} jobs enqueued, dequeued and concluded: {rate:,.0f} a second")
