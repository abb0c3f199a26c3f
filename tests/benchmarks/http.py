"""A request of the classic routes against a bare `pong`: the server's CPU per request, by turns in one run."""

import cProfile
import gc
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import trio
from msgspec.structs import replace

from queue_actor.access import RANDOM_BYTES, AccessFile, Grant, Scope, Secret, encode_file, new_token, token_hash
from queue_actor.settings import Settings
from tests.benchmarks import pong
from tests.benchmarks.load import READY, Answer, Measure, Script, measure, report, rotated, started
from tests.benchmarks.results import Results, parser, plain, spread
from web.__main__ import Parts, serve_queue
from web.auth import Access
from web.binding import listen
from web.logs import set_up_logging
from web.metrics import RequestMeters

HEAD = "Host: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
BODY = b'{"Type":"TIME_CRITICAL","Payload":{"path":"/var/spool/images/0001.png","width":1280}}'
ENQUEUE = (
    f"POST /jobs/enqueue HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
DEQUEUE = f"POST /jobs/dequeue HTTP/1.1\r\n{HEAD}Content-Length: 0\r\n\r\n".encode()


def whole_life(_client: int) -> Generator[bytes, Answer, None]:
    """Enqueue, dequeue, conclude, again and again: the figure is per request, a job is three."""
    while True:
        yield ENQUEUE
        job = yield DEQUEUE
        id_ = job.body.partition(b'"ID":')[2].partition(b",")[0].decode()
        token = job.headers["queue-lease-token"]
        yield (
            f"POST /jobs/{id_}/conclude HTTP/1.1\r\n{HEAD}Queue-Lease-Token: {token}\r\nContent-Length: 0\r\n\r\n"
        ).encode()


def batches(size: int, _client: int) -> Generator[bytes, Answer, None]:
    """Whole lives over `/v1`, so many jobs a request: enqueue, dequeue, conclude."""
    payload = '{"path":"/var/spool/images/0001.png","width":1280,"height":720,"x":1}'
    jobs = ",".join([f'{{"type":"resize","payload":{payload}}}'] * size)
    enqueue = post("enqueue", f'{{"jobs":[{jobs}]}}'.encode())
    dequeue = post("dequeue", f'{{"count":{size}}}'.encode())
    while True:
        yield enqueue
        answer = yield dequeue
        leases = JOBS.decode(answer.body).jobs
        claims = [{"id": job.id, "token": job.lease.token} for job in leases]
        yield post("conclude", msgspec.json.encode({"jobs": claims}))


def next_with_conclude(size: int, _client: int) -> Generator[bytes, Answer, None]:
    """Whole lives over `/v1` in two requests: a conclude brings the next jobs along. The figure is per request."""
    payload = '{"path":"/var/spool/images/0001.png","width":1280,"height":720,"x":1}'
    jobs = ",".join([f'{{"type":"resize","payload":{payload}}}'] * size)
    enqueue = post("enqueue", f'{{"jobs":[{jobs}]}}'.encode())
    yield enqueue
    answer = yield post("dequeue", f'{{"count":{size}}}'.encode())
    leases = JOBS.decode(answer.body).jobs
    while True:
        yield enqueue
        claims = [{"id": job.id, "token": job.lease.token} for job in leases]
        answer = yield post("conclude", msgspec.json.encode({"jobs": claims, "dequeue": {"count": size}}))
        leases = NEXT.decode(answer.body).dequeued.jobs


def post(verb: str, body: bytes) -> bytes:
    """A request to a verb of `/v1`."""
    head = f"POST /v1/queues/images/{verb} HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class LeaseSeen(msgspec.Struct):
    """What a client needs to see of a lease."""

    token: str


class JobSeen(msgspec.Struct):
    """What a client needs to see of a job."""

    id: int
    lease: LeaseSeen


class JobsSeen(msgspec.Struct):
    """What a client needs to see of a dequeue."""

    jobs: list[JobSeen]


class NextSeen(msgspec.Struct):
    """What a client needs to see of a conclude that brings the next jobs."""

    dequeued: JobsSeen


JOBS = msgspec.json.Decoder(JobsSeen)
NEXT = msgspec.json.Decoder(NextSeen)


def enqueue_only(_client: int) -> Generator[bytes, Answer, None]:
    """Enqueue alone."""
    while True:
        yield ENQUEUE


def read_only(_client: int) -> Generator[bytes, Answer, None]:
    """Reads of one job alone, which it has enqueued itself: older ones may have been worked off and forgotten."""
    job = yield ENQUEUE
    id_ = job.body.partition(b'"ID":')[2].partition(b",")[0].decode()
    while True:
        yield f"GET /jobs/{id_} HTTP/1.1\r\n{HEAD}\r\n".encode()


TOKEN = new_token(bytes(RANDOM_BYTES))  # of a server that nobody else can reach
SHOWN = f"Authorization: Bearer {TOKEN}\r\n"


def showing_token(script: Script, client: int) -> Generator[bytes, Answer, None]:
    """The same requests, with an access token."""
    played = script(client)
    request = next(played)
    while True:
        request = played.send((yield request.replace(b"\r\n", f"\r\n{SHOWN}".encode(), 1)))


STOCK = "pong, Hypercorn's own"
OURS = "pong, web/connections.py"
ROWS: dict[str, tuple[str, Script, float]] = {
    STOCK: ("stock", pong.ask, 1),
    OURS: ("ours", pong.ask, 1),
    "enqueue": ("queue", enqueue_only, 1),
    "enqueue dequeue conclude": ("queue", whole_life, 1),
    "read": ("queue", read_only, 1),
    **{f"whole lives by {size}": ("queue", partial(batches, size), 3 / size) for size in (1, 10, 100, 1_000)},
    **{
        f"next with each conclude by {size}": ("queue", partial(next_with_conclude, size), 2 / size)
        for size in (1, 10, 100, 1_000)
    },
    "life, bare": ("queue with nothing", whole_life, 1),
    "life, logging": ("queue with logging", whole_life, 1),
    "life, logging, metrics": ("queue", whole_life, 1),
    "life, logging, metrics, tokens": ("queue with tokens", partial(showing_token, whole_life), 1),
}
"""What is measured: by which server it is answered, what is asked, and how many requests a job needs."""


SETTINGS = Settings(bind="127.0.0.1:0", queued_jobs_max=10_000_000)

SWITCHES = ("logging", "metrics", "access")
"""What a server may do beside its work, and is switched off for comparison; metrics only here, not by a setting."""


def access() -> Access:
    """A file with one token, which may do everything."""
    secret = Secret(token_hash(TOKEN.encode()), datetime.now(UTC), None, None)
    grant = Grant(name="benchmark", scopes=tuple(Scope), queues=("*",), tokens=(secret,))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.json"
        path.touch(mode=0o600)
        path.write_bytes(encode_file(AccessFile((grant,))))
        return Access(path)


def serve(settings: Settings, parts: Parts, profile_file: Path | None = None) -> None:
    """Be the real server, with its log lines formatted and written to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    listener = listen(settings)
    set_up_logging(settings)
    gc.collect()
    gc.freeze()  # as the program does: see `_run` of web/__main__.py
    print(f"{READY}{listener.getsockname()[1]}", flush=True)
    profile = cProfile.Profile()
    if profile_file:
        profile.enable()
    trio.run(serve_queue, settings, listener, parts)
    if profile_file:
        profile.dump_stats(profile_file)


def main(words: Sequence[str] | None = None) -> None:
    """Measures, or with --serve is the server that is measured."""
    options = parser(__doc__)
    options.add_argument("--profile", type=Path, help="with --serve: where to write a profile of the server")
    options.add_argument("--rows", default="", help="measure only the rows whose name begins so")
    options.add_argument("--serve", action="store_true")
    options.add_argument("--port", type=int, default=0, help="with --serve: where to listen")
    options.add_argument("--with", dest="switches", nargs="*", choices=SWITCHES, default=["logging", "metrics"])
    arguments = options.parse_args(words)
    if arguments.serve:
        settings = replace(SETTINGS, bind=f"127.0.0.1:{arguments.port}")
        if "logging" not in arguments.switches:
            settings = replace(settings, log_level="error")
        if "metrics" not in arguments.switches:
            RequestMeters.note = lambda *_: None  # type: ignore[method-assign] # in this process alone
        serve(settings, Parts(access=access() if "access" in arguments.switches else None), arguments.profile)
        return
    rows = {name: row for name, row in ROWS.items() if name.startswith(arguments.rows)}
    if arguments.smoke:
        rows = {name: ROWS[name] for name in (STOCK, "enqueue dequeue conclude", "next with each conclude by 10")}
    module = [sys.executable, "-m"]
    rounds, seconds = (1, 0.05) if arguments.smoke else (3, 0.5) if arguments.quick else (7, 2.0)
    results = Results("http", arguments)
    commands = {
        "stock": [*module, "tests.benchmarks.pong", "--serve", "stock"],
        "ours": [*module, "tests.benchmarks.pong", "--serve", "ours"],
        "queue": [*module, "tests.benchmarks.http", "--serve"],
        "queue with nothing": [*module, "tests.benchmarks.http", "--serve", "--with"],
        "queue with logging": [*module, "tests.benchmarks.http", "--serve", "--with", "logging"],
        "queue with tokens": [*module, "tests.benchmarks.http", "--serve", "--with", *SWITCHES],
    }
    measures: dict[str, list[Measure]] = {name: [] for name in rows}
    wanted = {server for server, _, _ in rows.values()}
    for number in range(rounds):
        # One process is faster than another of the same program, as luck has it, so each round has its own; and each
        # row in turn is the first: whatever a round begins or ends with must not meet the same one each time.
        with ExitStack() as stack:
            servers = {name: stack.enter_context(started(commands[name])) for name in sorted(wanted)}
            for name in rotated(tuple(rows), number):
                server, script, _ = rows[name]
                pid, port = servers[server]
                # A thousand batches of a thousand from sixteen clients at once would measure the queue's limits.
                connections = 4 if name.endswith("1000") else 16
                measures[name].append(measure(pid, port, script, connections=connections, seconds=seconds))
    about = (
        f"16 keep-alive connections; medians of {rounds} rounds of {seconds:g} s, each with servers of its own; the "
        "median of the ratios to the first row."
    )
    report(results, "requests", measures, about=about)
    if rows.keys() == ROWS.keys():
        whole_jobs(results, measures)
    results.end()


def whole_jobs(results: Results, measures: dict[str, list[Measure]]) -> None:
    """Tells what a whole job costs, with all its requests counted."""
    pong_us = spread(each.cpu_us for each in measures[STOCK]).median
    lives = {name: requests for name, (_, _, requests) in ROWS.items() if requests != 1}
    cpu = {name: spread(each.cpu_us * lives[name] for each in measures[name]) for name in lives}
    rows = [[name, us, f"{us.median / pong_us:.3f}"] for name, us in cpu.items()]
    results.table("jobs", ["the server's CPU:", "us a job", "ratio to pong"], rows)
    with results.plot("http", "The server's CPU for a whole job over HTTP", "jobs a request", "microseconds") as axes:
        for kind in ("whole lives", "next with each conclude"):
            sizes = {int(name.rpartition(" ")[2]): cpu[name].median for name in lives if name.startswith(kind)}
            axes.plot(list(sizes), list(sizes.values()), marker="o", label=kind)
            plain(axes, x=list(sizes))
        axes.axhline(pong_us, linestyle=":", color="gray", label="one request to a bare pong")


if __name__ == "__main__":
    main()
