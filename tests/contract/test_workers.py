"""The worker's loop against the whole server, in virtual time."""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio

from queue_actor.client_errors import AccessRefused
from queue_actor.settings import Settings
from queue_actor.worker import App, Reject, Retry, RunningJob, Stopped
from tests.contract import v1
from tests.contract.worker_world import InMemoryClient, events, until, world

pytestmark = pytest.mark.virtual_time

Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def log(caplog: Log) -> Iterator[Log]:
    with caplog.at_level(logging.INFO, "queue_actor.worker"):
        yield caplog


def sleeper(seconds: float = 1.0, **options: Any) -> tuple[App, list[tuple[int, float, float, str]]]:
    """An app whose jobs take some time, and when it did them: id, begin, end and how it ended."""
    app = App()
    runs: list[tuple[int, float, float, str]] = []

    @app.job("sleep", **options)
    async def sleep(payload: float | None, job: RunningJob) -> int:
        began, end = trio.current_time(), "stopped"
        try:
            await trio.sleep(seconds if payload is None else payload)
            end = "done"
        finally:
            runs.append((job.id, began, trio.current_time(), end))
        return job.attempt

    return app, runs


# --- what a handler is given, and what comes of it


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
        assert worker.statistics().concluded == worker.statistics().dequeued == 30


class Picture(msgspec.Struct):
    path: str
    width: int = 320


@dataclass
class Size:
    width: int


async def test_a_payload_is_converted_and_one_that_does_not_fit_is_not_tried_again() -> None:
    app = App()
    seen: list[object] = []

    @app.job("struct")
    async def struct(picture: Picture) -> None:
        seen.append(picture)

    @app.job("dataclass")
    async def dataclass_(job: RunningJob, size: Size) -> None:
        seen.append((job.attempt, size))

    async with world() as here:
        ids = await here.enqueue(
            {"type": "struct", "payload": {"path": "a.png"}},
            {"type": "dataclass", "payload": {"width": 7}},
            {"type": "struct", "payload": {"path": "a.png", "width": "7"}},
            {"type": "dataclass"},
        )
        _, life = here.start(app, concurrency=1)
        assert await here.ended(*ids) == ["concluded", "concluded", "dead", "dead"]
        assert seen == [Picture("a.png"), (1, Size(7))]
        misfit = await here.read(ids[2])
        assert (misfit["reason"], misfit["attempts"]) == ("killed", 1)
        assert misfit["history"][0]["error"] == {
            "type": "InvalidPayload",
            "message": "Expected `int`, got `str` - at `$.width`",
        }
        life.scope.cancel()


async def test_what_a_handler_raises_decides_when_the_job_is_tried_again() -> None:
    app = App()

    @app.job("fails")
    async def fails(how: str, job: RunningJob) -> str:
        if job.attempt == 1:
            match how:
                case "retry":
                    raise Retry("not yet", after=1_000)
                case "reject":
                    raise Reject("no such customer")
                case "exit":
                    raise SystemExit(3)
                case _:
                    raise ConnectionError("no disk \ud800")
        return "done"

    async with world() as here:
        begin = trio.current_time()
        jobs = ({"type": "fails", "payload": how} for how in ("retry", "reject", "exit", "error"))
        retry, reject, leave, error = await here.enqueue(*jobs)
        worker, life = here.start(app)
        assert await here.ended(reject, leave, error) == ["dead", "concluded", "concluded"]
        assert trio.current_time() < begin + 100
        assert await here.ended(retry) == ["concluded"]
        assert 1_000 <= trio.current_time() - begin < 1_030
        first = {id_: (await here.read(id_))["history"][0]["error"] for id_ in (retry, reject, leave, error)}
        assert first == {
            retry: {"type": "Retry", "message": "not yet"},
            reject: {"type": "Reject", "message": "no such customer"},
            leave: {"type": "SystemExit", "message": "3"},
            error: {"type": "ConnectionError", "message": "no disk \\ud800"},
        }
        assert (await here.read(reject))["reason"] == "killed"
        assert worker.statistics().failed == 4
        life.scope.cancel()


