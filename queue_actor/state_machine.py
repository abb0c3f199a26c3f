"""The state machine: every rule of the queue, in this file.

Theory of operation. `apply(command, now)` carries out one command and returns its reply, or raises a `QueueError`, the
refusal. It is plain synchronous code without I/O: the same commands at the same moments give the same replies, on
every machine and under every engine. What must happen around it (collecting commands, waking parked dequeues, storing
changes, answering) is spelled out by the engine that owns it.

Rules for editors:

1. Whatever is decided about a job is decided here; whatever changes it goes through the ledger, which checks the
   transition against `TRANSITIONS` and notes the change. The picture of the table heads queue_actor/README.md.
2. Validate everything, then mutate: a refused command leaves the state exactly as it was.
3. No clock, no randomness, no I/O. Time is an argument; so is the token secret, from which chance is drawn too.
4. Leases run on `now.monotonic`; whatever is planned or shown runs on `now.wall`.
5. Nothing scans: work is proportional to what a command changes, and whatever may be much is cut into slices.

It is longer than the other files because the rules of a queue lie between its verbs: a token holds one lease, a job
waits in one place, a key belongs to one job. They can be checked by reading only while they stand together.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from typing import Any, TypeVar

from msgspec.structs import replace

from queue_actor import queries
from queue_actor.changes import AnswerKind, Changes, Holding, Recovered
from queue_actor.commands import (
    Bulk,
    BulkDone,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Dequeue,
    Dequeued,
    DequeueOrder,
    Enqueue,
    Enqueued,
    EnqueuedJob,
    Explain,
    Explanation,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    Lease,
    ListQueues,
    Measure,
    NewJob,
    Pause,
    Position,
    Prune,
    QueueView,
    R,
    ReadJob,
    ReadPosition,
    ReadQueue,
    ReadTrends,
    Recalled,
    Redrive,
    Release,
    ReleaseClaim,
    Results,
    RunNow,
    Search,
    SetPolicy,
    Survey,
    Sweep,
    Swept,
    TakeBack,
)
from queue_actor.errors import (
    AlreadyFinished,
    DiskFull,
    HolderFull,
    InvalidCommand,
    LeaseLost,
    MemoryFull,
    NotFinished,
    NotInProgress,
    NotWaiting,
    OtherConsumer,
    QueueError,
    QueueNotEmpty,
    RunTooLong,
    TooManyQueues,
    UniqueKeyTaken,
    UnknownQueue,
)
from queue_actor.explain import explain
from queue_actor.idempotency import Answers
from queue_actor.ids import CHUNK_BITS, ByIds
from queue_actor.jobs import (
    DEFAULT_QUEUE,
    FINISHED,
    WAITING,
    DeathReason,
    Job,
    JobState,
    Now,
    OnExisting,
    Outcome,
    is_expired,
    size,
)
from queue_actor.ledger import Ledger
from queue_actor.queues import Queue, ends_at, starts_at
from queue_actor.recovery import restore, start_leases
from queue_actor.retention import Retention, slice_due
from queue_actor.retry import retry_seconds
from queue_actor.settings import Settings
from queue_actor.survey import Surveyor
from queue_actor.tokens import Tokens
from queue_actor.transitions import CANCELLED, CONCLUDED, DEAD, IN_PROGRESS, QUEUED, SCHEDULED
from queue_actor.trends import Trends

BULK_JOBS_MAX = 100
"""Jobs that one slice of a bulk command changes: for a millisecond nobody else is served."""

SWEEP_JOBS_MIN = 100
"""Jobs of each kind that one sweep moves, if there are so many to move and little else has changed: a millisecond."""

DISK_BYTES_PER_JOB = 1_000
"""What a job takes on a disk beside its payload, which goes there twice: through the store's log."""

A = TypeVar("A")


