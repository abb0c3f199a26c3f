"""The file of access tokens on a real disk."""

import os
import threading
from pathlib import Path

import pytest

from queue_actor import token_file
from queue_actor.access import AccessError, ChangeRefused, Grant, Scope
from queue_actor.token_file import change_file, read_file, signature_of


def add(name: str, path: Path, *, create: bool = True) -> None:
    grant = Grant(name=name, scopes=(Scope.READ,), queues=("q",))
    change_file(path, lambda file: file.with_grant(grant), create=create)


def names(path: Path) -> list[str]:
    return [grant.name for grant in read_file(path).grants]


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add("a", path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path) == ["a"]


def test_a_change_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add("a", path)
    path.chmod(0o644)
    before = path.stat().st_ino
    add("b", path)

    assert names(path) == ["a", "b"]
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path, target = tmp_path / "tokens.json", tmp_path / "data" / "real.json"
    path.symlink_to("data/real.json")
    add("a", path)  # the target need not be there yet
    add("b", path)

    assert path.is_symlink()
    assert not target.is_symlink()
    assert names(target) == names(path) == ["a", "b"]


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    threads = [threading.Thread(target=add, args=(f"n{number}", path)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(names(path)) == sorted(f"n{number}" for number in range(20))


def test_a_refused_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add("a", path)
    before = signature_of(path)
    with pytest.raises(ChangeRefused):
        add("a", path)

    assert signature_of(path) == before


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.json"
    add("a", path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_file.os, "fsync", full)  # type: ignore[attr-defined] # it is the module's
    with pytest.raises(AccessError, match="No space left"):
        add("b", path)

    assert names(path) == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_only_who_asks_for_it_makes_a_file(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"tokens\.json: No such file"):
        add("a", tmp_path / "tokens.json", create=False)
    with pytest.raises(AccessError, match="No such file"):
        add("a", tmp_path / "nowhere" / "tokens.json")


def test_what_is_no_file_of_tokens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text("precious")
    with pytest.raises(AccessError, match=r"tokens\.json: "):
        add("a", path)
    assert path.read_text() == "precious"

    with pytest.raises(AccessError, match="Is a directory"):
        read_file(tmp_path)


def test_a_file_that_is_too_large_is_some_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.json"
    add("a", path)
    monkeypatch.setattr(token_file, "FILE_BYTES_MAX", 10)
    with pytest.raises(AccessError, match="larger than 10 bytes"):
        read_file(path)


def test_a_signature_tells_every_change(tmp_path: Path) -> None:
    path, other = tmp_path / "tokens.json", tmp_path / "other.json"
    assert signature_of(path) is None
    path.write_text("a")
    seen = {signature_of(path)}
    os.utime(path, ns=(1, 1))
    seen.add(signature_of(path))
    path.write_text("ab")
    os.utime(path, ns=(1, 1))
    seen.add(signature_of(path))
    other.write_text("ab")
    os.utime(other, ns=(1, 1))
    other.rename(path)
    seen.add(signature_of(path))
    path.chmod(0o400)  # who could not read it before may be able to now
    seen.add(signature_of(path))

    assert len(seen) == 5
