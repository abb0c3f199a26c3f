"""The lines of the log: those that README.md tells of, and those that the code writes."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.contract.document import table

ROOT = Path(__file__).parent.parent

ALWAYS = frozenset({"time", "level", "event", "logger"})
"""Fields that any line may have."""

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
    "log": "transition",
}
"""The level that each method of a logger writes at; `log` is used for one level alone."""


class Event(NamedTuple):
    """What is told of the lines of one event."""

    level: str
    fields: frozenset[str]


@cache
def told() -> dict[str, Event]:
    """Each event in README.md."""
    events: dict[str, Event] = {}
    before = ALWAYS
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, level, text in table(document, "events") + table(document, "worker events"):
        _, _, named = text.partition(": ") if ": " in text else ("", "", text)
        fields = frozenset(re.findall(r"`(\w+)`", named)) | ALWAYS
        if "the same" in named:
            fields |= before
        events[name.strip("`")] = Event(level, fields)
        before = fields
    return events


class Call(NamedTuple):
    """A place in the code that writes a line."""

    event: str
    level: str
    fields: frozenset[str] | None  # None: they are put together elsewhere
    where: str


def written() -> Iterator[Call]:
    """Each place."""
    for path in sorted([*ROOT.glob("queue_actor/**/*.py"), *ROOT.glob("web/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "logger":
                    yield _call(node, node.func.attr, f"{path.name}:{node.lineno}")


def _call(node: ast.Call, method: str, where: str) -> Call:
    event = node.args[1 if method == "log" else 0]
    assert isinstance(event, ast.Constant), f"{where}: the name of an event is written where it is logged"
    fields: frozenset[str] | None = None
    for keyword in node.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            (facts,) = keyword.value.values
            if isinstance(facts, ast.Dict) and all(isinstance(key, ast.Constant) for key in facts.keys):
                fields = frozenset(str(key.value) for key in facts.keys if isinstance(key, ast.Constant))
    return Call(str(event.value), LEVELS[method], fields, where)
