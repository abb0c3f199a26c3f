"""Workers whose handlers run in threads and in child processes, over the whole server.

A thread lives in real time, and here the worker around it in virtual time, which runs on while the thread is waited
for; whatever the thread waits for is an event. Children are waited for in real time.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from queue_actor import heartbeats
from queue_actor.worker import App, RunningJob, Worker
from tests.contract import v1
from tests.contract.worker_world import World, events, until, world
from tests.unit import child_handlers
from tests.unit.test_children import is_gone

PATIENCE_SECONDS = 60.0

virtual_time = pytest.mark.virtual_time


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "queue_actor.worker"):
        yield caplog


class Gate:
    """A handler that runs until it is let through, or looks whether it is to stop."""

    def __init__(self, *, looks: bool = True, **limits: Any) -> None:
        self.app = App()
        self.opened = threading.Event()
        self.stopping: list[str | None] = []
        self.runs = 0

        @self.app.job("gate", **limits)
        def gate(job: RunningJob) -> str:
            self.runs += 1
            job.report({"run": self.runs})
            while not self.opened.wait(0.001):
                if looks:
                    job.check()
            self.stopping.append(job.stopping)
            return "done"


async def running(worker: Worker) -> None:
    await until(lambda: worker.statistics().running == 1)


# --- threads


@virtual_time
async def test_a_thread_may_take_as_long_as_it_likes() -> None:
    gate = Gate(looks=False)
    async with world() as here:
        (id_,) = await here.enqueue("gate")
        worker, life = here.start(gate.app, lease_seconds=30)
        await running(worker)
        await trio.sleep(300)
        assert (await here.read(id_))["progress"] == {"run": 1}
        gate.opened.set()
        assert await here.ended(id_) == ["concluded"]
        assert gate.stopping == [None]
        assert await here.outcomes(id_) == ["concluded"]
        life.scope.cancel()


@virtual_time
async def test_a_thread_whose_job_was_cancelled_stops_when_it_looks() -> None:
    gate = Gate()
    async with world() as here:
        (id_,) = await here.enqueue("gate")
        worker, life = here.start(gate.app, lease_seconds=30)
        await running(worker)
        await here.cancel(id_)
        assert await here.ended(id_) == ["cancelled"]
        assert await here.outcomes(id_) == ["released"]
        life.scope.cancel()


@virtual_time
async def test_a_thread_that_takes_too_long_has_failed_at_once_and_keeps_its_place_until_it_ends(
    log: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(looks=False, run_seconds=60)
    async with world() as here:
        (id_,) = await here.enqueue({"type": "gate", "max_attempts": 1})
        worker, life = here.start(gate.app, lease_seconds=30, concurrency=1)
        await running(worker)
        assert await here.ended(id_) == ["dead"]
        assert (await here.read(id_))["history"][0]["error"]["type"] == "TimeLimit"
        (next_,) = await here.enqueue("gate")
        await trio.sleep(100)
        assert worker.statistics().running == 1
        assert (await here.read(next_))["state"] == "queued"
        gate.opened.set()
        assert await here.ended(next_) == ["concluded"]
        assert gate.stopping == ["time_limit", None]
        assert {"thread_goes_on", "thread_ended_late"} <= {*events(log.records)}
        life.scope.cancel()


@virtual_time
async def test_a_thread_whose_lease_is_lost_is_told_so_and_what_it_returns_is_dropped() -> None:
    gate = Gate(looks=False)
    async with world() as here:
        (id_,) = await here.enqueue("gate")
        worker, life = here.start(gate.app, lease_seconds=30, concurrency=1)
        await running(worker)
        await v1.post(here.server, f"/v1/queues/default/jobs/{id_}/release")
        await until(lambda: worker.statistics().lost == 1)
        gate.opened.set()
        assert await here.ended(id_) == ["concluded"]
        assert gate.stopping == ["lost", None]
        assert await here.outcomes(id_) == ["released", "concluded"]
        await until(lambda: worker.statistics().concluded == 1)
        life.scope.cancel()


@virtual_time
async def test_a_worker_does_not_wait_for_threads_beyond_the_grace_period() -> None:
    gate = Gate(looks=False)
    async with world() as here:
        (id_,) = await here.enqueue("gate")
        worker, life = here.start(gate.app, grace_seconds=20)
        await running(worker)
        worker.drain()
        await life.end()
        assert await here.outcomes(id_) == ["released"]
        assert worker.statistics().shutdown == 1
    gate.opened.set()


@virtual_time
async def test_a_worker_that_is_stopped_leaves_its_threads_alone() -> None:
    gate = Gate(looks=False)
    async with world() as here:
        (id_,) = await here.enqueue("gate")
        worker, life = here.start(gate.app)
        await running(worker)
        worker.stop()
        await life.end()
        assert await here.outcomes(id_) == ["released"]
    gate.opened.set()


# --- child processes


def children(**options: Any) -> App:
    app = App(sync="processes")
    for handler in (child_handlers.who, child_handlers.die, child_handlers.wait, child_handlers.ignore):
        app.job(handler.__name__, **options)(handler)
    return app


async def begun(path: Path) -> int:
    """The process that a handler has started, once it has."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not path.exists() or not path.read_text():  # noqa: ASYNC110, ASYNC240 - nothing announces it
            await trio.sleep(0.01)
    return int(path.read_text())  # noqa: ASYNC240 - it is short


