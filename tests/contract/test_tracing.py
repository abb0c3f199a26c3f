"""Spans, by the SDK and an exporter that keeps them: one trace from the producer through the queue to the worker."""

import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from queue_actor.settings import SettingError, Settings
from tests.contract.conftest import Serve
from tests.contract.stack import Server
from tests.contract.test_log_lines import GOOD, chunk, rest_of, stream_head
from tests.contract.v1 import Q, ask, dequeue, enqueue, get, held, lease, post
from tests.fakes import FakeClock, FakeStore
from web.__main__ import EXIT_CONFIGURATION, main
from web.tracing import open_tracing

pytestmark = pytest.mark.virtual_time

PRODUCER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WORKER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture(autouse=True)
def exporter_or_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need the SDK alone: where the exporter of the extra is not installed, nobody stands in its place."""
    if importlib.util.find_spec("opentelemetry.exporter") is None:
        parts = ["opentelemetry", "exporter", "otlp", "proto", "http", "trace_exporter"]
        for n in range(2, len(parts) + 1):
            module = ModuleType(".".join(parts[:n]))
            vars(module)["OTLPSpanExporter"] = InMemorySpanExporter
            monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


@pytest.fixture
async def server(serve: Serve, kept: InMemorySpanExporter, clock: FakeClock, store: FakeStore) -> AsyncIterator[Server]:
    del clock, store  # which `serve` has
    from web.spans import Spans  # what it imports may be a stand-in

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    async with serve() as server:
        server.app.tracing = Spans(provider)
        yield server
    provider.shutdown()


def context(span: ReadableSpan) -> tuple[str | None, set[str]]:
    """Parent and links of a span, as traceparents."""
    parent = None if span.parent is None else written(span.parent)
    return parent, {written(link.context) for link in span.links}


def written(place: Any) -> str:
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"


def facts(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("messaging."): value for name, value in (span.attributes or {}).items()}


async def test_one_trace_leads_from_the_producer_to_the_worker_and_to_the_end(
    server: Server, kept: InMemorySpanExporter
) -> None:
    await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a"}]}, traceparent=PRODUCER)
    (job,) = await dequeue(server)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["lease"]["token"]})
    assert job["traceparent"] == PRODUCER

    sent, received, settled = kept.get_finished_spans()
    assert [(span.name, span.kind) for span in (sent, received, settled)] == [
        ("enqueue q", SpanKind.PRODUCER),
        ("dequeue q", SpanKind.CONSUMER),
        ("conclude q", SpanKind.CONSUMER),
    ]
    assert context(sent) == context(received) == context(settled) == (PRODUCER, set())
    assert facts(sent) == {
        "system": "queue_actor",
        "operation.name": "enqueue",
        "operation.type": "send",
        "destination.name": "q",
        "batch.message_count": 1,
    }
    assert facts(received)["operation.type"] == "receive"
    assert facts(settled) == {
        "system": "queue_actor",
        "operation.name": "conclude",
        "operation.type": "settle",
        "destination.name": "q",
        "message.id": "1",
    }
    assert all(span.status.status_code is StatusCode.UNSET for span in (sent, received, settled))
    assert all((span.end_time or 0) >= (span.start_time or 0) > 0 for span in (sent, received, settled))


async def test_the_trace_that_a_job_names_is_its_own_whatever_brings_it(
    server: Server, kept: InMemorySpanExporter
) -> None:
    await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a", "traceparent": PRODUCER}]}, traceparent=WORKER)
    assert (await get(server, f"{Q}/jobs/1"))["traceparent"] == PRODUCER
    await enqueue(server, {"type": "b", "traceparent": PRODUCER})
    assert [context(span) for span in kept.get_finished_spans()] == [(WORKER, {PRODUCER}), (PRODUCER, set())]


async def test_the_span_of_a_worker_that_has_a_trace_is_its_child_and_linked_to_the_jobs(
    server: Server, kept: InMemorySpanExporter
) -> None:
    await enqueue(server, {"type": "a", "traceparent": PRODUCER}, {"type": "a"})
    kept.clear()
    leased = (await post(server, f"{Q}/dequeue", {"count": 2}, traceparent=WORKER))["jobs"]
    claims = [{"id": job["id"], "token": job["lease"]["token"]} for job in leased]
    await post(server, f"{Q}/fail", {"jobs": [*claims, {"id": 9, "token": "x"}]}, traceparent=WORKER)
    received, settled = kept.get_finished_spans()
    assert context(received) == context(settled) == (WORKER, {PRODUCER})
    assert (facts(received)["batch.message_count"], facts(settled)["batch.message_count"]) == (2, 3)


async def test_jobs_of_several_traces_are_linked_to_a_span_of_its_own(
    server: Server, kept: InMemorySpanExporter
) -> None:
    await enqueue(server, {"type": "a", "traceparent": PRODUCER}, {"type": "a", "traceparent": WORKER})
    await dequeue(server, count=2)
    assert [context(span) for span in kept.get_finished_spans()] == [(None, {PRODUCER, WORKER})] * 2


async def test_the_classic_routes_have_spans_too(server: Server, kept: InMemorySpanExporter) -> None:
    await server.ask("POST", "/jobs/enqueue", b'{"Type":"a"}', [("traceparent", PRODUCER)])
    token = (await server.dequeue()).token
    await server.ask("POST", "/jobs/1/conclude", b"", [("Queue-Lease-Token", token)])
    spans = kept.get_finished_spans()
    assert [span.name for span in spans] == ["enqueue default", "dequeue default", "conclude default"]
    assert [context(span) for span in spans] == [(PRODUCER, set())] * 3
    assert (await get(server, "/v1/queues/default/jobs/1"))["traceparent"] == PRODUCER


async def test_a_refusal_is_an_error_by_its_code(server: Server, kept: InMemorySpanExporter) -> None:
    await ask(server, "POST", f"{Q}/jobs/9/conclude", {"token": "x"})
    await ask(server, "POST", f"{Q}/enqueue", {"jobs": 1})
    unknown, invalid = kept.get_finished_spans()
    assert [facts(span)["error.type"] for span in (unknown, invalid)] == ["unknown_job", "invalid"]
    assert {span.status.status_code for span in (unknown, invalid)} == {StatusCode.ERROR}


async def test_what_moves_no_job_has_no_span(server: Server, kept: InMemorySpanExporter) -> None:
    job = await held(server)
    kept.clear()
    await dequeue(server)
    await server.ask("POST", "/jobs/dequeue")
    await server.ask("POST", "/jobs/dequeue?empty=204")
    await post(server, f"{Q}/jobs/1/extend", {"token": job["token"]})
    await get(server, f"{Q}/jobs/1")
    await ask(server, "GET", "/nowhere")
    await post(server, f"{Q}/pause")
    assert kept.get_finished_spans() == ()


async def test_a_trace_that_is_not_recorded_is_not_recorded_here(server: Server, kept: InMemorySpanExporter) -> None:
    await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a"}]}, traceparent=UNSAMPLED)
    assert (await get(server, f"{Q}/jobs/1"))["traceparent"] == UNSAMPLED
    assert kept.get_finished_spans() == ()


async def test_a_stream_has_one_span_at_its_end(server: Server, kept: InMemorySpanExporter) -> None:
    client = server.connect()
    head = stream_head().replace(b"\r\n", f"\r\ntraceparent: {PRODUCER}\r\n".encode(), 1)
    await client.send(head + chunk(GOOD * 3))
    await trio.sleep(1)
    assert kept.get_finished_spans() == ()
    await client.send(b"0\r\n\r\n")
    await rest_of(client)
    server.answers += 1
    (span,) = kept.get_finished_spans()
    assert (span.name, context(span)[0], facts(span)["batch.message_count"]) == ("enqueue q", PRODUCER, 3)
    _, token = await lease(server)
    assert token
    assert (await get(server, f"{Q}/jobs/1"))["traceparent"] == PRODUCER


async def test_a_stream_that_was_cut_is_an_error(server: Server, kept: InMemorySpanExporter) -> None:
    client = server.connect()
    await client.send(stream_head() + chunk(GOOD))
    await trio.sleep(1)
    await client.leave()
    await trio.testing.wait_all_tasks_blocked()
    server.answers += 1
    (span,) = kept.get_finished_spans()
    assert facts(span)["error.type"] == "cut"


# --- the setting


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, web.__main__; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "[]\n"


def test_off_makes_nothing() -> None:
    with open_tracing(Settings()) as tracing:
        assert tracing is None


def test_otlp_without_its_extra_is_a_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "web.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setattr("web.__main__.set_up_logging", lambda _: None)
    with (
        pytest.raises(SettingError, match=r"QUEUE_ACTOR_TRACE: otlp needs the extra otel"),
        open_tracing(Settings(trace="otlp")),
    ):
        pass
    assert main(["--trace", "otlp", "--bind", "127.0.0.1:0"], {}) == EXIT_CONFIGURATION
    assert "QUEUE_ACTOR_TRACE" in capsys.readouterr().err


def test_otlp_makes_spans_for_a_service_of_this_name_unless_the_environment_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "web.spans", raising=False)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert service_name() == "queue-actor"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert service_name() == "mine"


def service_name() -> object:
    """Of spans that are exported."""
    with open_tracing(Settings(trace="otlp")) as tracing:
        tracer: Any = vars(tracing)["_tracer"]
        return tracer.resource.attributes["service.name"]
