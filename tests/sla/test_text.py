"""What people read: complete, narrow, and safe to print."""

from __future__ import annotations

import csv
import io

import pytest

from collectors.records import Outcome, RequestRecord
from sla.judge import Judgement, judge
from sla.layout import csv_cell, escape_markdown, markdown_table, plain, text_table
from sla.report import build_report
from sla.spec import parse_sla
from sla.text import (
    check_markdown,
    check_text,
    report_csv,
    report_markdown,
    report_text,
    runs_csv,
    runs_text,
)
from tests.collectors.builders import make_request, make_run, make_table

SLA = """\
objectives:
  ttft: [p95 < 500 ms, p99 < 1 s]
  error_ratio: at most 1 %
  cost_per_request: mean < 0.002 usd
"""


def _requests(n: int = 400) -> list[RequestRecord]:
    return [make_request(i, i * 100 / n, ttft_s=0.1 + (i * 0.618 % 1) / 10) for i in range(n)]


def _report(records: list[RequestRecord], **changes: object) -> dict[str, object]:
    return build_report(make_run(**changes), make_table(records), [])


def _judged(records: list[RequestRecord]) -> tuple[dict[str, object], Judgement]:
    judgement = judge(parse_sla(SLA, "chat"), make_run(), make_table(records), [])
    return _report(records), judgement


def test_a_report_says_what_it_is_about() -> None:
    """Run, window, n beside each latency, from sent and from due, validity and warnings."""
    text = report_text(_report(_requests(), notes=["no GPU seen here"]))

    assert "Run 0run00000000aaaa (trial): complete" in text
    assert "closed loop, 4 users" in text
    assert "0.0 s to 100.0 s: 400 due" in text
    latency = next(line for line in text.splitlines() if line.startswith("TTFT from sent"))
    assert latency.split()[3] == "400"
    assert "TTFT from due" in text
    assert "0 % of output events came in one read" in text
    assert "The run is valid" in text
    assert "- no GPU seen here" in text


@pytest.mark.parametrize("records", [_requests(), [], _requests(3)], ids=["many", "none", "few"])
def test_a_report_fits_a_terminal(records: list[RequestRecord]) -> None:
    """At most 100 columns, plain ASCII, no trailing blanks."""
    lines = report_text(_report(records)).splitlines()

    assert max(map(len, lines)) <= 100
    assert all(line.isascii() and line == line.rstrip() for line in lines)


def test_absent_is_a_dash() -> None:
    """A report of nothing shows dashes, and no number that could be taken for a figure."""
    text = report_text(_report([]))
    row = next(line for line in text.splitlines() if line.startswith("TTFT from sent"))

    assert row.split()[3:] == ["-"] * 7
    assert "cost        -" in text


def test_tokens_flags_and_load_are_told() -> None:
    """Parts that are known, what was delivered of what was asked, each flag with its share."""
    records = [
        make_request(
            i,
            float(i),
            cached_input_tokens=10,
            cache_write_input_tokens=5,
            asked_output_tokens=8,
            flags=("early_head", "coalesced") if i < 25 else ("early_head",),
        )
        for i in range(100)
    ]
    report = build_report(make_run(config={"requests": 120}), make_table(records), [])
    text = report_text(report)

    assert "5,000 in (1,000 cached, 500 cache write), 400 out, as told by usage" in text
    assert "50.0 % of the 800 output tokens that the limits allow" in text
    assert "coalesced 25 (25.0 %), early_head 100 (100 %)" in text
    assert "requests in flight on average, 100 of 120 requests due" in text


def test_many_flags_and_long_warnings_fit_a_terminal() -> None:
    """They go on in the next line."""
    flags = ("early_head", "early_event", "no_usage", "fewer_tokens", "no_done", "total_mismatch")
    records = [make_request(i, float(i), flags=flags) for i in range(100)]
    lines = report_text(_report(records)).splitlines()

    assert max(map(len, lines)) <= 100
    assert sum("(100 %)" in line for line in lines) == 2
    assert any(line.startswith("  ") and line.endswith("than meant.") for line in lines)


