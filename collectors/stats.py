"""Percentiles and their uncertainty: pure functions of numbers, numpy alone.

Rules kept here:

- One definition of a percentile: nearest rank, the smallest value with at least q of the sample at
  or below it. ``+inf`` is a value like any other.
- Neighbours in time are not independent. What an interval may rest on is not n but n_eff = n / D,
  D >= 1 being the variance inflation seen between batches of neighbours.
- An interval end that the sample cannot support is 0 or ``+inf``, never a guess.
- Randomness is seeded: the same sample gives the same interval.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating | np.integer | np.bool_]


class Ordered(Protocol):
    """Values as if sorted: an array, or what answers like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """The value with so many before it."""
        ...

    def searchsorted(self, value: Any, /, side: Literal["left", "right"]) -> Any:
        """How many values are less than ``value``; with "right", or equal to it."""
        ...


BATCHES = 20
"""Batches of neighbours from which dependence is judged."""

DRAWS = 4000
"""Resamples a bootstrap draws; blocks make each one cheap, whatever the size of the sample."""

_NEARLY = 1e-12  # q * n is exact but for the rounding of q itself: 0.07 * 100 is 7.000000000000001


def nearest_rank(n: int, q: float) -> int:
    """Rank, from 1, of the q-quantile in a sorted sample of ``n``.

    Args:
        n: size of the sample, at least 1.
        q: between 0 and 1.
    """
    return min(n, max(1, math.ceil(q * n * (1 - _NEARLY))))


def percentile(ordered: Ordered, q: float) -> float:
    """The q-quantile of a sorted, non-empty sample by nearest rank."""
    return float(ordered[nearest_rank(len(ordered), q) - 1])


@lru_cache(maxsize=4096)
def binomial_ranks(n: int, q: float, confidence: float) -> tuple[int, int]:
    """Ranks of the order statistics that enclose the true q-quantile, whatever the distribution.

    Args:
        n: number of independent observations.
        q: the quantile, between 0 and 1 exclusive.
        confidence: two-sided, e.g. 0.95; each end misses with at most half of the rest.

    Returns:
        Ranks from 1. A lower rank of 0 and an upper one of ``n + 1`` mean that the sample has no
        such end: p99 at 95 % has an upper end from 368 observations on.

    Source: the number at or below the true quantile is binomial(n, q); David & Nagaraja, Order
    Statistics, 7.1.
    """
    if n < 1:
        return 0, n + 1
    first, cdf = _binomial_cdf(n, q)
    tail = (1 - confidence) / 2
    # A hair of slack, so that a tail that equals the wanted one exactly is not lost to rounding.
    lower = first + int(np.searchsorted(cdf, tail * (1 + 1e-9), side="right"))
    upper = first + int(np.searchsorted(cdf, (1 - tail) * (1 - 1e-12), side="left")) + 1
    return min(lower, n), min(upper, n + 1)


def _binomial_cdf(n: int, q: float) -> tuple[int, Numbers]:
    """Distribution function of binomial(n, q) where it is neither 0 nor 1, and its first count."""
    spread = math.sqrt(n * q * (1 - q))
    reach = int(12 * spread + 40)  # beyond it less than 1e-15 remains on either side
    mean = int(n * q)
    first, last = max(0, mean - reach), min(n, mean + reach)
    counts = np.arange(first, last, dtype=np.float64)
    # log p(k+1) - log p(k); summing steps needs no factorials and cannot overflow.
    steps = np.log((n - counts) / (counts + 1)) + math.log(q) - math.log1p(-q)
    log_p = np.concatenate(([0.0], np.cumsum(steps)))
    p = np.exp(log_p - log_p.max())
    return first, np.cumsum(p) / p.sum()


def smallest_sample(q: float, confidence: float) -> int:
    """Independent observations from which the q-quantile has both ends of its interval.

    p50 needs 6, p95 72, p99 368 and p99.9 3688 at 95 %.
    """
    far = max(q, 1 - q)
    return math.ceil(math.log((1 - confidence) / 2) / math.log(far) * (1 - _NEARLY))


def variance_inflation(marks: Numbers, sizes: Numbers | None = None) -> float:
    """D: how many times larger the variance of a share is than if neighbours were independent.

    The marks are cut into 20 batches of neighbours. Independent marks give batch shares that vary
    by p (1 - p) / size; D is how much more they do. Where even neighbouring batches move together
    (a drift, or a dependence longer than a batch) the batches themselves say too little, and D
    grows by (1 + r) / (1 - r), r being their lag-1 correlation. Fewer than 40 units leave nothing
    to judge by: D is then 1.

    Args:
        marks: in due order, 1 where the unit is beyond the value in question and 0 elsewhere; with
            ``sizes``, how many of the unit's parts are beyond.
        sizes: number of parts a unit has (gaps of a request); one each by default.

    Returns:
        D, at least 1.

    Source: batch means, Law, Simulation Modeling and Analysis, 9.5.3; coverage of the intervals
    built on it is checked by simulation in the tests.
    """
    units = len(marks)
    if units < 2 * BATCHES:
        return 1.0
    sizes = np.ones(units) if sizes is None else sizes
    share = float(marks.sum()) / float(sizes.sum())
    if not 0 < share < 1:
        return 1.0
    starts = _batch_starts(units)
    marked = np.add.reduceat(np.asarray(marks, dtype=np.float64), starts)
    size = np.add.reduceat(np.asarray(sizes, dtype=np.float64), starts)
    residuals = marked - share * size
    variance = float(np.square(residuals).sum()) * BATCHES / (BATCHES - 1)
    independent = float(size.sum()) * share * (1 - share)
    return max(1.0, variance / independent * drift_inflation(residuals))


