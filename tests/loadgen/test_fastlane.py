"""The fast lane, over real sockets: it keeps what Python would have made of the same reads."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gevent
import pytest
from gevent import monkey
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.records import Outcome, RequestRecord
from loadgen.backlog import AWAY_S, Backlog
from loadgen.body import AnswerBody
from loadgen.client import Ask, Client, Endpoint
from loadgen.exchange import Limits
from loadgen.fastlane import FAST_LANE, Readiness, framed
from loadgen.fingerprint import Fingerprints
from loadgen.plain import PlainEvent
from loadgen.replies import make_reply
from loadgen.reply import ANSWER
from loadgen.stamps import ANCILLARY_BYTES, KernelStamps
from loadgen.target import parse_target
from loadgen.wire import FRAMES_AT_ONCE, READ_BYTES, WireTransport
from reference_server.byteserver import ByteServer, Play, Then
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, D, F, R, U
from tests.loadgen.test_cases import TIMED
from tests.loadgen.wiring import CHUNKED, PATIENCE_S, ask

pytestmark = pytest.mark.skipif(
    FAST_LANE is None and "cc" not in os.environ.get("STREAMGAUGE_REQUIRE", ""),
    reason="the fast lane was not compiled: no C compiler was there at install",
)

EVENT = PlainEvent(b'data: {"id":"a","choices":[{"delta":{"content":"', b'"}}]}\n\n')
_sleep = monkey.get_original("time", "sleep")
MANY = 8192  # events kept before somebody has to fetch them


def plain(text: bytes) -> bytes:
    """A chunk with the event that repeats."""
    return chunk(EVENT.head + text + EVENT.tail)


class Kept(NamedTuple):
    """What was kept of a connection's events."""

    events: int
    coalesced: int
    is_first_coalesced: int
    gaps: bytes
    text: str
    stamp: bytes
    at: float
    drained_at: float


class Lane:
    """A connection in the lane, and its other end."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.ours = socket.create_connection(server.getsockname())
            self.theirs, _ = server.accept()
        self.theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ours.setblocking(False)
        self.stamps = KernelStamps()
        self.stamps.enable(self.ours)
        self.backlog = Backlog()
        self.tolerate(PATIENCE_S)
        assert FAST_LANE is not None
        self.lane = FAST_LANE(self.backlog.state)
        self.fd = self.ours.fileno()
        self.lane.add(self.fd)
        self.enter()

    def enter(self, stamp: bytes = bytes(16)) -> None:
        """Open the lane; the last event came just now."""
        now = time.monotonic()
        self.lane.enter(self.fd, EVENT.head, EVENT.tail, stamp, now, now, now - PATIENCE_S)

    def hold_acknowledgements(self) -> None:
        """So that loopback does not join the segments that wait."""
        self.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def come(self, data: bytes) -> float:
        """These bytes come in one segment; the kernel's stamp of it, wall clock seconds."""
        self.keep_up()
        self.theirs.sendall(data)
        peeked, ancillary, _, _ = self.ours.recvmsg(65536, ANCILLARY_BYTES, socket.MSG_PEEK)
        assert peeked == data
        (payload,) = [p for _, kind, p in ancillary if kind]
        seconds, nanoseconds = struct.unpack_from("@ll", payload)
        return float(seconds) + nanoseconds * 1e-9

    def tolerate(self, away_s: float) -> None:
        """From when on the loop was away; tests of other things bear with a slow machine."""
        self.backlog.state[2] = away_s

    def keep_up(self) -> None:
        """The loop has not been away."""
        self.backlog.state[0] = time.monotonic()
        self.backlog.state[1] = 0.0

    def drain(self) -> list[object]:
        """What the lane does not keep."""
        return [read for fd, read in self.lane.drain() if fd == self.fd]

    def settle(self) -> Kept:
        """What was kept."""
        kept = self.lane.settle(self.fd)
        assert kept is not None
        return Kept(*kept)

    def close(self) -> None:
        """Close everything."""
        self.lane.close()
        self.ours.close()
        self.theirs.close()
        self.stamps.close()


@pytest.fixture(scope="module", autouse=True)
def stamping() -> Iterator[None]:
    """The kernel begins to stamp some time after the first socket has asked for it."""
    keeper = KernelStamps()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    keeper.enable(ours)
    ancillary: list[Any] = []
    while not ancillary:
        theirs.send(b"x")
        _, ancillary, _, _ = ours.recvmsg(1, ANCILLARY_BYTES)
    yield
    for sock in (ours, theirs):
        sock.close()
    keeper.close()


