"""The log of a worker: one event a line, as the server's log has it, and with the same escapes."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LogShape = Literal["text", "json"]

ALIEN = ("httpx", "httpcore")
"""Libraries that log every request."""


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line tells, in order; a traceback comes last."""
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    facts = {"time": f"{moment}Z", "level": record.levelname.lower(), "event": record.getMessage()}
    facts |= {name: value for name, value in getattr(record, "facts", {}).items() if value != ""}
    if record.name != "queue_actor.worker":
        facts["logger"] = record.name
    if record.exc_info:
        facts["traceback"] = logging.Formatter().formatException(record.exc_info)
    return facts


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(facts_of(record), default=str)


class TextLines(logging.Formatter):
    """`time level event name=value ...`, for people; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = facts_of(record)
        trace = facts.pop("traceback", "")
        head = f"{facts.pop('time')} {facts.pop('level'):7} {_written(facts.pop('event'))}"
        line = " ".join([head, *(f"{name}={json.dumps(value, default=str)}" for name, value in facts.items())])
        return "\n    ".join([line, *(_written(row) for row in trace.splitlines())])


def _written(text: str) -> str:
    return json.dumps(text)[1:-1].replace('\\"', '"')


def log_to_stderr(shape: LogShape) -> None:
    """Send the records of the process to standard error, unless the program has seen to them already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if shape == "json" else TextLines())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in ALIEN:
        logging.getLogger(name).setLevel(logging.WARNING)
