"""The jobs in a worker's hands, and the clock by which it holds them.

A lease is counted on the worker's own monotonic clock, from the moment at which it was asked for, so the worker
believes it over before the server does, never after. Every third of it the lease is extended, many in one request; one
whose answer was so long in coming is extended before its handler begins.
What cannot be extended by its end is lost, whatever the reason, and its handler is stopped.

Two tasks do that. One sends heartbeats, and may have to wait for an answer; the other looks at deadlines, and waits for
nobody.
"""

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from math import inf
from random import Random
from typing import Final, Protocol

import anyio
import anyio.from_thread
import msgspec

from queue_actor.client_answers import Extended, Job, Results
from queue_actor.client_bodies import ExtendClaim
from queue_actor.client_errors import ClientError, Refused
from queue_actor.counters import Counters
from queue_actor.handlers import (
    Dropped,
    Failed,
    Handler,
    Outcome,
    Released,
    RunningJob,
    StopReason,
    job_error,
    leased,
)

logger = logging.getLogger("queue_actor.worker")

BEATS_PER_LEASE: Final = 3
"""So one or two may get lost."""

PROGRESS_SECONDS: Final = 1.0
"""Least time between two heartbeats of a job that reports progress."""

BEAT_SECONDS_MAX: Final = 10.0
"""Longest that a heartbeat waits for its answer; of short leases it is a quarter, which leaves time for two more."""

BEAT_JOBS_MAX: Final = 500
"""Jobs in one request."""

CANCEL_SECONDS: Final = 10.0
"""How long a child process may go on after its job was cancelled; then it is killed."""

ENDED: Final = {"lease_lost", "unknown_job", "forgotten", "not_in_progress"}
"""Answers to a heartbeat, or to the end of an attempt, that say: the job is not in these hands any more."""


class Phase(Enum):
    """Where a job in hand is."""

    WAITING = "waiting"  # for a place to run
    RUNNING = "running"
    ENDED = "ended"  # what came of it is being told


class Bell:
    """Wakes one task that waits, or that will."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake it."""
        self._rung.set()

    async def wait(self, until: float = inf) -> None:
        """Wait to be woken, or until a moment."""
        with anyio.CancelScope(deadline=until):
            await self._rung.wait()
        self._rung = anyio.Event()


