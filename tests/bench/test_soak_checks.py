"""What a soak concludes: which records are wrong, and what grows."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.soak_checks import disagreement, flat_kib_per_min, quarters, reckon, trend
from collectors.records import Outcome, OutputEvents, RequestRecord
from reference_server.faults import Expected

PLAIN = Expected(fault="plain", least_events=3, most_events=3, output_tokens=3)
CUT = Expected(fault="clean-cut", outcome="truncated", least_events=1, most_events=1)


def record(seq: int = 0, **changes: Any) -> RequestRecord:
    """A whole answer of three tokens."""
    known: dict[str, Any] = {
        "run_id": "r",
        "worker": "w",
        "seq": seq,
        "outcome": Outcome.OK,
        "due_at_s": float(seq),
        "sent_at_s": float(seq),
        "first_token_at_s": seq + 0.05,
        "output_events": OutputEvents(answer=3),
        "output_tokens": 3,
        "gaps_s": array("f", [0.01, 0.01]),
    }
    return RequestRecord(**known | changes)


def test_what_was_played_is_what_is_recorded() -> None:
    """Also where fewer events may have arrived, and one retry by chance."""
    cut = record(
        outcome=Outcome.TRUNCATED, output_events=OutputEvents(answer=1), output_tokens=None
    )
    assert disagreement(PLAIN, record()) is None
    assert disagreement(PLAIN, record(conn_retries=1)) is None
    assert disagreement(CUT, cut) is None
    assert disagreement(replace(CUT, least_events=0, most_events=5), cut) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": Outcome.RESET},
        {"output_events": OutputEvents(answer=2)},
        {"output_events": OutputEvents(answer=4)},
        {"output_tokens": None},
        {"conn_retries": 2},
    ],
)
def test_any_difference_is_told(changes: dict[str, Any]) -> None:
    """With what was played."""
    assert "'plain'" in (disagreement(PLAIN, record(**changes)) or "")


def test_detail_flags_and_retries_are_compared() -> None:
    """Where something is expected of them."""
    expected = replace(PLAIN, detail="idle", flags=("no_done",), retries=1)
    right = record(detail="idle", flags=("no_done", "coalesced"), conn_retries=1)

    assert disagreement(expected, right) is None
    for changes in ({"detail": None}, {"flags": ()}, {"conn_retries": 0}):
        assert disagreement(expected, replace(right, **changes)) is not None


@pytest.mark.parametrize("outcome", [Outcome.NOT_SENT, Outcome.UNFINISHED, Outcome.CONNECT_ERROR])
def test_what_never_reached_the_server_must_say_so(outcome: Outcome) -> None:
    """Such a request has nothing to be held against."""
    assert disagreement(None, record(outcome=outcome)) is None
    assert disagreement(None, record()) == "ok, and the server was never asked"


def test_every_request_has_one_record() -> None:
    """Counted by fault and by outcome."""
    expected = {f"r-w-{n}": PLAIN for n in range(3)}
    accounts = reckon([record(n) for n in range(3)], expected)

    assert (accounts.records, accounts.asked, accounts.wrong) == (3, 3, [])
    assert accounts.faults == {"plain": 3}
    assert accounts.outcomes == {("ok", "ok"): 3}


@pytest.mark.parametrize(
    ("seqs", "words"),
    [
        ([0, 1], "r-w-2: asked and not recorded"),
        ([0, 1, 2, 2], "worker w: 4 records are not numbered 0, 1, 2 ..."),
        ([0, 2], "worker w: 2 records are not numbered 0, 1, 2 ..."),
    ],
)
def test_a_missing_or_second_record_is_told(seqs: list[int], words: str) -> None:
    """However it came to be."""
    expected = {f"r-w-{n}": PLAIN for n in range(3)}
    accounts = reckon([record(n) for n in seqs], expected)

    assert words in accounts.wrong
    assert accounts.wrong_count == len(accounts.wrong)


def test_complaints_are_counted_and_not_all_kept() -> None:
    """Ten thousand would be of no use."""
    expected = {f"r-w-{n}": PLAIN for n in range(500)}
    accounts = reckon([record(n, outcome=Outcome.RESET) for n in range(500)], expected)

    assert (accounts.wrong_count, len(accounts.wrong)) == (500, 100)


def samples(slope_per_min: float, seconds: int = 1800) -> tuple[np.ndarray, np.ndarray]:
    """One a second: noise, a saw tooth, a few outliers, and a slope."""
    at_s = np.arange(seconds, dtype=float)
    draw = np.random.default_rng(5)
    values = 80_000 + draw.normal(0, 50, seconds) + (at_s % 60) * 5
    values[draw.integers(0, seconds, 20)] += 20_000
    return at_s, values + at_s / 60 * slope_per_min


@pytest.mark.parametrize("slope", [-40.0, 0.0, 3.0, 100.0])
def test_a_trend_is_the_slope_whatever_the_noise(slope: float) -> None:
    """Its interval holds the true one, and is narrow."""
    found = trend(*samples(slope))

    assert found.low <= slope <= found.high
    assert found.high - found.low < 10
    assert found.low <= found.slope <= found.high


def test_what_grows_is_not_flat() -> None:
    """A little is, as long as it is less than a mebibyte an hour."""
    assert trend(*samples(0.0)).is_flat(flat_kib_per_min(0.0))
    assert trend(*samples(10.0)).is_flat(flat_kib_per_min(0.0))
    assert trend(*samples(-500.0)).is_flat(flat_kib_per_min(0.0))
    assert not trend(*samples(60.0)).is_flat(flat_kib_per_min(0.0))
    assert trend(*samples(60.0)).is_flat(flat_kib_per_min(60_000.0))


def test_the_interval_holds_the_slope_as_often_as_it_says() -> None:
    """In some 95 of 100 random series without one."""
    draw = np.random.default_rng(1)
    at_s = np.arange(400.0)
    held = [
        (found := trend(at_s, draw.normal(0, 1, 400))).low <= 0 <= found.high for _ in range(400)
    ]
    assert 0.92 < np.mean(held) < 0.98


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_samples_tell_nothing(count: int) -> None:
    """The interval is without ends."""
    found = trend(list(range(count)), [1.0] * count)

    assert (found.slope, found.low, found.high) == (0.0, -np.inf, np.inf)


def test_the_quarters_are_of_plain_answers() -> None:
    """By when they were due; sorted."""
    expected = {f"r-w-{n}": PLAIN for n in range(9)} | {"r-w-1": CUT}
    first, last = quarters([record(n) for n in range(9)], expected)

    assert np.allclose(first, [0.05, 0.05])  # due at 0 and 2; 1 was cut
    assert len(last) == 3
    assert [len(side) for side in quarters([], {})] == [0, 0]
