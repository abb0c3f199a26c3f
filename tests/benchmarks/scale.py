"""How cost and memory grow with the number of jobs, queues, waiters and priorities, and what days of traffic leave.

The state machine alone, each number of jobs in a process of its own, so that none finds the memory of another. Time is
virtual: nothing waits. Cost is CPU.
"""

import gc
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import trio

from queue_actor.commands import (
    Cancel,
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    Fail,
    FailClaim,
    Lease,
    NewJob,
    ReadJob,
    Sweep,
)
from queue_actor.jobs import JobError, Now
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES
from tests.benchmarks.arrays import sweep_parameters
from tests.benchmarks.results import Results, parser, plain, show, spread, tell

PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}'
NEW = NewJob("benchmark", PAYLOAD)
SETTINGS = Settings(
    queued_jobs_max=100_000_000,
    retention_jobs=1_000,
    inbox_requests_max=100_000,
    waiters_max=100_000,
    slow_batch_seconds=3_600,
)
START = Now(1_000.0, 1_790_000_000.0)
MEMORY_JOBS_MIN = 100_000
"""Fewer jobs than this take less memory than a process does for other reasons."""

LIVES_FEW = 100
"""Fewer lives than that are no measurement, and not worth making ten thousand queues for."""

DAY_MINUTES = 24 * 60


def machine_of(settings: Settings = SETTINGS) -> StateMachine:
    """An empty queue."""
    return StateMachine(settings, secret=bytes(SECRET_BYTES))


def enqueue(machine: StateMachine, jobs: Sequence[NewJob], now: Now, queue: str = "q") -> None:
    """Add jobs, as an engine without a store does."""
    machine.apply(Enqueue(queue, jobs), now)
    machine.take_changes()


def life(machine: StateMachine, new: Sequence[NewJob], now: Now, queue: str = "q") -> None:
    """Enqueue jobs, and dequeue and conclude as many."""
    enqueue(machine, new, now, queue)
    leases = machine.apply(Dequeue(queue, count=len(new)), now).leases
    machine.take_changes()
    machine.apply(Conclude([Claim(queue, lease.job.id, lease.token) for lease in leases]), now)
    machine.take_changes()
    machine.take_readied()


def cpu_us(work: Callable[[], object], count: int) -> float:
    """CPU of one of so many, in microseconds."""
    began = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - began) / count * 1e6


