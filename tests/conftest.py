"""Fixtures that several test modules share."""

import sys
from collections.abc import AsyncIterator, Generator

import hypothesis
import pytest

from queue_actor.engine import Engine
from queue_actor.settings import Settings
from tests.fakes import SECRET, FakeClock, FakeStore, in_virtual_time
from tests.opening import DURABLE, IN_MEMORY, open_engine

pytest.register_assert_rewrite("tests.contract.stack")

# The machines that run these are slow and noisy at times: how long an example takes, or is made up for, says nothing.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


BY_CHANCE = {"browser", "simulation"}
"""Folders of tests that leave to chance, or to other processes, what they reach."""


def is_counted(item: pytest.Item) -> bool:
    """Whether what a test reaches counts as covered: what is reached slowly, or by chance, others have to reach."""
    is_random = item.path.parent.name in BY_CHANCE and item.path.name != "test_regressions.py"
    is_made_up = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    return not (item.get_closest_marker("slow") or is_random or is_made_up)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that start processes together, and run in virtual time what is marked so.

    pytest-trio has put its own mark already, and heeds the first.
    """
    for item in items:
        if item.get_closest_marker("process"):
            item.add_marker(pytest.mark.xdist_group("process"))
        if item.get_closest_marker("virtual_time") and item.get_closest_marker("trio"):
            item.add_marker(pytest.mark.trio(run=in_virtual_time), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count coverage only where it means something: that makes a test three times as slow.

    The mark that pytest-cov has for it does nothing in the processes of pytest-xdist.
    """
    counting = sys.gettrace()
    if not is_counted(item):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(counting)


@pytest.fixture(params=[*IN_MEMORY, DURABLE])
def settings(request: pytest.FixtureRequest) -> Settings:
    """The default settings, once for each engine."""
    if request.param == DURABLE:
        return Settings(data="in memory")
    return Settings(engine=request.param)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def engine(settings: Settings, clock: FakeClock, store: FakeStore) -> AsyncIterator[Engine]:
    """A running engine with the default settings."""
    async with open_engine(settings, clock=clock, store=store, secret=SECRET) as opened:
        yield opened
