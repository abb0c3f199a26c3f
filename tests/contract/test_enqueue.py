"""Enqueue: what becomes of new jobs, on each engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Conclude,
    Enqueue,
    Enqueued,
    EnqueuedJob,
    JobFilter,
    NewJob,
    Position,
    ReadPosition,
    ReadQueue,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    InvalidCommand,
    KeyReused,
    MemoryFull,
    QueueFull,
    TooManyQueues,
    UniqueKeyTaken,
)
from queue_actor.jobs import (
    Change,
    Job,
    JobOptions,
    JobState,
    OnExisting,
    Retry,
    RetryKind,
    UniqueUntil,
)
from queue_actor.settings import Settings
from tests.contract.state import whole_state
from tests.contract.verbs import (
    AT_ONCE,
    accepted,
    conclude,
    counts,
    dequeue,
    enqueue,
    fail,
    give_policy,
    key,
    lease,
    lease_again,
    pass_time,
    read,
    refusal,
    release,
    types,
)
from tests.fakes import EPOCH_SECONDS, SECRET, FakeClock, FakeStore, jump
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


# --- enqueue


async def test_a_new_job_is_queued_with_the_first_id(engine: Engine, store: FakeStore) -> None:
    assert await enqueue(engine, "resize", payload=b'{"w":1}', priority=3) == [EnqueuedJob(1, JobState.QUEUED)]
    job = Job(
        queue="q",
        id=1,
        type="resize",
        payload=b'{"w":1}',
        state=JobState.QUEUED,
        created_at=EPOCH_SECONDS,
        revision=1,
        priority=3,
        place=1,
        ready_at=EPOCH_SECONDS,
    )
    assert store.changes == [Change(1, None, job, "enqueue")]
    assert await read(engine, 1) == job


async def test_jobs_of_one_command_are_numbered_in_the_order_sent(engine: Engine) -> None:
    assert [job.id for job in await enqueue(engine, "a", "b", "c")] == [1, 2, 3]
    jobs = [await read(engine, id_) for id_ in (1, 2, 3)]
    assert [(job.id, job.type, job.place) for job in jobs] == [(1, "a", 1), (2, "b", 2), (3, "c", 3)]


async def test_each_queue_numbers_its_own_jobs(engine: Engine) -> None:
    await enqueue(engine, "a", "b", queue="one")
    assert [job.id for job in await enqueue(engine, "c", queue="two")] == [1]
    assert [job.id for job in await enqueue(engine, "d", queue="one")] == [3]


async def test_enqueueing_nothing_makes_the_queue(engine: Engine) -> None:
    assert await enqueue(engine) == []
    assert (await engine.execute(ReadQueue("q"))).exists


async def test_a_batch_that_would_fill_the_queue_over_is_refused_whole(
    settings: Settings, clock: FakeClock, store: FakeStore
) -> None:
    async with open_engine(replace(settings, queued_jobs_max=3), clock=clock, store=store, secret=SECRET) as engine:
        await enqueue(engine, "a", queue="other")
        await enqueue(engine, "a")
        await refusal(engine, Enqueue("q", [NewJob("b"), NewJob("c")]), QueueFull)
        assert await counts(engine) == {"queued": 1}
        await enqueue(engine, "b", delay_seconds=9)
        await refusal(engine, Enqueue("q", [NewJob("c")]), QueueFull)
        await conclude(engine, (await dequeue(engine))[0])
        await enqueue(engine, "c")
        assert [change.revision for change in store.changes] == [1, 2, 3, 4, 5, 6]


async def test_payloads_that_memory_has_no_room_for_are_refused_until_some_are_forgotten(
    settings: Settings, clock: FakeClock
) -> None:
    settings = replace(settings, memory_bytes_max=1_024, retention_seconds=5)
    async with open_engine(settings, clock=clock) as engine:
        await enqueue(engine, "a", payload=b"0" * 1_000)
        await enqueue(engine, "b", payload=b"0" * 24)
        await refusal(engine, Enqueue("q", [NewJob("c", b"0")]), MemoryFull)
        await enqueue(engine, "d")
        await conclude(engine, *await dequeue(engine))
        await refusal(engine, Enqueue("q", [NewJob("c", b"0")]), MemoryFull)
        await pass_time(6.1)
        await enqueue(engine, "c", payload=b"0" * 1_000)


async def test_a_queue_more_than_queues_max_is_refused(settings: Settings) -> None:
    async with open_engine(replace(settings, queues_max=2)) as engine:
        await enqueue(engine, "a", queue="one")
        await enqueue(engine, "a", queue="two")
        refused = await refusal(engine, Enqueue("three", [NewJob("a")]), TooManyQueues)
        assert refused.field == "queue"
        await enqueue(engine, "b", queue="one")
        assert not (await engine.execute(ReadQueue("three"))).exists


@pytest.mark.parametrize(
    ("delay_seconds", "sweep_seconds"), [(0.001, 1), (0.5, 1), (1.0, 1), (2.35, 1), (2.35, 60), (7_200.0, 60)]
)
async def test_a_delayed_job_is_ready_when_its_time_has_come_and_not_before(
    settings: Settings, clock: FakeClock, delay_seconds: float, sweep_seconds: float
) -> None:
    async with open_engine(replace(settings, sweep_seconds=sweep_seconds), clock=clock) as engine:
        assert await enqueue(engine, "a", delay_seconds=delay_seconds) == [EnqueuedJob(1, JobState.SCHEDULED)]
        job = await read(engine, 1)
        assert (job.state, job.place, job.not_before) == (JobState.SCHEDULED, 0, EPOCH_SECONDS + delay_seconds)
        assert await counts(engine) == {"scheduled": 1}
        await pass_time(delay_seconds - 0.000_1)
        assert await dequeue(engine) == []
        await pass_time(0.001_1)
        assert (await read(engine, 1)).state is JobState.QUEUED
        assert types(await dequeue(engine)) == ["a"]


async def test_a_job_that_comes_due_stands_behind_those_that_are_ready(engine: Engine) -> None:
    await enqueue(engine, "delayed", delay_seconds=2)
    await enqueue(engine, "early")
    await pass_time(3)
    await enqueue(engine, "late")
    assert types(await dequeue(engine, 9)) == ["early", "delayed", "late"]


async def test_a_job_keeps_what_its_producer_said_of_it(engine: Engine) -> None:
    options = JobOptions(
        max_attempts=3,
        retry=Retry(RetryKind.FIXED, base_seconds=5),
        lease_seconds=7,
        unique_key="k",
        unique_until=UniqueUntil.STARTED,
        meta={"tenant": "a"},
        traceparent="00-1-1-01",
    )
    await enqueue(engine, "a", options=options)
    assert (await read(engine)).options == options
    assert (await lease_again(engine)).job.options == options


# --- when a job is ready


@pytest.mark.parametrize("seconds", [0.001, 5.0, 90.0])
async def test_a_job_with_a_moment_before_which_it_must_not_run_waits_for_it(engine: Engine, seconds: float) -> None:
    await pass_time(1)
    at = EPOCH_SECONDS + 1 + seconds
    assert await enqueue(engine, "a", not_before=at) == [EnqueuedJob(1, JobState.SCHEDULED)]
    assert (await read(engine)).not_before == at
    await pass_time(seconds - 0.000_1)
    assert await dequeue(engine) == []
    await pass_time(0.001_1)
    assert types(await dequeue(engine)) == ["a"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, -1e9])
async def test_a_job_whose_moment_is_past_is_ready_at_once(engine: Engine, seconds: float) -> None:
    await pass_time(1)
    assert await enqueue(engine, "a", not_before=EPOCH_SECONDS + 1 + seconds) == [EnqueuedJob(1, JobState.QUEUED)]
    assert (await read(engine)).not_before is None
    assert types(await dequeue(engine)) == ["a"]


async def test_jobs_that_come_due_together_keep_the_order_of_their_times(engine: Engine) -> None:
    for seconds in (3, 1, 2):
        await enqueue(engine, f"after {seconds}", delay_seconds=seconds)
    jump(0.9)  # nobody sweeps in between
    jump(0.9)
    jump(1.3)
    await pass_time(1.1)
    assert types(await dequeue(engine, 9)) == ["after 1", "after 2", "after 3"]


# --- unique keys


def unique(name: str = "k", until: UniqueUntil = UniqueUntil.FINISHED) -> JobOptions:
    return JobOptions(unique_key=name, unique_until=until)


async def test_a_taken_key_is_answered_with_the_job_that_has_it(engine: Engine, store: FakeStore) -> None:
    await enqueue(engine, "a", payload=b"1", options=unique())
    before = whole_state(engine)
    again = await enqueue(engine, "b", payload=b"2", priority=9, delay_seconds=60, options=unique())
    assert again == [EnqueuedJob(1, JobState.QUEUED, existing=True)]
    assert whole_state(engine) == before
    assert len(store.changes) == 1


async def test_a_key_is_taken_within_one_command_too(engine: Engine) -> None:
    new = [NewJob("a", options=unique("k")), NewJob("b", options=unique("l")), NewJob("c", options=unique("k"))]
    answers = accepted(await engine.execute(Enqueue("q", new)))
    assert [(answer.id, answer.existing) for answer in answers] == [(1, False), (2, False), (1, True)]
    assert await counts(engine) == {"queued": 2}


async def test_each_queue_has_keys_of_its_own(engine: Engine) -> None:
    await enqueue(engine, "a", queue="one", options=unique())
    assert await enqueue(engine, "a", queue="two", options=unique()) == [EnqueuedJob(1, JobState.QUEUED)]


async def test_the_answer_says_where_the_job_that_has_the_key_stands(engine: Engine) -> None:
    async def state() -> JobState:
        (answer,) = await enqueue(engine, "b", options=unique())
        assert (answer.id, answer.existing) == (1, True)
        return answer.state

    await enqueue(engine, "a", delay_seconds=1, options=unique())
    assert await state() is JobState.SCHEDULED
    await pass_time(1.001)
    assert await state() is JobState.QUEUED
    await dequeue(engine)
    assert await state() is JobState.IN_PROGRESS


async def test_a_taken_key_may_refuse_the_job_and_none_of_its_neighbours(engine: Engine) -> None:
    await enqueue(engine, "a", options=unique())
    refusing = NewJob("b", options=unique(), on_existing=OnExisting.REFUSE)
    refused = await refusal(engine, Enqueue("q", [refusing]), UniqueKeyTaken)
    assert refused.field == "unique_key"
    answers = (await engine.execute(Enqueue("q", [NewJob("c"), refusing, NewJob("d")]))).jobs
    assert [type(answer) for answer in answers] == [EnqueuedJob, UniqueKeyTaken, EnqueuedJob]
    assert types(await dequeue(engine, 9)) == ["a", "c", "d"]


async def replace_job(engine: Engine, type_: str = "new", **facts: Any) -> EnqueuedJob:
    (answer,) = await enqueue(engine, type_, options=unique(), on_existing=OnExisting.REPLACE, **facts)
    return answer


async def test_a_queued_job_that_is_replaced_keeps_its_id_its_age_and_its_place(engine: Engine) -> None:
    await enqueue(engine, "a")
    await enqueue(engine, "old", payload=b"old", options=replace(unique(), max_attempts=1))
    await enqueue(engine, "c")
    before = await read(engine, 2)
    await pass_time(3)
    assert await replace_job(engine, payload=b"new") == EnqueuedJob(2, JobState.QUEUED, existing=True)
    after = await read(engine, 2)
    assert after == replace(before, type="new", payload=b"new", options=unique(), revision=4)
    assert await engine.execute(ReadPosition("q", 2)) == Position(1)
    assert types(await dequeue(engine, 9)) == ["a", "new", "c"]


async def test_a_replaced_job_stands_where_its_new_priority_puts_it(engine: Engine) -> None:
    await enqueue(engine, "a", priority=1)
    await enqueue(engine, "old", options=unique())
    await enqueue(engine, "c", priority=1)
    await replace_job(engine, priority=1)
    assert types(await dequeue(engine, 2)) == ["a", "new"]  # by its place, which is older than that of c


async def test_replacing_moves_a_job_from_queued_to_scheduled_and_back_to_the_end(engine: Engine) -> None:
    await enqueue(engine, "old", options=unique())
    await enqueue(engine, "b")
    assert await replace_job(engine, "later", delay_seconds=5) == EnqueuedJob(1, JobState.SCHEDULED, existing=True)
    assert (await read(engine)).not_before == EPOCH_SECONDS + 5
    assert await replace_job(engine, "sooner", delay_seconds=2) == EnqueuedJob(1, JobState.SCHEDULED, existing=True)
    await pass_time(1.999)
    assert await counts(engine) == {"scheduled": 1, "queued": 1}
    await pass_time(0.002)
    assert await counts(engine) == {"queued": 2}
    assert await replace_job(engine, "later", delay_seconds=5) == EnqueuedJob(1, JobState.SCHEDULED, existing=True)
    assert await replace_job(engine, "now") == EnqueuedJob(1, JobState.QUEUED, existing=True)
    assert (await read(engine)).not_before is None
    await enqueue(engine, "c")
    assert types(await dequeue(engine, 9)) == ["b", "now", "c"]
    await pass_time(6)
    assert await counts(engine) == {"in_progress": 3}


async def test_a_job_in_progress_is_not_replaced(engine: Engine) -> None:
    leased = await lease(engine, NewJob("a", payload=b"1", options=unique()))
    before = whole_state(engine)
    assert await replace_job(engine) == EnqueuedJob(1, JobState.IN_PROGRESS, existing=True)
    assert whole_state(engine) == before
    await conclude(engine, leased)


async def test_a_replaced_job_expires_by_its_new_ttl_only(engine: Engine) -> None:
    await enqueue(engine, "old", ttl_seconds=2, options=unique())
    await replace_job(engine, ttl_seconds=5)
    await pass_time(4.9)
    assert await counts(engine) == {"queued": 1}
    await replace_job(engine)
    await pass_time(9)
    assert await counts(engine) == {"queued": 1}
    await replace_job(engine, ttl_seconds=1)
    await pass_time(1.001)
    assert await counts(engine) == {"dead": 1}


async def concluded(engine: Engine) -> None:
    await conclude(engine, await lease_again(engine))


async def killed(engine: Engine) -> None:
    await fail(engine, await lease_again(engine), retry=False)


async def cancelled(engine: Engine) -> None:
    await engine.execute(Cancel("q", [1]))


async def cancelled_by_wish(engine: Engine) -> None:
    leased = await lease_again(engine)
    await engine.execute(Cancel("q", [1]))
    await release(engine, leased)


async def expired(engine: Engine) -> None:
    del engine
    await pass_time(60.001)


async def purged(engine: Engine) -> None:
    await engine.execute(Bulk("q", BulkVerb.PURGE, JobFilter()))


@pytest.mark.parametrize("end", [concluded, killed, cancelled, cancelled_by_wish, expired, purged])
@pytest.mark.parametrize("until", list(UniqueUntil))
async def test_a_key_is_free_when_its_job_has_ended(engine: Engine, end: Any, until: UniqueUntil) -> None:
    await enqueue(engine, "a", ttl_seconds=60, options=unique("k", until))
    await end(engine)
    assert await enqueue(engine, "b", options=unique("k", until)) == [EnqueuedJob(2, JobState.QUEUED)]
    # and the end of the first does not free what the second has taken
    assert (await enqueue(engine, "c", options=unique("k", until)))[0].existing


async def test_a_key_stays_taken_while_its_job_comes_back(engine: Engine) -> None:
    await give_policy(engine, retry=AT_ONCE)
    await enqueue(engine, "a", options=unique())

    async def is_taken() -> bool:
        (answer,) = await enqueue(engine, "b", options=unique())
        return answer == EnqueuedJob(1, answer.state, existing=True)

    await release(engine, await lease_again(engine))
    assert await is_taken()
    await release(engine, await lease_again(engine), 1)
    assert await is_taken()
    await pass_time(1.001)
    await fail(engine, await lease_again(engine))
    assert await is_taken()
    await dequeue(engine, lease_seconds=1)
    await pass_time(1.001)
    assert await is_taken()
    assert (await read(engine)).state is JobState.QUEUED


async def test_a_key_until_the_start_is_free_when_its_job_is_leased(engine: Engine) -> None:
    options = unique("k", UniqueUntil.STARTED)
    await enqueue(engine, "a", delay_seconds=1, options=options)
    assert (await enqueue(engine, "b", options=options))[0].existing
    await pass_time(1.001)
    assert (await enqueue(engine, "b", options=options))[0].existing
    first = await lease_again(engine)
    assert await enqueue(engine, "b", options=options) == [EnqueuedJob(2, JobState.QUEUED)]
    assert await release(engine, first) == await read(engine)
    assert await enqueue(engine, "c", options=options) == [EnqueuedJob(2, JobState.QUEUED, existing=True)]
    assert types(await dequeue(engine, 9)) == ["a", "b"]
    # the second has started too; the first, which has no key, does not take it back by ending
    assert await enqueue(engine, "d", options=options) == [EnqueuedJob(3, JobState.QUEUED)]
    await engine.execute(Conclude([Claim("q", 1)]))
    assert (await enqueue(engine, "e", options=options))[0] == EnqueuedJob(3, JobState.QUEUED, existing=True)


# --- limits


async def test_a_queue_may_have_a_limit_of_its_own(engine: Engine) -> None:
    await give_policy(engine, queued_jobs_max=2)
    await enqueue(engine, "a", queue="other")
    await enqueue(engine, "a")
    assert "policy" in str(await refusal(engine, Enqueue("q", [NewJob("b"), NewJob("c")]), QueueFull))
    await enqueue(engine, "b", delay_seconds=60)
    await refusal(engine, Enqueue("q", [NewJob("c")]), QueueFull)
    await enqueue(engine, "b", queue="other")
    await dequeue(engine)
    await enqueue(engine, "c")
    await give_policy(engine, queued_jobs_max=3)
    await enqueue(engine, "d")


async def test_a_job_whose_key_is_taken_needs_no_room(settings: Settings) -> None:
    async with open_engine(replace(settings, queued_jobs_max=1, memory_bytes_max=1_024)) as engine:
        await enqueue(engine, "a", payload=b"0" * 1_000, options=unique())
        assert (await enqueue(engine, "b", payload=b"0" * 1_000, options=unique()))[0].existing
        await refusal(engine, Enqueue("q", [NewJob("c")]), QueueFull)
        refusing = NewJob("b", payload=b"0" * 1_000, options=unique(), on_existing=OnExisting.REFUSE)
        await refusal(engine, Enqueue("q", [refusing]), UniqueKeyTaken)


async def test_a_job_that_is_replaced_needs_the_room_by_which_it_grows(settings: Settings) -> None:
    async with open_engine(replace(settings, memory_bytes_max=1_024)) as engine:
        await enqueue(engine, "a", payload=b"0" * 500, options=unique())
        await enqueue(engine, "b", payload=b"0" * 500)

        def replacing(payload: bytes) -> Enqueue:
            return Enqueue("q", [NewJob("new", payload, options=unique(), on_existing=OnExisting.REPLACE)])

        await refusal(engine, replacing(b"1" * 525), MemoryFull)
        for payload in (b"1" * 524, b"2" * 524, b"3" * 24):
            accepted(await engine.execute(replacing(payload)))
            assert (await read(engine)).payload == payload
        await enqueue(engine, "c", payload=b"0" * 500)
        await refusal(engine, Enqueue("q", [NewJob("d", payload=b"0")]), MemoryFull)
        # One that is there already and is not replaced needs none, however large the other was meant to be.
        kept = NewJob("e", b"0" * 1_000, options=unique())
        assert accepted(await engine.execute(Enqueue("q", [kept]))) == [EnqueuedJob(1, JobState.QUEUED, existing=True)]
        await dequeue(engine)
        assert accepted(await engine.execute(replacing(b"0" * 1_000)))[0].state is JobState.IN_PROGRESS


async def test_the_limit_of_waiting_jobs_holds_over_all_queues_together(settings: Settings) -> None:
    async with open_engine(replace(settings, queued_jobs_max=3)) as engine:
        await enqueue(engine, "a", queue="one")
        await enqueue(engine, "a", queue="two", delay_seconds=60)
        await refusal(engine, Enqueue("three", [NewJob("a")] * 2), QueueFull)
        await enqueue(engine, "a", queue="three")
        for queue in ("one", "two", "three", "four"):
            await refusal(engine, Enqueue(queue, [NewJob("a")]), QueueFull)


async def test_jobs_in_progress_count_too_as_long_as_they_are(settings: Settings) -> None:
    """Or whoever dequeues and never concludes would let memory grow without bound."""
    async with open_engine(replace(settings, queued_jobs_max=2)) as engine:
        await enqueue(engine, "a", "b")
        leased = await dequeue(engine, 2)
        await refusal(engine, Enqueue("q", [NewJob("c")]), QueueFull)
        await fail(engine, leased[0], retry_after_seconds=0)
        await refusal(engine, Enqueue("q", [NewJob("c")]), QueueFull)
        await conclude(engine, leased[1])
        await enqueue(engine, "c")


async def test_a_refused_enqueue_leaves_no_trace(settings: Settings) -> None:
    settings = replace(settings, queues_max=1, memory_bytes_max=1_024, queued_jobs_max=2)
    async with open_engine(settings) as engine:
        await refusal(engine, Enqueue("q", [NewJob("a", payload=b"0" * 1_025)]), MemoryFull)
        await refusal(engine, Enqueue("q", [NewJob("a")] * 3), QueueFull)
        await enqueue(engine, "a")
        assert (await refusal(engine, Enqueue("r", []), TooManyQueues)).field == "queue"


# --- idempotency keys


async def test_a_repeat_under_a_key_has_the_answer_of_the_first_and_adds_nothing(engine: Engine) -> None:
    await enqueue(engine, "taken", options=unique())
    refusing = NewJob("refused", options=unique(), on_existing=OnExisting.REFUSE)
    command = Enqueue("q", [NewJob("a"), refusing, NewJob("b", delay_seconds=60)], key())
    first = await engine.execute(command)
    assert [type(answer) for answer in first.jobs] == [EnqueuedJob, UniqueKeyTaken, EnqueuedJob]
    before = whole_state(engine)
    assert await engine.execute(command) == first
    assert whole_state(engine) == before
    await conclude(engine, (await dequeue(engine, 2))[1])
    await pass_time(60)
    assert await engine.execute(command) == first  # what it was then, not what became of the jobs


async def test_a_moment_too_far_away_is_refused(engine: Engine, settings: Settings, clock: FakeClock) -> None:
    latest = clock().wall + settings.delay_seconds_max
    too_far = Enqueue("q", [NewJob("a"), NewJob("a", not_before=latest + 1)])
    assert (await refusal(engine, too_far, InvalidCommand)).field == "jobs[1].not_before"
    assert [job.state for job in (await engine.execute(Enqueue("q", [NewJob("a", not_before=latest)]))).jobs] == [  # type: ignore[union-attr] # accepted
        JobState.SCHEDULED
    ]


async def test_another_body_under_the_same_key_is_refused(engine: Engine) -> None:
    await engine.execute(Enqueue("q", [NewJob("a")], key(body=b"1")))
    assert (await refusal(engine, Enqueue("q", [NewJob("b")], key(body=b"2")), KeyReused)).field == "Idempotency-Key"


async def test_other_keys_and_other_scopes_are_other_commands(engine: Engine) -> None:
    for number, other in enumerate((key("k"), key("l"), key("k", scope="there")), 1):
        assert await engine.execute(Enqueue("q", [NewJob("a")], other)) == Enqueued(
            [EnqueuedJob(number, JobState.QUEUED)]
        )


async def test_an_enqueue_that_was_refused_may_be_repeated_under_its_key(settings: Settings) -> None:
    async with open_engine(replace(settings, queued_jobs_max=1)) as engine:
        await enqueue(engine, "a")
        command = Enqueue("q", [NewJob("b")], key())
        await refusal(engine, command, QueueFull)
        await conclude(engine, (await dequeue(engine))[0])
        assert accepted(await engine.execute(command)) == [EnqueuedJob(2, JobState.QUEUED)]
        # and an answer that was given needs no room
        assert accepted(await engine.execute(command)) == [EnqueuedJob(2, JobState.QUEUED)]


async def test_an_answer_is_remembered_for_idempotency_seconds(settings: Settings) -> None:
    async with open_engine(replace(settings, idempotency_seconds=10)) as engine:
        command = Enqueue("q", [NewJob("a")], key(body=b"1"))
        await engine.execute(command)
        await pass_time(9.999)
        assert accepted(await engine.execute(command)) == [EnqueuedJob(1, JobState.QUEUED)]
        await pass_time(0.001)
        again = Enqueue("q", [NewJob("a")], key(body=b"2"))
        assert accepted(await engine.execute(again)) == [EnqueuedJob(2, JobState.QUEUED)]
        await pass_time(9.999)
        assert accepted(await engine.execute(again)) == [EnqueuedJob(2, JobState.QUEUED)]


async def test_no_more_than_idempotency_keys_max_answers_are_remembered_and_the_oldest_goes(settings: Settings) -> None:
    async with open_engine(replace(settings, idempotency_keys_max=2)) as engine:
        commands = [Enqueue("q", [NewJob("a")], key(name)) for name in "abc"]
        for command in commands:
            await engine.execute(command)
        for command, id_ in ((commands[1], 2), (commands[2], 3), (commands[0], 4), (commands[2], 3), (commands[1], 5)):
            assert [answer.id for answer in accepted(await engine.execute(command))] == [id_]
