"""The seam between a client and a transport: ``send(exchange, body, limits)``.

A transport moves bytes and stamps them; it knows nothing of tokens. What the bytes mean is the
body's business (:class:`ResponseBody`), which the transport feeds and asks three things: is the
answer over, has output begun, when did it last move.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from loadgen.plain import PlainEvent
from loadgen.target import HttpRequest


class End(StrEnum):
    """How an exchange ended, as the transport saw it."""

    COMPLETE = "complete"  # the whole response arrived, or the body said it had all it needs
    CONNECT_ERROR = "connect_error"
    TLS_ERROR = "tls_error"
    RESET = "reset"  # the connection ended before the response did
    MALFORMED = "malformed"  # not HTTP, or the body refused it
    TIMEOUT = "timeout"
    ABANDONED = "abandoned"  # we left: the run ended
    CUT = "cut"  # we left: the scenario wanted no more of it


CUT = "cut"
"""The limit that is a user's own, as :meth:`Limits.nearest` names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits in seconds; ``None`` is no limit.

    Attributes:
        connect_s: DNS, TCP and TLS together.
        head_s: from sent to the response head.
        first_s: from sent to the first output.
        idle_s: between outputs; keep-alive comments do not count as life.
        total_s: from sent to the end.
        cut_s: from sent to the moment a user loses patience and leaves: no fault of the server's.
    """

    connect_s: float | None = 30.0
    head_s: float | None = None
    first_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = 600.0
    cut_s: float | None = None

    def nearest(self, exchange: Exchange, body: ResponseBody) -> tuple[float | None, str]:
        """The instant of the limit that is reached first as things stand, and which one it is.

        ``connect_s`` is the transport's own business; nothing runs before the request is sent.
        """
        sent = exchange.sent_at
        if sent is None:
            return None, ""
        deadlines = [(sent + self.total_s, "total")] if self.total_s else []
        if self.cut_s is not None:
            deadlines.append((sent + self.cut_s, CUT))
        if self.head_s and exchange.head_at is None:
            deadlines.append((sent + self.head_s, "head"))
        if self.first_s and body.first_output_at is None:
            deadlines.append((sent + self.first_s, "first"))
        if self.idle_s and body.last_output_at is not None:
            deadlines.append((body.last_output_at + self.idle_s, "idle"))
        return min(deadlines, default=(None, ""))

    def next_look_s(self, exchange: Exchange, body: ResponseBody) -> float | None:
        """In how many seconds a limit may be reached at the earliest; ``None`` for never."""
        deadline, _ = self.nearest(exchange, body)
        waits = [] if deadline is None else [max(0.0, deadline - time.monotonic())]
        if self.idle_s:  # output may begin meanwhile, and stop
            waits.append(self.idle_s)
        return min(waits, default=None)


class ResponseBody(Protocol):
    """What a transport feeds, and asks."""

    @property
    def first_output_at(self) -> float | None:
        """CLOCK_MONOTONIC seconds of the first output, ``None`` before it."""

    @property
    def last_output_at(self) -> float | None:
        """CLOCK_MONOTONIC seconds of the latest output, ``None`` before the first."""

    @property
    def repeats(self) -> PlainEvent | None:
        """The event that may come again from here on; ``None`` where none is known."""

    def repeated(
        self, events: int, shared: tuple[int, bool], gaps: bytes, text: str, at: float, read: int
    ) -> None:
        """Events of that kind came.

        Args:
            events: how many.
            shared: how many of them came with the one before, and whether the first did.
            gaps: the seconds before each of them, native 32-bit floats.
            text: what they say, all of them together.
            at: arrival of the last one, CLOCK_MONOTONIC seconds.
            read: number of the read that it came with.
        """

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The final response head; names of headers are lower case."""

    def data(self, chunk: bytes, at: float, read: int, delay: float | None) -> bool:
        """Body bytes of read number ``read``; True once the answer needs no more.

        Raises:
            DecodeError: the body cannot be this API's.
        """


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What one transport saw of one request. Instants are CLOCK_MONOTONIC seconds.

    Attributes:
        connect_s: time to open a connection; ``None`` on a reused one.
        sent_at: just before the first byte of the request was handed to the kernel; ``None`` where
            nothing was sent.
        head_at: arrival of the response head.
        done_at: arrival of the response's end, or of the end marker inside it.
        ended_at: when watching ended, whatever the end.
        detail: which time limit, or the error's words (redacted by the client).
        http_version: as the response names it, "1.0", "1.1" or "2".
        retries: fresh-socket tries after a stale kept-alive connection.
    """

    request: HttpRequest
    connect_s: float | None = None
    reused: bool = False
    sent_at: float | None = None
    head_at: float | None = None
    done_at: float | None = None
    ended_at: float | None = None
    status: int | None = None
    http_version: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    end: End | None = None
    detail: str | None = None
    retries: int = 0


class Transport(Protocol):
    """Sends one request at a time for its caller; safe to share among greenlets."""

    @property
    def stamp(self) -> str | None:
        """Where its instants come from: "kernel", "clock" or "mixed"; ``None`` before any."""

    @property
    def has_lane(self) -> bool:
        """Whether events that repeat are read by :mod:`loadgen.fastlane`, where they may be."""

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Send ``exchange.request`` and follow the response to its end.

        Fills ``exchange`` as things happen, so that others can see how far it is. Raises nothing
        for what the network does; a greenlet killed meanwhile leaves ``End.ABANDONED``.
        """

    def settle(self) -> Iterator[None]:
        """Bring the bodies of all exchanges in flight up to date with what was read; in steps."""

    def close(self) -> None:
        """Close every connection."""
