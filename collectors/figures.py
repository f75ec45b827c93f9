"""The figures of one run, each with what it rests on.

Rules kept here:

- A request belongs to the window by its due instant; throughput counts what *arrived* in it.
- What was not observed is ``None``. What a reader must know to trust a figure is a warning.
- Report, check and dashboard all read these figures, so that they print the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from collectors.cost import GPU_HOURS, MILLION, Cost, gpu_usd_per_s
from collectors.estimates import (
    Fact,
    Percentile,
    PerUnit,
    Ratio,
    Resampled,
)
from collectors.estimates import Sample as Felt
from collectors.latency import SAMPLES, felt_end_at_s, has_flag
from collectors.records import FAILED, Outcome, TokenSource
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.stats import BATCHES, percentile
from collectors.table import Floats, RequestTable
from collectors.tokens import tokens_in_bins
from collectors.validity import Validity, judge_validity
from collectors.words import Bools

PERCENTILES = (0.5, 0.9, 0.95, 0.99)
"""Those every report shows."""

READINGS = (
    "client_user_seconds_total",
    "gpu_busy_ratio",
    "gpu_energy_joules",
    "gpu_memory_used_bytes",
    "gpu_power_watts",
    "host_cpu_ratio",
)
"""Telemetry that figures rest on; a run may have much else, and none of it need be read."""

DEFAULT_WARMUP_RATIO = 0.1
DEFAULT_WARMUP_MAX_S = 30.0
_BINS = 10 * BATCHES  # of the window, for the bootstrap of rates
_CUT_SHORT_RATIO = 0.99  # stopping a moment early is no cut
_MANY_A_CHUNK = 1.1  # tokens an output event, from which gaps are not those of tokens
_MANY_TOGETHER = 0.05  # share of events that came with another
_TELLING_FLAGS = {  # and what they take from our figures; the others are only counted
    "no_usage": (
        "ended without usage: their cached tokens are unknown, and the others unless something else"
        " tells."
    ),
    "fewer_tokens": (
        "gave fewer tokens than ignore_eos or min_tokens asked for: E2E and tokens/s are those of"
        " shorter answers than meant."
    ),
}
_LESS = 0.95  # users at work over users asked, below which the load was lighter than asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of a run that figures are made of, and how its requests ended."""

    start_s: float
    end_s: float
    due: int
    ok: int
    failed: int
    unfinished: int
    not_sent: int
    cancelled: int

    @property
    def length_s(self) -> float:
        """Seconds; 0 where the run ended before its window began."""
        return max(0.0, self.end_s - self.start_s)


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency: its sample, and every figure of it."""

    sample: Felt

    def percentile(self, q: float) -> Percentile:
        """As felt."""
        return Percentile.of(self.sample, q)

    def mean(self) -> Resampled | None:
        """Over successes; ``None`` without any."""
        return self.sample.mean()

    def max(self) -> Fact | None:
        """Over successes; ``None`` without any."""
        served = self.sample.ordered_served
        return Fact(float(served[-1]), len(served)) if len(served) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of the requests due in the window; ``None`` where no request told.

    Attributes:
        cached_input, cache_write, audio_input: those of the input that a cache answered for, that
            were written to one, that were audio.
        reasoning, audio_output: those of the output.
        source: where output tokens come from; "mixed" where requests differ.
        asked_output: the limits sent, over the successes that tell their output tokens.
        delivered_ratio: the output tokens of these, over their limits.
    """

    input: int | None
    cached_input: int | None
    cache_write: int | None
    audio_input: int | None
    output: int | None
    reasoning: int | None
    audio_output: int | None
    source: str | None
    asked_output: int | None
    delivered_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """One GPU over the window: means, the highest memory, and energy from its counter."""

    uuid: str
    name: str | None
    busy_ratio: float | None
    memory_bytes: float | None
    power_watts: float | None
    energy_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Health of what sent the load."""

    stamp: str | None
    loop_lag_p99_s: float | None
    read_delay_p99_s: float | None
    run_queue_wait_ratio: float | None
    cpu_ratio: float | None
    coalesced_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything a report says of a run.

    Attributes:
        asked, achieved: users and mean requests in flight (closed loop), or rate due and rate sent
            in requests a second (open loop).
        users: mean users at work in the window, asking or thinking; ``None`` where not sampled.
        requests_asked, requests_due: where the run was to end with so many; in the whole run.
        latency: by name, e.g. ``ttft_s``; absent where not observed.
        errors: failed / (ok + failed + unfinished).
        goodput_ratio, goodput_per_s: ``None`` without per-request objectives.
        flags: how many requests due in the window carry each.
        host_cpu_ratio: mean over hosts and window.
    """

    window: Window
    asked: float | None
    achieved: float | None
    users: float | None
    requests_asked: int | None
    requests_due: int
    latency: Mapping[str, Latency]
    requests_per_s: Resampled | None
    input_tokens_per_s: Resampled | None
    output_tokens_per_s: Resampled | None
    goodput_per_s: Resampled | None
    goodput_ratio: Ratio | None
    tokens: Tokens
    errors: Ratio | None
    by_outcome: Mapping[str, int]
    flags: Mapping[str, int]
    cost: Cost
    gpus: Sequence[GpuUse]
    energy_j: float | None
    host_cpu_ratio: float | None
    client: Client
    validity: Validity
    warnings: Sequence[str]

    def availability(self) -> Ratio | None:
        """1 - error ratio."""
        return self.errors.complement if self.errors else None


