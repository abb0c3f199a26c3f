"""A backup of a server that runs, checked before it has its name."""

import os
import subprocess
import sys
from pathlib import Path

import click

from queue_actor.commandline.session import Session, examples, with_session
from queue_actor.commandline.terminal import count

EXIT_UNSOUND = 1
PRIVATE = 0o600
"""It has every payload, and the secret that tokens are made with."""


@click.command(
    epilog=examples("queue-actor backup today.sqlite", 'queue-actor backup "$(date +%F).sqlite" --timeout 60')
)
@click.argument("file", metavar="FILE")
@click.option("--no-check", is_flag=True, help="Do not look whether the copy is sound.")
@with_session
def backup(session: Session, *, file: str, no_check: bool) -> int:
    """Copy all that a durable server keeps, while it serves.

    FILE appears only when it is whole and has been checked; one that is there already is replaced. Restore it with
    `scripts/data.sh restore`. The token needs the scope admin on all queues.
    """
    part = Path(f"{file}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE), "wb") as copy:
            with session.client.backup() as pieces:
                copy.writelines(pieces)
            copy.flush()
            os.fsync(copy.fileno())
            size = copy.tell()
        if not no_check:
            # A program of its own: what reads the store is no part of the client.
            check = [sys.executable, "-m", "queue_actor.operations", "check", str(part)]
            checked = subprocess.run(check, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
            told = checked.stdout.strip() or checked.stderr.strip()
            session.printer.note(told.replace(str(part), file))
            if checked.returncode != 0:
                return EXIT_UNSOUND
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    session.printer.say(f"{file}: {count(size)} bytes")
    return 0
