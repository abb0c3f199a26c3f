"""The actor against the mutex, and against no lock at all: commands per second, CPU per job, latency, by callers.

The same state machine, called without HTTP. `threads` is the mutex as it is mostly written: a `threading.Lock`, and as
many threads as there are callers, each of which applies its command and stores its changes under the lock.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import trio
from msgspec.structs import replace

from queue_actor import service
from queue_actor.commands import Claim, Command, Conclude, Dequeue, Dequeued, Enqueue, NewJob, R
from queue_actor.commands import Results as Concluded
from queue_actor.directory import connect, open_directory
from queue_actor.engine import Engine, Request
from queue_actor.engines.lock import LockEngine
from queue_actor.errors import QueueError
from queue_actor.jobs import Now
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import StateMachine
from queue_actor.statements import plan
from queue_actor.threads import one_at_a_time
from queue_actor.tokens import SECRET_BYTES
from tests.benchmarks.results import Results, parser, plain, quantile, show, spread
from web.__main__ import SWITCH_SECONDS

CALLERS = (1, 4, 16, 64, 256, 1_024)
CALLERS_QUICK = {"memory": (1, 16, 64, 1_024), "full": (1, 16, 64)}
BATCHES = (1, 10, 100, 1_000)
BATCHES_QUICK = (1, 100)
JOBS = {1: 12_000, 10: 40_000, 100: 60_000, 1_000: 100_000}
"""Jobs a measurement takes through their whole life, by batch: about a third of a second each."""

COMMITS_MAX = 600
"""Commits of a measurement with a store, about: each takes a flush, and more would take minutes."""

SETTINGS = Settings(inbox_requests_max=100_000, queued_jobs_max=10_000_000)
PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}'


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

NAMES = {
    "memory": ("actor", "lock", "threads", "nowait", "none", "yield"),
    # The others take no turns, so that a commit which is awaited would let them act between each other's changes.
    "full": ("actor", "lock", "threads"),
}


class Figures(NamedTuple):
    """One measurement."""

    commands_per_second: float
    cpu_us_per_job: float
    p50_us: float
    p99_us: float
    p999_us: float


class Clock:
    """Counts seconds and CPU of this process, and every command's latency."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        gc.collect()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, jobs: int) -> Figures:
        """What has been measured."""
        elapsed, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        ordered = sorted(self.seconds)
        return Figures(
            len(ordered) / elapsed,
            cpu / jobs * 1e6,
            *(quantile(ordered, share) * 1e6 for share in (0.5, 0.99, 0.999)),
        )


def life(batch: int, rounds: int, seconds: list[float]) -> Generator[Command[Any], Any, None]:
    """One caller: enqueues, dequeues and concludes so many jobs at once, so many times over."""
    clock = time.perf_counter
    new = [NewJob("benchmark", PAYLOAD)] * batch
    for _ in range(rounds):
        at = clock()
        yield Enqueue("q", new)
        then, at = at, clock()
        seconds.append(at - then)
        leased: Dequeued = yield Dequeue("q", count=batch)
        then, at = at, clock()
        seconds.append(at - then)
        concluded: Concluded = yield Conclude([Claim("q", lease.job.id, lease.token) for lease in leased.leases])
        seconds.append(clock() - at)
        assert len(concluded.jobs) == batch


# --- callers as tasks


async def measure(name: str, settings: Settings, callers: int, batch: int, rounds: int) -> Figures:
    """Take jobs through enqueue, dequeue and conclude, in batches, by so many callers at once."""
    # The setting knows two engines; the others are put in the place of the second for as long as this takes.
    kept = service.ENGINES["lock"]
    service.ENGINES["lock"] = ENGINES[name]
    settings = replace(settings, engine="actor" if name == "actor" else "lock")
    try:
        with open_directory(settings) if settings.data else nullcontext() as data:
            async with open_engine(settings, data=data) as engine:
                await engine.ready.wait()
                clock = Clock()

                async def caller() -> None:
                    steps = life(batch, rounds, clock.seconds)
                    command = next(steps, None)
                    while command is not None:
                        reply = await engine.execute(command)
                        try:
                            command = steps.send(reply)
                        except StopIteration:
                            return

                async with trio.open_nursery() as nursery:
                    for _ in range(callers):
                        nursery.start_soon(caller)
                return clock.figures(rounds * callers * batch)
    finally:
        service.ENGINES["lock"] = kept


# --- callers as threads


class ThreadEngine:
    """The state machine behind a `threading.Lock`: each thread applies its command and stores its changes."""

    def __init__(self, settings: Settings, store: SqliteStore | None) -> None:
        self._machine = StateMachine(settings, secret=bytes(SECRET_BYTES))
        self._store = store
        self._lock = Lock()

    def execute(self, command: Command[R]) -> R:
        """Carry out a command."""
        with self._lock:
            now = Now(time.monotonic(), time.time())
            reply = self._machine.apply(command, now)
            changes = self._machine.take_changes()
            if self._store is not None and changes:
                # What `SqliteStore.commit` does, but for going to a thread: the caller is one.
                statements, log_bytes = plan(changes)
                self._store._unmoved_bytes += log_bytes
                self._store._write(statements)
            return reply


