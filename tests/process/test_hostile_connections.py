"""Whatever arrives on the port: the server lives, answers as documented or closes, and serves others meanwhile.

Inputs that a stock HTTP stack does not survive are kept as short as they can be.
"""

import json
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.process.hostile import CHUNKED, GET, INPUTS, head, posted, sized, tls_hello
from tests.process.server import Server, eventually, read_answer, running_server

pytestmark = pytest.mark.process

OTHERS_WAIT_SECONDS = 1.0
"""The longest that anybody else may wait for an answer meanwhile."""
OTHERS_MEDIAN_SECONDS = 0.1


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running_server() as server:
        server.request("GET", "/healthz")
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The one server that has to survive all of this. A test leaves it with the files it found it with."""
    lines, files = len(shared_server.log), shared_server.files
    yield shared_server
    shared_server.print_log(since=lines)
    assert shared_server.request("GET", "/healthz").status == 200
    assert eventually(lambda: shared_server.files <= files)


@pytest.mark.parametrize("name", INPUTS)
def test_the_answer_to(name: str, server: Server) -> None:
    sent, statuses, closed = INPUTS[name]
    with server.connect() as connection, connection.makefile("rb") as stream:
        with suppress(ConnectionError):  # if it was refused before it had sent everything
            connection.sendall(sent)
        assert server.request("GET", "/healthz", seconds=OTHERS_WAIT_SECONDS).status == 200
        answers = [read_answer(stream) for _ in statuses]
        assert [answer and answer.status for answer in answers] == statuses
        for answer in answers:
            assert answer is not None
            assert answer.status < 400 or answer.body["status"] == answer.status
        if closed:
            assert read_answer(stream) is None


def test_nobody_else_waits_while_these_arrive(server: Server) -> None:
    """By the median, for the machine that runs this is a noisy one; each alone is bounded in the test before."""
    seconds = []
    with server.connect() as other, other.makefile("rb") as stream:
        for sent, _, _ in INPUTS.values():
            with server.connect() as connection:
                with suppress(ConnectionError):
                    connection.sendall(sent)
                began = time.monotonic()
                other.sendall(GET)
                answer = read_answer(stream)
                seconds.append(time.monotonic() - began)
                assert answer is not None
                assert answer.status == 200
    print(f"others: median {statistics.median(seconds) * 1000:.1f} ms, longest {max(seconds) * 1000:.1f} ms")
    assert statistics.median(seconds) < OTHERS_MEDIAN_SECONDS


def reset(connection: socket.socket) -> None:
    """Close it so that the server sees a reset, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    """Close the sending side, and wait for the server to close its own."""
    connection.shutdown(socket.SHUT_WR)
    with suppress(ConnectionError):
        while connection.recv(65_536):
            pass


LONG_POLL = head("POST /jobs/dequeue?wait=20 HTTP/1.1", "Content-Length: 0")

MOMENTS = {
    "before a byte is sent": b"",
    "within the request line": b"GET /heal",
    "within the fields": GET[:-6],
    "within the body": posted("Content-Length: 100"),
    "within a chunk": CHUNKED + b"ff\r\nabc",
    "after a request": GET,
    "after fifty requests": 50 * GET,
    "during a long poll": LONG_POLL,
    "during a long poll with a request sent ahead": LONG_POLL + GET,
}


@pytest.mark.parametrize("leave", [reset, half_close, socket.socket.close])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_leaves(moment: str, leave: Callable[[socket.socket], None], server: Server) -> None:
    with server.connect(seconds=30) as connection:
        connection.sendall(MOMENTS[moment])
        assert server.request("GET", "/healthz", seconds=OTHERS_WAIT_SECONDS).status == 200
        leave(connection)


def test_clients_that_never_finish_a_head_are_told_so_or_closed_in_time(server: Server) -> None:
    beginnings = {
        "nothing": b"",
        "half a request line": b"GET /heal",
        "half a head": GET[:-2],
        "a byte now and then": b"GET /healthz HTTP/1.1\r\nX: ",
        "a TLS hello without a line end": tls_hello().replace(b"\n", b"\x00"),
    }
    with ExitStack() as stack:
        connections = {name: stack.enter_context(server.connect(seconds=0.2)) for name in beginnings}
        for name, connection in connections.items():
            connection.sendall(beginnings[name])
        ended: dict[str, bytes] = {}
        heard = dict.fromkeys(beginnings, b"")
        deadline = time.monotonic() + 12
        while len(ended) < len(connections) and time.monotonic() < deadline:
            for name, connection in connections.items():
                try:
                    if name == "a byte now and then" and not heard[name]:
                        connection.sendall(b"a")
                    data = connection.recv(65_536)
                except TimeoutError:
                    continue
                except ConnectionError:
                    data = b""
                heard[name] += data
                if not data:
                    ended[name] = heard[name]
            assert server.request("GET", "/healthz", seconds=OTHERS_WAIT_SECONDS).status == 200
    assert set(ended) == set(beginnings)
    statuses = {name: answer.split(b" ", 2)[1:2] for name, answer in ended.items()}
    assert statuses == {
        "nothing": [],
        "half a request line": [b"408"],
        "half a head": [b"408"],
        "a byte now and then": [b"408"],
        "a TLS hello without a line end": [b"400"],
    }


