"""Runs and requests made by hand, so that a test names only what it is about."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from collectors.gaps import Gaps
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run, RunStatus
from collectors.table import RequestTable
from collectors.words import Words


def make_run(**changes: Any) -> Run:
    """A complete closed-loop run of 100 s with 4 users and no warm-up."""
    asked: dict[str, Any] = {
        "id": "0run00000000aaaa",
        "name": "trial",
        "scenario": "chat",
        "target": "http://127.0.0.1:8000",
        "model": "tiny",
        "api": "chat",
        "status": RunStatus.COMPLETE,
        "began_wall_s": 1_700_000_000.0,
        "began_mono_s": 50.0,
        "users": 4,
        "duration_s": 100.0,
        "warmup_s": 0.0,
        "stopped_at_s": 100.0,
        "ended_at_s": 101.0,
        "client": {"stamp": "kernel", "loop_lag_p99_s": 0.0005},
    }
    return Run(**asked | changes)


def make_request(
    seq: int,
    due_at_s: float,
    *,
    ttft_s: float | None = 0.1,
    gaps_s: Sequence[float] | None = (0.01, 0.01, 0.01),
    outcome: Outcome = Outcome.OK,
    lag_s: float = 0.0,
    **changes: Any,
) -> RequestRecord:
    """A streamed answer: sent ``lag_s`` after it was due, first token ``ttft_s`` later, then gaps.

    Tokens are one an event. An outcome other than ``ok`` keeps what was seen of the stream;
    ``ttft_s=None`` is an answer that never began.
    """
    seen: dict[str, Any] = {}
    if outcome is not Outcome.NOT_SENT:
        seen["sent_at_s"] = sent = due_at_s + lag_s
        seen["ended_at_s"] = sent
        if ttft_s is not None:
            kept = gaps_s or ()
            first = sent + ttft_s
            last = first + sum(kept)
            seen |= {
                "first_byte_at_s": first,
                "first_token_at_s": first,
                "first_answer_at_s": first,
                "last_token_at_s": last,
                "ended_at_s": last,
                "read_delay_s": 0.0001,
                "output_events": OutputEvents(answer=len(kept) + 1),
                "gaps_s": array("f", kept) if gaps_s is not None else None,
            }
    if outcome is Outcome.OK:
        seen |= {
            "http_status": 200,
            "done_at_s": seen["ended_at_s"],
            "input_tokens": 50,
            "output_tokens": len(gaps_s or ()) + 1 if ttft_s is not None else None,
            "token_source": TokenSource.USAGE,
        }
    return RequestRecord(
        **{"run_id": "0run00000000aaaa", "seq": seq, "outcome": outcome, "due_at_s": due_at_s}
        | seen
        | changes
    )


def make_table(records: Sequence[RequestRecord]) -> RequestTable:
    """The columns of ``records``."""
    return RequestTable.from_records(records)


def columns_of(table: RequestTable) -> dict[str, tuple[str, list[Any]]]:
    """Type and rows of every column, so that tables compare; NaN as ``None``, gaps a list each."""
    columns = {}
    for name in (field.name for field in fields(table)):
        column = getattr(table, name)
        if isinstance(column, Words):
            columns[name] = ("words", list(column))
        elif isinstance(column, Gaps):
            columns[name] = (
                "gaps",
                [column[i : i + 1].whole().tolist() for i in range(len(column))],
            )
        else:
            rows = [None if np.isnan(value) else value for value in column.tolist()]
            columns[name] = (str(column.dtype), rows)
    return columns
