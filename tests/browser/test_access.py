"""Who may look at the dashboard, and from where."""

from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.browser.conftest import looking, need_browser
from tests.browser.jobs import PAGES, enqueue, furnish
from tests.process.server import Server, running_server
from tests.process.tokens import bearer, token

need_browser()

pytestmark = [pytest.mark.process, pytest.mark.slow]


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