async def test_a_result_that_cannot_be_kept_kills_the_job_and_not_its_neighbours() -> None:
    app = App()

    @app.job("result")
    async def result(how: str) -> object:
        return {"alien": object(), "large": "x" * 300_000, "fine": "x" * 100_000}[how]

    async with world() as here:
        hows = ["alien", "large", "fine", "fine", "fine", "large"]
        ids = await here.enqueue(*({"type": "result", "payload": how} for how in hows))
        _, life = here.start(app)
        assert await here.ended(*ids) == ["dead", "dead", "concluded", "concluded", "concluded", "dead"]
        errors = [(await here.read(id_))["history"][0]["error"] for id_ in (ids[0], ids[1])]
        assert [error["type"] for error in errors] == ["InvalidResult", "InvalidResult"]
        assert "encoding objects of type object" in errors[0]["message"].lower()
        assert "too_large" in errors[1]["message"]
        life.scope.cancel()


async def test_a_handler_is_told_everything_of_its_job() -> None:
    app = App()
    told: dict[str, object] = {}

    @app.job("tell")
    async def tell(job: RunningJob) -> None:
        names = ("queue", "id", "type", "payload", "meta", "attempt", "traceparent", "lease_seconds", "stopping")
        told.update({name: getattr(job, name) for name in names})
        told["fence is one"] = job.fence > 2**40
        told["created"] = job.created_at.year
        told["shown"] = repr(job)
        job.check()

    async with world() as here:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        job = {"type": "tell", "payload": [1], "meta": {"tenant": "a"}, "traceparent": trace}
        (id_,) = await here.enqueue(job)
        _, life = here.start(app, lease_seconds=7)
        assert await here.ended(id_) == ["concluded"]
        assert told == {
            "queue": "default",
            "id": id_,
            "type": "tell",
            "payload": [1],
            "meta": {"tenant": "a"},
            "attempt": 1,
            "traceparent": trace,
            "lease_seconds": 7,
            "stopping": None,
            "fence is one": True,
            "created": 2027,
            "shown": f"<RunningJob default/{id_} tell attempt=1>",
        }
        life.scope.cancel()


# --- leases


async def test_an_hour_long_job_stays_in_one_workers_hands() -> None:
    app, runs = sleeper(3_600)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        workers = [here.start(app, client, lease_seconds=120, wait_seconds=20) for _ in range(2)]
        assert await here.ended(id_) == ["concluded"]
        assert [(run[0], run[3]) for run in runs] == [(id_, "done")]
        assert await here.outcomes(id_) == ["concluded"]
        assert 85 <= len(client.verbs("extend")) <= 95, "every third of a lease"
        for worker, life in workers:
            worker.drain()
            await life.end()
        assert [worker.statistics().lost for worker, _ in workers] == [0, 0]


async def test_the_leases_of_many_jobs_are_extended_in_one_request() -> None:
    app, _ = sleeper(95)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 10)
        client = here.client()
        worker, life = here.start(app, client, lease_seconds=30)
        await here.ended(*ids)
        beats = client.verbs("extend")
        assert len(beats) < 12
        assert {beat.jobs for beat in beats} == {10}
        assert worker.statistics().extended == sum(beat.jobs for beat in beats)
        life.scope.cancel()


async def test_a_heartbeat_that_is_not_heard_is_sent_again_before_the_lease_ends() -> None:
    app, runs = sleeper(100)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["extend"].extend(["break", "late", "busy", "", "lose"])
        worker, life = here.start(app, client, lease_seconds=30)
        assert await here.ended(id_) == ["concluded"]
        assert await here.outcomes(id_) == ["concluded"]
        assert len(runs) == 1
        assert worker.statistics().beats_unheard == 4
        life.scope.cancel()