@contextmanager
def lane() -> Iterator[Lane]:
    """One connection in the lane."""
    opened = Lane()
    try:
        yield opened
    finally:
        opened.close()


def encoded(text: str) -> bytes:
    """As UTF-8, half a surrogate pair as what no decoder takes."""
    return text.encode("utf-8", "surrogatepass")


texts = st.one_of(
    st.text("ab {}[]:,'", min_size=1, max_size=9).map(str.encode),
    st.binary(max_size=9),
    st.sampled_from([b"", b'"', b"\\n", b"a\nb", b'"}}]}', b"\x7f", b"\x1f", b" ~", b"\\x", b"\\"]),
    st.text(max_size=9).map(lambda text: json.dumps(text)[1:-1].encode()),
    st.text(max_size=9).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1]).map(encoded),
)
chunks = st.one_of(
    texts.map(plain),
    texts.map(lambda text: chunk(EVENT.head.replace(b'"a"', b'"b"') + text + EVENT.tail)),
    texts.map(lambda text: plain(text)[:-1]),
    texts.map(lambda text: plain(text) + b"0"),
    texts.map(lambda text: plain(text).upper()),
    texts.map(lambda text: b"0" + plain(text)),
    texts.map(lambda text: plain(text) + plain(text)),
    texts.map(lambda text: chunk(b": " + text + b"\n\n")),
    st.sampled_from(
        [b"\r\n", b"0\r\n\r\n", b"\r", b"g\r\n", b"7fffffff\r\n", b"fffffffffffff\r\n"]
    ),
    st.binary(min_size=1, max_size=300),
)


@settings(deadline=None, max_examples=120)
@given(st.lists(chunks, min_size=1, max_size=12))
def test_the_lane_keeps_what_python_would_keep_and_hands_on_the_rest(reads: list[bytes]) -> None:
    """Event by event the same choice, the same text, and the kernel's own gaps."""
    with lane() as opened:
        before_s = None
        for data in reads:
            stamp_s = opened.come(data)
            read = opened.drain()
            payload = framed(data)
            text = None if payload is None else EVENT.text(payload)
            kept = opened.settle()
            if text is None or b"\\u" in data:  # such an escape is Python's
                assert (kept.events, kept.gaps, kept.text) == (0, b"", "")
                assert [r[0] for r in read if isinstance(r, tuple)] == [data]
                opened.enter()
                before_s = None
                continue
            assert (read, kept.events, kept.coalesced, kept.text) == ([], 1, 0, text)
            (gap_s,) = array("f", kept.gaps)
            if before_s is not None:
                assert gap_s == pytest.approx(stamp_s - before_s, abs=5e-5)
            before_s = stamp_s


def test_what_was_kept_is_told_once_and_in_order() -> None:
    """Several events between two looks: all texts joined, a gap for each, nothing twice."""
    with lane() as opened:
        words = [b" a", b" word", b" or", b" two"]
        stamps_s = []
        for word in words:
            stamps_s.append(opened.come(plain(word)))
            assert opened.drain() == []
        kept, again, now = opened.settle(), opened.settle(), time.monotonic()
    assert (kept.events, kept.coalesced, kept.text) == (4, 0, " a word or two")
    spans_s = [b - a for a, b in itertools.pairwise(stamps_s)]
    assert list(array("f", kept.gaps))[1:] == pytest.approx(spans_s, abs=5e-5)
    seconds, nanoseconds = struct.unpack("@ll", kept.stamp)
    assert seconds + nanoseconds * 1e-9 == stamps_s[-1]
    assert kept.at <= kept.drained_at <= now
    assert (again.events, again.gaps, again.text) == (0, b"", "")


def test_beyond_what_is_kept_events_are_handed_on() -> None:
    """Memory is bounded: with nobody to fetch what is kept, the next event is Python's."""
    with lane() as opened:
        for number in range(MANY + 1):
            opened.come(plain(b"x"))
            read = opened.drain()
            assert len(read) == (number == MANY)
        assert opened.settle().events == MANY


def test_long_texts_are_bounded_too() -> None:
    """64 KiB of text, however few events it comes in."""
    with lane() as opened:
        kept = 0
        while not opened.drain():
            opened.come(plain(b"x" * 20_000))
            kept += 1
        found = opened.settle()
    assert found.events == kept - 1
    assert len(found.text) == 20_000 * found.events <= 65536


