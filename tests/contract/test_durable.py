"""What the durable engine adds: another life goes on, and what memory has forgotten is still there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from sqlite3 import Connection  # noqa: TC003 - as in the other files
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor import service
from queue_actor.archive import Archive
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Conclude,
    DeleteQueue,
    Dequeue,
    Ended,
    Enqueue,
    Extend,
    Forget,
    JobFilter,
    NewJob,
    Prune,
    ReadJob,
    ReadPosition,
    Recalled,
    Redrive,
    Search,
    Sweep,
)
from queue_actor.durable import READS_MAX, Data
from queue_actor.engine import Engine, UnreadableError, execute_in_slices
from queue_actor.errors import (
    AlreadyFinished,
    DiskFull,
    Draining,
    ForgottenJob,
    LeaseLost,
    NotFinished,
    QueueNotEmpty,
    RunTooLong,
    Starting,
    UniqueKeyTaken,
    UnknownJob,
)
from queue_actor.figures import EngineFigures
from queue_actor.jobs import DeathReason, JobOptions, JobState, OnExisting, UniqueUntil
from queue_actor.settings import Settings
from queue_actor.transition_lines import TRANSITION
from tests.contract.state import machine_of
from tests.contract.verbs import (
    boom,
    conclude,
    counts,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    key,
    lease,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_extend,
    types,
)
from tests.fakes import Call, FakeClock
from tests.opening import in_memory, inline, open_backups, open_engine, open_store

SETTINGS = Settings(data="in memory", recent_jobs=2, sweep_seconds=60, idempotency_seconds=1_000)

pytestmark = pytest.mark.virtual_time


class Lives:
    """One directory, and one engine after another on it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.connect: Callable[[Path], Connection] = in_memory()
        self.open = self.connect(Path("none"))  # a database in memory is there as long as somebody is connected

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


async def test_what_ends_a_run_or_a_wait_still_does_in_the_next_life(lives: Lives) -> None:
    async with lives.life() as engine:
        await give_policy(engine, run_seconds_max=100)
        held = await lease(engine, lease_seconds=50)
        await enqueue(engine, "mortal", ttl_seconds=30)
        await pass_time(20)
    async with lives.life() as engine:
        assert (await read(engine)).lease_expires_at == lives.clock().wall + 50
        await pass_time(40)
        assert (await read(engine, 2)).reason is DeathReason.EXPIRED
        await refusal(engine, Extend([to_extend(held, 61)]), RunTooLong)
        await extend(engine, held, 59)


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


async def test_jobs_are_found_by_their_last_error_though_a_later_attempt_had_none(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, "a", "b")
        for leased in await dequeue(engine, 2):
            await fail(engine, leased, error=boom(f"no {leased.job.type}"), retry_after_seconds=0)
        for leased in await dequeue(engine, 2):
            await release(engine, leased)
        for error, found in (("no b", [2]), ("Boo", [1, 2]), ("no c", []), ("", [1, 2])):
            assert [job.id for job in (await engine.execute(Search("q", JobFilter(error=error)))).jobs] == found


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


