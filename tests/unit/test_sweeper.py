"""The timer that sends the sweeps."""

import logging
from itertools import pairwise
from typing import cast

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import Command, R, Sweep, Swept
from queue_actor.engine import Backup, EngineStatistics
from queue_actor.errors import Draining, OutcomeUnknown, QueueFull, Unavailable
from queue_actor.events import EventLog
from queue_actor.figures import EngineFigures
from queue_actor.settings import Settings
from queue_actor.sweeper import PAUSE_SECONDS_MIN, STALL_SECONDS, Sweeper
from tests.fakes import jump
from web.logs import facts_of

pytestmark = pytest.mark.virtual_time

DONE = Swept(stale=0, due=0, expired=0, forgotten=0, dead_lost=0, more=False, next_due_seconds=None)
MORE = Swept(stale=1, due=0, expired=0, forgotten=0, dead_lost=0, more=True, next_due_seconds=0.0)


class FakeEngine:
    """Notes when it was asked to sweep, and answers what it was told to; then that nothing was to be done.

    With each answer it says, as engines do after each command, when something is due.
    """

    def __init__(self, sweeper: Sweeper, *answers: Swept | Exception) -> None:
        self.failed = trio.Event()
        self.ready = trio.Event()
        self.instance, self.durability = "fake", "memory"
        self.events = EventLog(Settings(), self.instance)
        self.swept_at: list[float] = []
        self.sweep_seconds = 0.0  # that a sweep takes
        self.due_seconds: float | None = None
        self._sweeper = sweeper
        self._answers = iter(answers)

    def store_statistics(self) -> None: ...

    def figures(self) -> EngineFigures:
        raise NotImplementedError

    async def backup(self) -> Backup:
        raise NotImplementedError

    async def execute(self, command: Command[R]) -> R:
        assert isinstance(command, Sweep)
        self.swept_at.append(trio.current_time())
        assert len(self.swept_at) < 1_000, "it spins, and time stands still"
        await trio.sleep(self.sweep_seconds)
        self._sweeper.notice(self.due_seconds)
        answer = next(self._answers, DONE)
        if isinstance(answer, Exception):
            raise answer
        return cast("R", answer)

    async def run(self) -> None:
        raise NotImplementedError

    def drain(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def statistics(self) -> EngineStatistics:
        raise NotImplementedError

    def waiting(self, queue: str) -> int:
        raise NotImplementedError


async def test_a_sweep_comes_every_sweep_seconds(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(7)
    assert engine.swept_at == [2, 4, 6]


async def test_the_pause_begins_when_the_sweep_is_answered(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    engine.sweep_seconds = 5
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(17)
    assert engine.swept_at == [2, 9, 16]


async def test_a_deadline_that_is_known_before_the_pause_ends_it(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    sweeper.notice(0.5)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(0.5)
    await wait_all_tasks_blocked()
    assert engine.swept_at == [0.5]


async def test_a_deadline_that_is_noticed_in_the_pause_ends_it_earlier(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(0.25)
    sweeper.notice(1)
    await trio.sleep(0.25)
    sweeper.notice(0.5)
    await trio.sleep(0.75)
    assert engine.swept_at == [1]


@pytest.mark.parametrize("due_seconds", [10, None])
async def test_a_later_deadline_or_none_does_not_put_the_sweep_off(
    nursery: trio.Nursery, due_seconds: float | None
) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    sweeper.notice(0.5)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(0.25)
    sweeper.notice(due_seconds)
    await trio.sleep(2.5)
    # The pause under way ends as it was meant to; the next one knows better.
    assert engine.swept_at == [0.5, 2.5]


async def test_a_deadline_that_is_noticed_during_a_sweep_counts_for_the_next_pause(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    engine.sweep_seconds = 1
    engine.due_seconds = 0.75
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(5)
    assert engine.swept_at == [2, 3.75]


async def test_a_full_slice_is_followed_by_the_next_at_once(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper, MORE, MORE, DONE, MORE, DONE)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(5)
    assert engine.swept_at == [2, 2, 2, 4, 4]


async def test_deadlines_that_are_past_do_not_make_it_spin(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    engine.due_seconds = 0
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(1)
    sweeper.notice(0)
    await trio.sleep(10 * PAUSE_SECONDS_MIN)
    assert len(engine.swept_at) in {10, 11}
    pauses = [after - before for before, after in pairwise(engine.swept_at)]
    assert min(pauses) == pytest.approx(PAUSE_SECONDS_MIN)


async def test_a_deadline_noticed_right_after_a_sweep_waits_for_the_shortest_pause(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(2)
    await wait_all_tasks_blocked()
    sweeper.notice(0)
    await trio.sleep(0.5)
    assert engine.swept_at == [2, pytest.approx(2 + PAUSE_SECONDS_MIN)]


async def test_after_a_stall_it_lets_others_go_first(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(1)
    jump(1 + STALL_SECONDS + 0.125)
    await wait_all_tasks_blocked()
    sweeper.notice(0.5)  # by a command that came meanwhile
    await trio.sleep(1.9)
    assert engine.swept_at == []
    await trio.sleep(1)
    assert engine.swept_at == [1 + 1 + STALL_SECONDS + 0.125 + 2]


async def test_being_a_little_late_is_no_stall(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(1)
    jump(1 + STALL_SECONDS)
    await wait_all_tasks_blocked()
    assert engine.swept_at == [2 + STALL_SECONDS]


async def test_how_late_it_is_counts_from_the_deadline_that_was_moved(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(20)
    engine = FakeEngine(sweeper)
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(1)
    sweeper.notice(1)
    await wait_all_tasks_blocked()
    jump(3)
    await wait_all_tasks_blocked()
    assert engine.swept_at == []


@pytest.mark.parametrize("ended", [Draining("closed"), OutcomeUnknown("ended")], ids=lambda error: error.code)
async def test_it_ends_quietly_when_the_engine_has_ended(ended: Unavailable) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper, DONE, MORE, ended)
    await sweeper.run(engine)
    assert engine.swept_at == [2, 4, 4]


async def test_any_other_error_comes_out_of_it() -> None:
    sweeper = Sweeper(2)
    with pytest.raises(QueueFull):
        await sweeper.run(FakeEngine(sweeper, QueueFull("cannot be")))


async def test_notice_may_be_given_before_it_runs_and_after_it_was_cancelled(nursery: trio.Nursery) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(sweeper)
    sweeper.notice(1)
    with trio.move_on_after(0.5):
        await sweeper.run(engine)
    sweeper.notice(0)
    await trio.sleep(5)
    assert engine.swept_at == []
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(0.5)
    assert engine.swept_at == [pytest.approx(5.5 + PAUSE_SECONDS_MIN)]


async def test_each_sweep_that_lost_dead_jobs_to_their_number_is_warned_about_once(
    caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    sweeper = Sweeper(2)
    engine = FakeEngine(
        sweeper, replace(MORE, dead_lost=1_000, forgotten=1_000), replace(DONE, dead_lost=3, forgotten=5)
    )
    nursery.start_soon(sweeper.run, engine)
    await trio.sleep(5)
    assert engine.swept_at == [2, 2, 4]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    told = [facts_of(record) for record in caplog.records]
    assert [(facts["event"], facts["jobs"], facts["by"]) for facts in told] == [
        ("dead_jobs_lost", 1_000, "dead_retention_jobs"),
        ("dead_jobs_lost", 3, "dead_retention_jobs"),
    ]
    assert {facts["logger"] for facts in told} == {"queue_actor.sweeper"}


async def test_a_sweep_that_lost_no_dead_job_says_nothing(
    caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    caplog.set_level(logging.DEBUG)
    sweeper = Sweeper(2)
    nursery.start_soon(sweeper.run, FakeEngine(sweeper, replace(MORE, forgotten=1_000), DONE))
    await trio.sleep(3)
    assert caplog.records == []
