"""The ledger: where every job stands. Every transition of every job is made by `Ledger._put`, and noted as a change.

The state machine decides what happens to a job; the ledger makes it so, and keeps together what must change together:
the job's version, the counts, the structures a job waits in, the deadlines, the bytes. Its methods are small moves
that leave it consistent; they decide nothing, and refuse nothing but what would be a bug.

The verbs of every job's life, `create`, `lease` and `conclude`, name what they change, one by one: handing it on as
`**facts`, as the others do, would cost each job two microseconds.

It is longer than most files, for what must change together must be read together.
"""

from collections.abc import Iterable
from math import inf
from typing import Any

from msgspec.structs import replace

from queue_actor.changes import Changes, Floors, Recovered
from queue_actor.commands import NewJob
from queue_actor.deadlines import Deadlines
from queue_actor.jobs import (
    HISTORY_ATTEMPTS_MAX,
    WAITING,
    Attempt,
    Change,
    DeathReason,
    Job,
    JobError,
    JobState,
    Now,
    Outcome,
    UniqueUntil,
)
from queue_actor.queues import Queue
from queue_actor.settings import Settings
from queue_actor.transitions import CANCELLED, CONCLUDED, DEAD, IN_PROGRESS, QUEUED, SCHEDULED, TRANSITIONS

Key = tuple[str, int]
"""A job: its queue's name, and its id."""


class InvariantError(Exception):
    """The state contradicts itself: a bug. The process must end rather than serve from it."""


