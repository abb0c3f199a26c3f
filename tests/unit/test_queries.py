"""Questions that change nothing."""

from collections.abc import Iterable
from typing import Any

import pytest

from queue_actor import queries
from queue_actor.commands import JobFilter, ListQueues, NewJob, Search
from queue_actor.errors import ForgottenJob, UnknownJob
from queue_actor.jobs import Attempt, Job, JobError, JobOptions, JobState, Now, OnExisting, Outcome
from queue_actor.queries import find_job, growth, list_queues, matches, search, view
from queue_actor.queues import Queue
from queue_actor.settings import Settings

NOW = Now(monotonic=5_000.0, wall=90_000.0)
ANY = JobFilter()


def new_job(id_: int = 1, **facts: Any) -> Job:
    plain = {"queue": "q", "type": "t", "payload": None, "state": JobState.QUEUED, "created_at": 0.0, "revision": id_}
    return Job(id=id_, **{**plain, **facts})


def queue_of(*jobs: Job, next_id: int | None = None) -> Queue:
    """A queue with these jobs, ready if they are queued."""
    queue = Queue("q", Settings(), next_id=min((job.id for job in jobs), default=1), next_fence=1)
    for job in jobs:
        queue.jobs[job.id] = job
        if job.state is JobState.QUEUED:
            queue.ready.append(job.priority, job.place, job.id)
        if job.options.unique_key is not None:
            queue.unique[job.options.unique_key] = job.id
    queue.next_id = max(queue.jobs, default=0) + 1 if next_id is None else next_id
    return queue


def attempt(error: JobError | None) -> Attempt:
    return Attempt(1, None, 0.0, 0.0, Outcome.FAILED, error)


# --- one job


def test_a_job_is_found_with_its_queue() -> None:
    queue = queue_of(new_job(3))

    assert find_job({"q": queue}, "q", 3) == (queue, queue.jobs[3])


@pytest.mark.parametrize(
    ("name", "id_", "refusal"),
    [
        ("q", 1, ForgottenJob),
        ("q", 4, ForgottenJob),
        ("q", 5, UnknownJob),
        ("q", 0, UnknownJob),
        ("q", -1, UnknownJob),
        ("another", 3, UnknownJob),
    ],
)
def test_a_job_that_is_not_there_was_there_once_or_never(name: str, id_: int, refusal: type[Exception]) -> None:
    with pytest.raises(refusal) as raised:
        find_job({"q": queue_of(new_job(3), next_id=5)}, name, id_)
    assert raised.value.field == "id"  # type: ignore[attr-defined] # both are QueueErrors


# --- what an enqueue would add


def new(payload: bytes | None = b"1234", key: str | None = None, on_existing: OnExisting = OnExisting.KEEP) -> NewJob:
    return NewJob("t", payload, options=JobOptions(unique_key=key), on_existing=on_existing)


def held(state: JobState) -> Queue:
    """A queue in which a job has the key `k`, and ten bytes."""
    return queue_of(new_job(state=state, payload=bytes(10), options=JobOptions(unique_key="k")))


def test_jobs_without_unique_keys_add_themselves() -> None:
    assert growth(None, [new(), new(None), new(b"")]) == (3, 4)
    assert growth(queue_of(), [new(), new()]) == (2, 8)


@pytest.mark.parametrize("on_existing", [OnExisting.KEEP, OnExisting.REFUSE])
def test_a_job_whose_key_is_taken_adds_nothing(on_existing: OnExisting) -> None:
    assert growth(held(JobState.QUEUED), [new(key="k", on_existing=on_existing)]) == (0, 0)
    assert growth(held(JobState.QUEUED), [new(key="other", on_existing=on_existing)]) == (1, 4)


@pytest.mark.parametrize(
    ("state", "added"), [(JobState.QUEUED, -6), (JobState.SCHEDULED, -6), (JobState.IN_PROGRESS, 0)]
)
def test_a_job_that_replaces_another_adds_the_difference_if_that_one_waits(state: JobState, added: int) -> None:
    assert growth(held(state), [new(key="k", on_existing=OnExisting.REPLACE)]) == (0, added)


def test_a_batch_is_counted_as_it_goes_on() -> None:
    first, keep, replace = new(bytes(5), "k"), new(bytes(7), "k"), new(bytes(9), "k", OnExisting.REPLACE)

    assert growth(None, [first, keep]) == (1, 5)
    assert growth(None, [first, replace, keep]) == (1, 9)
    assert growth(None, [replace, first, replace]) == (1, 9)
    assert growth(held(JobState.QUEUED), [replace, replace]) == (0, -1)


# --- filters


@pytest.mark.parametrize(
    ("where", "matching"),
    [
        (ANY, True),
        (JobFilter(states=frozenset({JobState.DEAD, JobState.QUEUED})), True),
        (JobFilter(states=frozenset({JobState.DEAD})), False),
        (JobFilter(type="t"), True),
        (JobFilter(type="T"), False),
        (JobFilter(consumer="c"), True),
        (JobFilter(consumer="d"), False),
        (JobFilter(since=100.0), True),
        (JobFilter(since=100.5), False),
        (JobFilter(error="Time"), True),
        (JobFilter(error="too long"), True),
        (JobFilter(error="Gone"), False),  # it is not the last one
        (JobFilter(type="t", consumer="d"), False),
    ],
)
def test_a_filter_matches_if_each_of_its_conditions_holds(where: JobFilter, matching: bool) -> None:
    errors = [JobError("Gone", "away"), JobError("Timeout", "it took too long"), None]
    job = new_job(created_at=100.0, consumer="c", history=tuple(attempt(error) for error in errors))

    assert matches(job, where) is matching


