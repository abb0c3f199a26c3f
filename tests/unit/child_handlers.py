"""Handlers that run in child processes, which find them here."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from queue_actor.worker import RunningJob


def who(job: RunningJob) -> int:
    """The child that did it."""
    job.report({"attempt": job.attempt})
    return os.getpid()


def die(status: int) -> None:
    """As a crash of the interpreter would."""
    os._exit(status)


def raise_it(message: str) -> None:
    """A failure of its own."""
    raise ValueError(message)


def length(payload: str) -> dict[str, Any]:
    """As long a result as the payload is, and something in front."""
    return {"length": len(payload), "payload": payload}


def wait(path: str, job: RunningJob) -> str:
    """Say that it has begun, and whom it has started; then wait until it is to stop."""
    with subprocess.Popen(["sleep", "60"]) as started:
        Path(path).write_text(str(started.pid))
        try:
            while job.stopping is None:
                threading.Event().wait(0.01)
        finally:
            started.kill()
    job.check()
    return "never"


def ignore(path: str) -> None:
    """Wait, whatever is said."""
    with subprocess.Popen(["sleep", "60"]) as started:
        Path(path).write_text(str(started.pid))
