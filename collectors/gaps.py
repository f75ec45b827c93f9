"""The gaps between output events of many requests, which are most of what a run has.

A million answers of 200 tokens have 200 million gaps, 800 MB. So they are read a portion at a time:
from memory where they are few, else from a file without a name in the folder for such files, which
is gone with the last who holds it.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from collectors.errors import StoreError
from collectors.growing import Growing
from collectors.words import Rows

Seconds = npt.NDArray[np.float32]

IN_MEMORY = 2**24
"""Gaps that are kept in memory; more go to a file. 64 MiB."""

PORTION = 2**21
"""Gaps in a portion, or about; a request that has more is one by itself."""

_REQUESTS = 2**14  # in a portion at most; what is worked out for each of them takes memory too
_HOLE = 2**10  # gaps of others that are read along rather than left out, where they lie between


class _Source(Protocol):
    """Gaps one after another."""

    def __getitem__(self, span: slice, /) -> Seconds: ...


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """The gaps of requests in due order.

    Attributes:
        starts: (requests,), where in the source each request's begin.
        counts: (requests,), how many it has; 0 where none are kept.
    """

    _source: _Source
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: Rows) -> Gaps:
        return Gaps(self._source, self.starts[rows], self.counts[rows])

    @property
    def total(self) -> int:
        """Of all requests."""
        return int(self.counts.sum())

    def portions(self) -> Iterator[tuple[slice, Seconds]]:
        """Neighbouring requests and their gaps, a portion at a time, until all have passed."""
        if not len(self):
            return
        portion = np.cumsum(self.counts) // PORTION + np.arange(len(self)) // _REQUESTS
        edges = (0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), len(self))
        for first, last in pairwise(edges):
            yield slice(first, last), self[first:last].whole()

    def whole(self) -> Seconds:
        """All of them at once, one request's after another's; for no more than memory can hold."""
        has_any = self.counts > 0
        starts, counts = self.starts[has_any], self.counts[has_any]
        if not len(counts):
            return np.empty(0, np.float32)
        if np.array_equal(starts[1:], starts[:-1] + counts[:-1]):
            return self._source[int(starts[0]) : int(starts[-1] + counts[-1])]
        spans, starts = self._spans(starts, counts)
        where = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return np.concatenate(spans)[where + np.arange(len(where))]

    def _spans(
        self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> tuple[list[Seconds], npt.NDArray[np.int64]]:
        """What lies close together, read as one, and where in all of it each request's begin."""
        order = np.argsort(starts)
        begins = starts[order]
        ends = np.maximum.accumulate(begins + counts[order])
        cuts = np.flatnonzero(begins[1:] - ends[:-1] > _HOLE)
        begins, ends = begins[np.append(0, cuts + 1)], ends[np.append(cuts, len(ends) - 1)]
        spans = [self._source[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        lengths = ends - begins
        moved = np.cumsum(lengths) - lengths - begins
        return spans, starts + moved[np.searchsorted(begins, starts, "right") - 1]


class GapsBuilder:
    """Takes the gaps of one request after another; then they can be read."""

    def __init__(self) -> None:
        self._counts = Growing(np.int64)
        self._kept = bytearray()
        self._file: _File | None = None

    def extend(self, blobs: Iterable[bytes | None]) -> None:
        """Take a blob a request, float32 in little endian; ``None`` where none are kept.

        Raises:
            StoreError: there is no room for the file.
        """
        kept = [blob or b"" for blob in blobs]
        self._counts.extend([len(blob) // 4 for blob in kept])
        self._kept += b"".join(kept)
        if self._file is None and len(self._kept) > 4 * IN_MEMORY:
            self._file = _File()
        if self._file is not None:
            self._file.append(self._kept)
            self._kept.clear()

    def build(self) -> Gaps:
        """All that were taken."""
        counts = self._counts.whole()
        source = self._file or np.frombuffer(self._kept, "<f4").astype(np.float32, copy=False)
        return Gaps(source, np.cumsum(counts) - counts, counts)


class _File:
    """Gaps in a file without a name. Safe to share between threads once it is written."""

    def __init__(self) -> None:
        with _explained():
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with self
        weakref.finalize(self, self._file.close)

    def append(self, gaps: bytearray) -> None:
        """Write ``gaps`` after what is there."""
        with _explained(), memoryview(gaps) as rest:
            written = 0
            while written < len(rest):
                written += self._file.write(rest[written:])

    def __getitem__(self, span: slice) -> Seconds:
        offset, wanted, pieces = 4 * span.start, 4 * (span.stop - span.start), []
        while wanted:
            piece = os.pread(self._file.fileno(), wanted, offset)
            pieces.append(piece)
            offset, wanted = offset + len(piece), wanted - len(piece)
        return np.frombuffer(b"".join(pieces), "<f4").astype(np.float32, copy=False)


@contextmanager
def _explained() -> Iterator[None]:
    """Tells in one sentence what the file system would not do."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "any folder for temporary files"  # where there is none
        raise StoreError(
            f"No room for this run's gaps between tokens in {folder}"
            f" ({error.strerror}); set TMPDIR to a folder with 4 bytes for each token."
        ) from None
