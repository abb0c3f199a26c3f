"""Each planted bug is found by the simulation, and soon."""

import pytest

from tests.simulation.planted import BUGS, planted
from tests.simulation.simulate import run_seed

SEEDS_MAX = 200

QUICK = ("answered_before_the_commit", "fence_not_checked", "waiter_leaked")
"""Those that are looked for in every run of the tests."""


def seeds_until_found(bug: str) -> tuple[int, str]:
    """How many seeds it takes, and what is violated then."""
    for count in range(1, SEEDS_MAX + 1):
        with planted(bug):
            run = run_seed(count)
        if run.violation is not None:
            return count, str(run.violation)
    return SEEDS_MAX + 1, ""


@pytest.mark.parametrize("bug", QUICK)
def test_a_bug_is_found(bug: str) -> None:
    count, _ = seeds_until_found(bug)

    assert count <= SEEDS_MAX


@pytest.mark.slow
@pytest.mark.parametrize("bug", sorted(BUGS.keys() - set(QUICK)))
def test_every_planted_bug_is_found(bug: str) -> None:
    count, violation = seeds_until_found(bug)

    print(f"{bug}: seed {count}: {violation[:100]}")
    assert count <= SEEDS_MAX


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 25
