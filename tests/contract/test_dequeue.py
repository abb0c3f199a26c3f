"""Dequeue: which jobs are handed out, in which order, and under which leases; on each engine."""

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    ReadQueue,
    Release,
)
from queue_actor.engine import Engine
from queue_actor.jobs import (
    JobState,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    FENCE,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS

pytestmark = pytest.mark.virtual_time


# --- dequeue


async def test_jobs_are_handed_out_in_the_order_in_which_they_came(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c")
    assert types(await dequeue(engine)) == ["a"]
    assert types(await dequeue(engine, 5)) == ["b", "c"]
    assert await dequeue(engine) == []


async def test_the_highest_priority_goes_first_and_in_it_the_oldest(engine: Engine) -> None:
    await enqueue(engine, "normal", "normal too")
    await enqueue(engine, "low", priority=-1)
    await enqueue(engine, "high", "high too", priority=7)
    assert types(await dequeue(engine, 9)) == ["high", "high too", "normal", "normal too", "low"]


async def test_a_lease_names_its_holder_its_length_and_a_fence(engine: Engine) -> None:
    await pass_time(1)
    await enqueue(engine, "a")
    await pass_time(1)
    (leased,) = await dequeue(engine, consumer="w1", lease_seconds=2.5)
    job = leased.job
    assert (job.state, job.attempts, job.consumer, job.lease_seconds) == (JobState.IN_PROGRESS, 1, "w1", 2.5)
    assert (job.started_at, job.lease_expires_at) == (EPOCH_SECONDS + 2, EPOCH_SECONDS + 4.5)
    assert job.fence == FENCE + 1_000_000
    assert await read(engine, 1) == job


async def test_a_lease_without_a_length_has_the_default_one(engine: Engine) -> None:
    assert (await lease(engine)).job.lease_seconds == 300


async def test_fences_rise_with_each_lease_of_a_queue(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    fences = []
    for _ in range(4):
        leases = await dequeue(engine, 2)
        fences += [leased.job.fence for leased in leases]
        await engine.execute(Release([to_release(leased) for leased in leases]))
    assert fences == list(range(FENCE, FENCE + 8))


async def test_an_unknown_queue_is_empty_and_a_dequeue_does_not_make_it(engine: Engine) -> None:
    assert await dequeue(engine, queue="unknown") == []
    assert await dequeue(engine, queue="unknown", wait_seconds=1) == []
    assert not (await engine.execute(ReadQueue("unknown"))).exists


async def test_a_dequeue_of_many_stops_at_the_bytes_of_a_reply_but_gives_one_job(settings: Settings) -> None:
    async with open_engine(replace(settings, reply_bytes_max=1_024)) as engine:
        await enqueue(engine, "a", "b", "c", payload=b"0" * 600)
        await enqueue(engine, "big", payload=b"0" * 5_000)
        assert types(await dequeue(engine, 9)) == ["a"]
        await enqueue(engine, "small", payload=b"0" * 424, priority=1)
        assert types(await dequeue(engine, 9)) == ["small", "b"]
        assert types(await dequeue(engine, 9)) == ["c"]
        assert types(await dequeue(engine, 9)) == ["big"]
