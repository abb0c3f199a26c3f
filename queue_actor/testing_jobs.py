"""What the simulated workers of testing.py have in their hands: a job, and a function that does it."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

import msgspec
import trio

from queue_actor.commands import (
    Claim,
    Command,
    Conclude,
    ConcludeClaim,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Lease,
    Release,
    ReleaseClaim,
    Results,
)
from queue_actor.jobs import Job, JobError


class GiveUp(Exception):
    """Raised by a handler: there is no use in trying again. The job is dead at once."""


class Queue(Protocol):
    """The queue of a job: `SimulatedQueue` is one."""

    name: str

    async def tell(self, command: Command[Results]) -> Job:
        """Send a command about one job, or raise the refusal."""
        ...


class RunningJob:
    """What a handler is given: a job, as its worker got it.

    Attributes:
        id: Its number, the same each time.
        type: Its type.
        payload: Its payload, decoded; None if there is none.
        meta: What its producer said beside it.
        attempt: 1 for the first time it is handed out.
        fence: Grows with each lease; a store that remembers the highest one it has seen can refuse who comes late.
        lease_seconds: How long it is leased, counted from now or from the last `extend`.
    """

    def __init__(self, queue: Queue, lease: Lease) -> None:
        job = lease.job
        self.id = job.id
        self.type = job.type
        self.payload: Any = None if job.payload is None else json.loads(job.payload)
        self.meta = job.options.meta or {}
        self.attempt = job.attempts
        self.fence = job.fence
        self.lease_seconds = job.lease_seconds
        self._queue = queue
        self._token = lease.token

    def __repr__(self) -> str:
        return f"<RunningJob {self.id} {self.type} attempt={self.attempt}>"

    def claim(self, kind: Callable[..., Any] = Claim, **more: Any) -> Any:
        """The proof that the job is in these hands."""
        return kind(queue=self._queue.name, id=self.id, token=self._token, **more)

    async def extend(self, lease_seconds: float | None = None, progress: Any = None) -> Job:
        """Start the lease again from now, and tell how far the work is. `cancel_requested` of the answer may be set.

        Raises:
            LeaseLost: Somebody else has the job, or had it.
            QueueError: Whatever else `Extend` is refused with.
        """
        told = None if progress is None else msgspec.json.encode(progress)
        return await self._queue.tell(Extend([self.claim(ExtendClaim, lease_seconds=lease_seconds, progress=told)]))


Handler = Callable[[RunningJob], Coroutine[Any, Any, Any]]
"""What it returns is the job's result, which must be JSON; what it raises fails the attempt."""


class Task(Protocol):
    """A job in a worker's hands.

    Attributes:
        stopped: What the server is told where the work was stopped; None: it was not.
    """

    stopped: Command[Results] | None

    async def work(self) -> Command[Results]:
        """Do it; what the server is to be told."""
        ...

    def stop(self, reason: Literal["lost", "cancelled"]) -> None:
        """The work is to stop."""
        ...

    async def watch(self, scope: trio.CancelScope) -> None:
        """Stop it when it takes too long."""
        ...

    async def until_beat(self) -> None:
        """Wait until the lease is to be extended."""
        ...

    async def beat(self) -> Job:
        """Extend it, or raise the refusal."""
        ...


class FunctionTask:
    """A job, and a function that does it."""

    def __init__(self, handler: Handler, job: RunningJob, _lease: Lease) -> None:
        self.stopped: Command[Results] | None = None
        self._job = job
        self._handler = handler

    async def work(self) -> Command[Results]:
        """Do it; what the server is to be told."""
        try:
            result = await self._handler(self._job)
            told = None if result is None else msgspec.json.encode(result)
        except GiveUp as error:
            return Fail([self._job.claim(FailClaim, error=_told(error), retry=False)])
        except Exception as error:  # noqa: BLE001 - whatever it is, the job's history is where it belongs
            return Fail([self._job.claim(FailClaim, error=_told(error))])
        return Conclude([self._job.claim(ConcludeClaim, result=told)])

    def stop(self, _reason: Literal["lost", "cancelled"]) -> None:
        """The work is to stop."""
        self.stopped = Release([self._job.claim(ReleaseClaim)])

    async def watch(self, _scope: trio.CancelScope) -> None:
        """It may take as long as it likes."""

    async def until_beat(self) -> None:
        """Wait for a third of the lease."""
        await trio.sleep(self._job.lease_seconds / 3)

    async def beat(self) -> Job:
        """Extend the lease."""
        return await self._job.extend()


MakesTask = Callable[[RunningJob, Lease], Task]


def _told(error: Exception) -> JobError:
    return JobError(type(error).__name__, str(error)[:1_000])
