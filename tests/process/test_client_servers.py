"""The client and servers of other kinds: with tokens, limits, TLS, a unix socket, a disk; that end, and start again."""

import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

from queue_actor.client import (
    AccessRefused,
    AsyncClient,
    Busy,
    Client,
    ConcludeClaim,
    Dequeue,
    JobState,
    NewJob,
    Refused,
    UnknownJob,
    UnknownQueue,
    Unreachable,
)
from tests.process.server import Server, running_server
from tests.process.shells import SHELLS, Shell, Tally, through
from tests.process.tokens import token

pytestmark = pytest.mark.process


def refused(kind: type[Refused], code: str) -> pytest.RaisesExc[Refused]:
    return pytest.RaisesExc(kind, check=lambda error: error.code == code)


def url(server: Server) -> str:
    return f"http://{server.host}:{server.port}"


# --- limits

LIMITS = ("--queued-jobs-max", "5", "--queues-max", "2", "--memory-bytes-max", "2000", "--waiters-max", "0")


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    with running_server(*LIMITS) as server:
        yield server


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Shell:
    return SHELLS[request.param]


def test_a_limit_that_stays_reached_is_busy(limited: Server, shell: Shell) -> None:
    async def scenario(client: AsyncClient, _: str) -> None:
        queue = "limited"
        await client.enqueue(queue, "t", "x" * 1500)
        with refused(Busy, "memory_full"):
            await client.enqueue(queue, "t", "x" * 1500)
        await client.enqueue_many(queue, [NewJob("t")] * 4)
        with refused(Busy, "queue_full"):
            await client.enqueue(queue, "t")
        with refused(Busy, "queue_full"):
            [chunk async for chunk in client.enqueue_stream(queue, [NewJob("t")])]
        with refused(Busy, "too_many_waiters"):
            await client.dequeue("none", wait_seconds=1)
        await client.put_queue("second")
        with refused(Busy, "too_many_queues"):
            await client.put_queue("third")
        (job,) = await client.dequeue(queue)
        settled = await client.conclude(job, dequeue=Dequeue(queue="second", wait_seconds=1))
        assert settled.state is JobState.CONCLUDED
        assert settled.dequeued is not None
        assert settled.dequeued.refused is not None
        assert settled.dequeued.refused.code == "too_many_waiters"
        await client.purge(queue, state=["queued", "concluded"])
        await client.delete_queue("second")

    through(shell, url(limited), scenario, repeat_seconds=0.0)


@pytest.mark.parametrize("name", ["threads", "trio", "asyncio"])
def test_a_full_queue_is_waited_for_and_who_has_room_goes_on(limited: Server, name: str) -> None:
    """Eight call at once, and there is room for five: the others have it when somebody has concluded jobs."""

    async def scenario(client: AsyncClient, _: str) -> None:
        queue = "limited"
        done = Tally()

        async def enqueue() -> None:
            done.add((await client.enqueue(queue, "t")).id)

        async with anyio.create_task_group() as tasks:
            for _number in range(8):
                tasks.start_soon(enqueue)
            await done.reaches(5)
            assert (await client.read_queue(queue)).counts["queued"] == 5
            jobs = await client.dequeue(queue, count=5)
            assert len(jobs) == 5
            await client.conclude_many([ConcludeClaim.of(job) for job in jobs])
        assert len(set(done.items)) == 8
        await client.purge(queue, state=["queued", "concluded"])

    through(SHELLS[name], url(limited), scenario)


def test_queues_may_have_to_be_declared() -> None:
    with running_server("--queues", "declared") as server:

        async def scenario(client: AsyncClient, queue: str) -> None:
            with refused(UnknownQueue, "unknown_queue"):
                await client.enqueue(queue, "t")
            await client.put_queue(queue)
            assert (await client.enqueue(queue, "t")).id == 1

        for shell in SHELLS.values():
            through(shell, url(server), scenario)


# --- tokens


