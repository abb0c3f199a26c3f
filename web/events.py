"""`GET /v1/events`: what becomes of jobs, as server-sent events, told after it is stored.

A reader is a place in the ring of the engine's `EventLog`. Nothing is kept for it: what is written next is read there
when the client has taken what was written before, at most `READ_EVENTS_MAX` events each `PACE_SECONDS`. A client
that reads slowly falls behind the ring and is told so; one that reads nothing is dropped by its connection.
"""

from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Any, Final, Literal

import msgspec
import trio
from quart import Blueprint
from quart.blueprints import BlueprintSetupState

from queue_actor.access import Scope, covers
from queue_actor.engine import Engine
from queue_actor.errors import Draining, Starting
from queue_actor.events import Event, EventLog
from queue_actor.jobs import DeathReason, JobState
from queue_actor.settings import Settings
from web.callers import Caller, caller_of
from web.exchanges import close_after_answer
from web.replies import Reply
from web.requests import asked
from web.schemas import filter_of_query, one_of, queue_name, refuse_query, wait_seconds
from web.views import Timestamp, timestamp

PACE_SECONDS: Final = 0.1
"""Between two pieces of one stream: what happens meanwhile is told together."""

HEARTBEAT_SECONDS: Final = 15.0
"""After which a stream that has nothing to tell says so, for proxies that close what is silent."""

RETRY_MILLISECONDS: Final = 1_000
"""After which a browser that was cut off comes again."""

SEEN_QUEUES_MAX: Final = 10_000
"""Queues of which a stream remembers whether they are wanted."""

Shape = Literal["jobs", "queues"]

_encode = msgspec.json.encode


class EventView(msgspec.Struct, frozen=True, rename={"before": "from", "after": "to"}):
    """The data of an event `job`: one transition."""

    queue: str
    id: int
    type: str
    verb: str
    before: JobState | None
    after: JobState | None
    attempt: int
    consumer: str | None
    reason: DeathReason | None
    at: Timestamp


def event_routes(engine: Engine, settings: Settings) -> Blueprint:
    """`/v1/events`."""
    routes = Blueprint("events", __name__)

    @routes.get("/v1/events")
    async def follow() -> Reply:
        """What becomes of jobs, as it happens."""
        request = asked()
        refuse_query(request, "queue", "type", "state", "shape", "wait_seconds")
        query, caller = request.args, caller_of(request)
        names = _named(query["queue"], caller) if "queue" in query else caller.patterns
        wanted = filter_of_query(query)
        shape = one_of(query.get("shape"), ("jobs", "queues"), "shape")
        wait = wait_seconds(query["wait_seconds"], settings, "wait_seconds") if "wait_seconds" in query else inf
        if not engine.ready.is_set():
            raise Starting("the server reads its jobs from the disk; events begin when it has them all")
        if engine.events.closed:
            raise Draining("the server is about to end")
        is_wanted = wants(names, wanted.type, wanted.states)
        after = request.field(b"last-event-id")
        stream = Stream(engine.events, caller, is_wanted, wait=wait, after=after)
        close_after_answer(request, stream.aclose)
        answer = Reply(
            stream.pieces(by_queue=shape == "queues"),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            content_type="text/event-stream",
        )
        answer.timeout = None
        answer.facts = stream.facts
        return answer

    @routes.record
    def without_head(state: BlueprintSetupState) -> None:
        # Werkzeug takes HEAD wherever it takes GET, and a stream without a body would never end.
        for rule in state.app.url_map.iter_rules(f"{routes.name}.follow"):
            (rule.methods or set()).discard("HEAD")

    return routes


def _named(text: str, caller: Caller) -> tuple[str, ...]:
    """The queues that a request names: one, or those of a prefix.

    Raises:
        Problem: `invalid`, or `forbidden`.
    """
    if text != "*":
        queue_name(text.removesuffix("*"))
    caller.require(Scope.READ, text, field="queue")
    return (text,)


