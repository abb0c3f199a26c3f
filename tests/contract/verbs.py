"""Commands in few words, as the tests say them."""

from collections.abc import Sequence
from typing import Any, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Claim,
    Command,
    Conclude,
    ConcludeClaim,
    Dequeue,
    Enqueue,
    Enqueued,
    EnqueuedJob,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    IdempotencyKey,
    Lease,
    NewJob,
    QueueView,
    ReadJob,
    ReadQueue,
    Release,
    ReleaseClaim,
    Results,
    SetPolicy,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import QueueError
from queue_actor.jobs import Jitter, Job, JobError, QueuePolicy, Retry, RetryKind
from tests.contract.state import whole_state
from tests.fakes import EPOCH_SECONDS

HOUR_SECONDS = 3_600.0
FENCE = int(EPOCH_SECONDS * 1_000_000)  # of the first lease of a queue that was made when the test began
IDLE = EngineStatistics(inbox_requests=0, waiters=0)
AT_ONCE = Retry(RetryKind.FIXED, base_seconds=0.0, jitter=Jitter.NONE)
"""A retry policy that lets nobody wait."""

A_JOB = NewJob("a")

E = TypeVar("E", bound=QueueError)


async def enqueue(engine: Engine, *types: str, queue: str = "q", **facts: Any) -> list[EnqueuedJob]:
    """What became of new jobs, none of which was refused."""
    return accepted(await engine.execute(Enqueue(queue, [NewJob(type_, **facts) for type_ in types])))


def accepted(reply: Enqueued) -> list[EnqueuedJob]:
    jobs = [job for job in reply.jobs if isinstance(job, EnqueuedJob)]
    assert len(jobs) == len(reply.jobs)
    return jobs


async def dequeue(engine: Engine, count: int = 1, *, queue: str | tuple[str, ...] = "q", **options: Any) -> list[Lease]:
    return list((await engine.execute(Dequeue(queue, count, **options))).leases)


async def lease(engine: Engine, new: NewJob = A_JOB, *, queue: str = "q", **options: Any) -> Lease:
    """The lease of a new job."""
    await engine.execute(Enqueue(queue, [new]))
    (leased,) = await dequeue(engine, queue=queue, **options)
    return leased


async def lease_again(engine: Engine, **options: Any) -> Lease:
    """The lease of the only job there is."""
    (leased,) = await dequeue(engine, **options)
    return leased


async def read(engine: Engine, id_: int = 1, queue: str = "q") -> Job:
    return await engine.execute(ReadJob(queue, id_))


async def view(engine: Engine, queue: str = "q") -> QueueView:
    return await engine.execute(ReadQueue(queue))


async def counts(engine: Engine, queue: str = "q") -> dict[str, int]:
    """How many jobs are in which state, states without a job left out."""
    return {state.value: count for state, count in (await view(engine, queue)).counts.items() if count}


async def give_policy(engine: Engine, queue: str = "q", **policy: Any) -> QueueView:
    return await engine.execute(SetPolicy(queue, QueuePolicy(**policy)))


async def conclude(engine: Engine, leased: Lease, *, result: bytes | None = None) -> Job:
    return (await engine.execute(Conclude([to_conclude(leased, result)]))).single()


async def fail(engine: Engine, leased: Lease, **how: Any) -> Job:
    return (await engine.execute(Fail([to_fail(leased, **how)]))).single()


async def extend(engine: Engine, leased: Lease, lease_seconds: float | None = None, **how: Any) -> Job:
    return (await engine.execute(Extend([to_extend(leased, lease_seconds, **how)]))).single()


async def release(engine: Engine, leased: Lease, delay_seconds: float = 0.0) -> Job:
    return (await engine.execute(Release([to_release(leased, delay_seconds)]))).single()


def shown(leased: Lease) -> Claim:
    """The claim of a worker who shows his token."""
    return Claim(leased.job.queue, leased.job.id, leased.token)


def to_conclude(leased: Lease, result: bytes | None = None) -> ConcludeClaim:
    return ConcludeClaim(leased.job.queue, leased.job.id, leased.token, result=result)


def to_fail(leased: Lease, **how: Any) -> FailClaim:
    return FailClaim(leased.job.queue, leased.job.id, leased.token, **how)


def to_release(leased: Lease, delay_seconds: float = 0.0) -> ReleaseClaim:
    return ReleaseClaim(leased.job.queue, leased.job.id, leased.token, delay_seconds=delay_seconds)


def to_extend(leased: Lease, lease_seconds: float | None = None, **how: Any) -> ExtendClaim:
    return ExtendClaim(leased.job.queue, leased.job.id, leased.token, lease_seconds=lease_seconds, **how)


def boom(message: str = "it broke", type_: str = "Boom") -> JobError:
    return JobError(type_, message)


def key(name: str = "k", body: bytes = b"body", scope: str = "here") -> IdempotencyKey:
    return IdempotencyKey(scope, name, body)


def types(leases: Sequence[Lease]) -> list[str]:
    return [leased.job.type for leased in leases]


def ids(leases: Sequence[Lease]) -> list[int]:
    return [leased.job.id for leased in leases]


async def pass_time(seconds: float) -> None:
    """Let time pass, and whoever wakes at the end of it do his work."""
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


async def refusal(engine: Engine, command: Command[Any], expected: type[E]) -> E:
    """The refusal of a command, or of the only job it names; it must leave the whole state as it was."""
    before = whole_state(engine)
    try:
        answer = await engine.execute(command)
        if isinstance(answer, Results | Enqueued):
            (answer,) = answer.jobs
    except QueueError as raised:
        answer = raised
    assert type(answer) is expected, answer
    assert whole_state(engine) == before
    return answer
