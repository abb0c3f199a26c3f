"""`/metrics` over HTTP; and that its table in web/README.md, the dashboard and the alert rules tell of the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from queue_actor.commands import DeleteQueue, Enqueue, NewJob
from queue_actor.queries import MEASURED_QUEUES_MAX
from queue_actor.settings import Settings
from queue_actor.worker_metrics import WorkerCollector
from tests.contract import document
from tests.contract.document import CONTRACT
from tests.contract.stack import Server, serving
from tests.fakes import Call, FakeStore, jump
from tests.unit.test_worker_metrics import a_worker
from web.metrics import ANSWER_SECONDS, ANSWERS_SECONDS, LAG_SECONDS, OTHER
from web.series import METRICS

pytestmark = pytest.mark.virtual_time

DEPLOY = Path(__file__).parents[2] / "scripts/deploy"
ADDED = {"job", "instance", "le"}
"""Labels that Prometheus itself adds, and that of a histogram's bounds."""


async def families(server: Server) -> dict[str, Metric]:
    answer = await server.ask("GET", "/metrics")
    assert answer.status == 200
    return {told(family): family for family in text_string_to_metric_families(answer.body.decode())}


def told(family: Metric) -> str:
    """A metric's name as it is told; the parser takes the ending of a counter away."""
    return family.name + ("_total" if family.type == "counter" else "")


async def value(server: Server, name: str, **labels: str) -> float:
    await trio.sleep(1)  # or it would be the same figures as before
    for family in (await families(server)).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    raise AssertionError(f"{name} of {labels} is not told")


async def test_the_table_is_what_a_server_tells() -> None:
    async with serving(Settings(data="in memory")) as server:
        await server.enqueue()
        found = await families(server)

    ours = {name: family for name, family in found.items() if name.startswith("queue_actor_")}
    rows = document.table(CONTRACT, "metrics")
    assert [row[0].strip("`") for row in rows] == list(ours)
    for name, kind, labels, meaning in rows:
        family = ours[name.strip("`")]
        named = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert (kind, meaning) == (family.type, family.documentation)
        assert set(re.findall(r"`(\w+)`", labels)) == named
        assert meaning
    assert {name.partition("_")[0] for name in found.keys() - ours.keys()} == {"process", "python"}


async def test_a_server_without_a_data_directory_tells_all_but_the_store() -> None:
    async with serving(Settings()) as server:
        await server.enqueue()
        found = await families(server)

    assert {name for name in METRICS if name not in found} == {name for name in METRICS if "_store_" in name}


async def test_either_format_is_told_and_both_are_read_by_the_official_parsers() -> None:
    async with serving(Settings()) as server:
        await server.enqueue()
        plain = await server.ask("GET", "/metrics")
        accepts = [("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")]
        openmetrics = await server.ask("GET", "/metrics", headers=accepts)
        nothing = await server.ask("HEAD", "/metrics")

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4; charset=utf-8")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")
    text = openmetrics.body.decode()
    read = {family.name for family in read_openmetrics(text)}  # type: ignore[no-untyped-call] # of the library
    assert read == {family.name for family in text_string_to_metric_families(plain.body.decode())}
    for answer in (plain, openmetrics, nothing):
        assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "Accept")


async def test_figures_tell_what_was_done() -> None:
    async with serving(Settings()) as server:
        await server.enqueue(b'{"Type":"a","Payload":"12345678"}')
        await server.enqueue()
        job = await server.dequeue()
        await server.dequeue()
        await server.ask("POST", f"/jobs/{job.json['ID']}/conclude", headers=[("Queue-Lease-Token", job.token)])
        await server.ask("GET", "/jobs/77")
        await server.ask("BREW", "/coffee")
        await server.ask_raw(b"NONSENSE\r\n\r\n")

        for name, labels, expected in [
            ("queue_actor_jobs", {"queue": "default", "state": "in_progress"}, 1),
            ("queue_actor_verbs_total", {"queue": "default", "verb": "enqueue"}, 2),
            ("queue_actor_verbs_total", {"queue": "default", "verb": "conclude"}, 1),
            ("queue_actor_wait_seconds_count", {"queue": "default"}, 2),
            ("queue_actor_run_seconds_bucket", {"queue": "default", "le": "+Inf"}, 1),
            ("queue_actor_queues", {}, 1),
            ("queue_actor_memory_bytes", {}, 10),
            ("queue_actor_requests_total", {"method": "GET", "route": "/jobs/{id}", "status": "404"}, 1),
            ("queue_actor_requests_total", {"method": "", "route": "", "status": "404"}, 1),
            ("queue_actor_request_seconds_count", {"method": "POST", "route": "/jobs/{id}/conclude"}, 1),
            ("queue_actor_refusals_total", {"code": "unknown_job"}, 1),
            ("queue_actor_refusals_total", {"code": "not_found"}, 1),
            ("queue_actor_refusals_total", {"code": "malformed"}, 1),
            ("queue_actor_connections", {}, 1),
            ("queue_actor_ready", {}, 1),
            ("queue_actor_engine_answers", {}, 1),
            ("queue_actor_info", {"engine": "actor", "durability": "memory"}, 1),
        ]:
            assert await value(server, name, **labels) == expected, name
        assert await value(server, "queue_actor_received_bytes_total") > 300
        assert await value(server, "queue_actor_sent_bytes_total") > 30_000


