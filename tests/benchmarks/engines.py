"""The actor against the mutex, and against no lock at all: commands per second, CPU per job, latency."""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import trio

from queue_actor import service
from queue_actor.commands import Claim, Command, Conclude, Dequeue, Enqueue, NewJob, R
from queue_actor.engine import Engine, Request
from queue_actor.engines.lock import LockEngine
from queue_actor.errors import QueueError
from queue_actor.service import open_engine
from queue_actor.settings import Settings

CALLERS = (1, 16, 64, 256)
BATCHES = (1, 10, 100, 1_000)
JOBS = {1: 12_000, 10: 40_000, 100: 60_000, 1_000: 100_000}
"""Jobs a measurement takes through their whole life, by batch: about a third of a second each."""


class NowaitEngine(LockEngine):
    """Takes the lock without waiting. Nothing is awaited under it in memory mode, so it is always free."""

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command."""
        self._lock.acquire_nowait()
        try:
            reply = await self._carry_out(Request(command))
        finally:
            self._lock.release()
        assert reply is not None
        assert not isinstance(reply, QueueError)
        return reply


class UnlockedEngine(LockEngine):
    """No lock at all: tasks that do not await cannot interrupt one another."""

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command."""
        reply = await self._carry_out(Request(command))
        assert reply is not None
        assert not isinstance(reply, QueueError)
        return reply


class YieldingEngine(UnlockedEngine):
    """No lock, and one turn of the scheduler a command, as every real caller takes when it reads its next request."""

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command."""
        await trio.lowlevel.checkpoint()
        return await super().execute(command)


ENGINES: dict[str, Callable[..., Engine]] = {
    "actor": service.ENGINES["actor"],
    "lock": service.ENGINES["lock"],
    "nowait": NowaitEngine,
    "none": UnlockedEngine,
    "yield": YieldingEngine,
}


class Figures(NamedTuple):
    """One measurement."""

    commands_per_second: float
    cpu_us_per_job: float
    p50_us: float
    p99_us: float


async def measure(name: str, callers: int, batch: int, jobs: int) -> Figures:
    """Take `jobs` jobs through enqueue, dequeue and conclude, in batches, by so many callers at once."""
    # The setting knows two engines; the others are put in the place of the second for as long as this takes.
    kept = service.ENGINES["lock"]
    service.ENGINES["lock"] = ENGINES[name]
    try:
        async with open_engine(Settings(engine="actor" if name == "actor" else "lock")) as engine:
            return await _measure(engine, callers, batch, jobs)
    finally:
        service.ENGINES["lock"] = kept


async def _measure(engine: Engine, callers: int, batch: int, jobs: int) -> Figures:
    rounds = max(1, jobs // (callers * batch))
    new = [NewJob("benchmark", b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}')] * batch
    seconds: list[float] = []
    clock = time.perf_counter

    async def caller() -> None:
        for _ in range(rounds):
            at = clock()
            await engine.execute(Enqueue("q", new))
            then, at = at, clock()
            seconds.append(at - then)
            leases = (await engine.execute(Dequeue("q", count=batch))).leases
            then, at = at, clock()
            seconds.append(at - then)
            claims = [Claim("q", lease.job.id, lease.token) for lease in leases]
            results = await engine.execute(Conclude(claims))
            seconds.append(clock() - at)
            assert len(results.jobs) == batch

    gc.collect()
    started, cpu = clock(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(caller)
    elapsed, cpu = clock() - started, time.process_time() - cpu
    seconds.sort()
    return Figures(
        commands_per_second=len(seconds) / elapsed,
        cpu_us_per_job=cpu / (rounds * callers * batch) * 1e6,
        p50_us=seconds[len(seconds) // 2] * 1e6,
        p99_us=seconds[len(seconds) * 99 // 100] * 1e6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three repetitions of a third of the jobs")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    arguments = parser.parse_args()
    repetitions, share = (3, 3) if arguments.quick else (7, 1)

    print(f"Python {platform.python_version()}, trio {trio.__version__}; medians of {repetitions} repetitions in turn.")
    print("CPU is that of the whole process: the callers' own share, the same for all engines, is in it.")
    print("`x lock` is the ratio of commands per second to the lock engine, median of the ratios of each repetition.\n")
    print("| callers | batch | engine | commands/s | CPU us/job | p50 us | p99 us | x lock |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    everything = []
    for callers, batch in product(CALLERS, BATCHES):
        runs: dict[str, list[Figures]] = {name: [] for name in ENGINES}
        for _ in range(repetitions):
            for name in ENGINES:
                runs[name].append(trio.run(measure, name, callers, batch, JOBS[batch] // share))
        for name, figures in runs.items():
            middle = Figures(*(median(column) for column in zip(*figures, strict=True)))
            ratio = median(
                own.commands_per_second / lock.commands_per_second
                for own, lock in zip(figures, runs["lock"], strict=True)
            )
            print(
                f"| {callers} | {batch} | {name} | {middle.commands_per_second:,.0f} | {middle.cpu_us_per_job:.1f} "
                f"| {middle.p50_us:,.0f} | {middle.p99_us:,.0f} | {ratio:.2f} |",
                flush=True,
            )
            everything.append(
                {"callers": callers, "batch": batch, "engine": name, "runs": [f._asdict() for f in figures]}
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
