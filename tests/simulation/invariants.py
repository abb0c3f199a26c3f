"""What must hold of the state machine between any two batches: everything it counts and keeps in order, counted again.

The jobs are what an observer knows of them; what the machine holds is compared with that. With a store, some finished
jobs are in the store alone, and still count.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from queue_actor.jobs import FINISHED, WAITING, Job, JobState, UniqueUntil, kept_bytes_of
from queue_actor.ledger import Key
from queue_actor.queues import Queue
from queue_actor.state_machine import StateMachine
from tests.contract.state import deadlines_of


class ViolationError(AssertionError):
    """A promise that was broken: its name, and what happened."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


def same(name: str, held: Any, expected: Any) -> None:
    """See that what is held is what is expected.

    Raises:
        ViolationError: It is not.
    """
    if held != expected:
        raise ViolationError(name, f"{held} is held, and {expected} is right")


def recount(machine: StateMachine, jobs: Mapping[Key, Job], lease_ends: Mapping[Key, float]) -> None:
    """Compare a machine with all jobs there are, and the moments on the monotonic clock at which leases end.

    Raises:
        ViolationError: They differ.
    """
    books = machine._ledger
    by_queue: dict[str, list[Job]] = defaultdict(list)
    for job in jobs.values():
        by_queue[job.queue].append(job)
    if not by_queue.keys() <= books.queues.keys():
        raise ViolationError("queue_lost", f"{by_queue.keys() - books.queues.keys()} has jobs")
    for name, queue in books.queues.items():
        _recount_queue(queue, by_queue[name], durable=books.recent is not None)
    held = [job for queue in books.queues.values() for job in queue.jobs.values()]
    same("counts", books.counts, {**dict.fromkeys(JobState, 0), **Counter(job.state for job in jobs.values())})
    same("kept_bytes", books.kept_bytes, sum(map(kept_bytes_of, held)))
    same("leases", deadlines_of(books.leases), lease_ends)
    same(
        "planned",
        deadlines_of(books.planned),
        {key: job.not_before for key, job in jobs.items() if job.state is JobState.SCHEDULED},
    )
    same(
        "expiries",
        deadlines_of(books.expiries),
        {key: job.expires_at for key, job in jobs.items() if job.state in WAITING and job.expires_at is not None},
    )
    ended = {(job.queue, job.id): job.state for job in held if job.state in FINISHED}
    same("dead", deadlines_of(books.dead).keys(), {key for key, state in ended.items() if state is JobState.DEAD})
    same("kept", deadlines_of(books.kept).keys(), {key for key, state in ended.items() if state is not JobState.DEAD})
    if books.recent is not None:
        same("recent", books.recent.keys(), ended.keys())
    holders = Counter(job.holder for job in held if job.state is JobState.IN_PROGRESS and job.holder is not None)
    same("held", books.held, holders)


def _recount_queue(queue: Queue, jobs: list[Job], *, durable: bool) -> None:
    same(f"counts of {queue.name}", queue.counts, {**dict.fromkeys(JobState, 0), **Counter(job.state for job in jobs)})
    for job in jobs:
        held = queue.jobs.get(job.id)
        if held is None and durable and job.state in FINISHED:
            continue  # the store has it
        if held is not job and held != job:
            raise ViolationError("job_lost", f"{held} is held, and {job} is right")
        if not queue.first_id <= job.id < queue.next_id:
            raise ViolationError(
                "ids", f"job {job.id} of {queue.name} is not among {queue.first_id} to {queue.next_id}"
            )
    if len(queue.jobs) > len(jobs):
        raise ViolationError("job_resurrected", f"{queue.name} holds jobs that are none")
    _check_line(queue, in_line(jobs))
    same(
        f"unique keys of {queue.name}",
        queue.unique,
        {
            job.options.unique_key: job.id
            for job in jobs
            if job.options.unique_key is not None and job.state not in FINISHED and not job.key_freed
        },
    )


def in_line(jobs: list[Job]) -> list[Job]:
    """The ready ones of a queue's jobs, in the order in which they are handed out."""
    return sorted((job for job in jobs if job.state is JobState.QUEUED), key=lambda job: (-job.priority, job.place))


def _check_line(queue: Queue, line: list[Job]) -> None:
    same(f"ready jobs of {queue.name}", len(queue.ready), len(line))
    same(f"head of {queue.name}", queue.ready.first(), line[0].id if line else None)
    positions = [queue.ready.ahead(job.priority, job.place) for job in line]
    same(f"positions in {queue.name}", positions, list(range(len(line))))
    places = [job.place for job in line]
    if len(set(places)) < len(places) or max(places, default=0) >= queue.next_place:
        raise ViolationError("places", f"{queue.name} gave {places}, and the next is {queue.next_place}")


def frees_its_key(job: Job) -> bool:
    """Whether a job gives its unique key back when it starts."""
    return job.options.unique_until is UniqueUntil.STARTED
