"""The load process's end of the recorder: queues batches, and sees to it that they are committed.

Plain sockets, threads and processes, so that it is the same with gevent's monkey patching (threads
are then greenlets) and without. :meth:`RecorderFeed.put` never waits. A batch is kept until the
recorder says that it is committed; a recorder that dies is started anew and sent again what it did
not acknowledge. Memory is bounded: beyond the bound the gaps between tokens go first, oldest first,
then whole batches, and both are counted and told in the run.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgpack

from collectors.batches import MAX_FRAME_BYTES, Batch, Frames, pack, peek, without_gaps
from collectors.errors import BatchError, StoreError
from collectors.line import BATCH, DONE, FINISH, HELLO, READY, REFUSED, UPDATE, message
from collectors.runs import Run, RunStatus

START_WITHIN_S = 30.0
LEAVE_WITHIN_S = 5.0
PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each try to start a recorder anew; after the last one no more until the run's end."""

MAX_PENDING_BYTES = 64 << 20
READ_BYTES = 1 << 16

log = logging.getLogger("streamgauge.feed")
_RUN_FIELDS = frozenset(f.name for f in fields(Run))


@dataclass(slots=True)
class _Item:
    """Something the recorder has not acknowledged yet."""

    kind: str
    content: Any  # the bytes of a batch, or changes of the run
    records: int = 0

    @property
    def size(self) -> int:
        return len(self.content) if self.kind == BATCH else 0


