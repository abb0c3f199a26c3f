"""A file of lines on its way to the server: batch by batch, resumed where it was broken off."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import msgspec
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from queue_actor import client_requests as requests
from queue_actor.client import Busy, Enqueued, OutcomeUnknown, Refused, Results, Unreachable
from queue_actor.client_exchange import Request
from queue_actor.commandline.lines import (
    BATCH_JOBS_MAX,
    BadLineError,
    Batch,
    Prepare,
    Progress,
    head_of,
    new_progress,
    read_batches,
    read_progress,
    write_progress,
)
from queue_actor.commandline.session import Session
from queue_actor.commandline.terminal import count, span

STANDARD_INPUT = "-"
EXIT_BAD_LINES = 65
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS_MAX = 5.0
AT = re.compile(r"jobs\[(\d+)\]\.?(.*)")
"""The field of a refusal that is about one job of many."""


class Loading(NamedTuple):
    """How a file is to be sent."""

    bad_lines: str | None
    from_line: int
    restart: bool
    patience: float
    batch: int


def load_options(function: Callable[..., int]) -> Callable[..., int]:
    """The options of a command that sends a file; it is given them as `load`."""

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> int:
        load = Loading(*(options.pop(name) for name in Loading._fields))
        return function(*arguments, load=load, **options)

    for option in (
        click.option(
            "--batch",
            type=click.IntRange(1, 10_000),
            default=BATCH_JOBS_MAX,
            show_default=True,
            help="Lines sent at a time.",
        ),
        click.option(
            "--patience",
            type=click.FloatRange(0),
            default=PATIENCE_SECONDS,
            show_default=True,
            metavar="SECONDS",
            help="How long to go on trying when the server is full or away.",
        ),
        click.option("--restart", is_flag=True, help="Begin at the first line, whatever FILE.progress says."),
        click.option("--from-line", type=click.IntRange(1), default=1, help="Pass over the lines before it."),
        click.option(
            "--bad-lines",
            metavar="FILE",
            help="Write lines that are no jobs there, and go on; else the first one ends the call.",
        ),
    ):
        called = option(called)
    return called


def load_lines(
    session: Session, source: str, call: dict[str, str], prepare_at: Callable[[float], Prepare], load: Loading
) -> int:
    """Send a file, or what is left of it; the exit code. `prepare_at` is told when the first call began.

    Raises:
        BadLineError: A line is no job, and nobody wants to know of others. Nothing of its batch has been enqueued.
        UnlikeError: There is a progress of another call beside the file.
        ClientError: The server refuses, or does not answer for longer than the patience lasts.
    """
    call = {"server": session.target.url, **call, "batch": str(load.batch)}
    with ExitStack() as closing:
        if source == STANDARD_INPUT:
            file, beside, found, size = sys.stdin.buffer, None, None, None
        else:
            path = Path(source)
            file = closing.enter_context(path.open("rb"))
            beside = Beside(path, path.with_name(f"{path.name}.progress"))
            found = None if load.restart else read_progress(beside.kept, path, call)
            size = path.stat().st_size
            if found is not None:
                session.printer.note(f"going on at line {count(found.lines + 1)}")
                file.seek(found.offset)
        progress = found or new_progress(call)
        bad = None
        if load.bad_lines is not None:
            bad = closing.enter_context(Path(load.bad_lines).open("wb" if found is None else "ab"))
        sender = Sender(session, progress, beside, bad, load.patience)
        begun, first, prepare = time.monotonic(), progress.lines, prepare_at(progress.begun)
        with bar(session, size) as show:
            sender.pass_over(file, load.from_line)
            for batch in read_batches(file, prepare, lines=progress.lines, offset=progress.offset, jobs_max=load.batch):
                sender.send(batch)
                show(progress)
        if beside is not None:
            beside.kept.unlink(missing_ok=True)
    _tell(session, progress, time.monotonic() - begun, first)
    return EXIT_BAD_LINES if progress.bad else 0


class Beside(NamedTuple):
    """A file, and where its progress is kept."""

    file: Path
    kept: Path


class Sender:
    """Sends batches, each until it is answered, and keeps the progress."""

    def __init__(
        self, session: Session, progress: Progress, beside: Beside | None, bad: IO[bytes] | None, patience: float
    ) -> None:
        self._session = session
        self._progress = progress
        self._beside = beside
        self._bad = bad
        self._patience = patience

    def pass_over(self, file: IO[bytes], from_line: int) -> None:
        """Read on to a line, if the progress is not there yet."""
        while self._progress.lines < from_line - 1 and (line := file.readline()):
            self._progress.lines += 1
            self._progress.offset += len(line)

    def send(self, batch: Batch) -> None:
        """Have the jobs of a batch enqueued, and note that they are."""
        progress = self._progress
        if not progress.head:
            self._keep()  # the run has to be known before anything is sent under its name
        for number, reason in batch.bad:
            if number not in progress.skipped:
                self._skip(number, reason)
        results = self._enqueued(batch)
        for number, result in zip(self._numbers(batch), results, strict=True):
            if isinstance(result, Refused):  # alone: its neighbours are enqueued
                self._note(number, f"{result.code}: {result.detail}")
            elif result.existing:
                progress.existing += 1
            else:
                progress.jobs += 1
        progress.lines, progress.offset, progress.skipped = batch.lines, batch.offset, []
        self._keep()

    def _numbers(self, batch: Batch) -> list[int]:
        return [number for number in batch.numbers if number not in self._progress.skipped]

    def _enqueued(self, batch: Batch) -> Results[Enqueued]:
        """The answer to a batch, without the lines that the server refuses one by one."""
        while True:
            skipped = self._progress.skipped
            numbers = self._numbers(batch)
            contents = [
                content for number, content in zip(batch.numbers, batch.contents, strict=True) if number not in skipped
            ]
            if not contents:
                return Results(())
            request = requests.enqueue_bodies(batch.queue, contents, self._progress.key(batch))
            try:
                return self._patiently(request, batch)
            except Refused as error:
                at = AT.match(error.field or "") or (AT.match("jobs[0]") if len(contents) == 1 else None)
                if at is None or error.retryable != "never":
                    raise
                field = f" ({at[2]})" if at[2] else ""
                self._skip(numbers[int(at[1])], f"{error.code}: {error.detail}{field}")

    def _patiently(self, request: Request[Results[Enqueued]], batch: Batch) -> Results[Enqueued]:
        deadline = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return self._session.client.send(request)
            except (Busy, OutcomeUnknown, Unreachable):
                if time.monotonic() + pause > deadline:
                    which = f"lines {batch.numbers[0]} to {batch.numbers[-1]}"
                    self._session.printer.note(f"{which} are not enqueued, as far as is known{self._how}")
                    raise
            self._session.caller.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _skip(self, number: int, reason: str) -> None:
        """Leave a line out, this time and whenever the batch is repeated: with others it would be another request.

        Raises:
            BadLineError: Nobody wants to know of others.
        """
        if self._bad is None:
            first = self._progress.lines + 1
            raise BadLineError(f"line {number}: {reason}; nothing is enqueued from line {first} on")
        self._note(number, reason)
        self._progress.skipped.append(number)
        self._keep()

    @property
    def _how(self) -> str:
        if self._beside is not None:
            return "; the same call goes on where this one ended"
        return ", and all before are enqueued; go on with --from-line"

    def _note(self, number: int, reason: str) -> None:
        self._progress.bad += 1
        if self._bad is None:
            self._session.printer.note(f"line {number}: {reason}")
        else:
            self._bad.write(msgspec.json.encode({"line": number, "reason": reason}) + b"\n")
            self._bad.flush()

    def _keep(self) -> None:
        if self._beside is not None:
            self._progress.head = head_of(self._beside.file, self._progress.offset)
            write_progress(self._beside.kept, self._progress)


@contextmanager
def bar(session: Session, size: int | None) -> Iterator[Callable[[Progress], None]]:
    """A bar with the lines, their rate and the time that is left, where somebody looks on."""
    columns = (
        TextColumn("{task.fields[lines]} lines"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]} lines/s"),
        TimeRemainingColumn(),
    )
    console = session.printer.err
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
        task = shown.add_task("", total=size, lines="0", rate="0")
        begun = time.monotonic()
        first: int | None = None

        def show(progress: Progress) -> None:
            nonlocal first
            first = progress.lines if first is None else first
            rate = (progress.lines - first) / max(time.monotonic() - begun, 1e-9)
            shown.update(task, completed=progress.offset, lines=count(progress.lines), rate=f"{rate:,.0f}")

        yield show


def _tell(session: Session, progress: Progress, seconds: float, first: int) -> None:
    lines = progress.lines - first
    if session.printer.as_json:
        facts = {"lines": progress.lines, "jobs": progress.jobs, "existing": progress.existing, "bad": progress.bad}
        session.printer.document(facts | {"seconds": round(seconds, 3)})
        return
    told = [f"{count(progress.lines)} lines", f"{count(progress.jobs)} jobs enqueued"]
    told += [f"{count(progress.existing)} were there already"] * bool(progress.existing)
    told += [f"{count(progress.bad)} bad lines"] * bool(progress.bad)
    rate = lines / max(seconds, 1e-9)
    session.printer.say(f"{', '.join(told)}, in {span(seconds)}, {rate:,.0f} lines/s")
