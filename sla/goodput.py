"""Which requests were good: served, and within every per-request objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collectors.latency import NO_OUTPUT, felt_end_at_s, has_flag, tpot_s
from collectors.table import Floats, RequestTable
from collectors.words import Bools
from sla.metrics import resolve
from sla.spec import Objective


def good_requests(
    table: RequestTable, per_request: Sequence[Objective], loop: str, *, slack_s: float = 0.0
) -> Bools | None:
    """For each request whether it was good.

    A request whose figure was not observed is not good. TPOT is the exception where it is known
    that nothing followed the first output event: there was nothing to be slow.

    Args:
        table: the requests.
        per_request: the objectives; without any, no request can be told good.
        loop: "open" or "closed"; says what ``ttft`` and ``e2e`` mean.
        slack_s: added to every limit, for a client whose instants may be off by so much.

    Returns:
        ``None`` where goodput is unknown: no objectives, or one whose figure no success has.
    """
    if not per_request:
        return None
    ok = table.is_ok
    good = ok & ~has_flag(table, NO_OUTPUT)
    for objective in per_request:
        values, is_met = _values(table, resolve(objective.metric, loop).name)
        if ok.any() and not (ok & (~np.isnan(values) | is_met)).any():
            return None
        wider = slack_s if objective.op.is_upper else -slack_s
        # NaN compares as False: what was not observed is not within.
        good &= is_met | objective.op.holds(values, objective.limit + wider)
    return good


def _values(table: RequestTable, name: str) -> tuple[Floats, Bools]:
    """A latency of each request, NaN where not observed, and where it is met without being one."""
    is_met = np.zeros(len(table), np.bool_)
    start = table.due_at_s if name.endswith("_from_due") else table.sent_at_s
    if name == "tpot":
        values = tpot_s(table)
        first = np.where(table.first_event_tokens > 0, table.first_event_tokens, 1)
        return values, np.isnan(values) & (table.output_tokens <= first)
    if name == "ttfa":
        return table.first_answer_at_s - start, is_met
    if name.startswith("ttft"):
        return table.first_token_at_s - start, is_met
    return felt_end_at_s(table) - start, is_met
