"""An attempt, from its lease to its end: conclude, fail, extend, release, and leases that run out; on each engine."""

from typing import Any

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Claim,
    Conclude,
    Extend,
    ExtendClaim,
    Release,
    ReleaseClaim,
)
from queue_actor.engine import Engine
from queue_actor.errors import (
    ForgottenJob,
    LeaseLost,
    NotInProgress,
    OtherConsumer,
    QueueError,
    UnknownJob,
)
from queue_actor.jobs import (
    Attempt,
    Job,
    JobState,
    Outcome,
)
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.contract.verbs import (
    FENCE,
    conclude,
    counts,
    dequeue,
    enqueue,
    lease,
    pass_time,
    read,
    shown,
    to_extend,
    to_release,
    types,
)
from tests.fakes import EPOCH_SECONDS, FakeStore

pytestmark = pytest.mark.virtual_time


# --- conclude, extend, release: who may


async def test_the_holder_concludes_with_his_token_and_may_say_so_again(engine: Engine, store: FakeStore) -> None:
    leased = await lease(engine, consumer="w1")
    await pass_time(2)
    job = await conclude(engine, leased)
    assert (job.state, job.finished_at, job.lease_expires_at) == (JobState.CONCLUDED, EPOCH_SECONDS + 2, None)
    assert job.history == (Attempt(FENCE, "w1", EPOCH_SECONDS, EPOCH_SECONDS + 2, Outcome.CONCLUDED),)
    changes = len(store.changes)
    assert await conclude(engine, leased) == job
    assert len(store.changes) == changes
    assert await counts(engine) == {"concluded": 1}


VERBS = [
    pytest.param(Conclude, Claim, id="conclude"),
    pytest.param(Extend, ExtendClaim, id="extend"),
    pytest.param(Release, ReleaseClaim, id="release"),
]


