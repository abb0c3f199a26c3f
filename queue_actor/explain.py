"""Why a job is not running now: a word for programs and a sentence for people.

The first reason that holds is the answer, in the order in which a dequeue would meet them.
"""

from typing import Final

from queue_actor.commands import Explanation, Why
from queue_actor.jobs import DeathReason, Job, JobState, Now, Outcome
from queue_actor.queues import Queue

NOBODY_SECONDS: Final = 60.0
"""After which a queue that nobody has asked for a job counts as one that nobody works on."""

_DIED: Final = {
    DeathReason.FAILED: "it failed for the last time that it may",
    DeathReason.STALE: "its leases ran out too often: it may kill its workers",
    DeathReason.EXPIRED: "its ttl ended before it was done",
    DeathReason.KILLED: "its worker said that there is no use in trying again",
}
_ENDED: Final = {Outcome.FAILED: "failed", Outcome.STALE: "went stale", Outcome.RELEASED: "was given back"}


def explain(queue: Queue, job: Job, now: Now) -> Explanation:
    """Why a job is not running, or who has it."""
    if job.state is JobState.IN_PROGRESS:
        return _leased(job, now)
    if job.finished_at is not None:
        return explain_end(job, now)
    if job.expires_at is not None and job.expires_at <= now.wall:
        return Explanation(Why.EXPIRED, "Its ttl has ended: the next sweep gives it up.")
    if job.state is JobState.SCHEDULED:
        return _scheduled(job, now)
    return _queued(queue, job, now)


def _scheduled(job: Job, now: Now) -> Explanation:
    at = now.wall if job.not_before is None else job.not_before
    if at <= now.wall:
        return Explanation(Why.DUE, "Its time has come: the next sweep queues it.")
    seconds = at - now.wall
    last = job.history[-1] if job.history else None
    if last is None or last.outcome not in _ENDED:
        return Explanation(Why.SCHEDULED, f"It is not to run before its time, in {spoken(seconds)}.", seconds=seconds)
    text = f"Attempt {job.attempts} {_ENDED[last.outcome]}; it is tried again in {spoken(seconds)}."
    return Explanation(Why.RETRY, text, seconds=seconds)


def _queued(queue: Queue, job: Job, now: Now) -> Explanation:
    ahead = queue.ready.ahead(job.priority, job.place)
    line = "It is first in line." if not ahead else f"{jobs(ahead)} before it in line."
    if queue.paused:
        return Explanation(Why.PAUSED, f"The queue is paused: nothing is handed out until it is resumed. {line}", ahead)
    most, running = queue.policy.in_progress_max, queue.counts[JobState.IN_PROGRESS]
    if most is not None and running >= most:
        text = f"{running} of the queue's jobs are in progress, as many as in_progress_max allows. {line}"
        return Explanation(Why.IN_PROGRESS_MAX, text, ahead)
    asked = now.monotonic - queue.asked_at
    if asked > NOBODY_SECONDS:
        text = f"Nobody has asked the queue for a job for {spoken(asked)}: are its workers running? {line}"
        return Explanation(Why.NOBODY_ASKS, text, ahead, asked)
    if ahead:
        return Explanation(Why.BEHIND, line, ahead)
    return Explanation(Why.NEXT, "It is first in line: whoever asks next is given it.", ahead)


def _leased(job: Job, now: Now) -> Explanation:
    who = "A worker that gave no name" if job.consumer is None else f"The worker {job.consumer}"
    seconds = (job.lease_expires_at or now.wall) - now.wall
    if seconds <= 0:
        text = f"{who} had it; the lease has ended, and the next sweep takes the job back."
        return Explanation(Why.LEASE_OVER, text, seconds=seconds)
    text = f"{who} has it, attempt {job.attempts}; the lease lasts {spoken(seconds)} more."
    if job.cancel_requested:
        text = f"{text} Its cancel was asked for: the worker is told when it extends the lease."
        return Explanation(Why.CANCEL_REQUESTED, text, seconds=seconds)
    return Explanation(Why.LEASED, text, seconds=seconds)


def explain_end(job: Job, now: Now) -> Explanation:
    """How a job ended that has, of whichever life of the server."""
    seconds = max(0.0, now.wall - (job.finished_at or now.wall))
    ago = f"{spoken(seconds)} ago"
    match job.state:
        case JobState.CONCLUDED:
            return Explanation(Why.CONCLUDED, f"It is done: it was concluded {ago}.", seconds=seconds)
        case JobState.CANCELLED:
            return Explanation(Why.CANCELLED, f"It was called off, and ended {ago}.", seconds=seconds)
    died = _DIED[job.reason or DeathReason.FAILED]
    return Explanation(Why.DEAD, f"It is dead since {spoken(seconds)}: {died}.", seconds=seconds)


def jobs(count: int) -> str:
    """So many jobs stand somewhere."""
    return "1 job stands" if count == 1 else f"{count} jobs stand"


def spoken(seconds: float) -> str:
    """A length of time as people say it, in its two largest units."""
    if seconds < 10:  # noqa: PLR2004 - from there on tenths are noise
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, its_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {its_name}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"
