"""An endpoint that fails in every way, each request in one that is known beforehand.

Most answers are good, if oddly delivered; the others break as servers, proxies and networks do.
What becomes of a request is drawn from the seed and the end of its ``X-Request-Id`` (worker and
number), and kept beside what a client must make of it, so that every single record of a run can be
held against what was played.

The client is taken to wait no longer than a :class:`Source` says for the head, for the first
output and between outputs.
"""

from __future__ import annotations

import json
import random
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reference_server.byteserver import ByteServer, Play, Received, Then
from reference_server.rawhttp import LAST_CHUNK, chunk

Writes = list[tuple[float, bytes]]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_TO_THE_END = _HEAD + b"\r\n"
_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a client must make of an answer.

    Attributes:
        fault: its name in :data:`FAULTS`.
        outcome: one of the outcomes of :class:`collectors.records.Outcome`.
        detail: what the record's detail says, among other words.
        least_events: output events that arrive for certain.
        most_events: output events that were sent.
        output_tokens: as the server says; ``None`` where it does not get to it.
        flags: those the record must have.
        retries: fresh connections tried after a stale one; chance may bring one more.
    """

    fault: str
    outcome: str = "ok"
    detail: str = ""
    least_events: int = 0
    most_events: int = 0
    output_tokens: int | None = None
    flags: tuple[str, ...] = ()
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What answers are made of.

    Attributes:
        seed: of everything that is drawn.
        tokens: of an answer at most, and half as many at least; one event each.
        first_ms: from the request to the first token.
        gap_ms: from token to token.
        limit_ms: how long the client waits, at each of the three points.
        good_ratio: how many of the requests are answered plainly.
    """

    seed: int = 1
    tokens: int = 60
    first_ms: float = 50.0
    gap_ms: float = 15.0
    limit_ms: float = 2000.0
    good_ratio: float = 0.6


