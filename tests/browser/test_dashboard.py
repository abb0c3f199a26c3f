"""The dashboard in a real browser: what it shows, that it keeps up, and what it lets one do."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.browser.conftest import Looker, looking, what_is_missing
from tests.process.server import Server, running_server
from tests.process.tokens import bearer, token

if reason := what_is_missing():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.process, pytest.mark.slow]

Q = "/v1/queues/images"

LIVE_SECONDS = 3.0
"""By when what has happened is shown, at the median. It is less than one where the machine has nothing else to do; a
page that is not told by events looks again by itself, five seconds after it last did."""


SCRIPTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</title><script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    '<a href="javascript:alert(1)">x</a>',
    "${alert(1)}{{constructor.constructor('alert(1)')()}}",
    "<base href=https://evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<style>@import 'https://evil.example/x.css'</style><form action=https://evil.example/><input name=q autofocus>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
]


def enqueue(
    server: Server, *jobs: dict[str, Any], queue: str = "images", headers: dict[str, str] | None = None
) -> list[int]:
    answer = server.request("POST", f"/v1/queues/{queue}/enqueue", {"jobs": jobs or ({"type": "resize"},)}, headers)
    assert answer.status == 200, answer
    return [job["id"] for job in answer.body["jobs"]]


def dequeue(server: Server, count: int = 1, queue: str = "images", consumer: str = "w1") -> list[dict[str, Any]]:
    wanted = {"count": count, "consumer": consumer}
    jobs: list[dict[str, Any]] = server.request("POST", f"/v1/queues/{queue}/dequeue", wanted).body["jobs"]
    return jobs


def end(server: Server, job: dict[str, Any], verb: str = "conclude", **more: Any) -> None:
    path = f"/v1/queues/{job['queue']}/jobs/{job['id']}/{verb}"
    assert server.request("POST", path, {"token": job["lease"]["token"], **more}).status == 200


def state(server: Server, id_: int, queue: str = "images") -> str:
    return str(server.request("GET", f"/v1/queues/{queue}/jobs/{id_}").body["state"])


def furnish(server: Server) -> None:
    """Jobs in all states: 1 concluded, 2 dead, 3 in progress, 4 queued, 5 scheduled, 6 cancelled."""
    enqueue(server, *[{"type": "resize", "payload": {"w": 1280, "big": 12345678901234567890}, "meta": {"a": "b"}}] * 4)
    enqueue(server, {"type": "resize", "delay_seconds": 3_600}, {"type": "resize"})
    done, failed, _held = dequeue(server, 3)
    end(server, done, result={"bytes": 48_213})
    end(server, failed, "fail", retry=False, error={"type": "Timeout", "message": "no answer\nfrom the server"})
    server.request("POST", f"{Q}/jobs/6/cancel")


PAGES = {
    "#/": "Queues",
    "#/queues/images": "images",
    "#/queues/images/jobs": "Jobs of images",
    "#/queues/images/jobs/2": "Job 2",
    "#/queues/images/jobs/3": "Job 3",
    "#/health": "Health",
    "#/queues/images/jobs/99": "There is no such thing",
}


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("desk", "dark"), ("phone", "light")])
def test_every_page_is_shown_and_can_be_used_by_everybody(browser: Any, server: Server, size: str, scheme: str) -> None:
    furnish(server)
    found: dict[str, list[str]] = {}
    with looking(browser, f"http://127.0.0.1:{server.port}", size=size, scheme=scheme) as looker:
        for link, heading in PAGES.items():
            looker.open(link, heading)
            found[link] = looker.accessibility()
            wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert looker.page.evaluate(wider) <= 0, link
    assert not {link: errors for link, errors in found.items() if errors}


def test_dialogs_can_be_used_by_everybody(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images", "images")
    looker.button("Purge…").click()
    looker.shows("This touches 2 jobs.")
    assert looker.accessibility() == []
    looker.page.keyboard.press("Escape")
    looker.page.get_by_role("dialog").wait_for(state="detached")
    assert state(server, 1) == "concluded"


def test_a_job_is_shown_with_all_that_is_known_of_it(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs/2", "Job 2")
    for text in ("Timeout", "its worker said that there is no use in trying again", "from the server"):
        looker.shows(text)
    payload = looker.page.get_by_role("region", name="Payload").inner_text()
    assert payload == '{\n  "w": 1280,\n  "big": 12345678901234567890\n}'
    looker.open("#/queues/images/jobs/4", "Job 4")
    looker.shows("It is first in line")
    looker.open("#/queues/images/jobs/3", "Job 3")
    looker.shows("The worker w1 has it")


def test_what_happens_is_shown_at_once(server: Server, looker: Looker) -> None:
    enqueue(server)
    looker.open("#/queues/images", "images")
    looker.page.get_by_text("Live", exact=True).wait_for()
    seconds = []
    for number in range(2, 9):
        began = time.monotonic()
        enqueue(server)
        looker.page.locator(".tile.queued .dd").get_by_text(str(number), exact=True).wait_for()
        seconds.append(time.monotonic() - began)
    assert statistics.median(seconds) < LIVE_SECONDS, seconds


def test_the_overview_keeps_up_too(server: Server, looker: Looker) -> None:
    looker.open("#/", "Queues")
    looker.shows("There is no queue yet")
    seconds = []
    for number in range(5):
        began = time.monotonic()
        enqueue(server, queue=f"q{number}")
        looker.page.get_by_role("link", name=f"q{number}", exact=True).wait_for()
        seconds.append(time.monotonic() - began)
    assert statistics.median(seconds) < LIVE_SECONDS, seconds


def test_it_goes_on_when_the_server_was_restarted(browser: Any, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    with running_server(*data) as server:
        port = server.port
        enqueue(server)
        with looking(browser, f"http://127.0.0.1:{port}") as looker:
            looker.open("#/queues/images", "images")
            looker.page.get_by_text("Live", exact=True).wait_for()
            server.terminate()
            server.wait(seconds=30)
            looker.shows("Reconnecting…")
            looker.sees("images")  # what was there is shown on
            with running_server("--bind", f"127.0.0.1:{port}", *data) as again:
                looker.page.get_by_text("Live", exact=True).wait_for()
                enqueue(again)
                looker.page.locator(".tile.queued .dd").get_by_text("2", exact=True).wait_for()


# --- what it lets one do


def test_a_queue_is_paused_and_resumed(server: Server, looker: Looker) -> None:
    enqueue(server)
    looker.open("#/queues/images", "images")
    looker.button("Pause").click()
    looker.confirm("1 job would wait", "Pause it")
    looker.shows("images is paused.")
    assert server.request("GET", Q).body["paused"]
    looker.button("Resume").click()
    looker.confirm("1 job can be handed out", "Resume it")
    looker.button("Pause").wait_for()
    assert not server.request("GET", Q).body["paused"]


@pytest.mark.parametrize(
    ("button", "verb", "told"),
    [
        ("Cancel…", "Cancel them", "2 jobs cancelled."),
        ("Redrive…", "Redrive them", "1 job redriven."),
        ("Purge…", "Forget them for good", "2 jobs forgotten."),
    ],
)
def test_all_jobs_that_match_are_counted_and_then_done(
    server: Server, looker: Looker, button: str, verb: str, told: str
) -> None:
    furnish(server)
    looker.open("#/queues/images", "images")
    looker.button(button).click()
    looker.confirm(f"This touches {told.rpartition(' ')[0]}.", verb)
    looker.shows(told)


def test_the_filter_of_a_search_is_that_of_its_bulk_verbs(server: Server, looker: Looker) -> None:
    furnish(server)
    enqueue(server, {"type": "other"})
    looker.open("#/queues/images/jobs", "Jobs of images")
    looker.page.get_by_label("Type").fill("other")
    looker.button("Search").click()
    looker.page.get_by_role("row").nth(1).wait_for()
    assert "type=other" in looker.page.url  # a link to keep
    looker.page.get_by_role("group", name="All that match").get_by_role("button", name="Cancel…").click()
    looker.confirm("This touches 1 job.", "Cancel them")
    looker.shows("1 job cancelled.")
    assert (state(server, 4), state(server, 7)) == ("queued", "cancelled")


def test_jobs_are_selected_and_redriven(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs?state=dead,cancelled", "Jobs of images")
    looker.page.get_by_label("Select job 2").check()
    looker.page.get_by_role("group", name="Selected jobs").get_by_role("button", name="Redrive…").click()
    looker.confirm("This touches 1 job: 2.", "Redrive them")
    looker.shows("1 job redriven.")
    assert (state(server, 2), state(server, 6)) == ("queued", "cancelled")


@pytest.mark.parametrize(
    ("id_", "buttons", "after"),
    [
        (4, ("Cancel", "Cancel it"), "cancelled"),
        (2, ("Redrive", "Redrive it"), "queued"),
        (5, ("Run now", "Make it ready"), "queued"),
    ],
)
def test_a_job_is_acted_upon(server: Server, looker: Looker, id_: int, buttons: tuple[str, str], after: str) -> None:
    button, verb = buttons
    furnish(server)
    looker.open(f"#/queues/images/jobs/{id_}", f"Job {id_}")
    looker.button(button).click()
    looker.page.get_by_role("dialog").get_by_role("button", name=verb).click()
    looker.page.locator(f"p.why.{after}").wait_for()
    assert state(server, id_) == after


def test_a_job_is_forgotten(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs/1", "Job 1")
    looker.button("Forget").click()
    looker.page.get_by_role("dialog").get_by_role("button", name="Forget it for good").click()
    looker.sees("There is no such thing")
    assert server.request("GET", f"{Q}/jobs/1").body["code"] == "forgotten"


def test_what_is_refused_is_told(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs/4", "Job 4")
    looker.button("Cancel").click()
    server.request("POST", f"{Q}/jobs/4/cancel")
    server.request("DELETE", f"{Q}/jobs/4")
    looker.page.get_by_role("dialog").get_by_role("button", name="Cancel it").click()
    looker.shows("Not done: job 4 of queue images has ended")


def test_it_can_be_used_by_keyboard(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/", "Queues")
    looker.page.keyboard.press("/")
    looker.page.keyboard.type("images/2")
    looker.page.keyboard.press("Enter")
    looker.sees("Job 2")
    assert looker.page.evaluate("document.activeElement.tagName") == "H1"
    assert looker.page.title() == "Job 2 of images · queue-actor"
    looker.page.keyboard.press("Tab")
    looker.page.keyboard.press("Tab")
    assert looker.page.evaluate("document.activeElement.textContent") == "Forget"


# --- who may look, and from where


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Server, str, dict[str, str]]]:
    """A server with access tokens: one that may only look, and the header of one that may do everything."""
    path = tmp_path / "tokens.json"
    reader = token(path, "create", "reader", "--scope", "read", "--queue", "*")
    admin = bearer(token(path, "create", "admin", "--scope", "admin", "--queue", "*"))
    with running_server("--tokens", str(path)) as server:
        yield server, reader, admin


def test_who_may_only_look_is_offered_no_more(browser: Any, guarded: tuple[Server, str, dict[str, str]]) -> None:
    server, reader, admin = guarded
    enqueue(server, headers=admin)
    with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
        looker.open("#/queues/images")
        dialog = looker.page.get_by_role("dialog")
        assert looker.accessibility() == []
        dialog.get_by_label("Token").fill("qa_wrong")
        looker.button("Sign in").click()
        looker.shows("Not accepted")
        looker.page.get_by_role("dialog").get_by_label("Token").fill(reader)
        looker.button("Sign in").click()
        for link in ("#/queues/images", "#/queues/images/jobs", "#/queues/images/jobs/1", "#/health"):
            looker.page.evaluate("link => { location.hash = link; }", link)
            looker.sees(PAGES.get(link, "Job 1"))
            names = looker.page.get_by_role("button").all_inner_texts()
            assert set(names) <= {"Local time", "Sign out", "Search", "Copy"}, link
        # The token is nowhere but in the memory of the page.
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert reader not in looker.page.evaluate(kept)
        assert reader not in looker.page.content()
        assert looker.page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
        looker.page.get_by_text("Live", exact=True).wait_for()
        looker.page.reload()
        looker.page.get_by_role("dialog").get_by_label("Token").wait_for()


def test_it_works_behind_a_path_prefix(browser: Any, server: Server) -> None:
    furnish(server)

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith("/deep/down/"), self.path
            with closing(HTTPConnection("127.0.0.1", server.port)) as there, suppress(OSError, HTTPException):
                self.pass_on(there)

        def pass_on(self, there: HTTPConnection) -> None:
            there.request("GET", self.path.removeprefix("/deep/down"), headers={"Host": f"127.0.0.1:{server.port}"})
            answer = there.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read1(4096):
                self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        Thread(target=proxy.serve_forever, daemon=True).start()
        with looking(browser, f"http://127.0.0.1:{proxy.server_port}/deep/down") as looker:
            looker.page.goto(f"{looker.base}/")
            looker.sees("Queues")
            assert looker.page.url == f"{looker.base}/ui"
            looker.page.get_by_role("link", name="images", exact=True).click()
            looker.page.get_by_role("heading", level=1, name="images").wait_for()
            looker.page.get_by_text("Live", exact=True).wait_for()
        proxy.shutdown()


# --- what others have sent


def test_nothing_that_was_sent_is_carried_out(server: Server, looker: Looker) -> None:
    for text in SCRIPTS:
        enqueue(
            server,
            {
                "type": text[:200],
                "payload": {text: [text]},
                "unique_key": text[:200],
                "meta": {text[:100]: text[:100]},
            },
        )
    for job, text in zip(dequeue(server, len(SCRIPTS), consumer=SCRIPTS[1]), SCRIPTS, strict=True):
        if job["id"] % 3 == 0:
            end(server, job, result={text: text})
        elif job["id"] % 3 == 1:
            end(server, job, "fail", retry=False, error={"type": text[:200], "message": text * 3})
        else:
            end(server, job, "extend", progress={text: text})
    looker.open("#/", "Queues")
    looker.open("#/queues/images", "images")
    looker.shows(SCRIPTS[1])
    looker.open("#/queues/images/jobs", "Jobs of images")
    for id_, text in enumerate(SCRIPTS, 1):
        looker.open(f"#/queues/images/jobs/{id_}", f"Job {id_}")
        looker.shows(text[:200])
        looker.check()
    for text in SCRIPTS:  # as a link, too
        for link in (f"#/queues/{text}", f"#/queues/images/jobs?type={text}&error={text}", f"#/{text}"):
            looker.page.goto("about:blank")
            looker.page.goto(f"{looker.base}/ui{link}")
            looker.page.get_by_role("heading", level=1).wait_for()
            looker.check()
