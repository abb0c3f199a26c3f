"""The jobs that are ready, in the order in which they are handed out.

The original design of this queue is one growable array with a head index: enqueue writes at the tail, dequeue moves
the head, and when more than half of the used slots are empty the live entries move down (*compaction*), which makes
the array shorter and keeps its capacity. So enqueue and dequeue cost O(1) amortised, and memory settles at what the
fullest moment needed.

Two things are added. A job that leaves from the middle, cancelled, leaves a *tombstone* in its slot. And compaction
runs in bounded steps, for moving 10^7 slots at once would stall every caller; between two steps the live entries lie
in two runs, with the gap that compaction has made so far between them:

    slots   0 ...... head === write ...... read ======== tail ...... capacity
            (dequeued)  front      (gap)        back      (unused)

Outside of compaction the front run is empty, with head and write at 0, and `read` is the head index of the design.
Everything in the front comes before everything in the back, and places rise along both, so a job is found by
bisection.

`ReadyArray` holds one priority; `Ready` holds a queue: an array for each priority, and beside it the few jobs that
came back from a lease with the place they had before.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from sortedcontainers import SortedList

from queue_actor.figures import ArrayStatistics
from queue_actor.returned import Returned
from queue_actor.settings import Settings

TOMBSTONE = 0
"""In place of an id; ids start at 1."""

_TOMBSTONES_A_STEP = 512
"""Tombstones that one step drops: each is looked for in a sorted list, where a slot is only copied."""

_COMPACT_SLOTS_MIN = 16
"""Used slots below which an array is not compacted: there is nothing to gain."""


class ReadyArray:
    """Ids in the order of their places, first in first out. Places must rise from one `append` to the next."""

    def __init__(self, *, initial: int, growth: float, compact: float, slice_: int) -> None:
        """Take the array's parameters.

        Args:
            initial: Slots to start with.
            growth: Factor by which the capacity grows when it is used up.
            compact: Empty share of the used slots above which compaction begins.
            slice_: Slots moved by one compaction step, and added by one growth step, at most.
        """
        self._growth = growth
        self._compact = compact
        self._slice = slice_
        self._ids = array("q", bytes(8 * initial))
        self._places = array("q", bytes(8 * initial))
        self._head = self._write = self._read = self._tail = 0
        self.live = 0  # jobs in it
        self._tombstones: SortedList[int] = SortedList()  # their places
        self._passed = 0  # tombstones that the head has passed: the first of the list, dropped by `tidy`
        self.compactions = 0  # finished
        self.growths = 0

    def __len__(self) -> int:
        return self.live

    @property
    def capacity(self) -> int:
        """Slots, used or not."""
        return len(self._ids)

    @property
    def compacting(self) -> bool:
        """Whether a compaction has begun and not ended."""
        return self._write > 0

    def statistics(self) -> ArrayStatistics:
        """The shape of the array now."""
        return ArrayStatistics(self.capacity, self._tail, self.live, self._buried, self.compactions)

    def extend(self, place: int, ids: Sequence[int]) -> None:
        """Put jobs at the tail, with this place and those that follow it."""
        tail, count = self._tail, len(ids)
        while tail + count > len(self._ids):
            self._grow()
        if count == 1:  # an array for one would cost more than all the rest
            self._ids[tail], self._places[tail] = ids[0], place
        else:
            self._ids[tail : tail + count] = array("q", ids)
            self._places[tail : tail + count] = array("q", range(place, place + count))
        self._tail = tail + count
        self.live += count

    def first(self) -> int | None:
        """The lowest place, or None if the array is empty."""
        slot = self._first_slot()
        return None if slot is None else self._places[slot]

    def head(self, limit: int, before: int | None = None) -> list[int]:
        """The ids of the first jobs that stand together: at least one if there is any, at most `limit`.

        With `before`, a place higher than the first, only of those with a lower place.
        """
        slot = self._first_slot()
        if slot is None:
            return []
        end = min(slot + limit, self._write if slot < self._write else self._tail)
        if before is not None:
            end = bisect_left(self._places, before, slot, end)
        ids = self._ids[slot:end].tolist()
        return ids[: ids.index(TOMBSTONE)] if TOMBSTONE in ids else ids

    def take(self, count: int) -> None:
        """Take the first jobs out, of those that `head` has just given."""
        self.live -= count
        if self._head < self._write:
            self._head += count
        else:
            self._read += count

    def remove(self, place: int) -> None:
        """Take a job out of the middle; a tombstone stays until the head or a compaction passes it.

        The first job leaves none: a purge takes out all of them, one after the other.

        Raises:
            KeyError: No job has this place.
        """
        slot = self._slot(place)
        if slot is None or self._ids[slot] == TOMBSTONE:
            raise KeyError(place)
        if slot == (self._head if self._head < self._write else self._read):
            self.take(1)
            return
        self._ids[slot] = TOMBSTONE
        self.live -= 1
        self._tombstones.add(place)

    def rank(self, place: int) -> int:
        """How many jobs have a lower place, in O(log n)."""
        before = bisect_left(self._places, place, self._head, self._write) - self._head
        before += bisect_left(self._places, place, self._read, self._tail) - self._read
        return before - max(0, self._tombstones.bisect_left(place) - self._passed)

    def tidy(self) -> None:
        """Do one bounded step of compaction, if one is under way or due. To be called after each command.

        The array stays short as long as a slice is more than what leaves between two calls.
        """
        if self._passed:
            dropped = min(self._passed, self._slice, _TOMBSTONES_A_STEP)
            del self._tombstones[:dropped]
            self._passed -= dropped
        if self.compacting:
            self._compact_step()
        elif self._read == self._tail:
            self._read = self._tail = 0  # nothing is left to move
        else:
            used = self._tail
            if used >= _COMPACT_SLOTS_MIN and self._read + self._buried > used * self._compact:
                self._compact_step()

    @property
    def _buried(self) -> int:
        """Tombstones between head and tail."""
        return len(self._tombstones) - self._passed

    def _first_slot(self) -> int | None:
        """The slot of the first job; the head passes the tombstones before it."""
        if self._head < self._write:
            self._head = self._pass_tombstones(self._head, self._write)
            if self._head < self._write:
                return self._head
        if self._read == self._tail:
            return None
        if self._ids[self._read] == TOMBSTONE:
            self._read = self._pass_tombstones(self._read, self._tail)
        return self._read if self._read < self._tail else None

    def _pass_tombstones(self, start: int, end: int) -> int:
        """The first slot with a job. A walk would take a moment where many jobs are cancelled, so it is bisected."""
        if start == end or self._ids[start] != TOMBSTONE:
            return start

        def jobs(slot: int) -> int:
            """How many jobs there are from `start` up to and including this slot."""
            return slot + 1 - start - (self._tombstones.bisect_right(self._places[slot]) - self._passed)

        slot = start + bisect_left(range(start, end), 1, key=jobs)
        self._passed += slot - start
        return slot

    def _slot(self, place: int) -> int | None:
        for start, end in ((self._head, self._write), (self._read, self._tail)):
            slot = bisect_left(self._places, place, start, end)
            if slot < end and self._places[slot] == place:
                return slot
        return None

    def _grow(self) -> None:
        # Geometric while small; then a slice at a time, where the allocator's own reserve keeps it amortised.
        more = min(max(1, int(len(self._ids) * (self._growth - 1))), self._slice)
        self.growths += 1
        self._ids.extend(array("q", bytes(8 * more)))
        self._places.extend(array("q", bytes(8 * more)))

    def _compact_step(self) -> None:
        """Move the next slice of the back run down to the end of the front run."""
        ids, places = self._ids, self._places
        read, write = self._read, self._write
        end = min(self._tail, read + self._slice)
        buried = range(0)  # the tombstones among what is moved, by their numbers
        if self._tombstones and read < end:
            first = self._tombstones.bisect_left(places[read])
            buried = range(first, self._tombstones.bisect_right(places[end - 1]))
            if len(buried) > _TOMBSTONES_A_STEP:
                buried = buried[:_TOMBSTONES_A_STEP]
                end = bisect_right(places, self._tombstones[buried[-1]], read, end)
        moved_ids, moved_places = ids[read:end], places[read:end]
        if buried:
            del self._tombstones[buried.start : buried.stop]
            live = [n for n, id_ in enumerate(moved_ids) if id_ != TOMBSTONE]
            moved_ids = array("q", [moved_ids[n] for n in live])
            moved_places = array("q", [moved_places[n] for n in live])
        ids[write : write + len(moved_ids)] = moved_ids
        places[write : write + len(moved_places)] = moved_places
        self._write = write + len(moved_ids)
        self._read = end
        if end == self._tail:
            # Everything is in the front run: it becomes the array, shorter by what was empty.
            self._read, self._tail = self._head, self._write
            self._head = self._write = 0
            self.compactions += 1


class _Band:
    """The jobs of one priority: the array, and those that came back."""

    __slots__ = ("array", "priority", "returned")

    def __init__(self, priority: int, settings: Settings) -> None:
        self.priority = priority
        self.array = ReadyArray(
            initial=settings.ready_initial,
            growth=settings.ready_growth,
            compact=settings.ready_compact,
            slice_=settings.compact_slice,
        )
        self.returned = Returned()

    def __len__(self) -> int:
        return len(self.array) + len(self.returned)

    def first_place(self) -> int:
        """The lowest place; the band must not be empty."""
        places = [place for place in (self.array.first(), self.returned.first_place) if place is not None]
        return min(places)


class Ready:
    """The ready jobs of one queue: the highest priority first, then the lowest place."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bands: dict[int, _Band] = {}
        self._priorities: list[int] = []  # of the bands, lowest first
        self._lost: dict[int, int] = {}  # priority of a band -> jobs it lost since the last `tidy`
        self._count = 0
        self._compactions = self._growths = 0  # of arrays that are gone

    def __len__(self) -> int:
        return self._count

    def append(self, priority: int, place: int, id_: int) -> None:
        """Add a job with a place higher than any before."""
        self.extend(priority, place, (id_,))

    def extend(self, priority: int, place: int, ids: Sequence[int]) -> None:
        """Add jobs of one priority with this place, which is higher than any before, and those that follow it."""
        self._band(priority).array.extend(place, ids)
        self._count += len(ids)

    def put_back(self, priority: int, place: int, id_: int) -> None:
        """Add a job that was handed out, with the place it had."""
        self._band(priority).returned.add(place, id_)
        self._count += 1

    def first(self, *, oldest: bool = False) -> int | None:
        """The id of the job that goes first, or None. `oldest` disregards priorities."""
        ids = self.head(1, oldest=oldest)
        return ids[0] if ids else None

    def head(self, limit: int, *, oldest: bool = False) -> list[int]:
        """The ids of the jobs that go first: at least one if there is any, at most `limit`; there may be more.

        `oldest` disregards priorities, and needs a limit of 1.
        """
        if not self._count:
            return []
        band = self._oldest_band() if oldest else self._first_band()
        place = band.returned.first_place
        if place is None:
            return band.array.head(limit)
        if self._returned_goes_first(band, place):
            return [band.returned[place]]
        return band.array.head(limit, before=place)

    def take(self, count: int, *, oldest: bool = False) -> None:
        """Take the first jobs out, as many as `head` has given or fewer."""
        band = self._oldest_band() if oldest else self._first_band()
        place = band.returned.first_place
        if place is not None and self._returned_goes_first(band, place):
            band.returned.pop(place)
        else:
            band.array.take(count)
        self._count -= count
        self._lost[band.priority] = self._lost.get(band.priority, 0) + count

    def remove(self, priority: int, place: int) -> None:
        """Take a job out from wherever it stands.

        Raises:
            KeyError: No such job is ready.
        """
        band = self._bands[priority]
        if place in band.returned:
            band.returned.pop(place)
        else:
            band.array.remove(place)
        self._count -= 1
        self._lost[priority] = self._lost.get(priority, 0) + 1

    def ahead(self, priority: int, place: int) -> int:
        """How many jobs would be handed out before the one that stands there, in O(log n) and a look at few more.

        A thousand that came back are one look.
        """
        above = sum(len(self._bands[other]) for other in self._priorities if other > priority)
        band = self._bands[priority]
        return above + band.array.rank(place) + band.returned.rank(place)

    def tidy(self) -> None:
        """Compact where jobs have left, by one bounded step or twice as many slots as jobs left; once a command.

        Compaction that moved no more slots than commands take jobs out would never end, and the array would grow.
        The array of an empty band goes, except the normal priority's: its capacity is what the next burst will need.
        """
        for priority, lost in self._lost.items():
            band = self._bands[priority]
            for _ in range(1 + 2 * lost // self._settings.compact_slice):
                band.array.tidy()
            if priority and not len(band):
                self._compactions += band.array.compactions
                self._growths += band.array.growths
                del self._bands[priority]
                self._priorities.remove(priority)
        self._lost.clear()

    def statistics(self) -> dict[int, ArrayStatistics]:
        """The shape of each priority's array."""
        return {priority: self._bands[priority].array.statistics() for priority in self._priorities}

    def totals(self) -> tuple[int, int, int]:
        """The slots of all arrays, and how often any was compacted and grew since the queue was opened."""
        slots, compactions, growths = 0, self._compactions, self._growths
        for band in self._bands.values():
            slots += band.array.capacity
            compactions += band.array.compactions
            growths += band.array.growths
        return slots, compactions, growths

    def _band(self, priority: int) -> _Band:
        band = self._bands.get(priority)
        if band is None:
            band = self._bands[priority] = _Band(priority, self._settings)
            insort(self._priorities, priority)
        return band

    def _first_band(self) -> _Band:
        band = self._bands[self._priorities[-1]]
        if band.array.live or band.returned:
            return band
        for priority in reversed(self._priorities):
            band = self._bands[priority]
            if band.returned or band.array.live:
                return band
        raise AssertionError("the count of ready jobs is wrong")

    def _oldest_band(self) -> _Band:
        return min((band for band in self._bands.values() if len(band)), key=_Band.first_place)

    @staticmethod
    def _returned_goes_first(band: _Band, place: int) -> bool:
        """Whether a job that came back to this place comes before those in the array."""
        first = band.array.first()
        return first is None or place < first
