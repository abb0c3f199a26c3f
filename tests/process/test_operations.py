"""Backup, check, restore and vacuum by the commands that an operator types, on a real server."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.process.server import ANSWER_SECONDS, ROOT, START_SECONDS, Server, eventually
from tests.process.test_crashes import post, token, wait_recovered

pytestmark = pytest.mark.process

BACKUPS = 3


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def on(directory: Path, *flags: str) -> Server:
    return Server("--bind", "127.0.0.1:0", "--data", str(directory), *flags)


def test_a_backup_taken_under_load_is_restored_as_another_life(tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite"
    acknowledged: list[int] = []
    last_id = 0
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            body = {"jobs": [{"type": "t", "payload": "x" * 1_000} for _ in range(50)]}
            acknowledged.extend(job["id"] for job in post(server, "enqueue", body)["jobs"])

    with on(tmp_path / "data") as server:
        wait_recovered(server)
        post(server, "enqueue", {"jobs": [{"type": "t"}]})
        (job,) = post(server, "dequeue", {"lease_seconds": 600})["jobs"]
        before = server.request("GET", "/v1/statistics").body
        thread = threading.Thread(target=load)
        thread.start()
        try:
            for _ in range(BACKUPS):
                count = len(acknowledged)
                assert eventually(lambda count=count: len(acknowledged) > count)  # type: ignore[misc] # a default binds
                last_id = max(acknowledged)
                made = run("backup.sh", f"http://127.0.0.1:{server.port}", file)
                assert made.returncode == 0, made.stderr
        finally:
            stop.set()
            thread.join()
        assert [line["verb"] for line in server.events("audit")] == ["backup"] * BACKUPS
        assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.sqlite", "data"]
        assert not [path for path in (tmp_path / "data").iterdir() if path.name.startswith("backup-")]
        server.terminate()
        assert server.wait(seconds=ANSWER_SECONDS) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    checked = run("data.sh", "check", file)
    assert checked.returncode == 0
    assert "1 in_progress" in checked.stdout

    restored = run("data.sh", "restore", file, tmp_path / "new")
    assert restored.returncode == 0, restored.stderr
    with on(tmp_path / "new", "--vacuum", "1") as server:
        wait_recovered(server)
        assert len(server.events("vacuumed")) == 1
        after = server.request("GET", "/v1/statistics").body
        assert after["instance"] != before["instance"]
        assert after["durability"] == "full"
        assert after["store"]["file_bytes"] > 0
        queue = server.request("GET", "/v1/queues/q").body
        assert queue["paused"] is True
        assert queue["last_id"] >= last_id > 0
        assert queue["counts"]["queued"] == queue["last_id"] - 1
        assert post(server, "dequeue", {})["jobs"] == []
        # Who held a job when the backup was taken holds it still.
        assert post(server, f"jobs/{job['id']}/conclude", {"token": token(job)})["state"] == "concluded"
        server.request("POST", "/v1/queues/q/resume")
        (next_job,) = post(server, "dequeue", {})["jobs"]
        assert next_job["lease"]["fence"] > job["lease"]["fence"]


def test_a_backup_that_cannot_be_had_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite"
    file.write_text("the last one")
    with Server("--bind", "127.0.0.1:0") as server:
        server.wait_ready()
        refused = run("backup.sh", f"http://127.0.0.1:{server.port}", file)
        assert refused.returncode == 1
        assert '"not_durable"' in refused.stderr
    gone = run("backup.sh", f"http://127.0.0.1:{server.port}", file)
    assert gone.returncode == 7  # of curl: it could not connect
    assert run("backup.sh").returncode == 64
    assert file.read_text() == "the last one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_client_who_reads_nothing_of_its_backup_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with on(tmp_path / "data", "--request-bytes-max", "8000000") as server:
        wait_recovered(server)
        payload = "x" * 200_000
        for _ in range(2):  # more than all buffers on the way hold
            post(server, "enqueue", {"jobs": [{"type": "t", "payload": payload} for _ in range(30)]})
        with server.connect(receive_bytes=4096) as stalled:
            stalled.sendall(b"GET /v1/backup HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert eventually(lambda: bool(server.events("audit")))
            assert server.request("GET", "/v1/backup").body["code"] == "backup_running"
            server.terminate()
            assert server.wait(seconds=5) == 0
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["lock", "queue.sqlite"]


def test_a_directory_is_checked_after_a_kill(tmp_path: Path) -> None:
    with on(tmp_path / "data") as server:
        wait_recovered(server)
        post(server, "enqueue", {"jobs": [{"type": "t"}, {"type": "t"}]})
        assert run("data.sh", "check", tmp_path / "data").stdout.endswith("sound: 2 queued\n")
        server.send_signal(signal.SIGKILL)
        server.wait(seconds=ANSWER_SECONDS)
    assert run("data.sh", "check", tmp_path / "data").stdout.endswith("sound: 2 queued\n")
