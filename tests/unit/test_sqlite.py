"""The durable store, over a database in memory; what power cuts do to it is in simulation/test_power_cuts.py."""

import logging
import sqlite3
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from queue_actor import sqlite
from queue_actor.changes import AnswerRecord, Changes, Floors, QueueRecord, Recovered
from queue_actor.directory import connect
from queue_actor.engine import UnreadableError
from queue_actor.jobs import Change, Job, JobState, QueuePolicy
from queue_actor.schema import ForeignFileError
from queue_actor.sqlite import SqliteStore
from tests.fakes import SECRET
from tests.opening import in_memory, inline, open_store


def a_job(id_: int = 1, **facts: Any) -> Job:
    known: dict[str, Any] = {"queue": "q", "id": id_, "type": "a", "payload": b"1", "state": JobState.QUEUED}
    return Job(**(known | {"created_at": 1.0, "revision": id_, "place": id_} | facts))


def on_disk(path: Path, connect: Callable[[Path], Any] = connect) -> SqliteStore:
    return SqliteStore(
        path,
        connect,
        durability="full",
        fresh_secret=SECRET,
        fresh_instance="life",
        run_in_thread=inline,
        room_bytes=lambda: inf,
    )


async def recovered(store: SqliteStore) -> tuple[Recovered, list[Job]]:
    seen: list[tuple[Recovered, list[Job]]] = []
    assert await store.recover(
        lambda found: seen.append((replace(found, answers=list(found.answers)), list(found.jobs)))
    )
    return seen[0]


async def test_a_batch_is_recovered_as_it_was_told() -> None:
    store = open_store(in_memory())
    queue = QueueRecord("q", next_id=4, next_fence=9, policy=QueuePolicy(max_stale=2), paused=True, declared=True)
    first, second = a_job(1), a_job(2, payload=None)
    cancelled = a_job(2, revision=3, state=JobState.CANCELLED, kept_until=5.0)
    await store.commit(
        Changes(
            4,
            [Change(1, None, first), Change(2, None, second), Change(3, second, cancelled)],
            {"q": queue, "gone": None},
            [AnswerRecord("dequeue", "here", "k", b"f", 2.0, (("q", 1, 8),))],
            floors=Floors(7, 8),
        )
    )
    found, jobs = await recovered(store)
    assert jobs == [first]
    assert found.queues == [queue]
    assert found.finished == {("q", JobState.CANCELLED): 1}
    assert (found.revision, found.floors) == (4, Floors(7, 8))
    assert [(record.key, record.answer) for record in found.answers] == [("k", (("q", 1, 8),))]
    store.close()


async def test_a_payload_that_is_replaced_or_taken_away_is_stored_so() -> None:
    store = open_store(in_memory())
    large = b'"%s"' % (b"x" * 5_000)
    payloads = [b"1", large, b'"%s"' % (b"y" * 5_000), b'"\xc3\xa9"', None, large]
    before: Job | None = None
    for revision, payload in enumerate(payloads, 1):
        job = a_job(1, payload=payload, revision=revision)
        await store.commit(Changes(revision, [Change(revision, before, job)]))
        moved = a_job(1, payload=payload, revision=revision, fails=1)
        await store.commit(Changes(revision, [Change(revision, job, moved)]))
        assert (await recovered(store))[1] == [moved]
        before = moved
    await store.commit(Changes(9, [Change(9, before, None)]))
    assert store._connection.execute("SELECT count(*) FROM large_payloads").fetchone() == (0,)
    assert (await recovered(store))[1] == []
    store.close()


async def test_batches_of_every_length_are_stored_whole() -> None:
    store = open_store(in_memory())
    at = 0
    for length in (1, 3, 4, 5, 17, 64, 255, 256, 257, 700):
        jobs = [a_job(at + n + 1) for n in range(length)]
        await store.commit(Changes(at + length, [Change(job.revision, None, job) for job in jobs]))
        at += length
    assert len((await recovered(store))[1]) == at
    store.close()


async def test_a_batch_without_changes_is_no_transaction() -> None:
    store = open_store(in_memory())
    await store.commit(Changes(7))
    assert store.statistics().commits == 0
    await store.commit(Changes(7, queues={"q": None}))
    figures = store.statistics()
    assert figures.commits == 1
    assert 0 < figures.commit_seconds_p50 <= figures.commit_seconds_p99
    store.close()


async def test_a_commit_is_not_cut_short_by_a_caller_who_is_cancelled() -> None:
    free = trio.Event()

    async def held(call: Callable[[], Any]) -> Any:
        await free.wait()
        return call()

    store = open_store(in_memory(), run_in_thread=held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, Changes(1, [Change(1, None, a_job())]))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        free.set()
    assert len((await recovered(store))[1]) == 1
    store.close()


async def test_what_went_wrong_in_a_commit_comes_out() -> None:
    store = open_store(in_memory())
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        await store.commit(Changes(1, [Change(1, None, a_job())]))


