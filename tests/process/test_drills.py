"""Each alert, drilled: real trouble on a real server, whose samples fire the rule, and the commands that put it out.

Before the trouble the alert must not fire, during it it must, and after the commands of scripts/deploy/README.md, run
as they stand there, it must not any more. Most are slow: each starts a server or two.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.process import alerts
from tests.process.alerts import Samples, scrape, value_of
from tests.process.movable import MOVED
from tests.process.server import ANSWER_SECONDS, ROOT, START_SECONDS, Answer, Server, eventually

pytestmark = pytest.mark.process

MOVABLE = (sys.executable, "tests/process/movable.py")
WORKER = f"{sys.executable} {ROOT}/tests/process/workers/worker.py"
GIB = 1 << 30
QUEUE = "drill"

TASKS = f"""
from pathlib import Path

import anyio

from queue_actor.worker import App

app = App(queue="{QUEUE}")


@app.job("t")
async def hold(path: str) -> None:
    while not Path(path).read_text():
        await anyio.sleep(0.05)
"""
"""A Python worker whose jobs last until there is something in their file."""

FOREIGNER = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    for statement in line.strip().split(";"):
        file.execute(statement).fetchall()
    print("done", flush=True)
"""
"""Another program that uses the store's file, as it is told."""


class Drill:
    """A server in trouble, its samples, and an operator who knows nothing but the page."""

    def __init__(self, alert: str, directory: Path, *, data: bool = False) -> None:
        self._rule = next(rule for rule in alerts.read_rules() if rule.name == alert)
        self._commands = alerts.read_commands()[alert]
        self._directory = directory
        self._phases: list[list[Samples]] = [[], [], []]
        self._phase = 0
        self._last: Samples = {}
        self.settings = directory / "settings.env"
        self.settings.touch()
        self.restart = directory / "restart"
        self.backups = directory / "backups"
        self.backups.mkdir()
        self.data = directory / "data"
        self._flags = ("--data", str(self.data)) if data else ()
        self.payload = directory / "payload"
        self.payload.write_text("x")
        self.restart_worker = directory / "restart-worker"
        self.server: Server
        self.worker: Server | None = None  # a Python worker, which is scraped instead of the server

    # --- the server

    def start(self, *, ready: bool = True) -> None:
        lines = (line.partition("=") for line in self.settings.read_text().splitlines())
        environment = {name: value for name, _, value in lines} | {"PYTHONPATH": str(ROOT)}
        self.server = Server("--bind", "127.0.0.1:0", *self._flags, command=MOVABLE, environment=environment)
        if ready:
            self.server.wait_ready()
        else:
            self.server.wait_starting()

    def stop(self) -> None:
        """End the server, if it has not ended, and close what belongs to it."""
        with self.server as server:
            server.terminate()
            server.wait(seconds=ANSWER_SECONDS)

    def kill(self) -> None:
        with self.server as server:
            server.send_signal(signal.SIGKILL)

    def start_worker(self) -> Server:
        """Start a Python worker of this server."""
        (self._directory / "drilled.py").write_text(TASKS)
        options = ("--metrics", "127.0.0.1:0", "--log", "json", "--concurrency", "3", "--grace", "0")
        command = [sys.executable, "-m", "queue_actor", "work", "drilled:app", *options]
        environment = {
            "QUEUE_ACTOR_URL": f"http://{self.server.host}:{self.server.port}",
            "PYTHONPATH": f"{ROOT}:{self._directory}",
        }
        self.worker = Server(command=command, environment=environment)
        line = self.worker.wait_for_line(lambda line: b'"worker_metrics"' in line, seconds=START_SECONDS)
        where = urlsplit(json.loads(line)["address"])
        assert where.hostname is not None
        assert where.port is not None
        self.worker.host, self.worker.port = where.hostname, where.port
        return self.worker

    def stop_worker(self) -> None:
        """End it, if it has not ended, and close what belongs to it."""
        if self.worker is not None:
            with self.worker as worker:
                worker.terminate()
                worker.wait(seconds=START_SECONDS)

    def ten_minutes_pass(self) -> None:
        since = self.server.log.count(MOVED.strip())
        self.server.send_signal(signal.SIGUSR1)
        assert eventually(lambda: self.server.log.count(MOVED.strip()) > since)

    def post(self, path: str, body: Any) -> Answer:
        answer = self.server.request("POST", f"/v1/queues/{QUEUE}/{path}", body)
        assert answer.status == 200, answer
        return answer

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.server.request("GET", f"/v1/queues/{QUEUE}").body["counts"]
        return counts

    def set_policy(self, **policy: Any) -> None:
        assert self.server.request("PUT", f"/v1/queues/{QUEUE}", policy).status == 200

    def enqueue(self, count: int, **options: Any) -> None:
        self.post("enqueue", {"jobs": [{"type": "t", "payload": str(self.payload)} | options] * count})

    def dequeue(self, count: int, **options: Any) -> list[Any]:
        jobs: list[Any] = self.post("dequeue", {"count": count} | options).body["jobs"]
        assert len(jobs) == count
        return jobs

    def conclude(self, jobs: list[Any]) -> None:
        self.post("conclude", {"jobs": [{"id": job["id"], "token": job["lease"]["token"]} for job in jobs]})

    # --- the monitor

    def look(self) -> Samples:
        """A new scrape: within a second of the last one a server tells the same again."""

        def is_new() -> bool:
            self._last, before = scrape(self.worker or self.server), self._last
            heard = alerts.series("queue_actor_received_bytes_total", {})
            return heard not in self._last or self._last[heard] != before.get(heard)

        assert eventually(is_new)
        return self._last

    def note(self) -> Samples:
        """A scrape of this phase."""
        samples = self.look()
        self._phases[self._phase].append(samples)
        return samples

    def trouble(self) -> None:
        """What is noted from now on is noted during the trouble."""
        self._phase = 1

    def judge(self) -> None:
        """Ask Prometheus."""
        assert alerts.fires(self._rule, self._phases, self._directory) == [False, True, False]

    # --- the operator

    @contextmanager
    def follow_the_page(self) -> Iterator[None]:
        """Run the commands. What they leave running runs until the end of the block; what is noted is noted after."""
        assert 1 <= len(self._commands) <= 2
        host = f"http://{self.server.host}:{self.server.port}"
        environment = {
            **os.environ,
            "SERVER": host,
            "HEADERS": os.devnull,
            "QUEUE": QUEUE,
            "WORKER": f"{WORKER} {host} {QUEUE}",
            "SETTINGS": str(self.settings),
            "RESTART": f"touch {self.restart}",
            "RESTART_WORKER": f"touch {self.restart_worker}",
            "PID": str(self.server.pid),
            "DATA": str(self.data),
            "BACKUPS": str(self.backups),
        }
        script = "\n".join(self._commands)
        with subprocess.Popen(
            ["sh", "-euc", script],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as shell:
            try:
                assert shell.wait(START_SECONDS) == 0
                if self.restart.exists():
                    self.stop()
                    self.start()
                if self.restart_worker.exists():
                    self.stop_worker()
                    self.start_worker()
                self._phase = 2
                yield
            finally:
                if "$WORKER" in script:
                    os.killpg(shell.pid, signal.SIGKILL)  # the group has nothing but what this shell started

    def wait_until_all_is_done(self) -> None:
        def is_done() -> bool:
            counts = self.counts()
            return not counts["queued"] and not counts["in_progress"]

        assert eventually(is_done, seconds=START_SECONDS)


Start = Callable[..., Drill]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a drill, and ends its server."""
    alerts.need("promtool")
    drills: list[Drill] = []

    def start(alert: str, *, data: bool = False, **settings: int) -> Drill:
        drill = Drill(alert, tmp_path, data=data)
        drill.settings.write_text("".join(f"QUEUE_ACTOR_{name.upper()}={value}\n" for name, value in settings.items()))
        drill.start()
        drills.append(drill)
        return drill

    yield start
    for drill in drills:
        with drill.server, drill.worker or nullcontext():
            pass
        shutil.rmtree(drill.data, ignore_errors=True)  # it may be large, and pytest would keep it


@contextmanager
def foreigner(drill: Drill) -> Iterator[Callable[[str], None]]:
    """Another program that has the store's file open, as long as nobody ends it."""
    with subprocess.Popen(
        [sys.executable, "-c", FOREIGNER, str(drill.data / "queue.sqlite")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def tell(statements: str) -> None:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(statements + "\n")
            program.stdin.flush()
            assert program.stdout.readline() == "done\n"

        try:
            yield tell
        finally:
            program.kill()


def test_every_alert_has_a_drill_and_a_place_on_the_page_with_two_commands_at_most() -> None:
    names = [rule.name for rule in alerts.read_rules()]
    source = Path(__file__).read_text()

    assert len(names) == len(set(names))
    assert list(alerts.read_commands())[-len(names) :] == names
    for rule in alerts.read_rules():
        assert f'start("{rule.name}"' in source
        assert 1 <= len(alerts.read_commands()[rule.name]) <= 2
        assert rule.annotations.keys() == {"summary", "description", "runbook"}
        assert rule.annotations["runbook"] == f"scripts/deploy/README.md#{rule.name.lower()}"
        assert rule.labels["severity"] in {"critical", "warning"}


def test_jobs_without_a_consumer(start: Start) -> None:
    drill = start("QueueActorNoConsumer")
    drill.enqueue(1)
    drill.note()

    drill.trouble()
    drill.ten_minutes_pass()
    drill.note()

    with drill.follow_the_page():
        drill.wait_until_all_is_done()
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_old_jobs(start: Start) -> None:
    drill = start("QueueActorOldJobs")
    drill.enqueue(3)
    drill.note()

    drill.trouble()
    drill.post("pause", {})
    for _ in range(2):
        drill.ten_minutes_pass()
    drill.note()

    with drill.follow_the_page():
        drill.wait_until_all_is_done()
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_dead_jobs(start: Start) -> None:
    drill = start("QueueActorDeadJobs")
    drill.enqueue(2, max_attempts=1)
    drill.note()

    drill.trouble()
    (job, _) = drill.dequeue(2)
    drill.post("fail", {"jobs": [{"id": job["id"], "token": job["lease"]["token"]}]})
    drill.note()

    with drill.follow_the_page():
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_stale_leases(start: Start) -> None:
    drill = start("QueueActorStaleLeases")
    drill.enqueue(10)
    drill.conclude(drill.dequeue(5))
    drill.note()

    drill.trouble()
    drill.dequeue(5)
    drill.ten_minutes_pass()
    assert eventually(lambda: value_of(drill.look(), "queue_actor_verbs_total", queue=QUEUE, verb="stale") == 5)
    drill.note()

    with drill.follow_the_page():
        drill.wait_until_all_is_done()
        drill.note()
    drill.judge()


def burst(drill: Drill, count: int) -> list[int]:
    """The statuses of requests that are all there when the server looks."""
    drill.server.send_signal(signal.SIGSTOP)
    connections = [drill.server.connect() for _ in range(count)]
    for connection in connections:
        connection.sendall(b"GET /jobs/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    drill.server.send_signal(signal.SIGCONT)
    statuses = []
    for connection in connections:
        with connection, connection.makefile("rb") as stream:
            statuses.append(int(stream.read().split()[1]))
    return statuses


@pytest.mark.slow
def test_a_busy_server(start: Start) -> None:
    drill = start("QueueActorBusy", inbox_requests_max=1)
    drill.enqueue(1)
    drill.note()

    drill.trouble()
    assert 503 in burst(drill, 50)
    drill.note()

    with drill.follow_the_page():
        drill.note()
        assert set(burst(drill, 50)) == {404}
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_server_that_is_nearly_full(start: Start) -> None:
    drill = start("QueueActorNearlyFull", queued_jobs_max=10)
    drill.enqueue(7)
    drill.note()

    drill.trouble()
    drill.enqueue(1)
    drill.enqueue(1, delay_seconds=1)
    drill.note()

    with drill.follow_the_page():
        assert eventually(lambda: value_of(drill.look(), "queue_actor_jobs", queue=QUEUE, state="concluded") > 7)
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_memory_that_is_nearly_full(start: Start) -> None:
    drill = start("QueueActorMemoryNearlyFull", memory_bytes_max=10_000)
    drill.enqueue(7, payload="x" * 1_000)
    drill.conclude(drill.dequeue(7))
    drill.note()

    drill.trouble()
    drill.enqueue(2, payload="x" * 1_000)
    drill.note()

    with drill.follow_the_page():
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_disk_that_fills_up(start: Start, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < 8 * GIB:  # it takes five, and nobody else's disk may get full by it
        pytest.skip("8 GiB of the disk have to be free")
    drill = start("QueueActorDiskLow", data=True, disk_reserve_bytes=free - 4 * GIB)
    drill.enqueue(1)
    drill.note()

    drill.trouble()
    backup = drill.backups / "old.sqlite"
    with backup.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 5 * GIB)
    os.utime(backup, (time.time() - 30 * 24 * 3600,) * 2)
    assert eventually(lambda: value_of(drill.look(), "queue_actor_store_room_bytes") < 0)
    refused = drill.server.request("POST", f"/v1/queues/{QUEUE}/enqueue", {"jobs": [{"type": "t"}]})
    assert refused.status == 507
    drill.note()

    with drill.follow_the_page():
        assert eventually(lambda: value_of(drill.look(), "queue_actor_store_room_bytes") > GIB)
        drill.enqueue(1)
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_log_that_grows(start: Start) -> None:
    alerts.need("lsof")
    large = {"payload_bytes_max": 16 << 20, "request_bytes_max": 32 << 20}
    drill = start("QueueActorLogGrows", data=True, **large)
    drill.enqueue(1)
    drill.note()

    drill.trouble()
    with foreigner(drill) as tell:
        tell("BEGIN; SELECT * FROM jobs")
        for _ in range(18):
            drill.enqueue(1, payload="x" * (15 << 20))
        drill.note()

        with drill.follow_the_page():
            drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_loop_that_lags(start: Start) -> None:
    drill = start("QueueActorLoopLag")
    drill.note()

    drill.trouble()
    drill.ten_minutes_pass()  # without its noticing: it was stopped
    drill.note()
    drill.server.send_signal(signal.SIGSTOP)

    with drill.follow_the_page():
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_slow_commits(start: Start) -> None:
    alerts.need("lsof")
    drill = start("QueueActorSlowCommits", data=True)
    drill.enqueue(1)
    drill.note()

    drill.trouble()
    with foreigner(drill) as tell:
        tell("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=drill.enqueue, args=(1,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        # One is being stored, the other one waits for that.
        assert eventually(lambda: drill.server.request("GET", "/v1/statistics").body["inbox_requests"] > 0)
        drill.ten_minutes_pass()
        tell("COMMIT")
        for thread in threads:
            thread.join()
        drill.note()
        tell("BEGIN IMMEDIATE")

        with drill.follow_the_page():
            drill.enqueue(1)
            drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_server_that_is_down(start: Start) -> None:
    drill = start("QueueActorDown")
    drill.note()

    drill.trouble()
    drill.server.terminate()
    assert drill.server.wait(seconds=ANSWER_SECONDS) == 0
    drill.note()

    with drill.follow_the_page():
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_server_that_does_not_get_ready(start: Start) -> None:
    alerts.need("lsof")
    drill = start("QueueActorNotReady", data=True)
    drill.enqueue(1)
    drill.note()
    drill.kill()

    drill.trouble()
    with foreigner(drill) as tell:
        tell("BEGIN IMMEDIATE")
        drill.start(ready=False)
        drill.note()

        with drill.follow_the_page():
            drill.server.wait_ready()
            drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_server_that_is_restarted_again_and_again(start: Start) -> None:
    drill = start("QueueActorRestarts")
    drill.note()

    drill.trouble()
    for _ in range(4):
        drill.kill()
        drill.start()
        drill.note()

    with drill.follow_the_page():
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_worker_that_loses_its_leases(start: Start) -> None:
    drill = start("QueueActorWorkerLosesLeases")
    drill.set_policy(lease_seconds=1)
    drill.payload.write_text("")
    worker = drill.start_worker()
    drill.note()

    drill.trouble()
    drill.enqueue(3)
    assert eventually(lambda: value_of(drill.look(), "queue_actor_worker_running") == 3)
    worker.send_signal(signal.SIGSTOP)
    assert eventually(lambda: drill.counts()["in_progress"] == 0)
    worker.send_signal(signal.SIGCONT)
    assert eventually(lambda: value_of(drill.look(), "queue_actor_worker_lost_total") >= 3)
    drill.note()

    drill.payload.write_text("x")
    with drill.follow_the_page():
        drill.wait_until_all_is_done()
        drill.note()
    drill.judge()


@pytest.mark.slow
def test_a_worker_whose_server_has_moved(start: Start) -> None:
    drill = start("QueueActorWorkerUnreached")
    drill.start_worker()
    drill.note()

    drill.trouble()
    drill.stop()
    drill.start()  # on another port
    assert eventually(lambda: value_of(drill.look(), "queue_actor_worker_reached", what="jobs") == 0)
    drill.note()

    with drill.follow_the_page():
        drill.enqueue(1)
        drill.wait_until_all_is_done()
        drill.note()
    drill.judge()
