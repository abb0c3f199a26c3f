"""The checker of histories: what it must accept, and one defect after the other that it must not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from tests.process import recheck
from tests.process.history import (
    Claim,
    Crash,
    Dequeue,
    Drained,
    Enqueue,
    Event,
    Handed,
    Read,
    check,
    figures,
    from_lines,
    to_lines,
)

LEASE_SECONDS = 1.0


def enqueue(called: float, returned: float | None, *payloads: int, **more: Any) -> Enqueue:
    """In these histories a job's payload is its id, unless it is said otherwise."""
    ids = () if returned is None or "refused" in more else payloads
    return Enqueue(queue="q", called=called, returned=returned, payloads=payloads, **{"ids": ids, **more})


def dequeue(called: float, returned: float | None, *jobs: Handed, **more: Any) -> Dequeue:
    fields = {"lease_seconds": LEASE_SECONDS, **more}
    return Dequeue(queue="q", called=called, returned=returned, jobs=jobs, **fields)


def job(
    id_: int, fence: int, *, attempt: int = 1, payload: int | None = None, same_token_as: int | None = None
) -> Handed:
    payload = id_ if payload is None else payload
    return Handed(id=id_, payload=payload, fence=fence, token=f"t{same_token_as or fence}", attempt=attempt)


Verb = Literal["conclude", "fail", "release", "extend"]


def claim(verb: Verb, id_: int, fence: int, called: float, returned: float | None, **more: Any) -> Claim:
    fields = {"token": f"t{fence}", "lease_seconds": LEASE_SECONDS if verb == "extend" else 0.0, **more}
    return Claim(queue="q", verb=verb, id=id_, called=called, returned=returned, **fields)


def read(id_: int, called: float, state: str) -> Read:
    return Read(queue="q", id=id_, called=called, returned=called + 0.1, state=state)


# A correct history: enqueues and dequeues whose answers were lost, a crash, a job that failed, a lease that ran out.
CORRECT: dict[str, Event] = {
    "enqueue 1 to 3": enqueue(0.0, 0.1, 1, 2, 3),
    "enqueue 4, answer lost": enqueue(0.2, None, 4, key="e4"),
    "enqueue 4 again": enqueue(0.3, 0.4, 4, key="e4"),
    "enqueue 5, never answered": enqueue(0.5, None, 5),
    "enqueue 6, refused": enqueue(0.6, 0.7, 6, refused="queue_full"),
    "dequeue 1": dequeue(0.8, 0.9, job(1, 101)),
    "dequeue 2": dequeue(0.8, 1.0, job(2, 102)),
    "dequeue 3, answer lost": dequeue(1.0, None),  # fence 103
    "conclude 1": claim("conclude", 1, 101, 1.1, 1.2),
    "conclude 1 again": claim("conclude", 1, 101, 1.3, 1.4),
    "fail 2": claim("fail", 2, 102, 1.1, 1.2),
    "dequeue 2 again": dequeue(1.3, 1.4, job(2, 104, attempt=2)),
    "crash": Crash(killed=2.0, dead=2.1, ready=2.6),
    "extend 2": claim("extend", 2, 104, 2.7, 2.8),
    "dequeue 3": dequeue(3.2, 3.3, job(3, 105, attempt=2)),
    "dequeue 4 and 5, answer lost": dequeue(3.35, None, key="d45"),
    "dequeue 4 and 5": dequeue(3.4, 3.5, job(4, 106), job(5, 107), key="d45"),
    "conclude 2, answer lost": claim("conclude", 2, 104, 3.4, None),
    "conclude 2": claim("conclude", 2, 104, 3.5, 3.6),
    "conclude 4": claim("conclude", 4, 106, 3.7, 3.8),
    "conclude 5": claim("conclude", 5, 107, 3.8, 3.9),
    "dequeue 3 again": dequeue(4.5, 4.6, job(3, 108, attempt=3)),
    "conclude 3, late": claim("conclude", 3, 105, 4.7, 4.8, refused="lease_lost"),
    "conclude 3": claim("conclude", 3, 108, 4.9, 5.0),
    **{f"read {id_}": read(id_, 5.5, "concluded") for id_ in range(1, 6)},
    "drained": Drained(at=6.0),
}


def doctored(*names: str, drop: Iterable[str] = (), **changes: Any) -> list[Event]:
    """The correct history with fields of some events changed, and without some others."""
    assert {*names, *drop} <= set(CORRECT)
    return [
        msgspec.structs.replace(event, **changes) if name in names else event
        for name, event in CORRECT.items()
        if name not in drop
    ]


