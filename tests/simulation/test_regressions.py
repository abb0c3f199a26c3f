"""What the model found, and what reading found beside it: each of these failed once."""

from typing import Any, Literal

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from queue_actor import service
from queue_actor.commands import (
    Cancel,
    Command,
    Conclude,
    ConcludeClaim,
    Dequeue,
    DequeueOrder,
    Enqueue,
    Extend,
    ExtendClaim,
    IdempotencyKey,
    NewJob,
    ReadJob,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    RunNow,
    SetPolicy,
    Sweep,
)
from queue_actor.engine import Request
from queue_actor.errors import MemoryFull
from queue_actor.jobs import DEFAULT_QUEUE_POLICY, JobOptions, JobState, Now, OnExisting, QueuePolicy
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES
from queue_actor.waiters import Waiters
from tests.fakes import SECRET, Call, FakeClock, FakeStore

EngineName = Literal["actor", "lock"]


class World:
    """A state machine, and the time it is told."""

    def __init__(self, **settings: Any) -> None:
        self.machine = StateMachine(Settings(**settings), secret=bytes(SECRET_BYTES))
        self.now = Now(monotonic=100.0, wall=1_000.0)

    def do(self, command: Command[Any]) -> Any:
        return self.machine.apply(command, self.now)

    def wait(self, seconds: float) -> None:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)


def unique(key: str, payload: bytes | None = None, on_existing: OnExisting = OnExisting.KEEP) -> NewJob:
    return NewJob("t", payload, options=JobOptions(unique_key=key), on_existing=on_existing)


def test_the_default_queue_reads_as_unlimited_before_there_is_a_job_in_it() -> None:
    assert World().do(ReadQueue("default")).policy == DEFAULT_QUEUE_POLICY


def test_the_oldest_age_counts_from_when_a_job_was_last_queued_at_the_back() -> None:
    """A job of last month that is redriven now, or called off its date, is no month-old backlog."""
    for begin, verb in ((NewJob("t"), Redrive), (NewJob("t", delay_seconds=10_000), RunNow)):
        world = World()
        world.do(Enqueue("q", [begin]))
        if verb is Redrive:
            world.do(Cancel("q", [1]))
        world.wait(3_000)
        world.do(verb("q", [1]))
        world.wait(5)

        assert world.do(ReadQueue("q")).oldest_age_seconds == 5


def test_a_replaced_payload_counts_against_the_memory_limit() -> None:
    world = World(memory_bytes_max=10)
    world.do(Enqueue("q", [unique("k", b"1")]))
    larger = unique("k", b"x" * 10, OnExisting.REPLACE)
    world.do(Enqueue("q", [larger]))

    with pytest.raises(MemoryFull):
        world.do(Enqueue("q", [unique("k", b"x" * 11, OnExisting.REPLACE)]))
    with pytest.raises(MemoryFull):
        world.do(Enqueue("q", [larger, NewJob("t", b"1")]))


def test_a_full_queue_answers_with_the_job_that_is_there() -> None:
    """What adds no job is not refused for their number: a job that came back may have filled the queue beyond it."""
    world = World()
    world.do(SetPolicy("q", QueuePolicy(queued_jobs_max=1)))
    world.do(Enqueue("q", [unique("k")]))
    (lease,) = world.do(Dequeue("q")).leases
    world.do(Enqueue("q", [NewJob("t")]))
    world.do(Release([ReleaseClaim("q", 1, lease.token)]))

    (answer,) = world.do(Enqueue("q", [unique("k")])).jobs

    assert answer.existing


def test_full_memory_does_not_refuse_what_adds_no_bytes() -> None:
    world = World(memory_bytes_max=10)
    world.do(Enqueue("q", [NewJob("t")]))
    (lease,) = world.do(Dequeue("q")).leases
    world.do(Conclude([ConcludeClaim("q", 1, lease.token, None, b"x" * 11)]))

    assert world.do(Enqueue("q", [NewJob("t")])).jobs


def test_a_unique_key_twice_in_a_batch_needs_the_room_of_one_job() -> None:
    world = World(queued_jobs_max=1, memory_bytes_max=10)

    first, second = world.do(Enqueue("q", [unique("k", b"x" * 10), unique("k", b"x" * 10)])).jobs

    assert (first.existing, second.existing) == (False, True)


def test_a_queue_named_twice_takes_one_turn_in_the_fair_order() -> None:
    world = World()
    world.do(Enqueue("a", [NewJob("t"), NewJob("t")]))
    world.do(Enqueue("b", [NewJob("t")]))

    leases = world.do(Dequeue(("a", "a", "b"), count=2, order=DequeueOrder.FAIR)).leases

    assert [lease.job.queue for lease in leases] == ["a", "b"]


def test_only_jobs_that_were_made_count_as_enqueued() -> None:
    world = World()
    for on_existing in (*OnExisting, OnExisting.REFUSE):
        world.do(Enqueue("q", [unique("k", on_existing=on_existing)]))

    assert world.do(ReadQueue("q")).per_minute["enqueue"] == 1


