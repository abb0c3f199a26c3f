"""Each field of each body over `/v1`, at its bounds, just beyond them and far beyond them.

What is tried is made from the types of the fields, so a field that is added is tried too. That the bounds are those of
web/README.md is what tests/test_docs.py checks.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import inspect

from queue_actor.settings import Settings
from tests.contract.document import structs
from tests.contract.stack import Server
from tests.contract.v1 import Q, ask
from web import bodies, jobs, queues
from web.fields import QUEUE_PREFIX, TRACEPARENT
from web.filters import FilterBody
from web.schemas import QUEUE_NAME

pytestmark = pytest.mark.virtual_time

LIMITS = [
    Settings(),
    Settings(
        delay_seconds_max=100.0,
        lease_seconds_max=400.0,
        wait_seconds_max=2.0,
        batch_jobs_max=10,
        payload_bytes_max=1_000,
    ),
]
"""Bounds that are settings hold as they are set."""

HERE = "@here@"
HELD = {"queue": "q", "id": 1, "token": "t"}


class Probe(NamedTuple):
    """A value as JSON, and where the refusal points to, below the field; None if the value is taken."""

    text: str
    refused_at: str | None = None
    status: int = 400
    code: str = "invalid"


def bad(value: object, at: str = "", **more: Any) -> Probe:
    return Probe(value if isinstance(value, str) else json.dumps(value), at, **more)


def good(value: object) -> Probe:
    return Probe(value if isinstance(value, str) else json.dumps(value))


def quoted(text: str) -> str:
    return json.dumps(text)


def probes(
    kind: inspect.Type, settings: Settings, at_most: int | None = None, *, alone: bool = True
) -> Iterator[Probe]:
    """What to try of a type; of one among several types nothing that another may be."""
    match kind:
        case inspect.Metadata():
            name = (kind.extra or {}).get("at_most")
            yield from probes(kind.type, settings, None if name is None else int(getattr(settings, name)), alone=alone)
        case inspect.UnionType():
            others = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            for member in others:
                yield from probes(member, settings, alone=len(others) == 1)
            yield good(None) if len(others) < len(kind.types) else bad(None)
        case inspect.StrType():
            yield from texts(kind)
            yield from [bad(1), bad(True), bad({})] if alone else []
        case inspect.IntType() | inspect.FloatType():
            yield from numbers(kind, at_most)
        case inspect.DateTimeType():
            for time in ("2027-01-15T08:00:00Z", "2027-01-15T09:00:00.123456+01:00", "2027-01-15T03:30:00-04:30"):
                yield good(quoted(time))
            for time in ("2027-01-15T08:00:00", "2027-01-15", "08:00:00Z", "2027-02-30T08:00:00Z", "now", ""):
                yield bad(quoted(time))
            yield bad(1_800_000_000)
        case inspect.BoolType():
            yield from [good(True), good(False), bad(0), bad(1), bad(quoted("true"))]
        case inspect.EnumType() | inspect.LiteralType():
            words = [str(word) for word in (kind.cls if isinstance(kind, inspect.EnumType) else kind.values)]
            yield from [good(quoted(word)) for word in words]
            yield from [bad(quoted(words[0].upper())), bad(quoted("")), bad(1)]
        case inspect.RawType():
            assert at_most is not None
            yield from [good(text) for text in ("null", "0", "[]", "{}", "[1, 2]", quoted("a" * (at_most - 2)))]
            yield bad(quoted("a" * (at_most - 1)), status=413, code="too_large")
        case inspect.DictType():
            yield from pairs(kind, settings)
        case inspect.ListType():
            yield from lists(kind, settings, at_most, alone=alone)
        case inspect.StructType():
            yield from [bad(1), bad(quoted("a")), bad([]), bad({"unheard_of": 1}, ".unheard_of")]


def texts(kind: inspect.StrType) -> Iterator[Probe]:
    shapes = {
        QUEUE_NAME: (["a", "A.b_c:d-9", "a" * 80], ["", "-a", ".a", "a/b", "a b", "ä", "a\n", "a" * 81, "a" * 800]),
        QUEUE_PREFIX: (["a*", "a:*", "a" * 79 + "*"], ["", "a", "*", "*a", "a**", "a*\n", "a" * 80 + "*"]),
        TRACEPARENT: (
            ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "00-" + "A" * 32 + "-00f067aa0ba902b7-01"],
        ),
    }
    if kind.pattern in shapes:
        taken, refused = shapes[kind.pattern]
    else:
        most = kind.max_length
        assert most is not None
        taken = ["a" * most, "ä" * most, "😀" * most, '"\\/<>']
        refused = ["a" * (most + 1), "a" * (10 * most)]
        (refused if kind.min_length else taken).append("")
        (refused if kind.pattern else taken).extend(["a\x00", "a\n", "\x7f", "a\x85"])
    yield from [good(quoted(text)) for text in taken]
    yield from [bad(quoted(text)) for text in refused]


def numbers(kind: inspect.IntType | inspect.FloatType, at_most: int | None) -> Iterator[Probe]:
    most = at_most if at_most is not None else kind.le
    assert most is not None
    yield from [good(most), bad(most + 1), bad(10 * most)]
    if kind.ge is not None:
        yield from [good(kind.ge), bad(kind.ge - 1), bad(kind.ge * 10 if kind.ge < 0 else -1)]
    else:
        yield from [good(0.001), bad(0), bad(-0.001)]
    if isinstance(kind, inspect.IntType):
        yield bad(1.5)
    yield from [bad(quoted("1")), bad(True), bad("1e400"), bad("-1e400"), bad("9" * 400)]
    for text in ("NaN", "Infinity", "-Infinity", "+1", ".5"):
        yield Probe(text, "body", 400, "malformed")


def pairs(kind: inspect.DictType, settings: Settings) -> Iterator[Probe]:
    most = kind.max_length
    assert most is not None
    yield from [good({str(n): "a" for n in range(count)}) for count in (0, most)]
    yield from [bad({str(n): "a" for n in range(count)}) for count in (most + 1, 10 * most)]
    for probe in probes(kind.key_type, settings):
        if probe.text.startswith('"'):
            yield Probe(f'{{{probe.text}: "a"}}', None if probe.refused_at is None else "")
    for probe in probes(kind.value_type, settings):
        yield Probe(f'{{"a": {probe.text}}}', None if probe.refused_at is None else "[...]")


def lists(kind: inspect.ListType, settings: Settings, at_most: int | None, *, alone: bool) -> Iterator[Probe]:
    assert kind.min_length == 1
    most = at_most if at_most is not None else kind.max_length
    yield bad([])
    if alone:
        yield from [bad({}), bad(quoted("a"))]
    if isinstance(kind.item_type, inspect.StructType):
        item: object = {"type": "a"} if kind.item_type.cls is bodies.NewJobBody else HELD
    else:
        item = next(json.loads(probe.text) for probe in probes(kind.item_type, settings) if probe.refused_at is None)
    if most is not None:
        yield from [good([item]), good([item] * most), bad([item] * (most + 1)), bad([item] * (10 * most))]
    for probe in probes(kind.item_type, settings, alone=False):
        if probe.refused_at is not None:
            yield Probe(f"[{json.dumps(item)}, {probe.text}]", f"[1]{probe.refused_at}")


# --- what is probed


class Subject(NamedTuple):
    """A struct, and where it stands in the body of a request that is right but for the field that is tried."""

    struct: type[msgspec.Struct]
    method: str
    target: str
    body: dict[str, Any]
    path: Sequence[str | int] = ()
    but: frozenset[str] = frozenset()  # fields that are tried elsewhere


NAMED = frozenset({"queue", "id"})  # by the path
JOBS = {"jobs": [{"type": "a"}, {"type": "a"}]}

SUBJECTS = [
    Subject(bodies.EnqueueBody, "POST", f"{Q}/enqueue", JOBS),
    Subject(bodies.NewJobBody, "POST", f"{Q}/enqueue", JOBS, ("jobs", 1)),
    Subject(bodies.RetryBody, "POST", f"{Q}/enqueue", {"jobs": [{"type": "a", "retry": {}}]}, ("jobs", 0, "retry")),
    Subject(bodies.DequeueBody, "POST", f"{Q}/dequeue", {}),
    Subject(bodies.DequeueManyBody, "POST", "/v1/dequeue", {"queues": ["q"]}),
    Subject(bodies.DequeueNextBody, "POST", f"{Q}/conclude", {"jobs": [HELD], "dequeue": {}}, ("dequeue",)),
    *(Subject(jobs.ONE[verb].type, "POST", f"{Q}/jobs/1/{verb}", {"token": "t"}, (), NAMED) for verb in jobs.VERBS),
    *(Subject(jobs.MANY[verb].type, "POST", f"/v1/{verb}", {"jobs": [HELD]}) for verb in jobs.VERBS),
    *(
        Subject(body, "POST", f"/v1/{verb}", {"jobs": [HELD, HELD]}, ("jobs", 1))
        for verb, (body, _) in jobs.VERBS.items()
    ),
    Subject(bodies.ErrorBody, "POST", f"{Q}/jobs/1/fail", {"token": "t", "error": {}}, ("error",)),
    Subject(queues.POLICY.type, "PUT", Q, {}),
    Subject(bodies.RetryBody, "PUT", Q, {"retry": {}}, ("retry",)),
    Subject(queues.PURGE.type, "POST", f"{Q}/purge", {"state": "dead"}),
    Subject(queues.REDRIVE.type, "POST", f"{Q}/redrive", {}),
    Subject(FilterBody, "POST", f"{Q}/release", {"consumer": "w"}),
]


def with_field(subject: Subject, field: str, text: str) -> bytes | None:
    """The body of the subject with one field as it is given; None if that would leave out one that is needed."""
    body = json.loads(json.dumps(subject.body))
    part: Any = body
    for step in subject.path:
        part = part[step]
    if text == "null" and field in part:
        return None
    part[field] = HERE
    return json.dumps(body).replace(json.dumps(HERE), text).encode()


@pytest.mark.parametrize("settings", LIMITS, ids=["default", "lower"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: f"{subject.struct.__name__}-{subject.target}")
async def test_every_field_is_taken_up_to_its_bounds_and_refused_beyond_them(
    server: Server, settings: Settings, subject: Subject
) -> None:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in subject.path)
    described = inspect.type_info(subject.struct)
    assert isinstance(described, inspect.StructType)
    for field in described.fields:
        if field.name in subject.but:
            continue
        path = f"{where}.{field.name}".removeprefix(".")
        for probe in probes(field.type, settings):
            body = with_field(subject, field.name, probe.text)
            if body is None:
                continue
            answer = await ask(server, subject.method, subject.target, body)
            tried = f"{path}: {probe.text[:80]}"
            if probe.refused_at is None:
                assert answer.status not in {400, 413}, (tried, answer.json)
            elif probe.code == "malformed":
                assert answer.problem == (400, "malformed", "body"), tried
            else:
                assert answer.problem == (probe.status, probe.code, f"{path}{probe.refused_at}"), tried


def test_every_struct_that_comes_in_is_probed() -> None:
    roots = [jobs.ENQUEUE.type, jobs.DEQUEUE.type, jobs.DEQUEUE_MANY.type]
    roots += [queues.POLICY.type, queues.PURGE.type, queues.REDRIVE.type]
    made_of = structs(*roots, *(decoder.type for decoder in (*jobs.ONE.values(), *jobs.MANY.values())))

    assert made_of <= {base for subject in SUBJECTS for base in subject.struct.__mro__}
