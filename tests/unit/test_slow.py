"""queue_actor/slow.py: what is slow is told with figures, and not more often than once a second."""

import logging
from typing import Any

import pytest

from queue_actor.settings import Settings
from queue_actor.slow import PAUSE_SECONDS, SlowBatches, Throttle

SETTINGS = Settings(slow_batch_seconds=0.5, slow_commit_seconds=2.0)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    assert {(record.name, record.levelno) for record in caplog.records} <= {("queue_actor.slow", logging.WARNING)}
    return [(record.getMessage(), vars(record)["facts"]) for record in caplog.records]


def test_what_takes_no_longer_than_it_may_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    SlowBatches(SETTINGS).note(1, 1, began=0.0, applied=0.5, committed=2.5)
    assert told(caplog) == []


def test_a_batch_that_takes_longer_to_apply_is_told(caplog: pytest.LogCaptureFixture) -> None:
    SlowBatches(SETTINGS).note(7, 9, began=10.0, applied=10.75, committed=11.0)
    facts = {"requests": 7, "jobs": 9, "apply_milliseconds": 750.0, "commit_milliseconds": 250.0, "held_back": 0}
    assert told(caplog) == [("slow_batch", facts)]


def test_a_commit_that_takes_longer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    SlowBatches(SETTINGS).note(7, 9, began=10.0, applied=10.25, committed=13.0)
    facts = {"requests": 7, "jobs": 9, "apply_milliseconds": 250.0, "commit_milliseconds": 2750.0, "held_back": 0}
    assert told(caplog) == [("slow_commit", facts)]


def test_each_kind_is_told_once_a_second_with_what_was_held_back(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowBatches(SETTINGS)
    for at in (10.0, 10.2, 10.4, 10.999):
        slow.note(1, 1, began=at - 1, applied=at, committed=at)
    slow.note(1, 1, began=8.0, applied=8.0, committed=10.999)
    slow.note(1, 1, began=8.0, applied=8.0, committed=11.0)
    slow.note(1, 1, began=10.0, applied=11.0, committed=11.0)
    assert [(event, facts["held_back"]) for event, facts in told(caplog)] == [
        ("slow_batch", 0),
        ("slow_commit", 0),
        ("slow_batch", 3),
    ]


def test_the_first_line_passes_at_any_moment_and_the_next_after_a_pause() -> None:
    throttle = Throttle()
    assert throttle.held_back(0.0) == 0
    assert throttle.held_back(0.0) is None
    assert throttle.held_back(PAUSE_SECONDS) == 1
    assert throttle.held_back(2 * PAUSE_SECONDS) == 0
