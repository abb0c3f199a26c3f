"""Statistics and backups: what operators ask of any engine, and over HTTP, as web/README.md promises it."""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.backups import Copy
from queue_actor.engine import Engine
from queue_actor.errors import BackupRunning, DiskFull, Draining, NotDurable
from queue_actor.settings import Settings
from tests.contract.conftest import Serve
from tests.contract.stack import Server, build
from tests.contract.v1 import enqueue, get, refused
from tests.contract.verbs import enqueue as add
from tests.opening import DURABLE, IN_MEMORY

pytestmark = pytest.mark.virtual_time

in_memory = pytest.mark.parametrize("settings", [Settings(), Settings(engine="lock")], ids=IN_MEMORY)
durable = pytest.mark.parametrize("settings", [Settings(data="in memory")], ids=[DURABLE])


def ids(copy: bytes, path: Path) -> list[int]:
    path.write_bytes(copy)
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [id_ for (id_,) in connection.execute("SELECT id FROM jobs ORDER BY id")]
    finally:
        connection.close()


@in_memory
async def test_an_engine_that_keeps_nothing_has_nothing_to_copy(engine: Engine) -> None:
    with pytest.raises(NotDurable):
        await engine.backup()


@durable
async def test_an_engine_that_keeps_its_jobs_gives_a_copy_of_them(engine: Engine, tmp_path: Path) -> None:
    await add(engine, "a", "b")
    copy = await engine.backup()
    await add(engine, "c")
    with pytest.raises(BackupRunning):
        await engine.backup()
    assert ids(b"".join([piece async for piece in copy.pieces()]), tmp_path / "copy") == [1, 2]
    await copy.aclose()
    backups = engine._backups  # type: ignore[attr-defined] # it is a durable one
    backups._room_bytes = lambda: -1.0
    with pytest.raises(DiskFull):
        await engine.backup()
    engine.drain()
    with pytest.raises(Draining):
        await engine.backup()


# --- over HTTP


async def test_statistics_tell_how_the_server_fares(server: Server, settings: Settings) -> None:
    await enqueue(server)
    figures = await get(server, "/v1/statistics")
    store = figures.pop("store")
    work, lag = figures.pop("engine"), figures.pop("loop_lag_seconds")
    assert figures == {
        "instance": server.engine.instance,
        "durability": "full" if settings.data else "memory",
        "a_crash_loses": "nothing" if settings.data else "all jobs",
        "inbox_requests": 0,
        "waiters": 0,
        "readers": 0,
        "connections": 1,
        "limits": {"inbox_requests": 1000, "waiters": 1000, "readers": 200, "connections": 2000},
    }
    assert work["batches"] >= 1
    assert work["batch_requests"]["p50"] > 0
    assert lag == {"p50": 0, "p99": 0}  # nobody measures it here
    if not settings.data:
        assert store is None
        return
    assert list(store) == [
        "file_bytes",
        "wal_bytes",
        "room_bytes",
        "commits",
        "commit_seconds_p50",
        "commit_seconds_p99",
    ]
    assert store["commits"] > 0


@in_memory
async def test_a_server_that_keeps_nothing_says_so_when_a_backup_is_asked_for(server: Server) -> None:
    assert (await refused(server, "GET", "/v1/backup"))[:2] == (409, "not_durable")
    assert (await server.ask("HEAD", "/v1/backup")).status == 405


@durable
async def test_a_backup_is_sent_whole_and_leaves_a_line_in_the_audit_log(server: Server, tmp_path: Path) -> None:
    await enqueue(server)
    sizes = []
    for _ in range(2):  # the first is no more in the way
        answer = await server.ask("GET", "/v1/backup")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/vnd.sqlite3"
        assert answer.headers["cache-control"] == "no-store"
        assert ids(answer.body, tmp_path / "copy") == [1]
        sizes.append(len(answer.body))
    audited = [line for line in server.log if line["event"] == "audit"]
    assert [(line["verb"], line["file_bytes"]) for line in audited] == [("backup", size) for size in sizes]


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy whose first piece is sent, and whose second is long in coming."""
    pieces = Copy.pieces

    async def slowly(copy: Copy) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces(copy)) as whole:
            async for piece in whole:
                yield piece[:100]
                await trio.sleep(1_000)
                yield piece[100:]

    monkeypatch.setattr(Copy, "pieces", slowly)


@durable
@pytest.mark.usefixtures("endless")
async def test_a_backup_whose_client_leaves_makes_room_for_the_next(server: Server) -> None:
    client = server.connect()
    await client.send(build("GET", "/v1/backup"))
    server.answers += 1  # which nobody reads
    await wait_all_tasks_blocked()
    assert (await refused(server, "GET", "/v1/backup"))[:2] == (503, "backup_running")
    await client.leave()
    await wait_all_tasks_blocked()
    client = server.connect()
    await client.send(build("GET", "/v1/backup"))
    server.answers += 1
    assert b"200" in await client.stream.receive_some()
    await client.leave()


@durable
async def test_a_backup_for_which_there_is_no_room_is_refused(server: Server) -> None:
    server.engine._backups._room_bytes = lambda: -1.0  # type: ignore[attr-defined] # it is a durable one
    assert (await refused(server, "GET", "/v1/backup"))[:2] == (507, "disk_full")
    server.engine.drain()
    assert (await refused(server, "GET", "/v1/backup"))[:2] == (503, "draining")


@durable
async def test_a_backup_takes_no_path_from_anybody(serve: Serve) -> None:
    async with serve() as server:
        assert await refused(server, "GET", "/v1/backup?file=/tmp/x") == (400, "invalid", "file")
        assert await refused(server, "GET", "/v1/statistics?file=/tmp/x") == (400, "invalid", "file")
