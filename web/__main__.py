"""The program: `python -m web`. Read `serve_queue` from the outside in; its end is the same in reverse."""

import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
from hypercorn.trio import serve

from queue_actor.access import AccessError
from queue_actor.directory import Data, open_directory
from queue_actor.engine import Engine, UnreadableError
from queue_actor.service import open_engine
from queue_actor.settings import PREFIX, SettingError, Settings, help_text, read_settings
from web.app import App
from web.auth import Access
from web.binding import address_of, listen
from web.logs import set_up_logging
from web.metrics import Metrics
from web.ops import A_CRASH_LOSES
from web.rereading import watched
from web.serving import installed, make_config
from web.tls import Certificate
from web.tracing import Tracing, open_tracing
from web.watchdog import Supervisor, watchdog

EXIT_BUG = 70  # EX_SOFTWARE of sysexits(3)
EXIT_CONFIGURATION = 78  # EX_CONFIG

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter from another: with the usual 5 ms a commit waits for the event loop."""

FILES_BESIDE_CONNECTIONS = 100
"""Descriptors that the process needs for other things than connections."""

logger = logging.getLogger("web")


class Parts(NamedTuple):
    """What was opened before anybody was served, where the settings name it."""

    data: Data | None = None
    access: Access | None = None
    certificate: Certificate | None = None
    supervisor: Supervisor = Supervisor()
    tracing: Tracing | None = None


async def serve_queue(settings: Settings, listener: socket.socket, parts: Parts) -> None:
    """Serve until a signal arrives (then everything in flight is finished) or the engine fails (then raise)."""
    access, certificate = parts.access, parts.certificate
    with installed(settings) as connections:
        connections.certificate = certificate
        files = [file for file in (access, certificate) if file is not None]
        async with (
            open_engine(settings, data=parts.data) as engine,
            watched(files),
            watchdog(settings.stall_seconds, parts.supervisor),
        ):
            if access is not None:
                access.tell()
            app = App(engine, settings, access, Metrics(engine, settings, connections))
            app.tracing = parts.tracing
            connections.identify = app.identify
            config = make_config(settings)
            address = address_of(listener, "https" if certificate else "http")
            config.bind = [f"fd://{listener.detach()}"]
            async with (
                app.answered.together(),
                trio.open_nursery() as nursery,
                trio.open_nursery() as telling,
            ):
                end = partial(_end, app, engine, telling.cancel_scope, parts.supervisor)
                await nursery.start(partial(serve, app, config, shutdown_trigger=end))
                telling.start_soon(app.metrics.watch_loop)
                telling.start_soon(
                    _tell_ready, engine, parts.supervisor, {"address": address, "engine": settings.engine}
                )
    logger.info("ended", extra={"facts": {"address": address}})


def _open_access(settings: Settings) -> Access | None:
    try:
        return Access(Path(settings.tokens)) if settings.tokens else None
    except AccessError as error:
        raise SettingError(f"{PREFIX}TOKENS: {error}") from error


async def _tell_ready(engine: Engine, supervisor: Supervisor, facts: dict[str, str]) -> None:
    if not engine.ready.is_set():
        logger.info("starting", extra={"facts": facts})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_failure, engine, nursery.cancel_scope)
        await engine.ready.wait()
        durable = {"durability": engine.durability, "a_crash_loses": A_CRASH_LOSES[engine.durability]}
        logger.info("ready", extra={"facts": {**facts, **durable}})
        supervisor.tell("READY=1")
        nursery.cancel_scope.cancel()


async def _end(app: App, engine: Engine, telling: trio.CancelScope, supervisor: Supervisor) -> None:
    """Return when the server is to end, after those who wait for a job have been sent home."""
    # Outside of the block a second signal does what it does to any program: end it at once.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_signal, signals, nursery.cancel_scope)
            nursery.start_soon(_until_failure, engine, nursery.cancel_scope)
    supervisor.tell("STOPPING=1")
    telling.cancel()  # it may end before it is ready
    app.draining = True
    engine.drain()


async def _until_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    number = await anext(signals)
    logger.info("draining", extra={"facts": {"signal": signal.Signals(number).name}})
    scope.cancel()


async def _until_failure(engine: Engine, scope: trio.CancelScope) -> None:
    await engine.failed.wait()
    scope.cancel()


def _raise_file_limit(settings: Settings) -> None:
    """Let the process have as many descriptors as `connections_max` needs, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connections_max + FILES_BESIDE_CONNECTIONS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logger.warning("few_files", extra={"facts": {"files_max": allowed, "wanted": wanted}})


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the server and return its exit code: 0 after a drain, 70 after a bug, 78 for settings it cannot use."""
    if {"-h", "--help"} & set(arguments):
        print(help_text())  # noqa: T201 - it was asked for
        return 0
    try:
        settings = read_settings(environment, arguments)
        set_up_logging(settings)
        access = _open_access(settings)
        certificate = Certificate(settings) if settings.tls_cert else None
        with (
            closing(Supervisor.of(environment)) as supervisor,
            open_tracing(settings) as tracing,
            open_directory(settings) if settings.data else nullcontext() as data,
        ):
            listener = listen(settings)
            _raise_file_limit(settings)
            if data is not None:
                sys.setswitchinterval(SWITCH_SECONDS)
            return _run(settings, listener, Parts(data, access, certificate, supervisor, tracing))
    except SettingError as error:
        print(f"queue-actor: {error}", file=sys.stderr)  # noqa: T201 - for whoever starts it, whatever the log
        return EXIT_CONFIGURATION


def _run(settings: Settings, listener: socket.socket, parts: Parts) -> int:
    return_code = 0
    # What was imported and opened stays. The collector would look at all of it each time, for 15 ms and more.
    gc.collect()
    gc.freeze()
    try:
        trio.run(serve_queue, settings, listener, parts)
    except* UnreadableError as unreadable:
        logger.critical("unreadable", extra={"facts": {"reason": str(unreadable.exceptions[0])}})
        return_code = EXIT_CONFIGURATION
    except* Exception:
        logger.critical("failed", exc_info=True)
        return_code = EXIT_BUG
    return return_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
