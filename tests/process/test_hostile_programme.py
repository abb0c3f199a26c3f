"""Hostile clients by the thousand: fuzz, slow and dead clients, storms, dropped polls, and each limit beyond its end.

    ./scripts/test.sh --hostile N [--seed S]

N is the number of fuzzed connections; the storm has half as many, the dropped polls a tenth. Every run prints its
seed and its figures. Everything goes to loopback, is bounded, and ends by itself.
"""

import http.client
import json
import os
import random
import resource
import selectors
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.process.hostile import CHUNKED, ENQUEUE, GET, INPUTS, head, posted, sized
from tests.process.server import Server, eventually, read_answer, running_server

pytestmark = [pytest.mark.process, pytest.mark.slow]

CONNECTIONS = int(os.environ.get("HOSTILE_CONNECTIONS", "2000"))
SEED = int(os.environ.get("HOSTILE_SEED") or random.SystemRandom().randrange(10**6))

MIB = 1024 * 1024
AT_ONCE = 50
"""Connections that the fuzz and the storm have open at a time."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc to read memory from")


def memory_bytes(server: Server) -> int:
    """What the process has in memory."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def settled(server: Server, files: int) -> bool:
    """Whether everything that clients left behind is gone: their files, and those who waited."""
    counts = server.request("GET", "/v1/statistics").body
    return server.files <= files and counts["waiters"] == 0 and counts["inbox_requests"] == 0


def begin(server: Server) -> int:
    """The files of a server that has nothing to do yet."""
    server.request("POST", "/jobs/enqueue", {"Type": "first"})
    server.request("POST", "/jobs/dequeue")
    server.has_seen_all_before()
    assert eventually(lambda: settled(server, server.files))
    return server.files