def test_a_sweep_with_no_full_slice_does_not_ask_for_another() -> None:
    """Two kinds of jobs to forget, fewer than a slice of each."""
    world = World(sweep_slice=2, retention_seconds=1.0, dead_retention_seconds=1.0)
    world.do(Enqueue("q", [NewJob("t", ttl_seconds=1.0), NewJob("t")]))
    world.wait(2)
    world.do(Cancel("q", [2]))
    assert world.do(Sweep()).expired == 1
    world.wait(2)

    swept = world.do(Sweep())

    assert (swept.forgotten, swept.more) == (2, False)


def test_a_fence_is_more_than_0_also_where_the_wall_clock_was_never_set() -> None:
    """0 is the fence of a job that was never leased."""
    world = World()
    world.now = Now(monotonic=1.0, wall=0.0)
    world.do(Enqueue("q", [NewJob("t")]))

    (lease,) = world.do(Dequeue("q")).leases

    assert lease.job.fence > 0


def test_an_extend_that_is_refused_names_the_limit_of_this_attempt() -> None:
    """Not that of a policy which came after it."""
    world = World()
    world.do(SetPolicy("q", QueuePolicy(run_seconds_max=10.0)))
    world.do(Enqueue("q", [NewJob("t")]))
    (lease,) = world.do(Dequeue("q")).leases
    world.do(SetPolicy("q", QueuePolicy()))

    (refusal,) = world.do(Extend([ExtendClaim("q", 1, lease.token, lease_seconds=20.0)])).jobs

    assert refusal.code == "run_too_long"
    assert refusal.detail == "this attempt may last 10 s more"


def test_a_repeated_dequeue_whose_leases_are_lost_does_not_stand_in_line() -> None:
    """It would be first in line, be answered empty whatever came, and nobody behind it would be served."""
    world, waiters = World(), Waiters(10)
    world.do(Enqueue("q", [NewJob("t")]))
    keyed = Dequeue("q", wait_seconds=20.0, key=IdempotencyKey("s", "k", b"body"))
    (lease,) = world.do(keyed).leases
    world.do(Conclude([ConcludeClaim("q", 1, lease.token)]))
    repeated, behind = Request(keyed), Request(Dequeue("q", wait_seconds=20.0))

    answer = waiters.carry_out(world.machine, repeated, world.now, may_park=True)
    waiters.carry_out(world.machine, behind, world.now, may_park=True)
    world.do(Enqueue("q", [NewJob("t")]))
    served = list(waiters.serve(world.machine, ["q"], world.now))

    assert answer is not None
    assert not answer.leases
    assert [request for request, _ in served] == [behind]


def test_a_job_replaced_again_and_again_leaves_no_trail() -> None:
    """Each time it is put off it leaves a slot of the ready array, and nobody dequeues."""
    world = World()
    later = replace(unique("k", on_existing=OnExisting.REPLACE), delay_seconds=1.0)
    for _ in range(500):
        world.do(Enqueue("q", [later]))
        world.wait(1)
        world.do(Sweep())

    (array,) = world.machine._ledger.queues["q"].ready.statistics().values()
    assert array.live == 1
    assert array.used < 50


@pytest.mark.virtual_time
@pytest.mark.parametrize("engine", ["actor", "lock"])
async def test_a_reader_whose_wait_runs_out_during_a_commit_is_told_nothing_unstored(engine: EngineName) -> None:
    """Had the power gone then, he would have been told of an attempt that there never was."""
    store, clock = FakeStore(), FakeClock()
    async with (
        service.open_engine(Settings(engine=engine), clock=clock, store=store, secret=SECRET) as opened,
        trio.open_nursery() as nursery,
    ):
        await opened.execute(Enqueue("q", [NewJob("t")]))
        reader = await Call.start(nursery, opened, ReadJob("q", 1, wait_seconds=1.0))
        store.hold()
        await Call.start(nursery, opened, Dequeue("q"))
        await trio.sleep(2)
        told = reader.reply
        store.let_go()

    assert told.state is JobState.QUEUED


@pytest.mark.virtual_time
@pytest.mark.parametrize("engine", ["actor", "lock"])
async def test_a_reader_sent_home_during_a_commit_is_told_when_it_is_stored(engine: EngineName) -> None:
    store, clock = FakeStore(), FakeClock()
    async with (
        trio.open_nursery() as nursery,
        service.open_engine(Settings(engine=engine), clock=clock, store=store, secret=SECRET) as opened,
    ):
        await opened.execute(Enqueue("q", [NewJob("t")]))
        reader = await Call.start(nursery, opened, ReadJob("q", 1, wait_seconds=20.0))
        store.hold()
        await Call.start(nursery, opened, Dequeue("q"))
        opened.drain()
        await trio.testing.wait_all_tasks_blocked()
        assert reader.ended_at is None
        store.let_go()

    assert reader.reply.state is JobState.IN_PROGRESS


def test_who_has_waited_longest_goes_first_where_several_queues_have_jobs_at_once() -> None:
    """The dequeue that was first in line at one queue took the job of another, where somebody waited longer."""
    world, waiters = World(), Waiters(10)
    first, second = (Request(Dequeue(names, wait_seconds=20.0)) for names in ("b", ("b", "a")))
    for request in (first, second):
        waiters.carry_out(world.machine, request, world.now, may_park=True)
    world.do(Enqueue("b", [NewJob("t")]))

    served = list(waiters.serve(world.machine, ["a", "b"], world.now))

    assert [request for request, _ in served] == [first]
