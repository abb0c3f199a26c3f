"""Leases by the worker's own clock: what the whole server does not bring about by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from queue_actor import heartbeats
from queue_actor.client_answers import Extended, Results
from queue_actor.client_bodies import ExtendClaim
from queue_actor.client_errors import Refused, refusal
from queue_actor.counters import Counters
from queue_actor.handlers import Dropped, Failed, Handler, StopReason, leased
from queue_actor.heartbeats import Heartbeats, Held, Phase
from queue_actor.jobs import JobState
from tests.unit.test_handlers import a_job

pytestmark = pytest.mark.virtual_time


async def nothing() -> None: ...


class FakeExtender:
    """Extends by its rules: the code to refuse a job with, by its id."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, list[int]]] = []
        self.progress: list[object] = []
        self.codes: dict[int, str] = {}
        self.before: Callable[[], None] = lambda: None
        self.seconds = 0.0  # until it answers

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        self.beats.append((trio.current_time(), [job.id for job in jobs]))
        self.progress += [bytes(job.progress) for job in jobs if job.progress is not None]
        await trio.sleep(self.seconds)
        self.before()
        return Results(tuple(self._one(job) for job in jobs))

    def _one(self, job: ExtendClaim) -> Extended | Refused:
        if job.id in self.codes:
            return refusal(self.codes[job.id], "as the test has it")
        return Extended(job.id, job.queue, JobState.IN_PROGRESS, leased(a_job()), cancel_requested=False)