async def test_a_client_that_leaves_is_counted_as_unanswered() -> None:
    async with serving(Settings()) as server:
        client = server.connect()
        await client.send(b"POST /jobs/dequeue?wait=10 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.leave()
        await trio.testing.wait_all_tasks_blocked()

        labels = {"method": "POST", "route": "/jobs/dequeue", "status": "unanswered"}
        assert await value(server, "queue_actor_requests_total", **labels) == 1
        assert await value(server, "queue_actor_parked_total") == 1


async def test_connections_that_are_one_too_many_are_counted() -> None:
    async with serving(Settings(connections_max=1)) as server:
        client = server.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert (await server.ask("GET", "/healthz")).status == 503
        await client.leave()

        assert await value(server, "queue_actor_connections_refused_total") == 1
        assert await value(server, "queue_actor_connections_opened_total") >= 3
        assert await value(server, "queue_actor_refusals_total", code="too_many_connections") == 1


async def test_scrapes_within_a_second_tell_the_same() -> None:
    async with serving(Settings()) as server:
        first = await families(server)
        await server.enqueue()
        second = await families(server)
        await trio.sleep(1)
        third = await families(server)

    jobs = [[sample.value for sample in each["queue_actor_jobs"].samples] for each in (first, second, third)]
    assert jobs[0] == jobs[1] == []
    assert sum(jobs[2]) == 1


async def test_a_server_that_ends_tells_so() -> None:
    async with serving(Settings()) as server:
        await server.enqueue()
        server.app.draining = True  # as a signal does, but for the connections
        server.engine.drain()

        assert await value(server, "queue_actor_ready") == 0
        assert await value(server, "queue_actor_jobs", queue="default", state="queued") == 1


async def test_a_queue_that_is_closed_or_does_not_answer_leaves_the_rest_to_be_told() -> None:
    store = FakeStore()
    async with serving(Settings(), store=store) as server, trio.open_nursery() as nursery:
        await server.enqueue()
        store.hold()
        await Call.start(nursery, server.engine, Enqueue("q", [NewJob("a")]))
        began = trio.current_time()
        found = await families(server)
        assert trio.current_time() - began == ANSWER_SECONDS
        assert found["queue_actor_engine_answers"].samples[0].value == 0
        assert "queue_actor_jobs" not in found
        store.let_go()
        assert await value(server, "queue_actor_engine_answers") == 1
        server.engine.close()
        assert await value(server, "queue_actor_engine_answers") == 0


async def test_the_lag_of_the_loop_is_how_late_a_timer_is() -> None:
    async with serving(Settings()) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.app.metrics.watch_loop)
        await trio.sleep(9.5 * LAG_SECONDS)
        jump(3)
        await trio.lowlevel.checkpoint()
        lag = await value(server, "queue_actor_loop_lag_seconds_sum")
        nursery.cancel_scope.cancel()

    assert 2.9 < lag < 3.1


# --- many queues


@pytest.mark.parametrize(("seconds", "slices", "answers"), [(1.5, 5, 1), (1.9, 6, 0)])
async def test_a_slow_store_has_time_for_each_slice_and_a_bound_for_all(
    seconds: float, slices: int, answers: int
) -> None:
    store = FakeStore()
    async with serving(Settings(sweep_seconds=60), store=store) as server:
        for n in range(slices * MEASURED_QUEUES_MAX):
            await enqueue(server, f"q{n}", 1)
        store.seconds = seconds
        began = trio.current_time()
        assert await value(server, "queue_actor_engine_answers") == answers
        assert trio.current_time() - began <= 1 + ANSWERS_SECONDS + seconds  # a commit that has begun is waited for


async def totals(server: Server) -> dict[str, float]:
    """The enqueued jobs by queue."""
    await trio.sleep(1)
    samples = (await families(server))["queue_actor_verbs_total"].samples
    return {sample.labels["queue"]: sample.value for sample in samples if sample.labels["verb"] == "enqueue"}


async def enqueue(server: Server, queue: str, count: int) -> None:
    await server.engine.execute(Enqueue(queue, [NewJob("a")] * count))


