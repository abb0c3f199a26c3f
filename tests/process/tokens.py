"""Access tokens of a server that is a process: made, replaced and revoked by the command that a user types."""

import os
import subprocess
import sys
from pathlib import Path

from tests.process.server import ROOT

COMMAND_SECONDS = 30


def token(path: Path, *arguments: str) -> str:
    """What the command of this name prints: of `create` and `rotate`, the token."""
    ran = subprocess.run(
        [sys.executable, "-m", "queue_actor", "token", *arguments],
        cwd=ROOT,
        env=os.environ | {"QUEUE_ACTOR_TOKENS": str(path)},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout.strip()


def bearer(shown: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {shown}"}
