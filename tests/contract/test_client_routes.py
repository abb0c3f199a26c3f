"""The client has a method for every route of `/v1`, and both clients have the same ones."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import httpx
import pytest
import trio

from queue_actor import client_events
from queue_actor.client import (
    AsyncClient,
    Claim,
    Client,
    ConcludeClaim,
    ExtendClaim,
    FailClaim,
    Gap,
    JobEvent,
    NewJob,
    Refused,
    ReleaseClaim,
)
from queue_actor.commandline.events import GAPS
from queue_actor.events import Gap as GapTold
from queue_actor.events import GapReason
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from web import events
from web.app import App

HELD = Claim(queue="images", id=7, token="secret")  # noqa: S106 - none
OTHER = Claim(queue="mail", id=1, token="secret")  # noqa: S106 - none

CALLS: list[tuple[str, Callable[[Client], Any]]] = [
    ("jobs.enqueue", lambda c: c.enqueue("images", "t")),
    ("jobs.enqueue", lambda c: c.enqueue_many("images", [NewJob("t")])),
    ("jobs.enqueue", lambda c: list(c.enqueue_stream("images", [NewJob("t")]))),
    ("jobs.dequeue", lambda c: c.dequeue("images")),
    ("jobs.dequeue_several", lambda c: c.dequeue(["images", "mail"])),
    ("jobs.conclude_one", lambda c: Client.conclude(apart(c), HELD)),
    ("jobs.conclude_many", lambda c: c.conclude(HELD)),
    ("jobs.conclude_many", lambda c: c.conclude_many([ConcludeClaim.of(HELD)])),
    ("jobs.conclude_across", lambda c: c.conclude_many([ConcludeClaim.of(HELD), ConcludeClaim.of(OTHER)])),
    ("jobs.fail_one", lambda c: c.fail(HELD)),
    ("jobs.fail_many", lambda c: c.fail_many([FailClaim.of(HELD)])),
    ("jobs.fail_across", lambda c: c.fail_many([FailClaim.of(HELD), FailClaim.of(OTHER)])),
    ("jobs.extend_one", lambda c: c.extend(HELD)),
    ("jobs.extend_many", lambda c: c.extend_many([ExtendClaim.of(HELD)])),
    ("jobs.extend_across", lambda c: c.extend_many([ExtendClaim.of(HELD), ExtendClaim.of(OTHER)])),
    ("jobs.release_one", lambda c: c.release(HELD)),
    ("jobs.release_one", lambda c: c.take_back("images", 7)),
    ("jobs.release_many", lambda c: c.release_many([ReleaseClaim.of(HELD)])),
    ("jobs.release_many", lambda c: c.take_back_matching("images", consumer="w1")),
    ("jobs.release_across", lambda c: c.release_many([ReleaseClaim.of(HELD), ReleaseClaim.of(OTHER)])),
    ("queues.read_job", lambda c: c.read_job("images", 7)),
    ("queues.read_job", lambda c: c.wait_for_end("images", 7)),
    ("queues.search", lambda c: c.search("images")),
    ("queues.search", lambda c: list(c.jobs("images"))),
    ("queues.list_queues", lambda c: c.list_queues()),
    ("queues.list_queues", lambda c: list(c.queues())),
    ("queues.read_queue", lambda c: c.read_queue("images")),
    ("queues.put_queue", lambda c: c.put_queue("images")),
    ("queues.delete_queue", lambda c: c.delete_queue("images")),
    ("queues.pause", lambda c: c.pause("images")),
    ("queues.resume", lambda c: c.resume("images")),
    ("queues.purge", lambda c: c.purge("images", state="dead")),
    ("queues.redrive", lambda c: c.redrive_matching("images")),
    ("queues.cancel", lambda c: c.cancel("images", 7)),
    ("queues.redrive_one", lambda c: c.redrive("images", 7)),
    ("queues.run", lambda c: c.run("images", 7)),
    ("queues.forget", lambda c: c.forget("images", 7)),
    ("queues.cancel_many", lambda c: c.cancel_matching("images")),
    ("overview.overview", lambda c: c.overview()),
    ("overview.trend", lambda c: c.trend("images")),
    ("overview.why", lambda c: c.why("images", 7)),
    ("events.follow", lambda c: next(c.follow())),
    ("overview.access", lambda c: c.access()),
    ("ops.statistics", lambda c: c.statistics()),
    ("ops.backup", lambda c: c.backup().__enter__()),
]


def apart(client: Client) -> Client:
    """The same, whose calls do not share requests."""
    client._coalesce = False
    return client


def public(kind: type[Client | AsyncClient]) -> dict[str, Any]:
    """The methods of a client."""
    return {name: method for name, method in inspect.getmembers(kind, callable) if not name.startswith("_")}


@pytest.fixture
async def adapter() -> Any:
    async with open_engine(Settings()) as engine:
        url_map = App(engine, Settings()).url_map
        await trio.lowlevel.checkpoint()
    return url_map.bind("localhost")


async def test_every_route_of_v1_is_asked_by_a_method_of_the_client(adapter: Any) -> None:
    asked: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(adapter.match(request.url.path, request.method)[0])
        return httpx.Response(409, json={"code": "conflict", "detail": "this is a test"})

    for endpoint, call in CALLS:
        with Client(transport=httpx.MockTransport(refuse)) as client, pytest.raises(Refused):
            call(client)
        assert asked.pop() == endpoint
        assert asked == []
    served = {rule.endpoint for rule in adapter.map.iter_rules() if rule.rule.startswith("/v1/")}
    assert {endpoint for endpoint, _ in CALLS} == served


def called() -> Iterator[str]:
    """The methods that the table names."""
    for _, call in CALLS:
        yield from call.__code__.co_names


def test_the_table_has_every_method_of_the_client() -> None:
    assert set(public(Client)) - set(called()) == {"close", "send", "get"}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    threads, tasks = public(Client), public(AsyncClient)
    assert set(threads) - {"close"} == set(tasks) - {"aclose"}
    for name in set(threads) & set(tasks):
        one, other = (inspect.signature(methods[name]).parameters for methods in (threads, tasks))
        assert list(one) == list(other), name
        for parameter in one:
            assert one[parameter].default == other[parameter].default, name
            if (name, parameter) not in {("enqueue_stream", "jobs"), ("send", "request")}:
                assert one[parameter].annotation == other[parameter].annotation, name
        said, also = (inspect.getdoc(methods[name]) for methods in (threads, tasks))
        assert said, name
        assert name == "backup" or said.replace("threads", "tasks") == also
    made, also_made = (inspect.signature(kind).parameters for kind in (Client, AsyncClient))
    assert [(p.name, p.default) for p in made.values()] == [(p.name, p.default) for p in also_made.values()]


def test_events_have_the_fields_that_the_server_tells_and_come_as_often() -> None:
    assert JobEvent.__struct_encode_fields__ == events.EventView.__struct_encode_fields__
    assert Gap.__struct_encode_fields__ == GapTold.__struct_encode_fields__
    assert client_events.HEARTBEAT_SECONDS == events.HEARTBEAT_SECONDS
    assert set(GAPS) == set(get_args(GapReason))
