"""web/schemas.py: what is let in, and what is shown. The corpus of bad input is in tests/contract."""

import gc
import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct
from werkzeug.datastructures import Headers, MultiDict

from queue_actor.jobs import JobState
from queue_actor.settings import MIB, Settings
from web.problems import Problem
from web.schemas import (
    SimpleEnqueueBody,
    consumer,
    decode,
    empty_status,
    job_id,
    new_payload,
    parameter,
    simple_job,
    wait_seconds,
)


class Inner(Struct):
    """A part of a body."""

    a: int


class Outer(Struct):
    """A body with parts."""

    jobs: list[Inner] = []


BODY: msgspec.json.Decoder[SimpleEnqueueBody] = msgspec.json.Decoder(SimpleEnqueueBody)
NESTED: msgspec.json.Decoder[Outer] = msgspec.json.Decoder(Outer)


def refused(call: Any, *arguments: Any, **more: Any) -> tuple[str, str | None]:
    """Code and field of what a call was refused with."""
    with pytest.raises(Problem) as caught:
        call(*arguments, **more)
    return caught.value.code, json.loads(caught.value.body).get("field")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"jobs":[{"a":1},{"a":"x"}]}', "jobs[1].a"),
        (b'{"jobs":[{"a":1},{}]}', "jobs[1].a"),
        (b'{"jobs":[1]}', "jobs[0]"),
        (b'{"jobs":1}', "jobs"),
        (b"[]", "body"),
    ],
)
def test_a_value_out_of_bounds_is_named_by_its_path(body: bytes, field: str) -> None:
    assert refused(decode, NESTED, body) == ("invalid", field)


def test_a_decoded_type_and_payload_are_what_was_sent() -> None:
    body = decode(BODY, b'{"Type":"a", "Payload": [1, 2] }')
    assert (body.type, bytes(body.payload)) == ("a", b"[1, 2]")


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"Type":"a","Payload":"\xff"}', b"[" * 200_000])
def test_every_way_in_which_a_body_is_no_json_is_malformed_or_invalid(body: bytes) -> None:
    code, field = refused(decode, BODY, body)
    assert (code, field) in {("malformed", "body"), ("invalid", "body")}


def test_a_missing_payload_is_none_and_null_is_a_payload() -> None:
    assert new_payload(decode(BODY, b'{"Type":"a"}').payload, Settings(), field="Payload") is None
    assert new_payload(decode(BODY, b'{"Type":"a","Payload":null}').payload, Settings(), field="Payload") == b"null"


def test_a_payload_may_be_as_large_as_the_limit() -> None:
    settings = Settings(payload_bytes_max=10)
    assert new_payload(Raw(b'"12345678"'), settings, field="Payload") == b'"12345678"'
    assert refused(new_payload, Raw(b'"123456789"'), settings, field="jobs[1].payload") == (
        "too_large",
        "jobs[1].payload",
    )


def test_a_payload_does_not_keep_its_request_alive() -> None:
    body = bytearray(b'{"Type":"a","Payload":"x"}')
    body += b" " * MIB
    payload = new_payload(decode(BODY, bytes(body)).payload, Settings(), field="Payload")
    assert type(payload) is bytes
    assert gc.get_referents(payload) == []


@pytest.mark.parametrize(("text", "id_"), [("0", 0), ("1", 1), ("10", 10), ("9007199254740991", 2**53 - 1)])
def test_an_id_is_a_plain_integer(text: str, id_: int) -> None:
    assert job_id(text) == id_


NO_IDS = [
    "", " 1", "1 ", "1\n", "9" * 16, "9" * 5_000, "-1", "+1", "01", "1.0", "1e3", "0x1", "1_0", "٣", "²", "１",
    "9007199254740992",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_IDS, ids=lambda text: ascii(text[:20]))
def test_nothing_else_is_an_id(text: str) -> None:
    assert refused(job_id, text) == ("invalid", "id")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("0", 0.0),
        ("00.0", 0.0),
        ("1", 1.0),
        ("0.000000001", 1e-9),
        ("19.999999999999996", 19.999999999999996),
        ("20", 20.0),
    ],
)
def test_a_wait_is_a_plain_number_of_seconds(text: str | None, seconds: float) -> None:
    assert wait_seconds(text, Settings()) == seconds


NO_WAITS = [
    "", " ", "1\n", " 1", "1" * 400, "-1", "-0", "+1", "1e1", "nan", "inf", ".5", "5.", "1_0", "0x1", "٣", "20.1",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_WAITS, ids=lambda text: ascii(text[:20]))
def test_nothing_else_is_a_wait(text: str) -> None:
    assert refused(wait_seconds, text, Settings()) == ("invalid", "wait")


def test_a_wait_is_refused_above_the_limit_and_never_cut_down_to_it() -> None:
    assert refused(wait_seconds, "0.1", Settings(wait_seconds_max=0)) == ("invalid", "wait")
    assert wait_seconds("60", Settings(wait_seconds_max=60)) == 60


def test_an_empty_answer_is_404_unless_204_is_asked_for() -> None:
    assert [empty_status(text) for text in (None, "404", "204")] == [404, 404, 204]
    for text in ("", "200", "0204", "٢٠٤", "204\n", " 204"):
        assert refused(empty_status, text) == ("invalid", "empty")


def test_a_parameter_is_there_once_or_not_at_all() -> None:
    query: MultiDict[str, str] = MultiDict([("a", "1"), ("b", "1"), ("b", "1")])
    assert [parameter(query, name) for name in ("a", "c")] == ["1", None]
    assert refused(parameter, query, "b") == ("invalid", "b")


def test_a_consumer_is_named_in_utf8_by_any_of_three_headers() -> None:
    assert consumer(Headers()) is None
    for header in ("QUEUE_CONSUMER", "Queue-Consumer", "x-queue-consumer"):
        # Servers read header fields as Latin-1.
        assert consumer(Headers([(header, "ä😀".encode().decode("latin1"))])) == "ä😀"
    assert refused(consumer, Headers([("Queue-Consumer", "ä")])) == ("invalid", "QUEUE_CONSUMER")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (JobState.SCHEDULED, b'{"ID":7,"Type":"a\\"","Status":"QUEUED"}'),
        (JobState.QUEUED, b'{"ID":7,"Type":"a\\"","Status":"QUEUED"}'),
        (JobState.IN_PROGRESS, b'{"ID":7,"Type":"a\\"","Status":"IN_PROGRESS"}'),
        (JobState.CONCLUDED, b'{"ID":7,"Type":"a\\"","Status":"CONCLUDED"}'),
        (JobState.DEAD, b'{"ID":7,"Type":"a\\"","Status":"CONCLUDED","State":"dead"}'),
        (JobState.CANCELLED, b'{"ID":7,"Type":"a\\"","Status":"CONCLUDED","State":"cancelled"}'),
    ],
)
def test_a_job_in_each_state_has_one_of_three_statuses(state: JobState, shown: bytes) -> None:
    assert simple_job(7, 'a"', state, None) == shown


def test_every_state_can_be_shown_with_a_payload() -> None:
    for state in JobState:
        assert b'"Payload":[1 , 2]' in simple_job(7, "a", state, b"[1 , 2]")
