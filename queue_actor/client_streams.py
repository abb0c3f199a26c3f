"""A stream of jobs of any length, sent in pieces: no I/O and no clock here.

The lines of a piece are one request. It is made when it has so many lines or bytes, or when its first line has waited
for so long and another one comes. So memory is bounded, a slow producer does not hold a connection, and each piece is
read to its end before the next is sent: HTTP/1.1 as httpx speaks it sends all of a request before it reads the answer.

    stream = Stream()
    for job in jobs:
        if stream.add(job, now):
            ...  # send what `lines` has, `take` each line of the answer, hand out `chunks()`; until there are none left

Lines that were answered are dropped. If the server ends a stream early and says that nothing of what follows was done,
the rest is sent again; if the connection breaks, nobody knows what became of the rest, and the caller has to decide.
"""

from collections import deque
from collections.abc import Sequence

from queue_actor import client_exchange as exchange
from queue_actor.client_answers import Chunk
from queue_actor.client_bodies import NewJob
from queue_actor.client_errors import NotUnderstood, Refused
from queue_actor.client_requests import encode

PIECE_LINES = 4_000
PIECE_BYTES = 1_024 * 1_024
PIECE_SECONDS = 1.0


class Stream:
    """The lines of a stream that were not answered yet."""

    def __init__(self) -> None:
        self.lines_done = 0
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._due_at = 0.0
        self._before = 0  # lines of earlier requests
        self._chunks: list[Chunk] = []
        self._refused: Refused | None = None

    def add(self, job: NewJob | bytes, now: float) -> bool:
        """Take a line, and tell whether the piece is to be sent."""
        line = job if isinstance(job, bytes) else encode(job)
        # Between the tokens of a JSON text a space says the same, and within them there is no end of a line.
        line = line.rstrip(b"\r\n").replace(b"\n", b" ")
        if not self._lines:
            self._due_at = now + PIECE_SECONDS
        self._lines.append(line)
        self._bytes += len(line) + 1
        return len(self._lines) >= PIECE_LINES or self._bytes >= PIECE_BYTES or now >= self._due_at

    @property
    def lines(self) -> Sequence[bytes]:
        """What is to be sent, as a request of its own."""
        return self._lines

    def begin(self) -> None:
        """A request with these lines begins."""
        self._before = self.lines_done
        self._refused = None

    def take(self, line: bytes) -> None:
        """A line of its answer has come.

        Raises:
            NotUnderstood: It is none.
        """
        try:
            chunk, refused = exchange.chunk(line, self._before)
        except ValueError as error:
            raise NotUnderstood(f"a line of the answer to a stream is not as expected: {error}") from error
        if refused is None:
            self._done_up_to(chunk.lines)
            self._chunks.append(chunk)
        self._refused = refused

    def end(self) -> Refused | None:
        """The answer has come to its end: why nothing of the lines that are left was done, if the server said so."""
        if self._refused is None:
            self._done_up_to(self.lines_done + len(self._lines))  # empty lines are not answered
        return self._refused

    def _done_up_to(self, number: int) -> None:
        while self.lines_done < number and self._lines:
            self._bytes -= len(self._lines.popleft()) + 1
            self.lines_done += 1

    def chunks(self) -> Sequence[Chunk]:
        """What was answered since this was asked last."""
        chunks, self._chunks = self._chunks, []
        return chunks
