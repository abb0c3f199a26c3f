"""The timer: sends a sweep when a deadline is reached, and at least once every `sweep_seconds`."""

import logging
from math import inf

import trio
from msgspec.structs import replace

from queue_actor.commands import Sweep, Swept
from queue_actor.engine import Engine
from queue_actor.errors import Unavailable
from queue_actor.figures import EngineFigures

logger = logging.getLogger(__name__)

PAUSE_SECONDS_MIN = 0.001
"""Shortest pause between two sweeps; deadlines that lie closer together share one."""

MOVED = ("stale", "due", "expired", "forgotten", "dead_lost")
"""The fields of `Swept` that are counted."""

STALL_SECONDS = 1.0
"""Waking this much too late means that the process was stopped or starved."""


class Sweeper:
    """Sleeps until the next deadline. There is one; it awaits each sweep, so sweeps never pile up."""

    def __init__(self, sweep_seconds: float) -> None:
        self._sweep_seconds = sweep_seconds
        self._due_at = inf  # the next deadline that is known, on Trio's clock
        self._sleep: trio.CancelScope | None = None
        self._sweeps = 0
        self._moved = dict.fromkeys(MOVED, 0)

    def count_in(self, figures: EngineFigures) -> EngineFigures:
        """The figures with those of the sweeps."""
        return replace(figures, sweeps=self._sweeps, swept=dict(self._moved))

    def notice(self, due_seconds: float | None) -> None:
        """Learn when the next deadline is, in seconds from now; wakes the sweeper earlier if need be."""
        self._due_at = inf if due_seconds is None else trio.current_time() + due_seconds
        if self._sleep is not None:
            self._sleep.deadline = min(self._sleep.deadline, max(self._due_at, self._earliest))

    async def run(self, engine: Engine) -> None:
        """Sweep until cancelled, or until the engine ends."""
        while True:
            overslept = await self._pause()
            if overslept > STALL_SECONDS:
                # Leases ran out while nobody could be heard. Those who concluded in time, and whose requests lie
                # unread in the kernel, go first.
                await trio.sleep(self._sweep_seconds)
            try:
                while (await self._sweep(engine)).more:
                    pass
            except Unavailable:
                return  # the engine has ended, and says itself why

    async def _sweep(self, engine: Engine) -> Swept:
        swept = await engine.execute(Sweep())
        self._sweeps += 1
        for name in MOVED:
            self._moved[name] += getattr(swept, name)
        if swept.dead_lost:
            # A dead job waits for a person to look at it. The limit took these before their time.
            logger.warning("dead_jobs_lost", extra={"facts": {"jobs": swept.dead_lost, "by": "dead_retention_jobs"}})
        return swept

    async def _pause(self) -> float:
        """Sleep until the next sweep; return how much too late that was."""
        now = trio.current_time()
        self._earliest = now + PAUSE_SECONDS_MIN
        deadline = max(self._earliest, min(now + self._sweep_seconds, self._due_at))
        with trio.CancelScope(deadline=deadline) as self._sleep:
            await trio.sleep_forever()
        deadline = self._sleep.deadline
        self._sleep = None
        return trio.current_time() - deadline
