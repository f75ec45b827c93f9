"""One run's requests for other programs: JSON lines, CSV or Parquet, by the file's ending.

Rules kept here:

- One object a request, the same keys in the same order whatever happened; absent is ``null``.
- Nothing half-written: a file appears under its name once it is whole.
- Requests pass through one by one (Parquet: a thousand), however long the run.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from collectors.cost import gpu_usd_per_s, usd_per_token
from collectors.figures import window_span
from collectors.records import Outcome, RequestRecord
from collectors.runs import Run
from collectors.table import RequestTable
from sla.errors import ExportError
from sla.layout import csv_cell

Row = dict[str, Any]
CostOf = Callable[[RequestRecord], float | None]

_CHUNK = 1000


def export_rows(records: Iterable[RequestRecord], cost_of: CostOf) -> Iterator[Row]:
    """Each request as a mapping, its keys in the contract's order."""
    for record in records:
        yield _row(record, cost_of(record))


def _row(record: RequestRecord, cost_usd: float | None) -> Row:
    events = record.output_events
    return {
        "run_id": record.run_id,
        "seq": record.seq,
        "scenario": record.scenario,
        "task": record.task,
        "tier": record.tier,
        "session": record.session,
        "turn": record.turn,
        "attempt": record.attempt,
        "endpoint": record.endpoint,
        "model": record.model,
        "api": record.api,
        "outcome": str(record.outcome),
        "detail": record.detail,
        "http_status": record.http_status,
        "flags": list(record.flags),
        "due_at_s": record.due_at_s,
        "sent_at_s": record.sent_at_s,
        "connect_s": record.connect_s,
        "first_byte_at_s": record.first_byte_at_s,
        "first_token_at_s": record.first_token_at_s,
        "first_answer_at_s": record.first_answer_at_s,
        "last_token_at_s": record.last_token_at_s,
        "done_at_s": record.done_at_s,
        "read_delay_s": record.read_delay_s,
        "ttft_s": record.ttft_s,
        "ttfa_s": record.ttfa_s,
        "e2e_s": record.e2e_s,
        "tpot_s": record.tpot_s,
        "input_tokens": record.input_tokens,
        "cached_input_tokens": record.cached_input_tokens,
        "output_tokens": record.output_tokens,
        "reasoning_tokens": record.reasoning_tokens,
        "token_source": None if record.token_source is None else str(record.token_source),
        "output_events": {
            "answer": events.answer,
            "reasoning": events.reasoning,
            "tool": events.tool,
            "hidden": events.hidden,
        },
        "finish_reasons": list(record.finish_reasons),
        # Stored as 32-bit floats: digits below a nanosecond are none.
        "gaps_s": None if record.gaps_s is None else [round(gap, 9) for gap in record.gaps_s],
        "cost_usd": cost_usd,
        "quality": record.quality,
        "worker": record.worker,
        # Further fields of the record, after those of the contract.
        "ended_at_s": record.ended_at_s,
        "first_event_tokens": record.first_event_tokens,
        "asked_output_tokens": record.asked_output_tokens,
        "coalesced_events": record.coalesced_events,
        "conn_retries": record.conn_retries,
        "cache_write_input_tokens": record.cache_write_input_tokens,
        "audio_input_tokens": record.audio_input_tokens,
        "audio_output_tokens": record.audio_output_tokens,
        "http_version": record.http_version,
        "server_cost_usd": record.server_cost_usd,
        "retry_after_s": record.retry_after_s,
        "cache_status": record.cache_status,
        "prompt_hash": record.prompt_hash,
        # As text: JSON's readers have no integers of 64 bits.
        "prompt_sketch": None if record.prompt_sketch is None else f"{record.prompt_sketch:016x}",
        "answer_hash": record.answer_hash,
        "answer_chain": None if record.answer_chain is None else record.answer_chain.hex(),
    }


FIELDS = tuple(_row(RequestRecord(run_id="", seq=0, outcome=Outcome.OK, due_at_s=0.0), None))
"""Keys of a row, in order."""


