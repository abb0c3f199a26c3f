"""What a job costs at the least in Python, in batches of 1,000, beside what it costs here: where a request's time goes.

At the least is what no server in Python can do without if it is to do the same work: a decoder and an encoder with
nothing around them, a hash, objects made and put into a dictionary. CPU of one process without HTTP, for a job's whole
life.
"""

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b

import msgspec
from msgspec.structs import replace

from queue_actor.commands import Claim, Conclude, Dequeue, Enqueue, Enqueued, Lease, NewJob, Sweep
from queue_actor.commands import Results as Replies
from queue_actor.jobs import Job, JobState, Now
from queue_actor.settings import Settings
from queue_actor.tokens import HASH_BYTES, SECRET_BYTES
from tests.benchmarks.load import rotated
from tests.benchmarks.peer_clients import PAYLOAD
from tests.benchmarks.results import Results, parser, spread
from tests.benchmarks.scale import START, cpu_us, machine_of
from web import batches

QUEUED, IN_PROGRESS, CONCLUDED = JobState.QUEUED, JobState.IN_PROGRESS, JobState.CONCLUDED

SIZE = 1_000
QUEUE = "images"
SETTINGS = Settings(slow_batch_seconds=3_600, retention_jobs=SIZE)
"""What is concluded is forgotten as the next is, so that this is in the figures."""

KEYED = blake2b(key=bytes(SECRET_BYTES), digest_size=HASH_BYTES)


class Shown(msgspec.Struct, gc=False):
    """What a worker has to see of a job."""

    id: int
    token: str
    payload: msgspec.Raw


class Batch:
    """A queue, and a batch of jobs as it is at each step of its life."""

    def __init__(self) -> None:
        self.machine = machine_of(SETTINGS)
        self.second = 0
        jobs = ",".join([f'{{"type":"resize","payload":{PAYLOAD.decode()}}}'] * SIZE)
        self.enqueue_body = f'{{"jobs":[{jobs}]}}'.encode()
        self.new = [NewJob("resize", PAYLOAD)] * SIZE
        self.enqueued, self.leases, self.concluded = self.live()
        claims = [{"id": lease.job.id, "token": lease.token} for lease in self.leases]
        self.conclude_body = msgspec.json.encode({"jobs": claims})
        self.shown = [Shown(lease.job.id, lease.token, msgspec.Raw(PAYLOAD)) for lease in self.leases]
        self.claims = [Claim(QUEUE, lease.job.id, lease.token) for lease in self.leases]

    def live(self) -> tuple[Enqueued, Sequence[Lease], Replies]:
        """What the state machine does in a batch's life, and answers."""
        self.second += 1
        now = Now(START.monotonic + self.second, START.wall + self.second)
        apply, take = self.machine.apply, self.machine.take_changes
        enqueued = apply(Enqueue(QUEUE, self.new), now)
        take()
        leases = apply(Dequeue(QUEUE, count=SIZE), now).leases
        take()
        concluded = apply(Conclude([Claim(QUEUE, lease.job.id, lease.token) for lease in leases]), now)
        take()
        while apply(Sweep(), now).more:  # what was concluded a batch ago is forgotten
            take()
        take()
        self.machine.take_readied()
        return enqueued, leases, concluded


# --- here


def decode(batch: Batch) -> None:
    """Both bodies, on their way into the core."""
    assert batches.plain_jobs(batch.enqueue_body, SETTINGS) is not None
    assert batches.plain_claims(batch.conclude_body, QUEUE, SETTINGS) is not None


def encode(batch: Batch) -> None:
    """All three answers."""
    batches.enqueued(batch.enqueued.jobs)
    batches.leases(batch.leases)
    batches.results(batch.claims, batch.concluded.jobs, extended=False, dequeued=None)


def live(batch: Batch) -> None:
    """The state machine: enqueue, dequeue, conclude, forget, with tokens and all."""
    batch.live()


# --- at the least


def decode_least(batch: Batch) -> None:
    """The decoder alone."""
    batches._PLAIN_JOBS.decode(batch.enqueue_body)
    batches._PLAIN_CLAIMS.decode(batch.conclude_body)


def encode_least(batch: Batch) -> None:
    """The encoder alone, on structs that are there already, of nothing but what no two jobs share."""
    for shown in (batch.enqueued.jobs, batch.enqueued.jobs, batch.shown):
        msgspec.json.encode(shown)


def tokens_least(batch: Batch) -> None:
    """One keyed hash when a token is issued, and one when it is shown."""
    for _ in range(2):
        for lease in batch.leases:
            keyed = KEYED.copy()
            keyed.update(b"%d" % lease.job.id)
            keyed.hexdigest()


def versions_least(_batch: Batch) -> None:
    """A job's three versions: made, leased, concluded."""
    jobs = [
        Job(queue=QUEUE, id=number, type="resize", payload=PAYLOAD, state=QUEUED, created_at=1.0, revision=number)
        for number in range(SIZE)
    ]
    jobs = [replace(job, state=IN_PROGRESS, attempts=1, fence=1, lease_expires_at=1.0, revision=2) for job in jobs]
    jobs = [replace(job, state=CONCLUDED, lease_expires_at=None, finished_at=1.0, revision=3) for job in jobs]


def dictionary_least(batch: Batch) -> None:
    """A job's place by its id: put there, found and replaced twice, taken away; many at a time where there is a way."""
    ids = range(SIZE)
    jobs: dict[int, object] = dict(zip(ids, batch.leases, strict=True))
    for _ in range(2):
        jobs.update(zip(ids, [jobs[number] for number in ids], strict=True))
    for number in ids:
        del jobs[number]


Work = Callable[[Batch], None]

PIECES: dict[str, tuple[Work | None, Work | None]] = {
    "decode two bodies": (decode_least, decode),
    "encode three answers": (encode_least, encode),
    "the state machine": (None, live),
    "of it two hashes": (tokens_least, None),
    "three versions of a job": (versions_least, None),
    "its place in a dictionary": (dictionary_least, None),
}
"""What is done at the least for a piece of the work, and what is done here."""


def main(words: Sequence[str] | None = None) -> None:
    """Measures by turns, and tells microseconds a job."""
    arguments = parser(__doc__).parse_args(words)
    rounds, lives = (1, 1) if arguments.smoke else (3, 30) if arguments.quick else (7, 100)
    results = Results("floors", arguments)
    batch = Batch()
    seen: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in PIECES}
    for number in range(rounds):
        for name in rotated(tuple(PIECES), number):
            for work, column in zip(PIECES[name], seen[name], strict=True):
                if work is not None:
                    column.append(cpu_us(partial(work, batch), lives) / SIZE)
    rows = [[name, *(spread(column) if column else "" for column in columns)] for name, columns in seen.items()]
    sums = [sum(spread(column).median for column in side if column) for side in zip(*seen.values(), strict=True)]
    about = f"{SIZE:,} jobs a batch, payloads of {len(PAYLOAD)} bytes; medians of {rounds} rounds of {lives} batches."
    results.table(
        "pieces",
        ["CPU us a job, a whole life:", "at the least", "here"],
        [*rows, ["together", *sums]],
        about=about,
    )
    results.rounds("pieces", seen)
    results.end()


if __name__ == "__main__":
    main()
