"""Access tokens, patterns and the file of them."""

import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_actor.access import (
    RANDOM_BYTES,
    AccessError,
    AccessFile,
    ChangeRefused,
    Grant,
    Keyring,
    Scope,
    Secret,
    checksum,
    covers,
    decode_file,
    encode_file,
    is_well_formed,
    moment_of,
    new_token,
    token_hash,
)

NOW = 1_800_000_000.0
AT = moment_of(NOW)
HASH = "0" * 64


def grant(name: str = "a", *tokens: Secret, **given: Any) -> Grant:
    return Grant(**{"name": name, "scopes": (Scope.PRODUCE,), "queues": ("q",), "tokens": tokens} | given)


def record(**changed: Any) -> dict[str, Any]:
    """A record of the file as JSON has it."""
    token = {"sha256": HASH, "created_at": "2027-01-15T08:00:00Z", "expires_at": None, "revoked_at": None}
    return {"name": "a", "scopes": ["produce"], "queues": ["q"], "tokens": [token]} | changed


def decoded(*records: object) -> AccessFile:
    return decode_file(json.dumps({"tokens": records}).encode())


# --- tokens


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_a_token_has_a_form_that_can_be_told(random: bytes) -> None:
    token = new_token(random)

    assert re.fullmatch(r"qa_[0-9A-Za-z]{33}", token)
    assert is_well_formed(token.encode())


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES), st.integers(0, 35), st.characters(codec="ascii"))
def test_a_token_with_one_character_mistyped_is_told(random: bytes, at: int, typed: str) -> None:
    token = new_token(random)
    mistyped = token[:at] + typed + token[at + 1 :]

    assert is_well_formed(mistyped.encode()) == (mistyped == token)


def test_a_token_holds_all_its_random_bytes() -> None:
    assert new_token(bytes(RANDOM_BYTES)) == "qa_" + "0" * 27 + checksum(b"qa_" + b"0" * 27)
    assert len({new_token((1 << bit).to_bytes(RANDOM_BYTES, "big")) for bit in range(160)}) == 160
    assert is_well_formed(new_token(b"\xff" * RANDOM_BYTES).encode())


@pytest.mark.parametrize("text", [b"", b"qa_", b"x" * 36, b"\xff" * 36, b"qa_" + b"0" * 10_000])
def test_what_has_another_form_is_no_token(text: bytes) -> None:
    assert not is_well_formed(text)


def test_a_token_ends_with_its_line_feed_nowhere() -> None:
    assert not is_well_formed(new_token(bytes(RANDOM_BYTES)).encode() + b"\n")


def test_the_file_holds_the_sha256_of_a_token() -> None:
    assert token_hash(b"qa_x") == sha256(b"qa_x").hexdigest()


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "wanted", "allowed"),
    [
        ("q", "q", True),
        ("q", "qq", False),
        ("q", "q*", False),
        ("q", "Q", False),
        ("t:*", "t:a", True),
        ("t:*", "t:", True),
        ("t:*", "t", False),
        ("t:*", "t:*", True),
        ("t:*", "t:a*", True),
        ("t:*", "t*", False),
        ("t:*", "*", False),
        ("*", "q", True),
        ("*", "t:*", True),
        ("*", "*", True),
    ],
)
def test_a_pattern_covers(pattern: str, wanted: str, allowed: bool) -> None:
    assert covers([pattern], wanted) is allowed
    assert covers(["other", pattern], wanted) is allowed
    assert not covers([], wanted)


@pytest.mark.parametrize("held", Scope)
def test_admin_has_every_scope_and_no_other_has_another(held: Scope) -> None:
    given = grant(scopes=(held,), queues=("q",))

    assert {scope for scope in Scope if given.allows(scope, "q")} == ({*Scope} if held is Scope.ADMIN else {held})
    assert not any(given.allows(scope, "other") for scope in Scope)


# --- the file


