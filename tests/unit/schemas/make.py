"""Makes the file of the schema that the code has now: `PYTHONPATH=. .venv/bin/python tests/unit/schemas/make.py`.

To be run when a schema is released, and never again for that one: its file is what servers out there have.
"""

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from queue_actor.commands import (
    Cancel,
    Claim,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Dequeue,
    Enqueue,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    NewJob,
    SetPolicy,
)
from queue_actor.directory import FILE, open_directory
from queue_actor.engine import Engine
from queue_actor.jobs import JobError, JobOptions, Now, QueuePolicy
from queue_actor.schema import SCHEMA_VERSION
from queue_actor.service import open_engine
from queue_actor.settings import Settings

HERE = Path(__file__).parent
WALL_SECONDS = 1_800_000_000.0  # the 15th of January 2027, 8 o'clock

JOBS = [
    NewJob("concluded", payload=b'{"n": 1, "s": "\xc3\xa9"}'),
    NewJob("dead"),
    NewJob("leased", payload=b"[3]", options=JobOptions(max_attempts=7, meta={"tenant": "a"})),
    NewJob("queued", payload=b'"four"'),
    NewJob("first", priority=9, options=JobOptions(unique_key="k")),
    NewJob("scheduled", delay_seconds=3_600.0, ttl_seconds=7_200.0),
    NewJob("cancelled"),
    NewJob("large", payload=b'"' + b"x" * 2_000 + b'"'),
]
POLICY = QueuePolicy(max_stale=2, run_seconds_max=900.0, dead_retention_seconds=5_000.0)
ENQUEUE = Enqueue("q", JOBS, IdempotencyKey("here", "all", b"fingerprint"))
DEQUEUE = Dequeue("q", 1, consumer="w", lease_seconds=300.0, key=IdempotencyKey("here", "one", b"fingerprint"))


def clock() -> Now:
    """A moment that is the same whenever this runs."""
    return Now(trio.current_time(), WALL_SECONDS)


async def fill(engine: Engine) -> None:
    """One of everything that there is to keep."""
    await engine.ready.wait()
    await engine.execute(SetPolicy("q", POLICY))
    await engine.execute(ENQUEUE)
    await engine.execute(Cancel("q", [7]))
    (first,) = (await engine.execute(Dequeue("q"))).leases  # the highest priority
    (done,) = (await engine.execute(Dequeue("q", consumer="w"))).leases
    await engine.execute(Conclude([ConcludeClaim("q", done.job.id, done.token, result=b'{"r": 1.50}')]))
    (dead,) = (await engine.execute(Dequeue("q", consumer="w"))).leases
    error = JobError("Timeout", "no disk")
    await engine.execute(Fail([FailClaim("q", dead.job.id, dead.token, error=error, retry=False)]))
    await engine.execute(Fail([FailClaim("q", first.job.id, first.token, error=error, retry_after_seconds=0.0)]))
    await engine.execute(Dequeue("q"))  # that one again: it stays with nobody
    await engine.execute(DEQUEUE)
    await engine.execute(SetPolicy("paused", QueuePolicy(), paused=True))
    await engine.execute(Enqueue("gone", [NewJob("a")]))
    (lease,) = (await engine.execute(Dequeue("gone"))).leases
    await engine.execute(Conclude([Claim("gone", 1, lease.token)]))
    await engine.execute(Forget("gone", [1]))
    await engine.execute(DeleteQueue("gone"))


async def make(settings: Settings) -> None:
    """The directory of a server that has done all that, and ended."""
    with open_directory(settings) as data:
        async with open_engine(settings, clock=clock, data=data) as engine:
            await fill(engine)


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        trio.run(make, Settings(data=f"{directory}/data"))
        path = Path(directory) / "data" / FILE
        compact = HERE / f"{SCHEMA_VERSION}.sqlite"
        compact.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.execute("VACUUM INTO ?", (str(compact),))
        connection.close()
    print(compact)
