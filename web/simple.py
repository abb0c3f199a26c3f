"""The four classic routes on the queue `default`. web/README.md is their contract; they are frozen."""

from http import HTTPStatus
from typing import Any

import msgspec
from quart import Blueprint
from quart.blueprints import BlueprintSetupState
from werkzeug.routing import BaseConverter

from queue_actor.commands import Claim, Conclude, Dequeue, Enqueue, EnqueuedJob, Lease, NewJob, ReadJob
from queue_actor.engine import Engine
from queue_actor.jobs import Job, JobState
from queue_actor.settings import Settings
from web.callers import caller_of, dequeue_for
from web.problems import Problem
from web.replies import Reply, reply
from web.requests import Request, asked
from web.schemas import (
    CONSUMER_HEADERS,
    SimpleEnqueueBody,
    consumer,
    decode,
    empty_status,
    job_id,
    key_of,
    new_payload,
    parameter,
    simple_job,
    wait_seconds,
)
from web.traceparent import traced
from web.views import timestamp

QUEUE = "default"

_NAMING_CONSUMERS = frozenset(name.lower().encode() for name in CONSUMER_HEADERS)

_ENQUEUE_BODY = msgspec.json.Decoder(SimpleEnqueueBody)


class JobSegment(BaseConverter):
    """The segment of a path that names a job: any but those that are paths of their own, whatever the method."""

    regex = "(?!(?:enqueue|dequeue)$)[^/]+"


def simple_routes(engine: Engine, settings: Settings) -> Blueprint:
    """`/jobs/enqueue`, `/jobs/dequeue`, `/jobs/{id}/conclude` and `/jobs/{id}`."""
    routes = Blueprint("simple", __name__, url_prefix="/jobs")
    routes.record(lambda state: state.app.url_map.converters.update(job=JobSegment))

    @routes.route("/enqueue", methods=["POST", "PUT"])
    async def enqueue() -> Reply:
        request = asked()
        data = request.whole
        body = decode(_ENQUEUE_BODY, data)
        new = NewJob(body.type, new_payload(body.payload, settings, field="Payload"))
        caller = caller_of(request)
        caller.admit_jobs(1)
        command = Enqueue(
            QUEUE,
            traced([new], request.scope["headers"]),
            key_of(request, data, "/jobs/enqueue", caller.name),
        )
        (job,) = (await engine.execute(command)).jobs
        assert isinstance(job, EnqueuedJob)  # noqa: S101 - for the type checker: only a unique key could be refused
        answer = show(job.id, body.type, job.state, new.payload, {"Queue-Durability": engine.durability})
        answer.jobs = command.jobs
        return answer

    @routes.route("/dequeue", methods=["GET", "POST"])
    async def dequeue() -> Reply:
        request = asked()
        empty, wait = int(HTTPStatus.NOT_FOUND), 0.0
        if request.query_string:
            empty = empty_status(parameter(request.args, "empty"))
            wait = wait_seconds(parameter(request.args, "wait"), settings)
        command = Dequeue(
            QUEUE,
            consumer=_consumer(request),
            wait_seconds=wait,
            key=key_of(request, request.query_string, "/jobs/dequeue", caller_of(request).name),
        )
        dequeued = await dequeue_for(request, engine, command)
        if dequeued.leases:
            return show_lease(*dequeued.leases)
        if empty == HTTPStatus.NO_CONTENT:
            return reply(b"", status=empty, headers={"Cache-Control": "no-store"}, facts={"code": "empty"})
        raise Problem("empty", "no job is ready")

    @routes.route("/<job:id_>/conclude", methods=["POST", "PUT", "PATCH"])
    async def conclude(id_: str) -> Reply:
        request = asked()
        claim = Claim(QUEUE, job_id(id_), request.field(b"queue-lease-token"), _consumer(request))
        return show_job((await engine.execute(Conclude([claim]))).single())

    @routes.get("/<job:id_>")
    async def read(id_: str) -> Reply:
        return show_job(await engine.execute(ReadJob(QUEUE, job_id(id_))))

    @routes.record
    def take_no_head(state: BlueprintSetupState) -> None:
        # Werkzeug takes HEAD wherever it takes GET, and a lease is not safe.
        for rule in state.app.url_map.iter_rules("simple.dequeue"):
            (rule.methods or set()).discard("HEAD")

    return routes


def _consumer(request: Request) -> str | None:
    return consumer(request.headers) if _NAMING_CONSUMERS & request.fields.keys() else None


def show(
    id_: int, type_: str, state: JobState, payload: bytes | None, headers: dict[str, str] | None = None, **facts: Any
) -> Reply:
    """A job as the classic routes show it."""
    return reply(
        simple_job(id_, type_, state, payload),
        headers={"Queue-State": state, **(headers or {})},
        facts={"queue": QUEUE, "job": id_, "state": state, **facts},
    )


def show_job(job: Job, headers: dict[str, str] | None = None) -> Reply:
    """The same, of a job in hand."""
    answer = show(job.id, job.type, job.state, job.payload, headers, consumer=job.consumer)
    answer.jobs = [job]
    return answer


def show_lease(lease: Lease) -> Reply:
    """A job as its consumer is told of it: the body as always, the lease in headers."""
    job = lease.job
    headers = {
        "Cache-Control": "no-store",
        "Queue-Lease-Token": lease.token,
        "Queue-Lease-Fence": str(job.fence),
        "Queue-Lease-Expires": timestamp(job.lease_expires_at or 0.0),
        "Queue-Lease-Seconds": f"{job.lease_seconds:.12g}",
        "Queue-Attempt": str(job.attempts),
    }
    return show_job(job, headers)