def test_after_an_absence_each_event_keeps_its_own_instant() -> None:
    """Several were waiting: they are read one by one, and what is no such event is left alone."""
    odd = chunk(EVENT.head + b"\\u0041" + EVENT.tail)
    with lane() as opened:
        stamps_s = [opened.come(plain(b"a"))]
        assert opened.drain() == []
        opened.hold_acknowledgements()
        for data in (plain(b"b"), plain(b"c"), odd):
            opened.theirs.sendall(data)
            stamps_s.append(time.time())
            time.sleep(0.003)
        opened.tolerate(AWAY_S)
        opened.backlog.state[0] -= 1.0
        assert opened.drain() == [False]
        left = opened.ours.recv(65536, socket.MSG_PEEK)
        kept = opened.settle()
    assert left == odd
    assert (kept.events, kept.coalesced, kept.text) == (3, 0, "abc")
    spans_s = [b - a for a, b in itertools.pairwise(stamps_s[:3])]
    assert list(array("f", kept.gaps))[1:] == pytest.approx(spans_s, abs=1e-3)


def test_events_of_one_segment_are_told_to_be() -> None:
    """Read one by one they have one stamp: no gap between them, and they count as coalesced."""
    with lane() as opened:
        opened.come(plain(b"a") + plain(b"b") + plain(b"c"))
        opened.tolerate(AWAY_S)
        opened.backlog.state[0] -= 1.0
        assert opened.drain() == []
        kept = opened.settle()
        opened.enter(kept.stamp)
        opened.come(plain(b"d"))
        opened.backlog.state[0] -= 1.0
        assert opened.drain() == []
        another = opened.settle()
    assert (kept.events, kept.coalesced, kept.is_first_coalesced) == (3, 2, 0)
    assert list(array("f", kept.gaps))[1:] == [0.0, 0.0]
    assert (another.events, another.coalesced) == (1, 0)


def test_the_first_event_in_the_lane_may_share_a_segment_with_the_last_one_before() -> None:
    """Whose stamp the lane was given; where that was the first of all, the record has to say so."""
    with lane() as opened:
        opened.come(plain(b"a") + plain(b"b"))
        data, ancillary, _, _ = opened.ours.recvmsg(len(plain(b"a")), ANCILLARY_BYTES)
        assert data == plain(b"a")
        opened.enter(ancillary[0][2])
        opened.tolerate(AWAY_S)
        opened.backlog.state[0] -= 1.0
        assert opened.drain() == []
        kept = opened.settle()
    assert (kept.events, kept.coalesced, kept.is_first_coalesced) == (1, 1, 1)
    reply = make_reply("chat")
    reply._output(ANSWER, 1, 1.0, 1, None)
    reply.repeated(1, (kept.coalesced, True), kept.gaps, kept.text, 1.0, 1)
    assert (reply.coalesced, reply.first_coalesced, len(reply.gaps_s)) == (1, True, 1)
    reply.repeated(1, (kept.coalesced, True), kept.gaps, kept.text, 1.0, 1)
    assert reply.coalesced == 2


def test_after_an_absence_others_have_their_turn() -> None:
    """One connection's backlog is read some events at a time."""
    with lane() as opened:
        opened.come(b"".join(plain(b"x") for _ in range(4)))
        for _ in range(4):
            opened.theirs.sendall(b"".join(plain(b"x") for _ in range(4)))
        opened.tolerate(AWAY_S)
        opened.backlog.state[0] -= 1.0
        assert opened.drain() == []
        assert opened.settle().events == FRAMES_AT_ONCE


def test_a_late_read_is_noticed() -> None:
    """An event that waited longer than is usual puts the process into catching up."""
    with lane() as opened:
        opened.come(plain(b"a"))
        time.sleep(2 * AWAY_S)  # what it is late by is told by the kernel's clock alone
        opened.keep_up()
        opened.tolerate(2 * AWAY_S)
        assert opened.drain() == []
        assert opened.backlog.state[1] > time.monotonic() - PATIENCE_S


