"""The durable store: one SQLite file that says what is, a row for each job.

It is a state table, not a log: a batch of the engine is one transaction that writes the last version of each job it
changed, so recovery reads the rows of the jobs that have not ended, and nothing is replayed or torn. SQLite's own log
(WAL) makes a transaction atomic; with `synchronous=FULL` it is on the disk before the commit returns.

The file may be read by others while the server runs. README.md in this folder names what of it is stable.

What a batch writes is planned by `statements.py`; here it is carried out.
"""

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import trio

from queue_actor.changes import AnswerRecord, Changes, Floors, Recovered
from queue_actor.engine import StoreStatistics, UnreadableError
from queue_actor.jobs import Job, JobState
from queue_actor.rows import ANSWER_COLUMNS, JOBS, QUEUE_COLUMNS, answer_of, job_of, queue_of
from queue_actor.schema import APPLICATION_ID, Connection, ForeignFileError, prepare
from queue_actor.statements import Statement, plan
from queue_actor.threads import RunInThread

CACHE_KIB: Final = 64 * 1024
CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
"""Bytes written to the log after which a commit moves them into the file."""

CHECKPOINT_BYTES_FULL: Final = 256 * 1024
"""The same when the disk is full."""

COMMITS_MEASURED: Final = 1_000
"""The last commits, whose latency the statistics tell."""

WAL_BYTES_KEPT: Final = 2 * CHECKPOINT_BYTES
"""Size that the log's file is cut down to when it has been emptied: more than it has unless somebody keeps it full."""

PROGRESS_JOBS: Final = 100_000
"""Jobs read between two lines of the log during recovery."""

WAL_BYTES_WARNING: Final = 256 * 1024 * 1024
"""Size of the log at which it is warned about: somebody reads the file and does not end, so it cannot be emptied."""

logger = logging.getLogger("queue_actor.store")

T = TypeVar("T")


class _StoppedError(Exception):
    """The process is about to end."""


