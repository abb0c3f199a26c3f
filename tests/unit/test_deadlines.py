"""Deadlines, beside a plain dict that must say the same."""

from collections.abc import Iterator
from heapq import heappop, heapreplace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor import deadlines, ids
from queue_actor.deadlines import CARRY_ENTRIES, Deadlines

DEAD_ENTRIES_MIN = 1_024  # fewer dead entries are not worth a new heap


Key = tuple[str, int]


class Twin:
    """Deadlines and the dict that they must be equal to, used alike. Jobs are those of queue `q` unless told."""

    def __init__(self, keys: int = 0) -> None:
        self.deadlines = Deadlines()
        self.jobs: dict[Key, float] = {}
        for key in range(keys):
            self.set(key, float(key))

    @property
    def model(self) -> list[int]:
        """The ids in `q`."""
        return [id_ for queue, id_ in self.jobs if queue == "q"]

    def set(self, id_: int, deadline: float, queue: str = "q") -> None:
        self.deadlines.set(queue, id_, deadline)
        self.jobs[queue, id_] = deadline

    def add_all(self, ids: list[int], deadline: float, queue: str = "q") -> None:
        """Give those that have no deadline yet one."""
        new = [id_ for id_ in dict.fromkeys(ids) if (queue, id_) not in self.jobs]
        if new:
            self.deadlines.add_all(queue, new, deadline)
            self.jobs.update(((queue, id_), deadline) for id_ in new)

    def clear(self, id_: int, queue: str = "q") -> None:
        if (queue, id_) in self.jobs:
            self.deadlines.clear(queue, id_)
            del self.jobs[queue, id_]
        else:
            with pytest.raises(KeyError):
                self.deadlines.clear(queue, id_)

    def clear_all(self, ids: list[int], queue: str = "q") -> None:
        """Clear those that have a deadline."""
        there = [id_ for id_ in dict.fromkeys(ids) if (queue, id_) in self.jobs]
        if there:
            self.deadlines.clear_all(queue, there)
            for id_ in there:
                del self.jobs[queue, id_]

    def check(self, *moments: float) -> None:
        assert len(self.deadlines) == len(self.jobs)
        line = sorted((deadline, key) for key, deadline in self.jobs.items())
        for now in moments:
            for limit in (1, 3, 10_000):
                queue, ids = self.deadlines.due(now, limit)
                expected = [key for deadline, key in line if deadline <= now]
                assert [(queue, id_) for id_ in ids] == expected[: len(ids)]
                assert bool(ids) == bool(expected)
                assert len(ids) <= limit
        assert self.deadlines.next() == (line[0][0] if line else None)

    def due(self, now: float) -> int | None:
        """The first id that is due."""
        _, ids = self.deadlines.due(now, 1)
        return ids[0] if ids else None

    def drain(self) -> None:
        """Take out whatever is due at the end of time, in order."""
        for deadline, (queue, id_) in sorted((deadline, key) for key, deadline in self.jobs.items()):
            assert self.deadlines[queue, id_] == deadline
            assert self.deadlines.due(deadline - 0.5, 1) == ("", ())
            assert self.deadlines.due(deadline, 1) == (queue, [id_])
            self.clear(id_, queue)
        self.check(1e9)

    @property
    def carrying(self) -> bool:
        """Whether entries are being carried over to a new heap."""
        return bool(self.deadlines._old)


def carried_half_way(keys: int = 2_000) -> Twin:
    """Deadlines of which just enough were cleared, the latest first, that the rest is being carried over."""
    twin = Twin(keys)
    for key in reversed(range(keys)):
        twin.clear(key)
        if twin.carrying:
            break
    for key in range(10):
        twin.set(key + keys, float(key))
    assert twin.carrying
    return twin


