"""What durability costs over HTTP: whole lives in memory, `normal` and `full`, by turns in one run."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from msgspec.structs import replace

from queue_actor.directory import open_directory
from queue_actor.settings import DURABLE_RETENTION_JOBS
from tests.benchmarks.http import SETTINGS, batches, serve
from tests.benchmarks.load import Measure, measure, rotated, started
from web.__main__ import SWITCH_SECONDS, Parts

KINDS = ("memory", "normal", "full")
CLIENTS = (1, 4, 16, 64, 256)
CLIENTS_QUICK = (1, 16, 64)
SIZES = (1, 10, 100, 1_000)
JOBS_AT_ONCE_MAX = 32_000
"""More jobs under way at once would measure the server's limits."""

Cell = tuple[int, int, str]


def serve_kind(kind: str, directory: Path) -> None:
    """Be the server of one kind."""
    if kind == "memory":
        serve(SETTINGS, Parts())
        return
    settings = replace(SETTINGS, data=str(directory / kind), durability=kind, retention_jobs=DURABLE_RETENTION_JOBS)
    sys.setswitchinterval(SWITCH_SECONDS)
    with open_directory(settings) as data:
        serve(settings, Parts(data=data))


def cells(clients: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Which numbers of clients and sizes of batches are measured."""
    return [(many, size) for many in clients for size in sizes if many * size <= JOBS_AT_ONCE_MAX]


def main() -> None:
    """Measures, or with --serve is the server that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cells and rounds")
    parser.add_argument("--clients", type=int, nargs="+", default=None, help="measure only these numbers of clients")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="measure only these sizes of batches")
    parser.add_argument("--json", type=Path, help="where to write every round")
    parser.add_argument("--serve", choices=KINDS)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_kind(arguments.serve, arguments.directory)
        return
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 2.0)
    clients = arguments.clients or (CLIENTS_QUICK if arguments.quick else CLIENTS)
    measures: dict[Cell, list[Measure]] = {}
    commits: dict[Cell, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        # Beside the sources: a directory for temporary files may be no disk.
        Path(".cache").mkdir(exist_ok=True)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-", dir=".cache"))
        command = [sys.executable, "-m", "tests.benchmarks.durable", "--directory", directory, "--serve"]
        servers = {kind: stack.enter_context(started([*command, kind])) for kind in KINDS}
        for number in range(rounds):
            for many, size in cells(clients, arguments.sizes):
                # Each is the first in turn, so that what comes and goes on the machine meets them alike.
                for kind in rotated(KINDS, number):
                    pid, port = servers[kind]
                    one = measure(pid, port, partial(batches, size), connections=many, seconds=seconds)
                    measures.setdefault((many, size, kind), []).append(one)
                    commits.setdefault((many, size, kind), []).append(commit_ms(port))
    print(f"whole lives over /v1; medians of {rounds} rounds of {seconds:g} s; process id {os.getpid()}\n")
    report(measures, commits)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([[cell, [vars(one) for one in many]] for cell, many in measures.items()]))


def commit_ms(port: int) -> tuple[float, float]:
    """What half, and 99 of 100, of the server's last thousand commits took at most; nothing in memory."""
    with urlopen(f"http://127.0.0.1:{port}/v1/statistics", timeout=10) as answer:
        store = json.load(answer)["store"]
    return (0.0, 0.0) if store is None else (store["commit_seconds_p50"] * 1e3, store["commit_seconds_p99"] * 1e3)


def report(measures: dict[Cell, list[Measure]], commits: dict[Cell, list[tuple[float, float]]]) -> None:
    """Prints jobs a second, what the store leaves of the rate in memory, CPU a job, and latencies in milliseconds.

    The latencies are those of a request, and of the server's last thousand commits.
    """
    head = f"{'clients':>7} {'batch':>6}  {'':8} {'jobs/s':>8} {'of memory':>9}"
    print(f"{head} {'CPU us/job':>10} {'p50':>7} {'p99':>7} {'commit':>7} {'p99':>7}")
    for many, size in dict.fromkeys(cell[:2] for cell in measures):
        base = 0.0
        for kind in KINDS:
            seen = measures[many, size, kind]
            rate = median(one.per_second for one in seen) * size / 3
            base = base or rate
            cpu = median(one.cpu_us for one in seen) * 3 / size
            p50, p99 = median(one.p50_ms for one in seen), median(one.p99_ms for one in seen)
            share = rate / base
            commit50, commit99 = (median(one[n] for one in commits[many, size, kind]) for n in (0, 1))
            latencies = f"{p50:7.2f} {p99:7.2f} {commit50:7.2f} {commit99:7.2f}"
            print(f"{many:7} {size:6}  {kind:8} {rate:8.0f} {share:9.2f} {cpu:10.1f} {latencies}")


if __name__ == "__main__":
    main()
