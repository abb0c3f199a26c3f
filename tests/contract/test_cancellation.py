"""Many callers who may be cancelled at any moment: nothing is lost, and nothing happens behind anybody's back."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from random import Random

import pytest
import trio
from msgspec.structs import replace

from queue_actor.commands import (
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    EnqueuedJob,
    Extend,
    ExtendClaim,
    Lease,
    NewJob,
    ReadQueue,
    Release,
    ReleaseClaim,
    SetPolicy,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.errors import Busy, Draining, LeaseLost, OutcomeUnknown, TooManyWaiters
from queue_actor.jobs import Change, Job, JobState, QueuePolicy, Retry, RetryKind
from queue_actor.service import FAREWELL_SECONDS, open_engine
from queue_actor.settings import Settings
from queue_actor.sweeper import PAUSE_SECONDS_MIN
from tests.fakes import SECRET, FakeClock, FakeStore, in_seeded_virtual_time

CALLERS = 64
ROUNDS = 20
QUEUES = ("one", "two")
COMMIT_SECONDS = 0.001
LEASE_SECONDS = (0.1, 0.1, 0.5, 2.0)
# Multiples of the length of a commit, so that deadlines, answers and cancellations fall on the same moments.
PATIENCE_SECONDS = (0.0, COMMIT_SECONDS, 2 * COMMIT_SECONDS, 0.05, inf, inf, inf)
WAIT_SECONDS = (0.0, COMMIT_SECONDS, 5 * COMMIT_SECONDS, 0.05, 1.0)
WORK_SECONDS = (0.0, 0.0, COMMIT_SECONDS, 0.05, 0.6)

# No job dies of having slept through its leases, and none waits longer than a lease for its next try.
PATIENT = QueuePolicy(max_attempts=None, max_stale=None, retry=Retry(RetryKind.FIXED, base_seconds=0.3))

STORMY = Settings(waiters_max=10, inbox_requests_max=50, sweep_seconds=0.25)
IDLE = EngineStatistics(inbox_requests=0, waiters=0)

Key = tuple[str, int]


class Crowd:
    """The callers, and what they were told."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self.enqueued: list[Key] = []
        self.concluded: list[Key] = []
        self.fences: list[tuple[str, int]] = []
        self.refused: Counter[str] = Counter()
        self.cancelled = 0
        self._engine = engine
        self._random = random
        self._scopes: list[trio.CancelScope] = []

    async def caller(self) -> None:
        for _ in range(ROUNDS):
            patience = self._random.choice(PATIENCE_SECONDS)
            with trio.CancelScope(deadline=trio.current_time() + patience) as scope:
                self._scopes.append(scope)
                try:
                    await self._random.choice((self._produce, self._consume, self._consume, self._consume))()
                except (Busy, TooManyWaiters, Draining, OutcomeUnknown) as refusal:
                    self.refused[refusal.code] += 1
            self._scopes.remove(scope)
            self.cancelled += scope.cancelled_caught
            await trio.sleep(self._random.choice((0.0, COMMIT_SECONDS, 0.03)))

    def _cancel_somebody(self) -> None:
        """At the very moment at which the caller himself acts."""
        if self._random.random() < 0.15:
            self._random.choice(self._scopes).cancel()

    async def _produce(self) -> None:
        queue = self._random.choice(QUEUES)
        delay_seconds = self._random.choice((0.0, 0.0, 0.05))
        self._cancel_somebody()
        reply = await self._engine.execute(Enqueue(queue, [NewJob("a", delay_seconds=delay_seconds)] * 2))
        self.enqueued += [(queue, job.id) for job in reply.jobs if isinstance(job, EnqueuedJob)]

    async def _consume(self) -> None:
        command = Dequeue(
            self._random.choice(QUEUES),
            self._random.choice((1, 1, 3)),
            lease_seconds=self._random.choice(LEASE_SECONDS),
            wait_seconds=self._random.choice(WAIT_SECONDS),
        )
        self._cancel_somebody()
        reply = await self._engine.execute(command)
        self.fences += [(lease.job.queue, lease.job.fence) for lease in reply.leases]
        for lease in reply.leases:
            await trio.sleep(self._random.choice(WORK_SECONDS))
            await self._end(lease)

    async def _end(self, lease: Lease) -> None:
        queue, id_ = lease.job.queue, lease.job.id
        self._cancel_somebody()
        match self._random.randrange(4):
            case 0:
                reply = await self._engine.execute(Release([ReleaseClaim(queue, id_, lease.token)]))
            case 1:
                reply = await self._engine.execute(Extend([ExtendClaim(queue, id_, lease.token)]))
            case _:
                reply = await self._engine.execute(Conclude([Claim(queue, id_, lease.token)]))
        try:
            job = reply.single()
        except LeaseLost as refusal:
            self.refused[refusal.code] += 1
        else:
            if job.state is JobState.CONCLUDED:
                self.concluded.append((queue, id_))

    # A caller who does everything once, beside two who do not care for him.

    async def errand(self) -> None:
        reply = await self._engine.execute(Enqueue("one", [NewJob("a")]))
        self.enqueued += [("one", job.id) for job in reply.jobs if isinstance(job, EnqueuedJob)]
        for _ in range(2):  # his own job, and then one that another produces
            dequeued = await self._engine.execute(Dequeue("one", wait_seconds=1, lease_seconds=0.5))
            self.fences += [(lease.job.queue, lease.job.fence) for lease in dequeued.leases]
            for lease in dequeued.leases:
                claim = Claim("one", lease.job.id, lease.token)
                self.concluded.append(("one", (await self._engine.execute(Conclude([claim]))).single().id))

    async def produce_later(self) -> None:
        await trio.sleep(0.5)
        reply = await self._engine.execute(Enqueue("one", [NewJob("a")]))
        self.enqueued += [("one", job.id) for job in reply.jobs if isinstance(job, EnqueuedJob)]

    async def wait_behind(self) -> None:
        await trio.sleep(0.25)
        dequeued = await self._engine.execute(Dequeue("one", wait_seconds=2, lease_seconds=0.5))
        self.fences += [(lease.job.queue, lease.job.fence) for lease in dequeued.leases]


