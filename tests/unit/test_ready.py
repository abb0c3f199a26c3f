"""The ready array and the ready jobs of a queue, beside sorted lists that must say the same.

The exhaustive tests walk through every fill level of a small array; Hypothesis looks for what they left out.
"""

import gc
import tracemalloc
from array import array
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor.figures import ArrayStatistics
from queue_actor.ready import Ready, ReadyArray
from queue_actor.settings import Settings

USED_MIN = 16  # slots in use below which an array is not compacted
STEP = 3  # between two places, so that there are places which no job has


def popleft(ready: ReadyArray | Ready, **how: bool) -> int | None:
    """Take the first job out; its id, or None."""
    ids = ready.head(1, **how)
    if ids:
        ready.take(1, **how)
    return ids[0] if ids else None


class Twin:
    """A ready array and the plain list that it must be equal to, used alike."""

    def __init__(
        self, jobs: int = 0, *, initial: int = 4, growth: float = 1.5, compact: float = 0.5, slice_: int = 4
    ) -> None:
        self.array = ReadyArray(initial=initial, growth=growth, compact=compact, slice_=slice_)
        self.model: list[tuple[int, int]] = []  # place and id
        self.appended = 0
        self.slice = slice_
        for _ in range(jobs):
            self.append()

    def append(self) -> None:
        self.appended += 1
        place, id_ = self.appended * STEP, self.appended + 1_000
        capacity = self.array.statistics().capacity
        self.array.extend(place, (id_,))
        self.model.append((place, id_))
        assert self.array.statistics().capacity - capacity <= self.slice

    def popleft(self) -> None:
        assert popleft(self.array) == (self.model.pop(0)[1] if self.model else None)

    def take(self, limit: int, fewer: int = 0, before: int | None = None) -> None:
        """Take as many out as stand together, but for some."""
        ids = self.array.head(limit, before)
        expected = [id_ for place, id_ in self.model[:limit] if before is None or place < before]
        assert ids == expected[: len(ids)]
        assert bool(ids) == bool(expected)
        count = max(0, len(ids) - fewer)
        if count:
            self.array.take(count)
            del self.model[:count]

    def extend(self, jobs: int) -> None:
        """Append several at once; they have places without gaps."""
        place = self.appended * STEP + 1
        self.appended += jobs  # so that the next place is higher than theirs
        ids = [place + n + 10_000 for n in range(jobs)]
        self.array.extend(place, ids)
        self.model += [(place + n, id_) for n, id_ in enumerate(ids)]

    def remove(self, position: int) -> None:
        """Take out the job that stands there, if one does."""
        if -len(self.model) <= position < len(self.model):
            place, _ = self.model.pop(position)
            self.array.remove(place)
            with pytest.raises(KeyError):
                self.array.remove(place)

    def tidy(self) -> None:
        capacity = self.array.statistics().capacity
        self.array.tidy()
        assert self.array.statistics().capacity == capacity

    def check(self) -> None:
        """Compare all that can be asked: the length, the head, and the rank of every place and of the next."""
        statistics = self.array.statistics()
        assert len(self.array) == statistics.live == len(self.model)
        assert statistics.live + statistics.tombstones <= statistics.used <= statistics.capacity
        assert self.array.rank(0) == 0
        for rank, (place, _) in enumerate(self.model):
            assert self.array.rank(place) == rank
            assert self.array.rank(place + 1) == rank + 1
        assert self.array.first() == (self.model[0][0] if self.model else None)
        assert self.array.head(1) == [id_ for _, id_ in self.model[:1]]

    def drain(self) -> None:
        """Take everything out, in order."""
        while self.model:
            self.popleft()
        self.check()

    def compacted(self) -> bool:
        """Tidy until nothing is left to do, comparing everything after each step; False if no compaction was due."""
        statistics = self.array.statistics()
        steps = statistics.used // self.slice + 2
        for _ in range(2 * steps):  # jobs that left during one compaction may be enough for a second
            self.tidy()
            self.check()
        assert not self.array.compacting
        return self.array.statistics().compactions > statistics.compactions


