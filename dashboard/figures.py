"""Charts of one run: figures, the sentence that says what each shows, and the table behind it.

Rules kept here:

- Lines differ by dash and marker, bars by pattern, not by colour alone. Every colour stands out
  from a light page and from a dark one; backgrounds are left to the page.
- Axes carry units and points their n. What is missing is a gap or a sentence, never 0.
- Drawn as SVG: browsers grant a page only a few WebGL contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from collectors.records import Outcome
from collectors.runs import Run
from dashboard.series import QUANTILES, Series

# Okabe and Ito's palette, which colour-blind readers can tell apart, without the hues that vanish
# on one of the two backgrounds. Source: Wong 2011, Points of view: Color blindness.
BLUE, VERMILLION, PURPLE, GREEN = "#1c7fc4", "#d55e00", "#c066a0", "#009e73"
GREY, BROWN, INDIGO = "#808080", "#97702b", "#7272d6"
COLOURS = (VERMILLION, GREEN, PURPLE, BLUE, GREY, BROWN, INDIGO)
PATTERNS = ("", "/", "x", ".", "\\", "-", "|", "+")
HEIGHT = 300
_FEW = 5  # requests a bar; an axis that short gets whole ticks
_BIN = "<br>%{customdata[0]:.4~g} to %{customdata[1]:.4~g} s<extra></extra>"
_N = "%{customdata[2]:,d}"
_SHADE = "rgba(128, 128, 128, 0.12)"
_STYLES = {
    "p50_s": {"color": BLUE, "dash": "solid", "symbol": "circle"},
    "p95_s": {"color": VERMILLION, "dash": "dash", "symbol": "square"},
    "p99_s": {"color": PURPLE, "dash": "dot", "symbol": "diamond"},
}
_NAMES = {
    "ttft": "time to first token (TTFT)",
    "itl": "gap between output events (ITL)",
    "e2e": "time to the whole answer (E2E)",
}
_SHORT = {"ttft": "TTFT", "itl": "ITL", "e2e": "E2E"}
_ABSENT = {
    "ttft": "No request showed a first token, so there is no TTFT to draw.",
    "itl": "No gaps between output events were kept, so there is no ITL to draw.",
    "e2e": "No answer came to its end, so there is no E2E to draw.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of a page.

    Attributes:
        key: names it on the page.
        title: what is drawn.
        sentence: what it shows; where there is nothing to draw, why.
        figure: ``None`` where there is nothing to draw.
        table: the figures behind it, units in the headers; ``None`` without a figure.
    """

    key: str
    title: str
    sentence: str
    figure: go.Figure | None = None
    table: pd.DataFrame | None = None


def charts_of(run: Run, series: Series) -> list[Chart]:
    """Every chart of a run over time, in the order of the page."""
    return [
        *(latency_chart(name, series) for name in _NAMES),
        tokens_chart(series),
        requests_chart(series),
        outcomes_chart(series),
        concurrency_chart(run, series),
    ]


def latency_chart(name: str, series: Series) -> Chart:
    """Percentiles of one latency, by when its requests were due."""
    title = f"{_SHORT[name]} over time"
    frame = series.latency.get(name)
    columns = [f"p{q * 100:g}_s" for q in QUANTILES]
    if frame is None or not np.isfinite(frame[columns].to_numpy()).any():
        too_few = frame is not None and frame[columns].isna().to_numpy().all()
        why = f"Too few requests for a line of {_SHORT[name]}." if too_few else _ABSENT[name]
        return Chart(key=name, title=title, sentence=why)
    drawn = [column for column in columns if frame[column].notna().any()]
    values = frame[columns].to_numpy()
    highest_s = float(values[np.isfinite(values)].max())
    scale, unit = (1e3, "ms") if highest_s < 1 else (1.0, "s")
    figure = _figure(series, f"{_SHORT[name]} ({unit})")
    for column in drawn:
        figure.add_trace(_percentile_line(frame, column, scale, unit))
    if (mark := _infinite_marks(frame, drawn, highest_s * scale)) is not None:
        figure.add_trace(mark)
    table = _bins(frame) | {"n": frame["n"].astype(int)}
    table |= {f"{_label(c)} ({unit})": frame[c] * scale for c in columns}
    return Chart(
        key=name,
        title=title,
        sentence=_latency_sentence(name, series, frame, drawn),
        figure=figure,
        table=pd.DataFrame(table),
    )