class Held:
    """A job in hand, from the answer that brought it until it is told what came of it.

    Attributes:
        job: As it was handed out.
        handler: What does it; None: nothing here does.
        running: What the handler is given.
        phase: Where it is.
        lease_ends: When the lease is over, by the worker's clock.
        beat_at: When to extend it next.
        fresh_until: When its handler may begin no more before it is extended.
        limit_at: When the handler has taken too long.
        limit: What to say then.
        kill_at: When to end a handler that was asked to stop and has not.
        verdict: What comes of it when its handler was stopped.
        told: Whether what came of it has been handed on, so that nothing later counts.
    """

    def __init__(self, job: Job, handler: Handler | None, sent: float, now: float) -> None:
        """Take it in hand now, with a lease that began when it was asked for, at `sent`, or some time later."""
        seconds = leased(job).seconds
        self.job = job
        self.handler = handler
        self.running = RunningJob(job, self._report)
        self.phase = Phase.WAITING
        self.beat_at = self.fresh_until = sent + seconds / BEATS_PER_LEASE
        self._ends_first = sent + seconds
        # One that is not fresh is extended before anything is done under it. Until then nobody is harmed by believing
        # it as young as it can be, which after a long wait for a job it probably is.
        self.lease_ends = self._ends_first if now < self.fresh_until else now + seconds
        self.lease_seconds: float = seconds
        self.limit_at = inf
        self.limit = ""
        self.kill_at = inf
        self._halt: Callable[[StopReason], None] = lambda _reason: None
        self.told = False
        self.verdict: Outcome | None = None
        self.changed: Callable[[], None] = lambda: None
        self._progress: bytes | None = None
        self._progressed_at = sent
        self._beaten_at = sent

    @property
    def name(self) -> tuple[str, int]:
        """Names it."""
        return self.job.queue, self.job.id

    @property
    def facts(self) -> dict[str, object]:
        """For its log lines."""
        job = self.job
        return {"queue": job.queue, "job": job.id, "type": job.type, "attempt": job.attempts}

    def begin(self, now: float) -> None:
        """It runs from now on."""
        assert self.handler is not None  # noqa: S101 - for the type checker: what nobody can do is given back
        self.phase = Phase.RUNNING
        self._progressed_at = now
        if self.handler.run_seconds is not None:
            self.limit_at = now + self.handler.run_seconds
            self.limit = f"it ran for more than {self.handler.run_seconds:g} s"

    @property
    def stuck_at(self) -> float:
        """When it will have been without progress for too long."""
        seconds = self.handler.stuck_seconds if self.handler is not None else None
        if seconds is None or self.phase is not Phase.RUNNING or self.running.stopping is not None:
            return inf
        return self._progressed_at + seconds

    def _report(self, progress: bytes) -> None:
        if self.handler is not None and self.handler.mode == "threads":
            anyio.from_thread.run_sync(self.note_progress, progress)
        else:
            self.note_progress(progress)

    def note_progress(self, progress: bytes) -> None:
        """What the handler has reported; it goes with the next heartbeat, which comes soon."""
        self._progress = progress
        self._progressed_at = anyio.current_time()
        if self.beat_at < inf:
            self.beat_at = min(self.beat_at, self._beaten_at + PROGRESS_SECONDS)
        self.changed()

    def claim(self) -> ExtendClaim:
        """What a heartbeat says of it."""
        progress, self._progress = self._progress, None
        return ExtendClaim.of(self.job, progress=None if progress is None else msgspec.Raw(progress))

    def restore(self, claim: ExtendClaim) -> None:
        """The heartbeat did not arrive: the progress in it is still to be told, unless there is newer."""
        if self._progress is None and claim.progress is not None:
            self._progress = bytes(claim.progress)

    def extended(self, sent: float, seconds: float) -> None:
        """The lease has begun again, some time after `sent`."""
        self.lease_seconds = seconds
        self.lease_ends = self._ends_first = sent + seconds
        self._beaten_at = sent
        self.fresh_until = sent + seconds / BEATS_PER_LEASE
        soon = inf if self._progress is None else sent + PROGRESS_SECONDS
        self.beat_at = min(self.fresh_until, soon)

    def not_extended(self) -> None:
        """The lease will not begin again: it is taken for as old as it may be, and what is left of it has to do."""
        self.lease_ends = self.fresh_until = min(self.lease_ends, self._ends_first)

    def halted_by(self, halt: Callable[[StopReason], None]) -> None:
        """How to make the handler stop, if it has begun; it may have been asked to before it did."""
        self._halt = halt
        if self.running.stopping is not None:
            halt(self.running.stopping)

    def halt(self, reason: StopReason) -> None:
        """Make the handler stop."""
        self._halt(reason)

    def stop(self, reason: StopReason) -> bool:
        """Have the handler stop, and let it lapse where it is not to be held for it; False if it was asked before.

        That a lease is lost counts also for one that was to stop already.
        """
        before = self.running.stopping
        if self.phase is Phase.ENDED or before == "lost" or (before is not None and reason != "lost"):
            return False
        self.running.stopping = reason
        match reason:
            case "lost":
                self.verdict = Dropped()
            case "time_limit":
                self.verdict = Failed(job_error("TimeLimit", self.limit))
            case "stuck":
                self.verdict = Failed(job_error("Stuck", "it has reported no progress for too long"))
            case _:
                self.verdict = Released()
        if reason not in {"cancelled", "shutdown"}:
            self.beat_at = inf
        self.limit_at = self.kill_at = inf
        if self.phase is Phase.RUNNING:
            self.halt(reason)
        return True


class Extender(Protocol):
    """Who extends leases: `AsyncClient` is one."""

    async def extend_many(self, jobs: Sequence[ExtendClaim]) -> Results[Extended]:
        """Extend leases, each answered for itself."""
        ...


