"""The server as a process: started by the command that a user types, watched by what it prints, ended by its id.

    with running_server("--lease-seconds", "1") as server:
        answer = server.request("POST", "/jobs/dequeue")

Nothing here sleeps: whatever a test waits for is a line of the log, an answer, or the end of the process, and each
wait has a deadline. When a test fails, the end of the server's log is printed beside it.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
RUN = ("./scripts/run.sh",)

START_SECONDS = 30.0
"""A loaded machine takes seconds to start a Python."""

ANSWER_SECONDS = 10.0
SHOWN_LINES = 60


class Answer(NamedTuple):
    """An answer over HTTP. `body` is the JSON, parsed."""

    status: int
    headers: http.client.HTTPMessage
    body: Any


def read_answer(stream: BinaryIO) -> Answer | None:
    """The next answer on a bare connection; None if the server has closed it."""
    try:
        line = stream.readline()
        if not line:
            return None
        headers = http.client.parse_headers(stream)
        body = stream.read(int(headers.get("Content-Length", "0")))
    except ConnectionError:
        return None
    return Answer(int(line.split()[1]), headers, json.loads(body) if body else None)


class Server:
    """A server process. Its standard error is read all the time, line by line, into `log`."""

    def __init__(
        self,
        *flags: str,
        command: Sequence[str] = RUN,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start it; it inherits the descriptors."""
        # What is set around the tests must not decide about them.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUEUE_ACTOR_")}
        self._process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=inherited | dict(environment or {}),
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.host, self.port = "", 0  # known once it is ready
        self.log: list[bytes] = []
        self._news = threading.Condition()
        self._log_ended = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the process, by its id, whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        if kind is not None:
            print(f"the server's exit code was {self._process.returncode}; the end of its log:", file=sys.stderr)
            self.print_log(since=max(0, len(self.log) - SHOWN_LINES))

    def print_log(self, *, since: int) -> None:
        """Show the log from a line on; pytest shows it again beside a test that failed."""
        for line in self.log[since:]:
            print(line.decode(errors="backslashreplace"), file=sys.stderr)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.log.append(line.removesuffix(b"\n"))
                self._news.notify_all()
        with self._news:
            self._log_ended = True
            self._news.notify_all()

    # --- what it says

    def wait_for_line(
        self, wanted: Callable[[bytes], bool], *, since: int = 0, seconds: float = ANSWER_SECONDS
    ) -> bytes:
        """The first line of the log, from a line on, that is wanted; waited for."""
        deadline = time.monotonic() + seconds
        seen = since
        with self._news:
            while True:
                for line in self.log[seen:]:
                    if wanted(line):
                        return line
                seen = len(self.log)
                if self._log_ended:
                    raise AssertionError("the server ended before it logged what was waited for")
                if not self._news.wait(deadline - time.monotonic()):
                    raise AssertionError(f"the server did not log what was waited for within {seconds:g} s")

    def complaints(self, *, since: int = 0) -> list[bytes]:
        """The lines above info, from a line on; that something was slow is the machine's affair."""
        quiet = (b'"level":"info"', b'"event":"slow_', b'"event":"process_paused"')
        return [line for line in self.log[since:] if not any(mark in line for mark in quiet)]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines logged so far that tell of an event of this name."""
        facts = [json.loads(line) for line in self.log]
        return [fact for fact in facts if fact["event"] == event]

    def wait_ready(self) -> dict[str, Any]:
        """Wait until it serves; what the ready line tells."""
        return self._wait_listening("ready")

    def wait_starting(self) -> dict[str, Any]:
        """Wait until it listens although it still reads its jobs; what it tells of that."""
        return self._wait_listening("starting")

    def _wait_listening(self, event: str) -> dict[str, Any]:
        wanted = f'"event":"{event}"'.encode()
        facts: dict[str, Any] = json.loads(self.wait_for_line(lambda line: wanted in line, seconds=START_SECONDS))
        where = urlsplit(facts["address"])
        assert where.hostname is not None
        assert where.port is not None
        self.host, self.port = where.hostname, where.port
        return facts

    @property
    def files(self) -> int:
        """How many file descriptors the process holds; 0 where the system has no /proc to tell."""
        descriptors = Path(f"/proc/{self.pid}/fd")
        return len(list(descriptors.iterdir())) if descriptors.exists() else 0

    # --- what it is told

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, json.load(answer))
        finally:
            connection.close()

    def connect(self, *, seconds: float = ANSWER_SECONDS, receive_bytes: int | None = None) -> socket.socket:
        """A bare connection; `receive_bytes` makes its window small."""
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(seconds)
        connection.connect((self.host, self.port))
        return connection

    def has_seen_all_before(self) -> None:
        """Return when what earlier connections sent before this call has been carried out, or parked.

        The server takes connections in order, and each task of it has its turn before any has its second: two round
        trips through the queue, on new connections, come after all that.
        """
        for _ in range(2):
            assert self.request("GET", "/jobs/9007199254740991").status == http.HTTPStatus.NOT_FOUND

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def wait(self, *, seconds: float) -> int:
        """The exit code, waited for."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as expired:
            raise AssertionError(f"the server did not end within {seconds:g} s") from expired
        self._reader.join(ANSWER_SECONDS)
        return code


@contextmanager
def running_server(*flags: str, command: Sequence[str] = RUN) -> Iterator[Server]:
    """A server that listens on a port of its own, and is ready; killed at the end if it still runs."""
    with Server("--bind", "127.0.0.1:0", *flags, command=command) as server:
        server.wait_ready()
        yield server


def eventually(condition: Callable[[], bool], *, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a condition that nothing announces comes true in time: asked every 10 ms."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return holds
