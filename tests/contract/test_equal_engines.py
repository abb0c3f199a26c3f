"""All engines give equal replies, at equal moments, to equal lists of commands.

Those that keep nothing are equal in all that they remember, too. With a store finished jobs are forgotten by commands
of their own, after the sweep that finds them: by the same moment, but behind who was served in between. So there the
order of revisions is compared rather than their numbers, and sweeps only by what they do to jobs that have not ended.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Command,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Dequeue,
    Dequeued,
    DequeueOrder,
    Enqueue,
    Enqueued,
    Explain,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    JobsFound,
    Lease,
    ListQueues,
    Measure,
    Measured,
    NewJob,
    Pause,
    ReadJob,
    ReadPosition,
    ReadQueue,
    ReadTrends,
    Redrive,
    Release,
    ReleaseClaim,
    Results,
    RunNow,
    Search,
    SetPolicy,
    Survey,
    Surveyed,
    Sweep,
    TakeBack,
)
from queue_actor.durable import DurableEngine
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import QueueError
from queue_actor.jobs import (
    FINISHED,
    NO_OPTIONS,
    WAITING,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    UniqueUntil,
)
from queue_actor.settings import Settings
from queue_actor.sweeper import PAUSE_SECONDS_MIN
from tests.contract.state import whole_state
from tests.fakes import EPOCH_SECONDS, SECRET, Call, FakeClock, in_virtual_time
from tests.opening import DURABLE, IN_MEMORY, open_engine

TIGHT = Settings(
    lease_seconds=3,
    sweep_slice=2,
    queues_max=2,
    queued_jobs_max=12,
    memory_bytes_max=1_024,
    reply_bytes_max=1_024,
    waiters_max=2,
    retention_seconds=4,
    retention_jobs=4,
    dead_retention_seconds=6,
    dead_retention_jobs=3,
    idempotency_seconds=6,
    idempotency_keys_max=3,
    ready_initial=1,
    inbox_requests_max=2,
    recent_jobs=1,
)
"""Every limit is within the reach of a short list of commands."""

FEW_KEPT = msgspec.structs.replace(TIGHT, memory_bytes_max=1_000_000)
"""For a comparison with a store: with it, finished jobs need no memory, and so the limit is met later."""

ALL_KEPT = msgspec.structs.replace(FEW_KEPT, retention_jobs=1_000, dead_retention_jobs=1_000)
"""Which of the jobs of several queues that ended at the same moment is one too many is promised by nobody."""


# --- what is done to an engine: a command, or something else


class Held(msgspec.Struct, frozen=True):
    """What a claim shows, said without knowing the tokens: they are those of earlier replies."""

    verb: type[Conclude | Fail | Extend | Release]
    leases: Sequence[int]  # how many leases ago
    shows_token: bool
    consumer: str | None
    seconds: float
    text: bytes | None = None
    error: JobError | None = None


class Leave(msgspec.Struct, frozen=True):
    """A caller who waits goes away."""

    waiter: int


class Pass(msgspec.Struct, frozen=True):
    """Time passes."""

    seconds: float


class MoveWallClock(msgspec.Struct, frozen=True):
    """Somebody sets the clock."""

    seconds: float


class Drain(msgspec.Struct, frozen=True):
    """The server is about to end."""


Operation = Command[Any] | Held | Leave | Pass | MoveWallClock | Drain

QUEUES = st.sampled_from(["a", "a", "a", "a", "b", "b", "c"])
NAMED = st.sampled_from(["a", "a", "a", "b", "*", "a*", ("a", "b"), ("b", "a", "c"), ("a", "a")])
IDS = st.sampled_from([1, 2, 1, 3, 4, 5, 0, 9])
SOME_IDS = st.lists(IDS, max_size=3)
CONSUMERS = st.sampled_from([None, None, "w1", "w2"])
SECONDS = st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
KEYS = st.sampled_from([None, None, *(IdempotencyKey("s", key, body) for key in "kl" for body in (b"1", b"1", b"2"))])
RETRIES = st.sampled_from(
    [
        None,
        Retry(),
        Retry(RetryKind.FIXED, base_seconds=0.0),
        Retry(RetryKind.FIXED, base_seconds=1.0, jitter=Jitter.NONE),
        Retry(base_seconds=0.5, factor=3.0, cap_seconds=2.0),
    ]
)
ERRORS = st.sampled_from([None, JobError("E", "broke"), JobError("F" * 40, "broken" * 20)])
TEXTS = st.sampled_from([None, b"0", b"1" * 200])

OPTIONS = st.one_of(
    st.just(NO_OPTIONS),
    st.builds(
        JobOptions,
        st.sampled_from([None, None, 1, 2]),
        RETRIES,
        st.sampled_from([None, 0.5, 2.0]),
        st.sampled_from([None, "k", "k", "l"]),
        st.sampled_from(UniqueUntil),
    ),
)
NEW_JOBS = st.builds(
    NewJob,
    st.sampled_from(["x", "y"]),
    st.sampled_from([None, None, b"0", b"0" * 300]),
    st.integers(-1, 1),
    SECONDS,
    st.sampled_from([None, None, None, EPOCH_SECONDS - 1, EPOCH_SECONDS + 3, EPOCH_SECONDS + 3_600]),
    st.sampled_from([None, None, 0.5, 2.0]),
    OPTIONS,
    st.sampled_from(OnExisting),
)
POLICIES = st.builds(
    QueuePolicy,
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 1, 2]),
    RETRIES.map(lambda retry: retry or Retry()),
    st.sampled_from([None, 1.0]),
    st.sampled_from([None, None, 2.0]),
    st.sampled_from([None, None, 2]),
    st.sampled_from([None, 1, 1, 2]),
    st.sampled_from([None, None, 1.5]),
    st.sampled_from([0, 2]),
    st.sampled_from([None, 0.0, 2.0]),
    st.sampled_from([None, 0.0, 2.0]),
)
FILTERS = st.one_of(
    st.just(JobFilter()),
    st.builds(
        JobFilter,
        st.sampled_from([frozenset[JobState](), *(frozenset({state}) for state in JobState), WAITING, FINISHED]),
        st.sampled_from([None, None, "x"]),
        st.sampled_from([None, None, "w1"]),
        st.sampled_from([None, None, "broke", "F"]),
        st.sampled_from([None, None, EPOCH_SECONDS + 1]),
    ),
)
HELD = st.builds(
    Held,
    st.sampled_from([Conclude, Fail, Extend, Release]),
    st.lists(st.sampled_from([0, 0, 1, 2, 4]), min_size=1, max_size=3),
    st.sampled_from([True, True, False]),
    CONSUMERS,
    SECONDS,
    TEXTS,
    ERRORS,
)
ENQUEUES = st.one_of(
    st.builds(Enqueue, QUEUES, st.lists(NEW_JOBS, max_size=4), KEYS),
    st.builds(Enqueue, QUEUES, st.lists(NEW_JOBS, min_size=2, max_size=6)),
    st.builds(Enqueue, QUEUES, st.lists(st.builds(NewJob, st.just("x")), min_size=1, max_size=3)),
)
DEQUEUES = st.one_of(
    st.builds(Dequeue, QUEUES, st.integers(1, 3), CONSUMERS, st.sampled_from([None, 0.5, 1.0, 2.5])),
    st.builds(
        Dequeue,
        NAMED,
        st.integers(1, 3),
        CONSUMERS,
        st.sampled_from([None, None, 0.5]),
        st.sampled_from([0.0, 0.25, 1.0, 5.0, 20.0]),
        st.sampled_from(DequeueOrder),
        KEYS,
        st.sampled_from([None, None, "h"]),
        st.sampled_from([None, 1, 2]),
    ),
)
BY_ID = st.one_of(*(st.builds(verb, QUEUES, SOME_IDS) for verb in (Cancel, Redrive, RunNow, TakeBack, Forget)))
BY_FILTER = st.builds(
    Bulk,
    QUEUES,
    st.sampled_from(BulkVerb),
    FILTERS,
    st.booleans(),
    st.sampled_from([0, 0, 0, 2]),
    st.sampled_from([None, None, 3]),
    st.sampled_from([None, None, 2.0]),
)
OF_QUEUES = st.one_of(
    st.builds(SetPolicy, QUEUES, POLICIES),
    st.builds(SetPolicy, QUEUES, POLICIES),
    st.builds(Pause, QUEUES, st.booleans()),
    st.builds(DeleteQueue, QUEUES),
)
READS = st.one_of(
    st.builds(ReadJob, QUEUES, IDS, st.sampled_from([0.0, 0.5, 5.0])),
    st.builds(ReadPosition, QUEUES, IDS),
    st.builds(Explain, QUEUES, IDS),
    st.builds(ReadTrends, st.just(["a", "b"])),
    st.builds(Survey, st.sampled_from([None, ["a"], ["b", "a", "unheard of"]])),
    st.builds(ReadQueue, QUEUES),
    st.builds(ListQueues, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]), st.integers(1, 3)),
    st.builds(Measure, st.sampled_from([None, ["a"], ["b", "a", "unheard of"]])),
    st.builds(Search, QUEUES, FILTERS, st.booleans(), st.integers(1, 3), st.sampled_from([None, None, 2])),
)
OPERATIONS: SearchStrategy[Operation] = st.one_of(
    ENQUEUES,
    ENQUEUES,
    ENQUEUES,
    DEQUEUES,
    DEQUEUES,
    DEQUEUES,
    HELD,
    HELD,
    HELD,
    BY_ID,
    BY_ID,
    BY_FILTER,
    OF_QUEUES,
    READS,
    st.just(Sweep()),
    st.builds(Leave, st.integers(0, 2)),
    st.builds(Pass, st.sampled_from([0.001, 0.1, 0.5, 1.0, 1.0, 3.0, 7.0])),
    st.builds(MoveWallClock, st.sampled_from([-3600.0, -1.0, 1.0, 3600.0])),
)
LISTS = st.builds(
    lambda before, drained: [*before, *drained],
    st.lists(OPERATIONS, min_size=15, max_size=36),
    st.one_of(st.just([]), st.builds(lambda after: [Drain(), *after], st.lists(OPERATIONS, max_size=3))),
)


class Subject:
    """An engine under comparison, with the record of what it did."""

    def __init__(self, engine: Engine, nursery: trio.Nursery) -> None:
        self.record: list[object] = []
        self._engine = engine
        self._nursery = nursery
        self._leases: list[Lease] = []
        self._waiters: list[Call[Any]] = []

    async def do(self, operation: Operation) -> None:
        match operation:
            case Drain():
                self._engine.drain()
            case Leave(waiter):
                if waiter < len(self._waiters):
                    self._waiters[waiter].scope.cancel()
            case Pass() | MoveWallClock():
                pass
            case Held(verb):
                self._leave_note(await self._call(verb(self._claims(operation))))
            case Sweep():
                await self._sweep()
            case _:
                self._leave_note(await self._call(operation))

    def settle(self) -> None:
        """Note who of those who waited has an answer, and how busy the engine is."""
        for call in [call for call in self._waiters if call.ended_at is not None]:
            self._waiters.remove(call)
            self._leave_note(call)
        self.record += [self._engine.statistics(), [self._engine.waiting(queue) for queue in "abc"]]

    def remember(self) -> None:
        """Note all that the engine remembers."""
        self.record.append(whole_state(self._engine))

    def leave(self) -> None:
        for call in self._waiters:
            call.scope.cancel()

    async def _sweep(self) -> None:
        """Sweep until there is nothing more to do, as the sweeper does: slices are each engine's own affair."""
        stale = due = expired = 0
        while True:
            swept = (await self._call(Sweep())).reply
            stale, due, expired = stale + swept.stale, due + swept.due, expired + swept.expired
            if not swept.more:
                break
        self.record.append((stale, due, expired, swept.next_due_seconds))

    async def _call(self, command: Command[Any]) -> Call[Any]:
        return await Call.start(self._nursery, self._engine, command)

    def _leave_note(self, call: Call[Any]) -> None:
        if call.ended_at is None:
            self._waiters.append(call)
            self.record.append("waits")
            return
        if isinstance(call._answer, Dequeued):
            self._leases = [*reversed(call._answer.leases), *self._leases]
        self.record.append((call.ended_at, plain(call._answer)))

    def _claims(self, held: Held) -> list[Any]:
        """Claims to the leases that were given before; to a job that may not exist where there were none."""
        claims: list[Any] = []
        for back in held.leases:
            known = self._leases[back] if back < len(self._leases) else None
            queue, id_ = (known.job.queue, known.job.id) if known else ("a", back)
            token = (known.token if known else "nonsense") if held.shows_token else None
            seconds = held.seconds
            if held.verb is Conclude:
                claims.append(ConcludeClaim(queue, id_, token, held.consumer, held.text))
            elif held.verb is Fail:
                retry_after_seconds = None if held.text is None else seconds
                claims.append(FailClaim(queue, id_, token, held.consumer, held.error, seconds < 2, retry_after_seconds))
            elif held.verb is Extend:
                claims.append(ExtendClaim(queue, id_, token, held.consumer, seconds or None, held.text))
            else:
                claims.append(ReleaseClaim(queue, id_, token, held.consumer, seconds))
        return claims


