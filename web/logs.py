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
from typing import Any

from queue_actor.settings import Settings
from queue_actor.transition_lines import TRANSITION

TEXT_CHARACTERS_MAX = 500
"""Longer texts are cut in a log line, but for a traceback."""


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line tells, in order."""
    facts: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": _short(record.getMessage()),
    }
    facts.update((name, _short(value)) for name, value in getattr(record, "facts", {}).items())
    if record.name != "web":
        facts["logger"] = record.name
    if record.exc_info:
        facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return facts


def _short(value: Any) -> Any:
    too_long = isinstance(value, str) and len(value) > TEXT_CHARACTERS_MAX
    return f"{value[:TEXT_CHARACTERS_MAX]}..." if too_long else value


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(facts_of(record), default=str)


class TextFormatter(logging.Formatter):
    """`time level event name=value ...`, for people; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = facts_of(record)
        trace = facts.pop("traceback", "")
        head = f"{facts.pop('time')} {facts.pop('level'):7} {json.dumps(facts.pop('event'))[1:-1]}"
        line = " ".join([head, *(f"{name}={json.dumps(value, default=str)}" for name, value in facts.items())])
        return "\n    ".join([line, *(json.dumps(row)[1:-1] for row in trace.splitlines())])


def set_up_logging(settings: Settings) -> None:
    """Send all log records of the process to standard error, in the chosen shape."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log == "json" else TextFormatter())
    level = TRANSITION if settings.log_level == "transitions" else settings.log_level.upper()
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)  # the ready line is this server's own
