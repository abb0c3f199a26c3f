"""The model again, beside a queue that is kept in the real store, and begins another life at any moment.

Every command goes through the durable engine, and what it changes is committed before it is answered; then the state
machine is thrown away, and another one goes on from the file. The model is told what a restart does.
"""

from collections import Counter
from collections.abc import Coroutine, Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec.structs import replace

from queue_actor.archive import Archive
from queue_actor.changes import Changes
from queue_actor.commands import Command, Dequeue, Dequeued, Enqueue, R, Sweep
from queue_actor.durable import Data, DurableEngine
from queue_actor.engine import Engine  # noqa: TC001 - as in the other files
from queue_actor.errors import QueueError
from queue_actor.jobs import FINISHED, HISTORY_ATTEMPTS_MAX, Change, Job, JobState
from queue_actor.queries import SCANNED_IDS_MAX
from queue_actor.rows import JOBS, job_of
from queue_actor.settings import Settings
from queue_actor.state_machine import BULK_JOBS_MAX, StateMachine
from queue_actor.statements import plan
from tests.contract.state import deadlines_of
from tests.opening import in_memory, open_backups, open_store
from tests.simulation.model import Key, Model, Refused
from tests.simulation.test_model import ModelMachine, builtins, kept_bytes, often, plain, rounded, run_examples

EXAMPLES = 100

TICKS = 1_024
"""Parts of a second in which time passes, so that differences between moments of one clock are those of the other."""


async def at_once(call: Any) -> Any:
    """A thread that is none."""
    return call()