class CountedSlots(array):  # type: ignore[type-arg] # which the class takes from Python 3.12 on
    """A column of an array that counts the slots which are read or written."""

    touched = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        CountedSlots.touched += len(found) if isinstance(index, slice) else 1
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        CountedSlots.touched += len(value) if isinstance(index, slice) else 1
        super().__setitem__(index, value)


def count_slots(subject: ReadyArray) -> type[CountedSlots]:
    """Count the slots that an array touches from now on."""
    subject._ids = CountedSlots("q", subject._ids)
    subject._places = CountedSlots("q", subject._places)
    CountedSlots.touched = 0
    return CountedSlots


def runs_of(length: int) -> Iterator[set[int]]:
    """Every run of positions, and all but every run; every second one, from both starts."""
    for start in range(length + 1):
        for end in range(start, length + 1):
            run = set(range(start, end))
            yield run
            yield set(range(length)) - run
    yield set(range(0, length, 2))
    yield set(range(1, length, 2))


def array_with(jobs: int, dequeued: int, removed: set[int], **parameters: Any) -> Twin:
    """An array of so many jobs, of which some left at the head and then some (by position in the rest) elsewhere."""
    twin = Twin(jobs, **parameters)
    for _ in range(dequeued):
        twin.popleft()
    for position in sorted(removed, reverse=True):
        twin.remove(position)
    return twin


# --- an array, from outside


def test_an_empty_array_has_no_first_job() -> None:
    twin = Twin()
    twin.check()
    with pytest.raises(KeyError):
        twin.array.remove(STEP)


def test_jobs_leave_in_the_order_in_which_they_came() -> None:
    twin = Twin(100)
    twin.check()
    twin.drain()


def test_what_cannot_be_taken_out_is_told() -> None:
    twin = Twin(1)
    with pytest.raises(KeyError, match=r"^17$"):
        twin.array.remove(17)


def test_a_place_that_no_job_has_cannot_be_removed() -> None:
    twin = Twin(20)
    twin.popleft()
    for place in (0, STEP, STEP + 1, 21 * STEP):
        with pytest.raises(KeyError):
            twin.array.remove(place)
    twin.check()


def test_a_place_that_no_job_has_cannot_be_removed_in_the_middle_of_a_compaction() -> None:
    twin = array_with(20, 12, {2}, slice_=3)
    twin.tidy()
    assert twin.array.compacting
    twin.popleft()  # the place it had is still in a slot, before the head of the front run
    for place in range(22 * STEP):
        if place not in {place for place, _ in twin.model}:
            with pytest.raises(KeyError):
                twin.array.remove(place)
    twin.check()


def test_removed_jobs_are_passed_over_at_the_head() -> None:
    twin = array_with(10, 0, {0, 1, 2, 5, 9})
    assert twin.array.statistics().tombstones == 4  # the last one to be removed was the first
    twin.popleft()
    assert twin.array.statistics().tombstones == 2
    twin.drain()
    assert twin.array.statistics().tombstones == 0


def test_those_that_are_removed_from_the_front_on_leave_no_tombstones() -> None:
    """As a purge does, before and within a compaction."""
    twin = array_with(100, 60, set(), slice_=7)
    seen = set()
    while twin.model:
        twin.remove(0)
        twin.array.tidy()
        seen.add(twin.array.compacting)
        assert twin.array.statistics().tombstones == 0
        assert twin.array.head(1) == [id_ for _, id_ in twin.model[:1]]
    assert seen == {False, True}


def test_statistics_tell_the_shape() -> None:
    twin = array_with(20, 5, {3, 4}, initial=32)
    assert twin.array.statistics() == ArrayStatistics(capacity=32, used=20, live=13, tombstones=2, compactions=0)


# --- growth


def test_an_array_grows_by_its_factor_while_that_is_less_than_a_slice() -> None:
    twin = Twin(initial=4, growth=2, slice_=16)
    capacities = []
    for _ in range(70):
        twin.append()
        capacities.append(twin.array.statistics().capacity)
    assert sorted(set(capacities)) == [4, 8, 16, 32, 48, 64, 80]
    assert capacities[3:5] == [4, 8]  # it grows when it is full and not before


