"""What the model found, and what reading found beside it: each of these failed once."""

from typing import Any

from queue_actor.commands import Command, ReadQueue
from queue_actor.jobs import DEFAULT_QUEUE_POLICY, Now
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import SECRET_BYTES


class World:
    """A state machine, and the time it is told."""

    def __init__(self, **settings: Any) -> None:
        self.machine = StateMachine(Settings(**settings), secret=bytes(SECRET_BYTES))
        self.now = Now(monotonic=100.0, wall=1_000.0)

    def do(self, command: Command[Any]) -> Any:
        return self.machine.apply(command, self.now)

    def wait(self, seconds: float) -> None:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)


def test_the_default_queue_reads_as_unlimited_before_there_is_a_job_in_it() -> None:
    assert World().do(ReadQueue("default")).policy == DEFAULT_QUEUE_POLICY
