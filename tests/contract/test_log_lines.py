"""What the log tells of requests and of jobs: the lines that README.md promises, and what is never in them."""

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from quart import Blueprint
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Cancel,
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    Fail,
    FailClaim,
    Forget,
    NewJob,
    SetPolicy,
    Sweep,
)
from queue_actor.engine import Engine
from queue_actor.jobs import JobError, JobOptions, QueuePolicy, Retry, RetryKind
from queue_actor.settings import Settings
from queue_actor.transition_lines import TRANSITION
from tests.contract.conftest import Serve
from tests.contract.stack import Server, build
from tests.contract.v1 import Q, held, post
from tests.fakes import FakeStore
from web.connections import DRAINED_STREAM_SECONDS
from web.replies import Reply, reply

pytestmark = pytest.mark.virtual_time

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
GOOD = b'{"type": "a"}\n'

# --- requests


async def test_a_line_has_the_trace_that_its_request_belongs_to(server: Server) -> None:
    await server.ask("GET", "/healthz", headers=[("traceparent", TRACEPARENT)])
    await server.ask("GET", "/v1/queues/q", headers=[("Traceparent", TRACEPARENT)])
    assert [line["trace_id"] for line in server.log] == [TRACE, TRACE]


async def test_a_traceparent_that_is_none_is_passed_over(server: Server) -> None:
    answer = await server.ask("GET", "/healthz", headers=[("traceparent", TRACEPARENT.upper())])
    assert answer.status == 200
    await server.ask("GET", "/healthz", headers=[("traceparent", TRACEPARENT)] * 2)
    assert [line for line in server.log if "trace_id" in line] == []


async def test_a_line_tells_the_bytes_of_the_answer(server: Server) -> None:
    answer = await server.ask("GET", "/v1/queues/q")
    refused = await server.ask("GET", f"{Q}/jobs/9")
    assert [line["bytes"] for line in server.log] == [len(answer.body), len(refused.body)]


async def test_a_line_names_no_more_than_ten_jobs(server: Server) -> None:
    await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a"}] * 12})
    (line,) = server.log
    assert (line["jobs"], line["ids"]) == (12, list(range(1, 11)))


# --- streams


def stream_head(length: int | None = None) -> bytes:
    """The head of a stream of lines; without a length it may go on."""
    framing = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
    return build("POST", f"{Q}/enqueue", headers=[("Content-Type", "application/x-ndjson"), framing])


def chunk(lines: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(lines), lines)


async def rest_of(client: Any) -> list[Any]:
    """The lines of the answer until it ends."""
    received = b""
    while piece := await client.stream.receive_some():
        received += bytes(piece)
    return [json.loads(line) for line in received.splitlines() if line.startswith(b"{")]


async def test_the_line_of_a_stream_comes_at_its_end_with_its_counts(server: Server) -> None:
    lines = b'{"type": "a", "unique_key": "k"}\n' * 2 + GOOD + b"nonsense\n"
    client = server.connect()
    await client.send(stream_head() + chunk(lines))
    await trio.sleep(1)
    assert server.log == []
    await client.send(b"0\r\n\r\n")
    (answer,) = await rest_of(client)
    server.answers += 1
    (line,) = server.log
    assert answer["count"] == 3
    told = {name: line.get(name) for name in ("status", "queue", "lines", "jobs", "existing", "errors", "code")}
    assert told == {"status": 200, "queue": "q", "lines": 4, "jobs": 3, "existing": 1, "errors": 1, "code": None}


async def test_the_line_of_a_stream_that_was_refused_in_the_middle_has_the_code(serve: Serve) -> None:
    async with serve(queued_jobs_max=1) as server:
        client = server.connect()
        await client.send(stream_head(2 * len(GOOD)) + GOOD * 2)
        *_, last = await rest_of(client)
        server.answers += 1
        (line,) = server.log
        assert last["error"]["code"] == line["code"] == "queue_full"


async def test_the_line_of_a_stream_whose_client_left_says_that_it_was_cut(server: Server) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD))
    await trio.sleep(1)
    await client.leave()
    await wait_all_tasks_blocked()
    server.answers += 1
    (line,) = server.log
    assert (line["jobs"], line["code"], line.get("draining")) == (1, "cut", None)


