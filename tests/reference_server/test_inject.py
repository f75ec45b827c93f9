"""Which request gets which fault, and how that is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from reference_server.errors import SettingsError
from reference_server.inject import Fault, Mishap, Plan, read_mishap, read_plan, read_rate
from reference_server.quirks import Quirk


def drawn(plan: Plan, requests: int) -> list[Mishap | None]:
    return [plan.draw(float(number)) for number in range(requests)]


def test_the_same_seed_fails_the_same_requests() -> None:
    """And another seed others."""
    rates = [read_rate("reset:0.1"), read_rate("stall:0.2:2s")]
    first, again, other = (drawn(Plan(rates, seed), 200) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_rates_are_shares_of_all_requests() -> None:
    """Of 20,000 requests each fault gets its share, within four standard errors."""
    plan = Plan([read_rate("reset:0.1"), read_rate("crlf:0.05")], 1)
    drawn(plan, 20_000)

    assert plan.given["reset"] == pytest.approx(2000, abs=4 * (20_000 * 0.1 * 0.9) ** 0.5)
    assert plan.given["crlf"] == pytest.approx(1000, abs=4 * (20_000 * 0.05 * 0.95) ** 0.5)


def test_a_rate_of_0_is_never_and_of_1_always() -> None:
    """The ends of the range are exact."""
    assert set(drawn(Plan([read_rate("reset:0")]), 1000)) == {None}
    assert set(drawn(Plan([read_rate("reset:1")]), 1000)) == {Mishap(Fault.RESET)}


def test_a_burst_refuses_everybody_until_it_is_over() -> None:
    """And says what is left of it; what comes after it is as if there had been none."""
    plan, calm = Plan([read_rate("429:0.1:5s")], 3), Plan([read_rate("429:0.1")], 3)
    in_calm = drawn(calm, 60)
    in_burst = drawn(plan, 60)
    first = next(number for number, mishap in enumerate(in_calm) if mishap)

    assert [mishap.seconds for mishap in in_burst[first : first + 5] if mishap] == [5, 4, 3, 2, 1]
    assert all(now for calm_, now in zip(in_calm, in_burst, strict=True) if calm_)


def test_a_request_that_asks_for_a_fault_draws_nothing() -> None:
    """So the others get what they would have got without it."""
    rates = [read_rate("reset:0.3")]
    plain, mixed = Plan(rates, 1), Plan(rates, 1)
    expected = drawn(plain, 50)
    seen = []
    for number in range(50):
        mixed.draw(number, Mishap(Fault.CUT))
        seen.append(mixed.draw(number))

    assert seen == expected
    assert mixed.given["cut"] == 50


@pytest.mark.parametrize(
    ("text", "mishap", "ratio"),
    [
        ("reset:0.01", Mishap(Fault.RESET), 0.01),
        ("stall:0.005:2s", Mishap(Fault.STALL, 2.0), 0.005),
        ("slow-head:1", Mishap(Fault.SLOW_HEAD, 1.0), 1.0),
        ("429:0.5:250ms", Mishap(Fault.RATE_LIMITED, 0.25), 0.5),
        ("no-done:0.5", Mishap(Quirk.NO_DONE), 0.5),
    ],
)
def test_how_a_rate_is_written(text: str, mishap: Mishap, ratio: float) -> None:
    """A name, a share and for some a duration; written out again it reads the same."""
    rate = read_rate(text)

    assert (rate.mishap, rate.ratio) == (mishap, ratio)
    assert read_rate(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rset:0.1", "There is no fault 'rset'; known are: 429,"),
        ("reset", "between 0 and 1, got ''"),
        ("reset:1.5", "between 0 and 1, got '1.5'"),
        ("reset:nan", "between 0 and 1, got 'nan'"),
        ("reset:-1", "between 0 and 1, got '-1'"),
        ("stall:0.1:soon", "'soon' is not a duration"),
        ("truncate:0.1:2s", "The fault 'truncate' takes no duration"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, says: str) -> None:
    """In one sentence that says what was expected."""
    with pytest.raises(SettingsError, match=r"\.$") as caught:
        read_rate(text)

    assert says in str(caught.value)


def test_one_request_writes_it_without_a_rate() -> None:
    """``NAME`` or ``NAME:DURATION``."""
    assert read_mishap("stall:2s") == Mishap(Fault.STALL, 2.0)
    assert read_mishap(" truncate ") == Mishap(Fault.TRUNCATE)


@pytest.mark.parametrize(
    "fields",
    [[], {"faults": "reset:0.1"}, {"seed": "x"}, {"faults": [1]}, {"fault": []}, {"seed": True}],
)
def test_a_plan_that_is_none_is_refused(fields: Any) -> None:
    """Of the wrong type, or with fields nobody knows."""
    with pytest.raises(SettingsError):
        read_plan(fields)


def test_more_faults_than_requests_are_refused() -> None:
    """A request gets one at most."""
    with pytest.raises(SettingsError, match=r"add up to 1 at most, got 1\.2"):
        read_plan({"faults": ["reset:0.6", "cut:0.6"]})


def test_a_plan_shows_what_it_is_and_what_it_did() -> None:
    """As the admin endpoint answers."""
    plan = read_plan({"faults": ["reset:1"], "seed": 4})
    drawn(plan, 3)

    assert plan.to_fields() == {"faults": ["reset:1"], "seed": 4, "given": {"reset": 3}}
