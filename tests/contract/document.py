"""web/README.md, read for what it promises, and what the code takes, in the words of web/README.md.

What the document's reader sees is what is read here:

    a route         `POST /v1/…` in backticks, at the beginning of a heading or of a table's row
    its body        the object after "Body:" below the heading, or in the row
    a code          a row | status | `code` | … | in the section of a route, or of what holds for many routes
    fields          the table below <!-- fields of Struct -->: the first columns are name, value and default
    a query         the table below <!-- query of GET /v1/… -->, likewise
    an example      a block ```http, and the answer in the next block: ```json, or ```http for its headers too

In an example `…` is what varies. As a token in a request it is the one that the job was last handed out with.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, inspect

from queue_actor.jobs import QueuePolicy
from web.fields import QUEUE_PREFIX, TRACEPARENT
from web.schemas import QUEUE_NAME

CONTRACT = (Path(__file__).parent.parent.parent / "web/README.md").read_text(encoding="utf-8")

Route = tuple[str, str]
"""A method, and a path with its variables in braces."""

OF_ALL = ("Conventions", "Errors")
"""Sections whose codes are those of all routes."""

_ROUTE = r"`([A-Z]+) (/\S*?)`"


class Section(NamedTuple):
    """A heading, and the text up to the next one."""

    title: str
    text: str

    @property
    def routes(self) -> list[Route]:
        """The routes that are described here."""
        headed = re.findall(_ROUTE, self.title)
        also = re.match(r"\s*Also ((?:`[A-Z]+`(?: and |, |;|\.)?)+)", self.text)
        if also:
            headed += [(method, headed[0][1]) for method in re.findall(r"`([A-Z]+)`", also[1])]
        cells = re.findall(rf"^\| ({_ROUTE}(?:, {_ROUTE})*) \|", self.text, re.MULTILINE)
        return headed + [route for cell in cells for route in re.findall(_ROUTE, cell[0])]

    @property
    def codes(self) -> set[str]:
        """The error codes that are listed here."""
        rows = re.findall(r"^\| \d{3} \| ([^|]*) \|", self.text, re.MULTILINE)
        return {code for codes in rows for code in re.findall(r"`(\w+)`", codes)}


def sections(document: str) -> list[Section]:
    """All sections, in order."""
    outside = re.sub(r"^```.*?^```", _indented, document, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"^#+ (.*)\n", outside, flags=re.MULTILINE)
    return [Section(title, text) for title, text in zip(parts[1::2], parts[2::2], strict=True)]


def _indented(block: re.Match[str]) -> str:
    return re.sub("^", " ", block[0], flags=re.MULTILINE)


def bodies(document: str) -> dict[Route, set[str]]:
    """The keys of each route's body, where one is described."""
    found: dict[Route, set[str]] = defaultdict(set)
    for section in sections(document):
        for line in section.text.splitlines():
            routes = re.findall(_ROUTE, line) if line.startswith("| `") else section.routes
            skeleton = re.search(r"(?:^Body: |\| )`\{(.*?)\}`(?: \||[.,;:]|$)", line)
            if skeleton:
                for route in routes:
                    found[route] |= set(re.findall(r'"(\w+)":', skeleton[1]))
    return found


@cache
def codes(method: str, path: str) -> set[str]:
    """The error codes that a request may be answered with: those of its route, and those that any may have."""
    of_all = {code for section in sections(CONTRACT) if section.title in OF_ALL for code in section.codes}
    for section in sections(CONTRACT):
        for described, template in section.routes:
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
            if described == method and re.fullmatch(pattern, path):
                of_all |= section.codes
    return of_all


def table(document: str, of: str) -> list[list[str]]:
    """The cells of the table below a comment, row by row."""
    match = re.search(rf"^<!-- {re.escape(of)} -->\n((?:\|.*\n)+)", document, re.MULTILINE)
    assert match is not None, f"there is no table of {of}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in match[1].splitlines()[2:]]


