"""`/v1` route by route, as web/README.md promises it: over the whole stack, on both engines.

What every answer has to have, problem documents included, is checked in stack.py whenever an answer is read.
"""

import json
from datetime import datetime
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import Settings
from tests.contract.conftest import Serve
from tests.contract.stack import Answer, Server, build
from tests.contract.v1 import Asked, Q, ask, dequeue, enqueue, get, held, lease, post, refused, state
from tests.fakes import EPOCH_SECONDS

pytestmark = pytest.mark.virtual_time

one_engine = pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
"""For what no engine has a part in."""


# --- paths, methods and bodies


@one_engine
@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", f"{Q}/enqueue", "POST"),
        ("PUT", f"{Q}/enqueue", "POST"),
        ("GET", f"{Q}/dequeue", "POST"),
        ("GET", "/v1/dequeue", "POST"),
        ("PUT", "/v1/conclude", "POST"),
        ("GET", f"{Q}/jobs/1/conclude", "POST"),
        ("PATCH", f"{Q}/jobs/1", "DELETE, GET, HEAD"),
        ("POST", f"{Q}/jobs", "GET, HEAD"),
        ("POST", Q, "DELETE, GET, HEAD, PUT"),
        ("POST", "/v1/queues", "GET, HEAD"),
        ("OPTIONS", "/v1/queues", "GET, HEAD"),
    ],
)
async def test_a_path_with_another_method_is_405_and_names_its_own(
    server: Server, method: str, target: str, allow: str
) -> None:
    answer = await ask(server, method, target, {})
    assert answer.problem == (405, "method_not_allowed", None)
    assert answer.headers["allow"] == allow


@one_engine
@pytest.mark.parametrize(
    "target",
    [
        "/v1",
        "/v1/",
        "/v1/jobs",
        "/v1/queues/",
        "/v1/queues//enqueue",
        f"{Q}/",
        f"{Q}/jobs/",
        f"{Q}/jobs/1/",
        f"{Q}/jobs/1/explode",
        f"{Q}/explode",
        "/v1/pause",
        "/V1/queues",
        "/v2/queues",
    ],
)
async def test_a_path_that_is_none_is_404(server: Server, target: str) -> None:
    for method in ("GET", "POST"):
        assert await refused(server, method, target) == (404, "not_found", None)


@one_engine
async def test_head_answers_as_get_without_a_body(server: Server) -> None:
    await enqueue(server)
    for target in ("/v1/queues", Q, f"{Q}/jobs", f"{Q}/jobs/1"):
        assert (await server.ask("HEAD", target)).status == 200
    assert (await server.ask("HEAD", f"{Q}/jobs/7")).status == 404


@one_engine
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "ä"])
async def test_the_content_type_of_a_body_does_not_matter(server: Server, content_type: str) -> None:
    body = {"jobs": [{"type": "a"}]}
    assert (await post(server, f"{Q}/enqueue", body, Content_Type=content_type))["jobs"][0]["id"] == 1
    assert len((await post(server, f"{Q}/dequeue", {}, Content_Type=content_type))["jobs"]) == 1


async def test_where_all_fields_may_be_left_out_so_may_the_body(server: Server) -> None:
    first, second = await enqueue(server, {"type": "a"}, {"type": "a"})
    assert [job["id"] for job in (await post(server, f"{Q}/dequeue"))["jobs"]] == [first]
    assert (await post(server, f"{Q}/jobs/{first}/release"))["state"] == "queued"
    assert (await post(server, f"{Q}/jobs/{second}/cancel"))["state"] == "cancelled"
    assert (await post(server, f"{Q}/redrive"))["count"] == 1
    assert (await ask(server, "PUT", Q)).status == 200


@one_engine
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", (400, "malformed", "body")),
        (b'{"jobs":[{"type":"a"}]}}', (400, "malformed", "body")),
        (b'{"jobs":[{"type":"\xff"}]}', (400, "malformed", "body")),
        (b'{"jobs":[{"type":"a","payload":"\xff"}]}', (400, "malformed", "body")),
        (b'{"jobs":[{"type":"a","payload":"\\ud800"}]}', (400, "malformed", "body")),
        (b'{"jobs":[{"type":"a","payload":' + b"[" * 20_000 + b"]" * 20_000 + b"}]}", (400, "malformed", "body")),
        (b"\xef\xbb\xbf{}", (400, "malformed", "body")),
        (b"null", (400, "invalid", "body")),
        (b'"a"', (400, "invalid", "body")),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes, problem: object) -> None:
    assert await refused(server, "POST", f"{Q}/enqueue", body) == problem


@one_engine
async def test_of_a_key_that_is_given_twice_the_last_counts(server: Server) -> None:
    await post(server, f"{Q}/enqueue", b'{"jobs":[{"type":"a","type":"b"}]}')
    assert (await get(server, f"{Q}/jobs/1"))["type"] == "b"


@one_engine
@pytest.mark.parametrize("queue", ["a", "A.b_c:d-9", "0", "a" * 80, "enqueue", "jobs", "None"])
async def test_a_queue_may_have_any_name_that_is_one(server: Server, queue: str) -> None:
    await enqueue(server, queue=queue)
    ((job), *_) = await dequeue(server, queue)
    assert (job["queue"], (await get(server, f"/v1/queues/{queue}/jobs/1"))["queue"]) == (queue, queue)
    assert [found["name"] for found in (await get(server, "/v1/queues"))["queues"]] == [queue]


@one_engine
@pytest.mark.parametrize(
    ("target", "body", "field"),
    [
        (f"{Q}/enqueue", {"job": []}, "job"),
        (f"{Q}/enqueue", {"jobs": [{"type": "a"}, {"type": "a", "delay_second": 1}]}, "jobs[1].delay_second"),
        (f"{Q}/enqueue", {"jobs": [{"type": "a", "retry": {"kid": 1}}]}, "jobs[0].retry.kid"),
        (f"{Q}/enqueue", {"jobs": [{"type": "a", "meta": {"": "a"}}]}, "jobs[0].meta"),
        (f"{Q}/enqueue", {"jobs": [{"payload": 1}]}, "jobs[0].type"),
        (f"{Q}/enqueue", {"jobs": [{"type": "a", "on_existing": "field `x` - at `$.y`"}]}, "jobs[0].on_existing"),
        (f"{Q}/enqueue", {}, "jobs"),
        (f"{Q}/enqueue", None, "jobs"),
        (f"{Q}/enqueue", [], "body"),
        (f"{Q}/dequeue", {"wait": 1}, "wait"),
        ("/v1/dequeue", {"queues": ["a"], "orders": "fair"}, "orders"),
        ("/v1/dequeue", None, "queues"),
        ("/v1/dequeue", {"queues": ["a", "-"]}, "queues[1]"),
        (f"{Q}/jobs/1/conclude", {"token": "t", "results": 1}, "results"),
        (f"{Q}/jobs/1/fail", {"token": "t", "error": {"kind": "a"}}, "error.kind"),
        (f"{Q}/jobs/1/conclude", {"token": "t", "dequeue": {"wait": 1}}, "dequeue.wait"),
        (f"{Q}/conclude", {"jobs": [{"id": 1, "token": "t"}, {"id": 2, "tokens": "t"}]}, "jobs[1].tokens"),
        (f"{Q}/conclude", {"jobs": [{"id": 1, "token": "t"}], "wait_seconds": 1}, "wait_seconds"),
        (f"{Q}/conclude", None, "jobs"),
        (f"{Q}/purge", {"states": "dead"}, "states"),
        (f"{Q}/purge", None, "state"),
    ],
)
async def test_an_unknown_or_missing_key_is_named_with_its_whole_path(
    server: Server, target: str, body: object, field: str | None
) -> None:
    assert await refused(server, "POST", target, body) == (400, "invalid", field)


