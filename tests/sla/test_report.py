"""The report's JSON: the contract that other programs read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from collectors.records import Outcome, RequestRecord
from collectors.samples import Sample
from collectors.store import Store
from sla.api import judge_run
from sla.judge import judge
from sla.report import build_report, check_document, judged_report, number
from sla.spec import parse_sla
from tests.collectors.builders import make_request, make_run, make_table
from tests.collectors.streams import small_portions, streams

# Names and order of every key, as the design says them.
LATENCY = {
    "n": 0,
    "n_eff": 0,
    "failed": 0,
    "unfinished": 0,
    "mean": 0,
    "max": 0,
    "p50": 0,
    "p90": 0,
    "p95": 0,
    "p99": 0,
    "ci95": dict.fromkeys(("p50", "p90", "p95", "p99"), 0),
    "served": dict.fromkeys(("p50", "p90", "p95", "p99"), 0),
}
CONTRACT: dict[str, Any] = {
    "schema": 0,
    "definitions": 0,
    "run": dict.fromkeys(
        (
            "id",
            "name",
            "scenario",
            "target",
            "model",
            "status",
            "started_at",
            "labels",
            "simulated",
        )
    ),
    "load": dict.fromkeys(
        (
            "loop",
            "asked",
            "achieved",
            "prompts_hash",
            "users",
            "requests_asked",
            "requests_due",
        )
    ),
    "window": dict.fromkeys(
        ("start_s", "end_s", "due", "ok", "failed", "unfinished", "not_sent", "cancelled")
    ),
    "latency": dict.fromkeys(
        (
            "ttft_s",
            "ttft_from_due_s",
            "ttfa_s",
            "itl_s",
            "tpot_s",
            "e2e_s",
            "e2e_from_due_s",
            "send_lag_s",
        ),
        LATENCY,
    ),
    "throughput": dict.fromkeys(
        (
            "requests_per_s",
            "input_tokens_per_s",
            "output_tokens_per_s",
            "goodput_per_s",
            "goodput_ratio",
        )
    ),
    "tokens": dict.fromkeys(
        (
            "input",
            "cached_input",
            "output",
            "reasoning",
            "source",
            "cache_write",
            "audio_input",
            "audio_output",
            "asked_output",
            "delivered_ratio",
        )
    ),
    "errors": dict.fromkeys(("ratio", "by_outcome")),
    "flags": 0,
    "flag_ratios": 0,
    "cost": dict.fromkeys(
        (
            "usd",
            "usd_per_request",
            "usd_per_1m_output_tokens",
            "usd_per_good_request",
            "basis",
        )
    ),
    "gpu": 0,
    "energy_j": 0,
    "server": 0,
    "client": dict.fromkeys(
        (
            "stamp",
            "loop_lag_p99_s",
            "read_delay_p99_s",
            "run_queue_wait_ratio",
            "cpu_ratio",
            "coalesced_ratio",
        )
    ),
    "validity": dict.fromkeys(("verdict", "reasons", "possible_error_s")),
    "warnings": 0,
}


def _paths(document: Any, contract: Any, path: str = "") -> Iterator[str]:
    """Key paths of ``document``, as deep as the contract goes, in order."""
    if not isinstance(contract, dict):
        return
    for key, value in document.items():
        yield f"{path}.{key}"
        yield from _paths(value, contract.get(key), f"{path}.{key}")


def _requests() -> list[RequestRecord]:
    """A hundred requests, of which every twelfth fails."""
    return [
        make_request(i, i + 0.5, ttft_s=None, outcome=Outcome.TIMEOUT)
        if i % 12 == 3
        else make_request(i, i + 0.5, flags=("coalesced",))
        for i in range(100)
    ]


@pytest.mark.parametrize("records", [_requests(), []], ids=["requests", "none"])
def test_keys_are_those_of_the_contract(records: list[RequestRecord]) -> None:
    """Every key, in order, whether anything was observed or not."""
    report = build_report(make_run(), make_table(records), [])

    assert list(_paths(report, CONTRACT)) == list(_paths(CONTRACT, CONTRACT))


def test_the_report_is_json_anywhere() -> None:
    """Infinity is the string "inf", NaN does not occur, and a strict parser reads it back."""
    report = build_report(make_run(), make_table(_requests()), [])
    text = orjson.dumps(report).decode()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(text, parse_constant=refuse) == report
    assert report["latency"]["ttft_s"]["p95"] == "inf"
    assert report["latency"]["ttft_s"]["served"]["p95"] == 0.1
    assert report["latency"]["ttft_s"]["failed"] == 9


def test_what_was_not_observed_is_null() -> None:
    """No request: every figure is null, no GPU is an empty list, no server an empty object."""
    report = build_report(make_run(), make_table([]), [])

    assert report["latency"]["ttft_s"] | {"n": None, "failed": None, "unfinished": None} == {
        **dict.fromkeys(LATENCY),
        "ci95": dict.fromkeys(("p50", "p90", "p95", "p99")),
        "served": dict.fromkeys(("p50", "p90", "p95", "p99")),
    }
    assert report["errors"] == {"ratio": None, "by_outcome": {}}
    assert (report["gpu"], report["server"], report["energy_j"]) == ([], {}, None)
    assert set(report["cost"].values()) == {None}


def test_the_report_tells_the_run() -> None:
    """Identity, load and window are those of the run; the start is UTC."""
    run = make_run(labels={"branch": "main"}, prompts_hash="abc")
    report = build_report(run, make_table(_requests()), [])

    assert report["schema"] == "streamgauge.report/1"
    assert report["run"]["started_at"] == "2023-11-14T22:13:20.000+00:00"
    assert report["run"]["labels"] == {"branch": "main"}
    assert report["load"]["asked"] == 4
    assert report["load"]["achieved"] == pytest.approx(91 * 0.13 / 100)
    assert report["errors"] == {"ratio": 0.09, "by_outcome": {"timeout": 9}}
    assert report["flags"] == {"coalesced": 91}
    assert report["flag_ratios"] == {"coalesced": 0.91}
    assert report["tokens"]["source"] == "usage"


def test_the_load_asked_for_stands_beside_the_load_that_was() -> None:
    """Users asked, users at work, requests in flight; requests asked and due; absent is null."""
    samples = [
        Sample(at, "worker:local", "client_user_seconds_total", 3.0 * at) for at in range(101)
    ]
    run = make_run(config={"requests": 120})
    load = build_report(run, make_table(_requests()), samples)["load"]

    assert (load["asked"], load["users"]) == (4, 3.0)
    assert (load["requests_asked"], load["requests_due"]) == (120, 100)
    without = build_report(make_run(), make_table([]), [])["load"]
    assert (without["users"], without["requests_asked"], without["requests_due"]) == (None, None, 0)


def test_gpus_stand_with_their_names() -> None:
    """One object a GPU; bytes are whole."""
    samples = [
        Sample(at, "gpu:GPU-1", name, value)
        for at in (10.0, 20.0)
        for name, value in (
            ("gpu_busy_ratio", 0.5),
            ("gpu_memory_used_bytes", 8e9),
            ("gpu_energy_joules", 100 * at),
        )
    ]
    run = make_run(versions={"gpu:GPU-1": "NVIDIA H200"})
    report = build_report(run, make_table(_requests()), samples)

    assert report["gpu"] == [
        {
            "uuid": "GPU-1",
            "name": "NVIDIA H200",
            "busy_ratio": 0.5,
            "memory_bytes": 8_000_000_000,
            "power_watts": None,
            "energy_j": 1000.0,
        }
    ]
    assert report["energy_j"] == 1000.0


def test_held_to_an_sla_it_has_goodput_and_verdicts() -> None:
    """One key more, `judgement`; goodput is of the file's per-request limits."""
    sla = parse_sla("per_request:\n  ttft: < 1 s\nobjectives:\n  ttft: p50 < 1 s")
    run, table = make_run(), make_table(_requests())
    judgement = judge(sla, run, table, [])
    report = judged_report(run, judgement)

    assert list(report) == [*CONTRACT, "judgement"]
    assert report["throughput"]["goodput_ratio"] == 0.91
    assert report["judgement"]["verdict"] == "held"
    assert report["judgement"]["exit_code"] == 0


