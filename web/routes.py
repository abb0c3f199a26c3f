"""Which route a request is for: a table beside Werkzeug's map, for the paths that are asked for all the time.

Werkzeug tries each part of a path against regular expressions, and gives exact reasons where nothing fits. The table
walks down a tree of the parts instead, and knows nothing but the plain cases: the method as it is written, and for a
part that varies any plain text but the words that are parts of paths themselves. It answers with what Werkzeug would
have answered, or not at all, and then Werkzeug is asked: what is not found, or not allowed, is said by it alone.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Self, cast

from quart.ctx import AppContext, RequestContext
from quart.globals import _cv_app, _cv_request
from quart_trio import QuartTrio
from werkzeug.routing import Rule

from web.requests import Request

CONVERTERS = frozenset({None, "job"})
"""Those of which the table knows what they let through; a rule with another one is Werkzeug's alone."""

_VARIABLE = re.compile(r"\A<(?:(\w+):)?(\w+)>\Z")
_PLAIN = re.compile(r"\A[A-Za-z0-9_.:-]+\Z")

Node = dict[str | None, Any]
"""A part of paths: the parts that may follow it, None for one that varies, and at "" its `Leaf` by method."""


class Leaf(NamedTuple):
    """A rule, and the names of its parts that vary."""

    rule: Rule
    names: tuple[str, ...]


class RouteTable:
    """The rules of a map as a tree."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._root: Node = {}
        self._words: set[str] = set()
        for rule in rules:
            parts = rule.rule.split("/")[1:]
            variables = [_VARIABLE.match(part) for part in parts]
            self._words.update(part for part in parts if "<" not in part)
            if all(
                _PLAIN.match(part) if match is None else match[1] in CONVERTERS
                for part, match in zip(parts, variables, strict=True)
            ):
                node = self._root
                for part, match in zip(parts, variables, strict=True):
                    node = node.setdefault(part if match is None else None, {})
                leaf = Leaf(rule, tuple(match[2] for match in variables if match is not None))
                node.setdefault("", {}).update(dict.fromkeys(rule.methods or (), leaf))

    def find(self, method: str, path: str) -> tuple[Rule, dict[str, Any]] | None:
        """The rule of a request and the parts of its path that vary; None if Werkzeug is to be asked."""
        node = self._root
        values = []
        for part in path.split("/")[1:]:
            follows = node.get(part) if part else None
            if follows is None:
                follows = node.get(None)
                if follows is None or part in self._words or not _PLAIN.match(part):
                    return None
                values.append(part)
            node = follows
        leaf = node.get("", {}).get(method)
        return None if leaf is None else (leaf.rule, dict(zip(leaf.names, values, strict=True)))


class Context(RequestContext):
    """A request that is being handled, as Quart's proxies see it: `request`, `current_app`, `g`.

    Quart's own also opens a session, sends signals, and calls what was to be called afterwards, of all of which this
    server has none.
    """

    def __init__(self, app: QuartTrio, request: Request) -> None:
        self.app = app
        self.request_websocket = request
        self.session = None
        self.preserved = False
        request.routing_exception = None
        request.json_module = app.json

    @property
    def asked(self) -> Request:
        """The request, by its own type."""
        return cast("Request", self.request_websocket)

    def find_route(self, table: RouteTable) -> None:
        """Note in the request which route it is for, or why it is for none."""
        request = self.request
        found = table.find(request.method, request.path)
        if found is not None:
            request.url_rule, request.view_args = found  # type: ignore[assignment] # the rules of a Quart are its own
            return
        self.url_adapter = self.app.create_url_adapter(request)
        self.match_request()

    def __enter__(self) -> Self:
        self._tokens = _cv_app.set(AppContext(self.app)), _cv_request.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _cv_request.reset(self._tokens[1])
        _cv_app.reset(self._tokens[0])
