"""Naive code on the Python client: many callers, one job a call, with shared requests and without, by turns."""

import argparse
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import anyio

from queue_actor.client import AsyncClient, Client, Job, NewJob
from tests.benchmarks.load import cpu_seconds, started

QUEUE = "images"
PAYLOAD = {"path": "/var/spool/images/0001.png", "width": 1280}
CALLERS = 64
AT_ONCE = 1_000  # jobs that are enqueued and leased at once before a measurement of concludes
CONCLUDES_MAX = 20_000  # that are ready for one measurement: it ends when there are no more
SHELLS = ("trio", "asyncio", "threads")
VERBS = ("enqueue", "conclude")


@dataclass
class Calls:
    """What a measurement came to, as the callers saw it."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What is measured."""

    shell: str
    verb: str
    callers: int
    coalesce: bool

    def __str__(self) -> str:
        return f"{self.verb}, {self.callers} {'threads' if self.shell == 'threads' else f'tasks on {self.shell}'}"


@dataclass(frozen=True)
class Measure:
    """One measurement."""

    jobs_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float  # per job


class Clock:
    """Measured is from when each caller has had its first answer, so with its connection, for so many seconds."""

    def __init__(self, callers: int, seconds: float) -> None:
        self._seconds = seconds
        self._to_come = callers
        self._lock = threading.Lock()
        self.begin = self.end = float("inf")

    def come(self) -> None:
        """A caller has had its first answer."""
        with self._lock:
            self._to_come -= 1
            if not self._to_come:
                self.begin = time.perf_counter()
                self.end = self.begin + self._seconds


def prepare(client: Client, verb: str, jobs: int) -> deque[Job]:
    """Jobs that wait to be concluded, if that is what is measured."""
    ready: deque[Job] = deque()
    while verb == "conclude" and len(ready) < jobs:
        client.enqueue_many(QUEUE, [NewJob("resize", PAYLOAD)] * AT_ONCE)
        ready.extend(client.dequeue(QUEUE, count=AT_ONCE, lease_seconds=3600))
    return ready


def in_threads(client: Client, row: Row, ready: deque[Job], clock: Clock) -> Calls:
    """So many threads, each with the next call when it has the answer to the last one."""
    calls, lock = Calls(), threading.Lock()

    def call() -> None:
        latencies: list[float] = []
        first = True
        while (began := time.perf_counter()) < clock.end and (ready or row.verb == "enqueue"):
            if row.verb == "enqueue":
                client.enqueue(QUEUE, "resize", PAYLOAD)
            else:
                client.conclude(ready.popleft())
            if first:
                first = False
                clock.come()
            if began >= clock.begin:
                latencies.append(time.perf_counter() - began)
        with lock:
            calls.latencies += latencies
            calls.seconds = time.perf_counter() - clock.begin

    with ThreadPoolExecutor(row.callers) as pool:
        for done in [pool.submit(call) for _ in range(row.callers)]:
            done.result()
    return calls


async def in_tasks(url: str, row: Row, ready: deque[Job], seconds: float) -> Calls:
    """So many tasks, likewise."""
    calls = Calls()

    async def call(client: AsyncClient, clock: Clock) -> None:
        first = True
        while (began := time.perf_counter()) < clock.end and (ready or row.verb == "enqueue"):
            if row.verb == "enqueue":
                await client.enqueue(QUEUE, "resize", PAYLOAD)
            else:
                await client.conclude(ready.popleft())
            if first:
                first = False
                clock.come()
            if began >= clock.begin:
                calls.latencies.append(time.perf_counter() - began)
        calls.seconds = time.perf_counter() - clock.begin

    async with AsyncClient(url, coalesce=row.coalesce) as client, anyio.create_task_group() as tasks:
        clock = Clock(row.callers, seconds)
        for _ in range(row.callers):
            tasks.start_soon(call, client, clock)
    return calls


def drive(url: str, row: Row, seconds: float) -> Calls:
    """One measurement, in a process of its own."""
    with Client(url, coalesce=row.coalesce) as client:
        ready = prepare(client, row.verb, CONCLUDES_MAX if row.coalesce else CONCLUDES_MAX // 10)
        if row.shell == "threads":
            return in_threads(client, row, ready, Clock(row.callers, seconds))
    return anyio.run(in_tasks, url, row, ready, seconds, backend=row.shell)


def measure(pid: int, port: int, row: Row, seconds: float) -> Measure:
    """Have it driven, and look at the server's CPU meanwhile: what prepares concludes counts, too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()
        before = cpu_seconds(pid)
        calls = pool.submit(drive, f"http://127.0.0.1:{port}", row, seconds).result()
        spent = cpu_seconds(pid) - before
    cuts = quantiles(calls.latencies, n=100)
    count = len(calls.latencies)
    return Measure(count / calls.seconds, cuts[49] * 1e3, cuts[98] * 1e3, spent / count * 1e6)


def report(measures: dict[Row, list[Measure]]) -> None:
    """Prints medians: jobs a second, apart and together, the ratio of the two, and latencies in milliseconds."""

    def middle(row: Row, figure: Callable[[Measure], float]) -> float:
        return median(figure(one) for one in measures[row])

    print(f"{'':32} {'apart/s':>9} {'together/s':>11} {'ratio':>6} {'p50 ms':>15} {'p99 ms':>15}")
    for apart in [row for row in measures if not row.coalesce]:
        together = Row(apart.shell, apart.verb, apart.callers, coalesce=True)
        rates = [middle(row, lambda one: one.jobs_per_second) for row in (apart, together)]
        p50, p99 = (
            " to ".join(f"{middle(row, figure):.2f}" for row in (apart, together))
            for figure in (lambda one: one.p50_ms, lambda one: one.p99_ms)
        )
        print(f"{apart!s:32} {rates[0]:9.0f} {rates[1]:11.0f} {rates[1] / rates[0]:6.1f} {p50:>15} {p99:>15}")


def main() -> None:
    """Measures on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, and nobody who calls alone")
    parser.add_argument("--callers", type=int, nargs="+", help="how many call at the same time")
    parser.add_argument("--shells", nargs="+", choices=SHELLS, default=SHELLS)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS)
    parser.add_argument("--json", type=Path, help="where to write every round")
    arguments = parser.parse_args()
    rounds, seconds, usual = (3, 1.0, [CALLERS]) if arguments.quick else (5, 3.0, [CALLERS, 1])
    rows = tuple(
        Row(shell, verb, callers, coalesce)
        for callers in arguments.callers or usual
        for verb in arguments.verbs
        for shell in arguments.shells
        for coalesce in (False, True)
    )
    measures: dict[Row, list[Measure]] = {row: [] for row in rows}
    with started([sys.executable, "-m", "tests.benchmarks.http", "--serve"]) as (pid, port):
        for number in range(rounds):
            for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
                measures[row].append(measure(pid, port, row, seconds))
    print(f"medians of {rounds} rounds of {seconds:g} s; process id {os.getpid()}\n")
    report(measures)
    if arguments.json is not None:
        written = [[asdict(row), [asdict(one) for one in many]] for row, many in measures.items()]
        arguments.json.write_text(json.dumps(written))


if __name__ == "__main__":
    main()
