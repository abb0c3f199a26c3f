"""The short way of many jobs gives what the long one gives: web/batches.py against web/bodies.py and web/views.py."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_actor.commands import Claim, ConcludeClaim, Dequeued, EnqueuedJob, Lease
from queue_actor.errors import LeaseLost, QueueError, QueueFull, UniqueKeyTaken
from queue_actor.jobs import NO_OPTIONS, Job, JobOptions, JobState
from queue_actor.settings import KIB, Settings
from web import batches
from web.bodies import ConcludeBody, DequeueNextBody, EnqueueBody
from web.jobs import MANY, Holders
from web.problems import Problem
from web.schemas import decode
from web.views import dequeued_view, enqueued_view, leases_view, results_view

SETTINGS = Settings(payload_bytes_max=KIB, batch_jobs_max=5)
ENQUEUE = msgspec.json.Decoder(EnqueueBody)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
plain = st.fixed_dictionaries(
    {"type": texts | st.just("a")},
    optional={"payload": st.none() | texts | st.integers() | st.lists(texts, max_size=2), "priority": st.integers()},
)
"""Jobs that may be plain ones, or wrong: every text there is, and priorities out of bounds."""
rare = st.fixed_dictionaries(
    {"type": st.just("a")},
    optional={
        "delay_seconds": st.integers(-1, 9),
        "unique_key": texts,
        "meta": st.dictionaries(texts, texts, max_size=1),
        "wrong": st.none(),
    },
)


def outcome(way: Any) -> Any:
    """What a way gives, or what it says is wrong."""
    try:
        return way()
    except Problem as problem:
        return problem.body


@given(st.lists(plain | rare, max_size=6), st.booleans())
def test_a_body_of_jobs_becomes_the_same_jobs_or_the_same_problem(jobs: list[Any], ascii_only: bool) -> None:
    data = json.dumps({"jobs": jobs}, ensure_ascii=ascii_only).encode()
    expected = outcome(lambda: decode(ENQUEUE, data).new_jobs(SETTINGS))
    assert outcome(lambda: batches.new_jobs(data, SETTINGS)) == expected


HOLDERS = Holders(None, SETTINGS)  # type: ignore[arg-type] # of which only the settings are needed
claims = st.fixed_dictionaries(
    {"id": st.integers(0, 3) | st.just(2**60), "token": texts | st.just("t")},
    optional={"result": st.none() | texts, "queue": st.sampled_from(["images", "other"])},
)


@given(st.lists(claims, max_size=6), st.none() | st.fixed_dictionaries({"count": st.integers(0, 2)}))
def test_claims_to_conclude_are_the_same_or_left_to_the_long_way(jobs: list[Any], ride: Any) -> None:
    data = json.dumps({"jobs": jobs, "dequeue": ride}).encode()
    short = batches.plain_claims(data, "images", SETTINGS)
    if short is None:
        return
    body: Any = decode(MANY["conclude"], data)
    assert (short[0].dequeue, short[1]) == (body.dequeue, HOLDERS.claims(body.jobs, "images"))


def test_what_is_plain_is_not_left_to_the_long_way() -> None:
    """Or all of these tests would pass without it."""
    jobs = b'{"jobs":[{"type":"resize","payload":{"w":1280}},{"type":"\xc3\xa4\xf0\x9f\x98\x80","priority":7}]}'
    done = b'{"jobs":[{"id":1,"token":"t"},{"id":2,"token":"t","result":1}],"dequeue":{"count":2}}'
    assert batches.plain_jobs(jobs, SETTINGS) == decode(ENQUEUE, jobs).new_jobs(SETTINGS)
    short = batches.plain_claims(done, "images", SETTINGS)
    assert short is not None
    assert short[1] == [ConcludeClaim("images", 1, "t"), ConcludeClaim("images", 2, "t", None, b"1")]
    assert short[0].dequeue == DequeueNextBody(count=2)


@pytest.mark.parametrize(
    "data",
    [
        b'{"jobs":[{"type":"a\\u0000"}]}',
        b'{"jobs":[{"type":"a\x7f"}]}',
        b'{"jobs":[{"type":"a\xc2\x9f"}]}',
        b'{"jobs":[{"type":"a","payload":"\xff"}]}',
        b'{"jobs":[{"type":"a","payload":"\\ud800"}]}',
        b'{"jobs":[{"type":"a","payload":' + b"[" * 9_999,
        b'{"jobs":[{"type":"a","payload":' + b"[" * 9_999 + b"]" * 9_999 + b"}]}",
        b'{"jobs":[{"type":"a","payload":"' + b"x" * KIB + b'"}]}',
        b'{"jobs":[{"type":"a","delay_second":1}]}',
        b'{"jobs":[' + b",".join([b'{"type":"a"}'] * 6) + b"]}",
        b'{"jobs":[]}',
        b"[",
    ],
    ids=range(12),
)
def test_what_is_wrong_is_told_as_ever(data: bytes) -> None:
    assert batches.plain_jobs(data, SETTINGS) is None
    expected = outcome(lambda: decode(ENQUEUE, data).new_jobs(SETTINGS))
    assert outcome(lambda: batches.new_jobs(data, SETTINGS)) == expected


@pytest.mark.parametrize(
    "data",
    [
        b'{"jobs":[{"id":1,"token":"t","result":"\xff"}]}',
        b'{"jobs":[{"id":1,"token":"t","result":"' + b"x" * KIB + b'"}]}',
        b'{"jobs":[' + b",".join([b'{"id":1,"token":"t"}'] * 6) + b"]}",
        b'{"jobs":[{"id":1}]}',
        b'{"jobs":[{"id":1,"token":"t","queue":"images"}]}',
    ],
    ids=range(5),
)
def test_other_claims_are_left_to_the_long_way(data: bytes) -> None:
    assert batches.plain_claims(data, "images", SETTINGS) is None


times = st.none() | st.floats(1e9, 2e9)
jobs = st.builds(
    Job,
    queue=st.sampled_from(["images", "a.b:c"]),
    id=st.integers(1, 2**53 - 1),
    type=texts,
    payload=st.sampled_from([None, b"null", b'{"id":1,"token":""}', b'"payload":,', '"\u2028\U0001f600"'.encode()]),
    state=st.sampled_from(JobState),
    created_at=st.floats(1e9, 2e9),
    revision=st.just(1),
    priority=st.integers(-100, 100),
    not_before=times,
    expires_at=times,
    options=st.just(NO_OPTIONS)
    | st.builds(JobOptions, meta=st.just({"token": "", "payload": "x"}), unique_key=st.none() | texts),
    attempts=st.integers(0, 3),
    fails=st.integers(0, 3),
    stales=st.integers(0, 3),
    consumer=st.none() | texts | st.just('"id":1,"token":"","fence":1,'),
    fence=st.integers(1, 2**53 - 1),
    lease_seconds=st.floats(0.1, 1e6),
    lease_expires_at=st.floats(1e9, 2e9),
    cancel_requested=st.booleans(),
    progress=st.sampled_from([None, b'{"token":"","fence":1}']),
    result=st.sampled_from([None, b"1"]),
)


@given(st.lists(st.builds(Lease, jobs, st.text("0123456789abcdef", max_size=4)), max_size=4), st.integers(1, 3))
def test_leases_are_told_as_their_views_are(given_: list[Lease], times_: int) -> None:
    running = [Lease(msgspec.structs.replace(each.job, state=JobState.IN_PROGRESS), each.token) for each in given_]
    assert batches.leases(running * times_) == msgspec.json.encode(leases_view(running * times_))


@given(st.lists(st.builds(EnqueuedJob, st.integers(1), st.sampled_from(JobState), st.booleans()) | st.none()))
def test_an_enqueue_is_answered_as_its_view_is(done: list[EnqueuedJob | None]) -> None:
    kept = [UniqueKeyTaken("taken", field="unique_key") if each is None else each for each in done]
    assert batches.enqueued(kept) == msgspec.json.encode(enqueued_view(kept))


RIDES: list[Dequeued | QueueError | None] = [None, Dequeued(()), QueueFull("full")]


@given(st.lists(jobs | st.none(), max_size=4), st.booleans(), st.sampled_from(RIDES), jobs)
def test_results_are_told_as_their_views_are(
    done: list[Job | None], extended: bool, ride: Dequeued | QueueError | None, leased: Job
) -> None:
    if isinstance(ride, Dequeued):
        ride = Dequeued([Lease(msgspec.structs.replace(leased, state=JobState.IN_PROGRESS), "t")])
    kept = [LeaseLost("lost", field="token") if each is None else each for each in done]
    asked = [Claim("images", 1) for _ in kept]
    view = results_view(asked, kept, extended=extended)
    expected = msgspec.json.encode(msgspec.structs.replace(view, dequeued=dequeued_view(ride)))
    assert batches.results(asked, kept, extended=extended, dequeued=ride) == (expected, done.count(None))


def test_a_body_to_conclude_takes_what_a_claim_takes() -> None:
    """A field that a claim gains is to be thought of here, too."""
    assert set(batches.PlainClaim.__struct_fields__) == set(ConcludeBody.__struct_fields__) - {"queue"}
