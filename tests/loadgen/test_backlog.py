"""When a socket may hold more than one event, and how much to read for one of them."""

from __future__ import annotations

import pytest

from loadgen.backlog import AWAY_S, CATCH_UP_S, Backlog, frame_bytes

EVENT = b'data: {"a":1}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
RECORD = b"\x17\x03\x03\x01\x02" + bytes(0x102)


@pytest.mark.parametrize(
    ("frame", "tls"),
    [(CHUNK, False), (EVENT, False), (HEAD, False), (b"0\r\n\r\n", False), (RECORD, True)],
    ids=["a chunk", "an event", "a head", "the last chunk", "a TLS record"],
)
@pytest.mark.parametrize("after", [b"", b"x", CHUNK, RECORD])
def test_a_frame_is_read_to_its_end_and_no_further(frame: bytes, after: bytes, tls: bool) -> None:
    """Whatever follows it in the socket."""
    assert frame_bytes(frame + after, tls=tls) == len(frame)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("start", [b"", b"x", b"\n", b"zz\r\nabc", b"\x00\x01", b"data: a\n"])
def test_what_begins_no_frame_has_no_length(start: bytes, tls: bool) -> None:
    """It is then read as it comes."""
    assert frame_bytes(start, tls=tls) is None


def test_a_long_chunk_is_known_by_its_first_line() -> None:
    """Its end need not be in sight."""
    assert frame_bytes(b"ffff\r\ndata: a", tls=False) == 0xFFFF + 8


def test_who_keeps_up_reads_as_it_comes() -> None:
    """No backlog is suspected between reads that follow one another closely."""
    backlog = Backlog()
    backlog.note(1.0, 0.0)

    assert not backlog.likely(1.0 + AWAY_S / 2)


@pytest.mark.parametrize("away_s", [AWAY_S * 1.5, 0.02, 0.1])
def test_who_was_away_catches_up_for_as_long(away_s: float) -> None:
    """Nothing was read for a while; what came meanwhile lies in every socket."""
    backlog = Backlog()
    backlog.note(1.0, 0.0)
    back_at = 1.0 + away_s

    assert backlog.likely(back_at)
    backlog.note(back_at, 0.0)
    later = back_at
    while later < back_at + away_s - AWAY_S:
        later += AWAY_S / 2
        backlog.note(later, 0.0)
        assert backlog.likely(later)
    backlog.note(back_at + away_s, 0.0)
    assert not backlog.likely(back_at + away_s)


def test_a_read_that_came_late_means_that_others_do() -> None:
    """Reads follow closely, but each finds what has waited: the process is behind."""
    backlog = Backlog()
    backlog.note(1.0, 2 * AWAY_S)

    assert backlog.likely(1.0 + AWAY_S / 2)
    backlog.note(1.0 + 2 * AWAY_S, 0.0)
    assert not backlog.likely(1.0 + 2 * AWAY_S)


def test_idleness_is_not_caught_up_with_for_ever() -> None:
    """An hour without a request has left no hour of events."""
    backlog = Backlog()
    backlog.note(1.0, 0.0)
    assert backlog.likely(3600.0)
    backlog.note(3600.0 + CATCH_UP_S, 0.0)

    assert not backlog.likely(3600.0 + CATCH_UP_S)


def test_the_clock_alone_says_nothing_of_a_backlog() -> None:
    """Without the kernel's stamp there is no delay to go by."""
    backlog = Backlog()
    backlog.note(1.0, None)

    assert not backlog.likely(1.0)
