"""What the durable engine adds: another life goes on, and what memory has forgotten is still there."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Connection  # noqa: TC003 - as in the other files
from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor import service
from queue_actor.archive import Archive
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Conclude,
    DeleteQueue,
    Enqueue,
    Forget,
    JobFilter,
    NewJob,
    Prune,
    ReadJob,
    Recalled,
    Redrive,
    Search,
    Sweep,
)
from queue_actor.durable import Data
from queue_actor.engine import Engine
from queue_actor.errors import (
    AlreadyFinished,
    DiskFull,
    ForgottenJob,
    LeaseLost,
    NotFinished,
    QueueNotEmpty,
    Starting,
    UnknownJob,
)
from queue_actor.jobs import JobOptions, JobState, UniqueUntil
from queue_actor.settings import Settings
from tests.contract.state import machine_of
from tests.contract.verbs import conclude, counts, dequeue, enqueue, fail, lease, pass_time, read, refusal, shown, types
from tests.fakes import FakeClock
from tests.opening import in_memory, inline, open_engine, open_store

SETTINGS = Settings(data="in memory", recent_jobs=2, sweep_seconds=60)

pytestmark = pytest.mark.virtual_time


class Lives:
    """One directory, and one engine after another on it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.connect: Callable[[Path], Connection] = in_memory()
        self._open = self.connect(Path("none"))  # a database in memory is there as long as somebody is connected

    @asynccontextmanager
    async def life(self, **settings: Any) -> AsyncIterator[Engine]:
        async with open_engine(replace(SETTINGS, **settings), clock=self.clock, connect=self.connect) as engine:
            yield engine


@pytest.fixture
def lives() -> Lives:
    return Lives()


async def test_another_life_goes_on_with_the_same_order_and_longer_leases(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, *"abcdef")
        await enqueue(engine, "first", priority=9)
        await enqueue(engine, "later", delay_seconds=30)
        held = await dequeue(engine, 3, lease_seconds=10, consumer="w")
        await fail(engine, held[1], retry_after_seconds=0)  # "a", which goes to the back
        await pass_time(9)
    async with lives.life() as engine:
        assert await counts(engine) == {"queued": 5, "in_progress": 2, "scheduled": 1}
        await pass_time(9)
        assert (await conclude(engine, held[0])).type == "first"
        assert types(await dequeue(engine, 9)) == ["c", "d", "e", "f", "a"]
        await pass_time(20)
        assert types(await dequeue(engine, 9)) == ["b", "later"]
        await refusal(engine, Conclude([shown(held[2])]), LeaseLost)


async def test_fences_and_ids_grow_from_one_life_to_the_next(lives: Lives) -> None:
    async with lives.life() as engine:
        first = await lease(engine)
        await conclude(engine, first)
        await engine.execute(Forget("q", [1]))
        await engine.execute(DeleteQueue("q"))
    lives.clock.wall_ahead_seconds -= 1_000_000  # the clock has been set back
    async with lives.life() as engine:
        second = await lease(engine)
        assert second.job.id == 2
        assert second.job.fence > first.job.fence


@pytest.mark.parametrize(("until", "held_after"), [(UniqueUntil.FINISHED, True), (UniqueUntil.STARTED, False)])
async def test_a_unique_key_is_held_in_the_next_life_if_it_was_held(
    lives: Lives, until: UniqueUntil, held_after: bool
) -> None:
    new = NewJob("a", options=JobOptions(unique_key="k", unique_until=until))
    async with lives.life() as engine:
        await engine.execute(Enqueue("q", [new]))
        await fail(engine, (await dequeue(engine))[0], retry_after_seconds=0)
    async with lives.life() as engine:
        (answer,) = (await engine.execute(Enqueue("q", [new]))).jobs
        assert getattr(answer, "existing", None) is held_after


async def ended(engine: Engine, number: int) -> list[Any]:
    """So many concluded jobs, of which memory keeps the last two."""
    await enqueue(engine, *["a"] * number, payload=b'{"n":1}')
    leases = await dequeue(engine, number)
    for leased in leases:
        await conclude(engine, leased)
    await engine.execute(Sweep())
    return leases


