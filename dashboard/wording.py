"""Figures and verdicts in words: units, dashes, and text from elsewhere made harmless.

Rules kept here: absent is a dash and never 0; infinity is said; a verdict is a word with a sign,
so that colour only repeats it; what servers and users named is never markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sla.layout import plain
from sla.units import ABSENT, Kind, format_interval, format_quantity

DASH = "\N{EN DASH}"
INFINITE = "\N{INFINITY}"

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict as a page shows it: a sign and a word, and a colour that adds nothing to them."""

    sign: str
    word: str
    colour: str
    icon: str

    @property
    def text(self) -> str:
        """Sign and word."""
        return f"{self.sign} {self.word}"


_GOOD, _BAD, _UNSURE, _PLAIN = "green", "red", "orange", "gray"
BADGES: Mapping[str, Badge] = {
    badge.word: badge
    for badge in (
        Badge("\N{HEAVY CHECK MARK}", "held", _GOOD, ":material/check_circle:"),
        Badge("\N{HEAVY BALLOT X}", "broken", _BAD, ":material/cancel:"),
        Badge("?", "inconclusive", _UNSURE, ":material/help:"),
        Badge("\N{HEAVY CHECK MARK}", "valid", _GOOD, ":material/verified:"),
        Badge("!", "degraded", _UNSURE, ":material/warning:"),
        Badge("\N{HEAVY BALLOT X}", "invalid", _BAD, ":material/dangerous:"),
        Badge("\N{HEAVY CHECK MARK}", "complete", _PLAIN, ":material/flag:"),
        Badge("\N{HORIZONTAL ELLIPSIS}", "running", "blue", ":material/hourglass_top:"),
        Badge("!", "interrupted", _UNSURE, ":material/front_hand:"),
    )
}
"""Of every verdict, standing and status, by its word."""


def number(value: float | str | None) -> float | None:
    """A figure of the report as a float; its infinity is the string "inf"."""
    return None if value is None else float(value)


def quantity(value: float | str | None, kind: Kind) -> str:
    """A figure of the report for people, with its unit."""
    found = number(value)
    if found is None or math.isnan(found):
        return DASH
    return typeset(format_quantity(found, kind))


def interval(ends: Iterable[float | str | None] | None, kind: Kind) -> str:
    """Both ends of an interval of the report."""
    if ends is None:
        return DASH
    low, high = (number(end) for end in ends)
    if low is None or high is None:
        return DASH
    return typeset(format_interval(low, high, kind)).replace("..", DASH)


def count(value: float | str | None) -> str:
    """A whole number with separators."""
    found = number(value)
    return DASH if found is None or math.isnan(found) else f"{found:,.0f}"


def load(report: Mapping[str, Any]) -> str:
    """What was asked of the server, e.g. "16 users" or "10.0/s"."""
    asked = report["load"]["asked"]
    if asked is None:
        return DASH
    if report["load"]["loop"] == "closed":
        return f"{count(asked)} user{'' if asked == 1 else 's'}"
    return quantity(asked, Kind.REQUESTS_PER_S)


def words(text: object) -> str:
    """``text`` for Markdown as nothing but words: every sign that could be markup is escaped."""
    return _PUNCTUATION.sub(r"\\\1", plain(text))


def typeset(text: str) -> str:
    """Text made for terminals as a page shows it: dashes, infinities and micro signs."""
    text = re.sub(rf"(?<![^\s(]){re.escape(ABSENT)}(?=[,\s)]|$)", DASH, text)
    text = re.sub(r"\binf\b", INFINITE, text)
    return re.sub(r"(?<=\d) us\b", " \N{MICRO SIGN}s", text)
