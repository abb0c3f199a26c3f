"""Python workers in all modes on the real server, killed, stopped and cut off while jobs flow.

What they asked and were answered is a history, which has to keep the rules of `history.py`: every job is concluded,
and a job that was handed out twice was so because its lease ran out, it was given back, or an answer was lost. What the
server remembers of the jobs has to name the accident of whoever lost one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, Self

import pytest

from tests.process.cuts import Cable
from tests.process.history import Claim, Dequeue, Drained, Enqueue, Event, Handed, Read, check, figures
from tests.process.server import ROOT, Server, eventually, running_server
from tests.unit.test_children import is_gone

pytestmark = pytest.mark.process

LEASE_SECONDS = 2.0
SLEEP_SECONDS = LEASE_SECONDS + 1.5
"""How long a worker is stopped or cut off: others have its jobs then."""

PATIENCE_SECONDS = 300.0
"""What takes a minute on an idle machine may take several on a busy one."""

ENDS = {"conclude", "fail", "release"}
MODES = ("async", "threads", "processes")
BACKENDS = {"async": "trio", "threads": "asyncio", "processes": "asyncio"}


class Worker:
    """A worker process, and its cable to the server."""

    def __init__(self, server: Server, mode: str, directory: Path, *, work_seconds: float, concurrency: int) -> None:
        self.cable = Cable(server.host, server.port)
        self.mode = mode
        self._log = (directory / "worker.log").open("ab")
        program = str(ROOT / "tests/process/recorded_worker.py")
        arguments = [self.cable.url, mode, BACKENDS[mode], str(directory / "history.ndjson"), LEASE_SECONDS]
        self.process = subprocess.Popen(
            [sys.executable, program, *map(str, [*arguments, work_seconds, concurrency])],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # a stopped one as well; its children end without it
        self.process.wait()
        self._log.close()
        self.cable.__exit__()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


class Flow:
    """Jobs that flow through workers, and accidents that befall these."""

    def __init__(self, server: Server, directory: Path, stack: ExitStack, *, work_seconds: float) -> None:
        self._server = server
        self._directory = directory
        self._stack = stack
        self._work_seconds = work_seconds
        self.workers: list[Worker] = []
        self.events: list[Event] = []
        self.ids: dict[str, list[int]] = {}
        self.accidents: Counter[str] = Counter()

    def start(self, mode: str, *, concurrency: int) -> Worker:
        worker = Worker(self._server, mode, self._directory, work_seconds=self._work_seconds, concurrency=concurrency)
        self.workers.append(self._stack.enter_context(worker))
        return worker

    def enqueue(self, mode: str, jobs: int) -> None:
        for first in range(0, jobs, 1_000):
            payloads = range(first, min(jobs, first + 1_000))
            body = {
                "jobs": [
                    {"type": "work", "payload": n, "retry": {"kind": "fixed", "base_seconds": 0.1}} for n in payloads
                ]
            }
            called = time.monotonic()
            answer = self._server.request("POST", f"/v1/queues/{mode}/enqueue", body, seconds=PATIENCE_SECONDS).body
            ids = tuple(job["id"] for job in answer["jobs"])
            told = Enqueue(
                queue=mode, called=called, returned=time.monotonic(), payloads=tuple(payloads), ids=ids, client="test"
            )
            self.events.append(told)
            self.ids.setdefault(mode, []).extend(ids)

    def counts(self, mode: str) -> dict[str, int]:
        counts = self._server.request("GET", f"/v1/queues/{mode}", seconds=PATIENCE_SECONDS).body["counts"]
        return {state: count for state, count in counts.items() if count}

    def left(self, mode: str) -> int:
        return sum(count for state, count in self.counts(mode).items() if state != "concluded")

    def wait_until(self, condition: Any) -> None:
        assert eventually(condition, seconds=PATIENCE_SECONDS), {mode: self.counts(mode) for mode in self.ids}

    def kill(self, worker: Worker) -> None:
        self.accidents["killed"] += 1
        worker.signal(signal.SIGKILL)
        worker.process.wait()

    @contextmanager
    def stopped(self, worker: Worker) -> Iterator[None]:
        self.accidents["stopped"] += 1
        worker.signal(signal.SIGSTOP)
        yield
        worker.signal(signal.SIGCONT)

    @contextmanager
    def cut_off(self, worker: Worker) -> Iterator[None]:
        self.accidents["cut off"] += 1
        worker.cable.cut()
        yield
        worker.cable.mend()

    def end(self) -> None:
        """All workers end in good order."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in alive:
            worker.signal(signal.SIGTERM)
        codes = [worker.process.wait(PATIENCE_SECONDS) for worker in alive]
        assert set(codes) <= {0, -signal.SIGTERM}
        # One that has only just been started, in place of another that was killed, does not heed signals yet.
        begun = (self._directory / "worker.log").read_text().count("worker_started")
        assert codes.count(-signal.SIGTERM) <= len(self.workers) - begun

    def history(self) -> list[Event]:
        drained = time.monotonic()
        history = [*self.events, *recorded(self._directory / "history.ndjson")]
        history.append(Drained(at=drained))
        for mode in self.ids:
            called = time.monotonic()
            jobs = self.jobs(mode)
            returned = time.monotonic()
            history += [
                Read(queue=mode, called=called, returned=returned, id=job["id"], state=job["state"]) for job in jobs
            ]
        return history

    def jobs(self, mode: str) -> list[Any]:
        """All of a queue, with their results."""
        jobs: list[Any] = []
        cursor = ""
        while True:
            path = f"/v1/queues/{mode}/jobs?limit=1000&include=content{cursor}"
            page = self._server.request("GET", path, seconds=PATIENCE_SECONDS).body
            jobs += page["jobs"]
            if page["next_cursor"] is None:
                assert [job["id"] for job in jobs] == self.ids[mode]
                return jobs
            cursor = f"&cursor={page['next_cursor']}"

    def children(self) -> list[int]:
        """The processes that workers have started, also those that were killed and could end nobody."""
        lines = (self._directory / "worker.log").read_text().splitlines()
        return [json.loads(line)["pid"] for line in lines if '"child_started"' in line]

    def attempts(self, job: Any) -> Any:
        path = f"/v1/queues/{job['queue']}/jobs/{job['id']}"
        return self._server.request("GET", path, seconds=PATIENCE_SECONDS).body["history"]


