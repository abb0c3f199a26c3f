"""Watches every command that the state machine carries out, and holds it to the rules.

It sees more than any client: which command was applied when, what that changed, what was committed, and what the next
life found. It knows the jobs by these changes alone, and judges each transition by rules of its own, written down once
more from the documents and not from the code. What was acknowledged has to be there in the next life; what was under
way when the server died is there wholly, or not at all.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import msgspec

from queue_actor.changes import Changes
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Command,
    Conclude,
    DeleteQueue,
    Dequeue,
    Dequeued,
    DequeueOrder,
    Enqueue,
    Enqueued,
    EnqueuedJob,
    Extend,
    Fail,
    Forget,
    IdempotencyKey,
    Lease,
    Pause,
    Prune,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Recalled,
    Redrive,
    Release,
    RunNow,
    SetPolicy,
    Sweep,
    Swept,
    TakeBack,
)
from queue_actor.errors import ForgottenJob, KeyReused, LeaseLost, QueueError, UnknownJob
from queue_actor.jobs import (
    FINISHED,
    WAITING,
    Change,
    DeathReason,
    Job,
    JobState,
    Now,
    OnExisting,
    Outcome,
    QueuePolicy,
    first_policy,
)
from queue_actor.ledger import Key
from queue_actor.state_machine import StateMachine
from queue_actor.transitions import TRANSITIONS
from tests.simulation.invariants import ViolationError, in_line, recount

VERBS: dict[type[Command[Any]], set[str]] = {
    Enqueue: {"enqueue", "replace"},
    Dequeue: {"dequeue", "expire"},
    Conclude: {"conclude"},
    Fail: {"fail"},
    Extend: {"extend"},
    Release: {"release"},
    TakeBack: {"release"},
    Cancel: {"cancel"},
    Redrive: {"redrive"},
    RunNow: {"run"},
    Forget: {"forget"},
    Bulk: {"redrive", "forget", "release"},
    Sweep: {"stale", "due", "expire", "forget"},
    Prune: {"forget"},
}
"""What each command may do to a job; the others change none."""

ENDS = {Conclude: Outcome.CONCLUDED, Fail: Outcome.FAILED, Release: Outcome.RELEASED, Extend: None}


class QueueFacts(msgspec.Struct):
    """What is known of a queue."""

    policy: QueuePolicy
    paused: bool = False
    declared: bool = False


class Call(msgspec.Struct, eq=False):
    """A command that a client has sent."""

    command: Command[Any]
    client: str
    leaves_at: float = inf  # the client hangs up then
    left: bool = False  # it has, or it has its answer
    changes: int = 0  # that the command made, for the caller
    parked: int = 0  # its place among all that were parked; 0: it was not
    parked_until: float = inf
    served: bool = False


class Kept(msgspec.Struct):
    """What there is: all jobs, queues and remembered answers."""

    jobs: dict[Key, Job] = msgspec.field(default_factory=dict)
    queues: dict[str, QueueFacts] = msgspec.field(default_factory=dict)
    answers: dict[tuple[str, str], tuple[bytes, Any]] = msgspec.field(default_factory=dict)
    ids: dict[str, int] = msgspec.field(default_factory=dict)  # the last of each queue, there or not
    fences: dict[str, int] = msgspec.field(default_factory=dict)

    def copy(self) -> "Kept":
        """The same, to go on from by itself. What a queue is told is never changed in place."""
        return Kept(*(dict(getattr(self, name)) for name in self.__struct_fields__))


class Auditor:
    """Knows what there is, and what there must be after a death."""

    def __init__(self, *, durable: bool, calls: Mapping[int, Call], recount_every: int, sweep_slice: int) -> None:
        self.durable = durable
        self.now_kept = Kept()  # after the last command
        self.acknowledged = Kept()  # after the last commit that returned
        self.violation: ViolationError | None = None
        self.stop: Callable[[], None] = lambda: None
        """What to do about the first violation: nothing that comes after it is of interest."""

        self.reached: set[str] = set()
        self.commands = 0
        self._calls = calls
        self._recount_every = recount_every
        self._sweep_slice = sweep_slice
        self._tokens: dict[tuple[str, int, str], int] = {}  # the fence of each token that was given
        self._payloads: dict[bytes, Key] = {}  # each is sent once
        self._versions: dict[tuple[str, int, int], Job] = {}  # what was committed, by revision
        self._commits = 0
        self._parked = 0
        self._in_commit: Kept | None = None
        self._waiting: list[Call] = []
        self.begin_life()

    # --- lives

    def begin_life(self) -> None:
        """Another process begins."""
        self._machine: StateMachine | None = None
        self._depth = 0
        self._audited: list[Change] = []
        self._revision = 0
        self._lease_ends: dict[Key, float] = {}
        self._places: dict[str, int] = defaultdict(int)
        self._dequeues: dict[str, int] = defaultdict(int)
        self._served: dict[str, int] = defaultdict(int)
        self._services = 0
        self._waiting = []
        if not self.durable:
            # Only fences go on from one life to the next.
            self.now_kept = Kept(fences=self.now_kept.fences)
            self.acknowledged, self._in_commit = self.now_kept.copy(), None
            self._payloads.clear()
            self._versions.clear()
            self._tokens.clear()

    def tap(self, machine: StateMachine) -> None:
        """Watch this machine."""
        self._machine = machine

        def apply(command: Command[Any], now: Now) -> Any:
            return self._apply(machine, command, now)

        machine.apply = apply  # type: ignore[method-assign] # that is what a tap is

    def recovered(self, found: Sequence[Job], queues: Mapping[str, Any], answers: set[tuple[str, str]]) -> None:
        """A new life has read what is kept: it has to be what was acknowledged, or that and the commit under way."""
        found_jobs = {(job.queue, job.id): job for job in found}
        differences = []
        for kept in (self.acknowledged, self._in_commit):
            if kept is None:
                continue
            wrong = [
                f"{key}: {brief_job(found_jobs.get(key))} instead of {brief_job(kept.jobs.get(key))}"
                for key in sorted(found_jobs.keys() | kept.jobs.keys())
                if found_jobs.get(key) != kept.jobs.get(key)
            ]
            wrong += [
                f"queue {name}: {queues.get(name)} instead of {kept.queues.get(name)}"
                for name in sorted(queues.keys() | kept.queues.keys())
                if (name in queues) != (name in kept.queues)
                or (queues[name].policy, queues[name].paused) != (kept.queues[name].policy, kept.queues[name].paused)
            ]
            wrong += [f"answer {name} is lost" for name in sorted(kept.answers.keys() - answers)]
            if not wrong:
                self.acknowledged, self.now_kept, self._in_commit = kept, kept.copy(), None
                break
            differences.append("; ".join(wrong[:3]))
        else:
            self.violate("recovered_wrong", " - or ".join(differences))
        for name, queue in queues.items():
            if queue.next_id <= self.now_kept.ids.get(name, 0):
                self.violate("id_given_twice", f"{name} would give id {queue.next_id} again")
        for job in found:
            self._versions[job.queue, job.id, job.revision] = job
            if job.kept_until is None:
                self._places[job.queue] = max(self._places[job.queue], job.place)

    # --- commits

    def commit_begins(self, changes: Changes, now: Now) -> None:
        """A batch is about to be stored."""
        unseen = list(changes.jobs)[: len(changes.jobs) - len(self._audited)]
        for change in unseen:  # leases that start again when a life begins
            self._audit_change(None, change, now)
        if [change.revision for change in changes.jobs] != [change.revision for change in self._audited]:
            self.violate("change_not_committed", "the store is not given what changed")
        self._audited = []
        machine = self._machine
        assert machine is not None
        if unseen or self._commits % self._recount_every == 0:
            try:
                recount(machine, self.now_kept.jobs, self._lease_ends)
            except ViolationError as violation:
                self._break(violation)
        self._commits += 1
        self._look_at_the_waiting(machine, now)
        self._in_commit = self.now_kept.copy()

    def commit_done(self, changes: Changes) -> None:
        """It is stored."""
        for change in changes.jobs:
            if change.after is not None:
                self._versions[change.after.queue, change.after.id, change.after.revision] = change.after
        assert self._in_commit is not None
        self.acknowledged, self._in_commit = self._in_commit, None

    def answered(self, command: Command[Any], reply: Any) -> None:
        """A client has a reply: what it tells must have been committed."""
        jobs: list[Any] = []
        match reply:
            case Dequeued():
                jobs = [lease.job for lease in reply.leases]
            case Job():
                jobs = [reply]
            case Enqueued():
                for one in reply.jobs:
                    if isinstance(one, EnqueuedJob) and not self._was_committed(command.queue, one.id):  # type: ignore[attr-defined] # it is an Enqueue
                        self.violate("answered_too_early", f"job {one.id} was acknowledged and is not stored")
            case _:
                jobs = list(getattr(reply, "jobs", ()))
        for job in jobs:
            if not isinstance(job, Job):
                continue
            stored = self._versions.get((job.queue, job.id, job.revision))
            if stored != job:
                self.violate("answered_too_early", f"{brief_job(job)} was told, and {brief_job(stored)} is stored")

    def _was_committed(self, queue: str, id_: int) -> bool:
        return (queue, id_) in self.acknowledged.jobs or any(key[:2] == (queue, id_) for key in self._versions)

    # --- commands

    def violate(self, name: str, message: str) -> None:
        """Note that a promise is broken."""
        self._break(ViolationError(name, message))

    def _break(self, violation: ViolationError) -> None:
        if self.violation is None:
            self.violation = violation
            self.stop()
        raise violation

    def _apply(self, machine: StateMachine, command: Command[Any], now: Now) -> Any:
        books = machine._ledger
        mark = len(books._changes)
        self._depth += 1
        reply: Any
        try:
            reply = StateMachine.apply(machine, command, now)
        except QueueError as refusal:
            reply = refusal
        finally:
            self._depth -= 1
        if self._depth:
            if isinstance(reply, QueueError):
                raise reply
            return reply
        self.commands += 1
        changes = books._changes[mark:]
        inner = command.command if isinstance(command, Recalled) else command
        call = self._calls.get(id(command))
        if call is not None:
            self._watch_caller(call, inner, reply, changes, now)
        if isinstance(reply, QueueError):
            if changes:
                self.violate("refused_and_done", f"{type(inner).__name__} was refused as {reply.code} and changed jobs")
            self._judge(inner, reply)
            raise reply
        if isinstance(inner, Dequeue):
            self._judge_dequeue(inner, reply, changes, now)
        else:
            self._judge(inner, reply)
            for change in changes:
                self._audit_change(inner, change, now)
        self._follow(inner, reply, now)
        return reply

    def _judge(self, command: Command[Any], reply: Any) -> None:
        """What a command may answer, by what there was before it."""
        match command:
            case Enqueue():
                self._judge_enqueue(command, reply)
            case Conclude() | Fail() | Release() | Extend() if not isinstance(reply, QueueError):
                for claim, answer in zip(command.claims, reply.jobs, strict=True):
                    self._judge_claim(type(command), claim, answer)
            case ReadJob() if isinstance(reply, Job):
                if reply != self.now_kept.jobs.get((command.queue, command.id)):
                    self.violate("read_wrong", f"{brief_job(reply)}")
            case ReadQueue():
                counts = dict.fromkeys(JobState, 0)
                for job in self._jobs_of(command.queue):
                    counts[job.state] += 1
                if reply.counts != counts:
                    self.violate("counts_told_wrong", f"{command.queue}: {reply.counts}, and {counts} is right")
            case ReadPosition() if not isinstance(reply, QueueError):
                line = [job.id for job in in_line(self._jobs_of(command.queue))]
                right = line.index(command.id) if command.id in line else None
                if reply.ahead != right:
                    self.violate("position_wrong", f"job {command.id}: {reply.ahead}, and {right} is right")
            case _:
                pass

    def _follow(self, command: Command[Any], reply: Any, now: Now) -> None:
        """Note what a command has changed beside jobs, and what must be so after it."""
        kept = self.now_kept
        match command:
            case Enqueue() if command.key is None or ("enqueue", command.key.key) not in kept.answers:
                kept.queues.setdefault(command.queue, QueueFacts(first_policy(command.queue)))
                if command.key is not None:
                    kept.answers["enqueue", command.key.key] = command.key.fingerprint, reply
            case Dequeue() if command.key is not None and reply.leases and not reply.repeated:
                kept.answers["dequeue", command.key.key] = command.key.fingerprint, reply
            case SetPolicy():
                before = kept.queues.get(command.queue)
                paused = command.paused if command.paused is not None else before is not None and before.paused
                kept.queues[command.queue] = QueueFacts(command.policy, paused, True)
            case Pause():
                facts = kept.queues[command.queue]
                kept.queues[command.queue] = QueueFacts(facts.policy, command.paused, facts.declared)
            case DeleteQueue():
                if self._jobs_of(command.queue):
                    self.violate("deleted_with_jobs", command.queue)
                del kept.queues[command.queue]
                self._dequeues.pop(command.queue, None)
                self._served.pop(command.queue, None)
                self._places.pop(command.queue, None)
            case Sweep() if not reply.more:
                self._judge_sweep(reply, now)
            case Prune():
                gone = [(ended.queue, ended.id) for ended in command.jobs]
                self._pruned([key for key in gone if key in kept.jobs], reply.count)
            case _:
                pass

    def _pruned(self, keys: Sequence[Key], count: int) -> None:
        """What the store alone had is forgotten without a change."""
        assert self._machine is not None
        pruned = set(self._machine._ledger._pruned)
        for key in keys:
            if key in pruned:
                if self.now_kept.jobs[key].state not in FINISHED:
                    self.violate("unfinished_forgotten", str(key))
                del self.now_kept.jobs[key]
        if count > len(keys) + len(self._audited):
            self.violate("pruned_wrong", f"{count} of {len(keys)}")

    def _jobs_of(self, queue: str) -> list[Job]:
        return [job for job in self.now_kept.jobs.values() if job.queue == queue]

    # --- enqueue

    def _judge_enqueue(self, command: Enqueue, reply: Any) -> None:
        if command.key is None:
            return
        self._judge_key(command.key, "enqueue", reply)
        known = self.now_kept.answers.get(("enqueue", command.key.key))
        if known is not None and known[0] == command.key.fingerprint:
            told = None if isinstance(reply, QueueError) else [(getattr(job, "id", 0)) for job in reply.jobs]
            right = [getattr(job, "id", 0) for job in known[1].jobs]
            if told != right:
                self.violate("answered_differently", f"key {command.key.key}: {told}, and {right} was the answer")

    def _judge_key(self, key: IdempotencyKey, kind: str, reply: Any) -> None:
        known = self.now_kept.answers.get((kind, key.key))
        reused = known is not None and known[0] != key.fingerprint
        if reused and not isinstance(reply, KeyReused):
            self.violate("key_reused", f"key {key.key} was taken with another body")

    # --- dequeue

    def _judge_dequeue(self, command: Dequeue, reply: Dequeued, changes: Sequence[Change], now: Now) -> None:
        given_up: Counter[str] = Counter()
        for change in changes:
            job = change.after
            assert job is not None
            if change.verb == "dequeue":
                self._check_turn(command, job, now, self._tired_of(given_up))
            else:
                given_up[job.queue] += 1
            self._audit_change(command, change, now)
        known = None if command.key is None else self.now_kept.answers.get(("dequeue", command.key.key))
        if command.key is not None:
            self._judge_key(command.key, "dequeue", reply)
            if known is not None and (changes or not reply.repeated):
                self.violate("answered_differently", f"the dequeue under {command.key.key} was carried out again")
        for lease in reply.leases:
            self._note_lease(lease)
        given = sum(change.verb == "dequeue" for change in changes)
        if not reply.repeated and given != len(reply.leases):
            self.violate("leased_to_nobody", f"{command.queue}: {len(reply.leases)} of {given} are told")
        tired_of = self._tired_of(given_up)
        short = len(reply.leases) < command.count and not reply.repeated and command.holder is None
        left = [name for name in self.named(command.queue) if name not in tired_of and self.offers(name, now)]
        if short and left:
            self.violate("job_withheld", f"{left} have jobs for the dequeue of {command.queue}")

    def _tired_of(self, given_up: Counter[str]) -> set[str]:
        """The queues that a dequeue may pass over, which has given up so many expired jobs at their heads."""
        return {name for name, jobs in given_up.items() if jobs > self._sweep_slice}

    def named(self, queue: str | tuple[str, ...]) -> list[str]:
        """The queues that are meant, in order."""
        if not isinstance(queue, str):
            return [name for name in dict.fromkeys(queue) if name in self.now_kept.queues]
        if queue.endswith("*"):
            return sorted(name for name in self.now_kept.queues if name.startswith(queue[:-1]))
        return [queue] if queue in self.now_kept.queues else []

    def offers(self, name: str, now: Now) -> bool:
        """Whether a queue has to hand out a job now."""
        facts, jobs = self.now_kept.queues.get(name), self._jobs_of(name)
        if facts is None or facts.paused:
            return False
        most = facts.policy.in_progress_max
        if most is not None and sum(job.state is JobState.IN_PROGRESS for job in jobs) >= most:
            return False
        return any(job.state is JobState.QUEUED and not _expired(job, now) for job in jobs)

    def _check_turn(self, command: Dequeue, job: Job, now: Now, tired_of: set[str]) -> None:
        name, facts = job.queue, self.now_kept.queues[job.queue]
        if facts.paused:
            self.violate("paused_queue_served", f"{name} is paused, and gave job {job.id}")
        most = facts.policy.in_progress_max
        jobs = self._jobs_of(name)
        if most is not None and sum(other.state is JobState.IN_PROGRESS for other in jobs) >= most:
            self.violate("too_many_in_progress", f"{name} may have {most}")
        line = in_line(jobs)
        every = facts.policy.oldest_every
        if every and (self._dequeues[name] + 1) % every == 0:
            line.sort(key=lambda other: other.place)
        if not line or line[0].id != job.id:
            self.violate("out_of_order", f"{name} gave job {job.id}, and {[other.id for other in line[:3]]} come first")
        if _expired(line[0], now):
            self.violate("expired_served", f"job {job.id} of {name} ended at {job.expires_at}, and it is {now.wall}")
        names = self.named(command.queue)
        if name not in names:
            self.violate("wrong_queue", f"{name} was not asked for")
        offering = [other for other in names if other == name or (other not in tired_of and self.offers(other, now))]
        if command.order is DequeueOrder.FAIR:
            first = min(offering, key=lambda other: self._served[other])
            if command.count == 1 and self._served[first] < self._served[name]:
                self.violate("unfair", f"{name} was served, and {first} less recently")
        elif offering[0] != name:
            self.violate("out_of_order", f"{name} was served before {offering[0]}")
        self._dequeues[name] += 1
        self._services += 1
        self._served[name] = self._services

    def _note_lease(self, lease: Lease) -> None:
        job = lease.job
        known = self._tokens.setdefault((job.queue, job.id, lease.token), job.fence)
        if known != job.fence:
            self.violate("token_used_twice", f"job {job.id} of {job.queue}")
        if job != self.now_kept.jobs.get((job.queue, job.id)):
            self.violate("lease_told_wrong", brief_job(job))

    # --- claims

    def _judge_claim(self, kind: type[Command[Any]], claim: Any, answer: Any) -> None:
        """Whoever shows a token is accepted if it holds the job, or ended it in the same way; else refused."""
        if claim.token is None:
            return
        job = self.now_kept.jobs.get((claim.queue, claim.id))
        if isinstance(answer, ForgottenJob | UnknownJob):
            in_memory = job is not None and job.state not in FINISHED
            if in_memory:
                self.violate("holder_refused", f"{kind.__name__} of {brief_job(job)}: {answer.code}")
            return
        if job is None:
            self.violate("unknown_job_told", f"{kind.__name__} of job {claim.id} of {claim.queue}")
            return
        fence = self._tokens.get((claim.queue, claim.id, claim.token))
        holds = job.state is JobState.IN_PROGRESS and fence == job.fence
        ended = fence is not None and (fence, ENDS[kind]) in {(past.fence, past.outcome) for past in job.history}
        if isinstance(answer, LeaseLost) and (holds or ended):
            self.violate("holder_refused", f"{kind.__name__} with fence {fence} of {brief_job(job)}")
        if isinstance(answer, Job) and not holds and not ended:
            self.violate("late_worker_accepted", f"{kind.__name__} with fence {fence} of {brief_job(job)}")

    # --- the transitions of one job

    def _audit_change(self, command: Command[Any] | None, change: Change, now: Now) -> None:
        self._audited.append(change)
        before, after = change.before, change.after
        job = after or before
        assert job is not None
        key, verb, jobs = (job.queue, job.id), change.verb, self.now_kept.jobs
        self.reached.add(verb)
        if change.revision <= self._revision:
            self.violate("revision_went_back", f"{change.revision} after {self._revision}")
        self._revision = change.revision
        if before != jobs.get(key):
            self.violate("history_rewritten", f"{verb} of {brief_job(before)}, and {brief_job(jobs.get(key))} is there")
        allowed = {"extend"} if command is None else VERBS.get(type(command), set())
        if verb not in allowed:
            self.violate("wrong_verb", f"{type(command).__name__} has made a {verb}")
        if after is None:
            assert before is not None
            self._audit_forget(command, before)
            del jobs[key]
            return
        if before is not None and (before.state, verb, after.state) not in TRANSITIONS:
            self.violate("wrong_transition", f"{verb} of {brief_job(before)}")
        getattr(self, f"_audit_{verb}")(command, before, after, now)
        ended_wish = verb in {"fail", "release", "stale"} and before is not None and before.cancel_requested
        if ended_wish and after.state is not JobState.CANCELLED:
            self.violate("wish_not_granted", f"{verb} made it {brief_job(after)}")
        if (after.kept_until is None) == (after.state in FINISHED):
            self.violate("kept_wrong", brief_job(after))
        jobs[key] = after
        if after.state is JobState.IN_PROGRESS:
            if verb in {"dequeue", "extend"}:
                self._lease_ends[key] = now.monotonic + after.lease_seconds
        else:
            self._lease_ends.pop(key, None)

    def _audit_forget(self, command: Command[Any] | None, before: Job) -> None:
        purged = isinstance(command, Bulk) and command.verb is BulkVerb.PURGE
        if before.state not in FINISHED and not (purged and before.state in WAITING):
            self.violate("unfinished_forgotten", brief_job(before))

    def _new_place(self, job: Job) -> None:
        if job.place <= self._places[job.queue]:
            self.violate("place_given_twice", brief_job(job))
        self._places[job.queue] = job.place

    def _audit_enqueue(self, command: Command[Any] | None, _before: Job | None, job: Job, now: Now) -> None:
        assert isinstance(command, Enqueue)
        ids = self.now_kept.ids
        if job.id <= ids.get(job.queue, 0):
            self.violate("id_given_twice", f"{job.queue} gave id {job.id} after {ids[job.queue]}")
        ids[job.queue] = job.id
        if job.payload is not None:
            self._check_payload(command, job)
        due = job.not_before is not None
        if due == (job.state is JobState.QUEUED) or (job.not_before is not None and job.not_before <= now.wall):
            self.violate("scheduled_wrong", brief_job(job))
        if job.state is JobState.QUEUED:
            self._new_place(job)
        unique = job.options.unique_key
        for other in self._jobs_of(job.queue) if unique is not None else ():
            if other.options.unique_key == unique and other.state not in FINISHED and not other.key_freed:
                self.violate("unique_key_twice", f"{brief_job(job)} has the key {unique} of {brief_job(other)}")

    def _check_payload(self, command: Enqueue, job: Job) -> None:
        assert job.payload is not None
        first = self._payloads.setdefault(job.payload, (job.queue, job.id))
        there = self.now_kept.jobs.get(first)
        if there is None:  # it was lost with the life it came in, or is forgotten
            self._payloads[job.payload] = (job.queue, job.id)
        elif first != (job.queue, job.id) and there.payload == job.payload:
            self.violate("enqueued_twice", f"{brief_job(job)} is what job {first} is")
        if job.payload not in {new.payload for new in command.jobs}:
            self.violate("unexpected", brief_job(job))

    def _audit_replace(self, command: Command[Any] | None, before: Job, after: Job, _now: Now) -> None:
        assert isinstance(command, Enqueue)
        if before.state is JobState.QUEUED and after.state is JobState.QUEUED and after.place != before.place:
            self.violate("place_lost", f"{brief_job(after)} was replaced, and had place {before.place}")
        if before.state is JobState.SCHEDULED and after.state is JobState.QUEUED:
            self._new_place(after)
        if after.payload not in {new.payload for new in command.jobs if new.on_existing is OnExisting.REPLACE}:
            self.violate("replaced_wrong", brief_job(after))

    def _audit_dequeue(self, _command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        fences = self.now_kept.fences
        if after.fence <= fences.get(after.queue, 0):
            self.violate("fence_went_back", f"{brief_job(after)} after {fences[after.queue]}")
        fences[after.queue] = after.fence
        if after.attempts != before.attempts + 1 or after.place != before.place:
            self.violate("attempt_miscounted", brief_job(after))
        if _expired(before, now):
            self.violate("expired_served", brief_job(after))

    def _audit_extend(self, _command: Command[Any] | None, before: Job, after: Job, _now: Now) -> None:
        if (after.fence, after.attempts) != (before.fence, before.attempts):
            self.violate("extend_wrong", brief_job(after))

    def _end_of_attempt(self, before: Job, after: Job, outcome: Outcome, fails: int, stales: int) -> None:
        if (after.fails, after.stales, after.attempts) != (
            before.fails + fails,
            before.stales + stales,
            before.attempts,
        ):
            self.violate("attempt_miscounted", f"{brief_job(after)} after {brief_job(before)}")
        if not after.history or (after.history[-1].fence, after.history[-1].outcome) != (before.fence, outcome):
            self.violate("history_wrong", brief_job(after))

    def _audit_conclude(self, _command: Command[Any] | None, before: Job, after: Job, _now: Now) -> None:
        self._end_of_attempt(before, after, Outcome.CONCLUDED, 0, 0)

    def _audit_fail(self, command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        assert isinstance(command, Fail)
        self._end_of_attempt(before, after, Outcome.FAILED, 1, 0)
        retry = next(claim.retry for claim in command.claims if (claim.queue, claim.id) == (after.queue, after.id))
        spent = self._spent(after)
        self._check_death(
            after, dead=not retry or spent, reason=DeathReason.FAILED if retry else DeathReason.KILLED, now=now
        )
        if after.state is JobState.QUEUED:
            self._new_place(after)

    def _audit_release(self, _command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        self._end_of_attempt(before, after, Outcome.RELEASED, 0, 0)
        self._check_death(after, dead=False, reason=DeathReason.FAILED, now=now)
        if after.state is JobState.QUEUED and after.place != before.place:
            self.violate("place_lost", f"{brief_job(after)} was released, and had place {before.place}")

    def _audit_stale(self, _command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        self._end_of_attempt(before, after, Outcome.STALE, 0, 1)
        ends = self._lease_ends.get((before.queue, before.id), inf)
        if ends > now.monotonic:
            self.violate("swept_too_early", f"{brief_job(before)} is held until {ends}, and it is {now.monotonic}")
        most = self.now_kept.queues[after.queue].policy.max_stale
        dead = self._spent(after) or (most is not None and after.stales >= most)
        self._check_death(after, dead=dead, reason=DeathReason.STALE, now=now)
        if after.stales == 1 and after.state is JobState.QUEUED and after.place != before.place:
            self.violate("place_lost", f"{brief_job(after)} went stale, and had place {before.place}")
        if after.stales == 1 and after.state is JobState.SCHEDULED:
            self.violate("place_lost", f"{brief_job(after)} went stale for the first time, and has to wait")
        if after.stales > 1 and after.state is JobState.QUEUED:
            self._new_place(after)

    def _spent(self, after: Job) -> bool:
        policy = self.now_kept.queues[after.queue].policy
        most = after.options.max_attempts or policy.max_attempts
        return most is not None and after.fails + after.stales >= most

    def _check_death(self, after: Job, *, dead: bool, reason: DeathReason, now: Now) -> None:
        """Whether a job whose attempt ended is dead if it has to be, and only then."""
        if after.state is JobState.CANCELLED:
            return
        is_dead = after.state is JobState.DEAD
        if dead:
            if not is_dead or after.reason is not reason:
                self.violate("does_not_die", f"{brief_job(after)} has to be dead: {reason}")
        elif is_dead != _expired(after, now):
            self.violate("dies_wrongly", brief_job(after))

    def _audit_due(self, _command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        if before.not_before is None or before.not_before > now.wall:
            self.violate("due_too_early", f"{brief_job(before)} at {now.wall}")
        self._new_place(after)

    def _audit_run(self, _command: Command[Any] | None, _before: Job, after: Job, _now: Now) -> None:
        self._new_place(after)

    def _audit_expire(self, _command: Command[Any] | None, before: Job, after: Job, now: Now) -> None:
        if not _expired(before, now) or after.reason is not DeathReason.EXPIRED:
            self.violate("expired_too_early", f"{brief_job(before)} at {now.wall}")

    def _audit_cancel(self, _command: Command[Any] | None, _before: Job, after: Job, _now: Now) -> None:
        if not after.cancel_requested:
            self.violate("cancel_wrong", brief_job(after))

    def _audit_redrive(self, _command: Command[Any] | None, _before: Job, after: Job, _now: Now) -> None:
        if (after.fails, after.stales, after.reason) != (0, 0, None):
            self.violate("redrive_wrong", brief_job(after))
        if after.state is JobState.QUEUED:
            self._new_place(after)
        unique = after.options.unique_key
        for other in self._jobs_of(after.queue) if unique is not None else ():
            if other.options.unique_key == unique and other.state not in FINISHED and not other.key_freed:
                self.violate("unique_key_twice", f"{brief_job(after)} has the key {unique} of {brief_job(other)}")

    # --- time

    def _judge_sweep(self, reply: Swept, now: Now) -> None:
        """Nothing that was due is left."""
        late = [key for key, ends in self._lease_ends.items() if ends <= now.monotonic]
        for job in self.now_kept.jobs.values():
            due = job.state is JobState.SCHEDULED and job.not_before is not None and job.not_before <= now.wall
            if due or (job.state in WAITING and _expired(job, now)):
                late.append((job.queue, job.id))
        if late:
            self.violate("unswept", f"{late} are due, and were not swept")
        deadlines = [ends - now.monotonic for ends in self._lease_ends.values()]
        for job in self.now_kept.jobs.values():
            if job.state is JobState.SCHEDULED and job.not_before is not None:
                deadlines.append(job.not_before - now.wall)
            if job.state in WAITING and job.expires_at is not None:
                deadlines.append(job.expires_at - now.wall)
        right = min(deadlines, default=None)
        if reply.next_due_seconds != right:
            self.violate("next_deadline_wrong", f"{reply.next_due_seconds}, and {right} is right")

    def look_at_the_clock(self, now: Now, late_seconds: float) -> None:
        """No lease is unswept so long after its end."""
        for key, ends in self._lease_ends.items():
            if ends + late_seconds < now.monotonic:
                self.violate("unswept", f"the lease of {key} ended at {ends}, and it is {now.monotonic}")

    # --- callers

    def _watch_caller(self, call: Call, command: Command[Any], reply: Any, changes: Sequence[Change], now: Now) -> None:
        keyed = isinstance(command, Dequeue) and command.key is not None  # whoever repeats it has its place
        if call.left and not keyed:
            self.violate("served_the_dead", f"{call.client} had left, and {type(command).__name__} was carried out")
        # What has expired at a queue's head is given up by whoever comes by, for nobody.
        call.changes += sum(change.verb != "expire" for change in changes)
        if isinstance(command, Dequeue):
            waits = command.wait_seconds > 0 and isinstance(reply, Dequeued) and not reply.leases
            if waits and not reply.repeated and not call.parked:
                self._parked += 1
                call.parked = self._parked
                call.parked_until = now.monotonic + command.wait_seconds
                self._waiting.append(call)
            elif isinstance(reply, Dequeued) and reply.leases and not reply.repeated:
                self._check_line(call, reply.leases[0].job.queue, now)
                call.served = True

    def _check_line(self, call: Call, queue: str, now: Now) -> None:
        """Whoever was parked before this one, and still waits, goes first."""
        self._waiting = [other for other in self._waiting if not other.left and not other.served]
        for other in self._waiting:
            earlier = not call.parked or other.parked < call.parked
            if other is call or not earlier or not self._still_waits(other, now):
                continue
            assert isinstance(other.command, Dequeue)
            if queue in self.named(other.command.queue):
                self.violate(
                    "waiter_passed_over", f"{other.client} waits longer than {call.client}, served from {queue}"
                )

    @staticmethod
    def _still_waits(call: Call, now: Now) -> bool:
        assert isinstance(call.command, Dequeue)
        gone = call.left or call.served or call.command.key is not None
        return not gone and now.monotonic < min(call.leaves_at, call.parked_until)

    def _look_at_the_waiting(self, machine: StateMachine, now: Now) -> None:
        """Nobody waits for a job that is there."""
        told_again = machine._ledger._readied
        for call in self._waiting:
            if not self._still_waits(call, now):
                continue
            assert isinstance(call.command, Dequeue)
            for name in self.named(call.command.queue):
                if name not in told_again and self.offers(name, now):
                    self.violate("waiter_starves", f"{call.client} waits for {call.command.queue}, and {name} has jobs")


def _expired(job: Job, now: Now) -> bool:
    return job.expires_at is not None and job.expires_at <= now.wall


def brief_job(job: Job | None) -> str:
    """A job in a few words."""
    if job is None:
        return "nothing"
    facts = f"{job.queue}#{job.id} {job.state} r{job.revision} place {job.place} attempts {job.attempts}"
    return f"{facts} ({job.fails} failed, {job.stales} stale) fence {job.fence}"
