"""What `bench.vllm_sweep` writes into docs/simulator.md: tables and a plot, between two marks.

Pure: figures in, text out. What stands outside the marks is written by hand and stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from bench.gpu_page import Figures, relative_error, table

MARKS: Final = (
    "<!-- begin: written by make simulator-evidence -->",
    "<!-- end: written by make simulator-evidence -->",
)
COMPARED: Final = ("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One level of the load, as the client saw it of one side; None where it was not observed.

    Attributes:
        figures: what is compared.
        e2e_p50_s: from a request to the end of its answer.
        itl_mean_s: whose median is compared.
        preemptions: a request, on average.
        queue_s: mean wait of a request until it was scheduled.
    """

    figures: Figures
    e2e_p50_s: float | None = None
    itl_mean_s: float | None = None
    preemptions: float | None = None
    queue_s: float | None = None

    @classmethod
    def middle(cls, rounds: Sequence[Seen]) -> Seen:
        """The median of each figure over the rounds in which it was observed."""
        return cls(
            figures=Figures(
                **{name: _middle(figure(r, name) for r in rounds) for name in COMPARED}
            ),
            e2e_p50_s=_middle(r.e2e_p50_s for r in rounds),
            itl_mean_s=_middle(r.itl_mean_s for r in rounds),
            preemptions=_middle(r.preemptions for r in rounds),
            queue_s=_middle(r.queue_s for r in rounds),
        )


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """So many users, each with one request open at a time.

    Attributes:
        users: how many.
        is_fitted: the cost was fitted to it; else it is judged by a fit to others.
        input_tokens, output_tokens: means of a request.
        kv_cache_tokens, block_tokens: what the cache holds, and in which pieces.
        requests: that succeeded within the windows of all rounds together.
        failed: that did not.
        rounds: the server, once a round.
        valid: rounds in which the client found its own measuring sound.
        simulated: the simulator under the same load.
    """

    users: int
    is_fitted: bool
    input_tokens: float
    output_tokens: float
    kv_cache_tokens: int
    block_tokens: int
    requests: int
    failed: int
    rounds: Sequence[Seen]
    valid: int
    simulated: Seen

    @property
    def measured(self) -> Seen:
        """The median of the rounds."""
        return Seen.middle(self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All that was found.

    Attributes:
        facts: what ran on what, in the order shown.
        options: the cost, as `streamgauge fit` printed it.
        told: what it said of the fit.
        roomy: by rising users, the KV cache holding them all.
        small: likewise, with a cache that does not.
        plot: the picture's path, as the page links it.
    """

    facts: Mapping[str, str]
    options: str
    told: str
    roomy: Sequence[Level]
    small: Sequence[Level]
    plot: str


def figure(seen: Seen, name: str) -> float | None:
    """One of those compared, by name."""
    value: float | None = getattr(seen.figures, name)
    return value


def power(seen: Seen) -> float | None:
    """Throughput over latency: output tokens/s a second of E2E (Kleinrock, ICC 1979)."""
    if seen.figures.tokens_per_s is None or not seen.e2e_p50_s:
        return None
    return seen.figures.tokens_per_s / seen.e2e_p50_s


def knee(seen: Mapping[int, Seen]) -> int | None:
    """The users of the level with the most power; None where none is known."""
    powers = {users: found for users, each in seen.items() if (found := power(each)) is not None}
    return max(powers, key=lambda users: powers[users], default=None)


def knees(levels: Sequence[Level]) -> tuple[int | None, int | None]:
    """Of the server and of the simulator."""
    measured = knee({level.users: level.measured for level in levels})
    return measured, knee({level.users: level.simulated for level in levels})


def errors(levels: Iterable[Level], names: Sequence[str] = COMPARED) -> list[float]:
    """The relative errors of the simulator, without their signs, of all levels and figures."""
    return _known_sizes(
        relative_error(figure(level.simulated, name), figure(level.measured, name))
        for level in levels
        for name in names
    )


def itl_mean_errors(levels: Iterable[Level]) -> list[float]:
    """The same of the mean ITL."""
    return _known_sizes(
        relative_error(level.simulated.itl_mean_s, level.measured.itl_mean_s) for level in levels
    )


def _known_sizes(found: Iterable[float | None]) -> list[float]:
    return [abs(error) for error in found if error is not None]


def apart(level: Level) -> float | None:
    """How far the rounds lay apart: the most of |round - median| / median over the figures."""
    middle = level.measured
    found = _known_sizes(
        relative_error(figure(each, name), figure(middle, name))
        for each in level.rounds
        for name in COMPARED
    )
    return max(found) if found and len(level.rounds) > 1 else None


def findings(sweep: Sweep) -> str:
    """What stands between the marks."""
    return "\n\n".join(
        (
            table(("what", "value"), list(sweep.facts.items())),
            _fit(sweep),
            _asked(sweep.roomy),
            _compared(sweep.roomy),
            summary(sweep.roomy),
            f"![Throughput against latency of vLLM and of the simulator]({sweep.plot})",
            "### Past the size of the KV cache",
            _asked(sweep.small),
            _compared(sweep.small),
            _crowded(sweep.small),
        )
    )


def _fit(sweep: Sweep) -> str:
    fitted = ", ".join(str(level.users) for level in sweep.roomy if level.is_fitted)
    return (
        f"The cost was fitted to the levels of {fitted} users and to lone prompts. {sweep.told} "
        f"What `streamgauge fit` printed:\n\n```\n{sweep.options}\n```"
    )


def _asked(levels: Sequence[Level]) -> str:
    """What is asked for, and how much of the cache that takes."""
    if not levels:
        return "Nothing was measured."
    most = levels[-1]
    tokens = most.input_tokens + most.output_tokens
    return (
        f"Prompts of {most.input_tokens:.0f} tokens on average, answers of "
        f"{most.output_tokens:.0f}. The cache holds {most.kv_cache_tokens:,} tokens in blocks of "
        f"{most.block_tokens}; {most.users} users ask for "
        f"{most.users * tokens / most.kv_cache_tokens:.2g} times that."
    )


def _compared(levels: Sequence[Level]) -> str:
    head = ("users", "requests", "TTFT p50", "TTFT p95", "ITL p50", "tokens/s")
    rows = []
    for level in levels:
        users = f"{level.users}" if level.is_fitted else f"**{level.users}**"
        failed = f", {level.failed:,} failed" if level.failed else ""
        cells = [users, f"{level.requests:,}{failed}"]
        cells += [_pair(level, name) for name in COMPARED]
        rows.append((*cells, _percent(apart(level)), f"{level.valid} of {len(level.rounds)}"))
    return table((*head, "rounds apart", "rounds valid"), rows)


def _pair(level: Level, name: str) -> str:
    """Measured, simulated and the error."""
    sides = [figure(seen, name) for seen in (level.measured, level.simulated)]
    factor, unit = (1.0, "") if name == "tokens_per_s" else (1e3, " ms")
    measured, simulated = ("-" if side is None else _short(side * factor) for side in sides)
    error = relative_error(sides[1], sides[0])
    return f"{measured} / {simulated}{unit}" + ("" if error is None else f" ({error:+.0%})")


def summary(levels: Sequence[Level]) -> str:
    """The errors of the levels that the fit did not see, and the knees, in words."""
    measured, simulated = knees(levels)
    unseen = [level for level in levels if not level.is_fitted]
    sentences = []
    if found := errors(unseen):
        sentences.append(
            f"Of the levels that the fit did not see, the {len(found)} errors are "
            f"{median(found):.0%} in the median and {max(found):.0%} at most."
        )
    if found := itl_mean_errors(unseen):
        sentences.append(f"The mean ITL is off by {median(found):.0%}, {max(found):.0%} at most.")
    below = [level for level in unseen if measured is not None and level.users <= measured]
    if found := errors(below):
        sentences.append(
            f"Up to the knee they are {median(found):.0%} and {max(found):.0%} ({len(found)})."
        )
    if measured is not None:
        sentences.append(
            "The knee, the level with the most throughput for its latency (Kleinrock's power: "
            f"tokens/s over E2E), lies at {measured} users, in the simulation at {simulated}."
        )
    return " ".join(sentences)


def _crowded(levels: Sequence[Level]) -> str:
    """Preemptions and waiting of both sides."""
    head = ("users", "preemptions a request", "mean wait in the queue", "E2E p50")
    rows = []
    for level in levels:
        sides = (level.measured, level.simulated)
        preempted = " / ".join(_number(seen.preemptions) for seen in sides)
        waited = " / ".join(_milliseconds(seen.queue_s) for seen in sides)
        lasted = " / ".join(_milliseconds(seen.e2e_p50_s) for seen in sides)
        rows.append((f"**{level.users}**", preempted, waited, lasted))
    return table(head, rows)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{_short(seconds * 1e3)} ms"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.0%}"


# The picture. It brings its own ground, so that it is legible on a light page and on a dark one.

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 60, 56
_INK, _FAINT, _GROUND = "#1f2937", "#d1d5db", "#ffffff"
_STYLES: Final = {
    "vLLM": ("#1d4ed8", ""),
    "simulator": ("#c2410c", ' stroke-dasharray="6 4"'),
}
_TICKS: Final = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """From a value to a place: logarithmic, since levels double."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2, 5, 10 … within the scale."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [step * 10.0**decade for decade in decades for step in _TICKS]
        return [tick for tick in found if self.low <= tick <= self.high]


def picture(levels: Sequence[Level]) -> str:
    """Throughput against latency of both sides, with their knees, as SVG.

    Levels of which either was not observed are left out.
    """
    sides = {
        "vLLM": {level.users: level.measured for level in levels},
        "simulator": {level.users: level.simulated for level in levels},
    }
    points = {name: _points(side) for name, side in sides.items()}
    seen = [point for side in points.values() for point in side.values()]
    if not seen:
        return _framed([_text(_WIDTH / 2, _HEIGHT / 2, "nothing was observed", "middle")])
    across = _scale([tokens for tokens, _ in seen], _LEFT, _WIDTH - _RIGHT)
    up = _scale([seconds for _, seconds in seen], _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(across, up)
    for place, (name, side) in enumerate(points.items()):
        parts += _curve(name, side, knee(sides[name]), across, up)
        parts += _legend(name, 96 + 230 * place, knee(sides[name]))
    return _framed(parts)


def _points(side: Mapping[int, Seen]) -> dict[int, tuple[float, float]]:
    """Tokens/s and E2E, by users."""
    return {
        users: (seen.figures.tokens_per_s, seen.e2e_p50_s)
        for users, seen in side.items()
        if seen.figures.tokens_per_s and seen.e2e_p50_s
    }


def _scale(values: Sequence[float], begin: float, end: float) -> _Scale:
    return _Scale(low=min(values) / 1.25, high=max(values) * 1.25, begin=begin, end=end)


def _axes(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(_line((x, _TOP), (x, _HEIGHT - _BOTTOM), _FAINT))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{tick:,.0f}", "middle"))
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(_line((_LEFT, y), (_WIDTH - _RIGHT, y), _FAINT))
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g} s", "end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 14, "output tokens/s (at the points: users)", "middle"))
    parts.append(_text(_LEFT - 52, _TOP - 40, "E2E p50", "start"))
    return parts


