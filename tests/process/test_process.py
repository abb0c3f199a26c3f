"""The life of the server process: how it starts, how it ends, and what it tells about both."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from select import select

import pytest

from queue_actor.settings import SETTINGS
from tests.process.server import ROOT, RUN, START_SECONDS, Server, eventually, read_answer, running_server

pytestmark = pytest.mark.process

EXIT_BUG = 70
EXIT_CONFIGURATION = 78


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


LONG_POLL = post("/jobs/dequeue?wait=20")


# --- start


def test_one_ready_line_says_where_the_server_listens_and_what_a_crash_would_lose() -> None:
    with Server("--bind", "127.0.0.1:0") as server:
        ready = server.wait_ready()
        assert ready["level"] == "info"
        assert ready["address"] == f"http://127.0.0.1:{server.port}"
        assert server.port > 0
        assert ready["durability"] == "memory"
        assert "all jobs" in ready["a_crash_loses"]
        assert server.request("GET", "/healthz").status == 200
        assert server.request("GET", "/readyz").status == 200
        assert len(server.events("ready")) == 1


def test_help_lists_every_setting_and_exits_0() -> None:
    shown = subprocess.run(
        [*RUN, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS, check=True
    )
    assert [setting.name for setting in SETTINGS if f"{setting.flag} " not in shown.stdout] == []
    assert [setting.name for setting in SETTINGS if f"{setting.variable}:" not in shown.stdout] == []


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        ((), {"QUEUE_ACTOR_LEASE_SECOND": "1"}, ["QUEUE_ACTOR_LEASE_SECOND"]),
        ((), {"QUEUE_ACTOR_LEASE_SECONDS": "soon"}, ["QUEUE_ACTOR_LEASE_SECONDS", "soon"]),
        ((), {"QUEUE_ACTOR_WAITERS_MAX": "-1"}, ["QUEUE_ACTOR_WAITERS_MAX", "-1"]),
        (
            ("--lease-seconds", "100"),
            {"QUEUE_ACTOR_LEASE_SECONDS_MAX": "50"},
            ["QUEUE_ACTOR_LEASE_SECONDS:", "QUEUE_ACTOR_LEASE_SECONDS_MAX"],
        ),
        (("--port", "80"), {}, ["--port"]),
        (("--bind",), {}, ["--bind"]),
        (("--bind", "127.0.0.1:http"), {}, ["BIND"]),
        (("--bind", "0.0.0.0:0"), {}, ["OPEN"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_setting_that_cannot_be_used_is_named_and_ends_the_process_before_it_listens(
    flags: Sequence[str], environment: Mapping[str, str], named: Sequence[str]
) -> None:
    with Server(*flags, environment=environment) as server:
        assert server.wait(seconds=START_SECONDS) == EXIT_CONFIGURATION
    assert len(server.log) == 1
    assert [name for name in named if name not in server.log[0].decode()] == []


def test_variables_that_others_set_are_not_taken_for_settings() -> None:
    environment = {
        "QUEUE_ACTOR_SERVICE_HOST": "10.0.0.1",
        "QUEUE_ACTOR_PORT": "tcp://10.0.0.1:80",
        "QUEUE_ACTOR_PORT_80_TCP_ADDR": "10.0.0.1",
        "QUEUE_ACTOR_URL": "http://127.0.0.1:8080",
        "QUEUE_ACTOR_BIND": "127.0.0.1:0",
    }
    with Server(environment=environment) as server:
        server.wait_ready()


def test_a_second_server_on_the_same_port_says_so_and_leaves_the_first_alone() -> None:
    with running_server() as first:
        job = first.request("POST", "/jobs/enqueue", {"Type": "TIME_CRITICAL"}).body
        with Server("--bind", f"127.0.0.1:{first.port}") as second:
            assert second.wait(seconds=START_SECONDS) == EXIT_CONFIGURATION
        assert len(second.log) == 1
        assert f"127.0.0.1:{first.port}" in second.log[0].decode()
        assert first.request("GET", f"/jobs/{job['ID']}").body == job


# --- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_the_server_within_five_seconds_whatever_its_clients_do(number: signal.Signals) -> None:
    polls = 20
    with running_server("--waiters-max", str(polls)) as server, ExitStack() as stack:
        # A client asks for 20 MB, more than all buffers between it and the server hold, and reads nothing.
        server.request("POST", "/jobs/enqueue", {"Type": "LARGE", "Payload": "x" * 200_000})
        server.request("POST", "/jobs/dequeue")
        dead_reader = stack.enter_context(server.connect(receive_bytes=4096))
        dead_reader.sendall(100 * get("/jobs/1"))
        assert select([dead_reader], [], [], 10)[0]
        # A client has been served, and keeps its connection for later.
        idle = stack.enter_context(server.connect())
        idle_stream = stack.enter_context(idle.makefile("rb"))
        idle.sendall(get("/healthz"))
        served = read_answer(idle_stream)
        assert served is not None
        assert served.headers.get("Connection") != "close"
        # And twenty wait for a job; that one more is refused proves that they do.
        waiting = [stack.enter_context(server.connect()) for _ in range(polls)]
        for connection in waiting:
            connection.sendall(LONG_POLL)
        server.has_seen_all_before()
        assert server.request("POST", "/jobs/dequeue?wait=1").body["code"] == "too_many_waiters"

        server.send_signal(number)

        assert server.wait(seconds=5) == 0
        for connection in waiting:
            with connection.makefile("rb") as stream:
                answer = read_answer(stream)
                assert answer is not None
                assert (answer.status, answer.body["code"]) == (404, "empty")
                assert answer.headers["Connection"] == "close"
                assert read_answer(stream) is None
        assert read_answer(idle_stream) is None


def test_a_request_that_has_begun_when_the_signal_comes_is_finished() -> None:
    with running_server() as server, ExitStack() as stack:
        idle, begun = (stack.enter_context(server.connect()) for _ in range(2))
        idle_stream, begun_stream = (stack.enter_context(each.makefile("rb")) for each in (idle, begun))
        idle.sendall(get("/healthz"))
        assert read_answer(idle_stream) is not None
        request = post("/jobs/enqueue", b'{"Type": "TIME_CRITICAL"}')
        begun.sendall(request[:-10])
        server.has_seen_all_before()

        server.terminate()

        assert read_answer(idle_stream) is None  # it is closed at once: the drain has begun
        begun.sendall(request[-10:])
        answer = read_answer(begun_stream)
        assert answer is not None
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert read_answer(begun_stream) is None
        assert server.wait(seconds=5) == 0


def test_a_server_under_load_ends_with_every_answer_whole() -> None:
    with running_server() as server, ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(20)]
        for connection in connections:
            connection.sendall(10 * post("/jobs/enqueue", b'{"Type": "TIME_CRITICAL"}'))
        assert select(connections, [], [], 10)[0]

        server.terminate()

        assert server.wait(seconds=5) == 0
        ids: list[int] = []
        for connection in connections:
            with connection.makefile("rb") as stream:
                while (answer := read_answer(stream)) is not None:
                    assert answer.status == 200
                    ids.append(answer.body["ID"])
        # Each job has one answer, and each answer its job.
        assert ids
        assert len(ids) == len(set(ids))
        assert sorted(ids) == sorted(line["job"] for line in server.events("request"))


# The second call of a verb fails, as any call might if there were a bug in it.
PLANTED = """
import os, sys
import web.__main__
from queue_actor.state_machine import StateMachine

