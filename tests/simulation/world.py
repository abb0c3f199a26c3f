"""The whole core in virtual time: the real engine on a disk that fails, one life of the server after the other.

A `Plan` says everything that chance decides: the seed, who takes part, how much each of them asks, and the faults. The
same plan gives the same run, step by step, and a part of a plan is a plan, so what fails can be made smaller.

What is real: the state machine, the actor, waiters and sweeper, the durable engine, the archive, the store and SQLite.
What is not: the disk (`disk.py`), threads (a call that would go to one is carried out at once, after a pause and before
another), the clocks, and which task runs next (Trio's scheduler draws it, from the seed).

Faults strike at scheduler steps, which an instrument counts: any await of any task may be the last.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import apsw
import msgspec
import trio

from queue_actor import deadlines, ids, ledger, ready, returned, service, sqlite, state_machine
from queue_actor.actor import ActorEngine
from queue_actor.archive import Archive
from queue_actor.changes import Changes, Recovered
from queue_actor.commands import Command, Dequeue, Enqueue, R
from queue_actor.durable import Data, DurableEngine
from queue_actor.engine import Engine, UnreadableError
from queue_actor.errors import Draining, OutcomeUnknown, QueueError, Starting
from queue_actor.rows import JOBS, job_of
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import StateMachine
from queue_actor.store import MemoryStore
from tests.fakes import SECRET, FakeClock, in_seeded_virtual_time, jump
from tests.opening import open_backups
from tests.simulation.auditor import Auditor, Call
from tests.simulation.disk import DeadError, Disk, Loss, chance
from tests.simulation.disk import Fault as DiskFault
from tests.simulation.invariants import ViolationError
from tests.simulation.telling import brief

STEPS_A_COMMAND = 6
"""Scheduler steps that a command takes, about: faults are spread over as many as a run has."""

LATE_SECONDS = 1.5
"""After its end a lease is swept so soon, if nothing stood still meanwhile."""

LOOKS_AT_THE_REST = 3
"""When all clients are gone: what is left once may be the timer's own command, on its way."""


class Kind(StrEnum):
    """What can happen."""

    KILL = "kill"  # the process ends
    POWER = "power"  # the machine does
    DEATH = "death"  # the machine ends in the midst of an operation of the disk
    FULL = "full"  # an operation of the disk fails: ENOSPC
    BROKEN = "broken"  # EIO, a sync that failed too
    SHORT = "short"  # half a write, then ENOSPC
    NO_ROOM = "no_room"  # the disk's reserve is reached, or is there again
    WALL = "wall"  # somebody sets the clock
    STALL = "stall"  # the process is stopped for a while


class Trouble(msgspec.Struct, frozen=True):
    """A fault, and the step at which it strikes."""

    step: int
    kind: Kind
    amount: float = 0.0  # seconds, or operations of the disk from there

    def __str__(self) -> str:
        return f"{self.kind}({self.amount:g}) at step {self.step}"


class Plan(msgspec.Struct, frozen=True):
    """All that chance decides."""

    seed: int
    durable: bool
    settings: Settings
    clients: tuple[str, ...]
    commands: int  # of each client
    troubles: tuple[Trouble, ...]


class GoneError(Exception):
    """The client has no answer: nothing is known of what it asked for."""


class DownError(Exception):
    """Nobody listens, or it said that it does nothing: what was asked for was not done."""