@one_engine
async def test_what_a_refusal_repeats_of_the_request_is_bounded(server: Server) -> None:
    for body in ({"jobs": [], "x" * 100_000: 1}, {"jobs": [{"type": "a", "on_existing": "x" * 100_000}]}):
        answer = await ask(server, "POST", f"{Q}/enqueue", body)
        assert answer.status == 400
        assert len(answer.body) < 1_000


# --- enqueue


async def test_an_enqueue_answers_job_by_job_and_says_how_durable_they_are(server: Server) -> None:
    answer = await ask(server, "POST", f"{Q}/enqueue", {"jobs": [{"type": "a"}, {"type": "b", "delay_seconds": 1}]})
    assert answer.json == {"jobs": [{"id": 1, "state": "queued"}, {"id": 2, "state": "scheduled"}], "errors": 0}
    assert answer.headers["queue-durability"] == server.engine.durability
    assert "queue-instance" in answer.headers


async def test_a_job_is_shown_with_all_that_it_was_enqueued_with(server: Server) -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    (id_,) = await enqueue(
        server,
        {
            "type": "ä😀",
            "payload": {"b": 1, "a": [1, 2]},
            "priority": -7,
            "not_before": "2027-01-15T10:00:00.5+01:00",
            "ttl_seconds": 7200,
            "max_attempts": 3,
            "retry": {"kind": "fixed"},
            "lease_seconds": 60,
            "unique_key": "k",
            "meta": {"tenant": "b"},
            "traceparent": traceparent,
        },
    )
    assert await get(server, f"{Q}/jobs/{id_}") == {
        "queue": "q",
        "id": 1,
        "type": "ä😀",
        "state": "scheduled",
        "priority": -7,
        "payload": {"b": 1, "a": [1, 2]},
        "meta": {"tenant": "b"},
        "traceparent": traceparent,
        "unique_key": "k",
        "created_at": "2027-01-15T08:00:00.000Z",
        "not_before": "2027-01-15T09:00:00.500Z",
        "expires_at": "2027-01-15T10:00:00.000Z",
        "attempts": 0,
        "fails": 0,
        "stales": 0,
        "max_attempts": 3,
        "consumer": None,
        "lease": None,
        "cancel_requested": False,
        "progress": None,
        "result": None,
        "reason": None,
        "finished_at": None,
        "history": [],
    }


@pytest.mark.parametrize(
    "payload", ['{ "b" : 1,\r\n\t"a":[ 1 ,2 ] }', "1E400", "-0.0e-00", '"\\u0041\\/"', "null", '""']
)
async def test_payload_progress_and_result_come_back_byte_for_byte(server: Server, payload: str) -> None:
    text = payload.encode()
    await post(server, f"{Q}/enqueue", b'{"jobs":[{"payload": ' + text + b' ,"type":"a"}]}')
    leased = await ask(server, "POST", f"{Q}/dequeue", {})
    assert b'"payload":' + text + b"," in leased.body
    token = json.dumps(leased.json["jobs"][0]["lease"]["token"]).encode()
    await post(server, f"{Q}/jobs/1/extend", b'{"token":' + token + b',"progress": ' + text + b"}")
    await post(server, f"{Q}/jobs/1/conclude", b'{"token":' + token + b',"result": ' + text + b"}")
    read = await ask(server, "GET", f"{Q}/jobs/1")
    for name in (b"payload", b"progress", b"result"):
        assert b'"' + name + b'":' + text + b"," in read.body
    listed = await ask(server, "GET", f"{Q}/jobs?include=content")
    for name in (b"payload", b"progress", b"result"):
        assert b'"' + name + b'":' + text + b"," in listed.body


async def test_an_enqueue_with_one_wrong_job_adds_none(server: Server) -> None:
    jobs = [{"type": "a"}, {"type": "a", "priority": 101}, {"type": "a"}]
    assert await refused(server, "POST", f"{Q}/enqueue", {"jobs": jobs}) == (400, "invalid", "jobs[1].priority")
    too_large = [{"type": "a"}, {"type": "a", "payload": "a" * 262_143}]
    assert await refused(server, "POST", f"{Q}/enqueue", {"jobs": too_large}) == (413, "too_large", "jobs[1].payload")
    both = [{"type": "a", "delay_seconds": 1, "not_before": "2027-01-15T08:00:00Z"}]
    assert await refused(server, "POST", f"{Q}/enqueue", {"jobs": both}) == (400, "invalid", "jobs[0].not_before")
    assert not (await get(server, Q))["exists"]


async def test_a_batch_has_up_to_1000_jobs(server: Server) -> None:
    many = await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a"}] * 1_000})
    assert [job["id"] for job in many["jobs"]] == [*range(1, 1_001)]
    more = {"jobs": [{"type": "a"}] * 1_001}
    assert await refused(server, "POST", f"{Q}/enqueue", more) == (400, "invalid", "jobs")
    assert await refused(server, "POST", f"{Q}/dequeue", {"count": 1_001}) == (400, "invalid", "count")
    leased = await dequeue(server, count=1_000)
    assert [job["id"] for job in leased] == [*range(1, 1_001)]
    held = [{"queue": "q", "id": job["id"], "token": job["lease"]["token"]} for job in leased]
    for target in (f"{Q}/extend", "/v1/extend", f"{Q}/conclude"):
        answer = await post(server, target, {"jobs": held})
        assert (len(answer["jobs"]), answer["errors"]) == (1_000, 0)
    for verb in ("conclude", "fail", "extend", "release"):
        for target in (f"{Q}/{verb}", f"/v1/{verb}"):
            assert await refused(server, "POST", target, {"jobs": [*held, held[0]]}) == (400, "invalid", "jobs")
    assert (await get(server, Q))["counts"]["concluded"] == 1_000


async def test_capacity_holds_for_all_jobs_of_an_enqueue_or_none(serve: Serve) -> None:
    async with serve(queued_jobs_max=2, queues_max=1, memory_bytes_max=1_024) as server:
        await enqueue(server)
        two = {"jobs": [{"type": "a"}, {"type": "a"}]}
        assert await refused(server, "POST", f"{Q}/enqueue", two) == (429, "queue_full", None)
        large = {"jobs": [{"type": "a", "payload": "a" * 1_024}]}
        assert await refused(server, "POST", f"{Q}/enqueue", large) == (429, "memory_full", None)
        other = {"jobs": [{"type": "a"}]}
        assert await refused(server, "POST", "/v1/queues/b/enqueue", other) == (429, "too_many_queues", "queue")
        assert await refused(server, "PUT", "/v1/queues/b", {}) == (429, "too_many_queues", "queue")
        assert [queue["last_id"] for queue in (await get(server, "/v1/queues"))["queues"]] == [1]


async def test_a_queue_may_have_a_limit_of_its_own(server: Server) -> None:
    await ask(server, "PUT", Q, {"queued_jobs_max": 1})
    await enqueue(server)
    assert await refused(server, "POST", f"{Q}/enqueue", {"jobs": [{"type": "a"}]}) == (429, "queue_full", None)
    await dequeue(server)
    await enqueue(server)


async def test_queues_may_have_to_be_declared(serve: Serve) -> None:
    async with serve(queues="declared") as server:
        body = {"jobs": [{"type": "a"}]}
        assert await refused(server, "POST", f"{Q}/enqueue", body) == (404, "unknown_queue", "queue")
        assert (await ask(server, "PUT", Q, {})).json["declared"]
        await enqueue(server)
        await enqueue(server, queue="default")


