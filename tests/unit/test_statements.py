"""What a commit writes: each job once, as it is in the end, in few wide statements."""

import sqlite3

from msgspec.structs import replace

from queue_actor.changes import Changes
from queue_actor.jobs import Change, Job, JobState
from queue_actor.rows import JOB_COLUMNS
from queue_actor.schema import prepare
from queue_actor.statements import (
    INLINE_CHARACTERS_MAX,
    JOB_ROW_BYTES,
    RANGE_IDS_MIN,
    ROWS_A_STATEMENT,
    Statement,
    plan,
)

LARGE = b'"' + b"x" * INLINE_CHARACTERS_MAX + b'"'


def job(id_: int, payload: bytes | None = b"1") -> Job:
    return Job(queue="q", id=id_, type="t", payload=payload, state=JobState.QUEUED, created_at=1.0, revision=id_)


def statements(*changes: tuple[Job | None, Job | None]) -> list[Statement]:
    noted = [Change(n, before, after) for n, (before, after) in enumerate(changes, 1)]
    return plan(Changes(revision=len(noted), jobs=noted))[0]


def heads(planned: list[Statement]) -> list[str]:
    return [" ".join(statement.split()[:3]) for statement, _ in planned]


def test_a_job_that_changed_twice_is_written_once_as_it_is_in_the_end() -> None:
    new = job(1)
    later = replace(new, state=JobState.IN_PROGRESS, revision=2)
    ((_, values),) = statements((None, new), (new, later))
    assert values[JOB_COLUMNS.index("state")] == "in_progress"
    assert len(values) == len(JOB_COLUMNS) + 1  # one row, with its payload, which was new in this commit


def test_a_payload_that_was_written_is_not_written_again() -> None:
    old = job(1)
    ((_, values),) = statements((old, replace(old, state=JobState.IN_PROGRESS, revision=2)))
    assert len(values) == len(JOB_COLUMNS)


def test_a_large_payload_has_a_row_of_its_own_and_goes_with_its_job() -> None:
    large = job(1, LARGE)
    planned = statements((None, large))
    assert heads(planned) == ["INSERT INTO jobs", "INSERT INTO large_payloads"]
    assert planned[0][1][-1] is None
    assert planned[1][1] == ["q", 1, LARGE.decode()]
    assert heads(statements((large, None))) == ["DELETE FROM jobs", "DELETE FROM large_payloads"]
    # One that is replaced by a small one leaves nothing behind.
    assert heads(statements((large, job(1)))) == ["DELETE FROM large_payloads", "INSERT INTO jobs"]


def test_many_jobs_are_few_statements_of_lengths_that_stay_prepared() -> None:
    planned = statements(*((None, job(n)) for n in range(1, 1_777)))
    lengths = [len(values) // (len(JOB_COLUMNS) + 1) for _, values in planned]
    assert lengths == [1_000, 500, 200, 50, 20, 5, 1]
    assert set(lengths) <= set(ROWS_A_STATEMENT)
    assert sum(lengths) == 1_776


def test_only_the_jobs_that_are_gone_are_deleted_those_with_ids_in_a_row_by_their_first_and_last() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection, b"secret", "instance")
    jobs = [replace(job(id_), queue=queue) for queue in ("q", "r") for id_ in range(1, 300)]
    for statement, values in statements(*((None, each) for each in jobs)):
        connection.execute(statement, values)
    # A run that is long enough and one that is not, one that ends where another queue's begins, and two by themselves.
    gone = [("q", id_) for id_ in (*range(20, 20 + RANGE_IDS_MIN), *range(150, 149 + RANGE_IDS_MIN), 299)]
    gone += [("r", id_) for id_ in (1, 7)]
    gone.sort(key=lambda key: key[1] * 7 % 10)  # in no order
    planned, _ = plan(Changes(revision=1, pruned=gone))
    assert [values[:3] for _, values in planned if len(values) > 1] == [("q", 20, 19 + RANGE_IDS_MIN)] * 2
    for statement, values in planned:
        connection.execute(statement, values)
    left = connection.execute("SELECT queue, id FROM jobs").fetchall()
    connection.close()
    assert set(left) == {(each.queue, each.id) for each in jobs} - set(gone)


def test_what_a_commit_takes_of_the_log_grows_with_its_rows_and_its_large_payloads() -> None:
    def log_bytes(*jobs: Job) -> int:
        return plan(Changes(revision=1, jobs=[Change(one.id, None, one) for one in jobs]))[1]

    assert log_bytes(job(1), job(2)) - log_bytes(job(1)) == JOB_ROW_BYTES
    assert log_bytes(job(1, LARGE)) - log_bytes(job(1)) == len(LARGE)