def with_more(*events: Event, drop: Iterable[str] = ()) -> list[Event]:
    return [*doctored(drop=drop), *events]


def of_one_job(*events: Event) -> list[Event]:
    """Job 1 is enqueued, handed out at 1.0, whatever happens, and it is concluded by its second holder at 7.0."""
    return [
        enqueue(0.0, 0.1, 1),
        dequeue(1.0, 1.1, job(1, 101)),
        *events,
        claim("conclude", 1, 102, 7.0, 7.1),
        Drained(at=8.0),
    ]


def again(called: float, returned: float, **more: Any) -> Dequeue:
    """The second time that the one job is handed out."""
    return dequeue(called, returned, job(1, 102, attempt=2), **more)


CRASH = Crash(killed=1.5, dead=1.6, ready=1.9)

ACCEPTED: dict[str, list[Event]] = {
    "all that is correct at once": with_more(),
    "an enqueue without an answer that was never carried out": doctored(
        "dequeue 4 and 5", drop=["conclude 5", "read 5"], jobs=(job(4, 106),)
    ),
    "a conclude without an answer that was carried out": doctored(drop=["conclude 2"]),
    "a conclude without an answer of a job that is forgotten by now": doctored(
        "read 2", drop=["conclude 2"], state="forgotten"
    ),
    "a conclude without an answer that was not carried out": with_more(
        dequeue(4.5, 4.6, job(2, 109, attempt=3)), claim("conclude", 2, 109, 4.7, 4.8), drop=["conclude 2"]
    ),
    "a release without an answer that was carried out": with_more(
        claim("release", 3, 105, 3.4, None),
        dequeue(3.6, 3.7, job(3, 108, attempt=3)),
        claim("conclude", 3, 108, 3.8, 3.9),
        drop=["dequeue 3 again", "conclude 3, late", "conclude 3"],
    ),
    "an extend without an answer that was not carried out": with_more(claim("extend", 3, 105, 3.9, None)),
    "an extend without an answer that was carried out after a longer one": of_one_job(
        claim("extend", 1, 101, 1.2, None, lease_seconds=0.5),
        claim("extend", 1, 101, 1.3, 1.4, lease_seconds=3.0),
        again(2.0, 2.1),
    ),
    "a late conclude that came before the sweep": with_more(
        claim("conclude", 3, 105, 4.9, 5.0), drop=["dequeue 3 again", "conclude 3, late", "conclude 3"]
    ),
    "a dequeue that waits while the job is concluded by another": doctored("dequeue 3 again", called=2.7, returned=4.6),
    "two dequeues at one time, the first to return with the higher fence": doctored(
        "dequeue 1", called=0.8, returned=1.05
    ),
    "a dequeue whose answer came twice": with_more(dequeue(3.6, 3.7, job(4, 106), job(5, 107), key="d45")),
    "a fail repeated after the job was handed out again": with_more(claim("fail", 2, 102, 1.5, 1.6)),
    "a conclude refused after a fail of the same holder": with_more(
        claim("conclude", 2, 102, 1.25, 1.3, refused="lease_lost")
    ),
    "a crash amid the recovery from a crash": with_more(Crash(killed=2.3, dead=2.4, ready=2.6)),
    "queues whose ids and payloads are alike, each by itself": with_more(
        *(
            msgspec.structs.replace(event, queue="other")
            for event in CORRECT.values()
            if not isinstance(event, Crash | Drained)
        )
    ),
    "nothing at all": [Drained(at=0.0)],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_correct_history_is_accepted(name: str) -> None:
    assert check(ACCEPTED[name]) == []


REFUSED: dict[str, tuple[list[Event], set[str]]] = {
    "never drained": (doctored(drop=["drained"]), {"undrained"}),
    "an acknowledged job that is never concluded": (doctored(drop=["conclude 4"]), {"lost"}),
    "one whose conclude has no answer, and was not carried out": (
        doctored("read 2", drop=["conclude 2"], state="queued"),
        {"lost"},
    ),
    "one that is never handed out": (
        doctored("dequeue 4 and 5", drop=["conclude 4", "read 4"], jobs=(job(5, 107),)),
        {"lost"},
    ),
    "one that is not known any more": (doctored("read 4", state="unknown_job"), {"lost", "conclude_undone"}),
    "a job that nobody enqueued": (with_more(dequeue(5.1, 5.2, job(9, 109))), {"unexpected"}),
    "a job whose enqueue was refused": (with_more(dequeue(5.1, 5.2, job(6, 109))), {"unexpected"}),
    "a job that was handed out before it was enqueued": (
        doctored("enqueue 1 to 3", called=0.95, returned=0.99),
        {"unexpected"},
    ),
    "a repeated enqueue that makes a second job": (
        with_more(enqueue(0.5, 0.6, 4, ids=(6,))),
        {"enqueued_twice"},
    ),
    "an enqueue without an answer that was carried out twice": (
        with_more(dequeue(5.1, 5.2, job(6, 109, payload=5))),
        {"enqueued_twice"},
    ),
    "an id that two jobs have": (
        with_more(enqueue(5.1, 5.2, 7, ids=(4,))),
        {"id_given_twice", "lost"},
    ),
    "an id that a job has which nobody was told of": (
        doctored("dequeue 4 and 5", drop=["conclude 5", "read 5"], jobs=(job(4, 106, payload=5),)),
        {"id_given_twice", "lost"},
    ),
    "a job handed out while another has it": (of_one_job(again(1.8, 1.9)), {"two_live_leases"}),
    "a lease cut short by a crash": (of_one_job(CRASH, again(2.1, 2.2)), {"two_live_leases"}),
    "a lease cut short by a second crash": (
        of_one_job(CRASH, Crash(killed=2.3, dead=2.4, ready=2.8), again(3.1, 3.2)),
        {"two_live_leases"},
    ),
    "a lease that was extended in vain": (
        of_one_job(claim("extend", 1, 101, 1.5, 1.6), again(2.1, 2.2)),
        {"two_live_leases"},
    ),
    "an extended lease that a crash made short again": (
        of_one_job(
            claim("extend", 1, 101, 1.2, 1.3, lease_seconds=3.0),
            Crash(killed=4.0, dead=4.1, ready=4.5),
            again(6.0, 6.1),
        ),
        {"two_live_leases"},
    ),
    "a job handed out again because its conclude has no answer": (
        of_one_job(claim("conclude", 1, 101, 1.5, None), again(1.8, 1.9)),
        {"two_live_leases"},
    ),
    "a job handed out again although its release was refused": (
        of_one_job(claim("release", 1, 101, 1.5, 1.6, refused="busy"), again(1.8, 1.9)),
        {"two_live_leases"},
    ),
    "an attempt that nobody heard of": (doctored(drop=["dequeue 3, answer lost"]), {"handed_to_nobody"}),
    "an attempt that nobody heard of, and whose lease cannot have ended": (
        doctored("dequeue 3, answer lost", lease_seconds=60.0),
        {"handed_to_nobody"},
    ),
    "an attempt that nobody heard of, whose dequeue died in a crash before the attempt before it": (
        of_one_job(
            dequeue(0.2, None), Crash(killed=0.3, dead=0.4, ready=0.9), dequeue(2.3, 2.4, job(1, 102, attempt=3))
        ),
        {"handed_to_nobody"},
    ),
    "attempts that do not count up": (
        of_one_job(dequeue(2.3, 2.4, job(1, 102, attempt=1))),
        {"attempt_repeated"},
    ),
    "a job handed out after it was concluded": (
        with_more(dequeue(5.1, 5.2, job(1, 109, attempt=2))),
        {"conclude_undone"},
    ),
    "a job that was concluded and reads as queued": (doctored("read 1", state="queued"), {"conclude_undone"}),
    "a job that was concluded twice": (
        doctored("conclude 3, late", refused=None),
        {"concluded_twice", "late_worker_accepted", "conclude_undone"},
    ),
    "a late fail that was accepted": (
        of_one_job(again(2.2, 2.3), claim("fail", 1, 101, 2.5, 2.6)),
        {"late_worker_accepted"},
    ),
    "a late extend that was accepted": (
        of_one_job(again(2.2, 2.3), claim("extend", 1, 101, 2.5, 2.6)),
        {"late_worker_accepted"},
    ),
    "a release that was accepted after a conclude": (
        with_more(claim("release", 1, 101, 1.5, 1.6)),
        {"late_worker_accepted"},
    ),
    "an extend that was accepted after a release": (
        of_one_job(claim("release", 1, 101, 1.2, 1.3), claim("extend", 1, 101, 1.4, 1.5), again(3.0, 3.1)),
        {"late_worker_accepted"},
    ),
    "a holder refused in time": (
        of_one_job(claim("conclude", 1, 101, 1.5, 1.6, refused="lease_lost"), again(2.2, 2.3)),
        {"holder_refused"},
    ),
    "a token that a crash made void": (
        of_one_job(CRASH, claim("extend", 1, 101, 2.0, 2.1, refused="lease_lost"), again(2.7, 2.8)),
        {"holder_refused"},
    ),
    "a conclude that was accepted once and not again": (
        with_more(claim("conclude", 1, 101, 5.1, 5.2, refused="lease_lost")),
        {"holder_refused"},
    ),
    "a late holder whose job is not known any more": (
        doctored("conclude 3, late", refused="unknown_job"),
        {"holder_refused"},
    ),
    "a forged token that was accepted": (with_more(claim("release", 4, 999, 5.1, 5.2)), {"forged_token_accepted"}),
    "the token of another job that was accepted": (
        with_more(claim("release", 4, 101, 5.1, 5.2)),
        {"forged_token_accepted"},
    ),
    "a fence lower than one before it": (
        [
            enqueue(0.0, 0.1, 1, 2),
            dequeue(1.0, 1.1, job(1, 102, attempt=2)),
            dequeue(0.2, None, lease_seconds=0.5),
            claim("conclude", 1, 102, 1.2, 1.3),
            dequeue(2.0, 2.1, job(2, 101)),
            claim("conclude", 2, 101, 2.2, 2.3),
            Drained(at=3.0),
        ],
        {"fence_went_back"},
    ),
    "a fence that two jobs have": (
        with_more(
            enqueue(5.1, 5.2, 7), dequeue(5.3, 5.4, job(7, 108)), claim("conclude", 7, 108, 5.5, 5.6, refused="busy")
        ),
        {"fence_used_twice", "lost"},
    ),
    "a fence that two attempts have": (
        with_more(dequeue(4.65, 4.68, job(3, 108, attempt=3))),
        {"fence_used_twice"},
    ),
    "a token that two attempts have": (
        [
            enqueue(0.0, 0.1, 1),
            dequeue(1.0, 1.1, job(1, 101)),
            dequeue(2.2, 2.3, job(1, 102, attempt=2, same_token_as=101)),
            claim("conclude", 1, 101, 2.4, 2.5),
            Drained(at=3.0),
        ],
        {"token_used_twice"},
    ),
    "jobs that overtake": (
        [
            enqueue(0.0, 0.1, 1, 2),
            dequeue(1.0, 1.1, job(2, 101), job(1, 102)),
            claim("conclude", 1, 102, 1.4, 1.5),
            claim("conclude", 2, 101, 1.4, 1.5),
            Drained(at=3.0),
        ],
        {"out_of_order"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_doctored_history_is_refused_by_the_name_of_its_defect(name: str) -> None:
    history, names = REFUSED[name]

    assert {violation.name for violation in check(history)} == names


def test_a_violation_says_which_job_and_when() -> None:
    (violation,) = check(of_one_job(CRASH, again(2.1, 2.2)))

    assert str(violation) == (
        "two_live_leases: job 1 was handed out in attempt 2 (fence 102, 2.100 to 2.200) while "
        "attempt 1 (fence 101, 1.000 to 1.100) held it until 2.600"
    )


def test_a_history_is_kept_as_lines() -> None:
    history = list(CORRECT.values())

    lines = to_lines(history)

    assert len(lines.splitlines()) == len(history)
    assert from_lines(lines) == history


def test_a_kept_history_is_checked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.ndjson", tmp_path / "bad.ndjson"
    good.write_bytes(to_lines(with_more()))
    bad.write_bytes(to_lines(doctored(drop=["conclude 4"])))

    assert recheck.main([str(good)]) == 0
    assert recheck.main([str(good), str(bad)]) == 1
    assert "lost: job 4, payload 4, was acknowledged at 0.400" in capsys.readouterr().out


def test_the_figures_of_a_history_say_how_often_jobs_were_handed_out_and_why() -> None:
    counted = figures(list(CORRECT.values()))

    assert str(counted).startswith(f"{counted.operations} operations, 5 open calls, 1 kills")
    assert counted._asdict() == {
        "operations": len(CORRECT) - 2,
        "open_calls": 5,
        "kills": 1,
        "enqueued": 4,
        "recovered": 1,
        "handed_out": 7,
        "concluded": 5,
        "ran_out": 1,
        "given_back": 1,
        "answers_lost": 1,
    }
