"""Jobs to look at, and what is done to them by others than who looks."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from tests.process.server import Server

Q = "/v1/queues/images"


def enqueue(
    server: Server, *jobs: dict[str, Any], queue: str = "images", headers: dict[str, str] | None = None
) -> list[int]:
    answer = server.request("POST", f"/v1/queues/{queue}/enqueue", {"jobs": jobs or ({"type": "resize"},)}, headers)
    assert answer.status == 200, answer
    return [job["id"] for job in answer.body["jobs"]]


def dequeue(server: Server, count: int = 1, queue: str = "images", consumer: str = "w1") -> list[dict[str, Any]]:
    wanted = {"count": count, "consumer": consumer}
    jobs: list[dict[str, Any]] = server.request("POST", f"/v1/queues/{queue}/dequeue", wanted).body["jobs"]
    return jobs


def end(server: Server, job: dict[str, Any], verb: str = "conclude", **more: Any) -> None:
    path = f"/v1/queues/{job['queue']}/jobs/{job['id']}/{verb}"
    assert server.request("POST", path, {"token": job["lease"]["token"], **more}).status == 200


def state(server: Server, id_: int, queue: str = "images") -> str:
    return str(server.request("GET", f"/v1/queues/{queue}/jobs/{id_}").body["state"])


@contextmanager
def asking(server: Server, wanted: dict[str, Any], queue: str = "images") -> Iterator[None]:
    """Within the block somebody waits for a job."""
    body = json.dumps(wanted).encode()
    head = f"POST /v1/queues/{queue}/dequeue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with closing(server.connect()) as connection:
        connection.sendall(head.encode() + body)
        yield


def furnish(server: Server) -> None:
    """Jobs in all states: 1 concluded, 2 dead, 3 in progress, 4 queued, 5 scheduled, 6 cancelled."""
    enqueue(server, *[{"type": "resize", "payload": {"w": 1280, "big": 12345678901234567890}, "meta": {"a": "b"}}] * 4)
    enqueue(server, {"type": "resize", "delay_seconds": 3_600}, {"type": "resize"})
    done, failed, _held = dequeue(server, 3)
    end(server, done, result={"bytes": 48_213})
    end(server, failed, "fail", retry=False, error={"type": "Timeout", "message": "no answer\nfrom the server"})
    server.request("POST", f"{Q}/jobs/6/cancel")


PAGES = {
    "#/": "Queues",
    "#/queues/images": "images",
    "#/queues/images/jobs": "Jobs of images",
    "#/queues/images/jobs/2": "Job 2",
    "#/queues/images/jobs/3": "Job 3",
    "#/health": "Health",
    "#/queues/images/jobs/99": "There is no such thing",
}