async def test_a_worker_that_is_cut_off_stops_its_handler_before_another_begins(log: Log) -> None:
    app, runs = sleeper(100)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        cut_off, other = here.client(), here.client()
        lonely, first_life = here.start(app, cut_off, lease_seconds=30)
        await until(lambda: lonely.statistics().running == 1)
        _, second_life = here.start(app, other, lease_seconds=30)
        await trio.sleep(25)
        cut_off.cut_off = True
        assert await here.ended(id_) == ["concluded"]
        (_, began, stopped, how), (_, again, _, done) = runs
        assert (how, done) == ("stopped", "done")
        assert began < stopped <= again
        assert stopped - 25 - began <= 30
        assert await here.outcomes(id_) == ["stale", "concluded"]
        assert lonely.statistics().lost == 1
        assert "lease_ran_out" in events(log.records)
        cut_off.cut_off = False
        await until(lambda: "server_reached" in events(log.records))
        assert lonely.statistics().concluded == 0
        first_life.scope.cancel()
        second_life.scope.cancel()


async def test_a_handler_whose_lease_was_taken_back_is_stopped_at_the_next_heartbeat(log: Log) -> None:
    app, runs = sleeper(100)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        worker, life = here.start(app, lease_seconds=30, concurrency=1)
        await until(lambda: worker.statistics().running == 1)
        await v1.post(here.server, "/v1/queues/default/release", {"consumer": (await here.read(id_))["consumer"]})
        assert await here.ended(id_) == ["concluded"]
        assert [run[3] for run in runs] == ["stopped", "done"]
        assert runs[0][2] - runs[0][1] <= 10
        assert worker.statistics().lost == 1
        assert "lease_lost" in events(log.records)
        life.scope.cancel()


async def test_an_outcome_that_comes_too_late_is_dropped_and_reported(log: Log) -> None:
    app, runs = sleeper(5)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        worker, life = here.start(app, lease_seconds=30, concurrency=1)
        await until(lambda: worker.statistics().running == 1)
        await v1.post(here.server, f"/v1/queues/default/jobs/{id_}/release")
        assert await here.ended(id_) == ["concluded"]
        assert [run[3] for run in runs] == ["done", "done"]
        assert await here.outcomes(id_) == ["released", "concluded"]
        assert (worker.statistics().lost, worker.statistics().concluded) == (1, 1)
        assert "outcome_too_late" in events(log.records)
        life.scope.cancel()


async def test_a_job_that_comes_again_while_it_is_still_in_hand_is_in_hand_once() -> None:
    app, runs = sleeper(50)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        worker, life = here.start(app, lease_seconds=90, concurrency=2)
        await until(lambda: worker.statistics().running == 1)
        await v1.post(here.server, f"/v1/queues/default/jobs/{id_}/release")
        assert await here.ended(id_) == ["concluded"]
        assert [run[3] for run in runs] == ["stopped", "done"]
        assert worker.statistics().lost == 1
        life.scope.cancel()


@pytest.mark.parametrize("wait_seconds", [1, 20])
async def test_a_lease_that_was_long_on_its_way_is_extended_before_its_job_begins(wait_seconds: float) -> None:
    """Also where the time could have passed while the request waited for a job: nobody knows that it has not."""
    app, runs = sleeper(1)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["dequeue"].append("slow")
        _, life = here.start(app, client, lease_seconds=24, wait_seconds=wait_seconds)
        assert await here.ended(id_) == ["concluded"]
        assert client.verbs("extend")[0].at == pytest.approx(10, abs=0.1)
        assert runs[0][1] >= client.verbs("extend")[0].at
        life.scope.cancel()


async def test_a_lease_is_not_younger_for_an_extension_that_was_not_heard() -> None:
    app, runs = sleeper(1)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["dequeue"].append("slow")
        client.plans["extend"].append("break")
        _, life = here.start(app, client, lease_seconds=24, wait_seconds=1, concurrency=2)
        await trio.sleep(10.1)
        (other,) = await here.enqueue("sleep")  # looks for what may begin, when it comes
        assert await here.ended(id_, other) == ["concluded"] * 2
        first, second = client.verbs("extend")[:2]
        assert first.at < 10.1 < second.at
        assert {run[0]: run[1] for run in runs} == {id_: second.at, other: pytest.approx(10.1, abs=0.2)}
        life.scope.cancel()


