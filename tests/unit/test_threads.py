"""Calls in a thread: one at a time, waited for to their ends, and whatever they raise is raised."""

import threading

import pytest
import trio
import trio.testing

from queue_actor.threads import one_at_a_time


async def test_a_call_runs_beside_the_event_loop_and_gives_what_it_returns() -> None:
    run = one_at_a_time()
    loop_thread = threading.get_ident()
    assert await run(threading.get_ident) != loop_thread
    with pytest.raises(ZeroDivisionError):
        await run(lambda: 1 // 0)
    assert await run(lambda: 1) == 1  # the next one has its turn


async def test_calls_of_several_tasks_take_turns() -> None:
    run = one_at_a_time()
    first_may_end = threading.Event()
    told: list[str] = []

    def first() -> None:
        first_may_end.wait()
        told.append("first ends")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run, lambda: told.append("second begins"))
        await trio.testing.wait_all_tasks_blocked()
        first_may_end.set()
    assert told == ["first ends", "second begins"]


async def test_who_is_cancelled_waits_for_the_end_of_the_call() -> None:
    run = one_at_a_time()
    cancelled, ended = threading.Event(), threading.Event()

    def call() -> None:
        cancelled.wait()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, call)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        cancelled.set()
    assert ended.is_set()