def cost_per_request(run: Run, table: RequestTable) -> CostOf:
    """How to tell what one request cost: the window's GPU-hours shared out over its tokens.

    ``None`` for every request where the run has no cost basis, and for those outside the window.
    """
    usd_per_s = gpu_usd_per_s(run.gpu_hour_price_usd, run.gpus)
    start_s, end_s = window_span(run, table)
    inside = (table.due_at_s >= start_s) & (table.due_at_s <= end_s)
    price = None
    if usd_per_s is not None:
        usd = usd_per_s * max(0.0, end_s - start_s)
        price = usd_per_token(usd, table.input_tokens[inside], table.output_tokens[inside])

    def cost_of(record: RequestRecord) -> float | None:
        told = (record.input_tokens, record.output_tokens)
        if price is None or told == (None, None) or not start_s <= record.due_at_s <= end_s:
            return None
        return price * sum(tokens or 0 for tokens in told)

    return cost_of


def write_export(rows: Iterable[Row], path: str | Path) -> int:
    """Write ``rows`` to ``path`` in the format of its ending; how many there were.

    An existing file is replaced, and only by a whole one.

    Raises:
        ExportError: the ending is unknown, the folder missing, or Parquet not to be had.
    """
    path = Path(path)
    write = _writer(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            count = write(rows, out)
        part.replace(path)
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def check_target(path: str | Path) -> None:
    """Refuse a bad target before the database is read.

    Raises:
        ExportError: as :func:`write_export`.
    """
    path = Path(path)
    _writer(path)
    if not path.parent.is_dir():
        raise ExportError(f"Cannot write {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise ExportError(f"Cannot write {path}: it is a folder.")


def _writer(path: Path) -> Callable[[Iterable[Row], IO[bytes]], int]:
    ending = path.suffix.lower()
    if ending not in WRITERS:
        known = ", ".join(WRITERS)
        raise ExportError(f"Cannot tell the format of {path.name!r}: end it in one of {known}.")
    if ending == ".parquet":
        _pyarrow()
    return WRITERS[ending]


def _write_jsonl(rows: Iterable[Row], out: IO[bytes]) -> int:
    count = 0
    for row in rows:
        out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count


def _write_csv(rows: Iterable[Row], out: IO[bytes]) -> int:
    count = 0
    lines = csv.writer(_Text(out), lineterminator="\n")
    lines.writerow(FIELDS)
    for row in rows:
        lines.writerow([csv_cell(_flat(value)) for value in row.values()])
        count += 1
    return count


class _Text:
    """A binary file for writing text to, as csv wants it; UTF-8."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write ``text``."""
        return self._out.write(text.encode("utf-8", "surrogateescape"))


def _flat(value: object) -> object:
    """Lists and mappings as JSON, so that a cell can be read back."""
    return orjson.dumps(value).decode() if isinstance(value, list | Mapping) else value


def _write_parquet(rows: Iterable[Row], out: IO[bytes]) -> int:
    pa, parquet = _pyarrow()
    schema = _parquet_schema(pa)
    count = 0
    remaining = iter(rows)
    with parquet.ParquetWriter(out, schema) as writer:
        while chunk := list(islice(remaining, _CHUNK)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # heavy, and only Parquet needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ExportError(
            "Parquet needs pyarrow, which is not installed: pip install 'streamgauge[dashboard]',"
            " or export to .jsonl or .csv."
        ) from None
    return pa, parquet


_INTEGERS = frozenset({"seq", "turn", "attempt", "http_status", "coalesced_events", "conn_retries"})


def _parquet_schema(pa: Any) -> Any:
    kinds = {
        "flags": pa.list_(pa.string()),
        "finish_reasons": pa.list_(pa.string()),
        "gaps_s": pa.list_(pa.float32()),
        "output_events": pa.struct(
            [(kind, pa.int64()) for kind in ("answer", "reasoning", "tool", "hidden")]
        ),
        "quality": pa.float64(),
    }

    def kind_of(name: str) -> Any:
        if name in kinds:
            return kinds[name]
        if name in _INTEGERS or name.endswith("_tokens"):
            return pa.int64()
        return pa.float64() if name.endswith(("_s", "_usd")) else pa.string()

    return pa.schema([(name, kind_of(name)) for name in FIELDS])


WRITERS: Mapping[str, Callable[[Iterable[Row], IO[bytes]], int]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""For each ending how it is written."""
