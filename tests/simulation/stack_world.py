"""The whole server in a world made up from a seed: connections, clients, restarts, and what must be true in the end.

It is the server as it runs in production (the connections of web/connections.py, h11, Quart, application, engine), over
streams in memory that have windows, in virtual time, with tasks run in an order that the seed decides. Half of the
seeds are about the durable engine, over a real store in memory, and then the server is killed, or drained, and starts
again; half of each kind have access tokens. `stack_clients.py` is what it is asked.

Checked is, of every answer: that it is well-formed, one that `/openapi.json` and web/README.md have for its request,
and that it answers the request that was sent, in order. In the end: that nobody waits any more and no task, connection
or request is left; that no lease began for a client that had left; that all jobs can be concluded within a lease, a
sweep and a second; and that what the clients saw breaks no rule of `tests/process/history.py`.

    PYTHONPATH=. .venv/bin/python -m tests.simulation.stack_world SEED

runs one, and prints its figures and the hash of its trace, which a seed repeats.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count, cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import trio

from queue_actor.commands import Claim as HolderClaim
from queue_actor.commands import Conclude, JobFilter, Pause, ReadQueue, Search
from queue_actor.commands import Dequeue as DequeueCommand
from queue_actor.engine import EngineStatistics
from queue_actor.jobs import FINISHED, Job
from queue_actor.settings import Settings
from tests.contract.stack import Server, serving
from tests.contract.tokens import Tokens, bearer
from tests.fakes import EPOCH_SECONDS, FakeClock, FakeStore, in_seeded_virtual_time
from tests.opening import in_memory
from tests.process.history import (
    Claim,
    Crash,
    Dequeue,
    Drained,
    Event,
    Handed,
    Read,
    check,
    figures,
)
from tests.simulation.disk import chance
from tests.simulation.stack_clients import CHECKED, DEFAULT_LEASE_SECONDS, LEASES_SECONDS, RETRY, YARD, Client, Wire

CLIENTS = 7
REQUESTS = 200
SWEEP_SECONDS = 0.5
DRAIN_SECONDS = max(LEASES_SECONDS) + SWEEP_SECONDS + 1
END_SECONDS = 20.0  # until the server is rid of clients that stay and say nothing: a wait, a send, an idle time
DEPARTURE_SECONDS = 0.02  # until a client that has left is given nothing any more: what is under way has a few commits
GRACEFUL_SECONDS = 3.0
DOWN_SECONDS = (0.0, 0.01, 0.7)
COMMITS_SECONDS = (0.0, 0.001, 0.004)
TICK_SECONDS = 1e-9
POLICY = {"max_attempts": None, "max_stale": None, "retry": RETRY}

IDLE = EngineStatistics(inbox_requests=0, waiters=0)


class KilledError(Exception):
    """The process died in the midst of a commit."""


class Trace(trio.abc.Instrument):
    """A hash of what happened, step by step."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        self._hash.update(task.name.rpartition(".")[2].encode())  # the module is another if it is the main one

    def note(self, event: str, data: bytes = b"") -> None:
        """Take something else into it."""
        self._hash.update(event.encode() + data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class World:
    """One run."""

    def __init__(self, seed: int, folder: Path, requests: int = REQUESTS) -> None:
        self.seed = seed
        self.chance = chance(seed)
        self.durable = seed % 2 == 1
        self.clock = FakeClock()
        self.trace = Trace()
        self.history: list[Event] = []
        self.answered: Counter[str] = Counter()
        self.met: Counter[str] = Counter()  # how answers were lost
        self.payloads = count(1)
        self.left_at: dict[str, float] = {}  # consumers, and when their clients had left
        self.staying: set[str] = set()  # consumers that still listen on some connection
        self.wires: list[Wire] = []
        self.server: Server
        self.up = trio.Event()
        self.life = 0
        self._moment = 0.0
        self.ending = False  # the server drains, or is dead
        self._requests = requests
        self._asked = 0
        self._end_at = [round(requests * (share + self.chance.uniform(-0.1, 0.1))) for share in (0.3, 0.55, 0.8)]
        self._enough = trio.Event()
        self._over = trio.Event()
        self._crash: dict[str, float] = {}
        self._settings = Settings(
            data="in memory" if self.durable else "",
            engine="lock" if seed % 16 == 6 else "actor",
            lease_seconds=DEFAULT_LEASE_SECONDS,
            sweep_seconds=SWEEP_SECONDS,
            batch_jobs_max=8,
            waiters_max=4,
            inbox_requests_max=4,
            connections_max=8,
            idle_seconds=6.0,
            wait_seconds_max=3.0,
            recent_jobs=10,
            metrics_queues_max=2,
            slow_request_seconds=3_600.0,
            slow_batch_seconds=3_600.0,
        )
        self._connect = in_memory()
        self._kept = self._connect(Path("none"))  # the database is there as long as somebody is connected to it
        self._tokens = Tokens(folder / "tokens.json", self.clock) if seed // 2 % 2 == 1 else None
        self._endpoints: Iterator[str]
        self.endpoints_left: set[str] = set()  # that nobody has asked yet

    # --- for the clients

    def now(self) -> float:
        """This moment, for the history: later than any that was told before, as in real life."""
        self._moment = max(trio.current_time(), self._moment + TICK_SECONDS)
        return self._moment

    def record(self, event: Event) -> None:
        self.history.append(event)

    def is_clients(self, request: str) -> bool:
        """Whether a request's name is one that a client has made."""
        return request.startswith("client")

    def may_ask(self) -> bool:
        """Whether there is to be more; counts."""
        self._asked += 1
        if self._end_at and self._asked >= self._end_at[0]:
            self._enough.set()
        return self._asked < self._requests

    def next_endpoint(self) -> str:
        endpoint = next(self._endpoints)
        self.endpoints_left.discard(endpoint)
        return endpoint

    # --- the run

    async def run(self) -> None:
        """All of it.

        Raises:
            AssertionError: Something was not as it has to be.
        """
        trio.lowlevel.add_instrument(self.trace)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lives)
            await self.up.wait()
            await trio.testing.wait_all_tasks_blocked()
            tasks = trio.lowlevel.current_statistics().tasks_living
            self._begin_endpoints()
            clients = [*self._clients()]
            await self._put_policies()
            async with trio.open_nursery() as asking:
                if self.durable:
                    asking.start_soon(self._end_lives)
                async with trio.open_nursery() as crowd:
                    for client in clients:
                        crowd.start_soon(client.run)
                self._end_at.clear()
                self._enough.set()
            await self._become_idle(tasks)
            await self._drain()
            await self._look_at_jobs()
            self._check_history()
            self._over.set()
        self._kept.close()
        trio.lowlevel.remove_instrument(self.trace)

    def _begin_endpoints(self) -> None:
        endpoints = sorted({rule.endpoint for rule in self.server.app.url_map.iter_rules()})
        self.endpoints_left = set(endpoints)
        self.chance.shuffle(endpoints)
        self._endpoints = cycle(endpoints)

    def _clients(self) -> Iterator[Client]:
        for number in range(CLIENTS):
            name = f"client{number}"
            headers: dict[str, str] = {}
            if self._tokens is not None:
                everything = number < CLIENTS - 2
                scopes = ("admin",) if everything else ("produce", "consume", "read")
                limits: dict[str, Any] = {} if everything else {"queues": CHECKED, "in_progress_max": 3}
                if number == CLIENTS - 1:
                    limits["requests_per_second"] = 20.0
                headers = bearer(self._tokens.add(name, *scopes, **limits))
            yield Client(self, name, Random(f"{self.seed}/{name}"), headers)  # noqa: S311 - a seed has to repeat it
        if self._tokens is not None:
            assert self.server.app.access is not None
            self.server.app.access.read_again()

    # --- the lives of the server

    async def _lives(self) -> None:
        while not self._over.is_set():
            store = self._store = FakeStore()
            store.seconds = self.chance.choice(COMMITS_SECONDS)
            server: Server | None = None
            if self._tokens is not None:
                self._tokens.write()
            access = None if self._tokens is None else self._tokens.access()
            opening = serving(self._settings, clock=self.clock, store=store, access=access, connect=self._connect)
            try:
                with trio.CancelScope() as self._scope:
                    async with opening as server:
                        self._begin_life(server)
                        await self._over.wait()
                        server.answers = self._count_lines(server)
            except* KilledError:
                assert self.ending
            assert server is not None
            server.answers = self._count_lines(server)
            server.check_log()
            assert {line["level"] for line in server.log} <= {"info"}, [
                line for line in server.log if line["level"] != "info"
            ]
            if not self._over.is_set():
                self._crash["dead"] = self.now()
                await trio.sleep(self.chance.choice(DOWN_SECONDS))

    def _begin_life(self, server: Server) -> None:
        self.server = server
        self.life += 1
        self.ending = False
        if self._crash:
            self.record(Crash(**self._crash, ready=self.now()))
            self._crash = {}
        self.up.set()

    def _count_lines(self, server: Server) -> int:
        """Lines of answers: one for each that was read, and for those that were not."""
        lines = len(server.request_lines)
        assert server.answers <= lines
        return lines

    async def _end_lives(self) -> None:
        """Kill the server, or drain it, when so much has been asked."""
        while self._end_at:
            await self._enough.wait()
            self._enough = trio.Event()
            if not self._end_at:
                break
            self._end_at.pop(0)
            await trio.sleep(self.chance.choice((0.0, 0.001, 0.003, 0.05)))
            self.up = trio.Event()
            self.ending = True
            self._crash = {"killed": self.now()}
            if self.chance.random() < 0.3:
                await self.server.drain()
                with trio.move_on_after(GRACEFUL_SECONDS):
                    while len(self.server.connections):  # noqa: ASYNC110 - a figure has no event
                        await trio.sleep(0.01)
            elif self.chance.random() < 0.5:
                self._store.failure = KilledError()
            for wire in self.wires:
                wire.end.reset()
            self.wires.clear()
            self._scope.cancel()
            await self.up.wait()

    # --- the end

    async def _become_idle(self, tasks: int) -> None:
        """Until nothing of the clients is left, those that stay and say nothing included."""
        server = self.server
        await trio.sleep(DEPARTURE_SECONDS)
        busy, waiters = len(server.connections) - len(server.connections.idle), server.engine.statistics().waiters
        assert waiters <= busy, f"{waiters} requests are parked, of no more than {busy} clients"
        with trio.move_on_after(END_SECONDS):
            while not self._is_idle(tasks):  # noqa: ASYNC110 - figures have no event
                await trio.sleep(0.01)
        left = trio.lowlevel.current_statistics().tasks_living - tasks
        told = f"{len(server.connections)} connections, {left} tasks and {server.engine.statistics()} are left"
        assert self._is_idle(tasks), told
        engine: Any = server.engine
        waiters = (engine._engine if self.durable else engine)._waiters
        assert not any((waiters._parked, waiters._lines, waiters._prefixes, waiters._keyed, waiters._readers))

    def _is_idle(self, tasks: int) -> bool:
        living = trio.lowlevel.current_statistics().tasks_living
        return not len(self.server.connections) and self.server.engine.statistics() == IDLE and living == tasks

    async def _put_policies(self) -> None:
        headers: dict[str, str] = {}
        if self._tokens is not None:
            headers = bearer(self._tokens.add("operator", "admin"))
            assert self.server.app.access is not None
            self.server.app.access.read_again()
        for queue in (*CHECKED, *YARD):
            body = json.dumps(POLICY).encode()
            answer = await self.server.ask("PUT", f"/v1/queues/{queue}", body, headers.items())
            assert answer.status == 200, answer

    async def _drain(self) -> None:
        """Conclude everything, as fast as leases that nobody has heard of let it."""
        engine = self.server.engine
        for queue in YARD:
            if (await engine.execute(ReadQueue(queue))).paused:
                await engine.execute(Pause(queue, paused=False))
        with trio.move_on_after(DRAIN_SECONDS) as scope:
            for queue in (*CHECKED, *YARD):
                while any(n for state, n in (await self._counts(queue)).items() if state not in FINISHED):
                    await self._conclude_some(queue)
        left = {queue: await self._counts(queue) for queue in (*CHECKED, *YARD)}
        assert not scope.cancelled_caught, f"not drained within {DRAIN_SECONDS:g} s: {left}"

    async def _counts(self, queue: str) -> dict[Any, int]:
        return dict((await self.server.engine.execute(ReadQueue(queue))).counts)

    async def _conclude_some(self, queue: str) -> None:
        engine, called = self.server.engine, self.now()
        leases = (await engine.execute(DequeueCommand(queue, 100, wait_seconds=0.05, lease_seconds=30))).leases
        if queue in YARD:
            if leases:
                await engine.execute(Conclude([HolderClaim(queue, lease.job.id, lease.token) for lease in leases]))
            return
        handed = tuple(
            Handed(lease.job.id, int(lease.job.payload or b"0"), lease.job.fence, lease.token, lease.job.attempts)
            for lease in leases
        )
        self.record(Dequeue(queue=queue, called=called, returned=self.now(), lease_seconds=30, jobs=handed))
        for job in handed:
            called = self.now()
            (await engine.execute(Conclude([HolderClaim(queue, job.id, job.token)]))).single()
            returned = self.now()
            self.record(
                Claim(queue=queue, verb="conclude", id=job.id, token=job.token, called=called, returned=returned)
            )

    async def _look_at_jobs(self) -> None:
        """Read every job, and see for whom each of its attempts began."""
        for queue in CHECKED:
            after: int | None = 0
            while after is not None:
                found = await self.server.engine.execute(Search(queue, JobFilter(), limit=1_000, after_id=after))
                for job in found.jobs:
                    called = self.now()
                    self.record(Read(queue=queue, id=job.id, state=str(job.state), called=called, returned=called))
                    self._check_departures(job)
                after = found.next_after

    def _check_departures(self, job: Job) -> None:
        for attempt in job.history:
            left_at = self.left_at.get(attempt.consumer or "")
            if left_at is not None and attempt.consumer not in self.staying:
                began_at = attempt.started_at - EPOCH_SECONDS
                assert began_at <= left_at + DEPARTURE_SECONDS, (
                    f"job {job.id} of {job.queue} was leased at {began_at:.3f} to {attempt.consumer}, "
                    f"whose client had left at {left_at:.3f}"
                )

    def _check_history(self) -> None:
        self.record(Drained(at=self.now()))
        violations = check(self.history)
        assert not violations, "\n".join(map(str, violations[:20]))

    def __str__(self) -> str:
        kind = ", ".join(
            (
                "durable" if self.durable else "in memory",
                "with tokens" if self._tokens else "open",
                f"{self.life} lives",
                f"{self.trace.steps} steps",
            )
        )
        answers = ", ".join(f"{number} {told.strip()}" for told, number in sorted((self.answered + self.met).items()))
        return f"seed {self.seed}: {kind}; {figures(self.history)}; answers: {answers}"


def simulate(seed: int, requests: int = REQUESTS) -> World:
    """Run a world.

    Raises:
        AssertionError: Something was not as it has to be; the note says how to run it again.
    """
    with TemporaryDirectory() as folder:
        world = World(seed, Path(folder), requests)
        try:
            in_seeded_virtual_time(seed, world.run)
        except BaseException as error:
            error.add_note(f"seed {seed}: run it again with `python -m tests.simulation.stack_world {seed}`")
            raise
    return world


if __name__ == "__main__":
    done = simulate(int(sys.argv[1]))
    print(done)
    print(done.trace.digest)
