"""HTTPS for real: curl, Python's ssl, certificates that are renewed under load, and clients that never shake hands."""

import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
import trustme

from tests.process.server import ANSWER_SECONDS, ROOT, START_SECONDS, Answer, Server, eventually

pytestmark = pytest.mark.process

EXIT_CONFIGURATION = 78
HANDSHAKE_SECONDS = 3.0
CURL_WRONG_NAME = 60


class Pair:
    """The files of a server's certificate, and whoever issued it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key, self.ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.renew()

    def renew(self) -> None:
        """Put a new certificate in the place of the one there was: two files, one after the other."""
        issued = self.authority.issue_cert("127.0.0.1")
        contents = b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()
        for path, content in zip((self.cert, self.key), contents, strict=True):
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").rename(path)

    @property
    def flags(self) -> Sequence[str]:
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@contextmanager
def serving(pair: Pair, *flags: str) -> Iterator[Server]:
    with Server("--bind", "127.0.0.1:0", *pair.flags, *flags) as server:
        assert server.wait_ready()["address"] == f"https://127.0.0.1:{server.port}"
        yield server


@pytest.fixture
def server(pair: Pair) -> Iterator[Server]:
    with serving(pair) as server:
        yield server
        assert server.complaints() == []


class Client:
    """One connection that is kept."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._http = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=ANSWER_SECONDS)
        self._http.connect()
        assert isinstance(self._http.sock, ssl.SSLSocket)
        self.socket = self._http.sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        self._http.request(method, path, None if body is None else json.dumps(body))
        answer = self._http.getresponse()
        return Answer(answer.status, answer.headers, json.load(answer))


def curl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )


def test_curl_is_served_if_it_knows_the_authority_and_asks_for_the_right_name(server: Server, pair: Pair) -> None:
    url = f"https://127.0.0.1:{server.port}"
    made = curl("--cacert", pair.ca, f"{url}/jobs/enqueue", "-d", '{"Type": "TLS"}')
    assert json.loads(made.stdout) == {"ID": 1, "Type": "TLS", "Status": "QUEUED"}
    both = curl("--cacert", pair.ca, f"{url}/jobs/1", f"{url}/jobs/1", "--write-out", "%{num_connects}\n")
    assert [line[-1] for line in both.stdout.splitlines()] == ["1", "0"]
    assert curl(f"{url}/jobs/1").returncode == CURL_WRONG_NAME
    assert curl("--cacert", pair.ca, f"https://localhost:{server.port}/jobs/1").returncode == CURL_WRONG_NAME
    assert (
        "alert protocol version"
        in curl("--cacert", pair.ca, "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0", url).stderr
    )
    plain = curl(f"http://127.0.0.1:{server.port}/jobs/1", "--write-out", "%{http_code}")
    assert plain.stdout.endswith("400")
    assert "https://" in plain.stdout


def test_the_commands_in_the_readme_make_a_pair_that_serves(tmp_path: Path) -> None:
    make, ask = re.findall(r"^```sh tls\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", make], cwd=tmp_path, capture_output=True, timeout=START_SECONDS, check=True)
    flags = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with Server("--bind", "127.0.0.1:0", *flags) as server:
        server.wait_ready()
        asked = subprocess.run(
            ["bash", "-euc", ask.replace(":8080", f":{server.port}")],
            cwd=tmp_path,
            capture_output=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    assert json.loads(asked.stdout)["Status"] == "QUEUED"


def test_a_connection_is_kept_and_polls_and_streams_pass_through_it(server: Server, pair: Pair) -> None:
    with Client(server, pair.trust) as client:
        assert client.ask("POST", "/jobs/dequeue?wait=1").body["code"] == "empty"
        lines = b'{"type":"t"}\n' * 5_000
        client._http.request(
            "POST",
            "/v1/queues/many/enqueue",
            (lines[start : start + 10_000] for start in range(0, len(lines), 10_000)),
            {"Content-Type": "application/x-ndjson"},
        )
        answer = client._http.getresponse()
        told = [json.loads(line) for line in answer]
        assert sum(line["count"] for line in told if "count" in line) >= 5_000
        assert client.ask("GET", "/v1/queues/many").body["counts"]["queued"] == 5_000
        large = {"Type": "x", "Payload": "x" * 250_000}
        for _ in range(4):
            assert len(client.ask("POST", "/jobs/enqueue", large).body["Payload"]) == 250_000


def test_a_client_that_sends_more_behind_a_stream_has_its_answer_and_a_leave(server: Server, pair: Pair) -> None:
    line = b'{"type":"t"}\n'
    head = f"POST /v1/queues/many/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(line)}\r\n"
    more = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", server.port), ANSWER_SECONDS) as plain,
        pair.trust.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secure,
    ):
        secure.sendall(head.encode() + b"Content-Type: application/x-ndjson\r\n\r\n" + line + more)
        answer = b""
        while piece := secure.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"count":1' in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    server.terminate()  # so that all there is to complain about is in the log
    assert server.wait(seconds=ANSWER_SECONDS) == 0


