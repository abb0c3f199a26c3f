"""The way in: the group of commands, and what the exit codes mean.

Exit codes, most of them those of sysexits(3):

    0    done
    1    the server refused it, or what was looked at is not as it should be
    64   a call that cannot be understood
    65   a line of the input is no job
    66   a file cannot be read or written
    69   no server answers
    75   nothing was done, and the same may succeed later
    77   the access token is missing, or does not allow it
    78   a file of configuration cannot be used
    130  interrupted
    141  whoever read the output has left
"""

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import click

from queue_actor import token_command
from queue_actor.client import AccessRefused, Busy, Client, ClientError, OutcomeUnknown, Unreachable
from queue_actor.commandline.backup import backup
from queue_actor.commandline.bench import bench
from queue_actor.commandline.doctor import doctor
from queue_actor.commandline.enqueue import enqueue
from queue_actor.commandline.events import events
from queue_actor.commandline.jobs import job, jobs
from queue_actor.commandline.lines import BadLineError, UnlikeError
from queue_actor.commandline.operate import cancel, purge, redrive
from queue_actor.commandline.programs import serve, token, work
from queue_actor.commandline.queues import pause, queues, resume
from queue_actor.commandline.session import TIMEOUT_SECONDS, Caller, ConfigurationError, Target
from queue_actor.commandline.terminal import safe
from queue_actor.commandline.top import top
from queue_actor.commandline.transfer import export, import_

EXIT_REFUSED = 1
EXIT_USAGE = token_command.EXIT_USAGE
EXIT_DATA = 65
EXIT_FILE = 66
EXIT_UNREACHABLE = 69
EXIT_LATER = 75
EXIT_ACCESS = 77
EXIT_CONFIGURATION = token_command.EXIT_CONFIGURATION
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

PROGRAM = "queue-actor"
REPEAT_SECONDS = 5.0
"""How long a command goes on after the first failure: somebody waits for it."""


class ReaderLeft(Exception):
    """Whoever read the output does no more."""


class Commands(click.Group):
    """A group that leaves it to `main` what becomes of a broken pipe; click would end the program with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Carry the command out."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error


def installed_version() -> str:
    """The version that was installed; a folder of sources has none."""
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "from its sources"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(installed_version(), prog_name=PROGRAM)
def group() -> None:
    """A job queue over HTTP: serve it, fill it, work it off, look into it.

    Each command has a --help with examples. The server is that of --url, $QUEUE_ACTOR_URL, or url in
    ~/.config/queue-actor.toml, else http://127.0.0.1:8080; the access token likewise.
    """


for command in (
    *(serve, work, token),
    *(enqueue, jobs, job, queues),
    *(cancel, redrive, purge, pause, resume),
    *(export, import_, backup),
    *(top, events, doctor, bench),
):
    group.add_command(command)


def connect(target: Target) -> Client:
    """A client of the server that the target names."""
    return Client(
        target.url,
        target.token,
        ca_file=target.ca_file,
        timeout_seconds=target.timeout_seconds or TIMEOUT_SECONDS,
        repeat_seconds=REPEAT_SECONDS,
    )


def main(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    connect: Callable[[Target], Client] = connect,
    **clocks: Callable[..., Any],
) -> int:
    """Carry out one command; the exit code. `clocks` are those of `Caller`."""
    caller = Caller(environment, connect, **clocks)
    try:
        code: int | None = group.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=caller)
    except tuple(CODES) as error:
        _complain(error)
        return next(code for kind, code in CODES.items() if isinstance(error, kind))
    return code or 0


CODES: dict[type[Exception], int] = {
    click.UsageError: EXIT_USAGE,
    click.Abort: EXIT_INTERRUPTED,
    ConfigurationError: EXIT_CONFIGURATION,
    UnlikeError: EXIT_DATA,
    BadLineError: EXIT_DATA,
    ReaderLeft: EXIT_PIPE,
    OSError: EXIT_FILE,
    AccessRefused: EXIT_ACCESS,
    Busy: EXIT_LATER,
    OutcomeUnknown: EXIT_LATER,
    Unreachable: EXIT_UNREACHABLE,
    ClientError: EXIT_REFUSED,
}
"""What an error ends with; the first kind that fits counts."""


def _complain(error: Exception) -> None:
    """Say what is the matter, on standard error."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()  # it is our own text
            return
        case click.UsageError():
            shown = io.StringIO()
            error.show(shown)
            text = "\n".join(safe(line) for line in shown.getvalue().splitlines())
        case click.Abort():
            text = "interrupted"
        case ReaderLeft():
            # What is still buffered has nowhere to go either, and Python would complain of it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        case OSError():
            text = safe(f"{PROGRAM}: {error.filename or 'file'}: {error.strerror}")
        case Unreachable():
            text = safe(f"{PROGRAM}: {error}; `{PROGRAM} doctor` looks for the reason")
        case _:
            text = safe(f"{PROGRAM}: {error}")
    print(text, file=sys.stderr)  # noqa: T201 - a command talks to its caller
