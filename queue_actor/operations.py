"""What an operator does to data while no server uses it: `scripts/data.sh check` and `scripts/data.sh restore`.

A check reads, and writes nothing. A restore makes a data directory of a backup, or of a file that was saved otherwise:
its file has its name when it is whole, and not before. It begins another life of the queue. Jobs that were given out
after the backup are there again, and those that came after it are not, so clients must be able to tell (a new
instance), systems that remember fences must not be shown lower ones, and nothing is handed out until somebody has
looked (the queues are paused).
"""

import argparse
import os
import secrets
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from queue_actor.directory import FILE, connect, locked, sync
from queue_actor.jobs import FINISHED
from queue_actor.rows import ANSWER_COLUMNS, JOBS, QUEUE_COLUMNS, Row, answer_of, job_of, queue_of
from queue_actor.schema import APPLICATION_ID, SCHEMA_VERSION, prepare
from queue_actor.service import INSTANCE_BYTES
from queue_actor.settings import SettingError
from queue_actor.tokens import SECRET_BYTES

PART = "restore.part"
"""The file of a restore that is not complete."""

EXIT_UNSOUND = 1


class RefusedError(Exception):
    """A restore that was not begun, or broken off: nothing has changed."""


class Report(NamedTuple):
    """What a check found: what is wrong, and how many jobs there are in each state."""

    findings: Sequence[str]
    counts: Counter[str]

    def __str__(self) -> str:
        return ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items())) or "no jobs"


# --- check


def check(path: Path) -> Report:
    """Look at a data directory or a file, without writing anything; a server may be using it."""
    path = path / FILE if path.is_dir() else path
    findings: list[str] = []
    counts: Counter[str] = Counter()
    try:
        with closing(_connect_unwritten(path)) as connection:
            findings += _wrong_with_file(connection)
            # What another version's rows should be like is not known here.
            if not findings and _version(connection) == SCHEMA_VERSION:
                findings += _wrong_with_rows(connection, counts)
    except sqlite3.Error as error:
        findings.append(f"it cannot be read: {error}")
    return Report(findings, counts)


def _connect_unwritten(path: Path) -> sqlite3.Connection:
    """A connection that makes no files of its own beside a file that nobody uses."""
    log = Path(f"{path}-wal")
    used = log.exists() and log.stat().st_size > 0
    address = f"file:{quote(str(path))}?mode=ro{'' if used else '&immutable=1'}"
    return sqlite3.connect(address, uri=True, isolation_level=None)


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _wrong_with_file(connection: sqlite3.Connection) -> Iterator[str]:
    application, version = connection.execute("PRAGMA application_id").fetchone()[0], _version(connection)
    if application != APPLICATION_ID:
        yield f"it is another program's: its application id is {application}, and not {APPLICATION_ID}"
    elif not 1 <= version <= SCHEMA_VERSION:
        yield f"its schema has version {version}, and this program knows {SCHEMA_VERSION}"
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"integrity: {line}"


def _wrong_with_rows(connection: sqlite3.Connection, counts: Counter[str]) -> Iterator[str]:
    """Rows that cannot be understood, or contradict each other; counts the jobs in passing."""
    connection.execute("BEGIN")  # one moment, also of a server that goes on
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    if not isinstance(meta.get("secret"), bytes) or not isinstance(meta.get("instance"), str):
        yield "meta: the secret of the tokens or the name of the instance is missing"
    next_ids: dict[str, int] = {}
    for row in connection.execute(f"SELECT {', '.join(QUEUE_COLUMNS)} FROM queues"):  # noqa: S608 - our own names
        next_ids[row[0]] = row[1]
        yield from _undecoded("queue", row[:1], queue_of, row)
    for row in connection.execute(JOBS):
        counts[str(row[2])] += 1
        yield from _undecoded("job", row[:2], partial(_look_at, next_ids), row)
    for row in connection.execute(f"SELECT {', '.join(ANSWER_COLUMNS)} FROM answers"):  # noqa: S608 - our own names
        yield from _undecoded("answer", row[:3], answer_of, row)
    for queue, id_ in connection.execute("SELECT queue, id FROM large_payloads EXCEPT SELECT queue, id FROM jobs"):
        yield f"payload {queue} {id_}: there is no such job"


