"""What an objective can be about: names, units, statistics, and where the figure is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from collectors.estimates import Estimate
from collectors.figures import Figures
from sla.units import Kind

MEAN, MAX = "mean", "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Something an objective can limit.

    Attributes:
        name: as SLA files say it.
        kind: its unit.
        latency: the report's latency it is; ``None`` for any other figure.
        find: the figure, for those that are no latency.
        absent: why it may be absent.
        per_request: whether it can be asked of a single request.
    """

    name: str
    kind: Kind
    absent: str
    latency: str | None = None
    find: Callable[[Figures], Estimate | None] | None = None
    per_request: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """Words that may stand before the limit, beside percentiles of a latency."""
        if self.latency:
            return (MEAN, MAX)
        return (MEAN,) if self.kind is Kind.USD else ()

    def estimate(self, figures: Figures, statistic: float | str | None) -> Estimate | None:
        """The figure.

        Args:
            figures: of the run.
            statistic: q of a percentile, "mean" or "max"; ``None`` where there is only one.
        """
        if self.find is not None:
            return self.find(figures)
        latency = figures.latency.get(self.latency or "")
        if latency is None:
            return None
        if isinstance(statistic, float):
            return latency.percentile(statistic)
        return latency.max() if statistic == MAX else latency.mean()


def _latency(name: str, latency: str, absent: str, *, per_request: bool = False) -> Metric:
    return Metric(
        name=name, kind=Kind.SECONDS, latency=latency, absent=absent, per_request=per_request
    )


_UNSTREAMED = "no answer was streamed"
_NO_BASIS = "there is no cost basis; record the run with --gpu-hour-price and --gpus"
_NO_GOODPUT = "goodput needs per_request objectives whose figures were observed"
_NO_TOKENS = "the output tokens are unknown"

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _latency("ttft_from_sent", "ttft_s", _UNSTREAMED, per_request=True),
        _latency("ttft_from_due", "ttft_from_due_s", _UNSTREAMED, per_request=True),
        _latency("ttfa", "ttfa_s", "no answer content was streamed", per_request=True),
        _latency("itl", "itl_s", "no gaps between output events were kept"),
        _latency(
            "tpot", "tpot_s", "output tokens are unknown or no answer had several", per_request=True
        ),
        _latency("e2e_from_sent", "e2e_s", "no request was sent", per_request=True),
        _latency("e2e_from_due", "e2e_from_due_s", "no request was due", per_request=True),
        _latency("send_lag", "send_lag_s", "no request was sent"),
        Metric(
            name="error_ratio",
            kind=Kind.RATIO,
            find=lambda f: f.errors,
            absent="no request was answered",
        ),
        Metric(
            name="availability",
            kind=Kind.RATIO,
            find=lambda f: f.availability(),
            absent="no request was answered",
        ),
        Metric(
            name="goodput_ratio",
            kind=Kind.RATIO,
            find=lambda f: f.goodput_ratio,
            absent=_NO_GOODPUT,
        ),
        Metric(
            name="goodput_per_s",
            kind=Kind.REQUESTS_PER_S,
            find=lambda f: f.goodput_per_s,
            absent=_NO_GOODPUT,
        ),
        Metric(
            name="requests_per_s",
            kind=Kind.REQUESTS_PER_S,
            find=lambda f: f.requests_per_s,
            absent="the window has no length",
        ),
        Metric(
            name="input_tokens_per_s",
            kind=Kind.TOKENS_PER_S,
            find=lambda f: f.input_tokens_per_s,
            absent="the input tokens are unknown",
        ),
        Metric(
            name="output_tokens_per_s",
            kind=Kind.TOKENS_PER_S,
            find=lambda f: f.output_tokens_per_s,
            absent=_NO_TOKENS,
        ),
        Metric(
            name="cost_per_request",
            kind=Kind.USD,
            find=lambda f: f.cost.per_request,
            absent=_NO_BASIS,
        ),
        Metric(
            name="cost_per_1m_output_tokens",
            kind=Kind.USD,
            find=lambda f: f.cost.per_1m_output_tokens,
            absent=f"{_NO_BASIS}, or {_NO_TOKENS}",
        ),
        Metric(
            name="cost_per_good_request",
            kind=Kind.USD,
            find=lambda f: f.cost.per_good_request,
            absent=f"{_NO_BASIS}, or {_NO_GOODPUT}",
        ),
    )
}

BY_LOOP = ("ttft", "e2e")
"""Names that mean from due in the open loop and from sent in the closed one."""

NAMES = (*BY_LOOP, *METRICS)


def resolve(name: str, loop: str) -> Metric:
    """The metric that ``name`` means in a run with an "open" or a "closed" loop."""
    if name in BY_LOOP:
        name = f"{name}_from_due" if loop == "open" else f"{name}_from_sent"
    return METRICS[name]


def any_of(name: str) -> Metric:
    """The metric of that name where the loop does not matter: for its kind and statistics."""
    return resolve(name, "closed")
