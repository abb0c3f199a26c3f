"""The disk that loses power, proved by what SQLite itself promises: a table of numbers, one transaction for each."""

from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import apsw
import pytest

from tests.simulation.disk import CUTS, CUTS_SLOW, DeadError, Disk, Fault, Loss, chance

PATH = "/numbers.db"
PAGES = 3  # after so many in the log they are moved into the file: often, so that cuts meet it


class Numbers:
    """A process that adds the numbers from 0, and remembers which it was told are there."""

    def __init__(
        self, disk: Disk, *, synchronous: str = "FULL", journal: str = "WAL", makes_sure: bool = False
    ) -> None:
        self.disk = disk
        self.connection = disk.connect(PATH)
        self.execute(f"PRAGMA journal_mode = {journal}")
        self.execute(f"PRAGMA synchronous = {synchronous}")
        self.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
        if makes_sure:
            # What is in the log is written and synced in the file. The log is cut only when it is next synced; until
            # then a part of it may come back, older than the file. Any transaction does that.
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (version,) = self.execute("PRAGMA user_version")
            self.execute(f"PRAGMA user_version = {version[0] + 1}")
        self.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY, filling BLOB)")
        self.acknowledged = len(self.read())

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return self.connection.execute(sql, parameters).fetchall()

    def add(self) -> None:
        """Add the next number, with so much around it that it may take several pages."""
        n = self.acknowledged
        self.execute("BEGIN IMMEDIATE")
        self.execute("INSERT INTO numbers VALUES (?, ?)", (n, bytes([n % 256]) * (n * 997 % 6_000)))
        self.execute("COMMIT")
        self.acknowledged += 1

    def add_for_ever(self) -> NoReturn:
        while True:
            self.add()

    def read(self) -> list[int]:
        """The numbers that are there: the first ones, and sound."""
        assert self.execute("PRAGMA integrity_check") == [("ok",)]
        numbers = []
        for n, filling in self.execute("SELECT n, filling FROM numbers ORDER BY n"):
            assert isinstance(n, int)
            assert filling == bytes([n % 256]) * (n * 997 % 6_000)
            numbers.append(n)
        assert numbers == list(range(len(numbers))), "something in the middle was lost"
        return numbers


def cuts(times: int) -> Iterator[tuple[Random, Loss]]:
    """As many chances as asked for, each kind of loss in turn."""
    for seed in range(times):
        yield chance(seed), tuple(Loss)[seed % len(Loss)]


def lives(
    rng: Random, loss: Loss, *, synchronous: str = "FULL", journal: str = "WAL", folder: Path | None = None
) -> tuple[int, int]:
    """Add numbers in three lives, each ended by a power cut: how many were lost, and how many are there."""
    disk, acknowledged, lost = Disk(shared_memory=folder), 0, 0
    for _ in range(3):
        disk.fail_at(rng.randint(1, 120), Fault.DEATH)
        try:
            numbers = Numbers(disk, synchronous=synchronous, journal=journal)
        except DeadError:
            disk = disk.power_cut(rng, loss)
            continue
        lost += max(0, acknowledged - numbers.acknowledged)
        with pytest.raises(DeadError):
            numbers.add_for_ever()
        acknowledged = numbers.acknowledged
        disk = disk.power_cut(rng, loss)
    there = Numbers(disk, synchronous=synchronous, journal=journal).acknowledged
    return lost + max(0, acknowledged - there), there


def keeps_all(times: int, journal: str = "WAL") -> None:
    added = 0
    for rng, loss in cuts(times):
        lost, there = lives(rng, loss, journal=journal)
        assert lost == 0
        added += there
    assert added > 5 * times, "hardly anything happened"


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_a_power_cut_loses_nothing_that_was_synced(journal: str) -> None:
    keeps_all(CUTS, journal)


@pytest.mark.slow
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_power_cuts_at_length_lose_nothing_that_was_synced(journal: str) -> None:
    keeps_all(CUTS_SLOW, journal)


def test_without_a_sync_for_each_commit_only_the_last_ones_are_lost() -> None:
    """That nothing else is, and that all is sound, `Numbers.read` finds out."""
    lost = sum(lives(rng, loss, synchronous="NORMAL")[0] for rng, loss in cuts(CUTS))
    assert lost > 0, "the disk keeps what nobody synced"


