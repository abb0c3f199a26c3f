"""The state machine beside the naive model of it: every command, every field, both clocks.

Hypothesis makes up commands and moments. Both sides carry them out; they must answer alike, refusals too, and hold the
same jobs afterwards. Besides, everything is counted again after each command, without the model's help.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, ClassVar
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from queue_actor import deadlines, ids, ledger, queries, ready, returned, state_machine
from queue_actor.commands import (
    Bulk,
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
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    JobsFound,
    ListQueues,
    NewJob,
    Pause,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    Results,
    RunNow,
    Search,
    SetPolicy,
    Sweep,
    TakeBack,
)
from queue_actor.deadlines import Deadlines
from queue_actor.errors import QueueError
from queue_actor.idempotency import Answers
from queue_actor.ids import ByIds
from queue_actor.jobs import (
    FINISHED,
    NO_OPTIONS,
    WAITING,
    Change,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    Now,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    UniqueUntil,
)
from queue_actor.meters import Histogram, Meter
from queue_actor.queues import Queue
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES, Tokens
from queue_actor.transitions import TRANSITIONS
from tests.contract.state import deadlines_of
from tests.simulation.model import Facts, Key, Model, Refused

EXAMPLES = 200
EXAMPLES_SLOW = 2_000
STEPS = 40

# Small enough that a few commands meet each of them.
BULK_JOBS_MAX = 2
SCANNED_IDS_MAX = 4
HISTORY_ATTEMPTS_MAX = 3
COMPACT_SLOTS_MIN = 3
DEAD_ENTRIES_MIN = 3
CHUNK_BITS = 2

DELAY_SECONDS_MAX = Settings().delay_seconds_max
MONOTONIC = 5_000.0
WALL = 100_000.0
SECRET = bytes(range(SECRET_BYTES))
FORGERS = Tokens(bytes(SECRET_BYTES))

# --- what commands are made of: few of each, so that they meet


def often(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Values of which the first comes half of the time."""
    return st.sampled_from((*[usual] * len(others), *others))


