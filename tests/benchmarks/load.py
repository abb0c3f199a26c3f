"""Shared by the benchmarks: starts a server as a process, loads it from another one, and measures the server's CPU.

What this does not show: the client runs on the same machine and shares its cores and caches with the server, so
requests per second and latencies say how fast the pair is. CPU per request is the server's own, all threads, user and
system together; it is comparable within one run on one machine, not between machines.
"""

import os
import selectors
import signal
import socket
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.results import Results, show, spread

READ_BYTES = 256 * 1024
READY = "ready "
STOP_SECONDS = 10

# The system counts a process's CPU in ticks.
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Answer(NamedTuple):
    """What a script gets for a request. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


# Plays one client: yields the bytes of a request, gets the answer, for as long as it is asked to.
Script = Callable[[int], Generator[bytes, Answer, None]]


@dataclass
class Load:
    """What a load came to."""

    requests: int = 0
    refused: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    scheduled: list[float] = field(default_factory=list)  # in an open loop: when, in seconds since it began


@dataclass(frozen=True)
class Measure:
    """One load, seen from both sides."""

    requests: int
    cpu_us: float
    per_second: float
    p50_ms: float
    p99_ms: float


class Client:
    """One keep-alive connection that plays a script."""

    def __init__(self, port: int, script: Generator[bytes, Answer, None]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.script = script
        self.received = b""
        self.sent_at = 0.0
        self.request = b""  # the next one, where requests are sent by a schedule

    def send(self, request: bytes) -> None:
        """Sends one request; they are small, so this does not block."""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> Answer | None:
        """What has come, if that is a whole answer."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection under load")
        self.received += data
        head, gap, body = self.received.partition(b"\r\n\r\n")
        if not gap:
            return None
        lines = head.decode("latin1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if len(body) < int(headers.get("content-length", 0)):
            return None
        self.received = b""
        return Answer(int(lines[0].split()[1]), headers, body)


def drive(port: int, script: Script, connections: int, seconds: float) -> Load:
    """Plays the script on so many connections for so long; each sends its next request when it has its answer."""
    load = Load()
    with selectors.DefaultSelector() as selector:
        for number in range(connections):
            client = Client(port, script(number))
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(next(client.script))
        began = time.perf_counter()
        busy = connections
        while busy:
            for key, _ in selector.select():
                client = key.data
                answer = client.receive()
                if answer is None:
                    continue
                now = time.perf_counter()
                load.requests += 1
                load.refused += answer.status >= 400
                load.latencies.append(now - client.sent_at)
                if now - began < seconds:
                    client.send(client.script.send(answer))
                else:
                    selector.unregister(client.socket)
                    client.socket.close()
                    busy -= 1
        load.seconds = time.perf_counter() - began
    return load


def drive_open(port: int, script: Script, connections: int, seconds: float, per_second: float) -> Load:
    """Sends requests by a schedule, whatever becomes of the ones before; latencies count from the scheduled moment.

    A client that waits for its answer before it sends the next request asks a server that stands still only once. This
    one goes on asking: what finds no free connection is sent when there is one, and its wait counts.
    """
    load = Load()
    due: deque[float] = deque()
    free: deque[Client] = deque()
    with selectors.DefaultSelector() as selector:
        for number in range(connections):
            client = Client(port, script(number))
            client.request = next(client.script)
            selector.register(client.socket, selectors.EVENT_READ, client)
            free.append(client)
        began = time.perf_counter()
        scheduled, end, planned = began, began + seconds, 0
        while scheduled < end or due or len(free) < connections:
            now = time.perf_counter()
            while scheduled < min(now, end):
                due.append(scheduled)
                planned += 1
                scheduled = began + planned / per_second
            while due and free:
                client = free.popleft()
                client.send(client.request)
                client.sent_at = due.popleft()
            wait = max(0.0, scheduled - time.perf_counter()) if scheduled < end else 1.0
            for key, _ in selector.select(wait):
                client = key.data
                answer = client.receive()
                if answer is None:
                    continue
                load.requests += 1
                load.refused += answer.status >= 400
                load.latencies.append(time.perf_counter() - client.sent_at)
                load.scheduled.append(client.sent_at - began)
                client.request = client.script.send(answer)
                free.append(client)
        load.seconds = time.perf_counter() - began
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return load


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """User and system time of a process so far, its threads included, and on demand its ended children. Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11 : 15 if children else 13]) / TICKS_PER_SECOND


def rotated(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The same in a circle, begun so much later."""
    begin = number % len(names)
    return names[begin:] + names[:begin]


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Process id and port of a server that prints `ready PORT` on a line of its own; ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith(READY)), None)
            if ready is None:
                raise RuntimeError("the server ended before it was ready")
            yield process.pid, int(ready.removeprefix(READY))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@cache
def loader() -> ProcessPoolExecutor:
    """The process that makes the load, started and ready; one for all measurements."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    pool.submit(int).result()
    return pool


def measure(pid: int, port: int, script: Script, *, connections: int = 16, seconds: float = 1.0) -> Measure:
    """Loads a server from another process and compares its CPU before and after."""
    pool = loader()
    before = cpu_seconds(pid)
    load = pool.submit(drive, port, script, connections, seconds).result()
    spent = cpu_seconds(pid) - before
    if load.refused:
        raise RuntimeError(f"{load.refused} of {load.requests} requests were refused: this measures something else")
    cuts = statistics.quantiles(load.latencies, n=100)
    return Measure(
        requests=load.requests,
        cpu_us=spent / load.requests * 1e6,
        per_second=load.requests / load.seconds,
        p50_ms=cuts[49] * 1e3,
        p99_ms=cuts[98] * 1e3,
    )


def report(results: Results, title: str, measures: dict[str, list[Measure]], *, about: str = "") -> None:
    """Tells the figures of each name, and the ratio of its CPU to that of the first name.

    It is the median of the ratios within each round: the machine's own pace, which changes from minute to minute, is
    nearly the same for what was measured within seconds.
    """
    first = next(iter(measures.values()))
    rows = []
    for name, rounds in measures.items():
        cpu, rate, p50, p99 = (
            spread(getattr(each, key) for each in rounds) for key in ("cpu_us", "per_second", "p50_ms", "p99_ms")
        )
        ratio = statistics.median(one.cpu_us / base.cpu_us for one, base in zip(rounds, first, strict=True))
        rows.append([name, cpu, f"{ratio:.2f}", show(rate.median), show(p50.median), p99])
    head = [":", "CPU us a request", "ratio", "requests/s", "p50 ms", "p99 ms"]
    results.table(title, head, rows, about=about)
    results.rounds(title, {name: [asdict(each) for each in rounds] for name, rounds in measures.items()})
