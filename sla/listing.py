"""The list of runs: a line each, with the two figures a reader looks for first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.figures import PERCENTILES, measure
from collectors.runs import Run
from sla.metrics import resolve
from sla.report import number, started_at

if TYPE_CHECKING:  # the store brings SQLAlchemy, which only those who have one need
    from collectors.store import Store

_NEEDED = ("sent_at_s", "first_token_at_s", "last_token_at_s", "done_at_s", "ended_at_s", "flags")
"""Columns that these figures rest on; reading them all would take six times as long."""


def list_runs(store: Store, limit: int | None = None) -> list[dict[str, Any]]:
    """The runs of a store, newest first."""
    return [_line(store, run) for run in store.runs(limit)]


def _line(store: Store, run: Run) -> dict[str, Any]:
    figures = measure(run, store.table(run.id, gaps=False, only=_NEEDED), [])
    ttft = figures.latency.get(resolve("ttft", run.loop).latency or "")
    return {
        "id": run.id,
        "name": run.name,
        "started_at": started_at(run),
        "scenario": run.scenario,
        "model": run.model,
        "status": str(run.status),
        "loop": run.loop,
        "asked": number(figures.asked),
        "n": figures.window.due,
        "ttft_p95_s": number(ttft.percentile(PERCENTILES[2]).value) if ttft else None,
        "error_ratio": number(figures.errors.value) if figures.errors else None,
    }
