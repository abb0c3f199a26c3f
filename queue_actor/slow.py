"""Warnings about what is slow, with figures, and never many: a server in trouble must not drown in its own log."""

import logging

from queue_actor.settings import Settings

PAUSE_SECONDS = 1.0
"""Between two lines of a kind."""

logger = logging.getLogger("queue_actor.slow")


class Throttle:
    """Lets one line of a kind pass each second, and counts the others."""

    def __init__(self) -> None:
        self._passed_at: float | None = None
        self._held_back = 0

    def held_back(self, now: float) -> int | None:
        """How many were held back since the last one that passed; None: this one is held back as well.

        Args:
            now: This moment of a monotonic clock, in seconds.
        """
        if self._passed_at is not None and now < self._passed_at + PAUSE_SECONDS:
            self._held_back += 1
            return None
        held_back, self._held_back, self._passed_at = self._held_back, 0, now
        return held_back


class SlowBatches:
    """Warns about batches of an engine that take long to apply, and about commits that take long."""

    def __init__(self, settings: Settings) -> None:
        self._batch_seconds = settings.slow_batch_seconds
        self._commit_seconds = settings.slow_commit_seconds
        self._batches = Throttle()
        self._commits = Throttle()

    def note(self, requests: int, jobs: int, began: float, applied: float, committed: float) -> None:
        """Look at one batch: how many requests it had, how many jobs it changed, and when, on a monotonic clock."""
        is_slow, commit_is_slow = applied - began > self._batch_seconds, committed - applied > self._commit_seconds
        if not is_slow and not commit_is_slow:
            return
        facts = {
            "requests": requests,
            "jobs": jobs,
            "apply_milliseconds": round((applied - began) * 1000, 2),
            "commit_milliseconds": round((committed - applied) * 1000, 2),
        }
        if is_slow and (held_back := self._batches.held_back(committed)) is not None:
            logger.warning("slow_batch", extra={"facts": {**facts, "held_back": held_back}})
        if commit_is_slow and (held_back := self._commits.held_back(committed)) is not None:
            logger.warning("slow_commit", extra={"facts": {**facts, "held_back": held_back}})
