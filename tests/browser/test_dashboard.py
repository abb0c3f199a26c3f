"""The dashboard in a real browser: what it shows, to whomever, and that it keeps up."""

import re
import statistics
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Looker, looking, need_browser
from tests.browser.jobs import PAGES, Q, asking, dequeue, end, enqueue, furnish, state
from tests.process.server import Server, running_server

need_browser()

pytestmark = [pytest.mark.process, pytest.mark.slow]

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


def test_charts_can_be_read_on_a_phone(browser: Any, server: Server) -> None:
    furnish(server)
    size = """texts => Math.min(...texts.map(text => {
        const drawing = text.ownerSVGElement;
        return parseFloat(getComputedStyle(text).fontSize) * drawing.clientWidth / drawing.viewBox.baseVal.width;
    }))"""
    with looking(browser, f"http://127.0.0.1:{server.port}", size="phone") as looker:
        looker.open("#/queues/images", "images")
        assert looker.page.locator(".chart .tick").evaluate_all(size) > 10  # pixels


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


def test_a_queue_is_shown_with_its_last_hour_and_who_works_on_it(server: Server, looker: Looker) -> None:
    furnish(server)
    server.request("POST", f"{Q}/dequeue", {"consumer": "w2", "count": 9})
    looker.open("#/queues/images", "images")
    for chart, told in (
        ("In and done", "enqueued 6 in the last hour, concluded 1 in the last hour"),
        ("Went wrong", "failed 1 in the last hour, stale 0 in the last hour, dead 1 in the last hour"),
        ("Waiting time", r"p50 lately [\d.]+ m?s, p95 lately [\d.]+ m?s"),
        ("Running time", r"p50 lately [\d.]+ m?s, p95 lately [\d.]+ m?s"),
    ):
        looker.page.get_by_role("img", name=re.compile(f"^{chart}: {told}$")).wait_for()
    for worker in ("w1", "w2"):
        looker.page.get_by_role("row", name=re.compile(f"^{worker} .* ago its jobs$")).wait_for()
    asks = {"consumer": "w3", "wait_seconds": 20}
    with asking(server, asks):
        looker.page.locator("dt", has_text="Waiting dequeues").locator("+ dd").get_by_text("1", exact=True).wait_for()


def test_the_overview_tells_of_all_states(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/", "Queues")
    heads, cells = (looker.page.get_by_role("row").nth(n).locator("th, td").all_inner_texts() for n in (0, 1))
    told = dict(zip(heads, cells, strict=True))
    wanted = {"Queued": "1", "Scheduled": "1", "Running": "1", "Dead": "1", "Ended": "2"}
    assert {name: told[name] for name in wanted} == wanted
    looker.page.get_by_role("row").nth(1).get_by_role("link", name="2", exact=True).click()
    looker.sees("Jobs of images")
    looker.page.get_by_label("Select job 6").wait_for()
    assert looker.page.get_by_label(re.compile(r"Select job \d")).count() == 2


def test_many_queues_are_shown_page_by_page(server: Server, looker: Looker) -> None:
    for number in range(60):
        enqueue(server, queue=f"tenant:{number:02}")
    looker.open("#/?order=name", "Queues")
    names = looker.page.get_by_role("rowheader")
    assert names.all_inner_texts() == [f"tenant:{number:02}" for number in range(50)]
    looker.page.get_by_role("link", name="Next page").click()
    looker.page.get_by_role("link", name="tenant:50", exact=True).wait_for()
    assert names.all_inner_texts() == [f"tenant:{number:02}" for number in range(50, 60)]
    looker.page.get_by_label("Begins with").fill("tenant:3")
    looker.page.keyboard.press("Enter")
    looker.page.get_by_role("link", name="tenant:30", exact=True).wait_for()
    assert names.all_inner_texts() == [f"tenant:{number:02}" for number in range(30, 40)]
    assert "order=name" in looker.page.url


def test_a_job_that_waits_tells_how_many_go_first(server: Server, looker: Looker) -> None:
    server.request("PUT", Q, {"max_attempts": 7})
    enqueue(server, *[{"type": "resize"}] * 4)
    looker.open("#/queues/images/jobs/3", "Job 3")
    looker.shows("2 ahead")
    looker.shows("0 of 7 (0 failed, 0 stale)")
    job, *_ = dequeue(server)
    looker.shows("1 ahead")
    looker.open(f"#/queues/images/jobs/{job['id']}", "Job 1")
    countdown = looker.page.get_by_text("the lease ends in ")
    first = countdown.inner_text()
    looker.page.get_by_text(first).wait_for(state="detached")
    assert countdown.inner_text() < first


def test_times_are_told_as_one_likes(browser: Any, server: Server) -> None:
    furnish(server)
    made = server.request("GET", f"{Q}/jobs/1").body["created_at"]
    with looking(browser, f"http://127.0.0.1:{server.port}", zone="Asia/Kathmandu") as looker:  # 5:45 ahead
        looker.open("#/queues/images/jobs/1", "Job 1")
        shown = looker.page.locator(f'time[datetime="{made}"]').first
        moment = datetime.fromisoformat(made)
        universal, local = (f"{each:%Y-%m-%d %H:%M:%S}" for each in (moment, moment + timedelta(hours=5, minutes=45)))
        assert shown.inner_text() == local
        assert shown.get_attribute("title") == f"{local} local, {universal} UTC"
        looker.button("Local time").click()
        looker.button("UTC").wait_for()
        assert shown.inner_text() == f"{universal} UTC"


def test_a_job_is_found_by_its_id(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs", "Jobs of images")
    looker.page.get_by_label("Id", exact=True).fill("2")
    looker.page.keyboard.press("Enter")
    looker.sees("Job 2")


@pytest.mark.parametrize("durable", [False, True])
def test_the_health_of_the_server_is_shown(browser: Any, tmp_path: Path, durable: bool) -> None:
    flags = ("--data", str(tmp_path / "data")) if durable else ()
    figures = {"Inbox", "Batches", "Time to commit one", "Event loop late by", "Compactions", "Readers of events"}
    with running_server(*flags) as server, looking(browser, f"http://127.0.0.1:{server.port}") as looker:
        enqueue(server)
        looker.open("#/health", "Health")
        looker.shows("A crash would lose nothing." if durable else "A crash would lose all jobs.")
        if durable:
            figures |= {"File", "Log beside it", "Room left", "A commit takes"}
        else:
            looker.shows("with a data directory")
        assert figures <= set(looker.page.get_by_role("term").all_inner_texts())


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
