"""What a server itself says a request cost, in US dollars. Pure.

Beside what the figures compute from a price, never instead of it.
"""

from __future__ import annotations

from math import isfinite
from typing import Any


def cost_usd(said: Any) -> float | None:
    """A cost as servers write it, a number or its text; ``None`` for anything else."""
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    try:
        cost = float(said)
    except (ValueError, OverflowError):
        return None
    return cost if isfinite(cost) and cost >= 0 else None
