"""Clients of the simulated server: what they ask, how they ask it, and how they leave.

A client asks over keep-alive connections: one request at a time or several ahead, whole, in pieces or byte by byte. It
reads at once, slowly, or never; runs out of patience at any moment, and then resets the connection, closes it, closes
its sending side alone, or says nothing more and stays. What it got no answer to it sends again under the same
Idempotency-Key, or gives up. Whatever it saw goes into the history that `tests/process/history.py` checks.

The queues `CHECKED` are used as that checker wants it: without delays and priorities, by holders alone. Everything else
there is to a queue happens in the queues `YARD`.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import trio

from tests.contract.stack import Answer, Server, build
from tests.contract.v1 import check_codes
from tests.process.history import Claim, Dequeue, Enqueue, Handed, Read
from tests.simulation.wires import CutError, End, Reader, connection

if TYPE_CHECKING:
    from tests.simulation.stack_world import World

CHECKED = ("default", "pair:left", "pair:right")
YARD = ("yard:a", "yard:b")
RETRY = {"kind": "fixed", "base_seconds": 0.05, "jitter": "none"}

LEASES_SECONDS = (0.3, 0.5, 1.0)
DEFAULT_LEASE_SECONDS = 1.0
SLACK_SECONDS = 1e-4
"""What a lease is shorter by in the history, where no two events have the same moment, than by the clock, which stands
still between two of them."""
WAITS_SECONDS = (0.0, 0.1, 0.5, 2.0)
PAUSES_SECONDS = (0.0, 0.0, 0.001, 0.05, 0.4)
PATIENCE_SECONDS = (0.0, 0.001, 0.002, 0.005, 0.05, 0.5)
WINDOWS_BYTES = (64, 500, 4_096, 65_536)
PIECES_BYTES = (16, 200, 65_536)
ANSWER_SECONDS = 20.0  # for the longest waits of some requests that were sent ahead
AT_ONCE_SECONDS = 2.5  # a refused request and its lingering included, and no idle connection
OUTCOME_UNKNOWN = "outcome_unknown"
OF_CONNECTIONS = {"request_timeout", "too_many_connections", "malformed", "draining"}
"""Codes of answers that may come before the request's own name has been read."""

Verb = Literal["conclude", "fail", "release", "extend"]
VERBS: tuple[Verb, ...] = ("conclude", "fail", "release", "extend")
VOLATILE = {"ops.monitor", "ops.statistics", "ops.backup"}
"""Their answers tell of real time and memory, so how long they are is none of the simulation's doing: they are read in
one piece, and do not count for the trace."""

EVENT_IDS = re.compile(rb"(?m)^id: .*$")
"""They name a ring, which is another with each start, and no chance of the simulation's."""


class Outcome(NamedTuple):
    """What a client knows of a request."""

    called: float
    returned: float | None = None
    answer: Answer | None = None
    part: bytes = b""  # of an answer that broke off

    @property
    def refused(self) -> str | None:
        """The code of an answer which says that nothing was done."""
        return self.answer.json["code"] if self.answer is not None and self.answer.status >= 400 else None

    @property
    def facts(self) -> dict[str, Any]:
        """What it is in a history."""
        if self.answer is None or self.refused == OUTCOME_UNKNOWN:
            return {"called": self.called}
        return {"called": self.called, "returned": self.returned, "refused": self.refused}

    @property
    def json(self) -> Any:
        """The body of an answer that says that something was done; None of any other."""
        return self.answer.json if self.answer is not None and self.answer.status == 200 else None


@dataclass
class Ask:
    """A request, and what its client makes of the answer."""

    endpoint: str
    method: str
    target: str
    body: object = None  # bytes are lines of a stream
    headers: dict[str, str] = field(default_factory=dict)
    note: Callable[[Outcome], None] = lambda _: None
    key: str | None = None  # then it may be sent again
    consumer: str | None = None  # who is told nothing more once the client has left

    @property
    def again(self) -> bool:
        """Whether it is safe to send it twice."""
        return self.key is not None

    def data(self, name: str) -> bytes:
        """The request as it is sent."""
        headers = {"X-Request-Id": name, **self.headers}
        if self.key is not None:
            headers["Idempotency-Key"] = self.key
        if isinstance(self.body, bytes):
            headers["Content-Type"] = "application/x-ndjson"
            return build(self.method, self.target, self.body, headers.items())
        return build(
            self.method, self.target, b"" if self.body is None else json.dumps(self.body).encode(), headers.items()
        )


