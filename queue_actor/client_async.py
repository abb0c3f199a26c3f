"""The client for programs on Trio or asyncio."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, Unpack

import anyio

from queue_actor import client_requests as requests
from queue_actor.client_answers import (
    Access,
    Chunk,
    Enqueued,
    Extended,
    Job,
    Matched,
    Overview,
    Page,
    Queue,
    QueueTrend,
    Results,
    Settled,
    Statistics,
    Why,
)
from queue_actor.client_bodies import (
    ConcludeClaim,
    Dequeue,
    ExtendClaim,
    FailClaim,
    Filter,
    JobFields,
    Leased,
    NewJob,
    Order,
    Policy,
    ReleaseClaim,
    Search,
    claim_of_failure,
)
from queue_actor.client_errors import Invalid
from queue_actor.client_events import Shape, follow
from queue_actor.client_followers import AsyncEvents
from queue_actor.client_repeats import Waits
from queue_actor.client_streams import Stream
from queue_actor.client_tasks import Connections, each
from queue_actor.jobs import JobError

T = TypeVar("T")


class AsyncClient(Connections):
    """A client of a queue-actor server, on Trio or asyncio: a block that tasks may share, with open connections.

        async with AsyncClient() as client:
            await client.enqueue("images", "resize", {"w": 1280})

    Each call raises a `ClientError` of client_errors.py if it is refused, or if there is no answer. What may be
    repeated, by web/README.md, has been by then, for up to `repeat_seconds`.

    Attributes:
        instance: The `Queue-Instance` that was seen last. When it changes, ids that you knew are gone.
        durability: What the last enqueue's answer is worth: `memory`, `normal` or `full`; empty before the first.
    """

    # --- enqueue and dequeue

    async def enqueue(
        self,
        queue: str,
        type: str,  # noqa: A002 - as it is called everywhere
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Enqueued:
        """Add a job.

        Calls from several tasks at the same time share a request, unless they name a key.

        Args:
            queue: Its name.
            type: What kind of work this is.
            payload: What the worker needs to know: whatever msgspec can encode.
            idempotency_key: Under which you would repeat this call yourself; the client's own repeats have one anyway.
            fields: What else there is to a job, such as `delay_seconds` and `unique_key`.
        """
        body = requests.encoded(NewJob(type, payload, **fields))
        if not self._coalesce or idempotency_key is not None:
            return await self.send(requests.enqueue_one(queue, body, idempotency_key))
        return await self._sender("enqueue", queue, partial(requests.enqueue_bodies, queue)).call(body)

    async def enqueue_many(
        self, queue: str, jobs: Iterable[NewJob], *, idempotency_key: str | None = None
    ) -> Results[Enqueued]:
        """Add jobs in one request, all or none; only unique keys are answered job by job."""
        return await self.send(requests.enqueue(queue, jobs, idempotency_key))

    async def enqueue_stream(
        self, queue: str, jobs: Iterable[NewJob | bytes] | AsyncIterable[NewJob | bytes]
    ) -> AsyncIterator[Chunk]:
        """Add any number of jobs, in constant memory; `bytes` are lines of NDJSON. What became of each chunk.

        A job that is refused does not keep its neighbours from being enqueued: `errors` of its chunk names it by line.
        If it ends early, the last chunk tells which line was the last one done; of those that follow nothing was done,
        or nobody knows, if it ends with `OutcomeUnknown` or an `Unreachable` that `may_be_done`.
        """
        stream = Stream()
        async for job in each(jobs):
            if stream.add(job, anyio.current_time()):
                async for chunk in self._send_piece(queue, stream):
                    yield chunk
        async for chunk in self._send_piece(queue, stream):
            yield chunk

    async def dequeue(
        self,
        queue: str | Sequence[str],
        *,
        count: int = 1,
        wait_seconds: float = 0.0,
        lease_seconds: float | None = None,
        consumer: str | None = None,
        order: Order = "listed",
        idempotency_key: str | None = None,
    ) -> Sequence[Job]:
        """Lease the first jobs in line: of a queue, of several, or of all whose names begin alike (`tenant:*`)."""
        return await self.send(
            requests.dequeue(
                queue,
                count=count,
                wait_seconds=wait_seconds,
                lease_seconds=lease_seconds,
                consumer=consumer,
                order=order,
                key=idempotency_key,
            )
        )

    # --- the end of an attempt

    async def conclude(self, job: Leased, result: Any = None, *, dequeue: Dequeue | None = None) -> Settled:
        """The job is done. With a `dequeue`, the same request asks for the next one.

        Calls from several tasks at the same time share a request, unless they dequeue.
        """
        claim = ConcludeClaim.of(job, result=result)
        if not self._coalesce or dequeue is not None:
            return await self.send(requests.settle("conclude", claim, dequeue))
        make = partial(requests.settle_bodies, "conclude", claim.queue)
        return await self._sender("conclude", claim.queue, make).call(requests.encoded(claim))

    async def fail(
        self,
        job: Leased,
        error: JobError | BaseException | None = None,
        *,
        retry: bool = True,
        retry_after_seconds: float | None = None,
        dequeue: Dequeue | None = None,
    ) -> Settled:
        """The attempt failed. `retry=False`: no retry helps, and the job is dead."""
        claim = claim_of_failure(job, error, retry=retry, retry_after_seconds=retry_after_seconds)
        return await self.send(requests.settle("fail", claim, dequeue))

    async def extend(self, job: Leased, *, lease_seconds: float | None = None, progress: Any = None) -> Extended:
        """The heartbeat: the lease begins again, now. Give the work up if `cancel_requested` is true."""
        return await self.send(requests.extend(ExtendClaim.of(job, lease_seconds=lease_seconds, progress=progress)))

    async def release(self, job: Leased, *, delay_seconds: float = 0.0, dequeue: Dequeue | None = None) -> Settled:
        """The job is given back, unfinished; that counts neither as failed nor as stale."""
        return await self.send(requests.settle("release", ReleaseClaim.of(job, delay_seconds=delay_seconds), dequeue))

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """The same of many jobs, each answered for itself; so are the next three."""
        return await self.send(requests.settle_many("conclude", jobs, dequeue))

    async def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """See `fail`."""
        return await self.send(requests.settle_many("fail", jobs, dequeue))

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        """See `extend`."""
        return await self.send(requests.extend_many(jobs))

    async def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """See `release`."""
        return await self.send(requests.settle_many("release", jobs, dequeue))

    # --- look

    async def read_job(self, queue: str, id: int, *, wait_seconds: float = 0.0) -> Job:  # noqa: A002 - as it is called
        """One job, whole, with its history; or as it is when it has ended, or the wait has."""
        return await self.send(requests.read_job(queue, id, wait_seconds))

    async def wait_for_end(self, queue: str, id: int, *, seconds: float | None = None) -> Job:  # noqa: A002 - as it is called
        """One job when it is concluded, dead or cancelled, or after so many seconds; None: however long it takes."""
        waits = Waits(seconds, anyio.current_time())
        while True:
            try:
                job = await self.read_job(queue, id, wait_seconds=waits.next(anyio.current_time()))
            except Invalid as refused:
                waits.refused(refused)
            else:
                if job.finished or waits.over(anyio.current_time()):
                    return job

    async def search(self, queue: str, **search: Unpack[Search]) -> Page[Job]:
        """A page of the jobs that match."""
        return await self.send(requests.search(queue, **search))

    async def jobs(self, queue: str, **search: Unpack[Search]) -> AsyncIterator[Job]:
        """All jobs that match, page by page as they are asked for."""
        while True:
            page = await self.search(queue, **search)
            for item in page.items:
                yield item
            if page.next_cursor is None:
                return
            search["cursor"] = page.next_cursor

    async def list_queues(
        self, *, prefix: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Queue]:
        """A page of the queues that exist, by name."""
        return await self.send(requests.list_queues(prefix, limit, cursor))

    async def queues(self, *, prefix: str | None = None) -> AsyncIterator[Queue]:
        """All queues that exist, by name, page by page as they are asked for."""
        cursor = None
        while True:
            page = await self.list_queues(prefix=prefix, cursor=cursor)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def read_queue(self, queue: str) -> Queue:
        """A queue in figures; one that does not exist reads as empty."""
        return await self.send(requests.read_queue(queue))

    async def overview(
        self,
        *,
        prefix: str | None = None,
        order: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Overview:
        """All queues at a glance, and a page of them: `busiest` first, or `waiting`, `failing`, `oldest`, by `name`."""
        return await self.send(requests.overview(prefix, order, limit, cursor))

    async def trend(self, queue: str) -> QueueTrend:
        """What happened in a queue in each of the last sixty minutes."""
        return await self.send(requests.trend(queue))

    async def why(self, queue: str, id: int) -> Why:  # noqa: A002 - as it is called
        """Why a job is not running now."""
        return await self.send(requests.why(queue, id))

    def follow(
        self,
        queue: str | None = None,
        *,
        type: str | None = None,  # noqa: A002 - as it is called everywhere
        state: str | Sequence[str] | None = None,
        shape: Shape = "jobs",
        wait_seconds: float | None = None,
        after: str | None = None,
    ) -> AsyncEvents:
        """What becomes of jobs, as it happens: `Opened` first, then a `JobEvent` for each step of each of them.

        Args:
            queue: Of this queue, or of all that begin so (`tenant:*`). None: of all that may be read.
            type: Of jobs of this type.
            state: Only what leads to one of these states.
            shape: `queues`: no more than which queues have moved, as a `QueuesEvent`.
            wait_seconds: End after so long, when what there is has been told. None: go on.
            after: Go on behind the event that is named so: `last_id` of what an earlier call has returned.
        """
        return self._follow(
            follow(
                queue=queue,
                type_=type,
                state=state,
                shape=shape,
                after=after,
                wait_seconds=wait_seconds,
                repeat_seconds=self._repeat_seconds,
            )
        )

    async def access(self) -> Access:
        """What this client may do."""
        return await self.send(requests.access())

    async def statistics(self) -> Statistics:
        """Figures of the server, of this moment."""
        return await self.send(requests.statistics())

    async def get(self, path: str) -> str:
        """What a path answers with, as a text: `/readyz`, `/metrics`, `/openapi.json`."""
        return await self.send(requests.text(path))

    # --- operate

    async def put_queue(self, queue: str, *, paused: bool | None = None, **policy: Unpack[Policy]) -> Queue:
        """Give a queue its policy, the whole of it, and make the queue if it does not exist."""
        return await self.send(requests.put_queue(queue, paused, policy))

    async def delete_queue(self, queue: str) -> Queue:
        """Delete a queue that has no unfinished jobs."""
        return await self.send(requests.delete_queue(queue))

    async def pause(self, queue: str) -> Queue:
        """Stop handing out the jobs of a queue."""
        return await self.send(requests.pause(queue, paused=True))

    async def resume(self, queue: str) -> Queue:
        """Hand them out again."""
        return await self.send(requests.pause(queue, paused=False))

    async def cancel(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Call a job off; of one that is in progress that is a wish."""
        return await self.send(requests.operate("cancel", queue, id))

    async def redrive(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Queue a dead or cancelled job again."""
        return await self.send(requests.operate("redrive", queue, id))

    async def run(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Make a scheduled job ready now."""
        return await self.send(requests.operate("run", queue, id))

    async def take_back(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Release a job without its token, whoever has it."""
        return await self.send(requests.operate("release", queue, id))

    async def forget(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Forget a job that has ended, before its time."""
        return await self.send(requests.forget(queue, id))

    async def redrive_matching(
        self,
        queue: str,
        *,
        state: str | Sequence[str] | None = None,
        per_second: float | None = None,
        dry_run: bool = False,
        **where: Unpack[Filter],
    ) -> Matched:
        """Queue all dead and cancelled jobs that match again, so many a second if that is given."""
        return await self.send(
            requests.matching("redrive", queue, where, state=state, per_second=per_second, dry_run=dry_run)
        )

    async def cancel_matching(
        self, queue: str, *, state: str | Sequence[str] | None = None, dry_run: bool = False, **where: Unpack[Filter]
    ) -> Matched:
        """Call off all jobs that match and have not ended."""
        return await self.send(requests.matching("cancel", queue, where, state=state, dry_run=dry_run))

    async def purge(
        self, queue: str, *, state: str | Sequence[str], dry_run: bool = False, **where: Unpack[Filter]
    ) -> Matched:
        """Forget all jobs that match, in one of these states; those in progress are never touched."""
        return await self.send(requests.matching("purge", queue, where, state=state, dry_run=dry_run))

    async def take_back_matching(self, queue: str, *, dry_run: bool = False, **where: Unpack[Filter]) -> Matched:
        """Release what a consumer holds, which has to be named."""
        return await self.send(requests.matching("release", queue, where, dry_run=dry_run))

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file that holds everything, piece by piece.

        async with client.backup() as pieces:
            async for piece in pieces:
                file.write(piece)

        An answer that breaks off raises `Unreachable` where it does: what came before that is no backup.
        """
        async with self._whole(requests.backup()) as response:
            yield response.aiter_bytes()