def test_a_backup_is_fetched(pair: Pair, tmp_path: Path) -> None:
    with serving(pair, "--data", str(tmp_path / "data")) as server:
        with Client(server, pair.trust) as client:
            jobs = [{"type": "t", "payload": "x" * 50_000}] * 20
            for _ in range(3):
                assert client.ask("POST", "/v1/queues/q/enqueue", {"jobs": jobs}).status == 200
        backup = subprocess.run(
            ["./scripts/backup.sh", f"https://127.0.0.1:{server.port}", str(tmp_path / "backup.sqlite")],
            cwd=ROOT,
            env={**os.environ, "CURL_CA_BUNDLE": str(pair.ca)},
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert backup.returncode == 0, backup.stderr
        assert (tmp_path / "backup.sqlite").stat().st_size > 3_000_000


def test_a_unix_socket_has_tls_too(pair: Pair) -> None:
    path = f"/tmp/queue-actor-tls-{os.getpid()}"  # noqa: S108 - removed below; pytest's own may be too long
    try:
        with Server("--bind", f"unix:{path}", *pair.flags) as server:
            server.wait_for_line(lambda line: b'"ready"' in line, seconds=START_SECONDS)
            asked = curl("--unix-socket", path, "--cacert", pair.ca, "https://127.0.0.1/healthz")
            assert asked.returncode == 0, asked.stderr
    finally:
        Path(path).unlink(missing_ok=True)


# --- renewal


def test_a_certificate_is_renewed_under_load_and_no_request_fails(server: Server, pair: Pair) -> None:
    serials: set[str] = set()
    failed: list[Exception] = []
    over = threading.Event()
    trust = pair.trust

    def connect_and_ask() -> None:
        with Client(server, trust) as kept:
            while not over.is_set():
                try:
                    with Client(server, trust) as fresh:
                        serials.add(str((fresh.socket.getpeercert() or {})["serialNumber"]))
                        assert fresh.ask("POST", "/jobs/enqueue", {"Type": "x"}).status == 200
                    assert kept.ask("GET", "/jobs/1").status == 200
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    failed.append(error)

    threads = [threading.Thread(target=connect_and_ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for renewals in range(1, 6):
            assert eventually(lambda count=renewals: len(serials) >= count or bool(failed))  # type: ignore[misc] # it is bound here
            pair.renew()
            server.send_signal(signal.SIGHUP)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(serials) >= 5


def test_a_broken_pair_leaves_the_one_before_in_use(pair: Pair) -> None:
    with serving(pair) as server, Client(server, pair.trust) as kept:
        begun = len(server.log)
        pair.key.write_text("broken")
        server.send_signal(signal.SIGHUP)
        line = json.loads(server.wait_for_line(lambda line: b"tls_unusable" in line, since=begun))
        assert (line["level"], str(pair.key) in line["reason"]) == ("error", True)
        with Client(server, pair.trust) as fresh:
            assert fresh.ask("GET", "/healthz").status == kept.ask("GET", "/healthz").status == 200


def test_a_renewal_is_seen_without_a_signal(server: Server, pair: Pair) -> None:
    begun = len(server.log)
    pair.renew()
    server.wait_for_line(lambda line: b"tls_read" in line, since=begun)


# --- clients that never shake hands


def hello(pair: Pair) -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        pair.trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def test_two_hundred_half_handshakes_keep_nobody_waiting_and_are_closed_in_time(server: Server, pair: Pair) -> None:
    said = hello(pair)
    with Client(server, pair.trust) as other, ExitStack() as stack:
        other.ask("GET", "/healthz")
        files = server.files
        began = time.monotonic()
        half = [stack.enter_context(server.connect()) for _ in range(200)]
        for number, connection in enumerate(half):
            connection.sendall(said[: (0, 1, 50, len(said))[number % 4]])
        waits: list[float] = []
        while len(waits) < 50:
            asked = time.monotonic()
            assert other.ask("GET", "/healthz").status == 200
            waits.append(time.monotonic() - asked)
        assert sorted(waits)[25] < 0.1
        for connection in half:
            while connection.recv(65_536):
                pass
        assert time.monotonic() - began < 2 * HANDSHAKE_SECONDS
        assert eventually(lambda: server.files <= files)


def test_hellos_that_are_broken_in_any_way_are_no_failure(server: Server, pair: Pair) -> None:
    chance = random.Random(1)  # noqa: S311 - the same in every run
    files = server.files
    said = hello(pair)
    for _ in range(300):
        broken = bytearray(said)
        for _ in range(chance.randint(1, 5)):
            place = chance.randrange(len(broken))
            broken[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        with server.connect() as connection, suppress(ConnectionError):
            connection.sendall(broken)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    with Client(server, pair.trust) as client:
        assert client.ask("GET", "/healthz").status == 200
    assert eventually(lambda: server.files <= files)


# --- the end


def test_connections_that_idle_or_shake_hands_do_not_delay_the_exit(pair: Pair) -> None:
    with serving(pair) as server, Client(server, pair.trust) as idle, server.connect() as half:
        assert idle.ask("GET", "/healthz").status == 200
        half.sendall(hello(pair))
        assert half.recv(5)
        server.terminate()
        assert server.wait(seconds=5) == 0
        assert idle.socket.recv(1) == b""


@pytest.mark.parametrize("broken", ["missing", "mismatched", "no PEM", "alone"])
def test_a_pair_that_cannot_be_used_is_one_line_and_ends_the_process(broken: str, pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    if broken == "mismatched":
        pair.authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(str(other))
    elif broken == "no PEM":
        other.write_text("none")
    flags: Any = ("--tls-cert", pair.cert, *(() if broken == "alone" else ("--tls-key", other)))
    with Server("--bind", "127.0.0.1:0", *map(str, flags)) as server:
        assert server.wait(seconds=START_SECONDS) == EXIT_CONFIGURATION
    assert len(server.log) == 1
    assert b"QUEUE_ACTOR_TLS_" in server.log[0]


def test_a_reset_within_the_handshake_is_no_failure(server: Server, pair: Pair) -> None:
    for sent in (b"", hello(pair)):
        connection = server.connect()
        connection.sendall(sent)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    with Client(server, pair.trust) as client:
        assert client.ask("GET", "/healthz").status == 200
