"""`/v1`: the life of jobs. Enqueue, dequeue, and the verbs of those who hold leases, one job or many at a time."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import defstruct
from quart import Blueprint

from queue_actor.access import Scope
from queue_actor.commands import (
    BulkVerb,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    Extend,
    Fail,
    Release,
    Results,
    TakeBack,
)
from queue_actor.engine import Engine
from queue_actor.errors import QueueError
from queue_actor.jobs import Job
from queue_actor.settings import Settings
from web import batches
from web.audit import audit
from web.bodies import (
    Body,
    ClaimBody,
    ConcludeBody,
    DequeueBody,
    DequeueManyBody,
    DequeueNextBody,
    EnqueueBody,
    ExtendBody,
    FailBody,
    ReleaseBody,
    check_batch,
)
from web.callers import caller_of, dequeue_for, forbidden
from web.fields import BATCH
from web.filters import ReleaseManyBody
from web.problems import Problem
from web.queues import bulk
from web.replies import Reply, reply
from web.requests import asked
from web.schemas import body_of, decode, job_id, key_of, queue_name, refuse_query
from web.streams import enqueue_stream
from web.traceparent import traced
from web.views import result_view

VERBS: dict[str, tuple[type[ClaimBody], Callable[[Sequence[Any]], Command[Results]]]] = {
    "conclude": (ConcludeBody, Conclude),
    "fail": (FailBody, Fail),
    "extend": (ExtendBody, Extend),
    "release": (ReleaseBody, Release),
}
"""The verbs of those who hold a lease: what they send, and the command it becomes."""

STREAM_ENDPOINT = "jobs.enqueue"
"""The only route that takes a stream of lines."""

RIDDEN = frozenset({"conclude", "fail", "release"})
"""The verbs that may carry a dequeue, answered in the same round trip."""

NOT_STORED = {"Cache-Control": "no-store"}
"""Of answers that may hold tokens."""

IDS_LOGGED = 10
"""Jobs of a request that its line in the log names."""

_encode = msgspec.json.encode


def _fields(verb: str) -> list[Any]:
    return [("dequeue", DequeueNextBody | None, None)] if verb in RIDDEN else []


ONE = {
    verb: msgspec.json.Decoder(
        defstruct(
            f"{verb.capitalize()}OneBody",
            _fields(verb),
            bases=(body,),
            frozen=True,
            kw_only=True,
            forbid_unknown_fields=True,
        )
    )
    for verb, (body, _) in VERBS.items()
}
RELEASE_MANY = msgspec.json.Decoder(ReleaseManyBody)
MANY = {
    verb: msgspec.json.Decoder(
        defstruct(
            f"{verb.capitalize()}JobsBody",
            [("jobs", Annotated[list[body], BATCH]), *_fields(verb)],  # type: ignore[valid-type] # made at run time
            bases=(Body,),
            frozen=True,
            kw_only=True,
            forbid_unknown_fields=True,
        )
    )
    for verb, (body, _) in VERBS.items()
}
ENQUEUE = msgspec.json.Decoder(EnqueueBody)
DEQUEUE = msgspec.json.Decoder(DequeueBody)
DEQUEUE_MANY = msgspec.json.Decoder(DequeueManyBody)


class Holders:
    """What the routes below share: the engine, and how requests become commands."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings

    async def dequeue(self, command: Dequeue) -> Dequeued:
        """Carry out a dequeue; see `dequeue_for`."""
        return await dequeue_for(asked(), self.engine, command)

    def ride(self, body: Any, data: bytes, queue: str | None) -> Dequeue | None:
        """The dequeue that came with another verb, if one did. To be called before the verb is carried out.

        Raises:
            Problem: It is out of bounds, or its key is, or it is not allowed.
        """
        wanted: DequeueNextBody | None = getattr(body, "dequeue", None)
        request = asked()
        key = key_of(
            request, data, request.path, caller_of(request).name
        )  # looked at even if nothing is to be repeated
        if wanted is None:
            return None
        try:
            source = wanted.source(queue)
            require_all(source, "queue" if wanted.queues is None else "queues")
            return wanted.dequeue(source, self.settings, key=key)
        except Problem as problem:
            raise problem.within("dequeue") from None

    async def dequeue_next(self, ride: Dequeue | None) -> Dequeued | QueueError | Problem | None:
        """Carry out the dequeue that came with another verb.

        The verb is done, and its caller must hear that even if this is refused: so a refusal is an answer here.
        """
        try:
            return None if ride is None else await self.dequeue(ride)
        except (QueueError, Problem) as refusal:
            return refusal.with_traceback(None)

    async def carry_out(
        self, claims: Sequence[Claim], make: Callable[[Sequence[Any]], Command[Results]]
    ) -> list[Job | QueueError | Problem]:
        """Carry out a verb on those of many jobs that the caller may conclude; the others are `forbidden`."""
        caller = caller_of(asked())
        queues = {claim.queue for claim in claims}
        allowed = {queue for queue in queues if caller.may(Scope.CONSUME, queue)}
        if allowed == queues:
            return list((await self.engine.execute(make(claims))).jobs)
        mine = [claim for claim in claims if claim.queue in allowed]
        done = iter((await self.engine.execute(make(mine))).jobs if mine else ())
        return [
            next(done) if claim.queue in allowed else forbidden((Scope.CONSUME,), f"queue {claim.queue}", field="queue")
            for claim in claims
        ]

    def claims(self, bodies: Sequence[ClaimBody], queue: str | None) -> list[Claim]:
        """The claims of a request about many jobs.

        Raises:
            Problem: One of them is out of bounds, or names too little or too much.
        """
        check_batch(bodies, self.settings)
        claims = []
        for n, body in enumerate(bodies):
            try:
                claims.append(self._claim(body, queue))
            except Problem as problem:
                raise problem.within(f"jobs[{n}]") from None
        return claims

    def _claim(self, body: ClaimBody, queue: str | None) -> Claim:
        if queue is not None:
            body.check_path(queue)
        named = queue or body.queue
        if named is None or body.id is None or body.token is None:
            missing = "queue" if named is None else "id" if body.id is None else "token"
            raise Problem("invalid", f"{missing} is missing", field=missing)
        return body.claim(named, body.id, self.settings)


