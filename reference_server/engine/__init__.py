"""The engine of the simulator: continuous batching, without I/O and without a clock."""

from reference_server.engine.scheduler import (
    Emitted,
    Engine,
    EngineConfig,
    Sequence,
    Step,
)

__all__ = ["Emitted", "Engine", "EngineConfig", "Sequence", "Step"]
