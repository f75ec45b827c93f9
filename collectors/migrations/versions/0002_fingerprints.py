"""Fingerprints of prompts and answers, their salt, and more of what servers say of a request."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, empty in the rows there are, and draw the salt."""
    for name, kind in (
        ("cache_write_input_tokens", sa.BigInteger),
        ("audio_input_tokens", sa.BigInteger),
        ("audio_output_tokens", sa.BigInteger),
        ("http_version", sa.Text),
        ("server_cost_usd", sa.Double),
        ("retry_after_s", sa.Double),
        ("cache_status", sa.Text),
        ("prompt_hash", sa.Text),
        ("prompt_sketch", sa.BigInteger),
        ("answer_hash", sa.Text),
        ("answer_chain", sa.LargeBinary),
    ):
        op.add_column("requests", sa.Column(name, kind))
    salt = op.create_table("salt", sa.Column("value", sa.LargeBinary, primary_key=True))
    op.execute(salt.insert().values(value=secrets.token_bytes(32)))
