"""Queues: their policies and figures, paused, declared and deleted; on each engine."""

from typing import Any

import pytest

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    DeleteQueue,
    JobFilter,
)
from queue_actor.engine import Engine
from tests.contract.verbs import (
    conclude,
    lease,
)

pytestmark = pytest.mark.virtual_time


# --- delete


async def test_queues_that_come_and_go_leave_nothing_behind(engine: Engine) -> None:
    async def comes_and_goes(name: str) -> None:
        await conclude(engine, await lease(engine, queue=name))
        await engine.execute(Bulk(name, BulkVerb.PURGE, JobFilter()))
        await engine.execute(DeleteQueue(name))

    await comes_and_goes("first")
    machine: Any = engine
    sizes = [len(value) for value in vars(machine._machine._ledger).values() if hasattr(value, "__len__")]
    for n in range(50):
        await comes_and_goes(f"q{n}")
    assert sizes == [len(value) for value in vars(machine._machine._ledger).values() if hasattr(value, "__len__")]