async def test_the_busiest_queues_are_told_one_by_one_and_the_sum_of_the_others_never_falls() -> None:
    async with serving(Settings(metrics_queues_max=2)) as server:
        await enqueue(server, "a", 3)
        await enqueue(server, "b", 2)
        assert await totals(server) == {"a": 3, "b": 2}
        await enqueue(server, "c", 1)
        assert await totals(server) == {"a": 3, "b": 2, OTHER: 1}
        await enqueue(server, "c", 9)  # now one of the busiest
        assert await totals(server) == {"a": 3, "c": 10, OTHER: 1}
        await enqueue(server, "b", 1)  # two are equally busy: the one that was there stays
        assert await totals(server) == {"a": 3, "c": 10, OTHER: 2}
        await enqueue(server, "d", 1)
        assert await totals(server) == {"a": 3, "c": 10, OTHER: 3}
        await server.ask("POST", "/v1/queues/d/purge", b'{"state": "queued"}')
        await server.engine.execute(DeleteQueue("d"))
        assert await totals(server) == {"a": 3, "c": 10, OTHER: 3}
        await enqueue(server, "d", 2)  # another one of that name
        assert await totals(server) == {"a": 3, "c": 10, OTHER: 5}
        assert await value(server, "queue_actor_jobs", queue=OTHER, state="queued") == 5


async def test_a_queue_that_is_idle_and_among_the_others_for_the_first_time_adds_nothing() -> None:
    async with serving(Settings(metrics_queues_max=1)) as server:
        await enqueue(server, "a", 1)
        assert await totals(server) == {"a": 1}
        await enqueue(server, "b", 2)
        assert await totals(server) == {"b": 2, OTHER: 0}
        await enqueue(server, "a", 4)
        await enqueue(server, "b", 1)
        assert await totals(server) == {"a": 5, OTHER: 1}


async def test_of_the_others_ages_the_largest_is_told() -> None:
    async with serving(Settings(metrics_queues="none-of-these")) as server:
        await enqueue(server, "a", 1)
        await trio.sleep(100)
        await enqueue(server, "b", 1)
        await server.ask("POST", "/v1/queues/b/pause")

        assert await value(server, "queue_actor_oldest_age_seconds", queue=OTHER) == 101
        assert await value(server, "queue_actor_jobs_waiting_without_consumer_seconds", queue=OTHER) == 102
        assert await value(server, "queue_actor_unasked_seconds", queue=OTHER) == 3
        assert await value(server, "queue_actor_paused", queue=OTHER) == 1


async def test_queues_that_are_named_have_series_of_their_own() -> None:
    async with serving(Settings(metrics_queues="tenant:*, mail", metrics_queues_max=3)) as server:
        for queue in ("tenant:a", "tenant:b", "mail", "mails", "tenant"):
            await enqueue(server, queue, 1)

        assert await totals(server) == {"tenant:a": 1, "tenant:b": 1, "mail": 1, OTHER: 2}


# --- what is built on it


def expressions(found: Any) -> Iterator[str]:
    """All expressions of the rules, or of the dashboard."""
    if isinstance(found, dict):
        asked = [value for key, value in found.items() if key in {"expr", "query"}]
        yield from (value for value in asked if value != "prometheus")  # which is a kind of data source
        found = list(found.values())
    if isinstance(found, list):
        for each in found:
            yield from expressions(each)


EXPRESSIONS = {
    "alert-rules.yaml": list(expressions(yaml.safe_load((DEPLOY / "alert-rules.yaml").read_text()))),
    "grafana-dashboard.json": list(expressions(json.loads((DEPLOY / "grafana-dashboard.json").read_text()))),
}
WORDS = {
    "sum",
    "rate",
    "increase",
    "changes",
    "histogram_quantile",
    "max",
    "by",
    "on",
    "and",
    "or",
    "ignoring",
    "clamp_min",
}
WORDS |= {"label_values", "prometheus", "group_left", "time", "avg"}


@pytest.mark.parametrize("file", EXPRESSIONS)
async def test_every_metric_and_label_that_is_asked_for_is_told(file: str) -> None:
    async with serving(Settings(data="in memory")) as server:
        await server.enqueue()
        samples = [sample for family in (await families(server)).values() for sample in family.samples]
    samples += [sample for family in WorkerCollector(a_worker()).collect() for sample in family.samples]
    labels: dict[str, set[str]] = {"up": set()}
    for sample in samples:
        labels.setdefault(sample.name, set()).update(sample.labels)

    assert len(EXPRESSIONS[file]) > 10
    for expression in EXPRESSIONS[file]:
        bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
        names = set(re.findall(r"\b(?:queue_actor|process|python)_\w+|\bup\b", bare))
        assert names, expression
        assert names <= labels.keys(), expression
        for name, selector in re.findall(r"\b(\w+)\{([^}]*)\}", bare):
            assert set(re.findall(r"(\w+)\s*[=!~]", selector)) <= labels[name] | ADDED, expression
        known = set().union(ADDED, *(labels[name] for name in names))
        for grouped in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", bare):
            assert set(re.findall(r"\w+", grouped)) <= known, expression
        words = set(re.findall(r"\b[a-z_]+\b", re.sub(r"\{[^}]*\}|\b(?:by|on|ignoring)\s*\([^)]*\)", "", bare)))
        assert words - names - WORDS - known <= {"bool", "le"}, expression


async def test_every_panel_of_the_dashboard_shows_something_in_its_place() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    await trio.lowlevel.checkpoint()

    assert rows == ["What waits", "Flow", "Latency", "Workers", "Server", "Store"]
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "instance", "queue"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