def test_without_any_sync_the_loss_is_found() -> None:
    """Not only the last ones may be gone: a file may not be sound, or no database any more."""
    guilty = 0
    for rng, loss in cuts(CUTS):
        try:
            guilty += lives(rng, loss, synchronous="OFF")[0] > 0
        except (AssertionError, apsw.Error):
            guilty += 1
    assert guilty > CUTS // 2


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL", "OFF"])
def test_the_death_of_the_process_alone_loses_nothing(synchronous: str) -> None:
    for seed in range(CUTS):
        rng, disk, acknowledged = chance(seed), Disk(), 0
        for _ in range(3):
            numbers = Numbers(disk, synchronous=synchronous)
            assert numbers.acknowledged in {acknowledged, acknowledged + 1}
            disk.fail_at(rng.randint(1, 120), Fault.DEATH)
            with pytest.raises(DeadError):
                numbers.add_for_ever()
            acknowledged, disk = numbers.acknowledged, disk.crash()
        assert Numbers(disk).acknowledged in {acknowledged, acknowledged + 1}


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.BROKEN, Fault.SHORT])
def test_whichever_operation_fails_the_statement_fails_and_what_was_acknowledged_is_there(fault: Fault) -> None:
    numbers, n = Numbers(Disk()), 0
    for n in count(1):
        numbers = Numbers(Disk())
        numbers.disk.fail_at(n, fault)
        try:
            while numbers.acknowledged < 12:
                numbers.add()
        except (apsw.FullError, apsw.IOError):
            pass
        else:
            break
        second = Numbers(numbers.disk.crash(), makes_sure=True)
        assert second.acknowledged in {numbers.acknowledged, numbers.acknowledged + 1}
        second.add()
        third = Numbers(second.disk.power_cut(chance(n), Loss.ALL))
        assert third.acknowledged == second.acknowledged
    assert numbers.disk.fault_is_due, "an operation failed, and nobody was told"
    assert n > 30


def is_lost(disk: Disk, acknowledged: int, loss: Loss) -> bool:
    """Whether a power cut takes numbers, or all of the database."""
    try:
        return Numbers(disk.power_cut(chance(0), loss)).acknowledged < acknowledged
    except (apsw.CorruptError, AssertionError):
        return True


def lost_by_second_life(fault: Fault, *, adds: int, makes_sure: bool) -> int:
    """How often a power cut takes from a second life what it knew, by the operation at which the first one ended."""
    lost = 0
    for n, loss in product(range(1, 40), Loss):
        numbers = Numbers(disk := Disk())
        disk.fail_at(n, fault)
        with pytest.raises((apsw.IOError, DeadError)):
            numbers.add_for_ever()
        second = Numbers(disk.crash(), makes_sure=makes_sure)
        for _ in range(adds):
            second.add()
        lost += is_lost(second.disk, second.acknowledged, loss)
    return lost


def test_a_new_process_must_make_sure_of_what_it_finds() -> None:
    """The last transaction may be in the log and not be synced: the first died before it could acknowledge it."""
    assert lost_by_second_life(Fault.DEATH, adds=0, makes_sure=False) > 0
    assert lost_by_second_life(Fault.DEATH, adds=0, makes_sure=True) == 0


@pytest.mark.parametrize("adds", [0, 1])
def test_after_a_failed_sync_a_new_process_is_safe_once_it_has_made_sure(adds: int) -> None:
    """Else it adds to a log whose middle is not there: what it acknowledges itself is lost, or nothing is sound."""
    assert lost_by_second_life(Fault.BROKEN, adds=adds, makes_sure=False) > 0
    assert lost_by_second_life(Fault.BROKEN, adds=adds, makes_sure=True) == 0


@pytest.mark.parametrize(("journal", "synchronous"), [("WAL", "FULL"), ("DELETE", "EXTRA")])
def test_with_shared_memory_it_is_the_same(tmp_path: Path, journal: str, synchronous: str) -> None:
    for rng, loss in cuts(CUTS):
        assert lives(rng, loss, synchronous=synchronous, journal=journal, folder=tmp_path)[0] == 0
    for path in tmp_path.glob("*.db"):
        assert path.stat().st_size == 0


def test_a_deleted_journal_may_come_back_unless_the_directory_is_synced(tmp_path: Path) -> None:
    """Then it undoes what was acknowledged. SQLite syncs the directory from `synchronous=EXTRA` on."""
    assert any(lives(rng, loss, journal="DELETE", folder=tmp_path)[0] for rng, loss in cuts(CUTS))


def test_with_shared_memory_there_may_be_several_connections(tmp_path: Path) -> None:
    numbers = Numbers(Disk(shared_memory=tmp_path))
    reader = numbers.disk.connect(PATH)
    for n in range(1, 10):
        numbers.add()
        assert reader.execute("SELECT count(*) FROM numbers").fetchone() == (n,)
    assert Numbers(numbers.disk.power_cut(chance(0), Loss.ALL)).acknowledged == 9


def test_the_dead_do_nothing() -> None:
    numbers = Numbers(disk := Disk())
    numbers.add()
    after = disk.crash()
    with pytest.raises(apsw.ConnectionClosedError):
        numbers.add()
    assert Numbers(after).acknowledged == 1


def test_there_is_one_connection_at_a_time() -> None:
    numbers = Numbers(disk := Disk())
    numbers.add()
    with pytest.raises(apsw.BusyError):
        disk.connect(PATH).execute("SELECT * FROM numbers")
    numbers.connection.close()
    assert Numbers(disk).acknowledged == 1
