"""Bodies that came compressed though nobody asked for it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from loadgen.errors import DecodeError

MAX_RATIO = 100
"""A body may unpack to as many times its size, once it is larger than ``FREE_BYTES``."""

FREE_BYTES = 20 * 1024 * 1024  # more than one event may hold, which has an error of its own

_PIECE_BYTES = 65536
_EITHER_HEADER = 32 + zlib.MAX_WBITS  # gzip or zlib, told apart by their first bytes
_GZIP_MAGIC = b"\x1f\x8b"


class Inflater:
    """Unpacks one body of gzip members, one after another, or of zlib's format.

    What follows the last member is nobody's. Source: RFC 1952, 2.2; RFC 9110, 8.4.1.
    """

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_EITHER_HEADER)
        self._rest = b""  # after a member's end, while it may begin the next one
        self._over = False  # what follows is nobody's
        self._taken = self._given = 0

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What ``chunk`` unpacks to, a little at a time: a few bytes may stand for a gigabyte.

        Raises:
            DecodeError: it does not unpack, or to so much more that it must be meant to do harm.
        """
        self._taken += len(chunk)
        try:
            while True:
                if self._stream.eof:
                    chunk = self._next_member(chunk)
                    if not chunk:
                        return
                piece = self._stream.decompress(chunk, _PIECE_BYTES)
                chunk = self._stream.unused_data or self._stream.unconsumed_tail
                if piece:
                    self._count(len(piece))
                    yield piece
                elif not self._stream.eof:
                    return
        except zlib.error as error:
            raise DecodeError(f"a compressed body that cannot be read: {error}") from None

    def _next_member(self, chunk: bytes) -> bytes:
        """The bytes of another member, if that is what follows."""
        start = self._rest + chunk
        if self._over or len(start) < len(_GZIP_MAGIC):
            self._rest = start
            return b""
        self._rest = b""
        self._over = not start.startswith(_GZIP_MAGIC)
        if self._over:
            return b""
        self._stream = zlib.decompressobj(_EITHER_HEADER)
        return start

    def _count(self, size: int) -> None:
        self._given += size
        if self._given > max(FREE_BYTES, MAX_RATIO * self._taken):
            raise DecodeError(f"a compressed body that unpacks to over {MAX_RATIO} times its size")


def inflater(encoding: str | None) -> Inflater | None:
    """What unpacks a Content-Encoding; ``None`` where there is nothing to do.

    Raises:
        DecodeError: an encoding that cannot be read here.
    """
    if encoding is None or encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        return Inflater()
    raise DecodeError(f"content encoding {encoding!r}, which was not asked for")
