"""Other queues beside this one: the server's CPU per whole job, each as its users run it, by turns in one run.

A whole job is enqueued, handed out, and concluded. Batches are what the peer has for them: routes and commands of its
own, or many commands sent at once, before their answers are read ("pipelined"). A peer that is not installed is skipped
with a line; `scripts/peers.sh` installs what needs no root.
"""

import argparse
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import msgspec

from tests.benchmarks.load import STOP_SECONDS, cpu_seconds, rotated

PEERS = Path(".cache/peers")
"""Where `scripts/peers.sh` puts what it installs."""

SIZES = (1, 10, 100, 1_000)
CLIENTS = 16
START_SECONDS = 20.0
LEASE_SECONDS = 300
PAYLOAD = b'{"path":"/var/spool/images/0001.png","width":1280,"height":720,"x":1}'

# --- connections, each of which takes jobs through their lives


class Wire:
    """A connection that is read line by line, or by lengths."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = self._socket.makefile("rb", 256 * 1024)

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self._socket.sendall(data)

    def line(self) -> bytes:
        """The next line, without its end."""
        line: bytes = self._received.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed a connection under load")
        return line[:-2]

    def read(self, count: int) -> bytes:
        """So many bytes."""
        data: bytes = self._received.read(count)
        if len(data) != count:
            raise ConnectionError("the server closed a connection under load")
        return data

    def close(self) -> None:
        """Closes it."""
        self._received.close()
        self._socket.close()


class Connection(Protocol):
    """One client of a peer."""

    def live(self, size: int) -> None:
        """Takes so many jobs through their whole lives."""

    def close(self) -> None:
        """Closes it."""


class Http:
    """HTTP/1.1, keep-alive."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close

    def ask(self, path: str, body: bytes, fields: str = "") -> tuple[dict[str, str], bytes]:
        """Sends a POST: the header fields of its answer, and the body."""
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}{fields}Content-Length: {len(body)}\r\n\r\n"
        self._wire.send(head.encode() + body)
        status = self._wire.line()
        if b" 200 " not in status and b" 201 " not in status:
            raise ConnectionError(f"{path}: {status.decode()}")
        headers: dict[str, str] = {}
        while line := self._wire.line().decode("latin1"):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return headers, self._wire.read(int(headers["content-length"]))


class _Lease(msgspec.Struct):
    token: str


class _Job(msgspec.Struct):
    id: int
    lease: _Lease


class _Jobs(msgspec.Struct):
    jobs: list[_Job]


_decode_jobs = msgspec.json.Decoder(_Jobs).decode


class Ours(Http):
    """This server, over `/v1`."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        jobs = ",".join([f'{{"type":"resize","payload":{PAYLOAD.decode()}}}'] * size)
        self.ask("/v1/queues/images/enqueue", f'{{"jobs":[{jobs}]}}'.encode())
        _, body = self.ask("/v1/queues/images/dequeue", b'{"count":%d}' % size)
        claims = [{"id": job.id, "token": job.lease.token} for job in _decode_jobs(body).jobs]
        self.ask("/v1/queues/images/conclude", msgspec.json.encode({"jobs": claims}))


class OursSimple(Http):
    """This server, over its classic routes."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        for _ in range(size):
            self.ask("/jobs/enqueue", b'{"Type":"TIME_CRITICAL","Payload":' + PAYLOAD + b"}")
            headers, body = self.ask("/jobs/dequeue", b"")
            id_ = body.partition(b'"ID":')[2].partition(b",")[0].decode()
            self.ask(f"/jobs/{id_}/conclude", b"", f"Queue-Lease-Token: {headers['queue-lease-token']}\r\n")


class Mutex(Http):
    """The mutex design: `mutex_design.py`."""

    def live(self, size: int) -> None:
        """See `Connection`."""
        for _ in range(size):
            self.ask("/jobs/enqueue", b'{"Type":"TIME_CRITICAL","Payload":' + PAYLOAD + b"}")
            _, body = self.ask("/jobs/dequeue", b"")
            self.ask(f"/jobs/{json.loads(body)['ID']}/conclude", b"")


