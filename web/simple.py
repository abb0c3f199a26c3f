"""The four classic routes on the queue `default`. web/README.md is their contract; they are frozen."""

from datetime import UTC, datetime

import msgspec
from quart import Blueprint, request

from queue_actor.commands import Claim, Conclude, Dequeue, Enqueue, NewJob, ReadJob
from queue_actor.engine import Engine
from queue_actor.jobs import Job
from queue_actor.settings import Settings
from web.problems import Problem
from web.replies import Reply, reply
from web.schemas import EnqueueBody, consumer, decode, job_id, new_payload, simple_job, wait_seconds

QUEUE = "default"

_ENQUEUE_BODY = msgspec.json.Decoder(EnqueueBody)


def simple_routes(engine: Engine, settings: Settings) -> Blueprint:
    """`/jobs/enqueue`, `/jobs/dequeue`, `/jobs/{id}/conclude` and `/jobs/{id}`."""
    routes = Blueprint("simple", __name__, url_prefix="/jobs")

    @routes.route("/enqueue", methods=["POST", "PUT"])
    async def enqueue() -> Reply:
        body = decode(_ENQUEUE_BODY, await request.get_data(cache=False, as_text=False, parse_form_data=False))
        new = NewJob(body.type, new_payload(body.payload, settings, field="Payload"))
        (job,) = (await engine.execute(Enqueue(QUEUE, [new]))).jobs
        return show(job, {"Queue-Durability": "memory"})

    @routes.route("/dequeue", methods=["GET", "POST"])
    async def dequeue() -> Reply:
        if request.method == "HEAD":  # which the router lets through wherever it allows GET
            raise Problem("method_not_allowed", "this path takes GET, POST: a lease is not safe", Allow="GET, POST")
        empty = request.args.get("empty", "404")
        if empty not in {"204", "404"}:
            raise Problem("invalid", "empty is the status of an empty answer, 204 or 404", field="empty")
        command = Dequeue(
            QUEUE,
            consumer=consumer(request.headers),
            wait_seconds=wait_seconds(request.args.get("wait"), settings),
        )
        dequeued = await engine.execute(command)
        if not dequeued.leases:
            if empty == "204":
                return reply(b"", status=204, headers={"Cache-Control": "no-store"}, facts={"code": "empty"})
            raise Problem("empty", "no job is ready")
        (lease,) = dequeued.leases
        return show(
            lease.job,
            {
                "Cache-Control": "no-store",
                "Queue-Lease-Token": lease.token,
                "Queue-Lease-Fence": str(lease.job.fence),
                "Queue-Lease-Expires": timestamp(lease.job.lease_expires_at or 0.0),
                "Queue-Lease-Seconds": f"{lease.job.lease_seconds:g}",
                "Queue-Attempt": str(lease.job.attempts),
            },
        )

    @routes.route("/<id_>/conclude", methods=["POST", "PUT", "PATCH"])
    async def conclude(id_: str) -> Reply:
        claim = Claim(QUEUE, job_id(id_), request.headers.get("Queue-Lease-Token"), consumer(request.headers))
        return show((await engine.execute(Conclude([claim]))).single())

    # Without this rule, GET /jobs/enqueue would be a look at the job called "enqueue".
    @routes.route("/enqueue", methods=["GET", "PATCH", "DELETE"])
    async def not_enqueue() -> Reply:
        raise Problem("method_not_allowed", "this path takes POST, PUT", Allow="POST, PUT")

    @routes.get("/<id_>")
    async def read(id_: str) -> Reply:
        return show(await engine.execute(ReadJob(QUEUE, job_id(id_))))

    return routes


def show(job: Job, headers: dict[str, str] | None = None) -> Reply:
    """A job as the classic routes show it."""
    facts = {"queue": job.queue, "job": job.id, "state": job.state, "consumer": job.consumer}
    return reply(simple_job(job), headers={"Queue-State": job.state, **(headers or {})}, facts=facts)


def timestamp(seconds: float) -> str:
    """A moment of the wall clock, by RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
