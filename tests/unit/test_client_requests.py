"""What the client sends, and how answers are read: without any I/O."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from queue_actor import client_exchange as exchange
from queue_actor import client_requests as requests
from queue_actor.client import (
    Claim,
    ConcludeClaim,
    Dequeue,
    Enqueued,
    ExtendClaim,
    FailClaim,
    Invalid,
    Job,
    JobError,
    JobState,
    LeaseLost,
    NewJob,
    NotUnderstood,
    OutcomeUnknown,
    Refused,
    ReleaseClaim,
    Retry,
    UniqueKeyTaken,
)
from queue_actor.client_bodies import ERROR_MESSAGE_CHARACTERS_MAX, claim_of_failure
from queue_actor.client_exchange import Answer, Request, read
from queue_actor.client_requests import KEY
from web.bodies import NewJobBody
from web.fields import ERROR_MESSAGE_CHARACTERS_MAX as SERVERS

HELD = Claim(queue="images", id=7, token="secret")  # noqa: S106 - none
JOB = {
    "queue": "images", "id": 7, "type": "resize", "state": "in_progress", "priority": 0, "payload": {"w": 1},
    "meta": {}, "traceparent": None, "unique_key": None, "created_at": "2027-01-15T08:00:00.123Z", "not_before": None,
    "expires_at": None, "attempts": 1, "fails": 0, "stales": 0, "max_attempts": None, "consumer": "w1",
    "lease": {"token": "secret", "fence": 5, "seconds": 60, "expires_at": "2027-01-15T08:01:00.123Z"},
    "cancel_requested": False, "progress": None, "result": None, "reason": None, "finished_at": None,
    "something": "that a later server tells",
}  # fmt: skip


def body(request: Request[Any]) -> Any:
    return json.loads(request.body)


def dequeue(queue: str | list[str], **facts: Any) -> Request[tuple[Job, ...]]:
    asked = {"count": 1, "wait_seconds": 0.0, "lease_seconds": None, "consumer": None, "order": "listed", **facts}
    return requests.dequeue(queue, **asked)


# --- what is sent


def test_an_enqueue_has_a_key_of_its_own_each_and_leaves_out_what_is_not_said() -> None:
    one, other = (requests.enqueue("images", [NewJob("resize", {"w": 1}), NewJob("crop")]) for _ in range(2))
    assert (one.method, one.path, one.repeatable, one.wait_seconds) == ("POST", "/v1/queues/images/enqueue", True, 0)
    assert body(one) == {"jobs": [{"type": "resize", "payload": {"w": 1}}, {"type": "crop"}]}
    assert 1 <= len(one.headers[KEY]) <= 200
    assert one.headers[KEY] != other.headers[KEY]
    assert requests.enqueue("images", [], "mine").headers == {KEY: "mine"}


def test_a_new_job_has_the_fields_that_the_server_takes() -> None:
    assert NewJob.__struct_fields__ == NewJobBody.__struct_fields__
    day = datetime(2027, 1, 15, tzinfo=UTC)
    job = NewJob("t", [1], -3, 1.5, day, 2.5, 3, Retry(), 9.0, "k", "started", "refuse", {})
    taken = msgspec.json.decode(msgspec.json.encode(job), type=NewJobBody)
    assert (taken.priority, taken.delay_seconds, taken.unique_until, taken.on_existing) == (
        -3,
        1.5,
        "started",
        "refuse",
    )


def test_a_name_cannot_lead_elsewhere() -> None:
    assert requests.read_queue("tenant:a").path == "/v1/queues/tenant:a"
    assert requests.read_queue("../x?y#z/").path == "/v1/queues/..%2Fx%3Fy%23z%2F"


def test_a_dequeue_is_of_one_queue_or_of_several() -> None:
    one = dequeue("images", count=3, wait_seconds=20.0, consumer="w1")
    assert (one.path, body(one)) == ("/v1/queues/images/dequeue", {"count": 3, "wait_seconds": 20.0, "consumer": "w1"})
    assert (one.repeatable, one.wait_seconds, KEY in one.headers) == (True, 20, True)
    several = dequeue(["a", "b"], order="fair")
    assert (several.path, body(several)) == ("/v1/dequeue", {"wait_seconds": 0, "queues": ["a", "b"], "order": "fair"})
    assert body(dequeue("tenant:*"))["queues"] == "tenant:*"


def test_what_shows_a_token_may_be_repeated_and_needs_a_key_only_with_a_dequeue() -> None:
    plain = requests.settle("conclude", ConcludeClaim.of(HELD, result=[1]))
    assert (plain.path, plain.repeatable, plain.headers) == ("/v1/queues/images/jobs/7/conclude", True, {})
    assert body(plain) == {"queue": "images", "id": 7, "token": "secret", "result": [1]}
    ridden = requests.settle("release", ReleaseClaim.of(HELD), Dequeue(2, 5.0, queues="a:*"))
    assert body(ridden)["dequeue"] == {"count": 2, "wait_seconds": 5.0, "queues": "a:*"}
    assert (ridden.repeatable, ridden.wait_seconds, KEY in ridden.headers) == (True, 5, True)
    many = requests.settle_many("fail", [FailClaim.of(HELD)], Dequeue())
    assert (many.path, body(many)["dequeue"], KEY in many.headers) == ("/v1/queues/images/fail", {}, True)
    other = ExtendClaim(queue="mail", id=1, token="t")  # noqa: S106 - none
    assert requests.extend_many([ExtendClaim.of(HELD), other]).path == "/v1/extend"
    assert requests.extend_many([other]).path == "/v1/queues/mail/extend"
    assert requests.settle_many("conclude", []).path == "/v1/conclude"


def test_a_failure_is_told_by_an_exception_within_the_servers_bounds() -> None:
    claim = claim_of_failure(HELD, ValueError("x" * 20_000), retry=True, retry_after_seconds=None)
    assert claim.error == JobError("ValueError", "x" * ERROR_MESSAGE_CHARACTERS_MAX)
    assert ERROR_MESSAGE_CHARACTERS_MAX == SERVERS
    assert claim_of_failure(HELD, None, retry=False, retry_after_seconds=1).error is None


def test_a_search_is_a_query() -> None:
    zone = timezone(timedelta(hours=2))
    request = requests.search(
        "images", state=["dead", "cancelled"], since=datetime(2027, 1, 15, tzinfo=zone), content=True, cursor=None
    )
    assert request.path == (
        "/v1/queues/images/jobs?state=dead%2Ccancelled&since=2027-01-15T00%3A00%3A00%2B02%3A00&include=content"
    )
    assert requests.search("images", content=False, state="dead").path == "/v1/queues/images/jobs?state=dead"
    assert requests.search("images").path == "/v1/queues/images/jobs"
    assert requests.read_job("images", 7, 0.00001).path == "/v1/queues/images/jobs/7?wait_seconds=0.000"
    assert requests.read_job("images", 7).path == "/v1/queues/images/jobs/7"
    assert requests.list_queues("a", 5, None).path == "/v1/queues?prefix=a&limit=5"


def test_verbs_of_operators_are_not_repeated_unless_they_say_how_something_shall_be() -> None:
    safe: list[Request[Any]] = [requests.put_queue("q", None, {}), requests.operate("cancel", "q", 1)]
    unsafe: list[Request[Any]] = [
        requests.delete_queue("q"),
        requests.pause("q", paused=True),
        requests.pause("q", paused=False),
        requests.operate("redrive", "q", 1),
        requests.operate("run", "q", 1),
        requests.operate("release", "q", 1),
        requests.forget("q", 1),
        requests.matching("purge", "q", {}, state="dead"),
        requests.enqueue_lines("q", [b"{}"]),
    ]
    assert all(request.repeatable for request in safe)
    assert not any(request.repeatable for request in unsafe)


def test_a_policy_says_none_where_it_means_none() -> None:
    assert body(requests.put_queue("q", None, {"max_attempts": None})) == {"max_attempts": None}
    assert body(requests.put_queue("q", False, {})) == {"paused": False}
    assert body(requests.matching("purge", "q", {"type": None, "consumer": "w"}, state=["dead"], dry_run=False)) == {
        "consumer": "w",
        "state": ["dead"],
        "dry_run": False,
    }


def test_lines_are_a_body() -> None:
    request = requests.enqueue_lines("q", [b"{}", b"", b"1"])
    assert request.body == b"{}\n\n1\n"
    assert request.headers == {"Content-Type": "application/x-ndjson"}
    request.reader(b"")  # what is read while it comes leaves nothing


def test_what_is_no_json_is_not_put_among_others() -> None:
    for raw in (b'1},{"type":"x"', b"", b"[", b"\xff"):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            requests.encoded(NewJob("t", msgspec.Raw(raw)))
    with pytest.raises(TypeError):
        requests.encoded(NewJob("t", object()))


# --- how it is read


def answer(value: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, named, value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_job_is_read_whole_and_what_is_not_known_is_passed_over() -> None:
    (job,) = read(dequeue("images"), answer({"jobs": [JOB]}))
    assert (job.payload, job.result, job.progress, job.token, job.history) == ({"w": 1}, None, None, "secret", ())
    assert job.payload is job.payload  # decoded once
    assert job.payload_bytes == b'{"w": 1}'
    assert job.payload_as(dict[str, int]) == {"w": 1}
    assert job.result_as(type(None)) is None
    assert job.result_bytes == b"null"
    assert job.created_at == datetime(2027, 1, 15, 8, 0, 0, 123000, tzinfo=UTC)
    with pytest.raises(msgspec.ValidationError):
        job.payload_as(list[int])


def test_a_single_enqueue_knows_of_no_list() -> None:
    request = requests.enqueue_one("images", b'{"type":"t"}')
    answered = answer({"jobs": [{"id": 1, "state": "queued"}], "errors": 0})
    assert read(request, answered) == Enqueued(1, JobState.QUEUED)
    error = {"code": "unique_key_taken", "detail": "job 1 has it", "field": "unique_key"}
    with pytest.raises(UniqueKeyTaken) as taken:
        read(request, answer({"jobs": [{"error": error}], "errors": 1}))
    assert (taken.value.detail, taken.value.field, taken.value.status) == ("job 1 has it", "unique_key", 409)
    with pytest.raises(Invalid) as invalid:
        read(request, answer({"code": "invalid", "detail": "wrong", "field": "jobs[0].type"}, 400))
    assert invalid.value.field == "type"
    with pytest.raises(NotUnderstood):
        read(request, answer({"jobs": [], "errors": 0}))


def test_a_dequeue_that_was_refused_after_the_verb_was_done_is_told_beside_it() -> None:
    error = {"code": "draining", "detail": "the server ends"}
    told = {"id": 7, "queue": "images", "state": "concluded", "dequeued": {"jobs": [], "error": error}}
    settled = read(requests.settle("conclude", ConcludeClaim.of(HELD), Dequeue()), answer(told))
    assert settled.dequeued is not None
    assert settled.dequeued.jobs == ()
    assert settled.dequeued.refused is not None
    assert settled.dequeued.refused.code == "draining"


def test_a_problem_is_raised_with_all_that_it_tells() -> None:
    told = {"code": "lease_lost", "detail": "too late", "field": "token", "retryable": "drop", "status": 409}
    with pytest.raises(LeaseLost) as lost:
        read(requests.read_queue("q"), answer(told, 409, retry_after="3", x_request_id="r-1"))
    assert (lost.value.status, lost.value.retry_after_seconds, lost.value.request_id) == (409, 3.0, "r-1")
    with pytest.raises(Refused) as page:
        read(requests.read_queue("q"), answer(b"<html>", 404, retry_after="Fri, 15 Jan 2027 08:00:00 GMT"))
    assert (page.value.code, page.value.retryable, page.value.retry_after_seconds) == ("", "never", None)
    with pytest.raises(OutcomeUnknown):
        read(requests.read_queue("q"), answer(b"Bad Gateway", 502))


def test_an_answer_of_something_else_is_not_understood() -> None:
    for wrong in (answer(b"<html>"), answer({"name": 1}), answer(b"", 204), answer(b"", 302)):
        with pytest.raises(NotUnderstood, match="GET /v1/queues/q"):
            read(requests.read_queue("q"), wrong)
    with pytest.raises(NotUnderstood):
        read(requests.text("/metrics"), answer(b"\xff"))


def test_a_chunk_counts_lines_from_the_beginning_of_the_stream() -> None:
    line = b'{"lines":5,"count":3,"first_id":9,"existing":1,"errors":[{"code":"invalid","detail":"d","line":2}]}'
    chunk, refused = exchange.chunk(line, 100)
    assert (chunk.lines, chunk.count, chunk.first_id, chunk.existing, refused) == (105, 3, 9, 1, None)
    assert [(error.line, error.code, error.field) for error in chunk.errors] == [(102, "invalid", None)]
    _, refused = exchange.chunk(b'{"lines":5,"count":0,"error":{"code":"draining","detail":"d"}}', 0)
    assert refused is not None
    assert refused.code == "draining"
