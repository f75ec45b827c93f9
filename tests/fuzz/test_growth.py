"""Time in proportion to what comes, and memory within what is stated, whatever comes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import chain, count, islice, repeat
from pathlib import Path

import pytest

from collectors.records import Outcome, RequestRecord
from loadgen.exchange import Limits
from loadgen.httpx_transport import HttpxTransport
from loadgen.sse import MAX_EVENT_BYTES
from loadgen.wire import WireTransport
from reference_server.byteserver import Then
from reference_server.rawhttp import chunk
from tests.fuzz import targets
from tests.fuzz.peer import Peer, Played
from tests.loadgen.cases import C, D, F, R, sse, typed
from tests.loadgen.cases import chunk as payload
from tests.loadgen.playing import make_client
from tests.loadgen.wiring import CHUNKED, HEAD

Memory = Callable[[], AbstractContextManager[Callable[[], int]]]
MIB = 1 << 20
READ_BYTES = 1 << 16
REFUSED = b"HTTP/1.1 500 No\r\n\r\n"
GZIPPED = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")


def record_of(pieces: Iterable[bytes], api: str = "chat", status: int = 200) -> RequestRecord:
    """What a body leaves that comes in these pieces."""
    return targets._record(targets._Handed(pieces, status, "text/event-stream"), api)


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Tells the most bytes that Python held since the block began."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@contextmanager
def resident() -> Iterator[Callable[[], int]]:
    """The same of all memory, which takes no time to measure and knows pages only."""

    def high_water() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    yield lambda: high_water() - before


# How large to begin with, and the pieces of a body of that size.
GROWING: dict[str, tuple[int, Callable[[int], list[bytes]]]] = {
    "one line in small reads": (8_000, lambda n: [b"data: ", *repeat(b"xy", n)]),
    "many lines of one event": (4_000, lambda n: [b"data: xy\n"] * n),
    "many lines in one read": (6_000, lambda n: [b"data\n" * n]),
    "comments": (4_000, lambda n: [b": ping\n\n"] * n),
    "comments in one read": (6_000, lambda n: [b": ping\n\n" * n]),
    "blank lines": (8_000, lambda n: [b"data: {}\n\n", *repeat(b"\n", n)]),
    "blanks before anything": (6_000, lambda n: [b"\n"] * n),
    "carriage returns": (30_000, lambda n: [b"data: {}\n\n" + b"\r" * n]),
    "events in one read": (4_000, lambda n: [C("a") * n]),
    "events that are no JSON": (3_000, lambda n: [b"data: {\n\n"] * n),
    "error words": (40_000, lambda n: [b"error: " + b"a:b." * n + b"\n\n"]),
    "JSON in small reads": (4_000, lambda n: [b"{", *repeat(b'"xxxxxxx', n)]),
    "choices": (1_000, lambda n: [C("a", i) + F("stop", i) for i in range(n)]),
    "running usage": (
        1_000,
        lambda n: [C("a", i, usage={"completion_tokens": i}) for i in range(n)],
    ),
    "names of counts": (
        1_500,
        lambda n: [typed("message_delta", usage={"input_tokens": 1, f"n{i}": 1}) for i in range(n)],
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_twice_as_much_takes_twice_as_long(name: str) -> None:
    """From a size to four times that: where each piece looked at all before, sixteen times."""
    size, make = GROWING[name]
    api = "messages" if name == "names of counts" else "chat"

    def seconds(pieces: list[bytes]) -> float:
        began = time.process_time()
        record_of(pieces, api)
        return time.process_time() - began

    small, large = make(size), make(4 * size)
    took = [(seconds(small), seconds(large)) for _ in range(2)]
    assert min(t for _, t in took) < 9 * min(t for t, _ in took)


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (b"[" * 100_000 + b"]" * 100_000, Outcome.OK),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, Outcome.OK),
        (b'{"error":' * 500 + b"1" + b"}" * 500, Outcome.IN_BAND_ERROR),
        (b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}", Outcome.IN_BAND_ERROR),
        (b'{"choices":' + b"[" * 900 + b"]" * 900 + b"}", Outcome.OK),
        (b'{"usage":{"completion_tokens":' + b"9" * 1_000_000 + b"}}", Outcome.OK),
        (b'{"usage":{"completion_tokens":1e999}}', Outcome.OK),
        (b'{"usage":{"completion_tokens":9007199254740993}}', Outcome.OK),
        (b'{"choices":[{"index":1e30,"delta":{"content":"a"}}]}', Outcome.OK),
        (b'{"choices":[{"index":18446744073709551615,"finish_reason":"x"}]}', Outcome.OK),
        (sse(payload({}, finish="x" * MIB)).removeprefix(b"data: ").strip(), Outcome.OK),
        (b'{"error":"' + b"x" * MIB + b'"}', Outcome.IN_BAND_ERROR),
    ],
)
def test_a_record_stays_small(event: bytes, outcome: Outcome) -> None:
    """However deep, long or large what it is drawn from."""
    record = record_of([R + C("aa"), b"data: " + event + b"\n\n", F() + D])

    assert record.outcome is outcome
    assert record.output_events.total in (1, 2)


# What one event may hold is held by these; by the others, next to nothing.
HELD = ("an event", "an event of short lines", "a comment", "JSON", "after the end")
BODIES: dict[str, tuple[bytes, bytes]] = {
    "an event": (b"data: ", b"x"),
    "an event of short lines": (b"", b"data: xy\n"),
    "a comment": (b":", b"x"),
    "JSON": (b"{", b" "),
    "after the end": (F() + D, b"data: xy\n"),
    "comments": (b"", b": " + b"ping " * 20 + b"\n\n"),
    "fields": (b"", b"id: " + b"7" * 100 + b"\nretry: 9\n\n"),
    "events that are no JSON": (b"", b"data: {" + b" " * 100 + b"\n\n"),
    "events without output": (b"", b'data: {"a":"' + b"x" * 100 + b'"}\n\n'),
}


def expect_bounded(name: str, size: int, read_bytes: int, measured: Memory, free: int) -> None:
    """A body of ``size`` bytes in small reads needs what is held of it, and as much to grow it."""
    head, piece = BODIES[name]
    read = piece * (read_bytes // len(piece))
    with measured() as peak:
        record = record_of(chain([head], repeat(read, size // len(read))))
        assert peak() < free + (2.5 * MAX_EVENT_BYTES if name in HELD else 0)
    assert (record.outcome is Outcome.MALFORMED) == (name in HELD[:4])


@pytest.mark.parametrize("name", BODIES)
def test_memory_is_bounded(name: str) -> None:
    """Held at most as much as one event may be, and nothing of what is no event."""
    size = 18 * MIB if name in HELD else MIB // 4
    expect_bounded(name, size, 4096, memory, free=3 * MIB // 2)  # to pack a record takes 1 MiB


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_memory_is_bounded_over_200_mib(name: str) -> None:
    """Much more needs no more, as the kernel sees it."""
    expect_bounded(name, 200 * MIB, 1024, resident, free=8 * MIB)


def many(piece: bytes) -> Iterator[bytes]:
    """The piece again and again, a read's worth at a time."""
    return repeat(piece * (READ_BYTES // len(piece)))


def numbered(line: bytes) -> Iterator[bytes]:
    """Ever new lines."""
    lines = (line % n for n in count())
    return iter(lambda: b"".join(islice(lines, 1000)), b"")


def bomb(piece: bytes) -> Iterator[bytes]:
    """The piece, compressed, again and again."""
    packed = targets._squeezed((piece * (4 * MIB // len(piece)),), targets._GZIP)
    return repeat(chunk(packed))


ENDLESS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]], Outcome]] = {
    "a status line": (b"HTTP/1.1 200 ", lambda: many(b"y"), Outcome.MALFORMED),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", lambda: many(b"y"), Outcome.MALFORMED),
    "headers": (HEAD, lambda: many(b"X: y\r\n"), Outcome.MALFORMED),
    "new headers": (HEAD, lambda: numbered(b"X-%d: " + b"y" * 200 + b"\r\n"), Outcome.MALFORMED),
    "a chunk's head": (CHUNKED + b"5;", lambda: many(b"y"), Outcome.MALFORMED),
    "a trailer": (CHUNKED + b"0\r\nX: ", lambda: many(b"y"), Outcome.MALFORMED),
    "trailers": (
        CHUNKED + b"0\r\n",
        lambda: numbered(b"X-%d: " + b"y" * 200 + b"\r\n"),
        Outcome.MALFORMED,
    ),
    "interim heads": (b"", lambda: many(b"HTTP/1.1 103 E\r\nLink: x\r\n\r\n"), Outcome.TIMEOUT),
    "a refusal": (REFUSED, lambda: many(b"y"), Outcome.HTTP_ERROR),
    "a compressed refusal": (
        GZIPPED.replace(b"200", b"500"),
        lambda: bomb(b"y"),
        Outcome.HTTP_ERROR,
    ),
    "small chunks": (CHUNKED, lambda: many(b"1\r\n:\r\n"), Outcome.TIMEOUT),
    "comments": (HEAD + b"\r\n", lambda: many(b": ping\n\n"), Outcome.TIMEOUT),
    "events": (HEAD + b"\r\n", lambda: many(C("a")), Outcome.TIMEOUT),
    "compressed blanks": (GZIPPED, lambda: bomb(b"\n"), Outcome.MALFORMED),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("make_transport", [WireTransport, HttpxTransport])
def test_what_has_no_end_is_given_up(make_transport: type, name: str) -> None:
    """At once where it is too much, else at the time limit; it keeps neither memory nor others."""
    head, pieces, outcome = ENDLESS[name]
    if name == "interim heads" and make_transport is WireTransport:
        outcome = Outcome.MALFORMED  # together they are one head
    limits = Limits(total_s=0.3 if outcome is Outcome.TIMEOUT else 30.0)
    records: list[RequestRecord] = []
    began = time.monotonic()
    with closing(make_transport()) as transport, closing(Peer()) as peer, peer.watched():
        peer.plays = [Played(chain([head], pieces()), Then.CLOSE)]
        client = make_client(transport, records, limits=limits, target=peer.target)
        with memory() as peak:
            client.ask(targets._ASK, client._began_at)
            assert peak() < 3 * MIB

    assert [record.outcome for record in records] == [outcome]
    assert time.monotonic() - began < 5.0
