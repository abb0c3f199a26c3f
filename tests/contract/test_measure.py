"""What every engine counts, and tells a monitor."""

import pytest
import trio

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    JobFilter,
    Measure,
    NewJob,
    Pause,
    ReadJob,
    ReadQueue,
)
from queue_actor.engine import Engine
from queue_actor.errors import Busy
from queue_actor.figures import HistogramFigures, QueueFigures
from queue_actor.jobs import DeathReason, JobState
from queue_actor.queries import MEASURED_QUEUES_MAX
from queue_actor.settings import Settings
from tests.fakes import Call, FakeClock, FakeStore
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


async def measure(engine: Engine, queue: str = "q") -> QueueFigures:
    (figures,) = (await engine.execute(Measure([queue]))).queues
    return figures


def counted(figures: HistogramFigures) -> dict[float, int]:
    """How many values lie below each bound where there are any."""
    return {bound: count for bound, count in zip([*figures.bounds, float("inf")], figures.counts, strict=True) if count}


async def test_every_verb_is_counted_once_for_each_job(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a")] * 3))
    leases = (await engine.execute(Dequeue("q", 2))).leases
    await engine.execute(Extend([ExtendClaim("q", 1, leases[0].token)]))
    await engine.execute(Conclude([Claim("q", 1, leases[0].token)]))
    await engine.execute(Conclude([Claim("q", 1, leases[0].token)]))  # again, which changes nothing
    await engine.execute(Fail([FailClaim("q", 2, leases[1].token, retry=False)]))
    await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter(frozenset({JobState.QUEUED}))))

    figures = await measure(engine)
    assert {verb: count for verb, count in figures.totals.items() if count} == {
        "enqueue": 3,
        "dequeue": 2,
        "extend": 1,
        "conclude": 1,
        "fail": 1,
        "forget": 1,
    }
    assert {reason: count for reason, count in figures.deaths.items() if count} == {DeathReason.KILLED: 1}
    assert figures.counts[JobState.CONCLUDED] == figures.counts[JobState.DEAD] == 1
    assert figures.moved_per_minute == 5