def tokens_chart(series: Series) -> Chart:
    """Output tokens a second."""
    title = "Output tokens"
    if series.tokens is None:
        sentence = "No answer told its output tokens, so their rate is unknown."
        return Chart(key="tokens", title=title, sentence=sentence)
    frame = series.tokens
    lengths_s = frame["end_s"] - frame["start_s"]
    total = float((frame["output_tokens_per_s"] * lengths_s).sum())
    figure = _figure(series, "output tokens per second")
    figure.add_trace(_rate_line(frame, "output_tokens_per_s", "tokens/s", GREEN))
    return Chart(
        key="tokens",
        title=title,
        sentence=f"Output tokens a second, n = {total:,.0f} tokens, in {_bins_of(series)} by when"
        " their event arrived.",
        figure=figure,
        table=pd.DataFrame(_bins(frame) | {"output tokens per s": frame["output_tokens_per_s"]}),
    )


def requests_chart(series: Series) -> Chart:
    """Requests a second."""
    title, frame = "Requests", series.requests
    total = int(frame["n"].sum())
    if not total:
        sentence = "No request came to an end, so there is no rate to draw."
        return Chart(key="requests", title=title, sentence=sentence)
    figure = _figure(series, "requests per second")
    figure.add_trace(_rate_line(frame, "requests_per_s", "requests/s", BLUE))
    return Chart(
        key="requests",
        title=title,
        sentence=f"Requests a second, failed ones too, n = {total:,}, in {_bins_of(series)} by when"
        " they ended.",
        figure=figure,
        table=pd.DataFrame(
            _bins(frame) | {"n": frame["n"], "requests per s": frame["requests_per_s"]}
        ),
    )


def outcomes_chart(series: Series) -> Chart:
    """Requests that did not end well, stacked by outcome."""
    title, frame = "Errors", series.outcomes
    seen = [outcome for outcome in Outcome if outcome.value in frame]
    if not seen:
        return Chart(key="errors", title=title, sentence="No request failed or was left out.")
    figure = _figure(series, "requests")
    for outcome in seen:
        figure.add_trace(_bars(frame, outcome))
    figure.update_layout(barmode="stack", showlegend=True)
    counts = frame[[outcome.value for outcome in seen]].to_numpy()
    if counts.sum(axis=1).max() <= _FEW:
        figure.update_yaxes(dtick=1)
    total = int(counts.sum())
    return Chart(
        key="errors",
        title=title,
        sentence=f"Requests that did not end well, by outcome, n = {total:,}, in"
        f" {_bins_of(series)} by when they ended.",
        figure=figure,
        table=pd.DataFrame(_bins(frame) | {_said(o): frame[o.value] for o in seen}),
    )


def concurrency_chart(run: Run, series: Series) -> Chart:
    """Requests open at once."""
    title, frame = "Concurrency", series.concurrency
    highest = int(frame["highest"].max())
    if not highest:
        sentence = "No request was open, so there is no concurrency to draw."
        return Chart(key="concurrency", title=title, sentence=sentence)
    figure = _figure(series, "open requests")
    figure.add_trace(_open_line(frame, "highest", {"color": VERMILLION, "width": 1, "dash": "dot"}))
    figure.add_trace(_open_line(frame, "mean", {"color": BLUE, "width": 2}))
    asked = ""
    if run.loop == "closed" and run.users is not None:
        asked = f" of {run.users:,} users"
        figure.add_hline(y=run.users, line={"color": GREY, "width": 1, "dash": "dash"})
        figure.add_annotation(
            xref="paper",
            x=1,
            xanchor="right",
            y=run.users,
            yanchor="bottom",
            text=f"{run.users:,} users asked for",
            showarrow=False,
        )
    return Chart(
        key="concurrency",
        title=title,
        sentence=f"Requests sent and not yet over, n = {series.sent:,}: at most {highest:,}{asked}"
        " at once.",
        figure=figure,
        table=pd.DataFrame(
            _bins(frame) | {"mean open": frame["mean"], "highest open": frame["highest"]}
        ),
    )


# Traces


def _percentile_line(frame: pd.DataFrame, column: str, scale: float, unit: str) -> go.Scatter:
    style = _STYLES[column]
    return go.Scatter(
        x=_middle(frame),
        y=frame[column].where(np.isfinite(frame[column])) * scale,
        customdata=_hovered(frame),
        name=_label(column),
        mode="lines+markers",
        cliponaxis=False,
        connectgaps=False,
        line={"color": style["color"], "dash": style["dash"], "width": 2},
        marker={"symbol": style["symbol"], "size": 6},
        hovertemplate=f"{_label(column)}: %{{y:,.3~g}} {unit}, n = {_N}{_BIN}",
    )


