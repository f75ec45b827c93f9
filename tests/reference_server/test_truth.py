"""The truth log: what it says of a request, how much it keeps, what can be asked of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reference_server.errors import RefusedError
from reference_server.truth import OpenTruth, TruthLog, TruthOutcome


def request(name: str, read_at: float, scheduled: list[float], written: list[float]) -> OpenTruth:
    truth = OpenTruth(name, read_at, streamed=True)
    truth.scheduled_at.extend(scheduled)
    truth.written_at.extend(written)
    return truth


def read(log: TruthLog, **query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(log.answer(query.items()))["requests"]
    return rows


def test_lateness_is_actual_minus_scheduled() -> None:
    """First, worst and p99 (nearest rank: of 100 the 99th) come from the same differences."""
    scheduled = [float(k) for k in range(100)]
    written = [k + k / 1000 for k in range(100)]  # later and later: 0 ... 99 ms
    record = request("a", -0.5, scheduled, written).close(TruthOutcome.FINISHED)

    assert record.first_token_at == 0.0
    assert record.last_token_at == pytest.approx(99.099)
    assert (record.first_scheduled_at, record.last_scheduled_at) == (0.0, 99.0)
    assert record.first_lateness_s == 0.0
    assert record.lateness_max_s == pytest.approx(0.099)
    assert record.lateness_p99_s == pytest.approx(0.098)
    assert record.tokens == 100


def test_a_request_without_tokens_has_no_instants() -> None:
    """Absent, not zero: the client left before the first token."""
    record = request("a", 1.0, [], []).close(TruthOutcome.CLIENT_LEFT)

    assert record.first_token_at is None
    assert record.lateness_max_s is None
    assert record.tokens == 0


def test_a_token_the_kernel_never_took_was_not_written() -> None:
    """A token handed over but not taken counts neither as written nor as last scheduled."""
    record = request("a", 0.0, [1.0, 2.0, 3.0], [1.0, 2.0]).close(TruthOutcome.CLIENT_LEFT)

    assert record.tokens == 2
    assert record.last_scheduled_at == 2.0


def test_the_ring_is_bounded() -> None:
    """The oldest fall out, and tokens are kept of the last few only."""
    log = TruthLog(capacity=3, keep_tokens=2)
    for number in range(5):
        log.add(request(str(number), number, [number + 1.0], [number + 1.5]), TruthOutcome.FINISHED)

    rows = read(log)
    assert [row["id"] for row in rows] == ["2", "3", "4"]
    assert [row.get("token_at") for row in rows] == [None, [4.5], [5.5]]


def test_the_log_can_be_asked_by_id_and_by_instant() -> None:
    """``id`` and ``since`` (when it was read) filter; together they both hold."""
    log = TruthLog()
    for number, name in enumerate("aba"):
        log.add(request(name, number, [], []), TruthOutcome.CLIENT_LEFT)

    assert [row["read_at"] for row in read(log, id="a")] == [0.0, 2.0]
    assert [row["read_at"] for row in read(log, since="1")] == [1.0, 2.0]
    assert [row["read_at"] for row in read(log, id="a", since="0.5")] == [2.0]
    log.clear()
    assert read(log) == []


def test_a_wrong_instant_is_refused() -> None:
    """Not silently taken for "everything"."""
    with pytest.raises(RefusedError, match="CLOCK_MONOTONIC"):
        TruthLog().answer([("since", "yesterday")])