async def test_a_drain_ends_a_stream_with_a_last_line_that_says_why(server: Server) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD * 3))
    await trio.sleep(1)
    began = trio.current_time()
    await server.drain()
    first, last = await rest_of(client)
    server.answers += 1
    assert trio.current_time() - began == pytest.approx(DRAINED_STREAM_SECONDS)
    assert first["count"] == 3
    assert (last["lines"], last["count"], last["error"]["code"]) == (3, 0, "draining")
    (line,) = server.log
    assert (line["jobs"], line["code"]) == (3, "draining")


async def test_a_stream_may_end_by_itself_in_a_drain(server: Server) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD))
    await trio.sleep(1)
    await server.drain()
    await trio.sleep(DRAINED_STREAM_SECONDS / 2)
    await client.send(chunk(GOOD) + b"0\r\n\r\n")
    answers = await rest_of(client)
    server.answers += 1
    assert [answer["count"] for answer in answers] == [1, 1]
    assert "code" not in server.log[0]


async def test_a_slow_stream_is_still_timed_out_as_such(server: Server) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD))
    answers = await rest_of(client)
    server.answers += 1
    assert answers[-1]["error"]["code"] == "request_timeout"


async def test_a_request_cut_by_a_drain_says_so(server: Server) -> None:
    async def stuck() -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    add(server, stuck)
    client = server.connect()
    await client.send(build("GET", "/test"))
    await wait_all_tasks_blocked()
    await server.drain()
    for connection in server.connections.admitted:
        connection.life.cancel()  # as Hypercorn's patience ends
    await wait_all_tasks_blocked()
    (line,) = server.log
    assert (line["status"], line["code"], line["draining"]) == (None, "unanswered", True)


# --- slow requests


def add(server: Server, handler: Any) -> None:
    """A route of a test, at /test."""
    routes = Blueprint("test", __name__)
    routes.get("/test")(handler)
    server.app.register_blueprint(routes)


