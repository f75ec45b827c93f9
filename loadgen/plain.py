"""The event that a stream repeats: all of it but its text is the same every time.

Most events of an answer differ in nothing but a few letters. Once one has been decoded in full and
said nothing but its text, the bytes before and after that text are kept; whatever is framed by the
same bytes says the same, with another text. It is then enough to compare, and to decode that one
string, which costs a fraction of decoding it all. What differs anywhere else (a count, a finish
reason, a second choice) is decoded in full as ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import orjson

_RAW_TEXT = re.compile(rb"[ !#-\[\]-~]+").fullmatch
"""ASCII that stands for itself inside a JSON string (RFC 8259, 7) and ends no line."""

_STARTS = (b"data:", b"event:")
_PROBE = b"a text that no server sends"


class PlainEvent(NamedTuple):
    """Bytes before and after the text of a chunk that is one whole event."""

    head: bytes
    tail: bytes

    def text(self, chunk: bytes) -> str | None:
        """The text of ``chunk``, ``None`` where it is not this event again."""
        head, tail = self
        if chunk.startswith(head) and chunk.endswith(tail):
            text = chunk[len(head) : -len(tail)]
            return text.decode("ascii") if _RAW_TEXT(text) else _decoded(text)
        return None


def _decoded(text: bytes) -> str | None:
    """What the inside of a JSON string stands for, ``None`` where it is none, or is empty."""
    try:
        decoded: str = orjson.loads(b'"%s"' % text)
    except orjson.JSONDecodeError:
        return None
    return decoded or None


def learn(chunk: bytes, text: str, text_of: Callable[[bytes], str | None]) -> PlainEvent | None:
    """The frame of ``text`` in ``chunk``, one whole event; ``None`` where it cannot be told.

    Args:
        chunk: the event, which says nothing but ``text``.
        text: what it says.
        text_of: decodes an event in full; its text if that is all it says, else ``None``.
    """
    head, quoted, tail = chunk.partition(b'"%s"' % text.encode("utf-8", "replace"))
    if not quoted or not head.startswith(_STARTS) or b"\n:" in chunk:  # comments are counted
        return None
    event = PlainEvent(head + b'"', b'"' + tail)
    # The same letters may stand between quotes elsewhere, too.
    return event if text_of(event.head + _PROBE + event.tail) == _PROBE.decode() else None
