"""Enqueues of lines, of any length, against the real server: its memory, its patience, and what it tells of each line.

Every producer here reads its answers beside sending, or is a test of one that does not.
"""

import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from tests.process.server import ANSWER_SECONDS, Server, eventually, running_server

pytestmark = pytest.mark.process

MIB = 1024 * 1024
REQUEST_BYTES_MAX = MIB
CHUNK_LINES = 1_000
# What a stream may take of memory while it is under way, beside the jobs that it leaves.
STREAM_BYTES = 30 * MIB
# From when a line is sent, however slowly others come, until it is answered.
LINE_SECONDS = 1.0
# How long the server waits for a client that reads nothing.
SEND_SECONDS = 3.0
OTHERS_WAIT_SECONDS = 1.0

GOOD = b'{"type":"t"}\n'
BAD = b'{"typ":"t"}\n'
EMPTY = b" " * 1023 + b"\n"

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running_server() as server:
        server.request("GET", "/healthz")
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """One server for all. A test leaves it with the files it found it with, and without a complaint in its log."""
    lines, files = len(shared_server.log), shared_server.files
    yield shared_server
    shared_server.print_log(since=lines)
    assert shared_server.request("GET", "/healthz").status == 200
    assert eventually(lambda: shared_server.files <= files)
    assert shared_server.complaints(since=lines) == []


def head(first: str, *fields: str) -> bytes:
    return "\r\n".join([first, "Host: localhost", *fields, "", ""]).encode()


NDJSON = "Content-Type: application/x-ndjson"
CHUNKED = "Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Producer:
    """A client that sends lines as it likes, and reads the answers as it likes."""

    def __init__(
        self,
        server: Server,
        queue: str,
        *fields: str,
        path: str = "/v1/queues/{}/enqueue",
        receive_bytes: int | None = None,
    ) -> None:
        self.connection = server.connect(seconds=ANSWER_SECONDS, receive_bytes=receive_bytes)
        self.connection.sendall(head(f"POST {path.format(queue)} HTTP/1.1", NDJSON, CHUNKED, *fields))
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        if self._response is not None:
            self._response.close()
        self.connection.close()

    def send(self, lines: bytes) -> None:
        """Send some bytes as one chunk; it does not matter where lines begin and end in it."""
        self.connection.sendall(chunk(lines))

    def end(self) -> None:
        self.connection.sendall(b"0\r\n\r\n")

    @property
    def response(self) -> http.client.HTTPResponse:
        """The answer's head, waited for."""
        if self._response is None:
            self._response = http.client.HTTPResponse(self.connection, method="POST")
            self._response.begin()
        return self._response

    def answer(self) -> Any:
        """The next line of the answer; None at its end."""
        line = self.response.readline()
        return json.loads(line) if line else None

    def answers(self) -> list[Any]:
        """All lines of the answer that are still to come."""
        return list(iter(self.answer, None))


class Sender(threading.Thread):
    """Sends beside the test, for as long as the server takes it. `sent` counts the bytes."""

    def __init__(self, connection: socket.socket, pieces: Sequence[bytes]) -> None:
        super().__init__()
        self._connection = connection
        self._pieces = pieces
        self.sent = 0
        self.cut_off = False
        self.start()

    def run(self) -> None:
        try:
            for piece in self._pieces:
                self._connection.sendall(piece)
                self.sent += len(piece)
        except ConnectionError:
            self.cut_off = True

    def wait_held_up(self) -> None:
        """Return when the kernel takes nothing more; fail if it takes all."""
        before = -1
        while self.is_alive() and before != self.sent:
            before = self.sent
            self.join(0.3)
        assert self.is_alive(), "everything was taken"


def produce(server: Server, queue: str, lines: bytes) -> list[Any]:
    """Send all lines, and read all answers meanwhile. What the server does not want to have it must let pass."""
    with Producer(server, queue) as producer:
        pieces = [chunk(lines[at : at + 64 * 1024]) for at in range(0, len(lines), 64 * 1024)]
        sender = Sender(producer.connection, [*pieces, b"0\r\n\r\n"])
        assert producer.response.status == 200
        answers = producer.answers()
        sender.join()
        assert not sender.cut_off
        return answers


