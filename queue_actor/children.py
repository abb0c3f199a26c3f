"""The child processes of a worker, from the outside: started when they are needed, killed when a job is to stop.

A child has one job at a time. That it dies fails the job it has and nothing else; another takes its place. There is no
protocol to end one in good order, since a child is always ready to be killed: the job in its hands is the only thing
that can be lost, and whoever kills it knows what is to become of that.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from queue_actor.child import RECEIVE_BYTES, run_child
from queue_actor.client_answers import Job
from queue_actor.counters import Counters
from queue_actor.frames import FROM_CHILD, Frames, FromChild, Progress, Stop, Task, to_bytes
from queue_actor.handlers import Failed, Handler, Outcome, StopReason, job_error

logger = logging.getLogger("queue_actor.worker")

CHILD_NAME: Final = "queue-actor-child"
"""What the processes are called, for whoever wonders in whose life a module is imported."""


def in_child() -> bool:
    """Whether this process is a child of a worker, which has imported the worker's modules for their handlers."""
    return multiprocessing.current_process().name == CHILD_NAME


class Child:
    """A child process, and the connection to it."""

    def __init__(self, process: BaseProcess, connection: socket.socket) -> None:
        assert process.pid is not None  # noqa: S101 - for the type checker: it has been started
        self.pid = process.pid  # of the process, and of the group that it leads
        self._process = process
        self._connection = connection
        self._frames = Frames(FROM_CHILD)
        self._received: deque[FromChild] = deque()
        self._sending = False
        self._killed = False

    @property
    def is_there(self) -> bool:
        """Whether a child without a job is still alive."""
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True

    async def perform(self, handler: str, job: Job, report: Callable[[bytes], None]) -> Outcome | None:
        """Have a job done; None: the child has died of it, or was killed."""
        try:
            await self._send(Task(handler, msgspec.json.encode(job)))
            while isinstance(said := await self._receive(), Progress):
                report(said.progress)
        except OSError:
            return None
        return said

    def stop(self, reason: StopReason) -> None:
        """Tell the handler that it is to stop; a child that has not even taken its job yet does not come to know."""
        if not self._sending:
            with suppress(OSError):
                self._connection.send(to_bytes(Stop(reason)))

    def kill(self) -> None:
        """End it, and all that its handler has started and that has not left its group."""
        if self._killed:
            return
        self._killed = True
        with suppress(ProcessLookupError, PermissionError):  # it has not come so far as to lead a group, or is gone
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def bury(self) -> int:
        """Wait for the end of a child that was killed, in a thread; its exit code."""
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self._connection.close()
        assert code is not None  # noqa: S101 - for the type checker: it has ended
        return code

    async def _send(self, frame: Task) -> None:
        data = memoryview(to_bytes(frame))
        self._sending = True
        while data:
            try:
                data = data[self._connection.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self._connection)
        self._sending = False

    async def _receive(self) -> FromChild:
        """The next frame.

        Raises:
            OSError: The child is gone.
        """
        while not self._received:
            try:
                data = self._connection.recv(RECEIVE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._connection)
                continue
            if not data:
                raise ConnectionError
            self._received.extend(self._frames.feed(data))
        return self._received.popleft()


class Children:
    """The child processes of a worker: as many as there are jobs for, and no fewer than there once were."""

    def __init__(self, handlers: Mapping[str, Handler], counters: Counters) -> None:
        """None is started yet.

        Raises:
            TypeError: A handler cannot be found by its name, as it would have to be in another process.
        """
        for handler in handlers.values():
            try:
                pickle.dumps(handler)
            except Exception as error:
                raise TypeError(
                    f"the handler of {handler.type} cannot run in a process: a child has to find it by its name, "
                    f"so it must be a function at the top of a module ({error})"
                ) from error
        self._handlers = dict(handlers)
        self._counters = counters
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._context = multiprocessing.get_context("spawn")
        self._one_at_a_time = anyio.Lock()  # multiprocessing keeps its books without one

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Kill all of them after the block."""
        try:
            yield
        finally:
            for child in self._all:
                child.kill()
            for child in self._all:
                child.bury()
            self._all.clear()
            self._idle.clear()

    async def perform(
        self, handler: str, job: Job, report: Callable[[bytes], None], have: Callable[[Child], None]
    ) -> Outcome:
        """Have a job done by a child. `have` is called with the child when it is known.

        A child that dies has failed its job.
        """
        child = await self._have_one()
        have(child)
        outcome = await child.perform(handler, job, report)
        if outcome is not None:
            self._idle.append(child)
            return outcome
        code = await self._bury(child)
        return Failed(job_error("ChildDied", f"the process that did it ended with exit code {code}"))

    async def _have_one(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_there:
                return child
            await self._bury(child)
        return await self._start()

    async def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = self._context.Process(target=run_child, args=(theirs, self._handlers), name=CHILD_NAME)
            async with self._one_at_a_time:
                await anyio.to_thread.run_sync(process.start)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = Child(process, ours)
        self._all.add(child)
        self._counters.children_started += 1
        logger.info("child_started", extra={"facts": {"pid": child.pid}})
        return child

    async def _bury(self, child: Child) -> int:
        child.kill()
        async with self._one_at_a_time:
            code = await anyio.to_thread.run_sync(child.bury)
        self._all.discard(child)
        self._counters.children_died += 1
        logger.warning("child_died", extra={"facts": {"pid": child.pid, "exit_code": code}})
        return code
