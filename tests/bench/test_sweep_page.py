"""What the sweep writes: errors, the knee, the tables and the picture."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu_page import Figures, with_findings
from bench.sweep_page import (
    MARKS,
    Level,
    Seen,
    Sweep,
    apart,
    errors,
    findings,
    itl_mean_errors,
    knee,
    picture,
    power,
    summary,
)
from tests.conftest import ROOT

SVG = "{http://www.w3.org/2000/svg}"
NOTHING = Seen(figures=Figures(ttft_p50_s=None, ttft_p95_s=None, itl_p50_s=None, tokens_per_s=None))
POSITIVE = st.floats(1e-3, 1e4)


def seen(tokens_per_s: float | None = 100.0, e2e_s: float | None = 1.0, **changes: Any) -> Seen:
    """One side of a level: TTFT 100 and 200 ms, ITL 10 ms unless told."""
    figures = {"ttft_p50_s": 0.1, "ttft_p95_s": 0.2, "itl_p50_s": 0.01} | changes
    return Seen(figures=Figures(**figures, tokens_per_s=tokens_per_s), e2e_p50_s=e2e_s)


def level(users: int, *rounds: Seen, simulated: Seen | None = None, **changes: Any) -> Level:
    """A level that the fit did not see, each round like the simulator unless told."""
    made: dict[str, Any] = {"is_fitted": False, "requests": 40, "failed": 0}
    return Level(
        **made | changes,
        users=users,
        input_tokens=100.0,
        output_tokens=96.0,
        kv_cache_tokens=1280,
        block_tokens=128,
        rounds=rounds or (seen(),),
        valid=1,
        simulated=simulated or seen(),
    )


def sweep(*roomy: Level) -> Sweep:
    """A page of these levels, the last of them with the small cache as well."""
    return Sweep(
        facts={"date": "2026-11-21"},
        options="--prefill-base 1us",
        told="Fitted well.",
        roomy=roomy,
        small=roomy[-1:],
        plot="images/a.svg",
    )


def test_errors_are_relative_to_what_was_measured() -> None:
    """10 % too slow and 20 % too fast are 0.1 and 0.2; what either side lacks is left out."""
    off = level(2, seen(100.0), simulated=seen(110.0, itl_p50_s=0.008, ttft_p95_s=None))

    assert sorted(errors([off])) == pytest.approx([0.0, 0.1, 0.2])
    assert errors([level(2, NOTHING, simulated=seen())]) == []
    assert itl_mean_errors([off]) == []


def test_the_median_of_the_rounds_counts_and_their_distance_is_told() -> None:
    """Of 90, 100 and 150 tokens/s the middle one; the farthest lies half of it away."""
    rounds = [seen(90.0), seen(150.0), seen(100.0)]

    assert level(2, *rounds).measured.figures.tokens_per_s == 100.0
    assert apart(level(2, *rounds)) == pytest.approx(0.5)
    assert apart(level(2, rounds[0])) is None


def test_the_knee_is_where_throughput_for_its_latency_is_highest() -> None:
    """Up to 4 users the answers are no slower; with 8 they take thrice as long for a fifth more."""
    sides = {1: seen(100, 1.0), 4: seen(390, 1.05), 8: seen(470, 3.0), 16: seen(480, 6.0)}

    assert knee(sides) == 4
    assert knee({1: NOTHING, 2: seen(10, 1.0)}) == 2
    assert knee({1: NOTHING}) is None
    assert power(seen(10, None)) is None


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=6))
def test_no_level_has_more_power_than_the_knee(points: list[tuple[float, float]]) -> None:
    """Whatever was measured."""
    sides = {users: seen(*point) for users, point in enumerate(points, start=1)}
    found = knee(sides)

    assert found is not None
    assert power(sides[found]) == max(power(side) or 0.0 for side in sides.values())


def test_the_page_shows_both_sides_and_the_error() -> None:
    """Measured / simulated (error); levels outside the fit in bold; failures told."""
    text = findings(
        sweep(
            level(1, is_fitted=True),
            level(2, seen(1000.0), seen(1100.0), simulated=seen(1176.0, itl_p50_s=None), failed=3),
        )
    )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    bold = next(row for row in rows if row[0] == "**2**")

    assert "fitted to the levels of 1 users and to lone prompts" in text
    assert next(row for row in rows if row[0] == "1")[2] == "100 / 100 ms (+0%)"
    assert bold[1] == "40, 3 failed"
    assert bold[4] == "10 / - ms"
    assert bold[5] == "1,050 / 1,176 (+12%)"
    assert bold[6:] == ["5%", "1 of 2"]


def test_the_page_says_how_much_of_the_cache_is_asked_for() -> None:
    """20 users want 196 tokens each, of the 1,280 that there are."""
    text = findings(sweep(level(1), level(20)))

    assert text.count("Prompts of 100 tokens on average, answers of 96.") == 2
    assert "1,280 tokens in blocks of 128; 20 users ask for 3.1 times that." in text


def test_the_summary_judges_by_what_the_fit_did_not_see() -> None:
    """A level of the fit that is far off counts neither there nor below the knee."""
    off = level(1, is_fitted=True, simulated=seen(500.0))
    told = summary([off, level(2, seen(300.0, 1.0), simulated=seen(330.0, 1.0))])

    assert "the 4 errors are 0% in the median and 10% at most" in told
    assert "lies at 2 users, in the simulation at 1" in told
    assert summary([level(1, NOTHING, simulated=NOTHING)]) == ""


def test_the_picture_is_svg_on_its_own_ground() -> None:
    """Legible on any page: a white ground below all else; a point a level and side, two rings."""
    levels = [level(u, seen(100 * u, u / 4), simulated=seen(90 * u, u / 4)) for u in (1, 2, 8)]
    root = ET.fromstring(picture([*levels, level(9, NOTHING, simulated=NOTHING)]))  # noqa: S314  # ours
    inside = [float(v) for v in root.attrib["viewBox"].split()][2:]
    circles = root.findall(f"{SVG}circle")
    texts = [text.text for text in root.findall(f"{SVG}text")]

    ground = next(shape for shape in root if shape.tag != f"{SVG}title")
    assert (ground.tag, ground.attrib["fill"]) == (f"{SVG}rect", "#ffffff")
    assert sum(c.attrib["r"] == "10" for c in circles) == 2
    assert sum(c.attrib["r"] == "4" for c in circles) == 3 + 3 + 2  # and the legend's
    assert {"1", "2", "8"} <= set(texts)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < inside[0]
        assert 0 < float(circle.attrib["cy"]) < inside[1]


def test_nothing_observed_is_said_in_the_picture() -> None:
    """Rather than drawn at 0."""
    text = picture([level(1, NOTHING, simulated=NOTHING)])

    assert "nothing was observed" in text
    assert "<circle" not in text


def test_the_page_in_the_repository_can_take_it() -> None:
    """Its marks are there once each, and what stands around them stays."""
    page = (ROOT / "docs" / "simulator.md").read_text()
    written = with_findings(page, findings(sweep(level(1), level(2))), MARKS)

    assert written.startswith(page[: page.index(MARKS[0])])
    assert written.endswith(page[page.index(MARKS[1]) :])
    links = re.findall(r"!\[[^]]*\]\((images/[^)]*)\)", page)
    assert all((ROOT / "docs" / link).exists() for link in links)
