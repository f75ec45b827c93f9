"""A run as it goes, for charts that follow it: latencies and throughput of the last seconds.

Rules kept here:

- The same definitions as in the report: as felt, so that where more than 5 % fail p95 is infinite;
  a percentile by nearest rank. The values are counted in buckets half a percent wide.
- A request counts when its record comes in, which is within a second of its end. The report goes by
  when it was due, so that the two agree over a whole run and not from second to second.
- What nothing tells is ``None``. Only the last hour is kept: whole runs are the dashboard's.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.latency import SAMPLES
from collectors.records import RequestRecord
from collectors.stats import Numbers, nearest_rank
from collectors.table import RequestTable

STEP_S = 2.0
WINDOW_S = 10.0
KEPT_S = 3600.0
LATENCIES = ("ttft", "itl", "e2e")
QUANTILES = (0.5, 0.95)

_LEAST_S = 1e-6
_RATIO = 1.005
_BUCKETS = math.ceil(math.log(86_400 / _LEAST_S, _RATIO))  # up to a day; the last is infinity

Counts = npt.NDArray[np.int64]


def count_values(values_s: Numbers) -> Counts:
    """How many values fall into each bucket; infinite ones into the last."""
    with np.errstate(divide="ignore"):
        bucket = np.log(np.asarray(values_s, np.float64) / _LEAST_S) / math.log(_RATIO)
    bucket = np.clip(bucket, 0, _BUCKETS - 1).astype(np.int64)
    return np.bincount(bucket, minlength=_BUCKETS)


def percentile_of(counts: Counts, q: float) -> float | None:
    """The q-quantile of counted values in seconds, within 0.25 %; ``None`` where there are none."""
    upto = np.cumsum(counts)
    if not upto[-1]:
        return None
    bucket = int(np.searchsorted(upto, nearest_rank(int(upto[-1]), q)))
    return math.inf if bucket == _BUCKETS - 1 else _LEAST_S * _RATIO ** (bucket + 0.5)


@dataclass(slots=True)
class _Step:
    """What came in during one step."""

    began_at: float
    latencies: dict[str, Counts]
    output_tokens: int = 0


class LiveFigures:
    """Follows one run.

    Args:
        run_id: the run.
        name: the run's name.
        began_at: instant 0 of the run.
        clock: monotonic seconds.

    Attributes:
        ended: no more will come.
    """

    def __init__(
        self, run_id: str, name: str, began_at: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run_id = run_id
        self.name = name
        self.ended = False
        self._began_at = began_at
        self._clock = clock
        self._tells_tokens = False
        self._window: deque[_Step] = deque(maxlen=round(WINDOW_S / STEP_S))
        self._points: deque[dict[str, Any]] = deque(maxlen=round(KEPT_S / STEP_S))
        self._begin_step(began_at)

    def take(self, records: Sequence[RequestRecord]) -> None:
        """A batch of records that just came in."""
        if not records:
            return
        table, step = RequestTable.from_records(records), self._window[-1]
        for name in LATENCIES:
            sample = SAMPLES[f"{name}_s"](table)
            if sample is not None:
                step.latencies[name] += count_values(sample.at_most)
        told = [r.output_tokens for r in records if r.output_tokens is not None]
        self._tells_tokens = self._tells_tokens or bool(told)
        step.output_tokens += sum(told)

    def tick(self) -> None:
        """Look at the clock; to be called more often than a step is long."""
        now = self._clock()
        if now - self._window[-1].began_at >= STEP_S:
            self._points.append(self._point(now))
            self._begin_step(now)

    def end(self) -> None:
        """The last record has come in."""
        self._points.append(self._point(self._clock()))
        self.ended = True

    def points_after(self, at_s: float) -> list[dict[str, Any]]:
        """The points later than ``at_s`` seconds of the run, in order.

        Each has ``at_s``, its end, and of the window up to there: ``ttft_n``, ``ttft_p50_s``,
        ``ttft_p95_s``, the same for ``itl`` and ``e2e``, and ``output_tokens_per_s``.
        """
        return [point for point in self._points if point["at_s"] > at_s]

    def _begin_step(self, at: float) -> None:
        nothing = {name: np.zeros(_BUCKETS, np.int64) for name in LATENCIES}
        self._window.append(_Step(at, nothing))

    def _point(self, now: float) -> dict[str, Any]:
        point: dict[str, Any] = {"at_s": now - self._began_at}
        for name in LATENCIES:
            counts = np.sum([step.latencies[name] for step in self._window], axis=0)
            point[f"{name}_n"] = int(counts.sum())
            for q in QUANTILES:
                point[f"{name}_p{q * 100:g}_s"] = percentile_of(counts, q)
        span_s = now - self._window[0].began_at
        tokens = sum(step.output_tokens for step in self._window)
        point["output_tokens_per_s"] = (
            tokens / span_s if self._tells_tokens and span_s > 0 else None
        )
        return point