def test_a_stamp_that_cannot_be_true_is_not_believed() -> None:
    """Older than the last look at an empty socket: Python counts and replaces it."""
    with lane() as opened:
        opened.come(plain(b"a"))
        now = time.monotonic()
        opened.lane.enter(opened.fd, EVENT.head, EVENT.tail, bytes(16), now, now, now + 1.0)
        (read,) = opened.drain()
    assert isinstance(read, tuple)
    assert read[0] == plain(b"a")


def test_an_orderly_end_and_a_reset_are_handed_on() -> None:
    """No bytes for the one, the error for the other."""
    with lane() as ended:
        ended.keep_up()
        ended.theirs.close()
        (read,) = ended.drain()
        assert read == (b"", [], READ_BYTES)
    with lane() as reset:
        reset.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.keep_up()
        reset.theirs.close()
        (error,) = reset.drain()
    assert isinstance(error, OSError)
    assert error.errno == errno.ECONNRESET


def test_who_is_not_in_the_lane_is_only_told_of() -> None:
    """Before the first event that repeats, and after the lane was left."""
    with lane() as opened:
        opened.lane.leave(opened.fd)
        opened.come(plain(b"a"))
        assert opened.drain() == [None]
        assert opened.lane.settle(opened.fd) is None
        opened.lane.remove(opened.fd)
        assert opened.drain() == []
        with pytest.raises(OSError, match="No such file"):
            opened.lane.remove(opened.fd)


@pytest.mark.parametrize("fd", [-1, (1 << 31) - 1, 1 << 40, 1 << 80, "a"])
def test_what_is_no_descriptor_is_refused(fd: object) -> None:
    """As an error, never as a crash."""
    with lane() as opened:
        for call in (
            *(opened.lane.add, opened.lane.remove),
            *(opened.lane.settle, opened.lane.leave),
        ):
            with pytest.raises((ValueError, OverflowError, TypeError)):
                call(fd)
        with pytest.raises((ValueError, OverflowError, TypeError)):
            opened.lane.enter(fd, b"", b"", bytes(16), 0.0, 0.0, 0.0)


def test_one_connections_fault_does_not_cost_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    """What one callback raises is told to gevent, and the next is still called."""
    called = []
    readiness = Readiness(Backlog().state)
    pairs = [socket.socketpair() for _ in range(2)]

    def told(read: object) -> None:
        called.append(read)
        readiness.stop(pairs[len(called) - 1][0].fileno())
        raise ValueError("of ours")

    for ours, theirs in pairs:
        readiness.start(ours.fileno(), told)
        theirs.send(b"x")
    gevent.sleep(0.01)
    readiness.close()
    for pair in pairs:
        for end in pair:
            end.close()
    assert called == [None, None]
    assert capfd.readouterr().err.count("ValueError: of ours") == 2


WORDS = [" to", " be", " or", "\u00e9", " not", '"', " to", "\x00", " be", "\n", " that", " is"] * 5


def recorded(monkeypatch: pytest.MonkeyPatch, *, in_lane: bool) -> tuple[RequestRecord, int]:
    """The record of one answer, and how many reads of its body Python decoded."""
    decoded = []
    decode = AnswerBody.data

    def data(self: AnswerBody, chunk: bytes, *where: Any) -> bool:
        decoded.append(chunk)
        return decode(self, chunk, *where)

    monkeypatch.setattr(AnswerBody, "data", data)
    monkeypatch.setattr("loadgen.backlog.AWAY_S", PATIENCE_S)  # one slow stream is no absence
    if not in_lane:
        monkeypatch.setattr("loadgen.fastlane.FAST_LANE", None)
    writes = [(5.0 * n, chunk(C(word))) for n, word in enumerate(WORDS, start=1)]
    last = (5.0 * len(WORDS) + 5, chunk(F() + U(7, len(WORDS)) + D) + LAST_CHUNK)
    records: list[RequestRecord] = []
    with ByteServer(Play(writes=((0.0, CHUNKED + chunk(R)), *writes, last))) as server:
        transport = WireTransport()
        client = Client(
            transport,
            Endpoint(target=parse_target(server.url), model="m"),
            Limits(total_s=PATIENCE_S),
            run_id="r",
            scenario="s",
            worker="w",
            began_at=time.monotonic(),
            emit=records.append,
            fingerprints=Fingerprints(b"s" * 32),
        )
        transport.backlog.state[0] = time.monotonic()
        client.ask(Ask(task="t", prompt="p", max_tokens=60), time.monotonic())
        transport.close()
    monkeypatch.undo()
    (record,) = records
    return record, len(decoded)


