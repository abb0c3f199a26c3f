"""Check and restore, on the files that the released schemas left and on what may have become of them."""

import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from queue_actor import operations, schema
from queue_actor.commands import Conclude, Enqueue, NewJob, ReadJob, ReadQueue
from queue_actor.directory import FILE, open_directory
from queue_actor.errors import UnknownJob
from queue_actor.jobs import JobState
from queue_actor.operations import check, main
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import dequeue, refusal, shown
from tests.unit.schemas import make

SOUND = Path(__file__).parent / "schemas" / f"{schema.SCHEMA_VERSION}.sqlite"
COUNTS = "1 cancelled, 1 concluded, 1 dead, 2 in_progress, 2 queued, 1 scheduled"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(SOUND, tmp_path / "backup"))


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


# --- check


def test_a_sound_file_is_told_so_and_left_as_it_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(file.parent)
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: sound: {COUNTS}\n"
    assert contents(file.parent) == before


def test_a_file_without_jobs_is_sound(tmp_path: Path) -> None:
    with open_directory(Settings(data=str(tmp_path / "data"))):
        pass
    report = check(tmp_path / "data")
    assert (report.findings, str(report)) == ([], "no jobs")


async def test_a_directory_is_checked_while_a_server_uses_it(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "data"))
    with open_directory(settings) as data:
        async with open_engine(settings, data=data) as engine:
            await engine.ready.wait()
            await engine.execute(Enqueue("q", [NewJob("a")]))
            before = contents(tmp_path / "data")
            report = check(tmp_path / "data")
            assert contents(tmp_path / "data") == before
    assert (report.findings, str(report)) == ([], "1 queued")


def break_page(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 2_000)


def break_index(path: Path) -> None:
    execute(
        path,
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = replace(sql, 'IS NOT NULL', 'IS NULL') WHERE type = 'index'",
    )


