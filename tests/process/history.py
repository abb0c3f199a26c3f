"""What clients did to a server that was killed again and again, and whether its answers keep its promises.

A history is a list of events on the monotonic clock of the process that made the calls. An answer that never came
leaves a call open: it was carried out, or it was not, and the checker believes both. What it reports is therefore wrong
under every reading of the open calls, never a guess.

The rules it holds a history to:

- **Total queue** (after Jepsen's checker of that name): once a queue has been drained, every acknowledged job has been
  concluded, and nothing was handed out that nobody had enqueued. Jobs are told apart by their payload, which the
  clients never use twice.
- **Leases**: a job is handed out again only if the lease before ran out or was given back, or if the answer to a
  dequeue was lost. A lease lives at least from its dequeue's return until its seconds have passed since the call; a
  crash within that time begins it again at full length.
- **Ends**: an acknowledged conclude stays; a worker that is late is told so; one that is not late is never refused.
- **Numbers**: ids are never given twice, fences grow and are never used twice, attempts count up.
- **Order**: jobs are handed out for the first time in the order of their ids. So the clients enqueue without delays
  and with one priority.

Everything here is pure; `Crash` and `Drained` belong to all queues, everything else to one.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Literal, NamedTuple

import msgspec

ATTEMPTS_KEPT = 20
"""How many ended attempts a job remembers, and so knows again when their holders repeat themselves."""


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """A request to one queue, and what is known of its outcome.

    `returned` is None if no answer came, or one which says that the outcome is unknown. `refused` is the code of an
    answer which says that nothing was done. Calls that share a `key` are tries of one request.
    """

    queue: str
    called: float
    returned: float | None = None
    refused: str | None = None
    client: str = ""
    key: str | None = None

    @property
    def accepted(self) -> bool:
        """Answered with 2xx."""
        return self.returned is not None and self.refused is None

    @property
    def possible(self) -> bool:
        """Carried out, or perhaps."""
        return self.refused is None


class Enqueue(Call, frozen=True, kw_only=True, tag="enqueue"):
    """`ids` are those of `payloads`, in their order; empty unless the call was accepted."""

    payloads: tuple[int, ...]
    ids: tuple[int, ...] = ()

    @property
    def told(self) -> list[tuple[int, int]]:
        """Each id that the answer tells, and its payload."""
        return list(zip(self.ids, self.payloads, strict=True)) if self.accepted else []


class Handed(msgspec.Struct, frozen=True):
    """One job in the answer to a dequeue."""

    id: int
    payload: int
    fence: int
    token: str
    attempt: int


class Dequeue(Call, frozen=True, kw_only=True, tag="dequeue"):
    """`jobs` are empty unless the call was accepted."""

    lease_seconds: float
    jobs: tuple[Handed, ...] = ()


class Claim(Call, frozen=True, kw_only=True, tag="claim"):
    """What a holder says of its job. Of an extend `lease_seconds` is what was asked for."""

    verb: Literal["conclude", "fail", "release", "extend"]
    id: int
    token: str
    lease_seconds: float = 0.0


class Read(Call, frozen=True, kw_only=True, tag="read"):
    """`state` is the job's, or the code `forgotten` or `unknown_job`; empty if the call is open."""

    id: int
    state: str = ""


class Crash(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="crash"):
    """A process was killed and was gone at `dead`; at `ready` the first one after it was that did not die before."""

    killed: float
    dead: float
    ready: float


class Drained(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="drained"):
    """From here on the queues held no more work, and nobody gave them any."""

    at: float


Event = Enqueue | Dequeue | Claim | Read | Crash | Drained
History = Sequence[Event]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def to_lines(history: History) -> bytes:
    """The history as NDJSON."""
    return _encoder.encode_lines(history)


def from_lines(lines: bytes) -> list[Event]:
    """The history that `to_lines` wrote."""
    return list(_decoder.decode_lines(lines))