class Beanstalk:
    """Its own protocol, with many commands sent at once."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close

    def live(self, size: int) -> None:
        """See `Connection`."""
        wire = self._wire
        wire.send(b"put 0 0 %d %d\r\n%b\r\n" % (LEASE_SECONDS, len(PAYLOAD), PAYLOAD) * size)
        for _ in range(size):
            _expect(wire.line(), b"INSERTED ")
        wire.send(b"reserve\r\n" * size)
        ids = []
        for _ in range(size):
            _, id_, length = _expect(wire.line(), b"RESERVED ").split()
            wire.read(int(length) + 2)
            ids.append(id_)
        wire.send(b"".join(b"delete %b\r\n" % id_ for id_ in ids))
        for _ in ids:
            _expect(wire.line(), b"DELETED")


class Redis:
    """The reliable list of Redis's own documentation: a job being worked on is moved to the worker's own list."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close
        self._mine = b"working:%d" % id(self)

    def _send(self, *commands: Sequence[bytes]) -> None:
        self._wire.send(
            b"".join(
                b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
                for words in commands
            )
        )

    def live(self, size: int) -> None:
        """See `Connection`."""
        wire = self._wire
        self._send((b"LPUSH", b"images", *[PAYLOAD] * size))
        _expect(wire.line(), b":")
        self._send(*[(b"LMOVE", b"images", self._mine, b"RIGHT", b"LEFT")] * size)
        jobs = []
        for _ in range(size):
            length = int(_expect(wire.line(), b"$")[1:])
            jobs.append(wire.read(length + 2)[:-2])
        self._send(*[(b"LREM", self._mine, b"-1", job) for job in jobs])
        for _ in jobs:
            _expect(wire.line(), b":1")


