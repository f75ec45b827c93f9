"""Bodies that came compressed."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from loadgen.errors import DecodeError
from loadgen.inflate import FREE_BYTES, MAX_RATIO, Inflater, inflater

TEXT = b"data: a\n\n" * 50


def unpacked(data: bytes, size: int) -> bytes:
    """What bytes unpack to that come so many at a time."""
    inflate = Inflater()
    reads = (data[i : i + size] for i in range(0, len(data), size))
    return b"".join(piece for read in reads for piece in inflate.pieces(read))


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(TEXT),
        zlib.compress(TEXT),
        gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]),
        b"".join(gzip.compress(TEXT[i : i + 9]) for i in range(0, len(TEXT), 9)),
        gzip.compress(b"") + gzip.compress(TEXT) + gzip.compress(b""),
        gzip.compress(TEXT) + b"\0\0\0",
        gzip.compress(TEXT) + b"\x1f",
        gzip.compress(TEXT) + b"trailing \x1f\x8b" + gzip.compress(TEXT),
    ],
    ids=["gzip", "zlib", "two", "many", "empty ones", "padding", "half a mark", "surplus"],
)
def test_members_are_read_one_after_another(data: bytes, size: int) -> None:
    """Wherever reads end; what follows the last of them is nobody's."""
    assert unpacked(data, size) == TEXT


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(TEXT)[:-1] + b"\xff", b"\x1f\x8b\x09\x00"]
)
def test_what_does_not_unpack_is_an_error(data: bytes, size: int) -> None:
    """In one sentence, without zlib's type."""
    with pytest.raises(DecodeError, match="a compressed body that cannot be read: Error -3"):
        unpacked(data, size)


def test_a_cut_is_no_error_here() -> None:
    """What came is there; whether it is whole is told by its words."""
    squeeze = zlib.compressobj(wbits=31)
    start = squeeze.compress(TEXT) + squeeze.flush(zlib.Z_SYNC_FLUSH)

    assert unpacked(start, 5) == TEXT


def test_pieces_are_small() -> None:
    """However much a read unpacks to."""
    sizes = [len(piece) for piece in Inflater().pieces(gzip.compress(bytes(5 << 20)))]

    assert sum(sizes) == 5 << 20
    assert max(sizes) <= 65536


def test_a_bomb_is_refused() -> None:
    """Once it is larger than an event may be, and a hundred times its size."""
    pieces = Inflater().pieces(gzip.compress(bytes(FREE_BYTES + 1)))

    assert sum(len(next(pieces)) for _ in range(FREE_BYTES >> 16)) == FREE_BYTES
    with pytest.raises(DecodeError, match=f"to over {MAX_RATIO} times its size"):
        next(pieces)


def test_a_large_answer_is_no_bomb() -> None:
    """What does not grow that much may be of any size."""
    data = random.Random(1).randbytes(1 << 20)
    packed = b"".join(gzip.compress(data + bytes(1 << 20), 1) for _ in range(FREE_BYTES >> 20))

    assert len(unpacked(packed, 1 << 16)) == 2 * FREE_BYTES


@pytest.mark.parametrize("encoding", [None, "", "identity", "Identity"])
def test_nothing_is_done_where_nothing_was(encoding: str | None) -> None:
    """The usual case."""
    assert inflater(encoding) is None


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
def test_known_encodings(encoding: str) -> None:
    """Under any of their names."""
    assert isinstance(inflater(encoding), Inflater)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_other_encodings_are_refused(encoding: str) -> None:
    """None was asked for."""
    with pytest.raises(DecodeError, match="which was not asked for"):
        inflater(encoding)
