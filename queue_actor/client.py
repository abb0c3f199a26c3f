"""The Python client: `Client` for threads, `AsyncClient` for Trio and asyncio, both for all of `/v1`.

    from queue_actor.client import Client

    with Client() as client:
        job = client.enqueue("images", "resize", {"path": "/tmp/a.png"})
        print(client.wait_for_end("images", job.id).result)

They are thin: what is sent and how answers are read is in client_requests.py, which does no I/O; what is handed in and
out in client_bodies.py and client_answers.py; what is raised in client_errors.py.
"""

try:
    import anyio as _anyio  # noqa: F401 - only to tell what to install
    import httpx as _httpx  # noqa: F401 - likewise
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"queue_actor.client needs {missing.name}: pip install 'queue-actor[client]'", name=missing.name
    ) from missing

from queue_actor.client_answers import (
    Access,
    Attempt,
    Chunk,
    Consumer,
    Dequeued,
    Enqueued,
    Extended,
    Job,
    Lease,
    LineRefused,
    Matched,
    Overview,
    Page,
    Queue,
    QueueBrief,
    QueueTrend,
    Results,
    Settled,
    Statistics,
    StoreStatistics,
    Why,
)
from queue_actor.client_async import AsyncClient
from queue_actor.client_bodies import (
    Claim,
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
)
from queue_actor.client_errors import (
    AccessRefused,
    Busy,
    ClientError,
    Closed,
    Conflict,
    Invalid,
    LeaseLost,
    NotUnderstood,
    OutcomeUnknown,
    Refused,
    UniqueKeyTaken,
    UnknownJob,
    UnknownQueue,
    Unreachable,
)
from queue_actor.client_events import Event, Gap, JobEvent, Opened, QueuesEvent
from queue_actor.client_followers import AsyncEvents, Events
from queue_actor.client_sync import Client
from queue_actor.jobs import DeathReason, JobError, JobState, OnExisting, Outcome, QueuePolicy, Retry, UniqueUntil

__all__ = [
    "Access",
    "AccessRefused",
    "AsyncClient",
    "AsyncEvents",
    "Attempt",
    "Busy",
    "Chunk",
    "Claim",
    "Client",
    "ClientError",
    "Closed",
    "ConcludeClaim",
    "Conflict",
    "Consumer",
    "DeathReason",
    "Dequeue",
    "Dequeued",
    "Enqueued",
    "Event",
    "Events",
    "ExtendClaim",
    "Extended",
    "FailClaim",
    "Filter",
    "Gap",
    "Invalid",
    "Job",
    "JobError",
    "JobEvent",
    "JobFields",
    "JobState",
    "Lease",
    "LeaseLost",
    "Leased",
    "LineRefused",
    "Matched",
    "NewJob",
    "NotUnderstood",
    "OnExisting",
    "Opened",
    "Order",
    "Outcome",
    "OutcomeUnknown",
    "Overview",
    "Page",
    "Policy",
    "Queue",
    "QueueBrief",
    "QueuePolicy",
    "QueueTrend",
    "QueuesEvent",
    "Refused",
    "ReleaseClaim",
    "Results",
    "Retry",
    "Search",
    "Settled",
    "Statistics",
    "StoreStatistics",
    "UniqueKeyTaken",
    "UniqueUntil",
    "UnknownJob",
    "UnknownQueue",
    "Unreachable",
    "Why",
]
