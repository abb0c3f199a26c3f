"""How a call ends, and what it says of what went wrong."""

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

import queue_actor.__main__
from queue_actor.commandline import group as module
from queue_actor.commandline.group import CODES, PROGRAM, connect, group, installed_version, main
from queue_actor.commandline.session import Target
from tests.unit.commandline.conftest import Command, FakeServer, job_document

JOB = "GET /v1/queues/q/jobs/17"


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("unknown_job", 404, 1),
        ("invalid", 400, 1),
        ("unauthorized", 401, 77),
        ("forbidden", 403, 77),
        ("busy", 503, 75),
        ("rate_limited", 429, 75),
        ("internal", 500, 75),
        ("never_heard_of", 418, 1),
    ],
)
def test_a_refusal_ends_the_call_by_its_kind(
    command: Command, server: FakeServer, code: str, status: int, exit_code: int
) -> None:
    server.refuses(JOB, code, status)

    assert command("job", "q/17") == (exit_code, "", f"queue-actor: {code}: it is {code}\n")


def test_no_answer_is_69_and_points_to_the_doctor(command: Command, server: FakeServer) -> None:
    server.breaks(JOB)
    ran = command("job", "q/17")

    assert ran.code == 69
    assert "queue-actor doctor" in ran.err


def test_a_refusal_gives_no_orders_to_the_terminal(command: Command, server: FakeServer) -> None:
    server.answers(JOB, {"code": "odd\x1b[2J", "detail": "\x9b31m\n"}, 418)

    assert command("job", "q/17").err == "queue-actor: odd\\x1b[2J: \\x9b31m\\n\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tokens",), "No such command 'tokens'"),
        (("jobs", "--nonsense"), "--nonsense"),
        (("job",), "Missing argument"),
        (("job", "q/x"), "is no job: it is written 17, or images/17"),
        (("job", "q/\x1b[2J"), r"'q/\x1b[2J' is no job"),
        (("jobs", "--since", "yesterday"), "is no time"),
        (("jobs", "--since", "2027-01-15T08:00:00"), "how far it is from UTC"),
        (("enqueue",), "name a TYPE, or a --file"),
        (("enqueue", "-f", "x", "-p", "1"), "--payload and --idempotency-key are for one job"),
        (("enqueue", "-f", "x", "--priority", "1"), "without a TYPE each line says everything"),
        (("enqueue", "-f", "x", "--text"), "without a TYPE each line says everything"),
        (("enqueue", "t", "--meta", "x"), "NAME=VALUE"),
        (("redrive",), "name jobs, or give --all"),
        (("redrive", "q/1", "--all"), "name jobs, or give --all"),
        (("redrive", "q/1", "--type", "t"), "go with --all"),
        (("purge", "--state", "dead"), "--yes"),
        (("purge", "--yes"), "--state"),
        (("export", "q", "--all"), "name queues, or give --all"),
        (("work", "app"), "MODULE:APP"),
        (("top",), "--once"),
    ],
)
def test_a_call_that_cannot_be_understood_is_64(command: Command, arguments: tuple[str, ...], said: str) -> None:
    ran = command(*arguments)

    assert (ran.code, ran.out) == (64, "")
    assert said in ran.err
    assert "\x1b" not in ran.err
    assert command.targets == []


def test_without_a_command_it_says_what_there_is(command: Command) -> None:
    ran = command()
    assert (ran.code, ran.out) == (64, "")
    assert "enqueue" in ran.err
    assert command("--help").code == 0


def test_a_file_that_is_not_there_is_66(command: Command) -> None:
    ran = command("enqueue", "-f", "nowhere.ndjson")

    assert ran == (66, "", "queue-actor: nowhere.ndjson: No such file or directory\n")


def test_it_tells_its_version(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--version").out.startswith("queue-actor, version ")

    monkeypatch.setattr(metadata, "version", {PROGRAM: "1.2.3"}.__getitem__)
    assert installed_version() == "1.2.3"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert installed_version() == "from its sources"


def test_an_interrupted_call_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_target: Target) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "connect", interrupted)

    assert command("job", "q/17").code == 130


def test_the_exit_codes_are_those_of_the_document() -> None:
    documented = {int(code) for code in re.findall(r"^    (\d+) +\w", module.__doc__ or "", re.MULTILINE)}

    assert documented == {*CODES.values(), 0, 66, 1}


def test_a_client_is_what_the_target_says() -> None:
    with connect(Target("http://127.0.0.1:1", "qa_x", None, None, None, None)) as client:
        assert client._timeout_seconds == 30
    with connect(Target("http://127.0.0.1:1", "qa_x", None, 3, None, None)) as client:
        assert client._timeout_seconds == 3


# --- help


def test_every_command_has_a_help_that_fits(command: Command) -> None:
    for name in {*group.commands} - {"token"}:  # whose help is its own
        ran = command(name, "--help")
        assert ran.code == 0
        assert "Examples:" in ran.out


EXAMPLES = [
    (name, line.strip())
    for name, one in group.commands.items()
    for line in (one.epilog or "").partition("\n\n")[0].splitlines()[2:]
]


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_the_examples_of_every_help_can_be_called(name: str, line: str) -> None:
    called = [part.strip() for part in line.split(" | ") if part.strip().startswith("queue-actor ")]
    assert any(part.split()[1] == name for part in called)
    for part in called:
        _program, first, *rest = shlex.split(part)
        group.commands[first].make_context(first, rest, parent=click.Context(group, obj=None))


def test_there_are_examples_of_every_command() -> None:
    assert {name for name, _ in EXAMPLES} == set(group.commands)


# --- the program


def test_token_needs_nothing_beside_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    for name in [name for name in sys.modules if name.startswith("queue_actor.commandline")]:
        monkeypatch.delitem(sys.modules, name)

    assert queue_actor.__main__.main(["token", "list", "--file", str(tmp_path / "tokens.json")], {}) == 78
    capsys.readouterr()
    assert queue_actor.__main__.main(["jobs"], {}) == 69
    assert "the command line needs click: pip install 'queue-actor[cli]'" in capsys.readouterr().err


def test_the_program_ends_with_the_code_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["queue-actor", "job", "x"])
    with pytest.raises(SystemExit) as ended:
        queue_actor.__main__.program()
    assert ended.value.code == 64


def test_token_is_a_command_among_the_others(command: Command, tmp_path: Path) -> None:
    ran = command("token", "create", "a", "--scope", "read", "--queue", "q", "--file", str(tmp_path / "tokens.json"))
    assert ran.code == 0
    assert ran.out.startswith("qa_")
    assert command("token", "list", "--nonsense").code == 64


def test_a_shell_can_complete_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_QUEUE_ACTOR_COMPLETE", "bash_complete")
    for words, completed in (
        ("queue-actor e", {"plain,enqueue", "plain,events", "plain,export"}),
        ("queue-actor jobs --new", {"plain,--newest"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            main([], {})
        assert set(capsys.readouterr().out.split()) == completed


def test_a_job_is_named_in_either_way(command: Command, server: FakeServer) -> None:
    server.answers(JOB, job_document())
    assert command("job", "17", "-q", "q").code == 0
    assert command("job", "q/17").code == 0
    server.answers("GET /v1/queues/default/jobs/17", job_document(queue="default"))
    assert command("job", "17").out.splitlines()[0].split() == ["job", "default/17"]
