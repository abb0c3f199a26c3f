"""Whether a worker's server can be reached, and how long to wait before it is asked again."""

import logging
from random import Random
from typing import Final

from queue_actor.client_errors import ClientError, Refused

logger = logging.getLogger("queue_actor.worker")

FIRST_PAUSE_SECONDS: Final = 0.1
PAUSE_SECONDS_MAX: Final = 10.0


class Reach:
    """Tells the log when the server is not heard any more, and when it is again.

    There is one for each kind of request, since the server may answer one kind and not another.
    """

    def __init__(self, what: str) -> None:
        """`what` is asked or told, for the log and for monitors."""
        self.what = what
        self._tries = 0
        self._random = Random()  # noqa: S311 - pauses are no secrets

    @property
    def reached(self) -> bool:
        """Whether the last request has come to something; also as long as there was none."""
        return not self._tries

    def heard(self) -> None:
        """It has answered."""
        if self._tries:
            logger.info("server_reached", extra={"facts": {"what": self.what, "tries": self._tries}})
        self._tries = 0

    def unheard(self, error: ClientError) -> float:
        """It has not, or with a refusal for now; how many seconds to wait: longer each time, and not all alike."""
        if not self._tries:
            logger.warning("server_unreached", extra={"facts": {"what": self.what, "reason": str(error)}})
        pause = self._random.uniform(0.5, 1.0) * min(
            FIRST_PAUSE_SECONDS * 2.0 ** min(self._tries, 20), PAUSE_SECONDS_MAX
        )
        self._tries += 1
        asked_for = error.retry_after_seconds if isinstance(error, Refused) else None
        return max(pause, asked_for or 0.0)


def is_final(error: ClientError) -> bool:
    """Whether there is no use in sending the same again."""
    return isinstance(error, Refused) and error.retryable in {"never", "drop"}