def test_a_token_is_shown_and_what_it_may_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('{"tokens": []}')
    path.chmod(0o600)
    everything = token(path, "create", "admin", "--scope", "admin", "--queue", "*")
    narrow = ("--scope", "produce", "--scope", "consume", "--queue", "mine:*")
    worker = token(path, "create", "worker", *narrow, "--in-progress-max", "1")
    slow = token(path, "create", "slow", *narrow, "--requests-per-second", "2")
    with running_server("--tokens", str(path)) as server:

        async def as_nobody(client: AsyncClient, queue: str) -> None:
            with refused(AccessRefused, "unauthorized"):
                await client.read_queue(queue)

        async def as_worker(client: AsyncClient, _: str) -> None:
            with refused(AccessRefused, "forbidden"):
                await client.enqueue("theirs", "t")
            await client.enqueue("mine:a", "t")
            await client.enqueue("mine:a", "t")
            (job,) = await client.dequeue("mine:a")
            with refused(Busy, "in_progress_limit"):
                await client.dequeue("mine:a")
            across = await client.conclude_many(
                [ConcludeClaim.of(job), ConcludeClaim(queue="theirs", id=1, token="t")]  # noqa: S106 - none
            )
            assert [job.state for job in across.done] == [JobState.CONCLUDED]
            assert [type(error) for error in across.refused] == [AccessRefused]

        async def hurried(client: AsyncClient, _: str) -> None:
            with refused(Busy, "rate_limited"):
                for _number in range(50):
                    await client.dequeue("mine:b")

        for shell in SHELLS.values():
            through(shell, url(server), as_nobody)
            through(shell, url(server), as_worker, token=worker, repeat_seconds=0.0)
            through(shell, url(server), hurried, token=slow, repeat_seconds=0.0)
        monkeypatch.setenv("QUEUE_ACTOR_URL", url(server))
        monkeypatch.setenv("QUEUE_ACTOR_TOKEN", everything)
        with Client() as client:
            assert client.read_queue("mine:a").exists


# --- TLS and sockets


def test_https_is_spoken_with_who_is_known(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key, own_cert, own_key = (tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "own", "own-key"))
    authority.cert_pem.write_to_path(str(ca))
    for identity, chain, private in (("127.0.0.1", cert, key), ("worker-1", own_cert, own_key)):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(str(private))
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(ca))
    with running_server(*flags) as server:
        there = f"https://{server.host}:{server.port}"

        async def scenario(client: AsyncClient, queue: str) -> None:
            assert (await client.enqueue(queue, "t")).id == 1

        async def unknown(client: AsyncClient, queue: str) -> None:
            with pytest.raises(Unreachable):
                await client.enqueue(queue, "t")

        for shell in SHELLS.values():
            through(shell, there, scenario, ca_file=str(ca), certificate=(str(own_cert), str(own_key)))
            through(shell, there, unknown, repeat_seconds=0.0)  # none of the system's authorities has signed it


def test_a_unix_socket_is_a_way_to_the_server(tmp_path: Path) -> None:
    path = tmp_path / "queue.sock"
    with Server("--bind", f"unix:{path}") as server:
        server.wait_for_line(lambda line: b'"event":"ready"' in line, seconds=30)

        async def scenario(client: AsyncClient, queue: str) -> None:
            assert (await client.enqueue(queue, "t")).id == 1

        for shell in SHELLS.values():
            through(shell, f"unix:{path}", scenario)


# --- a disk, and other lives


def test_a_backup_is_a_file_that_holds_everything(tmp_path: Path) -> None:
    with running_server("--data", str(tmp_path / "data")) as server:

        async def scenario(client: AsyncClient, queue: str) -> None:
            await client.enqueue_many(queue, [NewJob("t", "x" * 1000) for _ in range(500)])
            assert client.durability == "full"
            figures = await client.statistics()
            assert figures.store is not None
            assert figures.store.commits >= 1
            pieces: list[bytes] = []
            async with client.backup() as parts:
                pieces.extend([part async for part in parts])
            (tmp_path / "copy.sqlite").write_bytes(b"".join(pieces))

        for n, shell in enumerate(SHELLS.values(), 1):
            through(shell, url(server), scenario)
            copy = sqlite3.connect(tmp_path / "copy.sqlite")
            assert copy.execute("SELECT count(*) FROM jobs").fetchone() == (500 * n,)
            copy.close()


def test_a_disk_that_is_full_takes_no_more_jobs(tmp_path: Path) -> None:
    with running_server("--data", str(tmp_path / "data"), "--disk-reserve-bytes", str(1 << 40)) as server:

        async def scenario(client: AsyncClient, queue: str) -> None:
            with refused(Busy, "disk_full"):
                await client.enqueue(queue, "t")
            with refused(Busy, "disk_full"):
                async with client.backup():
                    pass

        for shell in SHELLS.values():
            through(shell, url(server), scenario, repeat_seconds=0.0)


