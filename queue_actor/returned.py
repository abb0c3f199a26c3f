"""Jobs that came back from a lease with the place they had, in the order of their places.

There are few of them, but for the moment in which a million leases go stale at once. One sorted dictionary of them
would grow in jumps, and the garbage collector would look at all of it each time: with a million in it for 50 ms. So
places are kept as ids are, in chunks that are none of the collector's business, and only the numbers of the chunks
are sorted.
"""

from sortedcontainers import SortedList

from queue_actor.ids import CHUNK_BITS, ByIds


class Returned:
    """The ids of jobs by their places."""

    __slots__ = ("_by_place", "_count", "_first", "_numbers")

    def __init__(self) -> None:
        self._by_place: ByIds[int] = ByIds()
        self._numbers: SortedList[int] = SortedList()  # of the chunks
        self._first: int | None = None  # the lowest place
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, place: int) -> bool:
        return self._by_place.get(place) is not None

    @property
    def first_place(self) -> int | None:
        """The lowest place, or None."""
        return self._first

    def __getitem__(self, place: int) -> int:
        return self._by_place[place]

    def add(self, place: int, id_: int) -> None:
        """Put a job back; no other may have its place."""
        number = place >> CHUNK_BITS
        if number not in self._by_place.chunks:
            self._numbers.add(number)
        self._by_place[place] = id_
        self._count += 1
        if self._first is None or place < self._first:
            self._first = place

    def pop(self, place: int) -> int:
        """Take a job out; its id.

        Raises:
            KeyError: None has this place.
        """
        id_ = self._by_place.pop(place)
        self._count -= 1
        number = place >> CHUNK_BITS
        if number not in self._by_place.chunks:
            self._numbers.remove(number)
        if place == self._first:
            self._first = self._next(place)
        return id_

    def rank(self, place: int) -> int:
        """How many jobs have a lower place; it takes a look at each chunk before, and at those in its own."""
        number = place >> CHUNK_BITS
        chunks = self._by_place.chunks
        below = sum(len(chunks[other]) for other in self._numbers[: self._numbers.bisect_left(number)])
        return below + sum(other < place for other in chunks.get(number, ()))

    def _next(self, place: int) -> int | None:
        """The lowest place, of which it is known that it is higher."""
        if not self._numbers:
            return None
        start = max(place + 1, self._numbers[0] << CHUNK_BITS)
        return self._by_place.first(start, (self._numbers[0] + 1) << CHUNK_BITS)
