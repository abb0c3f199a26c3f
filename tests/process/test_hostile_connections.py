"""Whatever arrives on the port: the server lives, answers as documented or closes, and serves others meanwhile.

Inputs that a stock HTTP stack does not survive are kept as short as they can be.
"""

import json
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.process.server import Server, eventually, read_answer, running_server

pytestmark = pytest.mark.process

OTHERS_WAIT_SECONDS = 1.0
"""The longest that anybody else may wait for an answer meanwhile."""


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


def head(first: str, *fields: str, host: str = "localhost") -> bytes:
    """The head of a request: a request line, a Host, and whatever fields."""
    return "\r\n".join([first, *([f"Host: {host}"] if host else []), *fields, "", ""]).encode("latin-1")


GET = head("GET /healthz HTTP/1.1")
CHUNKED = head("POST /jobs/enqueue HTTP/1.1", "Transfer-Encoding: chunked")
ENQUEUE = b'{"Type": "X"}'
WEBSOCKET = head(
    "GET /healthz HTTP/1.1",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
H2_HEADERS = b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\x82\x84\x86\x41\x00"
H2_DATA = b"\x00\x00\x04\x00\x01\x00\x00\x00\x01junk"


def posted(*fields: str, body: bytes = ENQUEUE) -> bytes:
    return head("POST /jobs/enqueue HTTP/1.1", *fields) + body


def sized(body: bytes) -> bytes:
    return posted(f"Content-Length: {len(body)}", body=body)


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(2_000) + b"\r\n\r\n"  # noqa: S311 - it is to be the same noise in every run


OPEN, CLOSED = False, True

# What is sent, the statuses of the answers, and whether the server closes the connection after them.
INPUTS: dict[str, tuple[bytes, list[int], bool]] = {
    # Other protocols.
    "a WebSocket upgrade, which is not taken up": (WEBSOCKET, [200], OPEN),
    "garbage after a WebSocket upgrade": (WEBSOCKET + b"\x81\xfe\r\n\r\n", [200, 400], CLOSED),
    "a WebSocket frame after the upgrade": (WEBSOCKET + b"\x81\x85\x00\x00\x00\x00hello\r\n\r\n", [200, 400], CLOSED),
    "an HTTP/2 preface": (H2_PREFACE, [400], CLOSED),
    "HTTP/2 frames": (H2_PREFACE + H2_SETTINGS + H2_HEADERS + H2_DATA, [400], CLOSED),
    "an upgrade to HTTP/2, which is not taken up": (
        head(
            "GET /healthz HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
        ),
        [200],
        OPEN,
    ),
    "HTTP/2 frames after an upgrade": (
        head("GET /healthz HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c") + H2_PREFACE + H2_SETTINGS,
        [200, 400],
        CLOSED,
    ),
    "a TLS hello": (tls_hello() + b"\r\n\r\n", [400], CLOSED),
    "another protocol": (b"EHLO example.org\r\n\r\n", [400], CLOSED),
    "noise 1": (noise(1), [400], CLOSED),
    "noise 2": (noise(2), [400], CLOSED),
    "noise 3": (noise(3), [400], CLOSED),
    # Request lines.
    "CONNECT": (head("CONNECT example.org:443 HTTP/1.1", host="example.org:443"), [400], CLOSED),
    "CONNECT without a target": (head("CONNECT HTTP/1.1"), [400], CLOSED),
    "a method outside ASCII": (head("G\xc9T /healthz HTTP/1.1"), [400], CLOSED),
    "a target outside ASCII": (head("GET /jobs/\xff HTTP/1.1"), [400], CLOSED),
    "a control character in the target": (head("GET /jobs/\x1b[2J HTTP/1.1"), [400], CLOSED),
    "an unknown method": (head("BREW /healthz HTTP/1.1"), [405], OPEN),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [400], CLOSED),
    "HTTP/2.0 by name": (head("GET /healthz HTTP/2.0"), [400], CLOSED),
    "a target that is no path": (head("GET healthz HTTP/1.1"), [400], CLOSED),
    "a path out of the root": (head("GET /../../etc/passwd HTTP/1.1"), [404], OPEN),
    "a NUL in the path": (head("GET /jobs/%00 HTTP/1.1"), [400], OPEN),
    "bytes that are not UTF-8 in the path": (head("GET /jobs/%ff%fe HTTP/1.1"), [400], OPEN),
    "a very long target": (head(f"GET /jobs/{'1' * 20_000} HTTP/1.1"), [431], CLOSED),
    "a foreign absolute target": (head("GET http://example.org/healthz HTTP/1.1"), [403], OPEN),
    # Header fields.
    "no Host": (head("GET /healthz HTTP/1.1", host=""), [400], CLOSED),
    "two Hosts": (head("GET /healthz HTTP/1.1", "Host: 127.0.0.1"), [400], CLOSED),
    "a foreign Host": (head("GET /healthz HTTP/1.1", host="example.org"), [403], OPEN),
    "a NUL in a field": (head("GET /healthz HTTP/1.1", "X: a\x00b"), [400], CLOSED),
    "an escape in a field": (head("GET /healthz HTTP/1.1", "X: a\x1bb"), [400], CLOSED),
    "a bare CR in a field": (head("GET /healthz HTTP/1.1", "X: a\rY: b"), [400], CLOSED),
    "a space before the colon": (head("GET /healthz HTTP/1.1", "X : a"), [400], CLOSED),
    "a field without a name": (head("GET /healthz HTTP/1.1", ": a"), [400], CLOSED),
    "a folded field, read as one": (head("GET /healthz HTTP/1.1", "X: a\r\n b"), [200], OPEN),
    "bare LF, read as CRLF": (GET.replace(b"\r\n", b"\n"), [200], OPEN),
    "20,000 bytes of one field in one read": (head("GET /healthz HTTP/1.1", f"X: {'a' * 20_000}"), [431], CLOSED),
    "1,000 fields": (head("GET /healthz HTTP/1.1", *(f"X-{n}: {n:020}" for n in range(1_000))), [431], CLOSED),
    # Where a body ends.
    "two different lengths": (posted("Content-Length: 13", "Content-Length: 14"), [400], CLOSED),
    "a length with a sign": (posted("Content-Length: +13"), [400], CLOSED),
    "a negative length": (posted("Content-Length: -1"), [400], CLOSED),
    "a length in hexadecimal": (posted("Content-Length: 0xd"), [400], CLOSED),
    "a length beyond all bounds": (posted("Content-Length: 9999999999999999999"), [413], CLOSED),
    "a length beyond the limit": (posted("Content-Length: 1048577"), [413], CLOSED),
    "a length and chunks": (posted("Content-Length: 13", "Transfer-Encoding: chunked"), [400], CLOSED),
    "chunks in HTTP/1.0": (head("POST /jobs/enqueue HTTP/1.0", "Transfer-Encoding: chunked"), [400], CLOSED),
    "an unknown coding": (posted("Transfer-Encoding: gzip, chunked"), [501], CLOSED),
    "a coding that is almost chunked": (posted("Transfer-Encoding: xchunked"), [501], CLOSED),
    "two codings": (posted("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), [501], CLOSED),
    "a chunk size that is no number": (CHUNKED + b"zz\r\n\r\n", [400], CLOSED),
    "a negative chunk size": (CHUNKED + b"-1\r\n\r\n", [400], CLOSED),
    "a chunk that ends wrongly": (CHUNKED + b"1\r\n1XX0\r\n\r\n", [400], CLOSED),
    "chunks beyond the limit": (CHUNKED + 17 * (b"10000\r\n" + bytes(0x10000) + b"\r\n"), [413], CLOSED),
    # Bodies.
    "no JSON": (sized(b"\x00\xff"), [400], OPEN),
    "JSON that is not UTF-8": (sized(b'{"Type": "\xff"}'), [400], OPEN),
    "JSON 100,000 deep": (sized(b'{"Type": "X", "Payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), [400], OPEN),
    "a control character in a type": (sized(b'{"Type": "a\\nb"}'), [400], OPEN),
    # Many at once.
    "fifty requests ahead of their answers": (50 * GET, 50 * [200], OPEN),
    "a request after one that is refused": (posted("Content-Length: 1048577", body=GET), [413], CLOSED),
}


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


FORGED = '{"event": "ready", "address": "http://example.org"}'

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


def test_every_request_is_one_line_of_the_log_and_none_can_forge_one(server: Server) -> None:
    # A job for each consumer whose name is let through, since it is logged with the job.
    for _ in SNEAKY:
        assert server.request("POST", "/jobs/enqueue", {"Type": "X"}).status == 200
    begun = len(server.log)
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
    begun = len(server.log)
    for name in names:
        with server.connect() as connection, connection.makefile("rb") as stream:
            with suppress(ConnectionError):
                connection.sendall(INPUTS[name][0])
            assert read_answer(stream) is not None
    logged = logged_until_now(server, since=begun)
    assert [(line["event"], line["status"]) for line in logged] == [("refused", INPUTS[name][1][0]) for name in names]
    assert (logged[0]["method"], logged[0]["path"]) == ("POST", "/jobs/enqueue")
