"""The soak itself, for half a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import HEAD, RSS, Plan, Samples, row, soak, text


@pytest.mark.slow
def test_every_request_of_a_short_soak_is_recorded_as_it_was_played(tmp_path: Path) -> None:
    """Command, load process, recorder and database, against an endpoint that fails."""
    plan = Plan(name="short", users=16, seconds=20, tokens=20, first_ms=20.0, gap_ms=5.0, seed=7)
    soaked = soak(plan, tmp_path)

    assert soaked.accounts.wrong == []
    assert soaked.accounts.records > 500
    assert len(soaked.accounts.faults) > 30
    assert soaked.exit_code == 0
    assert all(len(samples.at_s) > 10 for samples in soaked.samples.values())
    assert soaked.bytes_per_request < 5_000
    assert len(row(soaked)) == len(HEAD)
    assert "| truncated | truncated |" in text([soaked])


def test_what_counts_is_warm_and_not_yet_leaving() -> None:
    """The first fifth and the last ten seconds are left out."""
    samples = Samples()
    samples.at_s = [float(second) for second in range(110)]
    for name in samples.values:
        samples.values[name] = [0.0] * 20 + [5.0] * 80 + [9.0] * 10

    assert samples.ends(RSS) == (5.0, 5.0)
    assert samples.trend(RSS).slope == 0.0


def test_a_process_that_was_never_seen_has_no_figures() -> None:
    """Instead of a failure at the end of half an hour."""
    samples = Samples()

    assert str(samples.ends(RSS)) == "(nan, nan)"
    assert samples.trend(RSS).is_flat(0.0)
