"""Lease tokens: what is issued is read, and nothing else is."""

from hashlib import blake2b
from string import ascii_letters, digits

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from queue_actor.tokens import FENCE_MAX, HASH_BYTES, SECRET_BYTES, Tokens

SECRET = bytes(range(SECRET_BYTES))
FENCE = 1_795_486_479_685_123
TOKEN_CHARACTERS = 46

tokens = Tokens(SECRET)
token = tokens.issue("images", 17, FENCE)

# Every name a queue may have: [A-Za-z0-9][A-Za-z0-9_.:-]{0,79}
QUEUES = st.builds(
    str.__add__,
    st.sampled_from(ascii_letters + digits),
    st.text(ascii_letters + digits + "_.:-", max_size=79),
)
IDS = st.integers(1, FENCE_MAX)
FENCES = st.integers(0, FENCE_MAX)


def test_a_token_is_read_back_as_its_fence() -> None:
    assert tokens.fence("images", 17, token) == FENCE


@given(queue=QUEUES, id_=IDS, fence=FENCES)
def test_every_token_is_read_back_and_all_are_equally_long(queue: str, id_: int, fence: int) -> None:
    issued = tokens.issue(queue, id_, fence)
    assert tokens.fence(queue, id_, issued) == fence
    assert len(issued) == TOKEN_CHARACTERS
    assert set(issued) <= set("0123456789abcdef")


@pytest.mark.parametrize("fence", [0, 1, FENCE, FENCE_MAX])
def test_the_smallest_and_the_largest_fence_have_tokens_of_the_same_length(fence: int) -> None:
    issued = tokens.issue("q", 1, fence)
    assert len(issued) == TOKEN_CHARACTERS
    assert tokens.fence("q", 1, issued) == fence


def test_a_token_is_the_fence_and_the_keyed_hash_that_the_documentation_names() -> None:
    keyed = blake2b(f"images/17/{FENCE}".encode(), key=SECRET, digest_size=HASH_BYTES)
    assert token == f"{FENCE:014x}" + keyed.hexdigest()


@pytest.mark.parametrize("queue", ["image", "images2", "Images", "images.", "i", "images:17", ""])
def test_a_token_proves_nothing_for_another_queue(queue: str) -> None:
    assert tokens.fence(queue, 17, token) is None


@pytest.mark.parametrize("id_", [0, 1, 7, 16, 18, 170, 117, -17])
def test_a_token_proves_nothing_for_another_job(id_: int) -> None:
    assert tokens.fence("images", id_, token) is None


@pytest.mark.parametrize("fence", [0, 1, FENCE - 1, FENCE + 1, FENCE_MAX, 2**56 - 1])
def test_a_token_with_another_fence_written_into_it_proves_nothing(fence: int) -> None:
    assert tokens.fence("images", 17, f"{fence:014x}" + token[14:]) is None


def test_a_token_of_another_secret_proves_nothing() -> None:
    other = Tokens(bytes(SECRET_BYTES))
    assert other.issue("images", 17, FENCE) != token
    assert other.fence("images", 17, token) is None


def test_a_token_with_any_one_character_changed_proves_nothing() -> None:
    for position, character in enumerate(token):
        for other in "0123456789abcdef":
            if other != character:
                assert tokens.fence("images", 17, token[:position] + other + token[position + 1 :]) is None


def test_a_token_cut_short_or_made_longer_proves_nothing() -> None:
    for length in range(len(token)):
        assert tokens.fence("images", 17, token[:length]) is None
        assert tokens.fence("images", 17, token[-length:] if length else "") is None
    for character in "0f \n\0":
        assert tokens.fence("images", 17, token + character) is None
        assert tokens.fence("images", 17, character + token) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " * TOKEN_CHARACTERS,
        "0" * TOKEN_CHARACTERS,
        "f" * TOKEN_CHARACTERS,
        "z" * TOKEN_CHARACTERS,
        token.upper(),
        token.swapcase(),
        token[::-1],
        token[14:] + token[:14],
        " " + token[1:],
        "+" + token[1:],
        "-" + token[1:],
        "0x" + token[2:],
        "0_" + token[2:],
        token[:14] + token[14:].upper(),
        token[:-1] + "\n",
        token[:-1] + "é",
        token[:-1] + "\ud800",  # half of a surrogate pair, which has no encoding
        token.translate(str.maketrans(digits, "٠١٢٣٤٥٦٧٨٩")),  # digits all the same, to `int`
        token.translate(str.maketrans(digits, "０１２３４５６７８９")),
        "\x80" * TOKEN_CHARACTERS,
        "x" * 10_240,
        "0" * 10_240,
        token * 222,
        "é" * 10_240,
    ],
)
def test_any_other_text_proves_nothing_and_is_no_error(text: str) -> None:
    assert tokens.fence("images", 17, text) is None


@given(text=st.text(min_size=TOKEN_CHARACTERS, max_size=TOKEN_CHARACTERS) | st.text())
def test_no_text_at_all_is_an_error(text: str) -> None:
    assert tokens.fence("images", 17, text) is None


@given(first=st.tuples(QUEUES, IDS, FENCES), second=st.tuples(QUEUES, IDS, FENCES))
def test_different_leases_have_different_tokens(first: tuple[str, int, int], second: tuple[str, int, int]) -> None:
    assume(first != second)
    assert tokens.issue(*first) != tokens.issue(*second)


@given(
    queue=st.text(digits + "/", min_size=1, max_size=6),
    other=st.text(digits + "/", min_size=1, max_size=6),
    ids=st.tuples(st.integers(0, 111), st.integers(0, 111)),
    fences=st.tuples(st.integers(0, 111), st.integers(0, 111)),
)
def test_not_even_queues_named_like_ids_and_fences_are_confused(
    queue: str, other: str, ids: tuple[int, int], fences: tuple[int, int]
) -> None:
    """Id and fence are digits without a slash, so the hashed text is taken apart from its end in one way only."""
    assume((queue, ids[0], fences[0]) != (other, ids[1], fences[1]))
    first, second = (tokens.issue(*lease)[14:] for lease in ((queue, ids[0], fences[0]), (other, ids[1], fences[1])))
    assert first != second


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a/1", 2, 3), ("a", 1, 2)),
        (("a/1", 2, 3), ("a", 12, 3)),
        (("a", 1, 23), ("a", 12, 3)),
        (("a1", 2, 3), ("a", 12, 3)),
        (("1", 1, 1), ("11", 1, 1)),
        (("1/1", 1, 1), ("1", 1, 1)),
    ],
)
def test_fields_that_run_into_one_another_when_joined_are_kept_apart(
    first: tuple[str, int, int], second: tuple[str, int, int]
) -> None:
    assert tokens.issue(*first)[14:] != tokens.issue(*second)[14:]


@pytest.mark.parametrize("length", [0, 1, SECRET_BYTES - 1, SECRET_BYTES + 1])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes"):
        Tokens(bytes(length))


@given(first=st.tuples(QUEUES, IDS, FENCES), second=st.tuples(QUEUES, IDS, FENCES))
def test_a_token_proves_its_own_lease_and_no_other(first: tuple[str, int, int], second: tuple[str, int, int]) -> None:
    assert tokens.proves(tokens.issue(*first), *first)
    assert tokens.proves(tokens.issue(*first), *second) == (first == second)


def test_a_text_that_is_no_token_proves_nothing() -> None:
    for text in ("", "é", token[:-1], token + "0", token.upper(), " " + token[1:]):
        assert not tokens.proves(text, "images", 17, FENCE)