class Violation(NamedTuple):
    """A promise that was broken: its name, and what happened."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


class Figures(NamedTuple):
    """How much a history proves."""

    operations: int
    open_calls: int
    kills: int
    enqueued: int
    recovered: int
    """Jobs that came out although no answer to their enqueue had arrived."""
    handed_out: int
    concluded: int
    ran_out: int
    given_back: int
    answers_lost: int
    """Of the times that a job was handed out: those that come after a lease which ran out, which was given back, and
    those that nobody heard of."""

    def __str__(self) -> str:
        return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in zip(self._fields, self, strict=True))


def check(history: History) -> list[Violation]:
    """What in a history breaks the promises of a durable queue; empty if nothing does."""
    if not any(isinstance(event, Drained) for event in history):
        return [Violation("undrained", "the queues were never drained, so nothing can be said of what is missing")]
    return [violation for queue in _queues(history) for violation in queue.violations()]


def figures(history: History) -> Figures:
    """Count what a history holds."""
    queues = _queues(history)
    calls = [event for event in history if isinstance(event, Call)]
    kinds = [kind for queue in queues for leases in queue.leases_of.values() for kind in queue.explained(leases)]
    return Figures(
        operations=len(calls),
        open_calls=sum(call.returned is None for call in calls),
        kills=sum(isinstance(event, Crash) for event in history),
        enqueued=sum(len(queue.acknowledged) for queue in queues),
        recovered=sum(len(queue.leases_by_payload.keys() - queue.acknowledged.keys()) for queue in queues),
        handed_out=sum(len(leases) for queue in queues for leases in queue.leases_of.values()),
        concluded=sum(len(queue.concludes) for queue in queues),
        ran_out=kinds.count("ran out"),
        given_back=kinds.count("given back"),
        answers_lost=kinds.count("answer lost"),
    )


class Lease:
    """A job in somebody's hands, as far as its holder knows.

    `called` is the first moment at which it can have begun, `returned` the moment at which it had: the dequeue that
    gave it may have been tried several times under one key.
    """

    def __init__(self, handed: Handed, *, key: str | None, called: float, returned: float, seconds: float) -> None:
        self.id, self.payload, self.fence, self.token, self.attempt = msgspec.structs.astuple(handed)
        self.key, self.called, self.returned, self.seconds = key, called, returned, seconds
        self.claims: list[Claim] = []

    def __str__(self) -> str:
        return f"attempt {self.attempt} (fence {self.fence}, {self.called:.3f} to {self.returned:.3f})"

    def is_repeated_by(self, handed: Handed, key: str | None) -> bool:
        """Whether a job in the answer to a dequeue is this very lease, told again."""
        return key is not None and (key, handed.id, handed.token) == (self.key, self.id, self.token)

    def ends(self, crashes: Sequence[Crash], *, before: float = float("inf")) -> float:
        """The first moment at which it can have run out, by what happened before a moment; `crashes` are in order."""
        extends = deque(claim for claim in self.claims if claim.verb == "extend" and claim.possible)
        ends, seconds = self.called + self.seconds, self.seconds
        shortest = float("inf")  # of those that are open, and may yet come after any other
        after = bisect_left(crashes, self.called, key=lambda crash: crash.dead)
        for crash in chain(islice(crashes, after, None), [None]):
            until = before if crash is None else min(crash.killed, before)
            while extends and extends[0].called < until:
                extend = extends.popleft()
                if extend.accepted:
                    seconds = min(extend.lease_seconds, shortest)
                    ends = extend.called + seconds
                else:
                    shortest = min(shortest, extend.lease_seconds)
                    seconds = min(seconds, shortest)
                    ends = min(ends, extend.called + shortest)
            if crash is None or crash.killed >= before or (crash.dead >= ends and not extends):
                break
            if crash.dead < ends:
                # It was alive when the process died, so the next process has begun it again.
                ends = max(ends, crash.dead + seconds)
        return ends

    def given_back(self) -> float:
        """The first moment at which its holder may have given it back; a conclude gives nothing back."""
        return min(
            (claim.called for claim in self.claims if claim.verb in {"fail", "release"} and claim.possible),
            default=float("inf"),
        )


class Queue:
    """The events of one queue, put in order, and the crashes."""

    def __init__(self, events: Iterable[Call], crashes: Sequence[Crash]) -> None:
        self.crashes = sorted(crashes, key=lambda crash: crash.killed)
        self.enqueues: list[Enqueue] = []
        self.dequeues: list[Dequeue] = []
        self.claims: list[Claim] = []
        self.reads: dict[int, list[Read]] = defaultdict(list)
        for event in sorted(events, key=lambda event: event.called):
            match event:
                case Enqueue():
                    self.enqueues.append(event)
                case Dequeue():
                    self.dequeues.append(event)
                case Claim():
                    self.claims.append(event)
                case Read():
                    self.reads[event.id].append(event)
        # The id of each payload that an answer told, and the moment of the first such answer.
        self.acknowledged: dict[int, tuple[int, float]] = {}
        for enqueue in self.enqueues:
            for id_, payload in enqueue.told:
                assert enqueue.returned is not None
                self.acknowledged.setdefault(payload, (id_, enqueue.returned))
        self._first_called: dict[str, float] = {}
        for dequeue in self.dequeues:
            if dequeue.key is not None:
                self._first_called.setdefault(dequeue.key, dequeue.called)
        self.double: list[Violation] = []
        self.leases_of = self._leases()
        self.leases_by_payload: dict[int, list[Lease]] = defaultdict(list)
        for lease in chain.from_iterable(self.leases_of.values()):
            self.leases_by_payload[lease.payload].append(lease)
        by_token = {lease.token: lease for leases in self.leases_of.values() for lease in leases}
        self.forged: list[Claim] = []
        # The first acknowledged conclude of each job, and the lease it was said of.
        self.concludes: dict[int, tuple[Claim, Lease]] = {}
        for claim in self.claims:
            claimed = by_token.get(claim.token)
            if claimed is not None and claimed.id == claim.id:
                claimed.claims.append(claim)
                if claim.verb == "conclude" and claim.accepted:
                    self.concludes.setdefault(claim.id, (claim, claimed))
            elif claim.accepted:
                self.forged.append(claim)
        self._lost_answers = [self._lost_answer(dequeue) for dequeue in self.dequeues if dequeue.returned is None]

    def _leases(self) -> dict[int, list[Lease]]:
        """The leases of each job in the order of their fences; a repeated answer is not a second lease."""
        by_fence: dict[int, Lease] = {}
        by_token: dict[str, Lease] = {}
        for dequeue in self.dequeues:
            for handed in dequeue.jobs:
                assert dequeue.returned is not None
                known = by_fence.get(handed.fence)
                if known is not None and known.is_repeated_by(handed, dequeue.key):
                    known.returned = min(known.returned, dequeue.returned)
                    continue
                if known is not None:
                    self.double.append(
                        Violation(
                            "fence_used_twice",
                            f"fence {handed.fence} was given with job {known.id} in {known} and again with job "
                            f"{handed.id}, {dequeue.called:.3f} to {dequeue.returned:.3f}",
                        )
                    )
                    continue
                lease = Lease(
                    handed,
                    key=dequeue.key,
                    called=self._first_call(dequeue),
                    returned=dequeue.returned,
                    seconds=dequeue.lease_seconds,
                )
                if handed.token in by_token:
                    other = by_token[handed.token]
                    self.double.append(
                        Violation(
                            "token_used_twice",
                            f"job {handed.id} in {lease} has the token of job {other.id} in {other}",
                        )
                    )
                by_fence[handed.fence] = by_token[handed.token] = lease
        leases: dict[int, list[Lease]] = defaultdict(list)
        for lease in sorted(by_fence.values(), key=lambda lease: lease.fence):
            leases[lease.id].append(lease)
        return leases

    def _first_call(self, dequeue: Dequeue) -> float:
        return dequeue.called if dequeue.key is None else self._first_called[dequeue.key]

    # --- rules

    def violations(self) -> Iterator[Violation]:
        yield from self.double
        yield from self._numbers_of_jobs()
        yield from self._lost()
        yield from self._fences()
        yield from self._order()
        for id_, leases in self.leases_of.items():
            yield from self._handed_again(id_, leases)
            for lease in leases:
                yield from self._late(lease, leases)
                yield from self._refused(lease, leases)
        yield from self._undone()
        for claim in self.forged:
            yield Violation("forged_token_accepted", f"a {claim.verb} of job {claim.id} with a token nobody was given")

    def _numbers_of_jobs(self) -> Iterator[Violation]:
        """An id is one job, a payload is one job, and what is handed out was enqueued before."""
        called: dict[int, float] = {}
        for enqueue in self.enqueues:
            if enqueue.possible:
                for payload in enqueue.payloads:
                    called.setdefault(payload, enqueue.called)
        payload_of: dict[int, int] = {}
        id_of: dict[int, int] = {}
        told = [
            *(pair for enqueue in self.enqueues for pair in enqueue.told),
            *((lease.id, lease.payload) for leases in self.leases_of.values() for lease in leases),
        ]
        for id_, payload in told:
            if payload_of.setdefault(id_, payload) != payload:
                yield Violation("id_given_twice", f"job {id_} is payload {payload_of[id_]}, and payload {payload} too")
            elif id_of.setdefault(payload, id_) != id_:
                yield Violation(
                    "enqueued_twice", f"payload {payload} was enqueued once, and is job {id_of[payload]} and job {id_}"
                )
        for leases in self.leases_of.values():
            for lease in leases:
                if called.get(lease.payload, float("inf")) > lease.returned:
                    yield Violation(
                        "unexpected", f"job {lease.id}, payload {lease.payload}, was handed out and never enqueued"
                    )

    def _lost(self) -> Iterator[Violation]:
        """Every acknowledged job has been concluded."""
        for payload, (id_, moment) in self.acknowledged.items():
            leases = self.leases_by_payload.get(payload, ())
            concludes = [claim for lease in leases for claim in lease.claims if claim.verb == "conclude"]
            reads = [read for read in self.reads[id_] if read.called > moment]
            missing = [read for read in reads if read.state == "unknown_job"]
            last = reads[-1].state if reads else "never read"
            perhaps = last in {"concluded", "forgotten"} and any(claim.possible for claim in concludes)
            if missing:
                fate = f"was unknown at {missing[0].called:.3f}"
            elif perhaps or any(claim.accepted for claim in concludes):
                continue
            elif not leases:
                fate = f"was never handed out; in the end it was {last}"
            else:
                fate = f"was handed out {len(leases)} times and never concluded; in the end it was {last}"
            yield Violation("lost", f"job {id_}, payload {payload}, was acknowledged at {moment:.3f} and {fate}")

    def _fences(self) -> Iterator[Violation]:
        """Of two dequeues, one after the other, the later one has the higher fences."""
        answered = sorted(
            (call.returned, handed.fence) for call in self.dequeues for handed in call.jobs if call.returned is not None
        )
        moments = [moment for moment, _ in answered]
        highest = [0]
        for _, fence in answered:
            highest.append(max(highest[-1], fence))
        for call in self.dequeues:
            before = highest[bisect_left(moments, self._first_call(call))]
            for handed in call.jobs:
                if handed.fence < before:
                    yield Violation(
                        "fence_went_back",
                        f"job {handed.id} was handed out with fence {handed.fence} at {call.called:.3f}, "
                        f"after fence {before} had been given",
                    )

    def _order(self) -> Iterator[Violation]:
        """First attempts come in the order of ids; those that nobody heard of do not count."""
        firsts = [leases[0] for _, leases in sorted(self.leases_of.items()) if leases[0].attempt == 1]
        for earlier, later in pairwise(firsts):
            if later.fence < earlier.fence:
                yield Violation("out_of_order", f"job {later.id} was handed out before job {earlier.id}: {later}")

    def _handed_again(self, id_: int, leases: list[Lease]) -> Iterator[Violation]:
        for number, later in enumerate(leases):
            for lease in leases[:number]:
                if later.returned < min(lease.ends(self.crashes, before=later.returned), lease.given_back()):
                    yield Violation(
                        "two_live_leases",
                        f"job {id_} was handed out in {later} while {lease} held it until "
                        f"{lease.ends(self.crashes, before=later.returned):.3f}",
                    )
            earlier = leases[number - 1] if number else None
            unheard = later.attempt - (earlier.attempt if earlier else 0) - 1
            if unheard < 0:
                yield Violation("attempt_repeated", f"job {id_} was handed out in {later} after {earlier}")
            elif unheard > self._explaining(earlier, later):
                yield Violation(
                    "handed_to_nobody",
                    f"job {id_} was handed out {unheard} times before {later} without anybody's having lost an answer",
                )

    def _explaining(self, earlier: Lease | None, later: Lease) -> int:
        """How many dequeues without an answer can have held the job between two that were answered."""
        begin = earlier.called if earlier else 0.0
        return sum(ends <= later.returned and latest >= begin for ends, latest in self._lost_answers)

    def _lost_answer(self, call: Dequeue) -> tuple[float, float]:
        """The first end of a lease that a dequeue without an answer may have given, and its last begin.

        Nothing survives the process that it was sent to.
        """
        after = bisect_left(self.crashes, call.called, key=lambda crash: crash.dead)
        latest = self.crashes[after].dead if after < len(self.crashes) else float("inf")
        return call.called + call.lease_seconds, latest

    def _late(self, lease: Lease, leases: list[Lease]) -> Iterator[Violation]:
        """Whoever comes after the end of its lease is told so, but for repeats of what ended it."""
        followed = min((other.returned for other in leases if other.fence > lease.fence), default=float("inf"))
        for claim in lease.claims:
            if not claim.accepted:
                continue
            earlier = [other for other in lease.claims if other.called < claim.called and other.verb != "extend"]
            repeated = any(other.verb == claim.verb and other.possible for other in earlier)
            ended = [
                other
                for other in earlier
                if other.accepted and other.verb != claim.verb and (other.returned or 0.0) < claim.called
            ]
            if followed < claim.called and not repeated:
                yield Violation(
                    "late_worker_accepted",
                    f"a {claim.verb} of job {lease.id} in {lease} was accepted at {claim.called:.3f}, "
                    f"after the job had been handed out again",
                )
            elif ended:
                yield Violation(
                    "late_worker_accepted",
                    f"a {claim.verb} of job {lease.id} in {lease} was accepted at {claim.called:.3f}, "
                    f"after its {ended[0].verb} had been",
                )

    def _refused(self, lease: Lease, leases: list[Lease]) -> Iterator[Violation]:
        """Whoever comes before the end of its lease is not refused as late; nor is a repeat of what ended it."""
        kept = leases[-1].attempt - lease.attempt < ATTEMPTS_KEPT
        for claim in lease.claims:
            if claim.refused not in {"lease_lost", "unknown_job"}:
                continue
            assert claim.returned is not None
            earlier = [
                other
                for other in lease.claims
                if other.called < claim.called and other.verb != "extend" and other.possible
            ]
            if any(other.verb != claim.verb for other in earlier):
                continue  # that other may have ended the attempt
            alive = claim.returned < lease.ends(self.crashes, before=claim.called)
            stands = any(other.accepted and (other.returned or 0.0) < claim.called for other in earlier)
            if claim.refused == "unknown_job" or alive or (stands and kept):
                yield Violation(
                    "holder_refused",
                    f"a {claim.verb} of job {lease.id} in {lease} was refused as {claim.refused} at "
                    f"{claim.called:.3f}, " + ("though it repeats one that was accepted" if stands else "in time"),
                )

    def _undone(self) -> Iterator[Violation]:
        """What has been concluded is not handed out again, not concluded by another, and reads so."""
        for id_, (claim, lease) in self.concludes.items():
            assert claim.returned is not None
            told = f"job {id_} was concluded by {lease} at {claim.returned:.3f}"
            for other in self.leases_of[id_]:
                if other.fence > lease.fence:
                    yield Violation("conclude_undone", f"{told} and handed out again in {other}")
                if other is not lease and any(also.verb == "conclude" and also.accepted for also in other.claims):
                    yield Violation("concluded_twice", f"{told} and by {other} too")
            for read in self.reads[id_]:
                if read.state and read.called > claim.returned and read.state not in {"concluded", "forgotten"}:
                    yield Violation("conclude_undone", f"{told} and read as {read.state} at {read.called:.3f}")

    # --- figures

    def explained(self, leases: list[Lease]) -> Iterator[str]:
        """Why a job was handed out more than once, for each time after the first."""
        yield from ["answer lost"] * (leases[0].attempt - 1)
        for lease, later in pairwise(leases):
            yield from ["answer lost"] * (later.attempt - lease.attempt - 1)
            yield "given back" if lease.given_back() <= later.returned else "ran out"


def _queues(history: History) -> list[Queue]:
    crashes = [event for event in history if isinstance(event, Crash)]
    calls: dict[str, list[Call]] = defaultdict(list)
    for event in history:
        if isinstance(event, Call):
            calls[event.queue].append(event)
    return [Queue(events, crashes) for _, events in sorted(calls.items())]
