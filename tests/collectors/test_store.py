"""The store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from array import array
from dataclasses import fields, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors import migrations, schema
from collectors.errors import AmbiguousRunError, BatchError, RunNotFoundError, StoreError
from collectors.records import Outcome, OutputEvents, RequestRecord
from collectors.runs import Run, RunStatus, new_run_id
from collectors.samples import Sample
from collectors.store import Store
from collectors.table import RequestTable
from tests.collectors.builders import columns_of
from tests.collectors.examples import RUN_ID, a_batch, a_record, a_run, records
from tests.collectors.postgres import Server
from tests.collectors.streams import small_portions
from tests.conftest import ROOT

FULL_RUN = a_run(
    model="m",
    api="chat",
    status=RunStatus.COMPLETE,
    boot_id="b",
    loop="open",
    users=3,
    rate=2.5,
    duration_s=60.0,
    ramp_s=2.0,
    warmup_s=6.0,
    drain_s=30.0,
    stopped_at_s=60.0,
    ended_at_s=61.5,
    heartbeat_wall_s=1062.0,
    labels={"branch": "main"},
    config={"nested": {"list": [1, None, "ü"]}},
    versions={"python": "3.11"},
    client={"cpu_ratio": 0.25},
    notes=["no GPU seen here"],
    gpu_hour_price_usd=2.0,
    gpus=1,
    prompts_hash="abc",
    simulated=True,
)


# Runs


def test_a_run_comes_back_as_it_went_in(store: Store) -> None:
    """Every field of a run survives the database."""
    assert all(getattr(FULL_RUN, f.name) is not None for f in fields(Run))
    store.create_run(FULL_RUN)
    assert store.runs() == [FULL_RUN]


def test_what_was_not_observed_stays_absent(store: Store) -> None:
    """None comes back as None, and a figure that is not a number as None too."""
    store.create_run(a_run(client={"cpu_ratio": float("nan")}))
    assert store.find_run(RUN_ID) == a_run(client={"cpu_ratio": None})


def test_a_run_is_stored_once(store: Store) -> None:
    """A second run of the same id is refused by name."""
    store.create_run(a_run())
    with pytest.raises(StoreError, match=f"Run {RUN_ID} is in .* already"):
        store.create_run(a_run())


def test_fields_of_a_run_change_one_by_one(store: Store) -> None:
    """An update changes the fields named and no other."""
    store.create_run(FULL_RUN)
    store.update_run(RUN_ID, status=RunStatus.INTERRUPTED, notes=["cut"], ended_at_s=None)
    changed = replace(FULL_RUN, status=RunStatus.INTERRUPTED, notes=["cut"], ended_at_s=None)
    assert store.find_run(RUN_ID) == changed
    with pytest.raises(TypeError, match="no field statuss"):
        store.update_run(RUN_ID, statuss="complete")
    with pytest.raises(RunNotFoundError):
        store.update_run("nobody", users=3)


def test_a_silent_run_was_interrupted(store: Store) -> None:
    """A run that says "running" reads as interrupted 15 s after its last sign of life."""
    store.create_run(a_run(heartbeat_wall_s=990.0))
    assert store.find_run(RUN_ID).status is RunStatus.RUNNING
    store.update_run(RUN_ID, heartbeat_wall_s=989.0)
    run = store.find_run(RUN_ID)
    assert run.status is RunStatus.INTERRUPTED
    assert run.notes == ["no sign of life for 16 s: the recorder did not end properly"]


@pytest.fixture
def four_runs(store: Store) -> Store:
    """Two runs called evening, one called night, one called rate 20%."""
    for number, name in enumerate(["evening", "night", "evening", "rate 20%"]):
        run_id = f"01aaaaaaaaaaaa{number // 2}{number}"
        store.create_run(a_run(id=run_id, name=name, began_wall_s=1000.0 + number))
    return store


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("last", "01aaaaaaaaaaaa13"),
        ("01aaaaaaaaaaaa01", "01aaaaaaaaaaaa01"),
        ("01aaaaaaaaaaaa12", "01aaaaaaaaaaaa12"),
        ("night", "01aaaaaaaaaaaa01"),
        ("rate 20%", "01aaaaaaaaaaaa13"),
    ],
)
def test_a_run_is_found_by_what_people_say(four_runs: Store, ref: str, found: str) -> None:
    """An id, an exact name and "last" each find their run."""
    assert four_runs.find_run(ref).id == found


def test_the_beginning_of_one_id_is_enough(store: Store) -> None:
    """A prefix that only one id has finds that run."""
    for run_id in ("01b", "02b"):
        store.create_run(a_run(id=run_id))
    assert store.find_run("02").id == "02b"


@pytest.mark.parametrize(
    ("ref", "ids"),
    [
        ("evening", ["01aaaaaaaaaaaa00", "01aaaaaaaaaaaa12"]),
        ("01aaaaaaaaaaaa1", ["01aaaaaaaaaaaa12", "01aaaaaaaaaaaa13"]),
    ],
)
def test_a_reference_to_two_runs_names_both(four_runs: Store, ref: str, ids: list[str]) -> None:
    """A name or a prefix that two runs have is an error that lists their ids."""
    with pytest.raises(AmbiguousRunError) as error:
        four_runs.find_run(ref)
    assert all(run_id in str(error.value) for run_id in ids)


@pytest.mark.parametrize("ref", ["evenning", "", "%", "01AAAAAAAAAAAA01"])
def test_an_unknown_run_is_said_to_be_unknown(four_runs: Store, ref: str) -> None:
    """What no run answers to is an error, with a near name where there is one."""
    with pytest.raises(RunNotFoundError) as error:
        four_runs.find_run(ref)
    assert ("did you mean evening" in str(error.value)) == (ref == "evenning")


def test_an_empty_database_says_so(store: Store) -> None:
    """The last of no runs is an error that says there is none yet."""
    assert store.runs() == []
    with pytest.raises(RunNotFoundError, match=r"no run in .* yet"):
        store.find_run("last")


def test_runs_come_newest_first(four_runs: Store) -> None:
    """Runs are listed from the newest back, as many as asked for."""
    assert [run.id[-1] for run in four_runs.runs()] == ["3", "2", "1", "0"]
    assert [run.id[-1] for run in four_runs.runs(limit=2)] == ["3", "2"]


# Requests


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records(), max_size=5, unique_by=lambda r: (r.seq, r.attempt)))
def test_requests_come_back_as_they_went_in(store: Store, some: list[RequestRecord]) -> None:
    """Whatever a record says or leaves unsaid survives the database, in due order."""
    run = a_run(id=new_run_id())
    some = [replace(record, run_id=run.id) for record in some]
    store.create_run(run)
    assert store.add_batch(run.id, a_batch(0, range(0), records=some))
    ordered = sorted(some, key=lambda r: (r.due_at_s, r.seq, r.attempt))
    assert list(store.records(run.id)) == ordered
    assert store.count(run.id) == len(some)


def test_a_batch_sent_twice_counts_once(store: Store) -> None:
    """(run, worker, sequence) names a batch: the second time nothing changes."""
    store.create_run(a_run())
    assert store.add_batch(RUN_ID, a_batch(0, range(3)))
    assert not store.add_batch(RUN_ID, a_batch(0, range(9)))
    assert store.add_batch(RUN_ID, a_batch(0, range(3), worker="other"))
    assert store.count(RUN_ID) == 6


def test_a_record_replaces_the_one_written_in_its_place(store: Store) -> None:
    """A request recorded as unfinished whose own record comes after all has that one."""
    store.create_run(a_run())
    unfinished = a_record(0, outcome=Outcome.UNFINISHED)
    assert store.add_unfinished(RUN_ID, [unfinished]) == 1
    assert list(store.records(RUN_ID)) == [unfinished]
    store.add_batch(RUN_ID, a_batch(0, range(1)))
    assert list(store.records(RUN_ID)) == [a_record(0)]
    assert store.add_unfinished(RUN_ID, [unfinished, replace(unfinished, seq=1)]) == 1
    assert [r.outcome for r in store.records(RUN_ID)] == [Outcome.OK, Outcome.UNFINISHED]


def test_a_batch_is_whole_or_not_there(store: Store) -> None:
    """A record that no column can hold costs the transaction, and is our own bug."""
    store.create_run(a_run())
    bad = a_batch(0, range(2), records=[a_record(0), a_record(1, output_tokens=2**63)])
    with pytest.raises(BatchError, match="cannot be stored"):
        store.commit(RUN_ID, [a_batch(1, range(5, 6)), bad])
    assert store.count(RUN_ID) == 0
    assert store.add_batch(RUN_ID, a_batch(0, range(2)))


def test_a_null_character_in_an_error_text_is_left_out(store: Store) -> None:
    """PostgreSQL has no such character; a server's odd error must not cost the batch."""
    store.create_run(a_run())
    store.add_batch(RUN_ID, a_batch(0, range(0), records=[a_record(0, detail="a\0b")]))
    assert next(store.records(RUN_ID)).detail == "ab"


