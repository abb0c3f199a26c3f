"""Puts the parts together, in a block that is the lifetime of the queue.

    async with open_engine(settings) as engine:
        await engine.execute(...)

The order of its end is the order of the lines: who waits for a job is sent home, the timer stops, the inbox closes,
what it held is answered.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from queue_actor.actor import ActorEngine
from queue_actor.durable import Data, DurableEngine
from queue_actor.engine import Clock, Engine, system_clock
from queue_actor.engines.lock import LockEngine
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.store import MemoryStore, Store
from queue_actor.sweeper import Sweeper
from queue_actor.tokens import SECRET_BYTES

INSTANCE_BYTES = 8

FAREWELL_SECONDS = 1.0
"""How long an engine that failed waits for its callers to pass on that they have no answer."""

ENGINES: dict[str, Callable[[Settings, StateMachine, Store, Clock, Sweeper], Engine]] = {
    "actor": ActorEngine,
    "lock": LockEngine,
}


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    clock: Clock = system_clock,
    store: Store | None = None,
    secret: bytes | None = None,
    data: Data | None = None,
) -> AsyncIterator[Engine]:
    """An engine that runs inside the block.

    Args:
        settings: All settings.
        clock: What tells the time.
        store: Where changes go; nowhere unless it is given.
        secret: For the tokens; random unless it is given.
        data: The store and the archive of a data directory, in place of `store` and `secret`. The engine refuses
            commands as long as it reads the jobs; `Engine.ready` is the end of that.

    Raises:
        BaseExceptionGroup: The engine failed; the block was cancelled.
    """
    sweeper = Sweeper(settings.sweep_seconds)
    engine: Engine
    if data is not None:
        make, kept = ENGINES[settings.engine], data.store
        engine = DurableEngine(settings, data, clock, lambda machine: make(settings, machine, kept, clock, sweeper))
    else:
        machine = StateMachine(settings, secret=secret or secrets.token_bytes(SECRET_BYTES))
        forgetful = store or MemoryStore(secrets.token_hex(INSTANCE_BYTES))
        engine = ENGINES[settings.engine](settings, machine, forgetful, clock, sweeper)
    left = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, engine, left)
        async with trio.open_nursery() as timer:
            timer.start_soon(_sweep, sweeper, engine)
            try:
                yield engine
            finally:
                left.set()
                engine.drain()
                timer.cancel_scope.cancel()
        engine.close()


async def _sweep(sweeper: Sweeper, engine: Engine) -> None:
    await engine.ready.wait()
    await sweeper.run(engine)


async def _run(engine: Engine, left: trio.Event) -> None:
    try:
        await engine.run()
    except trio.Cancelled:
        raise
    except BaseException:
        # Cancelling the block at once would cut off those who are just telling their clients.
        engine.failed.set()
        with trio.move_on_after(FAREWELL_SECONDS, shield=True):
            await left.wait()
        raise
