"""The metrics of a worker: what a registry is told, and how monitors of all kinds are served over real sockets."""

import gc
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from socketserver import TCPServer
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import DuplicateTimeseries

from queue_actor import worker_metrics
from queue_actor.addresses import AddressError
from queue_actor.counters import Statistics
from queue_actor.meters import JOB_SECONDS
from queue_actor.worker import App, Worker
from queue_actor.worker_metrics import CONNECTIONS_MAX, METRICS, WorkerCollector, serving
from tests.unit.test_handlers import a_job
from tests.unit.test_worker import FakeServer, logging_as_it_was, served_by

__all__ = ["logging_as_it_was"]  # a fixture for all tests here

ANSWER_SECONDS = 5.0
"""Less than what a connection may last: who is cut off in time is so by what the test is about."""

NOW = ("running", "waiting", "unheard", "threads")
"""What is of this moment; all else of the statistics counts."""


def a_worker(**options: Any) -> Worker:
    app = App()
    app.job("resize")(lambda: None)
    app.job("resize", queue="other")(lambda: None)
    app.job("crop")(lambda: None)
    return app.worker(FakeServer(), **options)


def values_in(text: str) -> dict[tuple[str, ...], float]:
    """The samples of a scrape, by name and values of labels."""
    families = text_string_to_metric_families(text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def told(worker: Worker) -> dict[tuple[str, ...], float]:
    """What a registry tells of a worker; names without what all begin with."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker))
    values = values_in(generate_latest(registry).decode())
    return {(name.removeprefix("queue_actor_worker_"), *labels): value for (name, *labels), value in values.items()}


# --- what is told


def test_the_table_has_every_field_of_the_statistics() -> None:
    fields = {field: "gauge" if field in NOW else "counter" for field in Statistics.__struct_fields__}
    named = {f"queue_actor_worker_{field}{'' if kind == 'gauge' else '_total'}": kind for field, kind in fields.items()}

    assert {name: METRICS[name].kind for name in named} == named
    assert {name.removeprefix("queue_actor_worker_") for name in METRICS.keys() - named.keys()} == {
        "run_seconds",
        "concurrency",
        "prefetch",
        "draining",
        "reached",
    }


def test_every_figure_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = a_worker(concurrency=70, prefetch=80)
    numbers = {field: number for number, field in enumerate(Statistics.__struct_fields__, 1)}
    monkeypatch.setattr(worker, "statistics", lambda: Statistics(**numbers))

    values = told(worker)

    for field, number in numbers.items():
        assert values.pop((field if field in NOW else f"{field}_total",)) == number, field
    assert {key: value for key, value in values.items() if not key[0].startswith("run_seconds")} == {
        ("concurrency",): 70,
        ("prefetch",): 80,
        ("draining",): 0,
        ("reached", "jobs"): 1,
        ("reached", "outcomes"): 1,
    }


def test_types_are_those_that_there_are_handlers_for_and_all_are_told_from_the_start() -> None:
    worker = a_worker()
    before = told(worker)
    worker._runs.note("crop", 0.3)
    after = told(worker)

    counts = {key: value for key, value in before.items() if key[0] == "run_seconds_count"}
    assert counts == {("run_seconds_count", "resize"): 0, ("run_seconds_count", "crop"): 0}
    assert before.keys() == after.keys()
    buckets = [str(bound) for bound in JOB_SECONDS if bound >= 0.3] + ["+Inf"]
    assert {key: value for key, value in after.items() if value != before[key]} == {
        ("run_seconds_sum", "crop"): 0.3,
        ("run_seconds_count", "crop"): 1,
    } | dict.fromkeys([("run_seconds_bucket", bucket, "crop") for bucket in buckets], 1)


class Untouchable(dict[Any, Any]):
    """Has a length, and nothing else that another thread may look at."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("iterated over by a thread that is not the loop's")

    __iter__ = keys = values = items = copy = _refuse


def test_a_scrape_iterates_over_nothing_that_the_loop_adds_to(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = a_worker()
    for part, name in (
        (worker, "_waiting"),
        (worker, "_in_threads"),
        (worker._heartbeats, "held"),
        (worker._reports, "_untold"),
    ):
        monkeypatch.setattr(part, name, Untouchable(a=1, b=2))

    values = told(worker)

    assert [values[name,] for name in ("running", "waiting", "threads", "unheard")] == [0, 2, 2, 2]


def test_a_registry_takes_one_worker_and_knows_a_second_one() -> None:
    registry = CollectorRegistry()
    registry.register(WorkerCollector(a_worker()))

    with pytest.raises(DuplicateTimeseries, match="queue_actor_worker_running"):
        registry.register(WorkerCollector(a_worker()))


def test_a_client_needs_no_prometheus() -> None:
    program = "import sys, queue_actor.client; sys.exit('prometheus_client' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- over HTTP


class Scraped(NamedTuple):
    status: int
    headers: Any
    text: str


def scrape(url: str, accept: str = "*/*") -> Scraped:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return Scraped(answer.status, answer.headers, answer.read().decode())


def port_of(url: str) -> int:
    """The port of http://HOST:PORT/metrics."""
    return int(re.findall(r":(\d+)/metrics", url)[0])


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(url)), timeout=ANSWER_SECONDS)


