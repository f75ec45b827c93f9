"""The page of one run: may it be believed, did it hold, how fast was it, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from collectors.runs import Run
from collectors.store import Store
from dashboard.cached import remembered_study
from dashboard.figures import Chart, charts_of
from dashboard.queries import Study
from dashboard.settings import Agreement
from dashboard.wording import BADGES, DASH, count, interval, load, number, quantity, typeset, words
from sla import SlaFileError
from sla.metrics import resolve
from sla.text import LATENCY_NAMES, figure_facts, run_facts
from sla.units import Kind

Report = Mapping[str, Any]

_TOOLS = {
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "resetScale2d"]],
    "toImageButtonOptions": {"format": "svg"},
}
"""What a chart offers under the mouse."""


def show(
    store: Store,
    db: str,
    agreement: Agreement,
    controls: DeltaGenerator,
    open_run: Callable[[str], None],
) -> None:
    """Lay out the page of the run that the address names, the newest by default.

    Args:
        store: with the runs.
        db: what it was opened from.
        agreement: what the run is held to.
        controls: where to put the choice of the run.
        open_run: goes to the page of the run with that id.

    Raises:
        RunNotFoundError: the address names none.
        AmbiguousRunError: it names several.
    """
    run = store.find_run(st.query_params.get("run", "last"))
    _pick(store.runs(), run, controls, open_run)
    with st.spinner("Reading the run", show_time=True):
        study = _study(store, db, run, agreement)
    _header(study)
    _tiles(study.report)
    _objectives(study)
    _percentiles(study.report)
    _charts(charts_of(run, study.series))
    _facts(study.report)


def _study(store: Store, db: str, run: Run, agreement: Agreement) -> Study:
    try:
        return remembered_study(store, db, run, agreement.file_for(run))
    except SlaFileError as error:
        st.warning(words(error), icon=":material/rule:")
        return remembered_study(store, db, run, None)


def _pick(
    runs: Sequence[Run], run: Run, controls: DeltaGenerator, open_run: Callable[[str], None]
) -> None:
    names = {each.id: f"{each.name} ({each.id})" for each in runs}
    ids = list(names)
    picked = controls.selectbox(
        "Run", ids, index=ids.index(run.id), format_func=names.__getitem__, key=f"pick {run.id}"
    )
    if picked != run.id:
        open_run(str(picked))


# What the run was, and whether it may be believed


def _header(study: Study) -> None:
    report = study.report
    run = report["run"]
    st.title(words(run["name"]), anchor=False)
    with st.container(horizontal=True, gap="small"):
        _badge(run["status"], "Run")
        _badge(report["validity"]["verdict"], "Run")
        if study.judgement is not None and study.verdict is not None:
            _badge(study.verdict, f"SLA {study.judgement['sla']}:")
        if run["simulated"]:
            st.badge("simulated", icon=":material/science:", color="violet")
    model = f" on {words(run['model'])}" if run["model"] else ""
    started = run["started_at"][:19].replace("T", " ")
    st.caption(
        f"{words(run['scenario'])}{model} at {words(run['target'])} · {words(load(report))} ·"
        f" started {words(started)} UTC · {words(run['id'])}"
    )
    for sentence in report["validity"]["reasons"]:
        st.warning(words(sentence), icon=":material/warning:")
    if report["warnings"]:
        _sentences(report["warnings"])


def _badge(word: str, what: str) -> None:
    badge = BADGES[word]
    st.badge(f"{words(what)} {badge.word}", icon=badge.icon, color=badge.colour)  # type: ignore[arg-type]  # one of its colours


def _sentences(sentences: Sequence[str]) -> None:
    lines = "\n".join(f"- {words(sentence)}" for sentence in sentences)
    with st.container(border=True):
        st.markdown(f"**What to know when reading this**\n\n{lines}")


# Figures


def _tiles(report: Report) -> None:
    """The figures that are looked for first, each with its n."""
    latency, throughput = report["latency"], report["throughput"]
    window, cost = report["window"], report["cost"]
    ttft = latency[resolve("ttft", report["load"]["loop"]).latency]
    e2e = latency[resolve("e2e", report["load"]["loop"]).latency]
    answered = window["ok"] + window["failed"] + window["unfinished"]
    tiles = [
        ("TTFT p95", quantity(ttft["p95"], Kind.SECONDS), ttft["n"]),
        ("ITL p95", quantity(latency["itl_s"]["p95"], Kind.SECONDS), latency["itl_s"]["n"]),
        ("E2E p95", quantity(e2e["p95"], Kind.SECONDS), e2e["n"]),
        ("Error ratio", quantity(report["errors"]["ratio"], Kind.RATIO), answered),
        ("Output tokens", quantity(throughput["output_tokens_per_s"], Kind.TOKENS_PER_S), None),
        ("Requests", quantity(throughput["requests_per_s"], Kind.REQUESTS_PER_S), None),
        ("USD per request", _usd(cost["usd_per_request"]), None),
        ("USD per million output tokens", _usd(cost["usd_per_1m_output_tokens"]), None),
    ]
    for row in (tiles[:4], tiles[4:]):
        for column, (label, value, n) in zip(st.columns(len(row)), row, strict=True):
            below = None if n is None else f"n = {count(n)}"
            column.metric(label, value, below, delta_color="off", delta_arrow="off", border=True)


def _usd(value: float | str | None) -> str:
    """Without the unit, which stands in the label: small amounts have many digits."""
    return quantity(value, Kind.USD).removesuffix(" usd")


def _objectives(study: Study) -> None:
    st.subheader("Objectives", anchor=False)
    if study.unjudged is not None:
        st.info(words(study.unjudged), icon=":material/gavel:")
        return
    judgement = study.judgement
    if judgement is None:
        st.caption("Not judged: pick an SLA file at the left, or start with --sla FILE.")
        return
    confidence = f"{number(judgement['confidence']):.4%}".rstrip("0%").rstrip(".")
    rows = [_objective(row, f"{confidence} % interval") for row in judgement["objectives"]]
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt="SLA objectives")
    for note in judgement["notes"]:
        st.caption(words(note))


def _objective(row: Report, ends: str) -> dict[str, str]:
    kind = Kind(row["unit"])
    badge = BADGES[row["verdict"]]
    name = f"{row['metric']} {row['statistic'] or ''}".strip()
    return {
        "Objective": f"**{words(name)}**",
        "Limit": words(row["limit"]),
        "Measured": words(quantity(row["value"], kind)),
        ends: words(interval(row["interval"], kind)),
        "n": words(count(row["n"])),
        "n eff": words(count(row["n_eff"])),
        "Verdict": f":{badge.colour}[{badge.text}]",
        "Why": words(row["reason"] or ""),
    }


def _percentiles(report: Report) -> None:
    st.subheader("Latencies", anchor=False)
    rows = [
        row
        for key, name in LATENCY_NAMES.items()
        if report["latency"][key]["n"]
        for row in _latency_rows(name, report["latency"][key])
    ]
    if not rows:
        st.caption("No latency was observed.")
        return
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt="Latencies")
    st.caption(
        "As felt: a failed request is infinitely slow, one still open at least as slow as the time"
        " it had. Below each percentile is its 95 % interval; n eff is how many independent values"
        " the n are worth. Mean, highest and served alone are over successes."
    )


def _latency_rows(name: str, latency: Report) -> Iterator[dict[str, str]]:
    """A latency as felt, and where some requests did not succeed, that of those which did."""
    felt = {
        p: f"{_seconds(latency[p])}  \n:small[:gray[{words(interval(ends, Kind.SECONDS))}]]"
        for p, ends in latency["ci95"].items()
    }
    yield {
        "Latency": f"**{words(name)}**",
        "n": words(count(latency["n"])),
        "n eff": words(count(latency["n_eff"])),
        **felt,
        "mean": _seconds(latency["mean"]),
        "highest": _seconds(latency["max"]),
    }
    if latency["mean"] is not None and (latency["failed"] or latency["unfinished"]):
        served = {p: f":gray[{_seconds(value)}]" for p, value in latency["served"].items()}
        blank = dict.fromkeys(("n", "n eff"), "")
        yield {"Latency": ":gray[served alone]", **blank, **served, "mean": "", "highest": ""}


def _seconds(value: float | str | None) -> str:
    return words(quantity(value, Kind.SECONDS))


# Charts


def _charts(charts: Sequence[Chart]) -> None:
    """Two in a row; a last one alone has the whole width."""
    st.subheader("Over time", anchor=False)
    for first in range(0, len(charts), 2):
        row = charts[first : first + 2]
        for column, chart in zip(st.columns(len(row), gap="medium"), row, strict=True):
            with column:
                _chart(chart)


def _chart(chart: Chart) -> None:
    st.markdown(f"**{words(chart.title)}**")
    if chart.figure is None:
        st.container(border=True).caption(words(chart.sentence))
        return
    st.plotly_chart(
        chart.figure,
        width="stretch",
        key=f"chart-{chart.key}",
        config=_TOOLS,
        alt=chart.sentence,
    )
    st.caption(words(chart.sentence))
    with st.expander("The figures behind it"):
        st.dataframe(
            chart.table, hide_index=True, placeholder=DASH, height=240, key=f"table-{chart.key}"
        )


# The rest


def _facts(report: Report) -> None:
    st.subheader("The run", anchor=False)
    left, right = st.columns(2, gap="medium")
    with left:
        _fact_table(run_facts(report))
    with right:
        _fact_table(figure_facts(report))


def _fact_table(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values; a value without a name goes on from the one above."""
    rows = [(f"**{words(name)}**" if name else "", words(typeset(value))) for name, value in facts]
    st.table(pd.DataFrame(rows), hide_index=True, hide_header=True, border="horizontal")