async def test_a_job_cannot_be_planned_beyond_the_longest_delay(server: Server) -> None:
    for moment in ("2037-01-22T08:00:01Z", "9999-12-31T23:59:59.999999-12:00"):
        body = {"jobs": [{"type": "a"}, {"type": "a", "not_before": moment}]}
        assert await refused(server, "POST", f"{Q}/enqueue", body) == (400, "invalid", "jobs[1].not_before")
    assert not (await get(server, Q))["exists"]
    for moment in ("2037-01-22T08:00:00Z", "0001-01-01T00:00:00+14:00"):
        (id_,) = await enqueue(server, {"type": "a", "not_before": moment})
        assert (await ask(server, "GET", f"{Q}/jobs/{id_}")).status == 200


# --- unique keys


async def test_a_unique_key_has_one_job_at_a_time(server: Server) -> None:
    await enqueue(server, {"type": "a", "payload": 1, "unique_key": "k"})
    answer = await post(
        server,
        f"{Q}/enqueue",
        {
            "jobs": [
                {"type": "b"},
                {"type": "b", "unique_key": "k"},
                {"type": "b", "unique_key": "k", "on_existing": "refuse"},
                {"type": "b", "payload": 2, "priority": 3, "unique_key": "k", "on_existing": "replace"},
                {"type": "b", "unique_key": "l"},
                {"type": "b", "unique_key": "l"},
            ]
        },
    )
    error = {"code": "unique_key_taken", "detail": "job 1 has this unique key", "field": "unique_key"}
    assert answer == {
        "jobs": [
            {"id": 2, "state": "queued"},
            {"id": 1, "state": "queued", "existing": True},
            {"error": error},
            {"id": 1, "state": "queued", "existing": True},
            {"id": 3, "state": "queued"},
            {"id": 3, "state": "queued", "existing": True},
        ],
        "errors": 1,
    }
    job = await get(server, f"{Q}/jobs/1")
    assert (job["type"], job["payload"], job["priority"]) == ("b", 2, 3)


@pytest.mark.parametrize(
    ("until", "freed"), [("finished", {"conclude", "cancel", "purge"}), ("started", {"dequeue", "cancel", "purge"})]
)
async def test_a_unique_key_is_free_again_when_it_is_said_to_be(server: Server, until: str, freed: set[str]) -> None:
    keyed = {"type": "a", "unique_key": "k", "unique_until": until}

    async def is_free() -> bool:
        (answer,) = (await post(server, f"{Q}/enqueue", {"jobs": [{**keyed, "on_existing": "refuse"}]}))["jobs"]
        return "id" in answer

    (id_,) = await enqueue(server, keyed)
    assert not await is_free()
    await post(server, f"{Q}/jobs/{id_}/cancel")
    assert ("cancel" in freed) == await is_free()
    await post(server, f"{Q}/purge", {"state": "queued"})
    assert ("purge" in freed) == await is_free()
    id_, token = await lease(server)
    assert ("dequeue" in freed) == await is_free()
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    assert ("conclude" in freed) == await is_free()


# --- dequeue


async def test_a_dequeue_tells_all_of_a_job_and_its_lease(server: Server) -> None:
    await enqueue(server, {"type": "a", "payload": [1]})
    answer = await ask(server, "POST", f"{Q}/dequeue", {"lease_seconds": 60, "consumer": "w"})
    (job,) = answer.json["jobs"]
    assert answer.headers["cache-control"] == "no-store"
    assert (job["state"], job["attempts"], job["consumer"], job["payload"]) == ("in_progress", 1, "w", [1])
    assert "history" not in job
    lease = job["lease"]
    assert (lease["seconds"], lease["expires_at"]) == (60, "2027-01-15T08:01:00.000Z")
    assert 1_800_000_000_000_000 <= lease["fence"] < 2**53
    read = await get(server, f"{Q}/jobs/1")
    assert read["lease"] == {name: lease[name] for name in ("fence", "seconds", "expires_at")}


async def test_nothing_but_a_dequeue_tells_a_token(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    asked = [
        await ask(server, "GET", "/v1/queues"),
        await ask(server, "GET", Q),
        await ask(server, "GET", f"{Q}/jobs?include=content"),
        await ask(server, "GET", f"{Q}/jobs/{id_}"),
        await ask(server, "POST", f"{Q}/jobs/{id_}/extend", {"token": token}),
        await ask(server, "POST", f"{Q}/jobs/{id_}/conclude", {"token": token}),
    ]
    assert all(answer.status == 200 and token not in answer.body.decode() for answer in asked)
    assert token not in json.dumps(server.log)


async def test_an_unknown_queue_is_empty_and_is_not_made_by_asking(server: Server) -> None:
    assert await dequeue(server) == []
    assert await post(server, "/v1/dequeue", {"queues": ["q", "r"]}) == {"jobs": []}
    assert await post(server, "/v1/dequeue", {"queues": "q*"}) == {"jobs": []}
    assert await get(server, f"{Q}/jobs") == {"jobs": [], "next_cursor": None}
    assert await refused(server, "GET", f"{Q}/jobs/1") == (404, "unknown_job", "id")
    read = await get(server, Q)
    assert (read["exists"], read["last_id"], set(read["counts"].values())) == (False, 0, {0})
    assert read["policy"]["max_attempts"] == 25
    assert (await get(server, "/v1/queues/default"))["policy"]["max_attempts"] is None
    assert (await get(server, "/v1/queues"))["queues"] == []


async def test_the_length_of_a_lease_is_asked_for_or_the_jobs_or_the_queues_or_the_servers(server: Server) -> None:
    await enqueue(server, {"type": "a"}, {"type": "a", "lease_seconds": 50}, {"type": "a", "lease_seconds": 50})
    (job,) = await dequeue(server)
    assert job["lease"]["seconds"] == 300
    assert [job["lease"]["seconds"] for job in await dequeue(server)] == [50]
    assert [job["lease"]["seconds"] for job in await dequeue(server, lease_seconds=40)] == [40]
    await ask(server, "PUT", Q, {"lease_seconds": 30})
    await enqueue(server)
    assert [job["lease"]["seconds"] for job in await dequeue(server)] == [30]


async def test_the_highest_priority_goes_first_and_then_who_came_first(server: Server) -> None:
    await enqueue(server, *[{"type": "a", "priority": priority} for priority in (0, -100, 5, 100, 5, 0)])
    assert [job["id"] for job in await dequeue(server, count=10)] == [4, 3, 5, 1, 6, 2]


async def test_each_nth_job_may_be_the_oldest(server: Server) -> None:
    await ask(server, "PUT", Q, {"oldest_every": 3})
    await enqueue(server, {"type": "a"}, *[{"type": "a", "priority": 1}] * 4)
    assert [job["id"] for job in await dequeue(server, count=5)] == [2, 3, 1, 4, 5]


async def test_a_queue_may_hand_out_one_job_at_a_time(server: Server) -> None:
    await ask(server, "PUT", Q, {"in_progress_max": 1})
    await enqueue(server, {"type": "a"}, {"type": "a"})
    id_, token = await lease(server, count=2)
    assert await dequeue(server) == []
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20})
        await post(server, f"{Q}/jobs/{id_}/fail", {"token": token, "retry_after_seconds": 0})
    assert (waiting.ids, waiting.seconds) == ([2], 0)


async def test_a_dequeue_of_many_stops_before_the_answer_is_too_large(serve: Serve) -> None:
    async with serve(reply_bytes_max=1_024) as server:
        await enqueue(server, *[{"type": "a", "payload": "a" * 500}] * 4, {"type": "a", "payload": "a" * 5_000})
        assert [len(await dequeue(server, count=10)) for _ in range(4)] == [2, 2, 1, 0]


