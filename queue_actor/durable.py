"""The durable engine: another engine, its store, and the finished jobs that only the store has.

It is the handle of an engine whose jobs are being read from the disk first; until then every command is refused with
`Starting`. Afterwards commands go to the engine within. Where that knows a job no longer, the store may: the job's row
is read beside the engine, and the command is carried out again with it in hand (`Recalled`). So the rules about
finished jobs stand in the state machine alone.
"""

import gc
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple, cast

import trio
from msgspec.structs import replace

from queue_actor.archive import Archive
from queue_actor.backups import Backups
from queue_actor.changes import Recovered
from queue_actor.commands import (
    Bulk,
    BulkDone,
    BulkVerb,
    Cancel,
    Command,
    Conclude,
    Explain,
    Explanation,
    Extend,
    Fail,
    Forget,
    Position,
    Prune,
    R,
    ReadJob,
    ReadPosition,
    Recalled,
    Redrive,
    Release,
    Results,
    RunNow,
    Search,
    Sweep,
    Swept,
    TakeBack,
)
from queue_actor.engine import Backup, Clock, Engine, EngineStatistics, StoreStatistics
from queue_actor.errors import Draining, ForgottenJob, Starting
from queue_actor.events import EventLog
from queue_actor.explain import explain_end
from queue_actor.figures import EngineFigures
from queue_actor.jobs import FINISHED, Job, JobState
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import BULK_JOBS_MAX, StateMachine
from queue_actor.transition_lines import tell_transitions

READS_MAX = 5
"""How often a row is read again because its job may have changed meanwhile, before the job counts as forgotten."""


class Data(NamedTuple):
    """What keeps the jobs, what finds those that have ended, and what copies all of them."""

    store: SqliteStore
    archive: Archive
    backups: Backups


