"""Errors of this package: what a user can put right. One sentence each."""

from __future__ import annotations

from typing import ClassVar


class SlaError(Exception):
    """Base of this package's errors; never raised itself."""

    exit_code: ClassVar[int] = 2


class SlaFileError(SlaError):
    """An SLA file cannot be read, or does not say what it must."""


class JudgeError(SlaError):
    """A run cannot be judged: it is empty, or still going."""


class ExportError(SlaError):
    """An export cannot be written as asked."""
