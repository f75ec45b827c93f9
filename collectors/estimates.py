"""A figure with what it rests on: value, n, n_eff and an interval at any confidence.

Every kind answers the same questions, so that a report, a page and a verdict treat a percentile,
a share, a mean and a rate alike. An estimate exists only where something was observed; an absent
figure is ``None``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np

from collectors import stats
from collectors.stats import Numbers, Ordered

CONFIDENCE = 0.95
SEED = 20_240
"""Of every resampling, so that a report reads the same each time it is asked for."""

Interval = tuple[float, float]


class Estimate(Protocol):
    """What every kind of figure can say about itself."""

    @property
    def value(self) -> float:
        """The figure; may be infinite."""
        ...

    @property
    def n(self) -> int:
        """Observations it was made from."""
        ...

    @property
    def n_eff(self) -> float | None:
        """Independent observations it is worth; ``None`` where that is not how it is judged."""
        ...

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Two-sided interval; an end that the sample cannot support is 0 or infinite."""
        ...

    def settles_at(self, limit: float, confidence: float = CONFIDENCE) -> float | None:
        """Roughly how many requests would tell the figure from ``limit``; ``None``: cannot say."""
        ...


class Sample(Protocol):
    """A latency as its users felt it.

    A failed request is infinitely slow. One still open at the end is bounded: at least as slow as
    the time it had, at most infinitely slow.
    """

    @property
    def at_most(self) -> Numbers:
        """Upper bounds in seconds, in any order; of a pooled sample, only if memory can hold it."""
        ...

    @property
    def failed(self) -> int:
        """Values that are infinite because the request failed."""
        ...

    @property
    def unfinished(self) -> int:
        """Values that are bounds because the request was still open."""
        ...

    @property
    def requests(self) -> int:
        """Requests the values came from."""
        ...

    @property
    def ordered(self) -> Ordered:
        """Upper bounds, sorted: what ``held`` must be shown by, and what is reported."""
        ...

    @property
    def ordered_at_least(self) -> Ordered:
        """Lower bounds, sorted: what ``broken`` must be shown by."""
        ...

    @property
    def ordered_served(self) -> Ordered:
        """Values of the successes alone, sorted."""
        ...

    def __len__(self) -> int: ...

    def inflation(self, value: float) -> float:
        """D of "beyond ``value``"; where nothing is (ties at the top, infinity), of "at it"."""
        ...

    def mean(self) -> Resampled | None:
        """Of the values of the successes; ``None`` without any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeltSample:
    """A :class:`Sample` of one value a request, in due order.

    Attributes:
        at_least: lower bounds in seconds.
        at_most: upper bounds in seconds.
        served: values of the successes alone.
    """

    at_least: Numbers
    at_most: Numbers
    served: Numbers
    failed: int
    unfinished: int
    ordered: Numbers
    ordered_at_least: Numbers
    ordered_served: Numbers

    def __len__(self) -> int:
        return len(self.at_most)

    @property
    def requests(self) -> int:
        """As many as there are values."""
        return len(self)

    def inflation(self, value: float) -> float:
        """From batch means."""
        beyond = self.at_most > value
        return stats.variance_inflation(beyond if beyond.any() else self.at_most >= value)

    def mean(self) -> Resampled | None:
        """With blocks of neighbours resampled."""
        return Resampled.mean(self.served) if len(self.served) else None


def felt_sample(
    *,
    at_least: Numbers,
    at_most: Numbers,
    served: Numbers,
    failed: int = 0,
    unfinished: int = 0,
) -> FeltSample:
    """A :class:`FeltSample`, sorted once."""
    ordered = np.sort(at_most)
    return FeltSample(
        at_least=at_least,
        at_most=at_most,
        served=served,
        failed=failed,
        unfinished=unfinished,
        ordered=ordered,
        # Sorting is what costs: without bounds the three are one.
        ordered_at_least=np.sort(at_least) if unfinished else ordered,
        ordered_served=ordered if len(served) == len(ordered) else np.sort(served),
    )


@dataclass(frozen=True, slots=True)
class Percentile:
    """The q-quantile of a latency as felt, by nearest rank, with ranks of n_eff as its interval."""

    sample: Sample
    q: float
    inflation: float

    @classmethod
    def of(cls, sample: Sample, q: float) -> Percentile:
        """The quantile of a non-empty sample, with its D at that value."""
        return cls(sample, q, sample.inflation(stats.percentile(sample.ordered, q)))

    @property
    def value(self) -> float:
        """Seconds; infinite where so many failed, or may yet have failed."""
        return stats.percentile(self.sample.ordered, self.q)

    @property
    def at_least(self) -> float:
        """The same with open requests counted at the time they had: surely no faster than this."""
        return stats.percentile(self.sample.ordered_at_least, self.q)

    @property
    def served(self) -> float | None:
        """The same over successes alone."""
        served = self.sample.ordered_served
        return stats.percentile(served, self.q) if len(served) else None

    @property
    def n(self) -> int:
        """Values in the sample."""
        return len(self.sample)

    @property
    def n_eff(self) -> float:
        """Sample size over D."""
        return self.n / self.inflation

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """From the ranks that enclose the true quantile in n_eff independent observations."""
        worth = int(self.n_eff * (1 + 1e-12))
        lower, upper = stats.binomial_ranks(worth, self.q, confidence)
        scale = self.n / worth if worth else math.inf
        low, high = 0.0, math.inf
        if lower >= 1:  # of n / n_eff values that count as one, the outer ones
            low = float(self.sample.ordered_at_least[int((lower - 1) * scale)])
        if upper <= worth:
            high = float(self.sample.ordered[min(self.n, math.ceil(upper * scale - 1e-9)) - 1])
        return low, high

    def settles_at(self, limit: float, confidence: float = CONFIDENCE) -> float | None:
        """From how far the share of values inside the limit lies from q."""
        within = float(self.sample.ordered.searchsorted(limit, side="right"))
        distance = abs(within / self.n - self.q)
        if distance == 0:
            return None
        z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
        enough = max(
            z * z * self.q * (1 - self.q) / distance**2,
            stats.smallest_sample(self.q, confidence),
        )
        return enough * self.inflation * self.sample.requests / self.n


def blocks_of(units: int) -> int:
    """Blocks in one resample of ``units`` units, as :func:`stats.block_resample` makes them."""
    return -(-units // max(1, units // stats.BATCHES))


@dataclass(frozen=True, slots=True)
class Ratio:
    """A share of requests."""

    marked: int
    n: int
    inflation: float

    @classmethod
    def of(cls, marks: Numbers) -> Ratio:
        """The share of marks that are True, in due order; at least one."""
        return cls(int(marks.sum()), len(marks), stats.variance_inflation(marks))

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.marked / self.n

    @property
    def n_eff(self) -> float:
        """Sample size over D."""
        return self.n / self.inflation

    @property
    def complement(self) -> Ratio:
        """The share of the others."""
        return Ratio(self.n - self.marked, self.n, self.inflation)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Clopper and Pearson's, of n_eff observations."""
        return stats.ratio_interval(self.marked / self.inflation, self.n_eff, confidence)

    def settles_at(self, limit: float, confidence: float = CONFIDENCE) -> float | None:
        """From the distance between share and limit."""
        p, tail = self.value, (1 - confidence) / 2
        distance = abs(p - limit)
        if distance == 0 or not 0 <= limit <= 1:
            return None
        if p in (0, 1):  # none (or all): until even the limit would have shown some
            return math.log(tail) / math.log1p(-distance) if distance < 1 else 1.0
        z = NormalDist().inv_cdf(1 - tail)
        return z * z * p * (1 - p) / distance**2 * self.inflation