def measure(
    run: Run,
    table: RequestTable,
    samples: Sequence[Sample],
    *,
    good: Bools | None = None,
    tightest_limit_s: float | None = None,
) -> Figures:
    """The figures of ``run``.

    Args:
        run: as stored.
        table: all of its requests.
        samples: its telemetry, in any order; of it :data:`READINGS` are looked at.
        good: for each request of ``table`` whether it met every per-request objective; ``None``
            where there are none (or none that could be told).
        tightest_limit_s: the tightest latency limit it will be held to, for its validity.
    """
    start_s, end_s = window_span(run, table)
    requests = table.due_between(start_s, end_s)
    window = _window(requests, start_s, end_s)
    latency = {name: Latency(s) for name, draw in SAMPLES.items() if (s := draw(requests))}
    rates = _Rates(table, window)
    goodput_ratio, goodput_per_s = measure_goodput(table, window, good)
    client = _client(run, requests)
    gpus = _gpus(run, samples, window)
    output_rate = rates.output_tokens()
    users = _mean_growth(samples, "client_user_seconds_total", window)
    answered = window.ok + window.failed + window.unfinished
    return Figures(
        window=window,
        asked=run.users if run.loop == "closed" else run.rate,
        achieved=_achieved(run, table, window),
        users=users,
        requests_asked=run.config.get("requests"),
        requests_due=len(table),
        latency=latency,
        requests_per_s=rates.ended(),
        input_tokens_per_s=rates.input_tokens(),
        output_tokens_per_s=output_rate,
        goodput_per_s=goodput_per_s,
        goodput_ratio=goodput_ratio,
        tokens=_tokens(requests),
        errors=Ratio.of(requests.is_failed[_is_answered(requests)]) if answered else None,
        by_outcome=_by_outcome(requests),
        flags=_flags(requests),
        cost=_cost(run, window, rates.due(table.is_ok), output_rate, goodput_per_s),
        gpus=gpus,
        energy_j=_sum_seen([gpu.energy_j for gpu in gpus]),
        host_cpu_ratio=_mean_of(samples, "host_cpu_ratio", window),
        client=client,
        validity=judge_validity(
            run,
            requests,
            latency["ttft_s"].sample if "ttft_s" in latency else None,
            tightest_limit_s,
        ),
        warnings=[
            *run.notes,
            *_of_the_run(run, window, users),
            *_of_requests(requests, window, latency),
        ],
    )


def measure_goodput(
    table: RequestTable, window: Window, good: Bools | None
) -> tuple[Ratio | None, Resampled | None]:
    """Share of good requests among all due in the window, and good ones a second.

    Args:
        table: all requests of the run.
        window: of the run.
        good: for each request of ``table``; ``None`` makes both unknown.
    """
    if good is None or not window.due:
        return None, None
    is_member = (table.due_at_s >= window.start_s) & (table.due_at_s <= window.end_s)
    good = good & table.is_ok
    return Ratio.of(good[is_member]), _Rates(table, window).due(good)


def window_span(run: Run, table: RequestTable) -> tuple[float, float]:
    """From the later of warm-up and end of ramp to the stop, in seconds since the run began.

    While the run is going, its end is the latest instant seen.
    """
    end_s = run.stopped_at_s if run.stopped_at_s is not None else _latest(table)
    return max(warmup_s(run, end_s), run.ramp_s or 0.0), end_s


