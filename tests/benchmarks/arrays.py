"""The parameters of the ready array, one changed at a time: part of `scale`.

Three kinds of use. *steady*: a line of constant length, one in and one out. *burst*: filled at once, then emptied.
*cancelled*: filled, then half of the jobs are taken out of the middle while the others are handed out.
"""

import time
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from queue_actor.ready import ReadyArray
from queue_actor.settings import Settings
from tests.benchmarks.results import Results, show, spread

DEFAULTS = Settings()


class Parameters(NamedTuple):
    """What a ready array is made with; see the settings `ready_*` and `compact_slice`."""

    initial: int = DEFAULTS.ready_initial
    growth: float = DEFAULTS.ready_growth
    compact: float = DEFAULTS.ready_compact
    slice_: int = DEFAULTS.compact_slice


SWEPT: dict[str, tuple[float, ...]] = {
    "initial": (16, 64, 1_024, 65_536),
    "growth": (1.1, 1.5, 2.0, 4.0),
    "compact": (0.1, 0.25, 0.5, 0.75, 0.95),
    "slice_": (1_000, 4_096, 16_384, 1_000_000),
}
NAMES = {"initial": "READY_INITIAL", "growth": "READY_GROWTH", "compact": "READY_COMPACT", "slice_": "COMPACT_SLICE"}
BATCH = 10
"""Jobs that a command takes out; `tidy` is called once a command."""


class Use(NamedTuple):
    """What a use has cost."""

    ns: float
    longest_ms: float  # CPU of the longest command
    slots: float  # at the most, to the jobs that were in it at the most
    compactions: int


class Timed:
    """Carries out commands on an array, and keeps the longest."""

    def __init__(self, parameters: Parameters) -> None:
        self.array = ReadyArray(**parameters._asdict())
        self.place = 0
        self.slots = self.live = 0
        self.longest = 0.0
        self.seconds = 0.0

    def do(self, command: Callable[[], None]) -> None:
        """Carry out one command."""
        began = time.thread_time()
        command()
        self.array.tidy()
        took = time.thread_time() - began
        self.seconds += took
        self.longest = max(self.longest, took)
        self.slots, self.live = max(self.slots, self.array.capacity), max(self.live, len(self.array))

    def put(self) -> None:
        """A command that brings jobs."""
        self.array.extend(self.place + 1, range(self.place + 1, self.place + 1 + BATCH))
        self.place += BATCH

    def take(self) -> None:
        """A command that takes jobs."""
        self.array.take(len(self.array.head(BATCH)))

    def used(self) -> Use:
        """What it has cost, by the job."""
        return Use(self.seconds / self.place * 1e9, self.longest * 1e3, self.slots / self.live, self.array.compactions)


def steady(parameters: Parameters, jobs: int) -> Use:
    """One in, one out, with a tenth of the jobs in it."""
    timed = Timed(parameters)
    for _ in range(jobs // 10 // BATCH):
        timed.do(timed.put)
    for _ in range(jobs // BATCH):
        timed.do(timed.put)
        timed.do(timed.take)
    return timed.used()


def burst(parameters: Parameters, jobs: int) -> Use:
    """All in, all out."""
    timed = Timed(parameters)
    for _ in range(jobs // BATCH):
        timed.do(timed.put)
    while len(timed.array):
        timed.do(timed.take)
    return timed.used()


def cancelled(parameters: Parameters, jobs: int) -> Use:
    """All in; half of them are taken out of the middle."""
    timed = Timed(parameters)
    for _ in range(jobs // BATCH):
        timed.do(timed.put)
    places = Random(1).sample(range(jobs // 4, jobs), jobs // 2)  # noqa: S311 - the same each time
    for place in places:
        timed.do(lambda place=place: timed.array.remove(place))  # type: ignore[misc] # bound now
    while len(timed.array):
        timed.do(timed.take)
    return timed.used()


USES = {"steady": steady, "burst": burst, "cancelled": cancelled}


def sweep_parameters(results: Results, repetitions: int, *, smoke: bool, quick: bool) -> None:
    """Tells what each parameter does to each use."""
    jobs = 2_000 if smoke else 50_000 if quick else 500_000
    rows = []
    rounds = {}
    for name, values in SWEPT.items():
        for value in values:
            parameters = Parameters(**{name: int(value) if name in {"initial", "slice_"} else value})  # type: ignore[arg-type] # by its name
            row = [NAMES[name], f"{value:,.10g}" + (" (default)" if parameters == Parameters() else "")]
            for use in USES.values():
                seen = [use(parameters, jobs) for _ in range(repetitions)]
                rounds[f"{name} {value:g} {use.__name__}"] = seen
                ns, longest, slots, compactions = (spread(column).median for column in zip(*seen, strict=True))
                row.append(f"{ns:,.0f} / {show(longest)} / {slots:.2f} / {compactions:,.0f}")
            rows.append(row)
    results.table(
        "parameters",
        ["parameter:", "value", *USES],
        rows,
        about=f"Nanoseconds of CPU a job / the longest command, ms / slots to jobs at the most / compactions; {jobs:,} "
        f"jobs, {BATCH} a command; medians of {repetitions}.",
    )
    results.rounds("parameters", rounds)