def _infinite_marks(frame: pd.DataFrame, columns: list[str], top: float) -> go.Scatter | None:
    """Marks at the top where a percentile is infinite: so many failed, or were still open."""
    infinite = np.isinf(frame[columns].to_numpy())
    where = infinite.any(axis=1)
    if not where.any():
        return None
    names = np.array([_label(column) for column in columns])
    return go.Scatter(
        x=_middle(frame)[where],
        y=np.full(int(where.sum()), top * 1.08),
        customdata=_hovered(frame[where]),
        text=[", ".join(names[row]) for row in infinite[where]],
        name="infinite: failed, or still open",
        mode="markers",
        cliponaxis=False,
        marker={"symbol": "triangle-up-open", "size": 9, "color": GREY},
        hovertemplate=f"%{{text}}: infinite, n = {_N}{_BIN}",
    )


def _rate_line(frame: pd.DataFrame, column: str, unit: str, colour: str) -> go.Scatter:
    n = f", n = {_N}" if "n" in frame else ""
    return go.Scatter(
        x=_middle(frame),
        y=frame[column],
        customdata=_hovered(frame),
        name=unit,
        mode="lines+markers",
        cliponaxis=False,
        line={"color": colour, "width": 2},
        marker={"size": 5},
        hovertemplate=f"%{{y:,.3~g}} {unit}{n}{_BIN}",
        showlegend=False,
    )


def _open_line(frame: pd.DataFrame, column: str, style: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=_middle(frame),
        y=frame[column],
        customdata=_hovered(frame),
        name=column,
        mode="lines",
        line={"shape": "hvh", **style},
        hovertemplate=f"{column}: %{{y:.3~g}}{_BIN}",
    )


def _bars(frame: pd.DataFrame, outcome: Outcome) -> go.Bar:
    number = list(Outcome).index(outcome)
    return go.Bar(
        x=_middle(frame),
        y=frame[outcome.value],
        customdata=_hovered(frame),
        width=frame["end_s"] - frame["start_s"],
        name=_said(outcome),
        marker={
            "color": COLOURS[number % len(COLOURS)],
            "pattern": {
                "shape": PATTERNS[number % len(PATTERNS)],
                "fillmode": "overlay",
                "fgcolor": "white",
                "size": 6,
            },
            "line": {"width": 0.5, "color": GREY},
        },
        hovertemplate=f"{_said(outcome)}: %{{y:,d}}{_BIN}",
    )


def _hovered(frame: pd.DataFrame) -> Any:
    """What a point tells of its bin: start, end, and n where it has one."""
    columns = ["start_s", "end_s", *(["n"] if "n" in frame else [])]
    return frame[columns].to_numpy(dtype=np.float64)


# Frames and words


def _figure(series: Series, y_title: str) -> go.Figure:
    """An empty figure with its axes, the measured window shaded."""
    start_s, end_s = series.window_s
    last_s = float(series.requests["end_s"].iloc[-1])
    shaded = " (shaded: measured window)" if end_s > start_s else ""
    figure = go.Figure()
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        hovermode="closest",
        modebar={"bgcolor": "rgba(0, 0, 0, 0)"},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "title": "",
        },
        xaxis={
            "title": f"seconds since the run began{shaded}",
            "range": [0, last_s],
        },
        yaxis={"title": y_title, "rangemode": "tozero", "automargin": True},
    )
    if end_s > start_s:
        figure.add_vrect(
            x0=start_s,
            x1=min(end_s, last_s),
            fillcolor=_SHADE,
            line_width=0,
            layer="below",
        )
    return figure


def _latency_sentence(name: str, series: Series, frame: pd.DataFrame, drawn: list[str]) -> str:
    left_out = [f"p{q * 100:g}" for q in QUANTILES if f"p{q * 100:g}_s" not in drawn]
    of = "gaps" if name == "itl" else "requests"
    rest = f"; too few a bin for {_listed(left_out)}" if left_out else ""
    return (
        f"{_listed([_label(column) for column in drawn])} of the {_NAMES[name]} as felt,"
        f" n = {int(frame['n'].sum()):,} {of}, in {_bins_of(series)} by when each request was"
        f" due{rest}."
    )


def _listed(words: list[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def _bins_of(series: Series) -> str:
    return f"bins of {series.width_s:g} s"


def _bins(frame: pd.DataFrame) -> dict[str, Any]:
    return {"from (s)": frame["start_s"], "to (s)": frame["end_s"]}


def _middle(frame: pd.DataFrame) -> Any:
    return (frame["start_s"] + frame["end_s"]) / 2


def _label(column: str) -> str:
    return column.removesuffix("_s")


def _said(outcome: Outcome) -> str:
    return outcome.value.replace("_", " ")
