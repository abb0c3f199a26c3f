"""Outcomes on their way to the server: what the whole server does not bring about by itself."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from queue_actor.client_answers import Dequeued, Job, Results, Settled
from queue_actor.client_bodies import Claim, ConcludeClaim, Dequeue, FailClaim, ReleaseClaim
from queue_actor.client_errors import ClientError, Refused, Unreachable, refusal
from queue_actor.counters import Counters
from queue_actor.handlers import Done, Failed, Released
from queue_actor.heartbeats import Held
from queue_actor.jobs import JobError, JobState
from queue_actor.reach import Reach
from queue_actor.reports import REPORT_JOBS_MAX, Reports
from tests.unit.test_handlers import a_job

pytestmark = pytest.mark.virtual_time


class FakeSettler:
    """Takes what it is told, unless it has a plan: an error for a whole request, or a refusal of a job by its id."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.asked: list[Dequeue | None] = []
        self.errors: list[ClientError | None] = []
        self.codes: dict[int, str] = {}
        self.dequeued: Dequeued | None = None

    async def _settle(self, verb: str, jobs: Sequence[Claim], dequeue: Dequeue | None) -> Results[Settled]:
        self.asked.append(dequeue)
        self.told.append((verb, [job.id for job in jobs]))
        await trio.lowlevel.checkpoint()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return Results(tuple(self._one(job) for job in jobs), self.dequeued)

    def _one(self, job: Claim) -> Settled | Refused:
        if job.id in self.codes:
            return refusal(self.codes[job.id], "as the test has it")
        return Settled(job.id, job.queue, JobState.CONCLUDED)

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("conclude", jobs, dequeue)

    async def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("fail", jobs, dequeue)

    async def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        return await self._settle("release", jobs, dequeue)


class Bench:
    """Reports, and what became of them."""

    def __init__(self) -> None:
        self.server = FakeSettler()
        self.counters = Counters()
        self.over: list[int] = []
        self.brought: list[tuple[int, Sequence[Job]]] = []
        self.wanted: list[Dequeue] = []
        self.reports = Reports(
            self.server,
            self.counters,
            Reach("outcomes"),
            ask=lambda: self.wanted.pop() if self.wanted else None,
            answered=lambda dequeue, jobs, _sent: self.brought.append((dequeue.count, jobs)),
            over=lambda held: self.over.append(held.job.id),
        )

    def add(self, id_: int, outcome: Any) -> None:
        self.reports.add(Held(a_job(id=id_), None, 0.0, 0.0), outcome)


FAILED = Failed(JobError("T", "m"))


async def test_outcomes_go_together_by_verb_and_the_oldest_goes_first() -> None:
    here = Bench()
    for id_, outcome in enumerate([FAILED, Done(), Released(), FAILED, Done(), Done()]):
        here.add(id_, outcome)
    assert len(here.reports) == 6
    await here.reports.flush()
    assert here.server.told == [("fail", [0, 3]), ("conclude", [1, 4, 5]), ("release", [2])]
    assert len(here.reports) == 0
    assert here.over == [0, 3, 1, 4, 5, 2]
    assert (here.counters.failed, here.counters.concluded, here.counters.released) == (2, 3, 1)


async def test_requests_are_bounded_by_number_and_size() -> None:
    here = Bench()
    for id_ in range(REPORT_JOBS_MAX + 1):
        here.add(id_, Done())
    for id_ in range(1_000, 1_004):
        here.add(id_, Done(b'"' + b"x" * 100_000 + b'"'))
    await here.reports.flush()
    assert [len(ids) for _, ids in here.server.told] == [REPORT_JOBS_MAX, 3, 2]


async def test_a_request_that_is_refused_is_sent_job_by_job() -> None:
    here = Bench()
    here.server.errors = [refusal("too_large", "the body"), None, refusal("too_large", "the result")]
    for id_ in range(3):
        here.add(id_, Done(b"1"))
    await here.reports.flush()
    singly = [("conclude", [0]), ("conclude", [1]), ("fail", [1]), ("conclude", [2])]
    assert here.server.told == [("conclude", [0, 1, 2]), *singly]
    assert (here.counters.concluded, here.counters.failed, here.counters.unreported) == (2, 1, 0)


async def test_others_do_not_wait_for_those_that_go_alone() -> None:
    here = Bench()
    here.server.errors = [refusal("too_large", "the body")]
    for id_ in range(2):
        here.add(id_, Done(b"1"))
    await here.reports._tell(here.reports._next(), None)
    here.add(2, FAILED)
    here.add(3, Done())
    here.add(4, FAILED)
    await here.reports.flush()
    assert here.server.told[1:] == [("conclude", [0]), ("conclude", [1]), ("fail", [2, 4]), ("conclude", [3])]


async def test_what_is_refused_for_good_is_counted_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    here = Bench()
    here.server.errors = [refusal("invalid", "the error")]
    here.server.codes = {2: "forbidden", 3: "lease_lost", 4: "forgotten"}
    here.add(1, FAILED)
    await here.reports.flush()
    for id_ in (2, 3, 4):
        here.add(id_, Done())
    await here.reports.flush()
    assert here.over == [1, 2, 3, 4]
    assert (here.counters.unreported, here.counters.lost) == (2, 2)
    logged = [record.message for record in caplog.records]
    assert (logged.count("outcome_refused"), logged.count("outcome_too_late")) == (2, 2)


async def test_a_flush_ends_when_nobody_answers() -> None:
    here = Bench()
    here.server.errors = [Unreachable("nobody")] * 10
    here.add(1, Done())
    await here.reports.flush()
    assert len(here.server.told) == 1
    assert len(here.reports) == 1


async def test_what_is_asked_for_with_an_outcome_is_answered_once_also_if_that_is_not() -> None:
    here = Bench()
    here.wanted = [Dequeue(count=3), Dequeue(count=2), Dequeue(count=1)]
    here.server.errors = [Unreachable("nobody"), None]
    here.server.dequeued = Dequeued((a_job(id=9),))
    here.add(1, Done())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.reports.run)
        await trio.sleep(1)
        assert [(count, [job.id for job in jobs]) for count, jobs in here.brought] == [(1, []), (2, [9])]
        here.server.dequeued = Dequeued((), refusal("too_many_waiters", "full"))
        here.add(2, Done())
        await trio.sleep(1)
        assert here.brought[2] == (3, ())
        assert [dequeue and dequeue.count for dequeue in here.server.asked] == [1, 2, 3]
        assert here.over == [1, 2]
        nursery.cancel_scope.cancel()
