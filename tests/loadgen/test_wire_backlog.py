"""A process that was away stamps what waited event by event, over a socket that plays the kernel.

A real kernel joins waiting segments as it pleases; here the queue of segments is as told, so that
what the reads do can be compared with it exactly.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.body import AnswerBody
from loadgen.exchange import Exchange, Limits
from loadgen.replies import make_reply
from loadgen.stamps import SO_TIMESTAMPNS
from loadgen.target import HttpRequest, parse_target
from loadgen.wire import FRAMES_AT_ONCE, WireTransport, _Connection
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, F
from tests.loadgen.wiring import CHUNKED

TARGET = parse_target("http://127.0.0.1:1")


class QueueSocket:
    """Segments with stamps. As in the kernel, a read over several has the stamp of its last."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.segments: list[tuple[bytes, int]] = []  # bytes, wall clock in nanoseconds
        self.reads = 0

    def fileno(self) -> int:
        """Something to watch."""
        return self._pipe

    def recv(self, size: int, flags: int) -> bytes:
        """Look, and leave it there."""
        assert flags == socket.MSG_PEEK
        if not self.segments:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return b"".join(data for data, _ in self.segments)[:size]

    def recvmsg(self, size: int, _: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """Take up to ``size`` bytes, over segments' borders."""
        if not self.segments:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.reads += 1
        taken, stamp = b"", 0
        while self.segments and len(taken) < size:
            data, stamp = self.segments.pop(0)
            room = size - len(taken)
            if len(data) > room:
                self.segments.insert(0, (data[room:], stamp))
            taken += data[:room]
        payload = struct.pack("@ll", *divmod(stamp, 1_000_000_000))
        return taken, [(socket.SOL_SOCKET, SO_TIMESTAMPNS, payload)], 0, None

    def close(self) -> None:
        """Nothing to close."""


class Played:
    """A connection with an answer under way, its head read."""

    def __init__(self) -> None:
        self.transport = WireTransport()
        self._pipe = os.pipe()
        self.queue = QueueSocket(self._pipe[0])
        self.connection = _Connection(self.transport, self.queue, None, TARGET, stamped=True)  # type: ignore[arg-type]  # plays one
        self.reply = make_reply("chat")
        connection = self.connection
        connection._lane = None  # which reads real sockets only
        connection._exchange = Exchange(
            request=HttpRequest(TARGET, b"", b""), sent_at=time.monotonic()
        )
        connection._body, connection._limits = AnswerBody(self.reply), Limits()
        connection.drained_at = time.monotonic() - 10.0
        self.come([CHUNKED], [1.0])

    def come(self, pieces: list[bytes], ages_s: list[float]) -> None:
        """These segments came so long ago; then the loop gets round to reading."""
        now = time.time_ns()
        self.queue.segments += [
            (data, now - int(age * 1e9)) for data, age in zip(pieces, ages_s, strict=True)
        ]
        while self.queue.segments:
            self.connection._readable()

    def close(self) -> None:
        """Let go of what is open."""
        self.connection.close()
        self.transport.close()
        for fd in self._pipe:
            os.close(fd)


@pytest.fixture
def played() -> Played:
    """A connection with an answer under way."""
    return Played()


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.text("ab ", min_size=1, max_size=60), min_size=1, max_size=30),
    gaps_ms=st.lists(st.integers(1, 50), min_size=30, max_size=30),
)
def test_every_event_that_waited_keeps_its_own_instant(
    words: list[str], gaps_ms: list[int]
) -> None:
    """However long each is and whenever it came: the gaps are the kernel's, none is coalesced."""
    played = Played()
    try:
        gaps = gaps_ms[: len(words)]
        ages = [age / 1e3 for age in accumulate(reversed(gaps))][::-1]
        played.come([chunk(C(word)) for word in words], ages)
        reply = played.reply
    finally:
        played.close()

    assert (reply.n_answer, reply.coalesced) == (len(words), 0)
    assert list(reply.gaps_s) == pytest.approx([gap / 1e3 for gap in gaps[:-1]], abs=2e-4)


def test_segments_that_the_kernel_joined_are_counted(played: Played) -> None:
    """One stamp for both: which came when cannot be told, and the record says so."""
    played.come([chunk(C("a")), chunk(C("b")) + chunk(C("c"))], [0.030, 0.010])
    played.close()

    assert (played.reply.n_answer, played.reply.coalesced) == (3, 1)
    assert list(played.reply.gaps_s) == pytest.approx([0.020, 0.0], abs=2e-4)


def test_a_long_backlog_is_read_in_turns(played: Played) -> None:
    """One connection's backlog does not hold up the others for ever."""
    now = time.time_ns()
    played.queue.segments = [(chunk(C("a")), now - 30_000_000 + i) for i in range(20)]
    before = played.queue.reads
    played.connection._readable()
    took = played.queue.reads - before
    played.close()

    assert took == FRAMES_AT_ONCE


def test_who_keeps_up_reads_all_at_once(played: Played) -> None:
    """One system call an event, as long as the loop is not behind."""
    played.connection._backlog.likely(time.monotonic())
    played.connection._backlog.state[1] = 0.0
    before = played.queue.reads
    now = time.time_ns()
    played.queue.segments = [(chunk(C("a")) + chunk(C("b")), now)]
    played.connection._readable()
    played.close()

    assert played.queue.reads - before == 1
    assert (played.reply.n_answer, played.reply.coalesced) == (2, 1)


@pytest.mark.parametrize("beyond", [b"", b"x", b"HTTP/1.1 200 OK\r\n"])
def test_what_lies_beyond_the_answer_spoils_the_connection(played: Played, beyond: bytes) -> None:
    """It is seen though it is not read: the next answer must not begin with it."""
    connection = played.connection
    connection._all_sent = True
    played.queue.segments = [(chunk(C("a") + F()) + LAST_CHUNK + beyond, time.time_ns())]
    connection._readable()
    reusable = connection._reusable
    played.close()

    assert (played.reply.n_answer, reusable) == (1, not beyond)
