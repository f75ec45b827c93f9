"""A server as a subprocess: for the demo, the benchmark, the tests, and ``--serve``.

The server lives and dies with the block that uses it, and with this process if that is killed.
"""

from __future__ import annotations

import abc
import contextlib
import os
import selectors
import signal
import subprocess
import sys
from types import TracebackType
from typing import NoReturn, Self

from reference_server.errors import StartError

READY = "serving on "  # begins the line a server prints once it accepts connections
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


class ServerProcess(abc.ABC):
    """A server in a process group of its own; a context manager that is ready when entered.

    Ctrl-C in a terminal does not reach it: it is stopped when the block is left, so that what
    uses it can end in order first. The kernel ends it when the *thread* that entered the block
    ends: enter and leave it in the same one.

    Args:
        stop_timeout_s: how long it may take to end when asked; then it is killed.

    Attributes:
        url: where it answers, such as ``http://127.0.0.1:40123``.
    """

    def __init__(self, *, url: str = "", stop_timeout_s: float = _STOP_TIMEOUT_S) -> None:
        self.url = url
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def _start(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, without waiting for it."""

    @abc.abstractmethod
    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return once it accepts connections.

        Raises:
            StartError: it ended, or took too long.
        """

    def __enter__(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            StartError: it cannot be started, it ended, or it took too long.
        """
        try:
            self._process = self._start()
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process started, or None before it is started and after it is stopped."""
        return self._process.pid if self._process else None

    def wait(self) -> NoReturn:
        """Wait until it ends by itself.

        Raises:
            StartError: it did; says how.
        """
        assert self._process is not None, "enter the block first"
        self._process.wait()
        raise StartError(self.how_it_ended())

    def how_it_ended(self) -> str | None:
        """A sentence if it has ended by itself, which a server should not; else None."""
        code = self._process.poll() if self._process else None
        return None if code is None else f"The server ended by itself with exit code {code}."

    def stop(self) -> None:
        """End it and all that is left of its group; gently first. Harmless when it is not there."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._stop_timeout_s)
        except BaseException:  # somebody is impatient: a second signal cuts its grace short
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()


class SimProcess(ServerProcess):
    """``streamgauge serve sim`` on a free port.

    Args:
        options: further options of the command, such as ``"--metronome", "--ttft", "50ms"``.
        timeout_s: how long it may take to come up.
    """

    def __init__(self, *options: str, timeout_s: float = _START_TIMEOUT_S) -> None:
        super().__init__()
        self._options = options
        self._timeout_s = timeout_s

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "streamgauge", "serve", "sim", "--port", "0"]
        return subprocess.Popen(
            [*command, "--end-with-parent", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(self._timeout_s) else None
        if line and line.startswith(READY.encode()):
            self.url = line.decode().removeprefix(READY).strip()
            return
        happened = "said nothing" if line is None else "ended"
        raise StartError(
            f"The reference server {happened} within {self._timeout_s:g} s instead of serving; "
            "run `streamgauge serve sim` to see why."
        )
