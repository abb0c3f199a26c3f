"""web/problems.py: one table, one shape. That the table is the contract's is tested in tests/test_docs.py."""

import json
from http import HTTPStatus

import pytest

from queue_actor.errors import LeaseLost, QueueError, QueueFull
from web.problems import PROBLEMS, Problem

CODES = sorted(PROBLEMS)


def concrete(cls: type[QueueError]) -> set[type[QueueError]]:
    found = {cls} if "code" in vars(cls) else set()
    return found.union(*(concrete(sub) for sub in cls.__subclasses__()))


REFUSALS = sorted(concrete(QueueError), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda cls: cls.__name__)
def test_every_refusal_of_the_queue_becomes_a_problem(refusal: type[QueueError]) -> None:
    problem = Problem.of(refusal("why", field="jobs[3].type"))
    document = json.loads(problem.body)
    assert problem.code == document["code"] == refusal.code
    assert (document["detail"], document["field"]) == ("why", "jobs[3].type")


@pytest.mark.parametrize("code", CODES)
def test_every_problem_has_the_shape_of_the_contract(code: str) -> None:
    problem = Problem(code, "why")
    kind = PROBLEMS[code]
    assert json.loads(problem.body) == {
        "type": "about:blank",
        "title": HTTPStatus(kind.status).phrase,
        "status": kind.status,
        "code": code,
        "detail": "why",
        "retryable": kind.retryable,
    }
    assert problem.status == kind.status
    assert problem.headers["Content-Type"] == "application/problem+json"
    assert problem.headers["Cache-Control"] == "no-store"
    assert problem.headers.get("Retry-After") == (kind.retry_after_seconds and str(kind.retry_after_seconds))


@pytest.mark.parametrize("code", CODES)
def test_only_an_error_may_be_a_problem(code: str) -> None:
    assert 400 <= PROBLEMS[code].status < 600


@pytest.mark.parametrize("code", [code for code in CODES if PROBLEMS[code].status in {429, 503}])
def test_who_is_told_that_there_is_no_room_is_told_when_to_come_again(code: str) -> None:
    assert PROBLEMS[code].retry_after_seconds
    assert PROBLEMS[code].retryable == ("repeat" if code == "outcome_unknown" else "later")


@pytest.mark.parametrize("code", ["lease_lost", "not_in_progress", "already_finished"])
def test_who_has_lost_a_job_is_told_to_drop_it(code: str) -> None:
    assert PROBLEMS[code].retryable == "drop"


def test_underscores_in_the_names_of_headers_are_dashes() -> None:
    assert Problem("method_not_allowed", "why", Allow="GET", X_Two_Words="1").headers["X-Two-Words"] == "1"


def test_a_problem_is_an_exception_that_says_why() -> None:
    assert str(Problem.of(QueueFull("no room"))) == "no room"
    assert "field" not in json.loads(Problem.of(LeaseLost("lost")).body)


def test_what_was_sent_cannot_break_out_of_the_document() -> None:
    detail = 'a"b\\c\n\x00\u2028\x7f</script>'
    document = Problem("foreign_host", detail, field='"').body
    assert json.loads(document)["detail"] == detail
    assert b"\n" not in document
    assert b"\x00" not in document


def test_whoever_took_a_body_out_of_another_says_where_the_field_stood() -> None:
    inner = Problem("too_large", "it is", field="payload")
    outer = inner.within("jobs[3]")
    assert (outer.code, outer.status, outer.detail, outer.field) == ("too_large", 413, "it is", "jobs[3].payload")
    assert json.loads(outer.body) == json.loads(inner.body) | {"field": "jobs[3].payload"}
