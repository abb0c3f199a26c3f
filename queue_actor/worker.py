"""Workers: functions that do jobs, and a loop that has them done.

    from queue_actor.worker import App

    app = App()

    @app.job("resize", queue="images")
    def resize(picture: Picture) -> dict[str, int]: ...

    app.run()

A handler is asynchronous, or runs in a thread or in a child process. What it is given, what it may return and raise is
in handlers.py; how leases are kept in heartbeats.py, and the loop is in worker_loop.py. `queue-actor work module:app`
runs an app, too.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final, Literal, TypeVar, Unpack

import anyio

from queue_actor.children import in_child
from queue_actor.client import AsyncClient
from queue_actor.client_errors import ClientError
from queue_actor.counters import Statistics
from queue_actor.handlers import Handler, Handlers, Mode, Reject, Retry, RunningJob, Stopped
from queue_actor.jobs import DEFAULT_QUEUE
from queue_actor.worker_lines import LogShape, log_to_stderr
from queue_actor.worker_loop import Worker
from queue_actor.worker_metrics import serving
from queue_actor.worker_options import GivenOptions, Options, Server

__all__ = [
    "App",
    "GivenOptions",
    "Options",
    "Reject",
    "Retry",
    "RunningJob",
    "Server",
    "Statistics",
    "Stopped",
    "Worker",
]

logger = logging.getLogger("queue_actor.worker")

Function = TypeVar("Function", bound=Callable[..., Any])

REPEAT_SECONDS: Final = 5.0
"""How long the client repeats by itself; beyond that the worker knows, and says, that the server is not reached."""

LEFT_BEHIND: Final = 1
"""Exit status of a worker that ended with outcomes that the server does not know."""


class App:
    """Handlers, and how to run them."""

    def __init__(self, queue: str = DEFAULT_QUEUE, *, sync: Literal["threads", "processes"] = "threads") -> None:
        """An app without handlers.

        Args:
            queue: Whose jobs are meant by handlers that name no queue.
            sync: Where handlers run that are not asynchronous and do not say so themselves.
        """
        self.queue = queue
        self.sync: Literal["threads", "processes"] = sync
        self._handlers = Handlers()

    def job(
        self,
        type: str,  # noqa: A002 - as it is called everywhere
        *,
        queue: str | None = None,
        mode: Mode | None = None,
        run_seconds: float | None = None,
        stuck_seconds: float | None = None,
    ) -> Callable[[Function], Function]:
        """Make a function the handler of the jobs of a type. It stays the function that it was.

        Args:
            type: Of the jobs.
            queue: Whose jobs, also a prefix such as `tenant:*`. None: the app's, and those that the worker is told.
            mode: Where it runs. None: asynchronous functions in the event loop, others as the app says.
            run_seconds: How long it may take. Then it is stopped, and the attempt has failed, `TimeLimit`.
            stuck_seconds: How long it may take without `RunningJob.report`. Then its lease is extended no more, it is
                stopped, and the attempt has failed, `Stuck`.

        Raises:
            TypeError: The function cannot be called with a payload and a job, or not in this mode.
            ValueError: There is one for the same jobs.
        """

        def register(function: Function) -> Function:
            self._handlers.add(
                Handler(type, function, queue=queue, mode=mode, run_seconds=run_seconds, stuck_seconds=stuck_seconds)
            )
            return function

        return register

    @property
    def queues(self) -> list[str]:
        """The queues that there are handlers for, in the order in which they came."""
        named = (self.queue if handler.queue is None else handler.queue for handler in self._handlers)
        return list(dict.fromkeys(named))

    @property
    def handlers(self) -> Handlers:
        """Its handlers, each with the mode that it runs in."""
        return self._handlers.settled(self.sync)

    def worker(self, server: Server, **given: Unpack[GivenOptions]) -> Worker:
        """A worker of this app, to `run` within a program of your own, on Trio or asyncio.

        Args:
            server: An `AsyncClient`. Its calls should not be repeated for long, as the worker repeats them itself.
            given: How it works, see `Options`.

        Raises:
            TypeError: A handler that is to run in processes cannot.
            ValueError: An option is out of bounds, or there is no handler.
        """
        options: dict[str, Any] = {"queues": self.queues, **given}
        if isinstance(options["queues"], str):
            options["queues"] = [options["queues"]]
        return Worker(server, self.handlers, Options(**options))

    async def run_async(
        self,
        *,
        url: str | None = None,
        token: str | None = None,
        server: Server | None = None,
        signals: bool = True,
        metrics: str | None = None,
        **given: Unpack[GivenOptions],
    ) -> Statistics:
        """Work until SIGTERM or SIGINT asks to end; what was done.

        The first one lets running handlers finish, for `grace_seconds` at most; the second one ends at once.

        Args:
            url: Where the server is. None: QUEUE_ACTOR_URL, and without that http://127.0.0.1:8080.
            token: The access token. None: QUEUE_ACTOR_TOKEN, and without that none is shown.
            server: A client of your own, in place of these two.
            signals: Whether to look at signals, which only the main thread can.
            metrics: HOST:PORT where it is scraped at `GET /metrics` for as long as it works; port 0 is a free one, and
                its log says which. None: nowhere.
            given: How it works, see `Options`.

        Raises:
            AddressError: `metrics` cannot be listened on.
            ClientError: The server will not give it jobs: a wrong token, for one.
            TypeError: A handler that is to run in processes cannot.
            ValueError: An option is out of bounds, or there is no handler.
        """
        async with AsyncExitStack() as stack:
            if server is None:
                client = AsyncClient(url, token, repeat_seconds=REPEAT_SECONDS, coalesce=False)
                server = await stack.enter_async_context(client)
            worker = self.worker(server, **given)
            if metrics is not None:
                stack.enter_context(serving(worker, metrics))
            refusal: ClientError | None = None
            async with anyio.create_task_group() as tasks:
                if signals:
                    await tasks.start(_heed_signals, worker)
                try:
                    await worker.run()
                except ClientError as error:
                    refusal = error
                tasks.cancel_scope.cancel()
        if refusal is not None:
            raise refusal  # outside of the group, which would wrap it
        return worker.statistics()

    def run(
        self,
        *,
        url: str | None = None,
        token: str | None = None,
        backend: Literal["asyncio", "trio"] = "asyncio",
        log: LogShape = "text",
        metrics: str | None = None,
        leave: Callable[[int], Any] = os._exit,
        **given: Unpack[GivenOptions],
    ) -> int:
        """Work until SIGTERM or SIGINT asks to end; the exit status, 0 if the server knows what came of all jobs.

        In a child process, which imports the program to find its handlers, this returns at once.

        Args:
            url: Where the server is, as for `run_async`.
            token: The access token, likewise.
            backend: What runs asynchronous handlers.
            log: The shape of log lines on standard error, unless the program has set up logging itself.
            metrics: Where it is scraped, as for `run_async`.
            leave: Ends the process when threads are left that do not stop.
            given: How it works, see `Options`.
        """
        if in_child():
            return 0
        log_to_stderr(log)

        async def main() -> Statistics:
            return await self.run_async(url=url, token=token, metrics=metrics, **given)

        statistics = anyio.run(main, backend=backend)
        status = LEFT_BEHIND if statistics.unreported else 0
        if statistics.threads:
            logger.error("threads_left", extra={"facts": {"threads": statistics.threads}})
            logging.shutdown()
            sys.stdout.flush()
            leave(status)
        return status


async def _heed_signals(worker: Worker, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """The first signal lets the worker end, the second one makes it."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        end = worker.drain
        async for number in signals:
            logger.info("worker_signalled", extra={"facts": {"signal": signal.Signals(number).name}})
            end()
            end = worker.stop