def job_routes(engine: Engine, settings: Settings) -> Blueprint:
    """Enqueue, dequeue, conclude, fail, extend and release."""
    routes = Blueprint("jobs", __name__, url_prefix="/v1")
    holders = Holders(engine, settings)

    @routes.post("/queues/<queue>/enqueue")
    async def enqueue(queue: str) -> Reply:
        request = asked()
        refuse_query(request)
        name = queue_name(queue)
        if request.is_stream:
            return enqueue_stream(engine, settings, name, request)
        data = body_of(request)
        new = traced(batches.new_jobs(data, settings), request.scope["headers"])
        caller_of(request).admit_jobs(len(new))
        key = key_of(request, data, request.path, caller_of(request).name)
        enqueued = await engine.execute(Enqueue(name, new, key))
        ids = [job.id for job in enqueued.jobs[:IDS_LOGGED] if not isinstance(job, QueueError)]
        facts = {"queue": name, "jobs": len(enqueued.jobs), "ids": ids}
        return reply(
            batches.enqueued(enqueued.jobs),
            headers={"Queue-Durability": engine.durability},
            facts=facts,
            jobs=new,
        )

    @routes.post("/queues/<queue>/dequeue")
    async def dequeue(queue: str) -> Reply:
        request = asked()
        refuse_query(request)
        name, data = queue_name(queue), body_of(request)
        key = key_of(request, data, request.path, caller_of(request).name)
        command = decode(DEQUEUE, data).dequeue(name, settings, key=key)
        return show_leases(command, await holders.dequeue(command))

    @routes.post("/dequeue")
    async def dequeue_several() -> Reply:
        request = asked()
        refuse_query(request)
        data = body_of(request)
        body = decode(DEQUEUE_MANY, data)
        require_all(body.source(), "queues")
        key = key_of(request, data, request.path, caller_of(request).name)
        command = body.dequeue(body.source(), settings, key=key)
        return show_leases(command, await holders.dequeue(command))

    for verb in VERBS:
        routes.add_url_rule(f"/queues/<queue>/jobs/<id_>/{verb}", f"{verb}_one", one(holders, verb), methods=["POST"])
        routes.add_url_rule(f"/queues/<queue>/{verb}", f"{verb}_many", many(holders, verb), methods=["POST"])
        routes.add_url_rule(f"/{verb}", f"{verb}_across", many(holders, verb), methods=["POST"])
    return routes