def _look_at(next_ids: dict[str, int], row: Row) -> None:
    """See whether the job of a row goes with its queue.

    Raises:
        ValueError: It does not.
    """
    job = job_of(row)
    if job.queue not in next_ids:
        raise ValueError("there is no such queue")
    if job.id >= next_ids[job.queue]:
        raise ValueError(f"the queue has given no id from {next_ids[job.queue]} on")
    if (job.kept_until is None) == (job.state in FINISHED):
        raise ValueError(f"it is {job.state} and kept until {job.kept_until}")


def _undecoded(what: str, key: Row, decode: Callable[[Row], object], row: Row) -> Iterator[str]:
    try:
        decode(row)
    except Exception as error:  # noqa: BLE001 - whatever a row raises is what is wrong with it
        yield f"{what} {' '.join(map(str, key))}: {type(error).__name__}: {error}"


# --- restore


def restore(source: Path, directory: Path, *, resume: bool) -> list[str]:
    """Make a data directory of a file; what was done, in lines for people.

    Raises:
        RefusedError: The file is not sound, or the directory has a queue.
        SettingError: The directory cannot be used.
    """
    report = check(source)
    if report.findings:
        raise RefusedError(f"{source} is not sound: {report.findings[0]}")
    source = source / FILE if source.is_dir() else source
    fence = int(time.time() * 1_000_000)
    instance = secrets.token_hex(INSTANCE_BYTES)
    with locked(directory):
        there = sorted(path.name for path in directory.glob(f"{FILE}*"))
        if there:
            raise RefusedError(f"{directory} has {', '.join(there)}: a restore goes into a directory without a queue")
        part = directory / PART
        for leftover in directory.glob(f"{PART}*"):
            leftover.unlink()
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(_connect_unwritten(source)) as connection:
            connection.execute("VACUUM INTO ?", (str(part),))
        with closing(connect(part)) as connection:
            prepare(connection, secrets.token_bytes(SECRET_BYTES), instance)
            queues = _begin_another_life(connection, instance, fence, resume=resume)
        sync(part)
        part.rename(directory / FILE)
        sync(directory)
    paused = (
        "the queues are paused or not, as they were"
        if resume
        else f"all queues ({queues}) are paused: look at them, then resume each"
    )
    return [
        f"restored {source} to {directory / FILE}: {report}",
        f"the instance is {instance}: clients forget the ids they know",
        f"fences go on from {fence}, or from where they were if that is higher",
        paused,
    ]


def _begin_another_life(connection: sqlite3.Connection, instance: str, fence: int, *, resume: bool) -> int:
    """Give the file another instance and higher fences, and pause its queues; how many these are."""
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    execute("UPDATE meta SET value = ? WHERE name = 'instance'", (instance,))
    execute(
        "INSERT INTO meta VALUES ('fence_floor', ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
        (fence,),
    )
    execute("UPDATE queues SET next_fence = max(next_fence, ?), paused = paused OR ?", (fence, not resume))
    queues: int = execute("SELECT count(*) FROM queues").fetchone()[0]
    execute("COMMIT")
    return queues


# --- the program


def main(arguments: Sequence[str]) -> int:
    """Carry out a command and return its exit code: 0, or 1 if something is wrong, or 2 if it was called wrongly."""
    parser = argparse.ArgumentParser("scripts/data.sh", description="Checks and restores what a server keeps.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="check|restore")
    checking = commands.add_parser("check", help="say whether a data directory or a backup is sound; writes nothing")
    checking.add_argument("path", type=Path, metavar="DIR|FILE")
    restoring = commands.add_parser("restore", help="make a data directory of a backup")
    restoring.add_argument("source", type=Path, metavar="FILE")
    restoring.add_argument("directory", type=Path, metavar="DIR", help="is made; or has no queue in it")
    restoring.add_argument("--resume", action="store_true", help="leave queues running that were")
    asked = parser.parse_args(arguments)
    code = 0
    if asked.command == "check":
        report = check(asked.path)
        lines = [f"{asked.path}: {finding}" for finding in report.findings]
        code = EXIT_UNSOUND if lines else 0
        lines = lines or [f"{asked.path}: sound: {report}"]
    else:
        try:
            lines = restore(asked.source, asked.directory, resume=asked.resume)
        except (RefusedError, SettingError, OSError, sqlite3.Error) as error:
            lines, code = [str(error)], EXIT_UNSOUND
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