async def test_waits_count_from_when_a_job_was_ready_last(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a", delay_seconds=100)]))
    await trio.sleep(101)
    await engine.execute(Dequeue("q", lease_seconds=200))
    await trio.sleep(202)
    (again,) = (await engine.execute(Dequeue("q"))).leases
    await trio.sleep(20)
    await engine.execute(Conclude([Claim("q", 1, again.token)]))

    figures = await measure(engine)
    assert counted(figures.waits) == {1.0: 1, 2.5: 1}
    assert counted(figures.runs) == {30.0: 1, 300.0: 1}
    assert figures.runs.sum == pytest.approx(220, abs=2)


async def test_a_wall_clock_that_is_set_back_makes_no_time_negative(engine: Engine, clock: FakeClock) -> None:
    await engine.execute(Enqueue("q", [NewJob("a"), NewJob("b")]))
    clock.wall_ahead_seconds -= 50
    (lease,) = (await engine.execute(Dequeue("q"))).leases
    clock.wall_ahead_seconds -= 50
    await engine.execute(Conclude([Claim("q", 1, lease.token)]))

    figures = await measure(engine)
    assert (figures.waits.sum, figures.runs.sum, figures.oldest_age_seconds) == (0, 0, 0)


async def test_jobs_wait_without_a_consumer_until_somebody_asks(engine: Engine) -> None:
    await trio.sleep(50)
    await engine.execute(Enqueue("q", [NewJob("a"), NewJob("b")]))
    await trio.sleep(50)

    figures = await measure(engine)
    assert (figures.oldest_age_seconds, figures.without_consumer_seconds) == (50, 50)
    await engine.execute(Dequeue("q"))
    await trio.sleep(20)
    figures = await measure(engine)
    assert (figures.oldest_age_seconds, figures.without_consumer_seconds, figures.asked_seconds) == (70, 20, 20)
    await engine.execute(Dequeue("*"))
    assert (await measure(engine)).without_consumer_seconds == 0
    await trio.sleep(20)
    assert (await measure(engine)).without_consumer_seconds == 0  # all are handed out


async def test_a_paused_queue_says_so(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a")]))
    assert not (await measure(engine)).paused
    await engine.execute(Pause("q", paused=True))
    assert (await measure(engine)).paused


async def test_arrays_tell_their_slots_and_what_was_done_to_them(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a", priority=5)] * 100))
    assert (await measure(engine)).growths > 0
    for _ in range(10):
        await engine.execute(Dequeue("q", 10))

    figures = await measure(engine)
    assert (figures.slots, figures.growths > 0, figures.compactions > 0) == (0, True, True)  # that array is gone


async def test_many_queues_are_measured_in_slices() -> None:
    async with open_engine(Settings(), clock=FakeClock()) as engine:
        for n in range(MEASURED_QUEUES_MAX + 2):
            await engine.execute(Enqueue(f"q{n}", [NewJob("a", b"12345")]))

        first = await engine.execute(Measure())
        second = await engine.execute(Measure([*first.left, "unheard-of"]))

    names = [figures.name for figures in (*first.queues, *second.queues)]
    assert names == [f"q{n}" for n in range(MEASURED_QUEUES_MAX + 2)]
    assert (len(second.queues), list(second.left)) == (2, [])
    assert first.memory_bytes == 5 * len(names)


async def test_an_engine_tells_of_its_batches_and_those_who_wait(engine: Engine, store: FakeStore) -> None:
    store.seconds = 0.2
    await engine.execute(Enqueue("q", [NewJob("a")] * 3))
    await engine.execute(ReadQueue("q"))
    async with trio.open_nursery() as nursery:
        await Call.start(nursery, engine, Dequeue("empty", wait_seconds=3))
        await Call.start(nursery, engine, ReadJob("q", 1, wait_seconds=30))
        await Call.start(nursery, engine, Dequeue("late", wait_seconds=30))
        await engine.execute(Enqueue("late", [NewJob("a")]))
        await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter()))
    await trio.sleep(5)

    figures = engine.figures()
    assert (figures.parked, figures.served, figures.timed_out) == (3, 2, 1)
    assert figures.sweeps >= 5
    assert figures.swept == {"stale": 0, "due": 0, "expired": 0, "forgotten": 0, "dead_lost": 0}
    assert counted(figures.commit_seconds)[0.25] == 3
    assert counted(figures.batch_changes)[5] == 2
    assert sum(figures.batch_requests.counts) == sum(figures.apply_seconds.counts) > 5


async def test_what_sweeps_move_is_counted(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a", ttl_seconds=5), NewJob("b", delay_seconds=5)]))
    await trio.sleep(7)

    figures = engine.figures()
    assert (figures.swept["expired"], figures.swept["due"]) == (1, 1)
    assert (await measure(engine)).deaths[DeathReason.EXPIRED] == 1


@pytest.mark.parametrize("kind", ["actor", "lock"])
async def test_a_full_inbox_can_be_measured_and_not_by_any_number(kind: str) -> None:
    store, settings = FakeStore(), Settings(engine=kind, inbox_requests_max=2)  # type: ignore[arg-type] # one of two
    async with open_engine(settings, clock=FakeClock(), store=store) as engine, trio.open_nursery() as nursery:
        store.hold()
        for _ in range(3):
            await Call.start(nursery, engine, Enqueue("q", [NewJob("a")]))
        assert engine.statistics().inbox_requests == 2
        with pytest.raises(Busy):
            await engine.execute(ReadQueue("q"))
        measures = [await Call.start(nursery, engine, Measure()) for _ in range(3)]
        store.let_go()
        await trio.testing.wait_all_tasks_blocked()

        assert [len(call.reply.queues) for call in measures[:2]] == [1, 1]
        assert isinstance(measures[2].refusal, Busy)
