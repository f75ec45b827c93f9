"""Errors of this package: what a user can put right. One sentence each."""

from __future__ import annotations

from typing import ClassVar


class DashboardError(Exception):
    """Base of this package's errors; never raised itself."""

    exit_code: ClassVar[int] = 2


class AddressError(DashboardError):
    """The address to listen on is taken, unknown or not allowed."""
