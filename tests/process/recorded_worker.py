"""A worker that writes down what it asks the server and what it is answered, for the checker of histories.

    recorded_worker.py URL MODE BACKEND HISTORY LEASE_SECONDS WORK_SECONDS CONCURRENCY

Each call is two lines: one when it begins, so that a worker that is killed leaves an open call, and one with its
answer. Nothing is repeated within a call, so that no answer is lost that is not written down. All processes of a
machine have the same monotonic clock.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio

from queue_actor.client import AsyncClient, ClientError, Refused
from queue_actor.client_answers import Extended, Job, Results, Settled
from queue_actor.client_bodies import Claim, ConcludeClaim, Dequeue, ExtendClaim, FailClaim, ReleaseClaim
from queue_actor.worker import App, RunningJob
from queue_actor.worker_lines import log_to_stderr

T = TypeVar("T")

DEADLY = 97
"""A child process dies of the first attempt of each job whose payload this divides."""


def work_async(seconds: float) -> Callable[[int], Awaitable[int]]:
    async def work(number: int) -> int:
        await anyio.sleep(seconds)
        return number

    return work


def work_in_thread(number: int) -> int:
    threading.Event().wait(float(os.environ["WORK_SECONDS"]))
    return number


def work_in_child(number: int, job: RunningJob) -> int:
    threading.Event().wait(float(os.environ["WORK_SECONDS"]))
    if number % DEADLY == 0 and job.attempt == 1:
        os._exit(1)
    return number


class RecordingClient:
    """Whom the worker asks; whatever goes through it is written down."""

    def __init__(self, client: AsyncClient, queue: str, file: int, lease_seconds: float) -> None:
        self._client = client
        self._queue = queue
        self._file = file
        self._lease_seconds = lease_seconds
        self._calls = 0

    async def _record(self, call: Callable[[], Awaitable[T]], told: Callable[[T], Any], **facts: Any) -> T:
        self._calls += 1
        name = f"{os.getpid()}/{self._calls}"
        self._write({"name": name, "queue": self._queue, "called": time.monotonic(), **facts})
        answer = await call()
        self._write({"name": name, "returned": time.monotonic(), "answer": told(answer)})
        return answer

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")

    async def dequeue(self, queue: str | Sequence[str], **asked: Any) -> Sequence[Job]:
        return await self._record(
            lambda: self._client.dequeue(queue, **asked),
            lambda jobs: {"jobs": _handed(jobs)},
            verb="dequeue",
            key=asked["idempotency_key"],
            lease_seconds=self._lease_seconds,
        )

    async def _settle(
        self, verb: str, many: Callable[..., Awaitable[Results[Any]]], jobs: Sequence[Claim], dequeue: Dequeue | None
    ) -> Results[Any]:
        def told(results: Results[Any]) -> Any:
            codes = [job.code if isinstance(job, Refused) else None for job in results.jobs]
            return {"codes": codes, "jobs": _handed(results.dequeued.jobs if results.dequeued else ())}

        return await self._record(
            (lambda: many(jobs)) if verb == "extend" else (lambda: many(jobs, dequeue=dequeue)),
            told,
            verb=verb,
            claims=[[job.id, job.token] for job in jobs],
            asked=dequeue is not None,
            lease_seconds=self._lease_seconds,
        )

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("conclude", self._client.conclude_many, jobs, dequeue)

    async def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("fail", self._client.fail_many, jobs, dequeue)

    async def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("release", self._client.release_many, jobs, dequeue)

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        return await self._settle("extend", self._client.extend_many, jobs, None)


def _handed(jobs: Sequence[Job]) -> list[list[Any]]:
    return [[job.id, job.payload, job.lease and job.lease.fence, job.token, job.attempts] for job in jobs]


async def main() -> None:
    url, mode, _, history, lease, work, concurrency = sys.argv[1:]
    os.environ["WORK_SECONDS"] = work
    app = App(queue=mode)
    if mode == "async":
        app.job("work")(work_async(float(work)))
    else:
        app.job("work", mode=mode)(work_in_thread if mode == "threads" else work_in_child)  # type: ignore[arg-type] # one of them
    file = os.open(history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with AsyncClient(url, timeout_seconds=3, repeat_seconds=0) as client:
        server = RecordingClient(client, mode, file, float(lease))
        await app.run_async(
            server=server,
            lease_seconds=float(lease),
            concurrency=int(concurrency),
            prefetch=int(concurrency) // 2,
            wait_seconds=1,
        )


if __name__ == "__main__":
    log_to_stderr("json")
    try:
        anyio.run(main, backend=sys.argv[3])
    except ClientError as error:
        sys.exit(str(error))
