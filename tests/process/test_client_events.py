"""The client follows the events of the real server, over restarts, through each of its shells."""

import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trustme

from queue_actor.client import (
    AccessRefused,
    AsyncClient,
    AsyncEvents,
    Gap,
    Invalid,
    JobEvent,
    JobState,
    NewJob,
    Opened,
    QueuesEvent,
)
from tests.process.server import Server, eventually, running_server
from tests.process.shells import SHELLS, Shell, scenario, through
from tests.process.tokens import token

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server
        assert server.complaints() == []


@pytest.fixture(params=["threads", "trio", "asyncio"])
def shell(request: pytest.FixtureRequest) -> Shell:
    return SHELLS[request.param]


def url(server: Server) -> str:
    return f"http://{server.host}:{server.port}"


async def next_jobs(events: AsyncEvents, count: int = 1) -> list[tuple[int, str]]:
    """Id and verb of the next events, which are of jobs."""
    told = [await anext(events) for _ in range(count)]
    return [(event.id, event.verb) for event in told if isinstance(event, JobEvent)]


def readers(server: Server) -> int:
    answer = server.request("GET", "/v1/statistics").body
    return int(answer["readers"])


@scenario
async def test_the_life_of_a_job_is_told(client: AsyncClient, queue: str) -> None:
    async with client.follow(queue) as events:
        assert await anext(events) == Opened(resumed=False)
        await client.enqueue(queue, "resize")
        (job,) = await client.dequeue(queue, consumer="w1")
        await client.fail(job, retry=False)
        told = [await anext(events) for _ in range(3)]
    assert all(isinstance(event, JobEvent) and event.queue == queue and event.type == "resize" for event in told)
    enqueued, dequeued, failed = told
    assert isinstance(enqueued, JobEvent)
    assert (enqueued.before, enqueued.after, enqueued.attempt) == (None, JobState.QUEUED, 0)
    assert isinstance(dequeued, JobEvent)
    assert (dequeued.verb, dequeued.attempt, dequeued.consumer) == ("dequeue", 1, "w1")
    assert isinstance(failed, JobEvent)
    assert (failed.after, failed.reason) == (JobState.DEAD, "killed")
    assert enqueued.at <= dequeued.at <= failed.at


@scenario
async def test_only_what_is_wanted_is_told_and_for_as_long(client: AsyncClient, queue: str) -> None:
    async with (
        client.follow(f"{queue}*", type="a", state=["cancelled", "dead"]) as events,
        client.follow(f"{queue}*", shape="queues") as queues,
    ):
        assert await anext(events) == await anext(queues) == Opened(resumed=False)
        for type_ in ("a", "b"):
            await client.cancel(queue, (await client.enqueue(queue, type_)).id)
        await client.cancel(f"{queue}:x", (await client.enqueue(f"{queue}:x", "a")).id)
        told = [await anext(events), await anext(events)]
        assert [event.queue for event in told if isinstance(event, JobEvent)] == [queue, f"{queue}:x"]
        moved: set[str] = set()
        while moved != {queue, f"{queue}:x"}:
            event = await anext(queues)
            assert isinstance(event, QueuesEvent)
            moved.update(event.queues)
    assert [event async for event in client.follow(queue, wait_seconds=0)] == [Opened(resumed=False)]
    with pytest.raises(Invalid, match="state"):
        await anext(client.follow(queue, state="none"))


@scenario
async def test_who_comes_again_goes_on_where_he_was(client: AsyncClient, queue: str) -> None:
    async with client.follow(queue) as events:
        await anext(events)
        await client.enqueue_many(queue, [NewJob("t")] * 3)
        assert await next_jobs(events) == [(1, "enqueue")]
    await client.enqueue(queue, "t")
    async with client.follow(queue, after=events.last_id) as events:
        assert await anext(events) == Opened(resumed=True)
        assert await next_jobs(events, 3) == [(2, "enqueue"), (3, "enqueue"), (4, "enqueue")]
    with pytest.raises(Invalid, match="Last-Event-ID"):
        await anext(client.follow(queue, after="none"))


def test_who_is_closed_while_he_waits_is_gone_at_once(server: Server, shell: Shell) -> None:
    async def play(client: AsyncClient, queue: str) -> None:
        opened, ended = anyio.Event(), anyio.Event()

        async def listen(events: AsyncEvents) -> None:
            assert await anext(events) == Opened(resumed=False)
            opened.set()
            assert [event async for event in events] == []
            ended.set()

        async with anyio.create_task_group() as tasks:
            events = client.follow(queue)
            tasks.start_soon(listen, events)
            await opened.wait()
            assert await anyio.to_thread.run_sync(readers, server) == 1
            await events.aclose()
            await ended.wait()
        assert await anyio.to_thread.run_sync(eventually, lambda: readers(server) == 0)

        events = client.follow(queue)
        await anext(events)
        assert await anyio.to_thread.run_sync(readers, server) == 1

    through(shell, url(server), play)
    assert eventually(lambda: readers(server) == 0)  # with the client


