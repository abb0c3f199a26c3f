"""The simulation of the core, some seeds of it; `scripts/test.sh --simulate N` carries out as many as are asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from queue_actor.commands import Enqueue, NewJob
from queue_actor.queues import COUNTED
from tests.simulation.sim_clients import DRAIN_SECONDS, QUEUES, drain
from tests.simulation.simulate import Summary, figures, plan_of, run_seed, summary
from tests.simulation.world import Kind, World, carry_out

SEEDS = 3
CHUNKS = 10
"""That the slow seeds are cut into, so that all cores have a share."""

SEEDS_A_CHUNK = 10
SEEDS_REPEATED, SEEDS_REPEATED_SLOW = 2, 20
COMMANDS_REPEATED = 250

ROOT = Path(__file__).parents[2]


def expect_no_violation(seeds: range) -> list[Summary]:
    runs = [summary(run_seed(seed)) for seed in seeds]
    assert [run.violation for run in runs if run.violation is not None] == []
    return runs


def test_no_promise_is_broken_whatever_fails() -> None:
    runs = expect_no_violation(range(1, SEEDS + 1))

    print(figures(runs, 0.0))
    assert all(run.commands > 500 for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_promise_is_broken_in_many_runs(chunk: int) -> None:
    first = 1_000 + chunk * SEEDS_A_CHUNK
    runs = expect_no_violation(range(first, first + SEEDS_A_CHUNK))

    print(figures(runs, 0.0))
    assert sum(run.lives for run in runs) > SEEDS_A_CHUNK, "nobody died"
    assert set[str]().union(*(run.reached for run in runs)) == set(COUNTED), "something was never done"


def test_every_kind_of_fault_is_in_some_plan() -> None:
    assert {trouble.kind for seed in range(60) for trouble in plan_of(seed).troubles} == set(Kind)


@pytest.mark.parametrize("delay", [0.0, 9.0, 11.0, DRAIN_SECONDS - 0.1, DRAIN_SECONDS + 0.1, 86_400.0])
def test_a_job_is_drained_however_long_it_would_wait_by_itself(delay: float) -> None:
    """The server's own retries reach far; a job due just before the drain's end came too late for it."""

    async def enqueue_and_drain(world: World) -> None:
        await world.up.wait()
        await world.ask("producer", Enqueue(QUEUES[0], [NewJob("work", b"1", delay_seconds=delay)]))
        world.calm_down()
        await drain(world)

    run = carry_out(plan_of(1), enqueue_and_drain)

    assert run.violation is None
    assert run.seconds < DRAIN_SECONDS


# --- determinism

DIGESTS = """
import sys
from tests.simulation.simulate import run_seed
for seed in range(int(sys.argv[1])):
    print(run_seed(seed, int(sys.argv[2])).digest)
"""


def digests(seeds: int) -> list[str]:
    return [run_seed(seed, COMMANDS_REPEATED).digest for seed in range(seeds)]


def digests_of_another_process(seeds: int, hash_seed: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, str(seeds), str(COMMANDS_REPEATED)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_a_seed_is_the_same_run_again_and_another_one_is_not() -> None:
    """Every step of every task, every command, reply, change and fault, and what is on the disk in the end."""
    first = digests(SEEDS_REPEATED)

    assert digests(SEEDS_REPEATED) == first
    assert len(set(first)) == SEEDS_REPEATED
    assert digests_of_another_process(SEEDS_REPEATED, "7") == first


@pytest.mark.slow
def test_a_seed_is_the_same_run_in_every_process() -> None:
    first = digests(SEEDS_REPEATED_SLOW)

    assert digests(SEEDS_REPEATED_SLOW) == first
    for hash_seed in ("0", "1", "4242"):
        assert digests_of_another_process(SEEDS_REPEATED_SLOW, hash_seed) == first
