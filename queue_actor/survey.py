"""The survey: all queues in a few figures each, slice by slice, for whoever wants to see them all at once."""

from collections.abc import Mapping
from typing import Final

from queue_actor.commands import QueueBrief, Survey, Surveyed
from queue_actor.jobs import JobState, Now
from queue_actor.queues import Queue

SURVEYED_QUEUES_MAX: Final = 250
"""Queues that one command looks at: about a millisecond."""

STATES: Final = tuple(JobState)


def survey(queues: Mapping[str, Queue], command: Survey, now: Now) -> Surveyed:
    """A slice of the queues; those that are gone meanwhile are left out."""
    names = list(queues) if command.names is None else command.names
    page = [_brief(queues[name], now) for name in names[:SURVEYED_QUEUES_MAX] if name in queues]
    return Surveyed(page, names[SURVEYED_QUEUES_MAX:])


def _brief(queue: Queue, now: Now) -> QueueBrief:
    oldest = queue.ready.first(oldest=True)
    meters, counts = queue.meters, queue.counts
    slots, compactions, _ = queue.ready.totals()
    return QueueBrief(
        queue.name,
        tuple([counts[state] for state in STATES]),
        tuple([meters[verb].per_minute(now.monotonic) for verb in ("enqueue", "dequeue", "conclude", "fail", "dead")]),
        None if oldest is None else max(0.0, now.wall - queue.jobs[oldest].ready_at),
        queue.paused,
        now.monotonic - queue.asked_at,
        slots,
        compactions,
    )
