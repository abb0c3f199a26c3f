"""What the client raises: every code of the server has its family, status and advice."""

import pickle
import re

import pytest

from queue_actor import client, client_errors
from queue_actor.client_errors import (
    CODES,
    Busy,
    ClientError,
    Closed,
    Invalid,
    LeaseLost,
    NotUnderstood,
    OutcomeUnknown,
    Refused,
    UniqueKeyTaken,
    Unreachable,
    refusal,
)
from web.problems import PROBLEMS


def test_the_client_knows_every_code_as_the_server_does() -> None:
    assert {code: (kind.status, kind.retryable) for code, kind in CODES.items()} == {
        code: (kind.status, kind.retryable) for code, kind in PROBLEMS.items()
    }


def test_what_may_succeed_later_is_busy_and_what_is_not_known_is_outcome_unknown() -> None:
    for code, kind in CODES.items():
        assert (kind.family is Busy) is (kind.retryable == "later"), code
        assert (kind.family is OutcomeUnknown) is (kind.retryable == "repeat"), code


def subclasses(cls: type[ClientError]) -> set[type[ClientError]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_the_tree_in_the_docstring_is_the_tree_in_the_code_and_all_of_it_is_public() -> None:
    shown = set(re.findall(r"[├└]── (\w+)", client_errors.__doc__ or ""))
    assert shown == {cls.__name__ for cls in subclasses(ClientError)} - {"ClientError"}
    assert shown <= set(client.__all__)
    assert {kind.family.__name__ for kind in CODES.values()} <= shown


@pytest.mark.parametrize(
    ("status", "family", "advice"), [(418, Refused, "never"), (503, OutcomeUnknown, "repeat"), (0, Refused, "never")]
)
def test_a_code_that_is_not_known_is_treated_by_its_status(status: int, family: type[Refused], advice: str) -> None:
    error = refusal("teapot", "short and stout", status=status)
    assert type(error) is family
    assert (error.retryable, error.status) == (advice, status)


def test_a_refusal_tells_all_that_the_problem_does() -> None:
    error = refusal("lease_lost", "too late", status=409, field="token", retry_after_seconds=2.0, request_id="r-1")
    assert isinstance(error, LeaseLost)
    assert (error.code, error.detail, error.status, error.field) == ("lease_lost", "too late", 409, "token")
    assert (error.retryable, error.retry_after_seconds, error.request_id) == ("drop", 2.0, "r-1")
    assert str(error) == "lease_lost: too late (field token)"
    assert str(refusal("busy", "full")) == "busy: full"
    assert refusal("unique_key_taken", "job 2 has it").status == 409  # of one job among many
    assert issubclass(UniqueKeyTaken, client_errors.Conflict)


@pytest.mark.parametrize(
    "error",
    [
        refusal("invalid", "wrong", field="type", status=400, request_id="r"),
        Unreachable("nobody there", may_be_done=True),
        NotUnderstood("a page"),
        Closed("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_has_copies_that_say_the_same(error: ClientError) -> None:
    for copy in (error.anew(), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert copy is not error
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
    assert error.anew().__cause__ is error


def test_the_detail_of_a_refusal_may_be_changed_with_its_field() -> None:
    error = Invalid("invalid", "wrong", field="jobs[0].type")
    error.field = "type"
    assert str(error) == "invalid: wrong (field type)"