@pytest.mark.parametrize(("verb", "claim"), VERBS)
class TestAClaim:
    """What conclude, extend and release ask of their caller alike."""

    async def refusal(self, engine: Engine, verb: Any, claim: Claim) -> QueueError:
        """The refusal of a claim, which changes nothing."""
        before = await read(engine, 1)
        (refusal,) = (await engine.execute(verb([claim]))).jobs
        assert isinstance(refusal, QueueError)
        assert await read(engine, 1) == before
        return refusal

    async def test_with_a_token_that_is_none_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine)
        wrong = ["", "?", "0" * 46, leased.token[:-1] + ("0" if leased.token[-1] != "0" else "1"), "é" * 46]
        for token in wrong:
            assert isinstance(await self.refusal(engine, verb, claim("q", 1, token)), LeaseLost)

    async def test_with_the_token_of_another_job_has_lost_the_lease(
        self, engine: Engine, verb: Any, claim: Any
    ) -> None:
        await lease(engine)
        second = await lease(engine)
        await enqueue(engine, "a", queue="other")
        (other,) = await dequeue(engine, queue="other")
        for leased in (second, other):
            assert isinstance(await self.refusal(engine, verb, claim("q", 1, leased.token)), LeaseLost)

    async def test_with_an_older_token_has_lost_the_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        first = await lease(engine, lease_seconds=1)
        await pass_time(1)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, first.token)), LeaseLost)
        (second,) = await dequeue(engine)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, first.token)), LeaseLost)
        assert not isinstance((await engine.execute(verb([claim("q", 1, second.token)]))).single(), QueueError)

    async def test_without_a_token_needs_the_name_of_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine, consumer="w1")
        for consumer in ("w2", None):
            refusal = await self.refusal(engine, verb, claim("q", 1, consumer=consumer))
            assert isinstance(refusal, OtherConsumer)
        await engine.execute(verb([claim("q", 1, consumer="w1")]))

    async def test_a_token_alone_decides_whatever_the_consumer(self, engine: Engine, verb: Any, claim: Any) -> None:
        leased = await lease(engine, consumer="w1")
        (await engine.execute(verb([claim("q", 1, leased.token, "w2")]))).single()

    async def test_anyone_may_act_on_an_anonymous_lease(self, engine: Engine, verb: Any, claim: Any) -> None:
        await lease(engine)
        (await engine.execute(verb([claim("q", 1, consumer="whoever")]))).single()

    async def test_on_a_job_that_is_not_in_progress_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        assert isinstance(await self.refusal(engine, verb, claim("q", 1)), NotInProgress)
        assert isinstance(await self.refusal(engine, verb, claim("q", 1, "token")), LeaseLost)

    async def test_on_an_unknown_job_is_refused(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a")
        for queue, id_ in (("q", 2), ("q", 0), ("q", -1), ("unknown", 1)):
            refusal = await self.refusal(engine, verb, claim(queue, id_))
            assert isinstance(refusal, UnknownJob)
            assert refusal.field == "id"

    async def test_on_a_forgotten_job_is_refused(self, settings: Settings, verb: Any, claim: Any) -> None:
        async with open_engine(replace(settings, retention_seconds=3)) as engine:
            leased = await lease(engine)
            await conclude(engine, leased)
            await pass_time(4.1)
            (refusal,) = (await engine.execute(verb([claim("q", 1, leased.token)]))).jobs
            assert isinstance(refusal, ForgottenJob)

    async def test_has_an_answer_for_each_job_in_the_order_asked(self, engine: Engine, verb: Any, claim: Any) -> None:
        await enqueue(engine, "a", "b", "c")
        first, second = await dequeue(engine, 2)
        claims = [
            claim("q", 2, second.token),
            claim("q", 3),
            claim("q", 1, "no"),
            claim("q", 4),
            claim("q", 1, first.token),
        ]
        results = (await engine.execute(verb(claims))).jobs
        assert [result.id if isinstance(result, Job) else result.code for result in results] == [
            2,
            "not_in_progress",
            "lease_lost",
            "unknown_job",
            1,
        ]

    async def test_for_no_jobs_has_no_answers(self, engine: Engine, verb: Any, claim: Any) -> None:
        del claim
        assert (await engine.execute(verb([]))).jobs == []


async def test_a_concluded_job_is_concluded_again_by_its_consumer_only(engine: Engine) -> None:
    leased = await lease(engine, consumer="w1")
    job = await conclude(engine, leased)
    assert (await engine.execute(Conclude([Claim("q", 1, consumer="w1")]))).single() == job
    with pytest.raises(OtherConsumer):
        (await engine.execute(Conclude([Claim("q", 1, consumer="w2")]))).single()
    with pytest.raises(NotInProgress):
        (await engine.execute(Release([ReleaseClaim("q", 1, consumer="w1")]))).single()


async def test_the_token_that_concluded_neither_extends_nor_releases(engine: Engine) -> None:
    leased = await lease(engine)
    await conclude(engine, leased)
    for command in (Extend([to_extend(leased)]), Release([to_release(leased)])):
        with pytest.raises(LeaseLost):
            (await engine.execute(command)).single()


async def test_one_command_may_conclude_a_job_twice(engine: Engine) -> None:
    leased = await lease(engine)
    first, second = (await engine.execute(Conclude([shown(leased), shown(leased)]))).jobs
    assert first == second
    assert await counts(engine) == {"concluded": 1}


# --- extend and release


async def test_extending_keeps_a_lease_alive_as_long_as_it_is_repeated(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=2)
    for _ in range(10):
        await pass_time(1.9)
        job = (await engine.execute(Extend([to_extend(leased)]))).single()
        assert job.state is JobState.IN_PROGRESS
        assert job.lease_expires_at == pytest.approx(EPOCH_SECONDS + trio.current_time() + 2)
    await pass_time(1.9)
    assert (await read(engine, 1)).state is JobState.IN_PROGRESS
    await pass_time(0.101)
    assert (await read(engine, 1)).state is JobState.QUEUED


async def test_extending_by_a_length_holds_for_later_extensions(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=2)
    await engine.execute(Extend([to_extend(leased, 10)]))
    await pass_time(9)
    job = (await engine.execute(Extend([to_extend(leased)]))).single()
    assert (job.lease_seconds, job.lease_expires_at) == (10, EPOCH_SECONDS + 19)
    await pass_time(9.999)
    await conclude(engine, leased)


async def test_extending_may_shorten_a_lease_and_the_sweeper_learns_of_it(engine: Engine) -> None:
    leased = await lease(engine, lease_seconds=300)
    await engine.execute(Extend([to_extend(leased, 0.25)]))
    await pass_time(0.251)
    assert (await read(engine, 1)).state is JobState.QUEUED


async def test_a_released_job_keeps_its_place(engine: Engine) -> None:
    await enqueue(engine, "a", "b", "c")
    first, second = await dequeue(engine, 2)
    await engine.execute(Release([to_release(second), to_release(first)]))
    assert types(await dequeue(engine, 3)) == ["a", "b", "c"]


async def test_a_job_released_with_a_delay_comes_back_behind_the_others(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    (leased,) = await dequeue(engine)
    job = (await engine.execute(Release([to_release(leased, 2)]))).single()
    assert (job.state, job.not_before) == (JobState.SCHEDULED, EPOCH_SECONDS + 2)
    await pass_time(1.999)
    assert await counts(engine) == {"scheduled": 1, "queued": 1}
    await pass_time(0.002)
    assert types(await dequeue(engine, 2)) == ["b", "a"]


async def test_the_token_that_released_may_say_so_again_and_changes_nothing(engine: Engine) -> None:
    leased = await lease(engine)
    released = (await engine.execute(Release([to_release(leased)]))).single()
    assert (await engine.execute(Release([to_release(leased)]))).single() == released
    (again,) = await dequeue(engine)
    assert (await engine.execute(Release([to_release(leased)]))).single() == again.job
    with pytest.raises(LeaseLost):
        await conclude(engine, leased)
    await conclude(engine, again)
