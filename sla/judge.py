"""From figures to verdicts.

Rules kept here:

- ``held`` needs the worse end of the two-sided interval inside the limit, ``broken`` the better
  end outside. Anything else is ``inconclusive``, and so is what was not observed.
- "All held" needs no correction. ``broken`` does: with many objectives one breaks by chance, so
  those are Holm's, step by step from the surest.
- An interrupted run can be broken, not held. A degraded one widens every bound of a latency by the
  error it may have. An invalid one proves nothing: exit code 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from collectors.estimates import Estimate, Fact, Interval, Percentile
from collectors.figures import Figures, measure, measure_goodput
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.table import RequestTable
from collectors.validity import Standing, Validity
from sla.errors import JudgeError
from sla.goodput import good_requests
from sla.metrics import Metric, resolve
from sla.spec import Objective, Sla
from sla.units import Kind, format_quantity

EXIT_HELD, EXIT_BROKEN, EXIT_CANNOT_TELL = 0, 1, 3
_HOPELESS = 100_000_000  # requests; beyond it no number is worth naming


class Verdict(StrEnum):
    """How an objective ended."""

    HELD = "held"
    BROKEN = "broken"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One objective, judged.

    Attributes:
        metric: resolved, e.g. ``ttft_from_due``.
        statistic: "p95", "mean", "max", or nothing.
        limit: e.g. "< 500 ms".
        kind: unit of value, interval and bound.
        bound: the limit in base units.
        value: measured; ``None`` where not observed.
        interval: at the file's confidence, widened by the client's possible error.
        n, n_eff: observations, and how many independent ones they are worth.
        reason: why it is inconclusive, or nothing.
    """

    metric: str
    statistic: str
    limit: str
    kind: Kind
    bound: float
    value: float | None
    interval: Interval | None
    n: int
    n_eff: float | None
    verdict: Verdict
    reason: str

    @property
    def objective(self) -> str:
        """E.g. "ttft_from_due p95"."""
        return f"{self.metric} {self.statistic}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A run against an SLA.

    Attributes:
        figures: what was judged.
        notes: what else the reader must know, e.g. limits that were not judged.
    """

    sla: Sla
    rows: Sequence[Row]
    figures: Figures
    notes: Sequence[str]

    @property
    def validity(self) -> Validity:
        """Whether the run may be believed."""
        return self.figures.validity

    @property
    def exit_code(self) -> int:
        """Of ``check``: invalid 3, then broken 1, then inconclusive 3, then 0."""
        verdicts = {row.verdict for row in self.rows}
        if self.validity.verdict is Standing.INVALID:
            return EXIT_CANNOT_TELL
        if Verdict.BROKEN in verdicts:
            return EXIT_BROKEN
        if Verdict.INCONCLUSIVE in verdicts and self.sla.fail_on_inconclusive:
            return EXIT_CANNOT_TELL
        return EXIT_HELD

    @property
    def verdict(self) -> str:
        """In a word: ``invalid``, or the worst of the objectives'."""
        if self.validity.verdict is Standing.INVALID:
            return Standing.INVALID
        verdicts = {row.verdict for row in self.rows}
        order = (Verdict.BROKEN, Verdict.INCONCLUSIVE, Verdict.HELD)
        return next(verdict for verdict in order if verdict in verdicts)


@dataclass(frozen=True, slots=True)
class _Case:
    """One objective with its figure and how far the client's error widens it."""

    objective: Objective
    metric: Metric
    estimate: Estimate | None
    lower: Estimate | None
    upper: Estimate | None
    error_s: float

    def interval(self, confidence: float) -> Interval | None:
        """Both ends, the client's possible error included."""
        if self.estimate is None or self.lower is None or self.upper is None:
            return None
        ends = [e.interval(confidence) for e in (self.estimate, self.lower, self.upper)]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return max(0.0, low - self.error_s), high + self.error_s

    def side(self, confidence: float) -> Verdict:
        """Where the interval lies."""
        interval = self.interval(confidence)
        if interval is None:
            return Verdict.INCONCLUSIVE
        is_within = [self.objective.op.holds(end, self.objective.limit) for end in interval]
        if all(is_within):
            return Verdict.HELD
        return Verdict.INCONCLUSIVE if any(is_within) else Verdict.BROKEN


def judge(sla: Sla, run: Run, table: RequestTable, samples: Sequence[Sample]) -> Judgement:
    """Hold ``run`` to ``sla``.

    Args:
        sla: the agreement.
        run: as stored.
        table: all of its requests.
        samples: its telemetry.

    Raises:
        JudgeError: the run is still going, or has no request in its window.
    """
    if run.status is RunStatus.RUNNING:
        raise JudgeError(f"Run {run.id} ({run.name}) is still going; judge it when it has ended.")
    good = good_requests(table, sla.per_request, run.loop)
    figures = measure(run, table, samples, good=good, tightest_limit_s=tightest_limit_s(sla))
    window = figures.window
    if not window.due:
        raise JudgeError(
            f"Run {run.id} ({run.name}) has no request in its window, from {window.start_s:.1f} s"
            f" to {window.end_s:.1f} s ({len(table)} recorded in all), so there is nothing to"
            " judge."
        )
    error_s = 0.0
    if figures.validity.verdict is not Standing.VALID:
        error_s = figures.validity.possible_error_s or 0.0
    strict, loose = (
        _with_goodput(figures, run, table, sla, slack_s) if error_s else figures
        for slack_s in (-error_s, error_s)
    )
    cases = [_case(o, run, figures, strict, loose, error_s) for o in sla.objectives]
    surely_broken = _holm(cases, sla.confidence)
    rows = [
        _row(case, sla, run, figures, is_sure=i in surely_broken) for i, case in enumerate(cases)
    ]
    return Judgement(sla=sla, rows=rows, figures=figures, notes=list(_notes(sla)))


