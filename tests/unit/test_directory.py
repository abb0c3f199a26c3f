"""The data directory: real files, and whatever may be wrong with them."""

import errno
import fcntl
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor import directory, schema
from queue_actor.changes import Changes, Floors
from queue_actor.commands import Enqueue, NewJob, ReadJob, Search
from queue_actor.commands import JobFilter as Where
from queue_actor.directory import open_directory
from queue_actor.engine import UnreadableError
from queue_actor.service import open_engine
from queue_actor.settings import SettingError, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=str(tmp_path / "data"))


def complaint(settings: Settings) -> str:
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_DATA: ") as refused, open_directory(settings):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("durability", ["full", "normal"])
async def test_jobs_are_kept_from_one_life_to_the_next_by_real_threads_and_files(
    settings: Settings, durability: Any
) -> None:
    instances = set()
    for life in range(2):
        with open_directory(replace(settings, durability=durability)) as data:
            async with open_engine(settings, data=data) as engine:
                await engine.ready.wait()
                assert engine.durability == durability
                instances.add(engine.instance)
                if not life:
                    await engine.execute(Enqueue("q", [NewJob("a", payload=b'"\xc3\xa9"')]))
                assert (await engine.execute(ReadJob("q", 1))).payload == b'"\xc3\xa9"'
                assert len((await engine.execute(Search("q", Where()))).jobs) == 1
                figures = engine.store_statistics()
                assert figures is not None
                assert figures.file_bytes > 0
                assert figures.room_bytes > 0
    assert len(instances) == 1


def test_the_directory_and_its_files_are_their_owners_alone(settings: Settings) -> None:
    with open_directory(settings):
        modes = {path.name: path.stat().st_mode & 0o777 for path in Path(settings.data).iterdir()}
        assert Path(settings.data).stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert {"lock", "queue.sqlite"} <= set(modes)


def test_a_directory_is_one_servers_alone(settings: Settings) -> None:
    with open_directory(settings):
        assert "another server uses" in complaint(settings)
    with open_directory(settings):
        pass


def test_a_file_system_without_locks_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "No locks available" in complaint(settings)


def test_what_lies_in_place_of_the_directory_is_told(settings: Settings, tmp_path: Path) -> None:
    Path(settings.data).write_text("a file")
    assert "Not a directory" in complaint(settings)
    assert "No such file or directory" in complaint(Settings(data=str(tmp_path / "no" / "data")))


@pytest.mark.parametrize("name", [directory.FILE, directory.LOCK])
def test_a_symbolic_link_in_place_of_a_file_is_refused_and_not_followed(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    Path(settings.data).mkdir()
    (Path(settings.data) / name).symlink_to(tmp_path / "elsewhere")
    assert "symbolic links" in complaint(settings)
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_in_place_of_the_file_is_refused(settings: Settings) -> None:
    Path(settings.data).mkdir()
    os.mkfifo(Path(settings.data) / directory.FILE)
    assert "not a regular file" in complaint(settings)


def test_a_file_that_is_no_database_is_left_as_it_is(settings: Settings) -> None:
    Path(settings.data).mkdir()
    path = Path(settings.data) / directory.FILE
    path.write_bytes(b"these are not pages" * 1_000)
    assert "not a database" in complaint(settings)
    assert path.read_bytes() == b"these are not pages" * 1_000


def test_another_programs_database_is_left_as_it_is(settings: Settings) -> None:
    Path(settings.data).mkdir()
    path = Path(settings.data) / directory.FILE
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE accounts (balance)")
    other.close()
    before = path.read_bytes()
    assert "another program's" in complaint(settings)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["DELETE FROM meta", "UPDATE meta SET value = 1 WHERE name = 'secret'"])
def test_a_file_without_what_its_tokens_are_made_of_is_refused(settings: Settings, damage: str) -> None:
    with open_directory(settings):
        pass
    with sqlite3.connect(Path(settings.data) / directory.FILE) as damaged:
        damaged.execute(damage)
    damaged.close()
    assert "no secret" in complaint(settings)


def test_a_newer_programs_file_is_refused_by_an_older_one(settings: Settings) -> None:
    with open_directory(settings):
        pass
    newer = sqlite3.connect(Path(settings.data) / directory.FILE)
    newer.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    newer.close()
    assert f"version {schema.SCHEMA_VERSION + 1}" in complaint(settings)


def test_a_vacuum_at_the_start_gives_back_what_the_file_has_free(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with open_directory(settings):
        pass
    path = Path(settings.data) / directory.FILE
    filled = sqlite3.connect(path)
    filled.execute("INSERT INTO meta VALUES ('x', zeroblob(1000000))")
    filled.commit()
    filled.execute("DELETE FROM meta WHERE name = 'x'")
    filled.commit()
    filled.close()
    assert path.stat().st_size > 1_000_000
    with open_directory(settings):
        pass
    assert path.stat().st_size > 1_000_000
    with caplog.at_level(logging.INFO, "queue_actor.store"), open_directory(replace(settings, vacuum=True)):
        after = path.stat().st_size
        assert after < 100_000
    (facts,) = (record.facts for record in caplog.records if record.message == "vacuumed")  # type: ignore[attr-defined] # as all lines
    assert facts["bytes_before"] > 1_000_000
    assert facts["bytes_after"] == after


def test_a_vacuum_for_which_there_is_no_room_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> sqlite3.Connection:
        class Full(sqlite3.Connection):
            def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
                if statement == "VACUUM":
                    raise sqlite3.OperationalError("database or disk is full")
                return super().execute(statement, *parameters)

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Full)

    monkeypatch.setattr(directory, "connect", full)
    assert "disk is full" in complaint(replace(settings, vacuum=True))


async def test_a_file_that_somebody_reads_without_end_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_directory(settings):
        pass
    monkeypatch.setattr(directory, "BUSY_SECONDS", 0.0)
    reader = sqlite3.connect(Path(settings.data) / directory.FILE, isolation_level=None)
    with open_directory(settings) as data:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        await data.store.commit(Changes(1, queues={"none": None}, floors=Floors(2)))
    with open_directory(settings) as data:
        with pytest.raises(UnreadableError, match="reads it and does not end"):
            await data.store.recover(lambda _found: None)
        reader.close()


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
40 21 0:50 / {share} rw - nfs4 server:/share rw
41 40 8:2 / {share}/a\\040disk rw - xfs /dev/sdb rw
"""


def test_a_directory_of_another_machine_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(directory, "_MOUNTS", mounts)
    with open_directory(settings):
        pass  # where the system does not tell, nothing is refused
    mounts.write_text(MOUNTS.format(share=tmp_path))
    assert "lies on nfs4" in complaint(settings)
    assert "lies on nfs4" in complaint(Settings(data=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()
    (tmp_path / "a disk").mkdir()
    with open_directory(Settings(data=str(tmp_path / "a disk" / "data"))):
        pass
