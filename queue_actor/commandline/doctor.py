"""`doctor`: what is wrong between here and the server, and what to do about it."""

import json
import ssl
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

import click
import httpx

from queue_actor.client import (
    AccessRefused,
    Busy,
    ClientError,
    Queue,
    Refused,
    Statistics,
    StoreStatistics,
    Unreachable,
)
from queue_actor.commandline.queues import condition
from queue_actor.commandline.session import JSON_OPTION, TIMEOUT_SECONDS, Session, examples, with_session
from queue_actor.commandline.terminal import count, span
from queue_actor.settings import PREFIX, SettingError, read_settings

CONTRACT = "1"
"""The version of the contract that this program speaks."""
CLOCK_SECONDS = 2.0
"""By how much clocks may differ before it is said."""
ROOM_BYTES = 1024 * 1024 * 1024
"""Less room than this is worth a word."""
LOG_BYTES = 1024 * 1024 * 1024
COMMIT_SECONDS = 0.1
"""Commits that take longer are worth a word."""
TOLD_QUEUES = 10
OTHERS_MAY_READ = 0o077

Verdict = Literal["good", "note", "bad"]
STYLES = {"good": "green", "note": "yellow", "bad": "red"}


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do about it."""

    verdict: Verdict
    what: str
    advice: str = ""


@click.command(epilog=examples("queue-actor doctor", "queue-actor doctor --url https://queue.example.org --json"))
@JSON_OPTION
@with_session
def doctor(session: Session) -> int:
    """Look for what is wrong: settings, server, token, clock, store, queues. The exit code is 1 if anything is."""
    findings = []
    for finding in examine(session):
        findings.append(finding)
        if not session.printer.as_json:
            session.printer.say(f"{finding.verdict:4}  {finding.what}", STYLES[finding.verdict])
            if finding.advice:
                session.printer.say(f"      {finding.advice}")
    if session.printer.as_json:
        session.printer.document([finding._asdict() for finding in findings])
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def examine(session: Session) -> Iterator[Finding]:
    """One finding after the other; what makes no sense after a bad one is left out."""
    yield from _settings(session)
    reached = True
    for finding in _server(session):
        yield finding
        reached = reached and finding.verdict != "bad"
    if not reached:
        return
    yield from _clock(session)
    try:
        statistics = session.client.statistics()
    except AccessRefused as error:
        yield _access(error)
        if error.code != "forbidden":
            return
    else:
        yield Finding(
            "good", "the token is valid and may read all queues" if session.target.token else "no token is asked for"
        )
        yield from _store(statistics)
    yield from _queues(session)


def _settings(session: Session) -> Iterator[Finding]:
    target = session.target
    if target.file is None:
        yield Finding("good", "there is no file of configuration")
    elif target.token is not None and target.file.stat().st_mode & OTHERS_MAY_READ:
        yield Finding("note", f"others may read {target.file}", f"if the token is in it: chmod 600 {target.file}")
    else:
        yield Finding("good", f"the file of configuration is {target.file}")
    own = {name: value for name, value in session.caller.environment.items() if name.startswith(PREFIX)}
    try:
        read_settings(own, ())
    except SettingError as error:
        yield Finding(
            "bad", f"a server started here would refuse its settings: {error}", "correct or unset the variable"
        )
    else:
        yield Finding("good", "a server started here would take its settings from the environment")


def _server(session: Session) -> Iterator[Finding]:
    url = session.target.url
    try:
        session.client.get("/healthz")
        contract = json.loads(session.client.get("/openapi.json"))["info"]["version"]
    except Unreachable as error:
        yield Finding(
            "bad",
            f"nobody answers at {url}: {error}",
            "is the server running (queue-actor serve), and is this its address? See --url and QUEUE_ACTOR_URL",
        )
        return
    except AccessRefused as error:
        yield Finding("bad", f"{url} refuses: {error.detail}", ACCESS.get(error.code, ""))
        return
    except (ClientError, ValueError, LookupError) as error:
        yield Finding("bad", f"what answers at {url} is no queue-actor: {error}", "is something else listening there?")
        return
    yield Finding("good", f"{url} answers")
    if contract != CONTRACT:
        yield Finding(
            "bad",
            f"it speaks version {contract} of the contract, and this program version {CONTRACT}",
            "upgrade the older",
        )
    else:
        yield Finding("good", f"both speak version {CONTRACT} of the contract")
    try:
        session.client.get("/readyz")
    except Busy as error:
        yield Finding("bad", f"it is not ready: {error.detail}", "wait; /readyz is 200 when it is")
    else:
        yield Finding("good", "it is ready")


ACCESS = {
    "unauthorized": "give a valid token: QUEUE_ACTOR_TOKEN, --token or the file; see queue-actor token --help",
    "foreign_host": "a server without tokens answers to loopback names only: use 127.0.0.1, or give it tokens",
    "forbidden": "what needs the scope read on all queues is not looked at",
}


def _access(error: AccessRefused) -> Finding:
    verdict: Verdict = "note" if error.code == "forbidden" else "bad"
    return Finding(verdict, f"the token does not do: {error.detail}", ACCESS.get(error.code, ""))


def _clock(session: Session) -> Iterator[Finding]:
    difference = clock_difference(session)
    if difference is None:
        yield Finding("note", "the server's clock could not be read")
    elif abs(difference) > CLOCK_SECONDS:
        ahead = "ahead of" if difference > 0 else "behind"
        yield Finding(
            "note",
            f"the server's clock is {span(abs(difference))} {ahead} this one",
            "leases do not mind; times such as --at do. Set the clocks by NTP",
        )
    else:
        yield Finding("good", "the clocks agree")


def clock_difference(session: Session) -> float | None:
    """How many seconds the server's clock is ahead, at least; None if it does not say."""
    now = session.caller.now
    target = session.target
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
        before = now()
        answer = httpx.get(
            f"{target.url}/healthz", timeout=target.timeout_seconds or TIMEOUT_SECONDS, verify=context, trust_env=False
        )
        after = now()
        told = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError):
        return None
    # It was told without fractions, at some moment between the two.
    least, most = told - after, told + 1 - before
    return least if least > 0 else min(most, 0.0)


