"""Where changes go before anyone is told of them."""

from math import inf
from typing import Protocol

from queue_actor.changes import Changes


class Store(Protocol):
    """Keeps what was answered. There is one writer: the engine."""

    instance: str
    """Names the life of the queue: with another one, ids begin anew."""

    durability: str
    """What an answer is worth: `memory`, `normal` or `full`."""

    room_bytes: float
    """What may still be written before no more jobs are taken; as of the last commit."""

    async def commit(self, changes: Changes) -> None:
        """Keep the changes, all or none. A cancelled caller does not cut a commit short.

        Any exception ends the process: what is kept then is found out by recovery, not by trying again.
        """
        ...


class MemoryStore:
    """Keeps nothing: the jobs are as durable as the process."""

    durability = "memory"
    room_bytes = inf

    def __init__(self, instance: str) -> None:
        self.instance = instance

    async def commit(self, changes: Changes) -> None:
        """Nothing to do, and nothing to wait for."""
