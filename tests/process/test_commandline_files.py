"""Files of lines on their way to a real server and back: whole, broken off and resumed, and of any length."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.process.called import CommandLine
from tests.process.server import ROOT, Server, eventually, running_server

pytestmark = pytest.mark.process

MIB = 1024 * 1024
LINES = 20_000
MANY_LINES = 1_000_000
MEMORY_BYTES = 120 * MIB
"""What the program may take at most, its libraries included, however long the file is."""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with running_server("--queued-jobs-max", "3000000") as server:
        yield server


@pytest.fixture
def call(shared_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(shared_server, tmp_path, capsys)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)[:78].rstrip("-")


def write_jobs(path: Path, lines: int) -> Path:
    with path.open("w") as file:
        for number in range(1, lines + 1):
            file.write(f'{{"type":"t","payload":{{"line":{number},"path":"/srv/pictures/{number:08}.png"}}}}\n')
    return path


def lines_in(call: CommandLine, queue: str) -> Counter[int]:
    """How many jobs there are of each line."""
    exported = call("export", queue).lines
    return Counter(job["payload"]["line"] for job in exported)


class Program:
    """The program as a process, whose memory is looked at."""

    def __init__(self, call: CommandLine, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "queue_actor", *arguments],
            env=call.environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, seconds: float = 60.0) -> tuple[int, str, str]:
        """Exit code and output, waited for."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


# --- enqueue


def test_each_line_of_a_file_becomes_one_job(call: CommandLine, queue: str, tmp_path: Path) -> None:
    file = write_jobs(tmp_path / "jobs.ndjson", LINES)
    ran = call("enqueue", "-f", str(file), "-q", queue)

    assert re.fullmatch(r"20,000 lines, 20,000 jobs enqueued, in [\d.msh ]+, [\d,]+ lines/s\n", ran.out)
    assert lines_in(call, queue) == Counter(range(1, LINES + 1))
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.ndjson"]


def test_each_line_may_be_a_payload(call: CommandLine, queue: str, tmp_path: Path) -> None:
    (tmp_path / "numbers").write_text("1\n\n[2]\n")
    (tmp_path / "words").write_text('a "b"\né\n')
    call("enqueue", "count", "-f", str(tmp_path / "numbers"), "-q", queue, "--priority", "7")
    ran = call("enqueue", "read", "-f", str(tmp_path / "words"), "-q", queue, "--text", "--json")

    assert {name: ran.lines[0][name] for name in ("lines", "jobs", "existing", "bad")} == {
        "lines": 2,
        "jobs": 2,
        "existing": 0,
        "bad": 0,
    }
    jobs = call("jobs", "-q", queue, "--content", "--json").lines
    assert [(job["type"], job["payload"], job["priority"]) for job in jobs] == [
        ("count", 1, 7),
        ("count", [2], 7),
        ("read", 'a "b"', 0),
        ("read", "é", 0),
    ]


def test_a_bad_line_ends_the_call_and_says_what_is_enqueued(call: CommandLine, queue: str, tmp_path: Path) -> None:
    file = write_jobs(tmp_path / "jobs.ndjson", 2_500)
    whole = file.read_text()
    file.write_text(whole.replace('"type":"t","payload":{"line":2100,', '"typ":"t","payload":{"line":2100,'))
    ran = call("enqueue", "-f", str(file), "-q", queue, code=65)

    assert re.match(r"queue-actor: line 2100: invalid: .*typ.*; nothing is enqueued from line 2001 on\n", ran.err)
    assert lines_in(call, queue) == Counter(range(1, 2_001))

    file.write_text(whole)
    ran = call("enqueue", "-f", str(file), "-q", queue)
    assert ran.err == "going on at line 2,001\n"
    assert lines_in(call, queue) == Counter(range(1, 2_501))


def test_bad_lines_may_be_put_aside(call: CommandLine, queue: str, tmp_path: Path) -> None:
    lines = [
        '{"type": "t", "payload": {"line": 1}}',
        "no JSON",
        '{"type": "t", "delay_second": 5}',
        '{"type": "t", "payload": {"line": 4}, "priority": 101}',
        '["t"]',
        '{"type": "t", "payload": {"line": 6}, "unique_key": "k"}',
        '{"type": "t", "payload": {"line": 7}, "unique_key": "k"}',
        '{"type": "t", "payload": {"line": 8}, "unique_key": "k", "on_existing": "refuse"}',
    ]
    file, bad = tmp_path / "jobs.ndjson", tmp_path / "bad.ndjson"
    file.write_text("\n".join(lines))  # the last line does not end
    ran = call("enqueue", "-f", str(file), "-q", queue, "--bad-lines", str(bad), code=65)

    assert ran.out.startswith("8 lines, 2 jobs enqueued, 1 were there already, 5 bad lines, in ")
    told = {line["line"]: line["reason"] for line in map(json.loads, bad.read_text().splitlines())}
    assert sorted(told) == [2, 3, 4, 5, 8]
    for number, words in ((2, "JSON"), (3, "delay_second"), (4, "priority"), (5, "object"), (8, "unique_key_taken")):
        assert words in told[number]
    assert lines_in(call, queue) == Counter([1, 6])


