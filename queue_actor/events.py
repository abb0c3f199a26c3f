"""Events: what becomes of jobs, for those who look on.

The engine notes the changes of each batch here when they are stored. They are kept in one ring, which all readers
share: a reader is a place in it and nothing more. So the engine waits for nobody and keeps nothing for anybody, and who
is overtaken by the end of the ring is told how much he has missed.

While nobody reads, and nobody has for `LINGER_SECONDS`, nothing is kept, and a batch costs one comparison.

An event has no payload, result or error: the ring must not keep what the queue has forgotten.
"""

import re
import secrets
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Literal

import msgspec
import trio

from queue_actor.changes import Changes
from queue_actor.errors import InvalidCommand, TooManyReaders
from queue_actor.jobs import DeathReason, JobState, Now
from queue_actor.settings import Settings

LINGER_SECONDS: Final = 600.0
"""How long events are kept after the last reader has left: who was cut off can go on where he was."""

READ_EVENTS_MAX: Final = 500
"""Events that a reader is given at a time."""

LOOKED_AT_EVENTS_MAX: Final = 2_000
"""Events that are looked at for this, where not all of them are wanted."""

EPOCH_BYTES: Final = 4

GapReason = Literal["behind", "restart", "instance"]
"""`behind`: the ring no longer goes back so far. `restart`: the server was started anew, and its ring with it.
`instance`: it is another life of the queue, whose jobs are others."""

EVENT_ID: Final = r"\A([A-Za-z0-9_-]{1,64})\.([0-9a-f]{8})\.(0|[1-9][0-9]{0,18})\Z"
"""The instance of the queue, the ring, and the revision of the change."""

_ID = re.compile(EVENT_ID)


class Event(msgspec.Struct, gc=False):
    """One transition of one job, after it was stored."""

    revision: int
    at: float  # wall clock
    queue: str
    id: int
    type: str
    verb: str  # as of the change
    before: JobState | None  # None: the job is new
    after: JobState | None  # None: the job is forgotten
    attempt: int
    consumer: str | None
    reason: DeathReason | None
    told: bytes | None = None  # how it is written: made by the first who tells it, for all


class Gap(msgspec.Struct, frozen=True):
    """Changes that a reader cannot be told of any more."""

    reason: GapReason
    missed: int | None  # changes of all queues, at most; None: nobody knows


class Reader:
    """A place in the ring."""

    __slots__ = ("gap", "position", "revision")

    def __init__(self, position: int, revision: int, gap: Gap | None) -> None:
        self.position = position  # of the next event, in the count of all
        self.revision = revision  # of the last change that he has been told of, or did not want to be
        self.gap = gap  # that he has not been told of


