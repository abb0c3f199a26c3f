"""How a worker works, and whom it asks."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import msgspec

from queue_actor.client_answers import Job
from queue_actor.client_bodies import Order
from queue_actor.heartbeats import Extender
from queue_actor.reports import Settler


class Server(Extender, Settler, Protocol):
    """Whom a worker asks: `AsyncClient` is one."""

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
        """Lease the first jobs in line."""
        ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works.

    Attributes:
        queues: Whose jobs it takes; prefixes such as `tenant:*` are allowed.
        order: `listed`: those that are named first go first. `fair`: in turn.
        concurrency: Handlers that run at once, whatever their mode.
        prefetch: Jobs that are leased beyond that, so that one is there when a handler ends. They are kept from other
            workers meanwhile.
        lease_seconds: Of the leases that it asks for. None: the job's own, else the policy's, else the server's.
        wait_seconds: How long to wait for a job before it is asked for again; an idle worker takes up to that long to
            end.
        grace_seconds: How long handlers may go on when the worker is to end.
        consumer: Its name. None: that of the machine, and the number of the process.

    Raises:
        ValueError: One of them is out of bounds.
    """

    queues: Sequence[str]
    order: Order = "listed"
    concurrency: int = 10
    prefetch: int = 0
    lease_seconds: float | None = None
    wait_seconds: float = 5.0
    grace_seconds: float = 25.0
    consumer: str | None = None

    def __post_init__(self) -> None:
        if not self.queues:
            raise ValueError("queues is empty: a worker takes jobs of at least one")
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, and not at least 1")
        if self.wait_seconds <= 0:
            raise ValueError(f"wait_seconds is {self.wait_seconds}, and not more than 0: it would ask without a pause")
        for name in ("prefetch", "grace_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, and not at least 0")


class GivenOptions(TypedDict, total=False):
    """Those of them that are given to `App.run`; without `queues` it takes the jobs that it has handlers for."""

    queues: Sequence[str]
    order: Order
    concurrency: int
    prefetch: int
    lease_seconds: float | None
    wait_seconds: float
    grace_seconds: float
    consumer: str | None
