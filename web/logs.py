"""Log lines: one JSON object (or one readable line) per event, on standard error, that nobody can forge.

A record's message is the name of its event; what else is known goes into `extra={"facts": {...}}`. Everything outside
printable ASCII is escaped, so a path, a header or a consumer's name cannot begin a new line or steer a terminal.
Payloads and tokens are never logged.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from queue_actor.settings import Settings
from queue_actor.transition_lines import TRANSITION

TEXT_CHARACTERS_MAX = 500
"""Longer texts are cut in a log line, but for a traceback."""

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line tells, in order."""
    facts: dict[str, Any] = {
        "time": _written(record.created),
        "level": record.levelname.lower(),
        "event": _short(record.getMessage()),
        **getattr(record, "facts", {}),
    }
    for name, value in facts.items():
        if isinstance(value, str) and len(value) > TEXT_CHARACTERS_MAX:
            facts[name] = _short(value)
    if record.name != "web":
        facts["logger"] = record.name
    if record.exc_info:
        facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return facts


@lru_cache(maxsize=2)  # lines come by the second
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def _written(moment: float) -> str:
    second = int(moment)
    return f"{_second(second)}.{int((moment - second) * 1000):03}Z"


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

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return _json(facts_of(record))


class TextFormatter(logging.Formatter):
    """`time level event name=value ...`, for people; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = facts_of(record)
        trace = facts.pop("traceback", "")
        head = f"{facts.pop('time')} {facts.pop('level'):7} {_json(facts.pop('event'))[1:-1]}"
        line = " ".join([head, *(f"{name}={_json(value)}" for name, value in facts.items())])
        return "\n    ".join([line, *(_json(row)[1:-1] for row in trace.splitlines())])


def set_up_logging(settings: Settings) -> None:
    """Send all log records of the process to standard error, in the chosen shape."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log == "json" else TextFormatter())
    level = TRANSITION if settings.log_level == "transitions" else settings.log_level.upper()
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    # What no line tells need not be found out for each; the last is the file of whoever wrote it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as Python's own guide to logging has it, under "Optimization"
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)  # the ready line is this server's own