def plain(answer: Any) -> object:
    """An answer such that it can be compared whole: refusals are equal when they say the same."""
    match answer:
        case QueueError():
            return (answer.code, answer.detail, answer.field)
        case Results(jobs) | Enqueued(jobs):
            return [plain(job) for job in jobs]
        case Measured() | Surveyed():
            # Finished jobs need not be in memory, and a turn counts batches, not commands.
            return msgspec.structs.replace(
                answer, **{name: 0 for name in ("memory_bytes", "turn") if hasattr(answer, name)}
            )
        case JobsFound(jobs, next_after):
            return list(jobs), next_after
        case Dequeued(leases, repeated):
            return list(leases), repeated
        case _:
            return answer


def in_order(record: list[object]) -> list[object]:
    """The record with the place of each revision, among all that were shown, for its number."""
    shown: set[int] = set()

    def note(revision: int) -> int:
        shown.add(revision)
        return revision

    with_revisions(record, note)
    places = {revision: place for place, revision in enumerate(sorted(shown))}
    return [with_revisions(part, places.__getitem__) for part in record]


def with_revisions(part: Any, number: Callable[[int], int]) -> Any:
    """A part of a record with other revisions."""
    match part:
        case Job():
            return msgspec.structs.replace(part, revision=number(part.revision))
        case Lease(job):
            return msgspec.structs.replace(part, job=with_revisions(job, number))
        case list() | tuple():
            return [with_revisions(each, number) for each in part]
        case _:
            return part