def test_the_table_is_what_the_records_say(store: Store) -> None:
    """The fast way to columns gives what the slow one gives: order, gaps, absences, types."""
    store.create_run(a_run())
    mixed = {
        worker: [
            a_record(
                seq,
                worker=worker,
                due_at_s=due,
                sent_at_s=None,
                first_token_at_s=None,
                last_token_at_s=None,
                task=worker if seq else None,
                flags=("coalesced", "no_done")[:seq],
                gaps_s=array("f", range(seq)) if seq != 1 else None,
                output_events=OutputEvents(answer=seq, hidden=1),
            )
            for seq, due in enumerate([3.0, 1.0, 1.0, 2.0])
        ]
        for worker in ("b", "a")
    }
    for worker, some in mixed.items():
        store.add_batch(RUN_ID, a_batch(0, range(0), worker=worker, records=some))
    expected = RequestTable.from_records(record for some in mixed.values() for record in some)
    assert columns_of(store.table(RUN_ID)) == columns_of(expected)
    with small_portions():
        assert columns_of(store.table(RUN_ID)) == columns_of(expected)


def test_the_table_of_an_empty_run_is_empty(store: Store) -> None:
    """A run without requests has columns of length 0 and the right types."""
    store.create_run(a_run())
    table, expected = store.table(RUN_ID), RequestTable.from_records([])
    assert len(table) == 0
    assert columns_of(table) == columns_of(expected)