def tables(document: str, kind: str) -> set[str]:
    """Of what there are tables of this kind."""
    return set(re.findall(rf"^<!-- {kind} of (.*) -->$", document, re.MULTILINE))


# --- what the code takes


def own_fields(struct: type[msgspec.Struct]) -> list[inspect.Field]:
    """The fields that a struct does not have from another."""
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    others = {name for base in _bases(struct) for name in base.__struct_fields__}
    return [field for field in described.fields if field.name not in others]


def structs(*roots: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    """All structs that appear in others, themselves and those they are made of."""
    found: set[type[msgspec.Struct]] = set()
    new = list(roots)
    while new:
        struct = new.pop()
        if struct in found or not struct.__struct_fields__:
            continue
        found.add(struct)
        new += _bases(struct)
        for field in inspect.type_info(struct).fields:  # type: ignore[attr-defined] # a StructType
            new += [part.cls for part in _parts(field.type) if isinstance(part, inspect.StructType)]
    return found


def _bases(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    return [base for base in struct.__mro__[1:] if issubclass(base, msgspec.Struct) and base is not msgspec.Struct]


def _parts(kind: inspect.Type) -> Iterator[inspect.Type]:
    yield kind
    match kind:
        case inspect.Metadata():
            yield from _parts(kind.type)
        case inspect.UnionType():
            for member in kind.types:
                yield from _parts(member)
        case inspect.ListType():
            yield from _parts(kind.item_type)


def written(field: inspect.Field, policy: QueuePolicy | None = None) -> list[str]:
    """A field as the document has it: name, value, and default; that of a policy where the field may be left out."""
    value = _value(field.type)
    if isinstance(field.type, inspect.UnionType) and policy is not None and _has(field.type, inspect.NoneType):
        value += ", or `null`"
    if field.required:
        default = "needed"
    elif policy is None:
        default = "none" if field.default_factory is Raw else _default(field.default)
    else:
        begins_with = getattr(policy, field.name, UNSET)
        default = "`null`" if begins_with is None else _default(begins_with)
    return [f"`{field.encode_name}`", value, default]


def _has(union: inspect.UnionType, kind: type[inspect.Type]) -> bool:
    return any(isinstance(member, kind) for member in union.types)


def _default(default: object) -> str:
    match default:
        case None:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case str():
            return f"`{default}`" if default else "empty"
        case int() | float():
            return _number(default)
        case msgspec.Struct():
            return "see there"
    return "as it is"


def _number(number: float) -> str:
    return f"{number:.15g}" if number < 1 else f"{number:.0f}"


def _value(kind: inspect.Type, at_most: str | None = None) -> str:  # noqa: PLR0911 - one for each kind
    match kind:
        case inspect.Metadata():
            return _value(kind.type, (kind.extra or {}).get("at_most"))
        case inspect.UnionType():
            members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            first, *others = members
            if [member.item_type for member in others if isinstance(member, inspect.ListType)] == [first]:
                return f"{_value(first)}; or a list of these"
            # The list of names is said before the prefix.
            members.sort(key=lambda member: not isinstance(member, inspect.ListType))
            return ", or ".join(_value(member) for member in members)
        case inspect.StrType():
            return _text(kind)
        case inspect.IntType() | inspect.FloatType():
            whole = "whole number" if isinstance(kind, inspect.IntType) else "number"
            low = f"from {_number(kind.ge)} to" if kind.ge is not None else f"above {_number(kind.gt or 0)}, up to"
            return f"{whole} {low} {f'`{at_most}`' if at_most else _number(kind.le or 0)}"
        case inspect.RawType():
            return f"any JSON, up to `{at_most}`"
        case inspect.DateTimeType():
            return "time"
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.EnumType():
            return _words(member.value for member in kind.cls)
        case inspect.LiteralType():
            return _words(kind.values)
        case inspect.DictType():
            return f"up to {kind.max_length} pairs; key: {_value(kind.key_type)}; value: {_value(kind.value_type)}"
        case inspect.ListType():
            high = f"`{at_most}`" if at_most else str(kind.max_length)
            return f"list of {kind.min_length} to {high}: {_value(kind.item_type)}"
        case inspect.StructType():
            return "object"
    raise AssertionError(kind)


def _words(words: Iterable[object]) -> str:
    *most, last = (f"`{word}`" for word in words)
    return f"{', '.join(most)} or {last}" if most else last


def _text(kind: inspect.StrType) -> str:
    known = {QUEUE_NAME: "name of a queue", QUEUE_PREFIX: "prefix and `*`", TRACEPARENT: "traceparent"}
    if kind.pattern in known:
        return known[kind.pattern]
    any_ = "any text" if kind.pattern is None else "text"
    return f"{any_} of {kind.min_length or 0} to {kind.max_length}"


# --- examples


class Example(NamedTuple):
    """A request and the answer that the document shows."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: Any  # None: there is none
    answer: Any
    answer_headers: dict[str, str]
    line: int  # of the document


def examples(document: str) -> Iterator[Example]:
    """All examples, in order."""
    blocks = list(re.finditer(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL))
    requests = [n for n, block in enumerate(blocks) if block[1] == "http" and not block[2].startswith("HTTP/")]
    for n in requests:
        head, _, body = blocks[n][2].partition("\n\n")
        line, *fields = head.strip().splitlines()
        method, target = line.split(" ")
        answer, answer_headers = blocks[n + 1][2], {}
        assert document[blocks[n].end() : blocks[n + 1].start()].strip() == "", f"{line} has no answer"
        if blocks[n + 1][1] == "http":
            answer_head, _, answer = answer.partition("\n\n")
            answer_headers = dict(_header(field) for field in answer_head.splitlines()[1:])
        yield Example(
            method,
            target,
            [_header(field) for field in fields],
            read_json(body) if body.strip() else None,
            read_json(answer),
            answer_headers,
            document.count("\n", 0, blocks[n].start()) + 1,
        )


def _header(field: str) -> tuple[str, str]:
    name, _, value = field.partition(": ")
    return name, value


def read_json(text: str) -> Any:
    """JSON in which a bare `…` stands for a value, for further members of an object, or for further items of a list."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|…|[^\s"…]', text)
    plain, open_ = "", [""]
    for before, part in pairwise(["", *tokens]):
        if part in "{[":
            open_.append(part)
        elif part in "}]":
            open_.pop()
        anything = '"…":"…"' if open_[-1] == "{" and before != ":" else '"…"'
        plain += anything if part == "…" else part
    return msgspec.json.decode(plain)


def difference(said: Any, got: Any, at: str = "") -> str | None:
    """Where an answer is not what the document shows; None if it is."""
    match said, got:
        case "…", _:
            return None
        case dict(), dict():
            names = [name for name in said if name != "…"]
            shown = [name for name in got if name in names]
            if shown != names or ("…" not in said and len(got) > len(names)):
                return f"{at or 'the answer'} has {', '.join(got) or 'no keys'}, and not {', '.join(said)}"
            found = (difference(said[name], got[name], f"{at}.{name}") for name in names)
        case list(), list():
            items = said[:-1] if said[-1:] == ["…"] else said
            if len(got) < len(items) or (items == said and len(got) > len(items)):
                return f"{at} has {len(got)} items"
            found = (difference(*pair, f"{at}[{n}]") for n, pair in enumerate(zip(items, got, strict=False)))
        case str(), str():
            pattern = ".*".join(map(re.escape, said.split("…")))
            return None if re.fullmatch(pattern, got, re.DOTALL) else f"{at} is {got!r}, and not {said!r}"
        case _:
            return None if (said, type(said) is bool) == (got, type(got) is bool) else f"{at} is {got!r}, not {said!r}"
    return next((one for one in found if one is not None), None)
