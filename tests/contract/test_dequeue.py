"""Dequeue: which jobs are handed out, in which order, and under which leases; on each engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Cancel,
    Dequeue,
    DequeueOrder,
    Enqueue,
    Lease,
    NewJob,
    Pause,
    ReadQueue,
    Redrive,
    Release,
    TakeBack,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    KeyReused,
)
from queue_actor.jobs import (
    JobOptions,
    JobState,
)
from queue_actor.settings import Settings
from tests.contract.state import whole_state
from tests.contract.verbs import (
    AT_ONCE,
    FENCE,
    conclude,
    counts,
    dequeue,
    enqueue,
    extend,
    fail,
    give_policy,
    ids,
    key,
    lease,
    pass_time,
    read,
    refusal,
    release,
    to_release,
    types,
    view,
)
from tests.fakes import EPOCH_SECONDS
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


# --- dequeue


async def test_jobs_are_handed_out_in_the_order_in_which_they_came(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await enqueue(engine, "c")
    assert types(await dequeue(engine)) == ["a"]
    assert types(await dequeue(engine, 5)) == ["b", "c"]
    assert await dequeue(engine) == []


async def test_the_highest_priority_goes_first_and_in_it_the_oldest(engine: Engine) -> None:
    await enqueue(engine, "normal", "normal too")
    await enqueue(engine, "low", priority=-1)
    await enqueue(engine, "high", "high too", priority=7)
    assert types(await dequeue(engine, 9)) == ["high", "high too", "normal", "normal too", "low"]


async def test_a_lease_names_its_holder_its_length_and_a_fence(engine: Engine) -> None:
    await pass_time(1)
    await enqueue(engine, "a")
    await pass_time(1)
    (leased,) = await dequeue(engine, consumer="w1", lease_seconds=2.5)
    job = leased.job
    assert (job.state, job.attempts, job.consumer, job.lease_seconds) == (JobState.IN_PROGRESS, 1, "w1", 2.5)
    assert (job.started_at, job.lease_expires_at) == (EPOCH_SECONDS + 2, EPOCH_SECONDS + 4.5)
    assert job.fence == FENCE + 1_000_000
    assert await read(engine, 1) == job


async def test_a_lease_without_a_length_has_the_default_one(engine: Engine) -> None:
    assert (await lease(engine)).job.lease_seconds == 300


async def test_fences_rise_with_each_lease_of_a_queue(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    fences = []
    for _ in range(4):
        leases = await dequeue(engine, 2)
        fences += [leased.job.fence for leased in leases]
        await engine.execute(Release([to_release(leased) for leased in leases]))
    assert fences == list(range(FENCE, FENCE + 8))


async def test_an_unknown_queue_is_empty_and_a_dequeue_does_not_make_it(engine: Engine) -> None:
    assert await dequeue(engine, queue="unknown") == []
    assert await dequeue(engine, queue="unknown", wait_seconds=1) == []
    assert not (await engine.execute(ReadQueue("unknown"))).exists


async def test_a_dequeue_of_many_stops_at_the_bytes_of_a_reply_but_gives_one_job(settings: Settings) -> None:
    async with open_engine(replace(settings, reply_bytes_max=1_024)) as engine:
        await enqueue(engine, "a", "b", "c", payload=b"0" * 600)
        await enqueue(engine, "big", payload=b"0" * 5_000)
        assert types(await dequeue(engine, 9)) == ["a"]
        await enqueue(engine, "small", payload=b"0" * 424, priority=1)
        assert types(await dequeue(engine, 9)) == ["small", "b"]
        assert types(await dequeue(engine, 9)) == ["c"]
        assert types(await dequeue(engine, 9)) == ["big"]


async def test_the_length_of_a_lease_is_the_commands_or_the_jobs_or_the_queues_or_the_servers(engine: Engine) -> None:
    async def length(new: NewJob, **options: Any) -> float:
        leased = await lease(engine, new, **options)
        await conclude(engine, leased)
        return leased.job.lease_seconds

    plain, own = NewJob("a"), NewJob("a", options=JobOptions(lease_seconds=50))
    assert await length(plain) == 300
    assert await length(own) == 50
    await give_policy(engine, lease_seconds=40)
    assert await length(plain) == 40
    assert await length(own) == 50
    assert await length(plain, lease_seconds=60) == 60
    assert await length(own, lease_seconds=60) == 60


# --- several queues


async def fill(engine: Engine, **types_of: str) -> None:
    """Queues with a job for each letter."""
    for queue, letters in types_of.items():
        await enqueue(engine, *letters, queue=queue)


async def test_several_queues_are_served_in_the_order_in_which_they_are_named(engine: Engine) -> None:
    await fill(engine, one="abc", two="de", three="f")
    names = ("two", "unknown", "three", "one")
    assert types(await dequeue(engine, 2, queue=names)) == ["d", "e"]
    assert types(await dequeue(engine, 3, queue=names)) == ["f", "a", "b"]
    assert types(await dequeue(engine, 3, queue=names)) == ["c"]
    assert await dequeue(engine, 3, queue=names) == []
    assert not (await view(engine, "unknown")).exists


async def test_a_queue_that_is_named_twice_gives_each_of_its_jobs_once(engine: Engine) -> None:
    await fill(engine, one="abc")
    assert types(await dequeue(engine, 9, queue=("one", "one"))) == ["a", "b", "c"]


async def test_no_queue_at_all_has_no_jobs(engine: Engine) -> None:
    await fill(engine, one="a")
    assert await dequeue(engine, queue=()) == []


async def test_a_prefix_means_all_queues_whose_names_begin_with_it_by_name(engine: Engine) -> None:
    for queue, type_ in (("t:b", "b"), ("t:a", "a"), ("t", "t"), ("other", "o"), ("t:", "c")):
        await enqueue(engine, type_, queue=queue)
    assert types(await dequeue(engine, 9, queue="t:*")) == ["c", "a", "b"]
    await enqueue(engine, "new", queue="t:0")
    assert types(await dequeue(engine, 1, queue="t:*")) == ["new"]
    assert await dequeue(engine, 9, queue="none*") == []
    assert types(await dequeue(engine, 9, queue="*")) == ["o", "t"]


async def test_a_prefix_finds_jobs_that_came_back(engine: Engine) -> None:
    async def again() -> Lease:
        (leased,) = await dequeue(engine, queue="t*")
        assert await dequeue(engine, queue="t*") == []  # and forgets that the queue had jobs
        return leased

    await give_policy(engine, "t", retry=AT_ONCE)
    await enqueue(engine, "a", queue="t")
    await release(engine, await again())
    await fail(engine, await again())
    await release(engine, await again(), 1)
    await pass_time(1.001)
    await again()
    await engine.execute(TakeBack("t", [1]))
    await again()
    await engine.execute(Cancel("t", [1]))
    await engine.execute(TakeBack("t", [1]))
    await engine.execute(Redrive("t", [1]))
    (leased,) = await dequeue(engine, queue="t*", lease_seconds=1)
    assert await dequeue(engine, queue="t*") == []
    await pass_time(1.001)
    (leased,) = await dequeue(engine, queue="t*")
    assert leased.job.attempts == 7


async def test_the_fair_order_begins_with_the_queue_that_was_served_least_recently(engine: Engine) -> None:
    await fill(engine, one="abcd", two="ef", three="ghi")
    names = ("one", "two", "three")
    assert types(await dequeue(engine, queue="one")) == ["a"]

    async def next_one() -> str:
        (type_,) = types(await dequeue(engine, queue=names, order=DequeueOrder.FAIR))
        return type_

    assert [await next_one() for _ in range(4)] == ["e", "g", "b", "f"]
    assert types(await dequeue(engine, queue="three")) == ["h"]
    assert [await next_one() for _ in range(3)] == ["c", "i", "d"]
    assert await dequeue(engine, queue=names, order=DequeueOrder.FAIR) == []


async def test_the_fair_order_takes_one_job_of_each_queue_in_turn(engine: Engine) -> None:
    await fill(engine, one="abcd", two="e", three="fg")
    names = ("one", "two", "three")
    assert types(await dequeue(engine, 5, queue=names, order=DequeueOrder.FAIR)) == ["a", "e", "f", "b", "g"]
    await fill(engine, two="hi")
    # `two` was served before all others
    assert types(await dequeue(engine, 9, queue=names, order=DequeueOrder.FAIR)) == ["h", "c", "i", "d"]


async def test_the_fair_order_holds_for_a_prefix_too(engine: Engine) -> None:
    for queue in ("t1", "t2", "t3"):
        await enqueue(engine, queue, queue, queue=queue)
    await dequeue(engine, queue="t1")
    assert types(await dequeue(engine, 2, queue="t*", order=DequeueOrder.FAIR)) == ["t2", "t3"]
    assert types(await dequeue(engine, 2, queue="t*", order=DequeueOrder.FAIR)) == ["t1", "t2"]


@pytest.mark.parametrize("order", list(DequeueOrder))
async def test_the_bytes_of_a_reply_are_counted_over_all_queues(settings: Settings, order: DequeueOrder) -> None:
    async with open_engine(replace(settings, reply_bytes_max=1_024)) as engine:
        for queue in ("one", "two", "three"):
            await enqueue(engine, queue, payload=b"0" * 500, queue=queue)
        names = ("one", "two", "three")
        assert types(await dequeue(engine, 9, queue=names, order=order)) == ["one", "two"]
        assert types(await dequeue(engine, 9, queue=names, order=order)) == ["three"]


# --- what a queue may hand out


async def test_a_paused_queue_hands_out_nothing_and_does_everything_else(engine: Engine) -> None:
    leased = await lease(engine)
    await engine.execute(Pause("q", paused=True))
    await enqueue(engine, "b")
    await enqueue(engine, "c", delay_seconds=1)
    for queue in ("q", "q*", ("q", "other")):
        assert await dequeue(engine, queue=queue) == []
    await extend(engine, leased)
    await conclude(engine, leased)
    await pass_time(1.001)
    assert await counts(engine) == {"queued": 2, "concluded": 1}
    await enqueue(engine, "o", queue="other")
    assert types(await dequeue(engine, queue=("q", "other"))) == ["o"]
    await engine.execute(Pause("q", paused=False))
    assert types(await dequeue(engine, 9, queue="q*")) == ["b", "c"]


async def test_no_more_jobs_are_in_progress_than_the_policy_allows(engine: Engine) -> None:
    await give_policy(engine, in_progress_max=2)
    await enqueue(engine, "a", "b", "c", "d")
    first, second = await dequeue(engine, 9)
    assert await dequeue(engine) == []
    assert await dequeue(engine, queue=("q",)) == []
    await conclude(engine, first)
    assert types(await dequeue(engine, 9)) == ["c"]
    await release(engine, second)
    assert types(await dequeue(engine, 9)) == ["b"]
    await give_policy(engine, in_progress_max=1)
    assert await dequeue(engine, 9) == []
    await give_policy(engine)
    assert types(await dequeue(engine, 9)) == ["d"]


async def test_one_in_progress_at_a_time_is_strict_order_even_when_a_job_comes_back(engine: Engine) -> None:
    await give_policy(engine, in_progress_max=1)
    await enqueue(engine, "a", "b")
    await dequeue(engine, lease_seconds=1)
    await pass_time(1.001)
    (again,) = await dequeue(engine, 2)
    assert again.job.type == "a"
    await conclude(engine, again)
    assert types(await dequeue(engine, 2)) == ["b"]


async def test_each_nth_lease_is_of_the_oldest_job_whatever_its_priority(engine: Engine) -> None:
    await give_policy(engine, oldest_every=3)
    await enqueue(engine, "low", "low too", priority=-5)
    await enqueue(engine, *"abcdef", priority=5)
    assert types(await dequeue(engine, 4)) == ["a", "b", "low", "c"]
    assert types(await dequeue(engine)) == ["d"]
    assert types(await dequeue(engine, 9)) == ["low too", "e", "f"]


async def test_without_it_a_low_priority_waits_for_all_others(engine: Engine) -> None:
    await enqueue(engine, "low", priority=-5)
    await enqueue(engine, *"abcdefgh", priority=5)
    assert types(await dequeue(engine, 9))[-1] == "low"


# --- idempotency keys


async def test_a_repeat_under_a_key_has_the_same_leases(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    command = Dequeue("q", 2, consumer="w1", key=key())
    first = await engine.execute(command)
    before = whole_state(engine)
    assert await engine.execute(command) == replace(first, repeated=True)
    assert whole_state(engine) == before
    assert types(first.leases) == ["a", "b"]
    await conclude(engine, first.leases[0])


async def test_of_the_leases_of_the_first_answer_only_those_are_repeated_that_still_hold(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE)
    await enqueue(engine, *"abcdefg")
    command = Dequeue("q", 7, key=key())
    concluded, released, failed, extended, taken, stale, cancelled = (await engine.execute(command)).leases
    await conclude(engine, concluded)
    await release(engine, released)
    await fail(engine, failed)
    await extend(engine, extended, 900)
    await engine.execute(TakeBack("q", [taken.job.id]))
    await extend(engine, stale, 1)
    await engine.execute(Cancel("q", [cancelled.job.id]))
    await pass_time(1.001)
    assert ids(await dequeue(engine, 9)) == [2, 5, 6, 3]  # these have other leases now
    again = (await engine.execute(command)).leases
    assert ids(again) == [extended.job.id, cancelled.job.id]
    assert [leased.token for leased in again] == [extended.token, cancelled.token]
    assert again[0].job.lease_seconds == 900
    assert again[1].job.cancel_requested


async def test_a_repeat_of_an_answer_none_of_whose_leases_holds_is_empty(engine: Engine) -> None:
    await enqueue(engine, "a")
    command = Dequeue("q", key=key())
    await conclude(engine, *(await engine.execute(command)).leases)
    await enqueue(engine, "b")
    assert (await engine.execute(command)).leases == []
    assert types(await dequeue(engine)) == ["b"]


async def test_another_dequeue_under_the_same_key_is_refused(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    await engine.execute(Dequeue("q", key=key(body=b"1")))
    refused = await refusal(engine, Dequeue("q", 2, key=key(body=b"2")), KeyReused)
    assert refused.field == "Idempotency-Key"
    await refusal(engine, Dequeue("other", 2, wait_seconds=9, key=key(body=b"2")), KeyReused)


async def test_an_empty_answer_is_not_remembered(engine: Engine) -> None:
    for wait_seconds in (0, 1):
        assert await dequeue(engine, wait_seconds=wait_seconds, key=key(body=b"1")) == []
    await enqueue(engine, "a")
    assert types((await engine.execute(Dequeue("q", key=key(body=b"2")))).leases) == ["a"]


async def test_an_enqueue_and_a_dequeue_may_have_the_same_key(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a")], key(body=b"1")))
    assert types((await engine.execute(Dequeue("q", key=key(body=b"2")))).leases) == ["a"]


async def test_leases_are_remembered_for_idempotency_seconds(settings: Settings) -> None:
    async with open_engine(replace(settings, idempotency_seconds=10)) as engine:
        await enqueue(engine, "a", "b")
        command = Dequeue("q", key=key())
        assert types((await engine.execute(command)).leases) == ["a"]
        await pass_time(9.999)
        assert types((await engine.execute(command)).leases) == ["a"]
        await pass_time(0.001)
        assert types((await engine.execute(command)).leases) == ["b"]


async def test_no_more_than_idempotency_keys_max_leases_are_remembered(settings: Settings) -> None:
    async with open_engine(replace(settings, idempotency_keys_max=1)) as engine:
        await enqueue(engine, "a", "b", "c")
        one, two = (Dequeue("q", key=key(name)) for name in ("one", "two"))
        assert [types((await engine.execute(command)).leases) for command in (one, two, two, one)] == [
            ["a"],
            ["b"],
            ["b"],
            ["c"],
        ]