class SqliteStore:
    """Keeps every answer. There is one writer: the engine."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], Connection],
        *,
        durability: str,
        fresh_secret: bytes,
        fresh_instance: str,
        run_in_thread: RunInThread,
        room_bytes: Callable[[], float],
    ) -> None:
        """Open the file, or make it.

        Args:
            path: Where the file is.
            connect: Opens a connection that is in no transaction unless BEGIN was executed.
            durability: `full`, or `normal`.
            fresh_secret: The token secret of a new file.
            fresh_instance: The name of this life of the queue, in a new file.
            run_in_thread: Carries out a call while the event loop goes on; one call at a time.
            room_bytes: How much may still be written before jobs are refused.

        Raises:
            ForeignFileError: Another program has written it, or a newer version of this one.
            Exception: Whatever the connection raises for a file that is none of SQLite's, or cannot be used.
        """
        self.durability = durability
        self._path = path
        self._run_in_thread = run_in_thread
        self._free = room_bytes
        self._commits = 0
        self._latencies: deque[float] = deque(maxlen=COMMITS_MEASURED)
        self._unmoved_bytes = 0  # written to the log since the last checkpoint, about
        self._warned = False
        self._stopped = False
        self._connection = connect(path)
        try:
            self._set_up(fresh_secret, fresh_instance)
        except BaseException:
            self._connection.close()
            raise
        self.room_bytes = room_bytes()

    def _set_up(self, fresh_secret: bytes, fresh_instance: str) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA cache_size = {-CACHE_KIB}")
        (application,) = execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID and execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ForeignFileError("it is another program's")  # before it is made to have a log
        ((mode,),) = execute("PRAGMA journal_mode = WAL").fetchall()
        if mode not in {"wal", "memory"}:  # the latter is what a database in memory has, as in tests
            raise ForeignFileError(f"SQLite keeps its journal as {mode} there, and not as a log")
        execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'full' else 'NORMAL'}")
        execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}").fetchall()
        execute("PRAGMA wal_autocheckpoint = 0")  # SQLite passes over errors of its own checkpoints
        prepare(self._connection, fresh_secret, fresh_instance)
        meta = dict(execute("SELECT name, value FROM meta"))
        if not isinstance(meta.get("secret"), bytes) or not isinstance(meta.get("instance"), str):
            raise ForeignFileError("it has no secret or no instance")
        self.secret: bytes = meta["secret"]
        self.instance: str = meta["instance"]

    def _make_safe(self) -> None:
        """Put on the disk what a killed process may have left in the kernel alone, before anyone is told of it.

        Its last commit can be read although it was never flushed. A checkpoint flushes it; and since SQLite does not
        flush that the log is empty then, a commit does, which begins the log anew.

        This is the first that is written to the file, and so it comes after all has been read: one that cannot be
        understood is left as it is.
        """
        execute = self._connection.execute
        ((busy, _, _),) = execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise UnreadableError(f"{self._path} cannot be used: another program reads it and does not end")
        execute("BEGIN IMMEDIATE")
        execute("INSERT INTO meta VALUES ('starts', 1) ON CONFLICT DO UPDATE SET value = value + 1")
        execute("COMMIT")

    # --- commit

    async def commit(self, changes: Changes) -> None:
        """Keep the changes: when this returns they have survived, as far as `durability` goes.

        Raises:
            Exception: It is not known whether they are kept. Only a new process may find out.
        """
        if changes:
            started = perf_counter()
            # Here, not in the thread: whoever makes them holds the interpreter's lock, and two who take it from each
            # other by turns are slower than one after the other.
            statements, log_bytes = plan(changes)
            self._unmoved_bytes += log_bytes
            with trio.CancelScope(shield=True):
                await self._run_in_thread(lambda: self._write(statements))
            self._latencies.append(perf_counter() - started)
            self._commits += 1
        elif self.room_bytes <= 0 and self._unmoved_bytes and self._free() > 0:
            # There may be room: how much of the log adds to the file is known when it has been moved.
            with trio.CancelScope(shield=True):
                await self._run_in_thread(self._move_log)
        # What the log has will be in the file as well.
        self.room_bytes = self._free() - self._unmoved_bytes

    def _write(self, statements: Sequence[Statement]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for statement, parameters in statements:
            execute(statement, parameters)
        execute("COMMIT")
        # On a full disk the log must not take the room in which the jobs that are there can end.
        if self._unmoved_bytes > (CHECKPOINT_BYTES if self.room_bytes > 0 else CHECKPOINT_BYTES_FULL):
            self._move_log()

    def _move_log(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._unmoved_bytes = 0

    # --- recovery

    async def recover(self, restore: Callable[[Recovered], None]) -> bool:
        """Let a new engine have what is kept, in a thread. False: the process is about to end, and it was broken off.

        Raises:
            UnreadableError: The file holds what cannot be understood, or somebody else keeps hold of it.
        """

        def recover() -> bool:
            try:
                restore(self._read())
            except _StoppedError:
                return False
            except Exception as error:  # whatever goes wrong here is in the file: nothing has been served yet
                raise UnreadableError(f"{self._path} cannot be read: {type(error).__name__}: {error}") from error
            try:
                self._make_safe()
            except sqlite3.Error as error:
                raise UnreadableError(f"{self._path} cannot be used: {error}") from error
            return True

        done: bool = await self._run_in_thread(recover)
        return done

    def _read(self) -> Recovered:
        execute = self._connection.execute
        meta = dict(execute("SELECT name, value FROM meta"))
        queues = [
            (queue_of(row), row[-1])
            for row in execute(f"SELECT {', '.join(QUEUE_COLUMNS)} FROM queues")  # noqa: S608 - our own names
        ]
        finished = {
            (queue, JobState(state)): count
            for queue, state, count in execute(
                "SELECT queue, state, count(*) FROM jobs INDEXED BY jobs_finished WHERE kept_until IS NOT NULL "
                "GROUP BY queue, state"
            )
        }
        return Recovered(
            revision=max([meta.get("revision", 0), *(revision for _, revision in queues)]),
            floors=Floors(meta.get("id_floor", 1), meta.get("fence_floor", 1)),
            queues=[queue for queue, _ in queues],
            jobs=self._live_jobs(),
            finished=finished,
            answers=self._answers(),
        )

    def _live_jobs(self) -> Iterator[Job]:
        started = perf_counter()
        count = 0
        for row in self._connection.execute(f"{JOBS} WHERE kept_until IS NULL"):
            yield job_of(row)
            count += 1
            if count % PROGRESS_JOBS == 0:
                self._tell(count, started)
            if self._stopped:
                raise _StoppedError
        self._tell(count, started)

    def _tell(self, count: int, started: float) -> None:
        seconds = round(perf_counter() - started, 3)
        logger.info("recovering", extra={"facts": {"jobs": count, "seconds": seconds}})

    def _answers(self) -> Iterable[AnswerRecord]:
        rows = self._connection.execute(f"SELECT {', '.join(ANSWER_COLUMNS)} FROM answers ORDER BY at")  # noqa: S608 - our own names
        return (answer_of(row) for row in rows)

    # --- the rest

    def statistics(self) -> StoreStatistics:
        """What the store is doing now."""
        ordered = sorted(self._latencies) or [0.0]
        return StoreStatistics(
            file_bytes=_size(self._path),
            wal_bytes=_size(Path(f"{self._path}-wal")),
            room_bytes=self.room_bytes,
            commits=self._commits,
            commit_seconds_p50=ordered[len(ordered) // 2],
            commit_seconds_p99=ordered[len(ordered) * 99 // 100],
        )

    def vacuum(self) -> None:
        """Rewrite the file without what is free in it. Only before anything is served: nothing is stored meanwhile."""
        before = _size(self._path)
        self._connection.execute("VACUUM")
        self._make_safe()
        facts = {"bytes_before": before, "bytes_after": _size(self._path)}
        logger.info("vacuumed", extra={"facts": facts})

    def watch_log(self) -> None:
        """Warn once when somebody's open read keeps the log from being emptied."""
        wal_bytes = _size(Path(f"{self._path}-wal"))
        if wal_bytes > WAL_BYTES_WARNING and not self._warned:
            logger.warning("log_grows", extra={"facts": {"wal_bytes": wal_bytes}})
        self._warned = wal_bytes > WAL_BYTES_WARNING

    def stop(self) -> None:
        """Break off a recovery that is under way."""
        self._stopped = True

    def close(self) -> None:
        """Close the file. Its last connection empties the log into it."""
        self._connection.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
