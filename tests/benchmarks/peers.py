"""Other queues beside this one: the server's CPU per whole job, each as its users run it, by turns in one run.

A whole job is enqueued, handed out, and concluded. Batches are what the peer has for them: routes and commands of its
own, or many commands sent at once, before their answers are read ("pipelined"). A peer that is not installed is skipped
with a line; `scripts/peers.sh` installs what needs no root.

RQ is a library: its server is Redis, and much of what other servers do is done in the processes of its users. So there
is a table of what these spend beside the server.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks.load import STOP_SECONDS, cpu_seconds, loader, rotated
from tests.benchmarks.peer_clients import Beanstalk, Bunqueue, Connection, Mutex, Ours, OursNext, OursSimple, Redis, Rq
from tests.benchmarks.results import Results, parser, plain, quantile, show, spread

PEERS = Path(".cache/peers")
"""Where `scripts/peers.sh` puts what it installs."""

SIZES = (1, 10, 100, 1_000)
CLIENTS = 16
START_SECONDS = 20.0

RQ_HINT = "Debian's package redis-server, and scripts/peers.sh"

# --- servers


class Peer(NamedTuple):
    """A queue, and how it is started. A command that needs what is not there is None.

    `users` is a program that listens on the next port for the benchmark, where the queue has no protocol of its own.
    """

    name: str
    connection: Callable[[int], Connection]
    command: Callable[[int, str], Sequence[str] | None]
    sizes: Sequence[int] = SIZES
    users: Callable[[int, str], Sequence[str] | None] | None = None
    jobs_max: int = 10**9  # that all clients enqueue at once: with large batches there are fewer, or a round is long
    environment: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    hint: str = ""


def _ours(port: int, _folder: str) -> Sequence[str]:
    return [sys.executable, "-m", "tests.benchmarks.http", "--serve", "--port", str(port)]


def _beanstalkd(port: int, _folder: str) -> Sequence[str] | None:
    program = shutil.which("beanstalkd")
    return program and [program, "-l", "127.0.0.1", "-p", str(port)]


def _redis(port: int, folder: str) -> Sequence[str] | None:
    program = shutil.which("redis-server")
    return program and [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]


def _bunqueue(port: int, folder: str) -> Sequence[str] | None:
    modules = PEERS / "node_modules"
    program = modules / ".bin" / "bun"
    if not program.exists():
        return None
    address = ["--tcp-port", str(port), "--http-port", str(port + 1)]
    return [str(program), str(modules / ".bin" / "bunqueue"), "start", *address, "--data-path", f"{folder}/queue.db"]


def _rq(worker: str) -> Callable[[int, str], Sequence[str] | None]:
    def command(port: int, _folder: str) -> Sequence[str] | None:
        program = PEERS / "venv" / "bin" / "python"
        installed = program.exists() and any(PEERS.glob("venv/lib/*/site-packages/rq"))
        return [str(program), "-m", "tests.benchmarks.rq_users", str(port), worker] if installed else None

    return command


def mutex_command(port: int, _folder: str, jobs: int = 0) -> Sequence[str] | None:
    """The mutex design, with so many jobs of its own."""
    program = PEERS / "venv" / "bin" / "python"
    return [str(program), "-m", "tests.benchmarks.mutex_design", str(port), str(jobs)] if program.exists() else None


ALL = (
    Peer("queue-actor, `/v1`", Ours, _ours),
    Peer("queue-actor, `/v1`, next with conclude", OursNext, _ours),
    Peer("queue-actor, classic routes", OursSimple, _ours, (1,)),
    Peer("a list and `threading.Lock`, Flask", Mutex, mutex_command, (1,), hint="scripts/peers.sh"),
    Peer("RQ, SimpleWorker", Rq, _redis, users=_rq("SimpleWorker"), jobs_max=400, hint=RQ_HINT),
    Peer("RQ, Worker", Rq, _redis, (1, 10), users=_rq("Worker"), hint=RQ_HINT),
    Peer("beanstalkd", Beanstalk, _beanstalkd, hint="Debian's package beanstalkd"),
    Peer("Redis, reliable list", Redis, _redis, hint="Debian's package redis-server"),
    Peer(
        "bunqueue, TCP",
        Bunqueue,
        _bunqueue,
        environment={"RATE_LIMIT_MAX_REQUESTS": str(10**9)},  # or it refuses what comes after 10,000 in a minute
        hint="scripts/peers.sh",
    ),
)


def free_port() -> int:
    """A port that nobody listens on, nor on the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@contextmanager
def running(peer: Peer, folder: str, *, seconds: float = START_SECONDS) -> Iterator[tuple[int, int] | None]:
    """Process id and port of a peer that answers connections; None: it is not installed."""
    port = free_port()
    command = peer.command(port, folder)
    users = peer.users(port, folder) if peer.users else ()
    if command is None or users is None:
        yield None
        return
    with ExitStack() as stack:
        pid = stack.enter_context(_process(peer, command, port, seconds))
        if users:
            stack.enter_context(_process(peer, users, port + 1, seconds))
        yield pid, port


