"""What becomes of jobs, as a client follows it: `GET /v1/events`, without any I/O and without a clock.

    follow = Follow(...)
    while True:
        send follow.request(now), `take` each piece of its answer, hand out what `next` has until that is None
        when the answer ends or breaks, pause for pause_after(follow.ended() or the failure, now), and send it again

A stream that was cut goes on behind the last event that was handed out. Where the server cannot tell what was between,
it says so, and that is an event, too: a `Gap`. The place behind a gap is not taken before the gap has been told, so one
whose telling is cut off is told the next time.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from queue_actor.client_errors import ClientError, NotUnderstood, Refused, Unreachable, refusal
from queue_actor.client_exchange import Request
from queue_actor.client_repeats import Repeats
from queue_actor.client_requests import events
from queue_actor.jobs import DeathReason, JobState

decode = msgspec.json.decode

HEARTBEAT_SECONDS: Final = 15.0
"""The server is never silent for longer; then, and the client's time-out beyond, the connection is dead."""

RETRY_SECONDS_MAX: Final = 60.0
"""Longest pause after a cut, whatever the server asks for."""

EVENT_BYTES_MAX: Final = 1_048_576
"""Of one event; the longest that a server tells is a tenth of it."""

EVENT_STREAM: Final = "text/event-stream"

Shape = Literal["jobs", "queues"]


class Opened(msgspec.Struct, frozen=True):
    """The first event: from here on nothing is left out unless a `Gap` says so.

    Attributes:
        resumed: Whether it goes on behind `after`, with nothing left out.
    """

    resumed: bool


class JobEvent(msgspec.Struct, frozen=True, rename={"before": "from", "after": "to"}):
    """A job has gone from one state to another, or its lease was extended.

    Attributes:
        id: Of the job, in its queue.
        verb: What moved it: `enqueue`, `dequeue`, `conclude`, `fail`, …
        before: Its state before; None: the job is new.
        after: Its state since; None: the job is forgotten.
        at: When, on the server's clock.
    """

    queue: str
    id: int
    type: str
    verb: str
    before: JobState | None
    after: JobState | None
    attempt: int
    consumer: str | None
    reason: DeathReason | None
    at: datetime


class QueuesEvent(msgspec.Struct, frozen=True):
    """Jobs of these queues have moved."""

    queues: tuple[str, ...]


class Gap(msgspec.Struct, frozen=True):
    """There were changes of which nobody can tell any more: load what you show once more.

    Attributes:
        reason: `behind`: they are no longer kept. `restart`: the server was started anew. `instance`: this is another
            life of the queue, with other jobs.
        missed: How many of all queues there were at most; None: nobody knows.
    """

    reason: str
    missed: int | None


Event = Opened | JobEvent | QueuesEvent | Gap


class _End(msgspec.Struct, frozen=True):
    reason: str


