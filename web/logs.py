"""Log lines: one JSON object (or one readable line) per event, on standard error, that nobody can forge.

A record's message is the name of its event; what else is known goes into `extra={"facts": {...}}`. Everything outside
printable ASCII is escaped, so a path, a header or a consumer's name cannot begin a new line or steer a terminal.
Payloads and tokens are never logged.
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import msgspec

from queue_actor.settings import Settings
from queue_actor.transition_lines import TRANSITION

TEXT_CHARACTERS_MAX = 500
"""Longer texts are cut in a log line, but for a traceback."""

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line tells, in order."""
    facts = begun(record.created, record.levelname.lower(), record.getMessage())
    facts.update(getattr(record, "facts", {}))
    cut(facts)
    if record.name != "web":
        facts["logger"] = record.name
    if record.exc_info:
        facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return facts


def begun(moment: float, level: str, event: str) -> dict[str, Any]:
    """What every line begins with; the moment in seconds of the wall clock."""
    return {"time": _millisecond(int(moment * 1000)), "level": level, "event": event}


def cut(facts: dict[str, Any]) -> None:
    """Shorten long texts."""
    for name, value in facts.items():
        if isinstance(value, str) and len(value) > TEXT_CHARACTERS_MAX:
            facts[name] = _short(value)


@lru_cache(maxsize=16)  # lines come together
def _millisecond(moment: int) -> str:
    return f"{_second(moment // 1000)}.{moment % 1000:03}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def _short(text: str) -> str:
    return f"{text[:TEXT_CHARACTERS_MAX]}..." if len(text) > TEXT_CHARACTERS_MAX else text


def _json(value: Any) -> str:
    """As JSON in printable ASCII. msgspec is faster by far, and escapes nothing beyond ASCII."""
    try:
        text = _ENCODER.encode(value).decode("ascii")
    except UnicodeError:  # a character beyond, or half of one
        return json.dumps(value, default=str, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def lines(self, facts: Sequence[dict[str, Any]]) -> str:
        """Several lines at once, each with its end."""
        try:
            text = _ENCODER.encode_lines(facts).decode("ascii")
        except UnicodeError:
            return "".join([f"{_json(each)}\n" for each in facts])
        return text.replace("\x7f", "\\u007f")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return _json(facts_of(record))


class TextFormatter(logging.Formatter):
    """`time level event name=value ...`, for people; a traceback follows on lines of its own, indented."""

    def lines(self, facts: Sequence[dict[str, Any]]) -> str:
        """Several lines at once, each with its end."""
        return "".join([f"{self._line(each)}\n" for each in facts])

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self._line(facts_of(record))

    def _line(self, facts: dict[str, Any]) -> str:
        trace = facts.pop("traceback", "")
        head = f"{facts.pop('time')} {facts.pop('level'):7} {_json(facts.pop('event'))[1:-1]}"
        line = " ".join([head, *(f"{name}={_json(value)}" for name, value in facts.items())])
        return "\n    ".join([line, *(_json(row)[1:-1] for row in trace.splitlines())])


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream: those of records, and several at once of which only the facts are known."""

    before_others: Callable[[], None] | None = None
    """Has lines written that are waiting, so that those of records do not overtake them."""

    def __init__(self, stream: TextIO, formatter: JsonFormatter | TextFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._lines = formatter.lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record."""
        if self.before_others is not None:
            self.before_others()
        super().emit(record)

    def write(self, facts: Sequence[dict[str, Any]]) -> None:
        """Write some lines. One that cannot be written is lost, as it is for records."""
        text = self._lines(facts)
        try:
            with self.lock or nullcontext():
                self.stream.write(text)
                self.flush()
        except (OSError, AttributeError):  # the latter where the process has no standard error, but None
            self.handleError(logging.makeLogRecord({"msg": "request"}))


def line_handler() -> LineHandler | None:
    """What writes the lines of this process; None if others than `set_up_logging` have a say in it."""
    root, web = logging.getLogger(), logging.getLogger("web")
    only = root.handlers[0] if len(root.handlers) == 1 and not web.handlers and web.propagate else None
    return only if isinstance(only, LineHandler) else None


def set_up_logging(settings: Settings) -> None:
    """Send all log records of the process to standard error, in the chosen shape."""
    handler = LineHandler(sys.stderr, JsonFormatter() if settings.log == "json" else TextFormatter())
    level = TRANSITION if settings.log_level == "transitions" else settings.log_level.upper()
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    # What no line tells need not be found out for each; the last is the file of whoever wrote it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as Python's own guide to logging has it, under "Optimization"
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)  # the ready line is this server's own
