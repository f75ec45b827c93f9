"""One telemetry reading, of a GPU, a host, a load process or a server."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """One reading. The unit ends the name: ``gpu_power_watts``, ``host_cpu_ratio``."""

    at_s: float  # seconds since the run began
    source: str  # e.g. "gpu:GPU-4fe1...", "host:load-1", "worker:local"
    name: str
    value: float
