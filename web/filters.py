"""What comes in over `/v1` about all jobs that match: purge, redrive, and the release of what a consumer holds."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from queue_actor.commands import JobFilter
from queue_actor.jobs import JobState
from web.bodies import Body, DequeueNextBody, ReleaseBody
from web.fields import BATCH, Cancellable, Moment, Name, Purgeable, Redrivable
from web.problems import Problem
from web.schemas import Type


class FilterBody(Body, frozen=True, kw_only=True):
    """Which jobs a bulk request means: all conditions that are given must hold."""

    type: Type | None = None
    consumer: Name | None = None
    error: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    since: Moment | None = None
    dry_run: bool = False

    def states(self) -> Sequence[str]:
        """The states that are meant; none for all that the verb can do anything about."""
        return ()

    def where(self) -> JobFilter:
        """The filter in the core's words."""
        since = None if self.since is None else self.since.timestamp()
        return JobFilter(frozenset(map(JobState, self.states())), self.type, self.consumer, self.error, since)


class PurgeBody(FilterBody, frozen=True, kw_only=True):
    """A purge, which names what it forgets."""

    state: Purgeable | Annotated[list[Purgeable], Meta(min_length=1)]

    def states(self) -> Sequence[str]:
        """See `FilterBody.states`."""
        return [self.state] if isinstance(self.state, str) else self.state


class RedriveBody(FilterBody, frozen=True, kw_only=True):
    """A redrive of many jobs, at a rate if one is given."""

    state: Redrivable | Annotated[list[Redrivable], Meta(min_length=1)] | None = None
    # Not so slow that the last of many jobs would be planned for a year that no calendar has.
    per_second: Annotated[float, Meta(ge=0.001, le=1_000_000)] | None = None

    def states(self) -> Sequence[str]:
        """See `FilterBody.states`."""
        return [self.state] if isinstance(self.state, str) else self.state or ()


class CancelBody(FilterBody, frozen=True, kw_only=True):
    """A cancel of many jobs."""

    state: Cancellable | Annotated[list[Cancellable], Meta(min_length=1)] | None = None

    def states(self) -> Sequence[str]:
        """See `FilterBody.states`."""
        return [self.state] if isinstance(self.state, str) else self.state or ()


class ReleaseManyBody(FilterBody, frozen=True, kw_only=True):
    """Worker's release of many jobs (`jobs`), or the operator's of all that a consumer holds and that match."""

    jobs: Annotated[list[ReleaseBody], BATCH] | None = None
    dequeue: DequeueNextBody | None = None

    def check(self) -> None:
        """Refuse a mixture of the two.

        Raises:
            Problem: It is one, or neither.
        """
        if self.jobs is None:
            if self.dequeue is not None:
                raise Problem("invalid", "a dequeue goes with jobs that are released by token", field="dequeue")
            if self.consumer is None:
                raise Problem("invalid", "neither jobs nor a consumer is named", field="consumer")
            return
        for field in FilterBody.__struct_fields__:
            if getattr(self, field) not in {None, False}:
                raise Problem("invalid", f"jobs and {field} exclude each other", field=field)
