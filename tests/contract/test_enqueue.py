"""Enqueue: what becomes of new jobs, on each engine."""

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    EnqueuedJob,
    ReadQueue,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    MemoryFull,
    QueueFull,
    TooManyQueues,
)
from queue_actor.jobs import (
    Change,
    Job,
    JobState,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    conclude,
    counts,
    dequeue,
    enqueue,
    pass_time,
    read,
    types,
)
from tests.fakes import EPOCH_SECONDS, SECRET, FakeClock, FakeStore

pytestmark = pytest.mark.virtual_time


# --- enqueue


async def test_a_new_job_is_queued_with_the_first_id(engine: Engine, store: FakeStore) -> None:
    assert await enqueue(engine, "resize", payload=b'{"w":1}', priority=3) == [EnqueuedJob(1, JobState.QUEUED)]
    job = Job(
        queue="q",
        id=1,
        type="resize",
        payload=b'{"w":1}',
        state=JobState.QUEUED,
        created_at=EPOCH_SECONDS,
        revision=1,
        priority=3,
        place=1,
        ready_at=EPOCH_SECONDS,
    )
    assert store.changes == [Change(1, None, job)]
    assert await read(engine, 1) == job


async def test_jobs_of_one_command_are_numbered_in_the_order_sent(engine: Engine) -> None:
    assert [job.id for job in await enqueue(engine, "a", "b", "c")] == [1, 2, 3]
    jobs = [await read(engine, id_) for id_ in (1, 2, 3)]
    assert [(job.id, job.type, job.place) for job in jobs] == [(1, "a", 1), (2, "b", 2), (3, "c", 3)]


async def test_each_queue_numbers_its_own_jobs(engine: Engine) -> None:
    await enqueue(engine, "a", "b", queue="one")
    assert [job.id for job in await enqueue(engine, "c", queue="two")] == [1]
    assert [job.id for job in await enqueue(engine, "d", queue="one")] == [3]


async def test_enqueueing_nothing_makes_the_queue(engine: Engine) -> None:
    assert await enqueue(engine) == []
    assert (await engine.execute(ReadQueue("q"))).exists


async def test_a_batch_that_would_fill_the_queue_over_is_refused_whole(
    settings: Settings, clock: FakeClock, store: FakeStore
) -> None:
    async with open_engine(replace(settings, queued_jobs_max=3), clock=clock, store=store, secret=SECRET) as engine:
        await enqueue(engine, "a", queue="other")
        await enqueue(engine, "a")
        with pytest.raises(QueueFull):
            await enqueue(engine, "b", "c")
        assert await counts(engine) == {"queued": 1}
        await enqueue(engine, "b", delay_seconds=9)
        with pytest.raises(QueueFull):
            await enqueue(engine, "c")
        await dequeue(engine)  # a job in progress waits no longer
        await enqueue(engine, "c")
        assert [change.revision for change in store.changes] == [1, 2, 3, 4, 5]


async def test_payloads_that_memory_has_no_room_for_are_refused_until_some_are_forgotten(
    settings: Settings, clock: FakeClock
) -> None:
    settings = replace(settings, memory_bytes_max=1_024, retention_seconds=5)
    async with open_engine(settings, clock=clock) as engine:
        await enqueue(engine, "a", payload=b"0" * 1_000)
        await enqueue(engine, "b", payload=b"0" * 24)
        with pytest.raises(MemoryFull):
            await enqueue(engine, "c", payload=b"0")
        await enqueue(engine, "d")
        await conclude(engine, *await dequeue(engine))
        with pytest.raises(MemoryFull):
            await enqueue(engine, "c", payload=b"0")
        await pass_time(6.1)
        await enqueue(engine, "c", payload=b"0" * 1_000)


async def test_a_queue_more_than_queues_max_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, queues_max=2)) as engine:
        await enqueue(engine, "a", queue="one")
        await enqueue(engine, "a", queue="two")
        with pytest.raises(TooManyQueues) as refused:
            await enqueue(engine, "a", queue="three")
        assert refused.value.field == "queue"
        await enqueue(engine, "b", queue="one")
        assert not (await engine.execute(ReadQueue("three"))).exists


@pytest.mark.parametrize("delay_seconds", [0.001, 0.5, 1.0, 2.35, 7_200.0])
async def test_a_delayed_job_is_ready_when_its_time_has_come_and_not_before(
    engine: Engine, delay_seconds: float
) -> None:
    assert await enqueue(engine, "a", delay_seconds=delay_seconds) == [EnqueuedJob(1, JobState.SCHEDULED)]
    job = await read(engine, 1)
    assert (job.state, job.place, job.not_before) == (JobState.SCHEDULED, 0, EPOCH_SECONDS + delay_seconds)
    assert await counts(engine) == {"scheduled": 1}
    await pass_time(delay_seconds - 0.000_1)
    assert await dequeue(engine) == []
    await pass_time(0.001_1)
    assert (await read(engine, 1)).state is JobState.QUEUED
    assert types(await dequeue(engine)) == ["a"]


async def test_a_job_that_comes_due_stands_behind_those_that_are_ready(engine: Engine) -> None:
    await enqueue(engine, "delayed", delay_seconds=2)
    await enqueue(engine, "early")
    await pass_time(3)
    await enqueue(engine, "late")
    assert types(await dequeue(engine, 9)) == ["early", "delayed", "late"]