async def end(worker: Worker, life: Any) -> None:
    worker.stop()
    await life.end()


async def one(here: World, type_: str, path: Path | None = None) -> int:
    payload = 3 if path is None else str(path)
    (id_,) = await here.enqueue({"type": type_, "payload": payload, "max_attempts": 1})
    return id_


async def test_a_child_does_a_job_and_one_that_dies_has_failed_it() -> None:
    async with world() as here:
        worker, life = here.start(children(), concurrency=1)
        good, bad, again = [await one(here, name) for name in ("who", "die", "who")]
        assert await here.ended(good, bad, again) == ["concluded", "dead", "concluded"]
        error = (await here.read(bad))["history"][0]["error"]
        assert error == {"type": "ChildDied", "message": "the process that did it ended with exit code 3"}
        pids = [(await here.read(id_))["result"] for id_ in (good, again)]
        assert len({*pids, os.getpid()}) == 3
        await end(worker, life)
        assert worker.statistics().children_died == 1


async def test_a_child_whose_job_is_cancelled_may_end_it_by_itself(tmp_path: Path) -> None:
    async with world() as here:
        worker, life = here.start(children(), lease_seconds=1.5)
        id_ = await one(here, "wait", tmp_path / "pid")
        await begun(tmp_path / "pid")
        await here.cancel(id_)
        assert await here.ended(id_) == ["cancelled"]
        await end(worker, life)
        assert (worker.statistics().cancelled, worker.statistics().children_died) == (1, 0)


async def test_a_child_that_does_not_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "CANCEL_SECONDS", 0.1)
    async with world() as here:
        worker, life = here.start(children(), lease_seconds=1.5)
        id_ = await one(here, "ignore", tmp_path / "pid")
        started = await begun(tmp_path / "pid")
        await here.cancel(id_)
        assert await here.ended(id_) == ["cancelled"]
        assert worker.statistics().children_died == 1
        with trio.fail_after(PATIENCE_SECONDS):
            while not is_gone(started):  # noqa: ASYNC110 - nothing announces it
                await trio.sleep(0.01)
        await end(worker, life)


async def test_a_child_that_takes_too_long_is_killed_and_its_job_has_failed(tmp_path: Path) -> None:
    async with world() as here:
        worker, life = here.start(children(run_seconds=0.3))
        id_ = await one(here, "ignore", tmp_path / "pid")
        assert await here.ended(id_) == ["dead"]
        assert (await here.read(id_))["history"][0]["error"]["type"] == "TimeLimit"
        await end(worker, life)


async def test_a_child_whose_job_was_to_stop_before_it_began_does_not_begin(tmp_path: Path) -> None:
    """The time to start it in counts."""
    async with world() as here:
        worker, life = here.start(children(run_seconds=0.001))
        id_ = await one(here, "ignore", tmp_path / "pid")
        assert await here.ended(id_) == ["dead"]
        assert not (tmp_path / "pid").exists()
        await end(worker, life)


async def test_children_are_killed_when_the_grace_period_is_over(tmp_path: Path) -> None:
    async with world() as here:
        worker, life = here.start(children(), grace_seconds=0.1, wait_seconds=0.1)
        id_ = await one(here, "ignore", tmp_path / "pid")
        await begun(tmp_path / "pid")
        worker.drain()
        await life.end()
        assert await here.outcomes(id_) == ["released"]
        assert worker.statistics().shutdown == 1


async def test_a_child_that_is_killed_from_outside_has_failed_its_job(tmp_path: Path) -> None:
    async with world() as here:
        worker, life = here.start(children())
        id_ = await one(here, "ignore", tmp_path / "pid")
        group = os.getpgid(await begun(tmp_path / "pid"))
        os.kill(group, signal.SIGKILL)
        assert await here.ended(id_) == ["dead"]
        assert "exit code -9" in (await here.read(id_))["history"][0]["error"]["message"]
        await end(worker, life)
