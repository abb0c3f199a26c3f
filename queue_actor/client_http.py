"""What both clients need of httpx: where the server is, how it is reached, and what its failures mean."""

import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from queue_actor.client_errors import ClientError, NotUnderstood, Unreachable
from queue_actor.client_exchange import Answer, Request

DEFAULT_URL = "http://127.0.0.1:8080"
URL = "QUEUE_ACTOR_URL"
TOKEN = "QUEUE_ACTOR_TOKEN"  # noqa: S105 - the name of the variable
UNIX = "unix:"

IDLE_SECONDS = 30.0
"""How long a connection is kept that nobody uses: less than the server keeps it, so that it seldom breaks in use."""

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""What fails before anything of the request has left."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where requests go, and what each of them shows.

    Attributes:
        base: The beginning of every address, without a slash at its end.
        socket: The path of a unix socket, where it is one.
    """

    base: str
    socket: str | None
    headers: Mapping[str, str]


def endpoint(url: str | None, token: str | None, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Where the server is, by the arguments of a client or else by the environment.

    Raises:
        ValueError: The address is none of http, https or a unix socket.
    """
    url = url or environment.get(URL) or DEFAULT_URL
    token = token or environment.get(TOKEN)
    headers = {"User-Agent": "queue-actor", "Accept": "*/*"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if url.startswith(UNIX):
        # Whoever may open the socket is on this machine, which is what the server's Host rule asks for.
        return Endpoint("http://localhost", url.removeprefix(UNIX).removeprefix("//"), headers)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"the server's address is http://…, https://… or unix:/path, and not {url!r}")
    return Endpoint(url.rstrip("/"), None, headers)


def transport_options(place: Endpoint, ca_file: str | None, certificate: tuple[str, str] | None) -> dict[str, Any]:
    """What a connection is made with; client_pool.py has many. Proxies that the environment names are not asked.

    Raises:
        OSError: A file cannot be read, or is no certificate (`ssl.SSLError`).
    """
    if place.base.startswith("https:"):
        trust = ssl.create_default_context(cafile=ca_file)
        if certificate is not None:
            trust.load_cert_chain(*certificate)
    else:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used: httpx would read all certificates of the system
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_SECONDS)
    return {"verify": trust, "limits": limits, "uds": place.socket, "trust_env": False}


def timeout(request: Request[Any], seconds: float) -> httpx.Timeout:
    """How long to wait for each step of a request; what the server waits on purpose comes on top of the answer's."""
    whole = seconds + request.wait_seconds
    return httpx.Timeout(connect=seconds, read=whole, write=whole, pool=whole)


def answer_of(response: httpx.Response, body: bytes) -> Answer:
    """An answer without httpx."""
    return Answer(response.status_code, response.headers, body)


def failure(request: Request[Any], error: Exception) -> ClientError:
    """What an exception of httpx means to the caller."""
    what = f"{request.method} {request.path}: {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, httpx.DecodingError | httpx.InvalidURL):
        return NotUnderstood(what)
    return Unreachable(what, may_be_done=not isinstance(error, NOT_SENT))


FAILURES = (httpx.RequestError, httpx.InvalidURL)
"""What httpx raises where there is no answer."""
