"""The order in which tasks run can be repeated: what every simulation rests on."""

import pytest
import trio

from queue_actor.virtual import HOOKS, seed_order
from tests.fakes import in_seeded_virtual_time


async def order_of_steps() -> str:
    """Which of ten tasks took each of a hundred steps."""
    steps = []

    async def take_steps(name: str) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            steps.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abcdefghij":
            nursery.start_soon(take_steps, name)
    return "".join(steps)


def test_the_same_seed_runs_tasks_in_the_same_order_and_another_seed_in_another_order() -> None:
    first, again, *others = (in_seeded_virtual_time(seed, order_of_steps) for seed in (1, 1, 2, 3, 4, 5))

    assert first == again, HOOKS
    assert len({first, *others}) == 5, HOOKS


def test_the_order_can_be_begun_anew_within_a_run() -> None:
    async def main() -> list[str]:
        orders = []
        for seed in (7, 8, 7):
            seed_order(seed)
            orders.append(await order_of_steps())
        return orders

    first, other, again = in_seeded_virtual_time(1, main)
    assert first == again != other, HOOKS


@pytest.mark.parametrize("name", ["_ALLOW_DETERMINISTIC_SCHEDULING", "_r"])
def test_if_trio_has_not_the_names_any_more_it_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(trio._core._run, name)

    with pytest.raises(RuntimeError, match=r"change `seed_order` in queue_actor/virtual\.py"):
        seed_order(1)
