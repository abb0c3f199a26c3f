"""Who is calling, and what they may do.

A server with a file of tokens asks each request for one (RFC 6750), but for the routes that are public. What a route
needs stands in one table, `RULES`, and is checked in one place, before its handler runs. Where the queue is named in
the body, the table asks for the scope as such, and the handler for the queue, by `caller_of(request).require(...)` of
web/callers.py.

Whatever is decided here depends on names alone, never on which queues and jobs there are: who may not look at a queue
is answered alike whether it exists or not.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from typing import Literal, NamedTuple

import trio
from msgspec.structs import replace

from queue_actor.access import AccessError, Grant, Keyring, Scope, Secret, is_well_formed
from queue_actor.commands import Dequeue
from queue_actor.engine import Clock, system_clock
from queue_actor.jobs import DEFAULT_QUEUE
from queue_actor.token_file import read_file, signature_of
from web.callers import NAME_CHARACTERS_MAX, Caller, forbidden, set_caller, unauthorized
from web.problems import Problem
from web.rates import Bucket, Rates, Unit, policy_field, rate_field
from web.requests import Request

logger = logging.getLogger("web")

PACE_SECONDS = 2.0
"""How often who is paced is asked again whether its token is valid."""

SHOWN_FIELDS_MAX = 1_000
"""Fields of Authorization that are known by heart: a token may be written after any number of spaces."""

_BEARER = re.compile(rb"\A(?i:bearer) +([A-Za-z0-9._~+/-]+=*)\Z")  # RFC 6750, section 2.1

Where = Literal["default", "path", "body", "any", "every"]
"""Which queue a route is about: `default`; the one in its path; those in its body, which the handler sees to; any, so
that the handler shows what the caller may see; or every one there is."""


class Rule(NamedTuple):
    """What a route needs: one of these scopes, on a queue."""

    scopes: tuple[Scope, ...]
    where: Where


PUBLIC = None
"""The rule of a route that needs no token."""

PRODUCE, CONSUME, READ = (Scope.PRODUCE,), (Scope.CONSUME,), (Scope.READ,)
OPERATE, ADMIN = (Scope.OPERATE,), (Scope.ADMIN,)
EITHER = (Scope.CONSUME, Scope.OPERATE)
"""Of a release: with a token it is the holder's, without one the operator's, and the handler asks for the right one."""

VERBS = ("conclude", "fail", "extend", "release")

RULES: dict[str, Rule | None] = {
    "simple.enqueue": Rule(PRODUCE, "default"),
    "simple.dequeue": Rule(CONSUME, "default"),
    "simple.conclude": Rule(CONSUME, "default"),
    "simple.read": Rule(READ, "default"),
    "jobs.enqueue": Rule(PRODUCE, "path"),
    "jobs.dequeue": Rule(CONSUME, "path"),
    "jobs.dequeue_several": Rule(CONSUME, "body"),
    **{f"jobs.{verb}_one": Rule(EITHER if verb == "release" else CONSUME, "path") for verb in VERBS},
    **{f"jobs.{verb}_many": Rule(EITHER if verb == "release" else CONSUME, "path") for verb in VERBS},
    **{f"jobs.{verb}_across": Rule(CONSUME, "body") for verb in VERBS},
    "queues.list_queues": Rule(READ, "any"),
    "queues.read_queue": Rule(READ, "path"),
    "queues.put_queue": Rule(ADMIN, "path"),
    "queues.delete_queue": Rule(ADMIN, "path"),
    "queues.pause": Rule(OPERATE, "path"),
    "queues.resume": Rule(OPERATE, "path"),
    "queues.purge": Rule(OPERATE, "path"),
    "queues.redrive": Rule(OPERATE, "path"),
    "queues.search": Rule(READ, "path"),
    "queues.read_job": Rule(READ, "path"),
    "queues.forget": Rule(OPERATE, "path"),
    "queues.cancel": Rule(OPERATE, "path"),
    "queues.redrive_one": Rule(OPERATE, "path"),
    "queues.run": Rule(OPERATE, "path"),
    "queues.cancel_many": Rule(OPERATE, "path"),
    "overview.overview": Rule(READ, "any"),
    "overview.trend": Rule(READ, "path"),
    "overview.why": Rule(READ, "path"),
    "overview.access": Rule(tuple(Scope), "any"),
    "events.follow": Rule(READ, "any"),
    "ops.healthz": PUBLIC,
    "ops.readyz": PUBLIC,
    "ops.monitor": Rule(READ, "every"),
    "ops.statistics": Rule(READ, "every"),
    "ops.backup": Rule(ADMIN, "every"),
    "dashboard.home": PUBLIC,
    "dashboard.page": PUBLIC,
    "dashboard.part": PUBLIC,
    "docs.document": PUBLIC,
    "docs.page": PUBLIC,
    "docs.style": PUBLIC,
}
"""By the endpoint of the route. One that does not stand here is a bug, and answers nobody who needs a token."""


class TokenHolder(Caller):
    """Who has shown a token."""

    def __init__(self, access: "Access", token: bytes, grant: Grant, secret: Secret) -> None:
        self.name: str = grant.name
        self.token = token
        self.valid_until = secret.valid_until  # wall clock
        self._access = access
        self.grant = grant
        self._is_rated = grant.is_rated

    def may(self, scope: Scope, queue: str) -> bool:
        """See `Caller.may`."""
        return self.grant.allows(scope, queue)

    def require(self, scope: Scope, *queues: str, field: str | None = None) -> None:
        """See `Caller.require`."""
        for queue in queues:
            if not self.may(scope, queue):
                raise forbidden((scope,), f"queue {queue[:NAME_CHARACTERS_MAX]}", field=field)

    def check(self, rule: Rule, queue: str | None) -> None:
        """Refuse what the rule of a route does not allow; the queue is that of the path, if there is one.

        Raises:
            Problem: `forbidden`.
        """
        if rule.where in ("any", "body"):
            if not any(self.grant.has(scope) for scope in rule.scopes):
                raise forbidden(rule.scopes, "any queue")
            return
        wanted = DEFAULT_QUEUE if rule.where == "default" else "*" if rule.where == "every" else queue
        assert wanted is not None  # noqa: S101 - for the type checker: the path of the other routes has one
        for scope in rule.scopes:
            if self.grant.allows(scope, wanted):
                return
        where = "all queues, *" if wanted == "*" else f"queue {wanted[:NAME_CHARACTERS_MAX]}"
        raise forbidden(rule.scopes, where)

    @property
    def patterns(self) -> tuple[str, ...]:
        """See `Caller.patterns`."""
        return self.grant.queues

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """See `Caller.scopes`."""
        return tuple(scope for scope in Scope if self.grant.has(scope))

    def as_holder(self, dequeue: Dequeue) -> Dequeue:
        """See `Caller.as_holder`."""
        return replace(dequeue, holder=self.name, holder_in_progress_max=self.grant.in_progress_max)

    # --- rates

    def _buckets(self, now: float) -> dict[Unit, Bucket]:
        grant, rates = self._access.grant_of(self), self._access.rates
        limits: list[tuple[Unit, float | None]] = [
            ("requests", grant.requests_per_second),
            ("jobs", grant.jobs_per_second),
        ]
        return {unit: rates.bucket(self.name, unit, most, now) for unit, most in limits if most is not None}

    def _admit(self, unit: Unit, count: int) -> None:
        if not self._is_rated:
            return
        now = self._access.clock().monotonic
        bucket = self._buckets(now).get(unit)
        if bucket is None:
            return
        seconds = bucket.wait_seconds(now)
        if seconds > 0:
            raise Problem(
                "rate_limited",
                f"this token may move {bucket.per_second:.12g} {unit} a second, and has",
                Retry_After=str(max(1, ceil(seconds))),
            )
        bucket.take(count, now)

    def admit_request(self) -> None:
        """Let a request pass.

        Raises:
            Problem: `rate_limited`.
        """
        self._admit("requests", 1)

    def admit_jobs(self, count: int = 0) -> None:
        """See `Caller.admit_jobs`."""
        self._admit("jobs", count)

    def charge_jobs(self, count: int) -> None:
        """See `Caller.charge_jobs`."""
        if not self._is_rated:
            return
        now = self._access.clock().monotonic
        bucket = self._buckets(now).get("jobs")
        if bucket is not None:
            bucket.take(count, now)

    async def pace_jobs(self, count: int) -> None:
        """See `Caller.pace_jobs`."""
        while True:
            if not self._access.knows(self):
                raise unauthorized("the token is not valid any more, or allows less", sent=True)
            now = self._access.clock().monotonic
            bucket = self._buckets(now).get("jobs")
            seconds = 0.0 if bucket is None else bucket.wait_seconds(now)
            if seconds == 0:
                break
            await trio.sleep(min(seconds, PACE_SECONDS))
        if bucket is not None:
            bucket.take(count, now)

    def rate_fields(self) -> dict[str, str]:
        """See `Caller.rate_fields`."""
        if not self._is_rated:
            return {}
        now = self._access.clock().monotonic
        buckets = self._buckets(now)
        if not buckets:
            return {}
        return {"RateLimit-Policy": policy_field(buckets), "RateLimit": rate_field(buckets, now)}

    @contextmanager
    def while_valid(self) -> Iterator[trio.CancelScope]:
        """See `Caller.while_valid`."""
        with trio.CancelScope() as scope:
            self._access.waiting[scope] = self
            self._access.limit(scope, self)  # the file may have been read since the request was let in
            try:
                yield scope
            finally:
                del self._access.waiting[scope]


class Access:
    """The tokens that are valid now, from a file that is read again when it changes."""

    def __init__(self, path: Path, *, clock: Clock = system_clock) -> None:
        """Read the file.

        Raises:
            AccessError: It cannot be used.
        """
        self.clock = clock
        self.rates = Rates()
        self.waiting: dict[trio.CancelScope, TokenHolder] = {}
        self._path = path
        self._signature = signature_of(path)  # before it is read, so that what comes between is noticed later
        self._keys = Keyring(read_file(path))
        self._shown: dict[bytes, TokenHolder] = {}  # by the field of Authorization

    def knows(self, caller: TokenHolder) -> bool:
        """Whether the token of a caller is still valid, and allows no less than it did."""
        return self._secret_of(caller) is not None

    def grant_of(self, caller: TokenHolder) -> Grant:
        """What the file has of the name of a caller now, for what has lasted for longer; if it is gone, what it had."""
        return self._keys.grants.get(caller.name, caller.grant)

    def limit(self, scope: trio.CancelScope, caller: TokenHolder) -> None:
        """Have a block end when the token of its caller does, as the file has it now."""
        secret = self._secret_of(caller)
        if secret is None:
            scope.cancel()
        else:
            scope.deadline = trio.current_time() + secret.valid_until - self.clock().wall

    def _secret_of(self, caller: TokenHolder) -> Secret | None:
        """What the file has of the token of a caller, unless it allows less than when the caller was let in.

        What has begun was checked by then, and is not checked again.
        """
        found = self._keys.find(caller.token, self.clock().wall)
        return None if found is None or not found[0].includes(caller.grant) else found[1]

    def caller(self, request: Request) -> TokenHolder:
        """Who sent a request.

        Raises:
            Problem: `unauthorized`.
        """
        field = request.fields.get(b"authorization", b"")
        # A field is looked up by its hash, which nobody can foresee: how long that takes tells nothing about tokens.
        holder = self._shown.get(field) or self._look_up(field)
        if holder is None or not self._is_valid(holder) or request.repeats(b"authorization"):
            raise _refusal([value for name, value in request.scope["headers"] if name == b"authorization"])
        return holder

    def _is_valid(self, holder: TokenHolder) -> bool:
        return holder.valid_until == inf or self.clock().wall < holder.valid_until

    def _look_up(self, field: bytes) -> TokenHolder | None:
        """Who shows the token of a field, if it is valid; noted, so that the next time it is found at once."""
        match = _BEARER.match(field)
        found = None if match is None else self._keys.find(match[1], self.clock().wall)
        if match is None or found is None:
            return None
        if len(self._shown) == SHOWN_FIELDS_MAX:
            self._shown.clear()
        holder = self._shown[field] = TokenHolder(self, match[1], *found)
        return holder

    # --- reading again

    def read_again(self) -> None:
        """Read the file. One that cannot be used leaves everything as it is."""
        self._signature = signature_of(self._path)
        try:
            keys = Keyring(read_file(self._path))
        except AccessError as error:
            logger.error("tokens_unusable", extra={"facts": {"reason": str(error)}})  # noqa: TRY400 - it is no bug
            return
        self._keys, self._shown = keys, {}
        self.rates.keep(self._keys.grants)
        self.tell()
        for scope, caller in self.waiting.items():
            self.limit(scope, caller)

    def tell(self) -> None:
        """Note in the log what was read."""
        counts = {"names": len(self._keys.grants), "valid": self._keys.count_valid(self.clock().wall)}
        logger.info("tokens_read", extra={"facts": counts})

    def has_changed(self) -> bool:
        """Whether the file is not the one that was read, links followed."""
        return signature_of(self._path) != self._signature


def _refusal(fields: list[bytes]) -> Problem:
    """What to say to fields of Authorization that hold no valid token."""
    if not fields:
        return unauthorized("this server needs an access token, as Authorization: Bearer", sent=False)
    if len(fields) > 1:
        return unauthorized("there is more than one Authorization", sent=True)
    if fields[0].partition(b" ")[0].lower() != b"bearer":
        return unauthorized("the scheme of Authorization is Bearer", sent=False)
    match = _BEARER.match(fields[0])
    if match is None or not is_well_formed(match[1]):
        return unauthorized("the token is incomplete or mistyped", sent=True)
    return unauthorized("the token is not known, or not valid any more", sent=True)


def admit(access: Access | None, request: Request) -> None:
    """Find out who sent a request, and refuse what they may not do; the one place that guards every route.

    Raises:
        Problem: `unauthorized`, `rate_limited` or `forbidden`.
    """
    if access is None:
        return
    assert request.url_rule is not None  # noqa: S101 - for the type checker: the request has been routed
    rule = RULES[request.url_rule.endpoint]
    if rule is PUBLIC:
        return
    caller = access.caller(request)
    set_caller(request, caller)
    caller.admit_request()
    caller.check(rule, (request.view_args or {}).get("queue"))
