"""The application: what happens to every request, once, around the handler of its route."""

import logging
import re
import secrets
import time
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from quart.ctx import RequestContext
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import MapAdapter

from queue_actor.engine import Engine
from queue_actor.errors import QueueError
from queue_actor.settings import Settings
from web.answered import Answered, AnsweredRequests, target_of
from web.auth import Access, admit
from web.binding import is_loopback
from web.callers import caller_of
from web.connections import Connections
from web.dashboard import dashboard_routes
from web.docs import docs_routes
from web.events import event_routes
from web.exchanges import Exchange, close_after_answer
from web.jobs import STREAM_ENDPOINT, job_routes
from web.metrics import Metrics
from web.ops import Condition, ops_routes
from web.overview import overview_routes
from web.problems import Problem
from web.queues import queue_routes
from web.replies import Facts, Reply
from web.requests import Request
from web.routes import Context, RouteTable
from web.simple import simple_routes
from web.tracing import Tracing

logger = logging.getLogger("web")

_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_HOST = re.compile(r"\A(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]*)?\Z")  # RFC 9110, section 7.2

SAME_ORIGIN = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site that a page of another origin cannot have (W3C Fetch Metadata).

Another port of this machine is another origin, and of the same site: `same-site` is none of them.
"""


NO_METHOD = "-"
"""Stands for methods that no route can have."""

PAGES = frozenset({"dashboard.home", "dashboard.page", "docs.page"})
"""Routes that a link on any page may lead to. They have nothing of the queue's in them, and let no page frame them."""


class App(QuartTrio):
    """Quart-Trio with this server's path of a request in place of Quart's."""

    asgi_http_class = Exchange
    tracing: Tracing | None = None
    _table: RouteTable | None = None  # of the routes; None: since it was made, some were added

    def __init__(
        self, engine: Engine, settings: Settings, access: Access | None = None, metrics: Metrics | None = None
    ) -> None:
        """Put the routes together; without `access` the server is open."""
        super().__init__("web", static_folder=None)
        self.settings = settings
        self.access = access
        self.draining = False
        self.metrics = metrics or Metrics(engine, settings, Connections(settings))
        self.answered = AnsweredRequests(settings, self.metrics.requests, tells_who=access is not None)
        self.instance = engine.instance
        self._every_answer = {"Queue-Instance": self.instance, "X-Content-Type-Options": "nosniff"}
        self._fields_of_every_answer = [
            (name.lower().encode(), value.encode()) for name, value in self._every_answer.items()
        ]
        self._life = secrets.token_hex(8)  # in the names of requests that bring none
        self._request_numbers = count(1)
        # A path means what it says: no redirects, no methods beyond those of the routes.
        self.url_map.merge_slashes = False
        self.url_map.redirect_defaults = False
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        self.config["MAX_CONTENT_LENGTH"] = None  # the connection has seen to it
        self.register_blueprint(simple_routes(engine, settings))
        self.register_blueprint(job_routes(engine, settings))
        self.register_blueprint(queue_routes(engine, settings))
        self.register_blueprint(overview_routes(engine))
        self.register_blueprint(event_routes(engine, settings))
        self.register_blueprint(ops_routes(engine, self._condition, self.metrics))
        self.register_blueprint(dashboard_routes())
        self.register_blueprint(docs_routes(self.url_map, settings))

        self._ready = engine.ready

    def _condition(self) -> Condition:
        if self.draining:
            return "draining"
        return "ready" if self._ready.is_set() else "starting"

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """The routes, the same for every Host. Quart's own fails where IDNA does, as at a label of 64 letters."""
        if request is None:
            return None
        # Werkzeug would take `get` for GET, which is another method, and would be another label of the metrics.
        method = request.method if request.method.isupper() else NO_METHOD
        return self.url_map.bind("", default_method=method, path_info=request.path)

    def add_url_rule(self, *arguments: Any, **more: Any) -> None:
        """See Quart's."""
        super().add_url_rule(*arguments, **more)
        self._table = None

    async def handle_request(self, request: Request) -> Reply:  # type: ignore[override] # it answers no other kind
        """Answer one request in a context of its own; what goes wrong here is the connection's business."""
        if self._table is None:
            self._table = RouteTable(self.url_map.iter_rules())
        with Context(self, request) as context:
            context.find_route(self._table)
            return await self.full_dispatch_request(context)

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> Reply:
        """Answer one request: guard, handler, error, headers, log line.

        This is Quart's method of the same name without its signals, sessions and hooks, which this server does not
        use and which cost a fifth of a request.
        """
        assert isinstance(request_context, Context)  # noqa: S101 - for the type checker: see `handle_request`
        request = request_context.asked
        started = time.perf_counter()
        request_id = self._request_id(request.field(b"x-request-id"))
        try:
            tracing = self.tracing
            response = await (self._handle(request) if tracing is None else tracing.around(self._handle, request))
        except Problem as problem:
            response = _answer(problem)
        except QueueError as refusal:
            response = _answer(Problem.of(refusal))
        except HTTPException as error:
            response = _answer(_routing_problem(error))
        except Exception:
            # A handler holds no state, so its bug is this request's alone. The queue's own bugs end the process.
            facts = {"request_id": request_id, "method": request.method, "path": target_of(request)}
            logger.exception("handler_failed", extra={"facts": facts})
            response = _answer(Problem("internal", "the server failed to answer this request; its log says why"))
        except BaseException:
            # The client has left while it waited, or the server ends: nobody is answered, and the line tells that.
            self._log(request, request_id, started, facts={"code": "unanswered", **self._while_draining()})
            raise
        response.fields.append((b"x-request-id", request_id.encode()))
        response.fields += self._fields_of_every_answer
        if limits := caller_of(request).rate_fields():
            response.add(limits)
        if self.draining:
            response.fields.append((b"connection", b"close"))
        if response.lasts:
            close_after_answer(request, partial(self._log_lasting, request, request_id, started, response))
        else:
            self._log(request, request_id, started, response, facts=response.facts)
        return response

    async def _handle(self, request: Request) -> Reply:
        if self.access is None:  # no page of another site could send a token
            refuse_foreign(request, any_host=self.settings.open)
        if request.scope["path"].startswith("//"):  # of which werkzeug sees one
            raise NotFound
        if request.routing_exception is not None:
            raise request.routing_exception
        assert request.url_rule is not None  # noqa: S101 - for the type checker: there was no routing exception
        endpoint = request.url_rule.endpoint
        if request.is_stream and endpoint != STREAM_ENDPOINT:
            raise Problem("unsupported_media_type", "this path takes JSON, not a stream of lines", field="Content-Type")
        admit(self.access, request)
        handler: Any = self.view_functions[endpoint]
        response: Reply = await handler(**(request.view_args or {}))
        return response

    def identify(self, request_id: str) -> dict[str, str]:
        """The headers that every answer has, those of the connection itself included; given the X-Request-Id sent."""
        return {"X-Request-Id": self._request_id(request_id), **self._every_answer}

    def _request_id(self, sent: str | None) -> str:
        if sent is not None and _REQUEST_ID.match(sent):
            return sent
        return f"{self._life}-{next(self._request_numbers)}"

    def _while_draining(self) -> Facts:
        return {"draining": True} if self.draining else {}

    async def _log_lasting(self, request: Request, request_id: str, started: float, response: Reply) -> None:
        """Write the line of a request whose answer is made while it is sent: when it has been, or cannot be."""
        cut = {} if request.sent else {"code": "cut", **self._while_draining()}
        self._log(request, request_id, started, response, facts={**response.facts, **cut})

    def _log(
        self, request: Request, request_id: str, started: float, response: Reply | None = None, *, facts: Facts
    ) -> None:
        """Have a request counted, and its line written."""
        ended = time.perf_counter()
        self.answered.note(Answered(time.time(), ended, ended - started, request, request_id, response, facts))


