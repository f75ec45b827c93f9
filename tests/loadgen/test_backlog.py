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
@pytest.mark.parametrize(
    "start", [b"", b"x", b"\n", b"zz\r\nabc", b"-7\r\na", b"\x00\x01", b"data: a\n"]
)
def test_what_begins_no_frame_has_no_length(start: bytes, tls: bool) -> None:
    """It is then read as it comes."""
    assert frame_bytes(start, tls=tls) is None


def test_a_long_chunk_is_known_by_its_first_line() -> None:
    """Its end need not be in sight."""
    assert frame_bytes(b"ffff\r\ndata: a", tls=False) == 0xFFFF + 8


@pytest.fixture
def backlog() -> Backlog:
    """Of a process that has kept up until 1.0 s."""
    backlog = Backlog()
    backlog.likely(0.0)
    at = 0.0
    while at < 1.0:
        at += AWAY_S / 2
        backlog.likely(at)
    assert not backlog.likely(1.0)
    return backlog


def test_who_keeps_up_reads_as_it_comes(backlog: Backlog) -> None:
    """No backlog is suspected between reads that follow one another closely."""
    assert not backlog.likely(1.0 + AWAY_S / 2)


@pytest.mark.parametrize("away_s", [AWAY_S * 1.5, 0.02, 0.1])
def test_who_was_away_catches_up_for_as_long(backlog: Backlog, away_s: float) -> None:
    """Nothing was read for a while; what came meanwhile lies in every socket."""
    at = back_at = 1.0 + away_s
    suspected = 0
    while backlog.likely(at):
        suspected += 1
        at += AWAY_S / 4

    assert at - back_at == pytest.approx(away_s, abs=AWAY_S / 4)
    assert suspected > 1


def test_a_read_that_came_late_means_that_others_do(backlog: Backlog) -> None:
    """Reads follow closely, but one finds what has waited: the process is behind."""
    backlog.late(1.0, 2 * AWAY_S)

    assert backlog.likely(1.0 + AWAY_S)
    assert backlog.likely(1.0 + 1.9 * AWAY_S)
    assert not backlog.likely(1.0 + 2 * AWAY_S)


def test_idleness_is_not_caught_up_with_for_ever(backlog: Backlog) -> None:
    """An hour without a request has left no hour of events."""
    at = 3600.0
    while backlog.likely(at):
        at += AWAY_S / 2

    assert at == pytest.approx(3600.0 + CATCH_UP_S, abs=AWAY_S)
