"""Refusals: what the queue answers when a command cannot be carried out.

A `QueueError` is an expected answer: it travels back to the caller as a value, and the queue goes on. Any other
exception is a bug or a broken machine, and ends the process.

    QueueError
    ├── InvalidCommand      invalid           a value out of bounds; `field` names it
    ├── KeyReused           key_reused        an idempotency key came with another body
    ├── UnknownQueue        unknown_queue     there is no such queue
    ├── QueueNotEmpty       queue_not_empty   only a queue without jobs can be deleted
    ├── UnknownJob          unknown_job       no job ever had this id
    ├── ForgottenJob        forgotten         a job had this id and is no longer kept
    ├── LeaseLost           lease_lost        the token is not the one of the current or the winning attempt
    ├── OtherConsumer       other_consumer    dequeued by a consumer of another name
    ├── NotInProgress       not_in_progress   the verb needs a leased job
    ├── NotWaiting          not_waiting       the verb needs a scheduled or queued job
    ├── NotFinished         not_finished      the verb needs a job that has ended
    ├── AlreadyFinished     already_finished  the verb needs a job that has not ended
    ├── RunTooLong          run_too_long      the attempt would last longer than `run_seconds_max`
    ├── UniqueKeyTaken      unique_key_taken  another job has this unique key
    ├── NotDurable          not_durable       nothing is kept that could be copied
    ├── LimitReached
    │   ├── QueueFull       queue_full        `queued_jobs_max` jobs wait or run
    │   ├── MemoryFull      memory_full       `memory_bytes_max` bytes of payloads are kept
    │   ├── DiskFull        disk_full         less than `disk_reserve_bytes` are free
    │   ├── TooManyQueues   too_many_queues   `queues_max` queues exist
    │   ├── HolderFull      in_progress_limit  the holder has as many jobs in progress as it may
    │   ├── TooManyWaiters  too_many_waiters  `waiters_max` dequeues are parked
    │   └── TooManyReaders  too_many_readers  `readers_max` readers follow the events
    └── Unavailable
        ├── Busy            busy              the inbox is full; nothing was done
        ├── BackupRunning   backup_running    there is one backup at a time
        ├── Starting        starting          the jobs are being read from the disk; nothing was done
        ├── Draining        draining          the server is about to end; nothing was done
        └── OutcomeUnknown  outcome_unknown   the engine ended before it answered: done or not done
"""

from typing import ClassVar


class QueueError(Exception):
    """An expected refusal.

    Attributes:
        code: A stable word for programs.
        detail: A sentence for people.
        field: The path of the offending value, such as `jobs[3].type`, where there is one.
    """

    code: ClassVar[str]

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class InvalidCommand(QueueError):
    """A value is out of bounds."""

    code = "invalid"


class KeyReused(QueueError):
    """An idempotency key was used before, with another body."""

    code = "key_reused"


class UnknownQueue(QueueError):
    """There is no queue of this name."""

    code = "unknown_queue"


class QueueNotEmpty(QueueError):
    """Only a queue without jobs can be deleted."""

    code = "queue_not_empty"


class UnknownJob(QueueError):
    """No job of this queue ever had this id."""

    code = "unknown_job"


class ForgottenJob(QueueError):
    """A job had this id once; it ended, and is no longer kept."""

    code = "forgotten"


class LeaseLost(QueueError):
    """The token shown belongs neither to the current lease nor to the attempt that ended the job this way."""

    code = "lease_lost"


class OtherConsumer(QueueError):
    """The job was dequeued under another consumer's name."""

    code = "other_consumer"


class NotInProgress(QueueError):
    """The verb needs a leased job, and this one is not."""

    code = "not_in_progress"


class NotWaiting(QueueError):
    """The verb needs a scheduled or queued job, and this one is not."""

    code = "not_waiting"


class NotFinished(QueueError):
    """The verb needs a job that has ended, and this one has not."""

    code = "not_finished"


class AlreadyFinished(QueueError):
    """The verb needs a job that has not ended, and this one has."""

    code = "already_finished"


class RunTooLong(QueueError):
    """The attempt would last longer than its queue's `run_seconds_max`."""

    code = "run_too_long"


class UniqueKeyTaken(QueueError):
    """Another job of the queue, which has not ended, has this unique key."""

    code = "unique_key_taken"


class NotDurable(QueueError):
    """There is no data directory, and so nothing that could be copied."""

    code = "not_durable"


class LimitReached(QueueError):
    """A limit with a name is reached; it may be lower later."""


class QueueFull(LimitReached):
    """As many jobs wait, or are in progress, as `queued_jobs_max` allows."""

    code = "queue_full"


class MemoryFull(LimitReached):
    """As many bytes are kept as `memory_bytes_max` allows."""

    code = "memory_full"


class DiskFull(LimitReached):
    """The disk has room for what is there to end, and for no more jobs."""

    code = "disk_full"


class TooManyQueues(LimitReached):
    """As many queues exist as `queues_max` allows."""

    code = "too_many_queues"


class HolderFull(LimitReached):
    """As many jobs are leased to one holder as it may have at once."""

    code = "in_progress_limit"


class TooManyWaiters(LimitReached):
    """As many dequeues are parked as `waiters_max` allows."""

    code = "too_many_waiters"


class TooManyReaders(LimitReached):
    """`readers_max` readers follow the events."""

    code = "too_many_readers"


class Unavailable(QueueError):
    """The engine cannot answer now."""


class Busy(Unavailable):
    """The inbox is full. The command was not carried out."""

    code = "busy"


class BackupRunning(Unavailable):
    """Another backup is under way."""

    code = "backup_running"


class Starting(Unavailable):
    """The server still reads its jobs from the disk. The command was not carried out."""

    code = "starting"


class Draining(Unavailable):
    """The server is about to end and hands out no more jobs. The command was not carried out."""

    code = "draining"


class OutcomeUnknown(Unavailable):
    """The engine ended before it answered. The command was carried out, or it was not."""

    code = "outcome_unknown"
