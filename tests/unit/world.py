"""A state machine in a world of its own: it is told the time, and after every command everything is counted again."""

from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from sortedcontainers import SortedList

from queue_actor.commands import (
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Enqueue,
    Extend,
    ExtendClaim,
    Lease,
    NewJob,
    QueueView,
    R,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Release,
    ReleaseClaim,
    Results,
    Sweep,
    Swept,
)
from queue_actor.deadlines import Deadlines
from queue_actor.errors import QueueError
from queue_actor.jobs import FINISHED, Change, Job, JobState, Now
from queue_actor.ready import TOMBSTONE, Ready, ReadyArray, _Band
from queue_actor.settings import Settings
from queue_actor.state_machine import Queue, StateMachine
from queue_actor.tokens import SECRET_BYTES, Tokens

MONOTONIC = 5_000.0
WALL = 1_800_000_000.0
SECRET = bytes(range(SECRET_BYTES))
FORGED = Tokens(bytes(SECRET_BYTES))

CLAIMS: dict[str, tuple[Callable[..., Claim], Callable[[Sequence[Any]], Command[Results]]]] = {
    "conclude": (Claim, Conclude),
    "extend": (ExtendClaim, Extend),
    "release": (ReleaseClaim, Release),
}
"""The holder's verbs: what each is claimed with, and its command."""


class World:
    """A state machine, its two clocks, and every change it has made."""

    def __init__(self, *, checked: bool = True, wall: float = WALL, **settings: Any) -> None:
        """Take the settings that matter.

        Args:
            checked: Count everything again after each command; not for tests with very many jobs.
            wall: What the wall clock shows.
            settings: As in `Settings`, but without its bounds, so that small figures meet every boundary.
        """
        self.machine = StateMachine(Settings(**settings), secret=SECRET)
        self.monotonic = MONOTONIC
        self.wall = wall
        self.changes: list[Change] = []
        self.jobs: dict[tuple[str, int], Job] = {}  # as the changes tell it
        self._checked = checked

    @property
    def now(self) -> Now:
        return Now(self.monotonic, self.wall)

    def wait(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self.monotonic += seconds
        self.wall += seconds

    def do(self, command: Command[R]) -> R:
        """Carry out a command, and check all that must hold after any command.

        Raises:
            QueueError: The refusal; it has left the whole state as it was.
        """
        if not self._checked:
            return self.machine.apply(command, self.now)
        before = snapshot(self.machine)
        try:
            reply = self.machine.apply(command, self.now)
        except QueueError:
            assert snapshot(self.machine) == before
            raise
        if isinstance(reply, Results) and all(isinstance(answer, QueueError) for answer in reply.jobs):
            assert snapshot(self.machine) == before
        self._note_changes()
        recount(self.machine)
        return reply

    def _note_changes(self) -> None:
        for change in self.machine.take_changes():
            assert change.revision == len(self.changes) + 1
            job = change.after or change.before
            assert job is not None
            key = (job.queue, job.id)
            assert change.before == self.jobs.get(key)
            if change.after is None:
                del self.jobs[key]
            else:
                assert change.after.revision == change.revision
                self.jobs[key] = change.after
            self.changes.append(change)
        kept = {(name, id_): job for name, queue in self.machine._queues.items() for id_, job in queue.jobs.items()}
        assert kept == self.jobs

    # --- the commands, in short

    def enqueue(self, *jobs: NewJob | str, queue: str = "q") -> list[Job]:
        """Add jobs; of some only the type matters."""
        return list(self.do(Enqueue(queue, [NewJob(job) if isinstance(job, str) else job for job in jobs])).jobs)

    def dequeue(self, count: int = 1, *, queue: str = "q", **facts: Any) -> list[Lease]:
        """Lease up to so many jobs."""
        return list(self.do(Dequeue(queue, count, **facts)).leases)

    def lease(self, **facts: Any) -> Lease:
        """Lease the first job, which must be there."""
        (lease,) = self.dequeue(**facts)
        return lease

    def leased(self, consumer: str | None = None, **facts: Any) -> Lease:
        """A lease on a new job."""
        self.enqueue(NewJob("type", **facts))
        return self.lease(consumer=consumer)

    def claim(self, verb: str, queue: str, id_: int, **facts: Any) -> Job:
        """Conclude, extend or release a job."""
        claim, command = CLAIMS[verb]
        return self.do(command([claim(queue, id_, **facts)])).single()

    def claim_held(self, verb: str, lease: Lease, **facts: Any) -> Job:
        """Conclude, extend or release a job by the token of a lease."""
        return self.claim(verb, lease.job.queue, lease.job.id, token=lease.token, **facts)

    def cancel(self, id_: int, *, queue: str = "q") -> Job:
        return self.do(Cancel(queue, [id_])).single()

    def sweep(self) -> Swept:
        return self.do(Sweep())

    def job(self, id_: int = 1, *, queue: str = "q") -> Job:
        return self.do(ReadJob(queue, id_))

    def ahead(self, id_: int, *, queue: str = "q") -> int | None:
        return self.do(ReadPosition(queue, id_)).ahead

    def view(self, queue: str = "q") -> QueueView:
        return self.do(ReadQueue(queue))

    def counts(self, queue: str = "q") -> dict[str, int]:
        """Jobs by state, those of which there are any."""
        return {state.value: count for state, count in self.view(queue).counts.items() if count}

    def dequeue_all(self, queue: str = "q") -> list[int]:
        """Lease whatever is ready; the ids, in order."""
        return [lease.job.id for lease in self.dequeue(1_000_000, queue=queue)]


def snapshot(value: Any) -> Any:
    """Everything that an object holds, copied, so that two moments can be compared."""
    if isinstance(value, dict):
        return [(key, snapshot(item)) for key, item in value.items()]
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, list | tuple | deque | array | SortedList):
        return [snapshot(item) for item in value]
    if isinstance(value, _PARTS):
        names = getattr(type(value), "__slots__", None) or vars(value)
        return [(name, snapshot(getattr(value, name))) for name in names if name not in _FIXED]
    assert isinstance(value, _ATOMS), f"a snapshot does not know what is in a {type(value)}"
    return value