async def test_a_job_that_was_waited_for_longer_than_its_lease_lasts_is_done_at_once() -> None:
    app, runs = sleeper(1)
    async with world() as here:
        worker, life = here.start(app, lease_seconds=10, wait_seconds=20)
        await trio.sleep(18)
        (id_,) = await here.enqueue("sleep")
        assert await here.ended(id_) == ["concluded"]
        assert runs[0][1] == pytest.approx(18, abs=0.1)
        assert worker.statistics().lost == 0
        life.scope.cancel()


async def test_a_lease_that_was_over_before_it_came_is_not_begun(log: Log) -> None:
    app, runs = sleeper(1)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["dequeue"].append("slow")
        worker, life = here.start(app, client, lease_seconds=5, wait_seconds=1)
        assert await here.ended(id_) == ["concluded"]
        assert await here.outcomes(id_) == ["stale", "concluded"]
        assert len(runs) == 1
        assert worker.statistics().lost == 1
        assert "lease_lost" in events(log.records)
        life.scope.cancel()


async def test_progress_is_told_soon_and_shows_that_a_handler_is_not_stuck() -> None:
    app = App()

    @app.job("steps", stuck_seconds=60)
    async def steps(job: RunningJob) -> str:
        for step in range(5):
            job.report({"step": step})
            job.report({"step": step + 0.5})
            await trio.sleep(50)
        return "done"

    async with world() as here:
        (id_,) = await here.enqueue("steps")
        client = here.client()
        client.plans["extend"].extend(["", "", "break"])
        worker, life = here.start(app, client, lease_seconds=300)
        await trio.sleep(75)
        assert (await here.read(id_))["progress"] == {"step": 1.5}
        assert await here.ended(id_) == ["concluded"]
        assert (await here.read(id_))["progress"] == {"step": 4.5}
        assert worker.statistics().stuck == 0
        life.scope.cancel()


async def test_progress_that_is_too_large_does_not_cost_the_lease(log: Log) -> None:
    app = App()

    @app.job("chatty")
    async def chatty(job: RunningJob) -> None:
        job.report("x" * 300_000)
        await trio.sleep(100)

    async with world() as here:
        (id_,) = await here.enqueue("chatty")
        _, life = here.start(app, lease_seconds=30)
        assert await here.ended(id_) == ["concluded"]
        assert await here.outcomes(id_) == ["concluded"]
        assert "beat_unheard" in events(log.records)
        life.scope.cancel()


async def test_a_stuck_handler_is_extended_no_more_and_fails(log: Log) -> None:
    app, runs = sleeper(3_600, stuck_seconds=60)
    async with world() as here:
        (id_,) = await here.enqueue({"type": "sleep", "max_attempts": 1})
        worker, life = here.start(app, lease_seconds=30)
        assert await here.ended(id_) == ["dead"]
        assert runs[0][2] - runs[0][1] == pytest.approx(60)
        assert (await here.read(id_))["history"][0]["error"]["type"] == "Stuck"
        assert worker.statistics().stuck == 1
        assert "stuck" in events(log.records)
        life.scope.cancel()


async def test_a_handler_that_takes_too_long_is_stopped_and_fails(log: Log) -> None:
    app, runs = sleeper(3_600, run_seconds=90)
    async with world() as here:
        (id_,) = await here.enqueue({"type": "sleep", "max_attempts": 1})
        worker, life = here.start(app, lease_seconds=30)
        assert await here.ended(id_) == ["dead"]
        assert runs[0][2] - runs[0][1] == pytest.approx(90)
        error = (await here.read(id_))["history"][0]["error"]
        assert error == {"type": "TimeLimit", "message": "it ran for more than 90 s"}
        assert worker.statistics().time_limit == 1
        assert "time_limit" in events(log.records)
        life.scope.cancel()


async def test_a_handler_that_will_not_stop_is_waited_for_until_its_lease_is_over() -> None:
    app = App()

    @app.job("deaf", run_seconds=10)
    async def deaf() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        return "done"

    async with world() as here:
        (id_,) = await here.enqueue({"type": "deaf", "max_attempts": 1})
        worker, life = here.start(app, lease_seconds=30)
        assert await here.ended(id_) == ["dead"]
        assert await here.outcomes(id_) == ["stale"]
        await until(lambda: worker.statistics().running == 0)
        assert (worker.statistics().time_limit, worker.statistics().lost) == (1, 1)
        life.scope.cancel()


