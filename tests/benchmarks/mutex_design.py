"""The queue as it is mostly written in Python: Flask, a list, a `threading.Lock`, and threads that serve requests.

`python -m tests.benchmarks.mutex_design PORT` serves the classic routes, with leases and a scan for stale jobs in each
dequeue. It is here to be measured, and has nothing else that a queue needs.
"""

import sys
import time
from threading import Lock
from typing import Any

from flask import Flask, Response, jsonify, request
from waitress import serve  # type: ignore[import-untyped] # it is installed for this alone, by scripts/peers.sh

LEASE_SECONDS = 300.0

app = Flask("mutex")
lock = Lock()
jobs: dict[int, dict[str, Any]] = {}
waiting: list[int] = []
leased: dict[int, float] = {}


@app.post("/jobs/enqueue")
def enqueue() -> Response:
    """Adds a job."""
    body = request.get_json()
    with lock:
        id_ = len(jobs) + 1
        jobs[id_] = {"ID": id_, "Type": body["Type"], "Payload": body["Payload"], "Status": "QUEUED"}
        waiting.append(id_)
        return jsonify(jobs[id_])


@app.post("/jobs/dequeue")
def dequeue() -> tuple[Response, int]:
    """Hands the first job out, after those whose lease has run out were put back."""
    now = time.monotonic()
    with lock:
        for id_ in [id_ for id_, deadline in leased.items() if deadline < now]:
            del leased[id_]
            waiting.insert(0, id_)
        if not waiting:
            return jsonify(error="empty"), 404
        id_ = waiting.pop(0)
        leased[id_] = now + LEASE_SECONDS
        jobs[id_]["Status"] = "IN_PROGRESS"
        return jsonify(jobs[id_]), 200


@app.post("/jobs/<int:id_>/conclude")
def conclude(id_: int) -> tuple[Response, int]:
    """Ends a job."""
    with lock:
        if leased.pop(id_, None) is None:
            return jsonify(error="not in progress"), 409
        jobs[id_]["Status"] = "CONCLUDED"
        return jsonify(jobs[id_]), 200


if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16)
