"""The ledger: where every job stands. Every transition of every job is made by `Ledger._put`, and noted as a change.

The state machine decides what happens to a job; the ledger makes it so, and keeps together what must change together:
the job's version, the counts, the structures a job waits in, the deadlines, the bytes. Its methods are small moves
that leave it consistent; they decide nothing, and refuse nothing but what would be a bug.

The moves of every job's life, `create`, `lease`, `conclude` and `forget`, take many jobs of one queue at once: what is
counted is counted once for all, and by a thousand a life costs a third of what it costs job by job. They name what they
change, one by one: handing it on as `**facts`, as the others do, would cost each job two microseconds.

It is longer than most files, for what must change together must be read together.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from msgspec.structs import asdict, replace

from queue_actor.changes import Changes, Floors, QueueRecord, Recovered
from queue_actor.commands import Ended, NewJob
from queue_actor.deadlines import Deadlines
from queue_actor.ids import CHUNK_BITS, CHUNK_MASK
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
    error_size,
    is_expired,
    kept_bytes_of,
)
from queue_actor.queues import Queue, ends_at, starts_at
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
        self.leases = Deadlines()  # monotonic
        self.planned = Deadlines()  # wall
        self.expiries = Deadlines()  # wall; of waiting jobs with a ttl
        self.kept = Deadlines()  # monotonic; until when concluded and cancelled jobs are kept
        self.dead = Deadlines()  # monotonic; the same of dead ones
        self.held: dict[str, int] = {}  # jobs in progress of each holder, where a lease has one
        self.run_ends: dict[Key, float] = {}  # monotonic; of leases in queues with `run_seconds_max`
        self.stocked: set[str] = set()  # queues that may have ready jobs, for a dequeue by prefix
        self.recent: dict[Key, None] | None = None  # finished jobs in memory, oldest first, where a store has them all
        self._redriven: set[Key] = set()  # jobs of which the store had a row as finished that is no longer true
        self._touched: set[str] = set()  # queues whose record is no longer what the store has
        self._pruned: list[Key] = []
        self._forgotten: list[Change] = []  # of these
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
        queues: dict[str, QueueRecord | None] = {}
        for name in sorted(self._touched):  # in order, so that the same commands write the same file
            queue = self.queues.get(name)
            if queue is None:
                queues[name] = None
                continue
            if queue.counts[QUEUED] != len(queue.ready):
                raise InvariantError(f"{len(queue.ready)} jobs of {name} are ready, not {queue.counts[QUEUED]}")
            queues[name] = queue.record()
        floors = Floors(self._id_floor, self._fence_floor) if self._floors_moved else None
        taken = Changes(self._revision, self._changes, queues, (), self._pruned, self._forgotten, floors)
        self._changes, self._touched, self._pruned, self._forgotten, self._floors_moved = [], set(), [], [], False
        return taken

    @property
    def revision(self) -> int:
        """Of the last change of any job."""
        return self._revision

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
        for deadlines in (self.leases, self.planned, self.expiries, self.kept, self.dead):
            deadlines.forget_queue(queue.name)
        self._id_floor = max(self._id_floor, queue.next_id)
        self._fence_floor = max(self._fence_floor, queue.next_fence)
        self._floors_moved = True
        self.touch(queue)

    def move(self, queue: Queue, job: Job, verb: str, to: JobState, now: Now, **facts: Any) -> Job:
        """Change a job by a verb."""
        moved = replace(job, state=to, revision=self._revision + 1, **facts)
        self._put(queue, verb, [job], [moved])
        if verb in queue.meters:
            queue.meters[verb].add(now.monotonic)
        return moved

    def _put(self, queue: Queue, verb: str, jobs: Sequence[Job], moved: Sequence[Job]) -> None:
        """Put the next versions of jobs in their places: every transition of every job is made here.

        They are different jobs, all in one state, and the next versions in one, with revisions that follow one another.
        """
        before, to = jobs[0].state, moved[0].state
        if (before, verb, to) not in TRANSITIONS:
            raise InvariantError(f"{verb} leads from {before} to {to}, which no transition allows")
        chunks, note = queue.jobs.chunks, self._changes.append
        for job, next_ in zip(jobs, moved):  # noqa: B905 - checking their lengths costs a single job more than the rest
            if job.state is not before:
                raise InvariantError(f"{verb} of jobs that are {before} has one that is {job.state}")
            id_ = job.id
            chunks[id_ >> CHUNK_BITS][id_] = next_
            note(Change(next_.revision, job, next_, verb))
        self._revision = next_.revision
        self._touched.add(queue.name)
        count, counts, all_counts = len(jobs), queue.counts, self.counts
        queue.totals[verb] += count
        if to is not before:
            counts[before] -= count
            counts[to] += count
            all_counts[before] -= count
            all_counts[to] += count

    def create(self, queue: Queue, new: Sequence[NewJob], now: Now) -> list[Job]:
        """Add jobs: each scheduled if it is to start later, else queued at the back."""
        created: list[Job] = []
        scheduled = 0
        name, wall, ttl_seconds = queue.name, now.wall, queue.policy.ttl_seconds
        id_, revision, payload_bytes = queue.next_id, self._revision, 0
        priority, first = 0, id_  # of those that are to be lined up together
        chunk, note = queue.jobs.chunk(id_ >> CHUNK_BITS), self._changes.append
        for one in new:
            not_before = expires_at = None
            if one.delay_seconds or one.not_before is not None:
                not_before = starts_at(one, now)
            if one.ttl_seconds is not None or ttl_seconds is not None:
                expires_at = ends_at(queue, one, now)
            if one.priority != priority or not_before is not None:
                self._line_up(queue, priority, range(first, id_))
                priority, first = one.priority, id_ + (not_before is not None)
            if not id_ & CHUNK_MASK:
                chunk = queue.jobs.chunk(id_ >> CHUNK_BITS)
            revision += 1
            chunk[id_] = job = Job(
                queue=name,
                id=id_,
                type=one.type,
                payload=one.payload,
                state=QUEUED if not_before is None else SCHEDULED,
                created_at=wall,
                revision=revision,
                priority=one.priority,
                place=queue.next_place + id_ - first if not_before is None else 0,
                ready_at=wall if not_before is None else 0.0,
                not_before=not_before,
                expires_at=expires_at,
                options=one.options,
            )
            created.append(job)
            note(Change(revision, None, job, "enqueue"))
            if not_before is not None:
                self.planned.set(name, id_, not_before)
                scheduled += 1
            if expires_at is not None:
                self.expiries.set(name, id_, expires_at)
            if one.payload is not None:
                payload_bytes += len(one.payload)
            id_ += 1
        self._line_up(queue, priority, range(first, id_))
        queued, counts, all_counts = len(created) - scheduled, queue.counts, self.counts
        counts[SCHEDULED] += scheduled
        counts[QUEUED] += queued
        all_counts[SCHEDULED] += scheduled
        all_counts[QUEUED] += queued
        self.kept_bytes += payload_bytes
        self._revision, queue.next_id = revision, id_
        self._touched.add(name)
        return created

    def plan(self, job: Job, at: float) -> None:
        """Note that a job which is about to be scheduled is due at this moment."""
        self.planned.set(job.queue, job.id, at)

    def make_ready(self, queue: Queue, job: Job, verb: str, now: Now, **facts: Any) -> Job:
        """Queue a job at the back."""
        moved = self.move(queue, job, verb, QUEUED, now, place=queue.next_place, ready_at=now.wall, **facts)
        self._line_up(queue, moved.priority, [moved.id])
        return moved

    def _line_up(self, queue: Queue, priority: int, ids: Sequence[int]) -> None:
        """Put jobs that have been given the next places into the array."""
        if ids:
            queue.ready.extend(priority, queue.next_place, ids)
            queue.next_place += len(ids)
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
            self.planned.clear(queue.name, job.id)
        if job.expires_at is not None:
            self.expiries.clear(queue.name, job.id)

    def lease(
        self,
        queue: Queue,
        jobs: Sequence[Job],
        seconds: Sequence[float],
        consumer: str | None,
        now: Now,
        *,
        holder: str | None = None,
    ) -> list[Job]:
        """Lease jobs that have left the ready ones, each for so long. The caller counts them as dequeued."""
        leased: list[Job] = []
        ids: list[int] = []
        waits: list[float] = []
        wall = now.wall
        revision, fence = self._revision, queue.next_fence
        for job, length in zip(jobs, seconds):  # noqa: B905 - see `_put`
            ids.append(job.id)
            # One that came back keeps its `ready_at` with its place, and has waited since then.
            since = max(job.ready_at, job.history[-1].ended_at) if job.history else job.ready_at
            waits.append(wall - since if wall > since else 0.0)
            key_freed = job.options.unique_until is UniqueUntil.STARTED
            if key_freed:
                self.free_unique_key(queue, job)
            if job.expires_at is not None:
                self.expiries.clear(queue.name, job.id)
            revision += 1
            leased.append(
                replace(
                    job,
                    state=IN_PROGRESS,
                    revision=revision,
                    attempts=job.attempts + 1,
                    consumer=consumer,
                    holder=holder,
                    fence=fence,
                    lease_seconds=length,
                    lease_expires_at=wall + length,
                    started_at=wall,
                    key_freed=key_freed,
                )
            )
            fence += 1
        queue.next_fence = fence
        queue.waits.observe_all(waits)
        if seconds.count(seconds[0]) == len(seconds):  # as they mostly are
            self.leases.add_all(queue.name, ids, now.monotonic + seconds[0])
        else:
            for id_, length in zip(ids, seconds, strict=True):
                self.leases.set(queue.name, id_, now.monotonic + length)
        if holder is not None:
            self.hold(holder, len(leased))
        self._put(queue, "dequeue", jobs, leased)
        return leased

    def hold(self, holder: str, jobs: int = 1) -> None:
        """Count more jobs in progress for a holder."""
        self.held[holder] = self.held.get(holder, 0) + jobs

    def _let_go(self, holder: str) -> None:
        if self.held[holder] == 1:
            del self.held[holder]
        else:
            self.held[holder] -= 1

    def restart_lease(self, queue: Queue, job: Job, now: Now) -> None:
        """Start the lease of a former life again, at full length."""
        self.leases.set(queue.name, job.id, now.monotonic + job.lease_seconds)
        if queue.policy.run_seconds_max is not None:
            self.run_ends[queue.name, job.id] = now.monotonic + queue.policy.run_seconds_max
        self.move(queue, job, "extend", IN_PROGRESS, now, lease_expires_at=now.wall + job.lease_seconds)

    def conclude(self, queue: Queue, jobs: Sequence[Job], results: Sequence[bytes | None], now: Now) -> list[Job]:
        """End leased jobs as done."""
        self._end_leases(queue, jobs, now)
        kept_until, wall = self._keep(queue, jobs, CONCLUDED, now), now.wall
        queue.meters["conclude"].add(now.monotonic, len(jobs))
        revision = self._revision
        concluded: list[Job] = []
        for job, result in zip(jobs, results):  # noqa: B905 - see `_put`
            started_at = job.started_at or 0.0  # for the type checker: it has been leased
            attempt = Attempt(job.fence, job.consumer, started_at, wall, Outcome.CONCLUDED)
            revision += 1
            concluded.append(
                replace(
                    job,
                    state=CONCLUDED,
                    revision=revision,
                    lease_expires_at=None,
                    finished_at=wall,
                    kept_until=kept_until,
                    result=result,
                    history=self._with_attempt(job.history, attempt) if job.history else (attempt,),
                )
            )
            if result is not None:
                self.kept_bytes += len(result)
        self._put(queue, "conclude", jobs, concluded)
        return concluded

    def end_attempt(
        self, queue: Queue, job: Job, outcome: Outcome, now: Now, error: JobError | None = None
    ) -> dict[str, Any]:
        """End the lease; the facts for the version of the job that comes after it."""
        self._end_leases(queue, [job], now)
        assert job.started_at is not None  # noqa: S101 - for the type checker: it has been leased
        attempt = Attempt(job.fence, job.consumer, job.started_at, now.wall, outcome, error)
        return {"history": self._with_attempt(job.history, attempt), "lease_expires_at": None}

    def _with_attempt(self, history: tuple[Attempt, ...], attempt: Attempt) -> tuple[Attempt, ...]:
        """A job's history with the attempt that has just ended."""
        self.kept_bytes += error_size(attempt.error)
        if len(history) == HISTORY_ATTEMPTS_MAX:
            self.kept_bytes -= error_size(history[0].error)
            history = history[1:]
        return (*history, attempt)

    def _end_leases(self, queue: Queue, jobs: Sequence[Job], now: Now) -> None:
        """Take jobs out of what counts and limits their leases."""
        if queue.policy.in_progress_max is not None:
            self.offer(queue)
        wall = now.wall
        ids: list[int] = []
        seconds: list[float] = []
        for job in jobs:
            assert job.started_at is not None  # noqa: S101 - for the type checker: it has been leased
            ids.append(job.id)
            seconds.append(wall - job.started_at if wall > job.started_at else 0.0)
            if job.holder is not None:
                self._let_go(job.holder)
            if self.run_ends:
                self.run_ends.pop((queue.name, job.id), None)
        self.leases.clear_all(queue.name, ids)
        queue.runs.observe_all(seconds)

    def give_back(self, queue: Queue, job: Job, verb: str, now: Now, **facts: Any) -> Job:
        """Return a job to the place it had, or grant the wish that it be cancelled."""
        if job.cancel_requested:
            return self.finish(queue, job, verb, CANCELLED, now, **facts)
        if is_expired(job, now):
            return self.finish(queue, job, verb, DEAD, now, reason=DeathReason.EXPIRED, **facts)
        if job.expires_at is not None:
            self.expiries.set(queue.name, job.id, job.expires_at)
        queue.ready.put_back(job.priority, job.place, job.id)
        self.offer(queue)
        return self.move(queue, job, verb, QUEUED, now, **facts)

    def return_later(self, queue: Queue, job: Job, verb: str, delay_seconds: float, now: Now, **facts: Any) -> Job:
        """Schedule a job whose attempt has ended, or queue it at the back if there is nothing to wait for."""
        if is_expired(job, now):
            return self.finish(queue, job, verb, DEAD, now, reason=DeathReason.EXPIRED, **facts)
        if job.expires_at is not None:
            self.expiries.set(queue.name, job.id, job.expires_at)
        if delay_seconds <= 0:
            return self.make_ready(queue, job, verb, now, **facts)
        self.plan(job, now.wall + delay_seconds)
        return self.move(queue, job, verb, SCHEDULED, now, not_before=now.wall + delay_seconds, **facts)

    def finish(self, queue: Queue, job: Job, verb: str, to: JobState, now: Now, **facts: Any) -> Job:
        """End a job."""
        kept_until = self._keep(queue, [job], to, now)
        if to is DEAD:
            queue.deaths[facts["reason"]] += 1
        return self.move(queue, job, verb, to, now, finished_at=now.wall, kept_until=kept_until, **facts)

    def _keep(self, queue: Queue, jobs: Sequence[Job], to: JobState, now: Now) -> float:
        """Let jobs that end give their unique keys back, and keep them for their retention: until when."""
        policy, settings = queue.policy, self._settings
        if to is DEAD:
            seconds = policy.dead_retention_seconds
            kept, seconds = self.dead, settings.dead_retention_seconds if seconds is None else seconds
            queue.meters["dead"].add(now.monotonic)
        else:
            seconds = policy.retention_seconds
            kept, seconds = self.kept, settings.retention_seconds if seconds is None else seconds
        ids: list[int] = []
        for job in jobs:
            ids.append(job.id)
            if job.options.unique_key is not None:
                self.free_unique_key(queue, job)
        kept.add_all(queue.name, ids, now.monotonic + seconds)
        if self.recent is not None:
            self.recent.update(((queue.name, job.id), None) for job in jobs)
        return now.wall + seconds

    def unfinish(self, queue: Queue, job: Job) -> None:
        """Take a finished job that goes on out of what counts its retention."""
        self._keep_no_longer(queue, [job])
        if self.recent is not None:
            self._redriven.add((queue.name, job.id))

    def _keep_no_longer(self, queue: Queue, jobs: Sequence[Job]) -> None:
        """Take finished jobs out of what counts their retention."""
        name = queue.name
        dead = [job.id for job in jobs if job.state is DEAD]
        if dead:
            self.dead.clear_all(name, dead)
        if len(dead) < len(jobs):
            self.kept.clear_all(name, [job.id for job in jobs if job.state is not DEAD])
        if self.recent is not None:
            for job in jobs:
                del self.recent[name, job.id]

    def expire(self, queue: Queue, job: Job, now: Now) -> None:
        """Give up a waiting job whose ttl has ended."""
        self.withdraw(queue, job)
        self.finish(queue, job, "expire", DEAD, now, reason=DeathReason.EXPIRED)

    def resume(self, recovered: Recovered) -> None:
        """Count on from where a former life has ended, with a store that has all finished jobs."""
        self.recent, self._revision = {}, recovered.revision
        self._id_floor, self._fence_floor = recovered.floors.id, recovered.floors.fence

    def forget(self, queue: Queue, jobs: Sequence[Job]) -> None:
        """Keep jobs no longer, whatever their state but in progress."""
        for job in jobs:
            if job.state in WAITING:
                self.withdraw(queue, job)
                self.free_unique_key(queue, job)
        self._keep_no_longer(queue, [job for job in jobs if job.state not in WAITING])
        if self._redriven:
            self._redriven.difference_update((queue.name, job.id) for job in jobs)
        queue.forget([job.id for job in jobs])
        for state, number in Counter(job.state for job in jobs).items():
            queue.counts[state] -= number
            self.counts[state] -= number
        self.kept_bytes -= sum(map(kept_bytes_of, jobs))
        self._changes += [
            Change(revision, job, None, "forget") for revision, job in enumerate(jobs, self._revision + 1)
        ]
        self._revision += len(jobs)
        self._touched.add(queue.name)
        queue.departures = self._revision
        queue.totals["forget"] += len(jobs)

    def leave_to_store(self, queue: Queue, jobs: Sequence[Job]) -> None:
        """Keep finished jobs no longer in memory. They still count: the store has them."""
        ids = [job.id for job in jobs]
        redriven = self._redriven.intersection([(queue.name, id_) for id_ in ids]) if self._redriven else None
        if redriven:
            # Somebody may just have read how one ended before, which must not be taken for how it has ended now.
            queue.departures = self._revision
            self.touch(queue)
            self._redriven -= redriven
        self._keep_no_longer(queue, jobs)
        queue.forget(ids)
        self.kept_bytes -= sum(map(kept_bytes_of, jobs))

    def recall(self, queue: Queue, job: Job, now: Now) -> None:
        """Take a finished job that only the store had back into memory."""
        assert self.recent is not None and job.kept_until is not None  # noqa: S101, PT018 - it comes from a store
        key = (queue.name, job.id)
        queue.jobs[job.id] = job
        queue.first_id = min(queue.first_id, job.id)
        kept = self.dead if job.state is DEAD else self.kept
        kept.set(queue.name, job.id, now.monotonic + job.kept_until - now.wall)
        self.recent[key] = None
        self.kept_bytes += kept_bytes_of(job)

    def prune(self, queue: Queue, ended: Ended) -> None:
        """Forget a finished job that only the store has."""
        state = ended.state
        queue.totals["forget"] += 1
        queue.counts[state] -= 1
        self.counts[state] -= 1
        self._revision += 1
        queue.departures = self._revision
        self.touch(queue)
        job = Job(payload=None, created_at=0.0, **asdict(ended))  # no more than is told of it
        self._pruned.append((queue.name, job.id))
        self._forgotten.append(Change(self._revision, job, None, "forget"))

    def free_unique_key(self, queue: Queue, job: Job) -> None:
        """Let another job have the unique key of this one, if it has one."""
        key = job.options.unique_key
        if key is not None and queue.unique.get(key) == job.id:
            del queue.unique[key]
