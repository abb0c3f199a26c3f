"""What becomes of a request's head. The refusals are in test_connections.py, as their clients see them."""

import h11
import pytest

from web.heads import read_head


def head(target: str, headers: list[tuple[str, str]] | None = None) -> h11.Request:
    return h11.Request(method="GET", target=target, headers=headers or [("Host", "test")])


def test_the_application_is_told_what_the_client_said() -> None:
    scope = read_head(head("/a%20b?c=%20"), client=("192.0.2.7", 4242), server=None)
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20")
    assert (scope["method"], scope["http_version"], scope["headers"]) == ("GET", "1.1", [(b"host", b"test")])
    assert (scope["client"], scope["server"]) == (("192.0.2.7", 4242), None)


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://real/a?b", b"/a", b"b", b"real"),
        ("https://real:8080", b"/", b"", b"real:8080"),
        ("http://user@real/", b"/", b"", b"user@real"),
        ("//real/a", b"//real/a", b"", b"test"),
    ],
)
def test_the_host_of_a_url_is_the_host(target: str, path: bytes, query: bytes, host: bytes) -> None:
    """RFC 9112, section 3.2.2; only a target that begins with a scheme is a URL."""
    scope = read_head(head(target), client=None, server=None)
    assert (scope["raw_path"], scope["query_string"], scope["headers"]) == (path, query, [(b"host", host)])


def test_octets_beyond_ascii_and_tabs_are_left_alone_in_fields() -> None:
    scope = read_head(head("/", [("Host", "test"), ("X", "a\tb")]), client=None, server=None)
    assert (b"x", b"a\tb") in scope["headers"]
    request = h11.Request(method="GET", target="/", headers=[(b"Host", b"test"), (b"X", b"\xe4")])
    assert (b"x", b"\xe4") in read_head(request, client=None, server=None)["headers"]
