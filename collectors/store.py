"""The database of runs: the one place that knows SQL. SQLite by file, PostgreSQL by URL.

Rules kept here:
- Tables come from Alembic only, under a lock: several processes may open a new file at once.
- One transaction a batch, and (run, worker, sequence) once: a batch sent again changes nothing.
- A read-only store reads while a run is being written; it creates nothing, and changes nothing but
  the schema of an older Streamgauge, which is brought up to date whoever opens it.
- Whatever goes wrong is a :class:`StoreError` of one sentence, without the password in a URL.
"""

from __future__ import annotations

import difflib
import sys
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from math import isnan
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from collectors import schema
from collectors.batches import Batch
from collectors.database import Database, first_line, writing
from collectors.errors import AmbiguousRunError, BatchError, RunNotFoundError, StoreError
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import HEARTBEAT_LOST_S, Run, RunStatus
from collectors.samples import Sample

if TYPE_CHECKING:
    from collectors.table import RequestTable

_RUN_FIELDS = tuple(f.name for f in fields(Run))
_AS_STORED = tuple(
    f.name for f in fields(RequestRecord) if f.name not in {"run_id", "worker", "output_events"}
)


class Store:
    """The runs in one database; a context manager. Safe to share between threads."""

    def __init__(self, engine: Engine, database: Database, now: Callable[[], float]) -> None:
        self._engine = engine
        self._database = database
        self._now = now

    @classmethod
    def open(
        cls,
        db: str,
        *,
        create: bool = False,
        read_only: bool = False,
        now: Callable[[], float] = time.time,
    ) -> Store:
        """Open the database ``db``, a file path or a SQLAlchemy URL.

        Args:
            db: a SQLite file, ``sqlite:///FILE`` or ``postgresql://...``.
            create: make the file, and the tables, where they are missing.
            read_only: never write, save to bring an older schema up to date.
            now: the wall clock, against which heartbeats are read.

        Raises:
            StoreError: it cannot be opened as asked; nothing was created or changed.
        """
        database = Database(db, now)
        return cls(database.open(create=create, read_only=read_only), database, now)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Runs

    def create_run(self, run: Run) -> None:
        """Store a new run.

        Raises:
            StoreError: a run of that id is stored already.
        """
        with self._writing() as connection:
            taken = connection.scalar(sa.select(schema.runs.c.key).filter_by(id=run.id))
            if taken is not None:
                raise StoreError(
                    f"Run {run.id} is in {self._database} already; give it another id."
                )
            connection.execute(
                schema.runs.insert(), {name: getattr(run, name) for name in _RUN_FIELDS}
            )

    def update_run(self, run_id: str, **changes: Any) -> None:
        """Change fields of a stored run, by the names they have in :class:`Run`.

        Raises:
            RunNotFoundError: no run has that id.
        """
        self.commit(run_id, changes=changes)

    def find_run(self, ref: str) -> Run:
        """The run that ``ref`` means: "last", an id, a name, or the beginning of one id.

        Raises:
            AmbiguousRunError: several runs answer to it.
            RunNotFoundError: none does.
        """
        runs = schema.runs
        with self._reading() as connection:
            if ref == "last":
                rows = connection.execute(_newest_first(runs.select()).limit(1)).all()
            else:
                rows = connection.execute(runs.select().where(runs.c.id == ref)).all()
                if not rows and ref:
                    starts = sa.func.substr(runs.c.id, 1, len(ref)) == ref
                    rows = connection.execute(
                        _newest_first(runs.select().where(starts | (runs.c.name == ref)))
                    ).all()
            if not rows:
                raise RunNotFoundError(self._no_such_run(connection, ref))
        if len(rows) > 1:
            ids = ", ".join(row.id for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
            raise AmbiguousRunError(f"{ref!r} means {len(rows)} runs ({ids}); say which by its id.")
        return self._run(rows[0])

    def runs(self, limit: int | None = None) -> list[Run]:
        """All runs, or the last ``limit`` of them, newest first."""
        with self._reading() as connection:
            rows = connection.execute(_newest_first(schema.runs.select()).limit(limit)).all()
        return [self._run(row) for row in rows]

    # Writing

    def add_batch(self, run_id: str, batch: Batch) -> bool:
        """Store a batch in one transaction; False if it was there already.

        Raises:
            RunNotFoundError: no run has that id.
            BatchError: the batch contradicts itself, or holds what no column can.
        """
        return self.commit(run_id, [batch])[0]

    def commit(
        self,
        run_id: str,
        batches: Sequence[Batch] = (),
        samples: Iterable[Sample] = (),
        changes: Mapping[str, Any] | None = None,
    ) -> list[bool]:
        """Store batches, samples and changes of the run together: all of it or nothing.

        Returns:
            For each batch whether it was new.

        Raises:
            RunNotFoundError: no run has that id.
            BatchError: a batch contradicts itself, or holds what no column can.
        """
        changes = dict(changes or {})
        unknown = sorted(set(changes) - set(_RUN_FIELDS))
        if unknown:
            raise TypeError(f"a run has no field {', '.join(unknown)}")
        with self._writing() as connection:
            run_key = self._run_key(connection, run_id)
            try:
                added = [self._add(connection, run_key, batch) for batch in batches]
                self._add_samples(connection, run_key, samples)
                if changes:
                    connection.execute(
                        schema.runs.update().where(schema.runs.c.key == run_key), changes
                    )
            except (sa.exc.DataError, sa.exc.IntegrityError, OverflowError, ValueError) as error:
                raise BatchError(
                    f"A batch for run {run_id} holds a value that cannot be stored: "
                    f"{first_line(error)}."
                ) from error
        return added

    def add_unfinished(self, run_id: str, records: Sequence[RequestRecord]) -> int:
        """Store records of requests that were still open, save those that ended after all.

        Returns:
            How many were stored: a request that has a record keeps it.
        """
        with self._writing() as connection:
            run_key = self._run_key(connection, run_id)
            insert = self._insert_if_new(schema.requests)
            rows = [
                _row(record, run_key, self._worker_key(connection, run_key, record.worker))
                for record in records
            ]
            return sum(connection.execute(insert, row).rowcount for row in rows)

    # Reading

    def salt(self) -> bytes:
        """The key of this database's hashes: 32 random bytes, for no log, page or export."""
        with self._reading() as connection:
            return bytes(connection.execute(sa.select(schema.salt.c.value)).scalar_one())

    def count(self, run_id: str) -> int:
        """How many requests the run has."""
        requests = schema.requests
        with self._reading() as connection:
            run_key = self._run_key(connection, run_id)
            query = sa.select(sa.func.count()).where(requests.c.run_key == run_key)
            return connection.scalar(query) or 0

    def records(self, run_id: str) -> Iterator[RequestRecord]:
        """The run's requests in due order, streamed; for a whole run :meth:`table` is faster."""
        requests = schema.requests
        with self._reading() as connection:
            run_key = self._run_key(connection, run_id)
            workers = self._workers(connection, run_key)
            query = (
                requests.select()
                .join(schema.workers, schema.workers.c.key == requests.c.worker_key)
                .where(requests.c.run_key == run_key)
                .order_by(
                    requests.c.due_at_s,
                    schema.workers.c.name,
                    requests.c.seq,
                    requests.c.attempt,
                )
            )
            with connection.execute(query, execution_options={"yield_per": 1000}) as result:
                for row in result.mappings():
                    yield _record(row, run_id, workers[row["worker_key"]])

    def table(
        self, run_id: str, *, gaps: bool = True, only: Collection[str] | None = None
    ) -> RequestTable:
        """The run's requests as columns in due order, without a Python object for each.

        Args:
            run_id: whose.
            gaps: whether to read the gaps between output events, which are most of the bytes;
                without them the table says that none were kept.
            only: columns to read, by name; due instants and outcomes are read anyhow. The others
                are as if nothing had been observed.
        """
        from collectors.columns import read_table  # noqa: PLC0415  # numpy: readers only

        with self._reading() as connection:
            run_key = self._run_key(connection, run_id)
            workers = self._workers(connection, run_key)
            return read_table(connection, run_key, workers, gaps=gaps, only=only)

    def samples(self, run_id: str, names: Sequence[str] | None = None) -> list[Sample]:
        """The run's readings in the order of their instants, all or those of the given names."""
        series, readings = schema.series, schema.samples
        query = (
            sa.select(readings.c.at_s, series.c.source, series.c.name, readings.c.value)
            .join(series, series.c.key == readings.c.series_key)
            .order_by(readings.c.at_s, series.c.key)
        )
        if names is not None:
            query = query.where(series.c.name.in_(names))
        with self._reading() as connection:
            run_key = self._run_key(connection, run_id)
            rows = connection.execute(query.where(series.c.run_key == run_key)).all()
        return [Sample(*row) for row in rows]

    # Inside

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._database.explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._database.explained(), writing(self._engine) as connection:
            yield connection

    def _insert(self, table: sa.Table) -> Any:
        """The dialect's INSERT, which knows ON CONFLICT; SQLAlchemy has no common one."""
        return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[
            self._engine.dialect.name
        ](table)

    def _insert_if_new(self, table: sa.Table) -> Any:
        """An INSERT in which the first word stands; ``rowcount`` tells whether it was this one."""
        insert = self._insert(table).on_conflict_do_nothing()
        return insert.execution_options(preserve_rowcount=True)

    def _put(self, table: sa.Table) -> Any:
        """An INSERT in which the last word wins: a row of the same key is replaced."""
        insert = self._insert(table)
        rest = {c.name: insert.excluded[c.name] for c in table.c if not c.primary_key}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=rest)

    def _run_key(self, connection: Connection, run_id: str) -> int:
        key = connection.scalar(sa.select(schema.runs.c.key).filter_by(id=run_id))
        if key is None:
            raise RunNotFoundError(self._no_such_run(connection, run_id))
        return int(key)

    def _worker_key(self, connection: Connection, run_key: int, name: str) -> int:
        return self._key_of(connection, schema.workers, run_key=run_key, name=name)

    def _key_of(self, connection: Connection, table: sa.Table, **what: Any) -> int:
        """The key of the row that says ``what``, which is made where there is none."""
        query = sa.select(table.c.key).filter_by(**what)
        key = connection.scalar(query)
        if key is None:
            connection.execute(self._insert_if_new(table), what)
            key = connection.execute(query).scalar_one()
        return int(key)

    def _add(self, connection: Connection, run_key: int, batch: Batch) -> bool:
        worker_key = self._worker_key(connection, run_key, batch.worker)
        head = {
            "run_key": run_key,
            "worker_key": worker_key,
            "sequence": batch.sequence,
            "at_s": batch.at_s,
            "requests": len(batch.records),
        }
        if not connection.execute(self._insert_if_new(schema.batches), head).rowcount:
            return False
        if any(record.worker != batch.worker for record in batch.records):
            raise BatchError(f"Batch {batch.worker}/{batch.sequence} holds records of others.")
        rows = [_row(record, run_key, worker_key) for record in batch.records]
        if rows:
            connection.execute(self._put(schema.requests), rows)
        self._add_samples(connection, run_key, batch.samples)
        return True

    def _add_samples(self, connection: Connection, run_key: int, samples: Iterable[Sample]) -> None:
        keys: dict[tuple[str, str], int] = {}
        rows = []
        for at_s, source, name, value in samples:
            if isnan(value):  # not observed
                continue
            if (source, name) not in keys:
                keys[source, name] = self._key_of(
                    connection, schema.series, run_key=run_key, source=source, name=name
                )
            rows.append({"series_key": keys[source, name], "at_s": at_s, "value": value})
        if rows:
            connection.execute(self._put(schema.samples), rows)

    def _workers(self, connection: Connection, run_key: int) -> dict[int, str]:
        workers = schema.workers
        query = sa.select(workers.c.key, workers.c.name).where(workers.c.run_key == run_key)
        return {row.key: row.name for row in connection.execute(query)}

    def _run(self, row: sa.Row[Any]) -> Run:
        """The run of a row, told as interrupted where its recorder fell silent."""
        values = {name: getattr(row, name) for name in _RUN_FIELDS}
        run = Run(**values | {"status": RunStatus(row.status)})
        if run.status is not RunStatus.RUNNING:
            return run
        silent_s = self._now() - (run.heartbeat_wall_s or run.began_wall_s)
        if silent_s <= HEARTBEAT_LOST_S:
            return run
        note = f"no sign of life for {silent_s:.0f} s: the recorder did not end properly"
        return replace(run, status=RunStatus.INTERRUPTED, notes=[*run.notes, note])

    def _no_such_run(self, connection: Connection, ref: str) -> str:
        runs = schema.runs
        rows = connection.execute(
            _newest_first(sa.select(runs.c.id, runs.c.name)).limit(1000)
        ).all()
        if not rows:
            return f"There is no run in {self._database} yet; record one first."
        words = dict.fromkeys(word for row in rows for word in (row.name, row.id))
        near = difflib.get_close_matches(ref, words, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "streamgauge runs lists them."
        return f"There is no run {ref!r} in {self._database}; {hint}"


def _newest_first(query: sa.Select[Any]) -> sa.Select[Any]:
    return query.order_by(schema.runs.c.began_wall_s.desc(), schema.runs.c.key.desc())


def _row(record: RequestRecord, run_key: int, worker_key: int) -> dict[str, Any]:
    """The columns of a record."""
    row = {name: getattr(record, name) for name in _AS_STORED}
    events = record.output_events
    row.update({f"{kind}_events": getattr(events, kind) for kind in schema.EVENT_KINDS})
    row["run_key"], row["worker_key"] = run_key, worker_key
    row["gaps_s"] = None if record.gaps_s is None else _swapped(record.gaps_s).tobytes()
    if record.detail is not None:
        row["detail"] = record.detail.replace("\0", "")  # PostgreSQL has no such character
    if record.prompt_sketch is not None:
        row["prompt_sketch"] = _signed(record.prompt_sketch)
    return row


def _record(row: sa.RowMapping, run_id: str, worker: str) -> RequestRecord:
    """The record of a row."""
    values = {name: row[name] for name in _AS_STORED}
    source = row["token_source"]
    gaps = None
    if row["gaps_s"] is not None:
        gaps = array("f")
        gaps.frombytes(row["gaps_s"])
        gaps = _swapped(gaps)
    sketch = row["prompt_sketch"]
    values.update(
        run_id=run_id,
        worker=worker,
        outcome=Outcome(row["outcome"]),
        token_source=None if source is None else TokenSource(source),
        flags=tuple(row["flags"]),
        finish_reasons=tuple(row["finish_reasons"]),
        output_events=OutputEvents(**{kind: row[f"{kind}_events"] for kind in schema.EVENT_KINDS}),
        gaps_s=gaps,
        prompt_sketch=None if sketch is None else sketch % 2**64,
    )
    return RequestRecord(**values)


def _signed(bits: int) -> int:
    """64 bits as the signed number that a database has a column for."""
    return bits - 2**64 if bits >= 2**63 else bits


def _swapped(gaps: array[float]) -> array[float]:
    """``gaps`` in the byte order of the database (little endian), or back from it."""
    if sys.byteorder == "little":
        return gaps
    swapped = array("f", gaps)
    swapped.byteswap()
    return swapped