async def test_a_handler_that_ends_with_a_result_although_it_was_stopped_is_concluded() -> None:
    app = App()

    @app.job("deaf", run_seconds=10)
    async def deaf() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(12)
        return "done"

    async with world() as here:
        (id_,) = await here.enqueue("deaf")
        _, life = here.start(app, lease_seconds=300)
        assert await here.ended(id_) == ["concluded"]
        life.scope.cancel()


async def test_a_queue_that_limits_attempts_gets_a_word_before_the_lease_ends() -> None:
    app, _ = sleeper(3_600)
    async with world() as here:
        await v1.ask(here.server, "PUT", "/v1/queues/default", {"run_seconds_max": 100, "max_attempts": 1})
        (id_,) = await here.enqueue("sleep")
        _, life = here.start(app, lease_seconds=40)
        assert await here.ended(id_) == ["dead"]
        error = (await here.read(id_))["history"][0]["error"]
        assert error["type"] == "TimeLimit"
        assert "run_seconds_max" in error["message"]
        life.scope.cancel()


# --- cancelled jobs


async def test_the_handler_of_a_cancelled_job_is_stopped() -> None:
    app, runs = sleeper(3_600)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        worker, life = here.start(app, lease_seconds=30)
        await until(lambda: worker.statistics().running == 1)
        await here.cancel(id_)
        assert await here.ended(id_) == ["cancelled"]
        assert runs[0][3] == "stopped"
        assert runs[0][2] - runs[0][1] <= 11
        await until(lambda: worker.statistics().released == 1)
        assert (worker.statistics().cancelled, worker.statistics().lost) == (1, 0)
        life.scope.cancel()


async def test_a_cancelled_job_whose_handler_cleans_up_keeps_its_lease_and_may_still_be_concluded() -> None:
    app = App()

    @app.job("careful")
    async def careful(how: str, job: RunningJob) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        if how == "check":
            job.check()
        if how == "raise":
            raise ValueError
        return how

    async with world() as here:
        ids = await here.enqueue(*({"type": "careful", "payload": how} for how in ("return", "check", "raise")))
        worker, life = here.start(app, lease_seconds=30)
        await until(lambda: worker.statistics().running == 3)
        for id_ in ids:
            await here.cancel(id_)
        assert await here.ended(*ids) == ["concluded", "cancelled", "cancelled"]
        assert [await here.outcomes(id_) for id_ in ids] == [["concluded"], ["released"], ["released"]]
        life.scope.cancel()


def test_check_names_the_reason() -> None:
    job: Any = RunningJob(None, lambda _progress: None)  # type: ignore[arg-type] # it is not looked at
    job.check()
    job.stopping = "lost"
    with pytest.raises(Stopped, match="lost"):
        job.check()


# --- what gets lost on its way


async def test_jobs_whose_dequeue_was_not_answered_come_with_its_repeat() -> None:
    app, runs = sleeper(1)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        client = here.client()
        client.plans["dequeue"].extend(["lose", "break"])
        worker, life = here.start(app, client, concurrency=3)
        assert await here.ended(*ids) == ["concluded"] * 3
        assert [await here.outcomes(id_) for id_ in ids] == [["concluded"]] * 3
        assert len(runs) == 3
        assert worker.statistics().polls_unheard == 2
        life.scope.cancel()


async def test_an_outcome_is_told_until_there_is_an_answer(log: Log) -> None:
    app, runs = sleeper(1)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        client = here.client()
        client.plans["conclude"].extend(["lose", "break", "busy", "late"])
        worker, life = here.start(app, client, concurrency=1)
        assert await here.ended(*ids) == ["concluded"] * 3
        assert len(runs) == 3
        await until(lambda: worker.statistics().concluded == 3)
        logged = events(log.records)
        assert logged.count("server_unreached") == logged.count("server_reached") == 1
        life.scope.cancel()