def warmup_s(run: Run, stopped_at_s: float) -> float:
    """What was asked; else 10 % of the duration, or of the time to the stop, at most 30 s."""
    if run.warmup_s is not None:
        return run.warmup_s
    duration_s = stopped_at_s if run.duration_s is None else run.duration_s
    return min(DEFAULT_WARMUP_MAX_S, DEFAULT_WARMUP_RATIO * duration_s)


def _latest(table: RequestTable) -> float:
    seen = [
        float(np.nanmax(column))
        for column in (table.due_at_s, table.ended_at_s, table.done_at_s, table.last_token_at_s)
        if len(column) and not np.isnan(column).all()
    ]
    return max(seen, default=0.0)


def _window(requests: RequestTable, start_s: float, end_s: float) -> Window:
    def count(outcome: Outcome) -> int:
        return int(requests.is_outcome(outcome).sum())

    return Window(
        start_s=start_s,
        end_s=end_s,
        due=len(requests),
        ok=count(Outcome.OK),
        failed=int(requests.is_failed.sum()),
        unfinished=count(Outcome.UNFINISHED),
        not_sent=count(Outcome.NOT_SENT),
        cancelled=count(Outcome.CANCELLED),
    )


def _is_answered(requests: RequestTable) -> Bools:
    """Requests in the error ratio's denominator."""
    return ~(requests.is_outcome(Outcome.NOT_SENT) | requests.is_outcome(Outcome.CANCELLED))


def _by_outcome(requests: RequestTable) -> dict[str, int]:
    counts = requests.outcome.counts()
    return {o.value: counts[o] for o in Outcome if o in FAILED and o in counts}


def _flags(requests: RequestTable) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for flags, n in requests.flags.counts().items():
        counts.update(dict.fromkeys(flags, n))
    return dict(sorted(counts.items()))


def _achieved(run: Run, table: RequestTable, window: Window) -> float | None:
    """Mean requests in flight (closed loop), or requests sent a second (open loop)."""
    if not window.length_s:
        return None
    if run.loop == "closed":
        end = np.where(np.isnan(table.ended_at_s), window.end_s, table.ended_at_s)
        inside = np.minimum(end, window.end_s) - np.maximum(table.sent_at_s, window.start_s)
        return float(np.nansum(np.maximum(inside, 0.0))) / window.length_s
    sent = (table.sent_at_s >= window.start_s) & (table.sent_at_s <= window.end_s)
    return float(sent.sum()) / window.length_s


class _Rates:
    """Counts a second over the window; each ``None`` where the window has no length."""

    def __init__(self, table: RequestTable, window: Window) -> None:
        self._table = table
        self._window = window
        self._edges = np.linspace(window.start_s, max(window.start_s, window.end_s), _BINS + 1)
        self._ended_at_s = np.where(np.isnan(table.done_at_s), table.ended_at_s, table.done_at_s)

    def due(self, which: Bools) -> Resampled | None:
        """Requests among ``which`` that were due in the window."""
        return self._events(self._table.due_at_s[which])

    def ended(self) -> Resampled | None:
        """Requests that succeeded or failed in the window, by when they did."""
        return self._events(self._ended_at_s[self._is_over()])

    def input_tokens(self) -> Resampled | None:
        """Input tokens of the requests that ended in the window."""
        tokens = self._table.input_tokens
        known = self._is_over() & ~np.isnan(tokens)
        if not known.any():
            return None
        return self._events(self._ended_at_s[known], tokens[known])

    def output_tokens(self) -> Resampled | None:
        """Output tokens whose event arrived in the window."""
        window, table = self._window, self._table
        counts = tokens_in_bins(table, self._edges) if window.length_s else None
        if counts is None:
            return None
        ended = felt_end_at_s(table)
        began = np.where(np.isnan(table.first_token_at_s), ended, table.first_token_at_s)
        touched = (began <= window.end_s) & (ended >= window.start_s) & (table.output_tokens > 0)
        return Resampled.rate(counts, window.length_s / _BINS, int(touched.sum()))

    def _is_over(self) -> Bools:
        return self._table.is_ok | self._table.is_failed

    def _events(self, at_s: Floats, weights: Floats | None = None) -> Resampled | None:
        window = self._window
        if not window.length_s:
            return None
        inside = (at_s >= window.start_s) & (at_s <= window.end_s)
        counts, _ = np.histogram(at_s, bins=self._edges, weights=weights)
        return Resampled.rate(counts.astype(np.float64), window.length_s / _BINS, int(inside.sum()))


