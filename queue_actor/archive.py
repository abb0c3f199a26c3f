"""Reads beside the engine: what the store has, through a connection that cannot write.

A read sees the last commit before it, and so everything that anyone was told. The engine is never delayed by one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from queue_actor.commands import Ended, JobFilter, JobsFound, Search
from queue_actor.jobs import FINISHED, Job
from queue_actor.queries import SCANNED_IDS_MAX
from queue_actor.rows import JOBS, job_of
from queue_actor.schema import Connection
from queue_actor.threads import RunInThread

_LAST_ERROR_HAS = """EXISTS (
    SELECT 1 FROM (
        SELECT value -> '$.error' AS error FROM json_each(facts, '$.history')
        WHERE value ->> '$.error' IS NOT NULL ORDER BY key DESC LIMIT 1
    ) WHERE instr(error ->> '$.type', ?) OR instr(error ->> '$.message', ?)
)"""


class Found(msgspec.Struct, frozen=True):
    """Finished jobs, and `departures` of their queues when they were read."""

    jobs: Sequence[Job]
    departures: Mapping[str, int]


class Slice(Found, frozen=True):
    """Those of the finished jobs that match, among the ids up to one."""

    until_id: int


class Overdue(msgspec.Struct, frozen=True):
    """Finished jobs whose retention is over."""

    aged: Sequence[Ended]  # for their time
    over: Sequence[Ended]  # for their number
    departures: Mapping[str, int]


_decode_ended = msgspec.json.Decoder(list[Ended]).decode


class Archive:
    """Finds jobs in the file that the store writes."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], Connection],
        run_in_thread: RunInThread,
        run_for_sweeps: RunInThread | None = None,
    ) -> None:
        """Open the file for reading; see `SqliteStore` for the arguments. One read of each kind runs at a time.

        What sweeps ask for is read by `run_for_sweeps`, over a connection of its own: however many wait for what they
        search for, leases end in time. Without it they stand in the same line.
        """
        self._connection = self._sweep_connection = connect(path)
        self._run_in_thread = self._run_for_sweeps = run_in_thread
        if run_for_sweeps is not None:
            self._sweep_connection, self._run_for_sweeps = connect(path), run_for_sweeps

    async def find(self, queue: str, ids: Sequence[int]) -> Found:
        """Those of the jobs that have ended and are kept."""

        def find() -> Found:
            return self._finished(
                "jobs.queue = ? AND jobs.id IN (SELECT value FROM json_each(?))", (queue, _json(ids)), len(ids)
            )

        found: Found = await self._run_in_thread(find)
        return found

    async def matching(self, queue: str, where: JobFilter, after_id: int, until_id: int, limit: int) -> Slice:
        """The first finished jobs that match, by id, among a bounded number of ids: others wait for their reads."""
        conditions, values = _conditions(where)

        def find() -> Slice:
            # What is read after this is of a later moment, when there are no other jobs among these ids than now.
            first_id = self._first_after(queue, after_id)
            last_id = until_id if first_id is None else min(until_id, first_id + SCANNED_IDS_MAX - 1)
            if self._first_after(queue, last_id) is None:
                last_id = until_id
            found = self._finished(
                f"jobs.queue = ? AND jobs.id > ? AND jobs.id <= ?{conditions} ORDER BY jobs.id",
                (queue, after_id, last_id, *values),
                limit,
            )
            return Slice(found.jobs, found.departures, found.jobs[-1].id if len(found.jobs) == limit else last_id)

        found: Slice = await self._run_in_thread(find)
        return found

    def _first_after(self, queue: str, id_: int) -> int | None:
        """The first job of a queue behind an id, in whatever state."""
        ((first_id,),) = self._connection.execute(
            "SELECT min(id) FROM jobs WHERE queue = ? AND id > ?", (queue, id_)
        ).fetchall()
        return None if first_id is None else int(first_id)

    def _finished(self, condition: str, values: Iterable[Any], limit: int) -> Found:
        execute = self._connection.execute
        execute("BEGIN")  # both statements see one moment
        try:
            # Unary plus: the primary key is the way in, not the index of finished jobs.
            rows = execute(f"{JOBS} WHERE +kept_until IS NOT NULL AND {condition} LIMIT ?", (*values, limit))
            jobs = [job_of(row) for row in rows]
            return Found(jobs, _departures(self._connection, {job.queue for job in jobs}))
        finally:
            execute("COMMIT")

    async def overdue(self, now: float, limit: int, over: int, dead_over: int) -> Overdue:
        """Finished jobs to be forgotten at this moment of the wall clock, at most `limit` of each kind.

        Args:
            now: The moment.
            limit: Of each kind.
            over: How many concluded and cancelled jobs are too many.
            dead_over: How many dead ones are.
        """

        def find() -> Overdue:
            self._sweep_connection.execute("BEGIN")
            try:
                aged = self._first(sorted(FINISHED), limit, until=now)
                many = self._first(["dead"], min(limit, dead_over))
                many += self._first(["cancelled", "concluded"], min(limit, over))
                queues = {job.queue for job in aged + many}
                return Overdue(aged, many, _departures(self._sweep_connection, queues))
            finally:
                self._sweep_connection.execute("COMMIT")

        overdue: Overdue = await self._run_for_sweeps(find)
        return overdue

    def _first(self, states: Sequence[str], limit: int, until: float = inf) -> list[Ended]:
        """The jobs of these states whose retention ends first.

        All of them are one row: each step of a statement gives the interpreter's lock away, and has to have it back.
        """
        # Each state is in order in the index, so that SQLite merges them without sorting.
        in_order = " UNION ALL ".join(
            "SELECT queue, id, state, type, consumer, facts, kept_until FROM jobs INDEXED BY jobs_finished "  # noqa: S608 - the states are ours
            f"WHERE kept_until IS NOT NULL AND state = '{state}' AND kept_until <= ?1"
            for state in states
        )
        rows = self._sweep_connection.execute(
            "SELECT json_group_array(json_array(queue, id, state, facts ->> 'revision', type, "  # noqa: S608 - as above
            "ifnull(facts ->> 'attempts', 0), consumer, facts ->> 'reason')) "
            f"FROM ({in_order} ORDER BY kept_until LIMIT ?2)",
            (until, limit),
        )
        ((text,),) = rows.fetchall()
        return _decode_ended(text)

    async def search(self, command: Search) -> JobsFound:
        """A page of the jobs that match, in whatever state: `queries.search`, asked of the file."""
        found: JobsFound = await self._run_in_thread(lambda: self._search(command))
        return found

    def _search(self, command: Search) -> JobsFound:
        execute = self._connection.execute
        conditions, values = _conditions(command.where)
        execute("BEGIN")
        try:
            bounds = execute(
                "SELECT next_id, (SELECT min(id) FROM jobs WHERE queue = name) FROM queues WHERE name = ?",
                (command.queue,),
            ).fetchone()
            if bounds is None or bounds[1] is None:
                return JobsFound((), None)
            next_id, first_id = bounds
            if command.newest_first:
                high = next_id - 1 if command.after_id is None else min(command.after_id, next_id) - 1
                low = max(first_id, high - SCANNED_IDS_MAX + 1)
                ends_at, last, order = low, first_id, "DESC"
            else:
                low = max(first_id, (command.after_id or 0) + 1)
                high = min(next_id - 1, low + SCANNED_IDS_MAX - 1)
                ends_at, last, order = high, next_id - 1, "ASC"
            rows = execute(
                f"{JOBS} WHERE jobs.queue = ? AND jobs.id BETWEEN ? AND ?{conditions} ORDER BY jobs.id {order} LIMIT ?",
                (command.queue, low, high, *values, command.limit),
            )
            jobs = [job_of(row) for row in rows]
        finally:
            execute("COMMIT")
        if len(jobs) == command.limit:
            ends_at = jobs[-1].id
        return JobsFound(jobs, ends_at if low <= high and ends_at != last else None)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self._sweep_connection.close()


def _departures(connection: Connection, queues: set[str]) -> dict[str, int]:
    names = _json(sorted(queues))
    return dict(
        connection.execute(
            "SELECT name, departures FROM queues WHERE name IN (SELECT value FROM json_each(?))", (names,)
        ).fetchall()
    )


def _conditions(where: JobFilter) -> tuple[str, list[Any]]:
    """The filter as SQL: what `queries.matches` is in memory."""
    parts: list[str] = []
    values: list[Any] = []
    if where.states:
        parts.append("+state IN (SELECT value FROM json_each(?))")
        values.append(_json(sorted(where.states)))
    for column, wanted in (("type", where.type), ("consumer", where.consumer)):
        if wanted is not None:
            parts.append(f"{column} = ?")
            values.append(wanted)
    if where.since is not None:
        parts.append("created_at >= ?")
        values.append(where.since)
    if where.error is not None:
        parts.append(_LAST_ERROR_HAS)
        values += [where.error, where.error]
    return "".join(f" AND {part}" for part in parts), values


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