verb, *arguments = sys.argv[1:]
sound = getattr(StateMachine, verb)
calls = []

def broken(machine, command, now):
    calls.append(command)
    if len(calls) > 1:
        raise RuntimeError("a planted bug")
    return sound(machine, command, now)

setattr(StateMachine, verb, broken)
sys.exit(web.__main__.main(arguments, os.environ))
"""


def test_a_bug_in_the_queue_ends_the_process_and_leaves_no_client_without_an_end() -> None:
    with Server("_dequeue", "--bind", "127.0.0.1:0", command=(sys.executable, "-c", PLANTED)) as server:
        server.wait_ready()
        with server.connect() as waiting, server.connect() as enqueuing:
            waiting.sendall(LONG_POLL)
            server.has_seen_all_before()
            # The job is handed to the one who waits: the second call.
            enqueuing.sendall(post("/jobs/enqueue", b'{"Type": "TIME_CRITICAL"}'))
            assert server.wait(seconds=2) == EXIT_BUG
            for connection in (waiting, enqueuing):
                with connection.makefile("rb") as stream:
                    answer = read_answer(stream)
                    assert answer is None or (answer.status, answer.body["code"]) == (503, "outcome_unknown")
                    assert read_answer(stream) is None
        (failed,) = server.events("failed")
        assert "RuntimeError: a planted bug" in failed["traceback"]


def test_a_bug_in_the_sweep_ends_the_process_too() -> None:
    flags = ("--bind", "127.0.0.1:0", "--sweep-seconds", "0.5")
    with Server("_sweep", *flags, command=(sys.executable, "-c", PLANTED)) as server:
        assert server.wait(seconds=START_SECONDS) == EXIT_BUG
        (failed,) = server.events("failed")
        assert "RuntimeError: a planted bug" in failed["traceback"]


def test_a_job_goes_to_a_live_client_at_once_after_a_thousand_others_have_left() -> None:
    with running_server() as server:
        server.request("GET", "/healthz")
        files = server.files
        for round_ in range(4):
            waiting = [server.connect() for _ in range(250)]
            for connection in waiting:
                connection.sendall(LONG_POLL)
            server.has_seen_all_before()
            for connection in waiting:
                connection.close()
            assert eventually(lambda: server.files <= files), round_
        with server.connect() as live, live.makefile("rb") as stream:
            live.sendall(LONG_POLL)
            server.has_seen_all_before()
            began = time.monotonic()
            server.request("POST", "/jobs/enqueue", {"Type": "TIME_CRITICAL"})
            answer = read_answer(stream)
            assert answer is not None
            assert time.monotonic() - began < 2
            # The first attempt: nobody who had left was given the job.
            assert (answer.status, answer.headers["Queue-Attempt"]) == (200, "1")
