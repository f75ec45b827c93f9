"""The recorder's own promises, with the test at the other end of its line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import pytest

from collectors import recorder as recorder_module
from collectors.batches import Batch, Frames, pack
from collectors.errors import StoreError
from collectors.line import BATCH, DONE, FAILED, FINISH, HELLO, READY, UPDATE, message
from collectors.recorder import Recorder
from collectors.records import Outcome
from collectors.runs import Run, RunStatus
from collectors.store import Store
from tests.collectors.examples import RUN_ID, a_batch, a_record, a_run
from tests.collectors.feeding import OPEN


class Line:
    """The feed's end of a line."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.settimeout(20)
        self._messages = self._read(Frames())

    def say(self, *parts: Any) -> None:
        self._end.sendall(message(*parts))

    def hear(self) -> list[Any]:
        """The recorder's next message."""
        return next(self._messages)

    def _read(self, frames: Frames) -> Iterator[list[Any]]:
        while data := self._end.recv(1 << 16):
            yield from map(msgpack.unpackb, frames.feed(data))


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[tuple[Line, subprocess.Popen[bytes]]]:
    """A recorder process that has been told to record to runs.db, and was ready."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "collectors.recorder", str(theirs.fileno())]
        with subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        ) as process:
            theirs.close()
            line = Line(ours)
            now = {"began_wall_s": time.time(), "began_mono_s": time.monotonic()}
            line.say(HELLO, str(tmp_path / "runs.db"), asdict(a_run(**now)), False)
            kind, salt = line.hear()
            assert (kind, len(salt)) == (READY, 32)
            yield line, process
            ours.close()
            process.wait(20)


def found(tmp_path: Path) -> tuple[Run, list[Outcome]]:
    """The run and the outcomes of its requests."""
    with Store.open(str(tmp_path / "runs.db"), read_only=True) as store:
        return store.find_run(RUN_ID), [record.outcome for record in store.records(RUN_ID)]


def test_sigterm_commits_marks_and_leaves(
    recorder: tuple[Line, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """After SIGTERM what was sent is committed, what was open is unfinished, the run is cut."""
    line, process = recorder
    line.say(BATCH, 0, pack(a_batch(0, range(2), at_s=4.0, open=OPEN)))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    run, outcomes = found(tmp_path)
    assert run.status is RunStatus.INTERRUPTED
    assert "the recorder was stopped while the run went on" in run.notes
    assert outcomes == [Outcome.OK] * 2 + [Outcome.UNFINISHED] * 2


def test_garbage_on_the_line_ends_the_run(
    recorder: tuple[Line, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """After a message that is none the recorder keeps what it has, says so and leaves."""
    line, process = recorder
    line.say(BATCH, 0, pack(a_batch(0, range(2))))
    assert line.hear() == [DONE, [0]]
    line._end.sendall(b"\xff" * 100)
    _, said = process.communicate(timeout=20)
    assert b"carried what is no message" in said
    run, outcomes = found(tmp_path)
    assert (run.status, len(outcomes)) == (RunStatus.INTERRUPTED, 2)


def test_a_batch_that_cannot_be_read_is_refused_by_number(
    recorder: tuple[Line, subprocess.Popen[bytes]],
) -> None:
    """Bytes that are no batch are refused, and the line goes on."""
    line, _ = recorder
    line.say(BATCH, 7, b"no batch")
    kind, number, sentence = line.hear()
    assert (kind, number) == ("refused", 7)
    assert "not a batch" in sentence
    line.say(UPDATE, 8, {"ramp_s": 1.0})
    assert line.hear() == [DONE, [8]]


def test_a_sign_of_life_comes_without_batches(
    recorder: tuple[Line, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A run in which nothing happens still has a fresh heartbeat."""
    first = found(tmp_path)[0].heartbeat_wall_s
    deadline = time.monotonic() + 20
    while found(tmp_path)[0].heartbeat_wall_s == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_database_that_does_not_serve_is_said_on_the_line(tmp_path: Path) -> None:
    """The recorder answers with the store's sentence and leaves with its exit code."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Line(ours).say(HELLO, str(tmp_path), asdict(a_run()), False)
        fd = theirs.detach()
        assert recorder_module.main(["recorder", str(fd)]) == 2
        assert Line(ours).hear() == [FAILED, f"{tmp_path} is a folder; expected an SQLite file."]


class Refusing:
    """A store that refuses to commit a number of times, as on a disk that is full for a while."""

    def __init__(self, store: Store, times: int) -> None:
        self._store = store
        self._left = times

    def commit(self, *args: Any, **kwargs: Any) -> list[bool]:
        self._left -= 1
        if self._left >= 0:
            raise StoreError("The database is full.")
        return self._store.commit(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the database refuses, batches are kept and tried again; the user is told once."""
    monkeypatch.setattr(recorder_module, "RETRY_EVERY_S", 0.01)
    monkeypatch.setattr(recorder_module, "COMMIT_EVERY_S", 0.0)
    ours, theirs = socket.socketpair()
    batches: list[Batch] = [a_batch(n, range(n, n + 1)) for n in range(3)]
    with ours, theirs, Store.open(str(tmp_path / "runs.db"), create=True) as store:
        store.create_run(a_run())
        theirs.setblocking(False)
        writer = Recorder(theirs, Refusing(store, 5), a_run(), [])  # type: ignore[arg-type]  # as good as one
        thread = threading.Thread(target=writer.work)
        thread.start()
        line = Line(ours)
        for number, batch in enumerate(batches):
            line.say(BATCH, number, pack(batch))
        line.say(FINISH, 3, {"status": "complete", "ended_at_s": 3.0})
        done: list[int] = []
        while 3 not in done:
            done += line.hear()[1]
        thread.join(20)
        assert not thread.is_alive()
        assert sorted(done) == [0, 1, 2, 3]
        assert list(store.records(RUN_ID)) == [a_record(n) for n in range(3)]
        assert store.find_run(RUN_ID).status is RunStatus.COMPLETE
    assert caplog.text.count("The database is full. The run is kept in memory") == 1
