"""Errors of this package, split by who can act on them.

A failed request is a record, never an exception. Messages are one sentence that says what was
expected, what was found and what to do; they are shown to the user as they are.
"""

from __future__ import annotations

from typing import ClassVar


class CollectorsError(Exception):
    """Base of this package's errors; never raised itself."""

    exit_code: ClassVar[int] = 2  # the user can act; 4 marks our own bug


class RecordError(CollectorsError):
    """A record contradicts itself: our own bug."""

    exit_code = 4


class StoreError(CollectorsError):
    """The database cannot be opened, read or written as asked: the user can act."""


class RunNotFoundError(StoreError):
    """No run answers to that id, prefix or name."""


class AmbiguousRunError(StoreError):
    """More than one run answers to that prefix or name."""


class NoDataError(CollectorsError):
    """A telemetry source does not exist on this machine; absent, not broken."""


class BatchError(CollectorsError):
    """Bytes on the recorder's line are not a batch: our own bug, or a foreign writer."""

    exit_code = 4