async def records(operations: Sequence[Operation], names: Sequence[str], limits: Settings) -> list[list[object]]:
    """What each engine did; all of them at the same time, by the same clock."""
    clock = FakeClock()
    subjects: list[Subject] = []
    async with trio.open_nursery() as callers, trio.open_nursery() as blocks:

        async def run(name: str, *, task_status: trio.TaskStatus[Engine]) -> None:
            chosen = msgspec.structs.replace(limits, **({"data": name} if name == DURABLE else {"engine": name}))
            async with open_engine(chosen, clock=clock, secret=SECRET) as engine:
                if isinstance(engine, DurableEngine):
                    engine._look_seconds = 0.0  # it forgets with every sweep, as the others do
                task_status.started(engine)
                await ended.wait()

        ended = trio.Event()
        subjects += [Subject(await blocks.start(run, name), callers) for name in names]
        for operation in operations:
            if isinstance(operation, MoveWallClock):
                # When exactly an engine learns of it is its own affair: all have learned before they are compared.
                clock.wall_ahead_seconds += operation.seconds
                await trio.sleep(TIGHT.sweep_seconds + PAUSE_SECONDS_MIN)
            if isinstance(operation, Pass):
                await trio.sleep(operation.seconds)
            await wait_all_tasks_blocked()  # what comes now does not race with the sweepers
            for subject in subjects:
                await subject.do(operation)
            await wait_all_tasks_blocked()
            for subject in subjects:
                subject.settle()
        for subject in subjects:
            subject.leave()
        await wait_all_tasks_blocked()
        for subject in subjects:
            subject.settle()
            assert subject.record[-2:] == [EngineStatistics(inbox_requests=0, waiters=0), [0, 0, 0]]
            if DURABLE not in names:  # a store changes where finished jobs are, and so the state, but no reply
                subject.remember()
        ended.set()
    return [subject.record for subject in subjects]


