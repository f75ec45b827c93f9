"""Tiny requests before a run: what an endpoint takes and how it answers.

They go through the client and the transport of the load. A probe keeps each request's reads as they
came, so that what the answer looks like is worked out afterwards, off the clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from collectors.records import RequestRecord
from collectors.redact import redact_text
from loadgen.client import Ask, Client, Endpoint, now
from loadgen.counts import Inline
from loadgen.exchange import Exchange, Limits, ResponseBody, Transport
from loadgen.ladder import MAX_REQUESTS, REFUSED, Shape, step_down
from loadgen.reply import error_message
from loadgen.sse import SseDecoder
from loadgen.tokenizer import Tokenizer

PROBE_TOKENS = 24  # some APIs take no limit below 16
MAX_WORDS = 300
_FILLER = "Lines of an old ledger follow; nothing in them matters. " + "one two three four " * 40


class Event(NamedTuple):
    """An event of a stream, and the CLOCK_MONOTONIC second of the read that completed it."""

    at: float
    data: bytes


@dataclass(slots=True, kw_only=True)
class Sight:
    """Everything seen of one request.

    Attributes:
        sent: the body that was sent.
        reads: instant and bytes of every read of the answer's body.
    """

    exchange: Exchange
    body: ResponseBody
    sent: Mapping[str, Any]
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    record: RequestRecord | None = None

    @property
    def status(self) -> int | None:
        """Of the response."""
        return self.exchange.status

    @property
    def first_output_at(self) -> float | None:
        """CLOCK_MONOTONIC seconds of the first output."""
        return self.body.first_output_at

    @property
    def raw(self) -> bytes:
        """The answer's body."""
        return b"".join(data for _, data in self.reads)

    def words(self, secret: tuple[str, ...]) -> str:
        """What a refusal says: its message, or the start of its body, on one line."""
        try:
            text = error_message(orjson.loads(self.raw))
        except orjson.JSONDecodeError:
            text = self.raw.decode("utf-8", "replace")
        return redact_text(" ".join(text.split()), secret)[:MAX_WORDS]

    def events(self) -> Iterator[Event]:
        """Events of a stream, in the order they came."""
        decoder = SseDecoder()
        at = 0.0
        for at, data in self.reads:
            yield from (Event(at, event) for _, event in decoder.feed(data))
        yield from (Event(at, event) for _, event in decoder.finish())


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A request that was refused, and what the next one went without; nothing, if none came."""

    status: int
    words: str
    left_out: tuple[str, ...]
    named: bool


class Probe:
    """Asks tiny requests, at most ``MAX_REQUESTS`` of them.

    Args:
        fields: the user's own fields of the body, never left out.
        tokenizer: counts tokens that the endpoint does not tell.

    Attributes:
        asked: requests so far.
        refused: those that were refused, and what was left out then.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        limits: Limits,
        *,
        fields: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.asked = 0
        self.refused: list[Refused] = []
        self._transport = transport
        self._endpoint = endpoint
        self._limits = limits
        self._fields = dict(fields or {})
        self._counter = None if tokenizer is None else Inline(tokenizer)
        # New to any cache, and the same in each request: the second may find the first one's.
        self._prompt = f"[{secrets.token_hex(8)}] {_FILLER} Answer with the single word yes."

    @property
    def left(self) -> int:
        """Requests that may still be asked."""
        return MAX_REQUESTS - self.asked

    def ask(self, shape: Shape, *, stream: bool = True) -> Sight:
        """Send one request of that shape."""
        self.asked += 1
        watch = _Watch(self._transport)
        client = Client(
            watch,
            replace(self._endpoint, dialect=shape.dialect),
            self._limits,
            run_id="probe",
            scenario="probe",
            worker=secrets.token_hex(4),
            began_at=now(),
            emit=watch.keep,
            counter=self._counter,
        )
        ask = Ask(
            task="probe",
            prompt=self._prompt,
            max_tokens=PROBE_TOKENS,
            stream=stream,
            extra={**shape.fields(), **self._fields},
        )
        client.ask(ask, now())
        return watch.sight

    def settle(self, shape: Shape) -> tuple[Shape, Sight]:
        """Go down the ladder until a request of the shape is not refused, or none is left."""
        while True:
            sight = self.ask(shape)
            if sight.status not in REFUSED:
                return shape, sight
            words = sight.raw.decode("utf-8", "replace")
            step = step_down(shape, sight.sent, words, hurry=self.left < MAX_REQUESTS - 1)
            if not self.left:
                step = None
            self.refused.append(
                Refused(
                    status=sight.status or 0,
                    words=sight.words(self._endpoint.secrets),
                    left_out=step.left_out if step else (),
                    named=step is not None and step.named,
                )
            )
            if step is None:
                return shape, sight
            shape = step.shape


class _Watch:
    """A transport that sends by another one and keeps what it saw."""

    sight: Sight

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def stamp(self) -> str | None:
        return self._transport.stamp

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        sent = orjson.loads(exchange.request.body)
        self.sight = Sight(exchange=exchange, body=body, sent=sent)
        self._transport.send(exchange, _WatchedBody(body, self.sight.reads), limits)

    @property
    def has_lane(self) -> bool:
        return self._transport.has_lane

    def settle(self) -> Iterator[None]:
        return self._transport.settle()

    def close(self) -> None:
        self._transport.close()

    def keep(self, record: RequestRecord) -> None:
        """Take the request's record, its tokens counted."""
        self.sight.record = record


class _WatchedBody:
    """A body that keeps its reads."""

    def __init__(self, body: ResponseBody, reads: list[tuple[float, bytes]]) -> None:
        self._body = body
        self._reads = reads

    @property
    def first_output_at(self) -> float | None:
        return self._body.first_output_at

    @property
    def last_output_at(self) -> float | None:
        return self._body.last_output_at

    @property
    def repeats(self) -> None:
        """Every read is to be kept, so none goes by the fast lane."""

    def repeated(
        self, events: int, shared: tuple[int, bool], gaps: bytes, text: str, at: float, read: int
    ) -> None:
        self._body.repeated(events, shared, gaps, text, at, read)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._body.head(status, headers)

    def data(self, chunk: bytes, at: float, read: int, delay: float | None) -> bool:
        self._reads.append((at, chunk))
        return self._body.data(chunk, at, read, delay)
