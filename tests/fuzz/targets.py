"""What is fuzzed: functions of bytes that fail where a promise is broken.

The promises: no exception but the declared ones; always a record, of a known outcome and a size
that does not grow with what a server says; the same reading wherever reads end; the same reading by
both transports. Each target returns what it read, so that new readings can be told from old ones.

Everything that varies beside the bytes (where reads end, how a connection ends) is drawn from the
bytes themselves: a file is all that is needed to play an input again.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

from collectors.batches import Batch, pack, unpack
from collectors.records import Outcome, RequestRecord
from loadgen.backlog import Backlog
from loadgen.client import API_PATHS, MAX_DETAIL, Ask
from loadgen.errors import DecodeError
from loadgen.exchange import End, Exchange, Limits, ResponseBody
from loadgen.fingerprint import Fingerprints
from loadgen.httpx_transport import HttpxTransport
from loadgen.inflate import Inflater
from loadgen.sse import LINE_BYTES, SseDecoder, SseEvent
from loadgen.wire import WireTransport
from reference_server.byteserver import Then
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.fuzz.peer import Peer, Played
from tests.loadgen.api_cases import API_CASES
from tests.loadgen.cases import CASES, C, D, F, R, U
from tests.loadgen.playing import make_client
from tests.loadgen.wiring import ANSWER, CHUNKED

Reading = tuple[Any, ...]
Target = Callable[[bytes], Reading]

APIS = tuple(API_PATHS)
STATUSES = (200, 201, 307, 400, 401, 422, 429, 500, 502, 503, 529)
MAX_RECORD_BYTES = 96 * 1024
"""Of a packed record without its gaps, however much the server says."""

_BOM = b"\xef\xbb\xbf"
_GZIP = 16 + zlib.MAX_WBITS
_FINGERPRINTS = Fingerprints(b"salt" * 8)
_ASK = Ask(task="fuzz", prompt="p")
_GOOD = Played((CHUNKED + chunk(ANSWER) + LAST_CHUNK,))
_BRIEF, _PATIENT = Limits(total_s=0.05), Limits(total_s=5.0)
_TIMED = {
    "coalesced",
    "first_coalesced",
    "early_head",
    "early_event",
}  # flags that are about when bytes came
_HOW = {"connect_s", "http_version", "read_delay_s", "coalesced_events", "endpoint"}
_NO_HEAD = re.compile(r"[^!-~ ]")


# -- where reads end -------------------------------------------------------------------------------


def dice(data: bytes) -> random.Random:
    """Chances that are always the same for the same bytes."""
    return random.Random(zlib.crc32(data))


def cut(data: bytes, draw: random.Random, most: int) -> tuple[bytes, ...]:
    """``data`` in at most ``most`` + 1 pieces, none of them empty."""
    edges = {draw.randrange(1, len(data)) for _ in range(draw.randint(0, most))} if data[1:] else ()
    return tuple(data[a:b] for a, b in pairwise([0, *sorted(edges), len(data)]) if a < b)


def one_by_one(data: bytes) -> tuple[bytes, ...]:
    """Each byte on its own."""
    return tuple(data[i : i + 1] for i in range(len(data)))


def event_by_event(data: bytes) -> tuple[bytes, ...]:
    """Each event in a read of its own, which is how they mostly come."""
    return tuple(re.findall(rb".*?\n\n|.+$", data, re.DOTALL))


# -- the decoder -----------------------------------------------------------------------------------


def decoder(data: bytes) -> Reading:
    """The events of a stream are those the standard gives, wherever reads end."""
    expected = list(by_the_standard(data))
    for pieces in ((data,), one_by_one(data), event_by_event(data), cut(data, dice(data), 20)):
        assert decoded(pieces) == expected
    for limit in (1, 30, 300):
        try:
            events = decoded((data,), limit)
        except DecodeError:
            continue
        assert events == expected
    return tuple((name[:8], bool(data)) for name, data in expected[:3])


def decoded(pieces: Sequence[bytes], limit: int = 1 << 20) -> list[SseEvent]:
    """Every event of a stream that arrives in pieces; no more than the limit is ever held."""
    stream, events = SseDecoder(limit), list[SseEvent]()
    for piece in pieces:
        events += stream.feed(piece)
        held = len(stream._tail) + sum(len(d) + LINE_BYTES for d in stream._data)
        assert 0 <= held == stream._size <= limit
    return events + stream.finish()


def by_the_standard(data: bytes) -> Iterator[SseEvent]:
    """The same, as plainly as it can be said: WHATWG HTML 9.2.6 and the decoder's two additions."""
    name, lines = b"", list[bytes]()
    for line in [*re.split(rb"\r\n|\n|\r", data.removeprefix(_BOM)), b""]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field in (b"data", b"error") and line:
            lines.append(value)
        if field in (b"event", b"error"):
            name = b"error" if field == b"error" else value
        if not line:
            if lines:
                yield name, b"\n".join(lines)
            name, lines = b"", []


