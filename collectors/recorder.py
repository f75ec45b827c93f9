"""The recorder: the one process that writes a run, so that the load process does nothing but load.

Started by :class:`collectors.feed.RecorderFeed` as ``python -m collectors.recorder FD``, FD being
its end of a socket pair. What comes over the line is committed together with the recorder's own
telemetry every fifth of a second, and acknowledged after its commit; each second has a sign of
life. How a run may end, and what the database then says:

- ``finish`` came: what it says.
- The line closed without it, the load process having been killed: the run is interrupted.
- SIGTERM: what was read is committed and the run is interrupted; a feed that still lives starts
  another recorder, which takes the run up again.
- kill -9: what was committed. The feed sends the rest to the next recorder.

However it ends, a request that its worker last named as open and that has no record gets one, as
``unfinished``. SIGINT is ignored: Ctrl-C is the load process's to answer. No gevent, no numpy here.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgpack

from collectors.batches import Batch, Frames, OpenRequest, unpack
from collectors.errors import BatchError, CollectorsError, RunNotFoundError, StoreError
from collectors.gpu import GpuCollector
from collectors.host import HostCollector
from collectors.line import BATCH, DONE, FAILED, FINISH, READY, REFUSED, message
from collectors.poll import MAX_KEPT, Collector, Poller
from collectors.records import Outcome, RequestRecord
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.store import Store

HELLO_WITHIN_S = 30.0
COMMIT_EVERY_S = 0.2
BEAT_EVERY_S = 1.0
RETRY_EVERY_S = 1.0
LAST_TRIES_S = 30.0
"""How long a recorder whose load process is gone goes on trying to write what it holds."""

FAREWELL_S = 5.0

READ_BYTES = 1 << 18
MAX_HELD_BYTES = 16 << 20
"""Bytes read and not committed yet; beyond them the line stays unread, and the feed holds back."""

_CLOSED_NOTE = "the load process ended without closing the run"
_STOPPED_NOTE = "the recorder was stopped while the run went on"

log = logging.getLogger("streamgauge.recorder")


class Recorder:
    """Writes one run from what comes over a line.

    Args:
        line: connected to the feed.
        store: open for writing; the run is in it.
        run: the run.
        collectors: telemetry sources, polled each second.
    """

    def __init__(
        self, line: socket.socket, store: Store, run: Run, collectors: Iterable[Collector]
    ) -> None:
        self._line = line
        self._store = store
        self._run = run
        self._began_mono_s = run.began_mono_s  # the feed may move it: instant 0 is when it is ready
        self._poller = Poller(collectors, lambda: time.monotonic() - self._began_mono_s)
        self._frames = Frames()
        self._out = bytearray()
        self._parent = os.getppid()
        self._terminated = self._closed = self._deaf = False
        # Read and not committed yet:
        self._batches: list[tuple[int, Batch]] = []
        self._samples: list[Sample] = []
        self._changes: dict[str, Any] = {}
        self._numbers: list[int] = []  # of those changes
        self._finish: tuple[int, dict[str, Any]] | None = None
        self._held_bytes = 0
        # Over the whole run:
        self._notes, self._versions = list(run.notes), dict(run.versions)
        self._open: dict[str, Batch] = {}  # each worker's last batch
        self._last_at_s = 0.0
        self._complained = False

    def terminate(self, *_: object) -> None:
        """Commit what was read and leave; the handler of SIGTERM."""
        self._terminated = True

    def work(self) -> None:
        """Record until the run ends, one way or another."""
        self._poller.start()
        next_commit = next_beat = time.monotonic()
        while not (self._terminated or self._closed or self._finish):
            due = next_commit if self._batches or self._numbers else next_beat
            self._exchange(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                kept = self._commit()
                next_commit = time.monotonic() + (COMMIT_EVERY_S if kept else RETRY_EVERY_S)
                next_beat = time.monotonic() + BEAT_EVERY_S
        self._poller.stop()
        last_try = time.monotonic() + LAST_TRIES_S
        while not self._end():
            if time.monotonic() > last_try:
                log.warning("The end of run %s could not be written.", self._run.id)
                return
            time.sleep(RETRY_EVERY_S)

    # The line

    def _exchange(self, timeout_s: float) -> None:
        """Read what is there and write what can be; wait at most ``timeout_s`` for either."""
        reading = [self._line] if self._held_bytes < MAX_HELD_BYTES else []
        writing = [self._line] if self._out else []
        readable, writable, _ = select.select(reading, writing, [], timeout_s)
        if writable:
            self._write()
        if readable:
            self._read()
        elif os.getppid() != self._parent:
            # The load process is gone, though a child it left behind may hold the line open.
            self._closed = True

    def _read(self) -> bool:
        """Take what the line has to offer, a piece at most; whether it had anything."""
        try:
            data = b"" if self._deaf else self._line.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._closed = True
        self._held_bytes += len(data)
        try:
            for frame in self._frames.feed(data):
                self._take(*msgpack.unpackb(frame))
        except (BatchError, ValueError, TypeError) as error:  # nothing after it can be understood
            log.warning("The line carried what is no message: %s.", error)
            self._closed = self._deaf = True
        return bool(data)

    def _write(self) -> None:
        try:
            del self._out[: self._line.send(self._out)]
        except BlockingIOError:
            return
        except OSError:  # nobody is left to read; reading will notice that as well
            self._out.clear()

    def _say(self, *parts: Any) -> None:
        self._out += message(*parts)
        self._write()

    def _take(self, kind: str, number: int, content: Any) -> None:
        if kind == BATCH:
            try:
                self._batches.append((number, unpack(content)))
            except BatchError as error:
                self._say(REFUSED, number, str(error))
        elif kind == FINISH:
            self._finish = number, content
        else:
            self._numbers.append(number)
            self._change(content)

    def _change(self, changes: dict[str, Any]) -> None:
        """Take changes of the run; notes and versions are added to, the rest is replaced."""
        self._notes += [note for note in changes.pop("notes", ()) if note not in self._notes]
        self._versions |= changes.pop("versions", {})
        if "began_mono_s" in changes:
            self._began_mono_s = changes["began_mono_s"]
            self._poller.drain()  # timed from another beginning
        self._changes |= changes

    # The database

    def _commit(self) -> bool:
        """Commit what is held and acknowledge it; False if the database refuses for now."""
        self._samples = [*self._samples, *self._poller.drain()][-MAX_KEPT:]
        self._change({"notes": list(self._poller.notes), "versions": dict(self._poller.facts)})
        batches = [batch for _, batch in self._batches]
        try:
            try:
                self._store.commit(self._run.id, batches, self._samples, self._all_changes())
            except BatchError:
                self._commit_singly()
        except StoreError as error:
            if not self._complained:
                self._complained = True
                log.warning("%s The run is kept in memory and tried again.", error)
            return False
        self._complained = False
        for batch in batches:
            self._last_at_s = max(self._last_at_s, batch.at_s)
            last = self._open.get(batch.worker)
            if last is None or batch.sequence > last.sequence:
                self._open[batch.worker] = replace(batch, records=[], samples=[])
        numbers = [number for number, _ in self._batches] + self._numbers
        if numbers:
            self._say(DONE, numbers)
        self._batches, self._samples, self._changes, self._numbers = [], [], {}, []
        self._held_bytes = 0
        return True

    def _all_changes(self) -> dict[str, Any]:
        """Changes of the run to be written: those asked for, and the sign of life."""
        added = {"notes": self._notes, "versions": self._versions}
        return self._changes | added | {"heartbeat_wall_s": time.time()}

    def _commit_singly(self) -> None:
        """Commit piece by piece what cannot be committed whole; refuse the piece at fault."""
        for number, batch in list(self._batches):
            try:
                self._store.commit(self._run.id, [batch])
            except BatchError as error:
                self._batches.remove((number, batch))
                self._say(REFUSED, number, str(error))
        try:
            self._store.commit(self._run.id, [], self._samples, self._all_changes())
        except BatchError as error:
            log.warning("%s", error)
            self._store.commit(self._run.id, changes={"heartbeat_wall_s": time.time()})

    # The end

    def _end(self) -> bool:
        """Close the run as its ending asks for; False if the database refuses for now."""
        more = True
        while more:  # what is still on its way
            more = not self._finish and self._read()
            if (not more or self._held_bytes >= MAX_HELD_BYTES) and not self._commit():
                return False
        unfinished = [_unfinished(o, b, self._run) for b in self._open.values() for o in b.open]
        try:
            self._store.add_unfinished(self._run.id, unfinished)
        except StoreError as error:
            log.warning("%s", error)
            return False
        if self._finish:
            number, changes = self._finish
            self._numbers.append(number)
        else:
            changes = {
                "status": RunStatus.INTERRUPTED,
                "stopped_at_s": self._last_at_s,
                "ended_at_s": self._last_at_s,
                "notes": [_CLOSED_NOTE if self._closed else _STOPPED_NOTE],
            }
        self._change(changes)
        if not self._commit():
            return False
        self._line.settimeout(FAREWELL_S)
        with suppress(OSError):  # a feed that is gone needs no acknowledgement
            self._line.sendall(self._out)
        return True


def _unfinished(request: OpenRequest, batch: Batch, run: Run) -> RequestRecord:
    """The record of a request that was open when its worker was last heard of."""
    values = request._asdict()
    reached = [at_s for name, at_s in values.items() if name.endswith("_at_s") and at_s is not None]
    return RequestRecord(
        **values,
        run_id=run.id,
        worker=batch.worker,
        outcome=Outcome.UNFINISHED,
        scenario=run.scenario,
        model=run.model,
        api=run.api,
        ended_at_s=max(batch.at_s, *reached),
    )


def _greeting(line: socket.socket) -> tuple[str, Run, bool]:
    """The feed's first message: database, run, and whether the run is taken up again."""
    line.settimeout(HELLO_WITHIN_S)
    frames = Frames()
    while True:
        data = line.recv(READ_BYTES)
        if not data:
            raise BatchError("the line closed before the recorder was told what to record")
        for frame in frames.feed(data):
            _, db, values, resume = msgpack.unpackb(frame)
            return db, Run(**values | {"status": RunStatus(values["status"])}), resume


