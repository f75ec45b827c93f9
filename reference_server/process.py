"""A reference server as a subprocess: for the demo, the benchmark and the tests.

The server lives and dies with the block that uses it, and with this process if that is killed.
"""

from __future__ import annotations

import selectors
import subprocess
import sys
from types import TracebackType
from typing import Self

from reference_server.errors import StartError

READY = "serving on "  # begins the line a server prints once it accepts connections
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


class SimProcess:
    """``streamgauge serve sim`` on a free port, as a context manager.

    The kernel ends the server when the *thread* that entered the block ends: enter and leave it
    in the same one.

    Args:
        options: further options of the command, such as ``"--metronome", "--ttft", "50ms"``.
        timeout_s: how long it may take to come up.

    Attributes:
        url: where it answers, such as ``http://127.0.0.1:40123``; empty before it is started.
    """

    def __init__(self, *options: str, timeout_s: float = _START_TIMEOUT_S) -> None:
        self.url = ""
        self._options = options
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            StartError: it ended, or said nothing in time.
        """
        command = [sys.executable, "-m", "streamgauge", "serve", "sim", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--end-with-parent", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.url = self._wait_until_ready(self._process)
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
        """The server's process, or None before it is started and after it is stopped."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Ask it to end, and make sure that it does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()

    def _wait_until_ready(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(self._timeout_s) else None
        if line and line.startswith(READY):
            return line.removeprefix(READY).strip()
        happened = "said nothing" if line is None else "ended"
        raise StartError(
            f"The reference server {happened} within {self._timeout_s:g} s instead of serving; "
            "run `streamgauge serve sim` to see why."
        )
