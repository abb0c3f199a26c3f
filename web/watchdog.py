"""Notices when the event loop stands still, and tells the log where, and the supervisor of the process.

A loop that stands still serves nobody and cannot say so itself: a thread looks after it. The loop feeds the thread a
few times a second; for as long as it does, systemd (`Type=notify`, `WatchdogSec=`) is told that all is well.
"""

import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Self

import trio

FEED_SECONDS = 0.15
"""Between two signs of life of the loop."""

LOOK_SECONDS = 0.2
"""Between two looks of the thread."""

FRAMES_MAX = 40
"""Innermost frames that are told of where the loop stands."""

logger = logging.getLogger("web")


class Supervisor:
    """Who started the process and wants to hear of it: sd_notify(3), or nobody."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._socket = None if address is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if self._socket is not None:
            self._socket.setblocking(False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The one that the environment names. A watchdog that waits for another process is none of ours."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        seconds = int(microseconds) / 1e6 if ours and microseconds.isdecimal() else 0.0
        return cls(f"\0{address[1:]}" if address.startswith("@") else address, seconds or None)

    def tell(self, state: str) -> None:
        """Send one assignment, such as `READY=1`."""
        if self._socket is not None:
            with suppress(OSError):  # it does not listen: the server serves all the same
                self._socket.sendto(state.encode(), self._address or "")

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()


class Watchdog:
    """Remembers when the loop last moved. `look` is called by the thread, `feed` by the loop."""

    def __init__(
        self, stall_seconds: float, supervisor: Supervisor, *, thread: int, clock: Callable[[], float] = monotonic
    ) -> None:
        """Watch the loop that runs in the thread of this identity; without `stall_seconds` the log is told nothing."""
        self._stall_seconds = stall_seconds
        self._supervisor = supervisor
        self._thread = thread
        self._clock = clock
        self._fed_at = self._looked_at = self._told_at = clock()
        self._stalled_at: float | None = None  # when the loop last moved before it stood still

    def feed(self) -> None:
        """The loop moves."""
        self._fed_at = self._clock()

    async def keep_fed(self) -> None:
        """Feed it for as long as the loop moves."""
        while True:
            self.feed()
            await trio.sleep(FEED_SECONDS)

    def look(self) -> None:
        """See whether the loop has moved lately; tell log and supervisor."""
        now, fed_at = self._clock(), self._fed_at
        unseen_seconds, self._looked_at = now - self._looked_at, now
        if self._stall_seconds:
            self._look_for_stall(now, fed_at, unseen_seconds)
        patience = self._supervisor.watchdog_seconds
        if patience is not None and now - self._told_at >= patience / 4 and now - fed_at < patience / 2:
            self._told_at = now
            self._supervisor.tell("WATCHDOG=1")

    def _look_for_stall(self, now: float, fed_at: float, unseen_seconds: float) -> None:
        if self._stalled_at is not None:
            if fed_at > self._stalled_at:
                seconds = round(fed_at - self._stalled_at, 3)
                self._stalled_at = None
                logger.warning("loop_resumed", extra={"facts": {"seconds": seconds}})
        elif unseen_seconds >= self._stall_seconds:
            # Not even this thread ran: the process was stopped, or something kept the whole interpreter.
            logger.warning("process_paused", extra={"facts": {"seconds": round(unseen_seconds, 3)}})
            self._fed_at = max(self._fed_at, now)
        elif now - fed_at >= self._stall_seconds:
            self._stalled_at = fed_at
            facts = {"seconds": round(now - fed_at, 3), "stack": stack_of(self._thread)}
            logger.error("loop_stalled", extra={"facts": facts})


def stack_of(thread: int) -> list[str]:
    """Where a thread is: `file:line function`, the innermost last. Never what it works on."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - the documented way to see another thread's stack
    if frame is None:
        return []
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    return [f"{row.filename}:{row.lineno} {row.name}" for row in reversed(stack[:FRAMES_MAX])]


@asynccontextmanager
async def watchdog(stall_seconds: float, supervisor: Supervisor) -> AsyncIterator[Watchdog]:
    """Within the block the loop it runs in is watched."""
    dog = Watchdog(stall_seconds, supervisor, thread=threading.get_ident())
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            dog.look()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dog.keep_fed)
            yield dog
            nursery.cancel_scope.cancel()
    finally:
        ended.set()
        thread.join()
