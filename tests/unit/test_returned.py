"""queue_actor/returned.py beside a dictionary that is sorted anew for each question."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_actor.returned import Returned

CHUNK = 1_024

places = st.one_of(st.integers(1, 40), st.integers(CHUNK - 3, CHUNK + 3), st.integers(1, 10**9))


def assert_same(returned: Returned, model: dict[int, int], *questions: int) -> None:
    assert len(returned) == len(model)
    assert returned.first_place == min(model, default=None)
    for place in questions:
        assert (place in returned) == (place in model)
        assert returned.rank(place) == sum(other < place for other in model)


@given(st.lists(st.tuples(st.sampled_from(("add", "pop", "first")), places), max_size=60))
def test_it_is_a_sorted_dictionary(steps: list[tuple[str, int]]) -> None:
    returned = Returned()
    model: dict[int, int] = {}
    for id_, (verb, place) in enumerate(steps, 1):
        if verb == "add" and place not in model:
            returned.add(place, id_)
            model[place] = id_
        elif verb == "pop" and place in model:
            assert returned[place] == model[place]
            assert returned.pop(place) == model.pop(place)
        elif verb == "first" and model:
            lowest = min(model)
            assert returned.pop(lowest) == model.pop(lowest)
        assert_same(returned, model, place, place - 1, place + 1)


def test_one_that_is_not_there_is_an_error() -> None:
    returned = Returned()
    with pytest.raises(KeyError):
        returned.pop(1)
    returned.add(1, 10)
    with pytest.raises(KeyError):
        returned.pop(2)
    assert_same(returned, {1: 10}, 1, 2)


def test_the_first_one_stays_first_while_others_are_taken_out() -> None:
    returned = Returned()
    for place in (1, 5, CHUNK + 1):
        returned.add(place, place * 10)
    assert returned.pop(5) == 50
    assert returned.pop(CHUNK + 1) == (CHUNK + 1) * 10
    assert_same(returned, {1: 10}, 0, 1, 5, CHUNK + 1)


def test_many_are_none_of_the_collectors_business() -> None:
    returned = Returned()
    gc.collect()
    before = len(gc.get_objects())
    for place in range(1, 50_000):
        returned.add(place, place)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_those_that_leave_in_order_are_found_without_a_search() -> None:
    """The next one is looked for from where the last one stood."""
    returned = Returned()
    for place in range(CHUNK * 3):
        returned.add(place, place + 1)
    left = []
    while returned.first_place is not None:
        left.append(returned.pop(returned.first_place))
    assert left == list(range(1, CHUNK * 3 + 1))