@pytest.fixture
def small_heaps() -> Iterator[None]:
    """Begin to carry over at once, two entries at a time, so that a few operations meet every boundary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines, "_DEAD_ENTRIES_MIN", 2)
        patch.setattr(deadlines, "CARRY_ENTRIES", 2)
        patch.setattr(deadlines, "CHUNK_BITS", 2)
        patch.setattr(ids, "CHUNK_BITS", 2)
        yield


def test_without_deadlines_nothing_is_due() -> None:
    twin = Twin()
    twin.check(0.0, 1e9)
    with pytest.raises(KeyError):
        twin.deadlines.clear("q", 1)
    with pytest.raises(KeyError):
        twin.deadlines["q", 1]


def test_a_key_is_due_at_its_deadline_and_not_before() -> None:
    twin = Twin()
    twin.set(1, 5.0)
    assert twin.due(4.999_999) is None
    assert twin.due(5.0) == 1
    assert twin.due(5.0) == 1  # until it is cleared
    twin.clear(1)
    assert twin.due(5.0) is None


def test_a_later_deadline_takes_the_place_of_an_earlier_one() -> None:
    twin = Twin()
    twin.set(1, 5.0)
    twin.set(1, 9.0)
    twin.check(5.0, 8.999, 9.0)


def test_an_earlier_deadline_takes_the_place_of_a_later_one() -> None:
    twin = Twin()
    twin.set(1, 9.0)
    twin.set(1, 5.0)
    twin.check(4.999, 5.0)
    twin.clear(1)
    twin.check(9.0)


def test_keys_of_equal_deadlines_are_due_in_the_order_of_the_keys() -> None:
    twin = Twin()
    for key in (3, 1, 2):
        twin.set(key, 5.0)
    twin.drain()


def test_keys_of_equal_deadlines_are_due_in_order_also_while_carried_over() -> None:
    twin = Twin()
    for key in reversed(range(3_000)):  # so that each is an entry of its own
        twin.set(key, 7.0)
    for key in reversed(range(1, 3_000, 2)):
        twin.clear(key)
    while not twin.carrying:
        twin.clear(max(twin.model))
    for key in (1, 3, 5):
        twin.set(key, 7.0)  # in the new heap, while their neighbours are in the old one
    while twin.carrying:
        assert twin.due(7.0) == min(twin.model)
        twin.clear(min(twin.model))
    twin.check(6.9, 7.0)


def test_all_is_as_before_in_the_middle_of_carrying_over() -> None:
    twin = carried_half_way()
    random = Random(1)  # noqa: S311 - the same sequence each time
    while twin.carrying:
        for key in random.sample(sorted(twin.model), 3):
            twin.set(key, random.choice([0.0, 500.0, 5_000.0]))
        twin.clear(random.choice(sorted(twin.model)))
        twin.check(0.0, 400.0, 500.0, 5_000.0)
    twin.drain()


def test_the_due_are_taken_in_order_in_the_middle_of_carrying_over() -> None:
    twin = carried_half_way()
    twin.drain()


def test_a_set_or_clear_carries_over_a_bounded_number_of_entries() -> None:
    twin = carried_half_way(20_000)
    changes = 0
    while twin.carrying:
        old, new = len(twin.deadlines._old), len(twin.deadlines._heap)
        if changes % 2:
            twin.set(changes + 100_000, 9e9 + changes)
        else:
            twin.clear(twin.model[0])
        assert old - len(twin.deadlines._old) in {CARRY_ENTRIES, old}
        assert len(twin.deadlines._heap) - new <= CARRY_ENTRIES + 1
        changes += 1
    assert changes > 500


@pytest.mark.usefixtures("small_heaps")
def test_moved_deadlines_are_carried_over_once_dead_entries_are_more_than_the_live_ones_and_a_few() -> None:
    twin = Twin(3)
    for moved in range(3 + 2):
        twin.set(0, 5.0 + moved)
        assert not twin.carrying
    twin.set(0, 5.0)
    assert twin.carrying


@pytest.mark.usefixtures("small_heaps")
def test_cleared_deadlines_are_carried_over_once_dead_entries_are_more_than_the_live_ones_and_a_few() -> None:
    twin = Twin(10)
    for key in range(6):
        twin.clear(key)
        assert not twin.carrying
    twin.clear(6)
    assert twin.carrying


def test_carrying_over_ends_before_the_next_begins() -> None:
    twin = carried_half_way(20_000)
    carried = len(twin.deadlines._old)
    changes = 0
    while twin.carrying:
        twin.set(changes + 100_000, 9e9 + changes)
        twin.clear(changes + 100_000)
        changes += 2
    assert changes <= carried // CARRY_ENTRIES + 2
    assert twin.deadlines.entries <= 2 * len(twin.model) + DEAD_ENTRIES_MIN


def test_each_entry_is_handled_a_bounded_number_of_times_in_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `next` and `due` skip they drop, so all that they ever skip is what was ever set."""
    skipped = 0

    def counted(heap: list[Any], *run: Any) -> Any:
        nonlocal skipped
        skipped += 1
        return (heapreplace if run else heappop)(heap, *run)

    monkeypatch.setattr(deadlines, "heappop", counted)
    monkeypatch.setattr(deadlines, "heapreplace", counted)
    twin = Twin()
    random = Random(2)  # noqa: S311 - the same sequence each time
    changes = 20_000
    for moment in range(changes):
        twin.set(random.randrange(500), moment + random.random() * 300)
        if (id_ := twin.due(moment)) is not None:
            twin.clear(id_)
    assert 0 < skipped < 2 * changes


