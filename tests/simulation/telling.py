"""Commands and replies in a few words, for the trace of a run; the same words for the same thing in every process."""

from collections.abc import Sequence
from typing import Any

from queue_actor.commands import (
    Bulk,
    BulkDone,
    Claim,
    Command,
    Conclude,
    Dequeue,
    Dequeued,
    Enqueue,
    Enqueued,
    Extend,
    Fail,
    NewJob,
    QueueView,
    Release,
    Results,
    SetPolicy,
)
from queue_actor.errors import QueueError
from queue_actor.jobs import Job, QueuePolicy


def brief(what: Any) -> str:  # noqa: PLR0911 - a table
    """One line."""
    match what:
        case str():
            return what
        case Enqueue():
            key = "" if what.key is None else f" under key {what.key.key}"
            return f"enqueue {what.queue} {', '.join(map(_new_job, what.jobs))}{key}"
        case Dequeue():
            key = "" if what.key is None else f" under key {what.key.key}"
            wait = f" waiting {what.wait_seconds:g} s" if what.wait_seconds else ""
            return f"dequeue {what.count} of {what.queue} {what.order} for {what.lease_seconds} s{wait}{key}"
        case Conclude() | Fail() | Extend() | Release():
            return f"{type(what).__name__.lower()} {', '.join(map(_claim, what.claims))}"
        case Bulk():
            return f"bulk {what.verb} of {what.queue}"
        case SetPolicy():
            usual = QueuePolicy()
            told = [name for name in usual.__struct_fields__ if getattr(what.policy, name) != getattr(usual, name)]
            facts = ", ".join(f"{name} {getattr(what.policy, name)}" for name in told if name != "retry")
            return f"setpolicy {what.queue} {facts or 'as usual'}{_paused(what.paused)}"
        case Command():
            values = [f"{getattr(what, name)}" for name in what.__struct_fields__]
            return f"{type(what).__name__.lower()} {' '.join(values)}"
        case _:
            return f"  -> {_reply(what)}"


def _reply(what: Any) -> str:  # noqa: PLR0911 - a table
    match what:
        case QueueError():
            return f"refused: {what.code}"
        case Enqueued() | Results():
            return _each(what.jobs)
        case Dequeued():
            jobs = _each([lease.job for lease in what.leases])
            return (jobs or "no job") + (" (told again)" if what.repeated else "")
        case Job():
            return _each([what])
        case QueueView():
            return f"{what.name}{_paused(what.paused)}"
        case BulkDone():
            return f"{what.count} done"
        case _:
            return str(what)


def _paused(paused: bool | None) -> str:
    return {None: "", True: ", paused", False: ", not paused"}[paused]


def _each(jobs: Sequence[Any]) -> str:
    return ", ".join(job.code if isinstance(job, QueueError) else f"#{job.id} {job.state}{_lease(job)}" for job in jobs)


def _lease(job: Any) -> str:
    return f" fence {job.fence}" if isinstance(job, Job) and job.fence else ""


def _new_job(new: NewJob) -> str:
    facts = [
        f"{new.payload.decode()[:8]}" if new.payload else "empty",
        f"priority {new.priority}" if new.priority else "",
        f"after {new.delay_seconds:g} s" if new.delay_seconds else "",
        f"within {new.ttl_seconds:g} s" if new.ttl_seconds is not None else "",
        f"unique {new.options.unique_key} until {new.options.unique_until}, {new.on_existing}"
        if new.options.unique_key
        else "",
        f"at most {new.options.max_attempts} times" if new.options.max_attempts else "",
    ]
    return f"[{' '.join(filter(None, facts))}]"


def _claim(claim: Claim) -> str:
    fence = int(claim.token[:14], 16) if claim.token and len(claim.token) > 14 else claim.token
    return f"{claim.queue}#{claim.id} by fence {fence}"
