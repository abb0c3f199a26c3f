"""A request of the classic routes against a bare `pong`: the server's CPU per request, by turns in one run."""

import argparse
import cProfile
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import trio

from queue_actor.settings import Settings
from tests.benchmarks import pong
from tests.benchmarks.load import READY, Answer, Measure, Script, measure, report, started
from web.__main__ import serve_queue
from web.binding import listen
from web.logs import set_up_logging

HEAD = "Host: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
BODY = b'{"Type":"TIME_CRITICAL","Payload":{"path":"/var/spool/images/0001.png","width":1280}}'
ENQUEUE = (
    f"POST /jobs/enqueue HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
DEQUEUE = f"POST /jobs/dequeue HTTP/1.1\r\n{HEAD}Content-Length: 0\r\n\r\n".encode()
READ = f"GET /jobs/1 HTTP/1.1\r\n{HEAD}\r\n".encode()


def whole_life(_client: int) -> Generator[bytes, Answer, None]:
    """Enqueue, dequeue, conclude, again and again: the figure is per request, a job is three."""
    while True:
        yield ENQUEUE
        job = yield DEQUEUE
        id_ = job.body.partition(b'"ID":')[2].partition(b",")[0].decode()
        token = job.headers["queue-lease-token"]
        yield (
            f"POST /jobs/{id_}/conclude HTTP/1.1\r\n{HEAD}Queue-Lease-Token: {token}\r\nContent-Length: 0\r\n\r\n"
        ).encode()


def enqueue_only(_client: int) -> Generator[bytes, Answer, None]:
    """Enqueue alone."""
    while True:
        yield ENQUEUE


def read_only(client: int) -> Generator[bytes, Answer, None]:
    """Reads of one job alone, after an enqueue that makes sure there is one."""
    if client == 0:
        yield ENQUEUE
    while True:
        yield READ


STOCK = "pong, Hypercorn's own"
OURS = "pong, web/connections.py"
ROWS: dict[str, tuple[str, Script]] = {
    STOCK: ("stock", pong.ask),
    OURS: ("ours", pong.ask),
    "enqueue": ("queue", enqueue_only),
    "enqueue dequeue conclude": ("queue", whole_life),
    "read": ("queue", read_only),
}


def serve(profile_file: Path | None) -> None:
    """Be the real server, with its log lines formatted and written to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    settings = Settings(bind="127.0.0.1:0", queued_jobs_max=10_000_000)
    listener = listen(settings)
    set_up_logging(settings)
    print(f"{READY}{listener.getsockname()[1]}", flush=True)
    profile = cProfile.Profile()
    if profile_file:
        profile.enable()
    trio.run(serve_queue, settings, listener)
    if profile_file:
        profile.dump_stats(profile_file)


def main() -> None:
    """Measures, or with --serve is the server that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds in all")
    parser.add_argument("--json", type=Path, help="where to write every round")
    parser.add_argument("--profile", type=Path, help="with --serve: where to write a profile of the server")
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.profile)
        return
    module = [sys.executable, "-m"]
    rounds, seconds = (3, 0.7) if arguments.quick else (7, 2.0)
    commands = {
        "stock": [*module, "tests.benchmarks.pong", "--serve", "stock"],
        "ours": [*module, "tests.benchmarks.pong", "--serve", "ours"],
        "queue": [*module, "tests.benchmarks.http", "--serve"],
    }
    measures: dict[str, list[Measure]] = {name: [] for name in ROWS}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(command)) for name, command in commands.items()}
        for _ in range(rounds):
            for name, (server, script) in ROWS.items():
                pid, port = servers[server]
                measures[name].append(measure(pid, port, script, seconds=seconds))
    print(f"16 keep-alive connections; medians of {rounds} rounds of {seconds:g} s; ratio to the first row\n")
    report(measures, arguments.json)


if __name__ == "__main__":
    main()