def is_cut(connection: socket.socket) -> bool:
    """Whether the other side ends a connection without a word; waited for."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Neither threads nor sockets are."""
    yield
    gc.collect()  # what was not closed warns, and warnings are errors
    names = {thread.name for thread in threading.enumerate()}
    assert not [name for name in names if "queue-actor-metrics" in name or "process_request" in name]


pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_the_metrics_of_worker_and_process_are_served_in_either_format(caplog: pytest.LogCaptureFixture) -> None:
    worker = a_worker(concurrency=7)
    with caplog.at_level(logging.INFO, "queue_actor.worker"), serving(worker, "127.0.0.1:0") as url:
        plain = scrape(url)
        openmetrics = scrape(f"{url}?from=anywhere", "application/openmetrics-text;version=1.0.0")
        (record,) = caplog.records

    assert (record.getMessage(), record.__dict__["facts"]) == ("worker_metrics", {"address": url})
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
    assert plain.status == 200
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    assert int(plain.headers["Content-Length"]) == len(plain.text)
    assert "Python" not in plain.headers["Server"]
    names = [family.name for family in text_string_to_metric_families(plain.text)]
    told = [name.removesuffix("_total") for name in METRICS]
    assert names[: len(told)] == told
    assert {name.partition("_")[0] for name in names[len(told) :]} == {"process", "python"}
    assert values_in(plain.text)["queue_actor_worker_concurrency",] == 7
    read = [family.name for family in read_openmetrics(openmetrics.text)]  # type: ignore[no-untyped-call] # of the library
    assert read == names


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/metrics.txt"])
def test_nothing_else_is_served(path: str) -> None:
    with serving(a_worker(), "127.0.0.1:0") as url:
        with pytest.raises(urllib.error.HTTPError) as refused:
            scrape(url.removesuffix("/metrics") + path)
        with refused.value as answer:
            assert (answer.code, "there is nothing but /metrics" in answer.read().decode()) == (404, True)


def test_the_port_is_free_when_the_block_ends() -> None:
    worker = a_worker()
    with serving(worker, "127.0.0.1:0") as url:
        scrape(url)
    with pytest.raises(ConnectionRefusedError):
        connect(url)
    with serving(worker, f"127.0.0.1:{port_of(url)}") as again:
        assert again == url
        scrape(url)


def test_two_workers_of_a_program_are_served_side_by_side() -> None:
    with serving(a_worker(concurrency=1), "127.0.0.1:0") as one, serving(a_worker(concurrency=2), "127.0.0.1:0") as two:
        assert [values_in(scrape(url).text)["queue_actor_worker_concurrency",] for url in (one, two)] == [1, 2]


def test_monitors_that_say_nothing_or_do_not_read_keep_nobody_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    much = b"x" * 50_000_000  # more than the kernel keeps for a reader
    monkeypatch.setattr(worker_metrics, "choose_encoder", lambda _accept: (lambda _registry: much, "text/plain"))
    with ExitStack() as stack:
        with serving(a_worker(), "127.0.0.1:0") as url:
            silent, slow, deaf = [stack.enter_context(connect(url)) for _ in range(3)]
            slow.sendall(b"GET /metrics HTTP/1.0\r\nX: ")  # and no more
            deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert deaf.recv(1, socket.MSG_PEEK)  # it is answered, and so the others before it are taken
            began = time.monotonic()
        assert time.monotonic() - began < ANSWER_SECONDS
        assert is_cut(silent)
        assert is_cut(slow)


def test_a_monitor_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(a_worker(), "127.0.0.1:0") as url, connect(url) as slow:
        slow.sendall(b"GET /metrics")
        monkeypatch.setattr(worker_metrics, "SCRAPE_SECONDS_MAX", 0.0)
        assert is_cut(slow)
        monkeypatch.undo()
        assert scrape(url).status == 200


