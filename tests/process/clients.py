"""Clients of a server that may die at any moment. They do what clients do, and write down what they saw of it.

Each is a thread with a connection and a random generator of its own. It enqueues one job or several; it dequeues with
short leases, concludes, fails, releases, extends, or says nothing more and comes back too late; it repeats what it got
no answer to, or gives up; now and then it hangs up before the answer.
"""

import http.client
import itertools
import json
import random
import threading
import time
from functools import partial
from typing import Any, Literal, NamedTuple

from tests.process.history import Claim, Dequeue, Enqueue, Event, Handed, Read
from tests.process.server import ANSWER_SECONDS, START_SECONDS, Answer, Server

QUEUES = ("left", "right")

POLICY = {
    # A job that is handed out without end is what the checker has to see, not one that dies of it.
    "max_attempts": None,
    "max_stale": None,
    "retry": {"kind": "fixed", "base_seconds": 0.05, "jitter": "none"},
}

LEASES_SECONDS = (0.3, 0.5, 1.0)
WAITS_SECONDS = (0.0, 0.0, 0.1)
TRIES_MAX = 4
LATER = frozenset({"starting", "busy", "draining", "too_many_waiters"})
"""Refusals after which the same may be sent again."""
TOO_LATE = frozenset({"lease_lost", "forgotten", "unknown_job"})
"""Refusals for the checker to judge. Any other ends the run."""

DRAIN_SECONDS = 60.0
DRAIN_LEASE_SECONDS = 30.0
PAGE_JOBS = 1_000

Verb = Literal["conclude", "fail", "release", "extend"]


class OverError(Exception):
    """The run is over, and the server gone."""


class Scene:
    """What the clients share with whoever kills the server: where it is, whether it is up, and the history."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failures: list[Exception] = []
        self.payloads = itertools.count(1)
        self.host, self.port = "", 0
        self.over = False
        self._up = False
        self._news = threading.Condition()

    def record(self, *events: Event) -> None:
        with self._news:
            self.events += events
            self._news.notify_all()

    def fail(self, failure: Exception) -> None:
        """Note that a client met with something that it does not know how to deal with."""
        with self._news:
            self.failures.append(failure)
            self._news.notify_all()

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more events have been recorded, while others go on."""
        with self._news:
            target = len(self.events) + count
            self._news.wait_for(lambda: self.failures or len(self.events) >= target, START_SECONDS)
            if self.failures:
                raise self.failures[0]
            assert len(self.events) >= target, "the clients made no progress"

    def comes_up(self, server: Server) -> None:
        with self._news:
            self.host, self.port, self._up = server.host, server.port, True
            self._news.notify_all()

    def goes_down(self) -> None:
        with self._news:
            self._up = False

    def end(self) -> None:
        """Have the clients stop after what they are doing."""
        with self._news:
            self.over = True
            self._news.notify_all()

    def wait_until_up(self, seconds: float) -> None:
        """Wait for the server, or for some time: there are clients which do not wait for it to be ready."""
        with self._news:
            self._news.wait_for(lambda: self._up or self.over, seconds)
            if self.over and not self._up:
                raise OverError


class Asked(NamedTuple):
    """A request that was made: when, and what came of it. `returned` is None if nothing is known of the outcome."""

    called: float
    returned: float | None = None
    answer: Answer | None = None

    @property
    def refused(self) -> str | None:
        """The code of an answer which says that nothing was done."""
        if self.answer is None or self.answer.status == http.HTTPStatus.OK:
            return None
        code: str = self.answer.body["code"]
        return code

    @property
    def body(self) -> Any:
        """The body of an answer that has to be there."""
        assert self.answer is not None
        return self.answer.body

    @property
    def jobs(self) -> list[Any]:
        """The jobs that the answer tells of; none if there is no such answer."""
        return [] if self.answer is None or self.refused else list(self.body["jobs"])

    @property
    def facts(self) -> dict[str, Any]:
        """What it is in a history."""
        return {"called": self.called, "returned": self.returned, "refused": self.refused}


class Held(NamedTuple):
    """A job that a client holds."""

    queue: str
    job: Handed
    ends: float
    """When its lease has ended for certain, unless there was a crash."""