class Bunqueue:
    """Its TCP protocol, which its own clients speak: frames of MessagePack, with its commands for batches."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)
        self.close = self._wire.close
        self._owner = f"worker-{id(self)}"
        self._data = json.loads(PAYLOAD)

    def _ask(self, **command: Any) -> Any:
        data = msgspec.msgpack.encode(command)
        self._wire.send(struct.pack(">I", len(data)) + data)
        (length,) = struct.unpack(">I", self._wire.read(4))
        answer = msgspec.msgpack.decode(self._wire.read(length))
        if not answer["ok"]:
            raise ConnectionError(f"{command['cmd']}: {answer}")
        return answer

    def live(self, size: int) -> None:
        """See `Connection`."""
        ask = self._ask
        if size == 1:
            ask(cmd="PUSH", queue="images", name="resize", data=self._data)
            found = ask(cmd="PULL", queue="images", owner=self._owner, timeout=5_000)
            ask(cmd="ACK", id=found["job"]["id"], token=found["token"])
            return
        ask(cmd="PUSHB", queue="images", jobs=[{"name": "resize", "data": self._data}] * size)
        left = size
        while left:  # it may give fewer than it was asked for
            found = ask(cmd="PULLB", queue="images", owner=self._owner, count=left, timeout=5_000)
            ask(cmd="ACKB", ids=[job["id"] for job in found["jobs"]], tokens=found["tokens"])
            left -= len(found["jobs"])


def _expect(line: bytes, beginning: bytes) -> bytes:
    if not line.startswith(beginning):
        raise ConnectionError(f"{line[:200]!r} where {beginning!r} was expected")
    return line


# --- servers


class Peer(NamedTuple):
    """A queue, and how it is started. A command that needs what is not there is None."""

    name: str
    connection: Callable[[int], Connection]
    command: Callable[[int, str], Sequence[str] | None]
    sizes: Sequence[int] = SIZES
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


def _mutex(port: int, _folder: str) -> Sequence[str] | None:
    program = PEERS / "venv" / "bin" / "python"
    return [str(program), "-m", "tests.benchmarks.mutex_design", str(port)] if program.exists() else None


ALL = (
    Peer("queue-actor", Ours, _ours),
    Peer("queue-actor, classic routes", OursSimple, _ours, (1,)),
    Peer("Flask, threading.Lock, waitress", Mutex, _mutex, (1,), hint="scripts/peers.sh"),
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
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port: int = first.getsockname()[1]
    return port


@contextmanager
def running(peer: Peer, folder: str) -> Iterator[tuple[int, int] | None]:
    """Process id and port of a peer that answers connections; None: it is not installed."""
    port = free_port()
    command = peer.command(port, folder)
    if command is None:
        yield None
        return
    with subprocess.Popen(
        command, env=os.environ | peer.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{peer.name} did not start: {' '.join(command)}") from None
                    time.sleep(0.05)
            yield process.pid, port
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


def drive(name: str, port: int, size: int, seconds: float) -> tuple[int, float]:
    """Lives for so long over all connections, each in a thread of its own: jobs and seconds."""
    peer = next(peer for peer in ALL if peer.name == name)

    def one(connection: Connection) -> int:
        jobs = 0
        while time.perf_counter() < deadline:
            connection.live(size)
            jobs += size
        return jobs

    connections = [peer.connection(port) for _ in range(CLIENTS)]
    began = time.perf_counter()
    deadline = began + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs = sum(pool.map(one, connections))
    took = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return jobs, took


def measure(peer: Peer, pid: int, port: int, size: int, seconds: float) -> Figures:
    """Loads a peer from another process, and compares its CPU before and after."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()
        before = cpu_seconds(pid)
        jobs, took = pool.submit(drive, peer.name, port, size, seconds).result()
        spent = cpu_seconds(pid) - before
    return Figures(spent / jobs * 1e6, jobs / took)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="where to write every round")
    arguments = parser.parse_args()
    rounds, seconds = (3, 1.0) if arguments.quick else (7, 2.0)
    measures: dict[tuple[str, int], list[Figures]] = {}
    with ExitStack() as stack:
        servers: dict[str, tuple[int, int]] = {}
        for peer in ALL:
            folder = stack.enter_context(TemporaryDirectory())
            server = stack.enter_context(running(peer, folder))
            if server is None:
                print(f"skipped: {peer.name} is not installed ({peer.hint})")
            else:
                servers[peer.name] = server
        for number in range(rounds):
            for size in SIZES:
                for name in rotated(tuple(servers), number):
                    peer = next(peer for peer in ALL if peer.name == name)
                    if size in peer.sizes:
                        figures = measure(peer, *servers[name], size, seconds)
                        measures.setdefault((name, size), []).append(figures)
    print(f"\n{CLIENTS} connections; medians of {rounds} rounds of {seconds:g} s; the server's CPU per whole job\n")
    report(measures)
    if arguments.json:
        arguments.json.write_text(json.dumps([[*cell, *map(list, seen)] for cell, seen in measures.items()]))


def report(measures: dict[tuple[str, int], list[Figures]]) -> None:
    """Prints CPU a job, its spread, and jobs a second, the cheapest of each size first."""
    print(f"{'batch':>6}  {'':32} {'CPU us/job':>10} {'from':>7} {'to':>7} {'jobs/s':>9}")
    for size in SIZES:
        cells = [(name, seen) for (name, its_size), seen in measures.items() if its_size == size]
        for name, seen in sorted(cells, key=lambda cell: median(one.cpu_us for one in cell[1])):
            cpu = sorted(one.cpu_us for one in seen)
            rate = median(one.jobs_per_second for one in seen)
            print(f"{size:6}  {name:32} {median(cpu):10.1f} {cpu[0]:7.1f} {cpu[-1]:7.1f} {rate:9.0f}")


if __name__ == "__main__":
    main()
