"""Workers in virtual time: the loop, its client's own requests and answers, and the whole server in memory.

What is in place of the real thing is the network, and the clocks. The network does what a test tells it to.
"""

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import trio

from queue_actor import client_requests as requests
from queue_actor.client_answers import Extended, Job, Results, Settled
from queue_actor.client_bodies import ConcludeClaim, Dequeue, ExtendClaim, FailClaim, Order, ReleaseClaim
from queue_actor.client_errors import Unreachable, refusal
from queue_actor.client_exchange import Answer, Request, read
from queue_actor.settings import Settings
from queue_actor.worker import App, Worker
from tests.contract import v1
from tests.contract.stack import Server, serving

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0


class Asked(NamedTuple):
    """A request of a worker."""

    verb: str
    at: float
    jobs: int  # that it tells of, or asks for


class InMemoryClient:
    """Whom workers ask.

    Attributes:
        asked: What they asked for, in order.
        plans: For each verb what is to become of its next requests: "lose" the answer, "break" off before it arrives,
            "late" for a request and "slow" for an answer that takes TIMEOUT_SECONDS on its way, or a code to be refused
            with; "" is nothing.
        cut_off: Whether nothing arrives at all, and nobody says so.
    """

    def __init__(self, server: Server) -> None:
        self.asked: list[Asked] = []
        self.plans: dict[str, deque[str]] = defaultdict(deque)
        self.cut_off = False
        self._server = server

    def verbs(self, *wanted: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.verb in wanted]

    async def _send(self, verb: str, jobs: int, request: Request[T]) -> T:
        self.asked.append(Asked(verb, trio.current_time(), jobs))
        plan = self.plans[verb].popleft() if self.plans[verb] else ""
        if self.cut_off:
            await trio.sleep(TIMEOUT_SECONDS)
            raise Unreachable("no answer within 10 s", may_be_done=True)
        if plan == "break":
            raise Unreachable("the connection broke", may_be_done=True)
        if plan == "late":
            await trio.sleep(TIMEOUT_SECONDS)
        elif plan not in {"", "lose", "slow"}:
            raise refusal(plan, "as the test has it")
        client = self._server.connect()
        try:
            headers = list(request.headers.items())
            answer = await client.ask(request.method, request.path, request.body, headers)
        finally:
            with trio.CancelScope(shield=True):
                await client.leave()
        if plan == "slow":
            await trio.sleep(TIMEOUT_SECONDS)
        if plan == "lose":
            raise Unreachable("the answer was lost", may_be_done=True)
        return read(request, Answer(answer.status, answer.headers, answer.body))

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
        request = requests.dequeue(
            queue,
            count=count,
            wait_seconds=wait_seconds,
            lease_seconds=lease_seconds,
            consumer=consumer,
            order=order,
            key=idempotency_key,
        )
        return await self._send("dequeue", count, request)

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._send("conclude", len(jobs), requests.settle_many("conclude", jobs, dequeue))

    async def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._send("fail", len(jobs), requests.settle_many("fail", jobs, dequeue))

    async def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._send("release", len(jobs), requests.settle_many("release", jobs, dequeue))

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        return await self._send("extend", len(jobs), requests.extend_many(jobs))


class World:
    """A server, and workers of it."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self.server = server
        self._nursery = nursery

    def client(self) -> InMemoryClient:
        return InMemoryClient(self.server)

    def start(self, app: App, client: InMemoryClient | None = None, **options: Any) -> tuple[Worker, "Life"]:
        """A worker that runs."""
        worker = app.worker(client or self.client(), **{"wait_seconds": 5.0, **options})
        life = Life(worker)
        self._nursery.start_soon(life.live)
        return worker, life

    async def enqueue(self, *jobs: Any, queue: str = "default") -> list[int]:
        """Their ids; a text is a job of that type."""
        bodies = [{"type": job} if isinstance(job, str) else job for job in jobs]
        answer = await v1.post(self.server, f"/v1/queues/{queue}/enqueue", {"jobs": bodies})
        return [job["id"] for job in answer["jobs"]]

    async def read(self, id_: int, queue: str = "default") -> Any:
        return await v1.get(self.server, f"/v1/queues/{queue}/jobs/{id_}")

    async def outcomes(self, id_: int, queue: str = "default") -> list[str]:
        return [attempt["outcome"] for attempt in (await self.read(id_, queue))["history"]]

    async def ended(self, *ids: int, queue: str = "default") -> list[str]:
        """Their states, when all of them have ended."""
        states = []
        for id_ in ids:
            path = f"/v1/queues/{queue}/jobs/{id_}?wait_seconds=20"
            while (job := await v1.get(self.server, path))["finished_at"] is None:
                pass
            states.append(job["state"])
        return states

    async def cancel(self, id_: int, queue: str = "default") -> None:
        await v1.post(self.server, f"/v1/queues/{queue}/jobs/{id_}/cancel")


class Life:
    """A worker's life: from its start to whatever ended it."""

    def __init__(self, worker: Worker) -> None:
        self.scope = trio.CancelScope()
        self.error: BaseException | None = None
        self._worker = worker
        self._over = trio.Event()

    async def live(self) -> None:
        with self.scope:
            try:
                await self._worker.run()
            except Exception as error:  # noqa: BLE001 - the test looks at whatever it was
                self.error = error
        self._over.set()

    async def end(self) -> None:
        """Returns when it is over; fails with what it failed with."""
        await self._over.wait()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def world(settings: Settings | None = None) -> AsyncIterator[World]:
    """A world in which time is virtual."""
    async with serving(settings or Settings()) as server, trio.open_nursery() as nursery:
        yield World(server, nursery)
        nursery.cancel_scope.cancel()


def events(records: Sequence[logging.LogRecord]) -> list[str]:
    """What the workers have logged, in order."""
    return [record.getMessage() for record in records if record.name == "queue_actor.worker"]


async def until(condition: Callable[[], bool], *, seconds: float = 600.0) -> None:
    """Wait for what nothing announces, looking each tenth of a virtual second."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.1)
