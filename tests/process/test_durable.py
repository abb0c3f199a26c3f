"""A server and its data directory, as a process: what is wrong with the directory, the disk, or who else uses it.

Whatever cannot be used is told in one line, and left as it is. What was acknowledged is there afterwards.
"""

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
import trio

from queue_actor.commands import Enqueue, NewJob
from queue_actor.directory import BUSY_SECONDS, FILE, open_directory
from queue_actor.schema import SCHEMA_VERSION
from queue_actor.service import open_engine
from queue_actor.settings import Settings
from tests.process.server import ANSWER_SECONDS, START_SECONDS, Answer, Server, eventually, running_server

pytestmark = pytest.mark.process

EXIT_BUG = 70
EXIT_CONFIGURATION = 78
MIB = 1024 * 1024


def on_disk(data: Path, *flags: str) -> tuple[str, ...]:
    return ("--bind", "127.0.0.1:0", "--data", str(data), *flags)


def fill(data: Path, jobs: int, *, payload: bytes = b"1") -> None:
    """Make a directory with so many queued jobs."""

    async def enqueue() -> None:
        settings = Settings(data=str(data), durability="normal")
        with open_directory(settings) as opened:
            async with open_engine(settings, data=opened) as engine:
                await engine.ready.wait()
                for first in range(0, jobs, 1_000):
                    await engine.execute(Enqueue("q", [NewJob("t", payload=payload)] * min(1_000, jobs - first)))

    trio.run(enqueue)


def contents(data: Path) -> dict[str, bytes]:
    """What is in the directory, but for the lock, which is empty and may be made by whoever looks."""
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock" and path.is_file()}


def post(server: Server, path: str, body: object) -> Answer:
    return server.request("POST", f"/v1/queues/q/{path}", body)


def ids(server: Server, **more: Any) -> list[int]:
    """The jobs of the queue, in order, by the answer of the server."""
    answer = post(server, "dequeue", {"count": 1_000, **more})
    assert answer.status == 200, answer.body
    return [job["id"] for job in answer.body["jobs"]]


def refused(data: Path) -> str:
    """The one line that a server tells which cannot use a directory."""
    with Server(*on_disk(data)) as server:
        assert server.wait(seconds=START_SECONDS) == EXIT_CONFIGURATION
    assert b"Traceback" not in b"".join(server.log)
    # One that already listens has said so.
    lines = [line.decode() for line in server.complaints()]
    assert len(lines) == 1, lines
    return lines[0]


# --- a directory that cannot be used


def test_a_second_server_on_a_directory_ends_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with running_server(*on_disk(tmp_path / "data")) as first:
        assert post(first, "enqueue", {"jobs": [{"type": "a"}]}).status == 200
        assert "another server uses" in refused(tmp_path / "data")
        assert post(first, "enqueue", {"jobs": [{"type": "b"}]}).status == 200
        assert ids(first) == [1, 2]


def execute(data: Path, *statements: str) -> None:
    with closing(sqlite3.connect(data / FILE, isolation_level=None)) as file:
        file.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            file.execute(statement)


def overwrite(data: Path, page: int, pages: int) -> None:
    with closing(sqlite3.connect(data / FILE)) as file:
        (size,) = file.execute("PRAGMA page_size").fetchone()
    with (data / FILE).open("r+b") as bytes_:
        bytes_.seek((page - 1) * size)
        bytes_.write(b"\xa5" * size * pages)


def pages(data: Path) -> int:
    with closing(sqlite3.connect(data / FILE)) as file:
        (count,) = file.execute("PRAGMA page_count").fetchone()
        return int(count)


