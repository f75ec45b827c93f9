"""How punctual the simulator itself is, step by step.

All tokens of a step are due at one instant, and are written one after another. Two figures tell
how far that is from what the engine said: how late the first of them is written, and how long it
takes until the last one is. Pure.
"""

from __future__ import annotations

from collections.abc import Callable


class StepWatch:
    """Follows writes from step to step.

    Args:
        late: told how late a step's first write was, in seconds.
        spread: told how long after it the step's last write was, in seconds.
    """

    def __init__(self, late: Callable[[float], None], spread: Callable[[float], None]) -> None:
        self._late = late
        self._spread = spread
        self._due_at = float("-inf")
        self._first_at = self._last_at = 0.0

    def note(self, due_at: float, written_at: float) -> None:
        """A token was written. One of an earlier step than the last counts for neither figure."""
        if due_at > self._due_at:
            self.close()
            self._due_at, self._first_at = due_at, written_at
            self._late(written_at - due_at)
        if due_at == self._due_at:
            self._last_at = written_at

    def close(self) -> None:
        """Tell of the last step too."""
        if self._first_at:
            self._spread(self._last_at - self._first_at)
            self._first_at = 0.0