def lives(store: FakeStore) -> dict[Key, list[Job]]:
    """The versions of each job, as they were stored, oldest first."""
    versions: dict[Key, list[Job]] = {}
    for change in store.changes:
        assert change.after is not None
        life = versions.setdefault((change.after.queue, change.after.id), [])
        assert change.before == (life[-1] if life else None)
        life.append(change.after)
    return versions


def leased(changes: list[Change]) -> Iterator[Job]:
    """Each job as it was when it was handed out."""
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.state is JobState.QUEUED and after.state is JobState.IN_PROGRESS:
            yield after


def check_leases(life: list[Job], late_seconds: float) -> None:
    """No lease ended before its time against its holder's will, and none began before the one before it had ended."""
    for before, after in pairwise(life):
        if before.state is JobState.IN_PROGRESS and after.stales > before.stales:
            assert before.lease_expires_at is not None
            ended_at = after.history[-1].ended_at
            assert -1e-6 <= ended_at - before.lease_expires_at <= late_seconds
        if after.state is JobState.IN_PROGRESS and before.state is not JobState.IN_PROGRESS:
            assert before.state is JobState.QUEUED
            assert after.fence > before.fence
            assert all(attempt.ended_at <= after.started_at for attempt in before.history)  # type: ignore[operator] # it was leased


def check_what_was_told(crowd: Crowd, store: FakeStore) -> None:
    """Who got an answer was carried out, and who was cancelled was not."""
    assert [change.revision for change in store.changes] == list(range(1, len(store.changes) + 1))
    assert sorted(lives(store)) == sorted(crowd.enqueued)
    assert sorted((job.queue, job.fence) for job in leased(store.changes)) == sorted(crowd.fences)
    assert concluded(store) == set(crowd.concluded)


def concluded(store: FakeStore) -> set[Key]:
    return {key for key, life in lives(store).items() if life[-1].state is JobState.CONCLUDED}


async def become_idle(engine: Engine) -> None:
    """Abandoned requests are dropped when their turn comes, and the sweeper may be at work."""
    with trio.fail_after(50 * COMMIT_SECONDS):
        while engine.statistics() != IDLE:  # noqa: ASYNC110 - a figure has no event
            await trio.sleep(COMMIT_SECONDS)


async def conclude_the_rest(engine: Engine, crowd: Crowd) -> None:
    """Whatever is left can be concluded as soon as the last lease has run out."""
    with trio.fail_after(max(LEASE_SECONDS) + STORMY.sweep_seconds + 1):
        for queue in QUEUES:
            while sum((await engine.execute(ReadQueue(queue))).counts.values()) > len(
                [key for key in crowd.concluded if key[0] == queue]
            ):
                for lease in (await engine.execute(Dequeue(queue, 100, wait_seconds=5))).leases:
                    (await engine.execute(Conclude([Claim(queue, lease.job.id, lease.token)]))).single()
                    crowd.concluded.append((queue, lease.job.id))


