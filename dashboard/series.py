"""A run over time: latencies, rates, outcomes and open requests, each as a table of bins.

Rules kept here:

- A latency belongs to the bin in which its request was due, as it does in the report, and is as
  felt; a percentile is given only where at least one value lies beyond it, else it is NaN: a gap.
- Bins are as narrow as they can be while an ordinary one holds enough requests.
- What nothing tells is absent (``None``), what was counted and found to be none is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from collectors.figures import window_span
from collectors.latency import SAMPLES
from collectors.records import Outcome
from collectors.runs import Run
from collectors.stats import percentile
from collectors.table import Floats, RequestTable
from collectors.tokens import tokens_in_bins
from sla.metrics import resolve

QUANTILES = (0.5, 0.95, 0.99)
LATENCIES = ("ttft", "itl", "e2e")
"""As SLA files name them; what they are counted from depends on the loop."""

MOST_BINS = 240
FEWEST_REQUESTS = 5  # in a bin, for any percentile: pooled gaps of one request are one request's
_ENOUGH = (130, 25)  # requests in an ordinary bin: most then have the 100 (20) p99 (p95) needs
_FEWEST_BINS = 20  # below that a line has too little shape to pay for p99
_NICE_S = (
    *(float(f"{digit}e{power}") for power in (-3, -2, -1, 0) for digit in (1, 2, 3, 5)),
    *(10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0),
)
_OPEN_BINS = 300
_ALMOST_ONE = 1 - 1e-9  # value beyond a percentile; 20 * (1 - 0.95) is 1 but for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One run over time. Every frame has ``start_s`` and ``end_s``, a bin a row, in order.

    Attributes:
        window_s: start and end of the measured window, in seconds since the run began.
        width_s: length of the bins (those of ``concurrency`` are narrower).
        latency: by name in :data:`LATENCIES` a frame with ``n``, ``p50_s``, ``p95_s``, ``p99_s``;
            no entry where the latency was not observed.
        requests: ``n`` requests that ended well or failed in the bin, ``requests_per_s``.
        tokens: ``output_tokens_per_s``; ``None`` where the output tokens are unknown.
        outcomes: a column for each outcome but ``ok`` that occurred: requests that ended so.
        concurrency: ``mean`` and ``highest`` number of open requests.
        sent: requests that were ever open.
    """

    window_s: tuple[float, float]
    width_s: float
    latency: Mapping[str, pd.DataFrame]
    requests: pd.DataFrame
    tokens: pd.DataFrame | None
    outcomes: pd.DataFrame
    concurrency: pd.DataFrame
    sent: int


def over_time(run: Run, table: RequestTable) -> Series:
    """The series of ``run``.

    Args:
        run: as stored.
        table: all of its requests.
    """
    over_s = _over_at_s(table)
    window_s = window_span(run, table)
    span_s = max(window_s[1], float(np.nanmax(over_s, initial=0.0)))
    width_s = bin_width_s(span_s, len(table))
    edges = _edges(span_s, width_s)
    return Series(
        window_s=window_s,
        width_s=width_s,
        latency=_latency(run, table, edges),
        requests=_requests(table, over_s, edges),
        tokens=_tokens(table, edges),
        outcomes=_outcomes(table, over_s, edges),
        concurrency=concurrency(table.sent_at_s, over_s, _edges(span_s, span_s / _OPEN_BINS)),
        sent=int((~np.isnan(table.sent_at_s)).sum()),
    )


def bin_width_s(span_s: float, requests: int) -> float:
    """The narrowest round width at which an ordinary bin holds enough requests.

    Args:
        span_s: length of the run.
        requests: how many were due in it.
    """
    for enough in _ENOUGH:
        widths = (w for w in _NICE_S if w * requests >= enough * span_s and w * MOST_BINS >= span_s)
        width_s = next(widths, _NICE_S[-1])
        if width_s * _FEWEST_BINS <= span_s:
            return width_s
    return min(width_s, next((w for w in _NICE_S if w >= span_s), _NICE_S[-1]))