def test_served_stand_beside_felt_where_some_failed() -> None:
    """With failures the percentiles of the successes follow; without, they say nothing."""
    records = _requests(100)
    records[5] = make_request(5, 5.0, ttft_s=None, outcome=Outcome.TIMEOUT)

    assert "served alone" in report_text(_report(records))
    assert "served alone" not in report_text(_report(_requests(100)))


def test_a_check_shows_each_objective_and_why() -> None:
    """Objective by its resolved name, limit, value, interval, n, verdict, reason, exit code."""
    report, judgement = _judged(_requests(200))
    lines = check_text(report, judgement).splitlines()

    held = next(line for line in lines if line.startswith("ttft_from_sent p95"))
    assert "< 500 ms" in held
    assert held.endswith("held")
    assert " 200 " in held
    assert any("would settle it" in line for line in lines)
    assert any("--gpu-hour-price" in line for line in lines)
    assert lines[-1] == "Verdict: inconclusive (exit code 3)"


def test_colours_are_for_terminals() -> None:
    """No escape where none is asked for, and none but the verdict's words change where one is."""
    report, judgement = _judged(_requests())

    assert "\x1b" not in check_text(report, judgement) + report_text(report)
    assert "\x1b[32mheld\x1b[0m" in check_text(report, judgement, colour=True)


def test_names_cannot_drive_a_terminal() -> None:
    """Escape sequences and line breaks in names come out as blanks."""
    text = report_text(_report(_requests(), name="a\x1b[2Jb\nc", model="m\r\x07"))

    assert "(a [2Jb c)" in text
    assert not set(text) & {"\x1b", "\r", "\x07"}


def test_markdown_takes_names_as_words() -> None:
    """Pipes, tags and links in names stay words, and every table row has its columns."""
    report, judgement = _judged(_requests())
    text = report_markdown(_report(_requests(), name="<b>|[x](y)")) + check_markdown(
        report, judgement
    )

    assert r"\<b\>\|\[x\](y)" in text
    assert "| objective | limit | measured |" in text
    assert escape_markdown("a|b\nc") == r"a\|b c"
    assert markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]


def test_csv_is_the_json_flattened() -> None:
    """One line a key, its path first; infinity and absence as in the JSON."""
    records = [make_request(i, float(i), ttft_s=None, outcome=Outcome.RESET) for i in range(3)]
    rows = dict(list(csv.reader(io.StringIO(report_csv(_report(records)))))[1:])

    assert rows["schema"] == "streamgauge.report/1"
    assert rows["latency.ttft_s.p50"] == "inf"
    assert rows["cost.usd"] == ""
    assert rows["run.simulated"] == "false"
    assert rows["errors.by_outcome.reset"] == "3"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    """Text that a spreadsheet would run is marked as text; numbers are left alone."""
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("a=1") == "a=1"


def test_a_list_of_runs_is_a_line_each() -> None:
    """Absent figures are dashes, long names are cut, and none is a sentence."""
    run = {
        "id": "0run",
        "name": "x" * 60,
        "started_at": "2023-11-14T22:13:20.000+00:00",
        "scenario": "chat",
        "model": None,
        "status": "complete",
        "loop": "closed",
        "asked": 4,
        "n": 12,
        "ttft_p95_s": "inf",
        "error_ratio": None,
    }
    header, line = runs_text([run]).splitlines()

    assert header.split()[:3] == ["id", "name", "started"]
    assert line.split()[-3:] == ["12", "inf", "-"]
    assert "4 users" in line
    assert runs_text([]) == "There is no run yet.\n"
    assert runs_csv([run]).splitlines()[1].endswith(",complete,closed,4,12,inf,")


def test_tables_line_up() -> None:
    """Names to the left, numbers to the right, control characters gone."""
    assert text_table(["a", "n"], [["long\x00", "1"], ["b", "100"]]) == [
        "a        n",
        "long     1",
        "b      100",
    ]
    assert plain("a\tb\u202ec") == "a b c"