# --- waiting


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (f"{Q}/dequeue", {}),
        ("/v1/dequeue", {"queues": ["p", "q"]}),
        ("/v1/dequeue", {"queues": "q*"}),
        ("/v1/dequeue", {"queues": ["p", "q"], "order": "fair"}),
    ],
)
async def test_a_dequeue_waits_for_a_job_and_not_longer(server: Server, target: str, body: dict[str, object]) -> None:
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", target, body | {"wait_seconds": 20})
        assert (await get(server, Q))["waiters"] == 1
        await trio.sleep(5)
        await enqueue(server, {"type": "a"}, {"type": "a"})
    assert (waiting.ids, waiting.seconds) == ([1], 5)
    await dequeue(server)
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", target, body | {"wait_seconds": 2.5})
    assert (waiting.ids, waiting.seconds) == ([], 2.5)
    assert (await get(server, Q))["waiters"] == 0


async def test_who_waits_longest_is_served_first_whatever_he_waits_for(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        waiting = [
            await Asked.start(nursery, server, "POST", target, {"wait_seconds": 20} | body)
            for target, body in (
                ("/v1/dequeue", {"queues": "q*"}),
                (f"{Q}/dequeue", {"count": 2}),
                ("/v1/dequeue", {"queues": ["other", "q"]}),
            )
        ]
        for _ in range(2):
            await enqueue(server)
        await enqueue(server, queue="other")
    assert [(asked.json["jobs"][0]["queue"], asked.ids) for asked in waiting] == [
        ("q", [1]),
        ("q", [2]),
        ("other", [1]),
    ]


async def test_a_job_that_becomes_ready_in_time_is_given_to_who_waits(server: Server) -> None:
    await enqueue(server, {"type": "a", "delay_seconds": 3})
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20})
    assert waiting.ids == [1]
    assert 3 <= waiting.seconds <= 4


async def test_several_queues_are_served_as_listed_or_in_turn(server: Server) -> None:
    for queue in ("t:b", "t:a", "u"):
        await enqueue(server, *[{"type": "a"}] * 4, queue=queue)

    async def served(**wanted: object) -> list[str]:
        return [job["queue"] for job in (await post(server, "/v1/dequeue", wanted))["jobs"]]

    assert await served(queues=["t:b", "t:a"], count=5) == ["t:b"] * 4 + ["t:a"]
    assert await served(queues="t:*", count=2) == ["t:a", "t:a"]
    await enqueue(server, *[{"type": "a"}] * 4, queue="t:b")
    assert await served(queues=["t:b", "t:a", "u"], order="fair", count=4) == ["u", "t:b", "t:a", "u"]


async def test_who_leaves_is_never_leased_to(server: Server) -> None:
    client = server.connect()
    await client.send(build("POST", f"{Q}/dequeue", b'{"wait_seconds":20}'))
    await wait_all_tasks_blocked()
    await client.leave()
    await wait_all_tasks_blocked()
    await enqueue(server)
    assert len(await dequeue(server)) == 1


async def test_only_so_many_may_wait(serve: Serve) -> None:
    async with serve(waiters_max=1) as server, trio.open_nursery() as nursery:
        (id_,) = await enqueue(server, queue="b")
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20})
        for method, target in (
            ("POST", f"{Q}/dequeue"),
            ("POST", "/v1/dequeue"),
            ("GET", f"/v1/queues/b/jobs/{id_}?wait_seconds=1"),
        ):
            body = {"wait_seconds": 1} | ({"queues": ["q"]} if target == "/v1/dequeue" else {})
            answer = await refused(server, method, target, None if method == "GET" else body)
            assert answer == (503, "too_many_waiters", None)
        await enqueue(server)
    assert waiting.ids == [1]


async def test_a_drain_sends_home_who_waits_and_refuses_who_comes(server: Server) -> None:
    (id_,) = await enqueue(server, {"type": "a", "delay_seconds": 60})
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20})
        reading = await Asked.start(nursery, server, "GET", f"{Q}/jobs/{id_}?wait_seconds=20")
        server.engine.drain()
    assert (waiting.ids, waiting.seconds, reading.json["state"], reading.seconds) == ([], 0, "scheduled", 0)
    assert await refused(server, "POST", f"{Q}/dequeue", {}) == (503, "draining", None)
    assert await refused(server, "POST", "/v1/dequeue", {"queues": ["q"]}) == (503, "draining", None)
    await enqueue(server)


# --- the end of an attempt


async def test_a_job_is_concluded_with_its_result_as_often_as_its_token_says_so(server: Server) -> None:
    job = await held(server)
    target = f"{Q}/jobs/{job['id']}/conclude"
    for result in (1, 2):
        answer = await post(server, target, {"token": job["token"], "result": result})
        assert answer == {"id": 1, "queue": "q", "state": "concluded"}
    read = await get(server, f"{Q}/jobs/1")
    assert (read["result"], read["lease"], read["finished_at"]) == (1, None, "2027-01-15T08:00:00.000Z")
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in read["history"]] == [(1, "concluded")]


@pytest.mark.parametrize("verb", ["conclude", "fail", "extend", "release"])
async def test_a_token_that_holds_nothing_changes_nothing(server: Server, verb: str) -> None:
    job = await held(server, payload=1)
    stranger = await held(server, queue="b")
    before = await get(server, f"{Q}/jobs/1")
    for token in (stranger["token"], "0" * 46, "x", job["token"].upper(), job["token"][:-1], "ä" * 46):
        answer = await refused(server, "POST", f"{Q}/jobs/1/{verb}", {"token": token})
        assert answer == (409, "lease_lost", "token")
    many = [{**job, "token": "x"}, {**job, "id": 7}, {**stranger, "queue": "nowhere"}]
    for target, jobs in ((f"/v1/{verb}", many), (f"{Q}/{verb}", many[:2])):
        answer = await post(server, target, {"jobs": jobs})
        codes = [result["error"]["code"] for result in answer["jobs"]]
        assert codes == ["lease_lost", "unknown_job", "unknown_job"][: len(jobs)]
        assert answer["errors"] == len(jobs)
    assert await refused(server, "POST", f"{Q}/jobs/7/{verb}", {"token": "x"}) == (404, "unknown_job", "id")
    assert await get(server, f"{Q}/jobs/1") == before


@pytest.mark.parametrize("verb", ["conclude", "fail", "extend", "release"])
async def test_one_job_needs_a_token_and_many_need_to_be_named(server: Server, verb: str) -> None:
    job = await held(server)
    if verb != "release":
        assert await refused(server, "POST", f"{Q}/jobs/1/{verb}", {}) == (400, "invalid", "token")
    for field in ("queue", "id", "token"):
        body = {"jobs": [job, {name: value for name, value in job.items() if name != field}]}
        assert await refused(server, "POST", f"/v1/{verb}", body) == (400, "invalid", f"jobs[1].{field}")
    assert await state(server, 1) == "in_progress"


async def test_many_are_answered_in_the_order_sent_each_for_itself(server: Server) -> None:
    jobs = [await held(server, queue=queue) for queue in ("q", "b", "q")]
    jobs[1]["token"] = jobs[0]["token"]
    answer = await post(server, "/v1/conclude", {"jobs": [*jobs, jobs[0]]})
    error = {"code": "lease_lost", "detail": "the token shown does not hold job 1", "field": "token"}
    assert answer == {
        "jobs": [
            {"id": 1, "queue": "q", "state": "concluded"},
            {"id": 1, "queue": "b", "error": error},
            {"id": 2, "queue": "q", "state": "concluded"},
            {"id": 1, "queue": "q", "state": "concluded"},
        ],
        "errors": 1,
    }


