"""Heads: the checks that h11 leaves to others, what ASGI makes of a request, and plain answers. Pure, no I/O."""

import re
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import h11
from hypercorn.typing import ConnectionState, HTTPScope, WebsocketScope

from queue_actor.settings import KIB
from web.problems import Problem

HEAD_BYTES_MAX = 16 * KIB

NDJSON = b"application/x-ndjson"

# h11 lets these pass in field values, as cookies in the wild hold some; in a log or a terminal they do harm.
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# Within a segment it is a character like any other: decoded, it would end the segment (RFC 3986, section 2.2).
ENCODED_SLASH = re.compile("%2F", re.IGNORECASE)

# HEAD is none of them: its answers are like no others.
_PLAIN_HEAD = re.compile(
    rb"(GET|POST|PUT|PATCH|DELETE) (/[!-~]*) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)*"
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?)\r\n\r\n"
)
_LENGTH = re.compile(rb"\A[0-9]{1,9}\Z")
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade"})

# Of answers that have a body.
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d \r\n" % status
    for status in HTTPStatus
    if status >= HTTPStatus.OK and status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
}
_OF_THE_CONNECTION = frozenset({b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"trailer"})


class PlainRequest(NamedTuple):
    """A request as h11 gives it, and its body."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: bytes
    body: bytes


def read_plain(data: bytes) -> PlainRequest | None:
    """The request that these bytes are, no less and no more; None if that is not plain, which h11 finds out then.

    Nearly all requests are: a head of visible ASCII, its lines as everybody writes them, one Host, the body's length if
    there is one, and nothing that changes how the rest is read. To take such a head apart costs a quarter of what it
    costs h11, whose every line may be folded, its state any state, and its body chunked.
    """
    match = _PLAIN_HEAD.match(data)
    if match is None:
        return None
    lines = [line.partition(b": ") for line in match[3].split(b"\r\n")]
    headers = [(name.lower(), value) for name, _, value in lines]
    fields = dict(headers)
    if len(fields) != len(headers) or b"host" not in fields or not _NOT_PLAIN.isdisjoint(fields):
        return None
    length = fields.get(b"content-length", b"0")
    if not _LENGTH.match(length) or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    body = data[match.end() :]
    return PlainRequest(match[1], match[2], headers, b"1.1", body) if len(body) == int(length) else None


def read_head(
    request: h11.Request | PlainRequest,
    *,
    client: tuple[str, int] | None,
    server: tuple[str, int] | None,
    scheme: str = "http",
) -> HTTPScope:
    """The ASGI scope of a request, with neither state nor extensions.

    Raises:
        Problem: `malformed` or `headers_too_large`.
    """
    headers = list(request.headers)
    octets = b"".join(chain.from_iterable(headers))
    # h11 measures what is incomplete; a head that comes in one read is measured here, its lines with ": " and CRLF.
    if len(request.target) + len(octets) + 4 * len(headers) > HEAD_BYTES_MAX:
        raise Problem("headers_too_large", f"The head of the request is larger than {HEAD_BYTES_MAX} bytes.")
    if request.http_version not in {b"1.1", b"1.0"}:
        raise Problem("malformed", "This server speaks HTTP/1.1.")
    if CONTROL.search(octets):
        raise Problem("malformed", "A header field contains a control character.")
    fields = dict(headers)
    # RFC 9112, section 6.1: either may be a second request, smuggled past a proxy that reads the first otherwise.
    if b"transfer-encoding" in fields and (b"content-length" in fields or request.http_version == b"1.0"):
        raise Problem("malformed", "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0.")
    path, _, query = request.target.partition(b"?")
    if not path.startswith(b"/"):
        authority, path, query = _absolute(request.target)
        # RFC 9112, section 3.2.2: the host of the target counts, and the field does not.
        headers = [(b"host", authority), *(pair for pair in headers if pair[0] != b"host")]
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": scheme,
        "path": unquote(ENCODED_SLASH.sub("%252F", path.decode())),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": client,
        "server": server,
        "state": ConnectionState({}),
        "extensions": {},
    }


def keeps_open(request: h11.Request | PlainRequest) -> bool:
    """Whether the client says plainly that the connection stays open: by HTTP/1.1, and nothing that is against it."""
    return request.http_version == b"1.1" and all(
        value.lower() == b"keep-alive" for name, value in request.headers if name == b"connection"
    )


def write_answer(status: int, fields: Sequence[tuple[bytes, bytes]], server_fields: bytes, body: bytes) -> bytes | None:
    """An answer as h11 would write it, given the lines of the server's own fields; None if it is out of the ordinary.

    Nearly all answers are whole, and go out on a connection that stays open. For one of these h11 takes as long as the
    application, since it validates each field of a head that this server has made itself. That no field ends its line,
    and that the length is that of the body, is seen to here.
    """
    length = [value for name, value in fields if name == b"content-length"]
    if (
        status not in _STATUS_LINES
        or length != [b"%d" % len(body)]
        or CONTROL.search(b"".join(chain.from_iterable(fields)))
        or not _OF_THE_CONNECTION.isdisjoint(name for name, _ in fields)
    ):
        return None
    return b"".join((_STATUS_LINES[status], *(b"%b: %b\r\n" % field for field in fields), server_fields, b"\r\n", body))


def is_stream(scope: HTTPScope | WebsocketScope) -> bool:
    """Whether the body is a stream of lines, of any length, that the application reads as it comes."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return bool(types) and is_ndjson(types[0])


def is_ndjson(content_type: bytes | None) -> bool:
    """Whether a Content-Type, if there is one, is that of lines of JSON."""
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == NDJSON


def _absolute(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Authority, path and query of a target such as `http://host/path?query`, which every server must accept."""
    url = urlsplit(b"")
    with suppress(ValueError):  # of brackets that hold no address
        url = urlsplit(target)
    if url.scheme not in {b"http", b"https"} or not url.netloc:
        raise Problem("malformed", "The target of the request is neither a path nor a URL.")
    return url.netloc, url.path or b"/", url.query
