"""How long it takes from an enqueue that is answered until the job is in the hand of who waited for it, over HTTP."""

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tests.benchmarks.load import started
from tests.benchmarks.peer_clients import Http
from tests.benchmarks.results import Results, parser, quantile, show, spread

WAIT_SECONDS = 20
PAUSE_SECONDS = 0.003
"""From a job to the next: long enough that whoever waits for one waits again."""


class Wakeup(NamedTuple):
    """Milliseconds: of a plain request, and of wake-ups from the answer to the enqueue and from its sending."""

    plain: float
    plain_p99: float
    answered: float
    answered_p99: float
    sent: float


class Waiter:
    """A worker on a connection of its own, which waits for a job, concludes it, and waits for the next."""

    def __init__(self, port: int, queue: str) -> None:
        self._http = Http(port)
        self._queue = queue
        self.got: list[float] = []
        self.came = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        path = f"/v1/queues/{self._queue}"
        try:
            while True:
                _, body = self._http.ask(f"{path}/dequeue", json.dumps({"wait_seconds": WAIT_SECONDS}).encode())
                at = time.perf_counter()
                jobs = json.loads(body)["jobs"]
                if not jobs:
                    return
                self.got.append(at)
                self.came.release()
                claims = [{"id": job["id"], "token": job["lease"]["token"]} for job in jobs]
                self._http.ask(f"{path}/conclude", json.dumps({"jobs": claims}).encode())
        except ConnectionError:
            return  # it was ended

    def end(self) -> None:
        """Let the worker go home."""
        self._http.hang_up()
        self.thread.join()
        self._http.close()


def measure(port: int, queue: str, count: int) -> Wakeup:
    """Enqueues so many jobs for one who waits, with a plain request after each."""
    producer, waiter = Http(port), Waiter(port, queue)
    path, body = f"/v1/queues/{queue}/enqueue", b'{"jobs":[{"type":"resize","payload":{"width":1280}}]}'
    plain, answered, sent = [], [], []
    for number in range(count):
        time.sleep(PAUSE_SECONDS)  # the worker waits again by then
        # Another queue, where nobody waits: an enqueue like the other, and nothing else.
        before = time.perf_counter()
        producer.ask("/v1/queues/elsewhere/enqueue", body)
        plain.append(time.perf_counter() - before)
        before = time.perf_counter()
        producer.ask(path, body)
        after = time.perf_counter()
        if not waiter.came.acquire(timeout=WAIT_SECONDS):
            raise RuntimeError("nobody was woken up")
        # It may be in the worker's hand before the producer has his answer.
        answered.append(max(0.0, waiter.got[number] - after))
        sent.append(waiter.got[number] - before)
    producer.close()
    waiter.end()
    figures = (median(plain), quantile(sorted(plain), 0.99), median(answered), quantile(sorted(answered), 0.99))
    return Wakeup(*(seconds * 1e3 for seconds in (*figures, median(sent))))


def main(words: Sequence[str] | None = None) -> None:
    """Measures."""
    arguments = parser(__doc__).parse_args(words)
    rounds, count = (1, 10) if arguments.smoke else (3, 200) if arguments.quick else (7, 1_000)
    others = (0,) if arguments.smoke else (0, 500)
    results = Results("wakeup", arguments)
    rows = []
    seen: dict[int, list[Wakeup]] = {}
    command = [sys.executable, "-m", "tests.benchmarks.http", "--serve"]
    for waiting in others:
        with started(command) as (_, port):
            idle = [park(port) for _ in range(waiting)]
            seen[waiting] = [measure(port, f"images-{number}", count) for number in range(rounds)]
            for one in idle:
                one.close()
    for waiting, wakeups in seen.items():
        plain, plain_p99, answered, answered_p99, sent = (spread(column) for column in zip(*wakeups, strict=True))
        ratio = spread(one.answered / one.plain for one in wakeups)
        tails = f"{show(plain_p99.median)} / {show(answered_p99.median)}"
        rows.append([waiting, plain, answered, ratio, sent, tails])
    head = [
        "others who wait",
        "plain enqueue ms",
        "enqueue answered to job in hand ms",
        "ratio of the two",
    ]
    results.table(
        "wake-up",
        [*head, "enqueue sent to job in hand ms", "p99 of the first two ms"],
        rows,
        about=f"A worker waits with a long poll; medians of {rounds} rounds of {count} jobs, one after the other. The "
        "plain request is an enqueue to a queue where nobody waits.",
    )
    bars: dict[str, dict[str, float]] = {"plain enqueue": {}, "enqueue answered to job in hand": {}}
    for waiting, wakeups in seen.items():
        for label, values in zip(
            bars, ([one.plain for one in wakeups], [one.answered for one in wakeups]), strict=True
        ):
            bars[label][f"{waiting} others who wait"] = max(0.001, spread(values).median)
    results.bars("wakeup", "A long poll is woken up", "milliseconds", bars)
    results.rounds("wake-up", {str(waiting): wakeups for waiting, wakeups in seen.items()})
    results.end()


def park(port: int) -> socket.socket:
    """Somebody who waits for a job that does not come."""
    connection = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"wait_seconds": WAIT_SECONDS}).encode()
    head = f"POST /v1/queues/never/dequeue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


if __name__ == "__main__":
    main()
