"""The actor: one task owns the queue and carries out commands, one after the other, from its inbox.

`ActorEngine` is both halves: the handle (`execute`), which callers use from their own tasks, and the loop (`run`),
the only task that touches the state machine. The loop works at its own pace: it takes what has arrived, applies it,
stores the changes in one commit, and only then answers. It never awaits a client, never sends to its own inbox, and
never catches a bug.
"""

from typing import Any, Never

import trio

from queue_actor.commands import Command, Dequeue, R
from queue_actor.engine import INBOX_SLOTS_SPARE, Clock, EngineStatistics, Request, may_wait
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
from queue_actor.waiters import PARKABLE, Waiters

BATCH_JOBS_MAX = 2_000
"""Changed jobs after which a batch is closed, so that one commit stays short."""


class ActorEngine:
    """The default engine."""

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
        self._closed = False
        slots = settings.inbox_requests_max + INBOX_SLOTS_SPARE
        self._inbox, self._arrivals = trio.open_memory_channel[Request[Any]](slots)
        self._inbox_requests = 0
        # The batch in hand: the requests taken, and the answers that wait for the commit.
        self._taken: list[Request[Any]] = []
        self._answers: list[tuple[Request[Any], Any]] = []

    # --- the handle: runs in the caller's task

    async def execute(self, command: Command[R]) -> R:
        """Send a command to the actor and wait for its reply; see `Engine.execute`."""
        request = Request(command)
        if isinstance(command, PARKABLE) and command.wait_seconds > 0:
            return await self._wait(request)
        self._submit(request)
        return await request.answered()

    async def _wait(self, request: Request[R]) -> R:
        try:
            # The wait begins when the request is parked: until then it is a command like any other.
            with trio.CancelScope() as request.patience:
                self._submit(request)
                return await request.answered()
            assert request.unserved is not None  # noqa: S101 - for the type checker: it was parked
            self._waiters.timed_out += 1
            return request.unserved
        finally:
            self._waiters.discard(request)

    def _submit(self, request: Request[R]) -> None:
        if self._closed:
            raise Draining("the queue is closed")
        if not may_wait(request.command, self._inbox_requests, self._settings.inbox_requests_max):
            raise Busy(f"{self._inbox_requests} commands wait, as many as inbox_requests_max allows")
        self._inbox.send_nowait(request)
        self._inbox_requests += 1

    def drain(self) -> None:
        """Answer those who wait for a job, and refuse those who come for one."""
        self._draining = True
        self.events.close()
        for request in self._waiters.dismiss():
            if request.decided:
                self._answers.append((request, request.unserved))
            else:
                request.answer(request.unserved)

    def close(self) -> None:
        """Take no more commands."""
        self._closed = True
        self._inbox.close()

    def statistics(self) -> EngineStatistics:
        """What the actor is doing now."""
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

    # --- the actor: runs in a task of its own

    async def run(self) -> None:
        """Carry out commands until the inbox is closed and empty."""
        try:
            async for first in self._arrivals:
                self._taken.append(first)  # from here on it is answered, whatever happens
                now = self._clock()
                began = trio.current_time()
                self._machine.disk_room_bytes = self._store.room_bytes
                self._carry_out(first, now)
                if self._waiters:
                    self._answers += self._waiters.serve(self._machine, self._machine.take_readied(), now)
                changes = self._machine.take_changes()
                self._answers += self._waiters.tell(changes.jobs)
                applied = trio.current_time()
                await self._store.commit(changes)
                committed = trio.current_time()
                self._waiters.stored()
                self._meters.note(len(self._taken), len(changes.jobs), applied - began, committed - applied)
                for request, reply in self._answers:
                    if isinstance(reply, QueueError):
                        request.refuse(reply)
                    else:
                        request.answer(reply)
                tell_transitions(changes.told)
                self.events.note(changes, now)
                self._slow.note(len(self._taken), len(changes.jobs), began, applied, committed)
                self._taken.clear()
                self._answers.clear()
                self._sweeper.notice(self._machine.next_due_seconds(self._clock()))  # it counts from now
        finally:
            self._leave()

    def _carry_out(self, first: Request[Any], now: Now) -> None:
        """Apply the first request and whatever else has arrived, up to the limits of a batch."""
        request = first
        while True:
            self._inbox_requests -= 1
            if not request.abandoned:
                self._apply(request, now)
            if len(self._taken) >= self._settings.batch_requests_max or self._machine.changes_waiting >= BATCH_JOBS_MAX:
                return
            try:
                request = self._arrivals.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            self._taken.append(request)

    def _apply(self, request: Request[Any], now: Now) -> None:
        """Apply one request, or park it."""
        if isinstance(request.command, Dequeue) and self._waiters and not self._draining:
            # Those who wait already come before the one who has just arrived.
            self._answers += self._waiters.serve(self._machine, self._machine.take_readied(), now)
        reply: Any
        try:
            if self._draining and isinstance(request.command, Dequeue):
                raise Draining("the server is about to end and hands out no more jobs")
            reply = self._waiters.carry_out(self._machine, request, now, may_park=not self._draining)
        except QueueError as refusal:
            reply = refusal
        if reply is not None:
            request.decided = True
            self._answers.append((request, reply))

    def _leave(self) -> None:
        """Let nobody wait for an actor that has ended."""
        self.close()
        waiting = self._taken + [request for request, _ in self._answers] + self._waiters.dismiss()
        try:
            while True:
                waiting.append(self._arrivals.receive_nowait())
        except trio.EndOfChannel:
            self._inbox_requests = 0
        for request in waiting:
            if not request.settled:
                request.refuse(OutcomeUnknown("the queue ended before it answered"))
