"""Reports, verdicts and lists of runs for people: text for a terminal, Markdown for a page, CSV.

Everything is read from the report itself, so that what people see is what programs read. Absent is
a dash. Text is ASCII and fits 100 columns.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sla.judge import Judgement, Row, Verdict
from sla.layout import (
    Cells,
    csv_text,
    escape_markdown,
    markdown_table,
    paint,
    plain,
    text_table,
)
from sla.units import ABSENT, Kind, format_interval, format_quantity

Report = Mapping[str, Any]

LATENCY_NAMES = {
    "ttft_s": "TTFT from sent",
    "ttft_from_due_s": "TTFT from due",
    "ttfa_s": "TTFA",
    "itl_s": "ITL",
    "tpot_s": "TPOT",
    "e2e_s": "E2E from sent",
    "e2e_from_due_s": "E2E from due",
    "send_lag_s": "send lag",
}
_COLUMNS = 100
_VALUE_COLUMNS = 84  # of a line, beside the name of a figure
_SHOWN = ("p50", "p90", "p95", "p99")
_FELT = (
    "As felt: a failed request is infinitely slow, an open one at least as slow as the time it had."
)
_BELOW = "Below each percentile its 95 % interval; below n, how many independent ones it is worth."
_COLOUR = {
    Verdict.HELD: "green",
    Verdict.BROKEN: "red",
    Verdict.INCONCLUSIVE: "yellow",
    "valid": "green",
    "degraded": "yellow",
    "invalid": "red",
}


def report_text(report: Report, *, colour: bool = False) -> str:
    """One run's report for a terminal."""
    header, rows = _latency_cells(report)
    lines = [*_heading(report, colour=colour), ""]
    lines += [
        paint(line, "bold", is_on=colour and i == 0)
        for i, line in enumerate(text_table(header, rows))
    ]
    lines += ["", _FELT, _BELOW, ""]
    lines += _aligned(figure_facts(report))
    lines += ["", *_wrapped(_standing(report, colour=colour))]
    return "\n".join(lines) + "\n"


def report_markdown(report: Report) -> str:
    """One run's report as Markdown."""
    header, rows = _latency_cells(report)
    lines = [f"## {escape_markdown(_title(report))}", ""]
    lines += markdown_table(["", ""], run_facts(report), left=2)
    lines += ["", *markdown_table(header, _joined(rows)), "", f"{_FELT} {_BELOW}", ""]
    lines += markdown_table(["figure", "value"], figure_facts(report), left=2)
    lines += ["", *_standing_markdown(report)]
    return "\n".join(lines) + "\n"


def report_csv(report: Report) -> str:
    """One run's report as two columns: the key's path in the JSON, and its value."""
    return csv_text(("key", "value"), list(_flattened(report)))


def check_text(
    run: Report, judgement: Judgement, *, colour: bool = False, is_below: bool = False
) -> str:
    """A judgement for a terminal.

    Args:
        run: the report of the run.
        judgement: of it.
        colour: whether the terminal wants colours.
        is_below: whether it stands below the run's report, which has said how the run stands.
    """
    header, rows = _verdict_cells(judgement)
    table = text_table(header, rows, left=2)
    lines = [_check_title(run, judgement), "", paint(table[0], "bold", is_on=colour)]
    for line, row in zip(table[1:], judgement.rows, strict=True):
        lines.append(_painted(line, row.verdict, colour=colour))
        if row.reason:
            lines.append(f"    {plain(row.reason)}")
    lines += ["", *([] if is_below else _wrapped(_standing(run, colour=colour))), *judgement.notes]
    word = paint(judgement.verdict, _COLOUR[judgement.verdict], is_on=colour)
    lines.append(f"Verdict: {word} (exit code {judgement.exit_code})")
    return "\n".join(lines) + "\n"


def check_markdown(run: Report, judgement: Judgement) -> str:
    """A judgement as Markdown, for the summary of a CI job."""
    header, rows = _verdict_cells(judgement)
    header = [*header, "why"]
    rows = [[*cells, row.reason] for cells, row in zip(rows, judgement.rows, strict=True)]
    lines = [f"## SLA {escape_markdown(judgement.sla.name)}: {judgement.verdict}", ""]
    lines += [escape_markdown(_check_title(run, judgement)), ""]
    lines += [*markdown_table(header, rows, left=2), "", *_standing_markdown(run)]
    lines += [f"- {note}" for note in judgement.notes]
    return "\n".join(lines) + "\n"


