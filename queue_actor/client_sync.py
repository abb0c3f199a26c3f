"""The client for programs with threads, or with one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, TypeVar, Unpack

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
from queue_actor.client_followers import Events
from queue_actor.client_repeats import Waits
from queue_actor.client_streams import Stream
from queue_actor.client_threads import Connections
from queue_actor.jobs import JobError

T = TypeVar("T")


class Client(Connections):
    """A client of a queue-actor server. It may be shared by threads, and keeps its connections open.

    Each call raises a `ClientError` of client_errors.py if it is refused, or if there is no answer. What may be
    repeated, by web/README.md, has been by then, for up to `repeat_seconds`.

    Attributes:
        instance: The `Queue-Instance` that was seen last. When it changes, ids that you knew are gone.
        durability: What the last enqueue's answer is worth: `memory`, `normal` or `full`; empty before the first.
    """

    # --- enqueue and dequeue

    def enqueue(
        self,
        queue: str,
        type: str,  # noqa: A002 - as it is called everywhere
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Enqueued:
        """Add a job.

        Calls from several threads at the same time share a request, unless they name a key.

        Args:
            queue: Its name.
            type: What kind of work this is.
            payload: What the worker needs to know: whatever msgspec can encode.
            idempotency_key: Under which you would repeat this call yourself; the client's own repeats have one anyway.
            fields: What else there is to a job, such as `delay_seconds` and `unique_key`.
        """
        body = requests.encoded(NewJob(type, payload, **fields))
        if not self._coalesce or idempotency_key is not None:
            return self.send(requests.enqueue_one(queue, body, idempotency_key))
        return self._turns("enqueue", queue, partial(requests.enqueue_bodies, queue)).call(body)

    def enqueue_many(
        self, queue: str, jobs: Iterable[NewJob], *, idempotency_key: str | None = None
    ) -> Results[Enqueued]:
        """Add jobs in one request, all or none; only unique keys are answered job by job."""
        return self.send(requests.enqueue(queue, jobs, idempotency_key))

    def enqueue_stream(self, queue: str, jobs: Iterable[NewJob | bytes]) -> Iterator[Chunk]:
        """Add any number of jobs, in constant memory; `bytes` are lines of NDJSON. What became of each chunk.

        A job that is refused does not keep its neighbours from being enqueued: `errors` of its chunk names it by line.
        If it ends early, the last chunk tells which line was the last one done; of those that follow nothing was done,
        or nobody knows, if it ends with `OutcomeUnknown` or an `Unreachable` that `may_be_done`.
        """
        stream = Stream()
        for job in jobs:
            if stream.add(job, monotonic()):
                yield from self._send_piece(queue, stream)
        yield from self._send_piece(queue, stream)

    def dequeue(
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
        return self.send(
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

    def conclude(self, job: Leased, result: Any = None, *, dequeue: Dequeue | None = None) -> Settled:
        """The job is done. With a `dequeue`, the same request asks for the next one.

        Calls from several threads at the same time share a request, unless they dequeue.
        """
        claim = ConcludeClaim.of(job, result=result)
        if not self._coalesce or dequeue is not None:
            return self.send(requests.settle("conclude", claim, dequeue))
        make = partial(requests.settle_bodies, "conclude", claim.queue)
        return self._turns("conclude", claim.queue, make).call(requests.encoded(claim))

    def fail(
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
        return self.send(requests.settle("fail", claim, dequeue))

    def extend(self, job: Leased, *, lease_seconds: float | None = None, progress: Any = None) -> Extended:
        """The heartbeat: the lease begins again, now. Give the work up if `cancel_requested` is true."""
        return self.send(requests.extend(ExtendClaim.of(job, lease_seconds=lease_seconds, progress=progress)))

    def release(self, job: Leased, *, delay_seconds: float = 0.0, dequeue: Dequeue | None = None) -> Settled:
        """The job is given back, unfinished; that counts neither as failed nor as stale."""
        return self.send(requests.settle("release", ReleaseClaim.of(job, delay_seconds=delay_seconds), dequeue))

    def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """The same of many jobs, each answered for itself; so are the next three."""
        return self.send(requests.settle_many("conclude", jobs, dequeue))

    def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """See `fail`."""
        return self.send(requests.settle_many("fail", jobs, dequeue))

    def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        """See `extend`."""
        return self.send(requests.extend_many(jobs))

    def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """See `release`."""
        return self.send(requests.settle_many("release", jobs, dequeue))

    # --- look

    def read_job(self, queue: str, id: int, *, wait_seconds: float = 0.0) -> Job:  # noqa: A002 - as it is called
        """One job, whole, with its history; or as it is when it has ended, or the wait has."""
        return self.send(requests.read_job(queue, id, wait_seconds))

    def wait_for_end(self, queue: str, id: int, *, seconds: float | None = None) -> Job:  # noqa: A002 - as it is called
        """One job when it is concluded, dead or cancelled, or after so many seconds; None: however long it takes."""
        waits = Waits(seconds, monotonic())
        while True:
            try:
                job = self.read_job(queue, id, wait_seconds=waits.next(monotonic()))
            except Invalid as refused:
                waits.refused(refused)
            else:
                if job.finished or waits.over(monotonic()):
                    return job

    def search(self, queue: str, **search: Unpack[Search]) -> Page[Job]:
        """A page of the jobs that match."""
        return self.send(requests.search(queue, **search))

    def jobs(self, queue: str, **search: Unpack[Search]) -> Iterator[Job]:
        """All jobs that match, page by page as they are asked for."""
        while True:
            page = self.search(queue, **search)
            yield from page.items
            if page.next_cursor is None:
                return
            search["cursor"] = page.next_cursor

    def list_queues(
        self, *, prefix: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Queue]:
        """A page of the queues that exist, by name."""
        return self.send(requests.list_queues(prefix, limit, cursor))

    def queues(self, *, prefix: str | None = None) -> Iterator[Queue]:
        """All queues that exist, by name, page by page as they are asked for."""
        cursor = None
        while True:
            page = self.list_queues(prefix=prefix, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def read_queue(self, queue: str) -> Queue:
        """A queue in figures; one that does not exist reads as empty."""
        return self.send(requests.read_queue(queue))

    def overview(
        self,
        *,
        prefix: str | None = None,
        order: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Overview:
        """All queues at a glance, and a page of them: `busiest` first, or `waiting`, `failing`, `oldest`, by `name`."""
        return self.send(requests.overview(prefix, order, limit, cursor))

    def trend(self, queue: str) -> QueueTrend:
        """What happened in a queue in each of the last sixty minutes."""
        return self.send(requests.trend(queue))

    def why(self, queue: str, id: int) -> Why:  # noqa: A002 - as it is called
        """Why a job is not running now."""
        return self.send(requests.why(queue, id))

    def follow(
        self,
        queue: str | None = None,
        *,
        type: str | None = None,  # noqa: A002 - as it is called everywhere
        state: str | Sequence[str] | None = None,
        shape: Shape = "jobs",
        wait_seconds: float | None = None,
        after: str | None = None,
    ) -> Events:
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

    def access(self) -> Access:
        """What this client may do."""
        return self.send(requests.access())

    def statistics(self) -> Statistics:
        """Figures of the server, of this moment."""
        return self.send(requests.statistics())

    def get(self, path: str) -> str:
        """What a path answers with, as a text: `/readyz`, `/metrics`, `/openapi.json`."""
        return self.send(requests.text(path))

    # --- operate

    def put_queue(self, queue: str, *, paused: bool | None = None, **policy: Unpack[Policy]) -> Queue:
        """Give a queue its policy, the whole of it, and make the queue if it does not exist."""
        return self.send(requests.put_queue(queue, paused, policy))

    def delete_queue(self, queue: str) -> Queue:
        """Delete a queue that has no unfinished jobs."""
        return self.send(requests.delete_queue(queue))

    def pause(self, queue: str) -> Queue:
        """Stop handing out the jobs of a queue."""
        return self.send(requests.pause(queue, paused=True))

    def resume(self, queue: str) -> Queue:
        """Hand them out again."""
        return self.send(requests.pause(queue, paused=False))

    def cancel(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Call a job off; of one that is in progress that is a wish."""
        return self.send(requests.operate("cancel", queue, id))

    def redrive(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Queue a dead or cancelled job again."""
        return self.send(requests.operate("redrive", queue, id))

    def run(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Make a scheduled job ready now."""
        return self.send(requests.operate("run", queue, id))

    def take_back(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Release a job without its token, whoever has it."""
        return self.send(requests.operate("release", queue, id))

    def forget(self, queue: str, id: int) -> Settled:  # noqa: A002 - as it is called
        """Forget a job that has ended, before its time."""
        return self.send(requests.forget(queue, id))

    def redrive_matching(
        self,
        queue: str,
        *,
        state: str | Sequence[str] | None = None,
        per_second: float | None = None,
        dry_run: bool = False,
        **where: Unpack[Filter],
    ) -> Matched:
        """Queue all dead and cancelled jobs that match again, so many a second if that is given."""
        return self.send(
            requests.matching("redrive", queue, where, state=state, per_second=per_second, dry_run=dry_run)
        )

    def cancel_matching(
        self, queue: str, *, state: str | Sequence[str] | None = None, dry_run: bool = False, **where: Unpack[Filter]
    ) -> Matched:
        """Call off all jobs that match and have not ended."""
        return self.send(requests.matching("cancel", queue, where, state=state, dry_run=dry_run))

    def purge(
        self, queue: str, *, state: str | Sequence[str], dry_run: bool = False, **where: Unpack[Filter]
    ) -> Matched:
        """Forget all jobs that match, in one of these states; those in progress are never touched."""
        return self.send(requests.matching("purge", queue, where, state=state, dry_run=dry_run))

    def take_back_matching(self, queue: str, *, dry_run: bool = False, **where: Unpack[Filter]) -> Matched:
        """Release what a consumer holds, which has to be named."""
        return self.send(requests.matching("release", queue, where, dry_run=dry_run))

    @contextmanager
    def backup(self) -> Iterator[Iterator[bytes]]:
        """The file that holds everything, piece by piece.

        with client.backup() as pieces, open("queue.sqlite", "wb") as file:
            file.writelines(pieces)

        An answer that breaks off raises `Unreachable` where it does: what came before that is no backup.
        """
        with self._whole(requests.backup()) as response:
            yield response.iter_bytes()
