"""A run over time: bins, percentiles in them, rates, outcomes, open requests."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run
from collectors.stats import percentile
from collectors.table import RequestTable
from dashboard.series import MOST_BINS, Series, bin_width_s, concurrency, over_time
from tests.dashboard.recorded import make_run, requests_of


def series_of(run: Run, records: list[RequestRecord]) -> Series:
    """The series of a run with these requests."""
    return over_time(run, RequestTable.from_records(records))


def request(seq: int, due_at_s: float, **said: Any) -> RequestRecord:
    """A request that succeeded in 0.2 s without output, unless said otherwise."""
    values: dict[str, Any] = {
        "outcome": Outcome.OK,
        "sent_at_s": due_at_s,
        "ended_at_s": due_at_s + 0.2,
        "done_at_s": due_at_s + 0.2,
    }
    return RequestRecord(run_id="r", seq=seq, due_at_s=due_at_s, **values | said)


@pytest.mark.parametrize(
    ("span_s", "requests", "width_s"),
    [
        (60, 600, 3),  # 30 in a bin, which p95 needs
        (300, 12_000, 5),  # 200 in a bin: p99 too, and bins enough
        (3600, 10_000_000, 15),  # as many bins as a chart takes
        (60, 4, 60),  # too few for any line: one bin
        (0.02, 3, 0.02),
        (60, 0, 60),
    ],
)
def test_bins_are_narrow_but_hold_enough(span_s: float, requests: int, width_s: float) -> None:
    """The width is round, and follows from the number of requests."""
    assert bin_width_s(span_s, requests) == width_s


@given(span_s=st.floats(0.001, 1e6), requests=st.integers(0, 10**8))
def test_a_chart_has_a_bounded_number_of_bins(span_s: float, requests: int) -> None:
    """Whatever the run, no line has more points than a browser takes easily."""
    assert span_s / bin_width_s(span_s, requests) <= MOST_BINS


def test_a_percentile_in_a_bin_is_the_reports_own() -> None:
    """TTFT p95 of a bin is the nearest rank of the requests due in it, as felt."""
    records = requests_of(make_run(), failing=0.02)
    series = series_of(make_run(), records)
    frame = series.latency["ttft"]
    row = frame.iloc[5]
    felt = sorted(
        math.inf if r.ttft_s is None else r.ttft_s
        for r in records
        if row.start_s <= r.due_at_s < row.end_s
    )
    assert row.n == len(felt) >= 20
    assert row.p50_s == pytest.approx(percentile(np.array(felt), 0.5))
    assert row.p95_s == pytest.approx(percentile(np.array(felt), 0.95))


def test_every_request_is_in_one_bin() -> None:
    """Counts of the bins add up to the run, whatever they are binned by."""
    run = make_run()
    records = requests_of(run, failing=0.2)
    series = series_of(run, records)
    assert series.latency["ttft"]["n"].sum() == len(records)
    ended_well_or_failed = sum(r.outcome is not Outcome.UNFINISHED for r in records)
    assert series.requests["n"].sum() == ended_well_or_failed
    others = series.outcomes.drop(columns=["start_s", "end_s"]).to_numpy().sum()
    assert others == sum(r.outcome is not Outcome.OK for r in records)


def test_too_few_requests_are_a_gap() -> None:
    """With 19 requests there is a p50 but no p95, and with 4 neither."""
    for n, has_p50 in ((19, True), (4, False)):
        records = [
            request(i, i / 10, first_token_at_s=i / 10 + 0.1, last_token_at_s=i / 10 + 0.1)
            for i in range(n)
        ]
        frame = series_of(make_run(stopped_at_s=2.0, ended_at_s=2.0), records).latency["ttft"]
        assert frame["n"].sum() == n
        assert frame["p50_s"].notna().any() == has_p50
        assert frame["p95_s"].isna().all()


def test_so_many_failures_are_infinite_and_not_a_gap() -> None:
    """A bin in which more than 5 % failed has an infinite p95."""
    frame = series_of(make_run(), requests_of(make_run(), failing=0.5)).latency["ttft"]
    assert np.isinf(frame["p95_s"]).sum() > 10


def test_in_an_open_loop_latency_counts_from_due() -> None:
    """What was sent 2 s late was 2 s slower to the one who waited."""
    records = [
        request(
            i,
            i / 10,
            sent_at_s=i / 10 + 2,
            first_token_at_s=i / 10 + 2.5,
            last_token_at_s=i / 10 + 2.5,
            done_at_s=i / 10 + 2.5,
        )
        for i in range(100)
    ]
    for loop, ttft_s in (("open", 2.5), ("closed", 0.5)):
        run = make_run(loop=loop, users=None, rate=10.0, stopped_at_s=10.0, ended_at_s=13.0)
        assert series_of(run, records).latency["ttft"]["p50_s"].iloc[0] == pytest.approx(ttft_s)


def test_output_tokens_add_up() -> None:
    """Rates times lengths give the tokens of the answers that told them."""
    records = requests_of(make_run(), failing=0.1)
    frame = series_of(make_run(), records).tokens
    assert frame is not None
    total = (frame["output_tokens_per_s"] * (frame["end_s"] - frame["start_s"])).sum()
    assert total == pytest.approx(sum(r.output_tokens or 0 for r in records))


def test_unknown_tokens_are_absent_not_zero() -> None:
    """Without usage there is no token rate at all."""
    assert series_of(make_run(), requests_of(make_run(), usage=False)).tokens is None


def test_open_requests_by_hand() -> None:
    """Two requests of 2 s that overlap for 1 s: 1 open, then 2, then 1, then none."""
    edges = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    frame = concurrency(np.array([0.0, 1.0, np.nan]), np.array([2.0, 3.0, 1.0]), edges)
    assert frame["mean"].tolist() == [1, 2, 1, 0]
    assert frame["highest"].tolist() == [2, 2, 1, 0]  # the second is sent at the first bin's end


def test_a_request_sent_as_another_ends_takes_its_place() -> None:
    """One user never has two requests open."""
    sent = np.arange(10.0)
    frame = concurrency(sent, sent + 1, np.linspace(0, 10, 4))
    assert frame["highest"].max() == 1
    assert frame["mean"].tolist() == pytest.approx([1, 1, 1])


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), min_size=1, max_size=30),
    st.integers(1, 50),
)
def test_open_requests_hold_the_time_of_all_requests(
    requests: list[tuple[float, float]], bins: int
) -> None:
    """The area under the mean is the sum of all durations, and no mean is over its highest."""
    sent = np.array([start for start, _ in requests])
    over = sent + np.array([length for _, length in requests])
    edges = np.linspace(0, max(float(over.max()), 1.0), bins + 1)
    frame = concurrency(sent, over, edges)
    area = (frame["mean"] * np.diff(edges)).sum()
    assert area == pytest.approx((over - sent).sum(), abs=1e-6)
    assert (frame["mean"] <= frame["highest"] + 1e-6).all()
    assert frame["highest"].max() <= len(requests)


def test_what_never_was_sent_counts_when_it_was_due() -> None:
    """An unsent request has no end, but its place on the axis is known."""
    records = [request(0, 1.0), request(1, 50.0)]
    records.append(
        RequestRecord(run_id="r", seq=2, outcome=Outcome.NOT_SENT, due_at_s=30.0),
    )
    frame = series_of(make_run(ramp_s=None), records).outcomes
    hit = frame[frame["not_sent"] == 1]
    assert len(hit) == 1
    assert hit["start_s"].iloc[0] <= 30 < hit["end_s"].iloc[0]


@pytest.mark.parametrize(
    "changes", [{}, {"stopped_at_s": None, "ended_at_s": None}, {"stopped_at_s": 0.0}]
)
def test_an_empty_run_has_series_all_the_same(changes: dict[str, Any]) -> None:
    """No request: no latency, no tokens, and counts of zero."""
    series = series_of(make_run(**changes), [])
    assert (series.latency, series.tokens) == ({}, None)
    assert series.requests["n"].sum() == 0
    assert series.concurrency["highest"].sum() == 0


def test_answers_in_one_piece_have_neither_ttft_nor_itl() -> None:
    """Not streamed: only E2E applies."""
    records = [
        request(i, i / 10, output_tokens=5, token_source=TokenSource.USAGE) for i in range(600)
    ]
    series = series_of(make_run(), records)
    assert set(series.latency) == {"e2e"}
    assert series.tokens is not None


def test_the_last_bin_is_no_sliver() -> None:
    """Its rate would leap: it has between half a width and one and a half."""
    for end_s in np.linspace(60, 70, 23):
        series = series_of(make_run(ended_at_s=float(end_s)), requests_of(make_run()))
        lengths = series.requests["end_s"] - series.requests["start_s"]
        assert series.width_s / 2 - 1e-9 <= lengths.iloc[-1] <= series.width_s * 1.5 + 1e-9
        pd.testing.assert_series_equal(
            series.requests["end_s"][:-1].reset_index(drop=True),
            series.requests["start_s"][1:].reset_index(drop=True),
            check_names=False,
        )


def test_gaps_of_one_request_are_no_percentile() -> None:
    """A hundred gaps of four requests are still only four requests."""
    records = [
        request(
            i,
            float(i),
            first_token_at_s=i + 0.1,
            last_token_at_s=i + 1.1,
            done_at_s=i + 1.1,
            ended_at_s=i + 1.1,
            output_events=OutputEvents(answer=101),
            gaps_s=array("f", [0.01] * 100),
        )
        for i in range(4)
    ]
    frame = series_of(make_run(stopped_at_s=5.0, ended_at_s=5.2), records).latency["itl"]
    assert frame["n"].sum() == 400
    assert frame["p50_s"].isna().all()
