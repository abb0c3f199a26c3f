"""The operator's verbs, on jobs by their ids and on many by a filter; on each engine."""

import pytest

from queue_actor.commands import (
    Cancel,
    Release,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    AlreadyFinished,
    UnknownJob,
)
from queue_actor.jobs import (
    Job,
    JobState,
)
from tests.contract.verbs import (
    conclude,
    counts,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    to_release,
    types,
)

pytestmark = pytest.mark.virtual_time


# --- cancel


async def test_a_queued_or_scheduled_job_is_cancelled_and_never_handed_out(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c", delay_seconds=1)
    results = (await engine.execute(Cancel("q", [3, 1]))).jobs
    assert [(job.id, job.state) for job in results if isinstance(job, Job)] == [
        (3, JobState.CANCELLED),
        (1, JobState.CANCELLED),
    ]
    await pass_time(2)
    assert types(await dequeue(engine, 9)) == ["b"]
    assert (await engine.execute(Cancel("q", [1]))).jobs == [results[1]]


async def test_a_cancel_answers_each_job_for_itself(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await conclude(engine, *await dequeue(engine))
    results = (await engine.execute(Cancel("q", [1, 9, 2]))).jobs
    assert [type(result) for result in results] == [AlreadyFinished, UnknownJob, Job]
    with pytest.raises(UnknownJob):
        (await engine.execute(Cancel("unknown", [1]))).single()


async def test_cancelling_a_running_job_is_a_wish_and_conclude_still_wins(engine: Engine) -> None:
    leased = await lease(engine)
    job = (await engine.execute(Cancel("q", [1]))).single()
    assert (job.state, job.cancel_requested) == (JobState.IN_PROGRESS, True)
    assert (await engine.execute(Cancel("q", [1]))).single() == job
    assert (await conclude(engine, leased)).state is JobState.CONCLUDED


async def test_the_wish_is_granted_when_the_job_is_released_whatever_the_delay(engine: Engine) -> None:
    leased = await lease(engine)
    await engine.execute(Cancel("q", [1]))
    assert (await engine.execute(Release([to_release(leased, 5)]))).single().state is JobState.CANCELLED
    assert await counts(engine) == {"cancelled": 1}


async def test_the_wish_is_granted_when_the_lease_goes_stale(engine: Engine) -> None:
    await lease(engine, lease_seconds=1)
    await engine.execute(Cancel("q", [1]))
    await pass_time(1)
    assert (await read(engine, 1)).state is JobState.CANCELLED
    assert await dequeue(engine) == []
