"""Bugs that somebody might make, each a small patch of the real code: the simulation has to find every one.

They test the simulation, not the queue. One that is not found says what the clients never do, what the faults never
hit, or what nobody checks; then that is mended, and the bug stays.

To add one: a function that patches what it has to in the stack it is given, with `@plant`. Its docstring says what is
wrong then.
"""

import builtins
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import apsw
import trio
from msgspec.structs import replace

from queue_actor import recovery, sqlite, state_machine, statements
from queue_actor.actor import ActorEngine
from queue_actor.changes import Changes, Recovered
from queue_actor.commands import IdempotencyKey, ReadJob
from queue_actor.deadlines import Deadlines
from queue_actor.engine import Request
from queue_actor.idempotency import Answers
from queue_actor.jobs import WAITING, Job, JobState, Now, is_expired
from queue_actor.ledger import Ledger
from queue_actor.queues import Queue
from queue_actor.ready import Ready, ReadyArray
from queue_actor.retention import Retention
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import Tokens
from queue_actor.waiters import Waiters
from tests.simulation.disk import DeadError

Bug = Callable[[ExitStack], None]

BUGS: dict[str, Bug] = {}


def plant(bug: Bug) -> Bug:
    """Have a bug in the list, by its name."""
    BUGS[bug.__name__] = bug
    return bug


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code has this bug inside the block."""
    with ExitStack() as stack:
        BUGS[name](stack)
        yield


def swap(stack: ExitStack, owner: Any, name: str, new: Any, **how: Any) -> None:
    """Put something in the place of something, until the block ends."""
    stack.enter_context(mock.patch.object(owner, name, new, **how))


def around(stack: ExitStack, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Put a function in the place of another, which it is given first."""
    original = getattr(owner, name)

    def patched(*arguments: Any, **named: Any) -> Any:
        return wrapper(original, *arguments, **named)

    swap(stack, owner, name, patched)


# --- the store


@plant
def answered_before_the_commit(stack: ExitStack) -> None:
    """The commit is only begun."""

    async def write(store: SqliteStore, rows: Any) -> None:
        with suppress(DeadError, apsw.Error):
            await store._run_in_thread(lambda: store._write(rows))

    async def commit(self: SqliteStore, changes: Changes) -> None:
        if changes:
            trio.lowlevel.spawn_system_task(write, self, statements.plan(changes)[0])

    swap(stack, SqliteStore, "commit", commit)


@plant
def commit_error_swallowed(stack: ExitStack) -> None:
    """A commit that fails counts as one that did not."""

    async def commit(original: Any, self: SqliteStore, changes: Changes) -> None:
        with suppress(apsw.Error):
            await original(self, changes)

    around(stack, SqliteStore, "commit", commit)


@plant
def write_error_swallowed(stack: ExitStack) -> None:
    """The same, where it is written."""

    def write(original: Any, self: SqliteStore, rows: Any) -> None:
        with suppress(apsw.Error):
            original(self, rows)

    around(stack, SqliteStore, "_write", write)


@plant
def commit_without_a_sync(stack: ExitStack) -> None:
    """SQLite is told to leave it to the system when the log is written."""

    def set_up(original: Any, self: SqliteStore, secret: bytes, instance: str) -> None:
        original(self, secret, instance)
        self._connection.execute("PRAGMA synchronous = OFF")

    around(stack, SqliteStore, "_set_up", set_up)


@plant
def conclude_not_stored(stack: ExitStack) -> None:
    """A concluded job comes back after a restart."""

    def plan(original: Any, changes: Changes) -> Any:
        return original(replace(changes, jobs=[change for change in changes.jobs if change.verb != "conclude"]))

    around(stack, sqlite, "plan", plan)


@plant
def deleted_rows_stay(stack: ExitStack) -> None:
    """A job that is forgotten comes back after a restart."""
    swap(stack, statements, "_delete", lambda *_: ())


@plant
def change_not_told(stack: ExitStack) -> None:
    """The store is not told of a job that is made ready early."""

    def take_changes(original: Any, self: Ledger) -> Changes:
        changes: Changes = original(self)
        return replace(changes, jobs=[change for change in changes.jobs if change.verb != "run"])

    around(stack, Ledger, "take_changes", take_changes)


