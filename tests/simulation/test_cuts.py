"""Each request, cut at each step of the scheduler: between any two things that happen, its client or handler is gone.

A scenario is a request of one route, with the jobs that it needs. It is run again and again on a server over streams in
memory, with the same order of tasks, and before the n-th step, n = 1, 2, … until it is through, one of three things is
done: the connection is reset; the client closes its sending side and goes on reading; the handler is cancelled. Each
time, afterwards: nobody waits and no task is left; what was parked for a client that left is not leased to it; the same
request, again, is answered; there are as many jobs as there should be; and all of them can be concluded within a
lease, a sweep and a second.

A route without a scenario fails the test. To add one: a row in `SCENARIOS`.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import (
    Cancel,
    Claim,
    Conclude,
    Dequeue,
    Enqueue,
    EnqueuedJob,
    Fail,
    FailClaim,
    JobFilter,
    NewJob,
    Pause,
    ReadJob,
    ReadQueue,
    Search,
)
from queue_actor.engine import Engine, EngineStatistics
from queue_actor.jobs import FINISHED
from queue_actor.settings import Settings
from queue_actor.virtual import seed_order
from tests.contract.stack import Answer, Server, build, serving
from tests.contract.v1 import check_codes
from tests.fakes import FakeStore, in_seeded_virtual_time
from tests.simulation.stack_bugs import PLANTED, Planted
from tests.simulation.wires import CutError, End, Reader, connection

LEASE_SECONDS = 2.0
SWEEP_SECONDS = 1.0
DRAIN_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + 1
COMMIT_SECONDS = 0.001
WAIT_SECONDS = 0.2  # of a request that waits
BESIDE_SECONDS = 0.05  # until somebody else does what it waits for
SETTLE_SECONDS = 5.0  # until nothing of a request that was cut is left: a connection may linger
STEPS_MAX = 2_000

IDLE = EngineStatistics(inbox_requests=0, waiters=0)
ORDER = 1
"""The seed of the order of tasks."""


@dataclass
class Facts:
    """The jobs of one run, in the order in which the scenario names them."""

    queue: str
    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    last_id: int = 0  # of the jobs of others, that were there before
    beside: int | None = None  # the job that came while the request waited
    beside_at: float = 0.0  # when it came

    @property
    def claim(self) -> dict[str, Any]:
        """The first job, by whoever holds it."""
        return {"id": self.ids[0], "token": self.tokens[0]}

    @property
    def claims(self) -> list[dict[str, Any]]:
        """All jobs that somebody holds."""
        return [{"id": id_, "token": token} for id_, token in zip(self.ids, self.tokens, strict=False)]


class Scenario(NamedTuple):
    """A request of a route, and what it does."""

    endpoint: str
    request: str
    """Method and target."""
    jobs: Sequence[str] = ()
    """The state of each job that is there before."""
    body: Callable[[Facts], object] = lambda _: None
    """Bytes are a stream of lines."""
    headers: Callable[[Facts], dict[str, str]] = lambda _: {}
    key: bool = False
    """Whether it has an Idempotency-Key."""
    new: int = 0
    """Jobs that it makes."""
    gone: int = 0
    """Jobs that it takes away."""
    again: frozenset[int] = frozenset({200})
    """What it may be answered when it is repeated."""
    beside: str | None = None
    """What somebody else does while it waits: `enqueue`, or `conclude` the first job."""
    durable: bool = False
    """It needs a store."""


GONE = frozenset({404})
DONE = frozenset({200, 409})
EMPTY = frozenset({200, 404})


def _rides(**wanted: Any) -> dict[str, Any]:
    return {"dequeue": {"wait_seconds": WAIT_SECONDS, **wanted}}


def _across(facts: Facts) -> dict[str, Any]:
    return {"jobs": [{"queue": facts.queue, **claim} for claim in facts.claims]}


HELD = ("held", "held")
NEXT = ("held", "held", "queued")
JOB = "POST /v1/queues/{queue}/jobs/{id}/"
QUEUE = "POST /v1/queues/{queue}/"
LINES = b"".join(b'{"type": "a", "payload": %d}\n' % number for number in range(7))

SCENARIOS = [
    Scenario("simple.enqueue", "POST /jobs/enqueue", (), lambda _: {"Type": "a", "Payload": 1}, key=True, new=1),
    Scenario("simple.dequeue", "POST /jobs/dequeue", ("queued",), key=True),
    Scenario("simple.dequeue", "GET /jobs/dequeue", ("queued", "queued"), again=EMPTY),
    Scenario("simple.dequeue", "POST /jobs/dequeue?wait=0.2", key=True, beside="enqueue", again=EMPTY),
    Scenario("simple.dequeue", "POST /jobs/dequeue?wait=0.2", again=EMPTY),
    Scenario(
        "simple.conclude",
        "POST /jobs/{id}/conclude",
        ("held",),
        headers=lambda facts: {"Queue-Lease-Token": facts.tokens[0]},
    ),
    Scenario("simple.read", "GET /jobs/{id}", ("queued",)),
    Scenario("jobs.enqueue", QUEUE + "enqueue", (), lambda _: {"jobs": [{"type": "a"}] * 3}, key=True, new=3),
    Scenario("jobs.enqueue", QUEUE + "enqueue", (), lambda _: LINES, new=7),
    Scenario("jobs.dequeue", QUEUE + "dequeue", ("queued", "queued"), lambda _: {"count": 2}, key=True),
    *(
        Scenario(
            "jobs.dequeue", QUEUE + "dequeue", (), lambda _: {"wait_seconds": WAIT_SECONDS}, key=key, beside=beside
        )
        for key, beside in ((True, "enqueue"), (False, "enqueue"), (True, None))
    ),
    Scenario("jobs.dequeue_several", "POST /v1/dequeue", ("queued",), lambda facts: {"queues": [facts.queue]}),
    Scenario(
        "jobs.dequeue_several",
        "POST /v1/dequeue",
        body=lambda facts: {"queues": ["other", facts.queue], "wait_seconds": WAIT_SECONDS, "order": "fair"},
        key=True,
        beside="enqueue",
    ),
    Scenario(
        "jobs.dequeue_several",
        "POST /v1/dequeue",
        body=lambda facts: {"queues": facts.queue[:-1] + "*", "wait_seconds": WAIT_SECONDS},
        key=True,
        beside="enqueue",
    ),
    *(
        Scenario(f"jobs.{verb}_one", JOB + verb, ("held",), lambda facts: facts.claim)
        for verb in ("conclude", "extend")
    ),
    *(
        Scenario(
            f"jobs.{verb}_one", JOB + verb, ("held",), lambda facts: {**facts.claim, **_rides()}, key=True, beside=by
        )
        for verb in ("conclude", "fail", "release")
        for by in ("enqueue", None)
    ),
    Scenario("jobs.release_one", JOB + "release", ("held",), again=DONE),
    *(
        Scenario(f"jobs.{verb}_many", QUEUE + verb, HELD, lambda facts: {"jobs": facts.claims})
        for verb in ("conclude", "fail", "extend", "release")
    ),
    *(
        Scenario(f"jobs.{verb}_many", QUEUE + verb, NEXT, lambda facts: {"jobs": facts.claims, **_rides()}, key=True)
        for verb in ("conclude", "fail", "release")
    ),
    Scenario("jobs.release_many", QUEUE + "release", HELD, lambda _: {"consumer": "w"}),
    *(
        Scenario(f"jobs.{verb}_across", f"POST /v1/{verb}", HELD, _across)
        for verb in ("conclude", "fail", "extend", "release")
    ),
    Scenario(
        "jobs.conclude_across",
        "POST /v1/conclude",
        ("held",),
        lambda facts: _across(facts) | _rides(queues=[facts.queue]),
        key=True,
        beside="enqueue",
    ),
    Scenario("queues.list_queues", "GET /v1/queues", ("queued",)),
    Scenario("queues.read_queue", "GET /v1/queues/{queue}", ("queued",)),
    Scenario("queues.put_queue", "PUT /v1/queues/{queue}", ("queued",), lambda _: {"max_attempts": 5}),
    Scenario("queues.delete_queue", "DELETE /v1/queues/{queue}", ("concluded", "dead"), gone=2, again=GONE | {200}),
    Scenario("queues.pause", QUEUE + "pause", ("queued",)),
    Scenario("queues.resume", QUEUE + "resume", ("queued",)),
    Scenario("queues.purge", QUEUE + "purge", ("dead", "queued"), lambda _: {"state": "dead"}, gone=1),
    Scenario("queues.redrive", QUEUE + "redrive", ("dead", "cancelled")),
    Scenario("queues.search", "GET /v1/queues/{queue}/jobs", ("dead", "queued")),
    Scenario("queues.read_job", "GET /v1/queues/{queue}/jobs/{id}", ("queued",)),
    Scenario("queues.read_job", "GET /v1/queues/{queue}/jobs/{id}?wait_seconds=0.2", ("held",), beside="conclude"),
    Scenario("queues.read_job", "GET /v1/queues/{queue}/jobs/{id}?wait_seconds=0.2", ("queued",)),
    Scenario("queues.forget", "DELETE /v1/queues/{queue}/jobs/{id}", ("concluded",), gone=1, again=GONE | {200}),
    Scenario("queues.cancel", JOB + "cancel", ("queued",), again=DONE),
    Scenario("queues.redrive_one", JOB + "redrive", ("dead",), again=DONE),
    Scenario("queues.run", JOB + "run", ("scheduled",), again=DONE),
    Scenario("queues.cancel_many", QUEUE + "cancel", ("queued", "scheduled")),
    Scenario("overview.overview", "GET /v1/overview", ("queued",)),
    Scenario("overview.trend", "GET /v1/queues/{queue}/trend", ("queued",)),
    Scenario("overview.why", "GET /v1/queues/{queue}/jobs/{id}/why", ("queued",)),
    Scenario("overview.access", "GET /v1/access"),
    Scenario("events.follow", "GET /v1/events?queue={queue}&wait_seconds=0.2", beside="enqueue"),
    Scenario("ops.monitor", "GET /metrics"),
    Scenario("ops.statistics", "GET /v1/statistics"),
    Scenario("ops.backup", "GET /v1/backup", ("queued",), durable=True),
    Scenario("ops.healthz", "GET /healthz"),
    Scenario("ops.readyz", "GET /readyz"),
    Scenario("dashboard.home", "GET /", again=frozenset({307})),
    Scenario("dashboard.page", "GET /ui"),
    Scenario("dashboard.part", "GET /ui/app.js"),
    Scenario("docs.document", "GET /openapi.json"),
    Scenario("docs.page", "GET /docs"),
    Scenario("docs.style", "GET /docs/style.css"),
]

IN_SHORT = ("simple.enqueue", "simple.dequeue", "jobs.enqueue", "jobs.dequeue", "jobs.conclude_one", "queues.read_job")
"""The routes that are cut in every run of the tests; all of them are with `--all`."""

CUTS = ("reset", "half-close", "cancel")


class AtStep(trio.abc.Instrument):
    """Does something before the n-th step of any task."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step = step
        self.steps = 0
        self.at: float | None = None  # the moment at which it was done
        self._act = act

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.steps += 1
        if self.steps == self.step:
            self.at = trio.current_time()
            self._act()


