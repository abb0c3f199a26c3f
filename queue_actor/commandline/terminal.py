"""What reaches a terminal: tables and lines for people, JSON for programs.

Types, payloads, errors and names come from whoever may enqueue. To a terminal some characters are orders, so whatever
was not written in this program goes through `safe` or `shown_json` before it is printed, coloured or not.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE_COLUMNS = 4_096
"""How wide a line may be that goes to a file or another program, which have no edge to wrap at."""

# C0 and C1, line and paragraph separators, what turns the direction of writing, and halves of surrogate pairs.
ORDERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# In JSON the first of these stand between tokens only: its strings have them escaped.
ORDERS_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

SPAN_TENTHS_SECONDS = 10
"""Shorter durations are told with their tenths."""

STATE_STYLES = {
    "scheduled": "cyan",
    "queued": "blue",
    "in_progress": "yellow",
    "concluded": "green",
    "dead": "red",
    "cancelled": "magenta",
}


def safe(text: str) -> str:
    """A text in which nothing is an order to a terminal: each such character is shown as its escape."""
    return ORDERS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    # Halves of surrogate pairs are among them, which no codec but this one takes.
    return found[0].encode("unicode_escape").decode()


def shown_json(document: bytes, *, indent: int = -1) -> str:
    """JSON to print: the same document, on one line unless it is to be indented, and with no orders in it."""
    text = msgspec.json.format(document, indent=indent).decode()
    return ORDERS_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def span(seconds: float | None) -> str:
    """A duration for people, by its two largest units; a dash where there is none."""
    if seconds is None:
        return "-"
    if seconds < SPAN_TENTHS_SECONDS:
        return f"{seconds:.1f}s"
    left = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def count(number: float) -> str:
    """A number for people, such as 1,000,000 or 0.25."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,.2f}".rstrip("0").rstrip(".")


def state_text(state: str) -> Text:
    """The name of a job's state in its colour."""
    return Text(safe(state), STATE_STYLES.get(state, ""))


class Printer:
    """Standard output and standard error of one call."""

    def __init__(self, environment: Mapping[str, str], *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = console(sys.stdout, environment)
        self.err = console(sys.stderr, environment)

    def document(self, document: Any) -> None:
        """A document for programs, on one line; indented where somebody looks on."""
        indent = 2 if self.out.is_terminal else -1
        self.raw(shown_json(msgspec.json.encode(document), indent=indent))

    def raw(self, text: str) -> None:
        """A text that is as it is to be: neither wrapped nor coloured."""
        self.out.file.write(f"{text}\n")

    def say(self, text: str, style: str = "") -> None:
        """A line for people."""
        self.out.print(Text(safe(text), style), soft_wrap=True)

    def note(self, text: str, style: str = "") -> None:
        """A line beside the answer, on standard error."""
        self.err.print(Text(safe(text), style), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """A table for people; a column whose name begins with `#` has numbers. Without any name it has no head."""
        self.out.print(table(columns, rows))


def console(file: IO[str], environment: Mapping[str, str]) -> Console:
    """A console on a stream: coloured on a terminal unless NO_COLOR is set, never wrapped elsewhere."""
    made = Console(
        file=file,
        no_color=bool(environment.get("NO_COLOR")),
        force_terminal=file.isatty(),
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if not made.is_terminal:
        made.width = WIDE_COLUMNS
    return made


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, gap: int = 2) -> Table:
    """A table without lines."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0), show_header=any(columns))
    for name in columns:
        made.add_column(name.removeprefix("#"), justify="right" if name.startswith("#") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(safe(cell)) for cell in row))
    return made
