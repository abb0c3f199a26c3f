"""How handlers answer."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from quart.wrappers import Response
from quart.wrappers.response import DataBody

JSON = "application/json"

Facts = Mapping[str, Any]


class Reply(Response):
    """An answer, and what the request's log line shall tell about it."""

    facts: Facts = MappingProxyType({})
    body_bytes: int | None = None
    jobs: Sequence[Any] = ()  # that it is about, in whichever of their forms, and refusals among them

    @property
    def lasts(self) -> bool:
        """Whether it is made while it is sent. Its facts may then change until it has been."""
        return not isinstance(self.response, DataBody)


def reply(
    body: bytes,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    content_type: str = JSON,
    facts: Facts | None = None,
    jobs: Sequence[Any] = (),
) -> Reply:
    """An answer with a whole body."""
    response = Reply(body, status=status, headers=headers, content_type=content_type)
    response.body_bytes = len(body)
    response.jobs = jobs
    if facts is not None:
        response.facts = facts
    return response
