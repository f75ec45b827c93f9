"""The fidelity tables: the client beside the truth at several loads, and what a token costs.

One row is one run of the whole tool against the metronome, compared request by request
(:mod:`streamgauge.campaigns.calibrate`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from streamgauge.campaigns.calibrate import Fidelity, Pair, Source, measure_client

RAMP_S = 2.0
DURATION_S = 14
MAX_LAG_S = 5e-3  # of the loop at p99; beyond it a process is full
STALLED = Path(__file__).with_name("stalled_chat.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One row to measure: how many streams, through what.

    Attributes:
        https: TLS between client and source.
        stalled: the client's loop is blocked 20 ms of every 40.
    """

    streams: int
    transport: str = "wire"
    https: bool = False
    processes: int = 1
    stalled: bool = False
    itl_s: float = 0.01

    def options(self) -> list[str]:
        """As words for Locust."""
        words = ["--transport", self.transport]
        return words + (["--processes", str(self.processes)] if self.processes > 1 else [])

    @property
    def client(self) -> str:
        """What the client is, in a few words."""
        scheme = "https" if self.https else "http"
        more = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.transport}, {scheme}{more}"


PLAIN = tuple(Level(streams=n) for n in (1, 16, 64, 256, 512))
OTHERS = (
    *(Level(streams=n, https=True) for n in (1, 64, 256, 512)),
    *(Level(streams=n, processes=2) for n in (64, 256, 512)),
    *(Level(streams=n, transport="httpx") for n in (1, 64, 256, 512)),
    *(Level(streams=n, transport="httpx", https=True) for n in (1, 64, 256)),
)
STALLS = tuple(Level(streams=32, stalled=True, itl_s=gap) for gap in (0.025, 0.010))
RATES = tuple(Level(streams=n) for n in (384, 448, 512, 576, 640, 768))

Row = tuple[Level, Fidelity]


def measure_level(level: Level, tls_files: tuple[Path, Path] | None) -> Fidelity:
    """One row of a table.

    Args:
        level: what to measure.
        tls_files: certificate and key of the source, for levels over https.
    """
    source = Source(
        itl_s=level.itl_s,
        realtime=source_may_be_realtime(),
        tls_files=tls_files if level.https else None,
    )
    fidelity = measure_client(
        level.streams,
        duration_s=DURATION_S,
        ramp_s=RAMP_S,
        source=source,
        options=level.options(),
        scenario=STALLED if level.stalled else None,
    )
    if fidelity is None:
        raise SystemExit(f"the load at {level.streams} streams gave nothing to compare")
    return fidelity


def highest_rate(rows: Iterable[Row]) -> Row | None:
    """The row with the highest rate at which neither the loop nor the source was late."""
    good = [
        (level, f)
        for level, f in rows
        if not f.source_limited and f.loop_lag_p99_s is not None and f.loop_lag_p99_s <= MAX_LAG_S
    ]
    return max(good, key=lambda row: row[1].tokens_per_s or 0.0, default=None)


def source_may_be_realtime() -> bool:
    """Whether this machine lets the source have real-time priority: it is then late less often."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


COLUMNS: dict[str, Callable[[Level, Fidelity], str]] = {
    "streams": lambda level, _: f"{level.streams}",
    "client": lambda level, _: level.client,
    "gap ms": lambda level, _: f"{level.itl_s * 1e3:g}",
    "n": lambda _, f: f"{f.requests}",
    "not ok": lambda _, f: f"{f.not_ok}",
    "TTFT p50 / p99 ms": lambda _, f: _ms(f.ttft_s),
    "true TTFT p50 / p99 ms": lambda _, f: _ms(f.true_ttft_s),
    "first-token error p50 / p99 ms": lambda _, f: _ms(f.first_token_error_s),
    "send error p50 / p99 ms": lambda _, f: _ms(f.send_error_s),
    "ITL error p50 / p99 ms": lambda _, f: _ms(f.itl_error_s),
    "first-token error p50 / p90 / p99 ms": lambda _, f: _ms_with(
        f.first_token_error_s, f.first_token_error_p90_s
    ),
    "ITL error p50 / p90 / p99 ms": lambda _, f: _ms_with(f.itl_error_s, f.itl_error_p90_s),
    "source lateness p99 ms": lambda _, f: _one(f.source_lateness_p99_s, 1e3, ".3f"),
    "loop lag p99 ms": lambda _, f: _one(f.loop_lag_p99_s, 1e3, ".1f"),
    "tok/s": lambda _, f: _one(f.tokens_per_s, 1.0, ",.0f"),
    "coalesced": lambda _, f: f"{f.coalesced_ratio:.2%}",
    "CPU us/token": lambda _, f: _one(f.cpu_per_token_s, 1e6, ".1f"),
    "": lambda _, f: "source-limited" if f.source_limited else "",
}
"""Every column a table may have: its head, and a cell."""

_ENDS = ("source lateness p99 ms", "loop lag p99 ms", "tok/s", "coalesced", "CPU us/token", "")
_ERRORS = ("first-token error p50 / p99 ms", "send error p50 / p99 ms", "ITL error p50 / p99 ms")
PLAIN_COLUMNS = (
    *("streams", "n", "not ok", "TTFT p50 / p99 ms", "true TTFT p50 / p99 ms"),
    *_ERRORS,
    *_ENDS,
)
OTHER_COLUMNS = ("client", "streams", "n", "not ok", *_ERRORS, *_ENDS)
STALL_COLUMNS = (
    *("streams", "gap ms", "n", "not ok", "first-token error p50 / p90 / p99 ms"),
    "ITL error p50 / p90 / p99 ms",
    *_ENDS,
)
RATE_COLUMNS = ("streams", "n", "not ok", *_ENDS)


def table(columns: Iterable[str], rows: Iterable[Row]) -> str:
    """The rows as a Markdown table of those columns."""
    heads = tuple(columns)
    cells = [tuple(COLUMNS[head](*row) for head in heads) for row in rows]
    lines = [heads, ("---",) * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms_with(pair: Pair | None, p90: float | None) -> str:
    return "-" if pair is None or p90 is None else _ms((pair[0], p90, pair[1]))


def _ms(values: tuple[float, ...] | None) -> str:
    return "-" if values is None else " / ".join(f"{value * 1e3:.3f}" for value in values)


def _one(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)