def answer_of(coroutine: Coroutine[Any, Any, R]) -> R:
    """What comes of something that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("R", end.value)
    raise AssertionError("it waits")


def key_of(change: Change) -> Key:
    job = change.after or change.before
    assert job is not None
    return job.queue, job.id


class Within:
    """The engine within the durable one: a state machine, and a commit after each command."""

    def __init__(self, world: "DurableModelMachine", machine: StateMachine) -> None:
        self._world = world
        self._machine = machine

    async def execute(self, command: Command[R]) -> R:
        try:
            return self._machine.apply(command, self._world.now)
        finally:
            self._world.commit(self._machine.take_changes())


class DurableModelMachine(ModelMachine):
    """Two queues, one of them in a file."""

    def make(self, world: Settings) -> None:
        # Limits that count what is in memory, or that slices are cut by, are met without a store.
        self.settings = replace(
            world,
            data="in memory",
            memory_bytes_max=10**9,
            sweep_slice=1_000,
            sweep_seconds=0.0,
            retention_jobs=1_000,
            dead_retention_jobs=1_000,
            idempotency_keys_max=1_000,
            recent_jobs=1 if world.sweep_slice == 1 else world.sweep_slice - 1,
        )
        self.model = Model(
            self.settings,
            bulk_jobs_max=BULK_JOBS_MAX,
            scanned_ids_max=SCANNED_IDS_MAX,
            history_attempts_max=HISTORY_ATTEMPTS_MAX,
        )
        self.connect = in_memory()
        self.open = self.connect(Path("none"))
        self.taken: list[Changes] = []
        self.begin_life()

    def begin_life(self) -> None:
        """Go on from the file."""
        self.store = open_store(self.connect, run_in_thread=at_once)
        self.archive = Archive(Path("none"), self.connect, at_once)
        machine = self.machine = StateMachine(self.settings, secret=self.store.secret)
        assert answer_of(self.store.recover(lambda recovered: machine.restore(recovered, self.now)))
        machine.start_leases(self.now)
        self.commit(machine.take_changes())
        data = Data(self.store, self.archive, open_backups(self.connect))
        self.engine = DurableEngine(self.settings, data, lambda: self.now, lambda _: cast("Engine", None))
        self.engine._engine = cast("Engine", Within(self, machine))

    def end_life(self) -> None:
        self.archive.close()
        self.store.close()

    def commit(self, changes: Changes) -> None:
        if changes:
            self.store._write(plan(changes)[0])
            self.taken.append(changes)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "open"):
            self.end_life()
            self.open.close()

    # --- one command, on both sides

    def do(self, command: Command[Any]) -> Any:
        self.agreed = False
        self.model.now = self.now
        available = [name for name in self.model.queues if self.model.available(name)]
        try:
            reply: Any = answer_of(self.engine.execute(command))
        except QueueError as refusal:
            reply = refusal
        readied = set(self.machine.take_readied())
        drawn = self.follow_all()
        if isinstance(reply, Dequeued):
            self.take_leases(reply)
        try:
            expected: Any = self.model.apply(command, self.now, drawn)
        except Refused as refusal:
            expected = refusal.code, refusal.field
        if isinstance(command, Sweep):  # which leaves jobs to the store, too
            for facts in (expected, said := builtins(reply)):
                del facts["more"]
            assert said == expected
        else:
            assert plain(reply) == rounded(expected)
        now_available = [name for name in self.model.queues if self.model.available(name)]
        assert readied.issuperset(set(now_available) - set(available)), "nobody was told that there are jobs"
        if isinstance(command, Enqueue | Dequeue) and command.key is not None:
            self.under_keys.append(command)
        self.compare()
        self.agreed = True
        return reply

    def follow_all(self) -> dict[Key, list[float]]:
        """Note what was committed since the last call."""
        drawn: dict[Key, list[float]] = {}
        for changes in self.taken:
            for key, moments in self.follow(changes.jobs).items():
                drawn.setdefault(key, []).extend(moments)
            for key in changes.pruned:
                assert self.known.pop(key).state in FINISHED
        self.taken = []
        return drawn

    def follow(self, changes: Sequence[Change]) -> dict[Key, list[float]]:
        drawn: dict[Key, list[float]] = {}
        for change in changes:
            before = change.before
            if before is not None:  # it may have been read back, and is the same by value alone
                assert before == self.known[before.queue, before.id]
                self.known[before.queue, before.id] = before
            # What only the store had is forgotten by revisions that no change tells of.
            assert change.revision > self.revision
            self.revision = change.revision - 1
            for key, moments in super().follow([change]).items():
                drawn.setdefault(key, []).extend(moments)
        return drawn

    # --- what is checked after each command

    def compare(self) -> None:
        model, books = self.model, self.machine._ledger
        jobs = {(job["queue"], job["id"]): job for job in model.all_jobs()}
        assert {key: builtins(job) for key, job in self.known.items()} == jobs
        assert books._revision == model.revision
        held: dict[Key, Job] = {
            (name, id_): job for name, queue in books.queues.items() for id_, job in queue.jobs.items()
        }
        assert {key: self.known[key] for key in held} == held
        assert [key for key, job in self.known.items() if job.state not in FINISHED and key not in held] == []
        assert books.kept_bytes == sum(kept_bytes(job) for job in held.values())
        assert set(books.recent or ()) == {key for key, job in held.items() if job.state in FINISHED}
        ended = {**deadlines_of(books.kept), **deadlines_of(books.dead)}
        assert ended == {key: model.kept_until[key] for key in books.recent or ()}
        assert deadlines_of(books.leases) == model.lease_ends
        assert books.run_ends == model.run_ends
        assert self.machine.next_due_seconds(self.now) == model.next_due_seconds()
        assert books.counts == {**dict.fromkeys(JobState, 0), **Counter(job.state for job in self.known.values())}
        assert books.queues.keys() == model.queues.keys()
        for name, queue in books.queues.items():
            facts = model.queues[name]
            own = [job.state for job in self.known.values() if job.queue == name]
            assert queue.counts == {**dict.fromkeys(JobState, 0), **Counter(own)}
            assert (queue.next_id, queue.next_fence) == (facts["next_id"], facts["next_fence"])
            assert (queue.paused, queue.declared) == (facts["paused"], facts["declared"])
            assert not queue.jobs or min(queue.jobs) >= queue.first_id
            order = [queue.jobs[job["id"]] for job in model.in_order(facts)]
            assert len(queue.ready) == len(order)
            assert [queue.ready.ahead(job.priority, job.place) for job in order] == list(range(len(order)))
            keys = {job["options"]["unique_key"] for job in facts["jobs"]} - {None}
            holders = {key: model.holder(facts, key) for key in keys}
            assert queue.unique == {key: job["id"] for key, job in holders.items() if job is not None}

    def stored(self) -> dict[Key, Job]:
        return {(job.queue, job.id): job for job in map(job_of, self.open.execute(JOBS).fetchall())}

    # --- restarts

    @rule(seconds=often(0.0, 1.0, 4.0))
    def another_life(self, seconds: float) -> None:
        """The process is gone, and some time later there is another one."""
        assert self.stored() == self.known
        self.end_life()
        self.time_passes(seconds)
        self.begin_life()
        self.tell_model()
        self.follow_all()
        self.compare()
        assert self.stored() == self.known
        payloads = "SELECT count(*) FROM large_payloads LEFT JOIN jobs USING (queue, id) WHERE state IS NULL"
        assert self.open.execute(payloads).fetchone() == (0,)

    def tell_model(self) -> None:
        """Leases begin again, and what is not about jobs is forgotten."""
        model = self.model
        model.now = self.now
        model.services = 0
        model.run_ends = {}
        # In whatever order they were read; each once, or the comparison fails.
        leased = {(job["queue"], job["id"]): job for job in model.all_jobs("in_progress")}
        for key in [key_of(change) for changes in self.taken for change in changes.jobs]:
            job = leased[key]
            most = model.queues[job["queue"]]["policy"]["run_seconds_max"]
            if most is not None:
                model.run_ends[key] = self.monotonic + most
            model.lease_ends[key] = self.monotonic + job["lease_seconds"]
            model.move(job, "extend", "in_progress", lease_expires_at=self.wall + job["lease_seconds"])
        for queue in model.queues.values():
            live = [job["place"] for job in queue["jobs"] if job["state"] not in FINISHED]
            fence = max(queue["next_fence"], model.first_fence, floor(self.wall * 1_000_000))
            queue.update(events=[], seen={}, served=0, dequeues=0, next_fence=fence)
            queue["next_place"] = max(live, default=0) + 1

    # --- time

    @rule(seconds=st.sampled_from((0.25, 1.0, 3.0, 3.0, 8.0, 20.0, 61.0, 601.0)))
    def time_passes(self, seconds: float) -> None:
        super().time_passes(ceil(seconds * TICKS) / TICKS)

    def the_wall_clock_is_set(self, seconds: float) -> None:
        """Not here: what the store alone has is kept by the wall clock, and the rest by the other."""


def test_the_durable_queue_does_what_the_model_does_from_one_life_to_the_next() -> None:
    run_examples(EXAMPLES, DurableModelMachine)
