"""Answers as they may be: they stand in web/contract.py for what a route answers, and their types are its schema."""

from collections.abc import Sequence
from typing import Any

import msgspec

from queue_actor.jobs import FIRST_POLICY, JobState, Outcome
from web.ops import EngineView, Quantiles, StatisticsView
from web.overview import BriefView, OverviewView, TrendView
from web.schemas import SimpleJob
from web.views import (
    NULL,
    AttemptView,
    BulkView,
    ConsumerView,
    ErrorView,
    JobView,
    LeaseView,
    QueueDocument,
    ResultView,
)

MOMENT, TOKEN = "2027-01-15T08:00:00.000Z", "AAAAAAAAAAEAAAAAAAAAAQ.3q2-7w"
LEASE = LeaseView(token=TOKEN, fence=1, seconds=300.0, expires_at="2027-01-15T08:05:00.000Z")
LEASED = JobView(
    queue="images",
    id=1,
    type="resize",
    state=JobState.IN_PROGRESS,
    priority=0,
    payload=msgspec.Raw(b'{"w":1280}'),
    meta={"tenant": "a"},
    traceparent=None,
    unique_key=None,
    created_at=MOMENT,
    not_before=None,
    expires_at=None,
    attempts=1,
    fails=0,
    stales=0,
    max_attempts=None,
    consumer="w1",
    lease=LEASE,
    cancel_requested=False,
    progress=NULL,
    result=NULL,
    reason=None,
    finished_at=None,
)
ENDED = msgspec.structs.replace(
    LEASED,
    state=JobState.CONCLUDED,
    lease=None,
    result=msgspec.Raw(b'{"bytes":48213}'),
    finished_at=MOMENT,
    history=[AttemptView(1, "w1", MOMENT, MOMENT, Outcome.CONCLUDED, None)],
)
LISTED = msgspec.structs.replace(ENDED, payload=msgspec.UNSET, result=msgspec.UNSET, history=msgspec.UNSET)
FIGURES = QueueDocument(
    name="images",
    exists=True,
    paused=False,
    declared=False,
    counts={str(state): int(state == JobState.CONCLUDED) for state in JobState},
    oldest_age_seconds=None,
    per_minute=dict.fromkeys(("enqueue", "dequeue", "conclude", "fail", "release", "stale", "dead"), 0.0),
    waiters=0,
    consumers=[ConsumerView("w1", 0.5)],
    last_id=1,
    policy=FIRST_POLICY,
)
_RATES = dict.fromkeys(("enqueue", "dequeue", "conclude", "fail", "dead"), 0.0)
_TREND: dict[str, Sequence[float | None]] = {"enqueue": [0], "conclude": [0], "fail": [0], "dead": [0]}
GLANCE = OverviewView(
    at=MOMENT,
    queues_count=1,
    paused_count=0,
    counts=FIGURES.counts,
    per_minute=_RATES,
    slots=64,
    compactions=0,
    queues=[BriefView("images", False, FIGURES.counts, _RATES, None, 0, 0.5, 0.02, 1.5, _TREND)],
    next_cursor=None,
)
TREND = TrendView("images", MOMENT, {**_TREND, "dequeue": [0], "stale": [0], "wait_p50": [None], "run_p95": [1.5]})
_QUANTILES = Quantiles(0.0001, 0.004)
STATISTICS = StatisticsView(
    instance="5f0c1d2e3a4b5968",
    durability="memory",
    a_crash_loses="all jobs",
    inbox_requests=0,
    waiters=0,
    readers=0,
    connections=1,
    limits={"inbox_requests": 1_000},
    loop_lag_seconds=_QUANTILES,
    engine=EngineView(17, Quantiles(1, 4), Quantiles(1, 20), _QUANTILES, _QUANTILES, 9),
    store=None,
)
MOVED = BulkView(1, 0, False)
LOST = ErrorView("lease_lost", "the token shown does not hold job 3", "token")


def result(state: str, **more: Any) -> ResultView:
    """What became of a job."""
    return ResultView(id=1, queue="images", state=JobState(state), **more)


SIMPLE = SimpleJob(1, "TIME_CRITICAL", "QUEUED", msgspec.Raw(b'{"any":"JSON"}'))
LEASED_SIMPLE = msgspec.structs.replace(SIMPLE, Status="IN_PROGRESS")
CONCLUDED_SIMPLE = msgspec.structs.replace(SIMPLE, Status="CONCLUDED")
