"""A server under systemd: it says when it is ready, that its loop moves, and that it ends."""

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.process.server import Server

pytestmark = pytest.mark.process

SECONDS = 20.0


def test_a_supervisor_is_told_that_the_server_is_ready_that_it_moves_and_that_it_ends(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(SECONDS)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
        with Server("--bind", "127.0.0.1:0", environment=environment) as server:
            server.wait_ready()
            states = [listener.recv(1_000).decode() for _ in range(4)]
            assert "READY=1" in states
            assert states.count("WATCHDOG=1") == 3
            server.terminate()
            while listener.recv(1_000) != b"STOPPING=1":
                pass
            assert server.wait(seconds=5) == 0
            assert server.events("loop_stalled") == []


def test_a_process_that_was_stopped_says_so_and_serves_on() -> None:
    with Server("--bind", "127.0.0.1:0", "--stall-seconds", "0.5") as server:
        server.wait_ready()
        os.kill(server.pid, signal.SIGSTOP)
        with socket.create_connection((server.host, server.port), timeout=SECONDS) as client:
            client.settimeout(1.5)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
            os.kill(server.pid, signal.SIGCONT)
            client.settimeout(SECONDS)
            assert client.recv(1_000).startswith(b"HTTP/1.1 200")
        server.wait_for_line(lambda line: b"process_paused" in line)
        server.terminate()
        assert server.wait(seconds=5) == 0
        assert server.events("loop_stalled") == []
