"""Requests as handlers see them: Quart's, of which each part is made when it is first asked for.

Quart makes a request whole, with its headers in two cases, an event for its body, a lock for its form, and a context
with a session. Most handlers ask for a body and two or three header fields, and all of that costs more than they do.
"""

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, cast

from hypercorn.typing import ASGIReceiveCallable, HTTPScope
from quart import request as current
from quart.wrappers.request import Body
from quart_trio.wrappers import TrioRequest
from werkzeug.datastructures import Headers

from web.heads import is_ndjson


class Request(TrioRequest):
    """One request. What Quart promises of its own holds of this one, too."""

    fields: dict[bytes, bytes]
    """The header fields by their names in lower case; of those that come more than once, the first."""

    has_repeated: bool
    """Whether any of them comes more than once."""

    is_stream: bool
    """Whether the body is a stream of lines, which the handler reads as it comes."""

    whole: bytes = b""
    """The body, unless it is a stream."""

    receive: ASGIReceiveCallable | None = None
    """How a stream is read."""

    caller: object = None
    """Who sent it, if that has been found out; see web/callers.py."""

    waited: float = 0.0
    """How many seconds the handler has waited, in blocks of `cancelled_by_disconnect`."""

    sent: bool = False
    """Of a request whose answer is made while it is sent: whether all of it has been."""

    # What a request of Quart's has from the beginning.
    body_timeout = None
    _form = None
    _files = None

    def __init__(self, scope: HTTPScope) -> None:  # Quart's own would make everything
        self.scope = scope
        self.method = scope["method"]
        self.scheme = scope["scheme"]
        self.server = scope.get("server")
        path = scope["path"]
        self.path = "/" + path.lstrip("/") if path.startswith("//") else path
        self.root_path = scope.get("root_path", "")
        self.query_string = scope["query_string"]
        self.http_version = scope["http_version"]
        client = scope.get("client")
        self.remote_addr = client[0] if client else "<local>"
        headers = list(scope["headers"])
        headers.reverse()
        self.fields = dict(headers)
        self.has_repeated = len(self.fields) != len(headers)
        self.is_stream = is_ndjson(self.fields.get(b"content-type"))

    @cached_property
    def headers(self) -> Headers:  # type: ignore[override] # of Quart's it is an attribute, made beforehand
        """All header fields, by names in any case."""
        headers = Headers()
        for name, value in self.scope["headers"]:
            headers.add(name.decode("latin1").title(), value.decode("latin1"))
        return headers

    def field(self, name: bytes) -> str | None:
        """A header field, by its name in lower case; the first, if it comes more than once."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin1")

    def repeats(self, name: bytes) -> bool:
        """Whether a header field comes more than once."""
        return self.has_repeated and sum(each == name for each, _ in self.scope["headers"]) > 1

    @cached_property
    def closings(self) -> list[Callable[[], Awaitable[None]]]:
        """What is to be done when the answer is sent, or cannot be."""
        return []

    # --- parts that Quart's other methods need

    @cached_property
    def body(self) -> Body:  # type: ignore[override] # of Quart's it is an attribute, made beforehand
        """The body, as Quart's readers of forms take it."""
        body = self.body_class(None, None)
        body.set_result(self.whole)
        return body

    @cached_property
    def _cached_json(self) -> dict[bool, Any]:  # type: ignore[override] # as above
        return {False: Ellipsis, True: Ellipsis}

    @cached_property
    def _parsing_lock(self) -> Any:  # type: ignore[override] # of Quart's it is an attribute
        return self.lock_class()

    async def get_data(  # type: ignore[override] # without the overloads
        self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False
    ) -> str | bytes:
        """The body, whole; see Quart's."""
        if parse_form_data:
            return await super().get_data(cache, as_text, parse_form_data)
        return self.whole.decode() if as_text else self.whole


def asked() -> Request:
    """The request that is being handled."""
    return cast("Request", current._get_current_object())  # type: ignore[attr-defined] # noqa: SLF001 - as werkzeug documents it
