"""`/v1`: looking at queues and jobs, and the operator's verbs. Each verb leaves a line in the audit log."""

from typing import Any

import msgspec
from msgspec import UNSET
from quart import Blueprint

from queue_actor.commands import (
    Bulk,
    BulkDone,
    BulkVerb,
    Cancel,
    DeleteQueue,
    Forget,
    JobFilter,
    ListQueues,
    Pause,
    QueueView,
    ReadJob,
    ReadQueue,
    Redrive,
    RunNow,
    Search,
    SetPolicy,
)
from queue_actor.engine import Engine, execute_in_slices
from queue_actor.jobs import FINISHED, JobState, first_policy
from queue_actor.settings import Settings
from web.audit import audit
from web.bodies import Body, PolicyBody
from web.callers import caller_of
from web.exchanges import cancelled_by_disconnect
from web.filters import CancelBody, FilterBody, PurgeBody, RedriveBody
from web.replies import Reply, reply
from web.requests import asked
from web.schemas import (
    body_of,
    decode,
    filter_of_query,
    job_id,
    limited,
    one_of,
    queue_name,
    refuse_query,
    wait_seconds,
)
from web.views import BulkView, JobsView, QueuesView, job_view, queue_document, result_view

PAGE_MAX = 1_000
PAGE = 100

POLICY = msgspec.json.Decoder(PolicyBody)
PURGE = msgspec.json.Decoder(PurgeBody)
REDRIVE = msgspec.json.Decoder(RedriveBody)
CANCEL = msgspec.json.Decoder(CancelBody)
NOTHING = msgspec.json.Decoder(Body)
"""Of requests that say it all by their path: a key that is not known might mean what is not done."""

_encode = msgspec.json.encode


def queue_routes(engine: Engine, settings: Settings) -> Blueprint:
    """Queues, reads, and the operator's verbs."""
    routes = Blueprint("queues", __name__, url_prefix="/v1/queues")
    desk = Desk(engine, settings)
    for method, path, handler in (
        ("GET", "", desk.list_queues),
        ("GET", "/<queue>", desk.read_queue),
        ("PUT", "/<queue>", desk.put_queue),
        ("DELETE", "/<queue>", desk.delete_queue),
        ("POST", "/<queue>/pause", desk.pause),
        ("POST", "/<queue>/resume", desk.resume),
        ("POST", "/<queue>/purge", desk.purge),
        ("POST", "/<queue>/redrive", desk.redrive),
        ("POST", "/<queue>/cancel", desk.cancel_many),
        ("GET", "/<queue>/jobs", desk.search),
        ("GET", "/<queue>/jobs/<id_>", desk.read_job),
        ("DELETE", "/<queue>/jobs/<id_>", desk.forget),
        ("POST", "/<queue>/jobs/<id_>/cancel", desk.cancel),
        ("POST", "/<queue>/jobs/<id_>/redrive", desk.redrive_one),
        ("POST", "/<queue>/jobs/<id_>/run", desk.run),
    ):
        # An endpoint of its own each, or the router takes two methods of one path for one route.
        routes.add_url_rule(path, handler.__name__, handler, methods=[method])
    return routes


