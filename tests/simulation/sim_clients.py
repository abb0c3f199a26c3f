"""Clients of the simulated server: they do what clients do, outlive it, and never wait for one another.

Each is a task with chance of its own, so that leaving one out leaves the others as they were. What they do to the queue
`plain` is noted as a history, which is checked as those of real processes are (`tests/process/history.py`): only
producers and workers touch it.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from math import inf
from random import Random
from typing import Any

import trio
from msgspec.structs import replace

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
    DequeueOrder,
    Enqueue,
    EnqueuedJob,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    Lease,
    NewJob,
    Pause,
    R,
    ReadJob,
    ReadPosition,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    RunNow,
    SetPolicy,
    TakeBack,
)
from queue_actor.errors import KeyReused, LimitReached, QueueError
from queue_actor.jobs import (
    FINISHED,
    Jitter,
    Job,
    JobError,
    JobOptions,
    JobState,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    UniqueUntil,
)
from tests.process import history
from tests.simulation.world import DownError, GoneError, World, random_of

PLAIN = "plain"
QUEUES = ("left", "mail:a", "mail:b", "mail:c")
"""Queues in which everything happens."""

PLAIN_POLICY = QueuePolicy(
    max_attempts=None, max_stale=None, retry=Retry(RetryKind.FIXED, base_seconds=0.05, jitter=Jitter.NONE)
)
RETRY = Retry(RetryKind.EXPONENTIAL, base_seconds=0.2, cap_seconds=1.0)

TRIES_MAX = 5
DRAIN_SECONDS = 20.0
"""Longest lease, longest delay, a sweep, and the work: all is done so soon after the last fault."""

DELAY_SECONDS_MAX = 10.0
"""Of a job in the drain. A clock that was set back, or the server's own retries, would have some wait for longer."""

READ_SLACK_SECONDS = 0.7
"""After the commit of a job's end, whoever waits for it has been told."""


class Client:
    """What all of them are."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng: Random = random_of(world.plan, name)
        self._keys = count(1)

    async def run(self) -> None:
        """Do so much, one after the other."""
        for _ in range(self.world.plan.commands):
            await trio.sleep(self.rng.expovariate(1 / 0.25))
            if not self.world.up.is_set() and self.rng.random() < 0.8:
                await self.world.up.wait()
            try:
                await self.act()
            except (QueueError, GoneError, DownError):
                continue

    async def act(self) -> None:
        """Do one thing.

        Raises:
            QueueError: It was refused.
            GoneError: There was no answer.
            DownError: Nobody listened.
        """
        raise NotImplementedError

    async def ask(self, command: Command[R], *, patience: float = inf) -> R:
        return await self.world.ask(self.name, command, patience=patience)

    async def persist(self, attempt: Callable[[], Awaitable[R]]) -> R:
        """Repeat until there is an answer, or it is enough."""
        for _ in range(TRIES_MAX):
            try:
                return await attempt()
            except (GoneError, DownError):
                if self.rng.random() < 0.2:
                    raise
                with trio.move_on_after(3):
                    await self.world.up.wait()
                await trio.sleep(self.rng.uniform(0.01, 0.3))
        raise GoneError

    def next_key(self) -> str:
        return f"{self.name}-{next(self._keys)}"

    def queue(self) -> str:
        return self.rng.choice(QUEUES)

    def ids(self, queue: str, *states: JobState) -> Sequence[int]:
        """Some jobs, mostly ones that are there in such a state."""
        kept = self.world.auditor.now_kept.jobs
        there = [id_ for (name, id_), job in kept.items() if name == queue and (not states or job.state in states)]
        if not there or self.rng.random() < 0.1:
            return [self.rng.randint(1, 30)]
        return self.rng.sample(there, min(len(there), self.rng.choice((1, 1, 2, 4))))


class Producer(Client):
    """Enqueues, on all queues."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._last: Enqueue | None = None

    async def act(self) -> None:
        if self.rng.random() < 0.3:
            await Plain(self).enqueue()
            return
        if self._last is not None and self.rng.random() < 0.12:
            await self._again(self._last)
            return
        command = Enqueue(self.queue(), [self._job() for _ in range(self.rng.choice((1, 1, 1, 2, 3, 8)))])
        if self.rng.random() < 0.6:
            command = Enqueue(command.queue, command.jobs, IdempotencyKey("s", self.next_key(), b"body"))
            self._last = command
            await self.persist(lambda: self.ask(Enqueue(command.queue, command.jobs, command.key)))
        else:
            await self.ask(command, patience=self.rng.choice((inf, inf, 0.002)))

    async def _again(self, last: Enqueue) -> None:
        """Repeat what is long done, or take its key for something else."""
        assert last.key is not None
        if self.rng.random() < 0.6:
            await self.ask(Enqueue(last.queue, last.jobs, last.key))
            return
        other = IdempotencyKey(last.key.scope, last.key.key, b"other")
        try:
            await self.ask(Enqueue(last.queue, [self._job()], other))
        except KeyReused:
            return
        except LimitReached:
            return
        self._last = None

    def _job(self) -> NewJob:
        rng = self.rng
        unique = rng.choice(("k1", "k2", "k3")) if rng.random() < 0.25 else None
        return NewJob(
            "work",
            payload(self.world, rng),
            priority=rng.choice((0, 0, 0, 1, 5, -1)),
            delay_seconds=rng.choice((0.0, 0.0, 0.0, 0.0, rng.uniform(0.1, 3.0))),
            ttl_seconds=rng.choice((None, None, None, None, rng.uniform(0.5, 6.0))),
            options=JobOptions(
                unique_key=unique,
                unique_until=rng.choice(tuple(UniqueUntil)),
                max_attempts=rng.choice((None, None, 1, 3)),
            ),
            on_existing=rng.choice(tuple(OnExisting)),
        )


