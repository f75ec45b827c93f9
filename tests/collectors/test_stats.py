"""Percentiles, ranks, shares and resampling: worked by hand, by property and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors import stats

VALUES = st.lists(st.floats(0, 1e6) | st.just(math.inf), min_size=1, max_size=60)
SHARES = st.sampled_from([0.01, 0.07, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999])


@pytest.mark.parametrize(
    ("n", "q", "rank"),
    [(1, 0.99, 1), (4, 0.5, 2), (5, 0.5, 3), (20, 0.95, 19), (100, 0.07, 7), (1000, 0.999, 999)],
)
def test_a_percentile_is_the_nearest_rank(n: int, q: float, rank: int) -> None:
    """The rank is the smallest with at least q of the sample at or below, free of rounding."""
    assert stats.nearest_rank(n, q) == rank


@given(VALUES, SHARES)
def test_a_percentile_is_the_smallest_value_with_enough_below(
    values: list[float], q: float
) -> None:
    """The definition itself, of any sample, infinity included."""
    ordered = np.sort(values)
    found = stats.percentile(ordered, q)

    assert found in ordered
    assert (ordered <= found).sum() >= q * len(ordered) * (1 - 1e-9)
    smaller = ordered[ordered < found]
    assert len(smaller) < q * len(ordered)


@given(VALUES)
def test_percentiles_do_not_fall_as_q_rises(values: list[float]) -> None:
    """p50 <= p90 <= p95 <= p99, of any sample."""
    ordered = np.sort(values)
    found = [stats.percentile(ordered, q) for q in (0, 0.5, 0.9, 0.95, 0.99, 1)]

    assert found == sorted(found)
    assert (found[0], found[-1]) == (ordered[0], ordered[-1])


@given(VALUES, VALUES, SHARES)
def test_merging_samples_merges_percentiles(one: list[float], other: list[float], q: float) -> None:
    """A percentile of two samples together lies between those of each."""
    ends = sorted(stats.percentile(np.sort(values), q) for values in (one, other))

    assert ends[0] <= stats.percentile(np.sort(one + other), q) <= ends[1]


@pytest.mark.parametrize(
    ("q", "needed"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)]
)
def test_an_upper_end_needs_a_smallest_sample(q: float, needed: int) -> None:
    """At 95 % two-sided, p99 has no upper end at 367 observations and has one at 368."""
    assert stats.smallest_sample(q, 0.95) == needed
    assert stats.binomial_ranks(needed, q, 0.95)[1] == needed
    assert stats.binomial_ranks(needed - 1, q, 0.95)[1] == needed  # one beyond the sample


def _binomial_tail(n: int, q: float, up_to: int) -> float:
    return sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(up_to + 1))


@given(st.integers(1, 120), SHARES, st.sampled_from([0.8, 0.95, 0.99]))
def test_ranks_are_the_tightest_that_keep_both_tails(n: int, q: float, confidence: float) -> None:
    """Ranks agree with binomial sums written out: each tail within its half, one rank in beyond."""
    tail = (1 - confidence) / 2
    lower, upper = stats.binomial_ranks(n, q, confidence)

    assert lower == 0 or _binomial_tail(n, q, lower - 1) <= tail * (1 + 1e-6)
    assert _binomial_tail(n, q, lower) > tail * (1 - 1e-6)
    assert upper == n + 1 or _binomial_tail(n, q, upper - 1) >= (1 - tail) * (1 - 1e-6)
    assert upper == 1 or _binomial_tail(n, q, upper - 2) < (1 - tail) * (1 + 1e-6)


def test_ranks_of_a_huge_sample_follow_the_normal_law() -> None:
    """Ten million observations: ranks lie 1.96 standard deviations about the middle, at once."""
    n = 10_000_000
    lower, upper = stats.binomial_ranks(n, 0.5, 0.95)

    assert lower == pytest.approx(n / 2 - 1.96 * math.sqrt(n) / 2, abs=2)
    assert upper == pytest.approx(n / 2 + 1.96 * math.sqrt(n) / 2, abs=2)


@pytest.mark.parametrize(
    ("a", "b", "x", "expected"),
    [
        (2, 3, 0.4, 0.5248),  # 1 - 0.6^4 - 4 * 0.4 * 0.6^3
        (0.5, 0.5, 0.3, 2 / math.pi * math.asin(math.sqrt(0.3))),
        (1, 7, 0.2, 1 - 0.8**7),
        (7, 1, 0.2, 0.2**7),
        (3, 3, 0.5, 0.5),
        (2, 2, 0, 0),
        (2, 2, 1, 1),
    ],
)
def test_the_beta_function_is_right(a: float, b: float, x: float, expected: float) -> None:
    """I_x(a, b) equals closed forms worked by hand."""
    assert stats.regularized_beta(a, b, x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (19, 2.0930), (1000, 1.9623)]
)
def test_students_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    """The 97.5 % quantiles printed in every textbook."""
    assert stats.student_t(0.975, freedom) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("marked", "n", "low", "high"),
    [(0, 10, 0, 0.3085), (3, 10, 0.0667, 0.6525), (10, 10, 0.6915, 1), (5, 1000, 0.0016, 0.0116)],
)
def test_shares_have_clopper_and_pearsons_interval(
    marked: int, n: int, low: float, high: float
) -> None:
    """The published intervals, at 95 %."""
    assert stats.ratio_interval(marked, n, 0.95) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_a_shares_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    """0 <= low <= share <= high <= 1, wider at a higher confidence."""
    marked = data.draw(st.integers(0, n))
    low, high = stats.ratio_interval(marked, n, 0.9)
    wide_low, wide_high = stats.ratio_interval(marked, n, 0.99)

    assert 0 <= wide_low <= low <= marked / n <= high <= wide_high <= 1


def dependent(rng: np.random.Generator, sets: int, n: int, rho: float) -> stats.Numbers:
    """``sets`` series of ``n`` standard normal values, each leaning on the one before by rho."""
    noise = rng.standard_normal((n, sets)) * math.sqrt(1 - rho * rho)
    series = np.empty((n, sets))
    series[0] = rng.standard_normal(sets)
    for i in range(1, n):
        series[i] = rho * series[i - 1] + noise[i]
    return series.T


def test_independent_marks_are_worth_their_number() -> None:
    """D of independent marks is near 1, and never below."""
    rng = np.random.default_rng(1)
    found = [stats.variance_inflation(rng.random(2000) < 0.05) for _ in range(200)]

    assert min(found) >= 1
    assert np.mean(found) < 1.3


def test_dependent_marks_are_worth_less() -> None:
    """Blocks of ten equal marks inflate the variance of their share by ten."""
    rng = np.random.default_rng(2)
    found = [stats.variance_inflation(np.repeat(rng.random(400) < 0.3, 10)) for _ in range(200)]

    assert np.mean(found) == pytest.approx(10, rel=0.2)


def test_a_drift_makes_a_sample_worth_little() -> None:
    """A share that slides through the run leaves few independent observations of 2000."""
    marks = np.random.default_rng(3).random(2000) < np.linspace(0, 1, 2000)

    assert 2000 / stats.variance_inflation(marks) < 20


@given(st.integers(40, 400), st.data())
def test_dependence_leaves_a_median_its_bounds(n: int, data: st.DataObject) -> None:
    """However the marks hang together, 40 requests or more are worth six, which bound a median."""
    turns = data.draw(st.lists(st.integers(0, n), max_size=4))
    marks = np.zeros(n, np.bool_)
    for turn in turns:
        marks[turn:] ^= True

    assert n / stats.variance_inflation(marks) >= stats.smallest_sample(0.5, 0.95)


@pytest.mark.parametrize("marks", [np.ones(39) > 0, np.zeros(500) > 0, np.ones(500) > 0])
def test_nothing_to_judge_dependence_by_is_d_of_1(marks: stats.Numbers) -> None:
    """Fewer than 40 units, or marks that never vary, say nothing of dependence."""
    assert stats.variance_inflation(marks) == 1


def test_resampling_is_seeded() -> None:
    """The same sample and seed give the same draws, another seed others."""
    values = np.random.default_rng(4).random(300)
    draw = [stats.block_resample(values, np.ones(300), seed=s) for s in (1, 1, 2)]

    assert (draw[0] == draw[1]).all()
    assert (draw[0] != draw[2]).any()


def test_too_few_resamples_have_no_end() -> None:
    """An end beyond the draws is unknown, and so is every end of a single block."""
    draws = np.linspace(0, 1, 100)

    assert stats.resampled_interval(draws, 1, 0.95) == (-math.inf, math.inf)
    assert stats.resampled_interval(draws, 20, 0.9999) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("n", "rho", "least"), [(10, 0, 0.90), (200, 0, 0.92), (1000, 0.5, 0.91), (1000, 0.9, 0.88)]
)
def test_means_are_covered(n: int, rho: float, least: float) -> None:
    """95 % intervals of a mean hold the known one about as often as they say, dependence or not."""
    sets = 300
    covered = 0
    for series in dependent(np.random.default_rng(5), sets, n, rho):
        draws = stats.block_resample(series, np.ones(n), seed=6, draws=2000)
        low, high = stats.resampled_interval(draws, -(-n // max(1, n // stats.BATCHES)), 0.95)
        covered += low <= 0 <= high

    assert covered / sets >= least
