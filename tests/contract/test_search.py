"""Reads: a job, its position, and search; on each engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Cancel,
    Command,
    Fail,
    FailClaim,
    Position,
    QueueView,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Release,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    UnknownJob,
)
from queue_actor.jobs import (
    JobState,
    QueuePolicy,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    conclude,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    to_release,
    types,
)

pytestmark = pytest.mark.virtual_time


# --- reads


async def test_reading_a_job_that_never_was_or_is_forgotten_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_seconds=2)) as engine:
        await conclude(engine, await lease(engine))
        await pass_time(1.9)
        assert (await read(engine, 1)).state is JobState.CONCLUDED
        await pass_time(1.2)
        forgotten: list[Command[Any]] = [ReadJob("q", 1), ReadPosition("q", 1)]
        for command in forgotten:
            with pytest.raises(ForgottenJob):
                await engine.execute(command)
        unknown: list[Command[Any]] = [ReadJob("q", 2), ReadPosition("q", 2), ReadJob("unknown", 1)]
        for command in unknown:
            with pytest.raises(UnknownJob):
                await engine.execute(command)


async def test_a_position_counts_the_jobs_that_go_before(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    await enqueue(engine, "high", priority=1)
    await enqueue(engine, "delayed", delay_seconds=9)
    positions = [await engine.execute(ReadPosition("q", id_)) for id_ in range(1, 6)]
    assert positions == [Position(1), Position(2), Position(3), Position(0), Position(None)]
    leases = await dequeue(engine, 2)
    assert types(leases) == ["high", "a"]
    assert await engine.execute(ReadPosition("q", 3)) == Position(1)
    await engine.execute(Release([to_release(leases[1])]))
    assert await engine.execute(ReadPosition("q", 3)) == Position(2)


async def test_a_queue_reads_as_how_many_jobs_are_in_which_state(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c", "d", "e")
    await enqueue(engine, "f", delay_seconds=9)
    first, second, _ = await dequeue(engine, 3)
    await conclude(engine, first)
    await engine.execute(Fail([FailClaim("q", 2, second.token, retry=False)]))
    await engine.execute(Cancel("q", [5]))
    view = await engine.execute(ReadQueue("q"))
    assert (view.name, view.exists, view.counts) == ("q", True, dict.fromkeys(JobState, 1))
    assert (view.paused, view.policy, view.declared, view.last_id) == (False, QueuePolicy(), False, 6)
    assert (view.oldest_age_seconds, view.consumers) == (0, {})
    done = {"enqueue": 6, "dequeue": 3, "conclude": 1, "fail": 1, "release": 0, "stale": 0, "dead": 1}
    assert view.per_minute == done
    unknown = await engine.execute(ReadQueue("unknown"))
    assert unknown == QueueView("unknown", exists=False, counts=dict.fromkeys(JobState, 0))
