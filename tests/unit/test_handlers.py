"""Handlers: what they are called with, and what comes of them."""

import pickle
from typing import Any

import anyio
import msgspec
import pytest
import trio

from queue_actor.client_answers import Job
from queue_actor.handlers import (
    Done,
    Failed,
    Handler,
    Handlers,
    Outcome,
    Reject,
    Released,
    Retry,
    RunningJob,
    Stopped,
    job_error,
)
from queue_actor.jobs import JobError


def a_job(payload: object = None, **facts: Any) -> Job:
    """A job as it is dequeued."""
    told = {
        "queue": "q",
        "id": 1,
        "type": "t",
        "state": "in_progress",
        "priority": 0,
        "meta": {},
        "attempts": 1,
        "traceparent": None,
        "unique_key": None,
        "created_at": "2027-01-15T08:00:00Z",
        "not_before": None,
        "expires_at": None,
        "fails": 0,
        "stales": 0,
        "max_attempts": None,
        "consumer": "w",
        "payload": payload,
        "cancel_requested": False,
        "reason": None,
        "finished_at": None,
        "lease": {"fence": 7, "seconds": 30, "expires_at": "2027-01-15T08:00:30Z", "token": "secret"},
    }
    return msgspec.json.decode(msgspec.json.encode(told | facts), type=Job)


def running(job: Job) -> RunningJob:
    return RunningJob(job, lambda _progress: None)


def perform(function: Any, payload: object = None) -> Outcome:
    job = a_job(payload)
    return Handler("t", function).perform(job, running(job))


async def perform_async(function: Any, payload: object = None) -> Outcome:
    job = a_job(payload)
    return await Handler("t", function).perform_async(job, running(job))


class Point(msgspec.Struct):
    x: int
    y: int = 0


def test_a_payload_and_a_job_are_told_apart_by_their_annotations() -> None:
    assert perform(lambda: 1) == Done(b"1")
    assert perform(lambda number: number + 1, 1) == Done(b"2")
    assert perform(lambda job: job.fence) == Done(b"7")

    def typed(any_name: RunningJob, where: Point, optional: int = 3, *, keyword: int = 4) -> list[int]:
        return [any_name.fence, where.x, where.y, optional, keyword]

    assert perform(typed, {"x": 1}) == Done(b"[7,1,0,3,4]")

    def job_that_is_a_payload(job: dict[str, int]) -> int:
        return job["x"]

    assert perform(job_that_is_a_payload, {"x": 5}) == Done(b"5")


def test_nothing_is_returned_as_no_result() -> None:
    assert perform(lambda: None) == Done(None)


def test_a_payload_that_does_not_fit_names_the_field_and_is_not_tried_again() -> None:
    def typed(_points: list[Point]) -> None:
        raise AssertionError

    error = JobError("InvalidPayload", "Expected `int`, got `str` - at `$[1].y`")
    assert perform(typed, [{"x": 1}, {"x": 1, "y": "2"}]) == Failed(error, retry=False)


async def test_it_does_so_for_asynchronous_handlers_as_well() -> None:
    async def typed(point: Point) -> int:
        await trio.lowlevel.checkpoint()
        return point.x

    assert await perform_async(typed, {"x": 1}) == Done(b"1")
    outcome = await perform_async(typed, {})
    assert isinstance(outcome, Failed)
    assert (outcome.error.message, outcome.retry) == ("Object missing required field `x`", False)


@pytest.mark.parametrize("alien", [object(), {1.5: object()}, float("nan").__class__, 2**70 + 0.5j])
def test_a_result_that_is_no_json_is_not_tried_again(alien: object) -> None:
    outcome = perform(lambda: alien)
    assert isinstance(outcome, Failed)
    assert (outcome.error.type, outcome.retry) == ("InvalidResult", False)


def raises(error: BaseException) -> Any:
    def raise_it() -> None:
        raise error

    return raise_it


def test_what_is_raised_tells_what_is_to_become_of_the_job() -> None:
    assert perform(raises(Retry("later", after=5))) == Failed(JobError("Retry", "later"), retry_after_seconds=5)
    assert perform(raises(Retry())) == Failed(JobError("Retry", ""))
    assert perform(raises(Reject("never"))) == Failed(JobError("Reject", "never"), retry=False)
    assert perform(raises(Stopped("cancelled"))) == Released()
    failed = perform(raises(KeyError("k")))
    assert isinstance(failed, Failed)
    assert (failed.error, failed.retry) == (JobError("KeyError", "'k'"), True)
    assert "raise error" in failed.traceback
    left = perform(raises(SystemExit(1)))
    assert isinstance(left, Failed)
    assert left.error.type == "SystemExit"
    with pytest.raises(KeyboardInterrupt):
        perform(raises(KeyboardInterrupt()))


