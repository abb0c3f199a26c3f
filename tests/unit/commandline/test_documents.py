"""What the documents say of the command line is what it does."""

import re
import shlex
from pathlib import Path

import click
import pytest

from queue_actor.commandline import group as module
from queue_actor.commandline.group import group
from tests.contract.document import table

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
COMING_FROM = (ROOT / "queue_actor/coming_from.md").read_text()


def test_the_readme_lists_every_command_as_its_help_tells_it() -> None:
    told = {name.strip("`"): text for name, text in table(README, "commands")}

    assert told == {
        name: " ".join((command.help or "").partition("\n\n")[0].split()) for name, command in group.commands.items()
    }
    assert list(told) == list(group.commands)


def test_the_readme_lists_every_exit_code() -> None:
    documented = re.findall(r"^    (\d+) +(\w.*)$", module.__doc__ or "", re.MULTILINE)

    assert table(README, "exit codes") == [list(row) for row in documented]


CALLS = sorted({*re.findall(r"`(queue-actor [^`]+)`", README + COMING_FROM)})


@pytest.mark.parametrize("call", CALLS)
def test_every_call_in_the_documents_can_be_made(call: str) -> None:
    _program, name, *rest = shlex.split(call)
    group.commands[name].make_context(name, rest, parent=click.Context(group, obj=None))


def test_each_of_the_others_is_compared_in_five_things() -> None:
    sections = re.split(r"^## Coming from ", COMING_FROM, flags=re.MULTILINE)[1:]

    assert [section.partition("\n")[0] for section in sections] == ["Celery", "RQ", "beanstalkd", "SQS"]
    for section in sections:
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert len(rows) == 1 + 5
    assert len(CALLS) >= 15