def test_a_check_says_all_of_each_objective() -> None:
    """Metric, limit, value, interval, n, n_eff, verdict and reason, in base units."""
    sla = parse_sla("objectives:\n  ttft: p99 < 500 ms\n  cost_per_request: < 1 usd")
    run = make_run()
    document = check_document(run, judge(sla, run, make_table(_requests()), []))

    assert document["schema"] == "streamgauge.judgement/1"
    assert document["exit_code"] == 1
    latency, cost = document["objectives"]
    assert latency["metric"] == "ttft_from_sent"
    assert (latency["statistic"], latency["bound"], latency["unit"]) == ("p99", 0.5, "seconds")
    assert (latency["value"], latency["n"], latency["verdict"]) == ("inf", 100, "broken")
    assert latency["interval"] == ["inf", "inf"]
    assert (cost["value"], cost["interval"], cost["verdict"]) == (None, None, "inconclusive")
    assert "--gpu-hour-price" in cost["reason"]


def test_numbers_are_rounded_and_tame() -> None:
    """Ten digits, infinity as words, NaN as absent, whole numbers whole."""
    assert number(0.1 + 0.2) == 0.3
    assert number(math.inf) == "inf"
    assert number(math.nan) is None
    assert number(None) is None
    assert number(7) == 7


@settings(max_examples=10)
@given(streams())
def test_how_little_is_read_at_a_time_changes_nothing(records: list[RequestRecord]) -> None:
    """The whole report is the same, digit for digit, from portions of five gaps and from one."""
    run = make_run(warmup_s=2.0, stopped_at_s=15.0, gpus=2, gpu_hour_price_usd=3.0)
    with small_portions():
        portioned = build_report(run, make_table(records), [])

    assert portioned == build_report(run, make_table(records), [])


def test_what_is_not_read_of_the_telemetry_is_not_missed(tmp_path: Path) -> None:
    """A report from the database reads some readings, and has every figure that all would give."""
    run = make_run()
    samples = [
        Sample(at_s, source, name, at_s / 100)
        for source, names in {
            "gpu:0": ("busy_ratio", "memory_used_bytes", "power_watts", "energy_joules", "else"),
            "host:a": ("cpu_ratio", "memory_used_bytes"),
            "client:0": ("user_seconds_total",),
        }.items()
        for name in (f"{source.partition(':')[0]}_{rest}" for rest in names)
        for at_s in (10.0, 90.0)
    ]
    with Store.open(str(tmp_path / "runs.db"), create=True) as store:
        store.create_run(run)
        store.commit(run.id, samples=samples)
        found, _ = judge_run(store, run, None)

    assert found == build_report(run, make_table([]), samples)
    assert [key for key, value in found["gpu"][0].items() if value is None] == ["name"]
    assert found["energy_j"] is not None
    assert found["load"]["users"] is not None
