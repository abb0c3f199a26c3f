"""What a worker tells to Prometheus: by HTTP for as long as it runs, or in a registry of one's own.

    app.run(metrics="127.0.0.1:9100")           # GET http://127.0.0.1:9100/metrics

    worker = app.worker(client)                 # within a program of one's own
    with serving(worker, "127.0.0.1:9100"):
        await worker.run()

    REGISTRY.register(WorkerCollector(worker))  # beside what the program tells itself

Whoever scrapes is served by threads, which read figures that the loop counts anyway (counters.py), so the loop does not
know of them. The library's own server would do, but for its bounds: it has none, neither of connections nor of time.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from queue_actor import addresses
from queue_actor.addresses import AddressError
from queue_actor.counters import WorkerFigures
from queue_actor.families import Metric, Values, family
from queue_actor.worker_loop import Worker

logger = logging.getLogger("queue_actor.worker")

PATH: Final = "/metrics"

CONNECTIONS_MAX: Final = 8
"""At once. A monitor has one; who comes when there are so many is sent away."""

SCRAPE_SECONDS_MAX: Final = 10.0
"""How long a connection may last, whatever it is used for: monitors give up after ten seconds themselves."""

LOOK_SECONDS: Final = 0.1
"""How often the thread that takes connections looks for those that last too long, and whether it is to end."""


def _gauge(help_: str, *labels: str) -> Metric:
    return Metric("gauge", labels, help_)


def _counter(help_: str) -> Metric:
    return Metric("counter", (), help_)


METRICS: Final[dict[str, Metric]] = {
    "queue_actor_worker_running": _gauge("handlers at work, those among them that were asked to stop and have not yet"),
    "queue_actor_worker_waiting": _gauge("jobs that are leased and wait for a place to run"),
    "queue_actor_worker_unheard": _gauge("jobs whose outcome the server has not yet confirmed"),
    "queue_actor_worker_threads": _gauge("threads in which handlers are at work, also those that nobody waits for"),
    "queue_actor_worker_dequeued_total": _counter("jobs that were handed out to the worker"),
    "queue_actor_worker_concluded_total": _counter("jobs that were done"),
    "queue_actor_worker_failed_total": _counter("attempts that failed, also those that were rejected or stopped"),
    "queue_actor_worker_released_total": _counter("jobs that were given back, for whatever reason"),
    "queue_actor_worker_no_handler_total": _counter("jobs that were given back since nothing here can do them"),
    "queue_actor_worker_cancelled_total": _counter("handlers that were stopped because their job was called off"),
    "queue_actor_worker_lost_total": _counter("leases that were lost: what was done of these jobs counts for nothing"),
    "queue_actor_worker_time_limit_total": _counter("handlers that were stopped since they took too long"),
    "queue_actor_worker_stuck_total": _counter("handlers that were stopped since they reported no progress"),
    "queue_actor_worker_shutdown_total": _counter("handlers that were stopped because the worker ended"),
    "queue_actor_worker_unreported_total": _counter("outcomes that the server was not told, or would not hear"),
    "queue_actor_worker_extended_total": _counter("leases that were extended"),
    "queue_actor_worker_beats_unheard_total": _counter("requests to extend leases that came to nothing"),
    "queue_actor_worker_polls_unheard_total": _counter("requests for jobs that came to nothing"),
    "queue_actor_worker_children_started_total": _counter("child processes that were started"),
    "queue_actor_worker_children_died_total": _counter("child processes that died of a job, or were killed to stop it"),
    "queue_actor_worker_run_seconds": Metric("histogram", ("type",), "how long handlers ran, however they ended"),
    "queue_actor_worker_concurrency": _gauge("the limit of handlers that run at once"),
    "queue_actor_worker_prefetch": _gauge("the limit of jobs that are leased beyond that"),
    "queue_actor_worker_draining": _gauge("1 when the worker takes no more jobs, and is about to end"),
    "queue_actor_worker_reached": _gauge("0 while what is sent to the server comes to nothing, by what it is", "what"),
}
"""All of a worker's own, in the order in which they are told. The table in README.md is held to it."""