def payload(world: World, rng: Random) -> bytes:
    """A number that is used once, sometimes with much behind it."""
    number = next(world.payloads)
    return b"%d" % number if rng.random() < 0.9 else b'[%d, "%s"]' % (number, b"x" * 1_500)


class Worker(Client):
    """Dequeues and works: well, badly, slowly, or not at all."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._late: list[tuple[Lease, float]] = []

    async def act(self) -> None:
        if self.rng.random() < 0.3:
            await Plain(self).work()
            return
        if self._late and self.rng.random() < 0.25:
            lease, _ = self._late.pop(self.rng.randrange(len(self._late)))
            await self._end(lease)
            return
        if self.rng.random() < 0.05:
            await self._forge()
            return
        for lease in (await self._dequeue()).leases:
            await self._work_on(lease)

    def _command(self) -> Dequeue:
        rng = self.rng
        named: str | tuple[str, ...] = rng.choice(
            (self.queue(), self.queue(), self.queue(), "mail:*", tuple(rng.sample(QUEUES, 2)))
        )
        return Dequeue(
            named,
            count=rng.choice((1, 1, 1, 2, 5)),
            consumer=self.name,
            lease_seconds=rng.choice((None, rng.uniform(0.3, 4.0))),
            wait_seconds=rng.choice((0.0, rng.uniform(0.1, 3.0), rng.uniform(0.1, 3.0))),
            order=rng.choice(tuple(DequeueOrder)),
        )

    async def _dequeue(self) -> Dequeued:
        command = self._command()
        if self.rng.random() < 0.25:
            key = IdempotencyKey("s", self.next_key(), b"body")
            patience = self.rng.choice((inf, self.rng.uniform(0.0, 2.0)))
            return await self.persist(lambda: self.ask(replace(command, key=key), patience=patience))
        patience = inf if self.rng.random() < 0.7 else self.rng.uniform(0.0, 2.0)
        return await self.ask(command, patience=patience)

    async def _work_on(self, lease: Lease) -> None:
        rng = self.rng
        mood = rng.random()
        if mood < 0.15:
            self._late.append((lease, trio.current_time()))
            return  # it says nothing more, or much later
        if mood < 0.25:
            await trio.sleep(lease.job.lease_seconds * rng.uniform(0.5, 1.3))
        elif mood < 0.35:
            seconds = rng.choice((None, rng.uniform(0.3, 3.0)))
            job = lease.job
            await self.ask(Extend([ExtendClaim(job.queue, job.id, lease.token, lease_seconds=seconds)]))
        await self._end(lease)

    async def _end(self, lease: Lease) -> None:
        rng, job = self.rng, lease.job
        facts = (job.queue, job.id, lease.token)
        command: Command[Any] = rng.choice(
            (
                *[Conclude([ConcludeClaim(*facts, result=rng.choice((None, b"1")))])] * 4,
                Fail([FailClaim(*facts, error=JobError("E", "x"), retry=rng.random() < 0.9)]),
                Fail([FailClaim(*facts, retry_after_seconds=rng.choice((0.0, 0.5)))]),
                Release([ReleaseClaim(*facts, delay_seconds=rng.choice((0.0, 0.0, 0.7)))]),
            )
        )
        make = type(command)
        claims = command.claims  # type: ignore[attr-defined] # all of these have them
        await self.persist(lambda: self.ask(make(claims)))
        if rng.random() < 0.1:
            await self.ask(make(claims))  # once more, though it was answered
        elif rng.random() < 0.1:
            self._late.append((lease, trio.current_time()))

    async def _forge(self) -> None:
        """Make up a token: of another job, or of nothing."""
        queue = self.queue()
        ids = self.ids(queue, JobState.IN_PROGRESS)
        token = self._late[-1][0].token if self._late else "0" * 46
        await self.ask(Conclude([ConcludeClaim(queue, ids[0], token)]))


class Reader(Client):
    """Looks, and waits for a job's end."""

    async def act(self) -> None:
        queue = self.queue()
        chosen = self.rng.random()
        if chosen < 0.3:
            await self.ask(ReadQueue(queue))
            return
        id_ = self.ids(queue, *(JobState.QUEUED, JobState.IN_PROGRESS, JobState.SCHEDULED) * (chosen > 0.4))[0]
        if chosen < 0.5:
            await self.ask(ReadPosition(queue, id_))
            return
        wait = self.rng.choice((0.0, self.rng.uniform(0.1, 4.0)))
        asked = trio.current_time()
        job = await self.ask(ReadJob(queue, id_, wait_seconds=wait))
        self._judge(job, wait, asked)

    def _judge(self, job: Job, wait: float, asked: float) -> None:
        auditor = self.world.auditor
        if job.state in FINISHED or not wait:
            return
        if trio.current_time() - asked < wait:
            if (job.queue, job.id) in auditor.acknowledged.jobs:
                auditor.violate("told_too_early", f"{self.name} waits for the end of job {job.id} of {job.queue}")
            return
        now = auditor.acknowledged.jobs.get((job.queue, job.id))
        if now is None or now.state not in FINISHED or now.finished_at is None:
            return
        ended = now.finished_at - self.world.clock.wall_ahead_seconds  # unless the clock was set
        undisturbed = self.world.disturbed_at < asked
        if undisturbed and asked + READ_SLACK_SECONDS < ended < asked + wait - READ_SLACK_SECONDS:
            auditor.violate("reader_starves", f"{self.name} was not told that job {job.id} of {job.queue} has ended")


