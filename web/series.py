"""The series of `/metrics`: every metric's name, type, labels and meaning, and how a snapshot becomes text."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric as Family

from queue_actor.engine import EngineStatistics, StoreStatistics
from queue_actor.families import Metric, Values, family
from queue_actor.figures import EngineFigures, HistogramFigures, QueueFigures
from queue_actor.settings import Settings


def _queue(kind: str, help_: str, *labels: str) -> Metric:
    return Metric(kind, ("queue", *labels), help_)


def _server(kind: str, help_: str, *labels: str) -> Metric:
    return Metric(kind, labels, help_)


METRICS: dict[str, Metric] = {
    "queue_actor_jobs": _queue("gauge", "jobs by state", "state"),
    "queue_actor_oldest_age_seconds": _queue(
        "gauge", "how long the first job in line has been ready; 0: there is none"
    ),
    "queue_actor_jobs_waiting_without_consumer_seconds": _queue(
        "gauge", "for how long jobs have been ready while nobody asked for one; 0: there is none, or somebody just did"
    ),
    "queue_actor_unasked_seconds": _queue("gauge", "since somebody last asked for a job, or since the server started"),
    "queue_actor_paused": _queue("gauge", "1 while the queue is paused"),
    "queue_actor_verbs_total": _queue("counter", "jobs by what was done to them", "verb"),
    "queue_actor_deaths_total": _queue("counter", "jobs that were given up, by the reason", "reason"),
    "queue_actor_wait_seconds": _queue("histogram", "from when a job was ready until it was handed out"),
    "queue_actor_run_seconds": _queue("histogram", "from when a job was handed out until that attempt ended"),
    "queue_actor_ready_slots": _queue("gauge", "slots of the ready arrays, used or not"),
    "queue_actor_compactions_total": _queue("counter", "compactions of a ready array"),
    "queue_actor_growths_total": _queue("counter", "growths of a ready array"),
    "queue_actor_queues": _server("gauge", "queues that exist"),
    "queue_actor_queues_max": _server("gauge", "the limit of them"),
    "queue_actor_queued_jobs_max": _server("gauge", "the limit of jobs that wait or run, of all queues together"),
    "queue_actor_memory_bytes": _server("gauge", "payloads, results, progress and errors that are kept in memory"),
    "queue_actor_memory_bytes_max": _server("gauge", "the limit of them"),
    "queue_actor_inbox_requests": _server("gauge", "commands that wait to be carried out"),
    "queue_actor_inbox_requests_max": _server("gauge", "the limit of them"),
    "queue_actor_waiters": _server("gauge", "requests that are parked: they wait for a job, or for the end of one"),
    "queue_actor_waiters_max": _server("gauge", "the limit of them"),
    "queue_actor_parked_total": _server("counter", "requests that were parked"),
    "queue_actor_parked_served_total": _server("counter", "parked requests that got what they waited for"),
    "queue_actor_parked_timed_out_total": _server("counter", "parked requests whose wait ran out"),
    "queue_actor_batch_requests": _server("histogram", "commands that were carried out together"),
    "queue_actor_batch_changes": _server("histogram", "changes of jobs that were stored together"),
    "queue_actor_apply_seconds": _server("histogram", "what carrying out a batch took, without storing it"),
    "queue_actor_commit_seconds": _server("histogram", "what storing a batch took, if it changed anything"),
    "queue_actor_sweeps_total": _server("counter", "sweeps"),
    "queue_actor_swept_jobs_total": _server("counter", "jobs that sweeps moved", "moved"),
    "queue_actor_requests_total": _server("counter", "requests by their answer", "method", "route", "status"),
    "queue_actor_request_seconds": _server(
        "histogram", "from a request to its answer, the time it was parked included", "method", "route"
    ),
    "queue_actor_refusals_total": _server("counter", "answers that were an error, by its code", "code"),
    "queue_actor_connections": _server("gauge", "connections that are open"),
    "queue_actor_connections_max": _server("gauge", "the limit of them"),
    "queue_actor_connections_opened_total": _server("counter", "connections that were taken"),
    "queue_actor_connections_refused_total": _server("counter", "connections that were one too many"),
    "queue_actor_received_bytes_total": _server("counter", "bytes that clients sent"),
    "queue_actor_sent_bytes_total": _server("counter", "bytes that were sent to clients"),
    "queue_actor_loop_lag_seconds": _server("histogram", "how late the event loop serves a timer, ten times a second"),
    "queue_actor_store_file_bytes": _server("gauge", "size of the store's file"),
    "queue_actor_store_wal_bytes": _server("gauge", "size of the log beside it"),
    "queue_actor_store_room_bytes": _server("gauge", "what may still be written before no more jobs are taken"),
    "queue_actor_store_commits_total": _server("counter", "commits to the store's file"),
    "queue_actor_ready": _server("gauge", "1 while the server takes work: neither starts nor ends"),
    "queue_actor_engine_answers": _server("gauge", "1 if the queue gave its figures in time; 0: they are missing here"),
    "queue_actor_info": _server("gauge", "always 1", "engine", "durability"),
}
"""All of this server's own, in the order in which they are told. The table in web/README.md is held to it."""

