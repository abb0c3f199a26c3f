"""Lines of a file as batches of jobs, and a file of progress that lets a later call go on where one ended.

A batch is made of the same lines each time, and is sent under a key that is made of the run and its first line. So a
call that was killed while a batch was under way sends the same again, and the server answers it as it did before:
each line becomes one job, whatever happens in between, as long as the server remembers its keys.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

LINE_BYTES_MAX = 16 * 1024 * 1024
"""A longer line is no job: no server takes a payload of more."""
BATCH_JOBS_MAX = 1_000
"""What a server takes in one request unless it was told otherwise."""
BATCH_BYTES_MAX = 512 * 1024
"""Half of what a server takes in one request unless it was told otherwise."""
BAD_LINES_MAX = 1_000
"""A batch with more of them is sent as it is: they are kept in memory until then."""
HEAD_BYTES_MAX = 64 * 1024
"""How much of what was sent is looked at, to see whether it is still the same file."""


class BadLineError(Exception):
    """A line that is no job. The message says why."""


def in_utf8(line: bytes) -> str:
    """The text of a line.

    Raises:
        BadLineError: It is none.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def decoded(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    """What the JSON of a line means.

    Raises:
        BadLineError: It is none, or means something else.
    """
    in_utf8(line)  # what is taken raw is not looked at by the decoder
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadLineError(f"it is not as expected: {error}") from error


class UnlikeError(Exception):
    """A file of progress that belongs to another call. The message says what is different."""


class JobLine(NamedTuple):
    """A line as the server takes it."""

    queue: str
    content: bytes


Prepare = Callable[[bytes], JobLine | None]
"""Makes a job of a line, or nothing of one that is to be passed over. Raises BadLineError."""


class Batch(NamedTuple):
    """Jobs of one queue that are sent together."""

    queue: str
    numbers: list[int]
    """Of the lines that the jobs were made of, from 1."""
    contents: list[bytes]
    bad: list[tuple[int, str]]
    """Lines that are no jobs, and why."""
    lines: int
    """How many lines of the file are read with it."""
    offset: int
    """Where in the file the next line begins."""


class Progress(msgspec.Struct):
    """How far a call is, as it is kept beside the file."""

    run: str
    call: dict[str, str]
    """What has to be the same of a call that goes on: server, queue, what is made of each line."""
    begun: float
    """When the first call began, in seconds since the epoch."""
    lines: int = 0
    offset: int = 0
    head: str = ""
    jobs: int = 0
    existing: int = 0
    bad: int = 0
    skipped: list[int] = []
    """Lines of the batch that is under way that the server has refused."""

    def key(self, batch: Batch) -> str:
        """The idempotency key of a batch."""
        return f"{self.run}/{batch.numbers[0]}"


def new_progress(call: dict[str, str]) -> Progress:
    """The progress of a call that begins."""
    return Progress(secrets.token_hex(16), call, time.time())


def read_progress(path: Path, file: Path, call: dict[str, str]) -> Progress | None:
    """The progress of a call that was broken off; None if there is none.

    Raises:
        UnlikeError: It is of another call, or of a file that was another one.
    """
    try:
        progress = msgspec.json.decode(path.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnlikeError(f"{path} is no file of progress: {error}") from error
    for name, value in call.items():
        if progress.call.get(name) != value:
            raise UnlikeError(f"{path} is of a call with {name} {progress.call.get(name)!r}, and not {value!r}")
    if head_of(file, progress.offset) != progress.head:
        raise UnlikeError(f"{path} is of another file: the beginning of {file} has changed since")
    return progress


def head_of(file: Path, offset: int) -> str:
    """What tells the beginning of a file from that of another; of what was read of it only."""
    with file.open("rb") as opened:
        return hashlib.sha256(opened.read(min(offset, HEAD_BYTES_MAX))).hexdigest()


def write_progress(path: Path, progress: msgspec.Struct) -> None:
    """Keep the progress: whoever reads it, after whatever end of this program, has this one or the one before."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(msgspec.json.encode(progress))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_batches(
    file: IO[bytes], prepare: Prepare, *, lines: int = 0, offset: int = 0, jobs_max: int = BATCH_JOBS_MAX
) -> Iterator[Batch]:
    """The batches of a file from a line on, each of one queue. Empty lines are passed over."""
    batch = Batch("", [], [], [], lines, offset)
    size = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number, end = batch.lines + 1, batch.offset + len(line)
        try:
            job = _made(line, prepare)
        except BadLineError as error:
            end += _rest_of_line(file, line)
            batch.bad.append((number, str(error)))
            job = None
            if len(batch.bad) >= BAD_LINES_MAX:
                yield batch._replace(lines=number, offset=end)
                batch, size = Batch("", [], [], [], number, end), 0
                continue
        if job is not None:
            if batch.contents and (
                job.queue != batch.queue or len(batch.contents) >= jobs_max or size + len(job.content) > BATCH_BYTES_MAX
            ):
                yield batch
                batch, size = Batch("", [], [], [], batch.lines, batch.offset), 0
            batch = batch._replace(queue=job.queue)
            batch.numbers.append(number)
            batch.contents.append(job.content)
            size += len(job.content) + 1
        batch = batch._replace(lines=number, offset=end)
    if batch.contents or batch.bad or batch.lines > lines:
        yield batch


def _made(line: bytes, prepare: Prepare) -> JobLine | None:
    if len(line) > LINE_BYTES_MAX:
        raise BadLineError(f"longer than {LINE_BYTES_MAX} bytes")
    content = line.strip()
    return prepare(content) if content else None


def _rest_of_line(file: IO[bytes], line: bytes) -> int:
    """Pass over what is left of a line that was too long to be read; how many bytes that were."""
    passed = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(LINE_BYTES_MAX)
        passed += len(line)
    return passed
