"""All requests of a run as columns, which is what statistics and figures work on.

Numbers are float64 arrays in due order, NaN where not observed; outcomes and names are object
arrays of str (or ``None``). Build one from records (tests, small runs) or from the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.records import FAILED, Outcome, RequestRecord

Floats = npt.NDArray[np.float64]
Objects = npt.NDArray[np.object_]
Bools = npt.NDArray[np.bool_]

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

    ``output_events`` is the total a request. ``gaps_s`` holds the gaps of all requests one after
    another (float32), and ``gap_counts`` how many belong to each request (0 where none are kept).
    ``flags`` holds a tuple of str a request.
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
    outcome: Objects
    task: Objects
    tier: Objects
    model: Objects
    endpoint: Objects
    token_source: Objects
    worker: Objects
    flags: Objects
    gaps_s: npt.NDArray[np.float32]
    gap_counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.due_at_s)

    @property
    def is_ok(self) -> Bools:
        """Requests that succeeded."""
        return np.asarray(self.outcome == Outcome.OK.value, dtype=np.bool_)

    @property
    def is_failed(self) -> Bools:
        """Requests with an outcome in :data:`collectors.records.FAILED`."""
        return np.isin(self.outcome.astype(str), [o.value for o in FAILED])

    def is_outcome(self, outcome: Outcome) -> Bools:
        """Requests that ended in ``outcome``."""
        return np.asarray(self.outcome == outcome.value, dtype=np.bool_)

    def select(self, mask: Bools) -> RequestTable:
        """The requests where ``mask`` is True, with their gaps."""
        gap_mask = np.repeat(mask, self.gap_counts)
        columns = {
            f.name: getattr(self, f.name)[gap_mask if f.name == "gaps_s" else mask]
            for f in fields(self)
        }
        return RequestTable(**columns)

    @classmethod
    def from_records(cls, records: Iterable[RequestRecord]) -> RequestTable:
        """Columns of ``records``, sorted by due instant."""
        rows = sorted(records, key=lambda r: (r.due_at_s, r.worker, r.seq, r.attempt))
        columns: dict[str, Any] = {
            name: _numbers([getattr(r, name) for r in rows]) for name in NUMERIC
        }
        columns.update({name: _objects([_plain(getattr(r, name)) for r in rows]) for name in TEXT})
        columns["output_events"] = _numbers([r.output_events.total for r in rows])
        columns["flags"] = _objects([r.flags for r in rows])
        gaps = [
            np.frombuffer(r.gaps_s, dtype=np.float32) if r.gaps_s else np.empty(0, np.float32)
            for r in rows
        ]
        columns["gaps_s"] = np.concatenate(gaps) if gaps else np.empty(0, np.float32)
        columns["gap_counts"] = np.array([len(g) for g in gaps], dtype=np.int64)
        return cls(**columns)


def _numbers(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _objects(values: Sequence[object]) -> Objects:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _plain(value: object) -> object:
    """A StrEnum as its plain str, so that arrays compare with the stored text."""
    return None if value is None else str(value)
