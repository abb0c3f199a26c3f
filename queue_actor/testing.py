"""Tests of your own handlers: the real engine under a virtual clock, with workers, and trouble that a seed decides.

    def test_every_order_is_paid_once():
        async def scenario(queue: SimulatedQueue) -> None:
            await queue.enqueue("pay", {"order": 17})
            await queue.work(pay, workers=3)
            assert ledger == {17: 1}

        for seed in range(100):
            simulate(scenario, seed=seed, faults=Faults(answers_lost=0.1, crashes=0.2, stalls=0.2, restarts=0.02))

The server is the one that runs elsewhere: state machine, actor, sweeper, and a durable store, over a database in memory
that survives restarts. Workers do what the ones to copy in tests/process/workers do. Nothing sleeps: when everybody
waits, the clock jumps to whatever is due next, so hours of leases and pauses take milliseconds. All is decided by the
seed, the order in which tasks run included, so a seed that fails will fail again.

What a handler does must be Trio's, or anyio's, and nothing else: a thread, a socket or a real clock would be waited for
while the virtual clock runs on. Put fakes in their place.

`work` takes the `App` of a worker, too, whose handlers run as they are (testing_apps.py).
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import outcome
import trio

from queue_actor.commands import (
    Command,
    Conclude,
    Dequeue,
    Enqueue,
    IdempotencyKey,
    JobFilter,
    NewJob,
    R,
    ReadJob,
    ReadQueue,
    Results,
    Search,
)
from queue_actor.errors import QueueError
from queue_actor.jobs import DEFAULT_QUEUE, FINISHED, NO_OPTIONS, Job, JobOptions, OnExisting
from queue_actor.settings import Settings
from queue_actor.testing_jobs import FunctionTask, GiveUp, Handler, MakesTask, RunningJob, Task
from queue_actor.virtual import Fate, VirtualServer, run_in_virtual_time

if TYPE_CHECKING:
    from queue_actor.worker import App

__all__ = ["Faults", "GiveUp", "Handler", "RunningJob", "SimulatedQueue", "Unfinished", "simulate"]

T = TypeVar("T")

SETTINGS: Final = Settings(retention_seconds=86_400.0)
"""Those of a simulation that is given none: a job that has ended is still there when the test looks at it."""

SECONDS_MAX: Final = 10_000.0
"""Virtual time after which a simulation has failed."""

WAIT_SECONDS: Final = 5.0
"""How long a worker waits for a job, before it asks again."""

AWAITS_MEAN: Final = 3.0
"""At which of a handler's awaits trouble strikes, on average."""


class Unfinished(AssertionError):
    """Jobs were left when the time was up: they fail again and again, or somebody waits who is never answered."""


