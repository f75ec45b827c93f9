"""The sweep around its measurement: what it reads, refuses, fits and simulates."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench.gpu_bare import CheckError
from bench.sweep_page import errors
from bench.vllm_sweep import Cell, cache_of, cost_of, judge, main, numbers, parser, spread
from tests.streamgauge.stored import streamgauge

COST = {
    "--prefill-base": "6000us",
    "--prefill-per-token": "100us",
    "--decode-base": "2500us",
    "--decode-per-sequence": "300us",
    "--decode-per-kv-token": "0.25us",
}
WORDS = [word for pair in COST.items() for word in pair]
CACHE = 'vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="96",x="None"} 1.0'


def test_the_cache_is_what_vllm_tells_less_its_placeholder() -> None:
    """95 blocks of 128 tokens; a page without it is refused."""
    assert cache_of(f"# HELP\n{CACHE}\n") == (95, 128)
    with pytest.raises(CheckError, match="cache_config_info"):
        cache_of('vllm:cache_config_info{block_size="128"} 1.0')


def test_what_fit_prints_is_read_back() -> None:
    """Microseconds become seconds."""
    cost = cost_of(" ".join(("--max-num-batched-tokens 2048", *WORDS)))

    assert cost.prefill_base_s == pytest.approx(0.006)
    assert cost.decode_per_kv_token_s == pytest.approx(0.25e-6)


def test_lengths_keep_mean_and_deviation() -> None:
    """Even lengths from 90 to 110 are found again; equal ones stay equal."""
    assert spread(np.repeat(np.arange(90.0, 111.0), 9)) == (90, 110)
    assert spread(np.full(5, 64.0)) == (64, 64)


@pytest.mark.parametrize("text", ["0,1", "one", "", "1;2"])
def test_users_are_numbers(text: str) -> None:
    """Anything else is refused in one sentence."""
    assert numbers("16,1,4,4") == [1, 4, 16]
    with pytest.raises(CheckError, match="written 1,4,16"):
        numbers(text)


def test_a_server_of_known_cost_is_predicted(tmp_path: Path) -> None:
    """Stored runs of a simulated server lead to its cost, and so to small errors beyond the fit.

    Not of TTFT: it hangs on who happens to ask together, and 4 seconds are too few for its median.
    """
    db = tmp_path / "runs.db"
    cells = [_lone(db, tokens) for tokens in (20, 800)]
    cells += [_load(db, users) for users in (1, 4, 12)]
    told = {"facts": {"date": "today"}, "cells": [asdict(cell) for cell in cells]}
    (tmp_path / "sweep.json").write_text(json.dumps(told))
    found = judge(parser().parse_args(["--fit-users", "1,4"]), tmp_path)

    assert [level.is_fitted for level in found.roomy] == [True, True, False]
    assert max(errors(found.roomy[2:], ("itl_p50_s", "tokens_per_s"))) < 0.05
    assert found.roomy[2].measured.preemptions == 0.5
    assert found.small == []


def test_a_fit_to_nothing_is_refused(tmp_path: Path) -> None:
    """None of the levels asked for is there."""
    (tmp_path / "sweep.json").write_text('{"facts": {}, "cells": []}')
    with pytest.raises(CheckError, match="--fit-users 1,4,16"):
        judge(parser().parse_args([]), tmp_path)


def test_a_page_without_marks_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one sentence."""
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setattr("bench.vllm_sweep.DOCUMENT", page)

    assert main(["--folder", str(tmp_path)]) == 2
    assert "cannot take the findings" in capsys.readouterr().err


def _lone(db: Path, tokens: int) -> Cell:
    cell = Cell(name=f"lone-{tokens}-r1", users=1, words=0, output_tokens=8, seconds=1)
    return _stored(db, cell, tokens)


def _load(db: Path, users: int) -> Cell:
    cell = Cell(name=f"load-{users}-r1", users=users, words=0, output_tokens=40, seconds=4)
    return _stored(db, cell, 100)


def _stored(db: Path, cell: Cell, tokens: int) -> Cell:
    """The run of a cell at a simulated server, with counters as vLLM would have them."""
    done = streamgauge(
        *("simulate", *WORDS, "--db", db, "--run-name", cell.name, "--users", cell.users),
        *("--max-num-seqs", "64", "--duration", f"{cell.seconds}s", "--ramp", f"{cell.ramp_s}s"),
        *("--input-tokens", f"{tokens - 5}-{tokens + 5}", "--output-tokens", cell.output_tokens),
    )
    assert done.code == 0, done.err
    grown = {"preemptions": 5.0, "queue_s": 1.0, "queued": 10.0}
    known = {"kv_cache_tokens": 100_000, "block_tokens": 128, "grown": grown}
    return Cell(**asdict(cell) | known)
