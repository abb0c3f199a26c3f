"""The HTTP face, route by route, as web/README.md promises it: over the whole stack, on both engines.

What every answer has to have, problem documents included, is checked in stack.py whenever an answer is read. Input
that is refused as such is in test_http_bad_input.py.
"""

import json
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.commands import Cancel, Dequeue, Enqueue, NewJob, Release, ReleaseClaim, Sweep
from queue_actor.settings import KIB, MIB, Settings
from tests.contract.conftest import Serve
from tests.contract.stack import HOST, Answer, Client, Server, build
from tests.fakes import EPOCH_SECONDS, FakeStore, jump

pytestmark = pytest.mark.virtual_time

A = b'{"Type":"a"}'

one_engine = pytest.mark.parametrize("settings", [Settings()], ids=["actor"])
"""For what no engine has a part in."""


def job(answer: Answer, **expected: object) -> None:
    """Asserts an answer about a job: its body to the byte, and its state."""
    state = expected.pop("state")
    assert (answer.status, answer.headers["queue-state"]) == (200, state)
    assert answer.body == json.dumps(expected, separators=(",", ":")).encode()


class Asked:
    """An answer that a task of its own waits for."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answer: Answer | None = None
        self.seconds: float | None = None  # that it took

    @classmethod
    async def start(cls, server: Server, nursery: trio.Nursery, *request: Any, **more: Any) -> "Asked":
        """Asks, and comes back when everybody waits."""
        asked = cls(server.connect())
        nursery.start_soon(partial(asked._run, *request, **more))
        await wait_all_tasks_blocked()
        return asked

    async def _run(self, *request: Any, **more: Any) -> None:
        started = trio.current_time()
        self.answer = await self.client.ask(*request, **more)
        self.seconds = trio.current_time() - started

    @property
    def problem(self) -> tuple[int, str, str | None]:
        """What it was refused with."""
        assert self.answer is not None
        return self.answer.problem


# --- every answer


async def test_all_answers_of_one_life_name_the_same_instance_and_another_life_another(serve: Serve) -> None:
    lives = []
    for _ in range(2):
        async with serve(store=FakeStore()) as server:
            answers = [await server.ask("GET", "/healthz"), await server.ask("POST", "/nowhere")]
            lives.append({answer.headers["queue-instance"] for answer in answers})
    assert [len(life) for life in lives] == [1, 1]
    assert lives[0] != lives[1]


@one_engine
@pytest.mark.parametrize("given", ["a", "a" * 64, "0aZ._-", "-"])
async def test_a_sane_request_id_is_kept_and_is_in_the_log(server: Server, given: str) -> None:
    answer = await server.ask("GET", "/jobs/7", headers=[("X-Request-Id", given)])
    assert answer.headers["x-request-id"] == given
    assert [line["request_id"] for line in server.request_lines] == [given]


@one_engine
@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a,b", "ä", b"\xff", "a\tb", 'a"', "<a>", "a/b", "a:b"])
async def test_an_insane_request_id_is_replaced_and_the_new_one_is_in_the_log(
    server: Server, given: str | bytes
) -> None:
    answer = await server.ask("GET", "/jobs/7", headers=[("X-Request-Id", given)])
    made = answer.headers["x-request-id"]
    assert made != given
    assert [line["request_id"] for line in server.request_lines] == [made]


@one_engine
async def test_a_request_without_an_id_is_given_one_of_its_own(server: Server) -> None:
    made = {(await server.ask("GET", "/healthz")).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5


async def test_refusals_of_the_connection_have_instance_and_request_id_too(server: Server) -> None:
    named = ("X-Request-Id", "mine")
    too_large = await server.ask("POST", "/jobs/enqueue", b"", [named, ("Content-Length", str(64 * MIB))])
    assert too_large.problem == (413, "too_large", None)
    assert too_large.headers["x-request-id"] == "mine"
    garbage = await server.ask_raw(b"garbage\r\n\r\n")
    assert garbage.problem == (400, "malformed", None)
    assert [line["request_id"] for line in server.request_lines] == ["mine", garbage.headers["x-request-id"]]


async def test_a_connection_serves_many_requests(server: Server) -> None:
    client = server.connect()
    for number in range(1, 6):
        job(await client.ask("POST", "/jobs/enqueue", A), ID=number, Type="a", Status="QUEUED", state="queued")
    await client.leave()


async def test_requests_sent_ahead_are_answered_in_order(server: Server) -> None:
    client = server.connect()
    await client.send(build("POST", "/jobs/enqueue", A) * 3 + build("GET", "/jobs/3"))
    ids = [(await client.read()).json["ID"] for _ in range(4)]
    assert ids == [1, 2, 3, 3]


async def test_a_refusal_leaves_the_connection_open(server: Server) -> None:
    client = server.connect()
    assert (await client.ask("POST", "/jobs/enqueue", b"{")).status == 400
    assert (await client.ask("GET", "/nowhere")).status == 404
    assert (await client.ask("POST", "/jobs/enqueue", A)).status == 200


# --- enqueue


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_enqueue_answers_with_the_queued_job(server: Server, method: str) -> None:
    answer = await server.ask(method, "/jobs/enqueue", b'{"Type":"TIME_CRITICAL"}')
    job(answer, ID=1, Type="TIME_CRITICAL", Status="QUEUED", state="queued")
    assert answer.headers["queue-durability"] == server.engine.durability


@one_engine
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "ä"]
)
async def test_the_content_type_of_an_enqueue_does_not_matter(server: Server, content_type: str) -> None:
    answer = await server.ask("POST", "/jobs/enqueue", A, [("Content-Type", content_type)])
    assert answer.status == 200


async def test_an_enqueue_may_come_in_chunks(server: Server) -> None:
    chunks = b'c\r\n{"Type":"a"}\r\n0\r\n\r\n'
    answer = await server.ask("POST", "/jobs/enqueue", chunks, [("Transfer-Encoding", "chunked")])
    job(answer, ID=1, Type="a", Status="QUEUED", state="queued")


async def test_an_enqueue_may_ask_for_permission_first(server: Server) -> None:
    client = server.connect()
    await client.send(build("POST", "/jobs/enqueue", b"", [("Expect", "100-continue"), ("Content-Length", "12")]))
    await wait_all_tasks_blocked()
    assert await client.stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
    await client.send(A)
    assert (await client.read()).json["ID"] == 1


@one_engine
@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b'{"ID":7,"Type":"a","Status":"CONCLUDED","State":"dead","queue":"other"}', "a"),
        (b'{"Type":"a","type":1,"TYPE":2,"payload":3}', "a"),
        (b' \r\n\t{ "Type" : "a" } \n', "a"),
        (b'{"Type":"a","Type":"b"}', "b"),
        (b'{"T\\u0079pe":"\\u00e4\\ud83d\\ude00"}', "ä😀"),
        ('{"Type":"ä😀"}'.encode(), "ä😀"),
        (b'{"Type":" "}', " "),
        (b'{"Type":"\\"\\\\/<script>"}', '"\\/<script>'),
        ('{"Type":"\u2028\u202e"}'.encode(), "\u2028\u202e"),
    ],
)
async def test_a_type_is_any_text_and_other_keys_are_ignored(server: Server, body: bytes, type_: str) -> None:
    answer = await server.ask("POST", "/jobs/enqueue", body)
    assert answer.status == 200
    assert answer.json == {"ID": 1, "Type": type_, "Status": "QUEUED"}


@one_engine
@pytest.mark.parametrize("character", ["a", "ä", "😀"])
async def test_a_type_has_up_to_200_characters(server: Server, character: str) -> None:
    longest = await server.ask("POST", "/jobs/enqueue", json.dumps({"Type": character * 200}).encode())
    assert longest.json["Type"] == character * 200
    longer = await server.ask("POST", "/jobs/enqueue", json.dumps({"Type": character * 201}).encode())
    assert longer.problem == (400, "invalid", "Type")


PAYLOADS = [
    b"null",
    b"true",
    b"0",
    b"-0",
    b"-0.0e-00",
    b"1E400",
    b"123456789012345678901234567890.123456789012345678901234567890",
    b"9" * 4000,
    b'""',
    b"[]",
    b"{}",
    b'{ "b" : 1,\r\n\t"a":[ 1 ,2 ] }',
    b'{"a":1,"a":2}',
    b'"\\u0041\\n\\/\\ud83d\\ude00\\u0000"',
    b'"\x7f"',
    '"ä😀\u2028"'.encode(),
    b"[" * 900 + b"]" * 900,
]


@one_engine
@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload[:20].decode())
async def test_a_payload_comes_back_byte_for_byte_in_every_answer(server: Server, payload: bytes) -> None:
    enqueued = await server.ask("POST", "/jobs/enqueue", b'{"Payload": ' + payload + b' ,"Type":"a"}')
    assert enqueued.body == b'{"ID":1,"Type":"a","Status":"QUEUED","Payload":' + payload + b"}"
    assert (await server.ask("GET", "/jobs/1")).body == enqueued.body
    leased = await server.dequeue()
    assert leased.body == b'{"ID":1,"Type":"a","Status":"IN_PROGRESS","Payload":' + payload + b"}"
    concluded = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", leased.token)])
    assert concluded.body == b'{"ID":1,"Type":"a","Status":"CONCLUDED","Payload":' + payload + b"}"


# --- dequeue


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_dequeue_leases_the_first_job(server: Server, method: str) -> None:
    for type_ in ("NOT_TIME_CRITICAL", "TIME_CRITICAL"):
        await server.enqueue(json.dumps({"Type": type_}).encode())
    first = await server.ask(method, "/jobs/dequeue")
    job(first, ID=1, Type="NOT_TIME_CRITICAL", Status="IN_PROGRESS", state="in_progress")
    job(
        await server.ask(method, "/jobs/dequeue"), ID=2, Type="TIME_CRITICAL", Status="IN_PROGRESS", state="in_progress"
    )
    assert (await server.ask(method, "/jobs/dequeue")).problem == (404, "empty", None)


async def test_dequeue_tells_of_the_lease_in_headers(server: Server) -> None:
    await server.enqueue()
    await server.enqueue()
    headers = (await server.dequeue()).headers
    assert headers["cache-control"] == "no-store"
    assert headers["queue-attempt"] == "1"
    assert headers["queue-lease-seconds"] == "300"
    assert headers["queue-lease-expires"] == "2027-01-15T08:05:00.000Z"
    assert len(headers["queue-lease-token"]) >= 32
    fence = int(headers["queue-lease-fence"])
    assert EPOCH_SECONDS * 1_000_000 <= fence < 2**53
    assert int((await server.dequeue()).headers["queue-lease-fence"]) > fence


@pytest.mark.parametrize(
    ("seconds", "told", "expires"),
    [(0.25, "0.25", "2027-01-15T08:00:00.250Z"), (1_234_567.5, "1234567.5", "2027-01-29T14:56:07.500Z")],
)
async def test_the_length_of_a_lease_is_told_as_it_was_set(
    serve: Serve, seconds: float, told: str, expires: str
) -> None:
    async with serve(lease_seconds=seconds, lease_seconds_max=2_000_000.0) as server:
        await server.enqueue()
        headers = (await server.dequeue()).headers
        assert headers["queue-lease-seconds"] == told
        assert headers["queue-lease-expires"] == expires


async def test_a_stale_job_is_handed_out_again_as_another_attempt(server: Server) -> None:
    await server.enqueue()
    first = await server.dequeue()
    await trio.sleep(302)
    assert (await server.ask("GET", "/jobs/1")).json["Status"] == "QUEUED"
    second = await server.dequeue()
    assert second.json["ID"] == 1
    assert second.headers["queue-attempt"] == "2"
    assert second.token != first.token
    assert int(second.headers["queue-lease-fence"]) > int(first.headers["queue-lease-fence"])


@pytest.mark.parametrize(
    ("query", "status"), [("", 404), ("?empty=404", 404), ("?empty=204", 204), ("?empty=204&wait=0", 204)]
)
async def test_an_empty_queue_is_404_or_the_status_asked_for(server: Server, query: str, status: int) -> None:
    answer = await server.ask("POST", f"/jobs/dequeue{query}")
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    if status == 204:
        assert "content-length" not in answer.headers


@pytest.mark.parametrize(
    "query", ["", "?wait=0", "?wait=20", "?wait=19.999999999999996", "?empty=204", "?unknown=1&%ff=%zz"]
)
async def test_a_job_is_answered_alike_whatever_the_query(server: Server, query: str) -> None:
    await server.enqueue()
    assert (await server.ask("POST", f"/jobs/dequeue{query}")).json["ID"] == 1


async def test_head_never_leases(server: Server) -> None:
    await server.enqueue()
    before = await server.state([1])
    for query in ("", "?wait=1", "?empty=204"):
        answer = await server.ask("HEAD", f"/jobs/dequeue{query}")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
    assert await server.state([1]) == before


# --- dequeue with wait


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_who_waits_is_served_the_moment_a_job_appears(server: Server, method: str) -> None:
    async with trio.open_nursery() as nursery:
        waiter = await Asked.start(server, nursery, method, "/jobs/dequeue?wait=20")
        assert server.engine.statistics().waiters == 1
        await trio.sleep(5)
        assert await server.enqueue() == 1
    assert waiter.answer is not None
    job(waiter.answer, ID=1, Type="a", Status="IN_PROGRESS", state="in_progress")
    assert waiter.answer.token
    assert waiter.seconds == 5
    assert server.engine.statistics().waiters == 0


async def test_who_waits_longest_is_served_first(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        waiters = [await Asked.start(server, nursery, "POST", "/jobs/dequeue?wait=20") for _ in range(3)]
        for _ in waiters:
            await server.enqueue()
    assert [waiter.answer and waiter.answer.json["ID"] for waiter in waiters] == [1, 2, 3]


@pytest.mark.parametrize(("query", "status"), [("", 404), ("&empty=404", 404), ("&empty=204", 204)])
@pytest.mark.parametrize("wait", ["0.25", "7", "20", "0020.000"])
async def test_a_wait_that_runs_out_is_an_empty_answer_on_time(
    server: Server, wait: str, query: str, status: int
) -> None:
    async with trio.open_nursery() as nursery:
        waiter = await Asked.start(server, nursery, "POST", f"/jobs/dequeue?wait={wait}{query}")
    assert waiter.answer is not None
    assert waiter.answer.status == status
    assert waiter.seconds == pytest.approx(float(wait))
    assert server.engine.statistics().waiters == 0


async def test_a_job_that_goes_stale_is_handed_to_who_waits(server: Server) -> None:
    await server.enqueue()
    await server.dequeue()
    await trio.sleep(295)
    answer = await server.ask("POST", "/jobs/dequeue?wait=20")
    assert (answer.json["ID"], answer.headers["queue-attempt"]) == (1, "2")


@pytest.mark.parametrize("half", [False, True], ids=["closes", "half-closes"])
async def test_who_leaves_while_waiting_gets_no_job_and_the_next_does(server: Server, half: bool) -> None:
    async with trio.open_nursery() as nursery:
        leaver = server.connect()
        await leaver.send(build("POST", "/jobs/dequeue?wait=20"))
        await wait_all_tasks_blocked()
        waiter = await Asked.start(server, nursery, "POST", "/jobs/dequeue?wait=20")
        assert server.engine.statistics().waiters == 2
        await (leaver.stream.send_eof() if half else leaver.leave())
        await wait_all_tasks_blocked()
        assert server.engine.statistics().waiters == 1
        await server.enqueue()
    assert waiter.answer is not None
    assert (waiter.answer.json["ID"], waiter.answer.headers["queue-attempt"]) == (1, "1")
    assert server.engine.statistics().waiters == 0


async def test_a_job_that_comes_after_the_last_waiter_left_stays_queued(server: Server) -> None:
    leaver = server.connect()
    await leaver.send(build("POST", "/jobs/dequeue?wait=20"))
    await wait_all_tasks_blocked()
    await leaver.leave()
    await wait_all_tasks_blocked()
    await server.enqueue()
    assert (await server.ask("GET", "/jobs/1")).json["Status"] == "QUEUED"


async def test_a_connection_serves_on_after_a_wait(server: Server) -> None:
    client = server.connect()
    assert (await client.ask("POST", "/jobs/dequeue?wait=3")).status == 404
    assert (await client.ask("POST", "/jobs/enqueue", A)).status == 200
    assert (await client.ask("POST", "/jobs/dequeue?wait=3")).status == 200
    assert (await client.ask("POST", "/jobs/dequeue?wait=3")).status == 404


# --- drain


@pytest.mark.parametrize(("query", "status"), [("", 404), ("&empty=204", 204)])
async def test_a_drain_sends_home_who_waits(server: Server, query: str, status: int) -> None:
    async with trio.open_nursery() as nursery:
        waiters = [await Asked.start(server, nursery, "POST", f"/jobs/dequeue?wait=20{query}") for _ in range(2)]
        await server.drain()
    for waiter in waiters:
        assert waiter.answer is not None
        assert waiter.answer.status == status
        assert waiter.answer.headers["connection"] == "close"
        assert waiter.seconds == 0
        assert await waiter.client.closed()


async def test_a_drain_refuses_dequeues_and_serves_the_rest(server: Server) -> None:
    await server.enqueue()
    leased = await server.dequeue()
    await server.enqueue()
    server.app.draining = True
    server.engine.drain()
    client = server.connect()
    refused = await client.ask("POST", "/jobs/dequeue")
    assert refused.problem == (503, "draining", None)
    assert refused.headers["connection"] == "close"
    assert await client.closed()
    assert (await server.ask("POST", "/jobs/dequeue?wait=20")).problem == (503, "draining", None)
    for answer in (
        await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", leased.token)]),
        await server.ask("POST", "/jobs/enqueue", A),
        await server.ask("GET", "/jobs/2"),
        await server.ask("GET", "/healthz"),
    ):
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    ready = await server.ask("GET", "/readyz")
    assert ready.problem == (503, "draining", None)
    assert ready.headers["connection"] == "close"


async def test_a_closed_queue_is_draining_for_everyone(server: Server) -> None:
    server.engine.close()
    for method, target in (("POST", "/jobs/enqueue"), ("GET", "/jobs/1"), ("PUT", "/jobs/1/conclude")):
        assert (await server.ask(method, target, A)).problem == (503, "draining", None)


async def test_an_engine_that_fails_leaves_the_outcome_unknown(serve: Serve, store: FakeStore) -> None:
    store.failure = OSError("the disk is gone")
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with serve() as server:
            assert (await server.ask("POST", "/jobs/enqueue", A)).problem == (503, "outcome_unknown", None)
            await trio.sleep_forever()


# --- conclude


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_the_token_of_the_lease_concludes(server: Server, method: str) -> None:
    await server.enqueue()
    token = (await server.dequeue()).token
    answer = await server.ask(method, "/jobs/1/conclude", headers=[("Queue-Lease-Token", token)])
    job(answer, ID=1, Type="a", Status="CONCLUDED", state="concluded")
    job(await server.ask("GET", "/jobs/1"), ID=1, Type="a", Status="CONCLUDED", state="concluded")


async def test_the_token_that_concluded_may_say_so_again(server: Server) -> None:
    await server.enqueue()
    token = ("Queue-Lease-Token", (await server.dequeue()).token)
    first = await server.ask("POST", "/jobs/1/conclude", headers=[token])
    before = await server.state([1])
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[token])).body == first.body
    assert await server.state([1]) == before


async def test_a_token_alone_decides_whatever_the_consumer(server: Server) -> None:
    await server.enqueue()
    token = (await server.dequeue([("Queue-Consumer", "w1")])).token
    headers = [("Queue-Lease-Token", token), ("Queue-Consumer", "w2")]
    assert (await server.ask("POST", "/jobs/1/conclude", headers=headers)).status == 200
    wrong = [("Queue-Lease-Token", "x"), ("Queue-Consumer", "w1")]
    assert (await server.ask("POST", "/jobs/1/conclude", headers=wrong)).problem == (409, "lease_lost", "token")


@one_engine
@pytest.mark.parametrize("state", ["queued", "in_progress", "concluded", "cancelled"])
@pytest.mark.parametrize("token", ["", "x", "0" * 46, "f" * 46, "ä" * 46, b"\xff" * 46, "-1" + "0" * 44, "0x" * 23])
async def test_any_other_token_is_lease_lost(server: Server, state: str, token: str | bytes) -> None:
    await server.enqueue()
    if state in {"in_progress", "concluded"}:
        await server.dequeue()
    if state == "concluded":
        await server.ask("POST", "/jobs/1/conclude")
    if state == "cancelled":
        await server.engine.execute(Cancel("default", [1]))
    before = await server.state([1])
    answer = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token)])
    assert answer.problem == (409, "lease_lost", "token")
    assert await server.state([1]) == before


async def test_the_token_of_another_job_is_lease_lost(server: Server) -> None:
    await server.enqueue()
    await server.enqueue()
    first, second = (await server.dequeue()).token, (await server.dequeue()).token
    crossed = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", second)])
    assert crossed.problem == (409, "lease_lost", "token")
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", first)])).status == 200


async def test_a_token_differs_from_another_in_upper_case(server: Server) -> None:
    await server.enqueue()
    token = (await server.dequeue()).token
    assert token != token.upper()
    shouted = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token.upper())])
    assert shouted.problem == (409, "lease_lost", "token")


async def test_a_late_conclude_is_accepted_before_the_sweep(serve: Serve) -> None:
    # Sweeps are due when a lease ends, so it takes a process that was stopped meanwhile to be later than that.
    async with serve() as server:
        await server.enqueue()
        token = (await server.dequeue()).token
        jump(301)
        answer = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token)])
        job(answer, ID=1, Type="a", Status="CONCLUDED", state="concluded")


async def test_a_late_conclude_is_lease_lost_after_the_sweep(server: Server) -> None:
    await server.enqueue()
    late = [("Queue-Lease-Token", (await server.dequeue()).token)]
    await trio.sleep(302)
    assert (await server.ask("POST", "/jobs/1/conclude", headers=late)).problem == (409, "lease_lost", "token")
    assert (await server.ask("POST", "/jobs/1/conclude")).problem == (409, "not_in_progress", None)
    second = [("Queue-Lease-Token", (await server.dequeue()).token)]
    assert (await server.ask("POST", "/jobs/1/conclude", headers=late)).problem == (409, "lease_lost", "token")
    assert (await server.ask("POST", "/jobs/1/conclude", headers=second)).status == 200
    assert (await server.ask("POST", "/jobs/1/conclude", headers=late)).problem == (409, "lease_lost", "token")


ALIASES = ["QUEUE_CONSUMER", "Queue-Consumer", "X-Queue-Consumer", "queue_consumer", "x-queue-consumer"]


@one_engine
@pytest.mark.parametrize("given", ALIASES)
@pytest.mark.parametrize("shown", ALIASES)
async def test_a_consumer_may_use_any_alias_at_dequeue_and_at_conclude(server: Server, given: str, shown: str) -> None:
    await server.enqueue()
    await server.dequeue([(given, "w1")])
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[(shown, "w1")])).status == 200
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[(shown, "w1")])).status == 200


@pytest.mark.parametrize("shown", [[], [("Queue-Consumer", "w2")], [("Queue-Consumer", "W1")]])
async def test_without_a_token_another_consumer_may_not_conclude(server: Server, shown: list[tuple[str, str]]) -> None:
    await server.enqueue()
    await server.dequeue([("Queue-Consumer", "w1")])
    before = await server.state([1])
    assert (await server.ask("POST", "/jobs/1/conclude", headers=shown)).problem == (403, "other_consumer", "consumer")
    assert await server.state([1]) == before
    await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Consumer", "w1")])
    assert (await server.ask("POST", "/jobs/1/conclude", headers=shown)).problem == (403, "other_consumer", "consumer")


@pytest.mark.parametrize("shown", [[], [("Queue-Consumer", "w2")]])
async def test_anyone_may_conclude_a_job_dequeued_without_a_name(server: Server, shown: list[tuple[str, str]]) -> None:
    await server.enqueue()
    await server.dequeue()
    for _ in range(2):
        answer = await server.ask("POST", "/jobs/1/conclude", headers=shown)
        job(answer, ID=1, Type="a", Status="CONCLUDED", state="concluded")


@one_engine
@pytest.mark.parametrize("name", ["a", "a" * 200, "ä" * 200, "😀" * 200, "Ä Ö\u2028 ,;=\"'<>"])
async def test_a_consumers_name_is_up_to_200_characters_in_utf8(server: Server, name: str) -> None:
    await server.enqueue()
    await server.dequeue([("Queue-Consumer", name.encode())])
    assert server.request_lines[-1]["consumer"] == name
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[("QUEUE_CONSUMER", name.encode())])).status == 200


async def test_aliases_that_agree_are_one_name(server: Server) -> None:
    await server.enqueue()
    await server.dequeue([(alias, "w1") for alias in ALIASES])
    assert (await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Consumer", "w1")])).status == 200


async def test_a_queued_or_cancelled_job_cannot_be_concluded_without_a_token(server: Server) -> None:
    await server.enqueue()
    assert (await server.ask("POST", "/jobs/1/conclude")).problem == (409, "not_in_progress", None)
    await server.engine.execute(Cancel("default", [1]))
    assert (await server.ask("POST", "/jobs/1/conclude")).problem == (409, "not_in_progress", None)


# --- one job


async def test_a_job_is_shown_in_each_of_its_states(server: Server) -> None:
    await server.enqueue()
    job(await server.ask("GET", "/jobs/1"), ID=1, Type="a", Status="QUEUED", state="queued")
    leased = await server.dequeue()
    read = await server.ask("GET", "/jobs/1")
    job(read, ID=1, Type="a", Status="IN_PROGRESS", state="in_progress")
    assert not [name for name in read.headers if "lease" in name]
    release = ReleaseClaim("default", 1, leased.token, delay_seconds=60.0)
    await server.engine.execute(Release([release]))
    job(await server.ask("GET", "/jobs/1"), ID=1, Type="a", Status="QUEUED", state="scheduled")
    await server.engine.execute(Cancel("default", [1]))
    cancelled = await server.ask("GET", "/jobs/1")
    job(cancelled, ID=1, Type="a", Status="CONCLUDED", State="cancelled", state="cancelled")


async def test_a_look_at_a_job_with_head_has_the_headers_alone(server: Server) -> None:
    await server.enqueue()
    answer = await server.ask("HEAD", "/jobs/1")
    assert (answer.status, answer.headers["queue-state"]) == (200, "queued")
    assert answer.headers["content-length"] == str(len(b'{"ID":1,"Type":"a","Status":"QUEUED"}'))


@pytest.mark.parametrize("id_", ["0", "1", "2", "9007199254740991"])
async def test_a_job_that_never_was_is_unknown(server: Server, id_: str) -> None:
    assert (await server.ask("GET", f"/jobs/{id_}")).problem == (404, "unknown_job", "id")
    assert (await server.ask("POST", f"/jobs/{id_}/conclude")).problem == (404, "unknown_job", "id")
    headers = [("Queue-Lease-Token", "x")]
    assert (await server.ask("POST", f"/jobs/{id_}/conclude", headers=headers)).problem == (404, "unknown_job", "id")


async def test_a_job_past_its_retention_is_forgotten(serve: Serve) -> None:
    async with serve(retention_seconds=10) as server:
        await server.enqueue()
        token = [("Queue-Lease-Token", (await server.dequeue()).token)]
        await server.ask("POST", "/jobs/1/conclude", headers=token)
        await trio.sleep(12)
        assert (await server.ask("GET", "/jobs/1")).problem == (404, "forgotten", "id")
        assert (await server.ask("POST", "/jobs/1/conclude", headers=token)).problem == (404, "forgotten", "id")
        assert (await server.ask("GET", "/jobs/2")).problem == (404, "unknown_job", "id")


async def test_a_percent_encoded_letter_or_digit_is_that_letter_or_digit(server: Server) -> None:
    await server.enqueue()
    assert (await server.ask("GET", "/jobs/%31")).json["ID"] == 1
    assert (await server.ask("GET", "/%6Aobs/%64equeue")).json["ID"] == 1


# --- methods and paths

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FROB"]
METHODS += ["get", "Post", "pUT", "patch", "M-SEARCH", "0"]  # they tell capitals from others (RFC 9110, section 9.1)

ALLOWED = {
    "/jobs/enqueue": "POST, PUT",
    "/jobs/dequeue": "GET, POST",
    "/jobs/1": "GET, HEAD",
    "/jobs/1/conclude": "PATCH, POST, PUT",
    "/healthz": "GET, HEAD",
    "/readyz": "GET, HEAD",
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_every_other_method_is_405_with_the_methods_of_the_path_and_does_nothing(
    server: Server, path: str
) -> None:
    await server.enqueue()
    before = await server.state([1, 2])
    for method in METHODS:
        if method in ALLOWED[path].split(", "):
            continue
        answer = await server.ask(method, path, b'{"Type":"b"}')
        assert (method, answer.status, answer.headers["allow"]) == (method, 405, ALLOWED[path])
        if method != "HEAD":
            assert answer.problem == (405, "method_not_allowed", None)
    assert await server.state([1, 2]) == before


@one_engine
@pytest.mark.parametrize(
    "path",
    [
        "/ui/",
        "//",
        "//jobs/dequeue",
        "//jobs/1",
        "//healthz",
        "///jobs/dequeue",
        "/jobs",
        "/jobs/",
        "/jobs//dequeue",
        "/jobs/dequeue/",
        "/jobs/enqueue/",
        "/jobs/1/",
        "/jobs//1",
        "/jobs/1//conclude",
        "/jobs/1/conclude/",
        "/jobs/1/conclude/x",
        "/jobs//conclude",
        "/jobs/./dequeue",
        "/./jobs/dequeue",
        "/jobs/../jobs/dequeue",
        "/jobs/%2e%2e/jobs/dequeue",
        "/jobs%2Fdequeue",
        "/jobs%2fenqueue",
        "/jobs%2F1",
        "/%2Fjobs/dequeue",
        "%2Fjobs/dequeue",
        "/jobs/1%2Fconclude",
        "/JOBS/dequeue",
        "/jobs\\dequeue",
        "/healthz/",
        "/readyz/",
        "/healthz%00",
        "/v1",
        "/metrics/",
        "/static/x",
        "/favicon.ico",
    ],
)
async def test_a_path_means_what_it_says_and_any_other_is_refused(server: Server, path: str) -> None:
    await server.enqueue()
    before = await server.state([1, 2])
    for method in ("GET", "POST", "HEAD"):
        answer = await server.ask(method, path, b'{"Type":"b"}' if method == "POST" else b"")
        assert answer.status in REFUSED_ELSEWHERE.get(path, {404}), (method, path, answer)
        assert "location" not in answer.headers
    assert await server.state([1, 2]) == before


# A slash that is encoded is a part of its segment, here of an id; and a target begins with a slash, or it is none.
REFUSED_ELSEWHERE = {"/jobs/1%2Fconclude": {400, 405}, "%2Fjobs/dequeue": {400}}


@one_engine
async def test_a_whole_url_as_target_is_its_path(server: Server) -> None:
    await server.enqueue()
    assert (await server.ask("GET", f"http://{HOST}/jobs/1")).status == 200
    elsewhere = await server.ask("GET", "http://queue.example/jobs/1")
    assert elsewhere.problem == (403, "foreign_host", "Host")


@one_engine
async def test_an_upgrade_is_not_taken_up(server: Server) -> None:
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "x" * 24)]
    assert (await server.ask("GET", "/healthz", headers=headers)).json == {"status": "alive"}


# --- host and origin

LOOPBACK = [
    "localhost",
    "LocalHost:8080",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.255.255.254:65535",
    "[::1]",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]:8080",
    "localhost:",
]

FOREIGN = [
    "queue.example",
    "queue.example:8080",
    "localhost.queue.example",
    "127.0.0.1.queue.example",
    "localhost@queue.example",
    "localhost:x@queue.example",
    "queue.example@localhost",
    "queue.example#localhost",
    "localhost#.queue.example",
    "localhost/queue.example",
    "localhost?.queue.example",
    "localhost\\.queue.example",
    "localhost,queue.example",
    "localhost:8080:8080",
    "localhost:x",
    "[::1]queue.example",
    "[::1].queue.example:80",
    "[queue.example]",
    "[::1",
    "::1",
    "[::2]",
    "0.0.0.0",  # noqa: S104 - a name like the others
    "[::]",
    "10.0.0.1",
    "192.168.0.1:8080",
    "169.254.169.254",
    "127.1",
    "2130706433",
    "0x7f000001",
    "[::ffff:10.0.0.1]",
    "localhost.",
    "%6cocalhost",
    "a" * 64,
    "a" * 64 + ".example",
    "a..b",
    "..",
    "ä",
    b"\xff",
    "１２７.0.0.1".encode(),
]


@one_engine
@pytest.mark.parametrize("host", LOOPBACK)
async def test_a_loopback_host_is_served(server: Server, host: str) -> None:
    assert (await server.ask("POST", "/jobs/enqueue", A, [("Host", host)])).status == 200


@one_engine
@pytest.mark.parametrize("host", FOREIGN)
async def test_another_host_is_refused_before_anything_is_done(server: Server, host: str | bytes) -> None:
    await server.enqueue()
    before = await server.state([1, 2])
    for method, target in (
        ("POST", "/jobs/enqueue"),
        ("GET", "/jobs/dequeue"),
        ("POST", "/jobs/1/conclude"),
        ("GET", "/jobs/1"),
        ("GET", "/healthz"),
        ("GET", "/nowhere"),
        ("DELETE", "/jobs/1"),
    ):
        answer = await server.ask(method, target, A, [("Host", host)])
        assert answer.problem == (403, "foreign_host", "Host")
    assert await server.state([1, 2]) == before


@one_engine
@pytest.mark.parametrize("host", [*LOOPBACK, *FOREIGN])
async def test_an_open_server_answers_to_every_host(host: str | bytes, serve: Serve) -> None:
    async with serve(open=True) as server:
        assert (await server.ask("POST", "/jobs/enqueue", A, [("Host", host)])).status == 200


FOREIGN_PAGES = [
    ("Origin", "null"),
    ("Origin", ""),
    ("Origin", "http://page.example"),
    ("Origin", "https://page.example"),
    ("Origin", "http://127.0.0.1"),
    ("Origin", "http://127.0.0.1:8081"),
    ("Origin", "http://localhost:8080"),
    ("Origin", f"http://{HOST}.page.example"),
    ("Origin", f"http://{HOST}@page.example"),
    ("Origin", f"http://page.example/{HOST}"),
    ("Origin", f"http://page.example#{HOST}"),
    ("Origin", HOST),
    ("Origin", "http://["),
    ("Origin", b"http://\xff"),
    ("Origin", "file://"),
    ("Origin", "chrome-extension://abc"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Site", "Cross-Site"),
    ("Sec-Fetch-Site", "same-site"),  # a page of another port of this machine
    ("Sec-Fetch-Site", "unheard-of"),
]


@one_engine
@pytest.mark.parametrize("header", FOREIGN_PAGES)
@pytest.mark.parametrize("open_", [False, True], ids=["loopback", "open"])
async def test_a_page_of_another_site_is_refused_before_anything_is_done(
    header: tuple[str, str | bytes], open_: bool, serve: Serve
) -> None:
    async with serve(open=open_) as server:
        await server.enqueue()
        before = await server.state([1, 2])
        for method, target in (
            ("POST", "/jobs/enqueue"),
            ("GET", "/jobs/dequeue"),
            ("POST", "/jobs/1/conclude"),
            ("OPTIONS", "/jobs/enqueue"),
        ):
            answer = await server.ask(method, target, A, [header])
            assert answer.problem == (403, "foreign_origin", header[0])
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert await server.state([1, 2]) == before


@one_engine
@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", f"http://{HOST}")],
        [("Origin", f"HTTP://{HOST}")],
        [("Host", "localhost:8080"), ("Origin", "http://localhost:8080")],
        [("Host", "LOCALHOST:8080"), ("Origin", "http://localhost:8080")],
        [("Host", "[::1]:8080"), ("Origin", "http://[::1]:8080")],
        [("Sec-Fetch-Site", "same-origin"), ("Origin", f"http://{HOST}")],
        [("Sec-Fetch-Site", "none")],
    ],
)
async def test_a_page_of_the_server_itself_and_a_person_are_served(
    server: Server, headers: list[tuple[str, str]]
) -> None:
    assert (await server.ask("POST", "/jobs/enqueue", A, headers)).status == 200


@one_engine
async def test_a_request_of_http_1_0_without_host_is_served_and_its_connection_closed(server: Server) -> None:
    client = server.connect()
    await client.send(b"POST /jobs/enqueue HTTP/1.0\r\nContent-Length: 12\r\n\r\n" + A)
    assert (await client.read()).status == 200
    assert await client.closed()


# --- limits, at n and at n + 1


def payload_of(size: int) -> bytes:
    """An enqueue whose payload has so many bytes."""
    return b'{"Type":"a","Payload":"' + b"x" * (size - 2) + b'"}'


@one_engine
@pytest.mark.parametrize("size", [2, 256 * KIB, 16 * MIB])
async def test_a_payload_has_up_to_payload_bytes_max(serve: Serve, size: int) -> None:
    async with serve(payload_bytes_max=size, request_bytes_max=max(2 * size, KIB)) as server:
        before = await server.state([1])
        larger = await server.ask("POST", "/jobs/enqueue", payload_of(size + 1))
        assert larger.problem == (413, "too_large", "Payload")
        assert await server.state([1]) == before
        assert (await server.ask("POST", "/jobs/enqueue", payload_of(size))).status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_has_up_to_request_bytes_max(serve: Serve, chunked: bool) -> None:
    def request(size: int) -> bytes:
        body = A + b" " * (size - len(A))
        if not chunked:
            return build("POST", "/jobs/enqueue", body)
        chunks = f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        return build("POST", "/jobs/enqueue", chunks, [("Transfer-Encoding", "chunked")])

    async with serve(payload_bytes_max=KIB, request_bytes_max=2 * KIB) as server:
        before = await server.state([1])
        client = server.connect()
        await client.send(request(2 * KIB + 1))
        larger = await client.read()
        assert larger.problem == (413, "too_large", None)
        assert larger.headers["connection"] == "close"
        assert await server.state([1]) == before
        assert (await server.ask_raw(request(2 * KIB))).status == 200


@one_engine
@pytest.mark.parametrize("target", ["/jobs/dequeue", "/jobs/1/conclude", "/nowhere", "/healthz"])
async def test_a_body_is_limited_on_every_path(serve: Serve, target: str) -> None:
    async with serve(payload_bytes_max=KIB, request_bytes_max=KIB) as server:
        await server.enqueue()
        before = await server.state([1])
        assert (await server.ask("POST", target, b" " * (KIB + 1))).problem == (413, "too_large", None)
        assert await server.state([1]) == before


async def test_up_to_queued_jobs_max_jobs_wait_or_run(serve: Serve) -> None:
    async with serve(queued_jobs_max=3) as server:
        for _ in range(3):
            await server.enqueue()
        before = await server.state([3, 4])
        assert (await server.ask("POST", "/jobs/enqueue", A)).problem == (429, "queue_full", None)
        assert await server.state([3, 4]) == before
        leased = await server.dequeue()
        assert (await server.ask("POST", "/jobs/enqueue", A)).problem == (429, "queue_full", None)
        shown = {"Queue-Lease-Token": leased.headers["queue-lease-token"]}
        assert (await server.ask("POST", "/jobs/1/conclude", headers=list(shown.items()))).status == 200
        assert await server.enqueue() == 4


async def test_up_to_memory_bytes_max_bytes_of_payloads_are_kept(serve: Serve) -> None:
    async with serve(memory_bytes_max=2 * KIB, retention_seconds=0) as server:
        await server.enqueue(payload_of(KIB))
        await server.enqueue(payload_of(KIB - 1))
        before = await server.state([1, 2, 3])
        assert (await server.ask("POST", "/jobs/enqueue", payload_of(2))).problem == (429, "memory_full", None)
        assert await server.state([1, 2, 3]) == before
        assert await server.enqueue(b'{"Type":"a","Payload":0}') == 3
        assert await server.enqueue() == 4
        token = (await server.dequeue()).token
        await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", token)])
        await trio.sleep(2)
        assert await server.enqueue(payload_of(KIB)) == 5


async def test_a_queue_more_than_queues_max_is_refused(serve: Serve) -> None:
    async with serve(queues_max=1) as server:
        await server.engine.execute(Enqueue("other", [NewJob("a")]))
        assert (await server.ask("POST", "/jobs/enqueue", A)).problem == (429, "too_many_queues", "queue")
        assert (await server.ask("POST", "/jobs/dequeue")).problem == (404, "empty", None)


async def test_up_to_waiters_max_dequeues_wait(serve: Serve) -> None:
    async with serve(waiters_max=2) as server, trio.open_nursery() as nursery:
        waiters = [await Asked.start(server, nursery, "POST", "/jobs/dequeue?wait=20") for _ in range(2)]
        answer = await server.ask("POST", "/jobs/dequeue?wait=20&empty=204")
        assert answer.problem == (503, "too_many_waiters", None)
        assert (await server.ask("POST", "/jobs/dequeue?wait=0")).problem == (404, "empty", None)
        await server.enqueue()
        await wait_all_tasks_blocked()
        waiters.append(await Asked.start(server, nursery, "POST", "/jobs/dequeue?wait=20"))
        assert server.engine.statistics().waiters == 2
        nursery.cancel_scope.cancel()


async def test_nobody_waits_where_waiters_max_is_zero(serve: Serve) -> None:
    async with serve(waiters_max=0) as server:
        assert (await server.ask("POST", "/jobs/dequeue?wait=1")).problem == (503, "too_many_waiters", None)
        await server.enqueue()
        assert (await server.ask("POST", "/jobs/dequeue?wait=1")).status == 200


async def test_a_dequeue_waits_up_to_wait_seconds_max(serve: Serve) -> None:
    async with serve(wait_seconds_max=1.5) as server:
        assert (await server.ask("POST", "/jobs/dequeue?wait=1.500000001")).problem == (400, "invalid", "wait")
        assert (await server.ask("POST", "/jobs/dequeue?wait=1.5")).problem == (404, "empty", None)
        assert trio.current_time() == pytest.approx(1.5)


async def test_up_to_inbox_requests_max_commands_wait(serve: Serve, store: FakeStore) -> None:
    fit = 4  # three that wait, and one that is being carried out
    async with serve(inbox_requests_max=3) as server:
        store.hold()
        async with trio.open_nursery() as nursery:
            asked = [await Asked.start(server, nursery, "POST", "/jobs/enqueue", A) for _ in range(fit)]
            assert [one.answer for one in asked] == [None] * fit
            for method, target in (
                ("POST", "/jobs/enqueue"),
                ("GET", "/jobs/1"),
                ("POST", "/jobs/dequeue"),
                ("POST", "/jobs/dequeue?wait=9"),
                ("POST", "/jobs/1/conclude"),
            ):
                assert (await server.ask(method, target, A)).problem == (503, "busy", None)
            assert (await server.ask("GET", "/healthz")).status == 200
            assert (await server.ask("GET", "/readyz")).status == 200
            store.let_go()
        assert [one.answer and one.answer.json["ID"] for one in asked] == list(range(1, fit + 1))
        assert await server.enqueue() == fit + 1


@one_engine
async def test_a_head_of_more_than_16_kib_is_refused(server: Server) -> None:
    assert (await server.ask("GET", "/healthz", headers=[("X", "x" * 15 * KIB)])).status == 200
    answer = await server.ask("GET", "/healthz", headers=[("X", "x" * 16 * KIB)])
    assert answer.problem == (431, "headers_too_large", None)
    assert (await server.ask("GET", "/" + "x" * 16 * KIB)).problem == (431, "headers_too_large", None)


# --- healthz, readyz, bugs


@one_engine
@pytest.mark.parametrize(("path", "status"), [("/healthz", "alive"), ("/readyz", "ready")])
async def test_a_server_that_takes_work_is_alive_and_ready(server: Server, path: str, status: str) -> None:
    answer = await server.ask("GET", path)
    assert answer.body == b'{"status":"' + status.encode() + b'"}'
    assert (await server.ask("HEAD", path)).status == 200


async def test_a_bug_in_a_handler_is_answered_and_logged_with_its_traceback(server: Server) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("planted")

    server.app.view_functions["ops.healthz"] = broken  # type: ignore[assignment] # that is the bug
    client = server.connect()
    answer = await client.ask("GET", "/healthz?secret=1")
    assert answer.problem == (500, "internal", None)
    assert b"planted" not in answer.body
    assert b"ZeroDivision" not in answer.body
    assert (await client.ask("GET", "/readyz")).status == 200
    (failure,) = [line for line in server.log if line["level"] == "error"]
    assert failure["event"] == "handler_failed"
    assert failure["request_id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError: planted" in failure["traceback"]
    assert "in broken" in failure["traceback"]
    assert [line["status"] for line in server.request_lines] == [500, 200]


async def test_a_handler_that_answers_nothing_is_a_bug_too(server: Server) -> None:
    async def silent() -> None:
        pass

    server.app.view_functions["ops.healthz"] = silent  # type: ignore[assignment] # that is the bug
    assert (await server.ask("GET", "/healthz")).problem == (500, "internal", None)
    assert [line["level"] for line in server.log if "traceback" in line] == ["error"]


async def test_a_job_leased_by_other_means_is_seen_by_the_classic_routes(server: Server) -> None:
    await server.enqueue()
    (lease,) = (await server.engine.execute(Dequeue("default", consumer="w1"))).leases
    await server.engine.execute(Sweep())
    answer = await server.ask("POST", "/jobs/1/conclude", headers=[("Queue-Lease-Token", lease.token)])
    assert answer.status == 200