def counts(server: Server, queue: str) -> dict[str, int]:
    """How many jobs the queue has by state, but for those it has none of."""
    all_counts = server.request("GET", f"/v1/queues/{queue}").body["counts"]
    return {state: count for state, count in all_counts.items() if count}


def types(server: Server, queue: str) -> list[str]:
    """The types of the queue's jobs in order."""
    return [job["type"] for job in server.request("GET", f"/v1/queues/{queue}/jobs").body["jobs"]]


def peak_bytes(server: Server) -> int:
    """The most memory that the server has held since `forget_peak`."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def cpu_seconds(server: Server) -> float:
    user, system = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# --- memory, and who waits for whom


def test_many_lines_become_as_many_jobs_in_order(server: Server) -> None:
    answers = produce(server, "many", GOOD * 50_000)

    assert sum(answer["count"] for answer in answers) == 50_000
    assert answers[-1]["lines"] == 50_000
    first_id = 1
    for answer in answers:
        assert answer["first_id"] == first_id
        first_id += answer["count"]
    assert counts(server, "many") == {"queued": 50_000}


KINDS = {
    "good lines that keep nothing": b'{"type":"t","unique_key":"k","payload":"%b"}\n' % (b"x" * 200),
    "bad lines": b'{"typ":"t"}'.ljust(499) + b"\n",
    "long bad lines": b'{"%b":"t"}\n' % (b"x" * 50_000),
    "bad lines of another kind": b'{"type":"t","payload":"%b"}\n' % (b"\xff" * 20_000),
    "empty lines": EMPTY,
}


@needs_proc
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_takes_no_more_memory_for_being_long(server: Server, kind: str) -> None:
    line = KINDS[kind]
    lines = min(200_000, 50_000_000 // len(line))
    produce(server, "long", line * (lines // 100))  # what is needed once is not meant
    forget_peak(server)
    before = peak_bytes(server)

    answers = produce(server, "long", line * lines)

    assert peak_bytes(server) - before < STREAM_BYTES
    told = sum(answer["count"] + len(answer.get("errors", [])) for answer in answers)
    assert told == (0 if kind == "empty lines" else lines)


@needs_proc
def test_a_line_that_comes_byte_by_byte_costs_no_more_for_being_long(server: Server) -> None:
    byte_by_byte = chunk(b"x") * 15_000

    def seconds(beginning: bytes) -> float:
        with Producer(server, "bytes") as producer:
            producer.send(beginning)
            before = cpu_seconds(server)
            producer.connection.sendall(byte_by_byte + chunk(b"\n"))
            producer.end()
            assert [error["line"] for error in producer.answer()["errors"]] == [1]
            return cpu_seconds(server) - before

    assert seconds(b"x" * (REQUEST_BYTES_MAX - 20_000)) < 4 * seconds(b"x") + 0.2


def test_a_producer_is_held_up_while_the_server_stands_still_and_loses_nothing(server: Server) -> None:
    with Producer(server, "still") as producer:
        producer.send(BAD * CHUNK_LINES)
        assert producer.answer()["lines"] == CHUNK_LINES
        server.send_signal(signal.SIGSTOP)
        try:
            sender = Sender(producer.connection, [chunk(EMPTY * 1024)] * 40)
            sender.wait_held_up()
        finally:
            server.send_signal(signal.SIGCONT)
        sender.join()
        producer.send(GOOD)
        producer.end()
        (last,) = producer.answers()
        assert (last["lines"], last["count"]) == (CHUNK_LINES + 40 * 1024 + 1, 1)


WORDY = b'{"%b":"t"}\n' % (b"x" * 1_000)
"""A bad line whose error is as long as itself."""


@needs_proc
def test_a_producer_that_never_reads_is_held_up_and_then_cut_off(server: Server) -> None:
    forget_peak(server)
    before = peak_bytes(server)
    with Producer(server, "deaf", receive_bytes=4_096) as producer:
        sender = Sender(producer.connection, [chunk(WORDY * 100)] * 1_000)
        sender.wait_held_up()
        asked = time.monotonic()
        assert server.request("GET", "/healthz").status == 200
        assert time.monotonic() - asked < OTHERS_WAIT_SECONDS
        sender.join(SEND_SECONDS + ANSWER_SECONDS)
        assert sender.cut_off
    assert peak_bytes(server) - before < STREAM_BYTES


def test_a_producer_that_reads_late_is_told_of_every_line(server: Server) -> None:
    with Producer(server, "late", receive_bytes=64 * 1024) as producer:
        sender = Sender(producer.connection, [*[chunk(WORDY * 100)] * 400, b"0\r\n\r\n"])
        sender.wait_held_up()
        numbers = [error["line"] for answer in producer.answers() for error in answer["errors"]]
        sender.join()
    assert numbers == list(range(1, 40_001))


# --- lines


def test_a_bad_line_is_told_by_its_number_and_leaves_the_others_alone(server: Server) -> None:
    lines = [
        b'{"type":"first"}',
        b'{"type":',
        b"",
        b'{"type":"not \xff UTF-8"}',
        b'{"type":"second","payload":"\xc3\xa9"}\r',
        b"   \r",
        b'{"type":"third","delay_second":1}',
        b'{"type":"third","payload":"%b"}' % (b"x" * 300_000),
        b"[]",
        b'{"type":"third"} {"type":"fourth"}',
        b'{"type":"third"}',
    ]

    # One answer, unless the long line takes a busy machine longer than a chunk may last.
    answers = produce(server, "errors", b"\n".join(lines))

    errors = [error for answer in answers for error in answer.get("errors", [])]
    assert (answers[-1]["lines"], sum(answer["count"] for answer in answers)) == (len(lines), 3)
    assert answers[0]["first_id"] == 1
    told = [(error["line"], error["code"]) for error in errors]
    assert told == [
        (2, "malformed"),
        (4, "malformed"),
        (7, "invalid"),
        (8, "too_large"),
        (9, "invalid"),
        (10, "malformed"),
    ]
    assert errors[3]["field"] == "payload"
    assert types(server, "errors") == ["first", "second", "third"]
    assert server.request("GET", "/v1/queues/errors/jobs/2").body["payload"] == "é"


def test_what_became_of_a_unique_key_is_told_line_by_line(server: Server) -> None:
    keyed = b'{"type":"t","unique_key":"%b"}\n'
    refused = b'{"type":"t","unique_key":"%b","on_existing":"refuse"}\n'
    produce(server, "keys", keyed % b"a" + keyed % b"b")

    (answer,) = produce(
        server, "keys", keyed % b"a" + keyed % b"c" + refused % b"b" + BAD + refused % b"d" + refused % b"d"
    )

    assert (answer["lines"], answer["count"], answer["existing"], answer["first_id"]) == (6, 3, 1, 3)
    told = [(error["line"], error["code"]) for error in answer["errors"]]
    assert told == [(3, "unique_key_taken"), (4, "invalid"), (6, "unique_key_taken")]
    assert counts(server, "keys") == {"queued": 4}


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (GOOD, 1),
        (GOOD.rstrip(), 1),
        (GOOD * 2 + GOOD.rstrip(), 3),
        (GOOD.replace(b"\n", b"\r\n") * 3, 3),
        (b"\n\r\n" + GOOD + b"\n\n" + GOOD, 6),
        (GOOD * (CHUNK_LINES - 1) + GOOD.rstrip(), CHUNK_LINES),
        (GOOD * (CHUNK_LINES + 1), CHUNK_LINES + 1),
    ],
    ids=[
        "one",
        "without its end",
        "the last without its end",
        "CRLF",
        "empty lines between",
        "a chunk",
        "and one more",
    ],
)
def test_lines_end_in_any_of_the_usual_ways(server: Server, body: bytes, lines: int) -> None:
    queue = f"ends{lines}-{len(body)}"

    answers = produce(server, queue, body)

    assert answers[-1]["lines"] == lines
    assert "errors" not in answers[-1]
    assert sum(answer["count"] for answer in answers) == body.count(b"type")
    assert counts(server, queue) == {"queued": body.count(b"type")}


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n\n  \n"])
def test_nothing_is_answered_by_nothing(server: Server, body: bytes) -> None:
    assert produce(server, "nothing", body) == []
    assert server.request("GET", "/v1/queues/nothing").body["exists"] is False


def padded(size: int) -> bytes:
    """A line with its line end beyond this many bytes."""
    return GOOD.rstrip().ljust(size) + b"\n"


def test_a_line_may_be_as_long_as_a_request(server: Server) -> None:
    (answer,) = produce(server, "fits", padded(REQUEST_BYTES_MAX))
    assert (answer["lines"], answer["count"]) == (1, 1)


@pytest.mark.parametrize("length", [REQUEST_BYTES_MAX + 1, 20 * MIB], ids=["by a byte", "by far"])
def test_a_line_that_is_too_long_ends_the_stream(server: Server, length: int) -> None:
    queue = f"line{length}"

    *chunks, last = produce(server, queue, GOOD * CHUNK_LINES + padded(length) + GOOD)

    assert [answer["count"] for answer in chunks] == [CHUNK_LINES]
    assert (last["lines"], last["count"], last["error"]["code"]) == (CHUNK_LINES, 0, "too_large")
    assert f"line {CHUNK_LINES + 1} " in last["error"]["detail"]
    assert counts(server, queue) == {"queued": CHUNK_LINES}


def test_a_full_queue_ends_the_stream_and_the_producer_hears_of_it(server: Server) -> None:
    server.request("PUT", "/v1/queues/small", {"queued_jobs_max": 1_500})

    # Far more lines than the kernel holds: the producer is still sending when it is refused.
    *chunks, last = produce(server, "small", GOOD * (20 * MIB // len(GOOD)))

    assert [answer["count"] for answer in chunks] == [CHUNK_LINES]
    assert (last["lines"], last["count"], last["error"]["code"]) == (2 * CHUNK_LINES, 0, "queue_full")
    assert counts(server, "small") == {"queued": CHUNK_LINES}


def test_bytes_that_are_no_chunk_end_the_stream(server: Server) -> None:
    with Producer(server, "framing") as producer:
        producer.send(GOOD)
        assert producer.answer()["count"] == 1
        producer.connection.sendall(b"no size\r\n")
        (last,) = producer.answers()
        assert last["error"]["code"] == "malformed"
    assert counts(server, "framing") == {"queued": 1}


# --- slow producers, and such as leave


def test_a_slow_line_is_enqueued_at_once_though_others_trickle_behind_it(server: Server) -> None:
    sent: list[float] = []
    with Producer(server, "trickle") as producer:

        def send() -> None:
            for _ in range(40):
                # The end of one line, and the beginning of the next: there is always something on its way.
                producer.send(GOOD[4:] if sent else GOOD)
                sent.append(time.monotonic())
                producer.send(GOOD[:4])
                threading.Event().wait(0.04)
            producer.send(GOOD[4:])
            producer.end()

        sender = threading.Thread(target=send)
        sender.start()
        told = 0
        while told < 40:
            answer = producer.answer()
            now = time.monotonic()
            assert all(now - at < LINE_SECONDS for at in sent[told : answer["lines"]])
            told = answer["lines"]
        sender.join()
    assert eventually(lambda: counts(server, "trickle") == {"queued": 41})


def test_a_line_that_nothing_follows_is_enqueued_at_once(server: Server) -> None:
    with Producer(server, "pause") as producer:
        for number in range(1, 6):
            sent = time.monotonic()
            producer.send(GOOD)
            assert producer.answer() == {"lines": number, "count": 1, "first_id": number}
            assert time.monotonic() - sent < LINE_SECONDS
            assert counts(server, "pause") == {"queued": number}


def reset(producer: Producer) -> None:
    producer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    producer.leave()


@pytest.mark.parametrize("leave", [Producer.leave, reset], ids=["closes", "resets"])
def test_what_was_answered_is_there_after_the_producer_has_left(
    server: Server, leave: Callable[[Producer], None]
) -> None:
    queue = f"left-{leave.__name__}"
    with Producer(server, queue) as producer:
        producer.send(GOOD * (2 * CHUNK_LINES + 500) + GOOD[:4])
        told = 0
        while told < 2 * CHUNK_LINES:  # in two answers, unless the machine stands still for long enough to end a chunk
            told += producer.answer()["count"]
        leave(producer)
    server.has_seen_all_before()
    queued = counts(server, queue)["queued"]
    assert told <= queued <= 2 * CHUNK_LINES + 500


def test_a_drain_ends_the_stream_and_what_was_answered_had_been_enqueued() -> None:
    with running_server() as server, Producer(server, "drain") as producer:
        producer.send(GOOD * CHUNK_LINES)
        assert producer.answer()["count"] == CHUNK_LINES
        server.terminate()
        assert server.wait(seconds=5) == 0


# --- heads


def test_a_key_is_refused_where_nothing_is_remembered(server: Server) -> None:
    with Producer(server, "keyed", "Idempotency-Key: k") as producer:
        sender = Sender(producer.connection, [chunk(GOOD * 80_000)] * 20)
        assert producer.response.status == 400
        problem = json.load(producer.response)
        assert (problem["code"], problem["field"]) == ("invalid", "Idempotency-Key")
        sender.join()
        assert not sender.cut_off
    assert server.request("GET", "/v1/queues/keyed").body["exists"] is False


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/jobs/enqueue", 415, "unsupported_media_type"),
        ("/v1/queues/q/dequeue", 415, "unsupported_media_type"),
        ("/v1/queues/q/conclude", 415, "unsupported_media_type"),
        ("/v1/queues/q/pause", 415, "unsupported_media_type"),
        ("/v1/nothing", 404, "not_found"),
        ("/healthz", 405, "method_not_allowed"),
        ("/v1/queues/no%20name/enqueue", 400, "invalid"),
        ("/v1/queues/q/enqueue?wait=1", 400, "invalid"),
    ],
)
def test_lines_are_taken_at_one_place_only(server: Server, path: str, status: int, code: str) -> None:
    with Producer(server, "", path=path) as producer:
        sender = Sender(producer.connection, [chunk(GOOD * 80_000)] * 20)
        assert producer.response.status == status
        assert json.load(producer.response)["code"] == code
        sender.join()
        assert not sender.cut_off  # so one that sends all before it reads anything is told, too


def test_a_producer_that_asks_is_told_to_send_before_anything_else(server: Server) -> None:
    with Producer(server, "expects", "Expect: 100-continue") as producer:
        told = b"HTTP/1.1 100 \r\n\r\n"
        assert producer.connection.recv(len(told)) == told
        producer.send(GOOD)
        producer.end()
        assert producer.response.status == 200
        assert [each["count"] for each in producer.answers()] == [1]


def test_a_producer_that_asks_and_is_refused_need_not_send(server: Server) -> None:
    with Producer(server, "expects", "Expect: 100-continue", path="/jobs/enqueue") as producer:
        final = b"HTTP/1.1 415 "
        assert producer.connection.recv(len(final)) == final


def test_http_1_0_is_answered_in_lines_until_the_connection_closes(server: Server) -> None:
    with server.connect() as connection:
        body = GOOD * 1_500
        connection.sendall(head("POST /v1/queues/old/enqueue HTTP/1.0", NDJSON, f"Content-Length: {len(body)}") + body)
        with connection.makefile("rb") as answer:
            heading, _, lines = answer.read().partition(b"\r\n\r\n")
    assert heading.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in heading.lower()
    assert [json.loads(line)["count"] for line in lines.splitlines()] == [CHUNK_LINES, 500]
