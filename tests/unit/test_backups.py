"""Copies of the file while it is in use."""

import sqlite3
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio

from queue_actor import backups
from queue_actor.backups import Backups
from queue_actor.changes import Changes
from queue_actor.directory import connect_reader, open_directory
from queue_actor.errors import BackupRunning, DiskFull, Draining
from queue_actor.jobs import Change
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.threads import one_at_a_time
from tests.opening import inline
from tests.unit.test_sqlite import a_job, on_disk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = on_disk(tmp_path / "q")
    yield opened
    opened.close()


def of(path: Path, connect: Callable[[Path], sqlite3.Connection] = connect_reader, room: float = inf) -> Backups:
    return Backups(path / "q", path, connect, inline, lambda: room)


def parts(path: Path) -> list[str]:
    return [each.name for each in path.iterdir() if each.name.startswith("backup-")]


async def add(store: SqliteStore, id_: int) -> None:
    await store.commit(Changes(id_, [Change(id_, None, a_job(id_))]))


def ids(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [id_ for (id_,) in connection.execute("SELECT id FROM jobs ORDER BY id")]
    finally:
        connection.close()


async def test_a_copy_has_what_was_committed_when_it_was_made(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PIECE_BYTES", 1_000)
    await add(store, 1)
    await add(store, 2)
    copy = await of(tmp_path).make()
    await add(store, 3)
    assert parts(tmp_path) == [], "it has no name any more"
    pieces = [piece async for piece in copy.pieces()]
    await copy.aclose()
    assert max(map(len, pieces)) <= 1_000 < copy.file_bytes
    (tmp_path / "copy").write_bytes(b"".join(pieces))
    assert (tmp_path / "copy").stat().st_size == copy.file_bytes
    assert ids(tmp_path / "copy") == [1, 2]


async def test_there_is_one_copy_at_a_time(store: SqliteStore, tmp_path: Path) -> None:
    await add(store, 1)
    copies = of(tmp_path)
    first = await copies.make()
    with pytest.raises(BackupRunning):
        await copies.make()
    await first.aclose()
    await (await copies.make()).aclose()


async def test_a_copy_for_which_there_is_no_room_is_not_begun(store: SqliteStore, tmp_path: Path) -> None:
    await add(store, 1)
    copies = of(tmp_path, room=10)
    for _ in range(2):  # the refusal of one is not in the way of the next
        with pytest.raises(DiskFull, match="to spare"):
            await copies.make()


def failing(code: int) -> Callable[[Path], sqlite3.Connection]:
    class Failing(sqlite3.Connection):
        def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
            if not statement.startswith("VACUUM"):
                return super().execute(statement, *parameters)
            error = sqlite3.OperationalError(f"cannot {statement}")
            error.sqlite_errorcode = code
            raise error

    return lambda path: sqlite3.connect(path, factory=Failing)


def descriptors() -> int:
    """How many this process has open; 0 where the system does not tell."""
    open_ = Path("/proc/self/fd")
    return len(list(open_.iterdir())) if open_.exists() else 0


async def test_what_goes_wrong_leaves_nothing_behind(store: SqliteStore, tmp_path: Path) -> None:
    await add(store, 1)
    files: list[int] = []
    for _ in range(3):
        with pytest.raises(DiskFull, match="no room"):
            await of(tmp_path, failing(sqlite3.SQLITE_FULL)).make()
        with pytest.raises(sqlite3.OperationalError, match="VACUUM"):
            await of(tmp_path, failing(sqlite3.SQLITE_IOERR)).make()
        files.append(descriptors())
    assert parts(tmp_path) == []
    # SQLite itself keeps one for the next connection, as long as another connection holds a lock on the file.
    assert files[2] <= files[1] <= files[0]


async def test_a_copy_that_is_being_made_when_the_server_ends_is_broken_off(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "STEPS_BETWEEN_LOOKS", 10)

    def connect(path: Path) -> sqlite3.Connection:
        copies.stop()  # as soon as it has begun
        return connect_reader(path)

    await add(store, 1)
    copies = of(tmp_path, connect)
    for _ in range(2):
        with pytest.raises(Draining):
            await copies.make()
    assert parts(tmp_path) == []


async def test_commits_do_not_wait_for_a_copy(tmp_path: Path) -> None:
    """The copy is held in the middle, in its thread, until a commit is through."""
    began, committed = trio.Event(), trio.Event()

    loop = trio.lowlevel.current_trio_token()

    class Looked(sqlite3.Connection):
        def set_progress_handler(self, handler: Any, steps: int, /) -> None:
            def look() -> Any:
                trio.from_thread.run_sync(began.set, trio_token=loop)
                trio.from_thread.run(committed.wait, trio_token=loop)
                return handler()

            super().set_progress_handler(look, min(steps, 10))

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Looked)

    store = SqliteStore(
        tmp_path / "q",
        lambda path: sqlite3.connect(path, isolation_level=None, check_same_thread=False),
        durability="full",
        fresh_secret=b"secret",
        fresh_instance="life",
        run_in_thread=one_at_a_time(),
        room_bytes=lambda: inf,
    )
    await add(store, 1)
    copies = Backups(tmp_path / "q", tmp_path, connect, one_at_a_time(), lambda: inf)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def copy() -> None:
                await (await copies.make()).aclose()

            nursery.start_soon(copy)
            await began.wait()
            await add(store, 2)
            committed.set()
    store.close()


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "data"))
    with open_directory(settings):
        pass
    (tmp_path / "data" / "backup-abc.part").write_text("half")
    (tmp_path / "data" / "backup-abc.part-journal").write_text("of it")
    (tmp_path / "data" / "backup.mine").write_text("nobody else's business")
    with open_directory(settings):
        assert parts(tmp_path / "data") == []
        assert (tmp_path / "data" / "backup.mine").exists()
