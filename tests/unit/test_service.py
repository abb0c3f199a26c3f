"""The block that is the lifetime of the queue."""

from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor import service
from queue_actor.actor import ActorEngine
from queue_actor.commands import (
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    EnqueuedJob,
    NewJob,
    R,
    ReadQueue,
    Sweep,
)
from queue_actor.engine import Clock, Engine, EngineStatistics, system_clock
from queue_actor.engines.lock import LockEngine
from queue_actor.errors import Draining, LeaseLost, OutcomeUnknown
from queue_actor.jobs import JobState
from queue_actor.service import ENGINES, FAREWELL_SECONDS, open_engine
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.store import Store
from queue_actor.sweeper import Sweeper
from tests.fakes import SECRET, Call, FakeStore

pytestmark = pytest.mark.virtual_time

ENQUEUE = Enqueue("q", [NewJob("a")])
READ = ReadQueue("q")


class ToldEngine:
    """Notes what is done to it; its sweeps last until they are cancelled."""

    def __init__(self, *_parts: object) -> None:
        self.failed = trio.Event()
        self.ready = trio.Event()
        self.ready.set()
        self.told: list[str] = []
        self.failure: Exception | None = None
        self._ended = trio.Event()

    async def execute(self, command: Command[R]) -> R:
        assert isinstance(command, Sweep)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.told.append("the timer stops")
            raise
        return cast("R", None)

    async def run(self) -> None:
        await self._ended.wait()
        self.told.append("run ends")
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self._ended.set()

    def drain(self) -> None:
        self.told.append("drain")

    def close(self) -> None:
        self.told.append("close")
        self._ended.set()

    def statistics(self) -> EngineStatistics:
        raise NotImplementedError

    def waiting(self, queue: str) -> int:
        raise NotImplementedError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> ToldEngine:
    """The engine that `open_engine` will open."""
    engine = ToldEngine()
    monkeypatch.setitem(ENGINES, "actor", lambda *_parts: engine)
    return engine


def test_there_is_an_engine_for_each_choice_of_the_setting() -> None:
    assert {"actor": ActorEngine, "lock": LockEngine} == ENGINES


async def test_the_settings_choose_the_engine(settings: Settings) -> None:
    async with open_engine(settings) as engine:
        assert type(engine) is ENGINES[settings.engine]
        assert (await engine.execute(ENQUEUE)).jobs == [EnqueuedJob(1, JobState.QUEUED)]


async def test_the_parts_are_the_ones_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def make(settings: Settings, machine: StateMachine, store: Store, clock: Clock, sweeper: Sweeper) -> Engine:
        given.extend([settings, store, clock])
        return ActorEngine(settings, machine, store, clock, sweeper)

    monkeypatch.setitem(ENGINES, "actor", make)
    settings, store = Settings(engine="actor"), FakeStore()
    async with open_engine(settings, store=store):
        pass
    assert given == [settings, store, system_clock]


async def test_two_servers_do_not_share_their_token_secret_unless_it_is_given(settings: Settings) -> None:
    async def token(secret: bytes | None) -> str:
        async with open_engine(settings, secret=secret) as engine:
            await engine.execute(ENQUEUE)
            return (await engine.execute(Dequeue("q"))).leases[0].token[14:]

    assert len({await token(None) for _ in range(5)}) == 5
    async with open_engine(settings, secret=SECRET) as engine:
        await engine.execute(ENQUEUE)
        lease = (await engine.execute(Dequeue("q"))).leases[0]
    async with open_engine(settings, secret=SECRET) as engine:
        await engine.execute(ENQUEUE)
        await engine.execute(Dequeue("q"))
        # The fence differs, for the wall clock has moved on; the token is read all the same.
        with pytest.raises(LeaseLost):
            (await engine.execute(Conclude([Claim("q", 1, lease.token)]))).single()


async def test_a_secret_of_another_length_is_an_error_before_anything_runs(settings: Settings) -> None:
    with pytest.raises(ValueError, match="secret"):
        async with open_engine(settings, secret=b"short"):
            pytest.fail("the block began")


# --- the end of the block


async def test_the_block_ends_in_order_drain_timer_close_run(told: ToldEngine) -> None:
    async with open_engine(Settings(sweep_seconds=1)) as engine:
        await trio.sleep(2)
        assert engine is cast("Engine", told)
        assert told.told == []
        told.told.append("the body ends")
    assert told.told == ["the body ends", "drain", "the timer stops", "close", "run ends"]
    assert not told.failed.is_set()


