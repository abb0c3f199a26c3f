"""web/answered.py: the lines of one turn of the event loop are written together, in order, and none is lost."""

import errno
import io
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import Settings
from web.answered import Answered, AnsweredRequests
from web.logs import LineHandler, line_handler, set_up_logging
from web.metrics import RequestMeters
from web.replies import Reply, reply
from web.requests import Request

SLOW = Settings().slow_request_seconds * 2

logger = logging.getLogger("web")


class Paper(io.StringIO):
    """Notes what each write has brought, and can refuse to take more."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        self.writes.append(text)
        return len(text)

    @property
    def events(self) -> list[str]:
        """What the lines are about: the job, or the event of a line without one."""
        lines = [json.loads(line) for text in self.writes for line in text.splitlines()]
        return [str(line.get("job", line["event"])) for line in lines]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paper]:
    """Standard error of a process that has nothing but `set_up_logging` to say where lines go."""
    root = logging.getLogger()
    handlers, level, made = root.handlers[:], root.level, Paper()
    own, hypercorn = logger.handlers[:], logging.getLogger("hypercorn.error").level
    monkeypatch.setattr(sys, "stderr", made)
    logger.handlers.clear()
    set_up_logging(Settings())
    yield made
    logging.captureWarnings(capture=False)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True
    root.handlers[:], logger.handlers[:] = handlers, own
    root.setLevel(level)
    logging.getLogger("hypercorn.error").setLevel(hypercorn)


def request() -> Request:
    scope: Any = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/jobs/1",
        "raw_path": b"/jobs/1",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [],
    }
    made = Request(scope)
    made.url_rule = None
    return made


def answered(job: int, seconds: float = 0.001, *, answer: Reply | None = None) -> Answered:
    answer = answer or reply(b"{}", facts={"job": job})
    return Answered(1_800_000_000.0, 100.0 + job, seconds, request(), f"r{job}", answer, answer.facts)


@asynccontextmanager
async def together(requests: AnsweredRequests) -> AsyncIterator[None]:
    """As in a server, where pytest does not look at the log."""
    handlers = logging.getLogger().handlers
    others = [handler for handler in handlers if not isinstance(handler, LineHandler)]
    for handler in others:
        handlers.remove(handler)
    try:
        async with requests.together():
            yield
    finally:
        handlers.extend(others)


@pytest.fixture
def requests() -> AnsweredRequests:
    return AnsweredRequests(Settings(), RequestMeters(), tells_who=False)


async def test_the_lines_of_one_turn_are_written_at_once_and_in_order(paper: Paper, requests: AnsweredRequests) -> None:
    async with together(requests):
        for job in range(5):
            requests.note(answered(job))
        assert paper.writes == []
        await wait_all_tasks_blocked()
        assert len(paper.writes) == 1
        requests.note(answered(5))
        await wait_all_tasks_blocked()
    assert len(paper.writes) == 2
    assert paper.events == [str(job) for job in range(6)]


async def test_a_line_is_the_same_whether_written_alone_or_together(paper: Paper, requests: AnsweredRequests) -> None:
    requests.note(answered(1))
    async with together(requests):
        requests.note(answered(1))
    by_itself, with_others = (json.loads(text) for text in "".join(paper.writes).splitlines())
    assert by_itself.pop("time") != with_others.pop("time") == "2027-01-15T08:00:00.000Z"
    assert by_itself == with_others
    assert list(by_itself) == list(with_others)


async def test_a_line_of_something_else_does_not_overtake_them(paper: Paper, requests: AnsweredRequests) -> None:
    async with together(requests):
        requests.note(answered(1))
        logger.info("draining")
        requests.note(answered(2))
    logger.info("ended")
    assert paper.events == ["1", "draining", "2", "ended"]


async def test_a_warning_of_a_slow_request_follows_its_line(paper: Paper, requests: AnsweredRequests) -> None:
    async with together(requests):
        for job, seconds in ((1, 0.0), (2, SLOW), (3, 0.0)):
            requests.note(answered(job, seconds))
    lines = [json.loads(line) for text in paper.writes for line in text.splitlines()]
    assert [(line["event"], line["job"]) for line in lines] == [
        ("request", 1),
        ("request", 2),
        ("slow_request", 2),
        ("request", 3),
    ]
    assert lines[2]["held_back"] == 0


async def test_where_info_is_not_logged_slow_ones_are(paper: Paper, requests: AnsweredRequests) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    requests.note(answered(1))
    requests.note(answered(2, SLOW))
    by_themselves = [json.loads(text)["event"] for text in paper.writes]
    paper.writes.clear()
    async with together(requests):
        requests.note(answered(1))
        requests.note(answered(2, SLOW)._replace(ended=200.0))
    assert [json.loads(text)["event"] for text in paper.writes] == by_themselves == ["slow_request"]


async def test_a_line_of_another_thread_leaves_those_of_the_loop_alone(
    paper: Paper, requests: AnsweredRequests
) -> None:
    async with together(requests):
        requests.note(answered(1))
        thread = threading.Thread(target=logger.info, args=("elsewhere",))
        thread.start()
        thread.join()
        assert paper.events == ["elsewhere"]
    assert paper.events == ["elsewhere", "1"]


async def test_what_is_noted_while_the_block_ends_is_written(paper: Paper, requests: AnsweredRequests) -> None:
    with pytest.RaisesGroup(ValueError):
        async with together(requests):
            requests.note(answered(1))
            raise ValueError
    requests.note(answered(2))
    assert paper.events == ["1", "2"]


async def test_lines_that_cannot_be_written_are_lost_and_nothing_else(paper: Paper, requests: AnsweredRequests) -> None:
    async with together(requests):
        paper.full = True
        requests.note(answered(1))
        await wait_all_tasks_blocked()
        paper.full = False
        requests.note(answered(2))
    assert paper.events == ["2"]


async def test_where_there_is_no_standard_error_lines_are_lost_and_nothing_else(
    paper: Paper, requests: AnsweredRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it where descriptor 2 is closed
    set_up_logging(Settings())
    async with together(requests):
        requests.note(answered(1))
        await wait_all_tasks_blocked()
        logger.info("draining")
    assert paper.writes == []


async def test_a_bug_in_a_line_ends_the_server_and_loses_no_other_line(
    paper: Paper, requests: AnsweredRequests
) -> None:
    broken = answered(2)._replace(facts={"code": []})  # which no refusal is called
    with pytest.RaisesGroup(TypeError):
        async with together(requests):
            for each in (answered(1), broken, answered(3)):
                requests.note(each)
            await trio.sleep_forever()
    assert paper.events == ["1", "3"]


async def test_where_others_look_at_the_log_too_each_line_is_a_record(paper: Paper, requests: AnsweredRequests) -> None:
    records: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    listener = Listener()
    for place in (logger, logging.getLogger()):
        place.addHandler(listener)
        assert line_handler() is None
        async with requests.together():
            requests.note(answered(1))
            assert records.pop() == "request"
        place.removeHandler(listener)
    assert paper.events == ["1", "1"]
