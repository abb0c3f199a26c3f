"""Whether and when the client sends something again: the contract's rules as a value that reads no clock.

`later` may be sent again whatever it is, since nothing was done; so may what never reached the server. `repeat`, and
a connection that broke, only what is safe to repeat. The pauses grow, are never shorter than `Retry-After`, and end
when so many seconds have passed since the first failure.
"""

import random
from collections.abc import Callable

from queue_actor.client_errors import ClientError, Invalid, Refused, Unreachable

PAUSE_SECONDS = 0.05
"""The first pause; each further one is twice as long."""

PAUSE_SECONDS_MAX = 5.0
PAUSE_DOUBLINGS_MAX = 10  # of the first pause, which is beyond the longest by then


def may_repeat(error: ClientError, *, repeatable: bool) -> bool:
    """Whether what failed so may be sent again."""
    match error:
        case Unreachable():
            return repeatable or not error.may_be_done
        case Refused(retryable="later"):
            return True
        case Refused(retryable="repeat"):
            return repeatable
    return False


class Pauses:
    """How long to wait after each failure in a row."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        """Takes what draws a number from 0 to 1: clients that failed together do not return together."""
        self._draw = draw
        self._failures = 0

    def next(self, error: ClientError) -> float:
        """The pause after this failure, in seconds."""
        whole = min(PAUSE_SECONDS * 2.0 ** min(self._failures, PAUSE_DOUBLINGS_MAX), PAUSE_SECONDS_MAX)
        self._failures += 1
        asked = (error.retry_after_seconds or 0.0) if isinstance(error, Refused) else 0.0
        return asked + whole * (1 + self._draw()) / 2

    def reset(self) -> None:
        """It went well."""
        self._failures = 0


class Repeats:
    """What becomes of one request that fails."""

    def __init__(self, seconds: float, *, repeatable: bool, draw: Callable[[], float] = random.random) -> None:
        """Takes for how long to go on after the first failure, in seconds, and whether a repeat is safe."""
        self._seconds = seconds
        self._repeatable = repeatable
        self._pauses = Pauses(draw)
        self._ends_at: float | None = None

    def pause_after(self, error: ClientError, now: float) -> float | None:
        """How long to wait before it is sent again, in seconds; None: it is not."""
        if not may_repeat(error, repeatable=self._repeatable):
            return None
        if self._ends_at is None:
            self._ends_at = now + self._seconds
        pause = self._pauses.next(error)
        return pause if now + pause <= self._ends_at else None

    def reset(self) -> None:
        """It went well: the next failure is a first one again."""
        self._ends_at = None
        self._pauses.reset()


WAIT_SECONDS = 20.0
"""How long one request waits for the end of a job: the server's `wait_seconds_max`, unless that is set."""

WAIT_SECONDS_MIN = 1.0
"""A server that lets nobody wait so long is not asked again and again."""


class Waits:
    """A wait for the end of a job, however long, by requests that each wait for a while."""

    def __init__(self, seconds: float | None, now: float) -> None:
        """Takes for how long in all, in seconds; None: for ever."""
        self._ends_at = None if seconds is None else now + seconds
        self._longest = WAIT_SECONDS

    def next(self, now: float) -> float:
        """How long the next request is to wait, in seconds."""
        return self._longest if self._ends_at is None else min(self._longest, max(0.0, self._ends_at - now))

    def over(self, now: float) -> bool:
        """Whether the time is up."""
        return self._ends_at is not None and now >= self._ends_at

    def refused(self, refused: Invalid) -> None:
        """Ask for less, if it was for too much.

        Raises:
            Invalid: It was not.
        """
        if refused.field != "wait_seconds" or self._longest <= WAIT_SECONDS_MIN:
            raise refused
        self._longest = max(WAIT_SECONDS_MIN, self._longest / 2)