@plant
def policy_not_committed(stack: ExitStack) -> None:
    """A queue's new policy is not what the store has to be told of."""

    def set_policy(original: Any, self: StateMachine, command: Any, now: Now) -> Any:
        touched = set(self._ledger._touched)
        view = original(self, command, now)
        self._ledger._touched = touched
        return view

    around(stack, StateMachine, "_set_policy", set_policy)


@plant
def checkpoint_error_swallowed(stack: ExitStack) -> None:
    """The log is taken for moved when it was not."""

    def move_log(original: Any, self: SqliteStore) -> None:
        with suppress(apsw.Error):
            original(self)

    around(stack, SqliteStore, "_move_log", move_log)


@plant
def start_makes_nothing_safe(stack: ExitStack) -> None:
    """What a killed process wrote and never flushed is served, and the power goes."""
    swap(stack, SqliteStore, "_make_safe", lambda _: None)


# --- recovery


def after_recovery(stack: ExitStack, spoil: Callable[[Ledger], None]) -> None:
    def restore(original: Any, ledger: Ledger, recovered: Recovered, now: Now) -> Any:
        leased = original(ledger, recovered, now)
        spoil(ledger)
        return leased

    around(stack, state_machine, "restore", restore)


@plant
def fence_reset_by_a_crash(stack: ExitStack) -> None:
    """Fences begin anew in each life."""

    def spoil(ledger: Ledger) -> None:
        for queue in ledger.queues.values():
            queue.next_fence = 1

    after_recovery(stack, spoil)


@plant
def ids_reset_by_a_crash(stack: ExitStack) -> None:
    """Ids go on from the last job that has not ended."""

    def spoil(ledger: Ledger) -> None:
        for queue in ledger.queues.values():
            queue.next_id = 1 + max(queue.jobs, default=0)

    after_recovery(stack, spoil)


@plant
def recovery_forgets_that_a_queue_is_paused(stack: ExitStack) -> None:
    """A queue is not paused any more."""

    def spoil(ledger: Ledger) -> None:
        for queue in ledger.queues.values():
            queue.paused = False

    after_recovery(stack, spoil)


@plant
def recovery_forgets_scheduled_jobs(stack: ExitStack) -> None:
    """What waits for its time is not read."""

    def restore_job(original: Any, ledger: Ledger, queue: Queue, job: Job, now: Now) -> None:
        if job.state is not JobState.SCHEDULED:
            original(ledger, queue, job, now)

    around(stack, recovery, "_restore_job", restore_job)


@plant
def recovery_forgets_unique_keys(stack: ExitStack) -> None:
    """Two jobs may have one."""

    def spoil(ledger: Ledger) -> None:
        for queue in ledger.queues.values():
            queue.unique.clear()

    after_recovery(stack, spoil)


@plant
def recovery_restores_the_order_by_id(stack: ExitStack) -> None:
    """Who came back in front of others stands behind them after a restart."""

    def by_id(jobs: Iterable[Job], **_: Any) -> list[Job]:
        return builtins.sorted(jobs, key=lambda job: job.id)

    swap(stack, recovery, "sorted", by_id, create=True)


@plant
def lease_not_restarted_at_full_length(stack: ExitStack) -> None:
    """After a restart a lease has what was left of it."""

    def restart_lease(original: Any, self: Ledger, queue: Queue, job: Job, now: Now) -> None:
        original(self, queue, job, now)
        assert job.lease_expires_at is not None
        self.leases.set(queue.name, job.id, now.monotonic + job.lease_expires_at - now.wall)

    around(stack, Ledger, "restart_lease", restart_lease)


@plant
def answers_forgotten_by_a_restart(stack: ExitStack) -> None:
    """What was answered under a key is done again after a restart."""

    def restore(original: Any, self: StateMachine, recovered: Recovered, now: Now) -> None:
        original(self, replace(recovered, answers=()), now)

    around(stack, StateMachine, "restore", restore)


# --- leases


