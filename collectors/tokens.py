"""When the output tokens of a run arrived, without an array of all their events."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collectors.gaps import Seconds
from collectors.latency import felt_end_at_s
from collectors.table import Floats, RequestTable

Integers = npt.NDArray[np.int64]


def tokens_in_bins(table: RequestTable, edges: Floats) -> Floats | None:
    """Output tokens whose event arrived in each bin; ``None`` where no request told its tokens.

    A request's tokens are shared out evenly over its output events. Where gaps were not kept,
    events are spaced evenly; an answer in one piece is one event.

    Args:
        table: requests of a run.
        edges: of the bins, in seconds since the run began, one more than there are bins; the last
            bin holds its end too.
    """
    told = table.output_tokens > 0
    if not told.any():
        return None
    edges = np.append(edges[:-1], np.nextafter(edges[-1], np.inf))
    began_at_s, ended_at_s = _spans(table)
    first, last = (edges.searchsorted(at_s, "right") - 1 for at_s in (began_at_s, ended_at_s))
    at_once = told & (first == last) & (first >= 0) & (first < len(edges) - 1)
    counts = _sums(first[at_once], table.output_tokens[at_once], len(edges) - 1)
    # Only of answers that reach over an edge it matters when their tokens came.
    over = np.flatnonzero(told & (first < last) & ~np.isnan(ended_at_s))
    for own, gaps in table.gaps[over].portions():
        counts += _in_bins(_Events(table.select(over[own]), gaps), edges)
    return counts


def _spans(requests: RequestTable) -> tuple[Floats, Floats]:
    """When the first and the last output event came; NaN where not known."""
    end = felt_end_at_s(requests)
    end = np.where(np.isnan(end), requests.ended_at_s, end)
    first = requests.first_token_at_s
    return np.where(np.isnan(first), end, first), end


class _Events:
    """The output events of requests that took time; those before an instant can be counted."""

    def __init__(self, requests: RequestTable, gaps: Seconds) -> None:
        self.began_at_s, self.ended_at_s = _spans(requests)
        counts = requests.gaps.counts
        self._has_gaps = counts > 0
        self._clock = np.concatenate(([0.0], np.cumsum(gaps, dtype=np.float64)))
        self._first = np.cumsum(counts) - counts  # of each request's events on the clock
        number = np.where(self._has_gaps, counts + 1, np.fmax(requests.output_events, 1))
        self._number: Integers = number.astype(np.int64)
        self.tokens_each = requests.output_tokens / self._number

    def before(self, at_s: Floats, which: Integers) -> Integers:
        """How many events of each request ``which`` came before the instant beside it."""
        after_s = at_s - self.began_at_s[which]
        on_clock = self._clock.searchsorted(self._clock[self._first[which]] + after_s)
        took_s = (self.ended_at_s - self.began_at_s)[which]
        spaced = np.ceil(after_s * (self._number[which] - 1) / took_s)
        spaced = np.where(after_s > 0, np.maximum(spaced, 1), 0)
        found = np.where(self._has_gaps[which], on_clock - self._first[which], spaced)
        return np.clip(found, 0, self._number[which]).astype(np.int64)


def _in_bins(events: _Events, edges: Floats) -> Floats:
    """Tokens in each bin: for every request, those of the bins that it reaches into."""
    first = np.maximum(edges.searchsorted(events.began_at_s, "right") - 1, 0)
    # And the bin after the last: the sum of gaps, which have 32 bits, may be a little more.
    last = np.minimum(edges.searchsorted(events.ended_at_s, "right"), len(edges) - 2)
    bins = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(bins)), bins)
    bin_ = np.repeat(first - (np.cumsum(bins) - bins), bins) + np.arange(len(which))
    came = events.before(edges[bin_ + 1], which) - events.before(edges[bin_], which)
    return _sums(bin_, events.tokens_each[which] * came, len(edges) - 1)


def _sums(bins: Integers, tokens: Floats, number: int) -> Floats:
    """The tokens of each of so many bins."""
    return np.bincount(bins, tokens, number).astype(np.float64)  # of nothing it makes integers
