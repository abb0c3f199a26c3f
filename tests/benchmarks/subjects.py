"""What `stalls` compares: this queue behind its actor, and the original design behind a `trio.Lock`, asked alike."""

from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from msgspec.structs import replace

from queue_actor.actor import ActorEngine
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    JobFilter,
    Lease,
    NewJob,
    Search,
    SetPolicy,
)
from queue_actor.engine import execute_in_slices, system_clock
from queue_actor.jobs import JobState, Now, QueuePolicy
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.benchmarks import original

PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720}'
LEASE_SECONDS = 300.0
LONG_SECONDS = 43_200.0
RETENTION_SECONDS = 3_600.0
STOCK = 1_000
"""Jobs that the others have before they begin, so that none of them finds nothing."""

REAL_JOBS = 100_000
"""Jobs at the head of a hollow array that are there; nobody gets as far as to the others."""

SETTINGS = Settings(
    inbox_requests_max=100_000,
    queued_jobs_max=100_000_000,
    retention_jobs=100_000_000,
    dead_retention_jobs=100_000_000,
    memory_bytes_max=2**40,
    retention_seconds=RETENTION_SECONDS,
    slow_batch_seconds=3_600,
)


class Subject(Protocol):
    """A queue with many jobs in `bulk`, and others who go about their work in `others`."""

    async def other(self, number: int) -> None:
        """One command of somebody who has nothing to do with it: by turns enqueue, dequeue, conclude."""

    async def fill(self, jobs: int) -> None:
        """Enqueue so many."""

    async def lease(self, *, dying: bool = False) -> None:
        """Lease all of them; with `dying` the next time they go stale they are dead."""

    async def work_off(self) -> None:
        """Lease and conclude all of them."""

    def hollow(self, slots: int, head: int) -> None:
        """Put in the place of `others` a queue with a full array of so many slots, of which `head` are empty.

        Only the jobs at its head are there, or 10^7 of them would take minutes and ten gigabytes. What is done to the
        array takes as long.
        """

    async def stale(self) -> None:
        """All leases end at once; return when the jobs are back, or dead."""

    async def list_all(self) -> None:
        """All jobs are listed."""

    async def search(self) -> None:
        """A job is looked for that is not there."""

    async def redrive(self) -> None:
        """All dead jobs are queued again."""

    async def forget(self) -> None:
        """The retention of all concluded jobs ends at once; return when they are gone."""

    async def purge(self) -> None:
        """All waiting jobs are forgotten."""


class MovableClock:
    """The system's clocks, which can be moved on."""

    def __init__(self) -> None:
        self.shift_seconds = 0.0

    def __call__(self) -> Now:
        now = system_clock()
        return Now(now.monotonic + self.shift_seconds, now.wall + self.shift_seconds)


class Ours:
    """The actor."""

    def __init__(self, engine: ActorEngine, clock: MovableClock) -> None:
        self._engine = engine
        self._machine = engine._machine
        self._clock = clock
        self._held: deque[Lease] = deque()

    async def stock(self) -> None:
        """See to it that no other finds nothing."""
        for _ in range(STOCK):
            await self.other(0)
        for _ in range(STOCK // 4):
            await self.other(1)

    async def other(self, number: int) -> None:
        """See `Subject`."""
        kind = number % 3
        if kind == 1:
            reply = await self._engine.execute(Dequeue("others", lease_seconds=LONG_SECONDS))
            self._held += reply.leases
        elif kind == 2 and self._held:
            lease = self._held.popleft()
            await self._engine.execute(Conclude([Claim("others", lease.job.id, lease.token)]))
        else:
            await self._engine.execute(Enqueue("others", [NewJob("benchmark", PAYLOAD)]))

    async def fill(self, jobs: int) -> None:
        """See `Subject`."""
        for first in range(0, jobs, 1_000):
            await self._engine.execute(Enqueue("bulk", [NewJob("benchmark", PAYLOAD)] * min(1_000, jobs - first)))

    async def lease(self, *, dying: bool = False) -> None:
        """See `Subject`."""
        policy = QueuePolicy(max_attempts=None, max_stale=1 if dying else None)
        await self._engine.execute(SetPolicy("bulk", policy))
        # All are leased at one moment, so that all end at one. Nobody keeps the leases: to throw away a million of
        # them takes a tenth of a second, which would be taken for the queue's.
        while await self._lease_some():
            pass

    async def work_off(self) -> None:
        """See `Subject`."""
        while leases := await self._lease_some():
            await self._engine.execute(Conclude([Claim("bulk", lease.job.id, lease.token) for lease in leases]))

    async def _lease_some(self) -> Sequence[Lease]:
        return (await self._engine.execute(Dequeue("bulk", count=1_000, lease_seconds=LEASE_SECONDS))).leases

    def hollow(self, slots: int, head: int) -> None:
        """See `Subject`."""
        ledger, queue = self._machine._ledger, self._machine._queues["others"]
        live = slots - head
        real = min(live, REAL_JOBS)
        last = queue.jobs[max(queue.jobs)]
        first = queue.next_id
        for id_ in range(first, first + real):
            queue.jobs[id_] = replace(last, id=id_, place=id_, state=JobState.QUEUED)
        ready = queue.ready._band(0).array
        ready._ids = array("q", range(first - head, first + live))
        ready._places = array("q", range(first - head, first + live))
        ready._head = ready._write = 0
        ready._read, ready._tail = head, slots
        ready.live = queue.ready._count = live
        ledger.counts[JobState.QUEUED] += live - queue.counts[JobState.QUEUED]
        queue.counts[JobState.QUEUED] = live
        queue.next_id = queue.next_place = first + live

    async def stale(self) -> None:
        """See `Subject`."""
        self._clock.shift_seconds += LEASE_SECONDS + 1
        await self._until_none_is(JobState.IN_PROGRESS)

    async def forget(self) -> None:
        """See `Subject`."""
        self._clock.shift_seconds += RETENTION_SECONDS + 1
        await self._until_none_is(JobState.CONCLUDED)

    async def _until_none_is(self, state: JobState) -> None:
        counts = self._machine._queues["bulk"].counts
        while counts[state]:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.005)

    async def list_all(self) -> None:
        """See `Subject`."""
        await self._search(JobFilter(), 1_000)

    async def search(self) -> None:
        """See `Subject`."""
        await self._search(JobFilter(type="no such type"), 100)

    async def _search(self, where: JobFilter, limit: int) -> None:
        after: int | None = 0
        while after is not None:
            after = (await self._engine.execute(Search("bulk", where, limit=limit, after_id=after))).next_after

    async def redrive(self) -> None:
        """See `Subject`."""
        await execute_in_slices(self._engine, Bulk("bulk", BulkVerb.REDRIVE, JobFilter()))

    async def purge(self) -> None:
        """See `Subject`."""
        await execute_in_slices(self._engine, Bulk("bulk", BulkVerb.PURGE, JobFilter()))


