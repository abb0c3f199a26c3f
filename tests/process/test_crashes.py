"""The server is killed at random moments under load; what its clients saw must keep every promise of durability.

A seed repeats what the clients and the killer set out to do, but not how the machine interleaves them. A history that
breaks a promise is kept in `.cache/crashes/`; `python -m tests.process.recheck FILE` checks it again.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.process.clients import QUEUES, Client, Scene
from tests.process.history import Crash, Drained, Event, Violation, check, figures, to_lines
from tests.process.server import ANSWER_SECONDS, ROOT, START_SECONDS, Server, eventually

pytestmark = pytest.mark.process

KEPT = ROOT / ".cache/crashes"
KILLS = int(os.environ.get("CRASH_KILLS", "20"))
SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10**6))
CLIENTS = 8
HANG_UPS = 0.02
OPERATIONS_BETWEEN_KILLS = (100, 400)
RECOVERIES_KILLED = 0.15
"""The share of kills that strike while the server recovers from the one before."""
RECOVERY_SECONDS = 0.8
"""Within which such a kill strikes, counted from the start of the process."""
ANSWERS_SECONDS = 0.02
"""About the time between two answers to one client."""
SHOWN_VIOLATIONS = 20


def run(*, kills: int, seed: int, data: Path | None = None) -> list[Event]:
    """The history of a run: load, kills and restarts, more load, a drain, and a look at every job."""
    chance = random.Random(seed)  # noqa: S311 - a seed has to repeat it
    scene = Scene()
    threads = [
        threading.Thread(target=Client(scene, f"client{number}", seed, hang_ups=HANG_UPS).run, daemon=True)
        for number in range(CLIENTS)
    ]
    deaths: list[tuple[float, float]] = []
    try:
        for life in range(kills + 1):
            with Server("--bind", f"127.0.0.1:{scene.port}", *flags(chance, data)) as server:
                if deaths and life < kills and chance.random() < RECOVERIES_KILLED:
                    threading.Event().wait(chance.uniform(0, RECOVERY_SECONDS))
                else:
                    wait_recovered(server)
                    ready = time.monotonic()
                    scene.record(*(Crash(killed=killed, dead=dead, ready=ready) for killed, dead in deaths))
                    deaths.clear()
                    scene.comes_up(server)
                    if life == 0:
                        begin(scene, seed, threads)
                    scene.wait_for_more(chance.randint(*OPERATIONS_BETWEEN_KILLS))
                if life < kills:
                    deaths.append(kill(scene, server, after_seconds=chance.uniform(0, ANSWERS_SECONDS)))
                else:
                    finish(scene, seed, threads)
    except BaseException:
        print(f"seed {seed}: ended before its time; what was seen is in {keep(scene.events, seed=seed)}")
        raise
    finally:
        scene.end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    return scene.events


def flags(chance: random.Random, data: Path | None) -> list[str]:
    """Short sweeps, so that short leases are short. On disk each life keeps its jobs in another way."""
    chosen = {
        "--durability": chance.choice(("full", "normal")),
        "--recent-jobs": chance.choice((10, 10_000)),
        "--retention-seconds": chance.choice((3, 3_600)),
    }
    on_disk = {} if data is None else {"--data": data, **chosen}
    return [str(part) for flag in {"--sweep-seconds": 0.05, **on_disk}.items() for part in flag]


def wait_recovered(server: Server) -> None:
    """Wait until it takes work: it may listen before."""
    server.wait_ready()
    assert eventually(lambda: server.request("GET", "/readyz").status == 200, seconds=START_SECONDS)


def begin(scene: Scene, seed: int, threads: list[threading.Thread]) -> None:
    operator = Client(scene, "operator", seed)
    for queue in QUEUES:
        operator.put_policy(queue)
    operator.hang_up()
    for thread in threads:
        thread.start()


def kill(scene: Scene, server: Server, *, after_seconds: float) -> tuple[float, float]:
    """Kill it, some moments after an answer rather than with it; when it was killed, and when it was gone."""
    scene.goes_down()
    threading.Event().wait(after_seconds)
    killed = time.monotonic()
    server.send_signal(signal.SIGKILL)
    assert server.wait(seconds=ANSWER_SECONDS) == -signal.SIGKILL, "it had ended by itself"
    return killed, time.monotonic()


def finish(scene: Scene, seed: int, threads: list[threading.Thread]) -> None:
    scene.end()
    for thread in threads:
        thread.join()
    operator = Client(scene, "operator", seed)
    for queue in QUEUES:
        operator.drain(queue)
    scene.record(Drained(at=time.monotonic()))
    for queue in QUEUES:
        operator.read_all(queue)
    operator.hang_up()


def judge(history: list[Event], *, seed: int) -> list[Violation]:
    """Check a history, print its seed and figures, and keep it if it breaks a promise."""
    began = time.monotonic()
    violations = check(history)
    print(f"\nseed {seed}: {figures(history)}; checked in {time.monotonic() - began:.1f} s")
    if violations:
        print(f"{len(violations)} violations: {dict(Counter(violation.name for violation in violations))}")
        print(*violations[:SHOWN_VIOLATIONS], sep="\n")
    return violations


def keep(history: list[Event], *, seed: int) -> Path:
    """Write a history where it can be checked again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"seed-{seed}.ndjson"
    path.write_bytes(to_lines(history))
    return path


