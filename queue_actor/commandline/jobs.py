"""Look at jobs: `jobs` finds them, `job` shows one whole."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

import click
import msgspec
from rich.text import Text

from queue_actor.client import Job
from queue_actor.client_bodies import Search
from queue_actor.commandline.session import JSON_OPTION, QUEUE_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import shown_json, span, state_text
from queue_actor.jobs import JobState

PAGE_JOBS = 1_000
SHOWN_CHARACTERS = 60
"""How much of a note or a payload a table shows."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Reference(click.ParamType[tuple[str | None, int]]):
    """A job, as `17` of the queue that is meant, or `images/17`."""

    name = "job"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, int]:
        """The queue if it is named, and the id."""
        queue, _, id_ = value.rpartition("/")
        if not re.fullmatch(r"[0-9]{1,16}", id_):
            self.fail(f"{value!r} is no job: it is written 17, or images/17", param, ctx)
        return queue or None, int(id_)


class MomentType(click.ParamType[datetime]):
    """A time by RFC 3339, or how long ago it was: `90s`, `15m`, `2h`, `1d`."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time."""
        if found := re.fullmatch(r"([0-9]{1,9})([smhd])", value):
            return datetime.now(UTC) - timedelta(seconds=int(found[1]) * UNITS[found[2]])
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: it is written 2027-01-31T08:00:00Z, or 15m for how long ago", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} does not say how far it is from UTC", param, ctx)
        return moment


MOMENT = MomentType()
REFERENCE = Reference()


def filter_options(function: click.decorators.FC) -> click.decorators.FC:
    """The conditions that a search and a verb for all that match have in common."""
    for option in (
        click.option(
            "--since", type=MOMENT, metavar="TIME", help="Enqueued then or later: a time, or 15m, 2h, 1d ago."
        ),
        click.option("--error", metavar="TEXT", help="Whose last failure has this in its type or message."),
        click.option("--consumer", metavar="NAME", help="That this consumer has, or had last."),
        click.option("--type", "type_", metavar="TYPE", help="Of this type."),
    ):
        function = option(function)
    return function


@click.command(
    epilog=examples(
        "queue-actor jobs -q images",
        "queue-actor jobs -q images --state dead --error Timeout --since 2h --newest",
        "queue-actor jobs -q images --state dead --json --content | jq .payload",
    )
)
@QUEUE_OPTION
@click.option("--state", multiple=True, type=click.Choice([str(state) for state in JobState]), help="May be repeated.")
@filter_options
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@click.option("--content", is_flag=True, help="With payload and result.")
@JSON_OPTION
@with_session
def jobs(
    session: Session,
    *,
    state: tuple[str, ...],
    type_: str | None,
    consumer: str | None,
    error: str | None,
    since: datetime | None,
    newest: bool,
    limit: int,
    content: bool,
) -> None:
    """Find the jobs of a queue. With --json each is one line."""
    query = Search(type=type_, consumer=consumer, error=error, since=since, content=content)
    query |= {"order": "newest" if newest else "oldest", "limit": min(limit, PAGE_JOBS)}
    if state:
        query["state"] = state
    matching = session.client.jobs(session.queue, **query)
    found = islice(matching, limit)
    if session.printer.as_json:
        for one in found:
            session.printer.raw(shown_json(msgspec.json.encode(one)))
    else:
        _table(session, found, content=content)
    if next(matching, None) is not None:
        session.printer.note("there are more: say --limit")


def _table(session: Session, found: Iterable[Job], *, content: bool) -> None:
    columns = ["#id", "type", "state", "#priority", "#attempts", "age", "consumer", "note"]
    columns += ["payload", "result"] * content
    session.printer.table(columns, [_row(one, session.caller.now(), content=content) for one in found])


def _row(job: Job, now: float, *, content: bool) -> list[str | Text]:
    row: list[str | Text] = [
        str(job.id),
        job.type,
        state_text(job.state),
        str(job.priority),
        str(job.attempts),
        span(max(0.0, now - job.created_at.timestamp())),
        job.consumer or "-",
        _note(job, now),
    ]
    return row + [shortened(shown_json(bytes(raw))) for raw in (job.payload_raw, job.result_raw)] * content


def _note(job: Job, now: float) -> str:
    """What is to be said of a job in its state."""
    if job.lease is not None:
        left = job.lease.expires_at.timestamp() - now
        cancelled = ", cancel requested" if job.cancel_requested else ""
        return f"lease {span(left) if left > 0 else 'over'}{cancelled}"
    if job.state == JobState.SCHEDULED and job.not_before is not None:
        return f"in {span(max(0.0, job.not_before.timestamp() - now))}"
    return str(job.reason or "-")


def shortened(text: str) -> str:
    """A text that fits a column."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


@click.command(
    epilog=examples(
        "queue-actor job images/17",
        "queue-actor job 17 -q images --wait 60",
        "queue-actor job images/17 --json | jq .result",
    )
)
@click.argument("reference", metavar="[QUEUE/]ID", type=REFERENCE)
@QUEUE_OPTION
@click.option("--wait", type=click.FloatRange(0), metavar="SECONDS", help="Wait so long for its end, then show it.")
@JSON_OPTION
@with_session
def job(session: Session, *, reference: tuple[str | None, int], wait: float | None) -> int:
    """Show a job with its history. With --wait: the exit code is 1 unless it is concluded by then."""
    queue, id_ = reference[0] or session.queue, reference[1]
    read = session.client.read_job if wait is None else partial(session.client.wait_for_end, seconds=wait)
    found = read(queue, id_)
    if session.printer.as_json:
        session.printer.document(found)
    else:
        _show(session, found)
    return 1 if wait is not None and found.state != JobState.CONCLUDED else 0


def _show(session: Session, job: Job) -> None:
    told: dict[str, str | Text | None] = {
        "job": f"{job.queue}/{job.id}",
        "type": job.type,
        "state": state_text(job.state),
        "reason": job.reason,
        "priority": str(job.priority) if job.priority else None,
        "created": _moment(job.created_at),
        "not before": _moment(job.not_before),
        "expires": _moment(job.expires_at),
        "finished": _moment(job.finished_at),
        "attempts": f"{job.attempts}, of these {job.fails} failed and {job.stales} stale",
        "attempts at most": None if job.max_attempts is None else str(job.max_attempts),
        "consumer": job.consumer,
        "lease": None if job.lease is None else f"until {_moment(job.lease.expires_at)}, fence {job.lease.fence}",
        "cancel requested": "yes" if job.cancel_requested else None,
        "unique key": job.unique_key,
        "trace": job.traceparent,
        **{f"meta {name}": value for name, value in job.meta.items()},
        "payload": _content(job.payload_raw),
        "progress": _content(job.progress_raw),
        "result": _content(job.result_raw),
    }
    session.printer.table(("", ""), [(name, value) for name, value in told.items() if value is not None])
    for attempt in job.history:
        error = "" if attempt.error is None else f": {attempt.error.type}: {attempt.error.message}"
        seconds = (attempt.ended_at - attempt.started_at).total_seconds()
        who = attempt.consumer or "somebody"
        session.printer.say(
            f"attempt {attempt.attempt}: {attempt.outcome} after {span(seconds)} by {who}"
            f" at {_moment(attempt.ended_at)}{error}"
        )


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _content(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else shown_json(text)
