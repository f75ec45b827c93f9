"""Server-sent events: bytes in, events out. Pure; knows neither sockets nor clocks nor JSON.

Rules kept here (the field's own trouble spots, see docs/definitions.md):

- Bytes are split on LF, CRLF and CR only, never on the Unicode line ends that occur raw inside
  JSON strings. A CR closes its line at once; the LF that may follow it in the next read is its own.
- Any segmentation of the same bytes gives the same events.
- An event without data is dropped; a comment is counted and dropped; one blank after the colon
  is stripped, no more; several data lines are joined with LF; a byte-order mark is stripped once.
- Data pending at the end of the stream is handed out, and said to be unterminated.
- Memory is bounded: holding more than the limit for an event that has not ended is an error.

Source: WHATWG HTML, "Server-sent events", 9.2.6 Interpreting an event stream; the last-but-one
rule goes beyond it, since servers do end streams without the final blank line.
"""

from __future__ import annotations

from loadgen.errors import DecodeError

MAX_EVENT_BYTES = 16 * 1024 * 1024
LINE_BYTES = 64  # what a line takes in memory beside its data
_BOM = b"\xef\xbb\xbf"


SseEvent = tuple[bytes, bytes]
"""One event: its name (empty for the default kind) and its data. A plain tuple, for speed."""


class SseDecoder:
    """Decodes one stream.

    Attributes:
        comments: comment lines seen (keep-alives).
        unterminated: the last event came without its blank line.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_max_event_bytes",
        "_name",
        "_size",
        "_started",
        "_tail",
        "comments",
        "idle",
        "unterminated",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()  # a line that has not ended yet
        self._size = 0  # bytes held in tail and data
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False
        self._started = False
        self.idle = False  # nothing is pending, and nothing special is expected
        self.comments = 0
        self.unterminated = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Events completed by ``chunk``, in order.

        Raises:
            DecodeError: an event outgrew the limit.
        """
        # The common case, one whole event of one data line, comes first for its speed.
        if (
            self.idle
            and chunk[:6] == b"data: "
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk[-1:] == b"\n"
            and b"\r" not in chunk
        ):
            return [(b"", chunk[6:-2])]
        events = self._feed(chunk)
        self.idle = self._started and not (self._size or self._name or self._after_cr)
        return events

    def _feed(self, chunk: bytes) -> list[SseEvent]:
        if not self._started:
            chunk = self._strip_bom(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[SseEvent] = []
        if self._size == 0 and not self._name and chunk.endswith(b"\n\n"):
            # Also common: several whole events, each one data line.
            for block in chunk[:-2].split(b"\n\n"):
                if block.startswith(b"data: ") and b"\n" not in block:
                    events.append((b"", block[6:]))
                else:
                    self._lines(block + b"\n\n", events)
            return events
        self._lines(chunk, events)
        return events

    def finish(self) -> list[SseEvent]:
        """The event that the end of the stream leaves pending, if any."""
        events: list[SseEvent] = []
        if self._tail:
            self._started = True
            self._lines(b"\n", events)
        if self._data:
            self.unterminated = True
            self._dispatch(events)
        return events

    def _strip_bom(self, chunk: bytes) -> bytes:
        head = bytes(self._tail) + chunk
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._tail, self._size = bytearray(head), len(head)
            return b""
        self._started = True
        self._tail, self._size = bytearray(), 0
        return head.removeprefix(_BOM)

    def _lines(self, chunk: bytes, events: list[SseEvent]) -> None:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if self._tail:
                self._size -= len(self._tail)
                whole = bytes(self._tail + line)
                self._tail.clear()
                self._line(whole, events)
            else:
                self._line(line, events)
        if rest:
            self._tail += rest
            self._hold(len(rest))

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if not line:
            self._dispatch(events)
            return
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
            self._hold(len(value) + LINE_BYTES)
        elif field == b"event":
            self._name = value
        elif field == b"error":  # older llama.cpp puts its error into a field of that name
            self._name = b"error"
            self._data.append(value)
            self._hold(len(value) + LINE_BYTES)
        elif not field:
            self.comments += 1

    def _dispatch(self, events: list[SseEvent]) -> None:
        if self._data:
            events.append((self._name, b"\n".join(self._data)))
            self._size -= sum(map(len, self._data)) + LINE_BYTES * len(self._data)
            self._data = []
        self._name = b""

    def _hold(self, size: int) -> None:
        self._size += size
        if self._size > self._max_event_bytes:
            raise DecodeError(f"an event is larger than {self._max_event_bytes} bytes")
