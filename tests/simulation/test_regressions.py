"""What the model found, and what reading found beside it: each of these failed once."""

from typing import Any

from queue_actor.commands import Cancel, Command, Enqueue, NewJob, ReadQueue, Redrive, RunNow
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


def test_the_oldest_age_counts_from_when_a_job_was_last_queued_at_the_back() -> None:
    """A job of last month that is redriven now, or called off its date, is no month-old backlog."""
    for begin, verb in ((NewJob("t"), Redrive), (NewJob("t", delay_seconds=10_000), RunNow)):
        world = World()
        world.do(Enqueue("q", [begin]))
        if verb is Redrive:
            world.do(Cancel("q", [1]))
        world.wait(3_000)
        world.do(verb("q", [1]))
        world.wait(5)

        assert world.do(ReadQueue("q")).oldest_age_seconds == 5
