"""Rows in Locust's statistics: what is observed, logged in bulk, past Aggregated."""

from __future__ import annotations

from argparse import Namespace
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from locust.env import Environment
from locust.stats import RequestStats, StatsEntry

from collectors.records import Outcome, RequestRecord
from loadgen.rows import (
    KEPT_HISTORY,
    KEPT_SECONDS,
    MAX_FAILURES,
    RequestFailedError,
    StatsRows,
    log_many,
)

GAPS_MS = (20.0, 20.2, 35.0, 147.0)


def record(**changes: Any) -> RequestRecord:
    """A request sent at 1 s, with its first token 0.25 s later and four gaps."""
    known: dict[str, Any] = {
        "run_id": "run",
        "seq": 0,
        "task": "chat",
        "outcome": Outcome.OK,
        "due_at_s": 1.0,
        "sent_at_s": 1.0,
        "first_token_at_s": 1.25,
        "last_token_at_s": 1.25 + sum(GAPS_MS) / 1000,
        "ended_at_s": 2.0,
        "output_tokens": 5,
        "gaps_s": array("f", [gap / 1000 for gap in GAPS_MS]),
    }
    return RequestRecord(**known | changes)


def books(entry: StatsEntry) -> dict[str, Any]:
    """What an entry holds, but for when."""
    kept = dict(entry.serialize())
    for name in ("start_time", "last_request_timestamp"):
        del kept[name]
    kept["num_reqs_per_sec"] = sum(entry.num_reqs_per_sec.values())
    kept["response_times"] = {value: n for value, n in entry.response_times.items() if n}
    return kept


@given(
    st.lists(st.lists(st.floats(0, 700_000), min_size=1, max_size=60), min_size=1, max_size=3),
    st.booleans(),
)
def test_many_at_once_are_what_one_by_one_are(batches: list[list[float]], cached: bool) -> None:
    """A row filled in bulk holds what Locust's own logging of each value leaves there."""
    bulk, single = (StatsEntry(RequestStats(), "chat", "ITL", cached) for _ in range(2))
    for values in batches:
        log_many(bulk, np.array(values))
        for value in values:
            single.log(round(value), 0)
    assert books(bulk) == books(single)


def test_a_batch_fills_its_rows_and_not_aggregated() -> None:
    """TTFT and TOKENS have a value a request, ITL one a gap; Aggregated has none of them."""
    environment = Environment()
    rows = StatsRows(environment)
    rows.log([record(), record(task="summary", gaps_s=None, output_tokens=None)])
    rows.log([record(output_tokens=7)])
    counts = {key: entry.num_requests for key, entry in environment.stats.entries.items()}
    assert counts == {
        ("chat", "TTFT"): 2,
        ("chat (gaps)", "ITL"): 8,
        ("chat (tokens, not ms)", "TOKENS"): 2,
        ("summary", "TTFT"): 1,
    }
    itl = environment.stats.get("chat (gaps)", "ITL")
    assert dict(itl.response_times) == {20: 4, 35: 2, 150: 2}  # 147 ms, as Locust rounds
    assert (itl.min_response_time, itl.max_response_time) == (20, 147)
    assert environment.stats.get("chat (tokens, not ms)", "TOKENS").max_response_time == 7
    assert environment.stats.total.num_requests == 0


def test_what_was_not_observed_is_in_no_row() -> None:
    """A request without first token, gaps or tokens leaves no row behind, and no 0 in one."""
    environment = Environment()
    unseen = record(
        first_token_at_s=None, last_token_at_s=None, gaps_s=array("f"), output_tokens=None
    )
    StatsRows(environment).log([unseen])
    assert not environment.stats.entries


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, "E2E", None),
        ({"outcome": Outcome.RESET, "detail": "cut"}, "E2E", "reset: cut"),
        ({"outcome": Outcome.TRUNCATED}, "E2E", "truncated"),
        ({"outcome": Outcome.UNFINISHED}, "E2E", "unfinished"),
        ({"outcome": Outcome.CANCELLED}, "CANCELLED", None),
    ],
)
def test_an_event_tells_the_outcome(changes: dict[str, Any], kind: str, words: str | None) -> None:
    """Every outcome but ok is a failure with its words; a cancelled request has its own row."""
    environment = Environment()
    told: list[dict[str, Any]] = []
    environment.events.request.add_listener(lambda **event: told.append(event))
    StatsRows(environment).fire(record(**changes))
    (event,) = told
    assert event["request_type"] == kind
    assert event["name"] == "chat"
    assert event["response_time"] == pytest.approx(250 + sum(GAPS_MS))
    error = event["exception"]
    assert (None if error is None else str(error)) == words
    assert error is None or isinstance(error, RequestFailedError)


def test_servers_that_number_their_errors_fill_no_memory() -> None:
    """Locust keeps every text it is told; beyond the first hundred it is told the outcome alone."""
    environment = Environment()
    told: list[str] = []
    environment.events.request.add_listener(lambda exception, **_: told.append(str(exception)))
    rows = StatsRows(environment)
    for number in range(1000):
        rows.fire(record(outcome=Outcome.IN_BAND_ERROR, detail=f"request {number} failed"))
    rows.fire(record(outcome=Outcome.IN_BAND_ERROR, detail="request 7 failed"))
    rows.fire(record(outcome=Outcome.RESET))

    assert len(set(told)) == MAX_FAILURES + 2
    assert told[:1] == ["in_band_error: request 0 failed"]
    assert told[-3:] == ["in_band_error", "in_band_error: request 7 failed", "reset"]


def test_seconds_long_past_are_forgotten() -> None:
    """Locust keeps a count for every second of every row; the latest are what its rates are of."""
    environment = Environment()
    entry = environment.stats.get("chat", "E2E")
    for counts in (entry.num_reqs_per_sec, environment.stats.total.num_fail_per_sec):
        counts.update(dict.fromkeys(range(1000), 2))
    StatsRows(environment).log([record()])

    for counts in (entry.num_reqs_per_sec, environment.stats.total.num_fail_per_sec):
        assert list(counts) == list(range(1000 - KEPT_SECONDS, 1000))


@pytest.mark.parametrize("has_charts", [False, True])
def test_locusts_charts_of_a_long_run_are_bounded(*, has_charts: bool) -> None:
    """With a page to draw them every second point of the past stays; without one, the latest."""
    options = Namespace(html_file="report.html" if has_charts else None)
    environment = Environment(parsed_options=options)
    rows = StatsRows(environment)
    for number in range(4 * KEPT_HISTORY):
        environment.stats.history.append({"time": str(number)})
        rows.log([])
    times = [int(point["time"]) for point in environment.stats.history]

    assert times[-1] == 4 * KEPT_HISTORY - 1
    if has_charts:
        assert KEPT_HISTORY // 2 < len(times) <= KEPT_HISTORY
        assert times == sorted(times)
        assert times[0] < KEPT_HISTORY
    else:
        assert len(times) == 1
