"""Fixtures that several test modules share."""

from collections.abc import AsyncIterator

import hypothesis
import pytest

from queue_actor.engine import Engine
from queue_actor.settings import Settings
from tests.fakes import SECRET, FakeClock, FakeStore, in_virtual_time
from tests.opening import DURABLE, IN_MEMORY, open_engine

pytest.register_assert_rewrite("tests.contract.stack")

# The machines that run these are slow and noisy at times: how long an example takes says nothing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that start processes together, and run in virtual time what is marked so.

    What is slow is not counted for coverage, which would make it slower still: the quick tests have to cover the code.
    pytest-trio has put its own mark already, and heeds the first.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)
        if item.get_closest_marker("process"):
            item.add_marker(pytest.mark.xdist_group("process"))
        if item.get_closest_marker("virtual_time") and item.get_closest_marker("trio"):
            item.add_marker(pytest.mark.trio(run=in_virtual_time), append=False)


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
