"""The examples, each run as its reader would run it, on a real server."""

import http.server
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.process.server import ROOT, Server, running_server

pytestmark = pytest.mark.process

EXAMPLES = ROOT / "tests/process/examples"
RUN_SECONDS = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def environment(server: Server, **more: str) -> dict[str, str]:
    own = {"QUEUE_ACTOR_URL": f"http://{server.host}:{server.port}", "PYTHONPATH": f"{ROOT}:{EXAMPLES}"}
    return os.environ | own | more


def run(server: Server, name: str, *arguments: str, **more: str) -> list[str]:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    ran = subprocess.run(
        command, env=environment(server, **more), capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@contextmanager
def working(server: Server, name: str, **more: str) -> Iterator[None]:
    """A worker of an example, which ends well when it is asked to."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "queue_actor", "work", f"{name}:app"],
        env=environment(server, **more),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=RUN_SECONDS)
        assert worker.returncode == 0, log
    finally:
        worker.kill()
        worker.communicate()


def ended(server: Server, queue: str, id_: int) -> Any:
    """A job when it has come to its end."""
    while True:
        path = f"/v1/queues/{queue}/jobs/{id_}?wait_seconds=20"
        job = server.request("GET", path, seconds=RUN_SECONDS).body
        if job["finished_at"] is not None:
            return job


def test_thumbnails_are_made_and_what_is_no_picture_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    for number, size in enumerate(((640, 480), (100, 300))):
        Image.new("RGB", size, "teal").save(tmp_path / f"{number}.jpg")
    (tmp_path / "2.jpg").write_text("no picture")
    printed = run(server, "thumbnails", *(str(tmp_path / f"{number}.jpg") for number in range(3)))
    assert printed == ["thumbnails/1", "thumbnails/2", "thumbnails/3"]
    with working(server, "thumbnails"):
        jobs = [ended(server, "thumbnails", id_) for id_ in (1, 2, 3)]

    for number, size in enumerate(((128, 96), (43, 128))):
        with Image.open(tmp_path / f"{number}-128.png") as image:
            assert image.size == size
            assert jobs[number]["result"]["size"] == list(size)
    assert (jobs[2]["state"], jobs[2]["reason"], jobs[2]["attempts"]) == ("dead", "killed", 1)
    assert jobs[2]["history"][0]["error"]["message"] == "2.jpg is no picture"
    assert not list(tmp_path.glob("*.part"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and keeps count of what was asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        pass


def test_a_crawl_visits_each_page_once(server: Server, tmp_path: Path) -> None:
    pages = 12
    for number in range(pages):
        targets = {(number * 2 + 1) % pages, (number * 2 + 2) % pages, 0, number}
        links = "".join(f'<a href="{target}.html#there">{target}</a>' for target in targets)
        (tmp_path / f"{number}.html").write_text(f"<html>{links}<a href='http://other.test/'>other</a></html>")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        run(server, "frontier", f"http://127.0.0.1:{site.server_port}/0.html")
        with working(server, "frontier"):
            # Each page that is found is a job before the one that found it is concluded, so none is left out.
            jobs = [ended(server, "frontier", id_ + 1) for id_ in range(pages)]
        site.shutdown()
        thread.join()

    assert {job["state"] for job in jobs} == {"concluded"}
    assert Quiet.asked == Counter({f"/{number}.html": 1 for number in range(pages)})
    assert server.request("GET", "/v1/queues/frontier").body["last_id"] == pages


class Mailbox(socketserver.StreamRequestHandler):
    """As much of a mail server as a client needs. It wants a second try for `later`, and knows no `nobody`."""

    received: ClassVar[list[str]] = []
    tries: ClassVar[Counter[str]] = Counter()

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            match line.upper().split(":")[0].split()[0]:
                case "DATA":
                    self.say("354 go on")
                    self.received.append(self.read_message())
                    self.say("250 taken")
                case "RCPT":
                    self.say(self.answer_to(re.findall("<(.*)@", line)[0]))
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("250 well")

    def answer_to(self, name: str) -> str:
        self.tries[name] += 1
        if name == "nobody":
            return "550 there is no nobody"
        return "451 come again" if name == "later" and self.tries[name] == 1 else "250 well"

    def read_message(self) -> str:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.decode())
        return "".join(lines)

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def test_mail_is_sent_again_if_that_may_help(server: Server) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as mailbox:
        thread = threading.Thread(target=mailbox.serve_forever)
        thread.start()
        where = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mailbox.server_address[1])}
        for name in ("ann", "later", "nobody"):
            run(server, "mail", f"{name}@example.org", "Welcome", f"Hello, {name}.")
        with working(server, "mail", **where):
            ann, later, nobody = (ended(server, "mail", id_) for id_ in (1, 2, 3))
        mailbox.shutdown()
        thread.join()

    assert [job["state"] for job in (ann, later, nobody)] == ["concluded", "concluded", "dead"]
    assert [job["attempts"] for job in (ann, later, nobody)] == [1, 2, 1]
    assert nobody["history"][0]["error"]["message"] == "550 there is no nobody"
    ids = sorted(re.findall(r"^Message-ID: (.*?)\r?$", "".join(Mailbox.received), re.MULTILINE))
    assert ids == ["<mail.1@example.org>", "<mail.2@example.org>"]
    assert "Hello, later." in "".join(Mailbox.received)


def test_whoever_asks_gets_the_reply(server: Server) -> None:
    with working(server, "request_reply"):
        assert run(server, "request_reply", "1280", "720") == ["921600"]


def test_two_clocks_make_one_job_for_each_moment(server: Server) -> None:
    def tick(printed: list[list[str]]) -> None:
        printed.append(run(server, "periodic", "0.5", "4"))

    printed: list[list[str]] = []
    clocks = [threading.Thread(target=tick, args=(printed,)) for _ in range(2)]
    for clock in clocks:
        clock.start()
    for clock in clocks:
        clock.join()

    jobs = dict(line.split() for lines in printed for line in lines)
    told = {line for lines in printed for line in lines}
    assert len(printed) == 2
    assert len(told) == len(jobs) == len({*jobs.values()})
    assert server.request("GET", "/v1/queues/reports").body["last_id"] == len(jobs)


def test_a_script_works_a_queue_off(server: Server) -> None:
    jobs = [{"type": "square", "payload": payload} for payload in (3, "x", 12)]
    server.request("POST", "/v1/queues/numbers/enqueue", {"jobs": jobs})

    assert run(server, "script") == ["3 squared is 9", "12 squared is 144"]
    states = [ended(server, "numbers", id_)["state"] for id_ in (1, 2, 3)]
    assert states == ["concluded", "dead", "concluded"]


def test_every_example_is_told_and_run() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    told = set(re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE))

    assert told == names
    for name in names:
        assert f'"{name.removesuffix(".py")}"' in Path(__file__).read_text()
        assert len((EXAMPLES / name).read_text().splitlines()) < 70