class Operator(Client):
    """Pauses, purges, redrives, cancels, and changes policies under way."""

    async def act(self) -> None:
        rng, queue = self.rng, self.queue()
        states = frozenset(rng.sample(tuple(JobState), rng.randint(0, 2)))
        command: Command[Any] = rng.choice(
            (
                Pause(queue, rng.random() < 0.5),
                Pause(queue, paused=False),
                SetPolicy(queue, self._policy(), paused=rng.choice((None, None, False, True))),
                *[Cancel(queue, self.ids(queue))] * 3,
                *[Redrive(queue, self.ids(queue, JobState.DEAD, JobState.CANCELLED))] * 2,
                RunNow(queue, self.ids(queue, JobState.SCHEDULED)),
                TakeBack(queue, self.ids(queue, JobState.IN_PROGRESS)),
                Forget(queue, self.ids(queue, *FINISHED)),
                Bulk(queue, BulkVerb.REDRIVE, JobFilter(states), per_second=rng.choice((None, 5.0))),
                Bulk(queue, BulkVerb.RELEASE, JobFilter()),
                Bulk(queue, BulkVerb.PURGE, JobFilter(states)),
            )
        )
        if rng.random() < 0.06:
            await self.ask(Bulk(queue, BulkVerb.PURGE, JobFilter()))
            await self.ask(DeleteQueue(queue))
            return
        await self.ask(command, patience=rng.choice((inf, inf, 0.001)))

    def _policy(self) -> QueuePolicy:
        rng = self.rng
        return QueuePolicy(
            max_attempts=rng.choice((None, 2, 5)),
            max_stale=rng.choice((None, 1, 3)),
            retry=RETRY,
            ttl_seconds=rng.choice((None, None, 8.0)),
            in_progress_max=rng.choice((None, None, 1, 3)),
            oldest_every=rng.choice((0, 0, 2, 3)),
            run_seconds_max=rng.choice((None, None, 3.0)),
        )


