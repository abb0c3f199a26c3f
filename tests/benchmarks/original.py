"""The queue as it is first written: a list with a head index, full scans, and one mutex around everything.

Nothing here is slow for want of care. Enqueue and dequeue are as cheap as can be; what it does not do is to cut its
rare work into pieces. The list is compacted and grown in one go, the search for stale jobs looks at every job in
progress once a second, and whatever concerns many jobs is done in one loop, while all others wait for the mutex. It
needs nothing but the standard library, so that a server of another environment can use it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

LEASE_SECONDS = 300.0
SWEEP_SECONDS = 1.0
RETENTION_SECONDS = 3_600.0


@dataclass(slots=True)
class Job:
    """A job, whatever has become of it."""

    id: int
    type: str
    payload: bytes
    state: str = "queued"
    token: int = 0
    deadline: float = 0.0  # of its lease, or of its retention
    stales: int = 0


@dataclass(slots=True)
class Queue:
    """One queue. Whoever calls holds the mutex."""

    jobs: dict[int, Job] = field(default_factory=dict)
    in_progress: dict[int, Job] = field(default_factory=dict)
    slots: list[int] = field(default_factory=lambda: [0] * 64)
    head: int = 0
    tail: int = 0
    last_id: int = 0
    tokens: int = 0
    stales_max: int | None = None

    def enqueue(self, type_: str, payload: bytes) -> Job:
        """Add a job."""
        self.last_id += 1
        job = self.jobs[self.last_id] = Job(self.last_id, type_, payload)
        self._append(job.id)
        return job

    def _append(self, id_: int) -> None:
        if self.tail == len(self.slots):
            self.slots += [0] * len(self.slots)
        self.slots[self.tail] = id_
        self.tail += 1

    def dequeue(self, now: float, lease_seconds: float = LEASE_SECONDS) -> Job | None:
        """Lease the first job."""
        while self.head < self.tail:
            job = self.jobs.get(self.slots[self.head])
            self.head += 1
            if job is not None:
                self._compact()
                self.tokens += 1
                job.state, job.token, job.deadline = "in progress", self.tokens, now + lease_seconds
                self.in_progress[job.id] = job
                return job
        return None

    def _compact(self) -> None:
        if self.head * 2 > self.tail and self.tail > 64:
            live = self.tail - self.head
            self.slots[:live] = self.slots[self.head : self.tail]
            self.head, self.tail = 0, live

    def conclude(self, id_: int, token: int, now: float) -> Job | None:
        """End a job, if the token is that of its lease."""
        job = self.in_progress.get(id_)
        if job is None or job.token != token:
            return None
        del self.in_progress[id_]
        job.state, job.deadline = "concluded", now + RETENTION_SECONDS
        return job

    # --- what takes as long as there are jobs

    def sweep(self, now: float) -> None:
        """Bring back the jobs whose leases have ended, and forget those that are kept no longer."""
        stale = [job for job in self.in_progress.values() if job.deadline <= now]
        back = []
        for job in stale:
            del self.in_progress[job.id]
            job.stales += 1
            if self.stales_max is not None and job.stales >= self.stales_max:
                job.state = "dead"
            else:
                job.state = "queued"
                back.append(job.id)
        if back:
            self.slots[self.head : self.head] = back
            self.tail += len(back)
        for job in [job for job in self.jobs.values() if job.state == "concluded" and job.deadline <= now]:
            del self.jobs[job.id]

    def list_all(self) -> list[dict[str, object]]:
        """All jobs."""
        return [{"id": job.id, "type": job.type, "state": job.state} for job in self.jobs.values()]

    def search(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """The jobs that match."""
        return [job for job in self.jobs.values() if wanted(job)]

    def redrive(self) -> None:
        """Queue the dead jobs again."""
        for job in self.jobs.values():
            if job.state == "dead":
                job.state, job.stales = "queued", 0
                self._append(job.id)

    def purge(self) -> None:
        """Forget whatever waits."""
        for job in [job for job in self.jobs.values() if job.state == "queued"]:
            del self.jobs[job.id]
        self.head = self.tail = 0


def seconds() -> float:
    """This moment."""
    return time.monotonic()