def resident_bytes() -> int:
    """What the process has of the memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- by the number of jobs


class Level(NamedTuple):
    """What things cost where so many jobs are queued; microseconds, bytes and milliseconds."""

    one: float
    hundred: float
    read: float
    sweep: float
    memory: float
    collection: float


def level(jobs: int, rounds: int, lives: int) -> list[Level]:
    """Fill a queue with so many jobs, and measure some rounds."""
    gc.collect()
    before = resident_bytes()
    machine = machine_of()
    for first in range(0, jobs, 1_000):
        enqueue(machine, [NEW] * min(1_000, jobs - first), START)
    memory = (resident_bytes() - before) / jobs if jobs >= MEMORY_JOBS_MIN else math.nan
    seen = []
    for number in range(rounds):
        now = Now(START.monotonic + number, START.wall + number)
        one = cpu_us(partial(life, machine, [NEW], now), lives)
        hundred = cpu_us(partial(life, machine, [NEW] * 100, now), max(1, lives // 50)) / 100
        last = machine._queues["q"].next_id - 1
        read = cpu_us(partial(machine.apply, ReadJob("q", last), now), lives)
        while machine.apply(Sweep(), now).more:
            machine.take_changes()
        sweep = cpu_us(partial(machine.apply, Sweep(), now), 100)
        began = time.process_time()
        gc.collect()
        seen.append(Level(one, hundred, read, sweep, memory, (time.process_time() - began) * 1e3))
    return seen


def tell_levels(results: Results, levels: dict[int, list[Level]]) -> None:
    """Tells how costs grow."""
    rows = []
    first = {name: median(getattr(one, name) for one in next(iter(levels.values()))) for name in ("one", "hundred")}
    for jobs, seen in levels.items():
        one, hundred, read, sweep, memory, collection = (spread(column) for column in zip(*seen, strict=True))
        ratios = " / ".join(
            f"{figure.median / first[name]:.2f}" for name, figure in (("one", one), ("hundred", hundred))
        )
        shown = "" if math.isnan(memory.median) else f"{memory.median:,.0f}"
        rows.append(
            [f"{jobs:,}", one, hundred, ratios, show(read.median), show(sweep.median), shown, show(collection.median)]
        )
    head = ["jobs queued", "CPU us a life, by 1", "by 100", "ratios to the first line", "read us", "idle sweep us"]
    results.table(
        "growth",
        [*head, "bytes a job", "full collection ms"],
        rows,
        about="The state machine alone. A life is enqueue, dequeue and conclude, with so many jobs ahead of it. Bytes "
        "are those of the process for each queued job, without its payload. A full garbage collection, which Python "
        "makes by itself now and then, holds everybody up.",
    )
    results.rounds("growth", {str(jobs): seen for jobs, seen in levels.items()})
    with results.plot("scale", "CPU of a whole life by jobs queued", "jobs queued", "microseconds") as axes:
        for name, label in (("one", "one by one"), ("hundred", "by 100")):
            values = [median(getattr(one, name) for one in seen) for seen in levels.values()]
            axes.plot(list(levels), values, marker="o", label=label)
        plain(axes, x=list(levels))
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)


# --- days of traffic


class Minute(NamedTuple):
    """The array at the end of a minute."""

    live: int
    used: int
    capacity: int
    compactions: int


def days(count: int, per_minute: float) -> list[Minute]:
    """Days of traffic: a wave with a peak at noon that is more than the workers can do, and bursts at every hour.

    One in fifty jobs is cancelled while it waits, one in twenty fails once.
    """
    random = Random(1)  # noqa: S311 - the same days each time
    machine = machine_of()
    seen: list[Minute] = []
    id_ = 0
    for minute in range(count * DAY_MINUTES):
        now = Now(START.monotonic + minute * 60, START.wall + minute * 60)
        machine.apply(Sweep(), now)
        wave = per_minute * (1.2 + math.sin(2 * math.pi * (minute / DAY_MINUTES - 0.25)))
        arrivals = round(wave * random.uniform(0.5, 1.5)) + (round(20 * per_minute) if minute % 60 == 0 else 0)
        if arrivals:
            enqueue(machine, [NEW] * arrivals, now)
        cancelled = [id_ + n + 1 for n in range(arrivals) if random.random() < 0.02]
        id_ += arrivals
        if cancelled:
            machine.apply(Cancel("q", cancelled), now)
        left = round(per_minute * 1.8)
        while left > 0:
            leases = machine.apply(Dequeue("q", count=min(10, left)), now).leases
            if not leases:
                break
            left -= len(leases)
            finish(machine, leases, now, random)
        while machine.apply(Sweep(), now).more:
            pass
        machine.take_changes()
        machine.take_readied()
        array = machine._queues["q"].ready.statistics()[0]
        seen.append(Minute(array.live, array.used, array.capacity, array.compactions))
    return seen


def finish(machine: StateMachine, leases: Iterable[Lease], now: Now, random: Random) -> None:
    """Conclude most of some jobs; the others fail, if it is for the first time."""
    done: list[Claim] = []
    failed: list[FailClaim] = []
    for lease in leases:
        if lease.job.fails == 0 and random.random() < 0.05:
            failed.append(FailClaim("q", lease.job.id, lease.token, error=JobError("Timeout", "no answer")))
        else:
            done.append(Claim("q", lease.job.id, lease.token))
    machine.apply(Conclude(done), now)
    machine.apply(Fail(failed), now)


def tell_days(results: Results, seen: list[Minute]) -> None:
    """Tells how the array fared, day by day."""
    rows = []
    for day in range(len(seen) // DAY_MINUTES):
        of_day = seen[day * DAY_MINUTES : (day + 1) * DAY_MINUTES]
        live, capacity = (max(getattr(one, name) for one in of_day) for name in ("live", "capacity"))
        before = seen[day * DAY_MINUTES - 1].compactions if day else 0
        rows.append(
            [
                day + 1,
                f"{live:,}",
                f"{min(one.live for one in of_day):,}",
                f"{capacity:,}",
                f"{capacity / live:.2f}",
                of_day[-1].compactions - before,
            ]
        )
    head = ["day", "most jobs in it", "fewest", "capacity, slots", "capacity to most jobs", "compactions"]
    results.table("days", head, rows, about="The ready array over days of simulated traffic with a wave and bursts.")
    title = "The ready array over days of traffic"
    with results.plot("days", title, "hours", "slots") as axes:
        every = seen[::20]
        hours = [n * 20 / 60 for n in range(len(every))]
        axes.plot(hours, [one.capacity for one in every], label="capacity")
        axes.plot(hours, [one.used for one in every], linewidth=0.8, label="used")
        axes.plot(hours, [one.live for one in every], linewidth=0.8, label="jobs")
        axes.set_ylim(bottom=0)


# --- queues, priorities, delays, waiters


def in_queues(queues: int, lives: int) -> float:
    """CPU of a life where there are so many queues, each with some jobs."""
    machine = machine_of()
    names = [f"tenant-{n}" for n in range(queues)]
    for name in names:
        enqueue(machine, [NEW] * 5, START, name)
    order = Random(1).choices(names, k=lives)  # noqa: S311 - the same each time
    rest = iter(order)
    return cpu_us(lambda: life(machine, [NEW], START, next(rest)), lives)


def in_priorities(priorities: int, lives: int) -> float:
    """CPU of a life where jobs of so many priorities wait."""
    machine = machine_of()
    random = Random(1)  # noqa: S311 - the same each time
    new = [NewJob("benchmark", PAYLOAD, priority=n) for n in range(priorities)]
    for one in new:
        enqueue(machine, [one] * 20, START)
    return cpu_us(lambda: life(machine, [random.choice(new)], START), lives)


def delayed(jobs: int) -> float:
    """CPU of a job that is scheduled and becomes due, where so many are."""
    machine = machine_of()
    random = Random(1)  # noqa: S311 - the same each time
    new = [NewJob("benchmark", PAYLOAD, delay_seconds=random.uniform(1, 3_600)) for _ in range(1_000)]
    began = time.process_time()
    for first in range(0, jobs, 1_000):
        enqueue(machine, new[: min(1_000, jobs - first)], START)
    later = Now(START.monotonic + 3_601, START.wall + 3_601)
    while machine.apply(Sweep(), later).more:
        machine.take_changes()
    return (time.process_time() - began) / jobs * 1e6


async def waited_for(waiters: int, jobs: int) -> float:
    """CPU of a job that is handed to one of so many who wait, through the actor."""
    async with open_engine(SETTINGS) as engine:

        async def wait() -> None:
            while True:
                (lease,) = (await engine.execute(Dequeue("q", wait_seconds=20))).leases
                await engine.execute(Conclude([Claim("q", lease.job.id, lease.token)]))

        async with trio.open_nursery() as nursery:
            for _ in range(waiters):
                nursery.start_soon(wait)
            while engine.statistics().waiters < waiters:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.001)
            began = time.process_time()
            for _ in range(jobs):
                await engine.execute(Enqueue("q", [NEW]))
            spent = time.process_time() - began
            nursery.cancel_scope.cancel()
    return spent / jobs * 1e6


def tell_shapes(results: Results, repetitions: int, lives: int, many: int) -> None:
    """Tells what many of anything else cost."""
    shapes: dict[str, dict[int, Callable[[int], float]]] = {
        "queues": dict.fromkeys((1, 100, 10_000), lambda n: in_queues(n, lives)),
        "priorities that wait": dict.fromkeys((1, 10, 100), lambda n: in_priorities(n, lives)),
        "jobs scheduled over an hour": dict.fromkeys((1_000, many), delayed),
        "waiters": dict.fromkeys((1, 100, 1_000), lambda n: trio.run(waited_for, n, lives)),
    }
    rows = []
    for what, sizes in shapes.items():
        tell(what)
        first = 0.0
        for size, measure in sizes.items() if lives > LIVES_FEW else list(sizes.items())[:1]:
            cost = spread(measure(size) for _ in range(repetitions))
            first = first or cost.median
            rows.append([what, f"{size:,}", cost, f"{cost.median / first:.2f}"])
    results.table(
        "many",
        ["of what:", "how many", "CPU us", "ratio to the first"],
        rows,
        about="CPU of a life one by one, with so many queues or priorities; of a job from its schedule to its queue; "
        "of a job handed to a waiter through the actor, its conclude included.",
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    arguments = parser(__doc__).parse_args(words)
    levels: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    repetitions, lives, many, rounds = 5, 5_000, 1_000_000, (7, 7.0)
    if arguments.quick:
        levels, repetitions, lives, many, rounds = levels[:4], 3, 2_000, 100_000, (3, 10.0)
    if arguments.smoke:
        levels, repetitions, lives, many, rounds = (100, 1_000), 1, 20, 2_000, (1, 0.5)
    results = Results("scale", arguments)
    tell("growth")
    seen: dict[int, list[Level]] = {}
    for jobs in levels:
        if arguments.smoke:
            seen[jobs] = level(jobs, repetitions, lives)
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seen[jobs] = pool.submit(level, jobs, repetitions, lives).result()
    tell_levels(results, seen)
    tell("days")
    tell_days(results, days(*rounds))
    tell_shapes(results, repetitions, lives, many)
    tell("parameters of the array")
    sweep_parameters(results, repetitions, smoke=arguments.smoke, quick=arguments.quick)
    results.end()


if __name__ == "__main__":
    main()