def _tokens(requests: RequestTable) -> Tokens:
    def total(column: Floats) -> int | None:
        return None if np.isnan(column).all() else int(np.nansum(column))

    sources = {s for s in requests.token_source.counts() if s is not None}
    asked = requests.asked_output_tokens
    told = requests.is_ok & ~np.isnan(asked) & ~np.isnan(requests.output_tokens)
    asked_output = total(asked[told])
    return Tokens(
        input=total(requests.input_tokens),
        cached_input=total(requests.cached_input_tokens),
        cache_write=total(requests.cache_write_input_tokens),
        audio_input=total(requests.audio_input_tokens),
        output=total(requests.output_tokens),
        reasoning=total(requests.reasoning_tokens),
        audio_output=total(requests.audio_output_tokens),
        source=None if not sources else sources.pop() if len(sources) == 1 else "mixed",
        asked_output=asked_output,
        delivered_ratio=float(requests.output_tokens[told].sum()) / asked_output
        if asked_output
        else None,
    )


def _cost(
    run: Run,
    window: Window,
    served: Resampled | None,
    output_tokens: Resampled | None,
    goodput: Resampled | None,
) -> Cost:
    usd_per_s = gpu_usd_per_s(run.gpu_hour_price_usd, run.gpus)
    if usd_per_s is None or not window.length_s:
        return Cost()

    def share(rate: Resampled | None, units: int = 1) -> PerUnit | None:
        return None if rate is None else PerUnit(usd_per_s * units, rate)

    return Cost(
        usd=usd_per_s * window.length_s,
        per_request=share(served),
        per_1m_output_tokens=share(output_tokens, MILLION),
        per_good_request=share(goodput),
        basis=GPU_HOURS,
    )


def _gpus(run: Run, samples: Sequence[Sample], window: Window) -> list[GpuUse]:
    sources = sorted({s.source for s in samples if s.source.startswith("gpu:")})
    return [_gpu(run, source, samples, window) for source in sources]


def _gpu(run: Run, source: str, samples: Sequence[Sample], window: Window) -> GpuUse:
    own = [s for s in samples if s.source == source]
    memory = _values(own, "gpu_memory_used_bytes", window)
    return GpuUse(
        uuid=source.removeprefix("gpu:"),
        name=run.versions.get(source),
        busy_ratio=_mean_of(own, "gpu_busy_ratio", window),
        memory_bytes=max(memory, default=None),
        power_watts=_mean_of(own, "gpu_power_watts", window),
        energy_j=_counted(own, "gpu_energy_joules", window),
    )


def _values(samples: Sequence[Sample], name: str, window: Window) -> list[float]:
    return [s.value for s in samples if s.name == name and window.start_s <= s.at_s <= window.end_s]


def _mean_of(samples: Sequence[Sample], name: str, window: Window) -> float | None:
    values = _values(samples, name, window)
    return sum(values) / len(values) if values else None


def _mean_growth(samples: Sequence[Sample], name: str, window: Window) -> float | None:
    """How fast counters grew over the window, those of all sources together.

    They began at 0 with the run; between two samples they are taken to grow evenly. One whose
    source is lost does not grow any more.
    """
    by_source: dict[str, list[Sample]] = {}
    for sample in sorted(s for s in samples if s.name == name):
        by_source.setdefault(sample.source, []).append(sample)
    if not by_source or not window.length_s:
        return None
    grown = 0.0
    for own in by_source.values():
        at_s, values = [0.0, *(s.at_s for s in own)], [0.0, *(s.value for s in own)]
        start, end = np.interp((window.start_s, window.end_s), at_s, values)
        grown += float(end - start)
    return grown / window.length_s


def _counted(samples: Sequence[Sample], name: str, window: Window) -> float | None:
    """How far a counter grew in the window; ``None`` where it was not seen twice, or was reset."""
    values = _values(sorted(samples), name, window)
    if len(values) < 2 or any(later < earlier for earlier, later in pairwise(values)):
        return None
    return values[-1] - values[0]


def _sum_seen(values: Sequence[float | None]) -> float | None:
    seen = [v for v in values if v is not None]
    return sum(seen) if seen else None


