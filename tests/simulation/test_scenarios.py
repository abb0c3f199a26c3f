"""The state machine beside its model once more, where chance is not to decide: each verb in each state, each limit."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest

from queue_actor.commands import (
    Bulk,
    BulkVerb,
    Cancel,
    Claim,
    Command,
    Conclude,
    ConcludeClaim,
    DeleteQueue,
    Dequeue,
    DequeueOrder,
    Enqueue,
    Extend,
    ExtendClaim,
    Fail,
    FailClaim,
    Forget,
    IdempotencyKey,
    JobFilter,
    NewJob,
    Pause,
    ReadPosition,
    ReadQueue,
    Redrive,
    Release,
    ReleaseClaim,
    RunNow,
    SetPolicy,
    Sweep,
    TakeBack,
)
from queue_actor.errors import (
    InvalidCommand,
    KeyReused,
    MemoryFull,
    QueueError,
    QueueFull,
    QueueNotEmpty,
    TooManyQueues,
    UnknownQueue,
)
from queue_actor.jobs import (
    Jitter,
    JobError,
    JobOptions,
    JobState,
    OnExisting,
    QueuePolicy,
    Retry,
    RetryKind,
    UniqueUntil,
)
from queue_actor.settings import Settings
from queue_actor.tokens import Tokens
from tests.simulation.test_model import CLAIM_TYPES, ModelMachine, small_limits

__all__ = ["small_limits"]  # the fixture
pytestmark = pytest.mark.usefixtures("small_limits")

PLAIN_RETRY = Retry(RetryKind.FIXED, base_seconds=2.0, jitter=Jitter.NONE)
FORGER = Tokens(bytes(range(32, 64)))


def both(*, policy: QueuePolicy | None = None, **limits: Any) -> ModelMachine:
    """The two, with a queue `a` without jobs."""
    pair = ModelMachine()
    pair.begin(
        world=Settings(**{"lease_seconds": 5.0, **limits}),
        policy=policy or QueuePolicy(retry=PLAIN_RETRY),
        jobs=[],
        others=[],
    )
    return pair


def new(**fields: Any) -> NewJob:
    return NewJob("t", **fields)


def unique(on_existing: OnExisting = OnExisting.KEEP, **fields: Any) -> NewJob:
    return new(options=JobOptions(unique_key="k"), on_existing=on_existing, **fields)


def enqueue(pair: ModelMachine, *jobs: NewJob) -> Any:
    return pair.do(Enqueue("a", jobs or [new()]))


def hold(pair: ModelMachine) -> dict[str, Any]:
    """Lease a job; what its holder shows."""
    pair.do(Dequeue("a", consumer="c1"))
    queue, id_, token, _ = pair.tokens[-1]
    return {"queue": queue, "id": id_, "token": token}


# --- each verb in each state


def lead_to(pair: ModelMachine, state: str) -> None:
    """Let the first job of `a` be in a state; its first token is the pair's first, if it was ever leased."""
    if state == "never there":
        return
    first = {"scheduled": {"delay_seconds": 3.0}, "mortal, and its time is over": {"ttl_seconds": 4.0}}
    enqueue(pair, new(**first.get(state, {})))
    if state in {"scheduled", "queued"}:
        return
    if state == "cancelled":
        pair.do(Cancel("a", [1]))
        return
    held = hold(pair)
    match state:
        case "wished away":
            pair.do(Cancel("a", [1]))
        case "mortal, and its time is over":
            pair.later(4.0)
        case "leased again":
            pair.do(Release([ReleaseClaim(**held)]))
            hold(pair)
        case "released":
            pair.do(Release([ReleaseClaim(**held)]))
        case "failed once":
            pair.do(Fail([FailClaim(**held, error=JobError("E", "m"))]))
        case "dead":
            pair.do(Fail([FailClaim(**held, retry=False)]))
        case "concluded" | "forgotten":
            pair.do(Conclude([ConcludeClaim(**held, result=b"1")]))
    if state == "forgotten":
        pair.do(Forget("a", [1]))


