"""Deadlines: which keys are due, without ever looking at those that are not.

A binary heap with lazy deletion: moving or clearing a deadline leaves its old entry behind, and the entry is dropped
when it comes up. Leases are mostly concluded long before their deadline, so dead entries would pile up; when they
are more than half, the live ones are carried over to a new heap, a bounded number at a time. A heap without its last
element is still a heap, so the old one stays usable until it is empty.
"""

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

CARRY_ENTRIES = 16
"""Entries carried over to the new heap with each change: more than one, so that it ends before the next begins."""

_DEAD_ENTRIES_MIN = 1_024  # fewer are not worth a new heap


class Deadlines(Generic[K]):
    """The deadline of each key, earliest first; keys of equal deadlines in the order of the keys."""

    def __init__(self) -> None:
        # The entry of each key that counts. Another that is equal is dead, or extending one lease again and again
        # within one moment would pile up entries for ever.
        self._live: dict[K, tuple[float, K]] = {}
        self._heap: list[tuple[float, K]] = []
        self._old: list[tuple[float, K]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, key: K) -> float:
        return self._live[key][0]

    @property
    def entries(self) -> int:
        """Heap entries, the dead ones too: what the deadlines cost in memory."""
        return len(self._heap) + len(self._old)

    def set(self, key: K, deadline: float) -> None:
        """Give a key a deadline, in place of any it had."""
        entry = self._live[key] = (deadline, key)
        heappush(self._heap, entry)
        if self._old or len(self._heap) > 2 * len(self._live) + _DEAD_ENTRIES_MIN:
            self._carry_over()

    def clear(self, key: K) -> None:
        """Take a key's deadline away.

        Raises:
            KeyError: The key has none.
        """
        del self._live[key]
        if self._old or len(self._heap) > 2 * len(self._live) + _DEAD_ENTRIES_MIN:
            self._carry_over()

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        if not self._live:
            return None  # entries there may be, all of them dead
        deadline: float | None = None
        for heap in (self._heap, self._old):
            while heap and self._live.get(heap[0][1]) is not heap[0]:
                heappop(heap)
            if heap and (deadline is None or heap[0][0] < deadline):
                deadline = heap[0][0]
        return deadline

    def due(self, now: float) -> K | None:
        """The key with the earliest deadline, if that is not after `now`; else None. It stays until it is cleared."""
        deadline = self.next()
        if deadline is None or deadline > now:
            return None
        return min(heap[0] for heap in (self._heap, self._old) if heap)[1]

    def _carry_over(self) -> None:
        if not self._old:
            self._heap, self._old = [], self._heap
        for _ in range(min(CARRY_ENTRIES, len(self._old))):
            entry = self._old.pop()
            if self._live.get(entry[1]) is entry:
                heappush(self._heap, entry)
