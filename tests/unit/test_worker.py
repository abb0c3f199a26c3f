"""Apps: how handlers are registered, and how a worker is run and ended."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from queue_actor import children, worker
from queue_actor.client_answers import Extended, Job, Results, Settled
from queue_actor.client_bodies import ConcludeClaim, ExtendClaim, FailClaim, ReleaseClaim
from queue_actor.client_errors import AccessRefused, Unreachable, refusal
from queue_actor.handlers import Handler, leased
from queue_actor.jobs import JobState
from queue_actor.worker import App, Options, RunningJob
from queue_actor.worker_lines import JsonLines, TextLines, facts_of, log_to_stderr
from tests.unit.test_handlers import a_job

Backend = Literal["asyncio", "trio"]
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class FakeServer:
    """Has some jobs, takes what it is told, and stands for any client."""

    def __init__(self, *jobs: Job, refused: bool = False, heard: bool = True) -> None:
        self.jobs = list(jobs)
        self.told: list[tuple[str, int]] = []
        self.asked: list[dict[str, Any]] = []
        self.given = anyio.Event()
        self.progress: list[bytes] = []
        self.reported = threading.Event()
        self._refused = refused
        self._heard = heard

    async def dequeue(self, queue: Any, **asked: Any) -> Sequence[Job]:
        self.asked.append({"queue": queue, **asked})
        if self._refused:
            raise refusal("unauthorized", "who is this?")
        if self.jobs:
            given, self.jobs = self.jobs[: asked["count"]], self.jobs[asked["count"] :]
            self.given.set()
            return given
        await anyio.sleep(0.05)
        return ()

    async def _settle(self, verb: str, jobs: Sequence[Any]) -> Results[Settled]:
        await anyio.lowlevel.checkpoint()
        if not self._heard:
            raise Unreachable("nobody")
        self.told += [(verb, job.id) for job in jobs]
        return Results(tuple(Settled(job.id, job.queue, JobState.CONCLUDED) for job in jobs))

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], **_dequeue: Any) -> Results[Settled]:
        return await self._settle("conclude", jobs)

    async def fail_many(self, jobs: Sequence[FailClaim], **_dequeue: Any) -> Results[Settled]:
        return await self._settle("fail", jobs)

    async def release_many(self, jobs: Sequence[ReleaseClaim], **_dequeue: Any) -> Results[Settled]:
        return await self._settle("release", jobs)

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        self.progress += [bytes(job.progress) for job in jobs if job.progress is not None]
        self.reported.set()
        await anyio.lowlevel.checkpoint()
        return Results(
            tuple(
                Extended(job.id, job.queue, JobState.IN_PROGRESS, leased(a_job()), cancel_requested=False)
                for job in jobs
            )
        )


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def served_by(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Has apps find this server; what they looked for it with."""
    looked: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, *arguments: Any, **_named: Any) -> None:
            looked.append(arguments)

        async def __aenter__(self) -> FakeServer:
            return server

        async def __aexit__(self, *_: object) -> None:
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(worker, "AsyncClient", Client)
    return looked


def signalling() -> App:
    """An app whose handler asks its own process to end, as somebody else would."""
    app = App()

    @app.job("t")
    async def end(payload: list[str]) -> None:
        for name in payload:
            os.kill(os.getpid(), getattr(signal, name))
            await anyio.sleep(0.05)
        await anyio.sleep(0.1)

    return app


# --- registration


def test_a_handler_stays_the_function_that_it_was() -> None:
    app = App("images", sync="processes")

    @app.job("resize")
    def resize(payload: int) -> int:
        return payload + 1

    @app.job("crop", queue="tenant:*", mode="threads", run_seconds=5, stuck_seconds=1)
    def crop() -> None: ...

    @app.job("note")
    async def note(job: RunningJob) -> None: ...

    assert resize(1) == 2
    assert app.queues == ["images", "tenant:*"]
    handlers = {handler.key: handler for handler in app._handlers.settled("threads")}
    assert {key: handler.mode for key, handler in handlers.items()} == {
        "resize": "threads",
        "tenant:*/crop": "threads",
        "note": "async",
    }
    assert (handlers["tenant:*/crop"].run_seconds, handlers["tenant:*/crop"].stuck_seconds) == (5, 1)
    with pytest.raises(ValueError, match="two handlers of resize"):
        app.job("resize")(crop)


def test_a_worker_of_an_app_takes_the_queues_of_its_handlers_unless_it_is_told() -> None:
    app = App()
    app.job("t")(lambda: None)
    assert app.worker(FakeServer())._options.queues == ["default"]
    assert app.worker(FakeServer(), queues="other")._options.queues == ["other"]
    assert app.worker(FakeServer(), queues=["a", "b"])._options.queues == ["a", "b"]
    with pytest.raises(ValueError, match="queues is empty"):
        App().worker(FakeServer())


