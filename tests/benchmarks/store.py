"""What a commit costs beside a busy event loop: few wide statements, or one a row."""

import json
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

from queue_actor.jobs import Job, JobState
from queue_actor.rows import JOB_COLUMNS, job_row
from queue_actor.schema import prepare
from queue_actor.statements import upsert_statement
from tests.benchmarks.results import Results, parser, show, spread
from web.__main__ import SWITCH_SECONDS

JOBS = 100
USUAL_SWITCH_SECONDS = 0.005

COLUMNS = (*JOB_COLUMNS, "payload")
Row = tuple[object, ...]
Write = Callable[[sqlite3.Connection, Sequence[Row]], object]

ONE = upsert_statement("jobs", COLUMNS, 1, 2)
MANY = upsert_statement("jobs", COLUMNS, JOBS, 2)
FROM_JSON = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}) "  # noqa: S608 - our own names
    f"SELECT {', '.join(f'value ->> {n}' for n in range(len(COLUMNS)))} FROM json_each(?) WHERE true "
    f"ON CONFLICT (queue, id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[2:])}"
)


def executemany(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """One step of the statement a row, each of which gives up the interpreter's lock."""
    connection.executemany(ONE, rows)


def from_json(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """One statement over one JSON text."""
    connection.execute(FROM_JSON, (json.dumps(rows),))


def values(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """One statement with a list of VALUES: what the store does."""
    connection.execute(MANY, [value for row in rows for value in row])


WAYS: dict[str, Write] = {"executemany": executemany, "json_each": from_json, "VALUES": values}


def rows_of(commit: int) -> list[Row]:
    """The rows of one commit."""
    jobs = [
        Job(
            queue="bench",
            id=commit * JOBS + n,
            type="resize",
            payload=None,
            state=JobState.QUEUED,
            created_at=1_790_000_000.0 + commit,
            revision=commit * JOBS + n,
            place=commit * JOBS + n,
        )
        for n in range(1, JOBS + 1)
    ]
    return [(*job_row(job), '{"width": 1280, "path": "/images/0123456789.png"}') for job in jobs]


def commits_per_second(path: Path, write: Write, seconds: float, *, busy: bool) -> float:
    """How many commits a thread makes while the main thread waits for it, or does not."""
    count = 0
    ended = threading.Event()

    def commit() -> None:
        nonlocal count
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            prepare(connection, b"secret", "instance")
            until = perf_counter() + seconds
            while perf_counter() < until:
                rows = rows_of(count)
                connection.execute("BEGIN IMMEDIATE")
                write(connection, rows)
                connection.execute("COMMIT")
                count += 1
        ended.set()

    thread = threading.Thread(target=commit)
    thread.start()
    if busy:
        while not ended.is_set():
            sum(range(100))  # an event loop that always has something to do
    thread.join()
    return count / seconds


def main(words: Sequence[str] | None = None) -> None:
    """Measures by turns, and tells commits a second with the share of what an idle loop leaves."""
    arguments = parser(__doc__).parse_args(words)
    rounds, seconds = (1, 0.02) if arguments.smoke else (3, 0.4) if arguments.quick else (7, 1.0)
    results = Results("store", arguments)
    usual = sys.getswitchinterval()
    rates: dict[tuple[str, float, bool], list[float]] = {}
    for _ in range(rounds):
        for name, write in WAYS.items():
            for switch in (USUAL_SWITCH_SECONDS, SWITCH_SECONDS):
                for busy in (False, True):
                    sys.setswitchinterval(switch)
                    with tempfile.TemporaryDirectory() as directory:
                        rate = commits_per_second(Path(directory) / "queue.sqlite", write, seconds, busy=busy)
                    rates.setdefault((name, switch, busy), []).append(rate)
    sys.setswitchinterval(usual)
    rows = []
    for name in WAYS:
        for switch in (USUAL_SWITCH_SECONDS, SWITCH_SECONDS):
            idle, busy_rate = (spread(rates[name, switch, busy]) for busy in (False, True))
            share = busy_rate.median / idle.median if idle.median else 0.0
            rows.append([name, f"{switch * 1e3:g}", idle, busy_rate, show(share)])
    results.table(
        "commits",
        ["statement:", "switch interval, ms", "idle", "busy", "share"],
        rows,
        about=f"Commits of {JOBS} jobs a second; medians of {rounds} rounds of {seconds:g} s.",
    )
    bars: dict[str, dict[str, float]] = {}
    for (name, switch, busy), seen in rates.items():
        # What came to nothing within a round has no place on a logarithmic scale.
        rate = max(1.0, spread(seen).median)
        bars.setdefault("busy" if busy else "idle", {})[f"{name}, {switch * 1e3:g} ms"] = rate
    results.bars("store", f"Commits of {JOBS} jobs a second", "commits a second", bars)
    results.rounds("commits", [[*cell, seen] for cell, seen in rates.items()])
    results.end()


if __name__ == "__main__":
    main()
