"""One request over a real socket to a server that plays bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gevent

from collectors.records import Outcome
from loadgen.body import AnswerBody
from loadgen.exchange import Exchange, Limits
from loadgen.outcome import judge_exchange
from loadgen.replies import make_reply
from loadgen.reply import Reply
from loadgen.target import HttpRequest, parse_target, render_head
from loadgen.wire import WireTransport
from reference_server.byteserver import Play, Then
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, D, F, R, U, Writes

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWER = R + C("aa") + C("bb") + F() + U(7, 2) + D
STREAM: Writes = ((0, R), (5, C("aa")), (10, C("bb")), (15, F() + U(7, 2) + D))
PATIENCE_S = 20.0  # no test waits as long unless it fails
PATIENT = Limits(total_s=PATIENCE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a transport and its body saw of one request."""

    exchange: Exchange
    reply: Reply
    outcome: Outcome
    detail: str | None


def ask(transport: WireTransport, url: str, *, body: bytes = b"{}", **limits: Any) -> Seen:
    """Send one request and follow it to its end."""
    exchange, answer = prepare(url, body)
    transport.send(exchange, answer, replace(PATIENT, **limits))
    return judged(exchange, answer)


def prepare(url: str, body: bytes = b"{}") -> tuple[Exchange, AnswerBody]:
    """A request that has not been sent, and the body for its answer."""
    target = parse_target(url)
    head = render_head(target, "POST", "/v1/chat/completions", {"X-Test": "1"})
    return Exchange(request=HttpRequest(target, head, body)), AnswerBody(make_reply("chat"))


def judged(exchange: Exchange, answer: AnswerBody) -> Seen:
    """What came of it."""
    outcome, detail = judge_exchange(exchange, answer)
    return Seen(exchange=exchange, reply=answer.reply, outcome=outcome, detail=detail)


def wait_until(holds: Callable[[], object]) -> None:
    """Let other greenlets run until something holds."""
    with gevent.Timeout(PATIENCE_S):
        while not holds():
            gevent.sleep(0.001)


def chunked(writes: Writes = STREAM, *, head: bytes = CHUNKED, then: Then = Then.KEEP) -> Play:
    """An answer whose writes are one chunk each."""
    pieces = [(at, chunk(data)) for at, data in writes]
    if then is not Then.HOLD:
        pieces[-1] = (pieces[-1][0], pieces[-1][1] + LAST_CHUNK)
    return Play(writes=((0, head), *pieces), then=then)


def raw(data: bytes, then: Then = Then.KEEP) -> Play:
    """These bytes at once."""
    return Play(writes=((0, data),), then=then)


def sized(status: str, body: bytes, *headers: str) -> bytes:
    """A whole response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def flushed(writes: Writes) -> Writes:
    """The writes gzipped, each flushed so that it can be read at once."""
    pack = zlib.compressobj(wbits=31)
    return tuple((at, pack.compress(data) + pack.flush(zlib.Z_SYNC_FLUSH)) for at, data in writes)
