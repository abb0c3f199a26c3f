"""A child process of a worker, from the inside: it does one job after the other, and may die of any.

It leads a session of its own, so that it is killed together with all that a handler has started, and so that a key
pressed in the worker's terminal does not reach it. Whether and when it ends is the worker's decision alone; without a
worker it ends at once, in the middle of a job, for nobody could tell the server what came of it.
"""

import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Final

import msgspec

from queue_actor.client_answers import Job
from queue_actor.frames import TO_CHILD, Frames, FromChild, Progress, Task, to_bytes
from queue_actor.handlers import Handler, RunningJob

RECEIVE_BYTES: Final = 65_536

_JOB = msgspec.json.Decoder(Job)


def run_child(connection: socket.socket, handlers: Mapping[str, Handler]) -> None:
    """What a child process runs: it never returns."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN: the programs that a handler starts would inherit that.
        signal.signal(number, lambda *_: None)
    connection.setblocking(True)
    ChildProcess(connection, handlers, lambda: os.killpg(0, signal.SIGKILL)).serve()


class ChildProcess:
    """Does the jobs that come over a connection, in the thread that calls `serve`."""

    def __init__(self, connection: socket.socket, handlers: Mapping[str, Handler], end: Callable[[], None]) -> None:
        """Nothing is done yet.

        Args:
            connection: To the worker.
            handlers: Those that run in processes, by the names that tasks have for them.
            end: How to end when the worker is gone.
        """
        self._connection = connection
        self._handlers = handlers
        self._end = end
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._running: RunningJob | None = None
        self._sending = Lock()  # a handler may report from threads of its own

    def serve(self) -> None:
        """Do jobs until the worker is gone."""
        Thread(target=self._listen, daemon=True).start()
        while (task := self._tasks.get()) is not None:
            job = _JOB.decode(task.job)
            self._running = RunningJob(job, lambda progress: self._send(Progress(progress)))
            self._send(self._handlers[task.handler].perform(job, self._running))

    def _listen(self) -> None:
        frames = Frames(TO_CHILD)
        with suppress(OSError):
            while data := self._connection.recv(RECEIVE_BYTES):
                for frame in frames.feed(data):
                    if isinstance(frame, Task):
                        self._tasks.put(frame)
                    elif self._running is not None:
                        self._running.stopping = frame.reason
        self._tasks.put(None)
        self._end()

    def _send(self, frame: FromChild) -> None:
        with self._sending, suppress(OSError):  # whoever listens sees that the worker is gone
            self._connection.sendall(to_bytes(frame))
