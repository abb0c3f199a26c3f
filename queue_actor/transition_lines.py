"""Log lines that tell the life of each job: one for every transition, after it is kept.

They have a level of their own, between debug and info. Payloads, results, progress, errors and keys are not in them.
"""

import logging
from collections.abc import Sequence
from typing import Final

from queue_actor.jobs import Change

TRANSITION: Final = 15
"""The level."""

logging.addLevelName(TRANSITION, "TRANSITION")
logger = logging.getLogger("queue_actor.transitions")


def tell_transitions(changes: Sequence[Change]) -> None:
    """Write the lines of one batch, in order of revision. While they are not wanted, a batch costs one question."""
    if not logger.isEnabledFor(TRANSITION):
        return
    for change in changes:
        before, after = change.before, change.after
        job = after or before
        assert job is not None  # noqa: S101 - for the type checker: a change has one of them
        facts = {
            "queue": job.queue,
            "job": job.id,
            "from": before and before.state,
            "to": after and after.state,
            "verb": change.verb,
            "reason": job.reason,
            "attempt": job.attempts,
            "consumer": job.consumer,
            "revision": change.revision,
        }
        logger.log(TRANSITION, "transition", extra={"facts": facts})