RUN_COLUMNS = (
    "id",
    "name",
    "started",
    "scenario",
    "model",
    "status",
    "load",
    "n",
    "TTFT p95",
    "error ratio",
)


def runs_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """A list of runs for a terminal."""
    if not runs:
        return "There is no run yet.\n"
    return "\n".join(text_table(RUN_COLUMNS, [_run_cells(run) for run in runs], left=7)) + "\n"


def runs_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """A list of runs as CSV, in base units."""
    keys = list(runs[0]) if runs else []
    return csv_text(keys, [list(run.values()) for run in runs])


def _run_cells(run: Mapping[str, Any]) -> list[str]:
    asked = {"closed": f"{_count(run['asked'])} users", "open": f"{_count(run['asked'])}/s"}
    return [
        run["id"],
        _short(run["name"], 20),
        run["started_at"][:16].replace("T", " "),
        _short(run["scenario"], 14),
        _short(run["model"] or ABSENT, 20),
        run["status"],
        asked[run["loop"]] if run["asked"] is not None else ABSENT,
        _count(run["n"]),
        _quantity(run["ttft_p95_s"], Kind.SECONDS),
        _quantity(run["error_ratio"], Kind.RATIO),
    ]


# The parts of a report


def _heading(report: Report, *, colour: bool) -> Iterator[str]:
    yield paint(plain(_title(report)), "bold", is_on=colour)
    yield from _aligned(run_facts(report))


def _title(report: Report) -> str:
    run = report["run"]
    simulated = ", simulated" if run["simulated"] else ""
    return f"Run {run['id']} ({run['name']}): {run['status']}{simulated}"


def run_facts(report: Report) -> list[tuple[str, str]]:
    """What the run was, as names and values."""
    run, load, window = report["run"], report["load"], report["window"]
    labels = " ".join(f"{key}={value}" for key, value in run["labels"].items())
    facts = [
        ("scenario", f"{run['scenario']} on {run['model'] or 'an unnamed model'}"),
        ("target", run["target"]),
        ("started", f"{run['started_at'][:19].replace('T', ' ')} UTC"),
        ("labels", labels),
        ("load", _load(load)),
        (
            "window",
            f"{_seconds(window['start_s'])} to {_seconds(window['end_s'])}: {window['due']:,} due",
        ),
        (
            "ended",
            ", ".join(
                f"{window[name]:,} {name.replace('_', ' ')}"
                for name in ("ok", "failed", "unfinished", "not_sent", "cancelled")
                if window[name] or name in ("ok", "failed")
            ),
        ),
    ]
    return [(name, plain(value)) for name, value in facts if value]


def _load(load: Report) -> str:
    achieved, users = _finite(load["achieved"]), _finite(load["users"])
    asked, due = load["requests_asked"], load["requests_due"]
    limit = "" if asked is None else f", {due:,} of {asked:,} requests due"
    if load["loop"] == "closed":
        some = ABSENT if achieved is None else f"{achieved:,.1f}"
        at_work = "" if users is None else f" ({users:,.1f} at work)"
        return (
            f"closed loop, {_count(load['asked'])} users{at_work},"
            f" {some} requests in flight on average{limit}"
        )
    rate = _quantity(load["asked"], Kind.REQUESTS_PER_S)
    sent = _quantity(load["achieved"], Kind.REQUESTS_PER_S)
    return f"open loop, {rate} asked, {sent} sent{limit}"


def _latency_cells(report: Report) -> tuple[list[str], Cells]:
    """Two rows a latency, its figures and what they rest on; a third where some did not succeed."""
    rows: list[list[str]] = []
    for key, name in LATENCY_NAMES.items():
        latency = report["latency"][key]
        if not latency["n"]:
            rows.append([name, *[ABSENT] * 7])
            continue
        values = [_quantity(latency[p], Kind.SECONDS) for p in _SHOWN]
        ends = [[_finite(end) for end in latency["ci95"][p]] for p in _SHOWN]
        rows += [
            [name, f"{latency['n']:,}", *values]
            + [_quantity(latency[word], Kind.SECONDS) for word in ("mean", "max")],
            ["", f"~{_finite(latency['n_eff']):,.0f}"]
            + [format_interval(low, high, Kind.SECONDS) for low, high in ends]
            + ["", ""],
        ]
        if latency["failed"] or latency["unfinished"]:
            served = [_quantity(latency["served"][p], Kind.SECONDS) for p in _SHOWN]
            rows.append(["  served alone", "", *served, "", ""])
    return ["latency", "n", *_SHOWN, "mean", "max"], rows


