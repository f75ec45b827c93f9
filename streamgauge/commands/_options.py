"""Options that several commands share, the same word everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

DEFAULT_DB = "streamgauge.db"

F = TypeVar("F", bound=Callable[..., Any])


def default_db() -> str:
    """Where runs are kept: ``$STREAMGAUGE_DB``, else streamgauge.db in the working folder."""
    return os.environ.get("STREAMGAUGE_DB") or DEFAULT_DB


def db_option(function: F) -> F:
    """``--db``: a SQLite file or a SQLAlchemy URL."""
    return click.option(
        "--db",
        default=default_db,
        show_default="$STREAMGAUGE_DB, else streamgauge.db",
        metavar="FILE|URL",
        help="Database of runs: a SQLite file or a PostgreSQL URL.",
    )(function)
