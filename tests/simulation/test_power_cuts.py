"""The store on a disk that loses power: what was acknowledged is there, and what was not is there wholly or not at all.

Clients made up by chance ask the state machine; each batch of their commands is committed and then acknowledged, until
the disk dies at a random operation, in the midst of a commit too, or of the recovery before. What the next life finds
must be the jobs as they were after one of the commits: after the last that was acknowledged, or the one under way.
"""

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from queue_actor import sqlite
from queue_actor.changes import Changes, Floors
from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Dequeue,
    Dequeued,
    Enqueue,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    NewJob,
    Pause,
    Redrive,
    Release,
    ReleaseClaim,
    RunNow,
    SetPolicy,
    Sweep,
    TakeBack,
)
from queue_actor.errors import QueueError
from queue_actor.jobs import JobError, JobOptions, Now, OnExisting, QueuePolicy, UniqueUntil
from queue_actor.rows import JOBS, job_of
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import StateMachine
from tests.fakes import EPOCH_SECONDS, SECRET
from tests.simulation.disk import CUTS, CUTS_SLOW, DeadError, Disk, Fault, Loss, chance

LIVES = 4  # of one disk
CRASHES = 0.3  # of the deaths: those that the machine survives
OPERATIONS = 400  # at most, until a life ends

SETTINGS = Settings(
    lease_seconds=5.0,
    retention_seconds=20.0,
    retention_jobs=8,
    dead_retention_seconds=30.0,
    dead_retention_jobs=4,
    queued_jobs_max=60,
    recent_jobs=3,
)

pytestmark = pytest.mark.virtual_time


@pytest.fixture(autouse=True)
def _the_log_is_emptied_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that deaths meet it."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 8 * 4_096)


Kept = dict[Any, Any]


def open_store(disk: Disk, durability: str) -> SqliteStore:
    """The real store, on this disk."""
    return SqliteStore(
        Path("/queue.db"),
        lambda path: disk.connect(str(path)),
        durability=durability,
        fresh_secret=SECRET,
        fresh_instance="first",
        run_in_thread=inline,
        room_bytes=lambda: inf,
    )


def kept_by(store: SqliteStore) -> Kept:
    """All that the file holds. Answers may hold refusals, which equal only themselves; their texts are compared."""
    recovered = store._read()
    rows = store._connection.execute(JOBS)
    jobs = [job_of(row) for row in rows]
    return {
        "floors": recovered.floors,
        **{("queue", queue.name): queue for queue in recovered.queues},
        **{("job", job.queue, job.id): job for job in jobs},
        **{("answer", record.kind, record.scope, record.key): repr(record) for record in recovered.answers},
    }


async def inline(work: Callable[[], Any]) -> Any:
    """A thread that is none, so that chance alone decides."""
    return work()


class LostError(AssertionError):
    """What was found is not what there was after any of the commits."""


class Reference:
    """What was committed, and what of it was acknowledged."""

    def __init__(self) -> None:
        self.kept: Kept = {"floors": Floors()}  # before the commits
        self.commits: list[Changes] = []
        self.acknowledged = 0  # of these; the one after them is under way

    def recover(self, found: Kept) -> int:
        """Go on from what was found; how many acknowledged commits are not there.

        Raises:
            LostError: It is not the state after any commit.
        """
        there = 0 if self.kept == found else None
        for n, changes in enumerate(self.commits, start=1):
            follow(self.kept, changes)
            if self.kept == found:
                there = n
        if there is None:
            raise LostError
        lost = max(0, self.acknowledged - there)
        self.kept, self.commits, self.acknowledged = found, [], 0
        return lost


def follow(kept: Kept, changes: Changes) -> None:
    """Bring what is kept up to date."""
    facts: list[tuple[Any, Any]] = []
    for change in changes.jobs:
        job = change.after or change.before
        assert job is not None
        facts.append((("job", job.queue, job.id), change.after))
    facts += [(("job", *key), None) for key in changes.pruned]
    facts += [(("queue", name), queue) for name, queue in changes.queues.items()]
    facts += [
        (("answer", record.kind, record.scope, record.key), record.answer and repr(record))
        for record in changes.answers
    ]
    if changes.floors is not None:
        kept["floors"] = changes.floors
    for key, fact in facts:
        if fact is None:
            kept.pop(key, None)
        else:
            kept[key] = fact


