"""The state machine alone: CPU for a job's whole life, memory of a queued job, and both beside millions of others.

Before and after jobs went through their lives together (f361983), by turns, the least of several runs on two cores on
which twenty processes waited; us of CPU for enqueue, dequeue, conclude, and handing the changes over:

    jobs a command      1      10     100    1,000
    before           44.4    13.2    12.7     12.8
    after            44.0    11.9     7.2      6.2

By one a job, what a command costs is nearly all; that run was on the busiest machine, and a quiet one takes half. A
queued job took 421 bytes beyond its payload before, and 405 after; the longest command while a million were enqueued
by a thousand took 28 ms of CPU before, for a dictionary that grew, and 8 ms after.
"""

import argparse
import gc
import json
import platform
import resource
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from queue_actor.commands import Claim, Command, Conclude, Dequeue, Enqueue, NewJob, R, Sweep
from queue_actor.jobs import Now
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES

BATCHES = (1, 10, 100, 1_000)
LIVES = {1: 6_000, 10: 20_000, 100: 40_000, 1_000: 60_000}
"""Jobs a measurement takes through their whole life, by batch: about a third of a second each."""
THERE = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Jobs that stand in line while others live."""
THERE_QUICK = THERE[:4]
WEIGHED = 1_000_000
"""Jobs whose memory is measured."""
KEPT = 10_000
"""Finished jobs that are kept, so that a sweep has as many to forget as were concluded before it."""

PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}'


class Life(NamedTuple):
    """What a job costs, in us of CPU, by verb; handing the changes over is part of each."""

    enqueue: float
    dequeue: float
    conclude: float
    forget: float

    @property
    def whole(self) -> float:
        """Enqueue, dequeue and conclude."""
        return self.enqueue + self.dequeue + self.conclude


class World:
    """A state machine, its clock, and the longest command so far."""

    def __init__(self) -> None:
        settings = Settings(queued_jobs_max=10**8, memory_bytes_max=10**11, retention_jobs=KEPT)
        self.machine = StateMachine(settings, secret=bytes(SECRET_BYTES))
        self.seconds = 0.0
        self.longest_seconds = 0.0
        self.spent_seconds: dict[type[Command[Any]], float] = {}

    def do(self, command: Command[R]) -> R:
        """Apply a command and take its changes, as an engine does."""
        now = Now(1_000.0 + self.seconds, 1.8e9 + self.seconds)
        began = time.process_time()
        reply = self.machine.apply(command, now)
        self.machine.take_changes()
        self.machine.take_readied()
        spent = time.process_time() - began
        self.spent_seconds[type(command)] = self.spent_seconds.get(type(command), 0.0) + spent
        self.longest_seconds = max(self.longest_seconds, spent)
        return reply

    def fill(self, jobs: int) -> None:
        """Enqueue so many, by a thousand."""
        new = [NewJob("benchmark", PAYLOAD)] * 1_000
        for _ in range(jobs // 1_000):
            self.seconds += 0.01
            self.do(Enqueue("q", new))

    def live(self, batch: int, jobs: int) -> Life:
        """Take jobs through their whole life, and others from the head of the line if there are any."""
        new = [NewJob("benchmark", PAYLOAD)] * batch
        self.spent_seconds.clear()
        rounds = max(1, jobs // batch)
        for _ in range(rounds):
            self.seconds += 0.01
            self.do(Enqueue("q", new))
            leases = self.do(Dequeue("q", count=batch)).leases
            results = self.do(Conclude([Claim("q", lease.job.id, lease.token) for lease in leases])).jobs
            assert len(results) == batch
            while self.do(Sweep()).more:
                pass
        spent = [self.spent_seconds[verb] for verb in (Enqueue, Dequeue, Conclude, Sweep)]
        return Life(*(seconds / (rounds * batch) * 1e6 for seconds in spent))


def lives(batch: int, jobs: int) -> Life:
    """A job's whole life in a queue that is otherwise empty."""
    world = World()
    world.live(1_000, KEPT)  # from here on a sweep forgets as many as are concluded
    gc.collect()
    return world.live(batch, jobs)