@contextmanager
def opened_store(settings: Settings) -> Iterator[SqliteStore | None]:
    """The store that the threads share, if there is one."""
    if not settings.data:
        yield None
        return
    path = Path(settings.data)
    path.mkdir()
    store = SqliteStore(
        path / "queue.sqlite",
        connect,
        durability=settings.durability,
        fresh_secret=bytes(SECRET_BYTES),
        fresh_instance="threads",
        run_in_thread=one_at_a_time(),
        room_bytes=partial(float, math.inf),
    )
    try:
        yield store
    finally:
        store.close()


def measure_threads(settings: Settings, callers: int, batch: int, rounds: int) -> Figures:
    """The same as `measure`, by threads."""
    with opened_store(settings) as store, ThreadPoolExecutor(callers) as pool:
        engine = ThreadEngine(settings, store)

        def caller(seconds: list[float]) -> None:
            steps = life(batch, rounds, seconds)
            command = next(steps)
            while True:
                reply = engine.execute(command)
                try:
                    command = steps.send(reply)
                except StopIteration:
                    return

        clock = Clock()
        all_seconds: list[list[float]] = [[] for _ in range(callers)]
        list(pool.map(caller, all_seconds))
        clock.seconds = [second for seconds in all_seconds for second in seconds]
        return clock.figures(rounds * callers * batch)


# --- measuring

Cell = tuple[str, int, int]


def once(name: str, store: str, callers: int, batch: int, share: int) -> Figures:
    """One measurement, with a store of its own."""
    jobs = JOBS[batch] // share
    rounds = jobs // (callers * batch)
    if store != "memory":
        # The actor's callers share a commit; the others' commands have one each.
        rounds = min(rounds, COMMITS_MAX // share // 3 // (1 if name == "actor" else callers))
    rounds = max(1, rounds)
    with TemporaryDirectory(dir=".cache") as folder:
        settings = SETTINGS
        if store != "memory":
            settings = replace(settings, data=f"{folder}/data", durability=store)
        usual = sys.getswitchinterval()
        if store != "memory":
            sys.setswitchinterval(SWITCH_SECONDS)
        try:
            if name == "threads":
                return measure_threads(settings, callers, batch, rounds)
            return trio.run(measure, name, settings, callers, batch, rounds)
        finally:
            sys.setswitchinterval(usual)


def tell(results: Results, store: str, runs: dict[Cell, list[Figures]], repetitions: int) -> None:
    """Tells the figures of one store, and draws the ratios of single jobs."""
    rows = []
    ratios: dict[tuple[int, str], dict[int, float]] = {}
    for (name, callers, batch), figures in runs.items():
        locks = runs["lock", callers, batch]
        ratio = spread(
            own.commands_per_second / lock.commands_per_second for own, lock in zip(figures, locks, strict=True)
        )
        rate, cpu, *latencies = (spread(column) for column in zip(*figures, strict=True))
        shown = " / ".join(show(one.median) for one in latencies)
        rows.append([callers, batch, name, show(rate.median), ratio, cpu, shown])
        ratios.setdefault((batch, name), {})[callers] = ratio.median
    results.table(
        f"commands {store}",
        ["callers", "batch", "engine:", "commands/s", "ratio to lock", "CPU us a job", "p50 / p99 / p99.9 us"],
        rows,
        about=f"Store: {store}; medians of {repetitions} repetitions by turns. The ratio is that of commands a second "
        "to the `lock` engine, repetition by repetition. CPU is that of the whole process, with the callers' own "
        "share, which is the same for all.",
    )
    results.rounds(f"commands {store}", [[*cell, [list(one) for one in figures]] for cell, figures in runs.items()])
    batch = min(batch for batch, _ in ratios)
    title = f"Single jobs, {'in memory' if store == 'memory' else 'every change on the disk'}: commands per second"
    with results.plot(f"engines-{store}", title, "callers", "ratio to trio.Lock") as axes:
        for name in NAMES[store]:
            seen = ratios[batch, name]
            axes.plot(list(seen), list(seen.values()), marker="o", label=name)
        plain(axes, x=sorted({callers for _, callers, _ in runs}))


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    options = parser(__doc__)
    options.add_argument("--store", choices=list(NAMES), nargs="+", default=list(NAMES))
    arguments = options.parse_args(words)
    batches: Sequence[int]
    repetitions, share, batches = 7, 1, BATCHES
    if arguments.quick:
        repetitions, share, batches = 3, 6, BATCHES_QUICK
    if arguments.smoke:
        repetitions, share, batches = 1, 100, (10,)
    Path(".cache").mkdir(exist_ok=True)
    results = Results("engines", arguments)
    for store in arguments.store:
        callers: Sequence[int] = (4,) if arguments.smoke else CALLERS_QUICK[store] if arguments.quick else CALLERS
        runs: dict[Cell, list[Figures]] = {}
        for _ in range(repetitions):
            for many, batch, name in product(callers, batches, NAMES[store]):
                runs.setdefault((name, many, batch), []).append(once(name, store, many, batch, share))
        ordered = dict(sorted(runs.items(), key=lambda one: one[0][1:]))
        tell(results, store, ordered, repetitions)
    results.end()


if __name__ == "__main__":
    main()