async def test_a_failed_job_is_tried_again_and_then_dead(server: Server) -> None:
    await enqueue(
        server, {"type": "a", "max_attempts": 2, "retry": {"kind": "fixed", "base_seconds": 10, "jitter": "none"}}
    )
    for attempt, after in ((1, "scheduled"), (2, "dead")):
        id_, token = await lease(server, wait_seconds=20, consumer=f"w{attempt}")
        body = {"token": token, "error": {"type": "Timeout", "message": f"no {attempt}"}}
        for _ in range(2):
            assert await post(server, f"{Q}/jobs/{id_}/fail", body) == {"id": 1, "queue": "q", "state": after}
    job = await get(server, f"{Q}/jobs/1")
    assert (job["attempts"], job["fails"], job["stales"], job["reason"]) == (2, 2, 0, "failed")
    assert job["not_before"] == "2027-01-15T08:00:10.000Z"
    assert [(tried["attempt"], tried["consumer"], tried["outcome"], tried["error"]) for tried in job["history"]] == [
        (1, "w1", "failed", {"type": "Timeout", "message": "no 1"}),
        (2, "w2", "failed", {"type": "Timeout", "message": "no 2"}),
    ]


@pytest.mark.parametrize(
    ("body", "after", "reason"),
    [
        ({}, "scheduled", None),
        ({"retry_after_seconds": 5}, "scheduled", None),
        ({"retry_after_seconds": 0}, "queued", None),
        ({"retry": False}, "dead", "killed"),
    ],
)
async def test_a_worker_may_say_when_and_whether_to_retry(
    server: Server, body: dict[str, object], after: str, reason: str | None
) -> None:
    job = await held(server)
    answer = await post(server, f"{Q}/jobs/1/fail", {"token": job["token"], **body})
    assert (answer["state"], (await get(server, f"{Q}/jobs/1"))["reason"]) == (after, reason)


async def test_pauses_grow_up_to_the_cap(server: Server) -> None:
    retry = {"base_seconds": 2, "factor": 3, "cap_seconds": 10, "jitter": "none"}
    await ask(server, "PUT", Q, {"retry": retry, "max_attempts": None})
    await enqueue(server)
    pauses = []
    for _ in range(4):
        (job,) = await dequeue(server, wait_seconds=20)
        began = trio.current_time()
        await post(server, f"{Q}/jobs/1/fail", {"token": job["lease"]["token"]})
        planned = datetime.fromisoformat((await get(server, f"{Q}/jobs/1"))["not_before"])
        pauses.append(round(planned.timestamp() - EPOCH_SECONDS - began))
    assert pauses == [2, 6, 10, 10]


async def test_an_extend_starts_the_lease_again(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server, lease_seconds=10)
    for _ in range(3):
        await trio.sleep(8)
        answer = await post(server, f"{Q}/jobs/{id_}/extend", {"token": token})
        assert answer["lease"]["seconds"] == 10
    answer = await post(server, f"{Q}/jobs/{id_}/extend", {"token": token, "lease_seconds": 20, "progress": 0.5})
    assert answer == {
        "id": 1,
        "queue": "q",
        "state": "in_progress",
        "lease": {"fence": answer["lease"]["fence"], "seconds": 20, "expires_at": "2027-01-15T08:00:44.000Z"},
        "cancel_requested": False,
    }
    await post(server, f"{Q}/jobs/{id_}/extend", {"token": token})
    assert (await get(server, f"{Q}/jobs/1"))["progress"] == 0.5
    await trio.sleep(22)
    assert await refused(server, "POST", f"{Q}/jobs/1/extend", {"token": token}) == (409, "lease_lost", "token")
    assert await state(server, 1) == "queued"


async def test_an_extend_of_many_tells_of_each_lease(server: Server) -> None:
    jobs = [await held(server), await held(server, queue="b")]
    await post(server, "/v1/queues/b/jobs/1/cancel")
    answer = await post(server, "/v1/extend", {"jobs": [job | {"lease_seconds": 60} for job in jobs]})
    assert [(job["lease"]["seconds"], job["cancel_requested"]) for job in answer["jobs"]] == [(60, False), (60, True)]
    assert all("token" not in job["lease"] for job in answer["jobs"])
    inside = await post(server, f"{Q}/extend", {"jobs": jobs[:1]})
    assert inside["jobs"][0]["lease"]["expires_at"] == "2027-01-15T08:01:00.000Z"


async def test_a_released_job_is_the_next_unless_it_is_delayed(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 2)
    id_, token = await lease(server)
    for _ in range(2):
        assert (await post(server, f"{Q}/jobs/{id_}/release", {"token": token}))["state"] == "queued"
    (job,) = await dequeue(server)
    assert (job["id"], job["attempts"], job["fails"], job["stales"]) == (1, 2, 0, 0)
    body = {"token": job["lease"]["token"], "delay_seconds": 5}
    assert (await post(server, f"{Q}/jobs/{id_}/release", body))["state"] == "scheduled"
    await enqueue(server)
    await trio.sleep(6)
    assert [job["id"] for job in await dequeue(server, count=3)] == [2, 3, 1]


async def test_an_operator_takes_back_what_a_worker_holds(server: Server) -> None:
    job = await held(server)
    assert await post(server, f"{Q}/jobs/1/release") == {"id": 1, "queue": "q", "state": "queued"}
    assert await refused(server, "POST", f"{Q}/jobs/1/release", {}) == (409, "not_in_progress", None)
    assert await refused(server, "POST", f"{Q}/jobs/1/conclude", {"token": job["token"]}) == (
        409,
        "lease_lost",
        "token",
    )
    await enqueue(server, {"type": "b"}, {"type": "a"})
    await dequeue(server, count=2, consumer="gone")
    await dequeue(server, consumer="here")
    dry = {"consumer": "gone", "dry_run": True}
    assert await post(server, f"{Q}/release", dry) == {"count": 2, "refused": 0, "dry_run": True}
    one = {"consumer": "gone", "type": "b"}
    assert await post(server, f"{Q}/release", one) == {"count": 1, "refused": 0, "dry_run": False}
    assert await post(server, f"{Q}/release", {"consumer": "gone"}) == {"count": 1, "refused": 0, "dry_run": False}
    assert (await get(server, Q))["counts"] | {} == {
        "scheduled": 0,
        "queued": 2,
        "in_progress": 1,
        "concluded": 0,
        "dead": 0,
        "cancelled": 0,
    }
    assert await refused(server, "POST", "/v1/queues/no/release", {"consumer": "w"}) == (404, "unknown_queue", "queue")


async def test_a_stale_job_comes_back_at_once_then_waits_and_then_is_dead(server: Server) -> None:
    await ask(server, "PUT", Q, {"max_stale": 3, "retry": {"kind": "fixed", "base_seconds": 30, "jitter": "none"}})
    await enqueue(server, {"type": "a"}, {"type": "a"})
    fences = []
    for expected in ("queued", "scheduled", "dead"):
        (job,) = await dequeue(server, lease_seconds=10)
        assert job["id"] == 1
        fences.append(job["lease"]["fence"])
        await trio.sleep(11.5)
        assert await state(server, 1) == expected
        await trio.sleep(31 if expected == "scheduled" else 0)
        if expected == "scheduled":
            (other,) = await dequeue(server)
            assert other["id"] == 2
    job = await get(server, f"{Q}/jobs/1")
    assert (job["reason"], job["stales"], job["fails"]) == ("stale", 3, 0)
    assert [attempt["outcome"] for attempt in job["history"]] == ["stale"] * 3
    assert fences == sorted(set(fences))


