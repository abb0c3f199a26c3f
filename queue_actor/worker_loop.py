"""The worker: it takes jobs, has them done, and tells what came of them.

    poll      asks for jobs as long as there is room for them       ->  waiting
    fill      gives those that wait a place to run                  ->  running, by their handler's mode
    reports   tells what came of them, and asks for the next ones   ->  waiting again
    beat      extends the leases of all that are in hand
    watch     stops what is lost, stuck or over its time

A job is in the worker's hands from the answer that brings it to the answer that ends it, and every way out of them is
counted and logged. Its outcome is decided once: by its handler, or before that by whatever stops the handler.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Final
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from queue_actor.children import Child, Children
from queue_actor.client_answers import Job
from queue_actor.client_bodies import Dequeue
from queue_actor.client_errors import ClientError
from queue_actor.counters import Counters, Runs, Statistics, WorkerFigures
from queue_actor.handlers import Done, Dropped, Failed, Handlers, Outcome, Released
from queue_actor.heartbeats import Bell, Heartbeats, Held, Phase
from queue_actor.reach import Reach, is_final
from queue_actor.reports import Reports
from queue_actor.worker_options import Options, Server

logger = logging.getLogger("queue_actor.worker")

DEQUEUE_JOBS_MAX: Final = 1_000
RELEASE_SECONDS: Final = 2.0
"""How long a worker that stops at once tries to give back what it holds."""

HALT_SECONDS: Final = 5.0
"""How long handlers may take to stop when the grace period is over; then the worker stops at once."""

NO_HANDLER_SECONDS: Final = 5.0
NO_HANDLER_SECONDS_MAX: Final = 300.0
"""How long a job that nothing here can do is given back for: twice as long each time it is handed out."""


def no_handler_seconds(attempt: int) -> float:
    """How long a job is given back for that nothing here can do, for the n-th time."""
    return min(NO_HANDLER_SECONDS * 2.0 ** min(attempt - 1, 10), NO_HANDLER_SECONDS_MAX)


class Worker:
    """A worker of one server. `run` it once."""

    def __init__(self, server: Server, handlers: Handlers, options: Options) -> None:
        """Nothing is asked for yet.

        Raises:
            TypeError: A handler that is to run in processes cannot.
        """
        self._server = server
        self._handlers = handlers
        self._options = options
        self._consumer = options.consumer or f"{socket.gethostname()}-{os.getpid()}"
        self._counters = Counters()
        self._runs = Runs(handler.type for handler in handlers)
        self._reach = Reach("jobs")
        self._reach_of_outcomes = Reach("outcomes")
        self._heartbeats = Heartbeats(server, self._counters, self._stopped, self._fill)
        self._reports = Reports(
            server, self._counters, self._reach_of_outcomes, ask=self._ask, answered=self._answered, over=self._over
        )
        self._children = Children(handlers.of_processes(), self._counters)
        self._waiting: deque[Held] = deque()
        self._running = 0
        self._asked = 0
        self._room = Bell()
        self._polling = True
        self._in_threads: set[Held] = set()
        self._threads = anyio.CapacityLimiter(options.concurrency)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._draining = anyio.Event()
        self._finished = anyio.Event()
        self._refusal: ClientError | None = None

    def statistics(self) -> Statistics:
        """Figures of this moment, for any thread."""
        return self._counters.statistics(
            running=self._running, waiting=len(self._waiting), unheard=len(self._reports), threads=len(self._in_threads)
        )

    def figures(self) -> WorkerFigures:
        """The same, and all else that monitors are told, for any thread. counters.py says why that does no harm."""
        return WorkerFigures(
            statistics=self.statistics(),
            concurrency=self._options.concurrency,
            prefetch=self._options.prefetch,
            draining=self._draining.is_set(),
            reached={reach.what: reach.reached for reach in (self._reach, self._reach_of_outcomes)},
            runs=self._runs.figures(),
        )

    # --- its life

    async def run(self) -> None:
        """Work, until it is asked to end and has. Cancelled, it gives back what it holds.

        Raises:
            ClientError: The server will not give it jobs, whatever it does: a wrong token, a queue that cannot be.
        """
        options = self._options
        facts = {"consumer": self._consumer, "queues": list(options.queues), "concurrency": options.concurrency}
        logger.info("worker_started", extra={"facts": facts})
        try:
            with self._children.until_the_end():
                async with anyio.create_task_group() as self._tasks:
                    for service in (self._poll, self._reports.run, self._heartbeats.beat, self._heartbeats.watch):
                        self._tasks.start_soon(service)
                    self._tasks.start_soon(self._end_in_time)
                    await self._finished.wait()
                    self._tasks.cancel_scope.cancel()
        finally:
            await self._give_back()
            logger.info("worker_ended", extra={"facts": msgspec.structs.asdict(self.statistics())})
        if self._refusal is not None:
            raise self._refusal

    def drain(self) -> None:
        """Take no more jobs, finish those that run, give back the others, and end."""
        if self._draining.is_set():
            return
        facts = {"running": self._running, "waiting": len(self._waiting)}
        logger.info("worker_draining", extra={"facts": facts})
        self._draining.set()
        while self._waiting:
            self._tell(self._waiting.popleft(), Released())
        self._room.ring()
        self._look_for_the_end()

    def stop(self) -> None:
        """End at once: handlers are cancelled or killed, and all jobs are given back if that can be done quickly."""
        logger.warning("worker_stopping", extra={"facts": {"running": self._running}})
        self._draining.set()
        self._finished.set()

    async def _end_in_time(self) -> None:
        await self._draining.wait()
        await anyio.sleep(self._options.grace_seconds)
        logger.warning("grace_over", extra={"facts": {"running": self._running}})
        for held in list(self._heartbeats.held.values()):
            self._heartbeats.stop(held, "shutdown")
        await anyio.sleep(HALT_SECONDS)
        self.stop()

    def _look_for_the_end(self) -> None:
        if self._draining.is_set() and not self._polling and not self._heartbeats.held:
            self._finished.set()

    async def _give_back(self) -> None:
        """Tell what is known of all jobs that are still in hand; those that have not ended are released."""
        with anyio.move_on_after(RELEASE_SECONDS, shield=True):
            for held in list(self._heartbeats.held.values()):
                if not held.told:
                    self._tell(held, held.verdict or Released())
            await self._reports.flush()
        left = list(self._heartbeats.held.values())
        self._counters.unreported += len(left)
        for held in left:
            logger.error("left_behind", extra={"facts": held.facts})

    # --- jobs come in

    def _take_room(self) -> int:
        """How many jobs may be asked for; they count as asked for until they are answered."""
        options = self._options
        if self._draining.is_set():
            return 0
        room = options.concurrency + options.prefetch - self._running - len(self._waiting) - self._asked
        count = max(0, min(room, DEQUEUE_JOBS_MAX))
        self._asked += count
        return count

    def _ask(self) -> Dequeue | None:
        count = self._take_room()
        if not count:
            return None
        options = self._options
        return Dequeue(
            count=count,
            lease_seconds=options.lease_seconds,
            consumer=self._consumer,
            queues=options.queues,
            order=options.order,
        )

    async def _poll(self) -> None:
        while not self._draining.is_set():
            if count := self._take_room():
                await self._dequeue(count)
            else:
                await self._room.wait()
        self._polling = False
        self._look_for_the_end()

    async def _dequeue(self, count: int) -> None:
        """Ask until there is an answer. It is the same request each time: what a lost answer has leased comes again."""
        options = self._options
        jobs: Sequence[Job] = ()
        key = uuid4().hex
        sent = anyio.current_time()
        try:
            while True:
                try:
                    jobs = await self._server.dequeue(
                        options.queues,
                        count=count,
                        wait_seconds=options.wait_seconds,
                        lease_seconds=options.lease_seconds,
                        consumer=self._consumer,
                        order=options.order,
                        idempotency_key=key,
                    )
                except ClientError as error:
                    self._counters.polls_unheard += 1
                    if is_final(error):
                        self._reach.heard()
                        self._give_up(error)
                        return
                    with anyio.move_on_after(self._reach.unheard(error)):
                        await self._draining.wait()
                    if self._draining.is_set():
                        return
                else:
                    self._reach.heard()
                    return
        finally:
            self._asked -= count
            self._bring(jobs, sent)

    def _give_up(self, error: ClientError) -> None:
        logger.error("dequeue_forbidden", extra={"facts": {"reason": str(error)}})
        self._refusal = error
        self.drain()

    def _answered(self, dequeue: Dequeue, jobs: Sequence[Job], sent: float) -> None:
        self._asked -= dequeue.count
        self._bring(jobs, sent)
        self._room.ring()

    def _bring(self, jobs: Sequence[Job], sent: float) -> None:
        now = anyio.current_time()
        for job in jobs:
            self._counters.dequeued += 1
            handler = self._handlers.find(job.queue, job.type)
            held = Held(job, handler, sent, now)
            self._heartbeats.hold(held)
            if handler is None:
                self._counters.no_handler += 1
                delay = no_handler_seconds(job.attempts)
                logger.warning("no_handler", extra={"facts": {**held.facts, "delay_seconds": delay}})
                self._tell(held, Released(delay))
            elif self._draining.is_set():
                self._tell(held, Released())
            else:
                self._waiting.append(held)
        self._fill()

    def _fill(self) -> None:
        """Begin with the jobs that wait, as far as there are places.

        One whose lease may be old already, since it or its extension was long in coming, is extended first.
        """
        if self._finished.is_set() or anyio.current_effective_deadline() == -inf:
            return  # it ends at once, and begins with nothing more
        now = anyio.current_time()
        for held in [held for held in self._waiting if now < held.fresh_until]:
            if self._running == self._options.concurrency:
                return
            self._waiting.remove(held)
            self._running += 1
            held.begin(now)
            assert self._tasks is not None  # noqa: S101 - for the type checker: it runs
            self._tasks.start_soon(self._perform, held)
            self._heartbeats.changed()

    # --- jobs are done

    async def _perform(self, held: Held) -> None:
        began = anyio.current_time()
        try:
            outcome = await self._outcome_of(held)
        finally:
            self._running -= 1
        self._runs.note(held.job.type, anyio.current_time() - began)
        if held.told:
            logger.warning("thread_ended_late", extra={"facts": held.facts})
            self._room.ring()
        elif isinstance(held.verdict, Dropped) or (held.verdict is not None and not isinstance(outcome, Done)):
            self._tell(held, held.verdict)
        else:
            self._tell(held, outcome)
        self._fill()

    async def _outcome_of(self, held: Held) -> Outcome:
        handler, job, running = held.handler, held.job, held.running
        assert handler is not None  # noqa: S101 - for the type checker: others are given back
        if handler.mode == "threads":

            def perform() -> Outcome:
                self._in_threads.add(held)
                try:
                    return handler.perform(job, running)
                finally:
                    self._in_threads.discard(held)

            return await anyio.to_thread.run_sync(perform, abandon_on_cancel=True, limiter=self._threads)
        if handler.mode == "processes":

            def have(child: Child) -> None:
                held.halted_by(lambda reason: child.stop(reason) if reason == "cancelled" else child.kill())

            return await self._children.perform(handler.key, job, held.note_progress, have)
        with anyio.CancelScope() as scope:
            held.halted_by(lambda _reason: scope.cancel())
            return await handler.perform_async(job, running)
        return Released()

    def _stopped(self, held: Held) -> None:
        """Its handler was asked to stop, or it waits for one no more."""
        assert held.verdict is not None  # noqa: S101 - for the type checker: it was asked to
        reason = held.running.stopping
        if held.phase is Phase.WAITING:
            self._waiting.remove(held)
            self._tell(held, held.verdict if reason == "lost" else Released())
        elif held.handler is not None and held.handler.mode == "threads" and reason != "cancelled":
            # Nobody knows when it will stop. Its place stays taken until it has.
            logger.warning("thread_goes_on", extra={"facts": {**held.facts, "reason": reason}})
            self._tell(held, held.verdict)

    # --- jobs go out

    def _tell(self, held: Held, outcome: Outcome) -> None:
        held.told = True
        held.phase = Phase.ENDED
        if isinstance(outcome, Failed):
            facts = {**held.facts, "error": outcome.error.type, "retry": outcome.retry}
            logger.warning("attempt_failed", extra={"facts": {**facts, "traceback": outcome.traceback}})
        if isinstance(outcome, Dropped):
            self._over(held)
            self._room.ring()
        else:
            self._reports.add(held, outcome)

    def _over(self, held: Held) -> None:
        self._heartbeats.let_go(held)
        self._look_for_the_end()
