"""A latency of which every request has many values: the gaps between its output events.

However many they are, every figure is exact, and no more than a portion of them is in memory. What
would be sorted is counted instead: the bits of floats are in the order of the floats, so counting
the upper bits tells in which bucket a rank lies, and counting the lower bits within that bucket
tells the value. Where they are few, they are sorted.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors import stats
from collectors.estimates import SEED, Resampled, blocks_of
from collectors.gaps import Gaps, Seconds
from collectors.stats import Numbers, Ordered
from collectors.table import Floats
from collectors.words import Bools

SORTED = 2**22
"""Values that are sorted; more are counted."""

_LOW = 20  # bits of a float32 below those that name its bucket: an eighth of an octave

Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class PooledSample:
    """A :class:`collectors.estimates.Sample` of gaps, pooled over requests in due order.

    Whole requests are the units that are resampled: what one of them suffers it suffers in many of
    its gaps.

    Args:
        gaps: of each request.
        is_ok: requests that succeeded.
        broken: requests that add one infinite gap, because their stream broke.
        had_s: for requests that add the gap they were still in, how long it was so far; NaN for
            the others.
    """

    def __init__(self, gaps: Gaps, *, is_ok: Bools, broken: Bools, had_s: Floats) -> None:
        is_open = ~np.isnan(had_s)
        self._gaps = gaps
        self._is_ok = is_ok
        self._extra = broken | is_open
        self.failed = int(broken.sum())
        self.unfinished = int(is_open.sum())
        self._endless_s = np.full(self.failed + self.unfinished, np.inf, np.float32)
        self._open_s = had_s[is_open].astype(np.float32)
        self._inflations: dict[float, float] = {}

    def __len__(self) -> int:
        return self._gaps.total + self.failed + self.unfinished

    @property
    def requests(self) -> int:
        """Requests with a gap."""
        return int(np.count_nonzero(self._sizes))

    @property
    def at_most(self) -> Numbers:
        """As felt, at most; for no more gaps than memory can hold."""
        return np.concatenate((self._gaps.whole(), self._endless_s))

    @cached_property
    def ordered(self) -> Ordered:
        """As felt, at most: what broke or may yet break adds an infinite gap."""
        return _ordered(self._counted, self._endless_s)

    @cached_property
    def ordered_at_least(self) -> Ordered:
        """As felt, at least: what is open adds the gap it had so far."""
        if not self.unfinished:
            return self.ordered
        broken = self._endless_s[: self.failed]
        return _ordered(self._counted, np.concatenate((broken, self._open_s)))

    @cached_property
    def ordered_served(self) -> Ordered:
        """Those of successes."""
        if not self._gaps.counts[~self._is_ok].any() and not self._extra.any():
            return self.ordered
        return _ordered(_Counted(self._gaps[self._is_ok]), np.empty(0, np.float32))

    def inflation(self, value: float) -> float:
        """With whole requests resampled, in blocks of neighbours.

        With fewer than 20 requests nothing can be learnt from resampling them; each then counts as
        one observation, however many gaps it has.
        """
        if value not in self._inflations:
            self._inflations[value] = self._inflation(value)
        return self._inflations[value]

    def mean(self) -> Resampled | None:
        """With whole requests resampled, in blocks of neighbours."""
        served = self._gaps[self._is_ok & (self._gaps.counts > 0)]
        if not len(served):
            return None
        sums, squares, shift = np.empty(len(served)), 0.0, np.nan
        for own, gaps in served.portions():
            shift = float(gaps[0]) if np.isnan(shift) else shift
            sums[own] = _sums(gaps, served.counts[own], np.float64)
            squares += float(np.square(gaps - shift, dtype=np.float64).sum())
        # About a value of the sample, so that equal gaps vary by nothing at all.
        off = float(sums.sum()) / served.total - shift
        variance = max(0.0, squares / served.total - off * off)
        return Resampled.pooled_mean(sums, served.counts.astype(np.float64), variance)

    @property
    def _sizes(self) -> Counts:
        return self._gaps.counts + self._extra

    @cached_property
    def _counted(self) -> _Counted:
        return _Counted(self._gaps)

    def _inflation(self, value: float) -> float:
        beyond = self._beyond(value)
        has_any = self._sizes > 0
        marks = beyond[has_any].astype(np.float64)
        sizes = self._sizes[has_any].astype(np.float64)
        if len(sizes) < stats.BATCHES:
            return len(self) / len(sizes)
        share = float(marks.sum()) / len(self)
        if not 0 < share < 1:
            return 1.0
        drawn = stats.block_resample(marks, sizes, seed=SEED)
        blocks = blocks_of(len(sizes))
        variance = float(np.var(drawn)) * blocks / (blocks - 1)
        return max(1.0, variance * len(self) / (share * (1 - share)))

    def _beyond(self, value: float) -> Counts:
        """Values of each request above ``value``; if there are none at all, those at it."""
        counts = self._extra * (value < np.inf) + self._count(value, at_it=False)
        if counts.any():
            return counts
        return self._extra + self._count(value, at_it=True)

    def _count(self, value: float, *, at_it: bool) -> Counts:
        """Gaps of each request above ``value``, or at it."""
        counts = np.zeros(len(self._gaps), np.int64)
        has_any = np.flatnonzero(self._gaps.counts)
        kept = self._gaps[has_any]
        for own, gaps in kept.portions():
            marks = gaps >= value if at_it else gaps > value
            counts[has_any[own]] = _sums(marks.view(np.uint8), kept.counts[own], np.int32)
        return counts


def _sums(values: npt.NDArray[Any], sizes: Counts, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """The sum of each request's values, which lie one request's after another's; none is empty."""
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, dtype=kind)


