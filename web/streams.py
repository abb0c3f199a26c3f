"""Streams of jobs: an enqueue of any length, one job a line, in bounded memory.

Lines are read as the queue takes them, so a producer that is faster than the queue is slowed down by TCP. Each chunk
of lines is one command and one commit, and is answered by one line while the next is being read.
"""

from collections.abc import AsyncIterator, Iterable
from math import inf
from typing import Any

import msgspec
import trio

from queue_actor.commands import Enqueue, NewJob
from queue_actor.engine import Engine
from queue_actor.errors import QueueError
from queue_actor.settings import KIB, Settings
from web.bodies import NewJobBody
from web.callers import Caller, caller_of
from web.exchanges import BodyStream
from web.problems import Problem
from web.replies import Reply
from web.requests import Request
from web.schemas import decode
from web.traceparent import traced
from web.views import ErrorView, error_view

Headers = Iterable[tuple[bytes, bytes]]

# A chunk ends with whichever of these comes first.
CHUNK_LINES = 1_000  # the setting `batch_jobs_max` may make it fewer
CHUNK_BYTES = 1_024 * KIB  # of its lines, which bounds what its errors quote of them, too
CHUNK_SECONDS = 0.1  # since its first line was read: a slow producer has each line enqueued at once

_JOB = msgspec.json.Decoder(NewJobBody)
_encode = msgspec.json.encode


class LineError(ErrorView, frozen=True, kw_only=True):
    """Why a line is no job."""

    line: int


class ChunkView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a chunk: the jobs of its good lines are enqueued."""

    lines: int  # read so far, this chunk included
    count: int  # jobs of this chunk that are enqueued, or were there under their unique key
    first_id: int | None = None  # of the jobs that are new: their ids follow each other in the order of the lines
    existing: int = 0  # jobs that were there under their unique key
    errors: list[LineError] = []  # by line, counted from 1
    error: ErrorView | None = None  # nothing of this chunk, and of what follows it, is enqueued


def enqueue_stream(engine: Engine, settings: Settings, queue: str, request: Request) -> Reply:
    """The answer to an enqueue of lines; it is made while the lines come."""
    if b"idempotency-key" in request.fields:
        raise Problem(
            "invalid", "a stream cannot be repeated under a key: give its jobs unique keys", field="Idempotency-Key"
        )
    chunks = Chunks(engine, settings, queue, caller_of(request), request.scope["headers"])
    return Reply(
        chunks.answers(BodyStream(request)),
        headers={"Queue-Durability": engine.durability},
        content_type="application/x-ndjson",
        facts=chunks.facts,
    )


class Chunks:
    """Takes lines apart, enqueues them chunk by chunk, and tells what became of each."""

    def __init__(self, engine: Engine, settings: Settings, queue: str, caller: Caller, headers: Headers) -> None:
        self._engine = engine
        self._caller = caller
        self._settings = settings
        self._queue = queue
        self._headers: Headers = headers
        self._chunk_lines = min(CHUNK_LINES, settings.batch_jobs_max)
        self._lines = 0
        self._new: dict[int, NewJob] = {}  # by line
        self._errors: list[LineError] = []
        self._bytes = 0  # of the lines that were read and not yet answered
        self._due = inf  # when they are to be answered at the latest
        # What the line of the request tells when the stream has ended.
        self.facts: dict[str, Any] = {"queue": queue, "lines": 0, "jobs": 0, "existing": 0, "errors": 0}

    async def answers(self, body: BodyStream) -> AsyncIterator[bytes]:
        """One line of JSON for each chunk; after one with an `error` there is no other."""
        rest = bytearray()  # of a line whose end has not come
        try:
            while (piece := await self._next_piece(body)) is not None:
                *lines, end = piece.split(b"\n")
                if lines:
                    lines[0] = bytes(rest) + lines[0]
                    rest.clear()
                rest += end
                for line in lines:
                    self._take(line)
                    if self._is_full:
                        yield await self._flush()
                self._check_length(rest)
                if trio.current_time() >= self._due:
                    yield await self._flush()
            if rest:
                self._take(bytes(rest))
            if self._waiting:
                yield await self._flush()
        except QueueError as refusal:
            yield self._tell(0, error=error_view(refusal))
        except Problem as problem:
            yield self._tell(0, error=ErrorView(problem.code, problem.detail))

    @property
    def _waiting(self) -> int:
        """Lines that were read and not yet answered."""
        return len(self._new) + len(self._errors)

    @property
    def _is_full(self) -> bool:
        return self._waiting >= self._chunk_lines or self._bytes >= CHUNK_BYTES

    async def _next_piece(self, body: BodyStream) -> bytes | None:
        """What comes next; nothing if it does not come before the chunk is due; None at the end."""
        with trio.move_on_at(self._due):
            return await body.piece()
        return b""

    def _check_length(self, line: bytes | bytearray) -> None:
        if len(line) > self._settings.request_bytes_max:
            raise Problem("too_large", f"line {self._lines + 1} is larger than request_bytes_max")

    def _take(self, line: bytes) -> None:
        """Make a line a job, or an error. Empty lines are passed over."""
        self._check_length(line)
        self._lines += 1
        if not line.strip():
            return
        if not self._waiting:
            self._due = trio.current_time() + CHUNK_SECONDS
        self._bytes += len(line)
        try:
            self._new[self._lines] = decode(_JOB, line).new_job(self._settings)
        except Problem as problem:
            self._errors.append(LineError(problem.code, problem.detail, problem.field, line=self._lines))

    async def _flush(self) -> bytes:
        """Enqueue the jobs at hand; the line that says so.

        Raises:
            QueueError: None of them is enqueued.
            Problem: None of them is, since the token has become invalid.
        """
        new, self._new = self._new, {}
        if not new:
            return self._tell(0)
        await self._caller.pace_jobs(len(new))  # meanwhile nothing is read
        jobs = (await self._engine.execute(Enqueue(self._queue, traced(list(new.values()), self._headers)))).jobs
        enqueued = []
        for line, job in zip(new, jobs, strict=True):
            if isinstance(job, QueueError):
                self._errors.append(LineError(job.code, job.detail, job.field, line=line))
            else:
                enqueued.append(job)
        self._errors.sort(key=lambda error: error.line)
        created = [job for job in enqueued if not job.existing]
        return self._tell(
            len(enqueued),
            first_id=created[0].id if created else None,
            existing=len(enqueued) - len(created),
        )

    def _tell(
        self, count: int, *, first_id: int | None = None, existing: int = 0, error: ErrorView | None = None
    ) -> bytes:
        errors, self._errors = self._errors, []
        self._bytes, self._due = 0, inf
        self.facts["lines"] = self._lines
        self.facts["jobs"] += count
        self.facts["existing"] += existing
        self.facts["errors"] += len(errors)
        if error is not None:
            self.facts["code"] = error.code
        return _encode(ChunkView(self._lines, count, first_id, existing, errors, error)) + b"\n"
