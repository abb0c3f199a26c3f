"""The code keeps its own rules."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from queue_actor import commands, errors
from queue_actor.commands import Command, Prune, Recalled
from queue_actor.errors import QueueError
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.transitions import TRANSITIONS
from web.problems import PROBLEMS

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("queue_actor/**/*.py"), *ROOT.glob("web/**/*.py")])
CONTRACT = sorted(ROOT.glob("tests/contract/test_*.py"))
PURE = (
    *("jobs", "errors", "commands", "state_machine", "ledger", "ready", "ids", "deadlines", "tokens"),
    *("queues", "queries", "idempotency", "meters", "retry", "changes", "rows", "retention", "recovery"),
    *("transitions", "access", "trends", "survey", "explain"),
)

FILE_LINES_MAX = 400
LONGER = {
    "state_machine.py": 850,
    "ledger.py": 560,
    "commands.py": 600,
    "connections.py": 570,
    "contract.py": 520,
}
"""Files that say in their head why they are longer, and how long they may become."""
FUNCTION_LINES_MAX = 70


def subclasses(cls: type[QueueError]) -> set[type[QueueError]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def declared_commands() -> set[type[Command[Any]]]:
    return {value for value in vars(commands).values() if isinstance(value, type) and issubclass(value, Command)} - {
        Command
    }


def names_used(paths: Iterable[Path]) -> set[str]:
    """Names that the code in these files looks up; what is imported and not used is not among them."""
    return {
        node.id
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def test_every_command_has_a_verb_in_the_state_machine() -> None:
    machine = StateMachine(Settings(), secret=bytes(32))

    assert set(machine._verbs) == declared_commands()


def test_every_command_is_asked_of_every_engine() -> None:
    commanded = {command.__name__ for command in declared_commands()}

    assert commanded - names_used(CONTRACT) == set()


def test_every_command_is_asked_of_both_engines_at_once() -> None:
    own = {Prune, Recalled}  # which the durable engine asks of the one within
    commanded = {command.__name__ for command in declared_commands() - own}

    assert commanded - names_used([ROOT / "tests/contract/test_equal_engines.py"]) == set()


def test_every_refusal_of_the_queue_is_expected_of_every_engine() -> None:
    refusals = {cls.__name__ for cls in subclasses(QueueError) if "code" in vars(cls)}
    made = {
        node.func.id
        for path in ROOT.glob("queue_actor/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in refusals
    }

    assert len(made) > 15
    assert made - names_used(CONTRACT) == set()


def test_every_refusal_has_a_code_of_its_own_and_a_status() -> None:
    concrete = [cls for cls in subclasses(QueueError) if "code" in vars(cls)]
    codes = [cls.code for cls in concrete]

    assert len(codes) == len(set(codes)) >= 13
    assert set(codes) <= set(PROBLEMS)


def test_the_tree_of_refusals_in_the_docstring_is_the_tree_in_the_code() -> None:
    shown = dict(re.findall(r"[├└]── (\w+) +(\w+)  ", errors.__doc__ or ""))
    actual = {
        cls.__name__: cls.code for cls in subclasses(QueueError) if "code" in vars(cls) and issubclass(cls, QueueError)
    }

    assert shown == actual


def test_the_picture_in_the_readme_is_the_transition_table() -> None:
    text = (ROOT / "queue_actor/README.md").read_text()
    arrows = set(re.findall(r"^    (\w+) --> (\w+) : (\w+)$", text, re.MULTILINE))

    assert arrows == {(str(before), str(after), verb) for before, verb, after in TRANSITIONS}
    assert re.findall(r"^    \[\*\] --> (\w+) : enqueue$", text, re.MULTILINE) == ["queued", "scheduled"]


def test_all_transitions_are_made_in_the_ledger() -> None:
    """Nothing else makes a job, or a new version of one."""
    for path in SOURCES:
        if path.name in {"ledger.py", "rows.py"}:  # the latter reads what was made and stored
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Job"
        ]
        assert not calls, f"{path.name} makes jobs"
        replaced = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "replace"
        ]
        assert not [call for call in replaced if isinstance(call.args[0], ast.Name) and call.args[0].id == "job"]


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_has_no_async_code(name: str) -> None:
    tree = ast.parse((ROOT / f"queue_actor/{name}.py").read_text())

    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_and_functions_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    limit = LONGER.get(path.name, FILE_LINES_MAX)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert len(text.splitlines()) <= limit
    for function in functions:
        assert (function.end_lineno or 0) - function.lineno < FUNCTION_LINES_MAX, function.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_left_for_later_and_every_exception_has_its_reason(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.name}:{number}"
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line), where
        for comment in re.findall(r"# (?:noqa|type: ignore|pragma)\b.*", line):
            assert re.search(r"\w\S*\]? (?:- |# )\w", comment), f"{where}: {comment} gives no reason"


def test_only_the_folders_and_files_that_belong_there_are_at_the_top() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}

    assert {"queue_actor", "scripts", "tests", "web"} <= folders
    assert folders <= {"queue_actor", "scripts", "tests", "web", "build", "dist"}


def test_modules_are_named_for_what_they_do() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "helpers", "common", "manager", "misc"}
