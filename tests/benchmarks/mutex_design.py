"""The queue as it is mostly written in Python: Flask, a list, a `threading.Lock`, and threads that serve requests.

`python -m tests.benchmarks.mutex_design PORT [JOBS]` serves the classic routes on the queue of `original.py`, with a
thread that searches for stale jobs once a second. It is here to be measured, and has nothing else that a queue needs.
With JOBS there are so many more in a queue of their own, all of them leased: SIGUSR1 ends these leases, and a POST to
`/bulk/purge` forgets whatever waits there then. It runs in the environment that scripts/peers.sh makes.
"""

import signal
import sys
import time
from threading import Lock, Thread

from flask import Flask, Response, jsonify, request
from waitress import serve  # type: ignore[import-untyped] # it is installed for this alone, by scripts/peers.sh

from tests.benchmarks.original import LEASE_SECONDS, SWEEP_SECONDS, Job, Queue, seconds

TOKEN = "Queue-Lease-Token"  # noqa: S105 - the name of a header
THREADS = 16

app = Flask("mutex")
lock = Lock()
jobs, bulk = Queue(), Queue()
bulk_shift_seconds = 0.0


def shown(job: Job, status: str) -> Response:
    """A job as it is answered."""
    return jsonify(ID=job.id, Type=job.type, Payload=job.payload.decode(), Status=status)


@app.post("/jobs/enqueue")
def enqueue() -> Response:
    """Adds a job."""
    body = request.get_json()
    with lock:
        return shown(jobs.enqueue(body["Type"], str(body["Payload"]).encode()), "QUEUED")


@app.post("/jobs/dequeue")
def dequeue() -> tuple[Response, int]:
    """Hands the first job out."""
    with lock:
        job = jobs.dequeue(seconds())
        if job is None:
            return jsonify(error="empty"), 404
        answer = shown(job, "IN_PROGRESS")
        answer.headers[TOKEN] = str(job.token)
        return answer, 200


@app.post("/jobs/<int:id_>/conclude")
def conclude(id_: int) -> tuple[Response, int]:
    """Ends a job."""
    with lock:
        job = jobs.conclude(id_, int(request.headers[TOKEN]), seconds())
        return (jsonify(error="lease_lost"), 409) if job is None else (shown(job, "CONCLUDED"), 200)


@app.post("/bulk/purge")
def purge() -> Response:
    """Forgets the many."""
    with lock:
        bulk.purge()
        return jsonify(purged=True)


def sweep() -> None:
    """Searches for stale jobs, again and again."""
    while True:
        time.sleep(SWEEP_SECONDS)  # the timer of the design that is measured
        with lock:
            jobs.sweep(seconds())
            bulk.sweep(seconds() + bulk_shift_seconds)


def end_leases(_number: int, _frame: object) -> None:
    """Lets the leases of the many end."""
    global bulk_shift_seconds  # noqa: PLW0603 - the whole program is one module
    bulk_shift_seconds = LEASE_SECONDS + 1


def serve_many(port: int, many: int) -> None:
    """Serves."""
    for _ in range(many):
        bulk.enqueue("benchmark", b"{}")
    while bulk.dequeue(seconds()) is not None:
        pass
    signal.signal(signal.SIGUSR1, end_leases)
    Thread(target=sweep, daemon=True).start()
    serve(app, host="127.0.0.1", port=port, threads=THREADS)


if __name__ == "__main__":
    serve_many(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
