"""What reaches a terminal is text, and nothing in it an order."""

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from queue_actor.commandline.terminal import Printer, console, count, safe, shown_json, span, state_text, table

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\t\x9b31m\x7f\u2028\u202e\ud800"


def test_a_character_that_is_an_order_is_shown_as_its_escape() -> None:
    assert safe("a\x1b[31m\x9b\n\u202e\ud800é") == r"a\x1b[31m\x9b\n\u202e\ud800é"


@given(st.text(st.characters()))
def test_no_text_brings_orders_to_a_terminal(text: str) -> None:
    shown = safe(text)

    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert safe(shown) == shown


@given(
    st.recursive(
        st.none() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_that_is_shown_means_the_same_and_brings_no_orders(value: object) -> None:
    for ascii_only in (True, False):
        document = json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")
        for indent in (-1, 2):
            shown = shown_json(document, indent=indent)
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", shown)
            assert json.loads(shown) == json.loads(document)
    assert "\n" not in shown_json(json.dumps(value, indent=1).encode())


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "-"), (0, "0.0s"), (9.96, "10.0s"), (59.4, "59s"), (60, "1m 0s"), (3_700, "1h 1m"), (200_000, "2d 7h")],
)
def test_a_duration_is_told_by_its_two_largest_units(seconds: float | None, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(("number", "told"), [(0, "0"), (1_000_000, "1,000,000"), (0.25, "0.25"), (1.5, "1.5")])
def test_a_number_is_told_in_groups(number: float, told: str) -> None:
    assert count(number) == told


class Screen(io.StringIO):
    """A terminal, as far as a program can tell."""

    def isatty(self) -> bool:
        return True


def test_there_are_colours_on_a_terminal_only_and_not_if_nobody_wants_them() -> None:
    def printed(file: io.StringIO, environment: dict[str, str]) -> str:
        console(file, environment).print(state_text("dead"))
        return file.getvalue()

    assert "\x1b[31m" in printed(Screen(), {})
    assert "\x1b[31m" not in printed(Screen(), {"NO_COLOR": "1"})
    assert printed(io.StringIO(), {}) == "dead\n"
    assert state_text("unheard_of").style == ""


def test_lines_are_not_wrapped_where_no_terminal_is() -> None:
    file = io.StringIO()
    console(file, {}).print(table(["a", "#b"], [["x" * 300, "1"], [Text("y"), "200"]]))

    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "a" + " " * 303 + "b",
        "x" * 300 + "    1",
        "y" + " " * 301 + "200",
    ]


def test_a_cell_brings_no_orders_either() -> None:
    file = Screen()
    console(file, {"NO_COLOR": "1"}).print(table(["a"], [[HOSTILE]]))

    assert re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).isprintable() is False  # the line ends
    assert "\x1b]" not in file.getvalue()
    assert "\x07" not in file.getvalue()
    assert "[2J" in file.getvalue()


def test_what_is_said_brings_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer({})
    printer.say(HOSTILE)
    printer.note(HOSTILE)
    printer.document({"a": HOSTILE[:-1]})
    out, err = capsys.readouterr()

    assert out.splitlines()[0] == err.splitlines()[0] == safe(HOSTILE)
    assert json.loads(out.splitlines()[1]) == {"a": HOSTILE[:-1]}
    assert "\x1b" not in out + err
    assert "\x9b" not in out + err