def require_all(source: str | tuple[str, ...], field: str) -> None:
    """Refuse a dequeue from several queues, or from all of a prefix, unless the caller may have jobs of them all.

    Raises:
        Problem: `forbidden`.
    """
    names = (source,) if isinstance(source, str) else source
    caller_of(asked()).require(Scope.CONSUME, *names, field=field)


def one(holders: Holders, verb: str) -> Callable[..., Any]:
    """The handler of a verb for one job: real statuses."""
    make = VERBS[verb][1]

    async def handler(queue: str, id_: str) -> Reply:
        request = asked()
        refuse_query(request)
        name, number, data = queue_name(queue), job_id(id_), body_of(request)
        body: Any = decode(ONE[verb], data)
        body.check_path(name, number)
        if body.token is None:
            if verb != "release":
                raise Problem("invalid", "token is missing", field="token")
            body.check_take_back()
        caller_of(request).require(Scope.OPERATE if body.token is None else Scope.CONSUME, name)
        claim, ride = body.claim(name, number, holders.settings), holders.ride(body, data, name)
        if body.token is None:
            job = (await holders.engine.execute(TakeBack(name, [number]))).single()
            audit("release", queue=name, job=number)
        else:
            job = (await holders.engine.execute(make([claim]))).single()
        view = result_view(job, extended=verb == "extend", dequeued=await holders.dequeue_next(ride))
        facts = {"queue": name, "job": number, "state": job.state, "consumer": job.consumer}
        return reply(_encode(view), headers=NOT_STORED if ride else None, facts=facts, jobs=[job])

    return handler


def many(holders: Holders, verb: str) -> Callable[..., Any]:
    """The handler of a verb for many jobs, of one queue or of any: a result per job."""
    make = VERBS[verb][1]

    async def handler(queue: str | None = None) -> Reply:
        request = asked()
        refuse_query(request)
        name, data = None if queue is None else queue_name(queue), body_of(request)
        body: Any = None
        if verb == "release" and name is not None:
            body = decode(RELEASE_MANY, data)
            body.check()
            caller_of(request).require(Scope.OPERATE if body.jobs is None else Scope.CONSUME, name)
            if body.jobs is None:
                holders.ride(body, data, name)  # nothing rides; a key that is wrong is told all the same
                return await bulk(holders.engine, name, BulkVerb.RELEASE, body)
        plain = batches.plain_claims(data, name, holders.settings) if verb == "conclude" and name is not None else None
        if plain is not None:
            body, claims = plain
        else:
            body = body or decode(MANY[verb], data)
            claims = holders.claims(body.jobs, name)
        ride = holders.ride(body, data, name)
        results = await holders.carry_out(claims, make)
        dequeued = await holders.dequeue_next(ride)
        text, errors = batches.results(claims, results, extended=verb == "extend", dequeued=dequeued)
        ids = [claim.id for claim in claims[:IDS_LOGGED]]
        facts = {"queue": name, "jobs": len(claims), "ids": ids, "errors": errors}
        return reply(text, headers=NOT_STORED if ride else None, facts=facts, jobs=results)

    return handler


def show_leases(command: Dequeue, dequeued: Dequeued) -> Reply:
    """The answer to a dequeue."""
    facts = {
        "queue": command.queue,
        "consumer": command.consumer,
        "jobs": len(dequeued.leases),
        "ids": [lease.job.id for lease in dequeued.leases[:IDS_LOGGED]],
    }
    jobs = [lease.job for lease in dequeued.leases]
    return reply(batches.leases(dequeued.leases), headers=NOT_STORED, facts=facts, jobs=jobs)
