"""What operators need of `/v1`: looking at queues and jobs, and their verbs, as web/README.md promises it."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import Settings
from queue_actor.state_machine import BULK_JOBS_MAX
from tests.contract.conftest import Serve
from tests.contract.stack import Server, build
from tests.contract.v1 import Asked, Q, ask, dequeue, enqueue, get, held, lease, post, refused, state
from tests.fakes import FakeStore

pytestmark = pytest.mark.virtual_time

one_engine = pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
"""For what no engine has a part in."""


# --- look


async def test_a_reader_may_wait_for_the_end_of_a_job(server: Server) -> None:
    job = await held(server)
    target = f"{Q}/jobs/1?wait_seconds=20"
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "GET", target)
        await trio.sleep(3)
        await post(server, f"{Q}/jobs/1/extend", {"token": job["token"], "progress": 1})
        await trio.sleep(3)
        await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"], "result": "r"})
    assert (waiting.json["state"], waiting.json["result"], waiting.seconds) == ("concluded", "r", 6)
    assert len(waiting.json["history"]) == 1
    async with trio.open_nursery() as nursery:
        done = await Asked.start(nursery, server, "GET", target)
    assert (done.json["state"], done.seconds) == ("concluded", 0)
    await enqueue(server)
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "GET", f"{Q}/jobs/2?wait_seconds=1.5")
    assert (waiting.json["state"], waiting.seconds) == ("queued", 1.5)
    async with trio.open_nursery() as nursery:
        cancelled = await Asked.start(nursery, server, "GET", f"{Q}/jobs/2?wait_seconds=20")
        await post(server, f"{Q}/jobs/2/cancel")
    assert (cancelled.json["state"], cancelled.seconds) == ("cancelled", 0)


async def test_a_reader_who_leaves_waits_no_longer(serve: Serve) -> None:
    async with serve(waiters_max=1) as server:
        await enqueue(server)
        client = server.connect()
        await client.send(build("GET", f"{Q}/jobs/1?wait_seconds=20"))
        await wait_all_tasks_blocked()
        await client.leave()
        await wait_all_tasks_blocked()
        assert (await get(server, f"{Q}/jobs/1?wait_seconds=1"))["state"] == "queued"


async def test_a_job_that_is_no_longer_kept_is_forgotten(server: Server) -> None:
    job = await held(server)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"]})
    await trio.sleep(3_602)
    for method, target in (
        ("GET", f"{Q}/jobs/1"),
        ("DELETE", f"{Q}/jobs/1"),
        ("POST", f"{Q}/jobs/1/cancel"),
        ("POST", f"{Q}/jobs/1/redrive"),
        ("POST", f"{Q}/jobs/1/run"),
        ("POST", f"{Q}/jobs/1/release"),
    ):
        assert await refused(server, method, target) == (404, "forgotten", "id")
        assert await refused(server, method, target.replace("1", "2", 2).replace("v2", "v1")) == (
            404,
            "unknown_job",
            "id",
        )
    for verb in ("conclude", "fail", "extend", "release"):
        one = await refused(server, "POST", f"{Q}/jobs/1/{verb}", {"token": job["token"]})
        assert one == (404, "forgotten", "id")
        for target in (f"{Q}/{verb}", f"/v1/{verb}"):
            (many,) = (await post(server, target, {"jobs": [job]}))["jobs"]
            assert (many["id"], many["queue"], many["error"]["code"]) == (1, "q", "forgotten")


async def test_a_search_finds_what_matches(server: Server) -> None:
    await enqueue(server, {"type": "a"}, {"type": "b"}, {"type": "a", "delay_seconds": 600}, {"type": "a"})
    (job,) = await dequeue(server, consumer="w")
    error = {"type": "Timeout", "message": "host did not answer"}
    await post(server, f"{Q}/jobs/1/fail", {"token": job["lease"]["token"], "error": error, "retry": False})
    await dequeue(server, consumer="w")
    await trio.sleep(10)
    await enqueue(server, {"type": "a"})

    async def found(query: str) -> list[int]:
        return [job["id"] for job in (await get(server, f"{Q}/jobs?{query}"))["jobs"]]

    assert await found("") == [1, 2, 3, 4, 5]
    assert await found("order=newest&limit=2") == [5, 4]
    assert await found("state=queued") == [4, 5]
    assert await found("state=scheduled,dead") == [1, 3]
    assert await found("type=b") == [2]
    assert await found("consumer=w") == [1, 2]
    assert await found("error=Time") == await found("error=not%20answer") == [1]
    assert await found("error=nothing") == []
    assert await found("since=2027-01-15T08:00:09Z") == [5]
    assert await found("state=queued&type=a&since=2027-01-15T08:00:00Z&order=newest") == [5, 4]


async def test_a_list_leaves_out_content_and_history_unless_asked(server: Server) -> None:
    job = await held(server, payload=1)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"], "result": 2})
    (bare,) = (await get(server, f"{Q}/jobs"))["jobs"]
    (full,) = (await get(server, f"{Q}/jobs?include=content"))["jobs"]
    whole = await get(server, f"{Q}/jobs/1")
    assert whole.keys() - bare.keys() == {"payload", "result", "history"}
    assert whole.keys() - full.keys() == {"history"}
    assert (full["payload"], full["result"]) == (1, 2)


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_all_pages_together_are_all_that_match_however_sparse_they_are(server: Server, order: str) -> None:
    """Each looks at 3,000 ids at most; here two of 10,002 match, one at each end."""
    rare = {"type": "rare"}
    await enqueue(server, rare)
    for _ in range(10):
        await enqueue(server, *[{"type": "a"}] * 1_000)
    await enqueue(server, rare)
    pages, cursor = [], ""
    while True:
        page = await get(server, f"{Q}/jobs?type=rare&order={order}{cursor}")
        pages.append([job["id"] for job in page["jobs"]])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    ids = [1, 10_002] if order == "oldest" else [10_002, 1]
    assert pages == [ids[:1], [], [], ids[1:]]


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_pages_are_of_the_size_asked_for_and_none_is_missed(server: Server, order: str) -> None:
    await enqueue(server, *[{"type": "a"}] * 7)
    await post(server, f"{Q}/purge", {"state": "queued", "type": "b"})
    pages, cursor = [], ""
    while cursor is not None:
        page = await get(server, f"{Q}/jobs?limit=3&order={order}{cursor}")
        pages.append([job["id"] for job in page["jobs"]])
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    ids = [*range(1, 8)] if order == "oldest" else [*range(7, 0, -1)]
    assert pages == [ids[:3], ids[3:6], ids[6:]]


async def test_queues_are_listed_by_name_page_by_page(server: Server) -> None:
    for queue in ("b", "a:2", "a:1", "c"):
        await enqueue(server, queue=queue)

    async def listed(query: str) -> tuple[list[str], str | None]:
        found = await get(server, f"/v1/queues?{query}")
        return [queue["name"] for queue in found["queues"]], found["next_cursor"]

    assert await listed("") == (["a:1", "a:2", "b", "c"], None)
    assert await listed("prefix=a:") == (["a:1", "a:2"], None)
    assert await listed("limit=3") == (["a:1", "a:2", "b"], "b")
    assert await listed("limit=3&cursor=b") == (["c"], None)


async def test_a_queue_is_shown_in_figures(server: Server) -> None:
    await enqueue(server, {"type": "a"}, {"type": "a", "delay_seconds": 600})
    await trio.sleep(5)
    read = await get(server, Q)
    assert (read["oldest_age_seconds"], read["waiters"], read["consumers"], read["last_id"]) == (5, 0, [], 2)
    id_, token = await lease(server, consumer="w")
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    await trio.sleep(2)
    read = await get(server, Q)
    counts = {"scheduled": 1, "queued": 0, "in_progress": 0, "concluded": 1, "dead": 0, "cancelled": 0}
    assert (read["counts"], read["oldest_age_seconds"]) == (counts, None)
    assert read["consumers"] == [{"name": "w", "seen_seconds": 2}]
    assert (read["per_minute"]["enqueue"], read["per_minute"]["conclude"], read["per_minute"]["fail"]) == (2, 1, 0)


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
        ("/v1/queues/a%2Fb", "queue"),
        (f"{Q}?verbose=1", "verbose"),
    ],
)
async def test_a_query_is_as_strict_as_a_body(server: Server, target: str, field: str) -> None:
    assert await refused(server, "GET", target) == (400, "invalid", field)


@one_engine
@pytest.mark.parametrize(
    ("target", "most", "beyond", "field"),
    [
        (f"{Q}/jobs?type={{}}", "a" * 200, "a" * 2_000, "type"),
        (f"{Q}/jobs?consumer={{}}", "a" * 200, "a" * 2_000, "consumer"),
        (f"{Q}/jobs?error={{}}", "a" * 200, "a" * 2_000, "error"),
        (f"{Q}/jobs?limit={{}}", "1000", "10000", "limit"),
        (f"{Q}/jobs?cursor={{}}", "9007199254740991", "90071992547409910", "cursor"),
        ("/v1/queues?limit={}", "1000", "10000", "limit"),
        ("/v1/queues?prefix={}", "a" * 80, "a" * 800, "prefix"),
        ("/v1/queues?cursor={}", "a" * 80, "a" * 800, "cursor"),
        ("/v1/queues/{}", "a" * 80, "a" * 800, "queue"),
    ],
)
async def test_a_query_is_taken_up_to_its_bounds_and_refused_far_beyond_them(
    server: Server, target: str, most: str, beyond: str, field: str
) -> None:
    """One more than most is in the test before."""
    await get(server, target.format(most))
    assert await refused(server, "GET", target.format(beyond)) == (400, "invalid", field)


async def test_a_wait_and_an_id_are_taken_up_to_their_bounds_and_refused_far_beyond_them(server: Server) -> None:
    job = await held(server)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"]})
    await get(server, f"{Q}/jobs/1?wait_seconds=20")
    assert await refused(server, "GET", f"{Q}/jobs/1?wait_seconds=200") == (400, "invalid", "wait_seconds")
    assert await refused(server, "GET", f"{Q}/jobs/9007199254740991") == (404, "unknown_job", "id")
    assert await refused(server, "GET", f"{Q}/jobs/90071992547409910") == (400, "invalid", "id")


@pytest.mark.parametrize("since", ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00%2B01:00", "2027-01-15T09:00:00+01:00"])
async def test_a_time_in_a_query_may_have_any_offset_and_its_plus_as_it_is(server: Server, since: str) -> None:
    await enqueue(server)
    await trio.sleep(10)
    assert len((await get(server, f"{Q}/jobs?since={since}"))["jobs"]) == 1
    assert (await get(server, f"{Q}/jobs?since=2027-01-15T08:00:10Z"))["jobs"] == []


# --- operate


async def test_a_waiting_job_is_cancelled_and_a_running_one_is_asked_to_end(server: Server) -> None:
    await enqueue(server, {"type": "a", "delay_seconds": 60}, {"type": "a"})
    for id_ in (1, 2):
        for _ in range(2):
            answer = await post(server, f"{Q}/jobs/{id_}/cancel")
            assert answer == {"id": id_, "queue": "q", "state": "cancelled"}
    for verb, after in (
        ("conclude", "concluded"),
        ("fail", "cancelled"),
        ("release", "cancelled"),
        ("stale", "cancelled"),
    ):
        job = await held(server)
        target = f"{Q}/jobs/{job['id']}"
        for _ in range(2):
            assert (await post(server, f"{target}/cancel"))["state"] == "in_progress"
        assert (await post(server, f"{target}/extend", {"token": job["token"]}))["cancel_requested"]
        if verb == "stale":
            await trio.sleep(302)
        else:
            assert (await post(server, f"{target}/{verb}", {"token": job["token"]}))["state"] == after
        assert await state(server, job["id"]) == after
    assert await refused(server, "POST", f"{Q}/jobs/3/cancel") == (409, "already_finished", None)


async def test_a_job_is_redriven_with_all_its_attempts_before_it(server: Server) -> None:
    job = await held(server, unique_key="k")
    target = f"{Q}/jobs/1"
    assert await refused(server, "POST", f"{target}/redrive") == (409, "not_finished", None)
    await post(server, f"{target}/fail", {"token": job["token"], "retry": False})
    (other,) = await enqueue(server, {"type": "a", "unique_key": "k"})
    assert await refused(server, "POST", f"{target}/redrive") == (409, "unique_key_taken", None)
    await post(server, f"{Q}/jobs/{other}/cancel")
    assert await post(server, f"{target}/redrive") == {"id": 1, "queue": "q", "state": "queued"}
    read = await get(server, target)
    assert (read["fails"], read["attempts"], read["reason"], read["finished_at"]) == (0, 1, None, None)
    id_, token = await lease(server)
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    assert await refused(server, "POST", f"{target}/redrive") == (409, "already_finished", None)


async def test_a_scheduled_job_is_run_now(server: Server) -> None:
    await enqueue(server, {"type": "a", "delay_seconds": 600})
    for _ in range(2):
        assert await post(server, f"{Q}/jobs/1/run") == {"id": 1, "queue": "q", "state": "queued"}
    assert (await get(server, f"{Q}/jobs/1"))["not_before"] is None
    await dequeue(server)
    assert await refused(server, "POST", f"{Q}/jobs/1/run") == (409, "not_waiting", None)


async def test_a_finished_job_is_forgotten_on_demand(server: Server) -> None:
    job = await held(server)
    assert await refused(server, "DELETE", f"{Q}/jobs/1") == (409, "not_finished", None)
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"]})
    answer = await ask(server, "DELETE", f"{Q}/jobs/1")
    assert answer.json == {"id": 1, "queue": "q", "state": "concluded"}
    assert await refused(server, "DELETE", f"{Q}/jobs/1") == (404, "forgotten", "id")


async def dead(server: Server, *types: str) -> None:
    """Makes dead jobs of these types."""
    ids = await enqueue(server, *[{"type": type_} for type_ in types])
    tokens = {job["id"]: job["lease"]["token"] for job in await dequeue(server, count=len(types))}
    failed = [{"id": id_, "token": tokens[id_], "retry": False, "error": {"message": f"no {id_}"}} for id_ in ids]
    assert (await post(server, f"{Q}/fail", {"jobs": failed}))["errors"] == 0


async def test_dead_jobs_are_redriven_by_filter(server: Server) -> None:
    await dead(server, "a", "a", "b", "a")
    await enqueue(server, {"type": "a"})
    await post(server, f"{Q}/jobs/5/cancel")
    for body, count in (
        ({"state": "dead", "type": "a", "dry_run": True}, 3),
        ({"error": "no 3", "dry_run": True}, 1),
        ({"dry_run": True}, 5),
        ({"state": ["cancelled"]}, 1),
        ({"state": "dead", "type": "a"}, 3),
        ({}, 1),
        ({}, 0),
    ):
        answer = await post(server, f"{Q}/redrive", body)
        assert answer == {"count": count, "refused": 0, "dry_run": body.get("dry_run", False)}
    assert (await get(server, Q))["counts"]["queued"] == 5
    assert [job["id"] for job in await dequeue(server, count=5)] == [5, 1, 2, 4, 3]


async def test_a_redrive_may_be_spread(server: Server) -> None:
    await dead(server, *"aaaaa")
    assert (await post(server, f"{Q}/redrive", {"per_second": 0.5}))["count"] == 5
    assert (await get(server, Q))["counts"]["scheduled"] == 5
    times = []
    for _ in range(5):
        assert len(await dequeue(server, wait_seconds=20)) == 1
        times.append(trio.current_time())
    assert times == pytest.approx([0, 2, 4, 6, 8], abs=1.1)
    await dead(server, *"aa")
    assert (await post(server, f"{Q}/redrive", {"per_second": 1_000_000}))["count"] == 2


async def test_what_cannot_be_redriven_is_counted(server: Server) -> None:
    job = await held(server, unique_key="k")
    await post(server, f"{Q}/jobs/1/fail", {"token": job["token"], "retry": False})
    await enqueue(server, {"type": "a", "unique_key": "k"})
    assert await post(server, f"{Q}/redrive", {}) == {"count": 0, "refused": 1, "dry_run": False}


async def test_a_purge_never_touches_what_is_in_progress(server: Server) -> None:
    await dead(server, "a")
    await held(server)
    await enqueue(server, {"type": "a"}, {"type": "b"}, {"type": "a", "delay_seconds": 60})
    every = ["scheduled", "queued", "concluded", "dead", "cancelled"]
    assert (await post(server, f"{Q}/purge", {"state": every, "dry_run": True}))["count"] == 4
    assert (await post(server, f"{Q}/purge", {"state": "queued", "type": "b"}))["count"] == 1
    assert (await post(server, f"{Q}/purge", {"state": every}))["count"] == 3
    assert [job["id"] for job in (await get(server, f"{Q}/jobs"))["jobs"]] == [2]
    for verb, body in (("purge", {"state": "dead"}), ("redrive", {})):
        assert await refused(server, "POST", f"/v1/queues/no/{verb}", body) == (404, "unknown_queue", "queue")


async def test_a_bulk_of_more_than_one_slice_is_done_to_the_end(server: Server) -> None:
    for _ in range(12):
        await enqueue(server, *[{"type": "a"}] * 1_000)
    assert (await post(server, f"{Q}/purge", {"state": "queued"}))["count"] == 12_000
    assert (await get(server, Q))["counts"]["queued"] == 0


async def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(server: Server) -> None:
    await enqueue(server, *[{"type": "a"}] * 2)
    id_, token = await lease(server)
    assert (await post(server, f"{Q}/pause"))["paused"]
    assert await dequeue(server) == []
    await post(server, f"{Q}/jobs/{id_}/conclude", {"token": token})
    await enqueue(server)
    async with trio.open_nursery() as nursery:
        waiting = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20})
        assert not (await post(server, f"{Q}/resume"))["paused"]
    assert waiting.ids == [2]
    for verb in ("pause", "resume"):
        assert await refused(server, "POST", f"/v1/queues/no/{verb}") == (404, "unknown_queue", "queue")


async def test_a_queue_is_deleted_when_its_work_is_done(server: Server) -> None:
    job = await held(server)
    assert await refused(server, "DELETE", Q) == (409, "queue_not_empty", "queue")
    await post(server, f"{Q}/jobs/1/conclude", {"token": job["token"]})
    assert (await ask(server, "DELETE", Q)).status == 200
    assert await refused(server, "DELETE", Q) == (404, "unknown_queue", "queue")
    assert await refused(server, "GET", f"{Q}/jobs/1") == (404, "unknown_job", "id")
    assert await enqueue(server) == [2]


async def test_a_policy_is_replaced_whole(server: Server) -> None:
    given = {"max_attempts": None, "max_stale": 7, "retry": {"kind": "fixed"}, "lease_seconds": 10, "oldest_every": 3}
    answer = await ask(server, "PUT", Q, given)
    assert answer.json["policy"] | {"retry": None} == {
        "max_attempts": None,
        "max_stale": 7,
        "retry": None,
        "lease_seconds": 10,
        "ttl_seconds": None,
        "queued_jobs_max": None,
        "in_progress_max": None,
        "run_seconds_max": None,
        "oldest_every": 3,
        "retention_seconds": None,
        "dead_retention_seconds": None,
    }
    assert answer.json["policy"]["retry"]["kind"] == "fixed"
    policy = (await ask(server, "PUT", Q, {"ttl_seconds": 5})).json["policy"]
    assert (policy["max_attempts"], policy["max_stale"], policy["ttl_seconds"]) == (25, 5, 5)
    default = (await ask(server, "PUT", "/v1/queues/default", {})).json["policy"]
    assert (default["max_attempts"], default["max_stale"]) == (None, None)


async def test_each_verb_of_an_operator_leaves_a_line_in_the_audit_log(server: Server) -> None:
    await dead(server, "a")
    await held(server)
    await enqueue(server, {"type": "a", "delay_seconds": 60})
    await ask(server, "PUT", Q, {"max_attempts": 3})
    await post(server, f"{Q}/pause")
    await post(server, f"{Q}/resume")
    await post(server, f"{Q}/jobs/2/release")
    await post(server, f"{Q}/jobs/3/run")
    await post(server, f"{Q}/jobs/3/cancel")
    await post(server, f"{Q}/jobs/3/redrive")
    await dequeue(server, consumer="w", count=3)
    await post(server, f"{Q}/release", {"consumer": "w"})
    await post(server, f"{Q}/redrive", {"state": "dead", "per_second": 5})
    await post(server, f"{Q}/purge", {"state": ["queued", "scheduled"], "dry_run": True})
    await post(server, f"{Q}/purge", {"state": ["queued", "scheduled"]})
    await refused(server, "POST", f"{Q}/jobs/3/cancel")
    job = await held(server)
    await post(server, f"{Q}/jobs/{job['id']}/conclude", {"token": job["token"]})
    await ask(server, "DELETE", f"{Q}/jobs/{job['id']}")
    job = await held(server)
    await post(server, f"{Q}/jobs/{job['id']}/conclude", {"token": job["token"]})
    await ask(server, "DELETE", Q)
    lines = [line for line in server.log if line["event"] == "audit"]
    assert [(line["verb"], line.get("job"), line.get("count")) for line in lines] == [
        ("policy", None, None),
        ("pause", None, None),
        ("resume", None, None),
        ("release", 2, None),
        ("run", 3, None),
        ("cancel", 3, None),
        ("redrive", 3, None),
        ("release", None, 2),
        ("redrive", None, 1),
        ("purge", None, 3),
        ("forget", job["id"] - 1, None),
        ("purge", None, 1),
        ("delete_queue", None, None),
    ]
    assert {(line["queue"], line["who"], line["level"]) for line in lines} == {("q", "anonymous", "info")}
    purge = next(line for line in lines if line["verb"] == "purge")
    assert sorted(purge["where"]["states"]) == ["queued", "scheduled"]


@one_engine
async def test_a_verb_that_is_broken_off_leaves_what_was_done_in_the_audit_log(
    server: Server, store: FakeStore
) -> None:
    await enqueue(server, *[{"type": "a"}] * 1_000)
    await enqueue(server, *[{"type": "a"}] * 500)
    store.seconds = 1
    async with trio.open_nursery() as nursery:
        asked = await Asked.start(nursery, server, "POST", f"{Q}/purge", {"state": "queued"})
        await trio.sleep(1.5)  # a second to count the jobs, and a part of that of the first slice
        server.engine.close()
    assert asked.answer is not None
    assert asked.answer.problem == (503, "outcome_unknown", None)
    (line,) = [line for line in server.log if line["event"] == "audit"]
    assert (line["verb"], line["count"]) == ("purge", BULK_JOBS_MAX)


async def test_a_purge_names_the_states_that_it_forgets(server: Server) -> None:
    await enqueue(server)
    wrong: list[dict[str, object]] = [{}, {"state": None}, {"state": []}, {"state": "in_progress"}]
    for body in (*wrong, {"state": ["queued", "in_progress"]}):
        status, code, field = await refused(server, "POST", f"{Q}/purge", body)
        assert (status, code) == (400, "invalid")
        assert field in {"state", "state[1]"}
    assert (await get(server, Q))["counts"]["queued"] == 1


async def test_a_redrive_is_of_dead_and_cancelled_jobs(server: Server) -> None:
    await enqueue(server)
    for states in ("queued", "concluded", "in_progress", [], ["dead", "scheduled"]):
        assert (await refused(server, "POST", f"{Q}/redrive", {"state": states}))[:2] == (400, "invalid")


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


async def test_a_rate_is_bounded_so_that_every_job_has_a_day_to_run_on(server: Server) -> None:
    assert await refused(server, "POST", f"{Q}/redrive", {"per_second": 0.000_9}) == (400, "invalid", "per_second")
    assert await refused(server, "POST", f"{Q}/redrive", {"per_second": 1_000_001}) == (400, "invalid", "per_second")
