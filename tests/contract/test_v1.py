"""`/v1` route by route, as web/README.md promises it: over the whole stack, on both engines.

What every answer has to have, problem documents included, is checked in stack.py whenever an answer is read.
"""

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import Settings
from tests.contract.stack import Server
from tests.contract.v1 import Q, ask, dequeue, enqueue, get, lease, post, refused

pytestmark = pytest.mark.virtual_time

one_engine = pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
"""For what no engine has a part in."""

# --- what is malformed


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


# --- release, with a token and without


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


# --- bulk


async def test_a_purge_names_the_states_that_it_forgets(server: Server) -> None:
    await enqueue(server)
    for body in ({}, {"state": None}, {"state": []}, {"state": "in_progress"}, {"state": ["queued", "in_progress"]}):
        status, code, field = await refused(server, "POST", f"{Q}/purge", body)
        assert (status, code) == (400, "invalid")
        assert field in {"state", "state[1]"}
    assert (await get(server, Q))["counts"]["queued"] == 1


async def test_a_redrive_is_of_dead_and_cancelled_jobs(server: Server) -> None:
    await enqueue(server)
    for state in ("queued", "concluded", "in_progress", [], ["dead", "scheduled"]):
        assert (await refused(server, "POST", f"{Q}/redrive", {"state": state}))[:2] == (400, "invalid")


@one_engine
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", f"{Q}/pause"),
        ("POST", f"{Q}/resume"),
        ("DELETE", Q),
        ("POST", f"{Q}/jobs/1/cancel"),
        ("POST", f"{Q}/jobs/1/redrive"),
        ("POST", f"{Q}/jobs/1/run"),
        ("DELETE", f"{Q}/jobs/1"),
    ],
)
async def test_a_verb_without_fields_refuses_any(server: Server, method: str, target: str) -> None:
    await enqueue(server, {"type": "a", "delay_seconds": 1})
    assert await refused(server, method, target, {"reason": "why"}) == (400, "invalid", "reason")
    assert await refused(server, method, target, b"{") == (400, "malformed", "body")


async def test_a_job_cannot_be_planned_beyond_the_longest_delay(server: Server) -> None:
    for moment in ("2037-01-22T08:00:01Z", "9999-12-31T23:59:59.999999-12:00"):
        body = {"jobs": [{"type": "a"}, {"type": "a", "not_before": moment}]}
        assert await refused(server, "POST", f"{Q}/enqueue", body) == (400, "invalid", "jobs[1].not_before")
    assert not (await get(server, Q))["exists"]
    for moment in ("2037-01-22T08:00:00Z", "0001-01-01T00:00:00+14:00"):
        (id_,) = await enqueue(server, {"type": "a", "not_before": moment})
        assert (await ask(server, "GET", f"{Q}/jobs/{id_}")).status == 200


async def test_a_rate_is_bounded_so_that_every_job_has_a_day_to_run_on(server: Server) -> None:
    assert await refused(server, "POST", f"{Q}/redrive", {"per_second": 0.000_9}) == (400, "invalid", "per_second")
    assert await refused(server, "POST", f"{Q}/redrive", {"per_second": 1_000_001}) == (400, "invalid", "per_second")


# --- idempotency


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


# --- queues and searches


async def test_a_queue_is_given_its_policy_and_paused_in_one_step(server: Server) -> None:
    """Nobody is handed a job in between."""
    await post(server, f"{Q}/enqueue", {"jobs": [{"type": "a"}]})
    assert (await ask(server, "PUT", Q, {"in_progress_max": 1})).status == 200
    _id, _token = await lease(server)
    await enqueue(server)
    async with trio.open_nursery() as nursery:
        answers: list[object] = []

        @nursery.start_soon
        async def wait_in_line() -> None:
            answers.append(await dequeue(server, wait_seconds=0.5))

        await wait_all_tasks_blocked()
        paused = await ask(server, "PUT", Q, {"paused": True})
    assert answers == [[]]
    assert paused.json["paused"]
    kept = await ask(server, "PUT", Q, {"max_attempts": 3})
    assert kept.json["paused"]
    resumed = await ask(server, "PUT", Q, {"paused": False})
    assert not resumed.json["paused"]
    assert resumed.json["policy"]["max_attempts"] == 25
    assert len(await dequeue(server)) == 1