async def test_a_job_whose_ttl_ends_while_it_waits_is_dead(server: Server) -> None:
    await enqueue(server, {"type": "a", "ttl_seconds": 5}, {"type": "a", "ttl_seconds": 5, "delay_seconds": 60})
    job = await held(server, ttl_seconds=8, priority=1)
    await trio.sleep(6.5)
    for id_ in (1, 2):
        read = await get(server, f"{Q}/jobs/{id_}")
        assert (read["state"], read["reason"]) == ("dead", "expired")
    await trio.sleep(3)
    assert (await post(server, f"{Q}/jobs/{job['id']}/release", {"token": job["token"]}))["state"] == "dead"


async def test_release_of_many_by_tokens_takes_no_filter_and_by_filter_no_ride(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server, consumer="w")
    held = [{"id": id_, "token": token}]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"jobs": held, "consumer": "w"}, "consumer"),
        ({"jobs": held, "type": "a"}, "type"),
        ({"jobs": held, "dry_run": True}, "dry_run"),
        ({"consumer": "w", "dequeue": {}}, "dequeue"),
        ({}, "consumer"),
        ({"type": "a"}, "consumer"),
        ({"consumer": "w", "state": "in_progress"}, "state"),
        ({"jobs": [{"id": id_}]}, "jobs[0].token"),
    ]
    for body, field in wrong:
        assert await refused(server, "POST", f"{Q}/release", body) == (400, "invalid", field)
    assert (await get(server, f"{Q}/jobs/{id_}"))["state"] == "in_progress"


async def test_release_without_a_token_takes_nothing_that_belongs_to_a_holder(server: Server) -> None:
    await enqueue(server)
    id_, _token = await lease(server)
    for body, field in (({"delay_seconds": 1}, "delay_seconds"), ({"dequeue": {}}, "token")):
        assert await refused(server, "POST", f"{Q}/jobs/{id_}/release", body) == (400, "invalid", field)
    assert (await get(server, f"{Q}/jobs/{id_}"))["state"] == "in_progress"


async def test_a_retry_after_a_failure_for_good_is_a_contradiction(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    body = {"token": token, "retry": False, "retry_after_seconds": 1}
    assert await refused(server, "POST", f"{Q}/jobs/{id_}/fail", body) == (400, "invalid", "retry_after_seconds")
    many = {"jobs": [{"id": id_, **body}]}
    assert await refused(server, "POST", f"{Q}/fail", many) == (400, "invalid", "jobs[0].retry_after_seconds")


async def test_what_the_path_names_may_be_named_again_but_not_otherwise(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    target = f"{Q}/jobs/{id_}/extend"
    assert await refused(server, "POST", target, {"token": token, "id": id_ + 1}) == (400, "invalid", "id")
    assert await refused(server, "POST", target, {"token": token, "queue": "b"}) == (400, "invalid", "queue")
    body = {"jobs": [{"queue": "b", "id": id_, "token": token}]}
    assert await refused(server, "POST", f"{Q}/extend", body) == (400, "invalid", "jobs[0].queue")
    assert (await post(server, target, {"token": token, "id": id_, "queue": "q"}))["state"] == "in_progress"


async def test_an_attempt_that_may_last_no_longer_is_not_lost_by_asking(server: Server) -> None:
    await ask(server, "PUT", Q, {"run_seconds_max": 60})
    await enqueue(server)
    id_, token = await lease(server, lease_seconds=300)
    target = f"{Q}/jobs/{id_}"
    body = {"token": token, "lease_seconds": 61}
    answer = await ask(server, "POST", f"{target}/extend", body)
    assert answer.problem == (409, "run_too_long", "lease_seconds")
    assert answer.json["retryable"] == "never"
    for many in (f"{Q}/extend", "/v1/extend"):
        (result,) = (await post(server, many, {"jobs": [{"queue": "q", "id": id_, **body}]}))["jobs"]
        assert result["error"]["code"] == "run_too_long"
    assert (await get(server, target))["lease"]["seconds"] == 60
    assert (await post(server, f"{target}/conclude", {"token": token}))["state"] == "concluded"


# --- a dequeue that rides on another verb


@pytest.mark.parametrize("verb", ["conclude", "fail", "release"])
@pytest.mark.parametrize(
    ("ride", "field"),
    [
        ({"count": 1_001}, "dequeue.count"),
        ({"wait_seconds": 20.1}, "dequeue.wait_seconds"),
        ({"lease_seconds": 43_201}, "dequeue.lease_seconds"),
    ],
)
async def test_a_ride_out_of_bounds_is_refused_before_the_verb_is_carried_out(
    server: Server, verb: str, ride: dict[str, Any], field: str
) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    one = {"token": token, "dequeue": ride}
    many = {"jobs": [{"id": id_, "token": token}], "dequeue": ride}
    across = {"jobs": [{"queue": "q", "id": id_, "token": token}], "dequeue": {**ride, "queue": "q"}}
    for target, body in ((f"{Q}/jobs/{id_}/{verb}", one), (f"{Q}/{verb}", many), (f"/v1/{verb}", across)):
        assert await refused(server, "POST", target, body) == (400, "invalid", field)
    assert (await get(server, f"{Q}/jobs/{id_}"))["state"] == "in_progress"


async def test_a_ride_across_queues_has_to_name_its_own(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    body = {"jobs": [{"queue": "q", "id": id_, "token": token}], "dequeue": {}}
    assert await refused(server, "POST", "/v1/conclude", body) == (400, "invalid", "dequeue.queue")
    assert (await get(server, f"{Q}/jobs/{id_}"))["state"] == "in_progress"


async def test_a_verb_that_is_done_says_so_even_if_its_ride_is_refused(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 3)
    (id_, token), (third, thirds_token), (last, lasts_token) = (
        (job["id"], job["lease"]["token"]) for job in await dequeue(server, count=3)
    )
    await enqueue(server)
    key = {"Idempotency_Key": "k"}
    first = await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token, "dequeue": {}}, **key)
    assert len(first["dequeued"]["jobs"]) == 1
    second = await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token, "dequeue": {"count": 2}}, **key)
    assert second["state"] == "concluded"
    assert second["dequeued"]["jobs"] == []
    assert second["dequeued"]["error"] == {
        "code": "key_reused",
        "detail": "the idempotency key was used with another body",
        "field": "Idempotency-Key",
    }
    server.engine.drain()
    one = await post(server, f"{Q}/jobs/{third}/conclude", {"token": thirds_token, "dequeue": {}})
    many = await post(server, f"{Q}/conclude", {"jobs": [{"id": last, "token": lasts_token}], "dequeue": {}})
    assert (one["state"], many["jobs"][0]["state"]) == ("concluded", "concluded")
    for answer in (one, many):
        assert answer["dequeued"]["jobs"] == []
        assert answer["dequeued"]["error"]["code"] == "draining"


async def test_no_answer_with_a_token_may_be_stored(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 4)
    id_, token = await lease(server)
    one = await ask(server, "POST", f"{Q}/jobs/{id_}/conclude", {"token": token, "dequeue": {}})
    (job,) = one.json["dequeued"]["jobs"]
    held = {"id": job["id"], "token": job["lease"]["token"]}
    many = await ask(server, "POST", f"{Q}/conclude", {"jobs": [held], "dequeue": {}})
    assert [answer.headers.get("cache-control") for answer in (one, many)] == ["no-store", "no-store"]


