"""Every error this server answers with: one table from code to status, one shape (RFC 9457).

    {"type":"about:blank","title":"Conflict","status":409,"code":"lease_lost","detail":"…","field":"…","retryable":"drop"}

`retryable` tells a client's author what to do, in the words of the guide in web/README.md:

    later   the same request may succeed after Retry-After; nothing was done
    repeat  the outcome is unknown: repeat with the same token or Idempotency-Key
    never   the request itself is wrong
    drop    somebody else has the job, or it has ended: drop the result
"""

from http import HTTPStatus
from typing import Literal

import msgspec

from queue_actor.errors import QueueError

Advice = Literal["later", "repeat", "never", "drop"]

CONTENT_TYPE = "application/problem+json"


class Kind(msgspec.Struct, frozen=True):
    """What a code means over HTTP."""

    status: int
    retryable: Advice
    retry_after_seconds: int | None = None


PROBLEMS: dict[str, Kind] = {
    # The request as such.
    "malformed": Kind(400, "never"),
    "invalid": Kind(400, "never"),
    "unauthorized": Kind(401, "never"),
    "forbidden": Kind(403, "never"),
    "foreign_host": Kind(403, "never"),
    "foreign_origin": Kind(403, "never"),
    "not_found": Kind(404, "never"),
    "method_not_allowed": Kind(405, "never"),
    "request_timeout": Kind(408, "repeat"),
    "too_large": Kind(413, "never"),
    "unsupported_media_type": Kind(415, "never"),
    "rate_limited": Kind(429, "later", retry_after_seconds=1),
    "headers_too_large": Kind(431, "never"),
    "internal": Kind(500, "repeat"),
    "not_implemented": Kind(501, "never"),
    # The queue's refusals, as in queue_actor.errors.
    "unknown_queue": Kind(404, "never"),
    "queue_not_empty": Kind(409, "never"),
    "key_reused": Kind(422, "never"),
    "other_consumer": Kind(403, "drop"),
    "empty": Kind(404, "later"),
    "unknown_job": Kind(404, "never"),
    "forgotten": Kind(404, "drop"),
    "lease_lost": Kind(409, "drop"),
    "not_in_progress": Kind(409, "drop"),
    "already_finished": Kind(409, "drop"),
    "not_waiting": Kind(409, "never"),
    "not_finished": Kind(409, "never"),
    "run_too_long": Kind(409, "never"),
    "unique_key_taken": Kind(409, "never"),
    "not_durable": Kind(409, "never"),
    "queue_full": Kind(429, "later", retry_after_seconds=1),
    "memory_full": Kind(429, "later", retry_after_seconds=1),
    "too_many_queues": Kind(429, "later", retry_after_seconds=60),
    "in_progress_limit": Kind(429, "later", retry_after_seconds=1),
    "disk_full": Kind(507, "later", retry_after_seconds=10),
    # The server's state.
    "busy": Kind(503, "later", retry_after_seconds=1),
    "too_many_waiters": Kind(503, "later", retry_after_seconds=1),
    "too_many_readers": Kind(503, "later", retry_after_seconds=10),
    "too_many_connections": Kind(503, "later", retry_after_seconds=1),
    "backup_running": Kind(503, "later", retry_after_seconds=10),
    "starting": Kind(503, "later", retry_after_seconds=1),
    "draining": Kind(503, "later", retry_after_seconds=5),
    "outcome_unknown": Kind(503, "repeat", retry_after_seconds=1),
}


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error answer."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: Advice
    field: str | None = None


class Problem(Exception):
    """An error answer, ready to be sent: raised by handlers, written by the connection itself."""

    def __init__(self, code: str, detail: str, *, field: str | None = None, **headers: str) -> None:
        """Takes a code of the table, a sentence for people, and header fields (`_` stands for `-`)."""
        super().__init__(detail)
        kind = PROBLEMS[code]
        self.code = code
        self.detail = detail
        self.field = field
        self.status = kind.status
        self.headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
        if kind.retry_after_seconds is not None:
            self.headers["Retry-After"] = str(kind.retry_after_seconds)
        self.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        document = ProblemDocument(
            "about:blank", HTTPStatus(kind.status).phrase, kind.status, code, detail, kind.retryable, field
        )
        self.body = msgspec.json.encode(document)

    def within(self, place: str) -> "Problem":
        """The same problem, of a value inside another: who looks at the inner one need not know where it stands."""
        return Problem(self.code, self.detail, field=f"{place}.{self.field}")

    @classmethod
    def of(cls, refusal: QueueError) -> "Problem":
        """The answer to a refusal of the queue."""
        return cls(refusal.code, refusal.detail, field=refusal.field)
