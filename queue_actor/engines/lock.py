"""The mutex design: the same state machine behind a lock, for comparison.

Each caller takes the lock, applies his command and stores its changes, one command a commit. It passes the same
contract suite as the actor, and is the baseline of the benchmark `engines`.
"""

from typing import Any

import trio

from queue_actor.commands import Command, Dequeue, Dequeued, R, Sweep
from queue_actor.engine import Clock, EngineStatistics, Request
from queue_actor.errors import Busy, Draining, OutcomeUnknown, QueueError
from queue_actor.jobs import Now
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.store import Store
from queue_actor.sweeper import Sweeper
from queue_actor.waiters import Waiters


class LockEngine:
    """Every caller works on the queue himself, in turn."""

    def __init__(self, settings: Settings, machine: StateMachine, store: Store, clock: Clock, sweeper: Sweeper) -> None:
        self.failed = trio.Event()
        self._settings = settings
        self._machine = machine
        self._store = store
        self._clock = clock
        self._sweeper = sweeper
        self._waiters = Waiters(settings.waiters_max)
        self._draining = False
        self._closed = trio.Event()
        self._failure: BaseException | None = None
        self._lock = trio.Lock()
        self._inbox_requests = 0

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command under the lock; see `Engine.execute`."""
        if self._closed.is_set():
            raise Draining("the queue is closed")
        if self._inbox_requests >= self._settings.inbox_requests_max and not isinstance(command, Sweep):
            raise Busy(f"{self._inbox_requests} commands wait, as many as inbox_requests_max allows")
        self._inbox_requests += 1
        try:
            await self._lock.acquire()
        finally:
            self._inbox_requests -= 1
        try:
            reply = await self._carry_out(command)
        finally:
            self._lock.release()
        if isinstance(reply, QueueError):
            raise reply
        return await self._wait(reply) if isinstance(reply, Request) else reply

    async def _carry_out(self, command: Command[R]) -> R | QueueError | Request[R]:
        if self._failure is not None:
            return OutcomeUnknown("the queue ended before it answered")
        served: list[tuple[Request[Dequeued], Dequeued]] = []
        try:
            now = self._clock()
            reply = self._apply(command, now)
            if self._waiters:
                served += self._waiters.serve(self._machine, self._machine.take_readied(), now)
            await self._store.commit(self._machine.take_changes())
        except BaseException as bug:
            # It happened in a caller's task, where the server would take it for the caller's affair.
            self._failure = bug
            self.close()
            for request, _ in served:
                request.refuse(OutcomeUnknown("the queue ended before it answered"))
            raise OutcomeUnknown("the queue ended before it answered") from bug
        for request, dequeued in served:
            request.answer(dequeued)
        self._sweeper.notice(self._machine.next_due_seconds(self._clock()))  # it counts from now
        return reply

    def _apply(self, command: Command[R], now: Now) -> R | QueueError | Request[R]:
        """The reply of this command, or its refusal, or its request, parked."""
        reply: Any
        try:
            reply = self._dequeue(command, now) if isinstance(command, Dequeue) else self._machine.apply(command, now)
        except QueueError as refusal:
            return refusal
        return reply  # type: ignore[no-any-return] # R is Dequeued where it is one

    def _dequeue(self, command: Dequeue, now: Now) -> Dequeued | Request[Dequeued]:
        if self._draining:
            raise Draining("the server is about to end and hands out no more jobs")
        reply = self._machine.apply(command, now)
        if reply.leases or command.wait_seconds <= 0:
            return reply
        request = Request(command)
        self._waiters.park(request, command)
        return request

    async def _wait(self, request: Request[R]) -> R:
        command = request.command
        assert isinstance(command, Dequeue)  # noqa: S101 - for the type checker: nothing else is parked
        try:
            with trio.move_on_after(command.wait_seconds):
                return await request.answered()
            return Dequeued()  # type: ignore[return-value] # R is Dequeued here
        finally:
            self._waiters.discard(request, command)  # type: ignore[arg-type] # as above

    def drain(self) -> None:
        """Answer those who wait for a job, and refuse those who come for one."""
        self._draining = True
        for request in self._waiters.dismiss():
            request.answer(Dequeued())

    def close(self) -> None:
        """Take no more commands."""
        self._closed.set()

    def statistics(self) -> EngineStatistics:
        """What the engine is doing now."""
        return EngineStatistics(inbox_requests=self._inbox_requests, waiters=len(self._waiters))

    async def run(self) -> None:
        """Wait until closed; raises what a command failed of."""
        try:
            await self._closed.wait()
            async with self._lock:
                pass  # the lock is fair: those who stood before it have been served
            if self._failure is not None:
                raise self._failure
        finally:
            self.close()
            for request in self._waiters.dismiss():
                request.refuse(OutcomeUnknown("the queue ended before it answered"))