def test_what_was_killed_goes_on_and_no_line_becomes_two_jobs(call: CommandLine, queue: str, tmp_path: Path) -> None:
    """It is killed at any moment, again and again, until it comes to its end by itself."""
    file = write_jobs(tmp_path / "jobs.ndjson", LINES)
    kept = tmp_path / "jobs.ndjson.progress"
    chance = random.Random(8)  # noqa: S311 - no secret
    kills = 0
    while True:
        before = kept.read_text() if kept.exists() else ""
        program = Program(call, "enqueue", "-f", str(file), "-q", queue, "--batch", "500")
        if kills < 4:
            # Once it has got on, and then at any moment of the next batches.
            assert eventually(partial(has_got_on, program, kept, before))
            threading.Event().wait(chance.random() / 20)
            program.process.send_signal(signal.SIGKILL)
            kills += 1
        code, out, err = program.ended()
        if code != -signal.SIGKILL:
            break

    assert (code, kills) == (0, 4), err
    assert out.startswith("20,000 lines, 20,000 jobs enqueued, in ")
    assert lines_in(call, queue) == Counter(range(1, LINES + 1))
    assert not kept.exists()


def has_got_on(program: Program, kept: Path, before: str) -> bool:
    return program.process.poll() is not None or (kept.exists() and kept.read_text() != before)


def test_progress_of_another_call_is_not_taken_for_that_of_this_one(
    call: CommandLine, queue: str, tmp_path: Path
) -> None:
    file = write_jobs(tmp_path / "jobs.ndjson", 20)
    broken = file.read_text().replace('"line":20', '"line":20,,')
    file.write_text(broken)
    call("enqueue", "-f", str(file), "-q", queue, "--batch", "10", code=65)

    ran = call("enqueue", "-f", str(file), "-q", f"{queue}-2", "--batch", "10", code=65)
    assert re.search(r"jobs\.ndjson\.progress is of a call with queue ", ran.err)
    file.write_text(broken.replace('"line":1,', '"line":0,'))
    ran = call("enqueue", "-f", str(file), "-q", queue, "--batch", "10", code=65)
    assert "is of another file" in ran.err
    (tmp_path / "jobs.ndjson.progress").write_text("{")
    ran = call("enqueue", "-f", str(file), "-q", queue, "--batch", "10", code=65)
    assert "is no file of progress" in ran.err
    write_jobs(file, 20)
    call("enqueue", "-f", str(file), "-q", queue, "--restart")
    assert lines_in(call, queue) == Counter([*range(1, 21), *range(1, 11)])


def test_lines_may_be_passed_over(call: CommandLine, queue: str, tmp_path: Path) -> None:
    file = write_jobs(tmp_path / "jobs.ndjson", 20)
    call("enqueue", "-f", str(file), "-q", queue, "--from-line", "15")

    assert lines_in(call, queue) == Counter(range(15, 21))


def test_a_queue_that_is_full_is_waited_for(call: CommandLine, queue: str, tmp_path: Path) -> None:
    call.server.request("PUT", f"/v1/queues/{queue}", {"queued_jobs_max": 1_500})
    file = write_jobs(tmp_path / "jobs.ndjson", 3_000)
    ran = call("enqueue", "-f", str(file), "-q", queue, "--patience", "0.2", code=75)
    assert "queue_full" in ran.err
    assert (
        "lines 1001 to 2000 are not enqueued, as far as is known; the same call goes on where this one ended" in ran.err
    )

    program = Program(call, "enqueue", "-f", str(file), "-q", queue, "--patience", "30")
    call.server.request("PUT", f"/v1/queues/{queue}", {})
    assert program.ended()[0] == 0
    assert lines_in(call, queue) == Counter(range(1, 3_001))


@pytest.mark.slow
def test_a_million_lines_take_no_more_memory_than_a_few(
    call: CommandLine, queue: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(lines: int) -> int:
        file = write_jobs(tmp_path / f"{lines}.ndjson", lines)
        program = Program(call, "enqueue", "-f", str(file), "-q", f"{queue}-{lines}", "--json")
        most = 0
        while program.process.poll() is None:
            # The file of a process that has just ended is empty.
            most = max(most, *(int(kib) * 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status_of(program))), 0)
            threading.Event().wait(0.05)
        code, out, err = program.ended()
        assert code == 0, err
        facts = json.loads(out)
        assert (facts["lines"], facts["jobs"]) == (lines, lines)
        told.append(
            f"{lines} lines: {facts['seconds']} s, {lines / facts['seconds']:.0f} lines/s, {most / MIB:.1f} MiB"
        )
        return most

    told: list[str] = []
    few, many = taken(LINES), taken(MANY_LINES)
    with capsys.disabled():
        print("", *told, sep="\n")
    assert many < min(few + 8 * MIB, MEMORY_BYTES)
    assert call.get(f"/v1/queues/{queue}-{MANY_LINES}")["counts"]["queued"] == MANY_LINES


