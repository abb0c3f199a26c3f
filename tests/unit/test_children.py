"""Child processes, from the outside and from the inside."""

import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from queue_actor.child import ChildProcess, run_child
from queue_actor.children import Child, Children, in_child
from queue_actor.counters import Counters
from queue_actor.frames import FROM_CHILD, TO_CHILD, Frames, FromChild, Progress, Stop, Task, ToChild, to_bytes
from queue_actor.handlers import Done, Failed, Handler, Outcome, Released
from queue_actor.jobs import JobError
from tests.unit import child_handlers
from tests.unit.test_handlers import a_job

PATIENCE_SECONDS = 60.0
NAMES = ("who", "die", "raise_it", "length", "wait", "ignore")
HANDLERS = {name: Handler(name, getattr(child_handlers, name), mode="processes") for name in NAMES}


class Bench:
    """Children, and what was reported of their jobs."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.children = Children(HANDLERS, self.counters)
        self.reported: list[bytes] = []
        self.child: Child | None = None

    async def do(self, handler: str, payload: Any = None) -> Outcome:
        def have(child: Child) -> None:
            self.child = child

        return await self.children.perform(handler, a_job(payload), self.reported.append, have)

    @asynccontextmanager
    async def doing(self, handler: str, path: Path) -> AsyncIterator[list[Outcome]]:
        """While a child is at it; the list has its outcome after the block."""
        outcomes: list[Outcome] = []

        async def do() -> None:
            outcomes.append(await self.do(handler, str(path)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(do)
            await eventually(lambda: path.exists() and path.read_text() != "")
            yield outcomes


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    with trio.fail_after(PATIENCE_SECONDS), bench.children.until_the_end():
        yield bench


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await trio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


async def test_a_child_does_one_job_after_the_other_and_one_that_dies_is_followed_by_another(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_actor.worker")
    first = await bench.do("who")
    assert first == await bench.do("who")
    assert bench.reported == [b'{"attempt":1}'] * 2
    assert bench.counters.children_started == 1

    failed = await bench.do("raise_it", "no disk")
    assert isinstance(failed, Failed)
    assert failed.error == JobError("ValueError", "no disk")
    assert "child_handlers.py" in failed.traceback

    died = await bench.do("die", 7)
    assert died == Failed(JobError("ChildDied", "the process that did it ended with exit code 7"))
    second = await bench.do("who")
    assert isinstance(second, Done)
    assert second != first
    assert (bench.counters.children_started, bench.counters.children_died) == (2, 1)

    # One that dies while it has nothing to do is no job's fault.
    assert bench.child is not None
    os.kill(bench.child.pid, signal.SIGKILL)
    await eventually(lambda: bench.child is not None and not bench.child.is_there)
    assert isinstance(await bench.do("who"), Done)
    assert (bench.counters.children_started, bench.counters.children_died) == (3, 2)

    # Payloads and results are larger than what fits into a socket.
    long = "x" * 1_000_000
    done = await bench.do("length", long)
    assert isinstance(done, Done)
    assert done.result is not None
    assert len(done.result) > len(long)
    assert [record.message for record in caplog.records].count("child_died") == 2


async def test_a_child_is_told_to_stop_or_is_killed_with_all_that_it_has_started(bench: Bench, tmp_path: Path) -> None:
    async with bench.doing("wait", tmp_path / "wait") as outcomes:
        assert bench.child is not None
        bench.child.stop("cancelled")
    assert outcomes == [Released()]
    assert bench.counters.children_died == 0

    async with bench.doing("ignore", tmp_path / "ignore") as outcomes:
        started = int((tmp_path / "ignore").read_text())
        bench.child.stop("cancelled")
        assert not is_gone(started)
        bench.child.kill()
        bench.child.kill()
    assert outcomes == [Failed(JobError("ChildDied", "the process that did it ended with exit code -9"))]
    await eventually(lambda: is_gone(started))


async def test_children_end_with_their_worker(tmp_path: Path) -> None:
    bench = Bench()
    with trio.fail_after(PATIENCE_SECONDS), bench.children.until_the_end():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.do, "ignore", str(tmp_path / "pid"))
            await eventually((tmp_path / "pid").exists)
            assert bench.child is not None
            pid = bench.child.pid
            nursery.cancel_scope.cancel()
    assert is_gone(pid)


async def test_a_child_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(bench.children, "_context", type("Context", (), {"Process": fail}))
    with pytest.raises(OSError, match="no more processes"), bench.children.until_the_end():
        await bench.do("who")


def test_a_handler_that_a_child_could_not_find_is_refused() -> None:
    handler = Handler("t", lambda: None, mode="processes")
    with pytest.raises(TypeError, match="handler of t cannot run in a process: a child has to find it by its name"):
        Children({"t": handler}, Counters())


def test_this_is_no_child() -> None:
    assert not in_child()


# --- from the inside


class Parent:
    """The worker's end of a connection, and a child that runs in a thread of this process."""

    def __init__(self) -> None:
        self.connection, self.theirs = socket.socketpair()
        self.ended = threading.Event()
        self._frames = Frames(FROM_CHILD)

    def send(self, *frames: ToChild) -> None:
        self.connection.sendall(b"".join(to_bytes(frame) for frame in frames))

    def receive(self) -> FromChild:
        while not (frames := list(self._frames.feed(self.connection.recv(1)))):
            pass
        (frame,) = frames
        return frame

    def close(self) -> None:
        self.connection.close()


