"""Jobs in progress of a holder: counted over all queues, limited, and counted again in the next life."""

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import Dequeue, IdempotencyKey, ListQueues, Pause, TakeBack
from queue_actor.engine import Engine
from queue_actor.errors import HolderFull
from tests.contract.state import machine_of
from tests.contract.test_durable import Lives
from tests.contract.verbs import conclude, enqueue, fail, give_policy, pass_time, refusal, release, types
from tests.fakes import Call

pytestmark = pytest.mark.virtual_time


def by(holder: str, most: int | None, count: int = 1, queue: str | tuple[str, ...] = "q", wait: float = 0) -> Dequeue:
    """A dequeue that counts for a holder."""
    return Dequeue(queue, count, wait_seconds=wait, lease_seconds=10, holder=holder, holder_in_progress_max=most)


def held(engine: Engine) -> dict[str, int]:
    return machine_of(engine)._ledger.held


async def test_a_holder_is_given_no_more_than_it_may_have(engine: Engine) -> None:
    await enqueue(engine, *"abcdef")
    await enqueue(engine, *"xyz", queue="r")

    assert types((await engine.execute(by("h", 3, count=2))).leases) == ["a", "b"]
    assert types((await engine.execute(by("h", 3, count=5, queue=("q", "r")))).leases) == ["c"]
    refused = await refusal(engine, by("h", 3, queue="r"), HolderFull)
    assert "h may have 3 jobs" in str(refused)
    await refusal(engine, by("h", 2, queue=("q", "r")), HolderFull)
    assert types((await engine.execute(by("other", 3))).leases) == ["d"]
    assert types((await engine.execute(Dequeue("q"))).leases) == ["e"]
    assert types((await engine.execute(by("h", None, queue="r"))).leases) == ["x"]
    assert held(engine) == {"h": 4, "other": 1}


async def test_every_end_of_an_attempt_gives_room_to_the_next(engine: Engine) -> None:
    await enqueue(engine, *"abcdef")
    a, b, c, d, e = (await engine.execute(by("h", 5, count=5))).leases

    await conclude(engine, a)
    await fail(engine, b)
    await release(engine, c, 60)
    await engine.execute(TakeBack("q", [d.job.id]))
    assert held(engine) == {"h": 1}
    await pass_time(12)  # e goes stale
    assert held(engine) == {}
    assert e.job.holder == "h"


async def test_whose_turn_comes_while_its_holder_has_enough_is_refused(engine: Engine, nursery: trio.Nursery) -> None:
    first = await Call.start(nursery, engine, by("h", 1, wait=20))
    second = await Call.start(nursery, engine, by("h", 1, wait=20))
    third = await Call.start(nursery, engine, by("other", 1, wait=20))
    await enqueue(engine, "a", "b")
    await wait_all_tasks_blocked()

    assert types(first.reply.leases) == ["a"]
    assert isinstance(second.refusal, HolderFull)
    assert types(third.reply.leases) == ["b"]
    assert engine.statistics().waiters == 0


async def test_who_waits_is_refused_only_where_there_is_a_job(engine: Engine, nursery: trio.Nursery) -> None:
    """Its holder comes to have enough, from another queue, while there is nothing for it to be refused of."""
    waits = await Call.start(nursery, engine, by("h", 1, wait=20))
    await enqueue(engine, "x", queue="r")
    (x,) = (await engine.execute(by("h", 1, queue="r"))).leases
    await give_policy(engine, in_progress_max=1)  # which has all who wait for the queue look again
    await engine.execute(Pause("q", paused=True))
    await enqueue(engine, "a")
    await wait_all_tasks_blocked()
    assert waits.ended_at is None

    await conclude(engine, x)
    await engine.execute(Pause("q", paused=False))
    await wait_all_tasks_blocked()
    assert types(waits.reply.leases) == ["a"]


async def test_who_waits_is_not_refused_while_its_queue_is_busy(engine: Engine, nursery: trio.Nursery) -> None:
    await give_policy(engine, in_progress_max=1)
    await enqueue(engine, "a", "b")
    (a,) = (await engine.execute(Dequeue("q"))).leases
    waits = await Call.start(nursery, engine, by("h", 1, wait=20))
    await enqueue(engine, "x", queue="r")
    await engine.execute(by("h", 1, queue="r"))
    await give_policy(engine, in_progress_max=1)
    await wait_all_tasks_blocked()
    assert waits.ended_at is None

    await conclude(engine, a)
    await wait_all_tasks_blocked()
    assert isinstance(waits.refusal, HolderFull)


async def test_a_repeat_gets_its_leases_although_its_holder_has_enough(engine: Engine) -> None:
    await enqueue(engine, "a", "b")
    command = replace(by("h", 1), key=IdempotencyKey("h /q", "k", b"body"))

    given = await engine.execute(command)
    again = await engine.execute(command)

    assert [lease.token for lease in again.leases] == [lease.token for lease in given.leases]


async def test_the_next_life_counts_again() -> None:
    lives = Lives()
    async with lives.life() as engine:
        await enqueue(engine, "a", "b", "c")
        (a, b) = (await engine.execute(by("h", 2, count=2))).leases
        await engine.execute(Dequeue("q", lease_seconds=10))
    async with lives.life() as engine:
        assert held(engine) == {"h": 2}
        await refusal(engine, by("h", 2), HolderFull)
        await conclude(engine, a)
        assert held(engine) == {"h": 1}
        await conclude(engine, b)
        assert held(engine) == {}


async def test_queues_are_listed_as_far_as_patterns_go(engine: Engine) -> None:
    for name in ("a", "b1", "b2", "c"):
        await enqueue(engine, "x", queue=name)

    async def listed(*patterns: str, limit: int = 100) -> tuple[list[str], str | None]:
        found = await engine.execute(ListQueues(limit=limit, patterns=patterns))
        return [queue.name for queue in found.queues], found.next_after

    assert await listed("b*", "c") == (["b1", "b2", "c"], None)
    assert await listed("b*", limit=1) == (["b1"], "b1")
    assert await listed("b2", limit=1) == (["b2"], None)
    assert await listed("nothing") == ([], None)
