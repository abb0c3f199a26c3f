"""The handlers of a worker's `App` in the simulated workers of testing.py, which runs them as they are.

An asynchronous handler runs on Trio, and its awaits are where trouble strikes. One that is not runs at once, wherever
it would run elsewhere: a thread or a child process lives in another time. What it is given, what its payload is
converted to, and what comes of what it returns and raises is decided by the code of the worker.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from typing import Any, Protocol

import msgspec
import trio

from queue_actor import client_answers as answers
from queue_actor.commands import (
    Command,
    Conclude,
    ConcludeClaim,
    Fail,
    FailClaim,
    Lease,
    Release,
    ReleaseClaim,
    Results,
)
from queue_actor.handlers import Done, Failed, Handlers, Outcome, Released, RunningJob, StopReason, job_error
from queue_actor.heartbeats import PROGRESS_SECONDS
from queue_actor.jobs import Job
from queue_actor.worker_loop import no_handler_seconds


class Holding(Protocol):
    """Who holds a job: the `RunningJob` of testing.py is one."""

    lease_seconds: float

    def claim(self, kind: Callable[..., Any], **more: Any) -> Any:
        """The proof that the job is in these hands."""
        ...

    async def extend(self, lease_seconds: float | None = None, progress: Any = None) -> Job:
        """Start the lease again."""
        ...


class AppTask:
    """A job, and the handler of an app that does it.

    Attributes:
        stopped: What the server is told where the handler was stopped; None: it was not.
    """

    def __init__(self, holding: Holding, lease: Lease, handlers: Handlers) -> None:
        """It has just been handed out."""
        self.stopped: Command[Results] | None = None
        self._holding = holding
        self._job = as_client_sees(lease)
        self._handler = handlers.find(self._job.queue, self._job.type)
        self._running = RunningJob(self._job, self._report)
        self._began_at = self._reported_at = trio.current_time()
        self._progress: bytes | None = None
        self._news = trio.Event()

    def _report(self, progress: bytes) -> None:
        self._progress = progress
        self._reported_at = trio.current_time()
        self._news.set()
        self._news = trio.Event()

    async def work(self) -> Command[Results]:
        """Do the job; what the server is to be told."""
        return self._told(await self._outcome())

    async def _outcome(self) -> Outcome:
        if self._handler is None:
            return Released(no_handler_seconds(self._job.attempts))
        if self._handler.mode == "async":
            return await self._handler.perform_async(self._job, self._running)
        await trio.lowlevel.checkpoint()
        return self._handler.perform(self._job, self._running)

    def _told(self, outcome: Outcome) -> Command[Results]:
        claim = self._holding.claim
        match outcome:
            case Done(result):
                return Conclude([claim(ConcludeClaim, result=result)])
            case Failed(error, retry, retry_after_seconds):
                facts = {"error": error, "retry": retry, "retry_after_seconds": retry_after_seconds}
                return Fail([claim(FailClaim, **facts)])
            case _:
                return Release([claim(ReleaseClaim, delay_seconds=getattr(outcome, "delay_seconds", 0.0))])

    # --- what stops it

    def stop(self, reason: StopReason) -> None:
        """The handler is to stop, and to see why."""
        self._running.stopping = reason
        match reason:
            case "time_limit":
                self.stopped = self._told(Failed(job_error("TimeLimit", "it ran for longer than its run_seconds")))
            case "stuck":
                self.stopped = self._told(Failed(job_error("Stuck", "it has reported no progress for too long")))
            case _:
                self.stopped = self._told(Released())

    async def watch(self, scope: trio.CancelScope) -> None:
        """Stop a handler that takes too long, in all or without progress."""
        if self._handler is None:
            return
        run_seconds = inf if self._handler.run_seconds is None else self._handler.run_seconds
        stuck_seconds = inf if self._handler.stuck_seconds is None else self._handler.stuck_seconds
        limit_at = self._began_at + run_seconds
        while trio.current_time() < (until := min(limit_at, self._reported_at + stuck_seconds)):
            with trio.move_on_at(until):
                await self._news.wait()
        self.stop("time_limit" if until == limit_at else "stuck")
        scope.cancel()

    # --- heartbeats

    async def until_beat(self) -> None:
        """Wait until the lease is to be extended: every third of it, and soon when there is progress to tell."""
        with trio.move_on_after(self._holding.lease_seconds / 3):
            if self._progress is None:
                await self._news.wait()
            await trio.sleep(PROGRESS_SECONDS)

    async def beat(self) -> Job:
        """Extend the lease, and tell the progress.

        Raises:
            QueueError: The refusal.
        """
        progress, self._progress = self._progress, None
        return await self._holding.extend(progress=None if progress is None else msgspec.Raw(progress))


def as_client_sees(lease: Lease) -> answers.Job:
    """A job as the client's answer to a dequeue has it."""
    job = lease.job
    options = job.options
    return answers.Job(
        queue=job.queue,
        id=job.id,
        type=job.type,
        state=job.state,
        priority=job.priority,
        payload_raw=_raw(job.payload),
        meta=options.meta or {},
        traceparent=options.traceparent,
        unique_key=options.unique_key,
        created_at=_time(job.created_at),
        not_before=None if job.not_before is None else _time(job.not_before),
        expires_at=None if job.expires_at is None else _time(job.expires_at),
        attempts=job.attempts,
        fails=job.fails,
        stales=job.stales,
        max_attempts=options.max_attempts,
        consumer=job.consumer,
        lease=answers.Lease(job.fence, job.lease_seconds, _time(job.lease_expires_at or 0.0), lease.token),
        cancel_requested=job.cancel_requested,
        progress_raw=_raw(job.progress),
        result_raw=_raw(job.result),
        reason=job.reason,
        finished_at=None,
    )


def _raw(text: bytes | None) -> msgspec.Raw:
    return answers.NULL if text is None else msgspec.Raw(text)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
