"""The state machine: every rule of the queue, and every transition of every job, in this file.

Theory of operation. `apply(command, now)` carries out one command and returns its reply, or raises a `QueueError`, the
refusal. It is plain synchronous code without I/O: the same commands at the same moments give the same replies, on
every machine and under every engine. What must happen around it (collecting commands, waking parked dequeues, storing
changes, answering) is spelled out by the engine that owns it.

Rules for editors:

1. Whatever changes a job lives here, and goes through `_move`, which checks the transition against `TRANSITIONS`,
   keeps the counts, and notes the change. The picture of the table heads queue_actor/README.md.
2. Validate everything, then mutate: a refused command leaves the state exactly as it was.
3. No clock, no randomness, no I/O. Time is the argument `now`; the token secret is an argument too.
4. Leases run on `now.monotonic`; whatever is planned or shown runs on `now.wall`.
5. Nothing scans: work is proportional to what a command changes, and a sweep or compaction is cut into slices.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from queue_actor.commands import (
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    Enqueued,
    Extend,
    ExtendClaim,
    Lease,
    NewJob,
    Position,
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
from queue_actor.errors import (
    AlreadyFinished,
    ForgottenJob,
    LeaseLost,
    MemoryFull,
    NotInProgress,
    OtherConsumer,
    QueueError,
    QueueFull,
    TooManyQueues,
    UnknownJob,
)
from queue_actor.jobs import HISTORY_ATTEMPTS_MAX, Attempt, Change, Job, JobState, Now, Outcome
from queue_actor.ready import Ready
from queue_actor.settings import Settings
from queue_actor.tokens import Tokens

SCHEDULED: Final = JobState.SCHEDULED
QUEUED: Final = JobState.QUEUED
IN_PROGRESS: Final = JobState.IN_PROGRESS
CONCLUDED: Final = JobState.CONCLUDED
CANCELLED: Final = JobState.CANCELLED

TRANSITIONS: Final = frozenset(
    {
        (SCHEDULED, "due", QUEUED),
        (SCHEDULED, "cancel", CANCELLED),
        (QUEUED, "dequeue", IN_PROGRESS),
        (QUEUED, "cancel", CANCELLED),
        (IN_PROGRESS, "extend", IN_PROGRESS),
        (IN_PROGRESS, "cancel", IN_PROGRESS),  # a wish
        (IN_PROGRESS, "conclude", CONCLUDED),
        (IN_PROGRESS, "release", QUEUED),
        (IN_PROGRESS, "release", SCHEDULED),
        (IN_PROGRESS, "release", CANCELLED),  # the wish is granted
        (IN_PROGRESS, "stale", QUEUED),
        (IN_PROGRESS, "stale", CANCELLED),  # the wish is granted
    }
)
"""From which state which verb leads where. Jobs begin as SCHEDULED or QUEUED, by `enqueue`."""


class InvariantError(Exception):
    """The state contradicts itself: a bug. The process must end rather than serve from it."""


class Queue:
    """What the state machine keeps of one queue."""

    __slots__ = ("counts", "jobs", "name", "next_fence", "next_id", "next_place", "ready")

    def __init__(self, name: str, settings: Settings, now: Now) -> None:
        self.name = name
        self.jobs: dict[int, Job] = {}
        self.ready = Ready(settings)
        self.counts = dict.fromkeys(JobState, 0)
        self.next_id = 1
        self.next_place = 1
        # Microseconds of the wall clock, so that fences also grow from one life of the server to the next.
        # Above 0 also where the clock was never set: 0 stands for no lease at all.
        self.next_fence = max(1, int(now.wall * 1_000_000))


class StateMachine:
    """All queues, and the one way to change them."""

    def __init__(self, settings: Settings, *, secret: bytes) -> None:
        self._settings = settings
        self._tokens = Tokens(secret)
        self._queues: dict[str, Queue] = {}
        self._counts = dict.fromkeys(JobState, 0)  # over all queues
        self._payload_bytes = 0
        self._revision = 0
        self._leases: Deadlines[tuple[str, int]] = Deadlines()  # monotonic
        self._planned: Deadlines[tuple[str, int]] = Deadlines()  # wall
        self._finished: deque[tuple[float, str, int]] = deque()  # when (monotonic), queue, id; oldest first
        self._changes: list[Change] = []
        self._readied: dict[str, None] = {}  # a set that keeps its order, so that no reply depends on hashing
        self._verbs: dict[type[Command[Any]], Callable[[Any, Now], Any]] = {
            Enqueue: self._enqueue,
            Dequeue: self._dequeue,
            Conclude: self._conclude,
            Extend: self._extend,
            Release: self._release,
            Cancel: self._cancel,
            ReadJob: self._read_job,
            ReadPosition: self._read_position,
            ReadQueue: self._read_queue,
            Sweep: self._sweep,
        }

    # --- what an engine needs

    def apply(self, command: Command[R], now: Now) -> R:
        """Carry out one command.

        Raises:
            QueueError: The refusal; nothing was changed.
        """
        reply: R = self._verbs[type(command)](command, now)
        return reply

    def take_changes(self) -> Sequence[Change]:
        """The changes since the last call, oldest first; the caller stores them before he answers anyone.

        Raises:
            InvariantError: The counts do not agree with the structures they count.
        """
        if self._counts[IN_PROGRESS] != len(self._leases) or self._counts[SCHEDULED] != len(self._planned):
            raise InvariantError("leases or planned jobs are not what the counts say")
        changes, self._changes = self._changes, []
        for change in changes:
            queue = self._queues[(change.after or change.before).queue]  # type: ignore[union-attr] # one of them is there
            if queue.counts[QUEUED] != len(queue.ready):
                raise InvariantError(f"{len(queue.ready)} jobs of {queue.name} are ready, not {queue.counts[QUEUED]}")
        return changes

    @property
    def changes_waiting(self) -> int:
        """How many changes `take_changes` would give."""
        return len(self._changes)

    def take_readied(self) -> Sequence[str]:
        """The queues in which a job has become ready since the last call, in the order in which they did."""
        readied, self._readied = self._readied, {}
        return list(readied)

    def next_due_seconds(self, now: Now) -> float | None:
        """How long until a lease ends or a planned job is due; None if there is neither."""
        lease, planned = self._leases.next(), self._planned.next()
        seconds = [
            deadline - clock
            for deadline, clock in ((lease, now.monotonic), (planned, now.wall))
            if deadline is not None
        ]
        return max(0.0, min(seconds)) if seconds else None

    # --- the one door

    def _move(self, queue: Queue, job: Job, verb: str, to: JobState, **facts: Any) -> Job:
        """Put the next version of a job in its place: every transition of every job is made here."""
        if (job.state, verb, to) not in TRANSITIONS:
            raise InvariantError(f"{verb} leads from {job.state} to {to}, which no transition allows")
        self._revision += 1
        moved = replace(job, state=to, revision=self._revision, **facts)
        queue.jobs[job.id] = moved
        if to is not job.state:
            queue.counts[job.state] -= 1
            queue.counts[to] += 1
            self._counts[job.state] -= 1
            self._counts[to] += 1
        self._changes.append(Change(self._revision, job, moved))
        return moved

    # --- enqueue

    def _enqueue(self, command: Enqueue, now: Now) -> Enqueued:
        settings = self._settings
        queue = self._queues.get(command.queue)
        if queue is None and len(self._queues) >= settings.queues_max:
            raise TooManyQueues(f"{settings.queues_max} queues exist, as many as queues_max allows", field="queue")
        if self._counts[QUEUED] + self._counts[SCHEDULED] + len(command.jobs) > settings.queued_jobs_max:
            raise QueueFull(f"{settings.queued_jobs_max} jobs may wait, as many as queued_jobs_max allows")
        payload_bytes = self._payload_bytes + sum(len(new.payload) for new in command.jobs if new.payload is not None)
        if payload_bytes > settings.memory_bytes_max:
            raise MemoryFull(f"{settings.memory_bytes_max} bytes may be kept, as many as memory_bytes_max allows")

        if queue is None:
            queue = self._queues[command.queue] = Queue(command.queue, settings, now)
        self._payload_bytes = payload_bytes
        return Enqueued([self._create(queue, new, now) for new in command.jobs])

    def _create(self, queue: Queue, new: NewJob, now: Now) -> Job:
        id_ = queue.next_id
        queue.next_id = id_ + 1
        self._revision += 1
        planned = new.delay_seconds > 0
        state = SCHEDULED if planned else QUEUED
        job = Job(
            queue=queue.name,
            id=id_,
            type=new.type,
            payload=new.payload,
            state=state,
            created_at=now.wall,
            revision=self._revision,
            priority=new.priority,
            place=0 if planned else queue.next_place,
            not_before=now.wall + new.delay_seconds if planned else None,
        )
        queue.jobs[id_] = job
        queue.counts[state] += 1
        self._counts[state] += 1
        self._changes.append(Change(self._revision, None, job))
        if job.not_before is not None:
            self._planned.set((queue.name, id_), job.not_before)
        else:
            self._append(queue, job)
        return job

    def _append(self, queue: Queue, job: Job) -> None:
        """Put a job that has just been given the next place at the back."""
        queue.next_place = job.place + 1
        queue.ready.append(job.priority, job.place, job.id)
        self._readied[queue.name] = None

    # --- dequeue

    def _dequeue(self, command: Dequeue, now: Now) -> Dequeued:
        queue = self._queues.get(command.queue)
        if queue is None:
            return Dequeued()
        leases: list[Lease] = []
        bytes_left = self._settings.reply_bytes_max
        while len(leases) < command.count:
            id_ = queue.ready.first()
            if id_ is None:
                break
            job = queue.jobs[id_]
            bytes_left -= 0 if job.payload is None else len(job.payload)
            if bytes_left < 0 and leases:
                break
            queue.ready.popleft()
            leases.append(self._lease(queue, job, command, now))
        queue.ready.tidy()
        return Dequeued(leases)

    def _lease(self, queue: Queue, job: Job, command: Dequeue, now: Now) -> Lease:
        seconds = command.lease_seconds or self._settings.lease_seconds
        fence = queue.next_fence
        queue.next_fence = fence + 1
        leased = self._move(
            queue,
            job,
            "dequeue",
            IN_PROGRESS,
            attempts=job.attempts + 1,
            consumer=command.consumer,
            fence=fence,
            lease_seconds=seconds,
            lease_expires_at=now.wall + seconds,
            started_at=now.wall,
        )
        self._leases.set((queue.name, job.id), now.monotonic + seconds)
        return Lease(leased, self._tokens.issue(queue.name, job.id, fence))

    # --- the holder's verbs

    def _conclude(self, command: Conclude, now: Now) -> Results:
        return Results([_answer(self._conclude_one, claim, now) for claim in command.claims])

    def _extend(self, command: Extend, now: Now) -> Results:
        return Results([_answer(self._extend_one, claim, now) for claim in command.claims])

    def _release(self, command: Release, now: Now) -> Results:
        return Results([_answer(self._release_one, claim, now) for claim in command.claims])

    def _conclude_one(self, claim: Claim, now: Now) -> Job:
        queue, job, again = self._held(claim, Outcome.CONCLUDED)
        if again:
            return job
        return self._finish(queue, job, "conclude", CONCLUDED, now, **self._ended(job, Outcome.CONCLUDED, now))

    def _extend_one(self, claim: ExtendClaim, now: Now) -> Job:
        queue, job, _ = self._held(claim, None)
        seconds = claim.lease_seconds or job.lease_seconds
        self._leases.set((queue.name, job.id), now.monotonic + seconds)
        return self._move(queue, job, "extend", IN_PROGRESS, lease_seconds=seconds, lease_expires_at=now.wall + seconds)

    def _release_one(self, claim: ReleaseClaim, now: Now) -> Job:
        queue, job, again = self._held(claim, Outcome.RELEASED)
        if again:
            return job
        facts = self._ended(job, Outcome.RELEASED, now)
        if claim.delay_seconds > 0 and not job.cancel_requested:
            facts["not_before"] = now.wall + claim.delay_seconds
            self._planned.set((queue.name, job.id), facts["not_before"])
            return self._move(queue, job, "release", SCHEDULED, **facts)
        return self._give_back(queue, job, "release", now, **facts)

    def _held(self, claim: Claim, outcome: Outcome | None) -> tuple[Queue, Job, bool]:
        """The job that the claim holds, or (True) has already ended with this outcome.

        Raises:
            QueueError: Neither.
        """
        queue, job = self._find(claim.queue, claim.id)
        if claim.token is not None:
            fence = self._tokens.fence(queue.name, job.id, claim.token)
            if job.state is IN_PROGRESS and fence == job.fence:
                return queue, job, False
            if any(attempt.fence == fence and attempt.outcome is outcome for attempt in job.history):
                return queue, job, True
            raise LeaseLost(f"the token shown does not hold job {job.id}", field="token")
        again = job.state is CONCLUDED and outcome is Outcome.CONCLUDED
        if job.state is not IN_PROGRESS and not again:
            raise NotInProgress(f"job {job.id} is {job.state}")
        if job.consumer is not None and job.consumer != claim.consumer:
            raise OtherConsumer(f"job {job.id} was dequeued by another consumer", field="consumer")
        return queue, job, again

    def _ended(self, job: Job, outcome: Outcome, now: Now) -> dict[str, Any]:
        """End the lease; the facts for the version of the job that comes after it."""
        assert job.started_at is not None  # noqa: S101 - for the type checker: it has been leased
        self._leases.clear((job.queue, job.id))
        attempt = Attempt(job.fence, job.consumer, job.started_at, now.wall, outcome)
        return {"history": (*job.history, attempt)[-HISTORY_ATTEMPTS_MAX:], "lease_expires_at": None}

    def _give_back(self, queue: Queue, job: Job, verb: str, now: Now, **facts: Any) -> Job:
        """Return a job to the place it had, or grant the wish that it be cancelled."""
        if job.cancel_requested:
            return self._finish(queue, job, verb, CANCELLED, now, **facts)
        queue.ready.put_back(job.priority, job.place, job.id)
        self._readied[queue.name] = None
        return self._move(queue, job, verb, QUEUED, **facts)

    def _finish(self, queue: Queue, job: Job, verb: str, to: JobState, now: Now, **facts: Any) -> Job:
        self._finished.append((now.monotonic, queue.name, job.id))
        return self._move(queue, job, verb, to, finished_at=now.wall, **facts)

    # --- the operator's verbs

    def _cancel(self, command: Cancel, now: Now) -> Results:
        def cancel(id_: int, now: Now) -> Job:
            return self._cancel_one(*self._find(command.queue, id_), now)

        results = Results([_answer(cancel, id_, now) for id_ in command.ids])
        if command.queue in self._queues:
            self._queues[command.queue].ready.tidy()
        return results

    def _cancel_one(self, queue: Queue, job: Job, now: Now) -> Job:
        match job.state:
            case JobState.CANCELLED:
                return job
            case JobState.CONCLUDED:
                raise AlreadyFinished(f"job {job.id} is {job.state}")
            case JobState.IN_PROGRESS:
                return (
                    job if job.cancel_requested else self._move(queue, job, "cancel", job.state, cancel_requested=True)
                )
            case JobState.SCHEDULED:
                self._planned.clear((queue.name, job.id))
            case _:  # queued
                queue.ready.remove(job.priority, job.place)
        return self._finish(queue, job, "cancel", CANCELLED, now, cancel_requested=True)

    # --- reads

    def _find(self, name: str, id_: int) -> tuple[Queue, Job]:
        queue = self._queues.get(name)
        job = None if queue is None else queue.jobs.get(id_)
        if queue is not None and job is not None:
            return queue, job
        if queue is not None and 0 < id_ < queue.next_id:
            raise ForgottenJob(f"job {id_} of queue {name} has ended and is no longer kept", field="id")
        raise UnknownJob(f"queue {name} has no job {id_}", field="id")

    def _read_job(self, command: ReadJob, _now: Now) -> Job:
        return self._find(command.queue, command.id)[1]

    def _read_position(self, command: ReadPosition, _now: Now) -> Position:
        queue, job = self._find(command.queue, command.id)
        return Position(queue.ready.ahead(job.priority, job.place) if job.state is QUEUED else None)

    def _read_queue(self, command: ReadQueue, _now: Now) -> QueueView:
        queue = self._queues.get(command.queue)
        counts = dict.fromkeys(JobState, 0) if queue is None else dict(queue.counts)
        return QueueView(command.queue, queue is not None, counts)

    # --- time

    def _sweep(self, _command: Sweep, now: Now) -> Swept:
        limit = self._settings.sweep_slice
        stale = due = forgotten = 0
        while stale < limit and (key := self._leases.due(now.monotonic)):
            self._return_stale(*key, now)
            stale += 1
        while due < limit and (key := self._planned.due(now.wall)):
            self._make_ready(*key)
            due += 1
        while forgotten < limit and self._is_past_retention(now):
            self._forget_oldest()
            forgotten += 1
        return Swept(
            stale=stale,
            due=due,
            forgotten=forgotten,
            more=limit in {stale, due, forgotten},
            next_due_seconds=self.next_due_seconds(now),
        )

    def _return_stale(self, name: str, id_: int, now: Now) -> None:
        queue = self._queues[name]
        job = queue.jobs[id_]
        self._give_back(queue, job, "stale", now, stales=job.stales + 1, **self._ended(job, Outcome.STALE, now))

    def _make_ready(self, name: str, id_: int) -> None:
        queue = self._queues[name]
        self._planned.clear((name, id_))
        job = self._move(queue, queue.jobs[id_], "due", QUEUED, place=queue.next_place)
        self._append(queue, job)

    def _is_past_retention(self, now: Now) -> bool:
        if not self._finished:
            return False
        settings = self._settings
        too_many = len(self._finished) > settings.retention_jobs
        return too_many or self._finished[0][0] <= now.monotonic - settings.retention_seconds

    def _forget_oldest(self) -> None:
        _, name, id_ = self._finished.popleft()
        queue = self._queues[name]
        job = queue.jobs.pop(id_)
        queue.counts[job.state] -= 1
        self._counts[job.state] -= 1
        self._payload_bytes -= 0 if job.payload is None else len(job.payload)
        self._revision += 1
        self._changes.append(Change(self._revision, job, None))


def _answer(verb: Callable[[Any, Now], Job], subject: Any, now: Now) -> Job | QueueError:
    """A result of a batch: a refused job does not refuse its neighbours."""
    try:
        return verb(subject, now)
    except QueueError as refusal:
        return refusal.with_traceback(None)
