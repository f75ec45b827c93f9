"""Bodies that came compressed though nobody asked for it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from loadgen.errors import DecodeError

_PIECE_BYTES = 65536


def inflater(encoding: str | None) -> Any:
    """A decompressor for a Content-Encoding; ``None`` where there is nothing to do.

    Raises:
        DecodeError: an encoding that cannot be read here.
    """
    if encoding is None or encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(32 + zlib.MAX_WBITS)
    raise DecodeError(f"content encoding {encoding!r}, which was not asked for")


def inflated(inflate: Any, chunk: bytes) -> Iterator[bytes]:
    """What ``chunk`` unpacks to, in pieces: a few bytes may stand for a gigabyte.

    Raises:
        DecodeError: it does not unpack.
    """
    try:
        while piece := inflate.decompress(chunk, _PIECE_BYTES):
            yield piece
            chunk = inflate.unconsumed_tail
    except zlib.error as error:
        raise DecodeError(f"a compressed body that cannot be read: {error}") from None