def test_a_job_that_never_failed_matches_no_error() -> None:
    assert not matches(new_job(history=(attempt(None),)), JobFilter(error=""))


# --- pages of jobs


def pages(queue: Queue, **fields: Any) -> list[list[int]]:
    """The ids on each page, followed from cursor to cursor."""
    found, after = [], None
    while True:
        page = search(queue, Search("q", after_id=after, **{"where": ANY, **fields}))
        found.append([job.id for job in page.jobs])
        after = page.next_after
        if after is None:
            return found


def test_a_queue_that_does_not_exist_has_no_jobs() -> None:
    page = search(None, Search("q", ANY))

    assert (list(page.jobs), page.next_after) == ([], None)


@pytest.mark.parametrize(("newest_first", "expected"), [(False, [[2, 3], [5, 8]]), (True, [[8, 5], [3, 2]])])
def test_a_search_pages_through_the_jobs_in_the_order_asked_for(newest_first: bool, expected: list[list[int]]) -> None:
    queue = queue_of(*(new_job(id_) for id_ in (2, 3, 5, 8)))

    assert pages(queue, limit=2, newest_first=newest_first) == expected


def ids_of(pages: Iterable[Iterable[int]]) -> list[int]:
    return [id_ for page in pages for id_ in page]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("scanned", [1, 2, 3, 100])
def test_the_work_of_a_page_is_bounded_and_no_job_is_missed(
    monkeypatch: pytest.MonkeyPatch, newest_first: bool, limit: int, scanned: int
) -> None:
    monkeypatch.setattr(queries, "SCANNED_IDS_MAX", scanned)
    kinds = dict.fromkeys((2, 3, 7, 9, 10), "t") | {4: "other", 12: "other"}
    queue = queue_of(*(new_job(id_, type=kinds[id_]) for id_ in sorted(kinds)), next_id=15)

    found = pages(queue, limit=limit, newest_first=newest_first, where=JobFilter(type="t"))

    assert ids_of(found) == sorted((2, 3, 7, 9, 10), reverse=newest_first)
    assert max(map(len, found)) <= min(limit, scanned)
    assert len(found) <= 13


def test_a_cursor_beyond_the_end_finds_nothing() -> None:
    queue = queue_of(new_job(1), new_job(2))

    for newest_first, after in ((False, 2), (False, 99), (True, 1), (True, 0)):
        page = search(queue, Search("q", ANY, newest_first, after_id=after))
        assert (list(page.jobs), page.next_after) == ([], None)


def test_a_cursor_from_the_future_begins_with_the_newest() -> None:
    assert pages(queue_of(new_job(1), new_job(2)), newest_first=True) == [[2, 1]]
    page = search(queue_of(new_job(1), new_job(2)), Search("q", ANY, newest_first=True, after_id=99))

    assert [job.id for job in page.jobs] == [2, 1]


def test_the_last_page_says_that_it_is_the_last_though_it_is_full() -> None:
    queue = queue_of(new_job(1), new_job(2))

    assert pages(queue, limit=1) == [[1], [2]]
    assert pages(queue, limit=1, newest_first=True) == [[2], [1]]


def test_a_queue_whose_jobs_are_all_forgotten_has_one_empty_page() -> None:
    queue = queue_of(new_job(1), new_job(2))
    for id_ in (1, 2):
        queue.forget([id_])

    assert pages(queue) == pages(queue, newest_first=True) == [[]]


# --- queues in figures


def test_a_queue_that_does_not_exist_reads_as_an_empty_one() -> None:
    shown = view(None, "q", NOW)

    assert not shown.exists
    assert shown.counts == dict.fromkeys(JobState, 0)
    assert (shown.oldest_age_seconds, shown.last_id) == (None, 0)


def test_the_oldest_age_is_that_of_the_lowest_place_whatever_its_priority() -> None:
    queue = queue_of(
        new_job(1, priority=-5, place=1, ready_at=NOW.wall - 60),
        new_job(2, priority=5, place=2, ready_at=NOW.wall - 10),
    )

    assert view(queue, "q", NOW).oldest_age_seconds == 60


def test_an_age_is_never_below_0_after_the_wall_clock_was_set_back() -> None:
    queue = queue_of(new_job(1, place=1, ready_at=NOW.wall + 3_600))

    assert view(queue, "q", NOW).oldest_age_seconds == 0


def test_consumers_are_shown_for_ten_minutes_after_they_were_seen() -> None:
    queue = queue_of()
    for consumer, ago in (("long ago", 600.5), ("just within", 600.0), ("now", 0.0)):
        queue.see(consumer, NOW.monotonic - ago)

    assert view(queue, "q", NOW).consumers == {"just within": 600.0, "now": 0.0}


def test_a_view_does_not_change_with_its_queue() -> None:
    queue = queue_of()
    shown = view(queue, "q", NOW)
    queue.counts[JobState.DEAD] += 1

    assert shown.counts[JobState.DEAD] == 0


def test_queues_are_listed_by_name_a_page_at_a_time() -> None:
    queues = {name: queue_of() for name in ("b", "a:2", "a", "c", "a:1")}

    def page(**fields: Any) -> tuple[list[str], str | None]:
        found = list_queues(queues, ListQueues(**fields), NOW)
        return [shown.name for shown in found.queues], found.next_after

    assert page() == (["a", "a:1", "a:2", "b", "c"], None)
    assert page(limit=2) == (["a", "a:1"], "a:1")
    assert page(limit=2, after="a:1") == (["a:2", "b"], "b")
    assert page(limit=2, after="b") == (["c"], None)
    assert page(limit=1, after="b") == (["c"], None)
    assert page(prefix="a:") == (["a:1", "a:2"], None)
    assert page(prefix="z") == ([], None)