class DurableEngine:
    """An engine whose store outlives it."""

    def __init__(
        self,
        settings: Settings,
        data: Data,
        clock: Clock,
        make: Callable[[StateMachine], Engine],
    ) -> None:
        """Take what it is put together from; `make` makes the engine within of a machine that is restored."""
        self.failed = trio.Event()
        self.ready = trio.Event()
        self.instance = data.store.instance
        self.durability = data.store.durability
        self.events = EventLog(settings, data.store.instance)
        self._settings = settings
        self._store, self._archive, self._backups = data
        self._clock = clock
        self._make = make
        self._machine = StateMachine(settings, secret=data.store.secret)
        self._engine: Engine | None = None
        self._draining = False
        self._closed = False
        self._looked_at = -inf  # monotonic; when nothing in the store was past its retention
        self._look_seconds = settings.sweep_seconds  # until it is looked through again, however often is swept

    # --- life

    async def run(self) -> None:
        """Read the jobs, then serve until closed.

        Raises:
            UnreadableError: The store holds what cannot be understood.
        """
        machine = self._machine
        now = self._clock()

        def restore(recovered: Recovered) -> None:
            # The collector would look at every job again and again while they become more.
            gc.disable()
            try:
                machine.restore(recovered, now)
                self.events.begin(recovered.revision)
            finally:
                gc.enable()

        if not await self._store.recover(restore):
            return
        started = self._clock()
        machine.start_leases(started)
        changes = machine.take_changes()
        await self._store.commit(changes)  # so that readers are told when they end
        tell_transitions(changes.told)
        self.events.note(changes, started)
        if self._closed:
            return
        engine = self._engine = self._make(machine)
        engine.events = self.events  # those who read them came before it
        if self._draining:
            engine.drain()
        self.ready.set()
        await engine.run()

    def drain(self) -> None:
        """Hand out no more jobs."""
        self._draining = True
        self.events.close()
        self._backups.stop()
        if self._engine is not None:
            self._engine.drain()

    def close(self) -> None:
        """Take no more commands."""
        self._closed = True
        self._store.stop()
        if self._engine is not None:
            self._engine.close()

    def statistics(self) -> EngineStatistics:
        """What the engine within is doing now."""
        return EngineStatistics(0, 0) if self._engine is None else self._engine.statistics()

    def figures(self) -> EngineFigures:
        """What the engine within has done."""
        return EngineFigures() if self._engine is None else self._engine.figures()

    def store_statistics(self) -> StoreStatistics:
        """What the store is doing now."""
        return self._store.statistics()

    async def backup(self) -> Backup:
        """A copy of the file; see `Engine.backup`. The jobs need not have been read for it."""
        return await self._backups.make()

    def waiting(self, queue: str) -> int:
        """How many parked dequeues would take a job of this queue."""
        return 0 if self._engine is None else self._engine.waiting(queue)

    # --- commands

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command; see `Engine.execute`.

        Raises:
            Starting: The jobs are still being read.
        """
        if self._engine is None:
            if self._closed:
                raise Draining("the queue is closed")
            raise Starting("the server reads its jobs from the disk; it will serve them when it has them all")
        reply: Any
        match command:
            case Search():
                reply = await self._archive.search(command)
            case ReadJob():
                reply = await self._read(self._engine, command)
            case ReadPosition() | Explain():
                of_ended = self._explain_end if isinstance(command, Explain) else lambda _: Position(None)
                reply = await self._look(self._engine, command, (command.queue, command.id), of_ended)
            case Conclude() | Fail() | Extend() | Release():
                claims = cast("Sequence[Any]", command.claims)
                reply = await self._each(
                    self._engine,
                    command,
                    [(claim.queue, claim.id) for claim in claims],
                    lambda places: replace(command, claims=[claims[place] for place in places]),
                )
            case Cancel() | Redrive() | RunNow() | TakeBack() | Forget():
                ids = command.ids
                reply = await self._each(
                    self._engine,
                    command,
                    [(command.queue, id_) for id_ in ids],
                    lambda places: replace(command, ids=[ids[place] for place in places]),
                )
            case Bulk() if command.verb in {BulkVerb.PURGE, BulkVerb.REDRIVE}:
                reply = await self._bulk(self._engine, command)
            case Sweep():
                reply = await self._sweep(self._engine, command)
            case _:
                reply = await self._engine.execute(command)
        return cast("R", reply)

    async def _read(self, engine: Engine, command: ReadJob) -> Job:
        try:
            return await engine.execute(command)
        except ForgottenJob:
            found = await self._archive.find(command.queue, [command.id])
        # It may have been redriven between the two.
        return found.jobs[0] if found.jobs else await engine.execute(command)

    async def _look(self, engine: Engine, command: Command[R], key: tuple[str, int], of_ended: Callable[[Job], R]) -> R:
        """Ask about a job; of one that only the store has, what is said of jobs that have ended is the answer."""
        try:
            return await engine.execute(command)
        except ForgottenJob:
            found = await self._archive.find(key[0], [key[1]])
        return of_ended(found.jobs[0]) if found.jobs else await engine.execute(command)

    def _explain_end(self, job: Job) -> Explanation:
        return explain_end(job, self._clock())

    async def _each(
        self,
        engine: Engine,
        command: Command[Results],
        keys: Sequence[tuple[str, int]],
        part: Callable[[list[int]], Command[Results]],
    ) -> Results:
        """Carry out a command that treats each job for itself; what memory has forgotten is looked for in the store."""
        if isinstance(command, Redrive) and len(command.ids) > 1:
            results = list((await self._together(engine, command)).jobs)
        else:
            results = list((await engine.execute(command)).jobs)
        for _ in range(READS_MAX):
            lost: dict[str, list[int]] = {}
            for place, result in enumerate(results):
                if isinstance(result, ForgottenJob):
                    lost.setdefault(keys[place][0], []).append(place)
            if not lost:
                break
            certain = True
            for queue, places in lost.items():
                found = await self._archive.find(queue, sorted({keys[place][1] for place in places}))
                # All are asked for again: what is not in the store may have been redriven meanwhile.
                try:
                    answers = await engine.execute(Recalled(part(places), found.jobs, found.departures))
                except ForgottenJob:
                    certain = False
                    continue
                for place, answer in zip(places, answers.jobs, strict=True):
                    results[place] = answer
            if certain:
                break
        return Results(results)

    async def _together(self, engine: Engine, command: Redrive) -> Results:
        """Redrive jobs that are in memory and jobs that are not, so that they come to stand in the order asked."""
        found = await self._archive.find(command.queue, command.ids)
        try:
            return await engine.execute(Recalled(command, found.jobs, found.departures))
        except ForgottenJob:
            return await engine.execute(command)

    async def _bulk(self, engine: Engine, command: Bulk) -> BulkDone:
        """One slice: no further than was read for it."""
        states = command.where.states & FINISHED if command.where.states else FINISHED
        if command.verb is BulkVerb.REDRIVE:
            states -= {JobState.CONCLUDED}
        if not states:
            return await engine.execute(command)
        until_id = command.until_id if command.until_id is not None else 2**53
        where = replace(command.where, states=states)
        while True:
            found = await self._archive.matching(command.queue, where, command.after_id, until_id, BULK_JOBS_MAX)
            slice_ = replace(command, until_id=found.until_id)
            try:
                done = await engine.execute(Recalled(slice_, found.jobs, found.departures))
            except ForgottenJob:
                continue
            if found.until_id < until_id and done.next_after is None:
                return replace(done, next_after=found.until_id)
            return done

    async def _sweep(self, engine: Engine, command: Sweep) -> Swept:
        swept = await engine.execute(command)
        now = self._clock()
        self._store.watch_log()
        looked_lately = now.monotonic < self._looked_at + self._look_seconds
        if looked_lately and not swept.over and not swept.dead_over:
            return swept
        limit = self._settings.sweep_slice
        overdue = await self._archive.overdue(now.wall, limit, swept.over, swept.dead_over)
        if not overdue.aged and not overdue.over:
            self._looked_at = now.monotonic
            return swept
        # One kind at a time: those that are forgotten for their time are no longer too many.
        gone = await engine.execute(Prune(overdue.aged or overdue.over, overdue.departures))
        return replace(
            swept,
            forgotten=swept.forgotten + gone.count,
            dead_lost=swept.dead_lost + (0 if overdue.aged else gone.dead),
            more=swept.more
            or max(len(overdue.aged), swept.over, swept.dead_over) >= limit
            or bool(overdue.aged and overdue.over),
        )
