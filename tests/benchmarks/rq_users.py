"""RQ as its users run it: a program that enqueues jobs, and processes that work them off; its server is Redis.

`python -m tests.benchmarks.rq_users PORT WORKER` serves the benchmark on the port after that of Redis, with a thread
for each connection. A line `JOBS PAYLOAD` enqueues so many jobs, and is answered by an empty line when the workers have
done with all of them, their bookkeeping in Redis included. A line `cpu` is answered by the seconds of CPU so far of the
workers, with those of the processes that they forked, and of this program. WORKER is a class of RQ's. All else is as
RQ has it: pickled arguments, log lines, results that are kept for 500 s. It runs in the environment that
scripts/peers.sh makes.
"""

import json
import os
import signal
import sys
from multiprocessing import get_context
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import rq  # type: ignore[import-not-found] # it is installed for this alone, by scripts/peers.sh
from redis import Redis  # type: ignore[import-not-found]

from tests.benchmarks.load import cpu_seconds

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

QUEUE = "images"
WORKERS = 16
"""As many as the other peers have connections: two would leave Redis idle, and cost it nearly twice as much a job."""

FUNCTION = "tests.benchmarks.rq_users.resize"
ID_BYTES = 36


def resize(**_payload: object) -> None:
    """What a job does: nothing, or its work would be measured."""


class Batch:
    """Jobs of which some are still to be done."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.done = Event()


waiting: dict[str, Batch] = {}
"""Who waits for a job, by its id. The thread that hears of the end of jobs is the only one that takes any out."""


def work(port: int, kind: str, told: int) -> None:
    """Be a worker, which writes the id of each job to a pipe when it has done with it."""

    class Telling(getattr(rq, kind)):  # type: ignore[misc] # RQ is not there when types are checked
        def execute_job(self, job: Any, queue: Any) -> None:
            super().execute_job(job, queue)
            os.write(told, job.id.encode())

    Telling([QUEUE], connection=Redis(port=port)).work()


def hear(ended: int) -> None:
    """Tells those who wait."""
    with os.fdopen(ended, "rb") as pipe:
        while id_ := pipe.read(ID_BYTES):
            batch = waiting.pop(id_.decode())
            batch.left -= 1
            if not batch.left:
                batch.done.set()


class Users(ThreadingTCPServer):
    """Takes the benchmark's connections."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.queue = rq.Queue(QUEUE, connection=Redis(port=port))
        self.workers: list[BaseProcess] = []
        super().__init__(("127.0.0.1", port + 1), User, bind_and_activate=False)


class User(StreamRequestHandler):
    """One connection of the benchmark's."""

    server: Users
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Does what each line asks for."""
        for line in self.rfile:
            if line == b"cpu\r\n":
                workers = sum(cpu_seconds(worker.pid or 0, children=True) for worker in self.server.workers)
                answer = f"{workers} {cpu_seconds(os.getpid())}"
            else:
                count, _, payload = line.partition(b" ")
                enqueue(self.server.queue, int(count), json.loads(payload))
                answer = ""
            self.wfile.write(answer.encode() + b"\r\n")


def enqueue(queue: Any, count: int, payload: dict[str, Any]) -> None:
    """Enqueues so many jobs, and waits for their end."""
    batch = Batch(count)
    ids = [str(uuid4()) for _ in range(count)]  # as RQ makes them itself, but known before a worker can be done
    waiting.update(dict.fromkeys(ids, batch))
    if count == 1:
        queue.enqueue(FUNCTION, kwargs=payload, job_id=ids[0])
    else:
        queue.enqueue_many([queue.prepare_data(FUNCTION, kwargs=payload, job_id=id_) for id_ in ids])
    batch.done.wait()


def serve(port: int, kind: str) -> None:
    """Serves."""
    ended, told = os.pipe()
    fork = get_context("fork")  # before there are threads
    with Users(port) as server:
        server.server_bind()  # before a worker's connection to Redis may get this port for its own end
        server.workers += [fork.Process(target=work, args=(port, kind, told)) for _ in range(WORKERS)]
        for worker in server.workers:
            worker.start()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        Thread(target=hear, args=(ended,), daemon=True).start()
        try:
            server.server_activate()
            server.serve_forever()
        finally:
            for worker in server.workers:
                worker.terminate()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