def root_of(data: Path, table: str) -> int:
    with closing(sqlite3.connect(data / FILE)) as file:
        (page,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return int(page)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in the middle": (lambda data: os.truncate(data / FILE, (data / FILE).stat().st_size // 2), "malformed"),
    "no header": (lambda data: overwrite(data, 1, 1), "not a database"),
    "garbage after the first page": (lambda data: overwrite(data, 2, pages(data) - 1), "malformed"),
    "garbage among the jobs": (lambda data: overwrite(data, root_of(data, "jobs"), 1), "malformed"),
    "garbage among the payloads": (lambda data: overwrite(data, root_of(data, "large_payloads"), 1), "malformed"),
    "garbage at the end": (lambda data: overwrite(data, pages(data) - 3, 4), "malformed"),
    "facts that are none": (lambda data: execute(data, "UPDATE jobs SET facts = '{' WHERE id = 500"), "DecodeError"),
    "a state that is none": (lambda data: execute(data, "UPDATE jobs SET state = 'lost' WHERE id = 500"), "lost"),
    "a job without its queue": (lambda data: execute(data, "DELETE FROM queues"), "KeyError"),
    "a lost table": (lambda data: execute(data, "DROP TABLE answers"), "answers"),
    "no secret": (lambda data: execute(data, "DELETE FROM meta"), "no secret"),
    "newer": (lambda data: execute(data, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"), "version"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a directory with a thousand jobs."""
    data = tmp_path_factory.mktemp("filled") / "data"
    fill(data, 1_000, payload=b'"%s"' % (b"x" * 1_500))  # so large that they have a table of their own
    return (data / FILE).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_of_in_one_line_and_left_as_it_is(filled: bytes, tmp_path: Path, damage: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / FILE).write_bytes(filled)
    damaged, told = DAMAGES[damage]
    damaged(data)
    before = contents(data)

    line = refused(data)

    assert told in line
    assert FILE in line
    assert contents(data) == before


def test_a_link_in_place_of_the_file_is_not_followed(filled: bytes, tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.write_bytes(filled)
    (data / FILE).symlink_to(elsewhere)

    assert "symbolic links" in refused(data)
    assert (data / FILE).is_symlink()
    assert elsewhere.read_bytes() == filled


def test_a_file_in_place_of_the_directory_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert "Not a directory" in refused(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "a file"


# --- disks


@contextmanager
def small_disk(at: Path, *, size_bytes: int) -> Iterator[Path]:
    """A file system of its own; the test is skipped where none may be mounted."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:  # only root may, and not in every container
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def free_bytes(disk: Path) -> int:
    figures = os.statvfs(disk)
    return figures.f_bavail * figures.f_frsize


def test_a_disk_that_cannot_be_written_is_told_of_and_left_as_it_is(filled: bytes, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_bytes=32 * MIB) as disk:
        data = disk / "data"
        data.mkdir()
        (data / FILE).write_bytes(filled)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        assert "Read-only file system" in refused(data)
        assert "Read-only file system" in refused(disk / "new")
        assert contents(data) == {FILE: filled}


BIG = "x" * 20_000


def enqueue_until_refused(server: Server) -> tuple[list[int], Answer]:
    """The jobs that were acknowledged, and the first answer that is another."""
    acknowledged: list[int] = []
    while True:
        answer = post(server, "enqueue", {"jobs": [{"type": "t", "payload": BIG}]})
        if answer.status != 200:
            return acknowledged, answer
        acknowledged += [job["id"] for job in answer.body["jobs"]]


def test_a_full_disk_refuses_jobs_while_those_that_are_there_end_and_takes_them_again_when_it_has_room(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", size_bytes=24 * MIB) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(14 * MIB))
        flags = ("--disk-reserve-bytes", str(3 * MIB), "--sweep-seconds", "0.2")
        with running_server(*on_disk(disk / "data", *flags)) as server:
            acknowledged, refusal = enqueue_until_refused(server)
            assert len(acknowledged) > 20
            assert (refusal.status, refusal.body["code"]) == (507, "disk_full")
            assert refusal.headers["Retry-After"]
            left = free_bytes(disk)
            assert left > MIB
            ended = 0
            while ended < len(acknowledged) - 5:
                (job,) = post(server, "dequeue", {"count": 1}).body["jobs"]
                verb = "fail" if ended % 3 == 0 else "conclude"
                more = {"retry": False} if verb == "fail" else {}
                body = {"token": job["lease"]["token"], **more}
                assert post(server, f"jobs/{job['id']}/{verb}", body).status == 200
                ended += 1
            for _ in range(300):  # a long time on what is left: the log goes round in little room
                (job,) = post(server, "dequeue", {"count": 1}).body["jobs"]
                assert post(server, f"jobs/{job['id']}/release", {"token": job["lease"]["token"]}).status == 200
            assert free_bytes(disk) > MIB
            more_acknowledged, refusal = enqueue_until_refused(server)  # the log has been moved: there was some room
            assert refusal.status == 507

            ballast.unlink()

            assert eventually(lambda: post(server, "enqueue", {"jobs": [{"type": "t"}]}).status == 200)
            taken = acknowledged + more_acknowledged
            waiting = [*taken[ended:], taken[-1] + 1]
            server.send_signal(signal.SIGKILL)
            server.wait(seconds=ANSWER_SECONDS)
        with running_server(*on_disk(disk / "data")) as server:
            assert ids(server) == waiting
            view = server.request("GET", "/v1/queues/q").body
            assert view["counts"]["concluded"] + view["counts"]["dead"] == ended


def test_a_commit_that_the_disk_has_no_room_for_ends_the_process_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", size_bytes=24 * MIB) as disk:
        ballast = disk / "ballast"
        flags = ("--disk-reserve-bytes", "0", "--sweep-seconds", "60")
        with running_server(*on_disk(disk / "data", *flags)) as server:
            acknowledged = [
                job["id"] for _ in range(5) for job in post(server, "enqueue", {"jobs": [{"type": "a"}]}).body["jobs"]
            ]
            with ballast.open("wb") as file:
                while room := free_bytes(disk):
                    file.write(bytes(room))
                    file.flush()
            try:
                answer = post(server, "enqueue", {"jobs": [{"type": "b", "payload": BIG}]})
            except (OSError, HTTPException):
                pass  # the connection was closed
            else:
                assert (answer.status, answer.body["code"]) == (503, "outcome_unknown")
            assert server.wait(seconds=ANSWER_SECONDS) == EXIT_BUG
            (failed,) = server.events("failed")
            assert "full" in failed["traceback"]
        ballast.unlink()

        with running_server(*on_disk(disk / "data")) as server:
            assert ids(server)[:5] == acknowledged


# --- who else uses the file


def test_a_commit_does_not_wait_for_ever_for_somebody_else_who_writes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server(*on_disk(data)) as server:
        assert post(server, "enqueue", {"jobs": [{"type": "a"}]}).status == 200
        with closing(sqlite3.connect(data / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            try:
                answer = post(server, "enqueue", {"jobs": [{"type": "b"}]})
            except (OSError, HTTPException):
                pass
            else:
                assert (answer.status, answer.body["code"]) == (503, "outcome_unknown")
            assert time.monotonic() - began >= BUSY_SECONDS - 1
            assert server.wait(seconds=ANSWER_SECONDS) == EXIT_BUG
            assert "locked" in server.events("failed")[0]["traceback"]
    with running_server(*on_disk(data)) as server:
        assert ids(server) == [1]


def test_commits_go_on_beside_another_program_that_reads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server(*on_disk(data)) as server:
        post(server, "enqueue", {"jobs": [{"type": "a"}]})
        with closing(sqlite3.connect(f"file:{data / FILE}?mode=ro", uri=True, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
            for _ in range(20):
                assert post(server, "enqueue", {"jobs": [{"type": "a"}]}).status == 200
            assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
            reader.execute("COMMIT")
            assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (21,)
        server.terminate()
        assert server.wait(seconds=5) == 0
    assert set(contents(data)) == {FILE}, "the log was emptied into the file"


# --- while it reads its jobs

MANY = 200_000


@pytest.mark.slow
def test_a_server_that_reads_many_jobs_says_so_ends_when_told_and_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    data = tmp_path / "data"
    fill(data, MANY)

    with Server(*on_disk(data)) as server:
        server.wait_starting()
        answer = post(server, "enqueue", {"jobs": [{"type": "a"}]})
        assert (answer.status, answer.body["code"]) == (503, "starting")
        assert answer.headers["Retry-After"] == "1"
        ready = server.request("GET", "/readyz")
        assert (ready.status, ready.body["code"]) == (503, "starting")
        assert server.request("GET", "/healthz").status == 200
        assert not server.events("ready"), "it was too fast for this test"
        server.terminate()
        assert server.wait(seconds=5) == 0
        assert not server.events("ready")

    for number in range(3):
        with Server(*on_disk(data)) as server:
            server.wait_starting()
            threading.Event().wait(0.2 * number)
            server.send_signal(signal.SIGKILL)
            assert server.wait(seconds=ANSWER_SECONDS) == -signal.SIGKILL

    with running_server(*on_disk(data)) as server:
        assert server.request("GET", "/readyz").status == 200
        assert [line["jobs"] for line in server.events("recovering")][-1] == MANY
        view = server.request("GET", "/v1/queues/q").body
        assert view["counts"]["queued"] == MANY
        assert ids(server) == list(range(1, 1_001))
        assert post(server, "enqueue", {"jobs": [{"type": "a"}]}).body["jobs"][0]["id"] == MANY + 1


# --- what is logged


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_the_log_tells_what_a_crash_would_lose_and_no_secrets(tmp_path: Path, durability: str) -> None:
    data = tmp_path / "data"
    lines: list[bytes] = []
    for _ in range(2):
        with running_server(*on_disk(data, "--durability", durability)) as server:
            ready = server.wait_ready()
            assert ready["durability"] == durability
            assert ("power cut" in ready["a_crash_loses"]) == (durability == "normal")
            assert len(server.events("ready")) == 1
            post(server, "enqueue", {"jobs": [{"type": "a", "payload": "a hidden word"}]})
            (job,) = post(server, "dequeue", {"count": 1}).body["jobs"]
            token = job["lease"]["token"]
            assert post(server, f"jobs/{job['id']}/conclude", {"token": token, "result": "a hidden word"}).status == 200
            server.terminate()
            assert server.wait(seconds=5) == 0
        lines += server.log
        assert token.encode() not in b"".join(lines)
    with closing(sqlite3.connect(data / FILE)) as file:
        (secret,) = file.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
    log = b"".join(lines)
    assert b"hidden" not in log
    assert secret.hex().encode() not in log
    assert repr(secret)[2:-1].encode() not in log