WRONG: dict[str, tuple[str | Callable[[Path], object], str]] = {
    "no database": (lambda path: path.write_text("nothing" * 1_000), "cannot be read: file is not a database"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:9_000]), "malformed"),
    "a broken page": (break_page, "malformed"),
    "another program's": ("PRAGMA application_id = 7", "another program's: its application id is 7"),
    "no version": ("PRAGMA user_version = 0", "its schema has version 0"),
    "newer": (f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}", f"version {schema.SCHEMA_VERSION + 1}, and"),
    "a job without facts": ("UPDATE jobs SET facts = '{}' WHERE id = 4", "job q 4: ValidationError"),
    "an unknown state": ("UPDATE jobs SET state = 'lost' WHERE id = 4", "job q 4: ValueError: 'lost'"),
    "a number for a payload": ("UPDATE jobs SET payload = x'00' WHERE id = 4", "job q 4: AttributeError"),
    "a job from nowhere": ("UPDATE jobs SET queue = 'r' WHERE id = 4", "job r 4: ValueError: there is no such queue"),
    "an id of the future": ("UPDATE queues SET next_id = 8 WHERE name = 'q'", "job q 8: ValueError: the queue has"),
    "kept for ever": ("UPDATE jobs SET kept_until = NULL WHERE id = 1", "job q 1: ValueError: it is concluded"),
    "a payload without a job": ("DELETE FROM jobs WHERE id = 8", "payload q 8: there is no such job"),
    "no policy": ("UPDATE queues SET policy = '' WHERE name = 'q'", "queue q: DecodeError"),
    "no answer": ("UPDATE answers SET answer = '1' WHERE kind = 'enqueue'", "answer enqueue here all: ValidationError"),
    "a broken index": (break_index, "integrity: "),
    "no secret": ("DELETE FROM meta WHERE name = 'secret'", "meta: the secret"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_is_told_in_a_line(name: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, told = WRONG[name]
    if isinstance(change, str):
        execute(file, change)
    else:
        change(file)
    assert main(["check", str(file)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(told in line for line in lines), lines
    assert all(line.startswith(f"{file}: ") for line in lines)


def test_what_is_not_there_is_not_sound_and_not_made(tmp_path: Path) -> None:
    assert check(tmp_path).findings
    assert check(tmp_path / "no" / "such").findings
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_older_schema_are_not_judged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    report = check(file)
    assert (report.findings, str(report)) == ([], "no jobs")


# --- restore


@pytest.mark.parametrize("resume", [False, True])
async def test_a_restored_queue_is_another_life_of_the_same_jobs(
    resume: bool, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "data"
    began = int(time.time() * 1_000_000)
    execute(file, "UPDATE queues SET next_fence = 1", "UPDATE meta SET value = 1 WHERE name = 'fence_floor'")
    assert main(["restore", str(file), str(directory), *(["--resume"] if resume else [])]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"restored {file} to {directory / FILE}: {COUNTS}"
    assert ("are paused or not" if resume else "all queues (2) are paused") in told[3]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in sorted(directory.iterdir())] == [
        ("lock", 0o600),
        (FILE, 0o600),
    ]
    assert check(directory).findings == []
    rows = sqlite3.connect(directory / FILE)
    fences = [fence for (fence,) in rows.execute("SELECT next_fence FROM queues")]
    fences += [fence for (fence,) in rows.execute("SELECT value FROM meta WHERE name = 'fence_floor'")]
    rows.close()
    assert len(fences) == 3
    assert began <= min(fences) <= time.time() * 1_000_000

    settings = Settings(data=str(directory))
    with open_directory(settings) as data:
        async with open_engine(settings, clock=make.clock, data=data) as engine:
            await engine.ready.wait()
            assert engine.instance in told[1]
            assert (await engine.execute(ReadQueue("paused"))).paused
            assert (await engine.execute(ReadQueue("q"))).paused is not resume
            assert (await engine.execute(ReadJob("q", 1))).result == b'{"r": 1.50}'
            leases = await dequeue(engine, 9)
            assert [lease.job.id for lease in leases] == ([4, 8] if resume else [])
            if resume:
                assert leases[0].job.fence >= began
                done = await engine.execute(Conclude([shown(leases[0])]))
                assert done.single().state is JobState.CONCLUDED
            await refusal(engine, ReadJob("q", 99), UnknownJob)


def test_fences_that_are_ahead_of_the_clock_stay(file: Path, tmp_path: Path) -> None:
    ahead = 2**52
    execute(file, "UPDATE queues SET next_fence = 1 << 52", "UPDATE meta SET value = 1 << 52 WHERE name LIKE 'f%'")
    assert main(["restore", str(file), str(tmp_path / "data")]) == 0
    rows = sqlite3.connect(tmp_path / "data" / FILE)
    assert set(rows.execute("SELECT next_fence FROM queues")) == {(ahead,)}
    assert rows.execute("SELECT value FROM meta WHERE name = 'fence_floor'").fetchall() == [(ahead,)]
    rows.close()


def test_a_restore_goes_into_a_directory_that_has_no_queue_and_no_server(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "data"
    with open_directory(Settings(data=str(directory))):
        assert main(["restore", str(file), str(directory)]) == 1
        assert "another server uses" in capsys.readouterr().err
    before = contents(directory)
    assert main(["restore", str(file), str(directory)]) == 1
    assert "has queue.sqlite: a restore goes into" in capsys.readouterr().err
    assert contents(directory) == before
    (directory / FILE).rename(directory / f"{FILE}-wal")  # of which a new file would be thought to be the log
    assert main(["restore", str(file), str(directory)]) == 1
    assert main(["restore", str(file), str(tmp_path / "no" / "data")]) == 1


def test_what_is_not_sound_is_not_restored(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(file, "UPDATE jobs SET facts = '{}' WHERE id = 4")
    assert main(["restore", str(file), str(tmp_path / "data")]) == 1
    assert "is not sound: job q 4" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_restore_that_was_broken_off_is_begun_anew(file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / operations.PART).write_text("half of it")
    assert main(["restore", str(file), str(directory)]) == 0
    assert not (directory / operations.PART).exists()


def test_the_directory_of_a_server_that_was_killed_is_restored_with_what_is_in_its_log(tmp_path: Path) -> None:
    kept, copied = tmp_path / "data", tmp_path / "copied"
    with open_directory(Settings(data=str(kept))):
        execute(kept / FILE, "INSERT INTO queues VALUES ('q', 1, 1, 0, 0, '{}', 0, 1)")
        shutil.copytree(kept, copied)
    assert (copied / f"{FILE}-wal").stat().st_size > 0
    assert main(["restore", str(copied), str(tmp_path / "new")]) == 0
    rows = sqlite3.connect(tmp_path / "new" / FILE)
    assert rows.execute("SELECT name FROM queues").fetchall() == [("q",)]
    rows.close()


def test_the_program_says_how_it_is_called() -> None:
    called = [sys.executable, "-m", "queue_actor.operations"]
    helped = subprocess.run([*called, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "check" in helped.stdout
    assert "restore" in helped.stdout
    assert subprocess.run(called, capture_output=True, check=False, timeout=60).returncode == 2


def test_the_program_ends_with_the_code_of_its_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["operations", "check", str(file)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(operations.__file__, run_name="__main__")
    assert ended.value.code == 0
