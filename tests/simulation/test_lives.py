"""Many lives of the machines of `test_model.py` and `test_durable_model.py`, over all cores: see `lives.py`."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from random import Random, SystemRandom
from time import perf_counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.simulation.lives import Lives, drawn_plainly
from tests.simulation.test_durable_model import DurableModelMachine
from tests.simulation.test_model import ModelMachine, small_limits, with_small_limits

__all__ = ["small_limits"]  # the fixture

LIVES = int(os.environ.get("MODEL_LIVES", "200"))
"""Set by `scripts/test.sh --model N`."""

SEED = int(os.environ.get("MODEL_SEED") or SystemRandom().randrange(10**6))
STEPS = 30  # some 65 commands
LOOKED_AT_EVERY = 4  # commands; at each one would be half of the time, and what differs goes on to differ
AT_ONCE = 100
SAME_LIVES = 150
TELLING_SECONDS = 60.0

# --- the machines


def live_some(machine: type[ModelMachine], first: int, number: int) -> set[tuple[str, str, str]]:
    """Live so many, in a process of their own; return which transitions were made."""
    machine.reached = set()
    machine.looked_at_every = LOOKED_AT_EVERY
    lives = Lives(machine, SEED, STEPS)
    if machine is DurableModelMachine:  # the limits are those of its store's queries
        for life in range(first, first + number):
            lives.live(life)
    else:
        with with_small_limits():
            for life in range(first, first + number):
                lives.live(life)
    return machine.reached


@pytest.mark.parametrize(("machine", "number"), [(ModelMachine, LIVES), (DurableModelMachine, LIVES // 100)])
def test_in_many_lives_the_queue_does_what_the_model_does(machine: type[ModelMachine], number: int) -> None:
    started = told = perf_counter()
    reached: set[tuple[str, str, str]] = set()
    done = 0
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = [
            pool.submit(live_some, machine, first, min(AT_ONCE, number - first)) for first in range(0, number, AT_ONCE)
        ]
        for part in as_completed(parts):
            reached |= part.result()
            done += AT_ONCE
            if perf_counter() > told + TELLING_SECONDS:
                told = perf_counter()
                print(f"{machine.__name__}, seed {SEED}: {done:,} lives in {told - started:.0f} s", flush=True)
    print(f"{machine.__name__}, seed {SEED}: {number:,} lives, {len(reached)} transitions, nothing found")


@pytest.mark.usefixtures("small_limits")
def test_in_some_lives_that_are_always_the_same_the_queue_does_what_the_model_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quick, within this process and without chance: `scripts/mutate.sh` lets it look at each change of the code."""
    monkeypatch.setattr(ModelMachine, "looked_at_every", LOOKED_AT_EVERY)
    lives = Lives(ModelMachine, 1, STEPS)
    for life in range(SAME_LIVES):
        lives.live(life)


# --- what drives them


class Counter(RuleBasedStateMachine):
    """Must not come to 10, if it was armed."""

    @initialize(start=st.integers(1, 2))
    def begin(self, start: int) -> None:
        self.value, self.armed = start, False

    @rule()
    def arm(self) -> None:
        self.armed = True

    @precondition(lambda self: self.armed)
    @rule(more=st.sampled_from((1, 3)), _name=st.none() | st.just("x"))
    def add(self, more: int, _name: str | None) -> None:
        self.value += more
        assert self.value < 10

    @rule(_flags=st.lists(st.booleans(), max_size=2))
    def rest(self, _flags: list[bool]) -> None: ...


def test_a_life_that_fails_is_told_by_the_steps_that_are_needed() -> None:
    with pytest.raises(AssertionError, match=r"seed 1, life 0:\nmachine.begin") as told:
        Lives(Counter, 1, 100).live(0)

    steps = str(told.value).splitlines()[1:]
    assert [step.partition("(")[0] for step in steps[:2]] == ["machine.begin", "machine.arm"]
    assert {step.partition("(")[0] for step in steps[2:]} == {"machine.add"}
    assert len(steps) <= 2 + 8


def test_a_life_is_made_of_its_seed_and_number() -> None:
    def story(seed: int, number: int) -> str:
        steps = Lives(ModelMachine, seed, 0).made_up(number)
        return "\n".join(str(next(steps)) for _ in range(50))

    assert story(1, 2) == story(1, 2)
    assert len({story(seed, number) for seed in (1, 2) for number in (1, 2)}) == 4


def test_a_life_is_as_long_as_it_is_asked_to_be() -> None:
    taken: list[int] = []

    class Counting(Counter):
        def teardown(self) -> None:
            taken.append(self.value)

        @rule()
        def arm(self) -> None:
            self.value += 100

        rest = arm

    Lives(Counting, 1, 7).live(0)
    assert taken[0] // 100 == 7


def test_what_is_drawn_is_what_the_strategy_may_draw() -> None:
    strategy = st.tuples(
        st.integers(-1, 1),
        st.sampled_from("ab"),
        st.none() | st.booleans(),
        st.lists(st.just(0), min_size=1, max_size=2),
    )
    draw, source = drawn_plainly(strategy), Random(1).random  # noqa: S311 - to be repeated
    drawn = [draw(source) for _ in range(500)]

    for place, values in enumerate(({-1, 0, 1}, {"a", "b"}, {None, True, False})):
        assert {one[place] for one in drawn} == values
    assert {len(one[3]) for one in drawn} == {1, 2}


@pytest.mark.parametrize("strategy", [st.text(), st.lists(st.none()), st.integers(0, 3).map(str), st.floats(0, 1)])
def test_a_strategy_that_is_not_known_is_refused(strategy: st.SearchStrategy[object]) -> None:
    with pytest.raises(NotImplementedError):
        drawn_plainly(strategy)