async def test_that_a_job_is_forgotten_which_only_the_store_had_is_told_like_any_other(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    async with lives.life(retention_seconds=100, retention_jobs=4) as engine:
        log = engine.events
        reader = log.open()
        await fail(engine, await lease(engine), retry=False)
        await ended(engine, 6)
        with caplog.at_level(TRANSITION):
            await pass_time(161)
        told = log.read(reader, lambda _: True)
        forgotten = [event for event in told if event.verb == "forget"]

        assert await counts(engine) == {"dead": 1}
        assert sorted(event.id for event in forgotten) == [2, 3, 4, 5, 6, 7]
        assert {(event.type, event.before, event.after, event.attempt) for event in forgotten} == {
            ("a", JobState.CONCLUDED, None, 1)
        }
        assert [event.revision for event in told] == list(range(told[0].revision, log._revision + 1))
        lines = [
            facts["job"] for line in caplog.records if (facts := getattr(line, "facts", {})).get("verb") == "forget"
        ]
        assert sorted(lines) == [4, 5, 6, 7]


async def test_a_row_that_may_have_changed_since_it_was_read_is_not_used(lives: Lives) -> None:
    async with lives.life() as engine:
        await ended(engine, 3)
        row = await read(engine, 1)
        departures = machine_of(engine)._queues["q"].departures
        await engine.execute(Forget("q", [1]))
        within: Engine = engine._engine  # type: ignore[attr-defined] # it is a durable one
        await refusal(within, Recalled(Redrive("q", [1]), [row], {"q": departures}), ForgottenJob)
        gone = Ended("q", 2, JobState.CONCLUDED, (await read(engine, 2)).revision)
        assert (await within.execute(Prune([gone], {"q": departures}))).count == 0
        current = machine_of(engine)._queues["q"].departures
        assert (await within.execute(Prune([replace(gone, revision=1)], {"q": current}))).count == 0
        assert await counts(engine) == {"concluded": 2}


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


class Held:
    """Carries out the calls of a store when it is let go."""

    def __init__(self) -> None:
        self.free = trio.Event()

    async def __call__(self, call: Callable[[], Any]) -> Any:
        await self.free.wait()
        return call()


@asynccontextmanager
async def starting(lives: Lives) -> AsyncIterator[tuple[Engine, Held]]:
    """An engine that is about to read its jobs."""
    held = Held()
    store = open_store(lives.connect, run_in_thread=held)
    data = Data(store, Archive(Path("none"), lives.connect, inline), open_backups(lives.connect))
    async with service.open_engine(SETTINGS, clock=lives.clock, data=data) as engine:
        yield engine, held
    data.archive.close()
    store.close()


async def test_leases_end_in_time_however_long_others_wait_for_what_they_search_for(lives: Lives) -> None:
    held = Held()
    store = open_store(lives.connect)
    archive = Archive(Path("none"), lives.connect, held, inline)
    data = Data(store, archive, open_backups(lives.connect))
    settings = replace(SETTINGS, sweep_seconds=1)
    async with service.open_engine(settings, clock=lives.clock, data=data) as engine, trio.open_nursery() as nursery:
        await engine.ready.wait()
        await lease(engine, lease_seconds=5)
        await enqueue(engine, "b", delay_seconds=5)
        nursery.start_soon(engine.execute, Search("q", JobFilter()))
        await pass_time(5.1)
        assert await counts(engine) == {"queued": 2}
        held.free.set()
    archive.close()
    store.close()


async def test_an_engine_that_still_reads_its_jobs_refuses_what_is_asked(lives: Lives) -> None:
    async with starting(lives) as (engine, held):
        await wait_all_tasks_blocked()
        assert not engine.ready.is_set()
        await refusal(engine, ReadJob("q", 1), Starting)
        assert (engine.waiting("q"), engine.statistics().waiters) == (0, 0)
        assert engine.figures() == EngineFigures()
        held.free.set()
        await engine.ready.wait()
        await refusal(engine, ReadJob("q", 1), UnknownJob)


async def test_a_server_that_drains_while_it_reads_its_jobs_hands_none_out(lives: Lives) -> None:
    async with starting(lives) as (engine, held):
        engine.drain()
        held.free.set()
        await engine.ready.wait()
        await refusal(engine, Dequeue("q"), Draining)


async def test_reading_the_jobs_is_broken_off_when_the_engine_closes(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, "a")
    async with starting(lives) as (engine, held):
        engine.close()
        await refusal(engine, ReadJob("q", 1), Draining)
        held.free.set()
    assert not engine.ready.is_set()


async def test_an_engine_that_closes_when_it_has_read_its_jobs_does_not_begin(lives: Lives) -> None:
    async with starting(lives) as (engine, held):
        engine.close()
        held.free.set()
    assert not engine.ready.is_set()


async def test_what_cannot_be_read_ends_the_engine_and_is_left_as_it_is(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, "a")
    lives.open.execute("UPDATE jobs SET facts = 'nothing'")
    with pytest.RaisesGroup(pytest.RaisesExc(UnreadableError, match="DecodeError"), flatten_subgroups=True):
        async with starting(lives) as (_, held):
            held.free.set()
            await trio.sleep(5)
    assert lives.open.execute("SELECT facts FROM jobs").fetchall() == [("nothing",)]


# --- what may have changed between a read of the store and the command


@asynccontextmanager
async def racing(lives: Lives) -> AsyncIterator[tuple[Engine, list[int]]]:
    """An engine in which a job leaves memory each time that the store has just been read, so many times."""
    left = [0]
    async with lives.life() as engine:
        archive: Any = engine._archive  # type: ignore[attr-defined] # it is a durable one
        find, matching = archive.find, archive.matching

        async def raced(found: Any) -> Any:
            if left[0]:
                left[0] -= 1
                machine_of(engine)._queues["q"].departures += 1
                machine_of(engine)._ledger.touch(machine_of(engine)._queues["q"])
            return found

        async def find_raced(*arguments: Any) -> Any:
            return await raced(await find(*arguments))

        async def matching_raced(*arguments: Any) -> Any:
            return await raced(await matching(*arguments))

        archive.find, archive.matching = find_raced, matching_raced
        yield engine, left


async def test_a_row_that_is_stale_is_read_again(lives: Lives) -> None:
    async with racing(lives) as (engine, left):
        leases = await ended(engine, 4)
        left[0] = READS_MAX - 1
        assert (await conclude(engine, leases[0])).state is JobState.CONCLUDED


async def test_a_job_that_is_never_read_in_time_counts_as_forgotten(lives: Lives) -> None:
    async with racing(lives) as (engine, left):
        leases = await ended(engine, 4)
        left[0] = 1_000
        (answer,) = (await engine.execute(Conclude([shown(leases[0])]))).jobs
        assert isinstance(answer, ForgottenJob)
        assert left[0] == 1_000 - READS_MAX


async def test_a_slice_whose_rows_are_stale_is_read_again(lives: Lives) -> None:
    async with racing(lives) as (engine, left):
        await ended(engine, 4)
        left[0] = 3
        done = await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter(states=frozenset({JobState.CONCLUDED}))))
        assert (done.count, left) == (4, [0])


