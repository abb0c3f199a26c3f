"""`python -m queue_actor token`, called within the process."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from queue_actor.__main__ import main
from queue_actor.access import Keyring, is_well_formed
from queue_actor.token_command import parser
from queue_actor.token_file import read_file

OK, USAGE, UNUSABLE = 0, 64, 78


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """The command on a file of its own."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.now = 1_800_000_000.0  # 2027-01-15T08:00:00Z
        self._capsys = capsys
        monkeypatch.setattr("queue_actor.token_command.time.time", lambda: self.now)

    def __call__(self, *arguments: str) -> Ran:
        code = main(["token", *arguments], {"QUEUE_ACTOR_TOKENS": str(self.path)})
        return Ran(code, *self._capsys.readouterr())

    def create(self, name: str = "a", *more: str) -> str:
        ran = self("create", name, "--scope", "read", "--queue", "q", *more)
        assert (ran.code, ran.err) == (OK, "")
        return ran.out.removesuffix("\n")

    def valid(self, token: str) -> bool:
        return Keyring(read_file(self.path)).find(token.encode(), self.now) is not None


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path / "tokens.json", capsys, monkeypatch)


def test_a_token_is_printed_once_and_alone(command: Command) -> None:
    ran = command("create", "a", "--scope", "produce", "--scope", "consume", "--queue", "images*", "--queue", "q")

    assert ran.code == OK
    assert ran.err == ""
    assert is_well_formed(ran.out.removesuffix("\n").encode())
    assert command.valid(ran.out.removesuffix("\n"))
    assert ran.out.strip() not in command.path.read_text()
    grant = read_file(command.path).named("a")
    assert (grant.scopes, grant.queues) == (("produce", "consume"), ("images*", "q"))


def test_two_tokens_are_two(command: Command) -> None:
    assert command.create("a") != command.create("b")


def test_a_token_has_the_limits_it_is_given(command: Command) -> None:
    command.create("a", "--requests-per-second", "10", "--jobs-per-second", "0.5", "--in-progress-max", "3")

    grant = read_file(command.path).named("a")
    assert (grant.requests_per_second, grant.jobs_per_second, grant.in_progress_max) == (10, 0.5, 3)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (("--expires-seconds", "60"), 60),
        (("--expires", "2027-01-16"), 16 * 3600),
        (("--expires", "2027-01-15T08:01:00Z"), 60),
        (("--expires", "2027-01-15T10:01:00+02:00"), 60),
    ],
)
def test_a_token_expires_when_it_is_said(command: Command, given: tuple[str, str], seconds: int) -> None:
    token = command.create("a", *given)
    command.now += seconds - 1
    assert command.valid(token)
    command.now += 1
    assert not command.valid(token)


def test_a_rotation_keeps_both_until_the_older_is_revoked(command: Command) -> None:
    old = command.create("a")
    new = command("rotate", "a", "--expires-seconds", "60").out.strip()
    assert command.valid(old)
    assert command.valid(new)

    assert command("revoke", "a", "--keep-newest") == (OK, "", "")
    assert not command.valid(old)
    assert command.valid(new)

    assert command("revoke", "a") == (OK, "", "")
    assert not command.valid(new)


def test_a_list_tells_everything_but_secrets(command: Command) -> None:
    assert command("list").code == UNUSABLE  # there is no file yet
    tokens = [
        command.create("a", "--jobs-per-second", "2.5"),
        command.create("b", "--expires-seconds", "60"),
        command.create("c", "--expires-seconds", "86400"),
        command.create("d"),
    ]
    command("revoke", "d")
    tokens.append(command("rotate", "d").out.strip())
    command.now += 60

    ran = command("list")
    assert ran.out.splitlines() == [
        "a scopes=read queues=q jobs_per_second=2.5 tokens=valid",
        "b scopes=read queues=q tokens=expired@2027-01-15",
        "c scopes=read queues=q tokens=until@2027-01-16",
        "d scopes=read queues=q tokens=revoked@2027-01-15,valid",
    ]
    listed: dict[str, Any] = json.loads(command("list", "--json").out)
    assert [[token["valid"] for token in one["tokens"]] for one in listed["tokens"]] == [
        [True],
        [False],
        [True],
        [False, True],
    ]
    for text in (ran.out, json.dumps(listed)):
        assert not re.search(r"qa_|[0-9a-f]{64}", text)
    assert len({*tokens}) == 5


def test_an_empty_list_says_so(command: Command) -> None:
    command.path.write_text('{"tokens": []}')
    assert command("list").out == "there are no tokens\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("make",),
        ("create",),
        ("create", "a"),
        ("create", "a", "--scope", "read"),
        ("create", "a", "--queue", "q"),
        ("create", "a", "--scope", "write", "--queue", "q"),
        ("create", "a b", "--scope", "read", "--queue", "q"),
        ("create", "a", "--scope", "read", "--queue", "*q"),
        ("create", "a", "--scope", "read", "--queue", "q", "--jobs-per-second", "0"),
        ("create", "a", "--scope", "read", "--queue", "q", "--jobs-per-second", "nan"),
        ("create", "a", "--scope", "read", "--queue", "q", "--in-progress-max", "1.5"),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires-seconds", "0"),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires-seconds", "1" + "0" * 20),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires", "2027-01-14"),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires", "tomorrow"),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires", "2027-01-16T08:00"),
        ("create", "a", "--scope", "read", "--queue", "q", "--expires", "2027-02-01", "--expires-seconds", "9"),
        ("create", "there", "--scope", "read", "--queue", "q"),
        ("rotate", "gone"),
        ("revoke", "gone"),
        ("list", "a"),
    ],
)
def test_a_wrong_call_is_64_and_changes_nothing(command: Command, arguments: tuple[str, ...]) -> None:
    command.create("there")
    before = command.path.read_bytes()

    ran = command(*arguments)

    assert ran.code == USAGE
    assert ran.out == ""
    assert ran.err
    assert command.path.read_bytes() == before


def test_no_file_at_all_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "list"], {}) == USAGE
    assert "QUEUE_ACTOR_TOKENS" in capsys.readouterr().err


def test_the_flag_wins_over_the_variable(command: Command, tmp_path: Path) -> None:
    command.create("a", "--file", str(tmp_path / "other.json"))

    assert not command.path.exists()
    assert read_file(tmp_path / "other.json").named("a").tokens


def test_a_file_that_cannot_be_used_is_78(command: Command) -> None:
    command.path.write_text('{"tokens": [{"name": "x", "shoe_size": 44}]}')

    for arguments in (("list",), ("revoke", "x"), ("create", "a", "--scope", "read", "--queue", "q")):
        ran = command(*arguments)
        assert ran.code == UNUSABLE
        assert ran.out == ""
        assert re.fullmatch(r"queue-actor: .*tokens\.json: token 'x': .*`shoe_size`\n", ran.err)


def test_a_command_that_is_none_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {}) == main(["tokens"], {}) == USAGE
    assert "token" in capsys.readouterr().err
    assert main(["--help"], {}) == OK
    assert "token" in capsys.readouterr().out


def test_it_runs_as_a_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["queue_actor", "token", "--help"])
    monkeypatch.delitem(sys.modules, "queue_actor.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("queue_actor", run_name="__main__")
    assert ended.value.code == OK
    assert "rotate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("called", "program"),
    [("/usr/bin/queue-actor", "queue-actor"), ("/src/queue_actor/__main__.py", "python -m queue_actor")],
)
def test_its_help_names_it_as_it_was_called(called: str, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called, "token"])
    assert parser().format_usage().startswith(f"usage: {program} token ")
