"""Runs one command whose whole family of processes ends with it, or with us.

Run as a script, apart from the package: ``python -P tether.py PARENT GRACE_S CORES COMMAND ...``.
It stands between us and a server that is not ours, because a server may be a family: a shell in
front of it, engines and workers behind it, some in sessions of their own. Orphans of the family
become this process's children (a *subreaper*, Linux), so none is lost from sight.

- On SIGTERM or SIGINT, and when the process ``PARENT`` that started it dies (``kill -9`` too),
  the command gets SIGTERM and ``GRACE_S`` seconds; what is left then is killed. A second signal
  cuts the grace short.
- When the command ends by itself, what it left behind is ended too.

Exit code: the command's, 128 + the signal that killed it, 127 if it cannot be run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import psutil

LEFT_GRACE_S = 2.0  # for what the command left behind, which nobody told to end so far
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_TOLD_TO_STOP = (signal.SIGTERM, signal.SIGINT)
_HEARD = {*_TOLD_TO_STOP, signal.SIGCHLD}


def main(argv: list[str]) -> int:
    """Run the command; its exit code."""
    parent, grace_s, cores, command = int(argv[0]), float(argv[1]), argv[2], argv[3:]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children would vanish unseen
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be heard
        return 1
    os.sched_setaffinity(0, map(int, cores.split(",")))
    return _Family(command).run(grace_s)


class _Family:
    """The command and all that it starts."""

    def __init__(self, command: list[str]) -> None:
        self._code: int | None = None  # None while the command runs
        own = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _become(command, own)

    def run(self, grace_s: float) -> int:
        """Wait for the command's end, or for being told to end it; its exit code."""
        while self._code is None and signal.sigwait(_HEARD) == signal.SIGCHLD:
            self._reap()
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            self._wait(grace_s, lambda: self._code is not None)
        self._end_the_rest(min(grace_s, LEFT_GRACE_S))
        return self._code if self._code is not None else 128 + signal.SIGKILL

    def _end_the_rest(self, grace_s: float) -> None:
        """End what is still there: asked once, then killed until nothing is left."""
        for process in _descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        self._wait(grace_s, lambda: not _descendants())
        while left := _descendants():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._wait(0.1, lambda: not _descendants())

    def _wait(self, seconds: float, done: Callable[[], bool]) -> None:
        """Reap what ends until ``done``, the time is up, or we are told to stop (again)."""
        deadline = time.monotonic() + seconds
        self._reap()
        while not done() and (left_s := deadline - time.monotonic()) > 0:
            heard = signal.sigtimedwait(_HEARD, min(left_s, 0.1))
            self._reap()
            if heard is not None and heard.si_signo in _TOLD_TO_STOP:
                return

    def _reap(self) -> None:
        """Take note of every child that has ended, adopted ones too."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._pid:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._code = code if code >= 0 else 128 - code


def _become(command: list[str], parent: int) -> None:
    """In the child: turn into the command, or end with 127."""
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        print(f"tether: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _descendants() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.is_running() and _status(process) != psutil.STATUS_ZOMBIE
    ]


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
