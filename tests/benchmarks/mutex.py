"""The actor against the mutex over HTTP: the same server with each of the two engines, in memory and durable."""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

from tests.benchmarks.http import batches, next_with_conclude
from tests.benchmarks.load import Measure, measure, rotated, started
from tests.benchmarks.results import Results, parser, plain, show, spread

ENGINES = ("actor", "lock")
STORES = ("memory", "full")
CLIENTS = (1, 16, 64, 256, 1_024)
CLIENTS_QUICK = (1, 64, 1_024)
SIZES = (1, 100)
JOBS_AT_ONCE_MAX = 32_000
"""More jobs under way at once would measure the server's limits."""

Cell = tuple[str, int, int, str]


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    arguments = parser(__doc__).parse_args(words)
    rounds, seconds = (1, 0.05) if arguments.smoke else (3, 0.5) if arguments.quick else (5, 2.0)
    clients = (16,) if arguments.smoke else CLIENTS_QUICK if arguments.quick else CLIENTS
    sizes = (1,) if arguments.smoke else SIZES
    stores = STORES[:1] if arguments.smoke else STORES
    results = Results("mutex", arguments)
    measures: dict[Cell, list[Measure]] = {}
    with ExitStack() as stack:
        Path(".cache").mkdir(exist_ok=True)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutex-", dir=".cache"))
        command = [sys.executable, "-m", "tests.benchmarks.durable", "--directory", folder, "--serve"]
        servers = {
            (store, engine): stack.enter_context(started([*command, store, "--engine", engine]))
            for store, engine in product(stores, ENGINES)
        }
        for number in range(rounds):
            for store, many, size in product(stores, clients, sizes):
                if many * size > JOBS_AT_ONCE_MAX:
                    continue
                for engine in rotated(ENGINES, number):
                    script = partial(batches if size > 1 else next_with_conclude, size)
                    one = measure(*servers[store, engine], script, connections=many, seconds=seconds)
                    measures.setdefault((store, many, size, engine), []).append(one)
    tell(results, measures, f"Medians of {rounds} rounds of {seconds:g} s.")
    results.end()


def tell(results: Results, measures: dict[Cell, list[Measure]], about: str) -> None:
    """Tells requests a second with the ratio to the lock, CPU a request, and latencies."""
    rows = []
    ratios: dict[str, dict[int, float]] = {}
    for store, many, size in dict.fromkeys(cell[:3] for cell in measures):
        locks = measures[store, many, size, "lock"]
        for engine in ENGINES:
            seen = measures[store, many, size, engine]
            rate, cpu, p50, p99 = (
                spread(getattr(one, key) for one in seen) for key in ("per_second", "cpu_us", "p50_ms", "p99_ms")
            )
            ratio = spread(own.per_second / lock.per_second for own, lock in zip(seen, locks, strict=True))
            shown = f"{show(p50.median)} / {show(p99.median)}"
            rows.append([store, many, size, engine, show(rate.median), ratio, cpu, shown])
            if engine == "actor" and size == 1:
                ratios.setdefault(store, {})[many] = ratio.median
    head = ["store:", "clients", "batch", "engine:", "requests/s", "ratio to lock", "CPU us a request", "p50 / p99 ms"]
    results.table(
        "requests",
        head,
        rows,
        about=f"{about} Single jobs are lives of two requests, enqueue and a conclude that brings the next job; "
        "batches of 100 are lives of three.",
    )
    results.rounds("requests", [[*cell, [vars(one) for one in many]] for cell, many in measures.items()])
    title = "Single jobs over HTTP: requests per second, the actor to trio.Lock"
    with results.plot("mutex", title, "clients", "ratio") as axes:
        for store, seen_ratios in ratios.items():
            axes.plot(list(seen_ratios), list(seen_ratios.values()), marker="o", label=store)
        plain(axes, x=sorted({cell[1] for cell in measures}))
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)


if __name__ == "__main__":
    main()