def _enter(store: Store, run: Run, *, resume: bool) -> Run:
    """The run as it stands in the database, where it now is, running."""
    now = time.time()
    if resume:
        try:
            store.update_run(
                run.id,
                status=RunStatus.RUNNING,
                stopped_at_s=None,
                ended_at_s=None,
                heartbeat_wall_s=now,
            )
            return store.find_run(run.id)
        except RunNotFoundError:  # the first recorder died before it got that far
            pass
    store.create_run(replace(run, heartbeat_wall_s=now))
    return run


def main(argv: list[str]) -> int:
    """Serve the feed at the other end of the socket whose number is ``argv[1]``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="streamgauge recorder: %(message)s")
    with socket.socket(fileno=int(argv[1])) as line:
        try:
            db, run, resume = _greeting(line)
            with Store.open(db, create=True) as store:
                run = _enter(store, run, resume=resume)
                recorder = Recorder(line, store, run, [HostCollector(), GpuCollector()])
                signal.signal(signal.SIGTERM, recorder.terminate)
                line.sendall(message(READY, store.salt()))
                line.setblocking(False)
                recorder.work()
        except CollectorsError as error:
            with suppress(OSError):
                line.sendall(message(FAILED, str(error)))
            return error.exit_code
        except ConnectionError:  # the feed went away before anything began
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
