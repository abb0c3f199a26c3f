"""Who may look at the dashboard, and from where."""

from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.browser.conftest import Looker, looking, need_browser
from tests.browser.jobs import PAGES, Q, enqueue, furnish
from tests.process.server import Server, eventually, running_server
from tests.process.tokens import bearer, token

need_browser()

pytestmark = [pytest.mark.process, pytest.mark.slow]

EXPIRES_SECONDS = 8
"""When a token ends that is shown and used before: long enough on a busy machine."""


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


def sign_in(looker: Looker, shown: str) -> None:
    dialog = looker.page.get_by_role("dialog", name="Access token")
    dialog.get_by_label("Token").fill(shown)
    dialog.get_by_role("button", name="Sign in").click()


def test_a_token_that_is_revoked_is_replaced_by_another(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = token(path, "create", "first", "--scope", "read", "--queue", "*")
    second = token(path, "create", "second", "--scope", "operate", "--scope", "read", "--queue", "*")
    producer = bearer(token(path, "create", "producer", "--scope", "produce", "--queue", "*"))
    with running_server("--tokens", str(path)) as server:
        enqueue(server, headers=producer)
        with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
            looker.open("#/queues/images")
            sign_in(looker, first)
            looker.page.get_by_text("Live", exact=True).wait_for()
            assert not looker.button("Pause").is_visible()
            token(path, "revoke", "first")
            looker.shows("Not accepted")
            looker.sees("images")  # beneath, what was there
            sign_in(looker, first)
            looker.shows("Not accepted")
            sign_in(looker, second)
            looker.page.get_by_text("second", exact=True).wait_for()
            looker.button("Pause").wait_for()  # what the other may do is offered
            looker.page.get_by_text("Live", exact=True).wait_for()
            enqueue(server, headers=producer)
            looker.page.locator(".tile.queued .dd").get_by_text("2", exact=True).wait_for()
            kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
            assert looker.page.evaluate(kept) == looker.page.evaluate("JSON.stringify([{}, {}, '', location.href])")


def test_a_token_that_expires_takes_nothing_with_it(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token(path, "create", "admin", "--scope", "admin", "--queue", "*")
    with running_server("--tokens", str(path)) as server:
        short = token(path, "rotate", "admin", "--expires-seconds", str(EXPIRES_SECONDS))
        again = token(path, "rotate", "admin")
        assert eventually(lambda: server.request("PUT", Q, {}, bearer(short)).status == 200)
        with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
            looker.open("#/queues/images")
            sign_in(looker, short)
            looker.button("Edit…").click()
            looker.page.get_by_label("Longest run").fill("90")
            looker.shows("Not accepted")
            assert looker.accessibility() == []
            sign_in(looker, again)
            assert looker.page.get_by_label("Longest run").input_value() == "90"
            looker.button("Save it").click()
            looker.shows("The policy of images is saved.")
            assert server.request("GET", Q, headers=bearer(again)).body["policy"]["run_seconds_max"] == 90


def test_what_is_refused_for_its_token_is_done_when_there_is_another(
    browser: Any, guarded: tuple[Server, str, dict[str, str]]
) -> None:
    server, reader, admin = guarded
    shown = admin["Authorization"].removeprefix("Bearer ")
    enqueue(server, headers=admin)
    with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
        looker.open("#/queues/images")
        sign_in(looker, shown)
        # As if the token ended between one request and the next.
        refused = {"status": 401, "json": {"code": "unauthorized", "detail": "the access token has expired"}}
        looker.page.route("**/pause", lambda route: route.fulfill(**refused), times=1)
        looker.button("Pause").click()
        looker.page.get_by_role("dialog").get_by_role("button", name="Pause it").click()
        looker.shows("Not accepted: the access token has expired.")
        sign_in(looker, reader)
        looker.shows("Not done: ")  # this one may not
        assert not server.request("GET", Q, headers=admin).body["paused"]
        looker.button("Pause").wait_for(state="detached")


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
