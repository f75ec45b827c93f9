"""A batch of records on its way from a load process to the recorder, and its bytes.

A batch carries what one worker finished since its last one, the requests that worker still has
open, and its samples. ``(worker, sequence)`` names a batch within a run, so that sending one twice
does no harm. Packed, it is one msgpack array: a short head that can be read on its own
(:func:`peek`), the records as arrays in the order of their fields, and at the very end the gaps of
all of them in one piece, so that shedding the gaps of a batch is a cut and not a rewrite.

On a stream each message is preceded by its length in four bytes, big endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from collectors.records import RequestRecord
from collectors.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A request that is not over yet: what becomes of it if its load process dies now.

    Instants are seconds since the run began, ``None`` where not reached, as in
    :class:`collectors.records.RequestRecord`.
    """

    seq: int
    attempt: int = 0
    due_at_s: float
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
