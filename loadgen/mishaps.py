"""What goes wrong in a load process beside its requests, so that no run looks better than it was.

Locust catches what a task raises and what a listener raises, writes a line in its log and goes on.
Here it is counted, and the first words of each kind are kept: the run carries them as notes. What a
listener of ours raises is our own failure and makes the run invalid.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import collectors
from collectors.errors import CollectorsError
from collectors.redact import redact_text
from loadgen.errors import LoadgenError

MAX_WORDS = 300
_OURS = (Path(__file__).parent, *map(Path, collectors.__path__))
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


class Kind(StrEnum):
    """Whose code raised. The value is the key in the run's client health."""

    TASK = "task_errors"
    LISTENER = "listener_errors"
    OWN = "own_errors"


_SAID = {
    Kind.TASK: "Tasks of the scenario raised {count} {exceptions}; what they were yet to ask was"
    " not asked.",
    Kind.LISTENER: "Listeners to Locust's events raised {count} {exceptions}; what they were to do"
    " was not done.",
    Kind.OWN: "Streamgauge itself failed {count} {times}; please report it.",
}
_SWALLOWED = {
    # How Locust begins the lines that it writes for what it has caught.
    "Uncaught exception in event handler": Kind.LISTENER,
    "Uncaught exception in handler for": Kind.LISTENER,
    "Uncaught exception in on_stop": Kind.TASK,
}


@dataclass(slots=True)
class Mishap:
    """How often something of one kind went wrong, and how the first time."""

    count: int
    first: str


class Mishaps:
    """What went wrong during one run, by kind."""

    def __init__(self) -> None:
        self._found: dict[Kind, Mishap] = {}

    def note(self, kind: Kind, error: BaseException) -> None:
        """Count an exception; the first of its kind is kept in words."""
        if kind in self._found:
            self._found[kind].count += 1
        else:
            self._found[kind] = Mishap(1, words_of(error))

    def add(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what another process told, see :meth:`told`."""
        for name, mishap in told.items():
            found = self._found.setdefault(Kind(name), Mishap(0, mishap["first"]))
            found.count += mishap["count"]

    def has(self, kind: Kind) -> bool:
        """Whether anything of a kind went wrong."""
        return kind in self._found

    def told(self, secrets: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
        """Counts and first words by kind, redacted, as plain values."""
        return {
            str(kind): asdict(mishap) | {"first": redact_text(mishap.first, secrets)}
            for kind, mishap in self._found.items()
        }

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._found.clear()


def sentences(told: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A note for the run on each kind of what :meth:`Mishaps.told` says."""
    for name, mishap in told.items():
        many = mishap["count"] != 1
        said = _SAID[Kind(name)].format(
            count=mishap["count"],
            exceptions="exceptions" if many else "exception",
            times="times" if many else "time",
        )
        yield f"{said} First: {mishap['first']}"


def words_of(error: BaseException) -> str:
    """What was raised and where, on one line: ``KeyError: 'x' in on_request, chat.py:8``."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    words = words if len(words) <= MAX_WORDS else words[: MAX_WORDS - 1] + "…"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return words
    where = frames[-1]
    return f"{words} in {where.name}, {Path(where.filename).name}:{where.lineno}"


def is_ours(error: BaseException) -> bool:
    """Whether an exception is a fault of ours: raised by our code, and no sentence for the user.

    Libraries are skipped: what matters is who called them last.
    """
    if isinstance(error, (LoadgenError, CollectorsError)):
        return False
    for path in reversed(list(_files(error.__traceback__))):
        if any(path.is_relative_to(home) for home in _OURS):
            return True
        is_library = any(path.is_relative_to(home) for home in _LIBRARIES)
        if path.is_absolute() and not is_library:  # C extensions name files that are nowhere
            return False
    return False


def _files(trace: TracebackType | None) -> Iterator[Path]:
    while trace is not None:
        yield Path(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next


class SwallowedExceptions(logging.Handler):
    """Hears what Locust swallows: an exception in a listener is a line in its log and no more.

    Listens on the root logger, where Locust writes such lines, and takes the exception itself: the
    line is written while it is being handled.
    """

    def __init__(self, mishaps: Mishaps) -> None:
        super().__init__(logging.ERROR)
        self._mishaps = mishaps

    def listen(self) -> None:
        """Begin; under ``--loglevel CRITICAL`` too, which shows what it showed before."""
        root = logging.getLogger()
        if root.level > logging.ERROR:
            for handler in root.handlers:
                handler.setLevel(max(handler.level, root.level))
            root.setLevel(logging.ERROR)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Count the exception behind a line of Locust's."""
        error = sys.exc_info()[1]
        if error is None:
            return
        for words, kind in _SWALLOWED.items():
            if str(record.msg).startswith(words):
                self._mishaps.note(kind, error)
