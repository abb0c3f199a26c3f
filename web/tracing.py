"""Spans of what happens to jobs, for those who collect them: OpenTelemetry, where the setting `trace` asks for it.

One trace leads from the producer through the queue to the worker. A job belongs to the trace that its producer named,
in the job or in the header `traceparent` of the request; that is told to whoever dequeues it, and what the server does
with it is linked to it. Nothing of OpenTelemetry is imported unless it is asked for.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from queue_actor.settings import PREFIX, SettingError, Settings
from web.replies import Reply
from web.requests import Request


class Tracing(Protocol):
    """Makes spans."""

    async def around(self, handle: Callable[[Request], Awaitable[Reply]], request: Request) -> Reply:
        """Handle a request, and make its span, if it is about jobs; raises what the handler raises."""
        ...


@contextmanager
def open_tracing(settings: Settings) -> Iterator[Tracing | None]:
    """Within the block spans are exported; at its end those that wait are, for a moment.

    Raises:
        SettingError: What it needs is not installed.
    """
    if settings.trace == "off":
        yield None
        return
    try:
        from web.spans import exporting  # only here: it needs what is not installed everywhere
    except ImportError as error:
        raise SettingError(f"{PREFIX}TRACE: otlp needs the extra otel (queue-actor[otel]): {error}") from error
    with exporting() as tracing:
        yield tracing
