"""Calls that come at the same time share a request. No I/O and no clock: both clients drive it.

A `Lane` gathers the calls of one verb on one queue, each an `Entry` with its body encoded, and makes requests of them,
one at a time:

    while lane.has_work:
        request = lane.next_request()
        # send it once, then
        lane.answered(results)  # or
        pause = lane.failed(error, now)

What comes while a request is under way goes with the next one. A call is answered as if it had been alone: a refusal of
one job is that of its own caller, and where a whole request is refused for what one job is, or since there is no room
for all, it is taken apart. A request that may have been carried out is repeated as it was, under its key, until that is
known. Each call is repeated for so many seconds after the first failure that held it up, and then has its last one.
"""

import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from queue_actor.client_answers import Results
from queue_actor.client_errors import ClientError, Closed, NotUnderstood, Refused, Unreachable
from queue_actor.client_exchange import Request
from queue_actor.client_repeats import Pauses, may_repeat

T = TypeVar("T")

JOBS_MAX = 1_000
"""Jobs in one request, as the server's `batch_jobs_max` has it unless it is set; a lane learns of a smaller one."""

BYTES_MAX = 512 * 1_024
"""Of the jobs in one request, unless one alone has more: half the server's `request_bytes_max`."""

GATHER_SECONDS = 0.002
"""How long a request waits at most for calls that are expected: as many as there were the last time."""

LANES_MAX = 1_000
"""Lanes that a client keeps."""

NO_ROOM = frozenset({"queue_full", "memory_full"})
"""There is no room for all, and perhaps there is for some."""

TELLS_OF_ONE = frozenset({"invalid", "malformed", "too_large"})
"""Something is wrong with one of them, or there are too many."""

_PLACE = re.compile(r"\Ajobs\[(?P<n>\d+)\]\.?")


class Wakes(Protocol):
    """An event of threads, or of tasks."""

    def set(self) -> object:
        """Wake who waits for it."""
        ...


class Entry(Generic[T]):
    """One call."""

    def __init__(self, body: bytes, woken: Wakes) -> None:
        """Takes its job, encoded, and what to wake it by once it has its outcome."""
        self.body = body
        self.woken = woken
        self.outcome: T | ClientError | None = None
        self.ends_at: float | None = None  # when it is repeated no more; known from its first failure on

    def end(self, outcome: T | ClientError) -> None:
        """Give it its outcome. One that has expired keeps what it was told."""
        if self.outcome is None:
            self.outcome = outcome
            self.woken.set()

    def value(self) -> T:
        """The outcome of one that has ended.

        Raises:
            ClientError: That is its outcome.
        """
        if isinstance(self.outcome, ClientError):
            raise self.outcome
        return cast("T", self.outcome)


