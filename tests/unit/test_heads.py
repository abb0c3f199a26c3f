"""What becomes of a request's head. The refusals are in test_connections.py, as their clients see them."""

from http import HTTPStatus

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.heads import keeps_open, read_head, read_plain, write_answer


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


def by_h11(status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An answer on a connection that stays open, as h11 writes it; what it refuses it raises."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    while http.next_event() is not h11.PAUSED and http.their_state is not h11.DONE:
        pass
    pieces = [http.send(h11.Response(status_code=status, headers=fields))]
    pieces += [http.send(h11.Data(data=body)) if body else b"", http.send(h11.EndOfMessage())]
    return b"".join(piece for piece in pieces if piece)


NAMES = [b"content-type", b"queue-state", b"x-a", b"connection", b"transfer-encoding", b"content-length"]
fields = st.lists(
    st.tuples(st.sampled_from(NAMES), st.binary(max_size=3) | st.sampled_from([b"1", b"close", b"a\r\nb", b"\xe4 b"]))
)


@given(st.sampled_from([*map(int, HTTPStatus), 299, 600]), fields, st.binary(max_size=3), st.integers(-1, 1))
def test_a_plain_answer_is_written_as_h11_writes_it_or_left_to_h11(
    status: int, some: list[tuple[bytes, bytes]], body: bytes, wrong: int
) -> None:
    all_ = [*some, (b"content-length", b"%d" % (len(body) + wrong))]
    date = [(b"date", b"today")]
    written = write_answer(status, all_, b"date: today\r\n", body)
    if written is None:
        return
    stripped = [(name, value) for name, value in all_ if value == value.strip(b" \t")]
    if stripped == all_:  # h11 refuses others
        assert written == by_h11(status, all_ + date, body)


@pytest.mark.parametrize("status", [200, 201, 400, 404, 409, 413, 422, 429, 500, 503, 507])
def test_a_plain_answer_is_not_left_to_h11(status: int) -> None:
    """Or all would be, and nobody would notice."""
    some = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    assert write_answer(status, some, b"date: x\r\n", b"{}") == by_h11(status, [*some, (b"date", b"x")], b"{}")


@pytest.mark.parametrize(
    ("status", "some", "body"),
    [
        (200, [(b"content-length", b"3")], b"{}"),
        (200, [(b"content-length", b"2"), (b"content-length", b"2")], b"{}"),
        (200, [], b"{}"),
        (204, [(b"content-length", b"0")], b""),
        (304, [(b"content-length", b"0")], b""),
        (100, [(b"content-length", b"0")], b""),
        (200, [(b"content-length", b"2"), (b"x", b"a\r\nSet-Cookie: b")], b"{}"),
        (200, [(b"content-length", b"2"), (b"x\r\ny", b"a")], b"{}"),
        (200, [(b"content-length", b"2"), (b"connection", b"close")], b"{}"),
        (200, [(b"content-length", b"2"), (b"transfer-encoding", b"chunked")], b"{}"),
    ],
)
def test_anything_else_is_left_to_h11(status: int, some: list[tuple[bytes, bytes]], body: bytes) -> None:
    assert write_answer(status, some, b"", body) is None


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", [], True),
        ("1.1", ["keep-alive"], True),
        ("1.1", ["Keep-Alive"], True),
        ("1.1", ["close"], False),
        ("1.1", ["keep-alive", "close"], False),
        ("1.1", ["close", "keep-alive"], False),
        ("1.1", ["keep-alive, close"], False),
        ("1.1", ["upgrade"], False),
        ("1.0", [], False),
        ("1.0", ["keep-alive"], False),
    ],
)
def test_who_goes_on_is_taken_at_his_word(version: str, connection: list[str], keeps: bool) -> None:
    headers = [("Host", "test"), *(("Connection", each) for each in connection)]
    assert keeps_open(h11.Request(method="GET", target="/", headers=headers, http_version=version)) is keeps


# --- plain requests

LINES = [
    b"Host: test",
    b"host: other",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"content-length: 03",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Transfer-Encoding: chunked",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X-A: b: c",
    b"X-A:b",
    b"X-B:  b ",
    b"X-B: b\tc",
    b"X-C: \xe4",
    b"X-D: ",
    b"X-E : a",
    b" folded",
    b"X(): a",
    b"",
]
STARTS = [
    b"GET / HTTP/1.1",
    b"POST /a?b=%20 HTTP/1.1",
    b"HEAD / HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET http://a/ HTTP/1.1",
    b"GET  / HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET /\xe4 HTTP/1.1",
    b"GET / HTTP/1.1 ",
]
lines = st.lists(st.sampled_from(LINES), max_size=5)
ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])


@given(
    st.sampled_from(STARTS), lines, ends, st.sampled_from([b"", b"abc", b"abcd", b"3\r\nabc\r\n0\r\n\r\n"]), st.data()
)
def test_what_is_read_as_plain_is_what_h11_reads(
    start: bytes, some: list[bytes], end: bytes, body: bytes, data: st.DataObject
) -> None:
    text = end.join([start, *some, b"", b""]) + body
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.binary(max_size=1)) + text[at + 1 :]
    plain = read_plain(text)
    if plain is None:
        return
    http = h11.Connection(h11.SERVER)
    http.receive_data(text)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    assert (plain.method, plain.target, plain.http_version) == (request.method, request.target, request.http_version)
    assert plain.headers == list(request.headers)
    read = b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        read += event.data
    assert plain.body == read
    assert http.trailing_data == (b"", False)
    assert keeps_open(plain) == keeps_open(request)


@pytest.mark.parametrize("connection", [b"", b"Connection: Keep-Alive\r\n"])
def test_a_plain_request_is_not_left_to_h11(connection: bytes) -> None:
    """Or all would be, and nobody would notice."""
    head = b"PUT /a HTTP/1.1\r\nHost: test\r\nX-A: b  c\r\n%bContent-Length: 2\r\n\r\n" % connection
    plain = read_plain(head + b"{}")
    assert plain is not None
    assert (plain.method, plain.target, plain.body) == (b"PUT", b"/a", b"{}")
    assert plain.headers[:2] == [(b"host", b"test"), (b"x-a", b"b  c")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n12",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n12",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n12",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=range(16),
)
def test_any_other_request_is_left_to_h11(data: bytes) -> None:
    assert read_plain(data) is None
