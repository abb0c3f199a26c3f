"""Commands called within the process, against a server that answers what a test has told it to."""

import io
import json
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from queue_actor.client import Client
from queue_actor.commandline.group import main
from queue_actor.commandline.session import Target

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
URL = "http://queue.test"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The lines of the output, each of them JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class FakeServer:
    """Answers each route with what is left of its answers, the last one again and again."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: dict[str, deque[httpx.Response | Exception]] = {}

    def answers(self, route: str, document: Any = None, status: int = 200, **headers: str) -> None:
        """Have the next request to a route, such as `GET /v1/queues/q`, answered so."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self._add(route, httpx.Response(status, content=content, headers=headers))

    def refuses(self, route: str, code: str, status: int, field: str | None = None) -> None:
        """Have it refused."""
        self.answers(route, {"code": code, "detail": f"it is {code}", "field": field}, status)

    def breaks(self, route: str) -> None:
        """Have the connection broken instead."""
        self._add(route, httpx.ReadError("broken"))

    def forget(self, route: str) -> None:
        """Have a route answer as is said from now on."""
        self._answers.pop(route, None)

    def _add(self, route: str, answer: httpx.Response | Exception) -> None:
        self._answers.setdefault(route, deque()).append(answer)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        waiting = self._answers.get(f"{request.method} {request.url.path}")
        if waiting is None:
            return httpx.Response(404, json={"code": "not_found", "detail": "there is no such path"})
        answer = waiting.popleft() if len(waiting) > 1 else waiting[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def bodies(self, route: str) -> list[Any]:
        """What was sent to a route."""
        return [
            json.loads(request.content) if request.content else None
            for request in self.requests
            if f"{request.method} {request.url.path}" == route
        ]


class Command:
    """The program, as a shell calls it."""

    def __init__(self, server: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self.home = home
        self.environment = {"HOME": str(home), "QUEUE_ACTOR_URL": URL}
        self.targets: list[Target] = []
        self.slept: list[float] = []
        self._capsys = capsys

    def connect(self, target: Target) -> Client:
        self.targets.append(target)
        return Client(target.url, target.token, repeat_seconds=0, transport=httpx.MockTransport(self.server))

    def __call__(self, *arguments: str) -> Ran:
        code = main(arguments, self.environment, connect=self.connect, now=lambda: NOW, sleep=self.slept.append)
        return Ran(code, *self._capsys.readouterr())


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def command(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(server, tmp_path, capsys)


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Sets what standard input has."""

    def set_to(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="surrogateescape"))

    return set_to


def job_document(id_: int = 17, **facts: Any) -> dict[str, Any]:
    """A job, as a server shows it."""
    return {
        "queue": "q",
        "id": id_,
        "type": "t",
        "state": "queued",
        "priority": 0,
        "payload": None,
        "meta": {},
        "traceparent": None,
        "unique_key": None,
        "created_at": "2027-01-15T07:00:00.000Z",
        "not_before": None,
        "expires_at": None,
        "attempts": 0,
        "fails": 0,
        "stales": 0,
        "max_attempts": None,
        "consumer": None,
        "lease": None,
        "cancel_requested": False,
        "progress": None,
        "result": None,
        "reason": None,
        "finished_at": None,
    } | facts


def queue_document(name: str = "q", **facts: Any) -> dict[str, Any]:
    """A queue, as a server shows it; `counts` and `per_minute` are added to zeros."""
    states = ("scheduled", "queued", "in_progress", "concluded", "dead", "cancelled")
    verbs = ("enqueue", "dequeue", "conclude", "fail", "release", "stale", "dead")
    counts = dict.fromkeys(states, 0) | facts.pop("counts", {})
    per_minute = dict.fromkeys(verbs, 0.0) | facts.pop("per_minute", {})
    return {
        "name": name,
        "exists": True,
        "paused": False,
        "declared": False,
        "counts": counts,
        "oldest_age_seconds": None,
        "per_minute": per_minute,
        "waiters": 0,
        "consumers": [],
        "last_id": 0,
        "policy": {
            "max_attempts": 25,
            "max_stale": 5,
            "retry": {"kind": "exponential", "base_seconds": 1, "factor": 2, "cap_seconds": 3600, "jitter": "full"},
            "lease_seconds": None,
            "ttl_seconds": None,
            "queued_jobs_max": None,
            "in_progress_max": None,
            "run_seconds_max": None,
            "oldest_every": 0,
            "retention_seconds": None,
            "dead_retention_seconds": None,
        },
    } | facts
