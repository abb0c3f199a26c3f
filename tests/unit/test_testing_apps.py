"""Handlers of an `App` in trouble: what `queue_actor.testing` makes of them, and that it is what a worker makes."""

from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec
import pytest
import trio

from queue_actor.commands import Cancel
from queue_actor.jobs import JobError, JobOptions, JobState, Outcome, RetryKind
from queue_actor.jobs import Retry as RetryPolicy
from queue_actor.testing import Faults, SimulatedQueue, Unfinished, simulate
from queue_actor.worker import App, Reject, Retry, RunningJob, Stopped
from tests.unit.test_testing import example

QUEUE = "images"


class Picture(msgspec.Struct):
    path: str
    width: int = 320


def outcomes(job: Any) -> list[Outcome]:
    return [attempt.outcome for attempt in job.history]


def test_the_example_of_the_readme_holds() -> None:
    names = example()
    names["test_every_picture_is_resized_and_a_late_worker_changes_nothing"]()
    names["test_a_full_disk_is_waited_for_and_nonsense_is_rejected"]()


def test_handlers_run_as_they_are_with_their_payload_and_their_job() -> None:
    app = App(queue=QUEUE)
    given: list[object] = []

    @app.job("struct")
    async def struct(picture: Picture) -> int:
        await trio.sleep(1)
        given.append(picture)
        return picture.width

    @app.job("whole")
    def whole(job: RunningJob) -> None:
        facts = (job.queue, job.id, job.type, job.payload, job.attempt, job.meta, job.traceparent)
        given.append((*facts, job.fence > 0, job.lease_seconds, job.created_at))

    async def scenario(queue: SimulatedQueue) -> list[Any]:
        await queue.enqueue("struct", {"path": "a.png"})
        await queue.enqueue("struct", {"path": 7})
        await queue.enqueue("whole", options=JobOptions(meta={"a": "b"}, traceparent="00-1-2-01"), delay_seconds=5)
        await queue.work(app)
        return await queue.jobs()

    done, misfit, looked = simulate(scenario, queue=QUEUE)
    assert (done.state, done.result) == (JobState.CONCLUDED, b"320")
    assert (misfit.state, misfit.fails) == (JobState.DEAD, 1)
    assert misfit.history[0].error.type == "InvalidPayload"
    assert (looked.state, looked.result) == (JobState.CONCLUDED, None)
    at = datetime(2027, 1, 15, 8, 0, 0, 0, UTC)
    assert given == [
        Picture("a.png", 320),
        (QUEUE, 3, "whole", None, 1, {"a": "b"}, "00-1-2-01", True, 30.0, at),
    ]


def test_a_retry_says_when_and_a_reject_that_nothing_helps() -> None:
    app = App()
    began: list[float] = []

    @app.job("later")
    async def later(job: RunningJob) -> None:
        began.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if job.attempt == 1:
            raise Retry("the disk is full", after=600)

    @app.job("never")
    def never() -> None:
        raise Reject("no such customer")

    @app.job("stops")
    def stops(job: RunningJob) -> None:
        if job.attempt == 1:
            raise Stopped

    async def scenario(queue: SimulatedQueue) -> list[Any]:
        for type_ in ("later", "never", "stops"):
            await queue.enqueue(type_)
        await queue.work(app)
        return await queue.jobs()

    first, second, third = simulate(scenario)
    assert outcomes(first) == [Outcome.FAILED, Outcome.CONCLUDED]
    assert first.history[0].error == JobError("Retry", "the disk is full")
    assert began[1] - began[0] == pytest.approx(600, abs=1)
    assert (second.state, second.history[0].error) == (JobState.DEAD, JobError("Reject", "no such customer"))
    assert outcomes(third) == [Outcome.RELEASED, Outcome.CONCLUDED]


def test_leases_go_on_as_they_do_elsewhere_unless_that_is_turned_off() -> None:
    def runs(*, heartbeat: bool | None) -> int:
        app = App()

        @app.job("slow")
        async def slow(job: RunningJob) -> None:
            await trio.sleep(1_000 if job.attempt == 1 else 1)

        async def scenario(queue: SimulatedQueue) -> int:
            await queue.enqueue("slow")
            await queue.work(app, workers=2, heartbeat=heartbeat)
            return queue.runs[1]

        return simulate(scenario)

    assert (runs(heartbeat=None), runs(heartbeat=True), runs(heartbeat=False)) == (1, 1, 2)