class EventLog:
    """The ring, and those who read it."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self.closed = False  # the server is about to end
        self.readers = 0
        self._kept = settings.events_kept
        self._readers_max = settings.readers_max
        self._instance = instance
        self._epoch = secrets.token_hex(EPOCH_BYTES)
        self._began = 0  # the revision at which this life of the server began
        self._revision = 0  # of the last change that was stored
        self._floor = 0  # the last revision that the ring does not have any more
        self._ring: list[Event] = []
        self._base = 0  # the position of the first event that was put into this ring
        self._head = 0  # that of the next one
        self._until: float | None = -inf  # monotonic; from when on nothing is kept. None: from a while after now on
        self._news: trio.Event | None = None  # for those who have read all

    # --- the engine's side

    def begin(self, revision: int) -> None:
        """Count on from what a store has kept."""
        self._began = self._revision = self._floor = revision

    def note(self, changes: Changes, now: Now) -> None:
        """Keep what was stored just now; called with every batch."""
        if self._until is None:
            self._until = now.monotonic + LINGER_SECONDS
        if now.monotonic >= self._until:
            self._revision = self._floor = changes.revision
            if self._ring:
                self._ring, self._base = [], self._head
            return
        self._revision = changes.revision
        for change in changes.told:
            before, after = change.before, change.after
            job = after or before
            assert job is not None  # noqa: S101 - for the type checker: a change has one of them
            self._keep(
                Event(
                    change.revision,
                    now.wall,
                    job.queue,
                    job.id,
                    job.type,
                    change.verb,
                    None if before is None else before.state,
                    None if after is None else after.state,
                    job.attempts,
                    job.consumer,
                    job.reason,
                )
            )
        if changes.jobs or changes.forgotten:
            self._wake()

    def _keep(self, event: Event) -> None:
        if len(self._ring) < self._kept:
            self._ring.append(event)
        else:
            slot = (self._head - self._base) % self._kept
            self._floor = self._ring[slot].revision
            self._ring[slot] = event
        self._head += 1

    def close(self) -> None:
        """Let the readers know that the server is about to end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    # --- the readers' side

    def open(self, after: str | None = None) -> Reader:
        """Begin to read behind the event of this id, or, without one, with what happens from now on.

        Whoever opens must `leave`.

        Raises:
            InvalidCommand: No server gave this id.
            TooManyReaders: There are as many as `readers_max` allows.
        """
        if self.readers >= self._readers_max:
            raise TooManyReaders(f"{self._readers_max} readers follow the events, as many as readers_max allows")
        reader = Reader(self._head, self._revision, None) if after is None else self._resumed(after)
        self.readers += 1
        self._until = inf
        return reader

    def leave(self) -> None:
        """Read no more."""
        self.readers -= 1
        if not self.readers:
            self._until = None

    def id(self, revision: int) -> str:
        """The name of a place in the order of changes, for who wants to go on there."""
        return f"{self._instance}.{self._epoch}.{revision}"

    def _resumed(self, after: str) -> Reader:
        match = _ID.match(after)
        if match is None:
            raise InvalidCommand("this is no id of an event", field="Last-Event-ID")
        instance, epoch, revision = match[1], match[2], int(match[3])
        if instance != self._instance:
            return Reader(self._head, self._revision, Gap("instance", None))
        if epoch != self._epoch and revision != self._began:
            # What he was told may have been lost with the power, and its revisions been given again.
            missed = self._floor - revision if revision < self._began else None
            return Reader(self._tail, self._floor, Gap("restart", missed))
        if revision > self._revision:
            raise InvalidCommand("this is no id of an event", field="Last-Event-ID")
        if revision < self._floor:
            return Reader(self._tail, self._floor, Gap("behind", self._floor - revision))
        position = bisect_right(
            range(self._tail, self._head), revision, key=lambda position: self._at(position).revision
        )
        return Reader(self._tail + position, revision, None)

    @property
    def _tail(self) -> int:
        return self._head - len(self._ring)

    def _at(self, position: int) -> Event:
        return self._ring[(position - self._base) % self._kept]

    @property
    def end(self) -> int:
        """Behind all there is."""
        return self._head

    def read(self, reader: Reader, wants: Callable[[Event], bool], end: int | None = None) -> Sequence[Event]:
        """What comes next of what a reader wants, up to an `end` of before; a bounded part of it.

        What he has missed is his `gap` then.
        """
        tail = self._tail
        if reader.position < tail:
            missed = tail - reader.position
            if (gap := reader.gap) is None:
                reader.gap = Gap("behind", missed)
            else:  # which he has not been told of: it has grown, and began as it did
                reader.gap = Gap(gap.reason, None if gap.missed is None else gap.missed + missed)
            reader.position, reader.revision = tail, self._floor
        events: list[Event] = []
        end = min(self._head if end is None else end, reader.position + LOOKED_AT_EVENTS_MAX)
        while reader.position < end and len(events) < READ_EVENTS_MAX:
            event = self._at(reader.position)
            reader.position += 1
            reader.revision = event.revision
            if wants(event):
                events.append(event)
        return events

    def has_news(self, reader: Reader, end: int | None = None) -> bool:
        """Whether a reader has not read all there is, or was at an `end` of before."""
        return reader.position < (self._head if end is None else end)

    async def wait(self, reader: Reader) -> None:
        """Wait until there is something to read, or the server is about to end."""
        while not self.has_news(reader) and not self.closed:
            if self._news is None:
                self._news = trio.Event()
            await self._news.wait()
