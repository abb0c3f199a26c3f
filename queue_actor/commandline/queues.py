"""Queues: `queues` shows them in figures, `pause` and `resume` stop and start the handing out of their jobs."""

import click
import msgspec
from rich.text import Text

from queue_actor.client import Queue
from queue_actor.commandline.session import JSON_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import count, shown_json, span

STATES = ("scheduled", "queued", "in_progress", "concluded", "dead", "cancelled")
VERBS = ("enqueue", "dequeue", "conclude", "fail", "stale")


@click.command(
    epilog=examples(
        "queue-actor queues", "queue-actor queues --prefix tenant:", "queue-actor queues images --json | jq .counts"
    )
)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option("--prefix", metavar="TEXT", help="Those whose names begin so.")
@JSON_OPTION
@with_session
def queues(session: Session, *, names: tuple[str, ...], prefix: str | None) -> None:
    """Show queues in figures: all, or those named, with their policies. With --json each is one line."""
    found = [session.client.read_queue(name) for name in names] or list(session.client.queues(prefix=prefix))
    if session.printer.as_json:
        for queue in found:
            session.printer.raw(shown_json(msgspec.json.encode(queue)))
        return
    columns = ["queue", *(f"#{state}" for state in STATES), "#oldest", "#waiting", "consumers", ""]
    session.printer.table(columns, [_row(queue) for queue in found])
    for queue in found if names else ():
        session.printer.say("")
        _tell(session, queue)


def _row(queue: Queue) -> list[str | Text]:
    return [
        queue.name,
        *(count(queue.counts.get(state, 0)) for state in STATES),
        span(queue.oldest_age_seconds),
        str(queue.waiters),
        str(len(queue.consumers)),
        condition(queue),
    ]


def condition(queue: Queue) -> Text:
    """What is out of the ordinary about a queue, in a word."""
    if not queue.exists:
        return Text("does not exist", "dim")
    if queue.paused:
        return Text("paused", "yellow")
    if queue.counts.get("queued") and not queue.consumers and not queue.waiters:
        return Text("nobody asks", "red")
    return Text("")


def _tell(session: Session, queue: Queue) -> None:
    say = session.printer.say
    say(queue.name, "bold")
    say("  per minute: " + ", ".join(f"{verb} {count(queue.per_minute.get(verb, 0))}" for verb in VERBS))
    for consumer in queue.consumers:
        say(f"  consumer {consumer.name}: asked {span(consumer.seen_seconds)} ago")
    policy = msgspec.to_builtins(queue.policy)
    retry = policy.pop("retry")
    say("  retry: " + ", ".join(f"{name} {value}" for name, value in retry.items()))
    say("  policy: " + ", ".join(f"{name} {'-' if value is None else value}" for name, value in policy.items()))


def _paused(session: Session, names: tuple[str, ...], *, paused: bool) -> None:
    for name in names:
        queue = session.client.pause(name) if paused else session.client.resume(name)
        if session.printer.as_json:
            session.printer.raw(shown_json(msgspec.json.encode(queue)))
        else:
            waiting = f"{count(queue.counts['queued'])} queued, {count(queue.counts['in_progress'])} in progress"
            session.printer.say(f"{queue.name} is {'paused' if queue.paused else 'not paused'}: {waiting}")


@click.command(epilog=examples("queue-actor pause images", "queue-actor pause images mail"))
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@JSON_OPTION
@with_session
def pause(session: Session, *, names: tuple[str, ...]) -> None:
    """Stop handing out the jobs of queues. Enqueues go on, and so do those who hold jobs."""
    _paused(session, names, paused=True)


@click.command(epilog=examples("queue-actor resume images", "queue-actor resume images mail"))
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@JSON_OPTION
@with_session
def resume(session: Session, *, names: tuple[str, ...]) -> None:
    """Hand out the jobs of queues again."""
    _paused(session, names, paused=False)
