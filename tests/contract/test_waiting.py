"""Parked requests: dequeues that wait for a job, and readers who wait for its end; on each engine."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Dequeue,
    Dequeued,
    Enqueue,
    Extend,
    Lease,
    NewJob,
    ReadQueue,
    Release,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import (
    TooManyWaiters,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    IDLE,
    conclude,
    counts,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    to_extend,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS, Call, FakeClock, FakeStore

pytestmark = pytest.mark.virtual_time


# --- long polls


async def appears_by_enqueue(engine: Engine, held: Lease) -> None:
    del held
    await enqueue(engine, "b")


async def appears_by_release(engine: Engine, held: Lease) -> None:
    await engine.execute(Release([to_release(held)]))


async def appears_by_extending_shortly(engine: Engine, held: Lease) -> None:
    await engine.execute(Extend([to_extend(held, 0.1)]))


async def appears_by_coming_due(engine: Engine, held: Lease) -> None:
    del held
    await enqueue(engine, "b", delay_seconds=0.1)


@pytest.mark.parametrize(
    ("appears", "after_seconds"),
    [
        (appears_by_enqueue, 0),
        (appears_by_release, 0),
        (appears_by_extending_shortly, 0.1),
        (appears_by_coming_due, 0.1),
    ],
)
async def test_a_parked_dequeue_is_served_at_once_when_a_job_appears(
    engine: Engine, nursery: trio.Nursery, appears: Any, after_seconds: float
) -> None:
    held = await lease(engine)
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20, consumer="w2", lease_seconds=7))
    assert engine.statistics() == EngineStatistics(inbox_requests=0, waiters=1)
    await pass_time(3)
    await appears(engine, held)
    await pass_time(after_seconds)
    (leased,) = call.reply.leases
    assert call.ended_at == pytest.approx(3 + after_seconds, abs=0.001)
    assert (leased.job.consumer, leased.job.lease_seconds) == ("w2", 7)
    assert leased.job.started_at == pytest.approx(EPOCH_SECONDS + 3 + after_seconds, abs=0.001)
    assert await read(engine, leased.job.id) == leased.job
    assert engine.statistics() == IDLE
    await conclude(engine, leased)


async def test_a_parked_dequeue_is_served_when_a_lease_goes_stale(engine: Engine, nursery: trio.Nursery) -> None:
    await lease(engine, lease_seconds=4)
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    await pass_time(4)
    assert call.ended_at == pytest.approx(4, abs=0.001)
    assert call.reply.leases[0].job.attempts == 2


async def test_the_oldest_parked_dequeue_is_served_first(engine: Engine, nursery: trio.Nursery) -> None:
    calls = [await Call.start(nursery, engine, Dequeue("q", wait_seconds=20)) for _ in range(5)]
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c")
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in calls[:3]] == [["a"], ["b"], ["c"]]
    assert [call.ended_at for call in calls[3:]] == [None, None]
    await enqueue(engine, "d", "e", "f")
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in calls[3:]] == [["d"], ["e"]]
    assert await counts(engine) == {"in_progress": 5, "queued": 1}


async def test_parked_dequeues_of_one_queue_do_not_hinder_those_of_another(
    engine: Engine, nursery: trio.Nursery
) -> None:
    one = await Call.start(nursery, engine, Dequeue("one", wait_seconds=20))
    two = await Call.start(nursery, engine, Dequeue("two", wait_seconds=20))
    await enqueue(engine, "a", queue="two")
    await wait_all_tasks_blocked()
    assert types(two.reply.leases) == ["a"]
    assert one.ended_at is None
    await enqueue(engine, "b", queue="one")
    await wait_all_tasks_blocked()
    assert types(one.reply.leases) == ["b"]


async def test_jobs_that_come_due_in_several_queues_at_once_serve_all_who_wait(
    engine: Engine, nursery: trio.Nursery
) -> None:
    calls = [await Call.start(nursery, engine, Dequeue(f"q{n % 5}", wait_seconds=20)) for n in range(10)]
    for n in range(5):
        await enqueue(engine, "a", "b", queue=f"q{n}", delay_seconds=3 - trio.current_time())
    await pass_time(3)
    assert [types(call.reply.leases) for call in calls] == [["a"]] * 5 + [["b"]] * 5


@pytest.mark.parametrize("wait_seconds", [0.0, 20.0])
async def test_a_fresh_dequeue_does_not_overtake_those_who_wait(
    engine: Engine, store: FakeStore, nursery: trio.Nursery, wait_seconds: float
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
    fresh = await Call.start(nursery, engine, Dequeue("q", wait_seconds=wait_seconds))
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(waiting.reply.leases) == ["a"]
    if wait_seconds:
        assert fresh.ended_at is None
        fresh.scope.cancel()
    else:
        assert types(fresh.reply.leases) == []


async def test_jobs_that_are_left_over_by_those_who_wait_go_to_a_fresh_dequeue(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    waiting = await Call.start(nursery, engine, Dequeue("q", 2, wait_seconds=20))
    store.hold()
    await Call.start(nursery, engine, ReadQueue("q"))
    await Call.start(nursery, engine, Enqueue("q", [NewJob("a"), NewJob("b"), NewJob("c")]))
    fresh = await Call.start(nursery, engine, Dequeue("q", 2))
    store.let_go()
    await wait_all_tasks_blocked()
    assert types(waiting.reply.leases) == ["a", "b"]
    assert types(fresh.reply.leases) == ["c"]


async def test_a_wait_that_runs_out_is_answered_empty_on_time(engine: Engine, nursery: trio.Nursery) -> None:
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=12.5))
    await pass_time(12.499)
    assert call.ended_at is None
    await pass_time(0.001_1)
    assert call.reply == Dequeued()
    assert call.ended_at == 12.5
    assert engine.statistics() == IDLE
    await enqueue(engine, "a")
    assert await counts(engine) == {"queued": 1}


async def test_a_dequeue_that_would_wait_does_not_where_there_is_a_job(engine: Engine) -> None:
    await enqueue(engine, "a")
    assert types(await dequeue(engine, 3, wait_seconds=20)) == ["a"]
    assert trio.current_time() == 0


async def test_a_short_wait_is_no_worse_than_none_where_the_engine_is_slow(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    await enqueue(engine, "a")
    store.seconds = 2
    await Call.start(nursery, engine, ReadQueue("q"))
    call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=0.5))
    await pass_time(4)
    assert types(call.reply.leases) == ["a"]


async def test_a_wait_for_several_jobs_ends_with_the_first_that_appear(engine: Engine, nursery: trio.Nursery) -> None:
    first = await Call.start(nursery, engine, Dequeue("q", 2, wait_seconds=20))
    second = await Call.start(nursery, engine, Dequeue("q", 3, wait_seconds=20))
    third = await Call.start(nursery, engine, Dequeue("q", 3, wait_seconds=20))
    await enqueue(engine, "a", "b", "c")
    await wait_all_tasks_blocked()
    assert types(first.reply.leases) == ["a", "b"]
    assert types(second.reply.leases) == ["c"]
    assert third.ended_at is None


async def test_one_more_waiter_than_waiters_max_is_refused(
    settings: Settings, clock: FakeClock, nursery: trio.Nursery
) -> None:
    async with open_engine(replace(settings, waiters_max=2), clock=clock) as engine:
        first = await Call.start(nursery, engine, Dequeue("one", wait_seconds=20))
        second = await Call.start(nursery, engine, Dequeue("two", wait_seconds=20))
        with pytest.raises(TooManyWaiters):
            await dequeue(engine, queue="three", wait_seconds=20)
        assert await dequeue(engine, queue="three") == []
        await enqueue(engine, "a", queue="three")
        assert types(await dequeue(engine, queue="three", wait_seconds=20)) == ["a"]
        first.scope.cancel()
        await wait_all_tasks_blocked()
        third = await Call.start(nursery, engine, Dequeue("three", wait_seconds=20))
        assert engine.statistics().waiters == 2
        await enqueue(engine, "b", queue="three")
        await enqueue(engine, "c", queue="two")
        await wait_all_tasks_blocked()
        assert first.cancelled
        assert [types(call.reply.leases) for call in (second, third)] == [["c"], ["b"]]


async def test_nobody_may_wait_where_waiters_max_is_zero(settings: Settings) -> None:
    async with open_engine(replace(settings, waiters_max=0)) as engine:
        with pytest.raises(TooManyWaiters):
            await dequeue(engine, wait_seconds=20)
        await enqueue(engine, "a")
        assert types(await dequeue(engine, wait_seconds=20)) == ["a"]
        assert engine.statistics() == IDLE