async def test_a_deleted_queue_reads_as_one_that_never_was(server: Server) -> None:
    await enqueue(server)
    id_, token = await lease(server)
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    never = await get(server, "/v1/queues/never")
    deleted = await ask(server, "DELETE", Q)
    assert deleted.status == 200
    assert deleted.json == await get(server, Q) == {**never, "name": "q"}


@one_engine
@pytest.mark.parametrize(
    ("target", "field"),
    [
        (f"{Q}/jobs?type=", "type"),
        (f"{Q}/jobs?type={'a' * 201}", "type"),
        (f"{Q}/jobs?consumer={'a' * 201}", "consumer"),
        (f"{Q}/jobs?consumer=%00", "consumer"),
        (f"{Q}/jobs?error=", "error"),
        (f"{Q}/jobs?error={'a' * 201}", "error"),
        (f"{Q}/jobs?state=", "state"),
        (f"{Q}/jobs?state=queued,", "state"),
        (f"{Q}/jobs?state=QUEUED", "state"),
        (f"{Q}/jobs?since=yesterday", "since"),
        (f"{Q}/jobs?since=2026-11-24T02:45:10", "since"),
        (f"{Q}/jobs?order=random", "order"),
        (f"{Q}/jobs?order=", "order"),
        (f"{Q}/jobs?limit=0", "limit"),
        (f"{Q}/jobs?limit=1001", "limit"),
        (f"{Q}/jobs?limit=1e1", "limit"),
        (f"{Q}/jobs?cursor=x", "cursor"),
        (f"{Q}/jobs?cursor=-1", "cursor"),
        (f"{Q}/jobs?include=", "include"),
        (f"{Q}/jobs?include=history", "include"),
        (f"{Q}/jobs?stat=dead", "stat"),
        (f"{Q}/jobs?state=dead&state=queued", "state"),
        (f"{Q}/jobs/1?wait=1", "wait"),
        (f"{Q}/jobs/1?wait_seconds=20.1", "wait_seconds"),
        (f"{Q}/jobs/1?wait_seconds=nan", "wait_seconds"),
        (f"{Q}/jobs/1?wait_seconds=inf", "wait_seconds"),
        (f"{Q}/jobs/1?wait_seconds=-1", "wait_seconds"),
        (f"{Q}/jobs/0x1", "id"),
        (f"{Q}/jobs/01", "id"),
        (f"{Q}/jobs/9007199254740992", "id"),
        ("/v1/queues?prefix=", "prefix"),
        ("/v1/queues?prefix=tenant/", "prefix"),
        (f"/v1/queues?cursor={'a' * 81}", "cursor"),
        ("/v1/queues?limit=1001", "limit"),
        ("/v1/queues?q=a", "q"),
        ("/v1/queues/-", "queue"),
        (f"/v1/queues/{'a' * 81}", "queue"),
        ("/v1/queues/a%0A", "queue"),
        (f"{Q}?verbose=1", "verbose"),
    ],
)
async def test_a_query_is_as_strict_as_a_body(server: Server, target: str, field: str) -> None:
    assert await refused(server, "GET", target) == (400, "invalid", field)


@pytest.mark.parametrize("since", ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00%2B01:00", "2027-01-15T09:00:00+01:00"])
async def test_a_time_in_a_query_may_have_any_offset_and_its_plus_as_it_is(server: Server, since: str) -> None:
    await enqueue(server)
    await trio.sleep(10)
    assert len((await get(server, f"{Q}/jobs?since={since}"))["jobs"]) == 1
    assert (await get(server, f"{Q}/jobs?since=2027-01-15T08:00:10Z"))["jobs"] == []


async def test_an_attempt_that_may_last_no_longer_is_not_lost_by_asking(server: Server) -> None:
    await ask(server, "PUT", Q, {"run_seconds_max": 60})
    await enqueue(server)
    id_, token = await lease(server, lease_seconds=300)
    target = f"{Q}/jobs/{id_}"
    body = {"token": token, "lease_seconds": 61}
    answer = await ask(server, "POST", f"{target}/extend", body)
    assert answer.problem == (409, "run_too_long", "lease_seconds")
    assert answer.json["retryable"] == "never"
    assert (await get(server, target))["lease"]["seconds"] == 60
    assert (await post(server, f"{target}/conclude", {"token": token}))["state"] == "concluded"
