"""What an engine tells its store of one batch of commands, and what the store tells a new engine of the last one.

These are records: plain facts, complete enough to go on from after a restart. Monotonic moments are not among them,
since no other process could read them; their wall clock counterparts are.
"""

from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from operator import attrgetter
from typing import Any, Literal

import msgspec

from queue_actor.commands import IdempotencyKey
from queue_actor.jobs import Change, Job, JobState, QueuePolicy

Holding = tuple[str, int, int]
"""A lease as it is remembered under an idempotency key: queue, id, fence."""

AnswerKind = Literal["enqueue", "dequeue"]


class QueueRecord(msgspec.Struct, frozen=True):
    """What is durable of a queue itself."""

    name: str
    next_id: int
    next_fence: int
    policy: QueuePolicy
    paused: bool = False
    declared: bool = False
    departures: int = 0  # the last revision that made earlier reads of finished jobs in the store useless


class AnswerRecord(msgspec.Struct, frozen=True):
    """An answer remembered under a key; None instead of one that is remembered no longer."""

    kind: AnswerKind
    scope: str
    key: str
    fingerprint: bytes = b""
    at: float = 0.0  # wall clock
    answer: Any = None  # Enqueued, or tuple[Holding, ...], by its kind

    @property
    def idempotency_key(self) -> IdempotencyKey:
        """The key with what it was given for."""
        return IdempotencyKey(self.scope, self.key, self.fingerprint)


class Floors(msgspec.Struct, frozen=True):
    """Where ids and fences begin in a queue that is made, so that none of a deleted queue's is given again."""

    id: int = 1
    fence: int = 1  # 0 is the fence of a job that was never leased


_revision = attrgetter("revision")


class Changes(msgspec.Struct, frozen=True):
    """All that one batch changed: kept as a whole or not at all."""

    revision: int  # of the last change of any job
    jobs: Sequence[Change] = ()  # in order
    queues: Mapping[str, QueueRecord | None] = {}  # as they are now; None: deleted
    answers: Sequence[AnswerRecord] = ()  # in order
    pruned: Sequence[tuple[str, int]] = ()  # finished jobs that only the store had
    forgotten: Sequence[Change] = ()  # of these, for who is told; of such a job is known what is told of it
    floors: Floors | None = None  # if they moved

    def __bool__(self) -> bool:
        return bool(self.jobs or self.queues or self.answers or self.pruned or self.floors)

    @property
    def told(self) -> Sequence[Change]:
        """All changes of jobs, in order."""
        return [*merge(self.jobs, self.forgotten, key=_revision)] if self.forgotten else self.jobs


class Recovered(msgspec.Struct, frozen=True):
    """All that a new engine begins with."""

    revision: int = 0
    floors: Floors = Floors()
    queues: Sequence[QueueRecord] = ()
    jobs: Iterable[Job] = ()  # those that have not ended, in any order
    finished: Mapping[tuple[str, JobState], int] = {}  # how many jobs of each queue have ended how
    answers: Iterable[AnswerRecord] = ()  # the oldest first
