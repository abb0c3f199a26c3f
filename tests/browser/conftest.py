"""A real browser, driven by Playwright, and what each of its pages must never do."""

import gzip
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.process.server import Server, running_server

BROWSER = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""It knows no names but those of this machine."""

PATIENCE_MILLISECONDS = 15_000.0
"""How long anything may take that is not timed: the machine may be busy."""

AXE = gzip.decompress((Path(__file__).parent / "axe-core/axe.min.js.gz").read_bytes()).decode()

WATCH = """
window.executed = 0;
window.violations = [];
window.alert = () => { window.executed += 1; };
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""

SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


def what_is_missing() -> str | None:
    """What these tests need and is not there. Where a change is decided upon, that is a failure and no excuse."""
    if os.environ.get("CI") == "true":
        return None
    if not BROWSER.exists():
        return "there is no chromium (Debian: chromium)"
    return None if find_spec("playwright") else "there is no playwright (pip: playwright)"


def need_browser() -> None:
    """Skip the module that calls this where something is missing; one line tells of all of them."""
    if reason := what_is_missing():
        # Who changes something else need not install a browser; with CI=true this has failed before.
        pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The browser, one for all tests of a module. While it is there, nobody else in this thread can use asyncio."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield browser
        browser.close()


class Looker:
    """Somebody who looks at the dashboard."""

    def __init__(self, page: Any, base: str) -> None:
        self.page = page
        self.base = base
        self.foreign: list[str] = []  # requests that went elsewhere
        self.errors: list[str] = []
        page.on("request", lambda request: self._asked(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.base}/", "data:", "blob:")):
            self.foreign.append(url)

    def open(self, link: str = "#/", heading: str | None = None) -> None:
        """Open a page anew, and wait for its heading."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.base}/ui{link}")
        if heading is not None:
            self.sees(heading)

    def sees(self, heading: str) -> None:
        """Wait for the heading of a page."""
        self.page.get_by_role("heading", level=1, name=re.compile(re.escape(heading))).wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def shows(self, text: str) -> None:
        """Wait until a text stands on the page."""
        self.page.get_by_text(text).first.wait_for()

    def confirm(self, preview: str, verb: str) -> None:
        """Say yes in the dialog, which has to show first what it will touch."""
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(preview).wait_for()
        dialog.get_by_role("button", name=verb, exact=True).click()
        dialog.wait_for(state="detached")

    def accessibility(self) -> list[str]:
        """What axe finds serious or critical."""
        self.page.evaluate(AXE)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']} ({each['impact']}): {[node['html'][:150] for node in each['nodes'][:3]]}"
            for each in found["violations"]
            if each["impact"] in {"serious", "critical"}
        ]

    def check(self) -> None:
        """What must never be."""
        assert self.errors == []
        assert self.foreign == []
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("window.executed") == 0


@contextmanager
def looking(
    browser: Any, base: str, *, size: str = "desk", scheme: str = "light", zone: str | None = None
) -> Iterator[Looker]:
    """Somebody who looks at a server; at the end nothing may have happened that must not."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, timezone_id=zone)
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    context.add_init_script(WATCH)
    looker = Looker(context.new_page(), base)
    try:
        yield looker
        looker.check()
    finally:
        context.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def looker(browser: Any, server: Server) -> Iterator[Looker]:
    with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
        yield looker
