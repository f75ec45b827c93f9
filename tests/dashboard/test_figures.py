"""Charts: what they say, what they leave out, and how they look on any page."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from collectors.records import Outcome, RequestRecord
from collectors.table import RequestTable
from dashboard.figures import COLOURS, Chart, charts_of
from dashboard.series import over_time
from tests.dashboard.recorded import make_run, requests_of

LIGHT, DARK = "#ffffff", "#171614"  # Streamlit's page, as its configuration documents it
MOST_POINTS = 3000


def charts(records: list[RequestRecord], **changes: Any) -> dict[str, Chart]:
    """All charts of a run with these requests, by key."""
    run = make_run(**changes)
    found = charts_of(run, over_time(run, RequestTable.from_records(records)))
    return {chart.key: chart for chart in found}


def drawn(records: list[RequestRecord], key: str, **changes: Any) -> go.Figure:
    """One figure that must be there."""
    figure = charts(records, **changes)[key].figure
    assert figure is not None
    return figure


@pytest.fixture(scope="module")
def ordinary() -> dict[str, Chart]:
    """The charts of an ordinary run with a few failures."""
    return charts(requests_of(make_run(), failing=0.05))


def test_every_chart_says_what_it_shows(ordinary: dict[str, Chart]) -> None:
    """Each has a sentence, units on its axes, and the figures behind it."""
    assert list(ordinary) == ["ttft", "itl", "e2e", "tokens", "requests", "errors", "concurrency"]
    for chart in ordinary.values():
        assert chart.sentence.endswith(".")
        assert " n = " in chart.sentence
        assert chart.figure is not None
        assert chart.figure.layout.xaxis.title.text.startswith("seconds since the run began")
        assert chart.figure.layout.yaxis.title.text
        assert chart.table is not None
        assert list(chart.table)[:2] == ["from (s)", "to (s)"]
        assert len(chart.table) > 5


@pytest.mark.parametrize(("key", "unit"), [("ttft", "ms"), ("itl", "ms"), ("e2e", "s")])
def test_latency_charts_tell_unit_and_n(ordinary: dict[str, Chart], key: str, unit: str) -> None:
    """Milliseconds below a second, seconds above; n in the sentence, the table and the hover."""
    chart = ordinary[key]
    assert chart.figure is not None
    assert f"({unit})" in chart.figure.layout.yaxis.title.text
    assert " n = " in chart.sentence
    assert chart.table is not None
    assert "n" in chart.table
    for trace in chart.figure.data:
        assert "n = %{customdata[2]" in trace.hovertemplate


def test_lines_show_the_values_of_the_table(ordinary: dict[str, Chart]) -> None:
    """Point for point, with a gap where the table has none."""
    chart = ordinary["ttft"]
    assert chart.figure is not None
    assert chart.table is not None
    lines = {trace.name: np.array(trace.y, dtype=float) for trace in chart.figure.data}
    wanted = chart.table["p95 (ms)"].to_numpy()
    finite = np.isfinite(wanted)
    assert finite.any()
    assert lines["p95"][finite] == pytest.approx(wanted[finite])
    assert np.isnan(lines["p95"][~finite]).all()


def test_a_percentile_without_a_point_is_left_out_and_said() -> None:
    """30 requests a bin are too few for p99: no line, no legend, a word about it."""
    chart = charts(requests_of(make_run()))["ttft"]
    assert chart.figure is not None
    assert [trace.name for trace in chart.figure.data if trace.name.startswith("p")] == [
        "p50",
        "p95",
    ]
    assert chart.sentence.endswith("too few a bin for p99.")


def test_infinite_percentiles_are_marked() -> None:
    """Where more than 5 % failed, p95 has a mark at the top instead of a point."""
    figure = drawn(requests_of(make_run(), failing=0.15), "ttft")
    marks = [trace for trace in figure.data if trace.name.startswith("infinite")]
    assert len(marks) == 1
    assert any("p95" in text for text in marks[0].text)
    points = np.concatenate([np.array(t.y, float) for t in figure.data if t is not marks[0]])
    assert min(marks[0].y) > np.nanmax(points)


def test_errors_are_stacked_by_outcome() -> None:
    """Bars add up to every request that did not end well."""
    records = requests_of(make_run(), failing=0.3)
    figure = drawn(records, "errors")
    assert figure.layout.barmode == "stack"
    total = sum(int(np.sum(trace.y)) for trace in figure.data)
    assert total == sum(record.outcome is not Outcome.OK for record in records)
    assert {"rate limited", "timeout"} <= {trace.name for trace in figure.data}


def test_only_failures_leave_sentences_where_there_is_no_latency() -> None:
    """No line is drawn at zero, and errors are still shown."""
    found = charts(requests_of(make_run(), failing=1))
    for key in ("ttft", "itl", "e2e", "tokens"):
        assert found[key].figure is None
        assert found[key].sentence.startswith(("No ", "Too few"))
    assert found["errors"].figure is not None
    assert found["requests"].figure is not None


def test_an_empty_run_has_no_figure_and_seven_sentences() -> None:
    """Each says why."""
    found = charts([])
    assert len(found) == 7
    assert all(chart.figure is None and chart.sentence for chart in found.values())


def test_too_few_requests_for_any_line_are_said() -> None:
    """Three requests: not "no first token", but too few."""
    chart = charts(requests_of(make_run(users=3), failing=0)[:3])["ttft"]
    assert (chart.figure, chart.sentence) == (None, "Too few requests for a line of TTFT.")


def test_the_measured_window_is_shaded(ordinary: dict[str, Chart]) -> None:
    """From the end of warm-up to the stop, below the lines."""
    for chart in ordinary.values():
        assert chart.figure is not None
        shade = chart.figure.layout.shapes[0]
        assert (shade.x0, shade.x1, shade.layer) == (6.0, 60.0, "below")
        assert "(shaded: measured window)" in chart.figure.layout.xaxis.title.text


def test_the_users_asked_for_are_in_the_concurrency_chart() -> None:
    """A closed loop has a ceiling; an open one has none."""
    records = requests_of(make_run())
    assert "16 users asked for" in str(drawn(records, "concurrency").layout.annotations)
    open_loop = drawn(records, "concurrency", loop="open", users=None, rate=10.0)
    assert "users" not in str(open_loop.layout.annotations)


def test_figures_are_light_svg_without_a_background() -> None:
    """No WebGL, few points, and the page's own background shows through, in light and dark."""
    run = make_run(users=64, duration_s=400.0, stopped_at_s=400.0, ended_at_s=405.0)
    for chart in charts_of(run, over_time(run, RequestTable.from_records(requests_of(run)))):
        assert chart.figure is not None
        assert chart.figure.layout.paper_bgcolor == "rgba(0, 0, 0, 0)"
        assert chart.figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        for trace in chart.figure.data:
            assert trace.type in ("scatter", "bar")
            assert len(trace.x) <= MOST_POINTS


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colour", "page"), [*itertools.product(COLOURS, (LIGHT, DARK))])
def test_every_colour_stands_out_from_both_pages(colour: str, page: str) -> None:
    """A contrast of at least 3, which WCAG asks of graphics."""
    lighter, darker = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def test_nothing_is_told_by_colour_alone() -> None:
    """Lines differ by dash and marker, and every outcome has its own colour with its pattern."""
    records = requests_of(make_run(users=200), failing=0.02)
    lines = [t for t in drawn(records, "ttft", users=200).data if t.mode == "lines+markers"]
    assert len(lines) == 3
    assert len({trace.line.dash for trace in lines}) == 3
    assert len({trace.marker.symbol for trace in lines}) == 3
    every = [
        RequestRecord(run_id="r", seq=i, outcome=outcome, due_at_s=float(i))
        for i, outcome in enumerate(Outcome)
        if outcome is not Outcome.OK
    ]
    bars = drawn(every, "errors").data
    assert len(bars) == len(Outcome) - 1
    assert len({(t.marker.color, t.marker.pattern.shape) for t in bars}) == len(bars)
    neighbours = itertools.pairwise(t.marker.pattern.shape for t in bars)
    assert all(one != other for one, other in neighbours)
