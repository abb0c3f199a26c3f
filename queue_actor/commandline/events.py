"""`events`: what becomes of jobs, as it happens, a line each."""

import sys
from itertools import islice
from typing import Any

import click
import msgspec
from rich.text import Text

from queue_actor.client import Event, Gap, JobEvent, Opened
from queue_actor.commandline.session import JSON_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import safe, shown_json, state_text
from queue_actor.jobs import JobState

GAPS = {
    "behind": "more happened than is kept",
    "restart": "the server was started anew",
    "instance": "it is another life of the queue, with other jobs",
}


@click.command(
    epilog=examples(
        "queue-actor events",
        "queue-actor events -q 'tenant:*' --state dead --state cancelled",
        "queue-actor events -q images --json | jq -r 'select(.event == \"job\").id'",
    )
)
@click.option("-q", "--queue", metavar="QUEUE", help="Of it, or of all that begin so: 'tenant:*'; else of all.")
@click.option("--type", "type_", metavar="TYPE", help="Of jobs of this type.")
@click.option(
    "--state",
    multiple=True,
    type=click.Choice([str(state) for state in JobState]),
    help="Only what leads there; may be repeated.",
)
@click.option("--after", metavar="PLACE", help="Go on behind it: `place` of an earlier --json line.")
@click.option("-n", "--limit", type=click.IntRange(1), help="End after so many lines.")
@JSON_OPTION
@with_session
def events(
    session: Session, *, type_: str | None, state: tuple[str, ...], after: str | None, limit: int | None
) -> None:
    """Follow what becomes of jobs, until it is interrupted. With --json each step is one line.

    It goes on where it was when the connection was cut or the server started anew. What cannot be told any more is said
    in a line of its own. The token needs the scope read.
    """
    with session.client.follow(session.target.queue, type=type_, state=state or None, after=after) as followed:
        told = (event for event in followed if not isinstance(event, Opened))
        for event in islice(told, limit):
            if session.printer.as_json:
                session.printer.raw(shown_json(msgspec.json.encode(_document(event, followed.last_id))))
            else:
                session.printer.out.print(_line(event), soft_wrap=True)
            sys.stdout.flush()  # whoever reads along waits for it


def _document(event: Event, place: str | None) -> dict[str, Any]:
    kind = "job" if isinstance(event, JobEvent) else "gap"
    return {"event": kind, "place": place, **msgspec.to_builtins(event)}


def _line(event: Event) -> Text:
    if isinstance(event, Gap):
        some = "" if event.missed is None else f", {event.missed:,} changes of all queues at most"
        return Text(safe(f"something is missing here: {GAPS.get(event.reason, event.reason)}{some}"), "yellow")
    assert isinstance(event, JobEvent)  # noqa: S101 - for the type checker: queues are not asked for
    line = Text(f"{event.at:%H:%M:%S}.{event.at.microsecond // 1_000:03d}  ")
    line.append(safe(f"{event.queue}/{event.id}  {event.type}  {event.verb}"))
    if event.after != event.before:
        line.append("  ").append_text(state_text(event.after or "forgotten"))
    for fact in (event.reason, event.consumer and f"by {event.consumer}"):
        if fact:
            line.append(safe(f"  {fact}"))
    return line
