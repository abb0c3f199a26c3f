"""Copies of the store's file while it is in use: consistent, compact, and in nobody's way.

A copy is made through a connection and in a thread of its own, of what was committed when it began; the engine goes on
meanwhile. Its file loses its name as soon as it is whole, so that nothing is left of it once it is closed, however the
process ends. What a process killed before that leaves behind, the next one removes.
"""

import os
import sqlite3
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from tempfile import mkstemp
from typing import Final

import trio

from queue_actor.errors import BackupRunning, DiskFull, Draining
from queue_actor.threads import RunInThread

PREFIX: Final = "backup-"
SUFFIX: Final = ".part"

PIECE_BYTES: Final = 256 * 1024
STEPS_BETWEEN_LOOKS: Final = 20_000
"""Steps of SQLite's machine after which a copy under way looks whether the server is about to end: milliseconds."""


class Copy:
    """A copy that is there until it is closed. `file_bytes` is its length."""

    def __init__(self, descriptor: int, run_in_thread: RunInThread, closed: Callable[[], None]) -> None:
        self.file_bytes = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._run_in_thread = run_in_thread
        self._closed = closed

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the copy, a bounded number at a time."""
        at = 0
        while at < self.file_bytes:
            piece: bytes = await self._run_in_thread(partial(os.pread, self._descriptor, PIECE_BYTES, at))
            at += len(piece)
            yield piece

    async def aclose(self) -> None:
        """Give its room on the disk back, which takes a file system half a second for half a gigabyte."""
        with trio.CancelScope(shield=True):
            await self._run_in_thread(partial(os.close, self._descriptor))
        self._closed()


class Backups:
    """Makes copies, one at a time."""

    def __init__(
        self,
        path: Path,
        directory: Path,
        connect: Callable[[Path], sqlite3.Connection],
        run_in_thread: RunInThread,
        room_bytes: Callable[[], float],
    ) -> None:
        """Take the file, and where copies lie; see `SqliteStore` for the other arguments."""
        self._path = path
        self._directory = directory
        self._connect = connect
        self._run_in_thread = run_in_thread
        self._room_bytes = room_bytes
        self._running = False
        self._stopped = False

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed has left. Only for the process that has the directory's lock."""
        for path in self._directory.glob(f"{PREFIX}*{SUFFIX}*"):
            path.unlink()

    async def make(self) -> Copy:
        """A copy of all that is committed now. There is no other until it is closed.

        Raises:
            BackupRunning: There is another.
            DiskFull: A copy would take what is reserved for the jobs that are there.
            Draining: The server is about to end.
        """
        if self._stopped:
            raise Draining("the server is about to end")
        if self._running:
            raise BackupRunning("a backup is under way, and there is one at a time")
        self._running = True
        try:
            copy: Copy = await self._run_in_thread(self._make)
        except BaseException:
            self._end()
            raise
        return copy

    def stop(self) -> None:
        """Break off a copy that is being made, and make no more."""
        self._stopped = True

    def _end(self) -> None:
        self._running = False

    def _make(self) -> Copy:
        file_bytes = sum(path.stat().st_size for path in (self._path, Path(f"{self._path}-wal")) if path.exists())
        if file_bytes > self._room_bytes():
            raise DiskFull(f"a copy takes up to {file_bytes} bytes, which the disk does not have to spare")
        descriptor, name = mkstemp(SUFFIX, PREFIX, self._directory)
        try:
            try:
                self._copy_to(name)
            finally:
                Path(name).unlink()
            return Copy(descriptor, self._run_in_thread, self._end)
        except BaseException:
            os.close(descriptor)
            raise

    def _copy_to(self, name: str) -> None:
        connection = self._connect(self._path)
        try:
            # Or the copy, which need not survive anything, would be flushed while commits wait for the disk.
            connection.execute("PRAGMA synchronous = OFF")
            connection.set_progress_handler(lambda: self._stopped, STEPS_BETWEEN_LOOKS)
            connection.execute("VACUUM INTO ?", (name,))
        except sqlite3.OperationalError as error:
            if self._stopped:
                raise Draining("the server is about to end") from error
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull("the disk has no room for a copy") from error
            raise
        finally:
            connection.close()
