"""From which state which verb leads where: the life of a job, as data.

The picture of it heads README.md in this folder.
"""

from typing import Final

from queue_actor.jobs import JobState

SCHEDULED: Final = JobState.SCHEDULED
QUEUED: Final = JobState.QUEUED
IN_PROGRESS: Final = JobState.IN_PROGRESS
CONCLUDED: Final = JobState.CONCLUDED
DEAD: Final = JobState.DEAD
CANCELLED: Final = JobState.CANCELLED

TRANSITIONS: Final = frozenset(
    {
        (SCHEDULED, "due", QUEUED),
        (SCHEDULED, "run", QUEUED),
        (SCHEDULED, "replace", SCHEDULED),
        (SCHEDULED, "replace", QUEUED),
        (SCHEDULED, "expire", DEAD),
        (SCHEDULED, "cancel", CANCELLED),
        (QUEUED, "dequeue", IN_PROGRESS),
        (QUEUED, "replace", QUEUED),
        (QUEUED, "replace", SCHEDULED),
        (QUEUED, "expire", DEAD),
        (QUEUED, "cancel", CANCELLED),
        (IN_PROGRESS, "extend", IN_PROGRESS),
        (IN_PROGRESS, "cancel", IN_PROGRESS),  # a wish
        (IN_PROGRESS, "conclude", CONCLUDED),
        (IN_PROGRESS, "fail", SCHEDULED),
        (IN_PROGRESS, "fail", QUEUED),
        (IN_PROGRESS, "fail", DEAD),
        (IN_PROGRESS, "fail", CANCELLED),  # the wish is granted
        (IN_PROGRESS, "release", QUEUED),
        (IN_PROGRESS, "release", SCHEDULED),
        (IN_PROGRESS, "release", DEAD),  # it expired meanwhile
        (IN_PROGRESS, "release", CANCELLED),
        (IN_PROGRESS, "stale", QUEUED),
        (IN_PROGRESS, "stale", SCHEDULED),
        (IN_PROGRESS, "stale", DEAD),
        (IN_PROGRESS, "stale", CANCELLED),
        (DEAD, "redrive", QUEUED),
        (DEAD, "redrive", SCHEDULED),  # redriven at a rate
        (CANCELLED, "redrive", QUEUED),
        (CANCELLED, "redrive", SCHEDULED),
    }
)
"""From which state which verb leads where. Jobs begin as SCHEDULED or QUEUED, by `enqueue`."""
