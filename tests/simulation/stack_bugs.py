"""Bugs that are planted in the server to see that the simulation of the whole of it, and the cuts, find them."""

from collections.abc import Callable
from itertools import count
from math import inf
from typing import Any, NamedTuple

import pytest
import trio

from queue_actor.actor import ActorEngine
from queue_actor.idempotency import Answers
from queue_actor.settings import Settings
from queue_actor.sqlite import SqliteStore
from queue_actor.state_machine import StateMachine
from web import connections
from web.connections import Connection


def leave_without_goodbye(patch: pytest.MonkeyPatch) -> None:
    """Who leaves a wait stays parked."""

    async def wait(self: Any, request: Any) -> Any:
        with trio.CancelScope() as request.patience:
            self._submit(request)
            answer = await request.answered()  # cancelled here, it stays parked
            self._waiters.discard(request)
            return answer
        self._waiters.discard(request)
        return request.unserved

    patch.setattr(ActorEngine, "_wait", wait)


def answer_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """What is answered is stored with the next commit."""
    commit = SqliteStore.commit
    late: dict[Any, Any] = {}

    async def commit_the_one_before(self: SqliteStore, changes: Any) -> None:
        before, late[self] = late.get(self), changes
        if before is not None:
            await commit(self, before)

    patch.setattr(SqliteStore, "commit", commit_the_one_before)


def remember_no_answer(patch: pytest.MonkeyPatch) -> None:
    """An idempotent repeat is carried out again."""
    patch.setattr(Answers, "find", lambda *_: None)


def end_no_connection(patch: pytest.MonkeyPatch) -> None:
    """The task of a connection never ends."""
    run = Connection.run

    async def run_for_ever(self: Connection) -> None:
        await run(self)
        await trio.sleep_forever()

    patch.setattr(Connection, "run", run_for_ever)


def hear_of_nobody_who_leaves(patch: pytest.MonkeyPatch) -> None:
    """Who waits is leased to although its client has left."""

    async def wait(_: Connection) -> None:
        await trio.sleep_forever()

    patch.setattr(Connection, "_cancel_when_gone", wait)


def wait_for_dead_readers(patch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing is waited for."""
    patch.setattr(connections, "SEND_SECONDS", inf)


def start_no_leases_again(patch: pytest.MonkeyPatch) -> None:
    """Leases do not run out any more after a restart."""
    patch.setattr(StateMachine, "start_leases", lambda *_: None)


def forget_the_secret(patch: pytest.MonkeyPatch) -> None:
    """Tokens are worth nothing after a restart."""
    init, secrets = StateMachine.__init__, count(1)

    def init_with_another(self: StateMachine, settings: Settings, *, secret: bytes) -> None:
        init(self, settings, secret=next(secrets).to_bytes(len(secret), "big"))

    patch.setattr(StateMachine, "__init__", init_with_another)


def lose_what_was_sent_ahead(patch: pytest.MonkeyPatch) -> None:
    """A request that was sent ahead is lost."""
    next_request = Connection._next_request

    async def forget_and_wait(self: Connection) -> Any:
        if self.served:
            self.http._receive_buffer = type(self.http._receive_buffer)()
        return await next_request(self)

    patch.setattr(Connection, "_next_request", forget_and_wait)


class Planted(NamedTuple):
    """A bug, and what the failure of a world that has it says."""

    plant: Callable[[pytest.MonkeyPatch], None]
    sign: str
    durable: bool = False
    """Whether it takes a restart to be seen."""
    cut: str | None = None
    """What the cuts say of it, if they find it too."""


PLANTED = [
    Planted(leave_without_goodbye, r"waiters=[1-9]\d*\) are left|requests are parked", cut="waiters="),
    Planted(answer_before_the_commit, "(lost|id_given_twice|conclude_undone|attempt_repeated): ", durable=True),
    Planted(remember_no_answer, "enqueued_twice: ", cut="jobs are new, and not"),
    Planted(end_no_connection, r"0 connections, [1-9]\d* tasks .* are left|had no answer to", cut="tasks_living"),
    Planted(hear_of_nobody_who_leaves, "whose client had left", cut="leased to a client that had left"),
    Planted(wait_for_dead_readers, r"[1-9]\d* connections, .* are left"),
    Planted(start_no_leases_again, "not drained within|not what the counts say", durable=True),
    Planted(forget_the_secret, "holder_refused: ", durable=True),
    Planted(lose_what_was_sent_ahead, "had no answer to|method_not_allowed"),
]