# --- the jobs of a run


async def prepare(engine: Engine, facts: Facts, jobs: Sequence[str]) -> None:
    """Make jobs in these states; those that have to be dequeued for it come first."""
    for state in jobs:
        new = NewJob("a", delay_seconds=1.0 if state == "scheduled" else 0.0)
        (made,) = (await engine.execute(Enqueue(facts.queue, [new]))).jobs
        assert isinstance(made, EnqueuedJob)
        facts.ids.append(made.id)
        if state == "cancelled":
            (await engine.execute(Cancel(facts.queue, [made.id]))).single()
        if state in {"held", "dead", "concluded"}:
            (lease,) = (await engine.execute(Dequeue(facts.queue, consumer="w", lease_seconds=LEASE_SECONDS))).leases
            assert lease.job.id == made.id
            facts.tokens.append(lease.token)
        if state == "dead":
            claim = FailClaim(facts.queue, made.id, facts.tokens[-1], retry=False)
            (await engine.execute(Fail([claim]))).single()
        if state == "concluded":
            (await engine.execute(Conclude([Claim(facts.queue, made.id, facts.tokens[-1])]))).single()


async def do_beside(engine: Engine, facts: Facts, what: str) -> None:
    """What a request waits for."""
    await trio.sleep(BESIDE_SECONDS)
    facts.beside_at = trio.current_time()
    if what == "enqueue":
        (made,) = (await engine.execute(Enqueue(facts.queue, [NewJob("a")]))).jobs
        assert isinstance(made, EnqueuedJob)
        facts.beside = made.id
    else:
        (await engine.execute(Conclude([Claim(facts.queue, facts.ids[0], facts.tokens[0])]))).single()


