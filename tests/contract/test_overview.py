"""What a dashboard shows beside the figures of a queue: all queues at a glance, trends, and what the caller may do."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Enqueue,
    Fail,
    FailClaim,
    JobFilter,
    NewJob,
    Pause,
    ReadTrends,
    Search,
    SetPolicy,
    Survey,
)
from queue_actor.engine import Engine
from queue_actor.figures import HistogramFigures
from queue_actor.jobs import JobState, QueuePolicy
from queue_actor.settings import Settings
from queue_actor.survey import GONE_QUEUES_MAX, SURVEYED_QUEUES_MAX, Surveyor
from queue_actor.trends import MINUTES, SAMPLED_QUEUES_MAX
from tests.contract import v1
from tests.contract.stack import Server, serving
from tests.contract.tokens import Tokens, bearer
from tests.contract.verbs import counts, dequeue, enqueue, lease
from tests.fakes import EPOCH_SECONDS, FakeClock
from web.overview import GLANCE_SECONDS

pytestmark = pytest.mark.virtual_time


# --- the last hour


async def trend(engine: Engine, queue: str = "q") -> dict[str, list[Any]]:
    """The columns, as lists."""
    read = await engine.execute(ReadTrends([queue]))
    columns = {name: list(column) for name, column in read.trends[queue].columns.items()}
    assert {len(column) for column in columns.values()} == {MINUTES}
    return columns


async def minute(number: int = 1) -> None:
    """Let so many minutes end; it is in the middle of one then, for a sweep may come a second late."""
    await trio.sleep(60 * number + 30 - trio.current_time() % 60)


async def test_what_happens_is_told_at_once_in_the_minute_under_way(engine: Engine) -> None:
    await enqueue(engine, "a", "a", "a")
    held = await dequeue(engine, 2)
    await trio.sleep(3)
    await engine.execute(Conclude([ConcludeClaim("q", 1, held[0].token)]))
    await engine.execute(Fail([FailClaim("q", 2, held[1].token, retry=False)]))
    told = await trend(engine)

    assert {name: column[-1] for name, column in told.items()} == {
        "enqueue": 3,
        "dequeue": 2,
        "conclude": 1,
        "fail": 1,
        "stale": 0,
        "dead": 1,
        "wait_p50": 0.0025,
        "wait_p95": 0.00475,
        "run_p50": 3.75,
        "run_p95": 4.875,
    }
    assert {sum(column[:-1]) for name, column in told.items() if "_" not in name} == {0}


async def test_each_minute_keeps_what_happened_in_it(engine: Engine) -> None:
    for number in range(4):
        await enqueue(engine, *["a"] * (number + 1))
        await minute()
    await minute(2)
    await enqueue(engine, "a")

    assert (await trend(engine))["enqueue"][-8:] == [0, 1, 2, 3, 4, 0, 0, 1]


async def test_what_is_older_than_an_hour_is_told_no_more(engine: Engine) -> None:
    await enqueue(engine, "a")
    await minute(MINUTES - 1)
    assert sum((await trend(engine))["enqueue"]) == 1
    await minute()
    assert sum((await trend(engine))["enqueue"]) == 0
    await enqueue(engine, "a", "a")
    await minute()
    assert (await trend(engine))["enqueue"][-3:] == [0, 2, 0]


async def test_a_queue_that_is_made_anew_begins_anew(engine: Engine) -> None:
    await enqueue(engine, "a", "a")
    await minute()
    await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter()))
    await engine.execute(DeleteQueue("q"))
    assert sum((await trend(engine))["enqueue"]) == 0
    await enqueue(engine, "a")
    assert (await trend(engine))["enqueue"][-2:] == [0, 1]
    await minute()
    assert (await trend(engine))["enqueue"][-3:] == [0, 1, 0]
    await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter()))
    await engine.execute(DeleteQueue("q"))
    await minute()
    assert sum((await trend(engine))["enqueue"]) == 0


async def test_many_queues_are_looked_at_slice_by_slice(engine: Engine) -> None:
    names = [f"q{number}" for number in range(2 * SAMPLED_QUEUES_MAX)]
    for name in ("gone", "idle"):
        await engine.execute(SetPolicy(name, QueuePolicy()))
    for name in names:
        await engine.execute(Enqueue(name, [NewJob("a")]))
    await trio.sleep(60.5 - trio.current_time())  # one slice has been looked at
    await engine.execute(DeleteQueue("gone"))
    await trio.sleep(5)
    assert sum((await trend(engine, "idle"))["enqueue"]) == 0
    for name in (names[0], names[-1], "unheard-of"):
        assert (await trend(engine, name))["enqueue"][-2:] == ([1, 0] if name in names else [0, 0])


def test_quantiles_lie_between_their_bounds() -> None:
    figures = HistogramFigures((1.0, 2.0, 4.0), (2, 0, 2, 1), 0.0)

    assert figures.quantile(0.2) == 0.5
    assert figures.quantile(0.4) == 1.0
    assert figures.quantile(0.6) == 3.0
    assert figures.quantile(0.99) == 4.0  # of what is above all bounds no more is known
    assert HistogramFigures().quantile(0.5, default=-1) == -1
    assert figures.since(HistogramFigures()) == figures
    assert figures.since(HistogramFigures((1.0, 2.0, 4.0), (1, 0, 2, 0), 0.0)).counts == (1, 0, 0, 1)


# --- all queues


async def test_a_survey_tells_of_all_queues_slice_by_slice(engine: Engine) -> None:
    for number in range(SURVEYED_QUEUES_MAX + 3):
        await engine.execute(Enqueue(f"q{number:03}", [NewJob("a")]))
    await lease(engine, queue="q000")
    await engine.execute(Pause("q001", paused=True))
    await trio.sleep(2)
    first = await engine.execute(Survey())
    last = await engine.execute(Survey([*first.left, "unheard-of"]))

    assert len(first.queues) == SURVEYED_QUEUES_MAX
    assert [queue.name for queue in last.queues] == list(first.left)
    assert last.gone == ["unheard-of"]
    assert first.queues[0].counts == (0, 1, 1, 0, 0, 0)
    assert first.queues[0].per_minute[:2] == (2, 1)
    assert first.queues[0].oldest_ready_at == EPOCH_SECONDS
    assert first.queues[0].asked_at == pytest.approx(EPOCH_SECONDS)
    assert [queue.name for queue in first.queues if queue.paused] == ["q001"]


async def test_the_next_survey_tells_of_the_queues_that_have_changed(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        await engine.execute(Enqueue(name, [NewJob("a")]))
    before = await engine.execute(Survey())
    assert {queue.name for queue in before.queues} == {"a", "b", "c"}
    assert (await engine.execute(Survey(since=before.turn))).queues == []
    await engine.execute(Pause("b", paused=True))
    await engine.execute(Bulk("c", BulkVerb.PURGE, JobFilter()))
    await engine.execute(DeleteQueue("c"))
    after = await engine.execute(Survey(since=before.turn))

    assert [queue.name for queue in after.queues] == ["b"]
    assert after.gone == ["c"]
    assert (await engine.execute(Survey(since=after.turn))).gone == []


def test_queues_that_are_gone_are_not_remembered_for_ever() -> None:
    surveyor = Surveyor({})
    for number in range(3 * GONE_QUEUES_MAX):
        surveyor.note([f"q{number}"])
        assert len(surveyor._changed) <= GONE_QUEUES_MAX


@pytest.mark.parametrize("remembered", [0, 2, GONE_QUEUES_MAX])
async def test_the_glance_adds_up_whatever_happens_between_two_looks(
    server: Server, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr("queue_actor.survey.GONE_QUEUES_MAX", remembered)
    rng = Random(5)  # noqa: S311 - it is no secret
    for _ in range(30):
        name = f"q{rng.randrange(150)}"
        await v1.enqueue(server, *[{"type": "a"}] * rng.randrange(1, 4), queue=name)
        if rng.random() < 0.3:
            await v1.post(server, f"/v1/queues/{name}/purge", {"state": "queued"})
            assert (await v1.ask(server, "DELETE", f"/v1/queues/{name}")).status == 200
        if rng.random() < 0.4:
            await trio.sleep(rng.choice((0.6, 30, 130)))
            told = await v1.get(server, "/v1/overview?limit=100")
            queues = (await v1.get(server, "/v1/queues?limit=1000"))["queues"]
            assert told["queues_count"] == len(queues)
            assert told["counts"]["queued"] == sum(queue["counts"]["queued"] for queue in queues)
            moved = sum(queue["per_minute"]["enqueue"] for queue in queues)
            assert told["per_minute"]["enqueue"] == pytest.approx(moved, abs=0.2)


async def test_the_glance_ranks_and_sums_up(server: Server) -> None:
    await v1.enqueue(server, *[{"type": "a"}] * 3, queue="many")
    await minute()
    await trio.sleep(40)
    await v1.enqueue(server, queue="late")
    await v1.held(server, queue="bad")
    await v1.post(server, "/v1/queues/bad/pause")
    (job,) = (await v1.get(server, "/v1/queues/bad/jobs"))["jobs"]
    await v1.post(server, f"/v1/queues/bad/jobs/{job['id']}/cancel")
    told = await v1.get(server, "/v1/overview")

    assert told["queues_count"] == 3
    assert told["paused_count"] == 1
    assert told["counts"] == {"scheduled": 0, "queued": 4, "in_progress": 1, "concluded": 0, "dead": 0, "cancelled": 0}
    assert [queue["name"] for queue in told["queues"]] == ["bad", "late", "many"]
    many = told["queues"][2]
    assert many["trend"]["enqueue"][-4:] == [0, 3, 0, 0]
    assert many["oldest_age_seconds"] > 70
    for order, first in (("name", "bad"), ("waiting", "many"), ("failing", "bad"), ("oldest", "many")):
        assert (await v1.get(server, f"/v1/overview?order={order}"))["queues"][0]["name"] == first


async def test_a_page_leads_to_the_next(server: Server) -> None:
    for name in ("a1", "a2", "a3", "b"):
        await v1.enqueue(server, queue=name)
    names, cursor = [], ""
    while True:
        page = await v1.get(server, f"/v1/overview?order=name&limit=2&prefix=a{cursor}")
        names.append([queue["name"] for queue in page["queues"]])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert names == [["a1", "a2"], ["a3"]]
    assert page["queues_count"] == 3


async def test_who_looks_within_half_a_second_sees_the_same(server: Server) -> None:
    await v1.enqueue(server)
    before = await v1.get(server, "/v1/overview")
    await v1.enqueue(server)
    assert (await v1.get(server, "/v1/overview"))["counts"] == before["counts"]
    await trio.sleep(GLANCE_SECONDS)
    assert (await v1.get(server, "/v1/overview"))["counts"]["queued"] == 2


async def test_an_empty_server_has_a_glance_too(server: Server) -> None:
    told = await v1.get(server, "/v1/overview")

    assert (told["queues_count"], told["queues"], told["next_cursor"]) == (0, [], None)
    assert set(told["counts"].values()) == set(told["per_minute"].values()) == {0}


async def test_the_glance_has_the_queues_that_may_be_read_and_no_others(clock: FakeClock, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json", clock)
    reader, all_ = bearer(tokens.add("reader", "read", queues=("a*",))), bearer(tokens.add("all", "admin"))
    async with serving(Settings(), clock=clock, access=tokens.access()) as server:
        for name in ("a1", "b"):
            await v1.ask(server, "POST", f"/v1/queues/{name}/enqueue", {"jobs": [{"type": "x"}]}, **all_)
        told = (await v1.ask(server, "GET", "/v1/overview", **reader)).json
        assert [queue["name"] for queue in told["queues"]] == ["a1"]
        assert told["counts"]["queued"] == told["queues_count"] == 1
        assert (await v1.ask(server, "GET", "/v1/access", **reader)).json == {
            "name": "reader",
            "scopes": ["read"],
            "queues": ["a*"],
        }
        assert len((await v1.ask(server, "GET", "/v1/access", **all_)).json["scopes"]) == 5


async def test_an_open_server_lets_everybody_do_everything(server: Server) -> None:
    told = await v1.get(server, "/v1/access")

    assert (told["name"], told["queues"]) == (None, ["*"])
    assert set(told["scopes"]) == {"produce", "consume", "read", "operate", "admin"}


async def test_trend_and_reason_over_http(server: Server) -> None:
    await v1.enqueue(server, {"type": "a", "delay_seconds": 9})
    told = await v1.get(server, f"{v1.Q}/trend")
    assert told["since"] == "2027-01-15T07:01:00.000Z"
    assert told["trend"]["enqueue"][-1] == 1
    assert await v1.get(server, f"{v1.Q}/jobs/1/why") == {
        "why": "scheduled",
        "text": "It is not to run before its time, in 9.0 s.",
        "ahead": None,
        "seconds": 9,
    }
    assert await v1.refused(server, "GET", f"{v1.Q}/jobs/2/why") == (404, "unknown_job", "id")


# --- many called off


async def test_all_that_match_are_called_off(engine: Engine) -> None:
    await enqueue(engine, "a", "a", "b")
    await enqueue(engine, "a", delay_seconds=9)
    await dequeue(engine)
    where = JobFilter(type="a")
    dry = await engine.execute(Bulk("q", BulkVerb.CANCEL, where, dry_run=True))
    done = await engine.execute(Bulk("q", BulkVerb.CANCEL, where))

    assert (dry.count, done.count, done.refused) == (3, 3, 0)
    assert await counts(engine) == {"in_progress": 1, "queued": 1, "cancelled": 2}
    (held,) = [job for job in (await _jobs(engine)) if job.state is JobState.IN_PROGRESS]
    assert held.cancel_requested


async def _jobs(engine: Engine) -> Any:
    return (await engine.execute(Search("q", JobFilter()))).jobs


async def test_many_are_called_off_over_http(server: Server) -> None:
    await v1.enqueue(server, {"type": "a"}, {"type": "a", "delay_seconds": 9}, {"type": "b"})
    dry = await v1.post(server, f"{v1.Q}/cancel", {"type": "a", "dry_run": True})
    done = await v1.post(server, f"{v1.Q}/cancel", {"state": "scheduled"})
    more = await v1.post(server, f"{v1.Q}/cancel", {"state": ["queued", "in_progress"], "type": "a"})

    assert (dry["count"], done["count"], more["count"]) == (2, 1, 1)
    assert await v1.state(server, 3) == "queued"
    assert {line["verb"] for line in server.log if line["event"] == "audit"} == {"cancel"}
