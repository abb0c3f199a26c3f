"""Parked requests: dequeues that wait for a job, and readers who wait for its end; on each engine."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Conclude,
    Dequeue,
    Dequeued,
    DequeueOrder,
    Enqueue,
    Extend,
    Forget,
    JobFilter,
    Lease,
    NewJob,
    Pause,
    ReadJob,
    ReadQueue,
    Redrive,
    Release,
    RunNow,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import (
    ForgottenJob,
    KeyReused,
    OutcomeUnknown,
    TooManyWaiters,
    UnknownJob,
)
from queue_actor.jobs import (
    Job,
    JobOptions,
    JobState,
    OnExisting,
)
from queue_actor.settings import Settings
from tests.contract.verbs import (
    HOUR_SECONDS,
    IDLE,
    conclude,
    counts,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    ids,
    key,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_extend,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS, Call, FakeClock, FakeStore
from tests.opening import open_engine

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
        await refusal(engine, Dequeue("three", wait_seconds=20), TooManyWaiters)
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
        await refusal(engine, Dequeue("q", wait_seconds=20), TooManyWaiters)
        await enqueue(engine, "a")
        assert types(await dequeue(engine, wait_seconds=20)) == ["a"]
        assert engine.statistics() == IDLE


# --- what else wakes a parked dequeue


async def waits(
    nursery: trio.Nursery, engine: Engine, queue: str | tuple[str, ...] = "q", **how: Any
) -> Call[Dequeued]:
    """A dequeue that is parked."""
    call = await Call.start(nursery, engine, Dequeue(queue, wait_seconds=20, **how))
    assert call.ended_at is None
    return call


async def ends_by_conclude(engine: Engine, held: Lease) -> None:
    await conclude(engine, held)


async def ends_by_fail(engine: Engine, held: Lease) -> None:
    await fail(engine, held)


async def ends_by_release(engine: Engine, held: Lease) -> None:
    await release(engine, held, 60)


async def ends_by_wish(engine: Engine, held: Lease) -> None:
    await engine.execute(Cancel("q", [held.job.id]))
    await release(engine, held)


async def ends_by_being_taken_back(engine: Engine, held: Lease) -> None:
    await engine.execute(Cancel("q", [held.job.id]))
    await engine.execute(Bulk("q", BulkVerb.RELEASE, JobFilter()))


async def ends_by_going_stale(engine: Engine, held: Lease) -> None:
    await engine.execute(Cancel("q", [held.job.id]))
    await extend(engine, held, 0.1)
    await pass_time(0.101)


@pytest.mark.parametrize(
    "ends",
    [
        ends_by_conclude,
        ends_by_fail,
        ends_by_release,
        ends_by_wish,
        ends_by_being_taken_back,
        ends_by_going_stale,
    ],
)
async def test_who_waits_for_one_in_progress_less_is_served_when_it_ends(
    engine: Engine, nursery: trio.Nursery, ends: Any
) -> None:
    await give_policy(engine, in_progress_max=1)
    await enqueue(engine, "a", "b", "c")
    held = (await dequeue(engine))[0]
    call, later = await waits(nursery, engine), await waits(nursery, engine)
    await pass_time(3)
    assert call.ended_at is None
    await ends(engine, held)
    await wait_all_tasks_blocked()
    assert types(call.reply.leases) == ["b"]
    assert later.ended_at is None


async def test_a_more_generous_policy_serves_those_who_wait(engine: Engine, nursery: trio.Nursery) -> None:
    await give_policy(engine, in_progress_max=1)
    await enqueue(engine, "a", "b", "c")
    await dequeue(engine)
    first, second = await waits(nursery, engine), await waits(nursery, engine)
    await give_policy(engine, in_progress_max=2)
    await wait_all_tasks_blocked()
    assert types(first.reply.leases) == ["b"]
    assert second.ended_at is None
    await give_policy(engine)
    await wait_all_tasks_blocked()
    assert types(second.reply.leases) == ["c"]


async def test_a_paused_queue_serves_those_who_wait_when_it_is_resumed(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a")
    await engine.execute(Pause("q", paused=True))
    calls = [await waits(nursery, engine, queue) for queue in ("q", "q*", ("other", "q"))]
    await enqueue(engine, "b")
    await engine.execute(Pause("q", paused=True))
    await pass_time(2)
    assert [call.ended_at for call in calls] == [None] * 3
    await engine.execute(Pause("q", paused=False))
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in calls[:2]] == [["a"], ["b"]]
    assert calls[2].ended_at is None


async def appears_by_being_run_now(engine: Engine) -> None:
    await engine.execute(RunNow("q", [1]))


async def appears_by_redrive(engine: Engine) -> None:
    await engine.execute(Cancel("q", [1]))
    await engine.execute(Redrive("q", [1]))


async def appears_by_being_redriven_at_a_rate(engine: Engine) -> None:
    await engine.execute(Cancel("q", [1]))
    await engine.execute(Bulk("q", BulkVerb.REDRIVE, JobFilter(), per_second=1))
    await pass_time(0.002)


async def appears_by_being_replaced(engine: Engine) -> None:
    await enqueue(engine, "new", options=JobOptions(unique_key="k"), on_existing=OnExisting.REPLACE)


async def appears_by_the_wall_clock(engine: Engine) -> None:
    machine: Any = engine
    machine._clock.wall_ahead_seconds += HOUR_SECONDS
    await pass_time(1.001)


@pytest.mark.parametrize(
    "appears",
    [
        appears_by_being_run_now,
        appears_by_redrive,
        appears_by_being_redriven_at_a_rate,
        appears_by_being_replaced,
        appears_by_the_wall_clock,
    ],
)
async def test_a_scheduled_job_that_is_made_ready_goes_to_who_waits(
    engine: Engine, nursery: trio.Nursery, appears: Any
) -> None:
    await enqueue(engine, "a", delay_seconds=HOUR_SECONDS, options=JobOptions(unique_key="k"))
    call = await waits(nursery, engine)
    await appears(engine)
    await wait_all_tasks_blocked()
    assert ids(call.reply.leases) == [1]
    assert await counts(engine) == {"in_progress": 1}


async def test_a_failed_job_goes_to_who_waits_when_its_pause_is_over(engine: Engine, nursery: trio.Nursery) -> None:
    held = await lease(engine)
    call = await waits(nursery, engine)
    await fail(engine, held, retry_after_seconds=5)
    await pass_time(4.999)
    assert call.ended_at is None
    await pass_time(0.002)
    assert call.reply.leases[0].job.attempts == 2


# --- who waits in several lines


async def test_who_waits_for_several_queues_takes_the_first_job_of_any_and_leaves_all_lines(
    engine: Engine, nursery: trio.Nursery
) -> None:
    call = await waits(nursery, engine, ("one", "two", "one"))
    assert [engine.waiting(queue) for queue in ("one", "two", "three")] == [1, 1, 0]
    assert engine.statistics().waiters == 1
    await enqueue(engine, "a", queue="three")
    assert call.ended_at is None
    await enqueue(engine, "a", queue="two")
    await wait_all_tasks_blocked()
    assert [(leased.job.queue, leased.job.type) for leased in call.reply.leases] == [("two", "a")]
    assert [engine.waiting(queue) for queue in ("one", "two")] == [0, 0]
    assert engine.statistics() == IDLE
    await enqueue(engine, "b", queue="one")
    assert await counts(engine, "one") == {"queued": 1}


async def test_who_waits_for_a_prefix_takes_the_first_job_of_a_queue_that_is_made_later(
    engine: Engine, nursery: trio.Nursery
) -> None:
    call = await waits(nursery, engine, "t:*")
    assert [engine.waiting(queue) for queue in ("t:", "t:a", "t", "u:a")] == [1, 1, 0, 0]
    await enqueue(engine, "a", queue="t")
    await enqueue(engine, "a", queue="u:a")
    assert call.ended_at is None
    await enqueue(engine, "a", queue="t:new")
    await wait_all_tasks_blocked()
    assert call.reply.leases[0].job.queue == "t:new"
    assert engine.waiting("t:a") == 0


async def test_the_oldest_goes_first_in_whatever_line_he_stands(engine: Engine, nursery: trio.Nursery) -> None:
    queues: list[str | tuple[str, ...]] = ["*", "one", ("two", "one"), "o*", "one", ("one", "three")]
    calls = [await waits(nursery, engine, queue) for queue in queues]
    assert engine.waiting("one") == len(calls)
    for served in range(len(calls)):
        await enqueue(engine, str(served), queue="one")
        await wait_all_tasks_blocked()
        assert [call.ended_at is None for call in calls] == [n > served for n in range(len(calls))]
        assert types(calls[served].reply.leases) == [str(served)]


async def test_who_waits_for_several_queues_and_leaves_is_missed_in_all_lines(
    engine: Engine, nursery: trio.Nursery
) -> None:
    gone = await waits(nursery, engine, ("one", "two"))
    gone_too = await waits(nursery, engine, "t*")
    stays = await waits(nursery, engine, "two")
    gone.scope.cancel()
    gone_too.scope.cancel()
    await wait_all_tasks_blocked()
    assert [engine.waiting(queue) for queue in ("one", "two", "three")] == [0, 1, 0]
    await enqueue(engine, "a", queue="two")
    await wait_all_tasks_blocked()
    assert types(stays.reply.leases) == ["a"]
    assert engine.statistics() == IDLE


@pytest.mark.parametrize("order", list(DequeueOrder))
async def test_jobs_of_several_queues_that_come_due_together_go_to_who_waits_for_all(
    engine: Engine, nursery: trio.Nursery, order: DequeueOrder
) -> None:
    await enqueue(engine, "b", "b", queue="two", delay_seconds=5)
    await enqueue(engine, "a", "a", queue="one", delay_seconds=5)
    call = await waits(nursery, engine, ("one", "two"), count=3, order=order)
    await pass_time(5.001)
    expected = {DequeueOrder.LISTED: ["a", "a", "b"], DequeueOrder.FAIR: ["a", "b", "a"]}
    assert types(call.reply.leases) == expected[order]


# --- repeated under a key


async def test_a_repeat_takes_over_the_wait_of_the_first_at_its_place_in_line(
    engine: Engine, nursery: trio.Nursery
) -> None:
    first = await waits(nursery, engine, key=key())
    second = await waits(nursery, engine)
    await pass_time(5)
    repeat = await waits(nursery, engine, key=key())
    assert (first.reply, first.ended_at) == (Dequeued(), 5)
    assert engine.statistics().waiters == 2
    await enqueue(engine, "a")
    await wait_all_tasks_blocked()
    assert types(repeat.reply.leases) == ["a"]
    assert second.ended_at is None
    again = await engine.execute(Dequeue("q", wait_seconds=20, key=key()))
    assert again.leases == repeat.reply.leases
    await enqueue(engine, "b")
    await wait_all_tasks_blocked()
    assert types(second.reply.leases) == ["b"]
    assert engine.statistics() == IDLE


async def test_a_repeat_waits_for_its_own_time(engine: Engine, nursery: trio.Nursery) -> None:
    await waits(nursery, engine, key=key())
    await pass_time(15)
    repeat = await waits(nursery, engine, key=key())
    await pass_time(19.9)
    assert engine.statistics().waiters == 1
    await pass_time(0.1)
    assert (repeat.reply, repeat.ended_at) == (Dequeued(), 35)
    assert engine.statistics() == IDLE
    third = await waits(nursery, engine, key=key(body=b"another"))  # nothing is remembered
    third.scope.cancel()


async def test_a_repeat_needs_no_room_among_those_who_wait(settings: Settings, nursery: trio.Nursery) -> None:
    async with open_engine(replace(settings, waiters_max=1)) as engine:
        await waits(nursery, engine, key=key())
        await refusal(engine, Dequeue("q", wait_seconds=20), TooManyWaiters)
        repeat = await waits(nursery, engine, key=key())
        await enqueue(engine, "a")
        await wait_all_tasks_blocked()
        assert types(repeat.reply.leases) == ["a"]


async def test_a_repeat_takes_over_the_wait_of_a_caller_who_is_just_leaving(
    engine: Engine, nursery: trio.Nursery
) -> None:
    for _ in range(10):
        first = await waits(nursery, engine, key=key(), lease_seconds=1)
        first.scope.cancel()
        repeat = Call(engine, Dequeue("q", wait_seconds=20, key=key()))
        nursery.start_soon(repeat.run)
        await wait_all_tasks_blocked()
        assert engine.statistics().waiters == 1
        repeat.scope.cancel()
        await wait_all_tasks_blocked()
        assert engine.statistics() == IDLE


async def test_another_dequeue_under_the_key_of_one_that_waits_is_refused_before_it_takes_anything(
    engine: Engine, nursery: trio.Nursery
) -> None:
    call = await waits(nursery, engine, key=key(body=b"1"))
    await enqueue(engine, "a", queue="other")
    for command in (
        Dequeue("q", wait_seconds=20, key=key(body=b"2")),
        Dequeue("q", key=key(body=b"2")),
        Dequeue("other", key=key(body=b"2")),
        Dequeue("other", wait_seconds=20, key=key(body=b"2")),
    ):
        assert (await refusal(engine, command, KeyReused)).field == "Idempotency-Key"
    await enqueue(engine, "b")
    await wait_all_tasks_blocked()
    assert types(call.reply.leases) == ["b"]


async def test_a_repeat_of_an_answer_whose_leases_have_ended_waits_for_nothing_and_stands_in_nobodys_way(
    engine: Engine, nursery: trio.Nursery
) -> None:
    await enqueue(engine, "a")
    command = Dequeue("q", wait_seconds=20, key=key())
    await conclude(engine, *(await engine.execute(command)).leases)
    before = await waits(nursery, engine)
    repeat = await Call.start(nursery, engine, command)
    assert (list(repeat.reply.leases), repeat.ended_at) == ([], 0)
    after = await waits(nursery, engine)
    await enqueue(engine, "b", "c")
    await wait_all_tasks_blocked()
    assert [types(call.reply.leases) for call in (before, after)] == [["b"], ["c"]]


# --- readers who wait for a job's end


async def reads(nursery: trio.Nursery, engine: Engine, id_: int = 1, wait_seconds: float = 20) -> Call[Job]:
    """A reader who is parked."""
    call = await Call.start(nursery, engine, ReadJob("q", id_, wait_seconds))
    assert call.ended_at is None
    return call


async def job_is_concluded(engine: Engine) -> JobState:
    await conclude(engine, await lease_again(engine), result=b"7")
    return JobState.CONCLUDED


async def job_fails_for_the_last_time(engine: Engine) -> JobState:
    await fail(engine, await lease_again(engine), retry=False)
    return JobState.DEAD


async def job_expires(engine: Engine) -> JobState:
    del engine
    await pass_time(7.001)
    return JobState.DEAD


async def job_is_cancelled(engine: Engine) -> JobState:
    await engine.execute(Cancel("q", [1]))
    return JobState.CANCELLED


async def wish_is_granted(engine: Engine) -> JobState:
    await dequeue(engine, lease_seconds=2)
    await engine.execute(Cancel("q", [1]))
    await pass_time(2.001)
    return JobState.CANCELLED


@pytest.mark.parametrize(
    "ends", [job_is_concluded, job_fails_for_the_last_time, job_expires, job_is_cancelled, wish_is_granted]
)
async def test_a_reader_may_wait_for_the_end_of_a_job(engine: Engine, nursery: trio.Nursery, ends: Any) -> None:
    await enqueue(engine, "a", "b", ttl_seconds=10)
    calls = [await reads(nursery, engine) for _ in range(3)]
    other = await reads(nursery, engine, 2)
    assert engine.statistics() == EngineStatistics(inbox_requests=0, waiters=4)
    assert engine.waiting("q") == 0
    await pass_time(3)
    assert [call.ended_at for call in calls] == [None] * 3
    state = await ends(engine)
    await wait_all_tasks_blocked()
    job = await read(engine)
    assert (job.state, [call.reply for call in calls]) == (state, [job] * 3)
    assert other.ended_at is None or ends is job_expires


async def test_a_reader_is_told_of_no_other_job(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "a", queue="other")
    call = await reads(nursery, engine)
    await engine.execute(Cancel("q", [2]))
    await engine.execute(Cancel("other", [1]))
    await pass_time(20)
    assert call.reply == await read(engine)
    assert call.reply.state is JobState.QUEUED


async def test_a_reader_of_a_job_that_has_ended_does_not_wait(engine: Engine) -> None:
    await conclude(engine, await lease(engine))
    assert await engine.execute(ReadJob("q", 1, wait_seconds=20)) == await read(engine)
    assert trio.current_time() == 0


async def test_a_reader_of_no_job_does_not_wait(engine: Engine) -> None:
    await refusal(engine, ReadJob("q", 1, wait_seconds=20), UnknownJob)
    await conclude(engine, await lease(engine))
    await engine.execute(Forget("q", [1]))
    await refusal(engine, ReadJob("q", 1, wait_seconds=20), ForgottenJob)


async def test_a_reader_whose_wait_runs_out_gets_the_job_as_it_is_then(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a")
    never_changed = await reads(nursery, engine, wait_seconds=5)
    before = await read(engine)
    changed = await reads(nursery, engine, wait_seconds=12.5)
    await pass_time(6)
    assert (never_changed.reply, never_changed.ended_at) == (before, 5)
    leased = await lease_again(engine)
    await extend(engine, leased, progress=b"1")
    await pass_time(7)
    assert (changed.reply, changed.ended_at) == (await read(engine), 12.5)
    assert changed.reply.progress == b"1"
    assert engine.statistics() == IDLE


async def test_a_reader_of_a_job_that_is_forgotten_while_he_waits_gets_its_last_version(
    engine: Engine, nursery: trio.Nursery
) -> None:
    await enqueue(engine, "a")
    call = await reads(nursery, engine)
    last = await read(engine)
    await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter()))
    await wait_all_tasks_blocked()
    assert call.reply == last
    assert engine.statistics() == IDLE


async def test_a_job_that_is_redriven_may_be_waited_for_again(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a")
    first = await reads(nursery, engine)
    await engine.execute(Cancel("q", [1]))
    await wait_all_tasks_blocked()
    assert first.reply.state is JobState.CANCELLED
    await engine.execute(Redrive("q", [1]))
    second = await reads(nursery, engine)
    await conclude(engine, await lease_again(engine))
    await wait_all_tasks_blocked()
    assert second.reply.state is JobState.CONCLUDED


async def test_a_reader_is_told_what_is_stored_and_not_before(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    leased = await lease(engine)
    call = await reads(nursery, engine)
    store.hold()
    concluding = await Call.start(nursery, engine, Conclude([shown(leased)]))
    await pass_time(5)
    assert (call.ended_at, concluding.ended_at) == (None, None)
    store.let_go()
    await wait_all_tasks_blocked()
    assert call.reply == concluding.reply.single()


async def test_a_reader_whose_wait_runs_out_while_the_end_is_stored_is_told_of_the_end(
    engine: Engine, store: FakeStore, nursery: trio.Nursery
) -> None:
    leased = await lease(engine)
    call = await reads(nursery, engine, wait_seconds=5)
    store.hold()
    await Call.start(nursery, engine, Conclude([shown(leased)]))
    await pass_time(6)
    assert call.ended_at is None
    store.let_go()
    await wait_all_tasks_blocked()
    assert call.reply.state is JobState.CONCLUDED


async def test_readers_who_leave_are_not_missed(engine: Engine, nursery: trio.Nursery) -> None:
    leased = await lease(engine)
    gone, stays = await reads(nursery, engine), await reads(nursery, engine)
    gone.scope.cancel()
    await wait_all_tasks_blocked()
    assert gone.cancelled
    assert engine.statistics().waiters == 1
    also_gone = await reads(nursery, engine)
    also_gone.scope.cancel()
    await conclude(engine, leased)  # at the same moment
    await wait_all_tasks_blocked()
    assert stays.reply.state is JobState.CONCLUDED
    assert engine.statistics() == IDLE


async def test_readers_are_counted_among_those_who_wait(settings: Settings, nursery: trio.Nursery) -> None:
    async with open_engine(replace(settings, waiters_max=2)) as engine:
        await enqueue(engine, "a")
        call = await reads(nursery, engine)
        await waits(nursery, engine, "other")
        await refusal(engine, ReadJob("q", 1, wait_seconds=20), TooManyWaiters)
        await refusal(engine, Dequeue("other", wait_seconds=20), TooManyWaiters)
        assert (await read(engine)).state is JobState.QUEUED
        await engine.execute(Cancel("q", [1]))
        await wait_all_tasks_blocked()
        assert call.reply.state is JobState.CANCELLED
        await waits(nursery, engine, "other")


async def test_draining_answers_readers_at_once_with_the_job_as_it_is(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a")
    call = await reads(nursery, engine)
    leased = await lease_again(engine)
    await pass_time(3)
    engine.drain()
    await wait_all_tasks_blocked()
    assert (call.reply, call.ended_at) == (leased.job, 3)
    assert engine.statistics() == IDLE
    assert await engine.execute(ReadJob("q", 1, wait_seconds=20)) == leased.job
    assert trio.current_time() == 3


async def test_a_reader_who_still_waits_when_the_engine_closes_is_told(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a")
    call = await reads(nursery, engine)
    engine.close()
    await wait_all_tasks_blocked()
    assert isinstance(call.refusal, OutcomeUnknown)
    assert engine.statistics() == IDLE


async def test_dequeues_and_readers_who_wait_do_not_hinder_each_other(engine: Engine, nursery: trio.Nursery) -> None:
    await enqueue(engine, "a", delay_seconds=5)
    reader, worker = await reads(nursery, engine), await waits(nursery, engine)
    await pass_time(5.001)
    (leased,) = worker.reply.leases
    assert reader.ended_at is None
    await conclude(engine, leased)
    await wait_all_tasks_blocked()
    assert reader.reply.state is JobState.CONCLUDED
