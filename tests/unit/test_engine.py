"""The request: a command on its way, and the caller who waits for the reply."""

import time

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from queue_actor.commands import Dequeue, Dequeued
from queue_actor.engine import Request, system_clock
from queue_actor.errors import Busy
from tests.fakes import in_virtual_time

pytestmark = pytest.mark.virtual_time

COMMAND = Dequeue("q")
REPLY = Dequeued()


class Caller:
    """Waits for the answer to a request, in a task of his own."""

    def __init__(self) -> None:
        self.request = Request(COMMAND)
        self.scope = trio.CancelScope()
        self.reply: Dequeued | None = None
        self.refusal: Busy | None = None
        self.gone = False

    async def run(self) -> None:
        with self.scope:
            try:
                self.reply = await self.request.answered()
            except Busy as refusal:
                self.refusal = refusal
        self.gone = True


async def waiting(nursery: trio.Nursery) -> Caller:
    caller = Caller()
    nursery.start_soon(caller.run)
    await wait_all_tasks_blocked()
    return caller


async def test_an_answer_wakes_the_caller_with_the_reply(nursery: trio.Nursery) -> None:
    caller = await waiting(nursery)
    assert not caller.request.settled
    caller.request.answer(REPLY)
    assert caller.request.settled
    assert not caller.gone  # it is his task that goes on, later
    await wait_all_tasks_blocked()
    assert caller.reply is REPLY


async def test_a_refusal_is_raised_in_the_caller(nursery: trio.Nursery) -> None:
    caller = await waiting(nursery)
    refusal = Busy("no")
    caller.request.refuse(refusal)
    await wait_all_tasks_blocked()
    assert caller.refusal is refusal
    assert caller.request.settled


async def test_an_answer_that_is_there_already_is_taken_without_waiting() -> None:
    request = Request(COMMAND)
    request.answer(REPLY)
    with assert_no_checkpoints():
        assert await request.answered() is REPLY


async def test_waiting_for_an_answer_is_a_checkpoint(nursery: trio.Nursery) -> None:
    request = Request(COMMAND)

    async def answer() -> None:
        request.answer(REPLY)

    nursery.start_soon(answer)
    with assert_checkpoints():
        await request.answered()


async def test_a_caller_who_is_cancelled_before_the_decision_abandons_the_request(nursery: trio.Nursery) -> None:
    caller = await waiting(nursery)
    caller.scope.cancel()
    assert caller.request.abandoned  # at once, before his task has run
    await wait_all_tasks_blocked()
    assert caller.gone
    caller.request.answer(REPLY)  # which reaches nobody
    await wait_all_tasks_blocked()
    assert caller.reply is None


async def test_a_caller_who_was_cancelled_beforehand_abandons_the_request(nursery: trio.Nursery) -> None:
    caller = Caller()
    caller.scope.cancel()
    nursery.start_soon(caller.run)
    await wait_all_tasks_blocked()
    assert caller.gone
    assert caller.request.abandoned


async def test_a_caller_who_is_cancelled_after_the_decision_still_gets_the_answer(nursery: trio.Nursery) -> None:
    caller = await waiting(nursery)
    caller.request.decided = True
    caller.scope.cancel()
    await wait_all_tasks_blocked()
    assert not caller.gone
    assert not caller.request.abandoned
    caller.request.answer(REPLY)
    await wait_all_tasks_blocked()
    assert caller.reply is REPLY


async def test_a_caller_who_is_cancelled_after_the_answer_still_gets_it(nursery: trio.Nursery) -> None:
    caller = await waiting(nursery)
    caller.request.answer(REPLY)
    caller.scope.cancel()
    await wait_all_tasks_blocked()
    assert caller.reply is REPLY
    assert not caller.request.abandoned


def test_the_system_clock_is_trios_beside_the_wall_clock() -> None:
    async def main() -> None:
        before = time.time()
        now = system_clock()
        assert before <= now.wall <= time.time()
        assert now.monotonic == 0
        await trio.sleep(5)
        assert system_clock().monotonic == 5

    in_virtual_time(main)
