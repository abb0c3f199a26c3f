"""The engine: the one way in. Handlers, sweeper and tests know nothing else of what owns the queue."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, Protocol

import msgspec
import trio
from msgspec.structs import replace
from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

from queue_actor.commands import Bulk, BulkDone, Command, Measure, R, ReadQueue, Sweep
from queue_actor.errors import Busy, OutcomeUnknown, QueueError
from queue_actor.events import EventLog
from queue_actor.figures import EngineFigures
from queue_actor.jobs import Now

Clock = Callable[[], Now]

INBOX_SLOTS_SPARE: Final = 3
"""What an inbox holds beyond the commands of clients: a sweep, a measurement, and one that was given up."""


BUSY_SECONDS: Final = 0.05
"""How long the next slice of a bulk command keeps away from an inbox that is full."""


def system_clock() -> Now:
    """This moment, by Trio's monotonic clock and the wall clock."""
    return Now(trio.current_time(), time.time())


class UnreadableError(Exception):
    """A store holds what cannot be understood; it is left as it is."""


class StoreStatistics(msgspec.Struct, frozen=True):
    """What a durable store is doing now."""

    file_bytes: int
    wal_bytes: int  # of the log, which a checkpoint moves into the file
    room_bytes: float  # what may still be written before no more jobs are taken
    commits: int
    commit_seconds_p50: float  # of the last ones
    commit_seconds_p99: float


class EngineStatistics(msgspec.Struct, frozen=True):
    """What an engine is doing now."""

    inbox_requests: int  # that wait to be carried out
    waiters: int  # parked dequeues


class Backup(Protocol):
    """A copy of all that is kept, which whoever has it must close."""

    file_bytes: int

    def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the copy, a bounded number at a time."""
        ...

    async def aclose(self) -> None:
        """Give its room back, and let the next backup begin; not to be cut short."""
        ...


class Engine(Protocol):
    """Owns the queue. All engines pass tests/contract."""

    failed: trio.Event
    """Set when the engine has ended by a bug or a broken store; the process is about to end."""

    ready: trio.Event
    """Set when commands are carried out: at once, or when a store has been read. Before, they are refused."""

    instance: str
    """Names the life of the queue: with another one, ids begin anew."""

    durability: str
    """What an answer is worth: `memory`, `normal` or `full`."""

    events: EventLog
    """What becomes of jobs, after it is stored, for those who look on."""

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command and return its reply, after the changes it made are stored.

        Cancelled before it was decided, it is not carried out. Once decided it stands, and is answered.

        Raises:
            QueueError: The refusal.
        """
        ...

    async def run(self) -> None:
        """Serve until closed; raises what made the engine fail."""
        ...

    def drain(self) -> None:
        """Hand out no more jobs: parked dequeues are answered empty now, later ones are refused."""
        ...

    def close(self) -> None:
        """Take no more commands; `run` returns when those that were taken are answered."""
        ...

    def statistics(self) -> EngineStatistics:
        """What the engine is doing now."""
        ...

    def figures(self) -> EngineFigures:
        """What the engine has done since it was made."""
        ...

    def store_statistics(self) -> StoreStatistics | None:
        """What the store is doing now; None if nothing is stored."""
        ...

    async def backup(self) -> Backup:
        """A copy of all that is kept at this moment; commands are carried out meanwhile.

        Raises:
            NotDurable: Nothing is stored.
            BackupRunning: There is one at a time.
            DiskFull: There is no room for a copy.
            Draining: The server is about to end.
        """
        ...

    def waiting(self, queue: str) -> int:
        """How many parked dequeues would take a job of this queue."""
        ...


async def execute_in_slices(
    engine: Engine, command: Bulk, tell: Callable[[BulkDone], object] = lambda _: None
) -> BulkDone:
    """Carry out a bulk command on all jobs there are now, slice by slice; others are served in between.

    `tell` hears of each slice that was carried out, for whoever has to know of them if the rest comes to nothing. A
    full inbox refuses the first slice and holds up the others: whoever is told `busy` takes it that nothing was done.

    Raises:
        OutcomeUnknown: It was broken off. Some slices were carried out, and the rest was not.
        QueueError: The refusal; nothing was done.
    """
    if command.until_id is None:
        command = replace(command, until_id=(await engine.execute(ReadQueue(command.queue))).last_id)
    slices = count = refused = 0
    while True:
        try:
            done = await engine.execute(command)
        except Busy:
            if not slices:
                raise
            await trio.sleep(BUSY_SECONDS)
            continue
        except QueueError as refusal:
            if not slices:
                raise
            raise OutcomeUnknown(f"{count} jobs are done, and no others: {refusal.detail}") from None
        tell(done)
        slices, count, refused = slices + 1, count + done.count, refused + done.refused
        if done.next_after is None:
            return BulkDone(count, refused, None)
        command = replace(command, after_id=done.next_after, spread_from=done.spread_to)


def may_wait(command: Command[R], inbox_requests: int, inbox_requests_max: int) -> bool:
    """Whether a command is taken where so many wait: a full inbox must neither starve the sweeper nor hide itself."""
    if inbox_requests < inbox_requests_max or isinstance(command, Sweep):
        return True
    return isinstance(command, Measure) and inbox_requests < inbox_requests_max + INBOX_SLOTS_SPARE - 1


class Request(Generic[R]):
    """A command on its way, and the caller who waits for the reply.

    Trio's own primitive for this, an Event beside a field, costs a third more per command. The caller's task is
    rescheduled by the engine with the answer in place; nothing is awaited on the engine's side.
    """

    __slots__ = ("_answer", "_task", "abandoned", "command", "decided", "patience", "unserved")

    def __init__(self, command: Command[R]) -> None:
        self.command = command
        self.abandoned = False  # the caller has left; only possible before the request is decided
        self.decided = False  # the command has been applied: the caller waits for the answer even if cancelled
        self.unserved: R | None = None  # of a parked request: the reply if its wait runs out
        self.patience: trio.CancelScope | None = None  # of a caller who may be parked, around his wait
        self._answer: Outcome[R] | None = None
        self._task: Task | None = None

    @property
    def settled(self) -> bool:
        """Whether the caller has his answer."""
        return self._answer is not None

    async def answered(self) -> R:
        """Wait for the answer. Only for the task that made the request, and only once.

        Raises:
            QueueError: The refusal.
        """
        if self._answer is None:
            self._task = current_task()
            await wait_task_rescheduled(self._abandon)
        assert self._answer is not None  # noqa: S101 - for the type checker: nobody else reschedules
        return self._answer.unwrap()

    def park(self, unserved: R, seconds: float) -> None:
        """Let the caller wait so long from now, and then be content with this reply."""
        self.unserved = unserved
        if self.patience is not None:
            self.patience.deadline = trio.current_time() + seconds

    def answer(self, reply: R) -> None:
        """Give the caller the reply."""
        self._settle(Value(reply))

    def refuse(self, refusal: QueueError) -> None:
        """Give the caller the refusal."""
        self._settle(Error(refusal))

    def _settle(self, answer: Outcome[R]) -> None:
        self._answer = answer
        if self._task is not None:
            reschedule(self._task)

    def _abandon(self, _raise_cancel: RaiseCancelT) -> Abort:
        if self.decided:
            return Abort.FAILED
        self.abandoned = True
        self._task = None
        return Abort.SUCCEEDED
