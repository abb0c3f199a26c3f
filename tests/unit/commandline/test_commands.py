"""What commands do where a real server would have to be in trouble, or a terminal be there."""

import io
import os
import pty
import re
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from queue_actor.commandline.bench import percentile
from queue_actor.commandline.programs import found
from queue_actor.commandline.screen import REMEMBERED_MAX, Gatherer, Snapshot, screen, shares
from queue_actor.commandline.session import Target
from queue_actor.commandline.top import News, signals_noted
from tests.process.server import eventually
from tests.unit.commandline.conftest import NOW, URL, Command, FakeServer, job_document, queue_document

QUEUES = "GET /v1/queues"
STATISTICS: dict[str, Any] = {
    "instance": "i",
    "durability": "full",
    "inbox_requests": 0,
    "waiters": 0,
    "store": {
        "file_bytes": 5,
        "wal_bytes": 2**40,
        "room_bytes": 2**40,
        "commits": 1,
        "commit_seconds_p50": 0.01,
        "commit_seconds_p99": 0.5,
    },
}


# --- operate


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard(answer))


PURGE = "POST /v1/queues/q/purge"


def test_who_can_be_asked_is_asked_with_the_number(
    command: Command, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers(PURGE, {"count": 1234, "refused": 0, "dry_run": True})
    on_a_terminal(monkeypatch, "n\n")
    ran = command("purge", "-q", "q", "--state", "dead")
    assert ran.code == 130
    assert "purge 1,234 jobs of q? [y/N]" in ran.err
    assert [body["dry_run"] for body in server.bodies(PURGE)] == [True]

    server.answers(PURGE, {"count": 1234, "refused": 2, "dry_run": False})
    on_a_terminal(monkeypatch, "y\n")
    ran = command("purge", "-q", "q", "--state", "dead")
    assert (ran.code, ran.out) == (0, "q: 1,234 purged, 2 could not be\n")
    assert [body["dry_run"] for body in server.bodies(PURGE)] == [True, True, False]


def test_what_moves_many_jobs_may_take_longer_unless_it_is_said_how_long(command: Command, server: FakeServer) -> None:
    server.answers(PURGE, {"count": 0, "refused": 0, "dry_run": True})
    command("purge", "-q", "q", "--state", "dead", "--dry-run")
    command("purge", "-q", "q", "--state", "dead", "--dry-run", "--timeout", "5")

    assert [target.timeout_seconds for target in command.targets] == [600, 5]


def test_a_server_that_is_busy_ends_a_verb_about_several_jobs(command: Command, server: FakeServer) -> None:
    server.refuses("POST /v1/queues/q/jobs/1/cancel", "busy", 503)

    assert command("cancel", "q/1", "q/2").code == 75
    assert len(server.requests) == 1


# --- backup and bench


def test_a_backup_that_is_not_sound_has_no_name(command: Command, server: FakeServer, tmp_path: Path) -> None:
    server.answers("GET /v1/backup", b"no database")
    ran = command("backup", str(tmp_path / "today.sqlite"))

    assert ran.code == 1
    assert "it cannot be read" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_is_one_of_the_values() -> None:
    ordered = [float(n) for n in range(1, 101)]

    assert [percentile(ordered, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 50) == 7


def test_bench_says_what_it_leaves_behind(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queue_actor.commandline.bench.secrets.token_hex", lambda _bytes: "x")
    server, queue = command.server, "bench-x"
    server.answers(f"POST /v1/queues/{queue}/enqueue", {"jobs": [{"id": 1, "state": "queued"}]})
    server.answers(f"POST /v1/queues/{queue}/dequeue", {"jobs": []})
    server.refuses(f"POST /v1/queues/{queue}/purge", "forbidden", 403)
    ran = command("bench", "--seconds", "0.1", "--clients", "1")
    assert (ran.code, ran.err) == (0, "the queue bench-x is not deleted: it is forbidden\n")
    assert "conclude" not in ran.out.splitlines()[1]
    assert "0 jobs enqueued, dequeued and concluded: 0 a second" in ran.out

    server.forget(f"POST /v1/queues/{queue}/purge")
    server.breaks(f"POST /v1/queues/{queue}/purge")
    assert command("bench", "--seconds", "0.1", "--clients", "1").err == "the queue bench-x is left behind\n"


# --- doctor


def sound(server: FakeServer, contract: str = "1") -> None:
    server.answers("GET /healthz", {"status": "alive"})
    server.answers("GET /openapi.json", {"info": {"version": contract}})
    server.answers("GET /readyz", {"status": "ready"})
    server.answers("GET /v1/statistics", STATISTICS)
    server.answers(QUEUES, {"queues": [queue_document()], "next_cursor": None})


def test_the_doctor_names_what_is_slow_and_large_and_what_could_not_be_read(
    command: Command, server: FakeServer
) -> None:
    sound(server)
    ran = command("doctor")

    assert ran.code == 0
    assert "note  the server's clock could not be read" in ran.out  # there is no such host
    assert re.search(r"^note  the log beside the file has 1,099,511,627,776 bytes$", ran.out, re.MULTILINE)
    assert re.search(r"^note  one commit of a hundred takes 0\.500 s or more$", ran.out, re.MULTILINE)


def test_the_doctor_says_that_a_server_is_newer_not_ready_or_refuses(command: Command, server: FakeServer) -> None:
    sound(server, contract="2")
    ran = command("doctor")
    assert ran.code == 1
    assert "bad   it speaks version 2 of the contract, and this program version 1" in ran.out

    server.forget("GET /openapi.json")
    sound(server)
    server.forget("GET /readyz")
    server.refuses("GET /readyz", "starting", 503)
    assert "bad   it is not ready: it is starting" in command("doctor").out

    server.forget("GET /healthz")
    server.refuses("GET /healthz", "foreign_host", 403)
    ran = command("doctor")
    assert "refuses: it is foreign_host" in ran.out
    assert "loopback names only" in ran.out


def test_a_command_whose_reader_has_left_is_141(
    command: Command, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pipe(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return descriptor

    descriptor = os.dup(1)
    server.answers("GET /v1/queues/q/jobs/17", job_document())
    monkeypatch.setattr(sys, "stdout", Pipe())
    code = command("job", "q/17", "--json").code
    os.close(descriptor)

    assert code == 141


# --- work and serve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


APP = """
class App:
    def run(self, **given):
        ran.append(given)
        return 3

ran, app, number = [], App(), 5
"""


def test_work_runs_the_app_of_a_module_with_what_was_said(command: Command, here: Path) -> None:
    (here / "own_tasks.py").write_text(APP)
    assert command("work", "own_tasks:app", "-q", "a", "-q", "b:*", "--concurrency", "2", "--grace", "5").code == 3
    assert command("work", "own_tasks:app", "--token", "qa_x", "--metrics", "127.0.0.1:0").code == 3

    assert sys.modules.pop("own_tasks").ran == [
        {"url": URL, "token": None, "queues": ("a", "b:*"), "concurrency": 2, "grace_seconds": 5.0},
        {"url": URL, "token": "qa_x", "metrics": "127.0.0.1:0"},
    ]


REAL_APP = """
from queue_actor.worker import App

app = App()
app.job("t")(lambda: None)
"""


def test_metrics_that_cannot_be_served_are_a_wrong_call(command: Command, here: Path) -> None:
    (here / "own_real.py").write_text(REAL_APP)
    with socket.create_server(("127.0.0.1", 0)) as other:
        in_use = f"127.0.0.1:{other.getsockname()[1]}"
        for address, reason in (
            ("9100", "'9100' is not HOST:PORT"),
            (in_use, f"cannot listen on {in_use}: Address already in use"),
        ):
            ran = command("work", "own_real:app", "--metrics", address)
            assert (ran.code, ran.out) == (64, "")
            assert ran.err.splitlines()[-1] == f"Error: --metrics: {reason}"
    sys.modules.pop("own_real")
    assert command.server.requests == []


@pytest.mark.parametrize(
    ("app", "said"),
    [("no_such_module:app", "there is no module"), ("own_other:x", "has no x"), ("own_other:number", "is no app")],
)
def test_an_app_that_is_not_there_is_a_wrong_call(command: Command, here: Path, app: str, said: str) -> None:
    (here / "own_other.py").write_text(APP)
    ran = command("work", app)
    sys.modules.pop("own_other", None)

    assert ran.code == 64
    assert said in ran.err


def test_what_an_app_lacks_itself_is_not_hidden(here: Path) -> None:
    (here / "own_broken.py").write_text("import no_such_module_at_all\n")

    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        found("own_broken", "app")
    (here / "own_broken.py").write_text("")
    with pytest.raises(click.UsageError, match=r"there is no module own_broken\.inner"):
        found("own_broken.inner", "app")
    sys.modules.pop("own_broken", None)


def test_serve_becomes_the_server_with_its_flags(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr("os.execv", lambda *arguments: became.append(arguments))
    assert command("serve", "--data", "x", "--lease-seconds=5").code == 0

    program = [sys.executable, "-m", "web", "--data", "x", "--lease-seconds=5"]
    assert became == [(sys.executable, program)]
    assert "QUEUE_ACTOR_LEASE_SECONDS" in command("serve", "--help").out


# --- top


def shown(snapshot: Snapshot | None, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=120, height=height)
    console.print(screen(snapshot, NOW, height=height))
    text = console.file.getvalue()  # type: ignore[attr-defined] # it is a StringIO
    return str(text)


@pytest.mark.parametrize(
    ("rows", "wanted", "given"),
    [
        (30, [3, 2, 1], [3, 2, 1]),
        (30, [100, 2, 1], [27, 2, 1]),
        (30, [100, 100, 100], [10, 10, 10]),
        (30, [5, 100, 100], [5, 15, 10]),
        (0, [5, 5, 5], [1, 1, 1]),
        (9, [0, 0, 0], [1, 1, 1]),
    ],
)
def test_rows_are_shared_out(rows: int, wanted: list[int], given: list[int]) -> None:
    assert shares(rows, wanted) == given


def test_an_empty_server_has_a_screen_too() -> None:
    text = shown(Snapshot(URL))
    assert "no queues" in text
    assert "nobody asks for jobs" in text
    assert "no dead jobs" in text
    assert shown(None) == "asking …\n"


def dead(id_: int, queue: str = "q", **facts: Any) -> dict[str, Any]:
    finished = {"queue": queue, "state": "dead", "reason": "expired", "finished_at": "2027-01-15T07:59:00.000Z"}
    return job_document(id_, **finished, **facts)


def test_dead_jobs_are_read_once_and_the_newest_are_shown_first(server: FakeServer, command: Command) -> None:
    queue = queue_document("q", counts={"dead": 2})
    server.answers(QUEUES, {"queues": [queue, queue_document("r")], "next_cursor": None})
    server.refuses("GET /v1/statistics", "forbidden", 403)
    server.answers("GET /v1/queues/q/jobs", {"jobs": [dead(2), dead(1)], "next_cursor": None})
    server.answers("GET /v1/queues/q/jobs/1", dead(1))
    server.answers("GET /v1/queues/q/jobs/2", dead(2) | {"finished_at": None})
    ran = command("top", "--once")
    assert ran.code == 0
    assert re.search(
        r"^q/1 +t +1m 0s ago +0 attempts +expired *\nq/2 +t +- +0 attempts +expired", ran.out, re.MULTILINE
    )
    assert "jobs kept" not in ran.out

    client = command.connect(command.targets[0])
    gatherer = Gatherer(client, URL, None)
    for _ in range(3):
        gatherer.gather()
    assert len(server.bodies("GET /v1/queues/q/jobs/1")) == 1 + 1
    gatherer._dead |= dict.fromkeys(((str(n), n) for n in range(REMEMBERED_MAX)), gatherer._dead["q", 1])
    del gatherer._dead["q", 1]
    gatherer.gather()
    assert set(gatherer._dead) == {("q", 1)}
    client.close()


def test_a_server_that_answers_no_more_leaves_the_figures_of_before(server: FakeServer, command: Command) -> None:
    server.answers(QUEUES, {"queues": [queue_document("q")], "next_cursor": None})
    server.breaks(QUEUES)
    client = command.connect(Target(URL, None, None, None, None, None))
    gatherer = Gatherer(client, URL, None)
    gatherer.gather()
    text = shown(gatherer.gather())
    client.close()

    assert "broken" in text
    assert re.search(r"^q +0 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("end", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["q", "SIGINT", "SIGTERM"]
)
def test_top_runs_on_a_terminal_until_it_is_ended(
    end: signal.Signals | None, code: int, command: Command, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers(QUEUES, {"queues": [queue_document("q")], "next_cursor": None})
    master, slave = pty.openpty()
    seen = b""

    def person() -> None:
        nonlocal seen
        while b"no dead jobs" not in seen:
            seen += os.read(master, 65_536)
        os.write(master, b"x")  # which means nothing, and changes nothing
        assert eventually(lambda: not select.select([slave], [], [], 0)[0])
        if end is None:
            os.write(master, b"q")
        else:
            os.kill(os.getpid(), end)

    reader = threading.Thread(target=person, daemon=True)
    with os.fdopen(slave, "r", closefd=False) as keys, os.fdopen(slave, "w", closefd=False) as display:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stdout", display)
        reader.start()
        ended_with = command("top", "--every", "0.2").code
    reader.join()
    os.close(master)
    os.close(slave)

    assert ended_with == code
    assert b"\x1b[?1049h" in seen


def test_signals_are_as_they_were_afterwards() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with signals_noted() as noted:
        signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in numbers] == before


class Closing(Gatherer):
    """One whose client is closed while it asks."""

    def __init__(self) -> None:
        self.news: News | None = None

    def gather(self) -> Snapshot:
        if self.news is not None:
            self.news._stopped.set()
        raise RuntimeError("the client has been closed")


def test_a_client_that_is_closed_while_it_asks_is_no_failure_at_the_end() -> None:
    gatherer = Closing()
    news = News(gatherer, 1)
    with pytest.raises(RuntimeError):
        news._run()
    gatherer.news = news
    news._run()