class Desk:
    """The handlers; each is decode, execute, encode."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings

    def _show(self, view: QueueView) -> Reply:
        return reply(_encode(queue_document(view, self.engine.waiting(view.name))), facts={"queue": view.name})

    async def list_queues(self) -> Reply:
        """Queues by name."""
        refuse_query(asked(), "prefix", "cursor", "limit")
        query = asked().args
        command = ListQueues(
            "" if "prefix" not in query else queue_name(query["prefix"], "prefix"),
            "" if "cursor" not in query else queue_name(query["cursor"], "cursor"),
            limited(query.get("limit"), PAGE, PAGE_MAX, "limit"),
            caller_of(asked()).patterns,
        )
        found = await self.engine.execute(command)
        documents = [queue_document(view, self.engine.waiting(view.name)) for view in found.queues]
        return reply(_encode(QueuesView(documents, found.next_after)))

    async def read_queue(self, queue: str) -> Reply:
        """A queue in figures; one that does not exist reads as empty."""
        refuse_query(asked())
        return self._show(await self.engine.execute(ReadQueue(queue_name(queue))))

    async def put_queue(self, queue: str) -> Reply:
        """Give a queue its policy."""
        refuse_query(asked())
        name = queue_name(queue)
        body = decode(POLICY, body_of(asked()))
        policy = body.policy(first_policy(name), self.settings)
        paused = None if body.paused is UNSET else body.paused
        view = await self.engine.execute(SetPolicy(name, policy, paused))
        audit("policy", queue=name, policy=msgspec.to_builtins(policy), paused=view.paused)
        return self._show(view)

    async def delete_queue(self, queue: str) -> Reply:
        """Delete a queue that holds no unfinished jobs."""
        refuse_query(asked())
        name = queue_name(queue)
        decode(NOTHING, body_of(asked()))
        counts = (await self.engine.execute(ReadQueue(name))).counts
        if any(counts.values()) and not any(counts[state] for state in JobState if state not in FINISHED):
            await carry_out(self.engine, Bulk(name, BulkVerb.PURGE, JobFilter(FINISHED)))
        view = await self.engine.execute(DeleteQueue(name))
        audit("delete_queue", queue=name)
        return self._show(view)

    async def pause(self, queue: str) -> Reply:
        """Stop handing out a queue's jobs."""
        return await self._set_paused(queue_name(queue), paused=True)

    async def resume(self, queue: str) -> Reply:
        """Hand out a queue's jobs again."""
        return await self._set_paused(queue_name(queue), paused=False)

    async def _set_paused(self, name: str, *, paused: bool) -> Reply:
        refuse_query(asked())
        decode(NOTHING, body_of(asked()))
        view = await self.engine.execute(Pause(name, paused))
        audit("pause" if paused else "resume", queue=name)
        return self._show(view)

    async def purge(self, queue: str) -> Reply:
        """Forget all jobs that match, but those in progress."""
        refuse_query(asked())
        body = decode(PURGE, body_of(asked()))
        return await bulk(self.engine, queue, BulkVerb.PURGE, body)

    async def redrive(self, queue: str) -> Reply:
        """Queue all dead or cancelled jobs that match again."""
        refuse_query(asked())
        body = decode(REDRIVE, body_of(asked()))
        return await bulk(self.engine, queue, BulkVerb.REDRIVE, body, per_second=body.per_second)

    async def cancel_many(self, queue: str) -> Reply:
        """Call off all jobs that match and have not ended."""
        refuse_query(asked())
        body = decode(CANCEL, body_of(asked()))
        return await bulk(self.engine, queue, BulkVerb.CANCEL, body)

    async def search(self, queue: str) -> Reply:
        """A page of the jobs that match."""
        refuse_query(asked(), "state", "type", "consumer", "error", "since", "order", "limit", "cursor", "include")
        query = asked().args
        command = Search(
            queue_name(queue),
            where=filter_of_query(query),
            newest_first=one_of(query.get("order"), ("oldest", "newest"), "order") == "newest",
            limit=limited(query.get("limit"), PAGE, PAGE_MAX, "limit"),
            after_id=None if "cursor" not in query else job_id(query["cursor"], field="cursor"),
        )
        content = "include" in query and one_of(query["include"], ("content",), "include") == "content"
        found = await self.engine.execute(command)
        views = [job_view(job, content=content) for job in found.jobs]
        return reply(_encode(JobsView(views, None if found.next_after is None else str(found.next_after))))

    async def read_job(self, queue: str, id_: str) -> Reply:
        """A job with its history; or wait for its end."""
        refuse_query(asked(), "wait_seconds")
        wait = wait_seconds(asked().args.get("wait_seconds"), self.settings, "wait_seconds")
        command = ReadJob(queue_name(queue), job_id(id_), wait)
        if wait > 0:
            async with cancelled_by_disconnect(asked()):
                with caller_of(asked()).while_valid() as scope:
                    job = await self.engine.execute(command)
                if scope.cancelled_caught:  # as if the wait had run out
                    job = await self.engine.execute(ReadJob(command.queue, command.id))
        else:
            job = await self.engine.execute(command)
        return reply(
            _encode(job_view(job, history=True)), facts={"queue": job.queue, "job": job.id, "state": job.state}
        )

    async def forget(self, queue: str, id_: str) -> Reply:
        """Forget a finished job."""
        return await self._by_id("forget", Forget, queue, id_)

    async def cancel(self, queue: str, id_: str) -> Reply:
        """Call a job off."""
        return await self._by_id("cancel", Cancel, queue, id_)

    async def redrive_one(self, queue: str, id_: str) -> Reply:
        """Queue a dead or cancelled job again."""
        return await self._by_id("redrive", Redrive, queue, id_)

    async def run(self, queue: str, id_: str) -> Reply:
        """Make a scheduled job ready now."""
        return await self._by_id("run", RunNow, queue, id_)

    async def _by_id(self, verb: str, command: Any, queue: str, id_: str) -> Reply:
        refuse_query(asked())
        name, number = queue_name(queue), job_id(id_)
        decode(NOTHING, body_of(asked()))
        job = (await self.engine.execute(command(name, [number]))).single()
        audit(verb, queue=name, job=number)
        return reply(_encode(result_view(job)), facts={"queue": name, "job": number, "state": job.state})


async def bulk(
    engine: Engine, queue: str, verb: BulkVerb, body: FilterBody, *, per_second: float | None = None
) -> Reply:
    """Carry out one verb on all jobs that match: how many, and how many could not be done."""
    name = queue_name(queue)
    command = Bulk(name, verb, body.where(), dry_run=body.dry_run, per_second=per_second)
    done = await carry_out(engine, command)
    view = BulkView(done.count, done.refused, body.dry_run)
    return reply(_encode(view), facts={"queue": name, "jobs": done.count})


async def carry_out(engine: Engine, command: Bulk) -> BulkDone:
    """Carry out a verb on many jobs; the audit log tells of those that were done, also if it is broken off."""
    counts: list[int] = []
    try:
        return await execute_in_slices(engine, command, lambda done: counts.append(done.count))
    finally:
        if counts and not command.dry_run:
            where = msgspec.to_builtins(command.where)
            audit(command.verb, queue=command.queue, where=where, per_second=command.per_second, count=sum(counts))
