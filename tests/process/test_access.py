"""Access tokens for real: the command, a server that reads its file again, and where no secret may be found."""

import http.client
import json
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.process.server import ROOT, Server, eventually, running_server
from tests.process.tokens import COMMAND_SECONDS, bearer, token

pytestmark = pytest.mark.process

CLIENTS = 4


class Client:
    """Asks all the time, over one connection, with the token that is the current one."""

    def __init__(self, server: Server, current: list[str]) -> None:
        self.statuses: dict[int, int] = {}
        self.last = ""  # the token of the last answer
        self._server = server
        self._current = current
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=10)
        while not self._end.is_set():
            shown = self._current[-1]
            connection.request("POST", "/v1/queues/q/enqueue", '{"jobs": [{"type": "a"}]}', bearer(shown))
            answer = connection.getresponse()
            answer.read()
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            self.last = shown
        connection.close()

    def uses_soon(self, shown: str) -> bool:
        """Whether it comes to use a token."""
        return eventually(lambda: self.last == shown)

    def end(self) -> None:
        self._end.set()
        self._thread.join(10)


def answers_soon(server: Server, shown: str, status: int) -> bool:
    """Whether a token comes to be answered so."""
    return eventually(lambda: server.request("GET", "/v1/queues/q", headers=bearer(shown)).status == status)


def test_a_token_is_replaced_under_load_and_nobody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    current = [token(path, "create", "shop", "--scope", "produce", "--scope", "read", "--queue", "q")]
    with running_server("--tokens", str(path)) as server:
        clients = [Client(server, current) for _ in range(CLIENTS)]
        for _ in range(3):
            old, new = current[-1], token(path, "rotate", "shop")
            server.send_signal(signal.SIGHUP)
            assert answers_soon(server, new, 200)
            current.append(new)
            assert all(client.uses_soon(new) for client in clients)
            token(path, "revoke", "shop", "--keep-newest")
            server.send_signal(signal.SIGHUP)
            assert answers_soon(server, old, 401)
        for client in clients:
            client.end()

        assert {status for client in clients for status in client.statuses} == {200}
        assert sum(client.statuses[200] for client in clients) > 100
        assert len(server.events("tokens_read")) >= 7
        server.terminate()
        assert server.wait(seconds=10) == 0


def test_a_file_that_cannot_be_used_is_told_in_one_line_before_anything_listens(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    for text in (None, "", '{"tokens": [{"name": "a", "scopes": ["read"], "queues": ["*"], "pets": 1}]}'):
        if text is not None:
            path.write_text(text)
        with Server("--bind", "127.0.0.1:0", "--tokens", str(path)) as server:
            assert server.wait(seconds=30) == 78
            (line,) = server.log
            assert line.startswith(b"queue-actor: QUEUE_ACTOR_TOKENS: " + str(path).encode())


def test_a_backup_is_given_to_a_token_that_may_have_it_alone(tmp_path: Path) -> None:
    path, headers = tmp_path / "tokens.json", tmp_path / "headers"
    backup = tmp_path / "backup.sqlite"
    admin = token(path, "create", "admin", "--scope", "admin", "--queue", "*")
    reader = token(path, "create", "reader", "--scope", "read", "--queue", "*")
    with running_server("--tokens", str(path), "--data", str(tmp_path / "data")) as server:

        def back_up(*more: Path) -> int:
            command: list[str | Path] = [ROOT / "scripts/backup.sh", f"http://127.0.0.1:{server.port}", backup, *more]
            return subprocess.run(command, capture_output=True, timeout=COMMAND_SECONDS, check=False).returncode

        for refused in ((), (headers,)):
            headers.write_text(f"Authorization: Bearer {reader}\n")
            assert back_up(*refused) == 1
            assert not backup.exists()
        headers.write_text(f"Authorization: Bearer {admin}\n")
        assert back_up(headers) == 0
        assert backup.exists()


def text_of(server: Server, target: str, headers: dict[str, str]) -> bytes:
    """An answer that is no JSON."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    content = answer.read()
    connection.close()
    return content


def test_no_secret_is_found_where_it_does_not_belong(tmp_path: Path) -> None:
    path, data = tmp_path / "tokens.json", tmp_path / "data"
    admin = token(path, "create", "admin", "--scope", "admin", "--queue", "*")
    reader = token(path, "create", "reader", "--scope", "read", "--queue", "q")
    unknown = token(tmp_path / "other.json", "create", "x", "--scope", "read", "--queue", "q")
    bodies: list[str] = []  # of everything but dequeues

    with running_server("--tokens", str(path), "--data", str(data), "--log-level", "debug") as server:

        def ask(method: str, target: str, body: object = None, shown: str = admin, **headers: str) -> Any:
            answer = server.request(method, target, body, bearer(shown) | headers)
            bodies.append(json.dumps([answer.body, answer.headers.items()]))
            return answer.status, answer.body

        def dequeue(count: int) -> list[dict[str, Any]]:
            body = {"count": count, "consumer": "w"}
            headers = bearer(admin) | {"Idempotency-Key": f"k{count}"}
            jobs: list[dict[str, Any]] = server.request("POST", "/v1/queues/q/dequeue", body, headers).body["jobs"]
            return jobs

        assert ask("POST", "/v1/queues/q/enqueue", {"jobs": [{"type": "a"}] * 4})[0] == 200
        leases = [job["lease"]["token"] for job in dequeue(3)]
        assert len(leases) == 3
        assert ask("POST", "/v1/queues/q/jobs/1/conclude", {"token": leases[0], "result": 1})[0] == 200
        assert ask("POST", "/v1/queues/q/jobs/2/fail", {"token": leases[1], "error": {"message": "m"}})[0] == 200
        assert ask("POST", "/v1/queues/q/jobs/3/conclude", {"token": leases[0]})[0] == 409
        assert ask("POST", "/v1/queues/q/jobs/3/conclude", {"token": leases[2], "nonsense": 1})[0] == 400
        assert ask("GET", "/v1/queues/q/jobs?include=content")[0] == 200
        assert ask("GET", "/v1/queues/q/jobs/3")[0] == 200
        assert ask("GET", "/v1/queues/q", shown=unknown)[0] == 401
        assert ask("GET", "/v1/queues/q", shown=unknown[:-1])[0] == 401
        assert ask("POST", "/v1/queues/q/pause", shown=reader)[0] == 403
        assert ask("GET", f"/v1/nothing/{'x' * 50}")[0] == 404
        assert ask("GET", "/v1/statistics")[0] == 200
        assert ask("GET", "/openapi.json")[0] == 200
        texts = {target: text_of(server, target, bearer(admin)) for target in ("/v1/backup", "/metrics", "/docs")}
        assert b'queue_actor_jobs{queue="q",state="concluded"} 1.0' in texts["/metrics"]  # it is of this server
        server.terminate()
        assert server.wait(seconds=10) == 0
        log = b"\n".join(server.log)

    connection_ = sqlite3.connect(data / "queue.sqlite")
    assert connection_.execute("SELECT count(*) FROM jobs").fetchone() == (4,)  # it is the file that is meant
    connection_.close()
    places = {"log": log, "answers": "".join(bodies).encode(), "tokens.json": path.read_bytes(), **texts}
    places |= {str(file): file.read_bytes() for file in data.rglob("*") if file.is_file()}
    assert len(places) >= 7
    for secret in (admin, reader, unknown, unknown[:-1], *leases):
        for where, content in places.items():
            assert secret.encode() not in content, where
    assert b'"who":"admin"' in log
