"""What durability costs over HTTP: whole lives in memory, `normal` and `full`, by turns in one run."""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

from msgspec.structs import replace

from queue_actor.directory import open_directory
from queue_actor.settings import DURABLE_RETENTION_JOBS
from tests.benchmarks.http import SETTINGS, batches, serve
from tests.benchmarks.load import Measure, measure, rotated, started
from tests.benchmarks.results import Results, parser, plain, show, spread
from web.__main__ import SWITCH_SECONDS, Parts

KINDS = ("memory", "normal", "full")
CLIENTS = (1, 4, 16, 64, 256)
CLIENTS_QUICK = (1, 16, 64)
SIZES = (1, 10, 100, 1_000)
JOBS_AT_ONCE_MAX = 32_000
"""More jobs under way at once would measure the server's limits."""

INBOX_REQUESTS_MAX = 100_000

Cell = tuple[int, int, str]


def serve_kind(kind: str, directory: Path, engine: Literal["actor", "lock"] = "actor") -> None:
    """Be the server of one kind, with one of the engines."""
    # As many clients as `engines` has must not be refused.
    settings = replace(SETTINGS, engine=engine, inbox_requests_max=INBOX_REQUESTS_MAX)
    if kind == "memory":
        serve(settings, Parts())
        return
    settings = replace(
        settings, data=str(directory / f"{kind}-{engine}"), durability=kind, retention_jobs=DURABLE_RETENTION_JOBS
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    with open_directory(settings) as data:
        serve(settings, Parts(data=data))


def cells(clients: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Which numbers of clients and sizes of batches are measured."""
    return [(many, size) for many in clients for size in sizes if many * size <= JOBS_AT_ONCE_MAX]


def main(words: Sequence[str] | None = None) -> None:
    """Measures, or with --serve is the server that is measured."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, nargs="+", default=None, help="measure only these numbers of clients")
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="measure only these sizes of batches")
    options.add_argument("--serve", choices=KINDS)
    options.add_argument("--engine", choices=("actor", "lock"), default="actor", help="with --serve")
    options.add_argument("--directory", type=Path)
    arguments = options.parse_args(words)
    if arguments.serve:
        serve_kind(arguments.serve, arguments.directory, arguments.engine)
        return
    rounds, seconds = (1, 0.05) if arguments.smoke else (3, 0.5) if arguments.quick else (5, 2.0)
    clients = arguments.clients or ((16,) if arguments.smoke else CLIENTS_QUICK if arguments.quick else CLIENTS)
    sizes = (100,) if arguments.smoke else arguments.sizes
    results = Results("durable", arguments)
    measures: dict[Cell, list[Measure]] = {}
    commits: dict[Cell, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        # Beside the sources: a directory for temporary files may be no disk.
        Path(".cache").mkdir(exist_ok=True)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-", dir=".cache"))
        command = [sys.executable, "-m", "tests.benchmarks.durable", "--directory", directory, "--serve"]
        servers = {kind: stack.enter_context(started([*command, kind])) for kind in KINDS}
        for number in range(rounds):
            for many, size in cells(clients, sizes):
                # Each is the first in turn, so that what comes and goes on the machine meets them alike.
                for kind in rotated(KINDS, number):
                    pid, port = servers[kind]
                    one = measure(pid, port, partial(batches, size), connections=many, seconds=seconds)
                    measures.setdefault((many, size, kind), []).append(one)
                    commits.setdefault((many, size, kind), []).append(commit_ms(port))
    tell_all(results, measures, commits, f"Whole lives over `/v1`; medians of {rounds} rounds of {seconds:g} s.")
    results.end()


def commit_ms(port: int) -> tuple[float, float]:
    """What half, and 99 of 100, of the server's last thousand commits took at most; nothing in memory."""
    with urlopen(f"http://127.0.0.1:{port}/v1/statistics", timeout=10) as answer:
        store = json.load(answer)["store"]
    return (0.0, 0.0) if store is None else (store["commit_seconds_p50"] * 1e3, store["commit_seconds_p99"] * 1e3)


def tell_all(
    results: Results, measures: dict[Cell, list[Measure]], commits: dict[Cell, list[tuple[float, float]]], about: str
) -> None:
    """Tells jobs a second, what the store leaves of the rate in memory, CPU a job, and latencies in milliseconds.

    The latencies are those of a request, and of the server's last thousand commits.
    """
    rows = []
    shares: dict[int, dict[int, float]] = {}
    for many, size in dict.fromkeys(cell[:2] for cell in measures):
        base = 0.0
        for kind in KINDS:
            seen = measures[many, size, kind]
            rate = spread(one.per_second * size / 3 for one in seen)
            base = base or rate.median
            cpu = spread(one.cpu_us * 3 / size for one in seen)
            p50, p99 = (spread(getattr(one, key) for one in seen).median for key in ("p50_ms", "p99_ms"))
            commit = " / ".join(show(spread(one[n] for one in commits[many, size, kind]).median) for n in (0, 1))
            share = rate.median / base
            rows.append([many, size, kind, rate, f"{share:.2f}", cpu, f"{show(p50)} / {show(p99)}", commit])
            if kind == "full":
                shares.setdefault(size, {})[many] = share
    head = ["clients", "batch", "durability:", "jobs/s", "of memory", "CPU us a job"]
    results.table("durability", [*head, "request p50 / p99 ms", "commit p50 / p99 ms"], rows, about=about)
    results.rounds("durability", [[*cell, [vars(one) for one in many]] for cell, many in measures.items()])
    title = "What `full` durability keeps of the rate in memory"
    with results.plot("durable", title, "clients", "share of jobs a second") as axes:
        for size, seen_shares in shares.items():
            axes.plot(list(seen_shares), list(seen_shares.values()), marker="o", label=f"{size} jobs a request")
        plain(axes, x=sorted({many for seen_shares in shares.values() for many in seen_shares}))
        axes.set_yscale("linear")
        axes.set_ylim(0, 1.1)


if __name__ == "__main__":
    main()