@pytest.mark.parametrize("name", ["threads", "trio", "asyncio"])
def test_a_server_that_is_killed_and_started_again_is_waited_for(tmp_path: Path, name: str) -> None:
    """While many call. Each job is there once afterwards, whatever became of its first try."""
    data, ids = str(tmp_path / "data"), Tally()
    with running_server("--data", data) as first:
        address = f"127.0.0.1:{first.port}"

        async def scenario(client: AsyncClient, queue: str) -> None:
            async def produce(n: int) -> None:
                for m in range(20):
                    ids.add((await client.enqueue(queue, "t", [n, m])).id)

            async with anyio.create_task_group() as tasks:
                for n in range(10):
                    tasks.start_soon(produce, n)
                await ids.reaches(20)
                first.send_signal(signal.SIGKILL)
                first.wait(seconds=10)
                with Server("--bind", address, "--data", data) as second:
                    await anyio.to_thread.run_sync(second.wait_ready)
                    await ids.reaches(200)
                    payloads = [job.payload async for job in client.jobs(queue, content=True, limit=1000)]
            assert len(set(ids.items)) == 200
            # The answers that keys stand for are stored with the jobs, so what both were asked for was done once.
            assert sorted(payloads) == [[n, m] for n in range(10) for m in range(20)]

        through(SHELLS[name], url(first), scenario)


class Loses(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A network that loses every second answer, after the server has carried out what was asked."""

    def __init__(self, there: httpx.HTTPTransport | httpx.AsyncHTTPTransport) -> None:
        self._there: Any = there
        self._requests = 0

    def _lost(self) -> bool:
        self._requests += 1
        return self._requests % 2 == 1

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = self._there.handle_request(request)
        if self._lost():
            response.read()
            response.close()
            raise httpx.ReadError("the answer is lost")
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._there.handle_async_request(request)
        if self._lost():
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("the answer is lost")
        return response

    def close(self) -> None:
        self._there.close()

    async def aclose(self) -> None:
        await self._there.aclose()


def test_an_answer_that_is_lost_changes_nothing(limited: Server, shell: Shell) -> None:
    async def scenario(client: AsyncClient, _: str) -> None:
        queue = "limited"
        enqueued = await client.enqueue(queue, "t", 1)
        assert [job.id for job in (await client.enqueue_many(queue, [NewJob("t", 2)])).done] == [enqueued.id + 1]
        one, other = await client.dequeue(queue, count=2)
        assert [one.payload, other.payload] == [1, 2]
        await client.enqueue(queue, "t", 3)
        settled = await client.fail(one, retry=False, dequeue=Dequeue())
        assert settled.state is JobState.DEAD
        assert settled.dequeued is not None
        assert [job.payload for job in settled.dequeued.jobs] == [3]
        assert (await client.conclude(other, "x")).state is JobState.CONCLUDED
        assert (await client.extend(settled.dequeued.jobs[0])).state is JobState.IN_PROGRESS
        assert (await client.release(settled.dequeued.jobs[0])).state is JobState.QUEUED
        assert (await client.cancel(queue, enqueued.id + 2)).state is JobState.CANCELLED
        # What is not safe to repeat is not: its caller is told that nobody knows.
        with pytest.raises(Unreachable) as lost:
            await client.forget(queue, enqueued.id)
        assert lost.value.may_be_done
        if client.instance:
            with pytest.raises(UnknownJob):
                await client.read_job(queue, enqueued.id)
        with pytest.raises(Unreachable):
            await client.purge(queue, state=["queued", "concluded", "cancelled"])

    there = httpx.HTTPTransport() if shell.threads else httpx.AsyncHTTPTransport()
    through(shell, url(limited), scenario, transport=Loses(there))


def test_nobody_there_is_unreachable_and_nothing_was_done(shell: Shell) -> None:
    async def scenario(client: AsyncClient, queue: str) -> None:
        for call in (
            lambda: client.enqueue(queue, "t"),
            lambda: client.purge(queue, state="dead"),
            lambda: client.dequeue(queue, wait_seconds=20),
        ):
            with pytest.raises(Unreachable) as nobody:
                await call()
            assert not nobody.value.may_be_done

    with socket.socket() as nobodys:
        nobodys.bind(("127.0.0.1", 0))  # and does not listen
        through(shell, f"http://127.0.0.1:{nobodys.getsockname()[1]}", scenario, repeat_seconds=0.0)
