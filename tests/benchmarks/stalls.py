"""What everybody else feels while 10^6 jobs go stale, or are purged, listed, redriven, forgotten, or 10^7 slots move.

Others send commands by a schedule, whatever becomes of the ones before, at half of what the queue can do, and latencies
count from the scheduled moment (an open loop): who waits for his answer before he asks again would ask a queue that
stands still only once. This queue works in slices and with heaps; beside it stands the original design, with one list,
full scans and a mutex (`original.py`). Both are called without HTTP, by tasks of one process.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NamedTuple

import trio
from msgspec.structs import replace

from queue_actor import state_machine
from tests.benchmarks import subjects
from tests.benchmarks.results import Results, parser, quantile, show, spread, tell
from tests.benchmarks.subjects import Subject, ours, theirs

SUBJECTS: dict[str, Callable[[float], AbstractAsyncContextManager[Subject]]] = {"actor": ours, "original": theirs}

PER_SECOND_MAX = 4_000
"""More than a server gets through HTTP is of no interest."""

BURST = 2_000


class Pace(NamedTuple):
    """How long things take that take as long as one likes."""

    lead_seconds: float = 0.3  # the others are at it before it begins
    least_seconds: float = 0.5  # the others are looked at; fewer, and hardly anybody would feel it
    idle_seconds: float = 1.5  # nothing happens, or what the others do themselves
    sweep_seconds: float = 1.0  # from a search for stale jobs to the next


BRIEF = Pace(0.02, 0.03, 0.05, 0.02)

WANTED_MS = 10.0


class Stall(NamedTuple):
    """What the others felt of one thing and the longest step, in milliseconds; how long it took, in seconds."""

    p50: float
    p99: float
    p999: float
    longest: float
    step: float
    seconds: float


class Steps(trio.abc.Instrument):
    """The longest step of any task, in seconds of CPU: how long the event loop stood still, whoever else was at work.

    What a request waits also depends on what other processes do with the machine; this does not.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = 0.0

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See Trio."""
        self._began = time.thread_time()

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See Trio."""
        self.longest = max(self.longest, time.thread_time() - self._began)


async def capacity(subject: Subject) -> float:
    """Commands a second, when as many as there are have been sent at once."""
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(BURST):
            nursery.start_soon(subject.other, number)
    return BURST / (time.perf_counter() - began)


