"""Queues: their policies and figures, paused, declared and deleted; on each engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Claim,
    Conclude,
    DeleteQueue,
    Dequeue,
    Enqueue,
    Extend,
    Forget,
    JobFilter,
    ListQueues,
    NewJob,
    Pause,
    Position,
    QueueView,
    ReadJob,
    ReadPosition,
    RunNow,
    SetPolicy,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    LeaseLost,
    QueueNotEmpty,
    RunTooLong,
    TooManyQueues,
    UniqueKeyTaken,
    UnknownJob,
    UnknownQueue,
)
from queue_actor.jobs import (
    DeathReason,
    Jitter,
    JobOptions,
    JobState,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
)
from queue_actor.queues import METERED
from queue_actor.settings import Settings
from tests.contract.state import machine_of
from tests.contract.verbs import (
    AT_ONCE,
    HOUR_SECONDS,
    conclude,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    key,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    shown,
    to_extend,
    types,
    view,
)
from tests.fakes import EPOCH_SECONDS, FakeClock
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


# --- figures


async def test_the_rate_of_enqueues_counts_the_jobs_that_were_added_and_no_others(engine: Engine) -> None:
    options = JobOptions(unique_key="k")
    await enqueue(engine, "a", options=options)
    assert (await enqueue(engine, "b", options=options))[0].existing
    refusing = NewJob("c", options=options, on_existing=OnExisting.REFUSE)
    await refusal(engine, Enqueue("q", [refusing]), UniqueKeyTaken)
    await engine.execute(Enqueue("q", [refusing, NewJob("d"), refusing]))
    assert (await view(engine)).per_minute["enqueue"] == 2


async def test_a_queue_that_does_not_exist_reads_as_an_empty_one(engine: Engine) -> None:
    nothing, never = dict.fromkeys(JobState, 0), dict.fromkeys(METERED, 0.0)
    unknown = QueueView("unknown", exists=False, counts=nothing, per_minute=never)
    assert await view(engine, "unknown") == unknown
    first = QueuePolicy(max_attempts=None, max_stale=None)  # what it will have when it is made
    assert await view(engine, "default") == replace(unknown, name="default", policy=first)


async def test_rates_are_of_the_last_minute(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE, max_attempts=None, max_stale=None)
    await enqueue(engine, *"abcdef")
    done, failed, killed, released, stale, _ = await dequeue(engine, 6)
    await conclude(engine, done)
    await fail(engine, failed)
    await fail(engine, killed, retry=False)
    await release(engine, released)
    await extend(engine, stale, 1)
    await pass_time(1.001)
    assert (await view(engine)).per_minute == {
        "enqueue": 6,
        "dequeue": 6,
        "conclude": 1,
        "fail": 2,
        "release": 1,
        "stale": 1,
        "dead": 1,
    }
    await pass_time(150)
    assert set((await view(engine)).per_minute.values()) == {0}


async def test_the_oldest_age_is_of_the_job_that_has_been_ready_longest(engine: Engine) -> None:
    async def age() -> float | None:
        return (await view(engine)).oldest_age_seconds

    await enqueue(engine, "later", delay_seconds=10)
    await enqueue(engine, "high", priority=1)
    await pass_time(3)
    await enqueue(engine, "low", priority=-1)
    await pass_time(4)
    assert await age() == 7
    (high,) = await dequeue(engine)
    assert await age() == 4
    await release(engine, high)
    assert await age() == 7
    await dequeue(engine, 2)
    assert await age() is None
    await pass_time(4)
    assert await age() == pytest.approx(1, abs=0.01)  # since it was due, not since it was sent


async def test_consumers_are_seen_for_ten_minutes_after_they_asked(settings: Settings) -> None:
    async with open_engine(replace(settings, sweep_seconds=60)) as engine:
        await enqueue(engine, "a")
        await dequeue(engine, consumer="w1")
        await pass_time(200)
        await dequeue(engine, consumer="w2")
        await dequeue(engine)
        assert (await view(engine)).consumers == {"w1": 200, "w2": 0}
        await pass_time(350)
        await dequeue(engine, consumer="w1", queue=("other", "q"))
        await pass_time(200)
        assert (await view(engine)).consumers == {"w2": 550, "w1": 200}
        await pass_time(51)
        assert (await view(engine)).consumers == {"w1": 251}
        assert (await view(engine, "other")).consumers == {}


async def test_queues_are_listed_by_name_in_pages(engine: Engine) -> None:
    for queue in ("t:b", "other", "t:a", "t:c", "t"):
        await enqueue(engine, "a", queue=queue)

    async def listed(**which: Any) -> tuple[list[str], str | None]:
        found = await engine.execute(ListQueues(**which))
        for each in found.queues:
            assert each == await view(engine, each.name)
        return [each.name for each in found.queues], found.next_after

    assert await listed() == (["other", "t", "t:a", "t:b", "t:c"], None)
    assert await listed(limit=2) == (["other", "t"], "t")
    assert await listed(limit=2, after="t") == (["t:a", "t:b"], "t:b")
    assert await listed(limit=2, after="t:b") == (["t:c"], None)
    assert await listed(prefix="t:") == (["t:a", "t:b", "t:c"], None)
    assert await listed(prefix="t:", after="t:a", limit=1) == (["t:b"], "t:b")
    assert await listed(prefix="none") == ([], None)
    assert await listed(after="z") == ([], None)


# --- policies


async def test_a_policy_makes_the_queue_and_declares_it(engine: Engine) -> None:
    policy = QueuePolicy(max_attempts=3, lease_seconds=7)
    given = await engine.execute(SetPolicy("q", policy))
    assert (given.exists, given.declared, given.policy, given.last_id) == (True, True, policy, 0)
    assert await view(engine) == given
    await enqueue(engine, "a", queue="other")
    assert not (await view(engine, "other")).declared


async def test_queues_have_a_policy_until_they_are_given_another(engine: Engine) -> None:
    await enqueue(engine, "a")
    await enqueue(engine, "a", queue="default")
    assert (await view(engine)).policy == QueuePolicy(max_attempts=25, max_stale=5)
    assert (await view(engine, "default")).policy == QueuePolicy(max_attempts=None, max_stale=None)


async def test_one_more_queue_than_queues_max_is_not_declared(settings: Settings) -> None:
    async with open_engine(replace(settings, queues_max=2)) as engine:
        await give_policy(engine, "one")
        await enqueue(engine, "a", queue="two")
        assert (await refusal(engine, SetPolicy("three", QueuePolicy()), TooManyQueues)).field == "queue"
        await give_policy(engine, "two")
        await engine.execute(DeleteQueue("one"))
        await give_policy(engine, "three")


async def test_a_policy_holds_at_once_for_jobs_that_are_there(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE)
    await enqueue(engine, "a", "b", "c")
    first, second, third = await dequeue(engine, 3)
    await give_policy(engine, max_attempts=1)
    assert (await fail(engine, first)).state is JobState.DEAD
    await give_policy(engine, retry=Retry(RetryKind.FIXED, base_seconds=9, jitter=Jitter.NONE))
    assert (await fail(engine, second)).not_before == EPOCH_SECONDS + 9
    await give_policy(engine, max_stale=1)
    await extend(engine, third, 1)
    await pass_time(1.001)
    assert (await read(engine, 3)).reason is DeathReason.STALE
    await give_policy(engine, ttl_seconds=5)
    await enqueue(engine, "d")
    await give_policy(engine)
    await enqueue(engine, "e")
    assert [(await read(engine, id_)).expires_at for id_ in (4, 5)] == [
        pytest.approx(EPOCH_SECONDS + 6, abs=0.01),
        None,
    ]


async def test_an_attempt_that_has_begun_may_last_as_long_as_the_policy_of_its_beginning_says(engine: Engine) -> None:
    await give_policy(engine, run_seconds_max=10)
    leased = await lease(engine)
    await pass_time(4)
    for limit in (20, None):
        await give_policy(engine, run_seconds_max=limit)
        assert "6 s more" in str(await refusal(engine, Extend([to_extend(leased, 7)]), RunTooLong))
    await release(engine, leased)
    again = await lease_again(engine)
    await give_policy(engine, run_seconds_max=1)
    await extend(engine, again, 1_000)


# --- pause


async def test_a_queue_says_that_it_is_paused_until_it_is_resumed(engine: Engine) -> None:
    await enqueue(engine, "a")
    for paused in (True, True, False, False):
        assert (await engine.execute(Pause("q", paused))).paused is paused
        assert (await view(engine)).paused is paused
    assert types(await dequeue(engine)) == ["a"]


async def test_an_unknown_queue_is_not_paused(engine: Engine) -> None:
    for paused in (True, False):
        assert (await refusal(engine, Pause("unknown", paused), UnknownQueue)).field == "queue"


# --- delete


async def test_a_queue_without_jobs_is_deleted_with_all_that_was_said_of_it(engine: Engine) -> None:
    await give_policy(engine, lease_seconds=7)
    await engine.execute(Pause("q", paused=True))
    deleted = await engine.execute(DeleteQueue("q"))
    assert deleted == await view(engine)
    assert (deleted.exists, deleted.paused, deleted.policy) == (False, False, QueuePolicy())
    assert (await engine.execute(ListQueues())).queues == []
    assert await dequeue(engine, queue="*") == []
    assert (await refusal(engine, DeleteQueue("q"), UnknownQueue)).field == "queue"
    leased = await lease(engine)
    assert (leased.job.lease_seconds, (await view(engine)).declared) == (300, False)


async def test_a_queue_with_a_job_in_whatever_state_is_not_deleted(engine: Engine) -> None:
    async def not_empty() -> None:
        assert (await refusal(engine, DeleteQueue("q"), QueueNotEmpty)).field == "queue"

    await enqueue(engine, "a", delay_seconds=60)
    await not_empty()
    await engine.execute(RunNow("q", [1]))
    await not_empty()
    leased = await lease_again(engine)
    await not_empty()
    await conclude(engine, leased)
    await not_empty()
    await engine.execute(Forget("q", [1]))
    await engine.execute(DeleteQueue("q"))


async def test_ids_and_fences_are_never_given_again_when_a_queue_is_deleted(engine: Engine, clock: FakeClock) -> None:
    await enqueue(engine, "a", "b", "c")
    before = await dequeue(engine, 3)
    await engine.execute(Conclude([shown(leased) for leased in before]))
    await engine.execute(Forget("q", [1, 2, 3]))
    await engine.execute(DeleteQueue("q"))
    await refusal(engine, ReadJob("q", 3), UnknownJob)
    clock.wall_ahead_seconds -= HOUR_SECONDS
    assert [job.id for job in await enqueue(engine, "d")] == [4]
    after = await lease_again(engine)
    assert after.job.fence > before[-1].job.fence
    for id_ in (1, 2, 3):
        await refusal(engine, ReadJob("q", id_), ForgottenJob)
    for leased in before:
        await refusal(engine, Conclude([Claim("q", 4, leased.token)]), LeaseLost)
        await refusal(engine, Conclude([shown(leased)]), ForgottenJob)
    assert await engine.execute(ReadPosition("q", 4)) == Position(None)


async def test_a_remembered_answer_does_not_speak_of_a_deleted_queues_successor(engine: Engine) -> None:
    await enqueue(engine, "a")
    command = Dequeue("q", key=key())
    (leased,) = (await engine.execute(command)).leases
    await conclude(engine, leased)
    await engine.execute(Forget("q", [1]))
    await engine.execute(DeleteQueue("q"))
    assert (await engine.execute(command)).leases == []
    await enqueue(engine, "b")
    assert (await engine.execute(command)).leases == []


async def test_queues_that_come_and_go_leave_nothing_behind(engine: Engine) -> None:
    async def comes_and_goes(name: str) -> None:
        await conclude(engine, await lease(engine, queue=name))
        await engine.execute(Bulk(name, BulkVerb.PURGE, JobFilter()))
        await engine.execute(DeleteQueue(name))

    await comes_and_goes("first")
    ledger = machine_of(engine)._ledger
    sizes = [len(value) for value in vars(ledger).values() if hasattr(value, "__len__")]
    for n in range(50):
        await comes_and_goes(f"q{n}")
    assert sizes == [len(value) for value in vars(ledger).values() if hasattr(value, "__len__")]


# --- declared


async def test_where_queues_must_be_declared_an_enqueue_makes_none_but_default(settings: Settings) -> None:
    async with open_engine(replace(settings, queues="declared")) as engine:
        refused = await refusal(engine, Enqueue("q", [NewJob("a")]), UnknownQueue)
        assert refused.field == "queue"
        await enqueue(engine, "a", queue="default")
        await give_policy(engine)
        await enqueue(engine, "a")
        assert types(await dequeue(engine)) == ["a"]
        await conclude(engine, (await dequeue(engine, queue="default"))[0])
        await engine.execute(Forget("default", [1]))
        await engine.execute(DeleteQueue("default"))
        await enqueue(engine, "a", queue="default")
