"""`GET /v1/events`: what becomes of jobs is told after it is stored, wholly or with a gap that is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from queue_actor.changes import Changes
from queue_actor.commands import Enqueue, NewJob
from queue_actor.engine import Engine
from queue_actor.errors import TooManyReaders
from queue_actor.events import LINGER_SECONDS, LOOKED_AT_EVENTS_MAX, READ_EVENTS_MAX, EventLog, Gap
from queue_actor.jobs import Change, Job, JobState
from queue_actor.settings import Settings
from tests.contract import v1
from tests.contract.conftest import Serve
from tests.contract.following import following
from tests.contract.stack import Server, serving
from tests.contract.tokens import Tokens, bearer
from tests.fakes import FakeClock, FakeStore
from tests.opening import in_memory
from tests.simulation.wires import connection
from web.callers import Caller
from web.connections import SEND_SECONDS
from web.events import HEARTBEAT_SECONDS, PACE_SECONDS, Stream, wants

pytestmark = pytest.mark.virtual_time


async def told(seconds: float = 2 * PACE_SECONDS) -> None:
    """Let everything that has happened be told."""
    await trio.sleep(seconds)


async def test_the_life_of_a_job_is_told_transition_by_transition(server: Server) -> None:
    async with following(server) as follower:
        id_, token = await _leased(server)
        await v1.post(server, f"{v1.Q}/jobs/{id_}/fail", {"token": token, "retry": False, "error": {"message": "no"}})
        await told()

    enqueued, dequeued, failed = follower.of("job")
    assert follower.told[0].event == "open"
    assert enqueued == {
        "queue": "q",
        "id": id_,
        "type": "a",
        "verb": "enqueue",
        "from": None,
        "to": "queued",
        "attempt": 0,
        "consumer": None,
        "reason": None,
        "at": "2027-01-15T08:00:00.000Z",
    }
    assert (dequeued["from"], dequeued["to"], dequeued["attempt"], dequeued["consumer"]) == (
        *("queued", "in_progress", 1, "w"),
    )
    assert (failed["verb"], failed["to"], failed["reason"]) == ("fail", "dead", "killed")
    assert follower.headers["content-type"] == "text/event-stream"


async def _leased(server: Server) -> tuple[int, str]:
    await v1.enqueue(server, {"type": "a", "payload": "secret"})
    return await v1.lease(server, consumer="w")


async def test_nothing_is_told_before_it_is_stored(server: Server, store: FakeStore) -> None:
    async with following(server) as follower:
        store.hold()
        async with trio.open_nursery() as nursery:
            await v1.Asked.start(nursery, server, "POST", f"{v1.Q}/enqueue", {"jobs": [{"type": "a"}]})
            await told(1)
            assert follower.verbs == []
            store.let_go()
        await told()
        assert follower.verbs == [("q", 1, "enqueue")]


async def test_payloads_results_and_errors_are_not_told(server: Server) -> None:
    async with following(server) as follower:
        id_, token = await _leased(server)
        await v1.post(server, f"{v1.Q}/jobs/{id_}/conclude", {"token": token, "result": "secret"})
        await told()

    assert len(follower.verbs) == 3
    assert "secret" not in follower.text
    assert token not in follower.text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?queue=a:1", [("a:1", "enqueue"), ("a:1", "cancel")]),
        ("?queue=a:*", [("a:1", "enqueue"), ("a:1", "cancel"), ("a:2", "enqueue")]),
        ("?queue=*&type=other", [("b", "enqueue")]),
        ("?state=cancelled,dead", [("a:1", "cancel")]),
    ],
)
async def test_it_tells_what_is_asked_for(server: Server, query: str, expected: list[tuple[str, str]]) -> None:
    async with following(server, query) as follower:
        (id_,) = await v1.enqueue(server, queue="a:1")
        await v1.post(server, f"/v1/queues/a:1/jobs/{id_}/cancel")
        await v1.enqueue(server, queue="a:2")
        await v1.enqueue(server, {"type": "other"}, queue="b")
        await told()

    assert [(queue, verb) for queue, _, verb in follower.verbs] == expected


async def test_it_can_tell_which_queues_have_moved_and_no_more(server: Server) -> None:
    async with following(server, "?shape=queues") as follower:
        await v1.enqueue(server, *[{"type": "a"}] * 5, queue="b")
        await v1.enqueue(server, queue="a")
        await told()

    assert {name for data in follower.of("queues") for name in data["queues"]} == {"a", "b"}
    assert len(follower.of("queues")) <= 2
    assert follower.of("job") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?queue=-", "queue"),
        ("?queue=a**", "queue"),
        ("?state=none", "state"),
        ("?shape=x", "shape"),
        ("?wait_seconds=21", "wait_seconds"),
    ],
)
async def test_what_makes_no_sense_is_refused(server: Server, query: str, field: str) -> None:
    assert await v1.refused(server, "GET", f"/v1/events{query}") == (400, "invalid", field)


@pytest.mark.parametrize("id_", ["", "x", "a.b.c", "life.00000000.-1"])
async def test_an_id_that_is_none_is_refused(server: Server, id_: str) -> None:
    refusal = await v1.refused(server, "GET", "/v1/events", Last_Event_ID=id_)

    assert refusal == (400, "invalid", "Last-Event-ID")


async def test_an_id_of_the_future_is_refused(server: Server) -> None:
    future = server.engine.events.id(1_000)

    assert await v1.refused(server, "GET", "/v1/events", Last_Event_ID=future) == (400, "invalid", "Last-Event-ID")


# --- going on


async def test_who_was_cut_off_goes_on_where_he_was(server: Server) -> None:
    async with following(server) as before:
        await v1.enqueue(server)
        await told()
    await v1.enqueue(server, queue="other")
    await v1.enqueue(server)
    async with following(server, Last_Event_ID=before.id) as after:
        await told()

    assert after.of("open") == [{"resumed": True}]
    assert after.of("gap") == []
    assert before.verbs + after.verbs == [("q", 1, "enqueue"), ("other", 1, "enqueue"), ("q", 2, "enqueue")]


async def test_who_was_away_for_too_long_is_told_how_much_he_has_missed(server: Server) -> None:
    async with following(server) as before:
        await v1.enqueue(server)
        await told()
    await trio.sleep(LINGER_SECONDS - 1)
    await v1.enqueue(server)  # is kept
    await trio.sleep(2)
    await v1.enqueue(server)  # is not, nor anything before it
    async with following(server, Last_Event_ID=before.id) as after:
        await v1.enqueue(server)
        await told()

    assert after.of("open") == [{"resumed": False}]
    assert after.of("gap") == [{"reason": "behind", "missed": 2}]
    assert after.verbs == [("q", 4, "enqueue")]


def _enqueued(*revisions: int) -> Changes:
    changes = []
    for revision in revisions:
        job = Job(
            queue="q", id=revision, type="a", payload=None, state=JobState.QUEUED, created_at=0.0, revision=revision
        )
        changes.append(Change(revision, None, job, "enqueue"))
    return Changes(revisions[-1], changes)


async def test_who_is_overtaken_by_the_ring_is_told_how_much_he_has_missed(serve: Serve) -> None:
    async with serve(events_kept=5) as server, following(server) as follower:
        await v1.enqueue(server, *[{"type": "a"}] * 12)
        await told()
        assert follower.of("gap") == [{"reason": "behind", "missed": 7}]
        assert [id_ for _, id_, _ in follower.verbs] == [8, 9, 10, 11, 12]
        async with following(server, Last_Event_ID=follower.told[0].id or "") as late:
            await told()

    assert late.of("gap") == [{"reason": "behind", "missed": 7}]
    assert [id_ for _, id_, _ in late.verbs] == [8, 9, 10, 11, 12]


async def test_more_events_than_are_told_at_a_time_are_all_told_in_order(server: Server) -> None:
    async with following(server) as follower:
        for _ in range(3):
            await v1.enqueue(server, *[{"type": "a"}] * 1_000)
        await told(10 * PACE_SECONDS)

    assert [id_ for _, id_, _ in follower.verbs] == list(range(1, 3_001))
    assert len(follower.verbs) > READ_EVENTS_MAX


async def test_what_is_wanted_is_found_among_much_that_is_not(server: Server) -> None:
    async with following(server, "?queue=quiet") as follower:
        for _ in range(3):
            await v1.enqueue(server, *[{"type": "a"}] * 1_000)
        await v1.enqueue(server, queue="quiet")
        await told(10 * PACE_SECONDS)

    assert LOOKED_AT_EVENTS_MAX < 3_000
    assert follower.verbs == [("quiet", 1, "enqueue")]


async def test_across_a_restart_nothing_is_left_out_if_nothing_has_happened(clock: FakeClock) -> None:
    connect, settings = in_memory(), Settings(data="in memory")
    keeper = connect(Path("none"))  # or the database in memory ends with the server
    async with serving(settings, clock=clock, connect=connect) as server, following(server) as before:
        await v1.enqueue(server)
        await told()
    async with (
        serving(settings, clock=clock, connect=connect) as server,
        following(server, Last_Event_ID=before.id) as after,
    ):
        await v1.enqueue(server)
        await told()
    keeper.close()

    assert after.of("open") == [{"resumed": True}]
    assert after.of("gap") == []
    assert after.verbs == [("q", 2, "enqueue")]


async def test_what_happens_around_a_restart_is_a_said_gap(clock: FakeClock) -> None:
    connect, settings = in_memory(), Settings(data="in memory")
    keeper = connect(Path("none"))
    async with serving(settings, clock=clock, connect=connect) as server:
        async with following(server) as before:
            await v1.enqueue(server)
            await told()
        await v1.enqueue(server)
    async with serving(settings, clock=clock, connect=connect) as server:
        async with following(server, Last_Event_ID=before.id) as after:
            await v1.enqueue(server)
            await told()
        # What a store of the durability `normal` has told of and lost with the power.
        ahead = before.id.rpartition(".")[0] + ".900"
        async with following(server, Last_Event_ID=ahead) as lost:
            await told()
    keeper.close()

    assert after.of("open") == [{"resumed": False}]
    assert after.of("gap") == [{"reason": "restart", "missed": 1}]
    assert after.verbs == [("q", 3, "enqueue")]
    assert lost.of("gap") == [{"reason": "restart", "missed": None}]


async def test_another_life_of_the_queue_is_said(clock: FakeClock) -> None:
    async with serving(Settings(), clock=clock) as server, following(server) as before:
        await v1.enqueue(server)
        await told()
    async with (
        serving(Settings(), clock=clock) as server,
        following(server, Last_Event_ID=before.id) as after,
    ):
        await told()

    assert after.of("gap") == [{"reason": "instance", "missed": None}]


# --- the end, and silence


async def test_a_drain_ends_it_with_a_last_event(server: Server) -> None:
    async with following(server) as follower:
        await v1.enqueue(server)
        server.engine.drain()  # the connections would close before they refused
        await told()
        assert follower.ended
        refusal = await v1.refused(server, "GET", "/v1/events")

    assert follower.verbs == [("q", 1, "enqueue")]
    assert follower.told[-1].event == "end"
    assert follower.of("end") == [{"reason": "draining"}]
    assert refusal == (503, "draining", None)


async def test_it_ends_when_its_time_is_up(server: Server) -> None:
    async with following(server, "?wait_seconds=3") as follower:
        await v1.enqueue(server)
        await trio.sleep(2.9)
        assert not follower.ended
        await trio.sleep(0.2)
        assert follower.ended

    assert follower.of("end") == [{"reason": "waited"}]
    assert follower.verbs == [("q", 1, "enqueue")]


async def test_who_does_not_wait_is_told_what_there_is(server: Server) -> None:
    async with following(server) as before:
        await v1.enqueue(server, *[{"type": "a"}] * 1_000)
    answer = await v1.ask(server, "GET", "/v1/events?wait_seconds=0", Last_Event_ID=before.told[0].id or "")

    assert answer.body.count(b"event: job") == 1_000
    assert answer.body.endswith(b'event: end\ndata: {"reason":"waited"}\n\n')


async def test_silence_is_broken_now_and_then(server: Server) -> None:
    async with following(server, "?queue=quiet") as follower:
        for _ in range(40):
            await v1.enqueue(server)  # which is nothing that he wants
            await trio.sleep(1)

    assert follower.comments == int(40 // HEARTBEAT_SECONDS)
    assert follower.verbs == []


async def test_it_ends_when_its_token_does(settings: Settings, clock: FakeClock, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json", clock)
    token = tokens.add("reader", "read", queues=("a", "b*"), expires=30)
    producer = bearer(tokens.add("producer", "produce"))
    async with serving(settings, clock=clock, access=tokens.access()) as server:
        for query, refused in (("?queue=c", 403), ("?queue=*", 403)):
            assert (await v1.ask(server, "GET", f"/v1/events{query}", **bearer(token))).status == refused
        async with following(server, **bearer(token)) as follower:
            for queue in ("a", "ab", "b1", "c"):
                await v1.ask(server, "POST", f"/v1/queues/{queue}/enqueue", {"jobs": [{"type": "x"}]}, **producer)
            await trio.sleep(29)
            assert not follower.ended
            await trio.sleep(2)
            assert follower.ended

    assert [queue for queue, _, _ in follower.verbs] == ["a", "b1"]
    assert follower.of("end") == [{"reason": "unauthorized"}]


# --- many, slow and gone


async def test_a_hundred_readers_are_told_the_same(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        followers = []
        done = trio.Event()

        async def follow() -> None:
            async with following(server) as follower:
                followers.append(follower)
                await done.wait()

        for _ in range(100):
            nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert server.engine.events.readers == 100
        await v1.enqueue(server, *[{"type": "a"}] * 200)
        await told()
        done.set()

    assert len({follower.text for follower in followers}) == 1
    assert len(followers[0].verbs) == 200
    assert server.engine.events.readers == 0


async def test_one_that_stops_reading_is_dropped_and_holds_nobody_up(server: Server) -> None:
    ours, theirs = connection(back_bytes=1_000)
    server.accept(theirs)
    await ours.send_all(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await wait_all_tasks_blocked()
    assert server.engine.events.readers == 1
    began = trio.current_time()
    await v1.enqueue(server, *[{"type": "a"}] * 500)
    assert trio.current_time() == began  # nobody has waited for him

    await trio.sleep(SEND_SECONDS + 1)

    assert server.engine.events.readers == 0
    server.answers += 1
    await wait_all_tasks_blocked()


async def test_there_are_as_many_readers_as_may_be(serve: Serve) -> None:
    async with serve(readers_max=2) as server:
        async with following(server), following(server):
            assert await v1.refused(server, "GET", "/v1/events") == (503, "too_many_readers", None)
        async with following(server) as follower:
            assert follower.status == 200


async def test_while_nobody_looks_nothing_is_kept(engine: Engine) -> None:
    log = engine.events
    await engine.execute(Enqueue("q", [NewJob("a")] * 3))
    reader = log.open()
    await engine.execute(Enqueue("q", [NewJob("a")] * 2))
    assert [event.id for event in log.read(reader, lambda _: True)] == [4, 5]
    log.leave()
    await trio.sleep(LINGER_SECONDS + 1)
    await engine.execute(Enqueue("q", [NewJob("a")]))  # from here on it has been too long
    await trio.sleep(LINGER_SECONDS + 1)
    await engine.execute(Enqueue("q", [NewJob("a")]))

    assert log._ring == []


async def test_every_engine_refuses_one_reader_too_many(settings: Settings, clock: FakeClock) -> None:
    async with serving(replace(settings, readers_max=1), clock=clock) as server:
        server.engine.events.open()

        with pytest.raises(TooManyReaders, match="1 readers"):
            server.engine.events.open()


@pytest.mark.parametrize(
    ("first", "both"),
    [
        (Gap("instance", None), Gap("instance", None)),
        (Gap("restart", None), Gap("restart", None)),
        (Gap("restart", 4), Gap("restart", 6)),
        (Gap("behind", 3), Gap("behind", 5)),
    ],
)
async def test_a_gap_that_grows_before_it_is_told_goes_on_to_say_what_it_was(first: Gap, both: Gap) -> None:
    log, now = EventLog(Settings(events_kept=5), "i"), FakeClock()()
    reader = log.open()
    reader.gap = first
    log.note(_enqueued(*range(1, 8)), now)
    log.read(reader, wants(None, None, frozenset()))
    assert reader.gap == both


# --- an end in the middle of much that happens


class _Ended(Caller):
    """Whose token is not valid any more."""

    @contextmanager
    def while_valid(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            scope.cancel()
            yield scope


@pytest.mark.parametrize(("caller", "wait", "reason"), [(Caller(), 0.0, b"waited"), (_Ended(), 60.0, b"unauthorized")])
async def test_it_ends_though_something_happens_with_each_piece_that_is_told(
    caller: Caller, wait: float, reason: bytes
) -> None:
    log, now, revision = EventLog(Settings(), "i"), FakeClock()(), 0
    stream, pieces = Stream(log, caller, wants(None, None, frozenset()), wait=wait, after=None), []
    async for piece in stream.pieces(by_queue=False):
        pieces.append(piece)
        revision += 1
        log.note(_enqueued(revision), now)
        assert revision < 10, "it never ends"
    await stream.aclose()

    assert pieces[-1].endswith(b'event: end\ndata: {"reason":"%b"}\n\n' % reason)
    assert b"".join(pieces).count(b"event: job") == 2  # with the first piece, and before it was found to be over
    # Who comes again with the id of the end is told the rest.
    again = log.open(pieces[-1].partition(b"\n")[0].removeprefix(b"id: ").decode())
    assert (again.revision, again.gap) == (2, None)
