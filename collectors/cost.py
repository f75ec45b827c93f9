"""What a run cost: GPU-hours for now; price lists come later.

The basis is always named, and without one every cost is ``None``: unknown is not free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collectors.estimates import PerUnit
from collectors.table import Floats

MILLION = 1_000_000
GPU_HOURS = "gpu_hours"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of the window; every field is ``None`` where there is no basis for it.

    Attributes:
        usd: US dollars for the whole window.
        per_request: for each request due in the window that succeeded.
        per_1m_output_tokens: for a million output tokens that arrived in the window.
        per_good_request: for each good request due in the window.
        basis: "gpu_hours".
    """

    usd: float | None = None
    per_request: PerUnit | None = None
    per_1m_output_tokens: PerUnit | None = None
    per_good_request: PerUnit | None = None
    basis: str | None = None


def gpu_usd_per_s(hour_price_usd: float | None, gpus: int | None) -> float | None:
    """What the GPUs cost a second, busy or not; ``None`` without price and number."""
    if hour_price_usd is None or gpus is None:
        return None
    return hour_price_usd * gpus / SECONDS_PER_HOUR


def usd_per_token(usd: float, input_tokens: Floats, output_tokens: Floats) -> float | None:
    """What each token costs when ``usd`` is shared out over all, input and output alike."""
    total = float(np.nansum(input_tokens) + np.nansum(output_tokens))
    return usd / total if total > 0 else None
