"""Databases with known runs, and the real command against them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from collectors.batches import Batch
from collectors.records import RequestRecord
from collectors.runs import Run
from collectors.store import Store
from streamgauge.cli import main
from tests.collectors.builders import make_request, make_run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def store_run(db: Path, records: Sequence[RequestRecord], **changes: object) -> Run:
    """A run with these requests in ``db``, which is made where it is missing."""
    run = make_run(**changes)
    own = [replace(record, run_id=run.id) for record in records]
    with Store.open(str(db), create=True) as store:
        store.create_run(run)
        batch = Batch(worker="local", sequence=0, at_s=100.0, records=own, open=[], samples=[])
        store.add_batch(run.id, batch)
    return run


def steady(n: int = 400) -> list[RequestRecord]:
    """``n`` requests over 100 s whose TTFTs lie between 100 and 200 ms, well mixed."""
    return [make_request(i, i * 100 / n, ttft_s=0.1 + (i * 0.618 % 1) / 10) for i in range(n)]


def streamgauge(*words: object, cwd: Path | None = None) -> Ended:
    """Run the real command line in this process: its entry point, its exit code, its streams."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["streamgauge", *map(str, words)]),
        mock.patch.dict(os.environ),
        contextlib.chdir(cwd or ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("STREAMGAUGE_DB", None)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())