class Weight(NamedTuple):
    """What a queued job takes beyond its payload and type, in bytes."""

    allocated: float
    resident: float


def weight() -> Weight:
    """By what Python allocates, and by what the system gives it; each in a run of its own."""
    world = World()
    gc.collect()
    resident = -_resident_bytes()
    world.fill(WEIGHED)
    resident += _resident_bytes()
    del world
    gc.collect()
    tracemalloc.start()
    world = World()
    allocated = -tracemalloc.get_traced_memory()[0]
    world.fill(WEIGHED // 10)
    allocated += tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return Weight(allocated / (WEIGHED // 10), resident / WEIGHED)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Scale(NamedTuple):
    """What jobs cost beside many others, in us of CPU, and what takes long, in ms of CPU."""

    whole: float
    longest_fill_ms: float
    longest_life_ms: float
    collection_ms: float


def scale(there: int, jobs: int) -> Scale:
    """Lives by a thousand in a queue in which so many stand in line."""
    world = World()
    world.live(1_000, KEPT)
    world.longest_seconds = 0.0
    world.fill(there)
    longest_fill, world.longest_seconds = world.longest_seconds, 0.0
    began = time.process_time()
    gc.collect()
    collection = time.process_time() - began
    life = world.live(1_000, jobs)
    return Scale(life.whole, longest_fill * 1e3, world.longest_seconds * 1e3, collection * 1e3)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, so that no measurement finds what another has left."""
    with get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def middle(figures: list[Any]) -> Any:
    """The median of each column."""
    return type(figures[0])(*(median(column) for column in zip(*figures, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three repetitions rather than seven, up to 10^6 jobs")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    arguments = parser.parse_args()
    repetitions = 3 if arguments.quick else 7
    everything: list[dict[str, Any]] = []

    print(f"Python {platform.python_version()}; us of CPU a job, medians of {repetitions} repetitions in turn.\n")
    print("| jobs a command | enqueue | dequeue | conclude | the three | forget |")
    print("|---:|---:|---:|---:|---:|---:|")
    runs: dict[int, list[Life]] = {batch: [] for batch in BATCHES}
    for _ in range(repetitions):
        for batch in BATCHES:
            runs[batch].append(apart(lives, batch, LIVES[batch]))
    for batch, figures in runs.items():
        life = middle(figures)
        print(
            f"| {batch:,} | {life.enqueue:.2f} | {life.dequeue:.2f} | {life.conclude:.2f} "
            f"| **{median(figure.whole for figure in figures):.2f}** | {life.forget:.2f} |",
            flush=True,
        )
        everything.append({"batch": batch, "runs": [figure._asdict() for figure in figures]})

    weighed = apart(weight)
    print(f"\nA queued job takes {weighed.allocated:.0f} bytes beyond its payload by tracemalloc, ", end="")
    print(f"{weighed.resident:.0f} by resident memory of {WEIGHED:,} jobs.\n")
    everything.append({"weight": weighed._asdict()})

    print("| jobs in line | us of CPU a life by 1,000 | ratio | longest command, filling / living, ms | full gc, ms |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    sizes: dict[int, list[Scale]] = {there: [] for there in (THERE_QUICK if arguments.quick else THERE)}
    for _ in range(3):
        for there, measured in sizes.items():
            measured.append(apart(scale, there, LIVES[1_000]))
    for there, measured in sizes.items():
        of_size = middle(measured)
        ratio = median(own.whole / first.whole for own, first in zip(measured, sizes[THERE[0]], strict=True))
        print(
            f"| {there:,} | {of_size.whole:.2f} | {ratio:.2f} | {of_size.longest_fill_ms:.1f} / "
            f"{of_size.longest_life_ms:.1f} | {of_size.collection_ms:.0f} |",
            flush=True,
        )
        everything.append({"there": there, "runs": [each._asdict() for each in measured]})
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