class Follow:
    """What one who follows has been told, and how he goes on.

    Attributes:
        last_id: Behind which event he goes on, as the server names it; None: with what happens from now on.
        over: Whether the time that he wanted to wait is up, so that nothing more comes.
    """

    def __init__(
        self,
        query: Mapping[str, Any],
        *,
        after: str | None,
        wait_seconds: float | None,
        repeat_seconds: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is asked for yet."""
        self.last_id = after
        self.over = False
        self._query = query
        self._wait_seconds = wait_seconds
        self._ends_at: float | None = None
        self._repeats = Repeats(repeat_seconds, repeatable=True, draw=draw)
        self._draw = draw
        self._told: deque[tuple[Event | None, str | None]] = deque()  # and the place behind each
        self._retry_seconds = 0.0
        self._begun = False  # `Opened` has been told
        self._begin()

    def _begin(self) -> None:
        self._opened = False
        self._drains: Refused | None = None
        self._behind_gap: str | None = None
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def request(self, now: float) -> Request[None]:
        """What to send; what is taken from now on is its answer."""
        self._begin()
        wait_seconds = None
        if self._wait_seconds is not None:
            if self._ends_at is None:
                self._ends_at = now + self._wait_seconds
            wait_seconds = max(0.0, self._ends_at - now)
        return events(self._query, after=self.last_id, wait_seconds=wait_seconds, silent_seconds=HEARTBEAT_SECONDS)

    def take(self, piece: bytes) -> None:
        """Some of the answer has come.

        Raises:
            NotUnderstood: It is no stream of events.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take_line(line.removesuffix(b"\r"))
        if len(self._rest) > EVENT_BYTES_MAX:
            raise NotUnderstood(f"an event of the stream is longer than {EVENT_BYTES_MAX} bytes")

    def _take_line(self, line: bytes) -> None:
        if line:
            name, _, value = line.partition(b":")
            self._fields[name] = value.removeprefix(b" ")  # a comment is a field without a name, which nobody looks at
            return
        fields, self._fields = self._fields, {}
        if (retry := fields.get(b"retry", b"")).isdigit():
            self._retry_seconds = min(int(retry) / 1_000, RETRY_SECONDS_MAX)
        if b"event" in fields and b"data" in fields:
            try:
                id_ = fields[b"id"].decode("ascii") if b"id" in fields else None
                self._take_event(fields[b"event"], fields[b"data"], id_)
            except ValueError as error:
                raise NotUnderstood(f"an event of the stream is not as expected: {error}") from error

    def _take_event(self, name: bytes, data: bytes, id_: str | None) -> None:
        match name:
            case b"open":
                self._open(decode(data, type=Opened), id_)
            case b"job":
                self._told.append((decode(data, type=JobEvent), id_))
            case b"queues":
                self._told.append((decode(data, type=QueuesEvent), id_))
            case b"gap":
                self._told.append((decode(data, type=Gap), self._behind_gap))
                self._behind_gap = None
            case b"end":
                self._end(decode(data, type=_End).reason, id_)

    def _open(self, opened: Opened, id_: str | None) -> None:
        self._opened = True
        self._repeats.reset()
        if self.last_id is not None and not opened.resumed:
            id_, self._behind_gap = None, id_  # for the gap, which is told next
        self._told.append((None if self._begun else opened, id_))
        self._begun = True

    def _end(self, reason: str, id_: str | None) -> None:
        self._told.append((None, id_))
        if reason == "draining":
            self._drains = refusal("draining", "the server is about to end", status=503)
        self.over = reason == "waited" and self._wait_seconds is not None

    def next(self) -> Event | None:
        """What comes next of what was told; None: more has to be read."""
        while self._told:
            event, id_ = self._told.popleft()
            self.last_id = id_ or self.last_id
            if event is not None:
                return event
        return None

    def ended(self) -> ClientError:
        """What it means that the answer has come to its end, unless it is `over`."""
        return self._drains or Unreachable("the stream of events was cut off")

    def pause_after(self, error: ClientError, now: float) -> float:
        """How long to wait before it is sent again, in seconds.

        A stream that was open is not asked for again sooner than the server wants it to be.

        Raises:
            ClientError: It is not.
        """
        pause = self._repeats.pause_after(error, now)
        if pause is None:
            raise error
        return max(pause, self._retry_seconds * (1 + self._draw()) / 2) if self._opened else pause


def follow(
    *,
    queue: str | None,
    type_: str | None,
    state: str | Sequence[str] | None,
    shape: Shape,
    after: str | None,
    wait_seconds: float | None,
    repeat_seconds: float,
) -> Follow:
    """Follow these jobs, or the queues that they are of."""
    states = state if state is None or isinstance(state, str) else ",".join(state)
    query = {"queue": queue, "type": type_, "state": states, "shape": None if shape == "jobs" else shape}
    return Follow(query, after=after, wait_seconds=wait_seconds, repeat_seconds=repeat_seconds)