def test_who_cannot_keep_up_is_told_how_much_he_has_missed(shell: Shell) -> None:
    with running_server("--events-kept", "100") as server:

        async def play(client: AsyncClient, queue: str) -> None:
            async with client.follow(queue) as events:
                await anext(events)
                await client.enqueue_many(queue, [NewJob("t")] * 250)
                assert await anext(events) == Gap("behind", 150)
                assert await next_jobs(events, 100) == [(n, "enqueue") for n in range(151, 251)]

        through(shell, url(server), play)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_over_a_restart_of_a_durable_server_nothing_is_left_out(
    tmp_path: Path, shell: Shell, number: signal.Signals
) -> None:
    data = str(tmp_path / "data")
    with running_server("--data", data) as first:

        async def play(client: AsyncClient, queue: str) -> None:
            async with client.follow(queue) as events:
                await anext(events)
                await client.enqueue(queue, "t")
                assert await next_jobs(events) == [(1, "enqueue")]
                before = client.instance
                async with anyio.create_task_group() as tasks:
                    got: list[tuple[int, str]] = []
                    heard = anyio.Event()

                    async def listen() -> None:
                        got.extend(await next_jobs(events, 2))
                        heard.set()

                    tasks.start_soon(listen)
                    first.send_signal(number)
                    await anyio.to_thread.run_sync(lambda: first.wait(seconds=20))
                    with Server("--bind", f"127.0.0.1:{first.port}", "--data", data) as second:
                        await anyio.to_thread.run_sync(second.wait_ready)
                        assert await anyio.to_thread.run_sync(eventually, lambda: readers(second) == 1)
                        await client.enqueue_many(queue, [NewJob("t")] * 2)
                        while len(got) < 2:
                            await anyio.lowlevel.checkpoint()
                assert got == [(2, "enqueue"), (3, "enqueue")]
                assert client.instance == before

        through(shell, url(first), play)


def test_what_happened_before_a_durable_server_was_reached_again_is_a_gap(tmp_path: Path, shell: Shell) -> None:
    data = str(tmp_path / "data")
    with running_server("--data", data) as first:
        places: list[str | None] = []

        async def before(client: AsyncClient, queue: str) -> None:
            async with client.follow(queue) as events:
                await anext(events)
                await client.enqueue_many(queue, [NewJob("t")] * 3)
                assert await next_jobs(events) == [(1, "enqueue")]
            places.append(events.last_id)

        through(shell, url(first), before)
        first.terminate()
        first.wait(seconds=20)
    with running_server("--data", data) as second:

        async def after(client: AsyncClient, _: str) -> None:
            async with client.follow(after=places[0]) as events:
                assert await anext(events) == Opened(resumed=False)
                assert await anext(events) == Gap("restart", 2)

        through(shell, url(second), after)


def test_a_server_in_memory_that_starts_again_is_another_life(shell: Shell) -> None:
    with running_server() as first:

        async def play(client: AsyncClient, queue: str) -> None:
            async with client.follow(queue) as events:
                await anext(events)
                await client.enqueue(queue, "t")
                assert await next_jobs(events) == [(1, "enqueue")]
                before = client.instance
                first.terminate()
                await anyio.to_thread.run_sync(lambda: first.wait(seconds=20))
                with Server("--bind", f"127.0.0.1:{first.port}") as second:
                    await anyio.to_thread.run_sync(second.wait_ready)
                    assert await anext(events) == Gap("instance", None)
                    await client.enqueue(queue, "t")
                    assert await next_jobs(events) == [(1, "enqueue")]
                    assert client.instance != before

        through(shell, url(first), play)


def test_a_token_that_is_revoked_ends_the_stream(tmp_path: Path, shell: Shell) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('{"tokens": []}')
    path.chmod(0o600)
    reader = token(path, "create", "reader", "--scope", "read", "--queue", "mine")
    with running_server("--tokens", str(path)) as server:

        async def play(client: AsyncClient, _: str) -> None:
            async with client.follow() as events:
                assert await anext(events) == Opened(resumed=False)
                await anyio.to_thread.run_sync(token, path, "revoke", "reader")
                server.send_signal(signal.SIGHUP)
                with pytest.raises(AccessRefused):
                    await anext(events)
            with pytest.raises(AccessRefused):
                await anext(client.follow("theirs"))

        through(shell, url(server), play, token=reader)


def test_it_is_ended_at_once_over_tls_too(tmp_path: Path, shell: Shell) -> None:
    authority = trustme.CA()
    ca, cert, key = (tmp_path / f"{name}.pem" for name in ("ca", "cert", "key"))
    authority.cert_pem.write_to_path(str(ca))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    with running_server("--tls-cert", str(cert), "--tls-key", str(key)) as server:

        async def play(client: AsyncClient, queue: str) -> None:
            events, opened = client.follow(queue), anyio.Event()

            async def listen() -> None:
                async for event in events:
                    assert event == Opened(resumed=False)
                    opened.set()

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(listen)
                    await opened.wait()
                    await events.aclose()

        through(shell, f"https://{server.host}:{server.port}", play, ca_file=str(ca))
