"""The page of all runs: filter, sort, see which held their SLA, open one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from collectors.runs import Run, RunStatus
from collectors.store import Store
from collectors.validity import Standing
from dashboard.cached import remembered_study
from dashboard.queries import Study, choices_of, matching, runs_frame
from dashboard.settings import Agreement
from dashboard.wording import BADGES, DASH, words
from sla import SlaFileError, Verdict

FIRST = 50
"""Runs measured at once; each costs a fraction of a second when it is seen for the first time."""

_MEANINGS = """
- **SLA**: whether the run held what is picked above. **run is**: whether it may be believed.
- **n**: requests due in the measured window.
- **TTFT p95**: time to the first token, from due in an open loop, else from sent; its n are
  requests. **ITL p95**: gap between output events, its n are gaps. Both are as felt: a failed
  request is infinitely slow.
- **errors**: failed among those that succeeded, failed or were still open at the end.
- **USD per request**: by GPU-hours, for each request that succeeded.
"""


def show(
    store: Store,
    db: str,
    agreement: Agreement,
    controls: DeltaGenerator,
    open_run: Callable[[str], None],
) -> None:
    """Lay out the page.

    Args:
        store: with the runs.
        db: what it was opened from.
        agreement: what the runs are held to.
        controls: where to put the filters.
        open_run: goes to the page of the run with that id.
    """
    runs = store.runs()
    if not runs:
        st.info(
            "There is no run in this database yet. Record one with `streamgauge demo`, or with"
            " `streamgauge run chat --host URL`.",
            icon=":material/inbox:",
        )
        return
    found = _filtered(runs, controls)
    if not found:
        st.info("No run fits these filters.", icon=":material/filter_alt_off:")
        return
    shown = _newest(found)
    frame = runs_frame(_studies(store, db, shown, agreement))
    chosen = _table(frame)
    st.caption(
        f"{len(shown):,} of {len(runs):,} runs. Tick a run to open it, click a header to sort."
        f" {DASH} is not observed, or not judged."
    )
    with st.expander("What the columns mean"):
        st.markdown(_MEANINGS)
    if chosen is not None:
        open_run(str(frame["id"].iloc[chosen]))


def _filtered(runs: Sequence[Run], controls: DeltaGenerator) -> list[Run]:
    scenarios, labels = choices_of(runs)
    left, middle, right = controls.columns([2, 1, 1])
    text = left.text_input(
        "Search",
        key="q",
        bind="query-params",
        placeholder="name, id, model, target or label",
        icon=":material/search:",
    )
    picked = middle.multiselect("Scenario", scenarios, key="scenario", bind="query-params")
    borne = right.multiselect(
        "Label",
        labels,
        key="label",
        bind="query-params",
        placeholder="Choose labels" if labels else "No run has labels",
        disabled=not labels,
    )
    return matching(runs, text=text or "", scenarios=picked, labels=borne)


def _newest(runs: list[Run]) -> list[Run]:
    if len(runs) <= FIRST:
        return runs
    wants_all = st.toggle(f"Show all {len(runs):,}, not just the newest {FIRST}", key="all")
    return runs if wants_all else runs[:FIRST]


def _studies(store: Store, db: str, runs: Sequence[Run], agreement: Agreement) -> list[Study]:
    """A study a run; an SLA file that is wrong is said once, and its runs are not judged."""
    wrong: dict[str, None] = {}
    studies = []
    with st.spinner("Reading the runs", show_time=True):
        for run in runs:
            file = agreement.file_for(run)
            try:
                studies.append(remembered_study(store, db, run, file))
            except SlaFileError as error:
                wrong[str(error)] = None
                studies.append(remembered_study(store, db, run, None))
    for sentence in wrong:
        st.warning(words(sentence), icon=":material/rule:")
    return studies


def _table(frame: pd.DataFrame) -> int | None:
    """The table; the number of the row that was ticked, or ``None``.

    Cells are not selectable: Streamlit 1.67 selects one as soon as the table has the focus, so that
    sorting, or the Tab key, would open a run.
    """
    event: Any = st.dataframe(
        frame,
        hide_index=True,
        column_config=_columns(),
        on_select="rerun",
        selection_mode="single-row",
        placeholder=DASH,
        key="runs",
        alt="Runs, newest first, with their main figures",
    )
    rows = event.selection.rows
    return int(rows[0]) if rows else None


def _columns() -> dict[str, Any]:
    """How the columns look; units stand in their headers."""
    columns = st.column_config
    return {
        "SLA": _chips(*Verdict, Standing.INVALID, pinned=True),
        "name": columns.TextColumn(pinned=True),
        "run is": _chips(*Standing),
        "status": _chips(*RunStatus),
        "started (UTC)": columns.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        "n": columns.NumberColumn(format="localized"),
        "TTFT p95 (ms)": columns.NumberColumn(format="%.1f"),
        "TTFT n": columns.NumberColumn(format="localized"),
        "ITL p95 (ms)": columns.NumberColumn(format="%.1f"),
        "ITL n": columns.NumberColumn(format="localized"),
        "output tokens/s": columns.NumberColumn(format="%.0f"),
        "errors (%)": columns.NumberColumn(format="%.2f"),
        "USD per request": columns.NumberColumn(format="%.6f"),
    }


def _chips(*words: str, pinned: bool | None = None) -> Any:
    """A column of badges: coloured words, each with its sign."""
    badges = [BADGES[word] for word in words]
    return st.column_config.MultiselectColumn(
        options=[badge.text for badge in badges],
        color=[badge.colour for badge in badges],
        pinned=pinned,
    )
