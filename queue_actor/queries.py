"""Questions that change nothing. The work of each is bounded, whatever the size of the queues."""

from collections.abc import Mapping, Sequence

from queue_actor.access import covers
from queue_actor.commands import (
    JobFilter,
    JobsFound,
    ListQueues,
    Measure,
    Measured,
    NewJob,
    QueuesFound,
    QueueView,
    Search,
)
from queue_actor.errors import ForgottenJob, QueueFull, UnknownJob
from queue_actor.figures import QueueFigures
from queue_actor.jobs import FINISHED, WAITING, Job, JobState, Now, OnExisting, first_policy
from queue_actor.queues import METERED, Queue
from queue_actor.settings import Settings

SCANNED_IDS_MAX = 3_000
"""Ids that one search or one slice of a bulk command looks at."""

MEASURED_QUEUES_MAX = 100
"""Queues that one command measures: two or three milliseconds."""

CONSUMERS_SECONDS = 600
"""How long a consumer counts as seen lately."""


def find_job(queues: Mapping[str, Queue], name: str, id_: int) -> tuple[Queue, Job]:
    """A job and its queue.

    Raises:
        UnknownJob: There never was such a job.
        ForgottenJob: It is not kept any more.
    """
    queue = queues.get(name)
    job = None if queue is None else queue.jobs.get(id_)
    if queue is not None and job is not None:
        return queue, job
    if queue is not None and 0 < id_ < queue.next_id:
        raise ForgottenJob(f"job {id_} of queue {name} has ended and is no longer kept", field="id")
    raise UnknownJob(f"queue {name} has no job {id_}", field="id")


def check_waiting(queue: Queue | None, counts: Mapping[JobState, int], jobs: int, settings: Settings) -> None:
    """See whether so many more jobs may wait in a queue, and in all of them, whose jobs are counted.

    In all, those in progress count as well: they may come back, and would grow without bound if they were handed out
    again and again and never concluded.

    Raises:
        QueueFull: They may not.
    """
    if not jobs:
        return
    if sum(counts[state] for state in JobState if state not in FINISHED) + jobs > settings.queued_jobs_max:
        raise QueueFull(f"{settings.queued_jobs_max} jobs may wait or run, as many as queued_jobs_max allows")
    most = None if queue is None else queue.policy.queued_jobs_max
    if queue is not None and most is not None and queue.waiting + jobs > most:
        raise QueueFull(f"{most} jobs may wait in {queue.name}, as many as its policy's queued_jobs_max allows")


def growth(queue: Queue | None, new: Sequence[NewJob]) -> tuple[int, int]:
    """How many jobs, and how many bytes of payloads, an enqueue would add.

    One whose unique key is taken, by a job that is there or by one before it in the batch, adds no job; if it replaces
    the other, it adds the difference of the payloads.
    """
    jobs = payload_bytes = 0
    held: dict[str, int | None] = {}  # unique key -> bytes that may be replaced; None: the job no longer waits
    for one in new:
        key, added = one.options.unique_key, 0 if one.payload is None else len(one.payload)
        if key is None:
            jobs += 1
            payload_bytes += added
            continue
        if key not in held and queue is not None and key in queue.unique:
            job = queue.jobs[queue.unique[key]]
            held[key] = len(job.payload or b"") if job.state in WAITING else None
        if key not in held:
            jobs += 1
            payload_bytes += added
        elif one.on_existing is OnExisting.REPLACE and (there := held[key]) is not None:
            payload_bytes += added - there
        else:
            continue
        held[key] = added
    return jobs, payload_bytes


def matches(job: Job, where: JobFilter) -> bool:
    """Whether all conditions of the filter hold for the job."""
    if where.states and job.state not in where.states:
        return False
    if where.type is not None and job.type != where.type:
        return False
    if where.consumer is not None and job.consumer != where.consumer:
        return False
    if where.since is not None and job.created_at < where.since:
        return False
    if where.error is not None:
        errors = [attempt.error for attempt in job.history if attempt.error is not None]
        return bool(errors) and (where.error in errors[-1].type or where.error in errors[-1].message)
    return True


