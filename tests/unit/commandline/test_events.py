"""`events`: a line for each step of a job, and one for what cannot be told."""

import json
from typing import Any

from tests.unit.commandline.conftest import Command, FakeServer

EVENTS = "GET /v1/events"
STREAM: dict[str, Any] = {"Content-Type": "text/event-stream"}


def stream(*events: tuple[str, Any]) -> bytes:
    told = [("open", {"resumed": False}), *events]
    lines = [f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in told]
    return "".join(f"id: i.e.{place}\n{line}" for place, line in enumerate(lines)).encode()


def step(**facts: Any) -> tuple[str, Any]:
    return "job", {
        "queue": "q",
        "id": 7,
        "type": "t",
        "verb": "enqueue",
        "from": None,
        "to": "queued",
        "attempt": 0,
        "consumer": None,
        "reason": None,
        "at": "2027-01-15T08:00:00.042Z",
    } | facts


TOLD = stream(
    step(type="\x1b[31m"),
    step(verb="dequeue", **{"from": "queued", "to": "in_progress"}, attempt=1, consumer="w1"),
    step(verb="extend", **{"from": "in_progress", "to": "in_progress"}, attempt=1, consumer="w1"),
    step(verb="fail", **{"from": "in_progress", "to": "dead"}, attempt=1, consumer="w1", reason="killed"),
    step(verb="forget", **{"from": "dead", "to": None}),
    ("gap", {"reason": "behind", "missed": 1234}),
    ("gap", {"reason": "instance", "missed": None}),
)


def test_each_step_is_a_line_and_nothing_in_it_an_order_to_the_terminal(command: Command, server: FakeServer) -> None:
    server.answers(EVENTS, TOLD, **STREAM)
    ran = command("events", "-n", "7")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "08:00:00.042  q/7  \\x1b[31m  enqueue  queued",
        "08:00:00.042  q/7  t  dequeue  in_progress  by w1",
        "08:00:00.042  q/7  t  extend  by w1",
        "08:00:00.042  q/7  t  fail  dead  killed  by w1",
        "08:00:00.042  q/7  t  forget  forgotten",
        "something is missing here: more happened than is kept, 1,234 changes of all queues at most",
        "something is missing here: it is another life of the queue, with other jobs",
    ]


def test_for_programs_a_line_has_the_place_to_go_on_from(command: Command, server: FakeServer) -> None:
    server.answers(EVENTS, TOLD, **STREAM)
    lines = command("events", "--json", "-n", "6").lines

    assert [line["event"] for line in lines] == ["job"] * 5 + ["gap"]
    assert (lines[1]["id"], lines[1]["from"], lines[1]["to"], lines[1]["place"]) == (
        7,
        "queued",
        "in_progress",
        "i.e.2",
    )
    assert lines[5] == {"event": "gap", "place": "i.e.5", "reason": "behind", "missed": 1234}


def test_what_is_wanted_is_asked_for(command: Command, server: FakeServer) -> None:
    server.answers(EVENTS, stream(step()), **STREAM)
    command(
        "events", "-q", "a:*", "--type", "t", "--state", "dead", "--state", "cancelled", "--after", "i.e.1", "-n", "1"
    )
    command("events", "-n", "1")

    first, second = server.requests
    assert dict(first.url.params) == {"queue": "a:*", "type": "t", "state": "dead,cancelled"}
    assert first.headers["Last-Event-ID"] == "i.e.1"
    assert dict(second.url.params) == {}


def test_a_server_that_is_gone_ends_it(command: Command, server: FakeServer) -> None:
    server.answers(EVENTS, stream(step()), **STREAM)
    ran = command("events")

    assert (ran.code, len(ran.out.splitlines())) == (69, 1)
    server.forget(EVENTS)
    server.refuses(EVENTS, "too_many_readers", 503)
    assert command("events").code == 75
