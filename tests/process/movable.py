"""The server, with its clocks in a test's hands: each SIGUSR1 is ten minutes that it spent without noticing.

    python tests/process/movable.py --bind 127.0.0.1:0

It is `python -m web` but for that, so a test need not wait for what takes minutes. `CLOCK_STEP_SECONDS` and
`CLOCK_AHEAD_SECONDS` in its environment are another step, and by how much the clocks are ahead at the start.
"""

import os
import signal
import sys
import time
from functools import partial

import trio

from web import __main__ as program

STEP_SECONDS = float(os.environ.get("CLOCK_STEP_SECONDS", "600"))
AHEAD_SECONDS = float(os.environ.get("CLOCK_AHEAD_SECONDS", "0"))
MOVED = b'{"event":"clock_moved"}\n'


class MovableClock(trio.abc.Clock):
    """Trio's time, and what was added to it."""

    def __init__(self) -> None:
        self.ahead_seconds = AHEAD_SECONDS

    def start_clock(self) -> None:
        """Nothing is to be started."""

    def current_time(self) -> float:
        return time.perf_counter() + self.ahead_seconds

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()

    def move(self, *_: object) -> None:
        """Go ahead, and say so past all buffers: this is a signal handler."""
        self.ahead_seconds += STEP_SECONDS
        os.write(sys.stderr.fileno(), MOVED)


if __name__ == "__main__":
    clock, wall = MovableClock(), time.time
    time.time = lambda: wall() + clock.ahead_seconds  # the log's time, too
    trio.run = partial(trio.run, clock=clock)  # type: ignore[assignment] # all that the program passes are arguments
    signal.signal(signal.SIGUSR1, clock.move)
    sys.exit(program.main(sys.argv[1:], os.environ))
