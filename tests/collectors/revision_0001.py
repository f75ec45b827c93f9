"""A database of revision 0001 with runs in it: by that revision's migration and by plain SQL."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from collectors import migrations
from collectors.database import Database, writing

GAPS = array("f", [0.125, 0.25])
RUN: dict[str, Any] = {
    "key": 3,
    "id": "01m7z6c6ytq5kdw9",
    "name": "evening",
    "scenario": "chat",
    "target": "http://endpoint",
    "status": "complete",
    "began_wall_s": 1000.0,
    "began_mono_s": 50.0,
    "loop": "closed",
    "users": 3,
    "heartbeat_wall_s": 1060.0,
    "labels": '{"branch": "main"}',
    "config": "{}",
    "versions": "{}",
    "client": "{}",
    "notes": '["no GPU seen here"]',
    "simulated": False,
    "definitions": 1,
}
REQUEST: dict[str, Any] = {
    "run_key": 3,
    "worker_key": 7,
    "seq": 0,
    "attempt": 0,
    "outcome": "ok",
    "flags": '["coalesced"]',
    "due_at_s": 1.0,
    "sent_at_s": 1.5,
    "first_token_at_s": 2.0,
    "last_token_at_s": 2.375,
    "output_tokens": 3,
    "token_source": "usage",
    "answer_events": 3,
    "reasoning_events": 0,
    "tool_events": 0,
    "hidden_events": 0,
    "coalesced_events": 1,
    "conn_retries": 0,
    "finish_reasons": '["stop"]',
    "gaps_s": GAPS.tobytes(),
}
NEVER_SENT = REQUEST | {
    "seq": 1,
    "outcome": "not_sent",
    "flags": "[]",
    "sent_at_s": None,
    "first_token_at_s": None,
    "last_token_at_s": None,
    "output_tokens": None,
    "token_source": None,
    "answer_events": 0,
    "coalesced_events": 0,
    "finish_reasons": "[]",
    "gaps_s": None,
}
ROWS = [
    ("runs", RUN),
    ("runs", RUN | {"key": 4, "id": "02", "name": "cut", "status": "interrupted"}),
    ("workers", {"key": 7, "run_key": 3, "name": "w0"}),
    ("requests", REQUEST),
    ("requests", NEVER_SENT),
    ("series", {"key": 9, "run_key": 3, "source": "gpu:0", "name": "gpu_power_watts"}),
    ("samples", {"series_key": 9, "at_s": 1.0, "value": 300.0}),
    ("batches", {"run_key": 3, "worker_key": 7, "sequence": 0, "at_s": 3.0, "requests": 2}),
]


def make_0001(db: str, **run: object) -> str:
    """Make ``db`` a database of revision 0001 that holds two runs; ``run`` changes the first."""
    if "://" not in db:
        Path(db).touch()
    with written_by_hand(db) as connection:
        migrations.upgrade(connection, "0001")
        for table, row in ROWS:
            values = row | run if row is RUN else row
            names = [f'"{name}"' for name in values]
            marks = [f":{name}" for name in values]
            statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(marks)})"  # noqa: S608  # names of our own
            connection.execute(sa.text(statement), values)
    return db


@contextmanager
def written_by_hand(db: str) -> Iterator[sa.Connection]:
    """A transaction on the database as it is."""
    engine = Database(db)._engine(read_only=False)
    try:
        with writing(engine) as connection:
            yield connection
    finally:
        engine.dispose()
