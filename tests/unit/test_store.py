"""The store that keeps nothing."""

from trio.testing import assert_no_checkpoints

from queue_actor.jobs import Change
from queue_actor.store import MemoryStore


async def test_the_memory_store_lets_nobody_wait() -> None:
    store = MemoryStore()
    with assert_no_checkpoints():
        await store.commit([])
        await store.commit([Change(1, None, None)])
