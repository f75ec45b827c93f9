"""Figures in words, and words from elsewhere made harmless."""

from __future__ import annotations

import math
import string

import pytest

from collectors.runs import RunStatus
from collectors.validity import Standing
from dashboard.wording import (
    BADGES,
    DASH,
    INFINITE,
    count,
    interval,
    load,
    number,
    quantity,
    typeset,
    words,
)
from sla import Verdict
from sla.units import Kind


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, Kind.SECONDS, DASH),
        (math.nan, Kind.SECONDS, DASH),
        ("inf", Kind.SECONDS, INFINITE),
        (0.0, Kind.SECONDS, "0 ms"),
        (0.0312, Kind.SECONDS, "31.2 ms"),
        (0.0000312, Kind.SECONDS, "31.2 \N{MICRO SIGN}s"),
        (1.25, Kind.USD, "1.25 usd"),
        (0.0123, Kind.RATIO, "1.23 %"),
        (12.5, Kind.REQUESTS_PER_S, "12.5/s"),
    ],
)
def test_quantities(value: float | str | None, kind: Kind, text: str) -> None:
    """Absent is a dash, infinity is said, zero is zero; units are those of the report."""
    assert quantity(value, kind) == text


def test_intervals() -> None:
    """Both ends, or a dash."""
    assert interval([0.1, "inf"], Kind.SECONDS) == f"100 ms{DASH}{INFINITE}"
    assert interval([0.1, 0.2], Kind.SECONDS) == f"100{DASH}200 ms"
    assert interval(None, Kind.SECONDS) == interval([None, 1.0], Kind.SECONDS) == DASH


def test_counts() -> None:
    """None observed is a dash; none counted is 0."""
    assert (count(None), count(0), count(12345.0), number(None)) == (DASH, "0", "12,345", None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-", DASH),
        ("- in, - out", f"{DASH} in, {DASH} out"),
        ("- (0 of 0)", f"{DASH} (0 of 0)"),
        ("read delay p99 -, CPU -", f"read delay p99 {DASH}, CPU {DASH}"),
        ("sim-8b, 1.5-2", "sim-8b, 1.5-2"),
        ("3 ms..inf", f"3 ms..{INFINITE}"),
        ("information in infinite us", "information in infinite us"),
    ],
)
def test_terminal_text_is_set_for_a_page(text: str, shown: str) -> None:
    """Lone dashes and infinities, not those within words."""
    assert typeset(text) == shown


@pytest.mark.parametrize(
    ("loop", "asked", "text"),
    [
        ("closed", 1, "1 user"),
        ("closed", 16, "16 users"),
        ("open", 2.5, "2.50/s"),
        ("open", None, DASH),
    ],
)
def test_loads(loop: str, asked: float | None, text: str) -> None:
    """Users in a closed loop, a rate in an open one."""
    assert load({"load": {"loop": loop, "asked": asked}}) == text


def test_every_verdict_standing_and_status_has_a_badge_of_its_own_word() -> None:
    """A sign beside the word, so that colour adds nothing."""
    for word in (*Verdict, *Standing, *RunStatus):
        assert BADGES[word].word == word
        assert BADGES[word].text.endswith(f" {word}")
    for group in (Verdict, Standing, RunStatus):
        assert len({BADGES[word].sign for word in group}) == len(group)


def test_words_escape_every_sign_that_could_be_markup() -> None:
    """Each ASCII punctuation mark gets the backslash that CommonMark makes it literal by."""
    escaped = words(string.punctuation)
    assert escaped == "".join(f"\\{sign}" for sign in string.punctuation)
    assert words("plain words 123") == "plain words 123"
    assert "\n" not in words("two\nlines")
