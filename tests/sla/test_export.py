"""Exports: every field of every request, whole or not at all."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from collectors.records import Outcome, RequestRecord
from sla.errors import ExportError
from sla.export import FIELDS, check_target, cost_per_request, export_rows, write_export
from tests.collectors.builders import make_request, make_run, make_table

CONTRACT = [
    "run_id",
    "seq",
    "scenario",
    "task",
    "tier",
    "session",
    "turn",
    "attempt",
    "endpoint",
    "model",
    "api",
    "outcome",
    "detail",
    "http_status",
    "flags",
    "due_at_s",
    "sent_at_s",
    "connect_s",
    "first_byte_at_s",
    "first_token_at_s",
    "first_answer_at_s",
    "last_token_at_s",
    "done_at_s",
    "read_delay_s",
    "ttft_s",
    "ttfa_s",
    "e2e_s",
    "tpot_s",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "token_source",
    "output_events",
    "finish_reasons",
    "gaps_s",
    "cost_usd",
    "quality",
    "worker",
]


def _records() -> list[RequestRecord]:
    return [
        make_request(
            0,
            1.0,
            flags=("coalesced", "no_done"),
            finish_reasons=("stop",),
            detail="=cmd|' /C calc'!A0",
            task="chat",
        ),
        make_request(1, 2.0, outcome=Outcome.NOT_SENT),
        make_request(2, 3.0, gaps_s=None),
    ]


def _rows(**changes: object) -> list[dict[str, Any]]:
    records = _records()
    cost_of = cost_per_request(make_run(**changes), make_table(records))
    return list(export_rows(records, cost_of))


def test_fields_are_the_contract_then_the_rest_of_the_record() -> None:
    """Names and order as promised; what else a record holds follows."""
    assert list(FIELDS[: len(CONTRACT)]) == CONTRACT
    derived = {"ttft_s", "ttfa_s", "e2e_s", "tpot_s", "cost_usd"}
    assert set(FIELDS) - derived == set(RequestRecord.__slots__)


def test_json_lines_hold_every_request(tmp_path: Path) -> None:
    """One object a line, the same keys in each; absent is null, lists are lists."""
    path = tmp_path / "run.jsonl"
    assert write_export(_rows(), path) == 3
    first, never, bare = map(orjson.loads, path.read_bytes().splitlines())

    assert list(first) == list(never) == list(FIELDS)
    assert first["flags"] == ["coalesced", "no_done"]
    assert first["gaps_s"] == pytest.approx([0.01] * 3)
    assert first["ttft_s"] == pytest.approx(0.1)
    assert first["output_events"] == {"answer": 4, "reasoning": 0, "tool": 0, "hidden": 0}
    assert first["token_source"] == "usage"
    assert (never["outcome"], never["sent_at_s"], never["ttft_s"]) == ("not_sent", None, None)
    assert (never["gaps_s"], bare["gaps_s"]) == (None, None)


def test_fingerprints_leave_as_hexadecimal_digits(tmp_path: Path) -> None:
    """A sketch has its 16 digits in any format, and a chain 8 a block."""
    record = make_request(0, 1.0, prompt_sketch=2**64 - 255, answer_chain=bytes(range(8)))
    for ending in ("jsonl", "csv"):
        write_export(export_rows([record], lambda _: None), tmp_path / f"run.{ending}")
    row = orjson.loads((tmp_path / "run.jsonl").read_bytes())
    assert row["prompt_sketch"] == "ffffffffffffff01"
    assert row["answer_chain"] == "0001020304050607"
    with (tmp_path / "run.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["prompt_sketch"] == "ffffffffffffff01"


def test_csv_is_safe_to_open(tmp_path: Path) -> None:
    """The same rows; lists as JSON, absent empty, a formula in a detail disarmed."""
    path = tmp_path / "run.CSV"
    write_export(_rows(), path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0]) == list(FIELDS)
    assert rows[0]["detail"].startswith("'=cmd")
    assert orjson.loads(rows[0]["flags"]) == ["coalesced", "no_done"]
    assert rows[1]["sent_at_s"] == ""
    assert float(rows[0]["due_at_s"]) == 1.0


def test_parquet_has_types(tmp_path: Path) -> None:
    """Numbers are numbers, lists lists, and absent null, also in a column without any value."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "run.parquet"
    write_export(_rows() * 500, path)  # more than one chunk
    table = parquet.read_table(path)

    assert table.column_names == list(FIELDS)
    assert table.num_rows == 1500
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["due_at_s"] == "double"
    assert kinds["output_tokens"] == kinds["http_status"] == "int64"
    assert kinds["session"] == kinds["prompt_sketch"] == kinds["answer_chain"] == "string"
    assert kinds["cache_write_input_tokens"] == "int64"
    assert kinds["server_cost_usd"] == kinds["retry_after_s"] == "double"
    assert table["session"].null_count == 1500
    first = table.slice(0, 1).to_pylist()[0]
    assert first["gaps_s"] == pytest.approx([0.01] * 3)
    assert first["output_events"]["answer"] == 4


def test_costs_add_up_to_the_windows(tmp_path: Path) -> None:
    """GPU-hours are shared out over tokens; outside the window and without tokens there is none."""
    costs = [row["cost_usd"] for row in _rows(gpu_hour_price_usd=3600.0, gpus=1, stopped_at_s=2.5)]

    assert costs == pytest.approx([2.5, None, None])
    assert [row["cost_usd"] for row in _rows()] == [None] * 3


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_failure_leaves_nothing_half_written(tmp_path: Path, ending: str) -> None:
    """An export that fails on the way leaves the old file as it was, and no other."""
    path = tmp_path / f"run.{ending}"
    path.write_text("old")

    def failing() -> Iterator[dict[str, Any]]:
        yield _rows()[0]
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError):
        write_export(failing(), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run.xlsx", "end it in one of .jsonl, .csv, .parquet"),
        ("run", "Cannot tell the format"),
        ("missing/run.csv", "there is no folder"),
        ("folder.csv", "it is a folder"),
    ],
)
def test_a_bad_target_is_refused(tmp_path: Path, name: str, words: str) -> None:
    """An unknown ending, a missing folder, a folder: one sentence, before anything is read."""
    (tmp_path / "folder.csv").mkdir()

    with pytest.raises(ExportError, match=words):
        check_target(tmp_path / name)


def test_parquet_without_pyarrow_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow is missing the sentence says what to install, and what works without."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(ExportError, match=r"needs pyarrow.*or export to \.jsonl"):
        check_target(tmp_path / "run.parquet")