LIMITS = ("queues_max", "queued_jobs_max", "memory_bytes_max", "inbox_requests_max", "waiters_max", "connections_max")
"""The settings that are told beside what they limit."""


class RequestFigures(NamedTuple):
    """Requests by method, route and status; their seconds by method and route; errors by code."""

    requests: dict[tuple[str, str, str], int]
    seconds: dict[tuple[str, str], HistogramFigures]
    refusals: dict[str, int]


class Snapshot(NamedTuple):
    """Everything that one scrape tells, but for what the process tells of itself."""

    settings: Settings
    info: tuple[str, str]
    ready: bool
    queues: Sequence[QueueFigures] | None  # None: the engine did not answer
    queues_count: int
    memory_bytes: int
    engine: EngineFigures
    statistics: EngineStatistics
    store: StoreStatistics | None
    requests: RequestFigures
    connections: dict[str, int]  # by what their metrics are called after the prefix
    lag: HistogramFigures


def families(snapshot: Snapshot) -> Iterator[Family]:
    """All metrics of a snapshot; those that there is nothing to tell of are left out."""
    told = dict(_told(snapshot))
    for name, metric in METRICS.items():
        if name in told:
            yield family(name, metric, told[name])


def _told(snapshot: Snapshot) -> Iterator[tuple[str, Values]]:
    if snapshot.queues is not None:
        yield from _of_queues(snapshot.queues)
        yield "queue_actor_queues", [((), snapshot.queues_count)]
        yield "queue_actor_memory_bytes", [((), snapshot.memory_bytes)]
    yield from ((f"queue_actor_{name}", [((), getattr(snapshot.settings, name))]) for name in LIMITS)
    engine, requests, store = snapshot.engine, snapshot.requests, snapshot.store
    plain: dict[str, Any] = {
        "inbox_requests": snapshot.statistics.inbox_requests,
        "waiters": snapshot.statistics.waiters,
        "parked_total": engine.parked,
        "parked_served_total": engine.served,
        "parked_timed_out_total": engine.timed_out,
        "batch_requests": engine.batch_requests,
        "batch_changes": engine.batch_changes,
        "apply_seconds": engine.apply_seconds,
        "commit_seconds": engine.commit_seconds,
        "sweeps_total": engine.sweeps,
        "loop_lag_seconds": snapshot.lag,
        "ready": int(snapshot.ready),
        "engine_answers": int(snapshot.queues is not None),
        **snapshot.connections,
    }
    if store is not None:
        plain |= {
            "store_file_bytes": store.file_bytes,
            "store_wal_bytes": store.wal_bytes,
            "store_room_bytes": store.room_bytes,
            "store_commits_total": store.commits,
        }
    yield from ((f"queue_actor_{name}", [((), value)]) for name, value in plain.items())
    yield "queue_actor_swept_jobs_total", [((moved,), count) for moved, count in engine.swept.items()]
    yield "queue_actor_requests_total", requests.requests.items()
    yield "queue_actor_request_seconds", requests.seconds.items()
    yield "queue_actor_refusals_total", [((code,), count) for code, count in requests.refusals.items()]
    yield "queue_actor_info", [(snapshot.info, 1)]


def _of_queues(queues: Sequence[QueueFigures]) -> Iterator[tuple[str, Values]]:
    yield "queue_actor_jobs", [((q.name, state), count) for q in queues for state, count in q.counts.items()]
    yield "queue_actor_verbs_total", [((q.name, verb), count) for q in queues for verb, count in q.totals.items()]
    yield "queue_actor_deaths_total", [((q.name, reason), count) for q in queues for reason, count in q.deaths.items()]
    for name, field in (
        ("oldest_age_seconds", "oldest_age_seconds"),
        ("jobs_waiting_without_consumer_seconds", "without_consumer_seconds"),
        ("unasked_seconds", "asked_seconds"),
        ("paused", "paused"),
        ("wait_seconds", "waits"),
        ("run_seconds", "runs"),
        ("ready_slots", "slots"),
        ("compactions_total", "compactions"),
        ("growths_total", "growths"),
    ):
        yield f"queue_actor_{name}", [((q.name,), getattr(q, field)) for q in queues]
