"""Figures of the last seconds: the report's definitions, over what came in."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.latency import SAMPLES
from collectors.records import Outcome, RequestRecord
from collectors.stats import percentile
from collectors.table import RequestTable
from loadgen.live import KEPT_S, STEP_S, WINDOW_S, LiveFigures, count_values, percentile_of

BEGAN_AT = 50.0
NEARLY = 0.0026  # half a bucket


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = BEGAN_AT


@pytest.fixture
def clock() -> Clock:
    """Stands at the beginning of the run."""
    return Clock()


@pytest.fixture
def live(clock: Clock) -> LiveFigures:
    """Of a run that just began."""
    return LiveFigures("run", "name", BEGAN_AT, lambda: clock.now)


def record(
    seq: int = 0, *, ttft_s: float = 0.2, gaps: tuple[float, ...] = (0.02, 0.04), **changes: Any
) -> RequestRecord:
    """A request with a first token and gaps."""
    first_s = 1.0 + ttft_s
    known: dict[str, Any] = {
        "run_id": "run",
        "seq": seq,
        "outcome": Outcome.OK,
        "due_at_s": 1.0,
        "sent_at_s": 1.0,
        "first_token_at_s": first_s,
        "last_token_at_s": first_s + sum(gaps),
        "done_at_s": first_s + sum(gaps),
        "ended_at_s": first_s + sum(gaps),
        "output_tokens": 3,
        "gaps_s": array("f", gaps),
    }
    return RequestRecord(**known | changes)


latencies = st.lists(
    st.one_of(st.floats(2e-6, 80_000.0), st.just(math.inf)), min_size=1, max_size=300
)


@given(latencies, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_counted_percentile_is_the_nearest_rank_within_half_a_bucket(
    values: list[float], q: float
) -> None:
    """Counting in buckets moves no percentile by more than a quarter percent; infinity stays."""
    found = percentile_of(count_values(np.array(values)), q)
    assert found == pytest.approx(percentile(np.sort(values), q), rel=NEARLY)


def test_no_value_has_no_percentile_and_no_gap_is_no_time() -> None:
    """None of nothing; events that came together have a gap of nearly 0 and not an error."""
    assert percentile_of(count_values(np.array([])), 0.5) is None
    found = percentile_of(count_values(np.zeros(3)), 0.5)
    assert found is not None
    assert found < 2e-6


def test_the_whole_run_in_one_window_is_what_the_report_says(
    clock: Clock, live: LiveFigures
) -> None:
    """Batch by batch, failed and broken requests included, it comes to the report's percentiles."""
    records = [record(i, ttft_s=0.1 + 0.003 * i, gaps=(0.01 + i * 1e-4,) * 5) for i in range(60)]
    records += [record(60, outcome=Outcome.RESET), record(61, outcome=Outcome.UNFINISHED)]
    records += [
        record(62 + i, outcome=Outcome.HTTP_ERROR, first_token_at_s=None, last_token_at_s=None)
        for i in range(5)
    ]
    for start in range(0, len(records), 7):
        clock.now += 0.5
        live.tick()
        live.take(records[start : start + 7])
    live.end()
    last, table = live.points_after(-1.0)[-1], RequestTable.from_records(records)
    for name in ("ttft", "itl", "e2e"):
        sample = SAMPLES[f"{name}_s"](table)
        assert sample is not None
        assert last[f"{name}_n"] == len(sample)
        for q in (0.5, 0.95):
            whole = percentile(sample.ordered, q)
            assert last[f"{name}_p{q * 100:g}_s"] == pytest.approx(whole, rel=NEARLY)
    assert last["ttft_p95_s"] == math.inf  # 6 of 67 failed
    assert live.ended


def test_a_point_forgets_what_is_older_than_its_window(clock: Clock, live: LiveFigures) -> None:
    """Ten seconds after the last request nothing is known any more, and no line is drawn on."""
    live.take([record()])
    seen = []
    for _ in range(8):
        clock.now += STEP_S
        live.tick()
        seen.append(live.points_after(-1.0)[-1])
    assert [p["ttft_n"] for p in seen] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert seen[-1]["ttft_p50_s"] is None
    assert seen[-1]["itl_p95_s"] is None
    assert seen[-1]["output_tokens_per_s"] == 0.0
    assert seen[0]["output_tokens_per_s"] == pytest.approx(3 / STEP_S)
    assert seen[4]["output_tokens_per_s"] == pytest.approx(3 / WINDOW_S)


def test_tokens_that_nobody_told_are_unknown_and_not_zero(clock: Clock, live: LiveFigures) -> None:
    """A server without usage has no token rate."""
    live.take([record(output_tokens=None)])
    clock.now += STEP_S
    live.tick()
    assert live.points_after(-1.0)[-1]["output_tokens_per_s"] is None


def test_only_the_last_hour_is_kept_and_given_in_parts(clock: Clock, live: LiveFigures) -> None:
    """A soak does not grow without end, and a page asks for what it has not seen."""
    for _ in range(2000):
        clock.now += STEP_S
        live.tick()
    points = live.points_after(-1.0)
    assert len(points) == KEPT_S / STEP_S
    assert live.points_after(points[-4]["at_s"]) == points[-3:]
    assert live.points_after(points[-1]["at_s"]) == []
