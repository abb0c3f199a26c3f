"""A bare `pong` on Hypercorn's own connections and on web/connections.py: the server's CPU per request, by turns."""

import cProfile
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path

import trio
from hypercorn.trio import serve
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from queue_actor.settings import Settings
from tests.benchmarks.load import READY, Answer, Measure, measure, report, rotated, started
from tests.benchmarks.results import Results, parser
from web.serving import installed, make_config

NAMES = {"stock": "Hypercorn's connections", "ours": "web/connections.py"}
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: pong\r\nAccept: */*\r\n\r\n"


async def pong(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """The least an ASGI application can do."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"pong", "more_body": False})


def ask(_client: int) -> Generator[bytes, Answer, None]:
    """The same request again and again."""
    while True:
        yield REQUEST


async def run_server(*, stock: bool) -> None:
    """Serves on a free port until SIGTERM."""
    settings = Settings(bind="127.0.0.1:0")
    config = make_config(settings)
    # Stock connections close after so many requests, which the client takes for a failure.
    config.keep_alive_max_requests = sys.maxsize
    with trio.open_signal_receiver(signal.SIGTERM) as signals, nullcontext() if stock else installed(settings):
        async with trio.open_nursery() as nursery:
            binds = await nursery.start(serve, pong, config)
            print(f"{READY}{binds[0].rpartition(':')[2]}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


def main(words: Sequence[str] | None = None) -> None:
    """Measures, or with --serve is one of the two servers."""
    options = parser(__doc__)
    options.add_argument("--profile", type=Path, help="with --serve: where to write a profile of the server")
    options.add_argument("--serve", choices=list(NAMES))
    arguments = options.parse_args(words)
    if arguments.serve:
        profile = cProfile.Profile()
        if arguments.profile:
            profile.enable()
        trio.run(lambda: run_server(stock=arguments.serve == "stock"))
        if arguments.profile:
            profile.dump_stats(arguments.profile)
        return
    rounds, seconds = (1, 0.05) if arguments.smoke else (3, 0.5) if arguments.quick else (7, 2.0)
    results = Results("pong", arguments)
    measures: dict[str, list[Measure]] = {name: [] for name in NAMES.values()}
    command = [sys.executable, "-m", "tests.benchmarks.pong", "--serve"]
    with started([*command, "stock"]) as stock, started([*command, "ours"]) as ours:
        servers = dict(zip(measures, (stock, ours), strict=True))
        for number in range(rounds):
            for name in rotated(tuple(servers), number):
                measures[name].append(measure(*servers[name], ask, seconds=seconds))
    report(results, "pong", measures, about=f"16 keep-alive connections; medians of {rounds} rounds of {seconds:g} s.")
    results.end()


if __name__ == "__main__":
    main()
