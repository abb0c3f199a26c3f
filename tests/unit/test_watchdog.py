"""web/watchdog.py: a loop that stands still is told of once, with the place, and systemd hears of one that moves."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from web.watchdog import FRAMES_MAX, LOOK_SECONDS, Supervisor, Watchdog, stack_of, watchdog

PATIENCE_SECONDS = 10.0
"""Of tests that wait for a thread."""


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A watchdog, its clock, and a loop that the test plays."""

    def __init__(self, supervisor: Supervisor | None = None, stall_seconds: float = 5.0) -> None:
        self.clock = Hand()
        self.dog = Watchdog(stall_seconds, supervisor or Supervisor(), thread=threading.get_ident(), clock=self.clock)

    def moves(self, seconds: float) -> None:
        """The loop feeds the dog, and the thread looks."""
        self._pass(seconds, moving=True)

    def stands(self, seconds: float) -> None:
        """The thread looks at a loop that feeds nobody."""
        self._pass(seconds, moving=False)

    def _pass(self, seconds: float, *, moving: bool) -> None:
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.clock.now += LOOK_SECONDS
            if moving:
                self.dog.feed()
            self.dog.look()


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, float]]:
    return [
        (record.getMessage(), record.levelno, round(vars(record)["facts"]["seconds"], 1)) for record in caplog.records
    ]


# --- the log


def test_a_loop_that_moves_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.moves(60)
    world.stands(4.8)
    world.moves(60)
    assert told(caplog) == []


def test_a_loop_that_stands_still_is_told_of_once_and_once_more_when_it_moves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.moves(1)
    world.stands(60)
    assert told(caplog) == [("loop_stalled", logging.ERROR, 5.0)]
    world.moves(60)
    assert told(caplog)[1:] == [("loop_resumed", logging.WARNING, 60.2)]
    world.stands(5.2)
    assert [event for event, _, _ in told(caplog)] == ["loop_stalled", "loop_resumed", "loop_stalled"]


def test_the_line_has_the_stack_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    World().stands(6)
    stack = vars(caplog.records[0])["facts"]["stack"]
    assert any("test_watchdog.py" in row and row.endswith("_pass") for row in stack)
    assert stack[-1].endswith(" stack_of")  # here it is the thread itself that looks


def test_a_process_that_was_stopped_is_no_stalled_loop(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.moves(1)
    world.clock.now += 3_600
    world.dog.look()
    world.stands(4.8)
    world.moves(60)
    assert told(caplog) == [("process_paused", logging.WARNING, 3_600.0)]


def test_without_stall_seconds_the_log_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World(stall_seconds=0)
    world.stands(60)
    world.moves(1)
    assert told(caplog) == []


def test_a_deep_stack_is_cut_at_its_outer_end() -> None:
    def deeper(times: int) -> list[str]:
        return deeper(times - 1) if times else stack_of(threading.get_ident())

    stack = deeper(100)
    assert len(stack) == FRAMES_MAX
    assert stack[-2].endswith(" deeper")


def test_a_thread_that_has_ended_is_nowhere() -> None:
    assert stack_of(-1) == []


async def test_a_loop_that_a_handler_blocks_is_seen_from_outside_and_named(caplog: pytest.LogCaptureFixture) -> None:
    seen = threading.Event()

    class Wake(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "loop_stalled":
                seen.set()

    logger, wake = logging.getLogger("web"), Wake()
    logger.addHandler(wake)
    try:
        async with watchdog(0.5, Supervisor()):
            await trio.lowlevel.checkpoint()
            assert seen.wait(PATIENCE_SECONDS)  # the loop stands in this line
    finally:
        logger.removeHandler(wake)
    (line,) = [record for record in caplog.records if record.getMessage() == "loop_stalled"]
    assert any("test_a_loop_that_a_handler_blocks" in row for row in vars(line)["facts"]["stack"])
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


async def test_the_thread_ends_with_the_block_whatever_ends_it() -> None:
    with trio.CancelScope() as scope:
        async with watchdog(5.0, Supervisor()):
            assert [thread for thread in threading.enumerate() if thread.name == "watchdog"]
            scope.cancel()
            await trio.sleep_forever()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


# --- systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket such as systemd's, and what NOTIFY_SOCKET says of it."""
    name = f"@queue-actor-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        try:
            listener.bind(name.replace("@", "\0", 1))
        except OSError:
            pytest.skip("only Linux has abstract sockets")
        listener.setblocking(False)
        yield listener, name


def heard(listener: socket.socket) -> list[str]:
    """What came since the last time."""
    states = []
    try:
        while True:
            states.append(listener.recv(1_000).decode())
    except BlockingIOError:
        return states


def test_states_are_told_to_the_socket_that_the_environment_names(systemd: tuple[socket.socket, str]) -> None:
    listener, name = systemd
    supervisor = Supervisor.of({"NOTIFY_SOCKET": name})
    supervisor.tell("READY=1")
    supervisor.tell("STOPPING=1")
    supervisor.close()
    assert heard(listener) == ["READY=1", "STOPPING=1"]
    assert supervisor.watchdog_seconds is None


def test_systemd_is_told_that_the_loop_moves_for_as_long_as_it_does(systemd: tuple[socket.socket, str]) -> None:
    listener, name = systemd
    supervisor = Supervisor.of({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    world = World(supervisor, stall_seconds=0)
    world.moves(60)
    assert 7 <= len(heard(listener)) <= 8  # four times within its patience
    world.stands(15)
    heard(listener)
    world.stands(60)
    assert heard(listener) == []
    world.moves(5)
    assert heard(listener) == ["WATCHDOG=1"]
    supervisor.close()


def test_nobody_is_told_where_there_is_nobody(tmp_path: Path) -> None:
    gone = Supervisor.of({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "30000000"})
    gone.tell("READY=1")
    gone.close()
    nobody = Supervisor.of({})
    nobody.tell("READY=1")
    nobody.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_is_read_from_the_environment(environment: dict[str, str], seconds: Any) -> None:
    supervisor = Supervisor.of({"NOTIFY_SOCKET": "/run/nobody", **environment})
    supervisor.close()
    assert supervisor.watchdog_seconds == seconds
    assert Supervisor.of({"NOTIFY_SOCKET": "vsock:1", **environment}).watchdog_seconds is None
