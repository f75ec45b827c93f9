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
    if not (table.output_tokens > 0).any():
        return None
    edges = np.append(edges[:-1], np.nextafter(edges[-1], np.inf))
    counts = np.zeros(len(edges) - 1)
    for own, gaps in table.gaps.portions():
        counts += _in_bins(_Events(table.select(own), gaps), edges)
    return counts


class _Events:
    """The output events of some requests, of which those before an instant can be counted."""

    def __init__(self, requests: RequestTable, gaps: Seconds) -> None:
        end = felt_end_at_s(requests)
        end = np.where(np.isnan(end), requests.ended_at_s, end)
        first = requests.first_token_at_s
        self.began_at_s = np.where(np.isnan(first), end, first)
        self._has_gaps = requests.gaps.counts > 0
        self._clock = np.concatenate(([0.0], np.cumsum(gaps, dtype=np.float64)))
        upto = np.cumsum(requests.gaps.counts)
        self._first = upto - requests.gaps.counts  # of each request's events on the clock
        taken_s = self._clock[upto] - self._clock[self._first]
        self.taken_s = np.where(self._has_gaps, taken_s, end - self.began_at_s)
        events = np.fmax(requests.output_events, 1).astype(np.int64)
        self._number: Integers = np.where(self._has_gaps, requests.gaps.counts + 1, events)
        told = (requests.output_tokens > 0) & ~np.isnan(self.taken_s)
        self.tokens_each = np.where(told, requests.output_tokens / self._number, 0.0)

    def before(self, at_s: Floats, which: Integers) -> Integers:
        """How many events of each request ``which`` came before the instant beside it."""
        after_s = at_s - self.began_at_s[which]
        on_clock = self._clock.searchsorted(self._clock[self._first[which]] + after_s)
        step_s = self.taken_s[which] / np.maximum(1, self._number[which] - 1)
        with np.errstate(divide="ignore", invalid="ignore"):  # all at once, or one alone
            steps = np.where(step_s > 0, np.ceil(after_s / step_s), np.inf)
        spaced = np.where(after_s > 0, steps, 0.0)
        found = np.where(self._has_gaps[which], on_clock - self._first[which], spaced)
        return np.clip(found, 0, self._number[which]).astype(np.int64)


def _in_bins(events: _Events, edges: Floats) -> Floats:
    """Tokens in each bin: for every request, those of the bins that it reaches into."""
    which = np.flatnonzero(events.tokens_each)
    began_at_s = events.began_at_s[which]
    # A bin more, as the clock and the sum of its ticks differ in the last digit.
    ended_at_s = np.nextafter(began_at_s + events.taken_s[which], np.inf)
    first = np.maximum(edges.searchsorted(began_at_s, "right") - 1, 0)
    last = np.minimum(edges.searchsorted(ended_at_s, "right") - 1, len(edges) - 2)
    bins = np.maximum(last - first + 1, 0)
    which, number = np.repeat(which, bins), np.arange(bins.sum())
    bin_ = np.repeat(first - (np.cumsum(bins) - bins), bins) + number
    came = events.before(edges[bin_ + 1], which) - events.before(edges[bin_], which)
    tokens = events.tokens_each[which] * came
    return np.bincount(bin_, weights=tokens, minlength=len(edges) - 1).astype(np.float64)
