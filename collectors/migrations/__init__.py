"""How the schema came to be, revision by revision, and the way to bring a database up to date.

Works from an installed package, without an ``alembic.ini``: :func:`upgrade` is all that is called.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from collectors.schema import VERSION_TABLE


def config() -> Config:
    """Alembic's configuration, held in memory."""
    settings = Config()
    # Alembic reads options with configparser, where a % in a path would be an interpolation.
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.set_main_option("version_table", VERSION_TABLE)
    return settings


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to ``revision`` within the transaction that is open on ``connection``."""
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)
