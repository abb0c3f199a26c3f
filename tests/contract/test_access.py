"""Access tokens over HTTP: who is calling, on which queues, how much; and what nobody may see of another."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.access import AccessFile, Scope
from queue_actor.settings import Settings
from tests.contract import v1
from tests.contract.following import following
from tests.contract.stack import Answer, Server, serving
from tests.contract.tokens import Tokens, at, bearer, made_token
from tests.contract.v1 import Asked, ask
from tests.fakes import FakeClock, FakeStore
from web.requests import Request
from web.rereading import LOOK_SECONDS, watch

pytestmark = pytest.mark.virtual_time

Q = "/v1/queues/q"
JOB = {"jobs": [{"type": "a"}]}
LINE = b'{"type": "a"}\n'


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json", FakeClock())


@pytest.fixture
async def server(tokens: Tokens) -> AsyncIterator[Server]:
    tokens.write()
    async with serving(Settings(), clock=tokens.clock, access=tokens.access()) as server:
        yield server


def read_again(server: Server) -> None:
    assert server.app.access is not None
    server.app.access.read_again()


def add(server: Server, tokens: Tokens, name: str, *scopes: str, **given: Any) -> dict[str, str]:
    """The header that shows a new token, which the server knows."""
    token = tokens.add(name, *scopes, **given)
    read_again(server)
    return bearer(token)


async def code(server: Server, method: str, target: str, body: object = None, **headers: str) -> tuple[int, str]:
    answer = await ask(server, method, target, body, **headers)
    return answer.status, answer.json.get("code", "") if answer.body else ""


# --- who is calling


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer \xc3\xa4",
        b"Bearer \xff\xfe",
        b"Bearer " + b"a" * 10 * 1024,
        b"Bearer qa_",
        b"Bearer a b",
        b"Bearer a,b",
        b"Bearer =",
        b"bearer x" + b"=" * 100,
        b"Basic dXNlcjpwYXNz",
        b"Bearerqa_",
        b"\xff",
        b"",
    ],
)
async def test_what_is_no_token_is_unauthorized(server: Server, value: bytes) -> None:
    answer = await server.ask("GET", Q, headers=[("Authorization", value)])

    assert answer.problem == (401, "unauthorized", None)
    assert answer.headers["www-authenticate"].startswith('Bearer realm="queue-actor"')


async def test_the_challenge_says_whether_a_token_was_sent(server: Server) -> None:
    none = await ask(server, "GET", Q)
    unknown = await ask(server, "GET", Q, **bearer(made_token()))
    other = await ask(server, "GET", Q, Authorization="Basic dXNlcjpwYXNz")

    assert none.headers["www-authenticate"] == other.headers["www-authenticate"] == 'Bearer realm="queue-actor"'
    assert unknown.headers["www-authenticate"] == 'Bearer realm="queue-actor", error="invalid_token"'


async def test_two_tokens_at_once_are_none(server: Server, tokens: Tokens) -> None:
    header = add(server, tokens, "a", "admin")["Authorization"]

    answer = await server.ask("GET", Q, headers=[("Authorization", header), ("Authorization", header)])

    assert answer.problem == (401, "unauthorized", None)


async def test_however_a_token_is_written_no_more_is_remembered_of_it_than_there_is_room_for(
    server: Server, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.auth.SHOWN_FIELDS_MAX", 3)
    access = server.app.access
    assert access is not None
    token = add(server, tokens, "reader", "read")["Authorization"].removeprefix("Bearer ")
    for spaces in range(1, 12):
        assert await code(server, "GET", Q, Authorization=f"Bearer{' ' * spaces}{token}") == (200, "")
        assert 1 <= len(access._shown) <= 3
    assert await code(server, "GET", Q, Authorization=f"Bearer {token[:-1]}") == (401, "unauthorized")
    assert len(access._shown) <= 3  # nothing of what is refused


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
async def test_the_scheme_may_be_written_in_any_case(server: Server, tokens: Tokens, scheme: str) -> None:
    token = add(server, tokens, "a", "read")["Authorization"].removeprefix("Bearer ")

    assert await code(server, "GET", Q, Authorization=scheme + token) == (200, "")


async def test_a_mistyped_token_is_told_from_an_unknown_one(server: Server) -> None:
    token = made_token()
    mistyped = token[:5] + ("1" if token[5] != "1" else "2") + token[6:]

    assert "mistyped" in (await ask(server, "GET", Q, **bearer(mistyped))).json["detail"]
    assert "not known" in (await ask(server, "GET", Q, **bearer(token))).json["detail"]


async def test_a_path_that_is_none_is_told_to_anybody(server: Server) -> None:
    assert await code(server, "GET", "/v1/nothing") == (404, "not_found")
    assert await code(server, "PATCH", Q) == (405, "method_not_allowed")


async def test_a_token_ends_at_its_moment_and_not_before(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read", expires=60)

    await trio.sleep(59)
    assert await code(server, "GET", Q, **shown) == (200, "")
    await trio.sleep(1)
    assert await code(server, "GET", Q, **shown) == (401, "unauthorized")


async def test_two_tokens_of_a_name_are_valid_at_once(server: Server, tokens: Tokens) -> None:
    first = add(server, tokens, "a", "read")
    second = add(server, tokens, "a")

    assert await code(server, "GET", Q, **first) == await code(server, "GET", Q, **second) == (200, "")


async def test_a_server_with_tokens_does_not_care_about_host_and_origin(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read")
    foreign = {"Host": "jobs.example.org", "Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}

    answer = await server.ask("GET", Q, headers=[*shown.items(), *foreign.items()])

    assert answer.status == 200
    assert (await server.ask("GET", Q, headers=foreign.items())).status == 401


# --- what they may do


async def test_a_refusal_names_scope_and_queue(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read", queues=("other",))

    answer = await ask(server, "POST", f"{Q}/enqueue", JOB, **shown)

    assert answer.problem == (403, "forbidden", None)
    assert answer.json["detail"] == "this token may not do that: it needs the scope produce on queue q"
    assert 'error="insufficient_scope", scope="produce"' in answer.headers["www-authenticate"]


async def test_what_there_is_of_others_cannot_be_told_from_what_is_not(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    other = add(server, tokens, "other", "produce", "consume", "read", "operate", queues=("mine",))
    await v1.post(server, "/v1/queues/there/enqueue", JOB, **admin)

    for method, path in (
        ("GET", ""),
        ("GET", "/jobs"),
        ("GET", "/jobs/1"),
        ("POST", "/jobs/1/cancel"),
        ("POST", "/dequeue"),
    ):
        there = await ask(server, method, f"/v1/queues/there{path}", **other)
        gone = await ask(server, method, f"/v1/queues/gone{path}", **other)
        assert there.status == gone.status == 403
        assert there.json["detail"].replace("there", "gone") == gone.json["detail"]


async def test_a_prefix_is_allowed_only_where_one_pattern_covers_it_whole(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "consume", queues=("tenant:*", "exact"))

    async def refused(queues: object) -> tuple[Any, ...]:
        answer = await ask(server, "POST", "/v1/dequeue", {"queues": queues}, **shown)
        return answer.problem if answer.status != 200 else (200,)

    assert await refused("tenant:*") == (200,)
    assert await refused("tenant:a*") == (200,)
    assert await refused(["tenant:a", "exact"]) == (200,)
    for queues in ("tenant*", "t*", "exact*", ["tenant:a", "other"], ["tenant"]):
        assert await refused(queues) == (403, "forbidden", "queues"), queues


async def test_claims_across_queues_are_refused_each_for_itself(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    mine = add(server, tokens, "mine", "consume", queues=("mine",))
    for queue in ("mine", "theirs"):
        await v1.post(server, f"/v1/queues/{queue}/enqueue", JOB, **admin)
    leased = await v1.post(server, "/v1/dequeue", {"queues": ["mine", "theirs"], "count": 2}, **admin)
    claims = [{"queue": job["queue"], "id": job["id"], "token": job["lease"]["token"]} for job in leased["jobs"]]

    answer = await v1.post(server, "/v1/conclude", {"jobs": [claims[1], claims[0], claims[1]]}, **mine)

    assert [job.get("state") or job["error"]["code"] for job in answer["jobs"]] == [
        "forbidden",
        "concluded",
        "forbidden",
    ]
    assert answer["errors"] == 2
    assert (await v1.post(server, "/v1/conclude", {"jobs": [claims[1]]}, **mine))["errors"] == 1
    assert (await v1.post(server, "/v1/conclude", {"jobs": [claims[1]]}, **admin))["errors"] == 0


async def test_a_dequeue_that_rides_is_refused_before_the_verb_is_done(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    mine = add(server, tokens, "mine", "consume", queues=("q",))
    await v1.post(server, f"{Q}/enqueue", JOB, **admin)
    (job,) = (await v1.post(server, f"{Q}/dequeue", {}, **mine))["jobs"]
    token = job["lease"]["token"]

    for where in ({"queue": "other"}, {"queues": ["q", "other"]}):
        body = {"token": token, "dequeue": where}
        answer = await ask(server, "POST", f"{Q}/jobs/1/conclude", body, **mine)
        assert answer.problem == (403, "forbidden", f"dequeue.{next(iter(where))}")
    assert (await ask(server, "GET", f"{Q}/jobs/1", **admin)).json["state"] == "in_progress"


async def test_queues_are_listed_that_may_be_read_and_pages_tell_of_no_others(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    reader = add(server, tokens, "reader", "read", queues=("b*", "d"))
    for name in ("a", "b1", "b2", "c", "d", "e"):
        await v1.post(server, f"/v1/queues/{name}/enqueue", JOB, **admin)

    seen, cursor = [], ""
    while cursor is not None:
        page = (await ask(server, "GET", f"/v1/queues?limit=1{cursor and '&cursor=' + cursor}", **reader)).json
        seen += [queue["name"] for queue in page["queues"]]
        cursor = page["next_cursor"]
        assert cursor is None or cursor == seen[-1]

    assert seen == ["b1", "b2", "d"]


async def test_an_idempotency_key_is_one_names_own(server: Server, tokens: Tokens) -> None:
    one = add(server, tokens, "one", "produce", "consume")
    two = add(server, tokens, "two", "produce", "consume")
    key = {"Idempotency-Key": "k"}

    ids = [
        (await v1.post(server, f"{Q}/enqueue", JOB, **shown, **key))["jobs"][0]["id"] for shown in (one, one, two, two)
    ]
    leased = [
        [job["id"] for job in (await v1.post(server, f"{Q}/dequeue", {}, **shown, **key))["jobs"]]
        for shown in (one, one, two, two)
    ]
    simple = [
        (await server.ask("POST", "/jobs/enqueue", b'{"Type": "a"}', [*shown.items(), *key.items()])).json["ID"]
        for shown in (one, one, two)
    ]
    simple_leased = [
        (await server.ask("POST", "/jobs/dequeue", headers=[*shown.items(), *key.items()])).json["ID"]
        for shown in (one, one, two)
    ]

    assert ids == [1, 1, 2, 2]
    assert leased == [[1], [1], [2], [2]]
    assert simple == simple_leased == [1, 1, 2]


# --- the log


async def test_the_log_names_who_it_was(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "ops", "operate", "produce")
    await v1.post(server, f"{Q}/enqueue", JOB, **shown)
    await v1.post(server, f"{Q}/pause", **shown)
    await ask(server, "POST", f"{Q}/pause")

    assert [line["who"] for line in server.log if line["event"] == "request"] == ["ops", "ops", None]
    assert [line["who"] for line in server.log if line["event"] == "audit"] == ["ops"]


# --- the file changes


async def test_a_file_that_changes_is_read_again(server: Server, tokens: Tokens) -> None:
    assert server.app.access is not None
    server.nursery.start_soon(watch, [server.app.access])
    shown = bearer(tokens.add("late", "read"))
    assert await code(server, "GET", Q, **shown) == (401, "unauthorized")

    await trio.sleep(LOOK_SECONDS)
    assert await code(server, "GET", Q, **shown) == (200, "")
    assert [line["valid"] for line in server.log if line["event"] == "tokens_read"] == [1]

    tokens.revoke("late")
    await trio.sleep(LOOK_SECONDS)
    assert await code(server, "GET", Q, **shown) == (401, "unauthorized")


async def test_a_broken_file_leaves_the_tokens_as_they_were(server: Server, tokens: Tokens) -> None:
    assert server.app.access is not None
    shown = add(server, tokens, "a", "read")
    server.nursery.start_soon(watch, [server.app.access])

    tokens.path.write_text('{"tokens": [{"name": "a", "scope": ["read"]}]}')
    await trio.sleep(3 * LOOK_SECONDS)
    assert await code(server, "GET", Q, **shown) == (200, "")
    tokens.path.unlink()
    await trio.sleep(3 * LOOK_SECONDS)
    assert await code(server, "GET", Q, **shown) == (200, "")

    reasons = [line["reason"] for line in server.log if line["event"] == "tokens_unusable"]
    assert [line["level"] for line in server.log if line["event"] == "tokens_unusable"] == ["error", "error"]
    assert "'a'" in reasons[0]
    assert "`scope`" in reasons[0]
    assert "No such file" in reasons[1]


async def test_a_link_that_is_swapped_is_noticed(tokens: Tokens, tmp_path: Path) -> None:
    """As Kubernetes does with a secret it mounts: tokens.json -> ..data/tokens.json, and ..data -> a folder."""
    old, new = tmp_path / "..1", tmp_path / "..2"
    for folder in (old, new):
        folder.mkdir()
    mounted = tmp_path / "mounted.json"
    (tmp_path / "..data").symlink_to("..1")
    mounted.symlink_to("..data/tokens.json")
    tokens.path = old / "tokens.json"
    first = tokens.add("first", "read")
    tokens.path = new / "tokens.json"
    second = tokens.add("second", "read")
    tokens.path = mounted

    async with serving(Settings(), clock=tokens.clock, access=tokens.access()) as server:
        assert server.app.access is not None
        server.nursery.start_soon(watch, [server.app.access])
        assert await code(server, "GET", Q, **bearer(first)) == (200, "")
        assert await code(server, "GET", Q, **bearer(second)) == (401, "unauthorized")
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await trio.sleep(LOOK_SECONDS)
        assert await code(server, "GET", Q, **bearer(second)) == (200, "")


# --- those who wait


async def test_who_waits_with_a_token_that_is_revoked_is_sent_home(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    worker = add(server, tokens, "worker", "consume", "read")
    await v1.post(server, "/v1/queues/other/enqueue", JOB, **admin)
    async with trio.open_nursery() as nursery:
        dequeue = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **worker)
        read = await Asked.start(nursery, server, "GET", "/v1/queues/other/jobs/1?wait_seconds=20", **worker)
        stays = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **admin)

        tokens.revoke("worker")
        read_again(server)
        await wait_all_tasks_blocked()
        assert dequeue.ids == []
        assert read.json["state"] == "queued"
        assert stays.answer is None
        assert await code(server, "POST", f"{Q}/dequeue", {}, **worker) == (401, "unauthorized")

        await v1.post(server, f"{Q}/enqueue", JOB, **admin)
        await wait_all_tasks_blocked()
        assert stays.ids == [1]


async def test_a_wait_ends_when_its_token_expires(server: Server, tokens: Tokens) -> None:
    worker = add(server, tokens, "worker", "consume", expires=5)
    async with trio.open_nursery() as nursery:
        waits = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **worker)

    assert waits.ids == []
    assert waits.seconds == pytest.approx(5)


async def test_a_wait_ends_when_its_token_is_to_be_revoked(server: Server, tokens: Tokens) -> None:
    worker = add(server, tokens, "worker", "consume")
    tokens.revoke("worker", seconds=5)
    assert server.app.access is not None
    server.app.access.read_again()
    async with trio.open_nursery() as nursery:
        waits = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **worker)

    assert waits.ids == []
    assert waits.seconds == pytest.approx(5)


@pytest.mark.parametrize(("before", "after"), [(None, 10.0), (5.0, 10.0), (15.0, 10.0)])
async def test_a_wait_ends_when_its_token_does_as_the_file_that_is_read_meanwhile_has_it(
    server: Server, tokens: Tokens, before: float | None, after: float
) -> None:
    worker = add(server, tokens, "worker", "consume", expires=before)
    async with trio.open_nursery() as nursery:
        waits = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **worker)
        await trio.sleep(1)
        (grant,) = tokens.file.grants
        tokens.file = AccessFile((replace(grant, tokens=(replace(grant.tokens[0], expires_at=at(after)),)),))
        tokens.write()
        read_again(server)

    assert waits.ids == []
    assert waits.seconds == pytest.approx(after)


@pytest.mark.parametrize(
    ("rights", "stays"),
    [
        ({"queues": ("q", "b:*")}, False),
        ({"queues": ("a:b:*", "q")}, False),
        ({"scopes": ("read",)}, False),
        ({"queues": ("q", "*")}, True),
        ({"scopes": ("admin",)}, True),
        ({"jobs_per_second": 1.0, "in_progress_max": 1}, True),
    ],
)
async def test_what_lasts_ends_when_its_token_may_do_less(
    server: Server, tokens: Tokens, rights: dict[str, Any], stays: bool
) -> None:
    shown = add(server, tokens, "worker", "consume", "read", queues=("q", "a:*"))
    async with trio.open_nursery() as nursery, following(server, **shown) as follower:
        waits = await Asked.start(nursery, server, "POST", "/v1/queues/a:1/dequeue", {"wait_seconds": 20}, **shown)
        (grant,) = tokens.file.grants
        scopes = tuple(map(Scope, rights.get("scopes", grant.scopes)))
        tokens.file = AccessFile((replace(grant, **{**rights, "scopes": scopes}),))
        tokens.write()
        read_again(server)
        await trio.sleep(1)
        assert (waits.answer is None) == stays
        assert follower.ended != stays

    assert waits.ids == []


async def test_who_comes_to_wait_with_a_token_that_has_just_been_revoked_does_not(
    server: Server, tokens: Tokens
) -> None:
    shown = add(server, tokens, "worker", "consume")
    access = server.app.access
    assert access is not None
    scope: Any = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(b"authorization", shown["Authorization"].encode())],
    }
    caller = access.caller(Request(scope))
    tokens.revoke("worker")
    read_again(server)

    with caller.while_valid() as wait:
        await trio.sleep_forever()
    assert wait.cancelled_caught
    assert access.waiting == {}


async def test_a_lease_that_was_given_reaches_its_worker_although_the_token_is_revoked(tokens: Tokens) -> None:
    store = FakeStore()
    admin, worker = bearer(tokens.add("admin", "admin")), bearer(tokens.add("worker", "consume"))
    async with serving(Settings(), clock=tokens.clock, store=store, access=tokens.access()) as server:
        async with trio.open_nursery() as nursery:
            waits = await Asked.start(nursery, server, "POST", f"{Q}/dequeue", {"wait_seconds": 20}, **worker)
            store.hold()
            enqueues = await Asked.start(nursery, server, "POST", f"{Q}/enqueue", JOB, **admin)
            tokens.revoke("worker")
            read_again(server)
            await wait_all_tasks_blocked()
            assert waits.answer is None
            store.let_go()
        assert enqueues.json["errors"] == 0
        assert waits.ids == [1]


# --- limits


def rate(answer: Answer) -> tuple[str | None, str | None]:
    return answer.headers.get("ratelimit-policy"), answer.headers.get("ratelimit")


async def test_requests_are_limited_at_n_and_refused_at_n_plus_1(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read", requests_per_second=3.0)
    free = add(server, tokens, "free", "read")

    answers = [await ask(server, "GET", Q, **shown) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[3].json["code"] == "rate_limited"
    assert answers[3].headers["retry-after"] == "1"
    assert rate(answers[0]) == ('"requests";q=3;w=1', '"requests";r=2;t=1')
    assert rate(answers[3]) == ('"requests";q=3;w=1', '"requests";r=0;t=1')
    assert rate(await ask(server, "GET", Q, **free)) == (None, None)
    await trio.sleep(0.34)
    assert [(await ask(server, "GET", Q, **shown)).status for _ in range(2)] == [200, 429]


async def test_a_limit_is_not_forgotten_when_the_file_is_read_again(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read", requests_per_second=1.0)
    assert await code(server, "GET", Q, **shown) == (200, "")
    read_again(server)
    assert await code(server, "GET", Q, **shown) == (429, "rate_limited")


async def test_what_is_forbidden_counts_as_a_request_too(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "read", queues=("other",), requests_per_second=1.0)

    assert await code(server, "GET", Q, **shown) == (403, "forbidden")
    assert await code(server, "GET", Q, **shown) == (429, "rate_limited")


async def test_jobs_are_limited_at_n_and_refused_at_n_plus_1(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", "consume", jobs_per_second=4.0)
    two = {"jobs": [{"type": "a"}, {"type": "a"}]}

    assert await code(server, "POST", f"{Q}/enqueue", two, **shown) == (200, "")
    answer = await ask(server, "POST", f"{Q}/dequeue", {"count": 2}, **shown)
    assert rate(answer) == ('"jobs";q=4;w=1', '"jobs";r=0;t=1')
    assert await code(server, "POST", f"{Q}/enqueue", JOB, **shown) == (429, "rate_limited")
    assert await code(server, "POST", f"{Q}/dequeue", {}, **shown) == (429, "rate_limited")
    await trio.sleep(0.25)
    assert await code(server, "POST", f"{Q}/enqueue", JOB, **shown) == (200, "")


async def test_a_large_batch_passes_and_leaves_a_debt(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", "consume", jobs_per_second=2.0)
    twelve = {"jobs": [{"type": "a"}] * 12}

    assert await code(server, "POST", f"{Q}/enqueue", twelve, **shown) == (200, "")
    answer = await ask(server, "POST", f"{Q}/dequeue", {}, **shown)
    assert answer.headers["retry-after"] == "6"  # ten too many, and one more
    await trio.sleep(5.4)
    assert await code(server, "POST", f"{Q}/dequeue", {}, **shown) == (429, "rate_limited")
    await trio.sleep(0.1)
    assert await code(server, "POST", f"{Q}/dequeue", {}, **shown) == (200, "")


async def test_a_verb_is_done_although_the_dequeue_it_carries_is_too_many(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", "consume", jobs_per_second=2.0)
    await v1.post(server, f"{Q}/enqueue", JOB, **shown)
    (job,) = (await v1.post(server, f"{Q}/dequeue", {}, **shown))["jobs"]

    body = {"token": job["lease"]["token"], "dequeue": {}}
    answer = await v1.post(server, f"{Q}/jobs/1/conclude", body, **shown)

    assert answer["state"] == "concluded"
    assert answer["dequeued"]["error"]["code"] == "rate_limited"


async def test_jobs_in_progress_are_limited_over_all_queues(server: Server, tokens: Tokens) -> None:
    admin = add(server, tokens, "admin", "admin")
    shown = add(server, tokens, "a", "consume", in_progress_max=3)
    for queue in ("q", "r"):
        await v1.post(server, f"/v1/queues/{queue}/enqueue", {"jobs": [{"type": "a"}] * 3}, **admin)

    first = (await v1.post(server, f"{Q}/dequeue", {"count": 2}, **shown))["jobs"]
    second = (await v1.post(server, "/v1/dequeue", {"queues": ["q", "r"], "count": 5}, **shown))["jobs"]
    assert [job["id"] for job in first + second] == [1, 2, 3]
    assert await code(server, "POST", "/v1/queues/r/dequeue", {}, **shown) == (429, "in_progress_limit")
    assert await code(server, "POST", "/v1/queues/r/dequeue", {"wait_seconds": 20}, **shown) == (
        429,
        "in_progress_limit",
    )
    assert await code(server, "POST", "/jobs/dequeue", **shown) == (429, "in_progress_limit")

    await v1.post(server, f"{Q}/jobs/1/conclude", {"token": first[0]["lease"]["token"]}, **shown)
    third = (await v1.post(server, "/v1/queues/r/dequeue", {"count": 5}, **shown))["jobs"]
    assert [job["id"] for job in third] == [1]


# --- streams


async def test_a_stream_is_slowed_down_to_the_rate_of_its_token(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", jobs_per_second=100.0)
    lines = b'{"type": "a"}\n' * 2_000
    began = trio.current_time()

    answer = await stream(server, lines, shown)

    assert [chunk["count"] for chunk in answer] == [1_000, 1_000]
    assert trio.current_time() - began == pytest.approx(9.01, abs=0.5)  # the first thousand left a debt of 900


@pytest.mark.parametrize(
    ("before", "after", "seconds"), [(100.0, 10_000.0, 1.0), (100.0, None, 1.0), (None, 100.0, 9.0)]
)
async def test_a_stream_is_slowed_down_to_the_rate_that_its_token_has_now(
    server: Server, tokens: Tokens, before: float | None, after: float | None, seconds: float
) -> None:
    shown = add(server, tokens, "a", "produce", jobs_per_second=before)
    began = trio.current_time()
    client = server.connect()
    head = f"POST {Q}/enqueue HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/x-ndjson\r\n"
    head += (
        f"Authorization: {shown['Authorization']}\r\nContent-Length: {3_000 * len(LINE)}\r\nConnection: close\r\n\r\n"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, head.encode() + 1_000 * LINE)
        await trio.sleep(1)
        tokens.file = AccessFile((replace(tokens.file.grants[0], jobs_per_second=after),))
        tokens.write()
        read_again(server)
        nursery.start_soon(client.send, 2_000 * LINE)
        while await client.stream.receive_some():
            pass
    server.answers += 1

    assert trio.current_time() - began == pytest.approx(1 + seconds, abs=1)


async def test_a_stream_ends_when_its_token_is_revoked(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", jobs_per_second=100.0)
    answers: list[list[dict[str, Any]]] = []

    async def send() -> None:
        answers.append(await stream(server, b'{"type": "a"}\n' * 2_000, shown))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(1)
        tokens.revoke("a")
        read_again(server)

    assert [chunk.get("error", {}).get("code") for chunk in answers[0]] == [None, "unauthorized"]
    assert answers[0][1]["count"] == 0


async def test_a_stream_ends_when_its_token_may_no_longer_produce(server: Server, tokens: Tokens) -> None:
    shown = add(server, tokens, "a", "produce", jobs_per_second=100.0)
    answers: list[list[dict[str, Any]]] = []

    async def send() -> None:
        answers.append(await stream(server, b'{"type": "a"}\n' * 2_000, shown))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(1)
        tokens.file = AccessFile((replace(tokens.file.grants[0], scopes=(Scope.READ,)),))
        tokens.write()
        read_again(server)

    assert [chunk.get("error", {}).get("code") for chunk in answers[0]] == [None, "unauthorized"]


async def stream(server: Server, lines: bytes, shown: dict[str, str]) -> list[dict[str, Any]]:
    """The lines that answer a stream."""
    client = server.connect()
    head = f"POST {Q}/enqueue HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/x-ndjson\r\n"
    head += f"Authorization: {shown['Authorization']}\r\nContent-Length: {len(lines)}\r\nConnection: close\r\n\r\n"
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, head.encode() + lines)
        while piece := await client.stream.receive_some():
            received += bytes(piece)
    server.answers += 1
    body = received.partition(b"\r\n\r\n")[2]
    return [json.loads(line) for line in body.splitlines() if line.startswith(b"{")]