def _joined(rows: Cells) -> Cells:
    """Each latency's two rows as one, for formats without room between lines."""
    joined: list[list[str]] = []
    for row in rows:
        if row[0]:  # the row below it has no name
            joined.append(list(row))
        else:
            joined[-1] = [
                f"{over} ({under})" if under else over
                for over, under in zip(joined[-1], row, strict=True)
            ]
    return joined


def figure_facts(report: Report) -> list[tuple[str, str]]:
    """What was found beside latencies, as names and values."""
    facts = [
        ("throughput", _throughput(report["throughput"])),
        ("goodput", _goodput(report["throughput"])),
        ("errors", _errors(report)),
        *_tokens(report["tokens"]),
        *_flags(report),
        *_cost(report["cost"]),
    ]
    facts += [(f"GPU {i}", _gpu(gpu)) for i, gpu in enumerate(report["gpu"])] or [("GPU", ABSENT)]
    facts += [("coalesced", _coalesced(report["client"])), ("client", _client(report["client"]))]
    return [(name, plain(value)) for name, value in facts]


def _throughput(found: Report) -> str:
    return (
        f"{_quantity(found['requests_per_s'], Kind.REQUESTS_PER_S)} requests,"
        f" {_quantity(found['output_tokens_per_s'], Kind.TOKENS_PER_S)} output tokens,"
        f" {_quantity(found['input_tokens_per_s'], Kind.TOKENS_PER_S)} input tokens"
    )


def _goodput(found: Report) -> str:
    if found["goodput_ratio"] is None:
        return ABSENT
    return (
        f"{_quantity(found['goodput_per_s'], Kind.REQUESTS_PER_S)},"
        f" {_quantity(found['goodput_ratio'], Kind.RATIO)} of what was due"
    )


def _errors(report: Report) -> str:
    window, errors = report["window"], report["errors"]
    answered = window["ok"] + window["failed"] + window["unfinished"]
    outcomes = "".join(f", {name} {n:,}" for name, n in errors["by_outcome"].items())
    ratio = _quantity(errors["ratio"], Kind.RATIO)
    return f"{ratio} ({window['failed']:,} of {answered:,}{outcomes})"


def _tokens(tokens: Report) -> list[tuple[str, str]]:
    told = (
        _count(tokens["input"])
        + " in"
        + _parts(tokens, cached_input="cached", cache_write="cache write", audio_input="audio"),
        _count(tokens["output"])
        + " out"
        + _parts(tokens, reasoning="reasoning", audio_output="audio"),
    )
    source = f", as told by {tokens['source']}" if tokens["source"] else ""
    rows = [("tokens", f"{', '.join(told)}{source}")]
    if tokens["asked_output"] is not None:
        share = _quantity(tokens["delivered_ratio"], Kind.RATIO)
        limit = f"the {tokens['asked_output']:,} output tokens that the limits allow"
        rows.append(("", f"{share} of {limit}, over successes"))
    return rows


def _parts(tokens: Report, **words: str) -> str:
    """Those parts of a count that are known, in brackets."""
    told = [f"{tokens[key]:,} {word}" for key, word in words.items() if tokens[key] is not None]
    return f" ({', '.join(told)})" if told else ""


def _flags(report: Report) -> list[tuple[str, str]]:
    """Each flag, how many requests carry it and their share of those due; a few to a line."""
    found = [
        f"{flag} {n:,} ({_quantity(report['flag_ratios'][flag], Kind.RATIO)})"
        for flag, n in report["flags"].items()
    ]
    lines = textwrap.wrap(", ".join(found), _VALUE_COLUMNS, break_on_hyphens=False) or [ABSENT]
    return [("" if i else "flags", line) for i, line in enumerate(lines)]