@pytest.mark.parametrize(("growth", "grown"), [(1.25, 20), (1.5, 24), (3.0, 48)])
def test_an_array_grows_by_whatever_factor_it_is_given(growth: float, grown: int) -> None:
    twin = Twin(17, initial=16, growth=growth, slice_=1_000)
    assert twin.array.statistics().capacity == grown


@pytest.mark.parametrize("initial", [1, 2, 3])
@pytest.mark.parametrize("growth", [1.01, 1.5, 8.0])
@pytest.mark.parametrize("slice_", [1, 2, 8])
def test_an_array_grows_by_at_least_one_slot_and_at_most_a_slice(initial: int, growth: float, slice_: int) -> None:
    twin = Twin(initial=initial, growth=growth, slice_=slice_)
    for _ in range(50):
        twin.append()  # which looks at the growth
    twin.check()
    twin.drain()


# --- when compaction begins


@pytest.mark.parametrize("dequeued", range(11))
def test_half_of_the_used_slots_empty_is_not_enough_and_one_more_is(dequeued: int) -> None:
    """Dequeued slots and tombstones count alike, in every mixture."""
    tombstones = 10 - dequeued
    twin = array_with(20, dequeued, set(range(1, 1 + tombstones)))
    assert not twin.compacted()
    twin.remove(-1)
    assert twin.compacted()


@pytest.mark.parametrize("compact", [0.1, 0.25, 0.5, 0.75, 0.95])
def test_the_share_that_must_be_empty_is_a_parameter(compact: float) -> None:
    twin = array_with(100, int(100 * compact), set(), compact=compact)
    assert not twin.compacted()
    twin.popleft()
    assert twin.compacted()


@pytest.mark.parametrize(("jobs", "expected"), [(USED_MIN - 1, False), (USED_MIN, True)])
def test_a_short_array_is_left_alone(jobs: int, expected: bool) -> None:
    twin = array_with(jobs, jobs - 1, set())
    assert twin.compacted() is expected


def test_an_array_that_ran_empty_starts_again_at_its_first_slot() -> None:
    twin = array_with(5, 5, set())
    assert twin.array.statistics().used == 5
    twin.tidy()
    assert twin.array.statistics().used == 0
    twin.append()
    assert twin.array.statistics().used == 1
    twin.drain()


def test_an_array_of_tombstones_alone_is_compacted_to_nothing() -> None:
    twin = array_with(30, 0, set(range(30)), slice_=4)
    assert len(twin.array) == 0
    for _ in range(8):
        twin.tidy()
        twin.check()
    assert twin.array.statistics().used == 0
    assert twin.array.statistics().tombstones == 0
    twin.append()
    twin.drain()


# --- what compaction does


def test_compactions_are_counted() -> None:
    twin = Twin()
    for count in (1, 2, 3):
        for _ in range(20):
            twin.append()
        for _ in range(11):
            twin.popleft()
        while twin.compacted():
            pass
        assert twin.array.compactions >= count
        twin.drain()


def test_compaction_makes_an_array_shorter_and_keeps_its_capacity() -> None:
    twin = array_with(40, 15, {0, 7, 8, 9, 20, 24}, slice_=4)
    capacity = twin.array.statistics().capacity
    assert twin.compacted()
    statistics = twin.array.statistics()
    assert (statistics.capacity, statistics.used, statistics.live) == (capacity, 19, 19)
    assert (statistics.tombstones, statistics.compactions) == (0, 1)
    twin.drain()


def compact_every_fill_level(sizes: range, slices: tuple[int, ...]) -> None:
    for jobs, slice_ in product(sizes, slices):
        for dequeued in range(jobs + 1):
            for removed in runs_of(jobs - dequeued):
                twin = array_with(jobs, dequeued, removed, initial=jobs, slice_=slice_)
                empty = dequeued + len(removed)
                must = jobs >= USED_MIN and 2 * empty > jobs > dequeued
                assert twin.compacted() is must or not twin.model
                if must and twin.model:
                    assert twin.array.statistics().used == len(twin.model)
                twin.append()
                twin.drain()


