"""How far the client's figures are from the truth, and what a token costs.

A metronome (reference_server) answers with a true TTFT of 50 ms and a true gap of 10 ms, 200 tokens
an answer, and logs when it handed each first token to the kernel. The whole tool runs against it:
Locust, users, transport, records. The error of a request is its own: the client's first token minus
the write that carried it, and the server's read minus the client's send. A level whose source was
late itself by more than 1 ms at p99 is "source-limited": it says nothing about the client.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from collectors.records import RequestRecord
from collectors.store import Store
from reference_server.process import SimProcess
from streamgauge.load import find_scenario, run_load

LEVELS = (1, 16, 64, 256)
RAMP_S = 2
DURATION_S = 14
TOKENS = 200
SOURCE_LIMIT_S = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Figures of one level; pairs are p50 and p99, seconds."""

    streams: int
    requests: int
    not_ok: int
    ttft_s: tuple[float, float]
    true_ttft_s: tuple[float, float]
    first_token_error_s: tuple[float, float]
    send_error_s: tuple[float, float]
    source_lateness_p99_s: float
    tokens_per_s: float
    cpu_per_token_s: float
    coalesced_ratio: float

    @property
    def source_limited(self) -> bool:
        """The source itself was too late to judge the client by."""
        return self.source_lateness_p99_s > SOURCE_LIMIT_S


def measure_level(streams: int) -> Level:
    """Drive the metronome with ``streams`` ramped streams and compare with its truth log."""
    with (
        tempfile.TemporaryDirectory() as folder,
        SimProcess("--metronome", "--ttft", "50ms", "--itl", "10ms", *source_options()) as server,
    ):
        db = str(Path(folder) / "bench.db")
        options = ["--host", server.url, "-u", str(streams), "-t", f"{DURATION_S}s", "--db", db]
        options += ["--ramp", str(RAMP_S), "--think-time", "0", "--max-tokens", str(TOKENS)]
        options += ["--input-tokens", "50"]
        result = run_load(find_scenario("chat"), options, lambda _line: None)
        if result.run_id is None:
            raise SystemExit(f"the load at {streams} streams did not start")
        with Store.open(db) as store:
            run = store.find_run(result.run_id)
            records = list(store.records(run.id))
        truth = {
            t["id"]: t for t in httpx.get(f"{server.url}/truth", timeout=60).json()["requests"]
        }
    tokens = sum(r.output_events.total for r in records)
    assert run.stopped_at_s is not None
    window = [r for r in records if RAMP_S < r.due_at_s < run.stopped_at_s]
    return compare(streams, window, truth, run.began_mono_s, run.client["cpu_s"] / tokens)


def source_options() -> list[str]:
    """Real-time scheduling for the source where this machine allows it: less often late."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return []
    return ["--realtime"]


def compare(
    streams: int,
    records: list[RequestRecord],
    truth: dict[str, Any],
    began_mono_s: float,
    cpu_per_token_s: float,
) -> Level:
    """Client records beside the truth log's entries of the same requests."""
    pairs = [
        (r, truth[f"{r.run_id}-{r.worker}-{r.seq}"])
        for r in records
        if r.first_token_at_s is not None and r.sent_at_s is not None
    ]
    first = _array(r.first_token_at_s + began_mono_s - t["first_token_at"] for r, t in pairs)
    sent = _array(t["read_at"] - began_mono_s - r.sent_at_s for r, t in pairs)
    events = sum(r.output_events.total for r, _ in pairs)
    ends = [r.last_token_at_s for r, _ in pairs if r.last_token_at_s is not None]
    return Level(
        streams=streams,
        requests=len(records),
        not_ok=sum(r.outcome != "ok" for r in records),
        ttft_s=_pair(_array(r.ttft_s for r, _ in pairs)),
        true_ttft_s=_pair(_array(t["first_token_at"] - t["read_at"] for _, t in pairs)),
        first_token_error_s=_pair(np.abs(first)),
        send_error_s=_pair(np.abs(sent)),
        source_lateness_p99_s=_pair(_array(t["lateness_p99_s"] for _, t in pairs))[1],
        tokens_per_s=events / (max(ends) - min(r.sent_at_s or 0.0 for r, _ in pairs)),
        cpu_per_token_s=cpu_per_token_s,
        coalesced_ratio=sum(r.coalesced_events for r, _ in pairs) / max(1, events),
    )


def table(levels: list[Level]) -> str:
    """The levels as a Markdown table."""
    head = (
        "| streams | n | not ok | TTFT p50 / p99 ms | true TTFT p50 / p99 ms "
        "| first-token error p50 / p99 ms | send error p50 / p99 ms | source lateness p99 ms "
        "| tok/s | coalesced | CPU us/token | |"
    )
    rule = "|" + " --- |" * 12
    return "\n".join([head, rule, *map(_row, levels)])


def _row(level: Level) -> str:
    def ms(pair: tuple[float, float]) -> str:
        return f"{pair[0] * 1e3:.3f} / {pair[1] * 1e3:.3f}"

    remark = "source-limited" if level.source_limited else ""
    return (
        f"| {level.streams} | {level.requests} | {level.not_ok} | {ms(level.ttft_s)} "
        f"| {ms(level.true_ttft_s)} | {ms(level.first_token_error_s)} | {ms(level.send_error_s)} "
        f"| {level.source_lateness_p99_s * 1e3:.3f} | {level.tokens_per_s:,.0f} "
        f"| {level.coalesced_ratio:.2%} | {level.cpu_per_token_s * 1e6:.1f} | {remark} |"
    )


def _array(values: Any) -> npt.NDArray[np.float64]:
    return np.fromiter(values, dtype=np.float64)


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """p50 and p99 by nearest rank."""
    low, high = np.quantile(values, [0.5, 0.99], method="inverted_cdf")
    return float(low), float(high)