def complaints(server: Server) -> list[bytes]:
    """What the server has logged that is worse than information."""
    return server.complaints()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Pinger(threading.Thread):
    """A good client on a connection of its own: how long each of its requests takes while others do what they do."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.over = threading.Event()
        self.failure: Exception | None = None
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=30)

    def run(self) -> None:
        try:
            while not self.over.wait(0.002):
                began = time.perf_counter()
                self._connection.request("GET", "/healthz")
                answer = self._connection.getresponse()
                answer.read()
                assert answer.status == 200
                self.seconds.append(time.perf_counter() - began)
        except Exception as failure:  # noqa: BLE001 - raised again where it is joined
            self.failure = failure
        finally:
            self._connection.close()

    def figures(self) -> str:
        """Its times in milliseconds."""
        ordered = sorted(self.seconds)
        p99 = ordered[int(len(ordered) * 0.99)]
        return (
            f"{len(ordered)} pings, p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, "
            f"longest {ordered[-1] * 1000:.1f} ms"
        )


@contextmanager
def pinging(server: Server) -> Iterator[Pinger]:
    """Someone asks all the time, and is answered each time."""
    pinger = Pinger(server)
    pinger.start()
    try:
        assert eventually(lambda: bool(pinger.seconds or pinger.failure))
        yield pinger
    finally:
        pinger.over.set()
        pinger.join()
    if pinger.failure is not None:
        raise pinger.failure
    assert pinger.seconds


# --- fuzz


PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"/", b"?", b"%", b"\x00", b"\x7f", b"\x80", b"\xff", b"0",
    b"-1", b"+1", b"9" * 20, b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"Host: localhost\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n",
    b"\r\n\r\n", b"0\r\n\r\n", b"GET ", b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01", b"\x81\xfe",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"{", b'"', b"[" * 100, b"A" * 1_000,
]  # fmt: skip
SEEDS = [sent for sent, _, _ in INPUTS.values() if len(sent) < 4_000] + [sized(ENQUEUE), GET]


def mutated(chance: random.Random) -> bytes:
    """Something of the corpus, or two of it, with some bytes changed, left out, doubled or put in."""
    data = bytearray(chance.choice(SEEDS))
    if chance.random() < 0.2:
        data += chance.choice(SEEDS)
    for _ in range(chance.randint(0, 6)):
        place = chance.randint(0, len(data))
        match chance.randrange(5):
            case 0:
                data[place:place] = chance.choice(PIECES)
            case 1:
                del data[place : place + chance.randint(1, 20)]
            case 2:
                data[place : place + 1] = chance.randbytes(1)
            case 3:
                data[place:place] = data[place : place + chance.randint(1, 50)]
            case _:
                data[place : place + 4] = chance.choice(PIECES)
    # Without a line end at its end it would be waited for, as it should be: that is another test's business.
    return bytes(data) + chance.choice([b"", b"\r\n\r\n", b"\r\n0\r\n\r\n"])


def statuses_of(heard: bytes) -> list[int]:
    return [int(line[9:12]) for line in heard.splitlines() if line.startswith(b"HTTP/1.1 ") and line[9:12].isdigit()]


def fuzz(server: Server, chance: random.Random, count: int) -> Counter[int]:
    """Send so many, some at a time; how often which status was answered."""
    seen: Counter[int] = Counter()
    for start in range(0, count, AT_ONCE):
        with ExitStack() as stack:
            sent = {}
            for _ in range(min(AT_ONCE, count - start)):
                connection = stack.enter_context(server.connect())
                sent[connection] = mutated(chance)
                with suppress(OSError):  # it may have been refused, and closed, before all is sent
                    connection.sendall(sent[connection])
                    connection.shutdown(socket.SHUT_WR)
            for connection, data in sent.items():
                heard = b""
                with suppress(ConnectionError):
                    while more := connection.recv(65_536):
                        heard += more
                statuses = statuses_of(heard)
                seen.update(statuses)
                # 501 is for a coding that nobody knows; 503 would be for too many, which these are not.
                assert not [status for status in statuses if status >= 500 and status != 501], (SEED, data, heard)
    return seen


def test_no_bytes_at_all_end_the_server_or_are_answered_with_a_failure() -> None:
    print(f"\nfuzz: seed {SEED}, {CONNECTIONS} connections")
    with running_server() as server:
        files = begin(server)
        began = time.monotonic()
        seen = fuzz(server, random.Random(SEED), CONNECTIONS)  # noqa: S311 - a seed has to repeat it
        print(f"fuzz: {time.monotonic() - began:.0f} s, statuses {dict(sorted(seen.items()))}")
        assert len(seen) >= 5
        assert eventually(lambda: settled(server, files))
        assert complaints(server) == []
        server.terminate()
        assert server.wait(seconds=5) == 0


# --- slow, silent and dead clients


IDLE, SLOW_HEADER, SLOW_BODY, DEAD_READER = "idle", "slow header", "slow body", "never reading"
# In the order in which they come; the first ones are still there when the last ones are.
CROWD = {IDLE: 1_000, SLOW_BODY: 200, SLOW_HEADER: 1_000, DEAD_READER: 200}
IDLE_SECONDS = 10.0
LIMIT_SECONDS = {IDLE: IDLE_SECONDS, SLOW_HEADER: 5.0, SLOW_BODY: 10.0, DEAD_READER: 3.0}
CLOSED_WITHIN_SECONDS = 15.0


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may have as many files as it can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3_000:  # a client of its own for each of 2,400 connections
        pytest.skip("the system allows fewer than 3,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000) if hard > 0 else 10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drip(crowd: dict[socket.socket, str]) -> None:
    """A byte more from each of those who are slow."""
    for connection, kind in crowd.items():
        if kind in {SLOW_HEADER, SLOW_BODY}:
            with suppress(OSError):
                connection.send(b"a")


@needs_proc
@pytest.mark.usefixtures("many_files")
def test_a_crowd_of_slow_silent_and_dead_clients_is_closed_in_time_and_keeps_nobody_waiting() -> None:
    with running_server("--connections-max", "3000", "--idle-seconds", f"{IDLE_SECONDS:g}") as server:
        begin(server)
        large = server.request("POST", "/jobs/enqueue", {"Type": "large", "Payload": "x" * 250_000}).body["ID"]
        memory = memory_bytes(server)
        first = {
            IDLE: GET,
            SLOW_HEADER: GET[:-2] + b"X: ",
            SLOW_BODY: posted("Content-Length: 100000", body=b"{"),
            DEAD_READER: 20 * head(f"GET /jobs/{large} HTTP/1.1"),
        }
        with ExitStack() as stack, selectors.DefaultSelector() as selector, pinging(server) as pinger:
            crowd: dict[socket.socket, str] = {}
            came: dict[socket.socket, float] = {}
            for kind, count in CROWD.items():
                for _ in range(count):
                    receive_bytes = 4_096 if kind == DEAD_READER else None
                    connection = stack.enter_context(server.connect(receive_bytes=receive_bytes))
                    connection.sendall(first[kind])
                    crowd[connection], came[connection] = kind, time.monotonic()
                    if kind != DEAD_READER:
                        selector.register(connection, selectors.EVENT_READ)
            opened = time.monotonic()
            grown, peak = 0, 0
            closed: dict[str, list[float]] = {kind: [] for kind in CROWD}
            dripped = opened
            while selector.get_map() and time.monotonic() < opened + max(LIMIT_SECONDS.values()) + 20:
                grown, peak = max(grown, memory_bytes(server) - memory), max(peak, server.files)
                if time.monotonic() > dripped + 1:
                    drip(crowd)
                    dripped = time.monotonic()
                for key, _ in selector.select(0.2):
                    silent = key.fileobj
                    assert isinstance(silent, socket.socket)
                    try:
                        heard = silent.recv(65_536)
                    except ConnectionError:
                        heard = b""
                    if not heard:
                        selector.unregister(silent)
                        closed[crowd.pop(silent)].append(time.monotonic() - came[silent])
            assert not selector.get_map()
            assert peak > sum(CROWD.values()) * 0.9, "they were not there at once"
            # Whoever reads nothing cannot see the end; the server's files tell. One of them is the pinger's.
            assert eventually(lambda: server.files < 100, seconds=CLOSED_WITHIN_SECONDS)
            closed[DEAD_READER] = [time.monotonic() - opened]
        for kind, moments in closed.items():
            print(f"\n{kind}: {CROWD[kind]} closed {min(moments):.1f} to {max(moments):.1f} s after it came", end="")
            if kind != DEAD_READER:
                assert max(moments) < LIMIT_SECONDS[kind] + CLOSED_WITHIN_SECONDS
        print(f"\ncrowd: {pinger.figures()}; {peak} files at once, memory grew by {grown / MIB:.0f} MiB")
        assert grown < 150 * MIB
        assert complaints(server) == []


CLOSES = {
    "nothing sent": (b"", 5.0),
    "half a head": (GET[:-2], 5.0),
    "idle after an answer": (GET, 2.0),
    "Connection: close": (head("GET /healthz HTTP/1.1", "Connection: close"), 0.0),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 0.0),
    "413 with a body unread": (posted("Content-Length: 2000000", body=bytes(100_000)), 0.0),
    "400 within chunks": (CHUNKED + b"zz\r\n" + bytes(50_000), 0.0),
}


STREAM = head("POST /v1/queues/q/enqueue HTTP/1.1", "Content-Type: application/x-ndjson", "Content-Length: 1000000")
UNAUTHORIZED = {"401 with a body unread": (STREAM + bytes(100_000), 0.0)}
"""Of a server with tokens. A stream is answered before its body is read; any other body is read first."""


def late(server: Server, cases: dict[str, tuple[bytes, float]]) -> list[str]:
    """Which of them are not closed at their time.

    Each is tried five times, and the median counts, for the machine that runs this is a noisy one.
    """
    moments: dict[str, list[float]] = {name: [] for name in cases}

    def measure(name: str) -> None:
        began = time.monotonic()
        with server.connect(seconds=20) as connection, suppress(ConnectionError):
            connection.sendall(cases[name][0])
            while connection.recv(65_536):
                pass
        moments[name].append(time.monotonic() - began)

    threads = [threading.Thread(target=measure, args=(name,)) for name in cases for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(times) for times in moments.values()] == [5] * len(cases)
    medians = {name: statistics.median(times) for name, times in moments.items()}
    print("\nclosed after", {name: round(seconds, 2) for name, seconds in medians.items()})
    return [name for name, (_, due) in cases.items() if abs(medians[name] - due) > 0.5]


def test_connections_end_when_they_have_to() -> None:
    with running_server("--idle-seconds", "2") as server:
        files = begin(server)
        assert late(server, CLOSES) == []
        assert eventually(lambda: server.files <= files)


def test_who_has_no_token_is_told_and_closed_without_being_heard_out(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"tokens": []}')
    with running_server("--idle-seconds", "2", "--tokens", str(tmp_path / "tokens.json")) as server:
        server.request("GET", "/healthz")
        files = server.files
        assert late(server, UNAUTHORIZED) == []
        with server.connect() as connection:
            connection.sendall(UNAUTHORIZED["401 with a body unread"][0])
            answer = read_answer(connection.makefile("rb"))
            assert answer is not None
            assert (answer.status, answer.body["code"]) == (401, "unauthorized")
        assert eventually(lambda: server.files <= files)
        assert complaints(server) == []


# --- storms


STORM = [
    GET,
    posted("Content-Length: 100", body=b"x" * 100),
    CHUNKED + b"ff\r\n" + b"x" * 255 + b"\r\n",
    head("POST /jobs/dequeue?wait=20 HTTP/1.1", "Content-Length: 0"),
    head("GET /jobs/1 HTTP/1.1") * 10,
    head("POST /v1/queues/q/enqueue HTTP/1.1", "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    + b"ff\r\n{",
]


def storm(server: Server, chance: random.Random, count: int) -> None:
    """Connect, send a part of something, and reset; some at a time."""
    for start in range(0, count, AT_ONCE):
        connections = [server.connect() for _ in range(min(AT_ONCE, count - start))]
        for connection in connections:
            data = chance.choice(STORM)
            with suppress(ConnectionError):
                connection.sendall(data[: chance.randint(0, len(data))])
        chance.shuffle(connections)
        for connection in connections:
            reset(connection)


@needs_proc
def test_a_storm_of_resets_leaves_nothing_behind() -> None:
    count = max(5_000, CONNECTIONS // 2)
    chance = random.Random(SEED)  # noqa: S311 - a seed has to repeat it
    with running_server() as server:
        files = begin(server)
        storm(server, chance, 2_000)
        assert eventually(lambda: settled(server, files), seconds=30)
        memory = memory_bytes(server)
        began = time.monotonic()
        storm(server, chance, count)
        assert eventually(lambda: settled(server, files), seconds=30)
        grown = memory_bytes(server) - memory
        print(
            f"\nstorm: seed {SEED}, {count} resets in {time.monotonic() - began:.0f} s, memory {grown / MIB:+.1f} MiB"
        )
        assert grown <= 5 * MIB
        assert complaints(server) == []


def test_no_job_goes_to_a_poll_that_was_dropped_while_another_waits() -> None:
    rounds = max(10, CONNECTIONS // 1_000)
    poll = head("POST /jobs/dequeue?wait=20 HTTP/1.1", "Content-Length: 0")
    chance = random.Random(SEED)  # noqa: S311 - a seed has to repeat it
    at_once = 0
    with running_server() as server:
        files = begin(server)
        for round_ in range(rounds):
            dropped = [server.connect() for _ in range(100)]
            for connection in dropped:
                connection.sendall(poll)
            server.has_seen_all_before()
            with server.connect(seconds=30) as live, live.makefile("rb") as stream:
                live.sendall(poll)
                server.has_seen_all_before()
                for connection in dropped:
                    chance.choice([reset, socket.socket.close])(connection)
                if round_ % 2:
                    server.has_seen_all_before()
                else:
                    at_once += 1
                server.request("POST", "/jobs/enqueue", {"Type": "x"})
                answer = read_answer(stream)
                assert answer is not None
                assert (answer.status, answer.headers["Queue-Attempt"]) == (200, "1"), SEED
        assert eventually(lambda: settled(server, files))
        print(
            f"\npolls: {rounds * 100} dropped; in {at_once} of {rounds} rounds the job came with the ends of the polls"
        )


# --- limits, at n, at n + 1 and at 10 n


def codes(answers: list[tuple[int, Any]]) -> Counter[tuple[int, str]]:
    return Counter((status, "" if status == 200 else body["code"]) for status, body in answers)


def test_limits_of_the_queue_hold_at_n_and_for_ever_after() -> None:
    flags = ("--queues-max", "5", "--queued-jobs-max", "20", "--memory-bytes-max", "20000", "--retention-jobs", "0")
    with running_server(*flags) as server:

        def enqueue(queue: str, payload: str = "") -> tuple[int, Any]:
            answer = server.request(
                "POST", f"/v1/queues/{queue}/enqueue", {"jobs": [{"type": "t", "payload": payload}]}
            )
            return answer.status, answer.body

        made = [enqueue(f"q{number}") for number in range(50)]
        assert codes(made) == {(200, ""): 5, (429, "too_many_queues"): 45}
        room = 20 - 5
        filled = [enqueue("q0") for _ in range(200)]
        assert codes(filled) == {(200, ""): room, (429, "queue_full"): 200 - room}
        batch = {"jobs": [{"type": "t"}] * 1_001}
        assert server.request("POST", "/v1/queues/q0/enqueue", batch).status == 400
        assert server.request("POST", "/v1/queues/q0/enqueue", {"jobs": batch["jobs"] * 10}).status == 400
        assert server.request("POST", "/v1/queues/q0/purge", {"state": "queued"}).status == 200
        heavy = [enqueue("q0", "x" * 9_000) for _ in range(20)]
        assert codes(heavy) == {(200, ""): 2, (429, "memory_full"): 18}


def test_limits_of_connections_and_waiters_hold_at_n_and_ten_times_that() -> None:
    waiters, connections = 20, 60
    poll = head("POST /jobs/dequeue?wait=20 HTTP/1.1", "Content-Length: 0")
    with (
        running_server("--waiters-max", f"{waiters}", "--connections-max", f"{connections}") as server,
        ExitStack() as stack,
    ):
        files = begin(server)
        parked = [stack.enter_context(server.connect()) for _ in range(waiters)]
        for connection in parked:
            connection.sendall(poll)
        server.has_seen_all_before()
        for _ in range(9 * waiters):
            answer = server.request("POST", "/jobs/dequeue?wait=1")
            assert (answer.status, answer.body["code"]) == (503, "too_many_waiters")
            assert answer.headers["Retry-After"] == "1"
        # The others have begun a request, so none of them is idle.
        begun = [stack.enter_context(server.connect()) for _ in range(connections - waiters)]
        for connection in begun:
            connection.sendall(GET[:-2])
        told: Counter[int | None] = Counter()
        for _ in range(9 * connections):
            with server.connect() as connection, connection.makefile("rb") as stream:
                answer_or_none = read_answer(stream)
                told[answer_or_none and answer_or_none.status] += 1
        assert told == {503: 9 * connections}
        for connection in begun:
            connection.sendall(GET[-2:])
            with connection.makefile("rb") as stream:
                answer_or_none = read_answer(stream)
                assert answer_or_none is not None
                assert answer_or_none.status == 200
        stack.close()
        assert eventually(lambda: settled(server, files))


def request_of(size: int) -> bytes:
    return b'{"Type":"x","a":"' + b"a" * (size - 19) + b'"}'


@pytest.mark.parametrize(("factor", "status"), [(0, 200), (1, 413), (10, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_its_limit_and_beyond(factor: int, status: int, chunked: bool) -> None:
    body = request_of(MIB) if factor == 0 else request_of(MIB + 1 if factor == 1 else factor * MIB)
    with running_server() as server, server.connect() as connection, connection.makefile("rb") as stream:
        with suppress(ConnectionError):
            if chunked:
                connection.sendall(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            else:
                connection.sendall(sized(body))
        answer = read_answer(stream)
        assert answer is not None
        assert answer.status == status


def bombs() -> dict[str, tuple[str, bytes]]:
    """The most that is allowed of everything, and what is made to be hard to read; the paths and bodies."""
    jobs = "/v1/queues/q/enqueue"
    thousand = {"jobs": [{"type": "t" * 200, "payload": "x" * 500, "meta": {"k": "v" * 100}}] * 1_000}
    return {
        "1,000 jobs": (jobs, json.dumps(thousand).encode()),
        "a payload of 256 KiB": ("/jobs/enqueue", json.dumps({"Type": "t", "Payload": "x" * 262_142}).encode()),
        "1 MB of 0,": ("/jobs/enqueue", b'{"Type":"t","a":[' + b"0," * 524_000 + b"0]}"),
        "256 KB of 0, in a payload": ("/jobs/enqueue", b'{"Type":"t","Payload":[' + b"0," * 130_000 + b"0]}"),
        "1 MB of brackets": ("/jobs/enqueue", b"[" * 1_000_000),
        "500,000 deep": ("/jobs/enqueue", b'{"Type":"t","Payload":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        "100,000 keys": (
            "/jobs/enqueue",
            b'{"Type":"t",' + b",".join(b'"%06d":0' % number for number in range(90_000)) + b"}",
        ),
        "the same key 90,000 times": ("/jobs/enqueue", b'{"Type":"t"' + b',"a":""' * 90_000 + b"}"),
        "a number of 1 MB": ("/jobs/enqueue", b'{"Type":"t","a":' + b"9" * 1_000_000 + b"}"),
        "a fraction of 256 KB": ("/jobs/enqueue", b'{"Type":"t","Payload":0.' + b"1" * 250_000 + b"}"),
        "1 MB of escapes": ("/jobs/enqueue", b'{"Type":"t","a":"' + b"\\u0041" * 160_000 + b'"}'),
        "half surrogates": ("/jobs/enqueue", b'{"Type":"t","a":"' + b"\\ud800" * 160_000 + b'"}'),
        "1 MB of spaces": ("/jobs/enqueue", b'{"Type":"t"' + b" " * 1_000_000 + b"}"),
        "UTF-16": ("/jobs/enqueue", json.dumps({"Type": "t", "a": "x" * 500_000}).encode("utf-16")),
        "1,000 jobs with a mistake in the last": (
            jobs,
            json.dumps({"jobs": [*thousand["jobs"][:-1], {"type": 1}]}).encode(),
        ),
        "100,000 empty jobs": (jobs, b'{"jobs":[' + b"{}," * 300_000 + b"{}]}"),
        "1,000 concludes": (
            "/v1/queues/q/conclude",
            json.dumps({"jobs": [{"id": id_, "token": "t" * 200} for id_ in range(1, 1_001)]}).encode(),
        ),
    }


STALL_SECONDS = 0.5
"""What is meant is 50 ms. A noisy machine may keep both processes from running for longer than that at any time."""


def test_nothing_that_may_be_sent_stalls_the_others() -> None:
    with running_server() as server:
        begin(server)
        stalls = {}
        for name, (path, body) in bombs().items():
            assert len(body) <= MIB, name
            with pinging(server) as pinger:
                for _ in range(3):
                    request = head(f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}") + body
                    with server.connect() as connection, connection.makefile("rb") as stream:
                        connection.sendall(request)
                        assert (statuses_of(stream.readline()) or [599])[0] < 500, name
            stalls[name] = max(pinger.seconds)
        for name, seconds in sorted(stalls.items(), key=lambda stall: -stall[1]):
            print(f"\nstall: {seconds * 1000:6.1f} ms  {name}", end="")
        print(f"\nstalls above 50 ms: {[name for name, seconds in stalls.items() if seconds > 0.05]}")
        assert [name for name, seconds in stalls.items() if seconds > STALL_SECONDS] == []
        assert complaints(server) == []
