"""`doctor` and `bench` beside real servers: sound ones, and some with troubles of all kinds."""

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from queue_actor.commandline import doctor
from tests.process.called import CommandLine
from tests.process.server import Server, running_server
from tests.process.tokens import token

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def call(shared_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(shared_server, tmp_path, capsys)


def found(call: CommandLine, *arguments: str, code: int = 0) -> dict[str, tuple[str, str]]:
    """What the doctor says: verdict and advice by what it is about."""
    (findings,) = call("doctor", "--json", *arguments, code=code).lines
    return {finding["what"]: (finding["verdict"], finding["advice"]) for finding in findings}


def the(findings: dict[str, tuple[str, str]], words: str) -> tuple[str, str]:
    """The finding with these words."""
    (one,) = [finding for what, finding in findings.items() if words in what]
    return one


def test_a_sound_server_has_nothing_bad(call: CommandLine) -> None:
    findings = found(call)

    assert {verdict for verdict, _ in findings.values()} <= {"good", "note"}
    assert the(findings, "answers")[0] == the(findings, "it is ready")[0] == "good"
    assert the(findings, "the clocks agree")[0] == "good"
    assert "--data" in the(findings, "jobs are in memory")[1]
    shown = call("doctor").out
    assert re.search(r"^good  it is ready$", shown, re.MULTILINE)
    assert re.search(r"^note  jobs are in memory.*\n      keep them with --data DIRECTORY$", shown, re.MULTILINE)


def test_queues_that_need_somebody_are_named(call: CommandLine) -> None:
    for number in range(12):
        call("enqueue", "t", "-q", f"alone-{number:02}")
    call("pause", "alone-00")
    (job,) = call.dequeue("alone-01")
    call.post(f"/v1/queues/alone-01/jobs/{job['id']}/fail", {"token": job["lease"]["token"], "retry": False})
    findings = found(call)

    assert "resume" in the(findings, "paused queues: alone-00")[1]
    assert "redrive" in the(findings, "queues with dead jobs: alone-01")[1]
    many = next(what for what in findings if "nobody asks" in what)
    assert many.startswith("queues with jobs that nobody asks for: alone-02, alone-03, ")
    assert "work" in findings[many][1]


def test_where_nobody_answers_it_says_what_to_look_at(call: CommandLine) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        findings = found(call, "--url", f"http://127.0.0.1:{nobody.getsockname()[1]}", "--timeout", "1", code=1)

    verdict, advice = the(findings, "nobody answers at")
    assert verdict == "bad"
    assert "queue-actor serve" in advice
    assert not any("clock" in what for what in findings)


class Other(http.server.BaseHTTPRequestHandler):
    """Something else that speaks HTTP."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        pass


def test_something_else_that_answers_is_told_from_a_queue(call: CommandLine) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        findings = found(call, "--url", f"http://127.0.0.1:{other.server_port}", code=1)
        other.shutdown()
        thread.join()

    assert the(findings, "is no queue-actor")[0] == "bad"


def test_a_token_that_does_not_do_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tmp_path / "tokens.json"
    shown = {
        name: token(tokens, "create", name, "--scope", scope, "--queue", queue)
        for name, scope, queue in (("reader", "read", "*"), ("shop", "read", "images"), ("worker", "consume", "images"))
    }
    with running_server("--tokens", str(tokens)) as server:
        call = CommandLine(server, tmp_path, capsys)
        assert "QUEUE_ACTOR_TOKEN" in the(found(call, code=1), "the token does not do")[1]
        assert the(found(call, "--token", shown["reader"]), "valid and may read all queues")[0] == "good"
        assert the(found(call, "--token", shown["shop"]), "the token does not do")[0] == "note"
        assert the(found(call, "--token", shown["worker"]), "the token does not do")[0] == "note"

        assert call("jobs", "-q", "images", code=77).err.startswith("queue-actor: unauthorized: ")
        call.environment["QUEUE_ACTOR_TOKEN"] = shown["shop"]
        assert call("jobs", "-q", "images").code == 0
        assert "the scope read on queue mail" in call("jobs", "-q", "mail", code=77).err


def test_a_durable_server_tells_of_its_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server("--data", str(tmp_path / "data")) as server:
        call = CommandLine(server, tmp_path, capsys)
        call("enqueue", "t")
        findings = found(call)
        assert the(findings, "jobs are on disk, full")[0] == "good"
        assert the(findings, "there is room for")[0] in {"good", "note"}
        monkeypatch.setattr(doctor, "ROOM_BYTES", 2**62)
        assert "make room" in the(found(call), "there is room for")[1]


def test_a_full_disk_is_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_server("--data", str(tmp_path / "data"), "--disk-reserve-bytes", str(2**40)) as server:
        call = CommandLine(server, tmp_path, capsys)
        assert the(found(call, code=1), "the disk is full")[0] == "bad"
        assert "disk_full" in call("enqueue", "t", code=75).err


@pytest.mark.parametrize(("seconds", "words"), [(100, "behind this one"), (-100, "ahead of this one")])
def test_clocks_that_differ_are_told(call: CommandLine, seconds: float, words: str) -> None:
    call.clocks["now"] = lambda: time.time() + seconds
    told = next(what for what in found(call) if words in what)

    assert re.fullmatch(rf"the server's clock is 1m (38|39|40)s {words}", told)


def test_settings_that_a_server_would_refuse_are_told(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    file = tmp_path / ".config/queue-actor.toml"
    file.write_text('token = "qa_x"')
    file.chmod(0o644)
    call.environment["QUEUE_ACTOR_LEASE_SECOND"] = "5"
    findings = found(call, code=1)

    assert the(findings, "QUEUE_ACTOR_LEASE_SECOND")[0] == "bad"
    assert the(findings, "others may read")[1] == f"if the token is in it: chmod 600 {file}"
    file.chmod(0o600)
    assert the(found(call, code=1), "the file of configuration is")[0] == "good"


# --- bench


def test_bench_tells_what_a_client_sees_and_leaves_nothing_behind(call: CommandLine) -> None:
    (figures,) = call("bench", "--seconds", "0.5", "--clients", "2", "--batch", "10", "--json").lines
    verbs = figures["verbs"]
    assert set(verbs) == {"enqueue", "dequeue", "conclude"}
    for told in verbs.values():
        assert 0 < told["milliseconds_p50"] <= told["milliseconds_p99"] <= told["milliseconds_max"]
        assert told["per_second"] == pytest.approx(told["requests"] / figures["seconds"])
    assert figures["jobs_concluded"] <= 10 * verbs["enqueue"]["requests"]
    assert figures["jobs_per_second"] == pytest.approx(figures["jobs_concluded"] / figures["seconds"])
    assert not [queue for queue in call("queues", "--json").lines if queue["name"].startswith("bench-")]

    shown = call("bench", "--seconds", "0.3", "--clients", "1").out
    assert re.search(r"^verb +requests +per second +p50 ms +p90 ms +p99 ms +max ms", shown)
    assert re.search(r"^[\d,]+ jobs enqueued, dequeued and concluded: [\d,]+ a second$", shown, re.MULTILINE)
