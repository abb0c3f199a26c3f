"""web/logs.py: one event, one line, printable ASCII, whatever is in it."""

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from queue_actor.settings import Settings
from web.logs import TEXT_CHARACTERS_MAX, JsonFormatter, TextFormatter, set_up_logging

HARMFUL = [*map(chr, range(0x20)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u2028", "\u2029", "\u202e", "\ud800"]
HARMFUL += ['"', "\\", "ä", "😀"]


def record(
    event: str = "request", *arguments: Any, name: str = "web", level: int = logging.INFO, **facts: Any
) -> logging.LogRecord:
    made = logging.LogRecord(name, level, __file__, 1, event, arguments, None)
    made.created = 1_800_000_000.5
    if facts:
        made.facts = facts
    return made


def failed(error: Exception) -> logging.LogRecord:
    made = record("failed", level=logging.ERROR)
    try:
        raise error
    except type(error):
        made.exc_info = sys.exc_info()
    return made


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hypercorn = logging.getLogger("hypercorn.error").level
    yield
    logging.captureWarnings(capture=False)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("hypercorn.error").setLevel(hypercorn)


def test_a_json_line_tells_time_level_event_and_facts_in_this_order() -> None:
    line = JsonFormatter().format(record("request", status=200, consumer=None, path="/jobs/1"))
    assert line == (
        '{"time":"2027-01-15T08:00:00.500Z","level":"info","event":"request",'
        '"status":200,"consumer":null,"path":"/jobs/1"}'
    )


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (1_800_000_000.0, "2027-01-15T08:00:00.000Z"),
        (1_800_000_000.0009, "2027-01-15T08:00:00.000Z"),
        (1_800_000_000.9999, "2027-01-15T08:00:00.999Z"),
        (1_800_000_001.25, "2027-01-15T08:00:01.250Z"),
        (1_800_000_000.5, "2027-01-15T08:00:00.500Z"),
        (1_830_297_599.75, "2027-12-31T23:59:59.750Z"),
        (1_830_297_600.0, "2028-01-01T00:00:00.000Z"),
    ],
)
def test_a_line_tells_its_time_to_the_millisecond(moment: float, text: str) -> None:
    made = record()
    made.created = moment
    assert json.loads(JsonFormatter().format(made))["time"] == text


def test_a_text_line_tells_the_same() -> None:
    line = TextFormatter().format(record("request", status=200, consumer=None, path="/jobs/1"))
    assert line == '2027-01-15T08:00:00.500Z info    request status=200 consumer=null path="/jobs/1"'


def test_a_line_of_another_logger_names_it() -> None:
    made = record("%s of %d", "one", 2, name="hypercorn.error", level=logging.WARNING)
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2027-01-15T08:00:00.500Z",
        "level": "warning",
        "event": "one of 2",
        "logger": "hypercorn.error",
    }


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
def test_a_line_is_one_line_of_printable_ascii(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record(f"a{text}b", path=f"a{text}b"))
    assert re.fullmatch(r"[\x20-\x7e]+", line)
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["path"] == f"a{text}b"


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
def test_a_traceback_stands_in_its_json_line(text: str) -> None:
    line = JsonFormatter().format(failed(ValueError(f"a{text}b")))
    assert re.fullmatch(r"[\x20-\x7e]+", line)
    traceback = json.loads(line)["traceback"]
    assert traceback.startswith("Traceback")
    assert "in failed" in traceback


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
def test_a_traceback_follows_a_text_line_indented(text: str) -> None:
    first, *rest = TextFormatter().format(failed(ValueError(f"a{text}b"))).split("\n")
    assert first == "2027-01-15T08:00:00.500Z error   failed"
    assert len(rest) >= 4
    for row in rest:
        assert re.fullmatch(r"    [\x20-\x7e]*", row)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_long_text_is_cut(formatter: logging.Formatter) -> None:
    exact = "x" * TEXT_CHARACTERS_MAX
    assert exact in formatter.format(record(path=exact))
    assert "x..." not in formatter.format(record(path=exact))
    longer = formatter.format(record("y" * 5_000, path="x" * 5_000))
    assert f'{exact}..."' in longer
    assert "x" * (TEXT_CHARACTERS_MAX + 1) not in longer
    assert "y" * (TEXT_CHARACTERS_MAX + 1) not in longer


def test_a_traceback_is_not_cut() -> None:
    assert "x" * 5_000 in JsonFormatter().format(failed(ValueError("x" * 5_000)))


def test_a_fact_that_json_has_no_word_for_is_told_as_text() -> None:
    assert json.loads(JsonFormatter().format(record(address=object)))["address"] == "<class 'object'>"


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(("shape", "start"), [("json", '{"time":"'), ("text", "20")])
def test_everything_is_logged_on_standard_error_in_the_chosen_shape(
    monkeypatch: pytest.MonkeyPatch, shape: Any, start: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging(Settings(log=shape))
    logging.getLogger("web").info("request")
    logging.getLogger("web.connections").error("failed")
    logging.getLogger("elsewhere").debug("not this")
    logging.getLogger("hypercorn.error").info("nor this")
    logging.getLogger("hypercorn.error").warning("but this")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("and this", stacklevel=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert all(line.startswith(start) for line in lines)
    assert ["request" in lines[0], "failed" in lines[1], "but this" in lines[2], "and this" in lines[3]] == [True] * 4


@pytest.mark.usefixtures("logging_as_it_was")
def test_less_than_the_chosen_level_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging(Settings(log_level="warning"))
    logging.getLogger("web").info("request")
    logging.getLogger("web").warning("few_files")
    assert "request" not in stream.getvalue()
    assert "few_files" in stream.getvalue()