def test_readings_come_back_in_order(store: Store) -> None:
    """Samples are sorted by instant, filtered by name; one that is no number is left out."""
    store.create_run(a_run())
    cpu = [Sample(at_s, "host:a", "host_cpu_ratio", at_s / 10) for at_s in (2.0, 1.0)]
    power = Sample(1.5, "gpu:0", "gpu_power_watts", 300.0)
    gap = Sample(3.0, "gpu:0", "gpu_power_watts", float("nan"))
    store.add_batch(RUN_ID, a_batch(0, range(0), samples=[*cpu, power, gap]))
    assert store.samples(RUN_ID) == [cpu[1], power, cpu[0]]
    assert store.samples(RUN_ID, ["gpu_power_watts"]) == [power]
    assert store.samples(RUN_ID, ["nothing"]) == []


@pytest.mark.parametrize("read", ["count", "records", "table", "samples"])
def test_reading_a_run_that_is_not_there_is_an_error(store: Store, read: str) -> None:
    """An unknown id is never an empty run."""
    with pytest.raises(RunNotFoundError):
        list(getattr(store, read)("nobody"))


# The database


def test_the_migrations_make_the_tables_we_use(db: str) -> None:
    """After all migrations the database differs in nothing from collectors.schema."""
    with Store.open(db, create=True) as store, store._engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, schema.metadata) == []


def test_the_list_of_revisions_is_that_of_the_files() -> None:
    """schema.REVISIONS, which spares readers Alembic, names the files in migrations/versions."""
    scripts = ScriptDirectory.from_config(migrations.config())
    assert tuple(s.revision for s in scripts.walk_revisions())[::-1] == schema.REVISIONS


def test_each_database_has_a_salt_of_its_own(db: str, tmp_path: Path) -> None:
    """32 bytes, the same whenever they are asked for, other ones in another database."""
    with Store.open(db, create=True) as store:
        salt = store.salt()
    with Store.open(db, read_only=True) as store:
        assert store.salt() == salt
    with Store.open(str(tmp_path / "other.db"), create=True) as store:
        assert (len(salt), store.salt() != salt) == (32, True)


