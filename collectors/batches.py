"""A batch of records on its way from a load process to the recorder, and its bytes.

A batch carries what one worker finished since its last one, the requests that worker still has
open, and its samples. ``(worker, sequence)`` names a batch within a run, so that sending one twice
does no harm. Packed, it is a msgpack array (its length first, in four bytes): a short head that can
be read on its own (:func:`peek`), then the records as arrays in the order of their fields. The gaps
of all records follow it in one piece, so that shedding them is a cut and not a rewrite.

On a stream each message is preceded by its length in four bytes, big endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple

import msgpack

from collectors.errors import BatchError, RecordError
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.samples import Sample

FORMAT = 3
"""First element of a packed batch; raised when its layout changes."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A longer frame is not ours: 64 records of 250,000 output events each."""

_LENGTH = struct.Struct(">I")
_HEAD_LENGTH = 4  # elements: the format and the fields of Head
_GAP_COUNT = 3  # element of a record's row
_FLOAT_BYTES = 4
_HEAD_BYTES = 1024  # enough for any head


class OpenRequest(NamedTuple):
    """A request that is not over yet: what becomes of it if its load process dies now.

    Instants are seconds since the run began, ``None`` where not reached, as in
    :class:`collectors.records.RequestRecord`.
    """

    seq: int
    due_at_s: float
    attempt: int = 0
    sent_at_s: float | None = None
    first_byte_at_s: float | None = None
    first_token_at_s: float | None = None
    first_answer_at_s: float | None = None
    last_token_at_s: float | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one worker has to say since its last batch.

    Attributes:
        worker: name of the load process, unique within the run; that of every record here.
        sequence: number of the batch within its worker, from 0.
        at_s: instant at which the batch was drawn up.
        records: requests that ended; small batches (at most 256) keep packing short.
        open: every request of this worker that is open at ``at_s``; the last batch of a worker
            says which of its requests are recorded as unfinished should it die.
        samples: readings of the load process itself.
    """

    worker: str
    sequence: int
    at_s: float
    records: list[RequestRecord] = field(default_factory=list)
    open: list[OpenRequest] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


class Head(NamedTuple):
    """What the bytes of a batch say first."""

    worker: str
    sequence: int
    records: int  # how many


_EVENT_KINDS = tuple(f.name for f in fields(OutputEvents))
_PLAIN_FIELDS = tuple(
    f.name
    for f in fields(RequestRecord)
    if f.name not in {"run_id", "worker", "outcome", "token_source", "output_events", "gaps_s"}
)
"""Fields of a record that msgpack takes as they are; the others precede them, see :func:`_row`."""

_plain_values = attrgetter(*_PLAIN_FIELDS)
_events_of_each_kind = attrgetter(*_EVENT_KINDS)


def pack(batch: Batch) -> bytes:
    """The bytes of ``batch``.

    Raises:
        BatchError: its records are of several runs or workers, or a value cannot be written.
    """
    runs = {record.run_id for record in batch.records}
    if len(runs) > 1 or any(record.worker != batch.worker for record in batch.records):
        raise BatchError(
            f"batch {batch.worker}/{batch.sequence} holds records of several runs or workers"
        )
    try:
        body: bytes = msgpack.packb(
            (
                FORMAT,
                batch.worker,
                batch.sequence,
                len(batch.records),
                batch.at_s,
                next(iter(runs), None),
                [_row(record) for record in batch.records],
                batch.open,
                batch.samples,
            ),
            unicode_errors="replace",  # half a surrogate pair in a server's error text
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise BatchError(
            f"batch {batch.worker}/{batch.sequence} cannot be written: {error}"
        ) from error
    gaps = (_little_endian(r.gaps_s).tobytes() for r in batch.records if r.gaps_s)
    return b"".join((_LENGTH.pack(len(body)), body, *gaps))


def unpack(packed: bytes) -> Batch:
    """The batch that :func:`pack` turned into ``packed``.

    Raises:
        BatchError: these bytes are no batch.
    """
    head = peek(packed)
    body, gaps = packed[_LENGTH.size : _end(packed)], packed[_end(packed) :]
    try:
        at_s, run_id, rows, opened, samples = msgpack.unpackb(body)[_HEAD_LENGTH:]
        if len(rows) != head.records or (gaps and len(gaps) != _gap_bytes(rows)):
            raise BatchError("a batch's head does not fit its body")
        return Batch(
            worker=head.worker,
            sequence=head.sequence,
            at_s=at_s,
            records=list(_records(rows, run_id, head.worker, gaps)),
            open=[OpenRequest(*row) for row in opened],
            samples=[Sample(*row) for row in samples],
        )
    except (TypeError, ValueError, AttributeError, RecordError) as error:
        raise BatchError(f"{len(packed)} bytes are not a batch: {error}") from error


def peek(packed: bytes) -> Head:
    """The head of a packed batch, without reading the rest.

    Raises:
        BatchError: these bytes do not begin as a batch does.
    """
    reader = msgpack.Unpacker()
    reader.feed(packed[_LENGTH.size : _LENGTH.size + _HEAD_BYTES])
    try:
        reader.read_array_header()
        layout, *head = (reader.unpack() for _ in range(_HEAD_LENGTH))
    except (ValueError, msgpack.UnpackException) as error:  # OutOfData is one of the latter
        raise BatchError(f"{len(packed)} bytes are not a batch: {error}") from error
    if layout != FORMAT or [type(value) for value in head] != [str, int, int]:
        raise BatchError(f"a batch of format {FORMAT} was expected, found {layout!r}, {head!r}")
    return Head(*head)


def without_gaps(packed: bytes) -> bytes:
    """The same batch without the gaps of its records, which are then "not kept"."""
    return packed[: _end(packed)]


def framed(message: bytes) -> bytes:
    """``message`` as it goes onto a stream.

    Raises:
        BatchError: it is longer than any reader would take.
    """
    if len(message) > MAX_FRAME_BYTES:
        raise BatchError(f"a message of {len(message)} bytes is over {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(message)) + message


class Frames:
    """Cuts a stream back into the messages that :func:`framed` made of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes as they come; yield each message that is complete.

        Raises:
            BatchError: a length is none; what follows on this stream cannot be read.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise BatchError(f"a message of {length} bytes is over {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def _row(record: RequestRecord) -> tuple[Any, ...]:
    return (
        record.outcome.value,
        None if record.token_source is None else record.token_source.value,
        _events_of_each_kind(record.output_events),
        None if record.gaps_s is None else len(record.gaps_s),
        *_plain_values(record),
    )


def _end(packed: bytes) -> int:
    """Where the msgpack array ends and the gaps begin."""
    return _LENGTH.size + int(_LENGTH.unpack_from(packed)[0])


def _gap_bytes(rows: list[list[Any]]) -> int:
    return sum(_FLOAT_BYTES * (row[_GAP_COUNT] or 0) for row in rows)


def _records(
    rows: list[list[Any]], run_id: str, worker: str, gaps: bytes
) -> Iterator[RequestRecord]:
    start = 0
    for outcome, source, events, gap_count, *plain in rows:
        values = dict(zip(_PLAIN_FIELDS, plain, strict=True))
        values["flags"] = tuple(values["flags"])
        values["finish_reasons"] = tuple(values["finish_reasons"])
        own = None
        if gap_count == 0 or (gap_count and gaps):  # else not kept, or shed on the way
            end = start + _FLOAT_BYTES * gap_count
            own = array("f")
            own.frombytes(gaps[start:end])
            own = _little_endian(own)
            start = end
        yield RequestRecord(
            run_id=run_id,
            worker=worker,
            outcome=Outcome(outcome),
            token_source=None if source is None else TokenSource(source),
            output_events=OutputEvents(**dict(zip(_EVENT_KINDS, events, strict=True))),
            gaps_s=own,
            **values,
        )


def _little_endian(gaps: array[float]) -> array[float]:
    """``gaps`` in little endian byte order, or back from it."""
    if sys.byteorder == "little":
        return gaps
    swapped = array("f", gaps)
    swapped.byteswap()
    return swapped
