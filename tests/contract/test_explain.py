"""Why a job is not running now: on every engine, one reason for each way in which a job can stand."""

import pytest
import trio

from queue_actor.commands import (
    Cancel,
    Dequeue,
    Enqueue,
    Explain,
    Explanation,
    Fail,
    FailClaim,
    NewJob,
    Pause,
    Release,
    ReleaseClaim,
    SetPolicy,
    Why,
)
from queue_actor.engine import Engine
from queue_actor.errors import ForgottenJob, UnknownJob
from queue_actor.explain import NOBODY_SECONDS, explain, spoken
from queue_actor.jobs import Jitter, Now, QueuePolicy, Retry, RetryKind
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from tests.contract.verbs import conclude, dequeue, enqueue, lease, refusal
from tests.fakes import SECRET, FakeClock
from tests.opening import open_engine

pytestmark = pytest.mark.virtual_time


async def why(engine: Engine, id_: int = 1) -> Explanation:
    return await engine.execute(Explain("q", id_))


async def test_a_job_that_others_stand_before_is_told_how_many(engine: Engine) -> None:
    await enqueue(engine, "a", "a", "a")
    first, second, third = [await why(engine, id_) for id_ in (1, 2, 3)]

    assert (first.why, first.ahead) == (Why.NEXT, 0)
    assert (second.why, second.ahead, second.text) == (Why.BEHIND, 1, "1 job stands before it in line.")
    assert (third.ahead, third.text) == (2, "2 jobs stand before it in line.")


async def test_a_paused_queue_is_the_first_reason(engine: Engine) -> None:
    await enqueue(engine, "a", "a")
    await engine.execute(SetPolicy("q", QueuePolicy(in_progress_max=1)))
    await dequeue(engine)
    full = await why(engine, 2)
    await engine.execute(Pause("q", paused=True))
    paused = await why(engine, 2)

    assert (full.why, full.ahead) == (Why.IN_PROGRESS_MAX, 0)
    assert "1 of the queue's jobs are in progress" in full.text
    assert (paused.why, paused.ahead) == (Why.PAUSED, 0)


async def test_nobody_asks(engine: Engine) -> None:
    await enqueue(engine, "a", "a")
    await trio.sleep(NOBODY_SECONDS + 1)
    told = await why(engine, 2)

    assert (told.why, told.ahead, told.seconds) == (Why.NOBODY_ASKS, 1, NOBODY_SECONDS + 1)
    assert "for 1 min 1 s" in told.text
    await dequeue(engine)
    assert (await why(engine, 2)).why is Why.NEXT


async def test_a_job_that_is_not_to_run_yet_is_told_when(engine: Engine) -> None:
    await enqueue(engine, "a", delay_seconds=90)
    told = await why(engine)

    assert (told.why, told.seconds, told.ahead) == (Why.SCHEDULED, 90, None)
    assert told.text == "It is not to run before its time, in 1 min 30 s."


@pytest.mark.parametrize(("verb", "word"), [("fail", "failed"), ("release", "was given back"), ("stale", "went stale")])
async def test_a_job_that_waits_for_its_next_attempt_is_told_why(engine: Engine, verb: str, word: str) -> None:
    held = await lease(engine, lease_seconds=1)
    match verb:
        case "fail":
            await engine.execute(Fail([FailClaim("q", 1, held.token, retry_after_seconds=30)]))
        case "release":
            await engine.execute(Release([ReleaseClaim("q", 1, held.token, delay_seconds=30)]))
        case _:
            await engine.execute(SetPolicy("q", QueuePolicy(retry=Retry(RetryKind.FIXED, 30.0, jitter=Jitter.NONE))))
            await trio.sleep(2.1)
            await dequeue(engine, lease_seconds=1)
            await trio.sleep(1.05)  # its second return from a lease: it waits by its retry policy
    told = await why(engine)

    assert told.why is Why.RETRY
    assert word in told.text
    assert told.seconds is not None
    assert 0 < told.seconds <= 30


async def test_a_job_in_progress_is_told_who_has_it(engine: Engine) -> None:
    await lease(engine, consumer="w1", lease_seconds=30)
    held = await why(engine)
    await engine.execute(Cancel("q", [1]))
    wished = await why(engine)

    assert (held.why, held.seconds) == (Why.LEASED, 30)
    assert held.text == "The worker w1 has it, attempt 1; the lease lasts 30 s more."
    assert wished.why is Why.CANCEL_REQUESTED
    assert "cancel was asked for" in wished.text


async def test_a_job_that_has_ended_is_told_how(engine: Engine) -> None:
    done = await lease(engine)
    await conclude(engine, done)
    dead = await lease(engine)
    await engine.execute(Fail([FailClaim("q", 2, dead.token, retry=False)]))
    await enqueue(engine, "a")
    await engine.execute(Cancel("q", [3]))
    await trio.sleep(61)
    told = [await why(engine, id_) for id_ in (1, 2, 3)]

    assert [each.why for each in told] == [Why.CONCLUDED, Why.DEAD, Why.CANCELLED]
    assert told[0].text == "It is done: it was concluded 1 min 1 s ago."
    assert told[1].text.endswith("its worker said that there is no use in trying again.")
    assert [each.seconds for each in told] == [61, 61, 61]


async def test_a_job_that_only_the_store_has_is_told_how_it_ended(clock: FakeClock) -> None:
    async with open_engine(Settings(data="in memory", recent_jobs=1), clock=clock) as engine:
        for _ in range(3):
            await conclude(engine, await lease(engine))
        await trio.sleep(2)  # a sweep leaves all but one to the store
        told = await why(engine, 1)
        await refusal(engine, Explain("q", 4), UnknownJob)

    assert told.why is Why.CONCLUDED


async def test_a_job_that_is_not_there_is_refused(engine: Engine) -> None:
    await refusal(engine, Explain("q", 1), UnknownJob)


async def test_a_job_that_is_forgotten_is_refused(clock: FakeClock) -> None:
    for data in ("", "in memory"):
        async with open_engine(Settings(data=data, retention_seconds=1), clock=clock) as engine:
            await conclude(engine, await lease(engine))
            await trio.sleep(5.5)
            await refusal(engine, Explain("q", 1), ForgottenJob)


def test_what_the_next_sweep_will_see_to_is_said_so() -> None:
    """Between a deadline and the sweep that comes for it there is no time that a caller could count on."""
    clock_at = 1_000.0
    machine = StateMachine(Settings(), secret=SECRET)
    now = _now(clock_at)
    machine.apply(Enqueue("q", [NewJob("a", ttl_seconds=5), NewJob("b", delay_seconds=5), NewJob("c")]), now)
    queue = machine._queues["q"]

    def told(id_: int, seconds: float) -> Explanation:
        return explain(queue, queue.jobs[id_], _now(clock_at + seconds))

    assert told(1, 4).why is Why.NEXT
    assert told(1, 5).why is Why.EXPIRED
    assert told(2, 5).why is Why.DUE
    machine.apply(Dequeue("q", lease_seconds=5), now)
    assert told(1, 4).why is Why.LEASED
    assert told(1, 4).text.startswith("A worker that gave no name")
    assert told(1, 5).why is Why.LEASE_OVER


def _now(seconds: float) -> Now:
    return Now(seconds, seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (3_660, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_400, "1 d"),
    ],
)
def test_lengths_of_time_are_told_as_people_do(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
