"""Whether a run may be believed: was it the server that was slow, or the client?

``valid``: the possible error is at most 5 % of the tightest latency limit (without one, of TTFT
p50) and at least 99 % of what was due was sent. ``degraded``: beyond that; a verdict widens its
bounds by the error. ``invalid``: the load was not the one asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from collectors.estimates import Sample
from collectors.records import FIRST_COALESCED, Outcome
from collectors.runs import Run
from collectors.stats import percentile
from collectors.table import Floats, RequestTable

ERROR_SHARE = 0.05
SENT_RATIO = 0.99
QUEUE_WAIT_RATIO = 0.10


class Standing(StrEnum):
    """How far a run may be believed."""

    VALID = "valid"
    DEGRADED = "degraded"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """The standing of a run, and why.

    Attributes:
        possible_error_s: how far a client instant may be off; ``None`` where nothing tells.
    """

    verdict: Standing
    reasons: Sequence[str]
    possible_error_s: float | None


def judge_validity(
    run: Run, requests: RequestTable, ttft: Sample | None, limit_s: float | None
) -> Validity:
    """The standing of ``run``.

    Args:
        run: for the health of its client.
        requests: those of its window.
        ttft: their TTFT, the yardstick where there is no limit.
        limit_s: the tightest latency limit the run is held to.
    """
    error_s = possible_error_s(run, requests)
    invalid = list(_invalid(run, requests))
    degraded = list(_degraded(requests, error_s, ttft, limit_s))
    if invalid:
        verdict = Standing.INVALID
    elif degraded:
        verdict = Standing.DEGRADED
    else:
        verdict = Standing.VALID
    return Validity(verdict=verdict, reasons=[*invalid, *degraded], possible_error_s=error_s)


def possible_error_s(run: Run, requests: RequestTable) -> float | None:
    """How far a client instant may be off.

    It is the p99 of (read - arrival) over coalesced or clock-stamped first tokens, plus the p99 of
    the wait for a CPU.

    A first token with a kernel stamp of its own has no such error. One without any stamp was read
    up to a loop lag late, and one that shares its stamp with later ones may have waited as long;
    ``None`` where not even the client's loop lag is known.
    """
    if run.simulated:
        return 0.0
    queue_s = float(run.client.get("run_queue_wait_p99_s") or 0.0)
    lag_s = run.client.get("loop_lag_p99_s")
    delays_s = requests.read_delay_s
    has_token = ~np.isnan(requests.first_token_at_s)
    unstamped = has_token & np.isnan(delays_s)
    shared = requests.flags.where(lambda flags: FIRST_COALESCED in flags)
    if unstamped.any() and lag_s is None:
        return None
    late_s: Floats = delays_s[has_token & (unstamped | shared)]
    late_s = np.fmax(late_s, float(lag_s or 0.0))  # of NaN and a number, the number
    return queue_s + (percentile(np.sort(late_s), 0.99) if len(late_s) else 0.0)


def _not_sent_ratio(requests: RequestTable) -> float:
    if not len(requests):
        return 0.0
    return float(requests.is_outcome(Outcome.NOT_SENT).sum()) / len(requests)


def _invalid(run: Run, requests: RequestTable) -> list[str]:
    reasons = []
    not_sent = _not_sent_ratio(requests)
    if not_sent > 1 - SENT_RATIO and not run.config.get("max_in_flight"):
        reasons.append(
            f"{not_sent:.1%} of what was due was never sent; the client could not keep up."
        )
    queue = run.client.get("run_queue_wait_ratio")
    if queue is not None and queue > QUEUE_WAIT_RATIO:
        reasons.append(
            f"The client waited for a CPU {queue:.0%} of the time (at most {QUEUE_WAIT_RATIO:.0%}"
            " is sound); give it cores of its own."
        )
    lost = run.client.get("workers_lost")
    if lost:
        reasons.append(f"Load workers lost on the way: {lost}.")
    own = run.client.get("mishaps", {}).get("own_errors")
    if own:
        reasons.append(f"Streamgauge itself failed during the run, times: {own['count']}.")
    unstored = run.client.get("lost_records")
    if unstored:
        reasons.append(f"Requests lost before they were stored: {unstored}.")
    return reasons


def _degraded(
    requests: RequestTable,
    error_s: float | None,
    ttft: Sample | None,
    limit_s: float | None,
) -> list[str]:
    reasons = []
    not_sent = _not_sent_ratio(requests)
    if not_sent > 1 - SENT_RATIO:
        reasons.append(f"{not_sent:.1%} of what was due was not sent.")
    yardstick_s, name = limit_s, "the tightest latency limit"
    if yardstick_s is None and ttft is not None:
        yardstick_s, name = percentile(ttft.ordered, 0.5), "TTFT p50"
    if error_s is None:
        reasons.append("How late the client read its tokens is unknown.")
    elif yardstick_s is not None and error_s > ERROR_SHARE * yardstick_s:
        share = f"{error_s / yardstick_s:.0%}" if yardstick_s > 0 else "more than all"
        reasons.append(
            f"A client instant may be off by {error_s * 1000:.3g} ms, {share} of {name}"
            f" (at most {ERROR_SHARE:.0%} is sound)."
        )
    return reasons