async def felt(subject: Subject, work: Callable[[], object], per_second: float, pace: Pace) -> Stall:
    """Let others ask by a schedule, begin the work, and see what they wait until it has ended."""
    clock = time.perf_counter
    latencies: list[float] = []
    began = clock()
    ended = began + 3_600.0
    worked = 0.0
    steps = Steps()
    trio.lowlevel.add_instrument(steps)

    async def other(number: int, scheduled: float) -> None:
        await subject.other(number)
        if scheduled >= began + pace.lead_seconds:
            latencies.append(clock() - scheduled)

    async def disturb() -> None:
        nonlocal ended, worked
        await trio.sleep(pace.lead_seconds)
        at = clock()
        steps.longest = 0.0
        await work()  # type: ignore[misc] # it is one of a subject's methods
        worked = clock() - at
        ended = max(clock(), at + pace.least_seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        number = 0
        while (scheduled := began + number / per_second) < ended:
            pause = scheduled - clock()
            if pause > 0:
                await trio.sleep(pause)
            nursery.start_soon(other, number, scheduled)
            number += 1
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()
    trio.lowlevel.remove_instrument(steps)
    ordered = sorted(latencies)
    p50, p99, p999, longest = (quantile(ordered, share) * 1e3 for share in (0.5, 0.99, 0.999, 1.0))
    return Stall(p50, p99, p999, longest, steps.longest * 1e3, worked)


async def lives(name: str, jobs: int, pace: Pace) -> dict[str, Stall]:
    """Takes so many jobs through everything that may happen to them."""
    seen: dict[str, Stall] = {}
    async with SUBJECTS[name](pace.sweep_seconds) as subject:
        per_second = min(PER_SECOND_MAX, await capacity(subject) / 2)

        async def feel(what: str, work: Callable[[], object]) -> None:
            tell(f"{name}: {what}")
            gc.collect()
            seen[what] = await felt(subject, work, per_second, pace)

        count = f"{jobs:,}"
        await feel("nothing happens", partial(trio.sleep, pace.idle_seconds))
        await subject.fill(jobs)
        await feel(f"{count} jobs are listed", subject.list_all)
        await feel(f"{count} jobs are searched for what is not there", subject.search)
        await subject.lease()
        await feel(f"{count} jobs in progress, none stale", partial(trio.sleep, pace.idle_seconds))
        await feel(f"{count} leases go stale at once", subject.stale)
        await subject.lease(dying=True)
        await feel(f"{count} jobs die at once", subject.stale)
        await feel(f"{count} dead jobs are redriven", subject.redrive)
        await subject.work_off()
        await feel(f"{count} concluded jobs are forgotten", subject.forget)
        await subject.fill(jobs)
        await feel(f"{count} jobs are purged", subject.purge)
    return seen


async def arrays(name: str, slots: int, pace: Pace) -> dict[str, Stall]:
    """Grows and compacts an array of so many slots, under those who use it."""
    seen: dict[str, Stall] = {}
    for what, head in ((f"{slots:,} slots grow", 0), (f"{slots:,} slots are compacted", slots // 2 - 100)):
        tell(f"{name}: {what}")
        async with SUBJECTS[name](pace.sweep_seconds) as subject:
            per_second = min(PER_SECOND_MAX, await capacity(subject) / 2)
            subject.hollow(slots, head)
            gc.collect()
            seen[what] = await felt(subject, partial(trio.sleep, pace.idle_seconds), per_second, pace)
    return seen


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, help="how many jobs are concerned")
    options.add_argument("--slice", type=int, help="jobs of a sweep and of a bulk command's slice, other than it is")
    arguments = options.parse_args(words)
    if arguments.slice:
        # In this process alone.
        subjects.SETTINGS = replace(subjects.SETTINGS, sweep_slice=arguments.slice)
        state_machine.BULK_JOBS_MAX = state_machine.SWEEP_JOBS_MIN = arguments.slice
    repetitions = 1 if arguments.smoke else 2 if arguments.quick else 3
    jobs = arguments.jobs or (2_000 if arguments.smoke else 100_000 if arguments.quick else 1_000_000)
    slots = (10_000,) if arguments.smoke else (1_000_000, 10_000_000)
    pace = BRIEF if arguments.smoke else Pace()
    results = Results("stalls", arguments)
    seen: dict[str, dict[str, list[Stall]]] = {name: {} for name in SUBJECTS}
    # As the server does: what was imported stays, and the collector need not look at it.
    gc.collect()
    gc.freeze()
    for _ in range(repetitions):
        for name in SUBJECTS:
            for run in (partial(lives, name, jobs, pace), *(partial(arrays, name, many, pace) for many in slots)):
                for what, stall in trio.run(run).items():
                    seen[name].setdefault(what, []).append(stall)
    tell_all(results, seen, repetitions)
    results.end()


def tell_all(results: Results, seen: dict[str, dict[str, list[Stall]]], repetitions: int) -> None:
    """Tells what the others felt."""
    rows = []
    for what in seen["actor"]:
        for name in SUBJECTS:
            p50, p99, p999, longest, step, seconds = (spread(column) for column in zip(*seen[name][what], strict=True))
            rows.append([what, name, show(p50.median), show(p99.median), p999, longest, step, show(seconds.median)])
    results.table(
        "latencies",
        [
            "what happens:",
            "design:",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "longest ms",
            "longest step, CPU ms",
            "it takes s",
        ],
        rows,
        about=f"Latency of the others' single commands, open loop, at half of the rate that the design can do, at most "
        f"{PER_SECOND_MAX:,} a second; medians of {repetitions} repetitions. Without HTTP, in memory. The longest step "
        "is how long the event loop stood still, in its own CPU time: other processes are not in it.",
    )
    results.rounds("latencies", seen)
    waits = {
        name: {what: spread(one.p999 for one in stalls).median for what, stalls in seen[name].items()}
        for name in SUBJECTS
    }
    results.bars("stalls", "What everybody else waits (p99.9, open loop)", "milliseconds", waits, limit=WANTED_MS)


if __name__ == "__main__":
    main()
