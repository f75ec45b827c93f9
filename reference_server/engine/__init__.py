"""The engine of the simulator: how a server batches, and what that takes.

Pure: sequences in, steps out, no I/O, no clock. `scheduler.py` decides who computes what in each
step, `kvcache.py` and `batch.py` keep count of blocks and tokens, `cost.py` says what a step takes
on which machine (`hardware.py`, `models.py`, `machine.py`), `fit.py` fits that to a measured run.
`fleet.py` runs many engines in virtual time.
"""

from reference_server.engine.config import EngineConfig, Preemption, Scheduling, Speculation
from reference_server.engine.cost import LinearCost, RooflineCost
from reference_server.engine.scheduler import Engine
from reference_server.engine.sequence import Emitted, Sequence, Span, Step

__all__ = [
    "Emitted",
    "Engine",
    "EngineConfig",
    "LinearCost",
    "Preemption",
    "RooflineCost",
    "Scheduling",
    "Sequence",
    "Span",
    "Speculation",
    "Step",
]
