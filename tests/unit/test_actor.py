"""The actor: what is particular to it beside what all engines promise."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.actor import BATCH_JOBS_MAX, ActorEngine
from queue_actor.changes import Changes
from queue_actor.commands import (
    Cancel,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    EnqueuedJob,
    NewJob,
    R,
    ReadJob,
    ReadQueue,
    Redrive,
    Sweep,
)
from queue_actor.engine import EngineStatistics
from queue_actor.errors import Busy, Draining, NotDurable, OutcomeUnknown, QueueError, UnknownJob
from queue_actor.jobs import JobState, Now
from queue_actor.ledger import InvariantError
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.sweeper import Sweeper
from queue_actor.transition_lines import TRANSITION
from tests.fakes import SECRET, Call, FakeClock, FakeStore

pytestmark = pytest.mark.virtual_time

ENQUEUE = Enqueue("q", [NewJob("a")])
READ = ReadQueue("q")
SETTINGS = Settings(engine="actor")


class Bug(Exception):
    """What a state machine with a bug raises."""


class FlawedMachine(StateMachine):
    """Raises a bug when a job of the type `bug` is enqueued."""

    def apply(self, command: Command[R], now: Now) -> R:
        if isinstance(command, Enqueue) and any(new.type == "bug" for new in command.jobs):
            raise Bug
        return super().apply(command, now)


class Parts:
    """An actor and what it was made of."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.clock = FakeClock()
        self.store = FakeStore()
        self.machine = FlawedMachine(settings, secret=SECRET)
        self.sweeper = Sweeper(settings.sweep_seconds)  # which does not run: the tests sweep
        self.actor = ActorEngine(settings, self.machine, self.store, self.clock, self.sweeper)

    async def pile_up(self, nursery: trio.Nursery, *commands: Command[Any]) -> list[Call[Any]]:
        """Put commands into the inbox while a commit holds the actor; `store.let_go` makes them one batch."""
        self.store.hold()
        await Call.start(nursery, self.actor, READ)
        return [await Call.start(nursery, self.actor, command) for command in commands]


@asynccontextmanager
async def running(settings: Settings = SETTINGS) -> AsyncIterator[Parts]:
    parts = Parts(settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.actor.run)
        yield parts
        parts.store.let_go()
        parts.actor.close()


async def failing(parts: Parts, nursery: trio.Nursery, error: type[Exception]) -> None:
    """Run the actor, and expect it to fail."""

    async def run() -> None:
        with pytest.raises(error):
            await parts.actor.run()

    nursery.start_soon(run)
    await wait_all_tasks_blocked()


def sizes(store: FakeStore) -> list[int]:
    return [len(changes) for changes in store.commits]


# --- batches


async def test_commands_that_arrive_together_share_one_commit(nursery: trio.Nursery) -> None:
    async with running() as parts:
        calls = await parts.pile_up(nursery, ENQUEUE, ENQUEUE, Dequeue("q"), READ)
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert sizes(parts.store) == [0, 3]
        assert [call.reply.jobs[0].id for call in calls[:2]] == [1, 2]
        assert calls[2].reply.leases[0].job.id == 1
        assert calls[3].reply.counts[JobState.QUEUED] == 1


async def test_a_command_that_comes_alone_is_a_batch_of_its_own() -> None:
    async with running() as parts:
        for _ in range(3):
            await parts.actor.execute(ENQUEUE)
        assert sizes(parts.store) == [1, 1, 1]


async def test_everybody_in_a_batch_is_answered_after_its_commit_and_nobody_before(nursery: trio.Nursery) -> None:
    async with running() as parts:
        waiting = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
        calls = [waiting, *await parts.pile_up(nursery, ENQUEUE, READ, ReadJob("q", 9), Dequeue("q"))]
        parts.store.seconds = 1
        parts.store.let_go()
        await trio.sleep(1.5)
        assert sizes(parts.store) == [0, 0]
        assert [call.ended_at for call in calls] == [None] * 5
        assert parts.actor.statistics() == EngineStatistics(inbox_requests=0, waiters=0)
        await trio.sleep(1)
        assert sizes(parts.store) == [0, 0, 2]
        assert [call.ended_at for call in calls] == [2] * 5
        assert isinstance(calls[3].refusal, UnknownJob)
        assert [len(call.reply.leases) for call in (waiting, calls[4])] == [1, 0]


