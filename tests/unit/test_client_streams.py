"""A stream in pieces, without any I/O."""

import pytest

from queue_actor.client import Chunk, LineRefused, NewJob, NotUnderstood
from queue_actor.client_streams import PIECE_BYTES, PIECE_LINES, PIECE_SECONDS, Stream


def test_a_piece_has_so_many_lines_or_bytes_or_is_so_old() -> None:
    stream = Stream()
    assert [stream.add(b"{}", 0) for _ in range(PIECE_LINES)].index(True) == PIECE_LINES - 1
    stream = Stream()
    assert not stream.add(b"x" * (PIECE_BYTES // 2), 0)
    assert stream.add(b"x" * (PIECE_BYTES // 2), 0)
    stream = Stream()
    assert not stream.add(b"{}", 100)
    assert not stream.add(b"{}", 100 + PIECE_SECONDS / 2)
    assert stream.add(b"{}", 100 + PIECE_SECONDS)


def test_a_line_is_a_job_or_a_text_without_an_end() -> None:
    stream = Stream()
    stream.add(NewJob("t", "a\nb"), 0)
    stream.add(b'{"type":\n"t"}\r\n', 0)
    assert list(stream.lines) == [b'{"type":"t","payload":"a\\nb"}', b'{"type": "t"}']


def test_lines_that_were_answered_are_dropped_and_counted_on() -> None:
    stream = Stream()
    for n in range(5):
        stream.add(str(n).encode(), 0)
    stream.begin()
    stream.take(b'{"lines":2,"count":1,"first_id":1,"errors":[{"code":"invalid","detail":"d","line":1}]}')
    assert list(stream.lines) == [b"2", b"3", b"4"]
    stream.take(b'{"lines":4,"count":0,"error":{"code":"draining","detail":"d"}}')
    assert list(stream.chunks()) == [Chunk(2, 1, 1, errors=(LineRefused(1, "invalid", "d"),))]
    assert list(stream.chunks()) == []
    refused = stream.end()
    assert refused is not None
    assert (refused.code, list(stream.lines), stream.lines_done) == ("draining", [b"2", b"3", b"4"], 2)
    stream.begin()
    stream.take(b'{"lines":2,"count":1,"first_id":3,"errors":[{"code":"invalid","detail":"d","line":1}]}')
    assert stream.end() is None  # what is left are empty lines, which are not answered
    (chunk,) = stream.chunks()
    assert (chunk.lines, chunk.errors[0].line) == (4, 3)
    assert (list(stream.lines), stream.lines_done) == ([], 5)
    assert not stream.add(b"{}", 10**6)


def test_more_lines_than_were_sent_are_not_taken_off() -> None:
    stream = Stream()
    stream.add(b"{}", 0)
    stream.begin()
    stream.take(b'{"lines":9,"count":9}')
    assert (list(stream.lines), stream.lines_done) == ([], 1)


def test_a_line_of_something_else_is_not_understood() -> None:
    stream = Stream()
    stream.begin()
    with pytest.raises(NotUnderstood):
        stream.take(b"<html>")
