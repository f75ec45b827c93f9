"""The tables, as SQLAlchemy Core knows them. Alembic alone creates them (``migrations/``).

Rules kept here:
- A run has a text id for people and an integer key inside, so that a million requests carry no
  text index. Workers and series of samples are named once, in small tables of their own.
- A column is named as the field it holds; NULL is "not observed" and never 0.
- Instants are seconds since the run began, in double precision.
- Gaps between output events are one blob a request: float32, little endian.
- A new column comes after those there are, and may be NULL: to upgrade rewrites no row.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

VERSION_TABLE = "streamgauge_schema"
"""Where Alembic keeps the schema's revision; its own name, so that no other program's is meant."""

REVISIONS = ("0001", "0002")
"""Revisions of the schema, oldest first; the last is the one this code reads and writes."""

EVENT_KINDS = ("answer", "reasoning", "tool", "hidden")
"""Kinds of output events, each a column ``*_events``; fields of records.OutputEvents."""

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("scenario", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("model", Text),
    Column("api", Text),
    Column("status", Text, nullable=False),
    Column("began_wall_s", Double, nullable=False),
    Column("began_mono_s", Double, nullable=False),
    Column("boot_id", Text),
    Column("loop", Text, nullable=False),
    Column("users", Integer),
    Column("rate", Double),
    Column("duration_s", Double),
    Column("ramp_s", Double),
    Column("warmup_s", Double),
    Column("drain_s", Double),
    Column("stopped_at_s", Double),
    Column("ended_at_s", Double),
    Column("heartbeat_wall_s", Double),
    Column("labels", JSON, nullable=False),
    Column("config", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("client", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("gpu_hour_price_usd", Double),
    Column("gpus", Integer),
    Column("prompts_hash", Text),
    Column("simulated", Boolean, nullable=False),
    Column("definitions", Integer, nullable=False),
    UniqueConstraint("id", name="runs_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("run_key", ForeignKey("runs.key", name="workers_run"), nullable=False),
    Column("name", Text, nullable=False),
    UniqueConstraint("run_key", "name", name="workers_name"),
)

requests = Table(
    "requests",
    metadata,
    Column("run_key", ForeignKey("runs.key", name="requests_run"), nullable=False),
    Column("worker_key", ForeignKey("workers.key", name="requests_worker"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("scenario", Text),
    Column("task", Text),
    Column("tier", Text),
    Column("session", Text),
    Column("turn", Integer),
    Column("endpoint", Text),
    Column("model", Text),
    Column("api", Text),
    Column("outcome", Text, nullable=False),
    Column("detail", Text),
    Column("http_status", Integer),
    Column("flags", JSON, nullable=False),
    Column("due_at_s", Double, nullable=False),
    Column("sent_at_s", Double),
    Column("connect_s", Double),
    Column("first_byte_at_s", Double),
    Column("first_token_at_s", Double),
    Column("first_answer_at_s", Double),
    Column("last_token_at_s", Double),
    Column("done_at_s", Double),
    Column("ended_at_s", Double),
    Column("read_delay_s", Double),
    Column("input_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("token_source", Text),
    Column("first_event_tokens", BigInteger),
    Column("asked_output_tokens", BigInteger),
    Column("answer_events", Integer, nullable=False),
    Column("reasoning_events", Integer, nullable=False),
    Column("tool_events", Integer, nullable=False),
    Column("hidden_events", Integer, nullable=False),
    Column("coalesced_events", Integer, nullable=False),
    Column("conn_retries", Integer, nullable=False),
    Column("finish_reasons", JSON, nullable=False),
    Column("quality", Double),
    Column("gaps_s", LargeBinary),
    # Since 0002:
    Column("cache_write_input_tokens", BigInteger),
    Column("audio_input_tokens", BigInteger),
    Column("audio_output_tokens", BigInteger),
    Column("http_version", Text),
    Column("server_cost_usd", Double),
    Column("retry_after_s", Double),
    Column("cache_status", Text),
    Column("prompt_hash", Text),
    Column("prompt_sketch", BigInteger),  # the 64 bits as a signed number
    Column("answer_hash", Text),
    Column("answer_chain", LargeBinary),
    PrimaryKeyConstraint("run_key", "worker_key", "seq", "attempt", name="requests_key"),
    Index("requests_due", "run_key", "due_at_s"),
)

series = Table(
    "series",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("run_key", ForeignKey("runs.key", name="series_run"), nullable=False),
    Column("source", Text, nullable=False),
    Column("name", Text, nullable=False),
    UniqueConstraint("run_key", "source", "name", name="series_name"),
)

samples = Table(
    "samples",
    metadata,
    Column("series_key", ForeignKey("series.key", name="samples_series"), nullable=False),
    Column("at_s", Double, nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("series_key", "at_s", name="samples_key"),
    sqlite_with_rowid=False,
)

batches = Table(
    "batches",
    metadata,
    Column("run_key", ForeignKey("runs.key", name="batches_run"), nullable=False),
    Column("worker_key", ForeignKey("workers.key", name="batches_worker"), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("requests", Integer, nullable=False),
    PrimaryKeyConstraint("run_key", "worker_key", "sequence", name="batches_key"),
    sqlite_with_rowid=False,
)

salt = Table(
    "salt",
    metadata,
    Column("value", LargeBinary, primary_key=True),  # 32 random bytes, in one row
)
"""The key of the hashes in this database. Without it nobody can try prompts against them."""
