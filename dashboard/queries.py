"""What the pages ask of the store: the list of runs, and all that is known of one.

Plain functions of a store, without Streamlit. A run is read from its rows once and gives the
report of ``streamgauge report`` and its series; every figure on a page comes from these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from collectors.figures import READINGS
from collectors.runs import Run
from collectors.store import Store
from dashboard.series import Series, over_time
from dashboard.settings import Agreement
from dashboard.wording import BADGES, load, number
from sla import JudgeError, build_report, judge, load_sla
from sla.metrics import resolve
from sla.report import judged_report

Version = tuple[str | float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that the pages show of one run.

    Attributes:
        report: schema ``streamgauge.report/1``, with ``judgement`` where it was judged.
        series: the run over time.
        unjudged: why there is no judgement although an SLA was asked for; ``None`` otherwise.
    """

    report: Mapping[str, Any]
    series: Series
    unjudged: str | None = None

    @property
    def judgement(self) -> Mapping[str, Any] | None:
        """The report's; ``None`` where the run was not judged."""
        found: Mapping[str, Any] | None = self.report.get("judgement")
        return found

    @property
    def verdict(self) -> str | None:
        """``held``, ``broken``, ``inconclusive`` or ``invalid``."""
        return None if self.judgement is None else str(self.judgement["verdict"])


def study(store: Store, run: Run, sla_file: Path | None) -> Study:
    """Read ``run`` from its rows, and hold it to the SLA file where there is one.

    Raises:
        SlaFileError: the file is wrong.
        StoreError: the database cannot be read.
    """
    sla = load_sla(sla_file) if sla_file is not None else None
    table, samples = store.table(run.id), store.samples(run.id, READINGS)
    series = over_time(run, table)
    if sla is None:
        return Study(report=build_report(run, table, samples), series=series)
    try:
        judgement = judge(sla, run, table, samples)
    except JudgeError as error:
        report = build_report(run, table, samples)
        return Study(report=report, series=series, unjudged=str(error))
    return Study(report=judged_report(run, judgement), series=series)


def version_of(store: Store, run: Run) -> Version:
    """Changes whenever what is shown of the run may have changed (a heartbeat is not shown)."""
    return (
        run.id,
        store.count(run.id),
        str(run.status),
        run.name,
        run.stopped_at_s,
        run.ended_at_s,
        len(run.notes),
        len(run.client),
    )


def version_of_file(file: Path | None) -> Version | None:
    """Changes whenever the file does; ``None`` without one."""
    if file is None:
        return None
    try:
        stat = file.stat()
    except OSError:
        return (str(file), None, None)
    return (str(file), stat.st_mtime, stat.st_size)


# The list of runs

COLUMNS = (
    "SLA",
    "name",
    "run is",
    "status",
    "started (UTC)",
    "load",
    "n",
    "TTFT p95 (ms)",
    "TTFT n",
    "ITL p95 (ms)",
    "ITL n",
    "output tokens/s",
    "errors (%)",
    "USD per request",
    "scenario",
    "model",
    "target",
    "labels",
    "id",
)
"""Of the table of runs. A latency stands beside its own n."""


def runs_frame(studies: Sequence[Study]) -> pd.DataFrame:
    """The table of runs, a run a row; figures stay numbers, so that the page can sort by them."""
    return pd.DataFrame([_row(each) for each in studies], columns=list(COLUMNS))


def _row(found: Study) -> dict[str, Any]:
    report = found.report
    run, loop = report["run"], report["load"]["loop"]
    ttft = report["latency"][resolve("ttft", loop).latency]
    itl = report["latency"]["itl_s"]
    return {
        "SLA": _chip(found.verdict),
        "name": run["name"],
        "started (UTC)": pd.Timestamp(run["started_at"]).tz_localize(None),
        "scenario": run["scenario"],
        "model": run["model"],
        "load": load(report),
        "n": report["window"]["due"],
        "TTFT p95 (ms)": _scaled(ttft["p95"], 1e3),
        "TTFT n": ttft["n"] or None,
        "ITL p95 (ms)": _scaled(itl["p95"], 1e3),
        "ITL n": itl["n"] or None,
        "output tokens/s": number(report["throughput"]["output_tokens_per_s"]),
        "errors (%)": _scaled(report["errors"]["ratio"], 100),
        "USD per request": number(report["cost"]["usd_per_request"]),
        "run is": _chip(report["validity"]["verdict"]),
        "status": _chip(run["status"]),
        "target": run["target"],
        "labels": " ".join(labels_of(run["labels"])) or None,
        "id": run["id"],
    }


def _chip(word: str | None) -> list[str] | None:
    """A badge as a page's chip, which is drawn from a list; ``None`` is drawn as a dash."""
    return None if word is None else [BADGES[word].text]


def _scaled(value: float | str | None, factor: float) -> float | None:
    found = number(value)
    return None if found is None else found * factor


def labels_of(labels: Mapping[str, str]) -> list[str]:
    """Labels as ``key=value``."""
    return [f"{key}={value}" for key, value in labels.items()]


def choices_of(runs: Iterable[Run]) -> tuple[list[str], list[str]]:
    """Scenarios and labels that occur, in order of the alphabet."""
    runs = list(runs)
    labels = {label for run in runs for label in labels_of(run.labels)}
    return sorted({run.scenario for run in runs}), sorted(labels)


def matching(
    runs: Iterable[Run],
    *,
    text: str = "",
    scenarios: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> list[Run]:
    """The runs with every word of ``text`` and every label, of one of the scenarios.

    An empty filter lets everything through.
    """
    wanted = text.casefold().split()
    return [
        run
        for run in runs
        if all(word in _searched(run) for word in wanted)
        and (not scenarios or run.scenario in scenarios)
        and set(labels) <= set(labels_of(run.labels))
    ]


def _searched(run: Run) -> str:
    parts = [run.id, run.name, run.scenario, run.target, run.model or "", *labels_of(run.labels)]
    return " ".join(parts).casefold()


def agreement_named(agreements: Sequence[Agreement], label: str | None) -> Agreement:
    """The agreement of that label; the first, which is the default, where there is none such."""
    return next((each for each in agreements if each.label == label), agreements[0])
