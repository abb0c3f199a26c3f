"""How handlers answer."""

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from quart.wrappers import Response
from quart.wrappers.response import DataBody, IterableBody, ResponseBody
from werkzeug.datastructures import Headers
from werkzeug.datastructures.mixins import ImmutableHeadersMixin

JSON = "application/json"

Facts = Mapping[str, Any]

NOTHING: Facts = MappingProxyType({})


class FixedHeaders(ImmutableHeadersMixin, Headers):  # type: ignore[misc] # Werkzeug's mixin has broader signatures
    """Header fields that do not change: who tried would believe that they were sent."""

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self._list = [(name.decode(), value.decode()) for name, value in fields]  # as Headers keeps them


class Reply(Response):
    """An answer, and what the request's log line shall tell about it.

    It is ready to be sent: header fields are bytes, their names in lower case. Quart's own keeps them as text and
    looks at each of them several times; what it shows of itself this one makes when it is asked for.
    """

    status_code = 200  # of Quart's it is a property, which looks each one up in a table

    def __init__(
        self,
        body: bytes | AsyncIterator[bytes],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = JSON,  # None: it is among the headers
        facts: Facts = NOTHING,
        jobs: Sequence[Any] = (),
    ) -> None:
        """Takes a whole body, or one that is made while it is sent; then facts may change until it has been."""
        self.body = body
        self.status_code = status
        self.fields: list[tuple[bytes, bytes]] = []
        if content_type is not None:
            self.fields.append((b"content-type", content_type.encode()))
        if isinstance(body, bytes):
            self.fields.append((b"content-length", b"%d" % len(body)))
        if headers:
            self.add(headers)
        self.facts = facts
        self.jobs = jobs  # that it is about, in whichever of their forms, and refusals among them

    def add(self, headers: Mapping[str, str]) -> None:
        """Add header fields."""
        for name, value in headers.items():
            self.fields.append((_NAMES.get(name) or _name(name), value.encode()))

    @property  # type: ignore[misc] # of Quart's it can be set, too
    def status(self) -> str:
        """The status with its phrase."""
        return f"{self.status_code} {HTTPStatus(self.status_code).phrase}"

    @cached_property
    def headers(self) -> Headers:  # type: ignore[override] # of Quart's it is an attribute
        """The header fields, to be looked at: `add` adds some."""
        return FixedHeaders(self.fields)

    @cached_property
    def response(self) -> ResponseBody:  # type: ignore[override] # of Quart's it is an attribute
        """The body, as Quart has it."""
        return DataBody(self.body) if isinstance(self.body, bytes) else IterableBody(self.body)

    @property
    def lasts(self) -> bool:
        """Whether it is made while it is sent."""
        return not isinstance(self.body, bytes)


_NAMES: dict[str, bytes] = {}
"""The names of header fields as they are sent; there are few, all written in the code."""


def _name(name: str) -> bytes:
    return _NAMES.setdefault(name, name.lower().encode())


def reply(
    body: bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str = JSON,
    facts: Facts | None = None,
    jobs: Sequence[Any] = (),
) -> Reply:
    """An answer with a whole body."""
    return Reply(body, status=status, headers=headers, content_type=content_type, facts=facts or NOTHING, jobs=jobs)