# -- an answer, without a socket -------------------------------------------------------------------


def answer(data: bytes) -> Reading:
    """A body leaves the same record wherever reads end.

    The first line says how it came: ``chat 200 text/event-stream``, API, status and content type.
    """
    api, status, kind, body = _split(data)
    ways = (body,), one_by_one(body), event_by_event(body), cut(body, dice(data), 20)
    first, *others = (_reading(_record(_Handed(pieces, status, kind), api)) for pieces in ways)
    assert others == [first] * len(others)
    return first


class _Handed:
    """A transport that hands the pieces of a body over, each as one read."""

    def __init__(self, pieces: Iterable[bytes], status: int, kind: str) -> None:
        self._pieces = pieces
        self._status = status
        self._headers = {"content-type": kind}

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Play it; a read comes every second."""
        exchange.sent_at = exchange.head_at = at = 1001.0
        exchange.status, exchange.headers = self._status, self._headers
        body.head(self._status, self._headers)
        try:
            for read, piece in enumerate(self._pieces, start=1):
                at = 1001.0 + read
                if body.data(piece, at, read, 0.0) and exchange.done_at is None:
                    exchange.done_at = at
        except DecodeError as error:
            exchange.end, exchange.detail = End.MALFORMED, str(error)
        else:
            exchange.end, exchange.done_at = End.COMPLETE, exchange.done_at or at
        exchange.ended_at = at

    def close(self) -> None:
        """Nothing is open."""


def _split(data: bytes) -> tuple[str, int, str, bytes]:
    first, _, body = data.partition(b"\n")
    api, _, rest = first.decode("latin-1").partition(" ")
    status, _, kind = rest.partition(" ")
    known = status in map(str, STATUSES)
    kind = _NO_HEAD.sub("", kind)[:100].strip()
    return api if api in APIS else "chat", int(status) if known else 200, kind, body


def _record(transport: Any, api: str = "chat", limits: Limits = _PATIENT) -> RequestRecord:
    """The record that one request leaves; it is one that can be sent on and stored."""
    records: list[RequestRecord] = []
    client = make_client(
        transport, records, limits=limits, api=api, began_at=0.0, fingerprints=_FINGERPRINTS
    )
    assert client.ask(_ASK, 1.0) is records[0]
    assert len(records) == 1
    assert not client.open
    return _checked(records[0])


def _checked(record: RequestRecord) -> RequestRecord:
    assert isinstance(record.outcome, Outcome)
    assert record.detail is None or len(record.detail) <= MAX_DETAIL
    assert len(set(record.flags)) == len(record.flags)
    if record.gaps_s is not None:
        assert record.first_token_at_s is not None
        assert record.last_token_at_s is not None
        span_s = record.last_token_at_s - record.first_token_at_s
        assert abs(sum(record.gaps_s) - span_s) < 1e-4, "gaps that do not add up"
    kept = [replace(record, gaps_s=None)]
    batch = Batch(worker=record.worker, sequence=0, at_s=1.0, records=kept)
    packed = pack(batch)
    assert len(packed) < MAX_RECORD_BYTES
    assert unpack(packed) == batch
    return record


def _reading(record: RequestRecord) -> Reading:
    """All of a record that does not depend on when its bytes came, or over what."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    values["flags"] = frozenset(record.flags) - _TIMED
    values["gaps_s"] = None if record.gaps_s is None else len(record.gaps_s)
    return tuple(
        value for name, value in values.items() if not name.endswith("_at_s") and name not in _HOW
    )


# -- an answer that came compressed ----------------------------------------------------------------


def packed(data: bytes) -> Reading:
    """What was compressed is what it was, wherever reads end; what is broken is refused."""
    draw = dice(data)
    pieces = cut(data, draw, 5)
    whole = _squeezed(pieces, draw.choice((zlib.MAX_WBITS, _GZIP)))
    if draw.random() < 0.3:
        whole = b"".join(_squeezed((piece,), _GZIP) for piece in pieces) + b"\0" * draw.randrange(3)
    for reads in (one_by_one(whole), cut(whole, draw, 20)):
        assert b"".join(_unpacked(reads)) == data
    broken = bytearray(whole or b"\0")
    broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
    try:
        list(_unpacked((bytes(broken),)))
    except DecodeError as error:
        return (str(error),)
    return ()


def _squeezed(pieces: Sequence[bytes], form: int) -> bytes:
    squeeze = zlib.compressobj(wbits=form)
    flushed = [squeeze.compress(p) + squeeze.flush(zlib.Z_SYNC_FLUSH) for p in pieces]
    return b"".join([*flushed, squeeze.flush()])


