"""What a call of the client raises: one class for each family of codes, made of the problem that was the answer.

    ClientError
    ├── Refused             the server answered with a problem; `code` says which
    │   ├── Invalid         the request is wrong: sending it again will not help
    │   ├── AccessRefused   no valid access token was shown, or it does not allow that
    │   ├── UnknownQueue    there is no such queue
    │   ├── UnknownJob      there is no such job, or no longer
    │   ├── LeaseLost       the job is somebody else's now, or nobody's: drop the result and go on
    │   ├── Conflict        the job, or the queue, is not in a state for that
    │   │   └── UniqueKeyTaken   another job has the unique key
    │   ├── Busy            nothing was done, and later it may be: the client has repeated it already
    │   └── OutcomeUnknown  it was done or it was not
    ├── Unreachable         there was no answer
    ├── NotUnderstood       there was one that is none of this contract: something else listens there
    └── Closed              the client was closed before there was an answer

A code that is not known is treated by its status, as web/README.md says: 4xx as `never`, 5xx as `repeat`.
"""

from typing import Literal, Self

import msgspec

Advice = Literal["later", "repeat", "never", "drop"]


class ClientError(Exception):
    """Any failure of a call."""

    def anew(self) -> Self:
        """The same failure for another caller: an exception that is raised in two tasks would tell of both."""
        another = type(self)(*self.args)
        another.__dict__.update(self.__dict__)
        another.__cause__ = self
        return another


class Unreachable(ClientError):
    """There was no answer: nobody listens, the connection broke, or the time was up.

    Attributes:
        may_be_done: Whether the request had been sent, at least in part, so that it was carried out or it was not.
    """

    def __init__(self, detail: str, *, may_be_done: bool = False) -> None:
        super().__init__(detail)
        self.may_be_done = may_be_done


class NotUnderstood(ClientError):
    """The answer is none that this server gives: a proxy, or something else, answered."""


class Closed(ClientError):
    """The client was closed while the call waited."""


class Refused(ClientError):
    """The server answered with a problem (RFC 9457), or named one as the `error` of a job among many.

    Attributes:
        code: A stable word for programs; the table is in web/README.md.
        status: Of the answer; for a job among many the status that the code would have alone, 0 if it is not known.
        detail: A sentence for people.
        field: The path of the value that was refused, such as `jobs[3].type`, where there is one.
        retryable: What to do about it: `later`, `repeat`, `never` or `drop`.
        retry_after_seconds: When to come back, where the server said so.
        request_id: Names the request in the server's log; None for a job among many.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int = 0,
        field: str | None = None,
        retry_after_seconds: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.field = field
        kind = CODES.get(code)
        self.status = status or (kind.status if kind else 0)
        self.retryable: Advice = kind.retryable if kind else _by_status(self.status)
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" (field {self.field})" if self.field else "")


class Invalid(Refused):
    """The request is wrong: `field` says where, and sending it again will not help."""


class AccessRefused(Refused):
    """No valid access token was shown, it does not allow that, or an open server was asked from elsewhere."""


class UnknownQueue(Refused):
    """There is no such queue."""


class UnknownJob(Refused):
    """No job has this id: there never was one in this life of the queue, or it ended and is no longer kept."""


class LeaseLost(Refused):
    """The token holds nothing any more, or nobody has the job: drop the result and go on."""


class Conflict(Refused):
    """The job, or the queue, is not in a state in which this can be done."""


class UniqueKeyTaken(Conflict):
    """Another job of the queue, which has not ended, has this unique key."""


class Busy(Refused):
    """A limit is reached, or the server cannot do it now. Nothing was done; later it may be."""


class OutcomeUnknown(Refused):
    """The server failed in the middle: it was done or it was not."""


class Kind(msgspec.Struct, frozen=True):
    """What a code means: its family, and what it is treated as."""

    status: int
    retryable: Advice
    family: type[Refused]


def _kinds(family: type[Refused], retryable: Advice, **statuses: int) -> dict[str, Kind]:
    return {code: Kind(status, retryable, family) for code, status in statuses.items()}


CODES: dict[str, Kind] = {
    **_kinds(Invalid, "never", malformed=400, invalid=400, not_found=404, method_not_allowed=405, too_large=413),
    **_kinds(Invalid, "never", unsupported_media_type=415, key_reused=422, headers_too_large=431, not_implemented=501),
    **_kinds(AccessRefused, "never", unauthorized=401, forbidden=403, foreign_host=403, foreign_origin=403),
    **_kinds(UnknownQueue, "never", unknown_queue=404),
    **_kinds(UnknownJob, "never", unknown_job=404),
    **_kinds(UnknownJob, "drop", forgotten=404),
    **_kinds(LeaseLost, "drop", lease_lost=409, other_consumer=403, not_in_progress=409),
    **_kinds(Conflict, "drop", already_finished=409),
    **_kinds(Conflict, "never", not_waiting=409, not_finished=409, run_too_long=409),
    **_kinds(Conflict, "never", queue_not_empty=409, not_durable=409),
    **_kinds(UniqueKeyTaken, "never", unique_key_taken=409),
    **_kinds(Busy, "later", empty=404, rate_limited=429, queue_full=429, memory_full=429, too_many_queues=429),
    **_kinds(Busy, "later", in_progress_limit=429, disk_full=507, busy=503, too_many_waiters=503, too_many_readers=503),
    **_kinds(Busy, "later", too_many_connections=503, backup_running=503, starting=503, draining=503),
    **_kinds(OutcomeUnknown, "repeat", request_timeout=408, internal=500, outcome_unknown=503),
}
"""Code by code, as in the guide for authors of clients in web/README.md."""

SERVER_ERROR = 500


def _by_status(status: int) -> Advice:
    return "repeat" if status >= SERVER_ERROR else "never"


def refusal(
    code: str,
    detail: str,
    *,
    status: int = 0,
    field: str | None = None,
    retry_after_seconds: float | None = None,
    request_id: str | None = None,
) -> Refused:
    """The exception of a code's family; of a code that is not known, the one that its status stands for."""
    kind = CODES.get(code)
    by_status = OutcomeUnknown if status >= SERVER_ERROR else Refused
    family = kind.family if kind else by_status
    return family(
        code,
        detail,
        status=status,
        field=field,
        retry_after_seconds=retry_after_seconds,
        request_id=request_id,
    )
