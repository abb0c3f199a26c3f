"""Enqueue jobs: one by arguments, or a file of any length, a job or a payload a line."""

import sys
from typing import Any

import click
import msgspec
from msgspec import Raw

from queue_actor.client import NewJob
from queue_actor.commandline.jobs import MOMENT
from queue_actor.commandline.lines import JobLine, Prepare, decoded, in_utf8
from queue_actor.commandline.loading import Loading, load_lines, load_options
from queue_actor.commandline.session import JSON_OPTION, QUEUE_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import shown_json

NULL = Raw(b"null")
RAW = msgspec.json.Decoder(Raw)


@click.command(
    epilog=examples(
        "queue-actor enqueue resize -p '{\"width\": 320}' -q images",
        "queue-actor enqueue report --delay 3600 --unique-key report/today",
        "queue-actor enqueue -f jobs.ndjson -q images",
        "find . -name '*.png' | queue-actor enqueue resize -f - --text -q images",
    )
)
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option("-p", "--payload", metavar="JSON", help="What the worker needs to know; - reads it from standard input.")
@click.option("-f", "--file", "source", metavar="FILE", help="A job a line, or, with TYPE, a payload a line; - too.")
@click.option("--text", is_flag=True, help="The lines of the file, or the payload, are plain text and not JSON.")
@QUEUE_OPTION
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher goes first; 0 is normal.")
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="How long it is to wait before it is ready.")
@click.option("--at", type=MOMENT, metavar="TIME", help="When it is to be ready.")
@click.option("--ttl", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="How long it may wait.")
@click.option("--max-attempts", type=click.IntRange(1), help="After so many it is dead.")
@click.option("--unique-key", metavar="KEY", help="There is one job with it at a time.")
@click.option("--idempotency-key", metavar="KEY", help="A repeat of this call under it makes no second job.")
@click.option("--meta", multiple=True, metavar="NAME=VALUE", help="For people and tools; may be repeated.")
@load_options
@JSON_OPTION
@with_session
def enqueue(
    session: Session,
    *,
    type_: str | None,
    payload: str | None,
    source: str | None,
    text: bool,
    idempotency_key: str | None,
    load: Loading,
    **fields: Any,
) -> int:
    """Enqueue a job, or all jobs of a file.

    A file is sent a thousand lines at a time, and what is sent is noted beside it, in FILE.progress: a call that was
    broken off, however it was, is called again and goes on, and no line becomes two jobs.
    """
    facts = _facts(fields)
    if source is not None:
        if payload is not None or idempotency_key is not None:
            raise click.UsageError("--payload and --idempotency-key are for one job, and --file is for many")
        if type_ is None and (facts or text):
            raise click.UsageError("without a TYPE each line says everything about its job")
        prepare = _payloads(session.queue, type_, facts, text=text) if type_ else _jobs(session.queue)
        call = {"queue": session.queue, "type": type_ or "", "options": repr(sorted(facts.items())), "text": str(text)}
        return load_lines(session, source, call, lambda _begun: prepare, load)
    if type_ is None:
        raise click.UsageError("name a TYPE, or a --file")
    content = sys.stdin.read() if payload == "-" else payload
    raw = NULL if content is None else _payload(content.encode(errors="surrogateescape"), text=text)
    done = session.client.enqueue(session.queue, type_, raw, idempotency_key=idempotency_key, **facts)
    if session.printer.as_json:
        session.printer.raw(shown_json(msgspec.json.encode({"queue": session.queue, **msgspec.to_builtins(done)})))
    else:
        there = ", which was there already" if done.existing else ""
        session.printer.say(f"{session.queue}/{done.id} is {done.state}{there}")
    return 0


def _facts(fields: dict[str, Any]) -> dict[str, Any]:
    """What was said of the job, by the names of the client."""
    meta = {}
    for pair in fields.pop("meta"):
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--meta is written NAME=VALUE, and not {pair!r}")
        meta[name] = value
    facts = {
        "priority": fields["priority"],
        "delay_seconds": fields["delay"],
        "not_before": fields["at"],
        "ttl_seconds": fields["ttl"],
        "max_attempts": fields["max_attempts"],
        "unique_key": fields["unique_key"],
        "meta": meta or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _payload(content: bytes, *, text: bool) -> Raw:
    """The JSON of a payload.

    Raises:
        BadLineError: It is none.
    """
    if text:
        content = msgspec.json.encode(in_utf8(content))
    return decoded(RAW, content)


def _payloads(queue: str, type_: str, facts: dict[str, Any], *, text: bool) -> Prepare:
    """Of each line a job that has it as its payload."""

    def prepare(line: bytes) -> JobLine:
        return JobLine(queue, msgspec.json.encode(NewJob(type_, _payload(line, text=text), **facts)))

    return prepare


def _jobs(queue: str) -> Prepare:
    """Each line is a job, and goes as it is: what it may say, the server knows best."""
    decoder = msgspec.json.Decoder(dict[str, Raw])

    def prepare(line: bytes) -> JobLine:
        decoded(decoder, line)
        return JobLine(queue, line)

    return prepare
