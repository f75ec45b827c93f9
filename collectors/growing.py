"""An array that grows at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Growing:
    """An array that grows at its end, in one piece.

    Thousands of small pieces, joined in the end, would leave as much memory again behind them, in
    holes that the system does not get back.

    Args:
        kind: of its values.
    """

    def __init__(self, kind: npt.DTypeLike) -> None:
        self._kind = np.dtype(kind)
        self._kept = bytearray()

    def __len__(self) -> int:
        return len(self._kept) // self._kind.itemsize

    def extend(self, values: npt.ArrayLike | Sequence[float | None]) -> None:
        """Take ``values``; ``None`` becomes NaN in an array of floats."""
        self._kept += np.ascontiguousarray(values, self._kind).data

    def whole(self) -> npt.NDArray[Any]:
        """All that was taken, without a copy; it does not grow any more."""
        return np.frombuffer(self._kept, self._kind)
