"""The fidelity table: the client beside the truth at several loads, and what a token costs."""

from __future__ import annotations

import os

from streamgauge.campaigns.calibrate import Fidelity, Pair, Source, measure_client

LEVELS = (1, 16, 64, 256)
RAMP_S = 2.0
DURATION_S = 14


def measure_level(streams: int) -> Fidelity:
    """One row of the table."""
    source = Source(realtime=source_may_be_realtime())
    level = measure_client(streams, duration_s=DURATION_S, ramp_s=RAMP_S, source=source)
    if level is None:
        raise SystemExit(f"the load at {streams} streams gave nothing to compare")
    return level


def source_may_be_realtime() -> bool:
    """Whether this machine lets the source have real-time priority: it is then late less often."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


HEAD = (
    "streams",
    "n",
    "not ok",
    "TTFT p50 / p99 ms",
    "true TTFT p50 / p99 ms",
    "first-token error p50 / p99 ms",
    "send error p50 / p99 ms",
    "ITL error p50 / p99 ms",
    "source lateness p99 ms",
    "tok/s",
    "coalesced",
    "CPU us/token",
    "",
)


def table(levels: list[Fidelity]) -> str:
    """The levels as a Markdown table."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, levels)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(level: Fidelity) -> tuple[str, ...]:
    return (
        f"{level.streams}",
        f"{level.requests}",
        f"{level.not_ok}",
        _ms(level.ttft_s),
        _ms(level.true_ttft_s),
        _ms(level.first_token_error_s),
        _ms(level.send_error_s),
        _ms(level.itl_error_s),
        f"{level.source_lateness_p99_s * 1e3:.3f}",
        f"{level.tokens_per_s:,.0f}",
        f"{level.coalesced_ratio:.2%}",
        f"{level.cpu_per_token_s * 1e6:.1f}",
        "source-limited" if level.source_limited else "",
    )


def _ms(pair: Pair | None) -> str:
    return "-" if pair is None else f"{pair[0] * 1e3:.3f} / {pair[1] * 1e3:.3f}"