class Bench:
    """Heartbeats that run, and what they have said."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.server = FakeExtender()
        self.stopped: list[tuple[int, float, StopReason | None]] = []
        self.counters = Counters()
        self.heartbeats = Heartbeats(self.server, self.counters, self._stopped, lambda: None)
        nursery.start_soon(self.heartbeats.beat)
        nursery.start_soon(self.heartbeats.watch)

    def _stopped(self, held: Held) -> None:
        self.stopped.append((held.job.id, trio.current_time(), held.running.stopping))

    def hold(self, id_: int = 1, *, begin: bool = True, **limits: Any) -> Held:
        now = trio.current_time()
        held = Held(a_job(id=id_), Handler("t", nothing, **limits), now, now)
        self.heartbeats.hold(held)
        if begin:
            held.begin(trio.current_time())
        self.heartbeats.changed()
        return held


async def bench(nursery: trio.Nursery) -> Bench:
    await trio.lowlevel.checkpoint()
    return Bench(nursery)


async def test_a_lease_that_may_not_be_extended_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        here.server.codes[1] = "forbidden"
        here.hold()
        await trio.sleep(100)
        ((_, moment, reason),) = here.stopped
        assert moment == pytest.approx(30)
        assert reason == "lost"
        assert len(here.server.beats) > 4
        assert [record.message for record in caplog.records].count("beat_refused") > 4
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("code", "stopped"), [("forbidden", (10, "lost")), ("run_too_long", (7, "time_limit"))])
async def test_what_may_not_be_extended_has_what_is_surely_left_of_its_lease(
    code: str, stopped: tuple[float, StopReason]
) -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        here.server.codes[1] = code
        now = trio.current_time()
        held = Held(a_job(), Handler("t", nothing), now - 20, now)
        assert (held.fresh_until, held.lease_ends) == (now - 10, now + 30)
        here.heartbeats.hold(held)
        await trio.sleep(1)
        assert (held.fresh_until, held.lease_ends) == (now + 10, now + 10)
        await trio.sleep(9.5)
        seconds, reason = stopped
        assert here.stopped[0] == (1, now + seconds, reason)
        nursery.cancel_scope.cancel()


async def test_what_has_ended_while_its_heartbeat_was_under_way_is_left_alone() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold()
        here.server.codes[1] = "lease_lost"

        def conclude() -> None:
            held.phase = Phase.ENDED

        here.server.before = conclude
        await trio.sleep(100)
        assert here.stopped == []
        assert len(here.server.beats) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("code", ["", "run_too_long"])
async def test_what_was_stopped_while_its_heartbeat_was_under_way_gets_no_further_one(code: str) -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold()
        if code:
            here.server.codes[1] = code
        here.server.before = lambda: here.heartbeats.stop(held, "stuck")
        await trio.sleep(29)
        assert [reason for _, _, reason in here.stopped] == ["stuck"]
        await trio.sleep(71)
        assert [reason for _, _, reason in here.stopped] == ["stuck", "lost"]
        assert here.stopped[1][1] == pytest.approx(30)
        assert len(here.server.beats) == 1
        assert held.verdict == Dropped()
        nursery.cancel_scope.cancel()


async def test_a_heartbeat_that_breaks_for_what_was_stopped_meanwhile_is_not_repeated() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold()

        def break_off() -> None:
            here.heartbeats.stop(held, "time_limit")
            raise refusal("busy", "not now")

        here.server.before = break_off
        await trio.sleep(100)
        assert len(here.server.beats) == 1
        nursery.cancel_scope.cancel()


async def test_the_first_reason_to_stop_decides_but_for_a_lost_lease() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold()
        for reason, counts in (("time_limit", 1), ("stuck", 1), ("lost", 2), ("lost", 2), ("shutdown", 2)):
            here.heartbeats.stop(held, reason)  # type: ignore[arg-type] # it is one of them
            assert len(here.stopped) == counts
        await trio.sleep(100)
        assert len(here.stopped) == 2
        assert (here.counters.time_limit, here.counters.stuck, here.counters.lost) == (1, 0, 1)
        nursery.cancel_scope.cancel()


async def test_the_newest_progress_is_told_also_if_an_older_one_did_not_arrive() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold()
        plans = ["older", "lost", ""]

        def trouble() -> None:
            plan = plans.pop(0) if plans else ""
            if plan == "older":
                held.running.report(2)
            if plan:
                raise refusal("busy", "not now")

        here.server.before = trouble
        held.running.report(1)
        await trio.sleep(20)
        assert here.server.progress == [b"1", b"2", b"2"]
        nursery.cancel_scope.cancel()


async def test_a_job_with_nobody_to_do_it_has_no_limits() -> None:
    held = Held(a_job(), None, trio.current_time(), trio.current_time())
    held.running.report(1)
    assert held.stuck_at == float("inf")
    assert held.stop("stuck")
    assert isinstance(held.verdict, Failed)
    await trio.lowlevel.checkpoint()


async def test_what_is_let_go_may_be_in_other_hands_already(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        earlier = here.hold()
        later = here.hold()
        here.heartbeats.let_go(earlier)
        assert list(here.heartbeats.held.values()) == [later]
        here.heartbeats.let_go(later)
        assert here.heartbeats.held == {}
        assert [reason for _, _, reason in here.stopped] == ["lost"]
        here.server.codes[1] = "lease_lost"
        await trio.sleep(12)  # both are told of once
        assert [record.message for record in caplog.records] == ["lease_lost"]
        assert caplog.records[0].__dict__["facts"]["code"] == "leased_again"
        nursery.cancel_scope.cancel()


async def test_whose_lease_is_known_to_be_lost_is_not_told_of_again(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        earlier = here.hold()
        here.heartbeats.stop(earlier, "lost")
        here.hold()
        assert "lease_lost" not in [record.message for record in caplog.records]
        nursery.cancel_scope.cancel()


async def test_a_job_that_does_not_end_for_its_cancel_is_looked_at_again() -> None:
    """Only child processes are killed for it; whatever else runs keeps its lease."""
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold(run_seconds=100)
        here.heartbeats.stop(held, "cancelled")
        await trio.sleep(200)
        assert [reason for _, _, reason in here.stopped] == ["cancelled"]
        assert here.counters.extended > 15
        nursery.cancel_scope.cancel()


async def test_progress_does_not_bring_back_a_lease_that_is_to_lapse() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        held = here.hold(run_seconds=5)
        await trio.sleep(6)
        held.running.report(1)
        await trio.sleep(100)
        assert here.server.beats == []
        assert [reason for _, _, reason in here.stopped] == ["time_limit", "lost"]
        nursery.cancel_scope.cancel()


async def test_of_many_leases_those_that_are_due_first_are_extended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_JOBS_MAX", 2)
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        early = [here.hold(id_) for id_ in (3, 2, 1)]
        for held, seconds in zip(early, (0.3, 0.2, 0.1), strict=True):
            held.beat_at = seconds
        await trio.sleep(0.35)
        assert [ids for _, ids in here.server.beats] == [[1, 2], [3]]
        nursery.cancel_scope.cancel()


async def test_a_lease_is_counted_from_the_moment_at_which_its_heartbeat_was_sent() -> None:
    async with trio.open_nursery() as nursery:
        here = await bench(nursery)
        here.server.seconds = 7
        here.hold()
        await trio.sleep(18)
        here.server.codes[1] = "forbidden"
        await trio.sleep(100)
        ((_, moment, reason),) = here.stopped
        assert moment == pytest.approx(10 + 30)
        assert reason == "lost"
        nursery.cancel_scope.cancel()
