"""Time: leases that end, jobs that come due and expire, retention, and clocks that are moved; on each engine."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Cancel,
    Conclude,
    Dequeue,
    Enqueue,
    Extend,
    Fail,
    Lease,
    NewJob,
    Position,
    ReadJob,
    ReadPosition,
    Sweep,
    TakeBack,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    LeaseLost,
)
from queue_actor.jobs import (
    DeathReason,
    JobOptions,
    JobState,
    Outcome,
)
from queue_actor.settings import Settings
from queue_actor.state_machine import SWEEP_JOBS_MIN
from tests.contract.state import size_bytes
from tests.contract.verbs import (
    AT_ONCE,
    HOUR_SECONDS,
    boom,
    conclude,
    counts,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    key,
    lease,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_conclude,
    to_extend,
    to_fail,
    types,
    view,
)
from tests.fakes import EPOCH_SECONDS, SECRET, Call, FakeClock, FakeStore, jump
from tests.opening import IN_MEMORY, open_engine

pytestmark = pytest.mark.virtual_time


# --- time: leases that end, and the sweeper that brings the jobs back


@pytest.mark.parametrize("sweep_seconds", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("lease_seconds", [0.1, 0.7, 1.0, 2.35, 61.0])
async def test_a_lease_goes_stale_at_its_deadline_and_not_before(
    settings: Settings, clock: FakeClock, lease_seconds: float, sweep_seconds: float
) -> None:
    async with open_engine(replace(settings, sweep_seconds=sweep_seconds), clock=clock) as engine:
        await trio.sleep(0.33)
        leased = await lease(engine, lease_seconds=lease_seconds, consumer="w1")
        await pass_time(lease_seconds - 0.000_1)
        assert await read(engine, 1) == leased.job
        await pass_time(0.001_1)
        job = await read(engine, 1)
        assert (job.state, job.stales, job.attempts, job.place) == (JobState.QUEUED, 1, 1, leased.job.place)
        (attempt,) = job.history
        assert (attempt.outcome, attempt.consumer) == (Outcome.STALE, "w1")
        assert attempt.ended_at - leased.job.started_at >= lease_seconds - 1e-6  # type: ignore[operator] # it was leased


async def test_a_stale_job_keeps_its_place_and_is_handed_out_again(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    await dequeue(engine, 2, lease_seconds=1)
    await pass_time(1)
    leases = await dequeue(engine, 3)
    assert types(leases) == ["a", "b", "c"]
    assert [leased.job.attempts for leased in leases] == [2, 2, 1]


async def test_the_sweeper_wakes_for_an_earlier_deadline_that_arrives_later(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(replace(settings, sweep_seconds=60), clock=clock) as engine:
        await enqueue(engine, "a", "b", "c")
        await dequeue(engine, lease_seconds=50)
        await pass_time(10)
        await dequeue(engine, lease_seconds=5)
        await pass_time(1)
        await dequeue(engine, lease_seconds=0.5)
        await enqueue(engine, "d", delay_seconds=0.25)
        assert await counts(engine) == {"in_progress": 3, "scheduled": 1}
        for seconds, ready in ((0.251, 1), (0.25, 2), (3.5, 3), (35, 4)):
            await pass_time(seconds)
            assert (await counts(engine))["queued"] == ready


async def test_a_slow_store_does_not_put_the_sweep_off(settings: Settings, store: FakeStore) -> None:
    async with open_engine(replace(settings, sweep_seconds=60), store=store) as engine:
        store.seconds = 2
        await lease(engine, lease_seconds=5)
        assert trio.current_time() == 4  # the lease began at 2
        await pass_time(5.002)
        assert [change.after.stales for change in store.changes if change.after] == [0, 0, 1]


async def test_without_an_early_notice_a_sweep_still_comes_every_sweep_seconds(
    settings: Settings, clock: FakeClock
) -> None:
    """Retention has no deadline of its own."""
    async with open_engine(replace(settings, sweep_seconds=7, retention_seconds=10), clock=clock) as engine:
        await conclude(engine, await lease(engine))
        await pass_time(9.9)
        await read(engine, 1)
        await pass_time(7.2)
        await refusal(engine, ReadJob("q", 1), ForgottenJob)


async def test_no_more_finished_jobs_are_kept_than_retention_jobs(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_jobs=2)) as engine:
        await enqueue(engine, "a", "b", "c", "d")
        for leased in await dequeue(engine, 4):
            await conclude(engine, leased)
        await pass_time(1.1)
        assert await counts(engine) == {"concluded": 2}
        for id_ in (1, 2):
            await refusal(engine, ReadJob("q", id_), ForgottenJob)


async def test_a_late_conclude_is_accepted_before_the_sweep_and_refused_after(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(settings, clock=clock, secret=SECRET) as engine:
        await enqueue(engine, "a", "b")
        early, late = await dequeue(engine, 2, lease_seconds=5)
        jump(6)  # the process was stopped; the deadline is past, and nobody has swept
        assert (await conclude(engine, early)).state is JobState.CONCLUDED
        await pass_time(1.1)
        await refusal(engine, Conclude([shown(late)]), LeaseLost)
        assert (await read(engine, 2)).state is JobState.QUEUED


@pytest.mark.slow
async def test_a_hundred_thousand_stale_jobs_come_back_in_slices_while_others_are_served(
    settings: Settings, clock: FakeClock
) -> None:
    jobs, slices = 100_000, 100_000 // SWEEP_JOBS_MIN
    async with open_engine(replace(settings, queued_jobs_max=jobs), clock=clock) as engine:
        for _ in range(10):
            await enqueue(engine, *["a"] * (jobs // 10))
            await dequeue(engine, jobs // 10, lease_seconds=30)
        await trio.sleep_until(30)
        returned = [0]
        while returned[-1] < jobs:
            returned.append((await counts(engine)).get("queued", 0))
            assert len(returned) < 10 * slices
        assert trio.current_time() == 30
        steps = [after - before for before, after in pairwise(returned)]
        assert max(steps) <= 2 * SWEEP_JOBS_MIN
        assert sum(step > 0 for step in steps) >= slices / 2
        assert [leased.job.id for leased in await dequeue(engine, 3)] == [1, 2, 3]


# --- the wall clock is moved


@pytest.mark.parametrize("hours", [1, -1])
async def test_leases_do_not_care_for_the_wall_clock(engine: Engine, clock: FakeClock, hours: int) -> None:
    leased = await lease(engine, lease_seconds=10)
    clock.wall_ahead_seconds += hours * HOUR_SECONDS
    await pass_time(9.9)
    assert await read(engine, 1) == leased.job
    await pass_time(0.101)
    assert (await read(engine, 1)).state is JobState.QUEUED


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_lease_given_after_the_wall_clock_was_moved_has_its_full_length(
    engine: Engine, clock: FakeClock, hours: int
) -> None:
    clock.wall_ahead_seconds += hours * HOUR_SECONDS
    leased = await lease(engine, lease_seconds=10)
    assert leased.job.lease_expires_at == EPOCH_SECONDS + hours * HOUR_SECONDS + 10
    await pass_time(9.999)
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED


async def test_a_planned_job_is_due_within_a_sweep_when_the_wall_clock_is_set_forward(
    engine: Engine, clock: FakeClock
) -> None:
    await enqueue(engine, "a", delay_seconds=HOUR_SECONDS)
    await pass_time(2.5)
    clock.wall_ahead_seconds += HOUR_SECONDS
    await pass_time(1.001)
    assert types(await dequeue(engine)) == ["a"]


async def test_a_planned_job_waits_for_its_hour_when_the_wall_clock_is_set_back(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(replace(settings, sweep_seconds=30), clock=clock) as engine:
        await enqueue(engine, "a", delay_seconds=10)
        await pass_time(5)
        clock.wall_ahead_seconds -= HOUR_SECONDS
        await pass_time(HOUR_SECONDS)
        assert await dequeue(engine) == []
        await pass_time(5.001)
        assert types(await dequeue(engine)) == ["a"]


async def test_fences_rise_although_the_wall_clock_is_set_back(engine: Engine, clock: FakeClock) -> None:
    first = await lease(engine)
    clock.wall_ahead_seconds -= HOUR_SECONDS
    second = await lease(engine)
    assert second.job.fence > first.job.fence


# --- the process is stopped for a while


async def test_after_a_stall_those_who_were_not_heard_go_before_the_sweep(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    heard, lost = await dequeue(engine, 2, lease_seconds=5)
    await pass_time(1)
    jump(60)
    await pass_time(0.9)  # requests that came meanwhile are being read
    assert await read(engine, 1) == heard.job
    await conclude(engine, heard)
    await pass_time(0.102)
    assert (await read(engine, 2)).state is JobState.QUEUED
    await refusal(engine, Conclude([shown(lost)]), LeaseLost)


async def test_after_a_stall_an_extension_that_was_not_heard_still_holds_the_lease(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=5)
    await pass_time(4)
    jump(100)
    await pass_time(0.5)
    await engine.execute(Extend([to_extend(leased)]))
    await pass_time(4.9)
    await conclude(engine, leased)


# --- jobs that expire


async def test_a_job_that_waits_is_dead_when_its_ttl_ends_and_not_before(engine: Engine) -> None:
    await enqueue(engine, "queued", ttl_seconds=5)
    await enqueue(engine, "scheduled", ttl_seconds=5, delay_seconds=60)
    assert (await read(engine, 1)).expires_at == EPOCH_SECONDS + 5
    await pass_time(4.999)
    assert await counts(engine) == {"queued": 1, "scheduled": 1}
    await pass_time(0.002)
    assert await counts(engine) == {"dead": 2}
    for id_ in (1, 2):
        job = await read(engine, id_)
        assert (job.reason, job.attempts, job.history) == (DeathReason.EXPIRED, 0, ())
        assert job.finished_at == pytest.approx(EPOCH_SECONDS + 5, abs=0.002)
    assert (await view(engine)).per_minute["dead"] == 2
    await pass_time(60)  # the other would be due
    assert await dequeue(engine) == []
    assert await counts(engine) == {"dead": 2}


async def test_jobs_expire_by_the_ttl_of_their_queue_unless_they_have_their_own(engine: Engine) -> None:
    await give_policy(engine, ttl_seconds=5)
    await enqueue(engine, "a")
    await enqueue(engine, "b", ttl_seconds=2)
    await enqueue(engine, "c", ttl_seconds=9)
    await enqueue(engine, "d", queue="other")
    for seconds, dead in ((2.001, {2}), (3, {1, 2}), (4, {1, 2, 3})):
        await pass_time(seconds)
        assert {id_ for id_ in (1, 2, 3) if (await read(engine, id_)).state is JobState.DEAD} == dead
    assert (await read(engine, queue="other")).expires_at is None


async def test_an_expired_job_is_not_handed_out_although_nobody_has_swept_it_yet(engine: Engine) -> None:
    await enqueue(engine, "a", "b", ttl_seconds=5)
    await enqueue(engine, "high", ttl_seconds=5, priority=1)
    await enqueue(engine, "c", "d")
    jump(5)
    assert types(await dequeue(engine)) == ["c"]
    assert await counts(engine) == {"dead": 3, "in_progress": 1, "queued": 1}
    assert (await read(engine, 1)).reason is DeathReason.EXPIRED
    assert await engine.execute(ReadPosition("q", 5)) == Position(0)


async def test_one_dequeue_passes_over_no_more_than_a_slice_of_expired_jobs(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(replace(settings, sweep_slice=2), clock=clock) as engine:
        await enqueue(engine, *"abcdef", ttl_seconds=5)
        await enqueue(engine, "z")
        jump(5)
        assert await dequeue(engine) == []
        assert await counts(engine) == {"dead": 3, "queued": 4}
        assert await dequeue(engine) == []
        assert types(await dequeue(engine)) == ["z"]


async def test_a_dequeue_of_several_queues_goes_on_to_the_next_where_so_many_have_expired(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(replace(settings, sweep_slice=2), clock=clock) as engine:
        await enqueue(engine, *"abcd", ttl_seconds=5)
        await enqueue(engine, "z")
        await enqueue(engine, "other", queue="r")
        jump(5)
        assert types(await dequeue(engine, queue=("q", "r"))) == ["other"]
        assert types(await dequeue(engine, queue=("q", "r"))) == ["z"]


async def test_who_waits_is_served_although_many_expired_jobs_stand_before_his(
    settings: Settings, clock: FakeClock, nursery: trio.Nursery
) -> None:
    async with open_engine(replace(settings, sweep_slice=2), clock=clock) as engine:
        await enqueue(engine, *["a"] * 20, ttl_seconds=5)
        await enqueue(engine, "z")
        jump(5)
        call = await Call.start(nursery, engine, Dequeue("q", wait_seconds=20))
        await pass_time(2)
        assert types(call.reply.leases) == ["z"]


async def test_a_job_whose_ttl_ends_while_it_is_leased_may_still_be_concluded(engine: Engine) -> None:
    leased = await lease(engine, NewJob("a", ttl_seconds=5), lease_seconds=60)
    await pass_time(30)
    assert (await read(engine)).state is JobState.IN_PROGRESS
    await extend(engine, leased)
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED


async def fails(engine: Engine, leased: Lease) -> None:
    await fail(engine, leased)


async def fails_for_later(engine: Engine, leased: Lease) -> None:
    await fail(engine, leased, retry_after_seconds=0)


async def is_released(engine: Engine, leased: Lease) -> None:
    await release(engine, leased)


async def is_released_for_later(engine: Engine, leased: Lease) -> None:
    await release(engine, leased, 9)


async def is_taken_back(engine: Engine, leased: Lease) -> None:
    await engine.execute(TakeBack(leased.job.queue, [leased.job.id]))


async def goes_stale(engine: Engine, leased: Lease) -> None:
    await extend(engine, leased, 0.1)
    await pass_time(0.102)


RETURNS = [fails, fails_for_later, is_released, is_released_for_later, is_taken_back, goes_stale]


@pytest.mark.parametrize("returns", RETURNS)
async def test_a_job_whose_ttl_ended_while_it_was_leased_is_dead_when_it_returns(engine: Engine, returns: Any) -> None:
    leased = await lease(engine, NewJob("a", ttl_seconds=5))
    await pass_time(5)
    await returns(engine, leased)
    job = await read(engine)
    assert (job.state, job.reason, len(job.history)) == (JobState.DEAD, DeathReason.EXPIRED, 1)
    assert await dequeue(engine) == []


@pytest.mark.parametrize("returns", RETURNS)
async def test_a_job_that_returns_in_time_still_expires(engine: Engine, returns: Any) -> None:
    await give_policy(engine, retry=AT_ONCE)
    leased = await lease(engine, NewJob("a", ttl_seconds=5))
    await pass_time(4)
    await returns(engine, leased)
    assert (await read(engine)).state in {JobState.QUEUED, JobState.SCHEDULED}
    await pass_time(1.001)
    assert (await read(engine)).reason is DeathReason.EXPIRED


async def test_a_job_that_goes_stale_the_second_time_after_its_ttl_is_dead_of_age(engine: Engine) -> None:
    await enqueue(engine, "a", ttl_seconds=1.5)
    for _ in range(2):
        await dequeue(engine, lease_seconds=1)
        await pass_time(1.001)
    job = await read(engine)
    assert (job.state, job.reason, job.stales) == (JobState.DEAD, DeathReason.EXPIRED, 2)


async def test_jobs_expire_by_the_wall_clock(engine: Engine, clock: FakeClock) -> None:
    await enqueue(engine, "a", ttl_seconds=2 * HOUR_SECONDS)
    clock.wall_ahead_seconds += HOUR_SECONDS
    await pass_time(2)
    assert await counts(engine) == {"queued": 1}
    clock.wall_ahead_seconds += HOUR_SECONDS
    await pass_time(1.1)
    assert await counts(engine) == {"dead": 1}


# --- retention


async def finished(engine: Engine, queue: str = "q") -> tuple[int, int, int]:
    """The ids of a concluded, a cancelled and a dead job."""
    await enqueue(engine, "a", "b", "c", queue=queue)
    first, second, third = await dequeue(engine, 3, queue=queue)
    await conclude(engine, first)
    await engine.execute(Cancel(queue, [second.job.id]))
    await release(engine, second)
    await fail(engine, third, retry=False)
    return first.job.id, second.job.id, third.job.id


async def test_finished_jobs_are_kept_for_their_time_and_dead_ones_for_another(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_seconds=5, dead_retention_seconds=9)) as engine:
        await finished(engine)
        await pass_time(4.9)
        assert await counts(engine) == {"concluded": 1, "cancelled": 1, "dead": 1}
        await pass_time(1.2)
        assert await counts(engine) == {"dead": 1}
        await pass_time(2.8)
        assert await counts(engine) == {"dead": 1}
        await pass_time(1.2)
        assert await counts(engine) == {}


async def test_a_queue_may_keep_its_finished_jobs_for_times_of_its_own(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_seconds=5, dead_retention_seconds=5)) as engine:
        await give_policy(engine, retention_seconds=10)
        await give_policy(engine, "other", dead_retention_seconds=0)
        for queue in ("q", "other"):
            await finished(engine, queue)
        await pass_time(1.1)
        assert await counts(engine, "other") == {"concluded": 1, "cancelled": 1}
        await pass_time(5)
        assert await counts(engine, "other") == {}
        assert await counts(engine) == {"concluded": 1, "cancelled": 1}
        await pass_time(5)
        assert await counts(engine) == {}


@pytest.mark.parametrize("settings", IN_MEMORY, indirect=True)
async def test_retention_does_not_care_for_the_wall_clock(settings: Settings, clock: FakeClock) -> None:
    async with open_engine(replace(settings, retention_seconds=5, dead_retention_seconds=5), clock=clock) as engine:
        await finished(engine)
        clock.wall_ahead_seconds += HOUR_SECONDS
        await pass_time(4.9)
        assert sum((await counts(engine)).values()) == 3
        clock.wall_ahead_seconds -= 2 * HOUR_SECONDS
        await pass_time(1.2)
        assert await counts(engine) == {}


async def test_beyond_their_number_those_are_forgotten_whose_time_would_come_first(settings: Settings) -> None:
    settings = replace(settings, retention_jobs=2, dead_retention_jobs=1, sweep_seconds=60)
    async with open_engine(settings) as engine:
        await give_policy(engine, "short", retention_seconds=100, dead_retention_seconds=100)
        await finished(engine)
        await pass_time(1)
        await finished(engine, "short")
        swept = await engine.execute(Sweep())
        # Of four jobs concluded or cancelled, and of two dead ones, those of the queue that keeps them shortly.
        assert (swept.forgotten, swept.dead_lost, swept.more) == (3, 1, False)
        assert await counts(engine) == {"concluded": 1, "cancelled": 1, "dead": 1}
        assert await counts(engine, "short") == {}
        swept = await engine.execute(Sweep())
        assert (swept.forgotten, swept.dead_lost) == (0, 0)


async def test_dead_jobs_that_are_forgotten_for_their_age_are_not_counted_as_lost(settings: Settings) -> None:
    settings = replace(settings, dead_retention_seconds=5, dead_retention_jobs=2, sweep_seconds=60)
    async with open_engine(settings) as engine:
        await enqueue(engine, *"abc")
        for leased in await dequeue(engine, 2):
            await fail(engine, leased, retry=False)
        await pass_time(5)
        await fail(engine, (await dequeue(engine))[0], retry=False)
        swept = await engine.execute(Sweep())
        assert (swept.forgotten, swept.dead_lost) == (2, 0)
        assert await counts(engine) == {"dead": 1}


async def test_one_sweep_forgets_a_slice_and_says_that_there_is_more(settings: Settings) -> None:
    settings = replace(settings, retention_jobs=0, dead_retention_jobs=0, sweep_slice=10, sweep_seconds=60)
    async with open_engine(settings) as engine:
        await enqueue(engine, *["a"] * 50)
        leases = await dequeue(engine, 50)
        for leased in leases[:25]:
            await conclude(engine, leased)
            await fail(engine, leases[25 + leased.job.id - 1], retry=False)
        sweeps = [await engine.execute(Sweep()) for _ in range(3)]
        assert [(swept.forgotten, swept.dead_lost, swept.more) for swept in sweeps] == [
            (20, 10, True),
            (20, 10, True),
            (10, 5, False),
        ]


async def test_all_that_is_due_is_swept_in_slices_of_each_kind(settings: Settings, clock: FakeClock) -> None:
    async with open_engine(replace(settings, sweep_slice=2, sweep_seconds=60), clock=clock) as engine:
        await enqueue(engine, *"abc")
        await dequeue(engine, 3, lease_seconds=5)
        await enqueue(engine, *"defgh", delay_seconds=5)
        await enqueue(engine, "i", ttl_seconds=5)
        jump(7)  # so long that the engine's own sweeper lets others go first
        sweeps = [await engine.execute(Sweep()) for _ in range(3)]
        moved = [(swept.stale, swept.due, swept.expired, swept.more) for swept in sweeps]
        assert moved == [(2, 2, 1, True), (1, 2, 0, True), (0, 1, 0, False)]
        assert [swept.next_due_seconds for swept in sweeps] == [0, 0, None]


@pytest.mark.slow
async def test_memory_stays_flat_however_many_jobs_come_and_go(settings: Settings) -> None:
    """Counted in blocks of the allocator, and in bytes of what the engine refers to.

    To trace each allocation (tracemalloc) would take six times as long, and would be less exact: heaps drop their dead
    entries from time to time, and what was allocated before the tracing began is not missed when it goes.
    """
    rounds, jobs = 100, 1_000
    settings = replace(settings, retention_jobs=500, dead_retention_jobs=100, idempotency_keys_max=10)
    async with open_engine(settings) as engine:

        async def come_and_go(number: int) -> None:
            new = [NewJob("a", b"0" * 100, options=JobOptions(unique_key=str(n))) for n in range(jobs)]
            await engine.execute(Enqueue("q", new, key(str(number))))
            leases = (await engine.execute(Dequeue("q", jobs, "w1", key=key(str(number))))).leases
            await engine.execute(Conclude([to_conclude(leased, b"1" * 20) for leased in leases[:-10]]))
            await engine.execute(Fail([to_fail(leased, retry=False, error=boom()) for leased in leases[-10:]]))
            while (await engine.execute(Sweep())).more:
                pass

        blocks: list[int] = []
        sizes: list[int] = []
        for number in range(rounds):
            await come_and_go(number)
            blocks.append(sys.getallocatedblocks())
            if number in {20, rounds - 1}:
                sizes.append(size_bytes(engine))
        assert (await view(engine)).last_id == rounds * jobs
        assert await counts(engine) == {"concluded": 500, "dead": 100}
        assert max(blocks[-20:]) - max(blocks[10:30]) < 2_000  # a fortieth of a block for each job that has gone
        assert sizes[1] - sizes[0] < 20_000