@dataclass
class Wire:
    """A connection of a client."""

    end: End
    reader: Reader
    server: Server
    life: int
    used: bool = False  # it has been answered
    closing: bool = False  # and told that this was the last answer


class Held(NamedTuple):
    """A job in somebody's hands."""

    queue: str
    job: Handed


class Client:
    """One of them."""

    def __init__(self, world: "World", name: str, chance: Random, headers: dict[str, str]) -> None:
        self.name = name
        self._world = world
        self._chance = chance
        self._headers = headers
        self._numbers = count()
        self._wire: Wire | None = None
        self._again: list[Ask] = []
        self._held: list[Held] = []
        self._late: list[Held] = []
        self._done: list[tuple[str, int]] = []
        self._yard: list[dict[str, Any]] = []  # claims

    async def run(self) -> None:
        """Ask until enough has been asked, of every route."""
        while self._world.may_ask():
            asks = [self._choose() for _ in range(self._chance.choice((1, 1, 1, 1, 2, 4)))]
            await self._perform(asks)
            await trio.sleep(self._chance.choice(PAUSES_SECONDS))
        while self._world.endpoints_left:
            await self._perform([self._other(self._world.next_endpoint())])
        # In the end everybody leaves in the midst of a wait for what never comes.
        await self._perform([self._dequeue(["void"], wait_seconds=3.0)], patience=0.005)
        self._leave("reset")

    # --- what is asked

    def _choose(self) -> Ask:  # noqa: PLR0911 - one for each kind of request
        chance = self._chance
        if self._again and chance.random() < 0.5:
            return self._again.pop(0)
        if self._late and chance.random() < 0.1:
            return self._claim(self._late.pop(0), chance.choice(VERBS))
        if self._held and chance.random() < 0.6:
            return self._work()
        kind = chance.random()
        if kind < 0.27:
            return self._other(self._world.next_endpoint())
        if kind < 0.45:  # so few that it is often waited for
            return self._enqueue(chance.choice(CHECKED))
        if kind < 0.5 and self._done:
            return self._read(*chance.choice(self._done), chance.choice(WAITS_SECONDS))
        return self._dequeue(chance.choice((*CHECKED, ["pair:right", "pair:left"], "pair:*")))

    def _ask(self, endpoint: str, request: str, body: object = None, **facts: Any) -> Ask:
        method, target = request.split(" ")
        return Ask(endpoint, method, target, body, {**self._headers, **facts.pop("headers", {})}, **facts)

    def _name(self) -> str:
        return f"{self.name}-{next(self._numbers)}"

    def _maybe_key(self) -> str | None:
        return self._name() if self._chance.random() < 0.6 else None

    def _enqueue(self, queue: str) -> Ask:
        chance, world = self._chance, self._world
        if queue == "default" and chance.random() < 0.6:
            return self._enqueue_simple()
        if chance.random() < 0.15:
            return self._enqueue_stream(queue)
        payloads = tuple(next(world.payloads) for _ in range(chance.choice((1, 1, 2, 5))))
        key = self._maybe_key()

        def note(outcome: Outcome) -> None:
            ids = tuple(job["id"] for job in outcome.json["jobs"]) if outcome.json else ()
            world.record(Enqueue(queue=queue, client=self.name, key=key, payloads=payloads, ids=ids, **outcome.facts))

        jobs = [{"type": "work", "payload": payload} for payload in payloads]
        return self._ask("jobs.enqueue", f"POST /v1/queues/{queue}/enqueue", {"jobs": jobs}, note=note, key=key)

    def _enqueue_simple(self) -> Ask:
        payload, key = next(self._world.payloads), self._maybe_key()

        def note(outcome: Outcome) -> None:
            ids = (outcome.json["ID"],) if outcome.json else ()
            self._world.record(
                Enqueue(queue="default", client=self.name, key=key, payloads=(payload,), ids=ids, **outcome.facts)
            )

        method = self._chance.choice(("POST", "PUT"))
        return self._ask(
            "simple.enqueue", f"{method} /jobs/enqueue", {"Type": "a", "Payload": payload}, note=note, key=key
        )

    def _enqueue_stream(self, queue: str) -> Ask:
        payloads = [next(self._world.payloads) for _ in range(self._chance.choice((1, 9, 30)))]
        lines = b"".join(b'{"type": "work", "payload": %d}\n' % payload for payload in payloads)

        def note(outcome: Outcome) -> None:
            if outcome.refused is not None:
                return  # nothing was enqueued
            text = outcome.part if outcome.answer is None else outcome.answer.body
            done = 0
            for line in text.splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                chunk = json.loads(line)
                if "error" in chunk:
                    break  # of these lines, and what follows, it is not known how far they came
                told = tuple(payloads[done : chunk["lines"]])
                assert chunk["count"] == len(told)
                ids = tuple(range(chunk["first_id"], chunk["first_id"] + len(told)))
                moment = outcome.returned or self._world.now()
                self._world.record(Enqueue(queue=queue, payloads=told, ids=ids, called=outcome.called, returned=moment))
                done = chunk["lines"]
            if payloads[done:]:
                self._world.record(Enqueue(queue=queue, payloads=tuple(payloads[done:]), called=outcome.called))

        return self._ask("jobs.enqueue", f"POST /v1/queues/{queue}/enqueue", lines, note=note)

    def _wanted(self, wait_seconds: float | None = None) -> dict[str, Any]:
        wanted: dict[str, Any] = {"lease_seconds": self._chance.choice(LEASES_SECONDS), "consumer": self._name()}
        if (wait := self._chance.choice(WAITS_SECONDS) if wait_seconds is None else wait_seconds) > 0:
            wanted["wait_seconds"] = wait
        if (jobs := self._chance.choice((1, 1, 4))) > 1:
            wanted["count"] = jobs
        return wanted

    def _dequeue(self, source: str | list[str], wait_seconds: float | None = None) -> Ask:
        if source == "default" and self._chance.random() < 0.6:
            return self._dequeue_simple()
        wanted, key = self._wanted(wait_seconds), self._maybe_key()
        queues = [source] if isinstance(source, str) else source
        if source == "pair:*":
            queues = ["pair:left", "pair:right"]

        def note(outcome: Outcome) -> None:
            self._note_jobs(queues, wanted, key, outcome, outcome.json["jobs"] if outcome.json else ())

        facts: dict[str, Any] = {"note": note, "key": key, "consumer": wanted["consumer"]}
        if source in CHECKED:
            return self._ask("jobs.dequeue", f"POST /v1/queues/{source}/dequeue", wanted, **facts)
        body = {"queues": source, "order": self._chance.choice(("listed", "fair")), **wanted}
        return self._ask("jobs.dequeue_several", "POST /v1/dequeue", body, **facts)

    def _note_jobs(
        self, queues: Sequence[str], wanted: dict[str, Any], key: str | None, outcome: Outcome, jobs: Sequence[Any]
    ) -> None:
        """A dequeue, as one of each queue that it asked: where its jobs come from is known only from the answer."""
        for queue in queues:
            handed = tuple(
                Handed(job["id"], job["payload"], job["lease"]["fence"], job["lease"]["token"], job["attempts"])
                for job in jobs
                if job["queue"] == queue
            )
            self._note_dequeue(queue, wanted["lease_seconds"], key, outcome, handed)

    def _note_dequeue(
        self, queue: str, lease_seconds: float, key: str | None, outcome: Outcome, handed: tuple[Handed, ...]
    ) -> None:
        facts = outcome.facts
        if facts.get("refused") == "empty":
            facts["refused"] = None
        self._world.record(
            Dequeue(
                queue=queue,
                client=self.name,
                key=key,
                lease_seconds=lease_seconds - SLACK_SECONDS,
                jobs=handed,
                **facts,
            )
        )
        self._held += [Held(queue, job) for job in handed]

    def _dequeue_simple(self) -> Ask:
        key, consumer = self._maybe_key(), self._name()

        def note(outcome: Outcome) -> None:
            handed: tuple[Handed, ...] = ()
            if (job := outcome.json) is not None:
                assert outcome.answer is not None
                facts, token = outcome.answer.headers, outcome.answer.token
                fence, attempt = int(facts["queue-lease-fence"]), int(facts["queue-attempt"])
                handed = (Handed(job["ID"], job["Payload"], fence, token, attempt),)
            self._note_dequeue("default", DEFAULT_LEASE_SECONDS, key, outcome, handed)

        request = f"{self._chance.choice(('GET', 'POST'))} /jobs/dequeue?empty={self._chance.choice(('204', '404'))}"
        if (wait := self._chance.choice(WAITS_SECONDS)) > 0:
            request += f"&wait={wait}"
        headers = {"Queue-Consumer": consumer}
        return self._ask("simple.dequeue", request, headers=headers, note=note, key=key, consumer=consumer)

    def _work(self) -> Ask:
        """Say something of jobs that are held, or let one lie until it is too late."""
        chance = self._chance
        if len(self._held) > 1 and chance.random() < 0.4:
            return self._claim_many(chance.choice(VERBS))
        held = self._held.pop(0)
        if chance.random() < 0.15:
            self._late.append(held)
            return self._read(held.queue, held.job.id, chance.choice(WAITS_SECONDS))
        what = chance.choices(VERBS, weights=(60, 8, 8, 10), k=1)[0]
        if what == "extend":
            self._held.append(held)
        return self._claim(held, what)

    def _note_claim(self, verb: Verb, held: Held, outcome: Outcome, refused: str | None, seconds: float) -> None:
        facts = outcome.facts | ({"refused": refused} if refused is not None else {})
        claim = Claim(
            queue=held.queue,
            verb=verb,
            id=held.job.id,
            token=held.job.token,
            lease_seconds=seconds - SLACK_SECONDS,
            **facts,
        )
        self._world.record(claim)
        if claim.accepted and verb == "conclude":
            self._done.append((held.queue, held.job.id))

    def _claim(self, held: Held, verb: Verb) -> Ask:
        if held.queue == "default" and verb == "conclude" and self._chance.random() < 0.6:
            method = self._chance.choice(("POST", "PUT", "PATCH"))
            return self._ask(
                "simple.conclude",
                f"{method} /jobs/{held.job.id}/conclude",
                headers={"Queue-Lease-Token": held.job.token},
                note=lambda outcome: self._note_claim(verb, held, outcome, None, 0.0),
            )
        seconds = self._chance.choice(LEASES_SECONDS)
        body: dict[str, Any] = {"token": held.job.token} | ({"lease_seconds": seconds} if verb == "extend" else {})
        rides = verb != "extend" and self._chance.random() < 0.3
        wanted, key = self._wanted(), self._name() if rides else None

        def note(outcome: Outcome) -> None:
            self._note_claim(verb, held, outcome, None, seconds)
            if rides:
                self._note_ride([held.queue], wanted, key, outcome)

        if rides:
            body["dequeue"] = wanted
        return self._ask(
            f"jobs.{verb}_one",
            f"POST /v1/queues/{held.queue}/jobs/{held.job.id}/{verb}",
            body,
            note=note,
            key=key,
            consumer=wanted["consumer"] if rides else None,
        )

    def _note_ride(self, queues: Sequence[str], wanted: dict[str, Any], key: str | None, outcome: Outcome) -> None:
        """The dequeue that came with another verb. If that was refused, it was not carried out."""
        jobs = outcome.json["dequeued"]["jobs"] if outcome.json else ()
        self._note_jobs(queues, wanted, key, outcome, jobs)

    def _claim_many(self, verb: Verb) -> Ask:
        held = self._held[:8]
        across = len({each.queue for each in held}) > 1 or self._chance.random() < 0.3
        del self._held[:8]
        seconds = self._chance.choice(LEASES_SECONDS)
        facts = {"lease_seconds": seconds} if verb == "extend" else {}
        jobs = [{"queue": each.queue, "id": each.job.id, "token": each.job.token, **facts} for each in held]

        def note(outcome: Outcome) -> None:
            results = outcome.json["jobs"] if outcome.json else [{}] * len(held)
            for each, result in zip(held, results, strict=True):
                self._note_claim(verb, each, outcome, result.get("error", {}).get("code"), seconds)

        if across:
            return self._ask(f"jobs.{verb}_across", f"POST /v1/{verb}", {"jobs": jobs}, note=note)
        return self._ask(f"jobs.{verb}_many", f"POST /v1/queues/{held[0].queue}/{verb}", {"jobs": jobs}, note=note)

    def _read(self, queue: str, id_: int, wait_seconds: float = 0.0) -> Ask:
        def note(outcome: Outcome) -> None:
            state: str = outcome.json["state"] if outcome.json else outcome.refused or ""
            if outcome.json or state in {"unknown_job", "forgotten"}:
                returned = outcome.returned
                self._world.record(Read(queue=queue, id=id_, state=state, called=outcome.called, returned=returned))

        wait = f"?wait_seconds={wait_seconds}" if wait_seconds else ""
        return self._ask("queues.read_job", f"GET /v1/queues/{queue}/jobs/{id_}{wait}", note=note)

    def _other(self, endpoint: str) -> Ask:  # noqa: PLR0911 - one for each kind of request
        """A request of a route, whichever that is; of a queue, it is one in the yard."""
        chance = self._chance
        queue = chance.choice(YARD)
        verb = endpoint.partition(".")[2].rpartition("_")[0]
        id_ = self._yard[-1]["id"] if self._yard else chance.randrange(1, 20)
        claims = [self._yard.pop() for _ in range(min(3, len(self._yard)))] or [{"queue": queue, "id": 1, "token": "x"}]
        one = claims[0]
        of_one = f"/v1/queues/{one['queue']}/jobs/{one['id']}"
        of_any = f"/v1/queues/{queue}/jobs/{id_}"
        ride = {"dequeue": {"wait_seconds": 0.1, "queues": "yard:*"}} if chance.random() < 0.5 else {}
        wanted = {"count": 2, "wait_seconds": chance.choice(WAITS_SECONDS), "consumer": chance.choice(("w", "v"))}
        of_queue = {
            "queues.read_queue": (f"{chance.choice(('GET', 'HEAD'))} /v1/queues/{queue}", None),
            "queues.put_queue": (f"PUT /v1/queues/{queue}", {"retry": RETRY, "lease_seconds": 0.5, "paused": False}),
            "queues.delete_queue": (f"DELETE /v1/queues/{queue}", None),
            "queues.pause": (f"POST /v1/queues/{queue}/pause", None),
            "queues.resume": (f"POST /v1/queues/{queue}/resume", None),
            "queues.purge": (f"POST /v1/queues/{queue}/purge", {"state": ["dead", "queued"], "type": "b"}),
            "queues.redrive": (f"POST /v1/queues/{queue}/redrive", {"per_second": 100} if ride else {}),
            "queues.search": (f"GET /v1/queues/{queue}/jobs?state=dead,queued&include=content", None),
            "queues.read_job": (f"GET {of_any}?wait_seconds=0.3", None),
            "queues.forget": (f"DELETE {of_any}", None),
            "queues.cancel": (f"POST {of_any}/cancel", None),
            "queues.redrive_one": (f"POST {of_any}/redrive", None),
            "queues.run": (f"POST {of_any}/run", None),
            "queues.cancel_many": (f"POST /v1/queues/{queue}/cancel", {"type": "b", "dry_run": bool(ride)}),
            "overview.overview": ("GET /v1/overview?limit=2&order=waiting", None),
            "overview.trend": (f"GET /v1/queues/{queue}/trend", None),
            "overview.why": (f"GET {of_any}/why", None),
            "overview.access": ("GET /v1/access", None),
            "events.follow": (f"GET /v1/events?queue=yard*&wait_seconds={chance.choice(WAITS_SECONDS)}", None),
            "queues.list_queues": ("GET /v1/queues?limit=3", None),
            "simple.read": (f"GET /jobs/{id_}", None),
            "ops.monitor": ("GET /metrics", None),
            "ops.statistics": ("GET /v1/statistics", None),
            "ops.backup": ("GET /v1/backup", None),
            "ops.healthz": ("GET /healthz", None),
            "ops.readyz": ("GET /readyz", None),
            "dashboard.home": ("GET /", None),
            "dashboard.page": ("GET /ui", None),
            "dashboard.part": ("GET /ui/app.js", None),
            "docs.document": ("GET /openapi.json", None),
            "docs.page": ("GET /docs", None),
            "docs.style": ("GET /docs/style.css", None),
        }
        if endpoint in of_queue:
            request, body = of_queue[endpoint]
            return self._ask(endpoint, request, body)
        match endpoint:
            case "jobs.enqueue":
                return self._ask(endpoint, f"POST /v1/queues/{queue}/enqueue", {"jobs": self._yard_jobs()})
            case "jobs.dequeue":
                return self._ask(endpoint, f"POST /v1/queues/{queue}/dequeue", wanted, note=self._note_yard)
            case "jobs.dequeue_several":
                return self._ask(endpoint, "POST /v1/dequeue", {"queues": "yard:*", **wanted}, note=self._note_yard)
            case "simple.enqueue":
                return self._enqueue_simple()
            case "simple.dequeue":
                return self._dequeue_simple()
            case "simple.conclude":
                return self._ask(endpoint, "POST /jobs/1/conclude", headers={"Queue-Lease-Token": "none"})
            case "jobs.release_one" if ride:
                return self._ask(endpoint, f"POST {of_any}/release")
            case "jobs.release_many" if ride:
                return self._ask(endpoint, f"POST /v1/queues/{queue}/release", {"consumer": "w"})
        if endpoint.endswith("_one"):
            ride = {} if verb == "extend" else ride
            return self._ask(endpoint, f"POST {of_one}/{verb}", {"token": one["token"], **ride}, note=self._note_yard)
        if endpoint.endswith("_many"):
            mine = [claim for claim in claims if claim["queue"] == one["queue"]]
            return self._ask(endpoint, f"POST /v1/queues/{one['queue']}/{verb}", {"jobs": mine}, note=self._note_yard)
        assert endpoint.endswith("_across"), f"nobody asks {endpoint}: see `Client._other`"
        return self._ask(endpoint, f"POST /v1/{verb}", {"jobs": claims}, note=self._note_yard)

    def _yard_jobs(self) -> list[dict[str, Any]]:
        chance = self._chance
        extras: list[dict[str, Any]] = [
            {"priority": 3},
            {"delay_seconds": 0.3},
            {"unique_key": "u", "on_existing": chance.choice(("keep", "replace", "refuse"))},
            {"ttl_seconds": 0.5},
            {"payload": "x" * 3_000, "meta": {"a": "b"}},
        ]
        common = {"retry": RETRY, "max_attempts": 3, "lease_seconds": chance.choice(LEASES_SECONDS)}
        return [{"type": chance.choice("ab"), **common, **chance.choice(extras)} for _ in range(chance.choice((1, 3)))]

    def _note_yard(self, outcome: Outcome) -> None:
        if outcome.json:
            jobs = [*outcome.json["jobs"]] if "jobs" in outcome.json else []
            jobs += outcome.json.get("dequeued", {}).get("jobs", [])
            self._yard += [
                {"queue": job["queue"], "id": job["id"], "token": job["lease"]["token"]}
                for job in jobs
                if (job.get("lease") or {}).get("token")
            ]

    # --- how it is asked

    async def _connect(self, *, calm: bool) -> Wire:
        chance = self._chance
        await self._world.up.wait()
        server, life = self._world.server, self._world.life
        windows = (
            {} if calm else {"there_bytes": chance.choice(WINDOWS_BYTES), "back_bytes": chance.choice(WINDOWS_BYTES)}
        )
        ours, theirs = connection(**windows)
        reader = Reader(ours)
        if not calm and chance.random() < 0.15:
            reader.bytes_max, reader.pause_seconds = chance.choice(((20, 0.02), (500, 0.3), (10, 1.0)))
        wire = Wire(ours, reader, server, life)
        self._world.wires.append(wire)
        server.accept(theirs)
        return wire

    def _pieces(self, data: bytes, *, calm: bool) -> Iterator[tuple[bytes, float]]:
        """What is sent, piece by piece, with the pause after each."""
        chance = self._chance
        if calm or chance.random() < 0.7:
            yield data, 0.0
        elif chance.random() < 0.15:
            for n in range(min(len(data), 400)):
                yield data[n : n + 1], 0.0
            yield data[400:], 0.0
        else:
            size = chance.randint(20, 400)
            pause = chance.choice((0.0, 0.0, 0.001, 0.03))
            for n in range(0, len(data), size):
                yield data[n : n + size], pause

    async def _perform(self, asks: list[Ask], patience: float | None = None) -> None:
        """Ask all of these ahead, and read their answers, or leave before they have all come."""
        calm = any(ask.endpoint in VOLATILE for ask in asks)
        if calm or (self._wire is not None and (self._wire.closing or self._chance.random() < 0.1)):
            self._leave(self._chance.choice(("close", "close", "reset", "silence")))
        wire = self._wire = self._wire or await self._connect(calm=calm)
        for ask in asks:
            self._world.left_at.pop(ask.consumer or "", None)  # it is back
        names = [self._name() for _ in asks]
        data = b"".join(ask.data(name) for ask, name in zip(asks, names, strict=True))
        called, answered = [self._world.now() for _ in asks], 0
        if patience is None:
            patience = ANSWER_SECONDS
            if not calm and self._chance.random() < 0.25:
                patience = self._chance.choice(PATIENCE_SECONDS)

        async def read(seconds: float) -> bool:
            """Whether all answers came."""
            nonlocal answered
            with trio.move_on_after(seconds):
                while answered < len(asks):
                    ask = asks[answered]
                    answer = await wire.reader.read(ask.method)
                    self._check(ask, names[answered], answer, wire)
                    answered += 1
                    self._settle(ask, Outcome(called[answered - 1], self._world.now(), answer))
                return True
            return False

        way = "close"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, wire, list(self._pieces(data, calm=calm)))
                done = await read(patience)
                if not done:
                    slow = wire.reader.pause_seconds > 0
                    assert patience < ANSWER_SECONDS or slow, f"{self.name} had no answer to {asks[answered]}"
                    way = self._chance.choice(("reset", "close", "half-close", "silence"))
                if way == "half-close":
                    wire.end.sends.end()
                    await read(1.0)
                nursery.cancel_scope.cancel()
        except* CutError:
            done = False
            if way == "close":
                self._excuse(wire, asks, answered, called[answered])
        if done:
            return
        part = bytes(wire.reader.body)
        for n, ask in enumerate(asks[answered:], answered):
            if ask.consumer is not None:
                if way == "silence":
                    self._world.staying.add(ask.consumer)
                self._world.left_at[ask.consumer] = self._world.now()
            self._world.met[f"left: {way}"] += 1
            self._settle(ask, Outcome(called[n], part=part if n == answered else b""))
        self._leave(way)

    async def _send(self, wire: Wire, pieces: Sequence[tuple[bytes, float]]) -> None:
        try:
            for piece, pause in pieces:
                await wire.end.send_all(piece)
                if pause:
                    await trio.sleep(pause)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # who reads is told

    def _excuse(self, wire: Wire, asks: Sequence[Ask], answered: int, called: float) -> None:
        """Whether the server may end a connection with answers outstanding, and its client still there."""
        ended = wire.life != self._world.life or self._world.ending
        slow = wire.reader.pause_seconds > 0
        at_once = self._world.now() - called < AT_ONCE_SECONDS
        # Between two requests it may close a connection, and what comes then is not answered. That is told at once.
        between = not wire.reader.begun and wire.used and at_once
        # What was sent behind the last request. (One that is refused unread may be a HEAD, and its answer have a body.)
        ahead = wire.closing
        assert ended or slow or between or ahead, f"{self.name} had no answer to {asks[answered]}"
        reasons = {"restart": ended, "slow": slow, "between": between, "ahead": ahead}
        self._world.met["cut: " + next(reason for reason, held in reasons.items() if held)] += 1

    def _check(self, ask: Ask, name: str, answer: Answer, wire: Wire) -> None:
        """What every answer has to be."""
        wire.server.check(answer, ask.method)
        wire.server.described.check(ask.method, ask.target, answer)
        plain = re.sub(r"/jobs/\d+", "/jobs/1", re.sub(r"/queues/[^/?]+", "/queues/q", ask.target))
        check_codes(ask.method, plain, answer)
        assert answer.status != 500, answer
        told = answer.headers["x-request-id"]
        if told != name:
            assert answer.status >= 400, (name, answer)
            assert ask.method == "HEAD" or answer.json["code"] in OF_CONNECTIONS, (name, answer)
            assert "-" in told, answer
            assert not self._world.is_clients(told), f"{name} was given the answer to {told}"
        wire.used = True
        wire.closing = answer.headers.get("connection") == "close"
        body = b"" if ask.endpoint in VOLATILE else EVENT_IDS.sub(b"", answer.body)
        self._world.trace.note(f"{name} {ask.endpoint} {answer.status} {self._world.now():.6f}", body)
        code = answer.json["code"] if answer.status >= 400 and answer.body else ""
        self._world.answered[f"{answer.status} {code}".strip()] += 1

    def _settle(self, ask: Ask, outcome: Outcome) -> None:
        """Note what came of it, and whether it is sent again."""
        ask.note(outcome)
        if ask.again and len(self._again) < 5 and self._chance.random() < (0.7 if outcome.answer is None else 0.1):
            self._again.append(ask)

    def _leave(self, way: str) -> None:
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if way == "reset":
            wire.end.reset()
        elif way != "silence":
            wire.end.close()
