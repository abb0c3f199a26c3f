"""How the tests ask `/v1`."""

import json
from functools import partial
from typing import Any

import trio
import trio.testing

from tests.contract import document
from tests.contract.stack import PROMISED, Answer, Server

PROMISED.update(
    {
        "unsupported_media_type": (415, "never", None),
        "unknown_queue": (404, "never", None),
        "queue_not_empty": (409, "never", None),
        "not_waiting": (409, "never", None),
        "not_finished": (409, "never", None),
        "already_finished": (409, "drop", None),
        "run_too_long": (409, "never", None),
        "unique_key_taken": (409, "never", None),
        "not_durable": (409, "never", None),
        "backup_running": (503, "later", "10"),
        "disk_full": (507, "later", "10"),
        "key_reused": (422, "never", None),
    }
)

Q = "/v1/queues/q"
"""The queue of most tests."""


async def ask(server: Server, method: str, target: str, body: object = None, **headers: str) -> Answer:
    """Asks with a body in JSON, or as it is if it is bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return check_codes(method, target, await server.ask(method, target, data, fields))


def check_codes(method: str, target: str, answer: Answer) -> Answer:
    """Asserts that the contract lists the error codes of an answer for its route."""
    told = document.codes(method, target.partition("?")[0])
    if method == "HEAD":
        return answer
    if answer.status >= 400:
        assert answer.json["code"] in told, (method, target)
    elif answer.body and answer.headers["content-type"] == "application/json":
        assert {job["error"]["code"] for job in answer.json.get("jobs", []) if "error" in job} <= told, (method, target)
    return answer


async def post(server: Server, target: str, body: object = None, **headers: str) -> Any:
    """The JSON of an answer that has to be 200."""
    answer = await ask(server, "POST", target, body, **headers)
    assert answer.status == 200, answer
    return answer.json


async def get(server: Server, target: str) -> Any:
    """The JSON of an answer that has to be 200."""
    answer = await ask(server, "GET", target)
    assert answer.status == 200, answer
    return answer.json


async def enqueue(server: Server, *jobs: dict[str, Any], queue: str = "q") -> list[int]:
    """The ids of new jobs; one of type `a` if none is described."""
    enqueued = await post(server, f"/v1/queues/{queue}/enqueue", {"jobs": jobs or [{"type": "a"}]})
    assert enqueued["errors"] == 0
    return [job["id"] for job in enqueued["jobs"]]


async def dequeue(server: Server, queue: str = "q", **wanted: object) -> list[dict[str, Any]]:
    """The jobs handed out."""
    jobs: list[dict[str, Any]] = (await post(server, f"/v1/queues/{queue}/dequeue", wanted))["jobs"]
    return jobs


async def lease(server: Server, queue: str = "q", **wanted: object) -> tuple[int, str]:
    """Id and token of the one job handed out."""
    (job,) = await dequeue(server, queue, **wanted)
    return job["id"], job["lease"]["token"]


async def refused(server: Server, method: str, target: str, body: object = None, **headers: str) -> tuple[Any, ...]:
    """Status, code and field of a refusal."""
    return (await ask(server, method, target, body, **headers)).problem


async def held(server: Server, *, queue: str = "q", **job: Any) -> dict[str, Any]:
    """A new job that has been handed out, as it is named in a body: `queue`, `id` and `token`."""
    (id_,) = await enqueue(server, {"type": "a", **job}, queue=queue)
    (leased,) = await dequeue(server, queue)
    assert leased["id"] == id_
    return {"queue": queue, "id": id_, "token": leased["lease"]["token"]}


async def state(server: Server, id_: int, queue: str = "q") -> str:
    """In which state a job is."""
    return str((await get(server, f"/v1/queues/{queue}/jobs/{id_}"))["state"])


class Asked:
    """An answer that a task of its own waits for."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.seconds = 0.0  # that it took

    @classmethod
    async def start(
        cls, nursery: trio.Nursery, server: Server, method: str, target: str, body: object = None, **headers: str
    ) -> "Asked":
        """Asks, and comes back when everybody waits."""
        asked = cls()
        nursery.start_soon(partial(asked._run, server, method, target, body, headers))
        await trio.testing.wait_all_tasks_blocked()
        return asked

    async def _run(self, server: Server, method: str, target: str, body: object, headers: dict[str, str]) -> None:
        began = trio.current_time()
        self.answer = await ask(server, method, target, body, **headers)
        self.seconds = trio.current_time() - began

    @property
    def json(self) -> Any:
        """The JSON of the answer, which has to be there, and 200."""
        assert self.answer is not None, "no answer yet"
        assert self.answer.status == 200, self.answer
        return self.answer.json

    @property
    def ids(self) -> list[int]:
        """The jobs it was given."""
        return [job["id"] for job in self.json["jobs"]]
