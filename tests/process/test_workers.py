"""The example workers at work on the real server, all kinds of them at once, through the accidents that leases are for.

A job names a file, and a worker is held in mid-job by a file that is a pipe: it reads until the test closes that. So
the workers are run as they are copied, and nothing in them knows of a test.
"""

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from tests.process.server import ROOT, START_SECONDS, Server, eventually, running_server
from tests.process.test_real_work import files_of_the_standard_library
from tests.process.tokens import bearer, token

pytestmark = pytest.mark.process

WORKERS = ROOT / "tests/process/workers"
# A shell counts in whole seconds: it beats once in one, and the others do here too.
LEASE_SECONDS = 4
PATIENCE_SECONDS = 40.0
FILES = 300

COMMANDS = {"py": [sys.executable, "worker.py"], "mjs": ["node", "worker.mjs"], "sh": ["sh", "worker.sh"]}
NEEDED = {"py": [], "mjs": ["node"], "sh": ["curl", "sha256sum"]}
MISSING = {kind: [program for program in needed if shutil.which(program) is None] for kind, needed in NEEDED.items()}
NO_SUCH_FILE = {"py": "FileNotFoundError", "mjs": "ENOENT", "sh": "exit 1"}

each_kind = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=pytest.mark.skipif(bool(missing), reason=f"worker.{kind} needs {', '.join(missing)}: not here")
        )
        for kind, missing in MISSING.items()
    ],
)


class Said(NamedTuple):
    """A line that a worker printed."""

    word: str
    id: int


