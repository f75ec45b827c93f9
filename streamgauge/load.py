"""One load run as a subprocess: ``locust`` with our options, its progress read from a pipe.

The run has a session of its own, so that Ctrl-C reaches it once, through here, and it can end as it
should: no more requests, what is open recorded as unfinished, everything committed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from loadgen.errors import OptionError
from loadgen.keeper import PROGRESS_FD

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """How the subprocess ended.

    Attributes:
        run_id: ``None`` where no run began; the reason is on standard error by then.
        exit_code: the subprocess's own.
        signal: the signal that stopped it through us, or ``None``.
        kept: False where records could not be written.
    """

    run_id: str | None
    exit_code: int
    signal: int | None
    kept: bool


def find_scenario(name: str) -> Path:
    """The Locust file of a bundled scenario's name, or of a path.

    Raises:
        OptionError: there is none.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise OptionError(f"Scenario file {name!r} does not exist.")
        return path
    bundled = SCENARIOS / f"{name}.py"
    if name.startswith("_") or not name.isidentifier() or not bundled.is_file():
        known = ", ".join(sorted(p.stem for p in SCENARIOS.glob("[a-z]*.py")))
        raise OptionError(
            f"No scenario {name!r}; bundled are {known}; or give the path of a Locust file."
        )
    return bundled


def run_load(
    scenario: Path,
    options: Sequence[str],
    on_progress: Callable[[dict[str, Any]], None],
) -> LoadResult:
    """Run Locust headless on ``scenario`` and wait for its end.

    Args:
        scenario: a Locust file.
        options: further words of the command line.
        on_progress: gets each line that the run reports: an ``event`` and its figures.
    """
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "locust", "-f", str(scenario), "--headless"]
    quiet = ["--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0"]
    run_id, kept = None, False
    with _signals_passed_on() as relay:
        process = subprocess.Popen(
            [*command, *quiet, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # Locust's own summary; ours comes from the record
            pass_fds=(write_fd,),
            env={**os.environ, PROGRESS_FD: str(write_fd)},
            start_new_session=True,
        )
        relay.attach(process)
        os.close(write_fd)
        for line in _lines(read_fd):
            run_id = line.get("run_id", run_id)
            kept = line.get("kept", kept)
            on_progress(line)
        exit_code = process.wait()
    return LoadResult(
        run_id=run_id,
        exit_code=exit_code,
        signal=relay.received[0] if relay.received else None,
        kept=kept,
    )


def _lines(fd: int) -> Iterator[dict[str, Any]]:
    with os.fdopen(fd, "rb") as pipe:
        for line in pipe:
            yield orjson.loads(line)


class Relay:
    """Hands SIGINT and SIGTERM to the run, which ends cleanly by itself.

    It listens before the run is started, so that no signal finds the run without anybody to end it.

    Attributes:
        received: the signals so far.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """From now on, and for what was received before, this is the run."""
        self._process = process
        if self.received:
            self._send(process)

    def hear(self, number: int, _frame: FrameType | None = None) -> None:
        """Take a signal, as the handler of one."""
        self.received.append(number)
        if self._process is not None:
            self._send(self._process)

    def _send(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            # SIGTERM for either: a run started in the background by a shell ignores SIGINT.
            process.send_signal(signal.SIGTERM if len(self.received) == 1 else signal.SIGKILL)


@contextmanager
def _signals_passed_on() -> Iterator[Relay]:
    relay = Relay()
    before = {n: signal.signal(n, relay.hear) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
