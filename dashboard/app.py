"""The script that Streamlit runs for every page: settings, navigation, and a net for errors."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from collectors.store import Store
from dashboard import run_page, runs_page
from dashboard.queries import agreement_named
from dashboard.settings import Settings
from dashboard.wording import words

ICON = str(Path(__file__).with_name("gauge.svg"))
USER_CAN_ACT = 2


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="Streamgauge", page_icon=ICON, layout="wide")
    st.logo(ICON, size="large")
    settings = Settings.from_environment()

    def runs() -> None:
        with Store.open(settings.db, read_only=True) as store:
            runs_page.show(store, settings.db, agreement, controls, open_run)

    def one_run() -> None:
        with Store.open(settings.db, read_only=True) as store:
            run_page.show(store, settings.db, agreement, controls, open_run)

    def open_run(run_id: str) -> None:
        st.switch_page(run, query_params={"run": run_id})

    run = st.Page(one_run, title="One run", icon=":material/monitoring:", url_path="run")
    page = st.navigation(
        [st.Page(runs, title="Runs", icon=":material/list:", url_path="runs", default=True), run],
        position="top",
    )
    # Drawn here and not by the pages, so that what is picked outlives a change of page.
    controls, right = st.columns([4, 1])
    agreements = settings.agreements()
    label = right.selectbox(
        "Hold runs to",
        [agreement.label for agreement in agreements],
        key="sla",
        bind="query-params",
        help="SLA files: those given with --sla, and those in the working folder",
    )
    agreement = agreement_named(agreements, label)
    try:
        page.run()
    except Exception as error:
        if getattr(error, "exit_code", None) != USER_CAN_ACT:
            raise
        st.error(words(error), icon=":material/error:")


main()
