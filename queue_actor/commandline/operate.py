"""What operators do to jobs: cancel and redrive some, or redrive and purge all that match."""

import sys
from typing import Any

import click
import msgspec

from queue_actor.client import Matched, Refused, Settled
from queue_actor.client_bodies import Filter
from queue_actor.commandline.jobs import REFERENCE, filter_options
from queue_actor.commandline.session import JSON_OPTION, QUEUE_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import count, shown_json

BULK_SECONDS = 600.0
"""How long a verb for all that match may take: a million jobs are not moved in a moment."""

References = tuple[tuple[str | None, int], ...]

DRY_RUN = click.option("--dry-run", is_flag=True, help="Only count them.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")


def _each(session: Session, references: References, verb: str) -> int:
    """Do a verb to jobs, one after the other; the exit code is 1 if one of them was refused."""
    code = 0
    for named, id_ in references:
        queue = named or session.queue
        try:
            done: Settled = getattr(session.client, verb)(queue, id_)
        except Refused as error:
            if error.retryable == "later" or len(references) == 1:
                raise
            session.printer.note(f"{queue}/{id_}: {error.code}: {error.detail}", "red")
            code = 1
            continue
        if session.printer.as_json:
            facts = {"queue": done.queue, "id": done.id, "state": done.state}
            session.printer.raw(shown_json(msgspec.json.encode(facts)))
        else:
            wish = ", to be cancelled" if (verb, done.state) == ("cancel", "in_progress") else ""
            session.printer.say(f"{done.queue}/{done.id} is {done.state}{wish}")
    return code


@click.command(epilog=examples("queue-actor cancel images/17", "queue-actor cancel 17 18 19 -q images"))
@click.argument("references", metavar="[QUEUE/]ID...", nargs=-1, required=True, type=REFERENCE)
@QUEUE_OPTION
@JSON_OPTION
@with_session
def cancel(session: Session, *, references: References) -> int:
    """Call jobs off. One in progress goes on until its worker is told, and may still be concluded."""
    return _each(session, references, "cancel")


@click.command(
    epilog=examples(
        "queue-actor redrive images/17",
        "queue-actor redrive --all -q images --state dead --error Timeout --dry-run",
        "queue-actor redrive --all -q images --state dead --error Timeout --per-second 10 --yes",
    )
)
@click.argument("references", metavar="[[QUEUE/]ID]...", nargs=-1, type=REFERENCE)
@QUEUE_OPTION
@click.option("--all", "all_", is_flag=True, help="All that match, instead of those named.")
@click.option("--state", multiple=True, type=click.Choice(["dead", "cancelled"]), help="May be repeated; else both.")
@filter_options
@click.option("--per-second", type=click.FloatRange(0.001, 1_000_000), help="Spread them out, so many each second.")
@DRY_RUN
@YES
@JSON_OPTION
@with_session
def redrive(
    session: Session,
    *,
    references: References,
    all_: bool,
    state: tuple[str, ...],
    per_second: float | None,
    dry_run: bool,
    yes: bool,
    **where: Any,
) -> int:
    """Queue dead and cancelled jobs again: those named, or with --all those of the queue that match."""
    if all_ == bool(references):
        raise click.UsageError("name jobs, or give --all with what they have in common")
    if references:
        if state or per_second or dry_run or any(where.values()):
            raise click.UsageError("conditions, --per-second and --dry-run go with --all")
        return _each(session, references, "redrive")
    facts = {"state": list(state) or None, "per_second": per_second}
    return _matching(session, "redrive", filter_of(where), facts, dry_run=dry_run, yes=yes)


@click.command(
    epilog=examples(
        "queue-actor purge -q images --state dead --dry-run",
        "queue-actor purge -q images --state queued --type resize --yes",
    )
)
@QUEUE_OPTION
@click.option(
    "--state",
    multiple=True,
    required=True,
    type=click.Choice(["queued", "scheduled", "concluded", "dead", "cancelled"]),
    help="May be repeated. Jobs in progress are never purged.",
)
@filter_options
@DRY_RUN
@YES
@JSON_OPTION
@with_session
def purge(session: Session, *, state: tuple[str, ...], dry_run: bool, yes: bool, **where: Any) -> int:
    """Forget all jobs of a queue that match. What is purged is gone."""
    return _matching(session, "purge", filter_of(where), {"state": list(state)}, dry_run=dry_run, yes=yes)


def filter_of(where: dict[str, Any]) -> Filter:
    """The conditions that were given."""
    return Filter(type=where["type_"], consumer=where["consumer"], error=where["error"], since=where["since"])


def _matching(session: Session, verb: str, where: Filter, facts: dict[str, Any], *, dry_run: bool, yes: bool) -> int:
    queue = session.queue
    session.allow(BULK_SECONDS)

    def carry_out(*, dry: bool) -> Matched:
        done: Matched = getattr(session.client, VERBS[verb])(queue, dry_run=dry, **where, **facts)
        return done

    if not dry_run and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"nobody can be asked whether to {verb} them: say --yes, or look with --dry-run")
        matching = carry_out(dry=True).count
        click.confirm(f"{verb} {count(matching)} jobs of {queue}?", abort=True, err=True)
    done = carry_out(dry=dry_run)
    if session.printer.as_json:
        session.printer.document(done)
    else:
        would = "would be " if done.dry_run else ""
        refused = f", {count(done.refused)} could not be" if done.refused else ""
        session.printer.say(f"{queue}: {count(done.count)} {would}{PAST[verb]}{refused}")
    return 0


PAST = {"purge": "purged", "redrive": "redriven"}
VERBS = {"purge": "purge", "redrive": "redrive_matching"}
