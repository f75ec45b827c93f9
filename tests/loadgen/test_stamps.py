"""Arrival instants out of kernel stamps."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from loadgen.stamps import ANCILLARY_BYTES, SO_TIMESTAMPNS, KernelStamps, StampCounts

WALL_NS = 1_700_000_000_250_000_000
NOW = 5000.0
Ancillary = list[tuple[int, int, bytes]]


def stamp(age_ns: int, kind: int = SO_TIMESTAMPNS) -> tuple[int, int, bytes]:
    """What the kernel hands out with a segment that came ``age_ns`` ago."""
    seconds, nanoseconds = divmod(WALL_NS - age_ns, 1_000_000_000)
    return socket.SOL_SOCKET, kind, struct.pack("@ll", seconds, nanoseconds)


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelStamps]:
    """Stamps whose clocks stand still."""
    clocks = SimpleNamespace(time_ns=lambda: WALL_NS, monotonic=lambda: NOW)
    monkeypatch.setattr("loadgen.stamps.time", clocks)
    stamps = KernelStamps()
    yield stamps
    stamps.close()


@pytest.mark.parametrize(
    ("ancillary", "arrival", "delay", "counts"),
    [
        ([stamp(1_000_000)], NOW - 0.001, 0.001, StampCounts(kernel=1)),
        ([stamp(0)], NOW, 0.0, StampCounts(kernel=1)),
        ([stamp(999_000_000)], NOW - 0.999, 0.999, StampCounts(kernel=1)),
        ([stamp(-1)], NOW, None, StampCounts(refused=1)),
        ([stamp(-3_600_000_000_000)], NOW, None, StampCounts(refused=1)),
        ([stamp(1_001_000_000)], NOW, None, StampCounts(refused=1)),
        ([stamp(3_600_000_000_000)], NOW, None, StampCounts(refused=1)),
        ([], NOW, None, StampCounts(clock=1)),
        ([stamp(1_000_000, kind=29)], NOW, None, StampCounts(clock=1)),
        ([(socket.IPPROTO_TCP, SO_TIMESTAMPNS, b"x" * 16)], NOW, None, StampCounts(clock=1)),
        ([stamp(5, kind=29), stamp(1_000_000)], NOW - 0.001, 0.001, StampCounts(kernel=1)),
    ],
    ids=[
        "a millisecond ago",
        "just now",
        "since the socket was drained",
        "in the future",
        "the clock was set back an hour",
        "before the socket was drained",
        "the clock was set on an hour",
        "none",
        "another stamp",
        "another level",
        "among others",
    ],
)
def test_an_arrival(
    stamps: KernelStamps,
    ancillary: Ancillary,
    arrival: float,
    delay: float | None,
    counts: StampCounts,
) -> None:
    """A stamp that can be true is taken; else the read's own time stands in, and is counted."""
    at, how_late, now = stamps.arrival(ancillary, NOW - 1.0)

    assert now == NOW
    assert at == pytest.approx(arrival, abs=1e-9)
    assert how_late == pytest.approx(delay, abs=1e-9)
    assert stamps.counts == counts


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        (StampCounts(), None),
        (StampCounts(kernel=5), "kernel"),
        (StampCounts(clock=5), "clock"),
        (StampCounts(refused=5), "clock"),
        (StampCounts(kernel=1000, clock=5, refused=4), "kernel"),
        (StampCounts(kernel=90, clock=10), "mixed"),
        (StampCounts(kernel=1, clock=1000), "mixed"),
    ],
)
def test_a_run_says_where_its_instants_come_from(counts: StampCounts, kind: str | None) -> None:
    """One in a hundred reads without a stamp changes no percentile that is shown."""
    assert counts.kind == kind


def test_the_kernel_stamps_what_comes_not_what_is_read() -> None:
    """A read that is late by 30 ms says so, and its arrival lies before."""
    stamps = KernelStamps()
    assert stamps.enabled
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        assert stamps.enable(receiver)
        drained_at = time.monotonic()
        sender.sendto(b"x", receiver.getsockname())
        sent_at = time.monotonic()
        time.sleep(0.03)
        _, ancillary, _, _ = receiver.recvmsg(100, ANCILLARY_BYTES)
        at, delay, now = stamps.arrival(ancillary, drained_at)
    stamps.close()

    assert delay is not None
    assert delay >= 0.03
    assert at == pytest.approx(now - delay)
    assert drained_at <= at < sent_at + 0.02
    assert stamps.counts == StampCounts(kernel=1)


def test_a_socket_that_cannot_be_stamped_is_no_error() -> None:
    """The clock stands in there."""
    closed = socket.socket()
    closed.close()

    assert not KernelStamps.enable(closed)
