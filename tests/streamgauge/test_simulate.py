"""``streamgauge simulate``: a run in virtual time is a run like any other, but marked."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.streamgauge.stored import streamgauge

SMALL = ["--requests", "300", "--input-tokens", "20-60", "--output-tokens", "10"]
ONE = ["--rate", "1", "--requests", "1"]
GPU = ["--model", "llama-3.1-8b", "--gpu", "h200"]


def simulate(db: Path, *words: str) -> dict[str, Any]:
    """The report of a simulated run."""
    done = streamgauge("simulate", "--db", str(db), "--format", "json", *words)
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_a_simulated_run_is_reported_like_any_other(tmp_path: Path) -> None:
    """Open loop on four GPUs: all served, tokens counted, latencies there, no client error."""
    report = simulate(tmp_path / "a.db", *GPU, "--gpus", "4", "--rate", "50", *SMALL)

    assert report["run"]["simulated"] is True
    assert report["load"]["loop"] == "open"
    window = report["window"]
    assert window["due"] == window["ok"] > 250
    assert report["latency"]["ttft_s"]["p50"] > 0
    assert report["latency"]["itl_s"]["n"] == 9 * window["ok"]
    assert report["tokens"]["output"] == 10 * window["ok"]
    assert report["validity"]["verdict"] == "valid"


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    """To the last figure; another seed another one."""

    def latency(seed: str) -> Any:
        words = [*GPU, "--users", "5", "--seed", seed, *SMALL, "--no-gaps"]
        return simulate(tmp_path / "a.db", *words)["latency"]

    assert latency("1") == latency("1") != latency("2")


def test_what_goes_wrong_is_recorded_as_what_it_is(tmp_path: Path) -> None:
    """Refused: overloaded. Given up: timeout, with what had come. Cached tokens where known."""
    db = tmp_path / "a.db"
    simulate(
        db,
        *("--rate", "40", "--max-num-seqs", "4", "--max-num-queued-reqs", "4"),
        *("--timeout-total", "250ms", "--prefix-caching", "--shared-tokens", "64", *SMALL),
    )
    with sqlite3.connect(db) as connection:
        rows = connection.execute(
            "select outcome, count(*), min(http_status), max(cached_input_tokens),"
            " sum(last_token_at_s > ended_at_s) from requests group by outcome"
        ).fetchall()
    found = {row[0]: row[1:] for row in rows}

    assert set(found) == {"ok", "overloaded", "timeout"}
    assert found["overloaded"][1:3] == (503, None)
    assert found["ok"][2] == 64
    assert not any(row[-1] for row in rows), "a token after the end"


@pytest.mark.parametrize(("cache", "hits"), [("exact", 270), ("similar:6", 550)])
def test_kept_answers_are_hits(tmp_path: Path, cache: str, hits: int) -> None:
    """Thirty questions, half asked in other words, which only likeness knows again; flagged."""
    db = tmp_path / "a.db"
    report = simulate(
        db,
        *("--rate", "4", "--requests", "600", "--distinct-prompts", "30", "--reworded", "0.5"),
        *("--response-cache", cache, "--output-tokens", "5-15"),
    )
    with sqlite3.connect(db) as connection:
        rows = connection.execute(
            "select cache_status, count(*), max(first_token_at_s - due_at_s),"
            " min(output_tokens - first_event_tokens), max(output_tokens - first_event_tokens),"
            " sum(output_tokens = asked_output_tokens) from requests group by 1 order by 1"
        ).fetchall()
    (status, count, ttft_s, *left, as_asked), (missed, *_, left_of_miss, _) = rows

    assert (status, missed) == ("hit", "miss")
    assert count == pytest.approx(hits, abs=40)
    assert ttft_s == pytest.approx(0.001)
    assert left == [0, 0], "all comes at once"
    assert left_of_miss > 0
    assert as_asked == count
    assert 0 < report["flags"]["gateway_cache"] <= count, "what the report counts is its window"


def test_the_fleets_state_is_kept_beside_the_requests(tmp_path: Path) -> None:
    """A reading a second of what a scrape would tell; counts end where the requests' sums are."""
    db = tmp_path / "a.db"
    words = [*GPU, "--gpus", "2", "--rate", "30", "--requests", "300", "--prefix-caching"]
    simulate(db, *words, "--shared-tokens", "64", "--output-tokens", "50-150")
    simulate(tmp_path / "none.db", *words, "--sample-interval", "0s")
    with sqlite3.connect(db) as connection:
        rows = connection.execute(
            "select name, count(*), max(value), min(at_s) from samples"
            " join series on series.key = series_key group by name"
        ).fetchall()
        (output, prompt, cached) = connection.execute(
            "select sum(output_tokens), sum(input_tokens), sum(cached_input_tokens) from requests"
        ).fetchone()
        sources = connection.execute("select distinct source from series").fetchall()
    with sqlite3.connect(tmp_path / "none.db") as connection:
        assert connection.execute("select count(*) from samples").fetchone() == (0,)
    found = {name: (count, most) for name, count, most, _ in rows}

    assert sources == [("server:simulator",)]
    assert {round(first_s) for *_, first_s in rows} == {1}
    assert found["server_generated_tokens"][1] == output
    assert found["server_prompt_tokens"][1] == prompt
    assert found["server_prefix_found_tokens"][1] == cached > 0
    assert found["server_finished_requests"][1] == 300
    assert found["server_running_requests"][1] > 1
    assert 0 < found["server_kv_cache_ratio"][1] < 1
    assert {count for count, _ in found.values()} <= set(range(9, 14)), "ten seconds of requests"


