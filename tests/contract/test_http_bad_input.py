"""Input that is refused: each with its documented 4xx, naming the field, and without a trace in the queue.

The corpus is a list, so that a reader sees at a glance what is refused, and with what. After it: what Hypothesis makes
of bodies, and what hostile input may do to the log.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import KIB, MIB, Settings
from tests.contract.stack import HOST, Headers, Server, build, serving
from tests.fakes import in_virtual_time

pytestmark = pytest.mark.virtual_time

Problem = tuple[int, str, str | None]


class Bad(NamedTuple):
    """A request that has to be refused."""

    name: str
    request: bytes
    problem: Problem


def enqueue(name: str, body: bytes, *problem: Any, headers: Headers = ()) -> Bad:
    """A body that cannot be enqueued."""
    return Bad(f"enqueue {name}", build("POST", "/jobs/enqueue", body, headers), problem)


def payload(name: str, text: bytes) -> Bad:
    """A payload that is no JSON."""
    return enqueue(f"payload {name}", b'{"Type":"a","Payload":' + text + b"}", *MALFORMED)


def dequeue(name: str, query: str, field: str, headers: Headers = ()) -> Bad:
    """A dequeue that is out of bounds."""
    return Bad(f"dequeue {name}", build("POST", f"/jobs/dequeue{query}", b"", headers), (400, "invalid", field))


def conclude(name: str, id_: int, status: int, code: str, field: str | None, **headers: str) -> Bad:
    """A conclude that cannot be."""
    named = [(header if header.isupper() else header.replace("_", "-"), value) for header, value in headers.items()]
    return Bad(f"conclude {name}", build("POST", f"/jobs/{id_}/conclude", b"", named), (status, code, field))


def id_(text: str) -> list[Bad]:
    """An id that is none, wherever it may stand."""
    name = text if len(text) < 40 else f"{len(text)} digits"
    problem = (400, "invalid", "id")
    return [
        Bad(f"read {name}", build("GET", f"/jobs/{text}"), problem),
        Bad(f"conclude {name}", build("POST", f"/jobs/{text}/conclude"), problem),
    ]


def headed(name: str, *headers: tuple[str, str | bytes], body: bytes = b"") -> Bad:
    """What is no HTTP/1.1 for its headers."""
    return framing(name, build("POST", "/jobs/dequeue", body, headers), 400, "malformed")


def framing(name: str, request: bytes, status: int, code: str) -> Bad:
    """What is no HTTP/1.1."""
    return Bad(f"framing {name}", request, (status, code, None))


MALFORMED = (400, "malformed", "body")
TYPE = (400, "invalid", "Type")
TOO_LARGE = (413, "too_large", None)
WHOLE = (400, "invalid", "body")
CONSUMER = "QUEUE_CONSUMER"
CHUNKED = ("Transfer-Encoding", "chunked")
THIRD = ("X-Queue-Consumer", "b")
DEEP = 100_000
DIGITS = b"9" * 4_000

WAITS = [
    "", "0" * 11, "1" * 4_000, "-1", "-0", "+1", "%2B1", "nan", "NaN", "inf", "-inf", "Infinity", "1e1", "1E1", "0x1",
    "1_0", ".5", "5.", "1,5", "1;empty=204", "one", "true", "null", "%D9%A3", "%EF%BC%91", "%20%31", "1%20", "1%0A",
    "1%00", "%FF", "20.000000001", "21", "99999999999", "0.000000000000000000001",
]  # fmt: skip
EMPTIES = [
    "", "9" * 4_000, "200", "0", "405", "204.0", "0204", "%20204", "204%0A", "true", "%D9%A2%D9%A0%D9%A4",
]  # fmt: skip
IDS = [
    "9" * 30, "9" * 4_000, "-1", "-0", "+1", "01", "00", "1.0", "1.", "1e3", "0x1", "0b1", "1_0", "%201", "1%20",
    "1%0A", "1%00", "%D9%A3", "%EF%BC%91", "%C2%B2", "9007199254740992", "one", "null", "true", "NaN", "Infinity",
    "%FF", "%", "%zz", "1,2", "1;2", "1%2F2", "*", "..", "~",
]  # fmt: skip

BAD = [
    # bodies that are no JSON
    enqueue("empty body", b"", *MALFORMED),
    enqueue("blank body", b" \n", *MALFORMED),
    enqueue("no JSON", b"Type=a", *MALFORMED),
    enqueue("cut short", b'{"Type":"a"', *MALFORMED),
    enqueue("trailing comma", b'{"Type":"a",}', *MALFORMED),
    enqueue("trailing text", b'{"Type":"a"} x', *MALFORMED),
    enqueue("two documents", b'{"Type":"a"}{"Type":"a"}', *MALFORMED),
    enqueue("a comment", b'{"Type":"a"/**/}', *MALFORMED),
    enqueue("single quotes", b"{'Type':'a'}", *MALFORMED),
    enqueue("bare key", b'{Type:"a"}', *MALFORMED),
    enqueue("byte order mark", b'\xef\xbb\xbf{"Type":"a"}', *MALFORMED),
    enqueue("UTF-16", '{"Type":"a"}'.encode("utf-16"), *MALFORMED),
    enqueue("UTF-16 without mark", '{"Type":"a"}'.encode("utf-16-le"), *MALFORMED),
    enqueue("UTF-32", '{"Type":"a"}'.encode("utf-32"), *MALFORMED),
    enqueue("Latin-1", '{"Type":"ä"}'.encode("latin1"), *MALFORMED),
    enqueue("NUL after the end", b'{"Type":"a"}\x00', *MALFORMED),
    enqueue("gzip", b"\x1f\x8b\x08\x00", *MALFORMED, headers=[("Content-Encoding", "gzip")]),
    enqueue("invalid UTF-8 in Type", b'{"Type":"\xff"}', *MALFORMED),
    enqueue("invalid UTF-8 in Payload", b'{"Type":"a","Payload":"\xff"}', *MALFORMED),
    enqueue("invalid UTF-8 in an ignored key", b'{"Type":"a","\xff":1}', *MALFORMED),
    enqueue("invalid UTF-8 in an ignored value", b'{"Type":"a","x":"\xff"}', *MALFORMED),
    enqueue("overlong UTF-8", b'{"Type":"\xc0\xaf"}', *MALFORMED),
    enqueue("a surrogate in UTF-8", b'{"Type":"a","Payload":"\xed\xa0\x80"}', *MALFORMED),
    enqueue("beyond Unicode in UTF-8", b'{"Type":"a","Payload":"\xf4\x90\x80\x80"}', *MALFORMED),
    enqueue("lone surrogate in Type", b'{"Type":"\\ud800"}', *MALFORMED),
    enqueue("lone surrogate in Payload", b'{"Type":"a","Payload":"\\ud800"}', *MALFORMED),
    enqueue("lone low surrogate in Payload", b'{"Type":"a","Payload":"\\udc00"}', *MALFORMED),
    enqueue("surrogates in the wrong order", b'{"Type":"a","Payload":"\\udc00\\ud800"}', *MALFORMED),
    enqueue("lone surrogate in an ignored key", b'{"Type":"a","\\ud800":1}', *MALFORMED),
    enqueue("Type nested deep", b'{"Type":' + b"[" * DEEP + b"]" * DEEP + b"}", *TYPE),
    payload("nested deep", b"[" * DEEP + b"]" * DEEP),
    payload("nested deep in objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    enqueue("an ignored key nested deep", b'{"x":' + b"[" * DEEP + b"]" * DEEP + b',"Type":"a"}', *MALFORMED),
    enqueue("nested deep and cut short", b"[" * DEEP, *WHOLE),
    enqueue("Type nested deep and cut short", b'{"Type":' + b"[" * DEEP, *TYPE),
    enqueue("Payload nested deep and cut short", b'{"Type":"a","Payload":' + b"[" * DEEP, *MALFORMED),
    # bodies of the wrong shape
    enqueue("a list", b"[]", *WHOLE),
    enqueue("a list of jobs", b'[{"Type":"a"}]', *WHOLE),
    enqueue("a string", b'"a"', *WHOLE),
    enqueue("a number", b"1", *WHOLE),
    enqueue("null", b"null", *WHOLE),
    enqueue("no Type", b"{}", *TYPE),
    enqueue("Type in another case", b'{"type":"a","TYPE":"b"}', *TYPE),
    enqueue("Payload alone", b'{"Payload":1}', *TYPE),
    enqueue("Type null", b'{"Type":null}', *TYPE),
    enqueue("Type true", b'{"Type":true}', *TYPE),
    enqueue("Type a number", b'{"Type":1}', *TYPE),
    enqueue("Type a number of 4,000 digits", b'{"Type":' + DIGITS + b"}", *TYPE),
    enqueue("Type a list", b'{"Type":["a"]}', *TYPE),
    enqueue("Type an object", b'{"Type":{}}', *TYPE),
    enqueue("Type empty", b'{"Type":""}', *TYPE),
    enqueue("Type of 201 characters", b'{"Type":"' + b"a" * 201 + b'"}', *TYPE),
    enqueue("Type of 4,000 digits and a quote", b'{"Type":"' + DIGITS + b'"}', *TYPE),
    enqueue("Type with NUL", b'{"Type":"a\\u0000"}', *TYPE),
    enqueue("Type with a tab", b'{"Type":"a\\tb"}', *TYPE),
    enqueue("Type with a line feed at its end", b'{"Type":"a\\n"}', *TYPE),
    enqueue("Type with ESC", b'{"Type":"\\u001b[31m"}', *TYPE),
    enqueue("Type with DEL", b'{"Type":"\\u007f"}', *TYPE),
    enqueue("Type with raw DEL", b'{"Type":"\x7f"}', *TYPE),
    enqueue("Type with a C1 control", b'{"Type":"\\u0085"}', *TYPE),
    enqueue("Type with a raw C1 control", '{"Type":"\x9b"}'.encode(), *TYPE),
    enqueue("the last of two Types wrong", b'{"Type":"a","Type":1}', *TYPE),
    enqueue("the first of two Types wrong", b'{"Type":1,"Type":"a"}', *TYPE),
    enqueue("Type with a raw line feed", b'{"Type":"a\n"}', *MALFORMED),
    # payloads that are no JSON: what was not parsed is handed out again as it came
    payload("missing", b""),
    payload("zero first", b"01"),
    payload("minus alone", b"-"),
    payload("minus zero first", b"-01"),
    payload("two signs", b"--1"),
    payload("plus", b"+1"),
    payload("point at the end", b"1."),
    payload("point first", b".5"),
    payload("two points", b"1.2.3"),
    payload("exponent without digits", b"1e"),
    payload("exponent with a sign alone", b"1e+"),
    payload("two exponents", b"1e5e5"),
    payload("hexadecimal", b"0x1"),
    payload("underscore", b"1_0"),
    payload("Arabic digits", "٣".encode()),
    payload("NaN", b"NaN"),
    payload("Infinity", b"Infinity"),
    payload("minus Infinity", b"-Infinity"),
    payload("undefined", b"undefined"),
    payload("half a word", b"tru"),
    payload("a word and more", b"truex"),
    payload("True", b"True"),
    payload("comma at the end of a list", b"[1,]"),
    payload("comma at the start of a list", b"[,1]"),
    payload("no comma in a list", b"[1 2]"),
    payload("comma at the end of an object", b'{"a":1,}'),
    payload("no comma in an object", b'{"a":1"b":2}'),
    payload("no colon", b'{"a" 1}'),
    payload("no value", b'{"a":}'),
    payload("key a number", b"{1:2}"),
    payload("key bare", b"{a:1}"),
    payload("open list", b"[1"),
    payload("open object", b'{"a":1'),
    payload("open string", b'"a'),
    payload("brackets crossed", b"[{]}"),
    payload("escape unknown", b'"\\x"'),
    payload("escape cut short", b'"\\u12"'),
    payload("escape not hexadecimal", b'"\\uzzzz"'),
    payload("escape with a sign", b'"\\u+123"'),
    payload("raw line feed", b'"a\nb"'),
    payload("raw NUL", b'"\x00"'),
    payload("raw ESC", b'"\x1b"'),
    payload("raw tab in a key", b'{"\t":1}'),
    payload("escape unknown in a key", b'{"\\x":1}'),
    payload("single quotes", b"'a'"),
    payload("a comment", b"1/**/"),
    payload("a line comment", b"1//\n"),
    payload("no-break space", b"\xc2\xa01"),
    payload("form feed", b"\x0c1"),
    payload("NUL between tokens", b"[1\x00]"),
    payload("byte order mark", b"\xef\xbb\xbf1"),
    payload("two values", b"1 2"),
    enqueue("payload wrong, and another after it", b'{"Payload":[1,],"Type":"a","Payload":1}', *MALFORMED),
    enqueue("an ignored value no JSON", b'{"x":01,"Type":"a"}', *MALFORMED),
    # sizes
    enqueue("too large by Content-Length", b"{}", *TOO_LARGE, headers=[("Content-Length", str(MIB + 1))]),
    enqueue("too large by a mile", b"", *TOO_LARGE, headers=[("Content-Length", "9" * 19)]),
    enqueue("too large in one chunk", b"%x\r\n" % (MIB + 1) + b" " * (MIB + 1), *TOO_LARGE, headers=[CHUNKED]),
    enqueue("too large in many chunks", b"8000\r\n%b\r\n" % (b" " * 32 * KIB) * 33, *TOO_LARGE, headers=[CHUNKED]),
    enqueue("payload too large", b'{"Type":"a","Payload":"' + b"a" * 256 * KIB + b'"}', 413, "too_large", "Payload"),
    # queries
    *(dequeue(f"wait={text[:30]} of {len(text)}", f"?wait={text}", "wait") for text in WAITS),
    dequeue("wait without a value", "?wait", "wait"),
    dequeue("wait twice", "?wait=0&wait=1", "wait"),
    dequeue("wait twice alike", "?wait=1&wait=1", "wait"),
    dequeue("wait twice, once encoded", "?wait=0&%77ait=1", "wait"),
    *(dequeue(f"empty={text[:30]}", f"?empty={text}", "empty") for text in EMPTIES),
    dequeue("empty twice", "?empty=204&empty=404", "empty"),
    # consumers
    *(
        dequeue(f"consumer {name}", "", CONSUMER, headers)
        for name, headers in (
            ("empty", [("Queue-Consumer", "")]),
            ("blank", [("Queue-Consumer", "  ")]),
            ("of 201 characters", [("Queue-Consumer", "a" * 201)]),
            ("of 201 characters beyond ASCII", [("Queue-Consumer", ("ä" * 201).encode())]),
            ("with a tab", [("Queue-Consumer", "a\tb")]),
            ("with a C1 control", [("Queue-Consumer", "a\x85b".encode())]),
            ("in Latin-1", [("Queue-Consumer", "ä".encode("latin1"))]),
            ("in broken UTF-8", [("Queue-Consumer", b"a\xff")]),
            ("with a surrogate", [("Queue-Consumer", b"\xed\xa0\x80")]),
            ("differing by alias", [("QUEUE_CONSUMER", "a"), ("Queue-Consumer", "b")]),
            ("differing in the third alias", [("QUEUE_CONSUMER", "a"), ("Queue-Consumer", "a"), THIRD]),
            ("differing by case", [("QUEUE_CONSUMER", "a"), ("X-Queue-Consumer", "A")]),
            ("one of two empty", [("QUEUE_CONSUMER", "a"), ("Queue-Consumer", "")]),
            ("twice in one alias", [("Queue-Consumer", "a"), ("Queue-Consumer", "b")]),
        )
    ),
    conclude("differing aliases", 1, 400, "invalid", CONSUMER, QUEUE_CONSUMER="w1", X_Queue_Consumer="w2"),
    conclude("consumer in Latin-1", 1, 400, "invalid", CONSUMER, Queue_Consumer="ä"),
    conclude("by another consumer", 1, 403, "other_consumer", "consumer", Queue_Consumer="w2"),
    conclude("by nobody", 1, 403, "other_consumer", "consumer"),
    conclude("with another token", 1, 409, "lease_lost", "token", Queue_Lease_Token="x"),  # noqa: S106 - that is it
    conclude("queued", 2, 409, "not_in_progress", None),
    conclude("unknown", 3, 404, "unknown_job", "id"),
    # ids
    *(bad for text in IDS for bad in id_(text)),
    # what is no HTTP/1.1, or is sent to smuggle something past somebody
    framing("garbage", b"garbage\r\n\r\n", 400, "malformed"),
    framing("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed"),
    framing("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed"),
    framing("no Host", b"POST /jobs/dequeue HTTP/1.1\r\n\r\n", 400, "malformed"),
    headed("two Hosts", ("Host", HOST), ("Host", HOST)),
    headed("length and chunks", CHUNKED, ("Content-Length", "5"), body=b"0\r\n\r\n"),
    headed("two lengths", ("Content-Length", "0"), ("Content-Length", "1")),
    headed("length with a sign", ("Content-Length", "+0")),
    headed("length in Arabic digits", ("Content-Length", "٣".encode())),
    headed("length of 21 digits", ("Content-Length", "0" * 21)),
    headed("length negative", ("Content-Length", "-1")),
    headed("chunk size no number", CHUNKED, body=b"x\r\n"),
    framing("chunks in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed"),
    framing(
        "another coding", build("POST", "/jobs/dequeue", b"", [("Transfer-Encoding", "gzip")]), 501, "not_implemented"
    ),
    framing("space before the colon", b"POST /jobs/dequeue HTTP/1.1\r\nHost : x\r\n\r\n", 400, "malformed"),
    framing("space in the target", build("POST", "/jobs/dequeue x"), 400, "malformed"),
    framing("target beyond ASCII", build("POST", "/jobs/\xff"), 400, "malformed"),
    framing("control character in the target", build("POST", "/jobs/\x01"), 400, "malformed"),
    framing("target no path", build("OPTIONS", "*"), 400, "malformed"),
    framing("target a host", build("CONNECT", "127.0.0.1:80"), 400, "malformed"),
    framing("target another scheme", build("POST", "file:///jobs/dequeue"), 400, "malformed"),
    framing("method beyond ASCII", build("P\xd6ST", "/jobs/dequeue"), 400, "malformed"),
    framing("method with a space", build("P OST", "/jobs/dequeue"), 400, "malformed"),
    framing("header name beyond ASCII", b"POST /jobs/dequeue HTTP/1.1\r\nHost: x\r\n\xff: 1\r\n\r\n", 400, "malformed"),
    *(
        headed(f"control character {code:#04x} in a header", ("Queue-Consumer", b"a%cb" % code))
        for code in (0x00, 0x01, 0x07, 0x08, 0x0B, 0x0C, 0x0D, 0x1B, 0x1F, 0x7F)
    ),
    framing("head too large", build("POST", "/jobs/dequeue", b"", [("X", "x" * 16 * KIB)]), 431, "headers_too_large"),
]


@pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ascii(bad.name[:50]))
async def test_bad_input_is_refused_and_leaves_no_trace(server: Server, bad: Bad) -> None:
    assert [await server.enqueue(), await server.enqueue()] == [1, 2]
    await server.dequeue([("Queue-Consumer", "w1")])
    before = await server.state([1, 2, 3])

    answer = await server.ask_raw(bad.request)

    assert answer.problem == bad.problem
    assert await server.state([1, 2, 3]) == before
    assert await server.enqueue() == 3
    assert (await server.dequeue()).json["ID"] == 2


def test_the_corpus_has_no_name_twice() -> None:
    names = [bad.name for bad in BAD]
    assert len(set(names)) == len(names)


# --- any body at all


class Number(str):
    """A number as it is written: no precision is lost when two are compared."""

    __slots__ = ()


def parsed(text: str) -> Any:
    """A JSON text, by another parser than the server's: objects as lists of pairs, numbers as they are written.

    Raises:
        ValueError: It is none, or holds half a surrogate pair.
    """
    document = json.loads(
        text,
        parse_int=Number,
        parse_float=Number,
        parse_constant=_refuse,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )
    json.dumps(document, ensure_ascii=False).encode()
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def understood(body: bytes) -> tuple[str, Any] | None:
    """Type and payload of a body that has to be accepted; None of one that has to be refused."""
    try:
        match parsed(body.decode()):
            case ("object", pairs):
                types = [value for key, value in pairs if key == "Type"]
                payloads = [value for key, value in pairs if key == "Payload"]
            case _:
                return None
    except ValueError:
        return None
    if not types or not all(type(one) is str and 1 <= len(one) <= 200 and not CONTROLS & set(one) for one in types):
        return None
    return types[-1], payloads[-1:]


CONTROLS = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=12,
)
TYPES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=30)
WRITERS: st.SearchStrategy[Callable[[Any], str]] = st.sampled_from(
    [
        json.dumps,
        partial(json.dumps, ensure_ascii=False),
        partial(json.dumps, separators=(",", ":"), sort_keys=True),
        partial(json.dumps, indent="\t", ensure_ascii=False),
    ]
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Bodies that are JSON, and mostly right."""
    chosen = [*draw(st.lists(st.sampled_from(["Type", "Payload", "ID", "x"]), unique=True)), "Type"]
    document = {key: draw(TYPES if key == "Type" else VALUES) for key in dict.fromkeys(chosen)}
    write = draw(WRITERS)
    return write(document).encode()


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Bodies that were JSON before some bytes were changed, left out or put in."""
    body = bytearray(draw(documents()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        piece = draw(
            st.sampled_from([b"", b'"', b"\\", b",", b"{", b"]", b"0", b"-", b".", b"e", b"\n", b"\xff"])
            | st.binary(max_size=2)
        )
        body[place : place + draw(st.integers(0, 2))] = piece
    return bytes(body)


@given(body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()) | documents() | mutants())
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(body=b'{"Type":"a","Payload":1E400}')
@example(body=b'{"Type":"a","Payload":"\\ud83d\\ude00"}')
@example(body=b'{"Type":"a","Payload":{"":0,"":-0}}')
def test_whatever_is_sent_is_refused_or_comes_back_as_it_was(body: bytes) -> None:
    in_virtual_time(partial(offer, body))


async def offer(body: bytes) -> None:
    async with serving(Settings()) as server:
        before = await server.state([1])
        answer = await server.ask("POST", "/jobs/enqueue", body)
        expected = understood(body)
        if expected is None:
            assert answer.problem[:2] in {(400, "malformed"), (400, "invalid")}
            assert await server.state([1]) == before
        else:
            for seen, status in ((answer, "QUEUED"), (await server.dequeue(), "IN_PROGRESS")):
                _, pairs = parsed(seen.body.decode())
                type_, payloads = expected
                start = [("ID", "1"), ("Type", type_), ("Status", status)]
                assert pairs == start + [("Payload", payload) for payload in payloads]


# --- the log

PLACES = {
    "path": lambda raw: build("GET", "/jobs/X").replace(b"X", raw),
    "encoded path": lambda raw: build("GET", "/jobs/" + "".join(f"%{byte:02x}" for byte in raw)),
    "encoded query": lambda raw: build("POST", "/jobs/dequeue?wait=" + "".join(f"%{byte:02X}" for byte in raw)),
    "query": lambda raw: build("GET", "/jobs/dequeue?x=X").replace(b"X", raw),
    "method": lambda raw: build("X", "/jobs/1").replace(b"X", raw),
    "consumer": lambda raw: build("POST", "/jobs/dequeue", b"", [("Queue-Consumer", b"w" + raw + b"1")]),
    "header": lambda raw: build("GET", "/jobs/1", b"", [("X-Other", b"a" + raw + b"b")]),
    "header name": lambda raw: build("GET", "/jobs/1", b"", [("X-Name", "1")]).replace(b"Name", raw),
    "request id": lambda raw: build("GET", "/jobs/1", b"", [("X-Request-Id", b"a" + raw + b"b")]),
    "token": lambda raw: build("POST", "/jobs/1/conclude", b"", [("Queue-Lease-Token", b"a" + raw + b"b")]),
    "host": lambda raw: build("GET", "/jobs/1", b"", [("Host", b"a" + raw + b"b")]),
    "origin": lambda raw: build("GET", "/jobs/1", b"", [("Origin", b"a" + raw + b"b")]),
    "version": lambda raw: build("GET", "/jobs/1").replace(b"/1.1", raw),
    "type": lambda raw: build("POST", "/jobs/enqueue", b'{"Type":"a' + raw + b'b"}'),
}

HARMFUL = [
    *(bytes([code]) for code in range(0x20)),
    b"\x7f",
    *(chr(code).encode() for code in range(0x80, 0xA0)),
    *(bytes([code]) for code in range(0x80, 0xA0)),
    "\u2028".encode(),
    "\u2029".encode(),
    "\u202e".encode(),
    b"\xff",
    b"\r\nX: 1",
    b'\n{"event":"request"}',
    b'"',
    b"\\",
]


@pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_request_is_one_line_of_the_log_whatever_is_in_it(server: Server, place: str) -> None:
    # A line feed in a method, a target or a name makes more lines of a head, but no more requests.
    for raw in HARMFUL:
        answer = await server.ask_raw(PLACES[place](raw))
        assert answer.status < 500
    assert len(server.log) == len(HARMFUL)


@pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
async def test_a_line_tells_who_asked_for_what_and_what_came_of_it(server: Server) -> None:
    await server.enqueue()
    await server.ask("POST", "/jobs/dequeue?wait=1", headers=[("Queue-Consumer", "w1"), ("Remote-Addr", "192.0.2.1")])
    await server.ask("POST", "/jobs/dequeue?empty=204")
    await server.ask("GET", "/jobs/9?secret=1")
    facts = ["client", "method", "path", "status", "queue", "job", "state", "consumer", "code"]
    assert [[line.get(fact) for fact in facts] for line in server.log] == [
        ["127.0.0.1", "POST", "/jobs/enqueue", 200, "default", 1, "queued", None, None],
        ["127.0.0.1", "POST", "/jobs/dequeue", 200, "default", 1, "in_progress", "w1", None],
        ["127.0.0.1", "POST", "/jobs/dequeue", 204, None, None, None, None, "empty"],
        ["127.0.0.1", "GET", "/jobs/9", 404, None, None, None, None, "unknown_job"],
    ]
    assert "secret" not in server.stream.getvalue()


async def test_a_request_whose_client_has_left_has_a_line_too(server: Server) -> None:
    client = server.connect()
    await client.send(build("POST", "/jobs/dequeue?wait=20", b"", [("X-Request-Id", "mine")]))
    await wait_all_tasks_blocked()
    assert server.log == []
    await client.leave()
    await wait_all_tasks_blocked()
    facts = ["event", "request_id", "path", "status", "code"]
    assert [[line[fact] for fact in facts] for line in server.log] == [
        ["request", "mine", "/jobs/dequeue", None, "unanswered"]
    ]


@pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
async def test_a_long_path_or_method_is_cut_in_the_log(server: Server) -> None:
    await server.ask("GET", "/" + "x" * 10 * KIB)
    await server.ask("X" * 10 * KIB, "/")
    assert len(server.stream.getvalue()) < 3 * KIB


@pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
async def test_neither_tokens_nor_payloads_are_told_in_errors_or_in_the_log(server: Server) -> None:
    secret = "hunter2"  # noqa: S105 - none of ours
    job = json.dumps({"Type": "a", "Payload": {secret: secret}}).encode()
    await server.enqueue(job)
    token = (await server.dequeue()).token
    text = f'"{secret}"'.encode()
    answers = [
        # Wrong in the payload, and next to it.
        *[
            await server.ask("POST", "/jobs/enqueue", body)
            for body in (
                job[:-1],
                job + b"x",
                job.replace(b'"a"', b"1"),
                job.replace(b'"Type"', text),
                b'{"Type":"a","Payload":[' + text + b",]}",
                b'{"Type":' + text + b":}",
                b'{"Type":"a","Payload":"' + secret.encode() + b'\xff"}',
                b'{"Type":"a","Payload":"' + secret.encode() + b"x" * 256 * KIB + b'"}',
            )
        ],
        # A right token in the wrong place.
        await server.ask("POST", "/jobs/2/conclude", headers=[("Queue-Lease-Token", token)]),
        await server.ask("POST", "/jobs/x/conclude", headers=[("Queue-Lease-Token", token)]),
        await server.ask("DELETE", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token)]),
        await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token + secret)]),
        await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", f"{token}\x00")]),
        await server.ask("POST", f"/jobs/dequeue?wait={token}"),
        await server.ask("POST", "/jobs/dequeue", headers=[("Authorization", secret), ("Cookie", secret)]),
    ]
    for answer in answers:
        assert 400 <= answer.status < 500
        assert secret.encode() not in answer.body
        assert token.encode() not in answer.body
    assert secret not in server.stream.getvalue()
    assert token not in server.stream.getvalue()