async def drain(engine: Engine, queue: str) -> None:
    """Conclude all jobs of a queue, as fast as leases that nobody has heard of let it."""
    if (await engine.execute(ReadQueue(queue))).paused:
        await engine.execute(Pause(queue, paused=False))
    with trio.fail_after(DRAIN_SECONDS):
        while True:
            counts = (await engine.execute(ReadQueue(queue))).counts
            if not any(number for state, number in counts.items() if state not in FINISHED):
                break
            for lease in (await engine.execute(Dequeue(queue, 100, wait_seconds=10))).leases:
                (await engine.execute(Conclude([Claim(queue, lease.job.id, lease.token)]))).single()


# --- a run


class Run:
    """One scenario on one server, again and again."""

    def __init__(self, server: Server, scenario: Scenario, cut: str) -> None:
        self.server = server
        self.scenario = scenario
        self._cut = cut
        self._tasks = trio.lowlevel.current_statistics().tasks_living
        self._hit = False

    async def with_all_cuts(self) -> int:
        """Cut the request at each of its steps; how many they were."""
        for step in range(1, STEPS_MAX):
            if not await self.once(step):
                return step - 1
        raise AssertionError("it does not come to an end")

    async def once(self, step: int) -> bool:
        """Whether the step came before the answer."""
        scenario, engine = self.scenario, self.server.engine
        facts = Facts("default" if scenario.endpoint.startswith("simple.") else f"q{next(_numbers):06}")
        facts.last_id = (await engine.execute(ReadQueue(facts.queue))).last_id
        await prepare(engine, facts, scenario.jobs)
        await settle(self.server, self._tasks)
        seed_order(ORDER)
        ours, theirs = connection()
        instrument = AtStep(step, lambda: self._act(ours))
        trio.lowlevel.add_instrument(instrument)
        async with trio.open_nursery() as nursery:
            if scenario.beside is not None:
                nursery.start_soon(do_beside, engine, facts, scenario.beside)
            self.server.accept(theirs)
            answer = await self._ask(Reader(ours), facts)
            ours.close()
            fired = instrument.at is not None
            trio.lowlevel.remove_instrument(instrument)
        if not fired:
            assert answer is not None, "nobody cut it, and there was no answer"
        if answer is not None:
            assert answer.status == 200 or (answer.status in scenario.again & {307, 404}), answer
        await settle(self.server, self._tasks)
        await self._check_who_left(instrument, facts)
        await self._repeat(facts)
        await drain(engine, facts.queue)
        await self._check_jobs(facts)
        return fired

    def _act(self, ours: End) -> None:
        self._hit = True
        if self._cut == "reset":
            ours.reset()
        elif self._cut == "half-close":
            ours.sends.end()
        else:
            self._hit = bool(self.server.connections.admitted)
            for each in self.server.connections.admitted:
                each.life.cancel()

    def _request(self, facts: Facts) -> tuple[str, str, bytes, dict[str, str]]:
        method, target = self.scenario.request.split(" ")
        target = target.replace("{queue}", facts.queue).replace("{id}", str(facts.ids[0]) if facts.ids else "")
        headers = dict(self.scenario.headers(facts))
        if self.scenario.key:
            headers["Idempotency-Key"] = f"{self.scenario.endpoint} {facts.queue} {next(_numbers)}"
        body = self.scenario.body(facts)
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/x-ndjson"
            return method, target, body, headers
        return method, target, b"" if body is None else json.dumps(body).encode(), headers

    async def _ask(self, reader: Reader, facts: Facts) -> Answer | None:
        """Ask in three pieces; the answer, if there was one."""
        self._sent = self._request(facts)
        method, target, body, headers = self._sent
        data = build(method, target, body, headers.items())
        pieces = data[:20], data[20 : len(data) - len(body) // 2], data[len(data) - len(body) // 2 :]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, CutError):
            for piece in pieces:
                await reader.end.send_all(piece)
            answer = await reader.read(method)
            self.server.check(answer, method)
            self.server.described.check(method, target, answer)
            return check_codes(method, target.replace(facts.queue, "q"), answer)
        return None

    async def _check_who_left(self, instrument: AtStep, facts: Facts) -> None:
        """What came when the client had left was not leased to it."""
        if facts.beside is None or instrument.at is None or instrument.at >= facts.beside_at or not self._hit:
            return
        job = await self.server.engine.execute(ReadJob(facts.queue, facts.beside))
        assert job.attempts == 0, "a job was leased to a client that had left before there was one"

    async def _repeat(self, facts: Facts) -> None:
        """The same once more, under the same key."""
        method, target, body, headers = self._sent
        answer = await self.server.ask(method, target, body, headers.items())
        check_codes(method, target.replace(facts.queue, "q"), answer)
        assert answer.status in self.scenario.again, answer

    async def _check_jobs(self, facts: Facts) -> None:
        """There are as many jobs as there should be."""
        found = (await self.server.engine.execute(Search(facts.queue, JobFilter(), limit=100, newest_first=True))).jobs
        ids = {job.id for job in found if job.id > facts.last_id}
        made = set(facts.ids) | ({facts.beside} if facts.beside is not None else set())
        new = len(ids - made)
        least = self.scenario.new
        most = least if self.scenario.key else 2 * least
        assert least <= new <= most, f"{new} jobs are new, and not {least}"
        assert len(made - ids) == self.scenario.gone, f"jobs are lost: {made - ids}"
        assert all(job.attempts <= 3 for job in found), "more attempts than the request, its repeat and the drain make"


_numbers = count()


async def settle(server: Server, tasks: int) -> None:
    """Wait until nothing of what was asked is left."""
    with trio.move_on_after(SETTLE_SECONDS):
        while not _is_idle(server, tasks):  # noqa: ASYNC110 - figures have no event
            await trio.sleep(COMMIT_SECONDS)
    assert len(server.connections) == 0
    assert server.engine.statistics() == IDLE
    assert server.engine.events.readers == 0
    assert trio.lowlevel.current_statistics().tasks_living == tasks


def _is_idle(server: Server, tasks: int) -> bool:
    living = trio.lowlevel.current_statistics().tasks_living
    return len(server.connections) == 0 and server.engine.statistics() == IDLE and living == tasks


def cut_all(scenarios: Sequence[Scenario], cut: str, **settings: Any) -> int:
    """Cut these in this way at each of their steps; how many these were."""

    async def main() -> int:
        points = 0
        store = FakeStore()
        store.seconds = COMMIT_SECONDS
        limits = Settings(
            lease_seconds=LEASE_SECONDS, sweep_seconds=SWEEP_SECONDS, batch_jobs_max=3, metrics_queues_max=1, **settings
        )
        async with serving(limits, store=store) as server:
            await server.ask("GET", "/healthz")
            await wait_all_tasks_blocked()
            for scenario in scenarios:
                try:
                    points += await Run(server, scenario, cut).with_all_cuts()
                except BaseException as error:
                    error.add_note(f"{cut}, {scenario}")
                    raise
            server.answers = len(server.request_lines)
        return points

    return in_seeded_virtual_time(ORDER, main)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints figures when the test passes, too."""

    def told(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return told


async def test_every_route_has_a_scenario() -> None:
    async with serving(Settings()) as server:
        served = {rule.endpoint for rule in server.app.url_map.iter_rules()}

    assert {scenario.endpoint for scenario in SCENARIOS} == served


@pytest.mark.parametrize("cut", CUTS)
def test_a_request_may_be_cut_at_any_step(cut: str) -> None:
    shown = [scenario for scenario in SCENARIOS if scenario.endpoint in IN_SHORT]

    assert cut_all(shown, cut) > 10 * len(shown)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["", "in memory"], ids=["actor", "durable"])
@pytest.mark.parametrize("cut", CUTS)
def test_every_request_may_be_cut_at_any_step(cut: str, data: str, tell: Callable[[str], None]) -> None:
    scenarios = [scenario for scenario in SCENARIOS if data or not scenario.durable]
    points = cut_all(scenarios, cut, data=data)

    tell(f"{cut}, {'durable' if data else 'in memory'}: {points} cut points of {len(scenarios)} scenarios")
    assert points > 10 * len(scenarios)


@pytest.mark.parametrize("planted", [bug for bug in PLANTED if bug.cut], ids=lambda planted: planted.plant.__name__)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, planted: Planted) -> None:
    planted.plant(monkeypatch)
    shown = [scenario for scenario in SCENARIOS if scenario.key and scenario.endpoint in IN_SHORT]

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match=planted.cut), flatten_subgroups=True):
        cut_all(shown, "reset")
