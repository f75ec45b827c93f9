"""Databases for the tests of the store and of what feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.store import Store
from tests.collectors import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server, started when the first test asks."""
    with postgres.server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet (SQLite) or is empty (PostgreSQL)."""
    if request.param == "sqlite":
        return str(tmp_path / "runs.db")
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    """A store in a new database, whose wall clock stands at 1,005 s."""
    with Store.open(db, create=True, now=lambda: 1005.0) as opened:
        yield opened
