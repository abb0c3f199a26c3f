"""A terminal for tests: a program runs in a pseudo-terminal, and pyte shows what is on its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyte

SHOWN_SECONDS = 20.0
ALTERNATE_SCREEN = (b"\x1b[?1049h", b"\x1b[?1049l")


class Terminal:
    """A program in a terminal of some size; ended by its id, whatever happens."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 120, rows: int = 30
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._before = termios.tcgetattr(slave)
        self._slave = slave  # kept open, so that its settings can be looked at after the program has ended
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],  # so that Ctrl-C means what it does in a terminal
            env={"TERM": "xterm-256color", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def is_as_before(self) -> bool:
        """Whether the settings of the terminal are those that it had."""
        return termios.tcgetattr(self._slave) == self._before

    def read(self, seconds: float) -> None:
        """Show what the program writes within a while, as soon as there is something."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            written = os.read(self._master, 65_536)
            self.written += written
            self._stream.feed(written)

    def wait_for(self, condition: Callable[[str], object], seconds: float = SHOWN_SECONDS) -> str:
        """What is on the screen once it is as wanted."""
        deadline = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < deadline, f"the screen does not become as expected:\n{self.text}"
            self.read(0.1)
        return self.text

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def ended(self, seconds: float = SHOWN_SECONDS) -> int:
        """The exit code, waited for; what it writes meanwhile is read."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
            self.read(0.1)
        self.read(0)
        return self.process.returncode
