"""What `make demo-vllm` concludes from the client's figures and vLLM's counters."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bench.demo_vllm import Console, DemoError, as_table, cross_check, metric_totals

PAGE = """\
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a {b} c"} 2.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="a {b} c"} 40.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 42.0
python_gc_collections_total 1.5e+03
"""


def page(requests: int, *, ttft_s: float = 0.010) -> dict[str, float]:
    """The counters after so many requests of 5 prompt and 3 output tokens, 2 ms apart."""
    return {
        "vllm:request_success_total": requests,
        "vllm:prompt_tokens_total": 5 * requests,
        "vllm:generation_tokens_total": 3 * requests,
        "vllm:time_to_first_token_seconds_sum": ttft_s * requests,
        "vllm:time_to_first_token_seconds_count": requests,
        "vllm:request_time_per_output_token_seconds_sum": 0.002 * requests,
        "vllm:request_time_per_output_token_seconds_count": requests,
        "vllm:e2e_request_latency_seconds_sum": 0.014 * requests,
        "vllm:e2e_request_latency_seconds_count": requests,
    }


def record(**changes: Any) -> dict[str, Any]:
    """One exported request as a client sees the server of `page`, 3 ms later."""
    seen = {"outcome": "ok", "input_tokens": 5, "output_tokens": 3}
    return {**seen, "ttft_s": 0.013, "tpot_s": 0.002, "e2e_s": 0.017, **changes}


def differing(records: list[dict[str, Any]], before: int = 12, after: int = 14) -> list[str]:
    """Names of the figures on which the two sides differ."""
    rows = cross_check(records, page(before), page(after))
    return [row.name for row in rows if not row.agrees]


def test_series_of_one_name_are_added_up() -> None:
    """Labels, however odd, are summed over; comments are not series."""
    totals = metric_totals(PAGE)
    assert totals["vllm:request_success_total"] == 42
    assert totals["python_gc_collections_total"] == 1500
    assert len(totals) == 3


def test_only_what_the_run_added_is_compared() -> None:
    """What the server counted before the run, its warm-up, is taken off."""
    assert differing([record(), record()]) == []


@pytest.mark.parametrize(
    ("second", "differs"),
    [
        (record(outcome="reset"), ["requests that succeeded", "prompt tokens", "output tokens"]),
        (record(output_tokens=4), ["output tokens"]),
        (record(output_tokens=None), ["output tokens"]),
        (record(ttft_s=0.001), ["mean TTFT"]),  # a client cannot see a token before its server
        (record(e2e_s=0.3), ["mean E2E"]),
    ],
)
def test_a_difference_is_named(second: dict[str, Any], differs: list[str]) -> None:
    """Counts must be equal and means explained by the way through HTTP; anything else shows."""
    assert differing([record(), second]) == differs


def test_a_side_that_saw_nothing_does_not_agree() -> None:
    """Without requests, or with a server that lacks the counters, nothing is confirmed."""
    rows = cross_check([], {}, {})
    assert not any(row.agrees for row in rows)
    assert "mean TTFT" in as_table(rows)
    assert " 0.00 ms" not in as_table(rows)


def test_a_command_that_fails_stops_the_demonstration(capfd: pytest.CaptureFixture[str]) -> None:
    """Its output is shown as it came, and the sentence names command and exit code."""
    console = Console()
    with pytest.raises(DemoError, match="`streamgauge --no-such-option` ended with exit code 2"):
        console.streamgauge("--no-such-option")
    assert "No such option" in capfd.readouterr().out


def test_a_command_is_kept_as_a_user_would_type_it() -> None:
    """The page shows the command without interpreter or paths, then what it printed."""
    console = Console()
    console.streamgauge("--version")
    assert console.lines[0] == "$ streamgauge --version"
    assert "streamgauge" in console.lines[1]
    assert sys.prefix not in "\n".join(console.lines)