class Faults(msgspec.Struct, frozen=True):
    """How likely each kind of trouble is, each time that it might come: from 0 (never) to less than 1.

    Raises:
        ValueError: A chance is out of bounds.
    """

    answers_lost: float = 0.0
    """That a client hears nothing of its request. Half of these were carried out; the client sends it again."""

    crashes: float = 0.0
    """That a worker dies of a job: at one of the handler's awaits, or between its end and the word to the server."""

    stalls: float = 0.0
    """That a worker stands still in the same places, for half a lease to two: somebody else may have the job then."""

    restarts: float = 0.0
    """That the server is killed while a request is under way, and started again some seconds later."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and not a chance from 0 to less than 1")


NO_FAULTS: Final = Faults()


class SimulatedQueue:
    """A queue, with its server and its workers, in a world of its own.

    Attributes:
        name: Of the queue.
        runs: How often a handler was begun, by the number of the job.
        struck: How often each kind of trouble has come.
    """

    def __init__(self, name: str, seed: int, faults: Faults, settings: Settings, nursery: trio.Nursery) -> None:
        self.name = name
        self.runs: Counter[int] = Counter()
        self.struck: Counter[str] = Counter()
        self._random = Random(seed)  # noqa: S311 - it decides about trouble, and has to be the same each time
        self._faults = faults
        self._server = VirtualServer(settings, self._random)
        self._nursery = nursery
        self._keys = count()
        nursery.start_soon(self._server.serve)

    # --- for scenarios

    async def enqueue(
        self,
        type_: str,
        payload: Any = None,
        *,
        delay_seconds: float = 0.0,
        options: JobOptions = NO_OPTIONS,
        on_existing: OnExisting = OnExisting.KEEP,
    ) -> int:
        """Add a job, as a producer does who repeats under an idempotency key until it is answered; its number.

        Raises:
            QueueError: The refusal.
        """
        text = None if payload is None else msgspec.json.encode(payload)
        job = NewJob(type_, text, delay_seconds=delay_seconds, options=options, on_existing=on_existing)
        key = IdempotencyKey("simulation", str(next(self._keys)), b"")
        (enqueued,) = (await self._ask(Enqueue(self.name, [job], key=key))).jobs
        if isinstance(enqueued, QueueError):
            raise enqueued
        return enqueued.id

    async def work(
        self,
        handler: "Handler | App",
        *,
        workers: int = 1,
        lease_seconds: float = 30.0,
        heartbeat: bool | None = None,
    ) -> None:
        """Have workers carry out the jobs of the queue until all of them have ended.

        A worker that died is followed by another at once. With `heartbeat` a worker extends its lease every third of
        it, as long as the handler runs, and cancels the handler when the lease is lost or the job is cancelled.

        Args:
            handler: A function that is given a `RunningJob`, or the `App` of a worker with all its handlers.
            workers: How many there are; each does one job at a time.
            lease_seconds: Of the leases that they ask for.
            heartbeat: None: for the handlers of an app, as everywhere, and not for a function.
        """
        task = partial(FunctionTask, handler) if callable(handler) else _tasks_of(handler)
        beats = not callable(handler) if heartbeat is None else heartbeat
        async with trio.open_nursery() as nursery:
            for number in range(1, workers + 1):
                nursery.start_soon(self._work, task, f"worker-{number}", lease_seconds, beats)

    async def job(self, id_: int) -> Job:
        """A job as it stands, with the history of its attempts.

        Raises:
            UnknownJob: There is none.
        """
        return await self.execute(ReadJob(self.name, id_))

    async def jobs(self) -> list[Job]:
        """All jobs of the queue, those that have ended too."""
        found = await self.execute(Search(self.name, JobFilter()))
        jobs = list(found.jobs)
        while found.next_after is not None:
            found = await self.execute(Search(self.name, JobFilter(), after_id=found.next_after))
            jobs += found.jobs
        return jobs

    async def execute(self, command: Command[R]) -> R:
        """Carry out any other command, without trouble but for restarts, after which it is sent again.

        Raises:
            QueueError: The refusal.
        """
        return await self._server.execute(command)

    async def restart(self) -> None:
        """Kill the server, and come back when it serves the same jobs again."""
        await self._server.restart()

    # --- the network

    def _strikes(self, fault: str) -> bool:
        chance: float = getattr(self._faults, fault)
        strikes = self._random.random() < chance
        self.struck[fault] += strikes
        return strikes

    async def _ask(self, command: Command[R]) -> R:
        """Send a request that may be repeated, until it is answered."""
        while True:
            if self._strikes("restarts"):
                # Before the request arrives, or after, as the seed has it.
                self._nursery.start_soon(self._server.restart)
            if not self._strikes("answers_lost"):
                return await self.execute(command)
            if self._random.random() < 1 / 2:
                await self._carry_out_unheard(command)
            await self._server.pause()

    async def _carry_out_unheard(self, command: Command[Any]) -> None:
        with suppress(QueueError):  # the client does not hear of a refusal either
            await self.execute(command)

    async def tell(self, command: Command[Results]) -> Job:
        """Send a command about one job.

        Raises:
            QueueError: The refusal.
        """
        return (await self._ask(command)).single()

    # --- the workers

    async def _work(self, task: MakesTask, consumer: str, lease_seconds: float, heartbeat: bool) -> None:
        dequeue = Dequeue(self.name, consumer=consumer, lease_seconds=lease_seconds, wait_seconds=WAIT_SECONDS)
        while True:
            leases = (await self._ask(dequeue)).leases
            if not leases and not await self._jobs_left():
                return
            for lease in leases:
                job = RunningJob(self, lease)
                await self._perform(job, task(job, lease), heartbeat)

    async def _jobs_left(self) -> int:
        counts = (await self.execute(ReadQueue(self.name))).counts
        return sum(jobs for state, jobs in counts.items() if state not in FINISHED)

    async def _perform(self, job: RunningJob, task: Task, heartbeat: bool) -> None:
        """Do a job, and tell the server what came of it, unless that is not to be."""
        self.runs[job.id] += 1
        fate = Fate(
            dies=self._strikes("crashes"),
            stall_seconds=job.lease_seconds * self._random.uniform(0.5, 2) if self._strikes("stalls") else 0.0,
            awaits=1 + int(self._random.expovariate(1 / AWAITS_MEAN)),
        )
        command: Command[Results] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.watch, fate.scope)
            if heartbeat:
                nursery.start_soon(self._beat, task, fate)
            with fate.scope:
                command = await fate.befall(task.work())
            await fate.strike_late()
            nursery.cancel_scope.cancel()
        if fate.dies:
            return
        # What was done although it was to stop is done.
        told = command if isinstance(command, Conclude) else task.stopped or command
        assert told is not None  # noqa: S101 - for the type checker: it has ended, or was stopped
        with suppress(QueueError):  # it came too late: the job is somebody else's, and the result is dropped
            await self.tell(told)

    async def _beat(self, task: Task, fate: Fate) -> None:
        """Extend the lease until the work is done; end the work when there is no use in it."""
        while True:
            await task.until_beat()
            await trio.sleep_until(fate.stalled_until)  # a process that stands still does not beat either
            try:
                cancelled = (await task.beat()).cancel_requested
            except QueueError:
                task.stop("lost")
            else:
                if not cancelled:
                    continue
                task.stop("cancelled")
            fate.scope.cancel()
            return


def _tasks_of(app: "App") -> MakesTask:
    """What makes a task of each job; only here is needed what a worker is installed with."""
    from queue_actor.testing_apps import AppTask

    handlers = app.handlers
    return lambda job, lease: AppTask(job, lease, handlers)


def simulate(
    scenario: Callable[[SimulatedQueue], Awaitable[T]],
    *,
    seed: int = 0,
    faults: Faults = NO_FAULTS,
    settings: Settings = SETTINGS,
    queue: str = DEFAULT_QUEUE,
    seconds_max: float = SECONDS_MAX,
) -> T:
    """Run a scenario in a world of its own, from a plain (not an asynchronous) test; what it returns.

    Args:
        scenario: What is to happen. What it raises is raised here, with a note that has the seed.
        seed: Decides what trouble comes when, and in which order tasks run.
        faults: How likely each kind of trouble is.
        settings: Those of the server.
        queue: The queue's name. The jobs of `default` never die unasked, those of others have a limit of attempts.
        seconds_max: Virtual time after which it has failed.

    Raises:
        Unfinished: It did not end in time.
        RuntimeError: This version of Trio cannot have the order of its tasks decided.
    """
    struck: Counter[str] = Counter()

    async def main() -> T:
        result: outcome.Outcome[T]
        async with trio.open_nursery() as nursery:
            simulated = SimulatedQueue(queue, seed, faults, settings, nursery)
            simulated.struck = struck
            try:
                with trio.move_on_after(seconds_max) as limit:
                    result = outcome.Value(await scenario(simulated))
                if limit.cancelled_caught:
                    raise Unfinished(await _what_is_left(simulated, seconds_max))  # noqa: TRY301 - raised like the scenario's own
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - raised below, where no nursery wraps it
                result = outcome.Error(error)
            nursery.cancel_scope.cancel()
        return result.unwrap()

    try:
        return run_in_virtual_time(main, seed)
    except BaseException as error:
        error.add_note(f"seed={seed}, {faults}, and what struck was {dict(struck)}")
        raise


async def _what_is_left(queue: SimulatedQueue, seconds: float) -> str:
    left = [job for job in await queue.jobs() if job.state not in FINISHED]
    lines = [f"after {seconds:g} virtual seconds it has not ended, and {len(left)} jobs are left"]
    for job in left[:10]:
        error = next((attempt.error for attempt in reversed(job.history) if attempt.error), None)
        why = "" if error is None else f", {error.type}: {error.message}"
        lines.append(f"job {job.id} ({job.type}) is {job.state} after {job.attempts} attempts{why}")
    return "\n".join(lines)
