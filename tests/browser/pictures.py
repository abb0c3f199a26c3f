"""Takes the pictures of web/README.md: an hour of work on a real server whose clocks are moved on, in light and dark.

    PYTHONPATH=. python tests/browser/pictures.py

They have few colours, so that they stay small.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import kill
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser.conftest import BROWSER, FLAGS, Looker, looking
from tests.browser.jobs import asking, dequeue, end, enqueue
from tests.process.movable import MOVED
from tests.process.server import ROOT, Server, running_server

PICTURES = ROOT / "web/screenshots"
COLOURS = 256

HOUR_SECONDS = 3_600
STEP_SECONDS = 10
STEPS = HOUR_SECONDS // STEP_SECONDS


class Work(NamedTuple):
    """What is done in a queue: jobs of these types, so many a step, and so many of a hundred fail."""

    types: tuple[str, ...]
    arrive: float
    done: int  # at most so many a step, by so many workers
    workers: int
    failing: int = 0
    long: int = 0  # so many of a hundred take until a later step
    lost: int = 0  # and of these, so many of a hundred are never heard of again


WORK = {
    "webhooks": Work(("deliver",), 21.0, 24, 4, failing=9, long=6, lost=40),
    "emails": Work(("welcome", "invoice", "reset-password"), 12.0, 30, 3, failing=1),
    "images": Work(("resize", "thumbnail"), 4.0, 5, 2, failing=2, long=60),
    "search-index": Work(("update",), 8.0, 40, 2),
    "tenant:acme:sync": Work(("pull",), 1.0, 4, 1, failing=12, long=30),
    "tenant:blue:sync": Work(("pull",), 0.8, 4, 1, long=20),
    "billing": Work(("charge",), 0.6, 4, 1, failing=3),
}

ERRORS: tuple[dict[str, Any], ...] = (
    {"error": {"type": "Timeout", "message": "no answer from hooks.example.com within 10 s"}},
    {"error": {"type": "BadStatus", "message": "503 Service Unavailable"}},
    {"error": {"type": "BadStatus", "message": "410 Gone"}, "retry": False},
)


class Hour:
    """An hour of work, step by step; the server's clocks are moved on after each."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.random = Random(17)  # noqa: S311 - the same pictures each time
        self.held: list[tuple[int, dict[str, Any]]] = []  # jobs that take until a step
        for name, policy in (
            ("webhooks", {"max_attempts": 4, "retry": {"base_seconds": 20}, "lease_seconds": 90}),
            ("billing", {"in_progress_max": 1, "max_attempts": 10}),
        ):
            server.request("PUT", f"/v1/queues/{name}", policy)

    def work(self, steps: int = STEPS, *, moves: bool = True) -> None:
        for step in range(steps):
            for name, work in WORK.items():
                self._arrive(name, work, step)
                self._work(name, work, step)
            self.held, due = (
                [each for each in self.held if each[0] > step],
                [each for each in self.held if each[0] <= step],
            )
            for _, job in due:
                self._end(job, WORK[job["queue"]])
            if not moves:
                continue
            since = len(self.server.log)
            kill(self.server.pid, signal.SIGUSR1)
            self.server.wait_for_line(lambda line: line == MOVED.strip(), since=since)

    def _arrive(self, name: str, work: Work, step: int) -> None:
        wave = 1.6 if (step // 40) % 3 == 1 else 0.8
        count = int(self.random.gauss(work.arrive * wave, work.arrive * 0.3) + self.random.random())
        jobs = [{"type": self.random.choice(work.types), "payload": self._payload(name, n)} for n in range(count)]
        if jobs:
            enqueue(self.server, *jobs, queue=name)

    def _payload(self, name: str, n: int) -> dict[str, Any]:
        if name == "webhooks":
            return {
                "url": "https://hooks.example.com/orders",
                "event": "order.paid",
                "order": 480_000 + n,
                "attempt_body": None,
            }
        return {"tenant": self.random.choice(("acme", "blue")), "number": n}

    def _work(self, name: str, work: Work, step: int) -> None:
        consumer = f"{name.partition(':')[0]}-{self.random.randint(1, work.workers)}"
        for job in dequeue(self.server, work.done, name, consumer):
            if self.random.randrange(100) < work.long:
                if self.random.randrange(100) < work.lost:
                    continue
                self.held.append((step + self.random.randint(1, 6), job))
            else:
                self._end(job, work)

    def _end(self, job: dict[str, Any], work: Work) -> None:
        if self.random.randrange(100) < work.failing:
            end(self.server, job, "fail", **self.random.choice(ERRORS))
        else:
            end(self.server, job, result={"milliseconds": self.random.randint(20, 900)})

    def furnish(self) -> None:
        """What there is beside it at the end: a queue that is paused, jobs for later, and one that nobody asks for."""
        enqueue(self.server, *[{"type": "month"}] * 12, queue="reports")
        self.server.request("POST", "/v1/queues/reports/pause")
        enqueue(self.server, *[{"type": "clean-up", "delay_seconds": 900 * n} for n in range(1, 9)], queue="nightly")
        enqueue(self.server, *[{"type": "rebuild"}] * 3, queue="nightly")


@contextmanager
def an_hour_ago(data: Path) -> Iterator[Server]:
    """A server that believes that it is an hour ago, until it is moved on."""
    command = (sys.executable, "tests/process/movable.py")
    clocks = {
        "CLOCK_AHEAD_SECONDS": str(-HOUR_SECONDS),
        "CLOCK_STEP_SECONDS": str(STEP_SECONDS),
        "PYTHONPATH": str(ROOT),
    }
    flags = ("--bind", "127.0.0.1:0", "--data", str(data))
    with Server(*flags, command=command, environment=clocks) as server:
        server.wait_ready()
        yield server
        server.terminate()
        server.wait(seconds=30)


def take(looker: Looker, name: str, scheme: str) -> None:
    """A picture of what is shown."""
    sleep(1.2)  # what moves has come to rest
    path = PICTURES / f"{name}-{scheme}.png"
    looker.page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


def job_to_show(server: Server) -> int:
    """A job that has failed, and waits to be tried again, or is dead."""
    path = "/v1/queues/webhooks/jobs?state=scheduled,dead&order=newest&limit=100"
    jobs: list[dict[str, Any]] = server.request("GET", path).body["jobs"]
    return int(max(jobs, key=lambda job: job["attempts"])["id"])


def main() -> None:
    """Make the hour, and take the pictures."""
    with TemporaryDirectory() as folder, ExitStack() as stack, an_hour_ago(Path(folder) / "data") as server:
        hour = Hour(server)
        hour.work()
        hour.furnish()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
            for scheme in ("light", "dark"):
                with looking(browser, f"http://127.0.0.1:{server.port}", scheme=scheme) as looker:
                    show(looker, server, scheme)
            with running_server("--data", f"{folder}/other") as plain:
                Hour(plain).work(steps=40, moves=False)
                for scheme in ("light", "dark"):
                    with looking(browser, f"http://127.0.0.1:{plain.port}", scheme=scheme) as looker:
                        for name in WORK:  # who waits for work
                            stack.enter_context(asking(plain, {"wait_seconds": 20}, name))
                        looker.open("#/health", "Health")
                        take(looker, "health", scheme)
            browser.close()


def show(looker: Looker, server: Server, scheme: str) -> None:
    """Each page, and a picture of it; the health is that of another server, whose clocks were never moved."""
    looker.open("#/", "Queues")
    looker.page.get_by_text("Live", exact=True).wait_for()
    take(looker, "overview", scheme)
    looker.open("#/queues/webhooks", "webhooks")
    take(looker, "queue", scheme)
    looker.button("Edit…").click()
    looker.page.get_by_label("In progress at most").fill("8")
    looker.page.get_by_label("Longest run").fill("90")
    take(looker, "policy", scheme)
    looker.open("#/queues/webhooks/jobs?state=dead,scheduled,in_progress&error=Gone", "Jobs of webhooks")
    for box in looker.page.get_by_role("checkbox", name="Select job").all()[:3]:
        box.check()
    take(looker, "jobs", scheme)
    looker.open(f"#/queues/webhooks/jobs/{job_to_show(server)}", "Job")
    take(looker, "job", scheme)


if __name__ == "__main__":
    main()