async def test_a_ride_may_be_for_another_queue(server: Server) -> None:
    await enqueue(server, {"type": "a"}, {"type": "a"})
    await enqueue(server, queue="b")
    id_, token = await lease(server)
    body = {"token": token, "dequeue": {"queue": "b"}}
    answer = await post(server, f"{Q}/jobs/{id_}/conclude", body)
    assert [job["queue"] for job in answer["dequeued"]["jobs"]] == ["b"]


async def test_a_ride_may_be_for_several_queues(server: Server) -> None:
    await enqueue(server)
    await enqueue(server, queue="b")
    id_, token = await lease(server)
    body = {"token": token, "dequeue": {"queues": ["a", "b"], "order": "fair"}}
    concluded = await post(server, f"{Q}/jobs/{id_}/conclude", body)
    (job,) = concluded["dequeued"]["jobs"]
    assert job["queue"] == "b"
    held = {"queue": "b", "id": job["id"], "token": job["lease"]["token"]}
    both = {"jobs": [held], "dequeue": {"queue": "a", "queues": "a*"}}
    assert await refused(server, "POST", "/v1/conclude", both) == (400, "invalid", "dequeue.queues")


async def test_keys_of_requests_across_queues_are_apart_from_those_of_a_queue_called_none(server: Server) -> None:
    for queue in ("q", "None"):
        await enqueue(server, {"type": "a"}, {"type": "a"}, queue=queue)
    id_, token = await lease(server)
    other, its_token = await lease(server, "None")
    body = {"jobs": [{"queue": "q", "id": id_, "token": token}], "dequeue": {"queue": "q"}}
    across = await post(server, "/v1/conclude", body, Idempotency_Key="k")
    body = {"jobs": [{"id": other, "token": its_token}], "dequeue": {}}
    inside = await post(server, "/v1/queues/None/conclude", body, Idempotency_Key="k")
    assert [answer["dequeued"]["jobs"][0]["queue"] for answer in (across, inside)] == ["q", "None"]


async def test_the_ride_is_of_the_same_queue_and_waits(server: Server) -> None:
    job = await held(server)
    async with trio.open_nursery() as nursery:
        body = {"token": job["token"], "dequeue": {"wait_seconds": 20, "consumer": "w"}}
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/jobs/1/conclude", body)
        assert await state(server, 1) == "concluded"
        await trio.sleep(3)
        await enqueue(server)
    ((next_job),) = waiting.json["dequeued"]["jobs"]
    assert (waiting.seconds, next_job["id"], next_job["consumer"]) == (3, 2, "w")
    assert await refused(server, "POST", f"{Q}/jobs/1/release", {"token": "x", "dequeue": {}}) == (
        409,
        "lease_lost",
        "token",
    )
    many = {"jobs": [{**job, "token": "x"}], "dequeue": {"queue": "q"}}
    await enqueue(server)
    answer = await post(server, "/v1/fail", many)
    assert (answer["errors"], len(answer["dequeued"]["jobs"])) == (1, 1)


# --- idempotency


async def test_an_enqueue_under_a_key_is_done_once(server: Server) -> None:
    body = {"jobs": [{"type": "a"}, {"type": "a", "unique_key": "k"}]}
    first = await ask(server, "POST", f"{Q}/enqueue", body, Idempotency_Key="k")
    id_, token = await lease(server)
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    again = await ask(server, "POST", f"{Q}/enqueue", body, Idempotency_Key="k")
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["queue-durability"] == server.engine.durability
    other = {"jobs": [{"type": "b"}]}
    for changed in (other, json.dumps(body, indent=1).encode()):
        answer = await refused(server, "POST", f"{Q}/enqueue", changed, Idempotency_Key="k")
        assert answer == (422, "key_reused", "Idempotency-Key")
    assert (await get(server, Q))["last_id"] == 2
    # A key is of one path, and there are others.
    assert (await post(server, "/v1/queues/b/enqueue", other, Idempotency_Key="k"))["jobs"][0]["id"] == 1
    assert (await post(server, f"{Q}/enqueue", other, Idempotency_Key="K"))["jobs"][0]["id"] == 3


async def test_a_refusal_is_not_remembered(serve: Serve) -> None:
    async with serve(queued_jobs_max=1) as server:
        body = {"jobs": [{"type": "a"}]}
        await enqueue(server)
        full = await refused(server, "POST", f"{Q}/enqueue", body, Idempotency_Key="k")
        assert full == (429, "queue_full", None)
        id_, token = await lease(server)
        await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
        assert (await post(server, f"{Q}/enqueue", body, Idempotency_Key="k"))["jobs"][0]["id"] == 2


@one_engine
@pytest.mark.parametrize("key", ["", "a" * 201, "a\tb", "\x85"])
async def test_an_idempotency_key_has_1_to_200_plain_characters(server: Server, key: str) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    for target, body in (
        (f"{Q}/enqueue", {"jobs": [{"type": "a"}]}),
        (f"{Q}/dequeue", {}),
        ("/v1/dequeue", {"queues": ["q"]}),
        (f"{Q}/jobs/{id_}/conclude", {"token": token, "dequeue": {}}),
        (f"{Q}/conclude", {"jobs": [{"id": id_, "token": token}], "dequeue": {}}),
        (f"{Q}/release", {"consumer": "w"}),
    ):
        answer = await refused(server, "POST", target, body, Idempotency_Key=key)
        assert answer == (400, "invalid", "Idempotency-Key")
    assert await state(server, id_) == "in_progress"
    assert (await post(server, f"{Q}/dequeue", Idempotency_Key="a" * 200)) == {"jobs": []}


async def test_which_of_two_keys_counts_is_not_guessed(server: Server) -> None:
    body = b'{"jobs": [{"type": "a"}]}'

    async def enqueued(*keys: str) -> Answer:
        return await server.ask("POST", f"{Q}/enqueue", body, [("Idempotency-Key", key) for key in keys])

    for keys in (("k", "l"), ("l", "k"), ("k", "k", "l")):
        assert (await enqueued(*keys)).problem == (400, "invalid", "Idempotency-Key")
    assert (
        (await enqueued("k")).body
        == (await enqueued("k", "k")).body
        == b'{"jobs":[{"id":1,"state":"queued"}],"errors":0}'
    )


async def test_a_dequeue_under_a_key_gives_again_what_still_holds(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 4)
    wanted = {"count": 3}
    first = await post(server, f"{Q}/dequeue", wanted, Idempotency_Key="k")
    assert await post(server, f"{Q}/dequeue", wanted, Idempotency_Key="k") == first
    one, two, three = first["jobs"]
    await post(server, f"{Q}/jobs/1/conclude", {"token": one["lease"]["token"]})
    await post(server, f"{Q}/jobs/2/release", {"token": two["lease"]["token"]})
    assert [job["id"] for job in await dequeue(server, count=1)] == [2]
    again = await post(server, f"{Q}/dequeue", wanted, Idempotency_Key="k")
    assert again["jobs"] == [three]
    other = await refused(server, "POST", f"{Q}/dequeue", {"count": 2}, Idempotency_Key="k")
    assert other == (422, "key_reused", "Idempotency-Key")
    assert (await get(server, Q))["counts"]["queued"] == 1


async def test_an_empty_dequeue_is_not_remembered(server: Server) -> None:
    assert await post(server, f"{Q}/dequeue", {}, Idempotency_Key="k") == {"jobs": []}
    await enqueue(server)
    assert len((await post(server, f"{Q}/dequeue", {}, Idempotency_Key="k"))["jobs"]) == 1