class Client:
    """One client. What it asks is recorded in the scene; what it cannot explain ends the run."""

    def __init__(self, scene: Scene, name: str, seed: int, *, hang_ups: float = 0.0) -> None:
        """`hang_ups` is the share of its requests of which it does not read the answer."""
        self.name = name
        self._hang_ups = hang_ups
        self._scene = scene
        self._chance = random.Random(f"{seed}/{name}")  # noqa: S311 - a seed has to repeat it
        self._keys = (f"{name}-{number}" for number in itertools.count())
        self._connection: http.client.HTTPConnection | None = None
        self._idle = True
        """Whether there was no job when it last asked for one: then it makes some."""
        self._silent: list[Held] = []
        self._done: list[tuple[str, int]] = []

    def run(self) -> None:
        """Be a client until the run is over."""
        try:
            while not self._scene.over:
                self._step()
        except OverError:
            pass
        except Exception as failure:  # noqa: BLE001 - raised again by whoever started the clients
            self._scene.fail(failure)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what it does

    def _step(self) -> None:
        queue = self._chance.choice(QUEUES)
        if self._chance.random() < (0.9 if self._idle else 0.25):
            self._produce(queue)
        else:
            self._consume(queue)
        if self._silent and self._silent[0].ends < time.monotonic():
            late = self._silent.pop(0)
            self.claim(self._chance.choice(("conclude", "fail", "release", "extend")), late.queue, late.job, 1.0)
        if self._done and self._chance.random() < 0.1:
            self.read(*self._chance.choice(self._done[-50:]))

    def _produce(self, queue: str) -> None:
        count = 1 if self._chance.random() < 0.5 else self._chance.randint(2, 8)
        payloads = tuple(itertools.islice(self._scene.payloads, count))
        key = next(self._keys)
        for _ in range(TRIES_MAX):
            call = self._enqueue(queue, payloads, key)
            if call.accepted and self._chance.random() < 0.9:
                return
            if call.returned is None and self._chance.random() < 0.3:
                return  # it gives up, and will never know

    def _enqueue(self, queue: str, payloads: tuple[int, ...], key: str) -> Enqueue:
        jobs = [{"type": "work", "payload": payload} for payload in payloads]
        asked = self._ask(f"/v1/queues/{queue}/enqueue", {"jobs": jobs}, key)
        ids = tuple(job["id"] for job in asked.jobs)
        call = Enqueue(queue=queue, client=self.name, key=key, payloads=payloads, ids=ids, **asked.facts)
        self._scene.record(call)
        return call

    def _consume(self, queue: str) -> None:
        key = next(self._keys) if self._chance.random() < 0.5 else None
        count = 1 if self._chance.random() < 0.5 else self._chance.randint(2, 5)
        lease_seconds = self._chance.choice(LEASES_SECONDS)
        ask = partial(
            self.dequeue,
            queue,
            count=count,
            wait_seconds=self._chance.choice(WAITS_SECONDS),
            lease_seconds=lease_seconds,
            key=key,
        )
        call = ask()
        for _ in range(TRIES_MAX):
            if call.returned is not None or key is None:
                break  # without a key it would be another request
            call = ask()
        self._idle = not call.jobs
        if call.returned is None or not call.jobs:
            return
        if self._chance.random() < 0.2:
            self.conclude_all(queue, call.jobs)
            return
        for job in call.jobs:
            self._work(Held(queue, job, call.returned + lease_seconds + 0.2), lease_seconds)

    def _work(self, held: Held, lease_seconds: float) -> None:
        match self._chance.choices(
            ("conclude", "fail", "release", "extend", "silence"), weights=(60, 10, 8, 8, 14), k=1
        ):
            case ["silence"]:
                self._silent.append(held)
            case ["extend"]:
                if self.claim("extend", held.queue, held.job, lease_seconds):
                    self.claim("conclude", held.queue, held.job)
            case ["fail"]:
                self.claim("fail", held.queue, held.job)
            case ["release"]:
                self.claim("release", held.queue, held.job)
            case _:
                self.claim("conclude", held.queue, held.job)

    # --- the verbs, recorded

    def dequeue(
        self,
        queue: str,
        *,
        count: int,
        wait_seconds: float,
        lease_seconds: float,
        key: str | None = None,
    ) -> Dequeue:
        """One try of a dequeue."""
        body = {"count": count, "wait_seconds": wait_seconds, "lease_seconds": lease_seconds, "consumer": self.name}
        asked = self._ask(f"/v1/queues/{queue}/dequeue", body, key)
        jobs = tuple(
            Handed(
                id=job["id"],
                payload=job["payload"],
                fence=job["lease"]["fence"],
                token=job["lease"]["token"],
                attempt=job["attempts"],
            )
            for job in asked.jobs
        )
        call = Dequeue(queue=queue, client=self.name, key=key, lease_seconds=lease_seconds, jobs=jobs, **asked.facts)
        self._scene.record(call)
        return call

    def claim(self, verb: Verb, queue: str, job: Handed, lease_seconds: float = 0.0) -> bool:
        """A verb of a holder, tried again without an answer, and now and then with one; whether it was accepted."""
        body = {"token": job.token} | ({"lease_seconds": lease_seconds} if verb == "extend" else {})
        accepted = False
        for _ in range(TRIES_MAX):
            asked = self._ask(f"/v1/queues/{queue}/jobs/{job.id}/{verb}", body)
            call = Claim(
                queue=queue,
                client=self.name,
                verb=verb,
                id=job.id,
                token=job.token,
                lease_seconds=lease_seconds,
                **asked.facts,
            )
            self._scene.record(call)
            self._note(call)
            accepted = accepted or call.accepted
            if call.refused not in LATER and self._chance.random() < (0.3 if call.returned is None else 0.95):
                break
        return accepted

    def conclude_all(self, queue: str, jobs: tuple[Handed, ...]) -> None:
        """Conclude many with one request: a claim for each."""
        asked = self._ask(
            f"/v1/queues/{queue}/conclude", {"jobs": [{"id": job.id, "token": job.token} for job in jobs]}
        )
        errors = [told.get("error") for told in asked.jobs] or [None] * len(jobs)
        for job, error in zip(jobs, errors, strict=True):
            facts = asked.facts | ({"refused": error["code"]} if error else {})
            call = Claim(queue=queue, client=self.name, verb="conclude", id=job.id, token=job.token, **facts)
            self._scene.record(call)
            self._note(call)

    def _note(self, call: Claim) -> None:
        if call.verb == "conclude" and call.accepted:
            self._done.append((call.queue, call.id))

    def read(self, queue: str, id_: int) -> None:
        """Read one job."""
        asked = self._ask(f"/v1/queues/{queue}/jobs/{id_}", method="GET")
        if asked.answer is not None and asked.refused not in LATER:
            state = asked.refused or asked.answer.body["state"]
            self._record_read(queue, id_, state, asked)

    def _record_read(self, queue: str, id_: int, state: str, asked: Asked) -> None:
        self._scene.record(
            Read(queue=queue, client=self.name, called=asked.called, returned=asked.returned, id=id_, state=state)
        )

    # --- the end

    def drain(self, queue: str) -> None:
        """Conclude jobs until the queue has none that is not finished."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            call = self.dequeue(queue, count=100, wait_seconds=0.5, lease_seconds=DRAIN_LEASE_SECONDS)
            if call.jobs:
                self.conclude_all(queue, call.jobs)
                continue
            counts = self._must(f"/v1/queues/{queue}").body["counts"]
            if not any(counts.get(state) for state in ("scheduled", "queued", "in_progress")):
                return
            assert time.monotonic() < deadline, f"{queue} could not be drained: {counts}"

    def read_all(self, queue: str) -> None:
        """Read every job that the queue lists, and those of the history that it does not."""
        listed: set[int] = set()
        cursor = ""
        while True:
            asked = self._must(f"/v1/queues/{queue}/jobs?limit={PAGE_JOBS}{cursor}")
            for job in asked.jobs:
                listed.add(job["id"])
                self._record_read(queue, job["id"], job["state"], asked)
            following = asked.body["next_cursor"]
            if following is None:
                break
            cursor = f"&cursor={following}"
        known = {
            id_ for call in self._scene.events if isinstance(call, Enqueue) and call.queue == queue for id_ in call.ids
        }
        for id_ in sorted(known - listed):
            self.read(queue, id_)

    def put_policy(self, queue: str) -> None:
        """Make a queue in which no job dies."""
        self._must(f"/v1/queues/{queue}", POLICY, method="PUT")

    def _must(self, path: str, body: object = None, *, method: str = "GET") -> Asked:
        asked = self._ask(path, body, method=method)
        assert asked.answer is not None
        assert asked.answer.status == http.HTTPStatus.OK, asked.answer
        return asked

    # --- the connection

    def _connect(self) -> None:
        """Have a connection, waited for."""
        deadline = time.monotonic() + 2 * START_SECONDS
        while self._connection is None:
            self._scene.wait_until_up(self._chance.uniform(0.02, 1.0))
            connection = http.client.HTTPConnection(self._scene.host, self._scene.port, timeout=ANSWER_SECONDS)
            try:
                connection.connect()
            except OSError:
                assert time.monotonic() < deadline, "the server takes no connections"
                threading.Event().wait(0.01)
            else:
                self._connection = connection

    def _ask(self, path: str, body: object = None, key: str | None = None, *, method: str = "POST") -> Asked:
        self._connect()
        assert self._connection is not None
        headers = {} if key is None else {"Idempotency-Key": key}
        called = time.monotonic()
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            if self._chance.random() < self._hang_ups:
                self.hang_up()
                return Asked(called)
            response = self._connection.getresponse()
            answer = Answer(response.status, response.headers, json.load(response))
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            self.hang_up()  # the server may be killed at any byte
            return Asked(called)
        asked = Asked(called, time.monotonic(), answer)
        if response.will_close:
            self.hang_up()
        if asked.refused == "outcome_unknown":
            return Asked(called)
        if asked.refused in LATER:
            self._scene.wait_until_up(0.1)
        assert asked.refused is None or asked.refused in LATER | TOO_LATE, answer.body
        return asked