def _ordered(counted: _Counted, others: Seconds) -> Ordered:
    """The gaps that were counted and some others, as if sorted."""
    if counted.gaps.total > SORTED:
        return Ranked(counted, others)
    return np.sort(np.concatenate((counted.gaps.whole(), others)))


class _Counted:
    """How many gaps lie where; each part is counted when it is first asked for."""

    def __init__(self, gaps: Gaps) -> None:
        self.gaps = gaps
        self._within: dict[int, Counts] = {}

    @cached_property
    def buckets(self) -> Counts:
        """How many lie in each bucket."""
        return sum(
            (_bucket_counts(_keys(gaps)) for _, gaps in self.gaps.portions()),
            np.zeros(2 ** (32 - _LOW), np.int64),
        )

    def within(self, bucket: int) -> Counts:
        """How many of that bucket have each value."""
        if bucket not in self._within:
            self._within[bucket] = sum(
                (_value_counts(_keys(gaps), bucket) for _, gaps in self.gaps.portions()),
                np.zeros(2**_LOW, np.int64),
            )
        return self._within[bucket]


class Ranked:
    """Gaps and some other values as if sorted: a value by its rank, and a rank by value."""

    def __init__(self, counted: _Counted, others: Seconds) -> None:
        self._counted = counted
        self._others = _keys(others)
        self._upto = np.cumsum(counted.buckets + _bucket_counts(self._others))

    def __len__(self) -> int:
        return int(self._upto[-1])

    def __getitem__(self, index: int) -> float:
        """The value with ``index`` values before it; from the end where negative."""
        index = range(len(self))[index]
        bucket = int(self._upto.searchsorted(index, "right"))
        before = self._before(bucket)
        low = int(np.cumsum(self._within(bucket)).searchsorted(index - before, "right"))
        return _value(bucket << _LOW | low)

    def searchsorted(self, value: float, side: str) -> int:
        """How many values are less than ``value``; with "right", or equal to it."""
        with np.errstate(over="ignore"):  # beyond all floats of 32 bits lies infinity
            rounded = np.array([value]).astype(np.float32)
        nearest, key = float(rounded[0]), int(_keys(rounded)[0])
        # One that is no float32 lies between two, of which it was rounded to either.
        counts_it = nearest < value or (nearest == value and side == "right")
        bucket, low = key >> _LOW, key & (2**_LOW - 1)
        return self._before(bucket) + int(self._within(bucket)[: low + counts_it].sum())

    def _before(self, bucket: int) -> int:
        return int(self._upto[bucket - 1]) if bucket else 0

    def _within(self, bucket: int) -> Counts:
        return self._counted.within(bucket) + _value_counts(self._others, bucket)


def _keys(values: Seconds) -> Keys:
    """Numbers in the order of ``values``: their bits, those of negative ones turned over."""
    bits = (values + np.float32(0)).view(np.uint32)  # of the two zeros it makes one
    signs = (bits.view(np.int32) >> 31).view(np.uint32)
    return bits ^ (signs | np.uint32(1 << 31))


def _value(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ (2**32 - 1)
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _bucket_counts(keys: Keys) -> Counts:
    return np.bincount(keys >> _LOW, minlength=2 ** (32 - _LOW))


def _value_counts(keys: Keys, bucket: int) -> Counts:
    low = keys - np.uint32(bucket << _LOW)  # below the bucket it wraps round to far above it
    own = low.take(np.flatnonzero(low < 2**_LOW))  # a third of the time that low[low < ...] takes
    return np.bincount(own, minlength=2**_LOW)