@pytest.mark.parametrize("sketch", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_sketch_keeps_its_64_bits(store: Store, sketch: int) -> None:
    """Unsigned here, signed in the database, unsigned again when it is read."""
    store.create_run(a_run())
    store.add_batch(RUN_ID, a_batch(0, range(0), records=[a_record(0, prompt_sketch=sketch)]))
    assert next(store.records(RUN_ID)).prompt_sketch == sketch


def test_requests_carry_no_text_index(store: Store) -> None:
    """A million requests are indexed by numbers alone: the text id stands once, on the run."""
    indexed = {
        column
        for index in sa.inspect(store._engine).get_indexes("requests")
        for column in index["column_names"]
    }
    key = sa.inspect(store._engine).get_pk_constraint("requests")["constrained_columns"]
    assert {str(schema.requests.c[name].type) for name in {*indexed, *key}} == {"INTEGER", "DOUBLE"}


def test_many_may_open_a_new_database_at_once(db: str) -> None:
    """Eight that all create the same database find it made once, and all can write."""
    errors: list[Exception] = []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        try:
            barrier.wait()
            with Store.open(db, create=True) as store:
                store.create_run(a_run(id=f"run{number}"))
        except Exception as error:  # noqa: BLE001  # whatever it is, the test shall show it
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Store.open(db) as store:
        assert len(store.runs()) == 8


def test_a_run_can_be_read_while_it_is_written(db: str) -> None:
    """A read-only store opens beside a writer in mid-transaction and sees what is committed."""
    with Store.open(db, create=True) as writer:
        writer.create_run(a_run())
        writer.add_batch(RUN_ID, a_batch(0, range(2)))
        with writer._writing() as connection:
            writer._add(connection, 1, a_batch(1, range(2, 4)))
            with Store.open(db, read_only=True) as reader:
                assert reader.count(RUN_ID) == 2
        with Store.open(db, read_only=True) as reader:
            assert reader.count(RUN_ID) == 4


def test_a_read_only_store_writes_nothing(db: str) -> None:
    """Writing through a read-only store is an error of one sentence."""
    with Store.open(db, create=True) as writer:
        writer.create_run(a_run())
    with (
        Store.open(db, read_only=True) as reader,
        pytest.raises(StoreError, match=r"read-?only|cannot be written"),
    ):
        reader.update_run(RUN_ID, users=1)


def test_a_newer_schema_is_refused(db: str) -> None:
    """What a newer Streamgauge wrote is neither read wrongly nor changed."""
    with Store.open(db, create=True) as store, store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE streamgauge_schema SET version_num = '9999'")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"newer Streamgauge \(schema 9999"):
            Store.open(db, read_only=read_only)


def test_a_database_of_another_program_is_left_alone(db: str) -> None:
    """Tables that are not ours are never added to."""
    with Store.open(db, create=True) as store, store._engine.begin() as connection:
        for table in (schema.VERSION_TABLE, *schema.metadata.tables):
            connection.exec_driver_sql(f"DROP TABLE {table}" + (" CASCADE" if "://" in db else ""))
        connection.exec_driver_sql("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(StoreError, match=r"another program .*customers"):
        Store.open(db, create=True)


@pytest.mark.parametrize("content", [b"", None])
def test_a_database_without_runs_is_not_created_by_reading(
    tmp_path: Path, content: bytes | None
) -> None:
    """Opening a missing or an empty file without create is an error, and leaves all as it was."""
    path = tmp_path / "runs.db"
    if content is not None:
        path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="record a run first"):
            Store.open(str(path), read_only=read_only)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == (
        [] if content is None else [("runs.db", b"")]
    )


@pytest.mark.parametrize("content", [b"no database\n", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """Garbage, and garbage that begins like SQLite, are refused in one sentence, unchanged."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"notes\.txt") as error:
        Store.open(str(path), create=True)
    assert str(error.value).count("\n") == 0
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("notes.txt", content)]


@pytest.mark.parametrize(
    ("db", "said"),
    [
        (".", "is a folder"),
        ("missing/runs.db", "No such file or directory"),
        ("/proc/version/runs.db", "Not a directory"),
        ("/proc/runs.db", "cannot be opened"),
        ("mysql://root@host/db", "A mysql database cannot hold runs"),
        ("sqlite://", "A sqlite database cannot hold runs"),
        ("http://host/db", "A http database cannot hold runs"),
        ("://", "cannot be read"),
    ],
)
def test_a_place_that_cannot_be_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: str, said: str
) -> None:
    """Folders, missing folders, unwritable places and foreign URLs are each one sentence."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=said) as error:
        Store.open(db, create=True)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_database_locked_by_another_program_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that outlasts our patience is a sentence that says what to do."""
    monkeypatch.setattr("collectors.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "runs.db"
    with Store.open(str(path), create=True) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program kept it locked"):
            store.create_run(a_run())
        other.close()
        store.create_run(a_run())


def test_a_database_in_a_folder_nobody_may_write_can_be_read() -> None:
    """Artefacts of a CI job are often read-only: the runs in them are read all the same."""
    folder = Path(tempfile.mkdtemp())
    db = str(folder / "runs.db")
    with Store.open(db, create=True) as store:
        store.create_run(a_run())
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        with Store.open(db, read_only=True) as store:
            assert store.find_run("last").id == RUN_ID
        with pytest.raises(StoreError, match="cannot be written"):
            Store.open(db)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.needs("postgres")
def test_a_server_that_does_not_serve_is_said_without_the_password(
    postgres_server: Server,
) -> None:
    """Nobody listening, a wrong password, a missing database: one sentence, no secret in it."""
    wrong = {
        "postgresql://tester:pa%40ss%2Fword@127.0.0.1:1/runs": "refused",
        postgres_server.url("postgres", "hunter2@x"): "does not serve",
        postgres_server.url("postgres", "hunter2"): "password authentication failed",
        postgres_server.url("nowhere"): '"nowhere" does not exist',
    }
    for url, said in wrong.items():
        with pytest.raises(StoreError, match=said) as error:
            Store.open(url, create=True)
        message = str(error.value)
        assert "\n" not in message
        assert not any(s in message for s in ("pa@ss", "pa%40ss", "hunter2", "word@"))
        assert error.value.__cause__ is None


def test_the_installed_package_brings_its_migrations(tmp_path: Path) -> None:
    """A database can be created from the built wheel alone, away from the checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from collectors.store import Store; import collectors;"
        "Store.open(sys.argv[2], create=True).close(); print(collectors.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "installed"), str(tmp_path / "runs.db")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert (tmp_path / "runs.db").exists()
