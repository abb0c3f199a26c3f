"""The machines of `test_model.py`, driven by a seeded generator: many more lives a second than Hypothesis makes.

Hypothesis draws with care and shrinks what fails; half of its time is its own. Here its strategies, which say what may
be drawn, are made into functions that draw plainly, and a life that fails is shrunk by leaving steps out. A life is
made of its seed and its number alone, so that the report of a failure is all that is needed to see it again.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis.stateful import Rule, RuleBasedStateMachine
from hypothesis.strategies import SearchStrategy

Draw = Callable[[Callable[[], float]], Any]
"""What makes up one value, given a source of numbers from 0 to below 1."""


def drawn_plainly(strategy: SearchStrategy[Any]) -> Draw:  # noqa: PLR0911 - a line for each kind of strategy
    """A strategy as a function.

    What is read here is private to Hypothesis: a kind of strategy that is not known by its name is an error, and an
    attribute that went away is one, too.

    Raises:
        NotImplementedError: It is of a kind that is not known here.
    """
    it: Any = strategy
    match type(strategy).__name__:
        case "LazyStrategy":
            return drawn_plainly(it.wrapped_strategy)
        case "SampledFromStrategy" | "JustStrategy" if not it._transformations:
            values = tuple(it.elements)
            return lambda source: values[int(source() * len(values))]
        case "BooleansStrategy":
            return lambda source: source() < 0.5
        case "IntegersStrategy":
            low, count = it.start, it.end - it.start + 1
            return lambda source: low + int(source() * count)
        case "TupleStrategy":
            parts = [drawn_plainly(part) for part in it.element_strategies]
            return lambda source: tuple([part(source) for part in parts])
        case "ListStrategy" if it.max_size < math.inf:
            low, count, element = it.min_size, it.max_size - it.min_size + 1, drawn_plainly(it.element_strategy)
            return lambda source: [element(source) for _ in range(low + int(source() * count))]
        case "BuildsStrategy" if not it.args:
            target, fields = it.target, named(it.kwargs)
            return lambda source: target(**{name: field(source) for name, field in fields})
        case "OneOfStrategy":
            either = [drawn_plainly(one) for one in it.original_strategies]
            return lambda source: either[int(source() * len(either))](source)
        case kind:
            raise NotImplementedError(f"{kind}: {strategy!r}")


def named(strategies: dict[str, SearchStrategy[Any]]) -> list[tuple[str, Draw]]:
    return [(name, drawn_plainly(strategy)) for name, strategy in strategies.items()]


@dataclass(frozen=True, slots=True)
class Step:
    """A rule of a machine, and what it is called with."""

    rule: Rule
    arguments: dict[str, Any]

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"machine.{self.rule.function.__name__}({said})"


class Lives:
    """All lives that a seed makes of a machine."""

    def __init__(self, machine: type[RuleBasedStateMachine], seed: int, steps: int) -> None:
        self._machine = machine
        self._seed = seed
        self._steps = steps
        state = machine.setup_state()
        assert not state.invariants, "nobody looks at them here"
        (begin,) = state.initializers
        self._begin = begin, named(begin.arguments)
        self._rules = [(rule, named(rule.arguments)) for rule in state.rules]

    def live(self, number: int) -> None:
        """Live one of them.

        Raises:
            AssertionError: It failed. The steps that are told are enough for that.
        """
        try:
            self._carry_out(self.made_up(number))
        except Exception as failure:
            told = "\n".join(map(str, self.shrunk(number)))
            raise AssertionError(f"seed {self._seed}, life {number}:\n{told}") from failure

    def made_up(self, number: int) -> Iterator[Step]:
        """What one sets out to do, for ever."""
        source = Random(f"{self._seed}/{number}").random  # noqa: S311 - to be repeated
        rule, arguments = self._begin
        while True:
            yield Step(rule, {name: draw(source) for name, draw in arguments})
            rule, arguments = self._rules[int(source() * len(self._rules))]

    def shrunk(self, number: int) -> Sequence[Step]:
        """What little of a life that fails is enough for that: Zeller's delta debugging, with ever smaller parts."""
        steps: Sequence[Step] = self._steps_until_failure(number)
        size = len(steps) // 2
        while size:
            first = 1  # the beginning stays
            while first < len(steps):
                fewer = [*steps[:first], *steps[first + size :]]
                if self._fails(fewer):
                    steps = fewer
                else:
                    first += size
            size //= 2
        return steps

    def _steps_until_failure(self, number: int) -> list[Step]:
        steps: list[Step] = []

        def noted() -> Iterator[Step]:
            for step in self.made_up(number):
                steps.append(step)
                yield step

        assert self._fails(noted()), "it depends on more than its seed and its number"
        return steps

    def _fails(self, steps: Iterable[Step]) -> bool:
        try:
            self._carry_out(steps)
        except Exception:  # noqa: BLE001 - of whatever kind: what it is will be told by the last one
            return True
        return False

    def _carry_out(self, steps: Iterable[Step]) -> None:
        """Take those steps that can be taken, so many of them at most."""
        machine = self._machine()
        taken = 0
        try:
            for step in steps:
                if all(holds(machine) for holds in step.rule.preconditions):
                    step.rule.function(machine, **step.arguments)
                    taken += 1
                if taken == 1 + self._steps:
                    break
        finally:
            machine.teardown()