def _store(statistics: Statistics) -> Iterator[Finding]:
    store = statistics.store
    if store is None:
        yield Finding(
            "note", "jobs are in memory: they are lost when the server ends", "keep them with --data DIRECTORY"
        )
        return
    yield Finding("good", f"jobs are on disk, {statistics.durability}: {count(store.file_bytes)} bytes")
    yield from _room(store)


def _room(store: StoreStatistics) -> Iterator[Finding]:
    if store.room_bytes <= 0:
        yield Finding("bad", "the disk is full: no more jobs are taken", "make room, or conclude what is there")
    elif store.room_bytes < ROOM_BYTES:
        yield Finding("note", f"there is room for {count(store.room_bytes)} bytes", "make room before it is full")
    else:
        yield Finding("good", f"there is room for {count(store.room_bytes)} bytes")
    if store.wal_bytes > LOG_BYTES:
        yield Finding(
            "note",
            f"the log beside the file has {count(store.wal_bytes)} bytes",
            "does somebody read the file and not end?",
        )
    slow = store.commit_seconds_p99
    if slow > COMMIT_SECONDS:
        yield Finding(
            "note",
            f"one commit of a hundred takes {slow:.3f} s or more",
            "is the disk slow, or busy with something else?",
        )


def _queues(session: Session) -> Iterator[Finding]:
    try:
        queues = list(session.client.queues())
    except Refused as error:
        yield Finding("note", f"the queues could not be looked at: {error.detail}")
        return
    yield Finding("good", f"queues: {count(len(queues))}")
    for what, advice, chosen in (
        ("paused queues", "queue-actor resume QUEUE", [queue for queue in queues if queue.paused]),
        (
            "queues with jobs that nobody asks for",
            "start a worker: queue-actor work MODULE:APP",
            [queue for queue in queues if condition(queue).plain == "nobody asks"],
        ),
        (
            "queues with dead jobs",
            "queue-actor jobs -q QUEUE --state dead, then redrive or purge",
            [queue for queue in queues if queue.counts["dead"]],
        ),
    ):
        if chosen:
            yield Finding("note", f"{what}: {_named(chosen)}", advice)


def _named(queues: Sequence[Queue]) -> str:
    names = ", ".join(queue.name for queue in queues[:TOLD_QUEUES])
    more = len(queues) - TOLD_QUEUES
    return f"{names} and {count(more)} more" if more > 0 else names
