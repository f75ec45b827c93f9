"""The fast lane: events that repeat, read by a few lines of C where they could be compiled.

Between two events of a stream a process follows hundreds of others, and whatever the interpreter
needs for an event has left the processor's caches by the next one. So the connections of a process
are watched and read by C, which keeps what is like the event before (:mod:`loadgen.plain`) and
hands on everything else. It does what :mod:`loadgen.wire` and :mod:`loadgen.body` do with such an
event, and a test holds it to that; without it all works the same and costs more.
``STREAMGAUGE_FASTLANE=0`` leaves it out.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

from loadgen.backlog import declared_bytes

if TYPE_CHECKING:
    from loadgen._fastlane import FastLane

Read = tuple[bytes, list[tuple[int, int, bytes]], int] | OSError | bool | None
"""What is to be done with a connection that can be read, see ``FastLane.drain``."""

_READ = 1  # libev's EV_READ; gevent takes the number


def _load() -> type[FastLane] | None:
    if os.environ.get("STREAMGAUGE_FASTLANE") == "0":
        return None
    try:
        found: type[FastLane] = importlib.import_module("loadgen._fastlane").FastLane
    except ImportError:  # no compiler was there at install
        return None
    return found


FAST_LANE = _load()
"""The C type, ``None`` where there is none."""


class Readiness:
    """Tells of the sockets of a process that there is something to read.

    Args:
        state: of the process's :class:`loadgen.backlog.Backlog`.

    Attributes:
        lane: where events that repeat are read, ``None`` where that is left to Python.
    """

    def __init__(self, state: Any) -> None:
        self._hub = gevent.get_hub()
        self._told: dict[int, Callable[[Read], None]] = {}
        self._watchers: dict[int, Any] = {}
        self.lane = None if FAST_LANE is None else FAST_LANE(state)
        self._watcher: Any = None

    def start(self, fd: int, told: Callable[[Read], None]) -> None:
        """Call ``told`` in the hub whenever ``fd`` can be read, until :meth:`stop`.

        It is given `Read`.
        """
        if self.lane is None:
            watcher = self._watchers[fd] = self._hub.loop.io(fd, _READ)
            watcher.start(told, None)
            return
        if self._watcher is None:
            self._watcher = self._hub.loop.io(self.lane.fileno(), _READ)
            self._watcher.start(self._drain)
        self.lane.add(fd)
        self._told[fd] = told

    def stop(self, fd: int) -> None:
        """Tell no more; to be called before ``fd`` is closed."""
        if self.lane is None:
            watcher = self._watchers.pop(fd, None)
            if watcher is not None:
                watcher.stop()
                watcher.close()
        elif self._told.pop(fd, None) is not None:
            self.lane.remove(fd)

    def close(self) -> None:
        """Tell of nothing any more."""
        for fd in [*self._told, *self._watchers]:
            self.stop(fd)
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        if self.lane is not None:
            self.lane.close()

    def _drain(self) -> None:
        assert self.lane is not None
        for fd, read in self.lane.drain():
            told = self._told.get(fd)
            if told is None:  # stopped since
                continue
            try:
                told(read)
            except Exception:  # noqa: BLE001 gevent is told, as of any callback; the rest must go on
                self._hub.handle_error(told, *sys.exc_info())


def framed(data: bytes) -> bytes | None:
    """The payload of ``data`` if that is one whole HTTP chunk and nothing else, else ``None``."""
    size, _, rest = data.partition(b"\r\n")
    is_whole = rest.endswith(b"\r\n") and declared_bytes(size) == len(rest) - 2
    return rest[:-2] if is_whole else None
