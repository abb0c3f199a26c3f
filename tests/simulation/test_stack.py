"""The whole server in worlds made up from seeds, and what proves that such a world finds what is wrong.

`scripts/test.sh --simulate N` runs N // 20 worlds, beginning with the seed that it is given, in place of those of every
run.
"""

import os
import re
import subprocess
import sys
import traceback
from collections import Counter

import pytest
import trio

from queue_actor.settings import Settings
from tests.contract.stack import build, serving
from tests.simulation.stack_bugs import PLANTED, Planted
from tests.simulation.stack_world import simulate
from tests.simulation.wires import Reader, connection

WANTED = max(1, int(os.environ["SIMULATE_SEEDS"]) // 20) if "SIMULATE_SEEDS" in os.environ else None
FIRST = int(os.environ.get("SIMULATE_SEED") or 0)
SEEDS_SHORT = 4
SEEDS = range(FIRST, FIRST + (WANTED or SEEDS_SHORT))
SEEDS_SLOW = 50
CHUNK_SEEDS = 5
"""Worlds a test, so that two workers share all of them."""
SEEDS_TO_FIND = 200
"""Within which a planted bug has to be found."""


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_clients_do_the_server_keeps_its_promises(seed: int) -> None:
    world = simulate(seed)

    print(world)
    # Enough happened for that to mean something.
    assert world.life == (4 if world.durable else 1), world
    assert sum(world.answered.values()) > 100, world
    assert sum(number for way, number in world.met.items() if way.startswith("left")) > 20, world


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS_SHORT, SEEDS_SLOW, CHUNK_SEEDS))
def test_in_many_worlds_the_server_keeps_its_promises(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, min(first + CHUNK_SEEDS, SEEDS_SLOW)):
        world = simulate(seed)
        seen += world.answered + world.met

    ways = {f"left: {way}" for way in ("reset", "close", "half-close", "silence")}
    assert {*ways, "cut: restart", "200", "409 lease_lost"} <= set(seen), seen


# --- a seed repeats a world


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    first, again, other = (simulate(seed, requests=60).trace for seed in (7, 7, 9))

    assert (first.digest, first.steps) == (again.digest, again.steps)
    assert first.digest != other.digest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_seed_makes_the_same_world_in_every_process(seed: int) -> None:
    told = set()
    for hash_seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.simulation.stack_world", str(seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        told.add(done.stdout.splitlines()[-1])

    assert told == {simulate(seed).trace.digest}


# --- what was found


@pytest.mark.virtual_time
@pytest.mark.parametrize("window_bytes", [10, 65_536])
async def test_the_answer_to_a_stream_is_whole_for_a_client_that_has_sent_more_behind_it(window_bytes: int) -> None:
    """It is the last one on its connection. A close with something unread would have TCP take back what was sent."""
    headers = [("Content-Type", "application/x-ndjson")]
    sent = build("POST", "/v1/queues/q/enqueue", b'{"type": "a"}\n' * 3, headers) + build("GET", "/healthz") * 2
    async with serving(Settings()) as server, trio.open_nursery() as nursery:
        ours, theirs = connection(there_bytes=100, back_bytes=window_bytes)
        server.accept(theirs)
        nursery.start_soon(ours.send_all, sent)
        answer = await Reader(ours, pause_seconds=0.01).read("POST")

        assert (answer.status, answer.json["count"], answer.headers["connection"]) == (200, 3, "close")
        assert await ours.receive_some() == b""
        ours.close()
        server.answers = len(server.request_lines)


@pytest.mark.virtual_time
@pytest.mark.parametrize("window_bytes", [10, 65_536])
async def test_the_answer_to_a_wait_that_a_drain_ends_is_whole_for_such_a_client_too(window_bytes: int) -> None:
    sent = build("POST", "/v1/queues/q/dequeue", b'{"wait_seconds": 5}') + build("GET", "/healthz") * 2
    async with serving(Settings()) as server, trio.open_nursery() as nursery:
        ours, theirs = connection(there_bytes=100, back_bytes=window_bytes)
        server.accept(theirs)
        nursery.start_soon(ours.send_all, sent)
        await trio.sleep(1)
        await server.drain()
        answer = await Reader(ours, pause_seconds=0.01).read("POST")

        assert (answer.status, answer.json, answer.headers["connection"]) == (200, {"jobs": []}, "close")
        ours.close()
        server.answers = len(server.request_lines)


# --- planted bugs


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.plant.__name__)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, planted: Planted) -> None:
    planted.plant(monkeypatch)

    text = ""
    for seed in range(1 if planted.durable else 0, SEEDS_TO_FIND, 2 if planted.durable else 1):
        try:
            simulate(seed)
        except Exception as found:  # noqa: BLE001 - whatever it is, it has to say what is wrong
            text = "".join(traceback.format_exception(found))
            break
    assert re.search(planted.sign, text), text or "it was not found"
