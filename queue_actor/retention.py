"""How long finished jobs are kept, and where.

By time and by number: whichever ends first. Without a store that is all. With one, the store has all finished jobs,
and memory only the recent ones; beyond these a job is *left to the store*, and *recalled* when a command is about it.
What the store has beyond its retention it finds itself, and has it forgotten here (`Prune`), for here the jobs are
counted.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from math import inf
from operator import itemgetter

import msgspec

from queue_actor.commands import Prune, Pruned
from queue_actor.deadlines import Deadlines
from queue_actor.errors import ForgottenJob
from queue_actor.jobs import Job, Now
from queue_actor.ledger import Ledger
from queue_actor.settings import Settings
from queue_actor.transitions import CANCELLED, CONCLUDED, DEAD


class Kept(msgspec.Struct, frozen=True):
    """What one sweep did about finished jobs; see `Swept`."""

    forgotten: int
    dead_lost: int
    more: bool
    over: int = 0
    dead_over: int = 0


class Retention:
    """Forgets finished jobs, and moves them between memory and the store."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings

    def sweep(self, now: Now, limit: int) -> Kept:
        """Forget what is past its retention, and leave to the store what is no longer recent: so many of each."""
        ledger = self._ledger
        forget = self._forget
        old = slice_due(ledger.kept, now.monotonic, limit, forget)
        old_dead = slice_due(ledger.dead, now.monotonic, limit, forget)
        over = ledger.counts[CONCLUDED] + ledger.counts[CANCELLED] - self._settings.retention_jobs
        dead_over = ledger.counts[DEAD] - self._settings.dead_retention_jobs
        if ledger.recent is not None:
            left = self.leave_to_store(limit)
            more = limit in {old, old_dead} or (left > 0 and len(ledger.recent) > self._settings.recent_jobs)
            return Kept(old + old_dead, 0, more, over=max(0, over), dead_over=max(0, dead_over))
        # Beyond their number those go first whose time would have come first.
        lost = slice_due(ledger.kept, inf, min(over, limit), forget)
        dead_lost = slice_due(ledger.dead, inf, min(dead_over, limit), forget)
        more = limit in {old, old_dead, lost, dead_lost}
        return Kept(old + old_dead + lost + dead_lost, dead_lost, more)

    def _forget(self, name: str, ids: Sequence[int]) -> None:
        queue = self._ledger.queues[name]
        self._ledger.forget(queue, [queue.jobs[id_] for id_ in ids])

    def leave_to_store(self, limit: int) -> int:
        """Leave the oldest jobs beyond `recent_jobs` to the store, at most so many; how many they were."""
        recent = self._ledger.recent
        assert recent is not None  # noqa: S101 - for the type checker: there is a store
        count = max(0, min(limit, len(recent) - self._settings.recent_jobs))
        # All at once: what a dictionary has lost at its front is passed over anew by each that asks for the first.
        for name, keys in groupby(list(islice(recent, count)), itemgetter(0)):
            queue = self._ledger.queues[name]
            self._ledger.leave_to_store(queue, [queue.jobs[id_] for _, id_ in keys])
        return count

    def recall(self, jobs: Sequence[Job], departures: Mapping[str, int], now: Now) -> None:
        """Take jobs that were read from the store into memory; those that are there are newer, and stay.

        Raises:
            ForgottenJob: One may have changed and left since the store was read.
        """
        for job in jobs:
            if not self._is_current(job.queue, departures):
                raise ForgottenJob(f"job {job.id} of queue {job.queue} may have changed since it was read", field="id")
        for job in jobs:
            queue = self._ledger.queues[job.queue]
            if job.id not in queue.jobs:
                self._ledger.recall(queue, job, now)

    def prune(self, command: Prune, _now: Now) -> Pruned:
        """Forget what the store has found to be past its retention, if that is still so."""
        count = dead = 0
        certain = {name for name in command.departures if self._is_current(name, command.departures)}
        for ended in command.jobs:
            if ended.queue not in certain:
                continue
            queue = self._ledger.queues[ended.queue]
            job = queue.jobs.get(ended.id)
            if job is None:
                self._ledger.prune(queue, ended)
            elif job.revision == ended.revision:
                self._ledger.forget(queue, [job])
            else:
                continue  # it was redriven meanwhile
            count += 1
            dead += ended.state is DEAD
        return Pruned(count, dead)

    def _is_current(self, name: str, departures: Mapping[str, int]) -> bool:
        """Whether what was read of the store about those jobs of a queue that are not in memory still holds."""
        queue = self._ledger.queues.get(name)
        return queue is not None and queue.departures == departures[name]


def slice_due(deadlines: Deadlines, now: float, limit: int, move: Callable[[str, Sequence[int]], object]) -> int:
    """Move the jobs that are due, the earliest first, at most `limit`; each move clears the deadline it was due by."""
    moved = 0
    while moved < limit:
        queue, ids = deadlines.due(now, limit - moved)
        if not ids:
            break
        move(queue, ids)
        moved += len(ids)
    return moved
