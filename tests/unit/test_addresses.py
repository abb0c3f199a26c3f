"""HOST:PORT: what is written so, and what is not."""

import socket

import pytest

from queue_actor.addresses import find, written


@pytest.mark.parametrize(
    ("text", "family", "name"),
    [
        ("127.0.0.1:9100", socket.AF_INET, ("127.0.0.1", 9100)),
        ("0.0.0.0:0", socket.AF_INET, ("0.0.0.0", 0)),  # noqa: S104 - nobody listens
        ("[::1]:65535", socket.AF_INET6, ("::1", 65535)),
    ],
)
def test_an_address_is_found_and_written_as_it_was(text: str, family: int, name: tuple[str, int]) -> None:
    found = find(text)

    assert found is not None
    assert (found.family, found.name[:2]) == (family, name)
    assert written(found.name) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "9100", ":9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http"),
        *("::1:9100", "[127.0.0.1:9100", "http://127.0.0.1:9100", "unix:/run/x", "a b:1", "127.0.0.1:9100\n", "١:1"),
    ],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert find(text) is None


def test_a_name_that_cannot_be_one_is_an_error() -> None:
    with pytest.raises((OSError, UnicodeError)):
        find(f"{'x' * 64}.example:1")
