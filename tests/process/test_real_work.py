"""Real work at full height: the server as a process, workers as processes, and the accidents that leases are for."""

import hashlib
import http.client
import json
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.process.server import ROOT, Server, running_server

pytestmark = pytest.mark.process

LEASE_SECONDS = 1
# Between two lines of any worker lies a lease at most, and what a loaded machine adds.
SILENCE_SECONDS = 30.0

WORKERS = ("1", "2", "3", "4")


class Line(NamedTuple):
    """A line that a worker printed, and who did."""

    name: str
    verdict: str
    digest: str
    path: str


Lines = queue.Queue[Line]


def files_of_the_standard_library() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"}
    return sorted(str(path) for path in library.rglob("*.py") if path.is_file() and not installed & {*path.parts})


class Worker:
    """A worker process, held at some files; what it prints goes to `lines`."""

    def __init__(self, name: str, server: Server, held: Sequence[str], lines: Lines) -> None:
        self.name = name
        self._lines = lines
        self._process = subprocess.Popen(
            [sys.executable, "tests/process/held_worker.py", f"{server.host}:{server.port}", *held],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # which ends a stopped process too
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            verdict, digest, path = line.rstrip("\n").split(" ", 2)
            self._lines.put(Line(self.name, verdict, digest, path))

    def kill(self) -> None:
        """End it without a word of warning."""
        self._process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Let it sleep."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Wake it if it sleeps, and hold it no longer."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def produce(server: Server, paths: Sequence[str], enqueued: list[int]) -> None:
    """Enqueue a job for each path, one request each, and note its id."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=SILENCE_SECONDS)
    for path in paths:
        connection.request("POST", "/jobs/enqueue", json.dumps({"Type": "NOT_TIME_CRITICAL", "Payload": path}))
        answer = connection.getresponse()
        job = json.load(answer)
        assert (answer.status, job["Payload"]) == (200, path)
        enqueued.append(job["ID"])
    connection.close()


def test_every_file_of_the_standard_library_is_hashed_once_although_workers_die_and_oversleep() -> None:
    paths = files_of_the_standard_library()
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    assert len(paths) > 500
    # Three accidents in mid-job, each at one file. In the first the worker is killed. In the others it sleeps for
    # longer than its lease, and wakes when another worker has its job in hand, or has concluded it.
    killed, late, latest = accidents = paths[10], paths[15], paths[20]

    lines: Lines = queue.Queue()
    enqueued: list[int] = []
    holders: dict[str, list[Worker]] = {path: [] for path in accidents}
    accepted: list[Line] = []
    refused: list[Line] = []
    enqueued_at_the_kill = 0

    with running_server("--lease-seconds", str(LEASE_SECONDS)) as server, ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, server, accidents, lines)) for name in WORKERS}
        producer = stack.enter_context(ThreadPoolExecutor(1)).submit(produce, server, paths, enqueued)

        sleepers_heard = 0
        while len(accepted) < len(paths) or sleepers_heard < 2:
            try:
                line = lines.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                pytest.fail(f"silence: {len(accepted)} of {len(paths)} are accepted, {refused} refused; {producer}")
            worker, held_by = workers[line.name], holders.get(line.path, [])
            if line.verdict == "held":
                held_by.append(worker)
                if len(held_by) == 1 and line.path == killed:
                    worker.kill()
                    enqueued_at_the_kill = len(enqueued)
                elif len(held_by) == 1:
                    worker.stop()
                elif len(held_by) == 2 and line.path == late:
                    held_by[0].go_on()  # its lease has ended, for another worker has its job in hand
                else:
                    worker.go_on()
                continue
            (accepted if line.verdict == "accepted" else refused).append(line)
            if not held_by:
                continue
            if worker is held_by[0]:
                sleepers_heard += 1
                if line.path == late:
                    held_by[1].go_on()
            elif line.path == latest:
                held_by[0].go_on()  # its lease has ended, for another worker has done its job

        producer.result(SILENCE_SECONDS)
        assert 0 < enqueued_at_the_kill < len(paths), "the accidents are to happen while the producer is at work"
        assert enqueued == list(range(1, len(paths) + 1))

        # Each file has one accepted result, and it is right.
        assert sorted(line.path for line in accepted) == paths
        assert {line.path: line.digest for line in accepted} == digests
        # Those who slept were told, and whoever was told had taken longer than a lease.
        told = {(line.name, line.path) for line in refused}
        assert {(holders[path][0].name, path) for path in (late, latest)} <= told
        assert {line.verdict for line in refused} == {"lease_lost"}

        empty = server.request("POST", "/jobs/dequeue")
        assert (empty.status, empty.body["code"]) == (404, "empty")
        server.terminate()
        assert server.wait(seconds=5) == 0
