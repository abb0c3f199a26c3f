"""A real browser opens a page of another origin, whose scripts, images and forms reach for the queue: it must not move.

What a page may do is decided by its browser, so no request that is made by hand proves it.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.process.server import Server, running_server

BROWSER = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    # Where a change is decided upon, a browser that is missing is a failure.
    pytest.mark.skipif(
        not BROWSER.exists() and os.environ.get("CI") != "true", reason="there is no chromium (Debian: chromium)"
    ),
]

BROWSER_SECONDS = 60.0

OURS = {"X-Request-Id": "ours"}
"""Of the requests that the page has not made."""

PAGE = """<!doctype html>
<img src="QUEUE/jobs/dequeue?by=img">
<script src="QUEUE/jobs/dequeue?by=script"></script>
<link rel="stylesheet" href="QUEUE/jobs/dequeue?by=stylesheet">
<video src="QUEUE/jobs/dequeue?by=video"></video>
<iframe name="frame" src="QUEUE/jobs/dequeue?by=iframe"></iframe>
<iframe name="other"></iframe>
<form id="form" method="post" enctype="text/plain" target="other" action="QUEUE/jobs/enqueue?by=form">
<input name='{"Type": "form", "a": "' value='"}'></form>
<script>
const job = JSON.stringify({Type: "page"});
const attempts = [
  fetch("QUEUE/jobs/dequeue?by=get"),
  fetch("QUEUE/jobs/dequeue?by=no-cors", {mode: "no-cors"}),
  fetch("QUEUE/jobs/dequeue?by=no-referrer", {mode: "no-cors", referrerPolicy: "no-referrer", credentials: "omit"}),
  fetch("QUEUE/jobs/enqueue?by=post", {method: "POST", body: job}),
  fetch("QUEUE/jobs/enqueue?by=post-no-cors", {method: "POST", mode: "no-cors", body: job}),
  fetch("QUEUE/jobs/1/conclude?by=conclude", {method: "POST", mode: "no-cors"}),
  fetch("QUEUE/jobs/1?by=read"),
  fetch("QUEUE/jobs/enqueue?by=put", {method: "PUT", body: job, headers: {"Content-Type": "application/json"}}),
  fetch("/through?by=redirect", {mode: "no-cors"}),
];
navigator.sendBeacon("QUEUE/jobs/enqueue?by=beacon", job);
document.getElementById("form").submit();
const read = [];
attempts.forEach((attempt, number) => attempt.then(answer => answer.text()).then(
  text => { if (text) read.push([number, text]); }, () => {}));
addEventListener("load", () => Promise.allSettled(attempts).then(() => setTimeout(
  () => fetch("/done", {method: "POST", body: JSON.stringify(read)}), 500)));
</script>
"""


@contextmanager
def page(queue: str) -> Iterator[tuple[int, threading.Event, list[str]]]:
    """Somebody else's web server with the page: its port, whether the page has done all, and what it could read."""
    done = threading.Event()
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/through"):
                self.send_response(302)
                self.send_header("Location", f"{queue}/jobs/dequeue?by=redirect")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.replace("QUEUE", queue).encode())

        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, done, told
        finally:
            server.shutdown()
            thread.join()


def browse(profile: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A browser without a window, which knows no names but those of this machine."""
    return subprocess.Popen(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            *arguments,
        ],
        env={**os.environ, "HOME": str(profile)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(browser: subprocess.Popen[bytes]) -> None:
    """Ends it with all the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(browser.pid, signal.SIGKILL)
    browser.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_cannot_move_the_queue(host: str, server: Server, tmp_path: Path) -> None:
    """Another port of the queue's own host is another origin of the same site; another name is another site."""
    server.request("POST", "/jobs/enqueue", {"Type": "mine"}, OURS)
    with page(f"http://127.0.0.1:{server.port}") as (port, done, told):
        browser = browse(tmp_path / "profile", f"http://{host}:{port}/")
        try:
            assert done.wait(BROWSER_SECONDS)
        finally:
            end(browser)
    counts = server.request("GET", "/v1/queues/default", headers=OURS).body["counts"]
    assert {state: count for state, count in counts.items() if count} == {"queued": 1}
    assert server.request("GET", "/jobs/1", headers=OURS).body["Status"] == "QUEUED"
    assert json.loads(told[0]) == []  # nor could it read anything
    asked = [line for line in server.events("request") if line["request_id"] != OURS["X-Request-Id"]]
    assert {line["status"] for line in asked} == {403}
    paths = [line["path"] for line in asked]
    # All that the page tried did arrive: five tags, three fetches and a redirect; three posts and a form; the others.
    assert paths.count("/jobs/dequeue") >= 9
    assert paths.count("/jobs/enqueue") >= 5
    assert {"/jobs/1/conclude", "/jobs/1"} <= set(paths)


def test_a_person_who_types_the_address_is_served(server: Server, tmp_path: Path) -> None:
    browser = browse(tmp_path / "profile", "--dump-dom", f"http://127.0.0.1:{server.port}/healthz")
    try:
        shown, _ = browser.communicate(timeout=BROWSER_SECONDS)
    finally:
        end(browser)
    assert b'"status":"alive"' in shown