async def test_what_was_taken_is_answered_before_the_block_has_ended(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    async with open_engine(settings, store=store) as engine:
        parked = await Call.start(nursery, engine, Dequeue("other", wait_seconds=20))
        store.hold()
        calls = [await Call.start(nursery, engine, ENQUEUE) for _ in range(3)]

        async def let_go() -> None:
            await trio.sleep(5)
            assert parked.reply == Dequeued()
            assert parked.ended_at == 0
            assert [call.ended_at for call in calls] == [None] * 3
            store.let_go()

        nursery.start_soon(let_go)
    assert trio.current_time() == 5
    await wait_all_tasks_blocked()
    assert [call.reply.jobs for call in calls] == [[EnqueuedJob(id_, JobState.QUEUED)] for id_ in (1, 2, 3)]
    with pytest.raises(Draining):
        await engine.execute(READ)


async def test_a_sweep_under_way_is_finished_before_the_block_has_ended(settings: Settings, store: FakeStore) -> None:
    async with open_engine(settings, store=store) as engine:
        await engine.execute(ENQUEUE)
        await engine.execute(Dequeue("q", lease_seconds=1))
        store.seconds = 3
        await trio.sleep(2)
        assert len(store.changes) == 2
    assert len(store.changes) == 3
    assert trio.current_time() == 4


async def test_an_error_of_the_body_comes_out_and_everybody_has_been_told(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine:
            parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
            raise ZeroDivisionError
    await wait_all_tasks_blocked()
    assert parked.reply == Dequeued()
    with pytest.raises(Draining):
        await engine.execute(READ)
    assert not engine.failed.is_set()


async def test_a_block_that_is_cancelled_from_outside_ends_without_an_error(
    settings: Settings, nursery: trio.Nursery
) -> None:
    with trio.CancelScope() as scope:
        async with open_engine(settings) as engine:
            parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    # The engine and the body learn of it at the same moment: he is sent home, or told that the engine has ended.
    assert parked.ended_at == 0
    assert not engine.failed.is_set()
    with pytest.raises(Draining):
        await engine.execute(READ)


# --- an engine that fails


async def test_the_block_is_cancelled_after_the_farewell_and_the_failure_comes_out(told: ToldEngine) -> None:
    failure = OSError("disk")
    ended_at: float | None = None
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, check=lambda error: error is failure), flatten_subgroups=True):
        async with open_engine(Settings()) as engine:
            await trio.sleep(2)
            told.fail(failure)
            await engine.failed.wait()
            assert trio.current_time() == 2
            try:
                await trio.sleep_forever()
            finally:
                ended_at = trio.current_time()
    assert ended_at == 2 + FAREWELL_SECONDS
    assert engine.failed.is_set()


async def test_nobody_waits_for_the_farewell_of_a_body_that_has_ended(told: ToldEngine) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_engine(Settings()) as engine:
            told.fail(OSError("disk"))
            await engine.failed.wait()
            await trio.sleep(FAREWELL_SECONDS / 2)
    assert trio.current_time() == FAREWELL_SECONDS / 2


async def test_a_failure_of_the_engine_and_an_error_of_the_body_both_come_out(told: ToldEngine) -> None:
    with pytest.RaisesGroup(OSError, ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(Settings()) as engine:
            told.fail(OSError("disk"))
            await engine.failed.wait()
            raise ZeroDivisionError


async def test_the_farewell_is_not_cut_short_from_outside_but_is_short(told: ToldEngine) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True), trio.CancelScope() as scope:
        async with open_engine(Settings()) as engine:
            told.fail(OSError("disk"))
            await engine.failed.wait()
            with trio.CancelScope(shield=True):
                scope.cancel()
                await trio.sleep(FAREWELL_SECONDS / 2)
    assert trio.current_time() == FAREWELL_SECONDS / 2


async def test_a_sweep_that_fails_ends_the_block(settings: Settings, store: FakeStore) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_engine(settings, store=store):
            store.failure = OSError("disk")
            await trio.sleep_forever()
    assert trio.current_time() == settings.sweep_seconds + FAREWELL_SECONDS


async def test_a_bug_of_the_sweeper_ends_the_block(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Sweeper):
        async def run(self, engine: Engine) -> None:
            await trio.sleep(1)
            raise ZeroDivisionError(engine)

    monkeypatch.setattr(service, "Sweeper", Broken)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(settings):
            await trio.sleep_forever()
    assert trio.current_time() == 1


async def test_a_caller_who_passes_the_failure_on_has_the_time_to(settings: Settings, store: FakeStore) -> None:
    """As a handler does: it is inside the block, and tells its client."""
    passed_on: list[OutcomeUnknown] = []

    async def handler(engine: Engine) -> None:
        try:
            await engine.execute(ENQUEUE)
        except OutcomeUnknown as unknown:
            await trio.sleep(FAREWELL_SECONDS * 0.9)
            passed_on.append(unknown)

    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine, trio.open_nursery() as handlers:
            store.failure = OSError("disk")
            handlers.start_soon(handler, engine)
    assert len(passed_on) == 1
    assert trio.current_time() == FAREWELL_SECONDS * 0.9