@pytest.fixture
def virtual_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The durations in the log are those of the virtual clock."""
    monkeypatch.setattr("web.app.time", SimpleNamespace(perf_counter=trio.current_time, time=lambda: 0.0))
    monkeypatch.setattr("web.exchanges.perf_counter", trio.current_time)


@pytest.mark.usefixtures("virtual_figures")
async def test_a_slow_request_is_warned_about_beside_its_line(server: Server) -> None:
    async def slow() -> Reply:
        await trio.sleep(1.5)
        return reply(b"{}", facts={"job": 7})

    add(server, slow)
    await server.ask("GET", "/test", headers=[("X-Request-Id", "mine")])
    line, warning = server.log
    assert (line["event"], line["level"]) == ("request", "info")
    assert (warning["event"], warning["level"]) == ("slow_request", "warning")
    names = ("request_id", "path", "status", "milliseconds", "job")
    assert [warning[name] for name in names] == [line[name] for name in names] == ["mine", "/test", 200, 1_500.0, 7]
    assert warning["held_back"] == 0


@pytest.mark.usefixtures("virtual_figures")
async def test_slow_requests_are_warned_about_once_a_second_although_others_are_not_logged(server: Server) -> None:
    async def slow() -> Reply:
        await trio.sleep(1.5)
        return reply(b"{}")

    add(server, slow)
    logging.getLogger("web").setLevel(logging.WARNING)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(server.ask, "GET", "/test")
    await server.ask("GET", "/test")
    assert [(line["event"], line["held_back"]) for line in server.log] == [("slow_request", 0), ("slow_request", 4)]
    server.answers = 0  # none of them left a line of its own


@pytest.mark.usefixtures("virtual_figures")
async def test_waiting_for_a_job_or_for_its_end_is_not_slow(server: Server) -> None:
    job = await held(server)
    await server.ask("POST", "/jobs/dequeue?wait=5")
    await server.ask("GET", f"{Q}/jobs/{job['id']}?wait_seconds=3")
    lines = [line for line in server.log if "waited_milliseconds" in line]
    assert [line["waited_milliseconds"] for line in lines] == [5_000.0, 3_000.0]
    assert not [line for line in server.log if line["event"] == "slow_request"]


@pytest.mark.usefixtures("virtual_figures")
async def test_a_stream_is_not_slow_however_long_it_lasts(server: Server) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD))
    await trio.sleep(5)
    await client.send(b"0\r\n\r\n")
    await rest_of(client)
    server.answers += 1
    assert [(line["event"], line["milliseconds"]) for line in server.log] == [("request", 5_000.0)]


# --- batches


async def test_a_slow_commit_is_warned_about(server: Server, store: FakeStore, settings: Settings) -> None:
    if settings.data:  # both engines within it are asked the same with a store that can be slow
        pytest.skip("its store is a real one, which takes no virtual time")
    store.seconds = 1.5
    await server.enqueue()
    store.seconds = 0
    (warning,) = [line for line in server.log if line["event"] == "slow_commit"]
    assert (warning["level"], warning["logger"]) == ("warning", "queue_actor.slow")
    assert {name: warning[name] for name in ("requests", "jobs", "commit_milliseconds")} == {
        "requests": 1,
        "jobs": 1,
        "commit_milliseconds": 1_500.0,
    }


# --- transitions


@pytest.fixture
def transitions(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The facts of the lines so far."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert (record.levelno, record.levelname, record.getMessage()) == (TRANSITION, "TRANSITION", "transition")
            lines.append(vars(record)["facts"])

    logger = logging.getLogger("queue_actor.transitions")
    keep = Keep()
    logger.addHandler(keep)
    with caplog.at_level(TRANSITION, logger.name):
        yield lines
    logger.removeHandler(keep)


def summary(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(line[name] for name in ("job", "from", "verb", "to", "reason", "attempt")) for line in lines]


async def test_each_transition_has_a_line(engine: Engine, transitions: list[dict[str, Any]]) -> None:
    at_once = Retry(kind=RetryKind.FIXED, base_seconds=0.001)
    await engine.execute(SetPolicy("q", QueuePolicy(max_attempts=2, retry=at_once), None))
    await engine.execute(Enqueue("q", [NewJob("a"), NewJob("a", delay_seconds=60)]))
    (lease,) = (await engine.execute(Dequeue("q", consumer="w1"))).leases
    await engine.execute(Fail([FailClaim("q", 1, lease.token, None, error=JobError("E", "secret"))]))
    await trio.sleep(0.01)
    await engine.execute(Sweep())
    (lease,) = (await engine.execute(Dequeue("q", consumer="w2", lease_seconds=0.5))).leases
    await trio.sleep(2)
    await engine.execute(Sweep())
    await engine.execute(Cancel("q", [2]))
    await engine.execute(Forget("q", [2]))

    assert summary(transitions) == [
        (1, None, "enqueue", "queued", None, 0),
        (2, None, "enqueue", "scheduled", None, 0),
        (1, "queued", "dequeue", "in_progress", None, 1),
        (1, "in_progress", "fail", "scheduled", None, 1),
        (1, "scheduled", "due", "queued", None, 1),
        (1, "queued", "dequeue", "in_progress", None, 2),
        (1, "in_progress", "stale", "dead", "stale", 2),
        (2, "scheduled", "cancel", "cancelled", None, 0),
        (2, "cancelled", "forget", None, None, 0),
    ]
    assert [line["consumer"] for line in transitions][2:6] == ["w1", "w1", "w1", "w2"]
    assert {line["queue"] for line in transitions} == {"q"}
    revisions = [line["revision"] for line in transitions]
    assert revisions == sorted(set(revisions))
    assert "secret" not in str(transitions)


async def test_a_transition_is_told_after_it_is_kept(
    engine: Engine, store: FakeStore, settings: Settings, transitions: list[dict[str, Any]]
) -> None:
    if settings.data:  # both engines within it are asked the same with a store that can be held
        pytest.skip("its store is a real one, which cannot be held")
    store.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.execute, Enqueue("q", [NewJob("a")]))
        await wait_all_tasks_blocked()
        assert transitions == []
        store.let_go()
    assert summary(transitions) == [(1, None, "enqueue", "queued", None, 0)]


async def test_a_transition_tells_nothing_of_what_a_job_is_about(
    engine: Engine, transitions: list[dict[str, Any]]
) -> None:
    options = JobOptions(unique_key="secret", meta={"secret": "secret"})
    await engine.execute(Enqueue("q", [NewJob("secret", b'"secret"', options=options)]))
    (lease,) = (await engine.execute(Dequeue("q"))).leases
    await engine.execute(Conclude([Claim("q", 1, lease.token, None)]))
    assert len(transitions) == 3
    assert "secret" not in str(transitions)
    assert lease.token not in str(transitions)


async def test_transitions_are_not_told_unless_wanted(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await engine.execute(Enqueue("q", [NewJob("a")]))
    assert not [record for record in caplog.records if record.name == "queue_actor.transitions"]
