"""Parked dequeues: they wait in line for a job, the oldest is served first, and who has left is never leased to."""

from collections.abc import Iterable, Iterator

from queue_actor.commands import Dequeue, Dequeued
from queue_actor.engine import Request
from queue_actor.errors import TooManyWaiters
from queue_actor.jobs import Now
from queue_actor.state_machine import StateMachine


class Waiters:
    """The lines, one a queue."""

    def __init__(self, waiters_max: int) -> None:
        self._waiters_max = waiters_max
        self._lines: dict[str, dict[Request[Dequeued], Dequeue]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, queue: str) -> bool:
        return queue in self._lines

    def park(self, request: Request[Dequeued], command: Dequeue) -> None:
        """Put a dequeue at the end of its line.

        Raises:
            TooManyWaiters: As many wait as `waiters_max` allows.
        """
        if self._count >= self._waiters_max:
            raise TooManyWaiters(f"{self._waiters_max} dequeues are parked, as many as waiters_max allows")
        self._lines.setdefault(command.queue, {})[request] = command
        self._count += 1

    def discard(self, request: Request[Dequeued], command: Dequeue) -> None:
        """Take a dequeue out of its line, if it still stands there."""
        line = self._lines.get(command.queue)
        if line is not None and line.pop(request, None) is not None:
            self._count -= 1
            if not line:
                del self._lines[command.queue]

    def serve(
        self, machine: StateMachine, queues: Iterable[str], now: Now
    ) -> Iterator[tuple[Request[Dequeued], Dequeued]]:
        """Lease the ready jobs of some queues to those who wait for them, oldest first, while there are any."""
        for queue in queues:
            for request, command in list(self._lines.get(queue, {}).items()):
                if request.abandoned:
                    continue  # his task has not run yet, to leave the line
                reply = machine.apply(command, now)
                if not reply.leases:
                    break
                self.discard(request, command)
                request.decided = True
                yield request, reply

    def dismiss(self) -> list[Request[Dequeued]]:
        """Empty all lines; the caller answers those who stood in them."""
        dismissed = [request for line in self._lines.values() for request in line]
        self._lines.clear()
        self._count = 0
        return dismissed
