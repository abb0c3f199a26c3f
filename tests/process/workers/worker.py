#!/usr/bin/env python3
"""A worker on Python's standard library alone: each job names a file, whose SHA-256 is its result.

    worker.py http://127.0.0.1:8080 files

Copy it, and put your own work into `work`. SIGTERM lets it finish the job in hand, and end. ACCESS_TOKEN is shown.
"""

import json
import os
import random
import signal
import sys
import time
import uuid
from hashlib import sha256
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

HOST, QUEUE = urlsplit(sys.argv[1]).netloc, sys.argv[2]
SHOWN = {"Authorization": f"Bearer {token}"} if (token := os.environ.get("ACCESS_TOKEN")) else {}
CONSUMER = os.environ.get("CONSUMER") or f"{os.uname().nodename}-{os.getpid()}"
LEASE_SECONDS = float(os.environ.get("LEASE_SECONDS", "30"))
WAIT_SECONDS, TIMEOUT_SECONDS = 5, 15  # of a poll, and of any request. None is cut short: its answer may bring a job
AGAIN = {408, 429, 500, 502, 503, 504}  # nothing was done, or nobody knows: the same request may be sent again
ending: list[int] = []  # the signals that came. An Event would take a lock, which a signal handler must not


def call(server: HTTPConnection, path: str, body: Any, *, tries_max: int = 10) -> tuple[int, Any]:
    """Send a request until it is answered: the status and the answer, or 0 after too many tries, in about a minute.

    It may be sent twice without harm: the token tells that it is the same, and of a dequeue the key does. Under it, one
    that is sent again gets the job of the answer that was lost.
    """
    headers = SHOWN | ({"Idempotency-Key": str(uuid.uuid4())} if path == "dequeue" else {})
    for tries in range(tries_max):
        pause = random.uniform(0, min(0.1 * 2**tries, 10))  # or all workers would return at the same moment
        try:
            server.request("POST", f"/v1/queues/{QUEUE}/{path}", json.dumps(body), headers)
            answer = server.getresponse()
            data = answer.read()
            if answer.status not in AGAIN:
                return answer.status, json.loads(data)
            pause = max(pause, float(answer.headers.get("Retry-After", "0")))
        except (OSError, HTTPException, ValueError):  # it broke, was too slow, or is something else than the server
            server.close()  # the next request opens it again
        if ending and path == "dequeue":
            break
        time.sleep(pause)  # before it asks again: a worker has nothing else to do
    return 0, {}


def work(payload: Any, stop: Event) -> Any:
    """The work itself: its result. What it raises is told to the server, which tries the job again later."""
    digest = sha256()
    with Path(payload).open("rb") as file:
        while not stop.is_set() and (block := file.read(1 << 20)):  # once it is set, nobody waits for the result
            digest.update(block)
    return {"sha256": digest.hexdigest()}


def beat(path: str, token: str, done: Event, stop: Event) -> None:
    """Extend the lease until the work is done, or is to stop: the lease is lost, or somebody has cancelled the job."""
    server = HTTPConnection(HOST, timeout=TIMEOUT_SECONDS)
    while not done.wait(LEASE_SECONDS / 3) and not stop.is_set():  # so one or two beats may get lost
        status, answer = call(server, f"{path}/extend", {"token": token}, tries_max=1)
        if status in {404, 409} or answer.get("cancel_requested"):
            stop.set()


def perform(server: HTTPConnection, job: Any) -> str:
    """Do a job: a word for what came of it."""
    path, token, done, stop = f"jobs/{job['id']}", job["lease"]["token"], Event(), Event()
    Thread(target=beat, args=(path, token, done, stop), daemon=True).start()
    try:
        verb, more = "conclude", {"result": work(job["payload"], stop)}
    except Exception as error:  # whatever it is, the job's history is where it belongs
        verb, more = "fail", {"error": {"type": type(error).__name__, "message": str(error)[:1000]}}
    done.set()
    if stop.is_set():
        verb, more = "release", {}
    status, answer = call(server, f"{path}/{verb}", {"token": token, **more})
    # `lease_lost`: it took too long, the job is somebody else's, and the result is dropped.
    return verb if status == 200 else answer.get("code", "unanswered")


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: ending.append(number))
poll = {"wait_seconds": WAIT_SECONDS, "lease_seconds": LEASE_SECONDS, "consumer": CONSUMER}
server = HTTPConnection(HOST, timeout=TIMEOUT_SECONDS)
while not ending:
    status, found = call(server, "dequeue", poll)
    if status not in {0, 200}:
        sys.exit(f"the server hands out no jobs: {found}")
    for job in found.get("jobs", ()):
        print(perform(server, job), job["id"], flush=True)
