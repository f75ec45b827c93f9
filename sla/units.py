"""Quantities with their units: read from SLA files, written for people.

Inside there are base units only (seconds, ratios from 0 to 1, a second, US dollars); units are
taken off on the way in and put on on the way out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum

ABSENT = "-"
INFINITE = "inf"


class Kind(StrEnum):
    """What a figure is measured in."""

    SECONDS = "seconds"
    RATIO = "ratio"
    REQUESTS_PER_S = "requests per second"
    TOKENS_PER_S = "tokens per second"
    USD = "US dollars"


def _per_second(*nouns: str) -> dict[str, float]:
    return {"": 1.0, "per s": 1.0, "/s": 1.0} | {
        f"{noun}{per}": 1.0 for noun in nouns for per in (" per s", "/s")
    }


UNITS: Mapping[Kind, Mapping[str, float]] = {
    Kind.SECONDS: {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    Kind.RATIO: {"%": 0.01, "ratio": 1.0},
    # The name of the figure says "per second", so these may go without.
    Kind.REQUESTS_PER_S: _per_second("requests", "req"),
    Kind.TOKENS_PER_S: _per_second("tokens", "tok"),
    Kind.USD: {"usd": 1.0},
}
"""For each kind its units, and what one is in base units."""

NAMES = {
    Kind.SECONDS: "a unit of time (us, ms, s or min)",
    Kind.RATIO: "% or ratio",
    Kind.REQUESTS_PER_S: "requests per s, or no unit",
    Kind.TOKENS_PER_S: "tokens per s, or no unit",
    Kind.USD: "usd",
}

_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)


class QuantityError(ValueError):
    """Text is no quantity of the wanted kind; says what was expected and found."""


def parse_quantity(text: str, kind: Kind) -> float:
    """``text``, a number with a unit, in base units.

    Raises:
        QuantityError: no finite number, or not a unit of ``kind``.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise QuantityError(f"expected a number with {NAMES[kind]}, found {text.strip()!r}")
    unit = " ".join(match[2].split())
    units = UNITS[kind]
    if unit not in units:
        said = f"{unit!r} is not" if unit else "a bare number lacks"
        raise QuantityError(f"expected {NAMES[kind]} after {match[1]}; {said} one of them")
    return float(f"{float(match[1]) * units[unit]:.12g}")  # 95 * 0.01 is 0.9500000000000001


def format_quantity(value: float | None, kind: Kind) -> str:
    """``value`` for people, with three or four digits and the unit that suits its size."""
    if value is None:
        return ABSENT
    if math.isinf(value):
        return INFINITE
    if kind is Kind.SECONDS:
        return _format_seconds(value)
    if kind is Kind.RATIO:
        return f"{_digits(value * 100)} %"
    if kind is Kind.USD:
        return f"{_digits(value)} usd"
    return f"{_digits(value)}/s"


def _format_seconds(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0 ms"
    if size < 0.9995e-3:
        return f"{_digits(value * 1e6)} us"
    if size < 0.9995:
        return f"{_digits(value * 1e3)} ms"
    return f"{_digits(value)} s"


def _digits(value: float) -> str:
    """Three significant digits, all of an integer part, and no exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}") if abs(value) < 1000 else value  # 9.999 is 10.0, not 10.00
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 9)}f}"


def format_limit(value: float, kind: Kind) -> str:
    """``value`` as a person would write it in a file: without trailing zeros."""
    number, space, unit = format_quantity(value, kind).partition(" ")
    number, slash, rest = number.partition("/")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number}{slash}{rest}{space}{unit}"


def format_interval(low: float | None, high: float | None, kind: Kind) -> str:
    """Both ends, e.g. "48.1 ms..inf"; a dash where unknown."""
    if low is None or high is None:
        return ABSENT
    start, end = format_quantity(low, kind), format_quantity(high, kind)
    # One unit is enough where both ends have the same.
    number, _, unit = start.partition(" ")
    if unit and end.endswith(f" {unit}"):
        start = number
    return f"{start}..{end}"