class Plain:
    """What a client does to the queue whose history is kept."""

    def __init__(self, client: Client) -> None:
        self._client, self._world = client, client.world
        self._rng, self._name = client.rng, client.name

    async def _noted(self, command: Command[R], note: Callable[..., Any]) -> R:
        """Ask, and note the moments and what came of it."""
        called = trio.current_time()
        events = self._world.events
        try:
            reply = await self._client.ask(command)
        except GoneError:
            events.append(note(None, queue=PLAIN, called=called, client=self._name))
            raise
        except QueueError as refusal:
            moment = trio.current_time()
            events.append(
                note(None, queue=PLAIN, called=called, returned=moment, client=self._name, refused=refusal.code)
            )
            raise
        events.append(note(reply, queue=PLAIN, called=called, returned=trio.current_time(), client=self._name))
        return reply

    async def enqueue(self) -> None:
        jobs = [NewJob("work", payload(self._world, Random(0))) for _ in range(self._rng.choice((1, 1, 3)))]  # noqa: S311 - always a short one
        payloads = tuple(int(job.payload or b"0") for job in jobs)
        key = IdempotencyKey("s", self._client.next_key(), b"body")

        def note(reply: Any, **facts: Any) -> history.Enqueue:
            ids = () if reply is None else tuple(job.id for job in reply.jobs if isinstance(job, EnqueuedJob))
            return history.Enqueue(payloads=payloads, ids=ids, key=key.key, **facts)

        await self._client.persist(lambda: self._noted(Enqueue(PLAIN, jobs, key), note))

    async def work(self) -> None:
        seconds = self._rng.uniform(0.3, 2.0)
        wait = self._rng.choice((0.0, 0.5))
        keyed = self._rng.random() < 0.5
        key = IdempotencyKey("s", self._client.next_key(), b"body") if keyed else None

        def note(reply: Any, **facts: Any) -> history.Dequeue:
            leases = () if reply is None else reply.leases
            jobs = tuple(
                history.Handed(
                    lease.job.id, int(lease.job.payload or b"0"), lease.job.fence, lease.token, lease.job.attempts
                )
                for lease in leases
            )
            name = None if key is None else key.key
            return history.Dequeue(lease_seconds=seconds, jobs=jobs, key=name, **facts)

        def attempt() -> Awaitable[Dequeued]:
            command = Dequeue(PLAIN, 1, self._name, lease_seconds=seconds, wait_seconds=wait, key=key)
            return self._noted(command, note)

        leased = await (self._client.persist(attempt) if keyed else attempt())
        for lease in leased.leases:
            await self._work_on(lease, seconds)

    async def _work_on(self, lease: Lease, seconds: float) -> None:
        if self._rng.random() < 0.2:
            return
        if self._rng.random() < 0.3:
            await trio.sleep(seconds * self._rng.uniform(0.3, 1.4))
        verb = self._rng.choice(("conclude", "conclude", "conclude", "fail", "release", "extend"))
        await self._client.persist(lambda: self._claim(lease, verb))
        if verb == "extend" or self._rng.random() < 0.1:
            await self._client.persist(lambda: self._claim(lease, "conclude"))

    async def _claim(self, lease: Lease, verb: str) -> None:
        kinds: dict[str, tuple[type[Command[Any]], type[Claim], dict[str, Any]]] = {
            "conclude": (Conclude, ConcludeClaim, {}),
            "fail": (Fail, FailClaim, {}),
            "release": (Release, ReleaseClaim, {}),
            "extend": (Extend, ExtendClaim, {"lease_seconds": 1.0}),
        }
        command, claim, facts = kinds[verb]

        def note(reply: Any, **told: Any) -> history.Claim:
            answer = None if reply is None else reply.jobs[0]
            refused = told.pop("refused", None) or (answer.code if isinstance(answer, QueueError) else None)
            return history.Claim(
                verb=verb,  # type: ignore[arg-type] # one of those above
                id=lease.job.id,
                token=lease.token,
                lease_seconds=1.0,
                refused=refused,
                **told,
            )

        await self._noted(command([claim(PLAIN, lease.job.id, lease.token, **facts)]), note)


