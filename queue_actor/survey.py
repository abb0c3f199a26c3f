"""The survey: all queues in a few figures each, for whoever wants to see them all at once, again and again.

It is made slice by slice, and after the first time of the queues alone that have changed since.
"""

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Final

from queue_actor.commands import QueueBrief, Survey, Surveyed
from queue_actor.jobs import JobState, Now
from queue_actor.queues import Queue

SURVEYED_QUEUES_MAX: Final = 100
"""Queues that one command looks at: a millisecond at most."""

GONE_QUEUES_MAX: Final = 10_000
"""Queues that are gone of which it is known when they went, so that who asks again is told of them alone."""

STATES: Final = tuple(JobState)


class Surveyor:
    """Knows which queues have changed, and when."""

    def __init__(self, queues: Mapping[str, Queue]) -> None:
        self._queues = queues
        self._turn = 1
        self._changed: dict[str, int] = {}  # name -> the turn of the last change, the latest last
        self._forgotten = 0  # the turn in which those that are gone were forgotten last

    def note(self, names: Iterable[str]) -> None:
        """Some queues have changed, or are gone."""
        for name in names:
            self._changed.pop(name, None)
            self._changed[name] = self._turn
        if len(self._changed) > len(self._queues) + GONE_QUEUES_MAX:
            self._changed = {name: turn for name, turn in self._changed.items() if name in self._queues}
            self._forgotten = self._turn
        self._turn += 1

    def survey(self, command: Survey, now: Now) -> Surveyed:
        """A slice of the queues."""
        whole = command.names is None and command.since <= self._forgotten
        if command.names is not None:
            names = command.names
        elif whole:
            names = list(self._queues)
        else:
            latest = takewhile(lambda name: self._changed[name] >= command.since, reversed(self._changed))
            names = list(latest)
        page = names[:SURVEYED_QUEUES_MAX]
        return Surveyed(
            [_brief(self._queues[name], now) for name in page if name in self._queues],
            [name for name in page if name not in self._queues],
            names[SURVEYED_QUEUES_MAX:],
            self._turn,
            whole,
        )


def _brief(queue: Queue, now: Now) -> QueueBrief:
    oldest = queue.ready.first(oldest=True)
    meters, counts = queue.meters, queue.counts
    slots, compactions, _ = queue.ready.totals()
    return QueueBrief(
        queue.name,
        tuple([counts[state] for state in STATES]),
        tuple([meters[verb].per_minute(now.monotonic) for verb in ("enqueue", "dequeue", "conclude", "fail", "dead")]),
        None if oldest is None else queue.jobs[oldest].ready_at,
        queue.paused,
        now.wall - now.monotonic + queue.asked_at,
        slots,
        compactions,
    )
