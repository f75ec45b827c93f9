"""Our rows in Locust's statistics: E2E, TTFT, ITL and TOKENS.

Locust's tables, its CSV, HTML and JSON files and its web UI are made of them. Rules kept here:

- One ``request`` event for each request, so that Aggregated stays one row a request. The other rows
  are written to their own entries, past Aggregated.
- They hold what was observed, rounded as Locust rounds: whole milliseconds, two digits from 100 on.
  No figure of ours is ever read back from them.
- The hot path pays for the event alone: the other rows are written a batch at a time.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from locust import stats
from locust.env import Environment
from locust.stats import StatsEntry

from collectors.records import Outcome, RequestRecord
from collectors.table import Floats

MAX_FAILURES = 100
"""Texts of failures; Locust keeps each for ever, and further ones are told by their outcome."""


KEPT_SECONDS = 60
KEPT_HISTORY = 1440  # points of Locust's charts: two hours, one every five seconds
_DENSE = 1 << 17  # counting by index beats sorting up to there: two minutes in milliseconds


class RequestFailedError(Exception):
    """What Locust's statistics show for a failed request; its text is the outcome."""


class StatsRows:
    """The rows of one Locust process."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        self._environment = environment
        self._has_charts = environment.web_ui is not None or bool(
            getattr(options, "html_file", None)
        )
        self._failures: set[str] = set()

    def fire(self, record: RequestRecord) -> None:
        """Tell Locust, and whoever listens, of a request as it ends; response time is its E2E."""
        e2e_s = record.e2e_s
        if e2e_s is None and record.sent_at_s is not None and record.ended_at_s is not None:
            e2e_s = record.ended_at_s - record.sent_at_s
        # What the scenario cut is neither a success nor a failure: a row of its own.
        kind = "CANCELLED" if record.outcome is Outcome.CANCELLED else "E2E"
        self._environment.events.request.fire(
            request_type=kind,
            name=_name(record),
            response_time=(e2e_s or 0.0) * 1000.0,
            response_length=0,
            exception=self._failure(record),
            context={},
        )

    def _failure(self, record: RequestRecord) -> RequestFailedError | None:
        """What failed, and how as long as that makes few rows: many servers number each error."""
        if record.outcome in (Outcome.OK, Outcome.CANCELLED):
            return None
        words = record.outcome.value
        told = f"{words}: {record.detail}" if record.detail else words
        if told not in self._failures:
            if len(self._failures) >= MAX_FAILURES:
                return RequestFailedError(words)
            self._failures.add(told)
        return RequestFailedError(told)

    def log(self, records: Iterable[RequestRecord]) -> None:
        """Write the other rows of a batch: a TTFT and a TOKENS value a request, an ITL value a gap.

        A broken stream's gaps and first token were observed, and are in.
        """
        rows: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        gaps: defaultdict[str, list[array[float]]] = defaultdict(list)
        for record in records:
            name = _name(record)
            if record.ttft_s is not None:
                rows[name, "TTFT"].append(record.ttft_s * 1000.0)
            if record.gaps_s:
                gaps[name].append(record.gaps_s)
            if record.output_tokens is not None:
                rows[f"{name} (tokens, not ms)", "TOKENS"].append(record.output_tokens)
        for (name, kind), values in rows.items():
            log_many(self._environment.stats.get(name, kind), np.array(values))
        for name, kept in gaps.items():
            gaps_s = np.frombuffer(b"".join(kept), dtype=np.float32)
            entry = self._environment.stats.get(f"{name} (gaps)", "ITL")
            log_many(entry, gaps_s * np.float64(1000.0))
        self._forget()

    def _forget(self) -> None:
        """Bound what Locust keeps for ever.

        Of its counts by second it looks at the last twelve. Its charts of a longer run have every
        second point of the past; where nothing will draw them, only the latest is kept.
        """
        history = self._environment.stats.history
        if not self._has_charts:
            del history[:-1]
        elif len(history) > KEPT_HISTORY:
            del history[1 : KEPT_HISTORY // 2 : 2]
        for entry in (self._environment.stats.total, *self._environment.stats.entries.values()):
            for counts in (entry.num_reqs_per_sec, entry.num_fail_per_sec):
                while len(counts) > KEPT_SECONDS:
                    del counts[next(iter(counts))]  # the oldest


_Whole = npt.NDArray[np.int64]


def log_many(entry: StatsEntry, values: Floats) -> None:
    """What ``entry.log(round(value), 0)`` for each of ``values`` does, at a fraction of its cost.

    Args:
        entry: one of Locust's rows.
        values: finite, at least one.
    """
    whole, counts = _counted(np.rint(values).astype(np.int64))
    entry.log(int(whole[0]), 0)  # keeps Locust's books of the second and of the minimum
    counts[0] -= 1
    more = int(counts.sum())
    assert entry.last_request_timestamp is not None
    entry.num_requests += more
    entry.num_reqs_per_sec[int(entry.last_request_timestamp)] += more
    entry.total_response_time += int(whole @ counts)
    entry.max_response_time = max(entry.max_response_time, int(whole[-1]))
    for value, count in zip(whole.tolist(), counts.tolist(), strict=True):
        entry.response_times[stats.bucket_response_time(value)] += count


def _counted(whole: _Whole) -> tuple[_Whole, _Whole]:
    """Which numbers there are, ascending, and how often."""
    if whole.min() < 0 or whole.max() > _DENSE:
        return np.unique(whole, return_counts=True)
    counts = np.bincount(whole)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _name(record: RequestRecord) -> str:
    return record.task or record.scenario or "request"
