"""What each route is, for people and programs: the table that web/openapi.py makes its document of.

Bodies and answers are the structs that the handlers decode and encode. An answer stands here as an example, whose type
is its schema. web/README.md says the same in sentences; tests hold the two together, and both to the routes.

It is a table, longer than other files so that all routes can be found in one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from queue_actor.access import Scope
from queue_actor.commands import Why
from queue_actor.jobs import JobState
from web import jobs, queues
from web.bodies import NewJobBody
from web.examples import (
    CONCLUDED_SIMPLE,
    ENDED,
    FIGURES,
    GLANCE,
    LEASE,
    LEASED,
    LEASED_SIMPLE,
    LISTED,
    LOST,
    MOVED,
    SIMPLE,
    STATISTICS,
    TOKEN,
    TREND,
    result,
)
from web.fields import QueueName, Wait
from web.operations import (
    BY_TOKEN_OR_CONSUMER,
    CONSUMERS,
    FOLLOW,
    IDEMPOTENCY_KEY,
    LEASE_TOKEN,
    LIMIT,
    NAMED_NEXT,
    OVERVIEW,
    SEARCH,
    TAKEN_BACK,
    WAIT,
    File,
    Operation,
    Parameter,
    each_needs,
    needs,
)
from web.overview import AccessView, WhyView
from web.schemas import SimpleEnqueueBody
from web.streams import ChunkView, LineError
from web.views import (
    JobsView,
    QueuesView,
    ResultsView,
    ResultView,
)

TAGS = {
    "classic": "Four routes for one queue, `default`: frozen, and made for curl.",
    "producers": "Jobs are enqueued.",
    "workers": "Jobs are leased, and leases end.",
    "look": "Queues and jobs as they are.",
    "operate": "What operators do to queues and jobs. Each leaves a line in the audit log.",
    "server": "How the server is, and what it says of itself.",
}

GONE = ("unknown_job", "forgotten")
ROOM = ("queue_full", "memory_full", "too_many_queues", "disk_full")
PARKED = ("draining", "too_many_waiters", "in_progress_limit")
NEXT = (*PARKED, "rate_limited", "key_reused", "busy", "outcome_unknown")
LEASE_HEADERS = (
    *("Queue-Lease-Token", "Queue-Lease-Fence", "Queue-Lease-Expires", "Queue-Lease-Seconds", "Queue-Attempt"),
    "Cache-Control",
)
ONES = tuple(f"jobs.{verb}_one" for verb in jobs.VERBS)


def _verb(verb: str, **facts: Any) -> dict[str, Operation]:
    """The three routes of a verb: for one job, for many of a queue, for many of any."""
    ridden = verb in jobs.RIDDEN
    key, rides = ((IDEMPOTENCY_KEY,), NEXT) if ridden else ((), ())
    said, state, answer, codes, summary = (facts[name] for name in ("said", "state", "answer", "codes", "summary"))
    lost = codes if verb != "release" else ("lease_lost",)
    also = "It may carry the next dequeue, answered as `dequeued`." if ridden else ""
    nexts = NAMED_NEXT if ridden else {}
    job = {"id": 1, "token": TOKEN, **said}
    many = ResultsView([result(state), ResultView(id=3, queue="images", error=LOST)], 1)
    not_stored = ("Cache-Control",) if ridden else ()  # where there may be a lease in it
    alike: dict[str, Any] = {
        "tag": "workers",
        "parameters": key,
        "answer": many,
        "headers_at_times": not_stored,
        "item_codes": (*GONE, *lost, *rides),
    }
    in_queue: dict[str, Any] = {"body": jobs.MANY[verb].type, "rules": each_needs("id", "token")}
    if verb == "release":
        in_queue = {
            "body": jobs.RELEASE_MANY.type,
            "rules": BY_TOKEN_OR_CONSUMER,
            "or_else": MOVED,
            "codes": ("unknown_queue",),
        }
    across = each_needs("queue", "id", "token")
    return {
        f"jobs.{verb}_one": Operation(
            tag="workers",
            summary=summary,
            about=facts.get("about", also),
            body=jobs.ONE[verb].type,
            asks={"token": TOKEN, **said},
            rules=TAKEN_BACK if verb == "release" else needs("token"),
            parameters=key,
            answer=answer,
            codes=(*GONE, *codes),
            item_codes=rides,
            headers_at_times=not_stored,
            leads_to=("queues.forget",) if verb == "conclude" else (),
        ),
        f"jobs.{verb}_many": Operation(
            **alike,
            summary=f"{summary}: many of one queue",
            about=facts.get("about_many", "Each job is answered for itself, in the order sent."),
            asks={"jobs": [job, {"id": 3, "token": "stolen-or-stale"}]},
            **in_queue,
        ),
        f"jobs.{verb}_across": Operation(
            **alike | {"item_codes": (*alike["item_codes"], "forbidden")},
            summary=f"{summary}: many, of any queues",
            about="Each job is answered for itself, in the order sent.",
            body=jobs.MANY[verb].type,
            asks={"jobs": [{"queue": "images", **job}, {"queue": "images", "id": 3, "token": "stolen-or-stale"}]},
            rules={"properties": across["properties"] | nexts.get("properties", {})},
        ),
    }


def _operator(summary: str, answer: msgspec.Struct, codes: Sequence[str], **facts: Any) -> Operation:
    return Operation(tag="operate", summary=summary, answer=answer, codes=tuple(codes), **facts)


def _server(summary: str, answer: msgspec.Struct | dict[str, str], **facts: Any) -> Operation:
    return Operation(tag="server", summary=summary, answer=answer, asks_queue=False, **facts)


OPERATIONS: dict[str, Operation] = {
    "simple.enqueue": Operation(
        tag="classic",
        summary="Add a job to the queue",
        about="The Content-Type does not matter.",
        body=SimpleEnqueueBody,
        asks={"Type": "TIME_CRITICAL", "Payload": {"any": "JSON"}},
        parameters=(IDEMPOTENCY_KEY,),
        answer=SIMPLE,
        headers=("Queue-State", "Queue-Durability"),
        codes=("invalid", "key_reused", *ROOM),
        leads_to=("simple.read",),
    ),
    "simple.dequeue": Operation(
        tag="classic",
        summary="Lease the first job in line",
        about="Keep the connection fully open while you wait: a half-closed one counts as gone.",
        parameters=(
            Parameter("wait", Wait, "how long to wait if there is no job", 0),
            Parameter("empty", Literal["204", "404"], "the status of an empty answer", "404"),
            *CONSUMERS,
            IDEMPOTENCY_KEY,
        ),
        answer=LEASED_SIMPLE,
        headers=("Queue-State", *LEASE_HEADERS),
        codes=("invalid", "empty", "key_reused", *PARKED),
        also=(204,),
        leads_to=("simple.conclude", "simple.read"),
    ),
    "simple.conclude": Operation(
        tag="classic",
        summary="End a job as done",
        about="Without a token the consumer's name has to be the one given at the dequeue.",
        parameters=(LEASE_TOKEN, *CONSUMERS),
        answer=CONCLUDED_SIMPLE,
        headers=("Queue-State",),
        codes=("invalid", "other_consumer", *GONE, "lease_lost", "not_in_progress"),
    ),
    "simple.read": Operation(
        tag="classic",
        summary="A job as it stands",
        answer=LEASED_SIMPLE,
        headers=("Queue-State",),
        codes=("invalid", *GONE),
    ),
    "jobs.enqueue": Operation(
        tag="producers",
        summary="Add jobs to a queue",
        about="Shape, bounds and capacity hold for all or none. As `application/x-ndjson` it takes a stream of any "
        "length, one job a line, and answers a line for each chunk.",
        body=jobs.ENQUEUE.type,
        asks={"jobs": [{"type": "resize", "payload": {"w": 1280}, "meta": {"tenant": "a"}}]},
        parameters=(IDEMPOTENCY_KEY,),
        answer=ResultsView([ResultView(id=1, state=JobState.QUEUED)], 0),
        headers=("Queue-Durability",),
        codes=("unknown_queue", "key_reused", *ROOM),
        item_codes=("unique_key_taken",),
        lines=(
            NewJobBody,
            {"type": "resize", "unique_key": "a"},
            ChunkView(2, 1, first_id=1, errors=[LineError("invalid", "no JSON", "body", line=2)]),
        ),
        leads_to=("jobs.dequeue", "queues.read_job", "queues.cancel", "queues.run"),
    ),
    "jobs.dequeue": Operation(
        tag="workers",
        summary="Lease the first jobs in line",
        body=jobs.DEQUEUE.type,
        asks={"wait_seconds": 1, "consumer": "w1"},
        parameters=(IDEMPOTENCY_KEY,),
        answer=JobsView([LEASED]),
        headers=("Cache-Control",),
        codes=("key_reused", *PARKED),
        leads_to=ONES,
    ),
    "jobs.dequeue_several": Operation(
        tag="workers",
        summary="Lease the first jobs in line, of several queues",
        body=jobs.DEQUEUE_MANY.type,
        asks={"queues": ["urgent", "images"], "order": "listed"},
        parameters=(IDEMPOTENCY_KEY,),
        answer=JobsView([LEASED]),
        headers=("Cache-Control",),
        codes=("key_reused", *PARKED),
        leads_to=ONES,
    ),
    **_verb(
        "conclude",
        summary="The job is done",
        said={"result": {"bytes": 48213}},
        state="concluded",
        answer=result("concluded", dequeued=JobsView([])),
        codes=("lease_lost",),
    ),
    **_verb(
        "fail",
        summary="The attempt failed",
        about="The job is tried again by its retry policy, or is dead. It may carry the next dequeue.",
        said={"error": {"type": "Timeout", "message": "no answer"}, "retry_after_seconds": 30},
        state="scheduled",
        answer=result("scheduled"),
        codes=("lease_lost",),
    ),
    **_verb(
        "extend",
        summary="The lease starts again, from now",
        about="The heartbeat of a worker. `cancel_requested`: the job was called off.",
        said={"lease_seconds": 120, "progress": {"percent": 40}},
        state="in_progress",
        answer=result(
            "in_progress",
            lease=msgspec.structs.replace(LEASE, token=msgspec.UNSET, seconds=120.0),
            cancel_requested=False,
        ),
        codes=("lease_lost", "run_too_long"),
    ),
    **_verb(
        "release",
        summary="The job is given back, unfinished",
        about="Without a token it is an operator who takes it back. It may carry the next dequeue.",
        about_many="With `jobs`, by those who hold them; with `consumer`, an operator takes back all that it holds "
        "and that match, and the answer is how many.",
        said={},
        state="queued",
        answer=result("queued"),
        codes=("lease_lost", "not_in_progress"),
    ),
    "queues.list_queues": Operation(
        tag="look",
        summary="The queues that exist, by name",
        parameters=(
            Parameter("prefix", QueueName, "whose names begin so"),
            LIMIT,
            Parameter("cursor", QueueName, "where to go on: `next_cursor` of the page before"),
        ),
        answer=QueuesView([FIGURES], None),
    ),
    "queues.read_queue": Operation(
        tag="look",
        summary="A queue in figures",
        about="One that does not exist reads as an empty one.",
        answer=FIGURES,
    ),
    "queues.search": Operation(
        tag="look", summary="The jobs that match, by id", parameters=SEARCH, answer=JobsView([LISTED], next_cursor="1")
    ),
    "queues.read_job": Operation(
        tag="look",
        summary="A job, whole, with its history",
        about="With `wait_seconds` it waits for the end of the job, and answers then as it stands.",
        parameters=(WAIT,),
        answer=ENDED,
        codes=(*GONE, "too_many_waiters"),
    ),
    "queues.put_queue": _operator(
        "Give a queue its policy",
        msgspec.structs.replace(FIGURES, declared=True),
        ["too_many_queues"],
        about="It makes the queue. What is left out has its default, whatever it was before.",
        body=queues.POLICY.type,
        asks={"max_attempts": 3, "retry": {"kind": "fixed", "base_seconds": 60}, "in_progress_max": 1},
    ),
    "queues.delete_queue": _operator(
        "Delete a queue that holds no unfinished jobs",
        msgspec.structs.replace(FIGURES, exists=False),
        ["unknown_queue", "queue_not_empty"],
    ),
    "queues.pause": _operator(
        "Stop handing out jobs", msgspec.structs.replace(FIGURES, paused=True), ["unknown_queue"]
    ),
    "queues.resume": _operator("Hand out jobs again", FIGURES, ["unknown_queue"]),
    "queues.purge": _operator(
        "Forget all jobs that match",
        MOVED,
        ["unknown_queue"],
        about="Those in progress are never touched.",
        body=queues.PURGE.type,
        asks={"state": ["queued", "scheduled"], "type": "reminder"},
    ),
    "queues.redrive": _operator(
        "Queue dead and cancelled jobs again",
        MOVED,
        ["unknown_queue"],
        body=queues.REDRIVE.type,
        asks={"state": "dead", "error": "Timeout", "dry_run": True},
    ),
    "queues.forget": _operator("Forget a job that has ended", result("concluded"), [*GONE, "not_finished"]),
    "queues.cancel": _operator(
        "Call a job off",
        result("cancelled"),
        [*GONE, "already_finished"],
        leads_to=("queues.redrive_one",),
        about="Of a job in progress that is a wish: its worker is told when it extends.",
    ),
    "queues.redrive_one": _operator(
        "Queue a dead or cancelled job again",
        result("queued"),
        [*GONE, "not_finished", "already_finished", "unique_key_taken", "queue_full"],
    ),
    "queues.run": _operator("Make a scheduled job ready now", result("queued"), [*GONE, "not_waiting"]),
    "queues.cancel_many": _operator(
        "Call off all jobs that match and have not ended",
        MOVED,
        ["unknown_queue"],
        about="Of those in progress that is a wish: their workers are told when they extend.",
        body=queues.CANCEL.type,
        asks={"state": ["queued", "scheduled"], "type": "reminder", "dry_run": True},
    ),
    "overview.overview": Operation(
        tag="look",
        summary="All queues at a glance, and a page of them",
        parameters=OVERVIEW,
        answer=GLANCE,
        headers=("Cache-Control",),
    ),
    "overview.trend": Operation(
        tag="look",
        summary="What happened in a queue in the last hour, minute by minute",
        answer=TREND,
        headers=("Cache-Control",),
    ),
    "overview.why": Operation(
        tag="look",
        summary="Why a job is not running now",
        answer=WhyView(Why.BEHIND, "3 jobs stand before it in line.", 3, None),
        headers=("Cache-Control",),
        codes=GONE,
    ),
    "overview.access": Operation(
        tag="look",
        summary="What the caller may do",
        answer=AccessView("dashboard", [Scope.READ], ["*"]),
        headers=("Cache-Control",),
        asks_queue=False,
    ),
    "events.follow": Operation(
        tag="look",
        summary="What becomes of jobs, as it happens",
        about="Server-sent events, each told after it is stored. The stream lasts until one of the two leaves.",
        parameters=FOLLOW,
        answer=File(
            "text/event-stream", 'id: 5f0c1d2e3a4b5968.9f8e7d6c.17\nevent: job\ndata: {"queue":"images",…}\n\n'
        ),
        headers=("Cache-Control", "X-Accel-Buffering"),
        codes=("too_many_readers",),
    ),
    "ops.monitor": _server(
        "Figures for Prometheus",
        File("text/plain", "queue_actor_ready 1.0\n", otherwise=("application/openmetrics-text",)),
        about="In its text format or as OpenMetrics, whichever `Accept` prefers; also while the server starts or ends.",
        headers=("Cache-Control", "Vary"),
    ),
    "ops.statistics": _server(
        "Figures of the server, of this moment",
        STATISTICS,
        headers=("Cache-Control",),
    ),
    "ops.backup": _server(
        "The file that holds everything",
        File("application/vnd.sqlite3"),
        about="A SQLite database, as it was at the moment of the request. Check its length: an answer that breaks "
        "off is no backup.",
        headers=("Content-Length", "Content-Disposition", "Cache-Control"),
        codes=("not_durable", "backup_running", "disk_full", "draining"),
    ),
    "ops.healthz": _server("Does the process answer", {"status": "alive"}),
    "ops.readyz": _server("Does the server take work", {"status": "ready"}, codes=("starting", "draining")),
    "dashboard.home": _server(
        "Leads to the dashboard", File(""), redirects=True, headers=("Location", "Cache-Control")
    ),
    "dashboard.page": _server(
        "The dashboard",
        File("text/html; charset=utf-8", "<!doctype html>…"),
        about="A page for browsers. What it shows it asks of `/v1`, with a token that it asks its reader for.",
        headers=("ETag", "Cache-Control", "Content-Security-Policy", "Referrer-Policy"),
        also=(304,),
    ),
    "dashboard.part": _server(
        "A file of the dashboard",
        File("text/javascript; charset=utf-8", "export const …", otherwise=("text/css; charset=utf-8",)),
        headers=("ETag", "Cache-Control"),
        also=(304,),
    ),
    "docs.document": _server(
        "This contract as OpenAPI 3.1",
        File("application/json"),
        headers=("ETag", "Cache-Control"),
        also=(304,),
    ),
    "docs.page": _server(
        "This contract as a page to read",
        File("text/html; charset=utf-8", "<!doctype html>…"),
        headers=("ETag", "Cache-Control", "Content-Security-Policy"),
        also=(304,),
    ),
    "docs.style": _server(
        "How that page looks",
        File("text/css; charset=utf-8", ":root { color-scheme: light dark; }"),
        headers=("ETag", "Cache-Control"),
        also=(304,),
    ),
}
