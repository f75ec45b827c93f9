"""Figures with their uncertainty: bounds, borders, and coverage of known answers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.estimates import (
    Fact,
    FeltSample,
    Percentile,
    PerUnit,
    Ratio,
    Resampled,
    felt_sample,
)
from collectors.gaps import GapsBuilder
from collectors.pooled import PooledSample
from collectors.stats import Numbers
from tests.collectors.test_stats import dependent


def _sample(values: Numbers) -> FeltSample:
    return felt_sample(at_least=values, at_most=values, served=values)


@given(
    st.lists(st.floats(0, 1e3) | st.just(math.inf), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_an_interval_holds_its_value(values: list[float], q: float) -> None:
    """Low end <= value <= high end, and a higher confidence is never narrower."""
    found = Percentile.of(_sample(np.array(values)), q)
    low, high = found.interval(0.9)
    wide_low, wide_high = found.interval(0.99)

    assert wide_low <= low <= found.value <= high <= wide_high


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.95, 72), (0.99, 368)])
def test_a_percentile_has_an_upper_end_from_the_border_on(q: float, needed: int) -> None:
    """Evenly mixed values are worth their number: 368 of them bound p99 above, 367 do not."""
    for n, is_bounded in ((needed, True), (needed - 1, False)):
        # Spread by the golden ratio: neighbours never share a side for long, so that D is 1.
        values = 1 + (np.arange(n) * (math.sqrt(5) - 1) / 2) % 1
        found = Percentile.of(_sample(values), q)

        assert found.n_eff == n
        assert math.isfinite(found.interval()[1]) is is_bounded


def test_an_open_request_bounds_both_ways() -> None:
    """What was still open lowers the low end by the time it had, and lifts value and high end."""
    known = np.full(90, 1.0)
    sample = felt_sample(
        at_least=np.concatenate((known, np.full(10, 0.5))),
        at_most=np.concatenate((known, np.full(10, math.inf))),
        served=known,
        unfinished=10,
    )
    found = Percentile.of(sample, 0.95)

    assert found.value == math.inf
    assert found.at_least == 1.0
    assert found.served == 1.0
    assert found.interval() == (1.0, math.inf)


def test_six_failures_in_a_hundred_make_p95_infinite() -> None:
    """A failed request is infinitely slow: more than 5 % of them and p95 is infinite."""
    values = np.concatenate((np.full(94, 0.2), np.full(6, math.inf)))

    assert Percentile.of(_sample(values), 0.95).value == math.inf
    assert Percentile.of(_sample(values), 0.94).value == 0.2


def _coverage(n: int, rho: float, q: float, sets: int) -> float:
    truth = NormalDist().inv_cdf(q)
    covered = 0
    for series in dependent(np.random.default_rng(7), sets, n, rho):
        low, high = Percentile.of(_sample(series + 100), q).interval()
        covered += low <= truth + 100 <= high
    return covered / sets


@pytest.mark.parametrize(
    ("n", "rho", "q", "least"),
    [
        (100, 0.0, 0.5, 0.92),
        (400, 0.0, 0.99, 0.92),
        (1000, 0.5, 0.95, 0.92),
        (1000, 0.9, 0.5, 0.90),
        (1000, 0.9, 0.95, 0.90),
    ],
)
def test_percentiles_are_covered(n: int, rho: float, q: float, least: float) -> None:
    """95 % intervals hold the known percentile about as often as they say, dependence or not."""
    assert _coverage(n, rho, q, sets=300) >= least


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_percentiles_are_covered_closely(rho: float, q: float) -> None:
    """With 5000 requests coverage stays within two points of 95 %, up to a lean of 0.98."""
    assert 0.93 <= _coverage(5000, rho, q, sets=1500) <= 0.995


def test_shares_of_bursts_are_covered() -> None:
    """Failures that come in bursts of ten: the interval holds the true share as it says."""
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(300):
        low, high = Ratio.of(np.repeat(rng.random(200) < 0.1, 10)).interval()
        held += low <= 0.1 <= high

    assert held / 300 >= 0.92


def _streams(rng: np.random.Generator, requests: int, gaps: int) -> PooledSample:
    """Requests of which one in ten is slow in all of its gaps, so that gaps hang together."""
    slow = rng.random(requests) < 0.1
    values = np.repeat(np.where(slow, 2.0, 1.0), gaps) * rng.uniform(0.9, 1.1, requests * gaps)
    builder, none = GapsBuilder(), np.zeros(requests, np.bool_)
    builder.extend(own.astype("<f4").tobytes() for own in np.split(values, requests))
    return PooledSample(builder.build(), is_ok=~none, broken=none, had_s=np.full(requests, np.nan))


def test_pooled_gaps_are_worth_their_requests() -> None:
    """20 000 gaps of 200 requests that are slow as a whole are worth about 200, not 20 000."""
    found = Percentile.of(_streams(np.random.default_rng(9), 200, 100), 0.9)

    assert found.n == 20_000
    assert 80 < found.n_eff < 500


def test_pooled_gaps_are_covered() -> None:
    """The share of slow gaps is 10 %, so p88 is fast and p92 slow: wrong as often as allowed."""
    rng = np.random.default_rng(10)
    wrong = 0
    for _ in range(200):
        sample = _streams(rng, 400, 20)
        wrong += Percentile.of(sample, 0.89).interval()[0] > 1.5  # surely slow: false
        wrong += Percentile.of(sample, 0.91).interval()[1] < 1.5  # surely fast: false

    assert wrong / 200 <= 0.05


def test_the_mean_of_pooled_gaps_is_covered() -> None:
    """The mean gap is 1.1 s; its interval rests on requests, not gaps, and holds it as it says."""
    rng = np.random.default_rng(13)
    held = 0
    for _ in range(200):
        mean = _streams(rng, 200, 50).mean()
        assert mean is not None
        low, high = mean.interval()
        held += low <= 1.1 <= high

    assert 0.9 <= held / 200 <= 0.99
    assert 100 < (mean.n_eff or 0) < 800  # of 10 000 gaps


def test_few_streams_count_as_one_each() -> None:
    """Gaps of 19 requests count as 19 observations: p99 of them has no upper end."""
    found = Percentile.of(_streams(np.random.default_rng(11), 19, 1000), 0.99)

    assert found.n_eff == pytest.approx(19)
    assert found.interval()[1] == math.inf


def test_one_observation_has_a_mean_and_no_interval() -> None:
    """The mean of one is known, its uncertainty is not."""
    assert Resampled.mean(np.array([2.0])).interval() == (0.0, math.inf)


def test_a_rate_is_counts_over_time() -> None:
    """200 bins of half a second with Poisson counts of 4 are 8 a second, give or take."""
    counts = np.random.default_rng(12).poisson(4, 200).astype(float)
    found = Resampled.rate(counts, 0.5, int(counts.sum()))
    low, high = found.interval()

    assert found.value == counts.sum() / 100
    assert low < 8 < high
    assert high - low < 2.5


def test_a_cost_is_the_rate_turned_over() -> None:
    """At 0.01 usd a second, 2 requests a second cost half a cent each; the ends change sides."""
    rate = Resampled.rate(np.array([1.0, 3.0] * 100), 1.0, 400)
    found = PerUnit(0.01, rate)
    low, high = found.interval()

    assert found.value == pytest.approx(0.005)
    assert low <= 0.005 <= high
    assert PerUnit(0.01, Resampled.rate(np.zeros(200), 1.0, 0)).value == math.inf


def test_a_maximum_claims_nothing_beyond_the_run() -> None:
    """A fact is its own interval, and more requests do not settle it."""
    assert Fact(3.0, 10).interval() == (3.0, 3.0)
    assert Fact(3.0, 10).settles_at(2.0) is None


def test_it_says_roughly_how_many_requests_would_settle() -> None:
    """p95 with 97 % inside the limit needs z^2 q (1 - q) / 0.02^2, about 456 requests."""
    values = np.random.default_rng(13).permutation(np.arange(1, 101) / 100)
    found = Percentile.of(_sample(values), 0.95)

    assert found.settles_at(0.97) == pytest.approx(456 * found.inflation, rel=0.01)
    assert found.settles_at(0.95) is None  # on the limit: no number settles it
    assert Percentile.of(_sample(values), 0.99).settles_at(5.0) >= 368


def test_a_share_says_how_many_requests_would_settle() -> None:
    """No failure yet: 0.5 % is ruled out after ln(0.025) / ln(0.995), 736 requests."""
    assert Ratio.of(np.zeros(100) > 0).settles_at(0.005) == pytest.approx(736, abs=1)
    assert Ratio.of(np.arange(100) % 10 == 0).settles_at(0.1) is None
