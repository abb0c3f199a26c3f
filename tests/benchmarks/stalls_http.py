"""The same over HTTP: 10^6 leases go stale, and 10^6 jobs are purged, beside clients that ask by a schedule.

This server, and the original design under Flask and waitress with a `threading.Lock` (`mutex_design.py`), each as a
process with so many jobs in a queue that the clients do not use.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

from msgspec.structs import replace

from queue_actor import service
from queue_actor.actor import ActorEngine
from queue_actor.commands import Dequeue, Enqueue, NewJob, SetPolicy
from queue_actor.engine import Clock
from queue_actor.jobs import QueuePolicy
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.store import Store
from queue_actor.sweeper import Sweeper
from tests.benchmarks import http
from tests.benchmarks.load import Answer, Script, drive_open, loader, started
from tests.benchmarks.peers import Peer, mutex_command, running
from tests.benchmarks.results import Results, parser, quantile, show, spread, tell
from tests.benchmarks.subjects import PAYLOAD, SETTINGS, MovableClock
from web.__main__ import Parts

PER_SECOND = 250.0
"""Requests: a half, about, of what either server can do beside its client on two cores."""

BULK_LEASE_SECONDS = 150.0
"""Half as long as the leases of the clients, which are not to end with those of the many."""

CONNECTIONS = 64
LEAD_SECONDS = 1.0
START_SECONDS = 120.0


class Stall(NamedTuple):
    """What the clients waited, in milliseconds."""

    p50: float
    p99: float
    p999: float
    longest: float


class Design(NamedTuple):
    """A server, and how it is told to purge."""

    name: str
    script: Script
    purge: Callable[[int], None]


def lives(client: int) -> Generator[bytes, Answer, None]:
    """Whole lives; every client has a job more than it takes, so that nobody finds nothing."""
    yield http.ENQUEUE
    yield from http.whole_life(client)


def post(port: int, path: str, body: str = "{}") -> None:
    """Sends a POST and waits for its end."""
    connection = HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}")


DESIGNS = (
    Design("queue-actor", lives, lambda port: post(port, "/v1/queues/bulk/purge", '{"state": "queued"}')),
    Design("original, Flask, threading.Lock", lives, lambda port: post(port, "/bulk/purge")),
)


# --- this server, with many jobs


def serve(jobs: int) -> None:
    """Be the server, with so many jobs in progress, whose leases end with SIGUSR1."""
    clock = MovableClock()

    def prepared(settings: Settings, machine: StateMachine, store: Store, _: Clock, sweeper: Sweeper) -> ActorEngine:
        now = clock()
        machine.apply(SetPolicy("bulk", QueuePolicy(max_attempts=None, max_stale=None)), now)
        for first in range(0, jobs, 1_000):
            count = min(1_000, jobs - first)
            machine.apply(Enqueue("bulk", [NewJob("benchmark", PAYLOAD)] * count), now)
            machine.apply(Dequeue("bulk", count=count, lease_seconds=BULK_LEASE_SECONDS), now)
            machine.take_changes()
        return ActorEngine(settings, machine, store, clock, sweeper)

    def end_leases(*_: Any) -> None:
        clock.shift_seconds = BULK_LEASE_SECONDS + 1

    signal.signal(signal.SIGUSR1, end_leases)
    service.ENGINES["actor"] = prepared
    http.serve(replace(SETTINGS, bind="127.0.0.1:0"), Parts())


@contextmanager
def server(design: Design, jobs: int) -> Iterator[tuple[int, int] | None]:
    """Process id and port; None: it is not installed."""
    if design.name == "queue-actor":
        command = [sys.executable, "-m", "tests.benchmarks.stalls_http", "--serve", str(jobs)]
        with started(command) as (pid, port):
            yield pid, port
        return
    peer = Peer(design.name, lambda _: None, lambda port, folder: mutex_command(port, folder, jobs))  # type: ignore[arg-type, return-value] # nobody connects by it
    with running(peer, "", seconds=START_SECONDS) as found:
        yield found


def felt(port: int, design: Design, seconds: float, work: Callable[[], object]) -> Stall:
    """Let clients ask by a schedule, begin the work, and see what they wait from then on."""
    load = loader().submit(drive_open, port, design.script, CONNECTIONS, LEAD_SECONDS + seconds, PER_SECOND)
    time.sleep(LEAD_SECONDS)  # the clients are under way by then
    work()
    done = load.result()
    if done.refused:
        raise RuntimeError(f"{done.refused} of {done.requests} requests were refused: this measures something else")
    ordered = sorted(
        second for second, at in zip(done.latencies, done.scheduled, strict=True) if at >= LEAD_SECONDS / 2
    )
    p50, p99, p999, longest = (quantile(ordered, share) * 1e3 for share in (0.5, 0.99, 0.999, 1.0))
    return Stall(p50, p99, p999, longest)


def main(words: Sequence[str] | None = None) -> None:
    """Measures, or with --serve is the server that is measured."""
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, help="how many jobs are concerned")
    options.add_argument("--serve", type=int, metavar="JOBS")
    arguments = options.parse_args(words)
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    repetitions, seconds = (1, 0.5) if arguments.smoke else (2, 4.0) if arguments.quick else (3, 10.0)
    jobs = arguments.jobs or (1_000 if arguments.smoke else 100_000 if arguments.quick else 1_000_000)
    results = Results("stalls_http", arguments)
    seen: dict[tuple[str, str], list[Stall]] = {}
    for number in range(repetitions):
        for design in DESIGNS[:1] if arguments.smoke else DESIGNS:
            with ExitStack() as stack:
                found = stack.enter_context(server(design, jobs))
                if found is None:
                    if number == 0:
                        results.skip(f"{design.name} is not installed (scripts/peers.sh)")
                    continue
                pid, port = found
                post(port, "/jobs/enqueue", http.BODY.decode())  # answered when the jobs are there
                works: dict[str, Callable[[], object]] = {
                    f"{jobs:,} jobs in progress, none stale": lambda: None,
                    f"{jobs:,} leases go stale at once": lambda pid=pid: os.kill(pid, signal.SIGUSR1),  # type: ignore[misc] # bound now
                    f"{jobs:,} jobs are purged": lambda purge=design.purge, port=port: purge(port),  # type: ignore[misc] # bound now
                }
                for what, work in works.items():
                    tell(f"{design.name}: {what}")
                    seen.setdefault((what, design.name), []).append(felt(port, design, seconds, work))
    rows = []
    for what in dict.fromkeys(what for what, _ in seen):
        for design in DESIGNS:
            if (what, design.name) in seen:
                columns = zip(*seen[what, design.name], strict=True)
                p50, p99, p999, longest = (spread(column) for column in columns)
                rows.append([what, design.name, show(p50.median), show(p99.median), p999, longest])
    results.table(
        "latencies",
        ["what happens:", "server:", "p50 ms", "p99 ms", "p99.9 ms", "longest ms"],
        rows,
        about=f"Latency of the clients' requests on the classic routes, open loop, {PER_SECOND:g} a second over "
        f"{CONNECTIONS} connections, in the {seconds:g} s after it begins; medians of {repetitions} repetitions.",
    )
    waits: dict[str, dict[str, float]] = {}
    for (what, name), stalls in seen.items():
        waits.setdefault(name, {})[what] = spread(one.p999 for one in stalls).median
    results.bars("stalls-http", "What everybody else waits over HTTP (p99.9, open loop)", "milliseconds", waits)
    results.rounds("latencies", [[*cell, stalls] for cell, stalls in seen.items()])
    results.end()


if __name__ == "__main__":
    main()
