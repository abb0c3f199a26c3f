"""The whole state of an engine, made comparable: a refused command must leave it exactly as it was."""

import gc
import sys
from array import array
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from msgspec import Struct
from sortedcontainers import SortedList

from queue_actor.commands import Enqueued
from queue_actor.deadlines import Deadlines
from queue_actor.engine import Engine
from queue_actor.ids import ByIds
from queue_actor.ready import TOMBSTONE, Ready
from queue_actor.settings import Settings
from queue_actor.state_machine import StateMachine
from queue_actor.tokens import Tokens


def whole_state(engine: Engine) -> object:
    """A deep copy of whatever the engine's state machine remembers, and how many requests are parked."""
    machine = machine_of(engine)
    # The first is told, the second paces the sweeps, and the others tell of what there is, for who looks.
    beside = {"disk_room_bytes", "_swept_revision", "_trends", "_surveyor"}
    remembered = {name: value for name, value in vars(machine).items() if name not in beside}
    return frozen(remembered), engine.statistics()


def machine_of(engine: Engine) -> StateMachine:
    """The state machine, which is nobody's business but the engine's."""
    machine: StateMachine = engine._machine  # type: ignore[attr-defined] # all engines have one
    return machine


def frozen(thing: Any) -> object:  # noqa: PLR0911 - one for each kind of thing
    """A copy that no later command can change.

    Two structures are told by what they mean, since how they lie in memory is their own affair: `Deadlines` drop
    their dead entries, and `Ready` compacts its arrays, whenever they are looked at.
    """
    match thing:
        case Settings() | Tokens():
            return None  # they never change
        case Deadlines():
            return deadlines_of(thing)
        case Ready():
            return in_order(thing)
        case Enqueued(jobs):
            return frozen(jobs)  # among them are refusals, which are equal to nothing but themselves
        case None | str() | bytes() | int() | float() | Enum() | Struct():
            return thing
        case dict() | ByIds():
            return [(frozen(key), frozen(value)) for key, value in thing.items() if not callable(value)]
        case list() | tuple() | array() | SortedList():
            return [frozen(each) for each in thing]
        case set() | frozenset():
            return frozenset(thing)
        case Exception():
            return type(thing), thing.args
        case _:
            names = vars(thing) if hasattr(thing, "__dict__") else type(thing).__slots__
            return type(thing).__name__, [(name, frozen(getattr(thing, name))) for name in names]


def deadlines_of(deadlines: Deadlines) -> dict[tuple[str, int], float]:
    """The deadline of each job, by its queue and id."""
    return {(queue, id_): run.deadline for queue, runs in deadlines._runs.items() for id_, run in runs.items()}


def in_order(ready: Ready) -> list[tuple[int, int, int]]:
    """The ready jobs as (priority, place, id)."""
    jobs: list[tuple[int, int, int]] = []
    for priority, band in ready._bands.items():
        ids, places = band.array._ids, band.array._places
        runs = (range(band.array._head, band.array._write), range(band.array._read, band.array._tail))
        jobs += [(priority, places[slot], ids[slot]) for run in runs for slot in run if ids[slot] != TOMBSTONE]
        jobs += [(priority, place, id_) for place, id_ in band.returned._by_place.items()]
    return sorted(jobs)


def size_bytes(engine: Engine) -> int:
    """The bytes of all objects that the engine's state machine refers to, however indirectly."""
    code = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)
    seen: set[int] = set()
    todo: list[Any] = [machine_of(engine)]
    size = 0
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and not isinstance(thing, code):
            seen.add(id(thing))
            size += sys.getsizeof(thing)
            todo += gc.get_referents(thing)
    return size
