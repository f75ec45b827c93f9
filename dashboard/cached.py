"""Studies remembered across reruns and sessions, one for each state of a run and of an SLA file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from collectors.runs import Run
from collectors.store import Store
from dashboard.queries import Study, Version, study, version_of, version_of_file

MOST_STUDIES = 1000  # some 50 kB each


def remembered_study(store: Store, db: str, run: Run, sla_file: Path | None) -> Study:
    """As :func:`dashboard.queries.study`, from the rows only where something changed."""
    return _study(db, version_of(store, run), version_of_file(sla_file), store, run, sla_file)


@st.cache_data(max_entries=MOST_STUDIES, show_spinner=False)
def _study(
    db: str,  # noqa: ARG001  # these three are the key
    run_version: Version,  # noqa: ARG001
    sla_version: Version | None,  # noqa: ARG001
    _store: Store,
    _run: Run,
    _sla_file: Path | None,
) -> Study:
    return study(_store, _run, _sla_file)
