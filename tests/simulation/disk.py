"""A disk in memory that loses power: SQLite's own code runs on it, and nothing else of the world.

Theory of operation. A `Disk` is a VFS, SQLite's door to files. Each file is kept twice: as the system shows it (with
every write), and as the medium has it (with the writes that were synced); between the two lies the log of what is at
risk. Names are kept in the same way: creating and deleting files is not safe either until the directory is synced. This
SQLite asks for when a deleted journal decides; and with the first sync of a new file Linux's file systems do it anyway.

`crash` is the death of the process: the system lives on, so everything written is there, and what was not synced still
is not. `power_cut` is the death of the machine: whatever was not synced is kept, lost, torn, zeroed, or there but for a
bit, as chance will have it, while synced bytes never change (SQLite calls it "powersafe overwrite", and relies on it on
Unix). Both give a new disk to open the files from; the one before answers nothing any more, so that a process cannot
act after its death.

A sync that fails is worse than one that did not happen. Linux takes what it could not write for written: it shows it
on, and does not try again (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). So here
too: such writes stay at risk for ever, whatever is synced later, until they are written again.

Shared memory, where connections keep the index of the write-ahead log, a VFS in Python cannot offer. So `connect` asks
for `locking_mode=EXCLUSIVE` before anything is read: SQLite then keeps the index on the heap, and there is one
connection. If the disk is given a folder, the system's own VFS makes shared memory in it, and all is as in production:
any number of connections, locking as usual. Shared memory does not outlive a death; nothing durable is in the folder.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import apsw

CUTS = max(30, int(os.environ.get("POWER_CUTS", "0")))
"""Power cuts that a test makes; set by `scripts/test.sh --power N`."""

CUTS_SLOW = 300

SECTOR_BYTES = (512, 4_096)
"""What a medium writes as a whole, or does not."""

_numbers = count()


def chance(seed: int) -> Random:
    """Chance that can be repeated."""
    return Random(seed)  # noqa: S311 - that is why


class Fault(StrEnum):
    """What can go wrong with one operation. It does so once: the next one succeeds, unless it comes after a death."""

    FULL = "full"  # ENOSPC; nothing was written
    BROKEN = "broken"  # EIO; nothing was written
    SHORT = "short"  # the first half was written, then the disk was full
    DEATH = "death"  # the machine or the process ends in the midst of it: nothing is answered any more


class Loss(StrEnum):
    """What becomes of that which was not synced when the power goes."""

    ALL = "all"  # nothing of it is there
    END = "end"  # it was written in order, and the last write that counts was torn at any byte
    SOME = "some"  # each sector of it is there, or not
    ZEROS = "zeros"  # each sector of it is there, or not, or was allocated and never filled
    FLIPS = "flips"  # each sector of it is there, or not, or is there with one bit the other way


def flipped(data: bytes, rng: Random) -> bytes:
    """The same but for one bit."""
    bit = rng.randrange(8 * len(data))
    return (int.from_bytes(data) ^ 1 << bit).to_bytes(len(data))


class DeadError(Exception):
    """The process that asks has ended, or its machine has."""


class _Write:
    """Something that was done to a file and is at risk. Without data the file was cut, or grown, to `offset`."""

    __slots__ = ("data", "offset", "safe", "stuck")

    def __init__(self, offset: int, data: bytes | None) -> None:
        self.offset = offset
        self.data = data
        self.safe = False  # synced, but listed here behind one that is not
        self.stuck = False  # its sync failed: the system takes it for safe

    def apply(self, content: bytearray) -> None:
        """Do it."""
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
        else:
            content.extend(bytes(max(0, self.offset - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data

    def sectors(self, sector_bytes: int) -> Iterator["_Write"]:
        """The same in pieces, none of which crosses the border of a sector."""
        if self.data is None:
            yield self
            return
        at = self.offset
        while at < self.offset + len(self.data):
            end = min(at - at % sector_bytes + sector_bytes, self.offset + len(self.data))
            yield _Write(at, self.data[at - self.offset : end - self.offset])
            at = end


class _Content:
    """A file, whatever it is called."""

    def __init__(self, medium: bytes | bytearray = b"", *, is_new: bool = True) -> None:
        self.medium = bytearray(medium)
        self.shown = bytearray(medium)
        self.at_risk: list[_Write] = []
        self.is_new = is_new  # the directory was not synced since the file was created
        self.locks: dict[_File, int] = {}

    def write(self, write: _Write) -> None:
        """Show it, and note that it is at risk."""
        write.apply(self.shown)
        self.at_risk.append(write)

    def sync(self) -> None:
        """Make safe whatever the system knows to be at risk."""
        for write in self.at_risk:
            write.safe = not write.stuck
        while self.at_risk and self.at_risk[0].safe:
            self.at_risk.pop(0).apply(self.medium)

    def fail_to_sync(self) -> None:
        """Let whatever is at risk be so for ever."""
        for write in self.at_risk:
            write.stuck = write.stuck or not write.safe

    def after_crash(self) -> "_Content":
        """The file as it is shown to the next process."""
        self.locks.clear()
        return self

    def after_power_cut(self, rng: Random, loss: Loss) -> "_Content":
        """The file as the next start of the machine finds it."""
        left = bytearray(self.medium)
        sector_bytes = rng.choice(SECTOR_BYTES)
        written = rng.randint(0, len(self.at_risk))  # that many wholly, if they are written in order
        for n, write in enumerate(self.at_risk):
            if write.safe:
                write.apply(left)
            elif loss is Loss.END:
                if n == written and write.data is not None:
                    write = _Write(write.offset, write.data[: rng.randint(0, len(write.data))])  # noqa: PLW2901
                if n <= written:
                    write.apply(left)
            elif loss is not Loss.ALL:
                for piece in write.sectors(sector_bytes):
                    fate = rng.choice(("there", "there", "lost", "lost" if loss is Loss.SOME else loss))
                    if fate == "lost":
                        continue
                    if piece.data is None or fate == "there":
                        piece.apply(left)
                    elif fate is Loss.ZEROS:
                        _Write(piece.offset, bytes(len(piece.data))).apply(left)
                    else:
                        _Write(piece.offset, flipped(piece.data, rng)).apply(left)
        return _Content(left, is_new=False)


class Disk(apsw.VFS):
    """Files, and what can happen to them. Attributes whose names begin with x are what SQLite calls."""

    def __init__(self, names: dict[str, _Content] | None = None, *, shared_memory: Path | None = None) -> None:
        self.vfs_name = f"disk-{next(_numbers)}"
        super().__init__(self.vfs_name, base="")
        self.operations = 0  # writes, truncates, syncs and deletes so far
        self.dead = False
        self._shared_memory = shared_memory
        self._names = dict(names or {})
        self._safe_names = dict(self._names)
        self._names_at_risk: list[tuple[str, _Content | None]] = []  # None: deleted
        self._fault: tuple[int, Fault] | None = None
        self._connections: list[apsw.Connection] = []

    # --- what a test does

    def connect(self, path: str) -> apsw.Connection:
        """The seam of the store: what `sqlite3.connect` is in production."""
        connection = apsw.Connection(path, vfs=self.vfs_name)
        self._connections.append(connection)
        if self._shared_memory is None:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        return connection

    def fail_at(self, n: int, fault: Fault) -> None:
        """Let the n-th operation from now, counted from 1, go wrong."""
        self._fault = self.operations + n, fault

    @property
    def fault_is_due(self) -> bool:
        """Whether an operation that shall go wrong has yet to come."""
        return self._fault is not None

    def crash(self) -> "Disk":
        """End the process, not the machine."""
        self._die()
        names = {name: content.after_crash() for name, content in self._names.items()}
        after = Disk(names, shared_memory=self._shared_memory)
        after._safe_names = self._safe_names
        after._names_at_risk = self._names_at_risk
        return after

    def power_cut(self, rng: Random, loss: Loss) -> "Disk":
        """End the machine. The names that changed last may be as they were before, later ones first."""
        self._die()
        names = dict(self._safe_names)
        kept = 0 if loss is Loss.ALL else rng.randint(0, len(self._names_at_risk))
        for name, content in self._names_at_risk[:kept]:
            _rename(names, name, content)
        names = {name: content.after_power_cut(rng, loss) for name, content in names.items()}
        return Disk(names, shared_memory=self._shared_memory)

    def _die(self) -> None:
        self.dead = True
        for connection in self._connections:
            with suppress(DeadError):  # closing writes, or would
                connection.close()
        self.unregister()

    # --- the directory

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> "_File":  # type: ignore[override] # noqa: N802 - a file need not derive from another VFS's
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.check_alive()
        flags[1] = flags[0]
        if path is None:
            return _File(self, None, _Content())
        if path not in self._names:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(path)
            self._name(path, _Content())
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB and self._shared_memory is not None:
            beside = self._shared_memory / f"{self.vfs_name}{path.replace('/', '-')}"
            return _SharedFile(self, self._names[path], str(beside), list(flags))
        temporary = flags[0] & apsw.SQLITE_OPEN_DELETEONCLOSE
        return _File(self, path if temporary else None, self._names[path])

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        fault = self.count()
        if fault is not None:
            _fail(fault, apsw.SQLITE_IOERR_DELETE)
        if filename not in self._names:
            raise apsw.exception_for(apsw.SQLITE_IOERR_DELETE_NOENT)
        self._name(filename, None)
        if syncdir:
            self.sync_names()

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: ARG002, N802 - SQLite's name; what is there may be used
        self.check_alive()
        return pathname in self._names

    def xFullPathname(self, name: str) -> str:  # noqa: N802 - SQLite's name
        return name

    def _name(self, name: str, content: _Content | None) -> None:
        _rename(self._names, name, content)
        self._names_at_risk.append((name, content))

    def sync_names(self) -> None:
        """Make names safe."""
        self._safe_names = dict(self._names)
        self._names_at_risk.clear()
        for content in self._names.values():
            content.is_new = False

    # --- faults

    def check_alive(self) -> None:
        """Refuse to serve the dead."""
        if self.dead:
            raise DeadError

    def count(self) -> Fault | None:
        """Count an operation; the fault that it is to have."""
        self.check_alive()
        self.operations += 1
        if self._fault is None or self.operations < self._fault[0]:
            return None
        fault, self._fault = self._fault[1], None
        if fault is Fault.DEATH:
            self.dead = True
        return fault


class _File:
    """An open file."""

    def __init__(self, disk: Disk, temporary: str | None, content: _Content) -> None:
        self._disk = disk
        self._temporary = temporary
        self._content = content

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - SQLite's name, as all that follow
        self._disk.check_alive()
        return bytes(self._content.shown[offset : offset + amount])

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        fault = self._disk.count()
        data = bytes(data)
        if fault in {Fault.SHORT, Fault.DEATH}:
            data = data[: len(data) // 2]
        if fault in {None, Fault.SHORT, Fault.DEATH}:
            self._content.write(_Write(offset, data))
        if fault is not None:
            _fail(fault, apsw.SQLITE_IOERR_WRITE)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        fault = self._disk.count()
        if fault is not None:
            _fail(fault, apsw.SQLITE_IOERR_TRUNCATE)
        self._content.write(_Write(newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: ARG002, N802 - every sync is a full one
        fault = self._disk.count()
        if fault is not None:
            if fault is not Fault.DEATH:
                self._content.fail_to_sync()
            _fail(fault, apsw.SQLITE_IOERR_FSYNC)
        self._content.sync()
        if self._content.is_new:
            self._disk.sync_names()

    def xFileSize(self) -> int:  # noqa: N802
        self._disk.check_alive()
        return len(self._content.shown)

    def xLock(self, level: int) -> None:  # noqa: N802
        others = max((held for file, held in self._content.locks.items() if file is not self), default=0)
        # Beside a reader (1) one may read and intend to write (2); beside that intention, only read.
        if others and level + others > apsw.SQLITE_LOCK_SHARED + apsw.SQLITE_LOCK_RESERVED:
            raise apsw.BusyError
        self._content.locks[self] = level

    def xUnlock(self, level: int) -> None:  # noqa: N802
        self._content.locks[self] = level

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return any(level >= apsw.SQLITE_LOCK_RESERVED for level in self._content.locks.values())

    def xSectorSize(self) -> int:  # noqa: N802
        return 4_096  # what SQLite says of any file on Unix

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # the same

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: ARG002, N802
        return False

    def xClose(self) -> None:  # noqa: N802
        self._content.locks.pop(self, None)
        if self._temporary is not None and not self._disk.dead:
            self._disk.xDelete(self._temporary, syncdir=False)


class _SharedFile(_File, apsw.VFSFile):
    """An open database whose shared memory is the system's, as if it were the file of that name."""

    def __init__(self, disk: Disk, content: _Content, beside: str, flags: list[int]) -> None:
        _File.__init__(self, disk, None, content)
        apsw.VFSFile.__init__(self, "", beside, flags)

    def xClose(self) -> None:  # noqa: N802 - SQLite's name
        _File.xClose(self)
        apsw.VFSFile.xClose(self)


def _rename(names: dict[str, _Content], name: str, content: _Content | None) -> None:
    if content is None:
        names.pop(name, None)
    else:
        names[name] = content


def _fail(fault: Fault, extended: int) -> NoReturn:
    match fault:
        case Fault.DEATH:
            raise DeadError
        case Fault.BROKEN:
            raise apsw.exception_for(extended)
        case _:
            raise apsw.exception_for(apsw.SQLITE_FULL)