def concurrency(sent_at_s: Floats, over_at_s: Floats, edges: Floats) -> pd.DataFrame:
    """Mean and highest number of requests open in each bin, from when they were sent and over.

    Args:
        sent_at_s: NaN for a request that never was.
        over_at_s: of the same requests.
        edges: of the bins.
    """
    was_sent = ~np.isnan(sent_at_s) & ~np.isnan(over_at_s)
    at_s = np.concatenate((sent_at_s[was_sent], over_at_s[was_sent]))
    step = np.repeat([1, -1], was_sent.sum())
    order = np.lexsort((step, at_s))  # one that ends makes room for one sent in the same instant
    at_s, level = at_s[order], np.cumsum(step[order])
    area = np.concatenate(([0.0], np.cumsum(level[:-1] * np.diff(at_s)))) if len(at_s) else at_s
    upto = np.interp(edges, at_s, area) if len(at_s) else np.zeros(len(edges))
    before = np.searchsorted(at_s, edges, side="right")
    levels = np.concatenate(([0], level))  # levels[i]: after i events
    highest = [int(levels[first : last + 1].max()) for first, last in pairwise(before)]
    frame = _frame(edges)
    frame["mean"] = np.diff(upto) / np.diff(edges)
    frame["highest"] = highest
    return frame


def _edges(span_s: float, width_s: float) -> Floats:
    """Edges of bins from 0 to ``span_s``; one bin of a second for no span.

    The last bin takes what is left over, from half a width to one and a half: the rate of a sliver
    would leap.
    """
    if span_s <= 0:
        return np.array([0.0, 1.0])
    edges = np.arange(max(1, round(span_s / width_s)) + 1, dtype=np.float64) * width_s
    edges[-1] = span_s
    return edges


def _frame(edges: Floats) -> pd.DataFrame:
    return pd.DataFrame({"start_s": edges[:-1], "end_s": edges[1:]})


def _over_at_s(table: RequestTable) -> Floats:
    """When each request was over; a request never sent was so when it was due."""
    over = np.where(np.isnan(table.done_at_s), table.ended_at_s, table.done_at_s)
    return np.where(np.isnan(over), table.due_at_s, over)


def _latency(run: Run, table: RequestTable, edges: Floats) -> dict[str, pd.DataFrame]:
    keys = {name: resolve(name, run.loop).latency or "" for name in LATENCIES}
    observed = {name: key for name, key in keys.items() if SAMPLES[key](table) is not None}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in observed}
    for part in _parts(table, edges):
        for name, key in observed.items():
            rows[name].append(_percentiles(key, part))
    return {name: _frame(edges).join(pd.DataFrame(found)) for name, found in rows.items()}


def _parts(table: RequestTable, edges: Floats) -> Iterator[RequestTable]:
    """The requests due in each bin; the table is in due order, so each is a slice."""
    bounds = np.searchsorted(table.due_at_s, edges)
    bounds[-1] = len(table)  # the last bin holds its end too
    for first, last in pairwise(bounds):
        yield table.select(slice(first, last))


def _percentiles(key: str, part: RequestTable) -> dict[str, float]:
    sample = SAMPLES[key](part)
    n = 0 if sample is None else len(sample)
    found: dict[str, float] = {"n": n}
    for q in QUANTILES:
        found[f"p{q * 100:g}_s"] = np.nan
        if sample is not None and sample.requests >= FEWEST_REQUESTS and n * (1 - q) > _ALMOST_ONE:
            found[f"p{q * 100:g}_s"] = percentile(sample.ordered, q)
    return found


def _requests(table: RequestTable, over_s: Floats, edges: Floats) -> pd.DataFrame:
    frame = _frame(edges)
    frame["n"] = np.histogram(over_s[table.is_ok | table.is_failed], edges)[0]
    frame["requests_per_s"] = frame["n"] / np.diff(edges)
    return frame


def _tokens(table: RequestTable, edges: Floats) -> pd.DataFrame | None:
    counts = tokens_in_bins(table, edges)
    if counts is None:
        return None
    frame = _frame(edges)
    frame["output_tokens_per_s"] = counts / np.diff(edges)
    return frame


def _outcomes(table: RequestTable, over_s: Floats, edges: Floats) -> pd.DataFrame:
    frame = _frame(edges)
    for outcome in Outcome:
        ended_so = table.is_outcome(outcome)
        if outcome is not Outcome.OK and ended_so.any():
            frame[outcome.value] = np.histogram(over_s[ended_so], edges)[0]
    return frame
