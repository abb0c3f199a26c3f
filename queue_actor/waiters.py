"""Parked requests: dequeues that wait in line for a job, and readers who wait for a job's end.

The oldest dequeue is served first, and who has left is never leased to.
"""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any, Final

from msgspec.structs import replace

from queue_actor.commands import Dequeue, Dequeued, IdempotencyKey, R, ReadJob
from queue_actor.engine import Request
from queue_actor.errors import HolderFull, KeyReused, TooManyWaiters
from queue_actor.figures import EngineFigures
from queue_actor.jobs import FINISHED, Change, Job, Now
from queue_actor.state_machine import StateMachine

PARKABLE: Final = (Dequeue, ReadJob)
"""The commands that may have to wait for their reply."""


class _Parked:
    """A dequeue in its lines. Its number is its place in all of them."""

    __slots__ = ("command", "number", "request")

    def __init__(self, number: int, request: Request[Dequeued], command: Dequeue) -> None:
        self.number = number
        self.request = request
        self.command = command

    @property
    def names(self) -> tuple[str, ...]:
        """The lines it stands in: names of queues, or a prefix followed by `*`."""
        queue = self.command.queue
        return (queue,) if isinstance(queue, str) else tuple(dict.fromkeys(queue))


class Waiters:
    """All parked requests of an engine."""

    def __init__(self, waiters_max: int) -> None:
        self._waiters_max = waiters_max
        self._numbers = 0
        self._parked: dict[Request[Dequeued], _Parked] = {}
        self._lines: dict[str, dict[int, _Parked]] = {}
        self._prefixes: set[str] = set()  # the names of lines that end with `*`
        self._keyed: dict[tuple[str, str], _Parked] = {}
        self._readers: dict[tuple[str, int], dict[Request[Job], None]] = {}
        self._readers_count = 0
        self._news: dict[Request[Job], Job] = {}  # versions that readers may be told of when they are stored
        self.parked = 0  # since the start
        self.served = 0  # of these: got what they waited for
        self.timed_out = 0  # of these: have waited in vain

    def __len__(self) -> int:
        return len(self._parked) + self._readers_count

    def count_in(self, figures: EngineFigures) -> EngineFigures:
        """The figures with those of the waiters."""
        return replace(figures, parked=self.parked, served=self.served, timed_out=self.timed_out)

    def _check_room(self) -> None:
        if len(self) >= self._waiters_max:
            raise TooManyWaiters(f"{self._waiters_max} requests are parked, as many as waiters_max allows")

    def carry_out(self, machine: StateMachine, request: Request[R], now: Now, *, may_park: bool) -> R | None:
        """Apply the command of a request. None: it has to wait for its reply, and is parked.

        Raises:
            QueueError: The refusal.
        """
        command = request.command
        if self._keyed and isinstance(command, Dequeue):
            self._check_key(command.key)
        reply = machine.apply(command, now)
        if isinstance(command, PARKABLE) and command.wait_seconds > 0 and may_park:
            if isinstance(reply, Dequeued) and not reply.leases and not reply.repeated:
                self._park(request, command)  # type: ignore[arg-type] # R is Dequeued here
                return None
            if isinstance(reply, Job) and reply.state not in FINISHED:
                self._park_reader(request, command, reply)  # type: ignore[arg-type] # R is Job here
                return None
        return reply

    # --- dequeues

    def _check_key(self, key: IdempotencyKey | None) -> None:
        """Refuse a dequeue under the key of another one that waits: only one of them could be remembered.

        Raises:
            KeyReused: It has another body.
        """
        name = _name(key)
        former = None if name is None else self._keyed.get(name)
        if former is not None and former.command.key != key:
            raise KeyReused("the idempotency key was used with another body", field="Idempotency-Key")

    def _park(self, request: Request[Dequeued], command: Dequeue) -> None:
        """Put a dequeue at the end of its lines, or in the place of the one it repeats, which gets an empty answer.

        Raises:
            TooManyWaiters: As many wait as `waiters_max` allows.
        """
        name = _name(command.key)
        former = None if name is None else self._keyed.get(name)
        if former is not None:
            displaced, former.request = former.request, request
            del self._parked[displaced]
            self._parked[request] = former
            displaced.answer(Dequeued())
        else:
            self._check_room()
            self._numbers += 1
            parked = self._parked[request] = _Parked(self._numbers, request, command)
            for line in parked.names:
                self._lines.setdefault(line, {})[parked.number] = parked
                if line.endswith("*"):
                    self._prefixes.add(line)
            if name is not None:
                self._keyed[name] = parked
        self.parked += 1
        request.park(Dequeued(), command.wait_seconds)

    def serve(
        self, machine: StateMachine, queues: Iterable[str], now: Now
    ) -> Iterator[tuple[Request[Dequeued], Dequeued | HolderFull]]:
        """Lease the ready jobs of some queues to those who wait for them, oldest first, while there are any.

        Whose turn comes while its holder has all the jobs it may have is refused, and the next one's turn comes.
        """
        turns = [
            (parked.number, n, queue) for n, queue in enumerate(queues) if (parked := self._oldest(queue)) is not None
        ]
        heapify(turns)
        while turns:
            number, n, queue = turns[0]
            parked = self._oldest(queue)
            if parked is None:
                heappop(turns)
                continue
            if parked.number != number:
                # Whoever stood first has been served or has left. Who is first now may have to let others go first: a
                # dequeue of several queues can take a job of any of them.
                heapreplace(turns, (parked.number, n, queue))
                continue
            if parked.request.abandoned:
                self.discard(parked.request)  # his task has not run yet, to leave the line
                continue
            reply: Dequeued | HolderFull
            try:
                reply = machine.apply(parked.command, now)
                if not reply.leases and not reply.repeated:
                    heappop(turns)
                    continue
            except HolderFull as refusal:
                if not machine.offers(queue):
                    heappop(turns)  # it is nobody's turn
                    continue
                reply = refusal
            self.discard(parked.request)
            parked.request.decided = True
            self.served += 1
            yield parked.request, reply

    def _oldest(self, queue: str) -> _Parked | None:
        """Who has waited longest for a job of this queue, among those who named it or a prefix of it."""
        heads = (next(iter(line.values())) for line in self._lines_of(queue))
        return min(heads, key=lambda parked: parked.number, default=None)

    def waiting(self, queue: str) -> int:
        """How many would take a job of this queue."""
        return sum(len(line) for line in self._lines_of(queue))

    def _lines_of(self, queue: str) -> Iterator[dict[int, _Parked]]:
        """The lines in which this queue's jobs are waited for: its own, and those of prefixes of its name."""
        if queue in self._lines:
            yield self._lines[queue]
        for name in self._prefixes:
            if queue.startswith(name[:-1]):
                yield self._lines[name]

    # --- readers

    def _park_reader(self, request: Request[Job], command: ReadJob, job: Job) -> None:
        """Let a reader wait for the end of the job he has read.

        Raises:
            TooManyWaiters: As many wait as `waiters_max` allows.
        """
        self._check_room()
        self.parked += 1
        self._news[request] = job
        self._readers.setdefault((command.queue, command.id), {})[request] = None
        self._readers_count += 1

    def tell(self, changes: Sequence[Change]) -> Iterator[tuple[Request[Job], Job]]:
        """Let readers know of changes: those whose job has ended are to be answered with its last version."""
        if not self._readers:
            return
        for change in changes:
            job = change.after or change.before
            if job is None or (job.queue, job.id) not in self._readers:
                continue
            for request in list(self._readers[job.queue, job.id]):
                known = self._news.get(request, request.unserved)
                if known is not None and change.revision <= known.revision:
                    continue  # it was made in the same batch, before he read the job
                self._news[request] = job
                if job.state in FINISHED or change.after is None:
                    self.discard(request)
                    request.decided = True
                    self.served += 1
                    yield request, job

    def stored(self) -> None:
        """What the last batch changed is stored: from here on it is what a reader gets whose wait runs out.

        The wait of one who came with that batch begins here, so that it cannot end before there is an answer for him.
        """
        for request, job in self._news.items():
            if request.unserved is None:
                request.park(job, request.command.wait_seconds)  # type: ignore[attr-defined] # it is a ReadJob
            else:
                request.unserved = job
        self._news.clear()

    # --- both

    def discard(self, request: Request[Any]) -> None:
        """Forget a request, if it is still parked."""
        parked = self._parked.pop(request, None)
        if parked is not None:
            for name in parked.names:
                line = self._lines[name]
                del line[parked.number]
                if not line:
                    del self._lines[name]
                    self._prefixes.discard(name)
            key = _name(parked.command.key)
            if key is not None:
                del self._keyed[key]
        elif isinstance(request.command, ReadJob):
            readers = self._readers.get((request.command.queue, request.command.id), {})
            if request in readers:
                del readers[request]
                self._news.pop(request, None)
                self._readers_count -= 1
                if not readers:
                    del self._readers[request.command.queue, request.command.id]

    def dismiss(self) -> list[Request[Any]]:
        """Forget all; the caller answers them with what they were to get if nothing happened, `unserved`.

        Where that tells of the batch in hand it is decided, and the answer has to wait until the batch is stored.
        """
        dismissed: list[Request[Any]] = [
            *self._parked,
            *(request for line in self._readers.values() for request in line),
        ]
        for request in dismissed:
            if request in self._news:
                request.unserved, request.decided = self._news[request], True
            self.discard(request)
        return dismissed


def _name(key: IdempotencyKey | None) -> tuple[str, str] | None:
    return None if key is None else (key.scope, key.key)