def test_the_urgent_wait_less(tmp_path: Path) -> None:
    """One in five, where there is a queue; they stand in a tier of their own."""
    db = tmp_path / "a.db"
    simulate(
        db,
        *("--rate", "30", "--max-num-seqs", "4", "--urgent", "0.2", *SMALL),
        *("--scheduling-policy", "priority"),
    )
    with sqlite3.connect(db) as connection:
        rows = connection.execute(
            "select tier, count(*), avg(first_token_at_s - due_at_s) from requests group by tier"
        ).fetchall()
    (normal, _, normal_s), (urgent, count, urgent_s) = sorted(rows, key=lambda row: row[0] or "")

    assert (normal, urgent) == (None, "urgent")
    assert 40 < count < 80
    assert urgent_s < normal_s / 2


def test_it_can_be_judged(tmp_path: Path) -> None:
    """An SLA file, and the exit code of a check."""
    sla = tmp_path / "a.yaml"
    sla.write_text("objectives:\n  ttft: p50 < 1 ms\n")
    words = [*GPU, "--rate", "50", *SMALL, "--sla", str(sla)]
    done = streamgauge("simulate", "--db", str(tmp_path / "a.db"), *words)

    assert done.code == 1
    assert "broken" in done.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "either --rate (open loop) or --users"),
        (["--rate", "1", "--users", "1"], "either --rate (open loop) or --users"),
        (["--rate", "1"], "Give --requests, --duration, or both."),
        (["--rate", "1", "--requests", "1", "--think-time", "1s"], "--think-time needs --users."),
        (["--users", "1", "--requests", "1", "--arrivals", "gamma"], "--arrivals needs --rate."),
        (["--rate", "1", "--requests", "1", "--burstiness", "2"], "needs --arrivals gamma"),
        (["--rate", "1", "--requests", "1", "--shared-prompts", "2"], "needs --shared-tokens"),
        ([*ONE, "--urgent", "0.5"], "have no effect without each other."),
        ([*ONE, "--scheduling-policy", "priority"], "have no effect without each other."),
        ([*ONE, "--reworded", "0.5"], "--reworded needs --distinct-prompts."),
        ([*ONE, "--response-cache", "exact"], "--response-cache needs --distinct-prompts,"),
        ([*ONE, "--response-cache-size", "5"], "--response-cache-size needs --response-cache."),
        (
            [*ONE, "--distinct-prompts", "5", "--response-cache", "x"],
            "A response cache is exact, similar or similar:BITS",
        ),
        (["--rate", "1", "--requests", "1", "--input-tokens", "many"], "100-900 for a range"),
        (["--rate", "1", "--requests", "1", "--input-tokens", "99999"], "cannot fit into a KV"),
        (["--rate", "1", "--requests", "1", "--label", "x"], "--label is written K=V"),
        (
            ["--rate", "1", "--requests", "1", *GPU, "--gpus", "3", "--tensor-parallel-size", "2"],
            "--gpus must be a multiple of --tensor-parallel-size, got 3 and 2.",
        ),
    ],
)
def test_loads_that_make_no_sense_are_refused(tmp_path: Path, words: list[str], says: str) -> None:
    """One sentence, exit code 2, and no run in the database."""
    db = tmp_path / "a.db"
    done = streamgauge("simulate", "--db", str(db), *words)

    assert done.code == 2
    assert says in " ".join(done.err.split())
    assert not db.exists()