def seldom(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Values of which the first comes four times out of five."""
    return st.sampled_from((*[usual] * 4 * len(others), *others))


RETRIES = (
    Retry(RetryKind.FIXED, base_seconds=2.0, jitter=Jitter.NONE),
    Retry(RetryKind.FIXED, base_seconds=4.0, jitter=Jitter.FULL),
    Retry(RetryKind.EXPONENTIAL, base_seconds=1.0, factor=3.0, cap_seconds=6.0, jitter=Jitter.NONE),
    Retry(RetryKind.EXPONENTIAL, base_seconds=0.5, factor=2.0, cap_seconds=4.0, jitter=Jitter.FULL),
)
QUEUES = st.sampled_from(("a", "a", "a", "ab", "default"))
THERE = st.sampled_from((0, 0, 1, 2, 0, 1, 2, None))  # a queue by number, of those that there are; or none of them
SEVERAL = st.sampled_from(("*", "a*", ("ab", "a"), ("a", "a", "default"), ("default", "no", "ab"), "no"))
CONSUMERS = st.sampled_from((None, "c1", "c2", "c3"))
TEXTS = st.sampled_from((None, b"1", b"4444", b"88888888"))
BACKS = st.integers(0, 4)  # how far back, in a list of what is there
IDS = st.integers(-4, 4)  # below 0: in a list of what may be there or not
IDEMPOTENCY_KEYS = (
    IdempotencyKey("s", "i1", b"1"),
    IdempotencyKey("s", "i2", b"1"),
    IdempotencyKey("t", "i1", b"1"),
    IdempotencyKey("s", "i1", b"2"),
)
KEYS = seldom(None, *IDEMPOTENCY_KEYS)
OPTIONS = st.just(NO_OPTIONS) | st.builds(
    JobOptions,
    max_attempts=often(None, 1, 2, 3),
    retry=often(None, *RETRIES),
    lease_seconds=often(None, 2.0),
    unique_key=st.sampled_from((None, "k1", "k1", "k2", "k3")),
    unique_until=st.sampled_from(UniqueUntil),
    meta=often(None, {"m": "1"}),
    traceparent=often(None, "00-1"),
)
NEW_JOBS = st.tuples(
    seldom(None, 0.0, 3.0, -2.0, 100.0, 100.25),  # not before, from now
    st.builds(
        NewJob,
        type=st.sampled_from(("t", "u")),
        payload=TEXTS,
        priority=often(0, 2, -1),
        delay_seconds=seldom(0.0, 1.0, 5.0),
        ttl_seconds=seldom(None, 2.0, 6.0),
        options=OPTIONS,
        on_existing=st.sampled_from(OnExisting),
    ),
)
POLICIES = st.builds(
    QueuePolicy,
    max_attempts=often(None, 1, 3),
    max_stale=often(None, 1, 2, 3),
    retry=st.sampled_from(RETRIES),
    lease_seconds=often(None, 3.0),
    ttl_seconds=seldom(None, 7.0),
    queued_jobs_max=seldom(None, 0, 2, 4),
    in_progress_max=often(None, 1, 2),
    run_seconds_max=often(None, 4.0),
    oldest_every=often(0, 1, 2),
    retention_seconds=often(None, 0.0, 30.0),
    dead_retention_seconds=often(None, 0.0, 30.0),
)
ERRORS = often(None, JobError("E", "one"), JobError("Oops", ""))
STATE_SETS = often(frozenset[JobState](), WAITING, FINISHED, frozenset({JobState.IN_PROGRESS, JobState.DEAD}))
FILTERS = st.tuples(
    seldom(None, 0.0, -3.0),  # since, from now
    st.just(JobFilter())
    | st.builds(
        JobFilter,
        states=STATE_SETS,
        type=often(None, "t"),
        consumer=often(None, "c1"),
        error=often(None, "E", "o", "zzz"),
    ),
)
WORLDS = st.builds(
    Settings,
    lease_seconds=st.just(5.0),
    sweep_slice=st.sampled_from((2, 1, 4)),
    queues_max=st.sampled_from((3, 2)),
    queues=seldom("auto", "declared"),
    delay_seconds_max=st.just(100.0),
    queued_jobs_max=st.sampled_from((12, 5)),
    memory_bytes_max=st.sampled_from((80, 30)),
    reply_bytes_max=st.sampled_from((1_000, 9)),
    retention_seconds=st.just(15.0),
    retention_jobs=st.sampled_from((100, 2)),
    dead_retention_seconds=st.just(25.0),
    dead_retention_jobs=st.sampled_from((100, 1)),
    idempotency_seconds=st.just(12.0),
    idempotency_keys_max=often(2, 1, 0),
    ready_initial=st.just(1),
    ready_compact=st.sampled_from((0.5, 0.1)),
    compact_slice=st.just(2),
)
SHOWN = ("token", "token", "name", "old token", "token of another", "forged token", "rubbish", "nothing", "nothing")
CLAIMS = st.tuples(BACKS, st.sampled_from(SHOWN), CONSUMERS)
Shown = tuple[int, str, str | None]
CLAIM_TYPES: dict[Any, type[Claim]] = {
    Conclude: ConcludeClaim,
    Fail: FailClaim,
    Extend: ExtendClaim,
    Release: ReleaseClaim,
}
MEANT: dict[Any, frozenset[JobState]] = {
    Cancel: WAITING | {JobState.IN_PROGRESS},
    Redrive: frozenset({JobState.DEAD, JobState.CANCELLED}),
    RunNow: frozenset({JobState.SCHEDULED}),
    TakeBack: frozenset({JobState.IN_PROGRESS}),
    Forget: FINISHED,
}
"""The jobs that each verb is for."""

NO_JOBS = dict.fromkeys(JobState, 0)

NEVER_REFUSED = (Sweep, ReadQueue, ListQueues, Search)


class ModelMachine(RuleBasedStateMachine):
    """Two queues, told the same."""

    reached: ClassVar[set[tuple[str, str, str]]] = set()  # transitions made in any example
    agreed = False  # on all that came so far
    looked_at_every: ClassVar[int] = 1
    """After how many commands the whole state is looked at, and not only the replies."""

    @initialize(
        world=WORLDS,
        policy=POLICIES,
        jobs=st.lists(NEW_JOBS, min_size=1, max_size=3),
        others=st.lists(NEW_JOBS, max_size=2),
    )
    def begin(
        self,
        world: Settings,
        policy: QueuePolicy,
        jobs: Sequence[tuple[float | None, NewJob]],
        others: Sequence[tuple[float | None, NewJob]],
    ) -> None:
        self.monotonic, self.wall = MONOTONIC, WALL
        self.make(world)
        self.tokens: list[tuple[str, int, str, str | None]] = []  # queue, id, token, consumer of each lease given
        self.last_fences: dict[str, int] = {}
        self.last_ids: dict[str, int] = {}
        self.known: dict[Key, Job] = {}  # the last version of each job, by the changes alone
        self.revision = 0
        self.compared: dict[Key, Job] = {}
        self.under_keys: list[Enqueue | Dequeue] = []
        self.commands = 0
        self.do(SetPolicy("a", policy))
        self.enqueue("a", jobs, None)
        if others:
            self.enqueue("default", others, None)

    def make(self, world: Settings) -> None:
        """The two queues."""
        self.settings = world
        self.machine = StateMachine(world, secret=SECRET)
        self.model = Model(
            world,
            bulk_jobs_max=BULK_JOBS_MAX,
            scanned_ids_max=SCANNED_IDS_MAX,
            history_attempts_max=HISTORY_ATTEMPTS_MAX,
        )

    @property
    def now(self) -> Now:
        return Now(self.monotonic, self.wall)

    def there(self, number: int | None) -> str:
        """The name of a queue that there is, or is not."""
        names = sorted(self.model.queues)
        return "no" if number is None or not names else names[number % len(names)]

    # --- one command, on both sides

    def do(self, command: Command[Any]) -> Any:
        """Carry out a command, compare what came of it, and return the reply (or the refusal)."""
        self.agreed = False
        self.model.now = self.now
        available = [name for name in self.model.queues if self.model.available(name)]
        self.commands += 1
        looks = self.commands % self.looked_at_every == 0
        before = copy_of(self.machine) if looks and not isinstance(command, NEVER_REFUSED) else None
        try:
            reply: Any = self.machine.apply(command, self.now)
        except QueueError as refusal:
            reply = refusal
        readied = set(self.machine.take_readied())
        changes = self.machine.take_changes().jobs
        drawn = self.follow(changes)
        if isinstance(reply, Dequeued):
            self.take_leases(reply)
        try:
            expected: Any = self.model.apply(command, self.now, drawn)
        except Refused as refusal:
            expected = refusal.code, refusal.field
        assert plain(reply) == rounded(expected)
        now_available = [name for name in self.model.queues if self.model.available(name)]
        assert readied.issuperset(set(now_available) - set(available)), "nobody was told that there are jobs"
        if isinstance(reply, QueueError) or (
            isinstance(reply, Results) and all(isinstance(job, QueueError) for job in reply.jobs)
        ):
            if before is not None:
                assert before == copy_of(self.machine), "a refused command changed something"
            assert not changes
            assert not readied
        if isinstance(command, Enqueue | Dequeue) and command.key is not None:
            self.under_keys.append(command)
        if looks:
            self.compare()
            self.count_again()
        self.agreed = True
        return reply

    def follow(self, changes: Sequence[Change]) -> dict[Key, list[float]]:
        """Note the changes, which must make a chain; return until when jobs were put off."""
        drawn: dict[Key, list[float]] = {}
        for change in changes:
            self.revision += 1
            assert change.revision == self.revision
            job = change.after or change.before
            assert job is not None
            key = (job.queue, job.id)
            assert change.before is self.known.get(key)
            if change.before is None:
                assert job.id > self.last_ids.get(job.queue, 0), "an id was given again"
                self.last_ids[job.queue] = job.id
            if change.after is None:
                del self.known[key]
                continue
            assert change.after.revision == self.revision
            self.known[key] = change.after
            if change.before is not None and change.before.state is JobState.CONCLUDED:
                raise AssertionError("a concluded job did something")
            if change.after.state is JobState.SCHEDULED and change.after.not_before is not None:
                drawn.setdefault(key, []).append(change.after.not_before)
        return drawn

    def take_leases(self, reply: Dequeued) -> None:
        """Note who holds what now."""
        for lease in reply.leases:
            job = lease.job
            key = (job.queue, job.id)
            if self.model.fences.get(lease.token) == (*key, job.fence):
                continue  # given again under its idempotency key
            assert lease.token not in self.model.fences
            assert job.fence > self.last_fences.get(job.queue, 0), "a fence that does not grow"
            assert key not in self.model.lease_ends, "two leases on one job"
            self.last_fences[job.queue] = job.fence
            self.model.fences[lease.token] = (*key, job.fence)
            self.tokens.append((job.queue, job.id, lease.token, job.consumer))

    # --- what is checked after each command

    def compare(self) -> None:
        """Both sides hold the same."""
        machine, model, books = self.machine, self.model, self.machine._ledger
        jobs: dict[Key, Facts] = {}
        scheduled: dict[Key, float] = {}
        expiries: dict[Key, float] = {}
        kept: dict[Key, float] = {}
        dead: dict[Key, float] = {}
        for job in model.all_jobs():
            key = (job["queue"], job["id"])
            jobs[key] = job
            if job["state"] == "scheduled":
                scheduled[key] = job["not_before"]
            if job["state"] in WAITING and job["expires_at"] is not None:
                expiries[key] = job["expires_at"]
            if job["state"] in FINISHED:
                (dead if job["state"] == "dead" else kept)[key] = model.kept_until[key]
        assert self.known.keys() == jobs.keys()
        for key, known in self.known.items():
            if self.compared.get(key) is not known or known.revision != jobs[key]["revision"]:
                assert builtins(known) == jobs[key]
                self.compared[key] = known
        assert deadlines_of(books.leases) == model.lease_ends
        assert deadlines_of(books.planned) == scheduled
        assert deadlines_of(books.expiries) == expiries
        assert deadlines_of(books.kept) == kept
        assert deadlines_of(books.dead) == dead
        assert books.run_ends == model.run_ends
        assert machine.next_due_seconds(self.now) == model.next_due_seconds()
        assert books.queues.keys() == model.queues.keys()
        for name, queue in books.queues.items():
            facts = model.queues[name]
            assert queue.next_id == facts["next_id"]
            assert (queue.paused, queue.declared) == (facts["paused"], facts["declared"])
            order = [job["id"] for job in model.in_order(facts)]
            assert len(queue.ready) == len(order)
            assert queue.ready.first() == (order[0] if order else None)
            waiting = [queue.jobs[id_] for id_ in order]
            assert [queue.ready.ahead(job.priority, job.place) for job in waiting] == list(range(len(order)))
            keys = {job["options"]["unique_key"] for job in facts["jobs"]} - {None}
            holders = {key: model.holder(facts, key) for key in keys}
            assert queue.unique == {key: job["id"] for key, job in holders.items() if job is not None}

    def count_again(self) -> None:
        """Count everything again from the jobs that the machine holds, without the model."""
        books = self.machine._ledger
        jobs = [job for queue in books.queues.values() for job in queue.jobs.values()]
        assert {(job.queue, job.id): job for job in jobs} == self.known
        assert {(name, id_) for name, queue in books.queues.items() for id_ in queue.jobs} == self.known.keys()
        counts = NO_JOBS.copy()
        for queue in books.queues.values():
            own = NO_JOBS.copy()
            places = []
            for job in queue.jobs.values():
                own[job.state] += 1
                if job.state is JobState.QUEUED:
                    places.append(job.place)
            assert queue.counts == own
            assert not queue.jobs or min(queue.jobs) >= queue.first_id
            assert len(set(places)) == len(places)
            assert max(places, default=0) < queue.next_place
            for state, count in own.items():
                counts[state] += count
        assert books.counts == counts
        assert books.kept_bytes == sum(map(kept_bytes, jobs))
        assert books.held == Counter(
            job.holder for job in jobs if job.state is JobState.IN_PROGRESS and job.holder is not None
        )
        for job in jobs:
            assert (job.state in FINISHED) == (job.finished_at is not None)
            assert (job.state is JobState.DEAD) == (job.reason is not None)
            assert (job.state is JobState.IN_PROGRESS) == (job.lease_expires_at is not None)
            assert (job.result is None) or job.state is JobState.CONCLUDED
            assert job.attempts >= len(job.history)

    def teardown(self) -> None:
        """Compare every job once more, also those that have not changed since they were compared."""
        if self.agreed:
            self.compared.clear()
            self.model.now = self.now
            self.compare()
            self.reached.update(self.model.transitions)

    # --- producers

    @rule(queue=QUEUES, jobs=st.lists(NEW_JOBS, min_size=1, max_size=3), key=KEYS)
    def enqueue(self, queue: str, jobs: Sequence[tuple[float | None, NewJob]], key: IdempotencyKey | None) -> None:
        new = [
            job if offset is None else msgspec.structs.replace(job, not_before=self.wall + offset, delay_seconds=0.0)
            for offset, job in jobs
        ]
        before = self.machine._ledger
        waiting, kept = before.counts[JobState.SCHEDULED] + before.counts[JobState.QUEUED], before.kept_bytes
        if isinstance(self.do(Enqueue(queue, new, key)), Enqueued):
            books, limits = self.machine._ledger, self.settings
            more = books.counts[JobState.SCHEDULED] + books.counts[JobState.QUEUED]
            assert more == waiting or more <= limits.queued_jobs_max
            assert books.kept_bytes <= max(kept, limits.memory_bytes_max)
            most = books.queues[queue].policy.queued_jobs_max if queue in books.queues else None
            assert more == waiting or most is None or books.queues[queue].waiting <= most

    @rule(
        number=THERE,
        unique_key=st.sampled_from(("k1", "k1", "k2")),
        unique_until=st.sampled_from(UniqueUntil),
        times=st.lists(
            st.tuples(st.sampled_from(OnExisting), TEXTS, often(0.0, 5.0), often(0, 2)), min_size=1, max_size=3
        ),
        at_once=st.booleans(),
    )
    def enqueue_unique(
        self,
        number: int | None,
        unique_key: str,
        unique_until: UniqueUntil,
        times: Sequence[tuple[OnExisting, bytes | None, float, int]],
        at_once: bool,
    ) -> None:
        """The same job again and again, in a batch or one after the other."""
        options = JobOptions(unique_key=unique_key, unique_until=unique_until)
        new = [
            NewJob("t", payload, priority, delay_seconds=delay, options=options, on_existing=on_existing)
            for on_existing, payload, delay, priority in times
        ]
        for batch in [new] if at_once else [[one] for one in new]:
            self.do(Enqueue(self.there(number), batch))

    @precondition(lambda self: self.under_keys)
    @rule(back=BACKS, other_body=seldom(False, True))
    def repeat_under_its_key(self, back: int, other_body: bool) -> None:
        """Send a command again, as after an answer that was lost; or reuse its key."""
        command = self.under_keys[-1 - back % len(self.under_keys)]
        if other_body and command.key is not None:
            key = msgspec.structs.replace(command.key, fingerprint=b"other")
            command = msgspec.structs.replace(command, key=key)
        self.do(command)

    # --- consumers

    def dequeue(self, command: Dequeue) -> int:
        """Dequeue; return how many leases there were."""
        reply = self.do(command)
        leases = reply.leases if isinstance(reply, Dequeued) else ()
        assert len(leases) <= command.count or command.key is not None
        for name in {lease.job.queue for lease in leases if command.key is None}:
            queue = self.machine._ledger.queues[name]
            most = queue.policy.in_progress_max
            assert not queue.paused
            assert most is None or queue.counts[JobState.IN_PROGRESS] <= most
        if command.key is None:
            assert sum(len(lease.job.payload or b"") for lease in leases[1:]) <= self.settings.reply_bytes_max
        return len(leases)

    @rule(
        queue=QUEUES | SEVERAL,
        count=often(1, 2, 5),
        consumer=CONSUMERS,
        lease_seconds=often(None, 1.0, 6.0),
        wait_seconds=often(0.0, 1.0),
        order=st.sampled_from(DequeueOrder),
        key=KEYS,
        holder=often(None, "h1", "h2"),
        holder_in_progress_max=often(None, 1, 3),
    )
    def dequeue_any(self, **fields: Any) -> None:
        self.dequeue(Dequeue(**fields))

    def claim(self, back: int, shown: str, consumer: str | None) -> dict[str, Any]:
        """What a caller shows who means one of the last leases that hold, or that were given."""
        tokens = self.tokens
        if shown != "old token":
            held = {(*key, self.known[key].fence) for key in self.model.lease_ends}
            tokens = [given for given in tokens if self.model.fences[given[2]] in held] or tokens
        queue, id_, token, holder = tokens[-1 - back % len(tokens)]
        if shown == "token of another":
            token = self.tokens[-1 - (back + 1) % len(self.tokens)][2]
        elif shown == "forged token":
            token = FORGERS.issue(queue, id_, self.model.fences[token][2])
        elif shown == "rubbish":
            token = "é"  # noqa: S105 - of a lease, and none
        named = holder if shown == "name" else consumer
        return {"queue": queue, "id": id_, "token": None if shown in {"name", "nothing"} else token, "consumer": named}

    @precondition(lambda self: self.tokens)
    @rule(claims=st.lists(st.tuples(CLAIMS, TEXTS, st.booleans()), min_size=1, max_size=2))
    def conclude(self, claims: Sequence[tuple[Shown, bytes | None, bool]]) -> None:
        made: list[Claim] = []
        for shown, result, plainly in claims:
            facts = self.claim(*shown)
            made.append(Claim(**facts) if plainly else ConcludeClaim(**facts, result=result))
        self.do(Conclude(made))

    @precondition(lambda self: self.tokens)
    @rule(claims=st.lists(st.tuples(CLAIMS, ERRORS, often(True, False), often(None, 0.0, 2.0)), min_size=1, max_size=2))
    def fail(self, claims: Sequence[tuple[Shown, JobError | None, bool, float | None]]) -> None:
        made = [
            FailClaim(**self.claim(*shown), error=error, retry=retry, retry_after_seconds=seconds)
            for shown, error, retry, seconds in claims
        ]
        self.do(Fail(made))

    @precondition(lambda self: self.tokens)
    @rule(claims=st.lists(st.tuples(CLAIMS, often(None, 1.0, 4.0, 9.0), TEXTS), min_size=1, max_size=2))
    def extend(self, claims: Sequence[tuple[Shown, float | None, bytes | None]]) -> None:
        self.do(Extend([ExtendClaim(**self.claim(*shown), lease_seconds=s, progress=p) for shown, s, p in claims]))

    @precondition(lambda self: self.tokens)
    @rule(claims=st.lists(st.tuples(CLAIMS, often(0.0, 2.0)), min_size=1, max_size=2))
    def release(self, claims: Sequence[tuple[Shown, float]]) -> None:
        self.do(Release([ReleaseClaim(**self.claim(*shown), delay_seconds=seconds) for shown, seconds in claims]))

    @rule(
        verb=st.sampled_from(tuple(CLAIM_TYPES)),
        queue=QUEUES,
        back=BACKS,
        token=often(None, ""),
        consumer=CONSUMERS,
    )
    def claim_what_is_not_leased(self, verb: Any, queue: str, back: int, token: str | None, consumer: Any) -> None:
        others = [key for key in self.known if key not in self.model.lease_ends]
        others += [(queue, 0), (queue, 1), (queue, self.last_ids.get(queue, 0) + 1)]
        self.do(verb([CLAIM_TYPES[verb](*others[back % len(others)], token, consumer)]))

    # --- what workers do in life, so that long lives of a job are reached

    @rule(
        number=THERE,
        outcomes=st.lists(st.sampled_from(("died", "failed", "failed at once", "released")), min_size=1, max_size=6),
        error=ERRORS,
        cancelled=often(None, 0, 1, 2),
        other=often(None, *CLAIM_TYPES),
        other_shows=st.sampled_from(("old token", "nothing")),
    )
    def attempts(
        self,
        *,
        number: int | None,
        outcomes: Sequence[str],
        error: JobError | None,
        cancelled: int | None,
        other: Any,
        other_shows: str,
    ) -> None:
        """The first job in line is tried again and again, and others than the holder speak of it, too."""
        for attempt, outcome in enumerate(outcomes):
            if not self.dequeue(Dequeue(self.there(number), consumer="c1")):
                break
            shown = self.claim(0, "old token", None)
            if attempt == cancelled:
                self.do(Cancel(shown["queue"], [shown["id"]]))
            if other is not None:
                self.do(other([CLAIM_TYPES[other](**self.claim(1, other_shows, None))]))
            if outcome == "released":
                self.do(Release([ReleaseClaim(**shown)]))
            elif outcome == "died":
                self.later(5.0)
            else:
                after = 0.0 if outcome == "failed at once" else None
                self.do(Fail([FailClaim(**shown, error=error, retry_after_seconds=after)]))
            self.later(4.0)

    @rule(names=SEVERAL, order=st.sampled_from(DequeueOrder), how=st.sampled_from(("released", "failed", "died")))
    def one_comes_back_to_idle_workers(self, names: str | tuple[str, ...], order: DequeueOrder, how: str) -> None:
        """Everything is handed out, and then one job returns."""
        ask = Dequeue(names, count=4, order=order, lease_seconds=3.0)
        while self.dequeue(ask):
            pass
        if self.tokens:
            shown = self.claim(0, "old token", None)
            if how == "released":
                self.do(Release([ReleaseClaim(**shown)]))
            elif how == "failed":
                self.do(Fail([FailClaim(**shown, retry_after_seconds=0.0)]))
            else:
                self.later(3.0)
        self.dequeue(ask)

    @rule(
        number=THERE,
        kind=st.sampled_from((Dequeue, Dequeue, Enqueue)),
        key=st.sampled_from(IDEMPOTENCY_KEYS),
        meanwhile=st.sampled_from(("died", "concluded", "nothing")),
        seconds=st.sampled_from((0.0, 11.75, 12.0)),
        other_body=seldom(False, True),
    )
    def an_answer_is_lost(
        self, *, number: int | None, kind: Any, key: IdempotencyKey, meanwhile: str, seconds: float, other_body: bool
    ) -> None:
        """A command is sent again under its key, after a while in which something may have happened."""
        again_at = self.monotonic + seconds
        name = self.there(number)
        command = Enqueue(name, [NewJob("t")], key) if kind is Enqueue else Dequeue(name, count=2, key=key)
        self.do(command)
        if self.tokens and meanwhile == "concluded":
            self.do(Conclude([ConcludeClaim(**self.claim(0, "old token", None))]))
        elif meanwhile == "died":
            self.later(5.0)
            self.dequeue(Dequeue(name, count=3))
        self.time_passes(max(0.0, again_at - self.monotonic))
        if other_body:
            command = msgspec.structs.replace(command, key=msgspec.structs.replace(key, fingerprint=b"other"))
        self.do(command)

    @rule(
        number=THERE,
        jobs=st.integers(2, 5),
        delay_seconds=often(0.0, 1.0, 3.0),
        count=often(1, 2),
        offset=often(0.0, -0.25),
        names=SEVERAL,
    )
    def jobs_expire_in_line(
        self, *, number: int | None, jobs: int, delay_seconds: float, count: int, offset: float, names: Any
    ) -> None:
        """More of them than one dequeue looks at."""
        for _ in range(jobs):
            self.do(Enqueue(self.there(number), [NewJob("t", ttl_seconds=2.0, delay_seconds=delay_seconds)]))
        self.do(Enqueue(self.there(number), [NewJob("t")]))
        self.time_passes(2.0 + offset)
        self.dequeue(Dequeue(self.there(number), count=count))
        self.dequeue(Dequeue(names, count=count, order=DequeueOrder.FAIR))
        self.do(Sweep())

    # --- operators

    @rule(verb=st.sampled_from(tuple(MEANT)), number=THERE, backs=st.lists(IDS, min_size=1, max_size=3))
    def by_id(self, verb: Any, number: int | None, backs: Sequence[int]) -> None:
        """A verb for jobs that it is meant for, if there are any; or for any other."""
        meant = [key for key, job in self.known.items() if job.state in MEANT[verb]]
        queue = meant[backs[0] % len(meant)][0] if meant and number is not None else self.there(number)
        last = self.last_ids.get(queue, 0)
        others = [*(id_ for name, id_ in self.known if name == queue), 0, 1, last, last + 1]
        ids = [id_ for name, id_ in meant if name == queue] or others
        self.do(verb(queue, [ids[back % len(ids)] if back >= 0 else others[-back % len(others)] for back in backs]))

    @rule(number=THERE, unique_until=st.sampled_from(UniqueUntil), at_once=st.booleans(), cancel=st.booleans())
    def a_key_is_taken_meanwhile(
        self, number: int | None, unique_until: UniqueUntil, at_once: bool, cancel: bool
    ) -> None:
        """Two jobs of one key, one after the other; then the first is redriven."""
        name = self.there(number)
        new = NewJob("t", priority=2, options=JobOptions(unique_key="k1", unique_until=unique_until))
        self.do(Enqueue(name, [new]))
        id_ = self.last_ids.get(name, 1)
        if cancel:
            self.do(Cancel(name, [id_]))
        elif self.dequeue(Dequeue(name)):
            self.do(Fail([FailClaim(**self.claim(0, "old token", None), retry=False)]))
        self.do(Enqueue(name, [new]))
        self.do(Bulk(name, BulkVerb.REDRIVE, JobFilter()) if at_once else Redrive(name, [id_]))

    @rule(
        number=THERE,
        verb=st.sampled_from(BulkVerb),
        where=FILTERS,
        dry_run=st.sampled_from((False, False, True)),
        after_id=seldom(0, 1, 3),
        until_id=seldom(None, 2, 5),
        per_second=often(None, 0.5, 4.0),
        spread=often(None, 3.0, -3.0),
        slices=st.sampled_from((9, 1)),
    )
    def bulk(
        self,
        number: int | None,
        where: tuple[float | None, JobFilter],
        spread: float | None,
        slices: int,
        **fields: Any,
    ) -> None:
        spread_from = None if spread is None else self.wall + spread
        command = Bulk(self.there(number), where=self.filter(where), spread_from=spread_from, **fields)
        for _ in range(slices):
            done = self.do(command)
            if isinstance(done, QueueError) or done.next_after is None:
                break
            assert done.next_after > command.after_id
            command = msgspec.structs.replace(command, after_id=done.next_after, spread_from=done.spread_to)

    @rule(
        number=THERE,
        verb=st.sampled_from(BulkVerb),
        dry_run=st.booleans(),
        cancel=st.booleans(),
        per_second=often(None, 4.0),
        slices=st.sampled_from((9, 1)),
    )
    def bulk_of_all(self, number: int | None, cancel: bool, **fields: Any) -> None:
        """With jobs in several states."""
        name = self.there(number)
        for _ in range(3):
            self.do(Enqueue(name, [NewJob("t")]))
        if cancel:
            self.do(Cancel(name, [self.last_ids.get(name, 0)]))
        self.dequeue(Dequeue(name))
        self.bulk(number=number, where=(None, JobFilter()), spread=None, **fields)

    def filter(self, where: tuple[float | None, JobFilter]) -> JobFilter:
        since, others = where
        return msgspec.structs.replace(others, since=None if since is None else self.wall + since)

    @rule(
        number=THERE,
        cancel=st.booleans(),
        per_second=often(None, 0.5, 4.0),
        dry_run=seldom(False, True),
        slices=st.sampled_from((9, 1)),
    )
    def all_are_redriven(self, number: int | None, cancel: bool, **fields: Any) -> None:
        """What there is to do ends badly, and is done again, at once or at a rate."""
        name = self.there(number)
        if cancel:
            self.do(Cancel(name, [id_ for queue, id_ in self.known if queue == name]))
        else:
            given = len(self.tokens)
            self.dequeue(Dequeue(name, count=4))
            self.do(Fail([FailClaim(queue, id_, token, retry=False) for queue, id_, token, _ in self.tokens[given:]]))
        self.bulk(number=number, verb=BulkVerb.REDRIVE, where=(None, JobFilter()), spread=None, **fields)

    @rule(queue=QUEUES, policy=POLICIES, paused=often(None, False, True))
    def set_policy(self, **fields: Any) -> None:
        self.do(SetPolicy(**fields))

    @rule(number=THERE, paused=seldom(False, True))
    def pause(self, number: int | None, paused: bool) -> None:
        self.do(Pause(self.there(number), paused))

    @rule(number=THERE, clear_out=st.booleans(), seconds=often(0.0, -5.0))
    def make_queue_again(self, number: int | None, clear_out: bool, seconds: float) -> None:
        name = self.there(number)
        for verb in (BulkVerb.RELEASE, BulkVerb.PURGE) if clear_out else ():
            self.bulk(number=number, verb=verb, where=(None, JobFilter()), spread=None, slices=99)
        self.do(DeleteQueue(name))
        if name not in self.model.queues:
            self.the_wall_clock_is_set(seconds)
            self.do(Enqueue(name, [NewJob("t")]))
            self.dequeue(Dequeue(name))

    # --- readers

    @rule(number=THERE, back=BACKS, prefix=often("", "a"), after=often("", "a"), limit=st.sampled_from((100, 1)))
    def read(self, number: int | None, back: int, **listed: Any) -> None:
        queue = self.there(number)
        ids = [id_ for name, id_ in self.known if name == queue] + [1, self.last_ids.get(queue, 0) + 1]
        self.do(ReadJob(queue, ids[back % len(ids)]))
        self.do(ReadPosition(queue, ids[back % len(ids)]))
        self.do(ReadQueue(queue))
        self.do(ListQueues(**listed))

    @rule(
        number=THERE,
        where=FILTERS,
        newest_first=st.booleans(),
        limit=st.sampled_from((100, 2, 1)),
        back=st.none() | BACKS,
    )
    def search(
        self,
        number: int | None,
        where: tuple[float | None, JobFilter],
        newest_first: bool,
        limit: int,
        back: int | None,
    ) -> None:
        queue = self.there(number)
        after_id = None if back is None else max(0, self.last_ids.get(queue, 0) + 1 - back)
        command = Search(queue, self.filter(where), newest_first, limit, after_id)
        found: list[Job] = []
        while True:
            page = self.do(command)
            assert isinstance(page, JobsFound)
            found += page.jobs
            if page.next_after is None:
                break
            command = msgspec.structs.replace(command, after_id=page.next_after)
        if back is None:
            jobs = [job for (name, _), job in self.known.items() if name == queue]
            matching = [job.id for job in jobs if self.model.matching(builtins(job), command.where)]
            assert [job.id for job in found] == sorted(matching, reverse=newest_first)

    # --- time

    @rule(seconds=st.sampled_from((0.25, 1.0, 3.0, 3.0, 8.0, 20.0, 61.0, 601.0)))
    def time_passes(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def later(self, seconds: float) -> None:
        self.time_passes(seconds)
        self.do(Sweep())

    @rule(back=BACKS, offset=st.sampled_from((0.0, 0.0, -0.25, 0.25)), sweep=often(True, False))
    def a_moment_comes(self, back: int, offset: float, sweep: bool) -> None:
        """A deadline is reached, or nearly."""
        model = self.model
        moments = [(at, self.monotonic) for at in (*model.lease_ends.values(), *model.kept_until.values())]
        for job in self.known.values():
            if job.state in WAITING:
                moments += [(at, self.wall) for at in (job.not_before, job.expires_at) if at is not None]
        waits = sorted({at - clock for at, clock in moments if at > clock})
        if waits:
            self.time_passes(max(0.0, waits[back % len(waits)] + offset))
        if sweep:
            self.do(Sweep())

    @rule(seconds=st.sampled_from((5.0, -5.0, 50.0, -50.0)))
    def the_wall_clock_is_set(self, seconds: float) -> None:
        self.wall += seconds

    @rule(seconds=st.sampled_from((0.0, 1.0, 8.0)))
    def sweep_up(self, seconds: float) -> None:
        self.time_passes(seconds)
        while self.do(Sweep()).more:
            pass
        due = self.machine.next_due_seconds(self.now)
        assert due is None or due > 0
        books = self.machine._ledger
        assert len(books.kept) <= self.settings.retention_jobs
        assert len(books.dead) <= self.settings.dead_retention_jobs


# --- replies and states in plain words


def plain(reply: Any) -> Any:
    """A reply as the model would say it."""
    match reply:
        case QueueError():
            return reply.code, reply.field
        case Job():
            return builtins(reply)
        case Results() | Enqueued():
            return {"jobs": [plain(job) for job in reply.jobs]}
        case JobsFound():
            return {"jobs": [plain(job) for job in reply.jobs], "next_after": reply.next_after}
        case Dequeued():
            return {"leases": [plain(lease.job) for lease in reply.leases], "repeated": reply.repeated}
        case _:
            return rounded(builtins(reply))


def builtins(struct: Any) -> Any:
    return msgspec.to_builtins(struct, builtin_types=(bytes,))


def rounded(reply: Any) -> Any:
    """With rates that do not depend on the order of additions."""
    match reply:
        case {"per_minute": rates}:
            return {**reply, "per_minute": {verb: round(rate, 6) for verb, rate in rates.items()}}
        case {"queues": views}:
            return {**reply, "queues": [rounded(view) for view in views]}
        case _:
            return reply


def kept_bytes(job: Job) -> int:
    texts: list[str | bytes | None] = [job.payload, job.result, job.progress]
    for attempt in job.history:
        if attempt.error is not None:
            texts += (attempt.error.type, attempt.error.message)
    return sum([len(text) for text in texts if text is not None])


def copy_of(machine: StateMachine) -> list[tuple[str, Any]]:
    """All that a machine holds, deeply, to be compared; but for the ready arrays, which `compare` asks everything."""
    books = machine._ledger
    held = [(name, value) for side in (machine, books) for name, value in vars(side).items() if name not in HELD_BESIDE]
    for name, queue in books.queues.items():
        held += [(name, value) for value in FACTS_OF_QUEUE(queue)]
        held += [(name, FACTS_OF_METER(meter)) for meter in queue.meters.values()]
    return [(name, value if type(value) in FROZEN else COPIES[type(value)](value)) for name, value in held]


HELD_BESIDE = frozenset(
    {
        *("_settings", "_tokens", "_ledger", "_retention", "_trends", "_surveyor"),
        *("_queues", "_verbs", "queues", "_changes", "_readied"),
    }
)
FACTS_OF_QUEUE = attrgetter(*(slot for slot in Queue.__slots__ if slot not in {"ready", "meters"}))
FACTS_OF_METER = attrgetter(*Meter.__slots__)
FROZEN = frozenset({type(None), bool, int, float, str, QueuePolicy, tuple})
COPIES: dict[type, Callable[[Any], Any]] = {
    dict: dict.copy,
    set: set.copy,
    list: list.copy,
    Deadlines: deadlines_of,
    ByIds: dict,
    Histogram: lambda held: (held._counts.copy(), held._sum),
    Answers: lambda held: (list(held._answers.items()), held._jobs),
}
"""How what may change is copied. What dictionaries and lists hold does not change, nor do tuples."""


# --- the tests


@contextmanager
def with_small_limits() -> Iterator[None]:
    """Let limits that no setting sets be small, too."""
    with ExitStack() as stack:
        for module, name, value in (
            (state_machine, "BULK_JOBS_MAX", BULK_JOBS_MAX),
            (queries, "SCANNED_IDS_MAX", SCANNED_IDS_MAX),
            (ledger, "HISTORY_ATTEMPTS_MAX", HISTORY_ATTEMPTS_MAX),
            (ready, "_COMPACT_SLOTS_MIN", COMPACT_SLOTS_MIN),
            (deadlines, "_DEAD_ENTRIES_MIN", DEAD_ENTRIES_MIN),
            *((module, "CHUNK_BITS", CHUNK_BITS) for module in (ids, deadlines, ledger, returned, state_machine)),
            (ledger, "CHUNK_MASK", (1 << CHUNK_BITS) - 1),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@pytest.fixture
def small_limits() -> Iterator[None]:
    with with_small_limits():
        yield


def run_examples(examples: int, machine: type[ModelMachine] = ModelMachine) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.usefixtures("small_limits")
def test_the_state_machine_does_what_the_model_does() -> None:
    run_examples(EXAMPLES)


@pytest.mark.slow
@pytest.mark.usefixtures("small_limits")
def test_the_state_machine_does_what_the_model_does_at_length() -> None:
    ModelMachine.reached.clear()
    run_examples(EXAMPLES_SLOW)

    table = {(str(before), verb, str(after)) for before, verb, after in TRANSITIONS}
    assert ModelMachine.reached == table
