"""Quantities: read with their units, written with three digits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla.units import (
    UNITS,
    Kind,
    QuantityError,
    format_interval,
    format_limit,
    format_quantity,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("500 ms", Kind.SECONDS, 0.5),
        ("500ms", Kind.SECONDS, 0.5),
        ("1.5 s", Kind.SECONDS, 1.5),
        ("2 min", Kind.SECONDS, 120),
        ("80 us", Kind.SECONDS, 80e-6),
        ("1e3 ms", Kind.SECONDS, 1),
        ("0.5 %", Kind.RATIO, 0.005),
        ("0.5%", Kind.RATIO, 0.005),
        ("0.95 ratio", Kind.RATIO, 0.95),
        ("1500", Kind.TOKENS_PER_S, 1500),
        ("1500 tokens/s", Kind.TOKENS_PER_S, 1500),
        ("1500  tokens  per s", Kind.TOKENS_PER_S, 1500),
        ("10 requests/s", Kind.REQUESTS_PER_S, 10),
        (".002 usd", Kind.USD, 0.002),
    ],
)
def test_units_are_taken_off(text: str, kind: Kind, value: float) -> None:
    """A number with its unit is a number in base units."""
    assert parse_quantity(text, kind) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("500", Kind.SECONDS),  # bare
        ("500 %", Kind.SECONDS),
        ("500 MS", Kind.SECONDS),
        ("0.005", Kind.RATIO),
        ("5 ms", Kind.RATIO),
        ("10 requests/s", Kind.TOKENS_PER_S),
        ("2 eur", Kind.USD),
        ("nan ms", Kind.SECONDS),
        ("inf s", Kind.SECONDS),
        ("1e999 s", Kind.SECONDS),
        ("1,5 s", Kind.SECONDS),
        ("", Kind.USD),
    ],
)
def test_a_wrong_unit_is_refused(text: str, kind: Kind) -> None:
    """No unit, another's unit, and what is no finite number are refused with what was expected."""
    with pytest.raises(QuantityError, match="expected"):
        parse_quantity(text, kind)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, Kind.SECONDS, "-"),
        (math.inf, Kind.SECONDS, "inf"),
        (0.0, Kind.SECONDS, "0 ms"),
        (0.0000801, Kind.SECONDS, "80.1 us"),
        (0.05, Kind.SECONDS, "50.0 ms"),
        (0.9999, Kind.SECONDS, "1.00 s"),
        (12.345, Kind.SECONDS, "12.3 s"),
        (0.005, Kind.RATIO, "0.500 %"),
        (1.0, Kind.RATIO, "100 %"),
        (12345.6, Kind.TOKENS_PER_S, "12,346/s"),
        (0.0000841, Kind.USD, "0.0000841 usd"),
    ],
)
def test_units_are_put_on(value: float | None, kind: Kind, text: str) -> None:
    """Three digits in the unit that suits the size; absent is a dash."""
    assert format_quantity(value, kind) == text


def test_a_limit_has_no_trailing_zeros() -> None:
    """A limit reads as a person would write it."""
    assert format_limit(0.5, Kind.SECONDS) == "500 ms"
    assert format_limit(0.005, Kind.RATIO) == "0.5 %"
    assert format_limit(1500, Kind.TOKENS_PER_S) == "1,500/s"
    assert format_limit(0.1, Kind.REQUESTS_PER_S) == "0.1/s"


def test_an_interval_says_its_unit_once() -> None:
    """Both ends in one unit say it once, else each says its own."""
    assert format_interval(0.048, 0.0562, Kind.SECONDS) == "48.0..56.2 ms"
    assert format_interval(0.98, 1.02, Kind.SECONDS) == "980 ms..1.02 s"
    assert format_interval(0.1, math.inf, Kind.SECONDS) == "100 ms..inf"
    assert format_interval(None, None, Kind.SECONDS) == "-"


@given(st.sampled_from(Kind), st.floats(1e-6, 1e6))
def test_what_is_written_can_be_read(kind: Kind, value: float) -> None:
    """A formatted quantity is one that the parser takes, within three digits."""
    text = format_quantity(value, kind).replace(",", "")

    assert any(unit and text.endswith(unit) for unit in UNITS[kind])
    assert parse_quantity(text, kind) == pytest.approx(value, rel=0.006, abs=1e-9)