class Clients:
    """Producers, workers and operators, and the state machine that they ask."""

    def __init__(self, rng: Random, life: int) -> None:
        self.machine = StateMachine(SETTINGS, secret=SECRET)
        self.kept: Kept = {}
        self._rng = rng
        self._queues = "a", "b"
        self._claims: list[Claim] = []
        self._monotonic = 0.0
        self._life = life
        self._verbs: tuple[Callable[[str], Command[Any]], ...] = (
            *[self._enqueue] * 4,
            *[self._dequeue] * 4,
            *[lambda _: Conclude([self._claim(ConcludeClaim, result=self._text())])] * 3,
            *[lambda _: Fail([self._claim(FailClaim, error=JobError("E", "x" * 300), retry=self._rng.random() < 0.8)])]
            * 2,
            *[lambda _: Release([self._claim(ReleaseClaim, delay_seconds=self._rng.choice((0.0, 2.0)))])] * 2,
            lambda _: Extend([self._claim(ExtendClaim, lease_seconds=9.0, progress=self._text())]),
            *[lambda _: Sweep()] * 3,
            lambda queue: Cancel(queue, self._ids(queue)),
            lambda queue: Redrive(queue, self._ids(queue)),
            lambda queue: RunNow(queue, self._ids(queue)),
            lambda queue: TakeBack(queue, self._ids(queue)),
            lambda queue: Forget(queue, self._ids(queue)),
            lambda queue: Bulk(queue, self._rng.choice(tuple(BulkVerb)), JobFilter()),
            lambda queue: SetPolicy(queue, QueuePolicy(max_attempts=self._rng.randint(1, 4), ttl_seconds=30.0)),
            lambda queue: Pause(queue, self._rng.random() < 0.3),
            DeleteQueue,
        )

    @property
    def now(self) -> Now:
        return Now(self._monotonic, EPOCH_SECONDS + 1_000 * self._life + self._monotonic)

    def batch(self) -> Changes:
        """Some commands at once, and what they changed."""
        self._monotonic += self._rng.choice((0.0, 0.1, 1.0, 6.0))
        now = self.now
        for _ in range(self._rng.randint(1, 4)):
            try:
                reply = self.machine.apply(self._rng.choice(self._verbs)(self._rng.choice(self._queues)), now)
            except QueueError:
                continue
            if isinstance(reply, Dequeued):
                self._claims += [Claim(lease.job.queue, lease.job.id, lease.token) for lease in reply.leases]
        changes = self.machine.take_changes()
        follow(self.kept, changes)
        return changes

    def _text(self) -> bytes | None:
        """A JSON text; some take more than a page."""
        length = self._rng.choice((None, 5, 300, 9_000))
        return None if length is None else b'"' + b"x" * length + b'"'

    def _ids(self, queue: str) -> Sequence[int]:
        """Jobs that are there, or were."""
        last = max((key[2] for key in self.kept if key[0] == "job" and key[1] == queue), default=1)
        return [self._rng.randint(1, last) for _ in range(3)]

    def _claim(self, kind: type[Any], **facts: Any) -> Any:
        """One of the last leases, held or not."""
        claim = self._rng.choice(self._claims[-6:] or [Claim(self._queues[0], 1)])
        return kind(claim.queue, claim.id, claim.token, **facts)

    def _enqueue(self, queue: str) -> Enqueue:
        key = self._rng.choice((None, None, *"123456"))
        jobs = [self._new_job() for _ in range(self._rng.choice((1, 1, 3, 10)))]
        return Enqueue(queue, jobs, None if key is None else IdempotencyKey("s", key, b"1"))

    def _new_job(self) -> NewJob:
        rng = self._rng
        options = JobOptions(
            max_attempts=rng.choice((None, 1, 3)),
            unique_key=rng.choice((None, None, "k1", "k2")),
            unique_until=rng.choice(tuple(UniqueUntil)),
            meta=rng.choice((None, {"tenant": "é"})),
        )
        return NewJob(
            "t",
            self._text(),
            priority=rng.randint(-2, 2),
            delay_seconds=rng.choice((0.0, 0.0, 3.0)),
            ttl_seconds=rng.choice((None, 8.0)),
            options=options,
            on_existing=rng.choice(tuple(OnExisting)),
        )

    def _dequeue(self, queue: str) -> Dequeue:
        return Dequeue(queue, self._rng.randint(1, 4), consumer=self._rng.choice((None, "w1")))