def test_progress_goes_with_a_heartbeat_that_comes_soon() -> None:
    app = App()

    @app.job("slow")
    async def slow(job: RunningJob) -> None:
        for percent in range(0, 100, 25):
            job.report({"percent": percent})
            job.report({"percent": percent + 1})
            await trio.sleep(40)

    async def scenario(queue: SimulatedQueue) -> list[tuple[float, bytes | None]]:
        await queue.enqueue("slow")
        seen: list[tuple[float, bytes | None]] = []

        async def look() -> None:
            for seconds in (2, 38, 2, 41):
                await trio.sleep(seconds)
                seen.append((trio.current_time(), (await queue.job(1)).progress))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await queue.work(app, lease_seconds=60)
        return seen

    assert [(round(at), told) for at, told in simulate(scenario)] == [
        (2, b'{"percent":1}'),
        (40, b'{"percent":1}'),
        (42, b'{"percent":26}'),
        (83, b'{"percent":51}'),
    ]


def test_a_handler_that_takes_too_long_is_stopped_and_has_failed() -> None:
    app = App()
    stopped: list[object] = []
    pause = RetryPolicy(RetryKind.FIXED, base_seconds=1)

    @app.job("long", run_seconds=100)
    async def long(job: RunningJob) -> None:
        try:
            while True:
                job.report(1)
                await trio.sleep(5)
        finally:
            stopped.append((round(trio.current_time()), job.stopping))

    @app.job("stuck", run_seconds=1_000, stuck_seconds=20)
    async def stuck(job: RunningJob) -> None:
        for _ in range(2):
            job.report(1)
            await trio.sleep(15)
        try:
            await trio.sleep_forever()
        finally:
            stopped.append((round(trio.current_time()), job.stopping))

    async def scenario(queue: SimulatedQueue) -> list[Any]:
        for type_ in ("long", "stuck"):
            await queue.enqueue(type_, options=JobOptions(max_attempts=1, retry=pause))
        await queue.work(app, workers=2)
        return await queue.jobs()

    jobs = simulate(scenario)
    assert stopped == [(35, "stuck"), (100, "time_limit")]
    assert [job.history[0].error.type for job in jobs] == ["TimeLimit", "Stuck"]
    assert [job.state for job in jobs] == [JobState.DEAD, JobState.DEAD]


def test_a_handler_whose_job_is_cancelled_is_stopped_and_one_that_is_done_by_then_is_done() -> None:
    app = App()
    stopping: list[str | None] = []

    @app.job("slow")
    async def slow(finish: bool, job: RunningJob) -> str:
        try:
            await trio.sleep(1_000)
        except trio.Cancelled:
            stopping.append(job.stopping)
            if not finish:
                raise
        return "done"

    async def scenario(queue: SimulatedQueue) -> list[JobState]:
        ids = [await queue.enqueue("slow", finish) for finish in (False, True)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.work, app)
            await trio.sleep(3)
            await queue.execute(Cancel(queue.name, [ids[0]]))
            await trio.sleep(30)
            await queue.execute(Cancel(queue.name, [ids[1]]))
        return [job.state for job in await queue.jobs()]

    assert simulate(scenario) == [JobState.CANCELLED, JobState.CONCLUDED]
    assert stopping == ["cancelled", "cancelled"]


def test_a_job_that_nothing_does_is_given_back_as_a_worker_gives_it_back() -> None:
    app = App()

    @app.job("resize", queue="other")
    async def resize() -> None:
        await trio.lowlevel.checkpoint()

    async def scenario(queue: SimulatedQueue) -> None:
        await queue.enqueue("resize")
        await queue.work(app)

    with pytest.raises(Unfinished, match=r"job 1 \(resize\) is scheduled after \d attempts"):
        simulate(scenario, seconds_max=100)


@pytest.mark.parametrize("seed", range(10))
def test_all_trouble_comes_and_every_job_ends(seed: int) -> None:
    app = App()

    @app.job("job")
    async def work(number: int, job: RunningJob) -> int:
        job.report(number)
        for _ in range(4):
            await trio.sleep(10)
        return number

    @app.job("quick")
    def quick(number: int) -> int:
        return number

    async def scenario(queue: SimulatedQueue) -> list[Any]:
        for number in range(4):
            await queue.enqueue("job" if number % 2 else "quick", number)
        await queue.work(app, workers=3)
        return await queue.jobs()

    jobs = simulate(scenario, seed=seed, faults=Faults(answers_lost=0.1, crashes=0.2, stalls=0.2, restarts=0.05))
    assert [(job.state, job.result) for job in jobs] == [(JobState.CONCLUDED, b"%d" % number) for number in range(4)]


def test_a_handler_may_be_written_with_anyio() -> None:
    app = App()

    @app.job("nap")
    async def nap(seconds: float) -> float:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, seconds)
        return anyio.current_time()

    async def scenario(queue: SimulatedQueue) -> bytes | None:
        await queue.enqueue("nap", 3_600)
        await queue.work(app)
        return (await queue.job(1)).result

    assert float(simulate(scenario) or 0) == pytest.approx(3_600, abs=1)