@dataclass(frozen=True, slots=True)
class Resampled:
    """A mean or a rate, with a block bootstrap in time order as its interval."""

    value: float
    n: int
    n_eff: float | None
    draws: Numbers
    blocks: int

    @classmethod
    def mean(cls, values: Numbers) -> Resampled:
        """The mean of a non-empty sample in due order."""
        return cls.pooled_mean(values, np.ones(len(values)), float(np.var(values)))

    @classmethod
    def pooled_mean(cls, sums: Numbers, sizes: Numbers, variance: float) -> Resampled:
        """The mean of values pooled over requests, which are resampled whole.

        Args:
            sums: of each request's values, in due order; at least one.
            sizes: how many values each has.
            variance: of all values.
        """
        n = int(sizes.sum())
        drawn = stats.block_resample(sums, sizes, seed=SEED)
        independent = variance / n
        inflation = max(1.0, float(np.var(drawn)) / independent) if independent > 0 else 1.0
        value = float(np.sum(sums, dtype=np.float64)) / n
        return cls(value, n, n / inflation, drawn, blocks_of(len(sums)))

    @classmethod
    def rate(cls, counts: Numbers, bin_s: float, n: int) -> Resampled:
        """A rate a second.

        Args:
            counts: how much fell into each of the equal bins of the window, in time order.
            bin_s: length of a bin.
            n: events that were counted.
        """
        lengths = np.full(len(counts), bin_s)
        drawn = stats.block_resample(counts, lengths, seed=SEED)
        value = float(counts.sum()) / float(lengths.sum())
        return cls(value, n, None, drawn, blocks_of(len(counts)))

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """From the resamples."""
        low, high = stats.resampled_interval(self.draws, self.blocks, confidence)
        return max(0.0, low), high

    def settles_at(self, limit: float, confidence: float = CONFIDENCE) -> float | None:
        """The interval narrows with the root of n."""
        low, high = self.interval(confidence)
        half = self.value - low if limit < self.value else high - self.value
        distance = abs(self.value - limit)
        if self.blocks < 2:  # no interval at all yet
            return 2 * stats.BATCHES
        return self.n * (half / distance) ** 2 if distance > 0 and math.isfinite(half) else None


@dataclass(frozen=True, slots=True)
class PerUnit:
    """What one unit costs: money a second over units a second."""

    usd_per_s: float
    rate: Resampled

    @property
    def value(self) -> float:
        """US dollars a unit; infinite where money was spent and nothing delivered."""
        return _over(self.usd_per_s, self.rate.value)

    @property
    def n(self) -> int:
        """Units counted."""
        return self.rate.n

    @property
    def n_eff(self) -> float | None:
        """As the rate's."""
        return self.rate.n_eff

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The rate's, turned over."""
        low, high = self.rate.interval(confidence)
        return _over(self.usd_per_s, high), _over(self.usd_per_s, low)

    def settles_at(self, limit: float, confidence: float = CONFIDENCE) -> float | None:
        """As the rate's."""
        return self.rate.settles_at(_over(self.usd_per_s, limit), confidence)


def _over(money: float, rate: float) -> float:
    if rate == 0:
        return math.inf if money > 0 else 0.0
    return money / rate


@dataclass(frozen=True, slots=True)
class Fact:
    """What was seen, claimed of nothing but this run: a maximum."""

    value: float
    n: int

    @property
    def n_eff(self) -> None:
        """A fact does not stand for more than itself."""
        return

    def interval(self, confidence: float = CONFIDENCE) -> Interval:  # noqa: ARG002  # Estimate's
        """The value itself."""
        return self.value, self.value

    def settles_at(
        self,
        limit: float,  # noqa: ARG002  # Estimate's
        confidence: float = CONFIDENCE,  # noqa: ARG002  # Estimate's
    ) -> None:
        """More requests do not change a fact."""
        return