STATES = (
    "never there",
    "scheduled",
    "queued",
    "in progress",
    "wished away",
    "mortal, and its time is over",
    "leased again",
    "released",
    "failed once",
    "dead",
    "concluded",
    "cancelled",
    "forgotten",
)
BY_ID = (Cancel, Redrive, RunNow, TakeBack, Forget)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", BY_ID, ids=lambda verb: verb.__name__.lower())
def test_each_verb_of_an_operator_does_in_each_state_what_the_model_does(state: str, verb: Any) -> None:
    pair = both()
    lead_to(pair, state)
    pair.do(verb("a", [1]))
    pair.do(verb("a", [1, 1]))  # and again, twice
    pair.later(60.0)
    pair.teardown()


SHOWN = ("token", "name", "another name", "nothing", "forged token")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("verb", CLAIM_TYPES, ids=lambda verb: verb.__name__.lower())
def test_each_verb_of_a_holder_does_in_each_state_what_the_model_does(state: str, verb: Any, shown: str) -> None:
    """With the token of the first lease the job ever had, too, which may be another's by now."""
    pair = both()
    lead_to(pair, state)
    token = pair.tokens[0][2] if pair.tokens else "no token"
    named = {
        "token": {"token": token},
        "name": {"consumer": "c1"},
        "another name": {"consumer": "c2"},
        "nothing": {},
        "forged token": {"token": FORGER.issue("a", 1, 100_000_000_000)},
    }
    claim = CLAIM_TYPES[verb]("a", 1, **named[shown])
    pair.do(verb([claim]))
    pair.do(verb([claim, claim]))
    pair.later(60.0)
    pair.teardown()


@pytest.mark.parametrize("verb", BulkVerb)
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("per_second", [None, 2.0])
def test_each_bulk_verb_does_to_jobs_in_all_states_what_the_model_does(
    verb: BulkVerb, dry_run: bool, per_second: float | None
) -> None:
    pair = both(retention_seconds=1_000.0)
    enqueue(pair, *[new()] * 6, new(delay_seconds=9.0))
    for fields in ({"retry": False}, {"retry": False, "error": JobError("E", "m")}):
        pair.do(Fail([FailClaim(**hold(pair), **fields)]))
    pair.do(Conclude([ConcludeClaim(**hold(pair))]))
    hold(pair)
    pair.do(Cancel("a", [5]))
    for where in (JobFilter(error="E"), JobFilter(states=frozenset({JobState.CANCELLED})), JobFilter()):
        pair.bulk(
            number=0, verb=verb, where=(None, where), spread=None, slices=99, dry_run=dry_run, per_second=per_second
        )
    pair.later(60.0)
    pair.teardown()


def test_a_redrive_onto_a_key_that_is_taken_is_refused_one_by_one_and_in_bulk() -> None:
    pair = both()
    enqueue(pair, unique())
    pair.do(Cancel("a", [1]))
    enqueue(pair, unique())

    (refusal,) = pair.do(Redrive("a", [1])).jobs
    assert refusal.code == "unique_key_taken"
    done = pair.do(Bulk("a", BulkVerb.REDRIVE, JobFilter()))
    assert (done.count, done.refused) == (0, 1)
    pair.do(Cancel("a", [2]))
    done = pair.do(Bulk("a", BulkVerb.REDRIVE, JobFilter()))
    assert (done.count, done.refused) == (1, 1)  # the first of the two has it


# --- unique keys


@pytest.mark.parametrize("on_existing", OnExisting)
@pytest.mark.parametrize(("before", "after"), list(product((0.0, 3.0), repeat=2)))
@pytest.mark.parametrize("ttl_seconds", [None, 2.0])
def test_each_policy_for_an_existing_job_does_what_the_model_does(
    on_existing: OnExisting, before: float, after: float, ttl_seconds: float | None
) -> None:
    pair = both()
    enqueue(pair, unique(delay_seconds=before, payload=b"1"))
    enqueue(pair)
    later = unique(on_existing, delay_seconds=after, payload=b"22", priority=1, ttl_seconds=ttl_seconds)
    enqueue(pair, later)
    pair.do(ReadPosition("a", 1))
    enqueue(pair, later, unique())
    pair.sweep_up(3.0)
    pair.do(Dequeue("a", count=3))
    enqueue(pair, later)  # it is in progress, or has expired
    pair.teardown()