def families(figures: WorkerFigures) -> Iterator[Family]:
    """All metrics of a worker."""
    told: dict[str, Values] = {
        "run_seconds": [((type_,), runs) for type_, runs in figures.runs.items()],
        "concurrency": [((), figures.concurrency)],
        "prefetch": [((), figures.prefetch)],
        "draining": [((), figures.draining)],
        "reached": [((what,), reached) for what, reached in figures.reached.items()],
    }
    for field, value in msgspec.structs.asdict(figures.statistics).items():
        told[field] = told[f"{field}_total"] = [((), value)]
    for name, metric in METRICS.items():
        yield family(name, metric, told[name.removeprefix("queue_actor_worker_")])


class WorkerCollector(Collector):
    """The metrics of a worker, for a registry of `prometheus_client`. Each of several workers needs one of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def describe(self) -> Iterable[Family]:
        """Their names, by which a registry knows two of the same."""
        return [family(name, metric, ()) for name, metric in METRICS.items()]

    def collect(self) -> Iterable[Family]:
        """Their values of this moment, in whatever thread."""
        return families(self._worker.figures())


@contextmanager
def serving(worker: Worker, address: str) -> Iterator[str]:
    """Serve the metrics of a worker, and of the process, at HOST:PORT during the block; the URL to scrape.

    Port 0 is any free one. Nobody is asked for an access token: whoever reaches the port may read the figures, and do
    nothing else. The end waits for LOOK_SECONDS at most, whatever those who scrape do.

    Raises:
        AddressError: The address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    with _listening(address, registry) as server:
        thread = threading.Thread(target=server.serve_forever, args=(LOOK_SECONDS,), name="queue-actor-metrics")
        thread.daemon = True  # a block that is left in no order keeps no process
        thread.start()
        url = f"http://{addresses.written(server.server_address)}{PATH}"
        logger.info("worker_metrics", extra={"facts": {"address": url}})
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()
            server.cut()


class _Scrapes(ThreadingMixIn, TCPServer):
    """Takes a few connections at a time, a thread each. Its block ends when all of these have."""

    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX
    daemon_threads = False  # those are not waited for

    def __init__(self, address: addresses.Address, registry: CollectorRegistry) -> None:
        """Listen.

        Raises:
            OSError: That cannot be.
        """
        self.registry = registry
        self.address_family = address.family
        self._open: dict[socket.socket, float] = {}  # connections, and when each began
        super().__init__(address.name, _Scrape)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection."""
        try:
            return super().get_request()
        except OSError:
            # There are no more files, perhaps, and whoever looks again at once takes the processor from the loop.
            time.sleep(LOOK_SECONDS)
            raise

    def verify_request(self, request: Any, _address: Any) -> bool:
        """Whether there is room for one more connection. It is counted as soon as there is."""
        if len(self._open) >= CONNECTIONS_MAX:
            return False
        self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        """A connection is over; in its own thread, if it had one."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut what lasts for too long, a byte now and then included."""
        self.cut(time.monotonic() - SCRAPE_SECONDS_MAX)

    def cut(self, before: float = float("inf")) -> None:
        """Cut the connections that began before a moment: their threads, wherever they wait, go on and end."""
        for connection, began in list(self._open.items()):
            if began < before:
                with suppress(OSError):  # it has ended meanwhile
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: Any, _address: Any) -> None:
        """A connection that broke is nobody's fault; anything else is a bug."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.error("scrape_failed", exc_info=error)


class _Scrape(BaseHTTPRequestHandler):
    """One scrape."""

    server: _Scrapes
    server_version = "queue-actor"
    sys_version = ""
    timeout = SCRAPE_SECONDS_MAX

    def do_GET(self) -> None:
        """Tell the figures of this moment."""
        if urlsplit(self.path).path != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"there is nothing but {PATH}")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))  # so that one that was cut off can be told from a whole one
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a worker's log is about its jobs."""


def _listening(address: str, registry: CollectorRegistry) -> _Scrapes:
    """A server that listens already.

    Raises:
        AddressError: It cannot.
    """
    try:
        found = addresses.find(address)
        if found is None:
            raise AddressError(f"metrics: {address!r} is not HOST:PORT")
        return _Scrapes(found, registry)
    except OSError as error:
        raise AddressError(f"metrics: cannot listen on {address}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise AddressError(f"metrics: {address!r} holds no name of a host") from error