class Lane(Generic[T]):
    """The calls of one verb on one queue, in the order in which they came."""

    def __init__(
        self,
        make: Callable[[Sequence[bytes]], Request[Results[T]]],
        *,
        repeat_seconds: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Takes what makes a request of bodies, and for how long to repeat after a failure."""
        self._make = make
        self._repeat_seconds = repeat_seconds
        self._pauses = Pauses(draw)
        self._waiting: deque[Entry[T]] = deque()
        self._parts: deque[list[Entry[T]]] = deque()  # of a request that was taken apart: to be sent each for itself
        self._sent: list[Entry[T]] = []
        self._request: Request[Results[T]] | None = None  # under way, or to be repeated as it is
        self._doubtful = False  # it may have been carried out, and so is repeated as it is whatever else it is told
        self._jobs_max = JOBS_MAX
        self._bytes_max = BYTES_MAX
        self.expected = 1  # calls that are likely to come soon, those that wait included

    def add(self, entry: Entry[T]) -> None:
        """A call has come."""
        self._waiting.append(entry)

    def discard(self, entry: Entry[T]) -> None:
        """A call is given up, if it has no outcome yet. If it is under way, so it stays."""
        if entry.outcome is None:
            entry.end(Closed("the call was given up"))
            self._drop_ended()

    def _drop_ended(self) -> None:
        self._waiting = deque(_lasting(self._waiting))
        self._parts = deque(part for part in map(_lasting, self._parts) if part)
        if not _lasting(self._sent):
            self._settle()

    @property
    def waiting(self) -> int:
        """Calls that no request has yet."""
        return len(self._waiting)

    @property
    def gathered(self) -> bool:
        """Whether nothing more has to be waited for: all that are expected are there, or something is to be sent."""
        return self._request is not None or bool(self._parts) or self.waiting >= min(self.expected, self._jobs_max)

    @property
    def has_work(self) -> bool:
        """Whether there is something to send."""
        return self._request is not None or bool(self._parts) or bool(self._waiting)

    def first(self) -> Entry[T] | None:
        """A call without an outcome, the first in line; None if there is none."""
        return next(iter(_lasting(self._all())), None)

    def _all(self) -> list[Entry[T]]:
        return [*self._sent, *(entry for part in self._parts for entry in part), *self._waiting]

    def next_request(self) -> Request[Results[T]]:
        """What to send now; to be asked only if there is work."""
        if self._request is None:
            self._sent = self._parts.popleft() if self._parts else self._take()
            self._request = self._make([entry.body for entry in self._sent])
        return self._request

    def _take(self) -> list[Entry[T]]:
        taken = [self._waiting.popleft()]
        size = len(taken[0].body)
        while self._waiting and len(taken) < self._jobs_max:
            size += len(self._waiting[0].body)
            if size > self._bytes_max:
                break
            taken.append(self._waiting.popleft())
        return taken

    def answered(self, results: Results[T]) -> None:
        """The request was carried out: each call has what is said of its job."""
        sent = self._settle()
        if len(results.jobs) != len(sent):
            told = NotUnderstood(f"{len(sent)} jobs were sent, and {len(results.jobs)} answered")
            for entry in sent:
                entry.end(told.anew())
            return
        self._pauses.reset()
        self.expected = len(sent) + self.waiting
        for entry, result in zip(sent, results.jobs, strict=True):
            entry.end(result)

    def _settle(self) -> list[Entry[T]]:
        sent, self._sent, self._request, self._doubtful = self._sent, [], None, False
        return sent

    def failed(self, error: ClientError, now: float) -> float:
        """The request was refused, or not answered: how long to pause before the next one, in seconds."""
        if len(self._sent) > 1 and isinstance(error, Refused) and self._take_apart(error):
            return 0.0
        if not may_repeat(error, repeatable=True):
            for entry in self._settle():
                entry.end(_of_one(error))
            return 0.0
        pause = self._pauses.next(error)
        for entry in self._all():  # those that wait are held up by the same failure
            entry.ends_at = now + self._repeat_seconds if entry.ends_at is None else entry.ends_at
        for entry in self._sent:
            if now + pause > (entry.ends_at or 0.0):
                entry.end(_of_one(error))
        lasting = _lasting(self._sent)
        self._doubtful = self._doubtful or _may_be_done(error)
        if not lasting:
            self._settle()
            return 0.0  # others have had no failure of their own yet
        if not self._doubtful:
            # Nothing was done, so they may be sent in another company.
            self._waiting.extendleft(reversed(lasting))
            self._settle()
        return pause

    def _take_apart(self, refused: Refused) -> bool:
        """Whether the request was taken apart, so that nobody is refused for a neighbour."""
        if refused.code not in NO_ROOM | TELLS_OF_ONE:
            return False
        sent = self._settle()
        place = _PLACE.match(refused.field or "")
        if place and int(place["n"]) < len(sent):
            sent.pop(int(place["n"])).end(_of_one(refused))
            self._parts.appendleft(sent)
            return True
        half = (len(sent) + 1) // 2
        if refused.code in NO_ROOM:
            self._parts.appendleft(sent[:half])
            self._waiting.extendleft(reversed(sent[half:]))
            return True
        if refused.field == "jobs":
            self._jobs_max = half
        elif refused.code == "too_large":
            self._bytes_max = sum(len(entry.body) for entry in sent) // 2
        self._parts.extendleft([sent[half:], sent[:half]])
        return True

    def close(self, error: ClientError) -> None:
        """Nothing will be sent any more: all calls fail."""
        for entry in self._all():
            entry.end(error.anew())
        self._settle()
        self._parts.clear()
        self._waiting.clear()


def _lasting(entries: Iterable[Entry[T]]) -> list[Entry[T]]:
    """Those that have no outcome yet."""
    return [entry for entry in entries if entry.outcome is None]


def _may_be_done(error: ClientError) -> bool:
    if isinstance(error, Refused):
        return error.retryable == "repeat"
    return isinstance(error, Unreachable) and error.may_be_done


def _of_one(error: ClientError) -> Any:
    """The same failure for one caller, who knows of no list."""
    told = error.anew()
    if isinstance(told, Refused) and told.field:
        told.field = _PLACE.sub("", told.field)
    return told
