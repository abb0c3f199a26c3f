"""The disk that loses power, proved by what SQLite itself promises: a table of numbers, one transaction for each."""

import os
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import apsw
import pytest

from tests.simulation.disk import DeadError, Disk, Fault, Loss

CUTS = int(os.environ.get("POWER_CUTS", "30"))
"""Set by `scripts/test.sh --power N`."""

CUTS_SLOW = 300
PATH = "/numbers.db"
PAGES = 3  # after so many in the log they are moved into the file: often, so that cuts meet it


class Numbers:
    """A process that adds the numbers from 0, and remembers which it was told are there."""

    def __init__(self, disk: Disk, *, synchronous: str = "FULL", journal: str = "WAL", checkpoint: bool = False) -> None:
        self.disk = disk
        self.connection = disk.connect(PATH)
        self.execute(f"PRAGMA journal_mode = {journal}")
        self.execute(f"PRAGMA synchronous = {synchronous}")
        self.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
        if checkpoint:
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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

    def add_until_death(self) -> None:
        with pytest.raises(DeadError):
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


def cuts(count: int) -> Iterator[tuple[Random, Loss]]:
    """As many chances as asked for, each kind of loss in turn."""
    for seed in range(count):
        yield Random(seed), tuple(Loss)[seed % len(Loss)]


def lives(rng: Random, loss: Loss, *, synchronous: str = "FULL", journal: str = "WAL") -> tuple[int, int]:
    """Add numbers in three lives, each of which a power cut ends; those acknowledged and lost, and those that are there.

    A life may end while it begins.
    """
    disk, acknowledged, lost = Disk(), 0, 0
    for _ in range(3):
        disk.fail_at(rng.randint(1, 120), Fault.DEATH)
        try:
            numbers = Numbers(disk, synchronous=synchronous, journal=journal)
        except DeadError:
            disk = disk.power_cut(rng, loss)
            continue
        lost += max(0, acknowledged - numbers.acknowledged)
        numbers.add_until_death()
        acknowledged = numbers.acknowledged
        disk = disk.power_cut(rng, loss)
    there = Numbers(disk, synchronous=synchronous, journal=journal).acknowledged
    return lost + max(0, acknowledged - there), there


def keeps_all(count: int, journal: str = "WAL") -> None:
    added = 0
    for rng, loss in cuts(count):
        lost, there = lives(rng, loss, journal=journal)
        assert lost == 0
        added += there
    assert added > 5 * count, "hardly anything happened"


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
        rng, disk, acknowledged = Random(seed), Disk(), 0
        for _ in range(3):
            numbers = Numbers(disk, synchronous=synchronous)
            assert numbers.acknowledged in {acknowledged, acknowledged + 1}
            disk.fail_at(rng.randint(1, 120), Fault.DEATH)
            numbers.add_until_death()
            acknowledged, disk = numbers.acknowledged, disk.crash()
        assert Numbers(disk).acknowledged in {acknowledged, acknowledged + 1}


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.BROKEN, Fault.SHORT])
def test_whichever_operation_fails_the_statement_fails_and_what_was_acknowledged_is_there(fault: Fault) -> None:
    """A failed operation that SQLite may shrug off: moving pages from the log into the file is tried again later."""
    shrugged_off = n = 0
    while True:
        n += 1
        disk = Disk()
        numbers = Numbers(disk)
        disk.fail_at(n, fault)
        try:
            while numbers.acknowledged < 12:
                numbers.add()
                shrugged_off += not disk.fault_is_due
        except (apsw.FullError, apsw.IOError):
            assert not disk.fault_is_due
        if disk.fault_is_due:
            break
        after_crash = Numbers(disk.crash(), checkpoint=True)
        assert after_crash.acknowledged in {numbers.acknowledged, numbers.acknowledged + 1}
        after_crash.add()
        after_cut = Numbers(after_crash.disk.power_cut(Random(n), Loss.ALL))
        assert after_cut.acknowledged == after_crash.acknowledged
    assert n > 30


def lost_after_failed_syncs(*, checkpoint: bool) -> int:
    """Numbers lost by a power cut in the second life, where a sync failed in the first."""
    lost = 0
    for n in range(1, 40):
        numbers = Numbers(disk := Disk())
        disk.fail_at(n, Fault.BROKEN)
        with pytest.raises(apsw.IOError):
            while True:
                numbers.add()
        second = Numbers(disk.crash(), checkpoint=checkpoint)
        second.add()
        lost += second.acknowledged > Numbers(second.disk.power_cut(Random(n), Loss.ALL)).acknowledged
    return lost


def test_after_a_failed_sync_a_new_process_is_safe_once_it_has_moved_the_log_into_the_file() -> None:
    """What the first could not sync, the second can read: so it builds on what is not there. A checkpoint writes it anew."""
    assert lost_after_failed_syncs(checkpoint=False) > 0
    assert lost_after_failed_syncs(checkpoint=True) == 0


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