class RecorderFeed:
    """Feeds one run to a recorder of its own.

    Args:
        db: database, as ``--db`` has it.
        run: the run as it begins.
        max_pending_bytes: bound on the batches kept until they are committed.
    """

    def __init__(self, db: str, run: Run, *, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self._db = db
        self._run = run
        self._max_bytes = max_pending_bytes
        self._changed = threading.Condition()  # guards all that follows
        self._pending: dict[int, _Item] = {}  # by number, in order
        self._unsent: deque[int] = deque()
        self._with_gaps: deque[int] = deque()
        self._bytes = 0
        self._number = 0
        self._line: socket.socket | None = None
        self._up = False  # whether a recorder listens at the other end of it
        self._process: subprocess.Popen[bytes] | None = None
        self._tries = 0  # to start a recorder, since the last acknowledgement
        self._closing = False
        self._threads: list[threading.Thread] = []
        self.salt: bytes | None = None
        """The key of the database's hashes, once the recorder has started; a secret."""
        self.restarts = 0
        self.lost_records = 0
        """Requests that never reached the database, for want of memory or a database."""
        self.gapless_records = 0
        """Requests in batches whose gaps were shed for want of memory."""

    def start(self) -> None:
        """Start the recorder; returns when the run is in the database.

        Raises:
            StoreError: the database cannot be used.
        """
        self._connect(resume=False)
        self._begin(self._work)

    def put(self, batch: Batch | bytes) -> None:
        """Queue a batch, packed or not. Never waits.

        Raises:
            BatchError: the bytes are no batch, or too many.
        """
        packed = batch if isinstance(batch, bytes) else pack(batch)
        if len(packed) > MAX_FRAME_BYTES // 2:
            raise BatchError(f"a batch of {len(packed)} bytes is over {MAX_FRAME_BYTES // 2}")
        item = _Item(BATCH, packed, peek(packed).records)
        with self._changed:
            self._with_gaps.append(self._queue(item))
            self._shed()

    def update_run(self, **changes: Any) -> None:
        """Change fields of the run; notes and versions are added to those there are."""
        unknown = sorted(changes.keys() - _RUN_FIELDS)
        if unknown:
            raise TypeError(f"a run has no field {', '.join(unknown)}")
        with self._changed:
            self._run = replace(self._run, **changes)  # for a recorder that has to begin anew
            self._queue(_Item(UPDATE, _plain(changes)))

    def finish(
        self,
        *,
        status: RunStatus,
        stopped_at_s: float,
        ended_at_s: float,
        client: dict[str, Any],
        timeout_s: float = 30.0,
    ) -> bool:
        """Close the run: wait until everything is committed and the recorder has left.

        Returns:
            Whether every record is in the database.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if not self._threads or self._closing:  # never started, or finished before
                return bool(self._threads) and not self._pending and not self.lost_records
            last = {"status": status, "stopped_at_s": stopped_at_s, "ended_at_s": ended_at_s}
            self._queue(_Item(FINISH, _plain(last | {"client": client})))
            self._tries = min(self._tries, len(PAUSES_S) - 1)  # one more, if it was given up
            while self._pending and not self._given_up and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            self.lost_records += sum(item.records for item in self._pending.values())
            complete = not self._pending and not self.lost_records
            self._closing = True
            self._changed.notify_all()
        self._leave(complete=complete)
        return complete

    # What is pending; all of it under the lock

    def _queue(self, item: _Item) -> int:
        number = self._number
        self._number += 1
        self._pending[number] = item
        self._unsent.append(number)
        self._bytes += item.size
        self._changed.notify_all()
        return number

    def _shed(self) -> None:
        """Come back under the bound: gaps first, oldest first, then batches not sent yet."""
        while self._bytes > self._max_bytes:
            if self._with_gaps:
                item = self._pending.get(self._with_gaps.popleft())
                if item is not None:
                    self._cut(item)
            else:
                number = next((n for n in self._unsent if self._pending[n].kind == BATCH), None)
                if number is None:
                    return
                self._unsent.remove(number)
                self.lost_records += self._drop(number)

    def _cut(self, item: _Item) -> None:
        shed = without_gaps(item.content)
        self._bytes -= item.size - len(shed)
        self.gapless_records += item.records if len(shed) < item.size else 0
        item.content = shed

    def _drop(self, number: int) -> int:
        """Forget an item; how many records it had, 0 where it was forgotten before."""
        item = self._pending.pop(number, None)
        if item is None:
            return 0
        self._bytes -= item.size
        if item.kind == FINISH:  # the recorder leaves now, and is not to be replaced
            self._closing = True
        while self._with_gaps and self._with_gaps[0] not in self._pending:
            self._with_gaps.popleft()
        self._changed.notify_all()
        return item.records

    def _told(self, item: _Item) -> Any:
        """What the recorder is told of ``item`` now; of the end with the counts as they stand."""
        if item.kind != FINISH:
            return item.content
        counts = {
            "lost_records": self.lost_records,
            "gapless_records": self.gapless_records,
            "recorder_restarts": self.restarts,
        }
        said = (
            "{} requests were lost: the recorder could not keep up",
            "the gaps of {} requests were shed: the recorder could not keep up",
            "the recorder was started anew {} times",
        )
        notes = [note.format(n) for note, n in zip(said, counts.values(), strict=True) if n]
        return item.content | {"client": item.content["client"] | counts, "notes": notes}

    # The recorder

    @property
    def _given_up(self) -> bool:
        return not self._up and self._tries >= len(PAUSES_S)

    def _connect(self, *, resume: bool) -> None:
        """Start a recorder and tell it what to record.

        Raises:
            StoreError: it cannot, and says why; or it did not say in time.
        """
        line, theirs = socket.socketpair()
        frames = Frames()
        with theirs:
            self._line = line
            self._process = subprocess.Popen(
                # -P: the working folder may hold a folder called collectors that is not ours.
                [sys.executable, "-P", "-m", "collectors.recorder", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the load process
            )
        line.settimeout(START_WITHIN_S)
        try:
            line.sendall(message(HELLO, self._db, asdict(self._run), resume))
            kind, *said = _first(line, frames)
        except (OSError, BatchError, ValueError) as error:
            self._part()
            raise StoreError(
                f"The recorder did not start ({error}); see what it printed."
            ) from None
        if kind != READY:
            self._part()
            raise StoreError(said[0])
        line.settimeout(None)
        with self._changed:
            self.salt = said[0]
            self._up = True
            self._tries += resume  # one that dies before it acknowledges anything was a try
            self.restarts += resume
            self._unsent = deque(self._pending)  # in order, those sent before included
            self._changed.notify_all()
        self._begin(self._listen, line, frames)

    def _begin(self, job: Callable[..., None], *args: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=job, args=args, daemon=True))
        self._threads[-1].start()

    def _work(self) -> None:
        """Send what is unsent, and start a recorder anew when there is none; until the end."""
        while True:
            with self._changed:
                while not (self._closing or self._may_send or self._may_restart):
                    self._changed.wait()
                if self._closing:
                    return
                sends = self._may_send
                line = self._line
                if sends:
                    number = self._unsent.popleft()
                    item = self._pending[number]
                    told = self._told(item)
            if not sends:
                self._restart()
                continue
            assert line is not None
            try:
                line.sendall(message(item.kind, number, told))
            except OSError:
                self._hang_up(line)

    @property
    def _may_send(self) -> bool:
        return self._up and bool(self._unsent)

    @property
    def _may_restart(self) -> bool:
        return not self._up and not self._given_up

    def _restart(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=PAUSES_S[self._tries])
            if self._closing:
                return
        self._part()
        try:
            self._connect(resume=True)
        except StoreError as error:
            log.warning("The recorder died and could not be started anew: %s", error)
            with self._changed:
                self._tries += 1
                self._changed.notify_all()

    def _listen(self, line: socket.socket, frames: Frames) -> None:
        """Hear acknowledgements until the recorder is gone."""
        try:
            while data := line.recv(READ_BYTES):
                for frame in frames.feed(data):
                    self._hear(*msgpack.unpackb(frame))
        except OSError:
            pass
        self._hang_up(line)

    def _hear(self, kind: str, *said: Any) -> None:
        with self._changed:
            if kind == DONE:
                for number in said[0]:
                    self._drop(number)
                self._tries = 0
            elif kind == REFUSED:
                number, sentence = said
                self.lost_records += self._drop(number)
                log.warning("A batch was lost: %s", sentence)

    def _hang_up(self, line: socket.socket) -> None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)  # so that the other thread notices as well
        with self._changed:
            if line is self._line:
                self._up = False
                self._changed.notify_all()

    def _part(self) -> None:
        """Let go of a recorder that is of no more use."""
        assert self._line is not None
        assert self._process is not None
        self._line.close()
        try:
            self._process.wait(LEAVE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _leave(self, *, complete: bool) -> None:
        """Close the line; a recorder that still has work goes on alone and ends by itself."""
        assert self._line is not None
        assert self._process is not None
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LEAVE_WITHIN_S)
        self._line.close()
        if complete:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_WITHIN_S)


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``changes`` as the line carries it; raises, here and now, where it cannot."""
    plain: dict[str, Any] = msgpack.unpackb(
        msgpack.packb(changes, default=str, unicode_errors="replace"), strict_map_key=False
    )
    return plain


def _first(line: socket.socket, frames: Frames) -> list[Any]:
    """The first message on ``line``."""
    while data := line.recv(READ_BYTES):
        for frame in frames.feed(data):
            first: list[Any] = msgpack.unpackb(frame)
            return first
    raise ConnectionError("it ended at once")