@settings(max_examples=300, deadline=None)
@given(LISTS)
@example(
    [
        Dequeue("a", wait_seconds=5.0),
        Dequeue("a", wait_seconds=5.0),
        Enqueue("a", [NewJob("x", delay_seconds=1.0), NewJob("y")]),
        Pass(1.0),
        Held(Release, [0, 1], shows_token=True, consumer=None, seconds=0.0),
        Dequeue("a", 3, lease_seconds=0.5),
        Leave(0),
        Pass(1.0),
        ReadQueue("a"),
        Drain(),
        Dequeue("a"),
    ]
)
def test_engines_give_equal_replies_to_equal_lists_of_commands(operations: list[Operation]) -> None:
    first, *others = in_virtual_time(lambda: records(operations, IN_MEMORY, TIGHT))
    for other in others:
        assert other == first


@settings(max_examples=300, deadline=None)
@given(LISTS)
def test_an_engine_with_a_store_gives_the_same_replies_as_one_without(operations: list[Operation]) -> None:
    assert_a_store_changes_nothing(operations)


def assert_a_store_changes_nothing(operations: Sequence[Operation], limits: Settings = ALL_KEPT) -> None:
    # What is stored is kept by the wall clock, the only one that goes on from one life to the next.
    steady = [operation for operation in operations if not isinstance(operation, MoveWallClock)]
    without, with_store = in_virtual_time(lambda: records(steady, [IN_MEMORY[0], DURABLE], limits))
    assert in_order(with_store) == in_order(without)


def test_who_waits_below_a_lowered_limit_is_served_alike_while_the_dead_are_one_too_many() -> None:
    """Four leases end at once, in two slices, and the second makes room for who waits and for one dead job less."""
    assert_a_store_changes_nothing(
        [
            Enqueue("a", [NewJob("x")] * 5),
            Dequeue("a", 4),
            SetPolicy("a", QueuePolicy(max_stale=1, in_progress_max=1)),
            Dequeue("a", wait_seconds=5.0),
            Pass(3.0),
        ],
        FEW_KEPT,
    )


def test_finished_jobs_that_only_a_store_has_are_forgotten_at_the_same_moment() -> None:
    assert_a_store_changes_nothing(
        [
            SetPolicy("a", QueuePolicy(retention_seconds=2.0)),
            Enqueue("a", [NewJob("x")] * 3),
            Dequeue("a", 3),
            Pass(0.3),
            Held(Conclude, [0, 1, 2], shows_token=True, consumer=None, seconds=0.0),
            Pass(2.5),
            Sweep(),
            *(ReadJob("a", id_) for id_ in (1, 2, 3)),
        ]
    )
