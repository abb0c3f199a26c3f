"""How an engine goes on from what a store has kept of a former life.

The order is restored exactly: what was ready stands in the order of its places. Leases are another matter: their
deadlines meant something to a clock that is gone, and nobody could be heard meanwhile, so they start again at full
length, once everything else is there.
"""

from queue_actor.changes import Recovered
from queue_actor.jobs import Job, JobState, Now, kept_bytes_of
from queue_actor.ledger import Ledger
from queue_actor.queues import Queue


def restore(ledger: Ledger, recovered: Recovered, now: Now) -> list[Job]:
    """Fill a ledger that is empty; the jobs in progress, whose leases have yet to start."""
    ledger.resume(recovered)
    for record in recovered.queues:
        queue = ledger.open_queue(record.name, now)
        queue.next_id = queue.first_id = record.next_id
        queue.next_fence = max(queue.next_fence, record.next_fence)
        queue.policy, queue.paused, queue.declared = record.policy, record.paused, record.declared
        queue.departures = record.departures
    for (name, state), count in recovered.finished.items():
        ledger.queues[name].counts[state] += count
        ledger.counts[state] += count
    leased: list[Job] = []
    ready: dict[str, list[Job]] = {}
    for job in recovered.jobs:
        _restore_job(ledger, ledger.queues[job.queue], job, now)
        if job.state is JobState.IN_PROGRESS:
            leased.append(job)
        elif job.state is JobState.QUEUED:
            ready.setdefault(job.queue, []).append(job)
    for name, jobs in ready.items():
        queue = ledger.queues[name]
        for job in sorted(jobs, key=lambda job: job.place):
            queue.ready.append(job.priority, job.place, job.id)
        ledger.stocked.add(name)
    return leased


def _restore_job(ledger: Ledger, queue: Queue, job: Job, now: Now) -> None:
    queue.jobs[job.id] = job
    queue.first_id = min(queue.first_id, job.id)
    queue.next_place = max(queue.next_place, job.place + 1)
    queue.counts[job.state] += 1
    ledger.counts[job.state] += 1
    ledger.kept_bytes += kept_bytes_of(job)
    if job.options.unique_key is not None and not job.key_freed:
        queue.unique[job.options.unique_key] = job.id
    if job.state is JobState.SCHEDULED:
        ledger.plan(job, now.wall if job.not_before is None else job.not_before)
    if job.state is JobState.IN_PROGRESS and job.holder is not None:
        ledger.hold(job.holder)
    if job.state is not JobState.IN_PROGRESS and job.expires_at is not None:
        ledger.expiries.set(job.queue, job.id, job.expires_at)


def start_leases(ledger: Ledger, jobs: list[Job], now: Now) -> None:
    """Start the leases of jobs that were in progress, at full length."""
    for job in jobs:
        ledger.restart_lease(ledger.queues[job.queue], job, now)