KINDS: dict[str, type[Client]] = {"producer": Producer, "worker": Worker, "reader": Reader, "operator": Operator}


async def everybody(world: World) -> None:
    """All clients, and after them the drain: no more faults, and all that was acknowledged is done."""
    await world.up.wait()
    await _insist(world, SetPolicy(PLAIN, PLAIN_POLICY))
    async with trio.open_nursery() as nursery:
        for name in world.plan.clients:
            nursery.start_soon(KINDS[name.rstrip("0123456789")](world, name).run)
    world.calm_down()
    await drain(world)
    await _check_history(world)


async def _insist(world: World, command: Command[R]) -> R:
    while True:
        await world.up.wait()
        try:
            return await world.ask("drain", command)
        except (GoneError, DownError):
            await trio.sleep(0.05)


async def drain(world: World) -> None:
    """Conclude all that is left, which has to come to an end."""
    auditor = world.auditor
    await world.up.wait()
    began = trio.current_time()
    for queue in (PLAIN, *QUEUES):
        if queue in auditor.now_kept.queues:
            await _insist(world, SetPolicy(queue, PLAIN_POLICY, paused=False))
    while any(job.state not in FINISHED for job in auditor.now_kept.jobs.values()):
        if trio.current_time() > began + DRAIN_SECONDS:
            left = [
                f"{job.queue}#{job.id} {job.state}"
                for job in auditor.now_kept.jobs.values()
                if job.state not in FINISHED
            ]
            auditor.violate("not_drained", f"{left} are not done {DRAIN_SECONDS:g} s after the last fault")
        for queue in (PLAIN, "left", "mail:*"):
            await _conclude_all(world, queue)
        far = world.clock().wall + DELAY_SECONDS_MAX
        for job in list(auditor.now_kept.jobs.values()):
            if job.state is JobState.SCHEDULED and job.not_before is not None and job.not_before > far:
                await _insist(world, RunNow(job.queue, [job.id]))
        await trio.sleep(0.05)


async def _conclude_all(world: World, queue: str) -> None:
    called = trio.current_time()
    leased = await _insist(world, Dequeue(queue, 50, "drain", lease_seconds=5.0))
    if queue == PLAIN and leased.leases:
        jobs = tuple(
            history.Handed(
                lease.job.id, int(lease.job.payload or b"0"), lease.job.fence, lease.token, lease.job.attempts
            )
            for lease in leased.leases
        )
        world.events.append(
            history.Dequeue(queue=PLAIN, called=called, returned=trio.current_time(), lease_seconds=5.0, jobs=jobs)
        )
    if not leased.leases:
        return
    called = trio.current_time()
    claims = [ConcludeClaim(lease.job.queue, lease.job.id, lease.token) for lease in leased.leases]
    done = await _insist(world, Conclude(claims))
    for lease, answer in zip(leased.leases, done.jobs, strict=True):
        if isinstance(answer, QueueError):
            world.auditor.violate("holder_refused", f"{answer.code} of job {lease.job.id} of {lease.job.queue}")
        if queue == PLAIN:
            world.events.append(
                history.Claim(
                    queue=PLAIN,
                    called=called,
                    returned=trio.current_time(),
                    verb="conclude",
                    id=lease.job.id,
                    token=lease.token,
                )
            )


async def _check_history(world: World) -> None:
    """The clients' own view, if a life does not take it away."""
    if not world.plan.durable and world.lives > 1:
        return
    concludes = [event for event in world.events if isinstance(event, history.Claim) and event.verb == "conclude"]
    perhaps = {event.id for event in concludes} - {event.id for event in concludes if event.accepted}
    for id_ in sorted(perhaps):
        called = trio.current_time()
        try:
            state = str((await _insist(world, ReadJob(PLAIN, id_))).state)
        except QueueError as refusal:
            state = refusal.code
        world.events.append(history.Read(queue=PLAIN, called=called, returned=trio.current_time(), id=id_, state=state))
    crashes = [history.Crash(killed=killed, dead=dead, ready=ready) for killed, dead, ready in world.crashes]
    told = [*world.events, *crashes, history.Drained(at=trio.current_time())]
    for violation in history.check(told):
        if violation.name == "undrained":
            continue
        world.auditor.violate(violation.name, violation.message)