class _Life:
    """One process."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.death = trio.Event()
        self.engine: Engine | None = None
        self.calls: dict[trio.CancelScope, None] = {}
        self.disk_failed = False

    @property
    def is_dead(self) -> bool:
        return self.death.is_set()


class WatchedStore(SqliteStore):
    """The real store, and the auditor beside it."""

    auditor: Auditor
    clock: FakeClock
    recovered: Callable[[], None] = staticmethod(lambda: None)
    """What to do when all is read."""

    async def commit(self, changes: Changes) -> None:
        self.auditor.commit_begins(changes, self.clock())
        await super().commit(changes)
        self.auditor.commit_done(changes)

    async def recover(self, restore: Callable[[Recovered], None]) -> bool:
        done = await super().recover(restore)
        if done:  # and not before: what is found may be in the kernel alone
            recovered = self._read()
            jobs = [job_of(row) for row in self._connection.execute(JOBS).fetchall()]
            answers = {(str(record.kind), record.key) for record in recovered.answers}
            self.auditor.recovered(jobs, {queue.name: queue for queue in recovered.queues}, answers)
            self.recovered()
        return done


class WatchedMemory(MemoryStore):
    """Keeps nothing, and takes its time."""

    def __init__(self, instance: str, world: "World") -> None:
        super().__init__(instance)
        self._world = world

    async def commit(self, changes: Changes) -> None:
        self._world.auditor.commit_begins(changes, self._world.clock())
        with trio.CancelScope(shield=True):
            await self._world.pause(self._world.life)
        self._world.auditor.commit_done(changes)


class World(trio.abc.Instrument):
    """The server through its lives, and whoever wishes it ill."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = chance(plan.seed)
        self.clock = FakeClock()
        self.life = _Life()
        self.up = trio.Event()
        self.over = False  # the last life shall end in order
        self.calm = False  # no more faults
        self.calls: dict[int, Call] = {}
        self.auditor = Auditor(
            durable=plan.durable, calls=self.calls, recount_every=3, sweep_slice=plan.settings.sweep_slice
        )
        self.auditor.stop = self._stop
        self.stopped = trio.CancelScope()
        self.trace: list[tuple[float, str, Any]] = []
        self.struck: Counter[str] = Counter()
        self.events: list[Any] = []  # the history of the queue `plain`, as its clients saw it
        self.payloads = count(1)  # each job has its own
        self.seconds = 0.0  # that it took in the end
        self.crashes: list[tuple[float, float, float]] = []  # killed, dead, ready; for the history
        self.lives = 0
        self.steps = 0
        self.disturbed_at = -inf  # monotonic: when a clock was last moved
        self.digest = hashlib.blake2b()
        self._disk = Disk()
        self._room_bytes = 1e15
        self._troubles = sorted(plan.troubles, key=lambda trouble: trouble.step, reverse=True)
        self._disk_fault: Kind | None = None
        self._gone_at = 0.0
        self._cut_after_recovery = False

    def tell(self, who: str, what: Any) -> None:
        """Note what happens, for people and for comparison."""
        if not self.stopped.cancel_called:
            self.trace.append((trio.current_time(), who, what))

    def _stop(self) -> None:
        self.tell("auditor", str(self.auditor.violation))
        self.stopped.cancel()

    # --- what clients do

    async def ask(self, client: str, command: Command[R], *, patience: float = inf) -> R:
        """Send a command and wait for the reply, which takes some time both ways.

        Raises:
            QueueError: The refusal.
            GoneError: The server died, or the client's patience ended.
            DownError: The command was not carried out.
        """
        await trio.sleep(self.rng.uniform(0.0005, 0.01))
        life = self.life
        if not self.up.is_set() or life.is_dead or life.engine is None:
            raise DownError
        call = Call(command, client, trio.current_time() + patience)
        self.calls[id(command)] = call
        self.tell(client, command)
        reply: Any = None
        with trio.CancelScope(deadline=call.leaves_at) as scope:
            life.calls[scope] = None
            try:
                reply = await life.engine.execute(command)
            except QueueError as refusal:
                reply = refusal
            except (DeadError, apsw.Error):  # of a read beside the engine, or after a commit that failed
                if not life.death.is_set() and not life.disk_failed:
                    raise
        call.left = True
        life.calls.pop(scope, None)
        if life.is_dead:
            self.tell(client, "no answer: the server is gone")
            raise GoneError
        if reply is None:
            self.tell(client, "hangs up")
            # Other commands may be cut short between the jobs in memory and those that the store alone has.
            at_once = isinstance(command, Enqueue | Dequeue) and command.key is None
            if call.changes and at_once:
                self.auditor.violate("done_for_nobody", f"{client} was not answered, and {brief(command)} was done")
            raise GoneError
        if not isinstance(reply, QueueError):
            self.auditor.answered(command, reply)
        self.tell(client, reply)
        await trio.sleep(self.rng.uniform(0.0005, 0.01))
        if life.is_dead:
            raise GoneError
        if isinstance(reply, OutcomeUnknown):
            raise GoneError
        if isinstance(reply, Draining | Starting):
            raise DownError
        if isinstance(reply, QueueError):
            raise reply
        answer: R = reply
        return answer

    # --- lives

    async def serve(self) -> None:
        """One life after the other, until the last one may end in order."""
        while not self.over:
            await self._live()
            if not self.over:
                await trio.sleep(self.rng.uniform(0.0, 2.0))

    async def _live(self) -> None:
        life = self.life = _Life()
        self.lives += 1
        self.auditor.begin_life()
        self.tell("server", f"life {self.lives} begins")
        try:
            with life.scope:
                await self._open(life)
        except* DeadError:
            if not life.is_dead:
                self.kill(Kind.POWER)
        except* (apsw.Error, UnreadableError) as errors:
            if not life.is_dead:
                if not life.disk_failed and not self._disk_fault_struck():
                    self.auditor.violate("died", f"of {errors.exceptions[0]!r}, and nothing was wrong with the disk")
                self.kill(Kind.KILL)
        self._goes_down()

    def _goes_down(self) -> None:
        if self.up.is_set():
            self.up = trio.Event()

    async def _open(self, life: _Life) -> None:
        settings = self.plan.settings
        if not self.plan.durable:
            memory = WatchedMemory(f"life{self.lives}", self)
            secret = bytes([self.lives % 256]) * len(SECRET)
            async with service.open_engine(settings, clock=self.clock, store=memory, secret=secret) as engine:
                await self._stay(life, engine)
            return
        connection = self._disk.connect("/queue.db")
        # What is done within a call cannot be interrupted, so that the store and the archive can share it.
        store = WatchedStore(
            Path("/queue.db"),
            lambda _: connection,
            durability="full" if self.plan.seed % 4 else "normal",
            fresh_secret=SECRET,
            fresh_instance="first",
            run_in_thread=self._in_thread,
            room_bytes=lambda: self._room_bytes,
        )
        store.auditor, store.clock, store.recovered = self.auditor, self.clock, self.has_recovered
        archive = Archive(Path("/queue.db"), lambda _: connection, self._in_thread)
        data = Data(store, archive, open_backups(lambda _: connection))  # type: ignore[arg-type, return-value] # never asked for one
        async with service.open_engine(settings, clock=self.clock, data=data) as engine:
            await self._stay(life, engine)
        store.close()

    async def _stay(self, life: _Life, engine: Engine) -> None:
        assert isinstance(engine, ActorEngine | DurableEngine)
        self.auditor.tap(engine._machine)
        await engine.ready.wait()
        life.engine = engine
        self.tell("server", "serves")
        if self._gone_at:
            self.crashes.append((self._gone_at, self._gone_at, trio.current_time()))
            self._gone_at = 0.0
        self.up.set()
        while not self.over:
            await trio.sleep(0.5)
            self._look(engine)
        looks = 1
        while (rest := engine.statistics()).waiters or rest.inbox_requests:
            if looks == LOOKS_AT_THE_REST:
                self.auditor.violate("left_over", f"{rest} when all clients are gone")
            looks += 1
            await trio.sleep(0.4)

    def _look(self, engine: Engine) -> None:
        now = self.clock()
        if now.monotonic > self.disturbed_at + 2 * LATE_SECONDS and not engine.failed.is_set():
            self.auditor.look_at_the_clock(now, LATE_SECONDS)

    async def pause(self, life: _Life) -> None:
        """What the disk takes.

        Raises:
            DeadError: The process has ended.
        """
        seconds = self.rng.uniform(0.0002, 0.003) if self.rng.random() < 0.95 else self.rng.uniform(0.02, 0.3)
        with trio.move_on_after(seconds):
            await life.death.wait()
        if life.is_dead:
            raise DeadError

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        life = self.life
        await self.pause(life)
        disk, faulty = self._disk, self._disk.fault_is_due
        try:
            done = call()
        finally:
            failed = faulty and not disk.fault_is_due
            life.disk_failed = life.disk_failed or failed
            if disk.dead and not life.is_dead:
                self._die_within_an_operation()
        if failed:
            self.auditor.violate("fault_swallowed", "an operation of the disk failed, and nobody was told")
        await self.pause(life)
        return done

    def _die_within_an_operation(self) -> None:
        if self.rng.random() < 0.5:
            self.kill(Kind.POWER)
            return
        # What the process has written and not flushed is still there for the next one, until the power goes.
        self.kill(Kind.KILL)
        self._cut_after_recovery = self.rng.random() < 0.7

    def has_recovered(self) -> None:
        """A life has read what is kept, and may tell of it: it has to be safe.

        Raises:
            DeadError: The power has gone.
        """
        if self._cut_after_recovery and not self.calm:
            self._cut_after_recovery = False
            self.struck[Kind.POWER] += 1
            self.kill(Kind.POWER)
            raise DeadError

    def _disk_fault_struck(self) -> bool:
        return self._disk_fault is not None and not self._disk.fault_is_due

    def kill(self, how: Kind) -> None:
        """End the process, or the machine, in the midst of what it does."""
        life = self.life
        if life.is_dead:
            return
        self.tell("fate", f"{how}: the server is gone")
        self._goes_down()
        if life.engine is not None or not self._gone_at:
            self._gone_at = trio.current_time()
        self._disk_fault = None
        if how is Kind.KILL or self.plan.seed % 4 == 0:  # in the mode `normal` a power cut may take what was told
            self._disk = self._disk.crash()
        else:
            self._disk = self._disk.power_cut(self.rng, self.rng.choice(tuple(Loss)))
        life.death.set()
        life.scope.cancel()
        for scope in life.calls:
            scope.cancel()

    # --- faults

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and let happen what is due. Trio would pass over whatever is raised here."""
        self.steps += 1
        self.digest.update(task.name.encode())
        if self._troubles and not self.calm and self.steps >= self._troubles[-1].step:
            self._strike(self._troubles.pop())

    def _strike(self, trouble: Trouble) -> None:
        self.struck[trouble.kind] += 1
        if trouble.kind not in {Kind.KILL, Kind.POWER}:
            self.tell("fate", str(trouble))
        match trouble.kind:
            case Kind.KILL | Kind.POWER:
                self.kill(trouble.kind)
            case Kind.WALL:
                self.clock.wall_ahead_seconds += trouble.amount
                self.disturbed_at = trio.current_time()
            case Kind.STALL:
                jump(trouble.amount)
                self.disturbed_at = trio.current_time()
            case Kind.NO_ROOM:
                self._room_bytes = 1e15 if self._room_bytes < 0 else -1.0
            case _ if self.plan.durable and not self._disk.dead:
                self._disk.fail_at(int(trouble.amount), DiskFault(trouble.kind.value))
                self._disk_fault = trouble.kind

    def calm_down(self) -> None:
        """From here on nothing goes wrong."""
        self.calm = True
        self._room_bytes = 1e15
        if self._disk.fault_is_due:
            self._disk._fault = None
        self.tell("fate", "no more faults")

    def image(self) -> bytes:
        """What the disk has, to be compared."""
        return b"".join(name.encode() + content.shown for name, content in sorted(self._disk._names.items()))

    # --- the end

    async def look_once_more(self) -> None:
        """Open what was closed in order: it has to be the same."""
        if self.plan.durable:
            store = WatchedStore(
                Path("/queue.db"),
                lambda path: self._disk.connect(str(path)),
                durability="full",
                fresh_secret=SECRET,
                fresh_instance="other",
                run_in_thread=_at_once,
                room_bytes=lambda: inf,
            )
            store.auditor, store.clock = self.auditor, self.clock
            machine = StateMachine(self.plan.settings, secret=store.secret)
            self.auditor.begin_life()
            await store.recover(lambda recovered: machine.restore(recovered, self.clock()))
            store.close()


async def _at_once(call: Callable[[], Any]) -> Any:
    return call()


@contextmanager
def small_limits() -> Iterator[None]:
    """Let limits that no setting sets be small, so that runs reach them."""
    with ExitStack() as stack:
        for module, name, value in (
            (ready, "_COMPACT_SLOTS_MIN", 4),
            (deadlines, "_DEAD_ENTRIES_MIN", 8),
            *((module, "CHUNK_BITS", 2) for module in (ids, deadlines, ledger, returned, state_machine)),
            (ledger, "CHUNK_MASK", 3),
            (sqlite, "CHECKPOINT_BYTES", 16 * 4_096),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


class Run(msgspec.Struct):
    """What a run came to."""

    plan: Plan
    violation: ViolationError | None
    trace: list[tuple[float, str, Any]]
    commands: int
    seconds: float
    lives: int
    struck: Counter[str]
    reached: set[str]
    digest: str


def carry_out(plan: Plan, main: Callable[[World], Any]) -> Run:
    """Let a plan happen; `main` is what clients do, until all work is done."""
    ended: list[World] = []

    async def run() -> None:
        world = World(plan)
        ended.append(world)
        trio.lowlevel.add_instrument(world)
        try:
            with world.stopped:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.serve)
                    await main(world)
                    world.over = True
                await world.look_once_more()
        finally:
            world.seconds = trio.current_time()

    violation: ViolationError | None = None
    with small_limits():
        try:
            in_seeded_virtual_time(plan.seed, run)
        except BaseException as error:
            violation = ended[0].auditor.violation or _violation_in(error)
            if violation is None:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                first = next(iter(_leaves(error)))
                violation = ViolationError("died", f"of {type(first).__name__}: {first}")
                violation.__cause__ = error
    world = ended[0]
    digest = world.digest.copy()
    for moment, who, what in world.trace:
        digest.update(f"{moment!r} {who} {brief(what)}\n".encode())
    digest.update(world.image())
    return Run(
        plan,
        world.auditor.violation or violation,
        world.trace,
        world.auditor.commands,
        world.seconds,
        world.lives,
        world.struck,
        world.auditor.reached,
        digest.hexdigest(),
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _violation_in(error: BaseException) -> ViolationError | None:
    return next((leaf for leaf in _leaves(error) if isinstance(leaf, ViolationError)), None)


def story(run: Run, lines: int) -> Sequence[str]:
    """The last lines of what happened."""
    return [f"{moment:10.4f}  {who:<12} {brief(what)}" for moment, who, what in run.trace[-lines:]]


def random_of(plan: Plan, name: str) -> Random:
    """The chance of one client, which is the same whoever else takes part."""
    return chance(int.from_bytes(hashlib.blake2b(f"{plan.seed}/{name}".encode(), digest_size=8).digest(), "big"))
