"""A server that exports its spans by OTLP, and a collector that answers, or does not. Needs the extra `otel`."""

import importlib.util
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.process.server import Server

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("opentelemetry.exporter") is None, reason="needs the extra otel"),
]

SECONDS = 20.0


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]], threading.Event]]:
    """Its address, the path and body of each post, and the event that there is one."""
    posts: list[tuple[str, bytes]] = []
    posted = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            posted.set()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posts, posted
        finally:
            server.shutdown()
            thread.join()


def exporting(address: str) -> Server:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "100"
    return Server("--bind", "127.0.0.1:0", "--trace", "otlp", environment=environment)


def test_spans_are_posted_to_the_collector_that_the_environment_names() -> None:
    with collector() as (address, posts, posted), exporting(address) as server:
        server.wait_ready()
        assert server.request("POST", "/jobs/enqueue", {"Type": "a"}).status == 200
        assert posted.wait(SECONDS)
        server.terminate()
        assert server.wait(seconds=5) == 0
        path, body = posts[0]
        assert path == "/v1/traces"
        for text in (b"enqueue default", b"queue-actor", b"messaging.operation.type"):
            assert text in body


def test_a_collector_that_never_answers_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with exporting(address) as server:
            server.wait_ready()
            for _ in range(20):
                assert server.request("POST", "/jobs/enqueue", {"Type": "a"}).status == 200
            server.terminate()
            assert server.wait(seconds=5) == 0
