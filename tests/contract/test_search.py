"""Reads: a job, its position, and search; on each engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Command,
    Fail,
    FailClaim,
    Forget,
    JobFilter,
    ListQueues,
    Position,
    QueueView,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Redrive,
    Release,
    Search,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    UnknownJob,
)
from queue_actor.jobs import (
    JobOptions,
    JobState,
    OnExisting,
    QueuePolicy,
)
from queue_actor.queries import SCANNED_IDS_MAX
from queue_actor.settings import Settings
from tests.contract.state import whole_state
from tests.contract.verbs import (
    boom,
    conclude,
    dequeue,
    enqueue,
    fail,
    give_policy,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


# --- reads


async def test_reading_a_job_that_never_was_or_is_forgotten_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, retention_seconds=2)) as engine:
        await conclude(engine, await lease(engine))
        await pass_time(1.9)
        assert (await read(engine, 1)).state is JobState.CONCLUDED
        await pass_time(1.2)
        forgotten: list[Command[Any]] = [ReadJob("q", 1), ReadPosition("q", 1)]
        for command in forgotten:
            await refusal(engine, command, ForgottenJob)
        unknown: list[Command[Any]] = [ReadJob("q", 2), ReadPosition("q", 2), ReadJob("unknown", 1)]
        for command in unknown:
            await refusal(engine, command, UnknownJob)


async def test_a_position_counts_the_jobs_that_go_before(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    await enqueue(engine, "high", priority=1)
    await enqueue(engine, "delayed", delay_seconds=9)
    positions = [await engine.execute(ReadPosition("q", id_)) for id_ in range(1, 6)]
    assert positions == [Position(1), Position(2), Position(3), Position(0), Position(None)]
    leases = await dequeue(engine, 2)
    assert types(leases) == ["high", "a"]
    assert await engine.execute(ReadPosition("q", 3)) == Position(1)
    await engine.execute(Release([to_release(leases[1])]))
    assert await engine.execute(ReadPosition("q", 3)) == Position(2)


async def test_a_queue_reads_as_how_many_jobs_are_in_which_state(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c", "d", "e")
    await enqueue(engine, "f", delay_seconds=9)
    first, second, _ = await dequeue(engine, 3)
    await conclude(engine, first)
    await engine.execute(Fail([FailClaim("q", 2, second.token, retry=False)]))
    await engine.execute(Cancel("q", [5]))
    view = await engine.execute(ReadQueue("q"))
    assert (view.name, view.exists, view.counts) == ("q", True, dict.fromkeys(JobState, 1))
    assert (view.paused, view.policy, view.declared, view.last_id) == (False, QueuePolicy(), False, 6)
    assert (view.oldest_age_seconds, view.consumers) == (0, {})
    done = {"enqueue": 6, "dequeue": 3, "conclude": 1, "fail": 1, "release": 0, "stale": 0, "dead": 1}
    assert view.per_minute == done
    unknown = await engine.execute(ReadQueue("unknown"))
    never = dict.fromkeys(done, 0.0)
    assert unknown == QueueView("unknown", exists=False, counts=dict.fromkeys(JobState, 0), per_minute=never)


async def test_reading_changes_nothing(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c", delay_seconds=60, ttl_seconds=60)
    await dequeue(engine, consumer="w1")
    before = whole_state(engine)
    reads: list[Command[Any]] = [
        *(ReadJob("q", id_) for id_ in (1, 2, 3)),
        *(ReadPosition("q", id_) for id_ in (1, 2, 3)),
        *(Search("q", JobFilter(), newest_first) for newest_first in (True, False)),
        Search("unknown", JobFilter()),
        ReadQueue("q"),
        ReadQueue("unknown"),
        ListQueues(),
    ]
    for command in reads:
        await engine.execute(command)
        assert whole_state(engine) == before


# --- search


async def found(engine: Engine, where: JobFilter = JobFilter(), **how: Any) -> list[int]:  # noqa: B008 - it is frozen
    """The ids of all jobs that match, in the order of the pages."""
    search = Search("q", where, **how)
    ids: list[int] = []
    for _ in range(1_000):
        page = await engine.execute(search)
        assert len(page.jobs) <= search.limit
        for job in page.jobs:
            assert job == await read(engine, job.id)
        ids += [job.id for job in page.jobs]
        if page.next_after is None:
            return ids
        search = replace(search, after_id=page.next_after)
    raise AssertionError("the pages have no end")


async def varied(engine: Engine) -> None:
    """Seven jobs that differ in all that can be asked for."""
    await enqueue(engine, "a", "b", "a")
    for leased, error in zip(
        await dequeue(engine, 3, consumer="w1"),
        [boom("no route to host", "OSError"), boom("disk full", "OSError"), boom("x", "RouteError")],
        strict=True,
    ):
        await fail(engine, leased, retry=False, error=error)
    await pass_time(10)
    await engine.execute(Redrive("q", [2]))
    await fail(engine, await lease_again(engine, consumer="w2"), retry=False, error=boom("no route", "IOError"))
    await enqueue(engine, "b", "c")
    await dequeue(engine, consumer="w2")
    await pass_time(10)
    await enqueue(engine, "a", delay_seconds=60)
    await enqueue(engine, "c")
    await engine.execute(Cancel("q", [7]))


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (JobFilter(), [1, 2, 3, 4, 5, 6, 7]),
        (JobFilter(frozenset({JobState.DEAD})), [1, 2, 3]),
        (JobFilter(frozenset({JobState.DEAD, JobState.CANCELLED})), [1, 2, 3, 7]),
        (JobFilter(frozenset({JobState.QUEUED})), [5]),
        (JobFilter(frozenset({JobState.SCHEDULED})), [6]),
        (JobFilter(frozenset({JobState.IN_PROGRESS})), [4]),
        (JobFilter(frozenset({JobState.CONCLUDED})), []),
        (JobFilter(type="a"), [1, 3, 6]),
        (JobFilter(type="A"), []),
        (JobFilter(consumer="w1"), [1, 3]),
        (JobFilter(consumer="w2"), [2, 4]),
        (JobFilter(error="route"), [1, 2]),  # in the message of the last error
        (JobFilter(error="Route"), [3]),  # in its type
        (JobFilter(error="disk"), []),  # that of 2 is not the last one any more
        (JobFilter(error=""), [1, 2, 3]),
        (JobFilter(since=EPOCH_SECONDS + 10), [4, 5, 6, 7]),
        (JobFilter(since=EPOCH_SECONDS + 10.001), [6, 7]),
        (JobFilter(since=EPOCH_SECONDS + 21), []),
        (JobFilter(frozenset({JobState.DEAD}), type="a", error="host", since=EPOCH_SECONDS), [1]),
        (JobFilter(type="b", consumer="w1"), []),
    ],
)
async def test_a_search_finds_the_jobs_for_which_all_conditions_hold(
    engine: Engine, where: JobFilter, expected: list[int], newest_first: bool
) -> None:
    await varied(engine)
    expected = expected[::-1] if newest_first else expected
    assert await found(engine, where, newest_first=newest_first) == expected
    assert await found(engine, where, newest_first=newest_first, limit=1) == expected
    assert await found(engine, where, newest_first=newest_first, limit=2) == expected


async def test_a_search_of_an_unknown_or_an_empty_queue_finds_nothing(engine: Engine) -> None:
    await give_policy(engine, "empty")
    for queue in ("unknown", "empty"):
        for newest_first in (False, True):
            page = await engine.execute(Search(queue, JobFilter(), newest_first))
            assert (list(page.jobs), page.next_after) == ([], None)


async def test_a_page_says_where_the_next_begins_only_if_there_is_more(engine: Engine) -> None:
    await enqueue(engine, *"abcd")

    async def page(**how: Any) -> tuple[list[int], int | None]:
        page = await engine.execute(Search("q", JobFilter(), **how))
        return [job.id for job in page.jobs], page.next_after

    assert await page(limit=2) == ([1, 2], 2)
    assert await page(limit=2, after_id=2) == ([3, 4], None)
    assert await page(limit=4) == ([1, 2, 3, 4], None)
    assert await page(after_id=4) == ([], None)
    assert await page(after_id=99) == ([], None)
    assert await page(newest_first=True, limit=3) == ([4, 3, 2], 2)
    assert await page(newest_first=True, limit=3, after_id=2) == ([1], None)
    assert await page(newest_first=True, after_id=1) == ([], None)
    assert await page(newest_first=True, after_id=99) == ([4, 3, 2, 1], None)


async def test_the_pages_pass_over_jobs_that_were_forgotten(engine: Engine) -> None:
    await enqueue(engine, *"abcdefghij")
    gone = [1, 2, 4, 5, 6, 9]
    await engine.execute(Cancel("q", gone))
    await engine.execute(Forget("q", gone))
    for limit in (1, 2, 3, 100):
        assert await found(engine, limit=limit) == [3, 7, 8, 10]
        assert await found(engine, limit=limit, newest_first=True) == [10, 8, 7, 3]
    # a cursor that points to a job which has been forgotten since
    assert [job.id for job in (await engine.execute(Search("q", JobFilter(), after_id=4))).jobs] == [7, 8, 10]
    search = Search("q", JobFilter(), newest_first=True, after_id=9)
    assert [job.id for job in (await engine.execute(search)).jobs] == [8, 7, 3]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_the_work_of_one_search_is_bounded_and_not_its_yield(engine: Engine, newest_first: bool) -> None:
    jobs = 2 * SCANNED_IDS_MAX + 3
    await enqueue(engine, *["a"] * (jobs - 1), "b") if not newest_first else await enqueue(
        engine, "b", *["a"] * (jobs - 1)
    )
    search, pages = Search("q", JobFilter(type="b"), newest_first), []
    while True:
        page = await engine.execute(search)
        pages.append(len(page.jobs))
        if page.next_after is None:
            break
        search = replace(search, after_id=page.next_after)
    assert pages == [0, 0, 1]


# --- positions


async def test_the_position_of_a_job_that_came_back_or_was_replaced_is_exact(engine: Engine) -> None:
    await enqueue(engine, *"abc")
    await enqueue(engine, "k", options=JobOptions(unique_key="k"))
    await enqueue(engine, *"xyz", priority=-1)
    first, second = await dequeue(engine, 2)
    await release(engine, second)
    await engine.execute(Cancel("q", [3]))
    await enqueue(engine, "k", priority=1, options=JobOptions(unique_key="k"), on_existing=OnExisting.REPLACE)
    await release(engine, first)
    order = [leased.job.id for leased in await dequeue(engine, 9)]
    assert order == [4, 1, 2, 5, 6, 7]
    await engine.execute(Bulk("q", BulkVerb.RELEASE, JobFilter()))
    assert [(await engine.execute(ReadPosition("q", id_))).ahead for id_ in order] == [0, 1, 2, 3, 4, 5]
