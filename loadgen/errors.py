"""Errors of this package. A failed request is a record, never one of these."""

from __future__ import annotations

from typing import ClassVar


class LoadgenError(Exception):
    """Base of this package's errors; never raised itself."""

    exit_code: ClassVar[int] = 2  # the user can act; 4 marks our own bug


class OptionError(LoadgenError):
    """An option or a scenario that does not make sense."""


class TargetError(LoadgenError):
    """The endpoint cannot be used as asked: unreachable, wrong model, no access."""


class DecodeError(LoadgenError):
    """A response cannot be decoded; the client turns it into the outcome ``malformed``."""


def words_of(error: OSError) -> str:
    """What went wrong, without the number."""
    return error.strerror or str(error) or type(error).__name__
