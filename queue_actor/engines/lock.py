"""The mutex design: the same state machine behind a lock, for comparison.

Each caller takes the lock, applies his command and stores its changes, one command a commit. It passes the same
contract suite as the actor, and is the baseline of the benchmark `engines`.
"""

from typing import Any, Never

import trio

from queue_actor.commands import Command, Dequeue, R, ReadJob
from queue_actor.engine import Clock, EngineStatistics, Request, may_wait
from queue_actor.errors import Busy, Draining, NotDurable, OutcomeUnknown, QueueError
from queue_actor.events import EventLog
from queue_actor.figures import EngineFigures
from queue_actor.jobs import Now
from queue_actor.meters import EngineMeters
from queue_actor.settings import Settings
from queue_actor.slow import SlowBatches
from queue_actor.state_machine import StateMachine
from queue_actor.store import Store
from queue_actor.sweeper import Sweeper
from queue_actor.transition_lines import tell_transitions
from queue_actor.waiters import Waiters


class LockEngine:
    """Every caller works on the queue himself, in turn."""

    def __init__(self, settings: Settings, machine: StateMachine, store: Store, clock: Clock, sweeper: Sweeper) -> None:
        self.failed = trio.Event()
        self.ready = trio.Event()
        self.ready.set()
        self.instance, self.durability = store.instance, store.durability
        self.events = EventLog(settings, store.instance)
        self._settings = settings
        self._machine = machine
        self._store = store
        self._clock = clock
        self._sweeper = sweeper
        self._waiters = Waiters(settings.waiters_max)
        self._meters = EngineMeters()
        self._slow = SlowBatches(settings)
        self._draining = False
        self._closed = trio.Event()
        self._failure: BaseException | None = None
        self._lock = trio.Lock()
        self._inbox_requests = 0
        self._in_hand: list[tuple[Request[Any], Any]] = []  # answers that wait for the commit under way

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command under the lock; see `Engine.execute`."""
        if self._closed.is_set():
            raise Draining("the queue is closed")
        if not may_wait(command, self._inbox_requests, self._settings.inbox_requests_max):
            raise Busy(f"{self._inbox_requests} commands wait, as many as inbox_requests_max allows")
        request = Request(command)
        self._inbox_requests += 1
        try:
            await self._lock.acquire()
        finally:
            self._inbox_requests -= 1
        try:
            reply = await self._carry_out(request)
        finally:
            self._lock.release()
        if isinstance(reply, QueueError):
            raise reply
        return await self._wait(request) if reply is None else reply

    async def _carry_out(self, request: Request[R]) -> R | QueueError | None:
        """Apply the command and store its changes; None if it is parked."""
        if self._failure is not None:
            return OutcomeUnknown("the queue ended before it answered")
        machine, waiters = self._machine, self._waiters
        served = self._in_hand = []
        try:
            now = self._clock()
            began = trio.current_time()
            machine.disk_room_bytes = self._store.room_bytes
            reply = self._apply(request, now)
            if waiters:
                served += waiters.serve(machine, machine.take_readied(), now)
            changes = machine.take_changes()
            served += waiters.tell(changes.jobs)
            applied = trio.current_time()
            await self._store.commit(changes)
            committed = trio.current_time()
            waiters.stored()
            self._meters.note(1, len(changes.jobs), applied - began, committed - applied)
        except BaseException as bug:
            # It happened in a caller's task, where the server would take it for the caller's affair.
            self._failure = bug
            self.close()
            for parked in [*(request for request, _ in served), *waiters.dismiss()]:
                parked.refuse(OutcomeUnknown("the queue ended before it answered"))
            raise OutcomeUnknown("the queue ended before it answered") from bug
        for parked, its_reply in served:
            if isinstance(its_reply, QueueError):
                parked.refuse(its_reply)
            else:
                parked.answer(its_reply)
        tell_transitions(changes.told)
        self.events.note(changes, now)
        self._slow.note(1, len(changes.jobs), began, applied, committed)
        self._sweeper.notice(machine.next_due_seconds(self._clock()))  # it counts from now
        return reply

    def _apply(self, request: Request[R], now: Now) -> R | QueueError | None:
        """The reply of the command, or its refusal, or None: it is parked."""
        try:
            if self._draining and isinstance(request.command, Dequeue):
                raise Draining("the server is about to end and hands out no more jobs")
            return self._waiters.carry_out(self._machine, request, now, may_park=not self._draining)
        except QueueError as refusal:
            return refusal

    async def _wait(self, request: Request[R]) -> R:
        command = request.command
        assert isinstance(command, Dequeue | ReadJob)  # noqa: S101 - for the type checker: nothing else is parked
        try:
            with trio.move_on_after(command.wait_seconds):
                return await request.answered()
            assert request.unserved is not None  # noqa: S101 - it was parked
            self._waiters.timed_out += 1
            return request.unserved
        finally:
            self._waiters.discard(request)

    def drain(self) -> None:
        """Answer those who wait for a job, and refuse those who come for one."""
        self._draining = True
        self.events.close()
        for request in self._waiters.dismiss():
            if request.decided:
                self._in_hand.append((request, request.unserved))
            else:
                request.answer(request.unserved)

    def close(self) -> None:
        """Take no more commands."""
        self._closed.set()

    def statistics(self) -> EngineStatistics:
        """What the engine is doing now."""
        return EngineStatistics(inbox_requests=self._inbox_requests, waiters=len(self._waiters))

    def figures(self) -> EngineFigures:
        """What the engine has done since it was made."""
        return self._sweeper.count_in(self._waiters.count_in(self._meters.figures()))

    def store_statistics(self) -> None:
        """None: an engine within knows its store by its commits alone."""

    async def backup(self) -> Never:
        """There is nothing to copy: an engine within knows its store by its commits alone.

        Raises:
            NotDurable: Always.
        """
        raise NotDurable("the jobs are kept in memory alone: there is no data directory")

    def waiting(self, queue: str) -> int:
        """How many parked dequeues would take a job of this queue."""
        return self._waiters.waiting(queue)

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
