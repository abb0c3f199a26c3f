"""The file of access tokens on the disk: read by servers, changed by one command at a time.

A change is written beside the file and then put in its place, so that whoever reads it, at any moment and after any
crash, reads the one or the other. Where the path is a symbolic link, as it is of a secret that Kubernetes mounts, the
file that it leads to is read and replaced, and the link stays.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from queue_actor.access import AccessError, AccessFile, decode_file, encode_file

FILE_BYTES_MAX = 64 * 1024 * 1024
"""A larger file is some other one."""

Signature = tuple[int, ...] | None
"""What tells one state of a file from another; None where there is no file that could be looked at."""


def signature_of(path: Path) -> Signature:
    """The state of the file that the path leads to now."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The last tells of a change of its mode, too: a file may be there, and cannot be read yet.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns


def read_file(path: Path) -> AccessFile:
    """The file.

    Raises:
        AccessError: It is not there, cannot be read, or cannot be used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise AccessError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    try:
        return decode_file(data)
    except AccessError as error:
        raise AccessError(f"{path}: {error}") from error


def change_file(path: Path, change: Callable[[AccessFile], AccessFile], *, create: bool = False) -> None:
    """Put what `change` makes of the file into its place, with mode 0600; others who want to change it wait.

    Raises:
        AccessError: It cannot be read, used or written, or `change` refused (ChangeRefused); the file is as it was.
    """
    target = Path(os.path.realpath(path))
    try:
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # the folder, since the file itself is replaced
            file = AccessFile() if create and not target.exists() else read_file(target)
            _replace(target, encode_file(change(file)))
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}") from error


def _replace(target: Path, data: bytes) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # which makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(target)
    except BaseException:
        Path(beside).unlink()
        raise


def describe(file: AccessFile, now: float) -> list[dict[str, Any]]:
    """What may be told of each name: everything but the hashes, and whether each token is valid now."""
    return [
        {
            "name": grant.name,
            "scopes": list(grant.scopes),
            "queues": list(grant.queues),
            "requests_per_second": grant.requests_per_second,
            "jobs_per_second": grant.jobs_per_second,
            "in_progress_max": grant.in_progress_max,
            "tokens": [
                {
                    "created_at": secret.created_at,
                    "expires_at": secret.expires_at,
                    "revoked_at": secret.revoked_at,
                    "valid": secret.is_valid(now),
                }
                for secret in grant.tokens
            ],
        }
        for grant in file.grants
    ]
