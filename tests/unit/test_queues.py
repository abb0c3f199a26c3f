"""What is kept of one queue."""

import pytest

from queue_actor import queues
from queue_actor.jobs import DEFAULT_QUEUE, Job, JobState, QueuePolicy, first_policy
from queue_actor.queues import METERED, Queue
from queue_actor.settings import Settings


def new_queue(name: str = "q", next_id: int = 1) -> Queue:
    return Queue(name, Settings(), next_id=next_id, next_fence=1_000)


def put(queue: Queue, *ids: int) -> None:
    """Let there be jobs of these ids."""
    for id_ in ids:
        queue.jobs[id_] = Job(
            queue=queue.name, id=id_, type="t", payload=None, state=JobState.QUEUED, created_at=0.0, revision=id_
        )
        queue.next_id = max(queue.next_id, id_ + 1)


def test_a_new_queue_is_empty_and_runs() -> None:
    queue = new_queue(next_id=7)

    assert queue.counts == dict.fromkeys(JobState, 0)
    assert (queue.first_id, queue.next_id, queue.next_place, queue.next_fence) == (7, 7, 1, 1_000)
    assert (queue.paused, queue.declared, queue.waiting, len(queue.ready)) == (False, False, 0, 0)
    assert set(queue.meters) == set(METERED)


def test_a_job_of_the_default_queue_never_dies_unasked() -> None:
    assert first_policy(DEFAULT_QUEUE) == QueuePolicy(max_attempts=None, max_stale=None)
    assert first_policy("q") == QueuePolicy(max_attempts=25, max_stale=5)
    assert new_queue(DEFAULT_QUEUE).policy == first_policy(DEFAULT_QUEUE)
    assert new_queue("q").policy == first_policy("q")


def test_scheduled_and_queued_jobs_wait() -> None:
    queue = new_queue()
    queue.counts |= {JobState.SCHEDULED: 2, JobState.QUEUED: 3, JobState.IN_PROGRESS: 5, JobState.DEAD: 7}

    assert queue.waiting == 5


def test_the_first_id_follows_the_jobs_that_are_forgotten() -> None:
    queue = new_queue()
    put(queue, 1, 2, 3, 5)
    firsts = []
    for id_ in (2, 1, 5, 3):
        queue.forget([id_])
        firsts.append(queue.first_id)

    assert firsts == [1, 3, 3, 6]
    assert queue.next_id == 6


def test_a_job_that_is_not_there_cannot_be_forgotten() -> None:
    queue = new_queue()
    put(queue, 1)

    with pytest.raises(KeyError):
        queue.forget([2])
    assert queue.first_id == 1


def test_consumers_are_remembered_by_when_they_were_last_seen() -> None:
    queue = new_queue()
    for consumer, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        queue.see(consumer, seconds)

    assert list(queue.consumers.items()) == [("b", 2.0), ("a", 3.0)]


def test_beyond_their_number_the_consumer_not_seen_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "CONSUMERS_MAX", 2)
    queue = new_queue()
    for consumer, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0)):
        queue.see(consumer, seconds)

    assert list(queue.consumers) == ["a", "c"]
