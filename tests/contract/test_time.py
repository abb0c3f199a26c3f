"""Time: leases that end, jobs that come due and expire, retention, and clocks that are moved; on each engine."""

from itertools import pairwise

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Extend,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    LeaseLost,
)
from queue_actor.jobs import (
    JobState,
    Outcome,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    HOUR_SECONDS,
    conclude,
    counts,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    to_extend,
    types,
)
from tests.fakes import EPOCH_SECONDS, SECRET, FakeClock, FakeStore, jump

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
        with pytest.raises(ForgottenJob):
            await read(engine, 1)


async def test_no_more_finished_jobs_are_kept_than_retention_jobs(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_jobs=2)) as engine:
        await enqueue(engine, "a", "b", "c", "d")
        for leased in await dequeue(engine, 4):
            await conclude(engine, leased)
        await pass_time(1.1)
        assert await counts(engine) == {"concluded": 2}
        for id_ in (1, 2):
            with pytest.raises(ForgottenJob):
                await read(engine, id_)


async def test_a_late_conclude_is_accepted_before_the_sweep_and_refused_after(
    settings: Settings, clock: FakeClock
) -> None:
    async with open_engine(settings, clock=clock, secret=SECRET) as engine:
        await enqueue(engine, "a", "b")
        early, late = await dequeue(engine, 2, lease_seconds=5)
        jump(6)  # the process was stopped; the deadline is past, and nobody has swept
        assert (await conclude(engine, early)).state is JobState.CONCLUDED
        await pass_time(1.1)
        with pytest.raises(LeaseLost):
            await conclude(engine, late)
        assert (await read(engine, 2)).state is JobState.QUEUED


async def test_a_hundred_thousand_stale_jobs_come_back_in_slices_while_others_are_served(
    settings: Settings, clock: FakeClock
) -> None:
    jobs, slices = 100_000, 100
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
        assert max(steps) <= 2 * settings.sweep_slice
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
    engine: Engine, clock: FakeClock
) -> None:
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
    with pytest.raises(LeaseLost):
        await conclude(engine, lost)


async def test_after_a_stall_an_extension_that_was_not_heard_still_holds_the_lease(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=5)
    await pass_time(4)
    jump(100)
    await pass_time(0.5)
    await engine.execute(Extend([to_extend(leased)]))
    await pass_time(4.9)
    await conclude(engine, leased)