def search(queue: Queue | None, command: Search) -> JobsFound:
    """A page of the jobs that match."""
    if queue is None:
        return JobsFound((), None)
    if command.newest_first:
        start = queue.next_id - 1 if command.after_id is None else min(command.after_id, queue.next_id) - 1
        ids = range(start, max(queue.first_id - 1, start - SCANNED_IDS_MAX), -1)
        last = queue.first_id
    else:
        start = max(queue.first_id, (command.after_id or 0) + 1)
        ids = range(start, min(queue.next_id, start + SCANNED_IDS_MAX))
        last = queue.next_id - 1
    jobs: list[Job] = []
    for id_ in ids:
        job = queue.jobs.get(id_)
        if job is not None and matches(job, command.where):
            jobs.append(job)
            if len(jobs) == command.limit:
                return JobsFound(jobs, None if id_ == last else id_)
    return JobsFound(jobs, ids[-1] if ids and ids[-1] != last else None)


def view(queue: Queue | None, name: str, now: Now) -> QueueView:
    """A queue in figures."""
    if queue is None:
        return QueueView(
            name,
            exists=False,
            counts=dict.fromkeys(JobState, 0),
            policy=first_policy(name),
            per_minute=dict.fromkeys(METERED, 0.0),
        )
    oldest = queue.ready.first(oldest=True)
    return QueueView(
        name,
        exists=True,
        counts=dict(queue.counts),
        paused=queue.paused,
        policy=queue.policy,
        declared=queue.declared,
        oldest_age_seconds=None if oldest is None else max(0.0, now.wall - queue.jobs[oldest].ready_at),
        per_minute={verb: meter.per_minute(now.monotonic) for verb, meter in queue.meters.items()},
        consumers={
            consumer: now.monotonic - seen
            for consumer, seen in queue.consumers.items()
            if now.monotonic - seen <= CONSUMERS_SECONDS
        },
        last_id=queue.next_id - 1,
    )


def list_queues(queues: Mapping[str, Queue], command: ListQueues, now: Now) -> QueuesFound:
    """A page of queues. Sorting the names of ten thousand queues takes two milliseconds; nobody asks often."""
    names = sorted(name for name in queues if name > command.after and name.startswith(command.prefix))
    if command.patterns is not None:
        names = [name for name in names if covers(command.patterns, name)]
    page = names[: command.limit]
    return QueuesFound([view(queues[name], name, now) for name in page], page[-1] if len(names) > len(page) else None)


def measure(queues: Mapping[str, Queue], command: Measure, now: Now, *, memory_bytes: int) -> Measured:
    """A slice of the queues for a monitor; those that are gone meanwhile are left out."""
    names = list(queues) if command.names is None else command.names
    page = [_figures(queues[name], now) for name in names[:MEASURED_QUEUES_MAX] if name in queues]
    return Measured(page, names[MEASURED_QUEUES_MAX:], memory_bytes)


def _figures(queue: Queue, now: Now) -> QueueFigures:
    oldest = queue.ready.first(oldest=True)
    age = 0.0 if oldest is None else max(0.0, now.wall - queue.jobs[oldest].ready_at)
    asked = now.monotonic - queue.asked_at
    meters = queue.meters
    slots, compactions, growths = queue.ready.totals()
    return QueueFigures(
        queue.name,
        opened_at=queue.opened_at,
        counts=dict(queue.counts),
        totals=dict(queue.totals),
        deaths=dict(queue.deaths),
        waits=queue.waits.figures(),
        runs=queue.runs.figures(),
        oldest_age_seconds=age,
        without_consumer_seconds=min(age, asked),
        asked_seconds=asked,
        paused=queue.paused,
        moved_per_minute=meters["enqueue"].per_minute(now.monotonic) + meters["dequeue"].per_minute(now.monotonic),
        slots=slots,
        compactions=compactions,
        growths=growths,
    )