class Ledger:
    """All queues, all jobs, and the one door through which they change."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.queues: dict[str, Queue] = {}
        self.counts = dict.fromkeys(JobState, 0)  # over all queues
        self.kept_bytes = 0  # of payloads, results, progress and errors
        self.leases: Deadlines[Key] = Deadlines()  # monotonic
        self.planned: Deadlines[Key] = Deadlines()  # wall
        self.expiries: Deadlines[Key] = Deadlines()  # wall; of waiting jobs with a ttl
        self.kept: Deadlines[Key] = Deadlines()  # monotonic; until when concluded and cancelled jobs are kept
        self.dead: Deadlines[Key] = Deadlines()  # monotonic; the same of dead ones
        self.held: dict[str, int] = {}  # jobs in progress of each holder, where a lease has one
        self.run_ends: dict[Key, float] = {}  # monotonic; of leases in queues with `run_seconds_max`
        self.stocked: set[str] = set()  # queues that may have ready jobs, for a dequeue by prefix
        self.recent: dict[Key, None] | None = None  # finished jobs in memory, oldest first, where a store has them all
        self._redriven: set[Key] = set()  # jobs of which the store had a row as finished that is no longer true
        self._touched: set[str] = set()  # queues whose record is no longer what the store has
        self._pruned: list[Key] = []
        self._floors_moved = False
        self._readied: dict[str, None] = {}
        self._changes: list[Change] = []
        self._revision = 0
        self._id_floor = self._fence_floor = 1  # what deleted queues leave behind; fence 0 is of a job never leased

    def take_changes(self) -> Changes:
        """What changed since the last call, but for answers; the caller stores it before he answers anyone.

        Raises:
            InvariantError: The counts do not agree with the structures they count.
        """
        if self.counts[IN_PROGRESS] != len(self.leases) or self.counts[SCHEDULED] != len(self.planned):
            raise InvariantError("leases or planned jobs are not what the counts say")
        changes, self._changes = self._changes, []
        queue: Queue | None = None
        for change in changes:
            job = change.after or change.before
            assert job is not None  # noqa: S101 - for the type checker: a change has one of them
            if queue is None or queue.name != job.queue:
                queue = self.queues.get(job.queue)
                if queue is not None and queue.counts[QUEUED] != len(queue.ready):
                    raise InvariantError(
                        f"{len(queue.ready)} jobs of {queue.name} are ready, not {queue.counts[QUEUED]}"
                    )
                self._touched.add(job.queue)
        # In order, so that the same commands write the same file.
        touched = sorted(self._touched)
        queues = {name: self.queues[name].record() if name in self.queues else None for name in touched}
        taken = Changes(
            self._revision,
            changes,
            queues,
            pruned=self._pruned,
            floors=Floors(self._id_floor, self._fence_floor) if self._floors_moved else None,
        )
        self._touched, self._pruned, self._floors_moved = set(), [], False
        return taken

    @property
    def changes_waiting(self) -> int:
        """How many changes `take_changes` would give."""
        return len(self._changes)

    def take_readied(self) -> Iterable[str]:
        """The queues in which a job may have become available since the last call, in that order."""
        readied, self._readied = self._readied, {}
        return readied

    def next_due_seconds(self, now: Now) -> float | None:
        """How long until a lease ends, or a planned job is due, or a ttl ends; None if there is nothing of these."""
        lease, planned, expiry = self.leases.next(), self.planned.next(), self.expiries.next()
        seconds = inf if lease is None else lease - now.monotonic
        if planned is not None:
            seconds = min(seconds, planned - now.wall)
        if expiry is not None:
            seconds = min(seconds, expiry - now.wall)
        return None if seconds == inf else max(0.0, seconds)

    def open_queue(self, name: str, now: Now) -> Queue:
        """The queue of this name, made if it does not exist; whether it may be was checked before."""
        queue = self.queues.get(name)
        if queue is None:
            # Microseconds of the wall clock, so that fences also grow from one life of the server to the next.
            fence = max(int(now.wall * 1_000_000), self._fence_floor)
            queue = self.queues[name] = Queue(
                name, self._settings, next_id=self._id_floor, next_fence=fence, opened_at=now.monotonic
            )
            queue.departures = self._revision  # so that a read of a deleted queue is none of its successor
            self.touch(queue)
        return queue

    def touch(self, queue: Queue) -> None:
        """Let the store know what the queue itself has become."""
        self._touched.add(queue.name)

    def delete_queue(self, queue: Queue) -> None:
        """Forget a queue without jobs. Its successor's ids and fences begin where its own ended."""
        del self.queues[queue.name]
        self.stocked.discard(queue.name)
        self._readied.pop(queue.name, None)
        self._id_floor = max(self._id_floor, queue.next_id)
        self._fence_floor = max(self._fence_floor, queue.next_fence)
        self._floors_moved = True
        self.touch(queue)

    def move(self, queue: Queue, job: Job, verb: str, to: JobState, now: Now, **facts: Any) -> Job:
        """Change a job by a verb."""
        moved = self._put(queue, job, verb, replace(job, state=to, revision=self._revision + 1, **facts))
        if verb in queue.meters:
            queue.meters[verb].add(now.monotonic)
        return moved

    def _put(self, queue: Queue, job: Job, verb: str, moved: Job) -> Job:
        """Put the next version of a job in its place: every transition of every job is made here."""
        before, to = job.state, moved.state
        if (before, verb, to) not in TRANSITIONS:
            raise InvariantError(f"{verb} leads from {before} to {to}, which no transition allows")
        self._revision = moved.revision
        queue.totals[verb] += 1
        queue.jobs[job.id] = moved
        if to is not before:
            queue.counts[before] -= 1
            queue.counts[to] += 1
            self.counts[before] -= 1
            self.counts[to] += 1
        self._changes.append(Change(moved.revision, job, moved, verb))
        return moved

    def create(self, queue: Queue, new: NewJob, now: Now, *, not_before: float | None, expires_at: float | None) -> Job:
        """Add a job: scheduled if it has a `not_before`, else queued at the back."""
        id_ = queue.next_id
        queue.next_id = id_ + 1
        self._revision += 1
        state = QUEUED if not_before is None else SCHEDULED
        job = Job(
            queue=queue.name,
            id=id_,
            type=new.type,
            payload=new.payload,
            state=state,
            created_at=now.wall,
            revision=self._revision,
            priority=new.priority,
            place=queue.next_place if not_before is None else 0,
            ready_at=now.wall if not_before is None else 0.0,
            not_before=not_before,
            expires_at=expires_at,
            options=new.options,
        )
        queue.jobs[id_] = job
        queue.counts[state] += 1
        self.counts[state] += 1
        if job.payload is not None:
            self.kept_bytes += len(job.payload)
        self._changes.append(Change(self._revision, None, job, "enqueue"))
        if not_before is None:
            self._append(queue, job)
        else:
            self.plan(job, not_before)
        if expires_at is not None:
            self.expiries.set((queue.name, id_), expires_at)
        return job

    def plan(self, job: Job, at: float) -> None:
        """Note that a job which is about to be scheduled is due at this moment."""
        self.planned.set((job.queue, job.id), at)

    def make_ready(self, queue: Queue, job: Job, verb: str, now: Now, **facts: Any) -> Job:
        """Queue a job at the back."""
        moved = self.move(queue, job, verb, QUEUED, now, place=queue.next_place, ready_at=now.wall, **facts)
        self._append(queue, moved)
        return moved

    def _append(self, queue: Queue, job: Job) -> None:
        """Put a job that has just been given the next place into the array."""
        queue.next_place = job.place + 1
        queue.ready.append(job.priority, job.place, job.id)
        self.offer(queue)

    def offer(self, queue: Queue) -> None:
        """Let those who wait for the queue look again."""
        self._readied[queue.name] = None
        self.stocked.add(queue.name)

    def withdraw(self, queue: Queue, job: Job) -> None:
        """Take a waiting job out of the structures it waits in."""
        if job.state is QUEUED:
            queue.ready.remove(job.priority, job.place)
        else:
            self.planned.clear((queue.name, job.id))
        if job.expires_at is not None:
            self.expiries.clear((queue.name, job.id))

    def lease(
        self, queue: Queue, job: Job, consumer: str | None, seconds: float, now: Now, *, holder: str | None = None
    ) -> Job:
        """Lease a job that has left the ready ones. The caller counts it as dequeued."""
        key_freed = job.options.unique_until is UniqueUntil.STARTED
        if key_freed:
            self.free_unique_key(queue, job)
        # One that came back keeps its `ready_at` with its place, and has waited since then.
        ready_at = max(job.ready_at, job.history[-1].ended_at) if job.history else job.ready_at
        queue.waits.observe(now.wall - ready_at if now.wall > ready_at else 0.0)
        fence = queue.next_fence
        queue.next_fence = fence + 1
        self.leases.set((queue.name, job.id), now.monotonic + seconds)
        if job.expires_at is not None:
            self.expiries.clear((queue.name, job.id))
        if holder is not None:
            self.hold(holder)
        leased = replace(
            job,
            state=IN_PROGRESS,
            revision=self._revision + 1,
            attempts=job.attempts + 1,
            consumer=consumer,
            holder=holder,
            fence=fence,
            lease_seconds=seconds,
            lease_expires_at=now.wall + seconds,
            started_at=now.wall,
            key_freed=key_freed,
        )
        return self._put(queue, job, "dequeue", leased)

    def hold(self, holder: str) -> None:
        """Count one more job in progress for a holder."""
        self.held[holder] = self.held.get(holder, 0) + 1

    def _let_go(self, holder: str) -> None:
        if self.held[holder] == 1:
            del self.held[holder]
        else:
            self.held[holder] -= 1

    def restart_lease(self, queue: Queue, job: Job, now: Now) -> None:
        """Start the lease of a former life again, at full length."""
        self.leases.set((queue.name, job.id), now.monotonic + job.lease_seconds)
        if queue.policy.run_seconds_max is not None:
            self.run_ends[queue.name, job.id] = now.monotonic + queue.policy.run_seconds_max
        self.move(queue, job, "extend", IN_PROGRESS, now, lease_expires_at=now.wall + job.lease_seconds)

    def conclude(self, queue: Queue, job: Job, result: bytes | None, now: Now) -> Job:
        """End a leased job as done."""
        history = self._end_lease(queue, job, Outcome.CONCLUDED, now, None)
        kept_until = self._keep(queue, job, CONCLUDED, now)
        self.kept_bytes += size(result)
        queue.meters["conclude"].add(now.monotonic)
        concluded = replace(
            job,
            state=CONCLUDED,
            revision=self._revision + 1,
            lease_expires_at=None,
            finished_at=now.wall,
            kept_until=kept_until,
            result=result,
            history=history,
        )
        return self._put(queue, job, "conclude", concluded)

    def end_attempt(
        self, queue: Queue, job: Job, outcome: Outcome, now: Now, error: JobError | None = None
    ) -> dict[str, Any]:
        """End the lease; the facts for the version of the job that comes after it."""
        return {"history": self._end_lease(queue, job, outcome, now, error), "lease_expires_at": None}

    def _end_lease(
        self, queue: Queue, job: Job, outcome: Outcome, now: Now, error: JobError | None
    ) -> tuple[Attempt, ...]:
        """End the lease; the history that the job has then."""
        assert job.started_at is not None  # noqa: S101 - for the type checker: it has been leased
        key = (queue.name, job.id)
        self.leases.clear(key)
        if job.holder is not None:
            self._let_go(job.holder)
        if self.run_ends:
            self.run_ends.pop(key, None)
        if queue.policy.in_progress_max is not None:
            self.offer(queue)
        queue.runs.observe(now.wall - job.started_at if now.wall > job.started_at else 0.0)
        attempt = Attempt(job.fence, job.consumer, job.started_at, now.wall, outcome, error)
        history = (*job.history, attempt)
        if error is not None:
            self.kept_bytes += error_size(error)
        if len(history) > HISTORY_ATTEMPTS_MAX:
            self.kept_bytes -= error_size(history[0].error)
            history = history[1:]
        return history

    def give_back(self, queue: Queue, job: Job, verb: str, now: Now, **facts: Any) -> Job:
        """Return a job to the place it had, or grant the wish that it be cancelled."""
        if job.cancel_requested:
            return self.finish(queue, job, verb, CANCELLED, now, **facts)
        if is_expired(job, now):
            return self.finish(queue, job, verb, DEAD, now, reason=DeathReason.EXPIRED, **facts)
        if job.expires_at is not None:
            self.expiries.set((queue.name, job.id), job.expires_at)
        queue.ready.put_back(job.priority, job.place, job.id)
        self.offer(queue)
        return self.move(queue, job, verb, QUEUED, now, **facts)

    def return_later(self, queue: Queue, job: Job, verb: str, delay_seconds: float, now: Now, **facts: Any) -> Job:
        """Schedule a job whose attempt has ended, or queue it at the back if there is nothing to wait for."""
        if is_expired(job, now):
            return self.finish(queue, job, verb, DEAD, now, reason=DeathReason.EXPIRED, **facts)
        if job.expires_at is not None:
            self.expiries.set((queue.name, job.id), job.expires_at)
        if delay_seconds <= 0:
            return self.make_ready(queue, job, verb, now, **facts)
        self.plan(job, now.wall + delay_seconds)
        return self.move(queue, job, verb, SCHEDULED, now, not_before=now.wall + delay_seconds, **facts)

    def finish(self, queue: Queue, job: Job, verb: str, to: JobState, now: Now, **facts: Any) -> Job:
        """End a job."""
        kept_until = self._keep(queue, job, to, now)
        if to is DEAD:
            queue.deaths[facts["reason"]] += 1
        return self.move(queue, job, verb, to, now, finished_at=now.wall, kept_until=kept_until, **facts)

    def _keep(self, queue: Queue, job: Job, to: JobState, now: Now) -> float:
        """Let a job that ends give its unique key back, and keep it for its retention: until when."""
        self.free_unique_key(queue, job)
        policy, settings = queue.policy, self._settings
        if to is DEAD:
            seconds = policy.dead_retention_seconds
            kept, seconds = self.dead, settings.dead_retention_seconds if seconds is None else seconds
            queue.meters["dead"].add(now.monotonic)
        else:
            seconds = policy.retention_seconds
            kept, seconds = self.kept, settings.retention_seconds if seconds is None else seconds
        kept.set((queue.name, job.id), now.monotonic + seconds)
        if self.recent is not None:
            self.recent[queue.name, job.id] = None
        return now.wall + seconds

    def unfinish(self, queue: Queue, job: Job) -> None:
        """Take a finished job out of what counts its retention."""
        key = (queue.name, job.id)
        (self.dead if job.state is DEAD else self.kept).clear(key)
        if self.recent is not None:
            del self.recent[key]
            self._redriven.add(key)

    def expire(self, queue: Queue, job: Job, now: Now) -> None:
        """Give up a waiting job whose ttl has ended."""
        self.withdraw(queue, job)
        self.finish(queue, job, "expire", DEAD, now, reason=DeathReason.EXPIRED)

    def resume(self, recovered: Recovered) -> None:
        """Count on from where a former life has ended, with a store that has all finished jobs."""
        self.recent, self._revision = {}, recovered.revision
        self._id_floor, self._fence_floor = recovered.floors.id, recovered.floors.fence

    def forget(self, queue: Queue, job: Job, _now: Now) -> Job:
        """Keep a job no longer, whatever its state but in progress."""
        if job.state in WAITING:
            self.withdraw(queue, job)
            self.free_unique_key(queue, job)
        else:
            self.unfinish(queue, job)
        queue.forget(job.id)
        queue.totals["forget"] += 1
        self._redriven.discard((queue.name, job.id))
        queue.counts[job.state] -= 1
        self.counts[job.state] -= 1
        self.kept_bytes -= kept_bytes_of(job)
        self._revision += 1
        queue.departures = self._revision
        self._changes.append(Change(self._revision, job, None, "forget"))
        return job

    def leave_to_store(self, queue: Queue, job: Job) -> None:
        """Keep a finished job no longer in memory. It still counts: the store has it."""
        key = (queue.name, job.id)
        if key in self._redriven:
            # Somebody may just have read how it ended before, which must not be taken for how it has ended now.
            queue.departures = self._revision
            self.touch(queue)
        self.unfinish(queue, job)
        self._redriven.discard(key)
        queue.forget(job.id)
        self.kept_bytes -= kept_bytes_of(job)

    def recall(self, queue: Queue, job: Job, now: Now) -> None:
        """Take a finished job that only the store had back into memory."""
        assert self.recent is not None and job.kept_until is not None  # noqa: S101, PT018 - it comes from a store
        key = (queue.name, job.id)
        queue.jobs[job.id] = job
        queue.first_id = min(queue.first_id, job.id)
        (self.dead if job.state is DEAD else self.kept).set(key, now.monotonic + job.kept_until - now.wall)
        self.recent[key] = None
        self.kept_bytes += kept_bytes_of(job)

    def prune(self, queue: Queue, id_: int, state: JobState) -> None:
        """Forget a finished job that only the store has."""
        queue.totals["forget"] += 1
        queue.counts[state] -= 1
        self.counts[state] -= 1
        self._revision += 1
        queue.departures = self._revision
        self.touch(queue)
        self._pruned.append((queue.name, id_))

    def free_unique_key(self, queue: Queue, job: Job) -> None:
        """Let another job have the unique key of this one, if it has one."""
        key = job.options.unique_key
        if key is not None and queue.unique.get(key) == job.id:
            del queue.unique[key]


def is_expired(job: Job, now: Now) -> bool:
    """Whether the job's ttl has ended."""
    return job.expires_at is not None and job.expires_at <= now.wall


def size(text: bytes | None) -> int:
    """The bytes of a text that may not be there."""
    return 0 if text is None else len(text)


def kept_bytes_of(job: Job) -> int:
    """What a job counts for `memory_bytes_max`."""
    errors = sum(error_size(attempt.error) for attempt in job.history)
    return size(job.payload) + size(job.result) + size(job.progress) + errors


def error_size(error: JobError | None) -> int:
    """The characters of an error that may not be there."""
    return 0 if error is None else len(error.type) + len(error.message)