def _cost(cost: Report) -> list[tuple[str, str]]:
    if cost["basis"] is None:
        return [("cost", ABSENT)]
    parts = [f"{_quantity(cost['usd'], Kind.USD)} by {cost['basis'].replace('_', '-')}"]
    for key, words in (
        ("usd_per_request", "a request served"),
        ("usd_per_1m_output_tokens", "a million output tokens"),
        ("usd_per_good_request", "a good request"),
    ):
        if cost[key] is not None:
            parts.append(f"{_quantity(cost[key], Kind.USD)} {words}")
    lines = [", ".join(parts[:2]), ", ".join(parts[2:])]
    return [(name, line) for name, line in zip(("cost", ""), lines, strict=True) if line]


def _gpu(gpu: Report) -> str:
    memory, power, energy = (_finite(gpu[k]) for k in ("memory_bytes", "power_watts", "energy_j"))
    parts = [
        gpu["name"] or gpu["uuid"],
        f"busy {_quantity(gpu['busy_ratio'], Kind.RATIO)}",
        f"memory {ABSENT if memory is None else f'{memory / 2**30:.1f} GiB'}",
        f"power {ABSENT if power is None else f'{power:.0f} W'}",
        f"energy {ABSENT if energy is None else f'{energy:,.0f} J'}",
    ]
    return ", ".join(parts)


def _client(client: Report) -> str:
    stamps = f"{client['stamp']} stamps" if client["stamp"] else "unknown stamps"
    return (
        f"{stamps}, loop lag p99 {_quantity(client['loop_lag_p99_s'], Kind.SECONDS)},"
        f" read delay p99 {_quantity(client['read_delay_p99_s'], Kind.SECONDS)},"
        f" CPU {_quantity(client['cpu_ratio'], Kind.RATIO)}"
    )


def _coalesced(client: Report) -> str:
    if client["coalesced_ratio"] is None:
        return ABSENT
    share = _quantity(client["coalesced_ratio"], Kind.RATIO)
    return f"{share} of output events came in one read with the one before"


def _standing(report: Report, *, colour: bool) -> Iterator[str]:
    verdict = report["validity"]["verdict"]
    error = _quantity(report["validity"]["possible_error_s"], Kind.SECONDS)
    yield (
        f"The run is {paint(verdict, _COLOUR[verdict], is_on=colour)}:"
        f" the client may be off by {error}."
    )
    for sentence in (*report["validity"]["reasons"], *report["warnings"]):
        yield f"- {plain(sentence)}"


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Sentences over as many lines as they need."""
    for line in lines:
        yield from textwrap.wrap(line, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def _standing_markdown(report: Report) -> Iterator[str]:
    first, *rest = _standing(report, colour=False)
    yield first
    if rest:
        yield ""
    yield from (f"- {escape_markdown(line.removeprefix('- '))}" for line in rest)


# The parts of a judgement


def _check_title(run: Report, judgement: Judgement) -> str:
    told = run["run"]
    sla = plain(judgement.sla.name)
    return f"Run {told['id']} ({plain(told['name'])}, {told['status']}) held to: {sla}"


def _verdict_cells(judgement: Judgement) -> tuple[list[str], list[list[str]]]:
    interval = f"{judgement.sla.confidence * 100:g} % interval"
    header = ["objective", "limit", "measured", interval, "n", "n_eff", "verdict"]
    return header, [_verdict_row(row) for row in judgement.rows]


def _verdict_row(row: Row) -> list[str]:
    low, high = row.interval or (None, None)
    return [
        row.objective,
        row.limit,
        format_quantity(row.value, row.kind),
        format_interval(low, high, row.kind),
        f"{row.n:,}" if row.value is not None else ABSENT,
        f"{row.n_eff:,.0f}" if row.n_eff is not None else ABSENT,
        row.verdict,
    ]


def _painted(line: str, verdict: Verdict, *, colour: bool) -> str:
    start = line.rindex(verdict)
    return line[:start] + paint(verdict, _COLOUR[verdict], is_on=colour)


# Cells


def _finite(value: Any) -> float | None:
    """A number of the report as a float; its infinity is written "inf"."""
    return None if value is None else float(value)


def _quantity(value: Any, kind: Kind) -> str:
    return format_quantity(_finite(value), kind)


def _count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _seconds(value: Any) -> str:
    number = _finite(value)
    return ABSENT if number is None or math.isinf(number) else f"{number:.1f} s"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _aligned(facts: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [f"  {name.ljust(width)}  {value}".rstrip() for name, value in facts]


def _flattened(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _flattened(inner, f"{path}.{i}")
    else:
        yield path, str(value).lower() if isinstance(value, bool) else value
