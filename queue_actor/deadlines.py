"""Deadlines: which jobs are due, without ever looking at those that are not.

Jobs that are given a deadline together mostly have neighbouring ids and the same deadline, so a *run* of them is one
entry of a binary heap. Each job knows its run; moving or clearing its deadline only takes it out of the run's count,
which is lazy deletion: what a run has lost is passed over when it comes up.

Leases are mostly concluded long before their deadline, so runs without any job left would pile up; when they are more
than half, the others are carried over to a new heap, a bounded number at a time. A heap without its last element is
still a heap, so the old one stays usable until it is empty.
"""

from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from itertools import islice

import msgspec

from queue_actor.ids import CHUNK_BITS, ByIds, by_chunk

CARRY_ENTRIES = 16
"""Runs carried over to the new heap with each change: more than one, so that it ends before the next begins."""

_DEAD_ENTRIES_MIN = 1_024  # fewer are not worth a new heap


class _Run(msgspec.Struct, order=True, gc=False):
    """Jobs of one queue with one deadline, whose ids are in one chunk; some may have left since."""

    deadline: float
    queue: str
    first: int  # those below have left
    last: int
    jobs: int  # that have not left


class Deadlines:
    """The deadline of each job, earliest first; jobs of equal deadlines by queue and id."""

    def __init__(self) -> None:
        self._runs: dict[str, ByIds[_Run]] = {}  # of each queue's jobs that have a deadline, the run that counts
        self._heap: list[_Run] = []
        self._old: list[_Run] = []
        self._latest = _Run(0.0, "", 0, 0, 0)
        self._count = 0  # jobs
        self._live = 0  # runs that have jobs

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: tuple[str, int]) -> float:
        queue, id_ = key
        return self._runs[queue][id_].deadline

    @property
    def entries(self) -> int:
        """Heap entries, the dead ones too: what the deadlines cost in memory beside the index of the jobs."""
        return len(self._heap) + len(self._old)

    def set(self, queue: str, id_: int, deadline: float) -> None:
        """Give a job a deadline, in place of any it had."""
        runs = self._runs.get(queue)
        if runs is None:
            runs = self._runs[queue] = ByIds()
        chunk = runs.chunk(id_ >> CHUNK_BITS)
        former = chunk.get(id_)
        run = self._latest
        if (
            run.deadline == deadline
            and run.last < id_
            and run.last >> CHUNK_BITS == id_ >> CHUNK_BITS
            and run.jobs
            and run.queue == queue
        ):
            run.last = id_
            run.jobs += 1
        else:
            run = self._begin(_Run(deadline, queue, id_, id_, 1))
        self._count += 1
        chunk[id_] = run
        if former is not None:
            self._leave(former, 1)

    def add_all(self, queue: str, ids: Sequence[int], deadline: float) -> None:
        """Give jobs of one queue, which have none, a deadline."""
        if len(ids) == 1:
            self.set(queue, ids[0], deadline)
            return
        runs = self._runs.get(queue)
        if runs is None:
            runs = self._runs[queue] = ByIds()
        for number, neighbours in by_chunk(ids):
            run = self._begin(_Run(deadline, queue, neighbours[0], neighbours[-1], len(neighbours)))
            runs.chunk(number).update(dict.fromkeys(neighbours, run))
        self._count += len(ids)

    def clear(self, queue: str, id_: int) -> None:
        """Take a job's deadline away.

        Raises:
            KeyError: It has none.
        """
        self._leave(self._runs[queue].pop(id_), 1)

    def clear_all(self, queue: str, ids: Sequence[int]) -> None:
        """Take the deadlines of jobs of one queue away.

        Raises:
            KeyError: One has none.
        """
        if len(ids) == 1:
            self.clear(queue, ids[0])
            return
        left = self._runs[queue].pop_all(ids)
        run, jobs = left[0], 0
        for its_run in left:
            if its_run is not run:
                self._leave(run, jobs)
                run, jobs = its_run, 0
            jobs += 1
        self._leave(run, jobs)

    def forget_queue(self, queue: str) -> None:
        """Know a queue no longer, no job of which has a deadline."""
        self._runs.pop(queue, None)

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        run = self._first()
        return None if run is None else run.deadline

    def due(self, now: float, limit: int) -> tuple[str, Sequence[int]]:
        """The first jobs whose deadline is not after `now`: a queue and ids, at most `limit`, and none if none is due.

        There may be more than these. They stay until they are cleared.
        """
        run = self._first()
        if run is None or run.deadline > now:
            return "", ()
        end = run.last + 1
        # Whatever else has this deadline in this queue may lie between. It is next in its heap.
        for other in (*self._heap[:3], *self._old[:3]):
            if other is not run and other.deadline == run.deadline and other.queue == run.queue:
                end = max(run.first + 1, min(end, other.first))
        chunk = self._runs[run.queue].chunks[run.first >> CHUNK_BITS]
        return run.queue, list(islice((id_ for id_ in range(run.first, end) if chunk.get(id_) is run), limit))

    def _first(self) -> _Run | None:
        """The run with the earliest deadline, whose first id has not left; or None."""
        if not self._count:
            return None  # runs there may be, all of them dead
        earliest: _Run | None = None
        for heap in (self._heap, self._old):
            while heap and not self._is_first(heap[0], heap):
                pass
            if heap and (earliest is None or heap[0] < earliest):
                earliest = heap[0]
        return earliest

    def _is_first(self, run: _Run, heap: list[_Run]) -> bool:
        """Whether the first run of a heap begins with a job that has not left; if not, put the heap right."""
        if not run.jobs:
            heappop(heap)
            return False
        chunk, first = self._runs[run.queue].chunks[run.first >> CHUNK_BITS], run.first
        while chunk.get(run.first) is not run:
            run.first += 1
        if run.first > first:
            heapreplace(heap, run)
        return run.first == first

    def _begin(self, run: _Run) -> _Run:
        heappush(self._heap, run)
        self._latest = run
        self._live += 1
        if self._old:
            self._carry_over()
        return run

    def _leave(self, run: _Run, jobs: int) -> None:
        """Take so many jobs out of a run."""
        run.jobs -= jobs
        self._count -= jobs
        if not run.jobs:
            self._live -= 1
            if self._old or len(self._heap) > 2 * self._live + _DEAD_ENTRIES_MIN:
                self._carry_over()

    def _carry_over(self) -> None:
        if not self._old:
            self._heap, self._old = [], self._heap
        for _ in range(min(CARRY_ENTRIES, len(self._old))):
            run = self._old.pop()
            if run.jobs:
                heappush(self._heap, run)
