"""Restarts that nobody notices: the listening socket outlives the server, as systemd and others hand it over.

Between two servers the kernel takes connections in; the next one finds them waiting. So a client may be answered
late, or that the server is about to end, but its connection is never refused.
"""

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.clients import QUEUES, Client, Scene
from tests.process.history import Crash, figures
from tests.process.server import ANSWER_SECONDS, Server
from tests.process.test_crashes import begin, finish, judge, keep, wait_recovered

pytestmark = pytest.mark.process

RESTARTS = 3
CLIENTS = 4
OPERATIONS_BETWEEN_RESTARTS = 150
SEED = random.SystemRandom().randrange(10**6)


class Impatient(Client):
    """A client that connects whether the server is up or not, and takes no refusal."""

    def _connect(self) -> None:
        if self._connection is None:
            connection = http.client.HTTPConnection(self._scene.host, self._scene.port, timeout=ANSWER_SECONDS)
            connection.connect()
            self._connection = connection


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1_024)) as listener:
        yield listener


def test_no_connection_is_refused_and_no_job_lost_when_the_server_is_restarted_under_load(
    listener: socket.socket, tmp_path: Path
) -> None:
    scene = Scene()
    threads = [
        threading.Thread(target=Impatient(scene, f"client{number}", SEED).run, daemon=True) for number in range(CLIENTS)
    ]
    number = listener.fileno()
    flags = ("--bind", f"fd://{number}", "--data", str(tmp_path / "data"), "--sweep-seconds", "0.05")
    ended: tuple[float, float] | None = None
    try:
        for life in range(RESTARTS + 1):
            with Server(*flags, descriptors=(number,)) as server:
                wait_recovered(server)
                assert server.port == listener.getsockname()[1]
                if ended is not None:  # leases begin anew, as after a crash
                    scene.record(Crash(killed=ended[0], dead=ended[1], ready=time.monotonic()))
                scene.comes_up(server)
                if life == 0:
                    begin(scene, SEED, threads)
                scene.wait_for_more(OPERATIONS_BETWEEN_RESTARTS)
                if life < RESTARTS:
                    told = time.monotonic()
                    server.terminate()
                    assert server.wait(seconds=ANSWER_SECONDS) == 0
                    ended = (told, time.monotonic())
                else:
                    finish(scene, SEED, threads)
    finally:
        scene.end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    # What a client does not know how to deal with, a refused connection among it, is here.
    assert scene.failures == []
    assert judge(scene.events, seed=SEED) == [], keep(scene.events, seed=SEED)
    counted = figures(scene.events)
    assert counted.kills == RESTARTS
    assert counted.enqueued > 0
    assert {event.queue for event in scene.events if hasattr(event, "queue")} == set(QUEUES)
