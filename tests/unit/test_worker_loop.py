"""The worker's loop against the whole server, in virtual time."""

import pytest
import trio

from queue_actor.worker import App, RunningJob
from tests.unit.worker_world import world

pytestmark = pytest.mark.virtual_time


async def test_jobs_are_done_and_their_results_kept() -> None:
    app = App()

    @app.job("double")
    async def double(number: int) -> int:
        await trio.sleep(1)
        return number * 2

    async with world() as here:
        ids = await here.enqueue(*({"type": "double", "payload": number} for number in range(30)))
        worker, life = here.start(app)
        assert await here.ended(*ids) == ["concluded"] * 30
        assert [(await here.read(id_))["result"] for id_ in ids] == [number * 2 for number in range(30)]
        worker.drain()
        await life.end()
        assert worker.statistics().concluded == 30


async def test_an_hour_long_job_stays_in_one_workers_hands() -> None:
    app = App()
    began: list[int] = []

    @app.job("long")
    async def long(job: RunningJob) -> str:
        began.append(job.attempt)
        await trio.sleep(3_600)
        return "done"

    async with world() as here:
        (id_,) = await here.enqueue("long")
        client = here.client()
        workers = [here.start(app, client, lease_seconds=30, wait_seconds=20) for _ in range(2)]
        assert await here.ended(id_) == ["concluded"]
        assert began == [1]
        assert await here.outcomes(id_) == ["concluded"]
        assert 300 <= len(client.verbs("extend")) <= 400
        for worker, life in workers:
            worker.drain()
            await life.end()
        assert sum(worker.statistics().lost for worker, _ in workers) == 0
