"""Who sent a request, as its handler sees them: what they may do, and how much of it.

An open server has one caller, who may do everything. Who shows a token is a `TokenHolder` of web/auth.py.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

from queue_actor.access import Scope
from queue_actor.commands import Dequeue, Dequeued
from queue_actor.engine import Engine
from web.exchanges import cancelled_by_disconnect
from web.problems import Problem
from web.requests import Request

NAME_CHARACTERS_MAX = 100
"""Of the name of a queue that are repeated in a refusal."""

_REALM = 'Bearer realm="queue-actor"'


class Caller:
    """Who sent a request. This one may do everything: the caller of an open server."""

    name: str | None = None

    def may(self, scope: Scope, queue: str) -> bool:  # noqa: ARG002 - others look at what is asked
        """Whether a queue, or all queues of a prefix (`tenant:*`), may be used so."""
        return True

    def require(self, scope: Scope, *queues: str, field: str | None = None) -> None:
        """Refuse what is not allowed on all of some queues.

        Raises:
            Problem: `forbidden`.
        """

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """The queues that may be told of; None: all."""
        return None

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """What may be done to these queues."""
        return tuple(Scope)

    def as_holder(self, dequeue: Dequeue) -> Dequeue:
        """The dequeue, with whom its leases count for."""
        return dequeue

    def admit_jobs(self, count: int = 0) -> None:
        """Let an enqueue of so many jobs pass, or a dequeue, which is charged afterwards.

        Raises:
            Problem: `rate_limited`.
        """

    def charge_jobs(self, count: int) -> None:
        """Count jobs that were handed out."""

    async def pace_jobs(self, count: int) -> None:
        """Let a part of a stream pass, so many jobs, when there is room for it.

        Raises:
            Problem: `unauthorized`: the token has become invalid meanwhile.
        """

    @contextmanager
    def while_valid(self) -> Iterator[trio.CancelScope]:
        """Cancels the block when the token becomes invalid."""
        with trio.CancelScope() as scope:
            yield scope

    def rate_fields(self) -> dict[str, str]:
        """The header fields that tell how much is left of what is limited."""
        return {}


ANYONE = Caller()


def set_caller(request: Request, caller: Caller) -> None:
    """Note who sent a request."""
    request.caller = caller


def caller_of(request: Request) -> Caller:
    """Who sent a request that was admitted."""
    caller = request.caller
    return caller if isinstance(caller, Caller) else ANYONE


async def dequeue_for(request: Request, engine: Engine, command: Dequeue) -> Dequeued:
    """Carry out a dequeue. One that waits ends with its client, and is answered as empty when its token ends.

    Raises:
        Problem: `rate_limited`.
        QueueError: The refusal.
    """
    caller = caller_of(request)
    caller.admit_jobs()
    command = caller.as_holder(command)
    if command.wait_seconds > 0:
        async with cancelled_by_disconnect(request):
            # Once a lease is given the block is not cancelled any more.
            dequeued = Dequeued()
            with caller.while_valid():
                dequeued = await engine.execute(command)
    else:
        dequeued = await engine.execute(command)
    caller.charge_jobs(len(dequeued.leases))
    return dequeued


def forbidden(scopes: Iterable[Scope], where: str, *, field: str | None = None) -> Problem:
    """The refusal of what a token does not allow."""
    needed = list(scopes)
    return Problem(
        "forbidden",
        f"this token may not do that: it needs the scope {' or '.join(needed)} on {where}",
        field=field,
        WWW_Authenticate=f'{_REALM}, error="insufficient_scope", scope="{needed[0]}"',
    )


def unauthorized(detail: str, *, sent: bool) -> Problem:
    """The refusal of who does not show a valid token."""
    challenge = f'{_REALM}, error="invalid_token"' if sent else _REALM
    return Problem("unauthorized", detail, WWW_Authenticate=challenge)