def test_a_monitor_that_is_one_too_many_is_sent_away_until_there_is_room() -> None:
    with serving(a_worker(), "127.0.0.1:0") as url:
        first, *others = [connect(url) for _ in range(CONNECTIONS_MAX)]
        with connect(url) as one_too_many:
            assert is_cut(one_too_many)
        first.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with first.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.0 200 ")  # to its end, so there is room again
        first.close()
        assert scrape(url).status == 200
        for connection in others:
            connection.close()


def test_a_connection_that_breaks_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    with serving(a_worker(), "127.0.0.1:0") as url:
        broken = connect(url)
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        broken.close()  # with a reset
        scrape(url)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_bug_is_logged_and_the_next_scrape_served(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = a_worker()
    with serving(worker, "127.0.0.1:0") as url:
        monkeypatch.setattr(worker, "figures", lambda: 1 / 0)
        with connect(url) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert is_cut(connection)
        monkeypatch.undo()
        assert scrape(url).status == 200
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert record.getMessage() == "scrape_failed"
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


def test_without_files_for_more_connections_it_does_not_look_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    looked = threading.Event()
    take = TCPServer.get_request

    def refuse(_server: Any) -> Any:
        looked.set()
        raise OSError(24, "Too many open files")

    with serving(a_worker(), "127.0.0.1:0") as url, monkeypatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        patch.setattr(TCPServer, "get_request", refuse)
        with connect(url):
            assert looked.wait(ANSWER_SECONDS)
        patch.setattr(TCPServer, "get_request", take)
        assert scrape(url).status == 200  # the thread has gone on
    assert set(slept) == {worker_metrics.LOOK_SECONDS}


# --- addresses


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nonsense", "'nonsense' is not HOST:PORT"),
        ("9100", "'9100' is not HOST:PORT"),
        ("127.0.0.1:65536", "'127.0.0.1:65536' is not HOST:PORT"),
        ("192.0.2.1:9100", "cannot listen on 192.0.2.1:9100: Cannot assign requested address"),
        (f"{'a' * 64}:80", f"'{'a' * 64}:80' holds no name of a host"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused(address: str, reason: str) -> None:
    with pytest.raises(AddressError, match=rf"\Ametrics: {re.escape(reason)}\Z"), serving(a_worker(), address):
        pass


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        reason = rf"\Ametrics: cannot listen on {re.escape(address)}: Address already in use\Z"
        with pytest.raises(AddressError, match=reason), serving(a_worker(), address):
            pass


# --- through a run of an app


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_app_is_scraped_for_as_long_as_it_runs(
    backend: Literal["asyncio", "trio"], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    server = FakeServer(a_job(id=1), a_job(id=2, type="unheard of"))
    served_by(server, monkeypatch)
    urls: list[str] = []
    scraped: list[dict[tuple[str, ...], float]] = []

    def look() -> None:
        scraped.append(values_in(scrape(urls[0]).text))

    @app.job("t")
    def handle() -> None:
        try:
            found = [record for record in caplog.records if record.getMessage() == "worker_metrics"]
            urls.append(found[0].__dict__["facts"]["address"])
            look()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not scraped[-1]["queue_actor_worker_draining",] and time.monotonic() < deadline:
            look()

    with caplog.at_level(logging.INFO, "queue_actor.worker"):
        assert app.run(backend=backend, metrics="127.0.0.1:0", concurrency=3) == 0
    first, last = scraped[0], scraped[-1]
    names = ("running", "threads", "dequeued_total", "no_handler_total", "concurrency", "draining")
    assert [first[f"queue_actor_worker_{name}",] for name in names] == [1, 1, 2, 1, 3, 0]
    assert [last[f"queue_actor_worker_{name}",] for name in names] == [1, 1, 2, 1, 3, 1]
    assert not [key for key in last if "unheard of" in key]
    with pytest.raises(ConnectionRefusedError):
        connect(urls[0])


def test_an_app_whose_address_is_bad_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    app.job("t")(lambda: None)
    server = FakeServer(a_job(id=1))
    served_by(server, monkeypatch)
    with pytest.raises(AddressError, match="metrics: 'here' is not HOST:PORT"):
        app.run(metrics="here")
    assert server.asked == []


def test_the_statistics_and_the_figures_are_the_same() -> None:
    worker = a_worker()
    worker._counters.dequeued = 3

    figures = worker.figures()

    assert figures.statistics == worker.statistics()
    assert json.loads(msgspec.json.encode(figures))["statistics"]["dequeued"] == 3