def test_every_fill_level_of_a_small_array_is_compacted_in_order() -> None:
    compact_every_fill_level(range(USED_MIN, USED_MIN + 1), (3,))


@pytest.mark.slow
def test_every_fill_level_of_a_larger_array_is_compacted_in_order() -> None:
    compact_every_fill_level(range(20), (1, 8))
    compact_every_fill_level(range(32, 33), (5,))
    compact_every_fill_level(range(40, 41), (9,))


@pytest.mark.parametrize("slice_", [1, 3, 8])
def test_every_subset_of_tombstones_is_left_behind(slice_: int) -> None:
    """Seven jobs of sixteen are left: each subset of them goes, by turns before and in the middle of a compaction."""
    for subset, steps in product(range(1 << 7), range(3)):
        twin = array_with(USED_MIN, 9, set(), slice_=slice_)
        for _ in range(steps):
            twin.tidy()
        for position in reversed(range(7)):
            if subset >> position & 1:
                twin.remove(position)
        twin.check()
        twin.compacted()
        twin.append()
        twin.drain()


MOVES = ("nothing", "dequeue", "enqueue", "remove the first", "remove the last", "remove one inside")


def move(twin: Twin, name: str) -> None:
    match name:
        case "dequeue":
            twin.popleft()
        case "enqueue":
            twin.append()
        case "remove the first":
            twin.remove(0)
        case "remove the last":
            twin.remove(-1)
        case "remove one inside":
            twin.remove(len(twin.model) // 2)


@pytest.mark.parametrize("slice_", [1, 3])
@pytest.mark.parametrize("tombstones", [set(), {0}, {7}, {0, 2, 4, 6}, {1, 2, 3, 4, 5, 6}], ids=str)
def test_jobs_may_come_and_go_between_the_steps_of_a_compaction(slice_: int, tombstones: set[int]) -> None:
    for moves in product(MOVES, repeat=3):
        twin = array_with(18, 10, tombstones, slice_=slice_)
        for name in moves:
            twin.tidy()
            twin.check()
            move(twin, name)
            twin.check()
        twin.compacted()
        twin.drain()


def test_the_front_may_run_empty_before_the_compaction_ends() -> None:
    twin = array_with(30, 16, {1}, slice_=2)
    twin.tidy()
    assert twin.array.compacting
    for _ in range(5):  # two of them from the front, three from the back
        twin.popleft()
        twin.check()
    assert twin.compacted()
    twin.drain()


def test_compaction_goes_on_while_jobs_arrive() -> None:
    twin = array_with(40, 30, set(), slice_=4)
    for _ in range(6):
        twin.tidy()
        for _ in range(3):  # one less than a step moves
            twin.append()
        twin.check()
    assert twin.compacted() or twin.array.statistics().compactions
    assert twin.array.statistics().used == len(twin.model)
    twin.drain()


# --- what it costs


@pytest.mark.parametrize("slice_", [1, 2, 3, 8, 100])
def test_a_step_moves_no_more_than_a_slice(slice_: int) -> None:
    """A slot that is moved is read once and written once, in both columns; all else is a handful."""
    twin = array_with(400, 150, set(range(10, 250, 3)), slice_=slice_)
    slots = count_slots(twin.array)
    done = steps = 0
    while not twin.array.statistics().compactions:
        slots.touched = 0
        twin.array.tidy()
        assert slots.touched <= 4 * slice_ + 2
        done += slots.touched
        steps += 1
    assert done >= 250 * 2 + len(twin.model) * 2  # all were moved, so the count has counted
    assert steps == -(-250 // slice_)
    twin.drain()


def test_a_step_drops_no_more_than_a_slice_of_tombstones() -> None:
    twin = array_with(400, 0, set(range(300)), slice_=10)
    while twin.array.statistics().tombstones:
        before = twin.array.statistics().tombstones
        twin.tidy()
        assert before - twin.array.statistics().tombstones <= 10
    twin.drain()


@pytest.mark.parametrize("few", [1, 2, 3])
@pytest.mark.parametrize("removed", [range(30), range(0, 60, 2), range(31, 60), {*range(5), *range(9, 40), 58}])
def test_a_step_drops_no_more_than_so_many_tombstones(
    few: int, removed: Iterable[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be they behind the head or before it, and however many slots a step may move."""
    monkeypatch.setattr("queue_actor.ready._TOMBSTONES_A_STEP", few)
    twin = array_with(60, 0, set(removed), slice_=4_096, compact=0.0)
    left = [twin.array.statistics().tombstones]
    for _ in range(60):
        twin.array.tidy()
        left.append(twin.array.statistics().tombstones)
    dropped = [before - after for before, after in pairwise(left)]
    assert left[-1] == 0
    assert max(dropped) == few  # and in each step but the last as many as may be
    assert sorted(filter(None, dropped)).count(few) == left[0] // few
    twin.drain()


def test_tombstones_that_the_head_has_passed_are_dropped_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queue_actor.ready._TOMBSTONES_A_STEP", 3)
    twin = array_with(40, 0, set(range(10)), slice_=4_096, compact=1.0)
    twin.popleft()
    left = [len(twin.array._tombstones)]
    for _ in range(4):
        twin.tidy()
        left.append(len(twin.array._tombstones))
    assert left == [9, 6, 3, 0, 0]
    twin.drain()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("ask", [ReadyArray.first, popleft], ids=lambda ask: ask.__name__)
def test_the_head_passes_any_number_of_tombstones_in_few_steps(
    ask: Callable[[ReadyArray], int | None], backwards: bool
) -> None:
    """Cancelling jobs one by one is cheap, and the dequeue after it must not pay for all of them at once."""
    jobs = 100_000
    subject = ReadyArray(initial=jobs, growth=1.5, compact=0.5, slice_=4_096)
    for place in range(1, jobs + 1):
        subject.extend(place, (place,))
    gone = range(1, jobs // 2 + 1)
    for place in reversed(gone) if backwards else gone:
        subject.remove(place)
    slots = count_slots(subject)
    assert ask(subject) == jobs // 2 + 1
    assert slots.touched < 200
    slots.touched = 0
    assert subject.rank(jobs) == jobs // 2 - 1 - (ask is popleft)
    assert slots.touched < 200
    assert len(subject) == jobs // 2 - (ask is popleft)


def cycle(twin: Twin, cycles: int) -> ArrayStatistics:
    """Put in at the tail and take out at the head, over and over."""
    subject, model = twin.array, twin.model
    place = twin.appended * STEP
    for _ in range(cycles):
        place += STEP
        subject.extend(place, (place,))
        popleft(subject)
        subject.tidy()
    model.clear()
    return subject.statistics()


@pytest.mark.parametrize("live", [0, 1, 15, 100, 1_000])
def test_memory_is_flat_however_many_jobs_pass(live: int) -> None:
    twin = Twin(live, slice_=8)
    settled = cycle(twin, 20 * live + 1_000)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        statistics = cycle(twin, 20_000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert statistics.live == live
    assert statistics.capacity == settled.capacity <= 3 * live + 2 * USED_MIN
    assert after - before < 20_000  # less than a byte for each job that passed


@pytest.mark.slow
@pytest.mark.parametrize("slice_", [2, 8, 4_096])
def test_memory_is_flat_after_a_million_jobs_have_passed(slice_: int) -> None:
    twin = Twin(1_000, slice_=slice_)
    settled = cycle(twin, 10_000)
    statistics = cycle(twin, 1_000_000)
    assert statistics.live == 1_000
    assert statistics.capacity == settled.capacity
    assert statistics.used <= statistics.capacity <= 4_000 + slice_


# --- an array, by Hypothesis

PARAMETERS = st.fixed_dictionaries(
    {
        "initial": st.integers(1, 20),
        "growth": st.sampled_from([1.01, 1.5, 2.0, 8.0]),
        "compact": st.sampled_from([0.1, 0.5, 0.95]),
        "slice_": st.integers(1, 8),
    }
)
ARRAY_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "extend", "popleft", "take", "take before", "remove", "tidy"]), st.integers(0, 30)
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=100)
@given(parameters=PARAMETERS, jobs=st.integers(0, 40), operations=ARRAY_OPERATIONS)
def test_an_array_is_a_sorted_list_whatever_happens_to_it(
    parameters: dict[str, Any], jobs: int, operations: list[tuple[str, int]]
) -> None:
    twin = Twin(jobs, **parameters)
    for name, number in operations:
        match name:
            case "append":
                for _ in range(number % 8 + 1):
                    twin.append()
            case "extend":
                twin.extend(1 + number % 5)
            case "take":
                twin.take(1 + number % 8, number % 3)
            case "take before":
                if twin.model:  # a place higher than the first
                    twin.take(8, before=twin.model[0][0] + 1 + number)
            case "popleft":
                for _ in range(number % 8 + 1):
                    twin.popleft()
            case "remove":
                twin.remove(number)
            case "tidy":
                twin.tidy()
        twin.check()
    twin.compacted()
    twin.drain()


# --- the ready jobs of a queue


class ReadyTwin:
    """The ready jobs of a queue and the sorted list that they must be equal to, used alike."""

    def __init__(self, *, slice_: int = 4, initial: int = 2) -> None:
        # Smaller figures than an operator may set, so that the boundaries are met.
        self.ready = Ready(Settings(ready_initial=initial, ready_growth=1.5, compact_slice=slice_))
        self.model: list[tuple[int, int, int]] = []  # priority (negated), place, id: the lowest goes first
        self.handed_out: list[tuple[int, int, int]] = []
        self.place = 0

    def append(self, priority: int = 0) -> None:
        self.place += STEP
        self.ready.append(priority, self.place, self.place + 1_000)
        insort(self.model, (-priority, self.place, self.place + 1_000))

    def popleft(self) -> None:
        assert popleft(self.ready) == (self.model[0][2] if self.model else None)
        if self.model:
            self.handed_out.append(self.model.pop(0))

    def extend(self, priority: int, jobs: int) -> None:
        place = self.place + 1
        self.place += jobs * STEP
        self.ready.extend(priority, place, [place + n + 1_000 for n in range(jobs)])
        for n in range(jobs):
            insort(self.model, (-priority, place + n, place + n + 1_000))

    def take(self, limit: int, fewer: int) -> None:
        """Take out as many as go first together, but for some."""
        ids = self.ready.head(limit)
        assert ids == [id_ for _, _, id_ in self.model[: len(ids)]]
        assert bool(ids) == bool(self.model)
        count = max(0, len(ids) - fewer)
        if count:
            self.ready.take(count)
            self.handed_out += self.model[:count]
            del self.model[:count]

    def put_back(self, which: int = 0) -> None:
        if self.handed_out:
            job = self.handed_out.pop(which % len(self.handed_out))
            self.ready.put_back(-job[0], job[1], job[2])
            insort(self.model, job)

    def remove(self, which: int) -> None:
        if self.model:
            priority, place, _ = self.model.pop(which % len(self.model))
            self.ready.remove(-priority, place)
            with pytest.raises(KeyError):
                self.ready.remove(-priority, place)

    def check(self) -> None:
        assert len(self.ready) == len(self.model)
        assert self.ready.first() == (self.model[0][2] if self.model else None)
        for ahead, (priority, place, _) in enumerate(self.model):
            assert self.ready.ahead(-priority, place) == ahead
        arrays = self.ready.statistics()
        assert list(arrays) == sorted(arrays)
        assert sum(statistics.live for statistics in arrays.values()) <= len(self.model)

    def drain(self) -> None:
        while self.model:
            self.popleft()
        assert popleft(self.ready) is None
        self.check()


def test_nothing_is_first_where_nothing_is_ready() -> None:
    twin = ReadyTwin()
    assert twin.ready.first() is None
    assert popleft(twin.ready) is None
    assert twin.ready.statistics() == {}
    with pytest.raises(KeyError):
        twin.ready.remove(0, 1)


def test_higher_priorities_go_first_and_the_rest_in_order_of_arrival() -> None:
    twin = ReadyTwin()
    for priority in (0, 5, -2, 0, 5, 7, -2):
        twin.append(priority)
    twin.check()
    assert list(twin.ready.statistics()) == [-2, 0, 5, 7]
    twin.drain()


def test_a_job_that_comes_back_takes_the_place_it_had() -> None:
    twin = ReadyTwin()
    for _ in range(6):
        twin.append()
    for _ in range(4):
        twin.popleft()
    twin.put_back(2)
    twin.put_back(0)
    twin.check()
    twin.append()
    twin.check()
    twin.drain()


def test_a_job_that_came_back_can_be_removed() -> None:
    twin = ReadyTwin()
    for _ in range(3):
        twin.append()
    twin.popleft()
    twin.put_back()
    twin.remove(0)
    twin.check()
    twin.drain()


def test_a_job_comes_back_to_a_priority_that_is_otherwise_gone() -> None:
    twin = ReadyTwin()
    twin.append(3)
    twin.append(0)
    twin.popleft()
    twin.ready.tidy()
    assert list(twin.ready.statistics()) == [0]
    twin.put_back()
    twin.check()
    assert list(twin.ready.statistics()) == [0, 3]
    twin.drain()


def test_only_the_array_of_the_normal_priority_outlives_its_jobs() -> None:
    twin = ReadyTwin()
    for priority in (-1, 0, 1):
        twin.append(priority)
    twin.drain()
    twin.ready.tidy()
    assert list(twin.ready.statistics()) == [0]


@pytest.mark.parametrize("priority", [0, 4])
@pytest.mark.parametrize("jobs_per_command", [1, 3, 4, 5, 50])
def test_compaction_keeps_up_with_any_number_of_jobs_a_command(priority: int, jobs_per_command: int) -> None:
    """A command that takes out more jobs than a step moves must not leave compaction behind for ever."""
    twin = ReadyTwin(slice_=4)
    for _ in range(100):
        twin.append(priority)
    for _ in range(3_000 // jobs_per_command + 20):
        for _ in range(jobs_per_command):
            twin.append(priority)
        for _ in range(jobs_per_command):
            twin.popleft()
        twin.ready.tidy()
    statistics = twin.ready.statistics()[priority]
    assert statistics.compactions
    assert statistics.live == 100
    assert statistics.capacity <= 4 * (100 + jobs_per_command)
    twin.check()


def test_tidying_compacts_every_array_that_lost_jobs() -> None:
    twin = ReadyTwin(slice_=100)
    for priority in (0, 2):
        for _ in range(40):
            twin.append(priority)
    for _ in range(61):  # all of the higher priority but for that, and 21 of the lower
        twin.popleft()
    twin.append(2)
    twin.ready.tidy()
    assert twin.ready.statistics()[0].compactions == 1
    assert twin.ready.statistics()[2].used == 1
    twin.drain()


def test_memory_is_flat_when_priorities_come_and_go() -> None:
    twin = ReadyTwin()

    def pass_through(priorities: range) -> None:
        for priority in priorities:
            twin.append(priority)
            twin.popleft()
            twin.ready.tidy()
        twin.handed_out.clear()

    pass_through(range(1, 100))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pass_through(range(100, 2_000))
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert twin.ready.statistics() == {}


def test_the_oldest_goes_first_whatever_its_priority_where_that_is_asked_for() -> None:
    ready = Ready(Settings())
    for place, priority in enumerate((5, 0, -2, 5, 0), start=1):
        ready.append(priority, place, 100 + place)
    assert (popleft(ready, oldest=True), popleft(ready, oldest=True)) == (101, 102)
    ready.put_back(0, 2, 102)
    assert [ready.first(), ready.first(oldest=True)] == [104, 102]
    for id_ in (102, 103, 104, 105):
        assert ready.first(oldest=True) == id_
        assert popleft(ready, oldest=True) == id_
    assert ready.first(oldest=True) is popleft(ready, oldest=True) is None


def test_the_lower_place_goes_first_be_it_of_a_job_that_came_back_or_not() -> None:
    ready = Ready(Settings())
    ready.put_back(0, 2, 102)
    ready.append(0, 1, 101)
    ready.append(0, 3, 103)
    assert [(ready.first(), popleft(ready)) for _ in range(3)] == [(101, 101), (102, 102), (103, 103)]


def test_several_are_taken_up_to_the_place_of_one_that_came_back() -> None:
    ready = Ready(Settings())
    ready.extend(0, 1, [101, 102, 103, 104])
    assert ready.head(2) == [101, 102]
    ready.take(2)
    ready.put_back(0, 2, 102)
    ready.extend(0, 5, [105])
    assert ready.head(9) == [102]
    ready.take(1)
    ready.take(len(ready.head(1)))
    ready.put_back(0, 3, 103)
    assert ready.head(9) == [103]
    ready.take(1)
    assert ready.head(9) == [104, 105]
    ready.take(1)
    ready.extend(0, 7, [107])
    ready.put_back(0, 6, 106)
    assert ready.head(9) == [105]
    ready.take(1)
    assert [ready.head(9), popleft(ready), ready.head(9)] == [[106], 106, [107]]


def test_totals_count_arrays_that_are_gone_too() -> None:
    ready = Ready(Settings(ready_initial=1, ready_growth=2))
    assert ready.totals() == (0, 0, 0)
    for priority in (1, 2):
        for place in range(1, 33):  # grows to 2, 4, 8, 16 and 32 slots
            ready.append(priority, place, place)
        assert ready.totals() == (32, priority - 1, 5 * priority)
        for _ in range(31):
            popleft(ready)
        ready.tidy()
        assert ready.totals() == (32, priority, 5 * priority)
        popleft(ready)
        ready.tidy()
        assert ready.totals() == (0, priority, 5 * priority)
    ready.append(0, 100, 100)
    ready.append(3, 101, 101)
    assert ready.totals() == (2, 2, 10)


@pytest.mark.parametrize("leave", ["popleft", "remove"])
@pytest.mark.parametrize(("jobs", "steps"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_tidying_does_a_step_and_twice_as_many_slots_as_jobs_left(
    leave: str, jobs: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Ready(Settings(compact_slice=4))
    for place in range(1, 11):
        ready.append(0, place, place)
    done = []

    def count(subject: ReadyArray) -> None:
        done.append(subject)

    monkeypatch.setattr(ReadyArray, "tidy", count)
    for place in range(1, jobs + 1):
        if leave == "popleft":
            popleft(ready)
        else:
            ready.remove(0, place)
    ready.tidy()
    ready.tidy()  # none has left since
    assert len(done) == steps


def test_a_wrong_count_is_noticed_and_not_served_from() -> None:
    ready = Ready(Settings())
    ready.append(0, 1, 1)
    ready._count = 2
    popleft(ready)
    with pytest.raises(AssertionError, match=r"^the count of ready jobs is wrong$"):
        ready.first()


READY_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "extend", "popleft", "take", "put back", "remove", "tidy"]),
        st.integers(0, 30),
        st.sampled_from([0, 0, 0, 5, -1]),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=100)
@given(slice_=st.integers(1, 8), initial=st.integers(1, 8), jobs=st.integers(0, 30), operations=READY_OPERATIONS)
def test_the_ready_jobs_are_a_sorted_list_whatever_happens_to_them(
    slice_: int, initial: int, jobs: int, operations: list[tuple[str, int, int]]
) -> None:
    twin = ReadyTwin(slice_=slice_, initial=initial)
    for _ in range(jobs):
        twin.append()
    for name, number, priority in operations:
        match name:
            case "append":
                for _ in range(number % 4 + 1):
                    twin.append(priority)
            case "extend":
                twin.extend(priority, 1 + number % 5)
            case "take":
                twin.take(1 + number % 8, number % 3)
            case "popleft":
                for _ in range(number % 8 + 1):
                    twin.popleft()
            case "put back":
                for _ in range(number % 4 + 1):
                    twin.put_back(number)
            case "remove":
                twin.remove(number)
            case "tidy":
                twin.ready.tidy()
        twin.check()
    twin.drain()
