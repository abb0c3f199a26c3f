"""What those who look cost: the overview of 10,000 queues and 1,000,000 jobs, and the latency of others meanwhile."""

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from msgspec.structs import replace

from tests.benchmarks.http import SETTINGS, serve, whole_life
from tests.benchmarks.load import Measure, cpu_seconds, measure, started
from web.__main__ import Parts

QUEUES = 10_000
JOBS = 1_000_000
LOOKS_EACH_SECONDS = 0.5
LOOKS = 20
CONNECTIONS = 4
ROUND_SECONDS = 4.0
SETTLE_SECONDS = 125.0  # until the filling is no more among what moved in the last minute or the one before


def fill(port: int, queues: int, jobs: int) -> None:
    """Give the server its queues and jobs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"jobs": [{"type": "a", "payload": {"w": 1280}}] * (jobs // queues)})
    for number in range(queues):
        connection.request("POST", f"/v1/queues/queue-{number:05}/enqueue", body)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
    connection.close()


def look(port: int) -> tuple[float, int]:
    """How long an overview took, and how many bytes it has."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", "/v1/overview")
    answer = connection.getresponse()
    size = len(answer.read())
    seconds = time.perf_counter() - began
    connection.close()
    assert answer.status == 200
    return seconds, size


@contextmanager
def somebody_looks(port: int, seconds: list[float]) -> Iterator[None]:
    """Within the block a dashboard is open: it follows the events, and looks again and again."""
    done = threading.Event()

    def again() -> None:
        while not done.wait(LOOKS_EACH_SECONDS):
            seconds.append(look(port)[0])

    def follow() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/v1/events?shape=queues")
        answer = connection.getresponse()
        while not done.is_set() and answer.read1(65_536):
            pass
        connection.close()

    tasks = [threading.Thread(target=task, daemon=True) for task in (again, follow)]
    for task in tasks:
        task.start()
    yield
    done.set()
    tasks[0].join()


def main() -> None:
    """Measures, or with --serve is the server that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the queues and jobs, fewer rounds")
    parser.add_argument("--json", type=Path, help="where to write every round")
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(replace(SETTINGS, queues_max=QUEUES + 10), Parts())
        return
    share, rounds = (10, 3) if arguments.quick else (1, 5)
    queues, jobs = QUEUES // share, JOBS // share
    alone: list[Measure] = []
    beside: list[Measure] = []
    seconds: list[float] = []
    with started([sys.executable, "-m", "tests.benchmarks.glance", "--serve"]) as (pid, port):
        fill(port, queues, jobs)
        cpu = cpu_seconds(pid)
        first, size = look(port)
        first_cpu = cpu_seconds(pid) - cpu
        time.sleep(SETTLE_SECONDS)  # the next look is of a server that has nothing else to do
        look(port)
        cpu = cpu_seconds(pid)
        for _ in range(LOOKS):
            time.sleep(LOOKS_EACH_SECONDS)  # as a dashboard does
            look(port)
        next_cpu = (cpu_seconds(pid) - cpu) / LOOKS
        for _ in range(rounds):
            alone.append(measure(pid, port, whole_life, connections=CONNECTIONS, seconds=ROUND_SECONDS))
            with somebody_looks(port, seconds):
                beside.append(measure(pid, port, whole_life, connections=CONNECTIONS, seconds=ROUND_SECONDS))
    print(f"{queues} queues, {jobs} jobs; an overview has {size / 1024:.0f} KiB")
    print(f"the first one: {first_cpu * 1e3:.0f} ms of the server's CPU, {first * 1e3:.0f} ms in all")
    print(f"one while nothing moves: {next_cpu * 1e3:.0f} ms of CPU, with all that the server does in half a second")
    ordered = sorted(seconds)
    print(f"beside load: median {median(ordered) * 1e3:.0f} ms, longest {ordered[-1] * 1e3:.0f} ms of {len(ordered)}\n")
    print(f"{'classic whole lives':24} {'requests/s':>10} {'CPU us':>7} {'p50 ms':>7} {'p99 ms':>7}")
    for name, measures in (("nobody looks", alone), ("a dashboard is open", beside)):
        figures = [
            median(getattr(one, what) for one in measures) for what in ("per_second", "cpu_us", "p50_ms", "p99_ms")
        ]
        print(f"{name:24} {figures[0]:10.0f} {figures[1]:7.0f} {figures[2]:7.2f} {figures[3]:7.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([[vars(one) for one in many] for many in (alone, beside)]))


if __name__ == "__main__":
    main()
