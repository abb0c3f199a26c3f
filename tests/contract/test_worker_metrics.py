"""Every state of a worker shows in its metrics: the loop against the whole server, in virtual time."""

import urllib.request
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from queue_actor.settings import Settings
from queue_actor.worker import App, Retry, RunningJob, Worker
from queue_actor.worker_metrics import WorkerCollector, serving
from tests.contract import v1
from tests.contract.worker_world import until, world

pytestmark = pytest.mark.virtual_time

Told = dict[tuple[str, ...], float]


def told(worker: Worker) -> Told:
    """The samples of a scrape: by name, without what all begin with, and values of labels."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name.removeprefix("queue_actor_worker_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def changes(before: Told, after: Told) -> Told:
    """What is told otherwise than before, but for the buckets of histograms."""
    assert before.keys() == after.keys(), "series neither come nor go"
    return {
        key: value for key, value in after.items() if value != before[key] and not key[0].startswith("run_seconds_b")
    }


def read(url: str) -> str:
    """What is served there."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def ran(seconds: float) -> Told:
    """What one run of the sleeper adds to a worker that had none."""
    about: Any = pytest.approx(seconds, abs=0.2)
    return {("run_seconds_count", "sleep"): 1, ("run_seconds_sum", "sleep"): about}


def sleeper(**options: float) -> App:
    app = App()

    @app.job("sleep", **options)  # type: ignore[arg-type] # those that are numbers
    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)

    return app


def sleep(seconds: float, **options: object) -> dict[str, object]:
    return {"type": "sleep", "payload": seconds, **options}


async def test_a_job_that_runs_and_one_that_waits() -> None:
    async with world() as here:
        worker, life = here.start(sleeper(), concurrency=1, prefetch=1)
        new = told(worker)
        assert {key: value for key, value in new.items() if value} == {
            ("concurrency",): 1,
            ("prefetch",): 1,
            ("reached", "jobs"): 1,
            ("reached", "outcomes"): 1,
        }
        await here.enqueue(sleep(20), sleep(3))
        await until(lambda: worker.statistics().waiting == 1)
        assert changes(new, told(worker)) == {("running",): 1, ("waiting",): 1, ("dequeued_total",): 2}
        await until(lambda: worker.statistics().concluded == 2)
        done = changes(new, told(worker))
        assert done.pop(("run_seconds_sum", "sleep")) == pytest.approx(23)
        assert done == {("dequeued_total",): 2, ("concluded_total",): 2, ("run_seconds_count", "sleep"): 2}
        buckets = [("run_seconds_bucket", bound, "sleep") for bound in ("2.5", "5.0", "10.0", "30.0", "+Inf")]
        assert [told(worker)[bucket] for bucket in buckets] == [0, 1, 1, 2, 2]
        life.scope.cancel()


async def test_an_outcome_that_is_not_heard_and_a_server_that_is_reached_again() -> None:
    async with world() as here:
        client = here.client()
        client.plans["conclude"].extend(["break"] * 1_000)
        worker, life = here.start(sleeper(), client)
        new = told(worker)
        await here.enqueue(sleep(5))
        await until(lambda: len(client.verbs("conclude")) > 2)
        assert changes(new, told(worker)) == {
            ("dequeued_total",): 1,
            ("unheard",): 1,
            ("reached", "outcomes"): 0,
            **ran(5),
        }
        client.plans["conclude"].clear()
        await until(lambda: worker.statistics().concluded == 1)
        assert changes(new, told(worker)) == {("dequeued_total",): 1, ("concluded_total",): 1, **ran(5)}
        life.scope.cancel()


async def test_a_server_that_gives_no_jobs_and_does_again() -> None:
    async with world() as here:
        client = here.client()
        client.plans["dequeue"].extend(["break", "busy"] * 500)
        worker, life = here.start(sleeper(), client)
        new = told(worker)
        await until(lambda: worker.statistics().polls_unheard > 3)
        unheard: Told = {("polls_unheard_total",): worker.statistics().polls_unheard}
        assert changes(new, told(worker)) == unheard | {("reached", "jobs"): 0}
        client.plans["dequeue"].clear()
        await until(lambda: told(worker)["reached", "jobs"] == 1)
        assert changes(new, told(worker)) == unheard
        life.scope.cancel()


async def test_an_outcome_that_is_refused_for_good_shows_that_the_server_is_reached() -> None:
    async with world() as here:
        client = here.client()
        client.plans["conclude"].extend(["break"] * 1_000)
        worker, life = here.start(sleeper(), client)
        new = told(worker)
        await here.enqueue(sleep(5))
        await until(lambda: told(worker)["reached", "outcomes"] == 0)
        client.plans["conclude"].clear()
        client.plans["conclude"].append("forbidden")
        await until(lambda: worker.statistics().unreported == 1)
        assert changes(new, told(worker)) == {("dequeued_total",): 1, ("unreported_total",): 1, **ran(5)}
        life.scope.cancel()


async def test_a_server_that_refuses_jobs_for_good_is_reached() -> None:
    async with world() as here:
        client = here.client()
        client.plans["dequeue"].extend(["break", "forbidden"])
        worker, life = here.start(sleeper(), client)
        new = told(worker)
        await until(lambda: life.error is not None)
        assert changes(new, told(worker)) == {("polls_unheard_total",): 2, ("draining",): 1}


