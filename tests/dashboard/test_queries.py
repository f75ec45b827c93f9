"""What the pages ask of the store, against real SQLite files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from collectors.errors import StoreError
from collectors.runs import Run, RunStatus
from collectors.store import Store
from dashboard.queries import (
    COLUMNS,
    Study,
    agreement_named,
    choices_of,
    matching,
    runs_frame,
    study,
    version_of,
    version_of_file,
)
from dashboard.settings import BY_SCENARIO, NO_SLA, Agreement, Settings
from sla import SlaFileError, judge_run
from tests.dashboard.recorded import gpu_samples, make_run, requests_of, write_run

SLA = "sla: test\nobjectives:\n  ttft: p95 < 10 s\n"


def study_of(db: Path, run: Run, sla_file: Path | None = None) -> Study:
    """The study of a stored run."""
    with Store.open(str(db), read_only=True) as store:
        return study(store, store.find_run(run.id), sla_file)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """Where a test's runs go."""
    return tmp_path / "runs.db"


@pytest.fixture
def sla_file(tmp_path: Path) -> Path:
    """An SLA that any answer holds."""
    path = tmp_path / "any.sla.yaml"
    path.write_text(SLA)
    return path


def test_a_study_is_what_the_report_says(db: Path, sla_file: Path) -> None:
    """Page, report and check read the same figures."""
    run = write_run(db, make_run(), requests_of(make_run()))
    found = study_of(db, run, sla_file)
    with Store.open(str(db), read_only=True) as store:
        report, judgement = judge_run(store, run, sla_file)
    assert found.report == report
    assert judgement is not None
    assert found.verdict == judgement.verdict == "held"


def test_without_an_sla_there_is_no_verdict(db: Path) -> None:
    """Not judged is absent."""
    run = write_run(db, make_run(), requests_of(make_run()))
    found = study_of(db, run)
    assert (found.verdict, found.judgement, found.unjudged) == (None, None, None)


@pytest.mark.parametrize(
    ("status", "n", "reason"),
    [(RunStatus.RUNNING, 50, "still going"), (RunStatus.COMPLETE, 0, "nothing to judge")],
)
def test_what_cannot_be_judged_says_why(
    db: Path, sla_file: Path, status: RunStatus, n: int, reason: str
) -> None:
    """A run still going, or an empty one, has figures and a sentence instead of a verdict."""
    run = make_run(status=status, heartbeat_wall_s=time.time())
    write_run(db, run, requests_of(make_run())[:n])
    found = study_of(db, run, sla_file)
    assert found.verdict is None
    assert found.unjudged is not None
    assert reason in found.unjudged


def test_a_wrong_sla_file_is_said_before_the_rows_are_read(db: Path, tmp_path: Path) -> None:
    """One sentence, from the reader of SLA files."""
    run = write_run(db, make_run())
    wrong = tmp_path / "wrong.sla.yaml"
    wrong.write_text("objectives:\n  nonsense: < 1\n")
    with pytest.raises(SlaFileError, match="nonsense"):
        study_of(db, run, wrong)


def test_the_table_has_numbers_and_keeps_what_is_absent(db: Path) -> None:
    """Latencies stand beside their n; unknown tokens and cost stay absent, not zero."""
    run = write_run(db, make_run(), requests_of(make_run(), usage=False))
    found = study_of(db, run)
    frame = runs_frame([found])
    assert list(frame) == list(COLUMNS)
    row = frame.iloc[0]
    latency = found.report["latency"]
    assert row["TTFT p95 (ms)"] == pytest.approx(latency["ttft_s"]["p95"] * 1000)
    assert row["TTFT n"] == latency["ttft_s"]["n"]
    assert row["ITL p95 (ms)"] == pytest.approx(latency["itl_s"]["p95"] * 1000)
    assert row["ITL n"] == latency["itl_s"]["n"] > row["TTFT n"]
    assert frame[["output tokens/s", "USD per request", "SLA", "labels"]].isna().all(axis=None)


def test_the_table_shows_cost_labels_and_verdict(db: Path, sla_file: Path) -> None:
    """Verdicts are words with a sign."""
    run = make_run(gpu_hour_price_usd=3.6, gpus=1, labels={"commit": "4f2a", "branch": "main"})
    write_run(db, run, requests_of(run), gpu_samples(run))
    found = study_of(db, run, sla_file)
    row = runs_frame([found]).iloc[0]
    assert row["SLA"] == ["\N{HEAVY CHECK MARK} held"]
    assert row["labels"] == "branch=main commit=4f2a" or row["labels"] == "commit=4f2a branch=main"
    assert row["USD per request"] == pytest.approx(found.report["cost"]["usd_per_request"])
    assert row["load"] == "16 users"
    assert found.report["gpu"][0]["uuid"] == "GPU-0001"


def test_only_failures_are_infinitely_slow(db: Path) -> None:
    """Not fast, and not absent."""
    run = write_run(db, make_run(), requests_of(make_run(), failing=1))
    row = runs_frame([study_of(db, run)]).iloc[0]
    assert row["TTFT p95 (ms)"] == float("inf")
    assert row["errors (%)"] == 100
    assert row[["ITL p95 (ms)", "ITL n"]].isna().all()


