"""Lines of a file as batches, and the progress that is kept beside it."""

import io
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_actor.commandline import lines
from queue_actor.commandline.lines import (
    BadLineError,
    Batch,
    JobLine,
    decoded,
    new_progress,
    read_batches,
    read_progress,
    write_progress,
)

RAW = msgspec.json.Decoder(msgspec.Raw)


def prepare(line: bytes) -> JobLine | None:
    """A job of the queue that its first letter names; none of a comment; `!` is a bad line."""
    if line.startswith(b"!"):
        raise BadLineError("it is bad")
    return None if line.startswith(b"#") else JobLine(line[:1].decode(), line)


def read(content: bytes, lines: int = 0, offset: int = 0, jobs_max: int = 3) -> list[Batch]:
    file = io.BytesIO(content)
    file.seek(offset)
    return list(read_batches(file, prepare, lines=lines, offset=offset, jobs_max=jobs_max))


def test_a_batch_ends_when_it_is_full_and_where_the_queue_changes() -> None:
    batches = read(b"a1\na2\n\na3\na4\n#\nb1\n!\nb2")

    assert [(batch.queue, batch.numbers, batch.contents) for batch in batches] == [
        ("a", [1, 2, 4], [b"a1", b"a2", b"a3"]),
        ("a", [5], [b"a4"]),
        ("b", [7, 9], [b"b1", b"b2"]),
    ]
    assert [(batch.lines, batch.offset) for batch in batches] == [(4, 10), (6, 15), (9, 22)]
    assert batches[-1].bad == [(8, "it is bad")]


def test_a_batch_ends_before_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BATCH_BYTES_MAX", 10)

    assert [batch.numbers for batch in read(b"a23456\na2\naaaaaaaaaaaaaaaaa\na\n")] == [[1, 2], [3], [4]]


def test_nothing_makes_no_batch_and_nothing_but_other_lines_one_without_jobs() -> None:
    assert read(b"") == []
    assert read(b"\n#\n") == [Batch("", [], [], [], 2, 3)]


def test_bad_lines_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BAD_LINES_MAX", 2)
    batches = read(b"a1\n!\n!\n!\na2\n")

    assert [(batch.numbers, [number for number, _ in batch.bad], batch.lines) for batch in batches] == [
        ([1], [2, 3], 3),
        ([5], [4], 5),
    ]


def test_a_line_that_is_too_long_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 8)
    (batch,) = read(b"a1\n" + b"a" * 30 + b"\na2\n" + b"a" * 9)

    assert (batch.numbers, batch.lines, batch.offset) == ([1, 3], 4, 46)
    assert batch.bad == [(2, "longer than 8 bytes"), (4, "longer than 8 bytes")]


@given(st.lists(st.sampled_from([b"a", b"b", b"!", b"#", b""]), max_size=30), st.booleans())
def test_whoever_goes_on_where_a_batch_ended_reads_the_same(kinds: list[bytes], ends: bool) -> None:
    content = b"\n".join(kinds) + (b"\n" if ends else b"")
    batches = read(content)
    for number, batch in enumerate(batches[:-1]):
        assert read(content, batch.lines, batch.offset) == batches[number + 1 :]


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"\xff", "not UTF-8"), (b"{", "not as expected"), (b"[" * 5_000 + b"]" * 5_000, "not as expected")],
)
def test_what_is_no_json_is_a_bad_line(line: bytes, said: str) -> None:
    with pytest.raises(BadLineError, match=said):
        decoded(RAW, line)


def test_progress_is_kept_and_found_again(tmp_path: Path) -> None:
    file, kept = tmp_path / "jobs", tmp_path / "jobs.progress"
    file.write_bytes(b"a1\na2\n")
    assert read_progress(kept, file, {}) is None
    progress = new_progress({"queue": "q"})
    progress.lines, progress.offset, progress.head = 1, 3, lines.head_of(file, 3)
    write_progress(kept, progress)

    assert read_progress(kept, file, {"queue": "q"}) == progress
    file.write_bytes(b"a1\nanother end\n")
    assert read_progress(kept, file, {"queue": "q"}) == progress
    assert list(tmp_path.glob("*.part")) == []


def test_the_key_of_a_batch_is_made_of_the_run_and_its_first_line() -> None:
    one, other = new_progress({}), new_progress({})
    first, second = read(b"a1\na2\na3\na4\n")

    assert len({one.key(first), one.key(second), other.key(first)}) == 3
    assert one.key(first) == one.key(first)