class World:
    """A disk, and one life of the server after the other on it."""

    def __init__(self, rng: Random, durability: str = "full") -> None:
        self.disk = Disk()
        self.reference = Reference()
        self.lost = 0  # acknowledged commits
        self.lives = 0
        self._rng = rng
        self._durability = durability

    async def open(self) -> tuple[SqliteStore, Clients]:
        """Begin a life: recover, and compare what there is with what was acknowledged."""
        self.lives += 1
        store = open_store(self.disk, self._durability)
        if self._durability == "off":  # which the store does not offer
            store._connection.execute("PRAGMA synchronous = OFF")
        clients = Clients(self._rng, self.lives)
        assert await store.recover(lambda recovered: clients.machine.restore(recovered, clients.now))
        # Only now anyone may be told of it: what is found before may be in the kernel alone.
        clients.kept = kept_by(store)
        self.lost += self.reference.recover(dict(clients.kept))
        clients.machine.start_leases(clients.now)
        return store, clients

    async def live(self, commits: int) -> None:
        """Serve until so many commits are acknowledged, or the disk will not go on.

        Raises:
            DeadError: The disk died.
            apsw.Error: It failed.
        """
        store, clients = await self.open()
        for _ in range(commits):
            self.reference.commits.append(clients.batch())
            await store.commit(self.reference.commits[-1])
            self.reference.acknowledged += 1


async def cut(rng: Random, loss: Loss, durability: str = "full") -> int:
    """Several lives, most ended by a power cut, some while they began; how many acknowledged commits were lost."""
    world = World(rng, durability)
    for _ in range(LIVES):
        world.disk.fail_at(rng.choice((rng.randint(1, 12), rng.randint(1, OPERATIONS))), Fault.DEATH)
        with pytest.raises(DeadError):
            await world.live(OPERATIONS)
        world.disk = world.disk.crash() if rng.random() < CRASHES else world.disk.power_cut(rng, loss)
    await world.open()
    world.disk = world.disk.power_cut(rng, loss)
    await world.open()
    return world.lost


async def cuts(times: int, durability: str) -> list[int]:
    """What was lost, by the seed."""
    losses = tuple(Loss)
    return [await cut(chance(seed), losses[seed % len(losses)], durability) for seed in range(times)]


async def test_a_power_cut_takes_nothing_that_was_acknowledged() -> None:
    assert not any(await cuts(CUTS, "full"))


@pytest.mark.slow
async def test_power_cuts_at_length_take_nothing_that_was_acknowledged() -> None:
    assert not any(await cuts(CUTS_SLOW, "full"))


async def test_without_a_sync_for_each_commit_a_power_cut_takes_only_the_last_ones() -> None:
    """What is found is the state after a commit, as always, or `Reference.recover` raises."""
    assert any(await cuts(CUTS, "normal"))


async def test_without_any_sync_the_loss_is_found() -> None:
    guilty = 0
    for seed in range(CUTS):
        try:
            guilty += await cut(chance(seed), Loss.SOME, "off") > 0
        except Exception:  # noqa: BLE001 - whatever a store says that finds torn pages
            guilty += 1
    assert guilty > CUTS // 2


async def test_the_death_of_the_process_takes_nothing_that_was_acknowledged() -> None:
    for seed in range(CUTS):
        world = World(rng := chance(seed), "normal")
        for _ in range(LIVES):
            world.disk.fail_at(rng.choice((rng.randint(1, 12), rng.randint(1, OPERATIONS))), Fault.DEATH)
            with pytest.raises(DeadError):
                await world.live(OPERATIONS)
            world.disk = world.disk.crash()
        await world.open()
        assert world.lost == 0


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.BROKEN, Fault.SHORT])
async def test_whichever_operation_fails_there_is_no_answer_and_nothing_acknowledged_is_lost(fault: Fault) -> None:
    """The first life fails, the second goes on from what there is, and then the power goes."""
    n = 0
    while True:
        n += 1
        world = World(rng := chance(1))
        world.disk.fail_at(n, fault)
        try:
            await world.live(12)
        except (apsw.FullError, apsw.IOError, apsw.CantOpenError):
            assert not world.disk.fault_is_due
        else:
            break
        world.disk = world.disk.crash()
        await world.live(3)
        world.disk = world.disk.power_cut(rng, Loss.SOME)
        await world.open()
        assert world.lost == 0
    assert world.disk.fault_is_due, "an operation failed, and nobody was told"
    assert n > 40