def test_a_table_without_runs_has_its_columns() -> None:
    """Empty, but the same table."""
    assert list(runs_frame([])) == list(COLUMNS)


def test_a_version_changes_with_what_is_shown_and_not_with_heartbeats(db: Path) -> None:
    """A rerun of a page reads rows anew only where there are new ones."""
    run = make_run(status=RunStatus.RUNNING, heartbeat_wall_s=1e12)
    write_run(db, run, requests_of(make_run())[:10])
    with Store.open(str(db)) as store:
        before = version_of(store, store.find_run(run.id))
        store.update_run(run.id, heartbeat_wall_s=1e12 + 1)
        assert version_of(store, store.find_run(run.id)) == before
        store.update_run(run.id, status=RunStatus.COMPLETE)
        assert version_of(store, store.find_run(run.id)) != before


def test_the_version_of_a_file_changes_with_it(tmp_path: Path) -> None:
    """And a file that is gone has one too."""
    file = tmp_path / "a.sla.yaml"
    assert version_of_file(None) is None
    gone = version_of_file(file)
    file.write_text(SLA)
    os.utime(file, (1, 1))
    first = version_of_file(file)
    os.utime(file, (2, 2))
    assert len({gone, first, version_of_file(file)}) == 3


RUNS = [
    make_run("a1", name="baseline", labels={"branch": "main"}),
    make_run("b2", name="candidate", labels={"branch": "pr", "gpu": "h200"}, model="Llama"),
    make_run("c3", name="other", scenario="rag", target="http://staging:8000"),
]


@pytest.mark.parametrize(
    ("text", "scenarios", "labels", "found"),
    [
        ("", [], [], ["a1", "b2", "c3"]),
        ("BASE", [], [], ["a1"]),
        ("staging rag", [], [], ["c3"]),
        ("branch=pr", [], [], ["b2"]),
        ("llama", [], [], ["b2"]),
        ("", ["chat"], [], ["a1", "b2"]),
        ("", [], ["branch=pr", "gpu=h200"], ["b2"]),
        ("", ["rag"], ["branch=pr"], []),
        ("nothing like it", [], [], []),
    ],
)
def test_filters(text: str, scenarios: list[str], labels: list[str], found: list[str]) -> None:
    """Every word, one of the scenarios, each label; empty filters let everything through."""
    shown = matching(RUNS, text=text, scenarios=scenarios, labels=labels)
    assert [run.id for run in shown] == found


def test_choices_are_those_that_occur() -> None:
    """Scenarios and labels, sorted."""
    assert choices_of(RUNS) == (["chat", "rag"], ["branch=main", "branch=pr", "gpu=h200"])


def test_agreements_come_from_the_option_and_the_working_folder(tmp_path: Path) -> None:
    """A folder judges each scenario by its own file; an unknown name is the default."""
    slas = tmp_path / "slas"
    slas.mkdir()
    (slas / "chat.sla.yaml").write_text(SLA)
    (tmp_path / "mine.sla.yaml").write_text(SLA)
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    found = Settings(db="x", sla=slas, folder=tmp_path).agreements()
    assert [agreement.label for agreement in found] == [BY_SCENARIO, NO_SLA, "mine.sla.yaml"]
    own = agreement_named(found, None)
    assert own.label == BY_SCENARIO
    assert agreement_named(found, "../../etc/passwd") is own
    assert own.file_for(RUNS[0]) == slas / "chat.sla.yaml"
    assert own.file_for(RUNS[2]) is None
    assert agreement_named(found, "mine.sla.yaml").file_for(RUNS[2]) == tmp_path / "mine.sla.yaml"
    assert agreement_named(found, NO_SLA).file_for(RUNS[0]) is None


def test_a_scenario_given_as_a_path_finds_its_file_and_none_elsewhere(tmp_path: Path) -> None:
    """The scenario's name comes from the database: it names a file in the folder, not a way out."""
    (tmp_path / "mine.sla.yaml").write_text(SLA)
    agreement = Agreement(BY_SCENARIO, tmp_path)
    for scenario in ("load/mine.py", "../mine", "mine"):
        assert agreement.file_for(make_run(scenario=scenario)) == tmp_path / "mine.sla.yaml"


def test_settings_come_from_the_environment() -> None:
    """As the command leaves them for Streamlit's script."""
    found = Settings.from_environment({"STREAMGAUGE_DB": "a.db", "STREAMGAUGE_SLA": "s.yaml"})
    assert (found.db, found.sla) == ("a.db", Path("s.yaml"))
    assert Settings.from_environment({}).agreements()[0].label == NO_SLA


def test_a_broken_database_is_a_store_error(db: Path) -> None:
    """Which the pages show as one sentence."""
    run = write_run(db, make_run(), requests_of(make_run()))
    data = bytearray(db.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    db.write_bytes(data)
    with pytest.raises(StoreError):
        study_of(db, run)