def _unpacked(pieces: Sequence[bytes]) -> Iterator[bytes]:
    inflate = Inflater()
    for piece in pieces:
        yield from inflate.pieces(piece)


# -- over a socket ---------------------------------------------------------------------------------


class _Behind(Backlog):
    """That of a process which is always late, and reads frame by frame."""

    def likely(self, now: float) -> bool:
        return True


class Wires:
    """Both transports and a peer to ask, made when first needed and kept: that is what they do."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.transports = (WireTransport(), WireTransport(), HttpxTransport())
        self.transports[1].backlog.state[2] = -1.0  # always away, for the fast lane
        self.transports[1].backlog = _Behind()  # and for Python


_wires: list[Wires] = []


def wires() -> Wires:
    """The one pair of transports."""
    if not _wires:
        _wires.append(Wires())
    return _wires[0]


def close_wires() -> None:
    """Close what :func:`wires` made, if it did."""
    while _wires:
        made = _wires.pop()
        made.peer.close()
        for transport in made.transports:
            transport.close()


def response(data: bytes) -> Reading:
    """Whatever bytes answer a request, it leaves a record, and the next request is answered."""
    draw = dice(data)
    then = draw.choices([Then.CLOSE, Then.RESET, Then.KEEP], [30, 9, 1])[0]
    play = Played(cut(data, draw, 8), then)
    return tuple(_asked(transport, play) for transport in wires().transports)


def _asked(transport: Any, play: Played) -> Reading:
    peer = wires().peer
    peer.plays = [play, _GOOD, _GOOD]
    first = _record_over_socket(transport, "chat", _BRIEF)
    peer.finish_playing()
    peer.plays = [_GOOD, _GOOD]
    second = _record_over_socket(transport, "chat", _PATIENT)
    assert (second.outcome, second.output_tokens) == (Outcome.OK, 2), second
    return (first.outcome.value, first.http_status, first.detail)


def _record_over_socket(transport: Any, api: str, limits: Limits) -> RequestRecord:
    peer, records = wires().peer, list[RequestRecord]()
    client = make_client(
        transport,
        records,
        limits=limits,
        api=api,
        target=peer.target,
        fingerprints=_FINGERPRINTS,
    )
    with peer.watched():
        client.ask(_ASK, client._began_at)
    assert len(records) == 1
    return _checked(records[0])


def framed(data: bytes) -> Reading:
    """Sent as it should be, an answer is read the same by both transports as without a socket."""
    api, status, kind, body = _split(data)
    draw = dice(data)
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    # Whole events are what the fast lane takes, where one repeats.
    pieces = event_by_event(body) if draw.random() < 0.5 else cut(body, draw, 5)
    chunks = b"".join(map(chunk, filter(None, pieces)))
    play = Played(cut(head.encode() + chunks + LAST_CHUNK, draw, 8))
    expected = _reading(_record(_Handed((body,), status, kind), api))
    for transport in wires().transports:
        wires().peer.plays = [play]
        assert _reading(_record_over_socket(transport, api, _PATIENT)) == expected
    return expected


# -- what there is ---------------------------------------------------------------------------------

TARGETS: dict[str, Target] = {
    "decoder": decoder,
    "answer": answer,
    "packed": packed,
    "response": response,
    "framed": framed,
}


def seeds(target: str) -> list[bytes]:
    """What the fuzzing of a target starts from: the table of answers in the target's own form."""
    cases = [c for c in (*CASES, *API_CASES) if sum(len(data) for _, data in c.writes) < 1 << 13]
    bodies = [b"".join(data for _, data in case.writes) for case in cases]
    if target in ("decoder", "packed"):
        return bodies
    if target == "response":
        heads = [CHUNKED, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"]
        heads += [b"HTTP/1.1 429 No\r\nRetry-After: 2\r\nContent-Length: 9\r\n\r\n"]
        return [
            head + (chunk(body) + LAST_CHUNK if head is CHUNKED else body)
            for head in heads
            for body in bodies[::3]
        ]
    forms = [
        f"{case.api} 200 {case.content_type}\n".encode() + body
        for case, body in zip(cases, bodies, strict=True)
    ]
    forms += [b"chat 200 text/event-stream\n" + body for body in _long_answers()]
    return forms + [f"chat {status} application/json\n{{}}".encode() for status in STATUSES]


def _long_answers() -> Iterator[bytes]:
    """With many events that differ in their text alone, as most are, and some others among them."""
    texts = [" to", " be", "\u00e9", '"', "\n", "\x00", "\U0001f600", " or", "\\", ""]
    words = [C(texts[number % len(texts)]) for number in range(40)]
    yield b"".join((R, *words, F(), U(7, 40), D))
    yield b"".join((R, *[C(" a")] * 20, b": ping\n\n", *words[:9], F(), D))
