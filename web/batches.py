"""Many jobs in one request: from the body to the command, and from the reply to the answer, with little a job.

Most requests about many jobs hold nothing out of the ordinary: jobs of a type and a payload, claims of an id and a
token. The structs of web/bodies.py and web/views.py, which know everything, cost more for such a job than the queue
does. Here it is one small struct on its way in, and one piece of text on its way out. Whatever else there is takes the
way through those structs, which also say what is wrong with a body; so each function here gives what they would give.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw
from msgspec.structs import replace

from queue_actor.commands import Claim, ConcludeClaim, Dequeued, EnqueuedJob, Lease, NewJob
from queue_actor.errors import QueueError
from queue_actor.jobs import NO_OPTIONS, PRIORITY_MAX, Job, JobState
from queue_actor.settings import Settings
from web.bodies import Body, DequeueNextBody, EnqueueBody
from web.fields import Id, Token
from web.problems import Problem
from web.schemas import TYPE_CHARACTERS_MAX, decode
from web.views import dequeued_view, enqueued_view, job_view, results_view

_encode = msgspec.json.encode


# --- in


class PlainJob(Body, frozen=True):
    """A new job that leaves everything else to its queue."""

    # Without the pattern, which costs more than all the rest; see `plain_jobs`.
    type: Annotated[str, Meta(min_length=1, max_length=TYPE_CHARACTERS_MAX)]
    payload: Raw = Raw()
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0


class PlainJobs(Body, frozen=True):
    """Many of them."""

    jobs: Annotated[list[PlainJob], Meta(min_length=1)]


class PlainClaim(Body, frozen=True):
    """A job that is done, of the queue in the path."""

    id: Id
    token: Token
    result: Raw = Raw()


class PlainClaims(Body, frozen=True):
    """Many of them, and what is dequeued next."""

    jobs: Annotated[list[PlainClaim], Meta(min_length=1)]
    dequeue: DequeueNextBody | None = None


_PLAIN_JOBS = msgspec.json.Decoder(PlainJobs)
_PLAIN_CLAIMS = msgspec.json.Decoder(PlainClaims)
_JOBS = msgspec.json.Decoder(EnqueueBody)


def new_jobs(data: bytes, settings: Settings) -> Sequence[NewJob]:
    """The jobs of a body in the core's words.

    Raises:
        Problem: As `decode` and `EnqueueBody.new_jobs`.
    """
    plain = plain_jobs(data, settings)
    return decode(_JOBS, data).new_jobs(settings) if plain is None else plain


def plain_jobs(data: bytes, settings: Settings) -> list[NewJob] | None:
    """The same; None if there is something out of the ordinary, or wrong."""
    try:
        data.decode()  # the decoder passes over the bytes of a raw value without looking at their encoding
        jobs = _PLAIN_JOBS.decode(data).jobs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Control characters are none that can be printed; others that cannot be are for the pattern to tell from them.
    if len(jobs) > settings.batch_jobs_max or not "".join([job.type for job in jobs]).isprintable():
        return None
    if len(data) > settings.payload_bytes_max and not all(_fits(job.payload, settings) for job in jobs):
        return None
    # A payload is copied so that it does not keep the whole request alive.
    return [NewJob(job.type, bytes(job.payload) or None, job.priority) for job in jobs]


def plain_claims(data: bytes, queue: str, settings: Settings) -> tuple[PlainClaims, list[Claim]] | None:
    """A body that concludes jobs of one queue, and its claims; None if it holds something else, or is wrong."""
    try:
        data.decode()
        body = _PLAIN_CLAIMS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(body.jobs) > settings.batch_jobs_max:
        return None
    if len(data) > settings.payload_bytes_max and not all(_fits(job.result, settings) for job in body.jobs):
        return None
    claims: list[Claim] = [
        ConcludeClaim(queue, job.id, job.token, None, bytes(job.result) or None) for job in body.jobs
    ]
    return body, claims


def _fits(raw: Raw, settings: Settings) -> bool:
    return len(bytes(raw)) <= settings.payload_bytes_max


# --- out


def enqueued(jobs: Sequence[EnqueuedJob | QueueError]) -> bytes:
    """The answer to an enqueue: `enqueued_view` as JSON."""
    if set(map(type, jobs)) == {EnqueuedJob}:
        return b'{"jobs":' + _encode(jobs) + b',"errors":0}'
    return _encode(enqueued_view(jobs))


def results(
    claims: Sequence[Claim],
    done: Sequence[Job | QueueError | Problem],
    *,
    extended: bool,
    dequeued: Dequeued | QueueError | Problem | None,
) -> tuple[bytes, int]:
    """The answer to a verb for many jobs, `results_view` as JSON with what was dequeued, and how many are errors."""
    if set(map(type, done)) == {Job} and not extended:
        text, errors = _moved(done), 0  # type: ignore[arg-type] # they are all jobs
    else:
        view = results_view(claims, done, extended=extended)
        text, errors = _encode(view), view.errors
    if dequeued is None:
        return text, errors
    ridden = leases(dequeued.leases) if isinstance(dequeued, Dequeued) else _encode(dequeued_view(dequeued))
    return b"".join((text[:-1], b',"dequeued":', ridden, b"}")), errors


def _moved(jobs: Sequence[Job]) -> bytes:
    texts = []
    queue, state, rest = "", JobState.QUEUED, ""
    for job in jobs:
        if job.state is not state or job.queue != queue:
            queue, state = job.queue, job.state
            rest = f',"queue":"{queue}","state":"{state}"}}'  # neither has a character that JSON would escape
        texts.append(f'{{"id":{job.id}{rest}')
    return f'{{"jobs":[{",".join(texts)}],"errors":0}}'.encode()


def leases(given: Sequence[Lease]) -> bytes:
    """The answer to a dequeue: `leases_view` as JSON.

    Jobs of one batch are alike but for id, payload, token and fence, so the text around these is made once for all
    that are.
    """
    pieces = [b'{"jobs":[']
    frames: dict[object, Frame] = {}
    alike: object = None
    comma = ""
    frame = Frame("", "", "", "")
    for lease in given:
        job = lease.job
        if job.options is not NO_OPTIONS or job.progress is not None or job.result is not None:
            pieces += (comma.encode(), _encode(job_view(job, token=lease.token)))
        else:
            # All that a view shows of such a job in progress, but for what stands between the parts of its frame.
            facts = (
                job.created_at,
                job.type,
                job.queue,
                job.priority,
                job.consumer,
                job.lease_seconds,
                job.lease_expires_at,
                job.attempts,
                job.fails,
                job.stales,
                job.not_before,
                job.expires_at,
                job.cancel_requested,
            )
            if facts != alike:
                alike = facts
                frame = frames.get(facts) or frames.setdefault(facts, _frame(job))
            start, typed, followed, end = frame
            pieces += (
                f"{comma}{start}{job.id}{typed}".encode(),
                job.payload or b"null",
                f'{followed}{lease.token}","fence":{job.fence}{end}'.encode(),
            )
        comma = ","
    pieces.append(b"]}")
    return b"".join(pieces)


class Frame(NamedTuple):
    """The text of a job in progress around its id, its payload, its token and fence."""

    start: str
    typed: str
    followed: str
    end: str


def _frame(job: Job) -> Frame:
    """The frame of jobs like this one, out of its view.

    What is cut at can stand nowhere else: in a text of JSON its quotation marks would be escaped, and a job without
    options has no objects before its lease.
    """
    view = replace(job_view(job, token=""), payload=Raw())  # an empty raw value is written as nothing
    text = _encode(view).decode()
    start, _, rest = text.partition(f'"id":{job.id},')
    typed, _, rest = rest.partition('"payload":,')
    followed, _, end = rest.partition(f'"token":"","fence":{job.fence},')
    return Frame(f'{start}"id":', f',{typed}"payload":', f',{followed}"token":"', f",{end}")