def test_jobs_given_a_deadline_together_are_one_entry_in_each_chunk() -> None:
    twin = Twin()
    twin.add_all(list(range(1_000, 3_000)), 5.0)
    for id_ in range(3_000, 3_010):
        twin.set(id_, 5.0)
    assert twin.deadlines.entries == 3
    twin.drain()


def test_jobs_may_be_given_deadlines_in_any_order_of_their_ids() -> None:
    twin = Twin()
    twin.add_all([1_500, 7, 1_030, 3, 1_029], 5.0)
    twin.add_all([6, 4, 1_031], 5.0)  # between the others
    twin.check(5.0)
    twin.drain()


def test_of_one_deadline_the_jobs_of_one_queue_come_before_those_of_the_next() -> None:
    twin = Twin()
    for id_ in (1, 2, 3):
        for queue in ("b", "a", "c"):
            twin.set(id_, 5.0, queue)
    twin.check(5.0)
    twin.drain()


def test_a_queue_that_is_gone_is_known_no_longer_and_its_successor_is_another() -> None:
    twin = Twin()
    twin.deadlines.forget_queue("q")  # it never had a deadline
    twin.set(1, 5.0)
    twin.clear(1)
    twin.deadlines.forget_queue("q")
    twin.check(5.0)
    with pytest.raises(KeyError):
        twin.deadlines.clear("q", 1)
    twin.set(2, 5.0)
    twin.check(4.0, 5.0)
    twin.drain()


def test_a_run_without_jobs_takes_no_more() -> None:
    twin = Twin()
    twin.set(9, 9.0)
    twin.set(1, 5.0)
    twin.clear(1)
    twin.check(8.0)  # looks at what is first, and drops the run
    twin.set(2, 5.0)  # would be its next
    twin.check(4.0, 5.0)
    twin.drain()


def test_a_run_whose_first_jobs_have_left_goes_behind_those_that_come_before_it_now() -> None:
    twin = Twin()
    twin.add_all([1, 2, 8, 9], 5.0)
    twin.add_all([4, 5], 5.0)
    twin.clear_all([1, 2])
    twin.check(5.0)
    twin.drain()


@pytest.mark.parametrize("live", [0, 1, 100, 3_000])
def test_dead_entries_do_not_pile_up(live: int) -> None:
    """Leases are mostly concluded long before their deadline: the entries they leave must go by themselves."""
    twin = Twin(live)
    entries_max = 0
    for key in range(live, live + 100_000):
        twin.deadlines.set("q", key, 1e6 + key)
        twin.deadlines.clear("q", key)
        entries_max = max(entries_max, twin.deadlines.entries)
    assert entries_max <= 3 * live + 2 * DEAD_ENTRIES_MIN
    assert twin.deadlines.entries <= 2 * live + DEAD_ENTRIES_MIN + 1
    twin.check(-1.0, 1e9)


@pytest.mark.parametrize("live", [1, 100])
def test_dead_entries_do_not_pile_up_when_deadlines_are_moved(live: int) -> None:
    twin = Twin(live)
    for change in range(100_000):
        twin.deadlines.set("q", change % live, float(change))
    assert twin.deadlines.entries <= 2 * live + DEAD_ENTRIES_MIN + 1
    assert len(twin.deadlines) == live
    assert twin.deadlines.next() == 100_000.0 - live


def test_a_deadline_set_again_and_again_to_the_same_moment_does_not_pile_up() -> None:
    """A lease that is extended many times within one moment: equal entries, of which one counts."""
    twin = Twin()
    for _ in range(10_000):
        twin.set(1, 5.0)
    assert twin.deadlines.entries <= DEAD_ENTRIES_MIN + 3
    twin.drain()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "add all", "clear", "clear all", "due"]),
        st.integers(0, 12),
        st.integers(0, 6),
        st.sampled_from("qr"),
    ),
    min_size=10,
    max_size=80,
)


@pytest.mark.usefixtures("small_heaps")
@settings(max_examples=200)
@given(operations=OPERATIONS)
def test_deadlines_are_a_dict_whatever_happens_to_them(operations: list[tuple[str, int, int, str]]) -> None:
    twin = Twin()
    for name, id_, moment, queue in operations:
        match name:
            case "set":
                twin.set(id_, float(moment), queue)
            case "add all":
                twin.add_all([id_ + moment, id_, id_ + 1, id_ + 2], float(moment), queue)
            case "clear":
                twin.clear(id_, queue)
            case "clear all":
                twin.clear_all([id_ + 1, id_, id_ + moment], queue)
            case "due":
                twin.check(moment - 0.5, float(moment))
    assert twin.deadlines.entries <= 3 * len(twin.jobs) + 5
    twin.check(3.0)
    twin.drain()