def task(handler: str, payload: object = None) -> Task:
    return Task(handler, msgspec.json.encode(a_job(payload)))


def served_by(parent: Parent) -> threading.Thread:
    thread = threading.Thread(target=ChildProcess(parent.theirs, HANDLERS, parent.ended.set).serve)
    thread.start()
    return thread


def test_a_child_does_what_it_is_sent_until_the_worker_is_gone(tmp_path: Path) -> None:
    parent = Parent()
    thread = served_by(parent)
    parent.send(Stop("cancelled"))  # for a job that has ended
    parent.send(task("who"))
    assert parent.receive() == Progress(b'{"attempt":1}')
    assert parent.receive() == Done(str(os.getpid()).encode())
    parent.send(task("wait", str(tmp_path / "pid")))
    while not (tmp_path / "pid").exists():
        pass
    parent.send(Stop("cancelled"))
    assert parent.receive() == Released()
    parent.close()
    thread.join(PATIENCE_SECONDS)
    assert parent.ended.is_set()
    parent.theirs.close()


def test_a_child_that_has_something_to_say_to_nobody_ends() -> None:
    parent = Parent()
    parent.send(task("who"))
    parent.connection.shutdown(socket.SHUT_WR)
    parent.close()
    thread = served_by(parent)
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert parent.ended.is_set()
    parent.theirs.close()


def test_a_child_leads_a_group_and_does_not_hear_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent()
    done: list[object] = []
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(os, "setsid", lambda: done.append("setsid"))
    monkeypatch.setattr(os, "killpg", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    parent.close()
    run_child(parent.theirs, HANDLERS)
    assert set(handlers) == {signal.SIGINT, signal.SIGTERM}
    assert [handler(signal.SIGINT, None) for handler in handlers.values()] == [None, None]
    while len(done) < 2:  # the listener ends by itself
        threading.Event().wait(0.001)
    assert done == ["setsid", (0, signal.SIGKILL)]
    parent.theirs.close()


def test_frames_are_put_together_however_they_come() -> None:
    sent: list[FromChild] = [Progress(b"1"), Done(b"2"), Released(3.0), Failed(JobError("T", "m"))]
    data = b"".join(to_bytes(frame) for frame in sent)
    for size in (1, 3, 4, 7, len(data)):
        frames = Frames(FROM_CHILD)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert [frame for piece in pieces for frame in frames.feed(piece)] == sent


async def test_a_child_that_has_not_taken_its_job_yet_is_told_nothing_else() -> None:
    parent = Parent()
    parent.connection.setblocking(False)
    process: Any = type("Process", (), {"pid": os.getpid()})
    child = Child(process, parent.connection)
    outcomes: list[Outcome | None] = []

    async def perform() -> None:
        outcomes.append(await child.perform("t", a_job("x" * 3_000_000), lambda _progress: None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(perform)
        await trio.testing.wait_all_tasks_blocked()
        child.stop("cancelled")
        received: Frames[ToChild] = Frames(TO_CHILD)
        taken: list[ToChild] = []
        while not taken:
            taken += await trio.to_thread.run_sync(lambda: list(received.feed(parent.theirs.recv(1_000_000))))
        child.stop("lost")
        taken += received.feed(parent.theirs.recv(1_000))
        parent.theirs.sendall(to_bytes(Done()))
    assert [type(frame) for frame in taken] == [Task, Stop]
    assert outcomes == [Done()]
    parent.close()
    parent.theirs.close()