async def test_a_batch_holds_no_more_commands_than_batch_requests_max(nursery: trio.Nursery) -> None:
    async with running(replace(SETTINGS, batch_requests_max=3)) as parts:
        await parts.pile_up(nursery, *[ENQUEUE] * 8)
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert sizes(parts.store) == [0, 3, 3, 2]


async def test_a_batch_is_closed_when_it_changed_enough_jobs(nursery: trio.Nursery) -> None:
    part = Enqueue("q", [NewJob("a")] * (BATCH_JOBS_MAX // 2))
    almost = Enqueue("q", [NewJob("a")] * (BATCH_JOBS_MAX - 1))
    whole = Enqueue("q", [NewJob("a")] * BATCH_JOBS_MAX)
    async with running() as parts:
        await parts.pile_up(nursery, part, part, part, READ, almost, whole, almost)
        parts.store.let_go()
        await wait_all_tasks_blocked()
        half = BATCH_JOBS_MAX // 2
        assert sizes(parts.store) == [
            0,
            2 * half,
            half + BATCH_JOBS_MAX - 1,
            BATCH_JOBS_MAX,
            BATCH_JOBS_MAX - 1,
        ]


async def test_requests_that_were_abandoned_are_passed_over(nursery: trio.Nursery) -> None:
    async with running(replace(SETTINGS, batch_requests_max=4)) as parts:
        calls = await parts.pile_up(nursery, *[ENQUEUE] * 6)
        for call in calls[::2]:
            call.scope.cancel()
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert [call.cancelled for call in calls] == [True, False] * 3
        assert sizes(parts.store) == [0, 2, 1]


async def test_a_refusal_does_not_disturb_its_neighbours_in_the_batch(nursery: trio.Nursery) -> None:
    async with running(replace(SETTINGS, queued_jobs_max=2)) as parts:
        calls = await parts.pile_up(nursery, ENQUEUE, Enqueue("q", [NewJob("a")] * 2), ENQUEUE)
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert [call.reply.jobs[0].id for call in (calls[0], calls[2])] == [1, 2]
        assert calls[1].refusal.code == "queue_full"  # type: ignore[attr-defined] # a QueueError
        assert sizes(parts.store) == [0, 2]


async def test_one_moment_holds_for_a_whole_batch(nursery: trio.Nursery) -> None:
    async with running() as parts:
        waiting = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
        calls = await parts.pile_up(nursery, ENQUEUE)
        await trio.sleep(3)
        calls += [await Call.start(nursery, parts.actor, ENQUEUE), await Call.start(nursery, parts.actor, Dequeue("q"))]
        parts.store.seconds = 1
        parts.store.let_go()
        await trio.sleep(5)
        begun = parts.clock.wall_ahead_seconds + 4
        assert [change.after.created_at for change in parts.store.changes if change.before is None] == [begun] * 2  # type: ignore[union-attr] # it is there
        assert [call.reply.leases[0].job.started_at for call in (waiting, calls[2])] == [begun] * 2


async def test_a_job_that_is_called_off_in_the_batch_in_which_it_came_is_leased_to_nobody(
    nursery: trio.Nursery,
) -> None:
    async with running() as parts:
        waiting = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
        calls = await parts.pile_up(nursery, ENQUEUE, Cancel("q", [1]), ENQUEUE)
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert calls[1].reply.jobs[0].state is JobState.CANCELLED
        assert waiting.reply.leases[0].job.id == 2


async def test_who_parks_in_a_batch_is_served_by_a_job_that_comes_later_in_it(nursery: trio.Nursery) -> None:
    async with running() as parts:
        first, second, _, third = await parts.pile_up(
            nursery, Dequeue("q", wait_seconds=9), Dequeue("q", wait_seconds=9), ENQUEUE, Dequeue("q", wait_seconds=9)
        )
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert first.reply.leases[0].job.id == 1
        assert (second.ended_at, third.ended_at) == (None, None)
        second.scope.cancel()
        third.scope.cancel()
        await wait_all_tasks_blocked()
        assert parts.actor.statistics() == EngineStatistics(inbox_requests=0, waiters=0)


async def test_a_reader_is_not_told_of_an_end_that_was_undone_before_he_came(nursery: trio.Nursery) -> None:
    async with running() as parts:
        await parts.actor.execute(ENQUEUE)
        *_, reader = await parts.pile_up(nursery, Cancel("q", [1]), Redrive("q", [1]), ReadJob("q", 1, wait_seconds=9))
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert reader.ended_at is None
        await parts.actor.execute(Dequeue("q"))
        await parts.actor.execute(Conclude([Claim("q", 1)]))
        await wait_all_tasks_blocked()
        assert reader.reply.state is JobState.CONCLUDED


# --- the order of effects


async def test_effects_come_in_order_apply_serve_commit_notice_answer(nursery: trio.Nursery) -> None:
    effects: list[str] = []

    class ToldMachine(StateMachine):
        def apply(self, command: Command[R], now: Now) -> R:
            effects.append(f"apply {type(command).__name__}")
            return super().apply(command, now)

        def take_readied(self) -> Iterable[str]:
            effects.append("serve")
            return super().take_readied()

    class ToldStore(FakeStore):
        async def commit(self, changes: Changes) -> None:
            effects.append("commit")
            await super().commit(changes)
            effects.append("committed")

    class ToldSweeper(Sweeper):
        def notice(self, due_seconds: float | None) -> None:
            effects.append(f"notice {due_seconds}")

    async def execute(command: Command[Any]) -> None:
        await actor.execute(command)
        effects.append("answered")

    store = ToldStore()
    actor = ActorEngine(SETTINGS, ToldMachine(SETTINGS, secret=SECRET), store, FakeClock(), ToldSweeper(1))
    nursery.start_soon(actor.run)
    nursery.start_soon(execute, Dequeue("q", wait_seconds=20))
    await wait_all_tasks_blocked()
    assert effects == ["apply Dequeue", "serve", "commit", "committed", "notice None"]
    effects.clear()
    nursery.start_soon(execute, ENQUEUE)
    await wait_all_tasks_blocked()
    assert effects == [
        "apply Enqueue",
        "serve",
        "apply Dequeue",
        "commit",
        "committed",
        "notice 300.0",
        "answered",
        "answered",
    ]


async def test_the_sweeper_learns_of_deadlines_only_from_commands_that_were_stored(nursery: trio.Nursery) -> None:
    async with running() as parts:
        parts.sweeper.notice(None)
        parts.store.hold()
        await Call.start(nursery, parts.actor, Enqueue("q", [NewJob("a", delay_seconds=7)]))
        assert parts.sweeper._due_at == inf
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert parts.sweeper._due_at == 7


# --- what it tells


async def test_figures_are_those_of_its_batches_its_waiters_and_its_sweeps(nursery: trio.Nursery) -> None:
    async with running() as parts:
        parts.store.seconds = 0.25
        await trio.sleep(100)  # so that a moment is not mistaken for a time
        calls = [await Call.start(nursery, parts.actor, Dequeue("none", wait_seconds=1)) for _ in range(2)]
        await trio.sleep(5)
        await parts.actor.execute(ENQUEUE)
        assert [call.reply for call in calls] == [Dequeued()] * 2
        figures = parts.actor.figures()
    assert (figures.parked, figures.served, figures.timed_out) == (2, 0, 2)
    assert (figures.batch_requests.sum, figures.batch_changes.sum) == (3, 1)
    assert (figures.apply_seconds.sum, figures.commit_seconds.sum) == (0, 0.25)
    assert figures.swept == parts.sweeper.count_in(figures).swept != {}


async def test_a_slow_commit_is_told_with_the_size_of_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    async with running(replace(SETTINGS, slow_commit_seconds=0.5)) as parts:
        await trio.sleep(100)
        parts.store.seconds = 0.75
        await parts.actor.execute(Enqueue("q", [NewJob("a")] * 4))
    (line,) = caplog.records
    assert (line.name, line.getMessage()) == ("queue_actor.slow", "slow_commit")
    facts = {"requests": 1, "jobs": 4, "apply_milliseconds": 0, "commit_milliseconds": 750, "held_back": 0}
    assert vars(line)["facts"] == facts


async def test_transitions_are_told_after_their_commit(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    lines = "queue_actor.transitions"
    with caplog.at_level(TRANSITION, lines):
        async with running() as parts:
            parts.store.hold()
            await Call.start(nursery, parts.actor, ENQUEUE)
            assert caplog.records == []
            parts.store.let_go()
            await wait_all_tasks_blocked()
            assert [(record.name, vars(record)["facts"]["verb"]) for record in caplog.records] == [(lines, "enqueue")]


async def test_what_is_kept_in_memory_alone_cannot_be_backed_up() -> None:
    with pytest.raises(NotDurable) as refused:
        await Parts().actor.backup()
    assert refused.value.detail == "the jobs are kept in memory alone: there is no data directory"


# --- callers who leave


async def test_who_leaves_while_the_commit_runs_finds_that_his_command_stands(nursery: trio.Nursery) -> None:
    async with running() as parts:
        await parts.actor.execute(ENQUEUE)
        await parts.actor.execute(Dequeue("q"))
        waiting = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
        calls = [*await parts.pile_up(nursery, ENQUEUE, Conclude([Claim("q", 1)]), ReadJob("q", 9)), waiting]
        parts.store.seconds = 1
        parts.store.let_go()
        await trio.sleep(1.5)
        for call in calls:
            call.scope.cancel()
        await wait_all_tasks_blocked()
        assert [call.ended_at for call in calls] == [None] * 4
        await trio.sleep(1)
        assert not any(call.cancelled for call in calls)
        assert calls[0].reply.jobs[0].id == 2
        assert calls[1].reply.single().state is JobState.CONCLUDED
        assert isinstance(calls[2].refusal, UnknownJob)
        assert waiting.reply.leases[0].job.id == 2
        assert sizes(parts.store)[-1] == 3


async def test_the_batch_after_the_cancelled_caller_goes_on(nursery: trio.Nursery) -> None:
    async with running() as parts:
        gone, stays = await parts.pile_up(nursery, ENQUEUE, ENQUEUE)
        gone.scope.cancel()
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert gone.cancelled
        assert stays.reply.jobs[0].id == 1


# --- the inbox


async def test_the_inbox_takes_inbox_requests_max_commands_beside_the_batch_in_hand(nursery: trio.Nursery) -> None:
    async with running(replace(SETTINGS, inbox_requests_max=3)) as parts:
        calls = await parts.pile_up(nursery, ENQUEUE, ENQUEUE, ENQUEUE)
        assert parts.actor.statistics().inbox_requests == 3
        refused: list[Command[Any]] = [ENQUEUE, Dequeue("q", wait_seconds=20)]
        for command in refused:
            with pytest.raises(Busy, match="3"):
                await parts.actor.execute(command)
        swept = await Call.start(nursery, parts.actor, Sweep())
        assert parts.actor.statistics().inbox_requests == 4
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert [call.reply.jobs[0].id for call in calls] == [1, 2, 3]
        assert not swept.reply.more
        assert parts.actor.statistics().inbox_requests == 0


async def test_an_abandoned_request_keeps_its_slot_until_the_actor_has_passed_it(nursery: trio.Nursery) -> None:
    async with running(replace(SETTINGS, inbox_requests_max=2)) as parts:
        (call,) = await parts.pile_up(nursery, ENQUEUE)
        call.scope.cancel()
        await wait_all_tasks_blocked()
        assert call.cancelled
        assert parts.actor.statistics().inbox_requests == 1
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert parts.actor.statistics().inbox_requests == 0


# --- the end


async def test_who_waits_for_the_end_of_a_job_is_sent_home_with_what_the_batch_in_hand_makes_of_it_once_it_is_stored(
    nursery: trio.Nursery,
) -> None:
    async with running() as parts:
        await parts.actor.execute(ENQUEUE)
        reader = await Call.start(nursery, parts.actor, ReadJob("q", 1, wait_seconds=20))
        parts.store.hold()
        await Call.start(nursery, parts.actor, Dequeue("q"))
        parts.actor.drain()
        await wait_all_tasks_blocked()
        assert reader.ended_at is None
        parts.store.let_go()
        await wait_all_tasks_blocked()
        assert reader.reply.state is JobState.IN_PROGRESS


async def test_draining_it_says_that_it_hands_out_no_more_and_closed_that_it_is() -> None:
    async with running() as parts:
        parts.actor.drain()
        refused: list[QueueError] = []
        for _ in range(2):
            with pytest.raises(Draining) as draining:
                await parts.actor.execute(Dequeue("q"))
            refused.append(draining.value)
            parts.actor.close()
    assert [refusal.detail for refusal in refused] == [
        "the server is about to end and hands out no more jobs",
        "the queue is closed",
    ]


async def test_closed_it_carries_out_what_it_took_and_run_returns() -> None:
    parts = Parts()
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def run() -> None:
            await parts.actor.run()
            ended.set()

        nursery.start_soon(run)
        calls = await parts.pile_up(nursery, ENQUEUE, ENQUEUE)
        parts.actor.close()
        parts.actor.close()
        await wait_all_tasks_blocked()
        assert not ended.is_set()
        with pytest.raises(Draining):
            await parts.actor.execute(READ)
        parts.store.let_go()
        await ended.wait()
        await wait_all_tasks_blocked()
        assert [call.reply.jobs[0].id for call in calls] == [1, 2]


async def test_cancelled_it_tells_everybody(nursery: trio.Nursery) -> None:
    parts = Parts()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as actor:
            actor.start_soon(parts.actor.run)
            parked = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
            parts.store.hold()
            held = await Call.start(nursery, parts.actor, ENQUEUE)
            waits = await Call.start(nursery, parts.actor, ENQUEUE)
            scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert held.ended_at is None  # a commit is not cut short
                parts.store.let_go()
                await wait_all_tasks_blocked()
    assert held.reply.jobs == [EnqueuedJob(1, JobState.QUEUED)]
    assert parked.reply.leases[0].job.id == 1
    assert isinstance(waits.refusal, OutcomeUnknown)
    assert waits.refusal.detail == "the queue ended before it answered"
    with pytest.raises(Draining):
        await parts.actor.execute(READ)


async def test_a_store_that_fails_leaves_nobody_without_an_answer(nursery: trio.Nursery) -> None:
    parts = Parts(replace(SETTINGS, batch_requests_max=4))
    await failing(parts, nursery, OSError)
    served = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
    parked = await Call.start(nursery, parts.actor, Dequeue("other", wait_seconds=20))
    batch = await parts.pile_up(
        nursery, ENQUEUE, READ, ReadJob("q", 9), Dequeue("third", wait_seconds=20), ENQUEUE, Dequeue("q")
    )
    parts.store.seconds = 1
    parts.store.let_go()
    await trio.sleep(1.5)
    assert parts.actor.statistics() == EngineStatistics(inbox_requests=2, waiters=2)
    late = await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20))
    parts.store.failure = OSError("disk")
    await trio.sleep(1)
    assert [type(call.refusal) for call in (served, parked, late, *batch)] == [OutcomeUnknown] * 9
    assert parts.actor.statistics() == EngineStatistics(inbox_requests=0, waiters=0)
    assert sizes(parts.store) == [0, 0, 0]
    with pytest.raises(Draining):
        await parts.actor.execute(READ)


async def test_a_bug_leaves_nobody_without_an_answer_and_stores_nothing_of_its_batch(nursery: trio.Nursery) -> None:
    parts = Parts()
    await failing(parts, nursery, Bug)
    parked = await Call.start(nursery, parts.actor, Dequeue("other", wait_seconds=20))
    calls = await parts.pile_up(nursery, ENQUEUE, Enqueue("q", [NewJob("bug")]), ENQUEUE)
    parts.store.let_go()
    await wait_all_tasks_blocked()
    assert [type(call.refusal) for call in (parked, *calls)] == [OutcomeUnknown] * 4
    assert parts.store.changes == []


async def test_a_bug_that_shows_while_waiters_are_served_leaves_nobody_without_an_answer(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts()
    await failing(parts, nursery, Bug)
    calls: list[Call[Any]] = [await Call.start(nursery, parts.actor, Dequeue("q", wait_seconds=20)) for _ in range(3)]
    apply, dequeues = parts.machine.apply, 0

    def fail_at_the_second(command: Command[R], now: Now) -> R:
        nonlocal dequeues
        dequeues += isinstance(command, Dequeue)
        if dequeues == 2:
            raise Bug
        return apply(command, now)

    monkeypatch.setattr(parts.machine, "apply", fail_at_the_second)
    calls.append(await Call.start(nursery, parts.actor, Enqueue("q", [NewJob("a")] * 3)))
    assert [type(call.refusal) for call in calls] == [OutcomeUnknown] * 4


async def test_who_was_sent_home_while_the_store_failed_keeps_his_answer(nursery: trio.Nursery) -> None:
    parts = Parts()
    await failing(parts, nursery, OSError)
    (parked,) = await parts.pile_up(nursery, Dequeue("q", wait_seconds=20))
    parts.store.seconds = 1
    parts.store.let_go()
    await trio.sleep(1.5)
    parts.store.failure = OSError("disk")
    parts.actor.drain()
    await trio.sleep(1)
    assert parked.reply == Dequeued()
    assert parked.ended_at == 1.5


async def test_a_counter_that_lies_ends_the_actor(nursery: trio.Nursery) -> None:
    parts = Parts()
    await failing(parts, nursery, InvariantError)
    await parts.actor.execute(ENQUEUE)
    parts.machine._queues["q"].counts[JobState.QUEUED] += 1
    call = await Call.start(nursery, parts.actor, ENQUEUE)
    assert isinstance(call.refusal, OutcomeUnknown)
    assert len(parts.store.changes) == 1
