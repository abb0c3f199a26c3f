"""What every engine promises whatever the command: its inbox, its commits, its callers, and its end."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    DeleteQueue,
    Dequeue,
    Dequeued,
    DequeueOrder,
    Enqueue,
    EnqueuedJob,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    JobFilter,
    ListQueues,
    Measure,
    NewJob,
    Pause,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    Results,
    RunNow,
    Search,
    SetPolicy,
    Sweep,
    Swept,
    TakeBack,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import (
    Busy,
    Draining,
    MemoryFull,
    OutcomeUnknown,
    QueueError,
)
from queue_actor.jobs import (
    JobState,
    Now,
    QueuePolicy,
)
from queue_actor.settings import Settings
from tests.contract.state import whole_state
from tests.contract.verbs import (
    AT_ONCE,
    IDLE,
    conclude,
    counts,
    dequeue,
    enqueue,
    give_policy,
    lease,
    pass_time,
    read,
    refusal,
    to_extend,
    types,
)
from tests.fakes import Call, FakeClock, FakeStore, jump
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


# --- callers who leave


async def test_a_waiter_who_left_gets_no_lease_and_the_next_one_gets_the_job(
    engine: Engine, nursery: trio.Nursery
) -> None:
    gone = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    stays = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    gone.scope.cancel()
    await wait_all_tasks_blocked()
    assert gone.cancelled
    assert engine.statistics().waiters == 1
    await enqueue(engine, "a")
    await wait_all_tasks_blocked()
    (leased,) = stays.reply.leases
    assert leased.job.attempts == 1
    assert engine.statistics() == IDLE


async def test_a_waiter_who_leaves_at_the_moment_at_which_a_job_appears_gets_no_lease(
    engine: Engine, nursery: trio.Nursery
) -> None:
    """Whether his task or the engine's runs first is a matter of chance, so that it is tried several times."""
    for n in range(1, 21):
        gone = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        stays = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        gone.scope.cancel()
        await enqueue(engine, "a")
        await wait_all_tasks_blocked()
        assert gone.cancelled
        (leased,) = stays.reply.leases
        assert (leased.job.id, leased.job.attempts) == (n, 1)
        assert engine.statistics() == IDLE


async def test_a_wait_that_runs_out_at_the_moment_at_which_a_job_appears_loses_no_job(
    engine: Engine, nursery: trio.Nursery
) -> None:
    for n in range(1, 21):
        call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=2))
        jump(2)
        await enqueue(engine, "a")
        await wait_all_tasks_blocked()
        leases = call.reply.leases or await dequeue(engine)
        assert [(leased.job.id, leased.job.attempts) for leased in leases] == [(n, 1)]


@pytest.mark.parametrize(
    "command",
    [
        Enqueue("q", [NewJob("b")]),
        Dequeue("q"),
        Dequeue("q", wait_seconds=20),
        Dequeue("*"),
        Conclude([Claim("q", 1)]),
        Extend([ExtendClaim("q", 1, lease_seconds=900)]),
        Fail([FailClaim("q", 1)]),
        Release([ReleaseClaim("q", 1)]),
        TakeBack("q", [1]),
        Cancel("q", [2]),
        Redrive("q", [3]),
        RunNow("q", [4]),
        Forget("q", [3]),
        Bulk("q", BulkVerb.PURGE, JobFilter()),
        SetPolicy("q", QueuePolicy(max_attempts=1)),
        Pause("q", paused=True),
        DeleteQueue("empty"),
    ],
    ids=lambda command: type(command).__name__,
)
async def test_a_command_whose_caller_left_before_it_was_decided_does_nothing(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, command: Command[Any]
) -> None:
    async def prepare() -> object:
        await give_policy(engine, "empty")
        await enqueue(engine, "a", "a", "a")
        await enqueue(engine, "a", delay_seconds=60)
        await dequeue(engine)
        await engine.execute(Cancel("q", [3]))
        return whole_state(engine)

    before = await prepare()
    changes = len(store.changes)
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, command)
    assert engine.statistics().inbox_requests == 1
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.cancelled
    store.let_go()
    await wait_all_tasks_blocked()
    assert whole_state(engine) == before
    assert len(store.changes) == changes
    assert engine.statistics() == IDLE
    await engine.execute(command)
    assert whole_state(engine) != before