async def test_a_server_that_is_away_is_asked_less_and_less_often() -> None:
    app, _ = sleeper(1)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["dequeue"].extend(["break"] * 40)
        _, life = here.start(app, client)
        assert await here.ended(id_) == ["concluded"]
        polls = [asked.at for asked in client.verbs("dequeue")][:40]
        assert 0.04 <= polls[1] - polls[0] <= 0.11
        assert all(4.9 <= later - sooner <= 10.1 for sooner, later in pairwise(polls[10:]))
        life.scope.cancel()


@pytest.mark.parametrize("seed", range(6))
async def test_handlers_of_one_job_never_overlap_whatever_the_network_does(seed: int) -> None:
    """All jobs are concluded, and a second handler of a job begins only when the first has been stopped."""
    chance = random.Random(seed)  # noqa: S311 - it has to be the same each time
    app, runs = sleeper(1)
    verbs = ("dequeue", "conclude", "release", "extend")

    def trouble(client: InMemoryClient) -> None:
        for verb in verbs:
            plans = chance.choices(["", "lose", "break", "late", "slow", "busy"], [6, 1, 1, 1, 1, 1], k=4)
            client.plans[verb].extend(plans)

    async with world(Settings(lease_seconds=15)) as here:
        ids = await here.enqueue(*({"type": "sleep", "payload": chance.uniform(0, 40)} for _ in range(25)))
        clients = [here.client() for _ in range(3)]
        lives = [here.start(app, client, concurrency=3, prefetch=seed % 3) for client in clients]
        async with trio.open_nursery() as nursery:

            async def make_trouble() -> None:
                for _ in range(30):
                    client = chance.choice(clients)
                    trouble(client)
                    client.cut_off = chance.random() < 0.3
                    await trio.sleep(chance.uniform(0, 20))
                    client.cut_off = False

            nursery.start_soon(make_trouble)
            assert await here.ended(*ids) == ["concluded"] * 25
            nursery.cancel_scope.cancel()
        by_job = defaultdict(list)
        for id_, began, ended, _ in runs:
            by_job[id_].append((began, ended))
        for id_, intervals in by_job.items():
            intervals.sort()
            assert all(end <= begin for (_, end), (begin, _) in pairwise(intervals)), id_
            outcomes = await here.outcomes(id_)
            assert outcomes.count("concluded") == 1
            # More attempts than one only if a lease ran out, or the job was given back.
            assert {*outcomes[:-1]} <= {"stale", "released"}
        for _, life in lives:
            life.scope.cancel()


# --- how many requests


async def test_a_busy_worker_polls_once_and_then_gets_its_jobs_with_its_outcomes() -> None:
    app, _ = sleeper(1)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 40)
        client = here.client()
        _, life = here.start(app, client, concurrency=4)
        await here.ended(*ids)
        assert len(client.verbs("dequeue")) <= 3
        assert len(client.verbs("conclude")) <= 12
        life.scope.cancel()


async def test_jobs_beyond_those_that_run_are_fetched_ahead_and_their_leases_kept() -> None:
    app, runs = sleeper(50)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 4)
        worker, life = here.start(app, lease_seconds=20, concurrency=1, prefetch=2)
        await until(lambda: worker.statistics().waiting == 2)
        figures = await v1.get(here.server, "/v1/queues/default")
        assert (figures["counts"]["in_progress"], figures["counts"]["queued"]) == (3, 1)
        assert await here.ended(*ids) == ["concluded"] * 4
        assert [await here.outcomes(id_) for id_ in ids] == [["concluded"]] * 4
        assert [run[0] for run in runs] == ids, "in order"
        life.scope.cancel()


async def test_a_job_that_is_cancelled_while_it_waits_is_never_begun() -> None:
    app, runs = sleeper(50)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        worker, life = here.start(app, lease_seconds=20, concurrency=1, prefetch=2)
        await until(lambda: worker.statistics().waiting == 2)
        await here.cancel(ids[1])
        await v1.post(here.server, f"/v1/queues/default/jobs/{ids[2]}/release", {})
        assert await here.ended(*ids) == ["concluded", "cancelled", "concluded"]
        assert {run[0] for run in runs} == {ids[0], ids[2]}
        life.scope.cancel()


