"""Errors of this package, split by who can act on them.

A request that is refused is an answer on the wire (`RefusedError`), never the end of the server.
The others are shown to the user as they are: one sentence that says what was expected, what was
found and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ReferenceServerError(Exception):
    """Base of this package's errors; never raised itself."""

    exit_code: ClassVar[int] = 2  # the user can act; 4 marks our own bug


class AddressError(ReferenceServerError):
    """The host and port asked for cannot be listened on."""


class MissingExtraError(ReferenceServerError):
    """A package that only the simulator needs is not installed."""


class SetupError(ReferenceServerError):
    """The environment for real vLLM cannot be made on this machine."""


class SettingsError(ReferenceServerError):
    """The settings contradict each other or lie outside their range."""


class StartError(ReferenceServerError):
    """A server started as a subprocess did not come up."""


class RefusedError(ReferenceServerError):
    """A request the server answers with an error, in the shape vLLM gives it.

    Args:
        status: HTTP status.
        message: what a person reads.
        kind: vLLM's name of the error (its ``type``).
        param: the part of the request at fault, or None.
        retry_after_s: when to come back (the ``Retry-After`` header); None: nothing is said.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str,
        param: str | None = None,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s