async def storm(settings: Settings, seed: int) -> Crowd:
    store = FakeStore()
    store.seconds = COMMIT_SECONDS
    settings = replace(STORMY, engine=settings.engine)
    async with open_engine(settings, clock=FakeClock(), store=store, secret=SECRET) as engine:
        for queue in QUEUES:
            await engine.execute(SetPolicy(queue, PATIENT))
        crowd = Crowd(engine, Random(seed))  # noqa: S311 - a storm that can be repeated
        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(crowd.caller)
        await become_idle(engine)
        check_what_was_told(crowd, store)
        await conclude_the_rest(engine, crowd)
        assert sorted(crowd.concluded) == sorted(crowd.enqueued)
        for life in lives(store).values():
            check_leases(life, settings.sweep_seconds + PAUSE_SECONDS_MIN + 2 * COMMIT_SECONDS)
    return crowd


@pytest.mark.parametrize("seed", range(4))
def test_callers_who_are_cancelled_at_random_lose_nothing_and_leave_nothing_behind(
    settings: Settings, seed: int
) -> None:
    crowd = in_seeded_virtual_time(seed, lambda: storm(settings, seed))
    # It was a storm.
    assert crowd.cancelled > 100
    assert len(crowd.fences) > 100
    assert crowd.refused["busy"] > 0


def test_a_storm_can_be_repeated(settings: Settings) -> None:
    first, second = (in_seeded_virtual_time(1, lambda: storm(settings, 1)) for _ in range(2))
    assert (first.enqueued, first.fences, first.cancelled) == (second.enqueued, second.fences, second.cancelled)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_that_ends_in_the_storm_has_answered_all_it_took(settings: Settings, seed: int) -> None:
    async def main() -> None:
        store = FakeStore()
        store.seconds = COMMIT_SECONDS
        async with trio.open_nursery() as nursery:
            async with open_engine(replace(STORMY, engine=settings.engine), store=store) as engine:
                crowd = Crowd(engine, Random(seed))  # noqa: S311 - a storm that can be repeated
                for _ in range(CALLERS):
                    nursery.start_soon(crowd.caller)
                await trio.sleep(0.05 * (1 + seed))
            ended_at = trio.current_time()
            assert engine.statistics() == IDLE
            stored = len(store.changes)
        assert len(store.changes) == stored
        assert ended_at <= 0.05 * (1 + seed) + CALLERS * COMMIT_SECONDS
        check_what_was_told(crowd, store)
        assert crowd.refused["draining"] > 0
        assert crowd.refused["outcome_unknown"] == 0

    in_seeded_virtual_time(seed, main)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_answered_before_the_store_failed_in_the_storm_was_stored(settings: Settings, seed: int) -> None:
    async def main() -> None:
        store = FakeStore()
        store.seconds = COMMIT_SECONDS
        async with trio.open_nursery() as nursery:
            with pytest.RaisesGroup(OSError, flatten_subgroups=True):
                async with open_engine(replace(STORMY, engine=settings.engine), store=store) as engine:
                    crowd = Crowd(engine, Random(seed))  # noqa: S311 - a storm that can be repeated
                    for _ in range(CALLERS):
                        nursery.start_soon(crowd.caller)
                    await trio.sleep(0.05 * (1 + seed))
                    store.failure = OSError("disk")
                    await trio.sleep_forever()
            assert trio.current_time() <= 0.05 * (1 + seed) + STORMY.sweep_seconds + FAREWELL_SECONDS + 0.1
        assert engine.statistics() == IDLE
        check_what_was_told(crowd, store)
        # Whether somebody's outcome is unknown is left open: the commit that failed may have been the timer's alone.
        assert crowd.refused["draining"] > 0

    in_seeded_virtual_time(seed, main)


# --- cancelled at each step of the scheduler, one after the other


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.steps_left = step
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.steps_left -= 1
        if self.steps_left == 0:
            self._scope.cancel()


@pytest.mark.parametrize("commit_seconds", [0.0, COMMIT_SECONDS])
def test_a_caller_may_be_cancelled_at_any_step(settings: Settings, commit_seconds: float) -> None:
    async def main() -> bool:
        """Whether the whole errand was done before the step came."""
        store = FakeStore()
        store.seconds = commit_seconds
        stormy = replace(STORMY, engine=settings.engine)
        async with open_engine(stormy, clock=FakeClock(), store=store, secret=SECRET) as engine:
            for queue in QUEUES:
                await engine.execute(SetPolicy(queue, PATIENT))
            crowd = Crowd(engine, Random(0))  # noqa: S311 - it draws nothing
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crowd.wait_behind)
                nursery.start_soon(crowd.produce_later)
                scope = trio.CancelScope()
                instrument = CancelAtStep(step, scope)
                trio.lowlevel.add_instrument(instrument)
                with scope:
                    await crowd.errand()
                done = instrument.steps_left > 0
                if done:
                    trio.lowlevel.remove_instrument(instrument)
            await become_idle(engine)
            check_what_was_told(crowd, store)
            await conclude_the_rest(engine, crowd)
        return done

    step, done = 0, False
    while not done:
        step += 1
        done = in_seeded_virtual_time(step, main)
    assert step > 20
