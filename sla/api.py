"""The one call for others: a stored run's report, and its verdict where there is an SLA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectors.figures import READINGS
from collectors.runs import Run
from sla.judge import Judgement, judge
from sla.report import build_report, judged_report
from sla.spec import load_sla

if TYPE_CHECKING:  # the store brings SQLAlchemy, which only those who have one need
    from collectors.store import Store


def judge_run(
    store: Store, run: Run, sla_path: str | Path | None
) -> tuple[dict[str, Any], Judgement | None]:
    """The report of ``run``, and its judgement where ``sla_path`` is given.

    Raises:
        SlaFileError: the file is wrong.
        JudgeError: there is an SLA and the run is still going, or empty.
    """
    sla = load_sla(sla_path) if sla_path is not None else None  # before the database is read
    table, samples = store.table(run.id), store.samples(run.id, READINGS)
    if sla is None:
        return build_report(run, table, samples), None
    judgement = judge(sla, run, table, samples)
    return judged_report(run, judgement), judgement