def drift_inflation(batches: Numbers) -> float:
    """(1 + r) / (1 - r) where neighbouring batches move together, else 1.

    r is the lag-1 correlation of the batches. Below 0.2, about one standard error of it with 20
    batches, it is taken for chance. Above 0.5 it is held to 0.5: more is a trend, about which an
    interval says nothing, and 20 batches stay worth six observations, enough to bound a median.
    """
    centred = batches - batches.mean()
    power = float(np.square(centred).sum())
    if power == 0:
        return 1.0
    r = min(0.5, float((centred[1:] * centred[:-1]).sum()) / power)
    return (1 + r) / (1 - r) if r > 0.2 else 1.0


def _batch_starts(units: int) -> npt.NDArray[np.int64]:
    return np.arange(BATCHES, dtype=np.int64) * units // BATCHES


def block_resample(
    numerators: Numbers, denominators: Numbers, *, seed: int, draws: int = DRAWS
) -> Numbers:
    """Sorted resampled values of sum(numerators) / sum(denominators), by moving blocks.

    Blocks of n // 20 neighbours are drawn with replacement, so that what hangs together stays
    together; with fewer than 40 units a block is one unit. The draws are spread about the value so
    that they stand for its true uncertainty where the 20 batches still move together.

    Args:
        numerators: one a unit, in due (or time) order.
        denominators: one a unit; ones give a mean, lengths of bins a rate, gap counts a share.
        seed: of the draws.
        draws: how many.

    Source: Kuensch 1989, The jackknife and the bootstrap for general stationary observations.
    """
    units = len(numerators)
    value = float(numerators.sum() / denominators.sum())
    block = max(1, units // BATCHES)
    tops, bottoms = (_block_sums(column, block) for column in (numerators, denominators))
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(tops), (draws, -(-units // block)))
    bottom = bottoms[picks].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.where(bottom > 0, tops[picks].sum(axis=1) / bottom, value)
    if units >= 2 * BATCHES:
        starts = _batch_starts(units)
        residuals = np.add.reduceat(numerators - value * denominators, starts)
        drawn = value + (drawn - value) * math.sqrt(drift_inflation(residuals))
    return np.sort(drawn)


def _block_sums(column: Numbers, block: int) -> Numbers:
    total = np.concatenate(([0.0], np.cumsum(column, dtype=np.float64)))
    return np.asarray(total[block:] - total[:-block])


def resampled_interval(ordered: Numbers, blocks: int, confidence: float) -> tuple[float, float]:
    """Interval from sorted resamples that were made of ``blocks`` blocks each.

    A percentile interval is too narrow for few blocks, so its tails are cut where the t
    distribution with ``blocks - 1`` degrees of freedom says. An end that lies beyond the draws is
    unknown: minus or plus infinity.

    Source: Hesterberg 2015, What teachers should know about the bootstrap, "expanded percentile".
    """
    if blocks < 2:
        return -math.inf, math.inf
    t = student_t(1 - (1 - confidence) / 2, blocks - 1)
    tail = NormalDist().cdf(-t * math.sqrt(blocks / (blocks - 1)))
    cut = int(tail * len(ordered))
    if cut < 1:
        return -math.inf, math.inf
    return float(ordered[cut - 1]), float(ordered[-cut])


def ratio_interval(marked: float, n: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a share, exact for independent observations.

    Args:
        marked: observations with the mark; with dependence, their number divided by D.
        n: all observations, likewise; more than 0.
        confidence: two-sided.

    Source: Clopper & Pearson 1934, through quantiles of the beta distribution.
    """
    tail = (1 - confidence) / 2
    low = 0.0 if marked <= 0 else beta_quantile(tail, marked, n - marked + 1)
    high = 1.0 if marked >= n else beta_quantile(1 - tail, marked + 1, n - marked)
    return low, high


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with ``regularized_beta(a, b, x) == p``, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if regularized_beta(a, b, middle) < p else (low, middle)
    return high


def regularized_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b): the beta distribution's function at ``x``, between 0 and 1.

    Source: continued fraction, DLMF 8.17.22, evaluated by Lentz's method; the symmetry 8.17.4
    keeps it where it converges fast.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - regularized_beta(b, a, 1 - x)
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
        - math.log(a)
    )
    return min(1.0, math.exp(log_front) * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...))) of DLMF 8.17.22; converges in about sqrt(a + b) steps."""
    above, below, value = 1.0, 0.0, 1.0
    for j in range(1, 100_000):
        m = j // 2
        if j % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / ((1 + d * below) or 1e-300)
        above = (1 + d / above) or 1e-300
        value *= above * below
        if abs(above * below - 1) < 1e-14:
            break
    return 1 / value


@lru_cache(maxsize=1024)
def student_t(p: float, freedom: int) -> float:
    """The p-quantile (p above one half) of Student's t with ``freedom`` degrees of freedom."""
    x = beta_quantile(2 * (1 - p), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)
