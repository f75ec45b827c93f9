"""Whether a run may be believed."""

from __future__ import annotations

import pytest

from collectors.figures import measure
from collectors.records import Outcome, RequestRecord
from collectors.validity import Standing, Validity
from tests.collectors.builders import make_request, make_run, make_table

SHARED = ("coalesced", "first_coalesced")


def _validity(
    records: list[RequestRecord], *, limit_s: float | None = None, **changes: object
) -> Validity:
    return measure(make_run(**changes), make_table(records), [], tightest_limit_s=limit_s).validity


def _steady(n: int = 100, **changes: object) -> list[RequestRecord]:
    return [make_request(i, i * 0.9, **changes) for i in range(n)]


def test_exact_stamps_make_a_valid_run() -> None:
    """Kernel stamps of tokens that came alone leave no possible error, however late the read."""
    found = _validity(_steady(read_delay_s=0.5))

    assert (found.verdict, found.reasons, found.possible_error_s) == (Standing.VALID, [], 0.0)


@pytest.mark.parametrize(
    ("delay_s", "limit_s", "verdict"),
    [
        (0.004, None, Standing.VALID),  # 4 % of TTFT p50
        (0.006, None, Standing.DEGRADED),
        (0.006, 0.2, Standing.VALID),  # 3 % of the limit
        (0.006, 0.05, Standing.DEGRADED),
    ],
)
def test_late_reads_of_coalesced_tokens_degrade(
    delay_s: float, limit_s: float | None, verdict: Standing
) -> None:
    """The p99 delay of coalesced first tokens may be 5 % of the limit, or of TTFT p50 without."""
    found = _validity(_steady(read_delay_s=delay_s, flags=SHARED), limit_s=limit_s)

    assert found.possible_error_s == pytest.approx(delay_s)
    assert found.verdict is verdict


def test_tokens_that_share_a_stamp_may_have_waited_for_a_loop_lag() -> None:
    """The stamp is that of the last; how long the first lay there only the loop's lag can tell."""
    client = {"stamp": "kernel", "loop_lag_p99_s": 0.02}
    shared = _validity(_steady(read_delay_s=0.001, flags=SHARED), client=client)
    later = _validity(_steady(read_delay_s=0.001, flags=("coalesced",)), client=client)

    assert shared.possible_error_s == pytest.approx(0.02)
    assert later.possible_error_s == 0.0


def test_without_kernel_stamps_the_loop_lag_is_the_error() -> None:
    """Clock-stamped tokens may be off by the loop lag and the wait for a CPU."""
    client = {"stamp": "clock", "loop_lag_p99_s": 0.02, "run_queue_wait_p99_s": 0.01}
    found = _validity(_steady(read_delay_s=None), client=client)

    assert found.possible_error_s == pytest.approx(0.03)
    assert found.verdict is Standing.DEGRADED


def test_an_unknown_error_is_not_none_at_all() -> None:
    """Without stamps and without a loop lag nobody knows, and the run is degraded."""
    found = _validity(_steady(read_delay_s=None), client={})

    assert found.possible_error_s is None
    assert found.verdict is Standing.DEGRADED


@pytest.mark.parametrize(
    ("not_sent", "config", "verdict"),
    [
        (1, {}, Standing.VALID),
        (2, {}, Standing.INVALID),
        (20, {"max_in_flight": 64}, Standing.DEGRADED),  # asked for
    ],
)
def test_load_that_was_not_sent_invalidates(
    not_sent: int, config: dict[str, int], verdict: Standing
) -> None:
    """More than 1 % never sent was not the load asked for, unless a cap on it was."""
    records = _steady(100 - not_sent)
    records += [make_request(200 + i, 95.0, outcome=Outcome.NOT_SENT) for i in range(not_sent)]

    assert _validity(records, config=config).verdict is verdict


@pytest.mark.parametrize(
    "client",
    [
        {"run_queue_wait_ratio": 0.11},
        {"workers_lost": 1},
        {"lost_records": 3},
        {"mishaps": {"own_errors": {"count": 2, "first": "KeyError"}}},
    ],
    ids=["starved", "worker lost", "records lost", "our own failure"],
)
def test_a_client_that_failed_invalidates(client: dict[str, float]) -> None:
    """A client that waited for a CPU over 10 % of the time, or lost something, proves nothing."""
    found = _validity(_steady(), client=client)

    assert found.verdict is Standing.INVALID
    assert len(found.reasons) == 1


def test_virtual_time_has_no_client() -> None:
    """A simulated run cannot be late."""
    assert (
        _validity(_steady(read_delay_s=None), simulated=True, client={}).verdict is Standing.VALID
    )