@contextmanager
def _process(peer: Peer, command: Sequence[str], port: int, seconds: float) -> Iterator[int]:
    """Process id of a program that answers connections."""
    with subprocess.Popen(
        command, env=os.environ | peer.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{peer.name} did not start: {' '.join(command)}") from None
                    time.sleep(0.05)  # before it is tried again whether the peer listens
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


# --- measuring


class Figures(NamedTuple):
    """What one load came to."""

    cpu_us: float
    jobs_per_second: float
    p50_ms: float  # of a client who takes a batch of jobs through their lives
    p99_ms: float
    workers_us: float | None = None  # of a job in other processes of the peer than its server
    producers_us: float | None = None


def drive(name: str, port: int, size: int, seconds: float) -> tuple[float, list[float]]:
    """Lives for so long over all connections, each in a thread of its own: seconds, and those of each batch."""
    peer = next(peer for peer in ALL if peer.name == name)

    def one(connection: Connection) -> list[float]:
        took = []
        at = time.perf_counter()
        while at < deadline:
            connection.live(size)
            then, at = at, time.perf_counter()
            took.append(at - then)
        return took

    clients = max(1, min(CLIENTS, peer.jobs_max // size))
    connections = [peer.connection(port) for _ in range(clients)]
    began = time.perf_counter()
    deadline = began + seconds
    with ThreadPoolExecutor(clients) as pool:
        batches = [batch for took in pool.map(one, connections) for batch in took]
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return elapsed, batches


def measure(peer: Peer, pid: int, port: int, size: int, seconds: float) -> Figures:
    """Loads a peer from another process, and compares its CPU before and after."""
    pool = loader()
    before = _spent(peer, pid, port)
    elapsed, batches = pool.submit(drive, peer.name, port, size, seconds).result()
    spent = [after - earlier for after, earlier in zip(_spent(peer, pid, port), before, strict=True)]
    jobs, ordered = len(batches) * size, sorted(batches)
    cpu_us, *users_us = (cpu / jobs * 1e6 for cpu in spent)
    return Figures(cpu_us, jobs / elapsed, quantile(ordered, 0.5) * 1e3, quantile(ordered, 0.99) * 1e3, *users_us)


def _spent(peer: Peer, pid: int, port: int) -> tuple[float, ...]:
    """Seconds of CPU so far of the server; and of the workers and producers, where they are the peer's own."""
    return (cpu_seconds(pid), *(Rq(port).cpu_seconds() if peer.users else ()))


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    arguments = parser(__doc__).parse_args(words)
    rounds, seconds = (1, 0.05) if arguments.smoke else (3, 0.6) if arguments.quick else (7, 2.0)
    sizes = (10,) if arguments.smoke else SIZES
    results = Results("peers", arguments)
    measures: dict[str, dict[int, list[Figures]]] = {}
    with ExitStack() as stack:
        servers: dict[str, tuple[int, int]] = {}
        for peer in ALL[:2] if arguments.smoke else ALL:
            folder = stack.enter_context(TemporaryDirectory())
            server = stack.enter_context(running(peer, folder))
            if server is None:
                results.skip(f"{peer.name} is not installed ({peer.hint})")
            else:
                servers[peer.name] = server
        for number in range(rounds):
            for size in sizes:
                for name in rotated(tuple(servers), number):
                    peer = next(peer for peer in ALL if peer.name == name)
                    if size in peer.sizes:
                        figures = measure(peer, *servers[name], size, seconds)
                        measures.setdefault(name, {}).setdefault(size, []).append(figures)
    tell(results, measures, sizes, f"{CLIENTS} connections; medians of {rounds} rounds of {seconds:g} s.")
    results.end()


def tell(results: Results, measures: dict[str, dict[int, list[Figures]]], sizes: Sequence[int], about: str) -> None:
    """Tells CPU a job, jobs a second and latencies by the size of batches, who is the cheapest one by one first."""
    cpu = {
        name: {size: spread(one.cpu_us for one in seen) for size, seen in of.items()} for name, of in measures.items()
    }
    ordered = sorted(cpu, key=lambda name: cpu[name][sizes[0]].median if sizes[0] in cpu[name] else 0)
    head = ["jobs a request:", *(f"{size:,}" for size in sizes)]

    def table(title: str, what: str, cell: Callable[[list[Figures]], object]) -> None:
        rows = [
            [name, *(cell(of[size]) if size in of else "" for size in sizes)]
            for name in ordered
            for of in (measures[name],)
        ]
        results.table(title, head, rows, about=f"{what}; {about}")

    what = "CPU of the server for a job's whole life, in microseconds"
    table("CPU", what, lambda seen: show(spread(one.cpu_us for one in seen).median))
    table("CPU with spread", f"{what}: median, least and most", lambda seen: spread(one.cpu_us for one in seen))
    rates = "Jobs a second, of server and client together"
    table("rates", rates, lambda seen: spread(one.jobs_per_second for one in seen))
    waits = "What a client takes for the lives of a batch, p50 / p99 in milliseconds"
    table(
        "latencies",
        waits,
        lambda seen: " / ".join(show(spread(column).median) for column in list(zip(*seen, strict=True))[2:4]),
    )
    users = [
        [name, whose, *(spread(getattr(one, key) for one in of[size]) if size in of else "" for size in sizes)]
        for name, of in measures.items()
        if any(peer.name == name and peer.users for peer in ALL)
        for whose, key in (("workers", "workers_us"), ("producers", "producers_us"))
    ]
    if users:
        beside = "CPU of the peer's own processes beside its server for a job's whole life, in microseconds"
        results.table("users", ["jobs a request:", "whose:", *head[1:]], users, about=f"{beside}; {about}")
    results.rounds("peers", {name: {str(size): seen for size, seen in by.items()} for name, by in measures.items()})
    with results.plot("peers", what, "jobs a request", "microseconds") as axes:
        for name in ordered:
            seen = {size: one.median for size, one in cpu[name].items()}
            own = name.startswith("queue-actor")
            label = name.replace("`", "")
            axes.plot(list(seen), list(seen.values()), marker="o", linewidth=2.2 if own else 1, label=label)
        plain(axes, x=sizes)


if __name__ == "__main__":
    main()
