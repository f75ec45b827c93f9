"""The feed and the recorder together: real processes, killed in every way we can think of."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from collectors import feed as feed_module
from collectors.batches import Batch, pack
from collectors.errors import BatchError, StoreError
from collectors.feed import RecorderFeed
from collectors.records import Outcome, RequestRecord
from collectors.runs import Run, RunStatus
from collectors.store import Store
from tests.collectors.examples import RUN_ID, a_batch, a_record, a_run
from tests.conftest import ROOT

ENDED = {"status": RunStatus.COMPLETE, "stopped_at_s": 4.0, "ended_at_s": 5.0}
NO_GPU = "no GPU seen here"


def a_present_run() -> Run:
    """A run that begins now, as a recorder's telemetry expects."""
    return a_run(began_wall_s=time.time(), began_mono_s=time.monotonic())


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for another process to get somewhere."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def read(db: str) -> tuple[Run, list[RequestRecord]]:
    """The run and its requests, as they are in the database."""
    with Store.open(db, read_only=True) as store:
        return store.find_run(RUN_ID), list(store.records(RUN_ID))


@pytest.fixture
def sqlite_db(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


@contextmanager
def feeding(db: str, **options: int) -> Iterator[RecorderFeed]:
    """A started feed, whose recorder does not outlive the test."""
    feed = RecorderFeed(db, a_present_run(), **options)
    feed.start()
    try:
        yield feed
    finally:
        feed._closing = True
        with suppress(ProcessLookupError):
            pid = recorder_pid(feed)
            os.kill(pid, signal.SIGCONT)
        feed._leave(complete=True)


def recorder_pid(feed: RecorderFeed) -> int:
    assert feed._process is not None
    return feed._process.pid


def settled(feed: RecorderFeed) -> bool:
    """Whether all that was put is committed."""
    return not feed._pending


@contextmanager
def load_process(db: str, **options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The load process of tests/collectors/feeding.py in a group of its own, and its recorder."""
    command = [sys.executable, "-m", "tests.collectors.feeding", db]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


# A run that goes well


def test_what_is_fed_is_recorded(db: str) -> None:
    """Batches of several workers, packed or not, and changes of the run are all in the database."""
    with feeding(db) as feed:
        feed.put(a_batch(0, range(3)))
        feed.put(pack(a_batch(0, range(2), worker="other")))
        feed.update_run(ramp_s=2.0, notes=["a note"], versions={"locust": "2"})
        feed.put(a_batch(1, range(3, 5)))
        assert feed.finish(**ENDED, client={"stamp": "kernel"})
        assert feed.finish(**ENDED, client={})  # again, as when a signal comes at the end: no harm
    run, records = read(db)
    assert (run.status, run.stopped_at_s, run.ended_at_s) == (RunStatus.COMPLETE, 4.0, 5.0)
    assert (run.ramp_s, run.notes, run.versions["locust"]) == (2.0, ["a note", NO_GPU], "2")
    assert run.client == {
        "stamp": "kernel",
        "lost_records": 0,
        "gapless_records": 0,
        "recorder_restarts": 0,
    }
    want = [a_record(seq) for seq in range(5)] + [a_record(seq, worker="other") for seq in range(2)]
    assert records == sorted(want, key=lambda r: (r.due_at_s, r.worker))


def test_the_run_stands_in_the_database_once_the_feed_has_started(sqlite_db: str) -> None:
    """start() returns when the run is committed: a reader finds it, running."""
    with feeding(sqlite_db) as feed:
        assert read(sqlite_db)[0].status is RunStatus.RUNNING
        assert feed.finish(**ENDED, client={})


def test_the_host_is_sampled(sqlite_db: str) -> None:
    """The recorder adds readings of its host, timed from the beginning of the run."""
    with feeding(sqlite_db) as feed:
        wait_until(lambda: len(_samples(sqlite_db)) > 1)
        assert feed.finish(**ENDED, client={})
    samples = _samples(sqlite_db)
    assert all(0 <= sample.at_s < 60 and 0 <= sample.value <= 1 for sample in samples)
    assert {sample.source.split(":")[0] for sample in samples} == {"host"}


def _samples(db: str) -> list:
    with Store.open(db, read_only=True) as store:
        return store.samples(RUN_ID, ["host_cpu_ratio"])


def test_the_database_is_not_named_on_the_command_line(sqlite_db: str) -> None:
    """A URL may hold a password, which `ps` would show to every user of the machine."""
    with feeding(sqlite_db) as feed:
        command = Path(f"/proc/{recorder_pid(feed)}/cmdline").read_text(encoding="utf-8")
        assert feed.finish(**ENDED, client={})
    assert "collectors.recorder" in command
    assert "runs.db" not in command


# The load process is killed


def expect_interrupted(db: str) -> None:
    """The run of tests/collectors/feeding.py, cut: its records, its open requests as unfinished."""
    wait_until(lambda: read(db)[0].status is not RunStatus.RUNNING)
    run, records = read(db)
    assert run.status is RunStatus.INTERRUPTED
    assert (run.stopped_at_s, run.ended_at_s) == (4.0, 4.0)
    assert "the load process ended without closing the run" in run.notes
    assert records[:2] == [a_record(0), a_record(1)]
    assert [r.outcome for r in records] == [Outcome.OK] * 3 + [Outcome.UNFINISHED] * 2
    streaming, waiting = records[3:]
    assert (streaming.sent_at_s, streaming.last_token_at_s, streaming.ended_at_s) == (2.6, 3.5, 4.0)
    assert (waiting.sent_at_s, waiting.ended_at_s, waiting.task) == (None, 4.0, "ask")
    assert waiting.scenario == "chat"


def test_killing_the_load_process_leaves_a_readable_run(db: str) -> None:
    """After kill -9 every committed record is there, and the open requests are unfinished."""
    with load_process(db) as (process, _):
        process.kill()
        expect_interrupted(db)


def test_a_child_left_behind_does_not_keep_the_run_open(sqlite_db: str) -> None:
    """A forked child holds the line open; the recorder sees that its load process is gone."""
    with load_process(sqlite_db) as (process, _):
        assert process.stdin is not None
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        process.kill()
        expect_interrupted(sqlite_db)
        os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_does_not_reach_the_recorder(sqlite_db: str) -> None:
    """SIGINT to the whole group, and to the recorder itself, stops no recording."""
    with load_process(sqlite_db) as (process, recorder):
        os.killpg(process.pid, signal.SIGINT)
        os.kill(recorder, signal.SIGINT)
        process.communicate("finish\n", timeout=30)
    assert process.returncode == 0
    run, records = read(sqlite_db)
    assert (run.status, run.client["recorder_restarts"]) == (RunStatus.COMPLETE, 0)
    # Its requests 3 and 4 were named as open and never heard of again.
    assert [r.outcome for r in records] == [Outcome.OK] * 3 + [Outcome.UNFINISHED] * 2


# The recorder is killed


def test_killing_the_recorder_loses_nothing(db: str) -> None:
    """A killed recorder is started anew and sent what it had not acknowledged, once each."""
    with feeding(db) as feed:
        feed.put(a_batch(0, range(2)))
        wait_until(lambda: settled(feed))
        os.kill(recorder_pid(feed), signal.SIGSTOP)  # what comes now cannot be acknowledged
        feed.put(a_batch(1, range(2, 4)))
        feed.update_run(ramp_s=2.0)
        os.kill(recorder_pid(feed), signal.SIGKILL)
        feed.put(a_batch(2, range(4, 6)))
        assert feed.finish(**ENDED, client={})
    run, records = read(db)
    assert records == [a_record(seq) for seq in range(6)]
    assert (run.status, run.ramp_s) == (RunStatus.COMPLETE, 2.0)
    assert run.client["recorder_restarts"] == feed.restarts == 1
    assert "the recorder was started anew 1 times" in run.notes


def test_what_was_committed_and_not_acknowledged_is_not_doubled(sqlite_db: str) -> None:
    """A batch that is in the database already, sent again after a restart, changes nothing."""
    with feeding(sqlite_db) as feed:
        with Store.open(sqlite_db) as store:
            store.add_batch(RUN_ID, a_batch(0, range(2)))
        feed.put(a_batch(0, range(2)))
        assert feed.finish(**ENDED, client={})
    assert len(read(sqlite_db)[1]) == 2


def test_a_terminated_recorder_is_replaced(sqlite_db: str) -> None:
    """After SIGTERM to the recorder alone the run goes on with another, and ends complete."""
    with feeding(sqlite_db) as feed:
        feed.put(a_batch(0, range(2)))
        os.kill(recorder_pid(feed), signal.SIGTERM)
        wait_until(lambda: feed.restarts == 1)
        feed.put(a_batch(1, range(2, 4)))
        assert feed.finish(**ENDED, client={})
    run, records = read(sqlite_db)
    assert (run.status, len(records)) == (RunStatus.COMPLETE, 4)
    assert "the recorder was stopped while the run went on" in run.notes


def test_a_recorder_that_cannot_be_restarted_is_given_up(
    sqlite_db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tries to restart are bounded; finish() tries once more, and says what was lost."""
    monkeypatch.setattr(feed_module, "PAUSES_S", (0.0, 0.0))
    with feeding(sqlite_db) as feed:
        feed._db = "/proc/runs.db"
        os.kill(recorder_pid(feed), signal.SIGKILL)
        wait_until(lambda: feed._given_up)
        assert caplog.text.count("could not be started anew: The database /proc/runs.db") == 2
        feed.put(a_batch(0, range(2)))
        assert not feed.finish(**ENDED, client={})
        assert feed.lost_records == 2
    assert caplog.text.count("could not be started anew") == 3


def test_a_database_that_comes_back_has_everything(
    sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up in mid-run, but there again at its end: nothing is lost."""
    monkeypatch.setattr(feed_module, "PAUSES_S", (0.0,))
    with feeding(sqlite_db) as feed:
        feed._db = "/proc/runs.db"
        os.kill(recorder_pid(feed), signal.SIGKILL)
        wait_until(lambda: feed._given_up)
        feed.put(a_batch(0, range(2)))
        feed._db = sqlite_db
        assert feed.finish(**ENDED, client={})
    assert len(read(sqlite_db)[1]) == 2


# The recorder is slow


def big_batch(sequence: int) -> Batch:
    """100 records; 40 KB, of which three quarters are gaps."""
    gaps = a_record(0).gaps_s
    assert gaps is not None
    return a_batch(
        sequence,
        range(0),
        records=[a_record(sequence * 100 + i, gaps_s=gaps * 40) for i in range(100)],
    )


def test_a_feed_learns_the_salt_of_its_database(sqlite_db: str) -> None:
    """Whoever makes hashes has the key as soon as the recorder is there, and not before."""
    assert RecorderFeed(sqlite_db, a_present_run()).salt is None
    with feeding(sqlite_db) as feed, Store.open(sqlite_db, read_only=True) as store:
        assert feed.salt == store.salt()


def test_memory_is_bounded_and_gaps_go_first(sqlite_db: str) -> None:
    """While the recorder stands still the feed sheds gaps, keeps every record, and counts."""
    with feeding(sqlite_db, max_pending_bytes=500_000) as feed:
        os.kill(recorder_pid(feed), signal.SIGSTOP)
        for sequence in range(30):
            feed.put(big_batch(sequence))
            assert feed._bytes <= 500_000
        os.kill(recorder_pid(feed), signal.SIGCONT)
        assert feed.finish(**ENDED, client={})
    run, records = read(sqlite_db)
    assert len(records) == 3000
    shed = sum(record.gaps_s is None for record in records)
    # What had been sent before it was shed arrived with its gaps.
    assert 0 < shed <= run.client["gapless_records"] < 3000
    assert f"the gaps of {run.client['gapless_records']} requests were shed" in " ".join(run.notes)
    assert run.client["lost_records"] == 0
    assert records[-1].gaps_s == big_batch(29).records[-1].gaps_s


def test_records_go_last_and_are_counted(sqlite_db: str) -> None:
    """Where even records without gaps are too many, what is lost is counted and told."""
    with feeding(sqlite_db, max_pending_bytes=150_000) as feed:
        os.kill(recorder_pid(feed), signal.SIGSTOP)
        for sequence in range(30):
            feed.put(big_batch(sequence))
            assert feed._bytes <= 150_000
        os.kill(recorder_pid(feed), signal.SIGCONT)
        assert not feed.finish(**ENDED, client={})
    run, records = read(sqlite_db)
    assert feed.lost_records > 0
    assert len(records) + feed.lost_records == 3000
    assert run.client["lost_records"] == feed.lost_records
    assert f"{feed.lost_records} requests were lost" in " ".join(run.notes)


def test_finishing_does_not_wait_for_ever(sqlite_db: str) -> None:
    """A recorder that stands still makes finish() return False after its time, not hang."""
    with feeding(sqlite_db) as feed:
        os.kill(recorder_pid(feed), signal.SIGSTOP)
        feed.put(a_batch(0, range(2)))
        assert not feed.finish(**ENDED, client={}, timeout_s=0.2)
        assert feed.lost_records == 2


def test_a_batch_that_no_column_can_hold_costs_only_itself(
    sqlite_db: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What can never be committed is refused by name, counted as lost, and holds nothing up."""
    with feeding(sqlite_db) as feed:
        feed.put(a_batch(0, range(2)))
        feed.put(a_batch(1, range(0), records=[a_record(2, output_tokens=2**63)]))
        feed.put(a_batch(2, range(3, 5)))
        assert not feed.finish(**ENDED, client={})
    run, records = read(sqlite_db)
    assert [record.seq for record in records] == [0, 1, 3, 4]
    assert (run.status, feed.lost_records) == (RunStatus.COMPLETE, 1)
    assert "holds a value that cannot be stored" in caplog.text


# What cannot be


def test_garbage_is_refused_where_it_is_put() -> None:
    """Bytes that are no batch never reach the recorder."""
    feed = RecorderFeed("nowhere.db", a_run())
    with pytest.raises(BatchError):
        feed.put(b"garbage")
    with pytest.raises(TypeError, match="no field statuss"):
        feed.update_run(statuss=1)
    assert feed._pending == {}
    assert not feed.finish(**ENDED, client={})


def test_a_run_recorded_before_is_not_recorded_again(sqlite_db: str) -> None:
    """Starting a second run of the same id is refused by the first sentence of the store."""
    with feeding(sqlite_db) as feed:
        assert feed.finish(**ENDED, client={})
    with pytest.raises(StoreError, match=f"Run {RUN_ID} is in .* already"):
        RecorderFeed(sqlite_db, a_present_run()).start()


def test_a_database_out_of_reach_is_said_at_the_start(tmp_path: Path) -> None:
    """A folder, an unwritable place: start() says it in one sentence and leaves nothing."""
    for db in (str(tmp_path), "/proc/runs.db", str(tmp_path / "missing" / "runs.db")):
        with pytest.raises(StoreError, match=db) as error:
            RecorderFeed(db, a_run()).start()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_at_the_start(tmp_path: Path) -> None:
    """A database for which there is no space: one sentence, exit code 2, no file left."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.collectors.feeding", str(tmp_path / "runs.db")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # No file may grow, which is what a full disk is; Python ignores the signal for it.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # no threads yet
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    assert "runs.db" in done.stdout
    assert "space" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Its surroundings

UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import os, signal, sys, gevent
from tests.collectors.test_feed import ENDED, a_present_run, big_batch, recorder_pid
from collectors.feed import RecorderFeed

feed = RecorderFeed(sys.argv[1], a_present_run())
feed.start()
turns = 0
def turn():
    global turns
    while True:
        turns += 1
        gevent.sleep(0)
other = gevent.spawn(turn)
os.kill(recorder_pid(feed), signal.SIGSTOP)
for sequence in range(20):  # far more than a socket holds
    before = turns
    feed.put(big_batch(sequence))
    assert turns == before, "put() gave way to other greenlets"
    gevent.sleep(0.001)
    assert turns > before, "the hub was held up"
assert feed._pending
os.kill(recorder_pid(feed), signal.SIGCONT)
gevent.sleep(0.5)
os.kill(recorder_pid(feed), signal.SIGKILL)
feed.put(big_batch(20))
assert feed.finish(**ENDED, client={})
other.kill()
"""


def test_the_feed_works_under_gevent(sqlite_db: str) -> None:
    """Monkey-patched, a recorder that stands still or dies holds up no other greenlet."""
    subprocess.run(
        [sys.executable, "-c", UNDER_GEVENT, sqlite_db], cwd=ROOT, check=True, timeout=90
    )
    run, records = read(sqlite_db)
    assert (run.status, len(records)) == (RunStatus.COMPLETE, 2100)
    assert run.client["recorder_restarts"] == 1


def test_the_recorder_is_light() -> None:
    """Importing the recorder brings in neither gevent nor Locust nor what readers need."""
    code = "import collectors.recorder, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    heavy = {"gevent", "locust", "streamlit", "pandas", "numpy", "alembic", "pynvml", "psycopg"}
    assert heavy.isdisjoint(done.stdout.split())
