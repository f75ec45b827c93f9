"""Plausible runs, written through the store as a recorder would: the same seed, the same run."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from collectors.batches import Batch
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.store import Store

BEGAN_WALL_S = 1_795_000_000.0
BATCH = 256
FAILURES = (Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.RESET, Outcome.OVERLOADED)


def make_run(run_id: str = "0run00000000aaaa", **changes: Any) -> Run:
    """A complete closed-loop run of 60 s with 16 users."""
    asked: dict[str, Any] = {
        "id": run_id,
        "name": "chat-baseline",
        "scenario": "chat",
        "target": "http://127.0.0.1:8000",
        "model": "sim-8b",
        "api": "chat",
        "status": RunStatus.COMPLETE,
        "began_wall_s": BEGAN_WALL_S,
        "began_mono_s": 50.0,
        "users": 16,
        "duration_s": 60.0,
        "ramp_s": 2.0,
        "stopped_at_s": 60.0,
        "ended_at_s": 62.0,
        "client": {"stamp": "kernel", "loop_lag_p99_s": 0.0005},
        "notes": ["no GPU seen here"],
    }
    return Run(**asked | changes)


def requests_of(
    run: Run, *, seed: int = 1, failing: float = 0.02, slower: float = 1.0, usage: bool = True
) -> list[RequestRecord]:
    """What the run's users would leave: ask, read the answer, think, ask again.

    Args:
        run: says how many users, how long, and when the last request was over.
        seed: of everything.
        failing: share of requests that fail; 1 makes all of them fail before any output.
        slower: factor on every latency.
        usage: whether the server told token counts.
    """
    rng = random.Random(seed)
    users = run.users or 1
    drawn = [
        request
        for user in range(users)
        for request in _user(rng, run, (run.ramp_s or 0.0) * user / users, failing, slower)
    ]
    drawn.sort(key=lambda request: float(request["due_at_s"]))
    if not usage:
        untold = dict.fromkeys(("input_tokens", "output_tokens", "token_source"))
        drawn = [request | untold for request in drawn]
    return [
        RequestRecord(run_id=run.id, seq=seq, scenario=run.scenario, model=run.model, **request)
        for seq, request in enumerate(drawn)
    ]


def _user(
    rng: random.Random, run: Run, at_s: float, failing: float, slower: float
) -> Iterator[dict[str, Any]]:
    stop_s = run.stopped_at_s or run.duration_s or 60.0
    end_s = run.ended_at_s or stop_s
    while at_s < stop_s:
        is_failing = rng.random() < failing
        request = _failed(rng, at_s) if is_failing else _answered(rng, at_s, end_s, slower)
        yield request
        at_s = request["ended_at_s"] + rng.expovariate(2.0)


def _failed(rng: random.Random, due_at_s: float) -> dict[str, Any]:
    outcome = rng.choice(FAILURES)
    status = {Outcome.RATE_LIMITED: 429, Outcome.OVERLOADED: 503}.get(outcome)
    return {
        "outcome": outcome,
        "http_status": status,
        "due_at_s": due_at_s,
        "sent_at_s": due_at_s,
        "ended_at_s": due_at_s + rng.uniform(0.01, 0.5),
    }


def _answered(rng: random.Random, due_at_s: float, end_s: float, slower: float) -> dict[str, Any]:
    """An answer, or what was seen of it by ``end_s``. Latency swells and ebbs once a minute."""
    swell = slower * (1.1 - 0.1 * math.cos(due_at_s * math.tau / 60))
    first = due_at_s + swell * rng.lognormvariate(math.log(0.12), 0.35)
    gaps = [swell * rng.lognormvariate(math.log(0.012), 0.3) for _ in range(rng.randint(20, 80))]
    request: dict[str, Any] = {"due_at_s": due_at_s, "sent_at_s": due_at_s}
    if first > end_s:
        return request | {"outcome": Outcome.UNFINISHED, "ended_at_s": end_s}
    kept = [gap for gap, at_s in zip(gaps, _running(first, gaps), strict=True) if at_s <= end_s]
    is_done = len(kept) == len(gaps)
    last = first + math.fsum(kept)
    request |= {
        "outcome": Outcome.OK if is_done else Outcome.UNFINISHED,
        "http_status": 200,
        "first_byte_at_s": first - 0.001,
        "first_token_at_s": first,
        "first_answer_at_s": first,
        "last_token_at_s": last,
        "ended_at_s": last + 0.001 if is_done else end_s,
        "read_delay_s": 0.0001,
        "gaps_s": array("f", kept),
        "output_events": OutputEvents(answer=len(kept) + 1),
    }
    if not is_done:
        return request
    return request | {
        "done_at_s": last + 0.001,
        "input_tokens": rng.randint(50, 400),
        "output_tokens": len(gaps) + 1,
        "token_source": TokenSource.USAGE,
        "finish_reasons": ("stop",),
    }


def _running(start_s: float, gaps: Sequence[float]) -> Iterator[float]:
    for gap in gaps:
        start_s += gap
        yield start_s


def gpu_samples(run: Run, *, seed: int = 1) -> list[Sample]:
    """One GPU, read once a second."""
    rng = random.Random(seed)
    source = "gpu:GPU-0001"
    energy_j = 0.0
    samples = []
    for second in range(int(run.stopped_at_s or 60)):
        watts = rng.uniform(300, 400)
        energy_j += watts
        samples += [
            Sample(float(second), source, "gpu_busy_ratio", rng.uniform(0.7, 1.0)),
            Sample(float(second), source, "gpu_power_watts", watts),
            Sample(float(second), source, "gpu_energy_joules", energy_j),
            Sample(float(second), source, "gpu_memory_used_bytes", 40e9),
        ]
    return samples


def write_run(
    db: Path | str,
    run: Run,
    records: Sequence[RequestRecord] = (),
    samples: Sequence[Sample] = (),
) -> Run:
    """Store a run with its requests and samples; the database is made where it is missing."""
    with Store.open(str(db), create=True) as store:
        store.create_run(run)
        for sequence, start in enumerate(range(0, len(records), BATCH)):
            part = list(records[start : start + BATCH])
            batch = Batch(worker="local", sequence=sequence, at_s=float(sequence), records=part)
            store.add_batch(run.id, batch)
        store.commit(run.id, samples=samples)
    return run
