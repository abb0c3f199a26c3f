"""What is left to do when a request has been answered: count it, and write its line.

Done for each request by itself this costs more than a quarter of a classic request: it is a lot of code that is not
in the processor's caches by then. So in a running server it is done for all requests of one turn of the event loop
together, before the loop waits for anything new, and costs less than half. `python -m tests.benchmarks.http --rows
life` shows what is left.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import get_ident
from typing import Any, NamedTuple

import trio

from queue_actor.settings import Settings
from queue_actor.slow import Throttle
from web.callers import caller_of
from web.logs import LineHandler, begun, cut, line_handler
from web.metrics import RequestMeters
from web.replies import Facts, Reply
from web.requests import Request
from web.traceparent import traceparent_of

logger = logging.getLogger("web")

_TARGET_CHARACTERS_MAX = 200  # of a path that are logged


class Answered(NamedTuple):
    """A request that has been dealt with."""

    moment: float  # when, by the wall clock
    ended: float  # when, by a clock that never goes back
    seconds: float  # it took
    request: Request
    request_id: str
    reply: Reply | None  # None: nobody was answered
    facts: Facts


class AnsweredRequests(trio.abc.Instrument):
    """Counts requests and writes their lines, and another one for those that were slow."""

    def __init__(self, settings: Settings, meters: RequestMeters, *, tells_who: bool) -> None:
        self._slow_seconds = settings.slow_request_seconds
        self._meters = meters
        self._tells_who = tells_who
        self._slow = Throttle()
        self._waiting: list[Answered] = []
        self._together: tuple[LineHandler, trio.Nursery] | None = None  # None: each is dealt with at once

    def note(self, answered: Answered) -> None:
        """Take note of one request."""
        self._waiting.append(answered)
        if self._together is None:
            self._deal()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Deal with requests together while the block lasts, if `set_up_logging` alone has said where lines go."""
        handler = line_handler()
        if handler is None:
            yield
            return
        loop = get_ident()
        async with trio.open_nursery() as nursery:
            self._together = handler, nursery
            handler.before_others = lambda: self._deal() if get_ident() == loop else None
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
                handler.before_others = None
                self._deal()
                self._together = None

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - see Trio's
        """Deal with what the turn of the loop has brought."""
        if self._waiting and self._together is not None:
            try:
                self._deal()
            except Exception as bug:  # noqa: BLE001 - Trio would log it and go on without this instrument
                # It is about to wait, for who knows how long: this wakes it up.
                trio.lowlevel.current_trio_token().run_sync_soon(self._together[1].start_soon, _fail, bug)

    def _deal(self) -> None:
        waiting, self._waiting = iter(self._waiting), []
        lines: list[dict[str, Any]] = []
        tells = logger.isEnabledFor(logging.INFO)
        try:
            for answered in waiting:
                slow = self._count(answered)
                if tells and self._together is None:
                    logger.info("request", extra={"facts": self._told(answered, {})})
                elif tells:
                    line = self._told(answered, begun(answered.moment, "info", "request"))
                    cut(line)
                    lines.append(line)
                if slow and (held_back := self._slow.held_back(answered.ended)) is not None:
                    self._write(lines)
                    lines = []
                    facts = self._told(answered, {}) | {"held_back": held_back}
                    logger.warning("slow_request", extra={"facts": facts})
        finally:
            self._waiting[:0] = waiting  # what follows one that is a bug
            self._write(lines)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        if lines and self._together is not None:
            self._together[0].write(lines)

    def _count(self, answered: Answered) -> bool:
        """Count a request, and tell whether it was slow."""
        _, _, seconds, request, _, reply, facts = answered
        if reply is not None and reply.lasts:
            self._meters.note(request, reply.status_code, None, facts.get("code"))
            return False
        self._meters.note(request, None if reply is None else reply.status_code, seconds, facts.get("code"))
        return seconds - request.waited > self._slow_seconds

    def _told(self, answered: Answered, line: dict[str, Any]) -> dict[str, Any]:
        """A line that goes on with what is told of a request, in order."""
        _, _, seconds, request, request_id, reply, facts = answered
        line["request_id"] = request_id
        if b"traceparent" in request.fields:
            traceparent = traceparent_of(request.scope["headers"])
            if traceparent is not None:
                line["trace_id"] = traceparent.trace_id
        line["client"] = request.remote_addr
        if self._tells_who:
            line["who"] = caller_of(request).name
        line["method"] = request.method
        line["path"] = target_of(request)
        line["status"] = None if reply is None else reply.status_code
        line["milliseconds"] = round(seconds * 1000, 2)
        if request.waited and (reply is None or not reply.lasts):
            line["waited_milliseconds"] = round(request.waited * 1000, 2)
        if reply is not None and isinstance(reply.body, bytes):
            line["bytes"] = len(reply.body)
        line.update(facts)
        return line


def target_of(request: Request) -> str:
    """The path as it was sent, percent-encoded, without the query."""
    raw: bytes = request.scope["raw_path"]
    return raw[:_TARGET_CHARACTERS_MAX].decode("ascii", "backslashreplace")


async def _fail(bug: Exception) -> None:
    raise bug