class StateMachine:
    """All queues, and the one way to change them."""

    def __init__(self, settings: Settings, *, secret: bytes) -> None:
        self._settings = settings
        self._tokens = Tokens(secret)
        self._ledger = Ledger(settings)
        self._queues = self._ledger.queues
        self._retention = Retention(self._ledger, settings)
        self._trends = Trends(self._queues)
        self._surveyor = Surveyor(self._queues)
        self._leased_before: list[Job] = []  # jobs that were restored, until their leases start again
        self.disk_room_bytes = inf
        """What the store's disk has room for, beyond its reserve; told by the engine."""
        self._swept_revision: int | None = None  # when the last sweep ended, if it left something to do
        self._services = 0  # dequeues that found something, for the fair order
        self._enqueue_answers: Answers[Enqueued] = self._new_answers("enqueue")
        self._dequeue_answers: Answers[tuple[Holding, ...]] = self._new_answers("dequeue")
        self._verbs: dict[type[Command[Any]], Callable[[Any, Now], Any]] = {
            Enqueue: self._enqueue,
            Dequeue: self._dequeue,
            Conclude: self._conclude,
            Fail: self._each_claim(self._fail_one),
            Extend: self._each_claim(self._extend_one),
            Release: self._each_claim(self._release_one),
            Cancel: self._each_id(self._cancel_one),
            Redrive: self._each_id(self._redrive_one),
            RunNow: self._each_id(self._run_one),
            TakeBack: self._each_id(self._take_back_one),
            Forget: self._each_id(self._forget_one),
            Bulk: self._bulk,
            SetPolicy: self._set_policy,
            Pause: self._pause,
            DeleteQueue: self._delete_queue,
            ReadJob: lambda read, _: queries.find_job(self._queues, read.queue, read.id)[1],
            ReadPosition: self._read_position,
            Explain: self._explain,
            ReadTrends: self._trends.read,
            Survey: self._surveyor.survey,
            ReadQueue: lambda read, now: queries.view(self._queues.get(read.queue), read.queue, now),
            ListQueues: lambda read, now: queries.list_queues(self._queues, read, now),
            Measure: lambda read, now: queries.measure(self._queues, read, now, memory_bytes=self._ledger.kept_bytes),
            Search: lambda read, _: queries.search(self._queues.get(read.queue), read),
            Sweep: self._sweep,
            Prune: self._retention.prune,
            Recalled: self._recalled,
        }

    def _new_answers(self, kind: AnswerKind) -> Answers[Any]:
        settings = self._settings
        return Answers(kind, seconds=settings.idempotency_seconds, keys_max=settings.idempotency_keys_max)

    # --- what an engine needs

    def apply(self, command: Command[R], now: Now) -> R:
        """Carry out one command.

        Raises:
            QueueError: The refusal; nothing was changed.
        """
        reply: R = self._verbs[type(command)](command, now)
        return reply

    def restore(self, recovered: Recovered, now: Now) -> None:
        """Go on from what a store has kept of a former life; only for a machine that has done nothing yet."""
        self._leased_before = restore(self._ledger, recovered, now)
        for record in recovered.answers:
            if record.kind == "enqueue":
                self._enqueue_answers.restore(record, record.answer, len(record.answer.jobs), now)
            else:
                self._dequeue_answers.restore(record, record.answer, len(record.answer), now)

    def start_leases(self, now: Now) -> None:
        """Start the leases of a former life again, at full length: nobody could be heard meanwhile."""
        start_leases(self._ledger, self._leased_before, now)
        self._leased_before = []

    def take_changes(self) -> Changes:
        """What changed since the last call, oldest first; the caller stores it before he answers anyone."""
        changes = self._ledger.take_changes()
        if changes.queues:
            self._surveyor.note(changes.queues)
        if self._enqueue_answers.records or self._dequeue_answers.records:
            answers = [*self._enqueue_answers.take_records(), *self._dequeue_answers.take_records()]
            changes = replace(changes, answers=answers)
        return changes

    @property
    def changes_waiting(self) -> int:
        """How many changes `take_changes` would give."""
        return self._ledger.changes_waiting

    def take_readied(self) -> Iterable[str]:
        """The queues in which a job may have become available since the last call, in that order."""
        return self._ledger.take_readied()

    def offers(self, name: str) -> bool:
        """Whether a queue may hand out a job now."""
        queue = self._queues.get(name)
        if queue is None or queue.paused:
            return False
        most = queue.policy.in_progress_max
        return len(queue.ready) > 0 and (most is None or queue.counts[IN_PROGRESS] < most)

    def next_due_seconds(self, now: Now) -> float | None:
        """How long until a sweep has something to do that cannot wait; None if there is nothing."""
        return self._ledger.next_due_seconds(now)

    # --- queues

    def _check_new_queue(self, name: str) -> None:
        if name not in self._queues and len(self._queues) >= self._settings.queues_max:
            raise TooManyQueues(
                f"{self._settings.queues_max} queues exist, as many as queues_max allows", field="queue"
            )

    def _existing(self, name: str) -> Queue:
        if name not in self._queues:
            raise UnknownQueue(f"there is no queue {name}", field="queue")
        return self._queues[name]

    def _set_policy(self, command: SetPolicy, now: Now) -> QueueView:
        self._check_new_queue(command.queue)
        queue = self._ledger.open_queue(command.queue, now)
        self._ledger.touch(queue)
        queue.policy = command.policy
        if command.paused is not None:
            queue.paused = command.paused
        queue.declared = True
        self._ledger.offer(queue)  # it may have become more generous
        return queries.view(queue, queue.name, now)

    def _pause(self, command: Pause, now: Now) -> QueueView:
        queue = self._existing(command.queue)
        self._ledger.touch(queue)
        queue.paused = command.paused
        self._ledger.offer(queue)
        return queries.view(queue, queue.name, now)

    def _delete_queue(self, command: DeleteQueue, now: Now) -> QueueView:
        queue = self._existing(command.queue)
        jobs = sum(queue.counts.values())
        if jobs:
            raise QueueNotEmpty(f"queue {queue.name} holds {jobs} jobs: purge it first", field="queue")
        self._ledger.delete_queue(queue)
        return queries.view(None, queue.name, now)

    # --- enqueue

    def _enqueue(self, command: Enqueue, now: Now) -> Enqueued:
        if command.key is not None:
            answer = self._enqueue_answers.find(command.key, now)
            if answer is not None:
                return answer
        self._check_plans(command, now)
        self.disk_room_bytes -= self._check_room(command)
        queue = self._ledger.open_queue(command.queue, now)
        first = queue.next_id
        reply = Enqueued(self._create_or_meet(queue, command.jobs, now))
        queue.meters["enqueue"].add(now.monotonic, queue.next_id - first)
        queue.totals["enqueue"] += queue.next_id - first
        if command.key is not None:
            self._enqueue_answers.remember(command.key, reply, len(reply.jobs), now)
        return reply

    def _check_plans(self, command: Enqueue, now: Now) -> None:
        latest = now.wall + self._settings.delay_seconds_max
        for n, new in enumerate(command.jobs):
            if new.not_before is not None and new.not_before > latest:
                raise InvalidCommand(
                    f"a job starts at most delay_seconds_max, {self._settings.delay_seconds_max:.12g}, from now",
                    field=f"jobs[{n}].not_before",
                )

    def _check_room(self, command: Enqueue) -> int:
        """Refuse what has no room; how many bytes of the disk the rest takes."""
        settings = self._settings
        queue = self._queues.get(command.queue)
        if queue is None:
            if settings.queues == "declared" and command.queue != DEFAULT_QUEUE:
                raise UnknownQueue(f"there is no queue {command.queue}, and queues must be declared", field="queue")
            self._check_new_queue(command.queue)
        jobs, payload_bytes = queries.growth(queue, command.jobs)
        queries.check_waiting(queue, self._ledger.counts, jobs, settings)
        if payload_bytes > 0 and self._ledger.kept_bytes + payload_bytes > settings.memory_bytes_max:
            raise MemoryFull(f"{settings.memory_bytes_max} bytes may be kept, as many as memory_bytes_max allows")
        disk_bytes = jobs * DISK_BYTES_PER_JOB + max(0, 2 * payload_bytes)
        if disk_bytes > max(0, self.disk_room_bytes):
            raise DiskFull("the disk has no room for more jobs: less than disk_reserve_bytes would be left")
        return disk_bytes

    def _create_or_meet(self, queue: Queue, jobs: Sequence[NewJob], now: Now) -> list[EnqueuedJob | QueueError]:
        """Add jobs, but for those whose unique key is taken; as many as possible at once."""
        answers: list[EnqueuedJob | QueueError] = []
        start = 0  # of those that are not created yet
        for n, new in enumerate(jobs):
            key = new.options.unique_key
            if key is not None:
                if key not in queue.unique:
                    queue.unique[key] = queue.next_id + n - start
                    continue
                self._create(queue, jobs[start:n], now, answers)
                start = n + 1
                answers.append(_answer(self._meet, queue, queue.jobs[queue.unique[key]], new, now))
        self._create(queue, jobs[start:] if start else jobs, now, answers)
        return answers

    def _create(self, queue: Queue, jobs: Sequence[NewJob], now: Now, answers: list[EnqueuedJob | QueueError]) -> None:
        if jobs:
            answers += [EnqueuedJob(job.id, job.state) for job in self._ledger.create(queue, jobs, now)]

    def _meet(self, queue: Queue, job: Job, new: NewJob, now: Now) -> EnqueuedJob:
        """Enqueue what has the unique key of a job that is there."""
        if new.on_existing is OnExisting.REFUSE:
            raise UniqueKeyTaken(f"job {job.id} has this unique key", field="unique_key")
        if new.on_existing is OnExisting.REPLACE and job.state in WAITING:
            job = self._replace(queue, job, new, now)
        return EnqueuedJob(job.id, job.state, existing=True)

    def _replace(self, queue: Queue, job: Job, new: NewJob, now: Now) -> Job:
        """Put new content into a waiting job. One that stays queued keeps its place."""
        self._ledger.withdraw(queue, job)
        queue.ready.tidy()
        self._ledger.kept_bytes += size(new.payload) - size(job.payload)
        not_before, expires_at = starts_at(new, now), ends_at(queue, new, now)
        facts = {
            "type": new.type,
            "payload": new.payload,
            "priority": new.priority,
            "options": new.options,
            "not_before": not_before,
            "expires_at": expires_at,
        }
        if expires_at is not None:
            self._ledger.expiries.set(queue.name, job.id, expires_at)
        if not_before is not None:
            self._ledger.plan(job, not_before)
            return self._ledger.move(queue, job, "replace", SCHEDULED, now, **facts)
        if job.state is SCHEDULED:
            return self._ledger.make_ready(queue, job, "replace", now, **facts)
        queue.ready.put_back(new.priority, job.place, job.id)
        self._ledger.offer(queue)
        return self._ledger.move(queue, job, "replace", QUEUED, now, **facts)

    # --- dequeue

    def _dequeue(self, command: Dequeue, now: Now) -> Dequeued:
        if command.key is not None:
            answer = self._dequeue_answers.find(command.key, now)
            if answer is not None:
                held = [lease for holding in answer if (lease := self._lease_again(*holding)) is not None]
                return Dequeued(held, repeated=True)
        count = command.count if command.holder is None else self._count_for_holder(command.holder, command)
        basket = _Basket(self._settings.reply_bytes_max)
        queue = self._queues.get(command.queue) if isinstance(command.queue, str) else None
        if queue is not None:
            self._lease_from(queue, command, count, basket, now)
        else:
            self._lease_from_several(self._named(command.queue), command, count, basket, now)
        if command.key is not None and basket.leases:
            answer = tuple((lease.job.queue, lease.job.id, lease.job.fence) for lease in basket.leases)
            self._dequeue_answers.remember(command.key, answer, len(answer), now)
        return Dequeued(basket.leases)

    def _count_for_holder(self, holder: str, command: Dequeue) -> int:
        """How many jobs a holder may be given now.

        Raises:
            HolderFull: None.
        """
        most = command.holder_in_progress_max
        if most is None:
            return command.count
        left = most - self._ledger.held.get(holder, 0)
        if left <= 0:
            raise HolderFull(f"{holder} may have {most} jobs in progress, and has them")
        return min(command.count, left)

    def _named(self, names: str | tuple[str, ...]) -> Sequence[Queue]:
        """Those of several queues that exist; of all that begin with a prefix, those that have jobs, by name."""
        if not isinstance(names, str):
            return [self._queues[name] for name in dict.fromkeys(names) if name in self._queues]
        if not names.endswith("*"):
            return ()
        self._ledger.stocked = {name for name in self._ledger.stocked if len(self._queues[name].ready)}
        return [self._queues[name] for name in sorted(self._ledger.stocked) if name.startswith(names[:-1])]

    def _lease_from_several(
        self, queues: Sequence[Queue], command: Dequeue, count: int, basket: "_Basket", now: Now
    ) -> None:
        if command.order is DequeueOrder.LISTED:
            for queue in queues:
                self._lease_from(queue, command, count - len(basket.leases), basket, now)
            return
        turns = sorted(queues, key=lambda queue: queue.served)
        before = -1
        while before < len(basket.leases) < count:
            before = len(basket.leases)
            for queue in turns:
                self._lease_from(queue, command, min(1, count - len(basket.leases)), basket, now)

    def _lease_from(self, queue: Queue, command: Dequeue, count: int, basket: "_Basket", now: Now) -> None:
        """Lease up to so many jobs of one queue, in order."""
        queue.asked_at = now.monotonic
        if command.consumer is not None:
            queue.see(command.consumer, now.monotonic)
        if queue.paused:
            return
        ready, policy, before = queue.ready, queue.policy, queue.dequeues
        looks = count + self._settings.sweep_slice  # expired jobs at the head are a bounded part of this command
        while count > 0:
            limit, oldest = count, False
            if policy.in_progress_max is not None:
                limit = min(limit, policy.in_progress_max - queue.counts[IN_PROGRESS])
            if policy.oldest_every > 0:
                until_oldest = policy.oldest_every - 1 - queue.dequeues % policy.oldest_every
                oldest = until_oldest == 0
                limit = min(limit, max(1, until_oldest))
            ids = ready.head(limit, oldest=oldest) if limit > 0 else ()
            if not ids:
                break
            jobs = basket.fitting(queue.jobs, ids, now)
            if jobs:
                ready.take(len(jobs), oldest=oldest)
                basket.leases += self._lease(queue, jobs, command, now)
                count -= len(jobs)
            elif is_expired(job := queue.jobs[ids[0]], now):
                self._ledger.expire(queue, job, now)
                looks -= 1
                if looks == 0:
                    self._ledger.offer(queue)
                    break
            else:
                break
        queue.meters["dequeue"].add(now.monotonic, queue.dequeues - before)
        ready.tidy()

    def _lease(self, queue: Queue, jobs: Sequence[Job], command: Dequeue, now: Now) -> list[Lease]:
        policy = queue.policy
        asked, usual = command.lease_seconds, policy.lease_seconds or self._settings.lease_seconds
        seconds = [asked or job.options.lease_seconds or usual for job in jobs]
        if policy.run_seconds_max is not None:
            seconds = [min(length, policy.run_seconds_max) for length in seconds]
            for job in jobs:
                self._ledger.run_ends[queue.name, job.id] = now.monotonic + policy.run_seconds_max
        self._services += len(jobs)
        queue.served = self._services
        queue.dequeues += len(jobs)
        leased = self._ledger.lease(queue, jobs, seconds, command.consumer, now, holder=command.holder)
        return [Lease(job, self._tokens.issue(queue.name, job.id, job.fence)) for job in leased]

    def _lease_again(self, name: str, id_: int, fence: int) -> Lease | None:
        """A lease that was given under an idempotency key, if it still holds."""
        queue = self._queues.get(name)
        job = None if queue is None else queue.jobs.get(id_)
        if job is None or job.state is not IN_PROGRESS or job.fence != fence:
            return None
        return Lease(job, self._tokens.issue(name, id_, fence))

    # --- the holder's verbs

    def _each_claim(self, verb: Callable[[Any, Now], Job]) -> Callable[[Any, Now], Results]:
        def each(command: Any, now: Now) -> Results:
            results: list[Job | QueueError] = []
            for claim in command.claims:
                try:
                    results.append(verb(claim, now))
                except QueueError as refusal:
                    results.append(refusal.with_traceback(None))
            return Results(results)

        return each

    def _conclude(self, command: Conclude, now: Now) -> Results:
        """Like the other verbs of a holder, but as many jobs of a queue at once as come one after the other."""
        results: list[Job | QueueError] = []
        held: dict[int, Job] = {}  # to be concluded together
        texts: list[bytes | None] = []  # their results
        queue: Queue | None = None
        for claim in command.claims:
            if queue is not None and (claim.id in held or claim.queue != queue.name):
                self._conclude_held(queue, held, texts, results, now)
            try:
                queue, job, again = self._held(claim, Outcome.CONCLUDED)
            except QueueError as refusal:
                answer: Job | QueueError = refusal.with_traceback(None)
            else:
                if not again:
                    held[claim.id] = job
                    texts.append(claim.result if isinstance(claim, ConcludeClaim) else None)
                    continue
                answer = job
            self._conclude_held(queue, held, texts, results, now)
            results.append(answer)
        self._conclude_held(queue, held, texts, results, now)
        return Results(results)

    def _conclude_held(
        self,
        queue: Queue | None,
        held: dict[int, Job],
        texts: list[bytes | None],
        results: list[Job | QueueError],
        now: Now,
    ) -> None:
        if held and queue is not None:
            results += self._ledger.conclude(queue, list(held.values()), texts, now)
            held.clear()
            texts.clear()

    def _fail_one(self, claim: FailClaim, now: Now) -> Job:
        queue, job, again = self._held(claim, Outcome.FAILED)
        if again:
            return job
        facts = self._ledger.end_attempt(queue, job, Outcome.FAILED, now, claim.error)
        facts["fails"] = job.fails + 1
        if job.cancel_requested:
            return self._ledger.finish(queue, job, "fail", CANCELLED, now, **facts)
        if not claim.retry:
            return self._ledger.finish(queue, job, "fail", DEAD, now, reason=DeathReason.KILLED, **facts)
        if self._is_spent(queue, job, job.fails + 1 + job.stales):
            return self._ledger.finish(queue, job, "fail", DEAD, now, reason=DeathReason.FAILED, **facts)
        delay = claim.retry_after_seconds
        if delay is None:
            delay = self._retry_seconds(queue, job, job.fails + 1)
        return self._ledger.return_later(queue, job, "fail", delay, now, **facts)

    def _extend_one(self, claim: ExtendClaim, now: Now) -> Job:
        queue, job, _ = self._held(claim, None)
        seconds = claim.lease_seconds or job.lease_seconds
        left = self._ledger.run_ends.get((queue.name, job.id), inf) - now.monotonic
        if seconds > left:
            raise RunTooLong(f"this attempt may last {max(0.0, left):.12g} s more", field="lease_seconds")
        self._ledger.leases.set(queue.name, job.id, now.monotonic + seconds)
        facts: dict[str, Any] = {"lease_seconds": seconds, "lease_expires_at": now.wall + seconds}
        if claim.progress is not None:
            facts["progress"] = claim.progress
            self._ledger.kept_bytes += size(claim.progress) - size(job.progress)
        return self._ledger.move(queue, job, "extend", IN_PROGRESS, now, **facts)

    def _release_one(self, claim: ReleaseClaim, now: Now) -> Job:
        queue, job, again = self._held(claim, Outcome.RELEASED)
        return job if again else self._release_held(queue, job, claim.delay_seconds, now)

    def _release_held(self, queue: Queue, job: Job, delay_seconds: float, now: Now) -> Job:
        facts = self._ledger.end_attempt(queue, job, Outcome.RELEASED, now)
        if delay_seconds > 0 and not job.cancel_requested:
            return self._ledger.return_later(queue, job, "release", delay_seconds, now, **facts)
        return self._ledger.give_back(queue, job, "release", now, **facts)

    def _held(self, claim: Claim, outcome: Outcome | None) -> tuple[Queue, Job, bool]:
        """The job that the claim holds, or (True) has already ended with this outcome.

        Raises:
            QueueError: Neither.
        """
        queue, job = queries.find_job(self._queues, claim.queue, claim.id)
        if claim.token is not None:
            if job.state is IN_PROGRESS and self._tokens.proves(claim.token, queue.name, job.id, job.fence):
                return queue, job, False
            fence = self._tokens.fence(queue.name, job.id, claim.token)
            if any(attempt.fence == fence and attempt.outcome is outcome for attempt in job.history):
                return queue, job, True
            raise LeaseLost(f"the token shown does not hold job {job.id}", field="token")
        again = job.state is CONCLUDED and outcome is Outcome.CONCLUDED
        if job.state is not IN_PROGRESS and not again:
            raise NotInProgress(f"job {job.id} is {job.state}")
        if job.consumer is not None and job.consumer != claim.consumer:
            raise OtherConsumer(f"job {job.id} was dequeued by another consumer", field="consumer")
        return queue, job, again

    def _is_spent(self, queue: Queue, job: Job, tries: int) -> bool:
        most = job.options.max_attempts or queue.policy.max_attempts
        return most is not None and tries >= most

    def _retry_seconds(self, queue: Queue, job: Job, tries: int) -> float:
        retry = job.options.retry or queue.policy.retry
        return retry_seconds(retry, tries, self._tokens.draw(queue.name, job.id, job.fence))

    # --- the operator's verbs

    def _each_id(self, verb: Callable[[Queue, Job, Now], Job]) -> Callable[[Any, Now], Results]:
        def one(command: Cancel, id_: int, now: Now) -> Job:
            return verb(*queries.find_job(self._queues, command.queue, id_), now)

        def each(command: Any, now: Now) -> Results:
            results = Results([_answer(one, command, id_, now) for id_ in command.ids])
            if command.queue in self._queues:
                self._queues[command.queue].ready.tidy()
            return results

        return each

    def _cancel_one(self, queue: Queue, job: Job, now: Now) -> Job:
        match job.state:
            case JobState.CANCELLED:
                return job
            case JobState.CONCLUDED | JobState.DEAD:
                raise AlreadyFinished(f"job {job.id} is {job.state}")
            case JobState.IN_PROGRESS if job.cancel_requested:
                return job
            case JobState.IN_PROGRESS:
                return self._ledger.move(queue, job, "cancel", IN_PROGRESS, now, cancel_requested=True)
        self._ledger.withdraw(queue, job)
        return self._ledger.finish(queue, job, "cancel", CANCELLED, now, cancel_requested=True)

    def _redrive_one(self, queue: Queue, job: Job, now: Now, *, not_before: float | None = None) -> Job:
        if job.state not in FINISHED:
            raise NotFinished(f"job {job.id} is {job.state}")
        if job.state is CONCLUDED:
            raise AlreadyFinished(f"job {job.id} is concluded")
        key = job.options.unique_key
        if key is not None and key in queue.unique:
            raise UniqueKeyTaken(f"job {queue.unique[key]} has the unique key of job {job.id}")
        queries.check_waiting(queue, self._ledger.counts, 1, self._settings)
        if key is not None:
            queue.unique[key] = job.id
        self._ledger.unfinish(queue, job)
        facts = {
            "fails": 0,
            "stales": 0,
            "reason": None,
            "finished_at": None,
            "kept_until": None,
            "key_freed": False,
            "cancel_requested": False,
            "expires_at": None,
            "not_before": not_before,
        }
        if not_before is None:
            return self._ledger.make_ready(queue, job, "redrive", now, **facts)
        self._ledger.plan(job, not_before)
        return self._ledger.move(queue, job, "redrive", SCHEDULED, now, **facts)

    def _run_one(self, queue: Queue, job: Job, now: Now) -> Job:
        if job.state is QUEUED:
            return job
        if job.state is not SCHEDULED:
            raise NotWaiting(f"job {job.id} is {job.state}")
        self._ledger.planned.clear(queue.name, job.id)
        return self._ledger.make_ready(queue, job, "run", now, not_before=None)

    def _take_back_one(self, queue: Queue, job: Job, now: Now) -> Job:
        if job.state is not IN_PROGRESS:
            raise NotInProgress(f"job {job.id} is {job.state}")
        return self._release_held(queue, job, 0.0, now)

    def _forget_one(self, queue: Queue, job: Job, now: Now) -> Job:
        if job.state not in FINISHED:
            raise NotFinished(f"job {job.id} is {job.state}")
        return self._purge_one(queue, job, now)

    def _purge_one(self, queue: Queue, job: Job, _now: Now) -> Job:
        self._ledger.forget(queue, [job])
        return job

    def _bulk(self, command: Bulk, now: Now) -> BulkDone:
        queue = self._existing(command.queue)
        verbs: dict[BulkVerb, tuple[frozenset[JobState], Callable[..., Job]]] = {
            BulkVerb.REDRIVE: (frozenset({DEAD, CANCELLED}), self._redrive_one),
            BulkVerb.PURGE: (FINISHED | WAITING, self._purge_one),
            BulkVerb.RELEASE: (frozenset({IN_PROGRESS}), self._take_back_one),
            BulkVerb.CANCEL: (WAITING | {IN_PROGRESS}, self._cancel_one),
        }
        able, verb = verbs[command.verb]
        spread = command.spread_from or now.wall
        first = max(queue.first_id, command.after_id + 1)
        end = queue.next_id if command.until_id is None else min(queue.next_id, command.until_id + 1)
        count = refused = 0
        for id_ in range(first, min(end, first + queries.SCANNED_IDS_MAX)):
            first = id_ + 1
            job = queue.jobs.get(id_)
            if job is None or job.state not in able or not queries.matches(job, command.where):
                continue
            facts: dict[str, Any] = {}
            if command.per_second is not None and command.verb is BulkVerb.REDRIVE:
                facts["not_before"] = spread + count / command.per_second
            if command.dry_run or not isinstance(_answer(partial(verb, **facts), queue, job, now), QueueError):
                count += 1
            else:
                refused += 1
            if count + refused == BULK_JOBS_MAX:
                break
        queue.ready.tidy()
        spread += count / (command.per_second or inf)
        return BulkDone(count, refused, first - 1 if first < end else None, spread)

    # --- reads

    def _read_position(self, command: ReadPosition, _now: Now) -> Position:
        queue, job = queries.find_job(self._queues, command.queue, command.id)
        return Position(queue.ready.ahead(job.priority, job.place) if job.state is QUEUED else None)

    def _explain(self, command: Explain, now: Now) -> Explanation:
        return explain(*queries.find_job(self._queues, command.queue, command.id), now)

    # --- time

    def _sweep(self, _command: Sweep, now: Now) -> Swept:
        # Who is served between two sweeps waits for them no longer than for other callers; and what is forgotten keeps
        # up with what ends, of which each is three changes. The first of several does not make up for the last second
        # at once.
        changed = 0 if self._swept_revision is None else self._ledger.revision - self._swept_revision
        limit = min(self._settings.sweep_slice, max(SWEEP_JOBS_MIN, changed))
        stale = slice_due(self._ledger.leases, now.monotonic, limit, partial(self._each_due, self._return_stale, now))
        due = slice_due(self._ledger.planned, now.wall, limit, partial(self._each_due, self._ready_due, now))
        expired = slice_due(self._ledger.expiries, now.wall, limit, partial(self._each_due, self._expire_waiting, now))
        kept = self._retention.sweep(now, limit)
        more = kept.more or limit in {stale, due, expired}
        self._swept_revision = self._ledger.revision if more else None
        self._trends.tick(now)
        return Swept(
            stale=stale,
            due=due,
            expired=expired,
            forgotten=kept.forgotten,
            dead_lost=kept.dead_lost,
            more=more,
            next_due_seconds=self.next_due_seconds(now),
            over=kept.over,
            dead_over=kept.dead_over,
        )

    def _recalled(self, command: Recalled[R], now: Now) -> R:
        self._retention.recall(command.jobs, command.departures, now)
        reply = self.apply(command.command, now)
        self._retention.leave_to_store(len(command.jobs))
        return reply

    @staticmethod
    def _each_due(move: Callable[[Now, str, int], None], now: Now, name: str, ids: Sequence[int]) -> None:
        for id_ in ids:
            move(now, name, id_)

    def _return_stale(self, now: Now, name: str, id_: int) -> None:
        queue = self._queues[name]
        job = queue.jobs[id_]
        stales = job.stales + 1
        facts = {"stales": stales, **self._ledger.end_attempt(queue, job, Outcome.STALE, now)}
        most = queue.policy.max_stale
        spent = (most is not None and stales >= most) or self._is_spent(queue, job, job.fails + stales)
        if spent and not job.cancel_requested:
            self._ledger.finish(queue, job, "stale", DEAD, now, reason=DeathReason.STALE, **facts)
        elif stales > 1 and not job.cancel_requested:
            # It may be what kills its workers, so it no longer goes first.
            self._ledger.return_later(queue, job, "stale", self._retry_seconds(queue, job, stales - 1), now, **facts)
        else:
            self._ledger.give_back(queue, job, "stale", now, **facts)

    def _ready_due(self, now: Now, name: str, id_: int) -> None:
        queue = self._queues[name]
        self._ledger.planned.clear(name, id_)
        self._ledger.make_ready(queue, queue.jobs[id_], "due", now)

    def _expire_waiting(self, now: Now, name: str, id_: int) -> None:
        queue = self._queues[name]
        self._ledger.expire(queue, queue.jobs[id_], now)
        queue.ready.tidy()


class _Basket:
    """What a dequeue has taken so far, and for how many more bytes it has room."""

    __slots__ = ("leases", "room")

    def __init__(self, room: int) -> None:
        self.leases: list[Lease] = []
        self.room = room

    def fitting(self, jobs: ByIds[Job], ids: Iterable[int], now: Now) -> list[Job]:
        """The first of these jobs, up to one that has expired or has no room. The first in the basket always has."""
        fitting: list[Job] = []
        chunks, room = jobs.chunks, self.room
        for id_ in ids:
            job = chunks[id_ >> CHUNK_BITS][id_]
            if job.expires_at is not None and job.expires_at <= now.wall:
                break
            if job.payload is not None:
                room -= len(job.payload)
            if room < 0 and (fitting or self.leases):
                break
            fitting.append(job)
        self.room = room
        return fitting


def _answer(verb: Callable[..., A], *subject: Any) -> A | QueueError:
    """A result of a batch: a refused job does not refuse its neighbours."""
    try:
        return verb(*subject)
    except QueueError as refusal:
        return refusal.with_traceback(None)
