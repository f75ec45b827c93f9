"""Latencies as felt: who counts, and at what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from collectors.latency import (
    SAMPLES,
    e2e_sample,
    itl_sample,
    send_lag_sample,
    tpot_sample,
    ttfa_sample,
    ttft_sample,
)
from collectors.records import Outcome, RequestRecord
from tests.collectors.builders import make_request, make_table

INF = math.inf


def _unfinished(seq: int, ttft_s: float | None, ended_at_s: float) -> RequestRecord:
    return make_request(seq, 1.0, ttft_s=ttft_s, outcome=Outcome.UNFINISHED, ended_at_s=ended_at_s)


def _whole(seq: int, due_at_s: float, done_at_s: float, **changes: Any) -> RequestRecord:
    return make_request(
        seq, due_at_s, ttft_s=None, done_at_s=done_at_s, ended_at_s=done_at_s, **changes
    )


def test_a_failed_request_is_infinitely_slow() -> None:
    """Even one that had its first token before it broke, and one that never connected."""
    table = make_table(
        [
            make_request(0, 0.0, ttft_s=0.1),
            make_request(1, 1.0, ttft_s=0.2, outcome=Outcome.RESET),
            make_request(2, 2.0, ttft_s=None, outcome=Outcome.CONNECT_ERROR, sent_at_s=None),
        ]
    )
    for draw in (ttft_sample, e2e_sample):
        sample = draw(table, from_due=False)

        assert sample is not None
        assert np.isinf(sample.at_least).tolist() == [False, True, True]
        assert sample.failed == 2
        assert len(sample.served) == 1


def test_an_open_request_is_bounded_by_the_time_it_had() -> None:
    """Without a first token TTFT is at least the wait; with one it is known, and E2E is bounded."""
    table = make_table([make_request(0, 0.0), _unfinished(1, None, 4.0), _unfinished(2, 0.5, 4.0)])
    ttft = ttft_sample(table, from_due=False)
    e2e = e2e_sample(table, from_due=False)

    assert ttft is not None
    assert e2e is not None
    assert ttft.at_least == pytest.approx([0.1, 3.0, 0.5])
    assert ttft.at_most == pytest.approx([0.1, INF, 0.5])
    assert ttft.unfinished == 1
    assert e2e.at_least[1:] == pytest.approx([3.0, 3.0])
    assert np.isinf(e2e.at_most[1:]).all()
    assert e2e.unfinished == 2


def test_one_never_sent_is_infinite_from_due_and_absent_from_sent() -> None:
    """What the generator missed shows in the from-due figures and in the send lag."""
    table = make_table(
        [make_request(0, 0.0, lag_s=0.02), make_request(1, 1.0, outcome=Outcome.NOT_SENT)]
    )
    due, sent = ttft_sample(table, from_due=True), ttft_sample(table, from_due=False)
    lag = send_lag_sample(table)

    assert due is not None
    assert sent is not None
    assert lag is not None
    assert due.at_most == pytest.approx([0.12, INF])
    assert sent.at_most == pytest.approx([0.1])
    assert lag.at_most == pytest.approx([0.02, INF])


def test_an_answer_without_output_never_had_a_first_token() -> None:
    """It is ok, infinite in TTFT, and its E2E is the end of the response."""
    silent = _whole(1, 1.0, 1.4, flags=("no_output",))
    table = make_table([make_request(0, 0.0), silent])
    ttft, e2e = ttft_sample(table, from_due=False), e2e_sample(table, from_due=False)

    assert ttft is not None
    assert e2e is not None
    assert ttft.at_most == pytest.approx([0.1, INF])
    assert ttft.failed == 0
    assert e2e.at_most[1] == pytest.approx(0.4)


def test_a_figure_no_success_has_does_not_apply() -> None:
    """Answers in one piece have no TTFT; a failure among them does not make an infinite one."""
    whole = _whole(0, 0.0, 0.5, flags=("not_streamed",), output_tokens=10)
    table = make_table([whole, make_request(1, 1.0, ttft_s=None, outcome=Outcome.RATE_LIMITED)])

    assert ttft_sample(table, from_due=False) is None
    assert itl_sample(table) is None
    assert e2e_sample(table, from_due=False) is not None


def test_tool_calls_alone_have_no_answer() -> None:
    """A reply without content has no TTFA and does not count there."""
    table = make_table([make_request(0, 0.0), make_request(1, 1.0, first_answer_at_s=None)])
    sample = ttfa_sample(table)

    assert sample is not None
    assert len(sample) == 1


def test_what_the_scenario_cut_counts_only_while_it_waited() -> None:
    """Cut before its first token it is bounded in TTFT; its chosen length is no E2E."""
    table = make_table(
        [
            make_request(0, 0.0),
            make_request(1, 1.0, ttft_s=None, outcome=Outcome.CANCELLED, ended_at_s=3.0),
            make_request(2, 2.0, ttft_s=0.3, outcome=Outcome.CANCELLED),
        ]
    )
    ttft, e2e = ttft_sample(table, from_due=False), e2e_sample(table, from_due=False)

    assert ttft is not None
    assert e2e is not None
    assert ttft.at_least == pytest.approx([0.1, 2.0, 0.3])
    assert ttft.at_most == pytest.approx([0.1, INF, 0.3])
    assert len(e2e) == 1


def test_what_was_cut_before_it_was_sent_counts_from_due_alone() -> None:
    """Its user waited, for how long is not known; from sent there is nothing to count."""
    seen = {"sent_at_s": None, "ended_at_s": None}
    cut = make_request(1, 1.0, ttft_s=None, outcome=Outcome.CANCELLED, **seen)
    table = make_table([make_request(0, 0.0), cut])
    sent, due = ttft_sample(table, from_due=False), ttft_sample(table, from_due=True)

    assert sent is not None
    assert due is not None
    assert len(sent) == 1
    assert (due.at_least[1], due.at_most[1]) == (0.0, INF)


def test_tpot_leaves_out_the_first_events_tokens() -> None:
    """(last - first) / (output tokens - tokens of the first event); none where nothing is left."""
    table = make_table(
        [
            make_request(0, 0.0, gaps_s=[0.1, 0.1], output_tokens=9, first_event_tokens=4),
            make_request(1, 1.0, gaps_s=[0.1, 0.1], output_tokens=5),
            make_request(2, 2.0, gaps_s=[]),
        ]
    )
    sample = tpot_sample(table)

    assert sample is not None
    assert sample.at_most == pytest.approx([0.2 / 5, 0.2 / 4])


def test_gaps_are_pooled_with_what_broke_and_what_is_open() -> None:
    """A broken stream adds one infinite gap, an open one the gap it was in; a refusal adds none."""
    table = make_table(
        [
            make_request(0, 0.0, gaps_s=[0.1, 0.2]),
            make_request(1, 1.0, gaps_s=[], outcome=Outcome.RESET),
            make_request(2, 2.0, gaps_s=[0.3], outcome=Outcome.UNFINISHED, ended_at_s=3.4),
            make_request(3, 3.0, ttft_s=None, outcome=Outcome.RATE_LIMITED),
            make_request(4, 4.0, gaps_s=[0.4]),
        ]
    )
    sample = itl_sample(table)

    assert sample is not None
    assert sample.ordered_at_least == pytest.approx([0.1, 0.2, 0.3, 0.4, 1.0, INF])
    assert sample.ordered == pytest.approx([0.1, 0.2, 0.3, 0.4, INF, INF])
    assert sorted(sample.at_most) == pytest.approx([0.1, 0.2, 0.3, 0.4, INF, INF])
    assert sample.requests == 4
    assert (sample.failed, sample.unfinished) == (1, 1)
    assert sample.ordered_served == pytest.approx([0.1, 0.2, 0.4])


def test_no_requests_have_no_latency() -> None:
    """An empty table draws no sample at all."""
    table = make_table([])

    assert [name for name, draw in SAMPLES.items() if draw(table) is not None] == []


def test_columns_agree_with_the_records_own_properties() -> None:
    """The vectorised latencies are those of the record, request by request."""
    rng = np.random.default_rng(0)
    records = [
        make_request(
            i,
            float(i),
            ttft_s=float(rng.uniform(0.1, 1)),
            gaps_s=rng.uniform(0.01, 0.1, int(rng.integers(1, 9))).tolist(),
            lag_s=float(rng.uniform(0, 0.1)),
        )
        for i in range(50)
    ]
    table = make_table(records)
    for name in (
        "ttft_s",
        "ttft_from_due_s",
        "ttfa_s",
        "tpot_s",
        "e2e_s",
        "e2e_from_due_s",
        "send_lag_s",
    ):
        sample = SAMPLES[name](table)

        assert sample is not None
        assert sample.at_most == pytest.approx([getattr(r, name) for r in records]), name
