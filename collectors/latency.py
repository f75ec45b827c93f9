"""Latencies of a table of requests, as their users felt them.

Rules kept here (docs: design, "One request, and its figures"):

- A failed request is infinitely slow, whatever it had shown before it failed.
- One still open at the end is bounded by the time it had, unless the instant in question was
  already seen. One that the scenario cut is bounded alike where its user still waited for the
  first output; the length of what it cut says nothing about the server and is left out.
- One never sent is infinitely slow from due, and absent from what is counted from sent.
- An answer without any output is infinitely slow to its first token.
- What a success does not have (a first token where nothing was streamed) is absent. Where no
  success has it, the figure does not apply, and failures alone do not make it one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collectors.estimates import FeltSample, Sample, felt_sample
from collectors.pooled import PooledSample
from collectors.records import Outcome
from collectors.table import Floats, RequestTable
from collectors.words import Bools

NO_OUTPUT = "no_output"
NANOSECONDS = 9  # decimals of a second; no instant is known better


def has_flag(requests: RequestTable, flag: str) -> Bools:
    """Requests that carry ``flag``."""
    return requests.flags.where(lambda flags: flag in flags)


def felt_end_at_s(requests: RequestTable) -> Floats:
    """Last output-bearing event, or the response's end where nothing was streamed."""
    last = requests.last_token_at_s
    return np.where(np.isnan(last), requests.done_at_s, last)


def tpot_s(requests: RequestTable) -> Floats:
    """(last token - first token) / (output tokens - tokens in the first output event)."""
    first = requests.first_event_tokens
    divisor = requests.output_tokens - np.where(first > 0, first, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        decode_s = requests.last_token_at_s - requests.first_token_at_s
        return np.where(divisor > 0, decode_s / divisor, np.nan)


def ttft_sample(requests: RequestTable, *, from_due: bool) -> FeltSample | None:
    """First output-bearing event - sent, or - due."""
    start = requests.due_at_s if from_due else requests.sent_at_s
    cut = requests.is_outcome(Outcome.CANCELLED) & ~np.isnan(start)  # it may not have been sent yet
    return _felt(
        requests,
        requests.first_token_at_s - start,
        had_s=requests.ended_at_s - start,
        from_due=from_due,
        is_open=_is_unfinished(requests) | cut,
        is_never=requests.is_ok & has_flag(requests, NO_OUTPUT),
    )


def ttfa_sample(requests: RequestTable) -> FeltSample | None:
    """First answer content - sent."""
    return _felt(
        requests,
        requests.first_answer_at_s - requests.sent_at_s,
        had_s=requests.ended_at_s - requests.sent_at_s,
    )


def e2e_sample(requests: RequestTable, *, from_due: bool) -> FeltSample | None:
    """Last output-bearing event (or the end, where nothing was streamed) - sent, or - due."""
    start = requests.due_at_s if from_due else requests.sent_at_s
    end = np.where(_is_unfinished(requests), np.nan, felt_end_at_s(requests))
    return _felt(
        requests, end - start, had_s=requests.ended_at_s - start, from_due=from_due, is_whole=True
    )


def tpot_sample(requests: RequestTable) -> FeltSample | None:
    """Time per output token after the first; an open request's may still turn out anything."""
    span = np.where(_is_unfinished(requests), np.nan, tpot_s(requests))
    return _felt(requests, span, had_s=np.zeros(len(requests)), is_whole=True)


def send_lag_sample(requests: RequestTable) -> FeltSample | None:
    """Sent - due: how late the generator was, whatever became of the request."""
    span = np.round(requests.sent_at_s - requests.due_at_s, NANOSECONDS)
    never = requests.is_outcome(Outcome.NOT_SENT)
    values = np.where(never, np.inf, span)
    member = ~np.isnan(values)
    if not member.any():
        return None
    return felt_sample(
        at_least=values[member], at_most=values[member], served=span[member & requests.is_ok]
    )


def itl_sample(requests: RequestTable) -> PooledSample | None:
    """Gaps between consecutive output events, pooled over requests.

    A stream that broke adds one infinite gap; one still open adds the gap it was in, bounded.
    """
    if not requests.gaps.total:
        return None
    began = ~np.isnan(requests.first_token_at_s)
    had_s = np.maximum(0.0, requests.ended_at_s - requests.last_token_at_s)
    return PooledSample(
        requests.gaps,
        is_ok=requests.is_ok,
        broken=requests.is_failed & began,
        had_s=np.where(_is_unfinished(requests) & began, had_s, np.nan),
    )


SAMPLES: dict[str, Callable[[RequestTable], Sample | None]] = {
    "ttft_s": lambda requests: ttft_sample(requests, from_due=False),
    "ttft_from_due_s": lambda requests: ttft_sample(requests, from_due=True),
    "ttfa_s": ttfa_sample,
    "itl_s": itl_sample,
    "tpot_s": tpot_sample,
    "e2e_s": lambda requests: e2e_sample(requests, from_due=False),
    "e2e_from_due_s": lambda requests: e2e_sample(requests, from_due=True),
    "send_lag_s": send_lag_sample,
}
"""How each latency of the report is drawn from a table, in the report's order."""


def _is_unfinished(requests: RequestTable) -> Bools:
    return requests.is_outcome(Outcome.UNFINISHED)


def _felt(
    requests: RequestTable,
    span: Floats,
    *,
    had_s: Floats,
    from_due: bool = False,
    is_open: Bools | None = None,
    is_never: Bools | None = None,
    is_whole: bool = False,
) -> FeltSample | None:
    """The sample of one latency.

    Args:
        requests: whose.
        span: the latency in seconds, NaN where the instant was not seen.
        had_s: how long an open request had.
        from_due: a request never sent counts, as infinitely slow.
        is_open: requests that are bounded where ``span`` is NaN; the unfinished by default.
        is_never: successes that will never have it, hence infinitely slow.
        is_whole: the latency is of the whole answer, so that one cut on purpose has none.
    """
    # Differences of instants carry rounding that grows with the instant; without it equal
    # latencies would look like a drift.
    span = np.round(span, NANOSECONDS)
    seen = ~np.isnan(span)
    ok, failed = requests.is_ok, requests.is_failed
    never = np.zeros(len(requests), np.bool_) if is_never is None else is_never & ~seen
    if ok.any() and not (ok & (seen | never)).any():
        return None
    bounded = (_is_unfinished(requests) if is_open is None else is_open) & ~seen
    infinite = failed | never
    if from_due:
        infinite = infinite | requests.is_outcome(Outcome.NOT_SENT)
    if is_whole:
        seen = seen & ~requests.is_outcome(Outcome.CANCELLED)
    member = infinite | bounded | seen
    if not member.any():
        return None
    at_most = np.where(infinite | bounded, np.inf, span)[member]
    at_least, served = at_most, at_most  # one and the same, where nothing sets them apart
    if bounded.any():
        at_least = np.where(bounded[member], np.fmax(0.0, had_s[member]), at_most)
    if not np.array_equal(member, ok & seen):
        served = span[ok & seen]
    return felt_sample(
        at_least=at_least,
        at_most=at_most,
        served=served,
        failed=int(failed.sum()),
        unfinished=int(bounded.sum()),
    )
