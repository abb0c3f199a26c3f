"""A file on its way to a server that refuses, is away, and answers no more."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from queue_actor.commandline import loading, terminal
from queue_actor.commandline.lines import HEAD_BYTES_MAX
from tests.unit.commandline.conftest import Command, FakeServer

ENQUEUE = "POST /v1/queues/q/enqueue"


def results(*ids: int) -> dict[str, Any]:
    return {"jobs": [{"id": id_, "state": "queued"} for id_ in ids], "errors": 0}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.ndjson"
    path.write_text('{"type":"a"}\n{"type":"b"}\n{"type":"c"}\n')
    return path


def keys(server: FakeServer) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in server.requests]


def test_what_had_no_answer_is_sent_again_under_the_same_key(command: Command, server: FakeServer, file: Path) -> None:
    server.breaks(ENQUEUE)
    server.refuses(ENQUEUE, "busy", 503)
    server.answers(ENQUEUE, results(1, 2))
    server.answers(ENQUEUE, results(3))
    ran = command("enqueue", "-f", str(file), "-q", "q", "--batch", "2")

    assert ran.out.startswith("3 lines, 3 jobs enqueued, in ")
    first, again, third, other = keys(server)
    assert first == again == third != other
    assert server.bodies(ENQUEUE)[0] == server.bodies(ENQUEUE)[2] == {"jobs": [{"type": "a"}, {"type": "b"}]}
    assert command.slept == [0.1, 0.2]


def test_a_call_that_goes_on_sends_what_was_in_doubt_under_the_same_key(
    command: Command, server: FakeServer, file: Path
) -> None:
    server.answers(ENQUEUE, results(1, 2))
    server.breaks(ENQUEUE)
    ran = command("enqueue", "-f", str(file), "-q", "q", "--batch", "2", "--patience", "0")
    assert ran.code == 69
    assert ran.err.startswith("lines 3 to 3 are not enqueued, as far as is known; the same call goes on")

    server.forget(ENQUEUE)
    server.answers(ENQUEUE, results(3))
    ran = command("enqueue", "-f", str(file), "-q", "q", "--batch", "2")
    assert (ran.code, ran.err) == (0, "going on at line 3\n")
    assert ran.out.startswith("3 lines, 3 jobs enqueued, in ")
    assert len({*keys(server)[1:]}) == 1


def test_a_large_batch_can_be_gone_on_after_too(command: Command, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "large.ndjson"
    file.write_text("".join(json.dumps({"type": "t", "payload": letter * 200_000}) + "\n" for letter in "abcd"))
    server.answers(ENQUEUE, results(1, 2))
    server.breaks(ENQUEUE)
    assert command("enqueue", "-f", str(file), "-q", "q", "--patience", "0").code == 69
    kept = json.loads((tmp_path / "large.ndjson.progress").read_text())
    assert kept["offset"] > 2 * HEAD_BYTES_MAX
    server.forget(ENQUEUE)
    server.answers(ENQUEUE, results(3, 4))

    assert command("enqueue", "-f", str(file), "-q", "q").err == "going on at line 3\n"


def test_a_line_that_was_left_out_is_left_out_again(
    command: Command, server: FakeServer, file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    server.refuses(ENQUEUE, "invalid", 400, "jobs[1].type")
    server.breaks(ENQUEUE)
    call = ("enqueue", "-f", str(file), "-q", "q", "--bad-lines", str(bad), "--patience", "0")
    assert command(*call).code == 69
    server.forget(ENQUEUE)
    server.answers(ENQUEUE, results(1, 2))
    ran = command(*call)

    assert ran.code == 65
    assert ran.out.startswith("3 lines, 2 jobs enqueued, 1 bad lines, in ")
    bodies = server.bodies(ENQUEUE)
    assert bodies[1] == bodies[-1] == {"jobs": [{"type": "a"}, {"type": "c"}]}
    assert len({*keys(server)}) == 1
    assert (
        json.loads(bad.read_text()) == {"line": 2, "reason": "invalid: it is invalid (type)"} or bad.read_text() == ""
    )


def test_a_line_that_is_no_json_is_noted_once_though_its_batch_is_sent_twice(
    command: Command, server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "jobs").write_text('x\n{"type":"a"}\n')
    call = ("enqueue", "-f", str(tmp_path / "jobs"), "-q", "q", "--bad-lines", str(tmp_path / "bad"), "--patience", "0")
    server.breaks(ENQUEUE)
    assert command(*call).code == 69
    server.forget(ENQUEUE)
    server.answers(ENQUEUE, results(1))
    assert command(*call).out.startswith("2 lines, 1 jobs enqueued, 1 bad lines, in ")
    assert len((tmp_path / "bad").read_text().splitlines()) == 1


def test_a_file_of_nothing_but_bad_lines_sends_nothing(command: Command, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("x\ny\n")
    ran = command("enqueue", "-f", str(tmp_path / "jobs"), "-q", "q", "--bad-lines", str(tmp_path / "bad"), "--json")

    assert ran.code == 65
    assert ran.lines[0]["bad"] == 2
    assert server.requests == []


def test_one_line_that_is_too_large_is_told_by_its_number(command: Command, server: FakeServer, file: Path) -> None:
    server.refuses(ENQUEUE, "too_large", 413)
    ran = command("enqueue", "-f", str(file), "-q", "q", "--batch", "1")
    assert ran.code == 65
    assert "line 1: too_large: it is too_large; nothing is enqueued from line 1 on" in ran.err
    ran = command("enqueue", "-f", str(file), "-q", "q", "--restart")
    assert ran.code == 1  # of several it is not known which


def test_a_job_that_is_refused_alone_is_noted_and_the_others_are_there(
    command: Command, server: FakeServer, file: Path
) -> None:
    answer = results(1, 2)
    answer["jobs"].insert(1, {"error": {"code": "unique_key_taken", "detail": "job 1 has it"}})
    server.answers(ENQUEUE, answer)
    ran = command("enqueue", "-f", str(file), "-q", "q")

    assert (ran.code, ran.err) == (65, "line 2: unique_key_taken: job 1 has it\n")
    assert ran.out.startswith("3 lines, 2 jobs enqueued, 1 bad lines, in ")


def test_standard_input_is_sent_and_has_no_progress(
    command: Command, server: FakeServer, standard_input: Callable[[bytes], None], tmp_path: Path
) -> None:
    standard_input(b'{"type":"a"}\n{"type":"b"}\n')
    server.answers(ENQUEUE, results(2))
    assert command("enqueue", "-f", "-", "-q", "q", "--from-line", "2").code == 0
    assert server.bodies(ENQUEUE) == [{"jobs": [{"type": "b"}]}]

    standard_input(b'{"type":"a"}\n')
    server.forget(ENQUEUE)
    server.breaks(ENQUEUE)
    ran = command("enqueue", "-f", "-", "-q", "q", "--patience", "0")
    assert "go on with --from-line" in ran.err
    standard_input(b"")
    assert command("enqueue", "-f", "-", "-q", "q").code == 0
    assert list(tmp_path.iterdir()) == []


def test_somebody_who_looks_on_sees_a_bar(
    command: Command, server: FakeServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_terminal(self: terminal.Printer, *_: object, **__: object) -> None:
        self.as_json = False
        self.out = Console(force_terminal=False, width=200)
        self.err = Console(force_terminal=True, width=100, stderr=True)

    monkeypatch.setattr(terminal.Printer, "__init__", on_a_terminal)
    server.answers(ENQUEUE, results(1))
    ran = command("enqueue", "-f", str(file), "-q", "q", "--batch", "1")

    assert ran.code == 0
    assert re.search(r"3 lines .*100%.* [\d,]+ lines/s", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", ran.err))


def test_pauses_grow_and_end_with_the_patience() -> None:
    assert loading.PAUSE_SECONDS_MAX < loading.PATIENCE_SECONDS
