"""The commands that look at a real server and operate it."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from queue_actor.client import Client
from tests.process.called import CommandLine
from tests.process.server import ROOT, Server, running_server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def call(shared_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(shared_server, tmp_path, capsys)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A queue for the test alone."""
    return re.sub(r"\W", "-", request.node.name)[:80].rstrip("-")


def kill(call: CommandLine, queue: str, error: dict[str, str] | None = None) -> int:
    """Have the next job of a queue end as dead; its id."""
    (job,) = call.dequeue(queue)
    body = {"token": job["lease"]["token"], "retry": False, "error": error or {"type": "Timeout", "message": "no disk"}}
    call.post(f"/v1/queues/{queue}/jobs/{job['id']}/fail", body)
    id_: int = job["id"]
    return id_


# --- enqueue


def test_a_job_is_enqueued_as_it_is_said(call: CommandLine, queue: str) -> None:
    ran = call(
        *("enqueue", "resize", "-q", queue, "-p", '{"w": 320}', "--priority", "5", "--delay", "3600"),
        *("--ttl", "7200", "--max-attempts", "3", "--unique-key", "k", "--meta", "tenant=a", "--meta", "of=b=c"),
    )
    assert ran.out == f"{queue}/1 is scheduled\n"
    job = call.get(f"/v1/queues/{queue}/jobs/1")
    told = {name: job[name] for name in ("type", "payload", "priority", "max_attempts", "unique_key", "meta")}
    assert told == {
        "type": "resize",
        "payload": {"w": 320},
        "priority": 5,
        "max_attempts": 3,
        "unique_key": "k",
        "meta": {"tenant": "a", "of": "b=c"},
    }
    assert job["not_before"] > job["created_at"]
    assert job["expires_at"] > job["not_before"]

    ran = call("enqueue", "resize", "-q", queue, "--unique-key", "k")
    assert ran.out == f"{queue}/1 is scheduled, which was there already\n"
    ran = call("enqueue", "resize", "-q", queue, "--at", str(datetime.now(UTC) + timedelta(hours=1)), "--json")
    assert ran.lines == [{"queue": queue, "id": 2, "state": "scheduled", "existing": False}]


def test_a_call_that_is_repeated_under_its_key_makes_one_job(call: CommandLine, queue: str) -> None:
    first = call("enqueue", "t", "-q", queue, "--idempotency-key", f"key of {queue}")
    assert call("enqueue", "t", "-q", queue, "--idempotency-key", f"key of {queue}") == first
    assert call.get(f"/v1/queues/{queue}")["last_id"] == 1


def test_a_payload_is_kept_to_the_byte(call: CommandLine, queue: str) -> None:
    call("enqueue", "t", "-q", queue, "-p", '{"n": 1.50,  "big": 123456789012345678901234567890}')
    call("enqueue", "t", "-q", queue, "--text", "-p", 'a "text"')
    answer = call.server.request("GET", f"/v1/queues/{queue}/jobs/2")
    assert answer.body["payload"] == 'a "text"'

    shown = call("job", f"{queue}/1", "--json").out
    assert '{"n":1.50,"big":123456789012345678901234567890}' in shown


def test_what_the_server_refuses_is_said_with_its_field(call: CommandLine, queue: str) -> None:
    ran = call("enqueue", "t", "-q", queue, "--meta", f"{'x' * 101}=y", code=1)

    assert ran.err.startswith("queue-actor: invalid: ")
    assert "meta" in ran.err


# --- look


