"""Jobs as lines of a file: `export` writes them, `import` enqueues them, here or elsewhere."""

import os
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import msgspec

from queue_actor.client import Client, Job, NewJob
from queue_actor.client_bodies import Search
from queue_actor.commandline.jobs import filter_options
from queue_actor.commandline.lines import JobLine, Prepare, UnlikeError, decoded, write_progress
from queue_actor.commandline.loading import Loading, load_lines, load_options
from queue_actor.commandline.operate import filter_of
from queue_actor.commandline.session import JSON_OPTION, QUEUE_OPTION, Session, examples, with_session
from queue_actor.commandline.terminal import count, shown_json
from queue_actor.jobs import JobState

PAGE_JOBS = 100
"""With their payloads, which may be large."""
UNFINISHED = (JobState.SCHEDULED, JobState.QUEUED, JobState.IN_PROGRESS)
STATES = [str(state) for state in JobState]


class Exported(msgspec.Struct):
    """How far an export is, as it is kept beside its file."""

    call: dict[str, str]
    done: str = ""
    """The last queue that is complete; they are written by name."""
    cursor: str | None = None
    """Where the next page of the queue behind it begins."""
    bytes: int = 0
    """Of the file, up to the end of the last page."""
    jobs: int = 0


@click.command(
    epilog=examples(
        "queue-actor export images -o images.ndjson",
        "queue-actor export --all --state queued --state scheduled -o waiting.ndjson",
        "queue-actor export images --state dead | jq .payload",
    )
)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All queues.")
@click.option("-o", "--output", metavar="FILE", help="Where to; else standard output.")
@click.option("--state", multiple=True, type=click.Choice(STATES), help="May be repeated; else all.")
@filter_options
@click.option("--restart", is_flag=True, help="Write the file anew, whatever FILE.progress says.")
@with_session
def export(
    session: Session,
    *,
    names: tuple[str, ...],
    all_: bool,
    output: str | None,
    state: tuple[str, ...],
    restart: bool,
    **where: Any,
) -> None:
    """Write jobs as lines of JSON, each whole, but without its history.

    What happens meanwhile may be in it or not: pause the queue, or stop the workers, for an export of one moment. With
    --output a call that was broken off is called again and goes on.
    """
    if all_ and names:
        raise click.UsageError("name queues, or give --all")
    query = Search(content=True, limit=PAGE_JOBS)
    query.update(filter_of(where))  # type: ignore[typeddict-item] # a search has all that a filter has
    if state:
        query["state"] = state
    client = session.client
    queues = sorted(queue.name for queue in client.queues()) if all_ else sorted({*names} or {session.queue})
    if output is None:
        for one in (job for queue in queues for job in client.jobs(queue, **query)):
            session.printer.raw(shown_json(msgspec.json.encode(one)))
        return
    call = {
        "server": session.target.url,
        "queues": "all" if all_ else " ".join(queues),
        "conditions": repr(sorted({**where, "state": state}.items())),
    }
    path = Path(output)
    kept = path.with_name(f"{path.name}.progress")
    begun = None if restart else _begun(kept, call)
    exported = begun or Exported(call)
    with path.open("r+b" if begun else "wb") as file:
        file.truncate(exported.bytes)
        file.seek(exported.bytes)
        _write(client, queues, query, exported, Output(file, kept))
    kept.unlink(missing_ok=True)
    session.printer.note(f"{count(exported.jobs)} jobs in {output}")


class Output(NamedTuple):
    """A file that is written, and where its progress is kept."""

    file: IO[bytes]
    kept: Path


def _begun(kept: Path, call: dict[str, str]) -> Exported | None:
    """The progress of an export that was broken off; None if there is none.

    Raises:
        UnlikeError: It is of another call.
    """
    try:
        exported = msgspec.json.decode(kept.read_bytes(), type=Exported)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UnlikeError(f"{kept} is no file of progress: {error}") from error
    if exported.call != call:
        raise UnlikeError(f"{kept} is of another call, {exported.call}: repeat that, or say --restart")
    return exported


def _write(client: Client, queues: list[str], query: Search, exported: Exported, output: Output) -> None:
    """Write what is left, a page at a time; what is noted of a page is true once it is on the disk."""
    for queue in queues:
        if queue <= exported.done:
            continue
        while True:
            page = client.search(queue, **(query | {"cursor": exported.cursor}))
            for job in page.items:
                output.file.write(msgspec.json.format(msgspec.json.encode(job), indent=-1) + b"\n")
            output.file.flush()
            os.fsync(output.file.fileno())
            exported.bytes, exported.cursor = output.file.tell(), page.next_cursor
            exported.jobs += len(page.items)
            if page.next_cursor is None:
                exported.done = queue
            write_progress(output.kept, exported)
            if page.next_cursor is None:
                break


@click.command(
    name="import",
    epilog=examples(
        "queue-actor import images.ndjson",
        "queue-actor import images.ndjson -q images-again --state dead",
        "queue-actor export images | queue-actor import - --url http://127.0.0.1:8081",
    ),
)
@click.argument("source", metavar="FILE")
@QUEUE_OPTION
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Of jobs in these; else of unfinished ones.")
@load_options
@JSON_OPTION
@with_session
def import_(session: Session, *, source: str, state: tuple[str, ...], load: Loading) -> int:
    """Enqueue the jobs of an export, each in its queue, or all in --queue; - reads standard input.

    They are new jobs: with ids of their own, all attempts before them, and what an export has of them (type, payload,
    priority, unique key, time, ttl, attempts at most, meta, trace). Those that had ended are passed over, unless their
    state is named. A call that was broken off is called again and goes on.
    """
    call = {"queue": session.target.queue or "", "states": " ".join(sorted(state))}
    wanted = frozenset(state or UNFINISHED)

    def prepare_at(begun: float) -> Prepare:
        return partial(_anew, queue=session.target.queue, states=wanted, begun=begun)

    return load_lines(session, source, call, prepare_at, load)


_JOB = msgspec.json.Decoder(Job)


def _anew(line: bytes, *, queue: str | None, states: frozenset[str], begun: float) -> JobLine | None:
    """A job like that of the line. What is left of its ttl is counted from when the import began.

    Raises:
        BadLineError: The line is no job.
    """
    job = decoded(_JOB, line)
    if job.state not in states:
        return None
    left = None if job.expires_at is None else job.expires_at.timestamp() - begun
    if left is not None and left <= 0:
        return None
    anew = NewJob(
        job.type,
        job.payload_raw,
        priority=job.priority,
        not_before=job.not_before if job.state == JobState.SCHEDULED else None,
        ttl_seconds=left,
        max_attempts=job.max_attempts,
        unique_key=job.unique_key,
        meta=job.meta or None,
        traceparent=job.traceparent,
    )
    return JobLine(queue or job.queue, msgspec.json.encode(anew))
