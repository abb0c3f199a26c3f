"""What came of jobs is told to the server, and in the same request it is asked for the next ones.

One request is under way at a time, and what ends meanwhile goes together with the next: the busier the worker, the more
jobs share a request. An outcome is told until there is an answer. That does no harm however late it is, since the token
decides: a job that somebody else has by now stays his, and the worker is told so.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import anyio
import msgspec

from queue_actor.client_answers import Dequeued, Job, Results, Settled
from queue_actor.client_bodies import ConcludeClaim, Dequeue, FailClaim, ReleaseClaim
from queue_actor.client_errors import AccessRefused, ClientError, Refused
from queue_actor.counters import Counters, Verb
from queue_actor.handlers import Done, Failed, Released, job_error
from queue_actor.heartbeats import ENDED, Bell, Held
from queue_actor.reach import Reach, is_final

logger = logging.getLogger("queue_actor.worker")

REPORT_JOBS_MAX: Final = 500
REPORT_BYTES_MAX: Final = 256 * 1024
"""Of results in one request; a longer one goes alone."""

Told = Done | Failed | Released


class Settler(Protocol):
    """Whom outcomes are told: `AsyncClient` is one."""

    async def conclude_many(self, jobs: Sequence[ConcludeClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """These are done."""
        ...

    async def fail_many(self, jobs: Sequence[FailClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """These have failed."""
        ...

    async def release_many(self, jobs: Sequence[ReleaseClaim], *, dequeue: Dequeue | None = None) -> Results[Settled]:
        """These are given back."""
        ...


class Reports:
    """Outcomes that the server does not know yet."""

    def __init__(
        self,
        server: Settler,
        counters: Counters,
        reach: Reach,
        *,
        ask: Callable[[], Dequeue | None],
        answered: Callable[[Dequeue, Sequence[Job], float], None],
        over: Callable[[Held], None],
    ) -> None:
        """Nothing is told yet.

        Args:
            server: Whom to tell.
            counters: Where to count.
            reach: Whether it is heard.
            ask: What to ask for with the next request, if there is room for more jobs.
            answered: Called with that, the jobs that it brought, and the moment at which it was sent.
            over: Called with each job that the server knows the outcome of, or never will.
        """
        self._server = server
        self._counters = counters
        self._reach = reach
        self._ask = ask
        self._answered = answered
        self._over = over
        self._untold: dict[int, tuple[Held, Told]] = {}  # by the identity of what is held
        self._alone: set[int] = set()  # those that go alone, since a request with others was refused
        self._bell = Bell()

    def __len__(self) -> int:
        return len(self._untold)

    def add(self, held: Held, outcome: Told) -> None:
        """Have the server told what came of a job."""
        self._untold[id(held)] = held, outcome
        self._bell.ring()

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            if not self._untold:
                await self._bell.wait()
                continue
            try:
                await self._tell(self._next(), self._ask())
            except ClientError as error:
                await anyio.sleep(self._reach.unheard(error))

    async def flush(self) -> None:
        """Tell what is left, as long as the server answers, and ask for nothing."""
        try:
            while self._untold:
                await self._tell(self._next(), None)
        except ClientError as error:
            self._reach.unheard(error)

    def _next(self) -> list[tuple[Held, Told]]:
        """What goes into one request: the oldest, and others with the same verb."""
        oldest = next(iter(self._untold.values()))
        if id(oldest[0]) in self._alone:
            return [oldest]
        batch: list[tuple[Held, Told]] = []
        size = 0
        for key, (held, outcome) in self._untold.items():
            if type(outcome) is not type(oldest[1]) or key in self._alone:
                continue
            size += len(outcome.result or b"") if isinstance(outcome, Done) else 0
            if batch and (len(batch) == REPORT_JOBS_MAX or size > REPORT_BYTES_MAX):
                break
            batch.append((held, outcome))
        return batch

    async def _tell(self, batch: Sequence[tuple[Held, Told]], dequeue: Dequeue | None) -> None:
        """Send one request.

        Raises:
            ClientError: It is to be sent again, later.
        """
        sent = anyio.current_time()
        brought: Sequence[Job] = ()
        try:
            results = await self._send(batch, dequeue)
            brought = self._brought(results.dequeued)
        except ClientError as error:
            if not is_final(error):
                raise
            self._reach.heard()
            self._refused(batch, error)
        else:
            self._reach.heard()
            for (held, outcome), result in zip(batch, results, strict=True):
                self._told(held, outcome, result)
        finally:
            if dequeue is not None:
                self._answered(dequeue, brought, sent)

    async def _send(self, batch: Sequence[tuple[Held, Told]], dequeue: Dequeue | None) -> Results[Settled]:
        concludes: list[ConcludeClaim] = []
        fails: list[FailClaim] = []
        releases: list[ReleaseClaim] = []
        for held, outcome in batch:
            if isinstance(outcome, Done):
                result = None if outcome.result is None else msgspec.Raw(outcome.result)
                concludes.append(ConcludeClaim.of(held.job, result=result))
            elif isinstance(outcome, Failed):
                facts = {"retry": outcome.retry, "retry_after_seconds": outcome.retry_after_seconds}
                fails.append(FailClaim.of(held.job, error=outcome.error, **facts))
            else:
                releases.append(ReleaseClaim.of(held.job, delay_seconds=outcome.delay_seconds))
        if concludes:
            return await self._server.conclude_many(concludes, dequeue=dequeue)
        if fails:
            return await self._server.fail_many(fails, dequeue=dequeue)
        return await self._server.release_many(releases, dequeue=dequeue)

    def _brought(self, dequeued: Dequeued | None) -> Sequence[Job]:
        if dequeued is None:
            return ()
        if dequeued.refused is not None:
            logger.info("dequeue_refused", extra={"facts": {"code": dequeued.refused.code}})
        return dequeued.jobs

    def _refused(self, batch: Sequence[tuple[Held, Told]], error: ClientError) -> None:
        """All of it was, and nothing was done: one by one it will be seen which of them is to blame."""
        if len(batch) > 1:
            self._alone.update(id(held) for held, _ in batch)
            return
        ((held, outcome),) = batch
        if isinstance(outcome, Done) and not isinstance(error, AccessRefused):
            # Too large, for one. Work that was done would be done again, and come to the same.
            self.add(held, Failed(job_error("InvalidResult", error), retry=False))
            return
        self._untellable(held, outcome, error)

    def _told(self, held: Held, outcome: Told, result: Settled | Refused) -> None:
        facts = {**held.facts, "verb": _VERBS[type(outcome)]}
        if isinstance(result, Refused):
            if result.code not in ENDED:
                self._untellable(held, outcome, result)
                return
            self._counters.lost += 1
            logger.warning("outcome_too_late", extra={"facts": {**facts, "code": result.code}})
        else:
            logger.info("outcome_told", extra={"facts": {**facts, "state": result.state}})
            self._counters.told(_VERBS[type(outcome)])
        self._end(held)

    def _untellable(self, held: Held, outcome: Told, error: Exception) -> None:
        """The server will not hear of it. The lease runs out, and the job will be done again."""
        self._counters.unreported += 1
        facts = {**held.facts, "verb": _VERBS[type(outcome)], "reason": str(error)}
        logger.error("outcome_refused", extra={"facts": facts})
        self._end(held)

    def _end(self, held: Held) -> None:
        self._untold.pop(id(held))
        self._alone.discard(id(held))
        self._over(held)


_VERBS: Final[dict[type[Told], Verb]] = {Done: "conclude", Failed: "fail", Released: "release"}