def recorded(path: Path) -> Iterator[Event]:
    """What workers wrote down, as events of their queues. A call without an answer is open."""
    calls: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        calls.setdefault(facts["name"], {"returned": None, "answer": None}).update(facts)
    ended = {
        token: call["called"] for call in calls.values() if call["verb"] in ENDS for _, token in call.get("claims", ())
    }
    for call in calls.values():
        times = {"called": call["called"], "returned": call["returned"], "queue": call["queue"]}
        answer = call["answer"] or {}
        if call["verb"] == "dequeue" or call["asked"]:
            jobs = tuple(Handed(*job) for job in answer.get("jobs", ()))
            yield Dequeue(**times, key=call.get("key"), lease_seconds=call["lease_seconds"], jobs=jobs)
        for number, (id_, token) in enumerate(call.get("claims", ())):
            code = answer["codes"][number] if answer else None
            if code is not None and call["verb"] == "extend" and ended.get(token, inf) < call["returned"]:
                continue  # the end of the attempt has overtaken it
            facts = {"verb": call["verb"], "id": id_, "token": token, "lease_seconds": call["lease_seconds"]}
            yield Claim(**times, **facts, refused=code)


@contextmanager
def flow(directory: Path, *, work_seconds: float) -> Iterator[Flow]:
    with running_server() as server, ExitStack() as stack:
        try:
            yield Flow(server, directory, stack, work_seconds=work_seconds)
        except BaseException:
            print((directory / "worker.log").read_text()[-5_000:], file=sys.stderr)
            raise


def check_flow(here: Flow) -> None:
    assert eventually(lambda: all(is_gone(pid) for pid in here.children()), seconds=PATIENCE_SECONDS)
    history = here.history()
    print(figures(history), dict(here.accidents))
    assert check(history) == []
    for job in chain.from_iterable(map(here.jobs, here.ids)):
        assert (job["state"], job["result"]) == ("concluded", job["payload"])
        if job["attempts"] > 1:
            attempts = here.attempts(job)
            outcomes = [attempt["outcome"] for attempt in attempts]
            assert outcomes.count("concluded") == 1
            assert outcomes[-1] == "concluded"
            errors = {attempt["error"]["type"] for attempt in attempts if attempt["outcome"] == "failed"}
            assert errors <= {"ChildDied"}


@pytest.mark.parametrize("mode", MODES)
def test_jobs_flow_through_workers_that_are_killed_stopped_and_cut_off(mode: str, tmp_path: Path) -> None:
    with flow(tmp_path, work_seconds=0.1) as here:
        here.enqueue(mode, 100)
        killed, stopped, cut_off = [here.start(mode, concurrency=2) for _ in range(3)]
        here.wait_until(lambda: here.counts(mode).get("in_progress", 0) >= 8)
        here.kill(killed)
        replacement = here.start(mode, concurrency=2)
        begun = time.monotonic()
        with here.stopped(stopped), here.cut_off(cut_off):
            here.wait_until(lambda: time.monotonic() > begun + SLEEP_SECONDS)
        here.wait_until(lambda: here.left(mode) == 0)
        here.end()
        check_flow(here)
        taken = {attempt["consumer"] for job in here.jobs(mode) for attempt in here.attempts(job)}
        assert len(taken) == 4, replacement
        assert bool(here.children()) == (mode == "processes")


@pytest.mark.slow
def test_ten_thousand_jobs_flow_through_workers_in_all_modes_that_meet_with_accidents(tmp_path: Path) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - which accidents come is no secret
    chance = random.Random(seed)  # noqa: S311 - likewise
    print("seed", seed)
    shares = {"async": (6_000, 16), "threads": (3_000, 16), "processes": (1_000, 2)}  # jobs, and how many at once
    with flow(tmp_path, work_seconds=0.005) as here:
        begun = time.monotonic()
        for mode, (jobs, concurrency) in shares.items():
            here.enqueue(mode, jobs)
            for _ in range(2):
                here.start(mode, concurrency=concurrency)
        here.wait_until(lambda: all("concluded" in here.counts(mode) for mode in MODES))
        while any(here.left(mode) > 100 for mode in MODES):
            assert time.monotonic() < begun + PATIENCE_SECONDS
            worker = chance.choice([worker for worker in here.workers if worker.process.poll() is None])
            accident = chance.choice(["kill", "stop", "cut"])
            until = time.monotonic() + SLEEP_SECONDS
            if accident == "kill":
                here.kill(worker)
                here.start(worker.mode, concurrency=shares[worker.mode][1])
            else:
                with here.stopped(worker) if accident == "stop" else here.cut_off(worker):
                    here.wait_until(lambda until=until: time.monotonic() > until)
        here.wait_until(lambda: all(here.left(mode) == 0 for mode in MODES))
        print(f"{time.monotonic() - begun:.1f} s")
        here.end()
        check_flow(here)