async def test_an_asynchronous_handler_that_is_cancelled_is_no_failure() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await perform_async(trio.sleep_forever)
    assert scope.cancelled_caught


async def test_what_an_asynchronous_handler_raises_fails_its_job() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("no")

    outcome = await perform_async(fail)
    assert isinstance(outcome, Failed)
    assert outcome.error == JobError("ValueError", "no")


def test_under_asyncio_what_a_handler_waited_for_may_be_cancelled_without_itself() -> None:
    import asyncio  # this is about nothing else

    async def wait_for_another() -> None:
        other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    async def main() -> Outcome:
        return await perform_async(wait_for_another)

    outcome = anyio.run(main, backend="asyncio")
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "CancelledError"


def test_errors_are_cut_to_what_the_server_takes() -> None:
    error = job_error("T" * 300, "\ud800" + "m" * 20_000)
    assert len(error.type) == 200
    assert len(error.message) == 10_000
    assert error.message.startswith("\\ud800mm")


def test_progress_is_told_as_json() -> None:
    told: list[bytes] = []
    job = RunningJob(a_job(), told.append)
    job.report({"percent": 40})
    assert told == [b'{"percent":40}']
    with pytest.raises(TypeError):
        job.report(object())


def test_a_handler_that_cannot_be_called_is_refused_at_once() -> None:
    def two(path: str, width: int) -> None: ...

    with pytest.raises(TypeError, match="a parameter 'width'"):
        Handler("t", two)

    def positional(path: str, /) -> None: ...

    with pytest.raises(TypeError, match="a parameter 'path'"):
        Handler("t", positional)

    async def waits() -> None: ...

    with pytest.raises(TypeError, match="is asynchronous: it cannot run threads"):
        Handler("t", waits, mode="threads")
    with pytest.raises(TypeError, match="is not asynchronous: it cannot run async"):
        Handler("t", two, mode="async")


def at_the_top(number: int) -> int:
    return number + 1


def test_a_handler_travels_to_a_child_by_the_name_of_its_function() -> None:
    handler = Handler("t", at_the_top, queue="q", mode="processes", run_seconds=5)
    there = pickle.loads(pickle.dumps(handler))  # noqa: S301 - it is ours
    assert (there.key, there.function, there.mode, there.run_seconds) == ("q/t", at_the_top, "processes", None)
    job = a_job(1)
    assert there.perform(job, running(job)) == Done(b"2")


def test_the_closest_handler_is_found() -> None:
    handlers = Handlers()
    named = {queue: Handler("t", at_the_top, queue=queue) for queue in ("a", "tenant:*", "tenant:b*", "*", None)}
    for handler in named.values():
        handlers.add(handler)
    queues = ("a", "tenant:a", "tenant:b", "tenant:b:c", "other")
    assert [handlers.find(queue, "t") for queue in queues] == [
        *(named["a"], named["tenant:*"], named["tenant:b*"], named["tenant:b*"], named["*"])
    ]
    assert handlers.find("a", "other") is None
    with pytest.raises(ValueError, match=r"two handlers of tenant:\*/t"):
        handlers.add(Handler("t", raises, queue="tenant:*"))
    with pytest.raises(ValueError, match="two handlers of t"):
        handlers.add(Handler("t", raises))


def test_handlers_without_a_mode_take_that_of_the_worker_and_keep_their_limits() -> None:
    async def waits() -> None: ...

    handlers = Handlers()
    handlers.add(Handler("a", waits))
    handlers.add(Handler("b", at_the_top, run_seconds=3, stuck_seconds=4))
    handlers.add(Handler("c", at_the_top, mode="threads"))
    settled = handlers.settled("processes")
    assert [handler.mode for handler in settled] == ["async", "processes", "threads"]
    assert set(settled.of_processes()) == {"b"}
    (b,) = settled.of_processes().values()
    assert (b.run_seconds, b.stuck_seconds) == (3, 4)