async def test_a_job_that_memory_has_left_to_the_store_is_as_if_it_had_not(lives: Lives) -> None:
    async with lives.life() as engine:
        leases = await ended(engine, 5)
        assert sorted(machine_of(engine)._queues["q"].jobs) == [4, 5]
        assert await counts(engine) == {"concluded": 5}
        assert (await read(engine, 1)).payload == b'{"n":1}'
        assert (await conclude(engine, leases[0])).state is JobState.CONCLUDED
        (lost,) = (await engine.execute(Conclude([replace(shown(leases[1]), token="0" * 46)]))).jobs
        assert isinstance(lost, LeaseLost)
        (refused,) = (await engine.execute(Cancel("q", [3]))).jobs
        assert isinstance(refused, AlreadyFinished)
        assert [job.id for job in (await engine.execute(Search("q", JobFilter()))).jobs] == [1, 2, 3, 4, 5]
        await refusal(engine, DeleteQueue("q"), QueueNotEmpty)
        assert [job.id for job in (await engine.execute(Forget("q", [1, 4]))).jobs if not isinstance(job, Exception)]
        await refusal(engine, ReadJob("q", 1), ForgottenJob)
        assert await counts(engine) == {"concluded": 3}


async def test_dead_jobs_of_a_former_life_are_redriven_one_by_one_and_all_together(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, *"abcd")
        for leased in await dequeue(engine, 4):
            await fail(engine, leased, retry=False)
    async with lives.life() as engine:
        assert machine_of(engine)._queues["q"].jobs == {}
        assert (await engine.execute(Redrive("q", [2]))).single().state is JobState.QUEUED
        (refused,) = (await engine.execute(Forget("q", [2]))).jobs
        assert isinstance(refused, NotFinished)
        done = await engine.execute(Bulk("q", BulkVerb.REDRIVE, JobFilter()))
        assert (done.count, done.refused, done.next_after) == (3, 0, None)
        assert types(await dequeue(engine, 9)) == ["b", "a", "c", "d"]


async def test_jobs_that_only_the_store_has_are_forgotten_in_time_and_by_number(lives: Lives) -> None:
    async with lives.life(retention_seconds=100, retention_jobs=4) as engine:
        await ended(engine, 6)
        assert await counts(engine) == {"concluded": 4}
        await refusal(engine, ReadJob("q", 2), ForgottenJob)
        assert (await read(engine, 3)).state is JobState.CONCLUDED
        await pass_time(161)
        assert await counts(engine) == {}
        await refusal(engine, ReadJob("q", 3), ForgottenJob)
        assert (await engine.execute(Search("q", JobFilter()))).jobs == ()


async def test_a_row_that_may_have_changed_since_it_was_read_is_not_used(lives: Lives) -> None:
    async with lives.life() as engine:
        await ended(engine, 3)
        row = await read(engine, 1)
        departures = machine_of(engine)._queues["q"].departures
        await engine.execute(Forget("q", [1]))
        within: Engine = engine._engine  # type: ignore[attr-defined] # it is a durable one
        await refusal(within, Recalled(Redrive("q", [1]), [row], {"q": departures}), ForgottenJob)
        assert (await within.execute(Prune([], {"q": departures}))).count == 0


async def test_a_full_disk_refuses_jobs_and_lets_those_that_are_there_end(lives: Lives) -> None:
    async with lives.life() as engine:
        leased = await lease(engine)
        store: Any = engine._store  # type: ignore[attr-defined] # it is a durable one
        store._free = lambda: 999.0
        await conclude(engine, leased)
        await refusal(engine, Enqueue("q", [NewJob("a")]), DiskFull)
        store._free = lambda: 5_000.0
        await engine.execute(Sweep())
        await enqueue(engine, "b", "c")
        await refusal(engine, Enqueue("q", [NewJob("a", payload=b'"%s"' % (b"x" * 2_000))]), DiskFull)


async def test_an_engine_that_still_reads_its_jobs_refuses_what_is_asked(lives: Lives) -> None:
    store = open_store(lives.connect)
    data = Data(store, Archive(Path("none"), lives.connect, inline))
    async with service.open_engine(SETTINGS, clock=lives.clock, data=data) as engine:
        assert not engine.ready.is_set()
        await refusal(engine, ReadJob("q", 1), Starting)
        assert (engine.waiting("q"), engine.statistics().waiters) == (0, 0)
        await engine.ready.wait()
        await refusal(engine, ReadJob("q", 1), UnknownJob)
    data.archive.close()
    store.close()
