"""What is known by the ids of one queue, in chunks.

One dictionary of all jobs would hold everybody up while it grows: at 5.6 million ids for more than a second. Ids are
given in order and mostly leave in order, so each thousand has a dictionary of its own, which is small when it grows,
near in memory to those of its neighbours, and gone when its last id is. The garbage collector has no business with
them, as long as the values are none of its.
"""

from bisect import bisect_left
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Final, TypeVar

V = TypeVar("V")

CHUNK_BITS: Final = 10
"""An id without these lowest bits is the number of its chunk."""

CHUNK_MASK: Final = (1 << CHUNK_BITS) - 1
"""These bits of an id are 0 where a chunk begins."""

_SHRINKS_AT: Final = frozenset({128, 16})
"""Ids left in a chunk at which it gives back the room of those that have left: a dictionary never does by itself."""


class ByIds(MutableMapping[int, V]):
    """A dictionary whose keys are ids, and which never takes long to grow."""

    __slots__ = ("chunks",)

    def __init__(self) -> None:
        self.chunks: dict[int, dict[int, V]] = {}
        """For those who look up many ids in one loop: `chunks[id_ >> CHUNK_BITS][id_]`. None of them is empty."""

    def __getitem__(self, id_: int) -> V:
        return self.chunks[id_ >> CHUNK_BITS][id_]

    def get(self, id_: int) -> V | None:  # type: ignore[override] # None is the only default that is asked for
        """The value of an id, or None."""
        chunk = self.chunks.get(id_ >> CHUNK_BITS)
        return None if chunk is None else chunk.get(id_)

    def __setitem__(self, id_: int, value: V) -> None:
        self.chunk(id_ >> CHUNK_BITS)[id_] = value

    def chunk(self, number: int) -> dict[int, V]:
        """The chunk of this number, made if there is none; the caller puts something into it."""
        chunk = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = {}
        return chunk

    def __delitem__(self, id_: int) -> None:
        self.pop(id_)

    def pop(self, id_: int) -> V:  # type: ignore[override] # nobody asks for a default
        """Take an id out; its value.

        Raises:
            KeyError: It is not there.
        """
        number = id_ >> CHUNK_BITS
        chunk = self.chunks[number]
        value = chunk.pop(id_)
        if not chunk:
            del self.chunks[number]
        elif len(chunk) in _SHRINKS_AT:
            self.chunks[number] = dict(chunk)
        return value

    def pop_all(self, ids: Sequence[int]) -> list[V]:
        """Take ids out; their values.

        Raises:
            KeyError: One is not there. Some of the others are out.
        """
        if len(ids) == 1:
            return [self.pop(ids[0])]
        values: list[V] = []
        for number, neighbours in by_chunk(ids):
            chunk = self.chunks[number]
            before = len(chunk)
            values += map(chunk.pop, neighbours)
            left = len(chunk)
            if not left:
                del self.chunks[number]
            elif any(left <= mark < before for mark in _SHRINKS_AT):
                self.chunks[number] = dict(chunk)
        return values

    def first(self, start: int, end: int) -> int:
        """The first id that is there, from one and below another; that other if there is none."""
        while start < end:
            number = start >> CHUNK_BITS
            stop = min(end, (number + 1) << CHUNK_BITS)
            chunk = self.chunks.get(number, ())
            if chunk:
                for id_ in range(start, stop):
                    if id_ in chunk:
                        return id_
            start = stop
        return end

    def __iter__(self) -> Iterator[int]:
        for chunk in self.chunks.values():
            yield from chunk

    def __len__(self) -> int:
        return sum(map(len, self.chunks.values()))


def by_chunk(ids: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    """The number of each chunk in which there are some of these ids, and these in order."""
    ids = sorted(ids)
    chunks: list[tuple[int, Sequence[int]]] = []
    start = 0
    while start < len(ids):
        number = ids[start] >> CHUNK_BITS
        stop = bisect_left(ids, (number + 1) << CHUNK_BITS, start)
        chunks.append((number, ids[start:stop]))
        start = stop
    return chunks