def test_a_run_without_a_kill_keeps_every_promise() -> None:
    history = run(kills=0, seed=SEED)
    counted = figures(history)

    assert judge(history, seed=SEED) == [], keep(history, seed=SEED)
    assert counted.concluded + counted.open_calls >= counted.enqueued > 0  # of those no answer was seen
    assert counted.kills == 0


def test_a_server_without_a_data_directory_is_found_to_lose_its_jobs_when_it_is_killed() -> None:
    """The checker sees what it is for: the same run against memory breaks the promises."""
    history = run(kills=3, seed=SEED)
    names = {violation.name for violation in judge(history, seed=SEED)}

    assert {"lost", "id_given_twice"} <= names


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_keeps_every_promise(tmp_path: Path) -> None:
    history = run(kills=KILLS, seed=SEED, data=tmp_path / "data")

    assert judge(history, seed=SEED) == [], keep(history, seed=SEED)
    assert figures(history).kills == KILLS


def test_a_kill_changes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """What the checker leaves out: priorities, delays, the jobs field by field, and the name of the queue's life."""
    on_disk = ("--bind", "127.0.0.1:0", "--data", str(tmp_path / "data"))
    jobs = [{"type": "t", "payload": number, "priority": number % 3} for number in range(6)]
    with Server(*on_disk) as server:
        wait_recovered(server)
        post(server, "enqueue", {"jobs": [*jobs, {"type": "late", "delay_seconds": 3600, "unique_key": "k"}]})
        first, second, third = post(server, "dequeue", {"count": 3, "lease_seconds": 60})["jobs"]
        post(server, f"jobs/{first['id']}/conclude", {"token": token(first), "result": {"a": [1, 2]}})
        post(server, f"jobs/{second['id']}/release", {"token": token(second)})
        before = server.request("GET", "/v1/queues/q/jobs?include=content")
        server.send_signal(signal.SIGKILL)
        server.wait(seconds=ANSWER_SECONDS)

    with Server(*on_disk) as server:
        wait_recovered(server)
        after = server.request("GET", "/v1/queues/q/jobs?include=content")
        assert after.headers["Queue-Instance"] == before.headers["Queue-Instance"]
        (lease_before,) = (job.pop("lease") for job in before.body["jobs"] if job["lease"])
        (lease_after,) = (job.pop("lease") for job in after.body["jobs"] if job["lease"])
        assert after.body == before.body
        assert lease_after["fence"] == lease_before["fence"]
        assert lease_after["seconds"] == lease_before["seconds"]

        assert post(server, f"jobs/{third['id']}/conclude", {"token": token(third)})["state"] == "concluded"
        assert post(server, f"jobs/{first['id']}/conclude", {"token": token(first)})["state"] == "concluded"
        again = {"jobs": [{"type": "late", "unique_key": "k"}, {"type": "new"}]}
        assert [job["id"] for job in post(server, "enqueue", again)["jobs"]] == [7, 8]
        rest = post(server, "dequeue", {"count": 10})["jobs"]
        # By priority, and then by place; the one that was released keeps its own.
        assert [job["id"] for job in (first, second, third)] == [3, 6, 2]
        assert [job["id"] for job in rest] == [6, 5, 1, 4, 8]
        assert min(job["lease"]["fence"] for job in rest) > third["lease"]["fence"]


def test_a_lease_that_starts_again_after_a_kill_tells_its_new_end(tmp_path: Path) -> None:
    on_disk = ("--bind", "127.0.0.1:0", "--data", str(tmp_path / "data"))
    with Server(*on_disk) as server:
        wait_recovered(server)
        post(server, "enqueue", {"jobs": [{"type": "t"}]})
        (job,) = post(server, "dequeue", {"lease_seconds": 60})["jobs"]
        server.send_signal(signal.SIGKILL)
        server.wait(seconds=ANSWER_SECONDS)

    with Server(*on_disk) as server:
        wait_recovered(server)
        lease = server.request("GET", f"/v1/queues/q/jobs/{job['id']}").body["lease"]
        assert lease["expires_at"] > job["lease"]["expires_at"]


def post(server: Server, path: str, body: object) -> Any:
    answer = server.request("POST", f"/v1/queues/q/{path}", body)
    assert answer.status == 200, answer.body
    return answer.body


def token(job: Any) -> str:
    text: str = job["lease"]["token"]
    return text