async def test_recovery_says_how_far_it_is(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PROGRESS_JOBS", 2)
    store = open_store(in_memory())
    await store.commit(Changes(5, [Change(n, None, a_job(n)) for n in range(1, 6)]))
    with caplog.at_level(logging.INFO, "queue_actor.store"):
        await recovered(store)
    assert [record.facts["jobs"] for record in caplog.records] == [2, 4, 5]  # type: ignore[attr-defined] # as all lines
    store.close()


async def test_the_log_is_moved_into_the_file_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 3_000)
    store = on_disk(tmp_path / "q")
    sizes = []
    for n in range(1, 9):
        await store.commit(Changes(n, [Change(n, None, a_job(n, payload=b'"%s"' % (b"x" * 4_000)))]))
        sizes.append(store.statistics().file_bytes)
    assert sizes == sorted(set(sizes)), "each commit has been moved"
    store.close()


def test_a_log_that_somebody_keeps_from_being_emptied_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = on_disk(tmp_path / "q")
    store.watch_log()
    assert not caplog.records
    monkeypatch.setattr(sqlite, "WAL_BYTES_WARNING", 10)
    store.watch_log()
    store.watch_log()
    assert [record.message for record in caplog.records] == ["log_grows"]
    store.close()


async def test_a_log_is_not_thought_much_shorter_than_it_is(tmp_path: Path) -> None:
    store = on_disk(tmp_path / "q")
    for n in range(1, 201):
        await store.commit(Changes(n, [Change(n, None, a_job(n))], {"q": QueueRecord("q", n + 1, 1, QueuePolicy())}))
    assert store.statistics().wal_bytes < 2 * store._unmoved_bytes
    store.close()


async def test_a_log_that_somebody_kept_from_being_emptied_is_warned_about_and_cut_down_when_he_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_BYTES_WARNING", 900_000)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite, "WAL_BYTES_KEPT", 400_000)
    store = on_disk(tmp_path / "q")
    at = 0

    async def commit(times: int) -> int:
        nonlocal at
        for _ in range(times):
            at += 1
            await store.commit(Changes(at, [Change(at, None, a_job(at, payload=b'"%s"' % (b"x" * 10_000)))]))
            store.watch_log()
        return store.statistics().wal_bytes

    assert await commit(100) < 400_000
    reader = connect(tmp_path / "q")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (100,)
    assert await commit(100) > 1_000_000
    assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (100,)
    assert [record.message for record in caplog.records] == ["log_grows"]
    reader.close()
    assert await commit(100) <= 400_000
    assert len(caplog.records) == 1
    store.close()


async def test_the_log_of_a_full_disk_is_moved_without_a_commit(tmp_path: Path) -> None:
    store = on_disk(tmp_path / "q")
    await store.commit(Changes(1, [Change(1, None, a_job(1))]))
    there = store.statistics().file_bytes
    store._free = lambda: 10_000.0
    await store.commit(Changes(2, [Change(2, None, a_job(2))]))
    assert store.room_bytes < 0, "what the log has is to be in the file as well"
    store._free = lambda: -1.0
    await store.commit(Changes(2))
    assert store.room_bytes < -1, "it is not moved where there is no room for it in any case"
    store._free = lambda: 10_000.0
    await store.commit(Changes(2))
    assert store.room_bytes == 10_000
    assert store.statistics().file_bytes > there
    store.close()


async def test_the_log_of_a_full_disk_stays_short(tmp_path: Path) -> None:
    store = on_disk(tmp_path / "q")
    store._free = lambda: -1.0
    await store.commit(Changes(1, [Change(1, None, a_job(1))]))
    for n in range(2, 200):
        await store.commit(Changes(n, [Change(n, a_job(1, revision=n - 1), a_job(1, revision=n))]))
    assert store.statistics().wal_bytes < 2 * sqlite.CHECKPOINT_BYTES_FULL
    store.close()


def test_a_place_where_sqlite_cannot_keep_a_log_is_refused(tmp_path: Path) -> None:
    class Stubborn(sqlite3.Connection):
        def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("= WAL", "= DELETE"), *parameters)

    with pytest.raises(ForeignFileError, match="as delete"):
        on_disk(tmp_path / "q", lambda path: sqlite3.connect(path, isolation_level=None, factory=Stubborn))


async def test_a_file_that_cannot_be_made_safe_is_told_of(tmp_path: Path) -> None:
    class Full(sqlite3.Connection):
        def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
            if "TRUNCATE" in statement:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *parameters)

    store = on_disk(tmp_path / "q", lambda path: sqlite3.connect(path, isolation_level=None, factory=Full))
    with pytest.raises(UnreadableError, match="q cannot be used: database or disk is full"):
        await recovered(store)
    store.close()


async def test_a_job_that_was_made_and_forgotten_in_one_batch_is_not_there() -> None:
    store = open_store(in_memory())
    await store.commit(Changes(2, [Change(1, None, a_job()), Change(2, a_job(), None)]))
    assert (await recovered(store))[1] == []
    store.close()
