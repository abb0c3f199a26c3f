"""Exports that are broken off between queues, and what is left of jobs that are imported."""

import json
from pathlib import Path
from typing import Any

from tests.unit.commandline.conftest import Command, FakeServer, job_document, queue_document

QUEUES = "GET /v1/queues"


def page(*jobs: dict[str, Any], then: str | None = None) -> dict[str, Any]:
    return {"jobs": jobs, "next_cursor": then}


def test_an_export_goes_on_at_the_page_of_the_queue_where_it_ended(
    command: Command, server: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "all.ndjson"
    server.answers(QUEUES, {"queues": [queue_document("b"), queue_document("a")], "next_cursor": None})
    server.answers("GET /v1/queues/a/jobs", page(job_document(1)))
    server.answers("GET /v1/queues/b/jobs", page(job_document(2), then="2"))
    server.breaks("GET /v1/queues/b/jobs")
    assert command("export", "--all", "-o", str(file)).code == 69
    assert len(file.read_text().splitlines()) == 2

    with file.open("a") as torn:
        torn.write('{"id": 9, "padding": "' + "x" * 10_000)  # of a page that was not noted any more
    server.requests.clear()
    server.forget("GET /v1/queues/b/jobs")
    server.answers("GET /v1/queues/b/jobs", page(job_document(3)))
    ran = command("export", "--all", "-o", str(file))
    assert (ran.code, ran.err) == (0, f"3 jobs in {file}\n")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [1, 2, 3]
    asked = [str(request.url) for request in server.requests if request.url.path.endswith("/jobs")]
    assert len(asked) == 1
    assert "cursor=2" in asked[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.ndjson"]


def test_of_a_ttl_is_left_what_was_left_when_the_import_began(
    command: Command, server: FakeServer, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)  # 8 o'clock
    file = tmp_path / "jobs.ndjson"
    jobs = [
        job_document(1, expires_at="2027-01-15T08:00:30.000Z"),
        job_document(2, expires_at="2027-01-15T07:59:59.000Z"),
        job_document(3, state="dead", finished_at="2027-01-15T07:59:59.000Z"),
    ]
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs) + '{"id": 4}\n')
    server.answers("POST /v1/queues/q/enqueue", {"jobs": [{"id": 1, "state": "queued"}], "errors": 0})
    ran = command("import", str(file), "--bad-lines", str(tmp_path / "bad"))

    assert ran.code == 65
    (body,) = server.bodies("POST /v1/queues/q/enqueue")
    assert body == {"jobs": [{"type": "t", "payload": None, "ttl_seconds": 30.0}]}
    assert "queue" in json.loads((tmp_path / "bad").read_text())["reason"]