def test_a_file_is_read_as_it_was_written() -> None:
    file = AccessFile(
        (
            grant("a", Secret(HASH, AT, AT, None), Secret("1" * 64, AT, None, AT), scopes=tuple(Scope)),
            grant("b", requests_per_second=0.5, jobs_per_second=10.0, in_progress_max=3, queues=("t:*", "*")),
        )
    )
    data = encode_file(file)

    assert decode_file(data) == file
    assert data.count(b"\n") > 30
    assert list(json.loads(data)["tokens"][0]) == [
        *("name", "scopes", "queues", "requests_per_second", "jobs_per_second", "in_progress_max", "tokens"),
    ]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"scope": []}, r"'a': .*`scope`"),
        ({"scopes": []}, r"'a': .*\$\.scopes"),
        ({"scopes": ["write"]}, r"'a': .*'write'.*\$\.scopes"),
        ({"queues": []}, r"'a': .*\$\.queues"),
        ({"queues": ["a b"]}, r"'a': .*\$\.queues"),
        ({"queues": ["*a"]}, r"'a': .*\$\.queues"),
        ({"queues": ["q" * 81]}, r"'a': .*\$\.queues"),
        ({"queues": ["q\n"]}, r"'a': .*\$\.queues"),
        ({"name": "a b"}, r"'a b': .*\$\.name"),
        ({"name": "ä"}, r"'\\xe4': .*\$\.name"),
        ({"name": 1}, r"token number 1: .*\$\.name"),
        ({"requests_per_second": 0}, r"'a': .*\$\.requests_per_second"),
        ({"jobs_per_second": "1"}, r"'a': .*\$\.jobs_per_second"),
        ({"in_progress_max": 0}, r"'a': .*\$\.in_progress_max"),
        ({"in_progress_max": 1.5}, r"'a': .*\$\.in_progress_max"),
        ({"tokens": [{"sha256": "x", "created_at": "2027-01-15T08:00:00Z"}]}, r"'a': .*\.sha256"),
        ({"tokens": [{"sha256": HASH}]}, r"'a': .*`created_at`"),
        ({"tokens": [{"sha256": HASH, "created_at": "2027-01-15"}]}, r"'a': .*\.created_at"),
        ({"tokens": [{"sha256": HASH, "created_at": "2027-01-15T08:00:00"}]}, r"'a': .*\.created_at"),
        ({"tokens": [{"sha256": HASH, "created_at": "2027-01-15T08:00:00Z", "hash": 1}]}, r"'a': .*`hash`"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_token(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AccessError, match=complaint):
        decoded(record(**changed))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "truncated"),
        (b"\xff", "malformed|invalid"),
        (b"[]", "object"),
        (b"{}", "`tokens`"),
        (b'{"tokens": {}}', "array"),
        (b'{"tokens": [], "version": 1}', "`version`"),
        (b'{"tokens": [1]}', "token number 1"),
        (b'{"tokens": [{"name": "\xff"}]}', "token number 1|utf-8"),
        pytest.param(b'{"tokens": [' + b"[" * 200_000, "recursion", id="nested too deeply"),
        pytest.param(b'{"tokens": [{"name": ' + b"[" * 2_000 + b"]" * 2_000 + b"}]}", "recursion", id="a name is"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(AccessError, match=f"(?i){complaint}"):
        decode_file(data)


def test_neither_a_name_nor_a_hash_may_stand_in_a_file_twice() -> None:
    with pytest.raises(AccessError, match="token a: there are two"):
        decoded(record(tokens=[]), record(tokens=[]))
    with pytest.raises(AccessError, match=r"token b: its sha256 0{8}\.\.\. stands"):
        decoded(record(), record(name="b"))


# --- changes


def test_a_name_is_given_once() -> None:
    file = AccessFile().with_grant(grant("a")).with_grant(grant("b"))

    assert [one.name for one in file.grants] == ["a", "b"]
    with pytest.raises(ChangeRefused, match="named b already"):
        file.with_grant(grant("b"))


def test_a_name_that_is_not_there_is_refused() -> None:
    file = AccessFile((grant("b"),))
    with pytest.raises(ChangeRefused, match="no token named a"):
        file.revoked("a", NOW)
    with pytest.raises(ChangeRefused, match="no token named a"):
        file.with_token("a", Secret(HASH, AT))


def test_a_rotation_has_two_valid_tokens_and_then_one() -> None:
    file = AccessFile((grant("z"), grant("a", Secret("0" * 64, AT)))).with_token("a", Secret("1" * 64, AT))
    assert [secret.is_valid(NOW) for secret in file.named("a").tokens] == [True, True]

    file = file.revoked("a", NOW, keep_newest=True)
    assert [secret.is_valid(NOW) for secret in file.named("a").tokens] == [False, True]

    later = file.revoked("a", NOW + 9)
    assert [secret.is_valid(NOW + 9) for secret in later.named("a").tokens] == [False, False]
    assert later.named("a").tokens[0] == file.named("a").tokens[0]  # when it was revoked stays


# --- looking up


def test_a_token_is_found_while_it_is_valid() -> None:
    def secret(token: bytes, **ends: datetime) -> Secret:
        return Secret(token_hash(token), AT, **ends)

    early, late = moment_of(NOW + 10), moment_of(NOW + 20)
    file = AccessFile(
        (
            grant("a", secret(b"plain"), secret(b"expires", expires_at=early)),
            grant("b", secret(b"revoked", revoked_at=early, expires_at=late)),
        )
    )
    keys = Keyring(file)

    def names(now: float) -> list[str | None]:
        found = [keys.find(token, now) for token in (b"plain", b"expires", b"revoked", b"unknown")]
        return [None if one is None else one[0].name for one in found]

    assert names(NOW + 9.9) == ["a", "a", "b", None]
    assert names(NOW + 10) == ["a", None, None, None]
    assert [keys.count_valid(NOW), keys.count_valid(NOW + 10)] == [3, 1]
    assert keys.grants.keys() == {"a", "b"}


def test_a_moment_of_the_file_is_utc_and_whole() -> None:
    assert moment_of(0.9) == datetime(1970, 1, 1, tzinfo=UTC)
