"""Runs of the simulation: from seeds to plans, from plans that fail to shorter ones, and the figures of many.

    python -m tests.simulation.simulate N [--seed S]

carries out the seeds S to S + N - 1 on all cores, and is what `scripts/test.sh --simulate` starts.
"""

import argparse
import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import NamedTuple

import msgspec

from queue_actor.settings import Settings
from tests.simulation.disk import chance
from tests.simulation.sim_clients import everybody
from tests.simulation.world import STEPS_A_COMMAND, Kind, Plan, Run, Trouble, carry_out, story

COMMANDS = 1_000
"""That the clients of one run ask for, about."""

LINES = 60
"""Of the trace of a run that fails."""

SHRINKS_MAX = 60
"""Runs that are spent on making one that fails shorter."""


def plan_of(seed: int, commands: int = COMMANDS) -> Plan:
    """What a seed stands for."""
    rng = chance(seed)
    durable = seed % 5 != 0
    clients = (
        *(f"producer{n}" for n in range(rng.randint(2, 4))),
        *(f"worker{n}" for n in range(rng.randint(3, 5))),
        *(f"reader{n}" for n in range(rng.randint(1, 2))),
        *(f"operator{n}" for n in range(rng.randint(1, 2))),
    )
    settings = Settings(
        data="simulated" if durable else "",
        lease_seconds=2.0,
        sweep_slice=rng.choice((3, 10, 1_000)),
        retention_seconds=rng.choice((5.0, 30.0)),
        retention_jobs=rng.choice((8, 60)),
        dead_retention_seconds=30.0,
        dead_retention_jobs=rng.choice((5, 60)),
        recent_jobs=rng.choice((0, 3, 10)),
        queued_jobs_max=100,
        ready_initial=2,
        compact_slice=rng.choice((1, 3, 4_096)),
        batch_requests_max=rng.choice((1, 3, 1_000)),
        idempotency_seconds=86_400.0 * 30,
    )
    steps = STEPS_A_COMMAND * commands
    return Plan(
        seed, durable, settings, clients, max(1, commands * 2 // 3 // len(clients)), _troubles(seed, steps, durable)
    )


def _troubles(seed: int, steps: int, durable: bool) -> tuple[Trouble, ...]:
    rng = chance(seed + 2**32)
    troubles: list[Trouble] = []
    kinds = [Kind.KILL, Kind.KILL, Kind.WALL, Kind.STALL, Kind.STALL]
    if durable:
        kinds += [Kind.POWER, Kind.POWER, *[Kind.DEATH] * 6, Kind.FULL, Kind.BROKEN, Kind.SHORT, Kind.NO_ROOM]
    elif seed % 2:
        kinds = [Kind.WALL, Kind.STALL]  # one life, whose history can be checked
    for _ in range(rng.randint(2, 14)):
        kind, step = rng.choice(kinds), rng.randint(1, steps)
        if kind is Kind.WALL:
            ahead = (3_600.0, 86_400.0, 5.0) if not durable else (3_600.0, -3_600.0, 86_400.0, -86_400.0, 5.0, -5.0)
            amount = rng.choice(ahead)
        elif kind is Kind.STALL:
            amount = rng.uniform(0.5, 6.0)
        else:
            amount = float(rng.randint(1, 12))
        troubles.append(Trouble(step, kind, amount))
        if kind is Kind.NO_ROOM:
            troubles.append(Trouble(step + rng.randint(50, 2_000), kind))
        if kind in {Kind.KILL, Kind.POWER} and rng.random() < 0.3:  # and once more, while it recovers
            troubles.append(
                Trouble(step + rng.randint(1, 80), rng.choice((Kind.KILL, Kind.POWER)) if durable else kind)
            )
    return tuple(sorted(troubles, key=lambda trouble: trouble.step))


def run_plan(plan: Plan) -> Run:
    """Carry a plan out."""
    logger = logging.getLogger("queue_actor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return carry_out(plan, everybody)
    finally:
        logger.setLevel(level)


def run_seed(seed: int, commands: int = COMMANDS) -> Run:
    """Carry out what a seed stands for."""
    return run_plan(plan_of(seed, commands))


# --- shorter


def shrink(run: Run) -> Run:
    """A run that fails in the same way, with fewer clients, faults and commands, as far as some tries go."""
    assert run.violation is not None
    name, tries = run.violation.name, 0
    smaller = True
    while smaller and tries < SHRINKS_MAX:
        smaller = False
        for plan in _less(run.plan):
            tries += 1
            if tries > SHRINKS_MAX:
                break
            shorter = run_plan(plan)
            if shorter.violation is not None and shorter.violation.name == name:
                run, smaller = shorter, True
                break
    return run


def _less(plan: Plan) -> Iterable[Plan]:
    replace = msgspec.structs.replace
    if plan.commands > 1:
        yield replace(plan, commands=plan.commands // 2)
    if len(plan.troubles) > 1:
        yield replace(plan, troubles=())
    for trouble in plan.troubles:
        yield replace(plan, troubles=tuple(other for other in plan.troubles if other is not trouble))
    for client in plan.clients:
        yield replace(plan, clients=tuple(other for other in plan.clients if other != client))
    if plan.commands > 1:
        yield replace(plan, commands=plan.commands * 4 // 5)


def report(run: Run) -> str:
    """What a run that fails has to say."""
    shorter = shrink(run)
    plan, violation = shorter.plan, shorter.violation
    return "\n".join(
        [
            f"seed {run.plan.seed}: {run.violation}",
            f"shortest found: {violation}",
            f"  {', '.join(plan.clients)}, {plan.commands} times each, {'a store' if plan.durable else 'no store'}",
            f"  {', '.join(map(str, plan.troubles)) or 'no faults'}",
            *story(shorter, LINES),
            f"again: ./scripts/test.sh --simulate 1 --seed {run.plan.seed}",
        ]
    )


# --- many


class Summary(NamedTuple):
    """What one run has come to, small enough to be sent from one process to another."""

    seed: int
    commands: int
    seconds: float
    lives: int
    struck: Counter[str]
    reached: set[str]
    violation: str | None


def summary(run: Run) -> Summary:
    """Of a run."""
    told = None if run.violation is None else report(run)
    return Summary(run.plan.seed, run.commands, run.seconds, run.lives, run.struck, run.reached, told)


def _summary_of_seed(seed: int) -> Summary:
    return summary(run_seed(seed))


def figures(summaries: Sequence[Summary], seconds: float) -> str:
    """Of many runs."""
    struck: Counter[str] = Counter()
    for one in summaries:
        struck += one.struck
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(struck.items()))
    return (
        f"{len(summaries)} seeds from {min(one.seed for one in summaries)}, "
        f"{sum(one.commands for one in summaries)} commands, "
        f"{sum(one.seconds for one in summaries):.0f} virtual seconds in {seconds:.0f}, "
        f"{sum(one.lives for one in summaries)} lives; faults: {faults}; "
        f"{sum(one.violation is not None for one in summaries)} violations"
    )


def main(arguments: Sequence[str]) -> int:
    """Carry out many seeds; the exit code is 1 if a promise was broken."""
    parser = argparse.ArgumentParser("scripts/test.sh --simulate", description="Runs the simulation of the core.")
    parser.add_argument("seeds", type=int)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    asked = parser.parse_args(arguments)
    began = monotonic()
    summaries: list[Summary] = []
    with multiprocessing.get_context("spawn").Pool(min(asked.seeds, os.cpu_count() or 1)) as pool:
        for one in pool.imap_unordered(_summary_of_seed, range(asked.seed, asked.seed + asked.seeds)):
            summaries.append(one)
            if one.violation is not None:
                print(one.violation, flush=True)
    print(figures(summaries, monotonic() - began))
    return int(any(one.violation is not None for one in summaries))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
