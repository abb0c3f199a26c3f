"""`top` in a terminal, beside a real server."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.called import CommandLine
from tests.process.server import ROOT, Server, running_server
from tests.process.terminals import ALTERNATE_SCREEN, Terminal

pytestmark = pytest.mark.process


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def call(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    call = CommandLine(server, tmp_path, capsys)
    for _ in range(5):
        call("enqueue", "resize", "-q", "images")
    call("enqueue", "welcome", "-q", "mail", "--delay", "3600")
    (job, *_) = call.dequeue("images", 2)
    error = {"type": "Timeout\x1b[2J", "message": "no disk\x9b31m"}
    call.post(
        f"/v1/queues/images/jobs/{job['id']}/fail", {"token": job["lease"]["token"], "retry": False, "error": error}
    )
    return call


def top(call: CommandLine, *arguments: str, **size: int) -> Terminal:
    command = [sys.executable, "-m", "queue_actor", "top", "--every", "0.2", *arguments]
    return Terminal(command, call.environment | {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, **size)


def test_top_shows_queues_rates_consumers_and_failures(call: CommandLine) -> None:
    with top(call) as terminal:
        shown = terminal.wait_for(lambda text: "images/1" in text)
        print(shown)
        lines = shown.splitlines()

        assert lines[0].startswith(f"queue-actor  {call.url}  jobs kept: memory   q: quit")
        assert lines[1].startswith("2 queues: 1 scheduled, 3 queued, 1 in progress, 1 dead, 6 enqueued a minute")
        head = next(line for line in lines if line.startswith("queue  "))
        counts = ["sched", "queued", "leased", "dead", "oldest"]
        assert head.split() == ["queue", *counts, "in/m", "out/m", "done/m", "fail/m"]
        images = next(line for line in lines if line.startswith("images "))
        assert re.fullmatch(r"images +0 +3 +1 +1 +\d+\.?\d*s +5 +2 +0 +1", images)
        assert any(re.fullmatch(r"mail +1 +0 +0 +0 +- +1 +0 +0 +0", line) for line in lines)
        assert re.search(r"^consumer +queue +asked *\nw1 +images +\d+\.?\d*s ago$", shown, re.MULTILINE)
        assert re.search(
            r"^images/1 +resize +\d+\.?\d*s ago +1 attempts +Timeout\\x1b\[2J: no disk\\x9b31m$", shown, re.MULTILINE
        )

        call("enqueue", "resize", "-q", "images")
        terminal.wait_for(lambda text: re.search(r"^images +0 +4 ", text, re.MULTILINE))
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert terminal.is_as_before
        assert terminal.written.find(ALTERNATE_SCREEN[0]) < terminal.written.find(ALTERNATE_SCREEN[1])


def test_top_fits_the_terminal_and_follows_its_size(call: CommandLine) -> None:
    for number in range(60):
        call.post(f"/v1/queues/tenant:{number}/enqueue", {"jobs": [{"type": "t"}]})
    with top(call, columns=80, rows=20) as terminal:
        shown = terminal.wait_for(lambda text: "images/1" in text)
        print(shown)
        assert re.search(r"^tenant:\d+ +0 +1 +0 +0 +\d+\.?\d*s +1 +0 +0 +0 nobody asks$", shown, re.MULTILINE)
        assert re.search(r"^… 53 more", shown, re.MULTILINE)
        assert "w1" in shown  # the tables below have their rows, too
        few = shown.count("tenant:")
        terminal.resize(140, 50)
        terminal.wait_for(lambda text: "images/1" in text and text.count("tenant:") > few + 20)
        terminal.press(b"\x03")
        assert terminal.ended() == 130
        assert terminal.is_as_before
        assert ALTERNATE_SCREEN[1] in terminal.written


def test_top_says_that_nobody_answers_and_shows_what_was(call: CommandLine, server: Server) -> None:
    with top(call) as terminal:
        terminal.wait_for(lambda text: "images/1" in text)
        server.terminate()
        assert server.wait(seconds=10) == 0
        shown = terminal.wait_for(lambda text: "refused" in text)
        assert "images/1" in shown
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 143
        assert terminal.is_as_before
        assert ALTERNATE_SCREEN[1] in terminal.written


def test_top_has_no_colours_where_nobody_wants_them(call: CommandLine) -> None:
    call.environment["NO_COLOR"] = "1"
    with top(call) as terminal:
        terminal.wait_for(lambda text: "images/1" in text)
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", terminal.written)


def test_top_may_be_printed_once_and_elsewhere_needs_a_terminal(call: CommandLine) -> None:
    shown = call("top", "--once", "--prefix", "im").out
    assert shown.startswith(f"queue-actor  {call.url}")
    assert "images/1" in shown
    assert "mail" not in shown
    assert "--once" in call("top", code=64).err