def _client(run: Run, requests: RequestTable) -> Client:
    events = float(requests.output_events.sum())
    delays = requests.read_delay_s[~np.isnan(requests.read_delay_s)]

    def told(key: str) -> Any:
        return run.client.get(key)

    return Client(
        stamp=told("stamp"),
        loop_lag_p99_s=told("loop_lag_p99_s"),
        read_delay_p99_s=_p99(delays) if len(delays) else told("read_delay_p99_s"),
        run_queue_wait_ratio=told("run_queue_wait_ratio"),
        cpu_ratio=told("cpu_ratio"),
        coalesced_ratio=float(np.nansum(requests.coalesced_events)) / events
        if events
        else told("coalesced_ratio"),
    )


def _p99(values: Floats) -> float:
    return percentile(np.sort(values), 0.99)


# What a reader must know to trust the figures, a sentence each


def _of_the_run(run: Run, window: Window, users: float | None) -> Iterator[str]:
    if run.status is RunStatus.RUNNING:
        yield "The run is still going; these figures will change."
    stopped_s, asked_s = run.stopped_at_s, run.duration_s
    cut = stopped_s is not None and asked_s is not None and stopped_s < _CUT_SHORT_RATIO * asked_s
    if run.status is RunStatus.INTERRUPTED:
        yield "The run was interrupted" + (
            f" after {stopped_s:.1f} s of {asked_s:.1f} s." if cut else "."
        )
    elif cut and run.config.get("requests") is None:  # else it ended with the last one asked for
        yield f"The run was cut short: it stopped after {stopped_s:.1f} s of {asked_s:.1f} s."
    if not window.length_s:
        yield (
            f"The run stopped at {window.end_s:.1f} s, before its window began at"
            f" {window.start_s:.1f} s, so that no request counts."
        )
    if users is not None and run.users and users < _LESS * run.users:
        yield f"Only {users:.1f} of {run.users} users were at work on average."
    if run.gpu_hour_price_usd is not None and run.gpus is None:
        yield "A price per GPU-hour was given but not the number of GPUs, so the cost is unknown."


def _of_requests(
    requests: RequestTable, window: Window, latency: Mapping[str, Latency]
) -> Iterator[str]:
    if window.length_s and not window.due:
        yield "No request was due in the window."
    if window.unfinished:
        yield (
            f"Still open at the end: {window.unfinished} of {window.due} requests; they count as at"
            " least as slow as the time they had."
        )
    if "ttft_s" in latency and (n := len(latency["ttft_s"].sample)) < 2 * BATCHES:
        yield f"Too few requests ({n}) to see whether neighbours depend on each other."
    several = requests.output_events > 1
    if unkept := int((several & (requests.gaps.counts == 0)).sum()):
        yield f"ITL leaves out {unkept} streamed requests, whose gaps were not kept."
    yield from _of_tokens(requests)
    yield from _of_flags(requests)
    together = float(np.nansum(requests.coalesced_events))
    if (total := float(requests.output_events.sum())) and together / total > _MANY_TOGETHER:
        yield (
            f"{together / total:.1%} of the output events came in one read with the one before;"
            " their gaps in ITL are zero."
        )


def _of_tokens(requests: RequestTable) -> Iterator[str]:
    events, tokens = requests.output_events, requests.output_tokens
    shown = requests.is_ok & ((events > 0) | (tokens > 0))
    if untold := int((shown & np.isnan(tokens)).sum()):
        yield f"Token figures leave out {untold} requests, whose output tokens are unknown."
    if counted := requests.token_source.counts().get(TokenSource.TOKENIZER):
        yield (
            f"The tokens of {counted} requests were counted here, by a tokenizer, from visible"
            " text: hidden reasoning and special tokens are not in them."
        )
    told = (events > 1) & (tokens > 0)
    if told.any() and (ratio := float(tokens[told].sum() / events[told].sum())) > _MANY_A_CHUNK:
        yield f"An output event carries {ratio:.2g} tokens on average; a gap is not one token's."


def _of_flags(requests: RequestTable) -> Iterator[str]:
    """What flagged successes do to the figures, for those flags that do something to them."""
    served = int(requests.is_ok.sum())
    for flag, words in _TELLING_FLAGS.items():
        if count := int((has_flag(requests, flag) & requests.is_ok).sum()):
            yield f"{count} of {served} successes ({count / served:.1%}) {words}"