@plant
def fence_not_checked(stack: ExitStack) -> None:
    """Any token of a job holds it."""

    def proves(self: Tokens, token: str, queue: str, id_: int, _fence: int) -> bool:
        return self.fence(queue, id_, token) is not None

    swap(stack, Tokens, "proves", proves)


@plant
def token_not_checked(stack: ExitStack) -> None:
    """Whoever shows a token is believed."""
    swap(stack, Tokens, "proves", lambda *_: True)


@plant
def fence_stands_still(stack: ExitStack) -> None:
    """A lease has the fence of the one before."""

    def lease(original: Any, self: Ledger, queue: Queue, *arguments: Any, **named: Any) -> list[Job]:
        leased: list[Job] = original(self, queue, *arguments, **named)
        queue.next_fence -= leased[-1].id % 7 == 0
        return leased

    around(stack, Ledger, "lease", lease)


@plant
def holder_refused_after_an_extend(stack: ExitStack) -> None:
    """A repeat of what ended the attempt is not known again."""

    def fence(original: Any, self: Tokens, queue: str, id_: int, token: str) -> int | None:
        found: int | None = original(self, queue, id_, token)
        return None if found is None or id_ % 5 == 0 else found

    around(stack, Tokens, "fence", fence)


@plant
def extend_moves_no_deadline(stack: ExitStack) -> None:
    """Who asks for more time is told that he has it."""

    def extend(original: Any, self: StateMachine, claim: Any, now: Now) -> Job:
        queue, job, _ = self._held(claim, None)
        ends = self._ledger.leases[queue.name, job.id]
        extended: Job = original(self, claim, now)
        self._ledger.leases.set(queue.name, job.id, ends)
        return extended

    around(stack, StateMachine, "_extend_one", extend)


# --- time


@plant
def swept_twice(stack: ExitStack) -> None:
    """A lease that has ended brings its job back twice."""

    def return_stale(original: Any, self: StateMachine, now: Now, name: str, id_: int) -> None:
        original(self, now, name, id_)
        job = self._queues[name].jobs[id_]
        if job.state is JobState.QUEUED and job.stales == 1:
            self._ledger.queues[name].ready.put_back(job.priority, job.place + 1, id_)

    around(stack, StateMachine, "_return_stale", return_stale)


@plant
def swept_too_early(stack: ExitStack) -> None:
    """A lease ends a moment before its time."""

    def sweep(original: Any, self: StateMachine, command: Any, now: Now) -> Any:
        return original(self, command, Now(now.monotonic + 0.2, now.wall))

    around(stack, StateMachine, "_sweep", sweep)


@plant
def sweep_forgets_a_lease(stack: ExitStack) -> None:
    """One deadline gets lost when they are carried over."""

    def carry_over(original: Any, self: Deadlines) -> None:
        original(self)
        if len(self._old) > 1:
            self._old.pop()

    around(stack, Deadlines, "_carry_over", carry_over)


@plant
def ttl_ignored_in_line(stack: ExitStack) -> None:
    """What has expired since the last sweep is handed out."""

    def lease_from(original: Any, self: StateMachine, *arguments: Any) -> None:
        *rest, now = arguments
        original(self, *rest, Now(now.monotonic, now.wall - 0.3))

    around(stack, StateMachine, "_lease_from", lease_from)


@plant
def ttl_starts_again_with_each_return(stack: ExitStack) -> None:
    """A job that comes back is not looked at again for its ttl."""

    def give_back(original: Any, self: Ledger, queue: Queue, job: Job, *arguments: Any, **named: Any) -> Job:
        moved: Job = original(self, queue, job, *arguments, **named)
        if moved.state is JobState.QUEUED and moved.expires_at is not None:
            self.expiries.clear(queue.name, job.id)
        return moved

    around(stack, Ledger, "give_back", give_back)


@plant
def stale_not_counted(stack: ExitStack) -> None:
    """A job that kills its workers never dies."""

    def give_back(original: Any, self: Ledger, *arguments: Any, **facts: Any) -> Job:
        facts.pop("stales", None)
        back: Job = original(self, *arguments, **facts)
        return back

    around(stack, Ledger, "give_back", give_back)


