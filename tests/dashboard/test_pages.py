"""The pages' logic, run as Streamlit runs them but without a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from collectors.runs import RunStatus
from collectors.store import Store
from sla import judge_run
from tests.collectors.revision_0001 import make_0001
from tests.dashboard.recorded import gpu_samples, make_run, requests_of, write_run

APP = str(Path(dashboard.__file__).with_name("app.py"))
SLA = "sla: patience\nobjectives:\n  ttft: [p50 < 10 s, p95 < 10 s]\n  error_ratio: < 60 %\n"


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SLA and a database that the pages are pointed at; the latter still to be made."""
    (tmp_path / "patience.sla.yaml").write_text(SLA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMGAUGE_DB", str(tmp_path / "runs.db"))
    monkeypatch.setenv("STREAMGAUGE_SLA", str(tmp_path / "patience.sla.yaml"))
    return tmp_path / "runs.db"


def runs_page() -> AppTest:
    """The first page."""
    return AppTest.from_file(APP, default_timeout=30).run()


def run_page(run: str = "last") -> AppTest:
    """The page of one run."""

    def page() -> None:
        import streamlit as st  # noqa: PLC0415  # AppTest takes the function's source alone

        from collectors.store import Store  # noqa: PLC0415
        from dashboard import run_page  # noqa: PLC0415
        from dashboard.settings import Settings  # noqa: PLC0415

        settings = Settings.from_environment()

        def open_run(run_id: str) -> None:
            st.query_params["run"] = run_id
            st.rerun()

        with Store.open(settings.db, read_only=True) as store:
            run_page.show(store, settings.db, settings.agreements()[0], st.container(), open_run)

    test = AppTest.from_function(page, default_timeout=30)
    test.query_params["run"] = run
    return test.run()


def text_of(page: AppTest) -> str:
    """All prose of a page."""
    parts = [*page.title, *page.markdown, *page.caption, *page.info, *page.warning, *page.error]
    return "\n".join(str(part.value) for part in parts)


def tiles(page: AppTest) -> dict[str, tuple[str, str]]:
    """The metrics of a page with what stands below them."""
    return {metric.label: (metric.value, metric.delta) for metric in page.metric}


def test_a_missing_database_is_one_sentence(db: Path) -> None:
    """No traceback, no empty file left behind."""
    page = runs_page()
    assert not page.exception
    assert [error.value.count("There is no database at") for error in page.error] == [1]
    assert not db.exists()


def test_a_file_that_is_no_database_is_one_sentence(db: Path) -> None:
    """Whatever lies there."""
    db.write_text("hello\n" * 1000)
    page = runs_page()
    assert not page.exception
    assert len(page.error) == 1
    assert "is not an SQLite database" in page.error[0].value


def test_a_damaged_database_is_one_sentence(db: Path) -> None:
    """Even where its beginning is whole."""
    write_run(db, make_run(), requests_of(make_run()))
    data = bytearray(db.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    db.write_bytes(data)
    page = runs_page()
    assert not page.exception
    assert len(page.error) == 1


def test_a_database_of_an_older_streamgauge_is_shown(db: Path) -> None:
    """It is brought up to date on the way."""
    make_0001(str(db))
    page = runs_page()
    assert not page.exception
    assert page.dataframe[0].value["name"].tolist() == ["cut", "evening"]


def test_an_empty_database_says_how_to_begin(db: Path) -> None:
    """No table without rows."""
    Store.open(str(db), create=True).close()
    page = runs_page()
    assert not page.exception
    assert "streamgauge demo" in page.info[0].value
    assert not page.dataframe


def test_runs_stand_newest_first_with_their_verdict(db: Path) -> None:
    """Held to the SLA given with --sla."""
    for number in range(3):
        run = make_run(f"0run00000000000{number}", began_wall_s=1e9 + number, name=f"n{number}")
        write_run(db, run, requests_of(run, seed=number))
    frame = runs_page().dataframe[0].value
    assert frame["name"].tolist() == ["n2", "n1", "n0"]
    assert [chip[0].split()[1] for chip in frame["SLA"]] == ["held"] * 3


def test_filters_narrow_the_table(db: Path) -> None:
    """By words, scenario and label; none left is said."""
    for number, scenario in enumerate(("chat", "rag")):
        run = make_run(f"0run00000000000{number}", scenario=scenario, labels={"branch": scenario})
        write_run(db, run, requests_of(run)[:50])
    page = runs_page()
    assert len(page.dataframe[0].value) == 2
    page.multiselect(key="scenario").select("rag").run()
    assert page.dataframe[0].value["scenario"].tolist() == ["rag"]
    page.multiselect(key="label").select("branch=chat").run()
    assert not page.dataframe
    assert "No run fits" in page.info[0].value


def test_without_an_sla_nothing_is_judged(db: Path) -> None:
    """A dash, not a pass."""
    write_run(db, make_run(), requests_of(make_run()))
    page = runs_page()
    page.selectbox(key="sla").select("none").run()
    assert page.dataframe[0].value["SLA"].isna().all()


def test_a_wrong_sla_file_is_said_once_and_the_runs_still_show(db: Path) -> None:
    """The sentence names file and line."""
    (db.parent / "patience.sla.yaml").write_text("objectives:\n  ttft: soon\n")
    for number in range(2):
        run = make_run(f"0run00000000000{number}")
        write_run(db, run, requests_of(run)[:50])
    page = runs_page()
    assert not page.exception
    assert len(page.warning) == 1
    assert len(page.dataframe[0].value) == 2


def test_many_runs_are_not_measured_at_once(db: Path) -> None:
    """The newest 50, and a switch for the others."""
    for number in range(53):
        write_run(db, make_run(f"0run0000000000{number:02}", began_wall_s=1e9 + number))
    page = runs_page()
    assert len(page.dataframe[0].value) == 50
    page.toggle(key="all").set_value(True).run()
    assert len(page.dataframe[0].value) == 53


def test_the_page_of_a_run_shows_the_reports_figures(db: Path) -> None:
    """Each latency with its n, each objective with its verdict."""
    run = make_run(gpu_hour_price_usd=2.0, gpus=1)
    write_run(db, run, requests_of(run), gpu_samples(run))
    page = run_page(run.id)
    assert not page.exception
    with Store.open(str(db), read_only=True) as store:
        report, _ = judge_run(store, run, db.parent / "patience.sla.yaml")
    ttft = report["latency"]["ttft_s"]
    shown = tiles(page)
    assert shown["TTFT p95"] == (f"{ttft['p95'] * 1000:.0f} ms", f"n = {ttft['n']:,}")
    assert shown["USD per request"][0].startswith("0.0000")
    objectives, latencies = page.table[0].value, page.table[1].value
    assert len(objectives) == 3
    assert objectives["Verdict"].str.contains("held").all()
    assert latencies["Latency"].iloc[0] == "**TTFT from sent**"
    assert "GPU\\-0001" in page.table[3].value.to_string()


def test_a_run_with_only_failures_has_no_latency_of_zero(db: Path) -> None:
    """Infinitely slow where it was felt, a dash where nothing was seen."""
    write_run(db, make_run(), requests_of(make_run(), failing=1))
    page = run_page()
    assert not page.exception
    shown = tiles(page)
    assert shown["TTFT p95"][0] == "\N{INFINITY}"
    assert shown["ITL p95"][0] == shown["Output tokens"][0] == "\N{EN DASH}"
    assert shown["Error ratio"][0] == "100 %"


def test_a_run_without_usage_has_no_token_rate(db: Path) -> None:
    """Unknown is a dash, and the chart says why it is not there."""
    write_run(db, make_run(), requests_of(make_run(), usage=False))
    page = run_page()
    assert not page.exception
    assert tiles(page)["Output tokens"][0] == "\N{EN DASH}"
    assert "No answer told its output tokens" in text_of(page)


@pytest.mark.parametrize(
    ("status", "n", "said"),
    [
        (RunStatus.COMPLETE, 0, "nothing to judge"),
        (RunStatus.RUNNING, 100, "still going"),
        (RunStatus.RUNNING, 0, "still going"),
        (RunStatus.INTERRUPTED, 100, "was interrupted"),
        (RunStatus.COMPLETE, 1, "TTFT over time"),
    ],
)
def test_unfinished_runs_have_a_page(db: Path, status: RunStatus, n: int, said: str) -> None:
    """Empty, still going, interrupted or tiny: figures as far as there are any."""
    is_over = {"stopped_at_s": 30.0, "ended_at_s": 31.0}
    is_going = {"stopped_at_s": None, "ended_at_s": None, "heartbeat_wall_s": time.time()}
    run = make_run(status=status, **is_going if status is RunStatus.RUNNING else is_over)
    write_run(db, run, requests_of(make_run())[:n])
    page = run_page()
    assert not page.exception
    assert said in text_of(page)
    assert len(page.metric) == 8


def test_names_from_elsewhere_are_words_not_markup(db: Path) -> None:
    """A target, a label or a note cannot draw on the page."""
    run = make_run(
        name="**n** <b>x</b> $y$ :smile:",
        target="http://h/[link](javascript:x)",
        model="<script>",
        labels={"a|b": "`c`"},
        notes=["# note :red[x]"],
    )
    write_run(db, run, requests_of(run)[:50])
    page = run_page()
    text = text_of(page)
    for markup in ("**n**", "<b>", "$y$", ":smile:", "[link]", "<script>", ":red[x]", "\n# note"):
        assert markup not in text
    assert "\\*\\*n\\*\\*" in page.title[0].value


def test_picking_another_run_changes_the_address(db: Path) -> None:
    """So that the link reproduces the view."""
    for number in range(2):
        run = make_run(f"0run00000000000{number}", began_wall_s=1e9 + number, name=f"n{number}")
        write_run(db, run, requests_of(run)[:50])
    page = run_page()
    assert page.title[0].value == "n1"
    page.selectbox[0].select("0run000000000000").run()
    assert page.title[0].value == "n0"
    assert page.query_params["run"] == "0run000000000000"