async def test_a_caller_cancelled_before_he_asks_asks_for_nothing(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await enqueue(engine, "a")
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    assert not (await engine.execute(ReadQueue("q"))).exists
    assert engine.statistics() == IDLE


@pytest.mark.parametrize("wait_seconds", [0, 20])
async def test_a_command_that_was_decided_stands_and_is_answered_although_its_caller_was_cancelled(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    await enqueue(engine, "a")
    store.hold()
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    (leased,) = call.reply.leases
    assert await read(engine, 1) == leased.job
    await conclude(engine, leased)


async def test_a_waiter_that_was_served_gets_his_lease_although_he_was_cancelled_before_the_commit(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    call.scope.cancel()
    await wait_all_tasks_blocked()
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    await conclude(engine, *call.reply.leases)
    assert engine.statistics() == IDLE


async def test_a_wait_that_runs_out_while_its_lease_is_stored_still_gives_the_lease(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=5))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    await pass_time(6)
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(call.reply.leases) == ["a"]


async def test_figures_return_to_zero_when_all_callers_are_gone(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    for n in range(20):
        store.hold()
        calls: list[Call[Any]] = [await Call.start(nursery, engine, ReadQueue("q"))]
        calls += [await Call.start(nursery, engine, Dequeue(f"q{n % 3}", wait_seconds=1 + n)) for _ in range(3)]
        calls += [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))]
        if n % 2:
            store.let_go()
            await wait_all_tasks_blocked()
        for call in calls:
            call.scope.cancel()
        store.let_go()
        await wait_all_tasks_blocked()
        assert engine.statistics() == IDLE


# --- the inbox


async def test_a_full_inbox_refuses_clients_and_does_not_starve_the_sweeper(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    async with open_engine(replace(settings, inbox_requests_max=3), clock=clock, store=store) as engine:
        await lease(engine, lease_seconds=2)
        await pass_time(1.5)
        store.hold()
        await Call.start(nursery, engine, ReadQueue("q"))  # is in hand, and waits no longer
        assert engine.statistics() == IDLE
        waiting = [await Call.start(nursery, engine, Enqueue("q", [NewJob("b")])) for _ in range(3)]
        assert engine.statistics().inbox_requests == 3
        for wait_seconds in (0, 20):
            assert "3" in str(await refusal(engine, Dequeue("q", wait_seconds=wait_seconds), Busy))
        await pass_time(3)  # the sweeper's command is in the inbox too
        assert engine.statistics() == EngineStatistics(inbox_requests=4, waiters=0)
        await refusal(engine, Enqueue("q", [NewJob("c")]), Busy)
        store.let_go()
        await wait_all_tasks_blocked()
        assert (await read(engine, 1)).state is JobState.QUEUED
        assert [call.reply.jobs for call in waiting] == [[EnqueuedJob(id_, JobState.QUEUED)] for id_ in (2, 3, 4)]
        assert await counts(engine) == {"queued": 4}
        assert engine.statistics() == IDLE


async def test_a_sweep_is_a_command_like_any_other(engine: Engine) -> None:
    await lease(engine, lease_seconds=5)
    await enqueue(engine, "b", delay_seconds=3)
    nothing = Swept(stale=0, due=0, expired=0, forgotten=0, dead_lost=0, more=False, next_due_seconds=None)
    assert await engine.execute(Sweep()) == replace(nothing, next_due_seconds=3)
    jump(5.5)
    assert await engine.execute(Sweep()) == replace(nothing, stale=1, due=1)


EACH_COMMAND: list[Command[Any]] = [
    SetPolicy("q", QueuePolicy(retry=AT_ONCE)),
    Enqueue("q", [NewJob("a")] * 9),
    Enqueue("q", [NewJob("later", delay_seconds=60)]),
    Dequeue("q", 5),
    Dequeue(("q", "other")),
    Dequeue("*", order=DequeueOrder.FAIR),
    Extend([ExtendClaim("q", 1)]),
    Conclude([Claim("q", 1)]),
    Conclude([Claim("q", 99)]),
    Fail([FailClaim("q", 2, retry=False)]),
    Fail([FailClaim("q", 3)]),
    Release([ReleaseClaim("q", 4)]),
    TakeBack("q", [5]),
    Cancel("q", [9]),
    Redrive("q", [2, 9]),
    RunNow("q", [10]),
    Forget("q", [1]),
    ReadJob("q", 2),
    ReadPosition("q", 2),
    ReadQueue("q"),
    ListQueues(),
    Measure(),
    Search("q", JobFilter()),
    Pause("q", paused=True),
    Pause("q", paused=False),
    Sweep(),
    Bulk("q", BulkVerb.RELEASE, JobFilter()),
    Bulk("q", BulkVerb.PURGE, JobFilter()),
    DeleteQueue("q"),
]
"""A life of a queue, in which each command does something."""

WAITS: list[Command[Any]] = [
    Enqueue("q", [NewJob("a")]),
    Dequeue("q", wait_seconds=1),
    Dequeue("q", wait_seconds=1),
    ReadJob("q", 11, wait_seconds=1),
    Conclude([Claim("q", 11)]),
    ReadJob("q", 11, wait_seconds=1),
]


async def test_the_commands_of_these_tests_do_something_each(engine: Engine) -> None:
    before = whole_state(engine)
    for command in EACH_COMMAND:
        reply = await engine.execute(command)
        reads = isinstance(command, ReadJob | ReadPosition | ReadQueue | ListQueues | Measure | Search | Sweep)
        refused = isinstance(reply, Results) and isinstance(reply.jobs[0], QueueError)
        assert (whole_state(engine) == before) is (reads or refused), command
        before = whole_state(engine)


@pytest.mark.parametrize("stored", [True, False])
async def test_every_command_is_a_checkpoint(settings: Settings, store: FakeStore, stored: bool) -> None:
    commands = [*EACH_COMMAND, *WAITS]
    async with open_engine(settings, store=store if stored else None) as engine:
        for command in commands:
            with assert_checkpoints():
                await engine.execute(command)
        for command in commands:
            with trio.CancelScope() as scope:
                scope.cancel()
                await engine.execute(command)
            assert scope.cancelled_caught, command


# --- nobody is answered before the commit


async def test_nobody_is_answered_before_his_change_is_stored(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    producer = await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    await pass_time(5)
    assert (producer.ended_at, waiting.ended_at) == (None, None)
    assert store.changes == []
    store.let_go()
    await wait_all_tasks_blocked()
    assert (producer.ended_at, waiting.ended_at) == (5, 5)
    assert producer.reply.jobs == [EnqueuedJob(1, JobState.QUEUED)]
    made, leased = (change.after for change in store.changes)
    assert made is not None
    assert (made.id, made.state) == (1, JobState.QUEUED)
    assert leased == waiting.reply.leases[0].job


async def test_changes_are_stored_in_the_order_of_their_revisions(engine: Engine, store: FakeStore) -> None:
    store.seconds = 0.01
    async with trio.open_nursery() as producers:
        for _ in range(50):
            producers.start_soon(enqueue, engine, "a", "b")
    for leased in await dequeue(engine, 30):
        await conclude(engine, leased)
    assert [change.revision for change in store.changes] == list(range(1, 161))


# --- the end


async def test_draining_answers_those_who_wait_empty_at_once(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    calls = [await Call.start(nursery, engine, Dequeue(f"q{n % 2}", wait_seconds=20)) for n in range(4)]
    await pass_time(3)
    engine.drain()
    await wait_all_tasks_blocked()
    assert [(call.reply, call.ended_at) for call in calls] == [(Dequeued(), 3)] * 4
    assert engine.statistics() == IDLE
    assert store.changes == []


async def test_once_draining_dequeues_are_refused_and_all_else_is_served(engine: Engine) -> None:
    leased = await lease(engine)
    await enqueue(engine, "b")
    engine.drain()
    for wait_seconds in (0, 20):
        await refusal(engine, Dequeue("q", wait_seconds=wait_seconds), Draining)
    await engine.execute(Extend([to_extend(leased)]))
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED
    await enqueue(engine, "c")
    await engine.execute(Cancel("q", [3]))
    assert await counts(engine) == {"concluded": 1, "queued": 1, "cancelled": 1}
    engine.drain()
    assert await counts(engine) == {"concluded": 1, "queued": 1, "cancelled": 1}


@pytest.mark.parametrize("wait_seconds", [0, 20])
async def test_once_draining_no_job_is_handed_out_to_those_who_came_before_either(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    await enqueue(engine, "a")
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    engine.drain()
    store.let_go()
    await wait_all_tasks_blocked()
    assert isinstance(call.refusal, Draining)
    assert await counts(engine) == {"queued": 1}


async def test_a_waiter_that_was_served_before_the_draining_gets_his_lease(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    served = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    engine.drain()
    await wait_all_tasks_blocked()
    assert parked.reply == Dequeued()
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(served.reply.leases) == ["a"]


async def test_a_closed_engine_answers_what_it_took_and_refuses_what_comes(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    store.hold()
    taken = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    engine.close()
    late: list[Command[Any]] = [ReadQueue("q"), Dequeue("q"), Dequeue("q", wait_seconds=20), Sweep()]
    for command in late:
        await refusal(engine, command, Draining)
    assert [call.ended_at for call in taken] == [None] * 3
    store.let_go()
    await wait_all_tasks_blocked()
    assert [call.reply.jobs for call in taken] == [[EnqueuedJob(id_, JobState.QUEUED)] for id_ in (1, 2, 3)]
    assert engine.statistics() == IDLE
    assert not engine.failed.is_set()


async def test_who_still_waits_for_a_job_when_the_engine_closes_is_told(engine: Engine, nursery: trio.Nursery) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    engine.close()
    await wait_all_tasks_blocked()
    assert isinstance(call.refusal, OutcomeUnknown)
    assert engine.statistics() == IDLE


async def test_leaving_the_block_answers_everybody(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    async with open_engine(settings, clock=clock, store=store) as engine:
        parked = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        store.seconds = 0.5
        taken = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert sum(len(call.reply.jobs) for call in taken) == 3
    assert len(parked.reply.leases) <= 1  # it was there before the jobs, unless the end came first
    await refusal(engine, Enqueue("q", [NewJob("b")]), Draining)
    assert engine.statistics() == IDLE


# --- a bug, or a broken store


async def test_a_broken_store_ends_the_block_and_everybody_is_told(
    settings: Settings, clock: FakeClock, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no space left"), flatten_subgroups=True):
        async with open_engine(settings, clock=clock, store=store) as engine:
            calls: list[Call[Any]] = [
                await Call.start(nursery, engine, Dequeue("other", wait_seconds=20)),
                await Call.start(nursery, engine, Dequeue("q", wait_seconds=20)),  # is served, and must not wait on
            ]
            store.hold()
            calls += [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
            store.failure = OSError("no space left")
            assert not engine.failed.is_set()
            store.let_go()
            await engine.failed.wait()
            await wait_all_tasks_blocked()
            assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 5
            late: list[Command[Any]] = [ReadQueue("q"), Sweep(), Dequeue("q", wait_seconds=20)]
            for command in late:
                await refusal(engine, command, Draining)
            await trio.sleep_forever()
    assert trio.current_time() == 1  # the farewell
    assert store.changes == []
    assert engine.statistics() == IDLE


async def test_a_store_that_fails_with_what_looks_like_a_refusal_is_broken_all_the_same(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(MemoryFull, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine:
            store.failure = MemoryFull("not of the queue, but of the store")
            call = await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
            await engine.failed.wait()
    assert isinstance(call.refusal, OutcomeUnknown)


async def test_a_store_that_fails_while_the_block_ends_is_not_forgotten(
    settings: Settings, store: FakeStore, nursery: trio.Nursery
) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_engine(settings, store=store) as engine:
            store.seconds = 3
            store.failure = OSError("disk")
            calls = [await Call.start(nursery, engine, Enqueue("q", [NewJob("a")])) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 3
    assert engine.failed.is_set()
    assert trio.current_time() == 3


async def test_a_clock_that_fails_ends_the_block_and_everybody_is_told(
    settings: Settings, nursery: trio.Nursery
) -> None:
    class Stopped(FakeClock):
        def __call__(self) -> Now:
            if trio.current_time() >= 3:
                raise ZeroDivisionError
            return super().__call__()

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(replace(settings, sweep_seconds=60), clock=Stopped()) as engine:
            calls = [await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))]
            await trio.sleep(3)
            calls.append(await Call.start(nursery, engine, Dequeue("q")))
            await engine.failed.wait()
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 2
    assert engine.statistics() == IDLE


async def test_a_bug_in_a_command_ends_the_block_and_its_caller_is_told(
    settings: Settings, clock: FakeClock, nursery: trio.Nursery
) -> None:
    class Unknown(Command[None], frozen=True):
        pass

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with open_engine(settings, clock=clock) as engine:
            call = await Call.start(nursery, engine, Unknown())
            await engine.failed.wait()
    assert isinstance(call.refusal, OutcomeUnknown)
    assert trio.current_time() == 0