async def test_queues_are_served_in_the_order_named_or_in_turn() -> None:
    app = App()
    seen: list[str] = []

    @app.job("note")
    async def note(job: RunningJob) -> None:
        seen.append(job.queue)
        await trio.sleep(1)

    async with world() as here:
        for queue in ("slow", "urgent"):
            await here.enqueue(*["note"] * 3, queue=queue)
        _, life = here.start(app, concurrency=1, queues=["urgent", "slow"])
        await until(lambda: len(seen) == 6)
        assert seen == ["urgent"] * 3 + ["slow"] * 3
        life.scope.cancel()
        await trio.sleep(10)
        seen.clear()
        for queue in ("slow", "urgent"):
            await here.enqueue(*["note"] * 3, queue=queue)
        _, life = here.start(app, concurrency=1, queues=["urgent", "slow"], order="fair")
        await until(lambda: len(seen) == 6)
        assert sorted(seen[:2]) == sorted(seen[2:4]) == ["slow", "urgent"]
        life.scope.cancel()


async def test_a_job_that_nothing_here_can_do_is_given_back_for_longer_each_time(log: Log) -> None:
    app, _ = sleeper(1)
    async with world() as here:
        (id_,) = await here.enqueue({"type": "alien", "max_attempts": 1})
        worker, life = here.start(app)
        await until(lambda: worker.statistics().no_handler == 4)
        job = await here.read(id_)
        starts = [attempt["started_at"] for attempt in job["history"]]
        assert len(starts) == 4 or job["state"] == "in_progress"
        delays = [vars(record)["facts"]["delay_seconds"] for record in log.records if record.msg == "no_handler"]
        assert delays == [5, 10, 20, 40]
        # Once somebody knows it, it is done, and has failed never.
        other = App()

        @other.job("alien")
        async def alien() -> None:
            await trio.lowlevel.checkpoint()

        life.scope.cancel()
        _, other_life = here.start(other)
        assert await here.ended(id_) == ["concluded"]
        assert (await here.read(id_))["fails"] == 0
        other_life.scope.cancel()


# --- the end


async def test_a_worker_that_drains_finishes_what_runs_and_gives_back_what_waits() -> None:
    app, runs = sleeper(10)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 4)
        client = here.client()
        worker, life = here.start(app, client, concurrency=1, prefetch=2)
        await until(lambda: worker.statistics().waiting == 2)
        polls = len(client.verbs("dequeue"))
        worker.drain()
        worker.drain()
        await life.end()
        assert [(await here.read(id_))["state"] for id_ in ids] == ["concluded", "queued", "queued", "queued"]
        assert [run[3] for run in runs] == ["done"]
        assert len(client.verbs("dequeue")) == polls
        statistics = worker.statistics()
        assert (statistics.released, statistics.concluded, statistics.running, statistics.unheard) == (2, 1, 0, 0)


async def test_a_job_that_comes_with_the_last_poll_is_given_back() -> None:
    app, runs = sleeper(10)
    async with world() as here:
        client = here.client()
        worker, life = here.start(app, client, wait_seconds=20)
        await trio.sleep(5)
        worker.drain()
        (id_,) = await here.enqueue("sleep")
        await life.end()
        assert trio.current_time() < 20
        assert await here.outcomes(id_) == ["released"]
        assert runs == []


async def test_an_idle_worker_ends_when_its_last_poll_comes_back() -> None:
    app, _ = sleeper()
    async with world() as here:
        worker, life = here.start(app, wait_seconds=5)
        await trio.sleep(7)
        worker.drain()
        await life.end()
        assert trio.current_time() == pytest.approx(10, abs=0.1)


async def test_a_worker_whose_server_is_away_ends_all_the_same() -> None:
    app, _ = sleeper()
    async with world() as here:
        client = here.client()
        client.plans["dequeue"].extend(["break"] * 1_000)
        worker, life = here.start(app, client)
        await trio.sleep(100)
        worker.drain()
        began = trio.current_time()
        await life.end()
        assert trio.current_time() == began


