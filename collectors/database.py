"""Where a store's database is and how it is opened: the file or URL, the engine, the schema.

Every way in which opening can go wrong becomes one sentence here (:class:`StoreError`), written
without the password of a URL, and an attempt that fails leaves nothing behind.

A database of an older Streamgauge is brought up to date by whoever opens it, in one transaction,
and that is said in one line (docs/adr/0008-reading-brings-a-database-up-to-date.md).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from collectors import schema
from collectors.errors import StoreError
from collectors.redact import redact_text
from collectors.runs import HEARTBEAT_LOST_S, RunStatus

log = logging.getLogger("streamgauge.database")

BUSY_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5
_MIGRATION_LOCK = 0x5354_5247  # names PostgreSQL's advisory lock; any number that is our own
_SQLITE_MAGIC = b"SQLite format 3\0"
_EMPTY = "{} is empty; record a run first, or say where the runs are with --db."

_SAID_BY_SQLITE = (
    ("locked", "another program kept it locked for {BUSY_TIMEOUT_S:.0f} s; close that one"),
    ("readonly", "it cannot be written; give a place that can, with --db"),
    ("unable to open", "it cannot be opened; check the folder and its permissions"),
    ("full", "no space is left for it; free some or give another place with --db"),
    ("disk i/o", "the disk refuses to read or write it; check its space and its health"),
    ("malformed", "it is damaged; restore a copy or give another file"),
    ("not a database", "it is not an SQLite database; give the file that streamgauge wrote"),
)


class Database:
    """One SQLite file or one PostgreSQL database; ``str()`` of it is fit for any message."""

    def __init__(self, db: str, now: Callable[[], float] = time.time) -> None:
        """Understand ``db``, a path or a SQLAlchemy URL, without touching it.

        Args:
            db: the path or URL.
            now: the wall clock, against which heartbeats are read.

        Raises:
            StoreError: it is a URL that cannot be understood or a kind of database we do not know.
        """
        self._now = now
        self.path: Path | None = None
        self._url: URL | None = None
        self._secrets: tuple[str, ...] = ()
        if "://" not in db:
            self.path = Path(db)
            return
        self._secrets = _secrets(db)
        try:
            url = make_url(db)
        except (sa.exc.ArgumentError, ValueError):
            raise StoreError(
                "The database URL cannot be read; expected a file or "
                "postgresql://USER:PASSWORD@HOST/DATABASE."
            ) from None
        backend = url.drivername.partition("+")[0]
        if backend == "sqlite" and url.database and url.database != ":memory:":
            self.path = Path(url.database)
        elif backend in {"postgres", "postgresql"}:
            self._url = url.set(drivername="postgresql+psycopg")
        else:
            raise StoreError(
                f"A {backend} database cannot hold runs; expected an SQLite file or a "
                "postgresql:// URL."
            )

    def __str__(self) -> str:
        if self._url is None:
            return str(self.path)
        host = (self._url.host or "localhost").rpartition("@")[2]
        port = f":{self._url.port}" if self._url.port else ""
        return f"postgresql://{host}{port}/{self._url.database or ''}"

    def open(self, *, create: bool, read_only: bool) -> Engine:
        """An engine whose schema is the one this code knows.

        Raises:
            StoreError: the database is missing, foreign, damaged, newer than this code or out of
                reach.
        """
        made = self._check_file(create=create)
        with self.explained():
            engine = self._engine(read_only=read_only)
            try:
                self._settle_schema(engine, create=create, read_only=read_only)
            except BaseException:
                engine.dispose()
                if made:
                    self._remove_if_empty()
                raise
        return engine

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the driver's errors into sentences about this database."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(self._sentence(error)) from None

    def _sentence(self, error: Exception) -> str:
        said = redact_text(first_line(error), self._secrets)
        meaning = None if self._url is not None else _meaning(said)
        if meaning is None:
            return f"The database {self} does not serve: {said}."
        return f"The database {self}: {meaning}."

    # Files

    def _check_file(self, *, create: bool) -> bool:
        """Look at the file before SQLite does; True if an empty one was made just now."""
        path = self.path
        if path is None:
            return False
        try:
            if path.is_dir():
                raise StoreError(f"{path} is a folder; expected an SQLite file.")
            with suppress(FileNotFoundError), path.open("rb") as file:
                head = file.read(len(_SQLITE_MAGIC))
                if head and head != _SQLITE_MAGIC:
                    raise StoreError(
                        f"{path} is not an SQLite database; expected a file written by streamgauge."
                    )
                if not head and not create:
                    raise StoreError(_EMPTY.format(path))
                return False
            if not create:
                raise StoreError(
                    f"There is no database at {path}; record a run first, or say where it is with "
                    "--db."
                )
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:  # another process was faster; all the better
            return False
        except OSError as error:
            raise StoreError(
                f"The database {path} cannot be opened: {error.strerror or error}."
            ) from None
        return True

    def _remove_if_empty(self) -> None:
        """Take back a file made for a database that then could not be written."""
        assert self.path is not None
        if self.path.stat().st_size == 0:
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    # Engines

    def _engine(self, *, read_only: bool) -> Engine:
        if self._url is None:
            return self._sqlite_engine(read_only=read_only)
        try:
            return sa.create_engine(
                self._url,
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
                if "connect_timeout" not in self._url.query
                else {},
                execution_options={"postgresql_readonly": read_only},
                pool_pre_ping=True,
                hide_parameters=True,
                json_serializer=_to_json,
                json_deserializer=orjson.loads,
            )
        except ImportError:
            raise StoreError(
                "A PostgreSQL database needs the driver psycopg; "
                "pip install 'streamgauge[postgres]'."
            ) from None

    def _sqlite_engine(self, *, read_only: bool) -> Engine:
        def connect() -> sqlite3.Connection:
            assert self.path is not None
            # Python's own transaction handling is off (isolation_level None): it would commit
            # before a CREATE TABLE, and cannot say BEGIN IMMEDIATE.
            connection = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?{_mode(self.path, read_only=read_only)}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            if not read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA foreign_keys = ON")
            return connection

        engine = sa.create_engine(
            URL.create("sqlite", database=str(self.path)),
            creator=connect,
            hide_parameters=True,
            json_serializer=_to_json,
            json_deserializer=orjson.loads,
        )

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # A writer takes the lock at once: one that reads first and writes later is refused
            # without waiting when another has written in between.
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    # Schema

    def _settle_schema(self, engine: Engine, *, create: bool, read_only: bool) -> None:
        with engine.connect() as connection:
            found = self._revision(connection, create=create)
        if found == schema.REVISIONS[-1]:
            return
        writer = self._engine(read_only=False) if read_only else engine
        try:
            changed = self._upgrade(writer, create=create)
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            if found is None:
                raise
            said = redact_text(first_line(error), self._secrets)
            raise StoreError(
                f"{self} was written by an older Streamgauge and cannot be brought up to date: "
                f"{_meaning(said) or said}."
            ) from None
        finally:
            if writer is not engine:
                writer.dispose()
        if found is not None and changed:
            log.warning(
                "%s was written by an older Streamgauge and has been brought up to date (schema "
                "%s to %s); the older one cannot open it any more.",
                *(self, found, schema.REVISIONS[-1]),
            )

    def _upgrade(self, engine: Engine, *, create: bool) -> bool:
        """Bring the schema up to date, whole or not at all; False if another process was faster."""
        with writing(engine) as connection:
            if engine.dialect.name == "postgresql":
                patience = f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_S * 1000:.0f}"  # ms
                connection.execute(sa.text(patience))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            found = self._revision(connection, create=create)
            if found == schema.REVISIONS[-1]:
                return False
            if found is not None:
                self._refuse_while_recording(connection)
            from collectors import migrations  # noqa: PLC0415  # Alembic only where it has work

            migrations.upgrade(connection)
        return True

    def _refuse_while_recording(self, connection: Connection) -> None:
        """An older Streamgauge that is at work would be cut off from what it writes."""
        runs = schema.runs.c
        alive = runs.heartbeat_wall_s > self._now() - HEARTBEAT_LOST_S
        going = sa.select(runs.id).where(runs.status == RunStatus.RUNNING, alive).limit(1)
        run_id = connection.scalar(going)
        if run_id is not None:
            raise StoreError(
                f"{self} was written by an older Streamgauge, which is recording run {run_id} "
                "into it now; try again when that run is over."
            )

    def _revision(self, connection: Connection, *, create: bool) -> str | None:
        """The schema's revision, ``None`` before there is one; raises where it is not ours."""
        tables = set(sa.inspect(connection).get_table_names())
        if schema.VERSION_TABLE not in tables:
            if tables:
                raise StoreError(
                    f"{self} holds tables of another program ({', '.join(sorted(tables)[:3])}); "
                    "give Streamgauge a database of its own."
                )
            if not create:
                raise StoreError(_EMPTY.format(self))
            return None
        version = connection.scalar(
            sa.select(sa.column("version_num")).select_from(sa.table(schema.VERSION_TABLE))
        )
        if version not in schema.REVISIONS:
            raise StoreError(
                f"{self} was written by a newer Streamgauge (schema {version}, this one knows up "
                f"to {schema.REVISIONS[-1]}); upgrade Streamgauge."
            )
        return str(version)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that holds the right to write from its beginning."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def first_line(error: Exception) -> str:
    """What the driver said, without SQLAlchemy's frame around it and without its full stop."""
    said = str(getattr(error, "orig", None) or error).strip()
    return (said.splitlines() or [type(error).__name__])[0].rstrip(".")


def _meaning(said: str) -> str | None:
    """What SQLite's words mean to the user; ``None`` where nobody has foreseen them."""
    for sign, meaning in _SAID_BY_SQLITE:
        if sign in said.lower():
            return meaning.format(BUSY_TIMEOUT_S=BUSY_TIMEOUT_S)
    return None


def _mode(path: Path, *, read_only: bool) -> str:
    """SQLite's options for opening ``path``.

    To read a WAL database SQLite makes a file beside it; in a folder where it may not (an archive,
    the artefacts of a CI job) it has to be told that nobody writes, as the missing log shows.
    """
    if not read_only:
        return "mode=rw"
    writable = os.access(path.absolute().parent, os.W_OK, effective_ids=True)
    return "mode=ro" if writable or Path(f"{path}-wal").exists() else "mode=ro&immutable=1"


def _to_json(value: object) -> str:
    """JSON for a column; NaN and infinities, which PostgreSQL would refuse, become null."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=str).decode()


def _secrets(url: str) -> tuple[str, ...]:
    """Every spelling in which a driver might repeat the password of ``url``."""
    _, _, password = url.partition("://")[2].rpartition("@")[0].partition(":")
    return tuple(s for s in {password, unquote(password), *password.split("@")} if s)