class Worker:
    """A worker process in a group of its own; `said` is what it has printed."""

    def __init__(self, kind: str, name: str, address: str, queue: str, **environment: str) -> None:
        self.kind = kind
        self.name = name
        self.said: list[Said] = []
        program, file = COMMANDS[kind]
        self.process = subprocess.Popen(
            [program, str(WORKERS / file), address, queue],
            env=os.environ | {"CONSUMER": name, "LEASE_SECONDS": str(LEASE_SECONDS)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # unless all of it has ended
            os.killpg(self.process.pid, signal.SIGKILL)  # which ends a stopped process too
        self.process.wait()
        self._listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, id_ = line.split()
            self.said.append(Said(word, int(id_)))

    def kill(self) -> None:
        """End the worker without a word of warning, and nothing else of what it has started."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it sleep, with all that it has started."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        """Its exit code, waited for."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._listener.join(PATIENCE_SECONDS)
        return code


class Hold:
    """A file that holds its reader: a pipe that the test keeps open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._end: int | None = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self, content: bytes = b"") -> None:
        """Give its readers this content, and the end of it."""
        if self._end is not None:
            os.write(self._end, content)
            os.close(self._end)
            self._end = None

    def feed(self) -> bool:
        """Give its readers a little, if they have read what was there; the end is still to come."""
        assert self._end is not None
        with suppress(BlockingIOError):
            os.write(self._end, bytes(64 * 1024))
        return True

    def become(self, content: bytes) -> None:
        """Put an ordinary file in its place, which holds nobody; who has opened the pipe already is still held."""
        ordinary = self.path.with_suffix(".new")
        ordinary.write_bytes(content)
        ordinary.replace(self.path)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Queue:
    """A queue of a server, as its operator sees it."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def request(self, method: str, path: str = "", body: object = None) -> Any:
        """The body of the answer to a request about this queue; anything but 200 fails."""
        answer = self.server.request(method, f"/v1/queues/{self.name}{path}", body, seconds=PATIENCE_SECONDS)
        assert answer.status == 200, answer.body
        return answer.body

    def enqueue(self, *jobs: dict[str, Any]) -> list[int]:
        """Their ids."""
        answer = self.request("POST", "/enqueue", {"jobs": [{"type": "sha256", **job} for job in jobs]})
        return [job["id"] for job in answer["jobs"]]

    def search(self, query: str = "") -> list[Any]:
        """All jobs that match, page by page."""
        jobs, cursor = [], ""
        while True:
            page = self.request("GET", f"/jobs?limit=100&{query}{cursor}")
            jobs += page["jobs"]
            if page["next_cursor"] is None:
                return jobs
            cursor = f"&cursor={page['next_cursor']}"

    def read(self, id_: int) -> Any:
        return self.request("GET", f"/jobs/{id_}")

    def counts(self) -> dict[str, int]:
        """How many jobs there are by state, but for those there are none of."""
        return {state: count for state, count in self.request("GET")["counts"].items() if count}


def outcomes(job: Any) -> list[tuple[str, str]]:
    """How its attempts ended, and whose they were."""
    return [(attempt["outcome"], attempt["consumer"]) for attempt in job["history"]]


def expect(condition: Any, *, seconds: float = PATIENCE_SECONDS) -> None:
    assert eventually(condition, seconds=seconds)


def told(worker: Worker, said: Said) -> None:
    expect(lambda: said in worker.said)


def ids_said(word: str, workers: Mapping[str, Worker]) -> list[int]:
    """The jobs of which any of them has said this, in order."""
    return sorted(said.id for worker in workers.values() for said in worker.said if said.word == word)


@each_kind
def test_a_worker_is_one_short_file(kind: str) -> None:
    text = (WORKERS / COMMANDS[kind][1]).read_text(encoding="utf-8")
    assert text.startswith("#!")
    assert text.count("\n") < 100


def test_all_kinds_of_workers_conclude_every_job_once_although_some_die_oversleep_or_fail(tmp_path: Path) -> None:
    kinds = [kind for kind, missing in MISSING.items() if not missing]
    paths = files_of_the_standard_library()[:FILES]
    expected = {path: digest(Path(path).read_bytes()) for path in paths}
    # A job that fails twice: its file is not there before. Its second pause is longer than this test.
    absent = [tmp_path / f"absent-{number}" for number in range(6)]
    expected |= {str(path): digest(path.name.encode()) for path in absent}
    retry = {"kind": "exponential", "base_seconds": 0.5, "factor": 100, "jitter": "none"}

    with running_server() as server, ExitStack() as stack:
        address, queue = f"http://{server.host}:{server.port}", Queue(server, "files")
        holds = [stack.enter_context(Hold(tmp_path / f"held-{number}")) for number in range(3 * len(kinds))]
        queue.enqueue(*({"payload": str(hold.path)} for hold in holds))
        workers = {
            name: stack.enter_context(Worker(kind, name, address, queue.name))
            for kind in kinds
            for name in (f"{kind}-killed", f"{kind}-late", f"{kind}-beating")
        }
        expect(lambda: queue.counts() == {"in_progress": len(holds)}, seconds=START_SECONDS)
        all_at_work = time.monotonic()
        held_by = {job["consumer"]: job["id"] for job in queue.search()}
        assert set(held_by) == set(workers)
        hold_of = {name: holds[id_ - 1] for name, id_ in held_by.items()}

        # Of each kind one is killed in mid-job, one sleeps in mid-job, and one is at work for longer than its lease.
        for name, worker in workers.items():
            content = name.encode()
            expected[str(hold_of[name].path)] = digest(content)
            if name.endswith("-killed"):
                worker.kill()
                hold_of[name].become(content)
            elif name.endswith("-late"):
                worker.stop()
                hold_of[name].become(content)
        queue.enqueue(*({"payload": str(path), "retry": retry} for path in absent))
        queue.enqueue(*({"payload": path} for path in paths))
        expect(lambda: queue.counts()["in_progress"] == len(kinds) and time.monotonic() > all_at_work + LEASE_SECONDS)
        for kind in kinds:
            beating = f"{kind}-beating"
            assert queue.read(held_by[beating])["attempts"] == 1
            hold_of[beating].let_go(beating.encode())

        # The others wake when their jobs have been done.
        for kind in kinds:
            late = f"{kind}-late"
            assert queue.request("GET", f"/jobs/{held_by[late]}?wait_seconds=20")["state"] == "concluded"
            workers[late].go_on()
            hold_of[late].let_go()

        expect(lambda: [job["fails"] for job in queue.search("error=absent-")] == [2] * len(absent))
        for path in absent:
            path.write_bytes(path.name.encode())
        for job in queue.search("error=absent-"):
            queue.request("POST", f"/jobs/{job['id']}/run")
        expect(lambda: queue.counts() == {"concluded": len(expected)})

        figures = queue.request("GET")
        assert figures["last_id"] == len(expected)
        assert {consumer["name"] for consumer in figures["consumers"]} == set(workers)

        # Each file has one result, and it is right.
        jobs = queue.search("include=content")
        assert {job["payload"]: job["result"]["sha256"] for job in jobs} == expected

        # Each has been concluded once, by the worker of its last attempt.
        assert [job["id"] for job in jobs] == list(range(1, len(expected) + 1))
        expect(lambda: ids_said("conclude", workers) == [job["id"] for job in jobs])
        for found in jobs:
            job = queue.read(found["id"])
            assert {**found, "history": job["history"]} == job
            ends = outcomes(job)
            words = [outcome for outcome, _ in ends]
            # What the job tells of itself is what its history tells, and what the workers do.
            assert words.count("concluded") == 1
            assert words[-1] == "concluded"
            assert (job["attempts"], job["fails"], job["stales"]) == (
                len(words),
                words.count("failed"),
                words.count("stale"),
            )
            assert [attempt["attempt"] for attempt in job["history"]] == list(range(1, len(words) + 1))
            assert Said("conclude", job["id"]) in workers[ends[-1][1]].said
            if "absent-" in job["payload"]:
                assert words == ["failed", "failed", "concluded"]
                for attempt in job["history"][:2]:
                    assert attempt["error"]["type"] == NO_SUCH_FILE[workers[attempt["consumer"]].kind]
                    assert job["payload"] in attempt["error"]["message"]
            # Whoever was told that he is late had let his lease run out.
            for name, worker in workers.items():
                assert Said("lease_lost", job["id"]) not in worker.said or ("stale", name) in ends
        for name, id_ in held_by.items():
            job = queue.read(id_)
            if name.endswith("-beating"):
                assert outcomes(job) == [("concluded", name)]
            else:
                assert outcomes(job)[0] == ("stale", name)
            if name.endswith("-late"):
                told(workers[name], Said("lease_lost", id_))

        for worker in workers.values():
            worker.terminate()
        server.terminate()  # which sends those home who wait for a job
        assert {name: worker.wait() for name, worker in workers.items()} == {
            name: -signal.SIGKILL if name.endswith("-killed") else 0 for name in workers
        }
        assert server.wait(seconds=5) == 0


# --- one worker, and what may lie between it and the server


class Seen(NamedTuple):
    """A request that went through the go-between."""

    verb: str
    began: float
    ended: float


class GoBetween(ThreadingHTTPServer):
    """A proxy that does to a request what `plans` holds for its verb: "lose" its answer, be "busy", or "break" off."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), GoBetweenHandler)
        self.server_process = server
        self.plans: dict[str, list[str]] = {}
        self.seen: list[Seen] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A worker has left before its answer."""


class GoBetweenHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GoBetween

    def do_POST(self) -> None:
        began = time.monotonic()
        verb = self.path.rsplit("/", 1)[1]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        plan = self.server.plans.get(verb) or ["forward"]
        what = plan.pop(0)
        if what in {"forward", "lose"}:
            behind = self.server.server_process
            connection = http.client.HTTPConnection(behind.host, behind.port, timeout=PATIENCE_SECONDS)
            headers = {name: value for name, value in self.headers.items() if name == "Idempotency-Key"}
            connection.request("POST", self.path, body, headers)
            answer = connection.getresponse()
            status, data, more = answer.status, answer.read(), {}
            connection.close()
        else:
            status, data, more = 503, json.dumps({"code": "busy"}).encode(), {"Retry-After": "1"}
        self.server.seen.append(Seen(verb, began, time.monotonic()))
        if what in {"lose", "break"}:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**more, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def go_between(server: Server) -> Iterator[GoBetween]:
    with GoBetween(server) as between:
        thread = threading.Thread(target=between.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield between
        finally:
            between.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def between(server: Server) -> Iterator[GoBetween]:
    with go_between(server) as between:
        yield between


@pytest.fixture
def queue(server: Server, request: pytest.FixtureRequest) -> Queue:
    """A queue of the test's own: a poll of a worker that is no more may still wait at another."""
    return Queue(server, request.node.name.translate(str.maketrans("[]", "..")))


@each_kind
def test_a_worker_sends_again_what_got_lost_and_does_no_job_twice(
    kind: str, queue: Queue, between: GoBetween, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    ids = queue.enqueue({"payload": str(tmp_path / "file")}, {"payload": str(tmp_path / "none"), "max_attempts": 1})
    between.plans = {"dequeue": ["lose", "busy"], "conclude": ["lose"], "fail": ["break"]}

    with Worker(kind, "w", between.address, queue.name) as worker:
        told(worker, Said("conclude", ids[0]))
        told(worker, Said("fail", ids[1]))
        assert worker.said == [Said("conclude", ids[0]), Said("fail", ids[1])]

    # Whoever lost the answer to a dequeue holds the job: it was given to the same worker again, in the same attempt.
    done, failed = (queue.read(id_) for id_ in ids)
    assert (outcomes(done), done["result"]) == ([("concluded", "w")], {"sha256": digest(b"content")})
    assert (outcomes(failed), failed["state"], failed["reason"]) == ([("failed", "w")], "dead", "failed")
    assert failed["history"][0]["error"]["type"] == NO_SUCH_FILE[kind]
    first, busy, again = [seen for seen in between.seen if seen.verb == "dequeue"][:3]
    assert busy.began > first.ended
    assert again.began - busy.ended >= 0.99, "Retry-After"
    verbs = [verb for verb, _ in groupby(seen.verb for seen in between.seen if seen.verb != "extend")]
    assert verbs[:4] == ["dequeue", "conclude", "dequeue", "fail"]


@each_kind
def test_a_worker_stops_when_its_job_is_cancelled(kind: str, queue: Queue, between: GoBetween, tmp_path: Path) -> None:
    with Hold(tmp_path / "endless") as hold, Worker(kind, "w", between.address, queue.name) as worker:
        (id_,) = queue.enqueue({"payload": str(hold.path)})
        expect(lambda: queue.counts() == {"in_progress": 1}, seconds=START_SECONDS)
        assert queue.request("POST", f"/jobs/{id_}/cancel")["state"] == "in_progress"
        expect(lambda: hold.feed() and queue.read(id_)["state"] == "cancelled")
        told(worker, Said("release", id_))

    assert outcomes(queue.read(id_)) == [("released", "w")]


@each_kind
def test_a_worker_that_is_asked_to_end_finishes_its_job_and_takes_no_other(
    kind: str, queue: Queue, between: GoBetween, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    with Hold(tmp_path / "held") as hold, Worker(kind, "w", between.address, queue.name) as worker:
        id_, other = queue.enqueue({"payload": str(hold.path)}, {"payload": "never read"})
        expect(lambda: queue.counts() == {"in_progress": 1, "queued": 1}, seconds=START_SECONDS)
        worker.terminate()
        asked = time.monotonic()
        expect(lambda: any(seen.verb == "extend" and seen.began > asked for seen in between.seen))
        hold.let_go(b"content")
        assert worker.wait() == 0
        assert worker.said == [Said("conclude", id_)]

    assert queue.read(id_)["result"] == {"sha256": digest(b"content")}
    assert outcomes(queue.read(id_)) == [("concluded", "w")]
    assert queue.read(other)["state"] == "queued"
    assert list((tmp_path / "scratch").iterdir()) == []


@each_kind
def test_a_worker_shows_its_access_token(kind: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    shown = token(tokens, "create", "worker", "--scope", "consume", "--queue", "*")
    producer = token(tokens, "create", "producer", "--scope", "produce", "--queue", "*")
    (tmp_path / "file").write_bytes(b"content")
    with running_server("--tokens", str(tokens)) as server:
        url = f"http://{server.host}:{server.port}"
        body = json.dumps({"jobs": [{"type": "hash", "payload": str(tmp_path / "file")}]}).encode()
        headers = bearer(producer) | {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/queues/q/enqueue", body, headers)).close()

        with Worker(kind, "w", url, "q", ACCESS_TOKEN=shown) as worker:
            told(worker, Said("conclude", 1))


@each_kind
def test_a_worker_that_is_refused_says_so_and_ends(
    kind: str, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    with Worker(kind, "w", f"http://{server.host}:{server.port}", queue="-") as worker:
        assert worker.wait() == 1
    assert "a queue's name has 1 to 80" in capfd.readouterr().err