@pytest.mark.parametrize(("until", "made"), [(UniqueUntil.STARTED, 2), (UniqueUntil.FINISHED, 1)])
def test_a_key_that_is_held_until_the_start_is_free_while_the_job_runs_and_returns(
    until: UniqueUntil, made: int
) -> None:
    pair = both()
    job = new(options=JobOptions(unique_key="k", unique_until=until))
    enqueue(pair, job)
    held = hold(pair)
    enqueue(pair, job)
    pair.do(Release([ReleaseClaim(**held)]))
    enqueue(pair, job)

    assert pair.do(ReadQueue("a")).last_id == made


# --- limits


def refusals(pair: ModelMachine, commands: Sequence[Command[Any]]) -> Iterator[type[QueueError] | None]:
    for command in commands:
        reply = pair.do(command)
        yield type(reply) if isinstance(reply, QueueError) else None


def test_each_limit_of_an_enqueue_refuses_it_as_the_model_does() -> None:
    pair = both(queued_jobs_max=3, memory_bytes_max=10, queues_max=2)

    assert list(
        refusals(
            pair,
            [
                Enqueue("a", [new(payload=b"x" * 11)]),
                Enqueue("a", [new(payload=b"x" * 5)] * 2),
                Enqueue("a", [new(payload=b"x")]),
                Enqueue("a", [new(), new()]),
                Enqueue("b", [new()]),
                Enqueue("b", [new()]),
                Enqueue("c", []),
                SetPolicy("c", QueuePolicy()),
                SetPolicy("b", QueuePolicy(queued_jobs_max=0), paused=True),
            ],
        )
    ) == [MemoryFull, None, MemoryFull, QueueFull, None, QueueFull, TooManyQueues, TooManyQueues, None]


def test_a_queue_that_must_be_declared_is_not_made_by_an_enqueue() -> None:
    pair = both(queues="declared")

    assert list(refusals(pair, [Enqueue("b", [new()]), Enqueue("default", [new()]), Pause("b", paused=True)])) == [
        UnknownQueue,
        None,
        UnknownQueue,
    ]


def test_the_limit_of_a_queue_is_its_policys() -> None:
    pair = both(policy=QueuePolicy(queued_jobs_max=2, in_progress_max=1, run_seconds_max=3.0, oldest_every=2))
    enqueue(pair, new(), new(priority=5))
    assert list(refusals(pair, [Enqueue("a", [new()])])) == [QueueFull]
    held = hold(pair)
    assert not pair.do(Dequeue("a")).leases
    (refusal,) = pair.do(Extend([ExtendClaim(**held, lease_seconds=3.25)])).jobs
    assert refusal.code == "run_too_long"
    pair.do(Conclude([Claim(**held)]))
    assert pair.do(Dequeue("a", count=5)).leases[0].job.id == 1


def test_a_reply_has_room_for_one_job_at_least() -> None:
    pair = both(reply_bytes_max=5)
    enqueue(pair, *[new(payload=b"x" * size) for size in (9, 3, 2, 1)])

    assert [len(pair.do(Dequeue("a", count=4)).leases) for _ in range(3)] == [1, 2, 1]


# --- answers under a key


@pytest.mark.parametrize("ended", [False, True])
def test_a_dequeue_is_repeated_with_the_leases_that_hold(ended: bool) -> None:
    pair = both()
    enqueue(pair, new(), new())
    keyed = Dequeue("a", count=2, key=IdempotencyKey("s", "k", b"1"))
    first = pair.do(keyed).leases
    if ended:
        pair.do(Conclude([Claim("a", 1, first[0].token)]))

    assert [lease.token for lease in pair.do(keyed).leases] == [lease.token for lease in first[ended:]]
    assert isinstance(pair.do(Dequeue("a", key=IdempotencyKey("s", "k", b"2"))), KeyReused)


def test_an_enqueue_is_repeated_with_its_answer() -> None:
    pair = both()
    keyed = Enqueue("a", [new()], IdempotencyKey("s", "k", b"1"))

    assert pair.do(keyed) == pair.do(keyed)
    assert isinstance(pair.do(Enqueue("a", [new()], IdempotencyKey("s", "k", b"2"))), KeyReused)
    assert pair.do(ReadQueue("a")).last_id == 1


# --- ends


