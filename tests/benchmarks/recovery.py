"""How long a start takes that reads many jobs: from the process to its first 200 at /readyz."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import trio

from queue_actor.commands import Dequeue, Enqueue, NewJob
from queue_actor.directory import open_directory
from queue_actor.service import open_engine
from queue_actor.settings import Settings

JOBS = (100_000, 1_000_000)
JOBS_QUICK = (100_000,)
SECONDS_MAX = {100_000: 2.0, 1_000_000: 20.0}
"""What is meant to be enough."""

BATCH = 1_000
QUEUES = 10
PAYLOAD = b'{"path": "/var/spool/images/2027/01/15/0123456789abcdef.png", "w": 1280}'
POLL_SECONDS = 0.01
ROUNDS = 3


class Start(NamedTuple):
    """One start of a server on a directory."""

    listens: float  # seconds after the process was started
    ready: float
    cpu: float  # seconds of the process until then, all threads
    told: int  # lines about its progress
    refused: int  # 503 `starting` while it read
    resident_mb: float  # when it was ready


async def fill(directory: Path, jobs: int) -> None:
    """Make a directory with so many jobs that have not ended: of ten, one is leased, one scheduled, the rest queued."""
    settings = Settings(data=str(directory), durability="normal", queued_jobs_max=2 * jobs, lease_seconds=43_200.0)
    with open_directory(settings) as data:
        async with open_engine(settings, data=data) as engine:
            await engine.ready.wait()
            for n in range(0, jobs, BATCH):
                queue = f"queue{n // BATCH % QUEUES}"
                new = [NewJob("resize", PAYLOAD, delay_seconds=0.0 if m % 10 else 86_400.0) for m in range(BATCH)]
                await engine.execute(Enqueue(queue, new))
                await engine.execute(Dequeue(queue, BATCH // 10, consumer="worker"))


def start(directory: Path) -> Start:
    """Start a server, wait until it takes work, and end it."""
    command = [sys.executable, "-m", "web", "--bind", "127.0.0.1:0", "--data", str(directory)]
    command += ["--queued-jobs-max", "100000000"]
    # Not a pipe: nobody would read it, and the server logs each question.
    log = directory.with_suffix(".log")
    began = time.perf_counter()
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as server:
        try:
            while not (starting := lines_of(log, "starting")):
                time.sleep(POLL_SECONDS)
            port = int(starting[0]["address"].rpartition(":")[2])
            listens, refused = time.perf_counter() - began, 0
            while (answer := ask(port))[0] != 200:
                assert answer[1] == "starting", answer
                refused += 1
                time.sleep(POLL_SECONDS)
            ready = time.perf_counter() - began
            cpu = cpu_seconds(server.pid)
            status = Path(f"/proc/{server.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        finally:
            server.terminate()
    return Start(listens, ready, cpu, len(lines_of(log, "recovering")), refused, resident / 1024)


def lines_of(log: Path, event: str) -> list[Any]:
    """The lines of the log that tell of this, so far."""
    whole, _, _ = log.read_text().rpartition("\n")
    return [line for line in map(json.loads, whole.splitlines()) if line["event"] == event]


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, of user and system together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int) -> tuple[int, str]:
    """The status of /readyz, and the word for it."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = json.loads(answer.read())
    finally:
        connection.close()
    return answer.status, body.get("code", "")


def report(starts: dict[int, Sequence[Start]]) -> None:
    """Prints medians, and what is meant to be enough from when it listens to when it takes work."""
    print(
        f"{'jobs':>9} {'listens s':>9} {'then ready s':>12} {'meant':>6} {'CPU s':>6} {'lines':>6} {'503':>5} {'MB':>6}"
    )
    for jobs, seen in starts.items():
        reads = median(one.ready - one.listens for one in seen)
        listens, _, cpu, told, refused, resident = (median(one[n] for one in seen) for n in range(len(Start._fields)))
        print(
            f"{jobs:9,} {listens:9.2f} {reads:12.2f} {SECONDS_MAX[jobs]:6g} {cpu:6.2f} {told:6g} {refused:5g} "
            f"{resident:6.0f}"
        )


def main() -> None:
    """Fills directories, and starts servers on them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand jobs only")
    parser.add_argument("--json", type=Path, help="where to write every start")
    arguments = parser.parse_args()
    starts: dict[int, Sequence[Start]] = {}
    # Beside the sources: a directory for temporary files may be no disk.
    Path(".cache").mkdir(exist_ok=True)
    for jobs in JOBS_QUICK if arguments.quick else JOBS:
        with tempfile.TemporaryDirectory(prefix="recovery-", dir=".cache") as directory:
            trio.run(fill, Path(directory) / "data", jobs)
            starts[jobs] = [start(Path(directory) / "data") for _ in range(ROUNDS)]
    print(f"jobs that have not ended, payloads of {len(PAYLOAD)} bytes; medians of {ROUNDS} starts\n")
    report(starts)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({jobs: [one._asdict() for one in seen] for jobs, seen in starts.items()}))


if __name__ == "__main__":
    main()
