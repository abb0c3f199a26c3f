"""web/traceparent.py against the grammar of W3C Trace Context, section 3.2."""

import pytest

from web.traceparent import Traceparent, read_traceparent, traceparent_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (GOOD, "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-ff", "ff"),
        (f"01-{TRACE}-{PARENT}-01", "01"),
        (f"cc-{TRACE}-{PARENT}-01-what.the-future=holds", "01"),
        (f"fe-{TRACE}-{PARENT}-01-", "01"),
    ],
)
def test_a_well_formed_traceparent_is_read(text: str, flags: str) -> None:
    assert read_traceparent(text.encode()) == Traceparent(TRACE, PARENT, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        f"00-{TRACE}-{PARENT}",
        f"{GOOD}-",
        f"{GOOD}-01",
        f"{GOOD}\n",
        f" {GOOD}",
        f"{GOOD}, {GOOD}",
        f"ff-{TRACE}-{PARENT}-01",
        f"01-{TRACE}-{PARENT}-01x",
        f"01-{TRACE}-{PARENT}-0",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"01-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{TRACE}-{PARENT}-0G",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}0-{PARENT}-01",
        f"00-{TRACE}-{PARENT[1:]}-01",
        f"00_{TRACE}_{PARENT}_01",
        f"٠٠-{TRACE}-{PARENT}-01",
    ],
)
def test_any_other_is_none(text: str) -> None:
    assert read_traceparent(text.encode()) is None


def test_a_request_has_the_one_that_it_sends() -> None:
    headers = [(b"host", b"a"), (b"traceparent", GOOD.encode())]
    assert str(traceparent_of(headers)) == GOOD
    assert traceparent_of(headers[:1]) is None


def test_several_are_as_good_as_none() -> None:
    assert traceparent_of([(b"traceparent", GOOD.encode())] * 2) is None


def test_one_of_a_later_version_is_passed_on_as_the_first_version() -> None:
    assert str(read_traceparent(f"cc-{TRACE}-{PARENT}-01-more".encode())) == GOOD
