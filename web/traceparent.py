"""The trace that a request belongs to, as its sender says: W3C Trace Context, section 3.2."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from queue_actor.commands import NewJob
from queue_actor.jobs import NO_OPTIONS, JobOptions

_FIELDS = rb"(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
_VERSION_0 = re.compile(rb"\A00-" + _FIELDS + rb"\Z")
# Of a later version the fields of the first are read (section 4.3); ff is none.
_LATER = re.compile(rb"\A(?!00|ff)[0-9a-f]{2}-" + _FIELDS + rb"(?:-.*)?\Z")


class Traceparent(NamedTuple):
    """Where in which trace the sender is; all in lower-case hexadecimal digits."""

    trace_id: str
    parent_id: str
    flags: str

    def __str__(self) -> str:
        """As it is written today."""
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags}"


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> Traceparent | None:
    """The traceparent of a request; None without one, and with one that is not well formed, or with several."""
    values = [value for name, value in headers if name == b"traceparent"]
    return read_traceparent(values[0]) if len(values) == 1 else None


def read_traceparent(value: bytes) -> Traceparent | None:
    """What the text says; None if it is not well formed."""
    match = _VERSION_0.match(value) or _LATER.match(value)
    return None if match is None else Traceparent(*(group.decode() for group in match.groups()))


def traced(jobs: Sequence[NewJob], headers: Iterable[tuple[bytes, bytes]]) -> Sequence[NewJob]:
    """New jobs: those whose producer named no trace belong to that of the request that brings them, if it has one."""
    traceparent = traceparent_of(headers)
    if traceparent is None:
        return jobs
    text = str(traceparent)
    alone = JobOptions(traceparent=text)
    return [
        replace(new, options=alone if new.options is NO_OPTIONS else replace(new.options, traceparent=text))
        if new.options.traceparent is None
        else new
        for new in jobs
    ]