def _answer(problem: Problem) -> Reply:
    return Reply(
        problem.body,
        status=problem.status,
        headers=problem.headers,
        content_type=None,
        facts={"code": problem.code},
    )


def _routing_problem(error: HTTPException) -> Problem:
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(set(error.valid_methods or ()) - {"OPTIONS"}))
        return Problem("method_not_allowed", f"this path takes {allowed}", Allow=allowed)
    if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Problem("too_large", "the body is larger than request_bytes_max")
    if error.code == HTTPStatus.NOT_FOUND:
        return Problem("not_found", "there is no such path")
    return Problem("malformed", error.description or "the request cannot be understood")


def refuse_foreign(request: Request, *, any_host: bool) -> None:
    """Keep web pages away from a server that asks nobody for a token.

    A page of any site can make its visitor's browser send requests to loopback. It cannot hide that it did
    (Origin, Sec-Fetch-Site), and a name that was pointed at loopback for the purpose stands in Host.

    Raises:
        Problem: `foreign_host` or `foreign_origin`.
    """
    host = request.field(b"host") or ""
    if not any_host and host and not _names_loopback(host):
        raise Problem("foreign_host", f"this server answers to loopback names only, not to {host[:100]}", field="Host")
    origin = request.field(b"origin")
    if origin is not None and _authority(origin, secure=request.scheme == "https") != host.lower():
        raise Problem("foreign_origin", "pages of another origin may not use this server", field="Origin")
    if (request.field(b"sec-fetch-site") or "none") not in SAME_ORIGIN and not _is_followed_link(request):
        raise Problem("foreign_origin", "pages of another origin may not use this server", field="Sec-Fetch-Site")


def _is_followed_link(request: Request) -> bool:
    """Whether somebody has followed a link to a page: it is shown to them, and not to the page that has the link."""
    return (
        request.endpoint in PAGES
        and request.field(b"sec-fetch-mode") == "navigate"
        and request.field(b"sec-fetch-dest") == "document"
    )


@lru_cache(maxsize=64)  # clients use few names for one server, again and again
def _names_loopback(host: str) -> bool:
    match = _HOST.match(host)
    return match is not None and is_loopback((match[1] or match[2]).lower())


def _authority(origin: str, *, secure: bool) -> str | None:
    """The host and port of an origin; None if it has none, as `null` has, or is not as secure as this server.

    Without TLS it may be more so: a proxy may stand in front.
    """
    try:
        url = urlsplit(origin)
    except ValueError:
        return None
    return None if secure and url.scheme != "https" else url.netloc.lower() or None