async def test_a_purge_of_many_jobs_that_only_the_store_has_is_cut_into_slices(lives: Lives) -> None:
    async with lives.life(sweep_slice=10_000) as engine:
        for _ in range(3):
            await ended(engine, 500)
        done = await execute_in_slices(engine, Bulk("q", BulkVerb.PURGE, JobFilter()))
        assert (done.count, await counts(engine)) == (1_500, {})


async def test_each_slice_asks_the_store_for_a_bounded_number_of_ids_however_few_jobs_match(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep waits for its turn to read, and so do all who ask for a job that only the store has."""
    monkeypatch.setattr("queue_actor.archive.SCANNED_IDS_MAX", 3)
    async with lives.life() as engine:
        archive: Any = engine._archive  # type: ignore[attr-defined] # it is a durable one
        matching, looked_at = archive.matching, []

        async def watched(queue: str, where: JobFilter, after_id: int, until_id: int, limit: int) -> Any:
            found = await matching(queue, where, after_id, until_id, limit)
            looked_at.append((after_id, found.until_id))
            return found

        archive.matching = watched
        await ended(engine, 4)
        await enqueue(engine, "b", "a", "b")
        for leased in await dequeue(engine, 3):
            await conclude(engine, leased)
        await engine.execute(Forget("q", [1, 2]))
        done = await execute_in_slices(engine, Bulk("q", BulkVerb.PURGE, JobFilter(type="b")))
        assert (done.count, await counts(engine)) == (2, {"concluded": 3})
        assert looked_at == [(0, 5), (5, 7)]
        looked_at.clear()
        assert (await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter(type="b"), after_id=4))).next_after is None
        assert looked_at == [(4, 2**53)]


async def test_what_is_about_jobs_that_have_not_ended_does_not_ask_the_store(lives: Lives) -> None:
    async with lives.life() as engine:
        await enqueue(engine, "a", "b")
        waiting = JobFilter(states=frozenset({JobState.QUEUED}))
        assert (await engine.execute(Bulk("q", BulkVerb.PURGE, waiting))).count == 2
        await lease(engine)
        assert (await engine.execute(Bulk("q", BulkVerb.RELEASE, JobFilter()))).count == 1


async def test_the_position_of_a_job_that_has_ended_is_none_wherever_it_is(lives: Lives) -> None:
    async with lives.life() as engine:
        await ended(engine, 4)
        assert (await engine.execute(ReadPosition("q", 1))).ahead is None
        await engine.execute(Forget("q", [1]))
        await refusal(engine, ReadPosition("q", 1), ForgottenJob)


# --- what is remembered under a key


async def test_answers_under_a_key_are_given_again_in_the_next_life(lives: Lives) -> None:
    unique = NewJob("u", options=JobOptions(unique_key="k"), on_existing=OnExisting.REFUSE)
    enqueued = Enqueue("q", [NewJob("a"), unique, unique], key())
    dequeued = Dequeue("q", 2, key=key("d"), lease_seconds=1_000)
    async with lives.life() as engine:
        first = await engine.execute(enqueued)
        held = (await engine.execute(dequeued)).leases
    async with lives.life() as engine:
        again = await engine.execute(enqueued)
        assert [plain(job) for job in again.jobs] == [plain(job) for job in first.jobs]
        repeated = await engine.execute(dequeued)
        assert [(lease.job.id, lease.token) for lease in repeated.leases] == [(one.job.id, one.token) for one in held]
        await pass_time(1_000)
    async with lives.life() as engine:
        anew = (await engine.execute(enqueued)).jobs
        assert [getattr(job, "id", None) for job in anew] == [3, None, None]  # the key is too old, the job is there
    assert lives.open.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def plain(job: Any) -> Any:
    return str(job) if isinstance(job, UniqueKeyTaken) else job


# --- what happens between a question, the store's answer, and the command, told one by one


def meddle(engine: Engine, method: str, deed: Callable[[], Awaitable[object]], *, before: bool = False) -> None:
    """Have something done once, just after the store is read, or just before."""
    archive: Any = engine._archive  # type: ignore[attr-defined] # it is a durable one
    ask = getattr(archive, method)

    async def meddled(*arguments: Any) -> Any:
        setattr(archive, method, ask)
        if before:
            await deed()
        found = await ask(*arguments)
        if not before:
            await deed()
        return found

    setattr(archive, method, meddled)


async def killed(engine: Engine, number: int) -> None:
    """So many dead jobs, of which memory keeps the last two."""
    await enqueue(engine, *["a"] * number)
    for leased in await dequeue(engine, number):
        await fail(engine, leased, retry=False)
    await engine.execute(Sweep())


async def ends_well(engine: Engine) -> None:
    """The first job is redriven and concluded, and leaves memory again."""
    await engine.execute(Redrive("q", [1]))
    await conclude(engine, (await dequeue(engine))[0])
    within: Engine = engine._engine  # type: ignore[attr-defined] # it is a durable one
    await ended(within, 3)  # which does not ask the store
    assert 1 not in machine_of(engine)._queues["q"].jobs


def recount(lives: Lives) -> dict[str, int]:
    """How many jobs the store has, by their state."""
    return dict(lives.open.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())


@pytest.mark.parametrize("verb", [BulkVerb.REDRIVE, BulkVerb.PURGE])
async def test_how_a_job_ended_before_is_not_taken_for_how_it_has_ended(lives: Lives, verb: BulkVerb) -> None:
    async with lives.life() as engine:
        await killed(engine, 3)
        meddle(engine, "matching", partial(ends_well, engine))
        dead = JobFilter(states=frozenset({JobState.DEAD}))
        assert (await engine.execute(Bulk("q", verb, dead))).count == 2
        assert (await read(engine, 1)).state is JobState.CONCLUDED
        assert await counts(engine) == recount(lives)
    async with lives.life() as engine:
        assert await counts(engine) == recount(lives)


async def test_a_job_that_ended_anew_is_not_forgotten_for_its_former_end(lives: Lives) -> None:
    async with lives.life(dead_retention_seconds=100, retention_seconds=1_000) as engine:
        await killed(engine, 3)
        await pass_time(59)
        lives.clock.wall_ahead_seconds += 100  # the store goes by the wall clock
        meddle(engine, "overdue", partial(ends_well, engine))
        await pass_time(1)
        assert (await read(engine, 1)).state is JobState.CONCLUDED
        await engine.execute(Sweep())
        assert await counts(engine) == recount(lives) == {"concluded": 4}


async def test_a_read_of_a_deleted_queue_is_not_taken_for_one_of_its_successor(lives: Lives) -> None:
    async def make_anew() -> None:
        await engine.execute(Forget("q", [1, 2, 3]))
        await engine.execute(DeleteQueue("q"))
        await ended(engine, 3)

    async with lives.life() as engine:
        await killed(engine, 3)
        meddle(engine, "find", make_anew)
        (answer,) = (await engine.execute(Redrive("q", [1]))).jobs
        assert isinstance(answer, ForgottenJob)
        assert await counts(engine) == recount(lives) == {"concluded": 3}


async def test_a_job_that_is_redriven_while_the_store_is_asked_for_it_is_found(lives: Lives) -> None:
    async with lives.life() as engine:
        await killed(engine, 5)

        def redriven(id_: int) -> None:
            meddle(engine, "find", lambda: engine.execute(Redrive("q", [id_])), before=True)

        redriven(1)
        assert (await read(engine, 1)).state is JobState.QUEUED
        redriven(2)
        assert (await engine.execute(ReadPosition("q", 2))).ahead == 1
        redriven(3)
        assert (await engine.execute(Cancel("q", [3]))).single().state is JobState.CANCELLED


async def test_jobs_are_redriven_in_the_order_asked_wherever_they_are_kept(lives: Lives) -> None:
    async with lives.life() as engine:
        await killed(engine, 5)
        assert sorted(machine_of(engine)._queues["q"].jobs) == [4, 5]
        asked = [1, 5, 3, 4]
        await engine.execute(Redrive("q", asked))
        assert [lease.job.id for lease in await dequeue(engine, 9)] == asked


async def test_jobs_are_redriven_although_what_was_read_of_them_was_stale(lives: Lives) -> None:
    async with racing(lives) as (engine, left):
        await killed(engine, 4)
        left[0] = 2
        await engine.execute(Redrive("q", [1, 4]))
        assert await counts(engine) == {"queued": 2, "dead": 2}


async def test_jobs_beyond_their_number_are_forgotten_although_others_are_too_old(lives: Lives) -> None:
    async with lives.life(retention_jobs=2, dead_retention_seconds=50) as engine:
        await killed(engine, 1)
        await pass_time(49)
        lives.clock.wall_ahead_seconds += 5  # the store goes by the wall clock
        await enqueue(engine, *"bcde")
        for leased in await dequeue(engine, 4):
            await conclude(engine, leased)
        swept = await engine.execute(Sweep())
        assert (swept.forgotten, swept.dead_lost, swept.more) == (1, 0, True)
        assert (await engine.execute(Sweep())).forgotten == 2
        assert await counts(engine) == recount(lives) == {"concluded": 2}
        assert [job.id for job in (await engine.execute(Search("q", JobFilter()))).jobs] == [4, 5]


async def test_dead_jobs_that_are_lost_to_their_number_are_counted(lives: Lives) -> None:
    async with lives.life(dead_retention_jobs=2) as engine:
        await enqueue(engine, *"abcde")
        for leased in await dequeue(engine, 5):
            await fail(engine, leased, retry=False)
        swept = await engine.execute(Sweep())
        assert (swept.forgotten, swept.dead_lost) == (3, 3)
        assert await counts(engine) == recount(lives) == {"dead": 2}


async def test_those_who_wait_for_a_job_are_told_of_its_end_before_memory_leaves_it(lives: Lives) -> None:
    async with lives.life(recent_jobs=1) as engine, trio.open_nursery() as nursery:
        leased = await lease(engine)
        call = await Call.start(nursery, engine, ReadJob("q", 1, wait_seconds=20))
        await conclude(engine, leased)
        await ended(engine, 3)
        assert call.reply.state is JobState.CONCLUDED
        later = await Call.start(nursery, engine, ReadJob("q", 1, wait_seconds=20))
        assert later.reply.state is JobState.CONCLUDED


async def test_what_is_read_back_counts_as_kept_only_while_it_is_in_memory(lives: Lives) -> None:
    async with lives.life() as engine:
        leases = await ended(engine, 5)
        kept_bytes = machine_of(engine)._ledger.kept_bytes
        for leased in leases:
            await conclude(engine, leased)
        await engine.execute(Sweep())
        assert machine_of(engine)._ledger.kept_bytes == kept_bytes == 2 * len(b'{"n":1}')
        assert len(machine_of(engine)._queues["q"].jobs) == 2


async def test_a_job_is_found_by_its_last_error_in_the_store_as_in_memory(lives: Lives) -> None:
    async with lives.life() as engine:
        await fail(engine, await lease(engine), error=boom("it broke"), retry_after_seconds=0)
        await conclude(engine, (await dequeue(engine))[0])
        found = await engine.execute(Search("q", JobFilter(error="broke")))
        assert [job.id for job in found.jobs] == [1]


async def test_a_job_in_memory_is_forgotten_when_the_store_says_that_its_time_is_over(lives: Lives) -> None:
    async with lives.life(retention_seconds=100) as engine:
        await ended(engine, 2)
        lives.clock.wall_ahead_seconds += 101
        await pass_time(60)
        assert await counts(engine) == recount(lives) == {}
        assert machine_of(engine)._queues["q"].jobs == {}


async def test_of_jobs_beyond_their_number_those_go_first_whose_time_would_have_come_first(lives: Lives) -> None:
    async with lives.life(retention_jobs=3, recent_jobs=1) as engine:
        await enqueue(engine, *"abcd")
        for id_ in (2, 1):
            await engine.execute(Cancel("q", [id_]))
            await pass_time(1)
        for leased in await dequeue(engine, 2):
            await conclude(engine, leased)
        assert (await engine.execute(Sweep())).forgotten == 1
        assert [job.id for job in (await engine.execute(Search("q", JobFilter()))).jobs] == [1, 3, 4]
