"""The store that keeps nothing."""

from math import inf

from trio.testing import assert_no_checkpoints

from queue_actor.changes import Changes
from queue_actor.jobs import Change
from queue_actor.store import MemoryStore


async def test_the_memory_store_lets_nobody_wait() -> None:
    store = MemoryStore("life")
    with assert_no_checkpoints():
        await store.commit(Changes(0))
        await store.commit(Changes(1, [Change(1, None, None)]))


def test_the_memory_store_says_what_it_is_worth() -> None:
    store = MemoryStore("life")
    assert (store.instance, store.durability, store.room_bytes) == ("life", "memory", inf)