def status_of(program: Program) -> str:
    try:
        return Path(f"/proc/{program.process.pid}/status").read_text()
    except FileNotFoundError:
        return ""


# --- export and import


def test_what_is_exported_can_be_imported(call: CommandLine, queue: str, tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    file.write_text(
        '{"type": "a", "payload": {"n": 1.50}, "priority": 3, "meta": {"x": "y"}, "unique_key": "k",'
        ' "max_attempts": 2}\n'
        '{"type": "b", "delay_seconds": 3600}\n'
        '{"type": "c", "ttl_seconds": 3600, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}\n'
        '{"type": "d"}\n'
    )
    call("enqueue", "-f", str(file), "-q", queue)
    call("cancel", f"{queue}/4")
    exported = tmp_path / "exported.ndjson"
    assert call("export", queue, "-o", str(exported)).err == f"4 jobs in {exported}\n"
    assert not (tmp_path / "exported.ndjson.progress").exists()
    assert call("export", queue).out == exported.read_text()
    assert '"payload":{"n":1.50}' in exported.read_text()
    assert len(call("export", queue, "--state", "cancelled", "--type", "d").lines) == 1

    ran = call("import", str(exported), "-q", f"{queue}-2")
    assert ran.out.startswith("4 lines, 3 jobs enqueued, in ")
    told = ("type", "payload", "priority", "meta", "unique_key", "max_attempts", "state", "traceparent")
    before, after = (
        [{name: job[name] for name in told} for job in call("export", name).lines] for name in (queue, f"{queue}-2")
    )
    assert before[:3] == after
    times = [[job["not_before"] for job in call("export", name).lines][1] for name in (queue, f"{queue}-2")]
    assert times[0] == times[1] is not None

    assert call("import", str(exported), "--state", "cancelled").out.startswith("4 lines, 1 jobs enqueued, in ")
    assert call.get(f"/v1/queues/{queue}")["counts"]["queued"] == 3


def test_all_queues_are_exported_and_imported_each_into_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server() as one, running_server() as other:
        source, target = CommandLine(one, tmp_path, capsys), CommandLine(other, tmp_path, capsys)
        for queue in ("b", "a", "c"):
            for _ in range(3):
                source("enqueue", queue, "-q", queue)
        exported = source("export", "--all", "-o", str(tmp_path / "all.ndjson"))
        assert exported.err.startswith("9 jobs in ")
        target("import", str(tmp_path / "all.ndjson"))
        assert [job["type"] for job in target("export", "--all").lines] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
        assert [queue["counts"]["queued"] for queue in target("queues", "--json").lines] == [3, 3, 3]


def test_an_export_that_was_killed_goes_on(call: CommandLine, queue: str, tmp_path: Path) -> None:
    file = write_jobs(tmp_path / "jobs.ndjson", 5_000)
    call("enqueue", "-f", str(file), "-q", queue)
    exported, kept = tmp_path / "exported.ndjson", tmp_path / "exported.ndjson.progress"
    program = Program(call, "export", queue, "-o", str(exported))
    assert eventually(kept.exists)
    program.process.kill()
    assert program.ended()[0] == -signal.SIGKILL
    written = exported.stat().st_size
    assert written > 0
    with exported.open("ab") as torn:
        torn.write(b'{"queue":"')  # as if a page were half on the disk

    assert call("export", queue, "--state", "dead", "-o", str(exported), code=65).err.startswith("queue-actor: ")
    ran = call("export", queue, "-o", str(exported))
    assert ran.err == f"5,000 jobs in {exported}\n"
    numbers = [json.loads(line)["payload"]["line"] for line in exported.read_text().splitlines()]
    assert numbers == [*range(1, 5_001)]
    kept.write_text("{")
    assert "is no file of progress" in call("export", queue, "-o", str(exported), code=65).err
    call("export", queue, "-o", str(exported), "--restart")


# --- backup


def test_a_backup_is_checked_before_it_has_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_server("--data", str(tmp_path / "data")) as server:
        call = CommandLine(server, tmp_path, capsys)
        call("enqueue", "t", "-q", "images")
        backup = tmp_path / "today.sqlite"
        ran = call("backup", str(backup))
        assert re.fullmatch(rf"{backup}: [\d,]+ bytes\n", ran.out)
        assert "1 queued" in ran.err
        assert backup.stat().st_mode & 0o777 == 0o600
        connection = sqlite3.connect(backup)
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        connection.close()
        call("backup", str(tmp_path / "unchecked.sqlite"), "--no-check")
    assert sorted(path.name for path in tmp_path.glob("*.sqlite*")) == ["today.sqlite", "unchecked.sqlite"]


def test_a_server_without_a_directory_has_no_backup(call: CommandLine, tmp_path: Path) -> None:
    ran = call("backup", str(tmp_path / "today.sqlite"), code=1)

    assert "not_durable" in ran.err
    assert list(tmp_path.iterdir()) == []