@plant
def retry_counted_twice(stack: ExitStack) -> None:
    """A job is dead one attempt too soon."""

    def is_spent(original: Any, self: StateMachine, queue: Queue, job: Job, tries: int) -> bool:
        spent: bool = original(self, queue, job, tries + 1)
        return spent

    around(stack, StateMachine, "_is_spent", is_spent)


# --- order


@plant
def compaction_off_by_one(stack: ExitStack) -> None:
    """The last job falls off the array that is moved."""

    def compact_step(original: Any, self: ReadyArray) -> None:
        before = self.compactions
        original(self)
        if self.compactions > before and self._tail > self._read + 1:
            self._tail -= 1

    around(stack, ReadyArray, "_compact_step", compact_step)


@plant
def tombstone_resurrected(stack: ExitStack) -> None:
    """A cancelled job keeps its slot."""

    def remove(original: Any, self: ReadyArray, place: int) -> None:
        slot = self._slot(place)
        id_ = 0 if slot is None else self._ids[slot]
        original(self, place)
        assert slot is not None
        self._ids[slot] = id_

    around(stack, ReadyArray, "remove", remove)


@plant
def dequeue_between_compaction_steps(stack: ExitStack) -> None:
    """While the array is moved, the head is taken from the wrong run."""

    def take(original: Any, self: ReadyArray, count: int) -> None:
        head = self._head
        original(self, count)
        if self._write and self._head != head:
            self._head, self._read = head, self._read + count

    around(stack, ReadyArray, "take", take)


@plant
def returned_job_loses_its_place(stack: ExitStack) -> None:
    """It goes to the back of the line."""

    def give_back(original: Any, self: Ledger, queue: Queue, *arguments: Any, **facts: Any) -> Job:
        job, verb, now = arguments
        if job.cancel_requested or is_expired(job, now) or job.expires_at is not None:
            back: Job = original(self, queue, *arguments, **facts)
            return back
        return self.make_ready(queue, job, verb, now, **facts)

    around(stack, Ledger, "give_back", give_back)


@plant
def returned_jobs_go_first_always(stack: ExitStack) -> None:
    """Whoever came back goes before all others of his priority."""
    swap(stack, Ready, "_returned_goes_first", staticmethod(lambda _band, _place: True))


# --- keys


@plant
def unique_key_leaks(stack: ExitStack) -> None:
    """A job that is cancelled in line keeps its key."""

    def free_unique_key(original: Any, self: Ledger, queue: Queue, job: Job) -> None:
        if job.state is not JobState.QUEUED:
            original(self, queue, job)

    around(stack, Ledger, "free_unique_key", free_unique_key)


@plant
def unique_key_freed_too_early(stack: ExitStack) -> None:
    """Every job gives its key back when it starts."""

    def lease(original: Any, self: Ledger, queue: Queue, jobs: list[Job], *arguments: Any, **named: Any) -> list[Job]:
        for job in jobs:
            self.free_unique_key(queue, job)
        leased: list[Job] = original(self, queue, jobs, *arguments, **named)
        return leased

    around(stack, Ledger, "lease", lease)


@plant
def idempotency_key_not_checked_against_the_body(stack: ExitStack) -> None:
    """Another request under the same key gets the answer of the first."""

    def find(original: Any, self: Answers[Any], key: IdempotencyKey, now: Now) -> Any:
        known = self._answers.get((key.scope, key.key))
        return original(self, key if known is None else replace(key, fingerprint=known[1]), now)

    around(stack, Answers, "find", find)


@plant
def answer_not_remembered_of_a_batch(stack: ExitStack) -> None:
    """An enqueue of several jobs is carried out again when it is repeated."""

    def remember(original: Any, self: Answers[Any], *arguments: Any) -> None:
        if arguments[2] == 1:  # jobs
            original(self, *arguments)

    around(stack, Answers, "remember", remember)


# --- operators


@plant
def purge_races_a_lease(stack: ExitStack) -> None:
    """A purge takes what is being worked on."""
    swap(stack, state_machine, "WAITING", WAITING | {JobState.IN_PROGRESS})


