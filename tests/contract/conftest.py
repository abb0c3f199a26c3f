"""Fixtures for the contract tests over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from msgspec.structs import replace

from queue_actor.settings import Settings
from tests.contract.stack import Server, serving
from tests.fakes import FakeClock, FakeStore

Serve = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
async def server(settings: Settings, clock: FakeClock, store: FakeStore) -> AsyncIterator[Server]:
    """A server with the default settings, once for each engine."""
    async with serving(settings, clock=clock, store=store) as server:
        yield server


@pytest.fixture
def serve(settings: Settings, clock: FakeClock, store: FakeStore) -> Serve:
    """Makes servers some settings of which are not the default."""

    def with_settings(store: FakeStore = store, **values: Any) -> AbstractAsyncContextManager[Server]:
        return serving(replace(settings, **values), clock=clock, store=store)

    return with_settings