@asynccontextmanager
async def ours(sweep_seconds: float) -> AsyncIterator[Ours]:
    """This queue."""
    clock = MovableClock()
    async with open_engine(replace(SETTINGS, sweep_seconds=sweep_seconds), clock=clock) as engine:
        assert isinstance(engine, ActorEngine)
        subject = Ours(engine, clock)
        await subject.stock()
        yield subject


class Theirs:
    """The original design, whose callers are tasks."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._bulk, self._others = original.Queue(), original.Queue()
        self._held: deque[original.Job] = deque()
        self._shift_seconds = 0.0
        self._swept = trio.Event()
        for _ in range(STOCK):
            self._others.enqueue("benchmark", PAYLOAD)

    def _now(self) -> float:
        return original.seconds() + self._shift_seconds

    async def other(self, number: int) -> None:
        """See `Subject`."""
        async with self._lock:
            kind = number % 3
            if kind == 1:
                job = self._others.dequeue(self._now(), LONG_SECONDS)
                if job is not None:
                    self._held.append(job)
            elif kind == 2 and self._held:
                job = self._held.popleft()
                self._others.conclude(job.id, job.token, self._now())
            else:
                self._others.enqueue("benchmark", PAYLOAD)

    async def sweep(self, seconds: float) -> None:
        """The timer."""
        while True:
            await trio.sleep(seconds)
            async with self._lock:
                self._bulk.sweep(self._now())
                self._others.sweep(self._now())
            self._swept.set()
            self._swept = trio.Event()

    async def fill(self, jobs: int) -> None:
        """See `Subject`."""
        for _ in range(jobs):
            self._bulk.enqueue("benchmark", PAYLOAD)

    async def lease(self, *, dying: bool = False) -> None:
        """See `Subject`."""
        self._bulk.stales_max = 1 if dying else None
        while self._bulk.dequeue(self._now(), LEASE_SECONDS) is not None:
            pass

    async def work_off(self) -> None:
        """See `Subject`."""
        while (job := self._bulk.dequeue(self._now(), LEASE_SECONDS)) is not None:
            self._bulk.conclude(job.id, job.token, self._now())

    def hollow(self, slots: int, head: int) -> None:
        """See `Subject`."""
        queue = self._others
        first = queue.last_id + 1
        for id_ in range(first, first + min(slots - head, REAL_JOBS)):
            queue.jobs[id_] = original.Job(id_, "benchmark", PAYLOAD)
        queue.slots = list(range(first - head, first + slots - head))
        queue.head, queue.tail = head, slots
        queue.last_id = first + slots - head

    async def stale(self) -> None:
        """See `Subject`."""
        self._shift_seconds += LEASE_SECONDS + 1
        await self._swept.wait()

    async def forget(self) -> None:
        """See `Subject`."""
        self._shift_seconds += RETENTION_SECONDS + 1
        await self._swept.wait()

    async def _alone(self, work: Any) -> None:
        async with self._lock:
            work()

    async def list_all(self) -> None:
        """See `Subject`."""
        await self._alone(self._bulk.list_all)

    async def search(self) -> None:
        """See `Subject`."""
        await self._alone(lambda: self._bulk.search(lambda job: job.type == "no such type"))

    async def redrive(self) -> None:
        """See `Subject`."""
        await self._alone(self._bulk.redrive)

    async def purge(self) -> None:
        """See `Subject`."""
        await self._alone(self._bulk.purge)


@asynccontextmanager
async def theirs(sweep_seconds: float) -> AsyncIterator[Theirs]:
    """The original design."""
    subject = Theirs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.sweep, sweep_seconds)
        yield subject
        nursery.cancel_scope.cancel()