@plant
def counter_drifts_on_cancel(stack: ExitStack) -> None:
    """A cancelled job is counted twice."""

    def cancel_one(original: Any, self: StateMachine, queue: Queue, job: Job, now: Now) -> Job:
        cancelled: Job = original(self, queue, job, now)
        queue.counts[JobState.CANCELLED] += cancelled.state is JobState.CANCELLED
        return cancelled

    around(stack, StateMachine, "_cancel_one", cancel_one)


@plant
def deleted_queue_leaves_no_floor(stack: ExitStack) -> None:
    """The ids of a deleted queue are given again by its successor."""

    def delete_queue(original: Any, self: Ledger, queue: Queue) -> None:
        floor = self._id_floor
        original(self, queue)
        self._id_floor = floor

    around(stack, Ledger, "delete_queue", delete_queue)


@plant
def wish_to_cancel_forgotten(stack: ExitStack) -> None:
    """A job whose cancel was asked for while it ran goes on when it comes back."""

    def give_back(original: Any, self: Ledger, queue: Queue, job: Job, *arguments: Any, **facts: Any) -> Job:
        back: Job = original(self, queue, replace(job, cancel_requested=False), *arguments, **facts)
        return back

    around(stack, Ledger, "give_back", give_back)


@plant
def recalled_job_out_of_date(stack: ExitStack) -> None:
    """What was read of the store is believed, however much has happened since."""
    swap(stack, Retention, "_is_current", lambda self, name, _departures: name in self._ledger.queues)


# --- waiters


@plant
def paused_queue_serves_waiters(stack: ExitStack) -> None:
    """Who waits gets the jobs of a queue that is paused."""

    def serve(original: Any, self: Waiters, machine: StateMachine, queues: Iterable[str], now: Now) -> Iterator[Any]:
        for name in queues:
            queue = machine._queues.get(name)
            if queue is None:
                continue
            paused, queue.paused = queue.paused, False
            yield from original(self, machine, [name], now)
            queue.paused = paused

    around(stack, Waiters, "serve", serve)


@plant
def resume_forgets_who_waits(stack: ExitStack) -> None:
    """They are told of the next job, and not of those that are there."""

    def pause(original: Any, self: StateMachine, command: Any, now: Now) -> Any:
        before = set(self._ledger._readied)
        view = original(self, command, now)
        if command.queue not in before:
            self._ledger._readied.pop(command.queue, None)
        return view

    around(stack, StateMachine, "_pause", pause)


@plant
def waiter_leaked(stack: ExitStack) -> None:
    """A reader who has left stays in line."""

    def discard(original: Any, self: Waiters, request: Request[Any]) -> None:
        if not isinstance(request.command, ReadJob) or request.decided:
            original(self, request)

    around(stack, Waiters, "discard", discard)


@plant
def youngest_waiter_first(stack: ExitStack) -> None:
    """Who came last is served first."""

    def oldest(self: Waiters, queue: str) -> Any:
        parked = [waiter for line in self._lines_of(queue) for waiter in line.values()]
        return max(parked, key=lambda waiter: waiter.number, default=None)

    swap(stack, Waiters, "_oldest", oldest)


@plant
def dead_caller_served(stack: ExitStack) -> None:
    """What a client asked for who has left is done all the same."""

    def abandon(self: Request[Any], _raise_cancel: Any) -> trio.lowlevel.Abort:
        if self.decided:
            return trio.lowlevel.Abort.FAILED
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    swap(stack, Request, "_abandon", abandon)


@plant
def newcomer_passes_those_who_wait(stack: ExitStack) -> None:
    """A dequeue that has just arrived goes before parked ones."""

    def apply(original: Any, self: ActorEngine, request: Request[Any], now: Now) -> None:
        with mock.patch.object(self._waiters, "serve", return_value=()):
            original(self, request, now)

    around(stack, ActorEngine, "_apply", apply)


@plant
def reader_told_before_the_commit(stack: ExitStack) -> None:
    """A reader whose wait runs out is told what is on its way to the disk."""

    def tell(original: Any, self: Waiters, changes: Any) -> Any:
        told = list(original(self, changes))
        self.stored()
        return told

    around(stack, Waiters, "tell", tell)
