"""The body of a response: which kind it is, and feeding it to the reply."""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

from loadgen.errors import DecodeError
from loadgen.plain import PlainEvent, learn
from loadgen.reply import MAX_WORDS, Reply, error_message
from loadgen.sse import SseDecoder

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"
_BLANKS = re.compile(rb"\s*(?:\xef\xbb\xbf\s*)*")  # in any order, since reads may end between them
_LESSONS = 8  # tries at learning an answer's plain event; what never repeats is not worth more
_SSE_STARTS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")


class AnswerBody:
    """Decodes one response: SSE where it is SSE, JSON where it is JSON, words where it is refused.

    A wrong content type is looked through: what starts like SSE or JSON is taken as such.
    """

    __slots__ = (
        "_decoder",
        "_kept",
        "_kind",
        "_lessons",
        "_plain",
        "_start",
        "_status",
        "content_type",
        "reply",
    )

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.content_type = ""
        self._status = 0
        self._decoder: SseDecoder | None = None
        self._plain: PlainEvent | None = None
        self._lessons = _LESSONS
        self._kind = ""  # "sse", "json" or "refusal" once known
        self._start = b""  # what came while the kind is not known
        self._kept = bytearray()

    @property
    def first_output_at(self) -> float | None:
        """CLOCK_MONOTONIC seconds of the first output, ``None`` before it."""
        return self.reply.first_output_at

    @property
    def last_output_at(self) -> float | None:
        """CLOCK_MONOTONIC seconds of the latest output, ``None`` before the first."""
        return self.reply.last_output_at

    @property
    def empty(self) -> bool:
        """Nothing but blanks came."""
        return not self._kind

    @property
    def repeats(self) -> PlainEvent | None:
        """The event that may come again from here on; ``None`` where none is known."""
        whole = self._decoder is not None and self._decoder.idle
        return self._plain if whole else None

    def repeated(
        self, events: int, shared: tuple[int, bool], gaps: bytes, text: str, at: float, read: int
    ) -> None:
        """See :meth:`loadgen.exchange.ResponseBody.repeated`."""
        self.reply.repeated(events, shared, gaps, text, at, read)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The final response head."""
        self._status = status
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()

    def data(self, chunk: bytes, at: float, read: int, delay: float | None) -> bool:
        """Body bytes; True once the end marker was seen, or a refusal said more than is kept."""
        decoder, reply = self._decoder, self.reply
        whole = decoder is not None and decoder.idle
        if whole and self._plain is not None and (text := self._plain.text(chunk)):
            reply.plain(text, at, read)
            return False
        if not self._kind:
            chunk = self._begin(chunk)
            decoder = self._decoder
        if decoder is None:
            return self._keep(chunk)
        said = reply.n_answer
        events = decoder.feed(chunk)
        for name, data in events:
            reply.event(name, data, at, read, delay)
        if reply.done:
            self._plain = None  # what follows the end is no answer
            return True
        if whole and self._lessons and len(events) == 1 and reply.n_answer == said + 1:
            self._learn(chunk, events[0][1])
        return False

    def _learn(self, chunk: bytes, data: bytes) -> None:
        """Look whether ``chunk``, one event of answer, says nothing else and will come again."""
        reply = self.reply
        if self._decoder is None or not self._decoder.idle:
            return
        text = reply.plain_text(orjson.loads(data))
        if text is not None:
            self._lessons -= 1
            self._plain = learn(chunk, text, self._plain_text) or self._plain

    def _plain_text(self, chunk: bytes) -> str | None:
        """The text of a whole event, decoded in full, if it is one and says nothing else."""
        ((_, data),) = SseDecoder().feed(chunk)
        try:
            return self.reply.plain_text(orjson.loads(data))
        except orjson.JSONDecodeError:
            return None

    def end(self, at: float, read: int = 0) -> None:
        """The response ended cleanly: decode what was kept or is pending.

        Raises:
            DecodeError: the body is not what this API answers.
        """
        if self._start:
            self._begin(b"", more=False)
        if self._decoder is not None:
            for name, data in self._decoder.finish():
                self.reply.event(name, data, at, read, None)
        elif self._kind == "json" and not self.reply.body(bytes(self._kept)):
            raise DecodeError("a JSON body that is not an answer")

    @property
    def unterminated(self) -> bool:
        """The last event lacked its blank line."""
        return self._decoder is not None and self._decoder.unterminated

    @property
    def refusal(self) -> str:
        """The words of an error response."""
        text = self._kept.strip()
        try:
            return error_message(orjson.loads(text)) if text else ""
        except orjson.JSONDecodeError:
            return text[:MAX_WORDS].decode("utf-8", "replace")

    def _begin(self, chunk: bytes, *, more: bool = True) -> bytes:
        """Tell the kind of body; the bytes to go on with, none while it cannot be told."""
        start = _BLANKS.sub(b"", self._start + chunk, count=1)
        self._kind = self._sniff(start, more=more)
        if not self._kind:
            self._start = start
            return b""
        self._start = b""
        if self._kind == "sse":
            self._decoder = SseDecoder()
        return start

    def _sniff(self, start: bytes, *, more: bool) -> str:
        if more and _BOM.startswith(start):  # nothing yet, or part of a mark
            return ""
        if self._status >= 300:
            return "refusal"
        if start.startswith((b"{", b"[")):
            return "json"
        if start.startswith(_SSE_STARTS):
            return "sse"
        if more and any(s.startswith(start) for s in _SSE_STARTS):
            return ""
        if self.content_type == "text/event-stream":
            return "sse"
        if self.content_type.endswith("json"):
            return "json"
        raise DecodeError(f"content type {self.content_type or 'unknown'!r} is not an answer")

    def _keep(self, chunk: bytes) -> bool:
        """Keep what there is room for; True where a refusal has filled it."""
        limit = MAX_ERROR_BYTES if self._kind == "refusal" else MAX_JSON_BYTES
        room = limit - len(self._kept)
        if len(chunk) > room and self._kind == "json":
            raise DecodeError(f"a JSON body larger than {limit} bytes")
        self._kept += chunk[: max(0, room)]
        return self._kind == "refusal" and len(chunk) >= room