def _curve(
    name: str,
    side: Mapping[int, tuple[float, float]],
    at_knee: int | None,
    across: _Scale,
    up: _Scale,
) -> list[str]:
    colour, dashes = _STYLES[name]
    places = {users: (across.at(x), up.at(y)) for users, (x, y) in side.items()}
    parts = [
        _line(a, b, colour, f' stroke-width="2"{dashes}') for a, b in pairwise(places.values())
    ]
    for users, (x, y) in places.items():
        fill = colour if name == "vLLM" else _GROUND
        parts.append(_circle(x, y, 4, colour, fill))
        if users == at_knee:
            parts.append(_circle(x, y, 10, colour, "none"))
        if name == "vLLM":
            parts.append(_text(x + 8, y + 22, str(users), "start"))
    return parts


def _legend(name: str, x: float, at_knee: int | None) -> list[str]:
    colour, dashes = _STYLES[name]
    y = _TOP - 40
    told = name if at_knee is None else f"{name} (knee: {at_knee} users)"
    return [
        _line((x, y - 4), (x + 32, y - 4), colour, f' stroke-width="2"{dashes}'),
        _circle(x + 16, y - 4, 4, colour, colour if name == "vLLM" else _GROUND),
        _text(x + 40, y, told, "start"),
    ]


def _line(a: tuple[float, float], b: tuple[float, float], colour: str, more: str = "") -> str:
    ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
    return f'<line {ends} stroke="{colour}"{more}/>'


def _circle(x: float, y: float, radius: float, colour: str, fill: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" stroke="{colour}" stroke-width="2" '
        f'fill="{fill}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _framed(parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}" role="img">'
    )
    title = "<title>Output tokens/s against E2E p50, by users; the knees ringed</title>"
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{_GROUND}"/>'
    return "\n".join((head, title, ground, *parts, "</svg>")) + "\n"
