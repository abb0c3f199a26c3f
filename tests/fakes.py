"""What stands in for the world in tests: time, the store, and callers."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from math import inf
from typing import Any, Generic

import outcome
import trio
import trio.testing

from queue_actor.changes import Changes
from queue_actor.commands import Command, R
from queue_actor.engine import Engine
from queue_actor.jobs import Change, Now
from queue_actor.virtual import seeded_scheduling

EPOCH_SECONDS = 1_800_000_000.0
"""What the wall clock of a test shows when it begins."""

TEST_SECONDS_MAX = 10_000
"""Virtual time after which a test has failed: somebody waits who will never be answered."""

SECRET = bytes(range(32))

_lives = count()


def in_virtual_time(main: Callable[[], Awaitable[R]], **arguments: Any) -> R:
    """`trio.run` with a clock that jumps to the next deadline when everybody waits.

    Tests ask for it with the mark `virtual_time`.
    """

    async def bounded() -> R:
        trio.lowlevel.spawn_system_task(_free_the_stuck, trio.lowlevel.current_task())
        with trio.fail_after(TEST_SECONDS_MAX):
            return await main()

    return trio.run(bounded, **(arguments | {"clock": trio.testing.MockClock(autojump_threshold=0)}))


def in_seeded_virtual_time(seed: int, main: Callable[[], Awaitable[R]]) -> R:
    """The same, with the order in which tasks run decided by a seed."""
    with seeded_scheduling(seed):
        return in_virtual_time(main)


async def _free_the_stuck(main: trio.lowlevel.Task) -> None:
    """Wake those who have been cancelled and do not end, so that the test fails instead of hanging."""
    await trio.sleep(TEST_SECONDS_MAX + 1)
    tasks = [main]
    for task in tasks:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        tasks += children
        if task._cancel_status.effectively_cancelled and not children:
            trio.lowlevel.reschedule(task, outcome.Error(AssertionError(f"{task.name} can neither go on nor end")))


def jump(seconds: float) -> None:
    """Let time pass while nobody runs: the process was stopped."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    clock.jump(seconds)


class FakeClock:
    """Trio's time, and beside it a wall clock that a test may move."""

    def __init__(self) -> None:
        self.wall_ahead_seconds = EPOCH_SECONDS

    def __call__(self) -> Now:
        monotonic = trio.current_time()
        return Now(monotonic, monotonic + self.wall_ahead_seconds)


class FakeStore:
    """Remembers what it was given. A commit can be held, can take time, and can fail."""

    def __init__(self) -> None:
        self.instance = f"life{next(_lives)}"
        self.durability = "memory"
        self.room_bytes = inf
        self.commits: list[Sequence[Change]] = []
        self.seconds = 0.0  # that a commit takes
        self.failure: BaseException | None = None
        self._free = trio.Event()
        self._free.set()

    def hold(self) -> None:
        """Let commits begin and not end."""
        self._free = trio.Event()

    def let_go(self) -> None:
        """End the commit that is held, and hold no more."""
        self._free.set()

    @property
    def changes(self) -> list[Change]:
        """All changes that were committed, in order."""
        return [change for commit in self.commits for change in commit]

    async def commit(self, changes: Changes) -> None:
        with trio.CancelScope(shield=True, deadline=TEST_SECONDS_MAX):
            await self._free.wait()
            await trio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        self.commits.append(changes.jobs)


class Call(Generic[R]):
    """A command that is executed by a task of its own, and what came of it."""

    def __init__(self, engine: Engine, command: Command[R]) -> None:
        self.scope = trio.CancelScope()
        self.ended_at: float | None = None  # None while it is under way
        self._answer: R | Exception | None = None
        self._engine = engine
        self._command = command

    @classmethod
    async def start(cls, nursery: trio.Nursery, engine: Engine, command: Command[R]) -> "Call[R]":
        """Begin, and come back when everybody waits: calls arrive in the order in which they were started."""
        call = cls(engine, command)
        nursery.start_soon(call.run)
        await trio.testing.wait_all_tasks_blocked()
        return call

    async def run(self) -> None:
        with self.scope:
            try:
                self._answer = await self._engine.execute(self._command)
            except Exception as error:  # noqa: BLE001 - the test looks at whatever it was
                self._answer = error
        self.ended_at = trio.current_time()

    @property
    def cancelled(self) -> bool:
        """Whether the caller left without an answer."""
        return self.ended_at is not None and self._answer is None

    @property
    def reply(self) -> R:
        """The reply. Raises what came instead of it."""
        assert self._answer is not None, "no answer yet, or never"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    @property
    def refusal(self) -> Exception:
        """What came instead of a reply."""
        assert isinstance(self._answer, Exception)
        return self._answer
