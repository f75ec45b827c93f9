"""Objectives, verdicts and reports: what a run is held to, and whether it held.

Light to import: numpy and PyYAML, neither a database nor Locust, gevent or Streamlit.
"""

from sla.api import judge_run
from sla.errors import JudgeError, SlaError, SlaFileError
from sla.judge import Judgement, Row, Verdict, judge
from sla.report import build_report
from sla.spec import Sla, load_sla, parse_sla

__all__ = [
    "JudgeError",
    "Judgement",
    "Row",
    "Sla",
    "SlaError",
    "SlaFileError",
    "Verdict",
    "build_report",
    "judge",
    "judge_run",
    "load_sla",
    "parse_sla",
]