# --- the log


FORGED = '{"event":"ready", "address":"http://example.org"}'

SNEAKY = [
    head("GET /jobs/%0d%0a{} HTTP/1.1".format(FORGED.replace(" ", "%20").replace('"', "%22"))),
    head("GET /jobs/1%1b%5b2J HTTP/1.1"),
    head("GET /jobs/1%c2%9b2J HTTP/1.1"),
    head("GET /jobs/%e2%80%a8x HTTP/1.1"),
    head('GET /jobs/","event":"ready","x":" HTTP/1.1'.replace('"', "%22")),
    head('GET /jobs/"{}\\n HTTP/1.1'),
    head("GET /jobs/1?%0a{}%1b HTTP/1.1".format(FORGED.replace(" ", "+").replace('"', "%22"))),
    head("POST /jobs/dequeue?wait=%0a1 HTTP/1.1", "Content-Length: 0"),
    head("POST /jobs/dequeue HTTP/1.1", "Content-Length: 0", f"Queue-Consumer: {FORGED}"),
    head("POST /jobs/dequeue HTTP/1.1", "Content-Length: 0", "Queue-Consumer: a\x9b2Jb\x85c"),
    head("POST /jobs/dequeue HTTP/1.1", "Content-Length: 0", "Queue-Consumer: a\xe2\x80\xa8b"),
    head("POST /jobs/dequeue HTTP/1.1", "Content-Length: 0", "Queue-Consumer: a\xffb"),
    head("POST /jobs/dequeue HTTP/1.1", "Content-Length: 0", "QUEUE_CONSUMER: a\\n\\u001b"),
    head("GET /healthz HTTP/1.1", f"X-Request-Id: {FORGED}"),
    head("GET /healthz HTTP/1.1", f"User-Agent: {FORGED}", f"X-Forwarded-For: {FORGED}"),
    sized(b'{"Type": "a\\r\\nb", "Payload": "\\u001b"}'),
    sized(b'{"Type": "\xe2\x80\xa8", "Payload": "\\u001b"}'),
    head("POST /jobs/1/conclude HTTP/1.1", "Content-Length: 0", f"Queue-Lease-Token: {FORGED}"),
    head("GET /jobs/1 HTTP/1.1", host="localhost\xff"),
]


def is_printable(line: bytes) -> bool:
    """Whether a line is one line for every program that reads it, and harmless to a terminal: printable ASCII."""
    return line.isascii() and line.decode().isprintable()


def logged_until_now(server: Server, *, since: int) -> list[dict[str, Any]]:
    """What the log tells from a line on; all of its lines are printable."""
    assert server.request("GET", "/readyz").status == 200
    server.wait_for_line(lambda line: b'"/readyz"' in line, since=since)
    assert [line for line in server.log[since:] if not is_printable(line)] == []
    return [json.loads(line) for line in server.log[since:-1]]


def lines_until_now(server: Server) -> int:
    """How many lines the log has, with those of all that was answered so far."""
    logged_until_now(server, since=len(server.log))
    return len(server.log)


def test_every_request_is_one_line_of_the_log_and_none_can_forge_one(server: Server) -> None:
    # A job for each consumer whose name is let through, since it is logged with the job.
    for _ in SNEAKY:
        assert server.request("POST", "/jobs/enqueue", {"Type": "X"}).status == 200
    begun = lines_until_now(server)
    statuses = []
    for sneaky in SNEAKY:
        with server.connect() as connection, connection.makefile("rb") as stream:
            connection.sendall(sneaky)
            answer = read_answer(stream)
            assert answer is not None
            statuses.append(answer.status)
    assert 200 in statuses
    logged = logged_until_now(server, since=begun)
    assert [(line["event"], line["status"]) for line in logged] == [("request", status) for status in statuses]


def test_a_request_that_is_refused_unseen_is_one_line_of_the_log_too(server: Server) -> None:
    names = [
        "a length beyond the limit",
        "1,000 fields",
        "a length and chunks",
        "a control character in the target",
        "an escape in a field",
        "a TLS hello",
        "noise 1",
    ]
    begun = lines_until_now(server)
    for name in names:
        with server.connect() as connection, connection.makefile("rb") as stream:
            with suppress(ConnectionError):
                connection.sendall(INPUTS[name][0])
            assert read_answer(stream) is not None
    logged = logged_until_now(server, since=begun)
    assert [(line["event"], line["status"]) for line in logged] == [("refused", INPUTS[name][1][0]) for name in names]
    assert (logged[0]["method"], logged[0]["path"]) == ("POST", "/jobs/enqueue")