def tightest_limit_s(sla: Sla) -> float | None:
    """The smallest latency limit, per request or not; ``None`` without any."""
    limits = [
        objective.limit
        for objective in (*sla.objectives, *sla.per_request)
        if objective.kind is Kind.SECONDS and objective.limit > 0
    ]
    return min(limits, default=None)


def _with_goodput(
    figures: Figures, run: Run, table: RequestTable, sla: Sla, slack_s: float
) -> Figures:
    """``figures`` with the goodput that limits wider by ``slack_s`` would give."""
    good = good_requests(table, sla.per_request, run.loop, slack_s=slack_s)
    ratio, per_s = measure_goodput(table, figures.window, good)
    cost = figures.cost
    if cost.per_good_request is not None and per_s is not None:
        cost = replace(cost, per_good_request=replace(cost.per_good_request, rate=per_s))
    return replace(figures, goodput_ratio=ratio, goodput_per_s=per_s, cost=cost)


def _case(
    objective: Objective,
    run: Run,
    figures: Figures,
    strict: Figures,
    loose: Figures,
    error_s: float,
) -> _Case:
    metric = resolve(objective.metric, run.loop)
    estimate = metric.estimate(figures, objective.statistic)
    lower = upper = estimate
    if metric.find is not None:
        lower, upper = (metric.estimate(f, objective.statistic) for f in (strict, loose))
    return _Case(objective, metric, estimate, lower, upper, error_s if metric.latency else 0.0)


def _holm(cases: Sequence[_Case], confidence: float) -> set[int]:
    """Numbers of the cases that are surely broken although so many were judged.

    Holm's step-down: with m objectives the surest must be broken at 1 - alpha / m, the next at
    1 - alpha / (m - 1), and so on until one is not.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    alpha = 1 - confidence
    total = sum(case.estimate is not None for case in cases)

    def strength(case: _Case) -> int:
        """The largest j such that the case is broken at 1 - alpha / j; 0 for none."""
        j = 0
        while j < total and case.side(1 - alpha / (j + 1)) is Verdict.BROKEN:
            j += 1
        return j

    ranked = sorted(((strength(case), i) for i, case in enumerate(cases)), reverse=True)
    sure: set[int] = set()
    for step, (strongest, i) in enumerate(ranked):
        if strongest < max(1, total - step):
            break
        sure.add(i)
    return sure


def _row(case: _Case, sla: Sla, run: Run, figures: Figures, *, is_sure: bool) -> Row:
    objective, estimate = case.objective, case.estimate
    verdict, reason = _verdict(case, sla, run, figures, is_sure=is_sure)
    return Row(
        metric=case.metric.name,
        statistic=objective.statistic_text,
        limit=objective.limit_text,
        kind=objective.kind,
        bound=objective.limit,
        value=estimate.value if estimate else None,
        interval=case.interval(sla.confidence),
        n=estimate.n if estimate else 0,
        n_eff=estimate.n_eff if estimate else None,
        verdict=verdict,
        reason=reason,
    )


def _verdict(
    case: _Case, sla: Sla, run: Run, figures: Figures, *, is_sure: bool
) -> tuple[Verdict, str]:
    if case.estimate is None:
        return Verdict.INCONCLUSIVE, f"not observed: {case.metric.absent}"
    side = case.side(sla.confidence)
    if side is Verdict.BROKEN and not is_sure:
        reason = f"beyond the limit, but not surely with {len(sla.objectives)} objectives at once"
        return Verdict.INCONCLUSIVE, reason
    if side is Verdict.HELD and run.status is RunStatus.INTERRUPTED:
        return Verdict.INCONCLUSIVE, "the run was interrupted: it can be broken, not held"
    if side is Verdict.INCONCLUSIVE:
        return side, _why_not(case, case.estimate, sla, figures)
    return side, ""


def _why_not(case: _Case, estimate: Estimate, sla: Sla, figures: Figures) -> str:
    """Why the interval reaches over the limit, and what would settle it."""
    op, limit = case.objective.op, case.objective.limit
    if case.error_s and not isinstance(estimate, Fact):
        exact = replace(case, error_s=0.0)
        if exact.side(sla.confidence) is not Verdict.INCONCLUSIVE:
            error = format_quantity(case.error_s, Kind.SECONDS)
            return f"the client's possible error of {error} reaches over the limit"
    if isinstance(estimate, Percentile):
        ends = (estimate.at_least, estimate.value)
        if op.holds(ends[0], limit) is not op.holds(ends[1], limit):
            waiting = estimate.sample.unfinished
            return f"still open at the end: {waiting} of {estimate.n}; a longer drain would tell"
    return _how_many(estimate.settles_at(limit, sla.confidence), figures.window.due)


def _how_many(settles_at: float | None, had: int) -> str:
    if settles_at is None or not math.isfinite(settles_at) or settles_at > _HOPELESS:
        return "too close to the limit to be told by more requests"
    # The estimate is rough; less than what was not enough would be nonsense.
    needed = _round_up(max(settles_at, 1.2 * had))
    return f"too few requests ({had:,}); about {needed:,} would settle it"


def _round_up(number: float) -> int:
    """To two significant digits, upward."""
    step: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step


def _notes(sla: Sla) -> list[str]:
    if not sla.regression:
        return []
    return ["The regression limits were not judged: they need a baseline."]
