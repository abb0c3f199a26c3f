"""A worker's metrics, scraped over the network from its start to its end."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process.server import ANSWER_SECONDS, ROOT, START_SECONDS, Server, eventually, running_server
from tests.process.test_readme import FENCED
from tests.process.test_workers import Hold

pytestmark = pytest.mark.process

TASKS = """
from pathlib import Path

from queue_actor.worker import App

app = App(queue="files")


@app.job("size")
def size(path: str) -> int:
    return len(Path(path).read_bytes())
"""


def scrape(url: str) -> dict[str, float]:
    """The values of a worker without labels, and of its runs, by name without what all begin with."""
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        sample.name.removeprefix("queue_actor_worker_"): sample.value
        for family in families
        for sample in family.samples
        if not sample.labels or sample.labels == {"type": "size"}
    }


def address_of(url: str) -> tuple[str, int]:
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    return where.hostname, where.port


@contextmanager
def working(server: Server, directory: Path) -> Iterator[tuple[Server, str]]:
    """A process of `queue-actor work`, and where its metrics are; its log is read as a server's is."""
    (directory / "held_tasks.py").write_text(TASKS)
    command = [sys.executable, "-m", "queue_actor", "work", "held_tasks:app", "--metrics", "127.0.0.1:0"]
    environment = {"QUEUE_ACTOR_URL": f"http://{server.host}:{server.port}", "PYTHONPATH": f"{ROOT}:{directory}"}
    # One job at a time: with one in hand it asks for no more, and ends as soon as that has.
    with Server("--log", "json", "--concurrency", "1", command=command, environment=environment) as worker:
        line = worker.wait_for_line(lambda line: b'"worker_metrics"' in line, seconds=START_SECONDS)
        yield worker, json.loads(line)["address"]


def test_a_worker_is_scraped_while_a_job_runs_and_until_it_has_drained(tmp_path: Path) -> None:
    with running_server() as server, Hold(tmp_path / "held") as hold, working(server, tmp_path) as (worker, url):

        def tells(**wanted: float) -> Callable[[], bool]:
            return lambda: wanted.items() <= scrape(url).items()

        assert eventually(tells(concurrency=1, running=0, draining=0, dequeued_total=0))
        job = {"type": "size", "payload": str(hold.path)}
        server.request("POST", "/v1/queues/files/enqueue", {"jobs": [job]})
        assert eventually(tells(running=1, threads=1, dequeued_total=1, run_seconds_count=0))

        with socket.create_connection(address_of(url), timeout=ANSWER_SECONDS) as silent:
            worker.terminate()
            assert eventually(tells(running=1, draining=1, concluded_total=0))
            hold.let_go(b"12345")
            assert worker.wait(seconds=START_SECONDS) == 0
            assert silent.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address_of(url), timeout=ANSWER_SECONDS)
        done = server.request("GET", "/v1/queues/files/jobs/1").body
        assert (done["state"], done["result"]) == ("concluded", 5)
        (ended,) = worker.events("worker_ended")
        assert (ended["dequeued"], ended["concluded"], ended["running"]) == (1, 1, 0)


def test_a_worker_within_a_program_is_scraped_as_the_readme_says(tmp_path: Path) -> None:
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = {block["info"]: block["content"] for block in FENCED.finditer(document)}
    (tmp_path / "thumbnails.py").write_text(blocks["python worker"])
    program = blocks["python metrics"]
    assert program.count("127.0.0.1:9100") == 1
    with running_server() as server:
        environment = {"QUEUE_ACTOR_URL": f"http://{server.host}:{server.port}", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        with subprocess.Popen(
            [sys.executable, "-c", program.replace("9100", "0")],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            try:
                assert running.stdout is not None
                (url,) = re.findall(
                    r"\Ato be scraped at (http://127\.0\.0\.1:\d+/metrics)\n\Z", running.stdout.readline()
                )
                job = {"type": "resize", "payload": {"width": 1280, "height": 720}}
                server.request("POST", "/v1/queues/images/enqueue", {"jobs": [job]})
                assert eventually(lambda: scrape(url)["concluded_total"] == 1, seconds=START_SECONDS)
            finally:
                running.kill()