@dataclass(slots=True)
class Answer:
    """One answer, drawn before anything is done to it."""

    source: Source
    draw: random.Random
    request_id: str
    reused: bool  # the connection, by the client
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        most = self.source.tokens
        self.tokens = self.draw.randint((most + 1) // 2, most)

    def at_ms(self, token: int) -> float:
        """When a token is due."""
        return self.source.first_ms + token * self.source.gap_ms

    @property
    def end_ms(self) -> float:
        """When the last token is due, and what follows it."""
        return self.at_ms(self.tokens - 1)

    def start(self, tokens: int | None = None) -> Writes:
        """The role and the first tokens, all of them unless told otherwise."""
        count = self.tokens if tokens is None else tokens
        role = _event(delta={"role": "assistant", "content": ""})
        texts = [(self.at_ms(n), _event(delta={"content": f"w{n} "})) for n in range(count)]
        return [(self.source.first_ms / 2, role), *texts]

    def tail(self, *, done: bool = True) -> tuple[float, bytes]:
        """Finish reason, usage and the end marker."""
        usage = {"prompt_tokens": 7, "completion_tokens": self.tokens}
        usage["total_tokens"] = 7 + self.tokens
        data = _event(delta={}, finish="stop") + _event(usage=usage)
        return self.end_ms, data + (_DONE if done else b"")

    def whole(self) -> Writes:
        """An answer as it should be."""
        return [*self.start(), self.tail()]

    def some(self) -> int:
        """As many tokens as come before something breaks, perhaps none."""
        return self.draw.randint(0, min(self.tokens, 20))


def _event(delta: Any = None, finish: str | None = None, usage: Any = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    payload: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "choices": choices}
    if usage is not None:
        payload["usage"] = usage
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def _framed(writes: Writes, head: bytes = _CHUNKED, *, ended: bool = True) -> Writes:
    """One chunk a write."""
    framed = [(0.0, head), *((at, chunk(data)) for at, data in writes)]
    return [*framed, (framed[-1][0], LAST_CHUNK)] if ended else framed


def _play(writes: Sequence[tuple[float, bytes]], then: Then = Then.KEEP) -> Play:
    """Writes of one instant are one write."""
    joined: Writes = []
    for at, data in writes:
        if joined and joined[-1][0] == at:
            joined[-1] = (at, joined[-1][1] + data)
        else:
            joined.append((at, data))
    return Play(writes=tuple(joined), then=then)


def _sized(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _at_once(data: bytes, then: Then = Then.KEEP) -> Play:
    return Play(writes=((5.0, data),), then=then)


# -- good answers, however they come ---------------------------------------------------------------

Planned = tuple[Play, dict[str, Any]]
"""What is played, and what differs from :class:`Expected`'s defaults."""


def _good(answer: Answer, play: Play, **more: Any) -> Planned:
    events = {"least_events": answer.tokens, "most_events": answer.tokens}
    return play, {**events, "output_tokens": answer.tokens, **more}


def _plain(a: Answer) -> Planned:
    return _good(a, _play(_framed(a.whole())))


def _merged(a: Answer) -> Planned:
    """Several events a write, as of a proxy that waits for more."""
    step = a.draw.randint(2, 6)
    writes = a.whole()
    groups = [writes[i : i + step] for i in range(0, len(writes), step)]
    merged = [(group[-1][0], b"".join(data for _, data in group)) for group in groups]
    flags = ("coalesced",) if a.tokens > step else ()
    return _good(a, _play(_framed(merged)), flags=flags)


def _split(a: Answer) -> Planned:
    """Events cut anywhere, their parts a millisecond apart."""
    writes: Writes = []
    for at, data in a.whole():
        cut = a.draw.randrange(1, len(data))
        writes += [(at, data[:cut]), (at + 1, data[cut:])]
    return _good(a, _play(_framed(writes)))


def _small_chunks(a: Answer) -> Planned:
    """Seven bytes a chunk, in the same writes."""
    frames = [
        (at, b"".join(chunk(data[i : i + 7]) for i in range(0, len(data), 7)))
        for at, data in a.whole()
    ]
    return _good(a, _play([(0.0, _CHUNKED), *frames, (frames[-1][0], LAST_CHUNK)]))


def _crlf(a: Answer) -> Planned:
    writes = [(at, data.replace(b"\n", b"\r\n")) for at, data in a.whole()]
    return _good(a, _play(_framed(writes)))


def _pings(a: Answer) -> Planned:
    """Keep-alive comments before and between the events."""
    return _good(a, _play(_framed([(at, _PING * 2 + data) for at, data in a.whole()])))


def _early_head(a: Answer) -> Planned:
    """As of servers that promise before they think."""
    wait_ms = a.source.limit_ms / 5
    return _good(a, _play(_framed([(at + wait_ms, data) for at, data in a.whole()])))


def _slow_head(a: Answer) -> Planned:
    wait_ms = a.source.limit_ms / 5
    return _good(a, _play([(at + wait_ms, data) for at, data in _framed(a.whole())]))


def _no_done(a: Answer) -> Planned:
    writes = [*a.start(), a.tail(done=False)]
    return _good(a, _play(_framed(writes)), flags=("no_done",))


def _held_open(a: Answer) -> Planned:
    """The end marker, and then nothing: not even the end."""
    play = _play(_framed(a.whole(), ended=False), Then.HOLD)
    return _good(a, play)


def _close_delimited(a: Answer) -> Planned:
    return _good(a, _play([(0.0, _TO_THE_END), *a.whole()], Then.CLOSE))


def _says_close(a: Answer) -> Planned:
    head = _HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _good(a, _play(_framed(a.whole(), head), Then.CLOSE))


def _idle_closed(a: Answer) -> Planned:
    """Kept alive, and closed a moment later, perhaps just as the next request comes."""
    end_ms = a.end_ms + a.draw.uniform(0, 100)
    return _good(a, _play([*_framed(a.whole()), (end_ms, b"")], Then.CLOSE))


def _gzipped(a: Answer) -> Planned:
    pack = zlib.compressobj(wbits=31)
    writes = [(t, pack.compress(d) + pack.flush(zlib.Z_SYNC_FLUSH)) for t, d in a.whole()]
    head = _HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _good(a, _play(_framed([*writes, (a.end_ms, pack.flush())], head)), flags=("encoded",))


def _bad_json_event(a: Answer) -> Planned:
    """One event of the stream is no JSON; the rest is an answer."""
    writes = a.whole()
    at, data = writes[-1]
    writes[-1] = (at, b'data: {"choices":[\n\n' + data)
    return _good(a, _play(_framed(writes)), flags=("bad_json",))


def _empty_answer(a: Answer) -> Planned:
    """A role, and nothing to say."""
    usage = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    end = _event(delta={}, finish="stop") + _event(usage=usage) + _DONE
    play = _play(_framed([*a.start(0), (a.source.first_ms, end)]))
    return play, {"output_tokens": 0, "flags": ("no_output",)}


def _not_streamed(a: Answer) -> Planned:
    """One JSON body, though a stream was asked for."""
    message = {"role": "assistant", "content": "w " * a.tokens}
    usage = {"prompt_tokens": 7, "completion_tokens": a.tokens, "total_tokens": 7 + a.tokens}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = json.dumps({"object": "chat.completion", "choices": choices, "usage": usage}).encode()
    data = _sized("200 OK", body, "Content-Type: application/json")
    return _at_once(data), {"output_tokens": a.tokens, "flags": ("not_streamed",)}


def _stale(a: Answer) -> Planned:
    """A kept connection breaks before a byte: one fresh try, which is answered plainly."""
    if not a.reused:
        return _plain(a)
    then = a.draw.choice((Then.CLOSE, Then.RESET))
    more = {"flags": ("stale_connection",), "retries": 1}
    return _good(a, Play(writes=((5.0, b""),), then=then), **more)


# -- answers that break ----------------------------------------------------------------------------


def _broken(outcome: str, events: int, *, least: int | None = None, **more: Any) -> dict[str, Any]:
    least_events = events if least is None else least
    return {"outcome": outcome, "least_events": least_events, "most_events": events, **more}


def _clean_cut(a: Answer) -> Planned:
    k = a.some()
    return _play(_framed(a.start(k))), _broken("truncated", k)


def _close_cut(a: Answer) -> Planned:
    k = a.some()
    return _play([(0.0, _TO_THE_END), *a.start(k)], Then.CLOSE), _broken("truncated", k)


def _missing_end(a: Answer) -> Planned:
    k = a.some()
    return _play(_framed(a.start(k), ended=False), Then.CLOSE), _broken("reset", k)


def _reset(a: Answer) -> Planned:
    """What was not read by then may be lost with the connection."""
    k = a.some()
    writes = [*_framed(a.start(k), ended=False), (a.at_ms(k), b"")]
    return _play(writes, Then.RESET), _broken("reset", k, least=0)


def _short_length(a: Answer) -> Planned:
    k = a.some()
    head = _HEAD + b"Content-Length: 999999\r\n\r\n"
    return _play([(0.0, head), *a.start(k)], Then.CLOSE), _broken("reset", k)


def _head_cut(_: Answer) -> Planned:
    return _at_once(_HEAD[:30], Then.CLOSE), _broken("reset", 0)


def _in_band(a: Answer) -> Planned:
    """An error of any shape inside a 200 answer."""
    k = a.some()
    words = f"the engine died (request {a.request_id})"
    shapes = (
        {"error": {"message": words, "code": 500}},
        {"error": words},
        {"object": "error", "message": words, "code": 500},
        {"type": "error", "error": {"message": words}},
    )
    events = [b"data: " + json.dumps(shape).encode() + b"\n\n" for shape in shapes]
    events += [b"error: " + json.dumps(shapes[0]).encode() + b"\n\n"]
    events += [b"event: error\ndata: " + words.encode() + b"\n\n"]
    ending = a.draw.choice((b"", _DONE))
    writes = [*a.start(k), (a.at_ms(k), a.draw.choice(events) + ending)]
    return _play(_framed(writes)), _broken("in_band_error", k, detail="the engine died")


def _refused(outcome: str, status: str, *headers: str, body: bytes = b"") -> Callable[..., Planned]:
    def plan(a: Answer) -> Planned:
        words = body.replace(b"REQUEST", a.request_id.encode())
        return _at_once(_sized(status, words, *headers)), _broken(outcome, 0)

    return plan


_JSON_ERROR = b'{"error":{"message":"Rate limit reached for REQUEST","type":"requests"}}'
_PAGE = b"<!doctype html><html><title>502</title><h1>Bad Gateway</h1>REQUEST</html>"
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
_JSON = "Content-Type: application/json"
_HTML = "Content-Type: text/html"


def _wrong(data: bytes, then: Then = Then.KEEP) -> Callable[..., Planned]:
    return lambda _: (_at_once(data, then), _broken("malformed", 0))


def _oversize(a: Answer) -> Planned:
    """An event without end; the client leaves in the midst of it."""
    k = a.some()
    writes = [(0.0, _TO_THE_END), *a.start(k), (a.at_ms(k), b"data: ")]
    writes += [(a.at_ms(k) + n, b"x" * _MIB) for n in range(20)]
    return _play(writes, Then.HOLD), _broken("malformed", k)


def _stall_head(_: Answer) -> Planned:
    return Play(then=Then.HOLD), _broken("timeout", 0, detail="head")


def _stall_first(a: Answer) -> Planned:
    play = _play(_framed(a.start(0), ended=False), Then.HOLD)
    return play, _broken("timeout", 0, detail="first")


def _stall_idle(a: Answer) -> Planned:
    k = a.some() + 1
    play = _play(_framed(a.start(min(k, a.tokens)), ended=False), Then.HOLD)
    return play, _broken("timeout", min(k, a.tokens), detail="idle")


def _only_pings(a: Answer) -> Planned:
    """Bytes go on and on, and no output is among them."""
    pings = [(500.0 * n, _PING) for n in range(1, int(2 * a.source.limit_ms / 500))]
    play = _play(_framed([*a.start(0), *pings], ended=False), Then.HOLD)
    return play, _broken("timeout", 0, detail="first")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to answer; ``weight`` is its share among those that are not plain."""

    name: str
    weight: float
    plan: Callable[[Answer], Planned]


FAULTS = (
    Fault("merged", 3, _merged),
    Fault("split", 3, _split),
    Fault("small-chunks", 3, _small_chunks),
    Fault("crlf", 2, _crlf),
    Fault("pings", 3, _pings),
    Fault("early-head", 2, _early_head),
    Fault("slow-head", 2, _slow_head),
    Fault("no-done", 3, _no_done),
    Fault("held-open", 1, _held_open),
    Fault("close-delimited", 2, _close_delimited),
    Fault("says-close", 2, _says_close),
    Fault("idle-closed", 3, _idle_closed),
    Fault("gzip-unasked", 2, _gzipped),
    Fault("bad-json-event", 2, _bad_json_event),
    Fault("empty-answer", 2, _empty_answer),
    Fault("not-streamed", 2, _not_streamed),
    Fault("stale", 3, _stale),
    Fault("clean-cut", 3, _clean_cut),
    Fault("close-cut", 2, _close_cut),
    Fault("missing-end", 2, _missing_end),
    Fault("reset", 4, _reset),
    Fault("short-length", 2, _short_length),
    Fault("head-cut", 1, _head_cut),
    Fault("in-band-error", 4, _in_band),
    Fault(
        "status-429",
        3,
        _refused("rate_limited", "429 No", "Retry-After: 2", _JSON, body=_JSON_ERROR),
    ),
    Fault("status-503", 2, _refused("overloaded", "503 No", "Retry-After: 1")),
    Fault("status-529", 1, _refused("overloaded", "529 No", _JSON, body=_JSON_ERROR)),
    Fault("status-500", 1, _refused("http_error", "500 No", _JSON, body=_JSON_ERROR)),
    Fault("status-502", 1, _refused("http_error", "502 No", _HTML, body=_PAGE)),
    Fault("redirect", 1, _refused("http_error", "307 Go", "Location: http://127.0.0.1:1/x")),
    Fault("html-200", 1, _wrong(_sized("200 OK", _PAGE, _HTML))),
    Fault("bad-json-200", 1, _wrong(_sized("200 OK", b'{"choices":[', _JSON))),
    Fault("empty-200", 1, _wrong(_sized("200 OK", b"", "Content-Type: text/event-stream"))),
    Fault("unknown-encoding", 1, _wrong(_sized("200 OK", b"\x0b\x02", "Content-Encoding: br"))),
    Fault("bad-gzip", 1, _wrong(_sized("200 OK", b"no gzip here", "Content-Encoding: gzip"))),
    Fault("not-http", 1, _wrong(b"SSH-2.0-x\r\n\r\n", Then.CLOSE)),
    Fault("huge-head", 0.3, _wrong(_HEAD + b"X: " + b"y" * (_MIB // 2), Then.CLOSE)),
    Fault("oversize-event", 0.1, _oversize),
    Fault("stall-head", 0.5, _stall_head),
    Fault("stall-first", 0.5, _stall_first),
    Fault("stall-idle", 0.7, _stall_idle),
    Fault("only-pings", 0.3, _only_pings),
)
PLAIN = Fault("plain", 0, _plain)


class FaultSource:
    """Chooses what a :class:`~reference_server.byteserver.ByteServer` plays; see :func:`serve`.

    Args:
        source: what answers are made of, and how many of them are plain.
        faults: the others.

    Attributes:
        expected: by ``X-Request-Id``, what the client must have made of each request so far. One
            without such a name is answered plainly.
    """

    def __init__(self, source: Source, faults: Sequence[Fault] = FAULTS) -> None:
        self.expected: dict[str, Expected] = {}
        self._source = source
        self._faults = faults
        self._weights = [fault.weight for fault in faults]
        self._connections: set[int] = set()
        self._lock = threading.Lock()

    def choose(self, request: Received) -> Play:
        """The answer to a request."""
        if request.method == "GET":
            return _at_once(_sized("200 OK", _MODELS, _JSON))
        name = request.headers.get("x-request-id", "")
        with self._lock:
            reused = request.connection in self._connections
            self._connections.add(request.connection)
            before = self.expected.get(name)
        key = "-".join(name.split("-")[-2:])  # worker and number; the run's own name is chance
        draw = random.Random(f"{self._source.seed}/{key}")
        fault = PLAIN
        if name and draw.random() >= self._source.good_ratio:
            (fault,) = draw.choices(self._faults, self._weights)
        answer = Answer(self._source, draw, name, reused)
        if before is not None:
            return self._second_try(answer, before)
        play, more = fault.plan(answer)
        if name:
            self.expected[name] = Expected(fault=fault.name, **more)
        return play

    def _second_try(self, answer: Answer, before: Expected) -> Play:
        """Answered plainly; rightly made only after a break before the client had a byte."""
        play, more = _plain(answer)
        if before.fault == "reset":  # what was sent may have been lost with the connection
            flags = ("stale_connection",)
            self.expected[answer.request_id] = Expected(
                fault="reset", **more, flags=flags, retries=1
            )
        return play


def serve(faults: FaultSource, port: int = 0) -> ByteServer:
    """A server of ``faults``, to be entered; it remembers nothing else."""
    return ByteServer(choose=faults.choose, port=port, remembers=False)