async def test_a_lease_that_goes_on_and_is_lost() -> None:
    async with world() as here:
        client = here.client()
        worker, life = here.start(sleeper(), client, lease_seconds=30)
        new = told(worker)
        await here.enqueue(sleep(100))
        await until(lambda: worker.statistics().extended == 1)
        assert changes(new, told(worker)) == {("dequeued_total",): 1, ("running",): 1, ("extended_total",): 1}
        client.plans["extend"].extend(["break"] * 1_000)
        await v1.post(here.server, "/v1/queues/default/pause")  # or the worker would have it again
        await until(lambda: worker.statistics().lost == 1)
        await until(lambda: not worker.statistics().running)
        lost = changes(new, told(worker))
        assert lost.pop(("beats_unheard_total",)) > 2
        assert lost == {("dequeued_total",): 1, ("extended_total",): 1, ("lost_total",): 1, **ran(40)}
        life.scope.cancel()


async def test_an_outcome_that_comes_too_late_is_of_a_lease_that_was_lost() -> None:
    async with world() as here:
        worker, life = here.start(sleeper(), concurrency=1)
        new = told(worker)
        (id_,) = await here.enqueue(sleep(5))
        await until(lambda: worker.statistics().running == 1)
        await v1.post(here.server, f"/v1/queues/default/jobs/{id_}/release")
        await until(lambda: worker.statistics().concluded == 1)
        told_of = changes(new, told(worker))
        assert told_of[("lost_total",)] == told_of[("concluded_total",)] == 1
        life.scope.cancel()


@pytest.mark.parametrize("limit", ["stuck", "time_limit"])
async def test_a_handler_that_comes_to_its_limit(limit: str) -> None:
    async with world() as here:
        app = sleeper(**{"stuck_seconds" if limit == "stuck" else "run_seconds": 60})
        worker, life = here.start(app, lease_seconds=30)
        new = told(worker)
        (id_,) = await here.enqueue(sleep(3_600, max_attempts=1))
        assert await here.ended(id_) == ["dead"]
        await until(lambda: worker.statistics().failed == 1)
        stopped = changes(new, told(worker))
        del stopped["extended_total",]
        assert stopped == {("dequeued_total",): 1, ("failed_total",): 1, (f"{limit}_total",): 1, **ran(60)}
        life.scope.cancel()


async def test_a_job_that_is_called_off() -> None:
    async with world() as here:
        worker, life = here.start(sleeper(), lease_seconds=30)
        new = told(worker)
        (id_,) = await here.enqueue(sleep(100))
        await until(lambda: worker.statistics().running == 1)
        await here.cancel(id_)
        assert await here.ended(id_) == ["cancelled"]
        await until(lambda: worker.statistics().released == 1)
        called_off = changes(new, told(worker))
        assert called_off == {
            ("dequeued_total",): 1,
            ("extended_total",): 1,
            ("cancelled_total",): 1,
            ("released_total",): 1,
            **ran(10),
        }
        life.scope.cancel()


async def test_a_job_that_fails_and_one_that_nothing_here_can_do() -> None:
    app = App()

    @app.job("fail")
    async def fail(job: RunningJob) -> None:
        if job.attempt == 1:
            raise Retry(after=1)

    async with world() as here:
        worker, life = here.start(app)
        new = told(worker)
        await here.enqueue("fail", "unheard of")
        await until(lambda: worker.statistics().concluded == 1)
        after = told(worker)
        assert not [key for key in after if "unheard of" in key]
        assert changes(new, after) == {
            ("dequeued_total",): 3,
            ("failed_total",): 1,
            ("concluded_total",): 1,
            ("released_total",): 1,
            ("no_handler_total",): 1,
            ("run_seconds_count", "fail"): 2,
        }
        life.scope.cancel()


async def test_a_worker_that_drains_and_is_in_the_end_out_of_time() -> None:
    async with world() as here:
        worker, life = here.start(sleeper(), concurrency=1, prefetch=1, grace_seconds=25)
        new = told(worker)
        await here.enqueue(sleep(100), sleep(100))
        await until(lambda: worker.statistics().waiting == 1)
        worker.drain()
        await until(lambda: worker.statistics().released == 1)
        drains: Told = {("dequeued_total",): 2, ("released_total",): 1, ("draining",): 1}
        assert changes(new, told(worker)) == {**drains, ("running",): 1}
        await life.end()
        ended = changes(new, told(worker))
        assert ended.pop(("run_seconds_sum", "sleep")) == pytest.approx(25, abs=0.2)
        assert ended == {**drains, ("released_total",): 2, ("shutdown_total",): 1, ("run_seconds_count", "sleep"): 1}


async def test_a_worker_that_stops_with_an_outcome_untold() -> None:
    async with world(Settings()) as here:
        client = here.client()
        client.plans["release"].extend(["break"] * 1_000)
        worker, life = here.start(sleeper(), client)
        new = told(worker)
        await here.enqueue(sleep(100))
        await until(lambda: worker.statistics().running == 1)
        worker.stop()
        await life.end()
        assert changes(new, told(worker)) == {
            ("dequeued_total",): 1,
            ("unreported_total",): 1,
            ("unheard",): 1,
            ("draining",): 1,
            ("reached", "outcomes"): 0,
        }


async def test_a_scrape_of_a_running_worker_is_served_while_the_loop_stands_still() -> None:
    """It is served by a thread of its own, or nobody would answer here."""
    async with world() as here:
        worker, life = here.start(sleeper())
        (id_,) = await here.enqueue(sleep(5))
        await until(lambda: worker.statistics().running == 1)
        with serving(worker, "127.0.0.1:0") as url:
            assert "\nqueue_actor_worker_running 1.0\n" in read(url)
        assert await here.ended(id_) == ["concluded"]
        life.scope.cancel()
