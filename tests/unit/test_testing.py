"""Handlers in trouble: what `queue_actor.testing` makes of them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from queue_actor.commands import Cancel
from queue_actor.errors import LeaseLost, UniqueKeyTaken, UnknownJob
from queue_actor.jobs import JobOptions, JobState, OnExisting, Outcome
from queue_actor.testing import Faults, GiveUp, RunningJob, SimulatedQueue, Unfinished, simulate
from queue_actor.virtual import seeded_scheduling

ROUGH = Faults(answers_lost=0.1, crashes=0.2, stalls=0.2, restarts=0.05)
README = (Path(__file__).parents[2] / "README.md").read_text()


async def nothing(_job: RunningJob) -> None:
    await trio.lowlevel.checkpoint()


def example() -> dict[str, Any]:
    """The example of the README, as a module."""
    section = README.split("## Test your own handlers", 1)[1].split("\n## ", 1)[0]
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)), names)  # noqa: S102 - it is ours
    return names


def test_the_handler_of_the_readme_that_looks_first_is_safe_under_a_hundred_seeds() -> None:
    example()["test_every_order_is_paid_once"]()


def test_the_handler_of_the_readme_that_does_not_look_is_found_out() -> None:
    example()["test_a_careless_handler_pays_twice"]()


def test_a_job_is_given_with_its_payload_and_its_result_is_kept() -> None:
    async def scenario(queue: SimulatedQueue) -> tuple[int, str]:
        async def double(job: RunningJob) -> int:
            await trio.sleep(1)
            return int(job.payload) * 2

        id_ = await queue.enqueue("double", 21)
        shown: list[str] = []

        async def show(job: RunningJob) -> int:
            shown.append(repr(job))
            return await double(job)

        await queue.work(show)
        job = await queue.job(id_)
        assert job.result == b"42"
        assert [each.id for each in await queue.jobs()] == [id_]
        assert queue.runs == {id_: 1}
        with pytest.raises(UnknownJob):
            await queue.job(17)
        return job.attempts, shown[0]

    assert simulate(scenario) == (1, "<RunningJob 1 double attempt=1>")


def test_a_handler_that_takes_longer_than_its_lease_runs_twice_and_its_late_result_is_dropped() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        async def slow_at_first(job: RunningJob) -> int:
            await trio.sleep(100 if job.attempt == 1 else 1)
            return job.attempt

        await queue.enqueue("slow")
        await queue.work(slow_at_first, workers=2, lease_seconds=30)
        (job,) = await queue.jobs()
        assert [attempt.outcome for attempt in job.history] == [Outcome.STALE, Outcome.CONCLUDED]
        assert job.result == b"2"
        assert queue.runs[job.id] == 2

    simulate(scenario)


def test_a_heartbeat_keeps_the_lease() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        async def slow(_job: RunningJob) -> None:
            await trio.sleep(1_000)

        id_ = await queue.enqueue("slow")
        await queue.work(slow, workers=2, heartbeat=True)
        assert queue.runs == {id_: 1}

    simulate(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_that_stands_still_does_not_beat_and_is_stopped_once_its_lease_is_lost(seed: int) -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        for _ in range(5):
            await queue.enqueue("slow")

        async def slow(_job: RunningJob) -> None:
            for _ in range(20):
                await trio.sleep(5)

        await queue.work(slow, workers=3, heartbeat=True)
        assert {job.state for job in await queue.jobs()} == {JobState.CONCLUDED}
        assert queue.runs.total() > 5

    simulate(scenario, seed=seed, faults=Faults(stalls=0.5))


def test_a_heartbeat_ends_the_work_on_a_job_that_was_cancelled() -> None:
    async def scenario(queue: SimulatedQueue) -> JobState:
        id_ = await queue.enqueue("endless")

        async def endless(_job: RunningJob) -> None:
            await queue.execute(Cancel(queue.name, [id_]))
            await trio.sleep_forever()

        await queue.work(endless, heartbeat=True)
        return (await queue.job(id_)).state

    assert simulate(scenario) == JobState.CANCELLED


def test_a_handler_extends_its_lease_by_itself_and_is_told_that_it_is_lost() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        async def careful(job: RunningJob) -> None:
            extended = await job.extend(60, progress={"done": 1})
            assert extended.progress == b'{"done":1}'
            if job.attempt == 1:
                await trio.sleep(100)
                with pytest.raises(LeaseLost):
                    await job.extend()

        await queue.enqueue("careful")
        await queue.work(careful, workers=2)
        assert queue.runs == {1: 2}

    simulate(scenario)


def test_a_failed_attempt_is_tried_again_and_one_that_is_given_up_is_not() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        async def fail(job: RunningJob) -> None:
            await trio.lowlevel.checkpoint()
            if job.type == "hopeless":
                raise GiveUp("no")
            if job.attempt == 1:
                raise ValueError("not yet")

        await queue.enqueue("flaky", delay_seconds=3_600)
        await queue.enqueue("hopeless")
        await queue.work(fail)
        flaky, hopeless = await queue.jobs()
        assert (flaky.state, flaky.fails) == (JobState.CONCLUDED, 1)
        assert flaky.history[0].error is not None
        assert flaky.history[0].error.message == "not yet"
        assert (hopeless.state, queue.runs[hopeless.id]) == (JobState.DEAD, 1)

    simulate(scenario)


def test_jobs_survive_restarts() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        id_ = await queue.enqueue("kept")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.restart)
            nursery.start_soon(queue.restart)
        assert (await queue.job(id_)).state == JobState.QUEUED
        await queue.work(nothing)
        assert queue.runs == {id_: 1}

    for seed in range(5):
        simulate(scenario, seed=seed)


def test_more_jobs_than_a_page_has_are_all_listed() -> None:
    async def scenario(queue: SimulatedQueue) -> int:
        for _ in range(101):
            await queue.enqueue("one")
        return len(await queue.jobs())

    assert simulate(scenario) == 101


def test_all_trouble_comes_and_every_job_ends() -> None:
    struck: Counter[str] = Counter()

    async def scenario(queue: SimulatedQueue) -> None:
        for _ in range(4):
            await queue.enqueue("job")
        await queue.work(nothing, workers=3)
        assert all(runs >= 1 for runs in queue.runs.values())
        assert len(queue.runs) == len(await queue.jobs()) == 4
        struck.update(queue.struck)

    for seed in range(20):
        simulate(scenario, seed=seed, faults=ROUGH)
    assert all(struck[name] for name in ("answers_lost", "crashes", "stalls", "restarts"))


def test_a_seed_gives_the_same_again() -> None:
    def story(seed: int) -> list[tuple[float, int, int]]:
        async def scenario(queue: SimulatedQueue) -> list[tuple[float, int, int]]:
            told = []

            async def tell(job: RunningJob) -> None:
                told.append((trio.current_time(), job.id, job.attempt))
                await trio.sleep(1)

            for _ in range(5):
                await queue.enqueue("job")
            await queue.work(tell, workers=3)
            return told

        return simulate(scenario, seed=seed, faults=ROUGH)

    assert story(3) == story(3) != story(4)


def test_what_a_scenario_raises_is_raised_as_it_is_with_the_seed_beside_it() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        await queue.enqueue("job")
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong") as raised:
        simulate(scenario, seed=17)
    assert raised.value.__notes__[0].startswith("seed=17, Faults(")


def test_a_simulation_that_does_not_end_says_what_is_left_and_why() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        async def broken(job: RunningJob) -> None:
            await trio.lowlevel.checkpoint()
            if job.type == "stuck":
                await trio.sleep_forever()
            raise ValueError("never")

        await queue.enqueue("broken")
        await queue.enqueue("stuck")
        await queue.work(broken, workers=2)

    with pytest.raises(
        Unfinished, match=r"2 jobs are left\njob 1 \(broken\) .*, ValueError: never\njob 2 \(stuck\) is "
    ):
        simulate(scenario, seconds_max=200)


def test_a_refused_enqueue_is_raised() -> None:
    async def scenario(queue: SimulatedQueue) -> None:
        options = JobOptions(unique_key="one")
        await queue.enqueue("job", options=options)
        await queue.enqueue("job", options=options, on_existing=OnExisting.REFUSE)

    with pytest.raises(UniqueKeyTaken):
        simulate(scenario)


@pytest.mark.parametrize("chance", [-0.1, 1.0])
def test_a_chance_out_of_bounds_is_refused(chance: float) -> None:
    with pytest.raises(ValueError, match="stalls is"):
        Faults(stalls=chance)


def test_a_bug_in_the_server_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario(queue: SimulatedQueue) -> None:
        await queue.enqueue("job")
        monkeypatch.setattr("queue_actor.state_machine.StateMachine.apply", broken)
        await queue.enqueue("job")

    with pytest.raises(BaseExceptionGroup) as raised:
        simulate(scenario)
    assert raised.group_contains(ZeroDivisionError)


def test_a_trio_whose_order_cannot_be_decided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio._core._run, "_r")
    with pytest.raises(RuntimeError, match="cannot be decided"), seeded_scheduling(1):
        pass