def test_jobs_are_found_by_what_they_are(call: CommandLine, queue: str) -> None:
    for type_ in ("a", "b", "a"):
        call("enqueue", type_, "-q", queue)
    dead = kill(call, queue)
    (held,) = call.dequeue(queue)

    def found(*conditions: str) -> list[int]:
        return [job["id"] for job in call("jobs", "-q", queue, "--json", *conditions).lines]

    assert found() == [1, 2, 3]
    assert found("--newest") == [3, 2, 1]
    assert found("--newest", "--limit", "2") == [3, 2]
    assert call("jobs", "-q", queue, "--limit", "2").err == "there are more: say --limit\n"
    assert call("jobs", "-q", queue, "--limit", "3").err == ""
    assert found("--type", "a") == [1, 3]
    assert found("--state", "dead") == [dead] == [1]
    assert found("--state", "dead", "--state", "queued") == [1, 3]
    assert found("--consumer", "w1") == [1, held["id"]]
    assert found("--error", "no disk") == [1]
    assert found("--error", "no network") == []
    assert found("--since", "1h") == [1, 2, 3]
    assert found("--since", "2100-01-01T00:00:00Z") == []


def test_jobs_are_shown_as_a_table(call: CommandLine, queue: str) -> None:
    call("enqueue", "held", "-q", queue, "-p", json.dumps("x" * 100))
    call("enqueue", "later", "-q", queue, "--delay", "3600")
    call.dequeue(queue)
    head, held, later = call("jobs", "-q", queue, "--content").out.splitlines()

    assert head.split() == [
        "id",
        "type",
        "state",
        "priority",
        "attempts",
        "age",
        "consumer",
        "note",
        "payload",
        "result",
    ]
    assert re.fullmatch(r' 1  held   in_progress +0 +1  \d\.\ds +w1 +lease [45]m \d+s +"x{58}… +null *', held)
    assert re.fullmatch(r" 2  later  scheduled +0 +0  \d\.\ds +- +in (59m|1h) \d+[ms] +null +null *", later)

    call.post(f"/v1/queues/{queue}/jobs/1/cancel")
    assert ", cancel requested" in call("jobs", "-q", queue).out


def test_a_job_is_shown_with_its_history(call: CommandLine, queue: str) -> None:
    call("enqueue", "t", "-q", queue, "-p", "[1]", "--priority", "3", "--meta", "tenant=a", "--max-attempts", "2")
    call("enqueue", "t", "-q", queue)
    kill(call, queue)
    shown = call("job", f"{queue}/1").out
    told = dict(re.findall(r"^(\w[\w ]*?)  +(\S.*?) *$", shown, re.MULTILINE))

    assert told["job"] == f"{queue}/1"
    assert (told["state"], told["reason"], told["priority"], told["meta tenant"]) == ("dead", "killed", "3", "a")
    assert told["payload"] == "[1]"
    assert re.search(r"^attempt 1: failed after 0\.\ds by w1 at 20\S+ \S+Z: Timeout: no disk$", shown, re.MULTILINE)
    assert "result" not in told

    call.dequeue(queue)
    shown = call("job", "2", "-q", queue).out
    assert re.search(r"^lease +until 20\S+ \S+Z, fence \d+ *$", shown, re.MULTILINE)
    ran = call("job", f"{queue}/99", code=1)
    assert ran.err == f"queue-actor: unknown_job: queue {queue} has no job 99 (field id)\n"


def test_the_end_of_a_job_can_be_waited_for(call: CommandLine, queue: str) -> None:
    call("enqueue", "t", "-q", queue)
    assert call("job", f"{queue}/1", "--wait", "0.1", code=1).out
    (job,) = call.dequeue(queue)

    def conclude() -> None:
        body = {"token": job["lease"]["token"], "result": {"bytes": 3}}
        call.server.request("POST", f"/v1/queues/{queue}/jobs/1/conclude", body)

    worker = threading.Timer(0.2, conclude)
    worker.start()
    ran = call("job", f"{queue}/1", "--wait", "30", "--json")
    worker.join()
    assert ran.lines[0]["result"] == {"bytes": 3}


