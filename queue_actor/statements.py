"""What a batch of changes writes, as statements: plain data, made without touching the file.

Statements are few and wide, many rows each. Every step of a statement gives up the interpreter's lock and waits to
have it back, which beside a busy event loop costs more than the step itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import msgspec

from queue_actor.changes import AnswerRecord, Changes, QueueRecord
from queue_actor.jobs import Change, Job
from queue_actor.rows import ANSWER_COLUMNS, JOB_COLUMNS, QUEUE_COLUMNS, answer_row, job_row, queue_row

Statement = tuple[str, Sequence[Any]]
"""A statement and its parameters."""

ROWS_A_STATEMENT: Final = (1_000, 500, 200, 100, 50, 20, 10, 5, 2, 1)
"""Rows that one statement writes: so few lengths that all statements stay prepared."""

INLINE_CHARACTERS_MAX: Final = 1_000
"""Longest payload that is kept in its job's row, and written again with it at each transition."""

COMMIT_BYTES: Final = 16 * 1024
"""What a commit is taken to write beside the rows: the log has whole pages, one at least of each table and index."""

JOB_ROW_BYTES: Final = 1_000
"""What a job's row is taken to write: itself, and its share of the pages it changes."""

RANGE_IDS_MIN: Final = 100
"""Ids in a row that a statement of their own deletes: six times cheaper a row, but a statement more to wait for."""

JobKey = tuple[str, int]


def plan(changes: Changes) -> tuple[list[Statement], int]:
    """The statements of one commit, in order, and about how many bytes of the log they take."""
    written, log_bytes = _jobs(changes)
    return [*written, *_queues(changes), *_answers(changes.answers)], COMMIT_BYTES + log_bytes


def _jobs(changes: Changes) -> tuple[list[Statement], int]:
    """Write the last version of each job; its payload only if that is new, for it hardly ever changes."""
    last, paid, large = _last_versions(changes.jobs, changes.pruned)
    gone: list[JobKey] = []
    bare: list[Any] = []  # the values of all rows, one row after the other
    inline: list[Any] = []
    large_payloads: list[Any] = []
    log_bytes = JOB_ROW_BYTES * len(last)
    for key, job in last.items():
        if job is None:
            gone.append(key)
        elif key not in paid:
            bare += job_row(job)
        else:
            # A large payload has a row of its own, which later versions leave alone.
            text = None if job.payload is None else job.payload.decode()
            if text is not None and len(text) > INLINE_CHARACTERS_MAX:
                large_payloads += (*key, text)
                log_bytes += len(text)
                text = None
            inline += job_row(job)
            inline.append(text)
    statements = [
        *_delete("jobs", gone),
        *_delete("large_payloads", large),
        *_upsert("jobs", JOB_COLUMNS, bare, keys=2),
        *_upsert("jobs", (*JOB_COLUMNS, "payload"), inline, keys=2),
        *_upsert("large_payloads", ("queue", "id", "payload"), large_payloads, keys=2),
    ]
    return statements, log_bytes


def _last_versions(
    changes: Iterable[Change], pruned: Iterable[JobKey]
) -> tuple[dict[JobKey, Job | None], set[JobKey], set[JobKey]]:
    """What each job is in the end (None: gone), whose payload is new, and who may have had a large one before."""
    last: dict[JobKey, Job | None] = dict.fromkeys(pruned)
    paid: set[JobKey] = set()
    large: set[JobKey] = set(pruned)
    for change in changes:
        before, after = change.before, change.after
        job = after or before
        assert job is not None  # noqa: S101 - for the type checker: a change has one of them
        key = (job.queue, job.id)
        last[key] = after
        payload = None if before is None else before.payload
        if after is None or before is None or after.payload is not payload:
            paid.add(key)
            if payload is not None and len(payload) > INLINE_CHARACTERS_MAX:
                large.add(key)
    return last, paid, large


def _queues(changes: Changes) -> Iterator[Statement]:
    there = [queue_row(queue, changes.revision) for queue in changes.queues.values() if queue is not None]
    yield from _upsert("queues", QUEUE_COLUMNS, list(chain.from_iterable(there)), keys=1)
    yield from _gone_queues(changes.queues)
    if changes.floors is not None:
        floors = {"id_floor": changes.floors.id, "fence_floor": changes.floors.fence, "revision": changes.revision}
        yield from _upsert("meta", ("name", "value"), list(chain.from_iterable(floors.items())), keys=1)


def _gone_queues(queues: Mapping[str, QueueRecord | None]) -> Iterator[Statement]:
    for name, queue in queues.items():
        if queue is None:
            yield "DELETE FROM queues WHERE name = ?", (name,)


def _answers(answers: Sequence[AnswerRecord]) -> Iterator[Statement]:
    remembered = [answer_row(record) for record in answers if record.answer is not None]
    yield from _upsert("answers", ANSWER_COLUMNS, list(chain.from_iterable(remembered)), keys=3)
    for record in answers:
        if record.answer is None:
            key = (record.kind, record.scope, record.key)
            yield "DELETE FROM answers WHERE kind = ? AND scope = ? AND key = ?", key


def _upsert(table: str, columns: tuple[str, ...], values: list[Any], *, keys: int) -> Iterator[Statement]:
    """Write rows whose values follow one another."""
    width = len(columns)
    start, rows = 0, len(values) // width
    while rows:
        count = next(length for length in ROWS_A_STATEMENT if length <= rows)
        yield upsert_statement(table, columns, count, keys), values[start : start + count * width]
        start += count * width
        rows -= count


def _delete(table: str, keys: Iterable[JobKey]) -> Iterator[Statement]:
    """Delete rows: where many have ids in a row, as jobs have that go as they came, by their first and last id."""
    single: list[JobKey] = []
    for run in _runs(keys):
        if len(run) >= RANGE_IDS_MIN:
            (queue, first), (_, last) = run[0], run[-1]
            yield f"DELETE FROM {table} WHERE queue = ? AND id BETWEEN ? AND ?", (queue, first, last)  # noqa: S608 - the table is one of ours
        else:
            single += run
    if single:
        yield (
            f"DELETE FROM {table} WHERE (queue, id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))",  # noqa: S608 - as above
            (msgspec.json.encode(single).decode(),),
        )


def _runs(keys: Iterable[JobKey]) -> Iterator[list[JobKey]]:
    """Keys of one queue whose ids follow one another."""
    ordered = sorted(keys)
    start = 0
    for n, (queue, id_) in enumerate(ordered, 1):
        if n == len(ordered) or ordered[n] != (queue, id_ + 1):
            yield ordered[start:n]
            start = n


@cache  # of each table a few, by ROWS_A_STATEMENT
def upsert_statement(table: str, columns: tuple[str, ...], count: int, keys: int) -> str:
    """Writes so many rows at once, in place of those with the same first columns."""
    row = "(" + ", ".join("?" * len(columns)) + ")"
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns[keys:])
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * count)} "  # noqa: S608 - our own names
        f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {updates}"
    )
