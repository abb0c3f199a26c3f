"""The kinds of fields that bodies over `/v1` have, each with its bounds.

A bound that is a setting stands in the type as `at_most`, for the tests and for web/openapi.py; it is checked when a
body becomes a command.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw

from queue_actor.settings import DAY_SECONDS
from queue_actor.tokens import FENCE_MAX
from web.schemas import NO_CONTROLS, QUEUE_NAME

ATTEMPTS_MAX = 1_000_000
ERROR_TYPE_CHARACTERS_MAX = 200
ERROR_MESSAGE_CHARACTERS_MAX = 10_000
META_PAIRS_MAX = 8
DEQUEUE_QUEUES_MAX = 100
SECONDS_MAX = 3_660 * DAY_SECONDS

QUEUE_PREFIX = r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,78}\*\Z"

FOLLOWED = r"\A(?:[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}|(?:[A-Za-z0-9][A-Za-z0-9_.:-]{0,78})?\*)\Z"
"""A queue, all queues of a prefix, or all."""

TRACEPARENT = r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z"
"""W3C Trace Context, section 3.2."""


def bounded(setting: str, **bounds: Any) -> Meta:
    """Bounds of a field, the upper one of which is a setting."""
    said = {"at_most": setting}
    return Meta(extra=said, extra_json_schema=said, **bounds)


Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_CONTROLS)]
QueueName = Annotated[str, Meta(pattern=QUEUE_NAME)]
QueueNames = (
    Annotated[list[QueueName], Meta(min_length=1, max_length=DEQUEUE_QUEUES_MAX)]
    | Annotated[str, Meta(pattern=QUEUE_PREFIX)]
)
Token = Annotated[str, Meta(min_length=1, max_length=200)]
FileName = Literal[
    "actions.js",
    "api.js",
    "app.css",
    "app.js",
    "charts.js",
    "dom.js",
    "format.js",
    "health.js",
    "job.js",
    "jobs.js",
    "json.js",
    "links.js",
    "live.js",
    "overview.js",
    "policy.js",
    "queue.js",
]
"""What the dashboard is made of."""

Id = Annotated[int, Meta(ge=1, le=FENCE_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
Delay = Annotated[float, bounded("delay_seconds_max", ge=0, le=SECONDS_MAX)]
Lease = Annotated[float, bounded("lease_seconds_max", gt=0, le=SECONDS_MAX)]
Content = Annotated[Raw, bounded("payload_bytes_max")]
Count = Annotated[int, bounded("batch_jobs_max", ge=1)]
Wait = Annotated[float, bounded("wait_seconds_max", ge=0)]
BATCH = bounded("batch_jobs_max", min_length=1)
Purgeable = Literal["scheduled", "queued", "concluded", "dead", "cancelled"]
Redrivable = Literal["dead", "cancelled"]
Cancellable = Literal["scheduled", "queued", "in_progress"]
Moment = Annotated[datetime, Meta(tz=True)]
MetaKey = Annotated[str, Meta(min_length=1, max_length=100, pattern=NO_CONTROLS)]
MetaText = Annotated[str, Meta(max_length=100, pattern=NO_CONTROLS)]