def test_queues_are_shown_in_figures(call: CommandLine, queue: str) -> None:
    call("enqueue", "t", "-q", queue)
    call("enqueue", "t", "-q", f"{queue}-2")
    shown = call("queues", "--prefix", queue).out
    assert re.search(rf"^{queue} +0 +1 +0 +0 +0 +0 +\d\.\ds +0 +0 +nobody asks", shown, re.MULTILINE)
    assert [one["name"] for one in call("queues", "--prefix", queue, "--json").lines] == [queue, f"{queue}-2"]

    call.dequeue(queue)
    shown = call("queues", queue, "nowhere").out
    assert "does not exist" in shown
    assert re.search(r"^  per minute: enqueue [\d.]+, dequeue [\d.]+", shown, re.MULTILINE)
    assert re.search(r"^  consumer w1: asked \d\.\ds ago$", shown, re.MULTILINE)
    assert "max_attempts 25, max_stale 5, lease_seconds -" in shown
    assert "kind exponential, base_seconds 1.0" in shown


# --- operate


def test_jobs_are_cancelled_and_redriven(call: CommandLine, queue: str) -> None:
    for _ in range(3):
        call("enqueue", "t", "-q", queue)
    call.dequeue(queue)

    ran = call("cancel", "1", f"{queue}/2", f"{queue}/99", "-q", queue, code=1)
    assert ran.out == f"{queue}/1 is in_progress, to be cancelled\n{queue}/2 is cancelled\n"
    assert ran.err.startswith(f"{queue}/99: unknown_job: ")
    assert call("redrive", f"{queue}/2", "--json").lines == [{"queue": queue, "id": 2, "state": "queued"}]
    assert "not_finished" in call("redrive", f"{queue}/2", code=1).err


def test_all_that_match_are_redriven_or_purged(call: CommandLine, queue: str) -> None:
    for type_ in ("a", "b", "a"):
        call("enqueue", type_, "-q", queue)
        kill(call, queue)

    redrive = ("redrive", "--all", "-q", queue, "--state", "dead", "--type", "a")
    assert call(*redrive, "--dry-run").out == f"{queue}: 2 would be redriven\n"
    assert call(*redrive, "--per-second", "0.01", "--yes").out == f"{queue}: 2 redriven\n"
    assert call.get(f"/v1/queues/{queue}")["counts"]["scheduled"] == 1
    assert call(*redrive, "--dry-run", "--json").lines == [{"count": 0, "refused": 0, "dry_run": True}]

    purge = ("purge", "-q", queue, "--state", "dead")
    assert call(*purge, "--error", "no network", "--dry-run").out == f"{queue}: 0 would be purged\n"
    assert call(*purge, "--error", "no disk", "--yes").out == f"{queue}: 1 purged\n"
    assert call.get(f"/v1/queues/{queue}")["counts"]["dead"] == 0
    assert "unknown_queue" in call("purge", "-q", "nowhere", "--state", "dead", "--yes", code=1).err


def test_a_queue_is_paused_and_resumed(call: CommandLine, queue: str) -> None:
    call("enqueue", "t", "-q", queue)
    assert call("pause", queue).out == f"{queue} is paused: 1 queued, 0 in progress\n"
    assert call.dequeue(queue) == []
    assert re.search(rf"^{queue} .*paused *$", call("queues", "--prefix", queue).out, re.MULTILINE)
    assert call("resume", queue, "--json").lines[0]["paused"] is False
    assert len(call.dequeue(queue)) == 1


# --- as a program


def program(call: CommandLine, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "queue_actor", *arguments],
        env=call.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_it_runs_as_a_program(call: CommandLine, queue: str) -> None:
    ran = program(call, "enqueue", "t", "-q", queue, "-p", "-", input="[1, 2]")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{queue}/1 is queued\n", "")
    assert call.get(f"/v1/queues/{queue}/jobs/1")["payload"] == [1, 2]

    ran = program(call, "jobs", "-q", queue, "--url", "http://127.0.0.1:1")
    assert ran.returncode == 69
    assert "doctor" in ran.stderr
    assert program(call, "jobs", "--nonsense").returncode == 64


