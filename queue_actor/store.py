"""Where changes go before anyone is told of them."""

from collections.abc import Sequence
from typing import Protocol

from queue_actor.jobs import Change


class Store(Protocol):
    """Keeps what was answered. There is one writer: the engine."""

    async def commit(self, changes: Sequence[Change]) -> None:
        """Keep the changes, all or none, in this order. A cancelled caller does not cut a commit short.

        Any exception ends the process: what is kept then is found out by recovery, not by trying again.
        """
        ...


class MemoryStore:
    """Keeps nothing: the jobs are as durable as the process."""

    async def commit(self, changes: Sequence[Change]) -> None:
        """Nothing to do, and nothing to wait for."""
