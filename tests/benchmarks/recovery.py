"""How long a start takes that finds so many live jobs on the disk, and how much memory they take."""

import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import trio
from msgspec.structs import replace

from queue_actor.commands import Claim, Conclude, Dequeue, Enqueue, NewJob
from queue_actor.directory import open_directory
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.benchmarks.results import Results, parser, show, spread, tell

PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}'
# To fill a disk is not what is measured, so nothing is flushed; the file is the same.
SETTINGS = Settings(
    durability="normal", queued_jobs_max=100_000_000, slow_batch_seconds=3_600, slow_commit_seconds=3_600
)


class Start(NamedTuple):
    """Seconds until it serves, of these CPU, bytes a job of memory, and MiB of the file."""

    seconds: float
    cpu_seconds: float
    bytes_a_job: float
    file_mib: float


def fill(data: str, jobs: int) -> None:
    """Make a directory with so many live jobs: nine of ten are queued, one in progress; and a tenth as many ended."""

    async def run() -> None:
        settings = replace(SETTINGS, data=data)
        with open_directory(settings) as opened:
            async with open_engine(settings, data=opened) as engine:
                await engine.ready.wait()
                for first in range(0, jobs, 1_000):
                    count = min(1_000, jobs - first)
                    await engine.execute(Enqueue("q", [NewJob("benchmark", PAYLOAD)] * (count + count // 10)))
                    leases = (await engine.execute(Dequeue("q", count=count // 5))).leases
                    ended = [Claim("q", lease.job.id, lease.token) for lease in leases[: len(leases) // 2]]
                    await engine.execute(Conclude(ended))

    trio.run(run)


def start(data: str, jobs: int) -> Start:
    """Start on it, in a process of its own, and end when it serves."""
    before = _resident_bytes()
    began, cpu = time.perf_counter(), time.process_time()

    async def run() -> tuple[float, float]:
        settings = replace(SETTINGS, data=data)
        with open_directory(settings) as opened:
            async with open_engine(settings, data=opened) as engine:
                await engine.ready.wait()
                return time.perf_counter() - began, time.process_time() - cpu

    seconds, spent = trio.run(run)
    size = (Path(data) / "queue.sqlite").stat().st_size
    return Start(seconds, spent, (_resident_bytes() - before) / jobs, size / 2**20)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    arguments = parser(__doc__).parse_args(words)
    rounds = 1 if arguments.smoke else 3
    levels = (1_000,) if arguments.smoke else (10_000, 100_000) if arguments.quick else (100_000, 1_000_000)
    results = Results("recovery", arguments)
    rows = []
    took: dict[str, float] = {}
    Path(".cache").mkdir(exist_ok=True)
    for jobs in levels:
        tell(f"{jobs:,} jobs")
        with tempfile.TemporaryDirectory(prefix="recovery-", dir=".cache") as folder:
            data = f"{folder}/data"
            fill(data, jobs)
            starts = []
            for _ in range(rounds):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    starts.append(pool.submit(start, data, jobs).result())
        seconds, spent, memory, size = (spread(column) for column in zip(*starts, strict=True))
        took[f"{jobs:,} live jobs"] = seconds.median
        a_job = (show(seconds.median / jobs * 1e6), f"{memory.median:,.0f}", show(size.median))
        rows.append([f"{jobs:,}", seconds, spent, *a_job])
        results.rounds(f"{jobs} jobs", starts)
    head = ["live jobs", "seconds until it serves", "of these CPU", "us a job", "bytes of memory a job", "file MiB"]
    results.table(
        "recovery",
        head,
        rows,
        about=f"Medians of {rounds} starts. Nine of ten jobs are queued, one is leased; a tenth as many have ended. "
        "Memory is that of the process at the most, payloads included.",
    )
    results.bars("recovery", "A start on many live jobs", "seconds", {"until it serves": took})
    results.end()


if __name__ == "__main__":
    main()
