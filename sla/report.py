"""The report as other programs read it: schema ``streamgauge.report/1``.

Keys are base units, in a fixed order; within ``/1`` keys are only added. ``null`` is not observed
and the string ``"inf"`` is infinity, so that the text is JSON anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from collectors.estimates import Estimate
from collectors.figures import PERCENTILES, Figures, GpuUse, Latency, measure
from collectors.latency import SAMPLES
from collectors.runs import Run
from collectors.samples import Sample
from collectors.table import RequestTable
from sla.judge import Judgement, Row

SCHEMA = "streamgauge.report/1"
JUDGEMENT_SCHEMA = "streamgauge.judgement/1"
INFINITY = "inf"


def build_report(run: Run, table: RequestTable, samples: Sequence[Sample]) -> dict[str, Any]:
    """The report of a run that is held to nothing."""
    return report_of(run, measure(run, table, samples))


def judged_report(run: Run, judgement: Judgement) -> dict[str, Any]:
    """The report of a run held to an SLA: with goodput, and one more key, ``judgement``."""
    return report_of(run, judgement.figures) | {"judgement": verdicts_of(judgement)}


def report_of(run: Run, figures: Figures) -> dict[str, Any]:
    """The report of figures already measured."""
    window, cost, tokens = figures.window, figures.cost, figures.tokens
    return {
        "schema": SCHEMA,
        "definitions": run.definitions,
        "run": _run(run),
        "load": {
            "loop": run.loop,
            "asked": number(figures.asked),
            "achieved": number(figures.achieved),
            "prompts_hash": run.prompts_hash,
            "users": number(figures.users),
            "requests_asked": figures.requests_asked,
            "requests_due": figures.requests_due,
        },
        "window": {
            "start_s": number(window.start_s),
            "end_s": number(window.end_s),
            "due": window.due,
            "ok": window.ok,
            "failed": window.failed,
            "unfinished": window.unfinished,
            "not_sent": window.not_sent,
            "cancelled": window.cancelled,
        },
        "latency": {name: _latency(figures.latency.get(name)) for name in SAMPLES},
        "throughput": {
            "requests_per_s": _value(figures.requests_per_s),
            "input_tokens_per_s": _value(figures.input_tokens_per_s),
            "output_tokens_per_s": _value(figures.output_tokens_per_s),
            "goodput_per_s": _value(figures.goodput_per_s),
            "goodput_ratio": _value(figures.goodput_ratio),
        },
        "tokens": {
            "input": tokens.input,
            "cached_input": tokens.cached_input,
            "output": tokens.output,
            "reasoning": tokens.reasoning,
            "source": tokens.source,
            "cache_write": tokens.cache_write,
            "audio_input": tokens.audio_input,
            "audio_output": tokens.audio_output,
            "asked_output": tokens.asked_output,
            "delivered_ratio": number(tokens.delivered_ratio),
        },
        "errors": {"ratio": _value(figures.errors), "by_outcome": dict(figures.by_outcome)},
        "flags": dict(figures.flags),
        "flag_ratios": {flag: number(n / window.due) for flag, n in figures.flags.items()},
        "cost": {
            "usd": number(cost.usd),
            "usd_per_request": _value(cost.per_request),
            "usd_per_1m_output_tokens": _value(cost.per_1m_output_tokens),
            "usd_per_good_request": _value(cost.per_good_request),
            "basis": cost.basis,
        },
        "gpu": [_gpu(gpu) for gpu in figures.gpus],
        "energy_j": number(figures.energy_j),
        "server": {},  # the server's own metrics are not scraped yet
        "client": {
            "stamp": figures.client.stamp,
            "loop_lag_p99_s": number(figures.client.loop_lag_p99_s),
            "read_delay_p99_s": number(figures.client.read_delay_p99_s),
            "run_queue_wait_ratio": number(figures.client.run_queue_wait_ratio),
            "cpu_ratio": number(figures.client.cpu_ratio),
            "coalesced_ratio": number(figures.client.coalesced_ratio),
        },
        "validity": _validity(figures),
        "warnings": list(figures.warnings),
    }


def verdicts_of(judgement: Judgement) -> dict[str, Any]:
    """What ``check --format json`` says of the objectives."""
    return {
        "sla": judgement.sla.name,
        "confidence": number(judgement.sla.confidence),
        "verdict": str(judgement.verdict),
        "exit_code": judgement.exit_code,
        "objectives": [_row(row) for row in judgement.rows],
        "notes": list(judgement.notes),
    }


def check_document(run: Run, judgement: Judgement) -> dict[str, Any]:
    """All of what ``check --format json`` says: schema ``streamgauge.judgement/1``."""
    return {
        "schema": JUDGEMENT_SCHEMA,
        "definitions": run.definitions,
        "run": _run(run),
        **verdicts_of(judgement),
        "validity": _validity(judgement.figures),
        "warnings": list(judgement.figures.warnings),
    }


def started_at(run: Run) -> str:
    """The run's first instant in UTC, ISO 8601."""
    return datetime.fromtimestamp(run.began_wall_s, UTC).isoformat(timespec="milliseconds")


def number(value: float | None) -> float | int | str | None:
    """``value`` for JSON: ten significant digits, infinity as a string, NaN as absent."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return INFINITY if value > 0 else f"-{INFINITY}"
    return value if isinstance(value, int) else float(f"{value:.10g}")


def _value(estimate: Estimate | None) -> float | int | str | None:
    return None if estimate is None else number(estimate.value)


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "scenario": run.scenario,
        "target": run.target,
        "model": run.model,
        "status": str(run.status),
        "started_at": started_at(run),
        "labels": dict(run.labels),
        "simulated": run.simulated,
    }


def _latency(latency: Latency | None) -> dict[str, Any]:
    names = [f"p{q * 100:g}" for q in PERCENTILES]
    if latency is None:
        nothing = dict.fromkeys(names)
        return {
            "n": 0,
            "n_eff": None,
            "failed": 0,
            "unfinished": 0,
            "mean": None,
            "max": None,
            **nothing,
            "ci95": dict(nothing),
            "served": dict(nothing),
        }
    sample = latency.sample
    found = [latency.percentile(q) for q in PERCENTILES]
    return {
        "n": len(sample),
        # One number for four percentiles: the one that promises least.
        "n_eff": number(min(p.n_eff for p in found)),
        "failed": sample.failed,
        "unfinished": sample.unfinished,
        "mean": _value(latency.mean()),
        "max": _value(latency.max()),
        **{name: number(p.value) for name, p in zip(names, found, strict=True)},
        "ci95": {
            name: [number(end) for end in p.interval()]
            for name, p in zip(names, found, strict=True)
        },
        "served": {name: number(p.served) for name, p in zip(names, found, strict=True)},
    }


def _gpu(gpu: GpuUse) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "busy_ratio": number(gpu.busy_ratio),
        "memory_bytes": None if gpu.memory_bytes is None else int(gpu.memory_bytes),
        "power_watts": number(gpu.power_watts),
        "energy_j": number(gpu.energy_j),
    }


def _validity(figures: Figures) -> dict[str, Any]:
    validity = figures.validity
    return {
        "verdict": str(validity.verdict),
        "reasons": list(validity.reasons),
        "possible_error_s": number(validity.possible_error_s),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "statistic": row.statistic or None,
        "limit": row.limit,
        "unit": str(row.kind),
        "bound": number(row.bound),
        "value": number(row.value),
        "interval": None if row.interval is None else [number(end) for end in row.interval],
        "n": row.n,
        "n_eff": number(row.n_eff),
        "verdict": str(row.verdict),
        "reason": row.reason or None,
    }
