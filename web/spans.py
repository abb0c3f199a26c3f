"""The spans themselves, by OpenTelemetry's conventions for messaging. Imported only where the extra `otel` is wanted.

A span is made when all is known about it, with the moments at which it began and ended: so a job's own trace can be
its parent, and an empty dequeue has none.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from queue_actor.commands import NewJob
from queue_actor.errors import QueueError
from queue_actor.jobs import Job
from web.exchanges import close_after_answer
from web.problems import Problem
from web.replies import Reply
from web.requests import Request
from web.traceparent import Traceparent, read_traceparent, traceparent_of

FLUSH_SECONDS = 0.5
"""For the last spans at the end: the process has to end within five seconds, and most of them are spent by then."""

OPERATIONS: Final = {
    "enqueue": ("send", SpanKind.PRODUCER),
    "dequeue": ("receive", SpanKind.CONSUMER),
    "conclude": ("settle", SpanKind.CONSUMER),
    "fail": ("settle", SpanKind.CONSUMER),
    "release": ("settle", SpanKind.CONSUMER),
}
"""The verbs that have spans."""

LINKS_MAX = 128
"""Jobs of one request that its span is linked to, which is what the SDK keeps."""


class Spans:
    """Makes the spans of requests about jobs."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("queue_actor")

    async def around(self, handle: Callable[[Request], Awaitable[Reply]], request: Request) -> Reply:
        """See `Tracing.around`."""
        rule = request.url_rule
        blueprint, _, endpoint = rule.endpoint.partition(".") if rule is not None else ("", "", "")
        verb = endpoint.partition("_")[0]
        if blueprint not in {"simple", "jobs"} or verb not in OPERATIONS:
            return await handle(request)
        began = time.time_ns()
        try:
            answer = await handle(request)
        except BaseException as error:
            self._refused(request, verb, began, error)
            raise
        if answer.lasts:
            close_after_answer(request, partial(self._ended, request, verb, began, answer))
        else:
            self._note(request, verb, began, answer, answer.facts.get("code"))
        return answer

    async def _ended(self, request: Request, verb: str, began: int, answer: Reply) -> None:
        self._note(request, verb, began, answer, answer.facts.get("code") if request.sent else "cut")

    def _refused(self, request: Request, verb: str, began: int, error: BaseException) -> None:
        code = error.code if isinstance(error, Problem | QueueError) else type(error).__name__
        self._note(request, verb, began, None, code)

    def _note(self, request: Request, verb: str, began: int, answer: Reply | None, code: str | None) -> None:
        facts, jobs = ({}, ()) if answer is None else (answer.facts, answer.jobs)
        if code == "empty" or (verb == "dequeue" and code is None and not jobs):
            return
        operation, kind = OPERATIONS[verb]
        queue = (request.view_args or {}).get("queue") or facts.get("queue")
        if queue is None and request.path.startswith("/jobs/"):
            queue = "default"
        attributes: dict[str, str | int] = {
            "messaging.system": "queue_actor",
            "messaging.operation.name": verb,
            "messaging.operation.type": operation,
        }
        if isinstance(queue, str):
            attributes["messaging.destination.name"] = queue
        if "job" in facts:
            attributes["messaging.message.id"] = str(facts["job"])
        if "jobs" in facts:
            attributes["messaging.batch.message_count"] = facts["jobs"]
        if code is not None:
            attributes["error.type"] = code
        origins = origins_of(jobs)
        parent = traceparent_of(request.scope["headers"])
        if parent is None and len(origins) == 1:
            parent = origins[0]
        span = self._tracer.start_span(
            f"{verb} {queue}" if isinstance(queue, str) else verb,
            context=None if parent is None else set_span_in_context(NonRecordingSpan(_context(parent))),
            kind=kind,
            attributes=attributes,
            links=[Link(_context(origin)) for origin in origins[:LINKS_MAX] if origin != parent],
            start_time=began,
        )
        if code is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def origins_of(jobs: Sequence[Any]) -> list[Traceparent]:
    """Where in which traces these jobs come from, each once; a refusal among them comes from nowhere."""
    texts = dict.fromkeys(job.options.traceparent for job in jobs if isinstance(job, Job | NewJob))
    read = (read_traceparent(text.encode()) for text in texts if text is not None)
    return [traceparent for traceparent in read if traceparent is not None]


def _context(traceparent: Traceparent) -> SpanContext:
    return SpanContext(
        int(traceparent.trace_id, 16),
        int(traceparent.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(traceparent.flags, 16)),
    )


@contextmanager
def exporting() -> Iterator[Spans]:
    """Within the block spans go where the variables OTEL_* say, from a thread of the library."""
    named = Resource({"service.name": "queue-actor"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Spans(provider)
    finally:
        # It waits for a collector that does not answer much longer than this process may take to end.
        ending = Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)