@pytest.mark.parametrize("names", ["a", ("a",), "a*"])
@pytest.mark.parametrize("order", DequeueOrder)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_dequeue_looks_at_a_slice_of_expired_jobs_and_lets_others_look_again(
    names: str | tuple[str, ...], order: DequeueOrder, count: int
) -> None:
    pair = both(sweep_slice=1)
    enqueue(pair, *[new(ttl_seconds=1.0)] * 3, new())
    pair.time_passes(1.0)
    while not pair.do(Dequeue(names, count=count, order=order)).leases:
        pass

    assert pair.do(ReadQueue("a")).counts[JobState.DEAD] == 3


@pytest.mark.parametrize(
    ("policy", "deaths"),
    [
        (QueuePolicy(max_stale=1), 1),
        (QueuePolicy(max_stale=3, retry=PLAIN_RETRY), 3),
        (QueuePolicy(max_attempts=2, max_stale=None, retry=PLAIN_RETRY), 2),
    ],
)
def test_a_job_whose_workers_die_is_given_up(policy: QueuePolicy, deaths: int) -> None:
    pair = both(policy=policy)
    enqueue(pair)
    for _ in range(deaths):
        assert pair.do(ReadQueue("a")).counts[JobState.DEAD] == 0
        hold(pair)
        pair.later(5.0)
        pair.later(5.0)

    assert pair.do(ReadQueue("a")).counts[JobState.DEAD] == 1


def test_finished_jobs_are_forgotten_by_age_and_by_number_in_slices() -> None:
    pair = both(retention_jobs=1, dead_retention_jobs=1, sweep_slice=2, retention_seconds=50.0)
    enqueue(pair, *[new(ttl_seconds=1.0)] * 5, *[new()] * 5)
    pair.do(Cancel("a", list(range(6, 11))))
    pair.sweep_up(1.0)
    counts = pair.do(ReadQueue("a")).counts
    assert (counts[JobState.DEAD], counts[JobState.CANCELLED]) == (1, 1)
    pair.sweep_up(50.0)

    assert pair.do(ReadQueue("a")).counts[JobState.CANCELLED] == 0
    assert pair.do(Sweep()).next_due_seconds is None


# --- queues


def test_a_queue_that_is_paused_or_not_there_gives_nothing() -> None:
    pair = both()
    enqueue(pair)
    pair.do(Pause("a", paused=True))

    assert not any(pair.do(Dequeue(names)).leases for names in ("a", "*", ("a", "no"), "no"))
    pair.do(Pause("a", paused=False))
    assert pair.do(Dequeue("*")).leases


def test_a_queue_is_deleted_when_it_holds_no_jobs_and_goes_on_when_it_is_made_again() -> None:
    pair = both()
    enqueue(pair)
    pair.do(Cancel("a", [1]))

    assert list(refusals(pair, [DeleteQueue("a"), Forget("a", [1]), DeleteQueue("a"), DeleteQueue("a")])) == [
        QueueNotEmpty,
        None,
        None,
        UnknownQueue,
    ]
    pair.the_wall_clock_is_set(-50.0)
    enqueue(pair)
    assert pair.do(Dequeue("a")).leases[0].job.id == 2


def test_a_verb_of_an_operator_meets_a_queue_that_is_not_there() -> None:
    pair = both()
    for verb in BY_ID:
        (refusal,) = pair.do(verb("no", [1])).jobs
        assert refusal.code == "unknown_job"


def test_a_start_too_far_away_is_refused() -> None:
    pair = both(delay_seconds_max=100.0)

    starts = [Enqueue("a", [new(not_before=pair.wall + seconds)]) for seconds in (100.0, 100.25)]

    assert list(refusals(pair, starts)) == [None, InvalidCommand]


@pytest.mark.parametrize("how", ["released", "failed"])
@pytest.mark.parametrize("before", [0.0, 3.0])
def test_a_job_that_returns_still_expires(how: str, before: float) -> None:
    """While it waits for its next attempt, or at its return."""
    pair = both()
    enqueue(pair, new(ttl_seconds=3.0))
    held = hold(pair)
    pair.time_passes(before)
    pair.do(Release([ReleaseClaim(**held)]) if how == "released" else Fail([FailClaim(**held)]))
    pair.later(3.0)

    assert pair.do(ReadQueue("a")).counts[JobState.DEAD] == 1
