"""A database of revision 0001, made as that revision made it, in the hands of this one."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from collectors import migrations, schema
from collectors.errors import StoreError
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.store import Store
from tests.collectors.examples import a_batch, a_record
from tests.collectors.revision_0001 import GAPS, RUN, make_0001, written_by_hand


def what_stands(db: str) -> dict[str, list[str]]:
    """Every row of every table, the revision among them."""
    with written_by_hand(db) as connection:
        return {
            table: sorted(map(repr, connection.execute(sa.text(f"SELECT * FROM {table}"))))  # noqa: S608  # names of our own
            for table in sa.inspect(connection).get_table_names()
        }


@pytest.fixture
def old(db: str) -> str:
    """A database of revision 0001."""
    return make_0001(db)


def test_every_row_is_kept(old: str) -> None:
    """Opened for reading, an old database says what it said; what is new in it is absent."""
    with Store.open(old, read_only=True) as store:
        assert [run.id for run in store.runs()] == ["02", RUN["id"]]
        assert store.find_run("evening") == Run(
            id="01m7z6c6ytq5kdw9",
            name="evening",
            scenario="chat",
            target="http://endpoint",
            status=RunStatus.COMPLETE,
            began_wall_s=1000.0,
            began_mono_s=50.0,
            users=3,
            heartbeat_wall_s=1060.0,
            labels={"branch": "main"},
            notes=["no GPU seen here"],
        )
        assert list(store.records(RUN["id"])) == [
            RequestRecord(
                run_id="01m7z6c6ytq5kdw9",
                worker="w0",
                seq=0,
                outcome=Outcome.OK,
                flags=("coalesced",),
                due_at_s=1.0,
                sent_at_s=1.5,
                first_token_at_s=2.0,
                last_token_at_s=2.375,
                output_tokens=3,
                token_source=TokenSource.USAGE,
                output_events=OutputEvents(answer=3),
                coalesced_events=1,
                finish_reasons=("stop",),
                gaps_s=GAPS,
            ),
            RequestRecord(
                run_id="01m7z6c6ytq5kdw9",
                worker="w0",
                seq=1,
                outcome=Outcome.NOT_SENT,
                due_at_s=1.0,
            ),
        ]
        assert len(store.table(RUN["id"])) == 2
        assert store.samples(RUN["id"]) == [Sample(1.0, "gpu:0", "gpu_power_watts", 300.0)]
        assert len(store.salt()) == 32


def test_the_schema_is_that_of_a_new_database(old: str) -> None:
    """After the upgrade nothing differs from what this code knows."""
    Store.open(old, read_only=True).close()
    with written_by_hand(old) as connection:
        found = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(found, schema.metadata) == []


def test_runs_go_on_being_recorded_into_it(old: str) -> None:
    """An upgraded database takes new requests; a batch that it has is still known to be there."""
    record = a_record(
        2, worker="w0", prompt_hash="ab" * 16, prompt_sketch=2**63, cache_status="hit"
    )
    with Store.open(old) as store:
        assert not store.add_batch(RUN["id"], a_batch(0, range(2), worker="w0"))
        assert store.add_batch(RUN["id"], a_batch(1, range(0), worker="w0", records=[record]))
        assert list(store.records(RUN["id"]))[2] == record


def test_it_is_said_once(old: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line when the database is changed, none when it is opened again."""
    for _ in range(2):
        Store.open(old, read_only=True).close()
    (line,) = caplog.messages
    assert line.endswith(
        "was written by an older Streamgauge and has been brought up to date (schema 0001 to "
        f"{schema.REVISIONS[-1]}); the older one cannot open it any more."
    )
    assert "pa@ss" not in line
    assert "pa%40ss" not in line


def test_a_new_database_is_not_called_old(db: str, caplog: pytest.LogCaptureFixture) -> None:
    """Creating one passes through every revision and says nothing of it."""
    Store.open(db, create=True).close()
    assert caplog.messages == []


def test_many_may_come_upon_it_at_once(old: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of eight readers one upgrades it and says so, and all read it."""
    counts: list[int] = []
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        with Store.open(old, read_only=True) as store:
            counts.append(store.count(RUN["id"]))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2] * 8
    assert len(caplog.messages) == 1


def test_an_upgrade_is_whole_or_not_there(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on the way leaves the database as it was, and says why in one sentence."""

    def failing(connection: sa.Connection) -> None:
        upgrade(connection)
        connection.execute(sa.text("SELECT * FROM nowhere"))

    before, upgrade = what_stands(old), migrations.upgrade
    monkeypatch.setattr(migrations, "upgrade", failing)
    with pytest.raises(StoreError, match=r"older Streamgauge and cannot .*: .*nowhere") as error:
        Store.open(old, read_only=True)
    assert "\n" not in str(error.value)
    assert what_stands(old) == before
    monkeypatch.undo()
    with Store.open(old, read_only=True) as store:
        assert len(store.runs()) == 2


def test_a_run_being_recorded_is_not_cut_off(db: str) -> None:
    """While an older Streamgauge records, its database stays as it is; later it is upgraded."""
    make_0001(db, status="running")
    before = what_stands(db)
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"is recording run 01m7z6c6ytq5kdw9 .*try again"):
            Store.open(db, read_only=read_only, now=lambda: 1074.0)
    assert what_stands(db) == before
    with Store.open(db, read_only=True, now=lambda: 1076.0) as store:
        assert store.find_run("evening").status is RunStatus.INTERRUPTED


def test_a_locked_one_is_said_to_be(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that outlasts our patience costs a sentence, and the database nothing."""
    monkeypatch.setattr("collectors.database.BUSY_TIMEOUT_S", 0.1)
    said = r"cannot be brought up to date: (another program kept it locked|.*lock timeout)"
    with written_by_hand(old) as connection:
        connection.execute(sa.text("UPDATE requests SET task = 'ask'"))
        with pytest.raises(StoreError, match=said):
            Store.open(old, read_only=True)
    with Store.open(old, read_only=True) as store:
        assert {record.task for record in store.records(RUN["id"])} == {"ask"}


@pytest.mark.parametrize("writable_folder", [True, False])
def test_one_that_may_not_be_written_is_said_to_be(*, writable_folder: bool) -> None:
    """An archive is left as it is: one sentence, nothing beside the file."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "runs.db"
    make_0001(str(path))
    content = path.read_bytes()
    path.chmod(0o444)
    folder.chmod(0o777 if writable_folder else 0o555)
    user = os.geteuid()
    try:
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        with pytest.raises(StoreError, match=r"brought up to date: it cannot be written.*--db"):
            Store.open(str(path), read_only=True)
        assert path.read_bytes() == content
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)