async def test_handlers_that_outlast_the_grace_period_are_stopped_and_their_jobs_given_back(log: Log) -> None:
    app, runs = sleeper(3_600)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        worker, life = here.start(app, grace_seconds=25)
        await until(lambda: worker.statistics().running == 1)
        began = trio.current_time()
        worker.drain()
        await life.end()
        assert trio.current_time() - began == pytest.approx(25, abs=0.1)
        assert runs[0][3] == "stopped"
        assert await here.outcomes(id_) == ["released"]
        assert worker.statistics().shutdown == 1
        assert "grace_over" in events(log.records)


async def test_a_handler_that_will_not_stop_for_that_is_left_to_itself_and_its_job_given_back() -> None:
    app = App()

    @app.job("deaf")
    async def deaf() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(40)
            raise ValueError

    async with world() as here:
        (id_,) = await here.enqueue("deaf")
        worker, life = here.start(app, grace_seconds=20)
        await until(lambda: worker.statistics().running == 1)
        worker.drain()
        await life.end()  # when the handler lets it
        assert await here.outcomes(id_) == ["released"]


async def test_a_worker_that_is_stopped_gives_back_what_it_holds_at_once(log: Log) -> None:
    app, runs = sleeper(3_600)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        worker, life = here.start(app, concurrency=2, prefetch=1)
        await until(lambda: worker.statistics().running == 2)
        worker.drain()
        worker.stop()
        began = trio.current_time()
        await life.end()
        assert trio.current_time() == began
        assert [run[3] for run in runs] == ["stopped", "stopped"]
        assert [await here.outcomes(id_) for id_ in ids] == [["released"]] * 3
        assert events(log.records)[-1] == "worker_ended"
        assert worker.statistics().unreported == 0


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_a_worker_that_ends_at_once_begins_with_nothing_more(how: str) -> None:
    app, runs = sleeper(3_600)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        worker, life = here.start(app, concurrency=1, prefetch=2)
        await until(lambda: worker.statistics().waiting == 2)
        if how == "cancelled":
            life.scope.cancel()
        else:
            worker.stop()
        await life.end()
        assert [await here.outcomes(id_) for id_ in ids] == [["released"]] * 3
        assert [run[0] for run in runs] == [ids[0]]


async def test_what_a_stopped_worker_could_not_tell_is_reported(log: Log) -> None:
    app, _ = sleeper(1)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 3)
        client = here.client()
        worker, life = here.start(app, client, concurrency=3)
        await until(lambda: worker.statistics().running == 3)
        client.cut_off = True
        await until(lambda: worker.statistics().unheard == 3)
        worker.stop()
        began = trio.current_time()
        await life.end()
        assert trio.current_time() - began == pytest.approx(2)
        assert worker.statistics().unreported == 3
        assert events(log.records).count("left_behind") == 3
        assert [(await here.read(id_))["state"] for id_ in ids] == ["in_progress"] * 3


async def test_a_worker_that_may_not_have_jobs_finishes_what_it_has_and_says_so(log: Log) -> None:
    app, _ = sleeper(10)
    async with world() as here:
        (id_,) = await here.enqueue("sleep")
        client = here.client()
        client.plans["dequeue"].extend(["", "forbidden"])
        worker, life = here.start(app, client, concurrency=2)
        with pytest.raises(AccessRefused, match="forbidden"):
            await life.end()
        assert (await here.read(id_))["state"] == "concluded"
        assert "dequeue_forbidden" in events(log.records)
        assert worker.statistics().concluded == 1


async def test_an_outcome_that_may_not_be_told_is_reported_and_left_to_its_lease(log: Log) -> None:
    app, _ = sleeper(1)
    async with world() as here:
        ids = await here.enqueue(*["sleep"] * 2)
        client = here.client()
        client.plans["conclude"].extend(["unauthorized"] * 3)
        worker, life = here.start(app, client, concurrency=2, lease_seconds=20)
        await until(lambda: worker.statistics().unreported == 2)
        assert events(log.records).count("outcome_refused") == 2
        assert await here.ended(*ids) == ["concluded"] * 2
        assert [await here.outcomes(id_) for id_ in ids] == [["stale", "concluded"]] * 2
        life.scope.cancel()
