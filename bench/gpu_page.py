"""The page docs/gpu.md: what was read, measured and fitted on a GPU, between two marks.

Pure: figures in, text out. What stands outside the marks is written by hand and stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

BEGIN: Final = "<!-- begin: written by make gpu-check -->"
END: Final = "<!-- end: written by make gpu-check -->"

READINGS: Final = {
    "gpu_busy_ratio": (100.0, "%"),
    "gpu_memory_busy_ratio": (100.0, "%"),
    "gpu_memory_used_bytes": (1e-9, "GB"),
    "gpu_memory_total_bytes": (1e-9, "GB"),
    "gpu_power_watts": (1.0, "W"),
    "gpu_power_limit_watts": (1.0, "W"),
    "gpu_energy_joules": (1.0, "J"),
    "gpu_temperature_celsius": (1.0, "°C"),
    "gpu_sm_clock_hertz": (1e-6, "MHz"),
    "gpu_memory_clock_hertz": (1e-6, "MHz"),
    "gpu_clock_reasons": (1.0, "(bits)"),
}
"""Every reading of `collectors.gpu`, with the factor to its unit on the page."""


class PageError(Exception):
    """The page cannot be written; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is compared of a run; None where it was not observed."""

    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p50_s: float | None
    tokens_per_s: float | None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Figures:
        """Those of a report as JSON; infinity, which it writes as a word, is not observed."""
        latency = report["latency"]
        return cls(
            ttft_p50_s=known(latency["ttft_s"]["p50"]),
            ttft_p95_s=known(latency["ttft_s"]["p95"]),
            itl_p50_s=known(latency["itl_s"]["p50"]),
            tokens_per_s=known(report["throughput"]["output_tokens_per_s"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of the load.

    Attributes:
        users: who asked, each with one request open at a time.
        input_tokens, output_tokens: means of its successes.
        ok, failed: requests of its window.
        figures: as the client saw them.
        gpu: the run's use of each GPU as the report has it (collectors' means over the window).
        verdict: of the report, on the client itself.
    """

    users: int
    input_tokens: float
    output_tokens: float
    ok: int
    failed: int
    figures: Figures
    gpu: Sequence[Mapping[str, Any]]
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The simulator after one fit.

    Attributes:
        title: of the model of cost.
        options: that `streamgauge fit` printed.
        told: what it said of the fit.
        figures: the simulator's, by users.
    """

    title: str
    options: str
    told: str
    figures: Mapping[int, Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that a check found.

    Attributes:
        facts: what ran on what, in the order shown.
        idle, busy: readings before the load and the highest under it, by GPU and name; a reading
            that is not there is unsupported.
        tried: servers that did not start, a sentence each.
        runs: the load, by rising users.
        fits: of the simulator.
    """

    facts: Mapping[str, str]
    idle: Mapping[str, Mapping[str, float]]
    busy: Mapping[str, Mapping[str, float]]
    runs: Sequence[Measured]
    fits: Sequence[Fitted]
    tried: Sequence[str] = field(default=())


def relative_error(simulated: float | None, measured: float | None) -> float | None:
    """(simulated - measured) / measured; None where either was not observed."""
    if simulated is None or measured is None or measured == 0:
        return None
    return (simulated - measured) / measured


def with_findings(page: str, text: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The page with `text` between its marks.

    Raises:
        PageError: the marks are not there, once each and in order.
    """
    opening, closing = marks
    begin, end = page.find(opening), page.find(closing)
    if not (0 <= begin < end) or page.count(opening) != 1 or page.count(closing) != 1:
        raise PageError(
            f"Expected the marks {opening!r} and {closing!r} once each and in this order, and "
            "found them otherwise; put them back to where the findings shall stand."
        )
    return f"{page[: begin + len(opening)]}\n\n{text.strip()}\n\n{page[end:]}"


def findings(found: Found) -> str:
    """What stands between the marks."""
    parts = [
        "## What was found",
        table(("what", "value"), [(name, value) for name, value in found.facts.items()]),
    ]
    if found.tried:
        parts.append("Not started here:")
        parts.append("\n".join(f"- {sentence}" for sentence in found.tried))
    parts += ["### What NVML reads", *_readings(found)]
    parts += ["### The load", _load(found.runs)]
    parts += ["### The simulator after a fit", *(_fit(fit, found.runs) for fit in found.fits)]
    return "\n\n".join(parts)


def _readings(found: Found) -> list[str]:
    parts = []
    for gpu, idle in found.idle.items():
        busy = found.busy.get(gpu, {})
        names = [*READINGS, *sorted((set(idle) | set(busy)) - set(READINGS))]
        rows = [(f"`{name}`", _reading(name, idle), _reading(name, busy)) for name in names]
        parts += [f"{gpu}:", table(("reading", "before", "highest under load"), rows)]
    return parts


def _reading(name: str, values: Mapping[str, float]) -> str:
    if name not in values:
        return "None"
    factor, unit = READINGS.get(name, (1.0, ""))
    return f"{values[name] * factor:,.4g} {unit}".strip()


def _load(runs: Sequence[Measured]) -> str:
    head = (
        *("users", "tokens in / out", "ok", "failed", "TTFT p50", "TTFT p95", "ITL p50"),
        *("tokens/s", "GPU busy", "power", "J a token", "client"),
    )
    rows = []
    for run in runs:
        figures = run.figures
        busy, power = _mean(run.gpu, "busy_ratio"), _sum(run.gpu, "power_watts")
        a_token = (
            power / figures.tokens_per_s if power is not None and figures.tokens_per_s else None
        )
        rows.append(
            (
                str(run.users),
                f"{run.input_tokens:.0f} / {run.output_tokens:.0f}",
                f"{run.ok:,}",
                f"{run.failed:,}",
                _ms(figures.ttft_p50_s),
                _ms(figures.ttft_p95_s),
                _ms(figures.itl_p50_s),
                _plain(figures.tokens_per_s),
                "-" if busy is None else f"{busy:.0%}",
                "-" if power is None else f"{power:.0f} W",
                "-" if a_token is None else f"{a_token:.3g}",
                run.verdict,
            )
        )
    return table(head, rows)


def _fit(fit: Fitted, runs: Sequence[Measured]) -> str:
    head = ("users", "TTFT p50", "error", "TTFT p95", "error", "ITL p50", "error", "tokens/s")
    rows = []
    for run in runs:
        simulated, measured = fit.figures[run.users], run.figures
        cells = [str(run.users)]
        for name in ("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "tokens_per_s"):
            ours, theirs = getattr(simulated, name), getattr(measured, name)
            shown = _plain(ours) if name == "tokens_per_s" else _ms(ours)
            cells += [shown, _error(relative_error(ours, theirs))]
        rows.append(tuple(cells))
    return "\n\n".join(
        (f"{fit.title}. {fit.told}", f"```\n{fit.options}\n```", table((*head, "error"), rows))
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def known(value: Any) -> float | None:
    """A figure of a report as JSON; None where it is a word, or not there."""
    return float(value) if isinstance(value, int | float) else None


def _mean(gpus: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [gpu[name] for gpu in gpus if gpu[name] is not None]
    return sum(values) / len(values) if values else None


def _sum(gpus: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [gpu[name] for gpu in gpus if gpu[name] is not None]
    return sum(values) if values else None


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g} ms"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _error(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:+.0%}"