def test_a_reader_who_leaves_is_no_failure_worth_a_traceback(call: CommandLine, queue: str) -> None:
    lines = "\n".join('{"type":"t"}' for _ in range(3_000))
    program(call, "enqueue", "-q", queue, "-f", "-", input=lines)
    ran = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m queue_actor jobs -q {queue} -n 3000 --json | head -n 1; echo ${{PIPESTATUS[0]}}",
        ],
        env=call.environment | {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, code = ran.stdout.splitlines()
    assert json.loads(first)["id"] == 1
    assert code == "141"
    assert ran.stderr == ""


def test_serve_becomes_the_server(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "queue_actor", "serve")
    with running_server("--data", str(tmp_path / "data"), command=command) as server:
        assert server.request("GET", "/healthz").status == 200
        assert (tmp_path / "data").exists()
        server.terminate()
        assert server.wait(seconds=10) == 0


TASKS = """
import os
from queue_actor.worker import App

app = App(queue="images")

@app.job("resize")
def resize(width: int) -> dict[str, int]:
    return {"width": width, "process": os.getpid()}

@app.job("crop", mode="processes")
def crop(width: int) -> dict[str, int]:
    return {"width": width, "process": os.getpid()}
"""


def test_work_does_the_jobs_of_an_app_until_it_is_asked_to_end(call: CommandLine, tmp_path: Path) -> None:
    """Also in child processes, which find the module where the worker did: in the working directory."""
    (tmp_path / "tasks.py").write_text(TASKS)
    call("enqueue", "resize", "-q", "images", "-p", "320")
    call("enqueue", "crop", "-q", "images", "-p", "640")
    worker = subprocess.Popen(
        [sys.executable, "-m", "queue_actor", "work", "tasks:app", "--concurrency", "1", "--log", "json"],
        cwd=tmp_path,
        env=call.environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        results = [
            call("job", f"images/{id_}", "--wait", "30", "--json", "--timeout", "60").lines[0]["result"]
            for id_ in (1, 2)
        ]
        assert [result["width"] for result in results] == [320, 640]
        assert results[0]["process"] == worker.pid != results[1]["process"]
        worker.terminate()
        _, log = worker.communicate(timeout=30)
        assert worker.returncode == 0, log
        assert "worker_ended" in log
    finally:
        worker.kill()
        worker.wait()


# --- what the terminal is spared

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_no_job_gives_orders_to_the_terminal(call: CommandLine, queue: str, as_json: tuple[str, ...]) -> None:
    # C0 is escaped in JSON in any case, and C1 only if that is asked for: it is to arrive as it is.
    ran = program(
        call, "enqueue", "t", "-q", queue, "-p", "-", input=json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False)
    )
    assert ran.returncode == 0
    kill(call, queue, {"type": HOSTILE, "message": HOSTILE})
    printed = [
        call("jobs", "-q", queue, "--content", *as_json),
        call("job", f"{queue}/1", *as_json),
        call("queues", queue, *as_json),
        call("export", queue),
    ]
    printed += [call("top", "--once", "--prefix", queue)] * (not as_json)
    for shown in printed:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown.out + shown.err)
    assert any("u202e" in shown.out for shown in printed)


def test_events_go_on_where_an_earlier_call_ended(call: CommandLine, queue: str) -> None:
    with Client(call.url) as client, client.follow(queue) as events:
        next(events)
        for type_ in ("first", "second", "third"):
            call("enqueue", type_, "-q", queue)
        next(events)
        behind_the_first = str(events.last_id)
    (second,) = call("events", "-q", queue, "--after", behind_the_first, "-n", "1", "--json").lines
    (third,) = call("events", "-q", queue, "--after", second["place"], "-n", "1").out.splitlines()

    assert (second["type"], second["verb"], second["to"]) == ("second", "enqueue", "queued")
    assert third.endswith(f"{queue}/3  third  enqueue  queued")
