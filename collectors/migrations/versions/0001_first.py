"""The first schema: runs, their workers, requests and samples."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "runs",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scenario", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("api", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("began_wall_s", sa.Double, nullable=False),
        sa.Column("began_mono_s", sa.Double, nullable=False),
        sa.Column("boot_id", sa.Text),
        sa.Column("loop", sa.Text, nullable=False),
        sa.Column("users", sa.Integer),
        sa.Column("rate", sa.Double),
        sa.Column("duration_s", sa.Double),
        sa.Column("ramp_s", sa.Double),
        sa.Column("warmup_s", sa.Double),
        sa.Column("drain_s", sa.Double),
        sa.Column("stopped_at_s", sa.Double),
        sa.Column("ended_at_s", sa.Double),
        sa.Column("heartbeat_wall_s", sa.Double),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("client", sa.JSON, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("gpu_hour_price_usd", sa.Double),
        sa.Column("gpus", sa.Integer),
        sa.Column("prompts_hash", sa.Text),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("definitions", sa.Integer, nullable=False),
        sa.UniqueConstraint("id", name="runs_id"),
    )
    op.create_table(
        "workers",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column(
            "run_key", sa.Integer, sa.ForeignKey("runs.key", name="workers_run"), nullable=False
        ),
        sa.Column("name", sa.Text, nullable=False),
        sa.UniqueConstraint("run_key", "name", name="workers_name"),
    )
    op.create_table(
        "requests",
        sa.Column(
            "run_key", sa.Integer, sa.ForeignKey("runs.key", name="requests_run"), nullable=False
        ),
        sa.Column(
            "worker_key",
            sa.Integer,
            sa.ForeignKey("workers.key", name="requests_worker"),
            nullable=False,
        ),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("scenario", sa.Text),
        sa.Column("task", sa.Text),
        sa.Column("tier", sa.Text),
        sa.Column("session", sa.Text),
        sa.Column("turn", sa.Integer),
        sa.Column("endpoint", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("api", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("http_status", sa.Integer),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("due_at_s", sa.Double, nullable=False),
        sa.Column("sent_at_s", sa.Double),
        sa.Column("connect_s", sa.Double),
        sa.Column("first_byte_at_s", sa.Double),
        sa.Column("first_token_at_s", sa.Double),
        sa.Column("first_answer_at_s", sa.Double),
        sa.Column("last_token_at_s", sa.Double),
        sa.Column("done_at_s", sa.Double),
        sa.Column("ended_at_s", sa.Double),
        sa.Column("read_delay_s", sa.Double),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("cached_input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("token_source", sa.Text),
        sa.Column("first_event_tokens", sa.BigInteger),
        sa.Column("asked_output_tokens", sa.BigInteger),
        sa.Column("answer_events", sa.Integer, nullable=False),
        sa.Column("reasoning_events", sa.Integer, nullable=False),
        sa.Column("tool_events", sa.Integer, nullable=False),
        sa.Column("hidden_events", sa.Integer, nullable=False),
        sa.Column("coalesced_events", sa.Integer, nullable=False),
        sa.Column("conn_retries", sa.Integer, nullable=False),
        sa.Column("finish_reasons", sa.JSON, nullable=False),
        sa.Column("quality", sa.Double),
        sa.Column("gaps_s", sa.LargeBinary),
        sa.PrimaryKeyConstraint("run_key", "worker_key", "seq", "attempt", name="requests_key"),
    )
    op.create_index("requests_due", "requests", ["run_key", "due_at_s"])
    op.create_table(
        "series",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column(
            "run_key", sa.Integer, sa.ForeignKey("runs.key", name="series_run"), nullable=False
        ),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.UniqueConstraint("run_key", "source", "name", name="series_name"),
    )
    op.create_table(
        "samples",
        sa.Column(
            "series_key",
            sa.Integer,
            sa.ForeignKey("series.key", name="samples_series"),
            nullable=False,
        ),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("series_key", "at_s", name="samples_key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "batches",
        sa.Column(
            "run_key", sa.Integer, sa.ForeignKey("runs.key", name="batches_run"), nullable=False
        ),
        sa.Column(
            "worker_key",
            sa.Integer,
            sa.ForeignKey("workers.key", name="batches_worker"),
            nullable=False,
        ),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("run_key", "worker_key", "sequence", name="batches_key"),
        sqlite_with_rowid=False,
    )