_PARTS = (StateMachine, Queue, Ready, _Band, ReadyArray, Deadlines)
_FIXED = {"_settings", "_tokens", "_verbs"}
_ATOMS = (Job, Change, str, int, float, NoneType)  # which nothing can change


def recount(machine: StateMachine) -> None:
    """Compare every figure and every index with the jobs themselves."""
    jobs = [job for queue in machine._queues.values() for job in queue.jobs.values()]
    totals = Counter(job.state for job in jobs)
    assert machine._counts == {state: totals[state] for state in JobState}
    assert machine._payload_bytes == sum(len(job.payload or b"") for job in jobs)

    leased = [job for job in jobs if job.state is JobState.IN_PROGRESS]
    assert len(machine._leases) == len(leased)  # so at most one a job: each of them has one
    for job in leased:
        assert machine._leases[job.queue, job.id]
        assert job.lease_expires_at is not None
    assert all(job.lease_expires_at is None for job in jobs if job.state is not JobState.IN_PROGRESS)

    planned = [job for job in jobs if job.state is JobState.SCHEDULED]
    assert len(machine._planned) == len(planned)
    for job in planned:
        assert machine._planned[job.queue, job.id] == job.not_before

    finished = [(name, id_) for _, name, id_ in machine._finished]
    assert sorted(finished) == sorted((job.queue, job.id) for job in jobs if job.state in FINISHED)
    assert [when for when, *_ in machine._finished] == sorted(when for when, *_ in machine._finished)
    assert all((job.finished_at is not None) is (job.state in FINISHED) for job in jobs)

    for name, queue in machine._queues.items():
        assert queue.name == name
        own = queue.jobs.values()
        assert all(job.queue == name and queue.jobs[job.id] is job for job in own)
        states = Counter(job.state for job in own)
        assert queue.counts == {state: states[state] for state in JobState}
        assert all(job.id < queue.next_id and job.place < queue.next_place for job in own)
        assert all(job.fence < queue.next_fence for job in own)
        in_order = sorted((-job.priority, job.place, job.id) for job in own if job.state is JobState.QUEUED)
        assert len(queue.ready) == len(in_order)
        assert [queue.ready.ahead(-priority, place) for priority, place, _ in in_order] == list(range(len(in_order)))
        assert sorted(slots_taken(queue.ready)) == in_order


def slots_taken(ready: Ready) -> list[tuple[int, int, int]]:
    """Priority (negated), place and id in each slot that is taken; the places of an array rise."""
    taken = []
    for priority, band in ready._bands.items():
        slots = band.array
        runs = [*range(slots._head, slots._write), *range(slots._read, slots._tail)]
        places = [slots._places[slot] for slot in runs]
        assert places == sorted(set(places))
        taken += [(-priority, slots._places[slot], slots._ids[slot]) for slot in runs if slots._ids[slot] != TOMBSTONE]
        taken += [(-priority, place, id_) for place, id_ in band.returned.items()]
    return taken
