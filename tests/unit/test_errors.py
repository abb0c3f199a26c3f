"""The refusals: the tree that heads the module is the tree of the classes, and each has a word of its own."""

import re
from collections.abc import Iterator

from queue_actor import errors
from queue_actor.errors import InvalidCommand, QueueError


def tree(kind: type[QueueError], depth: int = 0) -> Iterator[tuple[int, str, str | None]]:
    """Depth, name and code of a class and all below it, in the order in which they are defined."""
    yield depth, kind.__name__, vars(kind).get("code")
    for below in kind.__subclasses__():
        yield from tree(below, depth + 1)


def test_the_tree_in_the_documentation_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^    ((?:[│├└─ ]{4})*)(\w+)(?: +([a-z_]+) .*)?$", errors.__doc__, re.MULTILINE)
    assert [(len(branch) // 4, name, code or None) for branch, name, code in drawn] == list(tree(QueueError))


def test_every_refusal_that_is_raised_has_a_code_of_its_own() -> None:
    codes = [code for _, _, code in tree(QueueError) if code is not None]
    assert len(codes) == len(set(codes))
    without = [name for _, name, code in tree(QueueError) if code is None]
    assert without == ["QueueError", "LimitReached", "Unavailable"]


def test_a_refusal_tells_people_what_and_where() -> None:
    refusal = InvalidCommand("delay_seconds is negative", field="jobs[3].delay_seconds")
    assert (refusal.code, refusal.detail, refusal.field) == ("invalid", str(refusal), "jobs[3].delay_seconds")
    assert InvalidCommand("no").field is None
