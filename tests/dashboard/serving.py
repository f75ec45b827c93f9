"""A real ``streamgauge dashboard`` for tests that look at it from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY = "dashboard on "


@dataclass(frozen=True)
class Serving:
    """A dashboard that answers."""

    process: subprocess.Popen[str]
    url: str


def command(*options: str) -> list[str]:
    """The words of the command."""
    return [sys.executable, "-m", "streamgauge", "dashboard", "--no-browser", *options]


@contextmanager
def dashboard(folder: Path, *options: str) -> Iterator[Serving]:
    """Start one on a free port in ``folder``, wait until it answers, and end it."""
    process = subprocess.Popen(
        command("--port", "0", *options),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith(READY):
            _, errors = process.communicate(timeout=10)
            raise AssertionError(f"it did not start: {line}{errors}")
        yield Serving(process, line.removeprefix(READY).strip())
    finally:
        process.terminate()
        try:
            process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
