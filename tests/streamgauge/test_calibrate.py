"""The comparison of client and truth: exact arithmetic on made-up records."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from collectors.records import Outcome, RequestRecord
from streamgauge.campaigns.calibrate import Fidelity, Source, compare, describe

BEGAN = 1000.0


def client(seq: int, **changes: Any) -> RequestRecord:
    """A request as the client saw it: sent at 1 s, first token at 1.05 s, two gaps of 10 ms."""
    fields: dict[str, Any] = {
        "due_at_s": 1.0,
        "sent_at_s": 1.0,
        "first_token_at_s": 1.05,
        "last_token_at_s": 1.07,
        "outcome": Outcome.OK,
        "gaps_s": array("f", [0.01, 0.01]),
    }
    return RequestRecord(run_id="r", seq=seq, worker="w", **{**fields, **changes})


def server(seq: int, **changes: Any) -> dict[str, Any]:
    """The same request in the truth log: 1 ms on its way, written 2 ms before the client saw it."""
    entry = {
        "id": f"r-w-{seq}",
        "read_at": BEGAN + 1.001,
        "first_token_at": BEGAN + 1.048,
        "token_at": [BEGAN + 1.048, BEGAN + 1.058, BEGAN + 1.071],
        "lateness_p99_s": 0.0001,
    }
    return {**entry, **changes}


def compared(records: list[RequestRecord], entries: list[dict[str, Any]]) -> Fidelity | None:
    """Those records beside those entries."""
    return compare(1, records, {e["id"]: e for e in entries}, BEGAN)


def test_errors_are_those_of_each_request() -> None:
    """First token, send and gaps are compared pair by pair, in absolute values."""
    found = compared([client(0)], [server(0)])
    assert found is not None
    assert found.first_token_error_s == pytest.approx((0.002, 0.002))
    assert found.send_error_s == pytest.approx((0.001, 0.001))
    assert found.true_ttft_s == pytest.approx((0.047, 0.047))
    assert found.itl_error_s is not None
    assert found.itl_error_s == pytest.approx((0.0, 0.003), abs=1e-6)
    assert not found.source_limited


def test_gaps_that_cannot_be_paired_are_left_out() -> None:
    """An answer of fewer events than tokens gives no gap error, but still a first token."""
    found = compared([client(0, gaps_s=array("f", [0.02]))], [server(0)])
    assert found is not None
    assert found.itl_error_s is None
    assert found.requests == 1


def test_a_late_source_is_named() -> None:
    """Where the source was late by more than a millisecond the client is not judged by it."""
    found = compared([client(0)], [server(0, lateness_p99_s=0.0011)])
    assert found is not None
    assert found.source_limited
    assert "too busy to calibrate" in describe(found)


def test_nothing_to_compare_is_none() -> None:
    """Requests without a first token, or unknown to the truth log, give no figure at all."""
    assert compared([client(0, first_token_at_s=None, last_token_at_s=None)], [server(0)]) is None
    assert compared([client(0)], [server(1)]) is None


def test_a_source_is_words_of_the_command() -> None:
    """The metronome is asked for its schedule in seconds."""
    words = Source(ttft_s=0.02, itl_s=0.005, realtime=True).options()
    assert words[:5] == ["--metronome", "--ttft", "0.02s", "--itl", "0.005s"]
    assert words[-1] == "--realtime"


def test_a_source_with_tls_tells_how_to_trust_it(tmp_path: Path) -> None:
    """The server gets certificate and key, the client the certificate."""
    source = Source(tls_files=(tmp_path / "c.pem", tmp_path / "k.pem"))
    words = source.options()
    assert words[words.index("--tls-cert") + 1] == source.trust[1] == str(tmp_path / "c.pem")
    assert words[words.index("--tls-key") + 1] == str(tmp_path / "k.pem")
    assert Source().trust == []
