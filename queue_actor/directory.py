"""The data directory: who may use it, and what is in it.

    queue.sqlite        the store (and queue.sqlite-wal, queue.sqlite-shm beside it while a server runs)
    lock                held by the server that uses the directory; empty, and never deleted
    backup-*.part       a copy that is being made

Whatever cannot be used is told in one line and left as it is.
"""

import fcntl
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

from queue_actor.archive import Archive
from queue_actor.backups import Backups
from queue_actor.durable import Data
from queue_actor.schema import ForeignFileError
from queue_actor.service import INSTANCE_BYTES
from queue_actor.settings import PREFIX, SettingError, Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.threads import one_at_a_time
from queue_actor.tokens import SECRET_BYTES

__all__ = ["FILE", "Data", "connect", "connect_reader", "locked", "open_directory", "sync"]

FILE = "queue.sqlite"
LOCK = "lock"

STATEMENTS_CACHED = 256
BUSY_SECONDS = 5.0
"""How long a commit waits for somebody else's write lock on the file; nobody should have one."""

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "lustre"}
)
"""On these neither locks nor flushes are what they are on a disk."""

_MOUNTS = Path("/proc/self/mountinfo")


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes, and is in a transaction only between BEGIN and COMMIT."""
    return sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS_CACHED
    )


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    address = f"file:{quote(str(path))}?mode=ro"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


@contextmanager
def open_directory(settings: Settings) -> Iterator[Data]:
    """The store and the archive of the setting `data`, which are this process's alone inside the block.

    Raises:
        SettingError: The directory or a file in it cannot be used.
    """
    directory = Path(settings.data)
    with locked(directory):
        path = directory / FILE
        room_bytes = partial(_room_bytes, directory, settings.disk_reserve_bytes)
        backups = Backups(path, directory, connect_reader, one_at_a_time(), room_bytes)
        with _complaints(path):
            backups.remove_leftovers()
            _make_file(path)
            store = SqliteStore(
                path,
                connect,
                durability=settings.durability,
                fresh_secret=secrets.token_bytes(SECRET_BYTES),
                fresh_instance=secrets.token_hex(INSTANCE_BYTES),
                run_in_thread=one_at_a_time(),
                room_bytes=room_bytes,
            )
        try:
            if settings.vacuum:
                with _complaints(path):
                    store.vacuum()
            archive = Archive(path, connect_reader, one_at_a_time(), one_at_a_time())
            try:
                yield Data(store, archive, backups)
            finally:
                archive.close()
        finally:
            store.close()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory, made if it is not there, is this process's alone inside the block.

    Raises:
        SettingError: It cannot be used, or another process uses it.
    """
    with _complaints(directory):
        _refuse_network(directory)
        if not directory.exists():
            directory.mkdir(mode=0o700)
        lock = _lock(directory)
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Says in one line, with the name of the setting, what is wrong with a path."""
    try:
        yield
    except (OSError, sqlite3.Error, ForeignFileError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(f"{PREFIX}DATA: {path} cannot be used: {reason}") from error


def _lock(directory: Path) -> int:
    """The descriptor of the lock, which is held until it is closed or the process ends."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise SettingError(f"{PREFIX}DATA: another server uses {directory}") from error
        raise
    return lock


def _make_file(path: Path) -> None:
    """See to it that there is a file that is a file, for its owner alone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SettingError(f"{PREFIX}DATA: {path} cannot be used: it is not a regular file")
    finally:
        os.close(descriptor)
    sync(path.parent)  # or a power cut might take the file away with all that was synced into it


def sync(path: Path) -> None:
    """Have on the disk what a file holds, or what a directory lists."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room_bytes(directory: Path, reserve_bytes: int) -> float:
    figures = os.statvfs(directory)
    return figures.f_bavail * figures.f_frsize - reserve_bytes


def _refuse_network(directory: Path) -> None:
    """Refuse a directory of another machine, where the system tells."""
    try:
        mounts = _MOUNTS.read_text().splitlines()
    except FileNotFoundError:
        return
    real = directory.resolve()
    longest, kind = "", ""
    for mount in mounts:
        fields, _, rest = mount.partition(" - ")
        point = fields.split(" ")[4].replace("\\040", " ")
        if (real == Path(point) or Path(point) in real.parents) and len(point) >= len(longest):
            longest, kind = point, rest.split(" ")[0]
    if kind in NETWORK_FILE_SYSTEMS:
        raise SettingError(f"{PREFIX}DATA: {directory} lies on {kind}, and a store must lie on a disk of this machine")
