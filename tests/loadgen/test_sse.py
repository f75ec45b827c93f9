"""Server-sent events out of bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import DecodeError
from loadgen.sse import SseDecoder, SseEvent

BOM = b"\xef\xbb\xbf"

# Bytes that a stream's structure is made of come often, so that random ones are not all one line.
PIECES = (
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b" ", BOM, b"\xe2\x80\xa8", b"\x00"])
    | st.sampled_from([b"data:", b"data: ", b"data", b"event: x", b"error: e", b": c", b"id: 1"])
    | st.binary(max_size=6)
)
STREAMS = st.lists(PIECES, max_size=30).map(b"".join)


def decode(stream: bytes, cuts: list[int] | None = None, limit: int = 1 << 20) -> list[SseEvent]:
    """Every event of a stream that arrives in pieces."""
    decoder = SseDecoder(limit)
    edges = [0, *sorted(c % (len(stream) + 1) for c in cuts or ()), len(stream)]
    events = []
    for start, end in pairwise(edges):
        events += decoder.feed(stream[start:end])
    return events + decoder.finish()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data: a \t\n\n", [(b"", b"a \t")]),
        (b"data: a\r\n\r\n", [(b"", b"a")]),
        (b"data: a\r\r", [(b"", b"a")]),
        (b"data: a\n\r\ndata: b\r\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\n\n\n\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"data\n\n", [(b"", b"")]),
        (b"data:\ndata\n\n", [(b"", b"\n")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (b"", b"b")]),
        (b"event: x\n\ndata: b\n\n", [(b"", b"b")]),
        (b"event: x\nevent: y\ndata: a\n\n", [(b"y", b"a")]),
        (b"id: 7\nretry: 1\nfoo: bar\nnocolon\ndata: a\n\n", [(b"", b"a")]),
        (b": c\ndata: a\n: c\n\n: c\n\n", [(b"", b"a")]),
        (b"error: boom\n\n", [(b"error", b"boom")]),
        (BOM + b"data: a\n\n", [(b"", b"a")]),
        (BOM + BOM + b"data: a\n\ndata: b\n\n", [(b"", b"b")]),
        (b"data: a\n\n" + BOM + b"data: b\n\n", [(b"", b"a")]),
        (BOM[:2], []),
        (b"", []),
        (b"\n\n\n", []),
        (
            "data: a\u2028b\u0085c\u2029d\x0b\x0c\n\n".encode(),
            [(b"", "a\u2028b\u0085c\u2029d\x0b\x0c".encode())],
        ),
        (b"data: a\n", [(b"", b"a")]),
        (b"data: a", [(b"", b"a")]),
        (b"data: a\n\nevent: x\n", [(b"", b"a")]),
    ],
)
def test_a_stream_is_these_events(stream: bytes, events: list[SseEvent]) -> None:
    """In one piece and byte by byte alike."""
    assert decode(stream) == events
    assert decode(stream, list(range(len(stream)))) == events


def test_a_carriage_return_ends_its_line_at_once() -> None:
    """The event is there before the LF that may follow, and that LF ends no line of its own."""
    decoder = SseDecoder()

    assert decoder.feed(b"data: a\r\n\r") == [(b"", b"a")]
    assert decoder.feed(b"\ndata: b\r") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\r\n") == [(b"", b"b")]


def test_comments_are_counted() -> None:
    """Alone, empty, and inside an event."""
    decoder = SseDecoder()
    decoder.feed(b": ping\n\n:\n\ndata: a\n: x\n\n")

    assert decoder.comments == 3


@pytest.mark.parametrize(
    ("stream", "unterminated"),
    [(b"data: a\n\n", False), (b"data: a\n", True), (b"data: a", True), (b": c", False)],
)
def test_only_pending_data_counts_as_unterminated(stream: bytes, unterminated: bool) -> None:
    """A stream that ends within a comment has lost nothing."""
    decoder = SseDecoder()
    decoder.feed(stream)
    decoder.finish()

    assert decoder.unterminated is unterminated


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(min_value=0), max_size=8))
def test_any_segmentation_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """Whatever the bytes, and wherever reads end."""
    assert decode(stream, cuts) == decode(stream)


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(min_value=0), max_size=8), st.integers(1, 40))
def test_the_limit_alters_no_event(stream: bytes, cuts: list[int], limit: int) -> None:
    """A stream is decoded as it would be without the limit, or refused."""
    try:
        events = decode(stream, cuts, limit)
    except DecodeError:
        return
    assert events == decode(stream)


@pytest.mark.parametrize(
    "endless",
    [b"x", b"data: x", b"data: x\n", b"data\n", b"error: x\n"],
    ids=["a line", "a data line", "data lines", "empty data lines", "error fields"],
)
def test_an_event_larger_than_the_limit_is_an_error(endless: bytes) -> None:
    """However its bytes are spread over lines."""
    decoder = SseDecoder(max_event_bytes=1000)
    with pytest.raises(DecodeError, match="larger than 1000 bytes"):
        feed_all(decoder, repeat(endless, 1001))


@pytest.mark.parametrize("endless", [b": ping\n", b"event: x\n", b"id: 1\n", b"\n"])
def test_what_is_not_kept_has_no_limit(endless: bytes) -> None:
    """A stream may wait for its first event as long as it likes."""
    decoder = SseDecoder(max_event_bytes=1000)
    for _ in range(2000):
        decoder.feed(endless)

    assert decoder.feed(b"\ndata: a\n\n") == [(b"", b"a")]


def test_memory_stays_near_the_limit_however_small_the_reads() -> None:
    """Two bytes a read cost two bytes, not an object each."""
    limit = 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            feed_all(SseDecoder(limit), repeat(b"xy", limit))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3 * limit


def feed_all(decoder: SseDecoder, chunks: Iterable[bytes]) -> None:
    """Feed one chunk after another."""
    for chunk in chunks:
        decoder.feed(chunk)