def wants(names: tuple[str, ...] | None, type_: str | None, states: frozenset[JobState]) -> Callable[[Event], bool]:
    """What tells the events that a reader wants: of these queues, of this type, that led to one of these states."""
    seen: dict[str, bool] = {}

    def is_wanted(event: Event) -> bool:
        if (type_ is not None and event.type != type_) or (states and event.after not in states):
            return False
        if names is None:
            return True
        known = seen.get(event.queue)
        if known is None:
            if len(seen) >= SEEN_QUEUES_MAX:
                seen.clear()
            known = seen[event.queue] = covers(names, event.queue)
        return known

    return is_wanted


def written(event: str, data: Any, *, id_: str | None = None) -> bytes:
    """An event as the stream has it."""
    name = b"" if id_ is None else f"id: {id_}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (name, event.encode(), _encode(data))


class Stream:
    """What one reader is told."""

    def __init__(
        self, log: EventLog, caller: Caller, is_wanted: Callable[[Event], bool], *, wait: float, after: str | None
    ) -> None:
        """Begin to read; whoever does must `aclose`.

        Raises:
            QueueError: The refusal.
        """
        self._log = log
        self._caller = caller
        self._is_wanted = is_wanted
        self._reader = log.open(after)
        self._resumed = after is not None and self._reader.gap is None
        self._until = trio.current_time() + wait
        self._beat_at = 0.0  # when it has been silent for too long
        self._over: str | None = None  # why it is to end
        self._end: int | None = None  # where; None: not before all there is has been told
        # What the line of the request tells when the stream has ended.
        self.facts: dict[str, Any] = {"events": 0, "missed": 0}

    async def aclose(self) -> None:
        """Read no more."""
        self._log.leave()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def pieces(self, *, by_queue: bool) -> AsyncIterator[bytes]:
        """The stream; it ends when the server does, when the token does, or when its time is up."""
        take = self._take_queues if by_queue else self._take_jobs
        reader, id_ = self._reader, self._log.id(self._reader.revision)
        yield f"retry: {RETRY_MILLISECONDS}\n".encode() + written("open", {"resumed": self._resumed}, id_=id_)
        self._beat_at = trio.current_time() + HEARTBEAT_SECONDS
        pace = 0.0
        while True:
            piece = take()
            if (gap := reader.gap) is not None:
                reader.gap = None
                self.facts["missed"] += gap.missed or 0
                piece = written("gap", gap) + piece
            if not piece and trio.current_time() >= self._beat_at:
                piece = b": nothing new\n\n"
            if piece:
                yield piece
                self._beat_at = trio.current_time() + HEARTBEAT_SECONDS
            if self._over is None:
                await self._wait(pace)
                pace = PACE_SECONDS
            elif not self._log.has_news(reader, self._end):
                yield written("end", {"reason": self._over}, id_=self._log.id(reader.revision))
                return

    async def _wait(self, pace: float) -> None:
        """Wait until there is something to tell, or nothing has been for long, or the stream is to end."""
        with trio.move_on_at(min(self._until, self._beat_at)), self._caller.while_valid() as valid:
            await trio.sleep(pace)
            await self._log.wait(self._reader)
        if valid.cancelled_caught:
            self._over = "unauthorized"
        elif self._log.closed:
            self._over = "draining"
            return  # the drain comes to its end, and what it brings on its way is told
        elif trio.current_time() >= self._until:
            self._over = "waited"
        else:
            return
        self._end = self._log.end  # where much happens there is always more

    def _take_jobs(self) -> bytes:
        events = self._log.read(self._reader, self._is_wanted, self._end)
        self.facts["events"] += len(events)
        return b"".join([event.told or self._tell(event) for event in events])

    def _tell(self, event: Event) -> bytes:
        view = EventView(
            event.queue,
            event.id,
            event.type,
            event.verb,
            event.before,
            event.after,
            event.attempt,
            event.consumer,
            event.reason,
            timestamp(event.at),
        )
        event.told = written("job", view, id_=self._log.id(event.revision))
        return event.told

    def _take_queues(self) -> bytes:
        """Which queues have moved, and no more than that."""
        events = self._log.read(self._reader, self._is_wanted, self._end)
        if not events:
            return b""
        self.facts["events"] += len(events)
        names = sorted({event.queue for event in events})
        return written("queues", {"queues": names}, id_=self._log.id(self._reader.revision))