class Heartbeats:
    """Keeps leases, and sees what is over.

    Attributes:
        held: All jobs in hand.
    """

    def __init__(
        self, server: Extender, counters: Counters, stopped: Callable[[Held], None], confirmed: Callable[[], None]
    ) -> None:
        """Nothing runs yet.

        Args:
            server: Whom to tell.
            counters: Where to count.
            stopped: Called with a job when its handler has been asked to stop, or when it is lost before it began.
            confirmed: Called when leases have been extended.
        """
        self.held: dict[tuple[str, int], Held] = {}
        self._server = server
        self._counters = counters
        self._stopped = stopped
        self._confirmed = confirmed
        self._beats = Bell()
        self._deadlines = Bell()
        self._random = Random()  # noqa: S311 - pauses are no secrets

    def hold(self, held: Held) -> None:
        """Take a job in hand. One that was in hand already is lost: this is a later lease of it."""
        earlier = self.held.get(held.name)
        if earlier is not None:
            self._lose(earlier, "leased_again")
        held.changed = self.changed
        self.held[held.name] = held
        self.changed()

    def let_go(self, held: Held) -> None:
        """It is in these hands no more."""
        if self.held.get(held.name) is held:
            del self.held[held.name]

    def changed(self) -> None:
        """Look at all deadlines again."""
        self._beats.ring()
        self._deadlines.ring()

    def stop(self, held: Held, reason: StopReason) -> None:
        """Have its handler stop."""
        if not held.stop(reason):
            return
        self._counters.stopped(reason)
        if reason == "cancelled" and held.handler is not None and held.handler.mode == "processes":
            held.kill_at = anyio.current_time() + CANCEL_SECONDS
        self._stopped(held)
        self.changed()

    def _lose(self, held: Held, code: str) -> None:
        """Its lease is another's, or nobody's; whoever has heard of it twice is told once."""
        if held.phase is not Phase.ENDED and held.running.stopping != "lost":
            logger.warning("lease_lost", extra={"facts": {**held.facts, "code": code}})
        self.stop(held, "lost")

    # --- deadlines

    async def watch(self) -> None:
        """Stop what is over, until cancelled."""
        while True:
            now = anyio.current_time()
            nearest = inf
            for held in list(self.held.values()):
                if held.phase is not Phase.ENDED:
                    self._look(held, now)
                    nearest = min(nearest, held.lease_ends, held.limit_at, held.stuck_at, held.kill_at)
            await self._deadlines.wait(nearest)

    def _look(self, held: Held, now: float) -> None:
        if held.lease_ends <= now:
            held.lease_ends = inf
            if held.running.stopping != "lost":
                logger.warning("lease_ran_out", extra={"facts": held.facts})
            self.stop(held, "lost")
        elif held.limit_at <= now:
            logger.warning("time_limit", extra={"facts": {**held.facts, "limit": held.limit}})
            self.stop(held, "time_limit")
        elif held.stuck_at <= now:
            logger.warning("stuck", extra={"facts": held.facts})
            self.stop(held, "stuck")
        elif held.kill_at <= now:
            held.kill_at = inf
            held.halt("lost")

    # --- heartbeats

    async def beat(self) -> None:
        """Extend leases when it is time, until cancelled."""
        while True:
            now = anyio.current_time()
            alive = [held for held in self.held.values() if held.phase is not Phase.ENDED]
            if any(held.beat_at <= now for held in alive):
                # Those that are due soon go along.
                due = [held for held in alive if held.beat_at <= now + held.lease_seconds / 24]
                due.sort(key=lambda held: held.beat_at)
                await self._extend(due[:BEAT_JOBS_MAX], min(held.lease_seconds for held in alive))
            else:
                await self._beats.wait(min((held.beat_at for held in alive), default=inf))

    async def _extend(self, due: Sequence[Held], shortest_seconds: float) -> None:
        sent = anyio.current_time()
        claims = [held.claim() for held in due]
        try:
            with anyio.fail_after(min(BEAT_SECONDS_MAX, shortest_seconds / 4)):
                results = await self._server.extend_many(claims)
        except (ClientError, TimeoutError) as error:
            self._unheard(due, claims, error)
            return
        for held, result in zip(due, results, strict=True):
            if held.phase is not Phase.ENDED:
                self._heard(held, sent, result)
        self._deadlines.ring()
        self._confirmed()

    def _unheard(self, due: Sequence[Held], claims: Sequence[ExtendClaim], error: Exception) -> None:
        """Try again soon, several times before any of the leases ends."""
        self._counters.beats_unheard += 1
        refused = isinstance(error, Refused) and error.retryable == "never"
        logger.warning(
            "beat_unheard", extra={"facts": {"jobs": len(due), "reason": str(error) or type(error).__name__}}
        )
        now = anyio.current_time()
        for held, claim in zip(due, claims, strict=True):
            if not refused:  # a progress that is too large, perhaps: the next heartbeat goes without
                held.restore(claim)
            if held.beat_at < inf:
                held.beat_at = now + self._random.uniform(0.5, 1.5) * held.lease_seconds / 12

    def _heard(self, held: Held, sent: float, result: Extended | Refused) -> None:
        if isinstance(result, Extended):
            self._counters.extended += 1
            if held.beat_at < inf:
                held.extended(sent, leased(result).seconds)
            if result.cancel_requested and held.running.stopping is None:
                logger.info("cancel_requested", extra={"facts": held.facts})
                self.stop(held, "cancelled")
        elif result.code in ENDED:
            self._lose(held, result.code)
        elif result.code == "run_too_long":
            # The lease holds to its end, and a word in time is better than none.
            held.not_extended()
            held.beat_at = inf
            if held.running.stopping is None:
                held.limit_at = min(held.limit_at, held.lease_ends - held.lease_seconds / 10)
                held.limit = "its queue lets no attempt run longer (run_seconds_max)"
        else:
            logger.error("beat_refused", extra={"facts": {**held.facts, "code": result.code}})
            held.not_extended()
            held.beat_at = anyio.current_time() + held.lease_seconds / 12
