"""The state machine beside a naive queue that shares no code with it: lists, dicts of facts, and linear scans.

Hypothesis makes up commands and moments; both must answer alike, refusals too, and must then hold the same jobs.
`World.do` counts everything again after each command.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from queue_actor.commands import Cancel, Claim, Dequeue, Enqueue, Enqueued, NewJob, ReadPosition, ReadQueue
from queue_actor.errors import QueueError
from queue_actor.jobs import Job
from tests.unit.world import CLAIMS, FORGED, MONOTONIC, WALL, World

# Small enough that a few commands meet each of them.
LIMITS: dict[str, Any] = {
    "lease_seconds": 20.0,
    "sweep_slice": 2,
    "reply_bytes_max": 12,
    "queues_max": 2,
    "queued_jobs_max": 10,
    "memory_bytes_max": 40,
    "retention_seconds": 40.0,
    "retention_jobs": 3,
    "ready_initial": 1,
    "compact_slice": 2,
}
HISTORY_MAX = 20

Facts = dict[str, Any]
"""A job as the naive queue keeps it: the fields of `Job`, and the monotonic moments it needs itself."""


class Refused(Exception):
    """A refusal, by its code."""


class NaiveQueue:
    """Every job ever made, in one list. What is asked is looked for from the start."""

    def __init__(self) -> None:
        self.monotonic = MONOTONIC
        self.wall = WALL
        self.jobs: list[Facts] = []  # the forgotten ones too
        self.first_fences: dict[str, int] = {}  # of each queue
        self.fences_given: list[str] = []  # the queue of each lease ever given
        self.finished: list[Facts] = []  # in the order in which they ended
        self.revision = 0

    # --- looking

    def kept(self, queue: str | None = None, *states: str) -> list[Facts]:
        return [
            job
            for job in self.jobs
            if not job["gone"] and queue in {None, job["queue"]} and (not states or job["state"] in states)
        ]

    def in_order(self, queue: str) -> list[Facts]:
        return sorted(self.kept(queue, "queued"), key=lambda job: (-job["priority"], job["place"]))

    def find(self, queue: str, id_: int) -> Facts:
        for job in self.jobs:
            if job["queue"] == queue and job["id"] == id_:
                if job["gone"]:
                    raise Refused("forgotten")
                return job
        raise Refused("unknown_job")

    def payload_bytes(self) -> int:
        return sum(len(job["payload"] or b"") for job in self.kept())

    def next_due_seconds(self) -> float | None:
        seconds = [job["deadline"] - self.monotonic for job in self.kept(None, "in_progress")]
        seconds += [job["not_before"] - self.wall for job in self.kept(None, "scheduled")]
        return max(0.0, min(seconds)) if seconds else None

    # --- changing

    def change(self, job: Facts, **facts: Any) -> Facts:
        self.revision += 1
        job.update(facts, revision=self.revision)
        return job

    def to_the_back(self, job: Facts) -> int:
        places: list[int] = [other["place"] for other in self.jobs if other["queue"] == job["queue"]]
        return 1 + max(places)

    def enqueue(self, queue: str, new_jobs: list[NewJob]) -> list[Facts]:
        if queue not in self.first_fences and len(self.first_fences) == LIMITS["queues_max"]:
            raise Refused("too_many_queues")
        if len(self.kept(None, "queued", "scheduled")) + len(new_jobs) > LIMITS["queued_jobs_max"]:
            raise Refused("queue_full")
        if self.payload_bytes() + sum(len(new.payload or b"") for new in new_jobs) > LIMITS["memory_bytes_max"]:
            raise Refused("memory_full")
        self.first_fences.setdefault(queue, int(self.wall * 1_000_000))
        return [self.enqueue_one(queue, new) for new in new_jobs]

    def enqueue_one(self, queue: str, new: NewJob) -> Facts:
        job: Facts = {
            "queue": queue,
            "id": 1 + len([job for job in self.jobs if job["queue"] == queue]),
            "type": new.type,
            "payload": new.payload,
            "state": "scheduled" if new.delay_seconds else "queued",
            "created_at": self.wall,
            "priority": new.priority,
            "place": 0,
            "not_before": self.wall + new.delay_seconds if new.delay_seconds else None,
            "attempts": 0,
            "stales": 0,
            "consumer": None,
            "fence": 0,
            "lease_seconds": 0.0,
            "lease_expires_at": None,
            "started_at": None,
            "finished_at": None,
            "cancel_requested": False,
            "history": [],
            "gone": False,
        }
        self.jobs.append(job)
        if job["state"] == "queued":
            job["place"] = self.to_the_back(job)
        return self.change(job)

    def dequeue(self, queue: str, count: int, consumer: str | None, seconds: float | None) -> list[Facts]:
        leased: list[Facts] = []
        while len(leased) < count and (ready := self.in_order(queue)):
            payload_bytes = sum(len(job["payload"] or b"") for job in [*leased, ready[0]])
            if leased and payload_bytes > LIMITS["reply_bytes_max"]:
                break
            length = LIMITS["lease_seconds"] if seconds is None else seconds
            fence = self.first_fences[queue] + self.fences_given.count(queue)
            self.fences_given.append(queue)
            leased.append(
                self.change(
                    ready[0],
                    state="in_progress",
                    attempts=ready[0]["attempts"] + 1,
                    consumer=consumer,
                    fence=fence,
                    lease_seconds=length,
                    lease_expires_at=self.wall + length,
                    started_at=self.wall,
                    deadline=self.monotonic + length,
                )
            )
        return leased

    def claim(self, verb: str, claim: Claim, *, proven: int | None, seconds: float) -> Facts:
        """Conclude, extend or release a job; `proven` is the fence that the token shown proves, if it proves any."""
        job = self.find(claim.queue, claim.id)
        held = job["state"] == "in_progress"
        outcome = {"conclude": "concluded", "release": "released", "extend": "-"}[verb]
        if claim.token is not None:
            if not (held and proven == job["fence"]):
                if any(fence == proven and ended == outcome for fence, _, _, _, ended in job["history"]):
                    return job
                raise Refused("lease_lost")
        elif not held and not (verb == "conclude" and job["state"] == "concluded"):
            raise Refused("not_in_progress")
        elif job["consumer"] not in {None, claim.consumer}:
            raise Refused("other_consumer")
        elif not held:
            return job
        if verb == "conclude":
            return self.end(job, "concluded", "concluded")
        if verb == "release":
            return self.end(job, "released", "queued", delay_seconds=seconds)
        length = seconds or job["lease_seconds"]
        return self.change(
            job, lease_seconds=length, lease_expires_at=self.wall + length, deadline=self.monotonic + length
        )

    def end(self, job: Facts, outcome: str, state: str, *, delay_seconds: float = 0.0) -> Facts:
        """End an attempt."""
        attempt = (job["fence"], job["consumer"], job["started_at"], self.wall, outcome)
        job["history"] = [*job["history"], attempt][-HISTORY_MAX:]
        job["lease_expires_at"] = None
        if job["cancel_requested"] and state == "queued":
            state = "cancelled"
        if state in {"concluded", "cancelled"}:
            return self.finish(job, state)
        if delay_seconds:
            return self.change(job, state="scheduled", not_before=self.wall + delay_seconds)
        return self.change(job, state=state)

    def finish(self, job: Facts, state: str, **facts: Any) -> Facts:
        self.finished.append(job)
        return self.change(job, state=state, finished_at=self.wall, ended=self.monotonic, **facts)

    def cancel(self, queue: str, id_: int) -> Facts:
        job = self.find(queue, id_)
        match job["state"]:
            case "concluded":
                raise Refused("already_finished")
            case "scheduled" | "queued":
                self.finish(job, "cancelled", cancel_requested=True)
            case "in_progress" if not job["cancel_requested"]:
                self.change(job, cancel_requested=True)
        return job

    def sweep(self) -> tuple[int, int, int, bool, float | None]:
        slice_ = LIMITS["sweep_slice"]
        stale = [job for job in self.kept(None, "in_progress") if job["deadline"] <= self.monotonic]
        stale.sort(key=lambda job: (job["deadline"], job["queue"], job["id"]))
        for job in stale[:slice_]:
            job["stales"] += 1
            self.end(job, "stale", "queued")
        due = [job for job in self.kept(None, "scheduled") if job["not_before"] <= self.wall]
        due.sort(key=lambda job: (job["not_before"], job["queue"], job["id"]))
        for job in due[:slice_]:
            self.change(job, state="queued", place=self.to_the_back(job))
        forgotten = 0
        while forgotten < slice_ and self.finished:
            oldest = self.finished[0]
            in_time = oldest["ended"] > self.monotonic - LIMITS["retention_seconds"]
            if in_time and len(self.finished) <= LIMITS["retention_jobs"]:
                break
            self.change(self.finished.pop(0), gone=True)
            forgotten += 1
        figures = [min(len(stale), slice_), min(len(due), slice_), forgotten]
        return (figures[0], figures[1], figures[2], slice_ in figures, self.next_due_seconds())


def same(job: Job, facts: Facts) -> bool:
    """Whether a job of the state machine is the job of the naive queue, in every field."""
    fields = {name: getattr(job, name) for name in Job.__struct_fields__}
    fields["history"] = [
        (ended.fence, ended.consumer, ended.started_at, ended.ended_at, ended.outcome) for ended in job.history
    ]
    return fields == {name: facts[name] for name in Job.__struct_fields__}


def answer_of(call: Callable[[], Any]) -> Any:
    """What a call returns, or the code of its refusal."""
    try:
        return call()
    except Refused as refused:
        return str(refused)
    except QueueError as refusal:
        return refusal.code


QUEUES = st.sampled_from(["a", "a", "a", "b", "c"])
CONSUMERS = st.sampled_from([None, None, "ann", "bob"])
NEW_JOBS = st.builds(
    NewJob,
    type=st.sampled_from(["x", "y"]),
    payload=st.sampled_from([None, b"", b"1", b"123456", b"1234567890123"]),
    priority=st.sampled_from([0, 0, 0, 4, -1]),
    delay_seconds=st.sampled_from([0.0, 0.0, 0.0, 5.0, 60.0]),
)
PICKS = st.fixed_dictionaries(
    {
        "lease": st.integers(0, 6),  # of all leases ever given, counted back from the last
        "show": st.sampled_from(["token", "token", "token", "consumer", "consumer", "forged", "of the next"]),
        "consumer": CONSUMERS,
        "id": st.sampled_from([*[None] * 9, 0, 1, 99]),  # instead of the job of the lease
    }
)


class Comparison(RuleBasedStateMachine):
    """The state machine and the naive queue, told the same."""

    @initialize(new_jobs=st.lists(NEW_JOBS, min_size=3, max_size=10))
    def begin(self, new_jobs: list[NewJob]) -> None:
        self.world = World(**LIMITS)
        self.naive = NaiveQueue()
        self.leases: dict[str, tuple[str, int, int]] = {}  # token -> queue, id, fence
        self.enqueue("a", new_jobs)

    @rule(queue=QUEUES, new_jobs=st.lists(NEW_JOBS, max_size=6))
    def enqueue(self, queue: str, new_jobs: list[NewJob]) -> None:
        expected = answer_of(partial(self.naive.enqueue, queue, new_jobs))
        answer = answer_of(partial(self.world.do, Enqueue(queue, new_jobs)))
        if isinstance(answer, Enqueued):
            assert len(answer.jobs) == len(expected)
            assert all(map(same, answer.jobs, expected))
        else:
            assert answer == expected
        self.compare()

    @rule(queue=QUEUES, count=st.integers(0, 5), consumer=CONSUMERS, seconds=st.sampled_from([None, None, 2.0, 30.0]))
    def dequeue(self, queue: str, count: int, consumer: str | None, seconds: float | None) -> None:
        expected = self.naive.dequeue(queue, count, consumer, seconds)
        leases = self.world.do(Dequeue(queue, count, consumer, seconds)).leases
        assert len(leases) == len(expected)
        assert all(same(lease.job, facts) for lease, facts in zip(leases, expected, strict=True))
        for lease in leases:
            assert lease.token not in self.leases
            self.leases[lease.token] = (queue, lease.job.id, lease.job.fence)
        self.compare()

    @rule(
        verb=st.sampled_from(sorted(CLAIMS)),
        picks=st.lists(PICKS, min_size=1, max_size=3),
        seconds=st.sampled_from([0.0, 0.0, 3.0, 50.0]),
    )
    def claim(self, verb: str, picks: list[dict[str, Any]], seconds: float) -> None:
        if not self.leases:
            return
        claim, command = CLAIMS[verb]
        tokens = list(self.leases)
        claims = []
        for pick in picks:
            token = tokens[-1 - pick["lease"] % len(tokens)]
            queue, id_, fence = self.leases[token]
            shown: dict[str, str | None] = {
                "token": token,
                "consumer": None,
                "forged": FORGED.issue(queue, id_, fence),
                "of the next": tokens[-pick["lease"] % len(tokens)],
            }
            facts: dict[str, Any] = {"token": shown[pick["show"]], "consumer": pick["consumer"]}
            if verb == "extend":
                facts["lease_seconds"] = seconds or None
            elif verb == "release":
                facts["delay_seconds"] = seconds
            claims.append(claim(queue, id_ if pick["id"] is None else pick["id"], **facts))
        answers = self.world.do(command(claims)).jobs
        assert len(answers) == len(claims)
        for answer, one in zip(answers, claims, strict=True):
            queue, id_, fence = self.leases.get(one.token or "", ("", 0, 0))
            proven = fence if (queue, id_) == (one.queue, one.id) else None
            self.compare_answer(answer, partial(self.naive.claim, verb, one, proven=proven, seconds=seconds))
        self.compare()

    @rule(queue=QUEUES, ids=st.lists(st.integers(0, 8), max_size=4))
    def cancel(self, queue: str, ids: list[int]) -> None:
        answers = self.world.do(Cancel(queue, ids)).jobs
        assert len(answers) == len(ids)
        for answer, id_ in zip(answers, ids, strict=True):
            self.compare_answer(answer, partial(self.naive.cancel, queue, id_))
        self.compare()

    @rule(which=st.integers(0, 6))
    def cancel_what_was_leased(self, which: int) -> None:
        if self.leases:
            queue, id_, _ = list(self.leases.values())[-1 - which % len(self.leases)]
            self.cancel(queue, [id_])

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 5.0, 20.0, 40.0]), sweeps=st.integers(1, 3))
    def time_passes(self, seconds: float, sweeps: int) -> None:
        self.world.wait(seconds)
        self.naive.monotonic, self.naive.wall = self.world.monotonic, self.world.wall
        for _ in range(sweeps):
            swept = self.world.sweep()
            expected = self.naive.sweep()
            assert (swept.stale, swept.due, swept.forgotten, swept.more, swept.next_due_seconds) == expected
        self.compare()

    @rule(seconds=st.sampled_from([-3_600.0, 3_600.0]))
    def the_wall_clock_is_moved(self, seconds: float) -> None:
        self.world.wall += seconds
        self.naive.wall += seconds
        self.compare()

    def compare_answer(self, answer: Job | QueueError, naive: Callable[[], Facts]) -> None:
        """Let the naive queue do one job of a batch, and compare; before the next, for it changes jobs in place."""
        expected = answer_of(naive)
        if isinstance(answer, QueueError):
            assert answer.code == expected
        else:
            assert same(answer, expected)

    def compare(self) -> None:
        """Both hold the same jobs in the same order, and tell the same figures."""
        kept = self.naive.kept()
        assert len(self.world.jobs) == len(kept)
        for facts in kept:
            assert same(self.world.jobs[facts["queue"], facts["id"]], facts)
        machine, now = self.world.machine, self.world.now
        assert machine.next_due_seconds(now) == self.naive.next_due_seconds()
        assert len(self.world.changes) == self.naive.revision
        for queue in "abc":
            view = machine.apply(ReadQueue(queue), now)
            assert view.exists is (queue in self.naive.first_fences)
            assert view.counts == {state: len(self.naive.kept(queue, state)) for state in view.counts}
            for ahead, job in enumerate(self.naive.in_order(queue)):
                assert machine.apply(ReadPosition(queue, job["id"]), now).ahead == ahead


class LongComparison(Comparison):
    """The same, at greater length."""


TestStateMachineAgainstNaiveQueue = Comparison.TestCase
TestStateMachineAgainstNaiveQueue.settings = settings(max_examples=40, stateful_step_count=40)

TestStateMachineAgainstNaiveQueueAtLength = pytest.mark.slow(LongComparison.TestCase)
TestStateMachineAgainstNaiveQueueAtLength.settings = settings(max_examples=200, stateful_step_count=100)
