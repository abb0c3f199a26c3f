"""What no client should send: the bytes, the statuses of the answers, and whether the connection ends with them.

Inputs that a stock HTTP stack does not survive are kept as short as they can be. Tests send these to a real server
(test_hostile_connections.py), to one in memory that counts its tasks, and mutated (test_hostile_programme.py).
"""

import random
import ssl
from contextlib import suppress


def head(first: str, *fields: str, host: str = "localhost") -> bytes:
    """The head of a request: a request line, a Host, and whatever fields."""
    return "\r\n".join([first, *([f"Host: {host}"] if host else []), *fields, "", ""]).encode("latin-1")


GET = head("GET /healthz HTTP/1.1")
CHUNKED = head("POST /jobs/enqueue HTTP/1.1", "Transfer-Encoding: chunked")
ENQUEUE = b'{"Type": "X"}'
CHUNKS = b"d\r\n" + ENQUEUE + b"\r\n0\r\n\r\n"
WEBSOCKET = head(
    "GET /healthz HTTP/1.1",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
H2_HEADERS = b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\x82\x84\x86\x41\x00"
H2_DATA = b"\x00\x00\x04\x00\x01\x00\x00\x00\x01junk"


def posted(*fields: str, body: bytes = ENQUEUE) -> bytes:
    return head("POST /jobs/enqueue HTTP/1.1", *fields) + body


def sized(body: bytes) -> bytes:
    return posted(f"Content-Length: {len(body)}", body=body)


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(2_000) + b"\r\n\r\n"  # noqa: S311 - it is to be the same noise in every run


OPEN, CLOSED = False, True

# What is sent, the statuses of the answers, and whether the server closes the connection after them.
INPUTS: dict[str, tuple[bytes, list[int], bool]] = {
    # Other protocols.
    "a WebSocket upgrade, which is not taken up": (WEBSOCKET, [200], OPEN),
    "garbage after a WebSocket upgrade": (WEBSOCKET + b"\x81\xfe\r\n\r\n", [200, 400], CLOSED),
    "a WebSocket frame after the upgrade": (WEBSOCKET + b"\x81\x85\x00\x00\x00\x00hello\r\n\r\n", [200, 400], CLOSED),
    "an HTTP/2 preface": (H2_PREFACE, [400], CLOSED),
    "HTTP/2 frames": (H2_PREFACE + H2_SETTINGS + H2_HEADERS + H2_DATA, [400], CLOSED),
    "an upgrade to HTTP/2, which is not taken up": (
        head(
            "GET /healthz HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
        ),
        [200],
        OPEN,
    ),
    "HTTP/2 frames after an upgrade": (
        head("GET /healthz HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c") + H2_PREFACE + H2_SETTINGS,
        [200, 400],
        CLOSED,
    ),
    "a TLS hello": (tls_hello() + b"\r\n\r\n", [400], CLOSED),
    "another protocol": (b"EHLO example.org\r\n\r\n", [400], CLOSED),
    "noise 1": (noise(1), [400], CLOSED),
    "noise 2": (noise(2), [400], CLOSED),
    "noise 3": (noise(3), [400], CLOSED),
    # Request lines.
    "CONNECT": (head("CONNECT example.org:443 HTTP/1.1", host="example.org:443"), [400], CLOSED),
    "CONNECT without a target": (head("CONNECT HTTP/1.1"), [400], CLOSED),
    "a method outside ASCII": (head("G\xc9T /healthz HTTP/1.1"), [400], CLOSED),
    "a target outside ASCII": (head("GET /jobs/\xff HTTP/1.1"), [400], CLOSED),
    "a control character in the target": (head("GET /jobs/\x1b[2J HTTP/1.1"), [400], CLOSED),
    "an unknown method": (head("BREW /healthz HTTP/1.1"), [405], OPEN),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [400], CLOSED),
    "HTTP/2.0 by name": (head("GET /healthz HTTP/2.0"), [400], CLOSED),
    "a target that is no path": (head("GET healthz HTTP/1.1"), [400], CLOSED),
    "a path out of the root": (head("GET /../../etc/passwd HTTP/1.1"), [404], OPEN),
    "a NUL in the path": (head("GET /jobs/%00 HTTP/1.1"), [400], OPEN),
    "bytes that are not UTF-8 in the path": (head("GET /jobs/%ff%fe HTTP/1.1"), [400], OPEN),
    "a very long target": (head(f"GET /jobs/{'1' * 20_000} HTTP/1.1"), [431], CLOSED),
    "a foreign absolute target": (head("GET http://example.org/healthz HTTP/1.1"), [403], OPEN),
    # Header fields.
    "no Host": (head("GET /healthz HTTP/1.1", host=""), [400], CLOSED),
    "two Hosts": (head("GET /healthz HTTP/1.1", "Host: 127.0.0.1"), [400], CLOSED),
    "a foreign Host": (head("GET /healthz HTTP/1.1", host="example.org"), [403], OPEN),
    "a NUL in a field": (head("GET /healthz HTTP/1.1", "X: a\x00b"), [400], CLOSED),
    "an escape in a field": (head("GET /healthz HTTP/1.1", "X: a\x1bb"), [400], CLOSED),
    "a bare CR in a field": (head("GET /healthz HTTP/1.1", "X: a\rY: b"), [400], CLOSED),
    "a space before the colon": (head("GET /healthz HTTP/1.1", "X : a"), [400], CLOSED),
    "a field without a name": (head("GET /healthz HTTP/1.1", ": a"), [400], CLOSED),
    "a folded field, read as one": (head("GET /healthz HTTP/1.1", "X: a\r\n b"), [200], OPEN),
    "bare LF, read as CRLF": (GET.replace(b"\r\n", b"\n"), [200], OPEN),
    "20,000 bytes of one field in one read": (head("GET /healthz HTTP/1.1", f"X: {'a' * 20_000}"), [431], CLOSED),
    "1,000 fields": (head("GET /healthz HTTP/1.1", *(f"X-{n}: {n:020}" for n in range(1_000))), [431], CLOSED),
    # Where a body ends.
    "two different lengths": (posted("Content-Length: 13", "Content-Length: 14"), [400], CLOSED),
    "a length with a sign": (posted("Content-Length: +13"), [400], CLOSED),
    "a negative length": (posted("Content-Length: -1"), [400], CLOSED),
    "a length in hexadecimal": (posted("Content-Length: 0xd"), [400], CLOSED),
    "a length beyond all bounds": (posted("Content-Length: 9999999999999999999"), [413], CLOSED),
    "a length beyond the limit": (posted("Content-Length: 1048577"), [413], CLOSED),
    "a length and chunks": (posted("Content-Length: 13", "Transfer-Encoding: chunked"), [400], CLOSED),
    "chunks in HTTP/1.0": (head("POST /jobs/enqueue HTTP/1.0", "Transfer-Encoding: chunked"), [400], CLOSED),
    "an unknown coding": (posted("Transfer-Encoding: gzip, chunked"), [501], CLOSED),
    "a coding that is almost chunked": (posted("Transfer-Encoding: xchunked"), [501], CLOSED),
    "two codings": (posted("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), [501], CLOSED),
    "a chunk size that is no number": (CHUNKED + b"zz\r\n\r\n", [400], CLOSED),
    "a negative chunk size": (CHUNKED + b"-1\r\n\r\n", [400], CLOSED),
    "a chunk that ends wrongly": (CHUNKED + b"1\r\n1XX0\r\n\r\n", [400], CLOSED),
    "chunks beyond the limit": (CHUNKED + 17 * (b"10000\r\n" + bytes(0x10000) + b"\r\n"), [413], CLOSED),
    # Bodies.
    "no JSON": (sized(b"\x00\xff"), [400], OPEN),
    "JSON that is not UTF-8": (sized(b'{"Type": "\xff"}'), [400], OPEN),
    "JSON 100,000 deep": (sized(b'{"Type": "X", "Payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), [400], OPEN),
    "a control character in a type": (sized(b'{"Type": "a\\nb"}'), [400], OPEN),
    # Who reads a request otherwise than somebody else: request smuggling.
    "the same length twice": (posted("Content-Length: 13", "Content-Length: 13"), [200], OPEN),
    "a list of the same length": (posted("Content-Length: 13, 13"), [200], OPEN),
    "a list of lengths": (posted("Content-Length: 13, 14"), [400], CLOSED),
    "an empty length": (posted("Content-Length: "), [400], CLOSED),
    "a length with an underscore": (posted("Content-Length: 1_3"), [400], CLOSED),
    "a length with a fraction": (posted("Content-Length: 13.0"), [400], CLOSED),
    "a length of 5,000 digits": (posted(f"Content-Length: {'1' * 5_000}"), [400], CLOSED),
    "a length of zero before a body": (posted("Content-Length: 0", body=ENQUEUE + b"\r\n\r\n"), [400, 400], CLOSED),
    "a length shorter than the body": (posted("Content-Length: 12", body=ENQUEUE + b"\r\n\r\n"), [400, 400], CLOSED),
    "a request in a body": (sized(GET), [400], OPEN),
    "a body of a GET": (head("GET /healthz HTTP/1.1", "Content-Length: 13") + ENQUEUE, [200], OPEN),
    "chunked in capitals": (posted("Transfer-Encoding: CHUNKED", body=CHUNKS), [200], OPEN),
    "chunked on a folded line": (posted("Transfer-Encoding:\r\n chunked", body=CHUNKS), [200], OPEN),
    "chunked behind a vertical tab": (posted("Transfer-Encoding: \x0bchunked", body=CHUNKS), [400], CLOSED),
    "chunked twice": (posted("Transfer-Encoding: chunked, chunked", body=CHUNKS), [501], CLOSED),
    "chunked behind a space": (posted("Transfer-Encoding : chunked", body=CHUNKS), [400], CLOSED),
    "chunked with a parameter": (posted("Transfer-Encoding: chunked;q=1", body=CHUNKS), [501], CLOSED),
    "an empty coding": (posted("Transfer-Encoding: ", body=CHUNKS), [501], CLOSED),
    "chunked and the length zero": (
        posted("Transfer-Encoding: chunked", "Content-Length: 0", body=CHUNKS),
        [400],
        CLOSED,
    ),
    "a chunk with an extension": (CHUNKED + CHUNKS.replace(b"d\r\n", b"d;a=b\r\n", 1), [200], OPEN),
    "a chunk with an extension of 40,000": (CHUNKED + b"d;" + b"a" * 40_000 + b"\r\n", [431], CLOSED),
    "a line end within an extension": (CHUNKED + CHUNKS.replace(b"d\r\n", b"d;a\nb\r\n", 1), [400], CLOSED),
    "a chunk size of 21 digits": (CHUNKED + b"0" * 20 + b"d\r\n" + CHUNKS[3:], [400], CLOSED),
    "a chunk size beyond all bounds": (CHUNKED + b"f" * 16 + b"\r\n" + bytes(0x110000), [413], CLOSED),
    "a chunk size with a prefix": (CHUNKED + b"0xd\r\n" + CHUNKS[3:], [400], CLOSED),
    "a chunk size behind a space": (CHUNKED + b" " + CHUNKS, [400], CLOSED),
    "a chunk that ends with LF": (CHUNKED + CHUNKS.replace(b"}\r\n", b"}\n", 1), [400], CLOSED),
    "a length among the trailers": (CHUNKED + CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n", [200], OPEN),
    "trailers that are none": (CHUNKED + CHUNKS[:-2] + b"none\r\n\r\n", [400], CLOSED),
    "trailers of 40,000": (CHUNKED + CHUNKS[:-2] + b"X: " + b"a" * 40_000 + b"\r\n\r\n", [431], CLOSED),
    "bare CR as line end": (GET.replace(b"\r\n", b"\r") + b"\r\n\r\n", [400], CLOSED),
    "LF CR as line end": (GET.replace(b"\r\n", b"\n\r") + b"\r\n\r\n", [400], CLOSED),
    # More request lines.
    "an empty line first": (b"\r\n" + GET, [400], CLOSED),
    "a NUL first": (b"\x00" + GET, [400], CLOSED),
    "two spaces in the request line": (head("GET  /healthz HTTP/1.1"), [400], CLOSED),
    "a tab in the request line": (head("GET\t/healthz HTTP/1.1"), [400], CLOSED),
    "a space after the version": (head("GET /healthz HTTP/1.1 "), [400], CLOSED),
    "the version in small letters": (head("GET /healthz http/1.1"), [400], CLOSED),
    "HTTP/1.10": (head("GET /healthz HTTP/1.10"), [400], CLOSED),
    "HTTP/3.0": (head("GET /healthz HTTP/3.0"), [400], CLOSED),
    "a field before the first": (head("GET /healthz HTTP/1.1\r\n Host: localhost", host=""), [400], CLOSED),
    "a method of 10,000": (head(f"{'A' * 10_000} /healthz HTTP/1.1"), [405], OPEN),
    "a method of symbols": (head("!#$%&'*+-.^_`|~ /healthz HTTP/1.1"), [405], OPEN),
    "a star": (head("OPTIONS * HTTP/1.1"), [400], CLOSED),
    "an absolute target": (head("GET http://localhost/healthz HTTP/1.1"), [200], OPEN),
    "an absolute target of this host in a foreign Host": (
        head("GET http://localhost/healthz HTTP/1.1", host="example.org"),
        [200],
        OPEN,
    ),
    "an absolute target with a name before the host": (head("GET http://localhost@example.org/ HTTP/1.1"), [403], OPEN),
    "an absolute target of another scheme": (head("GET file:///etc/passwd HTTP/1.1"), [400], CLOSED),
    "a CONNECT to itself": (head("CONNECT localhost:80 HTTP/1.1"), [400], CLOSED),
    # Paths.
    "an encoded way out of the root": (head("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), [404], OPEN),
    "an encoded slash": (head("GET /jobs%2f1 HTTP/1.1"), [404], OPEN),
    "a slash encoded twice": (head("GET /jobs%252f1 HTTP/1.1"), [404], OPEN),
    "a backslash": (head("GET /jobs\\1 HTTP/1.1"), [404], OPEN),
    "two slashes first": (head("GET //healthz HTTP/1.1"), [404], OPEN),
    "a slash at the end": (head("GET /healthz/ HTTP/1.1"), [404], OPEN),
    "a parameter of a path": (head("GET /healthz;a=b HTTP/1.1"), [404], OPEN),
    "a NUL after the path": (head("GET /healthz%00 HTTP/1.1"), [404], OPEN),
    "half an escape": (head("GET /jobs/%4 HTTP/1.1"), [400], OPEN),
    "a fragment": (head("GET /healthz#a HTTP/1.1"), [404], OPEN),
    "a query of 15,000": (head(f"GET /healthz?{'a&' * 7_500} HTTP/1.1"), [200], OPEN),
    "a query of broken escapes": (head("GET /jobs/dequeue?wait=%f HTTP/1.1"), [400], OPEN),
    # More header fields.
    "an empty Host": (head("GET /healthz HTTP/1.1\r\nHost: ", host=""), [200], OPEN),
    "a Host with a name before it": (head("GET /healthz HTTP/1.1", host="localhost@example.org"), [403], OPEN),
    "a Host with a path": (head("GET /healthz HTTP/1.1", host="localhost/example.org"), [403], OPEN),
    "a Host of many": (head("GET /healthz HTTP/1.1", host="localhost, example.org"), [403], OPEN),
    "a field outside ASCII": (head("GET /healthz HTTP/1.1", "X: \xff\xfe"), [200], OPEN),
    "a name outside ASCII": (head("GET /healthz HTTP/1.1", "\xff: a"), [400], CLOSED),
    "a name with a space": (head("GET /healthz HTTP/1.1", "X Y: a"), [400], CLOSED),
    "a line without a colon": (head("GET /healthz HTTP/1.1", "X"), [400], CLOSED),
    "a length in another script": (posted("Content-Length: 1\xb3"), [400], CLOSED),
    "to be kept and to be closed": (head("GET /healthz HTTP/1.1", "Connection: keep-alive, close"), [200], CLOSED),
    "an expectation of another kind": (head("GET /healthz HTTP/1.1", "Expect: miracles"), [200], OPEN),
    "ranges without end": (head("GET /healthz HTTP/1.1", f"Range: bytes={'0-,' * 4_000}"), [200], OPEN),
    "an upgrade to TLS, which is not taken up": (
        head("GET /healthz HTTP/1.1", "Connection: Upgrade", "Upgrade: TLS/1.2"),
        [200],
        OPEN,
    ),
    # More protocols.
    "the PROXY protocol": (b"PROXY TCP4 127.0.0.1 127.0.0.1 4242 80\r\n" + GET, [400], CLOSED),
    "the PROXY protocol in bytes": (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + GET, [400], CLOSED),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", [400], CLOSED),
    "a command of Redis": (b"*1\r\n$4\r\nPING\r\n\r\n", [400], CLOSED),
    "RTSP": (head("OPTIONS rtsp://localhost RTSP/1.0"), [400], CLOSED),
    # More at once.
    "two hundred enqueues ahead of their answers": (200 * sized(ENQUEUE), 200 * [200], OPEN),
    "requests after one that closes": (head("GET /healthz HTTP/1.1", "Connection: close") + 20 * GET, [200], CLOSED),
    "an upgrade in the middle of others": (GET + WEBSOCKET + GET, [200, 200, 200], OPEN),
    # Many at once.
    "fifty requests ahead of their answers": (50 * GET, 50 * [200], OPEN),
    "a request after one that is refused": (posted("Content-Length: 1048577", body=GET), [413], CLOSED),
}
