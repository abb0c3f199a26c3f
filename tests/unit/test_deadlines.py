"""Deadlines, beside a plain dict that must say the same."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor import deadlines
from queue_actor.deadlines import CARRY_ENTRIES, Deadlines

DEAD_ENTRIES_MIN = 1_024  # fewer dead entries are not worth a new heap


class Twin:
    """Deadlines and the dict that they must be equal to, used alike."""

    def __init__(self, keys: int = 0) -> None:
        self.deadlines: Deadlines[int] = Deadlines()
        self.model: dict[int, float] = {}
        for key in range(keys):
            self.set(key, float(key))

    def set(self, key: int, deadline: float) -> None:
        self.deadlines.set(key, deadline)
        self.model[key] = deadline

    def clear(self, key: int) -> None:
        if key in self.model:
            self.deadlines.clear(key)
            del self.model[key]
        else:
            with pytest.raises(KeyError):
                self.deadlines.clear(key)

    def check(self, *moments: float) -> None:
        assert len(self.deadlines) == len(self.model)
        first = min(((deadline, key) for key, deadline in self.model.items()), default=None)
        for now in moments:
            assert self.deadlines.due(now) == (first[1] if first is not None and first[0] <= now else None)
        assert self.deadlines.next() == (None if first is None else first[0])
        assert self.deadlines.entries >= len(self.model)

    def drain(self) -> None:
        """Take out whatever is due at the end of time, in order."""
        for deadline, key in sorted((deadline, key) for key, deadline in self.model.items()):
            assert self.deadlines[key] == deadline
            self.check(deadline - 0.5, deadline)
            self.clear(key)
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
        yield


def test_without_deadlines_nothing_is_due() -> None:
    twin = Twin()
    twin.check(0.0, 1e9)
    with pytest.raises(KeyError):
        twin.deadlines.clear(1)
    with pytest.raises(KeyError):
        twin.deadlines[1]


def test_a_key_is_due_at_its_deadline_and_not_before() -> None:
    twin = Twin()
    twin.set(1, 5.0)
    assert twin.deadlines.due(4.999_999) is None
    assert twin.deadlines.due(5.0) == 1
    assert twin.deadlines.due(5.0) == 1  # until it is cleared
    twin.clear(1)
    assert twin.deadlines.due(5.0) is None


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
    for key in range(3_000):
        twin.set(key, 7.0)
    for key in reversed(range(1, 3_000, 2)):
        twin.clear(key)
    while not twin.carrying:
        twin.clear(max(twin.model))
    for key in (1, 3, 5):
        twin.set(key, 7.0)  # in the new heap, while their neighbours are in the old one
    while twin.carrying:
        assert twin.deadlines.due(7.0) == min(twin.model)
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
            twin.set(changes + 100_000, 9e9)
        else:
            twin.clear(next(iter(twin.model)))
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
        twin.set(changes + 100_000, 9e9)
        twin.clear(changes + 100_000)
        changes += 2
    assert changes <= carried // CARRY_ENTRIES + 2
    assert twin.deadlines.entries <= 2 * len(twin.model) + DEAD_ENTRIES_MIN


class CountedKey(int):
    """A key that counts how often any key is looked up: that is, how many entries are handled."""

    lookups = 0

    def __hash__(self) -> int:
        CountedKey.lookups += 1
        return int.__hash__(self)


def test_each_entry_is_handled_a_bounded_number_of_times_in_its_life() -> None:
    """What `next` and `due` skip they drop, so all that they ever skip is what was ever set."""
    subject: Deadlines[CountedKey] = Deadlines()
    random = Random(2)  # noqa: S311 - the same sequence each time
    changes = 20_000
    keys = [CountedKey(n) for n in range(500)]
    CountedKey.lookups = 0
    for moment in range(changes):
        subject.set(random.choice(keys), moment + random.random() * 300)
        if (key := subject.due(moment)) is not None:
            subject.clear(key)
    assert CountedKey.lookups < 20 * changes


@pytest.mark.parametrize("live", [0, 1, 100, 3_000])
def test_dead_entries_do_not_pile_up(live: int) -> None:
    """Leases are mostly concluded long before their deadline: the entries they leave must go by themselves."""
    twin = Twin(live)
    entries_max = 0
    for key in range(live, live + 100_000):
        twin.deadlines.set(key, 1e6 + key)
        twin.deadlines.clear(key)
        entries_max = max(entries_max, twin.deadlines.entries)
    assert entries_max <= 3 * live + 2 * DEAD_ENTRIES_MIN
    assert twin.deadlines.entries <= 2 * live + DEAD_ENTRIES_MIN + 1
    twin.check(-1.0, 1e9)


@pytest.mark.parametrize("live", [1, 100])
def test_dead_entries_do_not_pile_up_when_deadlines_are_moved(live: int) -> None:
    twin = Twin(live)
    for change in range(100_000):
        twin.deadlines.set(change % live, float(change))
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
    st.tuples(st.sampled_from(["set", "set", "clear", "due"]), st.integers(0, 8), st.integers(0, 6)),
    min_size=10,
    max_size=80,
)


@pytest.mark.usefixtures("small_heaps")
@settings(max_examples=200)
@given(operations=OPERATIONS)
def test_deadlines_are_a_dict_whatever_happens_to_them(operations: list[tuple[str, int, int]]) -> None:
    twin = Twin()
    for name, key, moment in operations:
        match name:
            case "set":
                twin.set(key, float(moment))
            case "clear":
                twin.clear(key)
            case "due":
                twin.check(moment - 0.5, float(moment))
    assert twin.deadlines.entries <= 3 * len(twin.model) + 5
    twin.check(3.0)
    twin.drain()
