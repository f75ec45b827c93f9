"""What `make gpu-check` writes into its page."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu_page import (
    BEGIN,
    END,
    READINGS,
    Figures,
    Fitted,
    Found,
    Measured,
    PageError,
    findings,
    relative_error,
    with_findings,
)
from tests.conftest import ROOT

NOTHING = Figures(ttft_p50_s=None, ttft_p95_s=None, itl_p50_s=None, tokens_per_s=None)
SEEN = Figures(ttft_p50_s=0.010, ttft_p95_s=0.020, itl_p50_s=0.002, tokens_per_s=1000.0)
CLOSE = Figures(ttft_p50_s=0.011, ttft_p95_s=0.018, itl_p50_s=0.002, tokens_per_s=1000.0)


def measured(users: int, figures: Figures, **changes: Any) -> Measured:
    """A run of that many users on one GPU of 500 W."""
    gpu = {"uuid": "GPU-a", "busy_ratio": 0.5, "power_watts": 500.0}
    seen: dict[str, Any] = {"input_tokens": 512.0, "output_tokens": 128.0, "ok": 40, "failed": 0}
    return Measured(
        **{"users": users, "figures": figures, "gpu": [gpu], "verdict": "valid", **seen} | changes
    )


def found(**changes: Any) -> Found:
    """Two runs and one fit, on one GPU that tells two readings."""
    seen: dict[str, Any] = {
        "facts": {"date": "2026-11-21", "GPU": "NVIDIA H200"},
        "idle": {"gpu:GPU-a": {"gpu_power_watts": 75.0}},
        "busy": {"gpu:GPU-a": {"gpu_power_watts": 500.0, "gpu_busy_ratio": 0.0}},
        "runs": [measured(1, SEEN), measured(4, NOTHING)],
        "fits": [
            Fitted(title="A fit", options="--x 1", told="Well.", figures={1: CLOSE, 4: CLOSE})
        ],
    }
    return Found(**seen | changes)


def rows(text: str) -> dict[str, list[str]]:
    """The lines of all tables, by their first cell; a later one wins."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_reading_of_the_collector_is_listed() -> None:
    """The page knows the names that collectors.gpu gives, no fewer and no more."""
    source = (ROOT / "collectors" / "gpu.py").read_text()
    assert set(re.findall(r'"(gpu_\w+)"', source)) == set(READINGS)


def test_what_a_card_does_not_read_is_none_and_zero_is_zero() -> None:
    """Each reading has a line; before and under load stand apart."""
    shown = rows(findings(found()))
    assert shown["`gpu_power_watts`"] == ["75 W", "500 W"]
    assert shown["`gpu_busy_ratio`"] == ["None", "0 %"]
    assert all(shown[f"`{name}`"] for name in READINGS)


def test_the_error_of_each_figure_stands_beside_it() -> None:
    """Signed, in percent of what was measured; a dash where nothing was."""
    text = findings(found())
    after = rows(text[text.index("after a fit") :])
    assert after["1"] == ["11 ms", "+10%", "18 ms", "-10%", "2 ms", "+0%", "1,000", "+0%"]
    assert after["4"][1::2] == ["-"] * 4


def test_power_is_shared_out_over_tokens() -> None:
    """Watts over tokens a second are joules a token; without tokens, or watts, a dash."""
    text = findings(found(runs=[measured(1, SEEN), measured(4, SEEN, gpu=[])]))
    load = rows(text[text.index("### The load") : text.index("### The simulator")])
    assert load["1"][7:10] == ["50%", "500 W", "0.5"]
    assert load["4"][7:10] == ["-", "-", "-"]


def test_servers_that_did_not_start_are_told() -> None:
    """A sentence each; nothing is said where the first one did."""
    assert "- vLLM ended." in findings(found(tried=["vLLM ended."]))
    assert "Not started" not in findings(found())


def test_an_infinite_latency_is_none() -> None:
    """The report writes it as a word; it has no relative error."""
    latency = {"p50": "inf", "p95": "inf"}
    report = {
        "latency": {"ttft_s": latency, "itl_s": {"p50": None}},
        "throughput": {"output_tokens_per_s": 3},
    }
    figures = Figures.of(report)
    assert figures == Figures(ttft_p50_s=None, ttft_p95_s=None, itl_p50_s=None, tokens_per_s=3.0)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_an_error_is_what_has_to_be_added(simulated: float, seen: float) -> None:
    """Measured plus its error is simulated; with either missing there is none."""
    error = relative_error(simulated, seen)
    assert error is not None
    assert math.isclose(seen * (1 + error), simulated, rel_tol=1e-6, abs_tol=1e-9 * seen)
    assert relative_error(None, seen) is relative_error(simulated, None) is None


@given(st.text().filter(lambda text: BEGIN not in text and END not in text))
def test_only_what_is_between_the_marks_changes(text: str) -> None:
    """Twice is as good as once, and what is outside stays."""
    page = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n"
    once = with_findings(page, text)
    assert once.startswith(f"# Title\n\n{BEGIN}")
    assert once.endswith(f"{END}\n\nafter\n")
    assert "old" not in once.replace(text.strip(), "")
    assert with_findings(once, text) == once


@pytest.mark.parametrize("page", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {END}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    """Rather than written anew, or at its end."""
    with pytest.raises(PageError, match="once each and in this order"):
        with_findings(page, "text")


def test_the_page_of_this_checkout_has_its_marks() -> None:
    """So that the check can write it."""
    assert with_findings((ROOT / "docs" / "gpu.md").read_text(), "text")