@pytest.mark.parametrize(
    ("name", "value"), [("concurrency", 0), ("prefetch", -1), ("wait_seconds", -0.1), ("grace_seconds", -1)]
)
def test_an_option_that_is_out_of_bounds_is_named(name: str, value: float) -> None:
    options: dict[str, Any] = {"queues": ["q"], name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Options(**options)


# --- a run


@both
def test_the_first_signal_lets_handlers_finish(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(a_job(["SIGTERM"], id=1), a_job([], id=2))
    looked = served_by(server, monkeypatch)
    left: list[int] = []
    where: dict[str, Any] = {"url": "http://there", "token": "qa"}
    status = signalling().run(backend=backend, **where, leave=left.append, concurrency=3, consumer="me")
    assert status == 0
    assert sorted(server.told) == [("conclude", 1), ("conclude", 2)]
    assert looked == [("http://there", "qa")]
    assert left == []
    first = server.asked[0]
    assert (first["queue"], first["count"], first["consumer"], first["order"]) == (["default"], 3, "me", "listed")
    assert (first["wait_seconds"], first["lease_seconds"]) == (5, None)


@both
def test_the_second_signal_ends_at_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(a_job(["SIGINT", "SIGTERM"], id=1), a_job([], id=2))
    served_by(server, monkeypatch)
    assert signalling().run(backend=backend, concurrency=1, prefetch=1) == 0
    assert sorted(server.told) == [("release", 1), ("release", 2)]


@both
def test_jobs_that_the_server_knows_nothing_of_show_in_the_exit_status(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer(a_job(["SIGINT", "SIGINT"], id=1), heard=False)
    served_by(server, monkeypatch)
    assert signalling().run(backend=backend) == 1


@both
def test_a_server_that_gives_no_jobs_ends_the_worker_with_its_refusal(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    served_by(FakeServer(refused=True), monkeypatch)
    with pytest.raises(AccessRefused, match="who is this"):
        signalling().run(backend=backend)


@both
def test_a_thread_that_does_not_end_does_not_keep_the_process(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App()
    free = threading.Event()
    left: list[int] = []

    @app.job("t")
    def hold() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        free.wait()

    server = FakeServer(a_job(id=1))
    served_by(server, monkeypatch)
    logging.getLogger().handlers.clear()
    monkeypatch.setattr(logging, "shutdown", lambda: None)

    def leave(status: int) -> None:
        left.append(status)
        free.set()

    assert app.run(backend=backend, grace_seconds=0, leave=leave) == 0
    assert left == [0]
    assert server.told == [("release", 1)]
    assert "threads_left threads=1" in capsys.readouterr().err


@both
def test_a_thread_reports_its_progress(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    server = FakeServer(a_job(id=1))
    served_by(server, monkeypatch)

    @app.job("t")
    def report(job: RunningJob) -> None:
        job.report({"percent": 40})
        server.reported.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    assert app.run(backend=backend) == 0
    assert server.progress == [b'{"percent":40}']
    assert server.told == [("conclude", 1)]


def test_in_a_child_process_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_name", children.CHILD_NAME)
    assert App().run() == 0


@both
def test_a_worker_runs_within_a_program_that_sees_to_signals_itself(backend: Backend) -> None:
    app = App()

    @app.job("t")
    async def work() -> None:
        await anyio.lowlevel.checkpoint()

    async def main() -> None:
        server = FakeServer(a_job(id=1))
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    await app.run_async(server=server, signals=False)

                tasks.start_soon(run)
                await server.given.wait()
                while not server.told:  # noqa: ASYNC110 - there is none
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
        assert server.told == [("conclude", 1)]

    anyio.run(main, backend=backend)


# --- its log


def record(event: str, name: str = "queue_actor.worker", error: Any = None, **facts: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "file", 1, event, (), error)
    made.created = 1_800_000_000.25
    if facts:
        made.facts = facts
    return made


def test_lines_are_for_people_or_for_programs_and_nobody_can_forge_one() -> None:
    made = record("attempt_failed", queue="q", job=7, nothing="", type='a "b"\n', traceback="Trace\n  é\n")
    assert TextLines().format(made) == (
        '2027-01-15T08:00:00.250Z warning attempt_failed queue="q" job=7 type="a \\"b\\"\\n"\n    Trace\n      \\u00e9'
    )
    assert json.loads(JsonLines().format(made)) == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "warning",
        "event": "attempt_failed",
        "queue": "q",
        "job": 7,
        "type": 'a "b"\n',
        "traceback": "Trace\n  é\n",
    }
    assert "\n" not in JsonLines().format(made)


def test_lines_of_others_name_themselves_and_have_their_traceback() -> None:
    facts = {}
    try:
        int("x")
    except ValueError:
        facts = facts_of(record("went wrong", "other", sys.exc_info()))
    assert facts["logger"] == "other"
    assert facts["traceback"].splitlines()[-1].startswith("ValueError: ")
    assert TextLines().format(record("it said\n", "other")).endswith('warning it said\\n logger="other"')


@pytest.mark.parametrize(("shape", "kind"), [("text", TextLines), ("json", JsonLines)])
def test_a_program_that_logs_by_itself_is_left_alone(shape: Any, kind: type) -> None:
    root = logging.getLogger()
    root.handlers.clear()
    log_to_stderr(shape)
    (handler,) = root.handlers
    assert type(handler.formatter) is kind
    assert logging.getLogger("httpx").level == logging.WARNING
    log_to_stderr(shape)
    assert root.handlers == [handler]


def test_a_handler_is_only_known_by_its_type_where_it_names_no_queue() -> None:
    assert Handler("t", lambda: None).key == "t"
