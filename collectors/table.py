"""All requests of a run as columns, which is what statistics and figures work on.

Numbers are float64 arrays in due order, NaN where not observed; outcomes and names are words, a
number a row. The gaps between output events stay where they are until they are asked for. Build one
from records (tests, small runs) or from the store.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.gaps import Gaps, GapsBuilder
from collectors.records import FAILED, Outcome, RequestRecord
from collectors.words import Bools, Rows, Words

Floats = npt.NDArray[np.float64]
Text = Words[str | None]

NUMERIC = (
    "due_at_s",
    "sent_at_s",
    "connect_s",
    "first_byte_at_s",
    "first_token_at_s",
    "first_answer_at_s",
    "last_token_at_s",
    "done_at_s",
    "ended_at_s",
    "read_delay_s",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "first_event_tokens",
    "asked_output_tokens",
    "coalesced_events",
    "quality",
    "cache_write_input_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "server_cost_usd",
)
"""Columns that are numbers in :class:`RequestTable`, by the record's own names."""

TEXT = ("outcome", "task", "tier", "model", "endpoint", "token_source", "worker")
"""Columns that are text in :class:`RequestTable`, by the record's own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTable:
    """Columns of the requests of one run, sorted by due instant.

    ``output_events`` is the total a request. ``flags`` holds a tuple of str a request. A column in
    which nothing was observed is one NaN seen many times (:func:`absent`), and takes no memory.
    """

    due_at_s: Floats
    sent_at_s: Floats
    connect_s: Floats
    first_byte_at_s: Floats
    first_token_at_s: Floats
    first_answer_at_s: Floats
    last_token_at_s: Floats
    done_at_s: Floats
    ended_at_s: Floats
    read_delay_s: Floats
    input_tokens: Floats
    cached_input_tokens: Floats
    output_tokens: Floats
    reasoning_tokens: Floats
    first_event_tokens: Floats
    asked_output_tokens: Floats
    coalesced_events: Floats
    quality: Floats
    cache_write_input_tokens: Floats
    audio_input_tokens: Floats
    audio_output_tokens: Floats
    server_cost_usd: Floats
    output_events: Floats
    outcome: Text
    task: Text
    tier: Text
    model: Text
    endpoint: Text
    token_source: Text
    worker: Text
    flags: Words[tuple[str, ...]]
    gaps: Gaps

    def __len__(self) -> int:
        return len(self.due_at_s)

    @property
    def is_ok(self) -> Bools:
        """Requests that succeeded."""
        return self.is_outcome(Outcome.OK)

    @property
    def is_failed(self) -> Bools:
        """Requests with an outcome in :data:`collectors.records.FAILED`."""
        return self.outcome.where(lambda outcome: outcome in FAILED)

    def is_outcome(self, wanted: Outcome) -> Bools:
        """Requests that ended in ``wanted``."""
        return self.outcome.where(lambda outcome: outcome == wanted)

    def due_between(self, start_s: float, end_s: float) -> RequestTable:
        """The requests due in that time, both ends included; shares memory with this table."""
        first = np.searchsorted(self.due_at_s, start_s, "left")
        last = np.searchsorted(self.due_at_s, end_s, "right")
        return self.select(slice(int(first), int(last)))

    def select(self, rows: Rows) -> RequestTable:
        """The requests of ``rows``; of a slice, sharing memory with this table."""
        outcome = self.outcome[rows]

        def of(column: Any) -> Any:
            if isinstance(column, np.ndarray) and column.strides == (0,):
                return absent(len(outcome))
            return column[rows]

        columns = {f.name: of(getattr(self, f.name)) for f in fields(self)}
        return RequestTable(**columns | {"outcome": outcome})

    @classmethod
    def from_records(cls, records: Iterable[RequestRecord]) -> RequestTable:
        """Columns of ``records``, sorted by due instant."""
        rows = sorted(records, key=lambda r: (r.due_at_s, r.worker, r.seq, r.attempt))
        columns: dict[str, Any] = {
            name: _numbers([getattr(r, name) for r in rows]) for name in NUMERIC
        }
        columns |= {name: Words.of(_plain(getattr(r, name)) for r in rows) for name in TEXT}
        gaps = GapsBuilder()
        gaps.extend(None if r.gaps_s is None else _stored(r.gaps_s) for r in rows)
        return cls(
            **columns,
            output_events=_numbers([r.output_events.total for r in rows]),
            flags=Words.of(r.flags for r in rows),
            gaps=gaps.build(),
        )


def absent(rows: int) -> Floats:
    """A column in which nothing was observed: one NaN, not to be written to."""
    return np.broadcast_to(np.float64(np.nan), rows)


def _numbers(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _stored(gaps_s: array[float]) -> bytes:
    """As the database keeps them."""
    return np.array(gaps_s, dtype="<f4").tobytes()


def _plain(value: object) -> str | None:
    """A StrEnum as its plain str, so that it is the stored text."""
    return None if value is None else str(value)
