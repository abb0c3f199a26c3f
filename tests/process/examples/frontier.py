"""Crawls a site: each page is a job, and enqueues the pages that it links to.

python frontier.py http://127.0.0.1:8000/   # begins a crawl
queue-actor work frontier:app               # does it; start as many as you like
"""

import sys
import urllib.request
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit
from uuid import uuid4

import msgspec

from queue_actor.client import Client
from queue_actor.worker import App

QUEUE = "frontier"
app = App(queue=QUEUE)
client = Client()


class Page(msgspec.Struct):
    crawl: str
    url: str


class Links(HTMLParser):
    """The links of a page, without what is behind their #."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.urls: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (target := dict(attrs).get("href")):
            self.urls.add(urldefrag(urljoin(self.base, target)).url)


def discover(page: Page) -> None:
    """Add a page to the frontier; it has one job, however often it is found within a day."""
    client.enqueue(QUEUE, "visit", page, idempotency_key=f"{page.crawl} {page.url}")


@app.job("visit")
def visit(page: Page) -> dict[str, int]:
    with urllib.request.urlopen(page.url, timeout=10) as answer:
        content = answer.read().decode()
    links = Links(page.url)
    links.feed(content)
    own = sorted(url for url in links.urls if urlsplit(url).netloc == urlsplit(page.url).netloc)
    for url in own:
        discover(Page(page.crawl, url))
    return {"characters": len(content), "links": len(own)}


if __name__ == "__main__":
    discover(Page(uuid4().hex, sys.argv[1]))
    client.close()