def test_a_record_is_the_same_with_the_lane_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer, as many gaps, which add up; and most reads were no business of Python."""
    ours, few = recorded(monkeypatch, in_lane=True)
    theirs, all_reads = recorded(monkeypatch, in_lane=False)
    same = ("outcome", "output_events", "output_tokens", "answer_hash", "answer_chain")
    assert [getattr(ours, n) for n in same] == [getattr(theirs, n) for n in same]
    assert set(ours.flags) - TIMED == set(theirs.flags) - TIMED
    for record in (ours, theirs):
        assert record.gaps_s is not None
        assert record.first_token_at_s is not None
        assert record.last_token_at_s is not None
        span_s = record.last_token_at_s - record.first_token_at_s
        assert sum(record.gaps_s) == pytest.approx(span_s, abs=1e-4)
        assert len(record.gaps_s) == record.output_events.total - 1 == len(WORDS) - 1
    assert few < all_reads / 2


def test_events_that_waited_are_read_by_one_reader_at_a_time() -> None:
    """Python leaves the rest to the lane once it is in it: gaps add up, whoever read what."""
    texts = ["\x00" if n % 11 == 0 else f" {n}" for n in range(1, 61)]  # an escape is Python's
    waiting = [(2.0 * n, chunk(C(text))) for n, text in enumerate(texts, start=1)]
    last = (130.0, chunk(F() + U(7, 60) + D) + LAST_CHUNK)
    blocked = iter((0.020, 0.045, 0.030))
    with ByteServer(Play(writes=((0.0, CHUNKED + chunk(R)), *waiting, last))) as server:
        transport = WireTransport()

        def block() -> None:
            for seconds in blocked:
                gevent.sleep(0.01)
                _sleep(seconds)  # not gevent's: the loop itself is away

        blocker = gevent.spawn(block)
        reply = ask(transport, server.url).reply
        blocker.join()
        transport.close()
    assert reply.first_output_at is not None
    assert reply.last_output_at is not None
    assert (reply.n_answer, len(reply.gaps_s)) == (60, 59)
    span_s = reply.last_output_at - reply.first_output_at
    assert sum(reply.gaps_s) == pytest.approx(span_s, abs=1e-4)


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_an_event_cut_in_two_is_not_taken_for_the_beginning_of_another(
    monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """After a read that ended within a chunk the lane waits until the parser is between two."""
    whole = [chunk(C(f" {n}")) for n in range(20)]
    torn = [piece for each in whole[10:] for piece in (each[:cut], each[cut:])]
    writes = [(5.0 * n, data) for n, data in enumerate([*whole[:10], *torn, whole[0]], start=1)]
    last = (200.0, chunk(F() + U(7, 21) + D) + LAST_CHUNK)
    monkeypatch.setattr("loadgen.backlog.AWAY_S", PATIENCE_S)
    with ByteServer(Play(writes=((0.0, CHUNKED + chunk(R)), *writes, last))) as server:
        transport = WireTransport()
        transport.backlog.state[0] = time.monotonic()
        seen = ask(transport, server.url)
        transport.close()
    assert (seen.outcome, seen.reply.n_answer, len(seen.reply.gaps_s)) == (Outcome.OK, 21, 20)


def test_who_looks_at_an_open_request_sees_what_the_lane_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server is given up by the time since its last event, which only the lane has seen."""
    monkeypatch.setattr("loadgen.backlog.AWAY_S", PATIENCE_S)
    writes = [(10.0 * n, chunk(C(" a"))) for n in range(1, 41)]
    with ByteServer(Play(writes=((0.0, CHUNKED + chunk(R)), *writes), then=Then.HOLD)) as server:
        transport = WireTransport()
        transport.backlog.state[0] = time.monotonic()
        seen = ask(transport, server.url, idle_s=0.2)
        transport.close()
    assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "idle")
    assert seen.reply.n_answer == len(writes)
    assert seen.exchange.sent_at is not None
    assert seen.exchange.ended_at is not None
    assert seen.exchange.ended_at - seen.exchange.sent_at >= 0.4 + 0.2


def test_without_the_lane_everything_works() -> None:
    """What is installed without a compiler, or told to leave it out."""
    code = "from loadgen.fastlane import FAST_LANE; print(FAST_LANE)"
    told = {**os.environ, "STREAMGAUGE_FASTLANE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, check=True)
    assert done.stdout.strip() == b"None"
