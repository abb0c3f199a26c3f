"""The mutex design: what is particular to it beside what all engines promise."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import Command, Dequeue, Dequeued, Enqueue, NewJob, R, ReadQueue
from queue_actor.engine import EngineStatistics
from queue_actor.engines.lock import LockEngine
from queue_actor.errors import Draining, OutcomeUnknown
from queue_actor.jobs import Now
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.sweeper import Sweeper
from tests.fakes import EPOCH_SECONDS, SECRET, Call, FakeClock, FakeStore

pytestmark = pytest.mark.virtual_time

ENQUEUE = Enqueue("q", [NewJob("a")])
READ = ReadQueue("q")
SETTINGS = Settings(engine="lock")


class Bug(Exception):
    """What a state machine with a bug raises."""


class Parts:
    """A lock engine and what it was made of."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.machine = StateMachine(SETTINGS, secret=SECRET)
        self.sweeper = Sweeper(SETTINGS.sweep_seconds)  # which does not run
        self.engine = LockEngine(SETTINGS, self.machine, self.store, FakeClock(), self.sweeper)

    async def line_up(self, nursery: trio.Nursery, *commands: Command[Any]) -> list[Call[Any]]:
        """Let callers stand before the lock, the first of them with his commit under way."""
        self.store.hold()
        return [await Call.start(nursery, self.engine, command) for command in commands]


@asynccontextmanager
async def running() -> AsyncIterator[Parts]:
    parts = Parts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.engine.run)
        yield parts
        parts.store.let_go()
        parts.engine.close()


async def failing(parts: Parts, nursery: trio.Nursery, error: type[Exception]) -> None:
    """Run the engine, and expect it to fail."""

    async def run() -> None:
        with pytest.raises(error):
            await parts.engine.run()

    nursery.start_soon(run)
    await wait_all_tasks_blocked()


async def test_each_command_is_a_commit_of_its_own_in_the_order_in_which_they_came(nursery: trio.Nursery) -> None:
    async with running() as parts:
        calls = await parts.line_up(nursery, ENQUEUE, READ, ENQUEUE, Dequeue("q", 2))
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert [len(changes) for changes in parts.store.commits] == [1, 0, 1, 2]
        assert [call.reply.jobs[0].id for call in (calls[0], calls[2])] == [1, 2]


async def test_the_lock_is_held_until_the_commit_has_ended(nursery: trio.Nursery) -> None:
    async with running() as parts:
        parts.store.seconds = 1
        calls = await parts.line_up(nursery, ENQUEUE, ENQUEUE, ENQUEUE)
        parts.store.let_go()
        await trio.sleep(5)
        assert [call.ended_at for call in calls] == [1, 2, 3]
        assert [call.reply.jobs[0].id for call in calls] == [1, 2, 3]
        assert [change.after.created_at - EPOCH_SECONDS for change in parts.store.changes] == [0, 1, 2]  # type: ignore[union-attr] # it is there


async def test_who_is_cancelled_before_he_has_the_lock_did_nothing(nursery: trio.Nursery) -> None:
    async with running() as parts:
        first, second, third = await parts.line_up(nursery, ENQUEUE, ENQUEUE, ENQUEUE)
        second.scope.cancel()
        await wait_all_tasks_blocked()
        assert second.cancelled
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert [call.reply.jobs[0].id for call in (first, third)] == [1, 2]


async def test_who_is_dismissed_before_he_sits_down_to_wait_gets_his_answer(nursery: trio.Nursery) -> None:
    async with running() as parts:
        (call,) = await parts.line_up(nursery, Dequeue("q", wait_seconds=20))
        assert parts.engine.statistics().waiters == 1
        parts.engine.drain()
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert call.reply == Dequeued()
        assert call.ended_at == 0


async def test_closed_it_serves_those_who_stand_before_the_lock_and_run_returns() -> None:
    parts = Parts()
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def run() -> None:
            await parts.engine.run()
            ended.set()

        nursery.start_soon(run)
        calls = await parts.line_up(nursery, ENQUEUE, ENQUEUE)
        parts.engine.close()
        await wait_all_tasks_blocked()
        assert not ended.is_set()
        with pytest.raises(Draining):
            await parts.engine.execute(READ)
        parts.store.let_go()
        await ended.wait()
        assert [call.reply.jobs[0].id for call in calls] == [1, 2]


async def test_cancelled_it_tells_those_who_wait_for_a_job(nursery: trio.Nursery) -> None:
    parts = Parts()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as engine:
            engine.start_soon(parts.engine.run)
            parked = await Call.start(nursery, parts.engine, Dequeue("q", wait_seconds=20))
            scope.cancel()
    await wait_all_tasks_blocked()
    assert isinstance(parked.refusal, OutcomeUnknown)
    with pytest.raises(Draining):
        await parts.engine.execute(READ)


async def test_a_store_that_fails_leaves_nobody_without_an_answer(nursery: trio.Nursery) -> None:
    parts = Parts()
    await failing(parts, nursery, OSError)
    served = await Call.start(nursery, parts.engine, Dequeue("q", wait_seconds=20))
    parked = await Call.start(nursery, parts.engine, Dequeue("other", wait_seconds=20))
    calls = await parts.line_up(nursery, ENQUEUE, READ, Dequeue("q", wait_seconds=20))
    served.scope.cancel()  # too late: it has been decided
    await wait_all_tasks_blocked()
    assert served.ended_at is None
    parts.store.failure = OSError("disk")
    parts.store.let_go()
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in (served, parked, *calls)] == [OutcomeUnknown] * 5
    assert calls[0].refusal.__cause__ is parts.store.failure
    assert parts.engine.statistics() == EngineStatistics(inbox_requests=0, waiters=0)
    with pytest.raises(Draining):
        await parts.engine.execute(READ)


async def test_a_bug_that_shows_while_waiters_are_served_leaves_nobody_without_an_answer(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts()
    await failing(parts, nursery, Bug)
    calls: list[Call[Any]] = [await Call.start(nursery, parts.engine, Dequeue("q", wait_seconds=20)) for _ in range(3)]
    apply, dequeues = parts.machine.apply, 0

    def fail_at_the_second(command: Command[R], now: Now) -> R:
        nonlocal dequeues
        dequeues += isinstance(command, Dequeue)
        if dequeues == 2:
            raise Bug
        return apply(command, now)

    monkeypatch.setattr(parts.machine, "apply", fail_at_the_second)
    calls.append(await Call.start(nursery, parts.engine, Enqueue("q", [NewJob("a")] * 3)))
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 4


async def test_a_bug_in_a_callers_task_ends_the_engine_and_not_the_caller(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(_command: Command[R], _now: Now) -> R:
        raise Bug

    parts = Parts()
    await failing(parts, nursery, Bug)
    monkeypatch.setattr(parts.machine, "apply", apply)
    with pytest.raises(OutcomeUnknown) as told:
        await parts.engine.execute(READ)
    assert isinstance(told.value.__cause__, Bug)
    with pytest.raises(Draining):
        await parts.engine.execute(READ)
