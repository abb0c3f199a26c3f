"""What is known by ids, beside a dict that must say the same."""

import gc
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_actor import ids
from queue_actor.ids import CHUNK_BITS, ByIds, by_chunk
from queue_actor.jobs import Job, JobState

CHUNK = 1 << CHUNK_BITS


@pytest.fixture
def small_chunks() -> Iterator[None]:
    """Chunks of four ids, so that a few operations meet every boundary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "CHUNK_BITS", 2)
        patch.setattr(ids, "_SHRINKS_AT", (2, 1))
        yield


def check(subject: ByIds[str], model: dict[int, str]) -> None:
    assert subject == model
    assert len(subject) == len(model)
    assert sorted(subject) == sorted(model)
    assert all(subject.chunks.values()), "an empty chunk is there"
    for id_ in range(-1, 20):
        assert subject.get(id_) == model.get(id_)
        assert (id_ in subject) == (id_ in model)
        for end in (id_, id_ + 1, id_ + 6, 20):
            assert subject.first(id_, end) == min([other for other in model if id_ <= other < end], default=end)


@pytest.mark.usefixtures("small_chunks")
def test_the_first_of_a_range_may_be_chunks_away() -> None:
    there = {1: "a", 2: "b", 13: "c"}
    subject = ByIds[str]()
    for id_, value in there.items():
        subject[id_] = value
    check(subject, there)


@pytest.mark.usefixtures("small_chunks")
@settings(max_examples=100)
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["set", "set", "set", "delete", "pop all"]), st.lists(st.integers(0, 15), min_size=1)
        ),
        max_size=30,
    )
)
def test_it_is_a_dict_whatever_happens_to_it(operations: list[tuple[str, list[int]]]) -> None:
    subject: ByIds[str] = ByIds()
    model: dict[int, str] = {}
    for number, (name, some) in enumerate(operations):
        there = [id_ for id_ in dict.fromkeys(some) if id_ in model]
        match name:
            case "set":
                for id_ in some:
                    subject[id_] = model[id_] = f"{id_} {number}"
            case "delete" if there:
                del subject[there[0]], model[there[0]]
            case "pop all" if there:
                assert sorted(subject.pop_all(there)) == sorted(model.pop(id_) for id_ in there)
        check(subject, model)


def test_what_is_not_there_cannot_be_had_nor_taken_out() -> None:
    subject: ByIds[str] = ByIds()
    subject[1] = "a"
    for id_ in (2, CHUNK + 1):
        with pytest.raises(KeyError):
            subject[id_]
        with pytest.raises(KeyError):
            del subject[id_]
        with pytest.raises(KeyError):
            subject.pop_all([id_])
    assert subject == {1: "a"}


def test_ids_are_told_apart_by_their_chunks_and_put_in_order() -> None:
    assert by_chunk([7]) == [(0, [7])]
    assert by_chunk([CHUNK, CHUNK + 2, 5, 2, 3 * CHUNK]) == [(0, [2, 5]), (1, [CHUNK, CHUNK + 2]), (3, [3 * CHUNK])]
    assert by_chunk([]) == []


def test_no_chunk_is_ever_large_and_what_has_left_takes_no_room() -> None:
    subject: ByIds[int] = ByIds()
    for id_ in range(100 * CHUNK):
        subject[id_] = id_
    assert {len(chunk) for chunk in subject.chunks.values()} == {CHUNK}
    full = sum(map(sys.getsizeof, subject.chunks.values()))
    subject.pop_all([id_ for id_ in range(100 * CHUNK) if id_ % CHUNK >= 10])
    assert len(subject) == 1_000
    assert sum(map(sys.getsizeof, subject.chunks.values())) < full / 50
    for id_ in list(subject):
        del subject[id_]
    assert subject.chunks == {}


def test_the_garbage_collector_does_not_look_at_jobs() -> None:
    """With ten million jobs it would take half a second."""
    subject: ByIds[Job] = ByIds()
    subject[1] = Job(queue="q", id=1, type="t", payload=None, state=JobState.QUEUED, created_at=0.0, revision=1)

    assert not gc.is_tracked(subject[1])
    assert not gc.is_tracked(subject.chunks[0])
