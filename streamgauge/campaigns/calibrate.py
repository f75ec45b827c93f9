"""How far this machine's own figures are from the truth, measured before they are believed.

A metronome (reference_server, standard library only) answers with a known TTFT and a known gap and
logs when it handed each token to the kernel. The whole tool runs against it: Locust, users,
transport, records. The error of a request is its own: the client's first token minus the write that
carried it, the server's read minus the client's send, each client gap minus its true gap. A source
that was late itself by more than 1 ms at p99 says nothing about the client: "source-limited".
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from ssl import create_default_context
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from collectors.records import RequestRecord
from collectors.runs import Run
from collectors.stats import percentile
from collectors.store import Store
from reference_server.process import SimProcess
from streamgauge.load import LoadResult, find_scenario, run_load

SOURCE_LIMIT_S = 1e-3
KEPT_REQUESTS = 20_000  # requests whose every token the metronome keeps
TRUTH_TIMEOUT_S = 120.0
CALIBRATION_STREAMS = 64  # at most; more tell little more and cost the machine more
CALIBRATION_S = 4

Pair = tuple[float, float]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the metronome is to do: TTFT and gap in seconds, tokens an answer.

    Attributes:
        tls_files: certificate and key to speak TLS with, or ``None``.
    """

    ttft_s: float = 0.05
    itl_s: float = 0.01
    tokens: int = 200
    realtime: bool = False
    tls_files: tuple[Path, Path] | None = None

    def options(self) -> list[str]:
        """As words of ``streamgauge serve sim``."""
        words = ["--metronome", "--ttft", f"{self.ttft_s}s", "--itl", f"{self.itl_s}s"]
        if self.tls_files is not None:
            certificate, key = self.tls_files
            words += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        return [*words, "--truth-tokens", str(KEPT_REQUESTS), *["--realtime"] * self.realtime]

    @property
    def trust(self) -> list[str]:
        """What a client needs to believe it, as words of its command line."""
        return [] if self.tls_files is None else ["--ca-file", str(self.tls_files[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The client beside the truth at one load. Pairs are p50 and p99 in seconds; errors absolute.

    Attributes:
        requests: requests due after the ramp, on which every figure rests.
        not_ok: those among them that did not succeed.
        itl_error_s: over gaps; ``None`` where no gap could be paired.
        source_lateness_p99_s: p99 over requests of each one's own p99 lateness.
        tokens_per_s: output events a second from the end of the ramp to the stop.
        cpu_per_token_s: CPU of the load processes per output event, over the whole run.
        loop_lag_p99_s: of the worst load process.

    The last three are ``None`` where only pairs were compared.
    """

    streams: int
    requests: int
    not_ok: int
    ttft_s: Pair
    true_ttft_s: Pair
    first_token_error_s: Pair
    first_token_error_p90_s: float
    send_error_s: Pair
    itl_error_s: Pair | None
    itl_error_p90_s: float | None
    source_lateness_p99_s: float
    coalesced_ratio: float
    tokens_per_s: float | None = None
    cpu_per_token_s: float | None = None
    loop_lag_p99_s: float | None = None

    @property
    def source_limited(self) -> bool:
        """The source itself was too late to judge the client by."""
        return self.source_lateness_p99_s > SOURCE_LIMIT_S


def measure_client(
    streams: int,
    *,
    duration_s: int,
    ramp_s: float,
    source: Source | None = None,
    options: Sequence[str] = (),
    scenario: Path | None = None,
) -> Fidelity | None:
    """Drive a metronome with ``streams`` ramped streams and compare with its truth log.

    Args:
        streams: users without think time.
        duration_s: of the load; requests due in the ramp are left out.
        ramp_s: seconds over which the users start.
        source: what the metronome does.
        options: further words for Locust, e.g. ``--processes 2``.
        scenario: a Locust file; the bundled chat without it.

    Returns:
        ``None`` where not one request gave a pair to compare (stopped at once, too short).
    """
    source = source or Source()
    with tempfile.TemporaryDirectory() as folder, SimProcess(*source.options()) as server:
        db = str(Path(folder) / "calibration.db")
        words = ["--host", server.url, "-u", str(streams), "-t", f"{duration_s}s", "--db", db]
        words += ["--ramp", str(ramp_s), "--think-time", "0", "--drain", "5s"]
        words += ["--max-tokens", str(source.tokens), "--input-tokens", "50"]
        words += [*source.trust, *options]
        result = run_load(scenario or find_scenario("chat"), words, lambda _line: None)
        if result.run_id is None or result.signal is not None:
            return None
        run, records = _read(db, result)
        trust = True if source.tls_files is None else create_default_context(cafile=source.trust[1])
        page = httpx.get(
            f"{server.url}/truth", timeout=TRUTH_TIMEOUT_S, trust_env=False, verify=trust
        )
    truth = {entry["id"]: entry for entry in page.json()["requests"]}
    assert run.stopped_at_s is not None
    window = [r for r in records if ramp_s < r.due_at_s < run.stopped_at_s]
    compared = compare(streams, window, truth, run.began_mono_s)
    if compared is None:
        return None
    events = sum(r.output_events.total for r in records)
    return replace(
        compared,
        tokens_per_s=_rate(records, ramp_s, run.stopped_at_s),
        cpu_per_token_s=run.client["cpu_s"] / events,
        loop_lag_p99_s=run.client.get("loop_lag_p99_s"),
    )


def _rate(records: Sequence[RequestRecord], start_s: float, end_s: float) -> float | None:
    """Output events a second between two instants; ``None`` where no time lies between."""
    if end_s <= start_s:
        return None
    count = 0
    for record in records:
        if record.first_token_at_s is not None and record.gaps_s is not None:
            gaps = np.frombuffer(record.gaps_s, np.float32)
            at = record.first_token_at_s + np.cumsum(np.concatenate(([0.0], gaps)))
            count += int(np.count_nonzero((at >= start_s) & (at < end_s)))
    return count / (end_s - start_s)


def _read(db: str, result: LoadResult) -> tuple[Run, list[RequestRecord]]:
    assert result.run_id is not None
    with Store.open(db, read_only=True) as store:
        return store.find_run(result.run_id), list(store.records(result.run_id))


def compare(
    streams: int,
    records: Sequence[RequestRecord],
    truth: dict[str, Any],
    began_mono_s: float,
) -> Fidelity | None:
    """Client records beside the truth log's entries of the same requests; ``None`` without any.

    What only the whole run tells (rate, CPU, loop lag) is left open.
    """
    pairs = [
        (record, entry)
        for record in records
        if record.first_token_at_s is not None
        and record.sent_at_s is not None
        and (entry := truth.get(f"{record.run_id}-{record.worker}-{record.seq}"))
    ]
    if not pairs:
        return None
    written = _array(t["first_token_at"] for _, t in pairs)
    read = _array(t["read_at"] for _, t in pairs)
    first = began_mono_s + _array(r.first_token_at_s for r, _ in pairs) - written
    sent = read - began_mono_s - _array(r.sent_at_s for r, _ in pairs)
    gaps = np.sort(np.concatenate([_gap_errors(r, t) for r, t in pairs]))
    events = sum(r.output_events.total for r, _ in pairs)
    return Fidelity(
        streams=streams,
        requests=len(records),
        not_ok=sum(r.outcome != "ok" for r in records),
        ttft_s=_pair(_array(r.ttft_s for r, _ in pairs)),
        true_ttft_s=_pair(written - read),
        first_token_error_s=_pair(np.abs(first)),
        first_token_error_p90_s=percentile(np.sort(np.abs(first)), 0.9),
        send_error_s=_pair(np.abs(sent)),
        itl_error_s=_pair(gaps) if len(gaps) else None,
        itl_error_p90_s=percentile(gaps, 0.9) if len(gaps) else None,
        source_lateness_p99_s=_pair(_array(t["lateness_p99_s"] for _, t in pairs))[1],
        coalesced_ratio=sum(r.coalesced_events for r, _ in pairs) / max(1, events),
    )


def describe(fidelity: Fidelity) -> str:
    """One sentence for people, before a run."""
    if fidelity.source_limited:
        return (
            "This machine is too busy to calibrate on: the source itself was up to "
            f"{fidelity.source_lateness_p99_s * 1e3:.1f} ms late (p99)."
        )
    p50, p99 = (value * 1e3 for value in fidelity.first_token_error_s)
    rate = "" if fidelity.tokens_per_s is None else f", {fidelity.tokens_per_s:,.0f} tok/s"
    return (
        f"This machine's own error: first token p50 {p50:.2f} ms, p99 {p99:.2f} ms "
        f"(n={fidelity.requests}, {fidelity.streams} streams{rate})."
    )


def as_stored(fidelity: Fidelity) -> dict[str, Any]:
    """What a run keeps of its calibration."""
    return {**asdict(fidelity), "source_limited": fidelity.source_limited}


def _gap_errors(record: RequestRecord, entry: dict[str, Any]) -> Floats:
    """|client gap - true gap| of one request; empty where they cannot be paired one to one."""
    written = entry.get("token_at")
    if not written or record.gaps_s is None or len(record.gaps_s) != len(written) - 1:
        return np.empty(0)
    return np.abs(np.frombuffer(record.gaps_s, np.float32) - np.diff(np.asarray(written)))


def _array(values: Any) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _pair(values: Floats) -> Pair:
    ordered = np.sort(values)
    return percentile(ordered, 0.5), percentile(ordered, 0.99)
