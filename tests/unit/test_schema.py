"""The tables of the file: how they are made, and how an older file comes to have them.

`schemas/` has a file of each schema that was released, as a server left it; `schemas/make.py` made them.
"""

import logging
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from queue_actor import schema
from queue_actor.commands import Conclude, Dequeue, Enqueue, JobFilter, NewJob, ReadJob, ReadQueue, Search
from queue_actor.directory import FILE, connect, open_directory
from queue_actor.jobs import JobError, JobState
from queue_actor.schema import SCHEMA_VERSION, ForeignFileError, prepare
from queue_actor.service import open_engine
from queue_actor.settings import SettingError, Settings
from tests.contract.verbs import dequeue, shown, types, view
from tests.unit.schemas import make

RELEASED = Path(__file__).parent / "schemas"
VERSIONS = range(1, SCHEMA_VERSION + 1)


def tables(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
    finally:
        connection.close()


def left_by(version: int, directory: Path) -> Settings:
    """A data directory as a server of this schema left it."""
    directory.mkdir()
    shutil.copy(RELEASED / f"{version}.sqlite", directory / FILE)
    return Settings(data=str(directory))


@pytest.mark.parametrize("version", VERSIONS)
async def test_everything_is_found_in_a_file_of_each_released_schema(version: int, tmp_path: Path) -> None:
    settings = left_by(version, tmp_path / "data")
    with open_directory(settings) as data:
        async with open_engine(settings, clock=make.clock, data=data) as engine:
            await engine.ready.wait()
            jobs = [await engine.execute(ReadJob("q", id_)) for id_ in range(1, 9)]
            assert [(job.type, job.state.value) for job in jobs] == [
                ("concluded", "concluded"),
                ("dead", "dead"),
                ("leased", "in_progress"),
                ("queued", "queued"),
                ("first", "in_progress"),
                ("scheduled", "scheduled"),
                ("cancelled", "cancelled"),
                ("large", "queued"),
            ]
            assert (await engine.execute(Search("q", JobFilter()))).jobs == jobs
            concluded, dead, leased, queued, first, scheduled, *_ = jobs
            assert [job.payload for job in jobs] == [job.payload for job in make.JOBS]
            assert [job.options for job in jobs] == [job.options for job in make.JOBS]
            assert concluded.result == b'{"r": 1.50}'
            assert dead.history[-1].error == JobError("Timeout", "no disk")
            assert (first.priority, first.fails, first.attempts) == (9, 1, 2)
            assert (scheduled.not_before, scheduled.expires_at) == (
                make.WALL_SECONDS + 3_600.0,
                make.WALL_SECONDS + 7_200.0,
            )
            assert (await view(engine)).policy == make.POLICY
            assert (await engine.execute(ReadQueue("paused"))).paused
            assert not (await engine.execute(ReadQueue("gone"))).exists
            # What was remembered is answered again, and its token still holds the job.
            again = await engine.execute(make.ENQUEUE)
            assert [getattr(job, "id", None) for job in again.jobs] == [1, 2, 3, 4, 5, 6, 7, 8]
            (lease,) = (await engine.execute(make.DEQUEUE)).leases
            assert (lease.job.id, lease.job.fence) == (3, leased.fence)
            assert (await engine.execute(Conclude([shown(lease)]))).single().state is JobState.CONCLUDED
            # Whoever comes next goes on where they ended.
            await engine.execute(Enqueue("q", [NewJob("new")]))
            await engine.execute(Enqueue("gone", [NewJob("new")]))
            rest = await dequeue(engine, 9)
            assert types(rest) == ["queued", "large", "new"]
            assert queued.fence == 0
            assert min(one.job.fence for one in rest) > first.fence
            assert [one.job.id for one in (await engine.execute(Dequeue("gone"))).leases] == [2]
    assert tables(tmp_path / "data" / FILE) == fresh_tables(tmp_path)


def fresh_tables(tmp_path: Path) -> list[Any]:
    with open_directory(Settings(data=str(tmp_path / "fresh"))):
        pass
    return tables(tmp_path / "fresh" / FILE)


def test_the_file_of_the_last_schema_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    """Who changes the tables adds a step that changes those of the files out there, and a file of the new schema."""
    assert tables(RELEASED / f"{SCHEMA_VERSION}.sqlite") == fresh_tables(tmp_path)
    assert len(schema.STEPS) == SCHEMA_VERSION - 1
    assert sorted(path.name for path in RELEASED.glob("*.sqlite")) == [f"{version}.sqlite" for version in VERSIONS]


def add_column(connection: schema.Connection) -> None:
    connection.execute("ALTER TABLE jobs ADD COLUMN colour TEXT")


def add_table(connection: schema.Connection) -> None:
    connection.execute("CREATE TABLE colours (name TEXT PRIMARY KEY) WITHOUT ROWID")


def fail_halfway(connection: schema.Connection) -> None:
    add_table(connection)
    raise sqlite3.OperationalError("the disk is gone")


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()
    return version


def test_an_older_file_is_brought_up_to_date_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = left_by(1, tmp_path / "data")
    path = tmp_path / "data" / FILE
    monkeypatch.setattr(schema, "STEPS", (add_column, fail_halfway))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    with pytest.raises(SettingError, match="the disk is gone"), open_directory(settings):
        pass
    # The first step stands, and nothing of the second.
    assert version_of(path) == 2
    assert "colours" not in str(tables(path))

    monkeypatch.setattr(schema, "STEPS", (fail_halfway, add_table))
    with caplog.at_level(logging.INFO, "queue_actor.store"), open_directory(settings):
        pass
    assert version_of(path) == 3
    assert "colours" in str(tables(path))
    assert "colour TEXT" in str(tables(path))
    assert [record.facts for record in caplog.records if record.message == "upgraded"] == [{"schema": 3}]  # type: ignore[attr-defined] # as all lines
    monkeypatch.undo()
    with pytest.raises(SettingError, match="version 3, and this program knows 1"), open_directory(settings):
        pass


def test_a_file_of_ours_without_a_version_is_refused(tmp_path: Path) -> None:
    connection = connect(tmp_path / FILE)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("CREATE TABLE jobs (id)")
    with pytest.raises(ForeignFileError):
        prepare(connection, b"secret", "life")
    connection.close()