async def test_a_repeat_takes_over_the_place_in_line(server: Server) -> None:
    wanted = {"wait_seconds": 20}
    async with trio.open_nursery() as nursery:
        first = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", wanted, Idempotency_Key="k")
        behind = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", wanted)
        await trio.sleep(1)
        repeat = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", wanted, Idempotency_Key="k")
        assert (first.ids, first.seconds) == ([], 1)
        await enqueue(server)
        await wait_all_tasks_blocked()
        assert repeat.ids == [1]
        await enqueue(server)
    assert behind.ids == [2]


async def test_a_conclude_with_a_dequeue_is_repeated_whole(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 3)
    id_, token = await lease(server)
    one = {"token": token, "dequeue": {}}
    first = await post(server, f"{Q}/jobs/{id_}/conclude", one, Idempotency_Key="k")
    assert await post(server, f"{Q}/jobs/{id_}/conclude", one, Idempotency_Key="k") == first
    (job,) = first["dequeued"]["jobs"]
    many = {"jobs": [{"id": job["id"], "token": job["lease"]["token"]}], "dequeue": {}}
    second = await post(server, f"{Q}/conclude", many, Idempotency_Key="k")
    assert await post(server, f"{Q}/conclude", many, Idempotency_Key="k") == second
    assert [job["id"] for job in second["dequeued"]["jobs"]] == [3]


async def test_a_key_is_forgotten_after_its_time(serve: Serve) -> None:
    async with serve(idempotency_seconds=60.0) as server:
        body = {"jobs": [{"type": "a"}]}
        for seconds, last in ((0, 1), (59, 1), (2, 2)):
            await trio.sleep(seconds)
            answer = await post(server, f"{Q}/enqueue", body, Idempotency_Key="k")
            assert answer["jobs"][0]["id"] == last


async def test_a_repeat_whose_leases_have_all_ended_is_empty_at_once_and_holds_nobody_up(server: Server) -> None:
    await enqueue(server)
    wanted = {"wait_seconds": 20}
    (job,) = (await post(server, f"{Q}/dequeue", wanted, Idempotency_Key="k"))["jobs"]
    await post(server, f"{Q}/jobs/{job['id']}/conclude", {"token": job["lease"]["token"]})
    started = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def repeat() -> None:
            assert await post(server, f"{Q}/dequeue", wanted, Idempotency_Key="k") == {"jobs": []}
            assert trio.current_time() == started

        @nursery.start_soon
        async def wait_in_line() -> None:
            await trio.sleep(1)
            assert len(await dequeue(server, wait_seconds=20)) == 1
            assert trio.current_time() == started + 2

        await trio.sleep(2)
        await enqueue(server)


async def test_the_key_of_a_dequeue_that_waits_is_refused_to_another_body(server: Server) -> None:
    await enqueue(server, queue="b")
    key = {"Idempotency_Key": "k"}
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait_in_line() -> None:
            answer = await post(server, "/v1/dequeue", {"queues": ["a"], "wait_seconds": 20}, **key)
            assert [job["queue"] for job in answer["jobs"]] == ["a"]

        await wait_all_tasks_blocked()
        for queues in (["b"], ["a", "b"], "b*"):
            other = {"queues": queues, "wait_seconds": 20}
            assert await refused(server, "POST", "/v1/dequeue", other, **key) == (422, "key_reused", "Idempotency-Key")
        await enqueue(server, queue="a")
    assert (await get(server, "/v1/queues/b"))["counts"]["queued"] == 1


# --- both faces


async def test_the_classic_routes_and_v1_see_the_same_jobs(server: Server) -> None:
    classic = await server.ask("POST", "/jobs/enqueue", b'{"Type":"TIME_CRITICAL","Payload":{"a": 1}}')
    assert classic.json["ID"] == 1
    (id_,) = await enqueue(server, {"type": "b", "delay_seconds": 60}, queue="default")
    assert (await get(server, "/v1/queues/default/jobs/1"))["payload"] == {"a": 1}
    shown = await server.ask("GET", f"/jobs/{id_}")
    assert (shown.json, shown.headers["queue-state"]) == ({"ID": 2, "Type": "b", "Status": "QUEUED"}, "scheduled")
    leased = await server.dequeue()
    answer = await post(server, "/v1/queues/default/jobs/1/conclude", {"token": leased.token, "result": 1})
    assert answer["state"] == "concluded"
    again = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", leased.token)])
    assert (again.status, again.json["Status"]) == (200, "CONCLUDED")
    await post(server, "/v1/queues/default/jobs/2/run")
    id_, token = await lease(server, "default", consumer="w")
    other = await server.ask("POST", "/jobs/2/conclude", headers=[("Queue-Consumer", "x")])
    assert other.problem[:2] == (403, "other_consumer")
    await post(server, "/v1/queues/default/jobs/2/fail", {"token": token, "retry": False})
    ended = await server.ask("GET", "/jobs/2")
    assert (ended.headers["queue-state"], ended.json["Status"], ended.json["State"]) == ("dead", "CONCLUDED", "dead")


async def test_classic_jobs_do_not_die_of_failures(server: Server) -> None:
    await server.enqueue()
    for _ in range(30):
        id_, token = await lease(server, "default")
        body = {"token": token, "retry_after_seconds": 0}
        assert (await post(server, f"/v1/queues/default/jobs/{id_}/fail", body))["state"] == "queued"


async def test_the_classic_enqueue_and_dequeue_take_an_idempotency_key_too(server: Server) -> None:
    key = [("Idempotency-Key", "k")]
    first = await server.ask("POST", "/jobs/enqueue", b'{"Type":"a"}', key)
    again = await server.ask("POST", "/jobs/enqueue", b'{"Type":"a"}', key)
    assert (first.json, again.json) == ({"ID": 1, "Type": "a", "Status": "QUEUED"},) * 2
    other = await server.ask("POST", "/jobs/enqueue", b'{"Type":"b"}', key)
    assert other.problem == (422, "key_reused", "Idempotency-Key")
    leased = await server.ask("POST", "/jobs/dequeue?wait=1", headers=key)
    repeated = await server.ask("POST", "/jobs/dequeue?wait=1", headers=key)
    assert repeated.token == leased.token
    other = await server.ask("POST", "/jobs/dequeue?wait=2", headers=key)
    assert other.problem == (422, "key_reused", "Idempotency-Key")


async def test_a_request_is_logged_with_what_it_was_about(server: Server) -> None:
    job = await held(server)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"]})
    await post(server, f"{Q}/conclude", {"jobs": [{"id": 1, "token": "x"}]})
    await refused(server, "GET", f"{Q}/jobs/9")
    facts = [
        {name: line[name] for name in ("queue", "job", "jobs", "state", "errors", "code", "ids") if name in line}
        for line in server.request_lines
    ]
    assert facts == [
        {"queue": "q", "jobs": 1, "ids": [1]},
        {"queue": "q", "jobs": 1, "ids": [1]},
        {"queue": "q", "job": 1, "state": "concluded"},
        {"queue": "q", "jobs": 1, "ids": [1], "errors": 1},
        {"code": "unknown_job"},
    ]


async def test_a_key_out_of_bounds_is_refused_even_where_it_has_nothing_to_repeat(server: Server) -> None:
    await enqueue(server)
    _, token = await lease(server)
    body = {"token": token}
    answer = await ask(server, "POST", f"{Q}/jobs/1/conclude", body, Idempotency_Key="k" * 201)

    assert answer.problem == (400, "invalid", "Idempotency-Key")
    assert (await ask(server, "POST", f"{Q}/jobs/1/conclude", body, Idempotency_Key="k")).status == 200
    taken_back = await ask(server, "POST", f"{Q}/release", {"consumer": "w"}, Idempotency_Key="k" * 201)
    assert taken_back.problem == (400, "invalid", "Idempotency-Key")
